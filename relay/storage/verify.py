"""Recomputing everything that is a sum, from what it is a sum of. Reads only, in one snapshot."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, NamedTuple

from relay.records import CALL_COLUMNS, MS_PER_DAY, first_call_id
from relay.storage import pages, seals
from relay.storage.rows import CallDetails, CallLine, CallRow, Difference, RateCardRow

CostFunction = Callable[[RateCardRow, CallRow], int]
Check = Callable[[sqlite3.Connection], list[Difference]]

# More differences than this say no more than the first ones.
DIFFERENCES_MAX: Final = 1000

MEASURES: Final = (
    "calls",
    "failed",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "images",
    "video_seconds",
    "web_searches",
    "cost_nano",
)

# What each rollup should be, beside what it is; one side may be missing. UNION ALL and GROUP BY instead of a full join.
COMPARE_ROLLUPS: Final = """
    SELECT account_id, key_id, day, model,
        sum(a1), sum(a2), sum(a3), sum(a4), sum(a5), sum(a6), sum(a7), sum(a8), sum(a9), sum(a10),
        sum(b1), sum(b2), sum(b3), sum(b4), sum(b5), sum(b6), sum(b7), sum(b8), sum(b9), sum(b10)
    FROM (
        SELECT account_id, key_id, day, model, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10,
            0 AS b1, 0 AS b2, 0 AS b3, 0 AS b4, 0 AS b5, 0 AS b6, 0 AS b7, 0 AS b8, 0 AS b9, 0 AS b10
        FROM (
            SELECT account_id, coalesce(key_id, 0) AS key_id, calls.id / :ids_per_day AS day,
                coalesce(model, '') AS model, count(*) AS a1, count(error_code) AS a2, sum(input_tokens) AS a3,
                sum(output_tokens) AS a4, sum(cache_read_tokens) AS a5, sum(cache_write_tokens) AS a6,
                sum(images) AS a7, sum(video_seconds) AS a8, sum(web_searches) AS a9, sum(cost_nano) AS a10
            FROM calls CROSS JOIN shapes ON shapes.id = shape_id
            WHERE account_id IS NOT NULL
            GROUP BY 1, 2, 3, 4
        )
        UNION ALL
        SELECT account_id, key_id, day, model, calls, failed, input_tokens, output_tokens, cache_read_tokens,
            cache_write_tokens, images, video_seconds, web_searches, cost_nano, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
        FROM folded
        UNION ALL
        SELECT account_id, key_id, day, model, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, calls, failed, input_tokens,
            output_tokens, cache_read_tokens, cache_write_tokens, images, video_seconds, web_searches, cost_nano
        FROM rollups
    )
    GROUP BY 1, 2, 3, 4
    HAVING sum(a1) != sum(b1) OR sum(a2) != sum(b2) OR sum(a3) != sum(b3) OR sum(a4) != sum(b4)
        OR sum(a5) != sum(b5) OR sum(a6) != sum(b6) OR sum(a7) != sum(b7) OR sum(a8) != sum(b8)
        OR sum(a9) != sum(b9) OR sum(a10) != sum(b10)
    LIMIT :limit
"""

COMPARE_SPEND: Final = """
    SELECT account_id, day, sum(expected), sum(found) FROM (
        SELECT account_id, day, cost_nano AS expected, 0 AS found FROM rollups
        UNION ALL SELECT account_id, day, 0, cost_nano FROM spend
    )
    GROUP BY 1, 2 HAVING sum(expected) != sum(found) LIMIT :limit
"""

# The sums per key of what was written off, against the entries.
COMPARE_WRITTEN_OFF: Final = """
    SELECT account_id, day, sum(expected), sum(found) FROM (
        SELECT account_id, call_id / :ids_per_day AS day, amount_nano AS expected, 0 AS found
        FROM entries WHERE kind = 'write_off'
        UNION ALL SELECT account_id, day, 0, amount_nano FROM written_off
    )
    GROUP BY 1, 2 HAVING sum(expected) != sum(found) LIMIT :limit
"""

# A lot's remainder is what entries gave and took less what calls used; it is open exactly if something remains.
COMPARE_LOTS: Final = """
    SELECT lots.id, account_id, granted_nano, is_open, used_nano, remaining_nano,
        (SELECT coalesce(sum(amount_nano), 0) FROM entry_lots WHERE lot_id = lots.id) AS moved,
        (SELECT coalesce(sum(amount_nano), 0) FROM entry_lots WHERE lot_id = lots.id AND amount_nano > 0) AS given
    FROM lots LEFT JOIN lot_use ON lot_use.lot_id = lots.id
