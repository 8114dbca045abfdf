"""What the control plane needs of the running relay."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class LiveBalance:
    """The balance of an account as admission sees it now, in nano-credits. `held` belongs to open calls."""

    available_nano: int
    held_nano: int


@dataclass(frozen=True)
class ScopeView:
    """The limits in force in one scope, and what is left of each now. A limit of 0 is none; its `remaining` then says
    nothing. Resets are nanoseconds until the bucket is full again. Amounts are nano-credits of this UTC day and month.
    """

    scope: str  # "key", "account", "organisation"
    requests_limit: int
    requests_remaining: int
    requests_reset_ns: int
    tokens_limit: int
    tokens_remaining: int
    tokens_reset_ns: int
    concurrency_limit: int
    in_flight: int
    daily_limit_nano: int
    daily_spent_nano: int
    monthly_limit_nano: int
    monthly_spent_nano: int
    tokens_per_call: Mapping[str, int]  # by model, "*" for all others


class Live(Protocol):
    """The running relay, implemented by the app. Ids are numbers.

    The methods named `..._changed` follow a committed change: when they return, no new call is admitted under the old
    state, and calls in flight of what was revoked, suspended, frozen, banned or closed are ended.
    """

    async def key_changed(self, key_id: int) -> None:
        """Settings, status or credentials of this key changed."""

    async def account_changed(self, account_id: int) -> None:
        """Plan, limits, status or organisation of this account changed."""

    async def organisation_changed(self, organisation_id: int) -> None:
        """Limits of this organisation changed."""

    def credit_moving(self, account_id: int) -> AbstractContextManager[None]:
        """Around everything that one change of an account's credits does, here and in the store: while it lasts, the
        account's balance is not loaded, so that what is loaded has either all of the change or nothing of it."""

    async def credit_added(self, account_id: int, nano: int) -> None:
        """Credits were committed to the store and may be spent from now on."""

    async def credit_taken(self, account_id: int, nano: int) -> bool:
        """Takes credits from what is available *before* the store is told; False, with nothing taken, if not there.

        What takes from a balance counts at once: between a commit and the change in memory calls could spend it again.
        Give back with `credit_added` when the store refuses.
        """

    async def balance(self, account_id: int) -> LiveBalance | None:
        """None when the relay has not loaded this account; the store's figure is then exact."""

    async def limits(self, key_id: int) -> list[ScopeView]:
        """The limits of every scope that calls with this key pass, the key's own first."""

    async def rates_scheduled(self) -> None:
        """Rates were announced for a time, or withdrawn."""

    async def channels_switched(self) -> None:
        """A channel was switched off or on: no new call goes to one that is off."""

    def channel_wake(self, name: str, key: int) -> bool:
        """Its keys rest no more and it is in use; `key` not 0: that key alone. False: there is no such one."""

    async def channel_test(self, name: str) -> list[dict[str, Any]]:
        """What each key of this configured channel gets for the smallest useful request."""

    def status(self) -> dict[str, Any]:
        """Figures of the process: version, pid, uptime_seconds, open calls, connections, channels, draining."""

    async def reload(self) -> dict[str, Any]:
        """Applies the config file anew. Raises ConfigError when it is broken; the old one is then still in force."""

    async def drain(self) -> dict[str, Any]:
        """Refuses new calls and stops when the open ones have ended; returns at once."""
