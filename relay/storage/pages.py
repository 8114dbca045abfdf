"""Damage below SQL: pages that SQLite cannot read or that contradict each other, and a schema that is not ours."""

from __future__ import annotations

import functools
import sqlite3
import time
from typing import Final

from relay.storage.rows import Difference
from relay.storage.schema import migrate

# Those that grow with every call last: a check that runs out of time has seen the money.
LARGE_TABLES: Final = ("folded", "rollups", "events", "call_details", "calls")
STEPS: Final = 20_000  # of SQLite's machine between two looks at the clock
CHECK: Final = "SELECT * FROM pragma_integrity_check(?)"
QUICK_CHECK: Final = "SELECT * FROM pragma_quick_check(?)"
SELECT_TABLES: Final = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
SELECT_SCHEMA: Final = """
    SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name
"""


def check(connection: sqlite3.Connection, seconds: float, *, whole: bool) -> tuple[list[Difference], list[str]]:
    """Damaged tables (with their indexes), and the tables that there was no time for.

    whole: also that indexes have what their tables have.
    """
    found = [row[0] for row in connection.execute(SELECT_TABLES)]
    tables = sorted(found, key=lambda name: (LARGE_TABLES.index(name) if name in LARGE_TABLES else -1, name))
    deadline = time.monotonic() + seconds
    damaged: list[Difference] = []
    left = list(tables)
    connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
    try:
        for name in tables:
            problems = None if time.monotonic() > deadline else _problems(connection, name, whole=whole)
            if problems is None:
                break
            left.remove(name)
            if problems:
                damaged.append(Difference("damage", 0, f"table {name}", 1, 0))
    finally:
        connection.set_progress_handler(None, 0)
    return damaged, left


def _problems(connection: sqlite3.Connection, table: str, *, whole: bool) -> bool | None:
    """Whether there are any; None: no time is left."""
    try:
        row = connection.execute(CHECK if whole else QUICK_CHECK, (table,)).fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname == "SQLITE_INTERRUPT":
            return None
        raise
    except sqlite3.DatabaseError:
        return True
    return bool(row != ("ok",))


def check_schema(connection: sqlite3.Connection) -> list[Difference]:
    """Tables, indexes and triggers that are missing, other than they should be, or not ours."""
    found = {(kind, name): sql for kind, name, sql in connection.execute(SELECT_SCHEMA)}
    expected = _expected_schema()
    return [
        Difference("schema", 0, f"{kind} {name}", int((kind, name) in expected), int((kind, name) in found))
        for kind, name in sorted(found.keys() | expected.keys())
        if found.get((kind, name)) != expected.get((kind, name))
    ]


@functools.cache
def _expected_schema() -> dict[tuple[str, str], str | None]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate(connection)
        return {(kind, name): sql for kind, name, sql in connection.execute(SELECT_SCHEMA)}
    finally:
        connection.close()
