"""Idempotency-Key of calls that make objects: files, batches, videos, responses in the background."""

import asyncio
import contextlib
import itertools
import json
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from relay.simulator import Running
from tests.functional.clients import async_openai
from tests.functional.makers import Make, batch_lines, maker, refused
from tests.functional.raw_upstream import Close, Exchange, Gate, RawUpstream, Step
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import RAW_KEY, channel, cost_nano, rates
from tests.support.http1 import Message, request_bytes, response_bytes
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
CREDITS = 100 * 10**9
NAMES = itertools.count(1)


def posts(simulator: Running) -> int:
    return sum(entry.method == "POST" for entry in simulator.book.entries)


KINDS = ["file", "batch", "message_batch", "gemini_batch", "video", "remix", "response"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_repeat_makes_nothing(relay: RelayProcess, customer: Customer, simulator: Running, kind: str):
    other = await relay.customer()
    async with maker(kind, customer) as make, maker(kind, other) as make_other:
        before = posts(simulator)
        first = await make("key")
        held = (await customer.money())["held"]
        await refused(make("key"), first)
        await relay.command("ledger verify")  # waits until everything is committed
        await refused(make("key"), first)
        assert posts(simulator) == before + 1
        assert (await customer.money())["held"] == held
        # Other keys and other accounts are nothing to it.
        assert await make("key-2") != first
        assert await make_other("key") != first
        assert posts(simulator) == before + 3
    sent = next(entry for entry in simulator.book.entries if entry.method == "POST" and entry.number > before)
    assert sent.header("idempotency-key") is None
    # A key belongs to one call, whatever its path.
    async with async_openai(customer) as client:
        asked: Any = client.chat.completions.create(
            model="gpt-4o", messages=[], extra_headers={"Idempotency-Key": "key"}
        )
        await refused(asked, first, " with another body")
        answer = await client.chat.completions.with_raw_response.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": "Hello"}],
            extra_headers={"Idempotency-Key": "chat"},
        )
    async with maker(kind, customer) as make:
        await refused(make("chat"), answer.headers["x-relay-request-id"], " with another body")


@pytest.mark.parametrize("kind", KINDS)
async def test_another_body_is_told(customer: Customer, simulator: Running, kind: str):
    async with maker(kind, customer) as make:
        first = await make("key")
    words = "" if kind == "file" else " with another body"  # as long, and that is all that is known in time
    if kind not in ("batch", "remix"):  # their bodies name what was made before
        async with maker(kind, customer, "World") as make:
            await refused(make("key"), first, words)
    async with maker(kind, customer, "A longer one") as make:
        await refused(make("key"), first, " with another body")


async def test_an_upload_of_unknown_length(customer: Customer, simulator: Running):
    """Nothing is known of its body when a repeat has to be refused, so nothing is said of it."""
    head = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    form = head % (b"purpose", b"", b"user_data") + head % (b"file", b'; filename="a"', b"notes") + b"--b--\r\n"
    fields = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "multipart/form-data; boundary=b"}
    fields["Idempotency-Key"] = "key"

    async def upload(body: bytes, *, chunked: bool) -> Message:
        framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in (fields | framing | {"Host": "x"}).items())
        data = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
            await client.send(f"POST /v1/files HTTP/1.1\r\n{lines}\r\n".encode() + data)
            return await client.response()

    first = await upload(form, chunked=True)
    assert first.status == 200
    before = posts(simulator)
    for chunked in (True, False):
        repeat = await upload(form.replace(b"notes", b"others"), chunked=chunked)
        assert repeat.status == 409
        error = json.loads(repeat.body)["error"]
        assert error["message"].endswith(f"That was {first.header('x-relay-request-id')}.")
    assert posts(simulator) == before


async def test_twenty_at_once_make_one(customer: Customer, simulator: Running):
    for kind in ("file", "video", "response"):
        before = posts(simulator)
        async with maker(kind, customer) as make:
            made = await asyncio.gather(*(make(kind) for _ in range(20)), return_exceptions=True)
        first = [one for one in made if isinstance(one, str)]
        assert len(first) == 1
        assert all(first[0] in str(one) for one in made)
        assert posts(simulator) == before + 1


async def test_a_key_that_is_none_is_refused(customer: Customer, simulator: Running):
    before = posts(simulator)
    for kind in ("file", "video"):
        async with maker(kind, customer) as make:
            for key in ("", "x" * 256):
                with pytest.raises(openai.BadRequestError) as caught:
                    await make(key)
                assert caught.value.param == "idempotency-key"
    assert posts(simulator) == before


