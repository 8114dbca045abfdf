"""Rate cards: the configuration's decimals, exactly, under an id that follows from the content."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import Billing, Config, Rate
from relay.policy import pricing
from relay.storage.rows import CallDetails, CallLine

SONNET = Rate(
    model="sonnet",
    input=Decimal(3),
    output=Decimal(15),
    cache_read=Decimal("0.30"),
    cache_write=Decimal("3.75"),
    cache_write_1h=Decimal(6),
    web_search=Decimal("0.01"),
)
MINI = Rate(model="mini", input=Decimal("0.15"), output=Decimal("0.6"))


def config_of(*rates: Rate, discount: str = "1") -> Config:
    return Config(rates=rates, billing=Billing(discount=Decimal(discount)))


def test_rates_are_exact_integers() -> None:
    rate = pricing.build_rates(config_of(SONNET, MINI, discount="0.85"))["sonnet"]
    assert (rate.input, rate.output, rate.cache_read) == (3_000_000_000, 15_000_000_000, 300_000_000)
    assert (rate.cache_write, rate.cache_write_1h, rate.web_search) == (3_750_000_000, 6_000_000_000, 10_000_000)
    assert (rate.model, rate.discount_ppb) == (b"sonnet", 850_000_000)
    assert rate.cost(input_tokens=1000, output_tokens=100) == 3_825_000  # (0.003 + 0.0015) * 0.85
    mini = pricing.build_rates(config_of(SONNET, MINI))["mini"]
    assert (mini.cache_read, mini.cache_write, mini.cache_write_1h) == (150_000_000,) * 3


def test_the_id_of_a_card_follows_from_its_content() -> None:
    cards = pricing.rate_cards(config_of(SONNET, MINI))
    ((name, body),) = cards.items()
    assert name == pricing.card_id(body)
    assert name.startswith("rates-")
    assert len(name) == 18
    # Neither the order nor the way a number is written matters.
    again = Rate(model="mini", input=Decimal("0.1500"), output=Decimal("6E-1"))
    assert pricing.rate_cards(config_of(again, SONNET, discount="1.000")) == cards
    for other in (
        config_of(SONNET),
        config_of(SONNET, MINI, discount="0.999999999"),
        config_of(SONNET, Rate(model="mini", input=Decimal("0.15"), output=Decimal("0.600000001"))),
        config_of(SONNET, Rate(model="mini2", input=Decimal("0.15"), output=Decimal("0.6"))),
    ):
        assert name not in pricing.rate_cards(other)
    assert {rate.card for rate in pricing.build_rates(config_of(SONNET, MINI)).values()} == {name}
    assert json.loads(body)["rates"]["mini"]["output"] == "0.6"


def test_a_model_has_one_price() -> None:
    for build in (pricing.build_rates, pricing.rate_cards):
        with pytest.raises(ValueError, match="twice"):
            build(config_of(MINI, MINI))


def test_no_rates_at_all() -> None:
    assert pricing.build_rates(config_of()) == {}
    assert len(pricing.rate_cards(config_of())) == 1


@dataclass
class Record:
    path: str = "/v1/chat/completions"
    model: str | None = "sonnet"
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    images: int = 0
    video_seconds: int = 0
    web_searches: int = 0
    cost_nano: int = 0
    details: CallDetails | None = None
    lines: tuple[CallLine, ...] = ()


counts = st.one_of(st.integers(0, 10**6), st.integers(0, 2**40))


@given(
    record=st.builds(
        Record,
        input_tokens=counts,
        output_tokens=counts,
        cache_read_tokens=counts,
        images=counts,
        video_seconds=counts,
        web_searches=counts,
    ),
    short=counts,
    long=counts,
    discount=st.sampled_from(["1", "0.85", "0.333333333", "12.5"]),
)
def test_a_stored_card_gives_the_cost_of_a_record_again(record: Record, short: int, long: int, discount: str) -> None:
    config = config_of(SONNET, MINI, discount=discount)
    rate = pricing.build_rates(config)["sonnet"]
    body = pricing.rate_cards(config)[rate.card]
    record.cache_write_tokens = short + long
    record.cost_nano = rate.cost(
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        cache_read_tokens=record.cache_read_tokens,
        cache_write_tokens=short,
        cache_write_1h_tokens=long,
        images=record.images,
        video_seconds=record.video_seconds,
        web_searches=record.web_searches,
    )
    assert pricing.cost_by_card(body, record) == record.cost_nano
    record.cache_write_tokens = 0
    exact = rate.cost(
        record.input_tokens,
        record.output_tokens,
        record.cache_read_tokens,
        images=record.images,
        video_seconds=record.video_seconds,
        web_searches=record.web_searches,
    )
    for wrong in (exact - 1, exact + 1):
        record.cost_nano = wrong
        assert pricing.cost_by_card(body, record) == exact


def test_a_record_of_a_model_that_is_not_on_the_card() -> None:
    body = pricing.card_body(config_of(MINI))
    with pytest.raises(KeyError):
        pricing.cost_by_card(body, Record())
