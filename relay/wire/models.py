"""Lists of models, and single ones, in the shape that the caller's SDK expects. Made from names only: what a provider
says about a model beyond its name (dates, limits, owners) is not known here and not invented.

    GET /v1/models          OpenAI's shape, or Anthropic's where the caller sends `anthropic-version`
    GET /v1beta/models      Gemini's
"""

import base64
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final

import orjson

from relay.wire.endpoints import D_ANTHROPIC, D_GEMINI, D_OPENAI

ANTHROPIC_PAGE: Final = (20, 1000)  # default and largest `limit`
GEMINI_PAGE: Final = (50, 1000)  # default and largest `pageSize`
EPOCH: Final = "1970-01-01T00:00:00Z"  # Anthropic's own value for a date of release that is not known


def models_dialect(path_dialect: int, has_anthropic_version: bool) -> int:
    """`/v1/models` is one path in two APIs; only the version header tells them apart."""
    return D_ANTHROPIC if path_dialect == D_OPENAI and has_anthropic_version else path_dialect


def render_list(dialect: int, names: Sequence[str], query: Mapping[str, str] | None = None) -> bytes:
    """The body of a model list. `query` holds the decoded paging parameters.

    ValueError, whose text is the name of the parameter: a page size or page token that is not one.
    """
    names = sorted(names)
    query = query or {}
    if dialect == D_ANTHROPIC:
        return orjson.dumps(_anthropic_page(names, query))
    if dialect == D_GEMINI:
        return orjson.dumps(_gemini_page(names, query))
    return orjson.dumps({"object": "list", "data": [_openai(name) for name in names]})


def render_one(dialect: int, name: str) -> bytes:
    """The body of one model."""
    shape = {D_OPENAI: _openai, D_ANTHROPIC: _anthropic, D_GEMINI: _gemini}[dialect]
    return orjson.dumps(shape(name))


def _openai(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "relay"}


def _anthropic(name: str) -> dict[str, object]:
    return {"type": "model", "id": name, "display_name": name, "created_at": EPOCH}


def _gemini(name: str) -> dict[str, object]:
    return {
        "name": f"models/{name}",
        "version": "",
        "displayName": name,
        "supportedGenerationMethods": [
            "generateContent",
            "streamGenerateContent",
            "countTokens",
            "embedContent",
            "batchEmbedContents",
        ],
    }


def _anthropic_page(names: list[str], query: Mapping[str, str]) -> dict[str, object]:
    size = _page_size(query, "limit", ANTHROPIC_PAGE)
    if "before_id" in query:
        rest = names[: names.index(query["before_id"])] if query["before_id"] in names else []
        page, more = rest[-size:], len(rest) > size
    else:
        start = names.index(query["after_id"]) + 1 if query.get("after_id") in names else 0
        if "after_id" in query and start == 0:
            start = len(names)  # behind an unknown model there is nothing
        page, more = names[start : start + size], len(names) > start + size
    return {
        "data": [_anthropic(name) for name in page],
        "has_more": more,
        "first_id": page[0] if page else None,
        "last_id": page[-1] if page else None,
    }


def _gemini_page(names: list[str], query: Mapping[str, str]) -> dict[str, object]:
    size = _page_size(query, "pageSize", GEMINI_PAGE)
    start = 0
    if token := query.get("pageToken", ""):
        # The token names the last model seen, so that a list that changed in between neither skips nor repeats others.
        try:
            last = base64.b64decode(token.encode("ascii"), b"-_", validate=True).decode("ascii")
        except ValueError:
            raise ValueError("pageToken") from None
        start = bisect_right(names, last)
    page = names[start : start + size]
    body: dict[str, object] = {"models": [_gemini(name) for name in page]}
    if len(names) > start + size:
        body["nextPageToken"] = base64.urlsafe_b64encode(page[-1].encode()).decode()
    return body


def _page_size(query: Mapping[str, str], parameter: str, sizes: tuple[int, int]) -> int:
    default, largest = sizes
    text = query.get(parameter, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise ValueError(parameter)
    return min(int(text), largest) or default
