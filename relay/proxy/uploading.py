"""POST /v1/files: an upload is passed on as it arrives, in pieces; the provider's pace is the client's."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

from relay._fastpath import Attempts
from relay.proxy.bodies import Body
from relay.proxy.objects import ObjectsApi, document_in, object_id_in
from relay.proxy.sidecalls import RefusedError, SideCall, narrowed
from relay.proxy.upstreams import Answered, UpstreamError, whole
from relay.storage.rows import ObjectRow
from relay.wire import multipart, uploads
from relay.wire.endpoints import D_OPENAI

ANSWER_BYTES_MAX: Final = 1 << 20
BEGINNING_BYTES_MAX: Final = 65_536  # read before its channel is chosen


class Uploads:
    """The handler; `objects` has what it shares with other paths about objects."""

    def __init__(self, objects: ObjectsApi) -> None:
        self._objects = objects
        self._tasks: set[asyncio.Task[Answered]] = set()
        self._under_way: dict[int, int] = {}  # bytes of uploads, by account
        self._ended = 0

    @property
    def open(self) -> int:
        return len(self._tasks)

    async def _room(self, account_id: int) -> "_Room":
        limit = self._objects.config().limits.files_bytes
        while True:
            ended = self._ended
            stored = await self._objects.store.objects.file_bytes(account_id) if limit else 0
            if ended == self._ended:  # else one that ended meanwhile might count neither as stored nor as under way
                return _Room(limit, stored, account_id, self._under_way)

    def _leave(self, room: "_Room") -> None:
        self._ended += 1
        room.leave()

    async def upload(self, call: SideCall) -> web.StreamResponse:
        """Raises RefusedError, UpstreamError, StoreError."""
        request = call.request
        bytes_max = self._objects.config().server.upload_bytes_max
        length = request.content_length
        if length is not None and length > bytes_max:
            raise RefusedError("body_too_large")
        if call.compressed:
            raise RefusedError("unsupported_encoding")  # it passes as it arrives
        boundary = multipart.boundary_of(call.content_type)
        if boundary is None:
            raise RefusedError("invalid_value", "content-type")
        # A repeat is refused before its bytes are there: what is known of them is how many will come.
        await call.claim_key(None if length is None else b"%d" % length)
        room = await self._room(call.account_id)
        upload = _Upload(self._objects, call, boundary, bytes_max, room)
        room.take(length or 0)
        task = asyncio.create_task(upload.run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._leave(room))
        try:
            return call.respond(await asyncio.shield(task))
        except asyncio.CancelledError:
            if not upload.complete:  # what the provider has is no whole file
                task.cancel()
            raise


class _Room:
    """What one upload takes of its account's `limits.files_bytes`, while it is under way."""

    def __init__(self, limit: int, stored: int, account_id: int, under_way: dict[int, int]) -> None:
        self._limit = limit
        self._stored = stored
        self._account_id = account_id
        self._under_way = under_way
        self._taken = 0

    def take(self, size: int) -> None:
        """The upload has at least `size` bytes. Raises RefusedError."""
        if not self._limit or size <= self._taken:
            return
        under_way = self._under_way.get(self._account_id, 0)
        used = self._stored + under_way - self._taken
        if used + size > self._limit:
            raise RefusedError(
                "files_limit", f"{used} of {self._limit} bytes are in use, and this upload has {size} or more"
            )
        self._under_way[self._account_id] = under_way + size - self._taken
        self._taken = size

    def leave(self) -> None:
        left = self._under_way.pop(self._account_id, 0) - self._taken
        if left > 0:
            self._under_way[self._account_id] = left
        self._taken = 0


