"""Full disks, locked files, failing fsyncs and sudden death of the process."""

# ruff: noqa: ASYNC220, ASYNC221 - these tests start programs and wait for them, with nothing else in the loop

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from relay.storage import Store, StoreFailed, StoreUnavailable, groupcommit
from relay.storage.database import translate
from tests.support.stored import CREDIT, assert_books_agree, call_record, customer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quick_retry(monkeypatch):
    monkeypatch.setattr(groupcommit, "RETRY_SECONDS", 0.02)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - of another thread
        await asyncio.sleep(0.005)


async def set_page_limit(store, pages):
    """SQLite's own "disk full": the database may not grow beyond so many pages (0: no more than it has)."""
    await store._writing.run(lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchone())


async def test_a_full_disk_loses_and_doubles_nothing(tmp_path, quick_retry):
    store = await Store.open(tmp_path, commit_interval_ms=5)
    account, _ = await customer(store, credits=1)
    store.append_calls([call_record(n) for n in range(10)])
    await store.flush()
    await set_page_limit(store, 1)
    records = [call_record(n, user_agent="x" * 250) for n in range(10, 1510)]
    store.append_calls(records)
    await until(lambda: not store.writable)
    assert store.pending > 0
    assert (await store.find_credential("a")).balance_nano == CREDIT - 1_510_000  # queued ones count
    with pytest.raises(StoreUnavailable, match="full"):
        await store.flush()
    with pytest.raises(StoreUnavailable):
        await store.add_credit(account.id, 5)
    store.append_calls([call_record(5000)])
    await asyncio.sleep(0.1)  # several attempts
    assert not store.writable
    await set_page_limit(store, 1_000_000)
    await until(lambda: store.writable and not store.pending)
    assert len(await store.calls(limit=5000)) == 1511
    assert await store.balance(account.id) == CREDIT - 1_511_000
    assert await store.verify() == []
    await store.close()
    assert_books_agree(tmp_path)


async def test_a_change_that_fails_for_want_of_space_is_noticed_and_recovered_from(tmp_path, quick_retry):
    store = await Store.open(tmp_path)
    await customer(store)
    await set_page_limit(store, 1)
    number = 0
    while store.writable:
        number += 1
        with contextlib.suppress(StoreUnavailable):
            await store.create_account(f"{'x' * 200}{number}", plan="p")
    assert not store.writable
    await set_page_limit(store, 1_000_000)
    await until(lambda: store.writable)
    await store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount")
async def test_a_small_file_system_that_fills_up(tmp_path, quick_retry):
    """The same with a real file system, where also the WAL and its index find no space."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount")
    try:
        store = await Store.open(small, commit_interval_ms=5)
        account, _ = await customer(store, credits=1)
        ballast = small / "ballast"
        ballast.write_bytes(b"x" * 600_000)
        number = 0
        while store.writable:
            store.append_calls([call_record(number + n, user_agent="x" * 250) for n in range(50)])
            number += 50
            with contextlib.suppress(StoreUnavailable):
                await store.flush()
        store.append_calls([call_record(number)])
        await asyncio.sleep(0.1)
        assert not store.writable
        ballast.unlink()
        await until(lambda: store.writable and not store.pending)
        assert await store.balance(account.id) == CREDIT - 1000 * (number + 1)
        assert await store.verify() == []
        await store.close()
        assert_books_agree(small)
    finally:
        subprocess.run(["umount", small], check=True)


async def test_a_lock_of_another_program_does_not_hold_up_the_event_loop(tmp_path, quick_retry):
    store = await Store.open(tmp_path)
    account, _ = await customer(store, credits=1)
    await store._writing.run(lambda connection: connection.execute("PRAGMA busy_timeout = 50"))
    other = sqlite3.connect(tmp_path / "relay.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.append_calls([call_record(1)])
    ticks = 0
    flushing = asyncio.ensure_future(store.flush())
    while not flushing.done():
        ticks += 1
        await asyncio.sleep(0.001)
    assert ticks > 5
    with pytest.raises(StoreUnavailable, match="locked"):
        await flushing
    assert not store.writable
    assert store.pending == 1
    assert (await store.account(account.id)).id == account.id  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    await until(lambda: store.writable)
    assert store.pending == 0
    assert await store.balance(account.id) == CREDIT - 1000
    await store.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SQLITE_FULL", StoreUnavailable),
        ("SQLITE_BUSY_SNAPSHOT", StoreUnavailable),
        ("SQLITE_IOERR_SHMSIZE", StoreUnavailable),
        ("SQLITE_IOERR_FSYNC", StoreFailed),
        ("SQLITE_IOERR_WRITE", StoreFailed),
        ("SQLITE_CORRUPT_INDEX", StoreFailed),
        ("SQLITE_NOTADB", StoreFailed),
    ],
)
def test_what_errors_of_sqlite_mean(name, kind):
    error = sqlite3.OperationalError("x")
    error.sqlite_errorname = name
    assert type(translate(error)) is kind


# -- fsync

FAILING_FSYNC = """
    #define _GNU_SOURCE
    #include <errno.h>
    #include <unistd.h>
    /* fails once when asked to by a file, then succeeds, as Linux does */
    static int fault(void) { if (access("fail-now", F_OK)) return 0; unlink("fail-now"); errno = EIO; return 1; }
    int fsync(int fd) { return fault() ? -1 : 0; }
    int fdatasync(int fd) { return fault() ? -1 : 0; }
