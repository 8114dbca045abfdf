"""Connections through an operator's proxy: HTTP CONNECT (RFC 9110 9.3.6) and SOCKS5 (RFC 1928, RFC 1929).

The proxy looks the upstream's name up, and sees its name and port alone where the upstream speaks TLS.
"""

import asyncio
import base64
import re
import socket
from ipaddress import ip_address
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from relay.config_values import Proxy

ANSWER_BYTES_MAX: Final = 8192
_GOOD: Final = re.compile(rb"HTTP/1\.[01] 2[0-9]{2}[ \r]")


class TunnelError(OSError):
    """The proxy has refused, or speaks something else."""


async def open_tunnel(proxy: Proxy, host: str, port: int) -> socket.socket:
    """A socket whose far end is the upstream. Raises OSError. How long it may take is the caller's business."""
    loop = asyncio.get_running_loop()
    sock = await _connected(proxy)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await (_socks(loop, sock, proxy, host, port) if proxy.socks else _http(loop, sock, proxy, host, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _connected(proxy: Proxy) -> socket.socket:
    loop = asyncio.get_running_loop()
    failed: OSError = TunnelError("the proxy has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(proxy.host, proxy.port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failed


async def _http(loop: asyncio.AbstractEventLoop, sock: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.user or proxy.password:
        known = base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {known}")
    await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode("ascii"))
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = await loop.sock_recv(sock, ANSWER_BYTES_MAX)
        answer += data
        if not data or len(answer) > ANSWER_BYTES_MAX:
            raise TunnelError("the proxy gave no answer")
    # Nothing may follow: the upstream speaks only when it is spoken to.
    if _GOOD.match(answer) is None or not answer.endswith(b"\r\n\r\n"):
        raise TunnelError("the proxy refused")


async def _socks(loop: asyncio.AbstractEventLoop, sock: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    async def read(count: int) -> bytes:
        found = b""
        while len(found) < count:
            data = await loop.sock_recv(sock, count - len(found))
            if not data:
                raise TunnelError("the proxy gave no answer")
            found += data
        return found

    known = bool(proxy.user or proxy.password)
    await loop.sock_sendall(sock, b"\x05\x02\x00\x02" if known else b"\x05\x01\x00")
    version, method = await read(2)
    if version != 5 or method not in ((0, 2) if known else (0,)):
        raise TunnelError("the proxy refused")
    if method == 2:
        user, password = proxy.user.encode(), proxy.password.encode()
        await loop.sock_sendall(sock, b"\x01%c%b%c%b" % (len(user), user, len(password), password))
        if (await read(2))[1] != 0:
            raise TunnelError("the proxy refused")
    try:
        number = ip_address(host)
        address = (b"\x01" if number.version == 4 else b"\x04") + number.packed
    except ValueError:
        name = host.encode("idna")
        address = b"\x03%c%b" % (len(name), name)
    await loop.sock_sendall(sock, b"\x05\x01\x00" + address + port.to_bytes(2, "big"))
    version, reply, _, kind = await read(4)
    if version != 5 or reply != 0:
        raise TunnelError("the proxy refused")
    size = {1: 4, 4: 16}.get(kind)
    await read((size if size is not None else (await read(1))[0]) + 2)


class Tunnels(aiohttp.TCPConnector):
    """aiohttp's connections (WebSockets) through a proxy: it makes no tunnel for plain ones, and knows no SOCKS5."""

    def __init__(self, proxy: Proxy, **more: Any) -> None:
        super().__init__(resolver=_NoNames(), **more)
        self._through = proxy

    async def _wrap_create_connection(
        self,
        *args: Any,
        addr_infos: Any,
        req: Any,
        timeout: Any,  # noqa: ASYNC109 - of a whole session
        client_error: Any = None,
        **kwargs: Any,
    ) -> Any:
        # Not public, but where aiohttp's own proxies and aiohttp-socks come in; the tests would tell.
        try:
            async with asyncio.timeout(timeout.sock_connect):
                sock = await open_tunnel(self._through, req.url.raw_host, req.url.port)
                return await self._loop.create_connection(*args, **kwargs, sock=sock)
        except TimeoutError:
            raise
        except (OSError, UnicodeError) as error:
            failed = error if isinstance(error, OSError) else TunnelError("a name that cannot be written")
            raise aiohttp.ClientConnectorError(req.connection_key, failed) from None


class _NoNames(AbstractResolver):
    """The proxy looks names up."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=socket.AI_NUMERICHOST
            )
        ]

    async def close(self) -> None:
        pass
