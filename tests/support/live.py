"""A stand-in for the running relay: keeps balances in a dictionary and notes what it was told."""

import contextlib
from collections.abc import Iterator
from typing import Any

from relay.config_values import ConfigError, Fault
from relay.control.live import LiveBalance, ScopeView


class FakeLive:
    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []
        self.balances: dict[int, LiveBalance] = {}
        self.config_is_broken = False
        self.drained = False

    async def key_changed(self, key_id: int) -> None:
        self.told.append(("key", key_id))

    async def account_changed(self, account_id: int) -> None:
        self.told.append(("account", account_id))

    async def organisation_changed(self, organisation_id: int) -> None:
        self.told.append(("organisation", organisation_id))

    @contextlib.contextmanager
    def credit_moving(self, account_id: int) -> Iterator[None]:
        self.told.append(("moving", account_id))
        try:
            yield
        finally:
            self.told.append(("moved", account_id))

    async def credit_added(self, account_id: int, nano: int) -> None:
        self.told.append(("added", nano))
        if old := self.balances.get(account_id):
            self.balances[account_id] = LiveBalance(old.available_nano + nano, old.held_nano)

    async def credit_taken(self, account_id: int, nano: int) -> bool:
        self.told.append(("taken", nano))
        old = self.balances.get(account_id)
        if old is None:
            return True
        if old.available_nano < nano:
            return False
        self.balances[account_id] = LiveBalance(old.available_nano - nano, old.held_nano)
        return True

    async def balance(self, account_id: int) -> LiveBalance | None:
        return self.balances.get(account_id)

    async def limits(self, key_id: int) -> list[ScopeView]:
        return [
            ScopeView("key", 20, 19, 3_000_000_000, 0, 0, 0, 5, 1, 10**9, 250_000_000, 0, 7, {"*": 1000}),
            ScopeView("account", 0, 0, 0, 1000, 400, 36_000_000_000, 0, 1, 0, 0, 5 * 10**9, 6 * 10**9, {}),
        ]

    async def rates_scheduled(self) -> None:
        self.told.append(("rates", 0))

    async def channels_switched(self) -> None:
        self.told.append(("switches", 0))

    def channel_wake(self, name: str, key: int) -> bool:
        self.told.append((f"wake {name}", key))
        return key < 3

    async def channel_test(self, name: str) -> list[dict[str, Any]]:
        key = {"status": 200, "asked": "GET /models", "milliseconds": 1.0}
        return [{"key": 1, "ok": True, "says": "ok", **key}, {"key": 2, "ok": False, "says": "upstream_account", **key}]

    def status(self) -> dict[str, Any]:
        return {
            "channels": [{"name": "main", "state": "ok", "failures": 3}],
            "pid": 1,
            "uptime_seconds": 5,
            "open_calls": 0,
            "draining": self.drained,
        }

    async def reload(self) -> dict[str, Any]:
        if self.config_is_broken:
            raise ConfigError("config.toml", [Fault("server.listen", "an address", "a number")])
        return {"warnings": []}

    async def drain(self) -> dict[str, Any]:
        self.drained = True
        return {"open_calls": 0}
