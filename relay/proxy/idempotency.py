"""Idempotency-Keys: a call that was charged or has made something is not made again within a day.

What is known of a key is an HMAC of it with its account, and of the body 63 bits of another. While a call runs, that
stands here. On the hot path the record of a call brings it into the store; until that is committed it stands here, and
in the in-flight journal, from where a process that was killed gets it into the store with what was delivered. A call
that makes an object (a file, a job) has it in the store before anything is forwarded that could make one.
"""

from __future__ import annotations

import asyncio
import hmac
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from relay import units
from relay._fastpath import Call
from relay.proxy.sidecalls import RefusedError
from relay.records import MS_PER_DAY, CallRecord, first_call_id
from relay.storage import Conflict, Store, StoreError
from relay.storage.rows import KeyClaim

KEPT_MS: Final = MS_PER_DAY
KEY_BYTES_MAX: Final = 255
UNKNOWN_BODY: Final = 0  # a tag that says nothing


class IdempotencyKeys:
    """Who has which key. Bounded: one entry for each open call, and for those whose records wait to be committed."""

    def __init__(self, store: Store, pepper: bytes) -> None:
        self._store = store
        self._pepper = pepper
        self._claims: dict[bytes, tuple[int, int]] = {}  # digest -> (call id, tag of the body)
        self._ended: dict[int, bytes] = {}  # call id -> digest, of charged calls whose record is not committed
        self._looking: dict[bytes, asyncio.Future[tuple[int, int] | None]] = {}  # what the store is being asked for
        self._binding: set[int] = set()  # calls whose keys are on their way into the store
        self._tasks: set[asyncio.Task[None]] = set()
        store.on_committed(self._committed)

    # -- calls on the hot path

    def claim(self, call: Call, digest: bytes, body: int) -> None:
        """Gives the key to the call or says who has it; by `call.claim_known`, at once or later."""
        found = self._claims.get(digest)
        if found is not None and digest not in self._looking:
            call.claim_known(found[0], _same(found[1], body))
            return
        task = asyncio.get_running_loop().create_task(self._claim(call, digest, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _claim(self, call: Call, digest: bytes, body: int) -> None:
        try:
            found = await self._find(digest, call.id, body)
        except StoreError:
            call.claim_failed()
            return
        if found is None:
            if not call.claim_known(0, True):
                self._forget(call.id, digest)  # it has ended meanwhile
        else:
            call.claim_known(found[0], _same(found[1], body))

    def unclaim(self, call_id: int, digest: bytes, bound: bool) -> None:
        """The call has ended. `bound`: it was charged, and its record carries the key."""
        if bound:
            self._ended[call_id] = digest
        else:
            self._forget(call_id, digest)

    # -- calls that make objects

    async def take(self, account_id: int, key: bytes, call_id: int, path: str, body: bytes | None) -> KeyClaim:
        """The key is this call's until `let_go`. `body`: what a repeat is compared by; None: nothing is known of it.

        The same HMACs as in fastpath/call_admit.pxi: a key belongs to one call, whatever its path.
        Raises RefusedError: another call has it; StoreError.
        """
        if not 0 < len(key) <= KEY_BYTES_MAX:
            raise RefusedError("invalid_value", "idempotency-key")
        digest = hmac.digest(self._pepper, b"idempotency %d " % account_id + key, "sha256")
        tag = UNKNOWN_BODY
        if body is not None:
            mac = hmac.digest(self._pepper, b"body " + path.encode() + b" " + body, "sha256")
            tag = int.from_bytes(mac[:8], sys.byteorder) & 0x7FFFFFFFFFFFFFFF
        found = await self._find(digest, call_id, tag)
        if found is not None:
            raise _repeat(found, tag)
        return KeyClaim(digest, tag, call_id)

    @asynccontextmanager
    async def binding(self, claim: KeyClaim) -> AsyncIterator[None]:
        """Around the transaction that brings a key into the store: its client may leave meanwhile, and the key is still
        its own. Raises RefusedError: it had left before, and another call has the key by now."""
        found = self._claims.setdefault(claim.digest, (claim.call_id, claim.body))
        if found[0] != claim.call_id:
            raise _repeat(found, claim.body)
        self._binding.add(claim.call_id)
        try:
            yield
        except Conflict:
            stored = await self._stored(claim.digest)
            raise RefusedError("idempotency_repeat") if stored is None else _repeat(stored, claim.body) from None
        finally:
            self._binding.discard(claim.call_id)
            self._forget(claim.call_id, claim.digest)

    def let_go(self, claim: KeyClaim) -> None:
        """The call has ended. Where it made something, the store has its key."""
        self._forget(claim.call_id, claim.digest)

    # -- both

    async def _find(self, digest: bytes, call_id: int, body: int) -> tuple[int, int] | None:
        """The call that has the key and its body's tag; None: it is this call's from now on. Raises StoreError."""
        while (looking := self._looking.get(digest)) is not None:
            stored = await asyncio.shield(looking)  # another asks already, and may find who was before both
            if stored is not None:
                return stored
        found = self._claims.get(digest)
        if found is not None:
            return found
        self._claims[digest] = (call_id, body)
        looking = self._looking[digest] = asyncio.get_running_loop().create_future()
        answered = False
        stored = None
        try:
            stored = await self._stored(digest)
            answered = True
            return stored
        finally:
            if stored is not None or not answered:
                self._forget(call_id, digest)
            del self._looking[digest]
            looking.set_result(stored)

    async def _stored(self, digest: bytes) -> tuple[int, int] | None:
        """The call that has a key, and the tag of its body."""
        found = await self._store.idempotency_key(digest, first_call_id(time.time_ns() // 1_000_000 - KEPT_MS))
        return None if found is None else (found[1], found[0])

    def _forget(self, call_id: int, digest: bytes) -> None:
        if self._claims.get(digest, (None,))[0] == call_id and call_id not in self._binding:
            del self._claims[digest]

    def _committed(self, records: Sequence[CallRecord]) -> None:
        if not self._ended:
            return
        for record in records:
            digest = self._ended.pop(record[0], None)
            if digest is not None:
                self._forget(record[0], digest)


def _same(known: int, tag: int) -> bool:
    return known == tag or UNKNOWN_BODY in (known, tag)


def _repeat(found: tuple[int, int], tag: int) -> RefusedError:
    """The call that was made before, as the hot path names it."""
    words = "" if _same(found[1], tag) else " with another body"
    return RefusedError("idempotency_repeat", units.call_text(found[0]) + words)
