"""Sums over the rollups: what accounts used, for as long as the store exists, whatever retention has deleted."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from relay.storage.rows import UsageRow

# What sums can be grouped by, and where it stands. An account counts for the organisation that it belongs to now.
GROUPS: Final = {
    "day": "rollups.day",
    "model": "rollups.model",
    "key": "rollups.key_id",
    "account": "rollups.account_id",
    "organisation": "accounts.organisation_id",
}
_SUMS: Final = (
    "calls", "failed", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "images",
    "video_seconds", "web_searches", "cost_nano",
)  # fmt: skip


def select_usage(
    connection: sqlite3.Connection,
    groups: Sequence[str],
    *,
    account_id: int | None,
    key_id: int | None,
    organisation_id: int | None,
    model: str | None,
    since_day: int,
    until_day: int,
    limit: int,
) -> list[UsageRow]:
    """Sums by the named GROUPS, in their order; days from `since_day` to `until_day`, both included.

    A group that is not asked for is None in the rows. At most `limit` rows.
    """
    columns = [GROUPS[name] if name in groups else "NULL" for name in GROUPS]
    sums = [f"sum(rollups.{name})" for name in _SUMS]
    # Names are of the two tables above, never of a request.
    query = (
        f"SELECT {', '.join(columns + sums)} FROM rollups"  # noqa: S608
        " JOIN accounts ON accounts.id = rollups.account_id"
        " WHERE rollups.day BETWEEN :since_day AND :until_day"
        " AND (:account_id IS NULL OR rollups.account_id = :account_id)"
        " AND (:key_id IS NULL OR rollups.key_id = :key_id)"
        " AND (:organisation_id IS NULL OR accounts.organisation_id = :organisation_id)"
        " AND (:model IS NULL OR rollups.model = :model)"
    )
    if groups:
        named = ", ".join(GROUPS[name] for name in groups)
        query += f" GROUP BY {named} ORDER BY {named}"
    rows = connection.execute(
        query + " LIMIT :limit",
        {
            "since_day": since_day, "until_day": until_day, "account_id": account_id, "key_id": key_id,
            "organisation_id": organisation_id, "model": model, "limit": limit,
        },
    )  # fmt: skip
    return [UsageRow(*row) for row in rows if row[len(GROUPS)] is not None]
