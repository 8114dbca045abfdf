"""Paths and models: which answer a request means, and the lists of models in three shapes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from relay.simulator.answer import Answer, Refused
from relay.simulator.plan import JSON, dumps

_CREATED = 1_715_367_049

MODELS: dict[str, tuple[str, ...]] = {
    "openai": (
        "gpt-4o",
        "gpt-4o-mini",
        "gpt-5",
        "gpt-5-mini",
        "o4-mini",
        "text-embedding-3-small",
        "text-embedding-3-large",
        "gpt-realtime",
    ),
    "anthropic": ("claude-opus-5", "claude-sonnet-5", "claude-haiku-4-5"),
    "gemini": ("gemini-2.5-pro", "gemini-2.5-flash", "gemini-embedding-001"),
}

_POSTS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/responses/compact": "compact",
    "/v1/responses/input_tokens": "input_tokens",
    "/v1/embeddings": "embeddings",
    "/v1/moderations": "moderations",
    "/v1/rerank": "rerank",
    "/v1/images/generations": "images",
    "/v1/images/edits": "image_edits",
    "/v1/images/variations": "image_variations",
    "/v1/audio/speech": "speech",
    "/v1/audio/transcriptions": "transcriptions",
    "/v1/audio/translations": "translations",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "count_tokens",
}

JOB_PATHS = ("/v1/batches", "/v1/videos", "/v1/messages/batches", "/v1beta/batches")

_GEMINI_METHODS = {
    "generateContent": "generate",
    "streamGenerateContent": "stream",
    "countTokens": "gemini_count",
    "embedContent": "gemini_embed",
    "batchEmbedContents": "gemini_batch_embed",
    "batchGenerateContent": "gemini_batch",
}

_GEMINI_PATH = re.compile(r"/v1(?:beta|alpha)?/(?:models|tunedModels)/([^:]+):([A-Za-z]+)")
_MODELS_PATH = re.compile(r"/v1(?:beta|alpha)?/models(?:/([^/].*))?")


@dataclass(slots=True, frozen=True)
class Route:
    dialect: str
    name: str
    model: str = ""  # from the path; for stored responses: the id and what follows


def route_of(method: str, path: str, headers: Mapping[str, str]) -> Route:
    """What a request asks for. `unknown` and `probe` (HEAD /) are names, too."""
    anthropic = path.startswith("/v1/messages") or "anthropic-version" in headers
    # Google's SDKs from 3.0 on call /v1 by default: there the key's header tells whose list of models is meant.
    google = path.startswith(("/v1beta", "/v1alpha")) or "x-goog-api-key" in headers or _GEMINI_PATH.fullmatch(path)
    dialect = "anthropic" if anthropic else "gemini" if google else "openai"
    if path == "/" and method in ("GET", "HEAD"):
        return Route(dialect, "probe")
    if method == "POST":
        if path in _POSTS:
            name = _POSTS[path]
            return Route("anthropic" if name in ("messages", "count_tokens") else "openai", name)
        if (found := _GEMINI_PATH.fullmatch(path)) and found[2] in _GEMINI_METHODS:
            return Route("gemini", _GEMINI_METHODS[found[2]], found[1])
    if method == "GET" and (found := _MODELS_PATH.fullmatch(path)):
        return Route(dialect, "model", found[1]) if found[1] else Route(dialect, "models")
    if path == "/v1/realtime" and method == "GET":
        return Route("openai", "realtime")
    for base in JOB_PATHS:
        if path == base or path.startswith(base + "/"):
            of = "anthropic" if "messages" in base else "gemini" if "beta" in base else "openai"
            return Route(of, "jobs", path)
    if path == "/v1/files" or path.startswith("/v1/files/"):
        return Route("openai", "files", path[len("/v1/files") :])
    if path.startswith("/v1/responses/"):
        return Route("openai", "stored", path[len("/v1/responses/") :])
    return Route(dialect, "unknown")


def check_model(dialect: str, model: str, known: frozenset[str] | None) -> None:
    """Raises Refused when there is no such model."""
    if model in known if known is not None else not model.startswith("missing-"):
        return
    if dialect == "anthropic":
        raise Refused(404, "not_found", f"model: {model}")
    if dialect == "gemini":
        raise Refused(
            404,
            "not_found",
            f"models/{model} is not found for API version v1beta, or is not supported for this method.",
        )
    raise Refused(
        404, "not_found", f"The model `{model}` does not exist or you do not have access to it.", code="model_not_found"
    )


def _one(dialect: str, model: str) -> JSON:
    if dialect == "anthropic":
        return {
            "type": "model",
            "id": model,
            "display_name": model.replace("-", " ").title(),
            "created_at": "2025-09-29T00:00:00Z",
            "lifecycle": "active",
            "max_input_tokens": 200_000,
            "max_tokens": 64_000,
        }
    if dialect == "gemini":
        embedding = "embedding" in model
        return {
            "name": f"models/{model}",
            "version": "001",
            "displayName": model.replace("-", " ").title(),
            "description": "A simulated model.",
            "inputTokenLimit": 1_048_576,
            "outputTokenLimit": 65_536,
            "supportedGenerationMethods": ["embedContent"] if embedding else ["generateContent", "countTokens"],
        }
    return {"id": model, "object": "model", "created": _CREATED, "owned_by": "system"}


def models(dialect: str, known: frozenset[str] | None) -> Answer:
    names = sorted(known) if known is not None else MODELS[dialect]
    listed = [_one(dialect, name) for name in names]
    if dialect == "anthropic":
        ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
        return Answer(200, "application/json", dumps({"data": listed, "has_more": False, **ends}))
    if dialect == "gemini":
        return Answer(200, "application/json; charset=UTF-8", dumps({"models": listed}, pretty=True) + b"\n")
    return Answer(200, "application/json", dumps({"object": "list", "data": listed}, pretty=True))


def model(dialect: str, name: str, known: frozenset[str] | None) -> Answer:
    check_model(dialect, name, known)
    return Answer(200, "application/json", dumps(_one(dialect, name), pretty=dialect != "anthropic"), model=name)
