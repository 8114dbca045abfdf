"""server.stream_heartbeat_seconds: a stream whose provider is silent begins with comments."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from relay.simulator import Running
from tests.functional.clients import async_anthropic, async_openai
from tests.functional.raw_upstream import Close, Exchange, Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.setting import config_text
from tests.support import http1
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="session")

BEAT = b": waiting for the provider\n\n"
USAGE = {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}
EVENTS: dict[str, list[bytes]] = {
    "chat": [
        b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n',
        b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":%s}\n\n'
        % json.dumps(USAGE).encode(),
        b"data: [DONE]\n\n",
    ],
    "messages": [
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant",'
        b'"content":[],"model":"raw-claude","usage":{"input_tokens":11,"output_tokens":1}}}\n\n',
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
        b'"text":"Hello"}}\n\n',
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        b'"usage":{"output_tokens":2}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ],
    "generate": [
        b'data: {"candidates":[{"content":{"parts":[{"text":"Hello"}],"role":"model"},"finishReason":"STOP"}],'
        b'"usageMetadata":{"promptTokenCount":11,"candidatesTokenCount":2,"totalTokenCount":13}}\n\n',
    ],
}
MODELS = {"chat": "raw-chat", "messages": "raw-claude", "generate": "raw-gemini"}
FIRST = {"chat": "raw-first", "messages": "raw-claude-first", "generate": "raw-gemini-first"}
DIALECTS = list(EVENTS)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def beating(
    simulator: Running, raw: RawUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RelayProcess]:
    text = config_text(simulator.base_url, raw.base_url)
    text = text.replace("[server]\n", "[server]\nstream_heartbeat_seconds = 0.25\n", 1)
    relay = await RelayProcess(tmp_path_factory.mktemp("beating"), text).start()
    yield relay
    assert relay.faults == []
    verified = await relay.command("ledger verify")
    assert await relay.stop() == 0
    assert verified["ok"], verified


@pytest_asyncio.fixture(loop_scope="session")
async def paying(beating: RelayProcess) -> Customer:
    return await beating.customer()


def request(dialect: str, model: str, text: str, secret: str, version: str = "1.1", *, stream: bool = True) -> bytes:
    said = [{"role": "user", "content": text}]
    body: dict[str, Any] = {"model": model, "messages": said, "stream": stream}
    path = "/v1/chat/completions"
    if dialect == "messages":
        path, body["max_tokens"] = "/v1/messages", 50
    if dialect == "generate":
        path = f"/v1beta/models/{model}:" + ("streamGenerateContent?alt=sse" if stream else "generateContent")
        body = {"contents": [{"role": "user", "parts": [{"text": text}]}]}
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/{version}\r\nHost: relay\r\nAuthorization: Bearer {secret}\r\n"
    return f"{head}anthropic-version: 2023-06-01\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def answer_of(dialect: str, framing: str) -> list[bytes]:
    """Whole events, as one write each."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    events = EVENTS[dialect]
    if framing == "chunked":
        parts = [b"%x\r\n%b\r\n" % (len(event), event) for event in events]
        return [head + b"Transfer-Encoding: chunked\r\n\r\n", *parts, b"0\r\n\r\n"]
    return [head + b"Content-Length: %d\r\n\r\n" % sum(map(len, events)), *events]


async def waited(
    customer: Customer, dialect: str, gate: asyncio.Event, *, model: str = "", text: str, version: str = "1.1"
) -> http1.Message:
    """What a client gets whose provider answers only after two heartbeats."""
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(request(dialect, model or MODELS[dialect], text, customer.secret, version))
        await client.until(lambda: client.received.count(BEAT) >= 2, timeout_seconds=20)
        gate.set()
        return await client.response(timeout_seconds=20)


