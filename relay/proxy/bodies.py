"""Request bodies as aiohttp's parser hands them over: asked for, waited for, in memory."""

import asyncio

from aiohttp import web

from relay._fastpath import BODY_BYTES_PER_SECOND, BODY_IDLE_TIMES

EXPECTS = web.RequestKey("relay.expects", bool)


class Body:
    """Reads one body, and bounds how long its client lets us wait: for the next piece, and in all."""

    def __init__(self, request: web.Request, idle_seconds: float) -> None:
        self._request = request
        self._idle_seconds = idle_seconds
        self._waited_seconds = 0.0
        self.size = 0  # bytes so far

    @property
    def expected(self) -> bool:
        """Whether its client waits to be asked for it."""
        return bool(self._request.get(EXPECTS))

    async def next(self) -> bytes:
        """The next piece; nothing at the end. Raises TimeoutError, and what aiohttp has for a client that is gone."""
        await invite(self._request)
        in_all = BODY_IDLE_TIMES * self._idle_seconds + self.size / BODY_BYTES_PER_SECOND - self._waited_seconds
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.timeout(min(self._idle_seconds, in_all)):
            data = await self._request.content.readany()
        self._waited_seconds += loop.time() - began
        self.size += len(data)
        return data


async def invite(request: web.Request) -> None:
    """`100 Continue` to a client that waits for it, once its body is wanted."""
    if request.get(EXPECTS):
        request[EXPECTS] = False
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the head of the answer has not been written yet
