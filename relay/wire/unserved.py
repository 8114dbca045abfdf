"""What is said of a path at which nothing is served: whose error shape, and why it may have been asked for.

judge("/v1/vector_stores/vs_1", False)  ->  (D_OPENAI, NOT_SERVED)     an official SDK calls it, this relay does not
judge("/v3/chat/completions", False)    ->  (D_OPENAI, BASE_URL)       what is served elsewhere, under another base
judge("/favicon.ico", False)            ->  (D_OPENAI, None)
"""

import re
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


def judge(path: str, anthropic: bool) -> tuple[int, str | None]:
    """The dialect of a path at which nothing is, or nothing for a method, and NOT_SERVED, BASE_URL or None.

    anthropic  whether the caller sends `anthropic-version`: some first parts stand in two APIs
    """
    if path.startswith(("/upload/v1beta/", "/ws/google.")):
        return D_GEMINI, NOT_SERVED
    prefix = next(prefix for prefix in _PREFIXES if path.startswith(prefix + "/"))  # "" always does
    tail = path[len(prefix) :]
    first = tail[1:].partition("/")[0].partition(":")[0]
    if prefix in GOOGLES_PREFIXES:
        known = first in _GOOGLE or (first == "models" and tail.rpartition(":")[2] in _GOOGLES_METHODS)
        if known:
            return D_GEMINI, NOT_SERVED
    if first in _ANTHROPIC and (anthropic or first not in _OPENAI | {"files"}):
        return D_ANTHROPIC, NOT_SERVED
    if first in _OPENAI or _OPENAI_DEEPER.fullmatch(tail):
        return D_OPENAI, NOT_SERVED
    misspelt = path.rstrip("/") in BASE_PREFIXES or not _SERVED.isdisjoint(re.split("[/:]", path.lower()))
    return _dialect(path, prefix, anthropic), BASE_URL if misspelt else None


def _dialect(path: str, prefix: str, anthropic: bool) -> int:
    if prefix in GOOGLES_PREFIXES or ":generate" in path or ":stream" in path:
        return D_GEMINI
    return D_ANTHROPIC if anthropic or "/messages" in path else D_OPENAI
