"""Names under which providers and relays report caches, searches and other things that cost: each read, as the oracle
reads it, whole and at every cut."""

import json
from typing import Any

import pytest

from relay._fastpath import tap
from relay.policy import tokenizers
from tests.support import tap_oracle
from tests.support.tap_oracle import CHAT, GENERATE, IMAGES, JSON, MESSAGES, RESPONSES

TABLE = tokenizers.table_for("gpt-4o")


def found(format: int, document: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(document).encode()
    result = tap(format, JSON, [body], TABLE)
    pieces = tap(format, JSON, [body[at : at + 1] for at in range(len(body))], TABLE)
    assert {**pieces, "boundaries": 0} == {**result, "boundaries": 0}
    expected = tap_oracle.read(format, JSON, body, TABLE)
    assert {name: result[name] for name in expected} == expected
    return result


def chat(**usage: Any) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020, **usage}}


AGES = {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200}
# Usage in OpenAI's shape, and what of a prompt is plain, read from a cache, written to it for minutes and for an hour.
CACHES: list[tuple[dict[str, Any], tuple[int, int, int, int]]] = [
    (chat(prompt_tokens_details={"cached_tokens": 600}), (400, 600, 0, 0)),
    (chat(prompt_tokens_details={"cached_tokens": 600, "cache_write_tokens": 300}), (100, 600, 300, 0)),  # OpenRouter
    (
        chat(
            prompt_tokens_details={
                "cached_tokens": 600, "cache_creation_tokens": 300, "cache_creation_token_details": AGES
            },
            cache_creation_input_tokens=300, cache_read_input_tokens=600,
        ),
        (100, 600, 100, 200),
    ),  # LiteLLM
    (chat(cache_creation_input_tokens=300, cache_read_input_tokens=600), (100, 600, 300, 0)),
    (chat(prompt_tokens_details={"cached_creation_tokens": 300}), (700, 0, 300, 0)),  # new-api
    (
        chat(
            prompt_tokens_details={"cached_creation_tokens": 300},
            claude_cache_creation_5_m_tokens=100, claude_cache_creation_1_h_tokens=200,
        ),
        (700, 0, 100, 200),
    ),
    (chat(total_tokens=1620, prompt_tokens_details={"cached_tokens": 600}), (1000, 600, 0, 0)),  # beside: the sum tells
    (
        chat(total_tokens=1920, prompt_tokens_details={"cached_tokens": 600, "cached_creation_tokens": 300}),
        (1000, 600, 300, 0),
    ),
    (
        chat(total_tokens=1320, prompt_tokens_details={"cached_tokens": 600, "cached_creation_tokens": 300}),
        (400, 600, 300, 0),
    ),
    (
        chat(total_tokens=5020, prompt_tokens_details={"cached_tokens": 4000}), (1000, 4000, 0, 0)
    ),  # more than the prompt
    (
        chat(
            prompt_tokens_details={
                "cache_write_tokens": 300, "cache_write_tokens_details": {"ttl_12h_tokens": 200, "ttl_30m_tokens": 100}
            }
        ),
        (700, 0, 100, 200),
    ),  # OpenAI
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(CACHES)))
def test_finding_clients_F16_cache_names_of_relays(case: int):
    document, (plain, read, minutes, hour) = CACHES[case]
    result = found(CHAT, document)
    assert (result["input_tokens"], result["cache_read_tokens"]) == (plain, read)
    assert (result["cache_write_tokens"], result["cache_write_1h_tokens"]) == (minutes, hour)
    assert result["output_tokens"] == 20


@pytest.mark.parametrize(
    "usage",
    [
        {"server_side_tool_usage_details": {"web_search_calls": 2, "x_search_calls": 1}},  # xAI
        {"server_tool_use": {"web_search_requests": 2}},  # OpenRouter, LiteLLM
        {"plugins": {"search": {"count": 2}}},  # Qwen
        {"x_tools": {"web_search": {"count": 2}}},
        {"tool_usage": {"web_search": 2}},  # Volcengine
        {"num_search_queries": 2},  # Perplexity
    ],
)
def test_finding_clients_F17_searches_in_usage(usage: dict[str, Any]):
    result = found(CHAT, chat(**usage))
    assert result["web_searches"] == 2
    assert result["extras"]["x_search"] == ("x_search_calls" in str(usage))


def test_finding_clients_F17_sources_of_a_live_search():
    assert found(CHAT, chat(num_sources_used=5))["extras"]["search_source"] == 5
    # Where searches are told of, the sources are what they have found.
    details = {"web_search_calls": 2, "x_search_calls": 0}
    result = found(CHAT, chat(num_sources_used=5, server_side_tool_usage_details=details))
    assert (result["extras"]["search_source"], result["web_searches"]) == (0, 2)


