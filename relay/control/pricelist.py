"""Prices as people read them: the list in force, what a customer pays, and what is odd about it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from relay import rate_files, shipped_rates, units
from relay.config import Config, Rate
from relay.control.documents import Document
from relay.policy import pricing
from relay.policy.schedule import Announced

TOOL_TIMES = 100  # a price so far above the list is probably that of a thousand uses
UNIT = "credits per million tokens; image, video_second and web_search per piece"


def decimal_text(value: Decimal) -> str:
    """A plain decimal without exponent or trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _ratio_text(numerator: int, denominator: int) -> str:
    """A fraction whose denominator divides a power of ten, as a decimal."""
    whole, rest = divmod(numerator, denominator)
    digits = ""
    while rest:
        digit, rest = divmod(rest * 10, denominator)
        digits += str(digit)
    return f"{whole}.{digits}" if digits else str(whole)


def _texts(prices: Mapping[str, int], factor: Decimal) -> Document:
    # Exact: Decimal's context could round a product of many digits, integers cannot.
    numerator, denominator = factor.as_integer_ratio()
    return {
        name: _ratio_text(nano * numerator, units.NANO_PER_CREDIT * denominator)
        for name, nano in prices.items()
        if name not in pricing.APART or nano != pricing.apart(name, prices)
    }


def _prices(rate: Rate, factor: Decimal) -> Document:
    table = pricing.tier_table(rate)
    document: Document = {"model": rate.model, **_texts(table.pop((0, "standard")), factor)}
    if tools := {name: units.exact_nano(price) for name, price in rate.tools.items() if name != "web_search"}:
        document["tools"] = _texts(tools, factor)
    if table:
        document["tiers"] = [
            {"above": above, "service": service, **_texts(prices, factor)}
            for (above, service), prices in sorted(table.items())
        ]
    return document


def card(config: Config) -> str:
    """The id that call records carry from now on."""
    return pricing.card_id(pricing.card_body(config))


def rates(config: Config, scheduled: frozenset[str] = frozenset()) -> Document:
    """List prices, where they come from, and the discount that is applied to them."""
    shown = []
    for rate in sorted(config.rates, key=lambda rate: rate.model):
        source = "shipped" if rate.model in config.default_models else "config"
        source = "scheduled" if rate.model in scheduled else source
        discount = pricing.discount_of(config, rate.model)
        shown.append({**_prices(rate, Decimal(1)), "source": source, "discount": decimal_text(discount)})
    return {
        "credit_name": config.billing.credit_name,
        "discount": decimal_text(config.billing.discount),
        "rate_card": card(config),
        "unit": UNIT,
        "rates": shown,
    }


def stated(rates: Iterable[Rate]) -> list[Document]:
    """The list prices of rates, the discount not in it."""
    return [_prices(rate, Decimal(1)) for rate in sorted(rates, key=lambda rate: rate.model)]


def customer_rates(
    config: Config, models: frozenset[str] | None, schedule: Sequence[Announced] = (), now_ms: int = 0
) -> Document:
    """What a customer pays, the discount in it, for the models that are served and (`models`) allowed.

    `scheduled`: what is announced and not in force yet, soonest first.
    """
    ahead = [row for row in schedule if not row.withdrawn_ms and row.effective_ms > now_ms]
    return {
        "credit_name": config.billing.credit_name,
        "rate_card": card(config),
        "unit": UNIT,
        "rates": _paid(config, config.rates, models),
        "scheduled": [
            {
                "effective": units.time_text(row.effective_ms),
                "announced": units.time_text(row.announced_ms),
                "rates": _paid(config, rate_files.read(row.body), models),
            }
            for row in sorted(ahead, key=lambda row: (row.effective_ms, row.id))
        ],
    }


def _paid(config: Config, rates: Iterable[Rate], models: frozenset[str] | None) -> list[Document]:
    served = set(config.models)
    return [
        _prices(rate, pricing.discount_of(config, rate.model))
        for rate in sorted(rates, key=lambda rate: rate.model)
        if rate.model in served and (models is None or rate.model in models)
    ]


