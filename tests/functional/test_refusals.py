"""Every refusal raises the class that each SDK has for it, forwards nothing and costs nothing."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest
from google.genai import errors

from relay.simulator import Running
from tests.functional.clients import async_anthropic, async_openai, google
from tests.functional.raw_upstream import Close, Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.setting import BODY_BYTES_MAX
from tests.support.http1 import STREAM_HEAD, chunk_bytes, response_bytes
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # The SDK's own subclassing of aiohttp's session.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]

MODELS = {"openai": "gpt-4o", "anthropic": "claude-sonnet-5", "gemini": "gemini-2.5-flash"}
DIALECTS = tuple(MODELS)
CLASSES: dict[str, dict[int, type[Exception]]] = {
    "openai": {
        400: openai.BadRequestError, 401: openai.AuthenticationError, 402: openai.APIStatusError,
        403: openai.PermissionDeniedError, 404: openai.NotFoundError, 413: openai.APIStatusError,
        429: openai.RateLimitError, 502: openai.InternalServerError, 503: openai.InternalServerError,
        504: openai.InternalServerError,
    },
    "anthropic": {
        400: anthropic.BadRequestError, 401: anthropic.AuthenticationError, 402: anthropic.APIStatusError,
        403: anthropic.PermissionDeniedError, 404: anthropic.NotFoundError, 413: anthropic.APIStatusError,
        429: anthropic.RateLimitError, 502: anthropic.InternalServerError, 503: anthropic.APIStatusError,
        504: anthropic.APIStatusError,
    },
    "gemini": dict.fromkeys((400, 401, 402, 403, 404, 413, 429), errors.ClientError)
    | dict.fromkeys((502, 503, 504), errors.ServerError),
}  # fmt: skip
ANTHROPIC_TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 502: "api_error",
    503: "overloaded_error",
}  # fmt: skip
GEMINI_STATUSES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 402: "FAILED_PRECONDITION", 403: "PERMISSION_DENIED",
    404: "NOT_FOUND", 413: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 502: "INTERNAL", 503: "UNAVAILABLE",
}  # fmt: skip


@dataclass
class Caught:
    """What an SDK made of a refusal."""

    error: Any
    status: int
    code: str
    headers: Any


async def call(
    customer: Customer, dialect: str, *, text: str = "Hello", model: str = "", stream: bool = False,
    headers: dict[str, str] | None = None, limit: int = 20, **options: Any,
) -> Any:  # fmt: skip
    """One call by the dialect's SDK; a stream is read to its end."""
    model = model or MODELS[dialect]
    messages = [{"role": "user", "content": text}]
    if dialect == "openai":
        async with async_openai(customer, default_headers=headers or {}, **options) as client:
            answer = await client.chat.completions.create(
                model=model, messages=messages, stream=stream, max_tokens=limit
            )
            return [chunk async for chunk in answer] if stream else answer
    if dialect == "anthropic":
        async with async_anthropic(customer, default_headers=headers or {}, **options) as client:
            message = await client.messages.create(model=model, messages=messages, max_tokens=limit, stream=stream)
            return [event async for event in message] if stream else message
    async with google(customer, headers=headers or {}, **options) as client:
        config = {"max_output_tokens": limit}
        if stream:
            chunks = await client.aio.models.generate_content_stream(model=model, contents=text, config=config)
            return [chunk async for chunk in chunks]
        return await client.aio.models.generate_content(model=model, contents=text, config=config)


async def refused(customer: Customer, dialect: str, status: int, code: str, **options: Any) -> Caught:
    """A call that must be refused so; checks the class and the body's fields."""
    with pytest.raises(CLASSES[dialect][status]) as caught:
        await call(customer, dialect, **options)
    error = caught.value
    if dialect == "gemini":
        found = Caught(error, error.code, error.details["error"]["details"][0]["reason"].lower(), {})
        assert error.status == GEMINI_STATUSES[status]
    elif dialect == "anthropic":
        found = Caught(error, error.status_code, error.body["error"]["code"], error.response.headers)
        assert error.body["error"]["type"] == ANTHROPIC_TYPES[status]
        assert error.request_id == found.headers["x-relay-request-id"]
    else:
        found = Caught(error, error.status_code, error.body["code"], error.response.headers)
        assert error.request_id == found.headers["x-relay-request-id"]
        assert error.body["type"]
    assert error.body["error"]["message"] if dialect == "anthropic" else error.message
    assert found.status == status
    if dialect != "openai":
        assert found.code == code
    return found


Prepare = Callable[[RelayProcess], Awaitable[Customer]]


async def _with_key(relay: RelayProcess, **key: Any) -> Customer:
    return await relay.customer(**key)


async def _after(relay: RelayProcess, command: str, what: str = "key") -> Customer:
    customer = await relay.customer()
    await relay.command(command, id=customer.key if what == "key" else customer.account)
    return customer


