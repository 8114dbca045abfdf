"""The file behind the in-flight journal, and what is done with it when a process has died.

`_fastpath.Journal` writes the slots (relay/fastpath/journal.pxi says what is in them). Here: the file is made whole
before it is used (a sparse page on a full disk would kill the process at the first touch), its header is checked, and
whoever takes the store's lock first settles every slot that is not free, exactly once.

A slot that no call can have written (a damaged page) is set aside for the operator: it must not keep the others, and
the relay, from going on. What a call cost is looked up on its rate card, which the store has: a price or a sum in a
slot is believed only where the card says the same.

After a reboot of the machine the slots are not trusted: memory that had not reached the disk is lost, so a slot may be
older than what the store has. Then the holds are gone with the process and nothing is charged; it is said in the log.
"""

from __future__ import annotations

import logging
import mmap
import os
import sqlite3
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from relay import _fastpath
from relay._fastpath import Journal
from relay.records import CALL_COLUMNS, CALL_DETAILS, CALL_IDS_PER_DAY, CallRecord, call_day, first_call_id
from relay.storage.batch import COST_MAX_NANO, MEASURE_MAX, lines_in, mended_call
from relay.storage.errors import StoreUnavailable, StoreUnusable
from relay.storage.ownership import adopt
from relay.storage.rows import CallDetails, CallLine, CallRow, RateCardRow
from relay.storage.verify import CostFunction

if TYPE_CHECKING:
    from relay.storage.store import Store

log = logging.getLogger("relay.journal")

NAME = "journal"
STATE_OPEN: Final = 1
STATE_ENDED: Final = 2
MEASURES: Final = CALL_COLUMNS[CALL_COLUMNS.index("input_tokens") : CALL_COLUMNS.index("usage_source")]
DETAILS: Final = len(CALL_DETAILS)
_MAGIC = b"relay-journal-4\n"
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
                adopt(descriptor, data_dir)
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


class Left(NamedTuple):
    """A slot that is not free: what it says, and its bytes."""

    document: dict[str, Any]
    content: bytes


