"""Upstreams for calls that are not on the hot path: files, stored objects, jobs (proxy/exchange.py), and realtime by
aiohttp's client. Simple beats fast.

Which channel and which key is decided where the hot path decides it (`_fastpath.Attempts`), and what an attempt shows
of either counts there. What belongs to a channel goes to that one alone. One channel stands for one account at its
provider: what was made with one of its keys is there for all of them, so they take turns.
"""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from yarl import URL

from relay import _fastpath
from relay._fastpath import Attempts, Channel, Engine, Route
from relay.config import Channel as ConfiguredChannel
from relay.config import Config
from relay.config_values import MODEL_PLACE, Proxy
from relay.proxy.connect import CONNECT_ERRORS, Target, open_connection
from relay.proxy.exchange import HEAD_TAIL, Exchange, ExchangeError
from relay.proxy.hooks import Hooks
from relay.proxy.tunnels import Tunnels
from relay.wire import answers, upstream_errors
from relay.wire import headers as wire_headers
from relay.wire.endpoints import D_ANTHROPIC

ANSWER_BYTES_MAX: Final = 64 << 20  # of an answer that has to be read as a whole
ERROR_BYTES_MAX: Final = 65_536
FIRST_BYTES_MAX: Final = 4096  # of an answer that has not begun to say what it is
FIRST_WORD_BYTES: Final = len(b"\xef\xbb\xbfevent:")  # of an event; fewer bytes may be its beginning
# What keys rest for where no model is asked for. No model is called so.
NO_MODEL: Final = "(objects)"
Fields = list[tuple[str, str]]
_CODES: Final = _fastpath.ERROR_CODES
_OF_A_TARGET: Final = "%/:?#[]@!$&'()*+,;=~"  # besides letters, digits and -._


class Upstream(msgspec.Struct, frozen=True):
    """A channel as these calls see it. `route`: the way to what belongs to no model."""

    name: str
    dialect: int
    base_url: str
    query: str  # of every request, behind its own
    priority: int
    route: Route
    target: Target
    connect_seconds: float
    first_byte_seconds: float
    answer_seconds: float
    idle_seconds: float
    models: dict[str, str]
    set_headers: dict[str, str]
    drop_headers: frozenset[str]  # in lower case; those that are set among them
    key_digest: bytes  # of its first key: channels with the same one at the same place are one account upstream

    def edited(self, fields: Fields) -> Fields:
        """A request's fields as they go on here."""
        kept = [(name, value) for name, value in fields if name.lower() not in self.drop_headers]
        return [*kept, *self.set_headers.items()]

    @property
    def account(self) -> tuple[object, ...]:
        return self.dialect, self.base_url, self.query, self.key_digest


class UpstreamError(Exception):
    """No answer that could be passed on. `code`: a name of relay.errors; `retry_after_ns`: 0 where nobody knows;
    `processed`: the provider may have done what was asked: it was sent, and nothing came back that says otherwise."""

    def __init__(
        self, code: str, retry_after_ns: int = 0, *, processed: bool = True, message: str | None = None
    ) -> None:
        super().__init__(code)
        self.message = message  # of the operator, about what is switched off
        self.code = code
        self.retry_after_ns = retry_after_ns
        self.processed = processed


class Answered(msgspec.Struct):
    """A whole answer; `fields` are those that may pass to a client."""

    status: int
    fields: Fields
    body: bytes


class Tried(msgspec.Struct, frozen=True):
    """An answer to a request that only tries a key."""

    status: int
    encoding: bytes | None
    body: bytes


class Judged(msgspec.Struct, frozen=True):
    """An error answer: the caller's own fault; a refusal or limit of the key; the name of an error to be told in its
    place, "" where its own words may pass; the wait that it asks for."""

    callers: bool
    key_refused: bool
    instead: str
    wait_ns: int


class HandshakeError(Exception):
    """An upstream's refusal of a WebSocket. Its text is nowhere."""

    def __init__(self, answered: Answered, raw_fields: bytes, encoding: bytes | None) -> None:
        super().__init__(str(answered.status))
        self.answered = answered
        self.raw_fields = raw_fields
        self.encoding = encoding


