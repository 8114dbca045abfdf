"""A response in the background with its events: the stream of the call that makes it, and a stream taken up again.

The job's row is on the disk before its provider is asked, and has its provider's id before the first byte reaches the
client: whoever has seen anything can come back for the rest, and finds a job that will be charged once. The client may
leave; the job stays. Whoever sees the response's end first, here or elsewhere, ends the job.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp

from relay import _fastpath
from relay._fastpath import Call
from relay.proxy import decoders
from relay.proxy.jobs import Job, Jobs
from relay.proxy.upstreams import Answered, UpstreamError, passed
from relay.wire.events import ResponseEvents

_CODES: Final = _fastpath.ERROR_CODES
STREAM: Final = "text/event-stream"
HELD_BYTES_MAX: Final = 1 << 20  # before the provider has told the response's id


class JobStream:
    """The stream that answers a call that makes a job: `begin`, and `pass_on` once the job has its name."""

    def __init__(self, jobs: Jobs, answer: aiohttp.ClientResponse) -> None:
        self._jobs = jobs
        self._answer = answer
        self._held = b""
        self._copy = EventCopy(answer)
        self._wake = asyncio.Event()

    async def begin(self) -> Answered:
        """Reads until an event shows the response, which is returned as if it were the answer. Raises UpstreamError."""
        events = self._copy.events
        try:
            while events.first is None:
                data = await self._answer.content.readany()
                self._held += data
                self._copy.feed(data)
                if not data or len(self._held) > HELD_BYTES_MAX:
                    raise UpstreamError("upstream_garbage")
        except BaseException as error:
            self._answer.close()
            if isinstance(error, TimeoutError):
                raise UpstreamError("upstream_timeout") from None
            if isinstance(error, aiohttp.ClientError | OSError):
                raise UpstreamError("upstream_failed") from None
            raise
        return Answered(self._answer.status, [], events.last or events.first)

    async def pass_on(self, call: Call, job: Job) -> None:
        """Piece by piece, no faster than the client takes it. Answers the call."""
        answer = self._answer
        fields = "".join(f"{name}: {value}\r\n" for name, value in passed(answer)).encode("latin-1")

        def wake() -> None:
            self._wake.set()
            if call.ended:
                answer.close()  # whoever waits for more of it wakes up, too

        code = "internal"
        try:
            if not call.begin_pieces(answer.status, fields, self._copy.compressed, wake):
                return
            data = self._held
            while data and call.piece(data):
                while call.waiting:
                    self._wake.clear()
                    await self._wake.wait()
                data = await answer.content.readany()
                self._copy.feed(data)
                await see(self._jobs, job.row.object_id, self._copy.events)
            code = ""
        except TimeoutError:
            code = "upstream_stalled"
        except (aiohttp.ClientError, OSError):
            code = "upstream_truncated"
        finally:
            answer.close()
            call.end_pieces(_CODES.index(code) if code else 0)


class EventCopy:
    """A copy of an answer's events, decompressed where need be."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.events = ResponseEvents()
        encoding = answer.headers.get("Content-Encoding", "").strip().lower()
        self.compressed = encoding not in ("", "identity")
        self._decode = decoders.decoder(encoding.encode("latin-1", "replace")) if self.compressed else None

    def feed(self, data: bytes) -> None:
        if not self.compressed:
            self.events.feed(data)
        elif self._decode is not None and data:
            try:
                for part in self._decode(data):
                    self.events.feed(part)
            except Exception:  # a copy that cannot be read tells nothing; the bytes pass all the same
                self._decode = None


def watch(jobs: Jobs, object_id: str, answer: aiohttp.ClientResponse) -> Callable[[bytes], Awaitable[None]]:
    """For a stream that is taken up again: to be called with each piece before it passes."""
    copy = EventCopy(answer)

    async def look(data: bytes) -> None:
        copy.feed(data)
        await see(jobs, object_id, copy.events)

    return look


async def see(jobs: Jobs, object_id: str | None, events: ResponseEvents) -> None:
    """Ends the job where the stream has told its end: before the client hears of it, as everywhere."""
    if events.last is not None and object_id is not None:
        document, events.last = events.last, None
        await jobs.seen("response", object_id, document)
