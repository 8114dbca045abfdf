"""Connections to upstreams: name resolution, TCP, TLS. Only new connections come here; kept ones are the pool's."""

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple, cast

from relay._fastpath import Call, Channel, UpstreamConnection
from relay.config_values import Proxy
from relay.proxy.tunnels import open_tunnel

log = logging.getLogger("relay.upstream")


class Target(NamedTuple):
    """Where a channel's connections go. `tls` None: plain TCP. `proxy`: through which; None: straight there."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    proxy: Proxy | None = None


class _Resuming(ssl.SSLContext):
    """Offers each host the session of the last connection to it, which saves both sides most of a handshake.

    Asked for when the next connection is made, because TLS 1.3 sends its tickets behind the handshake. Of a connection
    whose handshake was not finished, the check of the certificate in it, there is nothing to take up again.
    """

    _last: dict[str, ssl.SSLObject]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        host = str(server_hostname)
        last = self._last.get(host)
        if session is None and last is not None and last.version() is not None:
            session = last.session
        made = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        self._last[host] = made
        return made


def tls_context() -> ssl.SSLContext:
    """One for all channels, with the defaults of the standard library. HTTP/1.1 is the only protocol offered."""
    defaults = ssl.create_default_context()
    context = _Resuming(ssl.PROTOCOL_TLS_CLIENT)
    context._last = {}
    context.verify_flags = defaults.verify_flags
    context.load_default_certs()
    context.set_alpn_protocols(["http/1.1"])
    return context


async def open_connection(target: Target, protocol: Callable[[], asyncio.BaseProtocol]) -> asyncio.BaseProtocol:
    """A new connection. Raises what CONNECT_ERRORS has."""
    loop = asyncio.get_running_loop()
    name = target.host if target.tls else None
    if target.proxy is not None:
        tunnel = await open_tunnel(target.proxy, target.host, target.port)
        _, made = await loop.create_connection(protocol, sock=tunnel, ssl=target.tls, server_hostname=name)
    else:
        _, made = await loop.create_connection(protocol, target.host, target.port, ssl=target.tls, server_hostname=name)
    return made


# TLS, name resolution, a name that IDNA cannot write.
CONNECT_ERRORS: Final = (OSError, ValueError, RuntimeError)


def why_no_connection(error: BaseException) -> str:
    """For operators: what kept a connection from being made. No text of another program, but for OpenSSL's verdict."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the certificate is refused, {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or type(error).__name__}"
    if isinstance(error, socket.gaierror):
        return f"the host's name: {error.strerror}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


class Connector:
    """Opens connections, and remembers the attempts under way so that shutting down can end them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self, channel: Channel, call: Call) -> None:
        """Opens a connection and gives it to the call; a failure is told to the call as well."""
        task = asyncio.get_running_loop().create_task(self._connect(channel, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, channel: Channel, call: Call) -> None:
        try:
            async with asyncio.timeout(channel.connect_timeout_ns / 1e9):
                connection = await open_connection(
                    channel.target, lambda: cast(asyncio.BaseProtocol, UpstreamConnection(channel))
                )
        except TimeoutError:
            call.connect_failed(True)
        except CONNECT_ERRORS as error:
            log.warning("channel %s: no connection (%s)", channel.name, why_no_connection(error))
            call.connect_failed(False)
        else:
            call.connected(cast(UpstreamConnection, connection))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
