"""Random histories of realtime sessions on one account: balance, limits, journal and records are the oracle's."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay._fastpath import (
    ERROR_CODES,
    JOURNAL_SLOT_SIZE,
    ApiKey,
    Balance,
    Channel,
    Engine,
    Journal,
    Model,
    Policy,
    Rate,
    Route,
    Scope,
    Session,
)
from relay.policy.tokenizers import table_for
from relay.records import C_MORE, CALL_DETAILS, CALL_RECORD_FIELDS
from tests.support import money_oracle
from tests.support.money_oracle import DAY, BalanceOracle, CallOracle, RateOracle, ScopeOracle
from tests.support.session_oracle import TOKENS, SessionOracle

TABLE = table_for("gpt-4o")
SLOTS = 4
PRICES: list[dict[str, int]] = [
    {"input": 4 * 10**9, "output": 16 * 10**9, "cache_read": 4 * 10**8},
    {"input": 4 * 10**9, "output": 16 * 10**9, "cache_read": 4 * 10**8}
    | {"audio_input": 32 * 10**9, "audio_output": 64 * 10**9, "image_input": 5 * 10**9}
    | {"audio_cache_read": 3 * 10**8, "image_cache_read": 5 * 10**8},
    {"input": 333_333_333, "output": 7},
    {},
]
POLICY = {"hold_output_tokens": 300, "hold_slice_tokens": 64, "hold_slice_tokens_min": 4, "prompt_margin_permille": 100}

money = st.one_of(st.integers(0, 10_000_000), st.integers(0, 10**12))
tokens = st.one_of(st.integers(0, 50), st.integers(0, 5_000), st.sampled_from([-1, 2**40, 2**62]))
cap = st.one_of(st.just(0), st.integers(1, 50_000_000), st.integers(1, 10**13))
usages = st.fixed_dictionaries({"input": tokens, "output": tokens}, optional=dict.fromkeys(TOKENS[2:], tokens))
counts = st.fixed_dictionaries(dict.fromkeys(("input", "output", "audio_input", "audio_output"), tokens))


def wall() -> int:
    return time.time_ns()


class Sessions(RuleBasedStateMachine):
    """Up to five sessions of one key; there is room for four in the journal."""

    @initialize(balance=money, daily=cap, monthly=cap, concurrency=st.sampled_from([0, 0, 2]))
    def begin(self, balance: int, daily: int, monthly: int, concurrency: int) -> None:
        self.day = wall() // DAY
        self.engine = Engine(object(), b"pepper", [TABLE] * 3, {}, 1)
        self.engine.policy = Policy(**POLICY)
        self.journal = self.engine.journal = Journal(bytearray(SLOTS * JOURNAL_SLOT_SIZE))
        self.scope, self.balance = Scope("account", 1), Balance(1, balance)
        self.scope.configure(now_ns=0, daily_nano=daily, monthly_nano=monthly, concurrency=concurrency)
        self.scope_oracle = ScopeOracle("account", concurrency=concurrency, daily_cap=daily, monthly_cap=monthly)
        self.balance_oracle = BalanceOracle(balance)
        self.key = ApiKey(b"abcdefghijkl", bytes(32), 1, 1)
        self.key.update(scopes=(self.scope,), balance=self.balance)
        channel = Channel("voice", 0, b"h", b"", [b""], None)
        self.route = Route(channel, "upstream-name", TABLE)
        self.rates = [
            (Rate(model=b"m", card="c", discount_ppb=850_000_000, **prices), RateOracle(prices, 850_000_000))
            for prices in PRICES
        ]
        self.open: list[dict[str, Any]] = []
        self.slots = 0  # taken in the journal

    @rule(
        rate=st.integers(0, len(PRICES) - 1),
        prompt=st.integers(0, 2000),
        max_cost=st.one_of(st.none(), st.none(), money),
    )
    def a_session(self, rate: int, prompt: int, max_cost: int | None) -> None:
        model = Model("m", self.rates[rate][0])
        number = self.engine.next_id()
        session = Session(self.engine, number, self.key, model, "/v1/realtime", "::1", None)
        code = ERROR_CODES[session.open(prompt, -1 if max_cost is None else max_cost)]
        oracle = money_oracle.admit(
            self.balance_oracle, [self.scope_oracle], self.rates[rate][1], POLICY, prompt=prompt, output_bound=None,
            choices=1, stream=True, max_cost=max_cost, units={}, now=0, wall=wall(),
        )  # fmt: skip
        if not isinstance(oracle, CallOracle):
            assert code == oracle[0]
            assert (session.limited_scope is None) == (oracle[2] is None)
        elif self.slots == SLOTS:
            assert code == "overloaded"
            oracle.release(0, forwarded=False)
        else:
            assert code == ""
            self.slots += 1
            self.open.append({"session": session, "oracle": SessionOracle(oracle), "id": number, "forwarded": False})

    @precondition(lambda self: self.open)
    @rule(data=st.data(), accepted=st.booleans())
    def goes_on(self, data: st.DataObject, accepted: bool) -> None:
        one = data.draw(st.sampled_from(self.open))
        if not one["forwarded"]:
            one["session"].forwarded(self.route)
        if accepted:
            one["session"].accepted()
        one["forwarded"] = True

    @precondition(lambda self: self.open)
    @rule(data=st.data(), usage=usages, estimated=st.booleans())
    def a_response_ends(self, data: st.DataObject, usage: dict[str, int], estimated: bool) -> None:
        one = data.draw(st.sampled_from(self.open))
        code = one["session"].reported(estimated=estimated, **{f"{name}_tokens": n for name, n in usage.items()})
        assert ERROR_CODES[code] == one["oracle"].report(usage, estimated=estimated, wall=wall())

    @precondition(lambda self: self.open)
    @rule(data=st.data(), usage=counts)
    def a_response_grows(self, data: st.DataObject, usage: dict[str, int]) -> None:
        one = data.draw(st.sampled_from(self.open))
        code = one["session"].counted(
            usage["input"], usage["output"], audio_input_tokens=usage["audio_input"],
            audio_output_tokens=usage["audio_output"],
        )  # fmt: skip
        assert ERROR_CODES[code] == one["oracle"].count(usage, wall=wall())

    @precondition(lambda self: self.open)
    @rule(data=st.data(), why=st.sampled_from(["", "client_gone", "balance_exhausted"]))
    def ends(self, data: st.DataObject, why: str) -> None:
        one = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        one["session"].end(ERROR_CODES.index(why), 499)
        oracle: SessionOracle = one["oracle"]
        used = oracle.used()
        expected = oracle.end(0, wall(), forwarded=one["forwarded"])
        record = self.engine.records[-1]
        told = dict(zip(CALL_RECORD_FIELDS, record, strict=False))
        expected |= {"id": one["id"], "error_code": why or None, "status": 499, "attempts": int(one["forwarded"])}
        expected |= {"channel": "voice", "upstream_model": "upstream-name"} if one["forwarded"] else {"channel": None}
        assert told == told | expected
        more = dict(zip(CALL_DETAILS, record[C_MORE], strict=False)) if len(record) > C_MORE else {}
        for name in ("audio_input", "audio_output", "image_input", "audio_cache_read", "image_cache_read"):
            assert more.get(f"{name}_tokens", 0) == (used[name] if expected["usage_source"] != "none" else 0)
        assert self.journal.holds(one["id"])

    @rule()
    def the_store_commits(self) -> None:
        records = self.engine.records
        self.slots -= len(records)
        self.journal.committed(records)
        records.clear()

    @rule(nano=money)
    def add(self, nano: int) -> None:
        self.balance.add(nano)
        self.balance_oracle.available += nano

    @invariant()
    def figures_agree(self) -> None:
        if wall() // DAY != self.day:  # the day began anew between two looks at the clock
            return
        assert (self.balance.available_nano, self.balance.held_nano) == (
            self.balance_oracle.available,
            self.balance_oracle.held,
        )
        assert self.balance.open_streams == len(self.open)
        assert self.scope.state(0, wall()) == money_oracle.scope_state(self.scope_oracle, 0, wall())
        assert self.journal.free_slots == SLOTS - self.slots

    @invariant()
    def a_kill_now_charges_what_was_used(self) -> None:
        slots = {slot["id"]: slot for slot in self.journal.left_over()}
        assert len(slots) == self.slots
        for one in self.open:
            oracle: SessionOracle = one["oracle"]
            slot, used = slots[one["id"]], oracle.used()
            assert (slot["ended"], slot["error_code"]) == (False, "recovered")
            assert slot["hold_nano"] == oracle.call.hold
            if any(used.values()):
                assert slot["usage_source"] == oracle.source
            assert (slot["input_tokens"], slot["output_tokens"], slot["cache_read_tokens"]) == (
                used["input"],
                used["output"],
                used["cache_read"],
            )
            assert slot["cost_nano"] == oracle.call.rate.cost(used)
        for record in self.engine.records:
            slot = slots[record[0]]
            told = dict(zip(CALL_RECORD_FIELDS, record, strict=False))
            assert slot["ended"]
            assert (slot["cost_nano"], slot["written_off_nano"]) == (told["cost_nano"], told["write_off_nano"])
            assert (slot["usage_source"], slot["error_code"]) == (told["usage_source"], told["error_code"])


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_other_models_transcribe_is_part_of_the_cost() -> None:
    """The sum of the lines, whatever they were before; held for, in the journal, on the record."""
    engine = Engine(object(), b"pepper", [TABLE] * 3, {}, 1)
    engine.policy = Policy(**POLICY)
    memory = bytearray(JOURNAL_SLOT_SIZE)
    engine.journal = Journal(memory)
    key, balance = ApiKey(b"abcdefghijkl", bytes(32), 1, 1), Balance(1, 10**9)
    key.update(scopes=(), balance=balance)
    session = Session(
        engine, engine.next_id(), key, Model("m", Rate(model=b"m", card="c", input=10**9)), "/v1", "", None
    )
    assert session.open(10) == 0
    session.forwarded(Route(Channel("voice", 0, b"h", b"", [b""], None), "m", TABLE))
    before = balance.held_nano

    def line(seconds: int) -> tuple[str, str, int, int, int, int, int, int, int, int, int]:
        return ("transcription", "w", seconds, 0, 0, 0, 0, 0, 0, 0, seconds * 1000)

    assert session.beside((line(3),)) == 0
    assert session.beside((line(3), line(4))) == 0
    assert balance.held_nano >= 7000 > before - balance.held_nano
    (left,) = Journal(bytearray(memory)).left_over()
    assert (left["cost_nano"], left["more"][-1]) == (7000, (("recovered", None, 1, 0, 0, 0, 0, 0, 0, 0, 7000),))
    session.end(0, 101)
    record = engine.records[-1]
    told = dict(zip(CALL_RECORD_FIELDS, record, strict=False))
    assert (told["cost_nano"], told["usage_source"], told["write_off_nano"]) == (7000, "upstream", 0)
    assert record[C_MORE][-1] == (line(3), line(4))
    assert (balance.available_nano, balance.held_nano) == (10**9 - 7000, 0)
