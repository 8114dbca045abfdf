"""What a dead process's slots say: who is charged what."""

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay._fastpath import ERROR_CODES, JOURNAL_SLOT_SIZE, Journal
from tests.support.money_oracle import COST_MAX
from tests.support.slots import ENDED, FREE, OPEN, PER_TOKEN, TEXTS, Prices, Slot, Usage, document, write_slot


def memory(slots: int = 4) -> bytearray:
    return bytearray(slots * JOURNAL_SLOT_SIZE)


def left(**fields) -> dict:
    """The document of the only slot."""
    data = memory()
    write_slot(data, 2, id=77, **fields)
    (document,) = Journal(data).left_over()
    return document


def test_the_layout_is_what_this_test_writes():
    assert ctypes.sizeof(Slot) <= JOURNAL_SLOT_SIZE
    texts = {"upstream_model": "gpt-4o-2024", "channel": "main", "source_ip": "::1", "user_agent": "é"}
    document = left(texts=texts, organisation_id=3, hold_nano=9, max_cost_nano=8, first_byte_us=4, attempts=2)
    assert document == document | texts | {
        "id": 77, "account_id": 1, "organisation_id": 3, "key_id": 1, "path": "/v1/chat/completions", "model": "gpt-4o",
        "rate_card": "card", "attempts": 2, "stream": 1, "status": 200, "first_byte_us": 4, "latency_us": 0,
        "hold_nano": 9, "max_cost_nano": 8,
    }  # fmt: skip


def test_an_open_call_is_charged_for_what_was_delivered():
    document = left()
    assert (document["input_tokens"], document["output_tokens"], document["cost_nano"]) == (10, 5, 15)
    assert (document["ended"], document["error_code"], document["usage_source"]) == (False, "recovered", "estimated")


def test_an_open_call_of_which_the_price_has_tiers_costs_what_was_noted():
    document = left(tiered_cost_nano=123, counted_tokens=5)
    assert (document["input_tokens"], document["output_tokens"], document["cost_nano"]) == (10, 5, 123)


def test_what_the_record_has_beside_it():
    assert left()["more"] is None
    usage = Usage(input_tokens=9, cache_write_tokens=1, cache_write_1h_tokens=2, audio_input_tokens=3, service=3)
    document = left(usage_seen=2, usage=usage)
    assert document["more"] == (2, 3, 0, 0, 3, 0, 0, 0, None, 0)
    assert document["cache_write_tokens"] == 3
    key = (ctypes.c_uint8 * 32)(*range(32))
    assert left(idempotency=key, idempotency_body=7)["more"] == (0, 0, 0, 0, 0, 0, 0, 0, bytes(range(32)), 7)
    # Nothing was delivered: the key is free.
    assert left(idempotency=key, delivered=0, status=0, counted_tokens=0)["more"] is None


def test_an_open_call_of_which_nothing_was_delivered_is_free():
    document = left(delivered=0, status=0, counted_tokens=0)
    assert (document["input_tokens"], document["output_tokens"], document["cost_nano"]) == (0, 0, 0)
    assert (document["status"], document["error_code"], document["usage_source"]) == (499, "recovered", "none")


@pytest.mark.parametrize(
    ("usage_seen", "reported", "charged", "source"),
    [(1, 3, 5, "estimated"), (1, 9, 9, "upstream"), (2, 3, 3, "upstream"), (2, 9, 9, "upstream")],
    ids=["behind the text", "ahead of it", "final and less", "final and more"],
)
def test_a_report_so_far_and_the_final_one(usage_seen: int, reported: int, charged: int, source: str):
    document = left(usage_seen=usage_seen, usage=Usage(input_tokens=4, output_tokens=reported))
    assert (document["input_tokens"], document["output_tokens"]) == (4, charged)
    assert (document["cost_nano"], document["usage_source"]) == (4 + charged, source)


def test_an_ended_call_is_charged_as_it_was_decided():
    usage = Usage(input_tokens=4, output_tokens=3, cache_write_tokens=2, cache_write_1h_tokens=1)
    code = ERROR_CODES.index("client_gone")
    document = left(
        state=ENDED,
        usage=usage,
        cost_nano=1234,
        written_off_nano=34,
        source=1,
        error_code=code,
        status=499,
        latency_us=6,
    )
    assert (document["cost_nano"], document["written_off_nano"]) == (1234, 34)
    assert (document["output_tokens"], document["cache_write_tokens"], document["latency_us"]) == (3, 3, 6)
    assert (document["status"], document["error_code"], document["usage_source"]) == (499, "client_gone", "upstream")


