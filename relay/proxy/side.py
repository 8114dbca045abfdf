"""The part of the data plane that Python serves, put together: files, stored objects, jobs."""

import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from aiohttp import web

from relay._fastpath import Channel, Engine
from relay.config import Config
from relay.proxy import realtime
from relay.proxy.aside import Aside
from relay.proxy.hooks import Hooks
from relay.proxy.idempotency import IdempotencyKeys
from relay.proxy.jobs import Jobs
from relay.proxy.jobsapi import JobsApi
from relay.proxy.keyring import Keyring
from relay.proxy.objects import Objects, ObjectsApi
from relay.proxy.server import ApiServer
from relay.proxy.sidecalls import Desk, SideCall
from relay.proxy.uploading import Uploads
from relay.proxy.upstreams import Upstreams
from relay.records import MS_PER_DAY
from relay.storage import Store, StoreError
from relay.wire.endpoints import BY_NAME, Endpoint

log = logging.getLogger("relay.side")

RESPONSE_DAYS = 31  # providers keep stored responses for 30
Handler = Callable[[SideCall, str], Awaitable[web.StreamResponse]]


class Side:
    """Made once; `start` before the listeners open, `stop` when calls have ended."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        keyring: Keyring,
        hooks: Hooks,
        keys: IdempotencyKeys,
        api: ApiServer,
        tls: ssl.SSLContext,
        config: Callable[[], Config],
    ) -> None:
        self._store = store
        self._config = config
        self._api = api
        self.upstreams = Upstreams(tls, engine, hooks)
        self._objects = Objects(store, engine, self.upstreams)
        self._aside = Aside(self._objects)
        self.desk = Desk(store, engine, keyring, hooks, keys, lambda: config().timeouts.body_idle_seconds)
        handlers = ObjectsApi(store, engine, self.upstreams, self._objects, config)
        self._uploads = Uploads(handlers)
        self._handlers: dict[str, Handler] = {
            "files": lambda call, _: self._uploads.upload(call),
            "file_list": lambda call, _: handlers.list(call, "file"),
            "realtime": lambda call, _: realtime.serve(call, self.upstreams),
        }
        for name, kind in OBJECT_ENDPOINTS.items():
            self._handlers[name] = partial(_about, handlers.one, kind)
        self.jobs = Jobs(store, engine, keyring, keys, self.upstreams, config)
        jobs_api = self._jobs_api = JobsApi(handlers, self.jobs)
        handlers.shown = jobs_api.shown
        self._aside.background = jobs_api.background
        for name, method in (
            ("batches", jobs_api.batch),
            ("message_batches", jobs_api.message_batch),
            ("batch_generate_content", jobs_api.gemini_batch),
            ("videos", jobs_api.video),
            ("video_remix", jobs_api.remix),
        ):
            self._handlers[name] = method
        for name, kind in JOB_LISTS.items():
            self._handlers[name] = partial(_list, handlers, kind)
        for name, kind in JOB_ENDPOINTS.items():
            self._handlers[name] = partial(_about, jobs_api.one, kind)
        for name, kind in JOB_DELETIONS.items():
            self._handlers[name] = partial(_about, jobs_api.delete, kind)
        for name, kind in JOB_CONTENTS.items():
            self._handlers[name] = partial(_about, jobs_api.content, kind)
        api.side = self.serve
        hooks.aside = self._aside.take
        keyring.on_stop = self.desk.stop

    def configure(self, config: Config, channels: Sequence[Channel]) -> None:
        self.upstreams.configure(config, channels)
        self._api.upload_bytes_max = config.server.upload_bytes_max

    async def start(self) -> None:
        """Takes up the jobs that are open. Raises StoreError."""
        await self.jobs.start()

    async def stop(self) -> None:
        self.desk.stop()
        await self.jobs.stop()
        await self._aside.close()
        await self.upstreams.close()
        await self.flush()

    async def serve(
        self, request: web.Request, endpoint: Endpoint, object_id: str | None, query: str
    ) -> web.StreamResponse:
        """One request about objects."""
        if endpoint.name in GOOGLES and "x-goog-api-key" in request.headers:
            endpoint = BY_NAME[GOOGLES[endpoint.name]]  # Google's SDK asks under /v1 as well
        handler = self._handlers[endpoint.name]
        kind = realtime.RealtimeCall if endpoint.name == "realtime" else SideCall
        call = kind(self.desk, request, endpoint, query)
        return await self.desk.serve(call, lambda call: handler(call, object_id or ""))

    @property
    def open_calls(self) -> int:
        """Also what is being made for a client that has left: it has to get its name, or nobody is charged for it."""
        return len(self.desk.open) + self._uploads.open + self._jobs_api.open + self._aside.open

    async def flush(self) -> None:
        """Commits whose the new stored responses are."""
        try:
            await self._objects.flush()
        except StoreError as error:  # a full disk heals; what does not is told to the store's `on_fatal`
            log.warning("new objects could not be recorded (%s)", type(error).__name__)

    async def forget(self, now_ms: int) -> None:
        """Retention. Raises StoreError."""
        calls_ms = now_ms - self._config().retention.calls_days * MS_PER_DAY
        await self._store.objects.delete_before(now_ms - RESPONSE_DAYS * MS_PER_DAY, calls_ms)


GOOGLES = {"batch_get": "gemini_batch_get", "batch_list": "gemini_batch_list"}

# Requests about one object that are passed on as they are: endpoint -> kind of object.
OBJECT_ENDPOINTS = {
    "response_input_items": "response",
    "file_get": "file",
    "file_delete": "file",
    "file_content": "file",
}


# The same for jobs, by what may be done with them.
JOB_ENDPOINTS = {
    "response_get": "response",
    "response_cancel": "response",
    "batch_get": "batch",
    "batch_cancel": "batch",
    "video_get": "video",
    "message_batch_get": "message_batch",
    "message_batch_cancel": "message_batch",
    "gemini_batch_get": "gemini_batch",
    "gemini_batch_cancel": "gemini_batch",
}
JOB_DELETIONS = {
    "response_delete": "response",
    "video_delete": "video",
    "message_batch_delete": "message_batch",
    "gemini_batch_delete": "gemini_batch",
}
JOB_CONTENTS = {"video_content": "video", "message_batch_results": "message_batch"}
JOB_LISTS = {
    "batch_list": "batch",
    "video_list": "video",
    "message_batch_list": "message_batch",
    "gemini_batch_list": "gemini_batch",
}


def _about(
    method: Callable[[SideCall, str, str], Awaitable[web.StreamResponse]], kind: str, call: SideCall, object_id: str
) -> Awaitable[web.StreamResponse]:
    return method(call, kind, object_id)


def _list(handlers: ObjectsApi, kind: str, call: SideCall, _: str) -> Awaitable[web.StreamResponse]:
    return handlers.list(call, kind)
