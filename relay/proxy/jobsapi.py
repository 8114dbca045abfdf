"""The handlers of jobs: making them, and every request about one, which may show that it has ended."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import orjson
from aiohttp import web

from relay import _fastpath
from relay._fastpath import Admission, ApiKey, Attempts, Call, Rate, Route
from relay.proxy import batchbodies, jobstream
from relay.proxy.jobparts import Asked
from relay.proxy.jobs import Job, Jobs
from relay.proxy.objects import ObjectsApi, document_in, object_id_in, path_of
from relay.proxy.sidecalls import RefusedError, SideCall, limited, narrowed
from relay.proxy.upstreams import Answered, Fields, UpstreamError, whole
from relay.storage.rows import KeyClaim, ObjectRow
from relay.wire import documents, joberrors, multipart, strictjson
from relay.wire import files as wire_files
from relay.wire import jobs as wire_jobs
from relay.wire import tools as wire_tools
from relay.wire.endpoints import D_ANTHROPIC, D_GEMINI, D_OPENAI, F_GENERATE, F_MESSAGES, F_OTHER, F_RESPONSES
from relay.wire.paths import is_object_id
from relay.wire.uploads import BODY_KEYS, output_bound

log = logging.getLogger("relay.jobs")

_CODES: Final = _fastpath.ERROR_CODES
VIDEO_MODEL: Final = "sora-2"  # the provider's own default
VIDEO_SECONDS: Final = 4
VIDEO_SECONDS_MAX: Final = 600
REFERENCE: Final = "input_reference[file_id]"  # as SDKs write an object into a form
VIDEO_FIELDS: Final = frozenset({"model", "seconds", "size", REFERENCE})
UNREAD_FIELDS: Final = frozenset({"input_reference", "input_reference.file_id"})
READ_KEYS: Final = ("model", "seconds", "size", "input_reference", "input_file_id", "requests", "batch", "prompt")
BATCH_REQUESTS_MAX: Final = 100_000
_RESULTS_URL = re.compile(rb'("results_url"\s*:\s*)"https?://[^"]*?(/v1/messages/batches/[^"/]+/results)"')


class JobsApi:
    """`objects` has what all objects share; here is what jobs have besides."""

    def __init__(self, objects: ObjectsApi, jobs: Jobs) -> None:
        self._objects = objects
        self._jobs = jobs
        self._beginning: set[asyncio.Task[Answered]] = set()

    @property
    def open(self) -> int:
        return len(self._beginning)

    # -- about one job

    async def one(self, call: SideCall, kind: str, object_id: str) -> web.StreamResponse:
        """GET or POST about one job: its document is read on the way."""
        api = self._objects
        row = await api.objects.find(call.account_id, kind, object_id)
        job = self._jobs.find(kind, object_id)
        if kind == "response" and job is None and call.endpoint.name != "response_get":
            return await api.one(call, kind, object_id)
        data = await call.body(api.config().server.body_bytes_max) if call.endpoint.method == "POST" else None
        answer = await api.ask(
            call, api.upstream_of(row), call.endpoint.method, path_of(call.endpoint, object_id), data=data
        )
        if answer.content_type == jobstream.STREAM:  # a response's events, again or from one on
            return await call.pass_on(
                answer, jobstream.watch(self._jobs, object_id, answer, self._objects.teller(row.channel))
            )
        return call.respond(await self.shown(call, row, await whole(answer)))

    async def shown(self, call: SideCall, row: ObjectRow, answered: Answered) -> Answered:
        """A job's document on its way to its owner."""
        if answered.status == 200:
            try:
                await self._jobs.seen(row.kind, row.object_id, answered.body)
            except UpstreamError as error:  # what it used could not be read: the poller tries again
                log.warning("the results of a job could not be read (%s)", error.code)
        self._hide(row.channel, answered)
        if row.kind == "message_batch":
            answered.body = own_results_url(call, answered.body)
        return answered

    def _hide(self, channel: str, answered: Answered) -> None:
        """What a job's document says about the operator's account is told to the operator alone."""
        changed = joberrors.without_operator(answered.body) if answered.status < 300 else None
        if changed is not None:
            answered.body = changed[0]
            self._objects.teller(channel)(changed[1])

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
        attempts: Attempts,
        usage: wire_jobs.Usage,
        data: bytes,
        *,
        path: str | None = None,
        count: int = 0,
        fields: Fields | None = None,
        more: Sequence[Asked] = (),
    ) -> web.StreamResponse:
        """`attempts`: begun, on the channel that was chosen for the job."""
        key, route = call.key, attempts.route
        assert key is not None
        assert route is not None
        if not more:
            call.model, call.upstream_model = model, route.upstream_model
        with left_on_error(attempts):
            upstream = self._objects.upstreams.chosen(attempts)
            max_cost = call.max_cost_nano

        async def send() -> Answered:
            return await self._objects.ask_whole(
                call,
                upstream,
                "POST",
                path or call.endpoint.upstream_path,
                data=data,
                fields=fields,
                attempts=attempts,
            )

        async def make() -> Answered:
            with left_on_error(attempts):
                job = await self._jobs.begin(
                    key,
                    kind,
                    call.endpoint.path,
                    model,
                    upstream,
                    route.upstream_model,
                    usage=usage,
                    units=count,
                    max_cost_nano=max_cost,
                    more=more,
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
        self._hide(upstream.name, answered)
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

    def _ways(
        self,
        call: SideCall,
        model: str,
        dialect: int,
        *,
        renamed: bool = True,
        channels: frozenset[str] | None = None,
    ) -> list[Route]:
        """The ways to a model that a caller may take; `channels`: those with what is named. Raises RefusedError."""
        assert call.key is not None
        routes = self._ways_of(call.key, call.packed_address(), model, dialect, renamed=renamed)
        return _at(narrowed(call.key, call.packed_address(), call.wanted_channel, routes), channels)

    def _ways_of(
        self, key: ApiKey, address: bytes | None, model: str, dialect: int, *, renamed: bool = True
    ) -> list[Route]:
        known = self._objects.engine.models.get(model.encode("utf-8", "replace"))
        code = key.check(wall_ns=time.time_ns(), address=address, model=model.encode("utf-8", "replace"))
        if code:
            raise RefusedError(_CODES[code])
        routes = known.routes_of(dialect) if known is not None else []
        if known is None:
            name = model.encode("utf-8", "replace")
            self._objects.engine.hooks.model_unknown(name, key.account_id, key.key_id)
            raise RefusedError("model_not_found")
        if not routes:
            raise RefusedError("model_not_found", known.elsewhere)
        if known.rate is None:
            raise RefusedError("model_unpriced")
        routes = [route for route in routes if renamed or route.upstream_model == model]
        if not routes:
            raise RefusedError("invalid_value", "model")  # it is left out: there is no place where it could be changed
        return routes

    def _begin(self, routes: list[Route]) -> tuple[Attempts, str]:
        """The channel of a new job, and the model's name there. Raises UpstreamError."""
        attempts = self._objects.upstreams.begin(routes)
        assert attempts.route is not None
        return attempts, attempts.route.upstream_model

    def _begin_together(
        self, call: SideCall, models: list[str], dialect: int, channels: frozenset[str] | None
    ) -> tuple[Attempts, dict[str, str]]:
        """The channel of a job for all of these models, and their names there. Raises RefusedError, UpstreamError."""
        ways = [
            {route.channel.name: route for route in self._ways(call, model, dialect, channels=channels)}
            for model in models
        ]
        routes = [route for name, route in ways[0].items() if all(name in others for others in ways)]
        if not routes:
            raise RefusedError("invalid_value", "model")  # each is served, but not at one place
        attempts, _ = self._begin(routes)
        assert attempts.route is not None
        channel = attempts.route.channel.name
        return attempts, {model: way[channel].upstream_model for model, way in zip(models, ways, strict=True)}

    def _begin_at(self, channel: str, routes: list[Route], param: str | None = None) -> Attempts:
        """The same where the channel is given: by a file, by a video. Raises RefusedError, UpstreamError."""
        routes = [route for route in routes if route.channel.name == channel]
        if not routes:
            raise RefusedError("model_not_found", param)
        return self._begin(routes)[0]

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
        self._objects.upstream_of(row)
        routes = self._ways_of(call.key, call.packed_address(), row.model, D_OPENAI)
        routes = [route for route in routes if route.upstream_model == row.model]
        attempts = self._begin_at(row.channel, routes, "input_file_id")
        usage = {"input_tokens": self._margin(row.prompt_tokens), "output_tokens": row.output_tokens}
        return await self._make(call, "batch", row.model, attempts, usage, data, count=row.prompt_tokens)

    async def message_batch(self, call: SideCall, _: str) -> web.StreamResponse:
        """POST /v1/messages/batches: the requests stand in the body, each for a model of its own."""
        data = await self._body(call, self._objects.config().server.body_bytes_max)
        document = await strict_object(data)
        requests = document.get("requests")
        if not isinstance(requests, list) or not 0 < len(requests) <= BATCH_REQUESTS_MAX:
            raise RefusedError("invalid_value", "requests")
        params = [one.get("params") if isinstance(one, dict) else None for one in requests]
        if not all(isinstance(one, dict) and isinstance(one.get("model"), str) for one in params):
            raise RefusedError("invalid_value", "requests")
        for one, asked in zip(requests, params, strict=True):
            spelt(one, ("custom_id", "params"))
            spelt(asked, BODY_KEYS)
        assert call.key is not None
        models = list(dict.fromkeys(one["model"] for one in params if one is not None))
        files = await asyncio.to_thread(self._named_in, params) if wire_files.may_be_named(data) else []
        channels = await self._objects.objects.channels_of(call.account_id, files)
        otherwise = self._objects.config().billing.hold_output_tokens
        attempts, ways = self._begin_together(call, models, D_ANTHROPIC, channels)
        with left_on_error(attempts):
            for one in params:
                if one is not None and one.get("inference_geo") not in (None, "global"):
                    rate = self._objects.engine.models[one["model"].encode()].rate
                    if rate is None or not rate.inference_geo:
                        raise RefusedError("unsupported_feature", "inference_geo")  # it costs more than the price here
            searches = self._searches_in(
                call.key, F_MESSAGES, [(one["model"], one) for one in params if one is not None]
            )
            first, *more = await batchbodies.asked(data, requests, ways, self._tokens, self._margin, otherwise)
            for one in (first, *more):
                one.usage["web_searches"] = searches.get(one.model, 0)
            data = await batchbodies.renamed(data, requests, ways)
        count = sum(one.usage["input_tokens"] for one in (first, *more))
        return await self._make(call, "message_batch", first.model, attempts, first.usage, data, count=count, more=more)

    def _judge(self, key: ApiKey, rate: Rate | None, asked: list[wire_tools.Asked], *, web_search: bool) -> None:
        """Whether a job may have what it asks for beside tokens of its model. Raises RefusedError."""
        if rate is not None and (asked or web_search):
            verdict = self._objects.engine.hooks.verdict(asked, web_search, rate, key, counted=False)
            if verdict.code is not None:
                raise RefusedError(verdict.code, verdict.field)

    def _searches_in(self, key: ApiKey, format: int, requests: list[tuple[str, Any]]) -> dict[str, int]:
        """Searches to hold for, by model, of requests that are for a model each; what else they ask for is judged.
        Raises RefusedError."""
        searches: dict[str, int] = {}
        for model, one in requests:
            if not isinstance(one, dict):
                continue
            asked, search = wire_tools.asked_in(format, one), wire_tools.searches(one)
            if asked or search:
                known = self._objects.engine.models.get(model.encode("utf-8", "replace"))
                self._judge(key, known.rate if known is not None else None, asked, web_search=search)
            if search:
                searches[model] = searches.get(model, 0) + self._objects.engine.policy.hold_web_searches
        return searches

    def _named_in(self, requests: list[Any]) -> list[tuple[str, str]]:
        """What files and sandboxes requests to Anthropic's messages name. Raises RefusedError."""
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
            bounds = [{"max_tokens": one.get("maxOutputTokens"), "n": one.get("candidateCount")} for one in limits]
        except (KeyError, TypeError, AttributeError):
            raise RefusedError("unsupported_feature", "inputConfig") from None  # files of Google's are not served
        for one in limits:
            spelt(one, ("maxOutputTokens", "max_output_tokens", "candidateCount", "candidate_count"))
        routes = self._ways(call, model, D_GEMINI)
        otherwise = self._objects.config().billing.hold_output_tokens
        tokens = self._tokens(data)
        usage = {
            "input_tokens": self._margin(tokens),
            "output_tokens": sum(output_bound(one, otherwise) for one in bounds),
        }
        assert call.key is not None
        searches = self._searches_in(call.key, F_GENERATE, [(model, one["request"]) for one in requests])
        usage["web_searches"] = searches.get(model, 0)
        attempts, name = self._begin(routes)
        path = call.endpoint.upstream_path.replace("{model}", name)
        with left_on_error(attempts):
            data = await batchbodies.renamed_lines(data, document, model, name)
        return await self._make(call, "gemini_batch", model, attempts, usage, data, path=path, count=tokens)

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
                raise RefusedError(found["error"], (found["error_param"] or b"").decode() or None)
            if found["special"]:
                raise RefusedError("tool_unpriced", found["special"][0][0])
            span = found["model_span"] if found["model"] else None
        model = said.get("model") or VIDEO_MODEL
        seconds = wire_jobs.whole_seconds(said.get("seconds", VIDEO_SECONDS))
        if not isinstance(model, str):
            raise RefusedError("invalid_type", "model")
        if not 0 < seconds <= VIDEO_SECONDS_MAX:
            raise RefusedError("invalid_value", "seconds")
        rate = next((rate for rate in self._objects.config().rates if rate.model == model), None)
        if rate is not None and rate.video_sizes and said.get("size") not in (None, *rate.video_sizes):
            raise RefusedError("unsupported_feature", "size")  # a second of it costs more than the price here
        channels = await self._objects.objects.channels_of(call.account_id, [("file", name) for name in files])
        ways = self._ways(call, model, D_OPENAI, renamed=span is not None, channels=channels)
        attempts, name = self._begin(ways)
        if name != model and span is not None:
            put = name.encode() if boundary is not None else orjson.dumps(name)
            data = data[: span[0]] + put + data[span[1] :]
        usage = {"video_seconds": seconds}
        typed = [("Content-Type", call.content_type.decode("ascii"))] if boundary is not None else None
        return await self._make(call, "video", model, attempts, usage, data, count=seconds, fields=typed)

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
        seconds = wire_jobs.whole_seconds(document_in(shown.body).get("seconds"))
        seconds = seconds if 0 < seconds <= VIDEO_SECONDS_MAX else VIDEO_SECONDS
        assert call.key is not None
        attempts = self._begin_at(
            row.channel, self._ways_of(call.key, call.packed_address(), row.model, D_OPENAI), "model"
        )
        path = path_of(call.endpoint, object_id)
        usage = {"video_seconds": seconds}
        return await self._make(call, "video", row.model, attempts, usage, data, path=path, count=seconds)

    # -- responses in the background: the call came over the hot path

    async def background(self, call: Call, facts: dict[str, Any], channels: frozenset[str] | None) -> None:
        """Answers a call that asks for a response in the background. Raises RefusedError, UpstreamError, StoreError."""
        if facts["endpoint"] != "/v1/responses":
            raise RefusedError("unsupported_feature")
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
            if code:
                raise limited(code, admission)
            admission.py_release(now_ns=now_ns, forwarded=True)
        if code:
            raise RefusedError(_CODES[code])
        wanted = facts["wanted_channel"]
        routes = narrowed(
            key,
            facts["address"],
            wanted.decode("latin-1") if wanted is not None else None,
            self._ways_of(key, facts["address"], model, D_OPENAI),
        )
        rate = engine.models[facts["model"]].rate
        if facts["priority"] and (rate is None or not rate.prices_priority):
            raise RefusedError("unsupported_feature")  # what it would cost the operator has no price here
        if rate is not None and (facts["special"] or facts["web_search"]):
            asked = wire_tools.asked(F_RESPONSES, wire_tools.parsed(facts["special"]), model)
            self._judge(key, rate, asked, web_search=facts["web_search"])
        attempts, name = self._begin(_at(routes, channels))
        assert attempts.route is not None
        call.goes_to(facts["model"], attempts.route)
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
        with left_on_error(attempts):
            upstream = api.upstreams.chosen(attempts)
            job = await self._jobs.begin(
                key, "response", "/v1/responses", model, upstream, name, usage=usage, units=facts["prompt_tokens"],
                max_cost_nano=facts["max_cost_nano"], priority=facts["priority"], claim=claim,
            )  # fmt: skip
            if call.ended:  # as above
                await self._jobs.drop(job, claim)
                attempts.leave()
                return
        lines = facts["fields"].decode("latin-1").split("\r\n")
        fields = [(name, value.strip()) for name, colon, value in (line.partition(":") for line in lines) if colon]

        stream: jobstream.JobStream | None = None

        async def send() -> Answered:
            nonlocal stream
            reply = await api.upstreams.send(
                upstream, "POST", "/responses", fields=fields, data=data, attempts=attempts
            )
            if reply.status >= 300 or reply.content_type != jobstream.STREAM:
                return await whole(reply)
            stream = jobstream.JobStream(self._jobs, reply, self._objects.teller(upstream.name))
            return await stream.begin()

        try:
            answered = await self._begun(job, "response", send, claim)
        except BaseException:
            if stream is not None:
                stream.close()
            raise
        if stream is not None:
            await stream.pass_on(call, job)
            return
        self._hide(upstream.name, answered)
        passed = "".join(f"{name}: {value}\r\n" for name, value in answered.fields).encode("latin-1")
        code = 0 if answered.status < 400 else _CODES.index("upstream_error")
        call.answer(answered.status, code, passed, answered.body)


@contextmanager
def left_on_error(attempts: Attempts) -> Iterator[None]:
    """An attempt that was begun occupies its channel until somebody leaves it."""
    try:
        yield
    except BaseException:
        attempts.leave()
        raise


def _at(routes: list[Route], channels: frozenset[str] | None) -> list[Route]:
    """Of these ways those to `channels`, which have what a call names; None: it names nothing. Raises RefusedError."""
    if channels is None:
        return routes
    found = [route for route in routes if route.channel.name in channels]
    if not found:
        raise RefusedError("objects_apart")
    return found


def _boundary(call: SideCall) -> bytes | None:
    return multipart.boundary_of(call.content_type)


async def strict_object(data: bytes) -> dict[str, Any]:
    """A JSON object in which no key comes twice: what is priced is what the provider reads. Raises RefusedError."""

    try:
        large = len(data) > 1 << 20
        document = await asyncio.to_thread(strictjson.loads, data) if large else strictjson.loads(data)
    except strictjson.DuplicateKeyError:
        raise RefusedError("duplicate_key") from None
    except ValueError:
        raise RefusedError("malformed_json") from None
    if not isinstance(document, dict):
        raise RefusedError("malformed_json")
    spelt(document, READ_KEYS)
    return document


def spelt(document: Any, names: Sequence[str]) -> None:
    """Keys that are read here stand in no other letters: some servers would take those. Raises RefusedError."""
    if isinstance(document, dict) and (name := strictjson.look_alike(document, names)) is not None:
        raise RefusedError("misspelt_key", name)


def own_results_url(call: SideCall, body: bytes) -> bytes:
    """Anthropic's SDKs ask for results at the address that the batch names: it has to be this relay's."""
    request = call.request
    base = f"{request.scheme}://{request.host}".encode("ascii", "replace")
    return _RESULTS_URL.sub(lambda match: match[1] + b'"' + base + match[2] + b'"', body)


def _name_in(kind: str, body: bytes) -> str:
    if kind != "gemini_batch":
        return object_id_in(body)
    try:
        name = documents.loads(body)["name"].removeprefix("batches/")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UpstreamError("upstream_garbage") from None
    if not is_object_id(name):
        raise UpstreamError("upstream_garbage")
    return str(name)