async def test_what_costs_and_makes_nothing_is_not_refused(customer: Customer, simulator: Running):
    headers = {"Idempotency-Key": "key"}
    async with async_openai(customer) as client:
        video = await client.videos.create(model="sora-2", prompt="A cat #sim polls=0#", seconds="4")
        made = await client.responses.create(model="gpt-5", input="Hello #sim polls=9#", background=True)
        for _ in range(2):
            await client.videos.retrieve(video.id, extra_headers=headers)
            await client.responses.cancel(made.id, extra_headers=headers)
        await client.videos.delete(video.id, extra_headers=headers)


# -- where nothing was made, and where that is not known


def config(raw: str, upstream_port: int | None = None) -> str:
    base = raw if upstream_port is None else f"http://127.0.0.1:{upstream_port}"
    return (
        "[server]\ndrain_seconds = 2\n[plans.open]\n[jobs]\npoll_seconds = 3600\n"
        "[timeouts]\nfirst_byte_seconds = 20\nanswer_seconds = 20\n"
        "[routing]\nbreaker_failure_percent = 0\nkey_rest_seconds = 0\n"
        + channel("raw", "openai", base + "/v1", '["gpt-4o", "gpt-5", "sora-2"]', RAW_KEY)
        + rates()
    )


@pytest_asyncio.fixture(loop_scope="session")
async def own(tmp_path: Path, raw: RawUpstream) -> AsyncIterator[RelayProcess]:
    """A relay whose only provider plays scripts."""
    relay = RelayProcess(tmp_path, config(raw.base_url))
    await relay.start()
    yield relay
    try:
        verified = await relay.command("ledger verify")
        assert await relay.stop() == 0
        assert verified["ok"], verified
        assert relay.faults == []
    finally:
        await relay.kill()


def made(kind: str) -> bytes:
    """A provider's answer that an object was made."""
    document = {"id": f"{kind}_{next(NAMES)}", "object": kind, "status": "queued", "seconds": "4", "bytes": 5}
    return response_bytes(json.dumps(document).encode(), headers={"Content-Type": "application/json"})


RAW_KINDS = ["file", "batch", "video", "response"]


@contextlib.asynccontextmanager
async def scripted(
    raw: RawUpstream, customer: Customer, kind: str, *steps: Step
) -> AsyncIterator[tuple[Make, Exchange]]:
    """A maker of `kind` whose requests meet this script."""
    text, exchange = raw.script(*steps)
    if kind != "batch":
        async with maker(kind, customer, text) as make:
            yield make, exchange
        return
    async with async_openai(customer) as client:
        before, _ = raw.script(made("file"))
        file = await client.files.create(file=("a.jsonl", batch_lines(before)), purpose="batch")

        async def make(key: str) -> str:
            answer = await client.batches.with_raw_response.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
                metadata={"a": text}, extra_headers={"Idempotency-Key": key},
            )  # fmt: skip
            return answer.headers["x-relay-request-id"]

        yield make, exchange


@pytest.mark.parametrize("kind", RAW_KINDS)
async def test_a_repeat_while_the_first_is_made(own: RelayProcess, raw: RawUpstream, kind: str):
    customer = await own.customer()
    release = asyncio.Event()
    async with scripted(raw, customer, kind, Gate(release), made(kind)) as (make, exchange):
        first = asyncio.ensure_future(make("key"))
        await until(lambda: exchange.requests)
        with pytest.raises(openai.ConflictError) as caught:
            await make("key")
        release.set()
        assert caught.value.response.headers["x-relay-first-request-id"] == await first
        assert len(exchange.requests) == 1


@pytest.mark.parametrize("kind", RAW_KINDS)
async def test_the_key_is_free_again_where_nothing_was_made(own: RelayProcess, raw: RawUpstream, kind: str):
    customer = await own.customer()
    for status in (307, 400, 401, 429, 500, 503):
        refusal = response_bytes(b'{"error":{"message":"x"}}', status=status)
        async with scripted(raw, customer, kind, refusal) as (make, exchange):
            with pytest.raises(openai.APIStatusError) as caught:
                await make("key")
            assert caught.value.status_code != 409
            assert len(exchange.requests) == 1
    async with scripted(raw, customer, kind, made(kind)) as (make, exchange):
        own.write_config(config(raw.base_url, upstream_port=9))  # nobody listens there
        await own.command("reload")
        with pytest.raises(openai.InternalServerError) as caught:
            await make("key")
        assert caught.value.code == "upstream_unavailable"
        own.write_config(config(raw.base_url))
        await own.command("reload")
        first = await make("key")
        await refused(make("key"), first)
        assert len(exchange.requests) == 1


