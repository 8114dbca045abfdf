"""Which parameters of a query mean something here, by endpoint.

    read(endpoint, b"alt=sse&key=sk-...&utm_source=x")  ->  [b"sk-..."], b"alt=sse"

Known parameters go on. Anything else stays here: what the relay does not know may change what the provider does, or
hide from its answer what the call has used. Known ones of that kind are refused, so that a client which wants another
answer learns why; the rest (tracking, another API's parameters, the client's own `api-version` or `model`) is left
out.
"""

import re
from typing import Final

from relay.wire.endpoints import D_ANTHROPIC, D_GEMINI, ENDPOINTS, Endpoint

# By endpoint; of the lists that are made here no parameter goes on.
_PASSED: Final[dict[str, frozenset[str]]] = {
    "response_get": frozenset({"include", "include[]", "include_obfuscation", "starting_after", "stream"}),
    "response_input_items": frozenset({"after", "before", "include", "include[]", "limit", "order"}),
    "video_content": frozenset({"variant"}),
    "realtime": frozenset({"call_id", "intent", "model"}),  # read and written anew by wire.realtime
}
_PASSED_BY_DIALECT: Final[dict[int, frozenset[str]]] = {
    D_ANTHROPIC: frozenset({"beta"}),
    D_GEMINI: frozenset({"alt"}),
}
_REPEATED: Final = frozenset({"include", "include[]"})
# Google's system parameters (docs.cloud.google.com/apis/docs/system-parameters): they choose the fields of an answer,
# its form, or whose quota a call counts to. Each may be written with a dollar sign in front.
_REFUSED: Final = frozenset(
    {"callback", "fields", "quotauser", "upload_protocol", "uploadtype", "userip", "userproject", "httpheaders"}
)
_FORMS: Final = ("json", "sse")
_SAME_FORM: Final = ("json", "json;enum-encoding=int")  # of `$alt`, as Google's generated clients send it: left out
_HARMLESS: Final = frozenset({"prettyprint", "xgafv", "key", "access_token", "oauth_token"})

_PART: Final = re.compile(rb"(?:[A-Za-z0-9._~:,@/+*!\[\]=-]|%[0-9A-Fa-f]{2}){0,512}")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


class QueryError(ValueError):
    """A parameter that cannot be sent on. Its text is the parameter's name, which is one of those above."""


def read(endpoint: Endpoint, raw_query: bytes) -> tuple[list[bytes], bytes]:
    """The API keys in a query, and what of it goes on, each part as it was written. Raises QueryError.

    A key is taken on Gemini's paths alone: Google's API has it there. Elsewhere it would end up in links and logs.
    """
    keys: list[bytes] = []
    rest: list[bytes] = []
    seen: set[str] = set()
    google = endpoint.dialect == D_GEMINI
    allowed = _ALLOWED[endpoint.name]
    for part in raw_query.split(b"&"):
        raw_name, _, raw_value = part.partition(b"=")
        name = _decoded(raw_name).decode("latin-1")
        if name in allowed:
            if _PART.fullmatch(part) is None or (name in seen and name not in _REPEATED):
                raise QueryError(name)
            if name == "alt" and raw_value.decode("latin-1") not in _FORMS:
                raise QueryError(name)
            seen.add(name)
            rest.append(part)
        elif google and name.lower() == "key":
            keys.append(_decoded(raw_value))
        elif google:
            _check(name, raw_value)
    return keys, b"&".join(rest)


def _check(name: str, raw_value: bytes) -> None:
    """Whether a parameter on Google's paths may be left out without a word. Raises QueryError."""
    plain = name.lower().lstrip("$").lstrip(".")
    if plain in _REFUSED:
        raise QueryError(("$" if name.startswith("$") else "") + _SPELT.get(plain, plain))
    if plain == "alt" and _decoded(raw_value).decode("latin-1") not in _SAME_FORM:
        raise QueryError("$alt" if name.startswith("$") else "alt")
    if name.startswith("$") and plain not in _HARMLESS and plain != "alt":
        raise QueryError("$")


_SPELT: Final = {
    "quotauser": "quotaUser",
    "uploadtype": "uploadType",
    "userip": "userIp",
    "userproject": "userProject",
    "httpheaders": "httpHeaders",
}
_ALLOWED: Final[dict[str, frozenset[str]]] = {
    e.name: _PASSED.get(e.name, frozenset()) | _PASSED_BY_DIALECT.get(e.dialect, frozenset()) for e in ENDPOINTS
}


def _decoded(text: bytes) -> bytes:
    """Percent-decoding of a query part. A broken escape stays as it is."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), text.replace(b"+", b" "))
