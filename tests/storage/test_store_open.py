"""What may be opened, by whom, and that what may not is left as it was."""

# ruff: noqa: ASYNC221 - a test starts a program and waits for it, with nothing else in the loop

import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from relay.storage import Store, StoreLocked, StoreUnavailable, StoreUnusable, database
from tests.support.stored import CREDIT, NOON_MS, assert_books_agree, call_record, customer


async def make(data_dir: Path) -> None:
    store = await Store.open(data_dir)
    await customer(store, credits=1)
    store.append_calls([call_record(n) for n in range(50)])
    await store.close()


def contents(data_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in data_dir.iterdir() if path.name != "lock"}


async def refused(data_dir: Path, message: str) -> None:
    """Opening says why not, twice, and changes nothing."""
    before = contents(data_dir)
    for _ in range(2):
        with pytest.raises(StoreUnusable, match=message):
            await Store.open(data_dir)
        assert contents(data_dir) == before


async def test_a_new_store_is_private_and_is_there_again(tmp_path):
    data_dir = tmp_path / "new" / "data"
    await make(data_dir)
    for path in (data_dir, *data_dir.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert sorted(contents(data_dir)) == ["relay.db"]
    store = await Store.open(data_dir)
    assert await store.balance(1) == CREDIT - 50_000
    await store.close()
    await store.close()  # once more is nothing
    with pytest.raises(StoreUnavailable):
        store.append_calls([call_record(1)])
    with pytest.raises(StoreUnavailable):
        await store.flush()
    with pytest.raises(StoreUnavailable):
        await store.accounts()
    with pytest.raises(StoreUnavailable):
        await store.create_account("x", plan="p")
    with pytest.raises(StoreUnavailable):
        await store.find_credential("a")


async def test_pragmas(tmp_path):
    for durability, synchronous in (("process", 1), ("power", 2)):
        store = await Store.open(tmp_path / durability, durability=durability)
        await customer(store, credits=1)  # a change, which is always synchronous

        async def values(worker, *names):
            return await worker.run(lambda db: [db.execute(f"PRAGMA {name}").fetchone()[0] for name in names])

        writing = await values(
            store._writing,
            "journal_mode", "synchronous", "mmap_size", "wal_autocheckpoint", "busy_timeout", "foreign_keys",
        )  # fmt: skip
        assert writing == ["wal", synchronous, 0, 0, 5000, 1]
        assert await values(store._looking_up, "mmap_size", "query_only") == [0, 1]
        await store.close()


async def test_a_second_process_is_refused(tmp_path):
    store = await Store.open(tmp_path)
    with pytest.raises(StoreLocked, match=f"process {os.getpid()}") as error:
        await Store.open(tmp_path)
    assert error.value.pid == os.getpid()
    program = (
        "import asyncio, sys\nfrom relay.storage import Store, StoreLocked\n"
        "try: asyncio.run(Store.open(sys.argv[1]))\n"
        "except StoreLocked as e: print(e.pid)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{os.getpid()}\n", done.stderr
    await store.close()
    await (await Store.open(tmp_path)).close()


async def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable):
        await Store.open(tmp_path / "file" / "data")


async def test_a_newer_schema(tmp_path):
    await make(tmp_path)
    connection = sqlite3.connect(tmp_path / "relay.db")
    connection.execute("PRAGMA user_version = 900")
    connection.close()
    await refused(tmp_path, "newer relay .schema 900")


async def test_a_newer_schema_that_is_only_in_the_wal(tmp_path):
    await make(tmp_path / "a")
    connection = sqlite3.connect(tmp_path / "a" / "relay.db", isolation_level=None)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA user_version = 900")
    connection.execute("UPDATE accounts SET plan = 'x'")
    (tmp_path / "b").mkdir()
    for name in ("relay.db", "relay.db-wal"):
        shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)
    connection.close()
    before = contents(tmp_path / "b")
    with pytest.raises(StoreUnusable, match="newer relay"):
        await Store.open(tmp_path / "b")
    after = contents(tmp_path / "b")
    after.pop("relay.db-shm", None)  # an index of the WAL, made by reading
    assert after == before


async def test_another_programs_database(tmp_path):
    connection = sqlite3.connect(tmp_path / "relay.db")
    connection.execute("CREATE TABLE notes (text)")
    connection.close()
    await refused(tmp_path, "another program")


