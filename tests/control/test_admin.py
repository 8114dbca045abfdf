import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from relay.config_values import Listen
from relay.control import admin, health
from relay.control.commands import COMMANDS
from relay.control.operations import Operations
from relay.control.sockets import socket_address
from tests.support.live import FakeLive

TOKEN = "operator-token-0123456789abcdef"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
Client = TestClient[Any, Any]


class Door:
    """The operator's API over HTTP, with what may change while it runs."""

    token = TOKEN
    not_ready: str | None = None


@pytest.fixture
def door() -> Door:
    return Door()


@pytest.fixture
async def client(operations: Operations, door: Door) -> AsyncIterator[Client]:
    app = web.Application()
    admin.add_routes(app, operations, operator_token=lambda: door.token)
    health.add_routes(
        app, not_ready=lambda: door.not_ready, metrics=lambda: b"relay_up 1\n", operator_token=lambda: door.token
    )
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_a_command_over_http(client: Client):
    answer = await client.post("/admin/v1/accounts", json={"email": "a@example.com"}, headers=AUTH)
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert (await answer.json())["id"] == "acct_1"
    answer = await client.post("/admin/v1/accounts/acct_1/credits", json={"amount": "2.5"}, headers=AUTH)
    assert (await answer.json())["balance"] == "2.5"
    answer = await client.patch("/admin/v1/accounts/acct_1", json={"rpm": 7}, headers=AUTH)
    assert (await answer.json())["limits"]["rpm"] == 7
    answer = await client.post("/admin/v1/accounts/acct_1/freeze", headers=AUTH)
    assert (await answer.json())["status"] == "frozen"
    answer = await client.get("/admin/v1/accounts", params={"status": "frozen", "limit": "5"}, headers=AUTH)
    assert [row["id"] for row in (await answer.json())["accounts"]] == ["acct_1"]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"x-api-key": TOKEN},
        {"Authorization": "Bearer \udce9"},
    ],
)
async def test_every_route_wants_the_operators_token(client: Client, command: Any, headers: dict[str, str]):
    path = "/admin/v1" + command.path.replace("{id}", "acct_1")
    answer = await client.request(command.method, path, headers=headers)
    assert answer.status == 401
    assert (await answer.json())["error"]["code"] == "unauthorized"


async def test_two_authorizations_are_none(client: Client):
    headers = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other")]
    answer = await client.get("/admin/v1/terms", headers=headers)
    assert answer.status == 401


async def test_without_a_configured_token_everything_is_refused(client: Client, door: Door):
    door.token = ""
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer"}, AUTH):
        assert (await client.get("/admin/v1/terms", headers=headers)).status == 403
        assert (await client.get("/metrics", headers=headers)).status == 403


async def test_the_token_does_not_work_in_the_query(client: Client):
    assert (await client.get("/admin/v1/terms", params={"token": TOKEN, "key": TOKEN})).status == 401


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"email": "a@example.com", "role": "operator"}', "application/json"),
        (b'{"email": 7}', "application/json"),
        (b"{}", "application/json"),
        (b"[]", "application/json"),
        (b'"a"', "application/json"),
        (b"{", "application/json"),
        (b"\xff", "application/json"),
        (b'{"email": "a@example.com"}', "text/plain"),
        (b'{"email": "a@example.com"}', "application/x-www-form-urlencoded"),
        (json.dumps({"email": "a@example.com", "plan": "x" * 70_000}).encode(), "application/json"),
    ],
)
async def test_bodies_that_are_refused(client: Client, body: bytes, kind: str):
    answer = await client.post("/admin/v1/accounts", data=body, headers=AUTH | {"Content-Type": kind})
    assert answer.status == 400
    error = (await answer.json())["error"]
    assert error["code"] == "invalid"
    assert "example.com" not in error["message"]


async def test_path_and_body_cannot_disagree(client: Client):
    answer = await client.patch("/admin/v1/accounts/acct_1", json={"id": "acct_2", "rpm": 1}, headers=AUTH)
    assert answer.status == 400