def test_finding_clients_F17_searches_beside_usage():
    document = {**chat(), "tool_usage": {"web_search": {"num_requests": 2}}}
    assert found(RESPONSES, document)["web_searches"] == 2
    assert found(RESPONSES, {"type": "response.completed", "response": document})["web_searches"] == 2
    document = {"usage": {"input_tokens": 1, "output_tokens": 1, "server_tool_use": {"web_search_requests": 3}}}
    assert found(MESSAGES, document)["web_searches"] == 3


def test_finding_clients_F13_cached_sound_and_pictures():
    details = [{"modality": "TEXT", "tokenCount": 2000}, {"modality": "AUDIO", "tokenCount": 8000}]
    usage = {
        "promptTokenCount": 10000, "candidatesTokenCount": 10, "cachedContentTokenCount": 8000,
        "promptTokensDetails": details, "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 8000}],
    }  # fmt: skip
    result = found(GENERATE, {"usageMetadata": usage})
    assert (result["input_tokens"], result["cache_read_tokens"], result["audio_input_tokens"]) == (2000, 8000, 0)
    assert (result["audio_cache_read_tokens"], result["image_cache_read_tokens"]) == (8000, 0)
    usage["cacheTokensDetails"] = [{"modality": "AUDIO", "tokenCount": 5000}, {"modality": "TEXT", "tokenCount": 3000}]
    assert found(GENERATE, {"usageMetadata": usage})["audio_input_tokens"] == 2000
    given = {
        "cached_tokens": 700,
        "audio_tokens": 500,
        "cached_tokens_details": {"audio_tokens": 450, "text_tokens": 250},
    }
    result = found(CHAT, chat(prompt_tokens_details=given))
    assert (result["input_tokens"], result["audio_input_tokens"], result["image_input_tokens"]) == (300, 50, 0)
    assert (result["cache_read_tokens"], result["audio_cache_read_tokens"]) == (700, 450)
    # Names of Responses, images and realtime sessions; never more than was read in all.
    given |= {"cached_tokens_details": {"audio_tokens": 600, "image_tokens": 600}}
    for name in ("input_tokens_details", "input_token_details"):
        usage = {"input_tokens": 1000, "output_tokens": 1, name: given}
        for format in (RESPONSES, IMAGES):
            result = found(format, {"usage": usage})
            assert (result["audio_cache_read_tokens"], result["image_cache_read_tokens"]) == (600, 100)


def test_what_is_used_beside_tokens():
    output = [
        {"type": "file_search_call"}, {"type": "file_search_call"}, {"type": "image_generation_call"},
        {"type": "code_interpreter_call", "container_id": "a"}, {"type": "code_interpreter_call", "container_id": "a"},
        {"type": "shell_call", "environment": {"type": "container_reference", "container_id": "b"}},
    ]  # fmt: skip
    pictures = {
        "input_tokens": 60, "input_tokens_details": {"image_tokens": 10, "text_tokens": 50}, "output_tokens": 7024,
        "output_tokens_details": {"image_tokens": 7000, "text_tokens": 24}, "total_tokens": 7084,
    }  # fmt: skip
    extras = found(RESPONSES, {"output": output, "tool_usage": {"image_gen": pictures}, "model": "x"})["extras"]
    assert (extras["file_search"], extras["containers"], extras["pictures"]) == (2, 2, 1)
    assert extras["picture"] == (60, 10, -1, 7024, 24)
    entries = [
        {"type": "message", "input_tokens": 100, "output_tokens": 20},
        {
            "type": "advisor_message",
            "model": "o",
            "input_tokens": 800,
            "output_tokens": 600,
            "cache_read_input_tokens": 5,
        },
        {"type": "advisor_message", "model": "o", "input_tokens": 1, "output_tokens": 2},
    ]
    usage = {"input_tokens": 100, "output_tokens": 20, "iterations": entries}
    result = found(MESSAGES, {"usage": usage, "container": {"id": "c"}, "model": "claude"})
    assert result["extras"]["advisor"] == (801, 602, 5, 0, 0, 0)
    assert (result["extras"]["code"], result["model"], result["used"]) == (1, b"claude", True)
    assert (result["input_tokens"], result["output_tokens"]) == (100, 20)
    grounding = {"groundingChunks": [{"maps": {"uri": "u"}}], "imageSearchQueries": ["q"]}
    result = found(GENERATE, {"candidates": [{"groundingMetadata": grounding}], "modelVersion": "gemini-3"})
    assert (result["extras"]["maps"], result["web_searches"], result["model"]) == (1, 1, b"gemini-3")
