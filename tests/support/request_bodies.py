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
    IMAGES,
    MESSAGES,
    OTHER,
    RERANK,
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


def in_message(*parts: Any) -> dict[str, Any]:
    return {"model": "x", "messages": [{"role": "user", "content": list(parts)}]}


SCREENSHOT = {"type": "computer_call_output", "output": {"type": "computer_screenshot", "file_id": "f4"}}
SANDBOX = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["f6", "f7"]}}
# Bodies that name files, with the names.
NAMED: list[tuple[int, Any, list[str]]] = [
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
        ["f1", "f2", "f3", "f4", "f6", "f7", "f5", "f8", "f6", "f7", "f0", "f9"],
    ),
    (MESSAGES, in_message("t") | {"container": "c1"}, ["c1"]),
    (COUNT_TOKENS, in_message("t") | {"container": {"id": "c1", "skills": [{"skill_id": "s", "id": "c2"}]}}, ["c1"]),
    (
        RESPONSES,
        {
            "model": "x",
            "container": "no place of a sandbox",
            "tools": [
                {"type": "shell", "environment": {"type": "container_reference", "container_id": "c1"}},
                {"type": "code_interpreter", "container": "c2"},
                {"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["f1"]}},
                {"type": "function", "name": "container", "parameters": {"container_id": {"type": "string"}}},
            ],
        },
        ["c1", "c2", "f1"],
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
]
