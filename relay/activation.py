"""Listening sockets that a supervisor holds (systemd socket activation).

The supervisor binds and listens; the relay inherits the sockets as descriptors 3, 4, ... While one process stops and
the next starts, connections wait in the kernel's queue: a restart refuses none. Protocol: sd_listen_fds(3).
"""

import os
import socket
from collections.abc import Mapping

FIRST_DESCRIPTOR = 3
VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def take_sockets(environment: Mapping[str, str] = os.environ, *, pid: int | None = None) -> list[socket.socket]:
    """The sockets meant for this process, non-blocking and not inherited further; [] where there are none.

    Raises OSError where what was passed is not a listening stream socket.
    """
    if environment.get("LISTEN_PID") != str(os.getpid() if pid is None else pid):
        return []  # none, or meant for a parent
    count = environment.get("LISTEN_FDS", "")
    if not count.isascii() or not count.isdigit():
        return []
    taken: list[socket.socket] = []
    for number in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)):
        os.set_inheritable(number, False)
        given = socket.socket(fileno=number)
        taken.append(given)
        listens = given.type == socket.SOCK_STREAM and given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if given.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or not listens:
            raise OSError(f"descriptor {number} of LISTEN_FDS is not a listening stream socket")
        given.setblocking(False)
    return taken
