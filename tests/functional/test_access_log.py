"""Access log and spans of a real relay: one line and one span per ended call, the record's fields, no content."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from relay.simulator import Running
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import RelayProcess
from tests.functional.setting import config_text
from tests.functional.test_metrics import chat, send
from tests.support.canaries import Canaries, files_below
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Collector:
    """An OTLP/HTTP endpoint that keeps what it got."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.url = ""

    async def start(self) -> web.AppRunner:
        async def traces(request: web.Request) -> web.Response:
            self.bodies.append(await request.read())
            return web.Response(content_type="application/x-protobuf")

        app = web.Application()
        app.router.add_post("/v1/traces", traces)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
        return runner

    @property
    def spans(self) -> list[Any]:
        found = []
        for body in self.bodies:
            message = ExportTraceServiceRequest.FromString(body)
            found += [s for resource in message.resource_spans for scope in resource.scope_spans for s in scope.spans]
        return found


@pytest_asyncio.fixture(loop_scope="session")
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    runner = await made.start()
    yield made
    await runner.cleanup()


@pytest_asyncio.fixture(loop_scope="session")
async def own(
    simulator: Running, raw: RawUpstream, collector: Collector, tmp_path: Path
) -> AsyncIterator[RelayProcess]:
    text = config_text(simulator.base_url, raw.base_url)
    observed = f'[observe]\naccess_log = "{tmp_path / "calls.jsonl"}"\nspans = "{collector.url}"\n'
    text = text.replace("[observe]\nunknown_models = true\n", observed)  # that keeps names of models, on request
    relay = RelayProcess(tmp_path, text)
    await relay.start()
    yield relay
    await relay.kill()
    assert relay.faults == []


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def test_every_call_has_its_line_and_its_span(own: RelayProcess, collector: Collector, tmp_path: Path):
    put = Canaries()
    customer = await own.customer()
    path = tmp_path / "calls.jsonl"
    for body in (
        chat("gpt-4o", put("prompt")),
        chat("gpt-4o", put("streamed prompt"), stream=True),
        chat(put("unknown model")),
        chat("gpt-down", put("prompt of a failed call")),
    ):
        await send(own.port, customer.secret, "/v1/chat/completions", body)
    await until(lambda: len(lines(path)) == 4, what="four lines")
    records = await own.calls()
    assert lines(path) == records[::-1]
    await until(lambda: len(collector.spans) == 4, what="four spans")
    for span, record in zip(collector.spans, records[::-1], strict=True):
        values = {item.key: item.value for item in span.attributes}
        assert span.name == record["path"]
        assert values["relay.id"].string_value == record["id"]
        assert values["http.response.status_code"].int_value == record["status"]
        assert values["relay.cost"].string_value == record["cost"]
        assert ("error.type" in values) == (record["error_code"] is not None)
        assert values["gen_ai.usage.output_tokens"].int_value == record["output_tokens"]
        assert span.end_time_unix_nano - span.start_time_unix_nano == round(record["latency_ms"] * 1000) * 1000
        assert [event.name for event in span.events] == ([] if record["first_byte_ms"] is None else ["first_byte"])
        assert len(span.trace_id) == 16
    assert len({span.trace_id for span in collector.spans}) == 4

    # Rotation: the file is moved away, SIGHUP begins a new one.
    moved = tmp_path / "calls.1"
    path.rename(moved)
    own.signal(signal.SIGHUP)
    await until(lambda: any("configuration reloaded" in line for line in own.log), what="the reload")
    await send(own.port, customer.secret, "/v1/chat/completions", chat("gpt-4o"))
    await until(lambda: len(lines(path)) == 1, what="a line in the new file")
    assert len(lines(moved)) == 4

    # What ends last is written before the process ends.
    await send(own.port, customer.secret, "/v1/chat/completions", chat("gpt-4o"))
    assert await own.stop() == 0
    assert len(lines(path)) == 2
    assert len(collector.spans) == 6
    told = [("spans", body) for body in collector.bodies]
    assert put.found([*told, *files_below(tmp_path), ("the log", "\n".join(own.log).encode())]) == []


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENTS = {
    f"00-{TRACE}-{SPAN}-01": True,
    f"00-{TRACE}-{SPAN}-00": True,
    f"cc-{TRACE}-{SPAN}-01-what will be": True,  # a version that comes later
    f"00-{TRACE}-{SPAN}-01-more": False,
    f"ff-{TRACE}-{SPAN}-01": False,
    f"00-{'0' * 32}-{SPAN}-01": False,
    f"00-{TRACE.upper()}-{SPAN}-01": False,
    "written by a person": False,
    f"00-{TRACE}-{SPAN}-01" * 3: False,
}