"""

# Per account: what calls cost, less what was written off, is what lots were used for; and the balance both ways.
COMPARE_ACCOUNTS: Final = """
    SELECT account_id, sum(entries), sum(written_off), sum(cost), sum(used), sum(remaining) FROM (
        SELECT account_id, amount_nano AS entries, iif(kind = 'write_off', amount_nano, 0) AS written_off,
            0 AS cost, 0 AS used, 0 AS remaining FROM entries
        UNION ALL SELECT account_id, 0, 0, cost_nano, 0, 0 FROM rollups
        UNION ALL SELECT account_id, 0, 0, 0, used_nano, remaining_nano
            FROM lots JOIN lot_use ON lot_use.lot_id = lots.id
    )
    GROUP BY 1
    HAVING sum(entries) - sum(cost) != sum(remaining) OR sum(cost) - sum(written_off) != sum(used)
    LIMIT :limit
"""

# Entries that move lots name lots for all of their amount; write-offs name none and name their call.
COMPARE_ENTRIES: Final = """
    SELECT entries.id, account_id, iif(kind = 'write_off', 0, amount_nano) AS expected,
        (SELECT coalesce(sum(entry_lots.amount_nano), 0) FROM entry_lots WHERE entry_id = entries.id) AS found
    FROM entries
    WHERE expected != found
        OR (kind = 'write_off') != (call_id != 0)
        OR (kind IN ('refund', 'expiry', 'forfeit') AND amount_nano > 0)
        OR (kind IN ('purchased', 'subscription', 'trial', 'write_off') AND amount_nano < 0)
        OR account_id NOT IN (SELECT id FROM accounts)
    LIMIT :limit
"""


# A call counts for the organisation that its account belongs to, or has belonged to.
COMPARE_ORGANISATIONS: Final = """
    SELECT calls.id, account_id, organisation_id
    FROM calls
    WHERE account_id IS NOT NULL
        AND coalesce(organisation_id, 0) != coalesce((SELECT organisation_id FROM accounts WHERE id = account_id), -1)
        AND NOT EXISTS (
            SELECT 1 FROM memberships
            WHERE memberships.account_id = calls.account_id
                AND memberships.organisation_id = coalesce(calls.organisation_id, 0)
        )
    LIMIT :limit
