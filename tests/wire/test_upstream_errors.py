"""What upstreams say about a refusal: whose matter it is, for how long, for what."""

import gzip
import json
import zlib

import brotli
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from relay.errors import ERRORS
from relay.proxy import decoders
from relay.wire.upstream_errors import (
    ACCOUNT,
    CALL,
    DOUBT,
    FORMS,
    KEY,
    MISSING,
    MODEL,
    REQUEST,
    UPSTREAM,
    Judgement,
    instead,
    judge,
    retry_after_seconds,
)
from tests.support.refused_bodies import CALLERS, DOCUMENTED, Body, openai

HIDDEN = [body for body in DOCUMENTED if body.verdict == ACCOUNT]


def google(delay: object) -> bytes:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
    return json.dumps({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": ["odd", {}, info]}}).encode()


@pytest.mark.parametrize(
    ("fields", "body", "seconds"),
    [
        (b"retry-after: 7\r\n", b"", 7),
        (b"Retry-After:7\r\n", b"", 7),
        (b"date: x\r\nretry-after: 1.5 \r\nx: y\r\n", b"", 1.5),
        (b"retry-after: 7\r\nretry-after-ms: 6543.21\r\n", b"", 6.54321),
        (b"x-retry-after: 7\r\n", b"", None),
        (b"retry-after: Wed, 21 Oct 2026 07:28:00 GMT\r\n", b"", None),
        (b"retry-after: -1\r\n", b"", None),
        (b"retry-after: 1e9\r\n", b"", None),
        (b"retry-after: 99999999999999\r\n", b"", None),
        (b"", google("34.074824224s"), 34.074824224),
        (b"", b"[" + google("3s") + b"]", 3),
        (b"", google("34"), None),
        (b"", google(34), None),
        (b"", b'{"error":{"details":{"retryDelay":"3s"}}}', None),
        (b"", b"not json", None),
        (b"", b"", None),
    ],
)
def test_how_long_to_wait(fields: bytes, body: bytes, seconds: float | None):
    assert retry_after_seconds(fields, body) == seconds


@pytest.mark.parametrize("body", DOCUMENTED, ids=str)
def test_finding_money_M1_documented_bodies(body: Body):
    found = judge(body.status, body.data)
    assert (found.verdict, found.scope, found.hidden) == (body.verdict, body.scope, body.is_hidden)
    if b"SECRET" in body.data and body.verdict != MISSING:
        assert found.hidden


@pytest.mark.parametrize("body", CALLERS, ids=str)
def test_what_the_caller_has_to_put_right_passes(body: Body):
    assert judge(body.status, body.data) == Judgement(REQUEST)


@pytest.mark.parametrize("body", [body for body in DOCUMENTED if body.provider not in ("text", "html")], ids=str)
def test_finding_money_M1_an_error_inside_a_good_answer(body: Body):
    """Status 200: an error object, or the first event of a stream. The status is what the error itself says."""
    if body.scope == MODEL or body.verdict == MISSING or (body.status in (402, 403, 503) and body.verdict != ACCOUNT):
        return  # without their status these say less
    said = judge(200, body.data)
    assert said.verdict in ((ACCOUNT,) if body.verdict == ACCOUNT else (UPSTREAM,)) or body.provider in (
        "Cohere",
        "Mistral",
    )
    for event in (b"data: %b\n\n", b"event: error\ndata: %b\n\n", b": comment\n\ndata: %b\r\n\r\n"):
        assert judge(200, event % body.data) == said


def test_an_error_inside_a_good_answer_is_nobodys_but_the_providers():
    assert judge(200, b'{"error":{"message":"boom"}}') == Judgement(UPSTREAM)
    assert judge(200, b'{"error":{"message":"no","type":"invalid_request_error"}}') == Judgement(REQUEST)
    assert judge(200, b'{"error":{"message":"no","code":400}}') == Judgement(REQUEST)
    assert judge(200, b'{"error":{"message":"x","code":402}}').verdict == ACCOUNT
    failed = {"type": "response.failed", "response": {"error": {"code": "insufficient_quota", "message": "m"}}}
    assert judge(200, json.dumps(failed).encode()) == Judgement(ACCOUNT, KEY, True)


WRAPS = (
    lambda error: error,
    lambda error: [error],
    lambda error: {"error": error},
    lambda error: {"error": [error]},
    lambda error: {"errors": [error, {"code": []}]},
    lambda error: {"detail": error},
    lambda error: {"details": [error, 3, None]},
    lambda error: {"error": {"message": json.dumps(error), "code": None}},
    lambda error: {"error": "400 " + json.dumps(error)},
    lambda error: {"error": {"message": "Provider returned error", "metadata": {"raw": json.dumps(error)}}},
    lambda error: json.dumps(error),
)


@example(HIDDEN[0], [WRAPS[-1], WRAPS[-1], WRAPS[7]])  # four times JSON in JSON
@given(st.sampled_from(HIDDEN), st.lists(st.sampled_from(WRAPS), max_size=3))
def test_finding_wire_M8_errors_in_odd_wrappings(body: Body, wraps: list):
    if not isinstance(body.document, str):
        document = body.document
        for wrap in wraps:
            document = wrap(document)
        assert judge(body.status, json.dumps(document).encode()).verdict == ACCOUNT
        assert judge(body.status, json.dumps(document, ensure_ascii=False).encode()).verdict == ACCOUNT


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["code", "type", "status", "reason", "message", "details", "metadata", "error", "detail", "errors"]
    ),
    ODD,
    max_size=6,
)


