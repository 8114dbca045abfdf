"""Which files a request names: by place, at every cut, and against the oracle."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay._fastpath import scan_request
from relay.policy.tokenizers import table_for
from tests.support import request_oracle
from tests.support.request_bodies import NAMED, in_message
from tests.support.tap_oracle import CHAT, COUNT_TOKENS, IMAGES, MESSAGES, RERANK, RESPONSES

TABLE = table_for("gpt-4o")
TEXTS = st.text(max_size=15)


def scan(format, data, cuts=()):
    return scan_request(format, data, TABLE, cuts)


def named(format, body, cuts=()):
    """The files that the scanner finds."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    result = scan(format, data, cuts)
    return [json.loads(data[start:end]) for start, end in result["files"]]


def fault(format, body):
    result = scan(format, json.dumps(body).encode())
    return result["error"], result["error_param"]


@pytest.mark.parametrize(("format", "body", "files"), NAMED)
def test_files_that_are_named(format, body, files):
    for text in (json.dumps(body), json.dumps(body, indent=1), json.dumps(body).replace("file_id", "f\\u0069le_id")):
        data = text.encode()
        assert named(format, data) == files
        if format in request_oracle.NAME_FILES:
            assert request_oracle.scan(format, data, TABLE).files == files
        for cut in range(1, len(data), 7):
            assert named(format, data, (cut,)) == files
    assert named(format, data, tuple(range(len(data)))) == files


def test_what_a_name_is_of():
    body = {
        "model": "x",
        "input": [{"content": [{"type": "input_file", "file_id": "f1"}]}],
        "tools": [{"type": "code_interpreter", "container": "c1"}, {"container": {"file_ids": ["f2"]}}],
    }
    assert scan(RESPONSES, json.dumps(body).encode())["file_kinds"] == ["file", "container", "file"]


def test_names_of_files_are_the_raw_values():
    assert named(CHAT, b'{"model":"x","messages":[{"content":[{"file_id" : "a\\u0062\\ud800" }]}]}') == ["ab\ud800"]


def test_as_many_files_as_are_looked_up():
    def parts(count):
        return in_message(*({"type": "input_file", "file_id": f"f{n}"} for n in range(count)))

    assert len(named(CHAT, parts(32))) == 32
    assert fault(CHAT, parts(33)) == ("too_many_files", b"file_id")
    tools = [{"type": "code_interpreter", "container": {"file_ids": ["f"] * 33}}]
    assert fault(RESPONSES, {"model": "x", "tools": tools}) == ("too_many_files", b"file_ids")
    assert not fault(RERANK, {"model": "x", "documents": [{"file_id": "f"}] * 33})[0]
    outputs = in_message(*({"type": "code_execution_output", "file_id": "f"} for _ in range(100)))
    assert named(MESSAGES, outputs) == []


NAMES = st.one_of(st.sampled_from(["f1", "f2", "f3"]), st.none(), st.lists(st.sampled_from(["f4", "f5"]), max_size=2))
SOURCES = st.fixed_dictionaries({}, optional={"type": st.sampled_from(["file", "text"]), "file_id": NAMES})
SANDBOXES = st.one_of(NAMES, st.fixed_dictionaries({}, optional={"file_ids": NAMES, "container_id": NAMES}))
KINDS = ["text", "input_file", "code_execution_output", "bash_code_execution_output"]
LEAVES = {
    "file_id": NAMES,
    "type": st.sampled_from(KINDS),
    "text": TEXTS,
    "file": SOURCES,
    "image_file": SOURCES,
    "source": SOURCES,
    "tools": st.lists(
        st.fixed_dictionaries(
            {}, optional={"container": SANDBOXES, "environment": SANDBOXES, "input_image_mask": SOURCES}
        ),
        max_size=2,
    ),
}


@st.composite
def shuffled(draw, fields):
    """An object with some of these fields, in any order."""
    names = draw(st.permutations(list(fields)))[: draw(st.integers(0, len(fields)))]
    return {name: draw(fields[name]) for name in names}


LEAF = shuffled(LEAVES)
NESTED = st.one_of(TEXTS, LEAF, st.lists(LEAF, max_size=3))
NODE = shuffled(
    {
        **LEAVES,
        "content": NESTED,
        "output": NESTED,
        "source": st.one_of(SOURCES, shuffled({"content": NESTED, "file_id": NAMES})),
    }
)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([CHAT, RESPONSES, MESSAGES, COUNT_TOKENS, IMAGES]),
    st.lists(shuffled({**LEAVES, "content": st.lists(NODE, max_size=3)}), max_size=3),
    st.lists(NODE, max_size=2),
    SANDBOXES,
    st.lists(st.integers(0, 2000), max_size=8),
)
def test_any_files(format, messages, more, container, cuts):
    document = {
        "model": "x",
        "messages": messages,
        "input": more,
        "images": more,
        "system": more,
        "mask": {"file_id": "m"},
        "container": container,
    }
    data = json.dumps(document).encode()
    oracle = request_oracle.scan(format, data, TABLE)
    result = scan(format, data, tuple(sorted(min(cut, len(data)) for cut in cuts)))
    if oracle.faults:
        assert (result["error"], result["error_param"]) in oracle.faults
    else:
        assert [json.loads(data[start:end]) for start, end in result["files"]] == oracle.files
