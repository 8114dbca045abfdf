"""Call records, an opened store, and the ledger's invariants in raw SQL, for tests of the store and of whole relays."""

import sqlite3
from pathlib import Path
from typing import Any

from relay.records import CALL_RECORD_FIELDS, MS_PER_DAY, call_day, first_call_id
from relay.storage import Store
from relay.storage.rows import AccountRow, KeyRow

DAY = 20_700
NOON_MS = DAY * MS_PER_DAY + MS_PER_DAY // 2
CREDIT = 10**9

DEFAULTS: dict[str, Any] = {
    "account_id": 1,
    "organisation_id": None,
    "key_id": 1,
    "path": "/v1/chat/completions",
    "model": "gpt-4o",
    "upstream_model": "gpt-4o-2024-08-06",
    "channel": "main",
    "attempts": 1,
    "stream": 0,
    "status": 200,
    "error_code": None,
    "input_tokens": 100,
    "output_tokens": 20,
    "cache_read_tokens": 0,
    "cache_write_tokens": 0,
    "images": 0,
    "video_seconds": 0,
    "web_searches": 0,
    "usage_source": "upstream",
    "cost_nano": 1000,
    "rate_card": "2026-11-21-abcd",
    "latency_us": 900_000,
    "first_byte_us": 300_000,
    "source_ip": "203.0.113.9",
    "user_agent": "OpenAI/Python 2.50",
    "write_off_nano": 0,
}


def call_record(number: int, *, time_ms: int = NOON_MS, **fields: Any) -> tuple[Any, ...]:
    """The record of the call with this number; calls with the same time and number are the same call."""
    call_id = first_call_id(time_ms) + number
    values = {**DEFAULTS, **fields, "id": call_id, "day": call_day(call_id)}
    return tuple(values[name] for name in CALL_RECORD_FIELDS)


async def customer(
    store: Store, name: str = "a", *, credits: int = 0, organisation_id: int = 0
) -> tuple[AccountRow, KeyRow]:
    """An account with one key (public id: the name) and that many credits."""
    account = await store.create_account(f"{name}@example.org", plan="free", organisation_id=organisation_id)
    key = await store.create_key(account.id, public_id=name, digest=b"d" * 32, last4="wxyz", pepper_version=1)
    if credits:
        await store.add_credit(account.id, credits * CREDIT)
    return account, key


def assert_books_agree(data_dir: Path) -> dict[int, int]:
    """Invariants by plain SQL, sharing no code with the product; returns the balances by account.

    The store must be closed, or have nothing queued.
    """
    connection = sqlite3.connect(f"file:{data_dir / 'relay.db'}?mode=ro", uri=True)
    try:

        def sums(sql: str) -> dict[Any, int]:
            return dict(connection.execute(sql).fetchall())

        entries = sums("SELECT account_id, sum(amount_nano) FROM entries GROUP BY 1")
        costs = sums("SELECT account_id, sum(cost_nano) FROM rollups GROUP BY 1")
        left = sums("SELECT account_id, sum(remaining_nano) FROM lots JOIN lot_use ON lot_id = id GROUP BY 1")
        kept = sums("SELECT account_id, sum(cost_nano) FROM call_records WHERE account_id IS NOT NULL GROUP BY 1")
        folded = sums("SELECT account_id, sum(cost_nano) FROM folded GROUP BY 1")
        spend = sums("SELECT account_id, sum(cost_nano) FROM spend GROUP BY 1")
        balances = {}
        for account_id in entries.keys() | costs.keys() | left.keys() | kept.keys():
            balances[account_id] = entries.get(account_id, 0) - costs.get(account_id, 0)
            assert balances[account_id] == left.get(account_id, 0), f"balance of {account_id}"
            assert balances[account_id] >= 0, f"balance of {account_id} below zero"
            assert costs.get(account_id, 0) == kept.get(account_id, 0) + folded.get(account_id, 0)
            assert costs.get(account_id, 0) == spend.get(account_id, 0)
        assert connection.execute("SELECT count(*) FROM lot_use WHERE remaining_nano < 0").fetchone() == (0,)
        return balances
    finally:
        connection.close()
