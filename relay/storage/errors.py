"""What the store raises. No message contains a value that came with a request.

StoreError
├── StoreLocked            another process has the data directory
├── StoreUnusable          the file is damaged, is not ours, or is newer than this program; it was left untouched
├── StoreUnavailable       cannot be written or read just now (disk full, locked by another program, closed)
├── StoreFailed            an input/output error or damage while running: nothing more is written, the process
must end ├── NotFound               no such account, key, lot ... ├── Conflict               exists already;
idempotency key used with other parameters; change of an immutable row └── InsufficientCredit     more was to be
taken than is there
"""


class StoreError(Exception):
    """Anything the store refuses or fails to do."""


class StoreLocked(StoreError):  # noqa: N818 - a state, not a fault
    """Another process holds the lock of the data directory; `pid` is its process id if it left one (0: unknown)."""

    def __init__(self, message: str, pid: int = 0) -> None:
        super().__init__(message)
        self.pid = pid


class StoreUnusable(StoreError):  # noqa: N818
    """The database file is damaged, another program's, or written by a newer relay. Nothing was changed."""


class StoreUnavailable(StoreError):  # noqa: N818
    """Not possible now: disk full, locked by another program, or the store is closed. A later attempt may succeed."""


class StoreFailed(StoreError):  # noqa: N818
    """An input/output error, a failed fsync, or damage found while running. Final: what is on the disk is unknown."""


class NotFound(StoreError):  # noqa: N818
    """The row asked for does not exist."""


class Conflict(StoreError):  # noqa: N818
    """It exists already, or an idempotency key was used before with other parameters."""


class InsufficientCredit(StoreError):  # noqa: N818
    """More credit was to be taken than there is; `available_nano` is what is there."""

    def __init__(self, message: str, available_nano: int) -> None:
        super().__init__(message)
        self.available_nano = available_nano
