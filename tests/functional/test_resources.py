"""One customer, or one upstream, cannot take from the others what all share."""

import asyncio
import base64
import contextlib
import hashlib
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
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
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


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nhello\r\n--b--\r\n'
)
UPLOAD = (
    b"POST /v1/files HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer %s\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n%s"
)
Answer = Callable[[bytes, bytes], Awaitable[bytes]]


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"(?i)content-length: (\d+)", head)
    assert found is not None, head
    return int(head[9:12]), await reader.readexactly(int(found[1]))


async def was_reset(reader: asyncio.StreamReader) -> bool:
    """Whether what comes ends by a reset."""
    try:
        while await reader.read(1 << 20):
            pass
    except ConnectionResetError:
        return True
    return False


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
        self.answer: Answer = _nothing
        self.writers: list[asyncio.StreamWriter] = []
        self.current: asyncio.StreamWriter  # of the request that is being answered
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
                while b"chunked" in head.lower() and (size := int(await reader.readuntil(b"\r\n"), 16)) > 0:
                    body += await reader.readexactly(size + 2)
                self.bodies.append(body)
                self.current = writer
                writer.write(await self.answer(head, body))
        writer.close()


class _Resetting(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        reset(cast(asyncio.Transport, transport))


SLOW = b'{"model":"own","messages":[{"role":"user","content":"slow"}]}'


async def _nothing(head: bytes, body: bytes) -> bytes:
    if body == SLOW:
        await asyncio.sleep(5)
    return completion("Hello")


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
    text = text.replace("[server]\n", "[server]\nwaiting_bytes_max = 4_194_304\n", 1)
    text = text.replace("[plans.open]\n", "[limits]\nfiles_bytes = 500_000\n[plans.open]\n", 1)
    text = text.replace("[[channels]]", own + "[[channels]]", 1)  # the first: files go there
    relay = await RelayProcess(tmp_path_factory.mktemp("small"), text).start()
    yield relay
    status = await relay.status()
    assert await relay.stop() == 0
    assert status["faults"] == 0
    assert relay.faults == []


@pytest_asyncio.fixture(loop_scope="session")
async def someone(small: RelayProcess, upstream: Upstream) -> Customer:
    upstream.answer = _nothing
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

    async def path_itself(head: bytes, body: bytes) -> bytes:
        return response(head.split()[1], "application/octet-stream")

    paths = [await uploaded(small, someone, upstream, path_itself) for _ in range(3)]
    for path in paths:
        assert await ask(small.port, get(someone.secret, path)) == (200, path.encode())
        with contextlib.suppress(ConnectionError, RuntimeError):  # that it was closed is one way to be safe
            upstream.writers[-1].write(response(b"stray", "application/octet-stream"))
            await upstream.writers[-1].drain()
        await asyncio.sleep(0.05)
    await someone.calls(6)


# -- answers that are no HTTP

NO_HTTP = {
    "obs-fold": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\n{}",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "a coding list": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a coding twice": b"HTTP/1.1 200 OK\r\n" + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n2\r\n{}\r\n0\r\n\r\n",
    "both lengths": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "999": b"HTTP/1.1 999 No\r\nContent-Length: 2\r\n\r\n{}",
    "099": b"HTTP/1.1 099 No\r\nContent-Length: 2\r\n\r\n{}",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n{}",
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
    "VT in a value": b"HTTP/1.1 200 OK\r\nA: b\x0bc\r\nContent-Length: 2\r\n\r\n{}",
    "a high byte": b"HTTP/1.1 200 OK\r\nA: \xe9\r\nContent-Length: 2\r\n\r\n{}",
    "NUL": b"HTTP/1.1 200 OK\r\nA: b\0c\r\nContent-Length: 2\r\n\r\n{}",
    "a blank in a name": b"HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 2\r\n\r\n{}",
    "ICY": b"ICY 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "a head of 70 KB": b"HTTP/1.1 200 OK\r\n" + b"A: %s\r\n" % (b"b" * 1000) * 70 + b"Content-Length: 2\r\n\r\n{}",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


async def test_finding_wire_M10_answers_about_files_are_read_strictly(
    small: RelayProcess, someone: Customer, upstream: Upstream
):
    """As on the hot path: what is no HTTP is a failed upstream, and nothing of it reaches the client."""
    answers: list[bytes] = []

    async def answer(head: bytes, body: bytes) -> bytes:
        return answers[-1]

    path = await uploaded(small, someone, upstream, answer)
    for name, garbage in NO_HTTP.items():
        answers.append(garbage)
        status, body = await ask(small.port, get(someone.secret, path))
        assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_garbage"), name
    broken = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 \r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nx\r\n\r\n",
    ]
    for garbage in broken:
        answers.append(garbage)
        reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
        writer.write(get(someone.secret, path).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert not (await read_to_the_end(reader)).endswith(b"0\r\n\r\n")
        writer.close()
    good = [
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\nSet-Cookie: a=b\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ]
    for fine in good:
        answers.append(fine)
        reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
        writer.write(get(someone.secret, path).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answered = await read_to_the_end(reader)
        assert answered.startswith(b"HTTP/1.1 20")
        assert b"Set-Cookie" not in answered
        writer.close()
    rows = await someone.calls(1 + len(NO_HTTP) + len(broken) + len(good))
    assert [row["error_code"] for row in rows] == [None] * 3 + ["upstream_garbage"] * (len(rows) - 4) + [None]


async def read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    read = b""
    with contextlib.suppress(ConnectionResetError):
        while data := await reader.read(1 << 16):
            read += data
    return read


# -- bodies that wait in memory


def head_of(path: str, secret: str, length: int, fields: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer %s\r\n%sContent-Length: %d\r\n\r\n" % (
        path.encode(), secret.encode(), fields, length,
    )  # fmt: skip


WAYS_IN = {
    "hot": ("/v1/chat/completions", b""),
    "aiohttp": ("/v1/chat/completions", b"Upgrade: nothing\r\n"),
    "side": ("/v1/messages/batches", b""),
}


@pytest.mark.parametrize("way", WAYS_IN)
async def test_finding_wire_M5_who_may_not_call_sends_no_body(small: RelayProcess, upstream: Upstream, way: str):
    """Status and calls at a time are looked at when the head is there."""
    upstream.answer = _nothing
    path, fields = WAYS_IN[way]
    customer = await small.customer(concurrency=1)
    message = head_of(path, customer.secret, 900_000, fields)
    busy_reader, busy = await asyncio.open_connection("127.0.0.1", small.port)
    if way == "side":  # what Python serves counts from its head on
        busy.write(message)
    else:
        busy.write(chat(customer.secret, SLOW))

    async def one_open() -> bool:
        return (await small.status())["open_calls"] == 1

    await eventually(one_open)
    assert (await ask(small.port, message))[0] == 429
    busy.close()
    await small.command("key suspend", id=customer.key)
    assert (await ask(small.port, message))[0] == 401
    await busy_reader.read()
    codes = {row["error_code"] for row in await customer.calls(3)}
    assert codes == {"concurrency_limit", "key_suspended", "client_gone"}


@pytest.mark.parametrize("way", WAYS_IN)
@pytest.mark.parametrize("credits", ["0", "100"])
async def test_finding_wire_M5_nobody_fills_the_memory_for_bodies(
    small: RelayProcess, someone: Customer, way: str, credits: str
):
    """Bodies that lack their end, from one account on many connections; another customer's body finds its place."""
    path, fields = WAYS_IN[way]
    greedy = await small.customer(credits)
    opened = []
    for _ in range(12):
        reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
        writer.write(head_of(path, greedy.secret, 1_000_000, fields) + b'{"x":"' + b"a" * 900_000)
        opened.append((reader, writer))
    refused = [asyncio.ensure_future(reader.readline()) for reader, _ in opened]
    await until(lambda: sum(one.done() for one in refused) >= 7)
    body = json.dumps({"model": "own", "messages": [{"role": "user", "content": "b" * 500_000}]}).encode()
    assert (await ask(small.port, chat(someone.secret, body)))[0] == 200
    assert {one.result()[9:12] for one in refused if one.done()} <= {b"503", b"408"}
    for _, writer in opened:
        writer.close()
    await asyncio.gather(*refused, return_exceptions=True)

    async def calm() -> bool:
        return (await small.status())["open_calls"] == 0

    await eventually(calm)
    for _ in range(2):  # all was given back
        assert (await ask(small.port, chat(someone.secret, body)))[0] == 200


async def test_finding_wire_L6_a_byte_now_and_then(small: RelayProcess, someone: Customer):
    """A body may be slow, by its bytes; one that only drips ends."""
    ways = [*WAYS_IN, "upload"]
    assert await asyncio.gather(*(drip(small, someone, way) for way in ways)) == [b"408"] * len(ways)
    assert {row["error_code"] for row in await someone.calls(len(ways))} == {"body_timeout"}


async def drip(small: RelayProcess, someone: Customer, way: str) -> bytes:
    """The status of the answer."""
    path, fields = WAYS_IN.get(way, ("/v1/files", b"Content-Type: multipart/form-data; boundary=b\r\n"))
    reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
    writer.write(head_of(path, someone.secret, 100_000, fields))
    answer = asyncio.ensure_future(reader.readline())
    for byte in (b'{"model":"own","messages":[' if way != "upload" else FORM) + b" " * 100:
        if answer.done():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.25)
    status = (await answer)[9:12]
    writer.close()
    return status


async def test_finding_wire_L5_a_body_is_asked_for_when_it_is_wanted(small: RelayProcess, someone: Customer):
    """`100 Continue` is for calls that have not been refused by their head."""
    body = b'{"model":"own","messages":[{"role":"user","content":"x"}]}'
    expects = b"Expect: 100-continue\r\n"
    path = "/v1/chat/completions"
    for message, status in (
        (head_of(path, "sk-nobody", len(body), expects), b"401"),
        (head_of(path, someone.secret, len(body), expects + b"Content-Encoding: unknown\r\n"), b"415"),
        (head_of(path, someone.secret, 2 << 20, expects), b"413"),
        (head_of("/v1/files", "sk-nobody", len(FORM), expects), b"401"),
        (head_of("/v1/files", someone.secret, len(FORM), expects), b"400"),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
        writer.write(message)
        assert (await reader.readline())[9:12] == status
        writer.close()
    form = b"Content-Type: multipart/form-data; boundary=b\r\n"
    for message, rest in (
        (head_of(path, someone.secret, len(body), expects), body),
        (head_of("/v1/files", someone.secret, len(FORM), expects + form), FORM),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
        writer.write(message)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(rest)
        assert (await reader.readline()).startswith(b"HTTP/1.1 ")
        writer.close()


async def test_limits_files_bytes_bounds_what_an_account_keeps(
    small: RelayProcess, someone: Customer, upstream: Upstream
):
    """Refused with the numbers; uploads under way count; a deleted file gives its room back; others have their own."""
    files: dict[bytes, int] = {}
    hold = asyncio.Event()

    async def store(head: bytes, body: bytes) -> bytes:
        if head.startswith(b"POST"):
            name = b"file-%d" % len(upstream.bodies)
            if b"slow-file" in body:
                await hold.wait()
            files[name] = len(body)
            return response(b'{"id":"%s","object":"file","bytes":200000}' % name)
        return response(b'{"deleted":true}')

    upstream.answer = store

    def upload(content: bytes = b"x", size: int = 200_000, secret: str = someone.secret) -> bytes:
        form = FORM.replace(b"hello", content.ljust(size, b"x"))
        return UPLOAD % (secret.encode(), len(form), form)

    async def refused(message: bytes) -> str:
        status, body = await ask(small.port, message)
        assert status == 403
        error = json.loads(body)["error"]
        assert error["code"] == "files_limit"
        return str(error["message"])

    slow = asyncio.ensure_future(ask(small.port, upload(b"slow-file")))
    assert (await ask(small.port, upload()))[0] == 200
    await until(lambda: slow.done() or any(b"slow-file" in body for body in upstream.bodies))
    assert not slow.done(), slow.result()
    assert "400141 of 500000 bytes" in await refused(upload())  # 200,000 stored, 200,141 under way
    assert (await ask(small.port, upload(secret=(await small.customer()).secret)))[0] == 200
    hold.set()
    assert (await slow)[0] == 200
    form = FORM.replace(b"hello", b"y" * 200_000)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(form), form)
    assert "400000 of 500000 bytes" in await refused(
        UPLOAD.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked") % (someone.secret.encode(), chunked)
    )
    assert "400000 of 500000 bytes" in await refused(upload())
    file = next(iter(files)).decode()
    gone = get(someone.secret, f"/v1/files/{file}").replace(b"GET", b"DELETE", 1)
    assert (await ask(small.port, gone))[0] == 200
    assert (await ask(small.port, upload()))[0] == 200


# -- no 500 that a client can cause

ODD_VALUES = [
    b"1e400",
    b'"\\ud800"',
    b"9" * 30,
    b"9" * 5000,
    b"-" + b"9" * 5000,
    b"[" * 100 + b"]" * 100,
    b"[" * 2000 + b"]" * 2000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 900 + b"1" + b"}" * 900,
    b"1e-999999999999",
]
ODD_BODIES = {
    "/v1/chat/completions": b'{"model":"own","messages":[{"role":"user","content":"x"}],"x":%s}',
    "/v1/completions": b'{"model":"own","prompt":"x","x":%s}',
    "/v1/audio/speech": b'{"model":"own","voice":"a","input":"hello","x":%s}',
    "/v1/audio/speech?": b'{"model":"own","voice":"a","input":%s}',
    "/v1/responses": b'{"model":"own","input":"x","previous_response_id":"resp_1","x":%s}',
    "/v1/responses?": b'{"model":"own","input":"x","previous_response_id":%s}',
    "/v1/responses??": b'{"model":"own","input":"x","background":true,"x":%s}',
    "/v1/responses???": b'{"model":"own","input":[{"type":"input_file","file_id":%s}]}',
    "/v1/embeddings": b'{"model":"own","input":"x","x":%s}',
    "/v1/moderations": b'{"model":"own","input":"x","x":%s}',
    "/v1/images/generations": b'{"model":"own","prompt":"x","x":%s}',
    "/v1/rerank": b'{"model":"own","query":"x","documents":["y"],"x":%s}',
    "/v1/videos": b'{"model":"own","prompt":"x","x":%s}',
    "/v1/videos?": b'{"model":"own","prompt":"x","seconds":%s}',
    "/v1/batches": b'{"input_file_id":"file-1","endpoint":"/v1/chat/completions","x":%s}',
    "/v1/batches?": b'{"input_file_id":%s,"endpoint":"/v1/chat/completions"}',
    "/v1/messages": b'{"model":"claude-sonnet-5","max_tokens":5,"messages":[{"role":"user","content":"x"}],"x":%s}',
    "/v1/messages/batches": b'{"requests":[{"custom_id":"a","params":{"model":"claude-sonnet-5","x":%s}}]}',
    "/v1beta/models/gemini-2.5-flash:generateContent": b'{"contents":[{"parts":[{"text":"x"}]}],"x":%s}',
    "/v1beta/models/gemini-2.5-flash:batchGenerateContent": (
        b'{"batch":{"inputConfig":{"requests":{"requests":[{"request":{"contents":[],"x":%s}}]}}}}'
    ),
}


@pytest.mark.parametrize("value", ODD_VALUES, ids=range(len(ODD_VALUES)))
async def test_finding_wire_M11_odd_values_are_no_fault_of_ours(small: RelayProcess, someone: Customer, value: bytes):
    for path, body in ODD_BODIES.items():
        sent = body % value
        message = head_of(path.rstrip("?"), someone.secret, len(sent), b"Content-Type: application/json\r\n") + sent
        status, answer = await ask(small.port, message)
        assert status != 500, (path, answer)
    assert (await small.status())["faults"] == 0
    assert small.faults == []


PYTHON_ROUTES = [
    "GET /v1/models", "GET /v1beta/models", "GET /relay/v1/balance", "GET /relay/v1/calls", "GET /admin/v1/status",
    "GET /metrics", "GET /healthz", "GET /v1/files", "GET /v1/files/file-1", "GET /v1/realtime?model=own",
    "POST /v1/files", "POST /v1/chat/completions", "POST /v1/messages/batches", "POST /admin/v1/accounts",
]  # fmt: skip
ODD_FIELDS = [
    "X-Forwarded-For: \xff", "Idempotency-Key: \xff", "x-relay-channel: \xff", "x-relay-max-cost: \xff",
    "User-Agent: \xff", "traceparent: \xff", "Content-Type: \xff", "Sec-WebSocket-Protocol: \xff",
    "Upgrade: websocket\r\nSec-WebSocket-Key: \xff",
]  # fmt: skip
ODD_KEYS = ["Authorization: Bearer \xff", "x-api-key: \xff", "x-goog-api-key: \xc3\xa9", "Authorization: \xff \xff"]


async def test_finding_wire_M11_odd_bytes_in_heads_are_no_fault_of_ours(small: RelayProcess, someone: Customer):
    fields = [*ODD_KEYS, *(f"Authorization: Bearer {someone.secret}\r\n{field}" for field in ODD_FIELDS)]
    for path in PYTHON_ROUTES:
        for field in fields:
            reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
            length, body = ("Content-Length: 2\r\n", "{}") if path.startswith("POST") else ("", "")
            head = f"{path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n{length}{field}\r\n\r\n{body}"
            writer.write(head.encode("latin-1"))
            status = (await reader.readline())[9:12]
            writer.close()
            assert status not in (b"500", b""), (path, field, status)
    assert small.faults == []


# -- clients that take nothing


async def uploaded(small: RelayProcess, customer: Customer, upstream: Upstream, content: Answer) -> str:
    """The path of a file that the upstream has, and answers with `content`."""

    async def answer(head: bytes, body: bytes) -> bytes:
        if head.startswith(b"POST"):
            return response(b'{"id":"file-%d","object":"file"}' % len(upstream.bodies))
        return await content(head, body)

    upstream.answer = answer
    status, body = await ask(small.port, UPLOAD % (customer.secret.encode(), len(FORM), FORM))
    assert status == 200
    return f"/v1/files/{json.loads(body)['id']}/content"


def resident(relay: RelayProcess) -> int:
    return int(Path(f"/proc/{relay.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_finding_wire_M4_a_download_that_nobody_reads(small: RelayProcess, someone: Customer, upstream: Upstream):
    """It is let go after write_stall_seconds, has not filled the memory by then, and counts as an open call."""
    size, count = 30 << 20, 12
    body = bytes(size)

    async def large(head: bytes, _: bytes) -> bytes:
        return response(body, "application/octet-stream")

    path = await uploaded(small, someone, upstream, large)
    before = resident(small)
    opened = [await asyncio.open_connection("127.0.0.1", small.port, limit=1) for _ in range(count)]
    for _, writer in opened:
        writer.write(get(someone.secret, path))

    async def open_calls() -> int:
        return int((await small.status())["open_calls"])

    async def all_open() -> bool:
        return await open_calls() == count

    async def none_open() -> bool:
        return await open_calls() == 0

    await eventually(all_open)
    await asyncio.sleep(1)  # all that comes on its own has come
    assert resident(small) - before < count * (600 << 10)
    await eventually(none_open, 25)
    for reader, writer in opened:
        assert await was_reset(reader)
        writer.close()
    rows = await someone.calls(count + 1)
    assert {(row["status"], row["error_code"]) for row in rows[:-1]} == {(200, "client_stalled")}


async def test_finding_wire_M4_a_slow_reader_is_served(small: RelayProcess, someone: Customer, upstream: Upstream):
    """Slower than its provider, but never still for write_stall_seconds."""

    async def large(head: bytes, _: bytes) -> bytes:
        return response(bytes(8 << 20), "application/octet-stream")

    path = await uploaded(small, someone, upstream, large)
    reader, writer = await asyncio.open_connection("127.0.0.1", small.port, limit=1 << 16)
    writer.write(get(someone.secret, path))
    await reader.readuntil(b"\r\n\r\n")
    for _ in range(8):
        await reader.readexactly(1 << 20)
        await asyncio.sleep(0.4)
    writer.close()
    await writer.wait_closed()
    assert {row["error_code"] for row in await someone.calls(2)} == {None}


async def test_finding_wire_M4_a_realtime_session_that_nobody_reads(
    small: RelayProcess, someone: Customer, upstream: Upstream
):
    """The upstream's connection and the hold are given back."""
    frame = b"\x81\x7e\x40\x00" + b"x" * 0x4000

    async def flood(head: bytes, _: bytes) -> bytes:
        found = re.search(rb"(?i)sec-websocket-key: (\S+)", head)
        assert found is not None
        accept = base64.b64encode(hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        return switching + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + frame * 2000

    upstream.answer = flood
    reader, writer = await asyncio.open_connection("127.0.0.1", small.port, limit=1)
    writer.write(
        b"GET /v1/realtime?model=own HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer %s\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        % someone.secret.encode()
    )

    async def held() -> bool:
        return nano((await someone.money())["held"]) > 0 and (await small.status())["open_calls"] == 1

    async def let_go() -> bool:
        return nano((await someone.money())["held"]) == 0

    await eventually(held)
    await eventually(let_go, 25)
    assert await was_reset(reader)
    writer.close()
    assert (await someone.call())["error_code"] == "client_stalled"


@pytest.mark.parametrize("together", [False, True])
async def test_finding_wire_L9_unmasked_frames_end_the_session(
    small: RelayProcess, someone: Customer, upstream: Upstream, together: bool
):
    """Also one that comes with the handshake, and one behind a masked one, cut anywhere."""

    async def switch(head: bytes, _: bytes) -> bytes:
        found = re.search(rb"(?i)sec-websocket-key: (\S+)", head)
        assert found is not None
        accept = base64.b64encode(hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        return switching + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"

    upstream.answer = switch
    head = (
        b"GET /v1/realtime?model=own HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer %s\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        % someone.secret.encode()
    )
    masked = b"\x81\x82\0\0\0\0{}" + b"\x81\xfe\0\x80\0\0\0\0" + b"[" * 128
    reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
    writer.write(head + (masked + b"\x81\x02{}" if together else b""))
    await reader.readuntil(b"\r\n\r\n")
    if not together:
        for at in range(len(masked)):
            writer.write(masked[at : at + 1])
            await writer.drain()
        writer.write(b"\x81\x02{}")
    assert b"\x03\xea" in await asyncio.wait_for(reader.read(), 10)  # a close with 1002
    writer.close()
    assert (await someone.call())["error_code"] == "client_gone"


async def test_finding_wire_M12_a_cut_towards_http_1_0_is_a_reset(
    small: RelayProcess, someone: Customer, upstream: Upstream
):
    """No framing of such a client's could show it, and a close in order is what a proxy takes for the end."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: {"cho'

    async def broken(head: bytes, _: bytes) -> bytes:
        upstream.current.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n"
            % (len(event), event)
        )
        await upstream.current.drain()
        await asyncio.sleep(0.05)
        upstream.current.transport.abort()
        return b""

    upstream.answer = broken
    body = b'{"model":"own","stream":true,"messages":[{"role":"user","content":"x"}]}'
    reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
    writer.write(chat(someone.secret, body).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1))
    assert await was_reset(reader)
    writer.close()

    async def cut(head: bytes, _: bytes) -> bytes:
        upstream.current.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await upstream.current.drain()
        await asyncio.sleep(0.05)
        upstream.current.transport.abort()
        return b""

    path = await uploaded(small, someone, upstream, cut)
    reader, writer = await asyncio.open_connection("127.0.0.1", small.port)
    writer.write(get(someone.secret, path).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1))
    assert await was_reset(reader)
    writer.close()
    assert [row["error_code"] for row in await someone.calls(3)] == ["upstream_truncated", None, "upstream_truncated"]