async def _unknown_key(relay: RelayProcess) -> Customer:
    """A key that never existed, with a right checksum."""
    from relay.policy import keys

    customer = await relay.customer()
    return Customer(relay, customer.account, customer.key, keys.make_secret()[0])


async def _forged_key(relay: RelayProcess) -> Customer:
    """The public part of a real key with another secret part."""
    from relay.policy import keys

    customer = await relay.customer()
    other = keys.make_secret()[0]
    return Customer(relay, customer.account, customer.key, customer.secret[:16] + other[16:])


async def _typo(relay: RelayProcess) -> Customer:
    customer = await relay.customer()
    last = "A" if customer.secret[-1] != "A" else "B"
    return Customer(relay, customer.account, customer.key, customer.secret[:-1] + last)


async def _foreign_key(relay: RelayProcess) -> Customer:
    customer = await relay.customer()
    return Customer(relay, customer.account, customer.key, "sk-proj-notofthisrelay")


SITUATIONS: dict[str, tuple[int, str, Prepare]] = {
    "unknown": (401, "invalid_key", _unknown_key),
    "forged": (401, "invalid_key", _forged_key),
    "typo": (401, "invalid_key", _typo),
    "foreign": (401, "invalid_key", _foreign_key),
    "revoked": (401, "key_revoked", lambda relay: _after(relay, "key revoke")),
    "suspended": (401, "key_suspended", lambda relay: _after(relay, "key suspend")),
    "frozen": (403, "account_inactive", lambda relay: _after(relay, "account freeze", "account")),
    "banned": (403, "account_inactive", lambda relay: _after(relay, "account ban", "account")),
    "closed": (403, "account_inactive", lambda relay: _after(relay, "account close", "account")),
    "no credit": (402, "insufficient_balance", lambda relay: relay.customer("0")),
    "little credit": (402, "insufficient_balance", lambda relay: relay.customer("0.000001")),
    "scope": (403, "scope_not_allowed", lambda relay: _with_key(relay, scopes=["embeddings"])),
    "model": (403, "model_not_allowed", lambda relay: _with_key(relay, models=["text-embedding-3-small"])),
    "address": (403, "address_not_allowed", lambda relay: _with_key(relay, allow_ips=["10.0.0.0/8", "::1/128"])),
    "tokens per call": (429, "tokens_per_call", lambda relay: _with_key(relay, tokens_per_call={"*": 15})),
    "daily limit": (429, "daily_limit", lambda relay: _with_key(relay, daily_limit="0.000001")),
    "monthly limit": (429, "monthly_limit", lambda relay: _with_key(relay, monthly_limit="0.000001")),
}


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_keys_money_and_rules(relay: RelayProcess, simulator: Running, situation: str):
    status, code, prepare = SITUATIONS[situation]
    customer = await prepare(relay)
    balance = (await customer.money())["balance"]
    before = simulator.book.requests
    for dialect in DIALECTS:
        for stream in (False, True):
            found = await refused(customer, dialect, status, code, stream=stream)
            if dialect != "gemini":
                assert found.headers["x-should-retry"] == "false"
                assert ("retry-after" in found.headers) == (situation in ("daily limit", "monthly limit"))
    assert simulator.book.requests == before
    assert (await customer.money())["balance"] == balance
    assert (await customer.money())["held"] == "0"
    if status == 401 and code == "invalid_key":
        assert await relay.calls(key=customer.key) == []
    else:
        records = await customer.calls(6)
        assert {record["status"] for record in records} == {status}
        assert {record["error_code"] for record in records} == {code}
        assert {record["cost"] for record in records} == {"0"}
        assert {record["usage_source"] for record in records} == {"none"}
        assert {record["attempts"] for record in records} == {0}


async def test_an_expired_key(relay: RelayProcess, simulator: Running):
    soon = time.time() + 2
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(soon)) + f".{int(soon % 1 * 1000):03d}Z"
    customer = await relay.customer(expires=text)
    await call(customer, "openai")
    await asyncio.sleep(max(0.0, soon - time.time()) + 0.05)
    before = simulator.book.requests
    for dialect in DIALECTS:
        await refused(customer, dialect, 401, "key_expired")
    assert simulator.book.requests == before


