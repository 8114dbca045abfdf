"""What a customer may ask with an API key: /relay/v1/balance, limits, calls, usage, rates.

The key is checked by a function of the app (the same check as for API calls, network and expiry included; asking
takes no permits and costs nothing). A key sees the balance of its account and its own calls, not those of other keys:
whoever finds a key in a repository learns no more about the account than calls with it would show.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from aiohttp import web

from relay import units
from relay.config import Config
from relay.control import answers, commands, documents, openapi, pricelist, usage, values
from relay.control.documents import Document
from relay.control.failures import CommandError
from relay.control.live import Live, ScopeView
from relay.control.responses import error_response, json_response, query_fields
from relay.storage.errors import StoreError
from relay.storage.store import Store

logger = logging.getLogger(__name__)

PREFIX = "/relay/v1"
DESCRIPTION = "openapi.json"  # for everybody: it tells nothing of this relay
# The operator's own arrangements are not the customer's business.
_OPERATOR_FIELDS = ("channel", "upstream_model", "attempts")


@dataclass(frozen=True)
class Caller:
    """Whose key it is. `models` None: all."""

    account_id: int
    key_id: int
    models: frozenset[str] | None


Q = TypeVar("Q", bound=commands.Params)

# Gives the caller of a request, or raises CommandError("unauthorized" | "refused", ...).
Authenticate = Callable[[web.Request], Awaitable[Caller]]


class CallsQuery(commands.Params, frozen=True, kw_only=True):
    """Records of the key's calls, newest first."""

    since: str | None = None
    until: str | None = None
    status: str | None = None
    before: str | None = None
    limit: int = 100


class UsageQuery(commands.UsagePeriod, frozen=True, kw_only=True):
    """Sums over the key's calls. `by`: day or month, model, separated by commas."""

    by: str = "month"


# Name below PREFIX, which is the name of the method too: parameters, answer.
ROUTES: dict[str, tuple[type[commands.Params], type[msgspec.Struct]]] = {
    "balance": (commands.Nothing, answers.CustomerBalance),
    "limits": (commands.Nothing, answers.CustomerLimits),
    "calls": (CallsQuery, answers.CustomerCalls),
    "usage": (UsageQuery, answers.CustomerUsage),
    "rates": (commands.Nothing, answers.CustomerRates),
}


def openapi_document() -> Document:
    """The OpenAPI document of this API."""
    routes = [
        openapi.Route(
            name=name,
            method="GET",
            path=f"{PREFIX}/{name}",
            params=params,
            answer=answer,
            about=openapi.about(getattr(CustomerApi, name)),
            refusals=(400, 401, 403, 500, 503),
        )
        for name, (params, answer) in ROUTES.items()
    ]
    return openapi.document(
        "relay: the customer's API",
        "What an account has, may do, did and pays. Amounts are decimal credits as text, times RFC 3339.",
        "An API key of the relay; `x-api-key` and `x-goog-api-key` are read as well.",
        routes,
    )