@given(st.integers(400, 599) | st.just(200), FIELDS | ODD, st.booleans())
def test_finding_wire_M8_fields_of_any_type_are_no_fault(status: int, odd: object, wrapped: bool):
    document = {"error": odd} if wrapped else odd
    found = judge(status, json.dumps(document).encode())
    assert instead(status, found) in ERRORS
    if status in (401, 402) and found.verdict != REQUEST:
        assert found.verdict == ACCOUNT


@pytest.mark.parametrize(
    "odd",
    [["insufficient_quota"], {"a": "insufficient_quota"}, [["insufficient_quota"]], [None, 3, "insufficient_quota"]],
)
@pytest.mark.parametrize("field", ["code", "type", "status"])
def test_finding_wire_M8_a_kind_in_a_list_or_an_object_is_read(field: str, odd: object):
    assert judge(429, json.dumps({"error": {field: odd}}).encode()) == Judgement(ACCOUNT, KEY, True)
    reasons = {"error": {"code": ["x"], "details": [{"reason": odd}]}}
    assert judge(429, json.dumps(reasons).encode()) == Judgement(ACCOUNT, KEY, True)


@given(st.sampled_from(DOCUMENTED + CALLERS), st.data())
def test_damaged_bodies_are_no_fault(body: Body, data: st.DataObject):
    cut = data.draw(st.integers(0, len(body.data)))
    junk = data.draw(st.binary(max_size=8))
    for damaged in (body.data[:cut], body.data[:cut] + junk + body.data[cut:], junk + body.data):
        judge(body.status, damaged)
        judge(200, damaged)


def test_a_truncated_body_is_read_as_far_as_it_goes():
    body = json.dumps(openai("Rate" + "x" * 50, "insufficient_quota", "insufficient_quota")).encode()
    assert judge(429, body[:-3]) == Judgement(ACCOUNT, KEY, True)
    assert judge(400, b'{"error":{"message":"Your credit balance is too low","x":NaN}}') == Judgement(
        ACCOUNT, KEY, True
    )


def test_deep_and_wide_bodies_take_no_time():
    for body in (b"[" * 60_000, b'{"error":' * 7_000, b'{"error":[' + b"1," * 30_000 + b"1]}", b"<" * 60_000):
        assert judge(500, body).verdict == UPSTREAM
    for text in ("a Error:" * 8_000, "status code " * 6_000, "Your account " + "x" * 60_000, "litellm." * 9_000):
        judge(400, json.dumps({"error": {"message": text}}).encode())


