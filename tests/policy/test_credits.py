"""Lots: which is spent first, and until when they count."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.credits import KIND_ORDER, Lot, expired, months_later, spend, spending_key

lots = st.lists(
    st.builds(
        Lot,
        id=st.integers(1, 10**6),
        kind=st.sampled_from(KIND_ORDER),
        remaining_nano=st.integers(0, 100),
        expires_ms=st.sampled_from([0, 0, 5, 10, 20]),
    ),
    max_size=8,
    unique_by=lambda lot: lot.id,
)


def test_order() -> None:
    purchased = Lot(1, "purchased", 5)
    subscription = Lot(2, "subscription", 5)
    trial = Lot(3, "trial", 5, expires_ms=50)
    expiring = Lot(4, "purchased", 5, expires_ms=50)
    sooner = Lot(5, "purchased", 5, expires_ms=40)
    older = Lot(0, "purchased", 5)
    shuffled = [purchased, subscription, trial, expiring, sooner, older]
    assert sorted(shuffled, key=spending_key) == [sooner, trial, expiring, subscription, older, purchased]


@given(lots=lots, nano=st.integers(0, 500), now_ms=st.integers(0, 25))
def test_spending(lots: list[Lot], nano: int, now_ms: int) -> None:
    parts = spend(lots, nano, now_ms=now_ms)
    by_id = {lot.id: lot for lot in lots}
    there = sum(lot.remaining_nano for lot in lots if not expired(lot, now_ms))
    assert sum(part for _, part in parts) == min(nano, there)
    assert all(0 < part <= by_id[number].remaining_nano for number, part in parts)
    keys = [spending_key(by_id[number]) for number, _ in parts]
    assert keys == sorted(keys)
    # All but the last are used up.
    assert all(part == by_id[number].remaining_nano for number, part in parts[:-1])


@pytest.mark.parametrize(
    ("start", "months", "end"),
    [
        ("2026-01-31T10:00:00.123", 1, "2026-02-28T10:00:00.123"),
        ("2027-12-31T10:00:00", 2, "2028-02-29T10:00:00"),
        ("2028-02-29T23:59:59.999", 12, "2029-02-28T23:59:59.999"),
        ("2026-06-15T00:00:00", 12, "2027-06-15T00:00:00"),
        ("2026-06-15T00:00:00", 0, "2026-06-15T00:00:00"),
    ],
)
def test_months(start: str, months: int, end: str) -> None:
    def ms(text: str) -> int:
        moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
        return int(moment.replace(microsecond=0).timestamp()) * 1000 + moment.microsecond // 1000

    assert months_later(ms(start), months) == ms(end)
