"""Which files a request names: by place, at every cut, and against the oracle."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay._fastpath import scan_request
from relay.policy.tokenizers import table_for
from tests.support import request_oracle
from tests.support.tap_oracle import CHAT, COUNT_TOKENS, GENERATE, IMAGES, MESSAGES, OTHER, RERANK, RESPONSES

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


def in_message(*parts):
    return {"model": "x", "messages": [{"role": "user", "content": list(parts)}]}


SCREENSHOT = {"type": "computer_call_output", "output": {"type": "computer_screenshot", "file_id": "f4"}}
SANDBOX = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["f6", "f7"]}}


@pytest.mark.parametrize(
    ("format", "body", "files"),
    [
        (CHAT, in_message({"type": "file", "file": {"file_id": "f1"}}, {"type": "text", "text": "f2"}), ["f1"]),
        (CHAT, in_message({"type": "image_file", "image_file": {"file_id": "f1", "detail": "low"}}), ["f1"]),
        (CHAT, in_message({"type": "file", "file": {"file_data": "data:text/plain;base64,QQ=="}}), []),
        (CHAT, in_message({"type": "file", "file": {"file_id": None}}), []),
        (CHAT, {"model": "x", "metadata": {"file_id": "f1"}, "file_id": "f2"}, []),
        (
            RESPONSES,
            {
                "model": "x",
                "input": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_file", "file_id": "f1"},
                            {"type": "input_image", "file_id": "f2"},
                            {"type": "input_image", "image_url": "https://x.example/f9"},
                        ],
                    },
                    {
                        "type": "function_call_output",
                        "call_id": "c",
                        "output": [{"type": "input_file", "file_id": "f3"}],
                    },
                    SCREENSHOT,
                    {"type": "file_search_call", "results": [{"file_id": "f9", "text": "t"}]},
                    {
                        "role": "assistant",
                        "content": [
                            {
                                "type": "output_text",
                                "text": "t",
                                "annotations": [{"type": "file_citation", "file_id": "f9"}],
                            }
                        ],
                    },
                    {"type": "function_call", "arguments": '{"file_id": "f9"}'},
                    {"type": "tool_search_output", "tools": [{**SANDBOX, "environment": {"file_ids": ["f5"]}}]},
                ],
                "prompt": {"id": "p", "variables": {"content": {"type": "input_file", "file_id": "f8"}}},
                "tools": [
                    SANDBOX,
                    {"type": "image_generation", "input_image_mask": {"file_id": "f0"}},
                    {"type": "function", "parameters": {"container": {"file_ids": ["f9"]}, "file_id": "f9"}},
                    {"type": "file_search", "vector_store_ids": ["f9"]},
                    {"type": "code_interpreter", "container": "f9"},
                ],
            },
            ["f1", "f2", "f3", "f4", "f6", "f7", "f5", "f8", "f6", "f7", "f0"],
        ),
        (MESSAGES, in_message({"type": "document", "source": {"type": "file", "file_id": "f1"}}), ["f1"]),
        (MESSAGES, in_message({"type": "image", "source": {"file_id": "f1", "type": "file"}}), ["f1"]),
        (MESSAGES, in_message({"type": "container_upload", "file_id": "f1"}), ["f1"]),
        (COUNT_TOKENS, in_message({"type": "container_upload", "file_id": "f1"}), ["f1"]),
        (
            MESSAGES,
            in_message(
                {"type": "tool_result", "content": [{"type": "document", "source": {"type": "file", "file_id": "f1"}}]}
            ),
            ["f1"],
        ),
        (MESSAGES, in_message({"type": "tool_use", "input": {"file_id": "f9"}}), []),
        # What Anthropic's sandbox has made comes back with every turn.
        (
            MESSAGES,
            in_message(
                {
                    "type": "bash_code_execution_tool_result",
                    "content": {
                        "type": "bash_code_execution_result",
                        "content": [
                            {"type": "bash_code_execution_output", "file_id": "f9"},
                            {"file_id": "f9", "type": "code_execution_output"},
                        ],
                    },
                },
                {"type": "container_upload", "file_id": "f1"},
            ),
            ["f1"],
        ),
        # ... and is no cloak for others.
        (
            MESSAGES,
            in_message({"type": "code_execution_output", "file_id": "f1", "source": {"file_id": "f2"}}),
            ["f1", "f2"],
        ),
        (
            MESSAGES,
            in_message({"type": "code_execution_output", "file_id": "f1", "content": [{"file_id": "f2"}]}),
            ["f1", "f2"],
        ),
        (
            MESSAGES,
            in_message({"type": "code_execution_output", "content": [{"file_id": "f2", "type": "input_file"}]}),
            ["f2"],
        ),
        (MESSAGES, in_message({"type": "code_execution_output", "file_id": ["f1", "f2"]}), ["f1"]),
        (
            IMAGES,
            {"model": "x", "images": [{"file_id": "f1"}], "mask": {"file_id": "f2"}, "markup": {"file_id": "f3"}},
            ["f1", "f2", "f3"],
        ),
        # A field of that name means nothing to these.
        (RERANK, {"model": "x", "query": "q", "documents": [{"text": "t", "file_id": "f9"}]}, []),
        (GENERATE, {"contents": [{"parts": [{"fileData": {"fileUri": "files/f9"}, "file_id": "f9"}]}]}, []),
        (OTHER, {"file_id": "f9"}, []),
    ],
)
def test_files_that_are_named(format, body, files):
    for text in (json.dumps(body), json.dumps(body, indent=1), json.dumps(body).replace("file_id", "f\\u0069le_id")):
        data = text.encode()
        assert named(format, data) == files
        if format in request_oracle.NAME_FILES:
            assert request_oracle.scan(format, data, TABLE).files == files
        for cut in range(1, len(data), 7):
            assert named(format, data, (cut,)) == files
    assert named(format, data, tuple(range(len(data)))) == files


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
            {}, optional={"container": st.fixed_dictionaries({"file_ids": NAMES}), "input_image_mask": SOURCES}
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
    st.lists(st.integers(0, 2000), max_size=8),
)
def test_any_files(format, messages, more, cuts):
    document = {
        "model": "x",
        "messages": messages,
        "input": more,
        "images": more,
        "system": more,
        "mask": {"file_id": "m"},
    }
    data = json.dumps(document).encode()
    oracle = request_oracle.scan(format, data, TABLE)
    result = scan(format, data, tuple(sorted(min(cut, len(data)) for cut in cuts)))
    if oracle.faults:
        assert (result["error"], result["error_param"]) in oracle.faults
    else:
        assert [json.loads(data[start:end]) for start, end in result["files"]] == oracle.files
