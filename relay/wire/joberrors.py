"""Errors in documents of jobs and in lines of a batch's results: what they say about the operator's account does not
reach a customer."""

from collections.abc import Iterator
from typing import Any

from relay.errors import ERRORS
from relay.wire import documents, upstream_errors


def without_operator(body: bytes) -> tuple[bytes, str] | None:
    """A document without errors about the operator's account, and the name of one in relay.errors. None: it passes as
    it is."""
    if b"error" not in body:
        return None
    try:
        document = documents.loads(body)
    except ValueError:
        return None
    told = _hide((*place, 200) for place in _places(document))
    return (documents.dumps(document), told) if told is not None else None


def line_without_operator(line: bytes) -> tuple[bytes, str] | None:
    """The same of a line of a batch's results."""
    try:
        document = documents.loads(line)
    except ValueError:
        return None
    anthropics = isinstance(document, dict) and "result" in document
    told = _hide(_places_of_line(document), "api_error" if anthropics else "server_error")
    return (documents.dumps(document), told) if told is not None else None


def of_event(event: Any) -> str | None:
    """What a client is told in place of an event's error about the operator's account: a name of relay.errors."""
    errors = [holder[key] for holder, key in _places(event)]
    if not errors and isinstance(event, dict) and event.get("type") == "error":
        errors = [{name: value for name, value in event.items() if name != "type"}]
    return next(filter(None, map(upstream_errors.told_in_place_of, errors)), None)


def _hide(places: Iterator[tuple[Any, Any, int]], kind: str = "server_error") -> str | None:
    """Changes what is hidden of the errors at these places, each with the HTTP status that it had. Returns what is told
    in its place, upstream_account before anything else; None where nothing was hidden."""
    told = None
    for holder, key, status in places:
        code = upstream_errors.told_in_place_of(holder[key], status)
        if code is not None:
            told = code if told != "upstream_account" else told
            holder[key] = _instead(holder[key], code, kind)
    return told


def _places_of_line(line: Any) -> Iterator[tuple[Any, Any, int]]:
    """Of a request that was not sent, or was answered with an error: OpenAI's two ways, and Anthropic's."""
    if not isinstance(line, dict):
        return
    for holder, key in _error(line):
        yield holder, key, 200
    result, response = line.get("result"), line.get("response")
    for holder, key in _error(result):
        inner = holder[key].get("error") if isinstance(holder[key], dict) else None
        yield (holder[key] if inner else holder), key, 200
    if isinstance(response, dict):
        status = response.get("status_code")
        status = status if type(status) is int and 400 <= status <= 599 else 200
        body = response.get("body")
        if isinstance(body, dict) and body.get("error"):
            yield body, "error", status
        elif body and status != 200:
            yield response, "body", status


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Where errors stand: of the job (responses, videos, Google's), of lines that could not be read (OpenAI's batches),
    of single requests (Google's)."""
    if not isinstance(document, dict):
        return
    yield from _error(document)
    listed = document.get("errors")
    listed = listed.get("data") if isinstance(listed, dict) else listed
    yield from ((listed, place) for place in range(len(listed) if isinstance(listed, list) else 0))
    metadata = document.get("metadata")
    for part in (document.get("response"), metadata, metadata.get("output") if isinstance(metadata, dict) else None):
        yield from _error(part)
        lines = part.get("inlinedResponses") if isinstance(part, dict) else None
        lines = lines.get("inlinedResponses") if isinstance(lines, dict) else lines
        for line in lines if isinstance(lines, list) else ():
            yield from _error(line)


def _error(holder: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(holder, dict) and holder.get("error"):
        yield holder, "error"


def _instead(error: Any, code: str, kind: str = "server_error") -> Any:
    """In the form of the error that it stands for."""
    message = ERRORS[code].message
    if not isinstance(error, dict):
        return message
    told: dict[str, Any] = {"message": message}
    for name, value in (("code", code), ("type", kind), ("status", "UNAVAILABLE")):
        if name in error:
            number = type(error[name]) is int
            told[name] = (14 if error[name] < 100 else 503) if number else value
    return told | {name: error[name] for name in ("param", "line") if name in error and type(error[name]) in _PLAIN}


_PLAIN = (int, type(None))
