"""Errors about the operator's account in the results of batches."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from relay.errors import ERRORS
from tests.functional.clients import async_anthropic, async_openai
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.setting import channel
from tests.support.cabinets import Asked, Cabinet

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAID = "You exceeded your current quota, please check your plan and billing details. SECRET"
TOLD = ERRORS["upstream_account"].message
QUOTA = {"message": SAID, "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}
CALLERS = {"message": "Invalid 'temperature' SECRET-OF-THE-CALLER", "type": "invalid_request_error", "code": None}
CHAT = {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": SAID}}]}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "c", "stop_reason": "end_turn",
           "content": [{"type": "text", "text": SAID}], "usage": {"input_tokens": 3, "output_tokens": 4}}  # fmt: skip


def line(**fields: Any) -> bytes:
    return json.dumps(fields, indent=None, separators=(" , ", " : ")).encode()  # as no other writer would put it


def openai_line(name: str, status: int, body: Any, error: Any = None) -> bytes:
    response = {"status_code": status, "request_id": "req_1", "body": body} if status else None
    return line(id="b", custom_id=name, response=response, error=error)


OPENAI_LINES = [
    openai_line("good", 200, CHAT),
    openai_line("quota", 429, {"error": QUOTA}),
    openai_line("caller", 400, {"error": CALLERS}),
    openai_line("key", 401, {"error": {"message": "No SECRET here", "code": None}}),
    openai_line("not-sent", 0, None, {"code": "billing_hard_limit_reached", "message": SAID}),
    openai_line("no-object", 402, "SECRET has no money"),
    b"no JSON, error",
]
ANTHROPIC_LINES = [
    line(custom_id="good", result={"type": "succeeded", "message": MESSAGE}),
    line(custom_id="quota", result={"type": "errored", "error": {"type": "error", "request_id": "req_1", "error": {
        "type": "billing_error", "message": "Your credit balance is too low. SECRET"}}}),
    line(custom_id="caller", result={"type": "errored", "error": {"type": "error", "error": {
        "type": "invalid_request_error", "message": "max_tokens: SECRET-OF-THE-CALLER"}}}),
    line(custom_id="late", result={"type": "expired"}),
]  # fmt: skip


class Place:
    """A relay before one upstream; `says` is what it answers to a path."""

    def __init__(self, relay: RelayProcess, customer: Customer) -> None:
        self.relay = relay
        self.customer = customer
        self.says: dict[tuple[str, str], Any] = {}

    async def behave(self, asked: Asked) -> web.StreamResponse | None:
        made = self.says.get((asked.method, asked.path))
        return made() if made is not None else None

    def answers(self, method: str, path: str, body: bytes, kind: str, step: int = 7, **fields: str) -> None:
        """In pieces of `step` bytes."""

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(body), step):
                yield body[at : at + step]

        self.says[method, path] = lambda: web.Response(body=pieces(), content_type=kind, headers=fields)

    def shows(self, method: str, path: str, **document: Any) -> None:
        self.says[method, path] = lambda: web.json_response(document)

    async def get(self, path: str) -> tuple[bytes, bool, Any]:
        """What comes, whether it ends well, and the header."""
        headers = {"Authorization": f"Bearer {self.customer.secret}"}
        body = b""
        session = aiohttp.ClientSession(auto_decompress=False)
        async with session, session.get(self.relay.base_url + path, headers=headers) as got:
            assert got.status == 200
            try:
                async for data in got.content.iter_any():
                    body += data
            except aiohttp.ClientError:
                return body, False, got.headers
            return body, True, got.headers

    async def told_operator(self) -> int:
        """How often the operator has heard of it."""
        events = (await self.relay.command("events"))["events"]
        return sum(event["kind"] == "upstream_account" for event in events)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with Cabinet() as cabinet:
        text = (
            "[server]\ndrain_seconds = 2\n[plans.open]\n[jobs]\npoll_seconds = 3600\n"
            + channel("a", "openai", cabinet.base_url, '["m"]', "KEY")
            + channel("c", "anthropic", cabinet.base_url.removesuffix("/v1"), '["c"]', "KEY")
            + "".join(f'[[rates]]\nmodel = "{name}"\ninput = 1\noutput = 2\n' for name in ("m", "c"))
        )
        relay = await RelayProcess(tmp_path_factory.mktemp("jobs"), text).start()
        try:
            made = Place(relay, await relay.customer())
            cabinet.behaviour = made.behave
            yield made
            assert (await relay.command("ledger verify"))["ok"]
            assert relay.faults == []
            assert await relay.stop() == 0
        finally:
            await relay.kill()


async def made_batch(place: Place, name: str, client: Any) -> tuple[str, Any]:
    """A file and a batch of it that has ended, with files of its results."""
    request = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
               "body": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}}  # fmt: skip
    file = await client.files.create(file=("a.jsonl", json.dumps(request).encode()), purpose="batch")
    place.shows("POST", "/v1/batches", id=name, object="batch", status="in_progress")
    place.shows(
        "GET", f"/v1/batches/{name}", id=name, object="batch", status="completed", output_file_id=f"{name}-out",
        error_file_id=f"{name}-errors", usage={"input_tokens": 2, "output_tokens": 3},
    )  # fmt: skip
    await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    return file.id, await client.batches.retrieve(name)


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""], ids=["lf", "crlf", "open"])
async def test_finding_money_M1_result_files_of_openai(place: Place, step: int, end: bytes):
    content = (end or b"\n").join(OPENAI_LINES) + end
    name = f"batch_{step}_{end.hex()}"
    async with async_openai(place.customer) as client:
        uploaded, batch = await made_batch(place, name, client)
        for file in (batch.output_file_id, batch.error_file_id, uploaded):
            place.answers("GET", f"/v1/files/{file}/content", content, "application/octet-stream", step, etag='"x"')
        before = await place.told_operator()
        for number, file in enumerate((batch.output_file_id, batch.error_file_id)):
            got = (await client.files.content(file)).content
            assert await place.told_operator() == before + number + 1  # once for a file
            found = got.removesuffix(end).split(end or b"\n")
            assert len(found) == len(OPENAI_LINES)
            for place_of in (0, 2, 6):
                assert found[place_of] == OPENAI_LINES[place_of]
            lines = [json.loads(one) for one in found[:-1]]
            assert [one["custom_id"] for one in lines] == ["good", "quota", "caller", "key", "not-sent", "no-object"]
            assert b"SECRET" not in b"".join(found[at] for at in (1, 3, 4, 5))
            told = {"message": TOLD, "type": "server_error", "param": None, "code": "upstream_account"}
            assert lines[1]["response"] == {"status_code": 429, "request_id": "req_1", "body": {"error": told}}
            assert lines[3]["response"]["body"]["error"] == {"message": TOLD, "code": "upstream_account"}
            assert lines[4]["error"] == {"message": TOLD, "code": "upstream_account"}
            assert lines[5]["response"]["body"] == TOLD
        # What was uploaded is its owner's, whatever stands in it.
        assert (await client.files.content(uploaded)).content == content


async def test_finding_money_M1_result_files_without_such_lines_pass_byte_for_byte(place: Place):
    content = b"\n\n" + b"\n".join([OPENAI_LINES[0], b"", b"{}", b"[1]", b"\xff error", OPENAI_LINES[2]])
    async with async_openai(place.customer) as client:
        _, batch = await made_batch(place, "batch_clean", client)
        place.answers("GET", f"/v1/files/{batch.output_file_id}/content", content, "application/octet-stream")
        before = await place.told_operator()
        assert (await client.files.content(batch.output_file_id)).content == content
        assert await place.told_operator() == before


async def test_finding_money_M1_result_files_that_come_compressed(place: Place):
    """Nobody asked for that."""
    content = b"\n".join(OPENAI_LINES) + b"\n"
    async with async_openai(place.customer) as client:
        _, batch = await made_batch(place, "batch_gzip", client)
    path = f"/v1/files/{batch.output_file_id}/content"
    packed = gzip.compress(content)
    place.answers("GET", path, packed, "application/octet-stream", **{"content-encoding": "gzip"})
    body, whole, head = await place.get(path)
    assert (whole, head.get("content-encoding")) == (True, None)
    assert body.splitlines()[0] == OPENAI_LINES[0]
    assert b"SECRET" not in body.replace(SAID.encode(), b"", 1).replace(b"SECRET-OF-THE-CALLER", b"")
    place.answers("GET", path, packed[:60] + b"\0" * 60, "application/octet-stream", **{"content-encoding": "gzip"})
    assert not (await place.get(path))[1]


@pytest.mark.parametrize("step", [1, 1 << 20])
async def test_finding_money_M1_result_files_of_anthropic(place: Place, step: int):
    name = f"msgbatch_{step}"
    path = f"/v1/messages/batches/{name}"
    about: dict[str, Any] = {"id": name, "type": "message_batch", "request_counts": {}, "processing_status": "ended"}
    place.shows("POST", "/v1/messages/batches", **about | {"processing_status": "in_progress"})
    place.shows("GET", path, **about | {"results_url": f"http://127.0.0.1:1{path}/results"})
    place.answers("GET", path + "/results", b"\n".join(ANTHROPIC_LINES) + b"\n", "application/x-jsonl", step)
    params: Any = {"model": "c", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    async with async_anthropic(place.customer) as client:
        await client.messages.batches.create(requests=[{"custom_id": "good", "params": params}])
        before = await place.told_operator()
        results: list[Any] = [one async for one in await client.messages.batches.results(name)]
    assert [one.custom_id for one in results] == ["good", "quota", "caller", "late"]
    assert results[0].result.message.content[0].text == SAID
    error = results[1].result.error
    assert (error.type, error.request_id, error.error.type, error.error.message) == (
        "error", "req_1", "api_error", TOLD,
    )  # fmt: skip
    assert results[2].result.error.error.message == "max_tokens: SECRET-OF-THE-CALLER"
    assert await place.told_operator() == before + 1
    body, _, _ = await place.get(path + "/results")
    assert [body.splitlines()[at] for at in (0, 2, 3)] == [ANTHROPIC_LINES[at] for at in (0, 2, 3)]


async def test_a_stored_response_whose_stream_begins_with_a_single_byte(place: Place):
    """Its first byte alone is no beginning of anything."""
    place.shows(
        "POST", "/v1/responses", id="resp_slow", object="response", status="completed", model="m", output=[],
        usage={"input_tokens": 2, "output_tokens": 3, "total_tokens": 5},
    )  # fmt: skip
    body = b'event: response.created\ndata: {"type":"response.created","response":{"id":"resp_slow"}}\n\n'

    async def pieces() -> AsyncIterator[bytes]:
        yield body[:1]
        await asyncio.sleep(0.1)  # so that it comes alone
        yield body[1:]

    place.says["GET", "/v1/responses/resp_slow"] = lambda: web.Response(body=pieces(), content_type="text/event-stream")
    async with async_openai(place.customer) as client:
        await client.responses.create(model="m", input="hi", store=True)
    got, whole, _ = await place.get("/v1/responses/resp_slow?stream=true")
    assert got == body
    assert whole
