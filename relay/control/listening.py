"""aiohttp's server for the operator's own listeners, with an error page that quotes nothing of what was sent."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from relay.control.failures import CommandError
from relay.control.responses import error_response, json_response


class Handler(RequestHandler):
    """aiohttp's own page shows the bytes at fault, its version and Python's."""

    __slots__ = ()

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status == 400:
            response = error_response(CommandError("invalid", "the request is not valid HTTP/1.1"))
        else:
            response = json_response({"error": {"code": "internal", "message": "the request failed"}}, status)
        response.headers["Server"] = "relay"
        response.force_close()
        return response


class Runner(web.AppRunner):
    """Serves an application with it."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()

        class Server(web.Server):
            def __call__(self) -> RequestHandler:
                return Handler(self, loop=self._loop, **self._kwargs)

        return Server(
            made.request_handler, request_factory=made.request_factory, loop=asyncio.get_running_loop(), **made._kwargs
        )
