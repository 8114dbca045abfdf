"""The decisions of relay/fastpath/routing.pxi in plain Python, written from their specification in _fastpath.pyi."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

CLOSED, OPEN, HALF_OPEN = range(3)
WAY_OPEN, WAY_PROBE, WAY_SHUT = range(3)
MASK = (1 << 64) - 1


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


@dataclass
class BreakerOracle:
    calls_min: int
    failure_percent: int
    window_ns: int
    open_ns_min: int
    open_ns_max: int
    state: int = CLOSED
    open_ns: int = 0
    probe_ns: int = 0
    closed_ns: int | None = None
    probing: bool = False
    good: int = 0
    opened_total: int = 0
    outcomes: list[tuple[int, bool]] = field(default_factory=list)  # time, failed

    def succeeded(self, now: int) -> None:
        if self.state == CLOSED:
            self.outcomes.append((now, False))

    def failed(self, now: int, may_open: bool = True) -> bool:
        if self.state != CLOSED:
            return False
        self.outcomes.append((now, True))
        judged = [bad for at, bad in self.outcomes[-100:] if now - at <= self.window_ns]
        if self.failure_percent == 0:
            return False
        often = len(judged) >= self.calls_min and sum(judged) * 100 >= self.failure_percent * len(judged)
        if not may_open or (not often and not (len(judged) >= 10 and all(judged[-10:]))):
            return False
        again = self.closed_ns is not None and now - self.closed_ns <= self.window_ns
        self.open(now, min(2 * self.open_ns, self.open_ns_max) if again else self.open_ns_min)
        return True

    def open(self, now: int, for_ns: int) -> None:
        self.state, self.open_ns, self.probe_ns = OPEN, for_ns, now + for_ns
        self.probing, self.good = False, 0
        self.opened_total += 1

    def way(self, now: int) -> int:
        if self.state == CLOSED:
            return WAY_OPEN
        return WAY_PROBE if not self.probing and now >= self.probe_ns else WAY_SHUT

    def begin_probe(self) -> None:
        self.state, self.probing = HALF_OPEN, True

    def end_probe(self, now: int, outcome: int) -> bool:
        if not self.probing:
            return False
        self.probing = False
        if outcome == 0:
            self.open(now, min(2 * self.open_ns, self.open_ns_max))
            return True
        self.good += outcome == 1
        if self.good == 3:
            self.state, self.closed_ns, self.outcomes = CLOSED, now, []
            return True
        return False

    def recent_failures(self, now: int) -> int:
        return sum(bad and now - at <= 1_000_000_000 for at, bad in self.outcomes[-8:])


@dataclass
class BudgetOracle:
    """By absolute ticks of a quarter of a second; the last 40 count, the present one among them."""

    percent: int
    per_second_min: int
    now: int = 0
    calls: list[int] = field(default_factory=list)
    retries: list[int] = field(default_factory=list)

    def take(self) -> bool:
        calls = sum(at > self.now - 40 for at in self.calls)
        retries = sum(at > self.now - 40 for at in self.retries)
        left = retries < calls * self.percent / 100 + self.per_second_min * 10
        if left:
            self.retries.append(self.now)
        return left


Candidate = tuple[int, int, int, int, int]  # priority, way, weight, load, salt


def draw(among: list[tuple[int, Candidate]], word: int) -> int:
    """The index of one by weight, -1: there is none."""
    if not among:
        return -1
    at = word % sum(c[2] for _, c in among)
    for index, c in among:
        if at < c[2]:
            return index
        at -= c[2]
    raise AssertionError


def pick(candidates: list[Candidate], affinity: int, word1: int, word2: int) -> int:
    usable = [(i, c) for i, c in enumerate(candidates) if c[1] != WAY_SHUT]
    if not usable:
        return -1
    priority = min(c[0] for _, c in usable)
    level = [(i, c) for i, c in usable if c[0] == priority]
    for i, c in level:
        if c[1] == WAY_PROBE:
            return i
    if affinity:
        loads, weights = sum(c[3] for _, c in level), sum(c[2] for _, c in level)

        def score(entry: tuple[int, Candidate]) -> float:
            u = ((mix(affinity ^ entry[1][4]) >> 11) + 0.5) / 2.0**53
            return -math.log(u) / entry[1][2]

        order = sorted(level, key=score)
        fitting = [i for i, c in order if (c[3] - 8) * weights <= 2 * loads * c[2]]
        return fitting[0] if fitting else order[0][0]
    first = draw(level, word1)
    second = draw([(i, c) for i, c in level if i != first], word2)
    if second < 0:
        return first
    a, b = candidates[first], candidates[second]
    return second if (a[3] - 1) * b[2] > (b[3] + 1) * a[2] else first


TRY_NS_MIN = 2_000_000_000
PLACE, DOUBT, MODEL, KEY = 1, 2, 3, 4


@dataclass
class RestOracle:
    """A reason not to use a key, in the order in which refusals and tries came."""

    began: int
    until: int
    tries: int
    wait: int
    account: bool
    doubt: bool
    trying: bool = False


@dataclass
class KeysOracle:
    """The keys of a channel: salts, and for each what rests of it, by place: None, a model, or (model, endpoint)."""

    salts: list[int]
    rests: list[dict[object, RestOracle]]
    good: list[int]
    next: int = 0

    def of(self, number: int, model: str, where: int) -> list[RestOracle]:
        rests = self.rests[number - 1]
        return [rests[place] for place in (None, model, (model, where)) if place in rests]

    def wakes(self, number: int, model: str, where: int) -> int:
        return max((rest.until for rest in self.of(number, model, where)), default=0)

    def rest(self, number: int, model: str, where: int, scope: int, now: int, ns: int, account: bool) -> None:
        rests = self.rests[number - 1]
        place: object = {KEY: None, MODEL: model}.get(scope, (model, where))
        elsewhere = [
            rest
            for other, rest in rests.items()
            if other not in (None, place) and rest.doubt and rest.until > now and rest.began > self.good[number - 1]
        ]
        if scope == DOUBT and elsewhere:
            place = None
        known = rests.get(place)
        if known is None or known.until <= now:
            known = RestOracle(now, 0, 0, min(TRY_NS_MIN, ns), account, False)
        elif known.trying or now >= known.tries:
            known.wait = max(known.wait, min(2 * known.wait, ns // 5))
        known.until = max(known.until, now + ns)
        known.tries = now + known.wait
        known.account, known.doubt, known.trying = account, scope == DOUBT, False
        rests[place] = known

    def answered(self, number: int, model: str, where: int, sent: int, now: int) -> None:
        rests = self.rests[number - 1]
        self.good[number - 1] = now
        for place in (None, model, (model, where)):
            if place in rests and rests[place].account and sent >= rests[place].began:
                del rests[place]

    def to_try(self, model: str, where: int, now: int) -> int:
        """Marks the rest that the try is about."""
        found = []
        for number in range(1, len(self.salts) + 1):
            standing = [rest for rest in self.of(number, model, where) if rest.until > now]
            if standing and all(rest.account for rest in standing):
                longest = max(standing, key=lambda rest: rest.until)
                if not longest.trying and longest.tries <= now:
                    found.append((longest.tries, number, longest))
        if not found:
            return 0
        _, number, rest = min(found, key=lambda one: one[:2])
        rest.trying = True
        return number

    def awake(self, model: str, where: int, affinity: int, now: int) -> int:
        count = len(self.salts)
        turn = [(self.next + i) % count + 1 for i in range(count)]
        awake = [number for number in turn if self.wakes(number, model, where) <= now]
        if not awake:
            return 0
        if count == 1:
            return 1
        if affinity:
            return max(awake, key=lambda number: mix(affinity ^ self.salts[number - 1]))
        self.next = awake[0] % count
        return awake[0]


@dataclass
class PlacesOracle:
    """What is shut of a channel: the channel, and models at endpoints, each with a breaker of the same settings."""

    settings: dict[str, int]
    channel: BreakerOracle
    places: dict[tuple[str, int], BreakerOracle]
    failures: list[tuple[int, tuple[str, int]]]  # of places, in order

    def way(self, at: tuple[str, int], now: int) -> int:
        ways = [self.channel.way(now), *([self.places[at].way(now)] if at in self.places else [])]
        return 2 if 2 in ways else max(ways)

    def bad(self, at: tuple[str, int], now: int, wide: bool) -> set[str]:
        opened = set()
        if not wide:
            self.failures.append((now, at))
            if self.places.setdefault(at, BreakerOracle(**self.settings)).failed(now):
                opened.add("place")
        apart = [
            later
            for (_, before), (later, after) in itertools.pairwise(self.failures)
            if before != after and now - later <= self.settings["window_ns"]
        ]
        if self.channel.failed(now, wide or bool(apart)):
            opened.add("channel")
        return opened
