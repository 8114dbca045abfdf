"""A response in the background with its events: the stream of the call that makes it, and a stream taken up again.

The job's row is on the disk before its provider is asked, and has its provider's id before the first byte reaches the
client: whoever has seen anything can come back for the rest, and finds a job that will be charged once. The client may
leave; the job stays. Whoever sees the response's end first, here or elsewhere, ends the job.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from relay import _fastpath
from relay._fastpath import Call
from relay.proxy import decoders
from relay.proxy.jobs import Job, Jobs
from relay.proxy.upstreams import Answered, Reply, UpstreamError, unseen
from relay.wire.events import ResponseEvents

_CODES: Final = _fastpath.ERROR_CODES
STREAM: Final = "text/event-stream"
HELD_BYTES_MAX: Final = 1 << 20  # before the provider has told the response's id


class JobStream:
    """The stream that answers a call that makes a job: `begin`, and `pass_on` once the job has its name."""

    def __init__(self, jobs: Jobs, reply: Reply, tell: Callable[[str], None]) -> None:
        self._jobs = jobs
        self._tell = tell
        self._reply = reply
        self._pieces = reply.pieces()
        self._held = b""
        self._copy = EventCopy(reply)
        self._wake = asyncio.Event()

    async def begin(self) -> Answered:
        """Reads until an event shows the response, which is returned as if it were the answer. Raises UpstreamError."""
        events = self._copy.events
        try:
            while events.first is None:
                data = await anext(self._pieces, b"")
                self._held += self._copy.passed(data)
                if events.first is None and events.hidden is not None:
                    self._tell(events.hidden)
                    raise UpstreamError(events.hidden)
                if not data or len(self._held) + events.unfinished > HELD_BYTES_MAX:
                    raise UpstreamError("upstream_garbage")
        except BaseException as error:
            self._reply.close()
            if isinstance(error, UpstreamError):
                raise unseen(error) from None
            raise
        return Answered(self._reply.status, [], events.last or events.first)

    def close(self) -> None:
        """Where it is not passed on."""
        self._reply.close()

    async def pass_on(self, call: Call, job: Job) -> None:
        """Piece by piece, no faster than the client takes it. Answers the call."""
        reply = self._reply
        fields = "".join(f"{name}: {value}\r\n" for name, value in reply.fields).encode("latin-1")

        def wake() -> None:
            self._wake.set()
            if call.ended:
                reply.close()  # whoever waits for more of it wakes up, too

        code = "internal"
        try:
            if not call.begin_pieces(reply.status, fields, self._copy.compressed, wake):
                return
            data = self._held
            while not self._copy.hidden(self._tell) and (not data or call.piece(data)):
                while call.waiting:
                    self._wake.clear()
                    await self._wake.wait()
                piece = await anext(self._pieces, b"")
                if not piece:
                    break
                data = self._copy.passed(piece)
                await see(self._jobs, job.row.object_id, self._copy.events)
            code = ""
        except UpstreamError as error:
            code = error.code
        finally:
            reply.close()
            call.end_pieces(_CODES.index(code) if code else 0)


class EventCopy:
    """A copy of an answer's events, decompressed where need be."""

    def __init__(self, reply: Reply) -> None:
        self.events = ResponseEvents()
        encoding = reply.encoding
        self.compressed = encoding is not None
        self._decode = decoders.decoder(encoding) if encoding is not None else None
        self._held = bytearray()

    def passed(self, data: bytes) -> bytes:
        """What may pass once this has come: nothing of an event that is not complete and may be an error."""
        self.feed(data)
        self._held += data
        kept = 0
        if self.events.hidden is not None:
            kept = len(self._held)
        elif self.events.unclear:
            kept = len(self._held) if self.compressed else min(len(self._held), self.events.unfinished)
        passes = bytes(self._held[: len(self._held) - kept])
        del self._held[: len(passes)]
        return passes

    def hidden(self, tell: Callable[[str], None]) -> bool:
        """False. Raises UpstreamError where an error about the operator's account has come; the operator is told."""
        code = self.events.hidden
        if code is None:
            return False
        tell(code)
        raise UpstreamError(code)

    def feed(self, data: bytes) -> None:
        if not self.compressed:
            self.events.feed(data)
        elif self._decode is not None and data:
            try:
                for part in self._decode(data):
                    self.events.feed(part)
            except Exception:  # a copy that cannot be read tells nothing; the bytes pass all the same
                self._decode = None


def watch(jobs: Jobs, object_id: str, reply: Reply, tell: Callable[[str], None]) -> Callable[[bytes], Awaitable[bytes]]:
    """For a stream that is taken up again: takes each piece, and returns what may pass. Raises UpstreamError."""
    copy = EventCopy(reply)

    async def look(data: bytes) -> bytes:
        passes = copy.passed(data)
        await see(jobs, object_id, copy.events)
        copy.hidden(tell)
        return passes

    return look


async def see(jobs: Jobs, object_id: str | None, events: ResponseEvents) -> None:
    """Ends the job where the stream has told its end: before the client hears of it, as everywhere."""
    if events.last is not None and object_id is not None:
        document, events.last = events.last, None
        await jobs.seen("response", object_id, document)
