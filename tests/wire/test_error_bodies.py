"""The relay's errors, as bytes and as the official SDKs raise them."""

import json

import anthropic
import google.genai.errors
import openai
import pytest
from aiohttp import web
from google import genai
from google.genai import types as genai_types

from relay import _fastpath
from relay.errors import ERRORS
from relay.wire.endpoints import (
    D_ANTHROPIC,
    D_GEMINI,
    D_OPENAI,
    F_CHAT,
    F_COMPLETIONS,
    F_GENERATE,
    F_MESSAGES,
    F_RESPONSES,
)
from relay.wire.errors import K_JSON, K_JSON_ARRAY, K_SSE, render_refusal, render_stream_error

# google-genai subclasses aiohttp's ClientSession, which aiohttp discourages.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

REQUEST_ID = "call_0123456789abc"


def refusal(dialect, code, retry_after_ns=0, param=None, **options):
    status, headers, body = render_refusal(dialect, code, REQUEST_ID, retry_after_ns, param, **options)
    names = [name for name, _ in headers]
    assert len(set(names)) == len(names)
    return status, dict(headers), json.loads(body)


# --- bytes


@pytest.mark.parametrize("dialect", [D_OPENAI, D_ANTHROPIC, D_GEMINI])
def test_messages_say_which_field_and_what_it_should_be(dialect: int):
    for code, param, words in (
        (
            "object_not_found",
            "previous_response_id",
            "There is no such object of this account: `previous_response_id`.",
        ),
        ("invalid_type", b"model", "A field of the request body has the wrong type: `model`."),
        (
            "invalid_value",
            "input_file_id",
            "each a request, all for one model. What a provider's own tools use in a batch has no price.",
        ),
        ("invalid_value", "content-type", "It has to be multipart/form-data with a boundary."),
    ):
        assert refusal(dialect, code, 0, param)[2]["error"]["message"].endswith(words)


def test_openai_shape():
    status, headers, body = refusal(D_OPENAI, "invalid_key")
    assert status == 401
    assert body == {
        "error": {
            "message": "Incorrect API key provided: it is not a key of this relay.",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    }
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"x-request-id"] == headers[b"request-id"] == headers[b"x-relay-request-id"] == REQUEST_ID.encode()
    assert headers[b"x-should-retry"] == b"false"
    assert headers[b"www-authenticate"] == b"Bearer"
    assert b"retry-after" not in headers


def test_anthropic_shape():
    status, headers, body = refusal(D_ANTHROPIC, "insufficient_balance")
    assert status == 402
    assert (body["type"], body["request_id"]) == ("error", REQUEST_ID)
    assert body["error"]["type"] == "billing_error"
    assert body["error"]["code"] == "insufficient_balance"
    assert headers[b"x-should-retry"] == b"false"


def test_gemini_shape():
    status, _, body = refusal(D_GEMINI, "scope_not_allowed")
    assert status == 403
    error = body["error"]
    assert (error["code"], error["status"]) == (403, "PERMISSION_DENIED")
    assert error["details"][0]["reason"] == "SCOPE_NOT_ALLOWED"


