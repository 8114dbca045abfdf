"""The route table of the API: every path that is served, and the one shape each stands for.

A path that is not here is 404: the relay is no open proxy. `relay.wire.paths` resolves a raw request path, wrong base
URLs included, to one of these.
"""

from typing import Final

import msgspec

# The same numbers as in relay/fastpath/constants.pxi.
D_OPENAI, D_ANTHROPIC, D_GEMINI = range(3)
(
    F_CHAT,
    F_COMPLETIONS,
    F_RESPONSES,
    F_EMBEDDINGS,
    F_MESSAGES,
    F_COUNT_TOKENS,
    F_GENERATE,
    F_GEMINI_COUNT,
    F_GEMINI_EMBED,
    F_MODERATIONS,
    F_RERANK,
    F_IMAGES,
    F_SPEECH,
    F_TRANSCRIPTION,
    F_OTHER,
) = range(15)

# What the body of a good answer is; the first three have the same numbers as in relay/fastpath/upstream.pxi.
(
    ANSWER_JSON,  # a JSON document, or the stream that was asked for
    ANSWER_SOUND,  # or a stream
    ANSWER_TRANSCRIPT,  # JSON, a stream, or text where that was asked for
    ANSWER_BYTES,  # a file, whatever is in it
) = range(4)

DIALECT_NAMES: Final = ("openai", "anthropic", "gemini")  # index: D_*; the values of `api` in the configuration

