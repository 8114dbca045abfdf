"""curl through a relay, as people type it."""

import asyncio
import json

import pytest

from relay.simulator import Running
from tests.clients import curl
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.test_sdk_openai import check_record

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAY = "Say something. #sim events=6 input=40 cached=10#"


async def run(customer: Customer, path: str, *options: str, body: object = None, header: str = "") -> tuple[int, str]:
    """Status and body."""
    header = header or f"Authorization: Bearer {customer.secret}"
    data = ["-H", "Content-Type: application/json", "--data-binary", "@-"] if body else []
    process = await asyncio.create_subprocess_exec(
        curl(), "-sS", "-w", "\n%{http_code}", "-H", header, *data, *options, customer.relay.base_url + path,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate(json.dumps(body).encode() if body else b"")
    assert process.returncode == 0
    text, _, status = out.decode().rpartition("\n")
    return int(status), text


def chat(**more: object) -> dict[str, object]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": SAY}]} | more


async def test_a_whole_answer(customer: Customer, simulator: Running):
    status, text = await run(customer, "/v1/chat/completions", body=chat())
    assert status == 200
    usage = json.loads(text)["usage"]
    record = await check_record(customer, simulator.book.last, stream=False)
    assert usage["prompt_tokens"] == record["input_tokens"] + record["cache_read_tokens"] == 40
    assert usage["completion_tokens"] == record["output_tokens"]
    assert record["user_agent"].startswith("curl/")


async def test_a_stream(customer: Customer, simulator: Running):
    body = chat(stream=True, stream_options={"include_usage": True})
    status, text = await run(customer, "/v1/chat/completions", "-N", body=body)
    assert status == 200
    assert text.encode() == bytes(simulator.book.last.sent)
    await check_record(customer, simulator.book.last, stream=True)


async def test_the_other_dialects(customer: Customer):
    """Each with the header that its provider's documentation shows."""
    message = {"model": "claude-sonnet-5", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}
    version = ("-H", "anthropic-version: 2023-06-01")
    status, text = await run(customer, "/v1/messages", *version, body=message, header=f"x-api-key: {customer.secret}")
    assert (status, json.loads(text)["type"]) == (200, "message")
    path = "/v1beta/models/gemini-2.5-flash:generateContent"
    content = {"contents": [{"parts": [{"text": "Hello"}]}]}
    status, text = await run(customer, path, body=content, header=f"x-goog-api-key: {customer.secret}")
    assert status == 200
    assert "candidates" in json.loads(text)
    status, _ = await run(customer, f"{path}?key={customer.secret}", body=content, header="x-nothing: 1")
    assert status == 200
    await customer.calls(3)


async def test_errors(customer: Customer, relay: RelayProcess):
    status, text = await run(customer, "/v1/chat/completions", body=chat(), header="Authorization: Bearer sk-nobody")
    assert (status, json.loads(text)["error"]["code"]) == (401, "invalid_api_key")
    poor = await relay.customer("0")
    status, text = await run(poor, "/v1/chat/completions", body=chat())
    assert (status, json.loads(text)["error"]["code"]) == (402, "insufficient_balance")
    assert (await poor.call())["error_code"] == "insufficient_balance"


async def test_models(customer: Customer):
    status, text = await run(customer, "/v1/models")
    assert status == 200
    assert "gpt-4o" in [model["id"] for model in json.loads(text)["data"]]


async def test_a_large_body_waits_for_the_go_ahead(customer: Customer, simulator: Running):
    """curl sends `Expect: 100-continue` above a megabyte, and before that with some versions."""
    body = chat() | {"metadata": {"padding": "x" * 500_000}}
    status, _ = await run(customer, "/v1/chat/completions", "-H", "Expect: 100-continue", body=body)
    assert status == 200
    await check_record(customer, simulator.book.last, stream=False)
