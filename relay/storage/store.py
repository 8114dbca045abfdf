"""The store as the rest of the relay sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from relay._fastpath import Journal
from relay.records import (
    C_ACCOUNT,
    C_COST_NANO,
    C_ID,
    C_KEY,
    C_ORGANISATION,
    C_WRITE_OFF_NANO,
    CallRecord,
    EventRecord,
    call_day,
    first_call_id,
)
from relay.storage import aside, backup, calls, charged, directory, events, journal, ledger, usage, verify
from relay.storage.batch import BatchWriter
from relay.storage.database import Connection, Worker, open_reader, open_writer
from relay.storage.errors import Conflict, NotFound, StoreError
from relay.storage.groupcommit import GroupCommit
from relay.storage.lock import NAME as LOCK_NAME
from relay.storage.lock import DirectoryLock
from relay.storage.objectstore import ObjectStore
from relay.storage.rows import (
    NO_OVERRIDES,
    AccountRow,
    CallRow,
    CredentialRow,
    CreditResult,
    Difference,
    DueRow,
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
    ScheduledRatesRow,
    SetAsideRow,
    Spend,
    SwitchRow,
    UsageRow,
)
from relay.storage.verify import CostFunction, Verified

T = TypeVar("T")
Durability = Literal["process", "power"]

DATABASE_NAME: Final = "relay.db"
COMMIT_INTERVAL_MS: Final[dict[str, int]] = {"process": 200, "power": 20}
DAY_MAX: Final = 2**40


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
        cost_of: CostFunction | None = None,
    ) -> Store:
        """Lock the directory (made if absent), check the file, bring its schema up to date, settle what a dead process
        left (`cost_of`: by its rate card).

        durability: "process" survives the death of the process, "power" also that of the machine (fsync per group).
        commit_interval_ms: default 200, with "power" 20.
        Raises StoreLocked, StoreUnusable, StoreUnavailable.
        """
        path = Path(data_dir) / DATABASE_NAME
        workers: list[Worker] = []
        lock = DirectoryLock(path.parent)
        try:
            workers.append(await Worker.start(lambda: open_writer(path)))
            if durability == "power":
                await workers[0].run(lambda connection: connection.execute("PRAGMA synchronous = FULL"))
            workers.append(await Worker.start(lambda: open_reader(path)))
            workers.append(await Worker.start(lambda: open_reader(path)))
            writer, batch = await workers[0].run(
                lambda connection: (
                    BatchWriter(connection),
                    connection.execute("SELECT batch FROM store").fetchone()[0],
                )
            )
        except BaseException:
            for worker in reversed(workers):
                await worker.close()
            lock.release()
            raise
        store = cls.__new__(cls)
        store._path = path.absolute()
        store._files = {}
        store.durability = durability
        store._lock = lock
        store._now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        store._writing, store._looking_up, store._reading = workers
        store._writer = writer
        store._fatal_callbacks = []
        store._gathering = []
        store._closed = False
        store._group = GroupCommit(
            store._writing,
            writer,
            batch=batch,
            power=durability == "power",
            interval_seconds=(commit_interval_ms or COMMIT_INTERVAL_MS[durability]) / 1000,
            records_max=commit_records_max,
            now_ms=store._now_ms,
            fatal=store._report_fatal,
        )
        store.objects = ObjectStore(store._read, store._change, store._group)
        try:
            store._store_id = await store._read(lambda db: db.execute("SELECT store_id FROM store").fetchone()[0])
            store.recovered = await journal.recover(store, path.parent, store._store_id, cost_of)
            (path.parent / journal.NAME).unlink(missing_ok=True)
        except BaseException:
            await store.close()
            raise
        return store

    def open_journal(self, slots: int) -> Journal:
        """The in-flight journal of a server: a slot per open call. Slots are freed as their records are committed.

        Raises StoreUnavailable where the file cannot be made whole.
        """
        self._journal = journal.JournalFile.create(self._path.parent, self._store_id, slots)
        self.on_committed(self._journal.journal.committed)
        self.look_for_files()
        return self._journal.journal

    objects: ObjectStore
    recovered = 0  # calls of a dead process that were settled at open
    durability: Durability
    _store_id: bytes
    _journal: journal.JournalFile | None = None

    _path: Path
    _files: dict[Path, tuple[int, int]]  # device and inode of each file that is open
    _lock: DirectoryLock
    _now_ms: Callable[[], int]
    _writing: Worker  # the only connection that writes
    _looking_up: Worker  # find_credential only: never behind a long read
    _reading: Worker  # everything else that reads
    _writer: BatchWriter
    _group: GroupCommit
    _fatal_callbacks: list[Callable[[BaseException], None]]
    _gathering: list[Callable[[], None]]
    _closed: bool

    def _report_fatal(self, error: BaseException) -> None:
        for callback in self._fatal_callbacks:
            callback(error)

    async def close(self) -> None:
        """Commit what is queued and release the directory. Raises StoreUnavailable if something could not be."""
        if self._closed:
            return
        self._closed = True
        failure: StoreError | None = None
        try:
            await self._group.flush()
            await self._group.checkpoint()
        except StoreError as error:
            failure = error
        await self._group.close()
        await self._reading.close()
        await self._looking_up.close()
        if self._group.failure is None:
            await self._writing.close()
        else:
            self._writing.abandon()
        if self._journal is not None:
            self._journal.close()
            slots = self._journal.journal
            if failure is None and slots.free_slots == slots.size:
                # Nothing is left to settle: another version, whose slots may look different, can open this store.
                self._journal.path.unlink(missing_ok=True)
        self._lock.release()
        if failure is not None:
            raise failure

    @property
    def writable(self) -> bool:
        """False while the disk is full or the file is locked by another program, until a later attempt succeeds."""
        return self._group.writable and not self._closed and self.lost is None

    @property
    def lost(self) -> str | None:
        """Which of the files is gone, as `look_for_files` found it last; then nothing is changed any more."""
        return self._group.lost

    def look_for_files(self) -> str | None:
        """Looks whether the open files are those in the directory. What is written to a file that was deleted, or
        replaced, succeeds and is lost: SQLite and the kernel see no fault in it.
        """
        self._group.lost = None
        for path in self._own_files():
            try:
                found = path.stat()
            except FileNotFoundError:
                if path in self._files:
                    self._group.lost = f"{path} is gone"
                    break
                continue
            except OSError:
                continue
            identity = (found.st_dev, found.st_ino)
            if self._files.setdefault(path, identity) != identity:
                self._group.lost = f"{path} was replaced by another file"
                break
        return self._group.lost

    def _own_files(self) -> list[Path]:
        files = [self._path, self._path.with_name(DATABASE_NAME + "-wal"), self._path.with_name(LOCK_NAME)]
        return files if self._journal is None else [*files, self._journal.path]

    def take_time(self, unhurried: bool) -> None:
        """Whether the writer may pause within its groups: true while the event loop is not busy all the time.

        A loop that is would starve a writer that pauses, and its calls wait for each other anyway.
        """
        self._group.unhurried = unhurried

    @property
    def pending(self) -> int:
        """Call records and events that are queued and not yet committed."""
        return self._group.pending

    @property
    def lag_seconds(self) -> float:
        """How long the oldest of them has waited."""
        return self._group.lag_seconds

    @property
    def events_dropped(self) -> int:
        """Events that came while 10,000 were queued, since start."""
        return self._group.events_dropped

    @property
    def shortfall_nano(self) -> int:
        """Cost of calls that neither a lot nor their own write-off covered, since start; it was written off.

        Anything but 0 says that live balances were higher than the ledger's.
        """
        return self._writer.shortfall_nano

    def on_fatal(self, callback: Callable[[BaseException], None]) -> None:
        """Called once, in the loop, when the store can be trusted no more (failed fsync): the process has to end."""
        self._fatal_callbacks.append(callback)

    def on_committed(self, callback: Callable[[Sequence[CallRecord]], None]) -> None:
        """Called in the event loop with the call records of each group once committed (journal slots may be freed)."""
        self._group.callbacks.append(callback)

    # -- queued, synchronous

    def append_calls(self, records: list[CallRecord]) -> None:
        """Queue call records (`records.CALL_RECORD_FIELDS`); the list is the store's from now on. Never waits, O(1)."""
        self._group.append_calls(records)

    def append_events(self, records: list[EventRecord]) -> None:
        """Queue events (`records.EVENT_COLUMNS`). Never waits. Beyond 10,000 queued, further ones are dropped."""
        self._group.append_events(records)

    async def flush(self) -> None:
        """Commit everything queued so far. Raises StoreUnavailable if that is not possible now (it stays queued)."""
        for gather in self._gathering:
            gather()
        await self._group.flush()

    def on_flush(self, gather: Callable[[], None]) -> None:
        """Called before each flush, to queue what waits elsewhere."""
        self._gathering.append(gather)

    async def known_to_recovery(self, found: Sequence[journal.Left]) -> journal.Known:
        """Keys, organisations and rate cards that a journal's slots name."""
        now = self._now_ms()
        return await self._read(lambda db: journal.known(db, found, now))

    async def set_slots_aside(self, bad: Sequence[tuple[journal.Left, str]]) -> None:
        """Keep slots of the journal that cannot be recorded, and why; none is kept twice."""
        now = self._now_ms()

        def job(db: Connection) -> None:
            for left, reason in bad:
                aside.put(db, "slot", left.content, reason, left.document["id"], left.document["account_id"], now)

        await self._change(job)

    async def set_aside(self) -> list[SetAsideRow]:
        """What could not be recorded, newest first."""
        return await self._read(aside.rows)

    async def settle_recovered(self, records: Sequence[CallRecord]) -> int:
        """Commit call records of which some may be there already; those change nothing. Returns how many were new."""
        return await self._group.commit_recovered(records)

    async def bind_pepper(self, check: bytes) -> bool:
        """Whether that is this store's pepper. A store that knows none, or has no keys, takes it from now on."""

        def read(db: Connection) -> tuple[bytes | None, int]:
            (known,) = db.execute("SELECT pepper_check FROM store").fetchone()
            return known, len(db.execute("SELECT 1 FROM credentials LIMIT 1").fetchall())

        known, keys = await self._read(read)
        if known is None or (known != check and not keys):
            await self._change(lambda db: db.execute("UPDATE store SET pepper_check = ?", (check,)))
            return True
        return known == check

    # -- directory

    async def create_organisation(self, name: str, *, limits: Limits = NO_OVERRIDES) -> OrganisationRow:
        """Raises Conflict if the name is taken."""
        now = self._now_ms()
        return await self._change(lambda db: directory.create_organisation(db, name, limits, now))

    async def organisation(self, organisation_id: int) -> OrganisationRow:
        """Raises NotFound."""
        return await self._read(lambda db: directory.organisation(db, organisation_id))

    async def find_organisation(self, name: str) -> OrganisationRow | None:
        return await self._read(lambda db: directory.find_organisation(db, name))

    async def organisations(self) -> list[OrganisationRow]:
        return await self._read(directory.organisations)

    async def set_organisation(self, organisation_id: int, **changes: Any) -> OrganisationRow:
        """Change `name` or `limits`. Raises NotFound, Conflict."""
        now = self._now_ms()
        return await self._change(lambda db: directory.set_organisation(db, organisation_id, changes, now))

    async def create_account(
        self, email: str, *, plan: str, organisation_id: int = 0, limits: Limits = NO_OVERRIDES
    ) -> AccountRow:
        """One account per address, compared in lower case without surrounding blanks. Raises Conflict, NotFound."""
        now = self._now_ms()
        return await self._change(lambda db: directory.create_account(db, email, plan, organisation_id, limits, now))

    async def account(self, account_id: int) -> AccountRow:
        """Raises NotFound."""
        return await self._read(lambda db: directory.account(db, account_id))

    async def find_account(self, email: str) -> AccountRow | None:
        return await self._read(lambda db: directory.find_account(db, email))

    async def accounts(
        self, *, organisation_id: int | None = None, after_id: int = 0, limit: int = 1000
    ) -> list[AccountRow]:
        """In the order of their ids."""
        return await self._read(lambda db: directory.accounts(db, organisation_id, after_id, limit))

    async def set_account(self, account_id: int, **changes: Any) -> AccountRow:
        """Change `email`, `organisation_id`, `plan`, `status` or `limits`. Raises NotFound, Conflict."""
        now = self._now_ms()
        return await self._change(lambda db: directory.set_account(db, account_id, changes, now))

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
        now = self._now_ms()

        def job(db: Connection) -> KeyRow:
            key_id = directory.create_key(
                db,
                account_id,
                name=name,
                description=description,
                scopes=scopes,
                models=models,
                networks=networks,
                limits=limits,
                expires_ms=expires_ms,
                on_disconnect=on_disconnect,
                now_ms=now,
            )
            directory.insert_credential(db, key_id, public_id, digest, last4, pepper_version, now)
            return directory.key(db, key_id)

        return await self._change(job)

    async def key(self, key_id: int) -> KeyRow:
        """Raises NotFound."""
        return await self._read(lambda db: directory.key(db, key_id))

    async def keys(self, account_id: int, *, after_id: int = 0, limit: int = 1000) -> list[KeyRow]:
        """In the order of their ids."""
        return await self._read(lambda db: directory.keys(db, account_id, after_id, limit))

    async def keys_named(self, name: str, limit: int) -> list[KeyRow]:
        """Keys of that name, of all accounts, those that are not revoked first."""
        return await self._read(lambda db: directory.keys_named(db, name, limit))

    async def set_key(self, key_id: int, **changes: Any) -> KeyRow:
        """Change any of name, description, status, scopes, models, networks, limits, expires_ms, on_disconnect.

        A revoked key stays revoked: changing its status raises Conflict. Raises NotFound.
        """
        now = self._now_ms()
        return await self._change(lambda db: directory.set_key(db, key_id, changes, now))

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
        new = CredentialRow(public_id, key_id, digest, last4, pepper_version, self._now_ms(), 0, 0)
        return await self._change(lambda db: directory.rotate(db, new, old_expires_ms))

    async def revoke_credential(self, public_id: str) -> CredentialRow:
        """Raises NotFound."""
        now = self._now_ms()
        return await self._change(lambda db: directory.revoke_credential(db, public_id, now))

    async def credentials(self, key_id: int) -> list[CredentialRow]:
        """Of one key, oldest first."""
        return await self._read(lambda db: directory.credentials(db, key_id))

    async def find_credential(self, public_id: str | bytes) -> LoadedKey | None:
        """All the proxy needs of a key, in one read; None if there is no such credential.

        Revoked, expired and frozen ones are returned too: the caller decides. Raises StoreUnavailable, StoreUnusable.
        """
        text = public_id.decode("ascii", "replace") if isinstance(public_id, bytes) else public_id
        now = self._now_ms()
        self._group.begin_snapshot()
        try:
            found = await self._looking_up.run(lambda db: directory.load_key(db, text, now))
            if found is None:
                return None
            loaded, batch = found
            return with_records(loaded, self._group.records_behind(batch))
        finally:
            self._group.end_snapshot()

    # -- ledger

    async def balance(self, account_id: int) -> int:
        """In nano-credits, less what queued calls cost. Does not wait for the writer. Raises NotFound."""
        self._group.begin_snapshot()
        try:
            balance_nano, batch = await self._read(lambda db: ledger.snapshot_balance(db, account_id))
            for record in self._group.records_behind(batch):
                if record[C_ACCOUNT] == account_id:
                    balance_nano -= record[C_COST_NANO] - min(record[C_WRITE_OFF_NANO], record[C_COST_NANO])
        finally:
            self._group.end_snapshot()
        return max(balance_nano, 0)

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
        now = self._now_ms()
        await self._group.flush()  # so that the balance it reports is the whole one

        def job(db: Connection) -> CreditResult:
            self._writer.forget_lots(account_id)
            result = ledger.add_credit(db, account_id, amount_nano, kind, reason, idempotency_key, expires_ms, now)
            self._writer.seal()
            return result

        return await self._change(job)

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
        now = self._now_ms()
        await self._group.flush()  # what calls used of the lots comes first

        def job(db: Connection) -> CreditResult:
            self._writer.forget_lots(account_id)
            result = ledger.take_credit(db, account_id, amount_nano, kind, reason, lot_kinds, idempotency_key, now)
            self._writer.seal()
            return result

        return await self._change(job)

    async def refund(
        self, account_id: int, amount_nano: int, *, reason: str, idempotency_key: str | None = None
    ) -> CreditResult:
        """take_credit of kind "refund" from unused purchased credits."""
        return await self.take_credit(
            account_id,
            amount_nano,
            kind="refund",
            reason=reason,
            lot_kinds=("purchased",),
            idempotency_key=idempotency_key,
        )

    async def due_lots(self, due_ms: int, *, after_account_id: int = 0, limit: int = 10_000) -> list[DueRow]:
        """What is left of lots whose time is up, by account. Page on with the last account's id."""
        await self._group.flush()
        return await self._read(lambda db: ledger.due_lots(db, due_ms, after_account_id, limit))

    async def expire_lots(self, most_nano: Mapping[int, int], due_ms: int, *, lots_max: int = 1000) -> list[EntryRow]:
        """Take what is left of lots whose time is up, as `expiry` entries: at most so much of each account's, and from
        so many lots.

        The caller takes it from the live balances first: what open calls hold is left for a later pass.
        """
        now = self._now_ms()
        await self._group.flush()

        def job(db: Connection) -> list[EntryRow]:
            for account_id in most_nano:
                self._writer.forget_lots(account_id)
            entries = ledger.expire_lots(db, most_nano, due_ms, lots_max, now)
            self._writer.seal()
            return entries

        return await self._change(job)

    async def entries(self, account_id: int, *, after_id: int = 0, limit: int = 1000) -> list[EntryRow]:
        """In the order in which they were made."""
        return await self._read(lambda db: ledger.entries_of(db, account_id, after_id, limit))

    async def lots(self, account_id: int, *, open_only: bool = True) -> list[LotRow]:
        """In the order in which they are spent."""
        return await self._read(lambda db: ledger.lots_of(db, account_id, open_only=open_only))

    async def verify(self, cost_of: CostFunction | None = None) -> list[Difference]:
        """`verify_all`, and only what does not agree."""
        return (await self.verify_all(cost_of)).differences

    async def verify_all(self, cost_of: CostFunction | None = None) -> Verified:
        """Recompute balances, lots, rollups and (with cost_of) the cost of each call still recorded; the seals; pages.

        Reads everything: minutes for tens of millions of calls, on a connection and thread of its own.
        """
        await self._group.flush()
        return await self._aside(lambda db: verify.verify(db, cost_of))

    # -- rate cards, calls, events

    async def idempotency_key(self, digest: bytes, since: int) -> tuple[int, int] | None:
        """(tag of the body, call id) of the call with that id or a later one that has this key."""
        return await self._read(lambda db: calls.select_idempotency_key(db, digest, since))

    async def delete_idempotency_keys_before(self, time_ms: int) -> int:
        """Forget the keys of calls that began before; how many."""
        return await self._change(lambda db: calls.delete_idempotency_keys(db, first_call_id(time_ms)))

    async def schedule_rates(self, body: str, effective_ms: int) -> ScheduledRatesRow:
        """Announce rates for a time; they are never changed or deleted."""
        now = self._now_ms()

        def job(db: Connection) -> ScheduledRatesRow:
            cursor = db.execute(
                "INSERT INTO rate_schedule (body, effective_ms, announced_ms, withdrawn_ms) VALUES (?, ?, ?, 0)",
                (body, effective_ms, now),
            )
            return ScheduledRatesRow(cursor.lastrowid or 0, body, effective_ms, now, 0)

        return await self._change(job)

    async def withdraw_rates(self, schedule_id: int) -> None:
        """Take back rates that are not in force yet. NotFound; Conflict: they are in force, or withdrawn already."""
        now = self._now_ms()

        def job(db: Connection) -> None:
            row = db.execute(
                "SELECT effective_ms, withdrawn_ms FROM rate_schedule WHERE id = ?", (schedule_id,)
            ).fetchone()
            if row is None:
                raise NotFound("no such schedule")
            if row[1] or row[0] <= now:
                raise Conflict("these rates are withdrawn already" if row[1] else "these rates are in force")
            db.execute("UPDATE rate_schedule SET withdrawn_ms = ? WHERE id = ?", (now, schedule_id))

        await self._change(job)

    async def rate_schedule(self) -> list[ScheduledRatesRow]:
        """All announced rates, oldest first."""

        def job(db: Connection) -> list[ScheduledRatesRow]:
            return [ScheduledRatesRow(*row) for row in db.execute("SELECT * FROM rate_schedule ORDER BY id")]

        return await self._read(job)

    async def switch_off(self, kind: str, name: str, *, message: str, by: str) -> SwitchRow:
        """Again: with another message."""
        row = SwitchRow(kind, name, self._now_ms(), message, by)

        def job(db: Connection) -> SwitchRow:
            db.execute("DELETE FROM switches WHERE kind = ? AND name = ?", (kind, name))
            db.execute(
                "INSERT INTO switches (kind, name, off_ms, message, by) VALUES (?, ?, ?, ?, ?)",
                (row.kind, row.name, row.off_ms, row.message, row.by),
            )
            return row

        return await self._change(job)

    async def switch_on(self, kind: str, name: str) -> bool:
        """False: it was not off."""

        def job(db: Connection) -> bool:
            return db.execute("DELETE FROM switches WHERE kind = ? AND name = ?", (kind, name)).rowcount > 0

        return await self._change(job)

    async def switches(self, kind: str) -> list[SwitchRow]:
        """What is off of a kind, by name."""

        def job(db: Connection) -> list[SwitchRow]:
            found = db.execute(
                "SELECT kind, name, off_ms, message, by FROM switches WHERE kind = ? ORDER BY name", (kind,)
            )
            return [SwitchRow(*row) for row in found]

        return await self._read(job)

    async def last_rate_card(self) -> RateCardRow | None:
        """The card by which a call was charged last; where there is no call, the one stored last."""

        def job(db: Connection) -> RateCardRow | None:
            row = db.execute(
                "SELECT rate_cards.id, body, created_ms FROM call_records JOIN rate_cards ON rate_cards.id = rate_card"
                " ORDER BY call_records.id DESC LIMIT 1"
            ).fetchone()
            if row is None:
                row = db.execute(
                    "SELECT id, body, created_ms FROM rate_cards ORDER BY created_ms DESC LIMIT 1"
                ).fetchone()
            return None if row is None else RateCardRow(*row)

        return await self._read(job)

    async def put_rate_card(self, card_id: str, body: str) -> None:
        """Store a card (canonical JSON) before a call names it; again is no change. Conflict if it differs."""
        now = self._now_ms()

        def job(db: Connection) -> None:
            row = db.execute("SELECT body FROM rate_cards WHERE id = ?", (card_id,)).fetchone()
            if row is None:
                db.execute("INSERT INTO rate_cards VALUES (?, ?, ?)", (card_id, body, now))
            elif row != (body,):
                raise Conflict(f"rate card {card_id} is stored with other rates")

        await self._change(job)

    async def rate_card(self, card_id: str) -> RateCardRow | None:
        def job(db: Connection) -> RateCardRow | None:
            row = db.execute("SELECT id, body, created_ms FROM rate_cards WHERE id = ?", (card_id,)).fetchone()
            return None if row is None else RateCardRow(*row)

        return await self._read(job)

    async def rate_cards(self) -> list[RateCardRow]:
        def job(db: Connection) -> list[RateCardRow]:
            rows = db.execute("SELECT id, body, created_ms FROM rate_cards ORDER BY created_ms, id")
            return [RateCardRow(*row) for row in rows]

        return await self._read(job)

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
        model: str | None = None,
        channel: str | None = None,
        path: str | None = None,
        organisation_id: int | None = None,
        before_id: int | None = None,
        limit: int = 100,
    ) -> list[CallRow]:
        """Newest first; committed ones (flush first to see all). Page on with before_id = the last id of a page."""
        return await self._read(
            lambda db: calls.select_calls(
                db,
                account_id=account_id,
                key_id=key_id,
                since_ms=since_ms,
                until_ms=until_ms,
                status=status,
                error_code=error_code,
                failed=failed,
                model=model,
                channel=channel,
                path=path,
                organisation_id=organisation_id,
                before_id=before_id,
                limit=limit,
            )
        )

    async def call(self, call_id: int) -> CallRow | None:
        """A committed call with its details."""
        return await self._read(lambda db: calls.select_call(db, call_id))

    async def recorded(self, call_ids: Sequence[int]) -> set[int]:
        """Which of these calls have a record that is committed."""
        return await self._read(lambda db: calls.select_recorded(db, call_ids))

    async def rollups(self, account_id: int, *, since_day: int = 0, until_day: int | None = None) -> list[RollupRow]:
        """Sums per key, model and day; until_day is included."""
        last_day = DAY_MAX if until_day is None else until_day
        return await self._read(lambda db: calls.select_rollups(db, account_id, since_day, last_day))

    async def usage(
        self,
        groups: Sequence[str],
        *,
        account_id: int | None = None,
        key_id: int | None = None,
        organisation_id: int | None = None,
        model: str | None = None,
        since_day: int = 0,
        until_day: int | None = None,
        limit: int,
    ) -> list[UsageRow]:
        """Sums over all calls that ever were, by some of `usage.GROUPS`; until_day is included."""
        last_day = DAY_MAX if until_day is None else until_day
        return await self._read(
            lambda db: usage.select_usage(
                db,
                groups,
                account_id=account_id,
                key_id=key_id,
                organisation_id=organisation_id,
                model=model,
                since_day=since_day,
                until_day=last_day,
                limit=limit,
            )
        )

    async def charged(self, account_id: int, *, key_id: int | None = None, since_day: int = 0) -> dict[int, int]:
        """What was charged to an account, or to one of its keys, by day; of calls that are committed."""

        def job(db: Connection) -> dict[int, int]:
            if key_id is None:
                return charged.of_account(db, account_id, since_day, DAY_MAX)
            return charged.of_key(db, account_id, key_id, since_day, DAY_MAX)

        return await self._read(job)

    async def events(
        self, *, since_ms: int = 0, kind: str | None = None, account_id: int | None = None, limit: int = 1000
    ) -> list[EventRow]:
        """Newest first."""
        return await self._read(lambda db: events.select_events(db, since_ms, kind, account_id, limit))

    async def delete_calls_before(self, before_ms: int, *, step: int = 2000) -> int:
        """Retention: delete calls and events that began before; in transactions of `step` rows, others in between.

        Sums stay (rollups), and `verify` stays true. Returns how many calls were deleted.
        """
        deleted = 0
        while count := await self._group.step(lambda db: calls.delete_before(db, before_ms, step)):
            deleted += count
        while await self._group.step(lambda db: calls.delete_events_before(db, before_ms, step)) == step:
            pass
        await self._group.checkpoint(truncate=True)  # the WAL holds the pages as they were before
        return deleted

    async def backup(self, path: str | Path) -> int:
        """A consistent copy of the live store in one file, with everything queued so far. Returns its size in bytes.

        Raises StoreError if the file exists, StoreUnavailable if it cannot be written.
        """
        await self._group.flush()
        return await asyncio.to_thread(backup.backup, self._path, Path(path))

    # -- helpers

    async def _read(self, job: Callable[[Connection], T]) -> T:
        return await self._reading.run(job)

    async def _change(self, job: Callable[[Connection], T]) -> T:
        return await self._group.change(job)

    async def _aside(self, job: Callable[[Connection], T]) -> T:
        """A long read, on a connection and a thread of its own."""
        worker = await Worker.start(lambda: open_reader(self._path))
        try:
            return await worker.run(job)
        finally:
            await worker.close()