"""
FSYNC_PROGRAM = """
    import asyncio, os, pathlib, sys
    from relay.storage import Store, StoreFailed
    from tests.support.stored import call_record, customer

    async def main():
        store = await Store.open("data", durability=sys.argv[1], commit_interval_ms=1)
        ended = asyncio.get_running_loop().create_future()
        store.on_fatal(ended.set_result)
        account, _ = await customer(store, credits=1)
        store.append_calls([call_record(1)])
        await store.flush()
        pathlib.Path("fail-now").touch()
        match sys.argv[2]:
            case "commit":
                store.append_calls([call_record(2)])
            case "checkpoint":
                store._group._checkpoint_now()
            case "change":
                try:
                    await store.add_credit(account.id, 7)
                except StoreFailed:
                    pass
        error = await ended
        assert type(error) is StoreFailed, error
        assert not os.path.exists("fail-now")
        assert not store.writable
        for attempt in (store.flush(), store.add_credit(account.id, 7), store.delete_calls_before(1)):
            try:
                await attempt
            except StoreFailed:
                continue
            raise SystemExit("went on after a failed fsync")
        print(error)
        try:
            await store.close()
        except StoreFailed:
            sys.exit(70)

    asyncio.run(main())
"""


@pytest.fixture(scope="module")
def failing_fsync(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("fsync")
    (directory / "fault.c").write_text(textwrap.dedent(FAILING_FSYNC))
    library = directory / "fault.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, directory / "fault.c"], check=True)
    return library


@pytest.mark.parametrize(
    ("durability", "moment"), [("power", "commit"), ("process", "checkpoint"), ("process", "change")]
)
async def test_a_failed_fsync_is_final(tmp_path, failing_fsync, durability, moment):
    preloaded = [os.environ.get("LD_PRELOAD", ""), str(failing_fsync)]  # `make asan` has libraries of its own there
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FSYNC_PROGRAM), durability, moment],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": " ".join(preloaded).strip()},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 70, done.stderr
    assert done.stderr == ""
    assert "disk I/O error (SQLITE_IOERR_FSYNC)" in done.stdout
    # Not even the end of the interpreter has checkpointed after it.
    assert (tmp_path / "data" / "relay.db-wal").stat().st_size > 0
    store = await Store.open(tmp_path / "data")
    assert await store.verify() == []
    assert len(await store.calls()) >= 1
    await store.close()


# -- kill -9

KILLED_PROGRAM = """
    import asyncio, os, sys
    from relay.storage import Store
    from tests.support.stored import call_record

    async def main():
        start = int(sys.argv[2])
        store = await Store.open(sys.argv[1], commit_interval_ms=2, commit_records_max=20)
        store.on_committed(lambda records: [os.write(1, b"%d\\n" % record[0]) for record in records])
        number = start
        while True:
            store.append_calls([call_record(number + n, cost_nano=7) for n in range(13)])
            number += 13
            if number % 5 == 0:
                result = await store.add_credit(1, 100, idempotency_key=f"k{number}")
                os.write(1, b"entry %d\\n" % result.entry.id)
            if number % 7 == 0:
                await store._group.checkpoint()
            await asyncio.sleep(0)

    asyncio.run(main())
"""


async def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    store = await Store.open(tmp_path / "data")
    await customer(store, credits=1000)
    await store.close()
    acknowledged: set[int] = set()
    entries: set[int] = set()
    rng = random.Random(8)
    for round_ in range(6):
        with (tmp_path / "out").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(KILLED_PROGRAM), tmp_path / "data", str(round_ * 100_000)],
                stdout=out,
                cwd=ROOT,
            )
            while (tmp_path / "out").stat().st_size < 200:
                assert process.poll() is None
                await asyncio.sleep(0.01)
            await asyncio.sleep(rng.random() * 0.2)
            process.send_signal(signal.SIGKILL)
            process.wait()
        for line in (tmp_path / "out").read_text().splitlines():
            if line.startswith("entry "):
                entries.add(int(line[6:]))
            else:
                acknowledged.add(int(line))
        store = await Store.open(tmp_path / "data")
        assert await store.verify() == []
        assert acknowledged <= {call.id for call in await store.calls(limit=10**6)}
        assert entries <= {entry.id for entry in await store.entries(1, limit=10**6)}
        await store.close()
        assert_books_agree(tmp_path / "data")
    assert len(acknowledged) > 200