async def test_a_span_belongs_to_its_callers_trace(
    own: RelayProcess, collector: Collector, simulator: Running, tmp_path: Path
):
    """On every way into the relay; what is not valid is no parent; the provider gets what the caller sent."""
    customer = await own.customer()
    auth = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"}
    url = own.base_url + "/v1/"
    body = json.dumps(chat("gpt-4o")).encode()
    async with aiohttp.ClientSession() as session:
        for number, traceparent in enumerate(TRACEPARENTS, 1):
            head = auth | {"traceparent": traceparent}
            async with session.post(url + "chat/completions", data=body, headers=head) as answer:
                assert answer.status == 200
            assert simulator.book.last.header("traceparent") == traceparent
            await until(lambda number=number: len(collector.spans) == number, what="a span")
        for span, (traceparent, valid) in zip(collector.spans, TRACEPARENTS.items(), strict=True):
            assert (span.trace_id.hex() == TRACE) is valid, traceparent
            assert span.parent_span_id.hex() == (SPAN if valid else "")
            assert span.span_id.hex() != SPAN
        before = len(collector.spans)
        good = f"00-{TRACE}-{SPAN}-01"
        multiple = [*auth.items(), ("traceparent", good), ("traceparent", good)]  # two are none
        await session.post(url + "chat/completions", data=body, headers=multiple)
        await session.post(url + "chat/completions", json=chat("nobody's"), headers=auth | {"traceparent": good})

        async def pieces() -> AsyncIterator[bytes]:
            yield body[:9]
            yield body[9:]

        # In chunks it is aiohttp's parser that reads it; files are served by Python alone; and a session by WebSocket.
        await session.post(url + "chat/completions", data=pieces(), headers=auth | {"traceparent": good})
        await session.get(url + "files", headers=auth | {"traceparent": good})
        await until(lambda: len(collector.spans) == before + 4, what="four spans")
        async with session.ws_connect(url + "realtime?model=gpt-5", headers=auth | {"traceparent": good}) as socket:
            assert (await socket.receive_json())["type"] == "session.created"
        assert simulator.book.last.header("traceparent") == good
    await until(lambda: len(collector.spans) == before + 5, what="five spans")
    assert [span.parent_span_id.hex() for span in collector.spans[before:]] == ["", *[SPAN] * 4]
    assert await own.stop() == 0
    for name, data in files_below(tmp_path):
        assert TRACE.encode() not in data, name
        assert b"written by a person" not in data, name
    assert all(b"written by" not in body for body in collector.bodies)


async def test_a_log_that_cannot_be_opened(own: RelayProcess, tmp_path: Path):
    """At start it is a fault of the configuration; at a reload the old one stays in force."""
    customer = await own.customer()
    text = own.config
    own.write_config(text.replace("calls.jsonl", "no/such/folder"))
    own.signal(signal.SIGHUP)
    await until(lambda: any("the configuration in force stays" in line for line in own.log), what="the refusal")
    assert any("observe.access_log" in line for line in own.log)
    await send(own.port, customer.secret, "/v1/chat/completions", chat("gpt-4o"))
    await until(lambda: len(lines(tmp_path / "calls.jsonl")) == 1, what="a line in the old file")
    assert await own.stop() == 0
    with pytest.raises(AssertionError, match=r"observe\.access_log"):
        await RelayProcess(tmp_path, text.replace("calls.jsonl", "no/such/folder")).start()


async def test_a_log_that_nobody_reads_delays_no_call(simulator: Running, raw: RawUpstream, tmp_path: Path):
    """A pipe that is full: calls are served, and the process ends."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                os.write(writer, b"\n" * 4096)
            except BlockingIOError:
                break
        text = config_text(simulator.base_url, raw.base_url)
        text = text.replace("[observe]\n", f'[observe]\naccess_log = "{pipe}"\n')
        relay = await RelayProcess(tmp_path, text).start()
        customer = await relay.customer()
        for _ in range(3):
            assert await send(relay.port, customer.secret, "/v1/chat/completions", chat("gpt-4o")) == 200
            await asyncio.sleep(0.15)
        assert len(await relay.calls()) == 3
        assert await relay.stop() == 0
        assert relay.faults == []
    finally:
        os.close(reader)
        os.close(writer)
