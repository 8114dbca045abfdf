"""The JSON machine refuses what the standard library refuses, at any cut and after any damage."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay._fastpath import scan_request
from relay.policy.tokenizers import table_for
from tests.support import json_oracle
from tests.support.tap_oracle import OTHER

TABLE = table_for("gpt-4o")


def accepts(body: bytes, cuts: tuple[int, ...] = ()) -> bool:
    return not scan_request(OTHER, body, TABLE, cuts)["error"]


def oracle_accepts(body: bytes) -> bool:
    try:
        return isinstance(json_oracle.strict(body), json_oracle.Pairs)
    except ValueError:
        return False


GOOD = [
    b"{}",
    b" \t\r\n{ } \n",
    b'{"a":[]}',
    b'{"a":[1,-0,0.5,-1.25e+7,1E5,1e-9,0e0,10]}',
    b'{"a":[true,false,null,{},[],[[]],""]}',
    b'{"a":"\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\uD83D\\uDE00\\ud800x\\udc00\\ud800\\ud800\\udc00"}',
    '{"é":"世界 🌍 \u007f\u0080\u2028 \ud7ff\ue000 \U0010ffff"}'.encode(),
    b'{"' + b"k" * 3000 + b'":' + b'"v"' + b"}",
    b'{"a":' + b"9" * 5000 + b"}",
    b'{"a":' + b"[" * 126 + b"]" * 126 + b"}",
    b'{"a":' + b'{"a":' * 125 + b"1" + b"}" * 125 + b"}",
    b'{"a":1,"a":2}',
    b'{"":{"":""}}',
]
BAD = [
    b"",
    b" ",
    b"[]",
    b"1",
    b"null",
    b'"a"',
    b"{",
    b"}",
    b"{}}",
    b"{}{}",
    b"{} x",
    b"{,}",
    b'{"a"}',
    b'{"a":}',
    b'{"a":1,}',
    b'{"a":1 "b":2}',
    b'{"a" 1}',
    b"{a:1}",
    b"{'a':1}",
    b'{"a":[1,]}',
    b'{"a":[,1]}',
    b'{"a":[1 2]}',
    b'{"a":[1}',
    b'{"a":{]}',
    b'{"a":01}',
    b'{"a":-}',
    b'{"a":+1}',
    b'{"a":.5}',
    b'{"a":1.}',
    b'{"a":1e}',
    b'{"a":1e+}',
    b'{"a":0x1}',
    b'{"a":1_0}',
    b'{"a":--1}',
    b'{"a":1.5.5}',
    b'{"a":NaN}',
    b'{"a":Infinity}',
    b'{"a":-Infinity}',
    b'{"a":nul}',
    b'{"a":nulll}',
    b'{"a":True}',
    b'{"a":truefalse}',
    b'{"a":"\n"}',
    b'{"a":"\x00"}',
    b'{"a":"\x1f"}',
    b'{"a":"\\x"}',
    b'{"a":"\\u12g4"}',
    b'{"a":"\\u12"}',
    b'{"a":"\\U0041"}',
    b'{"a":"\xff"}',
    b'{"a":"\xc0\xaf"}',
    b'{"a":"\xe0\x80\xaf"}',
    b'{"a":"\xed\xa0\x80"}',
    b'{"a":"\xf4\x90\x80\x80"}',
    b'{"a":"\xf5\x80\x80\x80"}',
    b'{"a":"\xe4\xb8"}',
    b'{"a":"\xe4\xb8x"}',
    b'{"a":"\xe4\xb8\\n"}',
    b'{"a":"\x80"}',
    b'{"\xff":1}',
    b'\xef\xbb\xbf{"a":1}',
    b'{"a":1}\x00',
    b'{\x00"a":1}',
    b'{\xc2\xa0"a":1}',
    b'{"a":1}//',
    b'/**/{"a":1}',
    '{"a":1}'.encode("utf-16"),
    '{"a":1}'.encode("utf-32"),
    b'{"a":' + b"[" * 127 + b"]" * 127 + b"}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
]


@pytest.mark.parametrize("body", GOOD, ids=range(len(GOOD)))
def test_taken(body):
    assert oracle_accepts(body)
    assert accepts(body)
    if len(body) < 500:
        assert accepts(body, tuple(range(len(body))))
        assert all(accepts(body, (cut,)) for cut in range(len(body)))
        assert not any(accepts(body.strip()[:cut]) for cut in range(len(body.strip())))


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_refused(body):
    assert not oracle_accepts(body)
    error = scan_request(OTHER, body, TABLE)["error"]
    assert error == ("invalid_type" if body.startswith((b"[", b"1", b"null", b'"a')) else "malformed_json")
    if len(body) < 500:
        assert not accepts(body, tuple(range(len(body))))
        assert not any(accepts(body, (cut,)) for cut in range(len(body)))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20)
)
DOCUMENTS = st.dictionaries(
    st.text(max_size=6),
    st.recursive(
        SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=4), x, max_size=4), max_leaves=12
    ),
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 1]), st.lists(st.integers(0, 400), max_size=8))
def test_any_document(document, ascii, indent, cuts):
    body = json.dumps(document, ensure_ascii=ascii, indent=indent).encode("utf-8", "replace")
    assert accepts(body, tuple(sorted(min(cut, len(body)) for cut in cuts)))


def test_any_damage():
    """Seeded: bytes changed, taken out, doubled or swapped; the verdict is that of the standard library, at any cut."""
    rng = random.Random(20260101)
    pieces = [b'"', b"\\", b"\\u", b"{", b"}", b"[", b"]", b":", b",", b"1", b"-", b"e", b".", b"0", b" ", b"\n"]
    pieces += [b"\xc3", b"\xa9", b"\xed", b"\xa0", b"\xf0", b"null", b"true", b"x", b"\\ud83d", b"\\ude00", b"\x00"]
    seeds = [body for body in GOOD if len(body) < 500]
    refused = 0
    for _ in range(4000):
        body = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(body) + 1)
            kind = rng.randrange(4)
            if kind == 0:
                body[at:at] = rng.choice(pieces)
            elif kind == 1:
                del body[at : at + rng.randint(1, 3)]
            elif kind == 2:
                body[at : at + 1] = rng.choice(pieces)
            else:
                body[at:at] = body[at : at + rng.randint(1, 12)]
        text = bytes(body)
        cuts = tuple(sorted(rng.randrange(len(text) + 1) for _ in range(rng.randint(0, 4))))
        expected = oracle_accepts(text)
        refused += not expected
        assert accepts(text, cuts) == expected, text
    assert 1000 < refused < 3900