async def test_no_database_at_all(tmp_path):
    (tmp_path / "relay.db").write_bytes(b"not a database" * 1000)
    await refused(tmp_path, "not a database")
    (tmp_path / "relay.db").write_bytes(b"short")
    await refused(tmp_path, "not a database")


async def test_an_empty_file_and_a_half_made_one_are_started_afresh(tmp_path):
    (tmp_path / "relay.db").write_bytes(b"")
    (tmp_path / "relay.db.new").write_bytes(b"left over")
    await make(tmp_path)
    assert sorted(contents(tmp_path)) == ["relay.db"]


async def test_a_truncated_file(tmp_path):
    await make(tmp_path)
    with (tmp_path / "relay.db").open("r+b") as file:
        file.truncate(file.seek(0, 2) - 4096)
    await refused(tmp_path, "damaged")


async def test_flipped_bits_of_the_first_page(tmp_path):
    """Each byte of the header, and some of the schema behind it: refused with a clear error, or harmless; never
    written.
    """
    await make(tmp_path)
    path = tmp_path / "relay.db"
    good = path.read_bytes()
    refusals = 0
    reasons = []
    for offset in [*range(0, 100, 3), *range(100, 4096, 333)]:
        damaged = bytearray(good)
        damaged[offset] ^= 0x81
        path.write_bytes(damaged)
        try:
            database._check(path)
        except StoreUnusable as error:
            refusals += 1
            reasons.append(str(error))
        assert path.read_bytes() == damaged
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["lock", "relay.db"]
    assert refusals > 8
    assert all(str(path) in reason for reason in reasons)


@pytest.mark.parametrize("table", ["entries", "lots", "lot_use", "accounts"])
async def test_a_damaged_page_of_the_ledger(tmp_path, table):
    await make(tmp_path)
    path = tmp_path / "relay.db"
    connection = sqlite3.connect(path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 64)
    await refused(tmp_path, "damaged")


async def test_damage_found_while_running_is_fatal(tmp_path, monkeypatch):
    """As in a store so large that the look at its start does not get there."""
    await make(tmp_path)
    monkeypatch.setattr(database, "check_pages", lambda *_, **__: ([], []))
    path = tmp_path / "relay.db"
    connection = sqlite3.connect(path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'rollups'").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 64)
    store = await Store.open(tmp_path)
    fatal = []
    store.on_fatal(fatal.append)
    store.append_calls([call_record(99)])
    with pytest.raises(Exception, match="malformed"):
        await store.flush()
    assert len(fatal) == 1
    assert store.pending == 1
    with pytest.raises(Exception, match="malformed"):
        await store.close()


async def test_nothing_of_a_record_reaches_the_log(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    store = await Store.open(tmp_path)
    await customer(store, "publicid77")
    store.append_calls([call_record(1, user_agent="agent-canary"), call_record(1, user_agent="agent-canary" * 30)])
    await store.flush()
    await store.find_credential("publicid77")
    await store.close()
    assert "executing" in caplog.text  # aiosqlite does log
    assert "canary" not in caplog.text
    assert "publicid77" not in caplog.text


async def test_a_backup_of_a_store_at_work_is_consistent(tmp_path):
    store = await Store.open(tmp_path / "live", commit_records_max=5)
    await customer(store, credits=1)
    for number in range(200):
        store.append_calls([call_record(number)])
    size = await store.backup(tmp_path / "copy.db")
    assert size == (tmp_path / "copy.db").stat().st_size
    store.append_calls([call_record(1000)])
    await store.flush()
    with pytest.raises(Exception, match="exists"):
        await store.backup(tmp_path / "copy.db")
    with pytest.raises(StoreUnavailable):
        await store.backup(tmp_path / "missing" / "copy.db")
    await store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "live"]

    (tmp_path / "restored").mkdir()
    shutil.copy(tmp_path / "copy.db", tmp_path / "restored" / "relay.db")
    restored = await Store.open(tmp_path / "restored", now_ms=lambda: NOON_MS)
    assert len(await restored.calls(limit=1000)) == 200
    assert await restored.verify() == []
    await restored.close()
    assert_books_agree(tmp_path / "restored")
