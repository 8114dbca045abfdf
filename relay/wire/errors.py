"""The relay's own errors as the SDKs of each dialect understand them.

The HTTP status decides which exception an SDK raises; type, code and message stand in the body. In a stream that has
begun there is no status any more: one event, in exactly the form that makes the SDKs of that dialect raise. Several
plausible forms are silently ignored by them (an Anthropic error without its `event:` line) or break their parsers (a
Gemini error with one); docs of the providers do not say so, trying every client did.
"""

import re
from typing import Final

import orjson

from relay import _fastpath, units
from relay.errors import ERRORS, ErrorKind
from relay.wire import unserved
from relay.wire.endpoints import (
    D_ANTHROPIC,
    D_GEMINI,
    D_OPENAI,
    F_COUNT_TOKENS,
    F_GEMINI_COUNT,
    F_GEMINI_EMBED,
    F_GENERATE,
    F_MESSAGES,
    F_RESPONSES,
)

# How an answer's body is framed; the same numbers as in relay/fastpath/tap.pxi.
K_JSON, K_SSE, K_JSON_ARRAY = range(3)

Headers = list[tuple[bytes, bytes]]

# Codes that have a name of their own at OpenAI, which its SDKs' users and coding tools look at: (type, code).
_OPENAI_NAMES: Final[dict[str, tuple[str, str]]] = {
    "missing_key": ("invalid_request_error", "invalid_api_key"),
    "invalid_key": ("invalid_request_error", "invalid_api_key"),
    "ambiguous_key": ("invalid_request_error", "invalid_api_key"),
    "key_expired": ("invalid_request_error", "invalid_api_key"),
    "key_revoked": ("invalid_request_error", "invalid_api_key"),
    "key_suspended": ("invalid_request_error", "invalid_api_key"),
    "rate_limit_requests": ("requests", "rate_limit_exceeded"),
    "rate_limit_tokens": ("tokens", "rate_limit_exceeded"),
    "concurrency_limit": ("requests", "rate_limit_exceeded"),
    # Coding tools stop on this code and go on retrying on others.
    "daily_limit": ("insufficient_quota", "insufficient_quota"),
    "monthly_limit": ("insufficient_quota", "insufficient_quota"),
    "insufficient_balance": ("insufficient_quota", "insufficient_balance"),
    "balance_exhausted": ("insufficient_quota", "balance_exhausted"),
    "tokens_per_call": ("tokens", "tokens_per_call"),
}
_OPENAI_TYPES: Final = {403: "permission_error", 402: "insufficient_quota", 429: "rate_limit_error"}