def odd_prices(config: Config) -> list[str]:
    """Prices of the operator's own that are probably not meant: odd in themselves, or below the provider's list."""
    own = [rate for rate in config.rates if rate.model not in config.default_models]
    return [
        line
        for rate in sorted(own, key=lambda rate: rate.model)
        for line in (*_odd_prices(rate), *_against_the_lists(config, rate, None))
    ]


def check(
    config: Config, before: str | None = None, today: datetime.date | None = None, *, everything: bool = True
) -> Document:
    """`errors`: models that cannot be used; `warnings`: prices that are probably not meant, the model first.

    before      body of the card that was in force before this one, to tell rises by
    today       for dates on the shipped card: prices that are about to change, models that are about to go
    everything  also what is not the operator's doing: prices of the shipped card
    """
    served = set(config.models)
    rated = {rate.model for rate in config.rates}
    errors = [f"{model}: {_why_unpriced(config, model)}: calls are refused" for model in sorted(served - rated)]
    warnings = [f"{model}: it has a rate and no channel serves it" for model in sorted(rated - served)]
    looked_at = [rate for rate in config.rates if everything or rate.model not in config.default_models]
    for rate in sorted(looked_at, key=lambda rate: rate.model):
        warnings += _odd_prices(rate)
        warnings += _against_the_lists(config, rate, today)
    if before is not None:
        models = {rate.model for rate in (*looked_at, *(config.pictures if everything else ()))}
        lines = [line for model, line in rises(before, pricing.card_body(config)) if model in models]
        warnings += [f"{line} than on the card before" for line in lines]
    return {"ok": not errors, "errors": errors, "warnings": warnings}


def _why_unpriced(config: Config, model: str) -> str:
    names = {model, *(channel.models[model] for channel in config.channels if model in channel.models)}
    differ = sorted({item["model"] for item in shipped_rates.document()["differences"] if item["model"] in names})
    if differ and config.billing.default_rates:
        return "a channel serves it, it has no rate, and the sources of the shipped card disagree about it"
    return "a channel serves it and it has no rate"


def _odd_prices(rate: Rate) -> list[str]:
    warnings = []
    if rate.input == 0 and rate.output == 0 and rate.image == 0 and rate.video_second == 0:
        warnings.append(f"{rate.model}: it is free")
    if not rate.output:
        return warnings  # embeddings and the like: nothing is cached
    if rate.cache_read >= rate.input > 0:
        price = decimal_text(rate.cache_read)
        warnings.append(f"{rate.model}: cache_read ({price}) is not below input ({decimal_text(rate.input)})")
    for name, whole in (("audio_cache_read", "audio_input"), ("image_cache_read", "image_input")):
        cached, plain = getattr(rate, name), getattr(rate, whole)
        if cached > plain or cached == plain > rate.input:
            texts = f"{name} ({decimal_text(cached)}) is not below {whole} ({decimal_text(plain)})"
            warnings.append(f"{rate.model}: {texts}")
    for name in ("cache_write", "cache_write_1h"):
        price = getattr(rate, name)
        low, high = sorted((rate.input, rate.output))
        if not low <= price <= high:
            warnings.append(f"{rate.model}: {name} ({decimal_text(price)}) is not between input and output")
    if rate.output < rate.input:
        output, read = decimal_text(rate.output), decimal_text(rate.input)
        warnings.append(f"{rate.model}: output ({output}) is below input ({read})")
    table = pricing.tier_table(rate)
    for (above, service), prices in sorted(table.items()):
        where = f"{service} above {above}" if above else service
        standard = table[above, "standard"]
        for name in ("input", "output"):
            if service == "priority" and prices[name] < standard[name]:
                warnings.append(f"{rate.model}: {where}: {name} is below that of standard")
            elif service in ("batch", "flex") and prices[name] > standard[name]:
                warnings.append(f"{rate.model}: {where}: {name} is above that of standard")
            elif service == "standard" and prices[name] < table[0, "standard"][name]:
                warnings.append(f"{rate.model}: {where}: {name} is below that of shorter prompts")
    return warnings


