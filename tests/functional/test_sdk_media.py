"""Images, speech, moderations and rankings through a relay with the official SDK: what arrives, and what it costs."""

import base64

import aiohttp
import openai
import pytest

from relay.simulator import Running
from tests.functional.clients import async_openai, google
from tests.functional.relay_process import Customer, nano
from tests.functional.setting import cost_nano

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # Google's SDK: its own subclassing of aiohttp's session.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]


async def check(
    customer: Customer, model: str, *, stream: bool = False, source: str = "upstream", **usage: int
) -> dict:
    """The record of the only call: exactly this usage, its price, and nothing held any more."""
    record = await customer.call()
    assert (record["status"], record["error_code"], record["model"]) == (200, None, model)
    assert (record["stream"], record["usage_source"]) == (stream, source)
    found = {name: record[name] for name in ("images", "video_seconds", "web_searches")}
    found |= {"input": record["input_tokens"], "output": record["output_tokens"]}
    assert found == {"images": 0, "video_seconds": 0, "web_searches": 0, "input": 0, "output": 0} | usage
    cost = cost_nano(model, **usage)
    assert nano(record["cost"]) == cost > 0
    assert await customer.settled_nano() == 100 * 10**9 - cost
    return record


async def test_images_by_the_piece(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        answer = await client.images.generate(model="dall-e-3", prompt="A cat", n=2)
    assert len(answer.data) == 2
    record = await check(customer, "dall-e-3", images=2)
    assert record["path"] == "/v1/images/generations"


async def test_images_by_tokens(customer: Customer, simulator: Running):
    """The card has no price of an image: the tokens are charged, and they alone."""
    async with async_openai(customer) as client:
        answer = await client.images.generate(model="gpt-image-1", prompt="A cat", n=2)
    assert base64.b64decode(answer.data[1].b64_json).startswith(b"\x89PNG")
    entry = simulator.book.last
    assert answer.usage.output_tokens == entry.output_tokens
    await check(customer, "gpt-image-1", images=2, input=entry.input_tokens, output=entry.output_tokens)


async def test_images_stream(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        stream = await client.images.generate(model="gpt-image-1", prompt="A cat", stream=True, partial_images=2)
        events = [event async for event in stream]
    assert [event.type for event in events] == [
        "image_generation.partial_image", "image_generation.partial_image", "image_generation.completed"
    ]  # fmt: skip
    entry = simulator.book.last
    await check(customer, "gpt-image-1", stream=True, images=1, input=entry.input_tokens, output=entry.output_tokens)


async def test_an_image_stream_that_breaks_off_raises(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        stream = await client.images.generate(
            model="gpt-image-1", prompt="A cat #sim done=0#", stream=True, partial_images=1
        )
        with pytest.raises(openai.APIError):
            [event async for event in stream]
    assert (await customer.call())["error_code"] == "upstream_truncated"


async def test_images_hold_what_they_may_cost(customer: Customer, simulator: Running):
    poor = await customer.relay.customer("0.07")  # less than two images
    before = simulator.book.requests
    async with async_openai(poor) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.images.generate(model="dall-e-3", prompt="A cat", n=2)
        assert caught.value.code == "insufficient_balance"
        assert simulator.book.requests == before
        await client.images.generate(model="dall-e-3", prompt="A cat")
        with pytest.raises(openai.APIStatusError):  # by tokens: the largest picture that it may become
            await client.images.generate(model="gpt-image-1", prompt="A cat")


async def test_gemini_images_without_a_price_of_an_image_are_charged_as_tokens(customer: Customer, simulator: Running):
    async with google(customer) as client:
        answer = await client.aio.models.generate_content(
            model="gemini-2.5-flash-image", contents="A cat #sim images=1 events=2#"
        )
    record = await customer.call()
    usage = answer.usage_metadata
    assert record["images"] == 1
    assert record["output_tokens"] == usage.candidates_token_count > 0
    assert nano(record["cost"]) == cost_nano("gemini-2.5-flash-image", record["input_tokens"], record["output_tokens"])


async def test_speech_by_characters(customer: Customer, simulator: Running):
    text = "Grüße aus Köln, mit ñ and 日本."
    async with async_openai(customer) as client:
        answer = await client.audio.speech.create(model="tts-1", voice="alloy", input=text)
        sound = answer.content
    assert sound.startswith(b"ID3")
    assert sound == bytes(simulator.book.last.sent)
    await check(customer, "tts-1", source="estimated", input=len(text))


async def test_speech_by_tokens(customer: Customer, simulator: Running):
    """Raw sound carries no report: what such a text becomes is estimated, and the record says so."""
    async with (
        async_openai(customer) as client,
        client.audio.speech.with_streaming_response.create(
            model="gpt-4o-mini-tts", voice="alloy", input="x" * 1000
        ) as answer,
    ):
        sound = b"".join([piece async for piece in answer.iter_bytes()])
    assert sound == bytes(simulator.book.last.sent)
    record = await customer.call()
    assert (record["usage_source"], record["output_tokens"]) == ("estimated", 1400)
    assert nano(record["cost"]) == cost_nano("gpt-4o-mini-tts", record["input_tokens"], 1400)


async def test_speech_stream(customer: Customer, simulator: Running):
    async with (
        async_openai(customer) as client,
        client.audio.speech.with_streaming_response.create(
            model="gpt-4o-mini-tts", voice="alloy", input="Hello", stream_format="sse"
        ) as answer,
    ):
        text = "".join([piece async for piece in answer.iter_text()])
    assert "speech.audio.done" in text
    entry = simulator.book.last
    await check(customer, "gpt-4o-mini-tts", stream=True, input=entry.input_tokens, output=entry.output_tokens)


async def test_moderations(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        answer = await client.moderations.create(input="Is this all right?")  # the provider's default model
    assert not answer.results[0].flagged
    record = await customer.call()
    assert (record["model"], record["usage_source"]) == ("omni-moderation-latest", "estimated")
    assert record["output_tokens"] == 0 < record["input_tokens"]
    assert nano(record["cost"]) == cost_nano("omni-moderation-latest", record["input_tokens"])


@pytest.mark.parametrize(("model", "directive"), [("rerank-tokens", ""), ("rerank-searches", "#sim search=3#")])
async def test_rerank(customer: Customer, simulator: Running, model: str, directive: str):
    """No official SDK of the dialect has a method for it; this is how its users call it."""
    body = {"model": model, "query": "Which?" + directive, "documents": ["one", "two"]}
    async with async_openai(customer) as client:
        answer = await client.post("/rerank", body=body, cast_to=object)
    assert [result["index"] for result in answer["results"]] == [0, 1]
    if directive:
        await check(customer, model, web_searches=3)
    else:
        await check(customer, model, input=simulator.book.last.input_tokens)


async def test_embed_one_content(customer: Customer, simulator: Running):
    """The SDK sends lists only; older ones, and people, send one."""
    url = f"{customer.relay.base_url}/v1beta/models/gemini-embedding-001:embedContent"
    body = {"content": {"parts": [{"text": "one"}]}}
    headers = {"x-goog-api-key": customer.secret}
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=headers) as answer:
        assert answer.status == 200
        assert (await answer.json())["embedding"]["values"]
    record = await customer.call()
    assert record["path"] == "/v1beta/models/{model}:embedContent"
    assert nano(record["cost"]) == cost_nano("gemini-embedding-001", record["input_tokens"]) > 0
