"""Money under pressure: many calls at once, usage that no provider should report, limits in the middle of a call."""

import asyncio
import json
from typing import Any

import openai
import pytest

from relay._fastpath import tap
from relay.policy import tokenizers
from relay.simulator import Running
from relay.wire.endpoints import BY_NAME
from tests.functional.clients import async_openai
from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import cost_nano
from tests.functional.streams import CHAT, DOCUMENTS, MESSAGES, STREAMS, Sample, head
from tests.functional.test_streaming import payload
from tests.support.http1 import STREAM_HEAD, Message, chunk_bytes, request_bytes, response_bytes
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def ask(customer: Customer, body: dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> Message:
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        fields = {"Authorization": f"Bearer {customer.secret}", **headers}
        return await client.request("POST", path, fields, json.dumps(body).encode(), timeout_seconds=20.0)


def chat(text: str, model: str = "raw-chat", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def _credits(amount: int) -> str:
    return f"{amount // 10**9}.{amount % 10**9:09d}"


@pytest.mark.parametrize("stream", [False, True])
async def test_fifty_calls_at_once_on_a_balance_for_five(relay: RelayProcess, raw: RawUpstream, stream: bool):
    """Each holds its bound; five holds fit; forty-five are refused at once; the five are charged exactly."""
    bound = 5 if stream else 1000  # the slice of a longer stream would shrink with the balance
    release = asyncio.Event()
    usage = b'"usage":{"prompt_tokens":8,"completion_tokens":%d}' % bound
    if stream:
        answer = STREAM_HEAD + chunk_bytes(b'data: {"choices":[],%b}\n\ndata: [DONE]\n\n' % usage, end=True)
    else:
        answer = response_bytes(b'{"choices":[{"message":{"content":"a"}}],%b}' % usage)
    text, exchange = raw.script(Gate(release), answer)
    body = chat(text, max_tokens=bound, stream=stream)
    rich = await relay.customer()
    probe = asyncio.ensure_future(ask(rich, body))
    await until(lambda: exchange.requests)
    hold = nano((await rich.money())["held"])
    assert hold >= cost_nano("raw-chat", 8, bound)

    customer = await relay.customer(_credits(5 * hold + hold - 1))
    calls = [asyncio.ensure_future(ask(customer, body)) for _ in range(50)]
    await until(lambda: sum(call.done() for call in calls) >= 45, 10.0)
    await until(lambda: len(exchange.requests) == 6, 5.0)
    shown = await customer.money()
    assert (nano(shown["held"]), nano(shown["available"])) == (5 * hold, hold - 1)
    release.set()
    answers = await asyncio.gather(*calls)
    assert (await probe).status == 200
    assert sorted(answer.status for answer in answers) == [200] * 5 + [402] * 45
    assert len(exchange.requests) == 6
    records = await customer.calls(50)
    cost = cost_nano("raw-chat", 8, bound)
    assert sorted(nano(record["cost"]) for record in records) == [0] * 45 + [cost] * 5
    assert await customer.settled_nano() == 6 * hold - 1 - 5 * cost


DAMAGED = [
    b'{"prompt_tokens":-8,"completion_tokens":-7}',
    b'{"prompt_tokens":8,"completion_tokens":-99999999999}',
    b'{"prompt_tokens":99999999999999999999999,"completion_tokens":99999999999999999999999}',
    b'{"prompt_tokens":9223372036854775807,"completion_tokens":9223372036854775808}',
    b'{"prompt_tokens":1e400,"completion_tokens":1E5}',
    b'{"prompt_tokens":8.5,"completion_tokens":7.25}',
    b'{"prompt_tokens":"8","completion_tokens":"7"}',
    b'{"prompt_tokens":null,"completion_tokens":null}',
    b'{"prompt_tokens":true,"completion_tokens":[7]}',
    b'{"prompt_tokens":{"a":8},"completion_tokens":{}}',
    b'{"prompt_tokens":8,"prompt_tokens":5,"completion_tokens":7,"completion_tokens":3}',
    b'{"prompt_tokens":8,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":1000000}}',
    b'{"prompt_tokens":8,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":-1000000}}',
    b'{"prompt_tokens":8,"completion_tokens":7,"prompt_tokens_details":"none"}',
    b'{"prompt_tokens":8,"completion_tokens":7,"total_tokens":-1000000000}',
    b"{}",
    b"[]",
    b"null",
    b'"many"',
    b"-1",
]


@pytest.mark.parametrize("stream", [False, True])
async def test_damaged_usage_never_raises_a_balance(relay: RelayProcess, raw: RawUpstream, stream: bool):
    customer = await relay.customer("1000")
    last = await customer.available_nano()
    for number, usage in enumerate(DAMAGED, 1):
        document = b'{"choices":[{"index":0,"message":{"content":"words of an answer"}}],"usage":%b}' % usage
        event = b'data: {"choices":[{"index":0,"delta":{"content":"words of an answer"}}],"usage":%b}\n\n' % usage
        answer = STREAM_HEAD + chunk_bytes(event, b"data: [DONE]\n\n", end=True) if stream else response_bytes(document)
        text, _ = raw.script(answer)
        got = await ask(customer, chat(text, stream=stream))
        assert got.status == 200
        record = (await customer.calls(number))[0]
        now = await customer.settled_nano()
        assert nano(record["cost"]) >= 0, usage
        assert 0 <= now <= last, usage
        for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"):
            assert record[name] >= 0, usage
        if now == 0:  # a huge one took everything, the rest is written off
            await relay.command("credit add", id=customer.account, amount="1000")
            now = await customer.available_nano()
            assert now == 1000 * 10**9
        last = now
    assert (await relay.command("ledger verify"))["ok"]


@pytest.mark.parametrize("usage", ["missing", "null", "zero", "negative", "huge", "fraction", "text", "twice"])
@pytest.mark.parametrize("dialect", ["openai", "responses", "anthropic", "gemini"])
async def test_damaged_usage_of_every_dialect(relay: RelayProcess, simulator: Running, dialect: str, usage: str):
    customer = await relay.customer("10")
    text = f"#sim usage={usage} events=4 input=100#"
    for stream in (False, True):
        if dialect == "openai":
            path, body = "/v1/chat/completions", chat(text, "gpt-4o", stream=stream)
            body["stream_options"] = {"include_usage": True} if stream else None
        elif dialect == "responses":
            path, body = "/v1/responses", {"model": "gpt-5", "input": text, "stream": stream}
        elif dialect == "anthropic":
            path, body = "/v1/messages", chat(text, "claude-sonnet-5", stream=stream, max_tokens=100)
        else:
            verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
            path, body = f"/v1beta/models/gemini-2.5-flash:{verb}", {"contents": [{"parts": [{"text": text}]}]}
        answer = await ask(customer, body, path, **{"anthropic-version": "2023-06-01"})
        assert answer.status == 200
        assert answer.body == simulator.book.last.sent
    records = await customer.calls(2)
    now = await customer.settled_nano()
    assert 0 <= now <= 10 * 10**9
    assert all(nano(record["cost"]) >= 0 for record in records)
    if usage == "twice":
        assert {(record["input_tokens"], record["output_tokens"]) for record in records} == {(100, 4)}
    if usage in ("missing", "null"):
        assert {record["usage_source"] for record in records} == {"estimated"}
        assert all(record["output_tokens"] >= 4 for record in records)


async def test_a_bill_above_the_balance_is_written_off(relay: RelayProcess, raw: RawUpstream):
    """What is there is taken, the rest becomes an entry; the balance is zero, and the next call is refused."""
    customer = await relay.customer("0.01")
    text, _ = raw.script(response_bytes(b'{"usage":{"prompt_tokens":15000,"completion_tokens":5}}'))
    assert (await ask(customer, chat(text, max_tokens=10))).status == 200
    record = await customer.call()
    assert nano(record["cost"]) == cost_nano("raw-chat", 15_000, 5)
    assert await customer.settled_nano() == 0
    assert (await customer.money())["balance"] == "0"
    assert (await ask(customer, chat(text, max_tokens=10))).status == 402
    ledger = await relay.command("ledger show", id=customer.account)
    assert [entry["kind"] for entry in ledger["entries"]] == ["purchased", "write_off"]
    assert nano(ledger["entries"][1]["amount"]) == nano(record["cost"]) - 10**7
    assert (await relay.command("ledger verify"))["ok"]


# -- a stream is ended where it cannot be paid


def words(count: int) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b" word" * count)


async def cut_off(customer: Customer, raw: RawUpstream, sample: Sample = CHAT, **headers: str) -> tuple[bytes, dict]:
    """A stream that would go on for ever; what the client got, and the record."""
    event = words(50)
    if sample is MESSAGES:
        event = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta",'
            b'"text":"%b"}}\n\n' % (b" word" * 50)
        )
    text, exchange = raw.script(head(sample, "chunked", 0), *[chunk_bytes(event)] * 400, Gate(asyncio.Event()))
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        model = "raw-uncounted" if sample is CHAT else "raw-claude-uncounted"
        await client.send(sample.request_bytes(customer.secret, text, model, **headers))
        await client.until(lambda: client.eof or client.lost)
        received = client.received
    await until(exchange.gone.is_set, 1.0)
    assert not received.endswith(b"0\r\n\r\n")
    return received, await customer.call()


