"""The handlers of jobs: making them, and every request about one, which may show that it has ended."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson
from aiohttp import web

from relay import _fastpath, units
from relay._fastpath import Admission, ApiKey, Call
from relay.proxy.jobs import Job, Jobs
from relay.proxy.objects import ObjectsApi, object_id_in, path_of
from relay.proxy.sidecalls import RefusedError, SideCall
from relay.proxy.upstreams import Answered, Fields, Upstream, UpstreamError
from relay.storage.rows import KeyClaim, ObjectRow
from relay.wire import files as wire_files
from relay.wire import jobs as wire_jobs
from relay.wire import multipart, upstream_errors
from relay.wire.endpoints import D_ANTHROPIC, D_GEMINI, D_OPENAI, F_MESSAGES, F_OTHER
from relay.wire.paths import is_object_id
from relay.wire.uploads import output_bound

log = logging.getLogger("relay.jobs")

_CODES: Final = _fastpath.ERROR_CODES
VIDEO_MODEL: Final = "sora-2"  # the provider's own default
VIDEO_SECONDS: Final = 4
VIDEO_SECONDS_MAX: Final = 600
REFERENCE: Final = "input_reference[file_id]"  # as SDKs write an object into a form
VIDEO_FIELDS: Final = frozenset({"model", "seconds", REFERENCE})
UNREAD_FIELDS: Final = frozenset({"input_reference", "input_reference.file_id"})
BATCH_REQUESTS_MAX: Final = 100_000
_RESULTS_URL = re.compile(rb'("results_url"\s*:\s*)"https?://[^"]*?(/v1/messages/batches/[^"/]+/results)"')


class JobsApi:
    """`objects` has what all objects share; here is what jobs have besides."""

    def __init__(self, objects: ObjectsApi, jobs: Jobs) -> None:
        self._objects = objects
        self._jobs = jobs
        self._beginning: set[asyncio.Task[Answered]] = set()

    # -- about one job

    async def one(self, call: SideCall, kind: str, object_id: str) -> web.StreamResponse:
        """GET or POST about one job: its document is read on the way."""
        api = self._objects
        row = await api.objects.find(call.account_id, kind, object_id)
        job = self._jobs.find(kind, object_id)
        if kind == "response" and (job is None or call.request.query.get("stream") == "true"):
            return await api.one(call, kind, object_id)
        data = await call.body(api.config().server.body_bytes_max) if call.endpoint.method == "POST" else None
        answered = await api.ask_whole(
            call, api.upstream_of(row), call.endpoint.method, path_of(call.endpoint, object_id), data=data
        )
        return call.respond(await self.shown(call, row, answered))

    async def shown(self, call: SideCall, row: ObjectRow, answered: Answered) -> Answered:
        """A job's document on its way to its owner."""
        if answered.status == 200:
            try:
                await self._jobs.seen(row.kind, row.object_id, answered.body)
            except UpstreamError as error:  # what it used could not be read: the poller tries again
                log.warning("the results of a job could not be read (%s)", error.code)
        if row.kind == "message_batch":
            answered.body = own_results_url(call, answered.body)
        return answered

    async def delete(self, call: SideCall, kind: str, object_id: str) -> web.StreamResponse:
        """A job that has not ended is not deleted: what it has cost by then could not be known any more."""
        await self._objects.objects.find(call.account_id, kind, object_id)
        await self._let_end(kind, object_id, refuse=True)
        return await self._objects.one(call, kind, object_id)

    async def content(self, call: SideCall, kind: str, object_id: str) -> web.StreamResponse:
        """What a job has made: charged before it is given out."""
        await self._objects.objects.find(call.account_id, kind, object_id)
        await self._let_end(kind, object_id, refuse=False)
        return await self._objects.one(call, kind, object_id)

    async def _let_end(self, kind: str, object_id: str, *, refuse: bool) -> None:
        job = self._jobs.find(kind, object_id)
        if job is not None:
            await self._jobs.look(job)
        if refuse and self._jobs.find(kind, object_id) is not None:
            raise RefusedError("invalid_value", "status")

    # -- making one

    async def _make(
        self,
        call: SideCall,
        kind: str,
        model: str,
        upstream: Upstream,
        upstream_model: str,
        usage: wire_jobs.Usage,
        data: bytes,
        *,
        path: str | None = None,
        count: int = 0,
        fields: Fields | None = None,
    ) -> web.StreamResponse:
        key = call.key
        assert key is not None
        call.model, call.upstream_model = model, upstream_model
        max_cost = max_cost_nano(call)

        async def send() -> Answered:
            return await self._objects.ask_whole(
                call, upstream, "POST", path or call.endpoint.upstream_path, data=data, fields=fields
            )

        async def make() -> Answered:
            job = await self._jobs.begin(
                key,
                kind,
                call.endpoint.path,
                model,
                upstream,
                upstream_model,
                usage=usage,
                units=count,
                max_cost_nano=max_cost,
                claim=call.claim,
            )
            if call.ended:  # the client is gone, and nothing was sent
                await self._jobs.drop(job, call.claim)
                raise ConnectionResetError
            return await self._begun(job, kind, send, call.claim)

        # Once the provider may have taken it, the job has to get its name, whether the client waits or not.
        task = asyncio.create_task(make())
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
        answered = await asyncio.shield(task)
        if kind == "message_batch":
            answered.body = own_results_url(call, answered.body)
        return call.respond(answered)

    async def _begun(
        self, job: Job, kind: str, send: Callable[[], Awaitable[Answered]], claim: KeyClaim | None
    ) -> Answered:
        """Sends it. The caller's key is free again where the provider has said no, or was not reached; without an
        answer it may have made something, which nobody will be charged for."""
        try:
            answered = await send()
            object_id = _name_in(kind, answered.body) if answered.status < 300 else None
        except UpstreamError as error:
            await self._jobs.drop(job, None if error.processed else claim)
            raise
        except BaseException:
            await self._jobs.drop(job)
            raise
        if object_id is None:
            await self._jobs.drop(job, claim)
        else:
            await self._jobs.named(job, object_id, answered)
        return answered

    async def _body(self, call: SideCall, bytes_max: int) -> bytes:
        """The whole body; the caller's Idempotency-Key is taken with it. Raises RefusedError, StoreError."""
        data = await call.body(bytes_max)
        boundary = _boundary(call)
        await call.claim_key(data if boundary is None else data.replace(boundary, b""))  # SDKs draw it anew
        return data

    def _way(
        self, key: ApiKey, model: str, dialect: int, *, renamed: bool = True, channels: frozenset[str] | None = None
    ) -> tuple[Upstream, str]:
        """The first channel that serves a model, and its name there; `channels`: those that have what is named.
        Raises RefusedError."""
        known = self._objects.engine.models.get(model.encode("utf-8", "replace"))
        code = key.check(wall_ns=time.time_ns(), address=None, model=model.encode("utf-8", "replace"))
        if _CODES[code] == "model_not_allowed":
            raise RefusedError("model_not_allowed")
        routes = known.routes_of(dialect) if known is not None else []
        if known is None or not routes:
            raise RefusedError("model_not_found")
        if known.rate is None:
            raise RefusedError("model_unpriced")
        for route in sorted(routes, key=lambda route: route.channel.priority):
            upstream = self._objects.upstreams.by_name.get(route.channel.name)
            if channels is not None and route.channel.name not in channels:
                continue
            if upstream is not None and (renamed or route.upstream_model == model):
                return upstream, route.upstream_model
        if channels is not None:
            raise RefusedError("objects_apart")
        raise RefusedError("invalid_value", "model")  # in a batch names cannot be changed

    def _margin(self, tokens: int) -> int:
        permille = self._objects.config().billing.prompt_margin_permille
        return tokens + -(-tokens * permille // 1000)

    def _tokens(self, data: bytes) -> int:
        table = self._objects.engine.default_tables[0]
        return -(-_fastpath.count_text(table, data) // _fastpath.TOKEN_UNIT)

    async def batch(self, call: SideCall, _: str) -> web.StreamResponse:
        """POST /v1/batches: held for by what the lines of its file ask for."""
        data = await self._body(call, 1 << 20)
        document = await strict_object(data)
        name = document.get("input_file_id")
        if not isinstance(name, str) or not is_object_id(name):
            raise RefusedError("invalid_value", "input_file_id")
        try:
            row = await self._objects.objects.find(call.account_id, "file", name)
        except RefusedError as error:
            raise RefusedError(error.code, "input_file_id") from None
        if not row.requests or row.model is None:
            raise RefusedError("invalid_value", "input_file_id")  # not lines of requests, or for several models
        assert call.key is not None
        self._way(call.key, row.model, D_OPENAI)
        upstream = self._objects.upstream_of(row)
        if upstream.models.get(row.model) != row.model:
            raise RefusedError("model_not_found", "input_file_id")
        usage = {"input_tokens": self._margin(row.prompt_tokens), "output_tokens": row.output_tokens}
        return await self._make(call, "batch", row.model, upstream, row.model, usage, data)

    async def message_batch(self, call: SideCall, _: str) -> web.StreamResponse:
        """POST /v1/messages/batches: the requests stand in the body; all for one model, as it is called upstream."""
        data = await self._body(call, self._objects.config().server.body_bytes_max)
        document = await strict_object(data)
        requests = document.get("requests")
        if not isinstance(requests, list) or not 0 < len(requests) <= BATCH_REQUESTS_MAX:
            raise RefusedError("invalid_value", "requests")
        params = [one.get("params") if isinstance(one, dict) else None for one in requests]
        if not all(isinstance(one, dict) and isinstance(one.get("model"), str) for one in params):
            raise RefusedError("invalid_value", "requests")
        models = {one["model"] for one in params if one is not None}
        if len(models) != 1:
            raise RefusedError("invalid_value", "model")
        model = models.pop()
        assert call.key is not None
        files = await asyncio.to_thread(self._named_in, params) if wire_files.may_be_named(data) else []
        channels = await self._objects.objects.channels_of(call.account_id, files)
        upstream, name = self._way(call.key, model, D_ANTHROPIC, renamed=False, channels=channels)
        otherwise = self._objects.config().billing.hold_output_tokens
        usage = {
            "input_tokens": self._margin(self._tokens(data)),
            "output_tokens": sum(output_bound(one, otherwise) for one in params if one is not None),
        }
        return await self._make(call, "message_batch", model, upstream, name, usage, data)

    def _named_in(self, requests: list[Any]) -> list[str]:
        """The files that requests to Anthropic's messages name. Raises RefusedError."""
        table = self._objects.engine.default_tables[D_ANTHROPIC]
        try:
            return [name for one in requests for name in wire_files.names(F_MESSAGES, one, table)]
        except wire_files.NamesError as error:
            raise RefusedError(error.code, "requests") from None

    async def gemini_batch(self, call: SideCall, model: str) -> web.StreamResponse:
        """POST /v1beta/models/{model}:batchGenerateContent, with the requests in the body."""
        data = await self._body(call, self._objects.config().server.body_bytes_max)
        document = await strict_object(data)
        try:
            requests = document["batch"]["inputConfig"]["requests"]["requests"]
            limits = [one["request"].get("generationConfig") or {} for one in requests]
        except (KeyError, TypeError, AttributeError):
            raise RefusedError("unsupported_feature", "inputConfig") from None  # files of Google's are not served
        assert call.key is not None
        upstream, name = self._way(call.key, model, D_GEMINI)
        otherwise = self._objects.config().billing.hold_output_tokens
        bounds = [{"max_tokens": one.get("maxOutputTokens"), "n": one.get("candidateCount")} for one in limits]
        usage = {
            "input_tokens": self._margin(self._tokens(data)),
            "output_tokens": sum(output_bound(one, otherwise) for one in bounds),
        }
        path = call.endpoint.upstream_path.replace("{model}", name)
        return await self._make(call, "gemini_batch", model, upstream, name, usage, data, path=path)

    async def video(self, call: SideCall, _: str) -> web.StreamResponse:
        """POST /v1/videos: JSON or a form; held for by its seconds."""
        data = await self._body(call, self._objects.config().server.body_bytes_max)
        boundary = _boundary(call)
        span: tuple[int, int] | None = None
        if boundary is not None:
            try:
                found_parts = multipart.parse(boundary, data)
                parts = multipart.texts(found_parts, data, VIDEO_FIELDS)
            except multipart.FormError:
                raise RefusedError("malformed_form") from None
            said = {name: data[part.start : part.end].decode("utf-8", "replace") for name, part in parts.items()}
            if "model" in parts:
                span = (parts["model"].start, parts["model"].end)
            if any(part.filename is None and part.name in UNREAD_FIELDS for part in found_parts):
                raise RefusedError("unsupported_feature", "input_reference")  # a file could be named in it
            files = [said[REFERENCE]] if REFERENCE in said else []
        else:
            said = await strict_object(data)
            files = wire_files.below(said.get("input_reference"))
            found = _fastpath.scan_request(F_OTHER, data, self._objects.engine.default_tables[0])
            if found["error"]:
                raise RefusedError(found["error"])
            span = found["model_span"] if found["model"] else None
        model = said.get("model") or VIDEO_MODEL
        seconds = wire_jobs.whole_seconds(said.get("seconds", VIDEO_SECONDS))
        if not isinstance(model, str):
            raise RefusedError("invalid_type", "model")
        if not 0 < seconds <= VIDEO_SECONDS_MAX:
            raise RefusedError("invalid_value", "seconds")
        assert call.key is not None
        channels = await self._objects.objects.channels_of(call.account_id, files)
        upstream, name = self._way(call.key, model, D_OPENAI, renamed=span is not None, channels=channels)
        if name != model and span is not None:
            put = name.encode() if boundary is not None else orjson.dumps(name)
            data = data[: span[0]] + put + data[span[1] :]
        usage = {"video_seconds": seconds}
        return await self._make(call, "video", model, upstream, name, usage, data, count=seconds)

    async def remix(self, call: SideCall, object_id: str) -> web.StreamResponse:
        """POST /v1/videos/{id}/remix: another video as long as the first, of the same model, at the same channel."""
        api = self._objects
        row = await api.objects.find(call.account_id, "video", object_id)
        data = await self._body(call, 1 << 20)
        await strict_object(data)
        upstream = api.upstream_of(row)
        shown = await api.upstreams.fetch(upstream, "GET", f"/videos/{object_id}")
        if shown.status != 200 or row.model is None:
            raise RefusedError("object_not_found")
        await self._jobs.seen("video", object_id, shown.body)
        seconds = wire_jobs.whole_seconds(orjson.loads(shown.body).get("seconds")) or VIDEO_SECONDS
        assert call.key is not None
        self._way(call.key, row.model, D_OPENAI)
        name = upstream.models.get(row.model, row.model)
        path = path_of(call.endpoint, object_id)
        usage = {"video_seconds": seconds}
        return await self._make(call, "video", row.model, upstream, name, usage, data, path=path, count=seconds)

    # -- responses in the background: the call came over the hot path

    async def background(self, call: Call, facts: dict[str, Any], channels: frozenset[str] | None) -> None:
        """Answers a call that asks for a response in the background. Raises RefusedError, StoreError."""
        if facts["endpoint"] != "/v1/responses":
            raise RefusedError("unsupported_feature")
        if facts["stream"]:
            raise RefusedError("unsupported_feature", "stream")
        api, key, engine = self._objects, facts["key"], self._objects.engine
        if facts["model"] is None:
            raise RefusedError("missing_model")
        model = facts["model"].decode("utf-8", "replace")
        code = key.check(
            wall_ns=facts["wall_ns"], address=facts["address"], endpoint_scope=facts["scope_bit"], model=facts["model"]
        )
        if code == 0:
            admission = Admission()
            now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
            code = admission.py_admit(
                key, engine.free_rate, prompt_tokens=0, output_bound=0, policy=engine.policy,
                now_ns=now_ns, wall_ns=wall_ns,
            )  # fmt: skip
            if code == 0:
                admission.py_release(now_ns=now_ns, forwarded=True)
        if code:
            raise RefusedError(_CODES[code])
        upstream, name = self._way(key, model, D_OPENAI, channels=channels)
        data: bytes = facts["body"]
        if name != model:
            start, end = facts["model_span"]
            data = data[:start] + orjson.dumps(name) + data[end:]
        limit = facts["output_limit"]
        usage = {
            "input_tokens": self._margin(facts["prompt_tokens"]),
            "output_tokens": limit if limit >= 0 else api.config().billing.hold_output_tokens,
            "web_searches": engine.policy.hold_web_searches if facts["web_search"] else 0,
        }
        claim = None
        if facts["claim"] is not None:
            digest, tag = facts["claim"]
            claim = KeyClaim(digest, tag, call.id)
        job = await self._jobs.begin(
            key, "response", "/v1/responses", model, upstream, name, usage=usage, units=facts["prompt_tokens"],
            max_cost_nano=facts["max_cost_nano"], claim=claim,
        )  # fmt: skip
        lines = facts["fields"].decode("latin-1").split("\r\n")
        fields = [(name, value.strip()) for name, colon, value in (line.partition(":") for line in lines) if colon]

        async def send() -> Answered:
            return await api.upstreams.fetch(upstream, "POST", "/responses", fields=fields, data=data)

        try:
            answered = await self._begun(job, "response", send, claim)
        except UpstreamError as error:
            raise RefusedError(error.code) from None
        if answered.status >= 400 and (
            upstream_errors.judge(D_OPENAI, answered.status, answered.body) == upstream_errors.ACCOUNT
        ):
            raise RefusedError("upstream_account")
        passed = "".join(f"{name}: {value}\r\n" for name, value in answered.fields).encode("latin-1")
        code = 0 if answered.status < 400 else _CODES.index("upstream_error")
        call.answer(answered.status, code, passed, answered.body)


def _boundary(call: SideCall) -> bytes | None:
    return multipart.boundary_of(call.request.headers.get("Content-Type", "").encode("utf-8", "replace"))


async def strict_object(data: bytes) -> dict[str, Any]:
    """A JSON object in which no key comes twice: what is priced is what the provider reads. Raises RefusedError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise RefusedError("duplicate_key")
        return made

    def load() -> Any:
        return json.loads(data, object_pairs_hook=once)

    try:
        document = load() if len(data) <= 1 << 20 else await asyncio.to_thread(load)
    except (ValueError, RecursionError):
        raise RefusedError("malformed_json") from None
    if not isinstance(document, dict):
        raise RefusedError("malformed_json")
    return document


def max_cost_nano(call: SideCall) -> int:
    """The caller's x-relay-max-cost; -1: none. Raises RefusedError."""
    values = call.request.headers.getall("x-relay-max-cost", [])
    if not values:
        return -1
    try:
        if len(values) != 1:
            raise ValueError
        return units.parse_credits(values[0])
    except ValueError:
        raise RefusedError("invalid_value", "x-relay-max-cost") from None


def own_results_url(call: SideCall, body: bytes) -> bytes:
    """Anthropic's SDKs ask for results at the address that the batch names: it has to be this relay's."""
    request = call.request
    base = f"{request.scheme}://{request.host}".encode("ascii", "replace")
    return _RESULTS_URL.sub(lambda match: match[1] + b'"' + base + match[2] + b'"', body)


def _name_in(kind: str, body: bytes) -> str:
    if kind != "gemini_batch":
        return object_id_in(body)
    try:
        name = orjson.loads(body)["name"].removeprefix("batches/")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise UpstreamError("upstream_garbage") from None
    if not is_object_id(name):
        raise UpstreamError("upstream_garbage")
    return str(name)
