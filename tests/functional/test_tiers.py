"""Tiers, audio and cache writes of an hour through a whole relay: what is charged, and that the books can prove it."""

import asyncio
import json
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from tests.functional.clients import async_openai
from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import config_text
from tests.functional.streams import CHAT, DOCUMENTS, GEMINI, MESSAGES, RESPONSES, Sample, head
from tests.functional.test_bytes import connect
from tests.functional.test_holds import held_nano
from tests.support.http1 import chunk_bytes
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

TIERS = """
[[rates.tiers]]
above = 1000
input = "2"
output = "3"
[[rates.tiers]]
service = "priority"
input = "10"
output = "20"
[[rates.tiers]]
service = "flex"
input = "0.5"
output = "1"
"""


def tiered(text: str) -> str:
    """The shared configuration; models of raw scripts get tiers, and prices of audio."""
    parts = text.split("[[rates]]\n")
    for index, part in enumerate(parts):
        if part.startswith(('model = "raw-chat"', 'model = "raw-gemini"', 'model = "raw-claude"')):
            parts[index] = (
                part.rstrip("\n")
                + '\naudio_input = "7"\naudio_output = "9"\nimage_input = "4"\ninference_geo = true\n'
                + TIERS
            )
        elif part.startswith('model = "raw-slow"'):
            parts[index] = part.rstrip("\n") + TIERS
    return "[[rates]]\n".join(parts)


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory, raw: RawUpstream) -> AsyncIterator[RelayProcess]:
    relay = RelayProcess(tmp_path_factory.mktemp("tiers"), tiered(config_text("http://127.0.0.1:9", raw.base_url)))
    await relay.start()
    yield relay
    await relay.kill()


def chat(usage: str, more: str = "") -> bytes:
    return b'data: {"choices":[]%b,"usage":{%b}}\n\ndata: [DONE]\n\n' % (more.encode(), usage.encode())


def document(usage: str, more: str = "") -> bytes:
    return b'{"choices":[]%b,"usage":{%b}}' % (more.encode(), usage.encode())


TOKENS = '"prompt_tokens":100,"completion_tokens":10'
LONG = '"prompt_tokens":1001,"completion_tokens":10,"prompt_tokens_details":{"cached_tokens":900}'
AUDIO = TOKENS + ',"prompt_tokens_details":{"audio_tokens":40},"completion_tokens_details":{"audio_tokens":3}'
PRIORITY = ',"service_tier":"priority"'
DELTA = b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{%b}}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
HOUR = (
    b'"input_tokens":5,"output_tokens":1,"cache_creation":{"ephemeral_5m_input_tokens":3,"ephemeral_1h_input_tokens":4}'
)
FAST = b'"input_tokens":5,"output_tokens":1,"speed":"%b","service_tier":"%b"'
DONE = (
    b'event: response.completed\ndata: {"type":"response.completed","response":{"service_tier":"%b","usage":{%b}}}\n\n'
)
GOOGLE = (
    b'data: {"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":100,"candidatesTokenCount":10,'
    b'"promptTokensDetails":[{"modality":"TEXT","tokenCount":60},{"modality":"AUDIO","tokenCount":30},'
    b'{"modality":"IMAGE","tokenCount":10}],'
    b'"trafficType":"%b"}}\n\n'
)

