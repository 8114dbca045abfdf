"""Which header fields pass, each way, and which the relay adds."""

import json
import re
import time
from datetime import datetime
from typing import Any

import pytest

from relay.simulator import Running
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.setting import SIM_KEY
from tests.functional.streams import CHAT, head
from tests.support.http1 import Message, request_bytes
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = "Hello #sim events=2#"
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": ("openai", "/v1/chat/completions", {"model": "gpt-4o", "messages": [{"role": "user", "content": TEXT}]}),
    "alias": ("openai", "/chat/completions", {"model": "gpt-4o", "messages": [{"role": "user", "content": TEXT}]}),
    "responses": ("openai", "/v1/responses", {"model": "gpt-5", "input": TEXT}),
    "messages": (
        "anthropic", "/v1/messages",
        {"model": "claude-sonnet-5", "max_tokens": 50, "messages": [{"role": "user", "content": TEXT}]},
    ),
    "gemini": (
        "gemini", "/v1beta/models/gemini-2.5-flash:generateContent", {"contents": [{"parts": [{"text": TEXT}]}]},
    ),
}  # fmt: skip
STREAMED = {
    name: (dialect, path.replace(":generateContent", ":streamGenerateContent?alt=sse"), body | {"stream": True})
    if dialect != "gemini"
    else (dialect, path.replace(":generateContent", ":streamGenerateContent?alt=sse"), body)
    for name, (dialect, path, body) in CASES.items()
}
KEY_FIELD = {"openai": "authorization", "anthropic": "x-api-key", "gemini": "x-goog-api-key"}
NOSY = {
    "Cookie": "session=1", "X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.7", "Via": "1.1 proxy",
    "X-Real-IP": "203.0.113.7", "OpenAI-Organization": "org-client", "OpenAI-Project": "proj_client",
    "Anthropic-Workspace-Id": "w1", "X-Goog-User-Project": "p1", "Idempotency-Key": "i1", "Accept-Encoding": "gzip, br",
    "Origin": "https://client.example", "Referer": "https://client.example/page", "X-Custom": "mine", "TE": "trailers",
    "Proxy-Authorization": "Basic eA==", "x-relay-max-cost": "1", "X-Sim": "events=3", "Priority": "u=1",
    "Upgrade-Insecure-Requests": "1", "X-HTTP-Method-Override": "DELETE", "Range": "bytes=0-1", "Keep-Alive": "300",
    "If-None-Match": "x", "Content-Language": "de",
}  # fmt: skip
PASSED = {
    "openai": {"OpenAI-Beta": "assistants=v2", "X-Stainless-Lang": "python", "X-Client-Request-Id": "c1"},
    "anthropic": {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b", "X-Stainless-Retry-Count": "0"},
    "gemini": {"x-goog-api-client": "google-genai-sdk/1"},
}
EVERYWHERE = {"User-Agent": "tests/1.0 (relay)", "Accept": "application/json", "Accept-Language": "de"}
OWN = {"host", "content-length", "content-type", "accept-encoding"}


async def ask(customer: Customer, path: str, body: Any, headers: dict[str, str] | None = None) -> Message:
    fields = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"} | (headers or {})
    fields.setdefault("anthropic-version", "2023-06-01")
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        return await client.request("POST", path, fields, json.dumps(body).encode())


@pytest.mark.parametrize("case", CASES)
async def test_what_the_upstream_sees(customer: Customer, simulator: Running, case: str):
    dialect, path, body = CASES[case]
    given = NOSY | PASSED[dialect] | EVERYWHERE
    keys = {
        "Authorization": f"Bearer {customer.secret}",
        "x-api-key": customer.secret,
        "x-goog-api-key": customer.secret,
    }
    answer = await ask(customer, path + f"?key={customer.secret}", body, given | keys)
    assert answer.status == 200, answer.body
    entry = simulator.book.last
    names = [name for name, _ in entry.headers]
    passed = {name.lower(): value for name, value in (PASSED[dialect] | EVERYWHERE).items()}
    assert len(names) == len(set(names))
    assert set(names) == OWN | set(passed) | {KEY_FIELD[dialect]} | (
        {"anthropic-version"} if dialect == "anthropic" else set()
    )
    for name, value in passed.items():
        assert entry.header(name) == value, name
    assert entry.header(KEY_FIELD[dialect]) == ("Bearer " if dialect == "openai" else "") + SIM_KEY
    assert entry.header("accept-encoding") == "identity"
    assert entry.header("host") == f"127.0.0.1:{simulator.port}"
    assert entry.header("content-length") == str(len(entry.body))
    assert "?" not in entry.path
    everything = repr(entry.headers) + entry.path + entry.body.decode()
    assert customer.secret not in everything
    assert "203.0.113.7" not in everything
    # It was not believed either: nobody said that this peer is a proxy.
    assert (await customer.call())["source_ip"] == "127.0.0.1"


@pytest.mark.parametrize("case", ["chat", "alias", "messages", "gemini"])
async def test_the_key_may_stand_in_many_places(customer: Customer, simulator: Running, case: str):
    _, path, body = CASES[case]
    content = json.dumps(body).encode()
    places: list[tuple[str, dict[str, str]]] = [
        (path, {"Authorization": f"Bearer {customer.secret}"}),
        (path, {"authorization": f"bearer {customer.secret}"}),
        (path, {"x-api-key": customer.secret}),
        (path, {"X-Goog-Api-Key": customer.secret}),
        (path, {"api-key": customer.secret}),
        (path, {"Authorization": customer.secret}),
        (path, {"x-api-key": f"Bearer {customer.secret}"}),
        *([(path + f"?key={customer.secret}", {})] if case == "gemini" else []),
        (path, {"Authorization": "Bearer something-else", "x-api-key": customer.secret}),
        (path, {"Authorization": "Basic eA==", "x-goog-api-key": customer.secret}),
    ]
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        for target, fields in places:
            more = {"Content-Type": "application/json", "anthropic-version": "2023-06-01"}
            answer = await client.request("POST", target, fields | more, content)
            assert answer.status == 200, (target, fields)
            assert "key=" not in simulator.book.last.path
    await customer.calls(len(places))


@pytest.mark.parametrize("cases", [CASES, STREAMED], ids=["documents", "streams"])
@pytest.mark.parametrize("case", CASES)
async def test_what_the_client_sees(relay: RelayProcess, simulator: Running, case: str, cases: dict[str, Any]):
    dialect, path, body = cases[case]
    customer = await relay.customer(rpm=5, tpm=600)  # small, so that nothing comes back meanwhile
    began = time.time()
    answer = await ask(customer, path, body)
    assert answer.status == 200
    names = [name for name, _ in answer.headers]
    text = repr(answer.headers)
    for hidden in ("set-cookie", "alt-svc", "strict-transport-security", "openai-organization", "openai-project"):
        assert hidden not in names
    assert "sim-operator" not in text
    assert not any("organization" in name for name in names)
    if dialect == "openai":  # what is not about the account passes
        assert answer.header("openai-processing-ms") == "17"
        assert answer.header("cf-ray")
        assert answer.header(
            "x-request-id",
        ) != answer.header("x-relay-request-id")
    if dialect == "anthropic":
        assert answer.header("request-id")
    # Each of the relay's own fields once, with the limits of this key.
    prefix = {"openai": "x-ratelimit-", "gemini": "x-ratelimit-", "anthropic": "anthropic-ratelimit-"}[dialect]
    limits = {name.removeprefix(prefix): value for name, value in answer.headers if name.startswith(prefix)}
    if dialect == "anthropic":
        assert (limits["requests-limit"], limits["requests-remaining"]) == ("5", "4")
        assert limits["tokens-limit"] == "600"
        for kind in ("requests", "tokens"):
            full_at = datetime.fromisoformat(limits[f"{kind}-reset"]).timestamp()
            assert began < full_at < began + 700
        assert len(limits) == 6
    else:
        assert (limits["limit-requests"], limits["remaining-requests"]) == ("5", "4")
        assert limits["limit-tokens"] == "600"
        assert re.fullmatch(r"(\d+h)?(\d+m)?(\d+(\.\d+)?s|\d+ms)", limits["reset-requests"])
        assert len(limits) == 6
    assert len([name for name in names if name.startswith(prefix)]) == 6
    remaining = int(limits.get("tokens-remaining") or limits["remaining-tokens"])
    assert 0 <= remaining < 600
    record = await customer.call()
    assert answer.all("x-relay-request-id") == [record["id"]]
    timing = [value for value in answer.all("server-timing") if "relay;" in value]
    assert len(timing) == 1
    assert re.fullmatch(r"relay;dur=[0-9.]+, upstream;dur=[0-9.]+", timing[0])


async def test_without_limits_there_are_no_limit_fields(customer: Customer):
    for dialect, path, body in CASES.values():
        answer = await ask(customer, path, body)
        assert not [name for name, _ in answer.headers if "ratelimit" in name], dialect


@pytest.mark.parametrize("case", ["chat", "messages", "gemini"])
async def test_errors_of_the_provider_keep_the_same_rules(relay: RelayProcess, simulator: Running, case: str):
    _, path, body = CASES[case]
    customer = await relay.customer(rpm=50)
    body = json.loads(json.dumps(body).replace("events=2", "status=429"))
    answer = await ask(customer, path, body)
    assert answer.status == 429
    assert answer.body == simulator.book.last.sent
    text = repr(answer.headers)
    assert "sim-operator" not in text
    assert "set-cookie" not in text
    limit = answer.header("x-ratelimit-limit-requests") or answer.header("anthropic-ratelimit-requests-limit")
    assert limit == "50"
    assert answer.header("x-relay-request-id")
    assert answer.header("server-timing")


async def test_refusals_carry_limits_and_timing(relay: RelayProcess, simulator: Running):
    customer = await relay.customer("0", rpm=50)
    for _, path, body in CASES.values():
        answer = await ask(customer, path, body)
        assert answer.status == 402
        limit = answer.header("x-ratelimit-limit-requests") or answer.header("anthropic-ratelimit-requests-limit")
        remaining = answer.header("x-ratelimit-remaining-requests") or answer.header(
            "anthropic-ratelimit-requests-remaining"
        )
        assert (limit, remaining) == ("50", "50")  # a refused call takes nothing
        assert answer.header("server-timing").startswith("relay;dur=")
        assert answer.header("content-type") == "application/json"


UPSTREAM_SAYS = [
    "set-cookie: a=b", "Set-Cookie2: a=b", "connection: keep-alive", "keep-alive: timeout=5", "openai-organization: o",
    "x-ratelimit-limit-requests: 7", "x-ratelimit-anything: 7", "anthropic-ratelimit-x: 7",
    "x-relay-request-id: forged",
    "proxy-authenticate: Basic", "trailer: x", "upgrade: h2c", "X-Rate-Limit-Foo: 1", "RateLimit: 1",
    "anthropic-organization-id: o", "report-to: {}", "x-codex-plan: pro", "server-timing: mine;dur=1",
    "x-unknown: passes", "cache-control: no-store", "content-language: de", "vary: a", "vary: b", "x-empty:",
    "Retry-After: 7", "x-should-retry: true",
]  # fmt: skip


async def test_strange_answer_fields(customer: Customer, raw: RawUpstream):
    text, _ = raw.script(head(CHAT, "length", len(CHAT.body), *UPSTREAM_SAYS) + CHAT.body)
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(CHAT.request_bytes(customer.secret, text))
        answer = await client.response()
    assert answer.body == CHAT.body
    own = {"x-relay-request-id", "content-type", "content-length", "x-content-type-options"}
    assert {name for name, _ in answer.headers} == own | {
        "server-timing", "x-unknown", "cache-control", "content-language", "vary", "x-empty", "retry-after",
        "x-should-retry",
    }  # fmt: skip
    assert answer.all("vary") == ["a", "b"]
    assert len(answer.all("x-relay-request-id")) == 1
    assert answer.header("x-relay-request-id") != "forged"
    assert "mine;dur=1" in answer.all("server-timing")


async def test_fields_that_a_connection_field_names_are_hop_by_hop(customer: Customer, raw: RawUpstream):
    """RFC 9110 7.6.1."""
    text, exchange = raw.script(
        head(CHAT, "length", len(CHAT.body), "connection: keep-alive, x-private", "x-private: secret") + CHAT.body
    )
    body = CHAT.request.replace("TEXT", text).encode()
    fields = {
        "Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json",
        "Connection": "keep-alive, x-stainless-lang", "x-stainless-lang": "private",
    }  # fmt: skip
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(request_bytes("POST", CHAT.path, fields, body))
        answer = await client.response()
    assert answer.status == 200
    assert answer.header("x-private") is None
    assert "x-stainless-lang" not in exchange.header


async def test_a_reason_phrase_and_unusual_statuses_pass(customer: Customer, raw: RawUpstream):
    for status in (201, 202, 206, 418, 422, 451, 499, 599):
        body = b'{"usage":{"prompt_tokens":1,"completion_tokens":1}}'
        line = f"HTTP/1.1 {status} As It Likes\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        text, _ = raw.script(line + body)
        async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
            await client.send(CHAT.request_bytes(customer.secret, text))
            answer = await client.response()
        assert (answer.start, answer.body) == (f"HTTP/1.1 {status} As It Likes", body)
