"""Lists of models, and single ones, in the shape that the caller's SDK expects. What is not known of a model (its
date, its limits) is left out and not invented.

    GET /v1/models          OpenAI's shape, or Anthropic's where the caller sends `anthropic-version`
    GET /v1beta/models      Gemini's

OpenAI's shape has beside its own fields those that OpenRouter added and clients read: `context_length`, `architecture`,
`pricing` in credits per token as decimal text.
"""

import base64
import datetime
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec
import orjson

from relay.wire.endpoints import D_ANTHROPIC, D_GEMINI, D_OPENAI

ANTHROPIC_PAGE: Final = (20, 1000)  # default and largest `limit`
GEMINI_PAGE: Final = (50, 1000)  # default and largest `pageSize`

# The path that serves a kind of model in OpenAI's dialect; any other is a chat.
_OPENAI_PATHS: Final = {
    "responses": "/v1/responses",
    "completion": "/v1/completions",
    "embedding": "/v1/embeddings",
    "image_generation": "/v1/images/generations",
    "image_edit": "/v1/images/edits",
    "video_generation": "/v1/videos",
    "audio_speech": "/v1/audio/speech",
    "audio_transcription": "/v1/audio/transcriptions",
    "realtime": "/v1/realtime",
    "rerank": "/v1/rerank",
    "moderation": "/v1/moderations",
}
_GEMINI_METHODS: Final = {"embedding": ("embedContent", "batchEmbedContents")}
_GEMINI_CHAT: Final = ("generateContent", "streamGenerateContent", "countTokens", "batchGenerateContent")
# OpenRouter's names of prices, and whether they are of a token (the rest: of a piece).
_PRICES: Final = (
    ("prompt", "input", True),
    ("completion", "output", True),
    ("input_cache_read", "cache_read", True),
    ("input_cache_write", "cache_write", True),
    ("image", "image", False),
    ("web_search", "web_search", False),
)


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A model as lists show it.

    kind               chat, embedding, ...; "" where it is not known: taken for a chat
    context_tokens     the longest prompt; 0: not known
    output_tokens_max  0: not known
    takes, makes       modalities; empty: not known
    released           the day, or None
    prices             credits, by the names of the configuration: tokens per million, the rest per piece
    """

    name: str
    kind: str = ""
    context_tokens: int = 0
    output_tokens_max: int = 0
    takes: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    released: datetime.date | None = None
    prices: Mapping[str, Decimal] = msgspec.field(default_factory=dict)


def path_of(dialect: int, name: str, kind: str) -> str:
    """Where a model of this kind is called in a dialect."""
    if dialect == D_ANTHROPIC:
        return "/v1/messages"
    if dialect == D_GEMINI:
        return f"/v1beta/models/{name}:{_GEMINI_METHODS.get(kind, _GEMINI_CHAT)[0]}"
    return _OPENAI_PATHS.get(kind, "/v1/chat/completions")


def models_dialect(path_dialect: int, has_anthropic_version: bool) -> int:
    """`/v1/models` is one path in two APIs; only the version header tells them apart."""
    return D_ANTHROPIC if path_dialect == D_OPENAI and has_anthropic_version else path_dialect


def render_list(dialect: int, models: Sequence[Listed], query: Mapping[str, str] | None = None) -> bytes:
    """The body of a model list. `query` holds the decoded paging parameters.

    ValueError, whose text is the name of the parameter: a page size or page token that is not one.
    """
    models = sorted(models, key=lambda model: model.name)
    query = query or {}
    if dialect == D_ANTHROPIC:
        return orjson.dumps(_anthropic_page(models, query))
    if dialect == D_GEMINI:
        return orjson.dumps(_gemini_page(models, query))
    return orjson.dumps({"object": "list", "data": [_openai(model) for model in models]})


def render_one(dialect: int, model: Listed) -> bytes:
    """The body of one model."""
    shape = {D_OPENAI: _openai, D_ANTHROPIC: _anthropic, D_GEMINI: _gemini}[dialect]
    return orjson.dumps(shape(model))


def _openai(model: Listed) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": model.name, "object": "model", "owned_by": "relay", "name": model.name}
    if model.released is not None:
        midnight = datetime.datetime.combine(model.released, datetime.time(), datetime.UTC)
        shown["created"] = int(midnight.timestamp())
    limits: dict[str, int] = {}
    if model.context_tokens:
        limits["context_length"] = shown["context_length"] = model.context_tokens
    if model.output_tokens_max:
        limits["max_completion_tokens"] = model.output_tokens_max
    if limits:
        shown["top_provider"] = limits
    if model.takes and model.makes:
        shown["architecture"] = {
            "modality": "+".join(model.takes) + "->" + "+".join(model.makes),
            "input_modalities": model.takes,
            "output_modalities": model.makes,
        }
    if model.prices:
        shown["pricing"] = {
            theirs: _decimal_text(model.prices[ours] / 1_000_000 if of_token else model.prices[ours])
            for theirs, ours, of_token in _PRICES
        }
    return shown


def _decimal_text(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _anthropic(model: Listed) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": "model", "id": model.name, "display_name": model.name}
    if model.released is not None:
        shown["created_at"] = f"{model.released}T00:00:00Z"
    if model.context_tokens:
        shown["max_input_tokens"] = model.context_tokens
    if model.output_tokens_max:
        shown["max_tokens"] = model.output_tokens_max
    return shown


def _gemini(model: Listed) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": f"models/{model.name}", "version": "", "displayName": model.name}
    if model.context_tokens:
        shown["inputTokenLimit"] = model.context_tokens
    if model.output_tokens_max:
        shown["outputTokenLimit"] = model.output_tokens_max
    methods = _GEMINI_METHODS.get(model.kind, _GEMINI_CHAT if model.kind else (*_GEMINI_CHAT, "embedContent"))
    return shown | {"supportedGenerationMethods": methods}


def _anthropic_page(models: list[Listed], query: Mapping[str, str]) -> dict[str, object]:
    names = [model.name for model in models]
    size = _page_size(query, "limit", ANTHROPIC_PAGE)
    if "before_id" in query:
        rest = models[: names.index(query["before_id"])] if query["before_id"] in names else []
        page, more = rest[-size:], len(rest) > size
    else:
        start = names.index(query["after_id"]) + 1 if query.get("after_id") in names else 0
        if "after_id" in query and start == 0:
            start = len(names)  # after an unknown model there is nothing
        page, more = models[start : start + size], len(names) > start + size
    return {
        "data": [_anthropic(model) for model in page],
        "has_more": more,
        "first_id": page[0].name if page else None,
        "last_id": page[-1].name if page else None,
    }


def _gemini_page(models: list[Listed], query: Mapping[str, str]) -> dict[str, object]:
    size = _page_size(query, "pageSize", GEMINI_PAGE)
    start = 0
    if token := query.get("pageToken", ""):
        # The token names the last model seen, so that a list that changed in between neither skips nor repeats others.
        try:
            last = base64.b64decode(token.encode("ascii"), b"-_", validate=True).decode("ascii")
        except ValueError:
            raise ValueError("pageToken") from None
        start = bisect_right(models, last, key=lambda model: model.name)
    page = models[start : start + size]
    body: dict[str, object] = {"models": [_gemini(model) for model in page]}
    if len(models) > start + size:
        body["nextPageToken"] = base64.urlsafe_b64encode(page[-1].name.encode()).decode()
    return body


def _page_size(query: Mapping[str, str], parameter: str, sizes: tuple[int, int]) -> int:
    default, largest = sizes
    text = query.get(parameter, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(parameter)
    return min(int(text), largest) or default
