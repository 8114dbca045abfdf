"""The rule of evidence: every field of every dialect with values that no report should have, against its oracle."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay._fastpath import Rate, request_bounds, scan_request, tap, weigh_report
from relay.policy.tokenizers import table_for
from tests.support import evidence_oracle
from tests.support.tap_oracle import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    GENERATE,
    IMAGES,
    JSON,
    MESSAGES,
    RERANK,
    RESPONSES,
    SPEECH,
    SSE,
    TRANSCRIPTION,
)

TABLE = table_for("gpt-4o")
WORDS = "one two three four five six seven eight nine ten"
MOST = {"prompt_tokens": 20_000, "output_tokens": 70_000, "images": 2, "video_seconds": 60, "web_searches": 9}
OWN = {"input_tokens": 12, "output_tokens": 15, "images": 1, "video_seconds": 30, "web_searches": 1}
ABSENT, TWICE = object(), object()


def values(bound: int) -> list[Any]:
    """What a count may be replaced by."""
    wrong = ["12", 1.5, True, False, [12], {"a": 1}, -1, -(2**63)]
    return [ABSENT, None, *wrong, 0, 12.0, bound, bound + 1, 10**9, 2**40, 2**63, 10**30, TWICE]


def usage_openai() -> dict[str, Any]:
    return {
        "prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22, "cached_tokens": 1,
        "prompt_cache_hit_tokens": 1, "prompt_cache_miss_tokens": 9, "num_search_queries": 1,
        "prompt_tokens_details": {
            "cached_tokens": 1, "cache_write_tokens": 1, "audio_tokens": 1, "image_tokens": 1,
            "cache_creation_input_tokens": 1,
        },
        "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 1, "image_tokens": 1},
    }  # fmt: skip


def usage_responses() -> dict[str, Any]:
    return {
        "input_tokens": 10, "output_tokens": 12, "total_tokens": 22,
        "input_tokens_details": {"cached_tokens": 1}, "output_tokens_details": {"reasoning_tokens": 2},
    }  # fmt: skip


def usage_anthropic() -> dict[str, Any]:
    return {
        "input_tokens": 10, "output_tokens": 12, "cache_read_input_tokens": 1, "cache_creation_input_tokens": 3,
        "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2},
        "server_tool_use": {"web_search_requests": 1},
        "iterations": [{"type": "compaction", "input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": 1}],
    }  # fmt: skip


def usage_gemini() -> dict[str, Any]:
    return {
        "promptTokenCount": 10, "candidatesTokenCount": 12, "thoughtsTokenCount": 3, "cachedContentTokenCount": 1,
        "toolUsePromptTokenCount": 2, "totalTokenCount": 27,
        "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 1}],
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1}],
    }  # fmt: skip


def answer(format: int, usage: Any, *, stream: bool) -> tuple[int, bytes]:
    """A whole answer with that report: its kind and body."""
    said = None if usage is ABSENT else usage
    if format in (CHAT, COMPLETIONS):
        message = {"text": WORDS} if format == COMPLETIONS else {"delta" if stream else "message": {"content": WORDS}}
        document: dict[str, Any] = {"choices": [{"index": 0, "finish_reason": "stop", **message}], "usage": said}
        events = [document]
    elif format == RESPONSES:
        document = {"output": [{"type": "message", "content": [{"text": WORDS}]}], "usage": said}
        events = [
            {"type": "response.output_text.delta", "delta": WORDS},
            {"type": "response.completed", "response": {"usage": said}},
        ]
    elif format == MESSAGES:
        document = {"content": [{"type": "text", "text": WORDS}], "usage": said}
        events = [
            {"type": "message_start", "message": {"usage": {"output_tokens": 1}}},
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": WORDS}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": said},
            {"type": "message_stop"},
        ]
    elif format == GENERATE:
        document = {
            "candidates": [{"content": {"parts": [{"text": WORDS}]}, "finishReason": "STOP"}],
            "usageMetadata": said,
        }
        events = [document]
    elif format == IMAGES:
        document = {"data": [{"b64_json": "QUJD"}], "usage": said}
        events = [{"type": "image_generation.completed", "usage": said}]
    elif format == RERANK:
        document = {"results": [], "usage": said, "meta": {"billed_units": said}}
        events = [document]
    elif format == TRANSCRIPTION:
        document = {"text": WORDS, "usage": said, "duration": (said or {}).get("seconds")}
        events = [{"type": "transcript.text.done", "usage": said}]
    elif format == SPEECH:
        document = {}
        events = [{"type": "speech.audio.done", "usage": said}]
    else:
        document = {"data": [{"embedding": [0.5]}], "usage": said}
        events = [document]
    if stream:
        return SSE, b"".join(b"data: " + encoded(event) + b"\n\n" for event in events)
    return JSON, encoded(document)


class Doubled(dict):  # type: ignore[type-arg]
    """An object in which one key stands twice."""

    def __init__(self, usage: dict[str, Any], name: str) -> None:
        super().__init__(usage)
        self.name = name


def encoded(value: Any) -> bytes:
    if isinstance(value, Doubled):
        pairs = [(name, inner) for name, inner in value.items()] + [(value.name, 7)]
        return b"{" + b",".join(json.dumps(name).encode() + b":" + encoded(inner) for name, inner in pairs) + b"}"
    if isinstance(value, dict):
        return (
            b"{" + b",".join(json.dumps(name).encode() + b":" + encoded(inner) for name, inner in value.items()) + b"}"
        )
    if isinstance(value, list):
        return b"[" + b",".join(encoded(inner) for inner in value) + b"]"
    return json.dumps(value).encode()


def places(usage: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the numbers of a report stand."""
    if isinstance(usage, dict | list):
        inner = usage.items() if isinstance(usage, dict) else enumerate(usage)
        return [place for name, value in inner for place in places(value, (*path, name))]
    return [path] if isinstance(usage, int) else []


