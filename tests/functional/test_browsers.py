"""A real browser: SDKs in a page of another origin, and answers of upstreams opened on the relay's own.

Chromium is driven by tests/clients/node/browser.mjs. Without it the tests are skipped; RELAY_TEST_CLIENTS=required
makes them fail instead.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from relay.simulator import Running
from tests.clients import HERE, Driver, chromium, node
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.setting import SIM_KEY, channel

pytestmark = pytest.mark.asyncio(loop_scope="session")

BROWSER = HERE / "node" / "browser.mjs"
MODELS = {"chat": "gpt-4o", "responses": "gpt-4o", "messages": "claude-sonnet-5", "google": "gemini-2.5-flash"}
CONFIG = """
[server]
drain_seconds = 1
cors_origins = {origins}
[plans.open]
rpm = 0
concurrency = 0
[jobs]
poll_seconds = 3600
"""
XHTML = "http://www.w3.org/1999/xhtml"
RATES = "".join(f'[[rates]]\nmodel = "{name}"\ninput = 1\noutput = 2\n' for name in {*MODELS.values(), "poison"})


class Poison:
    """A provider whose files, results and answers are made for browsers: each tells a collector if it runs."""

    def __init__(self, collector: str) -> None:
        run = f"fetch('{collector}/ran',{{mode:'no-cors'}})"
        self.page = f"<!doctype html><title>x</title><script>{run}</script>"
        self.contents = {
            "file-html": ("text/html", self.page),
            "file-xhtml": (
                "application/xhtml+xml",
                f'<html xmlns="{XHTML}"><body><script>{run}</script></body></html>',
            ),
            "file-svg": ("image/svg+xml", f'<svg xmlns="http://www.w3.org/2000/svg"><script>{run}</script></svg>'),
            "file-sniffed": ("*/*", self.page),
            "file-worker": ("text/javascript", f"{run}; self.addEventListener('install', () => {run});"),
        }
        self.seen: list[str] = []
        self.port = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.text()
        path = request.path
        self.seen.append(path)
        if path == "/v1/files":
            name = next(name for name in self.contents if f'"{name}"' in body)
            return web.json_response({"id": name, "object": "file", "bytes": 9, "purpose": "user_data"})
        if path.endswith("/content"):
            kind, text = self.contents[path.split("/")[3]]
            return web.Response(body=text.encode(), headers={"Content-Type": kind})
        message = {"role": "assistant", "type": "message", "content": [{"type": "text", "text": self.page}]}
        usage = {"input_tokens": 5, "output_tokens": 9, "prompt_tokens": 5, "completion_tokens": 9}
        if path.endswith("/results"):
            result = {"type": "succeeded", "message": {**message, "model": "poison", "usage": usage}}
            line = json.dumps({"custom_id": "a", "result": result}) + "\n"
            return web.Response(text=line, content_type="text/html")
        if path.startswith("/v1/messages/batches"):
            url = f"http://127.0.0.1:{self.port}/v1/messages/batches/msgbatch_poison/results"
            counts = {"processing": 0, "succeeded": 1, "errored": 0, "canceled": 0, "expired": 0}
            times = dict.fromkeys(("created_at", "expires_at", "ended_at"), "2030-01-01T00:00:00Z")
            return web.json_response(
                {"id": "msgbatch_poison", "type": "message_batch", "processing_status": "ended", "results_url": url,
                 "request_counts": counts, **times}
            )  # fmt: skip
        if "as an error" in body:
            return web.Response(status=400, text=self.page, content_type="text/html")
        choice = {"index": 0, "message": {"role": "assistant", "content": self.page}, "finish_reason": "stop"}
        document = {"id": "c", "object": "chat.completion", "model": "poison", "choices": [choice], "usage": usage}
        return web.Response(text=json.dumps(document), content_type="text/html")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser() -> AsyncIterator[Driver]:
    async with Driver(node(), str(BROWSER), chromium()) as driver:
        yield driver


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def origin(browser: Driver) -> str:
    return str((await browser.ask(step="origin"))["origin"])


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def poison(origin: str) -> AsyncIterator[Poison]:
    provider = Poison(origin)
    await provider.start()
    yield provider
    await provider.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def open_relay(
    simulator: Running, poison: Poison, origin: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RelayProcess]:
    bad = f"http://127.0.0.1:{poison.port}"
    text = CONFIG.format(origins=json.dumps([origin])) + "".join(
        [
            channel("poison", "openai", bad + "/v1", '["poison"]', "nobody"),
            channel("poison-claude", "anthropic", bad, '["poison"]', "nobody"),
            channel("sim", "openai", simulator.base_url + "/v1", '["gpt-4o"]', SIM_KEY, "priority = 1"),
            channel("sim-claude", "anthropic", simulator.base_url, '["claude-sonnet-5"]', SIM_KEY, "priority = 1"),
            channel("sim-gemini", "gemini", simulator.base_url, '["gemini-2.5-flash"]', SIM_KEY),
        ]
    )
    relay = await RelayProcess(tmp_path_factory.mktemp("browsers"), text + RATES).start()
    yield relay
    assert relay.faults == []
    assert await relay.stop() == 0


@pytest_asyncio.fixture(loop_scope="session")
async def paying(open_relay: RelayProcess) -> Customer:
    return await open_relay.customer()


def sdk(customer: Customer, client: str, **more: Any) -> dict[str, Any]:
    return {
        "step": "sdk", "client": client, "base": customer.relay.base_url, "key": customer.secret,
        "model": MODELS.get(client, "gpt-4o"), "text": "Tell me something of forty words or so.", **more,
    }  # fmt: skip


@pytest.mark.parametrize("client", MODELS)
async def test_finding_clients_F9_sdks_stream_in_a_page(browser: Driver, paying: Customer, client: str) -> None:
    got = await browser.ask(**sdk(paying, client))
    assert "error" not in got, got
    assert got["pieces"] > 3
    assert len(got["text"]) > 20
    record = await paying.call()
    assert (record["status"], record["stream"], record["output_tokens"]) == (200, True, got["output"])


@pytest.mark.parametrize("client", MODELS)
async def test_finding_clients_F9_sdks_in_a_page_can_read_refusals(
    browser: Driver, open_relay: RelayProcess, client: str
) -> None:
    nobody = Customer(open_relay, "", "", "sk-" + "x" * 12 + "-" + "y" * 36)
    got = await browser.ask(**sdk(nobody, client))
    assert got["error"]["status"] == 401, got
    poor = await open_relay.customer("0")
    got = await browser.ask(**sdk(poor, client))
    assert got["error"]["status"] == 402, got


async def test_finding_clients_F9_fields_and_model_lists_in_a_page(browser: Driver, paying: Customer) -> None:
    got = await browser.ask(**sdk(paying, "headers"))
    assert got["id"].startswith("call_"), got
    assert {"server-timing", "x-relay-request-id", "content-type"} <= set(got["names"])
    got = await browser.ask(**sdk(paying, "models"))
    assert "gpt-4o" in got["models"]


async def test_finding_clients_F9_other_pages_read_nothing(browser: Driver, relay: RelayProcess) -> None:
    """A relay that names no origins: the browser keeps the answer from the page."""
    got = await browser.ask(**sdk(await relay.customer(), "chat"))
    assert got["error"]["status"] is None
    assert got["error"]["name"] == "APIConnectionError"


# -- what upstreams made for browsers, on the relay's origin


async def upload(customer: Customer, name: str) -> str:
    form = aiohttp.FormData({"purpose": "user_data"})
    form.add_field("file", b"any", filename=name)
    headers = {"Authorization": f"Bearer {customer.secret}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(customer.relay.base_url + "/v1/files", data=form, headers=headers) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return f"{customer.relay.base_url}/v1/files/{(await answer.json())['id']}/content"


async def batch(customer: Customer) -> str:
    params = {"model": "poison", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
    base = customer.relay.base_url + "/v1/messages/batches"
    headers = {"x-api-key": customer.secret, "anthropic-version": "2023-06-01"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.post(base, json={"requests": [{"custom_id": "a", "params": params}]}) as answer:
            assert answer.status == 200, await answer.text()
            name = (await answer.json())["id"]
        return f"{base}/{name}/results"


def chat(words: str) -> dict[str, Any]:
    body = {"model": "poison", "messages": [{"role": "user", "content": words}]}
    return {"method": "POST", "body": json.dumps(body)}


@pytest.mark.parametrize(
    "what", ["file-html", "file-xhtml", "file-svg", "file-sniffed", "a batch result", "an answer", "an error"]
)
async def test_finding_wire_L3_nothing_runs_on_this_origin(
    browser: Driver, paying: Customer, poison: Poison, what: str
) -> None:
    more: dict[str, Any] = {}
    status = 200
    if what.startswith("file"):
        url = await upload(paying, what)
    elif what == "a batch result":
        url = await batch(paying)
    else:
        url = paying.relay.base_url + "/v1/chat/completions"
        more = chat("Hello" if what == "an answer" else "Hello as an error")
        status = 200 if what == "an answer" else 400
    ask = {"step": "open", "url": url, "key": paying.secret, **more}
    # The test can see it: without the relay's guards it does run.
    got = await browser.ask(**ask, way="bare")
    assert got["status"] == status, got
    assert got["ran"] > 0, got
    # A browser that does not say what it asks for.
    got = await browser.ask(**ask, way="old")
    assert (got["status"], got["ran"]) == (status, 0), got
    # One that does: it gets nothing, and the provider is not asked.
    seen = len(poison.seen)
    got = await browser.ask(**{**ask, "method": None}, way="direct")
    assert (got["status"], got["ran"]) == (403 if not more else 405, 0), got
    for element in ("iframe", "object", "embed", "script"):
        got = await browser.ask(step="embed", url=url, key=paying.secret, **{"as": element})
        assert got == {"ran": 0}, element
    assert len(poison.seen) == seen


async def test_finding_wire_L3_no_service_worker_on_this_origin(
    browser: Driver, paying: Customer, poison: Poison, origin: str
) -> None:
    got = await browser.ask(step="worker", base=origin, url="/worker.js", key="")
    assert got["registered"] is True, got  # elsewhere it works
    url = await upload(paying, "file-worker")
    seen = len(poison.seen)
    got = await browser.ask(step="worker", base=paying.relay.base_url, url=url, key=paying.secret)
    assert got == {"registered": False, "ran": 0}
    got = await browser.ask(step="embed", url=url, key=paying.secret, **{"as": "script"})
    assert got == {"ran": 0}
    assert len(poison.seen) == seen
