"""Objects that live at providers: files, stored responses, batches, videos, sandboxes. Each belongs to the account that
made it.

Whose an object is stands in the store, with the channel that has it: another account gets 404, and a request about it
goes nowhere else. Lists are made of the account's own rows, each object fetched from its provider: what a provider
lists is the operator's, of all customers together.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Final

import orjson
from aiohttp import web

from relay._fastpath import Attempts, Engine
from relay.config import Config
from relay.proxy import resultfiles
from relay.proxy.sidecalls import RefusedError, SideCall
from relay.proxy.upstreams import Answered, Reply, Upstream, UpstreamError, Upstreams, whole
from relay.storage import Store
from relay.storage.rows import ObjectRow
from relay.wire import documents
from relay.wire import files as wire_files
from relay.wire.endpoints import ANSWER_JSON, D_ANTHROPIC, D_GEMINI, Endpoint
from relay.wire.paths import is_object_id

KEPT_MAX: Final = 10_000  # rows kept in memory
LIST_MAX: Final = 100
LIST_FETCHES: Final = 8  # at a time, for one list


class Objects:
    """Whose an object is. Rows that are not committed yet are found too."""

    def __init__(self, store: Store, engine: Engine, upstreams: Upstreams) -> None:
        self._store = store
        self._engine = engine
        self._upstreams = upstreams
        self._known: OrderedDict[tuple[str, str], ObjectRow] = OrderedDict()
        self._pending: list[ObjectRow] = []

    def absorb(self) -> None:
        """Takes over what the hot path has seen made: stored responses, sandboxes."""
        new, self._engine.new_objects = self._engine.new_objects, []
        for kind, object_id, account_id, key_id, channel, created_ms in new:
            name = object_id.decode("utf-8", "replace")
            if is_object_id(name) and (kind, name) not in self._known:  # answers name a sandbox again and again
                row = ObjectRow(0, kind, name, account_id, key_id, channel, created_ms)
                self._pending.append(row)
                self._remember(row)

    async def flush(self) -> None:
        """Commits what was absorbed. What cannot be committed now is tried again."""
        self.absorb()
        rows, self._pending = self._pending, []
        if rows:
            try:
                await self._store.objects.add(rows)
            except BaseException:
                self._pending = rows + self._pending
                raise

    def _remember(self, row: ObjectRow) -> None:
        self._known[row.kind, row.object_id] = row
        while len(self._known) > KEPT_MAX:
            self._known.popitem(last=False)

    async def find(self, account_id: int, kind: str, object_id: str) -> ObjectRow:
        """The row of an account's own object. Raises RefusedError: 404 as for one that never was."""
        if not is_object_id(object_id):
            raise RefusedError("object_not_found")  # not even text that the store could look for, perhaps
        self.absorb()
        row = self._known.get((kind, object_id))
        if row is None:
            row = next((r for r in self._pending if (r.kind, r.object_id) == (kind, object_id)), None)
        if row is None:
            row = await self._store.objects.find(kind, object_id)
            if row is not None:
                self._remember(row)
        if row is None or row.account_id != account_id:
            raise RefusedError("object_not_found")
        return row

    async def channels_of(
        self, account_id: int, named: Iterable[tuple[str, str]], response: str | None = None
    ) -> frozenset[str] | None:
        """The channels that have all that an account's request names; None: it names nothing. `named`: kind (file,
        container) and name.

        Raises RefusedError: something is not the account's, or it is not all in one place.
        """
        wanted = dict.fromkeys(named)
        if response is not None:
            wanted["response", response] = None
        channels: frozenset[str] | None = None
        for kind, name in wanted:
            param = _PARAMS[kind]
            try:
                row = await self.find(account_id, kind, wire_files.sandbox_id(name) if kind == "container" else name)
            except RefusedError as error:
                raise RefusedError(error.code, param) from None
            have = self._upstreams.together(row.channel)
            channels = have if channels is None else channels & have
            if not channels:
                raise RefusedError("objects_apart", param)
        return channels

    async def bind(self, row: ObjectRow) -> None:
        """Commits a new object before its client hears of it."""
        await self._store.objects.add([row])

    async def forget(self, kind: str, object_id: str) -> None:
        self._known.pop((kind, object_id), None)
        self._pending = [r for r in self._pending if (r.kind, r.object_id) != (kind, object_id)]
        await self._store.objects.remove(kind, object_id)


