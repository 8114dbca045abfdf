"""The access log: a line of JSON per ended call, the call record's fields and nothing else."""

from __future__ import annotations

import os

import orjson

from relay.observe.call_document import call_document
from relay.records import CallRecord

STDERR = "stderr"


class AccessLog:
    """A `Sink`. `target`: a path, or "stderr". Raises OSError where the file cannot be opened."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._descriptor = -1
        self._open()

    def _open(self) -> None:
        if self.target == STDERR:
            self._descriptor = 2
        else:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self.target, flags, 0o640)

    def write(self, records: list[CallRecord]) -> None:
        """Whole lines, at the end of the file."""
        if self._descriptor < 0:
            self._open()
        data = memoryview(b"".join(orjson.dumps(call_document(record)) + b"\n" for record in records))
        while data:
            data = data[os.write(self._descriptor, data) :]

    def reopen(self) -> None:
        """Follows a rotation: what stands under the name from now on is written to."""
        self.close()
        self._open()

    def close(self) -> None:
        if self._descriptor > 2:
            os.close(self._descriptor)
        self._descriptor = -1
