"""Entries and lots. Functions for the writer's thread, inside a transaction, unless they only read.

Balance of an account = sum of its entries - sum of what its calls cost (rollups) = sum of what remains of its lots.

An entry that adds credit makes a lot. An entry that takes credit (refund, expiry, forfeit, adjustment) names the lots
it takes from in `entry_lots`. What calls cost is drawn from lots by the batch writer, without an entry per call;
where lots do not cover it, a positive `write_off` entry stands for the rest, so that no balance is ever below zero.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final

from relay import units
from relay.storage.errors import Conflict, InsufficientCredit, NotFound
from relay.storage.rows import LOT_KINDS, CreditResult, DueRow, EntryKind, EntryRow, LotKind, LotRow

REASON_LENGTH_MAX: Final = 1000
IDEMPOTENCY_KEY_LENGTH_MAX: Final = 255
AMOUNT_MAX_NANO: Final = 10**18  # a billion credits; sums of a few of them still fit in 63 bits
# The most that an account can have, and the most that it can be given in its life: the hot path counts to 2^61, SQLite
# and the live sums to 2^63.
BALANCE_MAX_NANO: Final = 2 * 10**18
GRANTED_MAX_NANO: Final = 4 * 10**18

# Soonest-expiring first; of those that expire together (or never), what was paid for last.
SELECT_OPEN_LOTS: Final = """
    SELECT lots.id, account_id, kind, granted_nano, used_nano, remaining_nano, expires_ms, created_ms
    FROM lots JOIN lot_use ON lot_id = lots.id
    WHERE account_id = ? AND is_open = 1
    ORDER BY expires_ms = 0, expires_ms,
        CASE kind WHEN 'subscription' THEN 0 WHEN 'trial' THEN 1 WHEN 'adjustment' THEN 2 ELSE 3 END, lots.id
"""
SELECT_LOTS: Final = """
    SELECT lots.id, account_id, kind, granted_nano, used_nano, remaining_nano, expires_ms, created_ms
    FROM lots JOIN lot_use ON lot_id = lots.id
    WHERE account_id = ?
    ORDER BY expires_ms = 0, expires_ms,
        CASE kind WHEN 'subscription' THEN 0 WHEN 'trial' THEN 1 WHEN 'adjustment' THEN 2 ELSE 3 END, lots.id
"""
SELECT_BALANCE: Final = """
    SELECT coalesce(sum(remaining_nano), 0) FROM lots JOIN lot_use ON lot_id = lots.id
    WHERE account_id = ? AND is_open = 1
"""
SELECT_ENTRY: Final = """
    SELECT id, account_id, kind, amount_nano, call_id, reason, idempotency_key, time_ms FROM entries WHERE id = ?
"""
SELECT_ENTRY_BY_IDEMPOTENCY_KEY: Final = """
    SELECT id, account_id, kind, amount_nano, call_id, reason, idempotency_key, time_ms FROM entries
    WHERE idempotency_key = ?
