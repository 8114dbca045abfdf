"""Prices: from the configuration's decimals to the integers that a call is charged by, and to the card that names them.

A rate card is everything that decides a price: the rates of all models and the discount. Its id is a digest of exactly
that, so equal prices have equal ids, on every machine and after every restart, and a changed price has another.
A card's body is stored before its first call; with it, and the record of a call, the cost can be computed again.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, Protocol

from relay import units
from relay._fastpath import Rate
from relay.config import Config
from relay.config import Rate as ConfiguredRate

# The dimensions of a price, as the fields of a configured rate and of a compiled one are named.
DIMENSIONS: Final = (
    "input",
    "output",
    "cache_read",
    "cache_write",
    "cache_write_1h",
    "image",
    "video_second",
    "web_search",
)
# What a cost is clamped to on the hot path (NANO_MAX in fastpath/limits.pxi); only absurd usage reaches it.
COST_NANO_MAX: Final = 2**61
_PPB = units.DISCOUNT_PPB_NONE
_SCALE = 1_000_000 * _PPB  # a rate is per 10^6 tokens, a discount per 10^9


def card_body(config: Config) -> str:
    """The card in force, as canonical JSON: decimal texts, models in order, no blanks. ValueError: a repeated model."""
    rates: dict[str, dict[str, str]] = {}
    for rate in config.rates:
        if rate.model in rates:
            raise ValueError("a model is priced twice")
        rates[rate.model] = {name: units.format_credits(nano) for name, nano in _nano(rate).items()}
    card = {"discount": units.format_credits(units.discount_ppb(config.billing.discount)), "rates": rates}
    return json.dumps(card, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def card_id(body: str) -> str:
    """The name of a card: `rates-` and 12 hexadecimal digits of its SHA-256."""
    return "rates-" + hashlib.sha256(body.encode()).hexdigest()[:12]


def rate_cards(config: Config) -> dict[str, str]:
    """Every card in force, id to body; today that is one."""
    body = card_body(config)
    return {card_id(body): body}


def build_rates(config: Config) -> dict[str, Rate]:
    """The compiled rate of each priced model, by its public name. ValueError for a repeated model."""
    card = card_id(card_body(config))
    ppb = units.discount_ppb(config.billing.discount)
    return {
        rate.model: Rate(model=rate.model.encode(), card=card, discount_ppb=ppb, **_nano(rate)) for rate in config.rates
    }


def _nano(rate: ConfiguredRate) -> dict[str, int]:
    """Nano-credits per million tokens, or per piece."""
    return {name: units.exact_nano(getattr(rate, name)) for name in DIMENSIONS}


@functools.lru_cache(maxsize=64)
def _parsed(body: str) -> dict[str, Any]:
    """A card, read once for all of its calls."""
    card: dict[str, Any] = json.loads(body)
    return card


class Billed(Protocol):
    """What a call's record says of its usage and cost."""

    @property
    def model(self) -> str | None: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def cache_read_tokens(self) -> int: ...
    @property
    def cache_write_tokens(self) -> int: ...
    @property
    def images(self) -> int: ...
    @property
    def video_seconds(self) -> int: ...
    @property
    def web_searches(self) -> int: ...
    @property
    def cost_nano(self) -> int: ...


def cost_by_card(body: str, call: Billed) -> int:
    """What a recorded call should have cost, in nano-credits, from the body of its card; for `relay ledger verify`.

    Written apart from the compiled arithmetic, so that it can contradict it. A record does not say which part of the
    cache writes was for an hour: any cost between none and all of them is confirmed. KeyError: no such model.
    """
    card = _parsed(body)
    prices: Mapping[str, str] = card["rates"][call.model]
    nano = {name: units.parse_credits(prices[name]) for name in DIMENSIONS}
    ppb = units.parse_credits(card["discount"])  # parts per 10^9, as nano-credits are

    def total(cache_write: str) -> int:
        parts = (
            call.input_tokens * nano["input"]
            + call.output_tokens * nano["output"]
            + call.cache_read_tokens * nano["cache_read"]
            + call.cache_write_tokens * nano[cache_write]
            + 1_000_000
            * (
                call.images * nano["image"]
                + call.video_seconds * nano["video_second"]
                + call.web_searches * nano["web_search"]
            )
        )
        return min(-(-parts * ppb // _SCALE), COST_NANO_MAX)

    least, most = sorted((total("cache_write"), total("cache_write_1h")))
    return call.cost_nano if least <= call.cost_nano <= most else total("cache_write")
