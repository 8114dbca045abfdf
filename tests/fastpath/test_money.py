"""Prices, balances and what a key allows."""

from __future__ import annotations

from fractions import Fraction
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay._fastpath import ERROR_CODES, STATUSES, ApiKey, Balance, Policy, Rate, Scope
from relay.policy.keys import pack_networks
from tests.support import money_oracle
from tests.support.money_oracle import (
    APART,
    COST_MAX,
    NANO_MAX,
    REPLIES,
    TOKEN_DIMENSIONS,
    UNIT_DIMENSIONS,
    USAGE_MAX,
    KeyOracle,
    RateOracle,
    clamp,
)

prices = st.one_of(st.just(0), st.integers(0, 10**11), st.integers(0, 2**53), st.just(2**53))
usages = st.one_of(st.integers(0, 3000), st.integers(0, 10**7), st.integers(-5, 2**70), st.just(USAGE_MAX))
discounts = st.one_of(st.just(10**9), st.integers(0, 10**9), st.integers(0, 10**12), st.just(850_000_000))
dimensions = (*TOKEN_DIMENSIONS, *UNIT_DIMENSIONS)
ARGUMENTS = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write": "cache_write_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "image": "images",
    "video_second": "video_seconds",
    "web_search": "web_searches",
}


@given(
    rates=st.fixed_dictionaries(dict.fromkeys(dimensions, prices)),
    usage=st.fixed_dictionaries(dict.fromkeys(dimensions, usages)),
    ppb=discounts,
)
def test_cost_is_the_exact_fraction_rounded_up_once(rates: dict[str, int], usage: dict[str, int], ppb: int) -> None:
    rate = Rate(model=b"m", card="c", discount_ppb=ppb, **rates)
    oracle = RateOracle(rates, ppb)
    cost = rate.cost(**{ARGUMENTS[name]: n for name, n in usage.items()})
    assert cost == oracle.cost(usage)
    # A hold for the same usage covers it, however the prompt is charged.
    prompt = clamp(sum(clamp(usage[name]) for name in TOKEN_DIMENSIONS if name != "output"))
    held = {name: clamp(usage[name]) for name in UNIT_DIMENSIONS}
    bound = rate.bound(prompt, usage["output"], held["image"], held["video_second"], held["web_search"])
    assert bound == oracle.bound(prompt, clamp(usage["output"]), held)
    if prompt < USAGE_MAX:
        assert bound >= cost


@given(
    rates=st.fixed_dictionaries(dict.fromkeys(dimensions, prices)),
    ppb=discounts,
    prompt=st.integers(0, 10**6),
    images=st.integers(0, 10),
    budget=st.one_of(st.integers(0, 10**12), st.integers(0, NANO_MAX)),
)
def test_affordable_is_the_last_count_within_the_budget(
    rates: dict[str, int], ppb: int, prompt: int, images: int, budget: int
) -> None:
    rate = Rate(model=b"m", card="c", discount_ppb=ppb, **rates)
    count = rate.affordable(prompt, budget, images=images)
    if rate.output == 0 or ppb == 0 or budget >= COST_MAX:
        assert count == 2**63 - 1
    elif count == 0:
        assert rate.bound(prompt, 1, images) > budget
    elif count < USAGE_MAX:
        assert rate.bound(prompt, count, images) <= budget
        assert rate.bound(prompt, count + 1, images) > budget


SETS = st.fixed_dictionaries(
    dict.fromkeys(dimensions, prices), optional=dict.fromkeys(APART, st.one_of(st.just(-1), prices))
)
LIMITS = st.sampled_from([1000, 128_000, 200_000, 272_000])


