"""Where values stand in a JSON text, against parsing it: any document, however it is written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire import spans

TEXT = st.text(max_size=6) | st.sampled_from(["model", "{", "}", "[", "\\", '"', "é", "\U0001f600", "requests"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
LINES = st.lists(st.dictionaries(st.sampled_from(["model", "custom_id", "x"]), VALUES), max_size=4)


@given(VALUES, LINES, VALUES, st.booleans(), st.sampled_from([None, 1, "\r\n\t"]), st.sampled_from(["", " \n"]))
def test_against_a_parser(
    before: Any, lines: list[dict[str, Any]], behind: Any, ascii_only: bool, indent: Any, blank: str
):
    document = {"before": before, "requests": [{"params": line} for line in lines], "model": behind}
    text = blank + json.dumps(document, ensure_ascii=ascii_only, indent=indent) + blank
    data = text.encode("utf-8", "surrogatepass")
    places = spans.find(data, ("requests", spans.EVERY, "params", "model"))
    assert [json.loads(data[start:end]) for start, end in places] == [
        line["model"] for line in lines if "model" in line
    ]
    elements = spans.find(data, ("requests", spans.EVERY))
    assert [json.loads(data[start:end]) for start, end in elements] == document["requests"]
    changed = json.loads(spans.put(data, [(start, end, b'"other"') for start, end in places]))
    for line in lines:
        if "model" in line:
            line["model"] = "other"
    assert changed == {**document, "requests": [{"params": line} for line in lines]}
    assert spans.put(data, []) == data


def test_what_is_not_there():
    for path in (("a",), ("a", "b"), ("x", "b"), ("x", spans.EVERY), ("y", "a"), ("y", spans.EVERY, "b")):
        assert spans.find(b'{"x": 1, "y": [1, "b", null]}', path) == []


def test_an_escaped_key():
    data = b'{"mod\\u0065l" : "a"}'
    assert [data[start:end] for start, end in spans.find(data, ("model",))] == [b'"a"']


@pytest.mark.parametrize("data", [b"", b"{", b'{"a', b'{"a":', b'{"a":1', b'{"a":1,', '{"a":1}'.encode("utf-16")])
def test_what_is_no_json_in_utf_8(data: bytes):
    with pytest.raises(ValueError):  # noqa: PT011
        spans.find(data, ("a", "b"))
