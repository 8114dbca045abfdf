"""The events of a response at OpenAI, read from a copy of its stream: which response it is, and how it ended."""

import re
from typing import Any, Final

from relay.wire import documents

EVENT_BYTES_MAX: Final = 64 << 20  # an event above this is not read, nor anything behind it
ENDS: Final = ("completed", "incomplete", "failed", "cancelled")
_EVENT_END: Final = re.compile(rb"(?>\r\n|\n|\r){2}")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


class ResponseEvents:
    """Takes a stream in any pieces. Never fails: what cannot be read is passed over.

    first  the response as the first event that has it shows it; None before
    last   the same of the event that shows its end
    """

    def __init__(self) -> None:
        self.first: bytes | None = None
        self.last: bytes | None = None
        self._pending = bytearray()
        self._given_up = False

    def feed(self, data: bytes) -> None:
        if self._given_up:
            return
        searched = max(len(self._pending) - 3, 0)  # an end may have begun there
        self._pending += data
        start = 0
        while (found := _EVENT_END.search(self._pending, max(start, searched))) is not None:
            self._event(bytes(self._pending[start : found.start()]))
            start = found.end()
        del self._pending[:start]
        if len(self._pending) > EVENT_BYTES_MAX:
            self._given_up = True
            self._pending.clear()

    def _event(self, block: bytes) -> None:
        if b'"response"' not in block:  # deltas: nearly all
            return
        lines = (line[5:] for line in _LINE_END.split(block) if line.startswith(b"data:"))
        try:
            event: Any = documents.loads(b"\n".join(lines))
        except ValueError:
            return
        response = event.get("response") if isinstance(event, dict) else None
        if not isinstance(response, dict):
            return
        if self.first is None:
            self.first = documents.dumps(response)
        if response.get("status") in ENDS:
            self.last = documents.dumps(response)
