"""`"relay": {"cost", "rates", "balance"}` in the usage object: asked for by the caller; one event changes."""

import asyncio
import gzip
import json
import re

import pytest
import pytest_asyncio

from tests.functional.clients import async_anthropic, async_openai
from tests.functional.raw_upstream import Close, Exchange, RawUpstream, Step, Turn
from tests.functional.relay_process import Customer, RelayProcess, nano
from tests.functional.streams import DOCUMENTS, EOLS, GEMINI_ARRAY, STREAMS, Sample, cost_of, head
from tests.functional.test_bytes import WORKERS, connect
from tests.support import http1
from tests.support.http1 import STREAM_HEAD, chunk_bytes

pytestmark = pytest.mark.asyncio(loop_scope="session")

MEMBER = re.compile(rb',?"relay":(\{[^{}]*\})')
EVENTS = tuple(sample for sample in STREAMS if sample is not GEMINI_ARRAY)


async def one(
    customer: Customer, raw: RawUpstream, sample: Sample, *steps: Step, usage: str = "include"
) -> tuple[http1.Message, Exchange]:
    client = await connect(customer)
    text, exchange = raw.script(*steps)
    answer = await client.ask(sample.request_bytes(customer.secret, text, **{"x-relay-usage": usage}), exchange, 0)
    client.transport.close()
    return answer, exchange


def check(answer: http1.Message, sample: Sample, card: str) -> int:
    """Exactly one member is new, and it says what the call costs. Returns the balance that it tells."""
    assert answer.status == 200
    assert answer.complete, answer
    [member] = MEMBER.findall(answer.body)
    assert MEMBER.sub(b"", answer.body) == sample.body
    told = json.loads(member)
    assert list(told) == ["cost", "rates", "balance"]
    assert nano(told["cost"]) == cost_of(sample.usage)
    assert told["rates"] == card
    return nano(told["balance"])


@pytest_asyncio.fixture(loop_scope="session")
async def card(relay: RelayProcess) -> str:
    return str((await relay.command("rates show"))["rate_card"])


@pytest.mark.parametrize("sample", [*EVENTS, *DOCUMENTS], ids=lambda sample: sample.name)
async def test_cut_at_every_byte(relay: RelayProcess, raw: RawUpstream, sample: Sample, card: str):
    customer = await relay.customer()
    stream = sample in EVENTS
    start = head(sample, "chunked" if stream else "length", len(sample.body))
    wire = chunk_bytes(*sample.events, end=True) if stream else sample.body
    pending = list(range(len(wire)))
    balances: list[int] = []

    async def work() -> None:
        client = await connect(customer)
        while pending:
            at = pending.pop()
            text, exchange = raw.script(start + wire[:at], Turn(), wire[at:])
            request = sample.request_bytes(customer.secret, text, **{"x-relay-usage": "include"})
            balances.append(check(await client.ask(request, exchange, 0), sample, card))
            assert not client.lost
            assert "x-relay-usage" not in exchange.header
        client.transport.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(work())
    total = len(wire) * cost_of(sample.usage)
    assert await customer.settled_nano() == 100 * 10**9 - total
    assert min(balances) == 100 * 10**9 - total  # the last one saw all others settled
    records = await customer.calls(len(wire))
    assert {record["cost"] for record in records} == {records[0]["cost"]}
    assert {record["error_code"] for record in records} == {None}


@pytest.mark.parametrize("framing", ["chunked", "close", "length"])
@pytest.mark.parametrize("sample", [EVENTS[0], DOCUMENTS[0]], ids=lambda sample: sample.name)
async def test_every_framing(relay: RelayProcess, raw: RawUpstream, sample: Sample, framing: str, card: str):
    customer = await relay.customer()
    body = chunk_bytes(*sample.events, end=True) if framing == "chunked" else sample.body
    steps: list[Step] = [head(sample, framing, len(sample.body)) + body]
    answer, _ = await one(customer, raw, sample, *steps, *([Close()] if framing == "close" else []))
    check(answer, sample, card)
    if sample is DOCUMENTS[0]:
        assert answer.header("content-length") == str(len(answer.body))


@pytest.mark.parametrize("sample", EVENTS, ids=lambda sample: sample.name)
@pytest.mark.parametrize("eol", EOLS)
async def test_every_line_end(relay: RelayProcess, raw: RawUpstream, sample: Sample, eol: str, card: str):
    sample = sample.with_eol(EOLS[eol])
    answer, _ = await one(await relay.customer(), raw, sample, STREAM_HEAD + chunk_bytes(*sample.events, end=True))
    check(answer, sample, card)


@pytest.mark.parametrize("sample", [*STREAMS, *DOCUMENTS], ids=lambda sample: sample.name)
async def test_off_by_default_and_for_other_words(relay: RelayProcess, raw: RawUpstream, sample: Sample):
    customer = await relay.customer()
    wire = head(sample, "chunked", 0) + chunk_bytes(*sample.events, end=True)
    for word in ("", "no", "included"):
        answer, _ = await one(customer, raw, sample, wire, usage=word)
        assert answer.body == sample.body


async def test_what_cannot_be_changed_passes_as_it_is(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer()
    chat = DOCUMENTS[0]
    packed = gzip.compress(chat.body)
    answer, _ = await one(customer, raw, chat, head(chat, "length", len(packed), "content-encoding: gzip") + packed)
    assert answer.body == packed
    for body in (b'{"choices":[]}', b'{"usage":{"prompt_tokens":-1}}'):
        answer, _ = await one(customer, raw, chat, head(chat, "length", len(body)) + body)
        assert (answer.status, answer.body, answer.complete) == (200, body, True)
    large = b'{"a":"' + b"x" * (17 << 20) + b'",' + chat.body.strip()[1:]
    answer, _ = await one(customer, raw, chat, head(chat, "length", len(large)) + large)
    assert answer.body == large


async def test_a_document_that_breaks_off_is_cut_as_ever(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer()
    chat = DOCUMENTS[0]
    answer, _ = await one(customer, raw, chat, head(chat, "length", len(chat.body)) + chat.body[:-9], Close())
    assert not answer.complete
    assert chat.body.startswith(answer.body)
    assert (await customer.call())["error_code"] == "upstream_truncated"


async def test_terms_A11_with_the_sdks(relay: RelayProcess):
    customer = await relay.customer()
    include = {"x-relay-usage": "include"}
    async with async_openai(customer) as client:
        answer = await client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "Hello"}], extra_headers=include
        )
        assert answer.usage is not None
        told = answer.usage.model_extra["relay"]  # type: ignore[index]
        record = await customer.call()
        assert (told["cost"], told["rates"]) == (record["cost"], record["rate_card"])
        assert nano(told["balance"]) == await customer.settled_nano()
        stream = await client.responses.create(model="gpt-4o", input="Hello", stream=True, extra_headers=include)
        async for event in stream:
            if event.type == "response.completed":
                assert event.response.usage is not None
                told = event.response.usage.model_extra["relay"]  # type: ignore[index]
        assert told["cost"] == (await customer.calls(2))[0]["cost"]
    async with async_anthropic(customer) as claude:
        message = await claude.messages.create(
            model="claude-sonnet-5",
            max_tokens=20,
            messages=[{"role": "user", "content": "Hello"}],
            extra_headers=include,
        )
        assert message.usage.model_extra["relay"]["cost"] == (await customer.calls(3))[0]["cost"]  # type: ignore[index]
