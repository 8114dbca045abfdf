"""Connections to upstreams: kept when an answer ended cleanly, never when anything was odd, a request sent once."""

import asyncio
import random

import pytest

from relay._fastpath import tap
from relay.policy import tokenizers
from relay.wire.endpoints import BY_NAME
from tests.functional.raw_upstream import Close, Exchange, Gate, RawUpstream, Reset, Step, Turn
from tests.functional.relay_process import Customer, nano
from tests.functional.setting import cost_nano
from tests.functional.streams import CHAT, GEMINI, MESSAGES, Sample, head
from tests.functional.test_streaming import payload
from tests.support.http1 import Message, chunk_bytes, response_bytes
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

DOCUMENT = b'{"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":7}}'


async def call(customer: Customer, raw: RawUpstream, *steps: Step) -> tuple[Message, Exchange]:
    text, exchange = raw.script(*steps)
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(CHAT.request_bytes(customer.secret, text))
        return await client.response(), exchange


async def settle(raw: RawUpstream) -> int:
    """Connections made so far, once what earlier tests left has calmed down."""
    await asyncio.sleep(0.05)
    return raw.connections


CLEAN = {
    "length": response_bytes(DOCUMENT),
    "chunked": head(CHAT, "chunked", 0) + chunk_bytes(*CHAT.events, end=True),
    "error": response_bytes(b'{"error":{"message":"x"}}', status=422),
    "trailers": head(CHAT, "chunked", 0) + chunk_bytes(*CHAT.events) + b"0\r\nx: y\r\n\r\n",
}


@pytest.mark.parametrize("kind", CLEAN)
async def test_a_clean_connection_is_used_again(customer: Customer, raw: RawUpstream, kind: str):
    await call(customer, raw, CLEAN[kind])
    before = await settle(raw)
    for _ in range(5):
        answer, exchange = await call(customer, raw, CLEAN[kind])
        assert answer.complete
        assert exchange.requests
    assert raw.connections == before


ODD = {
    "connection: close": response_bytes(DOCUMENT, headers={"connection": "close"}),
    "bytes behind a length": response_bytes(DOCUMENT) + b"more",
    "bytes behind the last chunk": head(CHAT, "chunked", 0) + chunk_bytes(*CHAT.events, end=True) + b"HTTP/1.1 200 OK",
    "a second answer": response_bytes(DOCUMENT) + response_bytes(b'{"secret":"of another customer"}'),
    "http/1.0": response_bytes(DOCUMENT).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "an odd connection field": response_bytes(DOCUMENT, headers={"connection": "keep-alive, x-thing"}),
}


@pytest.mark.parametrize("kind", ODD)
async def test_an_odd_connection_is_not_used_again(customer: Customer, raw: RawUpstream, kind: str):
    """Nobody ever sees a byte that belongs to another's answer."""
    for _ in range(3):
        answer, exchange = await call(customer, raw, ODD[kind])
        assert answer.status == 200
        assert answer.body in (DOCUMENT, CHAT.body)
        await until(lambda exchange=exchange: exchange.finished)
        following, _ = await call(customer, raw, response_bytes(b'{"next":1}'))
        assert following.body == b'{"next":1}'


async def test_bytes_that_nobody_asked_for_close_a_waiting_connection(customer: Customer, raw: RawUpstream):
    for _ in range(3):
        answer, exchange = await call(customer, raw, response_bytes(DOCUMENT), Turn(0.02), response_bytes(b"poison"))
        assert answer.body == DOCUMENT
        await until(lambda exchange=exchange: exchange.finished)
        await asyncio.sleep(0.03)
        following, _ = await call(customer, raw, response_bytes(b'{"next":1}'))
        assert following.body == b'{"next":1}'


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
async def test_a_connection_that_closed_while_it_waited_is_not_used(customer: Customer, raw: RawUpstream, end: Step):
    for _ in range(5):
        answer, exchange = await call(customer, raw, response_bytes(DOCUMENT), Turn(), end)
        assert answer.status == 200
        await until(lambda exchange=exchange: exchange.finished)
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
async def test_a_request_arrives_once(customer: Customer, raw: RawUpstream, end: Step):
    """An upstream that takes a request and hangs up may have worked on it: the same channel does not get it again."""
    for _ in range(3):
        await call(customer, raw, response_bytes(DOCUMENT))  # a kept connection
        answer, exchange = await call(customer, raw, end)
        assert answer.status == 502
        assert len(exchange.requests) == 1


async def test_many_calls_at_once_do_not_mix(customer: Customer, raw: RawUpstream):
    """Answers of random sizes in random order over many connections: each client gets its own."""
    rng = random.Random(1)

    async def one(number: int) -> None:
        body = b'{"number":%d,"pad":"%b"}' % (number, b"x" * rng.randrange(20_000))
        cut = rng.randrange(1, len(body))
        framed = response_bytes(body)
        answer, _ = await call(customer, raw, framed[:-cut], Turn(rng.random() / 50), framed[-cut:])
        assert answer.body == body

    await asyncio.gather(*[one(number) for number in range(200)])
    records = await customer.calls(200)
    assert {record["status"] for record in records} == {200}


# -- what a client that leaves is charged


def own_count(sample: Sample, body: bytes, model: str) -> int:
    """Output tokens by the relay's own count of these events."""
    name = {"openai": "chat", "anthropic": "messages", "gemini": "stream_generate_content"}[sample.dialect]
    return int(tap(BY_NAME[name].format, 1, [body], tokenizers.table_for(model))["counted_tokens"])


def words(sample: Sample, number: int) -> bytes:
    text = f" word number {number} of many" * 3
    if sample.dialect == "openai":
        return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()
    if sample.dialect == "anthropic":
        return (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            b'"delta":{"type":"text_delta","text":"%b"}}\n\n' % text.encode()
        )
    return b'data: {"candidates":[{"content":{"parts":[{"text":"%b"}]}}]}\r\n\r\n' % text.encode()


@pytest.mark.parametrize("sample", [CHAT, MESSAGES, GEMINI], ids=lambda sample: sample.name)
async def test_received_is_charged_and_no_more_than_was_sent(customer: Customer, raw: RawUpstream, sample: Sample):
    model = {"openai": "raw-uncounted", "anthropic": "raw-claude-uncounted", "gemini": "raw-gemini-uncounted"}[
        sample.dialect
    ]
    events = [words(sample, number) for number in range(400)]
    steps: list[Step] = [head(sample, "chunked", 0)]
    for event in events:
        steps += [chunk_bytes(event), Turn(0.001)]
    text, exchange = raw.script(*steps, Gate(asyncio.Event()))
    client = await RawClient.connect("127.0.0.1", customer.relay.port)
    request = sample.request_bytes(customer.secret, text, model)
    await client.send(request.replace(b"/models/raw-gemini:", b"/models/raw-gemini-uncounted:"))
    await client.until(lambda: payload(client.received).count(b"word") >= 100)
    received = payload(client.received)
    client.reset()
    await until(exchange.gone.is_set, 1.0)
    await client.close()
    sent = b"".join(events[: sum(1 for step in steps[: exchange.position] if isinstance(step, bytes)) - 1])
    record = await customer.call()
    assert own_count(sample, received, model) <= record["output_tokens"] <= own_count(sample, sent, model)
    assert (record["status"], record["error_code"], record["usage_source"]) == (499, "client_gone", "estimated")
    cost = cost_nano(model, record["input_tokens"], record["output_tokens"])
    assert nano(record["cost"]) == cost
    assert await customer.settled_nano() == 100 * 10**9 - cost
