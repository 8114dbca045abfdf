"""A client that sends exact bytes and keeps exact bytes, with the time of each read."""

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

from tests.support import http1
from tests.support.scripted import reset


@dataclass(frozen=True)
class Read:
    at: float  # time.monotonic()
    data: bytes


class RawClient(asyncio.Protocol):
    """`async with await RawClient.connect(host, port) as client:`"""

    def __init__(self) -> None:
        self.reads: list[Read] = []
        self.received = b""
        self.eof = False
        self.lost = False
        self.error: Exception | None = None
        self._used = 0  # bytes that earlier answers took
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.transport: asyncio.Transport | None = None

    @classmethod
    async def connect(
        cls, host: str, port: int, *, tls: ssl.SSLContext | None = None, server_hostname: str | None = None
    ) -> Self:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(cls, host, port, ssl=tls, server_hostname=server_hostname)
        return client

    # The line.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self.reads.append(Read(time.monotonic(), data))
        self.received += data
        self._changed.set()

    def eof_received(self) -> bool:
        self.eof = True
        self._changed.set()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self.error = True, exc
        self._changed.set()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # What a test does.

    async def send(self, data: bytes, split: int = 0) -> None:
        """Writes `data`; `split`: in parts of so many bytes, with a turn of the loop between them."""
        assert self.transport is not None
        step = split or max(1, len(data))
        for at in range(0, len(data), step):
            if self.transport.is_closing():
                return
            self.transport.write(data[at : at + step])
            await asyncio.sleep(0)
            await self._writable.wait()

    async def request(
        self,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        *,
        timeout_seconds: float = 5.0,
    ) -> http1.Message:
        """One request and its answer on this connection."""
        await self.send(http1.request_bytes(method, target, headers, body))
        return await self.response(head_only=method == "HEAD", timeout_seconds=timeout_seconds)

    async def response(self, *, head_only: bool = False, timeout_seconds: float = 5.0) -> http1.Message:
        """The next answer; incomplete if the connection ended inside it. 1xx answers are skipped."""
        while True:
            found: list[http1.Message] = []

            def ready(found: list[http1.Message] = found) -> bool:
                over = self.eof or self.lost
                # An RST is no end of a body.
                ended = over and self.error is None
                message = http1.parse(self.received[self._used :], ended=ended, head_only=head_only)
                if message is not None and (message.complete or over):
                    found.append(message)
                return bool(found) or over

            await self.until(ready, timeout_seconds)
            if not found:
                raise ConnectionError(f"no answer: {self.received[self._used :]!r}, {self.error!r}")
            self._used += len(found[0].raw)
            if found[0].status >= 200:
                return found[0]

    async def until(self, condition: Callable[[], bool], timeout_seconds: float = 5.0) -> None:
        """Waits for a condition on what was received. Fails the test when it does not hold in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            tail = self.received[-200:]
            raise AssertionError(f"not within {timeout_seconds} s; {len(self.received)} bytes, last {tail!r}") from None

    async def until_bytes(self, count: int, timeout_seconds: float = 5.0) -> bytes:
        """Waits for at least so many bytes in all, or the end."""
        await self.until(lambda: len(self.received) >= count or self.lost, timeout_seconds)
        return self.received

    async def until_contains(self, data: bytes, timeout_seconds: float = 5.0) -> bytes:
        await self.until(lambda: data in self.received, timeout_seconds)
        return self.received

    async def until_lost(self, timeout_seconds: float = 5.0) -> bytes:
        """Waits for the end of the connection; returns all bytes received."""
        await self.until(lambda: self.lost, timeout_seconds)
        return self.received

    @property
    def was_reset(self) -> bool:
        return isinstance(self.error, ConnectionResetError)

    def pause_reading(self) -> None:
        assert self.transport is not None
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        assert self.transport is not None
        self.transport.resume_reading()

    def half_close(self) -> None:
        assert self.transport is not None
        self.transport.write_eof()

    def reset(self) -> None:
        assert self.transport is not None
        reset(self.transport)

    async def close(self) -> None:
        if self.transport is not None and not self.lost:
            self.transport.abort() if self.transport.is_closing() else self.transport.close()
            await self.until(lambda: self.lost)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