# What a key can be restricted to. The index is the bit in a key's mask: append only, never reorder (masks are stored).
SCOPES: Final = (
    "chat",
    "embeddings",
    "images",
    "audio",
    "videos",
    "moderations",
    "rerank",
    "files",
    "batches",
    "realtime",
    "channel",  # no class of endpoints: `x-relay-channel`, the choice of a channel. Never given without being named
)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the route table.

    name           short, unique; `chat`, `messages`, ...
    method         GET, POST or DELETE
    path           the template that a call record carries, `{model}` and `{id}` unfilled
    dialect        D_*: whose error shapes and rate-limit headers the answer uses
    format         F_*: what the body and the answer look like
    scope          one of SCOPES that a key needs, or "" (any valid key)
    upstream_path  appended to a channel's base_url, or "" where the relay itself answers
    inference      another channel may be tried after a failure: no state is made or read upstream
    priced         needs a rate, a hold and a settlement; count_tokens and model lists do not
    needs_model    the call is routed by a model, from the body or the path
    form           the body may be, or is, a multipart form
    answer         ANSWER_*: anything else is a failed attempt
    served         False: a known path of the provider that this relay refuses with `unsupported_feature`
    aliases        exact wrong paths served as this one (only for paths without a placeholder)
    """

    name: str
    method: str
    path: str
    dialect: int
    format: int
    scope: str = ""
    upstream_path: str = ""
    inference: bool = True
    priced: bool = True
    needs_model: bool = True
    form: bool = False
    answer: int = ANSWER_JSON
    served: bool = True
    aliases: tuple[str, ...] = ()

    @property
    def streams_by_path(self) -> bool:
        """Gemini says in the path, not in the body, that the answer is a stream."""
        return self.path.endswith(":streamGenerateContent")


# What stands in front of the last part of a path when a base URL was copied from elsewhere: the version missing,
# doubled, or of another dialect; or where other services have OpenAI's API: Google (`/v1beta/openai`), OpenRouter
# (`/api/v1`), Azure and Groq (`/openai/v1`). Seen from real clients: `/v1/v1/messages`, `/chat/completions`,
# `/models/x:method`.
BASE_PREFIXES: Final = (
    "", "/v1", "/v1beta", "/v1/v1", "/v1/v1beta", "/v1beta/v1", "/v1beta/v1beta",
    "/v1alpha", "/v1beta/openai", "/openai/v1", "/api/v1",
)  # fmt: skip
ALPHA_PREFIX: Final = "/v1alpha"  # Google's other version: served as v1beta, and calls go on as v1alpha
GOOGLES_PREFIXES: Final = frozenset(
    prefix for prefix in BASE_PREFIXES if prefix == ALPHA_PREFIX or prefix.endswith("/v1beta")
)


def _aliases(path: str) -> tuple[str, ...]:
    version, tail = path.split("/", 2)[1:]
    wrong = {prefix + "/" + tail for prefix in BASE_PREFIXES}
    # The whole endpoint given as base URL, to which the SDK then appends its path again.
    wrong |= {f"/{version}/{tail}/{tail}", f"/{version}/{tail}/{version}/{tail}"}
    # Google's own: its batches, and its files, which are not served.
    wrong -= {f"{prefix}/{name}" for prefix in GOOGLES_PREFIXES for name in ("batches", "files")}
    return tuple(sorted(wrong - {path}))


def _openai(
    name: str, tail: str, fmt: int, scope: str, *, form: bool = False, priced: bool = True, answer: int = ANSWER_JSON
) -> Endpoint:
    path = "/v1" + tail
    return Endpoint(
        name=name,
        method="POST",
        path=path,
        dialect=D_OPENAI,
        format=fmt,
        scope=scope,
        upstream_path=tail,
        priced=priced,
        form=form,
        answer=answer,
        aliases=() if "{" in path else _aliases(path),
    )


def _stored(
    name: str,
    method: str,
    tail: str,
    scope: str,
    *,
    dialect: int = D_OPENAI,
    served: bool = True,
    answer: int = ANSWER_JSON,
) -> Endpoint:
    """A path about objects that live upstream: files, batches, videos, stored responses."""
    return Endpoint(
        name=name,
        method=method,
        path="/v1" + tail,
        dialect=dialect,
        format=F_OTHER,
        scope=scope,
        upstream_path=tail if dialect == D_OPENAI else "/v1" + tail,
        inference=False,
        priced=False,
        needs_model=False,
        served=served,
        answer=answer,
        aliases=() if "{" in tail else _aliases("/v1" + tail),
    )


def _gemini_batch(name: str, method: str, path: str) -> Endpoint:
    """Google's batches: under their own version, so that `/v1/batches` stays OpenAI's."""
    return Endpoint(
        name=name,
        method=method,
        path=path,
        dialect=D_GEMINI,
        format=F_OTHER,
        scope="batches",
        upstream_path=path,
        inference=False,
        priced=False,
        needs_model=False,
        aliases=() if "{" in path else tuple(sorted(f"{prefix}/batches" for prefix in GOOGLES_PREFIXES - {"/v1beta"})),
    )


def _anthropic(name: str, tail: str, fmt: int, *, priced: bool = True) -> Endpoint:
    path = "/v1" + tail
    return Endpoint(
        name=name,
        method="POST",
        path=path,
        dialect=D_ANTHROPIC,
        format=fmt,
        scope="chat",
        upstream_path=path,
        priced=priced,
        aliases=_aliases(path),
    )


def _gemini(name: str, verb: str, fmt: int, scope: str, *, priced: bool = True) -> Endpoint:
    path = "/v1beta/models/{model}:" + verb
    return Endpoint(
        name=name,
        method="POST",
        path=path,
        dialect=D_GEMINI,
        format=fmt,
        scope=scope,
        upstream_path=path,
        priced=priced,
    )


def _models(name: str, path: str, dialect: int) -> Endpoint:
    return Endpoint(
        name=name,
        method="GET",
        path=path,
        dialect=dialect,
        format=F_OTHER,
        inference=False,
        priced=False,
        needs_model=False,
    )


ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    _openai("chat", "/chat/completions", F_CHAT, "chat"),
    _openai("completions", "/completions", F_COMPLETIONS, "chat"),
    _openai("responses", "/responses", F_RESPONSES, "chat"),
    _openai("embeddings", "/embeddings", F_EMBEDDINGS, "embeddings"),
    _anthropic("messages", "/messages", F_MESSAGES),
    _anthropic("count_tokens", "/messages/count_tokens", F_COUNT_TOKENS, priced=False),
    _gemini("generate_content", "generateContent", F_GENERATE, "chat"),
    _gemini("stream_generate_content", "streamGenerateContent", F_GENERATE, "chat"),
    _gemini("gemini_count_tokens", "countTokens", F_GEMINI_COUNT, "chat", priced=False),
    _gemini("embed_content", "embedContent", F_GEMINI_EMBED, "embeddings"),
    _gemini("batch_embed_contents", "batchEmbedContents", F_GEMINI_EMBED, "embeddings"),
    # Answered by the relay itself. `/v1/models` speaks Anthropic's shape where the caller sends `anthropic-version`.
    _models("models", "/v1/models", D_OPENAI),
    _models("model", "/v1/models/{model}", D_OPENAI),
    _models("gemini_models", "/v1beta/models", D_GEMINI),
    _models("gemini_model", "/v1beta/models/{model}", D_GEMINI),
    _openai("moderations", "/moderations", F_MODERATIONS, "moderations"),
    _openai("rerank", "/rerank", F_RERANK, "rerank"),
    _openai("image_generations", "/images/generations", F_IMAGES, "images"),
    _openai("image_edits", "/images/edits", F_IMAGES, "images", form=True),
    _openai("image_variations", "/images/variations", F_IMAGES, "images", form=True),
    _openai("speech", "/audio/speech", F_SPEECH, "audio", answer=ANSWER_SOUND),
    _openai("transcriptions", "/audio/transcriptions", F_TRANSCRIPTION, "audio", form=True, answer=ANSWER_TRANSCRIPT),
    _openai("translations", "/audio/translations", F_TRANSCRIPTION, "audio", form=True, answer=ANSWER_TRANSCRIPT),
    _openai("response_compact", "/responses/compact", F_RESPONSES, "chat"),
    _openai("response_input_tokens", "/responses/input_tokens", F_RESPONSES, "chat", priced=False),
    # Served by Python, beside the pipeline. One that is not served is refused with a clear error.
    _stored("response_get", "GET", "/responses/{id}", "chat"),
    _stored("response_delete", "DELETE", "/responses/{id}", "chat"),
    _stored("response_cancel", "POST", "/responses/{id}/cancel", "chat"),
    _stored("response_input_items", "GET", "/responses/{id}/input_items", "chat"),
    _stored("videos", "POST", "/videos", "videos"),
    _stored("video_list", "GET", "/videos", "videos"),
    _stored("video_get", "GET", "/videos/{id}", "videos"),
    _stored("video_delete", "DELETE", "/videos/{id}", "videos"),
    _stored("video_content", "GET", "/videos/{id}/content", "videos", answer=ANSWER_BYTES),
    _stored("video_remix", "POST", "/videos/{id}/remix", "videos"),
    _stored("files", "POST", "/files", "files"),
    _stored("file_list", "GET", "/files", "files"),
    _stored("file_get", "GET", "/files/{id}", "files"),
    _stored("file_delete", "DELETE", "/files/{id}", "files"),
    _stored("file_content", "GET", "/files/{id}/content", "files", answer=ANSWER_BYTES),
    _stored("batches", "POST", "/batches", "batches"),
    _stored("batch_list", "GET", "/batches", "batches"),
    _stored("batch_get", "GET", "/batches/{id}", "batches"),
    _stored("batch_cancel", "POST", "/batches/{id}/cancel", "batches"),
    _stored("message_batches", "POST", "/messages/batches", "batches", dialect=D_ANTHROPIC),
    _stored("message_batch_list", "GET", "/messages/batches", "batches", dialect=D_ANTHROPIC),
    _stored("message_batch_get", "GET", "/messages/batches/{id}", "batches", dialect=D_ANTHROPIC),
    _stored("message_batch_delete", "DELETE", "/messages/batches/{id}", "batches", dialect=D_ANTHROPIC),
    _stored("message_batch_cancel", "POST", "/messages/batches/{id}/cancel", "batches", dialect=D_ANTHROPIC),
    _stored(
        "message_batch_results",
        "GET",
        "/messages/batches/{id}/results",
        "batches",
        dialect=D_ANTHROPIC,
        answer=ANSWER_BYTES,
    ),
    _gemini_batch("batch_generate_content", "POST", "/v1beta/models/{model}:batchGenerateContent"),
    _gemini_batch("gemini_batch_list", "GET", "/v1beta/batches"),
    _gemini_batch("gemini_batch_get", "GET", "/v1beta/batches/{id}"),
    _gemini_batch("gemini_batch_delete", "DELETE", "/v1beta/batches/{id}"),
    _gemini_batch("gemini_batch_cancel", "POST", "/v1beta/batches/{id}:cancel"),
    _stored("realtime", "GET", "/realtime", "realtime"),
)

BY_NAME: Final[dict[str, Endpoint]] = {endpoint.name: endpoint for endpoint in ENDPOINTS}


def scope_mask(names: tuple[str, ...] | list[str]) -> int:
    """The bits of these scopes. ValueError names an unknown scope and lists the known ones."""
    mask = 0
    for name in names:
        if name not in SCOPES:
            raise ValueError(f"unknown scope {name!r}: one of {', '.join(SCOPES)}")
        mask |= 1 << SCOPES.index(name)
    return mask


def key_mask(names: tuple[str, ...] | list[str] | None) -> int:
    """The mask of a key with these scopes. Without one for a class of endpoints it may use all of them."""
    mask = scope_mask(names or ())
    return mask if mask & ENDPOINT_SCOPES else mask | ENDPOINT_SCOPES


CHANNEL_SCOPE: Final = 1 << SCOPES.index("channel")
ENDPOINT_SCOPES: Final = 0xFFFFFFFF & ~CHANNEL_SCOPE


def scope_names(mask: int) -> tuple[str, ...]:
    """The scopes whose bits are set. Bits of no known scope are left out."""
    return tuple(name for bit, name in enumerate(SCOPES) if mask >> bit & 1)


def scope_bit(endpoint: Endpoint) -> int:
    """The bit that a key's mask must have for this endpoint; 0: any key."""
    return scope_mask((endpoint.scope,)) if endpoint.scope else 0