STANDARD = 100 * 1000 + 10 * 2000  # what TOKENS cost, by service
DEAR = 100 * 10_000 + 10 * 20_000
ASKED = b'"service_tier":"priority"'
CASES: list[tuple[Sample, bytes, bytes, int]] = [
    (DOCUMENTS[0], b"", document(TOKENS), STANDARD),
    (DOCUMENTS[0], b"", document(TOKENS, ',"service_tier":"default"'), STANDARD),
    (DOCUMENTS[0], ASKED, document(TOKENS, PRIORITY), DEAR),
    (DOCUMENTS[0], ASKED, document(TOKENS, ',"service_tier":"default"'), STANDARD),
    (CHAT, ASKED, chat(TOKENS, PRIORITY), DEAR),
    (CHAT, b'"service_tier":"flex"', chat(TOKENS, ',"service_tier":"flex"'), 100 * 500 + 10 * 1000),
    # The whole call at the prices of long prompts; cache reads cost as without the tier.
    (CHAT, b"", chat(LONG), 101 * 2000 + 900 * 500 + 10 * 3000),
    (CHAT, ASKED, chat(LONG, PRIORITY), 101 * 10_000 + 900 * 500 + 10 * 20_000),
    (DOCUMENTS[0], b"", document(AUDIO), 60 * 1000 + 40 * 7000 + 7 * 2000 + 3 * 9000),
    (RESPONSES, b"", DONE % (b"flex", b'"input_tokens":100,"output_tokens":10'), 100 * 500 + 10 * 1000),
    (RESPONSES, ASKED, DONE % (b"priority", b'"input_tokens":100,"output_tokens":10'), DEAR),
    (MESSAGES, b"", DELTA % (HOUR + b',"cache_creation_input_tokens":7') + STOP, 5 * 1000 + 2000 + 3 * 1500 + 4 * 2000),
    # Fast mode is what has the price of priority; the other field beside it says standard.
    (MESSAGES, b'"speed":"fast"', DELTA % (FAST % (b"fast", b"standard")) + STOP, 5 * 10_000 + 20_000),
    (MESSAGES, b"", DELTA % (FAST % (b"standard", b"standard")) + STOP, 5 * 1000 + 2000),
    # Anthropic's tier `priority` is capacity that the operator has bought.
    (MESSAGES, b'"speed":"fast"', DELTA % (FAST % (b"standard", b"priority")) + STOP, 5 * 1000 + 2000),
    (GEMINI, b"", GOOGLE % b"ON_DEMAND", 60 * 1000 + 30 * 7000 + 10 * 4000 + 10 * 2000),
    (GEMINI, b'"serviceTier":"priority"', GOOGLE % b"ON_DEMAND_PRIORITY",
     60 * 10_000 + 30 * 7000 + 10 * 4000 + 10 * 20_000),
]  # fmt: skip


def asking(sample: Sample, secret: str, text: str, field: bytes, model: str = "") -> bytes:
    """The sample's request with another field in it."""
    request = sample.request_bytes(secret, text, model)
    if not field:
        return request
    body = request.partition(b"\r\n\r\n")[2]
    asked = body.replace(b"{", b"{" + field + b",", 1)
    return request.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % len(asked)).replace(body, asked)


async def answered(customer: Customer, raw: RawUpstream, sample: Sample, field: bytes, body: bytes) -> None:
    """One call with that field, which is answered with that body."""
    client = await connect(customer)
    framed = chunk_bytes(body, end=True) if sample not in DOCUMENTS else body
    text, exchange = raw.script(head(sample, "length" if sample in DOCUMENTS else "chunked", len(body)) + framed)
    answer = await client.ask(asking(sample, customer.secret, text, field), exchange, 0)
    client.transport.close()
    assert answer.status == 200
    assert answer.body == body


async def test_what_is_charged_and_that_it_can_be_proved(own: RelayProcess, raw: RawUpstream):
    customer = await own.customer()
    total = 0
    for count, (sample, field, body, cost) in enumerate(CASES, 1):
        await answered(customer, raw, sample, field, body)
        record = (await customer.calls(count))[0]
        assert nano(record["cost"]) == cost, (field, body)
        assert "cache_write_1h_tokens" not in record
        total += cost
    assert sum(call["cache_write_tokens"] for call in await customer.calls(len(CASES))) == 7
    assert await customer.settled_nano() == 100 * 10**9 - total
    assert (await own.command("ledger verify"))["differences"] == []
    listed = (await own.command("rates show"))["rates"]
    rate = next(rate for rate in listed if rate["model"] == "raw-chat")
    assert [(tier["above"], tier["service"], tier["input"]) for tier in rate["tiers"]] == [
        (0, "flex", "0.5"), (0, "priority", "10"),
        (1000, "flex", "2"), (1000, "priority", "10"), (1000, "standard", "2"),
    ]  # fmt: skip


