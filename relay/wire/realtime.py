"""Realtime sessions as OpenAI speaks them: the query, the events that carry usage, and a count of what carries none."""

import math
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl, quote

import msgspec
import orjson

from relay import _fastpath
from relay.errors import ERRORS
from relay.records import TRANSCRIPTION_LINE
from relay.wire import documents, tools, upstream_errors
from relay.wire.endpoints import F_RESPONSES

# Held for the prompt of the first response, until something is known of it.
PROMPT_TOKENS: Final = 1000

# What transcribes where a session asks for it and names no model.
TRANSCRIBER: Final = "whisper-1"

# What a token is worth: 100 ms of the user's sound, 50 ms of the model's; about four bytes of text.
_USER_TOKEN_SECONDS: Final = 0.1
_MODEL_TOKEN_SECONDS: Final = 0.05
_TEXT_TOKEN_BYTES: Final = 4
_BYTES_PER_SECOND: Final = {"pcm": 48_000, "pcm16": 48_000}  # every other format has one byte at 8 kHz
_G711: Final = 8_000

# The most that a response can report: a token of prompt has a byte at least, somewhere in the session; providers add to
# that, and most where a message names a picture, a stored prompt or tools of others. No model writes more than this.
_PROMPT_ADDED: Final = 16_384
_PROMPT_NAMED: Final = 65_536
_NAMES: Final = ('"image_url"', '"prompt"', '"mcp"')
_OUTPUT_MAX: Final = 65_536
_INPUT, _OUTPUT, _INPUT_BAD, _OUTPUT_BAD = 1, 2, 4, 8  # `sides` of a report

_TEXT_DELTAS: Final = frozenset(
    f"response.{name}.delta"
    for name in (
        *("text", "output_text", "audio_transcript", "output_audio_transcript", "function_call_arguments"),
        "mcp_call_arguments",
    )
)
_AUDIO_DELTAS: Final = frozenset({"response.audio.delta", "response.output_audio.delta"})


def parse_query(query: str) -> str | None:
    """The model of a session's URL; None for a kind of session that reports no usage."""
    pairs = dict(parse_qsl(query, keep_blank_values=True))
    return None if "intent" in pairs or "call_id" in pairs else pairs.get("model", "")


def with_model(model: str) -> str:
    """The query as it goes on: nothing of the client's own."""
    return f"model={quote(model, safe='')}"


def asked(event: dict[str, Any]) -> list[tools.Asked]:
    """What a message of the client asks for beside tokens of the session's model: tools, a model that transcribes."""
    if "session" not in event and "response" not in event:  # sound and text: nearly all of them
        return []
    session, response = _object(event, "session"), _object(event, "response")
    found: list[tools.Asked] = []
    for holder, name in ((session, "session"), (response, "response")):
        for one in tools.asked(F_RESPONSES, [("tools", holder.get("tools") or [])]):
            found.append(msgspec.structs.replace(one, field=f"{name}.{one.field}"))
        if tools.searches({"tools": holder.get("tools")}):
            found.append(tools.Asked("web_search", f"{name}.tools.web_search"))
    transcriber = transcriber_of(session)
    if transcriber is not None:
        found.append(tools.Asked(TRANSCRIPTION_LINE, "session.audio.input.transcription", transcriber))
    return found


def transcriber_of(session: dict[str, Any]) -> str | None:
    """The model that a session's sound is transcribed by; None: by none."""
    for holder, name in (
        (session, "input_audio_transcription"),
        (_object(_object(session, "audio"), "input"), "transcription"),
    ):
        if isinstance(holder.get(name), dict):
            model = holder[name].get("model", TRANSCRIBER)
            return model if isinstance(model, str) else ""
    return None


def refusal(event: dict[str, Any], code: str, field: str | None, event_id: str) -> str:
    """The error event for a message that is not passed on."""
    told = event.get("event_id")
    error = {"type": "invalid_request_error", "code": code, "message": ERRORS[code].message, "param": field}
    error["event_id"] = told if isinstance(told, str) else None
    return orjson.dumps({"type": "error", "event_id": event_id, "error": error}).decode()


