"""What operators can do: every command as a method that returns a plain JSON document.

The operator's API, the command line (with and without a running relay), the demo and the tests all come through here.
A change is committed before its method returns; then the running relay, if there is one, is told, so that it acts on
the change at once. What takes from a balance is the exception: it is taken from the live balance first.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from msgspec import UnsetType

from relay import __version__, rate_files, units
from relay.config import Config, Rate
from relay.config_values import ConfigError
from relay.control import bill, commands, documents, pricelist, published, usage, values
from relay.control.commands import Command
from relay.control.documents import Document
from relay.control.failures import CommandError, conflict, invalid, not_found
from relay.control.finding import Finder
from relay.control.live import Live
from relay.control.pepper import Pepper
from relay.policy import keys, plans, pricing
from relay.policy import schedule as prices
from relay.records import MS_PER_DAY
from relay.storage import rows
from relay.storage.errors import Conflict, InsufficientCredit, NotFound, StoreError
from relay.storage.store import Store

STATUS_EVENTS = 1000  # of an account, newest first, in which its last change of status is looked for
# From which status a change of an account's status may start.
ACCOUNT_TRANSITIONS: dict[str, tuple[rows.AccountStatus, tuple[str, ...]]] = {
    "freeze": ("frozen", ("active",)),
    "unfreeze": ("active", ("frozen",)),
    "ban": ("banned", ("active", "frozen", "closed")),
    "close": ("closed", ("active", "frozen")),
    "reopen": ("active", ("closed", "banned")),
}
KEY_TRANSITIONS: dict[str, tuple[rows.KeyStatus, tuple[str, ...]]] = {
    "revoke": ("revoked", ("active", "suspended")),
    "suspend": ("suspended", ("active",)),
    "resume": ("active", ("suspended",)),
}
_ENDED = ("banned", "closed")
OVERLAP_SECONDS_MAX = 90 * 86_400
MESSAGE_CHARACTERS_MAX = 500  # of what callers are told about a switch


class Operations:
    """The commands. `config` may be replaced at any time (reload); `live` is None where no relay runs."""

    def __init__(self, store: Store, live: Live | None, config: Config, pepper: Pepper) -> None:
        self.config = config
        self._store = store
        self._live = live
        self._pepper = pepper
        self._find = Finder(store)
        # Changes read, decide and write: one at a time. They are rare, and none waits for anything but the store.
        self._changing = asyncio.Lock()

    async def run(self, command: Command, params: commands.Params) -> Document:
        """Does one command of the table. Raises CommandError, also for what the store refuses."""
        method = cast(Callable[[commands.Params], Awaitable[Document]], getattr(self, command.operation))
        try:
            return await method(params)
        except NotFound as failure:
            raise CommandError("not_found", str(failure)) from failure
        except (Conflict, InsufficientCredit) as failure:
            raise CommandError("conflict", str(failure)) from failure
        except StoreError as failure:
            raise CommandError("unavailable", str(failure)) from failure

    # --- the process

    async def status(self, _: commands.Nothing = commands.Nothing()) -> Document:  # noqa: B008 - immutable
        """What the running relay does."""
        return {
            "running": True,
            "version": __version__,
            "store_pending": self._store.pending,
            **self._running().status(),
        }

    async def reload(self, _: commands.Nothing = commands.Nothing()) -> Document:  # noqa: B008
        """Applies a changed configuration; a broken one leaves the old in force."""
        try:
            result = await self._running().reload()
        except ConfigError as failure:
            raise invalid("; ".join(failure.lines)) from None
        self._record("reload")
        return {"reloaded": True, **result}

    async def drain(self, _: commands.Nothing = commands.Nothing()) -> Document:  # noqa: B008
        """Refuses new calls, ends when the open ones have ended."""
        live = self._running()
        self._record("drain")
        return {"draining": True, **await live.drain()}

    def _running(self) -> Live:
        if self._live is None:
            raise CommandError("unavailable", "no relay is running on this data directory")
        return self._live

    async def backup(self, params: commands.Backup) -> Document:
        """A consistent copy of the store; the pepper file is not in it."""
        if not params.path.startswith("/"):
            raise invalid("path: expected an absolute path", "path")
        size = await self._store.backup(params.path)
        self._record("backup")
        return {"path": params.path, "bytes": size}

    # --- accounts

    async def account_create(self, params: commands.AccountCreate) -> Document:
        """One account per address."""
        email = values.email(params.email)
        plan = self._plan(params.plan if params.plan is not None else published.default_plan(self.config))
        async with self._changing:
            other = await self._store.find_account(email)
            if other is not None:
                raise _address_taken(other)
            warnings: list[str] = []
            organisation_id = await self._organisation_id(params.organisation, warnings) if params.organisation else 0
            row = await self._store.create_account(email, plan=plan, organisation_id=organisation_id)
            self._record("account_create", account_id=row.id)
        return await self._account_document(row) | {"warnings": warnings}

    async def account_list(self, params: commands.AccountList) -> Document:
        """Accounts in the order in which they were made; `next` continues behind this page."""
        limit = values.page(params.limit)
        if params.status is not None and params.status not in rows.ACCOUNT_STATUSES:
            raise invalid(f"status: expected one of {', '.join(rows.ACCOUNT_STATUSES)}", "status")
        organisation_id: int | None = None
        if params.organisation is not None:
            organisation_id = (await self._find.organisation(params.organisation, "organisation")).id
        after_id = values.account_id(params.after, "after") if params.after is not None else 0
        found = await self._store.accounts(organisation_id=organisation_id, after_id=after_id, limit=limit)
        names = {row.id: row.name for row in await self._store.organisations()}
        accounts = [
            documents.account(row, names.get(row.organisation_id), await self._money(row.id))
            for row in found
            if params.status is None or row.status == params.status
        ]
        return {"accounts": accounts, "next": units.account_text(found[-1].id) if len(found) == limit else None}

    async def account_show(self, params: commands.Id) -> Document:
        """An account with its balance; of one that is not active also why, since when and by whom, if events tell."""
        row = await self._find.account(params.id)
        return await self._account_document(row) | await self._why_not_active(row)

    async def _why_not_active(self, row: rows.AccountRow) -> Document:
        acts = {f"account_{act}" for act, (status, _) in ACCOUNT_TRANSITIONS.items() if status == row.status}
        if row.status == "active":
            return {}
        await self._store.flush()
        acted = await self._store.events(account_id=row.id, limit=STATUS_EVENTS)
        event = next((event for event in acted if event.code in acts), None)
        return {
            "status_reason": event.detail if event is not None else None,
            "status_since": units.time_text(event.time_ms) if event is not None else None,
            "status_by": event.kind if event is not None else None,
        }

    async def account_set(self, params: commands.AccountSet) -> Document:
        """Changes what is given."""
        warnings: list[str] = []
        async with self._changing:
            row = await self._find.account(params.id)
            changes: dict[str, Any] = {}
            if not isinstance(params.email, UnsetType):
                changes["email"] = values.email(params.email)
                other = await self._store.find_account(changes["email"])
                if other is not None and other.id != row.id:
                    raise _address_taken(other)
            if not isinstance(params.plan, UnsetType):
                changes["plan"] = self._plan(params.plan)
            if not isinstance(params.organisation, UnsetType):
                name = params.organisation
                changes["organisation_id"] = await self._organisation_id(name, warnings) if name else 0
            limits = values.limits(params, row.limits)
            if limits != row.limits:
                changes["limits"] = limits
            if changes:
                row = await self._store.set_account(row.id, **changes)
                self._record("account_set", account_id=row.id, detail=", ".join(sorted(changes)))
                await self._account_changed(row.id)
        warnings += _odd_limits(row.limits)
        return await self._account_document(row) | {"warnings": warnings}

    async def account_freeze(self, params: commands.IdReason) -> Document:
        """Refuses calls and keeps the balance."""
        return await self._account_status("freeze", params)

    async def account_unfreeze(self, params: commands.IdReason) -> Document:
        """Ends a freeze."""
        return await self._account_status("unfreeze", params)

    async def account_ban(self, params: commands.IdReason) -> Document:
        """Ends an account for a violation."""
        return await self._account_status("ban", params)

    async def account_close(self, params: commands.IdReason) -> Document:
        """Closes an account."""
        return await self._account_status("close", params)

    async def account_reopen(self, params: commands.IdReason) -> Document:
        """Makes a closed or banned account active again."""
        return await self._account_status("reopen", params)

    async def _account_status(self, act: str, params: commands.IdReason) -> Document:
        status, origins = ACCOUNT_TRANSITIONS[act]
        reason = values.text(params.reason, "reason", characters_max=values.TEXT_CHARACTERS_MAX)
        async with self._changing:
            row = await self._find.account(params.id)
            if row.status not in origins:
                raise conflict(f"account {params.id} is {row.status}; {act} expects {' or '.join(origins)}")
            row = await self._store.set_account(row.id, status=status)
            self._record(f"account_{act}", account_id=row.id, detail=reason)
            await self._account_changed(row.id)
        return await self._account_document(row)

    async def _account_document(self, row: rows.AccountRow) -> Document:
        organisation = (await self._store.organisation(row.organisation_id)).name if row.organisation_id else None
        document = documents.account(row, organisation, await self._money(row.id))
        in_force = plans.effective(self.config.plans.get(row.plan), row.limits)
        return document | {
            "in_force": documents.in_force(in_force),
            "spent": await usage.spent(self._store, _now_ms(), account_id=row.id),
        }

    async def _money(self, account_id: int) -> Document:
        live = await self._live.balance(account_id) if self._live else None
        return documents.balance(0 if live else await self._store.balance(account_id), live)

    async def _account_changed(self, account_id: int) -> None:
        if self._live:
            await self._live.account_changed(account_id)

    async def _organisation_id(self, name: str, warnings: list[str]) -> int:
        name = _organisation_name(name)
        row = await self._store.find_organisation(name)
        if row is None:
            row = await self._store.create_organisation(name)
            others = len(await self._store.organisations()) - 1
            if others:
                number = units.organisation_text(row.id)
                warnings.append(f"there was no organisation of this name: {number} was made, with no limits of its own")
        return row.id

    def _plan(self, name: str) -> str:
        if name not in self.config.plans:
            raise invalid(f"plan: expected one of {', '.join(sorted(self.config.plans))}", "plan")
        return name

    # --- organisations

    async def organisation_list(self, _: commands.Nothing = commands.Nothing()) -> Document:  # noqa: B008
        """All organisations."""
        return {"organisations": [documents.organisation(row) for row in await self._store.organisations()]}

    async def organisation_show(self, params: commands.Id) -> Document:
        """An organisation."""
        return documents.organisation(await self._find.organisation(params.id))

    async def organisation_set(self, params: commands.OrganisationSet) -> Document:
        """Changes what is given."""
        async with self._changing:
            row = await self._find.organisation(params.id)
            changes: dict[str, Any] = {}
            if not isinstance(params.name, UnsetType):
                changes["name"] = _organisation_name(params.name)
            limits = values.limits(params, row.limits)
            if limits != row.limits:
                changes["limits"] = limits
            if changes:
                row = await self._store.set_organisation(row.id, **changes)
                self._record("organisation_set", detail=f"{params.id}: {', '.join(sorted(changes))}")
                if self._live:
                    await self._live.organisation_changed(row.id)
        return documents.organisation(row)

    # --- credits

    async def credit_add(self, params: commands.CreditAdd) -> Document:
        """Adds a lot; a negative adjustment takes from what is available."""
        if params.kind not in rows.LOT_KINDS:
            raise invalid(f"kind: expected one of {', '.join(rows.LOT_KINDS)}", "kind")
        now_ms = _now_ms()
        adjustment = params.kind == "adjustment"
        nano = values.amount(params.amount, "amount", signed=adjustment)
        reason = values.text(params.reason, "reason", characters_max=values.TEXT_CHARACTERS_MAX)
        token = _idempotency_key(params.idempotency_key)
        expires_ms = values.expiry(params.expires, "expires", now_ms=now_ms)
        row = await self._find.account(params.id)
        if nano < 0:
            if expires_ms:
                raise invalid("expires: what takes credits has no expiry", "expires")
            result = await self._take(
                row.id,
                -nano,
                lambda: self._store.take_credit(row.id, -nano, kind="adjustment", reason=reason, idempotency_key=token),
            )
        else:
            if row.status in _ENDED:
                raise conflict(f"account {params.id} is {row.status}")
            with self._moving(row.id):
                result = await self._store.add_credit(
                    row.id, nano, kind=params.kind, reason=reason, idempotency_key=token, expires_ms=expires_ms
                )
                if result.created and self._live:
                    await self._live.credit_added(row.id, nano)
        self._record_credit("credit_add", result)
        return await self._credit_document(result)

    async def credit_refund(self, params: commands.CreditRefund) -> Document:
        """Takes back purchased credits that were not used."""
        nano = values.amount(params.amount, "amount")
        reason = values.text(params.reason, "reason", characters_max=values.TEXT_CHARACTERS_MAX, required=True)
        token = _idempotency_key(params.idempotency_key)
        row = await self._find.account(params.id)
        result = await self._take(
            row.id, nano, lambda: self._store.refund(row.id, nano, reason=reason, idempotency_key=token)
        )
        self._record_credit("credit_refund", result)
        return await self._credit_document(result)

    async def _take(
        self, account_id: int, nano: int, commit: Callable[[], Awaitable[rows.CreditResult]]
    ) -> rows.CreditResult:
        """Takes from the live balance, then from the store; gives back what the store did not take."""
        if self._live is None:
            return await commit()
        with self._moving(account_id):
            if not await self._live.credit_taken(account_id, nano):
                raise conflict("the account has less than that available: the rest is spent, or held by open calls")
            taken = False
            try:
                result = await commit()
                taken = result.created
                return result
            finally:
                if not taken:
                    await self._live.credit_added(account_id, nano)

    def _moving(self, account_id: int) -> contextlib.AbstractContextManager[None]:
        return self._live.credit_moving(account_id) if self._live else contextlib.nullcontext()

    def _record_credit(self, code: str, result: rows.CreditResult) -> None:
        """An act with money, once: a repeat with the same idempotency key did nothing."""
        if result.created:
            entry = result.entry
            detail = f"{units.entry_text(entry.id)} {entry.kind} {units.format_credits(entry.amount_nano)}"
            self._record(code, account_id=entry.account_id, detail=detail)

    async def _credit_document(self, result: rows.CreditResult) -> Document:
        entry = result.entry
        live = await self._live.balance(entry.account_id) if self._live else None
        return {
            "entry_id": units.entry_text(entry.id),
            "account_id": units.account_text(entry.account_id),
            "kind": entry.kind,
            "amount": units.format_credits(entry.amount_nano),
            **documents.balance(result.balance_nano, live),
            "created": result.created,
        }

    # --- keys

    async def key_create(self, params: commands.KeyCreate) -> Document:
        """A key with its first secret, which only this document holds."""
        now_ms = _now_ms()
        settings = self._key_settings(params, now_ms=now_ms)
        settings["name"] = values.text(params.name, "name", characters_max=values.NAME_CHARACTERS_MAX)
        settings["limits"] = values.limits(params, rows.NO_OVERRIDES)
        secret, credential = self._new_secret()
        async with self._changing:
            account = await self._find.account(params.id)
            if account.status in _ENDED:
                raise conflict(f"account {params.id} is {account.status}")
            row = await self._store.create_key(account.id, **credential, **settings)
            self._record("key_create", account_id=account.id, key_id=row.id)
        warnings = self._odd_key(row)
        if account.status != "active":
            warnings.append(
                f"account {units.account_text(account.id)} is {account.status}: calls with this key are refused"
            )
        return await self._key_document(row) | {"secret": secret, "warnings": warnings}

    async def key_list(self, params: commands.Id) -> Document:
        """All keys of an account."""
        account = await self._find.account(params.id)
        found: list[rows.KeyRow] = []
        while True:
            page = await self._store.keys(account.id, after_id=found[-1].id if found else 0, limit=values.PAGE_MAX)
            found += page
            if len(page) < values.PAGE_MAX:
                return {"keys": [await self._key_document(row) for row in found]}

    async def key_show(self, params: commands.Id) -> Document:
        """A key, with the limits that hold for it."""
        row = await self._find.key(params.id)
        account = await self._store.account(row.account_id)
        in_force = plans.effective(self.config.plans.get(account.plan), account.limits, row.limits)
        return await self._key_document(row) | {
            "in_force": documents.in_force(in_force),
            "spent": await usage.spent(self._store, _now_ms(), account_id=row.account_id, key_id=row.id),
        }

    async def key_set(self, params: commands.KeySet) -> Document:
        """Changes what is given."""
        now_ms = _now_ms()
        changes = self._key_settings(params, now_ms=now_ms)
        if not isinstance(params.name, UnsetType):
            changes["name"] = values.text(params.name, "name", characters_max=values.NAME_CHARACTERS_MAX, required=True)
        async with self._changing:
            row = await self._find.key(params.id)
            if row.status == "revoked":
                raise conflict(f"key {params.id} is revoked")
            limits = values.limits(params, row.limits)
            if limits != row.limits:
                changes["limits"] = limits
            if changes:
                row = await self._store.set_key(row.id, **changes)
                self._record("key_set", row.account_id, row.id, ", ".join(sorted(changes)))
                await self._key_changed(row.id)
        return await self._key_document(row) | {"warnings": self._odd_key(row)}

    async def key_rotate(self, params: commands.KeyRotate) -> Document:
        """A new secret with the same settings; the old ones end now, or after the overlap."""
        if not 0 <= params.overlap_seconds <= OVERLAP_SECONDS_MAX:
            raise invalid(f"overlap_seconds: expected 0 to {OVERLAP_SECONDS_MAX}", "overlap_seconds")
        secret, credential = self._new_secret()
        async with self._changing:
            row = await self._find.key(params.id)
            if row.status == "revoked":
                raise conflict(f"key {params.id} is revoked")
            old_expires_ms = _now_ms() + params.overlap_seconds * 1000
            await self._store.add_credential(row.id, **credential, old_expires_ms=old_expires_ms)
            self._record("key_rotate", row.account_id, row.id, f"overlap {params.overlap_seconds} s")
            await self._key_changed(row.id)
        old = units.time_text(old_expires_ms)
        return await self._key_document(row) | {"secret": secret, "old_secrets_end": old}

    async def key_revoke(self, params: commands.IdReason) -> Document:
        """Ends a key for good."""
        return await self._key_status("revoke", params)

    async def key_suspend(self, params: commands.IdReason) -> Document:
        """Refuses a key until it is resumed."""
        return await self._key_status("suspend", params)

    async def key_resume(self, params: commands.IdReason) -> Document:
        """Ends a suspension."""
        return await self._key_status("resume", params)

    async def _key_status(self, act: str, params: commands.IdReason) -> Document:
        status, origins = KEY_TRANSITIONS[act]
        reason = values.text(params.reason, "reason", characters_max=values.TEXT_CHARACTERS_MAX)
        async with self._changing:
            row = await self._find.key(params.id)
            if row.status not in origins:
                raise conflict(f"key {params.id} is {row.status}; {act} expects {' or '.join(origins)}")
            row = await self._store.set_key(row.id, status=status)
            self._record(f"key_{act}", row.account_id, row.id, reason)
            await self._key_changed(row.id)
        return await self._key_document(row)

    def _key_settings(self, params: commands.KeyLimits, *, now_ms: int) -> dict[str, Any]:
        """Columns of what was given, but for name and limits."""
        settings: dict[str, Any] = {}
        if not isinstance(params.description, UnsetType):
            settings["description"] = values.text(
                params.description, "description", characters_max=values.TEXT_CHARACTERS_MAX
            )
        if not isinstance(params.scopes, UnsetType):
            settings["scopes"] = values.scopes(params.scopes)
        if not isinstance(params.models, UnsetType):
            settings["models"] = values.models(params.models)
        if not isinstance(params.allow_ips, UnsetType):
            settings["networks"] = values.networks(params.allow_ips)
        if not isinstance(params.on_disconnect, UnsetType):
            if params.on_disconnect not in (None, "cancel", "drain"):
                raise invalid("on_disconnect: expected cancel or drain, or null", "on_disconnect")
            settings["on_disconnect"] = params.on_disconnect
        if not isinstance(params.expires, UnsetType):
            settings["expires_ms"] = values.expiry(params.expires, "expires", now_ms=now_ms)
        return settings

    def _odd_key(self, row: rows.KeyRow) -> list[str]:
        """What is allowed and probably not meant."""
        served = set(self.config.models)
        odd = [
            f"no channel serves {'a model that begins as ' if keys.is_pattern(model) else ''}{model}"
            for model in row.models or ()
            if keys.allowed_models([model], served).isdisjoint(served)
        ]
        return odd + _odd_limits(row.limits)

    def _new_secret(self) -> tuple[str, dict[str, Any]]:
        """A secret, and what is stored of it."""
        secret = keys.make_secret()
        public_id = keys.parse_secret(secret)
        assert public_id is not None
        return secret, {
            "public_id": public_id,
            "digest": keys.digest(self._pepper.value, secret),
            "last4": secret[-4:],
            "pepper_version": self._pepper.version,
        }

    async def _key_document(self, row: rows.KeyRow) -> Document:
        return documents.key(row, await self._store.credentials(row.id), now_ms=_now_ms())

    async def _key_changed(self, key_id: int) -> None:
        if self._live:
            await self._live.key_changed(key_id)

    # --- channels

    async def channel_list(self, _: commands.Nothing = commands.Nothing()) -> Document:  # noqa: B008
        """Every configured channel, whether it is off, and how it does where a relay runs."""
        off = {row.name: row for row in await self._store.switches("channel")}
        running = {state["name"]: state for state in self._live.status()["channels"]} if self._live else {}
        found = []
        for channel in self.config.channels:
            row = off.get(channel.name)
            shown: Document = {
                "name": channel.name,
                "api": channel.api,
                "priority": channel.priority,
                "weight": channel.weight,
                "tags": list(channel.tags),
                "models": len(channel.models),
                "state": "off" if row else None,
                **running.get(channel.name, {}),
            }
            found.append(
                shown
                | {
                    "message": row.message or None if row else None,
                    "off_since": units.time_text(row.off_ms) if row else None,
                    "off_by": row.by if row else None,
                }
            )
        return {"channels": found}

    async def channel_test(self, params: commands.Id) -> Document:
        """Asks the provider with each key. `ok`: all of them work."""
        name = self._channel(params.id)
        keys = await self._running().channel_test(name)
        return {"name": name, "ok": all(key["ok"] for key in keys), "keys": keys}

    async def channel_off(self, params: commands.ChannelOff) -> Document:
        """Not chosen any more, across restarts and reloads. Calls that are under way go on."""
        name = self._channel(params.id)
        message = values.text(params.message, "message", characters_max=MESSAGE_CHARACTERS_MAX)
        async with self._changing:
            row = await self._store.switch_off("channel", name, message=message, by="operator")
            self._record_switch("channel_off", name, message)
            if self._live:
                await self._live.channels_switched()
        return {"name": name, "off": True, "message": message or None, "off_since": units.time_text(row.off_ms)}

    async def channel_on(self, params: commands.Id) -> Document:
        """Ends a switch; also of a channel that is not configured any more."""
        async with self._changing:
            if await self._store.switch_on("channel", params.id):
                self._record_switch("channel_on", params.id, "")
            else:
                self._channel(params.id)
            if self._live:
                await self._live.channels_switched()
        return {"name": params.id, "off": False}

    async def channel_wake(self, params: commands.ChannelWake) -> Document:
        """Its keys rest no more, and it is in use, until the next failure."""
        name = self._channel(params.id)
        if params.key is not None and params.key < 1:
            raise invalid("key: expected a place in api_keys, from 1", "key")
        if not self._running().channel_wake(name, params.key or 0):
            raise not_found(f"key {params.key} of channel {name}")
        self._record_switch("channel_wake", name, f"key {params.key}" if params.key else "")
        return {"name": name, "key": params.key, "woken": True}

    def _channel(self, name: str) -> str:
        if all(channel.name != name for channel in self.config.channels):
            raise not_found(f"channel {name}")
        return name

    def _record_switch(self, code: str, name: str, detail: str) -> None:
        self._store.append_events([(_now_ms(), "operator", code, None, None, None, name[:64], None, 1, detail or None)])

    # --- records

    async def calls(self, params: commands.Calls) -> Document:
        """Call records, newest first; `next` continues behind this page."""
        now_ms = _now_ms()
        limit = values.page(params.limit)
        status, error_code = values.status_filter(params.status)
        account_id = (await self._find.account(params.account, "account")).id if params.account is not None else None
        key_id = (await self._find.key(params.key, "key")).id if params.key is not None else None
        organisation_id: int | None = None
        if params.organisation is not None:
            organisation_id = (await self._find.organisation(params.organisation, "organisation")).id
        await self._store.flush()
        found = await self._store.calls(
            account_id=account_id,
            key_id=key_id,
            since_ms=values.moment(params.since, "since", now_ms=now_ms) or 0,
            until_ms=values.moment(params.until, "until", now_ms=now_ms),
            status=status,
            error_code=error_code,
            model=params.model,
            channel=params.channel,
            path=params.path,
            organisation_id=organisation_id,
            before_id=values.call_id(params.before, "before"),
            limit=limit,
        )
        last = units.call_text(found[-1].id) if len(found) == limit else None
        return {"calls": [documents.call(row) for row in found], "next": last}

    async def calls_show(self, params: commands.Id) -> Document:
        """A call's record, and its bill line by line from the card that it was admitted under."""
        number = values.call_id(params.id, "id")
        assert number is not None
        await self._store.flush()
        row = await self._store.call(number)
        if row is None:
            raise not_found(f"call {params.id}; records are deleted after retention.calls_days")
        card = await self._store.rate_card(row.rate_card) if row.rate_card else None
        return bill.document(documents.call(row), card.body if card else None, row)

    async def usage(self, params: commands.Usage) -> Document:
        """Sums over all calls that ever were, also over those that retention has deleted."""
        organisation_id: int | None = None
        if params.organisation is not None:
            organisation_id = (await self._find.organisation(params.organisation, "organisation")).id
        return await usage.document(
            self._store,
            usage.groups(params.by),
            params,
            _now_ms(),
            account_id=(await self._find.account(params.account, "account")).id if params.account is not None else None,
            key_id=(await self._find.key(params.key, "key")).id if params.key is not None else None,
            organisation_id=organisation_id,
        )

    async def events(self, params: commands.Events) -> Document:
        """Limiter refusals, security events, acts of operators; newest first."""
        if not 1 <= params.limit <= values.EVENTS_MAX:
            raise invalid(f"limit: expected 1 to {values.EVENTS_MAX}", "limit")
        since_ms = values.moment(params.since, "since", now_ms=_now_ms()) or 0
        await self._store.flush()
        found = await self._store.events(since_ms=since_ms, limit=params.limit)
        return {"events": [documents.event(row) for row in found]}

    async def ledger_show(self, params: commands.LedgerShow) -> Document:
        """Entries in order, the lots that are not used up, and the balance."""
        limit = values.page(params.limit)
        row = await self._find.account(params.id)
        found = await self._store.entries(row.id, after_id=values.entry_id(params.after, "after"), limit=limit)
        return {
            "account_id": units.account_text(row.id),
            **await self._money(row.id),
            "lots": [documents.lot(lot) for lot in await self._store.lots(row.id)],
            "entries": [documents.entry(entry) for entry in found],
            "next": units.entry_text(found[-1].id) if len(found) == limit else None,
        }

    async def ledger_verify(self, _: commands.Nothing = commands.Nothing()) -> Document:  # noqa: B008
        """Recomputes every balance."""
        await self._store.flush()
        differences, unchecked, (seal, digest) = await self._store.verify_all(published.cost_of)
        return {
            "ok": not differences,
            "differences": [documents.difference(row) for row in differences],
            "set_aside": [documents.set_aside(row) for row in await self._store.set_aside()],
            "unchecked": unchecked,
            "seal": {"number": seal, "digest": digest.hex()},
        }

    async def rates_show(self, _: commands.Nothing = commands.Nothing()) -> Document:  # noqa: B008
        """The prices in force."""
        schedule = await self._store.rate_schedule()
        config = prices.in_force(self.config, schedule, _now_ms())
        return pricelist.rates(config, prices.announced_models(prices.effective(schedule, _now_ms()))) | {
            "scheduled": [
                documents.scheduled_rates(row) | {"rates": pricelist.stated(rate_files.read(row.body))}
                for row in schedule
            ]
        }

    async def rates_check(self, params: commands.RatesCheck) -> Document:
        """What is wrong or odd with the prices in force."""
        schedule = await self._store.rate_schedule()
        config = prices.in_force(self.config, schedule, _now_ms())
        cards = [row for row in await self._store.rate_cards() if row.id != pricelist.card(config)]
        before = cards[-1].body if cards else None
        found = pricelist.check(config, before, pricelist.parse_today(_now_ms()), everything=params.all)
        scheduled = prices.announced_models(prices.effective(schedule, _now_ms()))
        stated = {rate.model for rate in self.config.rates} - self.config.default_models
        found["warnings"] += [
            f"{model}: its rate in the configuration is not in force, a scheduled one is"
            for model in sorted(scheduled & stated)
            if _rate(self.config, model) != _rate(config, model)
        ]
        return found

    async def rates_schedule(self, params: commands.RatesSchedule) -> Document:
        """Announces rates; the running relay puts them into force at their time. Refused where they rise too soon."""
        try:
            announced = rate_files.parse(params.rates, file="rates")
        except ConfigError as failure:
            raise invalid("; ".join(failure.lines), "rates") from None
        async with self._changing:
            now_ms = _now_ms()
            effective_ms = values.expiry(params.effective, "effective", now_ms=now_ms)
            schedule = await self._store.rate_schedule()
            body = rate_files.stored(announced)
            new = rows.ScheduledRatesRow(2**62, body, effective_ms, now_ms, 0)
            before, after = (
                pricing.card_body(prices.in_force(self.config, found, effective_ms))
                for found in (schedule, [*schedule, new])
            )
            rises = [line for _, line in pricelist.rises(before, after)]
            days = self.config.billing.price_rise_notice_days
            if rises and effective_ms < now_ms + days * MS_PER_DAY:
                raise conflict(f"prices rise, which takes {days} days of notice: {rises[0]}")
            row = await self._store.schedule_rates(body, effective_ms)
        self._record("rates_schedule", detail=f"{len(announced)} models")
        if self._live is not None:
            await self._live.rates_scheduled()
        served = set(prices.in_force(self.config, [row], row.effective_ms).models)
        return {
            **documents.scheduled_rates(row),
            "rises": rises,
            "warnings": [f"{rate.model}: no channel serves it" for rate in announced if rate.model not in served],
        }

    async def rates_withdraw(self, params: commands.Id) -> Document:
        """Takes back announced rates that are not in force yet."""
        async with self._changing:
            await self._store.withdraw_rates(values.schedule_id(params.id))
        self._record("rates_withdraw", detail=params.id)
        if self._live is not None:
            await self._live.rates_scheduled()
        return {"id": params.id, "withdrawn": True}

    async def terms(self, _: commands.Nothing = commands.Nothing()) -> Document:  # noqa: B008
        """The published figures."""
        return published.terms(self.config)

    def _record(self, code: str, account_id: int | None = None, key_id: int | None = None, detail: str = "") -> None:
        """Notes an operator's act among the events. Never fails: a change that is committed must reach the relay."""
        event = (_now_ms(), "operator", code, account_id, key_id, None, None, None, 1, detail or None)
        self._store.append_events([event])


def _rate(config: Config, model: str) -> Rate | None:
    return next((rate for rate in config.rates if rate.model == model), None)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _odd_limits(limits: rows.Limits) -> list[str]:
    if limits.daily_nano and limits.monthly_nano and limits.daily_nano > limits.monthly_nano:
        daily, monthly = units.format_credits(limits.daily_nano), units.format_credits(limits.monthly_nano)
        return [f"the daily limit ({daily}) is above the monthly one ({monthly})"]
    return []


def _address_taken(other: rows.AccountRow) -> CommandError:
    return conflict(f"this e-mail address is already that of account {units.account_text(other.id)}")


def _organisation_name(name: str) -> str:
    return values.text(name, "organisation", characters_max=values.NAME_CHARACTERS_MAX, required=True)


def _idempotency_key(value: str | None) -> str | None:
    if value is None:
        return None
    return values.text(value, "idempotency_key", characters_max=values.IDEMPOTENCY_KEY_CHARACTERS_MAX, required=True)
