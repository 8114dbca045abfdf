"""Holds and charges that follow what the upstream says before its answer ends; refusals for what a head asks."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from relay._fastpath import tap
from relay.policy import tokenizers
from relay.wire.endpoints import BY_NAME
from tests.functional.raw_upstream import Close, Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import config_text, cost_nano
from tests.functional.streams import GEMINI, MESSAGES, Sample, head
from tests.functional.test_streaming import payload
from tests.support.http1 import chunk_bytes, response_bytes
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOKEN_NANO = 1000  # an input token of the raw models


def message_start(**usage: int) -> bytes:
    document = {"type": "message_start", "message": {"id": "m", "content": [], "usage": usage | {"output_tokens": 1}}}
    return b"event: message_start\ndata: " + json.dumps(document).encode() + b"\n\n"


def text_delta(text: str) -> bytes:
    document = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return b"event: content_block_delta\ndata: " + json.dumps(document).encode() + b"\n\n"


async def held_nano(customer: Customer) -> int:
    return nano((await customer.money())["held"])


class Stream:
    """A stream of the Anthropic dialect that stops before and behind its message_start."""

    def __init__(self, customer: Customer, raw: RawUpstream, prompt: str, start: bytes, *more: bytes) -> None:
        self.customer = customer
        self.gate, self.end = asyncio.Event(), asyncio.Event()
        self.text, self.exchange = raw.script(
            Gate(self.gate), head(MESSAGES, "chunked", 0) + chunk_bytes(start), Gate(self.end), *map(chunk_bytes, more)
        )
        self.prompt = prompt

    async def begin(self) -> int:
        """Until the upstream has the request; what is held then."""
        self.client = await RawClient.connect("127.0.0.1", self.customer.relay.port)
        body = MESSAGES.request_bytes(self.customer.secret, self.text + self.prompt, "raw-claude-uncounted")
        await self.client.send(body)
        await until(lambda: self.exchange.requests)
        return await held_nano(self.customer)

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def started(self) -> int:
        """Until the client has the message_start; what is held then."""
        self.gate.set()
        await self.client.until_contains(b"message_start")
        return await held_nano(self.customer)


async def test_a_prompt_that_was_estimated_too_high_gives_its_hold_back(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer()
    async with Stream(customer, raw, " word" * 20_000, message_start(input_tokens=100)) as stream:
        before = await stream.begin()
        available = await customer.available_nano()
        after = await stream.started()
        # Held was for twenty thousand words at the price of a cache write, it is now for a hundred at that of input.
        assert before - after > 15_000 * 2 * TOKEN_NANO
        assert await customer.available_nano() == available + before - after
    assert (await customer.call())["input_tokens"] == 100
    assert await customer.settled_nano() == 100 * 10**9 - cost_nano("raw-claude", 100, 1)


async def test_a_prompt_that_was_estimated_too_low_is_held(relay: RelayProcess, raw: RawUpstream):
    """Two streams that differ in what the upstream says of their prompt differ in their holds by exactly that."""
    held = []
    for usage in ({"input_tokens": 5_000}, {"input_tokens": 9_000, "cache_read_input_tokens": 4_000}):
        customer = await relay.customer()
        async with Stream(customer, raw, "Hi", message_start(**usage)) as stream:
            before = await stream.begin()
            held.append(await stream.started())
            assert held[-1] > before
        await customer.call()
    assert held[1] - held[0] == cost_nano("raw-claude", 4_000, 0, 4_000)


async def test_a_prompt_beyond_the_balance_takes_it_and_ends_the_stream(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer("0.012")  # twelve thousand tokens of input
    more = text_delta("a few words"), text_delta("never seen")
    async with Stream(customer, raw, "Hi", message_start(input_tokens=15_000), *more) as stream:
        await stream.begin()
        assert await stream.started() == nano("0.012")
        assert (await customer.money())["available"] == "0"
        stream.end.set()
        await stream.client.until(lambda: stream.client.eof or stream.client.lost)
    received = payload(stream.client.received)
    assert b"a few words" in received
    assert b"never seen" not in received
    assert b"balance_exhausted" in received
    record = await customer.call()
    assert record["error_code"] == "balance_exhausted"
    assert record["input_tokens"] == 15_000
    assert await customer.settled_nano() == 0
    assert (await relay.command("ledger verify"))["ok"]


# -- Gemini


def gemini(text: str, **usage: int) -> bytes:
    document: dict = {"candidates": [{"content": {"parts": [{"text": text}]}}]}
    if usage:
        document["usageMetadata"] = usage
    return b"data: " + json.dumps(document).encode() + b"\r\n\r\n"


REPORTED = [
    gemini("one two three", promptTokenCount=11, candidatesTokenCount=3),
    gemini(" four", promptTokenCount=11, candidatesTokenCount=4, thoughtsTokenCount=500),
]
NOT_REPORTED = gemini(" and so on, word after word, until it is cut" * 5)


async def cut(customer: Customer, raw: RawUpstream, *events: bytes) -> dict:
    """A stream whose upstream goes away behind these events; its record."""
    text, _ = raw.script(head(GEMINI, "chunked", 0), *map(chunk_bytes, events), Close())
    request = GEMINI.request_bytes(customer.secret, text)
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(request.replace(b"/models/raw-gemini:", b"/models/raw-gemini-uncounted:"))
        await client.until(lambda: client.eof or client.lost)
    record = await customer.call()
    assert record["error_code"] == "upstream_truncated"
    assert nano(record["cost"]) == cost_nano("raw-gemini", record["input_tokens"], record["output_tokens"])
    return record


def own_count(sample: Sample, *events: bytes) -> int:
    form = BY_NAME["stream_generate_content"].format
    found = tap(form, 1, list(events), tokenizers.table_for("raw-gemini-uncounted"))
    return int(found["counted_tokens"])


async def test_a_cut_gemini_stream_costs_what_its_last_event_reported(customer: Customer, raw: RawUpstream):
    """Thoughts included, which nobody could count; and not more, whatever our own count says."""
    record = await cut(customer, raw, *REPORTED)
    assert (record["input_tokens"], record["output_tokens"], record["usage_source"]) == (11, 504, "upstream")


async def test_our_own_count_stands_for_what_gemini_has_not_reported_yet(customer: Customer, raw: RawUpstream):
    record = await cut(customer, raw, *REPORTED, NOT_REPORTED)
    expected = 504 + own_count(GEMINI, NOT_REPORTED)  # the count goes on in the middle of a text
    assert abs(record["output_tokens"] - expected) <= 1
    assert record["usage_source"] == "estimated"


async def test_a_low_report_counts_as_it_is(customer: Customer, raw: RawUpstream):
    """The provider's number is the price, also below our own count."""
    words = " word" * 300
    record = await cut(customer, raw, gemini(words, promptTokenCount=11, candidatesTokenCount=7))
    assert own_count(GEMINI, gemini(words)) > 100
    assert (record["output_tokens"], record["usage_source"]) == (7, "upstream")


