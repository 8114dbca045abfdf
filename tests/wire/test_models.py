import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.endpoints import D_ANTHROPIC, D_GEMINI, D_OPENAI
from relay.wire.models import models_dialect, render_list, render_one

NAMES = ["b", "a", "c/d"]


def test_the_version_header_decides_the_shape():
    assert models_dialect(D_OPENAI, True) == D_ANTHROPIC
    assert models_dialect(D_OPENAI, False) == D_OPENAI
    assert models_dialect(D_GEMINI, True) == D_GEMINI


def test_openai_list():
    body = json.loads(render_list(D_OPENAI, NAMES))
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["a", "b", "c/d"]
    assert body["data"][0] == json.loads(render_one(D_OPENAI, "a"))
    assert body["data"][0]["object"] == "model"


def test_anthropic_list():
    body = json.loads(render_list(D_ANTHROPIC, NAMES, {"limit": "1000"}))
    assert [model["id"] for model in body["data"]] == ["a", "b", "c/d"]
    assert (body["has_more"], body["first_id"], body["last_id"]) == (False, "a", "c/d")
    assert body["data"][0] == json.loads(render_one(D_ANTHROPIC, "a"))
    assert json.loads(render_list(D_ANTHROPIC, [])) == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


def test_anthropic_pages_backwards():
    body = json.loads(render_list(D_ANTHROPIC, list("abcde"), {"before_id": "d", "limit": "2"}))
    assert [model["id"] for model in body["data"]] == ["b", "c"]
    assert body["has_more"]


def test_gemini_list():
    body = json.loads(render_list(D_GEMINI, NAMES))
    assert [model["name"] for model in body["models"]] == ["models/a", "models/b", "models/c/d"]
    assert "nextPageToken" not in body
    assert body["models"][0] == json.loads(render_one(D_GEMINI, "a"))


@given(st.sets(st.text("abc", min_size=1, max_size=4), max_size=20), st.integers(1, 7))
def test_pages_together_are_the_whole_list(names, size):
    query, seen = {"limit": str(size)}, []
    while True:
        body = json.loads(render_list(D_ANTHROPIC, list(names), query))
        seen += [model["id"] for model in body["data"]]
        if not body["has_more"]:
            break
        query["after_id"] = body["last_id"]
    assert seen == sorted(names)
    query, seen = {"pageSize": str(size)}, []
    while True:
        body = json.loads(render_list(D_GEMINI, list(names), query))
        seen += [model["displayName"] for model in body["models"]]
        if "nextPageToken" not in body:
            break
        query["pageToken"] = body["nextPageToken"]
    assert seen == sorted(names)


@pytest.mark.parametrize(
    ("dialect", "query", "parameter"),
    [
        (D_ANTHROPIC, {"limit": "-1"}, "limit"),
        (D_ANTHROPIC, {"limit": "many"}, "limit"),
        (D_ANTHROPIC, {"limit": "٣"}, "limit"),
        (D_GEMINI, {"pageSize": "1.5"}, "pageSize"),
        (D_GEMINI, {"pageToken": "!"}, "pageToken"),
        (D_GEMINI, {"pageToken": "é"}, "pageToken"),
        (D_GEMINI, {"pageToken": "/w=="}, "pageToken"),
    ],
)
def test_wrong_paging_names_the_parameter(dialect, query, parameter):
    with pytest.raises(ValueError, match=f"^{parameter}$"):
        render_list(dialect, NAMES, query)


def test_unknown_cursor_gives_an_empty_page():
    assert json.loads(render_list(D_ANTHROPIC, NAMES, {"after_id": "nope"}))["data"] == []
    assert json.loads(render_list(D_ANTHROPIC, NAMES, {"before_id": "nope"}))["data"] == []
