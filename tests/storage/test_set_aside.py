"""Whatever a record or a slot of the journal says: the writer goes on, the store opens, and the books agree."""

import json
import logging
import random
from pathlib import Path

import pytest

from relay import _fastpath
from relay._fastpath import ERROR_CODES, JOURNAL_SLOT_SIZE, JOURNAL_TEXT_AT
from relay.control import published
from relay.policy import pricing
from relay.records import C_COST_NANO, C_MORE, MS_PER_DAY
from relay.storage import Conflict, Store, journal
from relay.storage.batch import COST_MAX_NANO
from relay.storage.rows import JobRow
from relay.storage.verify import CostFunction
from tests.support.slots import ENDED, OPEN, Prices, Usage, write_slot
from tests.support.stored import CREDIT, NOON_MS, assert_books_agree, call_record, customer

CARD = json.dumps(
    {
        "discount": "1",
        "rates": {
            "gpt-4o": {
                "input": "1",
                "output": "2",
                "cache_read": "0.5",
                "cache_write": "1.5",
                "cache_write_1h": "1.5",
                "image": "0",
                "video_second": "0",
                "web_search": "0",
            }
        },
    }
)
MILLION = 10**9  # nano-credits per million tokens for each credit of a price
PRICES = Prices(
    input=MILLION, output=2 * MILLION, cache_read=MILLION // 2, cache_write=MILLION * 3 // 2,
    cache_write_1h=MILLION * 3 // 2, audio_input=MILLION, audio_output=2 * MILLION, image_input=MILLION,
    image_output=2 * MILLION, prompt=MILLION * 3 // 2, reply=2 * MILLION, ppb=10**9,
)  # fmt: skip
FIRST = call_record(0)[0]
OUTPUT_NANO = 2000  # of a token


async def opened(data_dir: Path, cost_of: CostFunction | None = published.cost_of) -> Store:
    return await Store.open(data_dir, now_ms=lambda: NOON_MS, cost_of=cost_of)


async def store_with_card(data_dir: Path, *credits_nano: int) -> Store:
    """A store with one account, which has those credits, a second one without, and a rate card."""
    store = await opened(data_dir)
    await customer(store)
    await customer(store, "b")
    await store.put_rate_card("card", CARD)
    for amount in credits_nano:
        await store.add_credit(1, amount)
    return store