CODINGS = {
    b"gzip": gzip.compress,
    b"x-gzip": gzip.compress,
    b"deflate": zlib.compress,
    b"br": brotli.compress,
    b"zstd": zstandard.compress,
    b"gzip, br": lambda data: brotli.compress(gzip.compress(data)),
    b" GZIP ": gzip.compress,
    b"identity": bytes,
}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("body", HIDDEN[::4], ids=str)
def test_finding_wire_M7_compressed_errors_are_read(coding: bytes, body: Body):
    assert decoders.read(coding, CODINGS[coding](body.data)) == body.data


def test_finding_wire_M7_odd_codings():
    data = HIDDEN[0].data
    raw = zlib.compressobj(wbits=-15)
    assert decoders.read(b"deflate", raw.compress(data) + raw.flush()) == data
    assert decoders.read(b"gzip", data) == data  # the label is wrong
    assert decoders.read(None, gzip.compress(data)) == data  # there is no label
    assert decoders.read(b"unknown", zstandard.compress(data)) == data
    assert decoders.read(b"unknown", b"\x00\x01\x02") is None
    assert decoders.read(b"gzip", b"\x1f\x8bnonsense") is None
    assert decoders.read(b"gzip", gzip.compress(data)[:-12]) is not None  # as far as it goes
    bomb = decoders.read(b"gzip", gzip.compress(b"a" * 50_000_000))
    assert bomb is not None
    assert len(bomb) <= decoders.READ_BYTES_MAX + decoders.PIECE_BYTES


def test_what_cannot_be_read_does_not_pass():
    assert judge(400, None) == Judgement(UPSTREAM, CALL, True)
    assert judge(500, None).hidden
    assert judge(404, None).hidden
    assert judge(401, None) == Judgement(ACCOUNT, DOUBT, True)
    assert instead(400, judge(400, None)) == "upstream_error"


def test_the_upstreams_name_of_a_renamed_model_stays_here():
    error = b'{"error":{"message":"The model `secret-9` does not exist","code":"model_not_found"}}'
    assert judge(404, error) == Judgement(MISSING)
    assert judge(404, error, "secret-9") == Judgement(MISSING, CALL, True)
    assert instead(404, judge(404, error, "secret-9")) == "model_not_found"
    assert judge(429, b'{"error":{"message":"secret-9 is busy"}}', "secret-9").hidden
    assert not judge(413, b"too large", "secret-9").hidden
    assert instead(413, judge(413, b"too large for secret-9", "secret-9")) == "body_too_large"
    caller = b'{"error":{"message":"max_tokens is too large for secret-9"}}'
    assert judge(400, caller, "secret-9") == Judgement(REQUEST)


def test_every_row_has_its_source():
    for form in FORMS:
        assert form.source
        assert form.date
        assert form.kinds or form.begins
        assert all(kind == kind.lower() for kind in form.kinds)


TOLD = json.dumps({"error": {"message": "Your credit balance is too low to access the API.", "type": "x"}})


@pytest.mark.parametrize(
    "body",
    [
        TOLD.encode("utf-16"),
        TOLD.encode("utf-16-le"),
        TOLD.encode("utf-16-be"),
        TOLD.encode("utf-32"),
        b"while(1);" + TOLD.encode(),
        b")]}'\n" + TOLD.encode(),
        b"<html><body><pre>" + TOLD.encode() + b"</pre></body></html>",
        b"HTTP 400 from the backend: " + TOLD.encode(),
        TOLD.replace("error", "Error").replace("message", "Message").encode(),
        TOLD.upper().encode(),
        b'{"result":' + TOLD.encode() + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_finding_money_M1_an_account_error_in_any_coding_and_wrapping(body: bytes):
    assert judge(400, body).verdict == ACCOUNT
