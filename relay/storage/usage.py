"""Sums over the rollups: what accounts used, for as long as the store exists, whatever retention has deleted."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from relay.storage.rows import UsageRow

GROUPS: Final = ("day", "model", "key", "account", "organisation")
# An account counts for the organisation that it belongs to now. What is not grouped by is NULL in every row.
SELECT_USAGE: Final = """
    SELECT
        CASE WHEN :by_day THEN rollups.day END,
        CASE WHEN :by_model THEN rollups.model END,
        CASE WHEN :by_key THEN rollups.key_id END,
        CASE WHEN :by_account THEN rollups.account_id END,
        CASE WHEN :by_organisation THEN accounts.organisation_id END,
        sum(rollups.calls), sum(rollups.failed), sum(rollups.input_tokens), sum(rollups.output_tokens),
        sum(rollups.cache_read_tokens), sum(rollups.cache_write_tokens), sum(rollups.images),
        sum(rollups.video_seconds), sum(rollups.web_searches), sum(rollups.cost_nano)
    FROM rollups JOIN accounts ON accounts.id = rollups.account_id
    WHERE rollups.day BETWEEN :since_day AND :until_day
        AND (:account_id IS NULL OR rollups.account_id = :account_id)
        AND (:key_id IS NULL OR rollups.key_id = :key_id)
        AND (:organisation_id IS NULL OR accounts.organisation_id = :organisation_id)
        AND (:model IS NULL OR rollups.model = :model)
    GROUP BY 1, 2, 3, 4, 5
    LIMIT :limit
"""


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
    """Sums by the named GROUPS; days from `since_day` to `until_day`, both included.

    A group that is not asked for is None in the rows, which are in no order. At most `limit` rows.
    """
    rows = connection.execute(
        SELECT_USAGE,
        {
            **{f"by_{name}": name in groups for name in GROUPS},
            "since_day": since_day, "until_day": until_day, "account_id": account_id, "key_id": key_id,
            "organisation_id": organisation_id, "model": model, "limit": limit,
        },
    )  # fmt: skip
    return [UsageRow(*row) for row in rows]
