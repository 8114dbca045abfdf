"""Answers as providers send them, with what they must be billed: every variant known of where usage stands."""

import json
from typing import Any, NamedTuple

from tests.support.tap_oracle import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    GENERATE,
    IMAGES,
    JSON,
    JSON_ARRAY,
    MESSAGES,
    MODERATIONS,
    RERANK,
    RESPONSES,
    SPEECH,
    SSE,
    TRANSCRIPTION,
)


class Answer(NamedTuple):
    name: str
    format: int
    kind: int
    body: bytes
    expected: dict[str, Any]  # of what `tap` finds; a dimension that is not named is 0


def sse(*events: Any, end: str = "\n", named: bool = False, done: bool = False) -> bytes:
    """A stream of events; bytes and text go in as they are."""
    out = []
    for event in events:
        if isinstance(event, (bytes, str)):
            out.append(event.encode() if isinstance(event, str) else event)
            continue
        name = f"event: {event['type']}{end}" if named else ""
        out.append(f"{name}data: {json.dumps(event)}{end}{end}".encode())
    if done:
        out.append(f"data: [DONE]{end}{end}".encode())
    return b"".join(out)


def chunk(delta: Any = None, **extra: Any) -> dict[str, Any]:
    """A chunk of a chat stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": None}]
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": choices, **extra}


def finish(**extra: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {}, "finish_reason": "stop", **extra}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}


OPENAI_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 16, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 8, "audio_tokens": 0, "accepted_prediction_tokens": 0},
}
OPENAI_BILL = {"input_tokens": 20, "cache_read_tokens": 64, "cache_write_tokens": 16, "output_tokens": 20}
SMALL = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
SMALL_BILL = {"input_tokens": 9, "output_tokens": 4}
SEEN = {"usage_seen": True, "output_seen": True, "terminal_seen": True}

RESPONSES_USAGE = {
    "input_tokens": 50,
    "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 5},
    "output_tokens": 30,
    "output_tokens_details": {"reasoning_tokens": 12},
    "total_tokens": 80,
}
RESPONSES_BILL = {"input_tokens": 35, "cache_read_tokens": 10, "cache_write_tokens": 5, "output_tokens": 30}


def search_call(kind: str | None = "search") -> dict[str, Any]:
    item: dict[str, Any] = {"id": "ws_1", "type": "web_search_call", "status": "completed"}
    if kind is not None:
        item["action"] = {"type": kind, "query": "weather"}
    return item


ANTHROPIC_START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "claude-x",
        "stop_reason": None,
        "usage": {
            "input_tokens": 25,
            "cache_creation_input_tokens": 300,
            "cache_read_input_tokens": 1000,
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
            "output_tokens": 1,
            "service_tier": "standard",
        },
    },
}
ANTHROPIC_BODY = [
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Let me see"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "QUJD" * 20}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Grüße, 世界 🌍"}},
    {"type": "content_block_stop", "index": 1},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}},
    },
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"city": "P'}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": 'aris"}'}},
    {"type": "content_block_stop", "index": 2},
]
ANTHROPIC_BILL = {
    "input_tokens": 25,
    "cache_read_tokens": 1000,
    "cache_write_tokens": 100,
    "cache_write_1h_tokens": 200,
}


def message_delta(usage: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage}


STOP = {"type": "message_stop"}


def gemini(text: str | None = None, usage: dict[str, Any] | None = None, **extra: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"index": 0}
    if text is not None:
        candidate["content"] = {"parts": [{"text": text}], "role": "model"}
    candidate.update(extra)
    out: dict[str, Any] = {"candidates": [candidate]}
    if usage is not None:
        out["usageMetadata"] = usage
    out["modelVersion"] = "gemini-3-pro"
    return out


GEMINI_USAGE = {
    "promptTokenCount": 40,
    "candidatesTokenCount": 12,
    "thoughtsTokenCount": 30,
    "cachedContentTokenCount": 16,
    "toolUsePromptTokenCount": 7,
    "totalTokenCount": 89,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 40}],
}
GEMINI_BILL = {"input_tokens": 31, "cache_read_tokens": 16, "output_tokens": 42}
GEMINI_STREAM = [
    gemini("Hello ", {"promptTokenCount": 40, "totalTokenCount": 40}),
    gemini("there", {"promptTokenCount": 40, "candidatesTokenCount": 3, "totalTokenCount": 43}),
    gemini("!", GEMINI_USAGE, finishReason="STOP"),
]

HELLO = [chunk({"role": "assistant", "content": ""}), chunk({"content": "Hello"}), chunk({"content": " world"})]


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


ANSWERS = [
    # OpenAI chat
    Answer(
        "chat json",
        CHAT,
        JSON,
        dumps(
            {
                "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
                "usage": OPENAI_USAGE,
            }
        ),
        {**OPENAI_BILL, **SEEN, "events": 1},
    ),
    Answer(
        "chat stream with usage",
        CHAT,
        SSE,
        sse(*[{**e, "usage": None} for e in HELLO], finish(), chunk(usage=OPENAI_USAGE), done=True),
        {**OPENAI_BILL, **SEEN, "events": 6},
    ),
    Answer(
        "chat stream without usage",
        CHAT,
        SSE,
        sse(*HELLO, finish(), done=True),
        {"usage_seen": False, "output_seen": False, "terminal_seen": True, "finish_seen": True},
    ),
    Answer(
        "chat stream cut before usage",
        CHAT,
        SSE,
        sse(*HELLO, finish()),
        {"usage_seen": False, "terminal_seen": False, "finish_seen": True},
    ),
    Answer(
        "chat stream with tool calls and reasoning",
        CHAT,
        SSE,
        sse(
            chunk({"role": "assistant", "reasoning_content": "Hmm, "}),
            chunk({"reasoning": "the weather?"}),
            chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "get", "arguments": ""}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]}),
            chunk({"refusal": "No."}),
            finish(),
            chunk(usage=SMALL),
            done=True,
        ),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "chat stream of three choices",
        CHAT,
        SSE,
        sse(
            *[
                {"choices": [{"index": i, "delta": {"content": text}}]}
                for i, text in [(0, "inter"), (1, "sec"), (2, "wor"), (0, "national"), (1, "ond"), (2, "ld")]
            ],
            {"choices": [], "usage": SMALL},
            done=True,
        ),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "explicit zeros",
        CHAT,
        JSON,
        dumps({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}),
        SEEN,
    ),
    Answer(
        "usage null",
        CHAT,
        JSON,
        dumps({"choices": [], "usage": None}),
        {"usage_seen": False, "terminal_seen": True},
    ),
    Answer(
        "legacy completion stream",
        COMPLETIONS,
        SSE,
        sse(
            {"choices": [{"index": 0, "text": "Once upon", "finish_reason": None}]},
            {"choices": [{"index": 0, "text": " a time", "finish_reason": "length"}]},
            {"choices": [], "usage": SMALL},
            done=True,
        ),
        {**SMALL_BILL, **SEEN},
    ),
    # the variants of its shape
    Answer(
        "deepseek",
        CHAT,
        SSE,
        sse(
            ": keep-alive\n\n",
            *HELLO,
            ": keep-alive\n\n",
            {
                **finish(),
                "usage": {**SMALL, "prompt_cache_hit_tokens": 6, "prompt_cache_miss_tokens": 3},
            },
            done=True,
        ),
        {"input_tokens": 3, "cache_read_tokens": 6, "output_tokens": 4, **SEEN},
    ),
    Answer(
        "deepseek blank lines before json",
        CHAT,
        JSON,
        b"\n\n\r\n  \n" + dumps({"choices": [{"message": {"content": "x"}}], "usage": SMALL}),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "deepseek without prompt_tokens",
        CHAT,
        JSON,
        dumps({"usage": {"prompt_cache_hit_tokens": 5, "prompt_cache_miss_tokens": 4, "completion_tokens": 1}}),
        {"input_tokens": 4, "cache_read_tokens": 5, "output_tokens": 1, **SEEN},
    ),
    Answer(
        "qwen cache creation",
        CHAT,
        JSON,
        dumps(
            {
                "usage": {
                    **SMALL,
                    "prompt_tokens_details": {"cached_tokens": 2, "cache_creation_input_tokens": 3},
                }
            }
        ),
        {"input_tokens": 4, "cache_read_tokens": 2, "cache_write_tokens": 3, "output_tokens": 4, **SEEN},
    ),
    Answer(
        "kimi usage in the choice",
        CHAT,
        SSE,
        sse(*HELLO, finish(usage={**SMALL, "cached_tokens": 8}), done=True),
        {"input_tokens": 1, "cache_read_tokens": 8, "output_tokens": 4, **SEEN},
    ),
    Answer(
        "groq",
        CHAT,
        SSE,
        sse(*HELLO, {**finish(), "x_groq": {"id": "req_1", "usage": {**SMALL, "queue_time": 0.03}}}, done=True),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "xai reasoning outside",
        CHAT,
        JSON,
        dumps(
            {
                "usage": {
                    "prompt_tokens": 32,
                    "completion_tokens": 9,
                    "total_tokens": 135,
                    "completion_tokens_details": {"reasoning_tokens": 94},
                    "cost_in_usd_ticks": 123456,
                }
            }
        ),
        {"input_tokens": 32, "output_tokens": 103, **SEEN},
    ),
    Answer(
        "vllm continuous usage",
        CHAT,
        SSE,
        sse(
            {**HELLO[0], "usage": {"prompt_tokens": 9, "total_tokens": 9, "completion_tokens": 0}},
            {**HELLO[1], "usage": {"prompt_tokens": 9, "total_tokens": 10, "completion_tokens": 1}},
            {**HELLO[2], "usage": {"prompt_tokens": 9, "total_tokens": 11, "completion_tokens": 2}},
            chunk(usage=SMALL),
            done=True,
        ),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "openrouter",
        CHAT,
        SSE,
        sse(
            ": OPENROUTER PROCESSING\n\n",
            *HELLO,
            {**finish(), "usage": {**SMALL, "cost": 0.00014, "cost_details": {"upstream_inference_cost": None}}},
            done=True,
        ),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "openrouter error",
        CHAT,
        SSE,
        sse(*HELLO, {"error": {"code": 502, "message": "Provider disconnected"}, **finish()}),
        {"error_seen": True, "terminal_seen": False, "usage_seen": False},
    ),
    Answer(
        "mistral usage unasked, in the finish chunk",
        CHAT,
        SSE,
        sse(*HELLO, {**finish(), "usage": SMALL}, done=True),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "mistral content parts",
        CHAT,
        SSE,
        sse(chunk({"content": [{"type": "text", "text": "Bon"}]}), chunk({"content": "jour"}), done=True),
        {"usage_seen": False, "terminal_seen": True},
    ),
    Answer(
        "perplexity",
        CHAT,
        JSON,
        dumps({"usage": {**SMALL, "search_context_size": "low", "num_search_queries": 3}}),
        {**SMALL_BILL, "web_searches": 3, **SEEN},
    ),
    # Responses
    Answer(
        "responses json",
        RESPONSES,
        JSON,
        dumps(
            {
                "status": "completed",
                "error": None,
                "output": [
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Thinking"}]},
                    search_call(),
                    search_call("open_page"),
                    search_call("find_in_page"),
                    search_call(None),
                    {"type": "image_generation_call", "status": "completed", "result": "iVBORw0KGgo" * 50},
                    {"type": "function_call", "name": "f", "arguments": '{"a": 1}', "call_id": "c"},
                    {"type": "message", "content": [{"type": "output_text", "text": "It rains."}]},
                ],
                "usage": RESPONSES_USAGE,
            }
        ),
        {**RESPONSES_BILL, "web_searches": 2, "images": 1, **SEEN},
    ),
    Answer(
        "responses stream",
        RESPONSES,
        SSE,
        sse(
            {"type": "response.created", "sequence_number": 0, "response": {"output": [], "usage": None}},
            {"type": "response.output_item.added", "sequence_number": 1, "item": search_call()},
            {"type": "response.output_item.done", "sequence_number": 2, "item": search_call()},
            {"type": "response.output_text.delta", "sequence_number": 3, "delta": "It "},
            {"type": "response.output_text.delta", "sequence_number": 4, "delta": "rains."},
            {"type": "response.output_audio.delta", "sequence_number": 5, "delta": "QUJDREVG" * 9},
            {"type": "response.function_call_arguments.delta", "sequence_number": 6, "delta": '{"a":1}'},
            {"type": "response.output_text.done", "sequence_number": 7, "text": "It rains."},
            {
                "type": "response.completed",
                "sequence_number": 8,
                "response": {
                    "status": "completed",
                    "error": None,
                    "output": [search_call(), {"type": "message", "content": [{"text": "It rains."}]}],
                    "usage": RESPONSES_USAGE,
                },
            },
            named=True,
        ),
        {**RESPONSES_BILL, "web_searches": 1, "sequence_number": 8, "events": 9, "error_seen": False, **SEEN},
    ),
    Answer(
        "responses incomplete",
        RESPONSES,
        SSE,
        sse({"type": "response.incomplete", "sequence_number": 1, "response": {"usage": RESPONSES_USAGE}}, named=True),
        {**RESPONSES_BILL, **SEEN},
    ),
    Answer(
        "responses failed",
        RESPONSES,
        SSE,
        sse(
            {
                "type": "response.failed",
                "sequence_number": 1,
                "response": {"error": {"code": "server_error", "message": "x"}, "usage": RESPONSES_USAGE},
            },
            named=True,
        ),
        {**RESPONSES_BILL, "error_seen": True, **SEEN},
    ),
    Answer(
        "responses cut behind two searches",
        RESPONSES,
        SSE,
        sse(
            *[{"type": "response.output_item.done", "sequence_number": i, "item": search_call()} for i in range(2)],
            {"item": search_call(), "sequence_number": 7, "type": "response.output_item.done"},
            {"type": "error", "sequence_number": 8, "error": {"message": "x"}},
        ),
        {"web_searches": 3, "usage_seen": False, "terminal_seen": False, "error_seen": True, "sequence_number": 8},
    ),
    # embeddings, images, audio
    Answer(
        "embeddings",
        EMBEDDINGS,
        JSON,
        dumps(
            {
                "data": [{"embedding": [0.25, -1.5e-3, 7], "index": 0}],
                "usage": {"prompt_tokens": 8, "total_tokens": 8},
            }
        ),
        {"input_tokens": 8, "usage_seen": True, "output_seen": False, "terminal_seen": True, "images": 0},
    ),
    Answer("moderations", MODERATIONS, JSON, dumps({"results": [{"flagged": False}]}), {"usage_seen": False}),
    Answer(
        "rerank",
        RERANK,
        JSON,
        dumps({"results": [{"index": 0, "relevance_score": 0.9}], "usage": {"total_tokens": 30}}),
        {"input_tokens": 30, "usage_seen": True},
    ),
    Answer(
        "images by count",
        IMAGES,
        JSON,
        dumps({"created": 1, "data": [{"b64_json": "iVBOR" * 40}, {"url": "https://x/y.png"}]}),
        {"images": 2, "usage_seen": False, "terminal_seen": True},
    ),
    Answer(
        "images by tokens",
        IMAGES,
        JSON,
        dumps(
            {
                "data": [{"b64_json": "iVBOR" * 40}],
                "usage": {
                    "input_tokens": 50,
                    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
                    "output_tokens": 4160,
                    "total_tokens": 4210,
                },
            }
        ),
        {
            "images": 1,
            "input_tokens": 50,
            "image_input_tokens": 40,
            "output_tokens": 4160,
            "image_output_tokens": 4160,
            **SEEN,
        },
    ),
    Answer(
        "images by tokens, with text among them",
        IMAGES,
        JSON,
        dumps(
            {
                "data": [{"b64_json": "iVBOR" * 40}],
                "usage": {
                    "input_tokens": 50,
                    "input_tokens_details": {"text_tokens": 50, "image_tokens": 0},
                    "output_tokens": 4200,
                    "output_tokens_details": {"text_tokens": 40, "image_tokens": 4160},
                    "total_tokens": 4250,
                },
            }
        ),
        {"images": 1, "input_tokens": 50, "output_tokens": 4200, "image_output_tokens": 4160, **SEEN},
    ),
    Answer(
        "image stream",
        IMAGES,
        SSE,
        sse(
            {"type": "image_generation.partial_image", "b64_json": "iVBOR" * 40, "partial_image_index": 0},
            {
                "type": "image_generation.completed",
                "b64_json": "iVBOR" * 40,
                "usage": {"input_tokens": 5, "output_tokens": 100, "total_tokens": 105},
            },
            named=True,
        ),
        {"images": 1, "input_tokens": 5, "output_tokens": 100, "image_output_tokens": 100, **SEEN},
    ),
    Answer(
        "transcription by tokens",
        TRANSCRIPTION,
        JSON,
        dumps(
            {
                "text": "Hello",
                "usage": {
                    "type": "tokens",
                    "input_tokens": 14,
                    "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
                    "output_tokens": 5,
                    "total_tokens": 19,
                },
            }
        ),
        {"input_tokens": 14, "output_tokens": 5, **SEEN},
    ),
    Answer(
        "transcription by duration",
        TRANSCRIPTION,
        JSON,
        dumps({"text": "Hello", "usage": {"type": "duration", "seconds": 3}}),
        {"video_seconds": 3, "usage_seen": True, "terminal_seen": True},
    ),
    Answer(
        "transcription with a duration alone",
        TRANSCRIPTION,
        JSON,
        dumps({"task": "transcribe", "duration": 8.470000267028809, "text": "Hello"}),
        {"video_seconds": 9, "usage_seen": True, "terminal_seen": True},
    ),
    Answer(
        "rerank by search units",
        RERANK,
        JSON,
        dumps({"results": [{"index": 0, "relevance_score": 0.5}], "meta": {"billed_units": {"search_units": 2}}}),
        {"web_searches": 2, "usage_seen": True, "terminal_seen": True},
    ),
    Answer(
        "transcription stream",
        TRANSCRIPTION,
        SSE,
        sse(
            {"type": "transcript.text.delta", "delta": "Hel"},
            {"type": "transcript.text.delta", "delta": "lo"},
            {
                "type": "transcript.text.done",
                "text": "Hello",
                "usage": {"type": "tokens", "input_tokens": 14, "output_tokens": 5, "total_tokens": 19},
            },
        ),
        {"input_tokens": 14, "output_tokens": 5, **SEEN},
    ),
    Answer(
        "speech stream",
        SPEECH,
        SSE,
        sse(
            {"type": "speech.audio.delta", "audio": "QUJD" * 30},
            {"type": "speech.audio.done", "usage": {"input_tokens": 6, "output_tokens": 60, "total_tokens": 66}},
        ),
        {"input_tokens": 6, "output_tokens": 60, **SEEN},
    ),
    # Anthropic
    Answer(
        "anthropic json",
        MESSAGES,
        JSON,
        dumps(
            {
                "type": "message",
                "content": [
                    {"type": "thinking", "thinking": "Hmm", "signature": "QUJD"},
                    {"type": "text", "text": "Hi"},
                    {"type": "tool_use", "id": "t", "name": "f", "input": {"a": [1, 2.5, None], "b": "ü"}},
                    {"type": "web_search_tool_result", "content": [{"title": "x", "encrypted_content": "y"}]},
                ],
                "stop_reason": "tool_use",
                "usage": {
                    "input_tokens": 5,
                    "cache_creation_input_tokens": 7,
                    "cache_read_input_tokens": 11,
                    "output_tokens": 13,
                    "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
                },
            }
        ),
        {
            "input_tokens": 5,
            "cache_write_tokens": 7,
            "cache_read_tokens": 11,
            "output_tokens": 13,
            "web_searches": 2,
            **SEEN,
        },
    ),
    Answer(
        "anthropic stream",
        MESSAGES,
        SSE,
        sse(ANTHROPIC_START, *ANTHROPIC_BODY, message_delta({"output_tokens": 77}), STOP, named=True),
        {**ANTHROPIC_BILL, "output_tokens": 77, "finish_seen": True, **SEEN, "events": 15},
    ),
    Answer(
        "anthropic stream, cumulative deltas",
        MESSAGES,
        SSE,
        sse(
            ANTHROPIC_START,
            *ANTHROPIC_BODY,
            message_delta({"input_tokens": 30, "output_tokens": 50, "cache_read_input_tokens": None}),
            message_delta(
                {
                    "input_tokens": 31,
                    "output_tokens": 60,
                    "cache_read_input_tokens": 1200,
                    "cache_creation_input_tokens": 350,
                    "server_tool_use": {"web_search_requests": 3},
                }
            ),
            STOP,
            named=True,
        ),
        {
            "input_tokens": 31,
            "cache_read_tokens": 1200,
            "cache_write_tokens": 150,
            "cache_write_1h_tokens": 200,
            "output_tokens": 60,
            "web_searches": 3,
            **SEEN,
        },
    ),
    Answer(
        "anthropic stream cut behind its start",
        MESSAGES,
        SSE,
        sse(ANTHROPIC_START, *ANTHROPIC_BODY[:7], named=True),
        {
            **ANTHROPIC_BILL,
            "output_tokens": 1,
            "usage_seen": True,
            "output_seen": False,
            "terminal_seen": False,
        },
    ),
    Answer(
        "anthropic error behind the start",
        MESSAGES,
        SSE,
        sse(
            ANTHROPIC_START,
            {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
            named=True,
        ),
        {**ANTHROPIC_BILL, "output_tokens": 1, "error_seen": True, "terminal_seen": False},
    ),
    Answer(
        "anthropic compaction",
        MESSAGES,
        SSE,
        sse(
            ANTHROPIC_START,
            message_delta(
                {
                    "output_tokens": 60,
                    "iterations": [
                        {"type": "compaction", "input_tokens": 5000, "output_tokens": 400},
                        {"type": "message", "input_tokens": 25, "output_tokens": 60},
                    ],
                }
            ),
            message_delta(
                {
                    "output_tokens": 61,
                    "iterations": [
                        {
                            "input_tokens": 5001,
                            "output_tokens": 401,
                            "cache_read_input_tokens": 3,
                            "cache_creation_input_tokens": 10,
                            "cache_creation": {"ephemeral_1h_input_tokens": 4, "ephemeral_5m_input_tokens": 6},
                            "type": "compaction",
                        },
                        {"type": "message", "input_tokens": 25, "output_tokens": 61},
                        {"type": "advisor_message", "model": "other", "input_tokens": 9, "output_tokens": 9},
                    ],
                }
            ),
            STOP,
            named=True,
        ),
        {
            "input_tokens": 25 + 5001,
            "cache_read_tokens": 1003,
            "cache_write_tokens": 106,
            "cache_write_1h_tokens": 204,
            "output_tokens": 61 + 401,
            **SEEN,
        },
    ),
    Answer(
        "anthropic split without a total",
        MESSAGES,
        JSON,
        dumps(
            {
                "type": "message",
                "usage": {
                    "input_tokens": 1,
                    "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
                    "output_tokens": 2,
                },
            }
        ),
        {
            "input_tokens": 1,
            "cache_write_tokens": 3,
            "cache_write_1h_tokens": 4,
            "output_tokens": 2,
            **SEEN,
        },
    ),
    # Gemini
    Answer(
        "gemini json",
        GENERATE,
        JSON,
        dumps(
            {
                "candidates": [
                    {
                        "content": {
                            "parts": [
                                {"text": "Let me think", "thought": True},
                                {"text": "Hi"},
                                {"functionCall": {"name": "f", "args": {"x": [1, 2e3], "y": {"z": "ö"}}}},
                            ]
                        },
                        "finishReason": "STOP",
                    }
                ],
                "usageMetadata": GEMINI_USAGE,
            }
        ),
        {**GEMINI_BILL, **SEEN},
    ),
    Answer("gemini sse", GENERATE, SSE, sse(*GEMINI_STREAM, end="\r\n"), {**GEMINI_BILL, **SEEN, "events": 3}),
    Answer(
        "gemini array",
        GENERATE,
        JSON_ARRAY,
        b"[" + b"\r\n,\r\n".join(map(dumps, GEMINI_STREAM)) + b"\r\n]",
        {**GEMINI_BILL, **SEEN, "events": 3},
    ),
    Answer(
        "gemini array error",
        GENERATE,
        JSON_ARRAY,
        b'[{"error": {"code": 503, "message": "x", "status": "UNAVAILABLE"}}]',
        {"error_seen": True, "usage_seen": False},
    ),
    Answer(
        "gemini cut before candidates count",
        GENERATE,
        SSE,
        sse(GEMINI_STREAM[0], end="\r\n"),
        {"input_tokens": 40, "usage_seen": True, "output_seen": False, "terminal_seen": False},
    ),
    Answer(
        "gemini blocked prompt",
        GENERATE,
        SSE,
        sse(
            {
                "promptFeedback": {"blockReason": "SAFETY"},
                "usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 5},
            },
            end="\r\n",
        ),
        {"input_tokens": 5, "usage_seen": True, "terminal_seen": True},
    ),
    Answer(
        "gemini images",
        GENERATE,
        SSE,
        sse(
            {
                "candidates": [
                    {
                        "content": {
                            "parts": [
                                {"text": "Here"},
                                {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo" * 60}},
                                {"inlineData": {"mimeType": "audio/wav", "data": "UklGRg" * 9}},
                            ]
                        },
                        "finishReason": "STOP",
                    }
                ],
                "usageMetadata": {
                    "promptTokenCount": 8,
                    "candidatesTokenCount": 1300,
                    "totalTokenCount": 1308,
                    "candidatesTokensDetails": [
                        {"modality": "TEXT", "tokenCount": 10},
                        {"tokenCount": 1290, "modality": "IMAGE"},
                    ],
                },
            },
            end="\r\n",
        ),
        {"input_tokens": 8, "output_tokens": 1300, "image_output_tokens": 1290, "images": 1, **SEEN},
    ),
    Answer(
        "gemini 3 search",
        GENERATE,
        SSE,
        sse(
            gemini("a", groundingMetadata={"webSearchQueries": ["x", "", "y"]}),
            gemini("b", GEMINI_USAGE, groundingMetadata={"webSearchQueries": ["y", "z"]}, finishReason="STOP"),
            end="\r\n",
        ),
        {**GEMINI_BILL, "web_searches": 3, **SEEN},
    ),
    Answer(
        "gemini 2 search",
        GENERATE,
        JSON,
        dumps(
            {
                **gemini("a", GEMINI_USAGE, groundingMetadata={"webSearchQueries": ["x", "y"]}, finishReason="STOP"),
                "modelVersion": "gemini-2.5-flash",
            }
        ),
        {**GEMINI_BILL, "web_searches": 1, **SEEN},
    ),
    # odd framing
    Answer(
        "cr line ends",
        CHAT,
        SSE,
        sse(*HELLO, finish(), chunk(usage=SMALL), end="\r", done=True),
        {**SMALL_BILL, **SEEN, "events": 6},
    ),
    Answer(
        "crlf line ends and a byte order mark",
        CHAT,
        SSE,
        b"\xef\xbb\xbf" + sse(*HELLO, finish(), chunk(usage=SMALL), end="\r\n", done=True),
        {**SMALL_BILL, **SEEN, "events": 6},
    ),
    Answer(
        "multi-line data, no space, other fields",
        CHAT,
        SSE,
        b'id: 7\nretry: 3\nevent: x\ndata:{"choices":\ndata:[],"usage":{"prompt_tokens": 9\n: note\n'
        b'data:,"completion_tokens":\ndata\ndata: 4\ndata:}}\ndatum: x\n\n\n\n: c\n\ndata: [DONE]',
        {**SMALL_BILL, **SEEN, "events": 1},
    ),
    Answer(
        "not utf-8, control characters",
        CHAT,
        SSE,
        b'data: {"choices":[{"delta":{"content":"caf\xe9 \x01 \xff"}}],"usage":{"prompt_tokens":9,'
        b'"completion_tokens":4}}\n\ndata: [DONE]\n\n',
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "garbage between",
        CHAT,
        SSE,
        sse(
            "data: {]\n\n",
            "data: hello\n\n",
            "data:\n\n",
            "garbage\n\n",
            HELLO[1],
            'data: {"usage": {"prompt_tokens": 1\n\n',
            chunk(usage=SMALL),
            "data: [DONE\n\n",
            "data: [DONE]\n\n",
        ),
        {**SMALL_BILL, **SEEN, "events": 8},
    ),
    Answer(
        "last event without its blank line",
        CHAT,
        SSE,
        sse(*HELLO, chunk(usage=SMALL)).rstrip(b"\n"),
        {**SMALL_BILL, "usage_seen": True, "terminal_seen": False, "events": 4},
    ),
]