def left_over(data_dir: Path, store_id: bytes) -> list[Left]:
    """The slots that a dead process left, by the ids of their calls; [] where there is no journal or it is of another
    boot.

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
    found = []
    for at in range(start, len(data), slot_bytes):
        slot = data[at : at + slot_bytes]
        found += [Left(document, bytes(slot)) for document in Journal(slot).left_over()]
    found.sort(key=lambda left: left.document["id"])
    if found and boot != boot_id():
        log.warning("%d calls were in flight when the machine went down; nothing is charged for them", len(found))
        return []
    return found


async def recover(store: Store, data_dir: Path, store_id: bytes, cost_of: CostFunction | None) -> int:
    """Settles what a dead process left; how many calls that were. Nothing may be admitted before it returns.

    First the calls whose ending had been decided: their figures are final. Then those that were open: they are charged
    for what had been delivered, as far as the balance goes. Idempotent, because a call's id is: killed in the middle of
    this, the next start does it again.
    """
    found = left_over(data_dir, store_id)
    if not found:
        return 0
    judge = Judge(await store.known_to_recovery(found), cost_of)
    ended: list[CallRecord] = []
    opened: list[dict[str, Any]] = []
    bad: list[tuple[Left, str]] = []
    for left in found:
        fault = judge.fault_of(left)
        if fault:
            bad.append((left, fault))
        elif left.document["ended"]:
            ended.append(_record(left.document, left.document["written_off_nano"]))
        else:
            opened.append(left.document)
    if bad:
        await store.set_slots_aside(bad)
    await store.settle_recovered(ended)
    # What a recovery before this one has settled is in the balances already.
    settled = await store.recorded([document["id"] for document in opened])
    balances: dict[int, int] = {}
    records = []
    for document in opened:
        if document["id"] in settled:
            continue
        account_id = document["account_id"]
        if account_id not in balances:
            balances[account_id] = await store.balance(account_id)
        cost = document["cost_nano"]
        allowed = cost if document["max_cost_nano"] < 0 else min(cost, document["max_cost_nano"])
        taken = min(allowed, max(balances[account_id], 0))
        balances[account_id] -= taken
        records.append(_record(document, cost - taken))
    await store.settle_recovered(records)
    recovered = len(ended) + len(opened)
    log.warning("recovered %d calls of a process that died: %d ended, %d open", recovered, len(ended), len(opened))
    if bad:
        log.error("%d slots of the journal were damaged and set aside: `relay ledger verify` names them", len(bad))
    return recovered


class Known(NamedTuple):
    """What the store knows of what the slots name."""

    call_id_max: int  # a day from now, or from the newest call where the clock was put back
    account_of_key: dict[int, int]
    organisations: set[int]
    cards: dict[str, RateCardRow]


def known(connection: sqlite3.Connection, found: Sequence[Left], now_ms: int) -> Known:
    """Reads only."""
    (newest,) = connection.execute("SELECT coalesce(max(id), 0) FROM calls").fetchone()
    keys: dict[int, int] = {}
    organisations: set[int] = set()
    cards: dict[str, RateCardRow] = {}
    for document in (left.document for left in found):
        for row in connection.execute("SELECT id, account_id FROM keys WHERE id = ?", (document["key_id"],)):
            keys[row[0]] = row[1]
        for row in connection.execute("SELECT id FROM organisations WHERE id = ?", (document["organisation_id"],)):
            organisations.add(row[0])
        card_id = document["rate_card"]
        if card_id is not None and card_id not in cards:
            for row in connection.execute("SELECT id, body, created_ms FROM rate_cards WHERE id = ?", (card_id,)):
                cards[card_id] = RateCardRow(*row)
    return Known(max(first_call_id(now_ms), newest) + CALL_IDS_PER_DAY, keys, organisations, cards)


class Judge:
    """Tells whether a slot can be what a call wrote."""

    def __init__(self, known: Known, cost_of: CostFunction | None) -> None:
        self._known = known
        self._cost_of = cost_of
        self._seen: set[int] = set()

    def fault_of(self, left: Left) -> str:
        """What is wrong with a slot, "" where nothing is. The cost of an open call is put right by its card."""
        document, known = left.document, self._known
        (state,) = struct.unpack_from("<I", left.content)
        if state not in (STATE_OPEN, STATE_ENDED):
            return f"state {state}: expected {STATE_OPEN} or {STATE_ENDED}"
        call_id, account_id, key_id = document["id"], document["account_id"], document["key_id"]
        if not 0 < call_id <= known.call_id_max:
            return f"call id {call_id}: expected 1 to {known.call_id_max}, which is a day from now"
        if call_id in self._seen:
            return f"call id {call_id}: another slot has it"
        if known.account_of_key.get(key_id) != account_id:
            return f"account {account_id}: expected that of key {key_id}"
        organisation_id = document["organisation_id"]
        if organisation_id is not None and organisation_id not in known.organisations:
            return f"organisation {organisation_id}: there is none"
        usage = {name: document[name] for name in MEASURES}
        details = document["more"][:DETAILS] if document["more"] is not None else (0,) * DETAILS
        for name, value in (*usage.items(), *zip(CALL_DETAILS, details, strict=True)):
            if not 0 <= value <= MEASURE_MAX:
                return f"{name} {value}: expected 0 to {MEASURE_MAX}"
        for name in ("attempts", "latency_us", "first_byte_us"):
            if not 0 <= (document[name] or 0) <= MEASURE_MAX:
                return f"{name} {document[name]}: expected 0 to {MEASURE_MAX}"
        fault = self._fault_of_cost(document, details)
        if not fault:
            self._seen.add(call_id)
        return fault

    def _fault_of_cost(self, document: dict[str, Any], details: Sequence[int]) -> str:
        cost, written_off = document["cost_nano"], document["written_off_nano"]
        # Slots of earlier versions may hold more than a call can cost by now: the writer charges the most there is.
        if cost < 0 or (document["ended"] and not 0 <= written_off <= cost):
            return f"cost {cost}, written off {written_off}: expected 0 or more, and no more written off than it cost"
        if self._cost_of is None or (not document["rate_card"] and cost == 0):
            return ""
        card = self._known.cards.get(document["rate_card"] or "")
        call = CallRow(
            *[*mended_call(_record(document, 0))[: len(CALL_COLUMNS)], CallDetails(*details), _lines(document)]
        )
        by_card = -1 if card is None else self._cost_of(card, call)
        if by_card < 0:
            return "no stored rate card has its model"
        if not document["ended"]:
            # What counts is what was delivered; the slot's own sum of it may be from a moment before.
            document["cost_nano"] = by_card
        elif min(cost, COST_MAX_NANO) != by_card:
            return f"cost {cost}: its usage costs {by_card} nano-credits by its rate card"
        return ""


def _lines(document: dict[str, Any]) -> tuple[CallLine, ...]:
    return tuple(CallLine(*line) for line in lines_in(document["more"] or ()))


def _record(document: dict[str, Any], written_off_nano: int) -> CallRecord:
    record = (*(document[column] for column in CALL_COLUMNS), written_off_nano, call_day(document["id"]))
    more = document["more"]
    return record if more is None else (*record, more)
