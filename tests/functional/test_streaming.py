"""What passes while a stream runs: the first byte and every event at once, and the end when the client is gone."""

import asyncio
import contextlib
import gc
import socket
import threading
import time
from typing import Any

import pytest

from relay.simulator import Running
from relay.simulator.book import Entry
from tests.functional.clients import async_anthropic, async_openai, google, sync_anthropic, sync_openai
from tests.functional.raw_upstream import Close, Exchange, Gate, Passed, RawUpstream, Reset, Step
from tests.functional.relay_process import Customer, eventually, nano
from tests.functional.setting import cost_nano
from tests.functional.streams import (
    CHAT,
    COMPLETIONS,
    DOCUMENTS,
    GEMINI,
    GEMINI_ARRAY,
    MESSAGES,
    RESPONSES,
    STREAMS,
    Sample,
    head,
)
from tests.support.http1 import STREAM_HEAD, chunk_bytes, request_bytes
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # The SDK's own subclassing of aiohttp's session.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]


def payload(received: bytes) -> bytes:
    """What a client has of a body so far, without chunk framing."""
    head_, _, body = received.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head_.lower():
        return body
    found, at = b"", 0
    while (line_end := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:line_end].split(b";")[0], 16)
        found += body[line_end + 2 : line_end + 2 + size]
        at = line_end + 2 + size + 2
    return found


# -- nothing waits


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("sample", [*STREAMS, *DOCUMENTS], ids=lambda sample: sample.name)
async def test_each_event_arrives_before_the_next_is_sent(
    customer: Customer, raw: RawUpstream, sample: Sample, framing: str
):
    """The upstream sends nothing more until the client says, beside the relay, that it has the event."""
    events = sample.events if len(sample.events) > 1 else tuple(bytes([byte]) for byte in sample.body[:40])
    if len(sample.events) == 1:
        events = (*events, sample.body[40:])
    steps: list[Step] = [head(sample, framing, len(sample.body))]
    passed = 0
    for event in events:
        steps.append(chunk_bytes(event) if framing == "chunked" else event)
        passed += len(event)
        steps.append(Passed(passed))
    steps.append(b"0\r\n\r\n" if framing == "chunked" else Close() if framing == "close" else b"")
    text, exchange = raw.script(*steps)
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(sample.request_bytes(customer.secret, text))
        for at in range(1, len(events) + 1):
            wanted = b"".join(events[:at])
            await client.until(lambda wanted=wanted: payload(client.received) == wanted)
            exchange.reached(len(wanted))
        answer = await client.response()
    assert answer.body == sample.body
    assert (await customer.call())["usage_source"] == "upstream"


@pytest.mark.parametrize("sample", [CHAT, RESPONSES, MESSAGES, GEMINI], ids=lambda sample: sample.name)
async def test_each_event_reaches_the_sdk_before_the_next_is_sent(customer: Customer, raw: RawUpstream, sample: Sample):
    gates = [asyncio.Event() for _ in sample.events]
    steps: list[Step] = [head(sample, "chunked", 0)]
    for event, gate in zip(sample.events, gates, strict=True):
        steps += [Gate(gate), chunk_bytes(event)]
    text, _ = raw.script(*steps, b"0\r\n\r\n")
    messages: Any = [{"role": "user", "content": text}]
    seen = 0
    gates[0].set()
    async with contextlib.AsyncExitStack() as stack:
        stream: Any
        if sample.dialect == "openai":
            client = await stack.enter_async_context(async_openai(customer))
            if sample is CHAT:
                stream = await client.chat.completions.create(model="raw-chat", messages=messages, stream=True)
            else:
                stream = await client.responses.create(model="raw-chat", input=text, stream=True)
        elif sample.dialect == "anthropic":
            claude = await stack.enter_async_context(async_anthropic(customer))
            stream = await claude.messages.create(model="raw-claude", max_tokens=9, messages=messages, stream=True)
        else:
            gemini = await stack.enter_async_context(google(customer))
            stream = await gemini.aio.models.generate_content_stream(model="raw-gemini", contents=text)
        async with asyncio.timeout(10):
            async for _ in stream:
                seen += 1
                hidden = sample is MESSAGES and seen >= 1  # the SDK does not show pings
                for gate in gates[: seen + 1 + hidden]:
                    gate.set()
    assert seen >= len(gates) - 1  # nor OpenAI's [DONE]


