"""The writer's common job: commit a group of call records and everything that follows from them, in one transaction.

Per group: the calls; their sums per account, key, model and day (rollups); cost per account and day; what they used of
lots; write-offs; the last day on which keys were used; details of costs and idempotency keys. All of it or none.

The state kept between groups (which shape has which id, what remains of which lot) mirrors rows that only this thread
writes. It is dropped whenever a transaction fails, and read again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

from relay._fastpath import fold_calls
from relay.records import (
    C_ACCOUNT,
    C_COST_NANO,
    C_ID,
    C_KEY,
    C_MORE,
    C_WRITE_OFF_NANO,
    CALL_COLUMNS,
    CALL_DETAILS,
    CALL_IDS_PER_DAY,
    EVENT_COLUMNS,
    CallRecord,
    EventRecord,
    call_day,
)
from relay.storage.aside import put_record
from relay.storage.calls import INSERT_IDEMPOTENCY
from relay.storage.database import transaction
from relay.storage.ledger import lots_of
from relay.storage.objects import mark_ended
from relay.storage.seals import Sealer
from relay.storage.statements import ROWS_PER_STATEMENT, ManyRows

# What is kept between groups, at most. 10,000 accounts with two lots each take about 6 MB.
ACCOUNTS_KEPT_MAX: Final = 10_000
SHAPES_KEPT_MAX: Final = 50_000
KEYS_KEPT_MAX: Final = 200_000

# No organisation is 0 on the way: sqlite3 raises and drops an exception inside for every None, 0.8 us each.
INSERT_CALLS: Final = ManyRows("INSERT INTO calls VALUES", 17, row="(?,?,nullif(?,0),?,?,?,?,?,?,?,?,?,?,?,?,?,?)")
INSERT_EVENTS: Final = ManyRows(
    "INSERT INTO events (time_ms, kind, code, account_id, key_id, scope, channel, source_ip, count, detail) VALUES",
    len(EVENT_COLUMNS),
)
ADD_ROLLUPS: Final = ManyRows(
    "INSERT INTO rollups VALUES",
    14,
    """ON CONFLICT DO UPDATE SET
        calls = calls + excluded.calls,
        failed = failed + excluded.failed,
        input_tokens = input_tokens + excluded.input_tokens,
        output_tokens = output_tokens + excluded.output_tokens,
        cache_read_tokens = cache_read_tokens + excluded.cache_read_tokens,
        cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens,
        images = images + excluded.images,
        video_seconds = video_seconds + excluded.video_seconds,
        web_searches = web_searches + excluded.web_searches,
        cost_nano = cost_nano + excluded.cost_nano""",
)
# Most groups of calls have nothing but these: 8 values to bind and 4 sums instead of 14 and 10.
ADD_COMMON_ROLLUPS: Final = ManyRows(
    "INSERT INTO rollups VALUES",
    8,
    """ON CONFLICT DO UPDATE SET
        calls = calls + excluded.calls,
        input_tokens = input_tokens + excluded.input_tokens,
        output_tokens = output_tokens + excluded.output_tokens,
        cost_nano = cost_nano + excluded.cost_nano""",
    row="(?,?,?,?,?,0,?,?,0,0,0,0,0,?)",
)
ADD_SPEND: Final = ManyRows(
    "INSERT INTO spend VALUES", 3, "ON CONFLICT DO UPDATE SET cost_nano = cost_nano + excluded.cost_nano"
)
ADD_WRITTEN_OFF: Final = """
    INSERT INTO written_off VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET amount_nano = amount_nano + excluded.amount_nano
"""
DETAILS: Final = len(CALL_DETAILS)
INSERT_LINES: Final = "INSERT INTO call_lines VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
INSERT_DETAILS: Final = "INSERT INTO call_details VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
REPLACE_LOT_USE: Final = ManyRows("REPLACE INTO lot_use VALUES", 3)

# Largest lengths of the text columns of a call, as in the schema: where a record breaks one, the text goes, not the
# money.
TEXT_LENGTH_MAX: Final = {
    "path": 128,
    "model": 256,
    "upstream_model": 256,
    "channel": 64,
    "error_code": 40,
    "usage_source": 10,
    "rate_card": 64,
    "source_ip": 45,
    "user_agent": 256,
}
TEXT_REQUIRED: Final = {"path": "", "usage_source": "none"}
IDS: Final = frozenset({"id", "account_id", "organisation_id", "key_id"})
INTEGER_OPTIONAL: Final = frozenset({"account_id", "organisation_id", "key_id", "first_byte_us"})
INTEGER_MAX: Final = 2**63 - 1
# No call has more tokens, images or microseconds; sums of many of these still fit.
# A number of usage is at most 2^40, and a record's cache writes are the sum of two.
MEASURE_MAX: Final = 2**41
COST_MAX_NANO: Final = 10**16  # ten million credits; in the schema and on the hot path, too
# What a record can cause: SQLite and the fold refuse it. A disk that fails raises something else.
REFUSALS: Final = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.DataError,
    TypeError,
    ValueError,
    OverflowError,
    LookupError,
)


def lines_in(more: Sequence[Any]) -> Sequence[Sequence[Any]]:
    """The lines of a bill in a record's last field."""
    return more[DETAILS + 2] if len(more) > DETAILS + 2 else ()


