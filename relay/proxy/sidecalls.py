"""Calls that Python serves: about files, stored objects and jobs. Same keys, limits and records as on the hot path.

They cost nothing themselves. What a job costs is held for and charged by `proxy.jobs`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Final

from aiohttp import web

from relay import _fastpath, units
from relay._fastpath import Admission, ApiKey, Balance, Credential, Engine, Route
from relay.proxy.bodies import Body, BrokenCodingError, UnknownCodingError, coding_of
from relay.proxy.cutting import reset
from relay.proxy.hooks import Hooks
from relay.proxy.keyring import Keyring
from relay.proxy.server import Protocol
from relay.proxy.upstreams import Answered, Fields, Reply, UpstreamError, whole
from relay.records import call_day
from relay.storage import Store, StoreError
from relay.storage.rows import KeyClaim
from relay.wire import errors as wire_errors
from relay.wire import headers as wire_headers
from relay.wire import queries, ratelimits, strictjson
from relay.wire.endpoints import CHANNEL_SCOPE, Endpoint, scope_bit

if TYPE_CHECKING:
    from relay.proxy.idempotency import IdempotencyKeys

CHANNEL_CHARS_MAX: Final = 64
_CODES: Final = _fastpath.ERROR_CODES


class RefusedError(Exception):
    """A call ends with an error of our own. `code`: a name of relay.errors; `retry_after_ns`: 0 where nobody knows;
    `numbers`: what the call may need and what the limit leaves, where a limit refused it."""

    def __init__(
        self, code: str, param: str | None = None, retry_after_ns: int = 0, numbers: tuple[int, int] | None = None
    ) -> None:
        super().__init__(code)
        self.code = code
        self.param = param
        self.retry_after_ns = retry_after_ns
        self.numbers = numbers


class SideCall:
    """One call, from its head to its one record."""

    def __init__(self, desk: Desk, request: web.Request, endpoint: Endpoint, query: str) -> None:
        self.desk = desk
        self.request = request
        self.endpoint = endpoint
        self._peername = request.transport.get_extra_info("peername") if request.transport else None
        trusted = desk.hooks.peer(self._peername)[2]
        self.readable, self._bad_field = wire_headers.readable(request.raw_headers, forwarded=trusted)
        self._query_keys: list[bytes] = []
        self.query = ""  # what of it goes on
        try:
            self._query_keys, rest = queries.read(endpoint, query.encode("ascii", "replace"))
            self.query = rest.decode("ascii")
        except queries.QueryError as error:
            self._bad_field = self._bad_field or str(error)
        self.id = desk.engine.next_id()
        self.began_ns = time.monotonic_ns()
        self.first_byte_ns = 0
        self.sent_ns = 0
        self.key: ApiKey | None = None
        self.credential: Credential | None = None
        self.admission: Admission | None = None
        self.claim: KeyClaim | None = None
        self.channel: str | None = None
        self.attempts = 0
        self.model: str | None = None
        self.upstream_model: str | None = None
        self.stream = False
        self.retry_after_ns = 0
        self.waiting_bytes = 0  # of its body, in memory until it ends
        self._body_owner: Balance | None = None
        self.status = 0  # of an answer that has begun
        self.ended = False

    # -- who calls, and whether it may

    async def identify(self) -> ApiKey:
        """Whose call it is, and whether it may be made at all. Raises RefusedError."""
        desk = self.desk
        if self._bad_field is not None and self._bad_field.encode() in wire_headers.KEY_HEADERS:
            raise RefusedError("invalid_value", self._bad_field)
        given = wire_headers.secrets(self.readable, self._query_keys)
        if not given:
            raise RefusedError("missing_key")
        credentials = [await desk.keyring.find_credential(secret) for secret in given]
        found = {credential.key: credential for credential in credentials if credential is not None}
        if len(found) != 1:
            raise RefusedError("ambiguous_key" if found else "invalid_key")
        ((key, self.credential),) = found.items()
        self.key = key
        if self._bad_field is not None:
            raise RefusedError("invalid_value", self._bad_field)
        if desk.engine.draining:
            raise RefusedError("draining")
        if not desk.engine.store_writable:
            raise RefusedError("store_unavailable")
        code = key.check(
            wall_ns=time.time_ns(), address=self.packed_address(), endpoint_scope=scope_bit(self.endpoint) or 0xFFFFFFFF
        )
        if code:
            raise RefusedError(_CODES[code])
        return key

    async def open(self) -> None:
        """Identify and admit. Raises RefusedError."""
        desk = self.desk
        key = await self.identify()
        admission = Admission()
        code = admission.py_admit(
            key,
            desk.engine.free_rate,
            prompt_tokens=0,
            output_bound=0,
            policy=desk.engine.policy,
            now_ns=time.monotonic_ns(),
            wall_ns=time.time_ns(),
        )
        if code:
            raise limited(code, admission)
        self.admission = admission
        self.enter()

    @property
    def wanted_channel(self) -> str | None:
        """x-relay-channel. Raises RefusedError."""
        values = wire_headers.values(self.readable, b"x-relay-channel")
        if len(values) > 1 or not all(0 < len(value) <= CHANNEL_CHARS_MAX for value in values):
            raise RefusedError("invalid_value", "x-relay-channel")
        return values[0].decode("ascii") if values else None

    @property
    def max_cost_nano(self) -> int:
        """What the caller allows it to cost, by x-relay-max-cost; -1: anything. Raises RefusedError."""
        values = wire_headers.values(self.readable, b"x-relay-max-cost")
        if not values:
            return -1
        try:
            if len(values) != 1:
                raise ValueError
            return units.parse_credits(values[0].decode("ascii"))
        except ValueError:
            raise RefusedError("invalid_value", "x-relay-max-cost") from None

    def enter(self) -> None:
        """From here on it can be stopped."""
        task = asyncio.current_task()
        assert task is not None
        self.desk.open[self] = task

    @property
    def stalled(self) -> bool:
        """Whether its client was let go because it took nothing."""
        protocol = self.request.protocol
        return isinstance(protocol, Protocol) and protocol.stalled

    @property
    def account_id(self) -> int:
        assert self.key is not None
        return self.key.account_id

    def _addresses(self) -> tuple[str | None, bytes | None]:
        lines = wire_headers.values(self.readable, b"x-forwarded-for")
        return self.desk.hooks.caller_address(self._peername, lines)

    def packed_address(self) -> bytes | None:
        return self._addresses()[1]

    # -- what goes on

    def fields(self) -> Fields:
        """The request's fields that the provider may see."""
        allowed = wire_headers.REQUEST_ALLOWED[self.endpoint.dialect] - wire_headers.named_by_connection(self.readable)
        return [
            (name.decode("ascii"), value.decode("ascii")) for name, value in self.readable if name.lower() in allowed
        ]

    @property
    def content_type(self) -> bytes:
        """As the client calls its body; of several, which aiohttp refuses, the first."""
        return next(iter(wire_headers.values(self.readable, b"content-type")), b"")

    @property
    def compressed(self) -> bool:
        """Whether its client says that its body is."""
        try:
            return coding_of(self.readable) is not None
        except UnknownCodingError:
            return True

    async def body(self, bytes_max: int) -> bytes:
        """The whole request body, plain. Raises RefusedError."""
        engine = self.desk.engine
        try:
            decoder = coding_of(self.readable)
        except UnknownCodingError:
            raise RefusedError("unsupported_encoding") from None
        if not wire_headers.charset_is_utf8(self.content_type):
            raise RefusedError("unsupported_charset")
        if (self.request.content_length or 0) > bytes_max:
            raise RefusedError("body_too_large")
        assert self.key is not None
        self._body_owner = self.key.balance
        parts: list[bytes] = []
        body = Body(self.request, self.desk.body_idle_seconds(), decoder)
        try:
            while data := await body.next():
                parts.append(data)
                self.waiting_bytes += len(data)
                room = engine.py_hold_body(self._body_owner, len(data), body.size)
                if body.size > bytes_max:
                    raise RefusedError("body_too_large")
                if not room:
                    raise RefusedError("overloaded")
            return b"".join(parts).removeprefix(strictjson.BYTE_ORDER_MARK)
        except TimeoutError:
            raise RefusedError("body_timeout") from None
        except BrokenCodingError:
            raise RefusedError("malformed_encoding") from None

    # -- the caller's Idempotency-Key

    async def claim_key(self, body: bytes | None) -> None:
        """Takes the key, where the caller has sent one. `body`: what a repeat is compared by; None: nothing is known.

        Raises RefusedError: not a key, or another call has it; StoreError.
        """
        values = wire_headers.values(self.readable, b"idempotency-key")
        if not values:
            return
        if len(values) != 1:
            raise RefusedError("invalid_value", "idempotency-key")
        self.claim = await self.desk.keys.take(self.account_id, values[0], self.id, self.endpoint.path, body)

    async def bind_key(self) -> None:
        """Before what may make an object has been forwarded: the key stays this call's, whatever happens."""
        if self.claim is not None:
            async with self.desk.keys.binding(self.claim):
                await self.desk.store.objects.bind_key(self.claim)

    async def free_key(self) -> None:
        """Nothing was made."""
        if self.claim is not None:
            await self.desk.store.objects.free_key(self.claim)

    # -- the answer

    def own_fields(self) -> Fields:
        """What every answer says of the call and of the key's limits."""
        now = time.monotonic_ns()
        relay_ms = ((self.sent_ns or now) - self.began_ns) / 1e6
        timing = f"relay;dur={relay_ms:.3f}"
        if self.sent_ns and self.first_byte_ns:
            timing += f", upstream;dur={(self.first_byte_ns - self.sent_ns) / 1e6:.3f}"
        fields = [("x-relay-request-id", units.call_text(self.id)), ("server-timing", timing)]
        if self.key is not None:
            view = _fastpath.limits_of(self.key, now)
            rendered = ratelimits.render(
                self.endpoint.dialect, ratelimits.Bucket(*view[:3]), ratelimits.Bucket(*view[3:]), time.time_ns()
            )
            fields += [(name.decode(), value.decode()) for name, value in rendered]
        return fields

    def refuse(self, code: str, param: str | None = None, numbers: tuple[int, int] | None = None) -> web.Response:
        """The refusal in the dialect's shape; ends the call."""
        status, fields, body = wire_errors.render_refusal(
            self.endpoint.dialect,
            code,
            units.call_text(self.id),
            self.retry_after_ns,
            param,
            numbers,
            no_balance_status_openai=self.desk.hooks.no_balance_status_openai,
            credit_name=self.desk.hooks.credit_name,
        )
        response = web.Response(status=status, body=body)
        for name, value in fields:
            response.headers[name.decode()] = value.decode()
        for own_name, own_value in self.own_fields():
            response.headers[own_name] = own_value  # the call's id stands there already
        self.end(status, code)
        return response

    def respond(self, answered: Answered) -> web.Response:
        """A provider's whole answer as it came; ends the call."""
        response = web.Response(status=answered.status, body=answered.body)
        response.headers.popall("Content-Type", None)
        for name, value in (*answered.fields, *self.own_fields()):
            response.headers.add(name, value)
        self.end(answered.status, None if answered.status < 400 else "upstream_error")
        return response

    def respond_json(self, document: bytes, status: int = 200) -> web.Response:
        """An answer of our own; ends the call."""
        response = web.Response(status=status, body=document, content_type="application/json")
        for name, value in self.own_fields():
            response.headers.add(name, value)
        self.end(status, None)
        return response

    async def pass_on(
        self,
        reply: Reply,
        watch: Callable[[bytes], Awaitable[bytes]] | None = None,
        pieces: AsyncIterator[bytes] | None = None,
    ) -> web.StreamResponse:
        """An answer of any size, piece by piece, no faster than the client takes it. Ends the call.

        watch: sees each piece before the client does, and returns what may pass.
        pieces: what passes in place of the answer's own ones; how much that is nobody knows.
        """
        self.first_byte_ns = time.monotonic_ns()
        if reply.status >= 400:
            return self.respond(await whole(reply))
        self.status = reply.status
        response = web.StreamResponse(status=reply.status)
        for name, value in (*reply.fields, *self.own_fields()):
            response.headers.add(name, value)
        response.content_length = reply.content_length if pieces is None else None
        self.stream = reply.content_type == "text/event-stream"
        code: str | None = None
        try:
            await response.prepare(self.request)
            async for data in reply.pieces() if pieces is None else pieces:
                if watch is not None:
                    data = await watch(data)
                await response.write(data)
            await response.write_eof()
        except UpstreamError as error:
            code = error.code
        finally:
            reply.close()
        if code is not None and self.request.transport is not None:
            reset(self.request.transport)  # an end that looks clean would look complete
        self.end(reply.status, code)
        return response

    # -- the end

    def end(self, status: int, code: str | None) -> None:
        """The one ending: what was taken is given back, the record is written."""
        if self.ended:
            return
        self.ended = True
        self.desk.open.pop(self, None)
        if self.claim is not None:
            self.desk.keys.let_go(self.claim)
        now = time.monotonic_ns()
        engine = self.desk.engine
        if self.admission is not None:
            self.admission.py_release(now_ns=now, forwarded=self.sent_ns > 0)
        if self.key is None:
            return
        engine.py_release_body(self._body_owner, self.waiting_bytes)
        if code in ("rate_limit_requests", "rate_limit_tokens", "concurrency_limit"):
            at = (self.key.account_id, self.key.key_id, code, None)
            engine.limit_refusals[at] = engine.limit_refusals.get(at, 0) + 1
        self.note_trace()
        engine.records.append(
            record(
                self.id,
                self.key.account_id,
                self.key.organisation_id,
                self.key.key_id,
                path=self.endpoint.path,
                model=self.model,
                upstream_model=self.upstream_model,
                channel=self.channel,
                attempts=self.attempts or (1 if self.sent_ns else 0),
                stream=self.stream,
                status=status,
                error_code=code,
                latency_us=(now - self.began_ns) // 1000,
                first_byte_us=(self.first_byte_ns - self.began_ns) // 1000 if self.first_byte_ns else None,
                source_ip=self.address(),
                user_agent=self.agent(),
            )
        )

    def note_trace(self) -> None:
        """The caller's traceparent, for the call's span."""
        engine = self.desk.engine
        if engine.field_table.traced and (values := wire_headers.values(self.readable, b"traceparent")):
            engine.traceparents[self.id] = values[0] if len(values) == 1 else b""

    def address(self) -> str | None:
        """For the record."""
        return self._addresses()[0] if self.desk.engine.keep_source_ip else None

    def agent(self) -> str | None:
        """For the record."""
        agents = wire_headers.values(self.readable, b"user-agent")
        if not agents or not self.desk.engine.keep_user_agent:
            return None
        return self.desk.hooks.clean_agent(agents[0])


