"""The official OpenAI SDK against the simulator: its own types are the judge of the formats."""

import asyncio
import base64
import json
import struct

import openai
import pytest
from openai.types.responses import Response

from relay.simulator import Running

ASK = [{"role": "user", "content": "Say something."}]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]


@pytest.fixture
async def client(simulator: Running):
    async with openai.AsyncOpenAI(
        base_url=f"{simulator.base_url}/v1", api_key="sim-key", max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


@pytest.fixture
async def lenient(simulator: Running):
    """For the few answers in which the provider itself departs from the SDK's types."""
    async with openai.AsyncOpenAI(base_url=f"{simulator.base_url}/v1", api_key="sim-key", max_retries=0) as made:
        yield made


def ask(directives: str) -> list[dict]:
    return [{"role": "user", "content": f"Say something. #sim {directives}#"}]


async def test_chat(client, simulator):
    answer = await client.chat.completions.create(
        model="gpt-4o", messages=ask("events=5 tokens=3 cached=4 reasoning=2")
    )
    assert answer.model == "gpt-4o"
    assert len(answer.choices[0].message.content.split()) == 15
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 17
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 17
    assert answer.choices[0].message.reasoning_content
    assert simulator.book.last.usage["completion_tokens"] == 17
    assert answer._request_id


async def test_chat_in_a_thread(simulator):
    def call() -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{simulator.base_url}/v1", api_key="sim-key") as client:
            whole = client.chat.completions.create(model="gpt-4o", messages=ASK, seed=1)
            stream = client.chat.completions.create(model="gpt-4o", messages=ask("seed=3"), stream=True)
            return whole.choices[0].message.content, "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    whole, streamed = await asyncio.to_thread(call)
    assert whole
    assert streamed


@pytest.mark.parametrize("include_usage", [False, True])
async def test_chat_stream(client, include_usage):
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    stream = await client.chat.completions.create(
        model="gpt-4o", messages=ask("events=5 seed=1 obfuscation=1"), stream=True, **options
    )
    chunks = [chunk async for chunk in stream]
    whole = await client.chat.completions.create(model="gpt-4o", messages=ask("events=5 seed=1"))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    if include_usage:
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])
        assert chunks[-2].choices[0].finish_reason == "stop"
    else:
        assert all("usage" not in chunk.model_fields_set for chunk in chunks)
        assert chunks[-1].choices[0].finish_reason == "stop"
    assert {chunk.id for chunk in chunks} == {whole.id}


async def test_chat_several_choices(client):
    whole = await client.chat.completions.create(model="gpt-4o", messages=ask("events=4 seed=2"), n=3)
    stream = await client.chat.completions.create(
        model="gpt-4o", messages=ask("events=4 seed=2"), n=3, stream=True, stream_options={"include_usage": True}
    )
    texts = ["", "", ""]
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert whole.usage.completion_tokens == chunk.usage.completion_tokens == 12


async def test_chat_tools(client):
    whole = await client.chat.completions.create(model="gpt-4o", messages=ask("tools=2 seed=1"), tools=TOOLS)
    calls = whole.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["look_up", "look_up"]
    assert json.loads(calls[0].function.arguments)["city"]
    assert whole.choices[0].finish_reason == "tool_calls"
    async with client.chat.completions.stream(model="gpt-4o", messages=ask("tools=2 seed=1"), tools=TOOLS) as stream:
        final = await stream.get_final_completion()
    streamed = final.choices[0].message.tool_calls
    assert [(one.id, one.function.arguments) for one in streamed] == [(one.id, one.function.arguments) for one in calls]
    forced = await client.chat.completions.create(model="gpt-4o", messages=ASK, tools=TOOLS, tool_choice="required")
    assert forced.choices[0].message.tool_calls


async def test_chat_obeys_the_output_limit(client):
    answer = await client.chat.completions.create(model="gpt-4o", messages=ask("events=50"), max_completion_tokens=3)
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"


async def test_completions(lenient):
    whole = await lenient.completions.create(model="gpt-3.5-turbo-instruct", prompt="Once #sim seed=1 events=3#")
    stream = await lenient.completions.create(
        model="gpt-3.5-turbo-instruct",
        prompt="Once #sim seed=1 events=3#",
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == 3


async def test_responses(client):
    answer = await client.responses.create(model="gpt-5", input="Hello #sim events=6 reasoning=4 search=2 cached=3#")
    assert answer.output_text
    assert [item.type for item in answer.output] == ["reasoning", "web_search_call", "web_search_call", "message"]
    assert answer.usage.output_tokens == 10
    assert answer.usage.output_tokens_details.reasoning_tokens == 4
    assert answer.usage.input_tokens_details.cached_tokens == 3
    again = await client.responses.retrieve(answer.id)
    assert again == answer
    await client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(answer.id)


async def test_responses_stream(client):
    text = "Hello #sim events=4 reasoning=2 search=1 seed=1#"
    events = [event async for event in await client.responses.create(model="gpt-5", input=text, stream=True)]
    whole = await client.responses.create(model="gpt-5", input=text)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress",
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.delta", "reasoning_summary_text.done", "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added", "web_search_call.in_progress", "web_search_call.searching", "web_search_call.completed",
        "output_item.done",
        "output_item.added", "content_part.added", *["output_text.delta"] * 4, "output_text.done", "content_part.done",
        "output_item.done",
        "completed",
    ]  # fmt: skip
    assert isinstance(events[-1].response, Response)
    assert events[-1].response == whole
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[0].response.status == "in_progress"
    assert events[0].response.usage is None