FAST_DOCUMENT = b'{"content":[{"type":"text","text":"H"}],"usage":{%b}}' % (FAST % (b"fast", b"standard"))
GOOGLE_DOCUMENT = (
    b'{"candidates":[{"content":{"parts":[{"text":"H"}]},"finishReason":"STOP"}],'
    b'"usageMetadata":{"promptTokenCount":100,"candidatesTokenCount":10,"serviceTier":"priority"}}'
)
UNASKED: list[tuple[Sample, list[bytes], bytes, int]] = [
    (
        DOCUMENTS[0],
        [b"", b'"service_tier":null', *(b'"service_tier":"%b"' % tier for tier in (b"auto", b"default", b"flex"))],
        document(TOKENS, PRIORITY), STANDARD,
    ),
    (CHAT, [b"", b'"service_tier":"auto"'], chat(TOKENS, PRIORITY), STANDARD),
    (
        RESPONSES, [b"", b'"service_tier":"auto"'],
        DONE % (b"priority", b'"input_tokens":100,"output_tokens":10'), STANDARD,
    ),
    (
        MESSAGES, [b"", b'"service_tier":"auto"', b'"speed":"standard"'],
        DELTA % (FAST % (b"fast", b"priority")) + STOP, 7000,
    ),
    (DOCUMENTS[1], [b"", b'"speed":"standard"'], FAST_DOCUMENT, 7000),
    (
        GEMINI, [b"", b'"serviceTier":"STANDARD"'], GOOGLE % b"ON_DEMAND_PRIORITY",
        60 * 1000 + 30 * 7000 + 10 * 4000 + 10 * 2000,
    ),
    (DOCUMENTS[2], [b"", b'"service_tier":"flex"'], GOOGLE_DOCUMENT, STANDARD),
]  # fmt: skip


async def test_finding_newcomer_7_a_service_that_was_not_asked_for_is_not_charged(own: RelayProcess, raw: RawUpstream):
    """An answer that names a dearer service is charged as standard, and the operator hears of it."""
    customer = await own.customer()
    before = await rejected(own)
    count = 0
    for sample, fields, body, cost in UNASKED:
        for field in fields:
            await answered(customer, raw, sample, field, body)
            count += 1
            record = (await customer.calls(count))[0]
            assert (nano(record["cost"]), record["usage_source"]) == (cost, "upstream"), (field, body)

    async def told() -> bool:
        return await rejected(own) == before + count

    await eventually(told, what="an event for every report")
    assert (await own.command("ledger verify"))["differences"] == []


async def rejected(relay: RelayProcess) -> int:
    """How many reports named a service that was not asked for, by the operator's events."""
    events = [event for event in (await relay.command("events"))["events"] if event["code"] == "not_asked_for"]
    assert all(event["kind"] == "report_rejected" and "service_tier priority" in event["detail"] for event in events)
    return sum(event["count"] for event in events)


BALANCE = "0.004565"


@pytest.mark.parametrize(
    ("field", "cut_early"),
    [
        (b"", False),
        (b'"service_tier":"auto"', False),
        (b'"service_tier":"default"', False),
        (b'"service_tier":"flex"', False),
        (ASKED, True),
    ],
    ids=["absent", "auto", "default", "flex", "priority"],
)
async def test_finding_newcomer_7_a_stream_is_cut_where_the_balance_is_used_up(
    own: RelayProcess, raw: RawUpstream, field: bytes, cut_early: bool
):
    """It is held for in the service that was asked for: what is left at its end is less than a slice and an event."""
    customer = await own.customer(BALANCE)
    event = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b" word" * 20)
    text, exchange = raw.script(head(CHAT, "chunked", 0), *[chunk_bytes(event)] * 400, Gate(asyncio.Event()))
    async with await RawClient.connect("127.0.0.1", own.port) as client:
        await client.send(asking(CHAT, customer.secret, text, field, "raw-slow"))
        await client.until(lambda: client.eof or client.lost)
        assert b"balance_exhausted" in client.received
    await until(exchange.gone.is_set, 1.0)
    left = await customer.settled_nano()
    if cut_early:
        assert left > nano(BALANCE) // 2  # covered for priority, and served by standard
    else:
        assert left < (16 + 20) * 2 * 2000


@pytest.mark.parametrize("sample", [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[2], CHAT, RESPONSES, MESSAGES, GEMINI],
                         ids=lambda sample: sample.name)  # fmt: skip
