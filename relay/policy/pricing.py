"""Prices: from the configuration's decimals to the integers that a call is charged by, and to the card that names them.

A rate card is everything that decides a price: the rates of all models and the discount. Its id is a digest of exactly
that, so equal prices have equal ids, on every machine and after every restart, and a changed price has another.
A card's body is stored before its first call; with it, and the record of a call, the cost can be computed again.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Protocol

from relay import units
from relay._fastpath import Rate
from relay.config import Config, RateTier
from relay.config import Rate as ConfiguredRate
from relay.records import RECOVERED_LINE, TRANSCRIPTION_LINE

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
# Tokens that may be priced apart from text, and the price that they have otherwise (`apart`).
APART: Final = {
    "audio_input": "input",
    "audio_output": "output",
    "image_input": "input",
    "image_output": "output",
    "audio_cache_read": "cache_read",
    "image_cache_read": "cache_read",
}
ALL_DIMENSIONS: Final = (*DIMENSIONS, *APART)
# What a price that is not stated follows where it is the same without the condition of a tier.
_FOLLOWS: Final = {"cache_read": "input", "cache_write": "input", "cache_write_1h": "cache_write"}
# Records under these are of many requests together: prices that depend on the length of a prompt do not apply.
WHOLE_PATHS: Final = ("/v1/batches", "/v1/messages/batches", "/v1beta/models/{model}:batchGenerateContent")
SERVICES: Final = ("standard", "batch", "flex", "priority")
# What a cost is clamped to on the hot path (COST_MAX in fastpath/money.pxi); only absurd usage reaches it.
COST_NANO_MAX: Final = 10**16
_PPB = units.DISCOUNT_PPB_NONE
_SCALE = 1_000_000 * _PPB  # a rate is per 10^6 tokens, a discount per 10^9

Prices = dict[str, int]


def discount_of(config: Config, model: str) -> Decimal:
    """The factor of a model's prices: of the longest name or beginning in billing.discounts, else billing.discount."""
    discounts = config.billing.discounts
    if model in discounts:
        return discounts[model]
    matching = [pattern for pattern in discounts if pattern.endswith("*") and model.startswith(pattern[:-1])]
    return discounts[max(matching, key=len)] if matching else config.billing.discount


def apart(name: str, prices: Mapping[str, int]) -> int:
    """What tokens of audio or images cost where nothing is said of them: as text.

    Nothing, for those of pictures in an answer, where a picture itself has a price: it is not paid twice.
    """
    return 0 if name == "image_output" and prices["image"] else prices[APART[name]]


def tier_table(rate: ConfiguredRate) -> dict[tuple[int, str], Prices]:
    """Every set of prices of a model: {(prompt tokens above which it holds, service): nano-credits}.

    A tier states what differs. What it leaves out costs as in the standard service at the same limit; a service that
    states nothing at a limit costs the dearer of what it does below and of the standard service, price by price: a
    forgotten line must not sell below cost. A service that states nothing at all is not in the table.
    """
    stated = {(tier.above, tier.service): tier for tier in rate.tiers}
    table: dict[tuple[int, str], Prices] = {}
    standard = _nano(rate)
    below: dict[str, Prices] = {}
    for above in sorted({0} | {tier.above for tier in rate.tiers}):
        if above:
            standard = _tier_prices(stated.get((above, "standard")), standard)
        table[above, "standard"] = standard
        for service in SERVICES[1:]:
            tier = stated.get((above, service))
            if tier is None and service not in below:
                continue
            otherwise = standard
            if service in below:
                otherwise = {name: max(standard[name], below[service][name]) for name in standard}
            table[above, service] = below[service] = _tier_prices(tier, otherwise)
    return table


def _tier_prices(tier: RateTier | None, otherwise: Prices) -> Prices:
    if tier is None:
        return otherwise
    prices: Prices = {}
    for name in ALL_DIMENSIONS:
        value = getattr(tier, name)
        parent = _FOLLOWS.get(name)
        if value >= 0:
            prices[name] = units.exact_nano(value)
        elif name in APART:
            prices[name] = apart(name, prices) if otherwise[name] == apart(name, otherwise) else otherwise[name]
        elif parent is not None and otherwise[name] == otherwise[parent]:
            prices[name] = prices[parent]
        else:
            prices[name] = otherwise[name]
    return prices


