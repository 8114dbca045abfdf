"""Puts an answer on the wire, with all the misbehaviour that was asked for.

The bytes are written to the transport directly, head and framing included: aiohttp's own response classes cannot cut a
body at a given byte, split a chunk header over two writes or send an answer that is not HTTP.
"""

import asyncio
import contextlib
import gzip
import http
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Protocol

import brotli
import zstandard
from aiohttp import web

from relay.simulator.answer import Answer
from relay.simulator.book import Book, Entry
from relay.simulator.directives import Directives
from relay.simulator.plan import EOL

# Events written without giving other tasks a turn. A client that leaves is noticed at the next turn.
_EVENTS_PER_TURN = 32
_FLUSH_SECONDS = 5.0

_GARBAGE = b"\x16\x03\x01SIMULATED GARBAGE: this is not HTTP\x00\xff\r\n\r\n"


class Encoder(Protocol):
    def encode(self, data: bytes) -> bytes: ...  # everything given so far can be decoded from what was returned so far
    def finish(self) -> bytes: ...


class _Zlib:
    def __init__(self, window_bits: int) -> None:
        self._compressor = zlib.compressobj(wbits=window_bits)

    def encode(self, data: bytes) -> bytes:
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._compressor.flush(zlib.Z_FINISH)


class _Brotli:
    def __init__(self) -> None:
        self._compressor = brotli.Compressor(quality=4)

    def encode(self, data: bytes) -> bytes:
        encoded: bytes = self._compressor.process(data) + self._compressor.flush()
        return encoded

    def finish(self) -> bytes:
        encoded: bytes = self._compressor.finish()
        return encoded


class _Zstandard:
    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor().compressobj()

    def encode(self, data: bytes) -> bytes:
        return self._compressor.compress(data) + self._compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def finish(self) -> bytes:
        return self._compressor.flush(zstandard.COMPRESSOBJ_FLUSH_FINISH)


def encoder_for(encoding: str) -> Encoder | None:
    match encoding:
        case "gzip":
            return _Zlib(31)
        case "deflate":
            return _Zlib(15)
        case "br":
            return _Brotli()
        case "zstd":
            return _Zstandard()
    return None


def _compressed(encoding: str, body: bytes) -> bytes:
    """A whole body in one go, as providers compress answers that are not streams."""
    if encoding == "gzip":
        return gzip.compress(body, mtime=0)
    encoder = encoder_for(encoding)
    return body if encoder is None else encoder.encode(body) + encoder.finish()


class SentResponse(web.StreamResponse):
    """Tells aiohttp that the answer is out already, and whether the connection may serve another request."""

    def __init__(self, status: int, keep_alive: bool) -> None:
        super().__init__(status=status)
        self._keep_alive = keep_alive

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class _Ended(Exception):  # noqa: N818
    """The connection was ended on purpose."""


