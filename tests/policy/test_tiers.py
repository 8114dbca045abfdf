"""Prices that depend on the call: long prompts, service tiers, audio and images, discounts of groups."""

from __future__ import annotations

import random
from decimal import Decimal
from fractions import Fraction
from math import ceil
from types import SimpleNamespace
from typing import Any

import pytest

from relay import rate_files, shipped_rates
from relay._fastpath import Rate
from relay.config import Billing, Config, RateTier, parse, shipped_rate
from relay.config import Rate as ConfiguredRate
from relay.config_values import ConfigError
from relay.control import pricelist
from relay.policy import pricing
from relay.storage.rows import CallDetails

COST_MAX = 10**16
TOKENS = ("input", "output", "cache_read", "cache_write", "cache_write_1h")
PIECES = ("image", "video_second", "web_search")
USAGE = {
    **{name: f"{name}_tokens" for name in (*TOKENS, *pricing.APART)},
    "image": "images",
    "video_second": "video_seconds",
    "web_search": "web_searches",
}
BASE = ConfiguredRate(
    model="m",
    input=Decimal("1.25"),
    output=Decimal(10),
    cache_read=Decimal("0.125"),
    tiers=(
        RateTier(above=200_000, input=Decimal("2.5"), output=Decimal(15), cache_read=Decimal("0.25")),
        RateTier(service="batch", input=Decimal("0.625"), output=Decimal(5)),
        RateTier(service="priority", input=Decimal("2.25"), output=Decimal(18), cache_read=Decimal("0.225")),
    ),
)


def compiled(rate: ConfiguredRate, **billing: Any) -> Rate:
    return pricing.build_rates(Config(rates=(rate,), billing=Billing(**billing)))[rate.model]


def exact(table: dict[tuple[int, str], dict[str, int]], ppb: int, usage: dict[str, int], service: str) -> int:
    """The cost as one fraction, rounded up once."""
    prompt = sum(usage[name] for name in TOKENS if name != "output")
    level = max(above for above, _ in table if above == 0 or prompt > above)
    prices = table.get((level, service), table[level, "standard"])
    audio_in = min(usage["audio_input"], usage["input"])
    image_in = min(usage["image_input"], usage["input"] - audio_in)
    audio_out = min(usage["audio_output"], usage["output"])
    image_out = min(usage["image_output"], usage["output"] - audio_out)
    audio_read = min(usage["audio_cache_read"], usage["cache_read"])
    image_read = min(usage["image_cache_read"], usage["cache_read"] - audio_read)
    tokens = {
        **{name: usage[name] for name in TOKENS},
        "input": usage["input"] - audio_in - image_in,
        "output": usage["output"] - audio_out - image_out,
        "audio_input": audio_in,
        "audio_output": audio_out,
        "image_input": image_in,
        "image_output": image_out,
        "cache_read": usage["cache_read"] - audio_read - image_read,
        "audio_cache_read": audio_read,
        "image_cache_read": image_read,
    }
    cost = sum((Fraction(count * prices[name], 10**6) for name, count in tokens.items()), Fraction(0))
    cost += sum(usage[name] * prices[name] for name in PIECES)
    return min(ceil(cost * Fraction(ppb, 10**9)), COST_MAX)


def random_rate(rng: random.Random) -> tuple[Rate, dict[tuple[int, str], dict[str, int]], int]:
    top = rng.choice([10**3, 10**9, 10**11, 2**53])

    def prices() -> dict[str, int]:
        found = {name: rng.choice([0, rng.randrange(top + 1)]) for name in (*TOKENS, *PIECES)}
        for name, otherwise in pricing.APART.items():
            found[name] = rng.choice([found[otherwise], rng.randrange(top + 1)])
        return found

    table = {(0, "standard"): prices()}
    for above in rng.sample([1000, 128_000, 200_000, 272_000], rng.randrange(4)):
        table[above, "standard"] = prices()
    for above in {above for above, _ in table}:
        for service in rng.sample(pricing.SERVICES[1:], rng.randrange(4)):
            table[above, service] = prices()
    ppb = rng.choice([10**9, 850_000_000, rng.randrange(10**9), rng.randrange(10**12)])
    tiers = {(above, pricing.SERVICES.index(service)): found for (above, service), found in table.items()}
    rate = Rate(model=b"m", card="c", discount_ppb=ppb, tiers=tiers if len(tiers) > 1 else None, **table[0, "standard"])
    return rate, table, ppb


