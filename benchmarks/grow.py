"""Fills a store, while no relay has it, with keys and call records of a past month, as if the relay had run that long.

    python -m benchmarks.grow data/relay.db 1000000 10000000

Straight SQL, a second per million rows: through the relay's own store it would take a quarter of an hour. Ten keys to
an account, each account with a purchase and its lot; the calls of a key fall on one day; ids are ordered by time.
Entries, lots, rollups and calls add up. (The calls name no rate card: `ledger verify` does not check their
cost.)
"""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

DAYS = 29  # within the usual retention of 30 days
MS_PER_DAY = 86_400_000
COUNTER_BITS = 20  # of a call id, below the time
KEYS_PER_ACCOUNT = 10
COST_NANO = 507_500
GRANT_NANO = 10**12
INPUT_TOKENS, OUTPUT_TOKENS = 55, 37
FIRST_ID = 1_000_000_000  # of accounts, keys, entries, lots: out of the way of those made by command

NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :{0})"

# Keys in the order of accounts; the first calls belong to the first keys. {0}: names of further bindings.
STATEMENTS = (
    f"""{NUMBERS.format("accounts")} INSERT INTO accounts
    SELECT :first + i, printf('grown-%d@example.com', i), 0, 'bench', 'active', :limits, :from_ms, 0 FROM n""",
    f"""{NUMBERS.format("accounts")} INSERT INTO entries
    SELECT :first + i, :first + i, 'purchased', :grant, 0, 'grown', NULL, :from_ms FROM n""",
    f"""{NUMBERS.format("accounts")} INSERT INTO lots
    SELECT :first + i, :first + i, 'purchased', :grant, 1, 0, :from_ms FROM n""",
    f"""{NUMBERS.format("accounts")} INSERT INTO entry_lots
    SELECT :first + i, :first + i, :grant FROM n""",
    f"""{NUMBERS.format("keys")} INSERT INTO keys
    SELECT :first + i, :first + i / :keys_per_account, printf('grown %d', i), '', 'active', NULL, NULL, NULL, :limits,
    0, NULL, :from_ms, 0, 0 FROM n""",
    # public ids in no order, as random ones are: the multiplier is odd, so they are distinct within 48 bits
    f"""{NUMBERS.format("keys")} INSERT INTO credentials
    SELECT printf('%012x', (i * 2685821657731) & 281474976710655), :first + i, randomblob(32), 'wxyz', 1, :from_ms, 0, 0
    FROM n""",
    """INSERT INTO shapes VALUES (:first, '/v1/chat/completions', 'gpt-4o', 'gpt-4o', 'simulated', 1, 0, 200, NULL,
    'upstream', NULL)""",
    f"""{NUMBERS.format("calls")} INSERT INTO calls
    SELECT ((:from_ms + i * :span_ms / :calls) << {COUNTER_BITS}) | (i & {(1 << COUNTER_BITS) - 1}),
    :first + i * :keys / :calls / :keys_per_account, 0, :first + i * :keys / :calls, :first, :input, :output,
    0, 0, 0, 0, 0, :cost, 812345, 812001, '203.0.113.7', 'OpenAI/Python 3.52.0' FROM n""",
    f"""INSERT INTO rollups
    SELECT account_id, key_id, (id >> {COUNTER_BITS}) / {MS_PER_DAY}, 'gpt-4o', count(*), 0, sum(input_tokens),
    sum(output_tokens), 0, 0, 0, 0, 0, sum(cost_nano) FROM calls WHERE shape_id = :first GROUP BY 1, 2, 3""",
    """INSERT INTO spend
    SELECT account_id, day, sum(cost_nano) FROM rollups WHERE account_id >= :first GROUP BY 1, 2""",
    """INSERT INTO lot_use
    SELECT account_id, sum(cost_nano), :grant - sum(cost_nano) FROM rollups
    WHERE account_id >= :first GROUP BY 1""",
    """INSERT INTO lot_use
    SELECT id, 0, :grant FROM lots WHERE id >= :first AND id NOT IN (SELECT lot_id FROM lot_use)""",
)


def grow(database: Path, keys: int, calls: int) -> None:
    """Adds so many keys and call records. sqlite3.Error if the schema is another one than this was written for."""
    span_ms = DAYS * MS_PER_DAY
    parameters: dict[str, int | str] = {
        "accounts": -(-keys // KEYS_PER_ACCOUNT),
        "keys": keys,
        "calls": calls,
        "keys_per_account": KEYS_PER_ACCOUNT,
        "first": FIRST_ID,
        "from_ms": time.time_ns() // 1_000_000 - span_ms - 3_600_000,
        "span_ms": span_ms,
        "grant": GRANT_NANO,
        "cost": COST_NANO,
        "input": INPUT_TOKENS,
        "output": OUTPUT_TOKENS,
    }
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -400000")
        limits = connection.execute("SELECT limits FROM accounts LIMIT 1").fetchone()
        parameters["limits"] = limits[0] if limits else "{}"
        for statement in STATEMENTS:
            used = {name: value for name, value in parameters.items() if f":{name}" in statement}
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(statement, used)
            connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


if __name__ == "__main__":
    grow(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
