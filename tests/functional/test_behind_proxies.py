"""The nginx and HAProxy blocks of docs/operations.md, run as they stand there by the real programs.

Changed are only the addresses, the port and the certificate. Without the programs the tests are skipped;
RELAY_TEST_CLIENTS=required makes them fail instead.
"""

import asyncio
import json
import re
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import openai
import pytest
import pytest_asyncio
from aiohttp import web

from relay.simulator import Running
from tests.clients import REQUIRED
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.setting import SIM_KEY, channel
from tests.support.certificates import Certificates, make_certificates
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
CONFIG = """
[server]
trusted_proxies = ["127.0.0.1"]
drain_seconds = 1
[plans.open]
rpm = 0
concurrency = 0
"""
RATES = "".join(f'[[rates]]\nmodel = "{name}"\ninput = 1\noutput = 2\n' for name in ("gpt-4o", "gpt-realtime"))
UPLOAD_BYTES = 500 << 20
PIECE = bytes(1 << 20)


def block(begin: str) -> str:
    """The fenced block of the page after a line that begins so."""
    found = re.search(rf"^{begin}.*?^```\w*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def program(name: str) -> str:
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        (pytest.fail if REQUIRED else pytest.skip)(f"{name} is not installed")
    return str(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Proxy:
    """A proxy in front of the relay: clients reach it by TLS."""

    port: int
    certificates: Certificates

    @property
    def base_url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificates.authority))

    def openai(self, secret: str) -> openai.AsyncOpenAI:
        http = openai.DefaultAsyncHttpxClient(verify=self.tls)
        return openai.AsyncOpenAI(base_url=self.base_url + "/v1", api_key=secret, http_client=http, max_retries=0)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def files_taken() -> AsyncIterator[tuple[str, list[int]]]:
    """A provider of files that keeps nothing but how large the bodies were."""
    sizes: list[int] = []

    async def take(request: web.Request) -> web.Response:
        size = 0
        async for piece in request.content.iter_any():
            size += len(piece)
        sizes.append(size)
        document = {"id": "file-1", "object": "file", "bytes": UPLOAD_BYTES, "filename": "f", "purpose": "user_data"}
        return web.json_response(document)

    app = web.Application(client_max_size=1 << 40)
    app.router.add_post("/v1/files", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield f"http://127.0.0.1:{port}/v1", sizes
    await runner.cleanup()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def relay(
    simulator: Running, files_taken: tuple[str, list[int]], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RelayProcess]:
    names = '["gpt-4o", "gpt-realtime"]'
    channels = channel("files", "openai", files_taken[0], '["only-files"]', SIM_KEY) + channel(
        "sim", "openai", simulator.base_url + "/v1", names, SIM_KEY, "priority = 1"
    )
    running = await RelayProcess(tmp_path_factory.mktemp("proxied"), CONFIG + channels + RATES).start()
    yield running
    assert await running.stop() == 0
    assert running.faults == []


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["nginx", "haproxy"])
async def proxy(
    request: pytest.FixtureRequest, relay: RelayProcess, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Proxy]:
    folder = tmp_path_factory.mktemp("proxy")
    port, certificates = free_port(), make_certificates(folder)
    if request.param == "nginx":
        text = block("nginx").replace("127.0.0.1:8787", f"127.0.0.1:{relay.port}").replace("443", str(port))
        text = text.replace("/etc/ssl/relay.crt", str(certificates.certificate))
        text = text.replace("/etc/ssl/relay.key", str(certificates.key)).replace("relay.example", "localhost")
        kept = "".join(f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi"))
        kept += f"uwsgi_temp_path {folder}/uwsgi;\nscgi_temp_path {folder}/scgi;\naccess_log off;\n"
        file = folder / "nginx.conf"
        file.write_text(f"daemon off;\npid {folder}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n{kept}{text}}}\n")
        command = [program("nginx"), "-c", str(file), "-p", str(folder), "-e", "stderr"]
    else:
        (folder / "relay.pem").write_bytes(certificates.certificate.read_bytes() + certificates.key.read_bytes())
        text = block("HAProxy").replace("127.0.0.1:8787", f"127.0.0.1:{relay.port}")
        text = text.replace(":443", f"127.0.0.1:{port}").replace("/etc/haproxy/relay.pem", str(folder / "relay.pem"))
        file = folder / "haproxy.cfg"
        file.write_text(text)
        command = [program("haproxy"), "-db", "-f", str(file)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    running = Proxy(port, certificates)
    try:

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        await until(listens, 20, f"{request.param} listens")
        yield running
    finally:
        process.terminate()
        await process.wait()


@pytest_asyncio.fixture(loop_scope="session")
async def customer(relay: RelayProcess) -> Customer:
    return await relay.customer("5")


async def test_finding_newcomer_4_streams_pass(proxy: Proxy, customer: Customer) -> None:
    async with proxy.openai(customer.secret) as client:
        stream = await client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "Hello"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
    assert len(chunks) > 1
    assert (await customer.call())["error_code"] is None


async def test_finding_newcomer_4_a_realtime_session_passes(proxy: Proxy, customer: Customer) -> None:
    headers = {"Authorization": f"Bearer {customer.secret}"}
    url = f"{proxy.base_url}/v1/realtime?model=gpt-realtime"
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.ws_connect(url, ssl=proxy.tls, max_msg_size=0) as socket_,
    ):
        asked = {"instructions": "Hello #sim events=5#", "output_modalities": ["text"]}
        await socket_.send_str(json.dumps({"type": "response.create", "response": asked}))
        types = []
        while not types or types[-1] != "response.done":
            types.append((await socket_.receive_json(timeout=20))["type"])
    assert (await customer.call())["output_tokens"] > 0


async def test_finding_newcomer_4_a_large_upload_passes(
    proxy: Proxy, customer: Customer, files_taken: tuple[str, list[int]]
) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
    head += b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    tail = b"\r\n--b--\r\n"

    async def body() -> AsyncIterator[bytes]:
        yield head
        for _ in range(UPLOAD_BYTES // len(PIECE)):
            yield PIECE
        yield tail

    headers = {
        "Authorization": f"Bearer {customer.secret}",
        "Content-Type": "multipart/form-data; boundary=b",
        "Content-Length": str(len(head) + UPLOAD_BYTES + len(tail)),
    }
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{proxy.base_url}/v1/files", data=body(), ssl=proxy.tls) as answer,
    ):
        assert answer.status == 200, await answer.text()
    assert files_taken[1][-1] > UPLOAD_BYTES


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/relay/v1/balance"])
async def test_finding_newcomer_4_an_address_cannot_be_forged(proxy: Proxy, relay: RelayProcess, path: str) -> None:
    """A key for one address: a client elsewhere cannot claim to be there, in whatever way it says so."""
    here = await relay.customer("1", allow_ips=["127.0.0.1"])
    elsewhere = await relay.customer("1", allow_ips=["203.0.113.9"])
    forged = [
        {"X-Forwarded-For": "203.0.113.9"},
        {"X-Forwarded-For": "203.0.113.9", "Connection": "x-forwarded-for"},
        {"Forwarded": "for=203.0.113.9"},
    ]
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
    async with aiohttp.ClientSession() as session:
        for fields in ({}, *forged):
            for customer, allowed in ((here, True), (elsewhere, False)):
                headers = {"Authorization": f"Bearer {customer.secret}", **fields}
                method, sent = ("POST", body) if "chat" in path else ("GET", None)
                async with session.request(
                    method, proxy.base_url + path, json=sent, headers=headers, ssl=proxy.tls
                ) as answer:
                    assert (answer.status == 200) is allowed, (fields, await answer.text())
                    if not allowed:
                        assert answer.status == 403
