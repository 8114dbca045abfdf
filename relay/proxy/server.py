"""Both ways in: the front door's listener, and aiohttp's parser for every connection that the front door declines.

An API call that arrives by aiohttp runs through the same compiled pipeline, which writes its answer to the transport
itself; aiohttp only parses the request and keeps the connection.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.web_protocol import RequestHandler

from relay import _fastpath, quiet
from relay._fastpath import Bridge, Engine
from relay.proxy import decoders
from relay.proxy.bodies import EXPECTS, Body, BrokenCodingError, UnknownCodingError, coding_of
from relay.proxy.cutting import reset
from relay.proxy.masking import MaskedFrames
from relay.wire import errors as wire_errors
from relay.wire import headers as wire_headers
from relay.wire import paths, queries, unserved
from relay.wire.cors import METHODS, Cors
from relay.wire.endpoints import D_OPENAI, F_IMAGES, Endpoint

log = logging.getLogger("relay.server")

WRITE_BUFFER_HIGH = 4096  # as at the front door: what waits for a client is hardly more than the last piece
KEY_LOADING_SECONDS = 0.001  # a read of the store
HEAD_BYTES_MAX = 65_536  # names and values together; aiohttp itself bounds only their number and the size of each
E_BODY_TOO_LARGE = _fastpath.ERROR_CODES.index("body_too_large")
E_BODY_TIMEOUT = _fastpath.ERROR_CODES.index("body_timeout")
E_INVALID_VALUE = _fastpath.ERROR_CODES.index("invalid_value")
E_UNSUPPORTED_ENCODING = _fastpath.ERROR_CODES.index("unsupported_encoding")
E_MALFORMED_ENCODING = _fastpath.ERROR_CODES.index("malformed_encoding")
E_UNSUPPORTED_CHARSET = _fastpath.ERROR_CODES.index("unsupported_charset")
LocalHandler = Callable[[web.Request, Endpoint, str | None], Awaitable[web.StreamResponse]]
SideHandler = Callable[[web.Request, Endpoint, str | None, str], Awaitable[web.StreamResponse]]


class _QuietLogger:
    """aiohttp's server logger quotes what clients sent. This one tells the kind of a fault and nothing else."""

    def debug(self, *args: Any, **kwargs: Any) -> None:
        pass

    info = warning = debug

    def exception(self, message: str, *args: Any, exc_info: object = None, **kwargs: Any) -> None:
        log.error("a request handler failed (%s)", quiet.describe(_error(exc_info)))

    error = exception