def write_journal(data_dir: Path, store_id: bytes, slots: bytes) -> None:
    made = journal.JournalFile.create(data_dir, store_id, len(slots) // JOURNAL_SLOT_SIZE)
    made.close()
    with (data_dir / journal.NAME).open("r+b") as file:
        file.seek(_fastpath.JOURNAL_HEADER_SIZE)
        file.write(slots)


def slot(**fields) -> bytearray:
    data = bytearray(JOURNAL_SLOT_SIZE)
    write_slot(data, 0, **{"id": FIRST, "prices": PRICES} | fields)
    return data


# --- C1: one charge above the most


async def test_finding_money_C1_a_slot_above_the_most_is_charged_the_most(tmp_path: Path):
    """As an earlier version left it: 16.5 million credits, which the balance covers."""
    tokens = 2**40
    cost = tokens * 3000 // 2
    ended = {"state": ENDED, "cost_nano": 2 * cost * 10, "usage": Usage(output_tokens=tokens * 10), "source": 1}
    store = await store_with_card(tmp_path, 2 * 10**16)
    store_id = store._store_id
    await store.close()
    too_many = slot(**ended)  # ten times what usage may be: damage
    dear = slot(state=ENDED, cost_nano=2 * 10**16 - 5, source=1, id=FIRST + 1)
    small = slot(state=ENDED, cost_nano=50 * OUTPUT_NANO, usage=Usage(output_tokens=50), source=1, id=FIRST + 2)
    write_journal(tmp_path, store_id, bytes(too_many + dear + small))
    store = await opened(tmp_path)
    assert [(row.id, row.cost_nano) for row in await store.calls()] == [(FIRST + 2, 50 * OUTPUT_NANO)]
    assert {row.call_id: row.reason.split(":")[0] for row in await store.set_aside()} == {
        FIRST: f"output_tokens {tokens * 10}",
        FIRST + 1: f"cost {2 * 10**16 - 5}",
    }
    assert await store.verify(published.cost_of) == []
    await store.close()
    assert_books_agree(tmp_path)


async def test_finding_money_C1_a_charge_that_an_earlier_version_made(tmp_path: Path):
    """The card says the same: it is charged up to the most that a call can cost, and the rest is nobody's."""
    dear = json.loads(CARD)
    dear["rates"]["gpt-4o"]["output"] = "9000000"
    store = await store_with_card(tmp_path, 2 * 10**16)
    await store.put_rate_card("dear", json.dumps(dear))
    store_id = store._store_id
    await store.close()
    usage = Usage(output_tokens=2_000_000)
    left = slot(state=ENDED, cost_nano=18 * 10**15, usage=usage, source=1, texts={"rate_card": "dear"})
    write_journal(tmp_path, store_id, bytes(left))
    for _ in range(2):
        store = await opened(tmp_path)
        (row,) = await store.calls()
        assert row.cost_nano == COST_MAX_NANO
        assert await store.balance(1) == 2 * 10**16 - COST_MAX_NANO
        assert await store.set_aside() == []
        assert await store.verify(published.cost_of) == []
        await store.close()


@pytest.mark.parametrize("write_off", [0, 5 * 10**15, 2 * 10**16])
@pytest.mark.parametrize("cost", [COST_MAX_NANO, COST_MAX_NANO + 1, 165 * 10**14, 2**61, 2**63])
async def test_finding_money_C1_no_cost_stops_the_writer(tmp_path: Path, cost: int, write_off: int):
    store = await store_with_card(tmp_path, 10**18)
    store.append_calls([call_record(0), call_record(1, cost_nano=cost, write_off_nano=write_off), call_record(2)])
    await store.flush()
    assert store.writable
    assert [row.cost_nano for row in await store.calls()] == [1000, COST_MAX_NANO, 1000]
    assert await store.balance(1) == 10**18 - 2000 - min(max(cost - write_off, 0), COST_MAX_NANO)
    assert await store.verify() == []
    await store.close()
    assert_books_agree(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"cost_nano": "5"},
        {"cost_nano": None},
        {"cost_nano": -1},
        {"cost_nano": 1.5},
        {"account_id": "one"},
        {"id": -5},
        {"id": 2**70},
        {"id": None},
    ],
    ids=str,
)
async def test_finding_money_C1_a_record_that_is_none_is_set_aside(tmp_path: Path, fields, caplog):
    """The others of its group are recorded, the store works on, and what was set aside is kept."""
    store = await store_with_card(tmp_path, 10**9)
    bad = list(call_record(1))
    places = {"id": 0, "account_id": 1, "cost_nano": C_COST_NANO}
    for name, value in fields.items():
        bad[places[name]] = value
    store.append_calls([call_record(0), tuple(bad), call_record(2)])
    await store.flush()
    store.append_calls([call_record(3)])
    await store.flush()
    assert store.writable
    assert sorted(row.id - FIRST for row in await store.calls()) == [0, 2, 3]
    (kept,) = await store.set_aside()
    assert kept.kind == "record"
    assert "was set aside and not charged" in caplog.text
    assert [event.code for event in await store.events(kind="store")] == ["record_set_aside"]
    content = await store._read(lambda db: db.execute("SELECT content FROM set_aside").fetchone()[0])
    assert b"203.0.113.9" not in content
    assert b"OpenAI" not in content
    assert await store.verify() == []
    await store.close()


async def test_finding_money_C1_sums_beyond_what_a_number_holds(tmp_path: Path):
    """A thousand calls of the most that a call can cost, all written off: their sum is above 2^63."""
    store = await store_with_card(tmp_path, 10**9)
    dear = {"cost_nano": COST_MAX_NANO, "write_off_nano": COST_MAX_NANO}
    for start in range(0, 1000, 250):
        store.append_calls([call_record(n, **dear) for n in range(start, start + 250)])
        await store.flush()
    assert store.writable
    recorded, aside = len(await store.calls(limit=1000)), len(await store.set_aside())
    assert (recorded, aside) == (922, 78)
    store.append_calls([call_record(5000, time_ms=NOON_MS + MS_PER_DAY, account_id=2, key_id=2, cost_nano=0)])
    await store.flush()
    assert await store.balance(1) == 10**9
    await store.close()


async def test_finding_money_C1_a_job_ends_whatever_it_cost(tmp_path: Path):
    """`commit_ending`: the job ends, with the most that a call can cost, or with its record set aside."""
    store = await store_with_card(tmp_path, 5 * 10**16)
    for number, cost in enumerate([3 * 10**16, -1, 7]):
        row = JobRow(
            id=FIRST + number, kind="batch", object_id=f"batch_{number}", account_id=1, organisation_id=0, key_id=1,
            channel="main", path="/v1/batches", model="gpt-4o", upstream_model="gpt-4o", rate_card="card",
            hold_nano=5, max_cost_nano=-1, units=0, created_ms=NOON_MS, expires_ms=NOON_MS + 1,
        )  # fmt: skip
        await store.objects.begin_job(row, [], None)
        assert await store.objects.end_job([call_record(number, cost_nano=cost)])
    assert await store.objects.open_jobs() == []
    assert [row.cost_nano for row in await store.calls()] == [7, COST_MAX_NANO]
    assert [row.call_id for row in await store.set_aside()] == [FIRST + 1]
    assert await store.verify() == []
    await store.close()


