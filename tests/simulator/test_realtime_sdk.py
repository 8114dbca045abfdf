"""The simulator's realtime sessions with the official SDK: its own types are the judge of every event."""

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import websockets
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from relay.simulator import Running

SERVER_EVENT: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
SECOND = base64.b64encode(bytes(48_000)).decode()


class Talk:
    """A session; every event that comes is validated against the SDK's types, which the SDK itself does not do."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def send(self, **event: Any) -> None:
        await self.connection.send(event)

    async def hear(self) -> Any:
        data = await self.connection.recv_bytes()
        event = SERVER_EVENT.validate_json(data)
        assert event.type == json.loads(data)["type"]
        assert event.event_id
        return event

    async def until(self, kind: str) -> list[Any]:
        events = [await self.hear()]
        while events[-1].type != kind:
            events.append(await self.hear())
        return events

    async def respond(self, directives: str = "", **more: Any) -> list[Any]:
        await self.send(type="response.create", response={"instructions": f"Say. #sim {directives}#", **more})
        return await self.until("rate_limits.updated")


@contextlib.asynccontextmanager
async def talking(simulator: Running, key: str = "sim-key", model: str = "gpt-realtime") -> AsyncIterator[Talk]:
    async with (
        openai.AsyncOpenAI(base_url=f"{simulator.base_url}/v1", api_key=key, max_retries=0) as client,
        client.realtime.connect(model=model, max_retries=0) as connection,
    ):
        talk = Talk(connection)
        first = await talk.hear()
        assert first.type == "session.created"
        assert first.session.model == model
        yield talk


async def test_text(simulator: Running):
    async with talking(simulator) as talk:
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello, who are you?"}]}
        await talk.send(type="conversation.item.create", item=item)
        added, done = [await talk.hear() for _ in range(2)]
        assert (added.type, done.type) == ("conversation.item.added", "conversation.item.done")
        assert added.item.id == done.item.id
        assert added.item.content[0].text == "Hello, who are you?"
        events = await talk.respond("events=3 tokens=2", output_modalities=["text"], metadata={"a": "b"})
    assert [event.type for event in events] == [
        "response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added",
        *["response.output_text.delta"] * 3, "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "conversation.item.done", "response.done", "rate_limits.updated",
    ]  # fmt: skip
    text = "".join(event.delta for event in events[4:7])
    assert len(text.split()) == 6
    assert events[7].text == text
    assert events[2].previous_item_id == added.item.id
    response = events[-2].response
    assert (response.status, response.metadata, response.output_modalities) == ("completed", {"a": "b"}, ["text"])
    assert response.output[0].content[0].text == text
    usage = response.usage
    assert (usage.output_tokens, usage.output_token_details.text_tokens, usage.output_token_details.audio_tokens) == (
        6, 6, 0,
    )  # fmt: skip
    assert usage.input_tokens > 5
    assert usage.total_tokens == usage.input_tokens + 6
    entry = simulator.book.last
    await simulator.book.wait(lambda book: entry.outcome == "finished")
    assert (entry.status, entry.model, entry.output_tokens, entry.output_tokens_sent) == (101, "gpt-realtime", 6, 6)
    assert len(entry.messages_received) == 2
    assert [json.loads(text)["type"] for text in entry.messages_sent][-1] == "rate_limits.updated"


async def test_sound(simulator: Running):
    async with talking(simulator) as talk:
        session = {"type": "realtime", "instructions": "Be brief.", "audio": {"output": {"voice": "marin"}}}
        await talk.send(type="session.update", session=session)
        updated = await talk.hear()
        assert updated.type == "session.updated"
        assert (updated.session.instructions, updated.session.audio.output.voice) == ("Be brief.", "marin")
        assert updated.session.audio.input.format.type == "audio/pcm"
        await talk.send(type="input_audio_buffer.commit")
        refused = await talk.hear()
        assert (refused.type, refused.error.code) == ("error", "input_audio_buffer_commit_empty")
        for _ in range(2):
            await talk.send(type="input_audio_buffer.append", audio=SECOND)
        await talk.send(type="input_audio_buffer.clear")
        assert (await talk.hear()).type == "input_audio_buffer.cleared"
        await talk.send(type="input_audio_buffer.append", audio=SECOND)
        await talk.send(type="input_audio_buffer.commit")
        committed, added, _ = [await talk.hear() for _ in range(3)]
        assert committed.type == "input_audio_buffer.committed"
        assert (added.type, added.item.id) == ("conversation.item.added", committed.item_id)
        events = await talk.respond("events=3 audio_ms=500 cached=12")
        kinds = [event.type for event in events]
        assert kinds.count("response.output_audio.delta") == kinds.count("response.output_audio_transcript.delta") == 3
        sound = b"".join(base64.b64decode(event.delta) for event in events if event.type.endswith("_audio.delta"))
        assert len(sound) == 3 * 500 * 48
        usage = events[-2].response.usage
        assert (usage.output_token_details.audio_tokens, usage.output_token_details.text_tokens) == (30, 3)
        assert usage.input_token_details.audio_tokens == 10
        assert usage.input_token_details.cached_tokens == 12
        cached = usage.input_token_details.cached_tokens_details
        assert cached.text_tokens + cached.audio_tokens == 12
        assert events[-2].response.output[0].content[0].transcript


async def test_the_conversation_grows_and_items_can_be_changed(simulator: Running):
    async with talking(simulator) as talk:
        first = (await talk.respond("events=30", output_modalities=["text"]))[-2].response
        second = (await talk.respond("events=1", output_modalities=["text"]))[-2].response
        assert second.usage.input_tokens > first.usage.input_tokens
        name = first.output[0].id
        await talk.send(type="conversation.item.retrieve", item_id=name)
        assert (await talk.hear()).item.id == name
        await talk.send(type="conversation.item.truncate", item_id=name, content_index=0, audio_end_ms=10)
        assert (await talk.hear()).type == "conversation.item.truncated"
        await talk.send(type="conversation.item.delete", item_id=name)
        assert (await talk.hear()).item_id == name
        await talk.send(type="conversation.item.retrieve", item_id=name, event_id="mine")
        missing = await talk.hear()
        assert (missing.error.code, missing.error.event_id) == ("item_not_found", "mine")


async def test_tools(simulator: Running):
    tool = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}}
    async with talking(simulator) as talk:
        events = await talk.respond("events=2 tools=2", tools=[tool])
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.name for event in done] == ["look_up", "look_up"]
    assert all("city" in json.loads(event.arguments) for event in done)
    items = events[-2].response.output
    assert [item.type for item in items] == ["function_call"] * 2
    assert items[0].call_id != items[1].call_id


async def test_one_response_at_a_time_and_cancelling(simulator: Running):
    async with talking(simulator) as talk:
        await talk.send(type="response.cancel")
        assert (await talk.hear()).error.code == "response_cancel_not_active"
        asked = {"instructions": "#sim events=1000 pace_ms=5#", "output_modalities": ["text"]}
        await talk.send(type="response.create", response=asked)
        await talk.until("response.output_text.delta")
        await talk.send(type="response.create")
        error = (await talk.until("error"))[-1]
        assert error.error.code == "conversation_already_has_active_response"
        await talk.send(type="response.cancel")
        response = (await talk.until("response.done"))[-1].response
        assert response.status == "cancelled"
        assert response.status_details.reason == "client_cancelled"
        assert 0 < response.usage.output_tokens < 1000
        assert (await talk.until("rate_limits.updated"))[-1]
        assert (await talk.respond("events=1"))[-2].response.status == "completed"


async def test_limits_failures_and_damaged_usage(simulator: Running):
    async with talking(simulator) as talk:
        text = {"output_modalities": ["text"]}
        short = (await talk.respond("events=50", max_output_tokens=5, **text))[-2].response
        assert (short.status, short.usage.output_tokens) == ("incomplete", 5)
        failed = (await talk.respond("events=5 error_at=2", **text))[-2].response
        assert (failed.status, failed.usage.output_tokens) == ("failed", 2)
        assert (await talk.respond("usage=null", **text))[-2].response.usage is None
        assert (await talk.respond("usage=zero", **text))[-2].response.usage.total_tokens == 0
        await talk.send(type="nothing")
        assert (await talk.hear()).error.param == "type"
        await talk.send(type="response.create", response={"instructions": "#sim nonsense#"})
        assert "nonsense" in (await talk.hear()).error.message


async def test_sessions_that_break(simulator: Running):
    async with talking(simulator) as talk:
        with pytest.raises(websockets.ConnectionClosedError):
            await talk.respond("events=50 cut=2000", output_modalities=["text"])
    entry = simulator.book.last
    assert entry.outcome == "cut"
    assert 2000 <= entry.body_bytes_sent < 5000
    async with talking(simulator) as talk:
        await talk.send(type="response.create", response={"instructions": "#sim stall=2000#"})
        await talk.until("response.output_audio.delta")
        stalled = simulator.book.last
        await simulator.book.wait(lambda book: stalled.stalled)
    await simulator.book.wait(lambda book: stalled.outcome == "finished")


async def test_refused_handshakes(simulator: Running):
    async def status(key: str = "sim-key", model: str = "gpt-realtime") -> int:
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with talking(simulator, key, model):
                pass
        return caught.value.response.status_code

    assert await status(key="wrong") == 401
    assert await status(model="missing-model") == 404
    simulator.defaults = "status=429"
    assert await status() == 429
    simulator.defaults = ""
    async with openai.AsyncOpenAI(base_url=f"{simulator.base_url}/v1", api_key="sim-key", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError):
            await client.get("/realtime?model=gpt-realtime", cast_to=object)