@pytest.mark.parametrize("sample", [CHAT, MESSAGES, GEMINI], ids=lambda sample: sample.name)
async def test_the_head_passes_before_the_first_event(customer: Customer, raw: RawUpstream, sample: Sample):
    gate = asyncio.Event()
    text, _ = raw.script(head(sample, "chunked", 0), Gate(gate), chunk_bytes(*sample.events, end=True))
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(sample.request_bytes(customer.secret, text))
        await client.until_contains(b"\r\n\r\n")
        assert client.received.startswith(b"HTTP/1.1 200 OK\r\n")
        gate.set()
        assert (await client.response()).body == sample.body


# -- the client goes


async def ended(entry: Entry, within_seconds: float) -> None:
    began = time.monotonic()
    await until(lambda: entry.outcome != "open", within_seconds, "the upstream call ends")
    assert entry.outcome == "aborted"
    assert time.monotonic() - began < within_seconds


async def check_charged(customer: Customer, entry: Entry, received_tokens: int, model: str) -> dict[str, Any]:
    """Received by the client <= charged <= sent by the upstream."""
    record = await customer.call()
    assert received_tokens <= record["output_tokens"], record
    assert record["output_tokens"] <= entry.output_tokens_sent * 4 + 300, record  # the relay's own count of words
    cost = cost_nano(
        model, record["input_tokens"], record["output_tokens"], record["cache_read_tokens"],
        record["cache_write_tokens"],
    )  # fmt: skip
    assert nano(record["cost"]) == cost > 0
    assert await customer.settled_nano() == 100 * 10**9 - cost
    return record


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Google's SDK leaves its connection
@pytest.mark.parametrize("dialect", ["openai", "responses", "anthropic", "gemini"])
async def test_an_sdk_that_closes_ends_the_upstream_call(customer: Customer, simulator: Running, dialect: str):
    text = "#sim events=100000 pace_ms=2#"
    messages: Any = [{"role": "user", "content": text}]
    received = 0
    model = {"openai": "gpt-4o", "responses": "gpt-5", "anthropic": "claude-sonnet-5", "gemini": "gemini-2.5-flash"}[
        dialect
    ]
    async with contextlib.AsyncExitStack() as stack:
        stream: Any
        if dialect in ("openai", "responses"):
            client = await stack.enter_async_context(async_openai(customer))
            if dialect == "openai":
                stream = await client.chat.completions.create(model=model, messages=messages, stream=True)
            else:
                stream = await client.responses.create(model=model, input=text, stream=True)
        elif dialect == "anthropic":
            claude = await stack.enter_async_context(async_anthropic(customer))
            stream = await claude.messages.create(model=model, max_tokens=100_000, messages=messages, stream=True)
        else:
            gemini = await stack.enter_async_context(google(customer))
            stream = await gemini.aio.models.generate_content_stream(model=model, contents=text)
        async for _ in stream:
            received += 1
            if received == 20:
                break
        entry = simulator.book.last
        assert entry.outcome == "open"
        if dialect == "gemini":
            await stream.aclose()
        else:
            await stream.close()
    del stream
    gc.collect()
    await ended(entry, 1.0)
    record = await check_charged(customer, entry, received - 6, model)
    assert (record["status"], record["error_code"]) == (499, "client_gone")


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("sample", [CHAT, MESSAGES, GEMINI, GEMINI_ARRAY], ids=lambda sample: sample.name)
async def test_every_way_to_leave(customer: Customer, raw: RawUpstream, sample: Sample, how: str):
    first = b"".join(sample.events[:1])
    text, exchange = raw.script(head(sample, "chunked", 0), chunk_bytes(first), Gate(asyncio.Event()))
    client = await RawClient.connect("127.0.0.1", customer.relay.port)
    await client.send(sample.request_bytes(customer.secret, text))
    await client.until(lambda: payload(client.received) == first)
    began = asyncio.get_running_loop().time()
    if how == "reset":
        client.reset()
    elif how == "half-close":
        client.half_close()
    else:
        await client.close()
    await until(exchange.gone.is_set, 1.0, "the upstream connection is closed")
    assert exchange.gone_at - began < 1.0
    await client.close()
    record = await customer.call()
    assert (record["status"], record["error_code"]) == (499, "client_gone")
    assert record["output_tokens"] >= 1
    await customer.settled_nano()