def random_usage(rng: random.Random) -> dict[str, int]:
    most = rng.choice([3, 1000, 300_000, 10**7, 2**40])
    usage = {name: rng.choice([0, rng.randrange(most + 1)]) for name in (*TOKENS, *pricing.APART)}
    usage |= {name: rng.choice([0, 0, rng.randrange(20)]) for name in PIECES}
    return usage


def test_cost_is_the_exact_fraction_over_100_000_rates_and_usages() -> None:
    rng = random.Random(20261121)
    dear = 0
    for number in range(100_000):
        if number % 10 == 0:
            rate, table, ppb = random_rate(rng)
        usage = random_usage(rng)
        service = rng.choice(pricing.SERVICES)
        cost = rate.cost(
            **{USAGE[name]: count for name, count in usage.items()}, service=pricing.SERVICES.index(service)
        )
        assert cost == exact(table, ppb, usage, service), (number, usage, service)
        dear += cost == COST_MAX
        prompt = sum(usage[name] for name in TOKENS if name != "output")
        if prompt <= 2**40:
            bound = rate.bound(
                prompt, usage["output"], *(usage[name] for name in PIECES), priority=service == "priority"
            )
            assert bound >= cost, number
    assert 0 < dear < 50_000  # the sample reaches the clamp and does not live there


def test_the_whole_call_is_charged_at_the_tier_of_its_prompt() -> None:
    rate = compiled(BASE)
    assert rate.cost(input_tokens=200_000, output_tokens=1000) == 250_000_000 + 10_000_000
    assert rate.cost(input_tokens=200_001, output_tokens=1000) == 500_002_500 + 15_000_000
    # What was read from a cache is of the prompt too.
    assert rate.cost(input_tokens=1, cache_read_tokens=200_000) == 2500 + 50_000_000
    assert rate.cost(input_tokens=100_000, service=1) == 62_500_000
    assert rate.cost(input_tokens=100_000, service=3) == 225_000_000
    assert rate.cost(input_tokens=100_000, service=2) == 125_000_000  # flex is not priced: as standard


def test_what_a_tier_leaves_out_is_never_cheaper_than_meant() -> None:
    table = pricing.tier_table(BASE)
    assert table[0, "batch"]["cache_read"] == 125_000_000
    assert table[200_000, "batch"]["input"] == 2_500_000_000  # nothing said of long batches: as standard
    assert table[200_000, "priority"]["output"] == 18_000_000_000  # the dearer of priority and long
    assert table[0, "batch"]["cache_write"] == 625_000_000  # priced as input before, and so here
    assert table[0, "priority"]["audio_input"] == 2_250_000_000


def test_a_hold_covers_the_dearest_way_to_serve_the_call() -> None:
    rate = compiled(BASE)
    assert rate.bound(1000, 100, priority=True) == 1000 * 2250 + 100 * 18_000
    assert rate.bound(1000, 100) == 1000 * 1250 + 100 * 10_000  # what was not asked for is not charged
    assert rate.bound(200_001, 0) == 200_001 * 2500
    assert rate.affordable(1000, 1000 * 2250 + 100 * 18_000, priority=True) == 100
    assert rate.affordable(1000, 1000 * 1250 + 100 * 10_000) == 100


def test_audio_and_images_are_priced_apart() -> None:
    rate = compiled(
        ConfiguredRate(
            model="m", input=Decimal("2.5"), output=Decimal(10), audio_input=Decimal(40), audio_output=Decimal(80),
            image_input=Decimal(1),
        )
    )  # fmt: skip
    assert rate.cost(input_tokens=1000, output_tokens=500) == 7_500_000
    cost = rate.cost(
        input_tokens=1000, output_tokens=500, audio_input_tokens=600, audio_output_tokens=500, image_input_tokens=400
    )
    assert cost == 600 * 40_000 + 400 * 1000 + 500 * 80_000
    # A report of more audio than there are tokens cannot charge more than all of them.
    assert rate.cost(input_tokens=10, audio_input_tokens=1000, image_input_tokens=1000) == 400_000


