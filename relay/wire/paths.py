"""From the raw path of a request to the endpoint it means.

    resolve("POST", "/v1/v1/messages")  ->  messages, upstream path /v1/messages

A pure function with strict rules: whatever is not spelt exactly like a known path, or like one of its known
misspellings (`endpoints.BASE_PREFIXES`, repeated slashes, one at the end), is nothing. A path that reaches an upstream
is always built here from the route table, never copied from the request, so that no traversal or escape can pass
through. Percent-encoding is read for `:` and `@`, and for slashes in the names of models, which SDKs escape; encoded
dots, slashes anywhere else, and everything else are refused.
"""

import re
from collections.abc import Container
from typing import Final

import msgspec

from relay.config_values import MODEL_BYTES_MAX, is_model_name
from relay.wire.endpoints import ALPHA_PREFIX, BASE_PREFIXES, D_GEMINI, ENDPOINTS, GOOGLES_PREFIXES, Endpoint

PATH_BYTES_MAX: Final = 512  # the longest template, with the longest model name and prefix, fits well inside


class Resolved(msgspec.Struct, frozen=True):
    """What a path means. `model` and `upstream_path` are as the client named the model, before any renaming.

    alpha  it was asked for under Google's v1alpha, and goes on so where a channel speaks Gemini
    """

    endpoint: Endpoint
    model: str | None
    upstream_path: str
    object_id: str | None = None
    alpha: bool = False


_SAFE_PATH = re.compile(r"(/[A-Za-z0-9@_-][A-Za-z0-9._:@+-]*)+")
_ESCAPED = re.compile(r"%(3a|40|2f)", re.IGNORECASE)
_MEANT = {"3a": ":", "40": "@", "2f": "/"}
_SLASHES = re.compile(r"/{2,}")

# Paths without a placeholder, right and wrong: one look-up.
_EXACT: Final[dict[str, dict[str, Endpoint]]] = {}
for _endpoint in ENDPOINTS:
    if "{" not in _endpoint.path:
        for _path in (_endpoint.path, *_endpoint.aliases):
            _EXACT.setdefault(_path, {})[_endpoint.method] = _endpoint

# Model lists answer under any prefix of theirs; the last version named decides, and OpenAI's where none is.
for _prefix in BASE_PREFIXES:
    _name = "/v1beta/models" if _prefix in GOOGLES_PREFIXES else "/v1/models"
    _EXACT[_prefix + "/models"] = _EXACT[_name]


_OBJECT_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def is_object_id(text: str) -> bool:
    """Whether a path can name this object. Ids of all providers can."""
    return _OBJECT_ID.fullmatch(text) is not None


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{id\}", f"({_OBJECT_ID.pattern})"))


# Paths about one stored object: the tail after the version.
_BY_ID: Final = [
    (_pattern(e.path.removeprefix("/v1beta" if e.dialect == D_GEMINI else "/v1")), e)
    for e in ENDPOINTS
    if "{id}" in e.path
]
_BY_VERB: Final = {e.path.rpartition(":")[2]: e for e in ENDPOINTS if "{model}:" in e.path}
_ONE_MODEL: Final = {e.path.removesuffix("/models/{model}"): e for e in ENDPOINTS if e.path.endswith("/models/{model}")}
_PREFIXES: Final = tuple(sorted(BASE_PREFIXES, key=len, reverse=True))


def resolve(method: str, raw_path: str, models: Container[str] = ()) -> Resolved | None:
    """The endpoint for a method and the raw path (without query). None: 404, or 405 if `allowed_methods` has some.

    models  names of the catalogue: a model with a slash in a path is taken only if it is one of them
    """
    found = _candidates(raw_path, models).get(method)
    if found is None:
        return None
    endpoint, model, object_id = found
    upstream_path = endpoint.upstream_path
    if model is not None:
        upstream_path = upstream_path_for(endpoint, model)
    if object_id is not None:
        upstream_path = upstream_path.replace("{id}", object_id)
    return Resolved(endpoint, model, upstream_path, object_id, _cleaned(raw_path).startswith(ALPHA_PREFIX + "/"))


def allowed_methods(raw_path: str, models: Container[str] = ()) -> tuple[str, ...]:
    """Methods under which something is at this path; none: 404. For the `allow` header of a 405."""
    return tuple(sorted(_candidates(raw_path, models)))


def _cleaned(raw_path: str) -> str:
    """Without repeated slashes and one at the end, which naive joining of a base URL and a path makes."""
    path = _SLASHES.sub("/", raw_path) if "//" in raw_path else raw_path
    return path.removesuffix("/")


def upstream_path_for(endpoint: Endpoint, upstream_model: str) -> str:
    """The path behind a channel's base_url, with the upstream's name of the model. ValueError: not a model's name."""
    if "{model}" not in endpoint.upstream_path:
        return endpoint.upstream_path
    if not is_model_name(upstream_model):
        raise ValueError("not a model name")
    return endpoint.upstream_path.replace("{model}", upstream_model)


_Candidates = dict[str, tuple[Endpoint, str | None, str | None]]  # method -> endpoint, model, id of a stored object


def _candidates(raw_path: str, models: Container[str]) -> _Candidates:
    if len(raw_path) > PATH_BYTES_MAX or not raw_path.startswith("/"):
        return {}
    path = _cleaned(raw_path)
    exact = _EXACT.get(path)
    if exact is not None:
        return {method: (endpoint, None, None) for method, endpoint in exact.items()}
    before, models_part, name = path.partition("/models/")
    if models_part:
        path = before + models_part + _ESCAPED.sub(lambda match: _MEANT[match[1].lower()], name)
    if _SAFE_PATH.fullmatch(path) is None or ".." in path:
        return {}
    prefix = next(prefix for prefix in _PREFIXES if path.startswith(prefix + "/"))  # "" always does
    tail = path[len(prefix) :]
    if tail.startswith("/models/"):
        return _model_path(prefix, tail.removeprefix("/models/"), models)
    found: _Candidates = {}
    beta = prefix in GOOGLES_PREFIXES
    for pattern, endpoint in _BY_ID:
        match = pattern.fullmatch(tail)
        if match is None:
            continue
        # Two providers have batches: Google's are told by their version, and where only Google has such a path.
        google = endpoint.dialect == D_GEMINI
        if google and not beta:
            found.setdefault(endpoint.method, (endpoint, None, match[1]))
        elif google or not (beta and tail.startswith(("/batches", "/files"))):
            # A fixed path wins over an id of the same spelling: /responses/compact is no stored response.
            found[endpoint.method] = (endpoint, None, match[1])
    return found


def _model_path(prefix: str, rest: str, models: Container[str]) -> _Candidates:
    name, colon, verb = rest.rpartition(":")
    if colon and verb in _BY_VERB and _acceptable(name, models):
        endpoint = _BY_VERB[verb]
        return {endpoint.method: (endpoint, name, None)}
    if _acceptable(rest, models):
        endpoint = _ONE_MODEL["/v1beta" if prefix in GOOGLES_PREFIXES else "/v1"]
        return {endpoint.method: (endpoint, rest, None)}
    return {}


def _acceptable(model: str, models: Container[str]) -> bool:
    return len(model) <= MODEL_BYTES_MAX and is_model_name(model) and ("/" not in model or model in models)
