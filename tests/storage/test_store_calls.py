"""Call records: sums, lots, write-offs, idempotence, retention."""

import asyncio

import pytest

from relay.records import MS_PER_DAY
from relay.storage import Store, groupcommit
from tests.support.stored import CREDIT, DAY, NOON_MS, assert_books_agree, call_record, customer


async def test_a_group_writes_calls_sums_and_lots(store, tmp_path):
    account, key = await customer(store, credits=1)
    store.append_calls(
        [call_record(n, cost_nano=10 + n, error_code="client_gone" if n == 2 else None) for n in range(4)]
    )
    store.append_calls([call_record(9, model=None, key_id=None, cost_nano=0, status=401, images=2)])
    assert store.pending == 5
    await store.flush()
    assert store.pending == 0
    assert [call.cost_nano for call in await store.calls()] == [0, 13, 12, 11, 10]
    other, gpt = await store.rollups(account.id)
    assert (other.key_id, other.model, other.calls, other.images) == (0, "", 1, 2)
    assert (gpt.day, gpt.key_id, gpt.model, gpt.calls, gpt.failed) == (DAY, key.id, "gpt-4o", 4, 1)
    assert (gpt.input_tokens, gpt.output_tokens, gpt.cost_nano) == (400, 80, 46)
    (lot,) = await store.lots(account.id)
    assert (lot.used_nano, lot.remaining_nano) == (46, CREDIT - 46)
    assert (await store.key(key.id)).last_used_day == DAY
    assert await store.verify() == []
    assert assert_books_agree(tmp_path / "data") == {account.id: CREDIT - 46}


async def test_every_column_comes_back_as_it_was_given(store):
    fields = {
        "account_id": 7, "organisation_id": 8, "key_id": 9, "path": "/v1/messages", "model": "m", "upstream_model": "u",
        "channel": "c", "attempts": 3, "stream": 1, "status": 499, "error_code": "client_gone", "input_tokens": 1,
        "output_tokens": 2, "cache_read_tokens": 3, "cache_write_tokens": 4, "images": 5, "video_seconds": 6,
        "web_searches": 7, "usage_source": "estimated", "cost_nano": 0, "rate_card": "r", "latency_us": 11,
        "first_byte_us": None, "source_ip": "2001:db8::1", "user_agent": None,
    }  # fmt: skip
    record = call_record(1, **fields)
    store.append_calls([record])
    await store.flush()
    call = await store.call(record[0])
    assert {name: getattr(call, name) for name in fields} == fields


async def test_calls_are_drawn_from_the_lot_that_expires_first(store):
    account, _ = await customer(store)
    day = MS_PER_DAY
    add = store.add_credit
    await add(account.id, 100, kind="purchased")
    await add(account.id, 100, kind="adjustment", expires_ms=NOON_MS + 30 * day)
    await add(account.id, 100, kind="subscription", expires_ms=NOON_MS + 30 * day)
    await add(account.id, 100, kind="trial", expires_ms=NOON_MS + 3 * day)
    await add(account.id, 100, kind="subscription")
    assert [(lot.kind, lot.expires_ms > 0) for lot in await store.lots(account.id)] == [
        ("trial", True), ("subscription", True), ("adjustment", True), ("subscription", False), ("purchased", False),
    ]  # fmt: skip
    store.append_calls([call_record(1, cost_nano=150)])
    await store.flush()
    assert [lot.remaining_nano for lot in await store.lots(account.id)] == [50, 100, 100, 100]
    store.append_calls([call_record(2, cost_nano=20), call_record(3, cost_nano=300)])
    await store.flush()
    assert [(lot.kind, lot.remaining_nano) for lot in await store.lots(account.id)] == [("purchased", 30)]
    assert await store.balance(account.id) == 30
    assert await store.verify() == []


async def test_a_lot_added_later_is_seen_by_the_writer(store):
    account, _ = await customer(store, credits=1)
    store.append_calls([call_record(1)])
    await store.flush()
    await store.add_credit(account.id, 5, kind="trial", expires_ms=NOON_MS + 1)
    store.append_calls([call_record(2, cost_nano=6)])
    await store.flush()
    assert await store.balance(account.id) == CREDIT - 1001
    assert await store.verify() == []


async def test_a_write_off_is_an_entry_and_the_balance_stays_at_zero(store):
    account, _ = await customer(store)
    await store.add_credit(account.id, 700)
    record = call_record(1, cost_nano=1000, write_off_nano=300)
    store.append_calls([record])
    await store.flush()
    entry = (await store.entries(account.id))[-1]
    assert (entry.kind, entry.amount_nano, entry.call_id) == ("write_off", 300, record[0])
    assert await store.balance(account.id) == 0
    assert await store.verify() == []


async def test_cost_that_no_lot_covers_is_written_off(store):
    account, _ = await customer(store)
    await store.add_credit(account.id, 700)
    store.append_calls([call_record(1, cost_nano=500), call_record(2, cost_nano=500)])
    await store.flush()
    assert [entry.amount_nano for entry in await store.entries(account.id)] == [700, 300]
    assert await store.balance(account.id) == 0
    assert store.shortfall_nano == 300
    assert await store.verify() == []


