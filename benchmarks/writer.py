"""CPU that the store's writer spends per call record, and the time of a key's look-up, with tables of a given size.

    python -m benchmarks.writer --accounts 1000 --present 1000000 --keys 1000000

Groups of 500 records of random accounts go through the same code as in a relay (fold, insertion, rollups, lots,
commit, checkpoints), in one thread; the figure is CPU of the process, user and system, without making the records. Few
accounts are the common case (a group's records fold into few sums); 1,000 equally busy ones are near the worst.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from relay.records import MS_PER_DAY, CallRecord, call_day, first_call_id
from relay.storage.batch import BatchWriter
from relay.storage.database import Connection, open_reader, open_writer, transaction
from relay.storage.directory import load_key
from relay.storage.groupcommit import CHECKPOINT_ROWS

GROUP_RECORDS = 500
CALLS_PER_SECOND = 5000
START_MS = 20_700 * MS_PER_DAY
RUNS = 5


def make_records(first: int, count: int, accounts: int, rng: random.Random) -> Iterator[CallRecord]:
    for number in range(first, first + count):
        account_id = rng.randrange(accounts) + 1
        call_id = first_call_id(START_MS + number * 1000 // CALLS_PER_SECOND) | (number & 0xFFFFF)
        yield (
            call_id, account_id, None, account_id, "/v1/chat/completions", "gpt-4o", "gpt-4o-2024-08-06", "openai-main",
            1, number & 1, 200, None, 1234, 345, 100, 0, 0, 0, 0, "upstream", 1_234_567, "2026-11-21-ab12cd34",
            812_345, 412_345, "203.0.113.77", "OpenAI/Python 2.50.1", 0, call_day(call_id),
        )  # fmt: skip


def fill(connection: Connection, accounts: int, keys: int) -> None:
    """Accounts with one key and one lot each; keys beyond them belong to the first account."""

    def job(connection: Connection) -> None:
        connection.executemany(
            "INSERT INTO accounts VALUES (?1, ?1 || '@example.org', 0, 'free', 'active', '{}', 0, 0)",
            ((number,) for number in range(1, accounts + 1)),
        )
        connection.executemany(
            "INSERT INTO lots VALUES (?1, ?1, 'purchased', 1000000000000000, 1, 0, 0)",
            ((number,) for number in range(1, accounts + 1)),
        )
        connection.execute("INSERT INTO lot_use SELECT id, 0, granted_nano FROM lots")
        count = max(keys, accounts)
        connection.executemany(
            "INSERT INTO keys VALUES (?, ?, '', '', 'active', NULL, NULL, NULL, '{}', 0, NULL, 0, 0, 0)",
            ((number, number if number <= accounts else 1) for number in range(1, count + 1)),
        )
        connection.executemany(
            "INSERT INTO credentials VALUES (?, ?, zeroblob(32), 'wxyz', 1, 0, 0, 0)",
            ((public_id(number), number) for number in range(1, count + 1)),
        )

    transaction(connection, job)


def public_id(number: int) -> str:
    return random.Random(number).randbytes(6).hex()


def run(connection: Connection, writer: BatchWriter, first: int, count: int, accounts: int, rng: random.Random) -> int:
    """CPU nanoseconds that `count` records took."""
    spent_ns = 0
    rows = writer.rows_changed
    for start in range(first, first + count, GROUP_RECORDS):
        group = list(make_records(start, GROUP_RECORDS, accounts, rng))
        before_ns = time.process_time_ns()
        writer.commit(group, (), START_MS)
        if writer.rows_changed - rows >= CHECKPOINT_ROWS:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            rows = writer.rows_changed
        spent_ns += time.process_time_ns() - before_ns
    before_ns = time.process_time_ns()
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    return spent_ns + time.process_time_ns() - before_ns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accounts", type=int, default=100, help="accounts at work (default 100)")
    parser.add_argument("--records", type=int, default=50_000, help="records per run (default 50,000)")
    parser.add_argument("--present", type=int, default=0, help="call records present before (default 0)")
    parser.add_argument("--keys", type=int, default=0, help="keys present (default one per account)")
    options = parser.parse_args()
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "relay.db"
        connection = open_writer(path)
        fill(connection, options.accounts, options.keys)
        writer = BatchWriter(connection)
        first = 0
        run(connection, writer, first, max(options.present, GROUP_RECORDS), options.accounts, rng)
        first += max(options.present, GROUP_RECORDS)
        figures = []
        for _ in range(RUNS):
            spent_ns = run(connection, writer, first, options.records, options.accounts, rng)
            first += options.records
            figures.append(spent_ns / options.records / 1000)
        present = f"{options.present} records and {max(options.keys, options.accounts)} keys there"
        spread = f"{min(figures):.2f} to {max(figures):.2f}, {RUNS} runs"
        size = f"{path.stat().st_size / first:.0f} bytes per record"
        cpu = f"{statistics.median(figures):.2f} us CPU per record ({spread})"
        print(f"{options.accounts} accounts at work, {present}: {cpu}, {size}")
        reader = open_reader(path)
        numbers = [rng.randrange(max(options.keys, options.accounts)) + 1 for _ in range(2000)]
        wanted = [public_id(number) for number in numbers]
        took = []
        now_ms = START_MS + MS_PER_DAY // 2
        for name in wanted:
            before_ns = time.perf_counter_ns()
            assert load_key(reader, name, now_ms) is not None
            took.append((time.perf_counter_ns() - before_ns) / 1000)
        took.sort()
        print(f"look-up of a key: median {took[1000]:.0f} us, p99 {took[1980]:.0f} us")
        reader.close()
        connection.close()


if __name__ == "__main__":
    main()
