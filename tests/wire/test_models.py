import datetime
import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.endpoints import D_ANTHROPIC, D_GEMINI, D_OPENAI
from relay.wire.models import Listed, models_dialect, path_of, render_list, render_one

NAMES = [Listed(name=name) for name in ("b", "a", "c/d")]
A = Listed(name="a")
WHOLE = Listed(
    name="gpt-4o",
    kind="chat",
    context_tokens=128_000,
    output_tokens_max=16_384,
    takes=("text", "image"),
    makes=("text",),
    released=datetime.date(2024, 5, 13),
    prices={
        "input": Decimal("2.5"),
        "output": Decimal(10),
        "cache_read": Decimal("1.25"),
        "cache_write": Decimal("2.5"),
        "image": Decimal(0),
        "web_search": Decimal("0.01"),
    },
)


def listed(names):
    return [Listed(name=name) for name in names]


def test_the_version_header_decides_the_shape():
    assert models_dialect(D_OPENAI, True) == D_ANTHROPIC
    assert models_dialect(D_OPENAI, False) == D_OPENAI
    assert models_dialect(D_GEMINI, True) == D_GEMINI


def test_openai_list():
    body = json.loads(render_list(D_OPENAI, NAMES))
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["a", "b", "c/d"]
    assert body["data"][0] == json.loads(render_one(D_OPENAI, A))
    assert body["data"][0]["object"] == "model"


def test_anthropic_list():
    body = json.loads(render_list(D_ANTHROPIC, NAMES, {"limit": "1000"}))
    assert [model["id"] for model in body["data"]] == ["a", "b", "c/d"]
    assert (body["has_more"], body["first_id"], body["last_id"]) == (False, "a", "c/d")
    assert body["data"][0] == json.loads(render_one(D_ANTHROPIC, A))
    assert json.loads(render_list(D_ANTHROPIC, [])) == {
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


def test_anthropic_pages_backwards():
    body = json.loads(render_list(D_ANTHROPIC, listed("abcde"), {"before_id": "d", "limit": "2"}))
    assert [model["id"] for model in body["data"]] == ["b", "c"]
    assert body["has_more"]


def test_gemini_list():
    body = json.loads(render_list(D_GEMINI, NAMES))
    assert [model["name"] for model in body["models"]] == ["models/a", "models/b", "models/c/d"]
    assert "nextPageToken" not in body
    assert body["models"][0] == json.loads(render_one(D_GEMINI, A))


@given(st.sets(st.text("abc", min_size=1, max_size=4), max_size=20), st.integers(1, 7))
def test_pages_together_are_the_whole_list(names, size):
    query, seen = {"limit": str(size)}, []
    while True:
        body = json.loads(render_list(D_ANTHROPIC, listed(names), query))
        seen += [model["id"] for model in body["data"]]
        if not body["has_more"]:
            break
        query["after_id"] = body["last_id"]
    assert seen == sorted(names)
    query, seen = {"pageSize": str(size)}, []
    while True:
        body = json.loads(render_list(D_GEMINI, listed(names), query))
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


def test_finding_clients_F15_what_is_known_of_a_model_in_each_shape():
    shown = json.loads(render_one(D_OPENAI, WHOLE))
    assert shown == {
        "id": "gpt-4o",
        "object": "model",
        "owned_by": "relay",
        "name": "gpt-4o",
        "created": 1715558400,
        "context_length": 128_000,
        "top_provider": {"context_length": 128_000, "max_completion_tokens": 16_384},
        "architecture": {
            "modality": "text+image->text",
            "input_modalities": ["text", "image"],
            "output_modalities": ["text"],
        },
        "pricing": {
            "prompt": "0.0000025",
            "completion": "0.00001",
            "input_cache_read": "0.00000125",
            "input_cache_write": "0.0000025",
            "image": "0",
            "web_search": "0.01",
        },
    }
    shown = json.loads(render_one(D_ANTHROPIC, WHOLE))
    assert shown["created_at"] == "2024-05-13T00:00:00Z"
    assert (shown["max_input_tokens"], shown["max_tokens"]) == (128_000, 16_384)
    shown = json.loads(render_one(D_GEMINI, WHOLE))
    assert (shown["inputTokenLimit"], shown["outputTokenLimit"]) == (128_000, 16_384)
    assert "generateContent" in shown["supportedGenerationMethods"]
    assert "embedContent" not in shown["supportedGenerationMethods"]


def test_finding_newcomer_37_what_is_not_known_is_left_out():
    assert json.loads(render_one(D_OPENAI, A)) == {"id": "a", "object": "model", "owned_by": "relay", "name": "a"}
    assert json.loads(render_one(D_ANTHROPIC, A)) == {"type": "model", "id": "a", "display_name": "a"}
    assert not {"inputTokenLimit", "outputTokenLimit"} & set(json.loads(render_one(D_GEMINI, A)))


@pytest.mark.parametrize(
    ("dialect", "kind", "path"),
    [
        (D_OPENAI, "chat", "/v1/chat/completions"),
        (D_OPENAI, "", "/v1/chat/completions"),
        (D_OPENAI, "responses", "/v1/responses"),
        (D_OPENAI, "embedding", "/v1/embeddings"),
        (D_ANTHROPIC, "chat", "/v1/messages"),
        (D_GEMINI, "chat", "/v1beta/models/m:generateContent"),
        (D_GEMINI, "embedding", "/v1beta/models/m:embedContent"),
    ],
)
def test_where_a_model_is_called(dialect, kind, path):
    assert path_of(dialect, "m", kind) == path
