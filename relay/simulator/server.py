"""The HTTP server of the simulator."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from relay.simulator import (
    anthropic_messages,
    catalogue,
    gemini,
    openai_chat,
    openai_media,
    openai_other,
    openai_responses,
    realtime,
)
from relay.simulator.answer import Answer, Refused
from relay.simulator.book import Book, Entry
from relay.simulator.directives import DirectiveError, Directives, directives_of
from relay.simulator.errors import error_answer, kind_of, openai_key_message, own_account_message
from relay.simulator.files import Files
from relay.simulator.headers import provider_headers
from relay.simulator.jobs import SimulatedJobs
from relay.simulator.sending import Sender

_BODY_BYTES_MAX = 1 << 30

KeyCheck = Callable[[str], bool]


def simulated_key(key: str) -> bool:
    """The default: keys that could not belong to a real provider."""
    return key.startswith("sim-")


@dataclass(slots=True)
class Settings:
    """What holds for all requests; may be changed while the simulator runs."""

    keys: KeyCheck = simulated_key
    defaults: str = ""  # directives for requests that do not say otherwise
    models: frozenset[str] | None = None  # None: every model exists, except names that begin with `missing-`
    book: Book = field(default_factory=Book)
    stored: dict[str, bytes] = field(default_factory=dict)  # Responses that can be fetched again
    files: Files = field(default_factory=Files)
    jobs: SimulatedJobs = field(default_factory=SimulatedJobs)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)


SETTINGS: web.AppKey[Settings] = web.AppKey("settings", Settings)


class Running:
    """A simulator that serves. `defaults` may be changed at any time."""

    def __init__(self, runner: web.AppRunner, settings: Settings, host: str, port: int) -> None:
        self._runner = runner
        self._settings = settings
        self.host = host
        self.port = port

    @property
    def base_url(self) -> str:
        """For Anthropic and Gemini SDKs; OpenAI's want `/v1` behind it."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    @property
    def book(self) -> Book:
        return self._settings.book

    @property
    def defaults(self) -> str:
        return self._settings.defaults

    @defaults.setter
    def defaults(self, directives: str) -> None:
        directives_of(b"", defaults=directives)
        self._settings.defaults = directives

    async def stop(self) -> None:
        """Stops listening and drops the requests in flight."""
        for site in list(self._runner.sites):
            await site.stop()
        for task in list(self._settings.tasks):
            task.cancel()
        await asyncio.gather(*self._settings.tasks, return_exceptions=True)
        await self._runner.cleanup()


def create_app(
    *,
    keys: Collection[str] | KeyCheck | None = None,
    defaults: str = "",
    models: Collection[str] | None = None,
    keep_bodies: bool = True,
) -> web.Application:
    """The simulator as an application.

    `keys`: the accepted upstream keys, or a function that tells. `defaults`: directives for requests that do not say
    otherwise. `models`: the models that exist, None for all. `keep_bodies`: the book keeps what was received and sent.
    """
    check: KeyCheck
    if keys is None:
        check = simulated_key
    elif callable(keys):
        check = keys
    else:
        check = frozenset(keys).__contains__
    directives_of(b"", defaults=defaults)
    settings = Settings(check, defaults, frozenset(models) if models is not None else None, Book(keep_bodies))
    app = web.Application(client_max_size=_BODY_BYTES_MAX)
    app[SETTINGS] = settings
    app.router.add_route("GET", "/sim/book", _show_book)
    app.router.add_route("DELETE", "/sim/book", _clear_book)
    app.router.add_route("PUT", "/sim/defaults", _set_defaults)
    app.router.add_route("*", "/{path:.*}", _serve)
    return app


