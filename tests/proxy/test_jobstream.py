"""What of a job's events may pass, in any pieces."""

import gzip
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay.proxy.jobstream import EventCopy
from relay.proxy.upstreams import Reply, UpstreamError

SECRET = b"org-operator"


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def copy_of(encoding: bytes | None = None) -> EventCopy:
    return EventCopy(cast(Reply, SimpleNamespace(encoding=encoding)))


CREATED = event("response.created", response={"id": "resp_1", "status": "queued", "error": None})
DELTA = event("response.output_text.delta", delta='an "error" in a text')
ENDED = event("response.completed", response={"id": "resp_1", "error": None, "status": "completed"})
ERROR = {"code": "billing_not_active", "message": f"Your account is not active, {SECRET.decode()}"}
BAD = (
    event("response.failed", response={"id": "resp_1", "status": "failed", "error": ERROR}),
    event("error", error=ERROR),
    event("error", **ERROR),
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_what_is_well_passes_as_it_comes(size: int):
    copy, text = copy_of(), CREATED + DELTA + ENDED
    passed = b"".join(copy.passed(text[at : at + size]) for at in range(0, len(text), size))
    assert passed == text
    assert not copy.hidden(lambda _: None)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("coding", [None, b"gzip"])
def test_an_account_error_does_not_pass_wherever_it_is_cut(bad: bytes, coding: bytes | None):
    text = CREATED + DELTA + bad
    sent = text if coding is None else gzip.compress(text, mtime=0)
    for cut in range(len(sent)):
        copy, passed, told = copy_of(coding), b"", list[str]()
        for piece in (sent[:cut], sent[cut:]):
            passed += copy.passed(piece)
        with pytest.raises(UpstreamError):
            copy.hidden(told.append)
        assert told == ["upstream_account"]
        assert SECRET not in passed
        assert len(passed) < len(sent)


def test_an_error_of_the_caller_passes():
    text = CREATED + event(
        "error", error={"type": "invalid_request_error", "message": "No such tool", "param": "tools"}
    )
    copy = copy_of()
    assert b"".join(copy.passed(bytes([byte])) for byte in text) == text
    assert not copy.hidden(lambda _: None)