def test_waits_are_rounded_up():
    _, headers, body = refusal(D_GEMINI, "rate_limit_requests", 1_200_000_001)
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (b"2", b"1201")
    assert {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1.201s"} in body["error"]["details"]
    assert b"x-should-retry" not in headers
    _, headers, _ = refusal(D_OPENAI, "rate_limit_tokens", 1)
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (b"1", b"1")


def test_a_wait_is_advised_where_none_is_known():
    _, headers, _ = refusal(D_OPENAI, "concurrency_limit")
    assert headers[b"retry-after"] == b"1"
    _, headers, _ = refusal(D_ANTHROPIC, "draining")
    assert headers[b"retry-after"] == b"2"


def test_spending_limits_are_final_though_time_heals_them():
    _, headers, body = refusal(D_OPENAI, "daily_limit", 3_600 * 10**9, b"account")
    assert (headers[b"x-should-retry"], headers[b"retry-after"]) == (b"false", b"3600")
    assert body["error"]["code"] == "insufficient_quota"
    assert body["error"]["message"].endswith("is reached (limit of the account).")
    assert body["error"]["param"] is None


def test_no_balance_may_be_a_quota_error_for_openai_only():
    status, headers, body = refusal(D_OPENAI, "insufficient_balance", no_balance_status_openai=429)
    assert status == 429
    assert (body["error"]["type"], body["error"]["code"]) == ("insufficient_quota", "insufficient_quota")
    assert headers[b"x-should-retry"] == b"false"
    assert b"retry-after" not in headers
    assert refusal(D_ANTHROPIC, "insufficient_balance", no_balance_status_openai=429)[0] == 402
    assert refusal(D_OPENAI, "insufficient_balance")[0] == 402


def test_the_field_at_fault_is_named():
    _, _, body = refusal(D_OPENAI, "invalid_type", 0, b"max_tokens")
    assert body["error"]["param"] == "max_tokens"
    assert "`max_tokens`" in body["error"]["message"]
    _, _, body = refusal(D_GEMINI, "invalid_type", 0, "generationConfig.maxOutputTokens")
    assert body["error"]["details"][1]["fieldViolations"][0]["field"] == "generationConfig.maxOutputTokens"


@pytest.mark.parametrize("param", [b"my secret prompt", b'"}', b"\xff\xfe", b"x" * 65, "<b>", ""])
def test_what_is_no_field_name_is_left_out(param):
    for dialect in (D_OPENAI, D_ANTHROPIC, D_GEMINI):
        assert refusal(dialect, "invalid_value", 0, param) == refusal(dialect, "invalid_value")


@pytest.mark.parametrize("dialect", [D_OPENAI, D_ANTHROPIC, D_GEMINI])
def test_every_code_has_a_refusal(dialect):
    for number, name in enumerate(_fastpath.ERROR_CODES[1:], 1):
        by_number = render_refusal(dialect, number, REQUEST_ID)
        assert by_number == render_refusal(dialect, name, REQUEST_ID)
        assert by_number[0] == ERRORS[name].status
        assert (b"x-should-retry", b"false") in by_number[1] or not ERRORS[name].final
    for unknown in ("", "no_such_code", 0):
        with pytest.raises(KeyError):
            render_refusal(dialect, unknown, REQUEST_ID)


def test_stream_errors_byte_for_byte():
    assert render_stream_error(F_CHAT, K_SSE, "upstream_truncated") == (
        b'data: {"error":{"message":"The provider\'s answer broke off.","type":"server_error","param":null,'
        b'"code":"upstream_truncated"}}\n\n'
    )
    assert render_stream_error(F_RESPONSES, K_SSE, "balance_exhausted", 41) == (
        b'event: error\ndata: {"type":"error","sequence_number":42,"error":{"message":"The balance ran out during the '
        b'call; it was ended.","type":"insufficient_quota","param":null,"code":"balance_exhausted"}}\n\n'
    )
    assert render_stream_error(F_MESSAGES, K_SSE, "upstream_stalled") == (
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"The provider stopped '
        b'sending in the middle of the answer.","code":"upstream_stalled"}}\n\n'
    )
    gemini = render_stream_error(F_GENERATE, K_SSE, "drain_deadline")
    assert gemini.startswith(b'data: {"error":{"code":503,"message":')
    assert gemini.endswith(b"}\r\n\r\n")
    assert render_stream_error(F_CHAT, K_JSON, "internal") == b""


def test_an_array_stays_one_document():
    sent = b'[{"candidates":[]}\r\n,\r\n{"candidates":[]}'
    parts = json.loads(sent + render_stream_error(F_GENERATE, K_JSON_ARRAY, "balance_exhausted"))
    assert parts[2]["error"]["code"] == 402


def test_every_code_ends_every_stream_in_one_event():
    for format in (F_CHAT, F_COMPLETIONS, F_RESPONSES, F_MESSAGES, F_GENERATE):
        for name in ERRORS:
            event = render_stream_error(format, K_SSE, name)
            assert event.replace(b"\r\n", b"\n").count(b"\n\n") == 1
            assert event.endswith((b"\n\n", b"\r\n\r\n"))


# --- as the SDKs see it


@pytest.fixture
async def answer(aiohttp_server):
    """answer(status, headers, body) -> base URL of a server that answers everything with it, and counts."""

    async def start(status, headers, body, content_type=None):
        async def handler(request):
            server.calls += 1
            await request.read()
            names = {name.decode(): value.decode() for name, value in headers}
            if content_type:
                names["content-type"] = content_type
            return web.Response(status=status, headers=names, body=body)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        server = await aiohttp_server(app)
        server.calls = 0
        server.url = f"http://{server.host}:{server.port}"
        return server

    return start


FINAL_OPENAI = {
    "malformed_json": openai.BadRequestError,
    "invalid_key": openai.AuthenticationError,
    "insufficient_balance": openai.APIStatusError,
    "scope_not_allowed": openai.PermissionDeniedError,
    "model_not_found": openai.NotFoundError,
    "body_too_large": openai.APIStatusError,
    "daily_limit": openai.RateLimitError,
}


@pytest.mark.parametrize("code", FINAL_OPENAI)
async def test_openai_sdk_raises_and_does_not_retry(answer, code):
    server = await answer(*render_refusal(D_OPENAI, code, REQUEST_ID, 0))
    async with openai.AsyncOpenAI(api_key="k", base_url=server.url + "/v1") as client:
        with pytest.raises(FINAL_OPENAI[code]) as caught:
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert server.calls == 1
    assert caught.value.status_code == ERRORS[code].status
    assert caught.value.request_id == REQUEST_ID
    assert caught.value.code
    assert caught.value.type
    assert ERRORS[code].message in caught.value.message


FINAL_ANTHROPIC = {
    "malformed_json": (anthropic.BadRequestError, "invalid_request_error"),
    "invalid_key": (anthropic.AuthenticationError, "authentication_error"),
    "insufficient_balance": (anthropic.APIStatusError, "billing_error"),
    "scope_not_allowed": (anthropic.PermissionDeniedError, "permission_error"),
    "model_not_found": (anthropic.NotFoundError, "not_found_error"),
    "body_too_large": (anthropic.APIStatusError, "request_too_large"),
    "daily_limit": (anthropic.RateLimitError, "rate_limit_error"),
}


@pytest.mark.parametrize("code", FINAL_ANTHROPIC)
async def test_anthropic_sdk_raises_and_does_not_retry(answer, code):
    server = await answer(*render_refusal(D_ANTHROPIC, code, REQUEST_ID, 0))
    cls, type_ = FINAL_ANTHROPIC[code]
    async with anthropic.AsyncAnthropic(api_key="k", base_url=server.url) as client:
        with pytest.raises(cls) as caught:
            await client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    assert server.calls == 1
    assert caught.value.status_code == ERRORS[code].status
    assert caught.value.request_id == REQUEST_ID
    assert caught.value.body["error"]["type"] == type_
    assert ERRORS[code].message in caught.value.message


@pytest.mark.parametrize("code", [*FINAL_ANTHROPIC, "rate_limit_requests", "upstream_unavailable"])
async def test_gemini_sdk_raises(answer, code):
    server = await answer(*render_refusal(D_GEMINI, code, REQUEST_ID, 0))
    options = genai_types.HttpOptions(base_url=server.url)
    client = genai.Client(api_key="k", http_options=options).aio
    kind = ERRORS[code]
    cls = google.genai.errors.ServerError if kind.status >= 500 else google.genai.errors.ClientError
    try:
        with pytest.raises(cls) as caught:
            await client.models.generate_content(model="m", contents="x")
    finally:
        await client.aclose()
    assert caught.value.code == kind.status
    assert caught.value.status
    assert caught.value.message == kind.message


async def test_a_rate_limit_is_retried_by_the_sdk(answer):
    server = await answer(*render_refusal(D_OPENAI, "rate_limit_requests", REQUEST_ID, 1_000_000))
    async with openai.AsyncOpenAI(api_key="k", base_url=server.url, max_retries=1) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="m", messages=[])
    assert server.calls == 2
    assert caught.value.code == "rate_limit_exceeded"


