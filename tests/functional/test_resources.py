"""One customer, or one upstream, cannot take from the others what all share."""

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio

from relay.simulator import Running
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually
from tests.functional.setting import RAW_KEY, channel, config_text
from tests.support.scripted import reset
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"


def chat(secret: str, body: bytes) -> bytes:
    return CHAT % (secret.encode(), len(body), body)


def get(secret: str, path: str) -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer %s\r\n\r\n" % (path.encode(), secret.encode())


def response(body: bytes, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def completion(text: str) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    return response(json.dumps({"object": "chat.completion", "choices": [choice], "usage": usage}).encode())


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"(?i)content-length: (\d+)", head)
    assert found is not None, head
    return int(head[9:12]), await reader.readexactly(int(found[1]))


async def ask(port: int, message: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(message)
    answer = await read_answer(reader)
    writer.close()
    await writer.wait_closed()
    return answer


class Upstream:
    """Answers each request by `answer(head, body)`; `writers` are its connections, the newest last."""

    def __init__(self) -> None:
        self.answer: Callable[[bytes, bytes], Awaitable[bytes]] = _nothing
        self.writers: list[asyncio.StreamWriter] = []
        self.bodies: list[bytes] = []
        self.port = 0
        self.resetting_port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(found[1])) if found else b""
                self.bodies.append(body)
                writer.write(await self.answer(head, body))
        writer.close()