@pytest.mark.parametrize("query", ["limit=1&limit=2", "unknown=1", "limit=x", "limit=1.5"])
async def test_queries_that_are_refused(client: Client, query: str):
    assert (await client.get(f"/admin/v1/calls?{query}", headers=AUTH)).status == 400


async def test_parameters_of_a_change_do_not_stand_in_the_query(client: Client):
    answer = await client.post("/admin/v1/accounts?email=a@example.com", headers=AUTH)
    assert answer.status == 400


async def test_errors_have_one_shape(client: Client):
    for method, path, status in (
        ("GET", "/admin/v1/accounts/acct_9", 404),
        ("GET", "/admin/v1/nothing", 404),
        ("DELETE", "/admin/v1/accounts", 405),
        ("GET", "/admin/v1/accounts/9", 400),
        ("POST", "/admin/v1/backup", 403),
    ):
        answer = await client.request(method, path, headers=AUTH)
        assert answer.status == status, path
        assert set((await answer.json())["error"]) >= {"code", "message"}
    assert (await client.get("/admin/v1/nothing")).status == 401


async def test_a_fault_of_the_relay_says_nothing_of_its_inside(
    client: Client, operations: Operations, monkeypatch: pytest.MonkeyPatch
):
    async def fail(*_: object) -> None:
        raise RuntimeError("the secret cause")

    monkeypatch.setattr(operations, "terms", fail)
    answer = await client.get("/admin/v1/terms", headers=AUTH)
    assert answer.status == 500
    assert "secret" not in await answer.text()


async def test_no_answer_of_a_get_holds_a_secret(client: Client):
    await client.post("/admin/v1/accounts", json={"email": "a@example.com"}, headers=AUTH)
    made = await client.post("/admin/v1/accounts/acct_1/keys", json={}, headers=AUTH)
    secret = (await made.json())["secret"]
    for command in COMMANDS.values():
        if command.method == "GET":
            path = command.path.replace("keys/{id}", "keys/key_1").replace("{id}", "acct_1")
            text = await (await client.get("/admin/v1" + path, headers=AUTH)).text()
            assert secret[16:-4] not in text  # its public beginning is shown (a leaked key can be traced), no more


async def test_the_socket_is_the_owners_and_needs_no_token(operations: Operations, tmp_path: Path):
    (tmp_path / "relay.sock").write_text("left by a killed relay")
    server = admin.SocketServer(operations, tmp_path)
    await server.start()
    try:
        mode = (tmp_path / "relay.sock").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert mode & 0o777 == 0o600
        connector = aiohttp.UnixConnector(str(tmp_path / "relay.sock"))
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.get("http://relay/admin/v1/terms") as answer:
                assert answer.status == 200
            async with session.post("http://relay/admin/v1/backup", json={"path": str(tmp_path / "b.db")}) as answer:
                assert answer.status == 200
    finally:
        await server.stop()
    assert not (tmp_path / "relay.sock").exists()


async def test_a_change_is_finished_when_its_client_goes_away(
    operations: Operations, live: FakeLive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told = asyncio.Event()
    begun = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(_: int) -> None:
        begun.set()
        await go_on.wait()
        told.set()

    monkeypatch.setattr(live, "account_changed", slow)
    server = admin.SocketServer(operations, tmp_path)
    await server.start()
    try:
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "relay.sock"))
        body = b'{"email": "a@example.com"}'
        head = b"POST /admin/v1/accounts HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        writer.write(b"POST /admin/v1/accounts/acct_1/freeze HTTP/1.1\r\nHost: relay\r\n\r\n")
        await asyncio.wait_for(begun.wait(), 10)
        writer.close()
        await writer.wait_closed()
        go_on.set()
        await asyncio.wait_for(told.wait(), 10)
    finally:
        await server.stop()


