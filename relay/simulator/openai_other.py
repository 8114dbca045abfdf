"""OpenAI endpoints besides text generation: embeddings, moderations, images, audio; and reranking."""

import base64
import re
import struct
import zlib
from typing import Any

from relay.simulator.answer import Answer, Refused
from relay.simulator.directives import Directives
from relay.simulator.openai_chat import need, whole_number
from relay.simulator.plan import JSON, Plan, damaged, dumps, make_plan, with_usage
from relay.simulator.vectors import vector

_DIMENSIONS = {"text-embedding-3-large": 3072}
_MODERATION_CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


def answer(name: str, request: JSON, d: Directives, number: int) -> Answer:
    if name == "embeddings":
        return embeddings(request, d, number)
    if name == "moderations":
        return _moderations(request, d, number)
    if name == "images":
        return _images(request, d, number)
    if name == "speech":
        return _speech(request, d, number)
    if name == "rerank":
        return _rerank(request, d, number)
    raise Refused(404, "not_found", "Invalid URL", code="unknown_url")


def embeddings(request: JSON, d: Directives, number: int) -> Answer:
    model = need(request, "model", (str,))
    given = need(request, "input", (str, list))
    if not given:
        raise Refused(400, "invalid", "'$.input' is invalid. Please check the API reference.", "input")
    inputs: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    dimensions = whole_number(request, "dimensions") or _DIMENSIONS.get(model, 1536)
    if not 1 <= dimensions <= 1 << 14:
        raise Refused(400, "invalid", "Invalid value for 'dimensions'.", "dimensions")
    plan = make_plan(d, number, model, request, None)
    in_base64 = request.get("encoding_format") == "base64"
    data = []
    for index, item in enumerate(inputs):
        values = vector(dumps(item), dimensions)
        packed = base64.b64encode(struct.pack(f"<{dimensions}f", *values)).decode() if in_base64 else None
        data.append({"object": "embedding", "index": index, "embedding": packed or values})
    usage = {"prompt_tokens": plan.input_tokens, "total_tokens": plan.input_tokens}
    made = _made(plan, usage)
    made.output_tokens = 0
    made.body = with_usage({"object": "list", "data": data, "model": model}, "usage", usage, d.usage, pretty=True)
    return made


def _made(plan: Plan, usage: JSON | None) -> Answer:
    return Answer(
        200,
        "application/json",
        model=plan.model,
        usage=None if usage is None else damaged(usage, plan.d.usage),
        input_tokens=plan.input_tokens,
        output_tokens=plan.output_tokens,
    )


def _moderations(request: JSON, d: Directives, number: int) -> Answer:
    given = need(request, "input", (str, list))
    plan = make_plan(d, number, request.get("model") or "omni-moderation-latest", request, None)
    one = {
        "flagged": False,
        "categories": dict.fromkeys(_MODERATION_CATEGORIES, False),
        "category_scores": dict.fromkeys(_MODERATION_CATEGORIES, 0.0001),
        "category_applied_input_types": {name: ["text"] for name in _MODERATION_CATEGORIES},
    }
    count = len(given) if isinstance(given, list) and given and isinstance(given[0], str) else 1
    body = {"id": plan.id("modr-"), "model": plan.model, "results": [one] * count}
    return Answer(200, "application/json", dumps(body, pretty=True), model=plan.model)


def _png(seed: int) -> bytes:
    """A picture of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixel = bytes((0, seed % 256, seed // 256 % 256, 128))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(pixel))
        + chunk(b"IEND", b"")
    )


def _images(request: JSON, d: Directives, number: int) -> Answer:
    need(request, "prompt", (str,))
    model = request.get("model") or "dall-e-2"
    plan = make_plan(d, number, model, request, None)
    count = whole_number(request, "n") or 1
    picture = base64.b64encode(_png(plan.number)).decode()
    as_url = not model.startswith("gpt-image") and request.get("response_format") != "b64_json"
    item = {"url": f"https://example.com/image/{plan.number}.png"} if as_url else {"b64_json": picture}
    body: JSON = {"created": plan.created, "data": [item] * count}
    if not model.startswith("gpt-image"):
        return Answer(200, "application/json", dumps(body, pretty=True), model=model)
    output = 272 * count
    usage: JSON = {
        "input_tokens": plan.input_tokens,
        "input_tokens_details": {"text_tokens": plan.input_tokens, "image_tokens": 0},
        "output_tokens": output,
        "total_tokens": plan.input_tokens + output,
    }
    body |= {"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"}
    made = _made(plan, usage)
    made.output_tokens = output
    made.body = with_usage(body, "usage", usage, d.usage, pretty=True)
    return made


def _speech(request: JSON, d: Directives, number: int) -> Answer:
    need(request, "input", (str,))
    need(request, "voice", (str, dict))
    plan = make_plan(d, number, need(request, "model", (str,)), request, None)
    sound = (b"ID3\x04" + plan.whole.encode()) * 8
    step = max(1, len(sound) // max(1, d.events))
    made = Answer(200, "audio/mpeg", model=plan.model)
    made.events = (sound[at : at + step] for at in range(0, len(sound), step))
    return made


def _rerank(request: JSON, d: Directives, number: int) -> Answer:
    documents = need(request, "documents", (list,))
    need(request, "query", (str,))
    plan = make_plan(d, number, need(request, "model", (str,)), request, None)
    results = [{"index": index, "relevance_score": 1 / (index + 2)} for index in range(len(documents))]
    usage = {"prompt_tokens": plan.input_tokens, "total_tokens": plan.input_tokens}
    made = _made(plan, usage)
    made.output_tokens = 0
    made.body = with_usage({"id": plan.id("rerank-"), "model": plan.model, "results": results}, "usage", usage, d.usage)
    return made


_FIELD = re.compile(rb'name="([a-z_\[\]]+)"(?:; filename="[^"]*")?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r]*)')


def multipart(name: str, d: Directives, number: int, body: bytes) -> Answer:
    """Requests that come as multipart/form-data. Reads only the short text fields."""
    form = {key.decode(): value.decode("utf-8", "replace") for key, value in _FIELD.findall(body) if len(value) < 4096}
    if not form.get("model"):
        raise Refused(400, "invalid", "you must provide a model parameter")
    plan = make_plan(d, number, form["model"], {}, None)
    if name == "image_edits":
        return _images({"prompt": form.get("prompt", "x"), "model": plan.model}, d, number)
    if form.get("response_format") in ("text", "srt", "vtt"):
        return Answer(200, "text/plain; charset=utf-8", plan.whole.encode() + b"\n", model=plan.model)
    if form.get("response_format") == "verbose_json":
        usage: JSON = {"type": "duration", "seconds": 7}
    else:
        usage = {
            "type": "tokens",
            "input_tokens": plan.input_tokens,
            "input_token_details": {"text_tokens": 0, "audio_tokens": plan.input_tokens},
            "output_tokens": plan.output_tokens,
            "total_tokens": plan.input_tokens + plan.output_tokens,
        }
    made = _made(plan, usage)
    made.body = with_usage({"text": plan.whole}, "usage", usage, d.usage)
    return made
