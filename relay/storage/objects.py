"""Objects that live at providers and belong to accounts, and the jobs among them. Jobs of the store's threads."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from relay.storage.rows import JobPart, JobRow, ObjectRow

INSERT_OBJECT: Final = """
    INSERT INTO objects (kind, object_id, account_id, key_id, channel, created_ms, model, requests, prompt_tokens,
        output_tokens, bytes)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
INSERT_JOB: Final = "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'open', ?)"
SELECT_OBJECT: Final = """
    SELECT number, kind, object_id, account_id, key_id, channel, created_ms, model, requests, prompt_tokens,
        output_tokens, bytes
    FROM objects
    WHERE kind = ? AND object_id = ?
"""
SELECT_NEWEST: Final = """
    SELECT number, kind, object_id, account_id, key_id, channel, created_ms, model, requests, prompt_tokens,
        output_tokens, bytes
    FROM objects
    WHERE account_id = ? AND kind = ? AND number < ?
    ORDER BY number DESC LIMIT ?
"""
SELECT_OLDEST: Final = """
    SELECT number, kind, object_id, account_id, key_id, channel, created_ms, model, requests, prompt_tokens,
        output_tokens, bytes
    FROM objects
    WHERE account_id = ? AND kind = ? AND number > ?
    ORDER BY number LIMIT ?
"""
SUM_FILES: Final = "SELECT COALESCE(SUM(bytes), 0) FROM objects WHERE account_id = ? AND kind = 'file'"
SELECT_JOBS: Final = """
    SELECT id, kind, object_id, account_id, organisation_id, key_id, channel, path, model, upstream_model, rate_card,
        hold_nano, max_cost_nano, units, created_ms, expires_ms, priority
    FROM jobs WHERE state = 'open' ORDER BY id
"""
SELECT_PARTS: Final = "SELECT job_id, record_id, model, upstream_model, requests FROM job_parts ORDER BY 1, 2"
NUMBER_MAX: Final = 2**62


def add_objects(connection: sqlite3.Connection, rows: Sequence[ObjectRow]) -> None:
    """An id that is bound already stays with its first account."""
    connection.executemany(
        INSERT_OBJECT,
        [
            (
                row.kind,
                row.object_id,
                row.account_id,
                row.key_id,
                row.channel,
                row.created_ms,
                row.model,
                row.requests,
                row.prompt_tokens,
                row.output_tokens,
                row.bytes,
            )
            for row in rows
        ],
    )


def select_object(connection: sqlite3.Connection, kind: str, object_id: str) -> ObjectRow | None:
    row = connection.execute(SELECT_OBJECT, (kind, object_id)).fetchone()
    return None if row is None else ObjectRow(*row)


def select_page(
    connection: sqlite3.Connection, account_id: int, kind: str, behind: int | None, limit: int, oldest_first: bool
) -> list[ObjectRow]:
    """Objects of an account in the order in which they were made; behind: the number of the last one seen."""
    if oldest_first:
        found = connection.execute(SELECT_OLDEST, (account_id, kind, behind or 0, limit))
    else:
        found = connection.execute(SELECT_NEWEST, (account_id, kind, NUMBER_MAX if behind is None else behind, limit))
    return [ObjectRow(*row) for row in found]


def file_bytes(connection: sqlite3.Connection, account_id: int) -> int:
    """Of all files of an account that are stored at providers."""
    total: int = connection.execute(SUM_FILES, (account_id,)).fetchone()[0]
    return total


def delete_object(connection: sqlite3.Connection, kind: str, object_id: str) -> None:
    connection.execute("DELETE FROM objects WHERE kind = ? AND object_id = ?", (kind, object_id))


def delete_responses_before(connection: sqlite3.Connection, before_ms: int) -> None:
    connection.execute("DELETE FROM objects WHERE kind = 'response' AND created_ms < ?", (before_ms,))


def insert_job(connection: sqlite3.Connection, row: JobRow, parts: Sequence[JobPart] = ()) -> None:
    connection.execute(
        INSERT_JOB,
        (
            row.id,
            row.kind,
            row.object_id,
            row.account_id,
            row.organisation_id,
            row.key_id,
            row.channel,
            row.path,
            row.model,
            row.upstream_model,
            row.rate_card,
            row.hold_nano,
            row.max_cost_nano,
            row.units,
            row.created_ms,
            row.expires_ms,
            row.priority,
        ),
    )
    connection.executemany(
        "INSERT INTO job_parts VALUES (?, ?, ?, ?, ?)",
        [(part.job_id, part.record_id, part.model, part.upstream_model, part.requests) for part in parts],
    )


def name_job(connection: sqlite3.Connection, job_id: int, object_id: str, expires_ms: int) -> None:
    """The provider has answered: the job's object has an id."""
    connection.execute(
        "UPDATE jobs SET object_id = ?, expires_ms = ? WHERE id = ? AND state = 'open'",
        (object_id, expires_ms, job_id),
    )


def open_jobs(connection: sqlite3.Connection) -> list[JobRow]:
    return [JobRow(*row) for row in connection.execute(SELECT_JOBS)]


def open_parts(connection: sqlite3.Connection) -> list[JobPart]:
    return [JobPart(*row) for row in connection.execute(SELECT_PARTS)]


def mark_ended(connection: sqlite3.Connection, job_id: int) -> bool:
    """False where it has ended before: its ending counts once."""
    connection.execute("DELETE FROM job_parts WHERE job_id = ?", (job_id,))
    cursor = connection.execute("UPDATE jobs SET state = 'ended' WHERE id = ? AND state = 'open'", (job_id,))
    return cursor.rowcount == 1


def delete_job(connection: sqlite3.Connection, job_id: int) -> None:
    """A job that never began at its provider."""
    connection.execute("DELETE FROM job_parts WHERE job_id = ?", (job_id,))
    connection.execute("DELETE FROM jobs WHERE id = ? AND state = 'open'", (job_id,))


def delete_ended_before(connection: sqlite3.Connection, before_id: int) -> None:
    """Retention: with the call record of its ending goes the job."""
    connection.execute("DELETE FROM jobs WHERE state = 'ended' AND id < ?", (before_id,))