async def test_missing_and_two_valid_keys(relay: RelayProcess, customer: Customer, simulator: Running):
    other = await relay.customer()
    before = simulator.book.requests
    await refused(customer, "openai", 401, "ambiguous_key", headers={"x-api-key": other.secret})
    await refused(customer, "anthropic", 401, "ambiguous_key", headers={"x-goog-api-key": other.secret})
    await refused(customer, "gemini", 401, "ambiguous_key", headers={"x-api-key": other.secret})
    body = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hello"}]}'
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        missing = await client.request("POST", "/v1/chat/completions", body=body)
        assert missing.status == 401
        assert b"invalid_api_key" in missing.body
    assert simulator.book.requests == before
    # The same key twice, or a key of somebody else beside ours, is fine.
    await call(customer, "openai", headers={"x-api-key": customer.secret})
    await call(customer, "anthropic", headers={"x-goog-api-key": "sk-some-other-service"})


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_unknown_models(customer: Customer, simulator: Running, dialect: str):
    before = simulator.book.requests
    found = await refused(customer, dialect, 404, "model_not_found", model="no-such-model")
    if dialect == "openai":
        assert found.code == "model_not_found"
    # A model of another dialect cannot be reached in this one.
    other = MODELS["gemini" if dialect == "openai" else "openai"]
    await refused(customer, dialect, 404, "model_not_found", model=other)
    assert simulator.book.requests == before
    # No text of a request in a record: only names of the catalogue.
    unknown, known = reversed(await customer.calls(2))
    assert unknown["model"] is None
    assert known["model"] == other


async def test_a_model_without_a_price(customer: Customer, simulator: Running):
    before = simulator.book.requests
    await refused(customer, "openai", 404, "model_unpriced", model="gpt-unpriced")
    assert simulator.book.requests == before
    assert (await customer.call())["error_code"] == "model_unpriced"


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_too_large_a_body(customer: Customer, simulator: Running, dialect: str):
    before = simulator.book.requests
    await refused(customer, dialect, 413, "body_too_large", text="x" * (BODY_BYTES_MAX + 1))
    assert simulator.book.requests == before
    await call(customer, dialect, text="x" * (BODY_BYTES_MAX - 1000))


async def test_a_body_in_a_coding_that_is_not_known(customer: Customer, simulator: Running):
    before = simulator.book.requests
    headers = {"Authorization": f"Bearer {customer.secret}", "Content-Encoding": "snappy"}
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        answer = await client.request("POST", "/v1/chat/completions", headers, b"\x1f\x8b\x08")
    assert answer.status == 415
    assert b"unsupported_encoding" in answer.body
    assert simulator.book.requests == before


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_more_than_max_cost(customer: Customer, simulator: Running, dialect: str):
    before = simulator.book.requests
    await refused(customer, dialect, 402, "max_cost", headers={"x-relay-max-cost": "0.00000001"})
    assert simulator.book.requests == before
    await call(customer, dialect, headers={"x-relay-max-cost": "0.1"})
    assert simulator.book.last.header("x-relay-max-cost") is None


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("limit", ["rpm", "tpm", "concurrency"])
async def test_limits(relay: RelayProcess, simulator: Running, raw: RawUpstream, dialect: str, limit: str):
    code = {"rpm": "rate_limit_requests", "tpm": "rate_limit_tokens", "concurrency": "concurrency_limit"}[limit]
    customer = await relay.customer(**{limit: {"rpm": 2, "tpm": 100, "concurrency": 1}[limit]})
    release = asyncio.Event()
    pending: asyncio.Task[Any] | None = None
    allowed = 1
    if limit == "concurrency":
        text, exchange = raw.script(Gate(release), response_bytes(b"{}"))
        pending = asyncio.ensure_future(call(customer, "openai", model="raw-chat", text=text))
        await until(lambda: exchange.requests)
        before = simulator.book.requests
    elif limit == "rpm":
        allowed = 2
        for _ in range(allowed):
            await call(customer, dialect)
        before = simulator.book.requests
    else:
        await call(customer, dialect, text="#sim input=20 output=79#", limit=60)
        before = simulator.book.requests
    found = await refused(customer, dialect, 429, code)
    assert simulator.book.requests == before
    if dialect != "gemini":
        seconds, milliseconds = int(found.headers["retry-after"]), int(found.headers["retry-after-ms"])
        assert 0 < milliseconds <= seconds * 1000 < milliseconds + 1000
        assert "x-should-retry" not in found.headers
    else:
        assert "retryDelay" in str(found.error.details)
    if pending is not None:
        release.set()
        await pending
    record = (await customer.calls(allowed + 1))[0]
    assert (record["error_code"], record["cost"]) == (code, "0")


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_a_429_is_retried_when_it_says_and_then_succeeds(relay: RelayProcess, simulator: Running, dialect: str):
    customer = await relay.customer(tpm=6000)  # a hundred a second
    await call(customer, dialect, text="#sim input=10 output=5900#", limit=5900)
    found = await refused(customer, dialect, 429, "rate_limit_tokens", limit=150)
    wait_seconds = int(found.headers["retry-after-ms"]) / 1000
    assert 0.2 < wait_seconds < 2.0
    before, began = simulator.book.requests, time.monotonic()
    await call(customer, dialect, limit=150, max_retries=2)
    assert time.monotonic() - began > wait_seconds * 0.5  # some of it had passed since
    assert simulator.book.requests == before + 1
    records = await customer.calls(4)
    assert [record["status"] for record in records] == [200, 429, 429, 200]
    took = time.monotonic() - began
    assert took < wait_seconds + 8.0


