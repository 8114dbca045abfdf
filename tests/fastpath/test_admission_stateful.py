"""Random histories of accounts, keys, limits, clocks and calls: after each step the figures are the oracle's."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay._fastpath import ERROR_CODES, Admission, ApiKey, Balance, Policy, Rate, Scope
from tests.support import money_oracle
from tests.support.money_oracle import DAY, MINUTE, BalanceOracle, CallOracle, RateOracle, ScopeOracle

PRICES: list[dict[str, int]] = [
    {},
    {"input": 10**9, "output": 4 * 10**9, "cache_read": 10**8, "cache_write": 125 * 10**7, "cache_write_1h": 2 * 10**9},
    {"input": 333_333_333, "output": 7, "image": 40_000, "web_search": 10_000_000},
    {"input": 10**15, "output": 3 * 10**15},
    {
        "input": 4 * 10**9,
        "output": 16 * 10**9,
        "cache_read": 4 * 10**8,
        "audio_input": 32 * 10**9,
        "audio_output": 10**9,
    },
]
ALL = dict.fromkeys((*money_oracle.TOKEN_DIMENSIONS, *money_oracle.UNIT_DIMENSIONS), 10**8)
TIERS = {(0, 0): ALL, (1000, 0): ALL | {"input": 2 * 10**9}, (3000, 0): ALL, (0, 3): ALL | {"output": 9 * 10**9}}
DISCOUNTS = [10**9, 850_000_000, 123_456_789]
POLICY = {"hold_output_tokens": 300, "hold_slice_tokens": 64, "hold_slice_tokens_min": 4, "prompt_margin_permille": 150}

money = st.one_of(st.integers(0, 10_000_000), st.integers(0, 10**13))
tokens = st.one_of(st.integers(0, 50), st.integers(0, 5_000))
some_limit = st.one_of(st.just(0), st.integers(1, 8), st.integers(100, 10_000))
cap = st.one_of(st.just(0), st.integers(1, 5_000_000), st.integers(1, 10**13))


class Money(RuleBasedStateMachine):
    """Two accounts of one organisation, three keys."""

    @initialize(balances=st.tuples(money, money), wall=st.integers(19_000, 21_000))
    def begin(self, balances: tuple[int, int], wall: int) -> None:
        self.now, self.wall = 10**12, wall * DAY + DAY // 3
        self.policy = Policy(**POLICY)
        self.rates = [
            (
                Rate(model=b"m", card="c", discount_ppb=ppb, output_tokens_max=most, tiers=tiers or None, **prices),
                RateOracle(prices, ppb, most, tiers),
            )
            for prices, tiers in [*zip(PRICES, [{}] * len(PRICES), strict=True), (ALL, TIERS)]
            for ppb, most in zip(DISCOUNTS, (0, 100, 5000), strict=True)
        ]
        names = ["organisation 1", "account 1", "account 2", "key 1", "key 2", "key 3"]
        self.scopes: dict[str, tuple[Scope, ScopeOracle]] = {}
        for name in names:
            kind, number = name.split()
            self.scopes[name] = Scope(kind, int(number)), ScopeOracle(name)
        self.balances = [(Balance(1, n), BalanceOracle(n)) for n in balances]
        self.ledger = list(balances)  # what entries and charges say
        self.keys: list[tuple[ApiKey, int, list[str]]] = []
        for number, owner in ((1, 0), (2, 0), (3, 1)):
            of_key = [f"key {number}", f"account {owner + 1}", "organisation 1"]
            key = ApiKey(b"abcdefghijkl", bytes(32), number, owner + 1, 1)
            key.update(scopes=tuple(self.scopes[name][0] for name in of_key), balance=self.balances[owner][0])
            self.keys.append((key, owner, of_key))
        self.calls: list[tuple[Admission, CallOracle, int]] = []

    @rule(
        name=st.sampled_from(["organisation 1", "account 1", "account 2", "key 1", "key 2", "key 3"]),
        rpm=some_limit,
        tpm=some_limit,
        concurrency=st.integers(0, 4),
        daily=cap,
        monthly=cap,
        per_call=some_limit,
    )
    def configure(
        self, name: str, rpm: int, tpm: int, concurrency: int, daily: int, monthly: int, per_call: int
    ) -> None:
        real, oracle = self.scopes[name]
        real.configure(
            now_ns=self.now,
            rpm=rpm,
            tpm=tpm,
            concurrency=concurrency,
            daily_nano=daily,
            monthly_nano=monthly,
            tokens_per_call=per_call,
        )
        oracle.rpm.configure(rpm, self.now)
        oracle.tpm.configure(tpm, self.now)
        oracle.concurrency, oracle.tokens_per_call = concurrency, per_call
        oracle.daily_cap, oracle.monthly_cap = daily, monthly

    @rule(
        pause=st.one_of(st.integers(0, 10**9), st.integers(0, 2 * MINUTE)), jump=st.sampled_from([0, 0, 0, 1, -1, -3])
    )
    def time_passes(self, pause: int, jump: int) -> None:
        self.now += pause
        self.wall += pause + jump * DAY

    @rule(account=st.integers(0, 1), nano=money)
    def add(self, account: int, nano: int) -> None:
        self.balances[account][0].add(nano)
        self.balances[account][1].available += nano
        self.ledger[account] += nano

    @rule(account=st.integers(0, 1), nano=money, partial=st.booleans())
    def take(self, account: int, nano: int, partial: bool) -> None:
        real, oracle = self.balances[account]
        taken = min(nano, oracle.available) if partial or nano <= oracle.available else 0
        assert real.take(nano, partial=partial) == taken
        oracle.available -= taken
        self.ledger[account] -= taken

    @rule(
        key=st.integers(0, 2),
        rate=st.integers(0, (len(PRICES) + 1) * len(DISCOUNTS) - 1),
        prompt=tokens,
        bound=st.one_of(st.none(), tokens),
        choices=st.integers(0, 3),
        stream=st.booleans(),
        max_cost=st.one_of(st.none(), st.none(), money),
        images=st.sampled_from([0, 0, 3]),
        searches=st.sampled_from([0, 0, 5]),
    )
    def admit(
        self,
        key: int,
        rate: int,
        prompt: int,
        bound: int | None,
        choices: int,
        stream: bool,
        max_cost: int | None,
        images: int,
        searches: int,
    ) -> None:
        real_key, owner, names = self.keys[key]
        call = Admission()
        call.images, call.web_searches = images, searches
        code = call.py_admit(
            real_key,
            self.rates[rate][0],
            prompt_tokens=prompt,
            output_bound=-1 if bound is None else bound,
            choices=choices,
            stream=stream,
            max_cost_nano=-1 if max_cost is None else max_cost,
            policy=self.policy,
            now_ns=self.now,
            wall_ns=self.wall,
        )
        expected = money_oracle.admit(
            self.balances[owner][1],
            [self.scopes[name][1] for name in names],
            self.rates[rate][1],
            POLICY,
            prompt=prompt,
            output_bound=bound,
            choices=choices,
            stream=stream,
            max_cost=max_cost,
            units={"image": images, "web_search": searches},
            now=self.now,
            wall=self.wall,
        )
        if isinstance(expected, CallOracle):
            assert ERROR_CODES[code] == ""
            self.calls.append((call, expected, owner))
            self.compare(call, expected)
        else:
            error, wait, scope = expected
            limited = call.limited_scope
            at_fault = None if limited is None else f"{limited.kind} {limited.id}"
            assert (ERROR_CODES[code], call.retry_after_ns) == (error, wait)
            assert at_fault == (None if scope is None else scope.name)

    def compare(self, call: Admission, oracle: CallOracle) -> None:
        assert (call.hold_nano, call.output_allowance) == (oracle.hold, oracle.allowance)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), more=st.one_of(st.integers(-5, 80), st.integers(0, 10_000)))
    def grow(self, data: st.DataObject, more: int) -> None:
        call, oracle, _ = data.draw(st.sampled_from(self.calls))
        counted = call.output_allowance + more
        assert ERROR_CODES[call.py_grow(counted, self.wall)] == oracle.grow(counted, self.wall)
        self.compare(call, oracle)

    @precondition(lambda self: self.calls)
    @rule(
        data=st.data(),
        prompt=st.fixed_dictionaries(
            {"input_tokens": tokens},
            optional={"cache_read_tokens": tokens, "cache_write_tokens": tokens, "cache_write_1h_tokens": tokens},
        ),
    )
    def correct_prompt(self, data: st.DataObject, prompt: dict[str, int]) -> None:
        call, oracle, _ = data.draw(st.sampled_from(self.calls))
        call.py_correct_prompt(**prompt)
        oracle.correct_prompt({name.removesuffix("_tokens"): n for name, n in prompt.items()})
        self.compare(call, oracle)

    @precondition(lambda self: self.calls)
    @rule(
        data=st.data(),
        used=st.fixed_dictionaries(
            {"input_tokens": tokens, "output_tokens": tokens},
            optional={"cache_read_tokens": tokens, "cache_write_1h_tokens": tokens, "images": st.integers(0, 5)},
        ),
    )
    def settle(self, data: st.DataObject, used: dict[str, int]) -> None:
        call, oracle, owner = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        cost = call.py_settle(now_ns=self.now, wall_ns=self.wall, **used)
        usage: dict[str, Any] = {
            "image" if name == "images" else name.removesuffix("_tokens"): n for name, n in used.items()
        }
        assert (cost, call.written_off_nano) == oracle.settle(usage, self.now, self.wall)
        self.ledger[owner] += call.written_off_nano - cost

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), forwarded=st.booleans())
    def release(self, data: st.DataObject, forwarded: bool) -> None:
        call, oracle, _ = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        call.py_release(now_ns=self.now, forwarded=forwarded)
        oracle.release(self.now, forwarded=forwarded)

    @invariant()
    def figures_agree(self) -> None:
        for (real, oracle), ledger in zip(self.balances, self.ledger, strict=True):
            assert (real.available_nano, real.held_nano) == (oracle.available, oracle.held)
            assert (real.open_holds, real.open_streams) == (oracle.open_holds, oracle.open_streams)
            assert real.balance_nano == ledger
            assert real.available_nano >= 0
        for account in (0, 1):
            holds = sum(call.hold_nano for call, _, owner in self.calls if owner == account)
            assert self.balances[account][0].held_nano == holds
        for real, oracle in self.scopes.values():
            assert real.state(self.now, self.wall) == money_oracle.scope_state(oracle, self.now, self.wall)


TestMoney = Money.TestCase
TestMoney.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