class Sender:
    """One answer on its way."""

    def __init__(self, request: web.Request, entry: Entry, book: Book, d: Directives) -> None:
        self.request = request
        self.entry = entry
        self.book = book
        self.d = d
        self._answer: Answer | None = None

    def count_said(self, finished: bool = False) -> None:
        """Notes how many output tokens have been sent."""
        answer, entry = self._answer, self.entry
        if answer is None or not entry.body_bytes_sent or entry.outcome == "finished":
            return
        if finished or answer.events is None or answer.plan is None:
            entry.output_tokens_sent = answer.output_tokens
        else:
            entry.output_tokens_sent = min(answer.plan.said, answer.output_tokens)

    async def send(self, answer: Answer, head_lines: bytes) -> web.StreamResponse:
        """`head_lines`: the provider's, without framing. Raises ConnectionResetError when the client is gone."""
        d, entry = self.d, self.entry
        entry.status = answer.status
        self._answer = answer
        if d.first_ms > 0:
            await asyncio.sleep(d.first_ms / 1000)
        if d.garbage:
            self._write(_GARBAGE, b"")
            await self._end_connection("garbage")
            return SentResponse(502, keep_alive=False)
        old_client = self.request.version < (1, 1)
        framing = "length" if answer.events is None and not d.chunked else "chunked"
        if d.close or (old_client and framing == "chunked"):
            framing = "close"
        keep_alive = framing != "close" and bool(d.keepalive) and self.request.keep_alive and not old_client
        no_body = self.request.method == "HEAD" or answer.status in (204, 304)
        pieces: Iterator[bytes]
        body = b""
        if answer.events is None:
            body = self._before() + answer.body
            if d.encoding:
                body = _compressed(d.encoding, body)
            pieces = iter((body,))
        else:
            pieces = self._stream(answer.events, answer.content_type.startswith("text/event-stream"))
        head = self._head(answer, head_lines, framing, len(body), keep_alive)
        try:
            if no_body:
                self._write(head, b"")
            else:
                await self._send(head, pieces, framing, answer.events is not None)
        except _Ended:
            return SentResponse(answer.status, keep_alive=False)
        self.count_said(finished=True)
        self.book.end(entry, "finished")
        return SentResponse(answer.status, keep_alive)

    def _head(self, answer: Answer, lines: bytes, framing: str, length: int, keep_alive: bool) -> bytes:
        try:
            phrase = http.HTTPStatus(answer.status).phrase
        except ValueError:
            phrase = "Overloaded" if answer.status == 529 else "Unknown"
        parts = [f"HTTP/1.1 {answer.status} {phrase}\r\n".encode(), lines]
        parts += [f"{name}: {value}\r\n".encode() for name, value in answer.headers]
        if self.d.encoding:
            parts.append(f"content-encoding: {self.d.encoding}\r\nvary: Accept-Encoding\r\n".encode())
        if framing == "length":
            parts.append(b"content-length: %d\r\n" % length)
        elif framing == "chunked":
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"connection: keep-alive\r\n\r\n" if keep_alive else b"connection: close\r\n\r\n")
        return b"".join(parts)

    def _before(self) -> bytes:
        return (b"\xef\xbb\xbf" if self.d.bom else b"") + (EOL[self.d.eol] * self.d.blank)

    def _stream(self, events: Iterator[bytes], comments: bool) -> Iterator[bytes]:
        """The events as body pieces: with comments, compressed, counted."""
        d, entry = self.d, self.entry
        encoder = encoder_for(d.encoding)
        before = self._before()
        comment = b": SIMULATED PROCESSING" + EOL[d.eol] * 2
        for number, event in enumerate(events):
            piece = event
            if comments and d.comments > 0 and number % d.comments == 0:
                piece = comment + piece
            if before:
                piece, before = before + piece, b""
            if encoder is not None:
                piece = encoder.encode(piece)
            yield piece
            entry.events_sent += 1
        if encoder is not None and (tail := encoder.finish()):
            yield tail

    async def _send(self, head: bytes, pieces: Iterator[bytes], framing: str, streamed: bool) -> None:
        d = self.d
        if d.cut_head >= 0:
            self._write(head[: d.cut_head], b"")
            await self._end_connection("cut")
        pause = d.pace_ms / 1000
        chunked = framing == "chunked"
        wire = head  # what the next write begins with
        if d.body_ms > 0:
            await self._out(wire, b"")
            wire = b""
            await asyncio.sleep(d.body_ms / 1000)
        waiting: list[bytes] = []  # framed, for one write
        bodies: list[bytes] = []
        offset = 0
        writes = 0
        limit = min(value if value >= 0 else 1 << 62 for value in (d.cut, d.stall))
        stopping = d.cut >= 0 or d.stall >= 0
        for piece in pieces:
            for part in _parts(piece, d.chunk if chunked else 0):
                if stopping and offset + len(part) > limit:
                    kept = part[: limit - offset]
                    if kept:
                        waiting.append((b"%x\r\n" % len(part) if chunked else b"") + kept)
                        bodies.append(kept)
                    await self._out(wire + b"".join(waiting), b"".join(bodies))
                    await self._stop_here()
                offset += len(part)
                bodies.append(part)
                waiting.append(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            if len(waiting) >= d.pack and streamed:
                if pause and writes:
                    await asyncio.sleep(pause)
                await self._out(wire + b"".join(waiting) if wire or len(waiting) > 1 else waiting[0], b"".join(bodies))
                wire = b""
                waiting.clear()
                bodies.clear()
                writes += 1
                if writes % _EVENTS_PER_TURN == 0:
                    await asyncio.sleep(0)
        if stopping and limit in (offset, 1 << 62):
            # Everything was said, the end of the framing was not.
            await self._out(wire + b"".join(waiting), b"".join(bodies))
            await self._stop_here()
        if chunked:
            waiting.append(b"0\r\n\r\n")
        if wire or waiting:
            if pause and bodies and writes:
                await asyncio.sleep(pause)
            await self._out(wire + b"".join(waiting), b"".join(bodies))

    async def _stop_here(self) -> None:
        d = self.d
        if d.stall >= 0 and (d.cut < 0 or d.stall <= d.cut):
            self.entry.stalled = True
            self.book.notify()
            await asyncio.get_running_loop().create_future()  # until the client leaves, or the simulator stops
        await self._end_connection("cut")

    async def _out(self, wire: bytes, body: bytes) -> None:
        """Writes `wire`, in parts if asked for, and waits while the client does not read. `body`: its body bytes."""
        split = self.d.split
        if split <= 0 or len(wire) <= split:
            self._write(wire, body)
        else:
            for at in range(0, len(wire), split):
                last = at + split >= len(wire)
                self._write(wire[at : at + split], body if last else b"")
                if not last:
                    await asyncio.sleep(self.d.split_ms / 1000)
                    # Two turns: a reader in the same loop runs behind this task within a turn.
                    await asyncio.sleep(0)
        await self.request.writer.drain()

    def _write(self, wire: bytes, body: bytes) -> None:
        transport = self.request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client has left")
        transport.write(wire)
        self.book.sent(self.entry, body, len(wire))

    async def _end_connection(self, outcome: str) -> None:
        """Ends the connection behind what was written, by FIN or RST. Raises _Ended."""
        transport = self.request.transport
        if transport is None:
            raise ConnectionResetError("the client has left")
        self.count_said()
        self.book.end(self.entry, outcome)  # before the loss of the connection is noticed as if the client had left
        if self.d.cut_how == "rst":
            # An RST overtakes what is still queued here: let the kernel have everything first.
            async with asyncio.timeout(_FLUSH_SECONDS):
                while transport.get_write_buffer_size():  # noqa: ASYNC110 - transports have no event for it
                    await asyncio.sleep(0.001)
            raw = transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            transport.close()
        raise _Ended


def _parts(piece: bytes, size: int) -> Iterator[bytes]:
    if not piece:
        return  # an empty chunk would end the body
    if size <= 0:
        yield piece
        return
    for at in range(0, len(piece), size):
        yield piece[at : at + size]
