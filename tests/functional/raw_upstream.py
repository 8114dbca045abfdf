"""An upstream for relays under test whose answers are exact byte scripts, chosen by each request.

A request names its script by `#raw NAME#` anywhere in its body. Connections are kept, so one of them can serve
thousands of scripts; that is what tests of every cut of a stream need.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast

from tests.support.scripted import reset

_NAME = re.compile(rb"#raw ([^#\"\\]+)#")


@dataclass(frozen=True)
class Gate:
    """Waits for the test to set the event."""

    event: asyncio.Event


@dataclass(frozen=True)
class Passed:
    """Waits until so many bytes of the script have reached the client, who tells by `Exchange.reached`."""

    count: int


@dataclass(frozen=True)
class Turn:
    """A moment in which the relay can read what was written."""

    seconds: float = 0.002


@dataclass(frozen=True)
class Close:
    """FIN behind what was written."""


@dataclass(frozen=True)
class Reset:
    """RST behind what was written."""


@dataclass(frozen=True)
class Gone:
    """Waits until the relay has closed the connection."""


Step = bytes | Gate | Passed | Turn | Close | Reset | Gone


@dataclass
class Exchange:
    """One script and what became of it."""

    steps: Sequence[Step]
    requests: list[bytes] = field(default_factory=list)  # heads
    bodies: list[bytes] = field(default_factory=list)
    sent: int = 0  # bytes written
    position: int = 0  # steps begun
    finished: bool = False  # the script has run out
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # the relay closed its connection before that
    gone_at: float = 0.0  # loop time
    _reached: int = 0
    _waiter: asyncio.Future[None] | None = None
    _wanted: int = 0

    def reached(self, count: int) -> None:
        """From the client: it has so many bytes of the answer, counted as the script counts them."""
        self._reached = count
        if self._waiter is not None and count >= self._wanted and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait_reached(self, count: int) -> None:
        if self._reached < count:
            self._wanted = count
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    @property
    def header(self) -> dict[str, str]:
        """Fields of the last request, names in lower case."""
        lines = self.requests[-1].decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: "RawUpstream") -> None:
        self.upstream = upstream
        self.pending = b""
        self.exchange: Exchange | None = None
        self.task: asyncio.Task[None] | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.upstream.connections += 1
        self.upstream.open.add(self)

    def data_received(self, data: bytes) -> None:
        self.pending += data
        head, found, body = self.pending.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        size = int(length[1]) if length else 0
        if len(body) < size:
            return
        self.pending = body[size:]
        named = _NAME.search(body)
        self.upstream.requests += 1
        exchange = self.upstream.exchanges.get(named[1].decode()) if named else None
        if exchange is None:
            self.upstream.unknown += 1
            self.transport.abort()
            return
        exchange.requests.append(head)
        exchange.bodies.append(body[:size])
        self.exchange = exchange
        self.task = asyncio.get_running_loop().create_task(self.play(exchange))

    async def play(self, exchange: Exchange) -> None:
        for step in exchange.steps:
            exchange.position += 1
            match step:
                case bytes():
                    if self.lost.is_set():
                        return
                    self.transport.write(step)
                    exchange.sent += len(step)
                    await asyncio.sleep(0)
                case Gate():
                    await step.event.wait()
                case Passed():
                    await exchange.wait_reached(step.count)
                case Turn():
                    await asyncio.sleep(step.seconds)
                case Close():
                    self.transport.close()
                case Reset():
                    while self.transport.get_write_buffer_size():  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
                    reset(self.transport)
                case Gone():
                    await self.lost.wait()
        exchange.finished = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self.upstream.open.discard(self)
        if self.exchange is not None and not self.exchange.finished:
            self.exchange.gone_at = asyncio.get_running_loop().time()
            self.exchange.gone.set()

    def stop(self) -> list[asyncio.Task[None]]:
        self.transport.abort()
        if self.task is not None:
            self.task.cancel()
            return [self.task]
        return []


class RawUpstream:
    """`upstream.script("name", b"...", ...)`, then a call whose body holds `#raw name#`."""

    def __init__(self) -> None:
        self.exchanges: dict[str, Exchange] = {}
        self.connections = 0
        self.requests = 0
        self.unknown = 0  # requests that named no script
        self.open: set[_Connection] = set()
        self.port = 0
        self._names = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def script(self, *steps: Step) -> tuple[str, Exchange]:
        """What to put into the request, and the exchange."""
        self._names += 1
        name = f"script-{self._names}"
        exchange = self.exchanges[name] = Exchange(steps)
        return f"#raw {name}#", exchange

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        tasks = [task for connection in list(self.open) for task in connection.stop()]
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()