def limited(code: int, admission: Admission) -> RefusedError:
    """What an admission has refused."""
    scope = admission.limited_scope
    numbers = (admission.wanted, admission.allowed) if admission.wanted >= 0 else None
    return RefusedError(_CODES[code], scope.kind if scope is not None else None, admission.retry_after_ns, numbers)


def narrowed(key: ApiKey, address: bytes | None, wanted: str | None, routes: list[Route]) -> list[Route]:
    """Of these ways those that the caller's x-relay-channel names, by channel or by tag. Raises RefusedError."""
    if wanted is None:
        return routes
    if _CODES[key.check(wall_ns=time.time_ns(), address=address, endpoint_scope=CHANNEL_SCOPE)]:
        raise RefusedError("scope_not_allowed", "x-relay-channel")
    found = [route for route in routes if route.channel.name == wanted or wanted in route.channel.tags]
    if not found:
        raise RefusedError("invalid_value", "x-relay-channel")
    return found


def record(
    call_id: int,
    account_id: int,
    organisation_id: int,
    key_id: int,
    *,
    path: str,
    model: str | None,
    upstream_model: str | None,
    channel: str | None,
    status: int,
    error_code: str | None,
    attempts: int = 1,
    stream: bool = False,
    usage: dict[str, int] | None = None,
    source: str = "none",
    cost_nano: int = 0,
    rate_card: str | None = None,
    latency_us: int = 0,
    first_byte_us: int | None = None,
    source_ip: str | None = None,
    user_agent: str | None = None,
    written_off_nano: int = 0,
) -> tuple[object, ...]:
    """A call record in the order of `records.CALL_RECORD_FIELDS`."""
    used = usage or {}
    return (
        call_id,
        account_id,
        organisation_id or None,
        key_id,
        path,
        model,
        upstream_model,
        channel,
        attempts,
        1 if stream else 0,
        status,
        error_code,
        used.get("input_tokens", 0),
        used.get("output_tokens", 0),
        used.get("cache_read_tokens", 0),
        used.get("cache_write_tokens", 0) + used.get("cache_write_1h_tokens", 0),
        used.get("images", 0),
        used.get("video_seconds", 0),
        used.get("web_searches", 0),
        source,
        cost_nano,
        rate_card,
        latency_us,
        first_byte_us,
        source_ip,
        user_agent,
        written_off_nano,
        call_day(call_id),
    )