class Reply:
    """An answer whose head is there. It occupies its channel until it is closed, whatever happens."""

    def __init__(self, exchange: Exchange, attempts: Attempts, idle_seconds: float, error: bytes | None = None) -> None:
        self._exchange = exchange
        self._attempts = attempts
        self._idle_seconds = idle_seconds
        self._error = error  # the body of an error answer, which is read before anything is decided
        self._first = b""  # what was read of another one before it passes
        self._closed = False
        answer = exchange.answer
        self.status = answer.status
        self.content_length = answer.length
        self.encoding = answer.encoding  # how the body is compressed, in lower case; None: it is not
        given = wire_headers.split_lines(answer.lines)
        types = wire_headers.values(given, b"content-type")
        self.content_type = types[0].partition(b";")[0].strip().lower().decode("latin-1") if types else ""
        self.fields: Fields = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in (*given, *wire_headers.guards(given))
        ]

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body. Raises UpstreamError where it breaks off."""
        if self._error is not None:
            yield self._error
            return
        if self._first:
            first, self._first = self._first, b""
            yield first
        try:
            while True:
                async with asyncio.timeout(self._idle_seconds):
                    data = await self._exchange.piece()
                if not data:
                    return
                yield data
        except TimeoutError:
            code = "upstream_stalled"
        except ExchangeError as error:
            code = error.code
        if not self._closed:  # while somebody waited for more of it
            self._attempts.bad(_CODES.index(code))
        raise UpstreamError(code)

    async def expect_document(self, *, or_nothing: bool) -> None:
        """Looks at the first bytes where a document or a stream of events belongs. Raises UpstreamError where they
        begin none, or an error that calls itself an answer; then it is closed."""
        try:
            first = b""
            async for data in self.pieces():
                first += data
                if len(first) > FIRST_BYTES_MAX or answers.begins(first, self.encoding) != answers.NOTHING:
                    break
                if len(first.strip()) >= FIRST_WORD_BYTES:
                    break
            self._first = first
            verdict = answers.begins(first, self.encoding)
            if verdict == answers.DOCUMENT or (or_nothing and not first.strip()):
                return
            code = "upstream_error" if verdict == answers.ERROR else "upstream_garbage"
            self._attempts.bad(_CODES.index(code))
            raise UpstreamError(code, processed=verdict != answers.ERROR)
        except BaseException as error:
            self.close()
            raise unseen(error) if isinstance(error, UpstreamError) else error from None

    def close(self) -> None:
        self._closed = True
        self._attempts.leave()
        self._exchange.close()


class Upstreams:
    """The configured channels by name, and the client's sessions."""

    def __init__(self, tls: ssl.SSLContext, engine: Engine, hooks: Hooks) -> None:
        self._tls = tls
        self._engine = engine
        self._hooks = hooks
        self._sockets: dict[Proxy | None, aiohttp.ClientSession] = {}
        self.by_name: dict[str, Upstream] = {}

    def configure(self, config: Config, channels: Sequence[Channel]) -> None:
        """`channels`: what the engine has made of the configured ones, in their order."""
        self.by_name = {
            configured.name: _upstream(config, configured, channel, self._engine)
            for configured, channel in zip(config.channels, channels, strict=True)
        }

    def together(self, name: str) -> frozenset[str]:
        """The channels of one account at one provider: what was made through this one is there for all of them. None
        where it is not configured any more."""
        upstream = self.by_name.get(name)
        return frozenset(
            other.name for other in self.by_name.values() if upstream is not None and other.account == upstream.account
        )

    def of_dialect(self, dialect: int) -> list[Upstream]:
        """By priority, then in the order of the configuration."""
        found = [upstream for upstream in self.by_name.values() if upstream.dialect == dialect]
        return sorted(found, key=lambda upstream: upstream.priority)

    def begin(self, routes: list[Route]) -> Attempts:
        """The first attempt of a call on the channel chosen among these. It has to be left. Raises UpstreamError."""
        attempts = Attempts(self._engine, routes)
        code = attempts.begin()
        if code:
            raise UpstreamError(_CODES[code], attempts.wait_ns, processed=False, message=attempts.message)
        return attempts

    def begin_own(self, upstream: Upstream, key: int = 0) -> Attempts:
        """Of the relay's own question about what is there, or of a test of this key: also where it is switched off."""
        if not key and not upstream.route.channel.off:
            return self.begin([upstream.route])
        attempts = Attempts(self._engine, [upstream.route])
        attempts.begin_there(key)
        return attempts

    async def ask_with_key(self, upstream: Upstream, key: int, method: str, path: str, data: bytes | None) -> Tried:
        """A whole answer to a request with this key, errors as they are; nothing is learnt from it. Raises
        UpstreamError."""
        fields = [("anthropic-version", "2023-06-01")] if upstream.dialect == D_ANTHROPIC else []
        if data is not None:
            fields.append(("Content-Type", "application/json"))
        attempts = self.begin_own(upstream, key)
        try:
            exchange = await self._request(upstream, attempts, method, path, "", fields, data)
            try:
                body = await _held_back(exchange, upstream.first_byte_seconds, ANSWER_BYTES_MAX)
            finally:
                exchange.close()
            return Tried(exchange.answer.status, exchange.answer.encoding, body)
        finally:
            attempts.leave()

    def begin_in_order(self, routes: Iterable[Route]) -> Attempts:
        """The same on the first of them that is in use. Raises UpstreamError, the first one's."""
        failed = None
        for route in routes:
            try:
                return self.begin([route])
            except UpstreamError as error:
                failed = failed or error
        raise failed or UpstreamError("upstream_unavailable", processed=False)

    def chosen(self, attempts: Attempts) -> Upstream:
        """Where an attempt goes. Raises UpstreamError: it was chosen before the configuration changed."""
        assert attempts.route is not None
        upstream = self.by_name.get(attempts.route.channel.name)
        if upstream is None or upstream.route.channel is not attempts.route.channel:
            raise UpstreamError("upstream_unavailable", processed=False)
        return upstream

    async def close(self) -> None:
        for session in self._sockets.values():
            await session.close()

    def _open_sockets(self, proxy: Proxy | None) -> aiohttp.ClientSession:
        """For WebSockets: a refusal's body is read, which aiohttp would throw away."""
        if proxy not in self._sockets:
            options: dict[str, Any] = {"ssl": self._tls, "limit": 0, "force_close": True}
            self._sockets[proxy] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(**options) if proxy is None else Tunnels(proxy, **options),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
                trust_env=False,
                raise_for_status=_read_refusal,
            )
        return self._sockets[proxy]

    async def send(
        self,
        upstream: Upstream,
        method: str,
        path: str,
        *,
        query: str = "",
        fields: Fields | None = None,
        data: bytes | AsyncIterator[bytes] | None = None,
        attempts: Attempts | None = None,
        trouble: list[BaseException] | None = None,
    ) -> Reply:
        """The answer, once its head is there. Raises UpstreamError.

        Where the operator's key is refused or limited, the channel's next key is tried, unless the body passed as it
        arrived. No other channel: what was written may have made something. Redirects are not followed.

        attempts  of a call for which the channel was chosen
        trouble   what went wrong with a body that comes in pieces, if anything: that is not the upstream's failure
        """
        if attempts is None:
            attempts = self.begin([upstream.route])
        streamed = data is not None and not isinstance(data, bytes)
        try:
            while True:
                try:
                    exchange = await self._request(upstream, attempts, method, path, query, fields, data)
                    answer = exchange.answer
                    error = await _held_back(exchange, upstream.first_byte_seconds) if answer.status >= 400 else None
                except UpstreamError as failure:
                    if not trouble:
                        attempts.bad(_CODES.index(failure.code))
                    raise
                if error is None:
                    attempts.good()
                    return Reply(exchange, attempts, upstream.idle_seconds)
                judged = self.judge(attempts, answer.status, answer.encoding, error, answer.lines)
                if judged.key_refused and not streamed and attempts.another(key_refused=True, channels=False):
                    continue
                if judged.instead:
                    raise UpstreamError(judged.instead, judged.wait_ns, processed=False)
                return Reply(exchange, attempts, upstream.idle_seconds, error)
        except BaseException:
            attempts.leave()
            raise

    def judge(self, attempts: Attempts, status: int, encoding: bytes | None, body: bytes, fields: bytes) -> "Judged":
        """What an error answer is about (see `wire.upstream_errors`). Its key and its channel are treated so."""
        route = attempts.route
        assert route is not None
        verdict, scope, rest_ns, instead, wait_ns = self._hooks.judge_error(
            status, encoding, body, fields, route.channel, route.upstream_model, route.renamed
        )
        account = verdict == upstream_errors.ACCOUNT
        attempts.rest_key(rest_ns, scope, account, status)
        limited = verdict == upstream_errors.UPSTREAM and scope == upstream_errors.MODEL
        if verdict == upstream_errors.REQUEST:
            attempts.good()
        elif verdict == upstream_errors.UPSTREAM and status >= 500 and not limited:
            attempts.bad(_CODES.index("upstream_error"))
        return Judged(verdict == upstream_errors.REQUEST, account or limited, _CODES[instead], wait_ns)

    async def _request(
        self,
        upstream: Upstream,
        attempts: Attempts,
        method: str,
        path: str,
        query: str,
        fields: Fields | None,
        data: bytes | AsyncIterator[bytes] | None,
    ) -> Exchange:
        exchange = Exchange(self._engine.field_table)
        try:
            async with asyncio.timeout(upstream.connect_seconds):
                await open_connection(upstream.target, lambda: exchange)
            head = _request_head(upstream, attempts, method, path, query, fields or [], data)
            # What makes something takes as long as an answer may; what shows or deletes it begins at once.
            await exchange.ask(head, data, upstream.first_byte_seconds if data is None else upstream.answer_seconds)
        except BaseException as error:
            connected = exchange.connected
            exchange.close()
            if isinstance(error, TimeoutError):
                raise UpstreamError("upstream_timeout", processed=connected) from None
            if isinstance(error, ExchangeError):
                raise UpstreamError(error.code) from None
            if not connected and isinstance(error, CONNECT_ERRORS):
                raise UpstreamError("upstream_unavailable", processed=False) from error
            raise
        if 300 <= exchange.answer.status < 400:
            exchange.close()
            done = exchange.answer.status == 303  # "see other": what was asked for is done, and told elsewhere
            raise UpstreamError("upstream_garbage", processed=done)
        return exchange

    async def connect(
        self,
        upstream: Upstream,
        attempts: Attempts,
        path: str,
        query: str,
        fields: Fields,
        protocols: tuple[str, ...],
        bytes_max: int,
    ) -> aiohttp.ClientWebSocketResponse:
        """A WebSocket, by the attempt under way. Raises UpstreamError; HandshakeError with a refusal."""
        try:
            async with asyncio.timeout(upstream.connect_seconds + upstream.first_byte_seconds):
                return await self._open_sockets(upstream.target.proxy).ws_connect(
                    _url(upstream, path, query),
                    headers=[*upstream.edited(fields), *_key_fields(attempts)],
                    protocols=protocols,
                    max_msg_size=bytes_max,
                    compress=0,
                    autoclose=False,  # its code stays known where it is gone before our answer
                )
        except (TimeoutError, aiohttp.ServerTimeoutError):
            raise UpstreamError("upstream_timeout") from None
        except aiohttp.ClientConnectorError:
            raise UpstreamError("upstream_unavailable") from None
        except (aiohttp.WSServerHandshakeError, aiohttp.ClientResponseError, ValueError):
            raise UpstreamError("upstream_garbage") from None
        except (aiohttp.ClientError, OSError):
            raise UpstreamError("upstream_failed") from None

    async def fetch(
        self,
        upstream: Upstream,
        method: str,
        path: str,
        *,
        query: str = "",
        fields: Fields | None = None,
        data: bytes | AsyncIterator[bytes] | None = None,
        attempts: Attempts | None = None,
    ) -> Answered:
        """A whole answer, up to ANSWER_BYTES_MAX. Raises UpstreamError."""
        return await whole(
            await self.send(upstream, method, path, query=query, fields=fields, data=data, attempts=attempts)
        )


