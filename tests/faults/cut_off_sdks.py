"""The official SDKs and a stream that is cut because the balance is out: each raises its error class, none hangs."""

import asyncio
import contextlib
from collections.abc import Iterator

import anthropic
import openai
from google.genai import errors as google_errors

from tests.functional.clients import async_anthropic, async_openai, google
from tests.functional.relay_process import RelayProcess

ASK = "Tell me. #sim events=900 pace_ms=1#"


@contextlib.contextmanager
def raises(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


async def the_sdks_raise(relay: RelayProcess) -> None:
    """One stream of each kind."""
    async with asyncio.timeout(30):
        messages = [{"role": "user", "content": ASK}]
        async with async_openai(await relay.customer("0.002")) as client:
            chat = await client.chat.completions.create(model="gpt-4o", messages=messages, stream=True)
            with raises(openai.APIError):
                assert [chunk async for chunk in chat] == []
        async with async_openai(await relay.customer("0.002")) as client:
            events = await client.responses.create(model="gpt-5", input=ASK, stream=True)
            with raises(openai.APIError):
                assert [event async for event in events] == []
        async with async_anthropic(await relay.customer("0.002")) as client:
            with raises(anthropic.APIStatusError):
                async with client.messages.stream(
                    model="claude-sonnet-5", messages=messages, max_tokens=5000
                ) as stream:
                    assert [event async for event in stream] == []
        async with google(await relay.customer("0.001")) as client:
            answer = await client.aio.models.generate_content_stream(model="gemini-2.5-flash", contents=ASK)
            with raises(google_errors.APIError):
                assert [chunk async for chunk in answer] == []
