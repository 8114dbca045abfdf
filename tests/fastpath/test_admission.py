"""The admission of one call: what is refused and in which order, what is held, how it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay._fastpath import ERROR_CODES, STATUSES, Admission, ApiKey, Balance, Policy, Rate, Scope
from tests.support.money_oracle import COST_MAX, DAY, MINUTE, NANO_MAX, SECOND, USAGE_MAX

CREDIT = 10**9
# One credit per token makes the sums readable.
PER_TOKEN = CREDIT * 10**6
EXACT = Policy(prompt_margin_permille=0, hold_output_tokens=100, hold_slice_tokens=10, hold_slice_tokens_min=2)
NOON = 20_000 * DAY + DAY // 2


def rate_of(input: int = PER_TOKEN, output: int = PER_TOKEN, **more: Any) -> Rate:
    return Rate(model=b"m", card="card", input=input, output=output, **more)


@dataclass
class Account:
    """A key, its scopes and its balance."""

    credits: int = 0
    limits: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scope, self.account = Scope("key", 1), Scope("account", 1)
        self.scope.configure(now_ns=0, **self.limits)
        self.account.configure(now_ns=0)
        self.balance = Balance(1, self.credits * CREDIT)
        self.key = self.another_key()

    def another_key(self, **fields: Any) -> ApiKey:
        key = ApiKey(b"abcdefghijkl", bytes(32), 1, 1)
        key.update(**{"scopes": (self.scope, self.account), "balance": self.balance} | fields)
        return key

    def open(self, **facts: Any) -> tuple[str, Admission]:
        """The error, or "", and the call."""
        call = Admission()
        rate = facts.pop("rate", rate_of())
        key = facts.pop("key", self.key)
        for name in ("images", "video_seconds", "web_searches"):
            setattr(call, name, facts.pop(name, 0))
        code = call.py_admit(key, rate, **{"prompt_tokens": 1, "policy": EXACT, "now_ns": 0, "wall_ns": NOON} | facts)
        return ERROR_CODES[code], call

    @property
    def figures(self) -> tuple[Any, ...]:
        """Everything that a refused call must leave as it was."""
        return (
            self.balance.available_nano,
            self.balance.held_nano,
            self.balance.open_holds,
            self.balance.open_streams,
            self.scope.state(0, NOON),
            self.account.state(0, NOON),
        )


def end(call: Admission, now_ns: int = 0, wall_ns: int = NOON, **usage: int) -> int:
    return call.py_settle(now_ns=now_ns, wall_ns=wall_ns, **usage)


# --- what is held


def test_a_plain_call_holds_prompt_and_bound() -> None:
    account = Account(1000)
    for facts, hold in (
        ({"prompt_tokens": 7, "output_bound": 5}, 12),
        ({"prompt_tokens": 7, "output_bound": 5, "choices": 3}, 22),
        ({"prompt_tokens": 7, "output_bound": 0}, 7),
        ({"prompt_tokens": 7}, 107),
        ({"prompt_tokens": 7, "choices": 2}, 207),
        ({"prompt_tokens": 7, "rate": rate_of(output_tokens_max=30)}, 37),
        ({"prompt_tokens": 7, "rate": rate_of(output_tokens_max=300)}, 107),
        ({"prompt_tokens": 10, "output_bound": 0, "policy": Policy(prompt_margin_permille=150)}, 12),
        ({"prompt_tokens": -5, "output_bound": 1, "choices": -3}, 1),
    ):
        code, call = account.open(**facts)
        assert (code, call.hold_nano) == ("", hold * CREDIT), facts
        assert (account.balance.held_nano, account.balance.open_holds) == (hold * CREDIT, 1)
        call.py_release(now_ns=0)
    assert account.balance.available_nano == 1000 * CREDIT


def test_a_hold_covers_the_dearest_way_to_charge_a_prompt() -> None:
    account = Account(1000)
    _, call = account.open(rate=rate_of(cache_write_1h=2 * PER_TOKEN), prompt_tokens=10, output_bound=0)
    assert call.hold_nano == 20 * CREDIT
    assert end(call, cache_write_1h_tokens=10) == 20 * CREDIT
    assert call.written_off_nano == 0


def test_units_are_part_of_the_hold() -> None:
    rate = rate_of(image=3 * CREDIT, video_second=CREDIT, web_search=2 * CREDIT)
    for stream in (False, True):
        account = Account(1000)
        _, call = account.open(
            rate=rate, output_bound=0, images=2, video_seconds=4, web_searches=5, stream=stream, prompt_tokens=1
        )
        assert call.hold_nano == (1 + 6 + 4 + 10) * CREDIT


def test_a_stream_holds_a_slice_however_large_its_limit() -> None:
    account = Account(1000)
    for facts, tokens in (
        ({}, 10),
        ({"output_bound": 10**12}, 10),
        ({"output_bound": 4}, 4),
        ({"output_bound": 4, "choices": 2}, 8),
        ({"output_bound": 0}, 0),
    ):
        code, call = account.open(stream=True, **facts)
        assert (code, call.output_allowance, call.hold_nano) == ("", tokens, (1 + tokens) * CREDIT)
        call.py_release(now_ns=0)


def test_slices_shrink_with_what_is_there() -> None:
    """A share for each open stream, for this one, and for the next to come; and of it a sixteenth at a time."""
    account = Account(259)
    _, first = account.open(stream=True)
    assert first.output_allowance == 2 + (259 - 3) // 16 // 2
    _, second = account.open(stream=True)
    assert second.output_allowance == 2 + (248 - 3) // 16 // 3
    code, third = account.open(stream=True)
    assert (code, third.output_allowance) == ("", 2 + (240 - 3) // 16 // 4)
    assert account.balance.available_nano == (259 - 11 - 8 - 6) * CREDIT


def test_finding_money_L2_streams_on_a_small_balance_are_served_alike() -> None:
    """Twenty, a token each in turn: 2,000 tokens are shared out to within a few, however early a stream came."""
    account = Account(20 + 2000)
    policy = Policy(hold_slice_tokens=256, hold_slice_tokens_min=16, prompt_margin_permille=0)
    calls = [account.open(stream=True, policy=policy)[1] for _ in range(20)]
    counts = [0] * 20
    running = set(range(20))
    while running:
        for number in sorted(running):
            if calls[number].py_grow(counts[number] + 1, NOON):
                running.remove(number)
                end(calls[number], input_tokens=1, output_tokens=counts[number])
            else:
                counts[number] += 1
    assert sum(counts) == 2000
    assert min(counts) >= 97, counts
    assert max(counts) <= 103, counts


def test_growth_uses_a_balance_up_to_the_last_token() -> None:
    account = Account(100)
    _, call = account.open(stream=True)
    counted = 0
    while ERROR_CODES[call.py_grow(counted + 1, NOON)] == "":
        counted += 1
        assert call.output_allowance >= counted
        assert call.hold_nano == (1 + call.output_allowance) * CREDIT
    assert ERROR_CODES[call.py_grow(counted + 1, NOON)] == "balance_exhausted"
    assert counted == 99
    assert end(call, input_tokens=1, output_tokens=counted) == 100 * CREDIT
    assert (call.written_off_nano, account.balance.balance_nano) == (0, 0)


def test_a_prompt_that_was_smaller_gives_its_hold_back() -> None:
    account = Account(100)
    _, call = account.open(stream=True, prompt_tokens=60)
    allowance = call.output_allowance
    assert call.hold_nano == (60 + allowance) * CREDIT
    call.py_correct_prompt(input_tokens=20)
    assert (call.hold_nano, call.output_allowance) == ((20 + allowance) * CREDIT, allowance)
    assert account.balance.available_nano == (80 - allowance) * CREDIT
    call.py_correct_prompt(input_tokens=20)  # again is no change
    assert call.hold_nano == (20 + allowance) * CREDIT
    assert end(call, input_tokens=20, output_tokens=3) == 23 * CREDIT


def test_a_prompt_that_was_larger_is_held_as_far_as_there_is_credit() -> None:
    account = Account(100)
    _, call = account.open(stream=True, prompt_tokens=10)
    allowance = call.output_allowance
    call.py_correct_prompt(input_tokens=50)
    assert (call.hold_nano, call.output_allowance) == ((50 + allowance) * CREDIT, allowance)
    call.py_correct_prompt(input_tokens=97)  # leaves room for three tokens of output
    assert (call.hold_nano, call.output_allowance) == (100 * CREDIT, min(allowance, 3))
    call.py_correct_prompt(input_tokens=150)
    assert (call.hold_nano, call.output_allowance) == (100 * CREDIT, 0)
    assert ERROR_CODES[call.py_grow(1, NOON)] == "balance_exhausted"
    assert end(call, input_tokens=150) == 150 * CREDIT
    assert (call.written_off_nano, account.balance.balance_nano) == (50 * CREDIT, 0)


def test_a_larger_prompt_never_takes_what_a_cap_or_the_caller_forbids() -> None:
    account = Account(1000)
    _, call = account.open(stream=True, prompt_tokens=10, max_cost_nano=40 * CREDIT)
    call.py_correct_prompt(input_tokens=30)
    assert (call.hold_nano, call.output_allowance) == (40 * CREDIT, 10)
    call.py_release(now_ns=0)
    account.scope.configure(now_ns=0, daily_nano=50 * CREDIT)
    _, call = account.open(stream=True, prompt_tokens=10)
    call.py_correct_prompt(input_tokens=45)
    assert call.hold_nano <= 50 * CREDIT
    assert call.output_allowance <= 5
    call.py_release(now_ns=0)
    assert account.balance.balance_nano == 1000 * CREDIT


def test_a_cached_prompt_is_held_for_at_its_price() -> None:
    rate = rate_of(cache_read=PER_TOKEN // 10, cache_write=2 * PER_TOKEN)
    account = Account(1000)
    code, call = account.open(rate=rate, stream=True, prompt_tokens=100)
    assert code == ""
    held = call.hold_nano
    assert held >= 200 * CREDIT  # as if all of it were written to a cache
    call.py_correct_prompt(input_tokens=10, cache_read_tokens=100)
    assert held - call.hold_nano == 180 * CREDIT


def test_streams_on_one_balance_end_about_equal() -> None:
    account = Account(10_000)
    calls = [account.open(stream=True)[1] for _ in range(5)]
    counted = [0] * 5
    running = set(range(5))
    while running:
        for number in sorted(running):
            if call_failed(calls[number], counted[number] + 1):
                running.discard(number)
            else:
                counted[number] += 1
    assert sum(counted) == 10_000 - 5
    assert max(counted) - min(counted) <= 20


def call_failed(call: Admission, counted: int) -> bool:
    return call.py_grow(counted, NOON) != 0


def test_growth_stops_at_the_callers_bound_but_not_below_what_came() -> None:
    account = Account(1000)
    _, call = account.open(stream=True, output_bound=15)
    assert call.py_grow(11, NOON) == 0
    assert call.output_allowance == 15
    assert call.py_grow(16, NOON) == 0  # the relay counts more than the upstream does
    assert call.output_allowance == 16


def test_growth_that_is_not_needed_changes_nothing() -> None:
    account = Account(1000)
    _, call = account.open(stream=True)
    before = account.figures
    assert call.py_grow(10, NOON) == 0
    assert call.py_grow(-(2**62), NOON) == 0
    assert account.figures == before


def test_growth_is_refused_by_caps_and_max_cost() -> None:
    for limits, facts, error in (
        ({"daily_nano": 14 * CREDIT}, {}, "cap_reached"),
        ({"monthly_nano": 14 * CREDIT}, {}, "cap_reached"),
        ({"tokens_per_call": 14}, {}, "cap_reached"),
        ({}, {"max_cost_nano": 14 * CREDIT}, "max_cost_reached"),
    ):
        account = Account(1000, limits)
        code, call = account.open(stream=True, **facts)
        assert code == ""
        counted = 0
        while (code := ERROR_CODES[call.py_grow(counted + 1, NOON)]) == "":
            counted += 1
        assert (code, counted) == (error, 13)
        before = account.figures
        assert ERROR_CODES[call.py_grow(10**9, NOON)] == error
        assert account.figures == before


# --- refusals


def test_refusals_come_in_their_order_and_take_nothing() -> None:
    """Each step removes the obstacle that was reported; the next one shows."""
    account = Account(
        0, {"rpm": 1, "tpm": 50, "concurrency": 1, "daily_nano": 4 * CREDIT, "monthly_nano": 3 * CREDIT,
            "tokens_per_call": 20}
    )  # fmt: skip
    filler = account.open(rate=Rate(model=b"free", card="c"), output_bound=19)[1]
    account.scope.charge_permits(1, 50, 0)
    wide = {"scopes": (account.scope, account.account), "balance": account.balance}
    facts: dict[str, Any] = {"prompt_tokens": 5, "output_bound": 16, "max_cost_nano": 1, "rate": None}

    def limit(**limits: Any) -> Callable[[], None]:
        return lambda: account.scope.configure(now_ns=0, **limits)

    account.key.update(**wide, key_status=STATUSES.index("revoked"), account_status=STATUSES.index("banned"))
    steps: list[tuple[str, Callable[[], object]]] = [
        ("key_revoked", lambda: account.key.update(**wide, account_status=STATUSES.index("banned"))),
        ("account_inactive", lambda: account.key.update(**wide)),
        ("model_unpriced", lambda: facts.update(rate=rate_of())),
        ("tokens_per_call", lambda: facts.update(output_bound=0)),
        ("max_cost", lambda: facts.update(max_cost_nano=-1)),
        ("concurrency_limit", limit(rpm=1, tpm=50, daily_nano=4 * CREDIT, monthly_nano=3 * CREDIT)),
        ("rate_limit_requests", limit(tpm=50, daily_nano=4 * CREDIT, monthly_nano=3 * CREDIT)),
        ("rate_limit_tokens", limit(daily_nano=4 * CREDIT, monthly_nano=3 * CREDIT)),
        ("monthly_limit", limit(daily_nano=4 * CREDIT)),
        ("daily_limit", limit()),
        ("insufficient_balance", lambda: account.balance.add(5 * CREDIT)),
    ]
    for expected, remove in steps:
        before = account.figures
        code, call = account.open(**facts)
        assert code == expected
        assert (call.state, call.hold_nano) == (0, 0)
        assert account.figures == before
        scoped = expected in ("tokens_per_call", "concurrency_limit") or "limit" in expected
        assert (call.limited_scope is account.scope) == scoped
        assert (call.retry_after_ns > 0) == (scoped and expected != "tokens_per_call")
        remove()
    code, call = account.open(**facts)
    assert (code, account.balance.available_nano) == ("", 0)
    filler.py_release(now_ns=0)


def test_a_key_that_was_never_filled_in_admits_nothing() -> None:
    code, _ = Account(5).open(key=ApiKey(b"a", bytes(32), 1, 1))
    assert code == "account_inactive"


def test_fifty_calls_on_credit_for_five() -> None:
    for stream in (False, True):
        account = Account(55)
        facts = {"prompt_tokens": 1, "output_bound": 10} if not stream else {"prompt_tokens": 9, "output_bound": 2}
        outcomes = [account.open(stream=stream, **facts)[0] for _ in range(50)]
        assert outcomes.count("") == 5
        assert outcomes.count("insufficient_balance") == 45
        assert account.balance.available_nano == 0


@pytest.mark.parametrize(("cap", "error"), [("daily_nano", "daily_limit"), ("monthly_nano", "monthly_limit")])
def test_a_burst_cannot_pass_a_cap(cap: str, error: str) -> None:
    account = Account(1000, {cap: 55 * CREDIT})
    calls = [account.open(output_bound=10) for _ in range(50)]
    opened = [call for code, call in calls if code == ""]
    assert len(opened) == 5
    refused = calls[-1][1]
    assert refused.retry_after_ns == SECOND  # only open calls stand in the way
    for call in opened:
        end(call, input_tokens=1, output_tokens=10)
    code, refused = account.open(output_bound=10)
    assert code == error
    day = DAY // 2
    # NOON of day 20,000 is 2024-10-04: 27 more days to November.
    assert refused.retry_after_ns == (day if cap == "daily_nano" else day + 27 * DAY)
    assert account.open(output_bound=10, wall_ns=NOON + refused.retry_after_ns - 1)[0] == error
    assert account.open(output_bound=10, wall_ns=NOON + refused.retry_after_ns)[0] == ""


def test_the_wait_is_the_longest_of_all_buckets() -> None:
    account = Account(1000, {"rpm": 10, "tpm": 100})
    account.account.configure(now_ns=0, rpm=1, tpm=10)
    assert account.open(output_bound=9)[0] == ""
    code, call = account.open(prompt_tokens=5, output_bound=0)
    assert (code, call.limited_scope) == ("rate_limit_requests", account.account)
    assert call.retry_after_ns == MINUTE
    code, _ = account.open(prompt_tokens=5, output_bound=0, now_ns=MINUTE - 1)
    assert code == "rate_limit_requests"
    assert account.open(prompt_tokens=5, output_bound=0, now_ns=MINUTE)[0] == ""


def test_tokens_per_call_by_model() -> None:
    account = Account(1000, {"tokens_per_call": 5, "tokens_per_call_models": {b"m": 9, b"free": 0}})
    assert account.open(prompt_tokens=4, output_bound=5)[0] == ""
    assert account.open(prompt_tokens=4, output_bound=6)[0] == "tokens_per_call"
    assert account.open(prompt_tokens=10)[0] == "tokens_per_call"
    other = Rate(model=b"other", card="c")
    assert account.open(prompt_tokens=4, output_bound=2, rate=other)[0] == "tokens_per_call"
    assert account.open(prompt_tokens=400, output_bound=2, rate=Rate(model=b"free", card="c"))[0] == ""
    code, call = account.open(prompt_tokens=4, stream=True)
    assert (code, call.output_allowance, call.output_limit) == ("", 5, 5)


# --- endings


def test_a_settlement_gives_the_rest_back() -> None:
    account = Account(100, {"tpm": 1000, "daily_nano": 200 * CREDIT})
    _, call = account.open(prompt_tokens=10, output_bound=50)
    assert account.scope.state(0, NOON)["tokens_remaining"] == 940
    assert end(call, input_tokens=8, output_tokens=4) == 12 * CREDIT
    state = account.scope.state(0, NOON)
    assert (account.balance.available_nano, account.balance.held_nano) == (88 * CREDIT, 0)
    assert (state["tokens_remaining"], state["spent_day_nano"], state["reserved_nano"]) == (988, 12 * CREDIT, 0)
    assert (state["in_flight"], account.balance.open_holds) == (0, 0)


def test_a_settlement_above_the_hold_takes_what_is_there_and_no_more() -> None:
    account = Account(100)
    other = account.open(prompt_tokens=60, output_bound=0)[1]
    _, call = account.open(prompt_tokens=10, output_bound=10, stream=True)
    assert end(call, input_tokens=30, output_tokens=20) == 50 * CREDIT
    assert (call.cost_nano, call.written_off_nano) == (50 * CREDIT, 10 * CREDIT)
    assert (account.balance.available_nano, account.balance.held_nano) == (0, 60 * CREDIT)
    assert end(other, input_tokens=60) == 60 * CREDIT
    assert (other.written_off_nano, account.balance.balance_nano) == (0, 0)
    # Caps count what the calls were charged (finding L7): what was written off is nobody's spending.
    assert account.scope.spent_day_nano == 100 * CREDIT


@pytest.mark.parametrize(("began", "day", "month"), [(0, 7, 7), (-1, 0, 7), (-30, 0, 0), (1, 7, 7)])
def test_finding_money_L1_a_call_counts_on_the_day_on_which_it_began(began: int, day: int, month: int) -> None:
    account = Account(100)
    _, call = account.open(prompt_tokens=5, output_bound=5)
    call.day = NOON // DAY + began
    end(call, input_tokens=7)
    assert (account.scope.spent_day_nano, account.scope.spent_month_nano) == (day * CREDIT, month * CREDIT)


def test_a_caller_never_pays_more_than_the_max_cost() -> None:
    account = Account(100)
    _, call = account.open(prompt_tokens=5, output_bound=5, max_cost_nano=12 * CREDIT)
    assert end(call, input_tokens=5, output_tokens=15) == 20 * CREDIT
    assert (call.written_off_nano, account.balance.available_nano) == (8 * CREDIT, 88 * CREDIT)


def test_more_tokens_than_reserved_are_charged_to_the_bucket() -> None:
    account = Account(1000, {"tpm": 100})
    _, call = account.open(prompt_tokens=10, output_bound=10)
    end(call, input_tokens=10, output_tokens=120, cache_read_tokens=20)
    assert account.scope.state(0, NOON)["tokens_reset_ns"] == MINUTE * 150 // 100


def test_a_refund_never_moves_a_bucket_before_now() -> None:
    account = Account(1000, {"tpm": 100})
    _, call = account.open(prompt_tokens=90, output_bound=10)
    end(call, now_ns=MINUTE // 2, input_tokens=1)
    assert account.scope.state(MINUTE // 2, NOON)["tokens_remaining"] == 100
    assert account.scope.take_permits(1, 100, MINUTE // 2) == 0
    assert account.scope.take_permits(1, 1, MINUTE // 2) == MINUTE // 100


def test_a_release_gives_everything_back() -> None:
    account = Account(1000, {"rpm": 5, "tpm": 1000, "daily_nano": 1000 * CREDIT, "concurrency": 2})
    before = account.figures
    for stream in (False, True):
        _, call = account.open(stream=stream)
        assert account.figures != before
        call.py_release(now_ns=0)
        assert account.figures == before
    _, call = account.open()
    call.py_release(now_ns=0, forwarded=True)
    assert account.scope.state(0, NOON)["requests_remaining"] == 4
    assert account.scope.state(0, NOON)["tokens_remaining"] == 1000


def test_what_was_not_taken_is_not_given_back() -> None:
    """A limit that is set while a call is open starts full, and that call has no part in it."""
    account = Account(100)
    _, call = account.open(prompt_tokens=10, output_bound=20)
    account.scope.configure(now_ns=0, rpm=10, tpm=100)
    account.scope.charge_permits(0, 5, 0)
    account.scope.charge_permits(1, 50, 0)
    call.py_release(now_ns=0)
    state = account.scope.state(0, NOON)
    assert (state["requests_remaining"], state["tokens_remaining"]) == (5, 50)


def test_a_call_keeps_what_it_was_admitted_under() -> None:
    """The key moves to other scopes and another balance; the open call ends where it began."""
    account, other = Account(100), Account(7)
    _, call = account.open(output_bound=9)
    account.key.update(scopes=(other.scope,), balance=other.balance)
    assert end(call, input_tokens=1, output_tokens=3) == 4 * CREDIT
    assert (account.balance.balance_nano, other.balance.balance_nano) == (96 * CREDIT, 7 * CREDIT)
    assert (account.scope.in_flight, account.scope.spent_day_nano) == (0, 4 * CREDIT)


def test_a_cost_counts_on_the_day_on_which_the_call_ends() -> None:
    account = Account(100)
    _, call = account.open(output_bound=9)
    end(call, wall_ns=NOON + DAY, input_tokens=1)
    assert (account.scope.day, account.scope.spent_day_nano) == (20_001, CREDIT)
    # A settlement that brings an older time never sets the day back.
    _, call = account.open(output_bound=9, wall_ns=NOON + 5 * DAY)
    end(call, wall_ns=NOON, input_tokens=2)
    assert (account.scope.day, account.scope.spent_day_nano) == (20_005, 2 * CREDIT)


def test_a_call_ends_exactly_once() -> None:
    account = Account(1000)

    def impossible(call: Admission, *steps: str) -> None:
        for step in steps:
            before = account.figures
            with pytest.raises(RuntimeError, match="admission"):
                {
                    "admit": lambda: call.py_admit(
                        account.key, rate_of(), prompt_tokens=1, policy=EXACT, now_ns=0, wall_ns=NOON
                    ),
                    "settle": lambda: end(call),
                    "release": lambda: call.py_release(now_ns=0),
                    "grow": lambda: call.py_grow(10**6, NOON),
                    "correct": lambda: call.py_correct_prompt(input_tokens=1),
                    "reset": call.py_reset,
                }[step]()
            assert account.figures == before

    impossible(Admission(), "settle", "release", "grow", "correct")
    _, call = account.open(stream=True)
    impossible(call, "admit", "reset")
    end(call)
    impossible(call, "admit", "settle", "release", "grow")
    _, call = account.open()
    call.py_release(now_ns=0)
    impossible(call, "admit", "settle", "release", "grow")
    call.py_reset()
    assert (call.state, call.balance, call.rate) == (0, None, None)
    assert call.py_admit(account.key, rate_of(), prompt_tokens=1, policy=EXACT, now_ns=0, wall_ns=NOON) == 0
    call.py_release(now_ns=0)


def test_a_refused_call_may_be_tried_again() -> None:
    account = Account(0)
    code, call = account.open(output_bound=1)
    assert code == "insufficient_balance"
    account.balance.add(2 * CREDIT)
    assert (
        call.py_admit(account.key, rate_of(), prompt_tokens=1, output_bound=1, policy=EXACT, now_ns=0, wall_ns=NOON)
        == 0
    )


# --- numbers from outside

extreme = st.one_of(
    st.sampled_from([-(2**63), -1, 0, 1, 2**31 - 1, 2**31, 2**40, 2**53, 2**62, 2**63 - 1]), st.integers(0, 5000)
)
usage = st.one_of(st.integers(-(2**80), 2**80), st.integers(0, 100))


@given(
    balance=st.one_of(st.integers(0, NANO_MAX), st.just(NANO_MAX), st.integers(0, 10**12)),
    price=st.sampled_from([0, 1, PER_TOKEN, 2**53]),
    ppb=st.sampled_from([0, 1, 850_000_000, 10**9, 10**12]),
    prompt=extreme,
    bound=extreme,
    choices=extreme,
    stream=st.booleans(),
    counts=st.lists(extreme, max_size=4),
    used=st.fixed_dictionaries({}, optional={"input_tokens": usage, "output_tokens": usage, "images": usage}),
)
def test_no_number_from_outside_raises_a_balance_or_overflows(
    balance: int,
    price: int,
    ppb: int,
    prompt: int,
    bound: int,
    choices: int,
    stream: bool,
    counts: list[int],
    used: dict[str, int],
) -> None:
    account = Account(0, {"tpm": 2**53, "rpm": 1, "daily_nano": NANO_MAX, "monthly_nano": NANO_MAX})
    account.balance.add(balance)
    rate = rate_of(price, price, image=price, discount_ppb=ppb)
    code, call = account.open(
        rate=rate,
        prompt_tokens=prompt,
        output_bound=bound,
        choices=choices,
        stream=stream,
        images=prompt,
        policy=Policy(hold_slice_tokens=USAGE_MAX, hold_output_tokens=USAGE_MAX, prompt_margin_permille=100_000),
    )
    if code:
        assert account.balance.available_nano == balance
        return
    held = call.hold_nano
    assert 0 <= held <= balance
    for counted in counts:
        call.py_grow(counted, NOON)
        assert held <= call.hold_nano <= balance
        held = call.hold_nano
    cost = end(call, **used)
    assert 0 <= cost <= COST_MAX
    assert 0 <= call.written_off_nano <= cost
    assert account.balance.available_nano == balance - cost + call.written_off_nano >= 0
    assert account.balance.held_nano == account.scope.reserved_nano == 0
    assert account.scope.spent_day_nano == cost - call.written_off_nano
