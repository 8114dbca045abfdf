"""Keys, accounts and balances in memory: loaded from the store on first use, changed in place, shared by all calls.

One `Scope` per key, account and organisation, one `Balance` per account: however many credentials open them. While the
store is read, changes may be committed; a load that began before a change is thrown away and begun again, so that no
key is ever built from what was true a moment ago.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from relay import _fastpath
from relay._fastpath import ApiKey, Balance, Credential, Engine, Scope
from relay.config import Config
from relay.policy import keys, plans
from relay.storage import Store, StoreError
from relay.storage.ledger import BALANCE_MAX_NANO
from relay.storage.rows import AccountRow, KeyRow, LoadedKey, OrganisationRow, Spend
from relay.wire import endpoints

log = logging.getLogger("relay.keys")

_CODES = _fastpath.ERROR_CODES
ENDING_CODES = {
    "suspended": _CODES.index("key_suspended"),
    "revoked": _CODES.index("key_revoked"),
    "frozen": _CODES.index("account_inactive"),
    "banned": _CODES.index("account_inactive"),
    "closed": _CODES.index("account_inactive"),
}


# With a look a minute: a key that was not used for this long is loaded again when it is.
IDLE_LOOKS = 15
# Lists of models with patterns whose names are remembered. Many keys have the same few.
MATCHES_MAX = 1000


class Keyring:
    """The keys that the engine knows."""

    def __init__(self, store: Store, engine: Engine, config: Callable[[], Config]) -> None:
        self._store = store
        self._engine = engine
        self._config = config
        self._keys: dict[int, ApiKey] = {}
        self._key_rows: dict[int, KeyRow] = {}
        self._credentials: dict[int, dict[bytes, Credential]] = {}  # by key
        self._accounts: dict[int, AccountRow] = {}
        self._account_keys: dict[int, set[int]] = {}  # by account: its keys that are here
        self._organisations: dict[int, OrganisationRow] = {}
        self._balances: dict[int, Balance] = {}
        self._scopes: dict[tuple[str, int], Scope] = {}
        self._changes = 0  # counts committed changes; a load that saw another count is out of date
        self._moving: dict[int, int] = {}  # by account: changes of its credits that have begun and not ended
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn: list[int] = []  # keys that `forget_unused` has still to look at
        self._matches: dict[tuple[str, ...], frozenset[bytes]] = {}  # by a key's models with patterns: what they allow
        self._matches_of: Config | None = None
        self._idle_looks: dict[int, int] = {}  # by key: how often it was found unused in a row
        self.on_stop: Callable[[ApiKey], None] = lambda key: None  # for calls that are not the engine's

    # -- loading

    def load_key(self, public_id: bytes) -> None:
        """From the engine: a public id that it does not know. Answers with `put_credential` in a later turn."""
        task = asyncio.get_running_loop().create_task(self._load(public_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, public_id: bytes) -> None:
        try:
            loaded = await self._read(public_id)
            credential = self._admit(loaded) if loaded is not None else None
        except StoreError as error:
            log.error("a key could not be loaded (%s)", type(error).__name__)
            self._engine.load_failed(public_id)
            return
        except Exception:
            self._engine.load_failed(public_id)
            raise
        self._engine.put_credential(public_id, credential)

    async def _read(self, public_id: str | bytes) -> LoadedKey | None:
        """A key as the store has it, true at the moment of return: use it before the next `await`."""
        while True:
            changes = self._changes
            loaded = await self._store.find_credential(public_id)
            if changes == self._changes and (loaded is None or loaded.account.id not in self._moving):
                return loaded

    def _admit(self, loaded: LoadedKey) -> Credential | None:
        """Builds, or finds, the live objects of a loaded key. None for a credential that was revoked."""
        row = loaded.credential
        if row.revoked_ms:
            return None
        account, organisation = loaded.account, loaded.organisation
        self._accounts[account.id] = account
        if organisation is not None:
            self._organisations[organisation.id] = organisation
        if account.id not in self._balances:
            self._balances[account.id] = Balance(account.id, min(loaded.balance_nano, BALANCE_MAX_NANO))
        self._scope("account", account.id, loaded.account_spend)
        self._scope("key", loaded.key.id, loaded.key_spend)
        if organisation is not None and loaded.organisation_spend is not None:
            self._scope("organisation", organisation.id, loaded.organisation_spend)
        key = self._keys.get(loaded.key.id)
        if key is None:
            key = self._keys[loaded.key.id] = ApiKey(
                row.public_id.encode(), row.digest, loaded.key.id, account.id, organisation.id if organisation else 0
            )
        self._account_keys.setdefault(account.id, set()).add(loaded.key.id)
        self._key_rows[loaded.key.id] = loaded.key
        self._refresh(key)
        public_id = row.public_id.encode()
        credential = Credential(public_id, row.digest, key, row.expires_ms * 1_000_000)
        self._credentials.setdefault(loaded.key.id, {})[public_id] = credential
        return credential

    def _scope(self, kind: str, number: int, spend: Spend) -> None:
        if (kind, number) not in self._scopes:
            scope = self._scopes[kind, number] = Scope(kind, number)
            scope.load_spend(spend.day, spend.daily_nano, spend.month, spend.monthly_nano)

    def _refresh(self, key: ApiKey) -> None:
        """Puts everything that can change into a live key: limits, statuses, what it may do."""
        row = self._key_rows[key.key_id]
        account = self._accounts[key.account_id]
        organisation = self._organisations.get(account.organisation_id)
        plan = self._config().plans.get(account.plan)
        now_ns = time.monotonic_ns()
        scopes = []
        in_force = [
            ("key", row.id, plans.effective(plan, account.limits, row.limits)),
            ("account", account.id, plans.effective(plan, account.limits)),
        ]
        if organisation is not None:
            in_force.append(("organisation", organisation.id, plans.effective(None, organisation.limits)))
        for kind, number, limits in in_force:
            scope = self._scopes[kind, number]
            scope.configure(now_ns=now_ns, **limits)
            scopes.append(scope)
        key.update(
            scopes=tuple(scopes),
            balance=self._balances[account.id],
            key_status=_fastpath.STATUSES.index(row.status),
            account_status=_fastpath.STATUSES.index(account.status),
            expires_ns=row.expires_ms * 1_000_000,
            endpoint_scopes=endpoints.key_mask(row.scopes),
            models=None if row.models is None else self._allowed_models(row.models),
            networks=None if row.networks is None else keys.pack_networks(row.networks),
            plan=account.plan,
            on_disconnect=1 if (row.on_disconnect or self._config().billing.on_disconnect) == "drain" else 0,
        )

    def _allowed_models(self, models: tuple[str, ...]) -> frozenset[bytes]:
        """Names: a call looks no pattern up. Keys with the same patterns have one set, made anew after a reload."""
        if not any(map(keys.is_pattern, models)):
            return frozenset(name.encode() for name in models)
        config = self._config()
        if self._matches_of is not config or len(self._matches) >= MATCHES_MAX:
            self._matches, self._matches_of = {}, config
        found = self._matches.get(models)
        if found is None:
            known = {*config.models, *(rate.model for rate in (*config.rates, *config.pictures))}
            found = frozenset(name.encode() for name in keys.allowed_models(models, known))
            self._matches[models] = found
        return found

    # -- changes

    def reconfigure(self) -> None:
        """The configuration changed: plans, defaults and matching models of every key in memory."""
        for key in self._keys.values():
            self._refresh(key)

    async def key_changed(self, key_id: int) -> None:
        """Settings, status or credentials changed in the store."""
        self._changes += 1
        key = self._keys.get(key_id)
        for row in await self._store.credentials(key_id):
            public_id = row.public_id.encode()
            known = self._credentials.get(key_id, {}).get(public_id)
            if known is None:
                self._engine.forget_credential(public_id)
            elif row.revoked_ms:
                self._engine.forget_credential(public_id)
                del self._credentials[key_id][public_id]
            else:
                known.expires_ns = row.expires_ms * 1_000_000
        if key is None:
            return
        key_row = await self._store.key(key_id)
        if self._keys.get(key_id) is not key:
            return  # dropped meanwhile: whoever loads it again reads the change
        self._key_rows[key_id] = key_row
        self._refresh(key)
        status = self._key_rows[key_id].status
        if status != "active":
            self._stop(key, status)

    async def account_changed(self, account_id: int) -> None:
        """Plan, limits, status or organisation changed in the store."""
        self._changes += 1
        if account_id not in self._accounts:
            return
        account = await self._store.account(account_id)
        if account_id not in self._accounts:
            return  # dropped meanwhile
        moved = account.organisation_id != self._accounts[account_id].organisation_id
        self._accounts[account_id] = account
        for key in [key for key in self._keys.values() if key.account_id == account_id]:
            if moved:
                self._forget(key)
            else:
                self._refresh(key)
            if account.status != "active":
                self._stop(key, account.status)

    async def organisation_changed(self, organisation_id: int) -> None:
        """Limits changed in the store."""
        self._changes += 1
        if organisation_id not in self._organisations:
            return
        self._organisations[organisation_id] = await self._store.organisation(organisation_id)
        for key in self._keys.values():
            if self._accounts[key.account_id].organisation_id == organisation_id:
                self._refresh(key)

    def _stop(self, key: ApiKey, status: str) -> None:
        """Ends the calls in flight of a key that is not active any more."""
        self._engine.stop_calls(key, ENDING_CODES[status])
        self.on_stop(key)

    # -- forgetting

    def forget_unused(self, count: int) -> int:
        """Looks at so many keys, each in its turn, and drops those that nobody uses; how many that were.

        A key goes that was not used in the last IDLE_LOOKS looks, or, while there are more than
        `server.keys_in_memory_max`, in the last one. One with open calls never goes, nor one whose limits are not at
        rest: a key that is loaded again has full buckets. All call records must have been handed to the store.
        """
        dropped = 0
        busy = self._engine.busy_keys()
        if not self._turn:
            self._turn = list(self._keys)
            self._idle_looks = {key_id: self._idle_looks[key_id] for key_id in self._turn if key_id in self._idle_looks}
        looked_at, self._turn = self._turn[-count:], self._turn[:-count]
        for key_id in looked_at:
            key = self._keys.get(key_id)
            if key is None:
                continue
            looks = self._idle_looks[key_id] = 0 if key.recent else self._idle_looks.get(key_id, 0) + 1
            key.recent = False
            crowded = len(self._keys) > self._config().server.keys_in_memory_max
            if looks > (0 if crowded else IDLE_LOOKS) and key_id not in busy and self._at_rest("key", key_id):
                self._drop(key)
                dropped += 1
        return dropped

    def _at_rest(self, kind: str, number: int) -> bool:
        """Nothing in flight, and every bucket full."""
        state = self._scopes[kind, number].state(time.monotonic_ns(), time.time_ns())
        return bool(
            state["in_flight"] == 0
            and state["requests_remaining"] == state["requests_limit"]
            and state["tokens_remaining"] == state["tokens_limit"]
        )

    def _drop(self, key: ApiKey) -> None:
        """Drops a key from memory, and with the last one of an account that account and its balance."""
        self._forget(key)
        del self._scopes["key", key.key_id]
        account_id = key.account_id
        if self._account_keys[account_id]:
            return
        balance = self._balances[account_id]
        if balance.open_holds or account_id in self._moving or not self._at_rest("account", account_id):
            return  # its next key to go takes it along
        del self._balances[account_id], self._scopes["account", account_id]
        del self._accounts[account_id], self._account_keys[account_id]

    def _forget(self, key: ApiKey) -> None:
        """Drops a key from memory: its next call loads it again. Its account's balance stays."""
        for public_id in self._credentials.pop(key.key_id, {}):
            self._engine.forget_credential(public_id)
        self._account_keys[key.account_id].discard(key.key_id)
        del self._keys[key.key_id]
        del self._key_rows[key.key_id]

    @contextlib.contextmanager
    def credit_moving(self, account_id: int) -> Iterator[None]:
        """Around a change of an account's credits, in memory and in the store.

        Without it a balance that is loaded just then could hold a committed addition that `credit_added` adds once
        more, or miss a refund that is not committed yet.
        """
        self._moving[account_id] = self._moving.get(account_id, 0) + 1
        try:
            yield
        finally:
            self._moving[account_id] -= 1
            if not self._moving[account_id]:
                del self._moving[account_id]
            self._changes += 1

    def credit_added(self, account_id: int, nano: int) -> None:
        """Committed credits become spendable."""
        self._changes += 1
        if account_id in self._balances:
            self._balances[account_id].add(nano)

    def credit_taken(self, account_id: int, nano: int) -> bool:
        """Takes credits before the store is told; False where they are not there. Not in memory: no holds either."""
        self._changes += 1
        balance = self._balances.get(account_id)
        return balance is None or nano == 0 or balance.take(nano) == nano

    # -- reading

    def balance(self, account_id: int) -> Balance | None:
        return self._balances.get(account_id)

    async def load_balance(self, account_id: int) -> Balance:
        """The live balance of an account, whether one of its keys is in memory or not. Raises StoreError."""
        while account_id not in self._balances:
            changes = self._changes
            nano = await self._store.balance(account_id)
            if changes == self._changes and account_id not in self._moving and account_id not in self._balances:
                self._balances[account_id] = Balance(account_id, min(nano, BALANCE_MAX_NANO))
        return self._balances[account_id]

    def account(self, account_id: int) -> AccountRow | None:
        return self._accounts.get(account_id)

    async def find(self, secret: bytes) -> ApiKey | None:
        """The live key that a secret opens, whatever its status; for the customer's API."""
        credential = await self.find_credential(secret)
        return credential.key if credential is not None else None

    async def find_credential(self, secret: bytes) -> Credential | None:
        """The secret itself, where it is in force."""
        public_id = keys.parse_secret(secret)
        if public_id is None:
            return None
        credential = self._engine.credential(public_id.encode())
        if credential is None and self._engine.is_no_key(public_id.encode()):
            return None
        if credential is None:
            loaded = await self._read(public_id)
            credential = self._admit(loaded) if loaded is not None else None
            self._engine.put_credential(public_id.encode(), credential)
        return credential if credential is not None and self._engine.opens(credential, secret) else None

    async def key(self, key_id: int) -> ApiKey | None:
        """A live key by its number, loaded if need be."""
        if key_id not in self._keys:
            for row in await self._store.credentials(key_id):
                if not row.revoked_ms:
                    loaded = await self._read(row.public_id)
                    if loaded is not None:
                        self._engine.put_credential(row.public_id.encode(), self._admit(loaded))
                    break
        return self._keys.get(key_id)

    @property
    def loaded_keys(self) -> int:
        return len(self._keys)