"""

# What was looked at in vain within this time is said to be unchecked. A gigabyte takes about ten seconds.
PAGES_SECONDS: Final = 120.0


class Verified(NamedTuple):
    """What was found, the tables whose pages there was no time to check, and the last seal."""

    differences: list[Difference]
    unchecked: list[str]
    seal: tuple[int, bytes]


def verify(
    connection: sqlite3.Connection, cost_of: CostFunction | None, *, pages_seconds: float = PAGES_SECONDS
) -> Verified:
    """All differences, up to DIFFERENCES_MAX of each kind."""
    connection.execute("BEGIN")
    try:
        differences, unchecked = pages.check(connection, pages_seconds, whole=True)
        differences += pages.check_schema(connection)
        checks: list[Check] = [seals.check, _ledger, _sums, _jobs, _organisations]
        if cost_of is not None:
            checks.append(lambda db: _costs(db, cost_of))
        for check in checks:
            try:
                differences += check(connection)
            except sqlite3.DatabaseError:
                # What cannot be read has been named; one that only this found is worse than damage.
                if not differences:
                    raise
        return Verified(differences, unchecked, _last_seal(connection))
    finally:
        connection.execute("COMMIT")


def _last_seal(connection: sqlite3.Connection) -> tuple[int, bytes]:
    try:
        return seals.newest(connection)
    except sqlite3.DatabaseError:
        return 0, seals.FIRST


def _organisations(connection: sqlite3.Connection) -> list[Difference]:
    rows = connection.execute(COMPARE_ORGANISATIONS, {"limit": DIFFERENCES_MAX})
    return [Difference("organisation", account_id, str(call_id), 0, found or 0) for call_id, account_id, found in rows]


def _ledger(connection: sqlite3.Connection) -> list[Difference]:
    limit = {"limit": DIFFERENCES_MAX}
    differences: list[Difference] = []
    for entry_id, account_id, expected, found in connection.execute(COMPARE_ENTRIES, limit):
        differences.append(Difference("entry", account_id, f"entry_{entry_id}", expected, found))
    lots = connection.execute(COMPARE_LOTS)
    for lot_id, account_id, granted, is_open, used, remaining, moved, given in lots:
        subject = f"lot_{lot_id}"
        if used is None or moved - used != remaining:
            differences.append(Difference("lot", account_id, subject, moved - (used or 0), remaining or 0))
        if given != granted:
            differences.append(Difference("lot", account_id, subject + " granted", given, granted))
        if is_open != bool(remaining):
            differences.append(Difference("lot", account_id, subject + " open", int(bool(remaining)), is_open))
    for account_id, entries, written_off, cost, used, remaining in connection.execute(COMPARE_ACCOUNTS, limit):
        if entries - cost != remaining:
            differences.append(Difference("balance", account_id, "balance", entries - cost, remaining))
        if cost - written_off != used:
            differences.append(Difference("balance", account_id, "used", cost - written_off, used))
    return differences


def _sums(connection: sqlite3.Connection) -> list[Difference]:
    differences: list[Difference] = []
    parameters = {"limit": DIFFERENCES_MAX, "ids_per_day": first_call_id(MS_PER_DAY)}
    for account_id, key_id, day, model, *sums in connection.execute(COMPARE_ROLLUPS, parameters):
        half = len(MEASURES)
        for name, expected, found in zip(MEASURES, sums[:half], sums[half:], strict=True):
            if expected != found:
                subject = f"key_{key_id} day {day} {model or '-'} {name}"
                differences.append(Difference("rollup", account_id, subject, expected, found))
    for account_id, day, expected, found in connection.execute(COMPARE_SPEND, {"limit": DIFFERENCES_MAX}):
        differences.append(Difference("spend", account_id, f"day {day}", expected, found))
    for account_id, day, expected, found in connection.execute(COMPARE_WRITTEN_OFF, parameters):
        differences.append(Difference("spend", account_id, f"day {day} written off", expected, found))
    return differences


# A job that has ended has the record of its ending, as long as records of its age are kept, or that was set aside; an
# open one has none yet.
COMPARE_JOBS: Final = """
    SELECT jobs.id, jobs.account_id, iif(state = 'ended', 1, 0) AS expected,
        iif(calls.id IS NULL AND NOT EXISTS (SELECT 1 FROM set_aside WHERE call_id = jobs.id), 0, 1) AS found
    FROM jobs LEFT JOIN calls ON calls.id = jobs.id
    WHERE expected != found
        AND (state = 'open' OR jobs.id >= (SELECT coalesce(min(id), 0) FROM calls))
    LIMIT :limit
"""


def _jobs(connection: sqlite3.Connection) -> list[Difference]:
    rows = connection.execute(COMPARE_JOBS, {"limit": DIFFERENCES_MAX})
    return [Difference("job", account_id, str(job_id), expected, found) for job_id, account_id, expected, found in rows]


def _costs(connection: sqlite3.Connection, cost_of: CostFunction) -> list[Difference]:
    """Each call against its rate card. A call that cost nothing and names no card is not looked at."""
    cards = {row[0]: RateCardRow(*row) for row in connection.execute("SELECT id, body, created_ms FROM rate_cards")}
    differences: list[Difference] = []
    lines: dict[int, list[CallLine]] = {}  # few calls have any
    for call_id, _, *values in connection.execute("SELECT * FROM call_lines ORDER BY call_id, line"):
        lines.setdefault(call_id, []).append(CallLine(*values))
    for row in connection.execute(
        "SELECT call_records.*, call_details.* FROM call_records LEFT JOIN call_details ON call_id = call_records.id"
    ):
        half = len(CALL_COLUMNS)
        details = None if row[half] is None else CallDetails(*row[half + 1 :])
        call = CallRow(*[*row[:half], details, tuple(lines.get(row[0], ()))])
        if not call.rate_card and call.cost_nano == 0:
            continue
        card = cards.get(call.rate_card or "")
        expected = -1 if card is None else cost_of(card, call)
        if expected != call.cost_nano:
            differences.append(Difference("cost", call.account_id or 0, str(call.id), expected, call.cost_nano))
            if len(differences) >= DIFFERENCES_MAX:
                break
    return differences