@given(
    base=SETS,
    tiers=st.dictionaries(st.tuples(st.one_of(st.just(0), LIMITS), st.integers(0, 3)), SETS, max_size=8),
    usage=st.fixed_dictionaries(dict.fromkeys((*dimensions, *APART), st.one_of(usages, st.integers(0, 300_000)))),
    service=st.integers(0, 4),
    ppb=discounts,
    budget=st.one_of(st.integers(0, 10**12), st.integers(0, NANO_MAX)),
    priority=st.booleans(),
)
def test_prices_that_depend_on_the_call_are_their_oracle(
    base: dict[str, int],
    tiers: dict[tuple[int, int], dict[str, int]],
    usage: dict[str, int],
    service: int,
    ppb: int,
    budget: int,
    priority: bool,
) -> None:
    tiers |= {(0, 0): base}
    rate = Rate(model=b"m", card="c", discount_ppb=ppb, tiers=tiers, **base)
    oracle = RateOracle(base, ppb, tiers=tiers)
    names = {**ARGUMENTS, **{name: f"{name}_tokens" for name in APART}}
    cost = rate.cost(service=service, **{names[name]: n for name, n in usage.items()})
    assert cost == oracle.cost(usage, service if service < 4 else 0)
    prompt = clamp(sum(clamp(usage[name]) for name in TOKEN_DIMENSIONS if name != "output"))
    held = {name: clamp(usage[name]) for name in UNIT_DIMENSIONS}
    units = (held["image"], held["video_second"], held["web_search"])
    bound = rate.bound(prompt, usage["output"], *units, priority=priority)
    assert bound == oracle.bound(prompt, clamp(usage["output"]), held, priority)
    if prompt < USAGE_MAX and (priority or service != 3):
        assert bound >= cost
    count = rate.affordable(prompt, budget, *units, priority=priority)
    if ppb and oracle.dearest(REPLIES, prompt, priority) and budget < COST_MAX:
        assert min(count, 2**50) == oracle.affordable(prompt, held, budget, 2**50, priority)


def test_cost_by_hand() -> None:
    """1,234 input and 567 output tokens at 2.50 and 10 per million: 0.008755."""
    rate = Rate(model=b"m", card="c", input=2_500_000_000, output=10_000_000_000)
    assert rate.cost(input_tokens=1234, output_tokens=567) == 8_755_000
    assert Rate(model=b"m", card="c", input=1).cost(input_tokens=1) == 1  # up, never to nothing
    assert rate.cost() == 0


@given(st.dictionaries(st.sampled_from(sorted(ARGUMENTS.values())), st.integers(-(2**80), 0)))
def test_negative_usage_costs_nothing_and_earns_nothing(usage: dict[str, int]) -> None:
    assert Rate(model=b"m", card="c", input=2**53, output=2**53, image=2**53).cost(**usage) == 0


