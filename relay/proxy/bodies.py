"""Request bodies as aiohttp's parser hands them over: asked for, waited for, made plain, in memory."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

from aiohttp import web

from relay._fastpath import BODY_BYTES_PER_SECOND, BODY_IDLE_TIMES
from relay.proxy import decoders
from relay.wire import headers as wire_headers

EXPECTS = web.RequestKey("relay.expects", bool)


WINDOW_BYTES_MAX: Final = 8 << 20  # of zstd: no sender may use more in HTTP (RFC 9659)
TURN_BYTES: Final = 1 << 20  # made out of one piece: then others get their turn


class UnknownCodingError(Exception):
    """A body is compressed in a way that is not known here, or several times."""


class BrokenCodingError(Exception):
    """A body is not what its Content-Encoding says, or stops in the middle."""


def coding_of(fields: Iterable[tuple[bytes, bytes]]) -> decoders.Decoder | None:
    """What makes a body plain; None: it is. Raises UnknownCodingError."""
    values = wire_headers.values(fields, b"content-encoding")
    codings = [coding.strip(b" \t").lower() for value in values for coding in value.split(b",")]
    codings = [coding for coding in codings if coding not in (b"", b"identity")]
    if not codings:
        return None
    decoder = decoders.decoder(codings[0], WINDOW_BYTES_MAX)
    if len(codings) > 1 or decoder is None:
        raise UnknownCodingError
    return decoder


class Body:
    """Reads one body, and bounds how long its client lets us wait: for the next piece, and in all.

    decoder  makes it plain, piece by piece; its sizes are those of the plain body
    """

    def __init__(self, request: web.Request, idle_seconds: float, decoder: decoders.Decoder | None = None) -> None:
        self._request = request
        self._idle_seconds = idle_seconds
        self._waited_seconds = 0.0
        self._decoder = decoder
        self._pieces: Iterator[bytes] = iter(())  # of what was read last
        self._turn_bytes = 0
        self._received = 0
        self.size = 0  # bytes so far

    @property
    def expected(self) -> bool:
        """Whether its client waits to be asked for it."""
        return bool(self._request.get(EXPECTS))

    async def next(self) -> bytes:
        """The next piece; nothing at the end.

        Raises TimeoutError, BrokenCodingError, and what aiohttp has for a client that is gone.
        """
        data = await self._received_next() if self._decoder is None else await self._plain_next(self._decoder)
        self.size += len(data)
        return data

    async def _plain_next(self, decoder: decoders.Decoder) -> bytes:
        if self._turn_bytes > TURN_BYTES:
            self._turn_bytes = 0
            await asyncio.sleep(0)
        try:
            while True:
                for piece in self._pieces:
                    if piece:
                        self._turn_bytes += len(piece)
                        return piece
                data = await self._received_next()
                if not data:
                    break
                self._pieces = decoder(data)
        except decoders.BROKEN:
            raise BrokenCodingError from None
        if not decoder.finished:
            raise BrokenCodingError
        return b""

    async def _received_next(self) -> bytes:
        await invite(self._request)
        in_all = BODY_IDLE_TIMES * self._idle_seconds + self._received / BODY_BYTES_PER_SECOND - self._waited_seconds
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(min(self._idle_seconds, in_all)):
            data = await self._request.content.readany()
        self._waited_seconds += loop.time() - began
        self._received += len(data)
        return data


async def invite(request: web.Request) -> None:
    """`100 Continue` to a client that waits for it, once its body is wanted."""
    if request.get(EXPECTS):
        request[EXPECTS] = False
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the head of the answer has not been written yet