async def test_a_client_that_leaves_before_the_answer(customer: Customer, raw: RawUpstream):
    text, exchange = raw.script(Gate(asyncio.Event()))
    client = await RawClient.connect("127.0.0.1", customer.relay.port)
    await client.send(CHAT.request_bytes(customer.secret, text))
    await until(lambda: exchange.requests)
    await client.close()
    await until(exchange.gone.is_set, 1.0)
    record = await customer.call()
    assert (record["status"], record["error_code"], record["cost"]) == (499, "client_gone", "0")
    assert await customer.settled_nano() == 100 * 10**9


async def test_a_client_that_leaves_in_its_own_request(customer: Customer, simulator: Running):
    before = simulator.book.requests
    whole = request_bytes(
        "POST", "/v1/chat/completions", {"Authorization": f"Bearer {customer.secret}"},
        b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hello"}]}',
    )  # fmt: skip
    for cut in (len(whole) - 1, len(whole) - 60, 30):
        client = await RawClient.connect("127.0.0.1", customer.relay.port)
        await client.send(whole[:cut])
        await client.close()
    await eventually(lambda: _no_calls(customer))
    assert simulator.book.requests == before
    assert await customer.settled_nano() == 100 * 10**9


async def _no_calls(customer: Customer) -> bool:
    return (await customer.relay.status())["open_calls"] == 0


@pytest.mark.parametrize("sample", [CHAT, RESPONSES, MESSAGES], ids=lambda sample: sample.name)
async def test_a_client_that_closes_behind_the_last_event_has_finished(
    customer: Customer, raw: RawUpstream, sample: Sample
):
    """Many clients do not wait for the end of the framing."""
    text, exchange = raw.script(head(sample, "chunked", 0), chunk_bytes(*sample.events), Gate(asyncio.Event()))
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(sample.request_bytes(customer.secret, text))
        await client.until(lambda: payload(client.received) == sample.body)
    await until(exchange.gone.is_set, 1.0)
    record = await customer.call()
    assert (record["status"], record["error_code"], record["usage_source"]) == (200, None, "upstream")
    assert (record["input_tokens"], record["output_tokens"]) == (8, 7)


# -- the client stays and does not read


async def stalls(entry: Entry) -> None:
    """The upstream is held back, then left, and it never had to send all."""
    await ended(entry, 20.0)
    assert entry.body_bytes_sent < 60_000_000


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_an_sdk_that_stops_reading_ends_the_upstream_call(customer: Customer, simulator: Running, dialect: str):
    text = "#sim events=100000 size=1000#"
    messages: Any = [{"role": "user", "content": text}]
    leave = threading.Event()

    def read_one_and_stop() -> None:
        stream: Any
        with contextlib.ExitStack() as stack:
            if dialect == "openai":
                client = stack.enter_context(sync_openai(customer))
                stream = client.chat.completions.create(model="gpt-4o", messages=messages, stream=True)
            else:
                claude = stack.enter_context(sync_anthropic(customer))
                stream = claude.messages.create(
                    model="claude-sonnet-5", max_tokens=10_000_000, messages=messages, stream=True
                )
            next(iter(stream))
            leave.wait(30)

    before = simulator.book.requests
    thread = asyncio.ensure_future(asyncio.to_thread(read_one_and_stop))
    try:
        await until(lambda: simulator.book.requests > before, 10.0)
        await stalls(simulator.book.last)
    finally:
        leave.set()
        await thread
    record = await customer.call()
    assert record["error_code"] == "client_stalled"
    assert nano(record["cost"]) > 0
    assert await customer.settled_nano() == 100 * 10**9 - nano(record["cost"])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/v1/chat/completions"])
@pytest.mark.parametrize("stream", ["true", "false"])
async def test_a_raw_client_that_never_reads(customer: Customer, simulator: Running, path: str, stream: str):
    """By the front door and by the other way in; a stream and a large document."""
    events = 100_000 if stream == "true" else 20_000
    text = f"#sim events={events} size=1000#"
    body = f'{{"model":"gpt-4o","stream":{stream},"messages":[{{"role":"user","content":"{text}"}}]}}'.encode()
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", customer.relay.port))
        before = simulator.book.requests
        await loop.sock_sendall(
            client,
            request_bytes("POST", path, {"Authorization": f"Bearer {customer.secret}"}, body),
        )
        await until(lambda: simulator.book.requests > before, 10.0)
        entry = simulator.book.last
        if stream == "true":
            await stalls(entry)
        record = await customer.call()
    assert record["error_code"] == "client_stalled"
    assert await customer.settled_nano() == 100 * 10**9 - nano(record["cost"])


