"""`relay`, killed at an aimed point: python -m tests.faults.launcher POINT PASS MARKER WORDS...

Wraps the function at the point, and sends SIGKILL to this very process at the PASS-th time that it is passed with
something to lose. Just before, the name of the point is written to the file MARKER. The product knows nothing of it.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from relay import app, cli
from relay.storage import batch, journal, store

# Only passed where the process before was killed as well. The others count once the relay listens.
IN_RECOVERY = ("while recovering", "before unlinking")


class Trigger:
    """Counts the passes of one point."""

    def __init__(self, point: str, wanted: int, marker: str) -> None:
        self.point = point
        self.wanted = wanted
        self.marker = marker
        self.armed = point in IN_RECOVERY

    def passed(self) -> None:
        self.wanted -= self.armed
        if self.armed and self.wanted == 0:
            descriptor = os.open(self.marker, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(descriptor, self.point.encode())
            os.close(descriptor)
            os.kill(os.getpid(), signal.SIGKILL)


def before_handing_over(trigger: Trigger) -> None:
    """Calls have ended; their records are in the engine only."""
    original = app.Relay._hand_over_records

    def wrapped(self: app.Relay) -> None:
        if self.engine.records:
            trigger.passed()
        original(self)

    app.Relay._hand_over_records = wrapped  # type: ignore[method-assign]


def mid_stream(trigger: Trigger) -> None:
    """At least one stream has delivered something and goes on."""
    original = app.Relay._hand_over_records

    def wrapped(self: app.Relay) -> None:
        opened = self.engine.journal.left_over() if self.engine.journal else []
        if any(not slot["ended"] and slot["stream"] and slot["output_tokens"] for slot in opened):
            trigger.passed()
        original(self)

    app.Relay._hand_over_records = wrapped  # type: ignore[method-assign]


def before_commit(trigger: Trigger) -> None:
    """A group of records is about to be written."""
    original = batch.BatchWriter.commit

    def wrapped(self: batch.BatchWriter, calls: Any, *rest: Any, **named: Any) -> int:
        if calls:
            trigger.passed()
        return original(self, calls, *rest, **named)

    batch.BatchWriter.commit = wrapped  # type: ignore[method-assign]


def inside_commit(trigger: Trigger) -> None:
    """A group's rows are written, but their transaction is open."""
    original = batch.BatchWriter._write

    def wrapped(self: batch.BatchWriter, calls: Any, *rest: Any) -> int:
        count = original(self, calls, *rest)
        if calls:
            trigger.passed()
        return count

    batch.BatchWriter._write = wrapped  # type: ignore[method-assign]


def before_freeing(trigger: Trigger) -> None:
    """A group is committed; no slot of the journal is free yet."""
    original = batch.BatchWriter.commit

    def wrapped(self: batch.BatchWriter, calls: Any, *rest: Any, **named: Any) -> int:
        count = original(self, calls, *rest, **named)
        if calls:
            trigger.passed()
        return count

    batch.BatchWriter.commit = wrapped  # type: ignore[method-assign]


def while_freeing(trigger: Trigger) -> None:
    """A group is committed, and half of its slots are free."""
    original = store.Store.on_committed

    def wrapped(self: store.Store, callback: Callable[[Any], None]) -> None:
        def in_halves(records: Any) -> None:
            callback(records[: len(records) // 2])
            trigger.passed()
            callback(records[len(records) // 2 :])

        original(self, in_halves)

    store.Store.on_committed = wrapped  # type: ignore[method-assign]


def while_recovering(trigger: Trigger) -> None:
    """What a dead process left is being settled: PASS 1 before any of it, PASS 2 between ended calls and open ones."""
    original = store.Store.settle_recovered

    async def wrapped(self: store.Store, records: Any) -> int:
        trigger.passed()
        return await original(self, records)

    store.Store.settle_recovered = wrapped  # type: ignore[method-assign]


def before_unlinking(trigger: Trigger) -> None:
    """Everything of a dead process is settled, and its journal still stands."""
    original = journal.recover

    async def wrapped(*given: Any) -> int:
        count = await original(*given)
        if count:
            trigger.passed()
        return count

    journal.recover = wrapped


POINTS: dict[str, Callable[[Trigger], None]] = {
    "before handing over": before_handing_over,
    "mid-stream": mid_stream,
    "before commit": before_commit,
    "inside commit": inside_commit,
    "before freeing": before_freeing,
    "while freeing": while_freeing,
    "while recovering": while_recovering,
    "before unlinking": before_unlinking,
}


def arm_when_started(trigger: Trigger) -> None:
    original = app.Relay.start

    async def wrapped(self: app.Relay, *given: Any) -> None:
        await original(self, *given)
        trigger.armed = True

    app.Relay.start = wrapped  # type: ignore[method-assign]


if __name__ == "__main__":
    point, wanted, marker, *words = sys.argv[1:]
    trigger = Trigger(point, int(wanted), marker)
    POINTS[point](trigger)
    if not trigger.armed:
        arm_when_started(trigger)
    sys.exit(cli.main(words))
