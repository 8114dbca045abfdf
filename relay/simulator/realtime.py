"""OpenAI's realtime sessions: a WebSocket, and events both ways, as the provider documents them.

What is not simulated: voices (sound is silence), hearing (sound is counted, and a turn ends when the client commits
it), and the events of MCP tools and transcriptions.
"""

import asyncio
import base64
import binascii
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import WSMsgType, web

from relay.simulator.answer import Refused
from relay.simulator.book import Book, Entry
from relay.simulator.directives import DirectiveError, Directives, directives_of
from relay.simulator.headers import provider_headers
from relay.simulator.plan import JSON, dumps, make_plan
from relay.simulator.realtime_response import Response, heard_tokens, sound_ms

MESSAGE_BYTES_MAX = 64 << 20
_SESSION_SECONDS = 3600
_PCM: JSON = {"type": "audio/pcm", "rate": 24000}


class _Rejected(Exception):  # noqa: N818
    """An event that the provider answers with an `error` event."""

    def __init__(self, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


async def serve(
    request: web.Request, entry: Entry, book: Book, model: str, d: Directives, defaults: str
) -> web.WebSocketResponse:
    """One session, from its handshake to its end. `d`: what was asked for by header and defaults."""
    if request.headers.get("upgrade", "").lower() != "websocket":
        raise Refused(400, "invalid", "The realtime API is reached by WebSocket.", code="invalid_request")
    socket = web.WebSocketResponse(protocols=("realtime",), compress=False, max_msg_size=MESSAGE_BYTES_MAX)
    for line in provider_headers("openai", "", f"req_{entry.number:024x}").decode().split("\r\n"):
        name, _, value = line.partition(": ")
        if value and name not in ("content-type", "date"):
            socket.headers.add(name, value)
    if d.first_ms:
        await asyncio.sleep(d.first_ms / 1000)
    await socket.prepare(request)
    entry.model, entry.stream, entry.status = model, True, 101
    session = _Session(socket, request, entry, book, model, defaults)
    try:
        await session.run()
    finally:
        await session.stop()
        gone = socket.close_code in (None, 1006)
        book.end(entry, "cut" if session.was_cut else "aborted" if gone else "finished")
    return socket


class _Session:
    def __init__(
        self, socket: web.WebSocketResponse, request: web.Request, entry: Entry, book: Book, model: str, defaults: str
    ) -> None:
        self.socket = socket
        self.request = request
        self.entry = entry
        self.book = book
        self.defaults = defaults
        self.header = request.headers.get("x-sim", "")
        self.counted = 0
        self.items: dict[str, JSON] = {}
        self.sound = bytearray()
        self.heard = 0  # tokens of sound in the conversation
        self.text = b""  # of the events that the next response answers: where directives are looked for
        self.responses = 0
        self.active: Response | None = None
        self.task: asyncio.Task[None] | None = None
        self.was_cut = False
        self.conversation_id = self.new_id("conv_")
        self.session: JSON = {
            "type": "realtime",
            "object": "realtime.session",
            "id": self.new_id("sess_"),
            "model": model,
            "output_modalities": ["audio"],
            "instructions": "",
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "tracing": None,
            "truncation": "auto",
            "prompt": None,
            "expires_at": int(time.time()) + _SESSION_SECONDS,
            "audio": {
                "input": {"format": _PCM, "transcription": None, "noise_reduction": None, "turn_detection": None},
                "output": {"format": _PCM, "voice": "alloy", "speed": 1.0},
            },
            "include": None,
        }

    def new_id(self, prefix: str) -> str:
        self.counted += 1
        return f"{prefix}{(self.entry.number << 32) + self.counted:021x}"

    # -- out

    async def send(self, event: JSON) -> int:
        """Sends an event; how many bytes it has."""
        data = dumps({"type": event["type"], "event_id": self.new_id("event_"), **event})
        if self.book.keep_bodies:
            self.entry.messages_sent.append(data.decode())
        self.book.sent(self.entry, data, len(data))
        self.entry.events_sent += 1
        await self.socket.send_str(data.decode())
        return len(data)

    async def error(self, rejected: _Rejected, event_id: Any) -> None:
        error = {
            "type": "invalid_request_error",
            "code": rejected.code,
            "message": str(rejected),
            "param": rejected.param,
            "event_id": event_id if isinstance(event_id, str) else None,
        }
        await self.send({"type": "error", "error": error})

    # -- in

    async def run(self) -> None:
        """Until the client goes, or its end was asked for."""
        await self.send({"type": "session.created", "session": self.session})
        async for message in self.socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                continue
            data: bytes = message.data.encode() if message.type is WSMsgType.TEXT else message.data
            if self.book.keep_bodies:
                self.entry.messages_received.append(data.decode("utf-8", "replace"))
            self.book.notify()
            event: Any = None
            try:
                event = orjson.loads(data)
                if not isinstance(event, dict):
                    raise _Rejected("The event must be a JSON object.", "invalid_json")
                await self._take(event, data)
            except orjson.JSONDecodeError:
                await self.error(_Rejected("The message could not be parsed as JSON.", "invalid_json"), None)
            except _Rejected as rejected:
                await self.error(rejected, event.get("event_id") if isinstance(event, dict) else None)

    async def stop(self) -> None:
        """Ends the response that is under way."""
        task, self.task = self.task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await task

    async def _take(self, event: JSON, data: bytes) -> None:
        match event.get("type"):
            case "session.update":
                update = event.get("session")
                if not isinstance(update, dict):
                    raise _Rejected("Missing required parameter: 'session'.", "missing_required_parameter", "session")
                self.session = _merged(self.session, {k: v for k, v in update.items() if k not in ("id", "model")})
                await self.send({"type": "session.updated", "session": self.session})
            case "conversation.item.create":
                await self._create_item(event, data)
            case "conversation.item.retrieve":
                await self.send({"type": "conversation.item.retrieved", "item": self._item(event)})
            case "conversation.item.delete":
                name = self._item(event)["id"]
                del self.items[name]
                await self.send({"type": "conversation.item.deleted", "item_id": name})
            case "conversation.item.truncate":
                at = {k: event.get(k) for k in ("content_index", "audio_end_ms")}
                await self.send({"type": "conversation.item.truncated", "item_id": self._item(event)["id"], **at})
            case "input_audio_buffer.append":
                self._hear(event)
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                self.sound.clear()
                await self.send({"type": "input_audio_buffer.cleared"})
            case "response.create":
                await self._create_response(event, data)
            case "response.cancel":
                await self._cancel()
            case kind:
                raise _Rejected(f"Invalid value: '{kind}'.", "invalid_value", "type")

    def _item(self, event: JSON) -> JSON:
        item = self.items.get(str(event.get("item_id")))
        if item is None:
            raise _Rejected("The item does not exist.", "item_not_found", "item_id")
        return item

    async def _create_item(self, event: JSON, data: bytes) -> None:
        given = event.get("item")
        if not isinstance(given, dict) or not isinstance(given.get("type"), str):
            raise _Rejected("Missing required parameter: 'item.type'.", "missing_required_parameter", "item.type")
        self.text += data
        contents = given.get("content")
        for content in contents if isinstance(contents, list) else ():
            if isinstance(content, dict) and isinstance(sound := content.pop("audio", None), str):
                self.heard += heard_tokens(sound_ms(self._form("input"), len(sound) * 3 // 4))
        await self._add_item(given, event.get("previous_item_id"))

    async def _add_item(self, given: JSON, previous: Any = None) -> None:
        item = {
            **given,
            "id": given.get("id") or self.new_id("item_"),
            "object": "realtime.item",
            "status": "completed",
        }
        place = previous if isinstance(previous, str) else next(reversed(self.items), None)
        self.items[item["id"]] = item
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self.send({"type": kind, "previous_item_id": place, "item": item})

    def _form(self, side: str) -> JSON:
        form: JSON = self.session["audio"][side]["format"] or _PCM
        return form

    def _hear(self, event: JSON) -> None:
        try:
            self.sound += base64.b64decode(event["audio"], validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise _Rejected("Invalid 'audio': expected base64.", "invalid_value", "audio") from None

    async def _commit(self) -> None:
        played = sound_ms(self._form("input"), len(self.sound))
        if played < 100:
            raise _Rejected(
                "Error committing input audio buffer: buffer too small. Expected at least 100ms of audio, but buffer "
                f"only has {played:.2f}ms of audio.",
                "input_audio_buffer_commit_empty",
            )
        self.sound.clear()
        self.heard += heard_tokens(played)
        name, place = self.new_id("item_"), next(reversed(self.items), None)
        await self.send({"type": "input_audio_buffer.committed", "previous_item_id": place, "item_id": name})
        content = [{"type": "input_audio", "transcript": None}]
        await self._add_item({"id": name, "type": "message", "role": "user", "content": content})

    # -- responses

    async def _create_response(self, event: JSON, data: bytes) -> None:
        if self.active is not None:
            raise _Rejected(
                f"Conversation already has an active response in progress: {self.active.id}.",
                "conversation_already_has_active_response",
            )
        asked = event.get("response") or {}
        if not isinstance(asked, dict):
            raise _Rejected("Invalid type for 'response'.", "invalid_type", "response")
        try:
            d = directives_of(self.text + data, self.header, self.defaults)
        except DirectiveError as error:
            raise _Rejected(str(error), "invalid_value") from None
        self.text = b""
        settings: dict[str, Any] = {**self.session, **{k: v for k, v in asked.items() if v is not None}}
        limit = settings["max_output_tokens"]
        request = {
            "instructions": settings["instructions"],
            "input": asked.get("input") or list(self.items.values()),
            "tools": settings["tools"],
            "metadata": asked.get("metadata"),
        }
        self.responses += 1
        number = (self.entry.number << 16) + self.responses
        plan = make_plan(d, number, self.entry.model, request, limit if isinstance(limit, int) else None)
        plan.input_tokens += self.heard if d.input < 0 else 0
        form, voice = (self.session["audio"]["output"][name] for name in ("format", "voice"))
        response = self.active = Response(
            plan,
            "audio" in settings["output_modalities"],
            self.heard,
            form or _PCM,
            voice,
            None if asked.get("conversation") == "none" else self.conversation_id,
            limit,
            d.tools or (1 if settings["tool_choice"] == "required" else 0),
        )
        self.task = asyncio.ensure_future(self._respond(response))

    async def _respond(self, response: Response) -> None:
        d = response.plan.d
        sent = 0
        for event in response.events():
            if d.pace_ms and event["type"].endswith((".output_text.delta", "_transcript.delta", "arguments.delta")):
                await asyncio.sleep(d.pace_ms / 1000)
            if d.cut >= 0 and sent >= d.cut:
                self._cut()
                return
            if 0 <= d.stall <= sent:
                self.entry.stalled = True
                self.book.notify()
                return
            if event["type"].startswith("conversation.item."):
                event = {**event, "previous_item_id": next(reversed(self.items), None)}
                if event["type"].endswith("done") and response.conversation_id is not None:
                    self.items[event["item"]["id"]] = event["item"]
            sent += await self.send(event)
            self.entry.output_tokens_sent = self.entry.output_tokens + response.output_tokens
            await asyncio.sleep(0)
        if d.cut >= 0:
            self._cut()
        elif d.stall >= 0:
            self.entry.stalled = True
            self.book.notify()
        elif d.done:
            await self._done(response, response.status)

    async def _done(self, response: Response, status: str) -> None:
        self.active = None
        done = response.done(status)
        entry, usage = self.entry, response.usage()
        entry.usage = done.get("usage")
        entry.input_tokens += usage["input_tokens"]
        entry.cached_tokens += usage["input_token_details"]["cached_tokens"]
        entry.output_tokens += usage["output_tokens"]
        await self.send({"type": "response.done", "response": done})
        limits = [
            {"name": "requests", "limit": 10_000, "remaining": 9_999, "reset_seconds": 0.006},
            {"name": "tokens", "limit": 2_000_000, "remaining": 1_999_983, "reset_seconds": 0.0},
        ]
        await self.send({"type": "rate_limits.updated", "rate_limits": limits})

    async def _cancel(self) -> None:
        response = self.active
        if response is None:
            raise _Rejected("Cancellation failed: no active response found.", "response_cancel_not_active")
        await self.stop()
        await self._done(response, "cancelled")

    def _cut(self) -> None:
        self.was_cut = True
        if self.request.transport is not None:
            self.request.transport.abort()


def _merged(old: JSON, new: Mapping[str, Any]) -> JSON:
    """`new` over `old`, objects inside objects likewise; formats as a whole."""
    merged = dict(old)
    for name, value in new.items():
        inner = merged.get(name)
        whole = not isinstance(value, dict) or not isinstance(inner, dict) or name == "format"
        merged[name] = value if whole else _merged(inner or {}, value)
    return merged
