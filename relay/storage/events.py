"""Reading events. They are written in groups with the calls (see batch.py)."""

from __future__ import annotations

import sqlite3

from relay.storage.rows import EventRow


def select_events(
    connection: sqlite3.Connection, since_ms: int, kind: str | None, account_id: int | None, limit: int
) -> list[EventRow]:
    """Newest first, in the order in which they were stored."""
    rows = connection.execute(
        """
        SELECT id, time_ms, kind, code, account_id, key_id, scope, channel, source_ip, count, detail FROM events
        WHERE time_ms >= :since AND (:kind IS NULL OR kind = :kind) AND (:account IS NULL OR account_id = :account)
        ORDER BY id DESC LIMIT :limit
        """,
        {"since": since_ms, "kind": kind, "account": account_id, "limit": limit},
    )
    return [EventRow(*row) for row in rows]
