"""Responses in the background with their events, by the official SDK: the client may leave and come back, the job is
charged once, whoever sees its end first, and across `kill -9`."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import openai
import pytest
import pytest_asyncio

from relay.simulator import Running
from tests.functional.clients import async_openai
from tests.functional.raw_upstream import Close, Exchange, Gate, Gone, RawUpstream, Turn
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import SIM_KEY, channel, cost_nano, rates
from tests.functional.streams import RESPONSES, head
from tests.support.http1 import request_bytes, response_bytes
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")
CREDITS = 100 * 10**9


def polling_config(simulator: Running, poll_seconds: float) -> str:
    return (
        f"[server]\ndrain_seconds = 2\n[plans.open]\n[jobs]\npoll_seconds = {poll_seconds}\n"
        + channel("sim", "openai", simulator.base_url + "/v1", '["gpt-5"]', SIM_KEY)
        + rates()
    )


@pytest_asyncio.fixture(loop_scope="session")
async def own(simulator: Running, tmp_path: Path) -> AsyncIterator[RelayProcess]:
    """A relay of the test's own, that polls once an hour."""
    made = RelayProcess(tmp_path, polling_config(simulator, 3600))
    await made.start()
    yield made
    verified = await made.command("ledger verify")
    assert await made.stop() == 0
    assert verified["ok"], verified
    assert made.faults == []


async def held_nano(customer: Customer) -> int:
    return nano((await customer.money())["held"])


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "gpt-5", "input": f"Hello #sim {text}#", "background": True, "stream": True, "max_output_tokens": 50,
        **more,
    }  # fmt: skip


async def charged(customer: Customer, count: int) -> dict[str, Any]:
    """The one record with a cost."""
    rows = [row for row in await customer.calls(count) if row["cost"] != "0"]
    assert len(rows) == 1, rows
    return rows[0]


async def test_a_stream_to_its_end(customer: Customer, relay: RelayProcess, simulator: Running):
    stranger = await relay.customer()
    numbers, kinds, text = [], [], ""
    async with async_openai(customer) as client:
        async for event in await client.responses.create(**asked("events=6 pace_ms=5")):
            numbers.append(event.sequence_number)
            kinds.append(event.type)
            if event.type == "response.created":
                assert event.response.status == "queued"
                made = event.response.id
                assert await held_nano(customer) >= cost_nano("gpt-5", 1, 50)
                # Its owner's, before the owner has heard of it, and nobody else's.
                assert (await client.responses.retrieve(made)).id == made
                async with async_openai(stranger) as other:
                    for query in ({}, {"stream": True}):
                        with pytest.raises(openai.NotFoundError):
                            await other.responses.retrieve(made, **query)
            elif event.type == "response.output_text.delta":
                text += event.delta
            elif event.type == "response.completed":
                done = event.response
                assert await held_nano(customer) == 0  # charged before its client hears of it
        assert numbers == list(range(len(numbers)))
        assert kinds[:2] == ["response.created", "response.queued"]
        assert (text, done.usage.output_tokens) == (done.output_text, 6)
        again = await client.responses.retrieve(made)
        assert (again.status, again.output_text) == ("completed", text)
    cost = cost_nano("gpt-5", done.usage.input_tokens, 6)
    assert nano((await charged(customer, 4))["cost"]) == cost
    assert await customer.settled_nano() == CREDITS - cost


FORMS = [
    ("events=40", b"1.1", "/v1/responses"),
    ("events=40 crlf", b"1.1", "/v1/v1/responses"),  # an alias goes by aiohttp's parser
    ("events=10 split=7 cr", b"1.1", "/v1/responses"),
    ("events=10 chunk=5 comments=2 utf8=1", b"1.1", "/v1/responses"),
    ("events=40", b"1.0", "/v1/responses"),
    ("events=20 encoding=gzip", b"1.1", "/v1/responses"),
]


