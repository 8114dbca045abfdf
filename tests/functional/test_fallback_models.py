"""Another model where all channels of a model have failed: in each dialect, by real SDKs through a relay."""

import json

import openai
import pytest

from relay.simulator import Running
from tests.functional.clients import async_anthropic, async_openai, google
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import Customer, nano
from tests.functional.setting import cost_nano

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # The SDK's own subclassing of aiohttp's session.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]

CHAT = [{"role": "user", "content": "Hello"}]
FAILED = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


async def check(customer: Customer, model: str, attempts: int = 2) -> None:
    record = await customer.call()
    assert (record["model"], record["status"], record["attempts"]) == (model, 200, attempts)
    cost = cost_nano(
        model, record["input_tokens"], record["output_tokens"], record["cache_read_tokens"],
        record["cache_write_tokens"],
    )  # fmt: skip
    assert nano(record["cost"]) == cost > 0
    assert await customer.settled_nano() == 100 * 10**9 - cost


@pytest.mark.parametrize("stream", [False, True])
async def test_users_ask_13_openai(customer: Customer, simulator: Running, stream: bool):
    async with async_openai(customer) as client:
        if stream:
            chunks = [
                chunk async for chunk in await client.chat.completions.create(
                    model="gpt-falls", messages=CHAT, stream=True
                )
            ]  # fmt: skip
            assert chunks[0].model == "gpt-4o"
        else:
            answer = await client.chat.completions.create(model="gpt-falls", messages=CHAT)
            assert answer.model == "gpt-4o"
    assert json.loads(simulator.book.last.body)["model"] == "gpt-4o"
    await check(customer, "gpt-4o")


@pytest.mark.parametrize("stream", [False, True])
async def test_users_ask_13_anthropic(customer: Customer, simulator: Running, stream: bool):
    async with async_anthropic(customer) as client:
        if stream:
            async with client.messages.stream(model="claude-falls", max_tokens=50, messages=CHAT) as events:
                message = await events.get_final_message()
        else:
            message = await client.messages.create(model="claude-falls", max_tokens=50, messages=CHAT)
    assert message.model == "claude-sonnet-5"
    assert json.loads(simulator.book.last.body)["model"] == "claude-sonnet-5"
    await check(customer, "claude-sonnet-5")


@pytest.mark.parametrize("stream", [False, True])
async def test_users_ask_13_gemini(customer: Customer, simulator: Running, stream: bool):
    async with google(customer) as client:
        if stream:
            async for _ in await client.aio.models.generate_content_stream(model="gemini-falls", contents="Hello"):
                pass
        else:
            await client.aio.models.generate_content(model="gemini-falls", contents="Hello")
    assert simulator.book.last.path.startswith("/v1beta/models/gemini-2.5-flash:")
    await check(customer, "gemini-2.5-flash")


@pytest.mark.parametrize("status", [b"500 Wrong", b"429 Later", b"401 Who", b"404 No"])
async def test_after_an_answer_that_is_a_failure(customer: Customer, raw: RawUpstream, status: bytes):
    name, _ = raw.script(FAILED % status)
    async with async_openai(customer) as client:
        answer = await client.chat.completions.create(
            model="raw-falls", messages=[{"role": "user", "content": f"#raw {name}#"}]
        )
        assert answer.model == "gpt-4o"
    await check(customer, "gpt-4o")


async def test_a_key_that_may_not_use_the_other_model_gets_the_failure(customer: Customer, simulator: Running):
    before = simulator.book.requests
    limited = await customer.relay.another_key(customer, models=["gpt-falls"])
    async with async_openai(limited) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="gpt-falls", messages=CHAT)
        assert caught.value.status_code == 503
    record = await limited.call()
    assert (record["model"], record["error_code"], record["cost"]) == ("gpt-falls", "upstream_unavailable", "0")
    assert simulator.book.requests == before
    assert await customer.settled_nano() == 100 * 10**9


async def test_the_hold_must_cover_the_other_model(raw: RawUpstream, customer: Customer, simulator: Running):
    """What was held for the first is given back all the same, once."""
    before = simulator.book.requests
    poor = await customer.relay.customer("0.01")
    name, _ = raw.script(FAILED % b"500 Wrong")
    messages = [{"role": "user", "content": f"#raw {name}#"}]
    async with async_openai(poor) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="raw-falls", messages=messages, max_tokens=4000)
    record = await poor.call()
    assert (record["error_code"], record["cost"]) == ("upstream_failed", "0")
    assert await poor.settled_nano() == 10**7
    name, _ = raw.script(FAILED % b"500 Wrong")
    messages = [{"role": "user", "content": f"#raw {name}#"}]
    async with async_openai(customer, default_headers={"x-relay-max-cost": "0.0001"}) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="raw-falls", messages=messages, max_tokens=50)
    assert simulator.book.requests == before
    assert await customer.settled_nano() == 100 * 10**9


async def test_who_has_chosen_the_channel_gets_its_failure(customer: Customer):
    choosing = await customer.relay.another_key(customer, scopes=["channel"])
    async with async_openai(choosing, default_headers={"x-relay-channel": "falls"}) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="gpt-falls", messages=CHAT)


async def test_limits_count_the_call_once(customer: Customer):
    limited = await customer.relay.another_key(customer, rpm=1)
    async with async_openai(limited) as client:
        await client.chat.completions.create(model="gpt-falls", messages=CHAT)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model="gpt-falls", messages=CHAT)
