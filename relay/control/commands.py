"""The commands of the control plane: name, HTTP form, and parameters of each.

One table serves three users: the operator's API registers its routes from it, the command line sends by it, and
`run` calls the method of `Operations` behind a name. So a command cannot mean one thing on the socket and another in
process.

Parameters are text and integers as they stand in JSON: amounts are decimal credits ("12.5"), times RFC 3339 or dates,
ids as printed ("acct_7"). Unknown fields are refused. In the `...Set` structs a field left out stays as it is, and
null goes back to the default (of the plan, or to no restriction).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar, TypeVar, get_args

import msgspec
from msgspec import UNSET, UnsetType

_WHOLE = re.compile(r"-?[0-9]{1,18}", re.ASCII)


class Params(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a command takes."""


class Nothing(Params, frozen=True, kw_only=True):
    """A command without parameters."""


class Id(Params, frozen=True, kw_only=True):
    """A command about one account or key."""

    id: str


class IdReason(Params, frozen=True, kw_only=True):
    """A change of one account or key; the reason is kept in the events."""

    id: str
    reason: str = ""


class AccountCreate(Params, frozen=True, kw_only=True):
    """`organisation` is a name; it is created when there is none of that name. `plan` None: the default plan."""

    email: str
    organisation: str | None = None
    plan: str | None = None


class AccountList(Params, frozen=True, kw_only=True):
    """At most `limit` accounts, oldest first, behind the account `after`."""

    status: str | None = None
    organisation: str | None = None
    after: str | None = None
    limit: int = 1000


class Limits(Params, frozen=True, kw_only=True):
    """Overrides of limits; 0 is no limit, None the default of the plan. Amounts are credits per UTC day and month.

    `tokens_per_call` is by model, "*" for all others.
    """

    rpm: int | UnsetType | None = UNSET
    tpm: int | UnsetType | None = UNSET
    concurrency: int | UnsetType | None = UNSET
    daily_limit: str | UnsetType | None = UNSET
    monthly_limit: str | UnsetType | None = UNSET
    tokens_per_call: dict[str, int] | UnsetType | None = UNSET


class AccountSet(Limits, frozen=True, kw_only=True):
    """Changes of an account. `organisation` null takes it out of its organisation."""

    id: str
    email: str | UnsetType = UNSET
    organisation: str | UnsetType | None = UNSET
    plan: str | UnsetType = UNSET


class OrganisationSet(Limits, frozen=True, kw_only=True):
    """Changes of an organisation; its limits hold for all its accounts together."""

    id: str
    name: str | UnsetType = UNSET


class CreditAdd(Params, frozen=True, kw_only=True):
    """`idempotency_key`: a repeated request with the same key and the same content is answered with the first entry."""

    id: str
    amount: str
    kind: str = "purchased"
    reason: str = ""
    expires: str | None = None
    idempotency_key: str | None = None


class CreditRefund(Params, frozen=True, kw_only=True):
    """Takes back credits that were bought and not used."""

    id: str
    amount: str
    reason: str
    idempotency_key: str | None = None


class KeyLimits(Limits, frozen=True, kw_only=True):
    """What restricts one key, and how it is served. None: no restriction.

    `on_disconnect`: "cancel" or "drain"; None: as `billing.on_disconnect` says.
    """

    description: str | UnsetType = UNSET
    scopes: list[str] | UnsetType | None = UNSET
    models: list[str] | UnsetType | None = UNSET
    allow_ips: list[str] | UnsetType | None = UNSET
    on_disconnect: str | UnsetType | None = UNSET
    expires: str | UnsetType | None = UNSET


class KeyCreate(KeyLimits, frozen=True, kw_only=True):
    """`id` is the account's."""

    id: str
    name: str = ""


class KeySet(KeyLimits, frozen=True, kw_only=True):
    """Changes of a key."""

    id: str
    name: str | UnsetType = UNSET


class KeyRotate(Params, frozen=True, kw_only=True):
    """A new secret for the same key. `overlap_seconds`: how long the old ones still work; 0: not at all."""

    id: str
    overlap_seconds: int = 0


class Calls(Params, frozen=True, kw_only=True):
    """Call records, newest first: at most `limit`, older than the call `before`."""

    account: str | None = None
    key: str | None = None
    organisation: str | None = None
    model: str | None = None
    channel: str | None = None
    path: str | None = None
    since: str | None = None
    until: str | None = None
    status: str | None = None
    before: str | None = None
    limit: int = 100


class UsagePeriod(Params, frozen=True, kw_only=True):
    """Which days (UTC, whole ones) and which model."""

    since: str | None = None
    until: str | None = None
    model: str | None = None


class Usage(UsagePeriod, frozen=True, kw_only=True):
    """Sums over calls. `by`: day or month, model, key, account, organisation, separated by commas."""

    by: str = "month"
    account: str | None = None
    key: str | None = None
    organisation: str | None = None


class Events(Params, frozen=True, kw_only=True):
    """Events, newest first: at most `limit`."""

    since: str | None = None
    limit: int = 1000


class LedgerShow(Params, frozen=True, kw_only=True):
    """The entries of an account, oldest first, behind the entry `after`, with its lots."""

    id: str
    after: str | None = None
    limit: int = 1000


class RatesCheck(Params, frozen=True, kw_only=True):
    """`all`: also what is not the operator's doing, prices of the shipped card."""

    all: bool = False


