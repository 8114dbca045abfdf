"""`relay usage` and its routes: what was used and what it cost, by day, month, model, key, account or organisation.

The sums are kept for ever: retention deletes call records, not these.
"""

from __future__ import annotations

from typing import Any, Final

from relay import units
from relay.control import commands, values
from relay.control.documents import Document
from relay.control.failures import invalid
from relay.records import MS_PER_DAY
from relay.storage import rows
from relay.storage.store import Store

GROUPS: Final = ("day", "month", "model", "key", "account", "organisation")
ROWS_MAX: Final = 100_000
_SUMS: Final = rows.UsageRow.__struct_fields__[5:]


def groups(by: str, allowed: tuple[str, ...] = GROUPS) -> list[str]:
    """The groups named in `by`, comma-separated. CommandError for others."""
    named = list(dict.fromkeys(word for word in by.split(",") if word))
    if not named or any(name not in allowed for name in named) or ("day" in named and "month" in named):
        expected = f"by: expected some of {', '.join(allowed)}, separated by commas; day and month exclude each other"
        raise invalid(expected, "by")
    return named


async def document(store: Store, by: list[str], params: commands.UsagePeriod, now_ms: int, **filters: Any) -> Document:
    """Rows with the fields of `by` and the sums, and the total of all rows. Days are UTC days, counted whole."""
    since_ms = values.moment(params.since, "since", now_ms=now_ms)
    until_ms = values.moment(params.until, "until", now_ms=now_ms)
    await store.flush()
    found = await store.usage(
        ["day" if name == "month" else name for name in by],
        since_day=0 if since_ms is None else since_ms // MS_PER_DAY,
        until_day=None if until_ms is None else (until_ms - 1) // MS_PER_DAY,
        model=params.model,
        limit=ROWS_MAX + 1,
        **filters,
    )
    if len(found) > ROWS_MAX:
        raise invalid(f"by: more than {ROWS_MAX} rows; use fewer groups, or since and until", "by")
    sums: dict[tuple[Any, ...], list[int]] = {}
    for row in sorted(found, key=lambda row: [_place(row, name) for name in by]):
        group = tuple(_value(row, name) for name in by)
        into = sums.setdefault(group, [0] * len(_SUMS))
        for place, name in enumerate(_SUMS):
            into[place] += getattr(row, name)
    total = [sum(column) for column in zip(*sums.values(), strict=True)] or [0] * len(_SUMS)
    return {
        "usage": [dict(zip(map(field, by), group, strict=True)) | _figures(into) for group, into in sums.items()],
        "total": _figures(total),
    }


async def spent(store: Store, now_ms: int, *, account_id: int, key_id: int | None = None) -> Document:
    """What was charged for ended calls of this UTC day and month, as caps count it, as far as it is committed: it waits
    for no disk."""
    today = now_ms // MS_PER_DAY
    month_began = units.first_day_of_month(units.month_of_day(today))
    charged = await store.charged(account_id, key_id=key_id, since_day=month_began)
    return {
        "daily": units.format_credits(max(charged.get(today, 0), 0)),
        "monthly": units.format_credits(max(sum(charged.values()), 0)),
    }


def field(group: str) -> str:
    """The field of a row that says which group it is."""
    return f"{group}_id" if group in ("key", "account", "organisation") else group


def _place(row: rows.UsageRow, group: str) -> int | str:
    """Where a row stands among others of its group: by number or name."""
    if group in ("day", "month"):
        return row.day or 0
    if group == "model":
        return row.model or ""
    return {"key": row.key_id, "account": row.account_id, "organisation": row.organisation_id}[group] or 0


def _value(row: rows.UsageRow, group: str) -> str | None:
    if group == "day":
        return units.day_text(row.day or 0)
    if group == "month":
        return units.day_text(row.day or 0)[:7]
    if group == "model":
        return row.model or None
    if group == "key":
        return units.key_text(row.key_id) if row.key_id else None
    if group == "account":
        return units.account_text(row.account_id) if row.account_id else None
    return units.organisation_text(row.organisation_id) if row.organisation_id else None


def _figures(sums: list[int]) -> Document:
    figures: Document = dict(zip(_SUMS, sums, strict=True))
    return figures | {"cost": units.format_credits(figures.pop("cost_nano"))}
