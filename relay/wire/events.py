"""The events of a response at OpenAI, read from a copy of its stream: which response it is, and how it ended."""

import re
from typing import Any, Final

from relay.wire import documents, joberrors

EVENT_BYTES_MAX: Final = 64 << 20  # an event above this is not read, nor anything behind it
ENDS: Final = ("completed", "incomplete", "failed", "cancelled")
_EVENT_END: Final = re.compile(rb"(?>\r\n|\n|\r){2}")
# What an event about an error has, however it was cut; most responses have `"error": null`.
_ERROR: Final = re.compile(rb'"error"(?!\s*:\s*null)|^event:\s*error', re.M)
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


class ResponseEvents:
    """Takes a stream in any pieces. Never fails: what cannot be read is passed over.

    first  the response as the first event that has it shows it; None before
    last   the same of the event that shows its end
    hidden what a client is told in place of an error about the operator's account, a name of relay.errors; None: there
           was no such error
    unclear     whether the event that is not complete may be such an error
    unfinished  its size
    """

    def __init__(self) -> None:
        self.first: bytes | None = None
        self.last: bytes | None = None
        self.hidden: str | None = None
        self.unclear = False
        self._pending = bytearray()
        self._given_up = False

    @property
    def unfinished(self) -> int:
        return len(self._pending)

    def feed(self, data: bytes) -> None:
        if self._given_up:
            return
        looked = max(len(self._pending) - len(b'"error" : null'), 0)
        searched = max(len(self._pending) - 3, 0)  # an end may have begun there
        self._pending += data
        start = 0
        while (found := _EVENT_END.search(self._pending, max(start, searched))) is not None:
            self._event(bytes(self._pending[start : found.start()]))
            start = found.end()
        del self._pending[:start]
        if start:
            looked, self.unclear = 0, False
        self.unclear = self.unclear or _ERROR.search(self._pending, looked) is not None
        if len(self._pending) > EVENT_BYTES_MAX:
            self._given_up, self.unclear = True, False
            self._pending.clear()

    def _event(self, block: bytes) -> None:
        if b'"response"' not in block and b"error" not in block:  # deltas: nearly all
            return
        lines = (line[5:] for line in _LINE_END.split(block) if line.startswith(b"data:"))
        try:
            event: Any = documents.loads(b"\n".join(lines))
        except ValueError:
            return
        self.hidden = self.hidden or joberrors.of_event(event)
        response = event.get("response") if isinstance(event, dict) else None
        if not isinstance(response, dict):
            return
        if self.first is None:
            self.first = documents.dumps(response)
        if response.get("status") in ENDS:
            self.last = documents.dumps(response)
