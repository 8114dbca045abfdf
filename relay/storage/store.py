"""The store as the rest of the relay sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from relay.records import CallRecord, EventRecord
from relay.storage.rows import (
    NO_OVERRIDES,
    AccountRow,
    CallRow,
    CredentialRow,
    CreditResult,
    Difference,
    EntryKind,
    EntryRow,
    EventRow,
    KeyRow,
    Limits,
    LoadedKey,
    LotKind,
    LotRow,
    OrganisationRow,
    RateCardRow,
    RollupRow,
)

Durability = Literal["process", "power"]
CostFunction = Callable[[RateCardRow, CallRow], int]


class Store:
    """One data directory, owned by this process.

    Every `await`ed change is committed when the call returns; the caller then updates the live objects.
    Call records and events are queued (`append_calls`, `append_events`: no waiting) and committed in groups.
    Not thread-safe: all methods belong to the event loop's thread.
    """

    # -- life

    @classmethod
    async def open(
        cls,
        data_dir: str | Path,
        *,
        durability: Durability = "process",
        commit_interval_ms: int | None = None,
        commit_records_max: int = 500,
        now_ms: Callable[[], int] | None = None,
    ) -> Store:
        """Lock the directory (made if absent), check the file, bring its schema up to date.

        durability: "process" survives the death of the process, "power" also that of the machine (fsync per group).
        commit_interval_ms: default 200, with "power" 40.
        Raises StoreLocked, StoreUnusable, StoreUnavailable.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Commit what is queued and release the directory. Raises StoreUnavailable if something could not be."""
        raise NotImplementedError

    @property
    def writable(self) -> bool:
        """False while the disk is full or the file is locked by another program, until a later attempt succeeds."""
        raise NotImplementedError

    @property
    def pending(self) -> int:
        """Call records and events that are queued and not yet committed."""
        raise NotImplementedError

    def on_fatal(self, callback: Callable[[BaseException], None]) -> None:
        """Called once, in the loop, when the store can be trusted no more (failed fsync): the process has to end."""
        raise NotImplementedError

    def on_committed(self, callback: Callable[[Sequence[CallRecord]], None]) -> None:
        """Called in the event loop with the call records of each group once committed (journal slots may be freed)."""
        raise NotImplementedError

    # -- queued, synchronous

    def append_calls(self, records: list[CallRecord]) -> None:
        """Queue call records (`records.CALL_RECORD_FIELDS`); the list is the store's from now on. Never waits, O(1)."""
        raise NotImplementedError

    def append_events(self, records: list[EventRecord]) -> None:
        """Queue events (`records.EVENT_COLUMNS`). Never waits. Beyond 10,000 queued, further ones are dropped."""
        raise NotImplementedError

    async def flush(self) -> None:
        """Commit everything queued so far. Raises StoreUnavailable if that is not possible now (it stays queued)."""
        raise NotImplementedError

    async def settle_recovered(self, records: Sequence[CallRecord]) -> int:
        """Commit call records of which some may be there already; those change nothing. Returns how many were new."""
        raise NotImplementedError

    # -- directory

    async def create_organisation(self, name: str, *, limits: Limits = NO_OVERRIDES) -> OrganisationRow:
        """Raises Conflict if the name is taken."""
        raise NotImplementedError

    async def organisation(self, organisation_id: int) -> OrganisationRow:
        """Raises NotFound."""
        raise NotImplementedError

    async def find_organisation(self, name: str) -> OrganisationRow | None:
        raise NotImplementedError

    async def organisations(self) -> list[OrganisationRow]:
        raise NotImplementedError

    async def set_organisation(self, organisation_id: int, **changes: Any) -> OrganisationRow:
        """Change `name` or `limits`. Raises NotFound, Conflict."""
        raise NotImplementedError

    async def create_account(
        self, email: str, *, plan: str, organisation_id: int = 0, limits: Limits = NO_OVERRIDES
    ) -> AccountRow:
        """One account per address, compared in lower case without surrounding blanks. Raises Conflict, NotFound."""
        raise NotImplementedError

    async def account(self, account_id: int) -> AccountRow:
        """Raises NotFound."""
        raise NotImplementedError

    async def find_account(self, email: str) -> AccountRow | None:
        raise NotImplementedError

    async def accounts(
        self, *, organisation_id: int | None = None, after_id: int = 0, limit: int = 1000
    ) -> list[AccountRow]:
        """In the order of their ids."""
        raise NotImplementedError

    async def set_account(self, account_id: int, **changes: Any) -> AccountRow:
        """Change `email`, `organisation_id`, `plan`, `status` or `limits`. Raises NotFound, Conflict."""
        raise NotImplementedError

    async def create_key(
        self,
        account_id: int,
        *,
        public_id: str,
        digest: bytes,
        last4: str,
        pepper_version: int,
        name: str = "",
        description: str = "",
        scopes: tuple[str, ...] | None = None,
        models: tuple[str, ...] | None = None,
        networks: tuple[str, ...] | None = None,
        limits: Limits = NO_OVERRIDES,
        expires_ms: int = 0,
        on_disconnect: Literal["cancel", "drain"] | None = None,
    ) -> KeyRow:
        """A key and its first credential. Raises NotFound (account), Conflict (public id)."""
        raise NotImplementedError

    async def key(self, key_id: int) -> KeyRow:
        """Raises NotFound."""
        raise NotImplementedError

    async def keys(self, account_id: int, *, after_id: int = 0, limit: int = 1000) -> list[KeyRow]:
        """In the order of their ids."""
        raise NotImplementedError

    async def set_key(self, key_id: int, **changes: Any) -> KeyRow:
        """Change any of name, description, status, scopes, models, networks, limits, expires_ms, on_disconnect.

        A revoked key stays revoked: changing its status raises Conflict. Raises NotFound.
        """
        raise NotImplementedError

    async def add_credential(
        self,
        key_id: int,
        *,
        public_id: str,
        digest: bytes,
        last4: str,
        pepper_version: int,
        old_expires_ms: int,
    ) -> CredentialRow:
        """Rotate: a new secret; the key's other credentials end at old_expires_ms (or earlier, if they already did).

        Raises NotFound, Conflict (public id taken, key revoked).
        """
        raise NotImplementedError

    async def revoke_credential(self, public_id: str) -> CredentialRow:
        """Raises NotFound."""
        raise NotImplementedError

    async def credentials(self, key_id: int) -> list[CredentialRow]:
        """Of one key, oldest first."""
        raise NotImplementedError

    async def find_credential(self, public_id: str | bytes) -> LoadedKey | None:
        """All the proxy needs of a key, in one read; None if there is no such credential.

        Revoked, expired and frozen ones are returned too: the caller decides. Raises StoreUnavailable, StoreUnusable.
        """
        raise NotImplementedError

    # -- ledger

    async def balance(self, account_id: int) -> int:
        """Committed balance in nano-credits, with everything queued counted. Raises NotFound."""
        raise NotImplementedError

    async def add_credit(
        self,
        account_id: int,
        amount_nano: int,
        *,
        kind: LotKind = "purchased",
        reason: str = "",
        idempotency_key: str | None = None,
        expires_ms: int = 0,
    ) -> CreditResult:
        """An entry and its lot; committed when this returns. amount_nano > 0.

        The same idempotency key with equal account, amount, kind and reason returns the first entry (`created` False).
        Raises NotFound, Conflict (idempotency key used for something else).
        """
        raise NotImplementedError

    async def take_credit(
        self,
        account_id: int,
        amount_nano: int,
        *,
        kind: EntryKind,
        reason: str,
        lot_kinds: Sequence[LotKind] | None = None,
        idempotency_key: str | None = None,
    ) -> CreditResult:
        """A negative entry (amount_nano > 0 is what is taken) from lots of these kinds (None: all), in spending order.

        Raises NotFound, Conflict, InsufficientCredit. The caller takes it from the live balance first.
        """
        raise NotImplementedError

    async def refund(
        self, account_id: int, amount_nano: int, *, reason: str, idempotency_key: str | None = None
    ) -> CreditResult:
        """take_credit of kind "refund" from unused purchased credits."""
        raise NotImplementedError

    async def expire_lots(
        self, now_ms: int, *, held_nano: Mapping[int, int] | None = None, limit: int = 500
    ) -> list[EntryRow]:
        """Take what is left of lots whose time is up, as `expiry` entries; at most `limit` lots at a time.

        held_nano: per account what open calls hold; that much of its balance is left for a later pass.
        """
        raise NotImplementedError

    async def entries(self, account_id: int, *, after_id: int = 0, limit: int = 1000) -> list[EntryRow]:
        """In the order in which they were made."""
        raise NotImplementedError

    async def lots(self, account_id: int, *, open_only: bool = True) -> list[LotRow]:
        """In the order in which they are spent."""
        raise NotImplementedError

    async def verify(self, cost_of: CostFunction | None = None) -> list[Difference]:
        """Recompute balances, lots, rollups and (with cost_of) the cost of each call still recorded; [] if all agree.

        Reads everything: minutes for tens of millions of calls, on a connection and thread of its own.
        """
        raise NotImplementedError

    # -- rate cards, calls, events

    async def put_rate_card(self, card_id: str, body: str) -> None:
        """Store a card (canonical JSON) before a call names it; again is no change. Conflict if it differs."""
        raise NotImplementedError

    async def rate_card(self, card_id: str) -> RateCardRow | None:
        raise NotImplementedError

    async def rate_cards(self) -> list[RateCardRow]:
        raise NotImplementedError

    async def calls(
        self,
        *,
        account_id: int | None = None,
        key_id: int | None = None,
        since_ms: int = 0,
        until_ms: int | None = None,
        status: int | None = None,
        error_code: str | None = None,
        failed: bool | None = None,
        before_id: int | None = None,
        limit: int = 100,
    ) -> list[CallRow]:
        """Newest first; committed ones (flush first to see all). Page on with before_id = the last id of a page."""
        raise NotImplementedError

    async def call(self, call_id: int) -> CallRow | None:
        raise NotImplementedError

    async def rollups(self, account_id: int, *, since_day: int = 0, until_day: int | None = None) -> list[RollupRow]:
        """Sums per key, model and day; until_day is included."""
        raise NotImplementedError

    async def events(
        self, *, since_ms: int = 0, kind: str | None = None, account_id: int | None = None, limit: int = 1000
    ) -> list[EventRow]:
        """Newest first."""
        raise NotImplementedError

    async def delete_calls_before(self, before_ms: int, *, step: int = 2000) -> int:
        """Retention: delete calls and events that began before; in transactions of `step` rows, others in between.

        Sums stay (rollups), and `verify` stays true. Returns how many calls were deleted.
        """
        raise NotImplementedError

    async def backup(self, path: str | Path) -> int:
        """A consistent copy of the live store in one file, with everything queued so far. Returns its size in bytes.

        Raises StoreError if the file exists, StoreUnavailable if it cannot be written.
        """
        raise NotImplementedError
