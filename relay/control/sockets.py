"""Where the operator's unix socket is."""

from __future__ import annotations

import os
from pathlib import Path

SOCKET_NAME = "relay.sock"
# The kernel's limit for the path of a unix socket is 108 bytes with its final NUL.
_SOCKET_PATH_BYTES_MAX = 107


def socket_address(data_dir: Path) -> str:
    """The path by which the socket is bound or reached: a relative one where the whole is too long for a socket."""
    path = str(data_dir / SOCKET_NAME)
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX:
        return path
    relative = os.path.relpath(path)
    return relative if len(os.fsencode(relative)) <= _SOCKET_PATH_BYTES_MAX else path