class CustomerApi:
    """The routes, and their description. `config` gives the configuration in force."""

    def __init__(self, store: Store, live: Live, config: Callable[[], Config], authenticate: Authenticate) -> None:
        self._store = store
        self._live = live
        self._config = config
        self._authenticate = authenticate

    def add_routes(self, app: web.Application) -> None:
        """Registers them."""
        for name in ROUTES:
            app.router.add_get(f"{PREFIX}/{name}", self._handler(getattr(self, name)), allow_head=False)
        described = openapi_document()

        async def description(_: web.Request) -> web.Response:
            return json_response(described)

        app.router.add_get(f"{PREFIX}/{DESCRIPTION}", description, allow_head=False)
        app.router.add_route("*", PREFIX + "/{rest:.*}", _unknown)

    def _handler(
        self, method: Callable[[Caller, web.Request], Awaitable[Document]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                return json_response(await method(await self._authenticate(request), request))
            except CommandError as failure:
                return error_response(failure)
            except StoreError:
                return error_response(CommandError("unavailable", "the store cannot be read now"))
            except (asyncio.CancelledError, web.HTTPException):
                raise
            except Exception:
                logger.exception("a request of the customer's API failed")
                return json_response({"error": {"code": "internal", "message": "the request failed"}}, 500)

        return handle

    async def balance(self, caller: Caller, _: web.Request) -> Document:
        """What the account has."""
        live = await self._live.balance(caller.account_id)
        money = documents.balance(0 if live else await self._store.balance(caller.account_id), live)
        return {
            "account_id": units.account_text(caller.account_id),
            "credit_name": self._config().billing.credit_name,
            **money,
        }

    async def limits(self, caller: Caller, _: web.Request) -> Document:
        """The limits in force now and what is left of each."""
        return {
            "key_id": units.key_text(caller.key_id),
            "scopes": [_scope(view) for view in await self._live.limits(caller.key_id)],
        }

    async def calls(self, caller: Caller, request: web.Request) -> Document:
        """The key's own calls."""
        query = _query(request, CallsQuery)
        now_ms = time.time_ns() // 1_000_000
        limit = values.page(query.limit)
        status, error_code = values.status_filter(query.status)
        found = await self._store.calls(
            account_id=caller.account_id,
            key_id=caller.key_id,
            since_ms=values.moment(query.since, "since", now_ms=now_ms) or 0,
            until_ms=values.moment(query.until, "until", now_ms=now_ms),
            status=status,
            error_code=error_code,
            before_id=values.call_id(query.before, "before"),
            limit=limit,
        )
        records = [documents.call(row) for row in found]
        for record in records:
            for field in _OPERATOR_FIELDS:
                del record[field]
        return {"calls": records, "next": records[-1]["id"] if len(records) == limit else None}

    async def usage(self, caller: Caller, request: web.Request) -> Document:
        """What the key used, also beyond the retention of its calls."""
        query = _query(request, UsageQuery)
        by = usage.groups(query.by, ("day", "month", "model"))
        return await usage.document(
            self._store, by, query, time.time_ns() // 1_000_000, account_id=caller.account_id, key_id=caller.key_id
        )

    async def rates(self, caller: Caller, _: web.Request) -> Document:
        """The prices of the models this key may use, discount included."""
        schedule = await self._store.rate_schedule()
        return pricelist.customer_rates(self._config(), caller.models, schedule, time.time_ns() // 1_000_000)


def _query(request: web.Request, kind: type[Q]) -> Q:
    try:
        return commands.from_text(kind, query_fields(request))
    except msgspec.ValidationError as failure:
        raise CommandError("invalid", str(failure), "query") from None


def _scope(view: ScopeView) -> Document:
    return {
        "scope": view.scope,
        "requests_per_minute": _permits(view.requests_limit, view.requests_remaining, view.requests_reset_ns),
        "tokens_per_minute": _permits(view.tokens_limit, view.tokens_remaining, view.tokens_reset_ns),
        "concurrency": None
        if not view.concurrency_limit
        else {
            "limit": view.concurrency_limit,
            "remaining": max(view.concurrency_limit - view.in_flight, 0),
            "in_flight": view.in_flight,
        },
        "daily": _cap(view.daily_limit_nano, view.daily_spent_nano),
        "monthly": _cap(view.monthly_limit_nano, view.monthly_spent_nano),
        "tokens_per_call": dict(view.tokens_per_call) or None,
    }


def _permits(limit: int, remaining: int, reset_ns: int) -> Document | None:
    """None: no limit."""
    if not limit:
        return None
    return {"limit": limit, "remaining": max(remaining, 0), "reset_seconds": round(max(reset_ns, 0) / 1e9, 3)}


def _cap(limit_nano: int, spent_nano: int) -> Document:
    remaining = max(limit_nano - spent_nano, 0)
    return {
        "limit": units.format_credits(limit_nano) if limit_nano else None,
        "spent": units.format_credits(spent_nano),
        "remaining": units.format_credits(remaining) if limit_nano else None,
    }


async def _unknown(request: web.Request) -> web.Response:
    if request.match_info["rest"] in (*ROUTES, DESCRIPTION):
        failure = CommandError("method_not_allowed", "this route answers GET")
        return json_response(failure.document(), failure.status, {"Allow": "GET"})
    return error_response(CommandError("not_found", "no such route of the customer's API"))
