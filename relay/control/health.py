"""/healthz, /readyz and /metrics: what load balancers, supervisors and Prometheus ask."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from relay.control.admin import authorise
from relay.control.failures import CommandError
from relay.control.responses import error_response, json_response

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_routes(
    app: web.Application,
    *,
    not_ready: Callable[[], str | None],
    metrics: Callable[[], bytes] | None = None,
    operator_token: Callable[[], str] | None,
) -> None:
    """Registers the routes.

    not_ready       why no calls should be sent here now ("draining", "store", ...), or None
    metrics         the exposition, or None where there is none; figures about customers: only for the operator
    operator_token  as in `admin.add_routes`
    """

    async def healthz(_: web.Request) -> web.Response:
        return json_response({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        reason = not_ready()
        if reason is not None:
            return json_response({"status": "not ready", "reason": reason}, 503)
        return json_response({"status": "ready"})

    async def exposition(request: web.Request) -> web.Response:
        try:
            authorise(request, operator_token)
        except CommandError as failure:
            return error_response(failure)
        if metrics is None:
            return error_response(CommandError("not_found", "there are no metrics"))
        return web.Response(body=metrics(), headers={"Content-Type": METRICS_TYPE, "Cache-Control": "no-store"})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)
