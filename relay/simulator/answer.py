"""What a format module hands to the sender: status, headers and body, not yet framed or damaged on its way."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from relay.simulator.plan import Plan


@dataclass(slots=True)
class Answer:
    status: int
    content_type: str
    body: bytes = b""
    events: Iterator[bytes] | None = None  # a stream: each item is one event, or one element of Gemini's array
    headers: list[tuple[str, str]] = field(default_factory=list)
    # For the book.
    model: str = ""
    plan: Plan | None = None  # of streams: it knows how much was said
    usage: dict[str, Any] | None = None
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


class Refused(Exception):  # noqa: N818 - not an error of the simulator: an answer that a provider gives
    """A request that the provider would refuse; rendered in the dialect's shape by `errors.py`."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.param = param
        self.code = code