class ObjectsApi:
    """The handlers of paths about objects that are no jobs, and what jobs share with them."""

    def __init__(
        self, store: Store, engine: Engine, upstreams: Upstreams, objects: Objects, config: Callable[[], Config]
    ) -> None:
        self.store = store
        self.engine = engine
        self.upstreams = upstreams
        self.objects = objects
        self.config = config
        self.shown: Callable[[SideCall, ObjectRow, Answered], Awaitable[Answered]] = _as_it_is

    # -- asking the provider

    def upstream_of(self, row: ObjectRow) -> Upstream:
        """The channel that has an object. Raises RefusedError where it is not configured any more."""
        upstream = self.upstreams.by_name.get(row.channel)
        if upstream is None:
            raise RefusedError("upstream_unavailable")
        return upstream

    async def ask(
        self,
        call: SideCall,
        upstream: Upstream,
        method: str,
        path: str,
        *,
        data: bytes | AsyncIterator[bytes] | None = None,
        fields: list[tuple[str, str]] | None = None,
        query: str | None = None,
        attempts: Attempts | None = None,
        trouble: list[BaseException] | None = None,
    ) -> Reply:
        """The provider's answer, once its head is there. `attempts`, `trouble`: see Upstreams.send."""
        if attempts is None:
            attempts = self.upstreams.begin([upstream.route])
        call.channel = upstream.name
        call.sent_ns = time.monotonic_ns()
        try:
            reply = await self.upstreams.send(
                upstream,
                method,
                path,
                query=call.query if query is None else query,
                fields=[*call.fields(), *(fields or ())],
                data=data,
                attempts=attempts,
                trouble=trouble,
            )
        finally:
            call.attempts += attempts.count
        call.first_byte_ns = time.monotonic_ns()
        if reply.status < 300 and call.endpoint.answer == ANSWER_JSON:
            await reply.expect_document(or_nothing=method == "DELETE")
        return reply

    async def ask_whole(self, call: SideCall, upstream: Upstream, method: str, path: str, **more: Any) -> Answered:
        return await whole(await self.ask(call, upstream, method, path, **more))

    # -- one object

    async def one(self, call: SideCall, kind: str, object_id: str) -> web.StreamResponse:
        """GET, POST or DELETE about one object, passed on as it is."""
        row = await self.objects.find(call.account_id, kind, object_id)
        endpoint = call.endpoint
        data = await call.body(self.config().server.body_bytes_max) if endpoint.method == "POST" else None
        reply = await self.ask(call, self.upstream_of(row), endpoint.method, path_of(endpoint, object_id), data=data)
        if endpoint.method == "DELETE" and reply.status in (200, 204, 404):
            try:
                await self.objects.forget(kind, object_id)
            except BaseException:
                reply.close()
                raise
        if reply.status < 300 and resultfiles.has_results(row, endpoint.name):
            lines = resultfiles.without_operator(reply, self.teller(row.channel))
            return await call.pass_on(reply, pieces=lines)
        return await call.pass_on(reply)

    def teller(self, channel: str) -> Callable[[str], None]:
        """Tells the operator that an error about the account was hidden, by its name."""

        def tell(code: str) -> None:
            if code == "upstream_account":
                self.engine.hooks.on_event("upstream_account", None, channel)

        return tell

    # -- lists

    async def list(self, call: SideCall, kind: str) -> web.StreamResponse:
        """The account's own objects, newest first, each as its provider shows it."""
        query = call.request.query
        anthropic = call.endpoint.dialect == D_ANTHROPIC
        gemini = call.endpoint.dialect == D_GEMINI
        size = query.get("pageSize" if gemini else "limit", "20")
        if not size.isdecimal() or len(size) > 6 or int(size) < 1:
            raise RefusedError("invalid_value", "limit")
        limit = min(int(size), LIST_MAX)
        oldest_first = query.get("order") == "asc"
        after = query.get("pageToken" if gemini else "after_id" if anthropic else "after")
        before = query.get("before_id") if anthropic else None
        behind = None
        if (cursor := before or after) is not None:
            row = await self.objects.find(call.account_id, kind, cursor)
            behind = row.number or (await self._stored(kind, cursor)).number
        await self.objects.flush()
        rows = await self.store.objects.page(
            call.account_id, kind, behind=behind, limit=limit + 1, oldest_first=oldest_first != (before is not None)
        )
        more = len(rows) > limit
        rows = rows[:limit]
        if before is not None:
            rows.reverse()
        gate = asyncio.Semaphore(LIST_FETCHES)
        call.sent_ns = time.monotonic_ns()
        shown = await asyncio.gather(*(self._shown(call, gate, row) for row in rows))
        purpose = query.get("purpose") if kind == "file" else None
        data = [text for text in shown if text is not None and (purpose is None or _purpose(text) == purpose)]
        if gemini:
            tail = b',"nextPageToken":' + orjson.dumps(rows[-1].object_id) if more else b""
            return call.respond_json(b'{"operations":[' + b",".join(data) + b"]" + tail + b"}")
        ends = {
            "first_id": rows[0].object_id if rows else None,
            "last_id": rows[-1].object_id if rows else None,
            "has_more": more,
        }
        head = b"{" if anthropic else b'{"object":"list",'
        return call.respond_json(head + b'"data":[' + b",".join(data) + b"]," + orjson.dumps(ends)[1:])

    async def _stored(self, kind: str, object_id: str) -> ObjectRow:
        row = await self.store.objects.find(kind, object_id)
        if row is None:
            raise RefusedError("object_not_found")
        return row

    async def _shown(self, call: SideCall, gate: asyncio.Semaphore, row: ObjectRow) -> bytes | None:
        """One object of a list; None where its provider does not have it any more."""
        upstream = self.upstreams.by_name.get(row.channel)
        if upstream is None:
            return None
        path = OBJECT_PATHS[row.kind].replace("{id}", row.object_id)
        async with gate:
            reply = await self.upstreams.send(upstream, "GET", path, fields=call.fields())
            if reply.status < 300:
                await reply.expect_document(or_nothing=False)
            answered = await whole(reply)
        call.channel = upstream.name
        if answered.status == 404:
            await self.objects.forget(row.kind, row.object_id)
            return None
        if answered.status != 200:
            raise UpstreamError("upstream_error")
        document_in(answered.body)
        return (await self.shown(call, row, answered)).body.strip()


