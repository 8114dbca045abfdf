"""Documents of providers are read whatever stands in them."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire import documents

JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(codec=None)),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
)


@given(JSON)
def test_what_is_json_is_read_and_written(value: object) -> None:
    read = documents.loads(json.dumps(value))
    assert documents.loads(documents.dumps(read)) == read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1" + "0" * 5000, (1 << 63) - 1),
        ("-1" + "0" * 5000, -(1 << 63) + 1),
        (r'"\ud800"', "\ud800"),
        (b'"\xff"', "\ufffd"),
    ],
    ids=["huge", "below", "half a pair", "not UTF-8"],
)
def test_what_orjson_refuses(text: str | bytes, value: object) -> None:
    assert documents.loads(text) == value


def test_a_number_beyond_all_is_a_number() -> None:
    assert math.isfinite(documents.loads("1e400"))
    assert json.loads(documents.dumps(documents.loads('[1e400,"\\ud800"]')))


@pytest.mark.parametrize("text", ["", "{", "Infinity", "NaN", "[" * 100_000, b"\xff"])
def test_what_is_none(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        documents.loads(text)
