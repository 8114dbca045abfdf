"""Idempotency-Keys of calls: a call that was charged is not made again within a day.

What is known of a key is an HMAC of it with its account, and of the body 63 bits of another. While a call runs, and
until its record is committed, that stands here; afterwards in the store, by the transaction of the record. A process
that was killed left it in the in-flight journal, from where it gets into the store with what was delivered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from relay._fastpath import Call
from relay.records import MS_PER_DAY, CallRecord, first_call_id
from relay.storage import Store, StoreError

KEPT_MS = MS_PER_DAY


class IdempotencyKeys:
    """Who has which key. Bounded: one entry for each open call, and for those whose records wait to be committed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._claims: dict[bytes, tuple[int, int]] = {}  # digest -> (call id, tag of the body)
        self._ended: dict[int, bytes] = {}  # call id -> digest, of charged calls whose record is not committed
        self._tasks: set[asyncio.Task[None]] = set()
        store.on_committed(self._committed)

    def claim(self, call: Call, digest: bytes, body: int) -> None:
        """Gives the key to the call or says who has it; by `call.claim_known`, at once or later."""
        found = self._claims.get(digest)
        if found is not None:
            call.claim_known(found[0], found[1] == body)
            return
        self._claims[digest] = (call.id, body)
        task = asyncio.get_running_loop().create_task(self._look_up(call, digest, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, call: Call, digest: bytes, body: int) -> None:
        since = first_call_id(time.time_ns() // 1_000_000 - KEPT_MS)
        try:
            found = await self._store.idempotency_key(digest, since)
        except StoreError:
            call.claim_failed()  # which gives the key back
            return
        if found is None:
            call.claim_known(0, True)
            return
        self._forget(call.id, digest)
        call.claim_known(found[1], found[0] == body)

    def unclaim(self, call_id: int, digest: bytes, bound: bool) -> None:
        """The call has ended. `bound`: it was charged, and its record carries the key."""
        if bound:
            self._ended[call_id] = digest
        else:
            self._forget(call_id, digest)

    def _forget(self, call_id: int, digest: bytes) -> None:
        if self._claims.get(digest, (None,))[0] == call_id:
            del self._claims[digest]

    def _committed(self, records: Sequence[CallRecord]) -> None:
        if not self._ended:
            return
        for record in records:
            digest = self._ended.pop(record[0], None)
            if digest is not None:
                self._forget(record[0], digest)
