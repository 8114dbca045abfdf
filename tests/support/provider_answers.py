"""Answers in the forms of OpenAI-compatible providers, after the examples of their documentation, with what they must
be billed. docs/providers.md names the fixtures of each provider."""

from tests.support.answers import HELLO, SEEN, SMALL, SMALL_BILL, Answer, chunk, dumps, finish, sse
from tests.support.tap_oracle import CHAT, JSON, RESPONSES, SSE

ANSWERS = [
    Answer(
        # Before any text Azure says what its filter made of the prompt: no choices, and no usage either.
        "azure stream",
        CHAT,
        SSE,
        sse(
            {
                **chunk(),
                "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {"hate": {"filtered": False}}}],
                "usage": None,
            },
            *({**event, "usage": None} for event in HELLO),
            {**finish(content_filter_results={"hate": {"filtered": False, "severity": "safe"}}), "usage": None},
            chunk(usage=SMALL),
            done=True,
        ),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "bedrock json",
        CHAT,
        JSON,
        dumps({"choices": [{"message": {"content": "Hi"}}], "service_tier": "default", "usage": SMALL}),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "doubao stream",
        CHAT,
        SSE,
        sse(
            *({**event, "service_tier": "default", "usage": None} for event in HELLO),
            {**finish(), "service_tier": "default", "usage": None},
            {
                **chunk(),
                "service_tier": "scale",
                "usage": {
                    **SMALL,
                    "prompt_tokens_details": {"cached_tokens": 5, "provisioned_tokens": 9},
                    "completion_tokens_details": {"reasoning_tokens": 2, "provisioned_tokens": 4},
                },
            },
            done=True,
        ),
        {"input_tokens": 4, "cache_read_tokens": 5, "output_tokens": 4, **SEEN},
    ),
    Answer(
        # `chunk_include_usage`: what has been used so far, in every chunk.
        "doubao running usage",
        CHAT,
        SSE,
        sse(
            *(
                {**event, "usage": {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}}
                for count, event in enumerate(HELLO)
            ),
            {**finish(), "usage": SMALL},
            done=True,
        ),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "glm stream",
        CHAT,
        SSE,
        sse(
            chunk({"role": "assistant", "reasoning_content": "\nThe"}),
            chunk({"role": "assistant", "content": "Oi"}),
            {
                **finish(delta={"role": "assistant", "content": ""}),
                "usage": {
                    **SMALL,
                    "prompt_tokens_details": {"cached_tokens": 3},
                    "completion_tokens_details": {"reasoning_tokens": 1},
                },
            },
            done=True,
        ),
        {"input_tokens": 6, "cache_read_tokens": 3, "output_tokens": 4, **SEEN},
    ),
    Answer(
        # `usage_breakdown` repeats what `usage` says, by model: it must not count twice.
        "groq json",
        CHAT,
        JSON,
        dumps(
            {
                "choices": [{"message": {"content": "Hi"}}],
                "usage": {
                    **SMALL,
                    "queue_time": 0.037,
                    "prompt_time": 0.0006,
                    "completion_time": 0.46,
                    "total_time": 0.49,
                    "prompt_tokens_details": {"cached_tokens": 4},
                },
                "usage_breakdown": {"models": [{"model": "a", "usage": {"prompt_tokens": 900, "total_tokens": 950}}]},
                "x_groq": {"id": "req_1", "seed": 7},
                "service_tier": "on_demand",
            }
        ),
        {"input_tokens": 5, "cache_read_tokens": 4, "output_tokens": 4, **SEEN},
    ),
    Answer(
        "groq stream with the report in both places",
        CHAT,
        SSE,
        sse(*HELLO, {**finish(), "x_groq": {"id": "req_1", "usage": SMALL}}, chunk(usage=SMALL), done=True),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "kimi json",
        CHAT,
        JSON,
        dumps({"choices": [{"message": {"content": "Hi"}}], "usage": {**SMALL, "cached_tokens": 7}}),
        {"input_tokens": 2, "cache_read_tokens": 7, "output_tokens": 4, **SEEN},
    ),
    Answer(
        "kimi with the report in both places",
        CHAT,
        SSE,
        sse(
            *HELLO,
            finish(usage={**SMALL, "cached_tokens": 8}),
            chunk(usage={**SMALL, "cached_tokens": 8}),
            done=True,
        ),
        {"input_tokens": 1, "cache_read_tokens": 8, "output_tokens": 4, **SEEN},
    ),
    Answer(
        "mistral json",
        CHAT,
        JSON,
        dumps(
            {
                "choices": [{"message": {"content": "Bonjour", "prefix": False}, "finish_reason": "stop"}],
                "usage": {**SMALL, "prompt_audio_seconds": None, "num_cached_tokens": 0},
            }
        ),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "ollama stream",
        CHAT,
        SSE,
        sse(*HELLO, finish(), chunk(usage=SMALL), done=True),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "qwen stream",
        CHAT,
        SSE,
        sse(
            *({**event, "usage": None} for event in HELLO),
            {**finish(), "usage": None},
            chunk(
                usage={
                    **SMALL,
                    "prompt_tokens_details": {
                        "cached_tokens": 4,
                        "cache_creation_input_tokens": 2,
                        "cache_creation": {"ephemeral_5m_input_tokens": 2},
                        "cache_type": "ephemeral",
                    },
                }
            ),
            done=True,
        ),
        {"input_tokens": 3, "cache_read_tokens": 4, "cache_write_tokens": 2, "output_tokens": 4, **SEEN},
    ),
    Answer(
        "sglang stream",
        CHAT,
        SSE,
        sse(
            *({**event, "usage": None} for event in HELLO),
            {**finish(matched_stop=151645), "usage": None},
            chunk(usage={**SMALL, "prompt_tokens_details": None, "reasoning_tokens": 3}),
            done=True,
        ),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "vllm json",
        CHAT,
        JSON,
        dumps(
            {
                "choices": [{"message": {"content": "Hi", "reasoning_content": None, "tool_calls": []}}],
                "usage": {**SMALL, "prompt_tokens_details": None},
                "prompt_logprobs": None,
                "kv_transfer_params": None,
            }
        ),
        {**SMALL_BILL, **SEEN},
    ),
    Answer(
        "vllm stream unasked",
        CHAT,
        SSE,
        sse(*HELLO, finish(stop_reason=None), done=True),
        {"usage_seen": False, "terminal_seen": True},
    ),
    Answer(
        # Reasoning beside the completion, as xAI and Gemini behind OpenAI's API report it.
        "xai stream",
        CHAT,
        SSE,
        sse(
            *HELLO,
            {
                **finish(),
                "usage": {
                    "prompt_tokens": 41,
                    "completion_tokens": 10,
                    "total_tokens": 312,
                    "prompt_tokens_details": {
                        "text_tokens": 41,
                        "audio_tokens": 0,
                        "image_tokens": 0,
                        "cached_tokens": 6,
                    },
                    "completion_tokens_details": {"reasoning_tokens": 261, "audio_tokens": 0},
                    "num_sources_used": 0,
                },
            },
            done=True,
        ),
        {"input_tokens": 35, "cache_read_tokens": 6, "output_tokens": 271, **SEEN},
    ),
    Answer(
        "reasoning alone, outside the completion",
        CHAT,
        JSON,
        dumps(
            {
                "usage": {
                    "prompt_tokens": 21,
                    "completion_tokens": 0,
                    "total_tokens": 81,
                    "completion_tokens_details": {"reasoning_tokens": 60},
                }
            }
        ),
        {"input_tokens": 21, "output_tokens": 60, **SEEN},
    ),
    Answer(
        # What was read is Responses' usage without its input side: nothing of the prompt is invented from a total.
        "sglang responses without input",
        RESPONSES,
        JSON,
        dumps({"usage": {"output_tokens": 30, "total_tokens": 30, "input_tokens": 0}}),
        {"output_tokens": 30, **SEEN},
    ),
]
