"""Jobs: batches, videos, responses in the background: what a provider works on after the call has been answered.

A job is a row in the store before its provider is asked: hold, rate card, owner. It ends once, when a terminal status
is seen, by its client's request or by the poller here, or when its time is up: then its hold is settled or released,
and the call record of its ending is committed in the same transaction in which the row ends. Killed in between, the row
is still open at the next start, and the ending is found again.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Final

import aiohttp

from relay._fastpath import ApiKey, Engine, JobHold, Rate
from relay.config import Config
from relay.policy import pricing
from relay.proxy.idempotency import IdempotencyKeys
from relay.proxy.keyring import Keyring
from relay.proxy.objects import OBJECT_PATHS
from relay.proxy.sidecalls import RefusedError, record
from relay.proxy.upstreams import Answered, Upstream, UpstreamError, Upstreams
from relay.records import CallRecord
from relay.storage import Store, StoreError
from relay.storage.rows import JobRow, KeyClaim, ObjectRow
from relay.wire import jobs as wire_jobs
from relay.wire.endpoints import D_ANTHROPIC

log = logging.getLogger("relay.jobs")

POLL_SECONDS_MAX: Final = 300.0
POLL_GROWTH: Final = 1.5
LINE_BYTES_MAX: Final = 64 << 20
BATCH_SERVICE: Final = pricing.SERVICES.index("batch")


class Job:
    """A job that has not ended, in memory."""

    def __init__(self, row: JobRow, rate: Rate, hold: JobHold) -> None:
        self.row = row
        self.rate = rate
        self.hold = hold
        self.ending: CallRecord | None = None  # decided, and not committed yet
        self.lock = asyncio.Lock()
        self.poll_seconds = 0.0
        self.next_poll = 0.0


class Jobs:
    """All open jobs. Made once; `start` before the listeners open."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        keyring: Keyring,
        keys: IdempotencyKeys,
        upstreams: Upstreams,
        config: Callable[[], Config],
    ) -> None:
        self._store = store
        self._engine = engine
        self._keyring = keyring
        self._keys = keys
        self._upstreams = upstreams
        self._config = config
        self._open: dict[int, Job] = {}
        self._by_object: dict[tuple[str, str], Job] = {}
        self._poller: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Takes up what was open when the last process ended: its holds count before anything is admitted."""
        rows = await self._store.objects.open_jobs()
        if rows:
            self._engine.continue_ids(max(row.id for row in rows))
        for row in rows:
            card = await self._store.rate_card(row.rate_card)
            if card is None:  # cannot be: a card is stored before its first call
                log.error("job %d names a rate card that is not stored", row.id)
                continue
            balance = await self._keyring.load_balance(row.account_id)
            hold = JobHold(balance, (), row.hold_nano, partial=True)
            job = Job(row, pricing.rate_on_card(card.body, row.rate_card, row.model, whole=_is_batch(row)), hold)
            self._open[row.id] = job
            if row.object_id is None:
                # Nobody knows under which name its provider has it, if it does.
                await self._end(job, None, "recovered")
            else:
                self._by_object[row.kind, row.object_id] = job
        self._poller = asyncio.get_running_loop().create_task(self._poll())

    async def stop(self) -> None:
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    @property
    def open(self) -> int:
        return len(self._open)

    def find(self, kind: str, object_id: str) -> Job | None:
        return self._by_object.get((kind, object_id))

    # -- beginning

    async def begin(
        self,
        key: ApiKey,
        kind: str,
        path: str,
        model: str,
        upstream: Upstream,
        upstream_model: str,
        *,
        usage: wire_jobs.Usage,
        units: int = 0,
        max_cost_nano: int = -1,
        expire_hours: float | None = None,
        claim: KeyClaim | None = None,
    ) -> Job:
        """Holds what the job may cost and writes it down, with the caller's Idempotency-Key. `usage`: the bound.
        Raises RefusedError, StoreError."""
        known = self._engine.models.get(model.encode())
        rate = known.rate if known is not None else None
        if rate is None:
            raise RefusedError("model_unpriced")
        card = await self._store.rate_card(rate.card)
        if card is None:
            raise RefusedError("store_unavailable")
        rate = pricing.rate_on_card(card.body, rate.card, model, whole=kind in wire_jobs.BATCHES)
        cost = rate.cost(**usage, service=BATCH_SERVICE if kind in wire_jobs.BATCHES else 0)
        wall_ns = time.time_ns()
        if 0 <= max_cost_nano < cost:
            raise RefusedError("max_cost")
        for scope in key.scopes:
            state = scope.state(time.monotonic_ns(), wall_ns)
            for name, spent, code in (
                ("monthly_cap_nano", "spent_month_nano", "monthly_limit"),
                ("daily_cap_nano", "spent_day_nano", "daily_limit"),
            ):
                if state[name] and state[spent] + state["reserved_nano"] + cost > state[name]:
                    raise RefusedError(code, scope.kind)
        try:
            hold = JobHold(key.balance, key.scopes, cost)
        except ValueError:
            raise RefusedError("insufficient_balance") from None
        hours = self._config().jobs.expire_hours if expire_hours is None else expire_hours
        row = JobRow(
            id=self._engine.next_id(),
            kind=kind,
            object_id=None,
            account_id=key.account_id,
            organisation_id=key.organisation_id,
            key_id=key.key_id,
            channel=upstream.name,
            path=path,
            model=model,
            upstream_model=upstream_model,
            rate_card=rate.card,
            hold_nano=cost,
            max_cost_nano=max_cost_nano,
            units=units,
            created_ms=wall_ns // 1_000_000,
            expires_ms=wall_ns // 1_000_000 + round(hours * 3_600_000),
        )
        try:
            async with self._keys.binding(claim) if claim is not None else nullcontext():
                await self._store.objects.begin_job(row, claim)
        except BaseException:
            hold.release()
            raise
        job = self._open[row.id] = Job(row, rate, hold)
        return job

    async def named(self, job: Job, object_id: str, answered: Answered) -> None:
        """The provider has taken the job. Its answer may say already that it has ended."""
        from msgspec.structs import replace

        job.row = replace(job.row, object_id=object_id)
        row = job.row
        bound = ObjectRow(0, row.kind, object_id, row.account_id, row.key_id, row.channel, row.created_ms, row.model)
        self._by_object[row.kind, object_id] = job
        await self._store.objects.name_job(row, bound)
        await self.seen(row.kind, object_id, answered.body)

    async def drop(self, job: Job, claim: KeyClaim | None = None) -> None:
        """The provider has not taken the job: nothing was held, as far as the books go.

        `claim`: the caller's key, where it is certain that nothing was made.
        """
        if job.row.id in self._open:
            del self._open[job.row.id]
            job.hold.release()
            await self._store.objects.drop_job(job.row.id, claim)

    # -- ending

    async def seen(self, kind: str, object_id: str, body: bytes) -> None:
        """A provider's document about an object has come by: if it ends a job, the job ends before it goes on."""
        job = self._by_object.get((kind, object_id))
        if job is None:
            return
        if kind == "batch":
            await self._bind_files(job.row, body)
        ended = wire_jobs.read(kind, body, self._engine.default_tables[0])
        if ended is None:
            return
        async with job.lock:
            if job.row.id not in self._open or job.ending is not None:
                return
            usage = ended.usage
            if ended.files:
                usage = await self._read_results(job.row, ended.files)
            if ended.failed:
                await self._end(job, None, "upstream_error")
            elif usage is None:
                estimated = {"video_seconds": job.row.units} if kind == "video" else {"input_tokens": job.row.units}
                await self._end(job, estimated, None, source="estimated")
            else:
                await self._end(job, usage, None)

    async def look(self, job: Job) -> None:
        """Asks the provider for the job. Raises UpstreamError."""
        row = job.row
        if job.ending is not None:
            await self._commit(job)
            return
        upstream = self._upstreams.by_name.get(row.channel)
        if upstream is None or row.object_id is None:
            return
        answered = await self._upstreams.fetch(
            upstream, "GET", OBJECT_PATHS[row.kind].replace("{id}", row.object_id), fields=own_fields(upstream)
        )
        if answered.status == 200:
            await self.seen(row.kind, row.object_id, answered.body)

    async def _read_results(self, row: JobRow, files: tuple[str, ...]) -> wire_jobs.Usage:
        """The sum of what the lines of a batch's results report. Raises UpstreamError: then it is tried again."""
        upstream = self._upstreams.by_name.get(row.channel)
        if upstream is None:
            raise UpstreamError("upstream_unavailable")
        total: wire_jobs.Usage = {}
        for name in files:
            path = f"/v1/messages/batches/{row.object_id}/results" if name == "results" else f"/files/{name}/content"
            answer = await self._upstreams.send(upstream, "GET", path, fields=own_fields(upstream))
            try:
                if answer.status != 200:
                    raise UpstreamError("upstream_error")
                line = bytearray()
                async for data in answer.content.iter_any():
                    line += data
                    while (end := line.find(b"\n")) >= 0:
                        self._add_line(row, total, bytes(line[:end]))
                        del line[: end + 1]
                    if len(line) > LINE_BYTES_MAX:
                        raise UpstreamError("upstream_garbage")
                self._add_line(row, total, bytes(line))
            except (TimeoutError, aiohttp.ClientError, OSError):
                raise UpstreamError("upstream_failed") from None
            finally:
                answer.close()
        return total

    def _add_line(self, row: JobRow, total: wire_jobs.Usage, line: bytes) -> None:
        if line.strip():
            wire_jobs.add(total, [wire_jobs.line_usage(row.kind, line, self._engine.default_tables[0])])

    async def _bind_files(self, row: JobRow, body: bytes) -> None:
        """The files that a batch makes are its owner's, before the owner hears of them."""
        rows = [
            ObjectRow(0, "file", name, row.account_id, row.key_id, row.channel, time.time_ns() // 1_000_000)
            for name in wire_jobs.files_of(body)
            if len(name) <= 128
        ]
        if rows:
            await self._store.objects.add(rows)

    async def _end(self, job: Job, usage: wire_jobs.Usage | None, code: str | None, source: str = "upstream") -> None:
        """The one ending of a job: charged by its card, or released. Decided here, then committed until it is."""
        row = job.row
        service = BATCH_SERVICE if _is_batch(row) else 0
        cost = written_off = 0
        if usage is None:
            job.hold.release()
        else:
            cost = job.rate.cost(**usage, service=service)
            written_off = job.hold.settle(cost, row.max_cost_nano, time.time_ns())
        now_ms = time.time_ns() // 1_000_000
        fields = record(
            row.id,
            row.account_id,
            row.organisation_id,
            row.key_id,
            path=row.path,
            model=row.model,
            upstream_model=row.upstream_model,
            channel=row.channel,
            status=200,
            error_code=code,
            usage=usage,
            source=source if usage is not None else "none",
            cost_nano=cost,
            rate_card=row.rate_card,
            latency_us=max(now_ms - row.created_ms, 0) * 1000,
            written_off_nano=written_off,
        )
        used = usage or {}
        hour, audio_in, audio_out, image_in = (
            used.get(name, 0)
            for name in ("cache_write_1h_tokens", "audio_input_tokens", "audio_output_tokens", "image_input_tokens")
        )
        if usage is not None and (hour or audio_in or audio_out or image_in or service):
            fields = (*fields, (hour, audio_in, audio_out, image_in, service, None, 0))
        job.ending = fields
        await self._commit(job)

    async def _commit(self, job: Job) -> None:
        assert job.ending is not None
        try:
            await self._store.objects.end_job(job.ending)
        except StoreError as error:  # tried again by the poller; on the next start the row is open still
            log.warning("the ending of a job could not be recorded (%s)", type(error).__name__)
            return
        self._open.pop(job.row.id, None)
        if job.row.object_id is not None:
            self._by_object.pop((job.row.kind, job.row.object_id), None)

    # -- the poller

    async def _poll(self) -> None:
        while True:
            base = self._config().jobs.poll_seconds
            await asyncio.sleep(min(base, 1.0))
            now = asyncio.get_running_loop().time()
            for job in list(self._open.values()):
                if job.row.object_id is None or job.next_poll > now:
                    continue
                if job.next_poll == 0.0 and job.ending is None:  # it was begun just now
                    job.next_poll = now + base
                    continue
                job.poll_seconds = min(max(job.poll_seconds * POLL_GROWTH, base), max(base, POLL_SECONDS_MAX))
                job.next_poll = now + job.poll_seconds
                await self._poll_one(job)

    async def _poll_one(self, job: Job) -> None:
        try:
            await self.look(job)
        except (UpstreamError, StoreError) as error:
            log.warning("job of channel %s could not be looked at (%s)", job.row.channel, type(error).__name__)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.error("looking at a job failed (%s)", type(error).__name__)
        if job.row.id in self._open and job.ending is None and time.time_ns() // 1_000_000 >= job.row.expires_ms:
            async with job.lock:
                if job.row.id in self._open and job.ending is None:
                    log.warning("a job of channel %s has expired; its hold is released", job.row.channel)
                    await self._end(job, None, "upstream_timeout")


def _is_batch(row: JobRow) -> bool:
    return row.kind in wire_jobs.BATCHES


def own_fields(upstream: Upstream) -> list[tuple[str, str]]:
    """What the relay's own requests have to say."""
    return [("anthropic-version", "2023-06-01")] if upstream.dialect == D_ANTHROPIC else []
