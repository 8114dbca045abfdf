"""What the store returns. All frozen; amounts are in nano-credits, times unix milliseconds, days UTC day indices.

Where a time may be absent it is 0 (`expires_ms` 0: never; `revoked_ms` 0: not revoked).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

AccountStatus = Literal["active", "frozen", "banned", "closed"]
KeyStatus = Literal["active", "suspended", "revoked"]
LotKind = Literal["purchased", "subscription", "trial", "adjustment"]
EntryKind = Literal["purchased", "subscription", "trial", "adjustment", "refund", "expiry", "forfeit", "write_off"]

ACCOUNT_STATUSES: tuple[AccountStatus, ...] = ("active", "frozen", "banned", "closed")
KEY_STATUSES: tuple[KeyStatus, ...] = ("active", "suspended", "revoked")
LOT_KINDS: tuple[LotKind, ...] = ("purchased", "subscription", "trial", "adjustment")


class Limits(Struct, frozen=True, kw_only=True):
    """Overrides. None: whatever the plan says; 0: no limit."""

    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    daily_nano: int | None = None
    monthly_nano: int | None = None
    tokens_per_call: dict[str, int] | None = None  # by model; "*" for all others


NO_OVERRIDES = Limits()


class OrganisationRow(Struct, frozen=True):
    id: int
    name: str
    limits: Limits
    created_ms: int


class AccountRow(Struct, frozen=True):
    id: int
    email: str
    organisation_id: int  # 0: none
    plan: str
    status: AccountStatus
    limits: Limits
    created_ms: int
    closed_ms: int


class KeyRow(Struct, frozen=True):
    id: int
    account_id: int
    name: str
    description: str
    status: KeyStatus
    scopes: tuple[str, ...] | None  # names of endpoint scopes; None: all
    models: tuple[str, ...] | None  # public model names; None: all
    networks: tuple[str, ...] | None  # CIDR, v4 and v6; None: any address
    limits: Limits
    expires_ms: int
    on_disconnect: Literal["cancel", "drain"] | None
    created_ms: int
    revoked_ms: int
    last_used_day: int  # 0: never used


class CredentialRow(Struct, frozen=True):
    """One secret of a key. Only its keyed digest is stored."""

    public_id: str
    key_id: int
    digest: bytes  # HMAC-SHA256, 32 bytes
    last4: str
    pepper_version: int
    created_ms: int
    expires_ms: int
    revoked_ms: int


class Spend(Struct, frozen=True):
    """What calls that began on `day` and in `month` ((year - 1970) * 12 + month - 1), both UTC, were charged: their
    cost less what was written off."""

    day: int
    daily_nano: int
    month: int
    monthly_nano: int


class LoadedKey(Struct, frozen=True):
    """Everything the proxy needs to serve a key. Amounts include what is queued and not yet committed."""

    credential: CredentialRow
    key: KeyRow
    account: AccountRow
    organisation: OrganisationRow | None
    balance_nano: int
    key_spend: Spend
    account_spend: Spend
    organisation_spend: Spend | None


class EntryRow(Struct, frozen=True):
    """One line of the ledger. `amount_nano` is signed; `call_id` is 0 but for write-offs."""

    id: int
    account_id: int
    kind: EntryKind
    amount_nano: int
    call_id: int
    reason: str
    idempotency_key: str | None
    time_ms: int


class LotRow(Struct, frozen=True):
    """Credit of one addition: granted, used by calls, and what is left (less what was refunded or expired)."""

    id: int
    account_id: int
    kind: LotKind
    granted_nano: int
    used_nano: int
    remaining_nano: int
    expires_ms: int
    created_ms: int


class DueRow(Struct, frozen=True):
    """An account's lots whose time is up: what is left of them, and how many they are."""

    account_id: int
    nano: int
    lots: int


class CreditResult(Struct, frozen=True):
    """`created` is False where an idempotency key found the entry of an earlier, equal request."""

    entry: EntryRow
    balance_nano: int
    created: bool


class RollupRow(Struct, frozen=True):
    """Sums over the calls of one account, key, model and day. `key_id` 0 and `model` "": unknown."""

    account_id: int
    day: int
    key_id: int
    model: str
    calls: int
    failed: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    images: int
    video_seconds: int
    web_searches: int
    cost_nano: int


