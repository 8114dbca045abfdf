"""Messages of realtime sessions in unusual forms: what is charged, what is told of the account, how it ends."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import WSCloseCode, WSMsgType, web

from tests.functional.relay_process import Customer, RelayProcess, eventually, nano, verified
from tests.functional.setting import RAW_KEY, channel

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONFIG = """
[server]
drain_seconds = 1
[timeouts]
stream_idle_seconds = 1
[plans.open]
rpm = 0
concurrency = 0
"""
RATE = """
[[rates]]
model = "voice"
input = 4
output = 16
"""
Script = Callable[[web.WebSocketResponse, web.Request], Awaitable[None]]


class Upstream:
    """A provider whose sessions are what the test says."""

    script: Script

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        await self.script(socket, request)
        return socket


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served() -> AsyncIterator[tuple[Upstream, str]]:
    upstream = Upstream()
    app = web.Application()
    app.router.add_get("/v1/realtime", upstream.serve)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield upstream, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


@pytest.fixture
def upstream(served: tuple[Upstream, str]) -> Upstream:
    return served[0]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def relay(served: tuple[Upstream, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RelayProcess]:
    configured = CONFIG + channel("voice", "openai", served[1], '["voice"]', RAW_KEY) + RATE
    async with verified(tmp_path_factory.mktemp("messages"), configured) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def customer(relay: RelayProcess) -> Customer:
    return await relay.customer("1")


def opened(client: aiohttp.ClientSession, customer: Customer) -> Any:
    url = customer.relay.base_url.replace("http", "ws") + "/v1/realtime?model=voice"
    return client.ws_connect(url, headers={"Authorization": f"Bearer {customer.secret}"})


async def send(socket: Any, event: dict[str, Any], *, binary: bool) -> None:
    text = json.dumps(event)
    await (socket.send_bytes(text.encode()) if binary else socket.send_str(text))


DELTA = {"type": "response.output_text.delta", "delta": "word" * 40}


def done(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    usage = {"input_tokens": input_tokens, "output_tokens": output_tokens}
    return {"type": "response.done", "response": {"status": "completed", "usage": usage}}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("of_upstream", [False, True])
async def test_binary_events_are_charged_like_text(
    customer: Customer, upstream: Upstream, binary: bool, of_upstream: bool
):
    """A long prompt, which the report is believed for because it was seen, and what the upstream reports."""

    async def script(socket: web.WebSocketResponse, _: web.Request) -> None:
        await socket.receive()
        for event in ({"type": "response.created"}, DELTA, done(60_000, 40)):
            await send(socket, event, binary=of_upstream)
        await socket.receive()

    upstream.script = script
    async with aiohttp.ClientSession() as client, opened(client, customer) as socket:
        await send(socket, {"type": "response.create", "response": {"instructions": "word " * 60_000}}, binary=binary)
        for _ in range(3):
            got = await socket.receive(5)
            assert got.type is (WSMsgType.BINARY if of_upstream else WSMsgType.TEXT)
    record = await customer.call()
    assert (record["input_tokens"], record["output_tokens"], record["usage_source"]) == (60_000, 40, "upstream")
    assert nano(record["cost"]) == 60_000 * 4_000 + 40 * 16_000


async def test_output_of_a_response_that_nobody_announced_is_counted(customer: Customer, upstream: Upstream):
    async def script(socket: web.WebSocketResponse, _: web.Request) -> None:
        await send(socket, DELTA, binary=False)
        await socket.receive()

    upstream.script = script
    async with aiohttp.ClientSession() as client, opened(client, customer) as socket:
        assert (await socket.receive_json(timeout=5)) == DELTA
    record = await customer.call()
    assert (record["input_tokens"], record["output_tokens"], record["usage_source"]) == (0, 41, "estimated")


@pytest.mark.parametrize("binary", [False, True])
async def test_a_transcription_that_fails_tells_nothing_of_the_account(
    customer: Customer, upstream: Upstream, binary: bool
):
    error = {"code": "billing_not_active", "message": "Your account is not active, org-operator", "param": None}
    failed = {"type": "conversation.item.input_audio_transcription.failed", "item_id": "item_1", "error": error}

    async def script(socket: web.WebSocketResponse, _: web.Request) -> None:
        await send(socket, failed, binary=binary)
        await socket.receive()

    upstream.script = script
    async with aiohttp.ClientSession() as client, opened(client, customer) as socket:
        got = await socket.receive(5)
    assert got.type is (WSMsgType.BINARY if binary else WSMsgType.TEXT)
    event = json.loads(got.data)
    assert (event["type"], event["item_id"]) == (failed["type"], "item_1")
    assert event["error"]["code"] == "upstream_account"
    assert "org-operator" not in str(got.data)


async def test_an_upstream_that_takes_nothing_ends_the_session(customer: Customer, upstream: Upstream):
    """The client is not read meanwhile, so nobody sees that it has left: hold and connections were kept for ever."""
    over = asyncio.Event()

    async def script(_: web.WebSocketResponse, request: web.Request) -> None:
        assert request.transport is not None
        request.transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()

    async def sent(socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            await send(socket, {"type": "conversation.item.create", "item": "x" * 500_000}, binary=False)

    async def let_go() -> bool:
        money = await customer.money()
        return nano(money["held"]) == 0 and len(await customer.relay.calls(key=customer.key)) == 1

    upstream.script = script
    try:
        async with aiohttp.ClientSession() as client, opened(client, customer) as socket:
            with pytest.raises((TimeoutError, ConnectionError)):
                await asyncio.wait_for(sent(socket), 1)
        await eventually(let_go, 20)
    finally:
        over.set()
    assert (await customer.call())["error_code"] == "upstream_stalled"


async def test_a_close_that_nobody_waits_to_be_answered_is_the_end(relay: RelayProcess, upstream: Upstream):
    """Whether our answer to the close could still be written decided what the record said."""

    async def script(socket: web.WebSocketResponse, request: web.Request) -> None:
        await socket.send_bytes(b"{}")
        assert request.transport is not None
        request.transport.write(b"\x88\x02\x03\xe9")  # type: ignore[attr-defined]
        request.transport.close()

    upstream.script = script
    someone = await relay.customer("1")
    for _ in range(20):
        async with aiohttp.ClientSession() as client, opened(client, someone) as socket:
            await socket.receive(5)
            assert (await socket.receive(5)).type is WSMsgType.CLOSE
            assert socket.close_code == WSCloseCode.GOING_AWAY
    assert {row["error_code"] for row in await someone.calls(20)} == {None}
