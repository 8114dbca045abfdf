"""Reading call records and their sums, and deleting old ones."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from relay.records import CALL_IDS_PER_DAY, MS_PER_DAY, call_day, first_call_id
from relay.storage import aside
from relay.storage.database import transaction
from relay.storage.errors import Conflict
from relay.storage.rows import CallDetails, CallLine, CallRow, KeyClaim, RollupRow

ID_MAX: Final = 2**63 - 1
# A key that is there already is one whose day is over, or the same call's.
INSERT_IDEMPOTENCY: Final = "REPLACE INTO idempotency_keys VALUES (?, ?, ?)"

SELECT_CALLS: Final = """
    SELECT * FROM call_records
    WHERE id >= :first AND id < :end
        AND (:account_id IS NULL OR account_id = :account_id)
        AND (:key_id IS NULL OR key_id = :key_id)
        AND (:status IS NULL OR status = :status)
        AND (:error_code IS NULL OR error_code = :error_code)
        AND (:failed IS NULL OR (error_code IS NOT NULL) = :failed)
        AND (:model IS NULL OR model = :model)
        AND (:channel IS NULL OR channel = :channel)
        AND (:path IS NULL OR path = :path)
        AND (:organisation_id IS NULL OR organisation_id = :organisation_id)
    ORDER BY id DESC LIMIT :limit
"""

FOLD: Final = """
    INSERT INTO folded
    SELECT
        account_id, coalesce(key_id, 0), calls.id / :ids_per_day, coalesce(model, ''), count(*), count(error_code),
        sum(input_tokens), sum(output_tokens), sum(cache_read_tokens), sum(cache_write_tokens), sum(images),
        sum(video_seconds), sum(web_searches), sum(cost_nano)
    FROM calls CROSS JOIN shapes ON shapes.id = shape_id
    WHERE calls.id < :end AND account_id IS NOT NULL
    GROUP BY 1, 2, 3, 4
    ON CONFLICT DO UPDATE SET
        calls = calls + excluded.calls,
        failed = failed + excluded.failed,
        input_tokens = input_tokens + excluded.input_tokens,
        output_tokens = output_tokens + excluded.output_tokens,
        cache_read_tokens = cache_read_tokens + excluded.cache_read_tokens,
        cache_write_tokens = cache_write_tokens + excluded.cache_write_tokens,
        images = images + excluded.images,
        video_seconds = video_seconds + excluded.video_seconds,
        web_searches = web_searches + excluded.web_searches,
        cost_nano = cost_nano + excluded.cost_nano
