"""What was charged, by day: what calls cost, less what was written off. Caps count this, and `spent` shows it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

# What is summed up per account is not read key by key: an account may have a million keys.
COST_OF_KEY: Final = """
    SELECT day, sum(cost_nano) FROM rollups
    WHERE account_id = :account_id AND key_id = :key_id AND day BETWEEN :first_day AND :last_day GROUP BY day
"""
WRITTEN_OFF_OF_KEY: Final = """
    SELECT day, sum(amount_nano) FROM written_off
    WHERE account_id = :account_id AND key_id = :key_id AND day BETWEEN :first_day AND :last_day GROUP BY day
"""
COST_OF_ACCOUNT: Final = """
    SELECT day, cost_nano FROM spend WHERE account_id = :account_id AND day BETWEEN :first_day AND :last_day
"""
WRITTEN_OFF_OF_ACCOUNT: Final = """
    SELECT day, sum(amount_nano) FROM written_off
    WHERE account_id = :account_id AND day BETWEEN :first_day AND :last_day GROUP BY day
"""
COST_OF_ORGANISATION: Final = """
    SELECT day, sum(cost_nano) FROM accounts CROSS JOIN spend ON account_id = accounts.id
    WHERE organisation_id = :organisation_id AND organisation_id != 0 AND day BETWEEN :first_day AND :last_day
    GROUP BY day
"""
WRITTEN_OFF_OF_ORGANISATION: Final = """
    SELECT day, sum(amount_nano) FROM accounts CROSS JOIN written_off ON account_id = accounts.id
    WHERE organisation_id = :organisation_id AND organisation_id != 0 AND day BETWEEN :first_day AND :last_day
    GROUP BY day
"""


def of_key(
    connection: sqlite3.Connection, account_id: int, key_id: int, first_day: int, last_day: int
) -> dict[int, int]:
    """By day, of the days on which there was anything; both ends count."""
    values = {"account_id": account_id, "key_id": key_id, "first_day": first_day, "last_day": last_day}
    cost = connection.execute(COST_OF_KEY, values)
    return _less(cost, connection.execute(WRITTEN_OFF_OF_KEY, values))


def of_account(connection: sqlite3.Connection, account_id: int, first_day: int, last_day: int) -> dict[int, int]:
    values = {"account_id": account_id, "first_day": first_day, "last_day": last_day}
    cost = connection.execute(COST_OF_ACCOUNT, values)
    return _less(cost, connection.execute(WRITTEN_OFF_OF_ACCOUNT, values))


def of_organisation(
    connection: sqlite3.Connection, organisation_id: int, first_day: int, last_day: int
) -> dict[int, int]:
    """Of the accounts that belong to it now."""
    values = {"organisation_id": organisation_id, "first_day": first_day, "last_day": last_day}
    cost = connection.execute(COST_OF_ORGANISATION, values)
    return _less(cost, connection.execute(WRITTEN_OFF_OF_ORGANISATION, values))


def _less(cost: Iterable[tuple[int, int]], written_off: Iterable[tuple[int, int]]) -> dict[int, int]:
    charged = dict(cost)
    for day, amount_nano in written_off:
        charged[day] = charged.get(day, 0) - amount_nano
    return charged
