"""SQL with many rows per statement, made once from fixed texts.

One statement for 64 rows instead of one each: Python's sqlite3 gives up and takes back the interpreter lock around
every step, and each time a busy event loop can keep it for milliseconds. A statement of 64 rows takes about 0.1 ms;
behind each the writer may pause (see groupcommit.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Final

# Sizes of the statements: a batch is cut into as many of the largest as fit, then of the next.
ROWS_PER_STATEMENT: Final = (64, 8, 1)


class ManyRows:
    """`INSERT INTO x VALUES` / `REPLACE INTO x VALUES` for any number of rows of `columns` values each."""

    def __init__(self, head: str, columns: int, tail: str = "", row: str = "") -> None:
        """row: the text of one row, with as many question marks as `columns`; by default nothing but these."""
        row = row or "(" + ",".join("?" * columns) + ")"
        assert row.count("?") == columns
        self._columns = columns
        self._texts = tuple((rows, " ".join((head, ",".join([row] * rows), tail))) for rows in ROWS_PER_STATEMENT)

    def run(self, connection: sqlite3.Connection, values: list[Any], pause: Callable[[], None]) -> None:
        """All rows' values, one behind the other. pause: called behind every statement of the largest size."""
        start, end = 0, len(values)
        for rows, text in self._texts:
            size = rows * self._columns
            while end - start >= size:
                connection.execute(text, values[start : start + size])
                start += size
                if rows == ROWS_PER_STATEMENT[0]:
                    pause()