async def test_health(client: Client, door: Door):
    assert (await client.get("/healthz")).status == 200
    assert (await client.get("/readyz")).status == 200
    door.not_ready = "draining"
    answer = await client.get("/readyz")
    assert answer.status == 503
    assert (await answer.json())["reason"] == "draining"
    assert (await client.get("/healthz")).status == 200
    assert (await client.get("/metrics")).status == 401
    assert await (await client.get("/metrics", headers=AUTH)).text() == "relay_up 1\n"


async def _raw(address: str | tuple[str, int], data: bytes) -> bytes:
    reader, writer = (
        await asyncio.open_unix_connection(address)
        if isinstance(address, str)
        else await asyncio.open_connection(*address)
    )
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.read(-1)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_finding_wire_L10_error_pages_quote_nothing(operations: Operations, tmp_path: Path):
    server = admin.SocketServer(operations, tmp_path)
    metrics = health.MetricsListener(Listen(host="127.0.0.1", port=0), lambda: b"relay_up 1\n")
    await server.start()
    await metrics.start()
    try:
        host, _, port = metrics.address.rpartition(":")
        for address in (socket_address(tmp_path), (host, int(port))):
            for bad in (b"GET / HTTP/1.1\r\nX-Canary\x01: canary\r\n\r\n", b"canary\r\n\r\n"):
                answer = await _raw(address, bad)
                assert answer[:13] in (b"HTTP/1.0 400 ", b"HTTP/1.1 400 "), answer
                assert b"application/json" in answer
                for word in (b"canary", b"Canary", b"aiohttp", b"Python", b"<"):
                    assert word not in answer
    finally:
        await server.stop()
        await metrics.stop()


async def test_finding_wire_L10_deep_nesting_is_400(client: Client):
    deep = "[" * 5000 + "]" * 5000
    rates = {"rates": f"[[rates]]\nmodel = {deep}\n", "effective": "2099-01-01"}
    assert (await client.post("/admin/v1/rates/schedule", json=rates, headers=AUTH)).status == 400
    typed = AUTH | {"Content-Type": "application/json"}
    for body in ('{"email":' + deep + "}", "[" * 60_000):
        assert (await client.post("/admin/v1/accounts", data=body, headers=typed)).status == 400


async def test_finding_wire_L11_what_could_be_taken_in_two_ways_is_refused(client: Client):
    typed = AUTH | {"Content-Type": "application/json"}
    assert (await client.post("/admin/v1/accounts", json={"email": "a@example.com"}, headers=AUTH)).status == 200
    for body in (
        '{"amount":"1","amount":"1000"}',
        '{"amount":"1","\\u0061mount":"1000"}',
        '{"amount":NaN}',
        '{"amount":"1"',
    ):
        answer = await client.post("/admin/v1/accounts/acct_1/credits", data=body, headers=typed)
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "invalid"), body
    for name in ("models", "scopes", "allow_ips"):
        for path in ("/admin/v1/accounts/acct_1/keys",):
            answer = await client.post(path, json={name: []}, headers=AUTH)
            assert (answer.status, (await answer.json())["error"]["field"]) == (400, name)
            assert (await client.post(path, json={name: None}, headers=AUTH)).status == 200
    for limit in ("1e3", "10.0", "0x10", " 5", "1_0", ""):
        assert (await client.get("/admin/v1/calls", params={"limit": limit}, headers=AUTH)).status == 400, limit
    assert (await client.get("/admin/v1/calls", params={"limit": "5"}, headers=AUTH)).status == 200
    for name in ("", "  ", "a\nb", "a\x1b[31m", "a\u202eb"):
        assert (await client.patch("/admin/v1/keys/key_1", json={"name": name}, headers=AUTH)).status == 400, name


async def test_finding_wire_M11_an_authorization_that_cannot_be_read_is_400(client: Client):
    for path in ("/admin/v1/accounts", "/metrics", "/admin/v1/nothing"):
        server = client.server
        assert server.port is not None
        raw = b"GET %b HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \xff\r\nConnection: close\r\n\r\n" % path.encode()
        answer = await _raw((server.host, server.port), raw)
        assert answer.startswith(b"HTTP/1.1 400 "), path
        assert b'"field":"authorization"' in answer
