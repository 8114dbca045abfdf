"""The official Anthropic SDK against the simulator."""

import asyncio

import anthropic
import pytest

from relay.simulator import Running

TOOLS = [{"name": "look_up", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}]


@pytest.fixture
async def client(simulator: Running):
    async with anthropic.AsyncAnthropic(
        base_url=simulator.base_url, api_key="sim-key", max_retries=0, _strict_response_validation=True
    ) as made:
        yield made


def ask(directives: str = "") -> dict:
    text = f"Say something. #sim {directives}#" if directives else "Say something."
    return {"model": "claude-sonnet-5", "max_tokens": 1000, "messages": [{"role": "user", "content": text}]}


async def test_message(client, simulator):
    answer = await client.messages.create(
        **ask("events=5 reasoning=3 cached=10 cache_write=20 cache_write_1h=30 search=2 input=100")
    )
    assert [block.type for block in answer.content] == [
        "thinking", "server_tool_use", "web_search_tool_result", "server_tool_use", "web_search_tool_result", "text",
    ]  # fmt: skip
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (40, 10, 50)
    assert (usage.cache_creation.ephemeral_5m_input_tokens, usage.cache_creation.ephemeral_1h_input_tokens) == (20, 30)
    assert usage.output_tokens == 8
    assert usage.output_tokens_details.thinking_tokens == 3
    assert usage.server_tool_use.web_search_requests == 2
    assert answer.stop_reason == "end_turn"
    assert simulator.book.last.output_tokens == 8


@pytest.mark.parametrize(
    "more", ["", "reasoning=3", "search=1", "tools=2", "ping=1", "ping=0", "cached=5 cache_write=6"]
)
async def test_stream_says_the_same(client, more):
    whole = await client.messages.create(**ask(f"seed=1 events=4 {more}"), tools=TOOLS)
    async with client.messages.stream(**ask(f"seed=1 events=4 {more}"), tools=TOOLS) as stream:
        streamed = await stream.get_final_message()
    assert streamed.model_dump(exclude={"usage", "content"}) == whole.model_dump(exclude={"usage", "content"})
    assert [block.to_dict() for block in streamed.content] == [block.to_dict() for block in whole.content]
    assert streamed.usage.to_dict() == whole.usage.to_dict()


async def test_order_of_events(client, simulator):
    stream = await client.messages.create(**ask("events=2 ping=2"), stream=True)
    assert [event.type async for event in stream] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    names = [line for line in bytes(simulator.book.last.sent).split(b"\n") if line.startswith(b"event: ")]
    assert names == [
        b"event: message_start", b"event: content_block_start", b"event: ping", b"event: content_block_delta",
        b"event: content_block_delta", b"event: ping", b"event: content_block_stop", b"event: message_delta",
        b"event: message_stop",
    ]  # fmt: skip


async def test_in_a_thread(simulator):
    def call() -> str:
        with (
            anthropic.Anthropic(base_url=simulator.base_url, api_key="sim-key") as client,
            client.messages.stream(**ask("events=3")) as stream,
        ):
            return "".join(stream.text_stream)

    assert len((await asyncio.to_thread(call)).split()) == 3


async def test_tools(client):
    answer = await client.messages.create(**ask(), tools=TOOLS, tool_choice={"type": "any"})
    assert answer.stop_reason == "tool_use"
    assert answer.content[0].name == "look_up"
    assert answer.content[0].input["city"]


async def test_limit(client):
    answer = await client.messages.create(**{**ask("events=50"), "max_tokens": 7})
    assert answer.usage.output_tokens == 7
    assert answer.stop_reason == "max_tokens"


async def test_count_tokens_and_models(client):
    asked = ask()
    counted = await client.messages.count_tokens(model=asked["model"], messages=asked["messages"])
    assert counted.input_tokens == (await client.messages.create(**asked)).usage.input_tokens
    assert [model.id async for model in client.models.list()]
    assert (await client.models.retrieve("claude-opus-5")).display_name


@pytest.mark.parametrize(
    ("status", "kind", "name"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"), (404, anthropic.NotFoundError, "not_found_error"),
        (429, anthropic.RateLimitError, "rate_limit_error"), (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.InternalServerError, "overloaded_error"),
    ],
)  # fmt: skip
async def test_errors(client, status, kind, name):
    with pytest.raises(kind) as caught:
        await client.messages.create(**ask(f"status={status}"))
    assert caught.value.type == name
    assert caught.value.request_id


async def test_refusals(client, simulator):
    with pytest.raises(anthropic.AuthenticationError):
        await client.with_options(api_key="sk-ant-real").messages.create(**ask())
    with pytest.raises(anthropic.BadRequestError, match="at least one message"):
        await client.messages.create(model="claude-sonnet-5", max_tokens=10, messages=[])
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.create(**{**ask(), "model": "missing-model"})


async def test_an_error_in_the_stream(client):
    stream = await client.messages.create(**ask("events=9 error_at=2"), stream=True)
    with pytest.raises(anthropic.APIStatusError) as caught:
        async for _ in stream:
            pass
    assert caught.value.type == "overloaded_error"