_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_GEMINI_STATUSES: Final = {
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

_FIRST_CALL: Final = re.compile(r"call_[0-9a-z]{13}")  # of a refusal that names another call
_PARAM = re.compile(r"[A-Za-z0-9_.$\[\]-]{1,64}")
_HELP: Final = {  # for fields whose name alone does not say what is wrong
    "input_file_id": " A batch takes a file of JSON lines that was uploaded here: each a request, all for one model."
    " What a provider's own tools use in a batch has no price.",
    "content-type": " It has to be multipart/form-data with a boundary.",
}
# Codes that stand for more than one thing, by `param`.
_TEXTS: Final[dict[tuple[str, str], str]] = {
    ("path_not_found", unserved.NOT_SERVED): "This path of the provider's API is not served by this relay.",
    ("path_not_found", unserved.BASE_URL): "There is nothing at this path. The base URL has /v1 for OpenAI SDKs, and "
    "not for Anthropic and Gemini.",
    ("scope_not_allowed", "x-relay-channel"): "This API key may not choose its channel by x-relay-channel: it does "
    "not have the scope `channel`.",
}
# What a limit leaves and what the call may need, after the colon of the message.
_NUMBERS: Final = {
    "rate_limit_requests": "{allowed} are allowed",
    "rate_limit_tokens": "the call may need {wanted}, {allowed} are allowed",
    "concurrency_limit": "{allowed} are allowed",
    "tokens_per_call": "it asks for {wanted}, {allowed} are allowed",
    "daily_limit": "the call may cost up to {wanted} {credits}, {allowed} are left",
    "monthly_limit": "the call may cost up to {wanted} {credits}, {allowed} are left",
    "insufficient_balance": "the call may cost up to {wanted} {credits}, {allowed} are available; set max_tokens, "
    "stream the answer, or add {credits}",
    "max_cost": "the call may cost up to {wanted} {credits}, {allowed} are allowed",
}
_IN_CREDITS: Final = {"daily_limit", "monthly_limit", "insufficient_balance", "max_cost"}
_SCOPE_NAMES: Final = ("key", "account", "organisation")


def error_name(code: int | str) -> str:
    """The name of a code of the hot path. IndexError or KeyError: no such code."""
    name = _fastpath.ERROR_CODES[code] if isinstance(code, int) else code
    ERRORS[name]
    return name


def render_refusal(
    dialect: int,
    code: int | str,
    request_id: str,
    retry_after_ns: int = 0,
    param: bytes | str | None = None,
    numbers: tuple[int, int] | None = None,
    *,
    no_balance_status_openai: int = 402,
    credit_name: str = "credits",
) -> tuple[int, Headers, bytes]:
    """A whole refusal: status, headers (no content-length: the writer's), JSON body.

    dialect         D_*
    code            index or name of an error code
    request_id      "" where the fault came before there was one
    retry_after_ns  exact wait, 0: unknown
    param           the field at fault, or the scope ("key", "account", "organisation") whose limit it was; anything
                    that does not look like the name of a field is left out. Of a model of another dialect: its name, a
                    blank, and where it is served
    numbers         of a limit: what the call may need, and what the limit leaves (tokens, calls or nano-credits)
    credit_name     what the operator calls a credit
    """
    name = error_name(code)
    kind = ERRORS[name]
    status = kind.status
    field, message = _param_and_message(kind, param)
    if numbers is not None and name in _NUMBERS:
        message = f"{message.rstrip('.')}: {_numbers(name, numbers, credit_name)}."
    if (name, param) in _TEXTS:
        field, message = None, _TEXTS[name, str(param)]
    elif name == "switched_off" and param:
        field, message = None, f"{message.rstrip('.')}: {param!s}"
    elif name == "idempotency_repeat" and param is not None:
        field, message = None, f"{message} That was {param!s}."
    elif name == "model_not_found" and isinstance(param, str) and " " in param:
        model, _, path = param.partition(" ")
        field, message = None, f"{model} is served at {path} here; this relay does not translate between APIs."
    elif name == "files_limit" and param is not None:
        field, message = None, f"{message.rstrip('.')}: {param!s}."
    retry_ms = -(-retry_after_ns // 1_000_000) if retry_after_ns > 0 else kind.retry_after_seconds * 1000
    quota_form = name == "insufficient_balance" and dialect == D_OPENAI and no_balance_status_openai == 429
    if quota_form:
        status, retry_ms = 429, 0  # coding tools wait for a Retry-After and stop at once without one

    body: dict[str, object]
    if dialect == D_ANTHROPIC:
        body = {"type": "error", "error": _anthropic_error(name, status, message), "request_id": request_id or None}
    elif dialect == D_GEMINI:
        body = {"error": _gemini_error(name, status, message, field, retry_ms)}
    else:
        body = {"error": _openai_error(name, status, message, field)}
        if quota_form:
            body = {"error": _openai_error(name, status, message, field) | {"code": "insufficient_quota"}}

    first_call = _FIRST_CALL.match(param) if name == "idempotency_repeat" and isinstance(param, str) else None
    identifier = request_id.encode("ascii")
    headers: Headers = [(b"content-type", b"application/json")]
    if identifier:
        # The first is what OpenAI's SDKs show in their exceptions, the second what Anthropic's show.
        headers += [(name, identifier) for name in (b"x-request-id", b"request-id", b"x-relay-request-id")]
    if first_call is not None:
        headers.append((b"x-relay-first-request-id", first_call[0].encode("ascii")))
    if kind.final:
        headers.append((b"x-should-retry", b"false"))
    if retry_ms > 0:
        headers.append((b"retry-after", b"%d" % -(-retry_ms // 1000)))
        headers.append((b"retry-after-ms", b"%d" % retry_ms))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return status, headers, orjson.dumps(body)


def _numbers(name: str, numbers: tuple[int, int], credit_name: str) -> str:
    wanted, allowed = (f"{number:,}" for number in numbers)
    if name in _IN_CREDITS:
        wanted, allowed = (units.format_credits(number) for number in numbers)
    return _NUMBERS[name].format(wanted=wanted, allowed=allowed, credits=credit_name)


def render_stream_error(format: int, body_kind: int, code: int | str, sequence_number: int = -1) -> bytes:
    """The last bytes of an answer that cannot be finished, to be written between two events and followed by the close.

    format           F_*
    body_kind        K_*; K_JSON gives b"": nothing can be said inside one JSON document
    sequence_number  the last one seen in a Responses stream, -1: none
    """
    name = error_name(code)
    kind = ERRORS[name]
    if body_kind == K_JSON:
        return b""
    if format in (F_MESSAGES, F_COUNT_TOKENS):
        event = {"type": "error", "error": _anthropic_error(name, _anthropic_stream_status(kind), kind.message)}
        return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"
    if format in (F_GENERATE, F_GEMINI_COUNT, F_GEMINI_EMBED):
        document = orjson.dumps({"error": _gemini_error(name, kind.status, kind.message, None, 0)})
        if body_kind == K_JSON_ARRAY:
            # One more element and the end of the array: it stays a JSON document for clients that read it whole.
            return b",\r\n" + document + b"\r\n]\r\n"
        return b"data: " + document + b"\r\n\r\n"
    error = _openai_error(name, kind.status, kind.message, None)
    if format == F_RESPONSES:
        # The flat form of OpenAI's documentation is yielded by its SDKs like any event; this nested one raises.
        nested = {"type": "error", "sequence_number": sequence_number + 1, "error": error}
        return b"event: error\ndata: " + orjson.dumps(nested) + b"\n\n"
    return b"data: " + orjson.dumps({"error": error}) + b"\n\n"


def _param_and_message(kind: ErrorKind, param: bytes | str | None) -> tuple[str | None, str]:
    text = param.decode("ascii", "replace") if isinstance(param, bytes) else param
    if text is None or _PARAM.fullmatch(text) is None:
        return None, kind.message
    if kind.status == 429:
        return None, kind.message.rstrip(".") + f" (limit of the {text})." if text in _SCOPE_NAMES else kind.message
    named = kind.status in (400, 404)
    return text, kind.message.rstrip(".") + f": `{text}`.{_HELP.get(text, '')}" if named else kind.message


def _openai_error(name: str, status: int, message: str, param: str | None) -> dict[str, object]:
    default = "server_error" if status >= 500 else _OPENAI_TYPES.get(status, "invalid_request_error")
    type_, code = _OPENAI_NAMES.get(name, (default, name))
    return {"message": message, "type": type_, "param": param, "code": code}


def _anthropic_error(name: str, status: int, message: str) -> dict[str, object]:
    default = "api_error" if status >= 499 else "invalid_request_error"
    # `code` is the relay's addition: Anthropic's types are too coarse to tell a revoked key from a wrong one.
    return {"type": _ANTHROPIC_TYPES.get(status, default), "message": message, "code": name}


def _anthropic_stream_status(kind: ErrorKind) -> int:
    """Claude Code answers `api_error` and `rate_limit_error` in a stream by sending the whole request again, not
    streamed; on `overloaded_error` it repeats the stream. A spending limit that ended a call is a billing matter."""
    if kind.status >= 500:
        return 503
    return 402 if kind.status == 429 else kind.status


def _gemini_error(name: str, status: int, message: str, field: str | None, retry_ms: int) -> dict[str, object]:
    info: dict[str, object] = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": name.upper(),
        "domain": "relay",
    }
    details = [info]
    if field is not None:
        violation = {"field": field, "description": message}
        details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]})
    if retry_ms > 0:
        delay = f"{retry_ms // 1000}.{retry_ms % 1000:03d}s"
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    default = "INTERNAL" if status >= 500 else "INVALID_ARGUMENT"
    return {"code": status, "message": message, "status": _GEMINI_STATUSES.get(status, default), "details": details}
