"""Bodies that ask for jobs or name files, with something wrong at each place: never a fault of the relay's own."""

import asyncio
import copy
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from relay.simulator import Running
from tests.functional.relay_process import Customer, RelayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")

WRONG: list[Any] = [None, 5, -1, "x", "", [], {}, [1], [None], {"a": 1}, True, 1e99, 10**30, "\ud800", [[]], [{}]]
TURN = [{"role": "user", "content": "Hello"}]
FILE_TURN = [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}]
GEMINI_REQUEST = {
    "contents": [{"parts": [{"text": "Hello"}]}],
    "generationConfig": {"maxOutputTokens": 5, "candidateCount": 1},
    "model": "models/gemini-2.5-flash",
}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "video": ("videos", {"model": "sora-2", "prompt": "x", "seconds": "4", "input_reference": {"file_id": "f"}}),
    "batch": ("batches", {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"}),
    "message_batch": (
        "messages/batches",
        {
            "requests": [
                {"custom_id": "a", "params": {"model": "claude-sonnet-5", "max_tokens": 9, "messages": TURN}},
                {"custom_id": "b", "params": {"model": "claude-sonnet-5", "max_tokens": 9, "messages": FILE_TURN}},
            ]
        },
    ),
    "gemini_batch": (
        "models/gemini-2.5-flash:batchGenerateContent",
        {
            "batch": {
                "model": "models/gemini-2.5-flash",
                "inputConfig": {"requests": {"requests": [{"request": GEMINI_REQUEST, "metadata": {"key": "a"}}]}},
            }
        },
    ),
    "response": (
        "responses",
        {
            "model": "gpt-5",
            "input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}],
            "background": True,
            "previous_response_id": "resp_1",
            "conversation": {"id": "x"},
            "prompt": {"id": "p", "variables": {"a": {"file_id": "f"}}},
        },
    ),
    "plain response": (
        "responses",
        {"model": "gpt-5", "input": "x", "background": True, "service_tier": "flex", "max_output_tokens": 9},
    ),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inside:
        yield from places(item, (*path, name))


def changed(body: Any, path: tuple[Any, ...]) -> Iterator[Any]:
    """`body` with each wrong value at a place, and without that place."""
    for value in WRONG:
        made = [copy.deepcopy(body)]
        at: Any = made
        for name in (0, *path[:-1]) if path else ():
            at = at[name]
        at[path[-1] if path else 0] = value
        yield made[0]
    if path:
        made = at = copy.deepcopy(body)
        for name in path[:-1]:
            at = at[name]
        del at[path[-1]]
        yield made


@pytest.mark.parametrize("kind", BODIES)
async def test_something_wrong_at_each_place(relay: RelayProcess, customer: Customer, simulator: Running, kind: str):
    name, body = BODIES[kind]
    version = "v1beta" if kind == "gemini_batch" else "v1"
    headers = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"}
    gate = asyncio.Semaphore(8)
    async with aiohttp.ClientSession(relay.base_url, headers=headers) as session:

        async def ask(wrong: Any) -> None:
            data = json.dumps(wrong)
            async with gate, session.post(f"/{version}/{name}", data=data) as answer:
                text = await answer.text()
            assert "not yours" not in text, (data, text)

        await asyncio.gather(*(ask(wrong) for path in places(body) for wrong in changed(body, path)))
    assert relay.faults == []
    assert {state["in_flight"] for state in (await relay.status())["channels"]} == {0}
