"""The relay's own TLS: connections count from the moment at which they are accepted, not only once they can speak.

The loop's own TLS listener tells nobody of a connection before its handshake is done, and gives it a minute: silent
ones could take every descriptor.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

import uvloop.loop

from relay._fastpath import Engine, FrontDoor

TOLD_MAX: Final = 64  # connections above the limit that are let in to be told so
_SslProtocol: Any = uvloop.loop.SSLProtocol  # type: ignore[attr-defined]  # as the loop's own `start_tls` uses it


class TlsDoor:
    """Makes the protocol of each accepted connection."""

    def __init__(self, engine: Engine, context: ssl.SSLContext, handshake_seconds: Callable[[], float]) -> None:
        self.engine = engine
        self.context = context
        self.handshake_seconds = handshake_seconds
        self.handshakes = 0  # under way

    def __call__(self) -> asyncio.Protocol:
        return _Accepted(self)

    @property
    def full(self) -> bool:
        engine = self.engine
        connections = engine.open_connections + engine.other_connections + self.handshakes
        return connections >= engine.connections_max + TOLD_MAX

    def ended(self, handshake: "asyncio.Future[None]") -> None:
        self.handshakes -= 1
        if not handshake.cancelled():
            handshake.exception()  # a client that does not speak TLS is nobody's fault


class _Accepted(asyncio.Protocol):
    """Until its handshake begins, which is at once."""

    def __init__(self, door: TlsDoor) -> None:
        self._door = door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        door = self._door
        if door.full:
            door.engine.turned_away_total += 1
            cast(asyncio.Transport, transport).abort()
            return
        loop = asyncio.get_running_loop()
        handshake: asyncio.Future[None] = loop.create_future()
        door.handshakes += 1
        handshake.add_done_callback(door.ended)
        protocol = _SslProtocol(
            loop, FrontDoor(door.engine), door.context, handshake,
            server_side=True, ssl_handshake_timeout=door.handshake_seconds(),
        )  # fmt: skip
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