async def test_the_key_is_free_again_where_the_relay_refused(own: RelayProcess, raw: RawUpstream):
    customer = await own.customer("0")
    for kind in ("video", "response", "batch"):
        async with scripted(raw, customer, kind, made(kind)) as (make, exchange):
            with pytest.raises(openai.APIStatusError) as caught:
                await make(kind)
            assert caught.value.code == "insufficient_balance"
            await own.command("credit add", id=customer.account, amount="1")
            first = await make(kind)
            await refused(make(kind), first)
            assert len(exchange.requests) == 1
        own_money = await customer.money()
        await own.command("credit refund", id=customer.account, amount=own_money["available"], reason="test")


async def test_the_key_of_a_small_upload_is_free_again_where_it_has_no_place_to_go(own: RelayProcess, raw: RawUpstream):
    """All its bytes were there before the relay refused it."""
    customer = await own.customer()
    text, exchange = raw.script(made("file"))
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    form = head + text.encode() + b"\r\n--b--\r\n"
    fields = {
        "Authorization": f"Bearer {customer.secret}", "Content-Type": "multipart/form-data; boundary=b",
        "Idempotency-Key": "key",
    }  # fmt: skip
    for more, status in (({"x-relay-channel": "raw"}, 403), ({}, 200), ({}, 409)):
        async with await RawClient.connect("127.0.0.1", own.port) as client:
            await client.send(request_bytes("POST", "/v1/files", fields | more, form))
            assert (await client.response()).status == status
    assert len(exchange.requests) == 1


@pytest.mark.parametrize("kind", RAW_KINDS)
@pytest.mark.parametrize(
    "steps",
    [
        (Close(),),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", Close()),
        (response_bytes(b"{}"),),
        (response_bytes(b"", status=303),),
    ],
    ids=["no answer", "half an answer", "no id in it", "see other"],
)
async def test_where_something_may_have_been_made_the_key_stays(
    own: RelayProcess, raw: RawUpstream, kind: str, steps: tuple[Step, ...]
):
    """Nobody is charged, and nothing is forwarded a second time: the provider may have done it."""
    customer = await own.customer()
    async with scripted(raw, customer, kind, *steps) as (make, exchange):
        with pytest.raises(openai.InternalServerError) as caught:
            await make("key")
        await refused(make("key"), caught.value.response.headers["x-relay-request-id"])
        assert len(exchange.requests) == 1
    assert await customer.settled_nano() == CREDITS


# -- clients that leave


@pytest.mark.parametrize("kind", RAW_KINDS)
async def test_a_client_that_leaves_has_its_object_and_its_key(own: RelayProcess, raw: RawUpstream, kind: str):
    customer = await own.customer()
    release = asyncio.Event()
    answer = made(kind)
    object_id = json.loads(answer.partition(b"\r\n\r\n")[2])["id"]
    async with scripted(raw, customer, kind, Gate(release), answer) as (make, exchange):
        first = asyncio.ensure_future(make("key"))
        await until(lambda: exchange.requests)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

        async def gone() -> bool:
            rows = await own.calls(key=customer.key, status=499)
            return bool(rows)

        await eventually(gone)
        record = (await own.calls(key=customer.key, status=499))[0]
        await refused(make("key"), record["id"])
        release.set()

        async def bound() -> bool:
            # Another account gets 404, the owner what the provider says: here nothing, as no script is named.
            async with async_openai(customer) as client:
                try:
                    await client.get(f"/{PATHS[kind]}/{object_id}", cast_to=object)
                except openai.NotFoundError:
                    return False
                except openai.InternalServerError:
                    return True
            return False

        await eventually(bound)
        await refused(make("key"), record["id"])
        assert len(exchange.requests) == 1


