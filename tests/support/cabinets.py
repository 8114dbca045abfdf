"""Small upstreams of OpenAI's dialect that keep files and videos, and fail on demand: by key, or altogether."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    key: str
    body: bytes
    headers: dict[str, str]


Behaviour = Callable[[Asked], Awaitable[web.StreamResponse | None]]


class Cabinet:
    """One account of a provider: what is put in with one key is there for all. `asked` has every request.

    `behaviour` is asked first, before the body is read. `stop` closes the port; `start` opens the same.
    """

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour
        self.asked: list[Asked] = []
        self.made = 0
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def keys(self) -> list[str]:
        """Of the requests, in order."""
        return [asked.key for asked in self.asked]

    async def __aenter__(self) -> Cabinet:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> Cabinet:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = listener.getsockname()[1]
        await web.SockSite(self._runner, listener).start()
        return self

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = Asked(request.method, request.path, key, b"", headers)
        self.asked.append(asked)
        if self.behaviour is not None and (answer := await self.behaviour(asked)) is not None:
            return answer
        asked.body = await request.read()
        kind, _, rest = request.path.removeprefix("/v1/").partition("/")
        if request.method == "POST" and not rest:
            self.made += 1
            rest = f"{kind}-{self.port}-{self.made}"
        document = {"id": rest, "object": kind[:-1], "model": "m", "status": "queued", "seconds": "4", "bytes": 5}
        return web.json_response(document)
