"""The simulator's book: what it was asked, what it reported, what it sent, and how each request ended."""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_LATEST_MAX = 10_000  # entries kept; the counts cover all of them
_KEPT_BYTES_MAX = 16 << 20  # of one body, when bodies are kept


@dataclass(slots=True)
class Entry:
    """One request. Times are `time.monotonic()` seconds, 0.0 while something has not happened."""

    number: int
    method: str
    path: str  # with the query string
    headers: list[tuple[str, str]]  # as received, names in lower case
    body: bytes  # of the request; empty unless bodies are kept
    began: float
    model: str = ""
    stream: bool = False
    status: int = 0
    # What was reported to the client, in the provider's own shape, the last one if there were several. None: nothing.
    usage: dict[str, Any] | None = None
    # The same in plain numbers; output contains reasoning.
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    output_tokens_sent: int = 0  # of them, those in what was sent (one event more where the end came inside a write)
    events_sent: int = 0
    body_bytes_sent: int = 0  # as the client sees them before decompression, without chunk framing
    wire_bytes_sent: int = 0  # head and framing included
    sent: bytearray = field(default_factory=bytearray)  # the body bytes themselves, if bodies are kept
    # The messages of a WebSocket, if bodies are kept.
    messages_received: list[str] = field(default_factory=list)
    messages_sent: list[str] = field(default_factory=list)
    first_byte: float = 0.0
    ended: float = 0.0
    # open; finished; aborted: the client left first; cut, garbage: as asked for; stopped: the simulator was stopped.
    outcome: str = "open"
    stalled: bool = False

    def header(self, name: str) -> str | None:
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def plain(self) -> dict[str, Any]:
        """For GET /sim/book: without bodies."""
        return {
            "number": self.number,
            "method": self.method,
            "path": self.path,
            "headers": self.headers,
            "model": self.model,
            "stream": self.stream,
            "status": self.status,
            "usage": self.usage,
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "output_tokens_sent": self.output_tokens_sent,
            "events_sent": self.events_sent,
            "body_bytes_sent": self.body_bytes_sent,
            "wire_bytes_sent": self.wire_bytes_sent,
            "first_byte_seconds": self.first_byte - self.began if self.first_byte else None,
            "duration_seconds": self.ended - self.began if self.ended else None,
            "outcome": self.outcome,
            "stalled": self.stalled,
        }


class Book:
    """Counts of everything, and the latest entries. `keep_bodies`: entries keep what was received and sent."""

    def __init__(self, keep_bodies: bool = True) -> None:
        self.keep_bodies = keep_bodies
        self.entries: deque[Entry] = deque(maxlen=_LATEST_MAX)
        self.requests = 0
        self._numbers = itertools.count(1)
        self.open = 0
        self.outcomes: dict[str, int] = {}
        self.statuses: dict[int, int] = {}
        self.input_tokens = 0
        self.output_tokens = 0
        self.events_sent = 0
        self.body_bytes_sent = 0
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def last(self) -> Entry:
        return self.entries[-1]

    @property
    def aborted(self) -> int:
        return self.outcomes.get("aborted", 0)

    def begin(self, method: str, path: str, headers: list[tuple[str, str]]) -> Entry:
        self.requests += 1
        self.open += 1
        entry = Entry(next(self._numbers), method, path, headers, b"", time.monotonic())
        self.entries.append(entry)
        self.notify()
        return entry

    def received(self, entry: Entry, body: bytes) -> None:
        if self.keep_bodies:
            entry.body = body[:_KEPT_BYTES_MAX]

    def sent(self, entry: Entry, body: bytes, wire_bytes: int) -> None:
        if not entry.first_byte:
            entry.first_byte = time.monotonic()
            self.notify()
        entry.body_bytes_sent += len(body)
        entry.wire_bytes_sent += wire_bytes
        if self.keep_bodies and len(entry.sent) < _KEPT_BYTES_MAX:
            entry.sent += body

    def end(self, entry: Entry, outcome: str) -> None:
        if entry.outcome != "open":
            return
        entry.outcome = outcome
        entry.ended = time.monotonic()
        self.open -= 1
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.statuses[entry.status] = self.statuses.get(entry.status, 0) + 1
        self.input_tokens += entry.input_tokens
        self.output_tokens += entry.output_tokens
        self.events_sent += entry.events_sent
        self.body_bytes_sent += entry.body_bytes_sent
        self.notify()

    def clear(self) -> None:
        """Forgets the finished requests; the counts start again."""
        kept = [entry for entry in self.entries if entry.outcome == "open"]
        self.entries.clear()
        self.entries.extend(kept)
        self.requests = len(kept)
        self.outcomes.clear()
        self.statuses.clear()
        self.input_tokens = self.output_tokens = self.events_sent = self.body_bytes_sent = 0

    def notify(self) -> None:
        if self._waiters:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait(self, condition: Callable[["Book"], bool], timeout_seconds: float = 5.0) -> None:
        """Returns once the condition holds; looks again at each change of the book. Raises TimeoutError."""
        async with asyncio.timeout(timeout_seconds):
            while not condition(self):
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.add(waiter)
                try:
                    # The short timeout covers what changes between notices, such as bytes sent.
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(waiter, 0.02)
                finally:
                    self._waiters.discard(waiter)

    def plain(self, latest: int = 100) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "open": self.open,
            "outcomes": self.outcomes,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "events_sent": self.events_sent,
            "body_bytes_sent": self.body_bytes_sent,
            "entries": [entry.plain() for entry in list(self.entries)[-latest:]] if latest > 0 else [],
        }
