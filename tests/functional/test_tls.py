"""TLS on both sides of a whole relay: what it costs nothing to check, and sessions that are taken up again."""

import asyncio
import contextlib
import json
import os
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from relay.proxy.tlsdoor import TOLD_MAX
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import channel
from tests.support.certificates import Certificates, make_certificates
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = "operator-key"
USAGE = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}
ANSWER = json.dumps({"id": "x", "object": "chat.completion", "choices": [CHOICE], "usage": USAGE}).encode()
DELTA = {"index": 0, "finish_reason": "stop", "delta": {"content": "Hello"}}
STREAM = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps({"id": "x", "choices": [DELTA], "usage": USAGE}).encode()
RATE = '[[rates]]\nmodel = "gpt-4o"\ninput = "1"\noutput = "2"\n'


@dataclass
class Provider:
    """Answers one call on each connection, so that every call needs another one."""

    certificates: Certificates
    port: int = 0
    resumed: list[bool] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            self.requests.append(head + body)
            self.resumed.append(writer.get_extra_info("ssl_object").session_reused)
            answer, kind = (STREAM, b"text/event-stream") if b'"stream":true' in body else (ANSWER, b"application/json")
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
                % (kind, len(answer), answer)
            )
            await writer.drain()
            writer.close()
            await writer.wait_closed()


@pytest_asyncio.fixture(loop_scope="session")
async def provider(tmp_path: Path) -> AsyncIterator[Provider]:
    made = Provider(make_certificates(tmp_path))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.certificates.certificate, made.certificates.key)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


def relay_of(provider: Provider, folder: Path, **environment: str) -> RelayProcess:
    files = provider.certificates
    server = f'[server]\ntls_certificate = "{files.certificate}"\ntls_key = "{files.key}"\n'
    way = channel("secure", "openai", f"https://localhost:{provider.port}/v1", '["gpt-4o"]', KEY)
    return RelayProcess(
        folder, server + "[plans.open]\nrpm = 0\nconcurrency = 0\n" + way + RATE, environment=environment
    )


@contextlib.asynccontextmanager
async def sdk(customer: Customer, authority: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    context = ssl.create_default_context(cafile=str(authority))
    http = openai.DefaultAsyncHttpxClient(verify=context)
    base_url = f"https://localhost:{customer.relay.port}/v1"
    async with openai.AsyncOpenAI(
        http_client=http, base_url=base_url, api_key=customer.secret, max_retries=0
    ) as client:
        yield client


async def test_calls_and_streams_and_sessions_that_are_taken_up_again(provider: Provider, tmp_path: Path):
    authority = provider.certificates.authority
    relay = relay_of(provider, tmp_path, SSL_CERT_FILE=str(authority))
    await relay.start()
    try:
        customer = await relay.customer("1")
        messages = [{"role": "user", "content": "Hi"}]
        async with sdk(customer, authority) as client:
            for _ in range(2):
                answer = await client.chat.completions.create(model="gpt-4o", messages=messages)
                assert answer.choices[0].message.content == "Hello"
            stream = await client.chat.completions.create(model="gpt-4o", messages=messages, stream=True)
            assert [chunk.choices[0].delta.content async for chunk in stream] == ["Hello"]
        records = await customer.calls(3)
        assert {nano(record["cost"]) for record in records} == {5 * 1000 + 2000}
        assert provider.resumed == [False, True, True]
        assert all(b"Bearer " + KEY.encode() in request for request in provider.requests)
        assert (await relay.command("ledger verify"))["ok"]
    finally:
        await relay.kill()


async def test_a_provider_that_cannot_prove_who_it_is_gets_nothing(provider: Provider, tmp_path: Path):
    relay = relay_of(provider, tmp_path)
    await relay.start()
    try:
        customer = await relay.customer("1")
        async with sdk(customer, provider.certificates.authority) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}])
        assert (caught.value.status_code, caught.value.code) == (503, "upstream_unavailable")
        assert provider.requests == []
        assert await customer.settled_nano() == 10**9
    finally:
        await relay.kill()


async def test_the_listener_speaks_tls_only(provider: Provider, tmp_path: Path):
    relay = relay_of(provider, tmp_path)
    await relay.start()
    try:
        context = ssl.create_default_context(cafile=str(provider.certificates.authority))
        context.set_alpn_protocols(["h2", "http/1.1"])
        client = await RawClient.connect("127.0.0.1", relay.port, tls=context, server_hostname="localhost")
        assert client.transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert (await client.request("GET", "/healthz")).status == 200
        client.transport.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"200" not in await reader.read(-1)
        writer.close()
    finally:
        await relay.kill()


async def test_finding_wire_M6_connections_before_the_handshake(provider: Provider, tmp_path: Path):
    """They count, have header_seconds for it, and leave descriptors for those who speak."""
    relay = relay_of(provider, tmp_path)
    relay.config = relay.config.replace("[server]\n", "[server]\nconnections_max = 20\n", 1)
    relay.config = relay.config.replace("[plans.open]", "[timeouts]\nheader_seconds = 2\n[plans.open]", 1)
    await relay.start()
    context = ssl.create_default_context(cafile=str(provider.certificates.authority))

    async def connect() -> RawClient:
        return await RawClient.connect("127.0.0.1", relay.port, tls=context, server_hostname="localhost")

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{relay.pid}/fd"))

    try:
        kept = await connect()
        assert (await kept.request("GET", "/healthz")).status == 200
        before = descriptors()
        silent = [await asyncio.open_connection("127.0.0.1", relay.port) for _ in range(300)]
        gone = [asyncio.ensure_future(reader.read()) for reader, _ in silent]
        await until(lambda: sum(one.done() for one in gone) >= 300 - 20 - TOLD_MAX)
        assert descriptors() <= before + 20 + TOLD_MAX
        assert (await relay.status())["connections"] == 20 + TOLD_MAX
        assert (await kept.request("GET", "/healthz")).status == 200
        await until(lambda: all(one.done() for one in gone), 20)
        await asyncio.gather(*gone, return_exceptions=True)
        for at in range(40):  # what is no TLS, and what leaves in the middle
            _, writer = await asyncio.open_connection("127.0.0.1", relay.port)
            writer.write(b"\x16\x03\x01" if at % 2 else b"GET / HTTP/1.1\r\n\r\n")
            await asyncio.sleep(0)
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)

        async def calm() -> bool:
            return bool((await relay.status())["connections"] == 1)

        await eventually(calm)
        others = [await connect() for _ in range(19)]
        assert [(await other.request("GET", "/healthz")).status for other in others] == [200] * 19
        assert (await (await connect()).request("GET", "/healthz")).status == 503
        for client in (kept, *others):
            client.transport.close()
        for _, writer in silent:
            writer.close()
        assert relay.faults == []
        assert not any("SSL" in line for line in relay.log)
    finally:
        await relay.kill()
