"""A chain of digests over entries, lots and the shapes of calls: what is only ever added cannot be changed unseen.

Each transaction that adds to them adds a seal, in the same transaction: SHA-256 of the seal before it and of the rows.
Most groups of calls add nothing to them, so calls cost nothing here. `relay ledger verify` computes the chain again.

Whoever can write to the file can also compute a new chain: the newest seal, noted elsewhere, is what tells that.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final

from relay.storage.rows import Difference

FIRST: Final = bytes(32)  # what the first seal goes on from
DIFFERENCES_MAX: Final = 1000

SELECT_ENTRIES: Final = """
    SELECT id, account_id, kind, amount_nano, call_id, reason, idempotency_key, time_ms FROM entries
    WHERE id >= ? ORDER BY id
"""
SELECT_MOVES: Final = """
    SELECT entry_id, lot_id, amount_nano FROM entry_lots WHERE entry_id >= ? ORDER BY entry_id, lot_id
"""
SELECT_LOTS: Final = """
    SELECT id, account_id, kind, granted_nano, expires_ms, created_ms FROM lots WHERE id >= ? ORDER BY id
"""
SELECT_SHAPES: Final = "SELECT * FROM shapes WHERE id >= ? ORDER BY id"
SELECT_LAST: Final = "SELECT entries_to, lots_to, shapes_to, digest FROM seals ORDER BY id DESC LIMIT 1"
SELECT_ENDS: Final = """
    SELECT (SELECT coalesce(max(id), 0) FROM entries), (SELECT coalesce(max(id), 0) FROM lots),
        (SELECT coalesce(max(id), 0) FROM shapes)
"""
SELECT_SEALS: Final = """
    SELECT id, entries_from, entries_to, lots_from, lots_to, shapes_from, shapes_to, digest FROM seals ORDER BY id
"""


def first_seal(connection: sqlite3.Connection) -> None:
    """Schema 8: seals what an older version wrote, and commits the migration."""
    _add_seal(connection, (0, 0, 0), FIRST)
    connection.execute("COMMIT")


class Sealer:
    """Belongs to the writer's thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        # Rows that have no seal now were not added by a relay: they never get one, and `verify` names them.
        self._ends: tuple[int, int, int] = connection.execute(SELECT_ENDS).fetchone()

    def seal(self) -> None:
        """Within the transaction that has added rows, at its end."""
        last = self._connection.execute(SELECT_LAST).fetchone()
        *ends, digest = last if last is not None else (0, 0, 0, FIRST)
        highest = tuple(max(pair) for pair in zip(ends, self._ends, strict=True))
        _add_seal(self._connection, highest, digest)


def _add_seal(connection: sqlite3.Connection, ends: Sequence[int], before: bytes) -> None:
    starts = [end + 1 for end in ends]
    digest = hashlib.sha256(before)
    new_ends = [
        _take(digest, connection.execute(SELECT_ENTRIES, (starts[0],)), ends[0]),
        _take(digest, connection.execute(SELECT_LOTS, (starts[1],)), ends[1]),
        _take(digest, connection.execute(SELECT_SHAPES, (starts[2],)), ends[2]),
    ]
    _take(digest, connection.execute(SELECT_MOVES, (starts[0],)), 0)
    if before == FIRST or new_ends != list(ends):
        ranges = [bound for pair in zip(starts, new_ends, strict=True) for bound in pair]
        connection.execute(
            "INSERT INTO seals (entries_from, entries_to, lots_from, lots_to, shapes_from, shapes_to, digest)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*ranges, digest.digest()),
        )


def _take(digest: Any, rows: Iterator[Any], end: int) -> int:
    for row in rows:
        digest.update(_text(row))
        end = row[0]
    return end


def _text(row: Sequence[Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


class _Rows:
    """One of the tables, read on from range to range."""

    def __init__(self, rows: Iterator[Any], name: str) -> None:
        self._rows = rows
        self._next = next(self._rows, None)
        self._name = name

    def until(self, end: int) -> Iterator[Any]:
        while self._next is not None and self._next[0] <= end:
            yield self._next
            self._next = next(self._rows, None)

    def unsealed(self, end: int) -> Iterator[Difference]:
        for row in self.until(end):
            account_id = 0 if self._name == "shape" else row[1]
            yield Difference("unsealed", account_id, f"{self._name}_{row[0]}", 1, 0)


def check(connection: sqlite3.Connection) -> list[Difference]:
    """Computes the chain again. Each seal goes on from the stored one before it: only what was changed shows."""
    everything = (-(2**63),)
    entries = _Rows(connection.execute(SELECT_ENTRIES, everything), "entry")
    lots = _Rows(connection.execute(SELECT_LOTS, everything), "lot")
    shapes = _Rows(connection.execute(SELECT_SHAPES, everything), "shape")
    moves = _Rows(connection.execute(SELECT_MOVES, everything), "entry")
    tables = (entries, lots, shapes)
    differences: list[Difference] = []
    before, number = FIRST, 0
    for seal_id, *ranges, digest in connection.execute(SELECT_SEALS):
        number += 1
        if seal_id != number:
            differences.append(Difference("seal", 0, f"seal {number}", 1, 0))
            number = seal_id
        starts, ends = ranges[::2], ranges[1::2]
        for table, start in zip(tables, starts, strict=True):
            differences += table.unsealed(start - 1)
        list(moves.until(starts[0] - 1))
        computed = hashlib.sha256(before)
        for table, end in zip((*tables, moves), (*ends, ends[0]), strict=True):
            for row in table.until(end):
                computed.update(_text(row))
        if computed.digest() != digest:
            named = zip(("entry", "lot", "shape"), starts, ends, strict=True)
            subject = ", ".join(_span(name, start, end) for name, start, end in named if start <= end)
            differences.append(Difference("seal", 0, subject or f"seal {seal_id}", 1, 0))
        before = digest
    for table in tables:
        differences += table.unsealed(2**63 - 1)
    if number == 0:
        differences.append(Difference("seal", 0, "seal 1", 1, 0))
    return differences[:DIFFERENCES_MAX]


def _span(name: str, start: int, end: int) -> str:
    return f"{name}_{start}" if start == end else f"{name}_{start} to {name}_{end}"


def newest(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """The number and digest of the last seal."""
    row = connection.execute("SELECT id, digest FROM seals ORDER BY id DESC LIMIT 1").fetchone()
    return (0, FIRST) if row is None else row