amounts = st.one_of(st.integers(0, 20), st.integers(0, 2**40))
prices = st.one_of(st.just(0), st.integers(0, 10**11))
USAGES = st.fixed_dictionaries(
    {name: st.integers(0, 3) if name == "service" else amounts for name, _ in Usage._fields_}
)
SLOTS = st.fixed_dictionaries(
    {
        "state": st.sampled_from([OPEN, OPEN, ENDED]),
        "delivered": st.integers(0, 1),
        "usage_seen": st.integers(0, 2),
        "status": st.sampled_from([0, 101, 200, 499]),
        "source": st.integers(0, 2),
        "error_code": st.sampled_from([0, 3]),
        "tiered_cost_nano": st.one_of(st.just(-1), amounts),
        **dict.fromkeys(("prompt_tokens", "counted_tokens", "cost_nano", "written_off_nano", "hold_nano"), amounts),
        **dict.fromkeys(("organisation_id", "first_byte_us", "latency_us"), st.integers(0, 3)),
        "max_cost_nano": st.one_of(st.just(-1), amounts),
        "idempotency_body": st.integers(0, 5),
    }
)


@given(
    fields=st.lists(st.tuples(SLOTS, USAGES, st.booleans()), min_size=1, max_size=4),
    rates=st.fixed_dictionaries({name: prices for name, _ in Prices._fields_}),
    texts=st.dictionaries(st.sampled_from(TEXTS), st.text(max_size=30), max_size=4),
)
def test_slots_are_their_oracle(fields, rates, texts):
    data = memory()
    texts = {name: text.encode("utf-8", "ignore").decode() for name, text in texts.items()}
    expected = []
    for number, (slot, usage, bound) in enumerate(fields):
        key = (ctypes.c_uint8 * 32)(*range(32)) if bound else (ctypes.c_uint8 * 32)()
        values = slot | {"usage": Usage(**usage), "prices": Prices(**rates), "idempotency": key, "id": 9 - number}
        written = write_slot(data, number, texts=texts, **values)
        expected.append(document(written, ERROR_CODES))
    assert Journal(data).left_over() == expected[::-1]


def test_texts_that_were_being_written_are_absent():
    data = memory()
    slot = write_slot(data, 0, id=1)
    slot.text_size[1] = 0xFFFF  # its length comes last
    slot.text_start[2], slot.text_size[2] = 1500, 100  # points out of the slot: damage
    (document,) = Journal(data).left_over()
    assert (document["path"], document["model"], document["rate_card"]) == ("/v1/chat/completions", None, None)


def test_a_text_torn_in_a_letter_is_still_text():
    data = memory()
    slot = write_slot(data, 0, id=1, texts={"model": "modèle"})
    slot.text_size[1] -= 3
    (document,) = Journal(data).left_over()
    assert document["model"].encode().startswith(b"mod")


def test_left_over_is_ordered_and_free_slots_are_not_in_it():
    data = memory(5)
    for number, (call, state) in enumerate([(30, 1), (10, ENDED), (99, FREE), (20, 1)]):
        write_slot(data, number, id=call, state=state)
    journal = Journal(data)
    assert [document["id"] for document in journal.left_over()] == [10, 20, 30]
    assert journal.free_slots == 2
    journal.clear()
    assert journal.left_over() == []
    assert journal.free_slots == 5


def test_absurd_prices_and_counts_do_not_overflow():
    document = left(counted_tokens=1 << 40, prompt_tokens=1 << 40)
    assert document["cost_nano"] == 2 << 40
    data = memory()
    slot = write_slot(data, 0, id=1, counted_tokens=1 << 40)
    slot.prices.output = 1 << 53
    (document,) = Journal(data).left_over()
    assert document["cost_nano"] == COST_MAX


def test_a_journal_has_whole_slots():
    for size in (0, 1, JOURNAL_SLOT_SIZE - 1, JOURNAL_SLOT_SIZE + 1):
        with pytest.raises(ValueError, match="whole slots"):
            Journal(bytearray(size))
    assert Journal(bytearray(JOURNAL_SLOT_SIZE)).free_slots == 1
    assert PER_TOKEN == 10**6
