"""Realtime sessions with the official SDK: messages as they came, usage added up, every ending charged."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import websockets

from relay.simulator import Running
from tests.functional.clients import async_openai
from tests.functional.relay_process import Customer, RelayProcess, nano, verified
from tests.functional.setting import SIM_KEY as KEY
from tests.functional.setting import channel

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Credits per million tokens.
CONFIG = """
[server]
drain_seconds = 1
[plans.open]
rpm = 0
concurrency = 0
"""
RATE = """
[[rates]]
model = "gpt-realtime"
input = 4
output = 16
cache_read = 0.4
audio_input = 32
audio_output = 64
[[rates]]
model = "realtime-renamed"
input = 4
output = 16
[[rates]]
model = "realtime-refused"
input = 4
output = 16
[[rates]]
model = "realtime-missing"
input = 4
output = 16
"""
# To 800 ms of sound and a prompt that is partly cached, 40 tokens of text and three seconds of sound.
ASKED = "input=200 cached=64 events=4 tokens=10 audio_ms=750"
ONE_RESPONSE = (200 - 64 - 8) * 4_000 + 8 * 32_000 + 64 * 400 + 40 * 16_000 + 60 * 64_000
SOUND = base64.b64encode(bytes(800 * 48)).decode()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def relay(simulator: Running, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RelayProcess]:
    base_url = f"{simulator.base_url}/v1"
    channels = [
        channel("voice", "openai", base_url, '["gpt-realtime"]', KEY),
        channel("down", "openai", "http://127.0.0.1:9/v1", '["realtime-renamed"]', KEY),
        channel(
            "voice-renamed",
            "openai",
            base_url,
            '{ "realtime-renamed" = "gpt-realtime-2" }',
            KEY,
            "priority = 1",
        ),
        channel("refused", "openai", base_url, '["realtime-refused"]', "not-a-key-of-the-simulator"),
        channel("missing", "openai", base_url, '{ "realtime-missing" = "missing-model" }', KEY),
    ]
    async with verified(tmp_path_factory.mktemp("realtime"), CONFIG + "".join(channels) + RATE) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def customer(relay: RelayProcess) -> Customer:
    return await relay.customer("1")


def create(directives: str = ASKED, kind: str = "audio") -> dict[str, Any]:
    asked = {"instructions": f"Say something. #sim {directives}#", "output_modalities": [kind]}
    return {"type": "response.create", "response": asked}


async def speak(connection: Any) -> None:
    """What the user says, once in a session."""
    await connection.send({"type": "input_audio_buffer.append", "audio": SOUND})
    await connection.send({"type": "input_audio_buffer.commit"})


async def upstream_closed(simulator: Running) -> None:
    entry = simulator.book.last
    await simulator.book.wait(lambda book: entry.outcome != "open")


async def all_of(connection: Any) -> None:
    while True:
        await connection.recv()


async def until_type(connection: Any, kind: str) -> Any:
    async for event in connection:
        if event.type == kind:
            return event
    raise AssertionError(f"the session ended without {kind}")


async def test_a_session_adds_up(customer: Customer, simulator: Running):
    async with async_openai(customer) as client, client.realtime.connect(model="gpt-realtime") as connection:
        await speak(connection)
        for _ in range(2):
            await connection.send(create())
            done = await until_type(connection, "response.done")
            assert done.response.usage.total_tokens == 300
        assert nano((await customer.money())["held"]) > 2 * ONE_RESPONSE
    record = await customer.call()
    assert (record["status"], record["error_code"], record["usage_source"]) == (101, None, "upstream")
    assert (record["path"], record["model"], record["stream"]) == ("/v1/realtime", "gpt-realtime", True)
    assert (record["input_tokens"], record["cache_read_tokens"], record["output_tokens"]) == (272, 128, 200)
    assert nano(record["cost"]) == 2 * ONE_RESPONSE
    assert await customer.settled_nano() == 10**9 - 2 * ONE_RESPONSE
    sent = simulator.book.last
    assert sent.header("authorization") == f"Bearer {KEY}"
    assert customer.secret not in str(sent.headers)
    assert (sent.input_tokens, sent.cached_tokens, sent.output_tokens) == (400, 128, 200)


async def test_messages_are_not_touched(customer: Customer, simulator: Running):
    url = customer.relay.base_url.replace("http", "ws") + "/v1/realtime?model=gpt-realtime"
    headers = {"Authorization": f"Bearer {customer.secret}"}
    async with websockets.connect(url, additional_headers=headers, subprotocols=["realtime"]) as socket:
        assert socket.subprotocol == "realtime"
        assert socket.response.headers["x-relay-request-id"].startswith("call_")
        text = json.dumps(create("events=3 utf8=1"), indent=3)
        await socket.send(text)
        received = [await socket.recv() for _ in range(2)]
        while json.loads(received[-1])["type"] != "rate_limits.updated":
            received.append(await socket.recv())
    assert simulator.book.last.messages_received == [text]
    assert received == simulator.book.last.messages_sent
    await customer.call()


async def test_another_channel_and_another_name(customer: Customer, simulator: Running):
    async with async_openai(customer) as client, client.realtime.connect(model="realtime-renamed") as connection:
        await connection.send(create())
        await until_type(connection, "response.done")
    assert simulator.book.last.path == "/v1/realtime?model=gpt-realtime-2"
    record = await customer.call()
    assert (record["channel"], record["upstream_model"], record["attempts"]) == ("voice-renamed", "gpt-realtime-2", 2)


async def test_a_response_without_a_report_is_counted(customer: Customer):
    async with async_openai(customer) as client, client.realtime.connect(model="gpt-realtime") as connection:
        await connection.send(create("events=4 size=200 usage=null", "text"))
        await until_type(connection, "response.done")
    record = await customer.call()
    assert (record["usage_source"], record["error_code"]) == ("estimated", None)
    assert 4 * 40 < record["output_tokens"] < 4 * 60
    assert nano(record["cost"]) > 0


async def test_a_client_that_leaves_in_a_response(customer: Customer, simulator: Running):
    async with async_openai(customer) as client, client.realtime.connect(model="gpt-realtime") as connection:
        await connection.send(create("events=4 size=200 done=0", "text"))
        for _ in range(4):
            await until_type(connection, "response.output_text.delta")
    record = await customer.call()
    assert (record["status"], record["error_code"], record["usage_source"]) == (499, "client_gone", "estimated")
    assert nano(record["cost"]) > 0
    assert await customer.settled_nano() == 10**9 - nano(record["cost"])
    await upstream_closed(simulator)


async def test_sound_of_a_response_that_is_left_costs_as_sound(customer: Customer, simulator: Running):
    async with async_openai(customer) as client, client.realtime.connect(model="gpt-realtime") as connection:
        await speak(connection)
        await connection.send(create("events=1 audio_ms=1000 done=0"))
        await until_type(connection, "response.output_audio.delta")
    record = await customer.call()
    assert (record["error_code"], record["usage_source"]) == ("client_gone", "estimated")
    # Of the prompt eight tokens are sound, and twenty of the output; the rest is the text of the events.
    heard, spoken = 8, 20
    text = (record["input_tokens"] - heard) * 4_000 + (record["output_tokens"] - spoken) * 16_000
    assert record["output_tokens"] > spoken
    assert nano(record["cost"]) == heard * 32_000 + spoken * 64_000 + text
    await upstream_closed(simulator)


async def test_a_session_in_which_nothing_happened_costs_nothing(customer: Customer):
    async with async_openai(customer) as client, client.realtime.connect(model="gpt-realtime") as connection:
        await until_type(connection, "session.created")
    record = await customer.call()
    assert (record["status"], record["error_code"], record["cost"]) == (101, None, "0")
    assert await customer.settled_nano() == 10**9


async def test_the_upstream_goes_away(customer: Customer):
    async with async_openai(customer) as client, client.realtime.connect(model="gpt-realtime") as connection:
        await connection.send(create("events=2 size=200 cut=end", "text"))
        with pytest.raises(websockets.ConnectionClosedError):
            await all_of(connection)
    record = await customer.call()
    assert (record["status"], record["error_code"]) == (101, "upstream_truncated")
    assert nano(record["cost"]) > 0


async def test_the_balance_runs_out(relay: RelayProcess, simulator: Running):
    """The session is ended by an error event and a close, and what is there is all that is taken."""
    poor = await relay.customer("0.05")
    async with async_openai(poor) as client, client.realtime.connect(model="gpt-realtime") as connection:
        await connection.send(create("events=2000 size=200 done=0", "text"))
        error = await until_type(connection, "error")
        assert error.error.code == "balance_exhausted"
        with pytest.raises(websockets.ConnectionClosedError):
            await connection.recv()
    record = await poor.call()
    assert (record["status"], record["error_code"]) == (101, "balance_exhausted")
    cost, left = nano(record["cost"]), await poor.settled_nano()
    assert left >= 0
    assert 0 <= cost - (50_000_000 - left) < 10_000_000
    await upstream_closed(simulator)


async def test_a_revoked_key_ends_its_sessions(customer: Customer, relay: RelayProcess, simulator: Running):
    async with async_openai(customer) as client, client.realtime.connect(model="gpt-realtime") as connection:
        await connection.send(create())
        await until_type(connection, "response.done")
        await relay.command("key revoke", id=customer.key)
        error = await until_type(connection, "error")
        assert error.error.code == "key_revoked"
    record = await customer.call()
    assert (record["status"], record["error_code"]) == (101, "key_revoked")
    assert record["output_tokens"] == 100
    await upstream_closed(simulator)


@pytest.mark.parametrize("how", ["expiry", "rotation"])
async def test_finding_money_L7_a_key_that_expires_ends_its_sessions(relay: RelayProcess, simulator: Running, how: str):
    """So does a secret that has been replaced."""
    ends = (datetime.now(UTC) + timedelta(seconds=4)).isoformat() if how == "expiry" else None
    customer = await relay.customer(**({"expires": ends} if ends else {}))
    async with async_openai(customer) as client, client.realtime.connect(model="gpt-realtime") as connection:
        await connection.send(create())
        await until_type(connection, "response.done")
        if how == "rotation":
            await relay.command("key rotate", id=customer.key)
        error = await until_type(connection, "error")
        assert error.error.code == "key_expired"
    assert (await customer.call())["error_code"] == "key_expired"
    await upstream_closed(simulator)


async def test_refusals_are_http(customer: Customer, relay: RelayProcess):
    base = relay.base_url + "/v1/realtime"
    poor = await relay.customer("0")
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    expected = [
        (poor, "?model=gpt-realtime", upgrade, 402, "insufficient_balance"),
        (customer, "?model=nothing", upgrade, 404, "model_not_found"),
        (customer, "", upgrade, 400, "missing_model"),
        (customer, "?intent=transcription", upgrade, 400, "unsupported_feature"),
        (customer, "?model=gpt-realtime", {}, 426, "upgrade_required"),
    ]
    async with aiohttp.ClientSession() as session:
        for whose, query, fields, status, code in expected:
            headers = {**fields, "Authorization": f"Bearer {whose.secret}"}
            async with session.get(base + query, headers=headers) as answer:
                document = await answer.json()
                assert (answer.status, document["error"]["code"]) == (status, code), document
        async with session.get(base + "?model=gpt-realtime", headers=upgrade) as answer:
            assert answer.status == 401
        headers = {**upgrade, "Authorization": f"Bearer {customer.secret}"}
        for _ in range(2):  # the second finds a key that rests
            async with session.get(base + "?model=realtime-refused", headers=headers) as answer:
                text = await answer.text()
                assert (answer.status, json.loads(text)["error"]["code"]) == (503, "upstream_account")
                assert "Incorrect API key" not in text
        # A model that its only channel does not have is unknown here.
        async with session.get(base + "?model=realtime-missing", headers=headers) as answer:
            assert answer.status == 404
            assert "missing-model" not in (await answer.text())  # the provider's name of a renamed model
    refused, again, passed = (await customer.calls(7))[2::-1]
    assert (refused["channel"], refused["attempts"], refused["error_code"]) == ("refused", 1, "upstream_account")
    assert (again["channel"], again["attempts"], again["error_code"]) == (None, 0, "upstream_account")
    assert (passed["attempts"], passed["status"], passed["error_code"]) == (1, 404, "model_not_found")
    events = [event["kind"] for event in (await relay.command("events"))["events"]]
    assert events.count("upstream_account") == 1
    assert await customer.settled_nano() == 10**9


async def test_what_a_session_may_cost_is_said_once(customer: Customer, relay: RelayProcess):
    """As for any call: of two amounts nobody knows which one is meant."""
    upgrade = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")]
    upgrade += [("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="), ("Authorization", f"Bearer {customer.secret}")]
    async with aiohttp.ClientSession() as session:
        for amounts in (("1", "0.01"), ("1", "1"), ("-1",), ("much",)):
            headers = [*upgrade, *(("x-relay-max-cost", amount) for amount in amounts)]
            async with session.get(relay.base_url + "/v1/realtime?model=gpt-realtime", headers=headers) as answer:
                assert answer.status == 400, amounts
                assert (await answer.json())["error"]["param"] == "x-relay-max-cost"


async def test_killed_in_a_session(simulator: Running, tmp_path: Path):
    """What was delivered is charged at the next start, from the journal, with the channel that served it."""
    voice = channel("voice", "openai", f"{simulator.base_url}/v1", '["gpt-realtime"]', KEY, "priority = 1")
    config = CONFIG + channel("down", "openai", "http://127.0.0.1:9/v1", '["gpt-realtime"]', KEY) + voice + RATE
    relay = await RelayProcess(tmp_path, config).start()
    try:
        customer = await relay.customer("1")
        async with async_openai(customer) as client:
            connection = await client.realtime.connect(model="gpt-realtime").enter()
            await speak(connection)
            await connection.send(create())
            await until_type(connection, "response.done")
            await relay.kill()
            with pytest.raises(websockets.ConnectionClosedError):
                await all_of(connection)
        await relay.start()
        record = await customer.call()
        assert (record["error_code"], record["output_tokens"]) == ("recovered", 100)
        assert (record["channel"], record["upstream_model"], record["attempts"]) == ("voice", "gpt-realtime", 2)
        assert nano(record["cost"]) == ONE_RESPONSE
        assert await customer.settled_nano() == 10**9 - ONE_RESPONSE
        assert (await relay.command("ledger verify"))["ok"]
    finally:
        await relay.kill()


async def test_a_drain_ends_sessions(simulator: Running, tmp_path: Path):
    config = CONFIG + channel("voice", "openai", f"{simulator.base_url}/v1", '["gpt-realtime"]', KEY) + RATE
    relay = await RelayProcess(tmp_path, config).start()
    try:
        customer = await relay.customer("1")
        async with async_openai(customer) as client, client.realtime.connect(model="gpt-realtime") as connection:
            await speak(connection)
            await connection.send(create())
            await until_type(connection, "response.done")
            stopping = asyncio.create_task(relay.stop())
            error = await until_type(connection, "error")
            assert error.error.code == "drain_deadline"
        assert await stopping == 0
        await relay.start()
        assert (await customer.call())["error_code"] == "drain_deadline"
    finally:
        await relay.kill()