async def test_responses_stream_helper_with_tools(client):
    tools = [
        {
            "type": "function",
            "name": "look_up",
            "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
            "strict": False,
        }
    ]
    async with client.responses.stream(model="gpt-5", input="Hello #sim tools=2#", tools=tools) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert [item.name for item in final.output] == ["look_up", "look_up"]
    assert json.loads(final.output[0].arguments)["city"]


async def test_responses_incomplete(client):
    text = "Hello #sim events=40#"
    events = [
        event
        async for event in await client.responses.create(model="gpt-5", input=text, stream=True, max_output_tokens=5)
    ]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"
    assert events[-1].response.usage.output_tokens == 5


@pytest.mark.parametrize("dimensions", [None, 7])
async def test_embeddings(lenient, dimensions):
    more = {"dimensions": dimensions} if dimensions else {}
    decoded = await lenient.embeddings.create(
        model="text-embedding-3-small", input=["one", "two"], **more
    )  # base64 inside
    floats = await lenient.embeddings.create(
        model="text-embedding-3-small", input=["one", "two"], encoding_format="float", **more
    )
    packed = await lenient.embeddings.create(
        model="text-embedding-3-small", input=["one", "two"], encoding_format="base64", **more
    )
    assert [len(item.embedding) for item in floats.data] == [dimensions or 1536] * 2
    assert [item.embedding for item in decoded.data] == [item.embedding for item in floats.data]
    raw = base64.b64decode(packed.data[0].embedding)
    assert list(struct.unpack(f"<{dimensions or 1536}f", raw)) == floats.data[0].embedding
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > 0


async def test_other_endpoints(client):
    assert [model.id async for model in client.models.list()]
    assert (await client.models.retrieve("gpt-4o")).id == "gpt-4o"
    assert not (await client.moderations.create(input="hello")).results[0].flagged
    images = await client.images.generate(model="gpt-image-1", prompt="a house", n=2)
    assert base64.b64decode(images.data[1].b64_json).startswith(b"\x89PNG")
    assert images.usage.output_tokens == 544
    stream = await client.images.generate(
        model="gpt-image-1", prompt="a #sim image_bytes=5000#", stream=True, partial_images=2
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert len(base64.b64decode(events[-1].b64_json)) == 5000
    assert events[-1].usage.output_tokens == 272
    speech = await client.audio.speech.create(model="tts-1", input="hello", voice="alloy")
    assert speech.content.startswith(b"ID3")
    heard = await client.audio.transcriptions.create(
        model="gpt-4o-transcribe", file=("a.wav", b"RIFF\x00\x01", "audio/wav")
    )
    assert heard.text
    assert heard.usage.type == "tokens"
    stream = await client.audio.transcriptions.create(
        model="gpt-4o-transcribe", file=("a.wav", b"RIFF\x00\x01", "audio/wav"), stream=True
    )
    events = [event async for event in stream]
    assert "".join(event.delta for event in events[:-1]) == events[-1].text
    assert events[-1].usage.output_tokens == 8
    raw = await client.audio.speech.create(model="tts-2", input="hello", voice="alloy", stream_format="sse")
    assert b'data: {"type":"speech.audio.done","usage":{"input_tokens":' in raw.content


async def test_responses_with_images(client):
    text = "Hello #sim images=2 image_bytes=300 seed=1 obfuscation=1#"
    whole = await client.responses.create(model="gpt-5", input=text)
    assert [item.type for item in whole.output] == ["image_generation_call"] * 2 + ["message"]
    events = [event async for event in await client.responses.create(model="gpt-5", input=text, stream=True)]
    assert events[-1].response == whole
    assert [event.type for event in events].count("response.image_generation_call.completed") == 2


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError), (401, openai.AuthenticationError), (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError), (429, openai.RateLimitError), (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)  # fmt: skip
async def test_errors(client, status, kind):
    with pytest.raises(kind) as caught:
        await client.chat.completions.create(model="gpt-4o", messages=ask(f"status={status}"))
    assert caught.value.message
    assert caught.value.type


async def test_refusals(client, simulator):
    with pytest.raises(openai.AuthenticationError) as caught:
        await client.with_options(api_key="sk-real-123456").chat.completions.create(model="gpt-4o", messages=ASK)
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="missing-model", messages=ASK)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="gpt-4o", messages=[])
    assert caught.value.param == "messages"
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="gpt-4o", messages=ASK, max_tokens=0)
    with pytest.raises(openai.BadRequestError, match="unknown directive 'event'"):
        await client.chat.completions.create(model="gpt-4o", messages=ask("event=5"))
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="gpt-4o", messages=ask("status=429 error=quota"))
    assert caught.value.code == "insufficient_quota"
    assert simulator.book.statuses == {401: 1, 404: 1, 400: 3, 429: 1}


async def test_an_error_in_the_stream(client):
    stream = await client.chat.completions.create(model="gpt-4o", messages=ask("events=9 error_at=2"), stream=True)
    with pytest.raises(openai.APIError) as caught:
        async for _ in stream:
            pass
    assert caught.value.type == "server_error"
    stream = await client.responses.create(model="gpt-5", input="#sim error_at=2#", stream=True)
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass
