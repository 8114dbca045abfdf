"""What the configuration in force says to customers: limits, retention, notice periods. (Prices: pricelist.py.)"""

from __future__ import annotations

from relay.config import Config
from relay.control.documents import Document
from relay.control.pricelist import decimal_text
from relay.policy import pricing
from relay.storage import rows


def default_plan(config: Config) -> str:
    """The plan of an account for which none is named."""
    return "free" if "free" in config.plans else min(config.plans)


def cost_of(card: rows.RateCardRow, call: rows.CallRow) -> int:
    """What a recorded call should have cost by its card, in nano-credits; -1: the card does not price its model."""
    try:
        return pricing.cost_by_card(card.body, call)
    except LookupError:
        return -1


def terms(config: Config) -> Document:
    """The operator's figures, as they are in force."""
    return {
        "plans": {
            name: {
                "rpm": plan.rpm,
                "tpm": plan.tpm,
                "concurrency": plan.concurrency,
                "daily_credits": decimal_text(plan.daily_credits),
                "monthly_credits": decimal_text(plan.monthly_credits),
                "tokens_per_call": dict(plan.tokens_per_call),
            }
            for name, plan in sorted(config.plans.items())
        },
        # Of a bucket that refills evenly; so of tokens.
        "most_in_one_minute": "2 x rpm - 1",
        "billing": {
            "credit_name": config.billing.credit_name,
            "discount": decimal_text(config.billing.discount),
            "low_balance": decimal_text(config.billing.low_balance),
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
        "notice": {"price_rise_days": config.billing.price_rise_notice_days or None},
    }
