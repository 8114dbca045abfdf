"""The file behind the in-flight journal, and what is done with it when a process has died.

`_fastpath.Journal` writes the slots (relay/fastpath/journal.pxi says what is in them). Here: the file is made whole
before it is used (a sparse page on a full disk would kill the process at the first touch), its header is checked, and
whoever takes the store's lock first settles every slot that is not free, exactly once.

After a reboot of the machine the slots are not trusted: memory that had not reached the disk is lost, so a slot may be
older than what the store has. Then the holds are gone with the process and nothing is charged; it is said in the log.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay import _fastpath
from relay._fastpath import Journal
from relay.records import CALL_COLUMNS, CallRecord, call_day
from relay.storage.errors import StoreUnavailable, StoreUnusable

if TYPE_CHECKING:
    from relay.storage.store import Store

log = logging.getLogger("relay.journal")

NAME = "journal"
_MAGIC = b"relay-journal-3\n"
_HEADER = struct.Struct("<16sII16s36s")  # magic, slot bytes, slots, store id, boot id; then the CRC-32 of these


def boot_id() -> bytes:
    """Which run of the machine this is: 36 characters that change at every boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:36]


class JournalFile:
    """The mapped file. `journal` is what the hot path writes to."""

    def __init__(self, path: Path, descriptor: int, mapped: mmap.mmap, slots: int) -> None:
        self._descriptor = descriptor
        self._mapped = mapped
        self.path = path
        start = _fastpath.JOURNAL_HEADER_SIZE
        self.journal = Journal(memoryview(mapped)[start : start + slots * _fastpath.JOURNAL_SLOT_SIZE])

    @classmethod
    def create(cls, data_dir: Path, store_id: bytes, slots: int) -> JournalFile:
        """A fresh journal in place of whatever was there. Raises StoreUnavailable (no space, no permission)."""
        path = data_dir / NAME
        size = _fastpath.JOURNAL_HEADER_SIZE + slots * _fastpath.JOURNAL_SLOT_SIZE
        beside = path.with_name(NAME + ".new")
        try:
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
                fixed = _HEADER.pack(_MAGIC, _fastpath.JOURNAL_SLOT_SIZE, slots, store_id, boot_id())
                os.pwrite(descriptor, fixed + struct.pack("<I", zlib.crc32(fixed)), 0)
                os.fsync(descriptor)
                os.rename(beside, path)
                mapped = mmap.mmap(descriptor, size)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise StoreUnavailable(f"{path}: {error.strerror}") from error
        return cls(path, descriptor, mapped, slots)

    def close(self) -> None:
        """Lets go of the descriptor. The mapping stays while calls may still write to it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def left_over(data_dir: Path, store_id: bytes) -> list[dict[str, Any]]:
    """The slots that a dead process left; [] where there is no journal or it is of another boot.

    Raises StoreUnusable where the file is not this store's journal or is damaged: money may stand in it.
    """
    path = data_dir / NAME
    try:
        data = bytearray(path.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreUnavailable(f"{path}: {error.strerror}") from error
    fixed = bytes(data[: _HEADER.size])
    if len(fixed) < _HEADER.size or data[_HEADER.size : _HEADER.size + 4] != struct.pack("<I", zlib.crc32(fixed)):
        raise StoreUnusable(f"{path}: the header is damaged. If no call was in flight, the file can be deleted")
    magic, slot_bytes, slots, owner, boot = _HEADER.unpack(fixed)
    start = _fastpath.JOURNAL_HEADER_SIZE
    if magic != _MAGIC or slot_bytes != _fastpath.JOURNAL_SLOT_SIZE or len(data) != start + slots * slot_bytes:
        raise StoreUnusable(f"{path}: not a journal of this version of relay. Start the version that wrote it once")
    if owner != store_id:
        raise StoreUnusable(f"{path}: belongs to another store")
    found = Journal(memoryview(data)[start:]).left_over()
    if found and boot != boot_id():
        log.warning("%d calls were in flight when the machine went down; nothing is charged for them", len(found))
        return []
    return found


async def recover(store: Store, data_dir: Path, store_id: bytes) -> int:
    """Settles what a dead process left; how many calls that were. Nothing may be admitted before it returns.

    First the calls whose ending had been decided: their figures are final. Then those that were open: they are charged
    for what had been delivered, as far as the balance goes. Idempotent, because a call's id is: killed in the middle of
    this, the next start does it again.
    """
    found = left_over(data_dir, store_id)
    if not found:
        return 0
    ended = [_record(document, document["written_off_nano"]) for document in found if document["ended"]]
    await store.settle_recovered(ended)
    # What a recovery before this one has settled is in the balances already.
    settled = await store.recorded([document["id"] for document in found if not document["ended"]])
    balances: dict[int, int] = {}
    opened = []
    for document in found:
        if document["ended"] or document["id"] in settled:
            continue
        account_id = document["account_id"]
        if account_id not in balances:
            balances[account_id] = await store.balance(account_id)
        cost = document["cost_nano"]
        allowed = cost if document["max_cost_nano"] < 0 else min(cost, document["max_cost_nano"])
        taken = min(allowed, max(balances[account_id], 0))
        balances[account_id] -= taken
        opened.append(_record(document, cost - taken))
    await store.settle_recovered(opened)
    log.warning("recovered %d calls of a process that died: %d ended, %d open", len(found), len(ended), len(opened))
    return len(found)


def _record(document: dict[str, Any], written_off_nano: int) -> CallRecord:
    record = (*(document[column] for column in CALL_COLUMNS), written_off_nano, call_day(document["id"]))
    more = document["more"]
    return record if more is None else (*record, more)
