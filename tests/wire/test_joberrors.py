"""Errors in documents of jobs: a provider's words about the operator's account stay here."""

from typing import Any

import orjson
import pytest

from relay.errors import ERRORS
from relay.wire.joberrors import line_without_operator, without_operator

QUOTA = "You exceeded your current quota, please check your plan and billing details."
LINE = "Missing required parameter: 'messages'."


@pytest.mark.parametrize(
    ("document", "changed"),
    [
        (
            {"id": "b", "status": "failed", "errors": {"object": "list", "data": [
                {"code": "insufficient_quota", "message": QUOTA, "param": None, "line": 3},
                {"code": "invalid_request", "message": LINE, "line": 4},
            ]}},
            lambda d: d["errors"]["data"][0],
        ),
        (
            {"id": "r", "status": "failed", "error": {"code": "billing_hard_limit_reached", "message": "Billing"}},
            lambda d: d["error"],
        ),
        ({"id": "v", "status": "failed", "error": {"code": "x", "message": QUOTA}}, lambda d: d["error"]),
        (
            {"name": "batches/1", "error": {"code": 7, "message": "Permission denied: Consumer 'project:12345678'",
             "status": "PERMISSION_DENIED"}},
            lambda d: d["error"],
        ),
        (
            {"name": "b", "done": True, "response": {"inlinedResponses": {"inlinedResponses": [
                {"response": {"candidates": [{"error": QUOTA}]}},
                {"error": {"code": 8, "message": QUOTA}},
            ]}}},
            lambda d: d["response"]["inlinedResponses"]["inlinedResponses"][1]["error"],
        ),
        ({"metadata": {"output": {"inlinedResponses": [{"error": QUOTA}]}}},
         lambda d: {"message": d["metadata"]["output"]["inlinedResponses"][0]["error"]}),
    ],
)  # fmt: skip
def test_words_about_the_account_stay_here(document: dict[str, Any], changed: Any):
    found = without_operator(orjson.dumps(document))
    assert found is not None
    text, code = found
    assert code == "upstream_account"
    after = orjson.loads(text)
    error = changed(after)
    assert error["message"] == ERRORS["upstream_account"].message
    for word in (b"billing details", b"insufficient_quota", b"12345678", b"Billing"):
        assert word not in orjson.dumps(error)
    before = changed(document)
    assert set(error) <= set(before)
    error.clear()
    before.clear()
    if "metadata" not in document:
        assert after == document  # nothing else has changed


@pytest.mark.parametrize(
    "document",
    [
        {"id": "b", "errors": {"data": [{"code": "invalid_request", "message": LINE, "line": 1}]}},
        {"id": "r", "status": "failed", "error": {"code": "server_error", "message": "The model failed to answer."}},
        {"id": "r", "status": "completed", "error": None, "output": [{"content": [{"text": QUOTA}]}]},
        {"errors": None, "error": "", "response": None, "metadata": [1]},
        [{"error": {"message": QUOTA}}],
    ],
)
def test_what_is_the_callers_own_passes(document: Any):
    assert without_operator(orjson.dumps(document)) is None


def test_what_is_no_document_passes():
    assert without_operator(b'{"error": ') is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'{"error":null,"response":{"status_code":200,"body":{}}}',
        b'{"response":{"status_code":400,"body":{"error":{"message":"x"}}}}',
        b'{"response":{"status_code":true,"body":"x"}}',
        b'{"result":{"type":"errored","error":{"error":null}}}',
        b'{"result":[],"response":[],"error":[]}',
    ],
)
def test_lines_that_pass(line: bytes):
    assert line_without_operator(line) is None


def test_a_line_is_judged_by_the_status_that_its_request_had():
    for status, told in ((401, "upstream_account"), (400, None), (200, None)):
        found = line_without_operator(orjson.dumps({"response": {"status_code": status, "body": {"error": "Refused"}}}))
        assert (found[1] if found is not None else None) == told
