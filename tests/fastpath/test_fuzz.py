"""Seeded damage to answers and requests: nothing crashes, nothing leaves its bounds, cuts never matter.

Under the sanitizer build (`RELAY_BUILD=asan`) it also shows that no byte outside a piece is read.
"""

import itertools
import json
import random

import pytest

from relay._fastpath import ERROR_CODES, scan_request, tap
from relay.policy.tokenizers import table_for
from tests.support.answers import ANSWERS
from tests.support.request_bodies import NAMED, REQUESTS
from tests.support.tap_oracle import OTHER, USAGE_MAX

TABLE = table_for("claude")
PIECES = [
    *(bytes([c]) for c in b'"\\{}[]:,-+.eE0179ntfu \n\r\t'),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf0\x9f", b"\x00", b"\xef\xbb\xbf", b"\r\n\r\n", b"\n\n"),
    *(b"data:", b"data: ", b"event: ", b": ", b"data: [DONE]", b"[DONE]", b"\\u", b"\\ud83d", b"\\ude00", b"null"),
    *(b'"usage":{', b'"choices":[]', b'"type":"message_stop"', b'"iterations":[{"type":"compaction",', b'"delta":"'),
    *(b'"output_tokens":', b"99999999999999999999999", b"-1", b"1e999", b'"data":"', b'"url":"data:image/png;base64,'),
    *(b'"model":"x",', b'"content":', b'"tools":[', b'"index":7,', b'"webSearchQueries":["', b"[" * 40, b'{"a":' * 40),
]


def damaged(rng: random.Random, body: bytes, other: bytes) -> bytes:
    out = bytearray(body)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            out[at:at] = rng.choice(PIECES)
        elif kind == 1:
            del out[at : at + rng.randint(1, 40)]
        elif kind == 2:
            out[at : at + rng.randint(1, 4)] = rng.choice(PIECES)
        elif kind == 3:
            start = rng.randrange(len(other) + 1)
            out[at:at] = other[start : start + rng.randint(1, 200)]
        elif kind == 4:
            out[at : at + 1] = bytes([rng.randrange(256)])
        else:
            out[at:at] = out[at : at + rng.randint(1, 100)]
    return bytes(out)


def pieces(rng: random.Random, body: bytes) -> list[bytes]:
    """The body in pieces, each a copy of its own, so that reading past one is seen."""
    edges = sorted({rng.randrange(len(body) + 1) for _ in range(rng.randint(0, 6))} | {0, len(body)})
    return [bytes(bytearray(body[a:b])) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("seed", range(4))
def test_answers(seed):
    rng = random.Random(seed)
    for _ in range(700):
        answer, other = rng.choice(ANSWERS), rng.choice(ANSWERS)
        body = damaged(rng, answer.body, other.body)
        format = answer.format if rng.random() < 0.8 else rng.randrange(OTHER + 1)
        kind = answer.kind if rng.random() < 0.8 else rng.randrange(4)
        whole = tap(format, kind, [body], TABLE)
        parts = tap(format, kind, pieces(rng, body), TABLE)
        events = tap(format, kind, pieces(rng, body), TABLE, by_event=True)
        assert sum(size for size, _, _ in events["pieces"]) == len(body)
        for result in (whole, parts, events):
            del result["pieces"]
            assert result.pop("boundaries")[-1:] in ([True], [False], [])
        assert whole == parts == events, body
        for name, value in whole.items():
            if name.endswith("_tokens") or name in ("images", "web_searches", "video_seconds", "events"):
                assert 0 <= value <= USAGE_MAX


@pytest.mark.parametrize("seed", range(4))
def test_requests(seed):
    rng = random.Random(seed)
    requests = [(format, body) for format, body, _ in (*REQUESTS, *NAMED)]
    bodies = [json.dumps(body, ensure_ascii=rng.random() < 0.5).encode() for _, body in requests]
    for _ in range(700):
        index = rng.randrange(len(bodies))
        body = damaged(rng, bodies[index], rng.choice(bodies)) if rng.random() < 0.9 else bodies[index]
        format = requests[index][0] if rng.random() < 0.8 else rng.randrange(OTHER + 1)
        cuts = tuple(sorted(rng.randrange(len(body) + 1) for _ in range(rng.randint(0, 8))))
        whole = scan_request(format, body, TABLE)
        parts = scan_request(format, body, TABLE, cuts)
        if whole["error"]:  # how much was counted before the fault is nobody's business
            for name in ("text", "prompt_tokens"):
                parts[name] = whole[name]
        assert whole == parts, body
        assert whole["error"] in ERROR_CODES
        assert 0 <= whole["prompt_tokens"] <= USAGE_MAX
        assert whole["output_limit"] < 2**31
        assert 1 <= whole["choices"] <= 128
        for span, value in ((whole["model_span"], whole["model"]), (whole["stream_options_span"], None)):
            start, end = span
            assert start == end == -1 or 0 <= start < len(body)
            if not whole["error"] and start >= 0:
                assert json.loads(body[start:end]) is None or value is None or len(value) <= 256
        assert all(type(json.loads(body[start:end])) is str for start, end in whole["files"])
