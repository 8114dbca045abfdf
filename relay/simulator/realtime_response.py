"""One response of a realtime session: its events, its usage, and what goes wrong with either."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field

from relay.simulator.directives import Directives
from relay.simulator.openai_chat import tool_argument_pieces, tool_arguments, tool_names
from relay.simulator.plan import JSON, Plan, damaged

# Bytes of sound per millisecond, by format; every other is a format of telephones.
_BYTES_PER_MS = {"audio/pcm": 48}
_TELEPHONE_BYTES_PER_MS = 8
_USER_TOKEN_MS = 100
_MODEL_TOKEN_MS = 50


def sound_ms(form: JSON, size: int) -> int:
    """How long so many bytes play."""
    return size // _BYTES_PER_MS.get(str(form.get("type")), _TELEPHONE_BYTES_PER_MS)


def heard_tokens(ms: int) -> int:
    return -(-ms // _USER_TOKEN_MS)


@dataclass(slots=True)
class Response:
    """`plan`: what is said; `heard`: tokens of sound in the prompt; `form`: of the sound that is sent."""

    plan: Plan
    spoken: bool
    heard: int
    form: JSON
    voice: str
    conversation_id: str | None
    limit: int | str
    tools: int
    # What has been sent so far: that much a response that is cancelled has cost.
    text_tokens: int = 0
    audio_ms: int = 0
    failed: bool = False
    output: list[JSON] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.plan.id("resp_", length=21)

    @property
    def output_tokens(self) -> int:
        return self.text_tokens + self.audio_ms // _MODEL_TOKEN_MS

    def document(self, status: str) -> JSON:
        """The object without `usage`. Sound is not in it."""
        details = {
            "cancelled": {"type": "cancelled", "reason": "client_cancelled"},
            "incomplete": {"type": "incomplete", "reason": "max_output_tokens"},
            "failed": {"type": "failed", "error": {"type": "server_error", "code": None}},
        }
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": details.get(status),
            "output": self.output,
            "conversation_id": self.conversation_id,
            "output_modalities": ["audio" if self.spoken else "text"],
            "max_output_tokens": self.limit,
            "audio": {"output": {"format": self.form, "voice": self.voice}},
            "metadata": self.plan.request.get("metadata"),
        }

    def usage(self) -> JSON:
        """As the provider reports it. Cached are the first tokens of the text, then those of the sound."""
        d = self.plan.d
        prompt = self.plan.input_tokens
        heard = min(self.heard, prompt)
        cached = min(d.cached, prompt)
        cached_text = min(cached, prompt - heard)
        spoken = self.audio_ms // _MODEL_TOKEN_MS
        output = self.output_tokens if d.output < 0 else d.output
        return {
            "total_tokens": prompt + output,
            "input_tokens": prompt,
            "output_tokens": output,
            "input_token_details": {
                "text_tokens": prompt - heard,
                "audio_tokens": heard,
                "image_tokens": 0,
                "cached_tokens": cached,
                "cached_tokens_details": {
                    "text_tokens": cached_text,
                    "audio_tokens": cached - cached_text,
                    "image_tokens": 0,
                },
            },
            "output_token_details": {"text_tokens": output - min(spoken, output), "audio_tokens": min(spoken, output)},
        }

    def done(self, status: str) -> JSON:
        """The `response` of its `response.done`."""
        d, document = self.plan.d, self.document(status)
        shown = damaged(self.usage(), d.usage)
        if d.usage == "null":
            return {**document, "usage": None}
        return document if shown is None else {**document, "usage": shown}

    @property
    def status(self) -> str:
        return "failed" if self.failed else "incomplete" if self.plan.limited else "completed"

    def events(self) -> Iterator[JSON]:
        """From `response.created` on, without `event_id`; `response.done` is not among them."""
        yield {"type": "response.created", "response": {**self.document("in_progress"), "usage": None}}
        for index in range(max(self.tools, 1)):
            item = self._item(index)
            self.output.append(item)
            at: JSON = {"response_id": self.id, "output_index": index}
            empty: JSON = {**item, "status": "in_progress"}
            yield {"type": "response.output_item.added", **at, "item": empty}
            yield {"type": "conversation.item.added", "item": empty}
            at["item_id"] = item["id"]
            yield from self._arguments(at, item) if self.tools else self._content({**at, "content_index": 0}, item)
            if self.failed:
                return
            item["status"] = self.status
            yield {"type": "response.output_item.done", **{k: v for k, v in at.items() if k != "item_id"}, "item": item}
            yield {"type": "conversation.item.done", "item": item}

    def _item(self, index: int) -> JSON:
        item: JSON = {"id": self.plan.id("item_", index, 21), "object": "realtime.item", "status": "incomplete"}
        if not self.tools:
            return {**item, "type": "message", "role": "assistant", "content": []}
        names = tool_names(self.plan.request)
        call = {"name": names[index % len(names)], "call_id": self.plan.id("call_", index, 16), "arguments": ""}
        return {**item, "type": "function_call", **call}

    def _arguments(self, at: JSON, item: JSON) -> Iterator[JSON]:
        call = {**at, "call_id": item["call_id"]}
        for piece in tool_argument_pieces(self.plan):
            self.text_tokens = self.plan.said
            yield {"type": "response.function_call_arguments.delta", **call, "delta": piece}
        item["arguments"] = tool_arguments(self.plan)
        done = {**call, "name": item["name"], "arguments": item["arguments"]}
        yield {"type": "response.function_call_arguments.done", **done}

    def _content(self, at: JSON, item: JSON) -> Iterator[JSON]:
        d: Directives = self.plan.d
        kind, said = ("audio", "transcript") if self.spoken else ("text", "text")
        name = "response.output_audio_transcript" if self.spoken else "response.output_text"
        yield {"type": "response.content_part.added", **at, "part": {"type": kind, said: ""}}
        per_ms = _BYTES_PER_MS.get(str(self.form.get("type")), _TELEPHONE_BYTES_PER_MS)
        sound = base64.b64encode(bytes(per_ms * d.audio_ms)).decode()
        item["content"] = [{"type": f"output_{kind}", said: ""}]
        pieces = self.plan.pieces
        for index in range(self.plan.events):
            if index == d.error_at:
                self.failed = True
                return
            piece = next(pieces)
            self.text_tokens = self.plan.said
            item["content"][0][said] += piece
            yield {"type": f"{name}.delta", **at, "delta": piece}
            if self.spoken:
                self.audio_ms += d.audio_ms
                yield {"type": "response.output_audio.delta", **at, "delta": sound}
        whole = item["content"][0][said]
        if self.spoken:
            yield {"type": "response.output_audio.done", **at}
        yield {"type": f"{name}.done", **at, said: whole}
        yield {"type": "response.content_part.done", **at, "part": {"type": kind, said: whole}}
