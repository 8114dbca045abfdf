"""/healthz, /readyz and /metrics: what load balancers, supervisors and Prometheus ask."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from relay.config_values import Listen
from relay.control.admin import authorise
from relay.control.failures import CommandError
from relay.control.listening import Runner
from relay.control.responses import error_response, json_response

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def _exposition(metrics: Callable[[], bytes]) -> web.Response:
    return web.Response(body=metrics(), headers={"Content-Type": METRICS_TYPE, "Cache-Control": "no-store"})


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
        return _exposition(metrics)

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", exposition)


class MetricsListener:
    """/metrics on an address of its own, without a token: for a network that only operators reach."""

    def __init__(self, listen: Listen, metrics: Callable[[], bytes]) -> None:
        self._listen = listen
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Binds and serves; OSError when the address cannot be had."""

        async def exposition(_: web.Request) -> web.Response:
            return _exposition(self._metrics)

        app = web.Application(client_max_size=1024)
        app.router.add_get("/metrics", exposition)
        runner = Runner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        listen = self._listen
        site: web.BaseSite
        if listen.unix_path:
            site = web.UnixSite(runner, listen.unix_path)
        else:
            site = web.TCPSite(runner, listen.host, listen.port)
        try:
            await site.start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner

    @property
    def address(self) -> str:
        """Where it listens, with the port that the system gave for port 0."""
        assert self._runner is not None
        bound = self._runner.addresses[0]
        return str(Listen(host=bound[0], port=bound[1])) if isinstance(bound, tuple) else f"unix:{bound}"

    async def stop(self) -> None:
        """Closes it."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
