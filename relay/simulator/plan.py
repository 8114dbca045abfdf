"""What one answer will say and report: the directives, applied to the request."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from relay.simulator.directives import Directives
from relay.simulator.text import Text, count_text

JSON = dict[str, Any]

# The strings of a request that count as prompt.
_PROMPT_FIELDS = (
    "messages", "system", "tools", "instructions", "input", "prompt", "contents", "systemInstruction", "content",
    "system_instruction", "requests", "generateContentRequest",
)  # fmt: skip

_HUGE = 99_999_999_999_999_999_999  # past 64 bits
_FIXED_TIME = 1_760_000_000


@dataclass(slots=True)
class Plan:
    d: Directives
    number: int  # makes ids unique
    model: str
    request: JSON
    text: Text
    events: int
    limited: bool  # the caller's output limit ended it
    choices: int
    input_tokens: int
    output_tokens: int  # of all choices, reasoning included
    reasoning_tokens: int
    created: int
    said: int = 0  # output tokens that streams have taken from here so far

    @property
    def pieces(self) -> Iterator[str]:
        """The text, for a stream: each piece taken counts as said."""
        piece, tokens = self.text.piece, max(1, self.d.tokens) * self.choices
        for index in range(self.events):
            self.said += tokens
            yield piece(index)

    @property
    def thoughts(self) -> Iterator[str]:
        """The reasoning, for a stream: each piece taken counts as said."""
        room = self.reasoning_tokens
        for thought in self.reasoning_pieces:
            self.said += min(room, max(1, self.d.tokens)) * self.choices
            room -= max(1, self.d.tokens)
            yield thought

    @property
    def whole(self) -> str:
        return self.text.whole(self.events)

    @property
    def reasoning_pieces(self) -> list[str]:
        """Reasoning as text, one event per `tokens` reasoning tokens."""
        if not self.reasoning_tokens:
            return []
        count = -(-self.reasoning_tokens // max(1, self.d.tokens))
        thoughts = Text(self.text.seed + 1, 0, self.d.tokens)
        return [thoughts.piece(index) for index in range(count)]

    def id(self, prefix: str, index: int = 0, length: int = 24) -> str:
        return f"{prefix}{(self.number * 0x9E3779B97F4A7C15 + index * 0xC2B2AE3D27D4EB4F + 1) % (1 << 96):0{length}x}"[
            : len(prefix) + length
        ]


def make_plan(d: Directives, number: int, model: str, request: JSON, limit: int | None, choices: int = 1) -> Plan:
    """`limit`: the caller's output limit in tokens, None without one; `choices`: answers asked for in one request."""
    seeded = d.seed >= 0
    per_event = max(1, d.tokens)
    events, limited = d.events, False
    room = None if limit is None or d.ignore_limit else max(0, limit)
    reasoning = d.reasoning
    if room is not None and reasoning + events * per_event > room:
        limited = True
        reasoning = min(reasoning, room)
        events = (room - reasoning) // per_event
    spoken = events * per_event if d.output < 0 else d.output
    if d.input >= 0:
        prompt = d.input
    else:
        text_bytes = sum(count_text(request[field]) for field in _PROMPT_FIELDS if field in request)
        prompt = 7 + text_bytes // 4 + d.cached + d.cache_write + d.cache_write_1h
    return Plan(
        d=d,
        number=d.seed + 1 if seeded else number,
        model=model,
        request=request,
        text=Text(d.seed if seeded else number, d.size, d.tokens, bool(d.utf8)),
        events=events,
        limited=limited,
        choices=max(1, choices),
        input_tokens=prompt,
        output_tokens=(spoken + reasoning) * max(1, choices),
        reasoning_tokens=reasoning,
        created=_FIXED_TIME + d.seed if seeded else int(time.time()),
    )


def damaged(usage: JSON, how: str) -> JSON | None:
    """A usage object made wrong as the directive `usage` says.

    `normal` and `twice` leave it as it is. None: leave it out.
    """
    if how == "missing":
        return None
    if how in ("normal", "twice", "null"):
        return usage
    bad: Any = {"zero": 0, "negative": -5, "huge": _HUGE, "fraction": 12.5, "text": "12"}[how]

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner) for key, inner in value.items()}
        if isinstance(value, int) and not isinstance(value, bool):
            return bad
        return value

    walked: JSON = walk(usage)
    return walked


def halved(usage: JSON) -> JSON:
    """An earlier, smaller report of the same call."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner) for key, inner in value.items()}
        if isinstance(value, int) and not isinstance(value, bool):
            return value // 2
        return value

    walked: JSON = walk(usage)
    return walked


def dumps(value: object, pretty: bool = False) -> bytes:
    """JSON text. Numbers past 64 bits too, which orjson refuses."""
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2) if pretty else orjson.dumps(value)
    except TypeError:
        import json

        return json.dumps(
            value, ensure_ascii=False, indent=2 if pretty else None, separators=None if pretty else (",", ":")
        ).encode()


def with_usage(answer: JSON, key: str, usage: JSON, how: str, pretty: bool = False) -> bytes:
    """`answer` as JSON text with `usage` under `key`, made wrong as asked; `twice`: twice, the true one last."""
    shown = damaged(usage, how)
    if shown is None:
        return dumps(answer, pretty)
    if how == "null":
        return dumps({**answer, key: None}, pretty)
    if how != "twice":
        return dumps({**answer, key: shown}, pretty)
    text = dumps({key: halved(usage), **answer}, pretty).rstrip()[:-1].rstrip()
    return text + b"," + dumps(key) + b":" + dumps(shown) + b"}"


def sse(data: bytes, event: str = "", eol: bytes = b"\n") -> bytes:
    if event:
        return b"event: " + event.encode() + eol + b"data: " + data + eol + eol
    return b"data: " + data + eol + eol


EOL = {"": b"\n", "lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}
