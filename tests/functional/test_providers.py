"""OpenAI-compatible providers behind a relay: where their requests go, and what their forms of usage are billed."""

import json

import pytest

from relay._fastpath import tap
from relay.policy import tokenizers
from tests.functional.clients import async_anthropic, async_openai, google
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import Customer, nano
from tests.functional.setting import RAW_KEY, cost_nano
from tests.support.http1 import response_bytes
from tests.support.provider_answers import ANSWERS
from tests.support.rawclient import RawClient
from tests.support.tap_oracle import CHAT, JSON

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHATS = [answer for answer in ANSWERS if answer.format == CHAT]
COUNTS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


@pytest.mark.parametrize("answer", CHATS, ids=[answer.name for answer in CHATS])
async def test_what_is_billed(customer: Customer, raw: RawUpstream, answer):
    """The documented example arrives as it was sent, and the record is what its usage says."""
    stream = answer.kind != JSON
    kind = "text/event-stream" if stream else "application/json"
    text, _ = raw.script(response_bytes(answer.body, headers={"content-type": kind}))
    message = [{"role": "user", "content": text}]
    body = json.dumps({"model": "raw-chat", "messages": message, "stream": stream}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {customer.secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(head.encode() + body)
        received = await client.response()
    assert received.body == answer.body
    record = await customer.call()
    assert (record["status"], record["error_code"], record["channel"]) == (200, None, "raw-openai")
    if answer.expected.get("usage_seen", True):
        assert record["usage_source"] == "upstream"
        assert {name: record[name] for name in COUNTS} == {name: answer.expected.get(name, 0) for name in COUNTS}
    else:
        found = tap(CHAT, answer.kind, [answer.body], tokenizers.table_for("raw-chat"))
        assert record["usage_source"] == "estimated"
        assert record["output_tokens"] >= found["counted_tokens"] // 2 > 0
    counts = [record[name] for name in COUNTS]
    assert nano(record["cost"]) == cost_nano("raw-chat", counts[0], counts[1], counts[2], counts[3]) > 0


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def chat_answer() -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    return response_bytes(json.dumps({"object": "chat.completion", "choices": [choice], "usage": USAGE}).encode())


async def test_a_deployment_of_azure(customer: Customer, raw: RawUpstream):
    """The deployment stands in the path, the version in the query, the key in `api-key`."""
    text, exchange = raw.script(chat_answer())
    async with async_openai(customer) as client:
        answer = await client.chat.completions.create(model="raw-azure", messages=[{"role": "user", "content": text}])
    assert answer.usage.completion_tokens == 4
    line = exchange.requests[-1].split(b"\r\n")[0]
    assert line == b"POST /openai/deployments/gpt-4o%2Fprod/chat/completions?api-version=2024-10-21 HTTP/1.1"
    assert exchange.header["api-key"] == RAW_KEY
    assert "authorization" not in exchange.header
    record = await customer.call()
    assert (record["model"], record["upstream_model"]) == ("raw-azure", "gpt-4o/prod")
    assert nano(record["cost"]) == cost_nano("raw-azure", 9, 4)


async def test_a_stream_of_azure_without_the_event_that_was_not_asked_for(customer: Customer, raw: RawUpstream):
    """The event about the prompt has no choices either: it stays, and only the report is taken out."""
    azure = next(answer for answer in ANSWERS if answer.name == "azure stream")
    text, exchange = raw.script(response_bytes(azure.body, headers={"content-type": "text/event-stream"}))
    async with async_openai(customer) as client:
        stream = await client.chat.completions.create(
            model="raw-azure", messages=[{"role": "user", "content": text}], stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert json.loads(exchange.bodies[-1])["stream_options"] == {"include_usage": True}
    assert chunks[0].choices == []
    assert chunks[0].model_extra["prompt_filter_results"]
    assert all(chunk.usage is None for chunk in chunks)
    assert len(chunks) == azure.body.count(b"data: {") - 1
    record = await customer.call()
    assert (record["usage_source"], record["input_tokens"], record["output_tokens"]) == ("upstream", 9, 4)


async def test_the_key_of_the_client_does_not_reach_azure(customer: Customer, raw: RawUpstream):
    """Nor does a header `api-key` of the client's: there is one, the channel's."""
    text, exchange = raw.script(chat_answer())
    async with async_openai(customer, default_headers={"api-key": "mine"}) as client:
        await client.chat.completions.create(model="raw-azure", messages=[{"role": "user", "content": text}])
    assert exchange.requests[-1].lower().count(b"\r\napi-key:") == 1
    assert customer.secret.encode() not in exchange.requests[-1]
    await customer.call()


# The SDK's own subclassing of aiohttp's session.
@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
@pytest.mark.parametrize("stream", [False, True])
async def test_gemini_on_vertex(customer: Customer, raw: RawUpstream, stream: bool):
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 4, "totalTokenCount": 13, "trafficType": "ON_DEMAND"}
    candidate = {"content": {"role": "model", "parts": [{"text": "Hi"}]}, "finishReason": "STOP"}
    document = json.dumps({"candidates": [candidate], "usageMetadata": usage})
    if stream:
        sent = response_bytes(f"data: {document}\r\n\r\n".encode(), headers={"content-type": "text/event-stream"})
    else:
        sent = response_bytes(document.encode())
    text, exchange = raw.script(sent)
    async with google(customer) as client:
        if stream:
            chunks = [
                chunk
                async for chunk in await client.aio.models.generate_content_stream(model="raw-vertex", contents=text)
            ]
            assert chunks[-1].text == "Hi"
        else:
            assert (await client.aio.models.generate_content(model="raw-vertex", contents=text)).text == "Hi"
    place = b"/v1/projects/p-1/locations/global/publishers/google/models/gemini-2.5-flash"
    verb = b":streamGenerateContent?alt=sse" if stream else b":generateContent"
    assert exchange.requests[-1].split(b"\r\n")[0] == b"POST " + place + verb + b" HTTP/1.1"
    assert exchange.header["authorization"] == f"Bearer {RAW_KEY}"
    assert "x-goog-api-key" not in exchange.header
    record = await customer.call()
    assert (record["input_tokens"], record["output_tokens"], record["stream"]) == (9, 4, stream)


async def test_a_key_in_a_header_of_its_own(customer: Customer, raw: RawUpstream):
    message = {
        "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": "Hi"}],
        "stop_reason": "end_turn", "usage": {"input_tokens": 9, "output_tokens": 4},
    }  # fmt: skip
    text, exchange = raw.script(response_bytes(json.dumps(message).encode()))
    async with async_anthropic(customer) as client:
        await client.messages.create(
            model="raw-gateway",
            max_tokens=9,
            messages=[{"role": "user", "content": text}],
            extra_query={"beta": "true"},
        )
    assert exchange.requests[-1].startswith(b"POST /v1/messages?beta=true HTTP/1.1\r\n")
    assert exchange.header["x-gateway-key"] == RAW_KEY
    assert not {"authorization", "x-api-key"} & set(exchange.header)
    await customer.call()
