"""Realtime sessions: a WebSocket on both sides, every message passed on as it came.

A session is one call whose usage adds up: what `response.done` reports, and our own count of a response that is not
finished. The hold follows both (`_fastpath.Session`); where it cannot, and when the key is revoked, the session ends
with an `error` event and a close.
"""

import asyncio
import base64
import contextlib
import random
import time
from typing import Any, Final

import aiohttp
import orjson
from aiohttp import WSMsgType, web

from relay import _fastpath
from relay._fastpath import Attempts, Session
from relay.errors import ERRORS
from relay.policy import extras
from relay.proxy.server import Protocol
from relay.proxy.sidecalls import RefusedError, SideCall, narrowed
from relay.proxy.upstreams import HandshakeError, UpstreamError, Upstreams
from relay.wire import realtime as wire
from relay.wire.endpoints import D_OPENAI

_CODES: Final = _fastpath.ERROR_CODES
_SWITCHING: Final = 101
_POLICY_VIOLATION: Final = 1008
_CLOSE_SECONDS: Final = 2.0
_PASSED: Final = (WSMsgType.TEXT, WSMsgType.BINARY)  # anything else is a connection that breaks


class RealtimeCall(SideCall):
    """A call whose money is a session's."""

    session: Session | None = None
    stall_seconds: float | None = None  # for how long its upstream may take nothing

    async def open(self) -> None:
        key = await self.identify()
        request = self.request
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise RefusedError("upgrade_required")
        name = wire.parse_query(self.query)
        if name is None:
            raise RefusedError("unsupported_feature")
        if not name:
            raise RefusedError("missing_model")
        engine = self.desk.engine
        self.public = engine.models.get(name.encode())
        routes = self.public.routes_of(D_OPENAI) if self.public is not None else []
        if self.public is None:
            self.desk.hooks.model_unknown(name.encode(), key.account_id, key.key_id)
            raise RefusedError("model_not_found")
        self.model = name
        code = key.check(address=self.packed_address(), model=name.encode())
        if code:
            raise RefusedError(_CODES[code])
        if not routes:
            raise RefusedError("model_not_found", self.public.elsewhere)
        self.routes = narrowed(key, self.packed_address(), self.wanted_channel, routes)
        session = Session(engine, self.id, key, self.public, self.endpoint.path, self.address(), self.agent())
        code = session.open(wire.PROMPT_TOKENS, self.max_cost_nano)
        if code:
            scope = session.limited_scope
            raise RefusedError(_CODES[code], scope.kind if scope is not None else None, session.retry_after_ns)
        self.session = session
        self.stream = True
        self.enter()

    def end(self, status: int, code: str | None) -> None:
        session, self.session = self.session, None
        if session is None:
            super().end(status, code)
        elif not self.ended:
            self.ended = True
            self.desk.open.pop(self, None)
            self.note_trace()
            session.end(_CODES.index(code) if code else 0, status)


