"""Bills that providers publish, by the shipped card, to the last digit that the page shows (it rounds half up).

Each page was read on 2026-11-28 in a stored copy, not live; what the copy itself says of its age stands beside it. What
a page shows and its own numbers do not give is in NOT_REPRODUCED.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import pytest

from relay import shipped_rates
from relay._fastpath import Rate
from relay.config import Config, shipped_rate
from relay.policy import pricing


class Page(NamedTuple):
    title: str
    url: str
    age: str


ANTHROPIC = Page(
    "Pricing",
    "https://platform.claude.com/docs/en/about-claude/pricing",
    "lists Claude Opus 5 and the price of Sonnet 5 that stayed on 2026-09-01",
)
EMBEDDINGS = Page(
    "Vector embeddings",
    "https://platform.openai.com/docs/guides/embeddings",
    "2025-10; the same table since 2024",
)
IMAGES = Page(
    "Image generation, Calculating costs",
    "https://developers.openai.com/api/docs/guides/image-generation",
    "lists gpt-image-2",
)
GEMINI = Page(
    "Gemini Developer API pricing",
    "https://ai.google.dev/gemini-api/docs/pricing",
    "lists Gemini 3.1 as preview; a note of 2026-10 on the same page has the same numbers",
)
SERVICES = {name: number for number, name in enumerate(pricing.SERVICES)}


class Bill(NamedTuple):
    page: Page
    model: str  # of the shipped card
    usage: dict[str, int]
    published: str
    apart: str = "0"  # what the page adds that is no price of a call
    service: str = "standard"


OPUS = "claude-opus-5"
# $/MTok: input, cache write of 5 minutes and of an hour, cache hit, output, batch input, batch output.
ANTHROPIC_PRICES = {
    "claude-fable-5-1": "10 12.50 20 0.25 50 5 25",
    "claude-fable-5": "10 12.50 20 1 50 5 25",
    "claude-opus-5": "5 6.25 10 0.50 25 2.50 12.50",
    "claude-opus-4-8": "5 6.25 10 0.50 25 2.50 12.50",
    "claude-opus-4-7": "5 6.25 10 0.50 25 2.50 12.50",
    "claude-opus-4-6": "5 6.25 10 0.50 25 2.50 12.50",
    "claude-opus-4-5": "5 6.25 10 0.50 25 2.50 12.50",
    "claude-sonnet-5": "2 2.50 4 0.20 10 1 5",
    "claude-sonnet-4-6": "3 3.75 6 0.30 15 1.50 7.50",
    "claude-sonnet-4-5": "3 3.75 6 0.30 15 1.50 7.50",
    "claude-haiku-4-5": "1 1.25 2 0.10 5 0.50 2.50",
}
COLUMNS = (
    ("input_tokens", "standard"), ("cache_write_tokens", "standard"), ("cache_write_1h_tokens", "standard"),
    ("cache_read_tokens", "standard"), ("output_tokens", "standard"), ("input_tokens", "batch"),
    ("output_tokens", "batch"),
)  # fmt: skip
# OpenAI's table of output tokens by quality and size, and its table of prices: square, portrait, landscape.
PICTURE_TOKENS = {"low": (272, 408, 400), "medium": (1056, 1584, 1568), "high": (4160, 6240, 6208)}
PICTURE_PRICES = {
    ("gpt-image-1.5", "low"): ("0.009", "0.013", "0.013"),
    ("gpt-image-1.5", "medium"): ("0.034", "0.05", "0.05"),
    ("gpt-image-1.5", "high"): ("0.133", "0.2", "0.2"),
    ("gpt-image-1", "low"): ("0.011", "0.016", "0.016"),
    ("gpt-image-1", "medium"): ("0.042", "0.063", "0.063"),
    ("gpt-image-1", "high"): ("0.167", "0.25", "0.25"),
}
# 4,160 tokens at $40 are 0.1664, where the table has 0.167. Of GPT Image 1 Mini no price follows from tokens at $8.
NOT_REPRODUCED = {("gpt-image-1", "high", "0.167")}
# Google's footnotes: tokens of one picture, from 512 pixels to 4K, and what it is "equivalent to".
GOOGLE_PICTURES = {
    ("gemini-2.5-flash-image", "standard"): [(1290, "0.039")],
    ("gemini-3.1-flash-image", "standard"): [(747, "0.045"), (1120, "0.067"), (1680, "0.101"), (2520, "0.151")],
    ("gemini-3-pro-image", "standard"): [(1120, "0.134"), (2000, "0.24")],
    ("gemini-3.1-flash-image", "batch"): [(747, "0.022"), (1120, "0.034"), (1680, "0.050"), (2520, "0.076")],
    ("gemini-3-pro-image", "batch"): [(1120, "0.067"), (2000, "0.12")],
}
PRO = "gemini-2.5-pro"
LONG = {"input_tokens": 1_000_000}


def pictures(tokens: int) -> dict[str, int]:
    return {"output_tokens": tokens, "image_output_tokens": tokens}


def bills() -> Iterator[Bill]:
    # A coding session of an hour, without and with cached prompts; its runtime of $0.08 is no call.
    yield Bill(ANTHROPIC, OPUS, {"input_tokens": 50_000}, "0.25")
    yield Bill(ANTHROPIC, OPUS, {"output_tokens": 15_000}, "0.375")
    yield Bill(ANTHROPIC, OPUS, {"input_tokens": 50_000, "output_tokens": 15_000}, "0.705", "0.08")
    yield Bill(ANTHROPIC, OPUS, {"input_tokens": 10_000}, "0.05")
    yield Bill(ANTHROPIC, OPUS, {"cache_read_tokens": 40_000}, "0.02")
    cached = {"input_tokens": 10_000, "cache_read_tokens": 40_000, "output_tokens": 15_000}
    yield Bill(ANTHROPIC, OPUS, cached, "0.525", "0.08")
    # 10,000 support tickets of 3,700 tokens.
    yield Bill(ANTHROPIC, "claude-haiku-4-5", {"input_tokens": 10_000 * 3_700}, "37.00")
    yield Bill(ANTHROPIC, OPUS, {"web_searches": 1_000}, "10")
    for model, row in ANTHROPIC_PRICES.items():
        for (name, service), price in zip(COLUMNS, row.split(), strict=True):
            yield Bill(ANTHROPIC, model, {name: 100_000}, str(Decimal(price) / 10), service=service)
    # "A 900k-token request is billed at the same per-token rate as a 9k-token request."
    yield Bill(ANTHROPIC, OPUS, {"input_tokens": 900_000}, "4.5")

    # Pages of about 800 tokens that a dollar buys.
    yield Bill(EMBEDDINGS, "text-embedding-3-small", {"input_tokens": 62_500 * 800}, "1")
    yield Bill(EMBEDDINGS, "text-embedding-3-large", {"input_tokens": 9_615 * 800}, "1.00")
    yield Bill(EMBEDDINGS, "text-embedding-ada-002", {"input_tokens": 12_500 * 800}, "1")
    for (model, quality), prices in PICTURE_PRICES.items():
        for tokens, price in zip(PICTURE_TOKENS[quality], prices, strict=True):
            if (model, quality, price) not in NOT_REPRODUCED:
                yield Bill(IMAGES, model, pictures(tokens), price)

    for (model, service), sizes in GOOGLE_PICTURES.items():
        for tokens, published in sizes:
            yield Bill(GEMINI, model, pictures(tokens) | {"images": 1}, published, service=service)
    # A picture in the prompt: 560 tokens.
    yield Bill(GEMINI, "gemini-3-pro-image", {"input_tokens": 560}, "0.0011")
    yield Bill(GEMINI, "gemini-3-pro-image", {"input_tokens": 560}, "0.0006", service="batch")
    # Prompts up to 200k tokens and above: input, output, cached input; half of it in batches, but for the cache.
    yield Bill(GEMINI, PRO, {"input_tokens": 200_000}, "0.25")
    yield Bill(GEMINI, PRO, LONG, "2.50")
    yield Bill(GEMINI, PRO, {"output_tokens": 1_000_000}, "10.00")
    yield Bill(GEMINI, PRO, LONG | {"output_tokens": 1_000_000}, "17.50")
    yield Bill(GEMINI, PRO, {"cache_read_tokens": 200_000}, "0.025")
    yield Bill(GEMINI, PRO, {"cache_read_tokens": 1_000_000}, "0.25")
    yield Bill(GEMINI, PRO, {"input_tokens": 200_000}, "0.125", service="batch")
    yield Bill(GEMINI, PRO, LONG | {"output_tokens": 1_000_000}, "8.75", service="batch")
    yield Bill(GEMINI, PRO, {"cache_read_tokens": 200_000}, "0.025", service="batch")
    # Sound in the prompt, and grounding: 2.5 by the prompt, 3 by the query.
    yield Bill(GEMINI, "gemini-2.5-flash", {"input_tokens": 1_000_000, "audio_input_tokens": 1_000_000}, "1.00")
    yield Bill(GEMINI, PRO, {"web_searches": 1_000}, "35")
    yield Bill(GEMINI, "gemini-3.1-pro-preview", {"web_searches": 1_000}, "14")


def rate_of(model: str) -> Rate:
    entry = shipped_rates.entry(model)
    assert entry is not None, model
    return pricing.build_rates(Config(rates=(shipped_rate(model, entry),)))[model]


def name_of(value: Any) -> str | None:
    if isinstance(value, Bill):
        return f"{value.model} {value.service} {'+'.join(map(str, value.usage.values()))} {value.published}"
    return None


def shown(cost: Fraction, published: str) -> bool:
    decimals = len(published.partition(".")[2])
    return int(cost * 10**decimals + Fraction(1, 2)) == int(published.replace(".", ""))


@pytest.mark.parametrize("bill", list(bills()), ids=name_of)
def test_a_published_bill(bill: Bill) -> None:
    cost = rate_of(bill.model).cost(**bill.usage, service=SERVICES[bill.service])
    total = Fraction(cost, 10**9) + Fraction(Decimal(bill.apart))
    assert shown(total, bill.published), (float(total), bill.page.url)


@pytest.mark.parametrize(("model", "quality", "published"), sorted(NOT_REPRODUCED))
def test_what_a_page_contradicts_itself_in_is_still_so(model: str, quality: str, published: str) -> None:
    tokens = PICTURE_TOKENS[quality][PICTURE_PRICES[model, quality].index(published)]
    assert not shown(Fraction(rate_of(model).cost(**pictures(tokens)), 10**9), published)
