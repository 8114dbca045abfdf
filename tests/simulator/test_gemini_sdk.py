"""The official Google SDK against the simulator."""

import asyncio

import pytest
from google import genai
from google.genai import errors, types

from relay.simulator import Running

# The SDK's own subclassing of aiohttp's session.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

MODEL = "gemini-2.5-flash"


@pytest.fixture
async def client(simulator: Running):
    made = genai.Client(api_key="sim-key", http_options=types.HttpOptions(base_url=simulator.base_url))
    yield made
    await made.aio.aclose()
    made.close()


async def test_generate(client, simulator):
    answer = await client.aio.models.generate_content(
        model=MODEL, contents="Hello #sim events=5 reasoning=3 cached=4 search=2 input=50#"
    )
    assert len(answer.text.split()) == 5
    usage = answer.usage_metadata
    assert (usage.prompt_token_count, usage.cached_content_token_count) == (50, 4)
    assert (usage.candidates_token_count, usage.thoughts_token_count, usage.total_token_count) == (5, 3, 58)
    candidate = answer.candidates[0]
    assert candidate.finish_reason == types.FinishReason.STOP
    assert candidate.content.parts[0].thought
    assert len(set(candidate.grounding_metadata.web_search_queries)) == 2
    assert answer.model_version == MODEL
    assert answer.response_id
    assert simulator.book.last.header("x-goog-api-key") == "sim-key"


async def test_stream(client):
    text = "Hello #sim events=5 reasoning=3 seed=1#"
    whole = await client.aio.models.generate_content(model=MODEL, contents=text)
    chunks = [chunk async for chunk in await client.aio.models.generate_content_stream(model=MODEL, contents=text)]
    assert "".join(chunk.text or "" for chunk in chunks) == whole.text
    assert chunks[-1].usage_metadata == whole.usage_metadata
    totals = [chunk.usage_metadata.total_token_count for chunk in chunks]
    assert totals == sorted(totals)
    assert [bool(chunk.candidates[0].finish_reason) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_images(client):
    text = "Hello #sim events=2 images=1 seed=1#"
    whole = await client.aio.models.generate_content(model="gemini-2.5-flash-image", contents=text)
    assert whole.candidates[0].content.parts[1].inline_data.data.startswith(b"\x89PNG")
    stream = await client.aio.models.generate_content_stream(model="gemini-2.5-flash-image", contents=text)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage_metadata == whole.usage_metadata
    assert whole.usage_metadata.candidates_token_count == 1292
    assert whole.usage_metadata.candidates_tokens_details[0].token_count == 1290


async def test_in_a_thread(client):
    def call() -> tuple[str, str]:
        whole = client.models.generate_content(model=MODEL, contents="Hello #sim seed=1#")
        chunks = client.models.generate_content_stream(model=MODEL, contents="Hello #sim seed=1#")
        return whole.text, "".join(chunk.text or "" for chunk in chunks)

    whole, streamed = await asyncio.to_thread(call)
    assert whole == streamed != ""


async def test_tools(client):
    declared = types.FunctionDeclaration(
        name="look_up", parameters=types.Schema(type="OBJECT", properties={"city": types.Schema(type="STRING")})
    )
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declared])],
        tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode="ANY")),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )
    answer = await client.aio.models.generate_content(model=MODEL, contents="Hello", config=config)
    assert answer.function_calls[0].name == "look_up"
    assert answer.function_calls[0].args["city"]


async def test_limit_and_candidates(client):
    config = types.GenerateContentConfig(max_output_tokens=4, candidate_count=2)
    answer = await client.aio.models.generate_content(model=MODEL, contents="Hello", config=config)
    assert [one.finish_reason for one in answer.candidates] == [types.FinishReason.MAX_TOKENS] * 2
    assert answer.usage_metadata.candidates_token_count == 8


async def test_count_embed_models(client):
    counted = await client.aio.models.count_tokens(model=MODEL, contents="Hello, you")
    answer = await client.aio.models.generate_content(model=MODEL, contents="Hello, you")
    assert counted.total_tokens == answer.usage_metadata.prompt_token_count
    config = types.EmbedContentConfig(output_dimensionality=5)
    embedded = await client.aio.models.embed_content(
        model="gemini-embedding-001", contents=["one", "two"], config=config
    )
    assert [len(one.values) for one in embedded.embeddings] == [5, 5]
    assert [model.name async for model in await client.aio.models.list()]
    assert (await client.aio.models.get(model=MODEL)).name == f"models/{MODEL}"


@pytest.mark.parametrize(
    ("status", "kind", "name"),
    [
        (400, errors.ClientError, "INVALID_ARGUMENT"), (403, errors.ClientError, "PERMISSION_DENIED"),
        (404, errors.ClientError, "NOT_FOUND"), (429, errors.ClientError, "RESOURCE_EXHAUSTED"),
        (500, errors.ServerError, "INTERNAL"), (503, errors.ServerError, "UNAVAILABLE"),
    ],
)  # fmt: skip
async def test_errors(client, status, kind, name):
    with pytest.raises(kind) as caught:
        await client.aio.models.generate_content(model=MODEL, contents=f"#sim status={status}#")
    assert (caught.value.code, caught.value.status) == (status, name)
    with pytest.raises(kind) as caught:
        async for _ in await client.aio.models.generate_content_stream(model=MODEL, contents=f"#sim status={status}#"):
            pass
    assert (caught.value.code, caught.value.status) == (status, name)


async def test_a_bad_key_is_answered_as_google_does(simulator):
    client = genai.Client(api_key="AIza-real", http_options=types.HttpOptions(base_url=simulator.base_url))
    with pytest.raises(errors.ClientError) as caught:
        await client.aio.models.generate_content(model=MODEL, contents="Hello")
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
    assert "API_KEY_INVALID" in str(caught.value.details)
    await client.aio.aclose()
    client.close()


async def test_an_error_in_the_stream(client):
    with pytest.raises(errors.APIError):
        async for _ in await client.aio.models.generate_content_stream(
            model=MODEL, contents="#sim events=9 error_at=2#"
        ):
            pass