# --- damaged slots


def slots_of(random_: random.Random) -> list[bytearray]:
    """Six calls as they are found: open, ended, written off, nothing delivered, with details, with a limit."""
    hour = Usage(input_tokens=100, output_tokens=9, cache_write_1h_tokens=40)
    return [
        slot(id=FIRST),
        slot(id=FIRST + 1, state=ENDED, cost_nano=50 * OUTPUT_NANO, usage=Usage(output_tokens=50), source=1),
        slot(
            id=FIRST + 2, state=ENDED, cost_nano=500 * OUTPUT_NANO, written_off_nano=OUTPUT_NANO,
            usage=Usage(output_tokens=500), source=2, error_code=ERROR_CODES.index("balance_exhausted"),
        ),
        slot(id=FIRST + 3, delivered=0, status=0, counted_tokens=0),
        slot(id=FIRST + 4, usage_seen=2, usage=hour, counted_tokens=random_.randrange(9)),
        slot(id=FIRST + 5, max_cost_nano=OUTPUT_NANO, texts={"channel": "main", "user_agent": "é"}),
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
async def test_finding_money_C1_flipped_bytes_in_slots(tmp_path: Path, seed: int, caplog):
    """Recovery always starts; what cannot be true is set aside and named; all else is charged, and the books agree."""
    random_ = random.Random(seed)
    store = await store_with_card(tmp_path, 10**9)
    store_id = store._store_id
    await store.close()
    caplog.set_level(logging.ERROR)
    for _ in range(12):
        slots = slots_of(random_)
        for damaged in random_.sample(slots, random_.randint(1, 3)):
            for _ in range(random_.choice([1, 1, 1, 2, 8, 64])):
                at = random_.randrange(JOURNAL_TEXT_AT + 40)
                damaged[at] = random_.choice([damaged[at] ^ 1 << random_.randrange(8), 0, 0xFF, random_.randrange(256)])
        write_journal(tmp_path, store_id, b"".join(slots))
        store = await opened(tmp_path)
        assert await store.verify(published.cost_of) == []
        assert await store.balance(1) >= 0
        await store.close()
        assert_books_agree(tmp_path)


async def test_a_slot_that_no_call_wrote_is_kept_once_and_its_texts_for_as_long_as_calls_are(tmp_path: Path):
    store = await store_with_card(tmp_path, 10**9)
    store_id = store._store_id
    await store.close()
    left = slot(account_id=2, texts={"source_ip": "203.0.113.77"})  # the key is account 1's
    for _ in range(2):
        write_journal(tmp_path, store_id, bytes(left))
        store = await opened(tmp_path)
        (kept,) = await store.set_aside()
        assert (kept.kind, kept.call_id, kept.account_id) == ("slot", FIRST, 2)
        assert kept.reason == "account 2: expected that of key 1"
        assert await store.calls() == []
        await store.close()
    store = await opened(tmp_path)

    def content(db) -> bytes:
        return db.execute("SELECT content FROM set_aside").fetchone()[0]

    assert await store._read(content) == bytes(left)
    await store.delete_calls_before(NOON_MS + 1)
    assert await store._read(content) == bytes(left[:JOURNAL_TEXT_AT])
    await store.close()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"state": 3}, "state 3: expected 1 or 2"),
        ({"id": 0}, "call id 0: expected 1 to"),
        ({"id": -1}, "call id -1: expected 1 to"),
        ({"id": FIRST + (2 * MS_PER_DAY << 20)}, "which is a day from now"),
        ({"key_id": 9}, "account 1: expected that of key 9"),
        ({"organisation_id": 4}, "organisation 4: there is none"),
        ({"usage": Usage(images=-1), "state": ENDED}, "images -1: expected 0 to"),
        ({"latency_us": -4}, "latency_us -4: expected 0 to"),
        ({"state": ENDED, "cost_nano": 5, "written_off_nano": 6}, "cost 5, written off 6: expected"),
        ({"state": ENDED, "cost_nano": 5}, "cost 5: its usage costs 0 nano-credits by its rate card"),
        ({"texts": {"model": "gpt-4p"}}, "no stored rate card has its model"),
        ({"texts": {"rate_card": "cord"}}, "no stored rate card has its model"),
        ({"usage_seen": 2, "usage": Usage(service=77)}, "no stored rate card has its model"),
    ],
)
async def test_why_a_slot_is_set_aside(tmp_path: Path, fields, reason: str):
    store = await store_with_card(tmp_path, 10**9)
    store_id = store._store_id
    await store.close()
    write_journal(tmp_path, store_id, bytes(slot(**fields) + slot(id=FIRST + 9)))
    store = await opened(tmp_path)
    assert reason in (await store.set_aside())[0].reason
    assert [row.id for row in await store.calls()] == [FIRST + 9]
    assert store.recovered == 1
    await store.close()