"""


def lots_of(connection: sqlite3.Connection, account_id: int, *, open_only: bool = True) -> list[LotRow]:
    """In spending order."""
    rows = connection.execute(SELECT_OPEN_LOTS if open_only else SELECT_LOTS, (account_id,))
    return [LotRow(*row) for row in rows]


def balance_of(connection: sqlite3.Connection, account_id: int) -> int:
    """0 for an account that does not exist."""
    (balance_nano,) = connection.execute(SELECT_BALANCE, (account_id,)).fetchone()
    return int(balance_nano)


def snapshot_balance(connection: sqlite3.Connection, account_id: int) -> tuple[int, int]:
    """The balance, and the number of the last group of calls that it contains. Raises NotFound."""
    connection.execute("BEGIN")
    try:
        require_account(connection, account_id)
        (batch,) = connection.execute("SELECT batch FROM store").fetchone()
        return balance_of(connection, account_id), batch
    finally:
        connection.execute("COMMIT")


def entries_of(connection: sqlite3.Connection, account_id: int, after_id: int, limit: int) -> list[EntryRow]:
    rows = connection.execute(
        "SELECT id, account_id, kind, amount_nano, call_id, reason, idempotency_key, time_ms FROM entries"
        " WHERE account_id = ? AND id > ? ORDER BY id LIMIT ?",
        (account_id, after_id, limit),
    )
    return [EntryRow(*row) for row in rows]


def require_account(connection: sqlite3.Connection, account_id: int) -> None:
    if connection.execute("SELECT 1 FROM accounts WHERE id = ?", (account_id,)).fetchone() is None:
        raise NotFound(f"no account {account_id}")


def add_credit(
    connection: sqlite3.Connection,
    account_id: int,
    amount_nano: int,
    kind: LotKind,
    reason: str,
    idempotency_key: str | None,
    expires_ms: int,
    now_ms: int,
) -> CreditResult:
    """Raises NotFound, Conflict (also where the balance would be too large), ValueError (amount, kind or lengths)."""
    if kind not in LOT_KINDS:
        raise ValueError("no such kind of credit")
    _check_arguments(amount_nano, reason, idempotency_key)
    require_account(connection, account_id)
    earlier = _earlier(connection, account_id, amount_nano, kind, reason, idempotency_key)
    if earlier is not None:
        return earlier
    _require_room(connection, account_id, amount_nano)
    entry = _insert_entry(connection, account_id, kind, amount_nano, reason, idempotency_key, now_ms)
    cursor = connection.execute(
        "INSERT INTO lots (account_id, kind, granted_nano, is_open, expires_ms, created_ms) VALUES (?, ?, ?, 1, ?, ?)",
        (account_id, kind, amount_nano, expires_ms, now_ms),
    )
    lot_id = cursor.lastrowid
    connection.execute("INSERT INTO lot_use VALUES (?, 0, ?)", (lot_id, amount_nano))
    connection.execute("INSERT INTO entry_lots VALUES (?, ?, ?)", (entry.id, lot_id, amount_nano))
    return CreditResult(entry, balance_of(connection, account_id), True)


def _require_room(connection: sqlite3.Connection, account_id: int, amount_nano: int) -> None:
    """Before anything is committed: what the hot path cannot count must not get into the ledger."""
    balance_nano = balance_of(connection, account_id)
    if balance_nano + amount_nano > BALANCE_MAX_NANO:
        raise Conflict(
            f"{units.account_text(account_id)} has {units.format_credits(balance_nano)} credits and would have"
            f" {units.format_credits(balance_nano + amount_nano)}: expected at most"
            f" {units.format_credits(BALANCE_MAX_NANO)}"
        )
    (granted_nano,) = connection.execute(
        "SELECT coalesce(sum(granted_nano), 0) FROM lots WHERE account_id = ?", (account_id,)
    ).fetchone()
    if granted_nano + amount_nano > GRANTED_MAX_NANO:
        raise Conflict(
            f"{units.account_text(account_id)} was given {units.format_credits(granted_nano)} credits in all: expected"
            f" at most {units.format_credits(GRANTED_MAX_NANO)} with these. Make another account"
        )


def take_credit(
    connection: sqlite3.Connection,
    account_id: int,
    amount_nano: int,
    kind: EntryKind,
    reason: str,
    lot_kinds: Sequence[LotKind] | None,
    idempotency_key: str | None,
    now_ms: int,
) -> CreditResult:
    """Raises NotFound, Conflict, InsufficientCredit, ValueError (amount, kind or lengths)."""
    if kind not in ("refund", "expiry", "forfeit", "adjustment"):
        raise ValueError("no such kind of entry")
    _check_arguments(amount_nano, reason, idempotency_key)
    require_account(connection, account_id)
    earlier = _earlier(connection, account_id, -amount_nano, kind, reason, idempotency_key)
    if earlier is not None:
        return earlier
    lots = [lot for lot in lots_of(connection, account_id) if lot_kinds is None or lot.kind in lot_kinds]
    available_nano = sum(lot.remaining_nano for lot in lots)
    if available_nano < amount_nano:
        kinds = "" if lot_kinds is None else f"{' or '.join(lot_kinds)} "
        left = units.format_credits(available_nano)
        raise InsufficientCredit(
            f"{units.account_text(account_id)} has {left} unused {kinds}credits, less than that", available_nano
        )
    entry = _insert_entry(connection, account_id, kind, -amount_nano, reason, idempotency_key, now_ms)
    left_nano = amount_nano
    for lot in lots:
        taken_nano = min(left_nano, lot.remaining_nano)
        if taken_nano:
            _take_from_lot(connection, entry.id, lot, taken_nano)
            left_nano -= taken_nano
    return CreditResult(entry, balance_of(connection, account_id), True)


def due_lots(connection: sqlite3.Connection, due_ms: int, after_account_id: int, limit: int) -> list[DueRow]:
    """Accounts with lots whose time is up, in the order of their ids."""
    rows = connection.execute(
        """
        SELECT account_id, sum(remaining_nano), count(*) FROM lots JOIN lot_use ON lot_id = lots.id
        WHERE is_open = 1 AND expires_ms > 0 AND expires_ms <= ? AND account_id > ?
        GROUP BY account_id ORDER BY account_id LIMIT ?
        """,
        (due_ms, after_account_id, limit),
    )
    return [DueRow(*row) for row in rows]


def expire_lots(
    connection: sqlite3.Connection, most_nano: Mapping[int, int], due_ms: int, lots_max: int, now_ms: int
) -> list[EntryRow]:
    """One `expiry` entry per lot whose time is up, for at most so much of each account: the rest is held by open calls.
    Ends after so many lots.
    """
    entries: list[EntryRow] = []
    for account_id, left_nano in most_nano.items():
        for lot in lots_of(connection, account_id) if left_nano else ():
            if len(entries) == lots_max:
                return entries
            spare_nano = min(lot.remaining_nano, left_nano)
            if not 0 < lot.expires_ms <= due_ms or spare_nano <= 0:
                break  # in the order of their expiry, those without one last
            entry = _insert_entry(connection, account_id, "expiry", -spare_nano, "", None, now_ms)
            _take_from_lot(connection, entry.id, lot, spare_nano)
            left_nano -= spare_nano
            entries.append(entry)
    return entries


def _check_arguments(amount_nano: int, reason: str, idempotency_key: str | None) -> None:
    if not 0 < amount_nano <= AMOUNT_MAX_NANO:
        raise ValueError("the amount must be above zero and at most a billion credits")
    if len(reason) > REASON_LENGTH_MAX:
        raise ValueError(f"the reason is longer than {REASON_LENGTH_MAX} characters")
    if idempotency_key is not None and not 0 < len(idempotency_key) <= IDEMPOTENCY_KEY_LENGTH_MAX:
        raise ValueError(f"an idempotency key has 1 to {IDEMPOTENCY_KEY_LENGTH_MAX} characters")


def _earlier(
    connection: sqlite3.Connection,
    account_id: int,
    amount_nano: int,
    kind: EntryKind,
    reason: str,
    idempotency_key: str | None,
) -> CreditResult | None:
    """The result of an earlier, equal request with this idempotency key.

    The expiry is not compared: callers reckon it from the time of the request, so a repeat would differ.
    """
    if idempotency_key is None:
        return None
    row = connection.execute(SELECT_ENTRY_BY_IDEMPOTENCY_KEY, (idempotency_key,)).fetchone()
    if row is None:
        return None
    entry = EntryRow(*row)
    if (entry.account_id, entry.amount_nano, entry.kind, entry.reason) != (account_id, amount_nano, kind, reason):
        raise Conflict("this idempotency key was used before with other parameters")
    return CreditResult(entry, balance_of(connection, account_id), False)


def _insert_entry(
    connection: sqlite3.Connection,
    account_id: int,
    kind: EntryKind,
    amount_nano: int,
    reason: str,
    idempotency_key: str | None,
    now_ms: int,
) -> EntryRow:
    cursor = connection.execute(
        "INSERT INTO entries (account_id, kind, amount_nano, call_id, reason, idempotency_key, time_ms)"
        " VALUES (?, ?, ?, 0, ?, ?, ?)",
        (account_id, kind, amount_nano, reason, idempotency_key, now_ms),
    )
    return EntryRow(*connection.execute(SELECT_ENTRY, (cursor.lastrowid,)).fetchone())


def _take_from_lot(connection: sqlite3.Connection, entry_id: int, lot: LotRow, taken_nano: int) -> None:
    remaining_nano = lot.remaining_nano - taken_nano
    connection.execute("INSERT INTO entry_lots VALUES (?, ?, ?)", (entry_id, lot.id, -taken_nano))
    connection.execute("UPDATE lot_use SET remaining_nano = ? WHERE lot_id = ?", (remaining_nano, lot.id))
    if remaining_nano == 0:
        connection.execute("UPDATE lots SET is_open = 0 WHERE id = ?", (lot.id,))
