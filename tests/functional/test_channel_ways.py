"""What a channel adds to and drops from its requests, and its proxy: on the hot path and beside it."""

import asyncio
import base64
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from relay.simulator import Running
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.setting import RAW_KEY, SIM_KEY, channel
from tests.support.certificates import make_certificates

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANSWER = b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"a"},'
ANSWER += b'"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":1}}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
USER, PASSWORD = "operator", "p:ss wörd"
NOWHERE = "upstream.invalid"  # no resolver has it: the proxy knows where it is
CONFIG = """
[server]
drain_seconds = 1
[timeouts]
connect_seconds = 2
[plans.open]
rpm = 0
concurrency = 0
[routing]
breaker_failure_percent = 0
key_rest_seconds = 0
"""
MODELS = ("gpt-realtime", "edited", "connect", "socks", "secure", "refused", "dead", "files")


@dataclass
class ProxyServer:
    """HTTP CONNECT and SOCKS5, told by the first byte. Every name is this machine."""

    password: str = PASSWORD
    port: int = 0
    tunnels: list[tuple[str, str, int]] = field(default_factory=list)  # kind, host, port
    refused: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> "ProxyServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                first = await reader.readexactly(1)
                way = self._socks if first == b"\x05" else self._connect
                target = await way(reader, writer, first)
                if target is not None:
                    self.tunnels.append(("socks" if first == b"\x05" else "connect", *target))
                    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target[1])
                    await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
                else:
                    self.refused += 1
        finally:
            writer.close()

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes
    ) -> tuple[str, int] | None:
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, version = head.split("\r\n")[0].split(" ")
        known = base64.b64encode(f"{USER}:{self.password}".encode()).decode()
        if method != "CONNECT" or version != "HTTP/1.1" or f"Proxy-Authorization: Basic {known}\r\n" not in head:
            writer.write(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
            return None
        writer.write(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n")
        host, _, port = target.rpartition(":")
        return host, int(port)

    async def _socks(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes
    ) -> tuple[str, int] | None:
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        if 2 not in methods:
            writer.write(b"\x05\xff")
            return None
        writer.write(b"\x05\x02")
        assert await reader.readexactly(1) == b"\x01"
        user = await reader.readexactly((await reader.readexactly(1))[0])
        password = await reader.readexactly((await reader.readexactly(1))[0])
        if (user.decode(), password.decode()) != (USER, self.password):
            writer.write(b"\x01\x01")
            return None
        writer.write(b"\x01\x00")
        assert await reader.readexactly(3) == b"\x05\x01\x00"
        kind = (await reader.readexactly(1))[0]
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            host = ".".join(map(str, await reader.readexactly(4)))
        port = int.from_bytes(await reader.readexactly(2), "big")
        writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        return host, port


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def proxy() -> AsyncIterator[ProxyServer]:
    async with ProxyServer() as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def secure_port(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[int, str]]:
    """A provider with TLS, and the file of its authority."""
    files = make_certificates(tmp_path_factory.mktemp("tls"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or b"0"))
                writer.write(OK)
        writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.certificate, files.key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1], str(files.authority)
    server.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ways(
    simulator: Running, raw: RawUpstream, proxy: ProxyServer, secure_port: tuple[int, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[RelayProcess]:  # fmt: skip
    folder: Path = tmp_path_factory.mktemp("ways")
    escaped = "p%3Ass%20w%C3%B6rd"
    at = f"{USER}:{escaped}@127.0.0.1:{proxy.port}"
    secret = folder / "proxy"
    secret.write_text(f"socks5://{at}\n")
    (folder / "title").write_text("A title of two words\n")
    hidden = f"http://{NOWHERE}:{raw.port}/v1"
    sim_port = simulator.base_url.rpartition(":")[2]
    edits = (
        f'set_headers = {{ "HTTP-Referer" = "https://example.com", "X-Title" = "file:{folder / "title"}", '
        '"User-Agent" = "relay of the operator" }',
        'drop_headers = ["X-Stainless-Lang", "traceparent"]',
    )
    text = CONFIG + "".join(
        [
            channel("edited", "openai", raw.base_url + "/v1", '["edited"]', RAW_KEY, *edits),
            channel("connect", "openai", hidden, '["connect"]', RAW_KEY, f'proxy = "http://{at}"', "priority = 5"),
            channel("socks", "openai", hidden, '["socks"]', RAW_KEY, f'proxy = "file:{secret}"', "priority = 5"),
            channel(
                "secure", "openai", f"https://localhost:{secure_port[0]}/v1", '["secure"]', RAW_KEY,
                f'proxy = "http://{at}"', "priority = 5",
            ),
            channel(
                "refused", "openai", hidden, '["refused"]', RAW_KEY,
                f'proxy = "socks5://{USER}:wrong@127.0.0.1:{proxy.port}"', "priority = 5",
            ),
            channel(
                "talk", "openai", f"http://{NOWHERE}:{sim_port}/v1", '["gpt-realtime"]', SIM_KEY, f'proxy = "socks5://{at}"',
                "priority = 5",
            ),
            channel("dead", "openai", hidden, '["dead"]', RAW_KEY, 'proxy = "http://127.0.0.1:9"', "priority = 5"),
            channel(
                "claude", "anthropic", f"http://{NOWHERE}:{sim_port}", '["claude-sonnet-5"]', SIM_KEY, f'proxy = "socks5://{at}"',
            ),
            channel(
                "gemini", "gemini", f"http://{NOWHERE}:{sim_port}", '["gemini-2.5-flash"]', SIM_KEY, f'proxy = "http://{at}"',
            ),
        ]
    )  # fmt: skip
    text += "".join(f'[[rates]]\nmodel = "{name}"\ninput = 1\noutput = 2\n' for name in MODELS)
    relay = RelayProcess(folder, text, environment={"SSL_CERT_FILE": secure_port[1]})
    await relay.start()
    yield relay
    assert relay.faults == []
    told = "\n".join(relay.log)
    assert PASSWORD not in told
    assert escaped not in told
    assert await relay.stop() == 0


@pytest_asyncio.fixture(loop_scope="session")
async def paying(ways: RelayProcess) -> Customer:
    return await ways.customer()


async def ask(customer: Customer, path: str, body: object, **fields: str) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {customer.secret}", "anthropic-version": "2023-06-01", **fields}
    data = json.dumps(body)
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            "GET" if body is None else "POST", customer.relay.base_url + path, data=data, headers=headers
        ) as got,
    ):
        return got.status, await got.read()


def chat(model: str, text: str = "Hello") -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


async def test_headers_that_a_channel_sets_and_drops(paying: Customer, raw: RawUpstream) -> None:
    text, exchange = raw.script(OK)
    sent = {"User-Agent": "client", "x-stainless-lang": "js", "X-Stainless-OS": "Linux", "x-title": "mine"}
    status, _ = await ask(paying, "/v1/chat/completions", chat("edited", text), **sent)
    assert status == 200
    head = exchange.requests[-1].decode()
    names = [line.partition(":")[0].lower() for line in head.split("\r\n")[1:] if line]
    assert len(set(names)) == len(names), names
    assert exchange.header["http-referer"] == "https://example.com"
    assert exchange.header["x-title"] == "A title of two words"
    assert exchange.header["user-agent"] == "relay of the operator"
    assert exchange.header["x-stainless-os"] == "Linux"
    assert "x-stainless-lang" not in names
    assert exchange.header["authorization"] == f"Bearer {RAW_KEY}"
    # The record has what the caller sent.
    assert (await paying.call())["user_agent"] == "client"


@pytest.mark.parametrize("model", ["connect", "socks"])
async def test_calls_through_a_proxy(paying: Customer, raw: RawUpstream, proxy: ProxyServer, model: str) -> None:
    before = len(proxy.tunnels)
    for _ in range(2):
        text, exchange = raw.script(OK)
        assert (await ask(paying, "/v1/chat/completions", chat(model, text)))[0] == 200
        assert exchange.header["host"] == f"{NOWHERE}:{raw.port}"
        assert "proxy-authorization" not in exchange.header
    assert proxy.tunnels[before:] == [(model, NOWHERE, raw.port)]  # one connection, used again
    assert [record["status"] for record in await paying.calls(2)] == [200, 200]


async def test_tls_is_with_the_upstream(paying: Customer, proxy: ProxyServer, secure_port: tuple[int, str]) -> None:
    before = len(proxy.tunnels)
    assert (await ask(paying, "/v1/chat/completions", chat("secure"))) == (200, ANSWER)
    assert proxy.tunnels[before:] == [("connect", "localhost", secure_port[0])]


@pytest.mark.parametrize("model", ["refused", "dead"])
async def test_a_proxy_that_lets_nothing_through(paying: Customer, model: str) -> None:
    status, body = await ask(paying, "/v1/chat/completions", chat(model))
    assert status == 503
    assert json.loads(body)["error"]["code"] == "upstream_unavailable"
    assert (await paying.call())["cost"] == "0"


async def test_what_is_beside_the_hot_path_goes_through_it_too(paying: Customer, proxy: ProxyServer) -> None:
    """Batches of two dialects: SOCKS5, and CONNECT for plain HTTP."""
    params = {"model": "claude-sonnet-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
    before = len(proxy.tunnels)
    status, body = await ask(paying, "/v1/messages/batches", {"requests": [{"custom_id": "a", "params": params}]})
    assert status == 200, body
    assert [(kind, host) for kind, host, _ in proxy.tunnels[before:]] == [("socks", NOWHERE)]
    before = len(proxy.tunnels)
    request = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
    job = {"batch": {"displayName": "a", "inputConfig": {"requests": {"requests": [{"request": request}]}}}}
    status, body = await ask(paying, "/v1beta/models/gemini-2.5-flash:batchGenerateContent", job)
    assert status == 200, body
    assert [(kind, host) for kind, host, _ in proxy.tunnels[before:]] == [("connect", NOWHERE)]


async def test_realtime_sessions_go_through_it_too(paying: Customer, proxy: ProxyServer) -> None:
    before = len(proxy.tunnels)
    headers = {"Authorization": f"Bearer {paying.secret}"}
    url = paying.relay.base_url.replace("http", "ws") + "/v1/realtime?model=gpt-realtime"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, headers=headers) as socket:
        assert (await socket.receive_json(timeout=10))["type"] == "session.created"
    assert [(kind, host) for kind, host, _ in proxy.tunnels[before:]] == [("socks", NOWHERE)]
    assert (await paying.call())["status"] == 101