def _error(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    return exc_info if isinstance(exc_info, BaseException) else None


class Protocol(RequestHandler):
    """aiohttp's server protocol, with our error pages and the news of its transport passed to the call under way."""

    __slots__ = ("bridge", "closing_since", "on_lost", "partial_since", "paused_since", "stalled", "wire")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bridge: Bridge | None = None
        self.on_lost: Callable[[], object] | None = None  # ends what is done for a client that is gone
        self.partial_since = 0.0
        self.wire: asyncio.Transport | None = None  # also while it closes
        self.paused_since = self.closing_since = 0.0
        self.stalled = False  # it was let go because its client takes nothing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.wire = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.wire.set_write_buffer_limits(WRITE_BUFFER_HIGH)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self.partial_since == 0.0:
            self.partial_since = self._loop.time()
        super().data_received(data)
        if self._messages or self._waiter is None:
            self.partial_since = 0.0

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        super().set_parser(cast(Any, MaskedFrames(parser)), data_received_cb)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.paused_since = self._loop.time()
        if self.bridge is not None:
            self.bridge.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.bridge is not None:
            self.bridge.resume_writing()

    def eof_received(self) -> None:
        if self.bridge is not None:
            self.bridge.gone()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.wire = None
        if self.bridge is not None:
            self.bridge.gone()
        if self.on_lost is not None:
            self.on_lost()
        super().connection_lost(exc)

    @property
    def idle(self) -> bool:
        """Whether it waits for a request."""
        return self._waiter is not None and not self._waiter.done()

    def late(self, now: float, header_seconds: float) -> bool:
        """Whether a request head has been arriving for too long."""
        return self.idle and self.partial_since > 0.0 and now - self.partial_since > header_seconds

    def let_go_if_stalled(self, now: float, stall_seconds: float) -> None:
        """A client that takes nothing of an answer, or of what was left of it when its connection was closed."""
        wire = self.wire
        if wire is None or self.bridge is not None:  # the pipeline looks after its own calls
            return
        if wire.is_closing():
            self.closing_since = self.closing_since or now
            late = now - self.closing_since > stall_seconds
        else:
            late = self.writing_paused and now - self.paused_since > stall_seconds
        if late:
            self.stalled = True
            reset(wire)

    async def written(self) -> None:
        """Until the client has taken what earlier answers left."""
        if self.writing_paused:
            await self._drain_helper()

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        # aiohttp's own page and log line quote the bytes at fault.
        if status == 500:
            log.error("a request handler failed (%s)", quiet.describe(exc))
        code = "malformed_http" if status == 400 else "internal"
        response = refusal(D_OPENAI, code)
        response.force_close()
        return response


class Written(web.StreamResponse):
    """Stands for an answer that the pipeline has written to the transport already."""

    def __init__(self, reusable: bool) -> None:
        super().__init__()
        self._reusable = reusable

    @property
    def keep_alive(self) -> bool | None:
        return self._reusable

    async def prepare(self, request: Any) -> Any:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


def refusal(
    dialect: int, code: str, *, param: str | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    """A refusal outside of any call, in the dialect's error shape."""
    status, fields, body = wire_errors.render_refusal(dialect, code, "", 0, param)
    response = web.Response(status=status, body=body)
    for name, value in fields:
        if value:
            response.headers[name.decode()] = value.decode()
    response.headers.update(headers or {})
    return response


def _malformed() -> web.Response:
    response = refusal(D_OPENAI, "malformed_http")
    response.force_close()
    return response


@web.middleware
async def _unrouted(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Targets that are no path (`CONNECT host:port`, `OPTIONS *`) match no route; aiohttp has a page of its own."""
    return await handler(request) if request.match_info.http_exception is None else _malformed()


class _Runner(web.AppRunner):
    """Serves an application with our protocol."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()

        class Server(web.Server):
            def __call__(self) -> RequestHandler:
                return Protocol(self, loop=self._loop, **self._kwargs)

        return Server(
            made.request_handler, request_factory=made.request_factory, loop=asyncio.get_running_loop(), **made._kwargs
        )


class ApiServer:
    """The application behind the front door: API calls in an unusual form, and whatever `local` answers."""

    def __init__(
        self,
        engine: Engine,
        local: LocalHandler,
        *,
        header_seconds: float,
        body_idle_seconds: float,
        write_stall_seconds: float,
    ) -> None:
        self._engine = engine
        self._local = local
        self.side: SideHandler | None = None  # files, stored objects, jobs: endpoint, id, query
        self.upload_bytes_max = 0
        self.header_seconds = header_seconds
        self.write_stall_seconds = write_stall_seconds
        self.body_idle_seconds = body_idle_seconds
        self.cors = Cors()
        self.app = web.Application(client_max_size=1 << 20, middlewares=[_unrouted, self._preflights])
        self.app.on_response_prepare.append(self._add_fields)
        self._runner: _Runner | None = None

    async def start(self) -> None:
        """Routes must have been added to `app` before."""
        self.app.router.add_route("*", "/{path:.*}", self._handle, expect_handler=self._expect)
        self._runner = _Runner(
            self.app,
            handle_signals=False,
            access_log=None,
            logger=_QuietLogger(),
            auto_decompress=False,
            keepalive_timeout=75.0,
            lingering_time=2.0,
        )
        await self._runner.setup()

    def protocol(self) -> Protocol:
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        made = server()
        assert isinstance(made, Protocol)
        return made

    def take_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """From the front door: a connection it does not understand, with all bytes read."""
        protocol = self.protocol()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        self._engine.other_connections = self.connections
        protocol.data_received(data)

    @property
    def connections(self) -> int:
        server = self._runner.server if self._runner is not None else None
        return len(server.connections) if server is not None else 0

    def sweep(self) -> None:
        """Closes connections whose request head does not arrive in time, or whose client takes nothing; about once a
        second."""
        server = self._runner.server if self._runner is not None else None
        if server is None:
            return
        now = asyncio.get_running_loop().time()
        for connection in server.connections:
            if isinstance(connection, Protocol):
                if connection.late(now, self.header_seconds):
                    connection.force_close()
                connection.let_go_if_stalled(now, self.write_stall_seconds)

    def close_idle(self) -> None:
        """Closes connections that wait for a request; others close behind the one they are at."""
        server = self._runner.server if self._runner is not None else None
        for connection in server.connections if server is not None else ():
            if isinstance(connection, Protocol) and connection.idle:
                connection.force_close()
            else:
                connection.close()

    async def stop(self, grace_seconds: float) -> None:
        """Ends connections: idle ones at once, others after their handler or `grace_seconds`."""
        if self._runner is not None:
            server = self._runner.server
            if server is not None:
                server.pre_shutdown()
                await server.shutdown(grace_seconds)
            await self._runner.cleanup()

    # -- requests

    async def _add_fields(self, request: web.Request, response: web.StreamResponse) -> None:
        """To every answer that the pipeline does not write itself."""
        response.headers["Server"] = "relay"  # aiohttp would tell its version and Python's
        if self.cors and (_API in request or request.path.startswith(_CUSTOMER_PREFIXES)):
            for name, value in self.cors.fields(_origin(request)):
                if name not in response.headers or name == "Vary":
                    response.headers.add(name, value)

    @web.middleware
    async def _preflights(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.method == "OPTIONS" and (answer := self._preflight(request)) is not None:
            return answer
        return await handler(request)

    def _preflight(self, request: web.Request) -> web.Response | None:
        """What a browser asks before a page of another origin may call. None: it is none, or that origin may not."""
        path = request.raw_path.partition("?")[0]
        method = request.headers.get("Access-Control-Request-Method")
        origin = _origin(request)
        if method is None or origin is None or not self.cors.allows(origin):
            return None
        methods = paths.allowed_methods(path, _NameSet(self._engine.models))
        if not methods and not path.startswith((*_CUSTOMER_PREFIXES, *_VERSION_PREFIXES)):
            return None
        asked = ",".join(request.headers.getall("Access-Control-Request-Headers", ()))
        fields = self.cors.preflight(origin, asked, methods or METHODS)
        if fields is None:
            return refusal(unserved.judge(path)[0], "invalid_value", param="access-control-request-headers")
        response = web.Response(status=204)
        for name, value in fields:
            response.headers[name] = value
        return response

    async def _expect(self, request: web.Request) -> web.StreamResponse | None:
        """`Expect: 100-continue`: the body is asked for by who reads it. A call that is refused before needs none."""
        if request.headers["Expect"].lower() != "100-continue":
            raise web.HTTPExpectationFailed
        if request.version >= (1, 1):
            request[EXPECTS] = True
        return None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if isinstance(request.protocol, Protocol):
            await request.protocol.written()  # or a client that sends on and reads nothing would fill the memory
        target = request.raw_path
        path, _, query = target.partition("?")
        request[_API] = True
        # aiohttp lets HTTP/0.9 and 2.0 request lines through; neither is spoken here.
        head_bytes = sum(len(name) + len(value) for name, value in request.raw_headers)
        if (
            not path.startswith("/")
            or not _plain_host(request)
            or request.version not in _VERSIONS
            or head_bytes > HEAD_BYTES_MAX
        ):
            return _malformed()
        if path == "/" and request.method in ("HEAD", "GET"):
            return web.json_response({"service": "relay"})
        resolved = paths.resolve(request.method, path, _NameSet(self._engine.models))
        if resolved is None:
            dialect, why = unserved.judge(path, unserved.caller(request.headers))
            methods = paths.allowed_methods(path, _NameSet(self._engine.models))
            if request.method == "GET" and "upgrade" in request.headers and path.rstrip("/").endswith("/responses"):
                return refusal(dialect, "upgrade_required", headers={"Upgrade": "HTTP/1.1"})
            if methods and why != unserved.NOT_SERVED:
                return refusal(dialect, "method_not_allowed", headers={"Allow": ", ".join(methods)})
            return refusal(dialect, "path_not_found", param=why)
        endpoint = resolved.endpoint
        if endpoint.scope == "files" and (owner := unserved.caller(request.headers)) is not None:  # not OpenAI's files
            return refusal(owner, "path_not_found", param=unserved.NOT_SERVED)
        if wire_headers.opened_by_browser(request.raw_headers):
            return refusal(endpoint.dialect, "browser_request")
        if endpoint.needs_model and endpoint.served:
            return await self._call(request, resolved, query)
        if endpoint.served and endpoint.upstream_path and self.side is not None:
            task = asyncio.current_task()
            if isinstance(request.protocol, Protocol) and task is not None:
                request.protocol.on_lost = task.cancel
            try:
                return await self.side(request, endpoint, resolved.object_id or resolved.model, query)
            finally:
                if isinstance(request.protocol, Protocol):
                    request.protocol.on_lost = None
        return await self._local(request, endpoint, resolved.model)

    async def _call(self, request: web.Request, resolved: paths.Resolved, query: str) -> web.StreamResponse:
        """An API call in a form that the front door left to us: chunked, expecting 100, an alias, HTTP/1.0 …"""
        endpoint, model = resolved.endpoint, resolved.model
        protocol = request.protocol
        transport = request.transport
        if transport is None or not isinstance(protocol, Protocol):
            raise ConnectionResetError
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def on_end(reusable: bool) -> None:
            if not ended.done():
                ended.set_result(reusable)

        trusted = self._engine.hooks.peer(transport.get_extra_info("peername"))[2]
        readable, bad_field = wire_headers.readable(request.raw_headers, forwarded=trusted)
        decoder: decoders.Decoder | None = None
        unknown_coding = False
        try:
            decoder = coding_of(readable)
        except UnknownCodingError:
            unknown_coding = True
        own = _FRAMING | wire_headers.named_by_connection(readable)
        fields = b"".join(name + b": " + value + b"\r\n" for name, value in readable if name.lower() not in own)
        form_type = _form_type(request, endpoint) if endpoint.form else None
        bad_head = E_INVALID_VALUE if bad_field is not None else 0
        keys: list[bytes] = []
        rest = b""
        try:
            keys, rest = queries.read(endpoint, query.encode("ascii", "replace"))
        except queries.QueryError as error:
            bad_head, bad_field = bad_head or E_INVALID_VALUE, bad_field or str(error)
        if not bad_head and (unknown_coding or (decoder is not None and form_type is not None)):
            bad_head = E_UNSUPPORTED_ENCODING
        if not bad_head and form_type is None:
            types = wire_headers.values(readable, b"content-type")
            bad_head = 0 if all(map(wire_headers.charset_is_utf8, types)) else E_UNSUPPORTED_CHARSET
        bridge = Bridge(self._engine, transport, request.version < (1, 1), on_end)
        protocol.bridge = bridge
        try:
            bridge.open(
                endpoint.path,
                b"?" + rest if rest else None,
                model.encode() if model is not None else None,
                fields + b"\r\n",
                keys,
                form_type,
                bad_head,
                bad_field,
                bad_field is not None and bad_field.encode() in wire_headers.KEY_HEADERS,
                resolved.alpha,
            )
            if (request.content_length or 0) > self._engine.body_bytes_max:
                bridge.refuse(E_BODY_TOO_LARGE)
            try:
                body = Body(request, self.body_idle_seconds, decoder)
                # It may be refused: then nobody asks for the body, or makes it plain.
                while (body.expected or decoder) and bridge.identifying and not ended.done():  # noqa: ASYNC110
                    await asyncio.sleep(KEY_LOADING_SECONDS)
                while not ended.done():
                    data = await body.next()
                    if not data:
                        bridge.body_end()
                        break
                    bridge.read(data)
            except TimeoutError:
                bridge.refuse(E_BODY_TIMEOUT)
            except BrokenCodingError:
                bridge.refuse(E_MALFORMED_ENCODING)
            except (web.RequestPayloadError, ConnectionError):  # refused meanwhile, or not: nobody is there
                bridge.gone()
            reusable = await ended
        finally:
            bridge.gone()
            protocol.bridge = None
        return Written(reusable and not self._engine.draining and request.keep_alive)


_VERSIONS = (HttpVersion10, HttpVersion11)

# Framing and one-connection fields are aiohttp's business, and compressed bodies are made plain here; the pipeline must
# not judge either a second time.
_FRAMING = frozenset(
    {b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade", b"host", b"content-encoding"}
)


_API = web.RequestKey("relay.api", bool)  # a path of the API: pages of other origins may call it where they may at all
_CUSTOMER_PREFIXES = ("/relay/v1/", "/v1/dashboard/", "/dashboard/billing/", "/api/v1/")
_VERSION_PREFIXES = ("/v1", "/api/v1/")  # the error of an unknown path is to be read, too


def _origin(request: web.Request) -> str | None:
    """The one that the request names."""
    values = request.headers.getall("Origin", ())
    return values[0] if len(values) == 1 else None


class _NameSet:
    """The catalogue's names as text, over the engine's bytes."""

    def __init__(self, models: dict[bytes, Any]) -> None:
        self._models = models

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.encode() in self._models


def _form_type(request: web.Request, endpoint: Endpoint) -> bytes | None:
    """The Content-Type of a form. Pictures may also be edited by JSON, which goes the usual way."""
    text = request.headers.get("Content-Type", "").strip(" \t")
    if endpoint.format == F_IMAGES and text.partition(";")[0].strip().lower() == "application/json":
        return None
    return text.encode("utf-8", "surrogateescape")


def _plain_host(request: web.Request) -> bool:
    host = request.headers.get("Host", "")
    if request.version < (1, 1) and not host:
        return True
    return bool(host) and all(c.isascii() and (c.isalnum() or c in "-._:[]") for c in host)
