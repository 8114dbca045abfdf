"""What is said of a path at which nothing is served: whose error shape, and why it may have been asked for.

judge("/v1/vector_stores/vs_1")  ->  (D_OPENAI, NOT_SERVED)     an official SDK calls it, this relay does not
judge("/v3/chat/completions", False)    ->  (D_OPENAI, BASE_URL)       what is served elsewhere, under another base
judge("/favicon.ico", False)            ->  (D_OPENAI, None)
"""

import re
from collections.abc import Container
from typing import Final

from relay.wire.endpoints import BASE_PREFIXES, D_ANTHROPIC, D_GEMINI, D_OPENAI, ENDPOINTS, GOOGLES_PREFIXES

NOT_SERVED: Final = "not_served"
BASE_URL: Final = "base_url"

# First parts of paths that the official SDKs call (openai 3.52, anthropic 2.11, google-genai 3.4).
_OPENAI: Final = frozenset({
    "agents", "assistants", "chatkit", "containers", "conversations", "evals", "fine_tuning", "live", "organization",
    "projects", "safety", "skills", "threads", "uploads", "vaults", "vector_stores", "webhook_endpoints",
})  # fmt: skip
_ANTHROPIC: Final = frozenset({
    "agents", "complete", "deployment_runs", "deployments", "dreams", "environments", "files", "memory_stores",
    "organizations", "sessions", "skills", "tunnels", "user_profiles", "vaults",
})  # fmt: skip
_GOOGLE: Final = frozenset({
    "agents", "auth_tokens", "authTokens", "batchPredictionJobs", "cachedContents", "corpora", "credentials",
    "decisions", "environments", "files", "fileSearchStores", "generatedFiles", "interactions", "operations",
    "triggers", "tunedModels", "tuningJobs", "voices", "webhooks",
})  # fmt: skip
_GOOGLES_METHODS: Final = frozenset({
    "asyncBatchEmbedContent", "batchEmbedText", "bidiGenerateContent", "computeTokens", "countMessageTokens",
    "countTextTokens", "embedText", "fetchPredictOperation", "generateAnswer", "generateMessage", "generateText",
    "predict", "predictLongRunning", "rawPredict", "streamRawPredict",
})  # fmt: skip
_FIRST: Final = {D_OPENAI: _OPENAI, D_ANTHROPIC: _ANTHROPIC, D_GEMINI: _GOOGLE}
# Below something that is served.
_OPENAI_DEEPER: Final = re.compile(
    r"/(?:audio/voice(?:s|_consents)|realtime/[a-z_]+|chat/completions/[^/]+(?:/messages)?|videos/(?:edits|extensions|"
    r"characters)|videos/[^/]+/(?:edits?|extend|extensions))(?:/.*)?"
)
_PREFIXES: Final = tuple(sorted(BASE_PREFIXES, key=len, reverse=True))
_SERVED: Final = frozenset(
    part.partition(":")[0]
    for endpoint in ENDPOINTS
    for part in endpoint.path.lower().split("/")
    if part and "{" not in part and part not in ("v1", "v1beta")
)


def caller(names: Container[str]) -> int | None:
    """Whose SDK the header fields are of, in lower case. None: that is not known."""
    # Not by where the key stands: that says nothing of the dialect.
    if "anthropic-version" in names:
        return D_ANTHROPIC
    return D_GEMINI if "x-goog-api-client" in names else None


def judge(path: str, by: int | None = None) -> tuple[int, str | None]:
    """The dialect of a path at which nothing is, or nothing for a method, and NOT_SERVED, BASE_URL or None.

    by  the dialect of the caller's SDK, where it is known (`caller`): some first parts stand in several APIs
    """
    if path.startswith(("/upload/v1", "/ws/google.")):
        return D_GEMINI, NOT_SERVED
    prefix = next(prefix for prefix in _PREFIXES if path.startswith(prefix + "/"))  # "" always does
    tail = path[len(prefix) :]
    first = tail[1:].partition("/")[0].partition(":")[0]
    if first == "models" and tail.rpartition(":")[2] in _GOOGLES_METHODS:
        return D_GEMINI, NOT_SERVED
    dialect = D_GEMINI if by is None and prefix in GOOGLES_PREFIXES else by
    for of, names in ((dialect, _FIRST[dialect or D_OPENAI]), *_FIRST.items()):
        # Files are OpenAI's, and served, where nothing tells that they are somebody else's.
        if first in names and (first != "files" or (of in (D_ANTHROPIC, D_GEMINI) and of == dialect)):
            return of or D_OPENAI, NOT_SERVED
    if _OPENAI_DEEPER.fullmatch(tail):
        return D_OPENAI, NOT_SERVED
    misspelt = path.rstrip("/") in BASE_PREFIXES or not _SERVED.isdisjoint(re.split("[/:]", path.lower()))
    return _dialect(path, dialect), BASE_URL if misspelt else None


def _dialect(path: str, by: int | None) -> int:
    if by is not None:
        return by
    if ":generate" in path or ":stream" in path:
        return D_GEMINI
    return D_ANTHROPIC if "/messages" in path else D_OPENAI
