"""The types of what the customer's and the operator's API answer, from which the OpenAPI documents are made.

They describe the documents of `documents`, `pricelist`, `published` and `operations`; a test sends every command and
checks each answer against its type. Amounts are decimal credits as text, times RFC 3339, ids as printed.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

Amount = Annotated[str, Meta(pattern=r"^-?[0-9]+(\.[0-9]{1,9})?$", description="Credits, up to 9 decimals.")]
Price = Annotated[str, Meta(pattern=r"^[0-9]+(\.[0-9]+)?$", description="Credits per unit, exact.")]
Time = Annotated[str, Meta(description="RFC 3339, UTC.")]
Day = Annotated[str, Meta(description="A UTC day.")]


class Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One JSON document. Nothing but these fields is in it."""


class ErrorBody(Answer):
    """`code` is for programs, `message` for people; `field` is the parameter at fault, where it is one."""

    code: str
    message: str
    field: str | UnsetType = UNSET


class Error(Answer):
    """A refusal."""

    error: ErrorBody


# -- money


class Money(Answer):
    """`balance` is what is there with what open calls hold, `available` what a new call may use."""

    balance: Amount
    held: Amount
    available: Amount


class CustomerBalance(Money):
    """What the account has."""

    account_id: str
    credit_name: str


class LimitOverrides(Answer):
    """Overrides of limits: null is the plan's, 0 no limit."""

    rpm: int | None
    tpm: int | None
    concurrency: int | None
    daily_limit: Amount | None
    monthly_limit: Amount | None
    tokens_per_call: dict[str, int] | None


class LimitsInForce(Answer):
    """The limits that hold, whoever set them: null is no limit."""

    rpm: int | None
    tpm: int | None
    concurrency: int | None
    daily_limit: Amount | None
    monthly_limit: Amount | None
    tokens_per_call: dict[str, int] | None


class Spent(Answer):
    """What ended calls of this UTC day and month cost."""

    daily: Amount
    monthly: Amount


class CreditChange(Money):
    """An entry of the ledger and the balance behind it. `created` false: the same idempotency key made it before."""

    entry_id: str
    account_id: str
    kind: str
    amount: Amount
    created: bool


# -- accounts, organisations, keys


class Account(Money):
    """An account with its balance."""

    id: str
    email: str
    organisation: str | None
    organisation_id: str | None
    plan: str
    status: str
    limits: LimitOverrides
    created: Time
    closed: Time | None
    status_reason: str | UnsetType | None = UNSET
    status_since: Time | UnsetType | None = UNSET
    status_by: str | UnsetType | None = UNSET
    warnings: list[str] | UnsetType = UNSET
    in_force: LimitsInForce | UnsetType = UNSET
    spent: Spent | UnsetType = UNSET


class Accounts(Answer):
    """A page; `next` is `after` of the next one, null behind the last."""

    accounts: list[Account]
    next: str | None


class Organisation(Answer):
    """An organisation; its limits hold for all its accounts together."""

    id: str
    name: str
    limits: LimitOverrides
    created: Time


class Organisations(Answer):
    """All of them."""

    organisations: list[Organisation]


class Credential(Answer):
    """A secret that works; only its public beginning and its last characters are known."""

    prefix: str
    last4: str
    created: Time
    expires: Time | None


class Key(Answer):
    """A key with those of its secrets that still work. Lists that are null: no restriction."""

    id: str
    account_id: str
    name: str
    prefix: str | None
    description: str
    status: str
    scopes: list[str] | None
    models: list[str] | None
    allow_ips: list[str] | None
    on_disconnect: str | None
    limits: LimitOverrides
    expires: Time | None
    created: Time
    revoked: Time | None
    last_used: Day | None
    credentials: list[Credential]
    warnings: list[str] | UnsetType = UNSET
    in_force: LimitsInForce | UnsetType = UNSET
    spent: Spent | UnsetType = UNSET


class NewKey(Key, kw_only=True):
    """A key with its secret, which is told only here."""

    secret: str


class RotatedKey(NewKey, kw_only=True):
    """A key with its new secret, and when the old ones stop."""

    old_secrets_end: Time


class Keys(Answer):
    """All keys of an account."""

    keys: list[Key]


# -- records


class CustomerCall(Answer):
    """The record of a call, as its customer sees it."""

    id: str
    time: Time
    account_id: str | None
    organisation_id: str | None
    key_id: str | None
    path: str
    model: str | None
    stream: bool
    status: int
    error_code: str | None
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    images: int
    video_seconds: int
    web_searches: int
    usage_source: str
    cost: Amount
    rate_card: str | None
    latency_ms: float
    first_byte_ms: float | None
    source_ip: str | None
    user_agent: str | None