PICTURES = ConfiguredRate(
    model="m", input=Decimal("0.5"), output=Decimal(3), image_output=Decimal(60),
    tiers=(RateTier(service="batch", input=Decimal("0.25"), output=Decimal("1.5"), image_output=Decimal(30)),),
)  # fmt: skip


def test_pictures_in_an_answer_are_priced_by_their_tokens() -> None:
    rate = compiled(PICTURES)
    assert rate.cost(output_tokens=1320, image_output_tokens=1120) == 1120 * 60_000 + 200 * 3000
    assert rate.cost(output_tokens=1320, image_output_tokens=1120, service=1) == 1120 * 30_000 + 200 * 1500
    # A service that is not priced is as standard, and no report makes more pictures than there is output.
    assert (
        rate.cost(output_tokens=10, image_output_tokens=1000, audio_output_tokens=4, service=3) == 6 * 60_000 + 4 * 3000
    )
    # A hold is for an answer of nothing but pictures.
    assert rate.bound(0, 1120) == 1120 * 60_000
    assert rate.affordable(0, 1120 * 60_000 + 59_999) == 1120


def test_a_picture_with_a_price_of_its_own_is_not_paid_by_its_tokens_too() -> None:
    piece = ConfiguredRate(model="m", input=Decimal(1), output=Decimal(3), image=Decimal("0.067"))
    rate = compiled(piece)
    assert rate.cost(output_tokens=1320, image_output_tokens=1120, images=1) == 67_000_000 + 200 * 3000
    # The card says it as before: a new way to price does not give old prices another card.
    assert "image_output" not in pricing.card_body(Config(rates=(piece,)))
    for service in ("batch", "standard"):
        tier = RateTier(service=service, above=5, image=Decimal("0.03"))
        plain = ConfiguredRate(model="m", input=Decimal(1), output=Decimal(3), tiers=(tier,))
        assert pricing.tier_table(plain)[5, service]["image_output"] == 0


@pytest.mark.parametrize(
    "prices",
    [
        "image = 0.067\nimage_output = 60",
        "image = 0.067\n[[rates.tiers]]\nservice = 'batch'\nimage_output = 30",
        "image_output = 60\n[[rates.tiers]]\nservice = 'batch'\nimage = 0.03",
        "[[rates.tiers]]\nservice = 'batch'\nimage = 0.03\nimage_output = 30",
    ],
)
def test_a_rate_by_the_picture_and_by_its_tokens_is_refused(prices: str) -> None:
    text = f"[[rates]]\nmodel = 'm'\ninput = 1\noutput = 3\n{prices}\n"
    with pytest.raises(ConfigError, match=r"rates\[0\].image_output.*not both"):
        parse(text)
    with pytest.raises(ConfigError, match="not both"):
        rate_files.parse(text, file="f")


