"""Request bodies as SDKs send them, with what the scanner must find in them."""

from typing import Any

from tests.support.tap_oracle import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    GEMINI_COUNT,
    GEMINI_EMBED,
    GENERATE,
    MESSAGES,
    RESPONSES,
)

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Wie ist das Wetter? 天気",
        "parameters": {"type": "object", "properties": {"type": {"type": "string", "enum": ["a\n", 'b"']}}},
    },
}
REQUESTS: list[tuple[int, Any, dict[str, Any]]] = [
    (
        CHAT,
        {
            "model": "gpt-4o",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "Grüße 🌍"}, {"type": "text", "text": '\t\\"\n'}],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"city": "P"}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "sunny", "name": "get"},
            ],
            "tools": [TOOL, TOOL],
            "tool_choice": "auto",
            "stream": True,
            "stream_options": {"include_usage": True, "x": [{}]},
            "max_tokens": 100,
            "max_completion_tokens": 200,
            "n": 2,
            "temperature": 0.7,
            "metadata": {"model": "other", "stream": "x", "messages": 7},
            "user": "u",
        },
        {
            "model": b"gpt-4o",
            "stream": 1,
            "include_usage": 1,
            "output_limit": 200,
            "choices": 2,
        },
    ),
    (
        COMPLETIONS,
        {"model": "m", "prompt": ["a b", "c d"], "max_tokens": 16, "n": 2, "best_of": 4, "stream": False},
        {"output_limit": 16, "choices": 4, "stream": 0},
    ),
    (COMPLETIONS, {"model": "m", "prompt": [[1, 2, 3], [4]]}, {"prompt_tokens": 4}),
    (
        RESPONSES,
        {
            "model": "gpt-5",
            "instructions": "Be good.",
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi there"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'},
                {"type": "function_call_output", "call_id": "c", "output": "42"},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Thought"}]},
            ],
            "max_output_tokens": 64,
            "tools": [{"type": "web_search_preview"}],
            "stream": True,
            "background": False,
        },
        {"output_limit": 64, "web_search": True, "stream": 1, "background": False, "stored_context": False},
    ),
    (
        RESPONSES,
        {"model": "m", "input": "Hello", "background": True, "previous_response_id": "resp_1"},
        {"background": True, "stored_context": True},
    ),
    (EMBEDDINGS, {"model": "m", "input": ["one", "two"]}, {"model": b"m"}),
    (EMBEDDINGS, {"model": "m", "input": [10, 20, 30]}, {"prompt_tokens": 3}),
    (
        MESSAGES,
        {
            "model": "claude-x",
            "max_tokens": 1024,
            "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hmm", "signature": "QUJD" * 50},
                        {"type": "tool_use", "id": "t", "name": "f", "input": {"x": [1, 2.50, True, None], "y": "ü\n"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "Result"}]},
                        {"type": "tool_result", "tool_use_id": "t", "content": "Plain"},
                    ],
                },
            ],
            "tools": [
                {"name": "f", "description": "d", "input_schema": {"type": "object"}},
                {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
            ],
            "stream": True,
            "thinking": {"type": "enabled", "budget_tokens": 1000},
        },
        {"output_limit": 1024, "web_search": True, "stream": 1},
    ),
    (COUNT_TOKENS, {"model": "claude-x", "messages": [{"role": "user", "content": "Hi"}]}, {"stream": -1}),
    (
        GENERATE,
        {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Hello"}, {"text": "world"}]},
                {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": [1]}}}]},
                {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"r": "x"}}}]},
            ],
            "tools": [{"functionDeclarations": [{"name": "f", "parameters": {}}]}, {"googleSearch": {}}],
            "generationConfig": {"maxOutputTokens": 99, "candidateCount": 3},
            "stream": "a field of no meaning here",
        },
        {"model": None, "output_limit": 99, "choices": 3, "web_search": True, "stream": -1},
    ),
    (GEMINI_COUNT, {"contents": {"parts": {"text": "Hello"}}}, {}),
    (GEMINI_EMBED, {"content": {"parts": [{"text": "Hello"}]}}, {}),
]
