"""Attempts that Python makes: they count where those of the hot path count, and take the same decisions."""

from __future__ import annotations

import time

import pytest

from relay._fastpath import ERROR_CODES, Attempts, Breaker, Channel, Engine, Route
from relay.proxy.catalogue import default_tables
from tests.support.routing_oracle import KEY, MODEL

SECOND = 1_000_000_000
FAILED, UNAVAILABLE, ACCOUNT = (ERROR_CODES.index(f"upstream_{name}") for name in ("failed", "unavailable", "account"))


class Hooks:
    def __init__(self) -> None:
        self.changed: list[str] = []

    def breaker_changed(self, channel: Channel, breaker: Breaker, place: str | None) -> None:
        self.changed.append(channel.name)


@pytest.fixture
def engine() -> Engine:
    return Engine(Hooks(), b"pepper", default_tables(), {}, 1)


def route(engine: Engine, name: str, keys: int = 1, priority: int = 0, open_ns: int = SECOND) -> Route:
    lines = [f"authorization: Bearer {name}-{number}\r\n".encode() for number in range(1, keys + 1)]
    breaker = Breaker(calls_min=2, open_ns_min=open_ns, open_ns_max=open_ns)
    channel = Channel(name, 0, b"h", b"", lines, None, priority=priority, breaker=breaker)
    return Route(channel, "m", engine.default_tables[0])


def begun(engine: Engine, *routes: Route) -> Attempts:
    attempts = Attempts(engine, list(routes))
    assert attempts.begin() == 0
    return attempts


def key(attempts: Attempts) -> str:
    return attempts.key_line().decode().split()[-1]


def test_a_channel_is_occupied_until_it_is_left(engine: Engine):
    a = route(engine, "a")
    one, two = begun(engine, a), begun(engine, a)
    assert a.channel.in_flight == 2
    one.good()
    assert a.channel.in_flight == 2
    for attempts in (one, one, two):
        attempts.leave()
    assert a.channel.in_flight == 0


def test_without_any_way(engine: Engine):
    assert Attempts(engine, []).begin() == UNAVAILABLE
    a = route(engine, "a", keys=2)
    for _ in range(2):
        attempts = begun(engine, a)
        attempts.rest_key(30 * SECOND, KEY, True)
        attempts.leave()
    shut = Attempts(engine, [a])
    assert shut.begin() == ACCOUNT
    assert SECOND <= shut.wait_ns <= 2 * SECOND  # then one call may try a key all the same
    assert shut.route is None
    shut.leave()


def test_another_key_only_where_the_refused_one_rests(engine: Engine):
    a = route(engine, "a", keys=3)
    attempts = begun(engine, a)
    assert key(attempts) == "a-1"
    assert not attempts.another(key_refused=True, channels=False)  # it does not rest
    assert a.channel.in_flight == 0
    attempts = begun(engine, a)
    assert key(attempts) == "a-2"
    attempts.rest_key(SECOND, MODEL, False)
    assert attempts.another(key_refused=True, channels=False)
    assert (key(attempts), attempts.count, a.channel.in_flight) == ("a-3", 2, 1)
    attempts.leave()
    assert [model for model, _, _ in a.channel.keys[1].resting(time.monotonic_ns())] == ["m"]


def test_another_channel_only_where_it_is_allowed(engine: Engine):
    a, b = route(engine, "a"), route(engine, "b", priority=1)
    for allowed in (False, True):
        attempts = begun(engine, a, b)
        attempts.bad(FAILED)
        assert attempts.another(key_refused=False, channels=allowed) is allowed
        assert (a.channel.in_flight, b.channel.in_flight) == (0, int(allowed))
        if allowed:
            attempts.bad(FAILED)
            assert not attempts.another(key_refused=False, channels=True)  # both were tried
    assert (a.channel.failures, b.channel.failures) == (2, 1)


def test_attempts_and_the_budget_are_bounded(engine: Engine):
    a = route(engine, "a", keys=5)
    engine.attempts_max = 2
    attempts = begun(engine, a)
    attempts.rest_key(SECOND, KEY, True)
    assert attempts.another(key_refused=True, channels=False)
    attempts.rest_key(SECOND, KEY, True)
    assert not attempts.another(key_refused=True, channels=False)
    engine.retry_budget.configure(0, 0)
    attempts = begun(engine, a)
    attempts.rest_key(SECOND, KEY, True)
    assert not attempts.another(key_refused=True, channels=False)
    assert engine.retry_budget.refused_total == 1


def test_a_breaker_opens_is_probed_by_one_and_closes(engine: Engine):
    a = route(engine, "a", open_ns=10 * SECOND)
    for _ in range(2):
        attempts = begun(engine, a)
        attempts.bad(FAILED)
        attempts.leave()
    assert engine.hooks.changed == ["a"]
    shut = Attempts(engine, [a])
    assert shut.begin() == UNAVAILABLE
    assert 9 * SECOND < shut.wait_ns <= 10 * SECOND

    b = route(engine, "b", open_ns=1)  # probed at once
    for _ in range(2):
        attempts = begun(engine, b)
        attempts.bad(FAILED)
        attempts.leave()
    probe = begun(engine, b)
    assert Attempts(engine, [b]).begin() == UNAVAILABLE
    probe.leave()  # its client left: the next call may probe
    for _ in range(3):
        probe = begun(engine, b)
        probe.good()
        probe.leave()
    assert b.channel.breaker.state == 0
    assert engine.hooks.changed == ["a", "b", "b"]
    assert b.channel.in_flight == 0
