"""What is kept beside call records: details of costs, and Idempotency-Keys."""

import pytest

from relay.control.published import cost_of
from relay.policy import pricing
from relay.records import MS_PER_DAY, first_call_id
from relay.storage import Conflict
from relay.storage.batch import mended_call
from relay.storage.rows import CallDetails, JobRow, KeyClaim
from tests.support.stored import NOON_MS, call_record, customer

CARD = (
    '{"discount":"1","rates":{"gpt-4o":{"audio_input":"10","cache_read":"1","cache_write":"2","cache_write_1h":"4",'
    '"image":"0","input":"1","output":"2","tiers":[{"above":0,"cache_read":"1","cache_write":"1","cache_write_1h":"1",'
    '"image":"0","input":"3","output":"6","service":"priority","video_second":"0","web_search":"0"}],'
    '"video_second":"0","web_search":"0"}}}'
)


async def test_costs_are_computed_again_from_details(store):
    await customer(store, credits=1)
    card = pricing.card_id(CARD)
    await store.put_rate_card(card, CARD)
    usage = {"input_tokens": 10, "output_tokens": 1, "cache_write_tokens": 5, "rate_card": card}
    hour = (*call_record(1, cost_nano=10_000 + 2000 + 3 * 2000 + 2 * 4000, **usage), (2, 0, 0, 0, 0, 0, 0, 0, None, 0))
    audio = (*call_record(2, cost_nano=4 * 10_000 + 6000 + 2000 + 10_000, **usage), (0, 4, 0, 0, 0, 0, 0, 0, None, 0))
    priority = (*call_record(3, cost_nano=30_000 + 6000 + 5000, **usage), (0, 0, 0, 0, 3, 0, 0, 0, None, 0))
    store.append_calls([hour, audio, priority, call_record(4, cost_nano=22_000, **usage)])
    await store.flush()
    assert await store.verify(cost_of) == []
    wrong = (*call_record(5, cost_nano=22_001, **usage), (1, 0, 0, 0, 0, 0, 0, 0, None, 0))
    store.append_calls([wrong])
    await store.flush()
    [difference] = await store.verify(cost_of)
    assert (difference.expected, difference.found) == (24_000, 22_001)


async def test_details_go_with_their_calls(store):
    await customer(store, credits=1)
    store.append_calls([(*call_record(1), (1, 2, 3, 4, 0, 0, 0, 0, b"k" * 32, 5))])
    await store.flush()
    assert await store.idempotency_key(b"k" * 32, 0) == (5, first_call_id(NOON_MS) + 1)
    await store.delete_calls_before(NOON_MS + MS_PER_DAY)
    store.append_calls([(*call_record(1), (9, 0, 0, 0, 0, 0, 0, 0, None, 0))])  # would meet its old details
    await store.flush()
    assert await store.verify() == []


@pytest.mark.parametrize("mend", [False, True])
async def test_keys_are_found_for_as_long_as_asked_and_then_pruned(store, mend):
    await customer(store, credits=1)
    later = NOON_MS + MS_PER_DAY
    records = [
        (*call_record(1), (0, 0, 0, 0, 0, 0, 0, 0, b"a" * 32, 7)),
        (*call_record(2, time_ms=later), (0, 0, 0, 0, 0, 0, 0, 0, b"b" * 32, 2**63 - 1)),
    ]
    if mend:  # the slow way, of a group with something wrong in it
        records = [mended_call(record) for record in records]
        records.append(call_record(1))
    store.append_calls(records)
    await store.flush()
    first, second = first_call_id(NOON_MS) + 1, first_call_id(later) + 2
    assert await store.idempotency_key(b"a" * 32, first) == (7, first)
    assert await store.idempotency_key(b"a" * 32, first + 1) is None
    assert await store.idempotency_key(b"c" * 32, 0) is None
    # The same key a day later belongs to the later call.
    store.append_calls([(*call_record(3, time_ms=later), (0, 0, 0, 0, 0, 0, 0, 0, b"a" * 32, 8))])
    await store.flush()
    assert await store.idempotency_key(b"a" * 32, 0) == (8, second + 1)
    assert await store.delete_idempotency_keys_before(later) == 0
    assert await store.delete_idempotency_keys_before(later + 1) == 2
    assert await store.idempotency_key(b"b" * 32, 0) is None


def claim(number: int, digest: bytes = b"a" * 32, *, later: int = 0) -> KeyClaim:
    return KeyClaim(digest, 7, first_call_id(NOON_MS + later) + number)


def job(number: int) -> JobRow:
    return JobRow(
        number, "video", None, 1, 0, 1, "c", "/v1/videos", "m", "m", "card", 5, -1, 4, NOON_MS, NOON_MS + MS_PER_DAY
    )


async def test_a_key_is_bound_once_a_day(store):
    first = claim(1)
    await store.objects.bind_key(first)
    await store.objects.bind_key(first)  # again by itself
    assert await store.idempotency_key(first.digest, first.call_id) == (7, first.call_id)
    with pytest.raises(Conflict):
        await store.objects.bind_key(claim(2))
    await store.objects.free_key(claim(2))  # it has nothing to give back
    assert await store.idempotency_key(first.digest, 0) == (7, first.call_id)
    await store.objects.bind_key(claim(2, b"b" * 32))
    await store.objects.free_key(first)
    assert await store.idempotency_key(first.digest, 0) is None
    await store.objects.bind_key(claim(2))
    with pytest.raises(Conflict):
        await store.objects.bind_key(claim(2, later=MS_PER_DAY))
    next_day = claim(3, later=MS_PER_DAY)
    await store.objects.bind_key(next_day)
    assert await store.idempotency_key(first.digest, 0) == (7, next_day.call_id)


async def test_a_job_and_its_key_begin_and_are_dropped_together(store):
    await store.objects.begin_job(job(1), claim=claim(1))
    with pytest.raises(Conflict):
        await store.objects.begin_job(job(2), claim=claim(2))
    assert [row.id for row in await store.objects.open_jobs()] == [1]
    await store.objects.drop_job(1)  # its provider may have done it
    assert await store.objects.open_jobs() == []
    with pytest.raises(Conflict):
        await store.objects.begin_job(job(2), claim=claim(2))
    await store.objects.free_key(claim(1))
    await store.objects.begin_job(job(2), claim=claim(2))
    await store.objects.drop_job(2, claim(2))
    await store.objects.begin_job(job(3), claim=claim(3))
    assert [row.id for row in await store.objects.open_jobs()] == [3]


def test_details_are_named_as_they_are_stored():
    assert CallDetails(1, 2, 3, 4, 3).service == 3
