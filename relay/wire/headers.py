"""Which headers pass, each way. Names are lower-case bytes; everything here is decided by name alone.

Requests go on by an allowlist per dialect: what a client says about itself, its network or its own account upstream is
not the provider's business. Answers pass whole, except what belongs to one connection or to the operator's account.
"""

import re
from typing import Final

# Every place where an API key may stand. All are emptied before a request goes on, whichever of them held it.
KEY_HEADERS: Final = (b"authorization", b"x-api-key", b"x-goog-api-key")

_COMMON: Final = {b"accept", b"accept-language", b"content-type", b"user-agent", b"traceparent"}

# What the generated SDKs of OpenAI and Anthropic say about themselves.
_STAINLESS: Final = {
    b"x-stainless-arch",
    b"x-stainless-async",
    b"x-stainless-helper",
    b"x-stainless-helper-method",
    b"x-stainless-lang",
    b"x-stainless-os",
    b"x-stainless-package-version",
    b"x-stainless-raw-response",
    b"x-stainless-read-timeout",
    b"x-stainless-retry-count",
    b"x-stainless-runtime",
    b"x-stainless-runtime-version",
    b"x-stainless-stream-helper",
    b"x-stainless-timeout",
}

# Left out on purpose:
#   content-length, host, connection, te, ...   belong to one connection; the relay writes its own
#   accept-encoding                             the relay asks for `identity` itself
#   openai-organization, openai-project, anthropic-workspace-id, x-goog-user-project
#                                               name an account of the client's own, and the operator's key is used
#   idempotency-key                             all customers share the operator's upstream account: equal keys of two
#                                               customers would get one of them the other's answer
#   tracestate, baggage                         between the client and its tracing vendors; `traceparent` is ids alone
#   cookie, x-forwarded-for, forwarded, via     the client's, and nobody else's
REQUEST_ALLOWED: Final[tuple[frozenset[bytes], ...]] = (  # index: D_*
    frozenset(
        _COMMON
        | _STAINLESS
        | {b"openai-beta", b"x-client-request-id", b"originator", b"session_id", b"session-id", b"conversation_id"}
    ),
    frozenset(
        _COMMON
        | _STAINLESS
        | {b"anthropic-version", b"anthropic-beta", b"anthropic-dangerous-direct-browser-access", b"x-app"}
    ),
    frozenset(_COMMON | {b"x-goog-api-client", b"x-goog-request-params", b"x-server-timeout"}),
)

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

RESPONSE_DROPPED: Final = HOP_BY_HOP | {
    # cookies of the upstream's site
    b"set-cookie",
    b"set-cookie2",
    # the operator's account
    b"openai-organization",
    b"openai-project",
    b"anthropic-organization-id",
    b"anthropic-workspace-id",
    b"x-goog-user-project",
    # statements about the upstream's host that a client would hold against the relay's
    b"alt-svc",
    b"clear-site-data",
    b"nel",
    b"public-key-pins",
    b"report-to",
    b"reporting-endpoints",
    b"strict-transport-security",
}

# Limits and quotas of the operator's account upstream, and names that only the relay itself may set.
RESPONSE_DROPPED_PREFIXES: Final = (
    b"x-ratelimit-",
    b"x-rate-limit-",
    b"ratelimit",
    b"anthropic-ratelimit-",
    b"anthropic-priority-",
    b"anthropic-fast-",
    b"x-codex-",
    b"x-relay-",
)


def response_passes(name: bytes) -> bool:
    """Whether a header of an upstream's answer (lower-case name) goes on to the client. Those that the upstream's own
    `connection` header names are hop-by-hop too; the caller knows them."""
    return name not in RESPONSE_DROPPED and not name.startswith(RESPONSE_DROPPED_PREFIXES)


# How a channel's own key is sent, by dialect: header name and what stands before the key.
UPSTREAM_KEY: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"authorization", b"Bearer "),
    (b"x-api-key", b""),
    (b"x-goog-api-key", b""),
)


def upstream_key(dialect: int, header: str) -> tuple[bytes, bytes]:
    """Header name and what stands before the key, where a channel may name another header than its dialect's."""
    if not header:
        return UPSTREAM_KEY[dialect]
    return header.encode("ascii"), b"Bearer " if header == "authorization" else b""


# Query parameters that carry a credential in Google's APIs. They never go on.
_KEY_PARAMETERS: Final = (b"key", b"api_key", b"apikey", b"access_token", b"oauth_token")


_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


def split_query(raw_query: bytes) -> tuple[list[bytes], bytes]:
    """Take credentials out of a raw query string: the decoded values of `key`, and the rest byte for byte.

    Parameter names are compared decoded and without regard to case, because the upstream decodes them too.
    """
    if not raw_query:
        return [], b""
    keys, rest = [], []
    for part in raw_query.split(b"&"):
        name, _, value = part.partition(b"=")
        name = _unquote(name).lower()
        if name == b"key":
            keys.append(_unquote(value))
        if name not in _KEY_PARAMETERS:
            rest.append(part)
    return keys, b"&".join(rest)


def _unquote(text: bytes) -> bytes:
    """Percent-decoding of a query part. A broken escape stays as it is."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), text.replace(b"+", b" "))