class RatesSchedule(Params, frozen=True, kw_only=True):
    """`rates`: the text of a file of [[rates]]. `effective`: a date or time in the future."""

    rates: str
    effective: str


class ChannelOff(Params, frozen=True, kw_only=True):
    """`id` is the channel's name; `message` is what callers are told."""

    id: str
    message: str = ""


class ChannelWake(Params, frozen=True, kw_only=True):
    """`id` is the channel's name; `key`: a place in its `api_keys`, from 1. Without one: all keys, and the channel."""

    id: str
    key: int | None = None


class Backup(Params, frozen=True, kw_only=True):
    """`path`: absolute, of a file that does not exist yet, on the machine of the relay."""

    path: str


LIMIT_MAX = 10**12  # of requests, tokens and calls at a time


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: `name` are the words of the command line, `path` stands below /admin/v1."""

    name: str
    method: str
    path: str
    params: type[Params]
    # Only over the unix socket: the command names files of the machine, which a token of the network must not.
    local: bool = False

    PATH_FIELD: ClassVar[re.Pattern[str]] = re.compile(r"\{([a-z_]+)\}")

    @property
    def operation(self) -> str:
        """The method of `Operations` that does it."""
        return self.name.replace(" ", "_")

    @property
    def path_fields(self) -> list[str]:
        """Parameters that stand in the path."""
        return self.PATH_FIELD.findall(self.path)


def _table() -> dict[str, Command]:
    commands = [
        Command("status", "GET", "/status", Nothing),
        Command("reload", "POST", "/reload", Nothing),
        Command("drain", "POST", "/drain", Nothing),
        Command("account create", "POST", "/accounts", AccountCreate),
        Command("account list", "GET", "/accounts", AccountList),
        Command("account show", "GET", "/accounts/{id}", Id),
        Command("account set", "PATCH", "/accounts/{id}", AccountSet),
        Command("account freeze", "POST", "/accounts/{id}/freeze", IdReason),
        Command("account unfreeze", "POST", "/accounts/{id}/unfreeze", IdReason),
        Command("account ban", "POST", "/accounts/{id}/ban", IdReason),
        Command("account close", "POST", "/accounts/{id}/close", IdReason),
        Command("account reopen", "POST", "/accounts/{id}/reopen", IdReason),
        Command("organisation list", "GET", "/organisations", Nothing),
        Command("organisation show", "GET", "/organisations/{id}", Id),
        Command("organisation set", "PATCH", "/organisations/{id}", OrganisationSet),
        Command("credit add", "POST", "/accounts/{id}/credits", CreditAdd),
        Command("credit refund", "POST", "/accounts/{id}/refunds", CreditRefund),
        Command("key create", "POST", "/accounts/{id}/keys", KeyCreate),
        Command("key list", "GET", "/accounts/{id}/keys", Id),
        Command("key show", "GET", "/keys/{id}", Id),
        Command("key set", "PATCH", "/keys/{id}", KeySet),
        Command("key rotate", "POST", "/keys/{id}/rotate", KeyRotate),
        Command("key revoke", "POST", "/keys/{id}/revoke", IdReason),
        Command("key suspend", "POST", "/keys/{id}/suspend", IdReason),
        Command("key resume", "POST", "/keys/{id}/resume", IdReason),
        Command("calls", "GET", "/calls", Calls),
        Command("calls show", "GET", "/calls/{id}", Id),
        Command("usage", "GET", "/usage", Usage),
        Command("channel list", "GET", "/channels", Nothing),
        Command("channel test", "POST", "/channels/{id}/test", Id),
        Command("channel on", "POST", "/channels/{id}/on", Id),
        Command("channel off", "POST", "/channels/{id}/off", ChannelOff),
        Command("channel wake", "POST", "/channels/{id}/wake", ChannelWake),
        Command("rates show", "GET", "/rates", Nothing),
        Command("rates check", "GET", "/rates/check", RatesCheck),
        Command("rates schedule", "POST", "/rates/schedule", RatesSchedule),
        Command("rates withdraw", "POST", "/rates/schedule/{id}/withdraw", Id),
        Command("ledger show", "GET", "/accounts/{id}/ledger", LedgerShow),
        Command("ledger verify", "GET", "/ledger/verify", Nothing),
        Command("events", "GET", "/events", Events),
        Command("backup", "POST", "/backup", Backup, local=True),
        Command("terms", "GET", "/terms", Nothing),
    ]
    return {command.name: command for command in commands}


COMMANDS = _table()


def read_params(command: Command, fields: dict[str, Any], *, text: bool = False) -> Params:
    """The parameters of a command from decoded JSON, or (`text`) from a query string, where numbers are text.

    Raises msgspec.ValidationError, whose message names the field and the types, never the value.
    """
    return from_text(command.params, fields) if text else msgspec.convert(fields, command.params)


P = TypeVar("P", bound=Params)


def from_text(kind: type[P], fields: dict[str, Any]) -> P:
    """Parameters out of a query string. Raises msgspec.ValidationError: 1e3 is not a whole number either."""
    for field in msgspec.structs.fields(kind):
        if int in (field.type, *get_args(field.type)) and not _WHOLE.fullmatch(str(fields.get(field.name, "0"))):
            raise msgspec.ValidationError(f"Expected `int`, got `str` - at `$.{field.name}`")
    return msgspec.convert(fields, kind, strict=False)