async def test_memory_stays_bounded_while_a_client_does_not_read(customer: Customer, raw: RawUpstream):
    """The upstream is not read faster than the client takes: what was read of it is soon no more than sockets hold."""
    event = b"data: " + b"x" * 60_000 + b"\n\n"
    text, exchange = raw.script(STREAM_HEAD, *[chunk_bytes(event)] * 400, Gate(asyncio.Event()))
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", customer.relay.port))
        await loop.sock_sendall(client, CHAT.request_bytes(customer.secret, text))
        await until(lambda: exchange.sent > 100_000)
        before = _resident_bytes(customer.relay.pid)
        await asyncio.sleep(0.3)
        assert _resident_bytes(customer.relay.pid) - before < 8_000_000
    await until(exchange.gone.is_set, 5.0)


def _resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


# -- the upstream breaks off


async def broken_off(customer: Customer, raw: RawUpstream, sample: Sample, *steps: Step) -> tuple[bytes, Exchange]:
    text, exchange = raw.script(*steps)
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(sample.request_bytes(customer.secret, text))
        await client.until(lambda: client.eof or client.lost)
        return client.received, exchange


@pytest.mark.parametrize("how", ["close", "reset", "last chunk"])
@pytest.mark.parametrize("sample", STREAMS, ids=lambda sample: sample.name)
async def test_a_stream_that_breaks_off_never_looks_complete(
    customer: Customer, raw: RawUpstream, sample: Sample, how: str
):
    """The client gets what there is, the dialect's error event, and no end of the framing."""
    if sample is COMPLETIONS or (sample is GEMINI_ARRAY and how == "last chunk"):
        return
    given = b"".join(sample.events[: 2 if sample is RESPONSES else 3 if sample is MESSAGES else 1])
    end: Step = Close() if how == "close" else Reset() if how == "reset" else b"0\r\n\r\n"
    received, _ = await broken_off(customer, raw, sample, head(sample, "chunked", 0), chunk_bytes(given), end)
    body = payload(received)
    assert body.startswith(given)
    assert b'"error"' in body[len(given) :]
    assert not received.endswith(b"0\r\n\r\n")
    record = await customer.call()
    assert (record["error_code"], record["status"]) == ("upstream_truncated", 200)
    assert record["output_tokens"] >= 1
    await customer.settled_nano()


@pytest.mark.parametrize("sample", [CHAT, MESSAGES, GEMINI], ids=lambda sample: sample.name)
async def test_inside_an_event_nothing_is_added(customer: Customer, raw: RawUpstream, sample: Sample):
    given = sample.events[0] + sample.events[1][:20]
    received, _ = await broken_off(customer, raw, sample, head(sample, "chunked", 0), chunk_bytes(given), Close())
    assert payload(received) == given
    assert not received.endswith(b"0\r\n\r\n")
    assert (await customer.call())["error_code"] == "upstream_truncated"


async def test_a_document_that_breaks_off(customer: Customer, raw: RawUpstream):
    sample = DOCUMENTS[0]
    cut = sample.body[:-5]
    received, _ = await broken_off(customer, raw, sample, head(sample, "length", len(sample.body)), cut, Close())
    assert payload(received) == cut
    assert (await customer.call())["error_code"] == "upstream_truncated"


async def test_garbage_inside_a_body(customer: Customer, raw: RawUpstream):
    received, exchange = await broken_off(
        customer, raw, CHAT, STREAM_HEAD, chunk_bytes(CHAT.events[0]), b"zz\r\nnonsense", Gate(asyncio.Event())
    )
    assert payload(received).startswith(CHAT.events[0])
    assert b"nonsense" not in received
    assert not received.endswith(b"0\r\n\r\n")
    await until(exchange.gone.is_set, 1.0)
    assert (await customer.call())["error_code"] == "upstream_garbage"