class Meter:
    """Reads copies of the messages of one session."""

    def __init__(self) -> None:
        self.in_response = False
        self.prompt_tokens = 0  # of the response that is not finished: what the one before had, and what came since
        self._last_prompt = 0
        self._prompt_audio = 0  # what of it the client has sent since as sound
        self._sent_audio = self._sent_text = 0.0
        self._output_audio = self._output_text = 0.0
        self._input_rate = self._output_rate = 48_000
        self._prompt_max = _PROMPT_ADDED
        self.wanted: str | None = None  # what the client wants its sound to be transcribed by
        self.transcriber: str | None = None  # ... and what transcripts are charged as
        self.heard = False  # the last message was a transcript
        self.transcribed: dict[str, dict[str, int]] = {}  # by its model: seconds, tokens of prompt and output
        self._sound_seconds = 0.0  # that no transcript has been charged for
        self.doubts: list[tuple[str, str, int, int]] = []  # about reports, for the operator; whoever reads them clears

    @property
    def output_tokens(self) -> int:
        return int(self._output_audio) + int(self._output_text) + 1

    def counted(self) -> dict[str, int]:
        """What the response that is not finished has used so far."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "audio_input_tokens": self._prompt_audio,
            "audio_output_tokens": int(self._output_audio),
        }

    def sent(self, message: str, event: dict[str, Any] | None = None) -> None:
        """From the client. `event`: the message, where it is read already."""
        event = event_of(message) if event is None else event
        self._prompt_max += _bytes(message)
        audio = event.get("audio") if event.get("type") == "input_audio_buffer.append" else None
        if isinstance(audio, str):
            self._sound_seconds += len(audio) * 3 / 4 / self._input_rate
            self._sent_audio += len(audio) * 3 / 4 / self._input_rate / _USER_TOKEN_SECONDS
        else:
            self._sent_text += len(message) / _TEXT_TOKEN_BYTES
            self._prompt_max += _PROMPT_NAMED * any(name in message for name in _NAMES)

    def received(self, message: str) -> dict[str, Any] | None:
        """From the upstream: what a response that ends with it has used."""
        event = event_of(message)
        self.heard = False
        self._prompt_max += _bytes(message)
        kind = str(event.get("type"))
        delta = event.get("delta")
        if kind == "response.created":
            self.in_response = True
            self._prompt_audio = int(self._sent_audio)
            self.prompt_tokens = self._last_prompt + self._prompt_audio + int(self._sent_text)
            self._output_audio = self._output_text = 0.0
        elif kind in _AUDIO_DELTAS and isinstance(delta, str):
            self._began()
            self._output_audio += len(delta) * 3 / 4 / self._output_rate / _MODEL_TOKEN_SECONDS
        elif kind in _TEXT_DELTAS and isinstance(delta, str):
            self._began()
            self._output_text += len(_encoded(delta)) / _TEXT_TOKEN_BYTES
        elif kind in ("session.created", "session.updated"):
            self._formats(event.get("session"))
            self.transcriber = self.wanted or transcriber_of(_object(event, "session")) or self.transcriber
        elif kind == "conversation.item.input_audio_transcription.completed":
            self._heard(event)
        elif kind == "response.done":
            return self._done(event.get("response"))
        return None

    def _began(self) -> None:
        """Output has come: of a response that nobody has announced, or beside another one that is done, it is counted
        alone."""
        if not self.in_response:
            self.in_response = True
            self.prompt_tokens = self._prompt_audio = 0
            self._output_audio = self._output_text = 0.0

    def _formats(self, session: Any) -> None:
        if isinstance(session, dict):
            audio = session.get("audio") or {}
            self._input_rate = _rate(session.get("input_audio_format") or _format(audio, "input"))
            self._output_rate = _rate(session.get("output_audio_format") or _format(audio, "output"))

    def _heard(self, event: dict[str, Any]) -> None:
        """A transcript: its report, as far as so much was said; else our own count."""
        self.heard = True
        usage, transcript = _object(event, "usage"), event.get("transcript")
        seconds = math.ceil(self._sound_seconds)
        own = {
            "seconds": seconds,
            "input_tokens": math.ceil(seconds / _USER_TOKEN_SECONDS),
            "output_tokens": len(_encoded(str(transcript))) // _TEXT_TOKEN_BYTES + 1,
        }
        told = usage.get("seconds")
        found = {
            "seconds": math.ceil(told) if isinstance(told, int | float) and 0 < told < 1 << 32 else 0,
            "input_tokens": _tokens(usage, "input_tokens"),
            "output_tokens": _tokens(usage, "output_tokens"),
        }
        most = {"seconds": seconds + 2, "input_tokens": 2 * own["input_tokens"] + _PROMPT_ADDED}
        most["output_tokens"] = 8 * own["input_tokens"] + _PROMPT_ADDED
        so_far = self.transcribed.setdefault(self.transcriber or self.wanted or "", dict.fromkeys(own, 0))
        for name, count in found.items():
            so_far[name] += count if 0 < count <= most[name] else own[name]
        self._sound_seconds = 0.0

    def _done(self, response: Any) -> dict[str, Any]:
        """What the response is charged for: the report as far as the session can have had it, else our own count."""
        usage = response.get("usage") if isinstance(response, dict) else None
        own = self.counted()
        own["input_tokens"] = own.pop("prompt_tokens")
        counted = int(self._output_audio) + int(self._output_text)
        began, self.in_response = self.in_response, False
        self._sent_audio = self._sent_text = 0.0
        if not isinstance(usage, dict):
            return own | {"estimated": True} if began else {"estimated": True}
        report = _report(usage) | {"counted_tokens": counted if began else 0}
        verdict = _fastpath.weigh_report(
            report,
            own if began else {},
            format=F_RESPONSES,
            prompt_tokens=self._prompt_max,
            output_tokens=_OUTPUT_MAX,
        )
        self.doubts += verdict["doubts"]
        charged = {name: verdict["usage"][name] for name in _CHARGED}
        self._last_prompt = charged["input_tokens"] + charged["cache_read_tokens"] + charged["output_tokens"]
        return charged | {"estimated": True} if verdict["estimated"] else charged


_CHARGED: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "audio_input_tokens",
    "image_input_tokens",
    "audio_output_tokens",
    "audio_cache_read_tokens",
    "image_cache_read_tokens",
)


def _report(usage: dict[str, Any]) -> dict[str, int]:
    """A report in the priced dimensions, as `_fastpath.weigh_report` takes it."""
    details, output_details = _object(usage, "input_token_details"), _object(usage, "output_token_details")
    of_cached = _object(details, "cached_tokens_details")
    sides = 0
    for reported, bad, read in (
        (_INPUT, _INPUT_BAD, [usage.get("input_tokens"), *map(details.get, _PARTS), *map(of_cached.get, _PARTS)]),
        (_OUTPUT, _OUTPUT_BAD, [usage.get("output_tokens"), output_details.get("audio_tokens")]),
    ):
        sides |= reported if _count(read[0]) is not None else 0
        sides |= bad if any(value is not None and _count(value) is None for value in read) else 0
    given, cached = _tokens(usage, "input_tokens"), _tokens(details, "cached_tokens")
    cached = min(given, cached)
    sound = min(_tokens(output_details, "audio_tokens"), _tokens(usage, "output_tokens"))
    cached_sound = min(cached, _tokens(of_cached, "audio_tokens"))
    heard = min(given - cached, max(0, _tokens(details, "audio_tokens") - _tokens(of_cached, "audio_tokens")))
    seen = max(0, _tokens(details, "image_tokens") - _tokens(of_cached, "image_tokens"))
    return {
        "sides": sides,
        "hidden_tokens": sound,
        "input_tokens": given - cached,
        "output_tokens": _tokens(usage, "output_tokens"),
        "cache_read_tokens": cached,
        "audio_input_tokens": heard,
        "image_input_tokens": min(given - cached - heard, seen),
        "audio_output_tokens": sound,
        "audio_cache_read_tokens": cached_sound,
        "image_cache_read_tokens": min(cached - cached_sound, _tokens(of_cached, "image_tokens")),
    }


_PARTS: Final = ("cached_tokens", "audio_tokens", "image_tokens")


def _bytes(message: str) -> int:
    """No more than this in UTF-8."""
    return len(message) if message.isascii() else 4 * len(message)


def _encoded(text: str) -> bytes:
    """A delta may end in the middle of a character that JSON writes as two escapes."""
    return text.encode("utf-8", "surrogatepass")


def text_of(message: str | bytes) -> str:
    """A message as text. Events in binary messages are events: whoever reads them may not tell the two apart."""
    return message if isinstance(message, str) else bytes(message).decode("utf-8", "replace")


def event_of(message: str) -> dict[str, Any]:
    """A message; {} for one that is not an object of JSON."""
    try:
        event = documents.loads(message)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    """A number of tokens as a report may write it; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _tokens(usage: dict[str, Any], name: str) -> int:
    return _count(usage.get(name)) or 0