async def test_an_open_call_costs_what_its_card_says(tmp_path: Path):
    """A price in its slot is damaged, or its sum is from a moment before: the card, the counts and the sum agree."""
    store = await store_with_card(tmp_path, 10**9)
    store_id = store._store_id
    await store.close()
    wrong = Prices.from_buffer_copy(PRICES)
    wrong.output *= 1000
    write_journal(tmp_path, store_id, bytes(slot(prices=wrong) + slot(id=FIRST + 1, tiered_cost_nano=1, state=OPEN)))
    store = await opened(tmp_path)
    assert [row.cost_nano for row in await store.calls()] == [10 * 1000 + 5 * OUTPUT_NANO] * 2
    assert await store.set_aside() == []
    await store.close()


# --- H2: verify knows the clamp


@pytest.mark.parametrize("more", [0, 1, 105_000])
async def test_finding_money_H2_verify_knows_the_most_that_a_call_can_cost(tmp_path: Path, more: int):
    """A card and a count that come to ten million credits and something."""
    dear = json.loads(CARD)
    dear["rates"]["gpt-4o"] |= {"output": "1000000", "input": "0.000001"}
    store = await store_with_card(tmp_path, 3 * 10**16)
    await store.put_rate_card("dear", json.dumps(dear))
    rate = pricing.rate_on_card(json.dumps(dear), "dear", "gpt-4o")
    assert rate.cost(input_tokens=more * 1000, output_tokens=10**7) == COST_MAX_NANO
    assert rate.bound(more * 1000, 10**7) == COST_MAX_NANO
    usage = {"input_tokens": more * 1000, "output_tokens": 10**7, "rate_card": "dear"}
    store.append_calls(
        [
            call_record(0, cost_nano=COST_MAX_NANO, **usage),
            call_record(1, cost_nano=COST_MAX_NANO, write_off_nano=COST_MAX_NANO - 5, **usage),
            call_record(2, cost_nano=COST_MAX_NANO + more, write_off_nano=more, **usage),  # of an earlier version
        ]
    )
    await store.flush()
    assert await store.verify(published.cost_of) == []
    assert await store.balance(1) == 3 * 10**16 - 2 * COST_MAX_NANO - 5
    await store.close()


# --- M5: no balance above the most


async def test_finding_money_M5_an_addition_that_goes_too_far_is_refused_before_it_is_committed(tmp_path: Path):
    store = await store_with_card(tmp_path, 10**18, 10**18 - CREDIT)
    with pytest.raises(
        Conflict, match="acct_1 has 1999999999 credits and would have 2000000001: expected at most 2000"
    ):
        await store.add_credit(1, 2 * CREDIT)
    assert await store.balance(1) == 2 * 10**18 - CREDIT
    assert (await store.add_credit(1, CREDIT, idempotency_key="k")).balance_nano == 2 * 10**18
    assert not (await store.add_credit(1, CREDIT, idempotency_key="k")).created  # a repeat adds nothing
    for _ in range(2):
        await store.take_credit(1, 10**18, kind="adjustment", reason="")
        await store.add_credit(1, 10**18)
    await store.take_credit(1, 10**18, kind="adjustment", reason="")
    with pytest.raises(Conflict, match="was given 4000000000 credits in all"):
        await store.add_credit(1, 1)
    assert await store.verify() == []
    await store.close()


async def test_a_record_with_details_keeps_them(tmp_path: Path):
    """Cache writes of both kinds at the most: their sum is a number of the record."""
    store = await store_with_card(tmp_path, 10**18)
    record = call_record(0, cache_write_tokens=2**41, cost_nano=0, rate_card=None)
    store.append_calls([(*record, (2**40, 0, 0, 0, 0, 0, 0, 0, None, 0))])
    await store.flush()
    (row,) = await store.calls()
    assert row.cache_write_tokens == 2**41
    assert len(record) == C_MORE
    await store.close()
