"""An upstream whose answers are exact byte scripts.

    async with ScriptedUpstream([Request(), STREAM_HEAD, chunk_bytes(b"data: 1\\n\\n"), Reset()]) as upstream:
        ...
        assert upstream.connections[0].requests[0].target == "/v1/chat/completions"

A script is what happens on one connection: bytes are written (one write each), the steps below wait or end it.
Connections take the scripts in turn, the last one again and again. A script that runs out leaves the connection open,
reading.
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

from tests.support import http1


@dataclass(frozen=True)
class Request:
    """Waits for one more complete request."""


@dataclass(frozen=True)
class Received:
    """Waits until so many bytes have arrived on the connection."""

    count: int


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Gate:
    """Waits for the test to set the event."""

    event: asyncio.Event


@dataclass(frozen=True)
class Close:
    """FIN behind what was written."""


@dataclass(frozen=True)
class HalfClose:
    """FIN, but goes on reading."""


@dataclass(frozen=True)
class Reset:
    """RST, once the kernel has taken what was written."""


@dataclass(frozen=True)
class Gone:
    """Waits until the other side has closed."""


Step = bytes | Request | Received | Pause | Gate | Close | HalfClose | Reset | Gone


class Connection(asyncio.Protocol):
    """One accepted connection: what arrived on it, and what has become of it."""

    def __init__(self, upstream: "ScriptedUpstream") -> None:
        self._upstream = upstream
        self.transport: asyncio.Transport | None = None
        self.received = b""
        self.eof = False  # the other side sent FIN
        self.lost = False  # the connection is over
        self.error: Exception | None = None  # why, unless it was closed in order
        self.lost_at = 0.0  # time.monotonic()
        self.finished = False  # the script has run out
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def requests(self) -> list[http1.Message]:
        """The requests so far; the last one may be incomplete."""
        found, data = [], self.received
        while data and (message := http1.parse(data, request=True)) is not None:
            found.append(message)
            data = data[len(message.raw) :]
            if not message.complete:
                break
        return found

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        script = self._upstream._take(self)
        self._task = asyncio.get_running_loop().create_task(self._run(script))

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._changed.set()

    def eof_received(self) -> bool:
        self.eof = True
        self._changed.set()
        return True  # stay open for writing

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self.error, self.lost_at = True, exc, time.monotonic()
        self._changed.set()

    async def _until(self, condition: "object") -> None:
        assert callable(condition)
        while not condition() and not self.lost:
            self._changed.clear()
            await self._changed.wait()

    async def _run(self, script: Sequence[Step]) -> None:
        transport = self.transport
        assert transport is not None
        asked = 0
        for step in script:
            if self.lost:
                return
            match step:
                case bytes():
                    transport.write(step)
                    await asyncio.sleep(0)
                case Request():
                    asked += 1
                    wanted = asked
                    await self._until(lambda wanted=wanted: sum(one.complete for one in self.requests) >= wanted)
                case Received():
                    count = step.count
                    await self._until(lambda count=count: len(self.received) >= count)
                case Pause():
                    await asyncio.sleep(step.seconds)
                case Gate():
                    await step.event.wait()
                case Gone():
                    await self._until(lambda: self.eof)
                case HalfClose():
                    transport.write_eof()
                case Close():
                    transport.close()
                    return
                case Reset():
                    while transport.get_write_buffer_size():  # noqa: ASYNC110 - transports have no event for it
                        await asyncio.sleep(0.001)
                    reset(transport)
                    return
        self.finished = True
        # Like most servers: once the other side is done, so are we.
        await self._until(lambda: self.eof)
        transport.close()

    async def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self.transport is not None:
            self.transport.abort()
        await self._until(lambda: False)


def reset(transport: asyncio.Transport) -> None:
    """Ends a connection by RST."""
    raw = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class ScriptedUpstream:
    """A TCP server that plays scripts. `connections` are in the order of their arrival."""

    def __init__(self, *scripts: Sequence[Step], host: str = "127.0.0.1") -> None:
        self._scripts = list(scripts)
        self.host = host
        self.port = 0
        self.connections: list[Connection] = []
        self._server: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def requests(self) -> list[http1.Message]:
        """All requests, connection by connection."""
        return [request for connection in self.connections for request in connection.requests]

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self.connections:
            await connection._stop()
        await self._server.wait_closed()

    def add(self, *scripts: Sequence[Step]) -> None:
        """Further scripts, for connections to come."""
        self._scripts.extend(scripts)

    def _take(self, connection: Connection) -> Sequence[Step]:
        self.connections.append(connection)
        if not self._scripts:
            return []
        return self._scripts[min(len(self.connections), len(self._scripts)) - 1]
