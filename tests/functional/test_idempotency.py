"""Idempotency-Key: a repeat within a day is neither forwarded nor billed, also across a restart and a kill."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.functional.clients import async_openai
from tests.functional.raw_upstream import Close, Exchange, Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually
from tests.functional.setting import config_text
from tests.support.http1 import STREAM_HEAD, Message, chunk_bytes, response_bytes
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANSWER = response_bytes(b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":8,"completion_tokens":7}}')


def body_of(text: str, model: str = "raw-chat", **more: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **more}).encode()


async def ask(customer: Customer, body: bytes, key: str, path: str = "/v1/chat/completions") -> Message:
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        fields = {"Authorization": f"Bearer {customer.secret}", "Idempotency-Key": key}
        if path.startswith("/v1/messages"):
            fields["anthropic-version"] = "2023-06-01"
        return await client.request("POST", path, fields, body, timeout_seconds=20.0)


def check_repeat(answer: Message, first: str | None, words: str = "") -> None:
    assert answer.status == 409
    assert answer.header("x-should-retry") == "false"
    assert answer.header("x-relay-first-request-id") == first
    assert first is not None
    error = json.loads(answer.body)["error"]
    assert first + words + "." in error["message"]
    assert error["code"] == "idempotency_repeat"


async def test_a_repeat_is_refused_while_the_call_runs_and_after_it(relay: RelayProcess, raw: RawUpstream):
    customer, other = await relay.customer(), await relay.customer()
    release = asyncio.Event()
    text, exchange = raw.script(Gate(release), ANSWER)
    body = body_of(text)
    first = asyncio.ensure_future(ask(customer, body, "key-1"))
    await until(lambda: exchange.requests)
    assert "idempotency-key" not in exchange.header
    running = await ask(customer, body, "key-1")
    second_key = await ask(await relay.another_key(customer), body, "key-1")
    release.set()
    answer = await first
    assert answer.status == 200
    first_id = answer.header("x-relay-request-id")
    check_repeat(running, first_id)
    check_repeat(second_key, first_id)  # the keys of one account share their names
    check_repeat(await ask(customer, body, "key-1"), first_id)
    check_repeat(await ask(customer, body + b" ", "key-1"), first_id, " with another body")
    await customer.settled_nano()
    await relay.command("ledger verify")  # waits until everything is committed
    check_repeat(await ask(customer, body, "key-1"), first_id)
    assert len(exchange.requests) == 1
    # Other keys, other accounts, and calls without a key are nothing to it.
    for caller, key in ((customer, "key-2"), (other, "key-1")):
        assert (await ask(caller, body_of(raw.script(ANSWER)[0]), key)).status == 200
    records = [record for record in await customer.calls(6, status=None) if record["status"] == 409]
    assert {(record["error_code"], record["cost"]) for record in records} == {("idempotency_repeat", "0")}


async def test_twenty_at_once_are_one_call(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer()
    text, exchange = raw.script(ANSWER)
    answers = await asyncio.gather(*(ask(customer, body_of(text), "key") for _ in range(20)))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 19
    first = next(answer for answer in answers if answer.status == 200).header("x-relay-request-id")
    await relay.command("ledger verify")  # waits until everything is committed
    answers += await asyncio.gather(*(ask(customer, body_of(text), "key") for _ in range(20)))
    for answer in answers:
        if answer.status != 200:
            check_repeat(answer, first)
    assert len(exchange.requests) == 1


async def test_the_other_dialects_say_it_in_their_shape(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer()
    message = b'{"content":[],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}'
    body = body_of(raw.script(response_bytes(message))[0], "raw-claude", max_tokens=5)
    assert (await ask(customer, body, "k", "/v1/messages")).status == 200
    repeat = await ask(customer, body, "k", "/v1/messages")
    assert repeat.status == 409
    assert json.loads(repeat.body)["type"] == "error"
    parts = {
        "contents": [{"parts": [{"text": raw.script(response_bytes(b'{"usageMetadata":{"promptTokenCount":1}}'))[0]}]}]
    }
    path = "/v1beta/models/raw-gemini:generateContent"
    assert (await ask(customer, json.dumps(parts).encode(), "g", path)).status == 200
    repeat = await ask(customer, json.dumps(parts).encode(), "g", path)
    assert repeat.status == 409
    assert json.loads(repeat.body)["error"]["code"] == 409


async def test_the_key_is_free_again_where_nothing_was_processed(relay: RelayProcess, raw: RawUpstream):
    customer, poor = await relay.customer(), await relay.customer("0")
    assert (await ask(poor, body_of("x", "gpt-4o"), "key")).status == 402
    await relay.command("credit add", id=poor.account, amount="1")
    assert (await ask(poor, body_of(raw.script(ANSWER)[0]), "key")).status == 200
    for steps, status in (
        ((Close(),), 502),
        ((response_bytes(b'{"error":{"message":"x"}}', status=500),), 500),
        ((response_bytes(b'{"error":{"message":"x"}}', status=400),), 400),
    ):
        text, _ = raw.script(*steps)
        assert (await ask(customer, body_of(text), "key")).status == status
    assert (await ask(customer, body_of("x", "gpt-down"), "key")).status == 503
    assert (await ask(customer, body_of("x", "no-such-model"), "key")).status == 404
    assert (await ask(customer, body_of(raw.script(ANSWER)[0]), "key")).status == 200
    assert (await ask(customer, body_of(raw.script(ANSWER)[0]), "key")).status == 409


async def test_a_retry_of_the_sdk_with_its_key_works(relay: RelayProcess, raw: RawUpstream):
    """OpenAI's SDK repeats a failed request with the same header."""
    customer = await relay.customer()
    text, exchange = raw.script(response_bytes(b'{"error":{"message":"x"}}', status=500))
    async with async_openai(customer, max_retries=1) as client:

        async def heal() -> None:
            await until(lambda: exchange.finished)
            exchange.steps = (ANSWER,)

        healing = asyncio.ensure_future(heal())
        answer = await client.chat.completions.create(
            model="raw-chat", messages=[{"role": "user", "content": text}], extra_headers={"Idempotency-Key": "sdk"}
        )
        await healing
    assert answer.choices[0].message.content == "a"
    assert len(exchange.requests) == 2


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_that_is_none_is_refused(relay: RelayProcess, key: str):
    answer = await ask(await relay.customer(), body_of("x"), key)
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["param"] == "idempotency-key"