@pytest.mark.parametrize("sample", [CHAT, MESSAGES], ids=lambda sample: sample.name)
async def test_a_stream_ends_where_the_balance_does(relay: RelayProcess, raw: RawUpstream, sample: Sample):
    customer = await relay.customer("0.004")  # about two thousand words
    received, record = await cut_off(customer, raw, sample)
    body = payload(received)
    assert b"balance_exhausted" in body
    # What the client received is charged, by the relay's own count, which earlier answers have calibrated (0.5 to 3).
    form = BY_NAME["chat" if sample is CHAT else "messages"].format
    delivered = tap(form, 1, [body], tokenizers.table_for(sample.model))["counted_tokens"]
    assert record["error_code"] == "balance_exhausted"
    assert record["status"] == 200
    assert delivered // 2 <= record["output_tokens"] <= 3 * delivered + 1
    assert 0 <= await customer.settled_nano() < cost_nano("raw-chat", 0, 300)
    # The write-off is at most one event by the relay's own count.
    assert nano(record["cost"]) <= 4_000_000 + cost_nano("raw-chat", 0, 3 * 60)
    assert (await relay.command("ledger verify"))["ok"]


@pytest.mark.parametrize("period", ["daily", "monthly"])
async def test_a_stream_ends_where_a_cap_does(relay: RelayProcess, raw: RawUpstream, period: str):
    customer = await relay.customer(**{f"{period}_limit": "0.004"})
    received, record = await cut_off(customer, raw)
    assert b"cap_reached" in payload(received)
    assert record["error_code"] == "cap_reached"
    assert nano(record["cost"]) <= 4_000_000 + cost_nano("raw-chat", 0, 60)
    # The next call finds the cap reached.
    answer = await ask(customer, chat("x", "gpt-4o", max_tokens=100))
    assert answer.status == 429
    assert b"insufficient_quota" in answer.body


