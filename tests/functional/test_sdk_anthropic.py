"""The official Anthropic SDK through a relay."""

import asyncio

import anthropic
import pytest

from relay.simulator import Running
from tests.functional.clients import async_anthropic, sync_anthropic
from tests.functional.relay_process import Customer, nano
from tests.functional.setting import cost_nano

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = "claude-sonnet-5"
TOOLS = [{"name": "look_up", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]


def ask(directives: str = "") -> dict:
    text = f"Say something. #sim {directives}#" if directives else "Say something."
    return {"model": MODEL, "max_tokens": 1000, "messages": [{"role": "user", "content": text}]}


EVERYTHING = "events=5 reasoning=3 cached=10 cache_write=20 cache_write_1h=30 search=2 input=100"


async def check_everything(customer: Customer, *, stream: bool) -> None:
    record = await customer.call()
    assert (record["status"], record["stream"], record["usage_source"]) == (200, stream, "upstream")
    assert (record["input_tokens"], record["output_tokens"]) == (40, 8)
    assert (record["cache_read_tokens"], record["cache_write_tokens"], record["web_searches"]) == (10, 50, 2)
    cost = cost_nano(MODEL, 40, 8, 10, 20, 30, web_searches=2)
    assert nano(record["cost"]) == cost
    assert await customer.settled_nano() == 100 * 10**9 - cost
    assert record["path"] == "/v1/messages"


async def test_message(customer: Customer, simulator: Running):
    async with async_anthropic(customer) as client:
        answer = await client.messages.create(**ask(EVERYTHING))
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (40, 10, 50)
    assert usage.output_tokens == simulator.book.last.output_tokens == 8
    assert answer.stop_reason == "end_turn"
    await check_everything(customer, stream=False)


async def test_stream(customer: Customer, simulator: Running):
    async with async_anthropic(customer) as client, client.messages.stream(**ask(EVERYTHING)) as stream:
        message = await stream.get_final_message()
    assert message.usage.output_tokens == simulator.book.last.output_tokens == 8
    await check_everything(customer, stream=True)


async def test_stream_with_pings(customer: Customer, simulator: Running):
    async with async_anthropic(customer) as client:
        stream = await client.messages.create(**ask("events=2 ping=1"), stream=True)
        kinds = [event.type async for event in stream]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert b"event: ping" in simulator.book.last.sent


async def test_in_a_thread(customer: Customer):
    def call() -> tuple[str, str]:
        with sync_anthropic(customer) as client:
            whole = client.messages.create(**ask("seed=1 events=4"))
            with client.messages.stream(**ask("seed=1 events=4")) as stream:
                text = "".join(stream.text_stream)
            with pytest.raises(anthropic.NotFoundError):
                client.messages.create(**ask() | {"model": "claude-unknown"})
            return whole.content[0].text, text

    whole, streamed = await asyncio.to_thread(call)
    assert whole == streamed != ""
    records = await customer.calls(3)
    assert records[1]["cost"] == records[2]["cost"] != "0"


async def test_tools(customer: Customer, simulator: Running):
    async with async_anthropic(customer) as client:
        whole = await client.messages.create(**ask("tools=2 seed=1"), tools=TOOLS)
        async with client.messages.stream(**ask("tools=2 seed=1"), tools=TOOLS) as stream:
            streamed = await stream.get_final_message()
    assert whole.stop_reason == "tool_use"
    assert [block.input for block in streamed.content] == [block.input for block in whole.content]
    first, second = await customer.calls(2)
    assert first["output_tokens"] == second["output_tokens"] == simulator.book.last.output_tokens


async def test_count_tokens_is_free(simulator: Running, relay):
    penniless = await relay.customer("0")
    async with async_anthropic(penniless) as client:
        messages = [{"role": "user", "content": "Count me"}]
        counted = await client.messages.count_tokens(model=MODEL, messages=messages)
        assert counted.input_tokens > 0
        assert simulator.book.last.sent == b'{"input_tokens":%d}' % counted.input_tokens
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(model=MODEL, max_tokens=10, messages=messages)
    assert caught.value.status_code == 402
    refused, free = await penniless.calls(2)
    assert (free["path"], free["status"], free["cost"]) == ("/v1/messages/count_tokens", 200, "0")
    assert (refused["status"], refused["error_code"], refused["cost"]) == (402, "insufficient_balance", "0")


async def test_models(customer: Customer):
    async with async_anthropic(customer) as client:
        page = await client.models.list(limit=1000)
        names = [model.id async for model in page]
        assert MODEL in names
        assert (await client.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(anthropic.NotFoundError):
            await client.models.retrieve("claude-unknown")


async def test_errors_of_the_provider_pass(customer: Customer):
    async with async_anthropic(customer) as client:
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.create(model=MODEL, max_tokens=10, messages=[])
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**ask("status=529 error=overloaded"))
        assert caught.value.status_code == 529
    assert {record["cost"] for record in await customer.calls(2)} == {"0"}


async def test_an_error_in_the_stream(customer: Customer):
    async with async_anthropic(customer) as client:
        stream = await client.messages.create(**ask("events=9 error_at=3"), stream=True)
        with pytest.raises(anthropic.APIStatusError):
            async for _ in stream:
                pass
    record = await customer.call()
    assert record["output_tokens"] >= 3
    assert record["cost"] != "0"