async def test_counting_tokens_is_free_and_never_refused(relay: RelayProcess):
    customer = await relay.customer()
    body = body_of("Hello", "claude-sonnet-5")
    for _ in range(2):
        assert (await ask(customer, body, "key", "/v1/messages/count_tokens")).status == 200


async def test_keys_outlive_a_restart_and_a_kill(tmp_path: Path, raw: RawUpstream):
    relay = RelayProcess(tmp_path, config_text("http://127.0.0.1:9", raw.base_url))
    await relay.start()
    try:
        customer = await relay.customer()

        async def begin(key: str, *steps: Any) -> tuple[bytes, Exchange, "asyncio.Task[Message]"]:
            text, exchange = raw.script(*steps)
            body = body_of(text, stream=True)
            return body, exchange, asyncio.ensure_future(ask(customer, body, key))

        done, _, call = await begin("done", ANSWER)
        done_id = (await call).header("x-relay-request-id")
        assert await relay.stop() == 0
        await relay.start()
        check_repeat(await ask(customer, done, "done"), done_id)

        never = asyncio.Event()
        event = b'data: {"choices":[{"index":0,"delta":{"content":"Hello"}}]}\n\n'
        delivered, _, first = await begin("delivered", STREAM_HEAD + chunk_bytes(event), Gate(never))
        unanswered, waiting, second = await begin("unanswered", Gate(never))
        finished, _, third = await begin("finished", ANSWER)
        await third
        await until(lambda: waiting.requests)

        async def recorded() -> bool:
            return (await relay.status())["open_calls"] == 2

        await eventually(recorded)
        await asyncio.sleep(0.1)  # the event is on its way to the client
        await relay.kill()
        for call in (first, second):
            call.cancel()
        never.set()
        await relay.start()
        for body, key in ((done, "done"), (delivered, "delivered"), (finished, "finished")):
            assert (await ask(customer, body, key)).status == 409, key
        text, _ = raw.script(ANSWER)
        assert (await ask(customer, body_of(text), "unanswered")).status == 200
        assert unanswered
        assert (await relay.command("ledger verify"))["ok"]
    finally:
        await relay.kill()
