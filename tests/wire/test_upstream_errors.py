"""What upstreams say about a refusal: whose matter it is, for how long, for which models."""

import json

import pytest

from relay.wire.upstream_errors import ACCOUNT, REQUEST, UPSTREAM, is_about_one_model, judge, retry_after_seconds


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
        (b"", google("34"), None),
        (b"", google(34), None),
        (b"", b'{"error":{"details":{"retryDelay":"3s"}}}', None),
        (b"", b"not json", None),
        (b"", b"", None),
    ],
)
def test_how_long_to_wait(fields: bytes, body: bytes, seconds: float | None):
    assert retry_after_seconds(fields, body) == seconds


def openai(code: str) -> bytes:
    return json.dumps({"error": {"message": "m", "type": code, "code": code}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "verdict", "one_model"),
    [
        (429, openai("rate_limit_exceeded"), UPSTREAM, True),
        (429, openai("insufficient_quota"), ACCOUNT, False),
        (403, openai("model_not_found"), ACCOUNT, True),
        (403, b'{"type":"error","error":{"type":"permission_error","message":"x"}}', ACCOUNT, True),
        (403, openai("billing_not_active"), ACCOUNT, False),
        (401, openai("invalid_api_key"), ACCOUNT, False),
        (402, b"", ACCOUNT, False),
        (400, b'{"error":{"status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}', ACCOUNT, False),
        (400, openai("invalid_request_error"), REQUEST, False),
        (503, b"", UPSTREAM, False),
    ],
)
def test_whose_matter_it_is_and_for_which_models(status: int, body: bytes, verdict: int, one_model: bool):
    assert judge(0, status, body) == verdict
    assert is_about_one_model(status, body) == one_model
