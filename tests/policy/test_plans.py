"""Effective limits: the plan, then what the operator set nearer to the key."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from relay._fastpath import Scope
from relay.config import Plan
from relay.policy import plans

FREE = Plan(rpm=20, tpm=1000, concurrency=5, daily_credits=Decimal("12.5"), tokens_per_call={"*": 100, "big": 500})


@dataclass
class Limits:
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    daily_nano: int | None = None
    monthly_nano: int | None = None
    tokens_per_call: dict[str, int] | None = None


def test_a_plan_alone() -> None:
    assert plans.effective(FREE) == {
        "rpm": 20,
        "tpm": 1000,
        "concurrency": 5,
        "daily_nano": 12_500_000_000,
        "monthly_nano": 0,
        "tokens_per_call": 100,
        "tokens_per_call_models": {b"big": 500},
    }


def test_nearer_overrides_win_and_zero_is_no_limit() -> None:
    account = Limits(rpm=500, concurrency=0, daily_nano=7, tokens_per_call={"big": 900})
    key = Limits(rpm=3, monthly_nano=9, tokens_per_call={"*": 0, "small": 5})
    assert plans.effective(FREE, account)["rpm"] == 500
    assert plans.effective(FREE, account, key) == {
        "rpm": 3,
        "tpm": 1000,
        "concurrency": 0,
        "daily_nano": 7,
        "monthly_nano": 9,
        "tokens_per_call": 0,
        "tokens_per_call_models": {b"big": 900, b"small": 5},
    }


def test_no_plan_is_no_limit() -> None:
    limits = plans.effective(None, Limits(tpm=5))
    assert limits["tpm"] == 5
    assert not any(value for name, value in limits.items() if name != "tpm")
    assert FREE.tokens_per_call == {"*": 100, "big": 500}  # untouched by merging


def test_the_result_is_what_a_scope_takes() -> None:
    scope = Scope("key", 1)
    scope.configure(now_ns=0, **plans.effective(FREE))
    assert (scope.rpm_limit, scope.daily_cap_nano, scope.tokens_per_call) == (20, 12_500_000_000, 100)
    assert scope.tokens_per_call_models == {b"big": 500}