# -- what a request's head asks


@pytest.mark.parametrize(
    ("field", "status", "code"),
    [
        ("Content-Encoding: snappy", 415, "unsupported_encoding"),
        ("x-relay-max-cost: plenty", 400, "invalid_value"),
        ("x-relay-max-cost: -1", 400, "invalid_value"),
    ],
)
@pytest.mark.parametrize("known", [False, True], ids=["key is loaded first", "key in memory"])
async def test_a_head_that_cannot_be_served_leaves_a_record(
    customer: Customer, field: str, status: int, code: str, known: bool
):
    def request(secret: str) -> bytes:
        body = b'{"model":"gpt-4o","messages":[]}'
        lines = ["POST /v1/chat/completions HTTP/1.1", "Host: relay", f"Authorization: Bearer {secret}", field]
        return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body

    async def ask(message: bytes) -> int:
        async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
            await client.send(message)
            return (await client.response()).status

    if known:
        await ask(request(customer.secret).replace(field.encode(), b"X-Nothing: 1"))
    assert await ask(request(customer.secret)) == status
    record = (await customer.calls(2 if known else 1))[0]
    assert (record["status"], record["error_code"], record["cost"]) == (status, code, "0")
    assert (record["model"], record["path"]) == (None, "/v1/chat/completions")
    # Whose call it is comes first: a key that is none is 401, whatever else is wrong.
    assert await ask(request("sk-" + "x" * 12 + "-" + "y" * 36)) == 401


# -- a connection that its upstream closes while it waits


@pytest_asyncio.fixture(loop_scope="session")
async def own(raw: RawUpstream, tmp_path: Path) -> AsyncIterator[RelayProcess]:
    relay = await RelayProcess(tmp_path, config_text("http://127.0.0.1:9", raw.base_url)).start()
    yield relay
    await relay.kill()


async def test_a_connection_that_has_just_closed_is_not_used(own: RelayProcess, raw: RawUpstream):
    """The upstream closes it in the moment of its next use, and the relay reads the request first."""
    customer = await own.customer()
    document = response_bytes(b'{"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":7}}')
    text, first = raw.script(document)
    async with await RawClient.connect("127.0.0.1", own.port) as client:
        body = json.dumps({"model": "raw-chat", "messages": [{"role": "user", "content": text}]}).encode()
        fields = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"}
        assert (await client.request("POST", "/v1/chat/completions", fields, body)).status == 200
        (kept,) = [connection for connection in raw.open if connection.exchange is first]
        await asyncio.sleep(1.2)  # a connection that was used just before is not looked at
        os.kill(own.pid, signal.SIGSTOP)
        try:
            answer = asyncio.ensure_future(client.request("POST", "/v1/chat/completions", fields, body))
            await asyncio.sleep(0.1)  # so that the request is the first that the relay finds
            kept.transport.close()
            await until(lambda: kept not in raw.open)
        finally:
            os.kill(own.pid, signal.SIGCONT)
        assert (await answer).status == 200
    assert len(first.requests) == 2
    assert {record["attempts"] for record in await customer.calls(2)} == {1}
    await eventually(lambda: _settled(customer))
    assert await own.stop() == 0


async def _settled(customer: Customer) -> bool:
    return await held_nano(customer) == 0