class CustomerCalls(Answer):
    """A page, newest first; `next` is `before` of the next one."""

    calls: list[CustomerCall]
    next: str | None


class Call(CustomerCall):
    """The whole record of a call."""

    upstream_model: str | None
    channel: str | None
    attempts: int


class BillLine(Answer):
    """What a call used of one priced dimension. `amount` is exact, before the one rounding of the whole."""

    what: str
    quantity: int
    price: Price
    unit: str
    amount: str


class BilledCall(Call):
    """The record of a call with its bill; `rounded` is what rounding and limits changed: cost - sum of the lines."""

    bill: list[BillLine]
    rounded: str


class Calls(Answer):
    """A page, newest first; `next` is `before` of the next one."""

    calls: list[Call]
    next: str | None


class UsageSums(Answer):
    """Sums over calls. `failed`: those with an error code."""

    calls: int
    failed: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    images: int
    video_seconds: int
    web_searches: int
    cost: Amount


class CustomerUsageRow(UsageSums):
    """The sums of a group; the fields that name the group are those that were asked for."""

    day: Day | UnsetType = UNSET
    month: str | UnsetType = UNSET
    model: str | UnsetType | None = UNSET


class UsageRow(CustomerUsageRow):
    """The sums of a group; the fields that name the group are those that were asked for."""

    key_id: str | UnsetType | None = UNSET
    account_id: str | UnsetType | None = UNSET
    organisation_id: str | UnsetType | None = UNSET


class CustomerUsage(Answer):
    """What this key used. `total`: of all rows."""

    usage: list[CustomerUsageRow]
    total: UsageSums


class Usage(Answer):
    """What was used. `total`: of all rows."""

    usage: list[UsageRow]
    total: UsageSums


class Event(Answer):
    """A refusal of a limiter (`count` of them), a security event or an operator's act."""

    id: int
    time: Time
    kind: str
    code: str | None
    account_id: str | None
    key_id: str | None
    scope: str | None
    channel: str | None
    source_ip: str | None
    count: int
    detail: str | None


class Events(Answer):
    """Newest first."""

    events: list[Event]


class Entry(Answer):
    """A line of the ledger."""

    id: str
    account_id: str
    time: Time
    kind: str
    amount: Amount
    call_id: str | None
    reason: str
    idempotency_key: str | None


class Lot(Answer):
    """What one addition granted and what is left of it."""

    id: str
    kind: str
    granted: Amount
    used: Amount
    remaining: Amount
    expires: Time | None
    created: Time


class Ledger(Money):
    """The entries of an account, the lots that are not used up, and the balance."""

    account_id: str
    lots: list[Lot]
    entries: list[Entry]
    next: str | None


class Difference(Answer):
    """Something that does not add up."""

    what: str
    account_id: str | None
    subject: str
    expected: str
    found: str


class Verified(Answer):
    """`ok`: every balance is what entries and calls say. `set_aside`: what could not be recorded and was not charged.
    `unchecked`: what there was no time to look at. `seal`: the last one of the chain over entries and lots."""

    ok: bool
    differences: list[Difference]
    set_aside: list[dict[str, Any]]
    unchecked: list[str]
    seal: dict[str, Any]


# -- limits in force


class Permits(Answer):
    """A limit per minute, and what is left of it."""

    limit: int
    remaining: int
    reset_seconds: float


class Concurrency(Answer):
    """Calls at a time."""

    limit: int
    remaining: int
    in_flight: int


class Cap(Answer):
    """Credits per UTC day or month; `limit` null: none."""

    limit: Amount | None
    spent: Amount
    remaining: Amount | None


class Scope(Answer):
    """The limits of a key, its account or its organisation. Null: no limit."""

    scope: str
    requests_per_minute: Permits | None
    tokens_per_minute: Permits | None
    concurrency: Concurrency | None
    daily: Cap
    monthly: Cap
    tokens_per_call: dict[str, int] | None


class CustomerLimits(Answer):
    """The limits that calls with this key pass, the key's own first."""

    key_id: str
    scopes: list[Scope]


# -- prices


class Prices(Answer):
    """Tokens per million, the rest per piece. What is left out costs as text does."""

    input: Price
    output: Price
    cache_read: Price
    cache_write: Price
    cache_write_1h: Price
    image: Price
    video_second: Price
    web_search: Price
    audio_input: Price | UnsetType = UNSET
    audio_output: Price | UnsetType = UNSET
    image_input: Price | UnsetType = UNSET
    image_output: Price | UnsetType = UNSET
    audio_cache_read: Price | UnsetType = UNSET
    image_cache_read: Price | UnsetType = UNSET


class Tier(Prices, kw_only=True):
    """Prices for prompts above a number of tokens, in a tier of service."""

    above: int
    service: str