def _against_the_lists(config: Config, rate: Rate, today: datetime.date | None) -> list[str]:
    entry = shipped_rates.entry(rate.model)
    if entry is None:
        return []
    warnings = []
    if rate.model in config.default_models:
        for item in shipped_rates.document()["differences"]:
            if item["model"] == rate.model:
                values = f"{item['litellm']}, {item['genai-prices']}"
                warnings.append(
                    f"{rate.model}: the sources of the shipped card disagree about {item['price']} ({values}); "
                    f"that of {item['taken']} is used"
                )
        if today is not None:
            ahead = [day for day in entry.get("changes_on", ()) if day >= str(today)]
            passed = [day for day in entry.get("changes_on", ()) if day < str(today)]
            warnings += [f"{rate.model}: its provider changes its price on {day}" for day in ahead]
            warnings += [f"{rate.model}: its provider changed its price on {day}, after this card" for day in passed]
    else:
        for name in ("input", "output", "image_output", "audio_cache_read", "image_cache_read"):
            if name not in entry or (name == "image_output" and rate.image):
                continue
            listed, own = Decimal(entry[name]), getattr(rate, name) * pricing.discount_of(config, rate.model)
            if own < listed:
                price = f"{name} ({decimal_text(own)}, discount included)"
                warnings.append(f"{rate.model}: {price} is below its provider's list price ({decimal_text(listed)})")
        warnings += _tools_against_the_lists(config, rate, entry["provider"])
    if (
        today is not None
        and (day := entry.get("retires_on")) is not None
        and day <= str(today + datetime.timedelta(30))
    ):
        warnings.append(f"{rate.model}: its provider retires it on {day}")
    return warnings


def _tools_against_the_lists(config: Config, rate: Rate, provider: str) -> list[str]:
    warnings = []
    for name, listed in sorted(shipped_rates.fees([provider], [rate.model]).items()):
        if name in rate.tools:
            own = rate.tools[name] * pricing.discount_of(config, rate.model)
            price = f"{rate.model}: tools.{name} ({decimal_text(own)}, discount included)"
            if own < listed:
                warnings.append(f"{price} is below its provider's list price ({decimal_text(listed)})")
            elif own >= TOOL_TIMES * listed:
                warnings.append(f"{price} is {TOOL_TIMES} times its provider's list price or more: it is for one use")
    return warnings


def rises(before: str, after: str) -> list[tuple[str, str]]:
    """What costs more on one card than on another, discounts included: the model and a line, for each price."""
    old, new = json.loads(before), json.loads(after)
    lines = []
    # A model that is only used behind others costs, too.
    sold_before, sold = ({**card.get("pictures", {}), **card["rates"]} for card in (old, new))
    for model, rate in sorted(sold.items()):
        was = sold_before.get(model)
        if was is None:
            continue
        had, has = pricing.sets_on_card(was), pricing.sets_on_card(rate)
        factors = [
            units.parse_credits(side.get("discount", whole["discount"])) for side, whole in ((was, old), (rate, new))
        ]
        for above, service in sorted({*had, *has}):
            first, second = pricing.at(had, above, service), pricing.at(has, above, service)
            where = "" if (above, service) == (0, "standard") else f" ({service}, prompts above {above})"
            for name in pricing.ALL_DIMENSIONS:
                if second[name] * factors[1] > first[name] * factors[0]:
                    amounts = [
                        _nano_text(prices[name] * factor)
                        for prices, factor in ((first, factors[0]), (second, factors[1]))
                    ]
                    lines.append((model, f"{model}: {name}{where} is dearer ({amounts[1]} instead of {amounts[0]})"))
        for name, text in sorted(rate.get("tools", {}).items()):
            if name in was.get("tools", {}):  # what had no price was refused
                costs = [units.parse_credits(was["tools"][name]) * factors[0], units.parse_credits(text) * factors[1]]
                if costs[1] > costs[0]:
                    dearer = f"tools.{name} is dearer ({_nano_text(costs[1])} instead of {_nano_text(costs[0])})"
                    lines.append((model, f"{model}: {dearer}"))
    return lines


def _nano_text(value: int) -> str:
    return _ratio_text(value, units.NANO_PER_CREDIT * units.DISCOUNT_PPB_NONE)


def parse_today(now_ms: int) -> datetime.date:
    return datetime.datetime.fromtimestamp(now_ms / 1000, tz=datetime.UTC).date()