@pytest.mark.parametrize("name", [*dimensions, "discount_ppb", "output_tokens_max"])
@pytest.mark.parametrize("value", [-1, 2**63, 1.5, None, "1"])
def test_rates_refuse_what_is_no_price(name: str, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        Rate(model=b"m", card="c", **{name: value})  # type: ignore[arg-type]


def test_a_rate_shows_its_prices() -> None:
    values = {name: index + 1 for index, name in enumerate(dimensions)}
    rate = Rate(model=b"m", card="c", **values)
    assert {name: getattr(rate, name) for name in dimensions} == values
    assert (rate.model, rate.card, rate.discount_ppb, rate.output_tokens_max) == (b"m", "c", 10**9, 0)
    with pytest.raises(AttributeError):
        rate.input = 0


def test_balance() -> None:
    balance = Balance(7, 100)
    balance.add(50)
    assert balance.take(200) == 0
    assert balance.take(120) == 120
    assert balance.take(200, partial=True) == 30
    assert (balance.account_id, balance.available_nano, balance.held_nano, balance.balance_nano) == (7, 0, 0, 0)
    for wrong in (-1, NANO_MAX + 1):
        with pytest.raises(ValueError, match="nano"):
            balance.add(wrong)
        with pytest.raises(ValueError, match="nano"):
            balance.take(wrong)
        with pytest.raises(ValueError, match="balance_nano"):
            Balance(1, wrong)
    balance.add(NANO_MAX)
    with pytest.raises(ValueError, match="too large"):
        balance.add(1)


def key_with(**fields: object) -> ApiKey:
    key = ApiKey(b"abcdefghijkl", bytes(range(32)), 3, 2, 1)
    key.update(**{"scopes": (Scope("key", 3),), "balance": Balance(2)} | fields)  # type: ignore[arg-type]
    return key


def refusal(key: ApiKey, **facts: object) -> str:
    return ERROR_CODES[key.check(**facts)]  # type: ignore[arg-type]


def test_key_checks_in_their_order() -> None:
    key = key_with(
        key_status=STATUSES.index("revoked"),
        account_status=STATUSES.index("frozen"),
        networks=pack_networks(["10.0.0.0/8"]),
        endpoint_scopes=0b01,
        models=frozenset({b"a"}),
        expires_ns=100,
    )
    facts = {"wall_ns": 100, "address": b"\1\2\3\4", "endpoint_scope": 0b10, "model": b"b"}
    assert refusal(key, **facts) == "key_revoked"
    wide = {"scopes": key.scopes, "balance": key.balance, "account_status": STATUSES.index("closed")}
    narrow = wide | {"networks": key.networks, "endpoint_scopes": 1, "models": key.models, "expires_ns": 100}
    key.update(**narrow | {"key_status": STATUSES.index("suspended")})  # type: ignore[arg-type]
    assert refusal(key, **facts) == "key_suspended"
    key.update(**narrow)  # type: ignore[arg-type]
    assert refusal(key, **facts) == "key_expired"
    facts["wall_ns"] = 99
    assert refusal(key, **facts) == "account_inactive"
    key.update(**narrow | {"account_status": 0})  # type: ignore[arg-type]
    assert refusal(key, **facts) == "address_not_allowed"
    facts["address"] = b"\x0a\2\3\4"
    assert refusal(key, **facts) == "scope_not_allowed"
    facts["endpoint_scope"] = 0b11
    assert refusal(key, **facts) == "model_not_allowed"
    facts["model"] = b"a"
    assert refusal(key, **facts) == ""
    assert key.generation == 4


@pytest.mark.parametrize("status", ["frozen", "banned", "closing", "closed"])
def test_only_active_accounts_call(status: str) -> None:
    assert refusal(key_with(account_status=STATUSES.index(status))) == "account_inactive"


def test_update_refuses_before_it_changes() -> None:
    key = key_with(plan="free")
    for wrong in (
        {"scopes": (1,)},
        {"scopes": [Scope("key", 1)] * 9},
        {"balance": None},
        {"balance": 3},
        {"networks": b"x"},
        {"networks": bytes([4, 33]) + bytes(16)},
        {"networks": bytes([5, 3]) + bytes(16)},
        {"models": ["text"]},
        {"key_status": 9},
        {"key_status": STATUSES.index("frozen")},
        {"account_status": 7},
        {"expires_ns": -1},
        {"endpoint_scopes": 2**32},
        {"on_disconnect": 2},
    ):
        with pytest.raises((TypeError, ValueError)):
            key.update(**{"scopes": (), "balance": Balance(9), "plan": "x"} | wrong)  # type: ignore[arg-type]
        assert (key.plan, len(key.scopes), key.balance.account_id, key.generation) == ("free", 1, 2, 1)


def test_digests() -> None:
    key = key_with()
    assert key.digest_matches(bytes(range(32)))
    for position in (0, 15, 31):
        other = bytearray(range(32))
        other[position] ^= 0x80
        assert not key.digest_matches(bytes(other))
    assert not key.digest_matches(bytes(range(31)))
    with pytest.raises(ValueError, match="32"):
        ApiKey(b"a", bytes(31), 1, 1)


v4 = st.ip_addresses(v=4)
v6 = st.ip_addresses(v=6)


@given(data=st.data(), near=st.booleans())
def test_addresses_match_as_ipaddress_does(data: st.DataObject, near: bool) -> None:
    networks = [
        ip_network((data.draw(family), data.draw(st.integers(0, bits))), strict=False)
        for family, bits in data.draw(st.lists(st.sampled_from([(v4, 32), (v6, 128)]), min_size=1, max_size=4))
    ]
    if near:
        network = data.draw(st.sampled_from(networks))
        packed = int.from_bytes(network.network_address.packed, "big") ^ (
            1 << data.draw(st.integers(0, network.max_prefixlen - 1))
        )
        address = ip_address(packed.to_bytes(network.max_prefixlen // 8, "big"))
    else:
        address = data.draw(st.one_of(v4, v6))
    key = key_with(networks=pack_networks(map(str, networks)))
    seen = getattr(address, "ipv4_mapped", None) or address
    meant = [
        ip_network((network.network_address.ipv4_mapped, network.prefixlen - 96))
        if network.version == 6 and network.prefixlen >= 96 and network.network_address.ipv4_mapped
        else network
        for network in networks
    ]
    allowed = any(seen in network for network in meant if network.version == seen.version)
    # An IPv6 network wider than ::ffff:0:0/96 is not asked about v4 addresses, whoever maps them.
    assert (refusal(key, address=address.packed) == "") == allowed


statuses = st.one_of(st.just("active"), st.sampled_from(STATUSES))
some_models = st.sampled_from([b"a", b"b", b"c"])
near_networks = st.sampled_from([*map(ip_network, ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.7/32", "2001:db8::/33"))])
near_addresses = st.sampled_from([*map(ip_address, ("10.1.2.3", "11.0.0.1", "192.0.2.7", "2001:db8::1", "::1"))])


@given(
    key_status=statuses.filter(lambda name: STATUSES.index(name) <= STATUSES.index("revoked")),
    account_status=statuses,
    expires_ns=st.integers(0, 3),
    endpoint_scopes=st.sampled_from([0xFFFFFFFF, 0, 1, 2, 3]),
    models=st.one_of(st.none(), st.frozensets(some_models)),
    networks=st.one_of(st.none(), st.lists(near_networks, max_size=2)),
    wall_ns=st.integers(0, 4),
    address=st.one_of(st.none(), near_addresses),
    endpoint_scope=st.sampled_from([1, 2]),
    model=st.one_of(st.none(), some_models),
)
def test_what_a_key_may_do_is_its_oracle(
    key_status: str,
    account_status: str,
    expires_ns: int,
    endpoint_scopes: int,
    models: frozenset[bytes] | None,
    networks: list[object] | None,
    wall_ns: int,
    address: object,
    endpoint_scope: int,
    model: bytes | None,
) -> None:
    oracle = KeyOracle(key_status, account_status, expires_ns, endpoint_scopes, models, networks)
    key = key_with(
        key_status=STATUSES.index(key_status),
        account_status=0 if STATUSES.index(account_status) in (1, 2) else STATUSES.index(account_status),
        expires_ns=expires_ns,
        endpoint_scopes=endpoint_scopes,
        models=models,
        networks=None if networks is None else pack_networks(map(str, networks)),
    )
    if STATUSES.index(account_status) in (1, 2):  # statuses of keys only
        oracle.account_status = "active"
    packed = None if address is None else address.packed  # type: ignore[attr-defined]
    told = refusal(key, wall_ns=wall_ns, address=packed, endpoint_scope=endpoint_scope, model=model)
    assert told == oracle.refusal(wall_ns, address, endpoint_scope, model)


def test_addresses() -> None:
    key = key_with(networks=pack_networks(["192.0.2.7", "2001:db8::/33", "::ffff:198.51.100.0/120"]))
    for text, allowed in (
        ("192.0.2.7", True),
        ("192.0.2.6", False),
        ("::ffff:192.0.2.7", True),
        ("2001:db8:7fff::1", True),
        ("2001:db8:8000::1", False),
        ("198.51.100.200", True),
    ):
        assert (refusal(key, address=ip_address(text).packed) == "") == allowed
    assert refusal(key) == "address_not_allowed"  # unknown address
    assert refusal(key, address=b"123") == "address_not_allowed"
    assert refusal(key_with(networks=b""), address=bytes(4)) == "address_not_allowed"
    for wrong in ("10.0.0.1/8", "x", ""):
        with pytest.raises(ValueError, match=r"host bits|does not appear"):
            pack_networks([wrong])


@given(
    st.fixed_dictionaries(
        dict.fromkeys(
            ("hold_output_tokens", "hold_slice_tokens", "hold_slice_tokens_min", "prompt_margin_permille"),
            st.one_of(st.integers(0, 3), st.integers(0, 100_000)),
        )
    )
)
def test_a_policy_is_its_oracle(numbers: dict[str, int]) -> None:
    made = Policy(**numbers)
    assert {name: getattr(made, name) for name in numbers} == money_oracle.policy(numbers)


def test_policy_keeps_sensible_numbers() -> None:
    policy = Policy(hold_slice_tokens=0, hold_slice_tokens_min=50)
    assert (policy.hold_slice_tokens, policy.hold_slice_tokens_min) == (1, 1)
    with pytest.raises(ValueError, match="prompt_margin_permille"):
        Policy(prompt_margin_permille=-1)


def test_prices_are_exact_for_every_small_discount() -> None:
    """One rounding: the cost of many small dimensions is not the sum of their rounded costs."""
    rate = Rate(model=b"m", card="c", input=1, output=1, cache_read=1, discount_ppb=333_333_333)
    exact = Fraction(3, 10**6) * Fraction(333_333_333, 10**9)
    assert 0 < exact < 1
    assert rate.cost(input_tokens=1, output_tokens=1, cache_read_tokens=1) == 1
