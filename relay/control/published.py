"""What the configuration in force says to customers: prices, limits, retention."""

from __future__ import annotations

from decimal import Decimal

from relay import units
from relay.config import Config, Rate
from relay.control.documents import Document
from relay.policy import pricing
from relay.storage import rows


def default_plan(config: Config) -> str:
    """The plan of an account for which none is named."""
    return "free" if "free" in config.plans else min(config.plans)


def _decimal(value: Decimal) -> str:
    """A plain decimal without exponent or trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _prices(rate: Rate, factor: Decimal) -> Document:
    # Exact: Decimal's context could round a product of many digits, integers cannot.
    numerator, denominator = factor.as_integer_ratio()
    prices: Document = {"model": rate.model}
    for dimension in pricing.DIMENSIONS:
        nano = units.exact_nano(getattr(rate, dimension)) * numerator
        prices[dimension] = _ratio_text(nano, units.NANO_PER_CREDIT * denominator)
    return prices


def _ratio_text(numerator: int, denominator: int) -> str:
    """A fraction whose denominator divides a power of ten, as a decimal."""
    whole, rest = divmod(numerator, denominator)
    digits = ""
    while rest:
        digit, rest = divmod(rest * 10, denominator)
        digits += str(digit)
    return f"{whole}.{digits}" if digits else str(whole)


def _card(config: Config) -> str:
    """The id that call records carry from now on."""
    return pricing.card_id(pricing.card_body(config))


def cost_of(card: rows.RateCardRow, call: rows.CallRow) -> int:
    """What a recorded call should have cost by its card, in nano-credits; -1: the card does not price its model."""
    try:
        return pricing.cost_by_card(card.body, call)
    except KeyError:
        return -1


def rates(config: Config) -> Document:
    """List prices, and the discount that is applied to them."""
    return {
        "credit_name": config.billing.credit_name,
        "discount": _decimal(config.billing.discount),
        "rate_card": _card(config),
        "unit": "credits per million tokens; image, video_second and web_search per piece",
        "rates": [_prices(rate, Decimal(1)) for rate in sorted(config.rates, key=lambda rate: rate.model)],
    }


def customer_rates(config: Config, models: frozenset[str] | None) -> Document:
    """What a customer pays, the discount in it, for the models that are served and (`models`) allowed."""
    served = set(config.models)
    shown = [
        _prices(rate, config.billing.discount)
        for rate in sorted(config.rates, key=lambda rate: rate.model)
        if rate.model in served and (models is None or rate.model in models)
    ]
    return {
        "credit_name": config.billing.credit_name,
        "rate_card": _card(config),
        "unit": "credits per million tokens; image, video_second and web_search per piece",
        "rates": shown,
    }


def rates_check(config: Config) -> Document:
    """`errors`: models that cannot be used; `warnings`: prices that are probably not meant."""
    served = set(config.models)
    rated = {rate.model for rate in config.rates}
    errors = [f"{model}: a channel serves it and it has no rate: calls are refused" for model in sorted(served - rated)]
    warnings = [f"{model}: it has a rate and no channel serves it" for model in sorted(rated - served)]
    for rate in sorted(config.rates, key=lambda rate: rate.model):
        if rate.input == 0 and rate.output == 0 and rate.image == 0 and rate.video_second == 0:
            warnings.append(f"{rate.model}: it is free")
        if not rate.output:
            continue  # embeddings and the like: nothing is cached
        if rate.cache_read >= rate.input > 0:
            price = _decimal(rate.cache_read)
            warnings.append(f"{rate.model}: cache_read ({price}) is not below input ({_decimal(rate.input)})")
        for name in ("cache_write", "cache_write_1h"):
            price = getattr(rate, name)
            low, high = sorted((rate.input, rate.output))
            if not low <= price <= high:
                warnings.append(f"{rate.model}: {name} ({_decimal(price)}) is not between input and output")
        if rate.output < rate.input:
            warnings.append(f"{rate.model}: output ({_decimal(rate.output)}) is below input ({_decimal(rate.input)})")
    return {"ok": not errors, "errors": errors, "warnings": warnings}


def terms(config: Config) -> Document:
    """The operator's figures, as they are in force."""
    return {
        "plans": {
            name: {
                "rpm": plan.rpm,
                "tpm": plan.tpm,
                "concurrency": plan.concurrency,
                "daily_credits": _decimal(plan.daily_credits),
                "monthly_credits": _decimal(plan.monthly_credits),
                "tokens_per_call": dict(plan.tokens_per_call),
            }
            for name, plan in sorted(config.plans.items())
        },
        "billing": {
            "credit_name": config.billing.credit_name,
            "discount": _decimal(config.billing.discount),
            "low_balance": _decimal(config.billing.low_balance),
            "on_disconnect": config.billing.on_disconnect,
        },
        "retention": {
            "calls_days": config.retention.calls_days,
            "source_ip": config.retention.source_ip,
            "user_agent": config.retention.user_agent,
        },
        "limits": {
            "body_bytes_max": config.server.body_bytes_max,
            "upload_bytes_max": config.server.upload_bytes_max,
        },
        # Credits end by the expiry of their lot; there is no rule for a whole service yet, and no announced changes.
        "validity": {"credits_months": None},
        "notice": {"price_rise_days": None, "terms_days": None, "deprecation_days": None},
    }