def test_terms_N03_groups_of_models_have_a_discount_of_their_own() -> None:
    names = ("gpt-4o", "gpt-4o-mini", "claude", "other")
    rates = tuple(ConfiguredRate(model=name, input=Decimal(1), output=Decimal(2)) for name in names)
    discounts = {"gpt-*": Decimal("0.8"), "gpt-4o-*": Decimal("0.7"), "claude": Decimal("0.5")}
    config = Config(rates=rates, billing=Billing(discount=Decimal("0.9"), discounts=discounts))
    built = pricing.build_rates(config)
    assert [built[name].discount_ppb // 10**8 for name in names] == [8, 7, 5, 9]
    body = pricing.card_body(config)
    for name in names:
        cost = built[name].cost(input_tokens=1000)
        record = billed(name, input_tokens=1000, cost_nano=cost)
        assert pricing.cost_by_card(body, record) == cost


def billed(model: str, **fields: Any) -> Any:
    zero = dict.fromkeys(("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"), 0)
    pieces = dict.fromkeys(("images", "video_seconds", "web_searches", "cost_nano"), 0)
    return SimpleNamespace(
        **{"path": "/v1/chat/completions", "model": model, **zero, **pieces, "details": None, "lines": (), **fields}
    )


def test_a_card_gives_every_cost_again() -> None:
    audio = ConfiguredRate(
        model="audio", input=Decimal(1), output=Decimal(2), audio_input=Decimal(30), image_input=Decimal(4),
        cache_read=Decimal("0.5"), audio_cache_read=Decimal(3),
    )  # fmt: skip
    pictures = ConfiguredRate(
        model="pictures", input=Decimal("0.5"), output=Decimal(3), audio_output=Decimal(7), image_output=Decimal(60),
        tiers=(RateTier(service="batch", image_output=Decimal(30)), RateTier(service="flex", output=Decimal("1.5"))),
    )  # fmt: skip
    piece = ConfiguredRate(
        model="piece", input=Decimal("0.5"), output=Decimal(3), image=Decimal("0.067"),
        tiers=(RateTier(service="batch", output=Decimal("1.5"), image=Decimal("0.034")),),
    )  # fmt: skip
    config = Config(rates=(BASE, audio, pictures, piece), billing=Billing(discount=Decimal("0.85")))
    body = pricing.card_body(config)
    rates = pricing.build_rates(config)
    rng = random.Random(7)
    for _ in range(2000):
        usage = random_usage(rng)
        usage = {name: min(count, 2**39) for name, count in usage.items()}
        service = rng.randrange(4)
        for model, rate in rates.items():
            cost = rate.cost(**{USAGE[name]: count for name, count in usage.items()}, service=service)
            record = billed(
                model,
                **{USAGE[name]: usage[name] for name in ("input", "output", "cache_read", *PIECES)},
                cache_write_tokens=usage["cache_write"] + usage["cache_write_1h"],
                cost_nano=cost + 1,
                details=CallDetails(
                    cache_write_1h_tokens=usage["cache_write_1h"],
                    audio_input_tokens=usage["audio_input"],
                    audio_output_tokens=usage["audio_output"],
                    image_input_tokens=usage["image_input"],
                    image_output_tokens=usage["image_output"],
                    audio_cache_read_tokens=usage["audio_cache_read"],
                    image_cache_read_tokens=usage["image_cache_read"],
                    service=service,
                ),
            )
            assert pricing.cost_by_card(body, record) == cost


def test_tiers_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="tiers"):
        Rate(model=b"m", card="c", tiers={(above, 0): {} for above in range(9)})
    with pytest.raises(KeyError):
        Rate(model=b"m", card="c", tiers={(5, 0): {}})


def test_what_a_rate_says_beside_prices_is_kept_with_what_is_scheduled() -> None:
    text = "[[rates]]\nmodel = 'm'\ninput = 1\noutput = 3\ninference_geo = true\n"
    text += "video_sizes = ['720x1280', '1280x720']\n"
    text += "[[rates.tiers]]\nservice = 'batch'\ninput = 0.5\n"
    rates = rate_files.parse(text, file="f")
    assert rate_files.read(rate_files.stored(rates)) == rates
    assert rates[0].inference_geo
    assert rates[0].video_sizes == ("720x1280", "1280x720")


@pytest.mark.parametrize(
    ("prices", "told"),
    [("", True), ("image_output = 59", True), ("image_output = 60", False), ("image = 0.067", False)],
)
def test_pictures_below_the_list_price_are_told(prices: str, told: bool) -> None:
    text = f"[[rates]]\nmodel = 'gemini-3.1-flash-image'\ninput = 0.5\noutput = 3\n{prices}\n"
    warnings = pricelist.check(parse(text))["warnings"]
    assert any("image_output" in line and "list price (60)" in line for line in warnings) is told


# --- the shipped card


def test_the_shipped_card_is_usable_as_it_is() -> None:
    models = shipped_rates.document()["models"]
    assert len(models) > 300
    assert {item["name"] for item in shipped_rates.document()["sources"]} == {"litellm", "genai-prices"}
    rates = tuple(shipped_rate(name, entry) for name, entry in models.items())
    built = pricing.build_rates(Config(rates=rates))
    assert len(pricing.card_body(Config(rates=rates))) < 1_000_000
    for name in ("gpt-4o", "gpt-5", "claude-sonnet-4-5", "gemini-2.5-pro", "text-embedding-3-small", "deepseek-v4-pro"):
        assert built[name].input > 0, name
    for name, rate in built.items():
        assert rate.cost(input_tokens=10**6, output_tokens=10**5) <= rate.bound(10**6, 10**5), name


