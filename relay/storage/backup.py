"""A consistent copy of a live database in one file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Final

from relay.storage.database import open_reader, translate
from relay.storage.errors import StoreError, StoreUnavailable

# A copy that is not complete. Nobody else's file has such a name; the file is locked while somebody writes to it.
PREFIX: Final = ".relay-backup-"
SUFFIX: Final = ".partial"


def backup(database: Path, target: Path) -> int:
    """Copy through a connection and a snapshot of its own: the writer goes on. Blocks; returns the size in bytes.

    The copy appears under its name only when it is complete and on the disk. What a killed backup left in that folder
    is removed. Raises StoreError, StoreUnavailable.
    """
    if target.exists():
        raise StoreError(f"{target} exists")
    partial = target.with_name(f"{PREFIX}{target.name}{SUFFIX}")
    descriptor = -1
    try:
        remove_left_over(target.parent)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
        os.fsync(descriptor)
        os.link(partial, target)  # fails where rename would overwrite
        return target.stat().st_size
    except sqlite3.Error as error:
        raise translate(error) from error
    except FileExistsError:
        raise StoreError(f"{target} exists, or is being written") from None
    except OSError as error:
        raise StoreUnavailable(f"{target}: {error.strerror}") from error
    finally:
        if descriptor >= 0:
            partial.unlink(missing_ok=True)
            os.close(descriptor)


def remove_left_over(folder: Path) -> None:
    """Copies that a killed backup left there: whole databases, under names that nobody looks for."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)