async def test_a_stream_ends_at_its_max_cost(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer()
    received, record = await cut_off(customer, raw, **{"x-relay-max-cost": "0.004"})
    assert b"max_cost_reached" in payload(received)
    assert record["error_code"] == "max_cost_reached"
    # The bill is what it is; what the customer pays is not above what was allowed.
    assert 100 * 10**9 - await customer.settled_nano() <= 4_000_000


async def test_an_sdk_sees_the_end_of_the_money(relay: RelayProcess, simulator: Running):
    customer = await relay.customer("0.01")
    async with async_openai(customer) as client:
        stream = await client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "#sim events=100000 tokens=10#"}], stream=True
        )
        with pytest.raises(openai.APIError) as caught:
            async for _ in stream:
                pass
    assert caught.value.code == "balance_exhausted"
    assert (await customer.money())["balance"].startswith("0")
    await eventually(lambda: _ended(simulator))


async def _ended(simulator: Running) -> bool:
    return simulator.book.last.outcome == "aborted"


async def test_two_streams_share_a_small_balance(relay: RelayProcess, raw: RawUpstream):
    """The slice of one does not starve the other: both get on."""
    customer = await relay.customer("0.01")
    gate = asyncio.Event()
    scripts = [raw.script(STREAM_HEAD, *[chunk_bytes(words(20))] * 10, Gate(gate)) for _ in range(2)]
    clients = []
    for text, _ in scripts:
        client = await RawClient.connect("127.0.0.1", customer.relay.port)
        await client.send(
            request_bytes(
                "POST", "/v1/chat/completions", {"Authorization": f"Bearer {customer.secret}"},
                json.dumps(chat(text, stream=True)).encode(),
            )
        )  # fmt: skip
        clients.append(client)
    for client in clients:
        await client.until(lambda client=client: payload(client.received).count(b" word") == 200)
        await client.close()
    records = await customer.calls(2)
    assert {record["error_code"] for record in records} == {"client_gone"}