class Desk:
    """What these calls share, and those that are open."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        keyring: Keyring,
        hooks: Hooks,
        keys: IdempotencyKeys,
        body_idle_seconds: Callable[[], float],
    ) -> None:
        self.store = store
        self.engine = engine
        self.keys = keys
        self.keyring = keyring
        self.hooks = hooks
        self.body_idle_seconds = body_idle_seconds
        self.open: dict[SideCall, asyncio.Task[object]] = {}

    def stop(self, key: ApiKey | None = None) -> None:
        """Ends calls in flight: of a key that was revoked, or all. Their connections are closed."""
        for call, task in list(self.open.items()):
            if key is None or call.key is key:
                task.cancel()

    def stop_expired(self, wall_ns: int) -> None:
        """Ends calls in flight whose secret was replaced, or whose key has expired."""
        for call, task in list(self.open.items()):
            if call.credential is not None and call.credential.is_over(wall_ns):
                task.cancel()

    async def serve(
        self, call: SideCall, handler: Callable[[SideCall], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Runs a handler between the opening and the one ending of its call."""
        try:
            await call.open()
            return await handler(call)
        except RefusedError as error:
            call.retry_after_ns = error.retry_after_ns
            return call.refuse(error.code, error.param, error.numbers)
        except UpstreamError as error:
            call.retry_after_ns = error.retry_after_ns
            return call.refuse(error.code, error.message)
        except StoreError:
            return call.refuse("store_unavailable")
        except (web.RequestPayloadError, asyncio.CancelledError, ConnectionError):
            if call.stalled:
                call.end(call.status or 499, "client_stalled")
            else:
                call.end(499, "client_gone")
            raise
        except BaseException:
            call.end(500, "internal")
            raise
