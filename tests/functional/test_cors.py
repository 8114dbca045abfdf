"""Pages of other origins: preflights, and what every answer and refusal says to them.

A real browser: test_browsers.py.
"""

import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from relay.simulator import Running
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.setting import BODY_BYTES_MAX, config_text

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE = "https://chat.example"
STRANGER = "https://other.example"
SAID = [{"role": "user", "content": "Hello"}]
CHAT = {"model": "gpt-4o", "messages": SAID}
MESSAGES = {"model": "claude-sonnet-5", "max_tokens": 30, "messages": SAID}
GENERATE = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
GEMINI = "/v1beta/models/gemini-2.5-flash"
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream": True}),
    ("/v1/responses", {"model": "gpt-4o", "input": "Hello"}),
    ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "Hello"}),
    ("/v1/messages", MESSAGES),
    ("/v1/messages", {**MESSAGES, "stream": True}),
    (f"{GEMINI}:generateContent", GENERATE),
    (f"{GEMINI}:streamGenerateContent?alt=sse", GENERATE),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def open_relay(
    simulator: Running, raw: RawUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RelayProcess]:
    text = config_text(simulator.base_url, raw.base_url)
    text = text.replace("[server]\n", f'[server]\ncors_origins = ["{PAGE}", "app://desktop"]\n', 1)
    relay = await RelayProcess(tmp_path_factory.mktemp("cors"), text).start()
    yield relay
    assert relay.faults == []
    assert await relay.stop() == 0


@pytest_asyncio.fixture(loop_scope="session")
async def paying(open_relay: RelayProcess) -> Customer:
    return await open_relay.customer()


async def ask(
    relay: RelayProcess, method: str, path: str, body: Any = None, *, origin: str | None = PAGE, **fields: str
) -> aiohttp.ClientResponse:
    """The answer, read. `fields`: header fields, _ for -. A body of bytes in pieces goes by aiohttp's parser."""
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    if origin is not None:
        headers["Origin"] = origin
    data = io.BytesIO(json.dumps(body).encode()) if isinstance(body, dict) else body
    if path.startswith("/v1/messages"):
        headers["anthropic-version"] = "2023-06-01"
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, relay.base_url + path, data=data, headers=headers) as answer,
    ):
        await answer.read()
        return answer


def open_to(answer: aiohttp.ClientResponse, origin: str = PAGE) -> bool:
    """Whether a page of this origin may read the answer and its fields."""
    exposed = answer.headers.get("Access-Control-Expose-Headers", "").split(", ")
    allowed = answer.headers.getall("Access-Control-Allow-Origin", [])
    return (
        allowed == [origin]
        and "Origin" in ", ".join(answer.headers.getall("Vary", [])).split(", ")
        and {"x-relay-request-id", "retry-after", "x-ratelimit-remaining-requests"} <= set(exposed)
        and "Access-Control-Allow-Credentials" not in answer.headers
    )


def shut(answer: aiohttp.ClientResponse) -> bool:
    return not any(name.lower().startswith("access-control-") for name in answer.headers)


PREFLIGHTS = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/responses"), ("POST", "/v1/embeddings"), ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"), ("POST", f"{GEMINI}:streamGenerateContent?alt=sse"),
    ("POST", "/v1/v1/messages"),
    ("GET", "/v1/models"), ("GET", "/v1beta/models"), ("POST", "/v1/files"), ("GET", "/v1/files/file-1/content"),
    ("DELETE", "/v1/responses/resp_1"), ("GET", "/relay/v1/balance"), ("POST", "/v1/nothing/of/this/kind"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), PREFLIGHTS)
async def test_finding_clients_F9_a_preflight_needs_no_key(open_relay: RelayProcess, method: str, path: str) -> None:
    asked = "authorization,content-type,x-stainless-lang"
    answer = await ask(
        open_relay, "OPTIONS", path, Access_Control_Request_Method=method, Access_Control_Request_Headers=asked
    )
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answer.headers["Access-Control-Allow-Headers"] == asked
    assert method in answer.headers["Access-Control-Allow-Methods"].split(", ")
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    assert "Origin" in answer.headers["Vary"]


async def test_finding_clients_F9_preflights_that_are_not_answered(
    open_relay: RelayProcess, relay: RelayProcess
) -> None:
    path = "/v1/chat/completions"
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
    for answer in (
        await ask(relay, "OPTIONS", path, **asked),  # switched off
        await ask(open_relay, "OPTIONS", path, origin=STRANGER, **asked),
        await ask(open_relay, "OPTIONS", path, origin="null", **asked),
        await ask(open_relay, "OPTIONS", path, origin=None, **asked),
    ):
        assert answer.status == 405
        assert shut(answer)
    assert (await ask(open_relay, "OPTIONS", path)).status == 405  # no preflight
    for bad in ("a b", "x" * 5000, "a,,b", "a:b"):
        answer = await ask(
            open_relay, "OPTIONS", path, Access_Control_Request_Method="POST", Access_Control_Request_Headers=bad
        )
        assert answer.status == 400
        assert "Access-Control-Allow-Headers" not in answer.headers
    for path in ("/admin/v1/status", "/metrics", "/healthz"):
        assert (await ask(open_relay, "OPTIONS", path, **asked)).status >= 400
        assert shut(await ask(open_relay, "GET", path))


