"""What could not be recorded is set aside: nothing of it is charged, nothing of it is lost, and the relay goes on.

A record that the schema does not take however it is mended, or a slot of the journal that cannot be what a call wrote
(a damaged page). `relay ledger verify` names them.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from itertools import zip_longest
from typing import Any, Final, Literal

from relay._fastpath import JOURNAL_TEXT_AT
from relay.records import C_ACCOUNT, C_ID, CALL_COLUMNS, CallRecord
from relay.storage.rows import SetAsideRow

log = logging.getLogger("relay.storage")

CONTENT_BYTES_MAX: Final = 4096
REASON_LENGTH_MAX: Final = 200
NAMED_MAX: Final = 1000  # more than this, `verify` names the newest


def put_record(connection: sqlite3.Connection, record: CallRecord, reason: str, now_ms: int) -> None:
    """Inside a transaction."""
    known = [None if name in ("source_ip", "user_agent") else value for name, value in _named(record)]
    content = json.dumps(known, default=repr).encode("utf-8", "replace")
    put(connection, "record", content, reason, _number(record, C_ID), _number(record, C_ACCOUNT), now_ms)


def put(
    connection: sqlite3.Connection,
    kind: Literal["record", "slot"],
    content: bytes,
    reason: str,
    call_id: int,
    account_id: int,
    now_ms: int,
) -> None:
    """Inside a transaction. What stands there already (a recovery that was interrupted) is not kept twice."""
    content = content[:CONTENT_BYTES_MAX]
    cursor = connection.execute(
        "INSERT INTO set_aside (time_ms, kind, reason, call_id, account_id, content) SELECT ?, ?, ?, ?, ?, ?"
        " WHERE NOT EXISTS (SELECT 1 FROM set_aside WHERE call_id = ? AND content = ?)",
        (now_ms, kind, reason[:REASON_LENGTH_MAX], call_id, account_id, content, call_id, content),
    )
    if cursor.rowcount:
        connection.execute(
            "INSERT INTO events (time_ms, kind, code, count, detail) VALUES (?, 'store', ?, 1, ?)",
            (now_ms, f"{kind}_set_aside", reason[:REASON_LENGTH_MAX]),
        )
        log.error("a %s of call %d was set aside and not charged: %s", kind, call_id, reason)


def rows(connection: sqlite3.Connection) -> list[SetAsideRow]:
    """Newest first."""
    found = connection.execute(
        "SELECT id, time_ms, kind, reason, call_id, account_id FROM set_aside ORDER BY id DESC LIMIT ?", (NAMED_MAX,)
    )
    return [SetAsideRow(*row) for row in found]


def forget_texts(connection: sqlite3.Connection, before_ms: int) -> None:
    """Retention: of slots set aside before that, the numbers stay; addresses are among the texts."""
    connection.execute(
        "UPDATE set_aside SET content = substr(content, 1, ?1) WHERE kind = 'slot' AND time_ms < ?2"
        " AND length(content) > ?1",
        (JOURNAL_TEXT_AT, before_ms),
    )


def _named(record: CallRecord) -> list[tuple[str, Any]]:
    return list(zip_longest(CALL_COLUMNS, record, fillvalue=""))[: len(record)]


def _number(record: CallRecord, place: int) -> int:
    value = record[place] if len(record) > place else 0
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else 0
