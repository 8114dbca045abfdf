"""Medians, spreads and verdicts over interleaved rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ROUNDS_MIN = 3  # with fewer rounds no verdict is given
NOISY_SPREAD = 0.25  # quartiles further apart than this share of the median: the figure is marked


@dataclass(frozen=True)
class Summary:
    """Of one figure over the rounds. `low` and `high` are quartiles (the extremes below five rounds)."""

    median: float
    low: float
    high: float
    values: tuple[float, ...]

    @property
    def noisy(self) -> bool:
        return self.median != 0 and (self.high - self.low) / abs(self.median) > NOISY_SPREAD


def summarize(values: Sequence[float]) -> Summary | None:
    """None where nothing was measured."""
    if not values:
        return None
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if len(ordered) >= 5:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return Summary(statistics.median(ordered), low, high, tuple(values))


def pairwise(ours: Sequence[float], theirs: Sequence[float], kind: str) -> list[float]:
    """Round by round, so that what disturbed a whole round falls out: `ratio` ours/theirs, `difference` ours-theirs."""
    if kind == "ratio":
        return [a / b for a, b in zip(ours, theirs, strict=False) if b]
    return [a - b for a, b in zip(ours, theirs, strict=False)]


def verdict(summary: Summary | None, limit: float) -> str:
    """`met` if the upper quartile keeps the bar, `missed` if the lower one breaks it, else `inconclusive`."""
    if summary is None or len(summary.values) < ROUNDS_MIN:
        return "inconclusive"
    if summary.high <= limit:
        return "met"
    return "missed" if summary.low > limit else "inconclusive"