async def test_finding_newcomer_7_a_hold_is_for_the_service_asked_for(
    own: RelayProcess, raw: RawUpstream, sample: Sample
):
    """What covers a call in the standard service admits it; a call that asks for priority needs more."""
    dearer = {"anthropic": b'"speed":"fast"', "gemini": b'"serviceTier":"priority"'}.get(sample.dialect, ASKED)
    text, exchange = raw.script(head(sample, "length", len(sample.body)) + sample.body)
    limit = b'"max_output_tokens":50' if sample is RESPONSES else b'"max_tokens":50'
    if sample.dialect == "gemini":
        limit = b'"generationConfig":{"maxOutputTokens":50}'
    elif sample.dialect == "anthropic":
        limit = b'"temperature":1'
    # 50 tokens at 9,000 (sound) or 20,000 (priority), and a prompt of some 20 tokens at 7,000 or 10,000.
    customer = await own.customer("0.0009" if sample.path.find("stream") < 0 and sample in DOCUMENTS else "0.0004")
    client = await connect(customer)
    answer = await client.ask(asking(sample, customer.secret, text, dearer + b"," + limit), None, 0)
    assert answer.status == 402
    answer = await client.ask(asking(sample, customer.secret, text, limit), exchange, 0)
    client.transport.close()
    assert answer.status == 200


async def test_jobs_by_the_service_of_their_answer(own: RelayProcess, raw: RawUpstream):
    """A response in the background is held for in the service asked for, and charged in what is named, up to that."""
    customer = await own.customer()
    head_of = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    prices = {  # nano-credits for an input and an output token, by what was asked for and what the answer names
        ("priority", "priority"): 30_000, ("priority", "default"): 3_000, ("flex", "flex"): 1_500,
        ("default", "default"): 3_000, ("auto", "priority"): 3_000, ("flex", "priority"): 3_000,
    }  # fmt: skip
    held: dict[str, int] = {}
    async with async_openai(customer) as client:
        for number, ((asked, service), price) in enumerate(prices.items()):
            running = json.dumps({"id": f"resp_{number}", "status": "in_progress"}).encode()
            ended = json.dumps({"id": f"resp_{number}", "status": "completed", "service_tier": service,
                                "usage": {"input_tokens": 100, "output_tokens": 100}}).encode()  # fmt: skip
            text, _ = raw.script(head_of + b"content-length: %d\r\n\r\n" % len(ended) + ended)
            await client.responses.create(
                model="raw-chat", input=text, background=True, max_output_tokens=100, service_tier=asked
            )
            paid = next(row for row in await own.calls(key=customer.key) if row["cost"] != "0")
            assert nano(paid["cost"]) == 100 * price, (asked, service)
            text, _ = raw.script(
                head_of + b"content-length: %d\r\n\r\n" % len(running) + running.replace(b"resp", b"runs")
            )
            before = await held_nano(customer)
            await client.responses.create(
                model="raw-chat", input=text, background=True, max_output_tokens=100, service_tier=asked
            )
            held[asked] = await held_nano(customer) - before
        assert held["priority"] >= 100 * 20_000
        assert held["auto"] == held["default"] == held["flex"] < 100 * 15_000
        text, exchange = raw.script(b"never")
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="raw-uncounted", input=text, background=True, service_tier="priority")
        assert caught.value.code == "unsupported_feature"
        assert exchange.requests == []
    assert (await own.command("ledger verify"))["differences"] == []


@pytest.mark.parametrize(
    ("sample", "field", "statuses"),
    [
        (DOCUMENTS[0], b'"service_tier":"priority"', {"raw-chat": 200, "raw-uncounted": 400}),
        (DOCUMENTS[1], b'"speed":"fast"', {"raw-claude": 200, "raw-claude-uncounted": 400}),
        (DOCUMENTS[1], b'"inference_geo":"us"', {"raw-claude": 200, "raw-claude-uncounted": 400}),
        (DOCUMENTS[1], b'"inference_geo":"global"', {"raw-claude": 200, "raw-claude-uncounted": 200}),
    ],
    ids=["tier", "speed", "place", "anywhere"],
)
async def test_what_costs_more_and_has_no_price_is_refused(
    own: RelayProcess, raw: RawUpstream, sample: Sample, field: bytes, statuses: dict[str, int]
):
    customer = await own.customer()
    for model, status in statuses.items():
        text, exchange = raw.script(head(sample, "length", len(sample.body)) + sample.body)
        client = await connect(customer)
        answer = await client.ask(asking(sample, customer.secret, text, field, model), exchange, 0)
        client.transport.close()
        assert (answer.status, len(exchange.requests)) == (status, int(status == 200))
