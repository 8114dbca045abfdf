"""The journal's file: what may be opened, and what is settled of it, once, however often a start is interrupted."""

import logging
import os
import struct
import zlib
from pathlib import Path

import pytest

from relay import _fastpath
from relay.storage import Store, StoreUnavailable, StoreUnusable, journal
from relay.storage.journal import JournalFile
from tests.support.slots import ENDED, Usage, write_slot
from tests.support.stored import NOON_MS, assert_books_agree, call_record, customer

SLOTS = 8
HEADER = _fastpath.JOURNAL_HEADER_SIZE
FIRST = call_record(0)[0]


async def opened(data_dir: Path, **options) -> Store:
    return await Store.open(data_dir, now_ms=lambda: NOON_MS, **options)


async def left_by_a_dead_process(data_dir: Path, *slots: dict, credits_nano: int = 1000) -> None:
    """A store with one account, and a journal in which these slots stand."""
    store = await opened(data_dir)
    await customer(store)
    await store.add_credit(1, credits_nano)
    memory = store.open_journal(SLOTS)
    store_id = store._store_id
    del memory
    await store.close()
    data = bytearray(SLOTS * _fastpath.JOURNAL_SLOT_SIZE)
    for number, slot in enumerate(slots):
        write_slot(data, number, **{"id": FIRST + number} | slot)
    write_file(data_dir, bytes(data), store_id)


def write_file(data_dir: Path, data: bytes, store_id: bytes, *, boot: bytes | None = None, slots: int = SLOTS) -> None:
    fixed = struct.pack(
        "<16sII16s36s", b"relay-journal-4\n", _fastpath.JOURNAL_SLOT_SIZE, slots, store_id, boot or journal.boot_id()
    )
    header = (fixed + struct.pack("<I", zlib.crc32(fixed))).ljust(HEADER, b"\0")
    (data_dir / journal.NAME).write_bytes(header + data)


async def records(store: Store) -> list[tuple]:
    rows = await store.calls()
    return sorted((row.id - FIRST, row.error_code, row.output_tokens, row.cost_nano) for row in rows)


async def written_off(store: Store) -> int:
    return sum(entry.amount_nano for entry in await store.entries(1) if entry.kind == "write_off")


async def test_everything_is_settled_once(tmp_path: Path):
    ended = {"state": ENDED, "cost_nano": 100, "usage": Usage(output_tokens=50), "source": 1}
    await left_by_a_dead_process(tmp_path, ended, {}, {"delivered": 0})
    for found in (3, 0):
        store = await opened(tmp_path)
        assert store.recovered == found
        assert await records(store) == [(0, None, 50, 100), (1, "recovered", 5, 15), (2, "recovered", 0, 0)]
        assert await store.balance(1) == 1000 - 115
        assert not (tmp_path / journal.NAME).exists()
        await store.close()
    assert assert_books_agree(tmp_path) == {1: 885}


async def test_a_record_that_was_committed_before_the_kill_stays_as_it_is(tmp_path: Path):
    await left_by_a_dead_process(tmp_path, {"state": ENDED, "cost_nano": 100}, {})
    kept = (tmp_path / journal.NAME).read_bytes()
    (tmp_path / journal.NAME).unlink()
    store = await opened(tmp_path)
    store.append_calls([call_record(0, cost_nano=100, output_tokens=7)])
    await store.close()
    (tmp_path / journal.NAME).write_bytes(kept)
    store = await opened(tmp_path)
    assert await records(store) == [(0, None, 7, 100), (1, "recovered", 5, 15)]
    assert await store.balance(1) == 885
    await store.close()
    assert_books_agree(tmp_path)


async def test_what_the_balance_does_not_cover_is_written_off(tmp_path: Path):
    """The ended call first; then the open ones in their order, as far as the money goes."""
    ended = {"state": ENDED, "cost_nano": 100, "written_off_nano": 30}
    await left_by_a_dead_process(tmp_path, {}, {}, ended, {}, credits_nano=95)
    store = await opened(tmp_path)
    assert [row[3] for row in await records(store)] == [15, 15, 100, 15]
    assert await store.balance(1) == 0
    assert await written_off(store) == 30 + (45 - 25)
    assert await store.verify() == []
    await store.close()
    assert assert_books_agree(tmp_path) == {1: 0}