async def serve(call: SideCall, upstreams: Upstreams) -> web.StreamResponse:
    """The handler: connects upstream first, so that a refusal is still an HTTP answer."""
    assert isinstance(call, RealtimeCall)
    assert call.session is not None
    bytes_max = call.desk.engine.body_bytes_max
    offered = [p.strip() for p in call.request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    protocols = ("realtime",) if "realtime" in offered else ()
    attempts = upstreams.begin(call.routes)
    try:
        far = await _connect(call, upstreams, attempts, protocols, bytes_max)
        if isinstance(far, web.Response):
            return far
        return await _run(call, attempts, far, protocols, bytes_max)
    finally:
        attempts.leave()


async def _run(
    call: RealtimeCall,
    attempts: Attempts,
    far: aiohttp.ClientWebSocketResponse,
    protocols: tuple[str, ...],
    bytes_max: int,
) -> web.StreamResponse:
    """The session itself, from the client's handshake to its end."""
    assert call.session is not None
    near = web.WebSocketResponse(compress=False, max_msg_size=bytes_max, protocols=protocols)
    for name, value in call.own_fields():
        near.headers[name] = value
    relay = _Relay(call, attempts, near, far)
    code: str | None = "internal"
    try:
        await near.prepare(call.request)
        if isinstance(call.request.protocol, Protocol):
            call.request.protocol.on_lost = None  # reading tells how the client left: with a close, or without
        call.session.accepted()
        code = await relay.run()
        if code in ("upstream_truncated", "upstream_stalled"):
            attempts.bad(_CODES.index(code))
    except asyncio.CancelledError:
        code = _why_stopped(call)
        if code != "client_gone":
            await asyncio.shield(relay.tell(code))
    except ConnectionError:
        code = "client_gone"
    finally:
        if code == "client_gone" and call.stalled:
            code = "client_stalled"
        call.end(499 if code == "client_gone" else _SWITCHING, code)
        await asyncio.shield(_close(near, far, code))
    return near


async def _connect(
    call: RealtimeCall, upstreams: Upstreams, attempts: Attempts, protocols: tuple[str, ...], bytes_max: int
) -> aiohttp.ClientWebSocketResponse | web.Response:
    """The first upstream that accepts, or the refusal of one that the client may see. Raises UpstreamError.

    The client has seen nothing until then, and a handshake makes nothing: any other key or channel may be tried.
    """
    assert call.session is not None
    while True:
        upstream, route = upstreams.chosen(attempts), attempts.route
        assert route is not None
        call.session.forwarded(route)
        query = wire.with_model(route.upstream_model)
        try:
            socket = await upstreams.connect(
                upstream, attempts, "/realtime", query, call.fields(), protocols, bytes_max
            )
        except UpstreamError as error:
            attempts.bad(_CODES.index(error.code))
            if not attempts.another(key_refused=False, channels=True):
                raise
            continue
        except HandshakeError as refusal:
            answered = refusal.answered
            judged = upstreams.judge(attempts, answered.status, refusal.encoding, answered.body, refusal.raw_fields)
            if not judged.callers and attempts.another(key_refused=judged.key_refused, channels=True):
                continue
            if judged.instead:
                raise UpstreamError(judged.instead, judged.wait_ns) from None
            return call.respond(answered)
        attempts.good()
        call.stall_seconds = upstream.idle_seconds
        return socket


def _why_stopped(call: RealtimeCall) -> str:
    """Why the task was cancelled: the client is gone, the key was revoked, or the relay stops."""
    transport = call.request.transport
    if transport is None or transport.is_closing():
        return "client_gone"
    assert call.key is not None
    wall_ns = time.time_ns()
    if call.credential is not None and call.credential.is_over(wall_ns):
        return "key_expired"
    code = call.key.check(wall_ns=wall_ns, address=call.packed_address())
    return _CODES[code] if code else "drain_deadline"


async def _close(near: web.WebSocketResponse, far: aiohttp.ClientWebSocketResponse, code: str | None) -> None:
    """Both sides, each told as much as it may know."""
    told = far.close_code  # a close that cannot be answered changes it
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):  # an upstream that takes nothing takes no close either
            await far.close()
    if near.prepared and not near.closed:
        if code is None:
            await near.close(code=told if told in (1000, 1001) else 1000)
        else:
            await near.close(code=_POLICY_VIOLATION, message=code.encode())


async def _pass(side: web.WebSocketResponse | aiohttp.ClientWebSocketResponse, message: str | bytes) -> None:
    """A message in its own form."""
    await (side.send_str(message) if isinstance(message, str) else side.send_bytes(message))


def _event_id() -> str:
    return "event_" + base64.b32encode(random.randbytes(10)).decode().lower()  # noqa: S311


