"""Whether a channel's keys work: the smallest useful request with each of them. `relay channel test`.

A list of models where the provider has one: it costs nothing. Else a count of tokens (Anthropic, Gemini), or an answer
of one token (OpenAI's dialect), which does cost that token. What it shows changes nothing: no key rests or wakes by it.
"""

import time
from typing import Final
from urllib.parse import quote

import msgspec
import orjson

from relay.config import Channel as ConfiguredChannel
from relay.config_values import MODEL_PLACE
from relay.proxy import decoders
from relay.proxy.connect import why_no_connection
from relay.proxy.upstreams import Upstream, UpstreamError, Upstreams
from relay.wire import upstream_errors
from relay.wire.endpoints import D_ANTHROPIC, D_GEMINI

LISTS: Final = ("/models", "/v1/models", "/v1beta/models")  # by D_*
NO_LIST: Final = (404, 405, 501)


class KeyTrial(msgspec.Struct, frozen=True):
    """What one key got. `says`: "ok", else what kind of error that is; never the provider's words.

    key     its place in `api_keys`, from 1
    status  None: no answer
    asked   the request
    detail  why there was no connection; None: there was one
    """

    key: int
    ok: bool
    says: str
    status: int | None
    asked: str
    milliseconds: float
    detail: str | None = None


async def trials(upstreams: Upstreams, configured: ConfiguredChannel) -> list[KeyTrial]:
    """One after the other. The channel is one of the configuration in force."""
    upstream = upstreams.by_name[configured.name]
    count = len(upstream.route.channel.keys)
    return [await _trial(upstreams, upstream, configured, number) for number in range(1, count + 1)]


async def _trial(upstreams: Upstreams, upstream: Upstream, configured: ConfiguredChannel, number: int) -> KeyTrial:
    began = time.monotonic()
    method, path, body = "GET", LISTS[upstream.dialect], None
    if configured.base_url.endswith("/publishers/google"):  # Vertex AI lists no models there
        method, path, body = _smallest(upstream, configured)
    status: int | None = None
    detail: str | None = None
    try:
        status, says = await _ask(upstreams, upstream, number, method, path, body)
        if status in NO_LIST and method == "GET":
            method, path, body = _smallest(upstream, configured)
            status, says = await _ask(upstreams, upstream, number, method, path, body)
    except UpstreamError as error:
        status, says = None, error.code
        detail = why_no_connection(error.__cause__) if error.__cause__ is not None else None
    took = round((time.monotonic() - began) * 1000, 1)
    return KeyTrial(number, says == "ok", says, status, f"{method} {path}", took, detail)


def _smallest(upstream: Upstream, configured: ConfiguredChannel) -> tuple[str, str, bytes]:
    """The smallest request that names a model: the channel's first."""
    model = next(iter(configured.models.values()))
    message = {"role": "user", "content": "."}
    if upstream.dialect == D_GEMINI:
        versions = "/models" if configured.base_url.endswith("/publishers/google") else "/v1beta/models"
        body = {"contents": [{"parts": [{"text": "."}]}]}
        return "POST", f"{versions}/{quote(model, safe='')}:countTokens", orjson.dumps(body)
    if upstream.dialect == D_ANTHROPIC:
        return "POST", "/v1/messages/count_tokens", orjson.dumps({"model": model, "messages": [message]})
    deployment = configured.base_url.replace(MODEL_PLACE, quote(model, safe="")).removeprefix(upstream.base_url)
    path = deployment.rstrip("/") + "/chat/completions"
    return "POST", path, orjson.dumps({"model": model, "messages": [message], "max_tokens": 1})


async def _ask(
    upstreams: Upstreams, upstream: Upstream, number: int, method: str, path: str, body: bytes | None
) -> tuple[int, str]:
    """Status, and what it says. Raises UpstreamError."""
    answered = await upstreams.ask_with_key(upstream, number, method, path, body)
    if answered.status < 300:
        return answered.status, "ok"
    found = upstream_errors.judge(answered.status, decoders.read(answered.encoding, answered.body))
    limited = found.verdict == upstream_errors.UPSTREAM and found.scope == upstream_errors.MODEL
    return answered.status, (
        "upstream_account"
        if found.verdict == upstream_errors.ACCOUNT
        else "upstream_unavailable"
        if limited
        else "model_not_found"
        if found.verdict == upstream_errors.MISSING
        else "upstream_error"
    )
