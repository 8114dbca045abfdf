"""Small upstreams of OpenAI's dialect that fail on demand: by key, for a while, or altogether."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

from aiohttp import web

ANSWER = (
    b'{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"ok"},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}'
)

Behaviour = Callable[["Provider", str, str], Awaitable[web.StreamResponse | None]]


class Provider:
    """Answers every POST with one small chat answer, unless `behaviour(provider, key, model)` answers something else.

    `calls` counts requests by upstream key. `stop` resets every connection and closes the port; `start` opens the same.
    """

    def __init__(self, behaviour: Behaviour | None = None, seconds: float = 0.0) -> None:
        self.behaviour = behaviour
        self.seconds = seconds
        self.calls: Counter[str] = Counter()
        self.answered = 0
        self.headers: list[dict[str, str]] = []  # of the last requests
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def start(self) -> Provider:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        listener = socket.create_server(("127.0.0.1", self.port), backlog=4096)
        self.port = listener.getsockname()[1]
        await web.SockSite(self._runner, listener).start()
        return self

    async def stop(self) -> None:
        """As if killed: calls in flight see their connection reset."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        for site in list(runner.sites):
            await site.stop()
        server = runner.server
        for connection in list(server.connections) if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    async def __aenter__(self) -> Provider:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.calls[key] += 1
        self.headers = [*self.headers[-99:], {name.lower(): value for name, value in request.headers.items()}]
        if self.behaviour is not None:
            answer = await self.behaviour(self, key, body["model"])
            if answer is not None:
                return answer
        if self.seconds:
            await asyncio.sleep(self.seconds)
        self.answered += 1
        return web.Response(body=ANSWER, content_type="application/json")


def refusal(status: int, code: str, **headers: str) -> web.Response:
    """An error as OpenAI words it."""
    return web.json_response(
        {"error": {"message": "no", "type": code, "code": code, "param": None}},
        status=status,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