class _Resetting(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        reset(cast(asyncio.Transport, transport))


async def _nothing(head: bytes, body: bytes) -> bytes:
    return response(b"{}")


def descriptors(relay: RelayProcess) -> int:
    return len(os.listdir(f"/proc/{relay.pid}/fd"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    resets = await asyncio.get_running_loop().create_server(_Resetting, "127.0.0.1", 0)
    made.resetting_port = resets.sockets[0].getsockname()[1]
    yield made
    server.close()
    resets.close()
    for writer in made.writers:
        writer.transport.abort()
    await asyncio.sleep(0)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def small(
    simulator: Running, raw: RawUpstream, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RelayProcess]:
    """A relay of this file's own, with small bounds."""
    text = config_text(simulator.base_url, raw.base_url)
    own = channel("own", "openai", f"http://127.0.0.1:{upstream.port}/v1", '["own"]', RAW_KEY)
    own += channel("resets", "openai", f"http://127.0.0.1:{upstream.resetting_port}/v1", '["resets"]', RAW_KEY)
    own += "".join(f'[[rates]]\nmodel = "{name}"\ninput = "1"\noutput = "1"\n' for name in ("own", "resets"))
    text = text.replace("[[channels]]", own + "[[channels]]", 1)  # the first: files go there
    relay = await RelayProcess(tmp_path_factory.mktemp("small"), text).start()
    yield relay
    status = await relay.status()
    assert await relay.stop() == 0
    assert status["faults"] == 0
    assert relay.faults == []


@pytest_asyncio.fixture(loop_scope="session")
async def someone(small: RelayProcess) -> Customer:
    return await small.customer()


# -- descriptors

OPTIONS = [
    b'{"x":1e400}',
    b'{"x":"\\ud800"}',
    b'{"x":' + b"1" * 400 + b"}",
    b'{"include_usage":false,"x":1e400}',
    b'{ "include_usage" : null }',
    b"{ }",
    b"null",
]


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
async def test_finding_wire_H3_no_descriptor_is_lost(relay: RelayProcess, raw: RawUpstream, options: bytes):
    """The relay asks for usage in the caller's own text, which it does not read as a whole: nothing in it can fail."""
    customer = await relay.customer()
    event = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%s" % (len(event), event)
    before = 0
    for at in range(12):
        name, exchange = raw.script(answer)
        body = b'{"model":"raw-strip","stream":true,"stream_options":%s,"messages":[{"role":"user","content":"%s"}]}'
        sent = body % (options, name.encode())
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(chat(customer.secret, sent))
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        await reader.readuntil(b"[DONE]\n\n")
        writer.close()
        await writer.wait_closed()
        gone_on = exchange.bodies[0]
        asked = gone_on[gone_on.index(b'"stream_options":') + 17 : gone_on.index(b',"messages"')]
        assert asked.replace(b" ", b"").count(b'"include_usage":true') == 1
        assert asked.count(b"include_usage") == 1
        if at == 1:
            before = descriptors(relay)
    await eventually(lambda: _at_most(relay, before))
    await customer.calls(12)


async def _at_most(relay: RelayProcess, count: int) -> bool:
    return descriptors(relay) <= count


async def test_finding_wire_H3_an_upstream_that_resets_what_it_accepts(
    small: RelayProcess, someone: Customer, upstream: Upstream
):
    """Closed between the connection's being made and its first use."""
    body = b'{"model":"resets","messages":[{"role":"user","content":"x"}]}'
    before = 0
    for at in range(20):
        assert (await ask(small.port, chat(someone.secret, body)))[0] in (502, 503)  # by when the reset arrives
        if at == 1:
            before = descriptors(small)
    await eventually(lambda: _at_most(small, before))
    assert {row["error_code"] for row in await someone.calls(20)} <= {"upstream_failed", "upstream_unavailable"}


# -- an upstream's stray bytes


@pytest.mark.parametrize("stray_first", [True, False])
async def test_finding_wire_H6_stray_bytes_in_the_socket(
    small: RelayProcess, someone: Customer, upstream: Upstream, stray_first: bool
):
    """An answer to no request, in the socket before the loop comes to either side: nobody gets it."""

    async def echo(head: bytes, body: bytes) -> bytes:
        return completion(json.loads(body)["messages"][0]["content"])

    upstream.answer = echo

    def message(text: str) -> bytes:
        return chat(
            someone.secret, json.dumps({"model": "own", "messages": [{"role": "user", "content": text}]}).encode()
        )

    stray = completion("stray")
    reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
    for at in range(5):
        writer.write(message(f"first {at}"))
        assert f"first {at}".encode() in (await read_answer(reader))[1]
        small.signal(signal.SIGSTOP)
        try:
            await _stopped(small)
            if stray_first:
                upstream.writers[-1].write(stray)
                await asyncio.sleep(0.005)
            writer.write(message(f"second {at}"))
            await asyncio.sleep(0.005)
            if not stray_first:
                upstream.writers[-1].write(stray)
                await asyncio.sleep(0.005)
        finally:
            small.signal(signal.SIGCONT)
        status, body = await read_answer(reader)
        assert status == 200
        assert f"second {at}".encode() in body
    writer.close()
    await writer.wait_closed()
    await someone.calls(10)


async def _stopped(relay: RelayProcess) -> None:
    stat = Path(f"/proc/{relay.pid}/stat")
    await until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", 10)


async def test_finding_wire_H6_stray_answers_about_files(small: RelayProcess, someone: Customer, upstream: Upstream):
    """The same for what Python asks for: another customer's document must not become the next answer."""

    async def upload(head: bytes, body: bytes) -> bytes:
        if head.startswith(b"POST"):
            return response(b'{"id":"file-%d","object":"file"}' % len(upstream.bodies))
        return response(head.split()[1], "application/octet-stream")

    upstream.answer = upload
    form = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b\r\n'
    form += b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\nhello\r\n--b--\r\n'
    upload_head = (
        b"POST /v1/files HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer %s\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n%s"
    )
    files = []
    for _ in range(3):
        _, body = await ask(small.port, upload_head % (someone.secret.encode(), len(form), form))
        files.append(json.loads(body)["id"])
    for file in files:
        path = f"/v1/files/{file}/content"
        assert await ask(small.port, get(someone.secret, path)) == (200, path.encode())
        with contextlib.suppress(ConnectionError):  # that it was closed is one way to be safe
            upstream.writers[-1].write(response(b"stray", "application/octet-stream"))
            await upstream.writers[-1].drain()
        await asyncio.sleep(0.05)
    await someone.calls(6)
