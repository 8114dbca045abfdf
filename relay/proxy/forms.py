"""Multipart calls that are priced by model: what the pipeline has to know of such a body.

The body is in memory as a whole, since the model may stand behind the file. It goes on byte for byte; only where a
channel renames the model, that part's bytes change.
"""

from typing import Final

import msgspec

from relay import _fastpath
from relay._fastpath import TokenTable
from relay.config_values import MODEL_BYTES_MAX
from relay.wire import multipart, sound
from relay.wire.endpoints import F_IMAGES, F_TRANSCRIPTION

E_MALFORMED = _fastpath.ERROR_CODES.index("malformed_form")
E_INVALID = _fastpath.ERROR_CODES.index("invalid_value")
E_MISSING_MODEL = _fastpath.ERROR_CODES.index("missing_model")
CHOICES_MAX: Final = 128
# Of a picture that is edited: as the scanner counts one of unknown size, and one that is looked at closely.
IMAGE_TOKENS: Final = 765
IMAGE_TOKENS_HIGH: Final = 6240
# Of sound: models that are priced by tokens hear ten a second and write at most five.
HEARD_TOKENS_PER_SECOND: Final = 10
WRITTEN_TOKENS_PER_SECOND: Final = 5
_READ: Final = frozenset({"model", "stream", "n", "prompt", "input_fidelity", "response_format"})
# Gateways ask other models by these. No form that providers document has them.
_OTHER_MODELS: Final = frozenset({"models", "fallbacks"})
_DEFAULTS: Final = {"/v1/images/variations": "dall-e-2"}  # the provider's own, where a request names no model


class Form(msgspec.Struct, frozen=True):
    """`code`: 0, or an index into ERROR_CODES and nothing else but `param`. Offsets: the model's text; -1: absent."""

    code: int = 0
    param: str | None = None
    model: bytes = b""
    model_start: int = -1
    model_end: int = -1
    boundary: bytes = b""
    opening: bytes = b""  # what stands before a model that has to be put in front of the body
    stream: bool = False
    choices: int = 1
    prompt_tokens: int = 0
    output_tokens: int = 0  # bound of what is not text: transcriptions
    seconds: int = 0
    plain_text: bool = False  # the transcript is asked for as text


def _as_others_read(name: str) -> str:
    """A field's name as the most lenient servers read it: .NET takes any case, PHP a list, some trim."""
    return name.strip("\ufeff\t '").removesuffix("[]").casefold()


def read(path: str, format: int, content_type: bytes, body: bytes, table: TokenTable) -> Form:
    """What a form says. Never raises for what a client sent."""
    boundary = multipart.boundary_of(content_type)
    if boundary is None:
        return Form(E_INVALID, "content-type")
    try:
        parts = multipart.parse(boundary, body)
        fields = multipart.texts(parts, body, _READ)
    except multipart.FormError:
        return Form(E_MALFORMED)
    for part in parts:
        other = _as_others_read(part.name)
        if part.name not in _READ and other in _READ | _OTHER_MODELS:
            return Form(E_INVALID, other)
    text = {name: body[part.start : part.end] for name, part in fields.items()}
    model = text.get("model", _DEFAULTS.get(path, "").encode())
    if not model:
        return Form(E_MISSING_MODEL)
    if len(model) > MODEL_BYTES_MAX:
        return Form(E_INVALID, "model")
    count = text.get("n", b"1")
    if not (count.isdigit() and len(count) <= 3 and 1 <= int(count) <= CHOICES_MAX):
        return Form(E_INVALID, "n")
    tokens = -(-_fastpath.count_text(table, text.get("prompt", b"")) // _fastpath.TOKEN_UNIT)
    files = [part for part in parts if part.filename is not None]
    seconds = written = 0
    if format == F_IMAGES:
        tokens += len(files) * (IMAGE_TOKENS_HIGH if text.get("input_fidelity") == b"high" else IMAGE_TOKENS)
    elif format == F_TRANSCRIPTION:
        seconds = sum(sound.seconds(memoryview(body)[part.start : part.end]) for part in files)
        tokens += seconds * HEARD_TOKENS_PER_SECOND
        written = seconds * WRITTEN_TOKENS_PER_SECOND + 100
    place = fields.get("model")
    return Form(
        model=model,
        model_start=place.start if place else -1,
        model_end=place.end if place else -1,
        boundary=boundary,
        opening=b"--" + boundary + b'\r\nContent-Disposition: form-data; name="model"\r\n\r\n',
        stream=text.get("stream", b"").lower() in (b"true", b"1"),
        choices=int(count),
        prompt_tokens=tokens,
        output_tokens=written,
        seconds=seconds,
        plain_text=text.get("response_format") in (b"text", b"srt", b"vtt"),
    )
