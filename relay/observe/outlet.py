"""Call records for somebody beside the store, written by a thread of its own: what is slow there delays no call.

The queue is bounded. Where a disk or a collector does not keep up, records are dropped and counted; calls and their
charges know nothing of it, and the store still has every record.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Final, Protocol

from relay import quiet
from relay.records import CallRecord

log = logging.getLogger("relay.observe")

RECORDS_MAX: Final = 20_000  # that wait; about 20 MB
BATCH_MAX: Final = 500
CLOSE_SECONDS: Final = 2.0


class Sink(Protocol):
    """Where records go. Its methods belong to the outlet's thread."""

    def write(self, records: list[CallRecord]) -> None:
        """Writes them all. An exception drops them."""

    def reopen(self) -> None:
        """Begins anew: the file may have been moved away."""

    def close(self) -> None:
        """Nothing comes any more."""


class Outlet:
    """A queue and its thread. `put` and the rest belong to the event loop."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name = name
        self.dropped = 0
        self._sink = sink
        self._batches: deque[list[CallRecord]] = deque()
        self._waiting = 0  # records in the batches
        self._reopen = self._closed = self._failing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"relay-{name}", daemon=True)
        self._thread.start()

    def put(self, records: list[CallRecord]) -> None:
        """Takes records; never waits. Beyond RECORDS_MAX they are dropped."""
        with self._changed:
            room = RECORDS_MAX - self._waiting
            if len(records) > room:
                self.dropped += len(records) - room
            taken = records[:room]
            if taken:
                self._batches.append(taken)
                self._waiting += len(taken)
                self._changed.notify()

    def reopen(self) -> None:
        """Before the next record, the sink begins anew."""
        with self._changed:
            self._reopen = True
            self._changed.notify()

    def finish(self) -> None:
        """No record comes any more; what waits is still written."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self, seconds: float = CLOSE_SECONDS) -> None:
        """Waits for the thread to end, not for ever: a disk that hangs must not keep the relay from stopping."""
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._batches or self._reopen or self._closed):
                    self._changed.wait()
                reopen, self._reopen = self._reopen, False
                batch: list[CallRecord] = []
                while self._batches and len(batch) < BATCH_MAX:
                    batch += self._batches.popleft()
                ended = self._closed and not batch
            if reopen:
                self._guarded(self._sink.reopen, 0)
            if batch:
                self._guarded(lambda batch=batch: self._sink.write(batch), len(batch))
                with self._changed:
                    self._waiting -= len(batch)
            if ended:
                self._guarded(self._sink.close, 0)
                return

    def _guarded(self, act: object, records: int) -> None:
        try:
            act()  # type: ignore[operator]
        except Exception as error:
            with self._changed:
                self.dropped += records
            if not self._failing:  # told once, until it works again
                log.warning("%s cannot be written (%s)", self.name, quiet.describe(error))
            self._failing = True
            time.sleep(0.1)
        else:
            if records:
                self._failing = False
