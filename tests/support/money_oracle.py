"""Limits and money once more, in plain Python with fractions: slow, short, and the judge of the compiled ones.

Nothing is shared with the hot path but the rules: a cost is a fraction rounded up once, a bucket is a fraction of a
second, what a stream can afford is found by search. Amounts are nano-credits, times nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil, floor
from typing import Any

MINUTE = 60 * 10**9
DAY = 86_400 * 10**9
NANO_MAX = 2**61
COST_MAX = 10**16
USAGE_MAX = 2**40
SLICES_PER_SHARE = 16
SECOND = 10**9

TOKEN_DIMENSIONS = ("input", "output", "cache_read", "cache_write", "cache_write_1h")
UNIT_DIMENSIONS = ("image", "video_second", "web_search")
# Among which tokens they are.
APART = {
    "audio_input": "input", "image_input": "input", "audio_output": "output", "image_output": "output",
    "audio_cache_read": "cache_read", "image_cache_read": "cache_read",
}  # fmt: skip
REPLIES = ("output", "audio_output", "image_output")
SERVICES = range(4)
PRIORITY = 3


def clamp(n: int) -> int:
    """What usage may be."""
    return min(max(n, 0), USAGE_MAX)


@dataclass
class RateOracle:
    """Prices by dimension; `cost` takes usage by dimension. Audio and images without a price are text.

    `tiers`: further sets of prices by (prompt tokens above which they hold, service).
    """

    prices: dict[str, int]
    discount_ppb: int = 10**9
    output_tokens_max: int = 0
    tiers: dict[tuple[int, int], dict[str, int]] = field(default_factory=dict)

    def level(self, prompt: int) -> int:
        return max(above for above, _ in [(0, 0), *self.tiers] if above == 0 or prompt > above)

    def price(self, name: str, level: int = 0, service: int = 0) -> int:
        """Of one dimension. What a tier does not know costs as its standard service, else as one level lower."""
        if (level, service) == (0, 0):
            table = self.prices
        elif (level, service) in self.tiers:
            table = self.tiers[level, service]
        elif level and (level, 0) not in self.tiers:
            return self.price(name, max(above for above, _ in [(0, 0), *self.tiers] if above < level), service)
        else:
            return self.price(name, level) if service else self.price(name)
        price = table.get(name, -1)
        if name == "image_output" and price == -1 and table.get("image", 0):
            return 0  # the picture itself has a price
        return table.get(APART[name], 0) if name in APART and price == -1 else max(price, 0)

    @property
    def plain(self) -> bool:
        return not self.tiers and all(self.price(name) == self.price(of) for name, of in APART.items())

    def cost(self, usage: dict[str, int], service: int = 0) -> int:
        """The exact fraction, rounded up once."""
        count = {name: clamp(usage.get(name, 0)) for name in (*TOKEN_DIMENSIONS, *UNIT_DIMENSIONS, *APART)}
        level = self.level(sum(count[name] for name in TOKEN_DIMENSIONS if name != "output"))
        for name, of in APART.items():
            count[name] = min(count[name], count[of])
            count[of] -= count[name]
        exact = Fraction(0)
        for name, n in count.items():
            exact += Fraction(n * self.price(name, level, service), 1 if name in UNIT_DIMENSIONS else 10**6)
        return min(ceil(exact * Fraction(self.discount_ppb, 10**9)), COST_MAX)

    def dearest(self, names: tuple[str, ...], prompt: int, priority: bool = False) -> int:
        """The most that one of these can cost with at most that prompt, in the services that may be charged."""
        levels = {above for above, _ in [(0, 0), *self.tiers] if above <= self.level(prompt)}
        services = [service for service in SERVICES if priority or service != PRIORITY]
        return max(self.price(name, level, service) for name in names for level in levels for service in services)

    def bound(self, prompt: int, output: int, units: dict[str, int], priority: bool = False) -> int:
        """The dearest outcome: every token charged in the dearest way; by priority where that was asked for."""
        prompts = tuple(name for name in (*TOKEN_DIMENSIONS, *APART) if APART.get(name, name) != "output")
        exact = Fraction(prompt * self.dearest(prompts, prompt, priority), 10**6)
        exact += Fraction(output * self.dearest(REPLIES, prompt, priority), 10**6)
        exact += sum(units.get(name, 0) * self.dearest((name,), prompt, priority) for name in UNIT_DIMENSIONS)
        return min(ceil(exact * Fraction(self.discount_ppb, 10**9)), COST_MAX)

    def affordable(self, prompt: int, units: dict[str, int], budget: int, most: int, priority: bool = False) -> int:
        """The most output tokens, at most `most`, whose bound is within the budget; by search."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.bound(prompt, middle, units, priority) <= budget:
                low = middle
            else:
                high = middle - 1
        return low


