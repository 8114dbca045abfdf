"""Prices that take effect by themselves: which of the announced ones hold at a moment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from relay import rate_files
from relay.config import Config, Rate, expanded, with_fees


class Announced(Protocol):
    """A row of the store's schedule."""

    @property
    def id(self) -> int: ...
    @property
    def body(self) -> str: ...
    @property
    def effective_ms(self) -> int: ...
    @property
    def announced_ms(self) -> int: ...
    @property
    def withdrawn_ms(self) -> int: ...


def effective(schedule: Iterable[Announced], now_ms: int) -> list[Announced]:
    """Those in force by then, in the order of their times; of equal times the one announced last comes last."""
    held = [row for row in schedule if not row.withdrawn_ms and row.effective_ms <= now_ms]
    return sorted(held, key=lambda row: (row.effective_ms, row.id))


def next_change_ms(schedule: Iterable[Announced], now_ms: int) -> int | None:
    """When the next one comes into force."""
    return min(
        (row.effective_ms for row in schedule if not row.withdrawn_ms and row.effective_ms > now_ms), default=None
    )


def in_force(config: Config, schedule: Iterable[Announced], now_ms: int) -> Config:
    """The configuration with the rates that hold then: a scheduled one stands above the file's and the shipped one."""
    rates = {rate.model: rate for rate in config.rates}
    scheduled = announced_models(effective(schedule, now_ms))
    for row in effective(schedule, now_ms):
        stated = rate_files.read(row.body)
        config = _served(config, stated)
        if config.billing.default_rates:
            stated = with_fees(stated, config.channels)
        rates |= {rate.model: rate for rate in stated}
    if not scheduled:
        return config
    return msgspec.structs.replace(
        config, rates=tuple(rates.values()), default_models=config.default_models - scheduled
    )


def _served(config: Config, rates: tuple[Rate, ...]) -> Config:
    """Models that have a price now are served by the channels whose patterns they match."""
    channels = expanded(config.channels, config.patterns, rates, default_rates=False)
    return msgspec.structs.replace(config, channels=channels)


def announced_models(rows: Sequence[Announced]) -> frozenset[str]:
    """The models whose price they state."""
    return frozenset(rate.model for row in rows for rate in rate_files.read(row.body))
