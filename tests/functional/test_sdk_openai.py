"""The official OpenAI SDK through a relay: what it gets, what is recorded, and what it costs."""

import asyncio
import json

import openai
import pytest

from relay.simulator import Running
from relay.simulator.book import Entry
from tests.functional.clients import async_openai, sync_openai
from tests.functional.relay_process import Customer, nano
from tests.functional.setting import cost_nano

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOOLS = [
    {
        "type": "function",
        "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]


def ask(directives: str = "") -> list[dict]:
    return [{"role": "user", "content": f"Say something. #sim {directives}#" if directives else "Say something."}]


async def check_record(customer: Customer, entry: Entry, *, stream: bool, model: str = "gpt-4o", **more: int) -> dict:
    """The only call's record against the simulator's book, and its cost against the prices."""
    record = await customer.call()
    dimensions = {
        "input": entry.input_tokens - entry.cached_tokens - more.get("cache_write", 0),
        "output": entry.output_tokens,
        "cache_read": entry.cached_tokens,
        **more,
    }
    assert (record["status"], record["error_code"]) == (200, None)
    assert (record["model"], record["stream"], record["attempts"]) == (model, stream, 1)
    assert record["usage_source"] == "upstream"
    assert record["input_tokens"] == dimensions["input"]
    assert record["output_tokens"] == dimensions["output"]
    assert record["cache_read_tokens"] == dimensions["cache_read"]
    assert record["cache_write_tokens"] == more.get("cache_write", 0)
    assert record["web_searches"] == more.get("web_searches", 0)
    cost = cost_nano(model, **dimensions)
    assert cost > 0
    assert nano(record["cost"]) == cost
    assert await customer.settled_nano() == 100 * 10**9 - cost
    assert record["latency_ms"] >= record["first_byte_ms"] > 0
    assert record["source_ip"] == "127.0.0.1"
    return record


async def test_chat(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        answer = await client.chat.completions.create(
            model="gpt-4o", messages=ask("events=5 tokens=3 cached=4 reasoning=2 cache_write=3")
        )
    assert len(answer.choices[0].message.content.split()) == 15
    assert answer.usage.completion_tokens == 17
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer._request_id
    record = await check_record(customer, simulator.book.last, stream=False, cache_write=3)
    assert record["path"] == "/v1/chat/completions"
    assert record["user_agent"].startswith("AsyncOpenAI/Python")
    assert (record["channel"], record["upstream_model"]) == ("sim-openai", "gpt-4o")
    assert record["rate_card"]


async def test_chat_stream_with_usage(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        stream = await client.chat.completions.create(
            model="gpt-4o", messages=ask("events=5 cached=2"), stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage.completion_tokens == 5
    assert chunks[-1].choices == []
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) == 5
    await check_record(customer, simulator.book.last, stream=True)


async def test_chat_stream_without_usage_is_estimated(customer: Customer, simulator: Running):
    """A provider that was not asked reports nothing: the relay's own count is charged, and says so."""
    async with async_openai(customer) as client:
        stream = await client.chat.completions.create(model="gpt-4o", messages=ask("events=50"), stream=True)
        chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None for chunk in chunks)
    record = await customer.call()
    assert record["usage_source"] == "estimated"
    assert 40 <= record["output_tokens"] <= 150  # fifty made-up words
    assert record["input_tokens"] > 0
    cost = cost_nano("gpt-4o", record["input_tokens"], record["output_tokens"])
    assert nano(record["cost"]) == cost
    assert await customer.settled_nano() == 100 * 10**9 - cost
    assert b"stream_options" not in simulator.book.last.body


async def test_in_a_thread(customer: Customer, simulator: Running):
    def call() -> tuple[str, str, openai.OpenAIError | None]:
        with sync_openai(customer) as client:
            whole = client.chat.completions.create(model="gpt-4o", messages=ask("seed=3 events=6"))
            stream = client.chat.completions.create(model="gpt-4o", messages=ask("seed=3 events=6"), stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
            with pytest.raises(openai.NotFoundError) as caught:
                client.chat.completions.create(model="unknown", messages=ask())
            return whole.choices[0].message.content, text, caught.value

    whole, streamed, error = await asyncio.to_thread(call)
    assert whole == streamed != ""
    assert error.code == "model_not_found"
    records = await customer.calls(3)
    assert [(record["status"], record["stream"]) for record in records] == [(404, False), (200, True), (200, False)]
    assert all(record["user_agent"].startswith("OpenAI/Python") for record in records)


async def test_tools(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        whole = await client.chat.completions.create(model="gpt-4o", messages=ask("tools=2 seed=1"), tools=TOOLS)
        async with client.chat.completions.stream(
            model="gpt-4o", messages=ask("tools=2 seed=1"), tools=TOOLS, stream_options={"include_usage": True}
        ) as stream:
            final = await stream.get_final_completion()
    calls = whole.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["look_up", "look_up"]
    assert json.loads(calls[0].function.arguments)["city"]
    assert [one.function.arguments for one in final.choices[0].message.tool_calls] == [
        one.function.arguments for one in calls
    ]
    streamed, plain = await customer.calls(2)
    assert streamed["output_tokens"] == plain["output_tokens"] == simulator.book.last.output_tokens
    assert streamed["usage_source"] == "upstream"


async def test_several_choices(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        whole = await client.chat.completions.create(model="gpt-4o", messages=ask("events=4"), n=3)
    assert len(whole.choices) == 3
    await check_record(customer, simulator.book.last, stream=False)


async def test_completions(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        stream = await client.completions.create(
            model="gpt-4o", prompt="Once #sim events=3#", stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage.completion_tokens == 3
    assert (await check_record(customer, simulator.book.last, stream=True))["path"] == "/v1/completions"


async def test_completions_document(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        answer = await client.completions.create(model="gpt-4o", prompt="Once #sim events=3#")
    assert answer.usage.completion_tokens == 3
    assert (await check_record(customer, simulator.book.last, stream=False))["path"] == "/v1/completions"


async def test_responses(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        answer = await client.responses.create(
            model="gpt-5", input="Hello #sim events=6 reasoning=4 search=2 cached=3#"
        )
    assert [item.type for item in answer.output] == ["reasoning", "web_search_call", "web_search_call", "message"]
    assert answer.usage.output_tokens == 10
    record = await check_record(customer, simulator.book.last, stream=False, model="gpt-5", web_searches=2)
    assert record["path"] == "/v1/responses"


async def test_responses_stream(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        stream = await client.responses.create(
            model="gpt-5", input="Hello #sim events=4 reasoning=2 search=1 cached=3#", stream=True
        )
        events = [event async for event in stream]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert events[-1].type == "response.completed"
        assert events[-1].response.usage.output_tokens == 6
        await check_record(customer, simulator.book.last, stream=True, model="gpt-5", web_searches=1)
        async with client.responses.stream(model="gpt-5", input="Hello #sim events=3#") as helper:
            async for _ in helper:
                pass
            final = await helper.get_final_response()
    assert final.usage.output_tokens == 3


async def test_responses_incomplete(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        stream = await client.responses.create(
            model="gpt-5", input="Hello #sim events=40#", stream=True, max_output_tokens=5
        )
        events = [event async for event in stream]
    assert events[-1].type == "response.incomplete"
    await check_record(customer, simulator.book.last, stream=True, model="gpt-5")


@pytest.mark.parametrize("form", [None, "float", "base64"])
async def test_embeddings(customer: Customer, simulator: Running, form):
    more = {"encoding_format": form} if form else {}
    async with async_openai(customer) as client:
        answer = await client.embeddings.create(
            model="text-embedding-3-small", input=["one", "two"], dimensions=7, **more
        )
    assert len(answer.data) == 2
    assert answer.usage.prompt_tokens == simulator.book.last.input_tokens
    await check_record(customer, simulator.book.last, stream=False, model="text-embedding-3-small")


async def test_models(customer: Customer):
    async with async_openai(customer) as client:
        names = [model.id async for model in client.models.list()]
        assert {"gpt-4o", "gpt-renamed"} <= set(names)
        assert (await client.models.retrieve("gpt-4o")).id == "gpt-4o"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-17")
    limited = await customer.relay.another_key(customer, models=["gpt-4o"])
    async with async_openai(limited) as client:
        assert [model.id async for model in client.models.list()] == ["gpt-4o"]
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-5")


async def test_errors_of_the_provider_pass(customer: Customer, simulator: Running):
    """What the provider says about the request is the client's business, word for word; it costs nothing."""
    async with async_openai(customer) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="gpt-4o", messages=[])
        assert caught.value.param == "messages"
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="missing-upstream", messages=ask())
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="gpt-4o", messages=ask("status=500"), stream=True)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="gpt-4o", messages=ask("status=429"))
    records = await customer.calls(4)
    assert [record["status"] for record in records] == [429, 500, 404, 400]
    assert {record["error_code"] for record in records} == {"upstream_error"}
    assert {record["cost"] for record in records} == {"0"}
    assert await customer.settled_nano() == 100 * 10**9


async def test_an_error_in_the_stream_is_charged_as_reported(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        stream = await client.chat.completions.create(model="gpt-4o", messages=ask("events=9 error_at=2"), stream=True)
        with pytest.raises(openai.APIError) as caught:
            async for _ in stream:
                pass
    assert caught.value.type == "server_error"
    record = await customer.call()
    assert record["cost"] != "0"
    assert record["output_tokens"] > 0


async def test_the_same_records_from_every_side(customer: Customer, simulator: Running):
    """The customer's API, the operator's API and the command line show one call alike."""
    async with async_openai(customer) as client:
        await client.chat.completions.create(model="gpt-4o", messages=ask("events=2"))
    record = await customer.call()
    from_cli = await customer.relay.cli_json("calls", "--key", customer.key)
    assert from_cli == [record]
    import aiohttp

    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {customer.secret}"}) as session:
        base = customer.relay.base_url + "/relay/v1"
        async with session.get(base + "/calls") as answer:
            shown = (await answer.json())["calls"]
        async with session.get(base + "/balance") as answer:
            balance = await answer.json()
    hidden = {"channel", "upstream_model", "attempts"}
    assert shown == [{name: value for name, value in record.items() if name not in hidden}]
    assert nano(balance["available"]) == 100 * 10**9 - nano(record["cost"])
