"""The part of the store that knows objects and jobs: `Store.objects`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from relay.records import CallRecord, first_call_id
from relay.storage import calls, objects
from relay.storage.database import transaction
from relay.storage.rows import JobPart, JobRow, KeyClaim, ObjectRow

if TYPE_CHECKING:
    from relay.storage.groupcommit import GroupCommit


class ObjectStore:
    """Methods wait for their commit. Raise StoreUnavailable where that is not possible now, StoreFailed for ever."""

    def __init__(
        self,
        read: Callable[[Callable[..., Any]], Awaitable[Any]],
        change: Callable[[Callable[..., Any]], Awaitable[Any]],
        group: GroupCommit,
    ) -> None:
        self._read = read
        self._change = change
        self._group = group

    async def add(self, rows: Sequence[ObjectRow]) -> None:
        """Binds objects to accounts, as durable as call records. An id that is bound stays as it is."""
        await self._group.step(lambda db: transaction(db, lambda db: objects.add_objects(db, rows)))

    async def find(self, kind: str, object_id: str) -> ObjectRow | None:
        found: ObjectRow | None = await self._read(lambda db: objects.select_object(db, kind, object_id))
        return found

    async def page(
        self, account_id: int, kind: str, *, behind: int | None, limit: int, oldest_first: bool
    ) -> list[ObjectRow]:
        """Objects of an account, in the order in which they were bound."""
        found: list[ObjectRow] = await self._read(
            lambda db: objects.select_page(db, account_id, kind, behind, limit, oldest_first)
        )
        return found

    async def file_bytes(self, account_id: int) -> int:
        """Of all files of an account that are stored at providers."""
        found: int = await self._read(lambda db: objects.file_bytes(db, account_id))
        return found

    async def remove(self, kind: str, object_id: str) -> None:
        await self._group.step(lambda db: transaction(db, lambda db: objects.delete_object(db, kind, object_id)))

    async def delete_before(self, responses_ms: int, calls_ms: int) -> None:
        """Retention: stored responses bound before, and jobs whose ending's record is as old."""

        def job(db: Any) -> None:
            objects.delete_responses_before(db, responses_ms)
            objects.delete_ended_before(db, first_call_id(calls_ms))

        await self._group.step(lambda db: transaction(db, job))

    # -- Idempotency-Keys of calls that make objects

    async def bind_key(self, claim: KeyClaim) -> None:
        """Before what may make an object is forwarded; as durable as call records. Raises Conflict: another call's."""
        await self._group.step(lambda db: transaction(db, lambda db: calls.bind_idempotency_key(db, claim)))

    async def free_key(self, claim: KeyClaim) -> None:
        """Nothing was made."""
        await self._group.step(lambda db: transaction(db, lambda db: calls.free_idempotency_key(db, claim)))

    # -- jobs

    async def begin_job(self, row: JobRow, parts: Sequence[JobPart] = (), claim: KeyClaim | None = None) -> None:
        """On the disk before the provider is asked: whatever happens then, the hold has a place and an end.

        `claim`: the caller's Idempotency-Key, bound in the same transaction. Raises Conflict: it is another call's.
        """

        def change(db: Any) -> None:
            if claim is not None:
                calls.bind_idempotency_key(db, claim)
            objects.insert_job(db, row, parts)

        await self._change(change)

    async def name_job(self, job: JobRow, bound: ObjectRow) -> None:
        """The provider has answered: the job's id there, its expiry, and whose it is; one transaction, on the disk."""
        assert job.object_id is not None
        named, object_id = job, job.object_id

        def change(db: Any) -> None:
            objects.name_job(db, named.id, object_id, named.expires_ms)
            objects.add_objects(db, [bound])

        await self._change(change)

    async def drop_job(self, job_id: int, claim: KeyClaim | None = None) -> None:
        """A job that never began at its provider. `claim`: the key that is free again."""

        def job(db: Any) -> None:
            objects.delete_job(db, job_id)
            if claim is not None:
                calls.free_idempotency_key(db, claim)

        await self._group.step(lambda db: transaction(db, job))

    async def open_jobs(self) -> list[JobRow]:
        found: list[JobRow] = await self._read(objects.open_jobs)
        return found

    async def open_parts(self) -> list[JobPart]:
        """The models of open jobs beside their own."""
        found: list[JobPart] = await self._read(objects.open_parts)
        return found

    async def end_job(self, records: Sequence[CallRecord]) -> bool:
        """Commits the records of a job's ending with its end, in one transaction. The first has the job's id. False: it
        has ended before."""
        return await self._group.commit_ending(records)
