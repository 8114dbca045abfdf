"""What is asked and what is answered: requests as the OpenAI SDK sends them, answers as OpenAI sends them.

A case file holds the body and the answer; native/common.h reads it on both sides, so each byte is known to both.
Each event carries 16 characters in which the upstream writes the time at which it meant to send the event.
"""

from __future__ import annotations

import json
import random
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

STAMP = "@" * 16
MODEL = "gpt-4o"

_TEXT = (
    "the of and to in a is that for it as was with be by on not he this are or his from at which but have an had they "
    "you were their one all we can her has there been if more when will would who so no out up into them then request "
    "answer limit balance stream token context window latency measure under between through without settle ledger "
    "function return value error import class while message customer invoice delivery station weather however although "
    "internationalization authentication straightforward 2026 17 3.14 naïve Zürich façade — “quoted” it's don't"
)
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class Case:
    """One request and its answer. `pieces` are the SSE events in order, or the one JSON document."""

    name: str
    messages: list[dict[str, str]]
    stream: bool
    pieces: tuple[bytes, ...]
    input_tokens: int
    output_tokens: int
    gap_us: int = 0  # between packets; 0: a packet per turn of the upstream's loop
    packet_events: int = 1
    delay_us: int = 0

    def body(self, number: int, model: str = MODEL) -> bytes:
        """The request body; `number` is the case's place on the upstream's command line."""
        messages = [dict(message) for message in self.messages]
        messages[0]["content"] = f"bench:{number} {messages[0]['content']}"
        fields: dict[str, object] = {"model": model, "messages": messages, "max_tokens": 1024, "temperature": 0.2}
        if self.stream:
            fields["stream"] = True
            fields["stream_options"] = {"include_usage": True}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()

    def write(self, path: Path, number: int, model: str = MODEL) -> None:
        body = self.body(number, model)
        answer = b"".join(self.pieces)
        head = struct.pack(
            "<8sIIIIIIQQ",
            b"RBCASE1\n",
            self.stream,
            len(self.pieces),
            self.packet_events,
            self.gap_us,
            self.delay_us,
            0,
            len(answer),
            len(body),
        )
        lengths = struct.pack(f"<{len(self.pieces)}I", *(len(piece) for piece in self.pieces))
        path.write_bytes(head + lengths + answer + body)


def text_of(byte_count: int, seed: int) -> str:
    """Prose-like text of about so many bytes as JSON: words, sentences, paragraphs, some quotes and accents."""
    pick = random.Random(seed)
    parts: list[str] = []
    size = 0
    while size < byte_count:
        sentence = " ".join(pick.choices(_WORDS, k=pick.randint(6, 18))).capitalize() + "."
        sentence += "\n\n" if pick.random() < 0.12 else " "
        parts.append(sentence)
        size += len(json.dumps(sentence, ensure_ascii=False).encode()) - 2
    return "".join(parts)


def _messages(prompt_bytes: int) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "You are a careful assistant. Answer briefly, and say so when you do not know."},
        {"role": "user", "content": text_of(prompt_bytes, seed=prompt_bytes)},
    ]


def _usage(input_tokens: int, output_tokens: int) -> dict[str, object]:
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


@lru_cache(maxsize=4)
def json_case(name: str = "json-small", prompt_bytes: int = 220) -> Case:
    """A chat completion answered as one JSON document of about 900 bytes."""
    input_tokens, output_tokens = max(40, prompt_bytes // 4), 37
    document = {
        "id": "chatcmpl-CeB1v2kqYxPq0m3nHf8rJtWzLs5Ad",
        "object": "chat.completion",
        "created": 1763685000,
        "model": "gpt-4o-2024-08-06",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": text_of(90, seed=5).strip(),
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": _usage(input_tokens, output_tokens),
        "service_tier": "default",
        "system_fingerprint": "fp_b1442291a8",
    }
    answer = json.dumps(document, ensure_ascii=False, indent=2).encode()
    return Case(name, _messages(prompt_bytes), False, (answer,), input_tokens, output_tokens)


@lru_cache(maxsize=4)
def stream_case(name: str, events: int, gap_us: int = 0, packet_events: int = 1, prompt_bytes: int = 220) -> Case:
    """A chat completion streamed in `events` events: role, text deltas, finish, usage, [DONE]. At least five."""
    pick = random.Random(events)
    deltas = max(1, events - 4)

    def chunk(choices: list[dict[str, object]], usage: dict[str, object] | None) -> bytes:
        fields = {
            "id": "chatcmpl-CeB1v2kqYxPq0m3nHf8rJtWzLs5Ad",
            "object": "chat.completion.chunk",
            "created": 1763685000,
            "model": "gpt-4o-2024-08-06",
            "service_tier": "default",
            "system_fingerprint": f"fp_{STAMP}",
            "choices": choices,
            "usage": usage,
        }
        return b"data: " + json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

    def choice(delta: dict[str, object], finish: str | None = None) -> list[dict[str, object]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]

    pieces = [chunk(choice({"role": "assistant", "content": "", "refusal": None}), None)]
    pieces += [chunk(choice({"content": " " + pick.choice(_WORDS)}), None) for _ in range(deltas)]
    pieces += [chunk(choice({}, "stop"), None), chunk([], _usage(55, deltas)), b"data: [DONE]\n\n"]
    return Case(name, _messages(prompt_bytes), True, tuple(pieces), 55, deltas, gap_us, packet_events)


def request_head(host: str, path: str, key: str, body_bytes: int) -> bytes:
    """The head of the official Python SDK, header for header."""
    lines = (
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        "Accept-Encoding: gzip, deflate, br",
        "Connection: keep-alive",
        f"authorization: Bearer {key}",
        "accept: application/json",
        "content-type: application/json",
        "user-agent: OpenAI/Python 3.52.0",
        "x-stainless-lang: python",
        "x-stainless-package-version: 3.52.0",
        "x-stainless-os: Linux",
        "x-stainless-arch: x64",
        "x-stainless-runtime: CPython",
        "x-stainless-runtime-version: 3.11.7",
        "x-stainless-async: false",
        "x-stainless-retry-count: 0",
        "x-stainless-read-timeout: 600",
        f"Content-Length: {body_bytes}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def write_requests(path: Path, heads: list[bytes]) -> None:
    """The file of request heads that the load client takes in turn."""
    path.write_bytes(struct.pack("<I", len(heads)) + b"".join(struct.pack("<I", len(h)) + h for h in heads))
