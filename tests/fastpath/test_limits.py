"""Rate limits, caps and their clocks, against plain fractions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import units
from relay._fastpath import ApiKey, Balance, Scope, limits_of
from tests.support.money_oracle import DAY, MINUTE, BucketOracle, ScopeOracle, month_index, scope_state, tightest

limits = st.one_of(st.integers(1, 50), st.integers(1, 10**7), st.integers(1, 2**53))
demands = st.one_of(st.integers(0, 60), st.integers(0, 10**6), st.integers(0, 2**41))
pauses = st.one_of(st.just(0), st.integers(0, 10**6), st.integers(0, 2 * MINUTE), st.integers(0, 2 * DAY))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), demands),
        st.tuples(st.just("charge"), demands),
        st.tuples(st.just("give_back"), demands),
        st.tuples(st.just("configure"), st.one_of(st.just(0), limits)),
        st.tuples(st.just("wait"), pauses),
    ),
    max_size=30,
)


@given(first=limits, steps=steps, start=st.integers(0, 10**15))
def test_bucket_is_its_oracle(first: int, steps: list[tuple[str, int]], start: int) -> None:
    scope, oracle, now = Scope("key", 1), BucketOracle(), start
    scope.configure(now_ns=now, rpm=first)
    oracle.configure(first, now)
    for what, n in steps:
        if what == "take":
            wait = oracle.wait(n, now)
            if wait == 0:
                oracle.charge(n, now)
            assert scope.take_permits(0, n, now) == wait
        elif what == "charge":
            scope.charge_permits(0, n, now)
            oracle.charge(n, now)
        elif what == "give_back":
            scope.give_back_permits(0, n, now)
            oracle.give_back(n, now)
        elif what == "configure":
            scope.configure(now_ns=now, rpm=n)
            oracle.configure(n, now)
        else:
            now += n
        state = scope.state(now, 0)
        assert state == scope_state(ScopeOracle("key", rpm=oracle), now, 0)


@given(limit=limits, used=demands, wanted=st.integers(1, 2**41), now=st.integers(0, 10**15))
def test_the_stated_wait_is_exact(limit: int, used: int, wanted: int, now: int) -> None:
    """Refused a nanosecond before, admitted at the very nanosecond."""
    scope = Scope("key", 1)
    scope.configure(now_ns=now, tpm=limit)
    scope.charge_permits(1, used, now)
    wait = scope.take_permits(1, wanted, now)
    if wait:
        assert scope.take_permits(1, wanted, now + wait - 1) == 1
        assert scope.take_permits(1, wanted, now + wait) == 0


@given(limit=st.integers(1, 300), now=st.integers(0, 10**15))
def test_the_burst_is_the_limit(limit: int, now: int) -> None:
    scope = Scope("key", 1)
    scope.configure(now_ns=now, rpm=limit)
    assert [scope.take_permits(0, 1, now) for _ in range(limit)] == [0] * limit
    assert scope.take_permits(0, 1, now) > 0
    # And a minute later exactly as many again: no rate drifts.
    assert [scope.take_permits(0, 1, now + MINUTE) for _ in range(limit)] == [0] * limit
    assert scope.take_permits(0, 1, now + MINUTE) > 0


def test_a_demand_above_the_bucket_needs_it_full_and_leaves_a_debt() -> None:
    scope = Scope("key", 1)
    scope.configure(now_ns=0, tpm=100)
    assert scope.take_permits(1, 250, 0) == 0
    assert scope.take_permits(1, 1, 0) == MINUTE * 150 // 100 + MINUTE // 100
    assert scope.take_permits(1, 250, MINUTE) == MINUTE * 150 // 100
    assert scope.take_permits(1, 250, MINUTE * 250 // 100) == 0


def test_nothing_is_always_admitted() -> None:
    scope = Scope("key", 1)
    scope.configure(now_ns=0, tpm=1)
    scope.charge_permits(1, 100, 0)
    assert scope.take_permits(1, 0, 0) == 0


def test_raising_a_limit_helps_at_once_and_lowering_it_blocks_a_minute_at_most() -> None:
    scope = Scope("key", 1)
    scope.configure(now_ns=0, rpm=20)
    for _ in range(20):
        assert scope.take_permits(0, 1, 0) == 0
    scope.configure(now_ns=0, rpm=200)
    assert scope.state(0, 0)["requests_remaining"] == 180
    scope.configure(now_ns=0, rpm=2)
    assert scope.state(0, 0)["requests_remaining"] == 0
    assert scope.take_permits(0, 1, 0) == MINUTE // 2
    assert scope.take_permits(0, 2, MINUTE) == 0


@pytest.mark.parametrize(
    "fields",
    [{"rpm": -1}, {"tpm": 2**53 + 1}, {"concurrency": -1}, {"daily_nano": -1}, {"monthly_nano": 2**70}, {"now_ns": -1}],
)
def test_configure_refuses_before_it_changes(fields: dict[str, int]) -> None:
    scope = Scope("account", 1)
    scope.configure(now_ns=0, rpm=7, tpm=7, concurrency=7, daily_nano=7, monthly_nano=7)
    before = scope.state(0, 0)
    with pytest.raises(ValueError, match=next(iter(fields))):
        scope.configure(**{"now_ns": 0, "rpm": 9} | fields)
    assert scope.state(0, 0) == before


def test_configure_takes_no_float() -> None:
    with pytest.raises(TypeError):
        Scope("key", 1).configure(now_ns=0, rpm=1.5)  # type: ignore[arg-type]


@given(st.integers(0, 60_000))
def test_months_are_those_of_the_calendar(day: int) -> None:
    scope = Scope("key", 1)
    scope.state(0, day * DAY + DAY - 1)
    assert scope.day == day
    assert scope.month == (month_index(day) if day else 0)
    assert scope.month == units.month_of_day(day)


def test_spending_starts_anew_with_day_and_month() -> None:
    scope = Scope("key", 1)
    first = units.first_day_of_month(600)
    scope.load_spend(first + 1, 5, 600, 50)
    scope.state(0, (first + 1) * DAY)
    assert (scope.spent_day_nano, scope.spent_month_nano) == (5, 50)
    scope.state(0, (first + 2) * DAY)
    assert (scope.spent_day_nano, scope.spent_month_nano) == (0, 50)
    scope.state(0, (first + 40) * DAY)
    assert (scope.spent_day_nano, scope.spent_month_nano) == (0, 0)


def test_a_clock_set_back_frees_no_cap() -> None:
    scope = Scope("key", 1)
    first = units.first_day_of_month(600)
    scope.load_spend(first, 5, 600, 50)
    scope.state(0, first * DAY - 1)  # the evening before, in the month before
    assert (scope.day, scope.month, scope.spent_day_nano, scope.spent_month_nano) == (first, 600, 5, 50)
    # A clock that was a year ahead: the figures stay, the calendar goes on from the right day.
    scope.state(0, (first - 365) * DAY)
    assert (scope.day, scope.month, scope.spent_day_nano, scope.spent_month_nano) == (first - 365, 588, 5, 50)
    scope.state(0, (first - 364) * DAY)
    assert (scope.spent_day_nano, scope.spent_month_nano) == (0, 50)


def test_loaded_spend_beyond_all_bounds_sticks() -> None:
    scope = Scope("key", 1)
    scope.load_spend(1, 2**80, 1, 2**62)
    assert (scope.spent_day_nano, scope.spent_month_nano) == (2**61, 2**61)
    with pytest.raises(ValueError, match="daily_nano"):
        scope.load_spend(1, -1, 1, 0)


def test_headers_show_the_tightest_scope() -> None:
    key, account, organisation = Scope("key", 1), Scope("account", 1), Scope("organisation", 1)
    key.configure(now_ns=0, rpm=100, tpm=0)
    account.configure(now_ns=0, rpm=20, tpm=5000)
    organisation.configure(now_ns=0)
    api_key = ApiKey(b"a" * 12, bytes(32), 1, 1)
    assert limits_of(api_key, 0) == (0, 0, 0, 0, 0, 0)
    api_key.update(scopes=(key, account, organisation), balance=Balance(1))
    assert limits_of(api_key, 0) == (20, 20, 0, 5000, 5000, 0)
    key.charge_permits(0, 99, 0)
    assert limits_of(api_key, 0) == (100, 1, MINUTE * 99 // 100, 5000, 5000, 0)
    assert limits_of(api_key, MINUTE) == (20, 20, 0, 5000, 5000, 0)


some_limits = st.one_of(st.just(0), st.sampled_from([5, 10, 20]), limits)


@given(
    scopes=st.lists(st.tuples(some_limits, some_limits, st.integers(0, 30), st.integers(0, 30)), max_size=4),
    now=pauses,
)
def test_headers_are_their_oracle(scopes: list[tuple[int, int, int, int]], now: int) -> None:
    made, oracles = [], []
    for rpm, tpm, requests, tokens in scopes:
        scope, oracle = Scope("key", 1), ScopeOracle("key")
        scope.configure(now_ns=0, rpm=rpm, tpm=tpm)
        oracle.rpm.configure(rpm, 0)
        oracle.tpm.configure(tpm, 0)
        for which, bucket, used in ((0, oracle.rpm, requests), (1, oracle.tpm, tokens)):
            scope.charge_permits(which, used, 0)
            bucket.charge(used, 0)
        made.append(scope)
        oracles.append(oracle)
    api_key = ApiKey(b"a" * 12, bytes(32), 1, 1)
    api_key.update(scopes=tuple(made), balance=Balance(1))
    assert limits_of(api_key, now) == tightest(oracles, now)


def test_kinds_of_scopes() -> None:
    with pytest.raises(ValueError, match="kind"):
        Scope("team", 1)