def test_a_model_that_is_served_and_not_priced_has_its_list_price() -> None:
    channel = """
    [[channels]]
    name = "c"
    api = "openai"
    base_url = "https://api.openai.com/v1"
    api_keys = []
    models = { "gpt-4o" = "gpt-4o", "mine" = "gpt-5-mini", "own" = "gpt-4o", "unheard-of" = "nothing" }
    [[rates]]
    model = "own"
    input = 1
    output = 2
    """
    config = parse(channel)
    assert config.default_models == {"gpt-4o", "mine"}
    assert config.unpriced_models == ("unheard-of",)
    by_model = {rate.model: rate for rate in config.rates}
    assert by_model["mine"].input == Decimal(shipped_rates.document()["models"]["gpt-5-mini"]["input"])
    assert by_model["mine"].output_tokens_max == 128_000
    assert by_model["own"].input == 1
    off = parse("[billing]\ndefault_rates = false\n" + channel)
    assert off.unpriced_models == ("gpt-4o", "mine", "unheard-of")


def of_tools(price: str, discount: str = "1", models: str = "", **more: str) -> Config:
    tools = ", ".join(f"{name} = {text}" for name, text in {"file_search": price, **more}.items())
    text = f"[billing]\ndiscount = {discount}\n[[rates]]\nmodel = 'gpt-5.5'\ninput = 5\noutput = 30\n"
    return parse(f"{text}cache_read = 0.5\ntools = {{ {tools} }}\n{models}")


def test_prices_of_tools_rise_too() -> None:
    def between(before: Config, after: Config) -> list[str]:
        return [line for _, line in pricelist.rises(pricing.card_body(before), pricing.card_body(after))]

    assert between(of_tools("0.0025"), of_tools("0.003")) == [
        "gpt-5.5: tools.file_search is dearer (0.003 instead of 0.0025)"
    ]
    assert between(of_tools("0.003"), of_tools("0.0025")) == []
    assert between(of_tools("0.003"), of_tools("0.003", x_search="1")) == []  # it was refused before
    lines = between(of_tools("0.003", "0.5"), of_tools("0.003"))
    assert "gpt-5.5: tools.file_search is dearer (0.003 instead of 0.0015)" in lines


def test_models_behind_others_rise_too() -> None:
    """OpenAI's picture models may be used as tools wherever one of its dialect's channels is."""
    channel = "[[channels]]\nname = 'c'\napi = 'openai'\nbase_url = 'http://127.0.0.1:1/v1'\n"
    channel += "api_keys = ['k']\nmodels = ['gpt-5.5']\n"
    cheap, dear = of_tools("1", "0.9", channel), of_tools("1", "1", channel)
    lines = [line for _, line in pricelist.rises(pricing.card_body(cheap), pricing.card_body(dear))]
    assert "gpt-image-2: image_output is dearer (30 instead of 27)" in lines
    assert "whisper-1: video_second is dearer (0.0001 instead of 0.00009)" in lines


def test_rates_check_looks_at_tools() -> None:
    def warned(config: Config) -> list[str]:
        return [line for line in pricelist.check(config)["warnings"] if "tools." in line]

    assert warned(of_tools("0.0025")) == []
    line = "gpt-5.5: tools.file_search (0.0015, discount included) is below its provider's list price (0.0025)"
    assert line in warned(of_tools("0.003", "0.5"))
    assert warned(of_tools("2.5")) == [
        "gpt-5.5: tools.file_search (2.5, discount included) is 100 times its provider's list price or more: "
        "it is for one use"
    ]
    (shown,) = pricelist.rates(of_tools("0.003", "0.5"))["rates"]
    assert (shown["tools"]["file_search"], shown["tools"]["container_1g"]) == ("0.003", "0.03")


def test_rates_check_looks_at_what_is_read_from_caches() -> None:
    rate = "[[rates]]\nmodel = 'm'\ninput = 1\noutput = 2\ncache_read = 0.1\naudio_input = 3\naudio_cache_read = 4\n"
    assert "m: audio_cache_read (4) is not below audio_input (3)" in pricelist.check(parse(rate))["warnings"]
    assert not any("audio" in line for line in pricelist.check(parse(rate.replace("= 4", "= 1")))["warnings"])
