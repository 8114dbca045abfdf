"""Lots of credit: in which order they are spent, and until when they are valid.

The store spends lots in SQL, in this order; its tests compare it with the functions here.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

# Lots that expire at the same time, or never, are spent in this order: what the customer did not pay for first.
KIND_ORDER: Final = ("subscription", "trial", "adjustment", "purchased")
REFUNDABLE_KINDS: Final = ("purchased",)


@dataclass(frozen=True)
class Lot:
    """Credit of one addition. `expires_ms` 0: never. Amounts in nano-credits, times in milliseconds since 1970."""

    id: int
    kind: str
    remaining_nano: int
    expires_ms: int = 0


def spending_key(lot: Lot) -> tuple[bool, int, int, int]:
    """Sorts lots as they are spent: soonest expiry first (never last), then by kind, then the oldest."""
    return (lot.expires_ms == 0, lot.expires_ms, KIND_ORDER.index(lot.kind), lot.id)


def spend(lots: Iterable[Lot], nano: int, *, now_ms: int) -> list[tuple[int, int]]:
    """Which lots give how much of an amount: (lot id, nano-credits), in order. Expired lots give nothing.

    The sum is less than the amount where the lots do not have it.
    """
    parts: list[tuple[int, int]] = []
    for lot in sorted(lots, key=spending_key):
        if nano <= 0:
            break
        if lot.remaining_nano > 0 and not expired(lot, now_ms):
            part = min(lot.remaining_nano, nano)
            parts.append((lot.id, part))
            nano -= part
    return parts


def expired(lot: Lot, now_ms: int) -> bool:
    """True from the very millisecond of expiry on."""
    return lot.expires_ms != 0 and lot.expires_ms <= now_ms


def months_later(unix_ms: int, months: int) -> int:
    """The same time of day that many months on (UTC); the last day of the month where the day does not exist there."""
    moment = datetime.fromtimestamp(unix_ms // 1000, UTC)
    years, month = divmod(moment.month - 1 + months, 12)
    year = moment.year + years
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return int(moment.replace(year=year, month=month + 1, day=day).timestamp()) * 1000 + unix_ms % 1000
