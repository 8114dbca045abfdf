"""The operator's API: /admin/v1/*, one route per command of `commands.COMMANDS`.

Two ways in: the unix socket in the data directory (mode 0600: whoever may open the file may do everything), and the
operator's token over HTTP. Both get the same routes and the same JSON, except commands that name files (backup), which
only the socket may. Errors have one shape: {"error": {"code", "message", "field"?}}.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from relay.control import openapi
from relay.control.commands import COMMANDS, Command, read_params
from relay.control.failures import CommandError
from relay.control.listening import Runner
from relay.control.operations import Operations
from relay.control.responses import error_response, json_response, query_fields
from relay.control.sockets import SOCKET_NAME, socket_address
from relay.storage.ownership import adopt
from relay.wire import strictjson

logger = logging.getLogger(__name__)

PREFIX = "/admin/v1"
DESCRIPTION = "/openapi.json"
_PATHS = [
    *((re.compile(Command.PATH_FIELD.sub("[^/]+", command.path)), command.method) for command in COMMANDS.values()),
    (re.compile(re.escape(DESCRIPTION)), "GET"),
]
# The largest command is a key with long lists of models and networks; 64 KiB is far above.
BODY_BYTES_MAX = 65_536


def add_routes(app: web.Application, operations: Operations, *, operator_token: Callable[[], str] | None) -> None:
    """Registers every command on `app`.

    `operator_token` gives the token in force (empty: none configured, everything is refused); None means that the way
    in is already trusted: the unix socket.
    """
    for command in COMMANDS.values():
        app.router.add_route(command.method, PREFIX + command.path, _handler(command, operations, operator_token))
    app.router.add_get(PREFIX + DESCRIPTION, _description(operator_token), allow_head=False)
    app.router.add_route("*", PREFIX + "/{rest:.*}", _unknown(operator_token))


def _handler(
    command: Command, operations: Operations, operator_token: Callable[[], str] | None
) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.Response:
        try:
            authorise(request, operator_token)
            if command.local and operator_token is not None:
                raise CommandError("refused", f"{command.name} is only possible over the unix socket")
            params = await _read(command, request)
            # A change that has begun is finished, also when its client goes away: the store and the relay must agree.
            document = await asyncio.shield(asyncio.ensure_future(operations.run(command, params)))
        except CommandError as failure:
            return error_response(failure)
        except (asyncio.CancelledError, web.HTTPException):
            raise
        except Exception:
            # What went wrong may hold anything; the answer says only that it did.
            logger.exception("command %s failed", command.name)
            return json_response({"error": {"code": "internal", "message": "the command failed; see the log"}}, 500)
        return json_response(document)

    return handle


def _unknown(operator_token: Callable[[], str] | None) -> Callable[[web.Request], Any]:
    async def handle(request: web.Request) -> web.Response:
        try:
            authorise(request, operator_token)
        except CommandError as failure:
            return error_response(failure)
        path = "/" + request.match_info["rest"]
        methods = sorted({method for pattern, method in _PATHS if pattern.fullmatch(path)})
        if methods:
            wrong = CommandError("method_not_allowed", f"this route answers {' and '.join(methods)}")
            return json_response(wrong.document(), wrong.status, {"Allow": ", ".join(methods)})
        return error_response(CommandError("not_found", "no such route of the operator's API"))

    return handle


def _description(operator_token: Callable[[], str] | None) -> Callable[[web.Request], Any]:
    described = openapi.admin()

    async def handle(request: web.Request) -> web.Response:
        try:
            authorise(request, operator_token)
        except CommandError as failure:
            return error_response(failure)
        return json_response(described)

    return handle


def authorise(request: web.Request, operator_token: Callable[[], str] | None) -> None:
    """Lets the operator through, or raises CommandError. There is one role; a customer's key is never enough."""
    if operator_token is None:
        return
    token = operator_token()
    given = [value for name, value in request.raw_headers if name.lower() == b"authorization"]
    if not token:
        raise CommandError(
            "refused",
            "no operator token (admin.token) is configured; without one only the unix socket answers commands",
        )
    scheme, _, value = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
    if not value.isascii():
        raise CommandError("invalid", "the field holds bytes that are not visible ASCII", "authorization")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(value.strip(), token.encode()):
        raise CommandError("unauthorized", "expected the operator token as Authorization: Bearer")


async def _read(command: Command, request: web.Request) -> Any:
    fields: dict[str, Any] = {}
    if command.method == "GET":
        fields = query_fields(request)
    else:
        if request.query_string:
            raise CommandError("invalid", "parameters of a change belong in the body", "query")
        body = await _body(request)
        if body:
            if request.content_type != "application/json":
                raise CommandError("invalid", "expected Content-Type: application/json", "body")
            try:
                document = strictjson.loads(body)
            except strictjson.DuplicateKeyError:
                raise CommandError("invalid", "a key stands twice in one object of the body", "body") from None
            except ValueError:
                raise CommandError("invalid", "the body is not JSON", "body") from None
            if not isinstance(document, dict):
                raise CommandError("invalid", "expected a JSON object", "body")
            fields = document
    for name in command.path_fields:
        if name in fields:
            raise CommandError("invalid", f"{name} stands in the path already", name)
        fields[name] = request.match_info[name]
    try:
        return read_params(command, fields, text=command.method == "GET")
    except msgspec.ValidationError as failure:
        raise CommandError("invalid", str(failure)) from None


async def _body(request: web.Request) -> bytes:
    """The body, within its limit; nothing is decompressed."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise CommandError("invalid", "compressed bodies are not accepted", "body")
    body = bytearray()
    async for chunk in request.content.iter_chunked(BODY_BYTES_MAX):
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise CommandError("invalid", f"the body is larger than {BODY_BYTES_MAX} bytes", "body")
    return bytes(body)


class SocketServer:
    """The operator's API on the unix socket.

    The caller holds the store's lock: a socket file that exists already is a dead one.
    """

    def __init__(self, operations: Operations, data_dir: Path) -> None:
        self._operations = operations
        self._path = data_dir / SOCKET_NAME
        self._address = socket_address(data_dir)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Binds and serves; OSError when the path is too long or not writable."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        add_routes(app, self._operations, operator_token=None)
        runner = Runner(app, access_log=None, handle_signals=False, shutdown_timeout=5.0)
        await runner.setup()
        self._path.unlink(missing_ok=True)
        umask = os.umask(0o177)  # never a moment in which others may connect
        try:
            await web.UnixSite(runner, self._address).start()
            adopt(self._path, self._path.parent)
        except BaseException:
            await runner.cleanup()
            raise
        finally:
            os.umask(umask)
        self._runner = runner

    async def stop(self) -> None:
        """Ends it and removes the file."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            self._path.unlink(missing_ok=True)