async def test_caps_of_every_scope(relay: RelayProcess, simulator: Running):
    """Key, account and organisation: the tightest counts; a key's cap does not bind another key."""
    customer = await relay.customer(organisation="Capped", daily_limit="0.02")
    body = chat("#sim input=100 output=1500#", "gpt-4o", max_tokens=1500)
    assert (await ask(customer, body)).status == 200  # about 0.0153
    assert (await ask(customer, body)).status == 429
    other = await relay.another_key(customer)
    assert (await ask(other, body)).status == 200
    await relay.command("account set", id=customer.account, daily_limit="0.04")
    assert (await ask(other, body)).status == 429
    await relay.command("account set", id=customer.account, daily_limit="1")
    assert (await ask(other, body)).status == 200

    async def shown() -> dict[str, Any]:
        async with await RawClient.connect("127.0.0.1", relay.port) as client:
            answer = await client.request("GET", "/relay/v1/limits", {"Authorization": f"Bearer {other.secret}"})
        return {scope["scope"]: scope["daily"] for scope in json.loads(answer.body)["scopes"]}

    cost = cost_nano("gpt-4o", 100, 1500)
    daily = await shown()
    assert nano(daily["account"]["spent"]) == 3 * cost
    assert nano(daily["key"]["spent"]) == 2 * cost
    assert nano(daily["organisation"]["spent"]) == 3 * cost


async def test_free_endpoints_leave_no_hold(relay: RelayProcess, simulator: Running):
    customer = await relay.customer("0")
    body = {"contents": [{"parts": [{"text": "Hello"}]}]}
    assert (await ask(customer, body, "/v1beta/models/gemini-2.5-flash:countTokens")).status == 200
    assert (await customer.call())["cost"] == "0"


@pytest.mark.parametrize("sample", [*STREAMS, *DOCUMENTS], ids=lambda sample: sample.name)
async def test_usage_decides_over_the_own_count(relay: RelayProcess, raw: RawUpstream, sample: Sample):
    """Where the provider reports, its numbers are charged, to the nano-credit."""
    customer = await relay.customer("0.1")
    text, _ = raw.script(head(sample, "length", len(sample.body)), sample.body)
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        await client.send(sample.request_bytes(customer.secret, text))
        assert (await client.response()).status == 200
    record = await customer.call()
    assert record["usage_source"] == "upstream"
    expected = cost_nano(sample.model, *sample.usage)
    assert nano(record["cost"]) == expected
    assert await customer.settled_nano() == 10**8 - expected
