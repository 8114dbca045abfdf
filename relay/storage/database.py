"""Opening the database file, and the threads that work on it.

There is one connection that writes and checkpoints, with its own thread, and nothing else in any process may do either
while the data directory is locked: SQLite before 3.51.3 can corrupt a WAL database when two connections checkpoint or
write at once. Readers are opened read-only.

Checkpoints are asked for and never left to SQLite: its automatic ones swallow errors, and a failed fsync that goes
unseen is lost data (the next fsync reports success).
"""

from __future__ import annotations

import asyncio
import ctypes
import sqlite3
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Final, TypeVar

import aiosqlite

from relay.storage.errors import StoreError, StoreFailed, StoreUnavailable, StoreUnusable
from relay.storage.ownership import adopt
from relay.storage.pages import check as check_pages
from relay.storage.schema import migrate, schema_version_latest

T = TypeVar("T")
Connection = sqlite3.Connection

APPLICATION_ID: Final = 0x52454C59  # "RELY"
BUSY_TIMEOUT_SECONDS: Final = 5.0
# All tables are checked for damage at every start, those with money first, for no longer than this.
CHECK_SECONDS: Final = 0.3
HEADER_BYTES: Final = 100

_UNAVAILABLE: Final = frozenset({"SQLITE_FULL", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN", "SQLITE_READONLY"})


def translate(error: sqlite3.Error) -> StoreError:
    """What an error of SQLite means for the store. Messages of SQLite name tables and columns, never values."""
    name = getattr(error, "sqlite_errorname", "") or "SQLITE_ERROR"
    # The index file of the WAL could not grow: a full disk says this, too.
    if name == "SQLITE_IOERR_SHMSIZE" or "_".join(name.split("_")[:2]) in _UNAVAILABLE:
        return StoreUnavailable(f"the database cannot be used now: {error} ({name})")
    if name.startswith(("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreFailed(f"the database failed: {error} ({name})")
    return StoreError(f"the database refused: {error} ({name})")


class Worker:
    """One connection and the thread that alone uses it. Jobs run one after the other, in the order in which they
    come.
    """

    def __init__(self, connection: aiosqlite.Connection, raw: sqlite3.Connection) -> None:
        self._connection = connection
        self._raw = raw

    @classmethod
    async def start(cls, connect: Callable[[], sqlite3.Connection]) -> Worker:
        """Open a connection in a new thread; raises what `connect` raises."""
        opened: list[sqlite3.Connection] = []

        def connector() -> sqlite3.Connection:
            opened.append(connect())
            return opened[0]

        connection = aiosqlite.Connection(connector, iter_chunk_size=64)
        # A daemon: after a fatal error the connection must not be closed (closing checkpoints), and the process must
        # end.
        thread: Thread = connection._thread
        thread.daemon = True
        try:
            await connection
        except BaseException:
            # Its thread ends by itself, but reports that to this event loop, which must still be there.
            while thread.is_alive():  # noqa: ASYNC110 - a thread, not a task
                await asyncio.sleep(0.001)
            raise
        return cls(connection, opened[0])

    async def run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job in the thread. Raises StoreError for whatever SQLite raises; a cancelled caller does not stop the
        job.

        A whole transaction is one job: aiosqlite's own methods would cross threads once per statement. The job is
        wrapped in a function without arguments because aiosqlite logs (at debug level) the repr of what it is given.
        """
        raw = self._raw

        def call() -> T:
            return job(raw)

        try:
            return await self._connection._execute(call)  # type: ignore[no-untyped-call, no-any-return]
        except sqlite3.Error as error:
            raise translate(error) from error
        except ValueError as error:
            if str(error) == "Connection closed":
                raise StoreUnavailable("the store is closed") from None
            raise

    def abandon(self) -> None:
        """Leave the connection open for ever, also past the end of the interpreter.

        Closing the last connection checkpoints: it would copy into the database, with an fsync that reports success,
        what a failed fsync may have lost. The next start recovers from what is on the disk instead.
        """
        for kept in (self._connection, self._raw):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))

    async def close(self) -> None:
        """Let queued jobs finish, close the connection, end the thread."""
        await self._connection.close()


def transaction(connection: sqlite3.Connection, job: Callable[[sqlite3.Connection], T]) -> T:
    """Run a job in a transaction of its own; whatever it raises undoes everything."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = job(connection)
        connection.execute("COMMIT")
    except BaseException:
        # A full disk may have ended the transaction already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write. The writer must be open (it may have to recover the file first)."""
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=ro", uri=True, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None
    )
    connection.execute("PRAGMA query_only = 1")
    connection.execute("PRAGMA mmap_size = 0")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -8000")
    return connection


def open_writer(path: Path) -> sqlite3.Connection:
    """Check the file, create it if there is none, bring its schema up to date, and open the one writing connection.

    Raises StoreUnusable (file untouched), StoreUnavailable.
    """
    try:
        if path.exists() and path.stat().st_size > 0:
            _check(path)
        else:
            _create(path)
        connection = _connect(path)
    except sqlite3.Error as error:
        raise translate(error) from error
    try:
        if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise StoreUnavailable("the file system does not support write-ahead logging (a network share?)")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA synchronous = NORMAL")
        migrate(connection)
        connection.execute("PRAGMA foreign_keys = 1")
    except sqlite3.Error as error:
        connection.close()
        raise translate(error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None, cached_statements=256)
    connection.execute("PRAGMA mmap_size = 0")  # a page that cannot be read must be an error, not a SIGBUS
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA cache_size = -32000")
    connection.execute("PRAGMA trusted_schema = 0")
    # Only what retention deletes must be overwritten (see calls.delete_before); it is switched on there.
    connection.execute("PRAGMA secure_delete = 0")
    return connection


def _create(path: Path) -> None:
    """Make the database under another name and rename it: there is never a half-made one."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    adopt(new, path.parent)
    connection = _connect(new)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        migrate(connection)
    finally:
        connection.close()
    new.rename(path)


def _check(path: Path) -> None:
    """Refuse a file that is not ours, newer than this program, or damaged, before anything could write to it.

    The header is looked at first and without SQLite, so that another program's file is not even opened as a database.
    """
    wal = path.with_name(path.name + "-wal")
    has_wal = wal.exists() and wal.stat().st_size > 0
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(b"SQLite format 3\0"):
        raise StoreUnusable(f"{path}: not a database, or its first page is damaged")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise StoreUnusable(f"{path}: a database of another program, or its first page is damaged")
    page_bytes = int.from_bytes(header[16:18], "big")
    page_bytes = 65536 if page_bytes == 1 else page_bytes
    pages = int.from_bytes(header[28:32], "big")
    if header[24:28] == header[92:96] and not has_wal and pages * page_bytes > size_bytes:
        raise StoreUnusable(f"{path}: damaged: {size_bytes} bytes long, should be {pages * page_bytes}")

    # With a WAL the truth may be in there; without one, `immutable` keeps SQLite from making any file.
    uri = path.absolute().as_uri() + ("?mode=ro" if has_wal else "?immutable=1")
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA mmap_size = 0")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        latest = schema_version_latest()
        if version > latest:
            raise StoreUnusable(f"{path}: written by a newer relay (schema {version}, this one knows {latest})")
        connection.execute("SELECT plan FROM accounts LIMIT 1").fetchone()
        connection.execute("SELECT name FROM keys LIMIT 1").fetchone()
        connection.execute("SELECT last4 FROM credentials LIMIT 1").fetchone()
        connection.execute("SELECT id FROM calls ORDER BY id DESC LIMIT 1").fetchone()
        damaged, _ = check_pages(connection, CHECK_SECONDS, whole=False)
        if damaged:
            names = ", ".join(row.subject for row in damaged)
            raise StoreUnusable(f"{path}: damaged: SQLite's check refuses {names}. Put the file back from a backup")
    except sqlite3.Error as error:
        reason = translate(error)
        if isinstance(reason, StoreUnavailable):
            raise reason from error
        raise StoreUnusable(f"{path}: damaged: {error}") from error
    finally:
        connection.close()
