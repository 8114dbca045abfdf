"""Which headers pass, each way. Names are lower-case bytes; everything here is decided by name alone.

Requests go on by an allowlist per dialect: what a client says about itself, its network or its own account upstream is
not the provider's business. Answers pass whole, except what belongs to one connection or to the operator's account.
"""

import re
from collections.abc import Iterable
from typing import Final

# Every place where an API key may stand. All are emptied before a request goes on, whichever of them held it.
KEY_HEADERS: Final = (b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key")
SECRETS_MAX: Final = 8  # of one request: more cannot be meant, and each may cost a look at the store

# What the relay itself reads of a request. A `Connection` field takes none of them out (RFC 9110 7.6.1 is about what
# goes on). One that holds bytes beyond visible ASCII is refused: the caller would believe that it counts. Two are only
# noted: User-Agent, which records clean, and traceparent, which its standard ignores where it is wrong.
FIELDS_READ: Final = frozenset(KEY_HEADERS) | {
    b"x-relay-max-cost",
    b"x-relay-usage",
    b"x-relay-channel",
    b"idempotency-key",
    b"x-forwarded-for",  # where a trusted proxy sends it
    b"content-type",
    b"content-encoding",
    b"connection",
    b"expect",
    b"upgrade",
    b"sec-fetch-mode",
    b"sec-fetch-dest",
}

_COMMON: Final = {b"accept", b"accept-language", b"user-agent", b"traceparent"}

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
#   content-type                                the relay's own: the body was read as JSON, or as a form, and goes on so
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
    # what a browser would do with an answer, or on this origin, is the relay's to say
    b"content-security-policy",
    b"content-security-policy-report-only",
    b"location",
    b"refresh",
    b"service-worker-allowed",
    b"sourcemap",
    b"x-content-type-options",
    b"x-sourcemap",
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
    b"access-control-",
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


_DATA: Final = re.compile(rb"(?:application/json|text/event-stream)(?:[ \t;][^,]*)?", re.I)


def guards(fields: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What an upstream's answer gains, so that nothing of it runs in a browser on this origin."""
    types = values(fields, b"content-type")
    data = len(types) == 1 and _DATA.fullmatch(types[0]) is not None
    sandbox = [] if data else [(b"content-security-policy", b"sandbox")]
    return [*sandbox, (b"x-content-type-options", b"nosniff")]


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


# -- reading a request's fields, where the compiled front door does not

_Pairs = Iterable[tuple[bytes, bytes]]
_UNREADABLE: Final = re.compile(rb"[^\t\x20-\x7e]")
_BEARER: Final = re.compile(rb"bearer(?:[ \t]+|$)", re.I)
_CHARSETS: Final = ([b"charset=utf-8"], [b'charset="utf-8"'], [b"charset=utf8"])


_RUN_BY_BROWSERS: Final = frozenset(
    {
        *(b"document", b"iframe", b"frame", b"fencedframe", b"object", b"embed", b"script", b"style", b"xslt"),
        *(b"worker", b"sharedworker", b"serviceworker", b"audioworklet", b"paintworklet"),
    }
)


def readable(raw_headers: _Pairs, *, forwarded: bool) -> tuple[list[tuple[bytes, bytes]], str | None]:
    """The fields that can be read, and the name of one that had to be and cannot.

    Any other that cannot is passed over and hides nothing behind it.

    forwarded  the peer is a trusted proxy: X-Forwarded-For is read
    """
    fields: list[tuple[bytes, bytes]] = []
    bad: str | None = None
    for raw_name, value in raw_headers:
        name = raw_name.lower()
        if _UNREADABLE.search(value) is None:
            fields.append((raw_name, value))
        elif name == b"user-agent":
            fields.append((raw_name, _UNREADABLE.sub(b"?", value)))
        elif name in FIELDS_READ and (forwarded or name != b"x-forwarded-for"):
            bad = bad or name.decode("ascii")
            if name == b"x-forwarded-for":
                fields.append((raw_name, b""))  # somebody stands there, and nobody knows who
    return fields, bad


def secrets(fields: _Pairs, query_keys: Iterable[bytes] = ()) -> list[bytes]:
    """The API keys of a request: at most SECRETS_MAX different ones, in the order in which they came."""
    found: list[bytes] = []
    for name, value in fields:
        if name.lower() in KEY_HEADERS:
            secret = _without_scheme(value, other_schemes=name.lower() == b"authorization")
            if secret and secret not in found:
                found.append(secret)
    for secret in query_keys:
        if secret and secret not in found:
            found.append(secret)
    return found[:SECRETS_MAX]


def _without_scheme(value: bytes, *, other_schemes: bool) -> bytes:
    value = value.strip(b" \t")
    match = _BEARER.match(value)
    if match is not None:
        return value[match.end() :]
    return b"" if other_schemes and b" " in value else value


def named_by_connection(fields: _Pairs) -> frozenset[bytes]:
    """What a client's Connection fields say is theirs alone (RFC 9110 7.6.1), but for what the relay itself reads."""
    named = {name.strip(b" \t").lower() for value in values(fields, b"connection") for name in value.split(b",")}
    return frozenset(named - FIELDS_READ)


def opened_by_browser(fields: _Pairs) -> bool:
    """Whether a browser asks for a page, a frame, a script or a worker: an answer would run on this origin."""
    return any(
        (name.lower() == b"sec-fetch-mode" and value.strip(b" \t").lower() == b"navigate")
        or (name.lower() == b"sec-fetch-dest" and value.strip(b" \t").lower() in _RUN_BY_BROWSERS)
        for name, value in fields
    )


def split_lines(lines: bytes) -> list[tuple[bytes, bytes]]:
    """Names and values of field lines that were read before, each with its line end."""
    pairs = (line.partition(b":") for line in lines.split(b"\r\n") if line)
    return [(name, value.strip(b" \t")) for name, _, value in pairs]


def values(fields: _Pairs, name: bytes) -> list[bytes]:
    """Every value of a field; `name` in lower case."""
    return [value.strip(b" \t") for each, value in fields if each.lower() == name]


def charset_is_utf8(content_type: bytes) -> bool:
    """Whether a Content-Type says no charset, or UTF-8: JSON in any other could be read as something else upstream."""
    text = content_type.lower()
    parameters = text.split(b";")
    return b"charset" not in text or [part.strip(b" \t") for part in parameters if b"charset" in part] in _CHARSETS