_PARAMS: Final = {"file": "file_id", "container": "container", "response": "previous_response_id"}


async def _as_it_is(call: SideCall, row: ObjectRow, answered: Answered) -> Answered:
    return answered


# Where one object of a kind is shown, below a channel's base_url.
OBJECT_PATHS: Final = {
    "file": "/files/{id}",
    "response": "/responses/{id}",
    "batch": "/batches/{id}",
    "video": "/videos/{id}",
    "message_batch": "/v1/messages/batches/{id}",
    "gemini_batch": "/v1beta/batches/{id}",
}


def path_of(endpoint: Endpoint, object_id: str) -> str:
    return endpoint.upstream_path.replace("{id}", object_id)


def document_in(body: bytes) -> dict[str, Any]:
    """What a provider shows of an object. Raises UpstreamError where that is none."""
    try:
        document = documents.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise UpstreamError("upstream_garbage")
    return document


def object_id_in(body: bytes) -> str:
    """The `id` of an object that a provider has made. Raises UpstreamError where there is none."""
    name = document_in(body).get("id")
    if not isinstance(name, str) or not is_object_id(name):
        raise UpstreamError("upstream_garbage")
    return name


def _purpose(text: bytes) -> str | None:
    purpose = document_in(text).get("purpose")
    return purpose if isinstance(purpose, str) else None