def _texts(prices: Prices) -> dict[str, str]:
    """As in a card: without what is priced as text."""
    return {
        name: units.format_credits(nano)
        for name, nano in prices.items()
        if name not in APART or nano != apart(name, prices)
    }


def card_body(config: Config) -> str:
    """The card in force, as canonical JSON: decimal texts, models in order, no blanks. ValueError: a repeated model."""
    rates: dict[str, dict[str, Any]] = {}
    for rate in config.rates:
        if rate.model in rates:
            raise ValueError("a model is priced twice")
        stated = _stated(rate)
        discount = discount_of(config, rate.model)
        if discount != config.billing.discount:
            stated["discount"] = units.format_credits(units.discount_ppb(discount))
        rates[rate.model] = stated
    card: dict[str, Any] = {
        "discount": units.format_credits(units.discount_ppb(config.billing.discount)),
        "rates": rates,
    }
    if config.pictures:
        card["pictures"] = {
            rate.model: _stated(rate) | {"discount": _factor_text(discount_of(config, rate.model))}
            for rate in config.pictures
        }
    return json.dumps(card, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _stated(rate: ConfiguredRate) -> dict[str, Any]:
    """A model's prices as in a card."""
    stated: dict[str, Any] = _texts(_nano(rate))
    if tools := {name: units.exact_nano(price) for name, price in rate.tools.items() if name != "web_search"}:
        stated["tools"] = {name: units.format_credits(nano) for name, nano in tools.items()}
    if rate.tiers:
        stated["tiers"] = [
            {"above": above, "service": service, **_texts(prices)}
            for (above, service), prices in sorted(tier_table(rate).items())
            if (above, service) != (0, "standard")
        ]
    return stated


def _factor_text(discount: Decimal) -> str:
    return units.format_credits(units.discount_ppb(discount))


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
    return {rate.model: _compiled(rate, card, discount_of(config, rate.model)) for rate in config.rates}


def tool_rates(config: Config, rates: Mapping[str, Rate]) -> dict[str, Rate]:
    """The rates of models that others may use as tools: those that are sold, and picture models."""
    card = card_id(card_body(config))
    return {rate.model: _compiled(rate, card, discount_of(config, rate.model)) for rate in config.pictures} | {**rates}


def _compiled(rate: ConfiguredRate, card: str, discount: Decimal) -> Rate:
    tiers = None
    if rate.tiers:
        tiers = {(above, SERVICES.index(service)): prices for (above, service), prices in tier_table(rate).items()}
    return Rate(
        model=rate.model.encode(),
        card=card,
        discount_ppb=units.discount_ppb(discount),
        output_tokens_max=rate.output_tokens_max,
        inference_geo=rate.inference_geo,
        tools={name: units.exact_nano(price) for name, price in rate.tools.items()},
        tiers=tiers,
        **_nano(rate),
    )


def rate_on_card(body: str, card: str, model: str, *, whole: bool = False) -> Rate:
    """The compiled rate of a model on a stored card; for jobs, which may end under another configuration.

    whole: of many requests together (a batch), where the length of one prompt is not known: prices of short ones.
    KeyError: no such model.
    """
    document = _parsed(body)
    stated = document["rates"][model]
    sets = {
        (above, SERVICES.index(service)): prices
        for (above, service), prices in sets_on_card(stated).items()
        if not (whole and above)
    }
    base = sets.pop((0, 0))
    return Rate(
        model=model.encode(),
        card=card,
        discount_ppb=units.parse_credits(stated.get("discount", document["discount"])),
        tools={name: units.parse_credits(text) for name, text in stated.get("tools", {}).items()},
        tiers=sets or None,
        **base,
    )


def _nano(rate: ConfiguredRate) -> Prices:
    """Nano-credits per million tokens, or per piece."""
    return {name: units.exact_nano(getattr(rate, name)) for name in ALL_DIMENSIONS}


@functools.lru_cache(maxsize=64)
def _parsed(body: str) -> dict[str, Any]:
    """A card, read once for all of its calls."""
    card: dict[str, Any] = json.loads(body)
    return card


@functools.lru_cache(maxsize=4096)
def _sets(body: str, model: str) -> dict[tuple[int, str], Prices]:
    return sets_on_card(_parsed(body)["rates"][model])


def lines_of(body: str, call: Billed) -> list[tuple[BilledLine, list[tuple[str, int, int, bool]], int]]:
    """Each line of a call's bill beside its own model, as `line_parts` takes it apart. KeyError: as there."""
    return [(line, *line_parts(_parsed(body), call, line)) for line in call.lines]


def sets_of(body: str, model: str) -> tuple[dict[tuple[int, str], Prices], int]:
    """The sets of prices of a model on a stored card, and its discount in parts per 10^9. Empty: it is not there."""
    card = _parsed(body)
    stated = card["rates"].get(model)
    if stated is None:
        return {}, _PPB
    return _sets(body, model), units.parse_credits(stated.get("discount", card["discount"]))


class Details(Protocol):
    """What a cost depends on beside the record: `storage.rows.CallDetails`."""

    @property
    def cache_write_1h_tokens(self) -> int: ...
    @property
    def audio_input_tokens(self) -> int: ...
    @property
    def audio_output_tokens(self) -> int: ...
    @property
    def image_input_tokens(self) -> int: ...
    @property
    def image_output_tokens(self) -> int: ...
    @property
    def audio_cache_read_tokens(self) -> int: ...
    @property
    def image_cache_read_tokens(self) -> int: ...
    @property
    def service(self) -> int: ...


class Billed(Protocol):
    """What a call's record says of its usage and cost."""

    @property
    def path(self) -> str: ...
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
    @property
    def details(self) -> Details | None: ...
    @property
    def lines(self) -> Sequence[BilledLine]: ...


class BilledLine(Protocol):
    """A line of a bill beside the call's own model: `storage.rows.CallLine`."""

    @property
    def kind(self) -> str: ...
    @property
    def model(self) -> str | None: ...
    @property
    def pieces(self) -> int: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def cache_read_tokens(self) -> int: ...
    @property
    def cache_write_tokens(self) -> int: ...
    @property
    def cache_write_1h_tokens(self) -> int: ...
    @property
    def image_input_tokens(self) -> int: ...
    @property
    def image_output_tokens(self) -> int: ...
    @property
    def cost_nano(self) -> int: ...


def line_parts(card: Mapping[str, Any], call: Billed, line: BilledLine) -> tuple[list[tuple[str, int, int, bool]], int]:
    """What a line of a bill is made of, and its discount in parts per 10^9.

    Parts are (name of the price, quantity, nano-credits, whether those are for each piece and no million of tokens).
    KeyError: its model, or its price, is not on the card.
    """
    if line.kind == RECOVERED_LINE:
        return [("", 1, line.cost_nano, True)], _PPB
    stated = card["rates"][call.model]
    if line.model is None:
        price = units.parse_credits(stated["tools"][line.kind])
        return [("", line.pieces, price, True)], units.parse_credits(stated.get("discount", card["discount"]))
    stated = card["rates"].get(line.model) or card["pictures"][line.model]
    prompt = line.input_tokens + line.cache_read_tokens + line.cache_write_tokens
    prices = at(sets_on_card(stated), max(prompt - 1, 0), "standard")
    sound = line.kind == TRANSCRIPTION_LINE  # all of its prompt is, and its pieces are seconds
    quantities = {
        "video_second": line.pieces * sound,
        "audio_input" if sound else "input": line.input_tokens - line.image_input_tokens,
        "image_input": line.image_input_tokens,
        "cache_read": line.cache_read_tokens,
        "cache_write": line.cache_write_tokens - line.cache_write_1h_tokens,
        "cache_write_1h": line.cache_write_1h_tokens,
        "output": line.output_tokens - line.image_output_tokens,
        "image_output": line.image_output_tokens,
    }
    parts = [(name, count, prices[name], name == "video_second") for name, count in quantities.items() if count]
    return parts, units.parse_credits(stated.get("discount", card["discount"]))


def line_by_card(card: Mapping[str, Any], call: Billed, line: BilledLine) -> int:
    """What a line of a bill should have cost. KeyError: its model, or its price, is not on the card."""
    parts, ppb = line_parts(card, call, line)
    exact = sum(count * nano * (1_000_000 if piece else 1) for _, count, nano, piece in parts)
    return -(-exact * ppb // _SCALE)


def cost_by_card(body: str, call: Billed) -> int:
    """What a recorded call should have cost, in nano-credits, from the body of its card; for `relay ledger verify`.

    Written apart from the compiled arithmetic, so that it can contradict it. A record without details may be from
    before there were any: then the part of the cache writes that was for an hour is not known, and any cost between
    none and all of them is confirmed. KeyError: no such model.
    """
    card = _parsed(body)
    stated: Mapping[str, Any] = card["rates"][call.model]
    prompt = call.input_tokens + call.cache_read_tokens + call.cache_write_tokens
    if call.path in WHOLE_PATHS:
        prompt = 0
    prices = at(
        _sets(body, call.model or ""),
        max(prompt - 1, 0),
        SERVICES[call.details.service] if call.details else "standard",
    )
    ppb = units.parse_credits(stated.get("discount", card["discount"]))  # parts per 10^9, as nano-credits are
    audio_in = audio_out = image_in = image_out = audio_read = image_read = 0
    if call.details is not None:
        audio_in = min(call.details.audio_input_tokens, call.input_tokens)
        image_in = min(call.details.image_input_tokens, call.input_tokens - audio_in)
        audio_out = min(call.details.audio_output_tokens, call.output_tokens)
        image_out = min(call.details.image_output_tokens, call.output_tokens - audio_out)
        audio_read = min(call.details.audio_cache_read_tokens, call.cache_read_tokens)
        image_read = min(call.details.image_cache_read_tokens, call.cache_read_tokens - audio_read)
    beside = sum(line_by_card(card, call, line) for line in call.lines)

    def total(hour: int) -> int:
        parts = (
            (call.input_tokens - audio_in - image_in) * prices["input"]
            + audio_in * prices["audio_input"]
            + image_in * prices["image_input"]
            + (call.output_tokens - audio_out - image_out) * prices["output"]
            + audio_out * prices["audio_output"]
            + image_out * prices["image_output"]
            + (call.cache_read_tokens - audio_read - image_read) * prices["cache_read"]
            + audio_read * prices["audio_cache_read"]
            + image_read * prices["image_cache_read"]
            + (call.cache_write_tokens - hour) * prices["cache_write"]
            + hour * prices["cache_write_1h"]
            + 1_000_000
            * (
                call.images * prices["image"]
                + call.video_seconds * prices["video_second"]
                + call.web_searches * prices["web_search"]
            )
        )
        return min(-(-parts * ppb // _SCALE) + beside, COST_NANO_MAX)

    if call.details is not None:
        return total(call.details.cache_write_1h_tokens)
    least, most = sorted((total(0), total(call.cache_write_tokens)))
    return call.cost_nano if least <= call.cost_nano <= most else total(0)


def sets_on_card(stated: Mapping[str, Any]) -> dict[tuple[int, str], Prices]:
    """The sets of prices of one model on a card, as `tier_table` makes them."""
    sets = {}
    for found in (stated, *stated.get("tiers", ())):
        prices = {name: units.parse_credits(found[name]) for name in DIMENSIONS}
        for name in APART:
            prices[name] = units.parse_credits(found[name]) if name in found else apart(name, prices)
        sets[found.get("above", 0), found.get("service", "standard")] = prices
    return sets


def at(sets: Mapping[tuple[int, str], Prices], prompt: int, service: str) -> Prices:
    """The prices for a prompt of so many tokens and one more, in that service."""
    limit = max(above for above, _ in sets if prompt >= above)
    return sets.get((limit, service), sets[limit, "standard"])
