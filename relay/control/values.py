"""Values as a command's parameters give them, checked and turned into what the store keeps. CommandError for bad ones.

Messages name the field and what is expected; they quote nothing that was given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_network

from msgspec import UnsetType

from relay import units
from relay.control import emails
from relay.control.commands import LIMIT_MAX, Limits
from relay.control.failures import invalid
from relay.errors import ERRORS
from relay.storage import rows
from relay.wire.endpoints import SCOPES

NAME_CHARACTERS_MAX = 100
TEXT_CHARACTERS_MAX = 1000
IDEMPOTENCY_KEY_CHARACTERS_MAX = 255
LIST_ITEMS_MAX = 200
PAGE_MAX = 1000
EVENTS_MAX = 100_000
_MODEL_BYTES_MAX = 256
_AGE = re.compile(r"([0-9]{1,6})([smhdw])", re.ASCII)
_AGE_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def text(value: str, field: str, *, characters_max: int, required: bool = False) -> str:
    """One line of printable text: it is shown on terminals, in CSV and on pages."""
    value = value.strip()
    if required and not value:
        raise invalid(f"{field}: expected a text", field)
    if len(value) > characters_max or not value.isprintable():
        raise invalid(f"{field}: expected one line of at most {characters_max} printable characters", field)
    return value


def email(value: str) -> str:
    """An address in its normal form."""
    try:
        return emails.normalise(value)
    except ValueError as failure:
        raise invalid(f"email: {failure}", "email") from None


def amount(value: str, field: str, *, signed: bool = False) -> int:
    """Nano-credits of an amount that moves: not zero."""
    if value.startswith("-") and not signed:
        raise invalid(f"{field}: expected a positive amount; only --kind adjustment may take credits", field)
    try:
        nano = units.parse_credits(value, signed=signed)
    except ValueError as failure:
        raise invalid(f"{field}: {failure}", field) from None
    if nano == 0:
        raise invalid(f"{field}: expected an amount other than 0", field)
    return nano


def account_id(value: str, field: str = "id") -> int:
    """The number of an account."""
    return _id("acct", value, field)


def organisation_id(value: str, field: str = "id") -> int:
    """The number of an organisation."""
    return _id("org", value, field)


def key_id(value: str, field: str = "id") -> int:
    """The number of a key."""
    return _id("key", value, field)


def entry_id(value: str | None, field: str) -> int:
    """The number of a ledger entry; None: 0."""
    return 0 if value is None else _id("entry", value, field)


def schedule_id(value: str) -> int:
    """The number of announced rates."""
    return _id("sched", value, "id")


def call_id(value: str | None, field: str) -> int | None:
    """The number of a call."""
    if value is None:
        return None
    try:
        return units.parse_call(value)
    except ValueError as failure:
        raise invalid(f"{field}: {failure}", field) from None


def _id(kind: str, value: str, field: str) -> int:
    try:
        return units.parse_id(kind, value)
    except ValueError as failure:
        raise invalid(f"{field}: {failure}", field) from None


def moment(value: str | None, field: str, *, now_ms: int) -> int | None:
    """Unix milliseconds of a date, a time, or an age such as "24h" (that long ago)."""
    if value is None:
        return None
    if match := _AGE.fullmatch(value):
        return now_ms - int(match[1]) * _AGE_MS[match[2]]
    try:
        return units.parse_time(value)
    except (ValueError, OverflowError):
        raise invalid(
            f"{field}: expected a date or time such as 2026-01-31 or 2026-01-31T12:00:00Z, or an age such as 24h or 7d",
            field,
        ) from None


def expiry(value: str | None, field: str, *, now_ms: int) -> int:
    """Unix milliseconds of a date or time in the future; None: 0, which is never."""
    if value is None:
        return 0
    try:
        at_ms = units.parse_time(value)
    except (ValueError, OverflowError):
        expected = "a date or time such as 2026-12-31 or 2026-12-31T12:00:00Z; null (--expires default) is never"
        raise invalid(f"{field}: expected {expected}", field) from None
    if at_ms <= now_ms:
        raise invalid(f"{field}: expected a time in the future", field)
    return at_ms


def page(limit: int) -> int:
    """The size of a page."""
    if not 1 <= limit <= PAGE_MAX:
        raise invalid(f"limit: expected 1 to {PAGE_MAX}", "limit")
    return limit


def status_filter(value: str | None) -> tuple[int | None, str | None]:
    """(HTTP status, error code) of a filter: one of both, or neither."""
    if value is None:
        return None, None
    if re.fullmatch(r"[1-5][0-9][0-9]", value, re.ASCII):
        return int(value), None
    if value in ERRORS:
        return None, value
    raise invalid("status: expected an HTTP status such as 402, or an error code such as rate_limit_requests", "status")


def scopes(values: Sequence[str] | None) -> tuple[str, ...] | None:
    """Classes of endpoints, and `channel`; None: all endpoints."""
    unknown = [value for value in _bounded(values, "scopes") if value not in SCOPES]
    if unknown:
        raise invalid(f"scopes: expected some of {', '.join(SCOPES)}", "scopes")
    return tuple(dict.fromkeys(values)) if values else None


def models(values: Sequence[str] | None) -> tuple[str, ...] | None:
    """Public model names, or beginnings of them with a closing *; None: all. A model that no channel serves yet is
    allowed: it may come.
    """
    for value in _bounded(values, "models"):
        if not value or not value.isprintable() or " " in value or len(value.encode()) > _MODEL_BYTES_MAX:
            raise invalid("models: expected names of models, or beginnings such as gpt-*", "models")
        if "*" in value[:-1]:
            raise invalid(f"models: {value}: expected * at the end alone, as in gpt-*", "models")
    return tuple(dict.fromkeys(values)) if values else None


def networks(values: Sequence[str] | None) -> tuple[str, ...] | None:
    """Networks in CIDR notation, v4 and v6; a single address is its own network. None: any address."""
    found: dict[str, None] = {}
    for value in _bounded(values, "allow_ips"):
        try:
            found[str(ip_network(value))] = None
        except ValueError:
            raise invalid(
                "allow_ips: expected networks such as 203.0.113.0/24 or 2001:db8::/32, without host bits", "allow_ips"
            ) from None
    return tuple(found) or None


def _bounded(values: Sequence[str] | None, field: str) -> Sequence[str]:
    if values is not None and not 1 <= len(values) <= LIST_ITEMS_MAX:
        # An empty list would have to mean nothing or everything, and one of the two would be a surprise.
        raise invalid(f"{field}: expected 1 to {LIST_ITEMS_MAX}, or null for all", field)
    return values or ()


def limits(params: Limits, old: rows.Limits) -> rows.Limits:
    """The overrides after a change: what the parameters leave out stays, null goes back to the plan's."""
    return rows.Limits(
        rpm=_limit(params.rpm, old.rpm, "rpm"),
        tpm=_limit(params.tpm, old.tpm, "tpm"),
        concurrency=_limit(params.concurrency, old.concurrency, "concurrency"),
        daily_nano=_cap(params.daily_limit, old.daily_nano, "daily_limit"),
        monthly_nano=_cap(params.monthly_limit, old.monthly_nano, "monthly_limit"),
        tokens_per_call=_tokens_per_call(params.tokens_per_call, old.tokens_per_call),
    )


def _limit(value: int | UnsetType | None, old: int | None, field: str) -> int | None:
    if isinstance(value, UnsetType):
        return old
    if value is not None and not 0 <= value <= LIMIT_MAX:
        raise invalid(f"{field}: expected 0 (no limit) to {LIMIT_MAX}", field)
    return value


def _cap(value: str | UnsetType | None, old: int | None, field: str) -> int | None:
    if isinstance(value, UnsetType):
        return old
    if value is None:
        return None
    try:
        return units.parse_credits(value)
    except ValueError as failure:
        raise invalid(f"{field}: {failure}", field) from None


def _tokens_per_call(value: dict[str, int] | UnsetType | None, old: dict[str, int] | None) -> dict[str, int] | None:
    if isinstance(value, UnsetType):
        return old
    if value is None:
        return None
    models([model for model in value if model != "*"] or None)
    for number in value.values():
        _limit(number, None, "tokens_per_call")
    return dict(value) or None
