"""A whole relay on a disk that fills up, fails, or loses power: nothing is lost that was promised."""

# ruff: noqa: ASYNC221 - mounting, with nothing else in the loop

import asyncio
import contextlib
import os
import shutil
import sqlite3
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from relay import app
from relay.control.failures import CommandError
from relay.simulator import Running
from relay.storage import journal
from relay.storage.store import COMMIT_INTERVAL_MS
from tests.faults.books import check_calls, rows
from tests.faults.faulty import Faults
from tests.faults.traffic import CHAT, DIALECTS, MESSAGES, Call, make_call, words
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import config_text
from tests.support.rawclient import RawClient
from tests.support.stored import assert_books_agree
from tests.support.waiting import until

NOWHERE = "http://127.0.0.1:9"


@pytest_asyncio.fixture
async def relay(tmp_path: Path, simulator: Running) -> AsyncIterator[RelayProcess]:
    made = RelayProcess(tmp_path, config_text(simulator.base_url, NOWHERE))
    yield made
    await made.kill()


async def call(customer: Customer, *, stream: bool = False, more: str = "", **given: object) -> Call:
    return await make_call(customer, CHAT, stream=stream, directives=f"{words(CHAT, 5, 1)} {more}", **given)


async def is_ready(relay: RelayProcess) -> bool:
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        return (await client.request("GET", "/readyz", {"Host": "relay"})).status == 200


async def refuses_for_the_store(customer: Customer) -> bool:
    """Whether a call is refused now, in the way that tells a client to come back."""
    call = await make_call(customer, MESSAGES, stream=False, directives="events=1")
    if call.status == 200:
        return False
    assert call.status == 503
    assert b"overloaded_error" in call.body or b"api_error" in call.body
    return True


async def endure_a_full_disk(
    relay: RelayProcess, simulator: Running, fill: Iterator[None], customers: list[Customer]
) -> list[Call]:
    """Streams run when the disk fills up; they finish. New calls are refused until there is space. All calls made."""
    calls = [await call(customer) for customer in customers]
    running = [
        asyncio.ensure_future(call(customer, stream=True, more="pace_ms=100", during=None)) for customer in customers
    ]
    await simulator.book.wait(lambda book: book.open == len(customers), 10)
    next(fill)
    # The first commit that fails is what tells that there is no space.
    await eventually(lambda: refuses_for_the_store(customers[0]), 20)
    assert not await is_ready(relay)
    for customer in customers[1:]:
        assert await refuses_for_the_store(customer)
    calls += await asyncio.gather(*running)
    assert all(one.complete and one.status == 200 for one in calls), [one.status for one in calls]
    next(fill)
    await eventually(lambda: is_ready(relay))
    calls += [await call(customer) for customer in customers]
    assert calls[-1].status == 200
    return calls


async def recorded(relay: RelayProcess, calls: list[Call]) -> None:
    """Waits until every one of these has the record of a finished call."""
    wanted = {one.record_id for one in calls if one.status == 200}

    def finished() -> set[int]:
        found = rows(relay.data_dir, "SELECT id FROM call_records WHERE error_code IS NULL")
        return {row["id"] for row in found}

    await until(lambda: wanted <= finished(), 10, "the records")


async def check_all(relay: RelayProcess, simulator: Running, calls: list[Call], customers: list[Customer]) -> None:
    for customer in customers:
        await customer.settled_nano()
    await recorded(relay, calls)
    assert (await relay.command("ledger verify"))["ok"]
    data_dir = relay.data_dir
    await simulator.book.wait(lambda book: book.open == 0, 10)
    assert relay.faults == []
    assert await relay.stop() == 0
    assert_books_agree(data_dir)


async def test_a_full_disk_under_load(relay: RelayProcess, simulator: Running):
    """Writes find no space: as the kernel would say it."""
    faults = Faults(relay)
    await relay.start()
    customers = [await relay.customer() for _ in range(4)]

    def fill() -> Iterator[None]:
        faults.full = 1
        yield
        assert faults.refused > 0
        faults.full = 0
        yield

    calls = await endure_a_full_disk(relay, simulator, fill(), customers)
    await check_all(relay, simulator, calls, customers)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount")
async def test_a_small_file_system_that_fills_up(relay: RelayProcess, simulator: Running):
    """A real one: the WAL, its index and the database share a few megabytes with something that grows."""
    small = relay.folder / "data"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount")
    relay.config = relay.config.replace("[server]\n", "[server]\ncalls_max = 1000\n", 1)
    try:
        await relay.start()
        customers = [await relay.customer() for _ in range(4)]

        def fill() -> Iterator[None]:
            ballast = small / "ballast"
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            yield
            ballast.unlink()
            yield

        calls = await endure_a_full_disk(relay, simulator, fill(), customers)
        await check_all(relay, simulator, calls, customers)
    finally:
        await relay.kill()
        subprocess.run(["umount", small], check=True)


async def test_killed_while_the_disk_is_full(relay: RelayProcess, simulator: Running):
    """What could not be committed is in the journal; the next start, with space again, settles it."""
    faults = Faults(relay)
    await relay.start()
    customer = await relay.customer()
    before = await customer.settled_nano()
    faults.full = 1
    made = [await call(customer) for _ in range(3)]
    calls = [one for one in made if one.status == 200]
    assert calls
    await eventually(lambda: refuses_for_the_store(customer))
    shown = await customer.settled_nano()
    await relay.kill()
    faults.full = 0
    await relay.start()
    assert await customer.settled_nano() == shown < before
    await recorded(relay, calls)
    assert (await relay.command("ledger verify"))["ok"]
    assert await relay.stop() == 0
    assert_books_agree(relay.data_dir)


