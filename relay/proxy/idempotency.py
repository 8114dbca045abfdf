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
from collections.abc import Sequence
from typing import Final

from relay import units
from relay._fastpath import Call
from relay.proxy.sidecalls import RefusedError
from relay.records import MS_PER_DAY, CallRecord, first_call_id
from relay.storage import Store, StoreError
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
        self._tasks: set[asyncio.Task[None]] = set()
        store.on_committed(self._committed)

    # -- calls on the hot path

    def claim(self, call: Call, digest: bytes, body: int) -> None:
        """Gives the key to the call or says who has it; by `call.claim_known`, at once or later."""
        found = self._claims.get(digest)
        if found is not None:
            call.claim_known(found[0], _same(found[1], body))
            return
        self._claims[digest] = (call.id, body)
        task = asyncio.get_running_loop().create_task(self._look_up(call, digest, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, call: Call, digest: bytes, body: int) -> None:
        try:
            found = await self._stored(digest)
        except StoreError:
            call.claim_failed()  # which gives the key back
            return
        if found is None:
            call.claim_known(0, True)
            return
        self._forget(call.id, digest)
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
        found = self._claims.get(digest)
        if found is None:
            self._claims[digest] = (call_id, tag)
            try:
                found = await self._stored(digest)
            except BaseException:
                self._forget(call_id, digest)
                raise
            if found is None:
                return KeyClaim(digest, tag, call_id)
            self._forget(call_id, digest)
        raise _repeat(found, tag)

    async def taken(self, claim: KeyClaim) -> RefusedError:
        """What is to be said where the store found the key bound to another call. Raises StoreError."""
        found = await self._stored(claim.digest)
        return RefusedError("idempotency_repeat") if found is None else _repeat(found, claim.body)

    def let_go(self, claim: KeyClaim) -> None:
        """The call has ended. Where it made something, the store has its key."""
        self._forget(claim.call_id, claim.digest)

    # -- both

    async def _stored(self, digest: bytes) -> tuple[int, int] | None:
        """The call that has a key, and the tag of its body."""
        found = await self._store.idempotency_key(digest, first_call_id(time.time_ns() // 1_000_000 - KEPT_MS))
        return None if found is None else (found[1], found[0])

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


def _same(known: int, tag: int) -> bool:
    return known == tag or UNKNOWN_BODY in (known, tag)


def _repeat(found: tuple[int, int], tag: int) -> RefusedError:
    """The call that was made before, as the hot path names it."""
    words = "" if _same(found[1], tag) else " with another body"
    return RefusedError("idempotency_repeat", units.call_text(found[0]) + words)