async def test_a_record_that_is_there_already_changes_nothing(store, tmp_path):
    account, _ = await customer(store, credits=1)
    first = [call_record(n) for n in range(3)]
    store.append_calls(list(first))
    await store.flush()
    # In a queue of new ones, twice within one group, and given for recovery.
    store.append_calls([call_record(1), call_record(5), call_record(5)])
    await store.flush()
    assert await store.settle_recovered([call_record(2), call_record(6), call_record(6)]) == 1
    assert await store.settle_recovered([call_record(2), call_record(6)]) == 0
    assert len(await store.calls()) == 5
    assert await store.balance(account.id) == CREDIT - 5000
    assert await store.verify() == []
    assert_books_agree(tmp_path / "data")


async def test_recovery_takes_more_records_than_a_group(tmp_path):
    store = await Store.open(tmp_path, commit_records_max=10)
    account, _ = await customer(store, credits=1)
    told = []
    store.on_committed(lambda records: told.extend(record[0] for record in records))
    records = [call_record(n) for n in range(35)]
    store.append_calls(records[:12])
    assert await store.settle_recovered(records) == 23
    assert set(told) == {record[0] for record in records}
    assert await store.balance(account.id) == CREDIT - 35_000
    await store.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"user_agent": "x" * 257},
        {"user_agent": "\ud800"},
        {"user_agent": b"bytes"},
        {"source_ip": "9" * 46},
        {"model": "m" * 300},
        {"path": None},
        {"usage_source": "upstream reported it"},
        {"input_tokens": None},
        {"input_tokens": 2**63},
        {"output_tokens": -1, "source_ip": "9" * 46},
        {"attempts": "1x"},
        {"write_off_nano": None, "path": None},
        {"cost_nano": 2**62, "write_off_nano": 2**62 - 1000},
    ],
)
async def test_a_record_that_the_schema_refuses_loses_the_value_and_not_the_money(store, fields):
    account, _ = await customer(store, credits=1)
    store.append_calls([call_record(1), call_record(2, **fields), call_record(3)])
    await store.flush()
    assert len(await store.calls()) == 3
    assert await store.balance(account.id) == CREDIT - 3000
    assert await store.verify() == []


async def test_listing_filters_and_pages(store):
    await customer(store, "a")
    await customer(store, "b")
    store.append_calls(
        [
            call_record(
                n,
                time_ms=NOON_MS + n * MS_PER_DAY // 4,
                account_id=1 + n % 2,
                key_id=1 + n % 2,
                status=200 if n % 3 else 429,
                error_code=None if n % 3 else "rate_limit_requests",
            )
            for n in range(24)
        ]
    )
    await store.flush()

    async def numbers(**filters):
        return [call.id & 0xFFFFF for call in await store.calls(**filters)]

    assert await numbers() == list(range(23, -1, -1))
    assert await numbers(account_id=1) == list(range(22, -1, -2))
    assert await numbers(key_id=2, limit=3) == [23, 21, 19]
    last = (await store.calls(key_id=2, limit=3))[-1].id
    assert await numbers(key_id=2, limit=3, before_id=last) == [17, 15, 13]
    assert await numbers(status=429) == [21, 18, 15, 12, 9, 6, 3, 0]
    assert await numbers(failed=False, account_id=1, limit=2) == [22, 20]
    assert await numbers(error_code="rate_limit_requests", account_id=2) == [21, 15, 9, 3]
    assert await numbers(since_ms=NOON_MS + MS_PER_DAY, until_ms=NOON_MS + 2 * MS_PER_DAY) == [7, 6, 5, 4]
    assert await numbers(since_ms=NOON_MS + MS_PER_DAY, until_ms=NOON_MS + 2 * MS_PER_DAY, account_id=1) == [6, 4]
    assert await numbers(key_id=99) == []


async def test_retention_deletes_calls_in_steps_and_sums_stay(store, tmp_path):
    account, _ = await customer(store, credits=1)
    store.append_calls(
        [call_record(n, time_ms=NOON_MS + n * 3_600_000, user_agent=f"agent-to-forget-{n}") for n in range(40)]
    )
    store.append_events([(NOON_MS + n * 3_600_000, "limit", None, 1, 1, "key", None, None, 1, None) for n in range(40)])
    await store.flush()
    sums = await store.rollups(account.id)
    deleted = await store.delete_calls_before(NOON_MS + 30 * 3_600_000, step=7)
    assert deleted == 30
    assert [call.id & 0xFFFFF for call in await store.calls()] == list(range(39, 29, -1))
    assert len(await store.events()) == 10
    assert await store.rollups(account.id) == sums
    assert await store.verify() == []
    # Another call of a day that was folded, and the rest.
    store.append_calls([call_record(50)])
    await store.flush()
    assert await store.delete_calls_before(NOON_MS * 2) == 11
    assert await store.calls() == []
    assert await store.balance(account.id) == CREDIT - 41_000
    assert await store.verify() == []
    # Gone from the files, too.
    for name in ("relay.db", "relay.db-wal"):
        assert b"agent-to-forget" not in (tmp_path / "data" / name).read_bytes()