CHAT_EVENT = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
GEMINI_EVENT = b'data: {"candidates":[{"content":{"parts":[{"text":"a"}],"role":"model"}}]}\r\n\r\n'


async def test_openai_sdk_raises_in_a_chat_stream(answer):
    body = CHAT_EVENT + render_stream_error(F_CHAT, K_SSE, "balance_exhausted")
    server = await answer(200, [], body, "text/event-stream")
    async with openai.AsyncOpenAI(api_key="k", base_url=server.url) as client:
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        with pytest.raises(openai.APIError) as caught:
            assert [chunk.choices[0].delta.content async for chunk in stream]
    assert caught.value.code == "balance_exhausted"
    assert caught.value.type == "insufficient_quota"
    assert ERRORS["balance_exhausted"].message in caught.value.message


async def test_openai_sdk_raises_in_a_responses_stream(answer):
    body = render_stream_error(F_RESPONSES, K_SSE, "upstream_truncated", 3)
    server = await answer(200, [], body, "text/event-stream")
    async with openai.AsyncOpenAI(api_key="k", base_url=server.url) as client:
        stream = await client.responses.create(model="m", input="x", stream=True)
        with pytest.raises(openai.APIError) as caught:
            assert [event async for event in stream]
    assert caught.value.code == "upstream_truncated"


async def test_anthropic_sdk_raises_in_a_stream(answer):
    body = render_stream_error(F_MESSAGES, K_SSE, "balance_exhausted")
    server = await answer(200, [], body, "text/event-stream")
    async with anthropic.AsyncAnthropic(api_key="k", base_url=server.url) as client:
        stream = await client.messages.create(model="m", max_tokens=1, messages=[], stream=True)
        with pytest.raises(anthropic.APIStatusError) as caught:
            assert [event async for event in stream]
    assert caught.value.body["error"]["type"] == "billing_error"


@pytest.mark.parametrize("code", ["balance_exhausted", "upstream_truncated"])
async def test_gemini_sdk_raises_in_a_stream(answer, code):
    body = GEMINI_EVENT + render_stream_error(F_GENERATE, K_SSE, code)
    server = await answer(200, [], body, "text/event-stream")
    client = genai.Client(api_key="k", http_options=genai_types.HttpOptions(base_url=server.url)).aio
    try:
        with pytest.raises(google.genai.errors.APIError) as caught:
            assert [c async for c in await client.models.generate_content_stream(model="m", contents="x")]
    finally:
        await client.aclose()
    assert caught.value.code == ERRORS[code].status