async def start(
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    keys: Collection[str] | KeyCheck | None = None,
    defaults: str = "",
    models: Collection[str] | None = None,
    keep_bodies: bool = True,
) -> Running:
    """Serves on `host:port` (0: any free port) in the running loop."""
    app = create_app(keys=keys, defaults=defaults, models=models, keep_bodies=keep_bodies)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    listener = socket.create_server(
        (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=4096
    )
    await web.SockSite(runner, listener).start()
    return Running(runner, app[SETTINGS], host, listener.getsockname()[1])


async def _show_book(request: web.Request) -> web.Response:
    latest = int(request.query.get("latest", "100"))
    return web.Response(body=orjson.dumps(request.app[SETTINGS].book.plain(latest)), content_type="application/json")


async def _clear_book(request: web.Request) -> web.Response:
    request.app[SETTINGS].book.clear()
    return web.Response(status=204)


async def _set_defaults(request: web.Request) -> web.Response:
    text = (await request.text()).strip()
    try:
        directives_of(b"", defaults=text)
    except DirectiveError as error:
        return web.Response(status=400, text=str(error))
    request.app[SETTINGS].defaults = text
    return web.Response(status=204)


async def _serve(request: web.Request) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    book = settings.book
    headers = [(name.lower(), value) for name, value in request.headers.items()]
    entry = book.begin(request.method, request.raw_path, headers)
    task = asyncio.current_task()
    assert task is not None
    settings.tasks.add(task)
    try:
        body = await request.read()
        book.received(entry, body)
        return await _answer(request, settings, entry, body)
    except (ConnectionError, web.RequestPayloadError):
        book.end(entry, "aborted")
        raise
    except asyncio.CancelledError:
        book.end(entry, "aborted" if request.transport is None else "stopped")
        raise
    finally:
        book.end(entry, "failed")  # does nothing when it has ended as it should
        settings.tasks.discard(task)


async def _answer(request: web.Request, settings: Settings, entry: Entry, body: bytes) -> web.StreamResponse:
    route = catalogue.route_of(request.method, request.path, request.headers)
    dialect = route.dialect
    request_id = ("req_" if dialect != "anthropic" else "req_01") + f"{entry.number:024x}"
    array = dialect == "gemini" and route.name == "stream" and request.query.get("alt") != "sse"
    d = Directives()
    try:
        try:
            d = directives_of(body, request.headers.get("x-sim", ""), settings.defaults)
        except DirectiveError as error:
            raise Refused(400, "invalid", str(error)) from None
        if route.name != "probe":
            _check_key(request, dialect, settings.keys)
        if d.status:
            kind = d.error or kind_of(d.status)
            raise Refused(d.status, kind, own_account_message(dialect, kind))
        if route.name == "realtime":
            model = request.query.get("model", "")
            if not model:
                raise Refused(400, "invalid", "You must provide a model parameter.", "model", "missing_model")
            catalogue.check_model(dialect, model, settings.models)
            if not d.garbage and d.cut_head < 0:
                return await realtime.serve(request, entry, settings.book, model, d, settings.defaults)
            answer = Answer(426, "text/plain")  # none of it will be seen
        else:
            answer = _make(request, settings, entry, route, d, body)
    except Refused as refused:
        answer = error_answer(dialect, refused, request_id, d.retry_after, array)
    entry.model = answer.model
    entry.stream = answer.events is not None
    entry.usage = answer.usage
    entry.input_tokens = answer.input_tokens
    entry.cached_tokens = answer.cached_tokens
    entry.output_tokens = answer.output_tokens
    entry.reasoning_tokens = answer.reasoning_tokens
    lines = provider_headers(dialect, answer.content_type, request_id)
    sender = Sender(request, entry, settings.book, d)
    try:
        return await sender.send(answer, lines)
    finally:
        sender.count_said()


def _check_key(request: web.Request, dialect: str, accepted: KeyCheck) -> None:
    """Looks where the provider looks, and nowhere else. Raises Refused as it would."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    bearer = bearer.strip() if scheme.lower() == "bearer" else ""
    if dialect == "gemini":
        key = request.headers.get("x-goog-api-key") or request.query.get("key", "")
        if key:
            if not accepted(key):
                raise Refused(400, "key", "API key not valid. Please pass a valid API key.")
        elif bearer:
            if not accepted(bearer):
                raise Refused(401, "key", "Request had invalid authentication credentials.")
        else:
            raise Refused(
                403, "permission", "Method doesn't allow unregistered callers (callers without established identity)."
            )
        return
    if dialect == "anthropic":
        key = request.headers.get("x-api-key", "") or bearer
        if not key:
            raise Refused(401, "key", "x-api-key header is required")
        if not accepted(key):
            raise Refused(401, "key", "invalid x-api-key")
        if not request.headers.get("anthropic-version"):
            raise Refused(400, "invalid", "anthropic-version: header is required")
        return
    if not bearer:
        raise Refused(401, "key", "You didn't provide an API key.")
    if not accepted(bearer):
        raise Refused(401, "key", openai_key_message(bearer))


def _parse(body: bytes, dialect: str) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if dialect == "openai":
            raise Refused(400, "invalid", "We could not parse the JSON body of your request.") from None
        if dialect == "anthropic":
            raise Refused(400, "invalid", f"The request body is not valid JSON: {error.msg}") from None
        raise Refused(400, "invalid", f"Invalid JSON payload received. {error.msg}") from None
    if not isinstance(value, dict):
        raise Refused(400, "invalid", "The request body must be a JSON object.")
    return value


def _make(
    request: web.Request, settings: Settings, entry: Entry, route: catalogue.Route, d: Directives, body: bytes
) -> Answer:
    number = entry.number
    match route.name:
        case "probe":
            return Answer(200, "text/plain", b"")
        case "unknown":
            raise Refused(404, "not_found", f"Invalid URL ({request.method} {request.path})", code="unknown_url")
        case "models":
            return catalogue.models(route.dialect, settings.models)
        case "model":
            return catalogue.model(route.dialect, route.model, settings.models)
        case "jobs":
            return _job(request, settings, d, number, body)
        case "stored" if f"/v1/responses/{route.model.partition('/')[0]}" in settings.jobs.kept:
            if request.method == "GET" and request.query.get("stream") == "true" and "/" not in route.model:
                return settings.jobs.resumed(request.path, request.query.get("starting_after", "-1"))
            return settings.jobs.serve("/v1/responses", request.method, route.model)
        case "stored":
            return openai_responses.stored(settings.stored, request.method, route.model)
        case "files":
            return settings.files.serve(request.method, route.model, number, body)
        case "image_edits" if request.content_type == "application/json":
            return openai_media.images(_parse(body, "openai"), d, number, "image_edit")
        case "transcriptions" | "translations" | "image_edits" | "image_variations":
            return openai_media.multipart(route.name, d, number, body)
    parsed = _parse(body, route.dialect)
    model = route.model or parsed.get("model")
    if isinstance(model, str):
        catalogue.check_model(route.dialect, model, settings.models)
    match route.name:
        case "chat":
            return openai_chat.chat(parsed, d, number)
        case "completions":
            return openai_chat.completions(parsed, d, number)
        case "gemini_batch":
            return settings.jobs.gemini_batch(parsed, body, number, route.model)
        case "responses" if parsed.get("background"):
            return settings.jobs.background(parsed, d, number, settings.stored)
        case "responses":
            return openai_responses.responses(parsed, d, number, settings.stored)
        case "compact" | "input_tokens":
            return openai_responses.about(route.name, parsed, d, number)
        case "messages":
            return anthropic_messages.messages(parsed, d, number)
        case "count_tokens":
            return anthropic_messages.count_tokens(parsed, d, number)
        case "images":
            return openai_media.images(parsed, d, number)
        case "speech":
            return openai_media.speech(parsed, d, number)
        case "generate" | "stream":
            stream = route.name == "stream"
            return gemini.generate(parsed, d, number, route.model, stream, request.query.get("alt") == "sse")
        case "gemini_count":
            return gemini.count_tokens(parsed, d, number, route.model)
        case "gemini_embed" | "gemini_batch_embed":
            return gemini.embed(parsed, d, number, route.model, route.name == "gemini_batch_embed")
    return openai_other.answer(route.name, parsed, d, number)


def _job(request: web.Request, settings: Settings, d: Directives, number: int, body: bytes) -> Answer:
    base = next(base for base in catalogue.JOB_PATHS[::-1] if request.path.startswith(base))
    rest = request.path[len(base) :].strip("/")
    if request.method == "POST" and not rest:
        if base == "/v1/batches":
            return settings.jobs.batch(_parse(body, "openai"), d, number, settings.files)
        if base == "/v1/videos":
            return settings.jobs.video(body, request.content_type, d, number)
        return settings.jobs.message_batch(
            _parse(body, "anthropic"), body, number, f"{request.scheme}://{request.host}"
        )
    if request.method == "POST" and rest.endswith("/remix"):
        return settings.jobs.video(body, "application/json", d, number, request.path.removesuffix("/remix"))
    return settings.jobs.serve(base, request.method, rest)


async def serve_forever(host: str, port: int, **options: Any) -> None:
    """Serves until cancelled."""
    running = await start(host, port, **options)
    print(f"simulator on {running.base_url}", flush=True)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
    finally:
        await running.stop()
