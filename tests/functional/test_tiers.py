"""Tiers, audio and cache writes of an hour through a whole relay: what is charged, and that the books can prove it."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from tests.functional.clients import async_openai
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import RelayProcess, nano
from tests.functional.setting import config_text
from tests.functional.streams import CHAT, DOCUMENTS, GEMINI, MESSAGES, RESPONSES, Sample, head
from tests.functional.test_bytes import connect
from tests.support.http1 import chunk_bytes

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
    return "[[rates]]\n".join(parts)


@pytest_asyncio.fixture(loop_scope="session")
async def own(tmp_path: Path, raw: RawUpstream) -> AsyncIterator[RelayProcess]:
    relay = RelayProcess(tmp_path, tiered(config_text("http://127.0.0.1:9", raw.base_url)))
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
    b'event: response.completed\ndata: {"type":"response.completed","response":{"service_tier":"flex",'
    b'"usage":{%b}}}\n\n'
)
GOOGLE = (
    b'data: {"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":100,"candidatesTokenCount":10,'
    b'"promptTokensDetails":[{"modality":"TEXT","tokenCount":60},{"modality":"AUDIO","tokenCount":30},'
    b'{"modality":"IMAGE","tokenCount":10}],'
    b'"trafficType":"%b"}}\n\n'
)

CASES: list[tuple[Sample, bytes, int]] = [
    (DOCUMENTS[0], document(TOKENS), 100 * 1000 + 10 * 2000),
    (DOCUMENTS[0], document(TOKENS, ',"service_tier":"default"'), 100 * 1000 + 10 * 2000),
    (DOCUMENTS[0], document(TOKENS, PRIORITY), 100 * 10_000 + 10 * 20_000),
    (CHAT, chat(TOKENS, PRIORITY), 100 * 10_000 + 10 * 20_000),
    (CHAT, chat(TOKENS, ',"service_tier":"flex"'), 100 * 500 + 10 * 1000),
    # The whole call at the prices of long prompts; cache reads cost as without the tier.
    (CHAT, chat(LONG), 101 * 2000 + 900 * 500 + 10 * 3000),
    (CHAT, chat(LONG, PRIORITY), 101 * 10_000 + 900 * 500 + 10 * 20_000),
    (DOCUMENTS[0], document(AUDIO), 60 * 1000 + 40 * 7000 + 7 * 2000 + 3 * 9000),
    (RESPONSES, DONE % b'"input_tokens":100,"output_tokens":10', 100 * 500 + 10 * 1000),
    (MESSAGES, DELTA % (HOUR + b',"cache_creation_input_tokens":7') + STOP, 5 * 1000 + 2000 + 3 * 1500 + 4 * 2000),
    # Fast mode is what has the price of priority; the other field beside it says standard.
    (MESSAGES, DELTA % (FAST % (b"fast", b"standard")) + STOP, 5 * 10_000 + 20_000),
    (MESSAGES, DELTA % (FAST % (b"standard", b"standard")) + STOP, 5 * 1000 + 2000),
    (GEMINI, GOOGLE % b"ON_DEMAND", 60 * 1000 + 30 * 7000 + 10 * 4000 + 10 * 2000),
    (GEMINI, GOOGLE % b"ON_DEMAND_PRIORITY", 60 * 10_000 + 30 * 7000 + 10 * 4000 + 10 * 20_000),
]


async def test_what_is_charged_and_that_it_can_be_proved(own: RelayProcess, raw: RawUpstream):
    customer = await own.customer()
    total = 0
    for count, (sample, body, cost) in enumerate(CASES, 1):
        client = await connect(customer)
        framed = chunk_bytes(body, end=True) if sample not in DOCUMENTS else body
        text, exchange = raw.script(head(sample, "length" if sample in DOCUMENTS else "chunked", len(body)) + framed)
        answer = await client.ask(sample.request_bytes(customer.secret, text), exchange, 0)
        client.transport.close()
        assert answer.status == 200
        assert answer.body == body
        record = (await customer.calls(count))[0]
        assert nano(record["cost"]) == cost, body
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


async def test_jobs_by_the_service_of_their_answer(own: RelayProcess, raw: RawUpstream):
    """A response in the background is held for in the dearest service, and charged in the one that it names."""
    customer = await own.customer()
    head_of = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    costs = {"priority": 30_000, "flex": 1_500, "default": 3_000}  # nano-credits for a thousand tokens
    async with async_openai(customer) as client:
        for service, per_thousand in costs.items():
            document = json.dumps({"id": f"resp_{service}", "status": "completed", "service_tier": service,
                                   "usage": {"input_tokens": 100, "output_tokens": 100}}).encode()  # fmt: skip
            text, _ = raw.script(head_of + b"content-length: %d\r\n\r\n" % len(document) + document)
            await client.responses.create(model="raw-chat", input=text, background=True, max_output_tokens=100)
            paid = next(row for row in await own.calls(key=customer.key) if row["cost"] != "0")
            assert nano(paid["cost"]) == 100 * per_thousand, service
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
        request = sample.request_bytes(customer.secret, text, model)
        body = request.partition(b"\r\n\r\n")[2]
        asked = body.replace(b"{", b"{" + field + b",", 1)
        request = request.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % len(asked))
        client = await connect(customer)
        answer = await client.ask(request.replace(body, asked), exchange, 0)
        client.transport.close()
        assert (answer.status, len(exchange.requests)) == (status, int(status == 200))


async def test_a_hold_covers_the_dearest_service(own: RelayProcess, raw: RawUpstream):
    """A call that the provider may serve by priority must be covered at that price, or is refused."""
    poor = await own.customer("0.00005")  # enough for four tokens of sound in the standard service (9,000 each)
    client = await connect(poor)
    sample = DOCUMENTS[0]
    request = sample.request_bytes(poor.secret, "x").replace(b'"stream":false', b'"max_tokens":4')
    answer = await client.ask(request, None, 0)
    client.transport.close()
    assert answer.status == 402