def _format(audio: Any, side: str) -> str:
    form = _object(_object(audio, side), "format") if isinstance(audio, dict) else {}
    return str(form.get("type", "pcm")).removeprefix("audio/")


def _rate(name: object) -> int:
    return _BYTES_PER_SECOND.get(str(name), _G711)


def without_operator(text: str) -> tuple[str, str] | None:
    """A message of the provider whose error is about the operator's account, as the client may see it, and the name of
    that error in relay.errors. None: it passes as it is."""
    if '"error"' not in text and text[:1] == "{":  # inside a text of the event the quotes would be escaped
        return None
    try:
        event = documents.loads(text)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        code = upstream_errors.told_in_place(text.encode("utf-8", "replace"))
        return _error_instead(code, lambda error: {"type": "error", "error": error})
    response = _object(event, "response")
    details = _object(response, "status_details")
    if details.get("error"):
        return _error_instead(
            upstream_errors.told_in_place_of(details["error"]),
            lambda error: event | {"response": response | {"status_details": {"type": "failed", "error": error}}},
        )
    if response.get("error"):
        return _error_instead(
            upstream_errors.told_in_place_of(response["error"]),
            lambda error: event | {"response": response | {"error": error}},
        )
    if event.get("error"):
        return _error_instead(upstream_errors.told_in_place_of(event["error"]), lambda error: event | {"error": error})
    if event.get("type") == "error":
        return _error_instead(
            upstream_errors.told_in_place_of({name: value for name, value in event.items() if name != "type"}),
            lambda error: {"type": "error", "error": error},
        )
    return None


def _error_instead(code: str | None, event_with: Callable[[dict[str, Any]], dict[str, Any]]) -> tuple[str, str] | None:
    if code is None:
        return None
    error = {"type": "server_error", "code": code, "message": ERRORS[code].message, "param": None}
    return documents.dumps(event_with(error)).decode(), code