async def test_a_failed_fsync_ends_the_process_and_loses_nothing(relay: RelayProcess, simulator: Running):
    """The disk does not say what it has lost: the process stops, non-zero, saying why, and recovers."""
    faults = Faults(relay)
    await relay.start()
    customers = [await relay.customer() for _ in range(3)]
    calls = [await call(customer) for customer in customers]
    running = [asyncio.ensure_future(call(customer, stream=True, more="pace_ms=200")) for customer in customers]
    await simulator.book.wait(lambda book: book.open == 3 and all(e.events_sent > 1 for e in list(book.entries)[-3:]))
    faults.fsync_fails = 1
    with pytest.raises(CommandError):  # what waits for the disk: a change by the operator
        await relay.command("account create", email="nobody@example.com", plan="open")
    assert await relay.wait() == 1
    assert any("the store failed" in line for line in relay.log), relay.log[-5:]
    calls += await asyncio.gather(*running)
    faults.fsync_fails = 0
    await relay.start()
    assert (await relay.command("ledger verify"))["ok"]
    for customer in customers:
        assert nano((await customer.money())["held"]) == 0
    await simulator.book.wait(lambda book: book.open == 0, 10)
    seen = check_calls(relay.data_dir, calls, simulator.book)
    assert seen["finished"] >= 3
    assert seen["cut"] + seen["recovered"] == 3, seen
    assert (await call(customers[0])).status == 200
    assert await relay.stop() == 0
    assert_books_agree(relay.data_dir)


async def test_a_power_failure_loses_no_settled_call(relay: RelayProcess, simulator: Running):
    """`durability = "power"`: after it only what was fsynced is there, and the machine has booted anew."""
    relay.config = relay.config.replace("[server]\n", '[server]\ndurability = "power"\n', 1)
    faults = Faults(relay, shadow=True)
    await relay.start()
    customers = [await relay.customer() for _ in range(3)]
    calls: list[Call] = []
    waits: list[float] = []
    for _ in range(6):
        calls += await asyncio.gather(
            *(make_call(customer, dialect, stream=n % 2 == 0, directives=words(dialect, 3, 1))
              for n, (customer, dialect) in enumerate(zip(customers, DIALECTS, strict=False)))
        )  # fmt: skip
        ended = time.monotonic_ns()
        await until(lambda: faults.fsync_ns > ended, 10, "an fsync behind the calls")  # noqa: B023
        waits.append((faults.fsync_ns - ended) / 1e6)
    promised = {one.record_id for one in calls[:-3]}  # an fsync may have been under way when the last ones ended
    open_stream = asyncio.ensure_future(call(customers[0], stream=True, more="pace_ms=500"))
    await simulator.book.wait(lambda book: book.open == 1 and book.last.events_sent > 1)
    # The machine goes down. What was written but not fsynced is gone, for every file.
    left = relay.folder / "left"
    shutil.copytree(faults.shadow, left)
    await relay.kill()
    await open_stream
    for path in relay.data_dir.iterdir():
        if path.name.startswith("relay.db") or path.name == journal.NAME:
            path.unlink()
    for path in left.iterdir():
        if path.name in ("relay.db", "relay.db-wal"):
            shutil.copy(path, relay.data_dir / path.name)
    await relay.start()
    assert promised <= {row["id"] for row in rows(relay.data_dir, "SELECT id FROM calls")}
    assert (await relay.command("ledger verify"))["ok"]
    assert (await call(customers[0])).status == 200
    assert await relay.stop() == 0
    assert_books_agree(relay.data_dir)
    print(f"fsynced after {statistics.median(waits):.0f} ms, at most {max(waits):.0f} ms")


def test_settlements_are_on_the_disk_within_50_ms():
    """Of the waits in this program; the disk's own come on top."""
    assert app.FLUSH_SECONDS["power"] * 1000 + COMMIT_INTERVAL_MS["power"] <= 40


async def test_a_lock_of_another_program_never_stalls_the_loop(relay: RelayProcess, simulator: Running):
    """Somebody opens the live file and keeps it locked: calls that run go on, new ones are refused, for so long."""
    await relay.start()
    customer = await relay.customer()
    calls = [await call(customer)]
    await customer.calls(1)
    running = asyncio.ensure_future(call(customer, stream=True, more="pace_ms=100"))
    await simulator.book.wait(lambda book: book.open == 1)
    other = sqlite3.connect(relay.data_dir / "relay.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        # The loop answers at once while the writer waits for the lock, and goes on relaying.
        slowest = 0.0
        async with asyncio.timeout(30):
            while True:
                began = time.monotonic()
                ready = await is_ready(relay)
                slowest = max(slowest, time.monotonic() - began)
                if not ready:
                    break
                calls.append(await call(customer))
        assert slowest < 2.0  # the lock is waited for five seconds at a time
        await eventually(lambda: refuses_for_the_store(customer))
        calls.append(await running)
        other.execute("ROLLBACK")
    finally:
        other.close()
    await eventually(lambda: is_ready(relay))
    calls.append(await call(customer))
    assert all(one.status in (200, 503) for one in calls)
    await customer.settled_nano()
    assert (await relay.command("ledger verify"))["ok"]
    await recorded(relay, calls)
    assert relay.faults == []
    assert await relay.stop() == 0
    assert_books_agree(relay.data_dir)