@dataclass
class BucketOracle:
    """A bucket by the time at which it is full again."""

    limit: int = 0
    tat: Fraction = Fraction(0)

    def wait(self, n: int, now: int) -> int:
        """0, or ns until the demand would be admitted."""
        if not self.limit or n <= 0:
            return 0
        if n > self.limit:
            return max(0, ceil(self.tat - now))
        after = max(self.tat, Fraction(now)) + Fraction(n * MINUTE, self.limit)
        return max(0, ceil(after - now - MINUTE))

    def charge(self, n: int, now: int) -> None:
        if self.limit and n > 0:
            self.tat = min(max(self.tat, Fraction(now)) + Fraction(n * MINUTE, self.limit), Fraction(now + DAY))

    def give_back(self, n: int, now: int) -> None:
        if self.limit and n > 0 and self.tat > now:
            self.tat = max(self.tat - min(Fraction(n * MINUTE, self.limit), Fraction(DAY)), Fraction(now))

    def configure(self, limit: int, now: int) -> None:
        if limit == self.limit:
            return
        debt = ceil(self.tat - now)
        if not self.limit or not limit or debt <= 0:
            debt = 0
        else:
            debt = min(ceil(Fraction(debt * self.limit, limit)), max(debt, MINUTE))
        self.limit, self.tat = limit, Fraction(now + debt)

    def remaining(self, now: int) -> int:
        room = now + MINUTE - max(self.tat, Fraction(now))
        return max(0, floor(room * self.limit / MINUTE))


def month_index(day: int) -> int:
    """Months since 1970-01 of a day since 1970-01-01."""
    date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
    return (date.year - 1970) * 12 + date.month - 1


@dataclass
class ScopeOracle:
    name: str
    rpm: BucketOracle = field(default_factory=BucketOracle)
    tpm: BucketOracle = field(default_factory=BucketOracle)
    concurrency: int = 0
    daily_cap: int = 0
    monthly_cap: int = 0
    tokens_per_call: int = 0
    in_flight: int = 0
    reserved: int = 0
    day: int = 0
    month: int = 0
    spent_day: int = 0
    spent_month: int = 0

    def roll(self, wall: int) -> None:
        day = wall // DAY
        if day in (self.day, self.day - 1):
            return
        if day > self.day:
            self.spent_day = 0
        if month_index(day) > self.month:
            self.spent_month = 0
        self.day, self.month = day, month_index(day)


@dataclass
class BalanceOracle:
    available: int
    held: int = 0
    open_holds: int = 0
    open_streams: int = 0