async def test_a_full_relay_is_retried_too(relay: RelayProcess, raw: RawUpstream, simulator: Running):
    customer = await relay.customer(concurrency=1)
    release = asyncio.Event()
    text, exchange = raw.script(Gate(release), response_bytes(b"{}"))
    first = asyncio.ensure_future(call(customer, "openai", model="raw-chat", text=text))
    await until(lambda: exchange.requests)
    second = asyncio.ensure_future(call(customer, "openai", max_retries=3))
    await customer.calls(1)  # the refusal
    release.set()
    await first
    assert (await second).choices
    assert sorted(record["status"] for record in await customer.calls(3)) == [200, 200, 429]


GARBAGE = [
    b"\x16\x03\x01 no HTTP\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/2 200\r\n\r\n",
]


@pytest.mark.parametrize("answer", GARBAGE)
async def test_an_upstream_that_talks_nonsense(customer: Customer, raw: RawUpstream, answer: bytes):
    text, exchange = raw.script(answer, Close())
    await refused(customer, "openai", 502, "upstream_garbage", model="raw-chat", text=text)
    record = await customer.call()
    assert (record["error_code"], record["cost"], record["status"]) == ("upstream_garbage", "0", 502)
    assert len(exchange.requests) == 1
    assert (await customer.money())["available"] == "100"


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_upstream_that_closes_without_an_answer(customer: Customer, raw: RawUpstream, dialect: str):
    model = {"openai": "raw-chat", "anthropic": "raw-claude", "gemini": "raw-gemini"}[dialect]
    text, _ = raw.script(b"HTTP/1.1 200", Close())
    await refused(customer, dialect, 502, "upstream_failed", model=model, text=text)
    assert (await customer.call())["cost"] == "0"


async def test_an_upstream_that_is_down(customer: Customer):
    found = await refused(customer, "openai", 503, "upstream_unavailable", model="gpt-down")
    assert found.code == "upstream_unavailable"
    record = await customer.call()
    assert (record["status"], record["channel"], record["cost"]) == (503, "down", "0")


async def test_another_channel_helps(customer: Customer, simulator: Running):
    answer = await call(customer, "openai", model="gpt-failover")
    assert answer.choices
    record = await customer.call()
    assert (record["status"], record["attempts"], record["channel"]) == (200, 2, "after-down")


async def test_an_upstream_that_says_nothing(customer: Customer, raw: RawUpstream):
    text, exchange = raw.script(Gate(asyncio.Event()))
    began = time.monotonic()
    await refused(customer, "openai", 504, "upstream_timeout", model="raw-slow", text=text)
    assert 0.4 < time.monotonic() - began < 5.0
    await until(exchange.gone.is_set)
    assert (await customer.call())["cost"] == "0"


async def test_an_upstream_that_falls_silent_in_a_stream(customer: Customer, raw: RawUpstream):
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
    text, exchange = raw.script(STREAM_HEAD, chunk_bytes(chunk), Gate(asyncio.Event()))
    with pytest.raises(openai.APIError) as caught:
        await call(customer, "openai", model="raw-slow", text=text, stream=True)
    assert caught.value.code == "upstream_stalled"
    await until(exchange.gone.is_set)
    record = await customer.call()
    assert (record["error_code"], record["status"]) == ("upstream_stalled", 200)
    assert record["usage_source"] == "estimated"
    assert record["output_tokens"] >= 1


OWN_ACCOUNT = {
    "openai": ("status=401 error=key", "status=402 error=balance", "status=429 error=quota", "status=403"),
    "anthropic": ("status=401 error=key", "status=402 error=balance", "status=400 error=balance", "status=403"),
    "gemini": ("status=400 error=key", "status=402 error=balance", "status=403", "status=401 error=key"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_errors_about_the_operators_account_stay_here(customer: Customer, simulator: Running, dialect: str):
    for directives in OWN_ACCOUNT[dialect]:
        for stream in (False, True):
            found = await refused(customer, dialect, 503, "upstream_account", text=f"#sim {directives}#", stream=stream)
            assert "sim" not in str(found.error.body if dialect != "gemini" else found.error.details)
            assert "credit" not in str(found.error).lower()
    records = await customer.calls(8)
    assert {record["error_code"] for record in records} == {"upstream_account"}
    assert {record["cost"] for record in records} == {"0"}


async def test_a_key_that_the_provider_refuses(customer: Customer, simulator: Running):
    await refused(customer, "openai", 503, "upstream_account", model="gpt-bad-key")
    assert simulator.book.last.status == 401