class UsageRow(Struct, frozen=True):
    """Sums over calls. What they are not grouped by is None; `key_id` 0 and `model` "": unknown."""

    day: int | None
    model: str | None
    key_id: int | None
    account_id: int | None
    organisation_id: int | None
    calls: int
    failed: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    images: int
    video_seconds: int
    web_searches: int
    cost_nano: int


class CallDetails(Struct, frozen=True):
    """What the cost of a call depends on beside its record, as `records.CALL_DETAILS`."""

    cache_write_1h_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    image_input_tokens: int = 0
    service: int = 0
    image_output_tokens: int = 0
    audio_cache_read_tokens: int = 0
    image_cache_read_tokens: int = 0


class CallLine(Struct, frozen=True):
    """A line of a call's bill beside its own model, as `records.CALL_LINE`."""

    kind: str
    model: str | None
    pieces: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    image_input_tokens: int
    image_output_tokens: int
    cost_nano: int


class CallRow(Struct, frozen=True):
    """A call, field by field as `records.CALL_COLUMNS`; `details` and `lines` are filled in where one call is read, and
    for `verify`."""

    id: int
    account_id: int | None
    organisation_id: int | None
    key_id: int | None
    path: str
    model: str | None
    upstream_model: str | None
    channel: str | None
    attempts: int
    stream: int
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
    cost_nano: int
    rate_card: str | None
    latency_us: int
    first_byte_us: int | None
    source_ip: str | None
    user_agent: str | None
    details: CallDetails | None = None
    lines: tuple[CallLine, ...] = ()


class ObjectRow(Struct, frozen=True):
    """What lives at a provider and belongs to an account. Of a file that batches are made of: what its lines ask for.

    `requests` 0: not known, or no such file; `model` is the one public name in all of its lines.
    """

    number: int  # 0 while it is not stored
    kind: str
    object_id: str
    account_id: int
    key_id: int
    channel: str
    created_ms: int
    model: str | None = None
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    bytes: int = 0  # of a file; 0: not known


class KeyClaim(Struct, frozen=True):
    """An Idempotency-Key and the call that has it. `digest`: HMAC of account and key; `body`: 63 bits of another."""

    digest: bytes
    body: int
    call_id: int


class JobRow(Struct, frozen=True):
    """A job that has not ended. Its id is that of the call record that its ending will write."""

    id: int
    kind: str
    object_id: str | None
    account_id: int
    organisation_id: int
    key_id: int
    channel: str
    path: str
    model: str
    upstream_model: str
    rate_card: str
    hold_nano: int
    max_cost_nano: int
    units: int
    created_ms: int
    expires_ms: int
    priority: int = 0  # 1: it asked for the priority service


class JobPart(Struct, frozen=True):
    """A model of a job beside its own; `record_id`: of the record that charges it. `requests`: eight bytes for each."""

    job_id: int
    record_id: int
    model: str
    upstream_model: str
    requests: bytes


class EventRow(Struct, frozen=True):
    """A limiter refusal, a security event or an operator's act; fields as `records.EVENT_COLUMNS` behind the id."""

    id: int
    time_ms: int
    kind: str
    code: str | None
    account_id: int | None
    key_id: int | None
    scope: str | None
    channel: str | None
    source_ip: str | None
    count: int
    detail: str | None


class RateCardRow(Struct, frozen=True):
    """Rates as they were published: `body` is canonical JSON, never changed once stored."""

    id: str
    body: str
    created_ms: int


class ScheduledRatesRow(Struct, frozen=True):
    """Rates announced for a time. `body` as `rate_files.stored` makes it; withdrawn_ms 0: they stand."""

    id: int
    body: str
    effective_ms: int
    announced_ms: int
    withdrawn_ms: int


class SwitchRow(Struct, frozen=True):
    """Something that an operator has switched off; message "": nothing more is said to callers."""

    kind: str
    name: str
    off_ms: int
    message: str
    by: str


class SetAsideRow(Struct, frozen=True):
    """A record, or a slot of the journal, that could not be recorded. call_id and account_id: what it says; 0: none."""

    id: int
    time_ms: int
    kind: str
    reason: str
    call_id: int
    account_id: int


class Difference(Struct, frozen=True):
    """Something `verify` found not to add up: what it should be by recomputation, and what is stored."""

    what: str  # "balance", "lot", "rollup", "spend", "cost", "entry"
    account_id: int
    subject: str  # which lot, rollup or call: ids and names of the catalogue only
    expected: int
    found: int
