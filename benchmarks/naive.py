"""The proxy that one writes first: aiohttp server in, aiohttp client out, on uvloop. A contender, not a part of relay.

python benchmarks/naive.py 127.0.0.1:8100 http://127.0.0.1:9000
"""

from __future__ import annotations

import sys

import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "te", "trailer", "upgrade"}


def application(upstream: str) -> web.Application:
    """Forwards everything to `upstream`, bodies read whole, answers streamed as they come."""
    app = web.Application(client_max_size=64 << 20)
    session_key = web.AppKey("session", ClientSession)

    async def session(app: web.Application):  # type: ignore[no-untyped-def]
        connector = TCPConnector(limit=0)
        app[session_key] = ClientSession(connector=connector, timeout=ClientTimeout(total=None), auto_decompress=False)
        yield
        await app[session_key].close()

    async def forward(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        async with app[session_key].request(
            request.method, upstream + request.path_qs, headers=headers, data=body
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
            if answer.headers.get("content-type", "").startswith("text/event-stream"):
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response
            return web.Response(status=answer.status, headers=kept, body=await answer.read())

    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


def main() -> None:
    """Serves until ended."""
    listen, upstream = sys.argv[1:3]
    host, _, port = listen.rpartition(":")
    uvloop.install()
    web.run_app(application(upstream), host=host, port=int(port), access_log=None, print=None, keepalive_timeout=3600)


if __name__ == "__main__":
    main()