async def test_a_client_that_leaves_while_its_key_is_bound(own: RelayProcess, raw: RawUpstream):
    """All bytes of its upload are there: the file is made, or else its key would be bound to nothing."""
    customer = await own.customer()
    text, exchange = raw.script(made("file"))
    form = half_an_upload(customer, "key", text) + b"\r\n--b--\r\n"
    async with await RawClient.connect("127.0.0.1", own.port) as client:
        await client.send(form[:-9])
        await until(lambda: any(text.encode() in one.pending for one in raw.open))
        with contextlib.closing(sqlite3.connect(next(own.data_dir.glob("*.db")), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await client.send(form[-9:])
            await asyncio.sleep(0.1)  # the last bytes are there; should they not be, this test shows less
            client.reset()

            async def gone() -> bool:
                return (await own.status())["connections"] == 0

            await eventually(gone)
            other.execute("ROLLBACK")

    async def bound() -> bool:
        async with await RawClient.connect("127.0.0.1", own.port) as client:
            await client.send(form)
            return (await client.response()).status == 409

    await eventually(bound)
    await until(lambda: exchange.requests)
    assert len(exchange.requests) == 1


@pytest.mark.parametrize("kind", ["video", "response"])
async def test_a_client_that_leaves_before_its_job_is_stored(own: RelayProcess, raw: RawUpstream, kind: str):
    """Nobody would ever know its name: its provider is not asked, its hold and its key are free."""
    customer = await own.customer()
    async with scripted(raw, customer, kind, made(kind)) as (make, exchange):
        with contextlib.closing(sqlite3.connect(next(own.data_dir.glob("*.db")), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            first = asyncio.ensure_future(make("key"))

            async def held() -> bool:
                return nano((await customer.money())["held"]) > 0

            await eventually(held)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

            async def gone() -> bool:
                return (await own.status())["connections"] == 0

            await eventually(gone)
            other.execute("ROLLBACK")
        assert await customer.settled_nano() == CREDITS
        assert exchange.requests == []
        await make("key")
        assert {state["in_flight"] for state in (await own.status())["channels"]} == {0}


async def test_a_job_has_its_name_where_its_results_cannot_be_read(own: RelayProcess, raw: RawUpstream):
    """It has ended before its client hears of it; what it cost is asked for again later."""
    customer = await own.customer()
    document = {"id": "batch_ended", "object": "batch", "status": "completed", "output_file_id": "file-output"}
    answer = response_bytes(json.dumps(document).encode(), headers={"Content-Type": "application/json"})
    async with scripted(raw, customer, "batch", answer) as (make, exchange):
        first = await make("key")
        await refused(make("key"), first)
        assert len(exchange.requests) == 1
    assert nano((await customer.money())["held"]) > 0


@pytest.mark.parametrize("kind", ["video", "response"])
async def test_clients_that_leave_at_any_moment(customer: Customer, relay: RelayProcess, simulator: Running, kind: str):
    """Whatever the first call had done by then: one object for one key."""
    rng = random.Random(7)
    fields = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"}
    requests: list[bytes] = []

    async def repeat(request: bytes) -> int:
        async with await RawClient.connect("127.0.0.1", relay.port) as client:
            await client.send(request)
            return (await client.response()).status

    for number in range(40):
        text = f"{kind} number {number}."
        body = {"video": {"model": "sora-2", "prompt": text}, "response": {"model": "gpt-5", "input": text}}[kind]
        if kind == "response":
            body |= {"background": True, "max_output_tokens": 9}
        data = json.dumps(body).encode()
        request = request_bytes("POST", f"/v1/{PATHS[kind]}", fields | {"Idempotency-Key": text}, data)
        async with await RawClient.connect("127.0.0.1", relay.port) as client:
            await client.send(request)
            await asyncio.sleep(rng.random() * 0.01)
            client.reset()
        requests.append(request)
        await repeat(request)

    def count(number: int) -> int:
        text = f"{kind} number {number}.".encode()
        return sum(text in entry.body for entry in simulator.book.entries)

    for number, request in enumerate(requests):

        async def made_one(number: int = number, request: bytes = request) -> bool:
            await repeat(request)
            return count(number) > 0

        await eventually(made_one)
    for request in requests:
        assert await repeat(request) == 409
    assert [count(number) for number in range(40)] == [1] * 40


PATHS = {"file": "files", "batch": "batches", "video": "videos", "response": "responses"}


def half_an_upload(customer: Customer, key: str, text: str) -> bytes:
    """All but the last bytes of an upload."""
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + text.encode() + bytes(200_000)
    fields = {
        "Authorization": f"Bearer {customer.secret}", "Content-Type": "multipart/form-data; boundary=b",
        "Idempotency-Key": key, "Content-Length": str(len(form) + 9), "Host": "x",
    }  # fmt: skip
    return request_bytes("POST", "/v1/files", fields) + form


async def test_half_an_upload_makes_nothing(own: RelayProcess, raw: RawUpstream):
    """Its client leaves, or the relay is killed: the key is free."""
    customer = await own.customer()
    for how in ("leave", "kill"):
        text, exchange = raw.script(made("file"))
        async with await RawClient.connect("127.0.0.1", own.port) as client:
            await client.send(half_an_upload(customer, how, text))
            await until(lambda: any(text.encode() in one.pending for one in raw.open))  # noqa: B023
            with pytest.raises(openai.ConflictError):
                async with maker("file", customer, text) as make:
                    await make(how)
            if how == "kill":
                await own.kill()
        if how == "kill":
            await own.start()

        async def free() -> bool:
            async with maker("file", customer, text) as make:  # noqa: B023
                try:
                    await make(how)  # noqa: B023
                except openai.ConflictError:
                    return False
            return True

        await eventually(free)
        assert len(exchange.requests) == 1


# -- restarts


@pytest.mark.parametrize("kind", RAW_KINDS)
async def test_keys_outlive_a_kill_and_a_restart(own: RelayProcess, raw: RawUpstream, kind: str):
    customer = await own.customer()
    never = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        answered, first_exchange = await stack.enter_async_context(scripted(raw, customer, kind, made(kind)))
        waiting, second_exchange = await stack.enter_async_context(scripted(raw, customer, kind, Gate(never)))
        first = await answered("answered")
        second = asyncio.ensure_future(waiting("waiting"))
        await until(lambda: second_exchange.requests)
        await own.kill()  # at once: the record of the call that was answered is in no database yet
        with pytest.raises(openai.APIConnectionError):
            await second
        never.set()
    await own.start()
    for stop in (own.kill, own.stop, None):
        async with async_openai(customer) as client:
            for key, first_id in (("answered", first), ("waiting", None)):
                with pytest.raises(openai.ConflictError) as caught:
                    await again(client, kind, key)
                told = caught.value.response.headers["x-relay-first-request-id"]
                assert told == (first_id or told)
        assert (len(first_exchange.requests), len(second_exchange.requests)) == (1, 1)
        if stop is not None:
            await stop()
            await own.start()
    if kind != "file":
        held = nano((await customer.money())["held"])
        assert held > 0  # of the one that was made; what nobody can name any more holds nothing
        if kind == "video":
            assert held == cost_nano("sora-2", video_seconds=4)


@pytest.mark.parametrize("kind", RAW_KINDS)
async def test_a_restart_waits_for_what_is_being_made(own: RelayProcess, raw: RawUpstream, kind: str):
    """Also where its client has left: it has an owner, and is charged for."""
    customer = await own.customer()
    release = asyncio.Event()
    answer = made(kind)
    object_id = json.loads(answer.partition(b"\r\n\r\n")[2])["id"]
    async with scripted(raw, customer, kind, Gate(release), answer) as (make, exchange):
        first = asyncio.ensure_future(make("key"))
        await until(lambda: exchange.requests)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

        async def gone() -> bool:
            return (await own.status())["connections"] == 0

        await eventually(gone)
        stopped = asyncio.ensure_future(own.stop())
        await until(lambda: any("stopping" in line for line in own.log))
        await asyncio.sleep(1.2)  # longer than a relay without calls takes to stop
        release.set()
        assert await stopped == 0
    await own.start()
    if kind != "file":
        assert nano((await customer.money())["held"]) > 0
    with contextlib.closing(sqlite3.connect(next(own.data_dir.glob("*.db")))) as store:
        assert (kind, object_id) in store.execute("SELECT kind, object_id FROM objects").fetchall()


async def again(client: openai.AsyncOpenAI, kind: str, key: str) -> None:
    """A call of this kind with a key, whatever its body."""
    headers = {"Idempotency-Key": key}
    if kind == "file":
        await client.files.create(file=("a", b"hello"), purpose="user_data", extra_headers=headers)
    elif kind == "batch":
        await client.batches.create(
            input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h", extra_headers=headers
        )
    elif kind == "video":
        await client.videos.create(model="sora-2", prompt="A cat", seconds="4", extra_headers=headers)
    else:
        await client.responses.create(model="gpt-5", input="Hello", background=True, extra_headers=headers)