async def whole(reply: Reply, bytes_max: int = ANSWER_BYTES_MAX) -> Answered:
    """The rest of an answer. Raises UpstreamError."""
    parts, size = [], 0
    try:
        async for part in reply.pieces():
            parts.append(part)
            size += len(part)
            if size > bytes_max:
                raise UpstreamError("upstream_garbage")
    except UpstreamError as error:
        raise unseen(error) from None
    finally:
        reply.close()
    return Answered(reply.status, reply.fields, b"".join(parts))


def unseen(error: UpstreamError) -> UpstreamError:
    """What an answer that broke off is called where its client has seen nothing of it."""
    codes = {"upstream_stalled": "upstream_timeout", "upstream_truncated": "upstream_failed"}
    return UpstreamError(codes.get(error.code, error.code), processed=error.processed)


async def _held_back(exchange: Exchange, seconds: float, bytes_max: int = ERROR_BYTES_MAX) -> bytes:
    """The body of an error answer. Raises UpstreamError."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while data := await exchange.piece():
                parts.append(data)
                size += len(data)
                if size > bytes_max:
                    raise UpstreamError("upstream_garbage")
    except TimeoutError:
        exchange.close()
        raise UpstreamError("upstream_timeout") from None
    except ExchangeError as error:
        raise unseen(UpstreamError(error.code)) from None
    except BaseException:
        exchange.close()
        raise
    return b"".join(parts)


def _request_head(
    upstream: Upstream,
    attempts: Attempts,
    method: str,
    path: str,
    query: str,
    fields: Fields,
    data: bytes | AsyncIterator[bytes] | None,
) -> bytes:
    """The lines of a request, without the empty one."""
    base = urlsplit(upstream.base_url)
    query = "&".join(part for part in (query, upstream.query) if part)
    target = quote(base.path + path + (f"?{query}" if query else ""), safe=_OF_A_TARGET)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {base.netloc}"]
    sent = upstream.edited(fields)
    lines += [f"{name}: {value}" for name, value in (*sent, *_key_fields(attempts))]
    if data is not None and not any(name.lower() == "content-type" for name, _ in sent):
        lines.append("Content-Type: application/json")  # it was read as JSON, whatever its sender calls it
    if isinstance(data, bytes) or (data is None and method == "POST"):
        lines.append(f"Content-Length: {len(data or b'')}")
    return "".join(line + "\r\n" for line in lines).encode("latin-1") + HEAD_TAIL


async def _error_body(answer: aiohttp.ClientResponse, seconds: float | None = None) -> bytes:
    """Of a handshake. Raises UpstreamError."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in answer.content.iter_any():
                parts.append(part)
                size += len(part)
                if size > ERROR_BYTES_MAX:
                    raise UpstreamError("upstream_garbage")
    except TimeoutError:
        raise UpstreamError("upstream_timeout") from None
    except (aiohttp.ClientError, OSError):
        raise UpstreamError("upstream_failed") from None
    finally:
        if not answer.content.at_eof():
            answer.close()
    return b"".join(parts)