class ModelPrices(Prices, kw_only=True):
    """The prices of a model."""

    model: str
    tools: dict[str, Price] | UnsetType = UNSET
    tiers: list[Tier] | UnsetType = UNSET


class ListedPrices(ModelPrices, kw_only=True):
    """The list prices of a model, where they come from, and the discount on them."""

    source: str
    discount: str


class CustomerScheduled(Answer):
    """Prices that are announced for a time."""

    effective: Time
    announced: Time
    rates: list[ModelPrices]


class CustomerRates(Answer):
    """What this customer pays, the discount in it, for the models that the key may use."""

    credit_name: str
    rate_card: str
    unit: str
    rates: list[ModelPrices]
    scheduled: list[CustomerScheduled]


class Scheduled(Answer):
    """Rates that were announced for a time."""

    id: str
    effective: Time
    announced: Time
    withdrawn: Time | None
    models: list[str]


class ScheduledPrices(Scheduled):
    """The same with the list prices."""

    rates: list[ModelPrices]


class NewlyScheduled(Scheduled):
    """What was announced, which prices rise by it, and what is odd about it."""

    rises: list[str]
    warnings: list[str]


class Withdrawn(Answer):
    """Announced rates that will not come into force."""

    id: str
    withdrawn: bool


class Rates(Answer):
    """The list prices in force."""

    credit_name: str
    discount: str
    rate_card: str
    unit: str
    rates: list[ListedPrices]
    scheduled: list[ScheduledPrices]


class RatesCheck(Answer):
    """`errors`: models that cannot be used; `warnings`: prices that are probably not meant."""

    ok: bool
    errors: list[str]
    warnings: list[str]


# -- the process


class Status(msgspec.Struct, kw_only=True):
    """What the running relay does. More fields may come."""

    running: bool
    version: str
    store_pending: int
    pid: int
    uptime_seconds: float
    draining: bool
    open_calls: int
    connections: int
    calls_total: int
    keys_loaded: int
    faults: int
    retries: dict[str, int]
    channels: list[dict[str, Any]]


class Reloaded(Answer):
    """The configuration was applied, but for the keys of `restart`: a line for each that has changed."""

    reloaded: bool
    restart: list[str]
    warnings: list[str]


class Draining(Answer):
    """The process ends when the open calls have ended, after `drain_seconds` at the latest."""

    draining: bool
    open_calls: int
    drain_seconds: float


class Channels(Answer):
    """The configured channels, in their order."""

    channels: list[dict[str, Any]]


class ChannelSwitch(Answer):
    """A channel that was switched off, or on."""

    name: str
    off: bool
    message: str | None = None
    off_since: str | None = None


class ChannelTrial(Answer):
    """What each key of a channel got; `ok`: all of them work."""

    name: str
    ok: bool
    keys: list[dict[str, Any]]


class ChannelWoken(Answer):
    """Keys that rest no more."""

    name: str
    key: int | None
    woken: bool


class BackedUp(Answer):
    """A consistent copy was made."""

    path: str
    bytes: int


class Terms(Answer):
    """The figures that the operator publishes, as they are in force."""

    most_in_one_minute: str
    plans: dict[str, dict[str, Any]]
    billing: dict[str, Any]
    retention: dict[str, Any]
    limits: dict[str, int]
    notice: dict[str, int | None]


# By the names of `commands.COMMANDS`.
OF_COMMAND: dict[str, type[msgspec.Struct]] = {
    "status": Status,
    "reload": Reloaded,
    "drain": Draining,
    "account create": Account,
    "account list": Accounts,
    "account show": Account,
    "account set": Account,
    "account freeze": Account,
    "account unfreeze": Account,
    "account ban": Account,
    "account close": Account,
    "account reopen": Account,
    "organisation list": Organisations,
    "organisation show": Organisation,
    "organisation set": Organisation,
    "credit add": CreditChange,
    "credit refund": CreditChange,
    "key create": NewKey,
    "key list": Keys,
    "key show": Key,
    "key set": Key,
    "key rotate": RotatedKey,
    "key revoke": Key,
    "key suspend": Key,
    "key resume": Key,
    "calls": Calls,
    "calls show": BilledCall,
    "usage": Usage,
    "channel list": Channels,
    "channel test": ChannelTrial,
    "channel on": ChannelSwitch,
    "channel off": ChannelSwitch,
    "channel wake": ChannelWoken,
    "rates show": Rates,
    "rates check": RatesCheck,
    "rates schedule": NewlyScheduled,
    "rates withdraw": Withdrawn,
    "ledger show": Ledger,
    "ledger verify": Verified,
    "events": Events,
    "backup": BackedUp,
    "terms": Terms,
}
