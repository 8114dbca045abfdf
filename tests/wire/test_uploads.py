"""Uploads read while they pass: the same facts however they are cut, and none where the lines cannot be read."""

import json

import pytest

from relay.policy.tokenizers import table_for
from relay.wire.uploads import BatchFacts, UploadReader, output_bound

TABLE = table_for("gpt-4o")
BOUNDARY = b"xYz"


def upload(lines: bytes, *, purpose_first: bool = True) -> bytes:
    parts = [
        b'--xYz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n',
        b'--xYz\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n'
        b"Content-Type: application/jsonl\r\n\r\n" + lines + b"\r\n",
    ]
    return b"".join(parts if purpose_first else parts[::-1]) + b"--xYz--\r\n"


def line(model: str = "m", url: str = "/v1/chat/completions", **body: object) -> bytes:
    return json.dumps({"custom_id": "c", "method": "POST", "url": url, "body": {"model": model, **body}}).encode()


def read(body: bytes, *cuts: int) -> tuple[str, BatchFacts]:
    reader = UploadReader(BOUNDARY, TABLE, 1000)
    at = 0
    for cut in (*cuts, len(body)):
        reader.feed(body[at:cut])
        at = cut
    return reader.purpose, reader.facts()


@pytest.mark.parametrize("purpose_first", [True, False])
def test_every_cut(purpose_first: bool):
    body = upload(
        line(max_tokens=5) + b"\n\n" + line(n=2) + b"\r\n" + line(url="/v1/embeddings"), purpose_first=purpose_first
    )
    purpose, facts = read(body)
    assert (purpose, facts.model, facts.requests, facts.output_tokens) == ("batch", "m", 3, 5 + 2 * 1000)
    assert facts.prompt_tokens > 20
    for cut in range(len(body)):
        assert read(body, cut) == (purpose, facts), cut
    assert read(body, *range(len(body))) == (purpose, facts)


@pytest.mark.parametrize(
    "lines",
    [b"", b"hello", line("a") + b"\n" + line("b"), b"[]", b"{}", line() + b"\n{", b'{"body":{"model":1},"url":"/"}'],
)
def test_files_that_are_none(lines: bytes):
    body = upload(lines)
    for cuts in ((), range(len(body))):
        assert read(body, *cuts)[1].requests == 0


L7 = [
    line().replace(b'"model": "m"', b'"model": "dear", "model": "m"'),
    line().replace(b'"model": "m"', b'"model": "dear", "\\u006dodel": "m"'),
    line().replace(b'"model": "m"', b'"model": "m", "Model": "dear"'),
    line().replace(b'"model": "m"', b'"model": "m", "MAX_TOKENS": 1000000'),
    line().replace(b'"model": "m"', b'"model": "m", "max_toKens": 1000000'),
    line().replace(b'"model": "m"', b'"model": "m", "N": 128'),
    line().replace(b'"url"', b'"url": "/v1/embeddings", "url"'),
    line().replace(b'"body"', b'"body": {"model": "m"}, "body"'),
    line().replace(b'"body"', b'"Body": {"model": "dear"}, "body"'),
    line().replace(b'"model": "m"', b'"model": "m", "x": NaN'),
    line().decode().encode("utf-16"),
]


@pytest.mark.parametrize("bad", L7)
def test_finding_wire_L7_lines_that_two_readers_take_in_two_ways(bad: bytes):
    assert read(upload(line() + b"\n" + bad))[1].requests == 0
    assert (
        read(upload(line() + b"\n" + line(messages=[{"role": "user", "content": '"model" "url" n'}])))[1].requests == 2
    )


@pytest.mark.parametrize("before", [b"\n", b"\r", b"", b" "])
def test_finding_wire_M2_a_boundary_that_is_not_ours(before: bytes):
    body = upload(line() + before + b"--xYz\nContent-Disposition: form-data\n\n" + line("dear"))
    for cuts in ((), range(len(body))):
        assert read(body, *cuts)[1].requests == 0


@pytest.mark.parametrize("name", ["previous_response_id", "conversation"])
def test_lines_that_go_on_from_something_stored_make_no_batch(name: str):
    """It could be another account's. A text that only speaks of it is none."""
    plain = line(url="/v1/responses", input=f'What is "{name}"?')
    named = line(url="/v1/responses", **{name: "resp_1"})
    escaped = named.replace(name.encode(), b"\\u00%x" % ord(name[0]) + name[1:].encode())
    twice = named.replace(b'"model"', f'"{name}": null, "model"'.encode())
    for stored in (named, escaped, twice, line(url="/v1/responses", **{name: {"id": "conv_1"}})):
        body = upload(plain + b"\n" + stored)
        for cuts in ((), range(len(body))):
            assert read(body, *cuts)[1] == BatchFacts()
    assert read(upload(plain + b"\n" + line(url="/v1/responses", **{name: None})))[1].requests == 2


def test_an_upload_that_breaks_off_or_is_no_form_has_no_facts():
    body = upload(line())
    assert read(body[:-12])[1] == BatchFacts()
    assert read(b"hello" * 100) == ("", BatchFacts())
    reader = UploadReader(None, TABLE, 10)
    reader.feed(body)
    assert reader.facts() == BatchFacts()


def test_output_bounds():
    assert output_bound({"max_tokens": 5, "max_completion_tokens": 9}, 100) == 9
    assert output_bound({"max_output_tokens": 7, "n": 3}, 100) == 21
    assert output_bound({"max_tokens": "5", "n": True}, 100) == 100
    assert output_bound({"max_tokens": 0, "n": 1000}, 100) == 100
