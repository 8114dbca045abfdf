"""The cost in the usage object of an answer: exactly one new member, or nothing at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire import annotate

MEMBER = annotate.addition(1_250_000, "rates-0123456789ab", 12_500_000_000)
TEXT = b'"relay":{"cost":"0.00125","rates":"rates-0123456789ab","balance":"12.5"}'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"usage":{"a":1}}', b'{"usage":{"a":1,' + TEXT + b"}}"),
        (b' {"usage" : {} , "x":1}\n', b' {"usage" : {' + TEXT + b'} , "x":1}\n'),
        (b'{"usage": {\n  "a": {"b": "}"}\n  }\n}', b'{"usage": {\n  "a": {"b": "}"},' + TEXT + b"\n  }\n}"),
        (b'{"usageMetadata":{"a":1}}', b'{"usageMetadata":{"a":1,' + TEXT + b"}}"),
        (b'{"response":{"usage":{"a":1}},"usage":null}', b'{"response":{"usage":{"a":1,' + TEXT + b'}},"usage":null}'),
        # What looks like it and is text, or the usage of a part.
        (
            b'{"text":"\\"usage\\":{","usage":{"a":1},"list":[{"usage":{"b":2}}]}',
            b'{"text":"\\"usage\\":{","usage":{"a":1,' + TEXT + b'},"list":[{"usage":{"b":2}}]}',
        ),
    ],
)
def test_documents(before: bytes, after: bytes) -> None:
    assert annotate.document(before, MEMBER) == after


@pytest.mark.parametrize(
    "body",
    [
        b"", b"not json", b"[]", b"{}", b'{"usage":null}', b'{"usage":[]}', b'{"usage":{"relay":1}}', b"\xff\xfe",
        b'{"usage":{"a":1}', b'{"other":{"usage":{"a":1}}}', b'{"us\\u0061ge":{"a":1}}', b'{"usage":{"a":NaN}}',
    ],
)  # fmt: skip
def test_what_is_left_alone(body: bytes) -> None:
    assert annotate.document(body, MEMBER) is None
    assert annotate.event(b"data: " + body + b"\n\n", MEMBER) is None


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"])
def test_events(eol: bytes) -> None:
    lines = [b": note", b"event: x", b'data: {"usage":', b'data:{"a":1}', b"data: }", b"", b""]
    after = [*lines[:3], b'data:{"a":1,' + TEXT + b"}", *lines[4:]]
    assert annotate.event(eol.join(lines), MEMBER) == eol.join(after)
    assert annotate.event(eol.join([b": only", b"", b""]), MEMBER) is None


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8) | st.just('"usage":{'),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "usageMetadata", "a", "}", "choices"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(document=values, indent=st.sampled_from([None, 1]), ascii=st.booleans())
def test_only_one_member_is_new(document: Any, indent: int | None, ascii: bool) -> None:
    body = json.dumps(document, indent=indent, ensure_ascii=ascii).encode()
    changed = annotate.document(body, MEMBER)
    usage = None
    if isinstance(document, dict):
        choices = document.get("choices")
        first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        found = [holder.get(name) for holder in (document, first) for name in ("usage", "usageMetadata")]
        usage = next((item for item in found if isinstance(item, dict)), None)
    if usage is None:
        assert changed is None
        return
    assert changed is not None
    assert changed.count(TEXT) == 1
    assert changed.replace(b"," + TEXT, b"").replace(TEXT, b"") == body