async def test_bytes_are_the_provider_s(customer: Customer, relay: RelayProcess, simulator: Running):
    """By the front door, by aiohttp's parser and to an HTTP/1.0 client, in whatever pieces they come."""
    for number, (directives, version, path) in enumerate(FORMS):
        fields = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"}
        request = request_bytes("POST", path, fields, json.dumps(asked(directives)).encode())
        async with await RawClient.connect("127.0.0.1", relay.port) as client:
            await client.send(request.replace(b"HTTP/1.1", b"HTTP/" + version, 1))
            answer = await client.response()
            if version == b"1.1":  # the connection carries another call
                assert (await client.request("GET", "/v1/models", fields)).status == 200
        assert (answer.status, answer.complete) == (200, True), answer
        assert answer.body == bytes(simulator.book.entries[-1].sent), directives
        assert await held_nano(customer) == 0, directives
        rows = await customer.calls(2 * (number + 1))
        assert [row["output_tokens"] > 0 for row in rows] == [True, False] * (number + 1)
        assert {row["error_code"] for row in rows} == {None}


async def test_a_client_that_leaves_comes_back_for_the_rest(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        stream = await client.responses.create(**asked("events=20 polls=2 pace_ms=20"))
        first = [await anext(stream) for _ in range(6)]
        await stream.close()
        made, held = first[0].response.id, await held_nano(customer)
        gone = (await customer.calls(1))[0]
        assert (gone["error_code"], gone["status"], gone["cost"]) == ("client_gone", 499, "0")
        assert (await client.responses.retrieve(made)).status == "queued"
        assert await held_nano(customer) == held > 0  # neither ended nor charged
        rest = []
        async for event in await client.responses.retrieve(made, stream=True, starting_after=first[-1].sequence_number):
            rest.append(event)
            if event.type == "response.completed":
                assert await held_nano(customer) == 0
        assert [event.sequence_number for event in first + rest] == list(range(len(first + rest)))
        text = "".join(event.delta for event in first + rest if event.type == "response.output_text.delta")
        assert rest[-1].response.output_text == text
        assert len([event async for event in await client.responses.retrieve(made, stream=True)]) == len(first + rest)
    cost = cost_nano("gpt-5", rest[-1].response.usage.input_tokens, 20)
    assert nano((await charged(customer, 5))["cost"]) == cost
    assert await customer.settled_nano() == CREDITS - cost


@pytest.mark.parametrize("leaves", [True, False])
async def test_the_poller_ends_it_when_the_stream_does_not(simulator: Running, tmp_path: Path, leaves: bool):
    """The client has left, or the provider's stream breaks off: its client is told, and the job goes on."""
    relay = await RelayProcess(tmp_path, polling_config(simulator, 0.1)).start()
    try:
        customer = await relay.customer()
        async with async_openai(customer) as client:
            stream = await client.responses.create(
                **asked("events=9 polls=1 " + ("pace_ms=50" if leaves else "cut=2500"))
            )
            if leaves:
                await anext(stream)
                await stream.close()
            else:
                with pytest.raises(openai.APIError):
                    async for _ in stream:
                        pass
        record = await ended(customer, 2)
        assert (record["output_tokens"], record["usage_source"]) == (9, "upstream")
        assert await customer.settled_nano() == CREDITS - nano(record["cost"])
        first = next(row for row in await customer.calls(2) if row["id"] != record["id"])
        assert first["error_code"] == ("client_gone" if leaves else "upstream_truncated")
        assert (await relay.command("ledger verify"))["ok"]
    finally:
        assert await relay.stop() == 0


async def ended(customer: Customer, count: int) -> dict[str, Any]:
    """The record of the job's ending, once it is there."""

    async def there() -> bool:
        return any(row["cost"] != "0" for row in await customer.relay.calls(key=customer.key))

    await eventually(there, 20, what="the job has ended")
    return await charged(customer, count)


async def test_a_response_that_fails_and_one_that_is_cut_short(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        *_, last = [event async for event in await client.responses.create(**asked("fail=1"))]
        assert last.type == "response.failed"
        assert await customer.settled_nano() == CREDITS
        *_, last = [event async for event in await client.responses.create(**asked("events=90"))]
        assert (last.type, last.response.usage.output_tokens) == ("response.incomplete", 50)
    cost = cost_nano("gpt-5", last.response.usage.input_tokens, 50)
    assert nano((await charged(customer, 4))["cost"]) == cost
    assert await customer.settled_nano() == CREDITS - cost


async def test_whoever_sees_the_end_first(customer: Customer, simulator: Running):
    """The stream of the call, a stream taken up again and plain looks, all at once: one charge."""
    async with async_openai(customer) as client:

        async def consume(stream: Any) -> str:
            return [event.type async for event in stream][-1]

        stream = await client.responses.create(**asked("events=10 polls=3 pace_ms=5"))
        made = (await anext(stream)).response.id
        again = [await client.responses.retrieve(made, stream=True, starting_after=n) for n in range(3)]
        looks = [client.responses.retrieve(made) for _ in range(6)]
        results = await asyncio.gather(consume(stream), *map(consume, again), *looks)
        assert set(results[:4]) == {"response.completed"}
    await charged(customer, 11)
    assert await held_nano(customer) == 0


async def test_a_revoked_key_ends_the_stream_and_not_the_job(
    customer: Customer, relay: RelayProcess, simulator: Running
):
    other = await relay.another_key(customer)
    async with async_openai(customer) as client:
        stream = await client.responses.create(**asked("events=90 polls=0 pace_ms=20"))
        made = (await anext(stream)).response.id
        await relay.command("key revoke", id=customer.key)
        with pytest.raises(openai.APIError) as caught:
            async for _ in stream:
                pass
        assert caught.value.code == "invalid_api_key"
    assert (await customer.calls(1))[0]["error_code"] == "key_revoked"
    assert await held_nano(customer) > 0
    async with async_openai(other) as client:
        assert (await client.responses.retrieve(made)).status == "incomplete"
    assert await held_nano(customer) == 0


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_client_that_does_not_read(
    customer: Customer, relay: RelayProcess, simulator: Running, comes_back: bool
):
    """The provider is read no faster than the client reads; one that reads nothing is left, its job goes on."""
    body = asked("events=400 size=8000 polls=0", max_output_tokens=500)
    fields = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"}
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        assert client.transport is not None
        client.transport.pause_reading()
        await client.send(request_bytes("POST", "/v1/responses", fields, json.dumps(body).encode()))

        async def begun() -> bool:
            return bool(simulator.book.entries) and simulator.book.entries[-1].body_bytes_sent > 100_000

        await eventually(begun)
        if comes_back:
            client.transport.resume_reading()
            answer = await client.response(timeout_seconds=60.0)
            assert answer.complete
            assert answer.body == bytes(simulator.book.entries[-1].sent)
        else:
            rows = await customer.calls(1)
            assert rows[0]["error_code"] == "client_stalled"
            assert await held_nano(customer) > 0
            made = json.loads(bytes(simulator.book.entries[-1].sent).partition(b"data: ")[2].partition(b"\n")[0])
            async with async_openai(customer) as sdk:
                await sdk.responses.retrieve(made["response"]["id"])
    assert (await charged(customer, 2 if comes_back else 3))["output_tokens"] == 400
    assert await held_nano(customer) == 0


# -- order: what is on the disk when the client sees something, and what is left of a killed process


def created(made: str, **more: Any) -> bytes:
    event = {"type": "response.created", "sequence_number": 0, "response": {"id": made, "status": "queued", **more}}
    return b"event: response.created\ndata: " + json.dumps(event).encode() + b"\n\n"


async def raw_call(customer: Customer, raw: RawUpstream, client: RawClient, *steps: Any) -> Exchange:
    text, exchange = raw.script(*steps)
    body = {"model": "raw-chat", "input": text, "background": True, "stream": True, "max_output_tokens": 50}
    fields = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"}
    await client.send(request_bytes("POST", "/v1/responses", fields, json.dumps(body).encode()))
    return exchange


def stored_jobs(relay: RelayProcess) -> list[tuple[str | None, int, str]]:
    path = next(relay.data_dir.glob("*.db"))
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        return list(store.execute("SELECT object_id, hold_nano, state FROM jobs ORDER BY id"))


async def test_nothing_reaches_the_client_before_the_job_has_its_name(
    customer: Customer, relay: RelayProcess, raw: RawUpstream
):
    before = len(stored_jobs(relay))
    rest, end = asyncio.Event(), asyncio.Event()
    event = created("resp_raw_1")
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        script = [head(RESPONSES, "close", 0), b": hello\n\n" + event[:-1], Gate(rest), event[-1:], Gate(end), Close()]
        exchange = await raw_call(customer, raw, client, *script)
        await until(lambda: exchange.requests)
        assert [job[0] for job in stored_jobs(relay)[before:]] == [None]  # before the provider was asked
        assert await held_nano(customer) > 0
        await until(lambda: exchange.position == 3)
        assert client.received == b""
        rest.set()
        await client.until(lambda: client.received.endswith(event[-9:] + b"\r\n"))
        assert [(job[0], job[2]) for job in stored_jobs(relay)[before:]] == [("resp_raw_1", "open")]
        end.set()  # without an end of the response: that is a cut
        answer = await client.response()
    assert not answer.complete
    assert b"upstream_truncated" in answer.body
    assert (await customer.calls(1))[0]["error_code"] == "upstream_truncated"
    assert await held_nano(customer) > 0
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        found = await raw_get(customer, raw, client, "resp_raw_1")
    assert found == 502


async def raw_get(customer: Customer, raw: RawUpstream, client: RawClient, made: str) -> int:
    answer = await client.request("GET", f"/v1/responses/{made}", {"Authorization": f"Bearer {customer.secret}"})
    return answer.status


NO_NAME = {
    "no response in it": b'event: error\ndata: {"type":"error"}\n\n',
    "nothing": b"",
    "no id": b'data: {"response":{"status":"queued"}}\n\n',
    "no good id": created("a/b"),
    "no end": b"x" * (1 << 20) + b"xx",
}


@pytest.mark.parametrize("text", NO_NAME.values(), ids=NO_NAME)
async def test_a_stream_that_tells_no_name_makes_no_job(
    customer: Customer, relay: RelayProcess, raw: RawUpstream, text: bytes
):
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        await raw_call(customer, raw, client, head(RESPONSES, "close", 0), text, Close())
        answer = await client.response()
    assert answer.status == 502
    assert (await customer.calls(1))[0]["error_code"] == "upstream_garbage"
    assert await customer.settled_nano() == CREDITS
    assert {state["in_flight"] for state in (await relay.status())["channels"]} == {0}


SECRET = "org-operator"
ACCOUNT_ERROR = {"code": "billing_not_active", "message": f"Your account is not active, {SECRET}"}


def failed(made: str, error: object = None) -> bytes:
    response = {"id": made, "status": "failed", "error": error, "usage": None}
    event = {"type": "response.failed", "sequence_number": 1, "response": response}
    return b"event: response.failed\ndata: " + json.dumps(event).encode() + b"\n\n"


def error_event(error: object) -> bytes:
    return b"event: error\ndata: " + json.dumps({"type": "error", "error": error}).encode() + b"\n\n"


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("kind", ["response.failed", "error"])
async def test_an_error_about_the_account_does_not_pass(
    customer: Customer, relay: RelayProcess, raw: RawUpstream, kind: str, whole: bool
):
    """Neither at once nor byte by byte; the stream is cut, and the job ends as it would."""
    made = f"resp_account_{kind[-5:]}_{whole}"
    event = failed(made, ACCOUNT_ERROR) if kind == "response.failed" else error_event(ACCOUNT_ERROR)
    text = created(made) + event
    pieces = [text] if whole else [piece for at in range(len(text)) for piece in (text[at : at + 1], Turn(0.0))]
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        await raw_call(customer, raw, client, head(RESPONSES, "close", 0), *pieces, Close())
        answer = await client.response()
    assert not answer.complete
    assert b"upstream_account" in answer.body or not whole  # inside an event there is only the close
    assert SECRET.encode() not in client.received
    ended = kind == "response.failed"
    assert {row["error_code"] for row in await customer.calls(1 + ended)} >= {"upstream_account"}
    assert (await held_nano(customer) == 0) == ended


async def test_an_account_error_in_place_of_a_response_makes_no_job(
    customer: Customer, relay: RelayProcess, raw: RawUpstream
):
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        await raw_call(customer, raw, client, head(RESPONSES, "close", 0), error_event(ACCOUNT_ERROR), Close())
        answer = await client.response()
    assert (answer.status, SECRET.encode() in client.received) == (503, False)
    assert (await customer.calls(1))[0]["error_code"] == "upstream_account"
    assert await customer.settled_nano() == CREDITS


async def test_an_upstream_that_knows_no_streams(customer: Customer, relay: RelayProcess, raw: RawUpstream):
    """Its whole answer passes, and is a job all the same; an error passes and is none."""
    document = b'{"id":"resp_raw_2","status":"completed","usage":{"input_tokens":9,"output_tokens":4}}'
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        await raw_call(customer, raw, client, response_bytes(b'{"error":{"message":"no"}}', status=422))
        assert (await client.response()).status == 422
        assert await customer.settled_nano() == CREDITS
        await raw_call(customer, raw, client, response_bytes(document))
        answer = await client.response()
    assert (answer.status, answer.body) == (200, document)
    cost = cost_nano("raw-chat", 9, 4)
    assert nano((await charged(customer, 3))["cost"]) == cost
    assert await customer.settled_nano() == CREDITS - cost


async def test_a_provider_is_not_read_for_a_client_that_has_left(
    customer: Customer, relay: RelayProcess, raw: RawUpstream
):
    """It stands still, so that only the leaving can be what closes its connection. The job is asked for by its name."""
    text, exchange = raw.script(head(RESPONSES, "close", 0), created("resp_raw_3"), Gone())
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        body = {"model": "raw-chat", "input": text, "background": True, "stream": True}
        fields = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"}
        await client.send(request_bytes("POST", "/v1/responses", fields, json.dumps(body).encode()))
        await client.until(lambda: b"resp_raw_3" in client.received)
    async with asyncio.timeout(10):
        await exchange.gone.wait()
    assert await held_nano(customer) > 0
    assert (await customer.calls(1))[0]["error_code"] == "client_gone"


@pytest.mark.parametrize("seen", [0, 1, 9])
async def test_killed_in_the_middle(own: RelayProcess, simulator: Running, seen: int):
    """With nothing told: released. Else the hold is there again, and whoever comes back has the rest and one charge."""
    customer = await own.customer("1")
    async with async_openai(customer) as client:
        asking = client.responses.create(**asked("events=20 polls=1 " + ("pace_ms=20" if seen else "body_ms=60000")))
        if seen == 0:
            task = asyncio.create_task(asking)

            async def waits() -> bool:
                return await held_nano(customer) > 0 and bool(simulator.book.entries[-1].wire_bytes_sent)

            await eventually(waits)
        else:
            stream = await asking
            events = [await anext(stream) for _ in range(seen)]
        held = await held_nano(customer)
        await own.kill()
        if seen == 0:
            with pytest.raises(openai.APIConnectionError):
                await task
    await own.start()
    if seen == 0:
        assert await customer.settled_nano() == 10**9
        assert (await customer.calls(1))[0]["error_code"] == "recovered"
        return
    assert await held_nano(customer) == held
    async with async_openai(customer) as client:
        made, after = events[0].response.id, events[-1].sequence_number
        rest = [event async for event in await client.responses.retrieve(made, stream=True, starting_after=after)]
        assert [event.sequence_number for event in events + rest] == list(range(len(events + rest)))
        cost = cost_nano("gpt-5", rest[-1].response.usage.input_tokens, 20)
        assert await customer.settled_nano() == 10**9 - cost
        await own.kill()
        await own.start()
    async with async_openai(customer) as client:
        assert (await client.responses.retrieve(made)).status == "completed"
        assert await customer.settled_nano() == 10**9 - cost
    rows = [row for row in await own.calls(key=customer.key) if row["cost"] != "0"]  # free ones may be lost with it
    assert [row["output_tokens"] for row in rows] == [20]


async def test_killed_when_the_end_is_told(own: RelayProcess, simulator: Running):
    """What its client has heard of is on the disk: charged, without anybody asking again."""
    customer = await own.customer("1")
    async with async_openai(customer) as client:
        async for event in await client.responses.create(**asked("events=20")):
            if event.type == "response.completed":
                used = event.response.usage
                await own.kill()
                break
    await own.start()
    cost = cost_nano("gpt-5", used.input_tokens, 20)
    money = await customer.money()
    assert (nano(money["balance"]), nano(money["held"])) == (10**9 - cost, 0)


async def test_a_restart_in_the_middle(own: RelayProcess, simulator: Running):
    """A stream that does not end within the drain is cut with the relay's own event; the rest is there afterwards."""
    customer = await own.customer("1")
    async with async_openai(customer) as client:
        stream = await client.responses.create(**asked("events=50 pace_ms=60000"))
        events = [await anext(stream)]
        held = await held_nano(customer)
        stopping = asyncio.create_task(own.stop())
        with pytest.raises(openai.APIError) as caught:
            await anext(stream)
        assert caught.value.code == "drain_deadline"
        assert await stopping == 0
    await own.start()
    assert await held_nano(customer) == held
    async with async_openai(customer) as client:
        made, after = events[0].response.id, events[-1].sequence_number
        rest = [event async for event in await client.responses.retrieve(made, stream=True, starting_after=after)]
    assert [event.sequence_number for event in events + rest] == list(range(len(events + rest)))
    assert await customer.settled_nano() == 10**9 - cost_nano("gpt-5", rest[-1].response.usage.input_tokens, 50)


async def test_killed_at_random(own: RelayProcess, simulator: Running):
    """Whatever was going on: each response that its client has heard of is charged once, and the books agree."""
    random = Random(20)
    customer = await own.customer()
    heard: set[str] = set()

    async def use(number: int) -> None:
        # A connection that breaks while the SDK's client makes it may show there as an attribute of no socket.
        with contextlib.suppress(openai.APIError, AttributeError):
            async with async_openai(customer) as client:
                asking = asked(f"events={3 + number} polls=0 pace_ms={random.randrange(8)}")
                async for event in await client.responses.create(**asking):
                    if event.type == "response.created":
                        heard.add(event.response.id)

    for _ in range(6):
        users = [asyncio.create_task(use(number)) for number in range(8)]
        await asyncio.sleep(random.uniform(0.0, 0.15))  # whenever: nothing depends on how far they are
        await own.kill()
        await asyncio.gather(*users)
        await own.start()
    async with async_openai(customer) as client:
        for made in heard:
            assert (await client.responses.retrieve(made)).status == "completed"
    assert heard

    async def free() -> bool:
        return await held_nano(customer) == 0

    # Named, but never heard of by its client: the provider has it, and it is charged when somebody looks.
    for made, _, state in stored_jobs(own):
        assert state == "ended" or made not in heard
    own.config = polling_config(simulator, 0.1)
    await own.kill()
    await own.start()
    await eventually(free)
    ended = [row for row in await own.calls(key=customer.key) if row["cost"] != "0"]
    lost = [row for row in await own.calls(key=customer.key) if row["error_code"] == "recovered"]
    jobs = stored_jobs(own)
    assert heard <= {made for made, _, _ in jobs}
    assert (len(ended), len(lost)) == (len([job for job in jobs if job[0]]), len([job for job in jobs if not job[0]]))
    assert await customer.settled_nano() == CREDITS - sum(nano(row["cost"]) for row in ended)
