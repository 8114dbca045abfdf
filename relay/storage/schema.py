"""The schema: migrations, each run once and whole."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from relay.storage import seals

MIGRATIONS: Final = Path(__file__).parent / "migrations"
# What SQL cannot do, by the number of the migration that it belongs to: in its transaction, which it commits.
STEPS: Final[dict[int, Callable[[sqlite3.Connection], None]]] = {8: seals.first_seal}


def schema_version_latest() -> int:
    """The number of the last migration."""
    return max(int(path.name[:4]) for path in MIGRATIONS.glob("*.sql"))


def migrate(connection: sqlite3.Connection) -> None:
    """Run the migrations that this file has not had. Each is one transaction and sets user_version itself."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for path in sorted(MIGRATIONS.glob("*.sql")):
        number = int(path.name[:4])
        if number > version:
            try:
                connection.executescript(path.read_text(encoding="utf-8"))
                if number in STEPS:
                    STEPS[number](connection)
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
