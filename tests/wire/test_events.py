"""Events of a response's stream, in any pieces: which response, and how it ended."""

import json
from typing import Any

import pytest

from relay.wire import events
from relay.wire.events import ResponseEvents

EOLS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


def event(kind: str, eol: bytes, **fields: Any) -> bytes:
    data = json.dumps({"type": kind, **fields}).encode()
    return b"event: " + kind.encode() + eol + b"data: " + data + eol + eol


def stream(eol: bytes) -> bytes:
    return b"".join(
        [
            b": hello" + eol + eol,
            event("response.created", eol, response={"id": "resp_1", "status": "queued"}),
            event("response.output_text.delta", eol, delta='"response" \u00e9 {"response":{"status":"completed"}}'),
            b'data: {"response":' + eol + b'data:{"id":"resp_1","status":"in_progress"}}' + eol + eol,
            b'data: not json "response"' + eol + eol + b'data: ["response"]' + eol + eol + b'data: {"response":1}',
            eol + eol,
            event("response.completed", eol, response={"id": "resp_1", "status": "completed", "usage": {}}),
        ]
    )


@pytest.mark.parametrize("eol", EOLS.values(), ids=EOLS)
def test_at_every_cut(eol: bytes):
    whole = stream(eol)
    for at in range(len(whole) - len(eol) + 1):
        found = ResponseEvents()
        found.feed(whole[:at])
        assert found.last is None
        found.feed(whole[at:])
        assert json.loads(found.first or b"") == {"id": "resp_1", "status": "queued"}
        assert json.loads(found.last or b"") == {"id": "resp_1", "status": "completed", "usage": {}}


@pytest.mark.parametrize("eol", EOLS.values(), ids=EOLS)
def test_byte_by_byte(eol: bytes):
    found, told = ResponseEvents(), []
    for byte in stream(eol):
        found.feed(bytes([byte]))
        told.append((found.first is not None, found.last is not None))
    assert told == sorted(told)
    assert told[-1] == (True, True)
    # The first was known at its own end, the last one not before the very end, but for a line end of two bytes.
    end = stream(eol).index(b"event: response.output_text.delta")
    assert told[end - len(eol) - 1] == (False, False)
    assert told[end - 1] == (True, False)
    assert told[-1 - len(eol)] == (True, False)


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed", "cancelled"])
def test_ends(status: str):
    found = ResponseEvents()
    found.feed(event("anything", b"\n", response={"id": "resp_1", "status": status}))
    assert json.loads(found.last or b"")["status"] == status


def test_an_event_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "EVENT_BYTES_MAX", 1000)
    found = ResponseEvents()
    for _ in range(200):
        found.feed(b"x" * 10)
    found.feed(b"\n\n" + event("response.completed", b"\n", response={"status": "completed"}))
    assert (found.first, found.last) == (None, None)
