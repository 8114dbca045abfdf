"""Calls of the official SDKs that make objects, with an Idempotency-Key, and how a repeat of one is refused."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anthropic
import openai
import pytest
from google.genai import errors as google_errors
from google.genai import types as google_types

from tests.functional.clients import async_anthropic, async_openai, google
from tests.functional.relay_process import Customer, eventually

Make = Callable[[str], Awaitable[str]]  # with a key; gives the id of the call that it made
ERRORS = (openai.APIStatusError, anthropic.APIStatusError, google_errors.APIError)


def batch_lines(text: str) -> bytes:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], "max_tokens": 9}
    row = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(row).encode() + b"\n"


@contextlib.asynccontextmanager
async def maker(kind: str, customer: Customer, text: str = "Hello") -> AsyncIterator[Make]:
    """The call of an official SDK that makes an object of this kind, from `text`; the same every time."""
    if kind == "message_batch":
        params = {
            "model": "claude-sonnet-5",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": text}],
        }
        async with async_anthropic(customer) as claude:

            async def make(key: str) -> str:
                answer = await claude.messages.batches.with_raw_response.create(
                    requests=[{"custom_id": "c", "params": params}],  # type: ignore[typeddict-item]
                    extra_headers={"Idempotency-Key": key},
                )
                return answer.headers["x-relay-request-id"]

            yield make
        return
    if kind == "gemini_batch":
        src: Any = [{"contents": [{"role": "user", "parts": [{"text": text}]}]}]
        async with google(customer) as gemini:

            async def make(key: str) -> str:
                config = google_types.CreateBatchJobConfig(
                    http_options=google_types.HttpOptions(headers={"Idempotency-Key": key}), display_name="one"
                )
                before = await succeeded(customer)
                await gemini.aio.batches.create(model="gemini-2.5-flash", src=src, config=config)
                new: set[str] = set()

                async def recorded() -> bool:  # this SDK does not show the answer's headers
                    new.update(await succeeded(customer) - before)
                    return bool(new)

                await eventually(recorded)
                return new.pop()

            yield make
        return
    async with async_openai(customer) as client:
        calls: dict[str, Callable[..., Awaitable[Any]]] = {
            "file": lambda **more: client.files.with_raw_response.create(
                file=("notes.txt", text.encode()), purpose="user_data", **more
            ),
            "video": lambda **more: client.videos.with_raw_response.create(
                model="sora-2", prompt=text, seconds="4", **more
            ),
            "response": lambda **more: client.responses.with_raw_response.create(
                model="gpt-5", input=text, background=True, max_output_tokens=9, **more
            ),
        }
        if kind == "batch":
            file = (await client.files.create(file=("a.jsonl", batch_lines("Hello")), purpose="batch")).id
            calls["batch"] = lambda **more: client.batches.with_raw_response.create(
                input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h",
                metadata={"a": text}, **more,
            )  # fmt: skip
        elif kind == "remix":
            video = (await client.videos.create(model="sora-2", prompt="A cat #sim polls=0#", seconds="4")).id
            await client.videos.retrieve(video)
            calls["remix"] = lambda **more: client.videos.with_raw_response.remix(video, prompt=text, **more)

        async def make(key: str) -> str:
            answer = await calls[kind](extra_headers={"Idempotency-Key": key})
            return str(answer.headers["x-relay-request-id"])

        yield make


async def succeeded(customer: Customer) -> set[str]:
    return {row["id"] for row in await customer.relay.calls(key=customer.key, status=200)}


async def refused(make: Awaitable[Any], first: str, words: str = "") -> None:
    """A repeat, refused with the id of the first call."""
    with pytest.raises(ERRORS) as caught:
        await make
    error: Any = caught.value
    assert (error.code if isinstance(error, google_errors.APIError) else error.status_code) == 409, error
    assert f"{first}{words}." in str(error)
    headers = error.response.headers
    assert headers["x-should-retry"] == "false"
    assert headers["x-relay-first-request-id"] == first
    if not isinstance(error, google_errors.APIError):
        assert "idempotency_repeat" in str(error.body)
