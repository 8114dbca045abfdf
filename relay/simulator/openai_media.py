"""OpenAI's pictures and sound: images, speech, transcriptions; whole and streamed."""

import base64
import re
import struct
import zlib
from collections.abc import Iterator

from relay.simulator.answer import Answer, Refused
from relay.simulator.directives import Directives
from relay.simulator.openai_chat import need, whole_number
from relay.simulator.plan import EOL, JSON, Plan, damaged, dumps, make_plan, sse, with_usage

_EVENTS_TYPE = "text/event-stream; charset=utf-8"
_TOKENS_PER_IMAGE = 272


def picture(plan: Plan) -> str:
    """A PNG of one pixel in base64, `image_bytes` long before encoding if that is more than it needs."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixel = bytes((0, plan.number % 256, plan.number // 256 % 256, 128))
    begin = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(pixel)) + chunk(b"IEND", b"")
    missing = plan.d.image_bytes - len(begin) - len(end) - 12
    comment = chunk(b"tEXt", (b"Comment\0" + b"simulated" * (missing // 9 + 1))[:missing]) if missing > 8 else b""
    return base64.b64encode(begin + comment + end).decode()


def _usage(plan: Plan, output: int) -> JSON:
    return {
        "input_tokens": plan.input_tokens,
        "input_tokens_details": {"text_tokens": plan.input_tokens, "image_tokens": 0},
        "output_tokens": output,
        "total_tokens": plan.input_tokens + output,
    }


def images(request: JSON, d: Directives, number: int, kind: str = "image_generation") -> Answer:
    """`kind`: what events are called, image_generation or image_edit."""
    need(request, "prompt", (str,))
    model = request.get("model") or "dall-e-2"
    plan = make_plan(d, number, model, request, None)
    count = whole_number(request, "n") or 1
    form = {"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"}
    if not model.startswith("gpt-image"):
        as_url = request.get("response_format") != "b64_json"
        item = {"url": f"https://example.com/image/{plan.number}.png"} if as_url else {"b64_json": picture(plan)}
        body: JSON = {"created": plan.created, "data": [item] * count}
        return Answer(200, "application/json", dumps(body, pretty=True), model=model)
    usage = _usage(plan, _TOKENS_PER_IMAGE * count)
    answer = Answer(200, "application/json", model=model, usage=damaged(usage, d.usage), input_tokens=plan.input_tokens)
    answer.output_tokens = _TOKENS_PER_IMAGE * count
    if request.get("stream"):
        answer.content_type = _EVENTS_TYPE
        partial = whole_number(request, "partial_images") or 0
        answer.events = _image_events(plan, kind, partial, form, usage)
    else:
        body = {"created": plan.created, "data": [{"b64_json": picture(plan)}] * count, **form}
        answer.body = with_usage(body, "usage", usage, d.usage, pretty=True)
    return answer


def _image_events(plan: Plan, kind: str, partial: int, form: JSON, usage: JSON) -> Iterator[bytes]:
    eol = EOL[plan.d.eol]
    common = {"b64_json": picture(plan), "created_at": plan.created, **form}
    for index in range(partial):
        name = f"{kind}.partial_image"
        yield sse(dumps({"type": name, **common, "partial_image_index": index}), name, eol)
    if plan.d.done:
        name = f"{kind}.completed"
        yield sse(with_usage({"type": name, **common}, "usage", usage, plan.d.usage), name, eol)


def speech(request: JSON, d: Directives, number: int) -> Answer:
    need(request, "input", (str,))
    need(request, "voice", (str, dict))
    plan = make_plan(d, number, need(request, "model", (str,)), request, None)
    sound = (b"ID3\x04" + plan.whole.encode()) * 8
    step = max(1, len(sound) // max(1, d.events))
    parts = (sound[at : at + step] for at in range(0, len(sound), step))
    answer = Answer(200, "audio/mpeg", model=plan.model)
    if request.get("stream_format") != "sse":
        answer.events = parts  # raw sound carries no usage
        return answer
    usage = {
        "input_tokens": plan.input_tokens,
        "output_tokens": plan.output_tokens,
        "total_tokens": plan.input_tokens + plan.output_tokens,
    }
    _note(answer, plan, usage)
    answer.content_type = _EVENTS_TYPE
    answer.events = _speech_events(plan, parts, usage)
    return answer


def _note(answer: Answer, plan: Plan, usage: JSON) -> None:
    answer.usage = damaged(usage, plan.d.usage)
    answer.input_tokens = plan.input_tokens
    answer.output_tokens = plan.output_tokens


def _speech_events(plan: Plan, parts: Iterator[bytes], usage: JSON) -> Iterator[bytes]:
    eol = EOL[plan.d.eol]
    for part in parts:
        yield sse(dumps({"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()}), eol=eol)
    if plan.d.done:
        yield sse(with_usage({"type": "speech.audio.done"}, "usage", usage, plan.d.usage), eol=eol)


_FIELD = re.compile(rb'name="([a-z_\[\]]+)"(?:; filename="[^"]*")?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r]*)')


def multipart(name: str, d: Directives, number: int, body: bytes) -> Answer:
    """Requests that come as multipart/form-data. Reads only the short text fields."""
    form = {key.decode(): value.decode("utf-8", "replace") for key, value in _FIELD.findall(body) if len(value) < 4096}
    if name == "image_variations":
        form.setdefault("model", "dall-e-2")
    if not form.get("model"):
        raise Refused(400, "invalid", "you must provide a model parameter")
    stream = form.get("stream") in ("true", "True", "1")
    if name in ("image_edits", "image_variations"):
        if name == "image_edits" and not form.get("prompt"):
            raise Refused(400, "invalid", "Missing required parameter: 'prompt'.", "prompt")
        count = int(form.get("n", "1"))
        fields = {"prompt": form.get("prompt", "x"), "model": form["model"], "stream": stream, "n": count}
        return images(fields, d, number, "image_edit")
    return _transcription(form, make_plan(d, number, form["model"], {}, None), stream)


def _transcription(form: dict[str, str], plan: Plan, stream: bool) -> Answer:
    wanted = form.get("response_format", "json")
    by_duration = plan.model.startswith("whisper")
    if wanted in ("text", "srt", "vtt"):
        return Answer(200, "text/plain; charset=utf-8", plan.whole.encode() + b"\n", model=plan.model)
    answer = Answer(200, "application/json", model=plan.model)
    usage: JSON
    if wanted == "verbose_json" or by_duration:
        usage = {"type": "duration", "seconds": 7}
        answer.usage = damaged(usage, plan.d.usage)
        whole: JSON = {"text": plan.whole}
        if wanted == "verbose_json":
            whole = {"task": "transcribe", "language": "english", "duration": 6.7, **whole, "segments": []}
    else:
        usage = {
            "type": "tokens",
            "input_tokens": plan.input_tokens,
            "input_token_details": {"text_tokens": 0, "audio_tokens": plan.input_tokens},
            "output_tokens": plan.output_tokens,
            "total_tokens": plan.input_tokens + plan.output_tokens,
        }
        _note(answer, plan, usage)
        whole = {"text": plan.whole}
    if stream and wanted == "json" and not by_duration:
        answer.plan = plan
        answer.content_type = _EVENTS_TYPE
        answer.events = _transcription_events(plan, usage)
    else:
        answer.body = with_usage(whole, "usage", usage, plan.d.usage)
    return answer


def _transcription_events(plan: Plan, usage: JSON) -> Iterator[bytes]:
    eol = EOL[plan.d.eol]
    for piece in plan.pieces:
        yield sse(dumps({"type": "transcript.text.delta", "delta": piece}), eol=eol)
    if plan.d.done:
        yield sse(
            with_usage({"type": "transcript.text.done", "text": plan.whole}, "usage", usage, plan.d.usage), eol=eol
        )
    yield b"data: [DONE]" + eol + eol
