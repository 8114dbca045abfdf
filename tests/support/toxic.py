"""A TCP proxy with faults, for the line between any two programs under test."""

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from tests.support.scripted import reset

_READ_BYTES = 1 << 16


@dataclass
class Toxics:
    """Faults of one direction, also for connections that are open. Byte positions count per connection; -1: never."""

    latency_seconds: float = 0.0  # before each piece
    bandwidth_bytes_per_second: int = 0  # 0: no limit
    slice_bytes: int = 0  # pieces of at most so many bytes
    slice_gap_seconds: float = 0.0  # between the pieces
    stall_at: int = -1  # nothing passes from this byte on; the connection stays
    truncate_at: int = -1  # FIN to the receiver at this byte
    reset_at: int = -1  # RST to both sides at this byte


@dataclass
class Line:
    """One proxied connection."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    up_bytes: int = 0  # passed from client to server
    down_bytes: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class ToxicProxy:
    """`up`: faults from client to server, `down`: from server to client."""

    def __init__(
        self, target_port: int, target_host: str = "127.0.0.1", up: Toxics | None = None, down: Toxics | None = None
    ) -> None:
        self._target = (target_host, target_port)
        self.up = up or Toxics()
        self.down = down or Toxics()
        self.lines: list[Line] = []
        self.accepting = True  # False: new connections are reset at once
        self.host = "127.0.0.1"
        self.port = 0
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()

    def reset_all(self) -> None:
        """RST on every open line."""
        for line in self.lines:
            _reset(line)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        line: Line | None = None
        try:
            if not self.accepting:
                reset(writer.transport)
                return
            try:
                server_reader, server_writer = await asyncio.open_connection(*self._target)
            except OSError:
                reset(writer.transport)
                return
            line = Line(writer, server_writer)
            self.lines.append(line)
            line.tasks = [
                asyncio.ensure_future(self._pump(reader, server_writer, line, True)),
                asyncio.ensure_future(self._pump(server_reader, writer, line, False)),
            ]
            await asyncio.wait(line.tasks)
        except asyncio.CancelledError:
            pass  # the proxy stops; the streams module would log a cancelled handler
        finally:
            for open_writer in (writer,) if line is None else (line.client, line.server):
                open_writer.transport.abort()
            if line is not None:
                for pump in line.tasks:
                    pump.cancel()
                await asyncio.gather(*line.tasks, return_exceptions=True)
            self._handlers.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: Line, up: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_READ_BYTES):
                while data:
                    toxics = self.up if up else self.down
                    passed = line.up_bytes if up else line.down_bytes
                    piece, data = _next_piece(data, toxics, passed)
                    if toxics.latency_seconds:
                        await asyncio.sleep(toxics.latency_seconds)
                    began = time.monotonic()
                    if piece:
                        writer.write(piece)
                        await writer.drain()
                    passed += len(piece)
                    if up:
                        line.up_bytes = passed
                    else:
                        line.down_bytes = passed
                    if passed == toxics.reset_at:
                        while writer.transport.get_write_buffer_size():  # noqa: ASYNC110
                            await asyncio.sleep(0.001)
                        _reset(line)
                        return
                    if passed == toxics.truncate_at:
                        writer.close()
                        return
                    if passed == toxics.stall_at:
                        await asyncio.get_running_loop().create_future()
                    if toxics.bandwidth_bytes_per_second:
                        due = began + len(piece) / toxics.bandwidth_bytes_per_second
                        await asyncio.sleep(max(0.0, due - time.monotonic()))
                    if toxics.slice_bytes and data:
                        await asyncio.sleep(toxics.slice_gap_seconds)
            if writer.can_write_eof() and not writer.is_closing():
                writer.write_eof()
            return
        # One side was reset: so is the other.
        _reset(line)


def _next_piece(data: bytes, toxics: Toxics, passed: int) -> tuple[bytes, bytes]:
    """Splits off what passes in one go; it ends where a fault is due."""
    size = len(data)
    if toxics.slice_bytes:
        size = min(size, toxics.slice_bytes)
    if toxics.bandwidth_bytes_per_second:
        size = min(size, max(1, toxics.bandwidth_bytes_per_second // 50))
    for at in (toxics.reset_at, toxics.truncate_at, toxics.stall_at):
        if at >= passed:
            size = min(size, at - passed)
    return data[:size], data[size:]


def _reset(line: Line) -> None:
    reset(line.client.transport)
    reset(line.server.transport)
