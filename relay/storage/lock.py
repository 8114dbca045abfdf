"""The exclusive lock of a data directory: one process at a time, server or command line."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from relay.storage.errors import StoreLocked, StoreUnavailable
from relay.storage.ownership import adopt

NAME: Final = "lock"


class DirectoryLock:
    """A lock on the file `lock`, held by the kernel until this object is released or the process ends, however it ends.

    The process id written into the file is a hint for people; it has no part in the locking.
    """

    def __init__(self, data_dir: Path) -> None:
        """Take the lock; the directory is made if it is not there. Raises StoreLocked, StoreUnavailable."""
        path = data_dir / NAME
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            adopt(descriptor, data_dir)
        except OSError as error:
            raise StoreUnavailable(f"{path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(descriptor, 20).decode("ascii", "replace").strip()
            os.close(descriptor)
            pid = int(text) if text.isdigit() else 0
            owner = f"process {pid}" if pid else "another process"
            raise StoreLocked(f"{data_dir} is in use by {owner}", pid) from None
        except OSError as error:
            os.close(descriptor)
            raise StoreUnavailable(f"{path}: {error.strerror}") from error
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its hint
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; once more does nothing."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1
