"""Pictures in answers, priced by their tokens: Google's SDK and OpenAI's through a whole relay, to the nano-credit."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from google.genai import errors, types

from relay.simulator import Running
from tests.functional.clients import async_openai, google
from tests.functional.raw_upstream import Close, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, nano
from tests.functional.setting import OPERATOR_TOKEN, RAW_KEY, SIM_KEY, channel

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # Google's SDK: its own subclassing of aiohttp's session.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]

# By its own price a picture costs the same in every size; by tokens each size has its price.
RATES = """
[[rates]]
model = "own"
input = 0.5
output = 3
image_output = 60
output_tokens_max = 4000
[[rates.tiers]]
service = "batch"
image_output = 30
[[rates]]
model = "piece"
input = 0.5
output = 3
image = 0.067
[[rates]]
model = "gpt-image-1"
input = 5
output = 10
image_input = 8
image_output = 32
"""
SHIPPED = "gemini-3.1-flash-image"  # has no rate here: it costs what the shipped card says
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(300)).decode()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n"


@pytest_asyncio.fixture(loop_scope="session")
async def own(tmp_path: Path, raw: RawUpstream, simulator: Running) -> AsyncIterator[RelayProcess]:
    text = f'[server]\ndrain_seconds = 2\n[admin]\ntoken = "{OPERATOR_TOKEN}"\n[plans.open]\n'
    text += channel("google", "gemini", raw.base_url, f'["own", "piece", "{SHIPPED}"]', RAW_KEY)
    text += channel("openai", "openai", raw.base_url + "/v1", '["gpt-image-1"]', RAW_KEY)
    text += channel("simulated", "gemini", simulator.base_url, '{ "sim" = "gemini-2.5-flash-image" }', SIM_KEY)
    relay = RelayProcess(tmp_path, text + RATES)
    await relay.start()
    yield relay
    await relay.kill()


def event(text: str, image: bool = False, **usage: object) -> dict[str, object]:
    parts: list[object] = [{"text": text}]
    if image:
        parts.append({"inlineData": {"mimeType": "image/png", "data": PNG}})
    document: dict[str, object] = {"candidates": [{"content": {"role": "model", "parts": parts}}]}
    return document | ({"usageMetadata": usage} if usage else {})


def usage(text: int, image: int, prompt: int = 100) -> dict[str, object]:
    details = [{"modality": "TEXT", "tokenCount": text}, {"modality": "IMAGE", "tokenCount": image}]
    return {"promptTokenCount": prompt, "candidatesTokenCount": text + image, "candidatesTokensDetails": details}


def whole(document: dict[str, object]) -> bytes:
    body = json.dumps(document).encode()
    return HEAD % b"application/json" + b"content-length: %d\r\n\r\n" % len(body) + body


def answer_of(tokens: int, text: int = 0) -> bytes:
    document = event("Here.", True, **usage(text, tokens))
    document["candidates"][0]["finishReason"] = "STOP"
    return whole(document)


async def charged(relay: RelayProcess, customer: Customer) -> int:
    """The cost of the only call, which the books prove and of which nothing is held any more."""
    record = await customer.call()
    cost = nano(record["cost"])
    assert await customer.settled_nano() == 100 * 10**9 - cost
    assert (await relay.command("ledger verify"))["differences"] == []
    return cost


@pytest.mark.parametrize(
    ("tokens", "credits"), [(747, "0.04487"), (1120, "0.06725"), (1680, "0.10085"), (2520, "0.15125")]
)
async def test_each_size_of_a_picture_costs_its_tokens(own: RelayProcess, raw: RawUpstream, tokens: int, credits: str):
    """512 pixels, 1K, 2K, 4K: tokens at 60 per million, and a prompt of 100 at 0.5."""
    customer = await own.customer()
    text, _ = raw.script(answer_of(tokens))
    async with google(customer) as client:
        answer = await client.aio.models.generate_content(model=SHIPPED, contents=text)
    assert answer.candidates[0].content.parts[1].inline_data.mime_type == "image/png"
    assert await charged(own, customer) == nano(credits)
    record = await customer.call()
    assert (record["images"], record["output_tokens"], record["usage_source"]) == (1, tokens, "upstream")


async def test_text_beside_a_picture_costs_as_text(own: RelayProcess, raw: RawUpstream):
    costs = {"own": 100 * 500 + 1680 * 60_000 + 40 * 3000, "piece": 100 * 500 + 67_000_000 + 40 * 3000}
    for model, cost in costs.items():
        customer = await own.customer()
        text, _ = raw.script(answer_of(1680, text=40))
        async with google(customer) as client:
            await client.aio.models.generate_content(model=model, contents=text)
        assert await charged(own, customer) == cost, model
        assert (await customer.call())["output_tokens"] == 1720


async def test_a_picture_of_a_stream(own: RelayProcess, simulator: Running):
    customer = await own.customer()
    async with google(customer) as client:
        stream = await client.aio.models.generate_content_stream(
            model="sim", contents="A cat #sim images=2 events=3 tokens=9#"
        )
        last = [chunk async for chunk in stream][-1].usage_metadata
    entry = simulator.book.last
    [image] = last.candidates_tokens_details
    assert image.token_count > 1000
    output = entry.output_tokens - image.token_count
    cost = entry.input_tokens * 300 + image.token_count * 30_000 + output * 2500
    assert await charged(own, customer) == cost


async def test_pictures_of_a_batch(own: RelayProcess, simulator: Running):
    customer = await own.customer()
    contents = types.Content(role="user", parts=[types.Part(text="A cat #sim images=1 tokens=9 polls=0 input=40#")])
    async with google(customer) as client:
        made = await client.aio.batches.create(model="sim", src=[types.InlinedRequest(contents=contents)])
        done = await client.aio.batches.get(name=made.name)
    assert done.state.name == "JOB_STATE_SUCCEEDED"
    [line] = done.dest.inlined_responses
    [image] = line.response.usage_metadata.candidates_tokens_details
    output = line.response.usage_metadata.candidates_token_count - image.token_count
    charge = next(row for row in await own.calls(key=customer.key) if row["cost"] != "0")
    assert (charge["images"], image.token_count > 1000, output > 0) == (1, True, True)
    cost = 40 * 150 + image.token_count * 15_000 + output * 1250  # half of each price
    assert nano(charge["cost"]) == cost
    assert await customer.settled_nano() == 100 * 10**9 - cost
    assert (await own.command("ledger verify"))["differences"] == []


@pytest.mark.parametrize("model", ["own", "piece"])
async def test_a_picture_without_a_report_is_charged_all_the_same(own: RelayProcess, raw: RawUpstream, model: str):
    """The provider's last report is of the text before it: by tokens the picture is charged for as one of 1,120."""
    customer = await own.customer()
    first = b"data: %b\r\n\r\n" % json.dumps(event("Here.", **usage(3, 0))).encode()
    second = b"data: %b\r\n\r\n" % json.dumps(event("", True)).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (first, second))
    text, _ = raw.script(HEAD % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n" + chunks, Close())
    async with google(customer) as client:
        with pytest.raises(errors.APIError):
            await asyncio.to_thread(lambda: list(client.models.generate_content_stream(model=model, contents=text)))
    record = await customer.call()
    assert (record["images"], record["error_code"]) == (1, "upstream_truncated")
    assert record["usage_source"] == ("estimated" if model == "own" else "upstream")
    picture_nano = 1120 * 60_000 if model == "own" else 67_000_000
    assert await charged(own, customer) == 100 * 500 + 3 * 3000 + picture_nano


async def test_a_hold_is_for_the_dearest_token_of_an_answer(own: RelayProcess, raw: RawUpstream):
    """4,000 tokens at 60 per million are 0.24 credits, whatever they turn out to be, and streams are no cheaper."""
    poor, rich = await own.customer("0.2"), await own.customer("0.25")
    text, exchange = raw.script(answer_of(1120, text=9))
    async with google(poor) as client:
        for ask in (client.models.generate_content, client.models.generate_content_stream):
            with pytest.raises(errors.ClientError) as caught:
                await asyncio.to_thread(lambda ask=ask: list(ask(model="own", contents=text)))
            assert caught.value.code == 402
    assert exchange.requests == []
    async with google(rich) as client:
        await client.aio.models.generate_content(model="own", contents=text)
    assert (await rich.call())["status"] == 200


DETAILS = {"text_tokens": 10, "image_tokens": 40}


@pytest.mark.parametrize(
    ("output", "cost"),
    [
        # The older models report no details of the output: all of it is pictures.
        ({"output_tokens": 1056}, 1056 * 32_000),
        ({"output_tokens": 1100, "output_tokens_details": {"text_tokens": 44, "image_tokens": 1056}},
         1056 * 32_000 + 44 * 10_000),
    ],
    ids=["pictures", "text too"],
)  # fmt: skip
async def test_openais_pictures(own: RelayProcess, raw: RawUpstream, output: dict[str, object], cost: int):
    customer = await own.customer()
    report = {"input_tokens": 50, "input_tokens_details": DETAILS, "total_tokens": 50, **output}
    text, _ = raw.script(whole({"created": 1, "data": [{"b64_json": PNG}], "usage": report}))
    async with async_openai(customer) as client:
        answer = await client.images.generate(model="gpt-image-1", prompt=text)
    assert base64.b64decode(answer.data[0].b64_json).startswith(b"\x89PNG")
    assert await charged(own, customer) == 10 * 5000 + 40 * 8000 + cost
