"""Jobs: batches, videos, responses in the background: what a provider works on after the call has been answered.

A job is a row in the store before its provider is asked: hold, rate card, owner. It ends once, when a terminal status
is seen, by its client's request or by the poller here, or when its time is up: then its hold is settled or released,
and the call record of its ending is committed in the same transaction in which the row ends. Killed in between, the row
is still open at the next start, and the ending is found again.

A batch may be for several models. It is one job with one hold, and each model's requests are its part of the job: held
for by its own prices, summed up over its own results, and charged in a record of its own, all in one transaction.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Final

from msgspec.structs import replace

from relay._fastpath import ApiKey, Engine, JobHold
from relay.config import Config
from relay.policy import pricing
from relay.proxy import jobparts
from relay.proxy.idempotency import IdempotencyKeys
from relay.proxy.jobparts import Asked, Part
from relay.proxy.keyring import Keyring
from relay.proxy.objects import OBJECT_PATHS
from relay.proxy.sidecalls import RefusedError
from relay.proxy.upstreams import Answered, Upstream, UpstreamError, Upstreams
from relay.records import C_COST_NANO, C_ERROR_CODE, CallRecord, call_day
from relay.storage import Store, StoreError
from relay.storage.rows import JobPart, JobRow, KeyClaim, ObjectRow
from relay.wire import jobs as wire_jobs
from relay.wire.endpoints import D_ANTHROPIC
from relay.wire.paths import is_object_id

log = logging.getLogger("relay.jobs")

POLL_SECONDS_MAX: Final = 300.0
POLL_GROWTH: Final = 1.5
OUT_OF_BOUNDS: Final = (("output_tokens", "above_bound", 0, 0),)
OUTCOMES: Final = {None: "charged", "upstream_error": "failed", "upstream_timeout": "expired", "recovered": "lost"}


class Job:
    """A job that has not ended, in memory."""

    def __init__(self, row: JobRow, parts: Sequence[Part], hold: JobHold) -> None:
        self.row = row
        self.parts = parts
        self.hold = hold
        self.ending: list[CallRecord] = []  # decided, and not committed yet
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
        # For /metrics, since the process began.
        self.ended_total: Counter[tuple[str, str]] = Counter()  # (kind, outcome)
        self.cost_nano_total: Counter[str] = Counter()  # by kind
        self.polls_total: Counter[tuple[str, bool]] = Counter()  # (kind, whether it failed)

    async def start(self) -> None:
        """Takes up what was open when the last process ended: its holds count before anything is admitted."""
        rows = await self._store.objects.open_jobs()
        if rows:
            more: dict[int, list[JobPart]] = {}
            for part in await self._store.objects.open_parts():
                more.setdefault(part.job_id, []).append(part)
            self._engine.continue_ids(
                max([row.id for row in rows] + [part.record_id for parts in more.values() for part in parts])
            )
        for row in rows:
            card = await self._store.rate_card(row.rate_card)
            if card is None:  # cannot be: a card is stored before its first call
                log.error("job %d names a rate card that is not stored", row.id)
                continue
            balance = await self._keyring.load_balance(row.account_id)
            hold = JobHold(balance, (), row.hold_nano, partial=True)
            job = Job(row, jobparts.of_row(card.body, row, more.get(row.id, ())), hold)
            self._open[row.id] = job
            if row.object_id is None:
                # Nobody knows under which name its provider has it, if it does.
                await self._end(job, [], "recovered")
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

    def open_by_kind(self) -> dict[str, tuple[int, int, int]]:
        """How many are open, what they hold in nano-credits, and when the oldest began in Unix milliseconds."""
        found: dict[str, tuple[int, int, int]] = {}
        for job in self._open.values():
            count, held, oldest = found.get(job.row.kind, (0, 0, job.row.created_ms))
            found[job.row.kind] = (count + 1, held + job.hold.hold_nano, min(oldest, job.row.created_ms))
        return found

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
        priority: bool = False,
        expire_hours: float | None = None,
        more: Sequence[Asked] = (),
        claim: KeyClaim | None = None,
    ) -> Job:
        """Holds what the job may cost and writes it down, with the caller's Idempotency-Key. `usage`: the bound;
        `more`: what it asks of other models.

        Raises RefusedError, StoreError.
        """
        known = self._engine.models.get(model.encode())
        rate = known.rate if known is not None else None
        if rate is None:
            raise RefusedError("model_unpriced")
        if kind == "video" and not rate.video_second and (rate.input or rate.output):
            raise RefusedError("model_unpriced")  # videos report no tokens: they would be free
        card = await self._store.rate_card(rate.card)
        if card is None:
            raise RefusedError("store_unavailable")
        job_id = self._engine.next_id()
        stored = [
            JobPart(
                job_id, self._engine.next_id(), one.model, one.upstream_model, await self._tags_of(job_id, one.names)
            )
            for one in more
        ]
        hours = self._config().jobs.expire_hours if expire_hours is None else expire_hours
        wall_ns = time.time_ns()
        row = JobRow(
            id=job_id,
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
            hold_nano=0,
            max_cost_nano=max_cost_nano,
            units=units,
            created_ms=wall_ns // 1_000_000,
            expires_ms=wall_ns // 1_000_000 + round(hours * 3_600_000),
            priority=int(priority),
        )
        try:
            parts = jobparts.of_row(card.body, row, stored)
        except KeyError:
            raise RefusedError("model_unpriced") from None
        bounds = [usage, *(one.usage for one in more)]
        cost = sum(jobparts.bound(row, part, bound) for part, bound in zip(parts, bounds, strict=True))
        row = replace(row, hold_nano=cost)
        if 0 <= max_cost_nano < cost:
            raise RefusedError("max_cost", numbers=(cost, max_cost_nano))
        for scope in key.scopes:
            state = scope.state(time.monotonic_ns(), wall_ns)
            for name, spent, code in (
                ("monthly_cap_nano", "spent_month_nano", "monthly_limit"),
                ("daily_cap_nano", "spent_day_nano", "daily_limit"),
            ):
                if state[name] and state[spent] + state["reserved_nano"] + cost > state[name]:
                    left = max(state[name] - state[spent] - state["reserved_nano"], 0)
                    raise RefusedError(code, scope.kind, numbers=(cost, left))
        try:
            hold = JobHold(key.balance, key.scopes, cost)
        except ValueError:
            raise RefusedError("insufficient_balance", numbers=(cost, key.balance.available_nano)) from None
        try:
            async with self._keys.binding(claim) if claim is not None else nullcontext():
                await self._store.objects.begin_job(row, stored, claim)
        except BaseException:
            hold.release()
            raise
        job = self._open[row.id] = Job(row, parts, hold)
        return job

    async def _tags_of(self, job_id: int, names: Sequence[str]) -> bytes:
        def tags() -> bytes:
            return b"".join(self._tag(job_id, name) for name in names)

        return tags() if len(names) <= 1000 else await asyncio.to_thread(tags)

    def _tag(self, job_id: int, name: str) -> bytes:
        """By which a request of a batch is known again: its name is its maker's, and not kept."""
        return self._engine.hmac(b"batch %d %b" % (job_id, name.encode("utf-8", "replace")))[: jobparts.TAG_BYTES]

    async def named(self, job: Job, object_id: str, answered: Answered) -> None:
        """The provider has taken the job. Its answer may say already that it has ended."""
        job.row = replace(job.row, object_id=object_id)
        row = job.row
        bound = ObjectRow(0, row.kind, object_id, row.account_id, row.key_id, row.channel, row.created_ms, row.model)
        self._by_object[row.kind, object_id] = job
        await self._store.objects.name_job(row, bound)
        try:
            await self.seen(row.kind, object_id, answered.body)
        except UpstreamError as error:  # what it used could not be read: the poller tries again
            log.warning("the results of a job could not be read (%s)", error.code)

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
        ended = wire_jobs.read(kind, body, self._engine.default_tables[0], job.row.units, bool(job.row.priority))
        if ended is None:
            return
        async with job.lock:
            if job.row.id not in self._open or job.ending:
                return
            self._tell(job.row, ended.doubts)
            await self._bind("container", job.row, ended.sandboxes)
            usage = ended.usage
            if usage is not None and kind == "batch" and not self._within(job, [usage]):
                ended = wire_jobs.Ended(files=ended.files, failed=not ended.files, doubts=OUT_OF_BOUNDS)
                usage = None
            if ended.failed:
                await self._end(job, [], "upstream_error")
            elif usage is None:
                await self._end_by_lines(job, ended)
            else:
                await self._end(job, [usage], None, source="estimated" if ended.estimated else "upstream")

    async def _end_by_lines(self, job: Job, ended: wire_jobs.Ended) -> None:
        """By what the lines of its results report. Raises UpstreamError."""
        try:
            results = await self._read_results(job, ended.files)
        except UpstreamError as error:
            if not ended.doubts or error.code != "upstream_error":
                raise  # it is tried again
            # The sum was not believed, and no lines are there to tell more.
            await self._end(job, [jobparts.held_usage(job.row, job.parts[0])], None, source="estimated")
            return
        self._tell(job.row, results.doubts)
        usages = results.totals()
        self._within(job, usages)
        await self._end(job, usages, None, source="estimated" if results.estimated else "upstream")

    def _tell(self, row: JobRow, doubts: Sequence[wire_jobs.Doubt]) -> None:
        """The operator hears of reports that were not believed."""
        for doubt in doubts:
            self._engine.doubt_report(row.channel, row.model, *doubt)

    def _within(self, job: Job, usages: Sequence[wire_jobs.Usage]) -> bool:
        """Whether a batch can have used as much as its provider says; if not, the operator hears of it."""
        cost = sum(jobparts.cost(job.row, part, usage) for part, usage in zip(job.parts, usages, strict=True))
        if cost <= jobparts.most(job.row):
            return True
        used = sum(wire_jobs.prompt_of(usage) + usage.get("output_tokens", 0) for usage in usages)
        self._tell(job.row, [("output_tokens", "above_bound", used, job.row.units)])
        return False

    async def look(self, job: Job) -> bool:
        """Asks the provider for the job. False where it does not say how that stands. Raises UpstreamError."""
        row = job.row
        if job.ending:
            await self._commit(job)
            return True
        upstream = self._upstreams.by_name.get(row.channel)
        if upstream is None or row.object_id is None:
            return False
        answered = await self._upstreams.fetch(
            upstream,
            "GET",
            OBJECT_PATHS[row.kind].replace("{id}", row.object_id),
            fields=own_fields(upstream),
            attempts=self._upstreams.begin_own(upstream),
        )
        if answered.status == 200:
            await self.seen(row.kind, row.object_id, answered.body)
        return answered.status == 200

    async def _read_results(self, job: Job, files: tuple[str, ...]) -> wire_jobs.Results:
        """What the lines of a batch's results report, summed up for each part of the job. Raises UpstreamError: then it
        is tried again."""
        row = job.row
        upstream = self._upstreams.by_name.get(row.channel)
        if upstream is None:
            raise UpstreamError("upstream_unavailable")
        results = wire_jobs.Results(len(job.parts), row.units)
        places = jobparts.places(job.parts)
        for name in files:
            path = f"/v1/messages/batches/{row.object_id}/results" if name == "results" else f"/files/{name}/content"
            reply = await self._upstreams.send(
                upstream, "GET", path, fields=own_fields(upstream), attempts=self._upstreams.begin_own(upstream)
            )
            try:
                if reply.status != 200:
                    raise UpstreamError("upstream_error")
                line = bytearray()
                async for data in reply.pieces():
                    line += data
                    while (end := line.find(b"\n")) >= 0:
                        self._add_line(row, results, places, bytes(line[:end]))
                        del line[: end + 1]
                    if len(line) > wire_jobs.LINE_BYTES_MAX:
                        raise UpstreamError("upstream_garbage")
                self._add_line(row, results, places, bytes(line))
            finally:
                reply.close()
        return results

    def _add_line(self, row: JobRow, results: wire_jobs.Results, places: dict[bytes, int], line: bytes) -> None:
        if line.strip():
            name, verdict = wire_jobs.read_line(row.kind, line, self._engine.default_tables[0])
            results.add(places.get(self._tag(row.id, name), 0) if places else 0, verdict)

    async def _bind_files(self, row: JobRow, body: bytes) -> None:
        """The files that a batch makes are its owner's, before the owner hears of them."""
        await self._bind("file", row, wire_jobs.files_of(body))

    async def _bind(self, kind: str, row: JobRow, names: Sequence[str]) -> None:
        rows = [
            ObjectRow(0, kind, name, row.account_id, row.key_id, row.channel, time.time_ns() // 1_000_000)
            for name in names
            if is_object_id(name)
        ]
        if rows:
            await self._store.objects.add(rows)

    async def _end(
        self, job: Job, usages: Sequence[wire_jobs.Usage], code: str | None, source: str = "upstream"
    ) -> None:
        """The one ending of a job: each part charged by its rate, or, without any usage, released. Decided here, then
        committed until it is."""
        row = job.row
        if usages:
            costs = [jobparts.cost(row, part, usage) for part, usage in zip(job.parts, usages, strict=True)]
            total = min(sum(costs), pricing.COST_NANO_MAX)
            allowed = [most for most in (row.max_cost_nano, jobparts.most(row)) if most >= 0]
            written_off = (
                sum(costs)
                - total
                + job.hold.settle(total, min(allowed, default=-1), time.time_ns(), day=call_day(row.id))
            )
            for part, usage, cost in zip(job.parts, usages, costs, strict=True):
                job.ending.append(jobparts.ending(row, part, usage, cost, min(written_off, cost), code, source))
                written_off -= min(written_off, cost)
        else:
            job.hold.release()
            job.ending.append(jobparts.ending(row, job.parts[0], None, 0, 0, code, "none"))
        await self._commit(job)

    async def _commit(self, job: Job) -> None:
        assert job.ending
        try:
            new = await self._store.objects.end_job(job.ending)
        except StoreError as error:  # tried again by the poller; on the next start the row is open still
            log.warning("the ending of a job could not be recorded (%s)", type(error).__name__)
            return
        if new:
            self.ended_total[job.row.kind, OUTCOMES[job.ending[0][C_ERROR_CODE]]] += 1
            self.cost_nano_total[job.row.kind] += sum(record[C_COST_NANO] for record in job.ending)
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
                if job.next_poll == 0.0 and not job.ending:  # it was begun just now
                    job.next_poll = now + base
                    continue
                job.poll_seconds = min(max(job.poll_seconds * POLL_GROWTH, base), max(base, POLL_SECONDS_MAX))
                job.next_poll = now + job.poll_seconds
                await self._poll_one(job)

    async def _poll_one(self, job: Job) -> None:
        failed = True
        try:
            failed = not await self.look(job)
        except (UpstreamError, StoreError) as error:
            log.warning("job of channel %s could not be looked at (%s)", job.row.channel, type(error).__name__)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.error("looking at a job failed (%s)", type(error).__name__)
        self.polls_total[job.row.kind, failed] += 1
        if job.row.id in self._open and not job.ending and time.time_ns() // 1_000_000 >= job.row.expires_ms:
            async with job.lock:
                if job.row.id in self._open and not job.ending:
                    log.warning("a job of channel %s has expired; its hold is released", job.row.channel)
                    await self._end(job, [], "upstream_timeout")


def own_fields(upstream: Upstream) -> list[tuple[str, str]]:
    """What the relay's own requests have to say."""
    return [("anthropic-version", "2023-06-01")] if upstream.dialect == D_ANTHROPIC else []