class BatchWriter:
    """Belongs to the writer's thread; its connection is the writing one."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.pause: Callable[[], None] = lambda: None  # called within long groups, in the writer's thread
        self._shapes: dict[tuple[Any, ...], int] = {}
        # Per account, in spending order: [lot id, used, remaining]; only lots with something left.
        self._lots: dict[int, list[list[int]]] = {}
        self._last_used: dict[int, int] = {}  # key id -> day
        self._sealer = Sealer(connection)
        self._unsealed = False  # this transaction has added something that the seals are about
        # Cost that neither a lot nor the record's own write-off covered, since start. Not 0: live balances were wrong.
        self.shortfall_nano = 0
        # Rows changed by this connection so far; read by the event loop between groups.
        self.rows_changed = 0

    def forget(self) -> None:
        """Drop what is kept between groups."""
        self._shapes.clear()
        self._lots.clear()
        self._last_used.clear()

    def seal(self) -> None:
        """At the end of another job of the writer's thread that has added entries or lots."""
        self._sealer.seal()

    def forget_lots(self, account_id: int) -> None:
        """The account's lots were changed by another job of the writer's thread."""
        self._lots.pop(account_id, None)

    def commit(
        self, calls: Sequence[CallRecord], events: Sequence[EventRecord], now_ms: int, *, new_only: bool = False
    ) -> int:
        """Commit a group; returns how many calls were new.

        new_only: some calls may be there already (recovery, or an attempt of which the outcome is not known); those
        change nothing. Without it they are found by the failure that they cause, and the group is done again with
        new_only. Raises sqlite3.Error; then nothing was changed.
        """
        shortfall_nano = self.shortfall_nano
        try:
            if not new_only:
                try:
                    return transaction(self._connection, lambda _: self._count(self._write(calls, events, now_ms)))
                except REFUSALS:
                    # An id that is there, or a value that the schema does not take: find out which, slowly.
                    self.forget()
                    self.shortfall_nano = shortfall_nano
            return transaction(self._connection, lambda _: self._count(self._write_new(calls, events, now_ms)))
        except BaseException:
            self.forget()
            self.shortfall_nano = shortfall_nano
            raise
        finally:
            self.rows_changed = self._connection.total_changes
            self._bound()

    def commit_ending(self, records: Sequence[CallRecord], now_ms: int) -> bool:
        """The records of a job's ending and the end itself; False where the job had ended, and nothing is changed."""
        shortfall_nano = self.shortfall_nano

        def write(connection: sqlite3.Connection) -> bool:
            if not mark_ended(connection, records[0][C_ID]):
                return False
            self._count(self._write_new(records, [], now_ms))
            return True

        try:
            return transaction(self._connection, write)
        except BaseException:
            self.forget()
            self.shortfall_nano = shortfall_nano
            raise
        finally:
            self.rows_changed = self._connection.total_changes

    def _bound(self) -> None:
        if len(self._lots) > ACCOUNTS_KEPT_MAX:
            self._lots.clear()
        if len(self._shapes) > SHAPES_KEPT_MAX:
            self._shapes.clear()
        if len(self._last_used) > KEYS_KEPT_MAX:
            self._last_used.clear()

    def _write_new(self, calls: Sequence[CallRecord], events: Sequence[EventRecord], now_ms: int) -> int:
        """Leave out calls that are there or come twice, mend values that the schema would not take. A record that is
        refused all the same is set aside: it must not keep the others from being written, now and at every start.
        """
        execute = self._connection.execute
        new: dict[int, CallRecord] = {}
        for call in calls:
            try:
                mended = mended_call(call)
            except REFUSALS as error:
                put_record(self._connection, call, str(error), now_ms)
                continue
            call_id = mended[C_ID]
            if call_id not in new and not execute("SELECT 1 FROM calls WHERE id = ?", (call_id,)).fetchone():
                new[call_id] = mended
        good_events = mended_events(events)
        if self._refused(list(new.values()), good_events, now_ms) is None:
            return len(new)
        written = 0
        for call in new.values():
            refused = self._refused([call], [], now_ms)
            if refused is None:
                written += 1
            else:
                put_record(self._connection, call, f"refused by the store: {refused}", now_ms)
        for event in good_events:
            self._refused([], [event], now_ms)  # no money is in it
        return written

    def _refused(self, calls: Sequence[CallRecord], events: Sequence[EventRecord], now_ms: int) -> BaseException | None:
        """Write within the transaction, or undo just this and return why it was refused."""
        shortfall_nano = self.shortfall_nano
        self._connection.execute("SAVEPOINT records")
        try:
            self._write(calls, events, now_ms)
        except REFUSALS as error:
            self._connection.execute("ROLLBACK TO records")
            self._connection.execute("RELEASE records")
            self.forget()
            self.shortfall_nano = shortfall_nano
            return error
        self._connection.execute("RELEASE records")
        return None

    def _write(self, calls: Sequence[CallRecord], events: Sequence[EventRecord], now_ms: int) -> int:
        connection = self._connection
        rows, common, full, accounts, spend, write_offs, used, more = fold_calls(
            list(calls), self._shapes, self._shape_id, self._last_used
        )
        if len(calls) >= ROWS_PER_STATEMENT[0]:
            self.pause()  # behind a quarter of a millisecond with the interpreter's lock held
        if rows:
            INSERT_CALLS.run(connection, rows, self.pause)
        if common:
            ADD_COMMON_ROLLUPS.run(connection, common, self.pause)
        if full:
            ADD_ROLLUPS.run(connection, full, self.pause)
        if spend:
            ADD_SPEND.run(connection, spend, self.pause)
        if accounts:
            self._draw(accounts, write_offs)
        if write_offs:
            self._unsealed = True
            connection.executemany(
                "INSERT INTO entries (account_id, kind, amount_nano, call_id, reason, time_ms)"
                " VALUES (?, 'write_off', ?, ?, '', ?)",
                [(*write_off, now_ms) for write_off in write_offs],
            )
            key_ids = {call[C_ID]: call[C_KEY] or 0 for call in calls}
            connection.executemany(
                ADD_WRITTEN_OFF,
                [(account, key_ids[call_id], call_day(call_id), amount) for account, amount, call_id in write_offs],
            )
        if used:
            connection.executemany("UPDATE keys SET last_used_day = max(last_used_day, ?) WHERE id = ?", used)
        if more:
            details = [(call_id, *field[:DETAILS]) for call_id, field in more if any(field[:DETAILS])]
            connection.executemany(INSERT_DETAILS, details)
            bound = [(call_id, field[DETAILS : DETAILS + 2]) for call_id, field in more]
            keys = [(digest, body, call_id) for call_id, (digest, body) in bound if digest is not None]
            connection.executemany(INSERT_IDEMPOTENCY, keys)
            lines = [(call_id, number, *line) for call_id, field in more for number, line in enumerate(lines_in(field))]
            if lines:
                connection.executemany(INSERT_LINES, lines)
        if events:
            INSERT_EVENTS.run(connection, list(chain.from_iterable(events)), self.pause)
        return len(calls)

    def _count(self, written: int) -> int:
        """The end of a transaction with one more group."""
        if self._unsealed:
            self._sealer.seal()
            self._unsealed = False
        self._connection.execute("UPDATE store SET batch = batch + 1")
        return written

    def _draw(self, accounts: list[int], write_offs: list[tuple[int, int, int]]) -> None:
        """Take what calls cost from lots, in spending order; what they do not cover becomes a write-off."""
        changed: list[int] = []
        closed: list[tuple[int]] = []
        lots_of_accounts = self._lots
        triples = iter(accounts)
        for account_id, draw_nano, call_id in zip(triples, triples, triples, strict=True):
            lots = lots_of_accounts.get(account_id)
            if lots is None:
                lots = lots_of_accounts[account_id] = [
                    [lot.id, lot.used_nano, lot.remaining_nano] for lot in lots_of(self._connection, account_id)
                ]
            if lots and draw_nano < (lot := lots[0])[2]:  # as a rule
                lot[1] += draw_nano
                lot[2] -= draw_nano
                changed += lot
                continue
            while draw_nano:
                if not lots:
                    self.shortfall_nano += draw_nano
                    write_offs.append((account_id, draw_nano, call_id))
                    break
                lot = lots[0]
                taken_nano = min(draw_nano, lot[2])
                lot[1] += taken_nano
                lot[2] -= taken_nano
                draw_nano -= taken_nano
                changed += lot
                if lot[2] == 0:
                    closed.append((lot[0],))
                    del lots[0]
        if changed:
            REPLACE_LOT_USE.run(self._connection, changed, self.pause)
        if closed:
            self._connection.executemany("UPDATE lots SET is_open = 0 WHERE id = ?", closed)

    def _shape_id(self, call: CallRecord) -> int:
        """The id of the row of `shapes` that this call has; made if there is none. All are read the first time."""
        connection = self._connection
        if not self._shapes:
            stored = connection.execute("SELECT * FROM shapes ORDER BY id DESC LIMIT ?", (SHAPES_KEPT_MAX,))
            for shape_id, *names in stored:
                self._shapes[(tuple(names[:8]), names[8], names[9])] = shape_id
            known = self._shapes.get((call[4:12], call[19], call[21]))
            if known is not None:
                return known
        self._unsealed = True
        cursor = connection.execute(
            "INSERT INTO shapes (path, model, upstream_model, channel, attempts, stream, status, error_code,"
            " usage_source, rate_card) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*call[4:12], call[19], call[21]),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid


def mended_call(call: CallRecord) -> CallRecord:
    """A record that the schema takes: texts that are too long or none are dropped, numbers brought into range.

    Its money is kept, but for what is above the most that a call can cost. Raises one of REFUSALS where that is not
    possible: no id, or an account or cost that is no number.
    """
    if not all(isinstance(call[position], int) for position in (C_ID, C_COST_NANO)) or not isinstance(
        call[C_ACCOUNT], int | None
    ):
        raise ValueError("without id, account or cost")
    if not 0 <= call[C_ID] <= INTEGER_MAX:
        raise ValueError(f"id {call[C_ID]}: expected 0 to 2^63 - 1")
    if call[C_COST_NANO] < 0:
        raise ValueError(f"cost {call[C_COST_NANO]} nano-credits: expected 0 or more")
    write_off_nano = call[C_WRITE_OFF_NANO] if isinstance(call[C_WRITE_OFF_NANO], int) else 0
    cost_nano = min(call[C_COST_NANO], COST_MAX_NANO)
    taken_nano = min(call[C_COST_NANO] - max(write_off_nano, 0), cost_nano)
    mended: list[Any] = []
    for name, value in zip(CALL_COLUMNS, call, strict=False):
        if name in TEXT_LENGTH_MAX:
            good = isinstance(value, str) and len(value) <= TEXT_LENGTH_MAX[name] and _is_text(value)
            mended.append(value if good else TEXT_REQUIRED.get(name))
        elif isinstance(value, int):
            mended.append(min(max(int(value), 0), INTEGER_MAX if name in IDS else MEASURE_MAX))
        else:
            mended.append(None if name in INTEGER_OPTIONAL else 0)
    mended[C_COST_NANO] = cost_nano
    more = call[C_MORE:]  # made by the relay alone
    return (*mended, min(cost_nano, cost_nano - taken_nano), call[C_ID] // CALL_IDS_PER_DAY, *more)


def mended_events(events: Sequence[EventRecord]) -> list[EventRecord]:
    """Those of a right length, mended."""
    return [mended_event(event) for event in events if len(event) == len(EVENT_COLUMNS)]


def mended_event(event: EventRecord) -> EventRecord:
    """An event that the schema takes."""
    limits = {"kind": 40, "code": 40, "scope": 64, "channel": 64, "source_ip": 45, "detail": 500}
    mended: list[Any] = []
    for name, value in zip(EVENT_COLUMNS, event, strict=True):
        if name in limits:
            good = isinstance(value, str) and len(value) <= limits[name] and _is_text(value)
            mended.append(value if good else ("unknown" if name == "kind" else None))
        else:
            optional = name in ("account_id", "key_id")
            number = min(max(value, -INTEGER_MAX), INTEGER_MAX) if isinstance(value, int) else None
            mended.append(number if number is not None or optional else 0)
    return tuple(mended)


def _is_text(value: str) -> bool:
    """Whether it can be stored as UTF-8 (a lone surrogate cannot)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