"""


def select_calls(
    connection: sqlite3.Connection,
    *,
    account_id: int | None,
    key_id: int | None,
    since_ms: int,
    until_ms: int | None,
    status: int | None,
    error_code: str | None,
    failed: bool | None,
    model: str | None,
    channel: str | None,
    path: str | None,
    organisation_id: int | None,
    before_id: int | None,
    limit: int,
) -> list[CallRow]:
    """Newest first.

    There is no index by account (it would cost every call): for one account, only the days on which it has sums are
    read.
    """
    end = ID_MAX if before_id is None else before_id
    if until_ms is not None:
        end = min(end, first_call_id(until_ms))
    first = first_call_id(since_ms)
    filters = {
        "account_id": account_id,
        "key_id": key_id,
        "status": status,
        "error_code": error_code,
        "failed": failed,
        "model": model,
        "channel": channel,
        "path": path,
        "organisation_id": organisation_id,
    }
    if key_id is not None and account_id is None:
        row = connection.execute("SELECT account_id FROM keys WHERE id = ?", (key_id,)).fetchone()
        if row is None:
            return []
        (account_id,) = row
    if account_id is None:
        ranges = [(first, end)]
    else:
        days = connection.execute(
            "SELECT DISTINCT day FROM rollups WHERE account_id = ? AND day BETWEEN ? AND ? ORDER BY day DESC",
            (account_id, call_day(first), call_day(end)),
        ).fetchall()
        ranges = [
            (max(first, first_call_id(day * MS_PER_DAY)), min(end, first_call_id((day + 1) * MS_PER_DAY)))
            for (day,) in days
        ]
    found: list[CallRow] = []
    for range_first, range_end in ranges:
        if len(found) >= limit:
            break
        rows = connection.execute(
            SELECT_CALLS, {**filters, "first": range_first, "end": range_end, "limit": limit - len(found)}
        )
        found += [CallRow(*row) for row in rows]
    return found


def select_call(connection: sqlite3.Connection, call_id: int) -> CallRow | None:
    row = connection.execute("SELECT * FROM call_records WHERE id = ?", (call_id,)).fetchone()
    if row is None:
        return None
    details = connection.execute("SELECT * FROM call_details WHERE call_id = ?", (call_id,)).fetchone()
    lines = tuple(
        CallLine(*line[2:])
        for line in connection.execute("SELECT * FROM call_lines WHERE call_id = ? ORDER BY line", (call_id,))
    )
    return CallRow(*[*row, None if details is None else CallDetails(*details[1:]), lines])


def select_recorded(connection: sqlite3.Connection, call_ids: Sequence[int]) -> set[int]:
    ids = json.dumps(list(call_ids))
    rows = connection.execute("SELECT id FROM calls WHERE id IN (SELECT value FROM json_each(?))", (ids,))
    return {row[0] for row in rows}


def select_rollups(connection: sqlite3.Connection, account_id: int, since_day: int, until_day: int) -> list[RollupRow]:
    rows = connection.execute(
        "SELECT account_id, day, key_id, model, calls, failed, input_tokens, output_tokens, cache_read_tokens,"
        " cache_write_tokens, images, video_seconds, web_searches, cost_nano FROM rollups"
        " WHERE account_id = ? AND day BETWEEN ? AND ? ORDER BY day, key_id, model",
        (account_id, since_day, until_day),
    )
    return [RollupRow(*row) for row in rows]


def select_idempotency_key(connection: sqlite3.Connection, digest: bytes, since: int) -> tuple[int, int] | None:
    row = connection.execute(
        "SELECT body, call_id FROM idempotency_keys WHERE digest = ? AND call_id >= ?", (digest, since)
    ).fetchone()
    return None if row is None else (row[0], row[1])


def bind_idempotency_key(connection: sqlite3.Connection, claim: KeyClaim) -> None:
    """Raises Conflict where another call of the day before has it."""
    found = select_idempotency_key(connection, claim.digest, claim.call_id - CALL_IDS_PER_DAY)
    if found is not None and found[1] != claim.call_id:
        raise Conflict("this idempotency key is another call's")
    connection.execute(INSERT_IDEMPOTENCY, (claim.digest, claim.body, claim.call_id))


def free_idempotency_key(connection: sqlite3.Connection, claim: KeyClaim) -> None:
    """Where it is still this call's."""
    connection.execute("DELETE FROM idempotency_keys WHERE digest = ? AND call_id = ?", (claim.digest, claim.call_id))


def delete_idempotency_keys(connection: sqlite3.Connection, end: int) -> int:
    return connection.execute("DELETE FROM idempotency_keys WHERE call_id < ?", (end,)).rowcount


def delete_before(connection: sqlite3.Connection, before_ms: int, step: int) -> int:
    """Delete up to `step` of the calls that began before; their sums go to `folded` in the same transaction."""

    def delete(connection: sqlite3.Connection) -> int:
        end = first_call_id(before_ms)
        row = connection.execute(
            "SELECT id FROM calls WHERE id < ? ORDER BY id LIMIT 1 OFFSET ?", (end, step)
        ).fetchone()
        if row is not None:
            (end,) = row
        connection.execute(FOLD, {"end": end, "ids_per_day": first_call_id(MS_PER_DAY)})
        connection.execute("DELETE FROM call_details WHERE call_id < ?", (end,))
        connection.execute("DELETE FROM call_lines WHERE call_id < ?", (end,))
        aside.forget_texts(connection, before_ms)
        return connection.execute("DELETE FROM calls WHERE id < ?", (end,)).rowcount

    return _erasing(connection, lambda: transaction(connection, delete))


def delete_events_before(connection: sqlite3.Connection, before_ms: int, step: int) -> int:
    """Delete up to `step` of the events before that time."""

    def delete(connection: sqlite3.Connection) -> int:
        return connection.execute(
            "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE time_ms < ? ORDER BY id LIMIT ?)",
            (before_ms, step),
        ).rowcount

    return _erasing(connection, lambda: transaction(connection, delete))


def _erasing(connection: sqlite3.Connection, job: Callable[[], int]) -> int:
    """Overwrite what is deleted: without this it stays readable in the file until its page is used again."""
    connection.execute("PRAGMA secure_delete = 1")
    try:
        return job()
    finally:
        connection.execute("PRAGMA secure_delete = 0")
