"""The official Google SDK through a relay."""

import asyncio

import pytest
from google.genai import errors, types

from relay.simulator import Running
from tests.functional.clients import google
from tests.functional.relay_process import Customer, nano
from tests.functional.setting import cost_nano

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # The SDK's own subclassing of aiohttp's session.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]

MODEL = "gemini-2.5-flash"
SAY = "Hello #sim events=5 reasoning=3 cached=4 search=2 input=50#"


async def check(customer: Customer, *, stream: bool, model: str = MODEL, searches: int = 1) -> None:
    record = await customer.call()
    assert (record["status"], record["stream"], record["usage_source"]) == (200, stream, "upstream")
    assert (record["input_tokens"], record["output_tokens"], record["cache_read_tokens"]) == (46, 8, 4)
    assert (record["web_searches"], record["model"]) == (searches, model)
    cost = cost_nano(model, 46, 8, 4, web_searches=searches)
    assert nano(record["cost"]) == cost
    assert await customer.settled_nano() == 100 * 10**9 - cost
    verb = "streamGenerateContent" if stream else "generateContent"
    assert record["path"] == f"/v1beta/models/{{model}}:{verb}"


async def test_generate(customer: Customer, simulator: Running):
    async with google(customer) as client:
        answer = await client.aio.models.generate_content(model=MODEL, contents=SAY)
    assert len(answer.text.split()) == 5
    assert answer.usage_metadata.total_token_count == 58
    assert simulator.book.last.header("x-goog-api-key") == "sim-operator-key"
    await check(customer, stream=False)


async def test_stream(customer: Customer, simulator: Running):
    async with google(customer) as client:
        stream = await client.aio.models.generate_content_stream(model=MODEL, contents=SAY)
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage_metadata.total_token_count == 58
    assert simulator.book.last.path == f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
    await check(customer, stream=True)


@pytest.mark.parametrize("stream", [False, True])
async def test_searches_of_gemini_3(customer: Customer, stream):
    """Gemini 3 bills every search, 2.x a grounded request."""
    async with google(customer) as client:
        if stream:
            async for _ in await client.aio.models.generate_content_stream(model="gemini-3-pro", contents=SAY):
                pass
        else:
            await client.aio.models.generate_content(model="gemini-3-pro", contents=SAY)
    await check(customer, stream=stream, model="gemini-3-pro", searches=2)


async def test_in_a_thread(customer: Customer):
    async with google(customer) as client:

        def call() -> tuple[str, str]:
            whole = client.models.generate_content(model=MODEL, contents="Hello #sim seed=1#")
            chunks = client.models.generate_content_stream(model=MODEL, contents="Hello #sim seed=1#")
            text = "".join(chunk.text or "" for chunk in chunks)
            with pytest.raises(errors.ClientError) as caught:
                client.models.generate_content(model="gemini-unknown", contents="Hello")
            assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")
            return whole.text, text

        whole, streamed = await asyncio.to_thread(call)
    assert whole == streamed != ""
    records = await customer.calls(3)
    assert records[1]["cost"] == records[2]["cost"] != "0"


async def test_tools(customer: Customer):
    declared = types.FunctionDeclaration(
        name="look_up", parameters=types.Schema(type="OBJECT", properties={"city": types.Schema(type="STRING")})
    )
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declared])],
        tool_config=types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode="ANY")),
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )
    async with google(customer) as client:
        answer = await client.aio.models.generate_content(model=MODEL, contents="Hello", config=config)
    assert [call.name for call in answer.function_calls] == ["look_up"]
    assert (await customer.call())["status"] == 200


async def test_count_embed_models(customer: Customer, simulator: Running):
    async with google(customer) as client:
        counted = await client.aio.models.count_tokens(model=MODEL, contents="Hello, you")
        assert b'"totalTokens": %d' % counted.total_tokens in simulator.book.last.sent
        config = types.EmbedContentConfig(output_dimensionality=5)
        embedded = await client.aio.models.embed_content(
            model="gemini-embedding-001", contents=["one", "two"], config=config
        )
        assert [len(one.values) for one in embedded.embeddings] == [5, 5]
        names = {model.name async for model in await client.aio.models.list()}
        assert {"models/gemini-2.5-flash", "models/gemini-3-pro", "models/gemini-embedding-001"} <= names
        assert not [name for name in names if "gpt" in name or "claude" in name]
        assert (await client.aio.models.get(model=MODEL)).name == f"models/{MODEL}"
    embedding, counting = await customer.calls(2)
    assert counting["cost"] == "0"
    # The answer reports no usage: what the relay counted of the request is charged.
    assert (embedding["usage_source"], embedding["output_tokens"]) == ("estimated", 0)
    assert nano(embedding["cost"]) == cost_nano("gemini-embedding-001", embedding["input_tokens"]) > 0


async def test_errors_of_the_provider_pass(customer: Customer):
    async with google(customer) as client:
        for status, kind, name in (
            (400, errors.ClientError, "INVALID_ARGUMENT"),
            (429, errors.ClientError, "RESOURCE_EXHAUSTED"),
            (500, errors.ServerError, "INTERNAL"),
        ):
            with pytest.raises(kind) as caught:
                await client.aio.models.generate_content(model=MODEL, contents=f"#sim status={status}#")
            assert (caught.value.code, caught.value.status) == (status, name)
        with pytest.raises(errors.APIError):
            async for _ in await client.aio.models.generate_content_stream(
                model=MODEL, contents="#sim events=9 error_at=2#"
            ):
                pass
    costs = [nano(record["cost"]) for record in await customer.calls(4)]
    assert costs[0] > 0
    assert costs[1:] == [0, 0, 0]
