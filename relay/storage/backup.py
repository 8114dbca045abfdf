"""A consistent copy of a live database in one file."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from relay.storage.database import open_reader, translate
from relay.storage.errors import StoreError, StoreUnavailable


def backup(database: Path, target: Path) -> int:
    """Copy through a connection and a snapshot of its own: the writer goes on. Blocks; returns the size in bytes.

    The copy appears under its name only when it is complete and on the disk. Raises StoreError, StoreUnavailable.
    """
    if target.exists():
        raise StoreError(f"{target} exists")
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600)
        source = open_reader(database)
        try:
            copy = sqlite3.connect(partial, isolation_level=None)
            try:
                # All pages in one step: in several, every commit of the writer would start the copy again.
                source.backup(copy, pages=-1)
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, no WAL beside it
                if copy.execute("PRAGMA quick_check(entries)").fetchone() != ("ok",):
                    raise StoreError(f"{target}: the copy is damaged")
            finally:
                copy.close()
        finally:
            source.close()
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.link(partial, target)  # fails where rename would overwrite
        return target.stat().st_size
    except sqlite3.Error as error:
        raise translate(error) from error
    except FileExistsError:
        raise StoreError(f"{target} exists") from None
    except OSError as error:
        raise StoreUnavailable(f"{target}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