def with_records(loaded: LoadedKey, records: Iterable[CallRecord]) -> LoadedKey:
    """Count records that were not committed yet when the key was read."""
    account_id, key_id = loaded.account.id, loaded.key.id
    organisation_id = 0 if loaded.organisation is None else loaded.organisation.id
    balance_nano = loaded.balance_nano
    first_day = directory.first_day_of_month(loaded.account_spend.day)
    spends = [loaded.account_spend, loaded.key_spend, loaded.organisation_spend]
    changed = False
    for record in records:
        cost_nano = record[C_COST_NANO]
        if not cost_nano:
            continue
        mine = (record[C_ACCOUNT] == account_id, record[C_KEY] == key_id, record[C_ORGANISATION] == organisation_id)
        if mine[0]:
            balance_nano -= cost_nano - min(record[C_WRITE_OFF_NANO], cost_nano)
        charged_nano = cost_nano - min(record[C_WRITE_OFF_NANO], cost_nano)
        day = call_day(record[C_ID])
        for index, spend in enumerate(spends):
            if mine[index] and spend is not None and first_day <= day <= spend.day:
                changed = True
                spends[index] = Spend(
                    spend.day,
                    spend.daily_nano + (charged_nano if day == spend.day else 0),
                    spend.month,
                    spend.monthly_nano + charged_nano,
                )
        changed = changed or mine[0]
    if not changed:
        return loaded
    account_spend, key_spend, organisation_spend = spends
    assert account_spend is not None
    assert key_spend is not None
    return msgspec.structs.replace(
        loaded,
        balance_nano=max(balance_nano, 0),
        account_spend=account_spend,
        key_spend=key_spend,
        organisation_spend=organisation_spend,
    )
