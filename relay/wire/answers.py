"""Errors that stand where an answer should: an object or the first event of a stream, under a status that says 200.

Gateways send them so, and providers in streams whose head had left. `find_error` gives each the status that its dialect
has for it and the form in which that dialect's SDKs read an error; what it is about, `wire.upstream_errors` judges.
"""

import re
from typing import Any, Final

from relay.wire.documents import dumps, loads
from relay.wire.endpoints import D_ANTHROPIC

DOCUMENT: Final = 0  # a JSON object or a stream of events, as far as its first bytes tell
ERROR: Final = 1
NOTHING: Final = 2  # nothing of the kind
_STREAM: Final = re.compile(rb"\s*(data:|event:|id:|retry:|:)")
_ERROR: Final = re.compile(rb'\s*(?:event: ?error\s|(?:data: ?)?\{\s*"error"\s*:\s*(?!null|false|""|\{\s*\}))')

# By the names that stand in `code`, `type` or `status`; anything else is 502.
_STATUSES: Final = {
    "invalid_request_error": 400,
    "invalid_argument": 400,
    "failed_precondition": 400,
    "context_length_exceeded": 400,
    "invalid_prompt": 400,
    "content_filter": 400,
    "content_policy_violation": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "unauthenticated": 401,
    "billing_error": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "not_found": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "resource_exhausted": 429,
    "overloaded_error": 503,
    "server_overloaded": 503,
    "service_unavailable": 503,
    "unavailable": 503,
    "timeout_error": 504,
    "deadline_exceeded": 504,
}
_WORDS: Final = ("message", "msg", "detail", "error_msg", "error_message", "errmsg")
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")


def begins(first: bytes, encoding: bytes | None) -> int:
    """What the first bytes of an answer say that it is. What is compressed is not looked at."""
    first = first.removeprefix(b"\xef\xbb\xbf")
    if encoding is not None and first:
        return DOCUMENT
    if _ERROR.match(first):
        return ERROR
    return DOCUMENT if first.lstrip().startswith(b"{") or _STREAM.match(first) else NOTHING


def find_error(dialect: int, body: bytes, whole: bool) -> tuple[int, bytes] | None:
    """Status and document of the first error in `body`, which may be a beginning; None where there is none in full.

    whole  no more will come: an event that no blank line ends is an event, an array that is not closed has its elements
    """
    for document in _documents(body, whole):
        error = _error(document)
        if error is not None:
            shown: dict[str, Any] = {"error": error}
            if dialect == D_ANTHROPIC:
                shown = {"type": "error", "error": error}
            return _status(document, error), dumps(shown)
    return None


def _documents(body: bytes, whole: bool) -> list[Any]:
    text = body.removeprefix(b"\xef\xbb\xbf").strip()
    if text.startswith((b"{", b"[", b",")):
        # A document, an array that may be open at both ends (an element of it with the comma before it), or lines.
        bare = text.lstrip(b"[, \t\r\n").rstrip(b"], \t\r\n")
        for found in (text, bare, b"[" + bare + b"]"):
            try:
                value = loads(found)
            except ValueError:
                continue
            return value if isinstance(value, list) else [value]
        return []
    events = _EVENT_END.split(body)
    documents = []
    for event in events if whole else events[:-1]:
        lines = re.split(rb"\r\n|\n|\r", event)
        data = b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
        try:
            documents.append(loads(data))
        except ValueError:
            continue
    return documents


def _error(document: Any) -> dict[str, Any] | None:
    """The error of a document, as an object with a message."""
    if not isinstance(document, dict):
        return None
    response = document.get("response")
    error = document.get("error") or (response.get("error") if isinstance(response, dict) else None)
    if not error and document.get("type") in ("error", "response.failed"):
        error = {name: value for name, value in document.items() if name in ("code", "message", "param")}  # flat
    if not error:  # as gateways put it
        said = next((document[name] for name in _WORDS if isinstance(document.get(name), str)), None)
        error = {"message": said, "code": document.get("code")} if said is not None else None
    if not error:
        return None
    if not isinstance(error, dict):
        error = {"message": error if isinstance(error, str) else "The provider answered with an error."}
    kind = error.get("type")
    return {"message": error.get("message") or "", "type": kind if isinstance(kind, str) else "server_error", **error}


def _status(document: dict[str, Any], error: dict[str, Any]) -> int:
    names = [error.get(name) for name in ("code", "status", "type")] + [document.get("code")]
    for name in names:
        if isinstance(name, str) and name.isascii() and name.isdigit() and len(name) == 3:
            name = int(name)
        if isinstance(name, int) and 400 <= name <= 599:
            return name
        if isinstance(name, str) and name.lower() in _STATUSES:
            return _STATUSES[name.lower()]
    return 502
