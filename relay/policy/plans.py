"""Which limits hold: those of the plan, and what the operator set otherwise for one organisation, account or key.

An override says for each limit a number, 0 for none, or nothing. Nearer overrides win: a key's own over its account's,
the account's over the plan's. So an account that is raised raises its keys too, unless a key has a limit of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypedDict

from relay import units
from relay.config import Plan

ALL_MODELS = "*"


class Overrides(Protocol):
    """Limits that replace those of a plan. None: as the plan says; 0: no limit. Amounts in nano-credits."""

    @property
    def rpm(self) -> int | None: ...
    @property
    def tpm(self) -> int | None: ...
    @property
    def concurrency(self) -> int | None: ...
    @property
    def daily_nano(self) -> int | None: ...
    @property
    def monthly_nano(self) -> int | None: ...
    @property
    def tokens_per_call(self) -> Mapping[str, int] | None:
        """By model, "*" for all others. A model that is not named keeps the limit from further away."""


class ScopeLimits(TypedDict):
    """The arguments of `_fastpath.Scope.configure`; 0 is no limit everywhere."""

    rpm: int
    tpm: int
    concurrency: int
    daily_nano: int
    monthly_nano: int
    tokens_per_call: int
    tokens_per_call_models: dict[bytes, int]


def effective(plan: Plan | None, *overrides: Overrides) -> ScopeLimits:
    """The limits of one scope: the plan's (None: no limits, as for organisations), then each override in turn."""
    limits = ScopeLimits(
        rpm=0, tpm=0, concurrency=0, daily_nano=0, monthly_nano=0, tokens_per_call=0, tokens_per_call_models={}
    )
    per_call: dict[str, int] = {}
    if plan is not None:
        limits["rpm"], limits["tpm"], limits["concurrency"] = plan.rpm, plan.tpm, plan.concurrency
        limits["daily_nano"] = units.exact_nano(plan.daily_credits, maximum=units.AMOUNT_NANO_MAX)
        limits["monthly_nano"] = units.exact_nano(plan.monthly_credits, maximum=units.AMOUNT_NANO_MAX)
        per_call.update(plan.tokens_per_call)
    for override in overrides:
        if override.rpm is not None:
            limits["rpm"] = override.rpm
        if override.tpm is not None:
            limits["tpm"] = override.tpm
        if override.concurrency is not None:
            limits["concurrency"] = override.concurrency
        if override.daily_nano is not None:
            limits["daily_nano"] = override.daily_nano
        if override.monthly_nano is not None:
            limits["monthly_nano"] = override.monthly_nano
        per_call.update(override.tokens_per_call or {})
    limits["tokens_per_call"] = per_call.pop(ALL_MODELS, 0)
    limits["tokens_per_call_models"] = {model.encode(): tokens for model, tokens in per_call.items()}
    return limits
