"""The compiled decisions of routing are their oracle's, and do what they are for in simulated weather."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay._fastpath import ERROR_CODES, Breaker, Channel, RetryBudget, pick_channel
from tests.support.routing_oracle import (
    CLOSED,
    DOUBT,
    KEY,
    MODEL,
    OPEN,
    PLACE,
    WAY_OPEN,
    WAY_PROBE,
    WAY_SHUT,
    BreakerOracle,
    BudgetOracle,
    KeysOracle,
    PlacesOracle,
    pick,
)

SECOND = 1_000_000_000
words = st.integers(0, 2**64 - 1)
channels = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from([WAY_OPEN, WAY_OPEN, WAY_OPEN, WAY_PROBE, WAY_SHUT]),
        st.one_of(st.integers(1, 10), st.integers(1, 10**6)),
        st.one_of(st.integers(0, 12), st.integers(0, 10**5)),
        words,
    ),
    max_size=12,
)


@given(candidates=channels, affinity=st.one_of(st.just(0), words), word1=words, word2=words)
def test_the_choice_is_its_oracle(
    candidates: list[tuple[int, int, int, int, int]], affinity: int, word1: int, word2: int
):
    assert pick_channel(candidates, affinity, word1, word2) == pick(candidates, affinity, word1, word2)


STEPS = ["good", "bad", "bad", "probe", "good probe", "bad probe", "no probe"]


@given(
    calls_min=st.integers(1, 20), percent=st.integers(0, 100), window=st.integers(1, 20), shortest=st.integers(1, 4),
    longest=st.integers(4, 30),
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 3)),
        max_size=120,
    ),
)  # fmt: skip
def test_a_breaker_is_its_oracle(
    calls_min: int, percent: int, window: int, shortest: int, longest: int, steps: list[tuple[str, int]]
):
    settings = {
        "calls_min": calls_min, "failure_percent": percent, "window_ns": window, "open_ns_min": shortest,
        "open_ns_max": longest,
    }  # fmt: skip
    breaker, oracle, now = Breaker(**settings), BreakerOracle(**settings), 1
    for what, pause in steps:
        now += pause
        assert breaker.py_way(now) == oracle.way(now)
        if what == "good":
            breaker.py_succeeded(now)
            oracle.succeeded(now)
        elif what == "bad":
            assert breaker.py_failed(now) == oracle.failed(now)
        elif what == "probe":
            if oracle.way(now) == WAY_PROBE:
                breaker.py_begin_probe(now)
                oracle.begin_probe()
        else:
            outcome = {"good probe": 1, "bad probe": 0, "no probe": -1}[what]
            assert breaker.py_end_probe(now, outcome) == oracle.end_probe(now, outcome)
        assert (breaker.state, breaker.opened_total) == (oracle.state, oracle.opened_total)
        assert breaker.py_recent_failures(now) == oracle.recent_failures(now)
        if oracle.state:
            assert (breaker.probe_ns, breaker.probing) == (oracle.probe_ns, oracle.probing)


@given(
    percent=st.integers(0, 100), floor=st.integers(0, 2),
    steps=st.lists(st.tuples(st.sampled_from(["call", "retry", "tick"]), st.integers(1, 15)), max_size=60),
)  # fmt: skip
def test_a_retry_budget_is_its_oracle(percent: int, floor: int, steps: list[tuple[str, int]]):
    budget, oracle = RetryBudget(percent, floor), BudgetOracle(percent, floor)
    for what, count in steps:
        for _ in range(count):
            if what == "call":
                budget.py_call()
                oracle.calls.append(oracle.now)
            elif what == "retry":
                assert budget.py_take() == oracle.take()
            else:
                budget.py_tick()
                oracle.now += 1


# --- what follows from them


def pool(*weights: int, priority: int = 0) -> list[list[int]]:
    rng = random.Random(7)
    return [[priority, WAY_OPEN, weight, 0, rng.getrandbits(64)] for weight in weights]


def serve(
    candidates: list[list[int]], count: int, per_second: float, latency: Callable[[int], float], seed: int,
    affinity: Callable[[], int] = lambda: 0,
) -> Counter[int]:  # fmt: skip
    """Poisson arrivals; each call occupies its channel for an exponential time."""
    rng = random.Random(seed)
    now, ends = 0.0, []
    got: Counter[int] = Counter()
    for _ in range(count):
        now += rng.expovariate(per_second)
        while ends and ends[0][0] <= now:
            candidates[heapq.heappop(ends)[1]][3] -= 1
        chosen = pick_channel(
            [tuple(c) for c in candidates], affinity(), rng.getrandbits(64), rng.getrandbits(64)  # type: ignore[misc]
        )  # fmt: skip
        candidates[chosen][3] += 1
        got[chosen] += 1
        heapq.heappush(ends, (now + rng.expovariate(1 / latency(chosen)), chosen))
    return got


@pytest.mark.parametrize("per_second", [0.1, 1, 5, 30, 300])
@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 3), (1, 2, 7), (1, 10)])
def test_calls_are_shared_by_weight_at_any_load(weights: tuple[int, ...], per_second: float):
    count = 20_000
    got = serve(pool(*weights), count, per_second, lambda _: 1.0, seed=3)
    for index, weight in enumerate(weights):
        share = count * weight / sum(weights)
        assert abs(got[index] - share) < 0.12 * share + 60, got


def test_a_channel_that_slows_down_gets_fewer_calls():
    got = serve(pool(1, 1, 1), 20_000, 100, lambda index: 10.0 if index == 0 else 1.0, seed=4)
    assert got[0] < 0.2 * got[1]


def test_equal_prompts_go_to_one_channel_and_different_ones_are_shared_by_weight():
    candidates = pool(1, 2, 5)
    rng = random.Random(5)
    prompts = [rng.getrandbits(64) | 1 for _ in range(4000)]
    where = [pick_channel([tuple(c) for c in candidates], p, 1, 2) for p in prompts]  # type: ignore[misc]
    assert where == [pick_channel([tuple(c) for c in candidates], p, 8, 9) for p in prompts]  # type: ignore[misc]
    got = Counter(where)
    for index, weight in enumerate((1, 2, 5)):
        assert abs(got[index] - 500 * weight) < 150
    # When one goes, only what was there moves; when it comes back, so does that.
    candidates[1][1] = WAY_SHUT
    moved = [pick_channel([tuple(c) for c in candidates], p, 1, 2) for p in prompts]  # type: ignore[misc]
    assert all(after == before for before, after in zip(where, moved, strict=True) if before != 1)
    assert 1 not in moved


def test_one_prompt_does_not_sink_its_channel():
    """All calls share a system prompt: its channel takes about twice its share, the rest goes to the next."""
    got = serve(pool(1, 1, 1, 1), 20_000, 400, lambda _: 1.0, seed=6, affinity=lambda: 12345)
    [(_, most), *_] = got.most_common()
    assert most < 0.56 * 20_000
    few = serve(pool(1, 1, 1, 1), 2_000, 3, lambda _: 1.0, seed=6, affinity=lambda: 12345)
    assert few.most_common(1)[0][1] > 1_990  # with few calls in flight nothing is sunk


@dataclass
class World:
    """Channels with real breakers and a real budget under a clock of its own; an attempt fails by `broken`."""

    broken: Callable[[int, float], bool]
    count: int = 3
    per_second: int = 500
    latency: float = 0.05
    seed: int = 1
    attempts_max: int = 3
    now: float = 1.0
    errors: int = 0
    attempts: Counter[int] = field(default_factory=Counter)
    retries: int = 0
    calls: int = 0
    served: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.breakers = [Breaker() for _ in range(self.count)]
        self.budget = RetryBudget()
        self.load = [0] * self.count
        self.salts = [self.rng.getrandbits(64) for _ in range(self.count)]

    def run(self, seconds: float) -> None:
        """Calls begin at a fixed rate. What fails, fails at once; what works takes the latency."""
        events: list[tuple[float, int, str, tuple[int, frozenset[int], int]]] = []
        order = itertools.count()
        end = self.now + seconds
        for n in range(int(seconds * self.per_second)):
            heapq.heappush(events, (self.now + n / self.per_second, next(order), "begin", (0, frozenset(), -1)))
        for n in range(int(seconds * 4)):
            heapq.heappush(events, (self.now + n / 4, next(order), "tick", (0, frozenset(), -1)))
        while events:
            at, _, what, (attempt, tried, channel) = heapq.heappop(events)
            now = round(at * SECOND)
            if what == "tick":
                self.budget.py_tick()
                continue
            if what == "end":
                self.load[channel] -= 1
                breaker = self.breakers[channel]
                if breaker.state and breaker.probing and attempt < 0:
                    breaker.py_end_probe(now, 1)
                elif breaker.state == CLOSED:
                    breaker.py_succeeded(now)
                self.served.append((at, channel))
                continue
            ways = [WAY_SHUT if i in tried else b.py_way(now) for i, b in enumerate(self.breakers)]
            candidates = [
                (0, ways[i], 1, self.load[i] + 4 * self.breakers[i].py_recent_failures(now), self.salts[i])
                for i in range(self.count)
            ]
            if attempt == 0:
                self.calls += 1
                self.budget.py_call()
            elif not self.budget.py_take():
                self.errors += 1
                continue
            else:
                self.retries += 1
            chosen = pick_channel(candidates, 0, self.rng.getrandbits(64), self.rng.getrandbits(64))
            if chosen < 0:
                self.errors += 1
                continue
            self.attempts[chosen] += 1
            breaker, probe = self.breakers[chosen], ways[chosen] == WAY_PROBE
            if probe:
                breaker.py_begin_probe(now)
            if self.broken(chosen, at):
                if probe:
                    breaker.py_end_probe(now, 0)
                else:
                    breaker.py_failed(now)
                if attempt + 1 == self.attempts_max:
                    self.errors += 1
                else:
                    heapq.heappush(events, (at, next(order), "begin", (attempt + 1, tried | {chosen}, -1)))
            else:
                self.load[chosen] += 1
                done = (-1 if probe else 0, frozenset[int](), chosen)
                heapq.heappush(events, (at + self.latency, next(order), "end", done))
        self.now = end


def test_an_outage_costs_few_attempts_and_no_call_and_heals_within_a_probe():
    outage = (6.0, 26.0)
    world = World(broken=lambda channel, at: channel == 0 and outage[0] <= at < outage[1])
    world.run(5)
    assert world.retries == 0
    world.run(20)
    assert world.errors == 0
    assert world.retries < 200  # of 10,000 calls: what the breaker needs to see, and probes
    assert world.breakers[0].state != CLOSED
    world.run(40)
    assert world.errors == 0
    back = min(at for at, channel in world.served if channel == 0 and at > outage[1])
    assert back - outage[1] <= 32 + 1  # the wait had doubled from 2 s while it was broken: at most as long again
    late = Counter(channel for at, channel in world.served if at > world.now - 5)
    assert abs(late[0] - 5 * 500 / 3) < 100  # and has its share again


def test_a_short_outage_heals_within_the_shortest_wait():
    world = World(broken=lambda channel, at: channel == 0 and 6.0 <= at < 7.0)
    world.run(10)
    assert world.errors == 0
    back = min(at for at, channel in world.served if channel == 0 and at > 7.0)
    assert back <= 8.5


@pytest.mark.parametrize("share", [0.05, 0.2, 0.3])
def test_a_channel_with_some_errors_does_not_flap(share: float):
    rng = random.Random(9)
    world = World(broken=lambda channel, at: channel == 0 and rng.random() < share)
    world.run(120)
    assert world.breakers[0].opened_total <= 1
    assert world.errors == 0


def test_a_channel_that_comes_and_goes_is_left_alone_longer_and_longer():
    world = World(broken=lambda channel, at: channel == 0 and int(at) % 4 < 2)
    world.run(240)
    assert world.errors == 0
    assert world.breakers[0].opened_total < 40  # of 60 times that it goes down
    assert world.retries < 0.05 * world.calls


def test_when_everything_is_down_attempts_stay_bounded():
    """Budget and breakers: nothing multiplies."""
    world = World(broken=lambda channel, at: at >= 6.0)
    world.run(5)
    healthy = sum(world.attempts.values())
    world.run(60)
    assert world.errors == 60 * 500
    assert sum(world.attempts.values()) - healthy < 0.05 * 60 * 500
    assert all(breaker.state == OPEN or breaker.probing for breaker in world.breakers)


def test_when_everything_is_slow_to_fail_the_budget_bounds_what_is_repeated():
    """Breakers off: a fifth of the calls, and ten a second."""
    world = World(broken=lambda channel, at: True)
    world.breakers = [Breaker(failure_percent=0) for _ in range(3)]
    world.run(60)
    assert world.retries <= 0.2 * world.calls + 10 * 60 + 100


MODELS = ("a", "b")
PLACES = [(model, where) for model in MODELS for where in (0, 3)]
ACCOUNT, LIMITED = ERROR_CODES.index("upstream_account"), ERROR_CODES.index("upstream_unavailable")
places = st.sampled_from(PLACES)


@given(
    count=st.integers(1, 4),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["call", "alike", "limit", "refuse", "doubt", "doubt", "all", "good", "try", "wait"]),
            st.integers(0, 3), places, st.integers(0, 9),
        ),
        max_size=60,
    ),
)  # fmt: skip
def test_the_keys_of_a_channel_are_their_oracle(count: int, steps: list[tuple[str, int, tuple[str, int], int]]):
    lines = [b"authorization: Bearer %d\r\n" % number for number in range(count)]
    channel = Channel("c", 0, b"h", b"", lines, None)
    oracle = KeysOracle([key.salt for key in channel.keys], [{} for _ in lines], [0] * count)
    now = SECOND
    for what, which, (model, where), amount in steps:
        number = which % count + 1
        if what in ("call", "alike"):
            affinity = amount * 0x9E3779B97F4A7C15 % 2**64 | 1 if what == "alike" else 0
            assert channel.py_awake_key(model, where, affinity, now) == oracle.awake(model, where, affinity, now)
        elif what == "wait":
            now += amount * SECOND
        elif what == "try":
            assert channel.py_key_to_try(model, where, now) == oracle.to_try(model, where, now)
        elif what == "good":
            sent = now - amount * SECOND // 4
            channel.py_key_good(number, model, where, sent, now)
            oracle.answered(number, model, where, sent, now)
        else:
            scope = {"limit": MODEL, "refuse": PLACE, "doubt": DOUBT, "all": KEY}[what]
            rest_ns, account = (1 + amount * 7) * SECOND, what != "limit"
            code = ACCOUNT if account else LIMITED
            channel.py_rest_key(number, model, where, scope, now, rest_ns, code, 401)
            oracle.rest(number, model, where, scope, now, rest_ns, account)
        for at in PLACES:
            assert channel.py_wakes_ns(*at) == min(oracle.wakes(number, *at) for number in range(1, count + 1))
        resting = any(rest.until > now for rests in oracle.rests for rest in rests.values())
        assert channel.py_calm(now) == (not resting)
        for key, rests in zip(channel.keys, oracle.rests, strict=True):
            found = {}
            for model_of, where_of, rest in key.resting(now):
                place = model_of if where_of is None else (model_of, where_of)
                found[place] = (rest.began_ns, rest.until_ns, rest.probe_ns, rest.wait_ns, rest.probing)
            assert found == {
                place: (rest.began, rest.until, rest.tries, rest.wait, rest.trying)
                for place, rest in rests.items()
                if rest.until > now
            }


@given(
    percent=st.integers(0, 100), window=st.integers(1, 30),
    steps=st.lists(st.tuples(st.sampled_from(["good", "bad", "bad", "wide"]), places, st.integers(0, 2)), max_size=80),
)  # fmt: skip
def test_what_is_shut_of_a_channel_is_its_oracle(
    percent: int, window: int, steps: list[tuple[str, tuple[str, int], int]]
):
    settings = {
        "calls_min": 4, "failure_percent": percent, "window_ns": window, "open_ns_min": 5, "open_ns_max": 50,
    }  # fmt: skip
    channel = Channel("c", 0, b"h", b"", [b"k: 1\r\n"], None, breaker=Breaker(**settings))
    oracle = PlacesOracle(settings, BreakerOracle(**settings), {}, [])
    now = 1
    for what, at, pause in steps:
        now += pause
        for place in PLACES:
            assert channel.py_way(*place, now) == oracle.way(place, now)
        if oracle.way(at, now) != WAY_OPEN:
            continue  # a call would not go there
        if what == "good":
            assert channel.py_attempt(*at, 0, now) == 0
            oracle.channel.succeeded(now)
            if at in oracle.places:
                oracle.places[at].succeeded(now)
        else:
            opened = channel.py_attempt(*at, 0, now, 3, what == "wide")
            names = {name for bit, name in ((1, "channel"), (2, "place")) if opened & bit}
            assert names == oracle.bad(at, now, what == "wide")


def test_finding_clients_F4_what_fails_for_one_model_alone_is_shut_for_it_alone():
    channel = Channel("c", 0, b"h", b"", [b"k: 1\r\n"], None)
    now = SECOND
    for _ in range(50):
        channel.py_attempt("images", 11, 0, now, 3)
    assert channel.py_way("images", 11, now) == WAY_SHUT
    assert channel.py_way("images", 0, now) == channel.py_way("chat", 0, now) == WAY_OPEN
    assert [(model, where) for model, where, _ in channel.shut()] == [("images", 11)]
    now += 2 * SECOND
    assert channel.py_way("images", 11, now) == WAY_PROBE
    for _ in range(3):
        probes = channel.py_begin_probe("images", 11, now)
        assert channel.py_way("images", 11, now) == WAY_SHUT
        closed = channel.py_attempt("images", 11, probes, now)
    assert closed == 2
    assert channel.shut() == []
    # Failures of another place are evidence against the channel itself.
    for _ in range(10):
        channel.py_attempt("images", 11, 0, now, 3)
        channel.py_attempt("chat", 0, 0, now, 3)
    assert channel.py_way("embeddings", 3, now) == WAY_SHUT
    channel.wake()
    assert channel.py_way("images", 11, now) == channel.py_way("embeddings", 3, now) == WAY_OPEN
    # No connection is the channel's, whatever was asked for.
    for _ in range(10):
        channel.py_attempt("images", 11, 0, now, 3, True)
    assert channel.py_way("chat", 0, now) == WAY_SHUT


def test_finding_clients_F4_a_key_refused_for_one_thing_serves_the_rest():
    channel = Channel("c", 0, b"h", b"", [b"k: 1\r\n"], None)
    now = SECOND
    channel.py_rest_key(1, "images", 11, DOUBT, now, 300 * SECOND, ACCOUNT, 401)
    assert channel.py_awake_key("images", 11, 0, now) == 0
    assert channel.py_awake_key("chat", 0, 0, now) == 1
    channel.py_key_good(1, "chat", 0, now + 1, now + 1)  # it works
    channel.py_rest_key(1, "sound", 12, DOUBT, now + 2, 300 * SECOND, ACCOUNT, 401)
    assert channel.py_awake_key("chat", 0, 0, now + 2) == 1
    channel.py_rest_key(1, "vectors", 3, DOUBT, now + 3, 300 * SECOND, ACCOUNT, 401)  # and nowhere since: it is the key
    assert channel.py_awake_key("chat", 0, 0, now + 3) == 0


def test_finding_clients_F4_the_last_key_is_tried_with_growing_waits():
    channel = Channel("c", 0, b"h", b"", [b"k: 1\r\n"], None)
    now, waits = SECOND, []
    channel.py_rest_key(1, "m", 0, KEY, now, 300 * SECOND, ACCOUNT, 402)
    for _ in range(7):
        began = now
        while channel.py_key_to_try("m", 0, now) == 0:
            now += SECOND
        assert channel.py_key_to_try("m", 0, now) == 0  # one call at a time
        waits.append((now - began) // SECOND)
        channel.py_rest_key(1, "m", 0, KEY, now, 300 * SECOND, ACCOUNT, 402)
    assert waits == [2, 4, 8, 16, 32, 60, 60]
    channel.py_key_good(1, "m", 0, now + 1, now + 2)
    assert channel.py_awake_key("other", 0, 0, now + 2) == 1
    # What is above its limits is not tried before its time.
    channel.py_rest_key(1, "m", 0, MODEL, now, 30 * SECOND, LIMITED, 429)
    assert channel.py_key_to_try("m", 0, now + 29 * SECOND) == 0


def test_a_channel_goes_on_with_what_was_known_of_it():
    old = Channel("c", 0, b"h", b"", [b"k: 1\r\n", b"k: 2\r\n"], None)
    old.py_rest_key(2, "m", 0, KEY, 0, 50, 1, 401)
    for _ in range(10):
        old.breaker.py_failed(5, 3)
    fresh = Channel("c", 0, b"h", b"", [b"k: 2\r\n", b"k: 3\r\n"], None, breaker=Breaker(window_ns=77))
    fresh.adopt(old)
    assert [[(model, rest.until_ns) for model, _, rest in key.resting(10)] for key in fresh.keys] == [[(None, 50)], []]
    assert (fresh.breaker.state, fresh.breaker.last_code, fresh.breaker.window_ns) == (OPEN, 3, 77)


def test_a_breaker_that_is_switched_off_is_closed():
    breaker = Breaker()
    for _ in range(10):
        breaker.py_failed(5)
    assert breaker.py_way(5) == WAY_SHUT
    settings = {"calls_min": 20, "window_ns": 1, "open_ns_min": 1, "open_ns_max": 1}
    breaker.configure(failure_percent=0, **settings)
    assert breaker.py_way(5) == WAY_OPEN
