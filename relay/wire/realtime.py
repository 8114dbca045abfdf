"""Realtime sessions as OpenAI speaks them: the query, the events that carry usage, and a count of what carries none."""

from typing import Any, Final
from urllib.parse import parse_qsl, quote

import orjson

# Held for the prompt of the first response, until something is known of it.
PROMPT_TOKENS: Final = 1000

# What a token is worth: 100 ms of the user's sound, 50 ms of the model's; about four bytes of text.
_USER_TOKEN_SECONDS: Final = 0.1
_MODEL_TOKEN_SECONDS: Final = 0.05
_TEXT_TOKEN_BYTES: Final = 4
_BYTES_PER_SECOND: Final = {"pcm": 48_000, "pcm16": 48_000}  # every other format has one byte at 8 kHz
_G711: Final = 8_000
_USAGE_MAX: Final = 10**9

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

    def sent(self, message: str) -> None:
        """From the client."""
        event = _event(message)
        audio = event.get("audio") if event.get("type") == "input_audio_buffer.append" else None
        if isinstance(audio, str):
            self._sent_audio += len(audio) * 3 / 4 / self._input_rate / _USER_TOKEN_SECONDS
        else:
            self._sent_text += len(message) / _TEXT_TOKEN_BYTES

    def received(self, message: str) -> dict[str, Any] | None:
        """From the upstream: what a response that ends with it has used."""
        event = _event(message)
        kind = str(event.get("type"))
        delta = event.get("delta")
        if kind == "response.created":
            self.in_response = True
            self._prompt_audio = int(self._sent_audio)
            self.prompt_tokens = self._last_prompt + self._prompt_audio + int(self._sent_text)
            self._output_audio = self._output_text = 0.0
        elif kind in _AUDIO_DELTAS and isinstance(delta, str):
            self._output_audio += len(delta) * 3 / 4 / self._output_rate / _MODEL_TOKEN_SECONDS
        elif kind in _TEXT_DELTAS and isinstance(delta, str):
            self._output_text += len(delta.encode()) / _TEXT_TOKEN_BYTES
        elif kind in ("session.created", "session.updated"):
            self._formats(event.get("session"))
        elif kind == "response.done":
            return self._done(event.get("response"))
        return None

    def _formats(self, session: Any) -> None:
        if isinstance(session, dict):
            audio = session.get("audio") or {}
            self._input_rate = _rate(session.get("input_audio_format") or _format(audio, "input"))
            self._output_rate = _rate(session.get("output_audio_format") or _format(audio, "output"))

    def _done(self, response: Any) -> dict[str, Any]:
        usage = response.get("usage") if isinstance(response, dict) else None
        counted: dict[str, Any] = self.counted() | {"estimated": True}
        counted["input_tokens"] = counted.pop("prompt_tokens")
        began, self.in_response = self.in_response, False
        self._sent_audio = self._sent_text = 0.0
        if not isinstance(usage, dict) or not isinstance(usage.get("input_tokens"), int):
            return counted if began else {"estimated": True}
        given = _tokens(usage, "input_tokens")
        details = _object(usage, "input_token_details")
        cached = min(given, _tokens(details, "cached_tokens"))
        of_cached = _object(details, "cached_tokens_details")
        self._last_prompt = given + _tokens(usage, "output_tokens")
        return {
            "input_tokens": given - cached,
            "output_tokens": _tokens(usage, "output_tokens"),
            "cache_read_tokens": cached,
            "audio_input_tokens": max(0, _tokens(details, "audio_tokens") - _tokens(of_cached, "audio_tokens")),
            "image_input_tokens": max(0, _tokens(details, "image_tokens") - _tokens(of_cached, "image_tokens")),
            "audio_output_tokens": _tokens(_object(usage, "output_token_details"), "audio_tokens"),
        }


def _event(message: str) -> dict[str, Any]:
    try:
        event = orjson.loads(message)
    except orjson.JSONDecodeError:
        return {}
    return event if isinstance(event, dict) else {}


def _object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def _tokens(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return min(max(value, 0), _USAGE_MAX) if isinstance(value, int) else 0


def _format(audio: Any, side: str) -> str:
    form = _object(_object(audio, side), "format") if isinstance(audio, dict) else {}
    return str(form.get("type", "pcm")).removeprefix("audio/")


def _rate(name: object) -> int:
    return _BYTES_PER_SECOND.get(str(name), _G711)
