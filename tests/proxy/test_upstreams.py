"""Requests that belong to no model: where they go, and with which key."""

import ssl

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from relay import _fastpath, config
from relay.proxy import catalogue
from relay.proxy.addresses import Addresses
from relay.proxy.connect import Connector
from relay.proxy.hooks import Hooks
from relay.proxy.upstreams import Upstreams, without_model


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("https://x.example/v1", "https://x.example/v1"),
        ("https://x.example/openai/deployments/{model}", "https://x.example/openai"),
        ("https://x.example/{model}/v1", "https://x.example/v1"),
    ],
)
def test_without_model(base_url: str, expected: str) -> None:
    assert without_model(base_url) == expected


async def test_files_beside_deployments() -> None:
    seen: list[tuple[str, str | None, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.raw_path, request.headers.get("api-key"), request.headers.get("Authorization")))
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        channel = f"""
            [[channels]]
            name = "azure"
            api = "openai"
            base_url = "http://127.0.0.1:{server.port}/openai/deployments/{{model}}"
            key_header = "api-key"
            query = "api-version=1"
            api_keys = ["literal"]
            models = ["m"]
        """
        tls = ssl.create_default_context()
        hooks = Hooks(Addresses(()), Connector())
        engine = _fastpath.Engine(hooks, b"pepper", catalogue.default_tables(), {}, 1)
        upstreams = Upstreams(tls, engine, hooks)
        parsed = config.parse(channel)
        upstreams.configure(parsed, [catalogue.build_channel(parsed, parsed.channels[0], tls)])
        try:
            await upstreams.fetch(upstreams.by_name["azure"], "GET", "/files", query="limit=2")
            await upstreams.fetch(upstreams.by_name["azure"], "GET", "/files")
        finally:
            await upstreams.close()
    assert seen == [
        ("/openai/files?limit=2&api-version=1", "literal", None),
        ("/openai/files?api-version=1", "literal", None),
    ]
