"""The queue between the event loop and the writer's thread.

Call records are taken without waiting and committed in groups: after an interval, or at once when enough of them
wait. A group stays at the head of the queue until its commit has succeeded:

- disk full, or the file locked by another program: the group stays, `writable` is False, and it is tried again every
  second, behind a check for records that are there already. Nothing is lost and nothing doubled.
- input/output error, failed fsync, damage: final. Nothing is tried again (a second fsync reports success for data that
  the first one lost); the `fatal` callback is to end the process, which recovers from the disk.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final, TypeVar

from relay.records import CallRecord, EventRecord
from relay.storage.batch import BatchWriter
from relay.storage.database import Worker, transaction
from relay.storage.errors import StoreError, StoreFailed, StoreUnavailable

T = TypeVar("T")

EVENTS_QUEUED_MAX: Final = 10_000
RETRY_SECONDS: Final = 1.0
# The writer may share a core with the event loop, and a thread that has waited gets its share in one piece: a group of
# 500 in one go keeps every call waiting for a millisecond. Where it may take its time, it pauses behind each 64 rows,
# and is still done long before the next group is whole. Not while this many groups wait: the backlog comes first.
PAUSE_SECONDS: Final = 0.0005
PAUSE_GROUPS_MAX: Final = 4
LAG_STEP_SECONDS: Final = 0.05  # how exactly the age of what waits is known
# A checkpoint copies what changed since the last one from the WAL into the database, each page once, in one piece: at
# most this many changed rows (2.5 MB of WAL, about a millisecond), or this long after a commit. Rarer would not be
# cheaper: 1.4 us per record with 10,000 and with 40,000 rows (benchmarks/writer.py).
CHECKPOINT_ROWS: Final = 10_000
CHECKPOINT_SECONDS: Final = 10.0


class GroupCommit:
    """Owned by the store; its methods belong to the event loop, its jobs run in the writer's thread."""

    def __init__(
        self,
        worker: Worker,
        writer: BatchWriter,
        *,
        batch: int,
        power: bool,
        interval_seconds: float,
        records_max: int,
        now_ms: Callable[[], int],
        fatal: Callable[[BaseException], None],
    ) -> None:
        self.writable = True
        self.unhurried = False  # whether a group may pause, so that the event loop has the core in between
        self.lost: str | None = None  # which file is gone
        self.events_dropped = 0
        self.callbacks: list[Callable[[Sequence[CallRecord]], None]] = []
        self._worker = worker
        self._writer = writer
        writer.pause = self._pause
        self._batch = batch  # number of the last committed group
        self._power = power
        self._interval_seconds = interval_seconds
        self._records_max = records_max
        self._now_ms = now_ms
        self._fatal = fatal
        self._failure: StoreFailed | None = None
        self._loop = asyncio.get_running_loop()
        self._calls: list[CallRecord] = []
        self._events: list[EventRecord] = []
        self._in_flight = 0  # calls at the head of the queue that are being committed
        self._doubtful = False  # the last attempt failed: look for records that are there already
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._flushing = False
        # Who waits for everything before a place in the two queues: [calls ever queued, events ever queued, whom to
        # tell].
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._calls_placed = self._calls_committed = 0
        self._events_placed = self._events_committed = 0
        # When what still waits was placed, in steps of LAG_STEP_SECONDS: (loop time, calls placed, events placed).
        self._placed_at: deque[tuple[float, int, int]] = deque()
        self._snapshots = 0  # reads under way
        self._recent: deque[tuple[int, Sequence[CallRecord]]] = deque()  # groups committed while reads were under way
        self._checkpoint_timer: asyncio.TimerHandle | None = None
        self._rows_at_checkpoint = 0
        self._closed = False
        self._background: set[asyncio.Task[None]] = set()

    # -- queue

    @property
    def pending(self) -> int:
        return len(self._calls) + len(self._events)

    @property
    def lag_seconds(self) -> float:
        """How long the oldest record that is not committed has been in the queue."""
        if not self.pending or not self._placed_at:
            return 0.0
        return max(self._loop.time() - self._placed_at[0][0], 0.0)

    def _note_placed(self) -> None:
        now = self._loop.time()
        if not self._placed_at or now - self._placed_at[-1][0] >= LAG_STEP_SECONDS:
            self._placed_at.append((now, self._calls_placed, self._events_placed))

    def _forget_placed(self) -> None:
        """Steps of which all is committed: those behind which another one began with no more than that placed."""
        placed = self._placed_at
        while placed and (
            not self.pending
            or (len(placed) > 1 and placed[1][1] <= self._calls_committed and placed[1][2] <= self._events_committed)
        ):
            placed.popleft()

    def append_calls(self, records: list[CallRecord]) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        self._note_placed()
        self._calls += records
        self._calls_placed += len(records)
        if self._timer is None or len(self._calls) >= self._records_max:
            self._schedule()

    def append_events(self, records: list[EventRecord]) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        room = EVENTS_QUEUED_MAX - len(self._events)
        if len(records) > room:
            self.events_dropped += len(records) - room
            records = records[:room]
        if records:
            self._note_placed()
        self._events += records
        self._events_placed += len(records)
        if self._timer is None:
            self._schedule()

    def _schedule(self) -> None:
        """Commit at once if enough waits, else after the interval; while a store cannot be written, only its timer
        tries.
        """
        if self._task is not None or self._failure is not None or self._closed or not self.writable:
            return
        if self._flushing or len(self._calls) >= self._records_max:
            self._start()
        elif self._timer is None and self.pending:
            self._timer = self._loop.call_later(self._interval_seconds, self._start)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is None and self._failure is None:
            self._task = self._loop.create_task(self._commit())

    async def flush(self) -> None:
        """Wait until everything queued before this is committed."""
        self._require_open()
        if not self.pending and self._task is None and self.writable:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((self._calls_placed, self._events_placed, future))
        self._flushing = True
        self._start()
        await future

    # -- commits

    async def _commit(self) -> None:
        """Commit groups until little enough is left to wait for the interval."""
        try:
            while True:
                calls = self._calls[: self._records_max]
                events = self._events[: self._records_max]
                self._in_flight = len(calls)
                await self._worker.run(self._group_job(calls, events, new_only=self._doubtful))
                self._in_flight = 0
                self._doubtful = False
                self.writable = True
                self._batch += 1
                if self._snapshots:
                    self._recent.append((self._batch, calls))
                del self._calls[: len(calls)]
                del self._events[: len(events)]
                self._calls_committed += len(calls)
                self._events_committed += len(events)
                self._forget_placed()
                self._tell(calls)
                if self._writer.rows_changed - self._rows_at_checkpoint >= CHECKPOINT_ROWS:
                    await self.checkpoint()
                else:
                    self._checkpoint_later()
                if not self.pending or not (self._flushing or len(self._calls) >= self._records_max):
                    break
        except StoreUnavailable as error:
            self._unavailable(error)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failed(error)
        finally:
            self._in_flight = 0
            self._task = None
            self._schedule()

    def _group_job(
        self, calls: Sequence[CallRecord], events: Sequence[EventRecord], *, new_only: bool
    ) -> Callable[[sqlite3.Connection], int]:
        writer, now_ms = self._writer, self._now_ms()
        return lambda _: writer.commit(calls, events, now_ms, new_only=new_only)

    def _pause(self) -> None:
        """In the writer's thread; what it reads changes under the interpreter's lock only."""
        if self.unhurried and not self._flushing and len(self._calls) < PAUSE_GROUPS_MAX * self._records_max:
            time.sleep(PAUSE_SECONDS)

    def _tell(self, calls: Sequence[CallRecord]) -> None:
        """Wake those whose records are committed, and tell who asked for all."""
        left: list[tuple[int, int, asyncio.Future[None]]] = []
        for calls_placed, events_placed, future in self._waiting:
            if calls_placed > self._calls_committed or events_placed > self._events_committed:
                left.append((calls_placed, events_placed, future))
            elif not future.done():
                future.set_result(None)
        self._waiting = left
        self._flushing = bool(left)
        if calls:
            for callback in self.callbacks:
                try:
                    callback(calls)
                except Exception as error:
                    self._loop.call_exception_handler({"message": "a commit callback failed", "exception": error})

    def _refuse_waiting(self, error: StoreError) -> None:
        waiting, self._waiting = self._waiting, []
        self._flushing = False
        for _, _, future in waiting:
            if not future.done():
                future.set_exception(error)

    def _unavailable(self, error: StoreUnavailable) -> None:
        self.writable = False
        self._doubtful = True
        self._refuse_waiting(error)
        if self._timer is None:
            self._timer = self._loop.call_later(RETRY_SECONDS, self._start)

    def failed(self, error: BaseException) -> None:
        """The store is lost for this process. Says so once."""
        if self._failure is not None:
            return
        self.writable = False
        if isinstance(error, StoreFailed):
            self._failure = error
        else:
            self._failure = StoreFailed(f"the writer failed: {type(error).__name__}")
            self._failure.__cause__ = error
        self._refuse_waiting(self._failure)
        self._fatal(self._failure)

    @property
    def failure(self) -> StoreFailed | None:
        return self._failure

    async def commit_recovered(self, records: Sequence[CallRecord]) -> int:
        """Commit records at once, in groups; those that are there already change nothing."""
        new = 0
        for start in range(0, len(records), self._records_max):
            await self.flush()
            group = records[start : start + self._records_max]
            new += await self._run(self._group_job(group, (), new_only=True))
            self._batch += 1
            self._tell(group)
        return new

    async def commit_ending(self, records: Sequence[CallRecord]) -> bool:
        """Commit the records of a job's ending and its end, in one transaction. False: it had ended before."""
        writer, now_ms = self._writer, self._now_ms()
        if not await self._run(lambda _: writer.commit_ending(records, now_ms)):
            return False
        self._batch += 1
        if self._snapshots:
            self._recent.append((self._batch, list(records)))
        return True

    async def change(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job in a transaction of its own, on the disk when this returns (also with durability "process").

        Changes of accounts, keys and credit are rare and were promised to somebody; they are worth an fsync each.
        """

        def durable(connection: sqlite3.Connection) -> T:
            if self._power:
                return transaction(connection, job)
            connection.execute("PRAGMA synchronous = FULL")
            try:
                return transaction(connection, job)
            finally:
                connection.execute("PRAGMA synchronous = NORMAL")

        return await self._run(durable)

    async def step(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job that manages its own transaction."""
        return await self._run(job)

    def _require_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self.lost is not None:
            raise StoreUnavailable(self.lost)

    async def _run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        self._require_open()
        try:
            result = await self._worker.run(job)
        except StoreUnavailable as error:
            self._unavailable(error)
            raise
        except StoreFailed as error:
            self.failed(error)
            raise
        self._checkpoint_later()
        return result

    # -- checkpoints

    def _checkpoint_later(self) -> None:
        if self._checkpoint_timer is None and self._failure is None:
            self._checkpoint_timer = self._loop.call_later(CHECKPOINT_SECONDS, self._checkpoint_now)

    def _checkpoint_now(self) -> None:
        self._checkpoint_timer = None
        task = self._loop.create_task(self._checkpoint_quietly())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _checkpoint_quietly(self) -> None:
        try:
            await self.checkpoint()
        except StoreUnavailable:
            self._checkpoint_later()
        except StoreError as error:
            self.failed(error)

    async def checkpoint(self, *, truncate: bool = False) -> None:
        """Move what is in the WAL into the database. Raises StoreFailed (final), StoreUnavailable (disk full).

        truncate: also empty the WAL, if no reader needs it within a tenth of a second.
        """
        if self._checkpoint_timer is not None:
            self._checkpoint_timer.cancel()
            self._checkpoint_timer = None

        def job(connection: sqlite3.Connection) -> int:
            if truncate:
                connection.execute("PRAGMA busy_timeout = 100")
                try:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                finally:
                    connection.execute("PRAGMA busy_timeout = 5000")
            else:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            return connection.total_changes

        try:
            self._rows_at_checkpoint = await self._worker.run(job)
        except StoreFailed as error:
            self.failed(error)
            raise

    async def close(self) -> None:
        """Stop timers and tasks; what is still queued is left alone."""
        self._closed = True
        for timer in (self._timer, self._checkpoint_timer):
            if timer is not None:
                timer.cancel()
        for task in (self._task, *self._background):
            if task is not None:
                await asyncio.wait([task])
        self._refuse_waiting(StoreUnavailable("the store is closed"))

    # -- reads that must see the queue

    def begin_snapshot(self) -> None:
        """From now until end_snapshot, groups are remembered so that `records_behind` can tell what a read missed."""
        self._snapshots += 1

    def end_snapshot(self) -> None:
        self._snapshots -= 1
        if self._snapshots == 0:
            self._recent.clear()

    def records_behind(self, batch: int) -> Iterator[CallRecord]:
        """All queued records that a snapshot does not hold in which `batch` was the last committed group."""
        for number, records in self._recent:
            if number > batch:
                yield from records
        # The group in flight may be committed already, and this loop not yet know of it.
        start = self._in_flight if batch > self._batch else 0
        yield from islice(self._calls, start, None)
