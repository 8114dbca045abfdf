"""Limits, renaming, asked usage, keys that change while calls run."""

import asyncio
import json
import time
from typing import Any

import openai
import pytest

from relay.control.failures import CommandError
from relay.simulator import Running
from tests.functional.clients import async_openai
from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.streams import CHAT, GEMINI, MESSAGES, RESPONSES, Sample, head
from tests.functional.test_streaming import payload
from tests.support.http1 import Message, chunk_bytes, response_bytes
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


def chat(text: str = "Hello", model: str = "gpt-4o", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


async def ask(customer: Customer, body: Any, path: str = "/v1/chat/completions", **headers: str) -> Message:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        return await client.request("POST", path, {"Authorization": f"Bearer {customer.secret}", **headers}, data)


# -- limits


async def test_the_burst_is_the_limit_and_no_more(relay: RelayProcess, simulator: Running):
    customer = await relay.customer(rpm=10)
    answers = await asyncio.gather(*[ask(customer, chat()) for _ in range(25)])
    assert sorted(answer.status for answer in answers) == [200] * 10 + [429] * 15
    refusal = next(answer for answer in answers if answer.status == 429)
    # Ten a minute: the next one is free within six seconds, and the header says exactly when.
    assert 4000 < int(refusal.header("retry-after-ms") or 0) <= 6000
    assert refusal.header("retry-after") in ("5", "6")
    assert json.loads(refusal.body)["error"]["code"] == "rate_limit_exceeded"


async def test_limits_of_key_and_account(relay: RelayProcess):
    """A key's limit binds the key, the account's all its keys."""
    one = await relay.customer(rpm=2)
    two = await relay.another_key(one)
    assert [(await ask(one, chat())).status for _ in range(3)] == [200, 200, 429]
    assert (await ask(two, chat())).status == 200
    await relay.command("account set", id=one.account, rpm=1)
    statuses = [(await ask(two, chat())).status for _ in range(2)]
    assert statuses in ([200, 429], [429, 429])
    await relay.command("account set", id=one.account, rpm=0)
    assert (await ask(two, chat())).status == 200
    # A new limit counts at once.
    await relay.command("key set", id=one.key, rpm=0)
    assert (await ask(one, chat())).status == 200
    await relay.command("key set", id=one.key, models=["gpt-5"])
    assert (await ask(one, chat())).status == 403


async def test_an_organisation_binds_its_accounts(relay: RelayProcess):
    one = await relay.customer(organisation="Two accounts")
    two = await relay.customer(organisation="Two accounts")
    shown = await relay.command("account show", id=one.account)
    organisations = await relay.command("organisation list")
    number = next(each["id"] for each in organisations["organisations"] if each["name"] == shown["organisation"])
    await relay.command("organisation set", id=number, rpm=3)
    statuses = [(await ask(each, chat())).status for each in (one, two, one, two)]
    assert statuses == [200, 200, 200, 429]


async def test_places_come_back(relay: RelayProcess, raw: RawUpstream):
    """However a call ends, its place among the concurrent ones is free again."""
    customer = await relay.customer(concurrency=1)
    for how in ("finished", "refused", "provider's error", "client left", "upstream broke"):
        gate = asyncio.Event()
        if how == "finished":
            assert (await ask(customer, chat())).status == 200
        elif how == "refused":
            assert (await ask(customer, chat(model="none"))).status == 404
        elif how == "provider's error":
            assert (await ask(customer, chat("#sim status=500#"))).status == 500
        elif how == "client left":
            text, exchange = raw.script(Gate(gate))
            client = await RawClient.connect("127.0.0.1", relay.port)
            await client.send(CHAT.request_bytes(customer.secret, text))
            await until(lambda exchange=exchange: exchange.requests)
            await client.close()
            await until(exchange.gone.is_set)
        else:
            assert (await ask(customer, chat("#sim cut_head=10#"))).status == 502
        assert (await ask(customer, chat())).status == 200, how


async def test_tokens_per_call_by_model(relay: RelayProcess):
    customer = await relay.customer(tokens_per_call={"gpt-4o": 100, "*": 1000})
    assert (await ask(customer, chat(max_tokens=500))).status == 429
    assert (await ask(customer, chat(max_tokens=50))).status == 200
    assert (await ask(customer, chat(model="gpt-renamed", max_tokens=500))).status == 200
    assert (await ask(customer, chat(model="gpt-renamed", max_tokens=2000))).status == 429


@pytest.mark.parametrize("value", ["", "-1", "1e3", "many", "1,5", "0x1", "1.0000000001", "99999999999", " ", "."])
async def test_max_cost_that_is_no_amount(customer: Customer, simulator: Running, value: str):
    before = simulator.book.requests
    answer = await ask(customer, chat(), **{"x-relay-max-cost": value})
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["param"] == "x-relay-max-cost"
    assert simulator.book.requests == before


# -- what changes in a request


async def test_a_renamed_model(customer: Customer, simulator: Running):
    """Only that string changes, wherever and however it stands."""
    bodies = [
        b'{"model":"gpt-renamed","messages":[{"role":"user","content":"gpt-renamed"}]}',
        b'{"messages":[{"role":"user","content":"a"}],"x":{"model":"gpt-renamed"} , "model" :\t"gpt-renamed" }',
        b'{"messages":[{"role":"user","content":"a"}],"\\u006dodel":"gpt\\u002drenamed","z":1}',
    ]
    for body in bodies:
        answer = await ask(customer, body)
        assert answer.status == 200
        at = body.rfind(b'"gpt\\u002drenamed"' if b"002d" in body else b'"gpt-renamed"')
        if body is bodies[0]:
            at = body.find(b'"gpt-renamed"')
        size = 18 if b"002d" in body else 13
        assert simulator.book.last.body == body[:at] + b'"gpt-4o-2024-11-20"' + body[at + size :]
        assert answer.body == simulator.book.last.sent
    records = await customer.calls(3)
    assert {(record["model"], record["upstream_model"]) for record in records} == {("gpt-renamed", "gpt-4o-2024-11-20")}


OPTIONS = [
    b"",
    b',"stream_options":null',
    b',"stream_options":{}',
    b',"stream_options":{"include_usage":false}',
    b',"stream_options":{"include_obfuscation":false}',
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.decode() or "none")
async def test_usage_is_asked_for_and_taken_out(customer: Customer, simulator: Running, options: bytes):
    body = b'{"model":"gpt-strip","stream":true%b,"messages":[{"role":"user","content":"#sim events=5#"}]}' % options
    answer = await ask(customer, body)
    assert answer.status == 200
    entry = simulator.book.last
    asked = json.loads(entry.body)
    assert asked.pop("stream_options")["include_usage"] is True
    unasked = json.loads(body)
    unasked.pop("stream_options", None)
    assert asked == unasked
    events = bytes(entry.sent).split(b"\n\n")
    usage = [event for event in events if b'"choices":[]' in event]
    assert len(usage) == 1
    assert answer.body == bytes(entry.sent).replace(usage[0] + b"\n\n", b"")
    record = await customer.call()
    assert (record["usage_source"], record["output_tokens"]) == ("upstream", 5)


async def test_an_sdk_that_did_not_ask_for_usage(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        stream = await client.chat.completions.create(
            model="gpt-strip", messages=[{"role": "user", "content": "#sim events=4#"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
        assert all(chunk.choices for chunk in chunks)
        whole = await client.chat.completions.create(
            model="gpt-strip", messages=[{"role": "user", "content": "#sim events=4#"}]
        )
    assert whole.usage
    assert b"stream_options" not in simulator.book.last.body
    assert {record["output_tokens"] for record in await customer.calls(2)} == {4}


# -- keys and accounts that change while calls run


async def test_rotation_with_overlap(relay: RelayProcess, customer: Customer):
    assert (await ask(customer, chat())).status == 200
    await relay.command("key set", id=customer.key, rpm=6)
    made = await relay.command("key rotate", id=customer.key, overlap_seconds=2)
    until_ = time.monotonic() + 2.0
    fresh = Customer(relay, customer.account, customer.key, made["secret"])
    assert fresh.secret != customer.secret
    # Both open the same key, with one set of limits.
    statuses = [(await ask(each, chat())).status for each in (fresh, customer, fresh, customer, fresh, customer)]
    assert statuses == [200] * 6
    assert (await ask(fresh, chat())).status == 429
    await relay.command("key set", id=customer.key, rpm=0)
    # Two secrets of one key in one request are no contradiction.
    assert (await ask(fresh, chat(), **{"x-api-key": customer.secret})).status == 200
    await asyncio.sleep(max(0.0, until_ - time.monotonic()) + 0.1)
    assert (await ask(customer, chat())).status == 401
    assert (await ask(fresh, chat())).status == 200
    # Without overlap the old one ends at once.
    made = await relay.command("key rotate", id=customer.key)
    assert (await ask(fresh, chat())).status == 401
    assert (await ask(Customer(relay, customer.account, customer.key, made["secret"]), chat())).status == 200


async def test_a_kept_connection_does_not_keep_a_key_alive(relay: RelayProcess, customer: Customer):
    fields = {"Authorization": f"Bearer {customer.secret}"}
    body = json.dumps(chat()).encode()
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        assert (await client.request("POST", "/v1/chat/completions", fields, body)).status == 200
        await relay.command("key suspend", id=customer.key)
        assert (await client.request("POST", "/v1/chat/completions", fields, body)).status == 401
        await relay.command("key resume", id=customer.key)
        assert (await client.request("POST", "/v1/chat/completions", fields, body)).status == 200
        await relay.command("key rotate", id=customer.key)
        assert (await client.request("POST", "/v1/chat/completions", fields, body)).status == 401


ENDINGS = [
    ("key revoke", "key_revoked"),
    ("key suspend", "key_suspended"),
    ("account freeze", "account_inactive"),
    ("account ban", "account_inactive"),
    ("account close", "account_inactive"),
]


@pytest.mark.parametrize(("command", "code"), ENDINGS)
async def test_calls_in_flight_are_ended(relay: RelayProcess, raw: RawUpstream, command: str, code: str):
    """Streams get the dialect's error event and no end; what was delivered is charged."""
    customer = await relay.customer()
    running: list[tuple[Sample, RawClient, Any]] = []
    for sample in (CHAT, RESPONSES, MESSAGES, GEMINI):
        first = sample.events[0]
        text, exchange = raw.script(head(sample, "chunked", 0), chunk_bytes(first), Gate(asyncio.Event()))
        client = await RawClient.connect("127.0.0.1", relay.port)
        await client.send(sample.request_bytes(customer.secret, text))
        await client.until(lambda client=client, first=first: payload(client.received) == first)
        running.append((sample, client, exchange))
    text, waiting = raw.script(Gate(asyncio.Event()))
    pending = asyncio.ensure_future(ask(customer, chat(text, "raw-chat")))
    await until(lambda: waiting.requests)
    await relay.command(command, id=customer.key if command.startswith("key") else customer.account)
    for sample, client, exchange in running:
        await client.until(lambda client=client: client.eof or client.lost)
        added = payload(client.received)[len(sample.events[0]) :]
        assert added
        assert b"error" in added
        assert not client.received.endswith(b"0\r\n\r\n")
        await until(exchange.gone.is_set)
        await client.close()
    assert (await pending).status == (401 if command.startswith("key") else 403)
    await until(waiting.gone.is_set)
    records = await customer.calls(5)
    assert {record["error_code"] for record in records} == {code}
    assert [record["cost"] for record in records].count("0") >= 1
    await customer.settled_nano()


async def test_a_change_does_not_touch_other_customers(relay: RelayProcess, customer: Customer, raw: RawUpstream):
    other = await relay.customer()
    gate = asyncio.Event()
    text, _ = raw.script(Gate(gate), response_bytes(b"{}"))
    pending = asyncio.ensure_future(ask(other, chat(text, "raw-chat")))
    await relay.command("account freeze", id=customer.account)
    gate.set()
    assert (await pending).status == 200
    await relay.command("account unfreeze", id=customer.account)
    assert (await ask(customer, chat())).status == 200
    with pytest.raises(CommandError):
        await relay.command("account unfreeze", id=customer.account)


async def test_credits_count_at_once(relay: RelayProcess, simulator: Running):
    customer = await relay.customer("0")
    async with async_openai(customer) as client:
        messages: Any = [{"role": "user", "content": "Hello"}]
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="gpt-4o", messages=messages)
        assert caught.value.status_code == 402
        first = await relay.command("credit add", id=customer.account, amount="1", idempotency_key="once")
        again = await relay.command("credit add", id=customer.account, amount="1", idempotency_key="once")
        assert again["entry_id"] == first["entry_id"]
        assert (await client.chat.completions.create(model="gpt-4o", messages=messages)).usage
    cost = (await customer.calls(2))[0]["cost"]
    assert await customer.settled_nano() < 10**9
    refund = await relay.command("credit refund", id=customer.account, amount="0.5", reason="test")
    assert refund["entry_id"]
    with pytest.raises(CommandError):
        await relay.command("credit refund", id=customer.account, amount="0.6", reason="test")
    assert cost != "0"
    assert (await relay.command("ledger verify"))["ok"]