def silent(raw: RawUpstream, *steps: Any) -> tuple[str, Exchange, asyncio.Event]:
    gate = asyncio.Event()
    text, exchange = raw.script(Gate(gate), *steps)
    return text, exchange, gate


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("framing", ["chunked", "length"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_comments_then_the_answer(
    paying: Customer, raw: RawUpstream, dialect: str, framing: str, version: str
) -> None:
    text, _, gate = silent(raw, *answer_of(dialect, framing))
    got = await waited(paying, dialect, gate, text=text, version=version)
    assert (got.status, got.complete) == (200, True)
    assert dict(got.headers)["content-type"] == "text/event-stream"
    beats = got.body.count(BEAT)
    assert beats >= 2
    assert got.body == BEAT * beats + b"".join(EVENTS[dialect])
    record = await paying.call()
    assert (record["status"], record["error_code"], record["stream"]) == (200, None, True)
    assert (record["input_tokens"], record["output_tokens"], record["usage_source"]) == (11, 2, "upstream")
    assert dict(got.headers)["x-relay-request-id"] == record["id"]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_another_channel_is_still_tried(paying: Customer, raw: RawUpstream, dialect: str) -> None:
    text, _, gate = silent(raw, b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno")
    got = await waited(paying, dialect, gate, model=FIRST[dialect], text=text)
    assert (got.status, got.complete) == (200, True)
    assert got.body.count(BEAT) >= 2
    record = await paying.call()
    assert (record["attempts"], record["error_code"]) == (2, None)
    assert record["output_tokens"] > 0


def whole(status: str, body: bytes, *fields: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "", ""])
    return head.encode() + body


SAYS_EVENTS = "Content-Type: text/event-stream"
FAULTS: dict[str, tuple[list[Any], str]] = {
    "closed": ([Close()], "upstream_failed"),
    "an error": ([whole("400 No", b'{"error":{"message":"a"}}', "Content-Type: application/json")], "upstream_error"),
    "its account": ([whole("401 No", b"no")], "upstream_account"),
    "a page": ([whole("200 OK", b"<html></html>", "Content-Type: text/html")], "upstream_garbage"),
    "a document": ([whole("200 OK", b'{"choices":1}')], "upstream_garbage"),
    "compressed": (
        [whole("200 OK", gzip.compress(b"data: {}\n\n"), SAYS_EVENTS, "Content-Encoding: gzip")], "upstream_garbage",
    ),
    "no HTTP": ([b"nonsense\r\n\r\n"], "upstream_garbage"),
}  # fmt: skip


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_what_fails_is_an_error_event(paying: Customer, raw: RawUpstream, dialect: str, fault: str) -> None:
    before = await paying.available_nano()
    steps, code = FAULTS[fault]
    text, _, gate = silent(raw, *steps)
    got = await waited(paying, dialect, gate, text=text)
    assert (got.status, got.complete) == (200, False)  # no last chunk: nobody takes it for a whole answer
    beats = got.body.count(BEAT)
    event = got.body.removeprefix(BEAT * beats)
    assert event.startswith(b"event: error\n" if dialect == "messages" else b"data: ")
    document = json.loads(event.partition(b"data: ")[2])
    assert "error" in document
    record = await paying.call()
    assert (record["status"], record["error_code"], record["cost"]) == (200, code, "0")
    assert await paying.settled_nano() == before


async def test_sdks_raise_on_it(paying: Customer, raw: RawUpstream) -> None:
    async def chat(client: openai.AsyncOpenAI, said: Any) -> None:
        async for _ in await client.chat.completions.create(model="raw-chat", messages=said, stream=True):
            pass

    async def messages(client: anthropic.AsyncAnthropic, said: Any) -> None:
        async with client.messages.stream(model="raw-claude", max_tokens=50, messages=said) as events:
            await events.get_final_message()

    for call, made, error in (
        (chat, async_openai(paying), openai.APIError),
        (messages, async_anthropic(paying), anthropic.APIError),
    ):
        text, _, gate = silent(raw, Close())
        asyncio.get_running_loop().call_later(1.0, gate.set)
        async with made as client:
            with pytest.raises(error) as raised:
                await call(client, [{"role": "user", "content": text}])
            assert "provider" in str(raised.value).lower()


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_client_that_leaves_while_it_waits(paying: Customer, raw: RawUpstream, dialect: str) -> None:
    before = await paying.available_nano()
    text, exchange, gate = silent(raw)
    async with await RawClient.connect("127.0.0.1", paying.relay.port) as client:
        await client.send(request(dialect, MODELS[dialect], text, paying.secret))
        await client.until_contains(BEAT, timeout_seconds=20)
    record = await paying.call()
    gate.set()
    assert (record["status"], record["error_code"], record["cost"]) == (499, "client_gone", "0")
    assert await paying.settled_nano() == before
    del exchange


async def test_only_streams_and_only_where_it_is_on(paying: Customer, relay: RelayProcess, raw: RawUpstream) -> None:
    for customer, stream in ((paying, False), (await relay.customer(), True)):
        text, _, gate = silent(raw, b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno")
        async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
            await client.send(request("chat", "raw-chat", text, customer.secret, stream=stream))
            await asyncio.sleep(1.0)
            assert client.received == b""
            gate.set()
            assert (await client.response(timeout_seconds=20)).status == 500
