"""Files and stored responses through a relay with the official SDK: whose they are, and what they cost."""

import asyncio
import os
from collections.abc import AsyncIterator

import aiohttp
import openai
import pytest
import pytest_asyncio
from aiohttp import web

from relay.simulator import Running
from tests.functional.clients import async_openai
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import channel

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOTES = ("notes.txt", b"some notes\n" * 1000, "text/plain")


async def test_file(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        made = await client.files.create(file=NOTES, purpose="user_data")
        assert (made.bytes, made.filename, made.purpose) == (11_000, "notes.txt", "user_data")
        shown = await client.files.retrieve(made.id)
        assert shown == made
        content = await client.files.content(made.id)
        assert content.content == NOTES[1]
        listed = [file.id async for file in client.files.list()]
        assert listed == [made.id]
        assert (await client.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(made.id)
        assert [file async for file in client.files.list()] == []
    records = (await customer.calls(7))[::-1]
    assert [record["path"] for record in records] == [
        "/v1/files", "/v1/files/{id}", "/v1/files/{id}/content", "/v1/files", "/v1/files/{id}", "/v1/files/{id}",
        "/v1/files",
    ]  # fmt: skip
    assert [record["status"] for record in records] == [200, 200, 200, 200, 200, 404, 200]
    assert records[5]["error_code"] == "object_not_found"
    assert {record["cost"] for record in records} == {"0"}
    assert await customer.settled_nano() == 100 * 10**9


async def test_a_file_belongs_to_its_account(customer: Customer, relay: RelayProcess, simulator: Running):
    stranger = await relay.customer()
    colleague = await relay.another_key(customer)
    async with async_openai(customer) as client:
        made = await client.files.create(file=NOTES, purpose="user_data")
    before = simulator.book.requests
    async with async_openai(stranger) as client:
        for method in (client.files.retrieve, client.files.delete, client.files.content):
            with pytest.raises(openai.NotFoundError) as caught:
                await method(made.id)
            assert caught.value.code == "object_not_found"
        assert [file async for file in client.files.list()] == []
        with pytest.raises(openai.NotFoundError):  # nor can it be told from one that never was
            await client.files.retrieve("file-unknown")
        with pytest.raises(openai.NotFoundError):
            await client.files.list(after=made.id)
    assert simulator.book.requests == before
    async with async_openai(colleague) as client:
        assert (await client.files.retrieve(made.id)).id == made.id


async def test_lists_in_pages(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        made = [(await client.files.create(file=NOTES, purpose="batch" if i % 2 else "user_data")).id for i in range(5)]
        page = await client.files.list(limit=2)
        assert [file.id for file in page.data] == [made[4], made[3]]
        assert page.has_more
        assert [file.id async for file in client.files.list(limit=2)] == made[::-1]
        assert [file.id async for file in client.files.list(limit=2, order="asc")] == made
        assert {file.id async for file in client.files.list(purpose="batch")} == {made[1], made[3]}
        with pytest.raises(openai.BadRequestError):
            await client.files.list(limit=-1)


async def test_scopes_and_limits_hold_for_files(relay: RelayProcess, customer: Customer):
    without = await relay.another_key(customer, scopes=["chat"])
    async with async_openai(without) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.files.create(file=NOTES, purpose="user_data")
    slow = await relay.another_key(customer, rpm=1)
    async with async_openai(slow) as client:
        await client.files.list()
        with pytest.raises(openai.RateLimitError) as caught:
            await client.files.list()
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.response.headers["x-ratelimit-limit-requests"] == "1"
    async with async_openai(Customer(relay, "", "", "sk-nothing")) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.files.list()


async def test_errors_about_files_pass(customer: Customer, simulator: Running):
    headers = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "multipart/form-data; boundary=b"}
    body = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b--\r\n'  # no file
    url = customer.relay.base_url + "/v1/files"
    async with aiohttp.ClientSession(headers=headers) as session, session.post(url, data=body) as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, "file")
    async with async_openai(customer) as client:
        simulator.defaults = "status=401"  # of the operator's own key
        try:
            with pytest.raises(openai.InternalServerError) as hidden:
                await client.files.create(file=NOTES, purpose="user_data")
        finally:
            simulator.defaults = ""
        assert hidden.value.code == "upstream_account"
    assert [record["error_code"] for record in await customer.calls(2)] == ["upstream_account", "upstream_error"]


class Sink:
    """An upstream that counts what is uploaded and keeps none of it; it reads only while `open` is set."""

    def __init__(self) -> None:
        self.received = 0
        self.open = asyncio.Event()
        self.base_url = ""

    async def files(self, request: web.Request) -> web.Response:
        while data := await request.content.readany():
            await self.open.wait()
            self.received += len(data)
        return web.json_response({"id": "file-1", "object": "file", "bytes": self.received})

    async def content(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(UPLOAD_BYTES)})
        await response.prepare(request)
        for _ in range(UPLOAD_BYTES // PIECE_BYTES):
            await response.write(bytes(PIECE_BYTES))
        return response


PIECE_BYTES = 1 << 16
UPLOAD_BYTES = 200 << 20


@pytest_asyncio.fixture(loop_scope="session")
async def sink() -> AsyncIterator[Sink]:
    made = Sink()
    app = web.Application(client_max_size=1 << 40)
    app.router.add_post("/v1/files", made.files)
    app.router.add_get("/v1/files/{id}/content", made.content)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    made.open.set()
    await runner.cleanup()


def resident_bytes(relay: RelayProcess) -> int:
    with open(f"/proc/{relay.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_a_large_upload_passes_through_little_memory(sink: Sink, tmp_path):
    """200 MB up, held back by the provider half-way, and 200 MB down: the relay grows by less than 20 MB."""
    config = "[server]\ndrain_seconds = 2\n[plans.open]\n"
    config += channel("sink", "openai", sink.base_url + "/v1", '["m"]', "key")
    relay = await RelayProcess(tmp_path, config).start()
    try:
        customer = await relay.customer()
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {customer.secret}"}) as session:
            async with session.get(relay.base_url + "/v1/files") as answer:  # everything is loaded that will be
                assert answer.status == 200
            before = resident_bytes(relay)
            peak = before
            sent = 0
            boundary = "limit"
            head = (
                f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
                f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="big"\r\n\r\n'
            ).encode()
            tail = f"\r\n--{boundary}--\r\n".encode()

            async def pieces() -> AsyncIterator[bytes]:
                nonlocal sent
                yield head
                for _ in range(UPLOAD_BYTES // PIECE_BYTES):
                    yield bytes(PIECE_BYTES)
                    sent += PIECE_BYTES
                yield tail

            async def upload() -> None:
                headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
                async with session.post(relay.base_url + "/v1/files", data=pieces(), headers=headers) as answer:
                    assert answer.status == 200, await answer.text()

            task = asyncio.create_task(upload())
            stuck = [0, -1]

            async def held_back() -> bool:
                stuck[:] = [sent, stuck[0]]
                await asyncio.sleep(0.1)
                return stuck[0] == stuck[1] > 0

            await eventually(held_back, what="the provider's pace is the client's")
            assert sent < UPLOAD_BYTES / 4
            peak = max(peak, resident_bytes(relay))
            sink.open.set()
            while not task.done():
                peak = max(peak, resident_bytes(relay))
                await asyncio.sleep(0.05)
            await task
            assert sink.received == UPLOAD_BYTES + len(head) + len(tail)
            received = 0
            async with session.get(relay.base_url + "/v1/files/file-1/content") as answer:
                async for data in answer.content.iter_any():
                    received += len(data)
                    peak = max(peak, resident_bytes(relay)) if received % 16 == 0 else peak
            assert received == UPLOAD_BYTES
            peak = max(peak, resident_bytes(relay))
        assert peak - before <= 20 << 20
    finally:
        assert await relay.stop() == 0


async def test_an_upload_above_the_limit_is_refused(sink: Sink, tmp_path):
    config = "[server]\nupload_bytes_max = 2000000\nbody_bytes_max = 1000000\n[plans.open]\n" + channel(
        "sink", "openai", sink.base_url + "/v1", '["m"]', "key"
    )
    sink.open.set()
    relay = await RelayProcess(tmp_path, config).start()
    try:
        customer = await relay.customer()
        async with async_openai(customer) as client:
            assert (await client.files.create(file=("a", bytes(1_500_000)), purpose="user_data")).id == "file-1"
            with pytest.raises(openai.APIStatusError) as caught:
                await client.files.create(file=("a", bytes(2_500_000)), purpose="user_data")
            assert caught.value.status_code == 413
    finally:
        assert await relay.stop() == 0


async def test_stored_response(customer: Customer, relay: RelayProcess, simulator: Running):
    stranger = await relay.customer()
    async with async_openai(customer) as client:
        made = await client.responses.create(model="gpt-5", input="Hello #sim events=3#")
        shown = await client.responses.retrieve(made.id)
        assert shown.output_text == made.output_text
        assert [item async for item in client.responses.input_items.list(made.id)] == []
        assert (await client.responses.cancel(made.id)).id == made.id
    async with async_openai(stranger) as client:
        for method in (
            client.responses.retrieve, client.responses.delete, client.responses.cancel,
            client.responses.input_items.list,
        ):  # fmt: skip
            with pytest.raises(openai.NotFoundError) as caught:
                await method(made.id)
            assert caught.value.code == "object_not_found"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.responses.create(model="gpt-5", input="And?", previous_response_id=made.id)
        assert (caught.value.code, caught.value.param) == ("object_not_found", "previous_response_id")
        with pytest.raises(openai.NotFoundError):
            await client.responses.create(model="gpt-5", input="And?", conversation="conv_1")
    async with async_openai(customer) as client:
        again = await client.responses.create(model="gpt-5", input="And?", previous_response_id=made.id)
        assert again.previous_response_id == made.id
        assert simulator.book.last.model == "gpt-5"
        stream = await client.responses.create(model="gpt-5", input="And?", previous_response_id=again.id, stream=True)
        events = [event async for event in stream]
        assert events[-1].type == "response.completed"
        assert (await client.responses.retrieve(events[0].response.id)).id == events[0].response.id
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
    costs = [nano(record["cost"]) for record in await customer.calls(9)]
    assert sum(cost > 0 for cost in costs) == 3
    assert await customer.settled_nano() == 100 * 10**9 - sum(costs)


async def test_a_response_that_is_not_stored_is_nobodys(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        made = await client.responses.create(model="gpt-5", input="Hello", store=False)
        before = simulator.book.requests
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
    assert simulator.book.requests == before


async def test_whose_a_response_is_survives_a_restart(customer: Customer, simulator: Running, tmp_path):
    config = "[server]\n[plans.open]\n" + channel("sim", "openai", simulator.base_url + "/v1", '["gpt-5"]', "sim-key")
    config += '[[rates]]\nmodel = "gpt-5"\ninput = "1"\noutput = "1"\n'
    relay = await RelayProcess(tmp_path, config).start()
    own = await relay.customer()
    async with async_openai(own) as client:
        made = await client.responses.create(model="gpt-5", input="Hello")
    assert await relay.stop() == 0
    await relay.start()
    try:
        async with async_openai(own) as client:
            assert (await client.responses.retrieve(made.id)).id == made.id
    finally:
        assert await relay.stop() == 0


async def test_counting_and_compacting_responses(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        counted = await client.responses.input_tokens.count(model="gpt-5", input="Hello, you")
        compacted = await client.responses.compact(model="gpt-5", input="Hello #sim events=4#")
    assert counted.input_tokens > 0
    assert compacted.usage.output_tokens == 4
    paid, free = await customer.calls(2)
    assert (paid["path"], paid["output_tokens"]) == ("/v1/responses/compact", 4)
    assert nano(paid["cost"]) > 0
    assert (free["path"], free["cost"]) == ("/v1/responses/input_tokens", "0")
