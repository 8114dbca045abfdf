"""What a realtime session uses beside tokens of its own model: priced or refused, like everywhere."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import WSMsgType, web

from tests.functional.relay_process import Customer, RelayProcess, nano, verified
from tests.functional.setting import RAW_KEY, channel

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONFIG = """
[server]
drain_seconds = 1
[plans.open]
rpm = 0
concurrency = 0
"""
RATES = """
[[rates]]
model = "voice"
input = 4
output = 16
[[rates]]
model = "by-tokens"
input = 2
output = 10
audio_input = 6
"""
SECONDS = 3
SOUND = base64.b64encode(bytes(SECONDS * 48_000)).decode()


class Upstream:
    """A provider's side of sessions: it confirms settings and answers each commit with a transcript."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.usage: Any = None
        self.url = ""

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=("realtime",))
        await socket.prepare(request)
        await socket.send_json({"type": "session.created", "session": {"type": "realtime"}})
        async for message in socket:
            event = json.loads(message.data)
            self.got.append(event)
            if event["type"].endswith("session.update"):
                await socket.send_json({"type": "session.updated", "session": event["session"]})
            elif event["type"] == "input_audio_buffer.commit":
                done: dict[str, Any] = {"type": "conversation.item.input_audio_transcription.completed"}
                done |= {"transcript": "hello", **({"usage": self.usage} if self.usage else {})}
                await socket.send_json(done)
        return socket


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    app = web.Application()
    app.router.add_get("/v1/realtime", made.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield made
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def relay(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RelayProcess]:
    text = CONFIG + channel("voice", "openai", upstream.url, '["voice"]', RAW_KEY) + RATES
    async with verified(tmp_path_factory.mktemp("realtime-prices"), text) as running:
        yield running


def asking(model: str | None, *, ga: bool) -> dict[str, Any]:
    transcription = {"language": "en"} if model is None else {"model": model}
    if ga:
        return {"type": "session.update", "session": {"audio": {"input": {"transcription": transcription}}}}
    return {"type": "session.update", "session": {"input_audio_transcription": transcription}}


async def session(customer: Customer, *messages: dict[str, Any], binary: bool = False) -> list[dict[str, Any]]:
    """The upstream's answers to messages, one to each but to sound, in one session."""
    url = customer.relay.base_url.replace("http", "ws") + "/v1/realtime?model=voice"
    answers = []
    fields = {"Authorization": f"Bearer {customer.secret}"}
    async with aiohttp.ClientSession() as client, client.ws_connect(url, headers=fields) as socket:
        assert (await socket.receive_json())["type"] == "session.created"
        for message in messages:
            if binary:
                await socket.send_bytes(json.dumps(message).encode())
            else:
                await socket.send_json(message)
            if message["type"] != "input_audio_buffer.append":
                got = await asyncio.wait_for(socket.receive(), 10)
                assert got.type is WSMsgType.TEXT, got
                answers.append(json.loads(got.data))
    return answers


SAID = ({"type": "input_audio_buffer.append", "audio": SOUND}, {"type": "input_audio_buffer.commit"})
TOKENS = {"type": "tokens", "input_tokens": 30, "output_tokens": 4, "total_tokens": 34}
# What asks, what the provider reports, the bill, nano-credits.
CHARGED: list[tuple[dict[str, Any], Any, dict[str, int], int]] = [
    (asking("whisper-1", ga=True), {"type": "duration", "seconds": 2.4}, {"whisper-1 video_second": 3}, 300_000),
    (asking(None, ga=False), {"type": "duration", "seconds": 3}, {"whisper-1 video_second": 3}, 300_000),
    (asking("by-tokens", ga=False), TOKENS, {"by-tokens audio_input": 30, "by-tokens output": 4}, 220_000),
    (
        asking("gpt-4o-transcribe", ga=True), TOKENS,
        {"gpt-4o-transcribe audio_input": 30, "gpt-4o-transcribe output": 4}, 220_000,
    ),
    # Nothing reported, another unit, or more than was said: our own count.
    (asking("whisper-1", ga=True), None, {"whisper-1 video_second": 3}, 300_000),
    (asking("whisper-1", ga=True), {"type": "duration", "seconds": 1e6}, {"whisper-1 video_second": 3}, 300_000),
    (
        asking("by-tokens", ga=True), {"type": "duration", "seconds": 3},
        {"by-tokens audio_input": 30, "by-tokens output": 2}, 200_000,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("asks", "usage", "line", "cost"), CHARGED)
async def test_finding_clients_F2_transcripts_of_sessions_are_charged(
    relay: RelayProcess, upstream: Upstream, asks: dict[str, Any], usage: Any, line: dict[str, int], cost: int
) -> None:
    customer = await relay.customer("1")
    upstream.usage = usage
    assert [event["type"] for event in await session(customer, asks, *SAID)] == [
        "session.updated", "conversation.item.input_audio_transcription.completed"
    ]  # fmt: skip
    call = await customer.call()
    assert (nano(call["cost"]), call["status"], call["error_code"]) == (cost, 101, None)
    assert await customer.settled_nano() == 10**9 - cost
    bill = (await relay.command("calls show", id=str(call["id"])))["bill"]
    assert {row["what"].removeprefix("transcription "): row["quantity"] for row in bill} == line


async def test_transcripts_of_one_session_are_one_line(relay: RelayProcess, upstream: Upstream) -> None:
    customer = await relay.customer("1")
    upstream.usage = {"type": "duration", "seconds": 3}
    await session(customer, asking("whisper-1", ga=True), *SAID, *SAID)
    assert nano((await customer.call())["cost"]) == 600_000


async def test_a_session_whose_transcripts_use_the_balance_up_ends(relay: RelayProcess, upstream: Upstream) -> None:
    """Each transcript costs .0003: after some thirty of them nothing is left to begin a response with."""
    customer = await relay.customer("0.01")
    upstream.usage = {"type": "duration", "seconds": 3}
    many = [message for _ in range(60) for message in SAID]
    with pytest.raises(AssertionError):
        await session(customer, asking("whisper-1", ga=True), *many)
    call = await customer.call()
    assert call["error_code"] == "balance_exhausted"
    assert 0 < nano(call["cost"]) <= 10_500_000


TOOLS = [{"type": "function", "name": "f", "parameters": {}}, {"type": "web_search"}]
# What is refused, its code and field.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (asking("no-such-model", ga=True), "tool_unpriced", "session.audio.input.transcription"),
    ({"type": "session.update", "session": {"tools": TOOLS}}, "tool_unpriced", "session.tools.web_search"),
    (
        {"type": "session.update", "session": {"tools": [{"type": "x_search"}]}},
        "tool_unpriced", "session.tools.x_search",
    ),
    (
        {"type": "response.create", "response": {"tools": [{"type": "file_search"}]}},
        "tool_unpriced", "response.tools.file_search",
    ),
]  # fmt: skip


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("asks", "code", "field"), REFUSED)
async def test_finding_clients_F5_what_has_no_price_is_refused_in_sessions(
    relay: RelayProcess, upstream: Upstream, asks: dict[str, Any], code: str, field: str, binary: bool
) -> None:
    """The message stays here; the session goes on."""
    customer = await relay.customer("1")
    upstream.got.clear()
    upstream.usage = None
    plain = {"type": "session.update", "session": {"tools": TOOLS[:1]}}
    first, second = await session(customer, asks | {"event_id": "evt_7"}, plain, binary=binary)
    assert first["type"] == "error"
    assert (first["error"]["code"], first["error"]["param"], first["error"]["event_id"]) == (code, field, "evt_7")
    assert second["type"] == "session.updated"
    assert upstream.got == [plain]
    assert nano((await customer.call())["cost"]) == 0


async def test_finding_money_M1_a_restricted_key_transcribes_by_its_models_alone(
    relay: RelayProcess, upstream: Upstream
) -> None:
    customer = await relay.customer("1", models=["voice", "by-tokens"])
    upstream.got.clear()
    upstream.usage = TOKENS
    asks = asking("by-tokens", ga=True)
    first, second = await session(customer, asking("whisper-1", ga=True), asks)
    assert first["error"]["code"] == "model_not_allowed"
    assert second["type"] == "session.updated"
    assert upstream.got == [asks]