async def test_never_more_than_the_caller_allowed(tmp_path: Path):
    await left_by_a_dead_process(tmp_path, {"max_cost_nano": 4}, {"max_cost_nano": 40})
    store = await opened(tmp_path)
    assert await store.balance(1) == 1000 - 4 - 15
    assert await written_off(store) == 11
    await store.close()
    assert_books_agree(tmp_path)


@pytest.mark.parametrize("kill_at", range(1, 6))
async def test_killed_while_it_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int):
    """Wherever a recovery stops, the next one ends with the same books as one that was not interrupted."""
    ended = {"state": ENDED, "cost_nano": 10}
    await left_by_a_dead_process(tmp_path, ended, {}, {}, {}, credits_nano=50)
    commits = 0
    original = Store.settle_recovered

    async def interrupted(self: Store, found: list) -> int:
        nonlocal commits
        for record in found:
            commits += 1
            if commits == kill_at:
                raise KeyboardInterrupt
            await original(self, [record])
        return len(found)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "settle_recovered", interrupted)
        if kill_at < 5:
            with pytest.raises(KeyboardInterrupt):
                await opened(tmp_path)
            assert (tmp_path / journal.NAME).exists()
        else:
            await (await opened(tmp_path)).close()
    store = await opened(tmp_path)
    assert [row[3] for row in await records(store)] == [10, 15, 15, 15]
    assert await store.balance(1) == 0
    assert await written_off(store) == 5
    await store.close()
    assert_books_agree(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:40],
        lambda data: data[:HEADER],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"X" + data[1:],
        lambda data: data[:20] + b"\xff" + data[21:],
        lambda data: data[:60] + b"\xff" + data[61:],
        lambda data: data[:76] + b"\0\0\0\0" + data[80:],
        lambda data: b"\0" * len(data),
    ],
    ids=["empty", "cut in the header", "no slots", "cut", "longer", "magic", "slots", "boot", "checksum", "zeros"],
)
async def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, damage):
    await left_by_a_dead_process(tmp_path, {})
    path = tmp_path / journal.NAME
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(StoreUnusable, match="journal"):
            await opened(tmp_path)
        assert path.read_bytes() == damaged


async def test_the_journal_of_another_store_is_refused(tmp_path: Path):
    await left_by_a_dead_process(tmp_path / "a", {})
    await left_by_a_dead_process(tmp_path / "b", {})
    os.replace(tmp_path / "a" / journal.NAME, tmp_path / "b" / journal.NAME)
    with pytest.raises(StoreUnusable, match="another store"):
        await opened(tmp_path / "b")


async def test_after_a_reboot_slots_are_not_trusted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    await left_by_a_dead_process(tmp_path, {})
    data = (tmp_path / journal.NAME).read_bytes()[HEADER:]
    store = await Store.open(tmp_path / "other")
    await store.close()
    connection = await opened(tmp_path / "other")
    store_id = connection._store_id
    await connection.close()
    write_file(tmp_path / "other", data, store_id, boot=b"0" * 36)
    with caplog.at_level(logging.WARNING, "relay.journal"):
        store = await opened(tmp_path / "other")
    assert store.recovered == 0
    assert await store.calls() == []
    await store.close()
    assert "1 calls were in flight when the machine went down" in caplog.text


async def test_a_fresh_file_is_whole_private_and_free(tmp_path: Path):
    store = await opened(tmp_path)
    assert store.open_journal(SLOTS).free_slots == SLOTS
    status = (tmp_path / journal.NAME).stat()
    assert status.st_mode & 0o077 == 0
    assert status.st_blocks * 512 >= status.st_size == HEADER + SLOTS * _fastpath.JOURNAL_SLOT_SIZE
    await store.close()


async def test_an_orderly_end_leaves_no_file_that_another_version_could_not_read(tmp_path: Path):
    store = await opened(tmp_path)
    store.open_journal(SLOTS)
    await store.close()
    assert not (tmp_path / journal.NAME).exists()


async def test_no_room_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreUnavailable, match="No space left"):
        JournalFile.create(tmp_path, b"s" * 16, SLOTS)
    assert not (tmp_path / journal.NAME).exists()
