"""One request to an upstream and its answer, on a connection of its own: for what Python asks for.

Nothing is kept: a connection that carries one request alone cannot give its answer to another. The answer is read by
the compiled reader of calls. No more of it is read than the consumer asks for.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

from relay._fastpath import AnswerReader, FieldTable

HEAD_TAIL = b"Accept-Encoding: identity\r\nConnection: close\r\n"


class ExchangeError(Exception):
    """No whole answer. `code`: a name of relay.errors."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Exchange(asyncio.Protocol):
    """The protocol of the connection. It has to be closed, whatever happens."""

    def __init__(self, table: FieldTable) -> None:
        self.answer = AnswerReader(table)
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        self._news = asyncio.Event()  # something to look at for who waits for the answer
        self._writable = asyncio.Event()
        self._writable.set()
        self._over = False  # nothing more will come
        self._reading = True
        self._made = False

    @property
    def connected(self) -> bool:
        """Whether there ever was a connection."""
        return self._made

    # -- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._made = True
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        body = self.answer.feed(data)
        if body:
            self._parts.append(body)
            self._pause()
        if self.answer.ended or self.answer.bad:
            self.close()
        self._news.set()

    def eof_received(self) -> bool:
        self.answer.end()
        self._end()
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        if exc is None:
            self.answer.end()
        self._transport = None
        self._end()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._end()

    def _end(self) -> None:
        self._over = True
        self._news.set()
        self._writable.set()

    def _pause(self) -> None:
        if self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = False
            self._transport.pause_reading()

    def _resume(self) -> None:
        if not self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()

    # -- the request

    async def ask(self, head: bytes, body: bytes | AsyncIterator[bytes] | None, seconds: float) -> None:
        """Sends the request; returns when the answer's head is there. `head`: without its empty line; it has the length
        of the body, unless that goes in chunks.

        Raises TimeoutError where the upstream takes nothing, or answers nothing, for so long; ExchangeError; what the
        body raises.
        """
        if body is None or isinstance(body, bytes):
            self._write(head + b"\r\n", body or b"")
            async with asyncio.timeout(seconds):
                await self._begun()
            return
        # The answer may come before the whole body was sent: then the rest is not.
        answered = asyncio.ensure_future(self._begun())
        sent = asyncio.ensure_future(self._pass(head, body, seconds))
        try:
            await asyncio.wait((answered, sent), return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                sent.result()
                async with asyncio.timeout(seconds):
                    await answered
            answered.result()
        finally:
            for task in (answered, sent):
                task.cancel()
            await asyncio.gather(answered, sent, return_exceptions=True)

    async def _pass(self, head: bytes, body: AsyncIterator[bytes], seconds: float) -> None:
        chunked = b"\r\ncontent-length:" not in head.lower()
        self._write(head, b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n")
        async for data in body:
            if chunked:
                self._write(b"%x\r\n" % len(data), data, b"\r\n")
            else:
                self._write(data)
            async with asyncio.timeout(seconds):
                await self._writable.wait()
        if chunked:
            self._write(b"0\r\n\r\n")

    def _write(self, *parts: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(parts)

    # -- the answer

    async def _begun(self) -> None:
        while not self.answer.begun:
            if self.answer.bad:
                raise ExchangeError("upstream_garbage")
            if self._over:
                raise ExchangeError("upstream_failed")
            self._news.clear()
            await self._news.wait()

    async def piece(self) -> bytes:
        """More of the answer's body; nothing at its end. Raises ExchangeError."""
        while not self._parts:
            if self.answer.ended:
                return b""
            if self.answer.bad:
                raise ExchangeError("upstream_garbage")
            if self._over:
                raise ExchangeError("upstream_truncated")
            self._news.clear()
            self._resume()
            await self._news.wait()
        parts, self._parts = self._parts, []
        return b"".join(parts)