class _Upload:
    """One upload. `complete`: all of it is here and goes on, so its file gets an owner, whether the client waits or
    not."""

    def __init__(self, objects: ObjectsApi, call: SideCall, boundary: bytes, bytes_max: int, room: _Room) -> None:
        self._objects = objects
        self._call = call
        self._bytes_max = bytes_max
        self._room = room
        self._size = 0
        self._reader = uploads.UploadReader(
            boundary, objects.engine.default_tables[D_OPENAI], objects.config().billing.hold_output_tokens
        )
        self._trouble: list[BaseException] = []
        self.complete = False

    async def run(self) -> Answered:
        """The provider's answer. Raises RefusedError, UpstreamError, StoreError, ConnectionError."""
        call = self._call
        length = call.request.content_length
        framing = [("Content-Type", call.content_type.decode("ascii"))]
        if length is not None:
            framing.append(("Content-Length", str(length)))
        rest = self._pieces()
        try:
            begun = await self._beginning(rest)
            attempts = self._place()
            upstream = self._objects.upstreams.chosen(attempts)
            reply = await self._objects.ask(
                call,
                upstream,
                "POST",
                "/files",
                data=_joined(begun, rest),
                fields=framing,
                attempts=attempts,
                trouble=self._trouble,
            )
        except RefusedError:  # a small upload was complete, and its key bound, before there was a place for it
            await call.free_key()
            raise
        except (UpstreamError, ConnectionResetError) as error:
            if isinstance(error, UpstreamError) and not error.processed:
                await call.free_key()  # a small upload was complete before its provider was asked
            if self._trouble:
                raise self._trouble[0] from None
            raise
        answered = await whole(reply, ANSWER_BYTES_MAX)
        if answered.status >= 300:
            await call.free_key()
            return answered
        if not self.complete:
            await call.bind_key()
        await self._bind(object_id_in(answered.body), upstream.name, size_in(answered.body, self._size))
        return answered

    async def _beginning(self, pieces: AsyncIterator[bytes]) -> list[bytes]:
        """As much as tells which model it is for, if that is near its beginning."""
        begun: list[bytes] = []
        async for data in pieces:
            begun.append(data)
            if not self._reader.undecided or sum(map(len, begun)) >= BEGINNING_BYTES_MAX:
                break
        return begun

    def _place(self) -> Attempts:
        """Where a new file goes. One for batches is made for a model: the choice is among the channels that can work on
        it. Any other is used by requests that nobody knows yet, so all go to the first channel that is in use."""
        call, upstreams, model = self._call, self._objects.upstreams, self._reader.model
        assert call.key is not None
        models = self._objects.engine.models
        known = models.get(model.encode("utf-8", "replace")) if model is not None else None
        named = {
            route.channel.name
            for route in (known.routes_of(D_OPENAI) if known is not None else ())
            if route.upstream_model == model
        }
        routes = [upstream.route for upstream in upstreams.of_dialect(D_OPENAI) if not named or upstream.name in named]
        routes = narrowed(call.key, call.packed_address(), call.wanted_channel, routes)
        return upstreams.begin(routes) if named else upstreams.begin_in_order(routes)

    async def _pieces(self) -> AsyncIterator[bytes]:
        call = self._call
        length = call.request.content_length
        body = Body(call.request, call.desk.body_idle_seconds())
        try:
            while True:
                data = await body.next()
                if body.size > self._bytes_max:
                    raise RefusedError("body_too_large")
                self._room.take(body.size)
                self._size = body.size
                if not self.complete and (body.size == length if length is not None else not data):
                    self.complete = True  # from here on it is made, or its key would be bound to nothing
                    await call.bind_key()
                if not data:
                    return
                self._reader.feed(data)
                yield data
        except TimeoutError:
            self._trouble.append(RefusedError("body_timeout"))
            raise ConnectionResetError from None
        except BaseException as error:
            self._trouble.append(error)
            raise

    async def _bind(self, object_id: str, channel: str, size: int) -> None:
        """Whose the new file is, and what its lines ask for, where it is one for batches."""
        call = self._call
        assert call.key is not None
        facts = self._reader.facts()
        if facts.files:
            try:
                channels = await self._objects.objects.channels_of(call.account_id, facts.files)
            except RefusedError:
                channels = None
            if channels is None or channel not in channels:
                facts = uploads.BatchFacts()  # no batch is made of what names other people's files
        await self._objects.objects.bind(
            ObjectRow(
                0,
                "file",
                object_id,
                call.account_id,
                call.key.key_id,
                channel,
                time.time_ns() // 1_000_000,
                facts.model,
                facts.requests,
                facts.prompt_tokens,
                facts.output_tokens,
                size,
            )
        )


def size_in(body: bytes, form_bytes: int) -> int:
    """How large the provider says that a new file is; not more than the form that it came in."""
    size = document_in(body).get("bytes")
    return size if isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= form_bytes else form_bytes


async def _joined(begun: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for data in begun:
        yield data
    begun.clear()
    async for data in rest:
        yield data