def put(usage: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A report with another value at that place."""
    name, *rest = path
    if isinstance(usage, list):
        return [put(inner, tuple(rest), value) if at == name else inner for at, inner in enumerate(usage)]
    if rest:
        return {**usage, name: put(usage[name], tuple(rest), value)}
    if value is ABSENT:
        return {key: inner for key, inner in usage.items() if key != name}
    return Doubled(usage, name) if value is TWICE else {**usage, name: value}


DIALECTS = {
    "chat": (CHAT, usage_openai, True),
    "completions": (COMPLETIONS, usage_openai, True),
    "responses": (RESPONSES, usage_responses, True),
    "messages": (MESSAGES, usage_anthropic, True),
    "generate": (GENERATE, usage_gemini, True),
    "embeddings": (EMBEDDINGS, lambda: {"prompt_tokens": 10, "total_tokens": 10}, False),
    "images": (IMAGES, usage_responses, True),
    "transcription": (TRANSCRIPTION, lambda: {**usage_responses(), "seconds": 4}, True),
    "speech": (SPEECH, usage_responses, True),
    "rerank": (RERANK, lambda: {"prompt_tokens": 10, "search_units": 1}, False),
}
PRICES: list[dict[str, int]] = [
    {"input": 3, "output": 5},
    {"image": 7, "video_second": 7, "web_search": 7},
    {"input": 3, "output": 5, "image": 7, "video_second": 7, "web_search": 7},
]


def judge(format: int, kind: int, body: bytes, prices: dict[str, int]) -> dict[str, Any]:
    found = tap(format, kind, [body], TABLE)
    rate = Rate(model=b"m", card="c", **prices)
    verdict = weigh_report(found, OWN, format=format, rate=rate, **MOST)
    assert verdict == evidence_oracle.weigh(found, OWN, MOST, format=format, prices=prices)
    return verdict


def within(usage: dict[str, int]) -> bool:
    prompt = sum(usage[name] for name in evidence_oracle.PROMPT)
    return (
        min(usage.values()) >= 0
        and prompt <= MOST["prompt_tokens"]
        and usage["output_tokens"] <= MOST["output_tokens"]
        and all(usage[name] <= MOST[name] for name in ("images", "video_seconds", "web_searches"))
        and usage["audio_input_tokens"] + usage["image_input_tokens"] <= usage["input_tokens"]
        and usage["audio_output_tokens"] + usage["image_output_tokens"] <= usage["output_tokens"]
    )


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_field_of_every_dialect_is_charged_within_the_bound(dialect: str, stream: bool):
    """Each usage field with each value: whatever stands there, what is charged is what the request can have had."""
    format, usage, streams = DIALECTS[dialect]
    if stream and not streams:
        stream = False
    for path, prices in itertools.product(places(usage()), PRICES):
        for bound in sorted(set(MOST.values())):
            for value in values(bound):
                kind, body = answer(format, put(usage(), path, value), stream=stream)
                verdict = judge(format, kind, body, prices)
                assert within(verdict["usage"]), (path, value)
                if format in (CHAT, RESPONSES, MESSAGES, GENERATE):
                    assert verdict["usage"]["output_tokens"] > 0, (path, value)
                    assert verdict["usage"]["input_tokens"] + verdict["usage"]["cache_read_tokens"] > 0, (path, value)


COUNTS = st.one_of(
    st.integers(-2, 30),
    st.sampled_from([20_000, 20_001, 70_000, 70_001, 10**9, 2**40, 2**63, "9", 0.5, 9.0, True, None, ABSENT]),
)


@settings(deadline=None, max_examples=400)
@given(
    data=st.data(),
    dialect=st.sampled_from(sorted(DIALECTS)),
    stream=st.booleans(),
    final=st.booleans(),
    delivered=st.booleans(),
    shown=st.booleans(),
    prices=st.sampled_from([None, *PRICES]),
    priority=st.booleans(),
)
def test_any_report_of_any_dialect(data, dialect, stream, final, delivered, shown, prices, priority):
    format, make, streams = DIALECTS[dialect]
    usage = make()
    for path in places(usage):
        if data.draw(st.booleans()):
            usage = put(usage, path, data.draw(COUNTS))
    kind, body = answer(format, usage, stream=stream and streams)
    found = tap(format, kind, [body], TABLE) | {"service": data.draw(st.integers(0, 3))}
    own = {
        "input_tokens": data.draw(st.integers(0, 40)),
        "output_tokens": data.draw(st.integers(0, 40)),
        **{
            name: data.draw(st.integers(0, 9))
            for name in ("images", "video_seconds", "web_searches", "image_output_tokens")
        },
    }
    rate = None if prices is None else Rate(model=b"m", card="c", **prices)
    how = {"priority": priority, "delivered": delivered, "shown": shown, "final": final}
    verdict = weigh_report(found, own, format=format, rate=rate, **how, **MOST)
    assert verdict == evidence_oracle.weigh(found, own, MOST, format=format, prices=prices, **how)
    assert within(verdict["usage"])
    assert priority or verdict["usage"]["service"] != evidence_oracle.PRIORITY


@pytest.mark.parametrize("bad", ["12", -1, 1.5, {}])
@pytest.mark.parametrize("total", [20_001, 10**9, 2**40, 2**63])
def test_finding_money_H1_a_sum_beside_a_prompt_that_is_no_number(bad: Any, total: int):
    """The prompt is then what the sum leaves: no more than it can have been."""
    reports: list[tuple[int, dict[str, Any]]] = [
        (CHAT, {"prompt_tokens": bad, "total_tokens": total}),
        (CHAT, {"prompt_tokens_details": {"cached_tokens": bad}, "total_tokens": total}),
        (RESPONSES, {"input_tokens": bad, "output_tokens": bad, "total_tokens": total}),
        (GENERATE, {"promptTokenCount": bad, "totalTokenCount": total}),
        (MESSAGES, {"input_tokens": bad, "iterations": [{"type": "compaction", "input_tokens": total}]}),
    ]
    for format, usage in reports:
        for stream in (False, True):
            kind, body = answer(format, usage, stream=stream)
            verdict = judge(format, kind, body, PRICES[0])
            assert within(verdict["usage"]), usage
            assert verdict["usage"]["input_tokens"] == OWN["input_tokens"]
            assert verdict["estimated"]


@settings(deadline=None)
@given(
    format=st.sampled_from([CHAT, COMPLETIONS, RESPONSES, MESSAGES, GENERATE, EMBEDDINGS, RERANK, IMAGES, SPEECH]),
    text=st.text(max_size=200),
    limit=st.one_of(st.none(), st.integers(0, 2**31 - 1)),
    choices=st.integers(1, 8),
    tools=st.sampled_from([None, "function", "custom", "code_interpreter", "mcp"]),
    most=st.sampled_from([0, 4096, 1 << 17]),
)
def test_bounds_are_their_oracle(format, text, limit, choices, tools, most):
    body: dict[str, Any] = {
        "model": "m",
        "prompt": text,
        "messages": [{"role": "user", "content": text}],
        "input": text,
    }
    if format == GENERATE:
        body = {"contents": [{"parts": [{"text": text}]}]}
        body["generationConfig"] = {"maxOutputTokens": limit, "candidateCount": choices}
    elif format == RESPONSES:
        body |= {"max_output_tokens": limit, "previous_response_id": "resp_1" if len(text) % 2 else None}
    else:
        body |= {"max_tokens": limit, "n": choices}
    if tools is not None and format in (CHAT, RESPONSES, MESSAGES):
        body["tools"] = [{"type": "function", "name": "f"}, {"type": tools}]
    data = json.dumps(body).encode()
    scanned = scan_request(format, data, TABLE)
    assert not scanned["error"]
    found = request_bounds(format, data, TABLE, most)
    assert found == evidence_oracle.bounds(format, data, scanned, most)
    assert found["prompt_tokens"] >= scanned["prompt_tokens"]
