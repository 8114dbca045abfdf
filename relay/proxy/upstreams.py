"""Upstreams for calls that are not on the hot path: files, stored objects, jobs. aiohttp's client: simple beats fast.

One channel stands for one account at its provider: what was made with one of its keys must be there for all of them.
So these calls use the first.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import msgspec
from yarl import URL

from relay.config import Channel, Config
from relay.config_values import MODEL_PLACE
from relay.wire import headers as wire_headers
from relay.wire.endpoints import DIALECT_NAMES

ANSWER_BYTES_MAX: Final = 64 << 20  # of an answer that has to be read as a whole
Fields = list[tuple[str, str]]


class Upstream(msgspec.Struct, frozen=True):
    """A channel as these calls see it. `priority`, then the order of the configuration: which one is asked first."""

    name: str
    dialect: int
    base_url: str
    query: str  # of every request, behind its own
    key: Fields
    priority: int
    connect_seconds: float
    first_byte_seconds: float
    idle_seconds: float
    models: dict[str, str]

    @property
    def account(self) -> tuple[object, ...]:
        return self.dialect, self.base_url, self.query, self.key


class UpstreamError(Exception):
    """No answer that could be passed on. `code`: a name of relay.errors. `processed`: the provider may have done what
    was asked: it was sent, and nothing came back that says otherwise."""

    def __init__(self, code: str, *, processed: bool = True) -> None:
        super().__init__(code)
        self.code = code
        self.processed = processed


class Answered(msgspec.Struct):
    """A whole answer; `fields` are those that may pass to a client."""

    status: int
    fields: Fields
    body: bytes


class Upstreams:
    """The configured channels by name, and one client session."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self.by_name: dict[str, Upstream] = {}

    def configure(self, config: Config) -> None:
        self.by_name = {channel.name: _upstream(config, channel) for channel in config.channels}

    def together(self, name: str) -> frozenset[str]:
        """The channels of one account at one provider: what was made through this one is there for all of them. None
        where it is not configured any more."""
        upstream = self.by_name.get(name)
        return frozenset(
            other.name for other in self.by_name.values() if upstream is not None and other.account == upstream.account
        )

    def of_dialect(self, dialect: int) -> list[Upstream]:
        """In the order in which they are asked."""
        found = [upstream for upstream in self.by_name.values() if upstream.dialect == dialect]
        return sorted(found, key=lambda upstream: upstream.priority)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls, limit=0, keepalive_timeout=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Content-Type", "Accept-Encoding"),
                trust_env=False,
            )
        return self._session

    async def send(
        self,
        upstream: Upstream,
        method: str,
        path: str,
        *,
        query: str = "",
        fields: Fields | None = None,
        data: bytes | AsyncIterator[bytes] | None = None,
    ) -> aiohttp.ClientResponse:
        """The head of the answer; the caller reads and closes it. Redirects are not followed. Raises UpstreamError."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=upstream.connect_seconds, sock_read=upstream.idle_seconds
        )
        query = "&".join(part for part in (query, upstream.query) if part)
        url = URL(upstream.base_url + path + ("?" + query if query else ""), encoded=True)
        sent = [*(fields or ()), *upstream.key, ("Accept-Encoding", "identity")]
        # A body that is passed on as it arrives takes as long as its client takes.
        first_byte = upstream.first_byte_seconds if data is None or isinstance(data, bytes) else None
        try:
            async with asyncio.timeout(first_byte):
                answer = await self._open_session().request(
                    method, url, headers=sent, data=_payload(data), timeout=timeout, allow_redirects=False
                )
        except aiohttp.ConnectionTimeoutError:
            raise UpstreamError("upstream_timeout", processed=False) from None
        except (TimeoutError, aiohttp.ServerTimeoutError):
            raise UpstreamError("upstream_timeout") from None
        except aiohttp.ClientConnectorError:
            raise UpstreamError("upstream_unavailable", processed=False) from None
        except (aiohttp.ClientResponseError, ValueError):
            raise UpstreamError("upstream_garbage") from None
        except (aiohttp.ClientError, OSError):
            raise UpstreamError("upstream_failed") from None
        if 300 <= answer.status < 400:
            answer.close()
            raise UpstreamError("upstream_garbage", processed=False)
        return answer

    async def connect(
        self, upstream: Upstream, path: str, query: str, fields: Fields, protocols: tuple[str, ...], bytes_max: int
    ) -> aiohttp.ClientWebSocketResponse:
        """A WebSocket. Raises UpstreamError, with the status where there was an answer."""
        url = URL(upstream.base_url + path + "?" + "&".join(p for p in (query, upstream.query) if p), encoded=True)
        try:
            async with asyncio.timeout(upstream.connect_seconds + upstream.first_byte_seconds):
                return await self._open_session().ws_connect(
                    url, headers=[*fields, *upstream.key], protocols=protocols, max_msg_size=bytes_max, compress=0
                )
        except (TimeoutError, aiohttp.ServerTimeoutError):
            raise UpstreamError("upstream_timeout") from None
        except aiohttp.WSServerHandshakeError as error:
            raise UpstreamError("upstream_account" if error.status in (401, 402, 403) else "upstream_failed") from None
        except aiohttp.ClientConnectorError:
            raise UpstreamError("upstream_unavailable") from None
        except (aiohttp.ClientError, OSError, ValueError):
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
    ) -> Answered:
        """A whole answer, up to ANSWER_BYTES_MAX. Raises UpstreamError."""
        answer = await self.send(upstream, method, path, query=query, fields=fields, data=data)
        return await whole(answer)


async def whole(answer: aiohttp.ClientResponse, bytes_max: int = ANSWER_BYTES_MAX) -> Answered:
    """The rest of an answer. Raises UpstreamError."""
    parts, size = [], 0
    try:
        async for part in answer.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > bytes_max:
                raise UpstreamError("upstream_garbage")
    except TimeoutError:
        raise UpstreamError("upstream_timeout") from None
    except (aiohttp.ClientError, OSError):
        raise UpstreamError("upstream_failed") from None
    finally:
        answer.release() if answer.content.at_eof() else answer.close()
    return Answered(answer.status, passed(answer), b"".join(parts))


def passed(answer: aiohttp.ClientResponse) -> Fields:
    """The fields of an answer that go on; how its body is framed is the business of who writes it."""
    own = {name.strip().lower() for value in answer.headers.getall("Connection", ()) for name in value.split(",")}
    fields = []
    for raw_name, raw_value in answer.raw_headers:
        name = raw_name.lower()
        if wire_headers.response_passes(name) and name != b"content-length" and name.decode("latin-1") not in own:
            fields.append((raw_name.decode("latin-1"), raw_value.decode("latin-1")))
    return fields


def _payload(data: bytes | AsyncIterator[bytes] | None) -> Any:
    return aiohttp.BytesIOPayload(_io(data)) if isinstance(data, bytes) else data


def _io(data: bytes) -> Any:
    import io

    return io.BytesIO(data)


def without_model(base_url: str) -> str:
    """The base URL of what belongs to no model: Azure's files, for instance, are beside its deployments."""
    return base_url.replace(f"/deployments/{MODEL_PLACE}", "").replace(f"/{MODEL_PLACE}", "").rstrip("/")


def _upstream(config: Config, channel: Channel) -> Upstream:
    dialect = DIALECT_NAMES.index(channel.api)
    header, prefix = wire_headers.upstream_key(dialect, channel.key_header)
    own, default = channel.timeouts, config.timeouts

    def seconds(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else value

    key = channel.api_keys[0].reveal() if channel.api_keys else None
    return Upstream(
        name=channel.name,
        dialect=dialect,
        base_url=without_model(channel.base_url),
        query=channel.query,
        key=[] if key is None else [(header.decode(), prefix.decode() + key)],
        priority=channel.priority,
        connect_seconds=seconds(own.connect_seconds, default.connect_seconds),
        first_byte_seconds=seconds(own.first_byte_seconds, default.first_byte_seconds),
        idle_seconds=seconds(own.stream_idle_seconds, default.stream_idle_seconds),
        models=dict(channel.models),
    )
