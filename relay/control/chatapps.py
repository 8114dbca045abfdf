"""The balance in the forms that chat applications ask for, with an API key: OpenAI's old dashboard, and OpenRouter.

Numbers are credits, as JSON numbers; exact amounts are at /relay/v1/balance. A key sees what itself has used, as there:
so what is left is right in both forms (limit less usage), and tells nothing of other keys.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from relay import units
from relay.control import usage
from relay.control.customer import Authenticate, Caller
from relay.control.documents import Document
from relay.control.failures import CommandError
from relay.control.live import Live
from relay.control.responses import error_response, json_response
from relay.storage.errors import StoreError
from relay.storage.store import Store

_DASHBOARDS: Final = ("/v1/dashboard/billing", "/dashboard/billing")  # applications differ in their base URL
_OPENROUTER: Final = "/api/v1"


class ChatApps:
    """The routes. All answer GET."""

    def __init__(self, store: Store, live: Live, authenticate: Authenticate) -> None:
        self._store = store
        self._live = live
        self._authenticate = authenticate

    def add_routes(self, app: web.Application) -> None:
        """Registers them."""
        routes = [(f"{base}/subscription", self.subscription) for base in _DASHBOARDS]
        routes += [(f"{base}/usage", self.usage) for base in _DASHBOARDS]
        routes += [(f"{_OPENROUTER}/credits", self.credits), (f"{_OPENROUTER}/key", self.key)]
        for path, method in routes:
            app.router.add_get(path, self._handler(method), allow_head=False)

    def _handler(
        self, method: Callable[[Caller], Awaitable[Document]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                return json_response(await method(await self._authenticate(request)))
            except CommandError as failure:
                return error_response(failure)
            except StoreError:
                return error_response(CommandError("unavailable", "the store cannot be read now"))

        return handle

    async def subscription(self, caller: Caller) -> Document:
        """What was there for this key: what is left and what it has used."""
        total = _credits(await self._available_nano(caller) + await self._used_nano(caller))
        return {
            "object": "billing_subscription",
            "has_payment_method": True,
            "soft_limit_usd": total,
            "hard_limit_usd": total,
            "system_hard_limit_usd": total,
            "access_until": 0,
        }

    async def usage(self, caller: Caller) -> Document:
        """What this key has used since it was made, in hundredths. `start_date` and `end_date` change nothing:
        applications take it from the limit to show what is left."""
        return {"object": "list", "total_usage": _credits(100 * await self._used_nano(caller))}

    async def credits(self, caller: Caller) -> Document:
        """OpenRouter's form of the same."""
        used_nano = await self._used_nano(caller)
        return {
            "data": {
                "total_credits": _credits(await self._available_nano(caller) + used_nano),
                "total_usage": _credits(used_nano),
            }
        }

    async def key(self, caller: Caller) -> Document:
        """The key: its monthly limit, what is left of it, what it has used, its rate."""
        own = next((view for view in await self._live.limits(caller.key_id) if view.scope == "key"), None)
        spent = await usage.spent(
            self._store, time.time_ns() // 1_000_000, account_id=caller.account_id, key_id=caller.key_id
        )
        limit_nano = own.monthly_limit_nano if own is not None else 0
        left_nano = max(0, limit_nano - own.monthly_spent_nano) if own is not None and limit_nano else None
        requests = own.requests_limit if own is not None else 0
        return {
            "data": {
                "label": units.key_text(caller.key_id),
                "limit": _credits(limit_nano) if limit_nano else None,
                "limit_remaining": None if left_nano is None else _credits(left_nano),
                "limit_reset": "monthly" if limit_nano else None,
                "usage": _credits(await self._used_nano(caller)),
                "usage_daily": float(spent["daily"]),
                "usage_monthly": float(spent["monthly"]),
                "is_free_tier": False,
                "rate_limit": {"requests": requests or -1, "interval": "60s"},
            }
        }

    async def _available_nano(self, caller: Caller) -> int:
        live = await self._live.balance(caller.account_id)
        return live.available_nano if live is not None else await self._store.balance(caller.account_id)

    async def _used_nano(self, caller: Caller) -> int:
        return sum((await self._store.charged(caller.account_id, key_id=caller.key_id)).values())


def _credits(nano: int) -> float:
    return nano / units.NANO_PER_CREDIT