@pytest.mark.parametrize(("path", "body"), CALLS)
@pytest.mark.parametrize("way", ["front door", "aiohttp"])
async def test_finding_clients_F9_answers_may_be_read(
    open_relay: RelayProcess, paying: Customer, path: str, body: dict[str, Any], way: str
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield json.dumps(body).encode()

    sent = body if way == "front door" else pieces()
    answer = await ask(open_relay, "POST", path, sent, Authorization=f"Bearer {paying.secret}")
    assert answer.status == 200
    assert open_to(answer)
    answer = await ask(open_relay, "POST", path, body, origin=STRANGER, Authorization=f"Bearer {paying.secret}")
    assert answer.status == 200
    assert shut(answer)
    assert "Origin" in answer.headers["Vary"]


async def test_finding_clients_F9_refusals_may_be_read(open_relay: RelayProcess, paying: Customer) -> None:
    key = {"Authorization": f"Bearer {paying.secret}"}
    nobody = {"Authorization": "Bearer sk-nobody"}
    poor = {"Authorization": f"Bearer {(await open_relay.customer('0')).secret}"}
    large = {**CHAT, "user": "x" * BODY_BYTES_MAX}
    for status, method, path, body, fields in (
        (401, "POST", "/v1/chat/completions", CHAT, nobody),
        (401, "POST", "/v1/messages", MESSAGES, nobody),
        (401, "GET", "/v1/models", None, nobody),
        (401, "GET", "/v1/files", None, nobody),
        (401, "GET", "/relay/v1/balance", None, nobody),
        (402, "POST", "/v1/chat/completions", CHAT, poor),
        (400, "POST", f"{GEMINI}:generateContent", {"contents": 1}, key),
        (404, "POST", "/v1/chat/completions", {**CHAT, "model": "nobody-has-it"}, key),
        (404, "POST", "/v1/nothing/of/this/kind", CHAT, key),
        (405, "DELETE", "/v1/chat/completions", None, key),
        (413, "POST", "/v1/chat/completions", large, key),
        (502, "POST", "/v1/chat/completions", {**CHAT, "model": "gpt-down"}, key),
        (403, "POST", "/v1/chat/completions", CHAT, {**key, "Sec-Fetch-Mode": "navigate"}),
    ):
        answer = await ask(open_relay, method, path, body, **fields)
        assert answer.status in (status, 503 if status == 502 else status), (path, answer.status)
        assert open_to(answer), path


async def test_finding_clients_F9_side_calls_and_own_answers(open_relay: RelayProcess, paying: Customer) -> None:
    key = {"Authorization": f"Bearer {paying.secret}"}
    for path in ("/v1/models", "/v1beta/models", "/v1/files", "/v1/batches", "/relay/v1/balance", "/relay/v1/limits"):
        answer = await ask(open_relay, "GET", path, **key)
        assert answer.status == 200, path
        assert open_to(answer), path
    assert open_to(await ask(open_relay, "GET", "/v1/models", origin="app://desktop", **key), "app://desktop")


async def test_finding_wire_L3_what_upstreams_say_does_not_pass(
    open_relay: RelayProcess, relay: RelayProcess, raw: RawUpstream
) -> None:
    body = b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}'  # noqa: E501
    head = b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\n"
    head += b"Vary: Accept\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    for one, origin in ((open_relay, PAGE), (open_relay, STRANGER), (relay, PAGE)):
        name, _ = raw.script(head + body)
        key = (await one.customer()).secret
        sent = {"model": "raw-chat", "messages": [{"role": "user", "content": f"#raw {name}#"}]}
        answer = await ask(one, "POST", "/v1/chat/completions", sent, origin=origin, Authorization=f"Bearer {key}")
        assert answer.status == 200
        assert "Access-Control-Allow-Credentials" not in answer.headers
        assert "Accept" in answer.headers["Vary"]
        assert open_to(answer) if one is open_relay and origin == PAGE else shut(answer)
        if one is relay:
            assert answer.headers.getall("Vary") == ["Accept"]


async def test_a_reload_changes_the_origins(open_relay: RelayProcess, paying: Customer) -> None:
    key = {"Authorization": f"Bearer {paying.secret}"}
    before = open_relay.config
    try:
        listed = f'cors_origins = ["{PAGE}", "app://desktop"]'
        open_relay.write_config(before.replace(listed, 'cors_origins = ["*"]'))
        await open_relay.command("reload")
        for path, body in CALLS[:1]:
            answer = await ask(open_relay, "POST", path, body, origin="null", **key)
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "Vary" not in answer.headers
        answer = await ask(open_relay, "OPTIONS", "/v1/messages", origin=STRANGER, Access_Control_Request_Method="POST")
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (204, "*")
        open_relay.write_config(before.replace(listed, "cors_origins = []"))
        await open_relay.command("reload")
        assert shut(await ask(open_relay, "POST", "/v1/chat/completions", CHAT, **key))
    finally:
        open_relay.write_config(before)
        await open_relay.command("reload")
    assert open_to(await ask(open_relay, "POST", "/v1/chat/completions", CHAT, **key))
