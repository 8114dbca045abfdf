"""Ends a client's connection so that it sees a cut."""

import asyncio
import contextlib
import socket
import struct

_NO_LINGER = struct.pack("ii", 1, 0)


def reset(transport: asyncio.BaseTransport) -> None:
    """RST. An abort alone closes in order what was sent: an answer that ends with its connection would look whole."""
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()  # type: ignore[attr-defined]  # of every transport that has a socket