async def test_events_are_kept_and_bounded(store):
    store.append_events(
        [
            (NOON_MS, "limit", "rate_limit_requests", 1, 2, "key", None, "203.0.113.9", 5, None),
            (NOON_MS + 1, "account.frozen", None, 1, None, None, None, None, 1, "asked for by the owner"),
            (NOON_MS + 2, "k" * 41, 5, None, None, None, None, None, 1, "x" * 501),
        ]
    )
    await store.flush()
    odd, frozen, limit = await store.events()
    assert (odd.kind, odd.code, odd.detail) == ("unknown", None, None)
    assert (frozen.kind, frozen.detail) == ("account.frozen", "asked for by the owner")
    assert (limit.code, limit.key_id, limit.scope, limit.source_ip, limit.count) == (
        "rate_limit_requests", 2, "key", "203.0.113.9", 5,
    )  # fmt: skip
    assert [event.id for event in await store.events(kind="limit")] == [limit.id]
    assert [event.id for event in await store.events(since_ms=NOON_MS + 1, account_id=1)] == [frozen.id]
    store.append_events([(NOON_MS, "limit", None, 1, 1, None, None, None, 1, None)] * 10_001)
    assert store.pending == 10_000
    assert store.events_dropped == 1
    await store.flush()
    assert store.pending == 0


async def test_groups_form_by_size_and_by_time(tmp_path):
    store = await Store.open(tmp_path, commit_interval_ms=20, commit_records_max=10)
    groups = []
    arrived = asyncio.Event()

    def committed(records):
        groups.append(len(records))
        arrived.set()

    store.on_committed(committed)
    store.append_calls([call_record(n, cost_nano=0) for n in range(25)])
    assert groups == []  # appending does not wait
    while sum(groups) < 25:
        arrived.clear()
        await arrived.wait()
    assert groups == [10, 10, 5]
    await store.close()


async def test_the_writers_lag_is_the_age_of_the_oldest_record(tmp_path):
    store = await Store.open(tmp_path / "slow", commit_interval_ms=3_600_000)
    try:
        assert store.lag_seconds == 0
        for number in range(4):
            store.append_calls([call_record(number, account_id=None, key_id=None, cost_nano=0)])
            await asyncio.sleep(0.06)
        assert store.lag_seconds >= 0.2
        await store.flush()
        assert store.lag_seconds == 0
        store.append_events([])
        assert store.lag_seconds == 0
        store.append_calls([call_record(9, account_id=None, key_id=None, cost_nano=0)])
        assert store.lag_seconds < 0.2
    finally:
        await store.close()


async def pauses_of_a_group(store, monkeypatch, records: int, first: int = 0) -> int:
    slept: list[float] = []
    monkeypatch.setattr(groupcommit.time, "sleep", slept.append)
    store.append_calls([call_record(n) for n in range(first, first + records)])
    committed = asyncio.Event()
    store.on_committed(lambda _: None if store.pending else committed.set())
    await committed.wait()  # not flush(): who waits is not kept waiting
    monkeypatch.undo()
    return len(slept)


async def test_a_long_group_pauses_where_it_may_take_its_time(store, monkeypatch):
    """Behind the fold, and behind each statement of 64 rows."""
    await customer(store)
    store.take_time(True)
    assert await pauses_of_a_group(store, monkeypatch, 500) == 1 + 500 // 64
    assert await pauses_of_a_group(store, monkeypatch, 63, first=500) == 0
    store.take_time(False)
    assert await pauses_of_a_group(store, monkeypatch, 500, first=1000) == 0
    assert await store.verify() == []


async def test_a_backlog_is_committed_without_pauses(store, monkeypatch):
    await customer(store)
    store.take_time(True)
    waiting = groupcommit.PAUSE_GROUPS_MAX * 500
    assert await pauses_of_a_group(store, monkeypatch, waiting) == (groupcommit.PAUSE_GROUPS_MAX - 1) * (1 + 500 // 64)


async def test_nobody_who_waits_is_kept_waiting_by_pauses(store, monkeypatch):
    await customer(store)
    store.take_time(True)
    monkeypatch.setattr(groupcommit.time, "sleep", lambda seconds: pytest.fail("paused"))
    store.append_calls([call_record(n) for n in range(500)])
    await store.flush()
    assert len(await store.calls(limit=1000)) == 500


async def test_a_flush_takes_with_it_what_waits_elsewhere(store):
    await customer(store)
    waiting = [[call_record(1)]]
    store.on_flush(lambda: store.append_calls(waiting.pop()) if waiting else None)
    await store.flush()
    assert len(await store.calls()) == 1
    assert waiting == []