class _Relay:
    """Messages both ways, and what they cost."""

    def __init__(
        self,
        call: RealtimeCall,
        attempts: Attempts,
        near: web.WebSocketResponse,
        far: aiohttp.ClientWebSocketResponse,
    ) -> None:
        assert call.session is not None
        self.session: Session = call.session
        self.call = call
        self.attempts = attempts
        self.near = near
        self.far = far
        self.meter = wire.Meter()

    async def run(self) -> str | None:
        """Until one side closes or the credits are out: the error code of the record, None for a regular end."""
        sides = [asyncio.ensure_future(self.from_client()), asyncio.ensure_future(self.from_upstream())]
        try:
            done, _ = await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
            return next(side for side in sides if side in done).result()
        finally:
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)

    async def from_client(self) -> str | None:
        async for message in self.near:
            if message.type not in _PASSED:
                continue
            try:
                text = wire.text_of(message.data)
                event = wire.event_of(text)
                if await self.refused(event):
                    continue
                self.meter.sent(text, event)
                # Nobody reads the client meanwhile: that it is gone would not be seen.
                async with asyncio.timeout(self.call.stall_seconds):
                    await _pass(self.far, message.data)
            except TimeoutError:
                return "upstream_stalled"
            except ConnectionError:
                return "upstream_truncated"
        return "client_gone" if self.meter.in_response or self.near.close_code == 1006 else None

    async def refused(self, event: dict[str, Any]) -> bool:
        """Whether a message of the client asks for what its key may not use, or what has no price here: it is told so,
        the message stays here, and the session goes on."""
        asked = wire.asked(event)
        if not asked:
            return False
        call = self.call
        assert call.key is not None
        assert call.public is not None
        assert call.public.rate is not None
        # Only transcripts are counted here.
        for counted in (False, True):
            some = [one for one in asked if (one.price == extras.TRANSCRIPTION) == counted]
            verdict = call.desk.hooks.verdict(some, False, call.public.rate, call.key, counted=counted)
            if verdict.code is not None:
                await self.near.send_str(wire.refusal(event, verdict.code, verdict.field, _event_id()))
                return True
        self.meter.wanted = next((one.model for one in asked if one.model), self.meter.wanted)
        return False

    def transcribed(self) -> int:
        """What other models have transcribed is on the bill: 0, or why the session has to end."""
        hooks, lines = self.call.desk.hooks, []
        for model, heard in self.meter.transcribed.items():
            rate = hooks.model_rates.get(model)
            if rate is None:
                hooks.tell_unpriced("used", extras.TRANSCRIPTION)
            else:
                lines.append(extras.transcription(model, rate, heard))
        return self.session.beside(tuple(lines)) if lines else 0

    async def from_upstream(self) -> str | None:
        async for message in self.far:
            if message.type not in _PASSED:
                continue
            code = 0
            text = wire.text_of(message.data)
            done = self.meter.received(text)
            if done is not None:
                self.tell_of(self.meter.doubts)
                code = self.session.reported(**done)
            elif self.meter.heard:
                code = self.transcribed()
            elif self.meter.in_response:
                code = self.session.counted(**self.meter.counted())
            if code == 0 or done is not None or self.meter.heard:
                await _pass(self.near, self.without_operator(text, message.data))
            if code:
                await self.tell(_CODES[code])
                return _CODES[code]
        return None if self.far.close_code in (1000, 1001) else "upstream_truncated"

    def without_operator(self, text: str, sent: str | bytes) -> str | bytes:
        """A message in the form in which it was `sent`, without what it says about the operator's account; that is told
        to the operator."""
        changed = wire.without_operator(text)
        if changed is None:
            return sent
        if changed[1] == "upstream_account" and self.attempts.route is not None:
            self.call.desk.hooks.on_event("upstream_account", None, self.attempts.route.channel.name)
        return changed[0] if isinstance(sent, str) else changed[0].encode()

    def tell_of(self, doubts: list[tuple[str, str, int, int]]) -> None:
        """The operator hears of reports that were not believed."""
        if doubts and self.attempts.route is not None:
            for doubt in doubts:
                self.call.desk.engine.doubt_report(self.attempts.route.channel.name, self.call.model or "", *doubt)
            doubts.clear()

    async def tell(self, code: str) -> None:
        """The last event of a session that is ended by the relay."""
        event: dict[str, Any] = {
            "type": "error",
            "event_id": _event_id(),
            "error": {"type": "relay_error", "code": code, "message": ERRORS[code].message, "param": None},
        }
        if not self.near.closed:
            try:
                await self.near.send_str(orjson.dumps(event).decode())
            except ConnectionError:
                return


__all__ = ["RealtimeCall", "serve"]