async def _read_refusal(answer: aiohttp.ClientResponse) -> None:
    """For every answer to a handshake, before aiohttp looks at it."""
    if answer.status >= 400:
        body = await _error_body(answer)
        raise HandshakeError(Answered(answer.status, passed(answer), body), _lines(answer), _encoding(answer))


def _lines(answer: aiohttp.ClientResponse) -> bytes:
    return b"".join(name + b": " + value + b"\r\n" for name, value in answer.raw_headers)


def _encoding(answer: aiohttp.ClientResponse) -> bytes | None:
    coding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    return None if coding in ("", "identity") else coding.encode("latin-1", "replace")


def _key_fields(attempts: Attempts) -> Fields:
    name, colon, value = attempts.key_line().decode("ascii").partition(":")
    return [(name, value.strip())] if colon else []


def _url(upstream: Upstream, path: str, query: str) -> URL:
    query = "&".join(part for part in (query, upstream.query) if part)
    return URL(upstream.base_url + path + ("?" + query if query else ""), encoded=True)


def passed(answer: aiohttp.ClientResponse) -> Fields:
    """The fields of an answer that go on; how its body is framed is the business of who writes it."""
    own = {name.strip().lower() for value in answer.headers.getall("Connection", ()) for name in value.split(",")}
    fields = []
    for raw_name, raw_value in answer.raw_headers:
        name = raw_name.lower()
        if wire_headers.response_passes(name) and name != b"content-length" and name.decode("latin-1") not in own:
            fields.append((raw_name.decode("latin-1"), raw_value.decode("latin-1")))
    fields += [(name.decode("ascii"), value.decode("ascii")) for name, value in wire_headers.guards(answer.raw_headers)]
    return fields