@dataclass
class CallOracle:
    """An admitted call."""

    balance: BalanceOracle
    scopes: list[ScopeOracle]
    rate: RateOracle
    policy: dict[str, int]
    stream: bool
    prompt_hold: int
    units: dict[str, int]
    allowance: int
    output_bound: int | None
    output_limit: int | None
    max_cost: int | None
    hold: int
    tokens_reserved: int
    took_rpm: list[ScopeOracle]
    took_tpm: list[ScopeOracle]

    def _set_hold(self, hold: int) -> None:
        change = hold - self.hold
        self.hold = hold
        self.balance.available -= change
        self.balance.held += change
        for scope in self.scopes:
            scope.reserved += change

    def grow(self, counted: int, wall: int) -> str:
        """ "" or the name of the error."""
        counted = clamp(counted)
        if counted <= self.allowance:
            return ""
        if self.output_limit is not None and counted > self.output_limit:
            return "cap_reached"
        wanted = clamp(counted + self.policy["hold_slice_tokens"])
        if self.output_bound is not None:
            wanted = min(wanted, max(self.output_bound, counted))
        if self.output_limit is not None:
            wanted = min(wanted, self.output_limit)
        least = self.rate.bound(self.prompt_hold, counted, self.units)
        full = self.rate.bound(self.prompt_hold, wanted, self.units)
        if self.max_cost is not None and least > self.max_cost:
            return "max_cost_reached"
        spare = [full - least]
        for scope in self.scopes:
            scope.roll(wall)
            for cap, spent in ((scope.monthly_cap, scope.spent_month), (scope.daily_cap, scope.spent_day)):
                if cap:
                    room = cap - spent - scope.reserved + self.hold - least
                    if room < 0:
                        return "cap_reached"
                    spare.append(room // (SLICES_PER_SHARE * (scope.in_flight + 1)))
        room = self.balance.available + self.hold - least
        if room < 0:
            return "balance_exhausted"
        spare.append(room // (SLICES_PER_SHARE * (self.balance.open_streams + 1)))
        if self.max_cost is not None:
            spare.append(self.max_cost - least)
        if min(spare) < full - least:
            affordable = self.rate.affordable(self.prompt_hold, self.units, least + min(spare), wanted)
            wanted = max(counted, affordable)
        self._set_hold(self.rate.bound(self.prompt_hold, wanted, self.units))
        self.allowance = wanted
        return ""

    def correct_prompt(self, usage: dict[str, int]) -> None:
        """The prompt is known: hold for it instead of for the estimate."""
        prompt = {name: clamp(usage.get(name, 0)) for name in TOKEN_DIMENSIONS if name != "output"}
        self.prompt_hold = sum(prompt.values())
        if self.rate.plain:  # else which price each token has is not known before the end
            parts = sum(n * self.rate.price(name) for name, n in prompt.items())
            dearest = self.rate.dearest(tuple(prompt), 0)
            self.prompt_hold = ceil(Fraction(parts, dearest)) if dearest else 0
        hold = self.rate.bound(self.prompt_hold, self.allowance, self.units)
        missing = hold - self.hold
        if missing > 0:
            there = [missing, self.balance.available]
            if self.max_cost is not None:
                there.append(self.max_cost - self.hold)
            for scope in self.scopes:
                for cap, spent in ((scope.monthly_cap, scope.spent_month), (scope.daily_cap, scope.spent_day)):
                    if cap:
                        there.append(cap - spent - scope.reserved)
            if min(there) < missing:
                hold = self.hold + max(min(there), 0)
                if self.rate.discount_ppb and self.rate.dearest(REPLIES, self.prompt_hold):
                    self.allowance = self.rate.affordable(self.prompt_hold, self.units, hold, self.allowance)
        self._set_hold(hold)

    def _end(self) -> None:
        self._set_hold(0)
        self.balance.open_holds -= 1
        self.balance.open_streams -= self.stream
        for scope in self.scopes:
            scope.in_flight -= 1

    def settle(self, usage: dict[str, int], now: int, wall: int) -> tuple[int, int]:
        """(cost, written off)"""
        cost = self.rate.cost(usage)
        self._end()
        taken = min(cost, self.balance.available)
        if self.max_cost is not None:
            taken = min(taken, self.max_cost)
        self.balance.available -= taken
        used = sum(clamp(usage.get(name, 0)) for name in TOKEN_DIMENSIONS)
        for scope in self.scopes:
            if wall // DAY > scope.day:
                scope.roll(wall)
            scope.spent_day = min(scope.spent_day + taken, NANO_MAX)
            scope.spent_month = min(scope.spent_month + taken, NANO_MAX)
        for scope in self.took_tpm:
            scope.tpm.charge(used - self.tokens_reserved, now)
            scope.tpm.give_back(self.tokens_reserved - used, now)
        return cost, cost - taken

    def release(self, now: int, *, forwarded: bool) -> None:
        self._end()
        for scope in self.took_tpm:
            scope.tpm.give_back(self.tokens_reserved, now)
        if not forwarded:
            for scope in self.took_rpm:
                scope.rpm.give_back(1, now)


def admit(
    balance: BalanceOracle,
    scopes: list[ScopeOracle],
    rate: RateOracle,
    policy: dict[str, int],
    *,
    prompt: int,
    output_bound: int | None,
    choices: int,
    stream: bool,
    max_cost: int | None,
    units: dict[str, int],
    now: int,
    wall: int,
) -> CallOracle | tuple[str, int, ScopeOracle | None]:
    """An open call, or (error, wait in ns, scope at fault) with nothing changed but the day."""
    prompt = clamp(prompt)
    units = {name: clamp(n) for name, n in units.items()}
    choices = min(max(choices, 1), 2**20)
    output = None if output_bound is None else clamp(clamp(output_bound) * choices)
    prompt_hold = prompt + ceil(Fraction(prompt * policy["prompt_margin_permille"], 1000))
    output_limit: int | None = None
    for scope in scopes:
        if scope.tokens_per_call:
            left = scope.tokens_per_call - prompt
            if left < (output or 0):
                return "tokens_per_call", 0, scope
            output_limit = left if output_limit is None else min(output_limit, left)
    if stream:
        full = min(n for n in (policy["hold_slice_tokens"], output, output_limit) if n is not None)
        least = min(full, policy["hold_slice_tokens_min"])
    else:
        default = min(policy["hold_output_tokens"], rate.output_tokens_max or policy["hold_output_tokens"])
        full = least = output if output is not None else clamp(default * choices)
    hold_full, hold = rate.bound(prompt_hold, full, units), rate.bound(prompt_hold, least, units)
    if max_cost is not None and hold > max_cost:
        return "max_cost", 0, None
    for scope in scopes:
        if scope.concurrency and scope.in_flight >= scope.concurrency:
            return "concurrency_limit", SECOND, scope
    tokens = prompt + full
    rpm_waits = [scope.rpm.wait(1, now) for scope in scopes]
    tpm_waits = [scope.tpm.wait(tokens, now) for scope in scopes]
    for name, waits in (("rate_limit_requests", rpm_waits), ("rate_limit_tokens", tpm_waits)):
        if any(waits):
            return name, max(rpm_waits + tpm_waits), scopes[waits.index(max(waits))]
    spare = [hold_full - hold]
    day = wall // DAY
    for scope in scopes:
        scope.roll(wall)
    for scope in scopes:
        if scope.monthly_cap:
            room = scope.monthly_cap - scope.spent_month - scope.reserved - hold
            if room < 0:
                end = next(d for d in range(day, day + 32) if month_index(d) != month_index(day))
                only_open = scope.spent_month + hold <= scope.monthly_cap
                return "monthly_limit", SECOND if only_open else end * DAY - wall, scope
            spare.append(room // (SLICES_PER_SHARE * (scope.in_flight + 2)))
    for scope in scopes:
        if scope.daily_cap:
            room = scope.daily_cap - scope.spent_day - scope.reserved - hold
            if room < 0:
                only_open = scope.spent_day + hold <= scope.daily_cap
                return "daily_limit", SECOND if only_open else (day + 1) * DAY - wall, scope
            spare.append(room // (SLICES_PER_SHARE * (scope.in_flight + 2)))
    if hold > balance.available:
        return "insufficient_balance", 0, None
    if least < full:
        spare.append((balance.available - hold) // (SLICES_PER_SHARE * (balance.open_streams + 2)))
        if max_cost is not None:
            spare.append(max_cost - hold)
        least = max(least, rate.affordable(prompt_hold, units, hold + min(spare), full))
        hold = rate.bound(prompt_hold, least, units)
    call = CallOracle(
        balance=balance,
        scopes=scopes,
        rate=rate,
        policy=policy,
        stream=stream,
        prompt_hold=prompt_hold,
        units=units,
        allowance=least,
        output_bound=output,
        output_limit=output_limit,
        max_cost=max_cost,
        hold=0,
        tokens_reserved=tokens,
        took_rpm=[scope for scope in scopes if scope.rpm.limit],
        took_tpm=[scope for scope in scopes if scope.tpm.limit],
    )
    for scope in scopes:
        scope.in_flight += 1
        scope.rpm.charge(1, now)
        scope.tpm.charge(tokens, now)
    balance.open_holds += 1
    balance.open_streams += stream
    call._set_hold(hold)
    return call


def scope_state(scope: ScopeOracle, now: int, wall: int) -> dict[str, Any]:
    """What `_fastpath.Scope.state` must say."""
    scope.roll(wall)
    return {
        "requests_limit": scope.rpm.limit,
        "requests_remaining": scope.rpm.remaining(now),
        "requests_reset_ns": max(0, ceil(scope.rpm.tat - now)) if scope.rpm.limit else 0,
        "tokens_limit": scope.tpm.limit,
        "tokens_remaining": scope.tpm.remaining(now),
        "tokens_reset_ns": max(0, ceil(scope.tpm.tat - now)) if scope.tpm.limit else 0,
        "concurrency_limit": scope.concurrency,
        "in_flight": scope.in_flight,
        "daily_cap_nano": scope.daily_cap,
        "monthly_cap_nano": scope.monthly_cap,
        "spent_day_nano": scope.spent_day,
        "spent_month_nano": scope.spent_month,
        "reserved_nano": scope.reserved,
        "tokens_per_call": scope.tokens_per_call,
    }


def tightest(scopes: list[ScopeOracle], now: int) -> tuple[int, ...]:
    """What rate-limit headers say: of requests and of tokens the limit with the least left, the lower of two equals."""
    view: list[int] = []
    for name in ("rpm", "tpm"):
        buckets = [getattr(scope, name) for scope in scopes if getattr(scope, name).limit]
        least = min(buckets, key=lambda bucket: (bucket.remaining(now), bucket.limit), default=None)
        view += (least.limit, least.remaining(now), max(0, ceil(least.tat - now))) if least else (0, 0, 0)
    return tuple(view)


@dataclass
class KeyOracle:
    """What a key may do, as its owner would say it. Networks are of `ipaddress`; None is no restriction."""

    key_status: str = "active"
    account_status: str = "active"
    expires_ns: int = 0
    endpoint_scopes: int = 0xFFFFFFFF
    models: frozenset[bytes] | None = None
    networks: list[Any] | None = None

    def refusal(self, wall_ns: int, address: Any, endpoint_scope: int, model: bytes | None) -> str:
        """The code of the first check that fails, "" where none does."""
        if self.key_status != "active":
            return f"key_{self.key_status}"
        if self.expires_ns and wall_ns >= self.expires_ns:
            return "key_expired"
        if self.account_status != "active":
            return "account_inactive"
        if self.networks is not None and not any(
            address is not None and address.version == network.version and address in network
            for network in self.networks
        ):
            return "address_not_allowed"
        if not self.endpoint_scopes & endpoint_scope:
            return "scope_not_allowed"
        if self.models is not None and model is not None and model not in self.models:
            return "model_not_allowed"
        return ""


@dataclass
class JobOracle:
    """The hold of one job against its balance and one scope."""

    balance: BalanceOracle
    scope: ScopeOracle
    hold: int

    def __post_init__(self) -> None:
        self._change(self.hold)
        self.balance.open_holds += 1

    def _change(self, nano: int) -> None:
        self.balance.available -= nano
        self.balance.held += nano
        self.scope.reserved += nano

    def release(self) -> None:
        self._change(-self.hold)
        self.balance.open_holds -= 1

    def settle(self, cost: int, max_cost: int | None, wall: int) -> int:
        """What had to be written off."""
        self.release()
        taken = min(cost, self.balance.available, cost if max_cost is None else max_cost)
        self.balance.available -= taken
        if wall // DAY > self.scope.day:
            self.scope.roll(wall)
        self.scope.spent_day = min(self.scope.spent_day + taken, NANO_MAX)
        self.scope.spent_month = min(self.scope.spent_month + taken, NANO_MAX)
        return cost - taken


def policy(numbers: dict[str, int]) -> dict[str, int]:
    """How much an admission holds: a slice is at least a token, and what a stream begins with is at most a slice."""
    slice_tokens = max(1, numbers["hold_slice_tokens"])
    least = min(max(1, numbers["hold_slice_tokens_min"]), slice_tokens)
    return numbers | {"hold_slice_tokens": slice_tokens, "hold_slice_tokens_min": least}
