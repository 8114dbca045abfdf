"""The command line's way to a running relay: HTTP over the unix socket in the data directory.

The standard library's client, because a command should not pay the import of a web framework to ask one question.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from relay.control.commands import COMMANDS
from relay.control.failures import CommandError
from relay.control.sockets import socket_address

PREFIX = "/admin/v1"
# Verifying or backing up a large store takes its time; anything else answers at once.
ANSWER_SECONDS_MAX = 3600.0
CONNECT_SECONDS = 5.0


class NotRunning(Exception):  # noqa: N818 - a state, not a fault
    """Nobody listens on the socket."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("relay", timeout=ANSWER_SECONDS_MAX)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_SECONDS)
        self.sock.connect(self._path)
        self.sock.settimeout(ANSWER_SECONDS_MAX)


def send(data_dir: Path, name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The relay's answer to a command. NotRunning when there is none; CommandError when it refuses or breaks off."""
    command = COMMANDS[name]
    rest = dict(fields)
    path = PREFIX + command.path
    for field in command.path_fields:
        path = path.replace(f"{{{field}}}", quote(str(rest.pop(field)), safe="") or "-")
    body: bytes | None = None
    if command.method == "GET":
        query = urlencode({key: value for key, value in rest.items() if value is not None})
        path += f"?{query}" if query else ""
    else:
        body = json.dumps(rest).encode()
    connection = _Connection(socket_address(data_dir))
    try:
        connection.connect()
    except PermissionError:
        raise CommandError("refused", f"{data_dir}: no permission to use the relay's socket") from None
    except OSError:
        connection.close()
        raise NotRunning from None
    try:
        connection.request(command.method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        document = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as failure:
        raise CommandError("unavailable", f"the relay broke off its answer ({type(failure).__name__})") from None
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise CommandError("unavailable", "the relay's answer is not understood")
    if answer.status >= 400:
        error = document.get("error")
        error = error if isinstance(error, dict) else {}
        raise CommandError(str(error.get("code", "unavailable")), str(error.get("message", f"HTTP {answer.status}")))
    return document


def absolute(path: str) -> str:
    """A file named on the command line, as the relay's process (in another directory) must see it."""
    return os.path.abspath(path)