def without_model(base_url: str) -> str:
    """The base URL of what belongs to no model: Azure's files, for instance, are beside its deployments."""
    return base_url.replace(f"/deployments/{MODEL_PLACE}", "").replace(f"/{MODEL_PLACE}", "").rstrip("/")


def _upstream(config: Config, configured: ConfiguredChannel, channel: Channel, engine: Engine) -> Upstream:
    own, default = configured.timeouts, config.timeouts

    def seconds(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else value

    return Upstream(
        name=configured.name,
        dialect=channel.dialect,
        base_url=without_model(configured.base_url),
        query=configured.query,
        priority=configured.priority,
        route=Route(channel, NO_MODEL, engine.default_tables[channel.dialect]),
        target=channel.target,
        connect_seconds=seconds(own.connect_seconds, default.connect_seconds),
        first_byte_seconds=seconds(own.first_byte_seconds, default.first_byte_seconds),
        answer_seconds=seconds(own.answer_seconds, default.answer_seconds),
        idle_seconds=seconds(own.stream_idle_seconds, default.stream_idle_seconds),
        models=dict(configured.models),
        set_headers={name: value.reveal() for name, value in configured.set_headers.items()},
        drop_headers=frozenset((*configured.drop_headers, *configured.set_headers)),
        key_digest=hashlib.sha256(configured.api_keys[0].reveal().encode() if configured.api_keys else b"").digest(),
    )
