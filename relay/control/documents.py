"""Rows of the store as the JSON documents of the contract: text ids, decimal credits, RFC 3339 times.

Nothing secret leaves here: of a secret only its public beginning and its last four characters are known.
"""

from __future__ import annotations

from typing import Any

from relay import rate_files, units
from relay.control.live import LiveBalance
from relay.policy import keys, plans
from relay.storage import rows

Document = dict[str, Any]


def time_or_none(at_ms: int) -> str | None:
    """0 means never."""
    return units.time_text(at_ms) if at_ms else None


def _cap(nano: int | None) -> str | None:
    return None if nano is None else units.format_credits(nano)


def limits(row: rows.Limits) -> Document:
    """Overrides; null: the plan's."""
    return {
        "rpm": row.rpm,
        "tpm": row.tpm,
        "concurrency": row.concurrency,
        "daily_limit": _cap(row.daily_nano),
        "monthly_limit": _cap(row.monthly_nano),
        "tokens_per_call": row.tokens_per_call,
    }


def in_force(limits_in_force: plans.ScopeLimits) -> Document:
    """The limits that hold, whoever set them. None: no limit."""
    per_call = {model.decode(): tokens for model, tokens in limits_in_force["tokens_per_call_models"].items()}
    if limits_in_force["tokens_per_call"]:
        per_call[plans.ALL_MODELS] = limits_in_force["tokens_per_call"]
    return {
        "rpm": limits_in_force["rpm"] or None,
        "tpm": limits_in_force["tpm"] or None,
        "concurrency": limits_in_force["concurrency"] or None,
        "daily_limit": _cap(limits_in_force["daily_nano"] or None),
        "monthly_limit": _cap(limits_in_force["monthly_nano"] or None),
        "tokens_per_call": per_call or None,
    }


def balance(balance_nano: int, live: LiveBalance | None) -> Document:
    """`balance` is what is there with what open calls hold; `available` what a new call may use."""
    held_nano = live.held_nano if live else 0
    available_nano = live.available_nano if live else balance_nano
    return {
        "balance": units.format_credits(available_nano + held_nano),
        "held": units.format_credits(held_nano),
        "available": units.format_credits(available_nano),
    }


def account(row: rows.AccountRow, organisation: str | None, money: Document) -> Document:
    """An account with its balance (`money`: from `balance`)."""
    return {
        "id": units.account_text(row.id),
        "email": row.email,
        "organisation": organisation,
        "organisation_id": units.organisation_text(row.organisation_id) if row.organisation_id else None,
        "plan": row.plan,
        "status": row.status,
        **money,
        "limits": limits(row.limits),
        "created": units.time_text(row.created_ms),
        "closed": time_or_none(row.closed_ms),
    }


def organisation(row: rows.OrganisationRow) -> Document:
    """An organisation."""
    return {
        "id": units.organisation_text(row.id),
        "name": row.name,
        "limits": limits(row.limits),
        "created": units.time_text(row.created_ms),
    }


def key(row: rows.KeyRow, credentials: list[rows.CredentialRow], *, now_ms: int) -> Document:
    """A key with those of its credentials that still work."""
    working = [
        {
            "prefix": f"{keys.PREFIX}{credential.public_id}",
            "last4": credential.last4,
            "created": units.time_text(credential.created_ms),
            "expires": time_or_none(credential.expires_ms),
        }
        for credential in credentials
        if not credential.revoked_ms and not 0 < credential.expires_ms <= now_ms and row.status != "revoked"
    ]
    return {
        "id": units.key_text(row.id),
        "account_id": units.account_text(row.account_id),
        "name": row.name,
        "prefix": working[-1]["prefix"] if working else None,
        "description": row.description,
        "status": "expired" if row.status == "active" and 0 < row.expires_ms <= now_ms else row.status,
        "scopes": list(row.scopes) if row.scopes is not None else None,
        "models": list(row.models) if row.models is not None else None,
        "allow_ips": list(row.networks) if row.networks is not None else None,
        "on_disconnect": row.on_disconnect,
        "limits": limits(row.limits),
        "expires": time_or_none(row.expires_ms),
        "created": units.time_text(row.created_ms),
        "revoked": time_or_none(row.revoked_ms),
        "last_used": units.day_text(row.last_used_day) if row.last_used_day else None,
        "credentials": working,
    }


def entry(row: rows.EntryRow) -> Document:
    """A line of the ledger."""
    return {
        "id": units.entry_text(row.id),
        "account_id": units.account_text(row.account_id),
        "time": units.time_text(row.time_ms),
        "kind": row.kind,
        "amount": units.format_credits(row.amount_nano),
        "call_id": units.call_text(row.call_id) if row.call_id else None,
        "reason": row.reason,
        "idempotency_key": row.idempotency_key,
    }


def scheduled_rates(row: rows.ScheduledRatesRow) -> Document:
    """Rates that were announced for a time."""
    return {
        "id": units.format_id("sched", row.id),
        "effective": units.time_text(row.effective_ms),
        "announced": units.time_text(row.announced_ms),
        "withdrawn": time_or_none(row.withdrawn_ms),
        "models": [rate.model for rate in rate_files.read(row.body)],
    }


def lot(row: rows.LotRow) -> Document:
    """What one addition granted and what is left of it."""
    return {
        "id": units.lot_text(row.id),
        "kind": row.kind,
        "granted": units.format_credits(row.granted_nano),
        "used": units.format_credits(row.used_nano),
        "remaining": units.format_credits(row.remaining_nano),
        "expires": time_or_none(row.expires_ms),
        "created": units.time_text(row.created_ms),
    }


def call(row: rows.CallRow) -> Document:
    """The whole record of a call."""
    return {
        "id": units.call_text(row.id),
        "time": units.time_text(units.call_unix_ms(row.id)),
        "account_id": units.account_text(row.account_id) if row.account_id else None,
        "organisation_id": units.organisation_text(row.organisation_id) if row.organisation_id else None,
        "key_id": units.key_text(row.key_id) if row.key_id else None,
        "path": row.path,
        "model": row.model,
        "upstream_model": row.upstream_model,
        "channel": row.channel,
        "attempts": row.attempts,
        "stream": bool(row.stream),
        "status": row.status,
        "error_code": row.error_code or None,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "cache_read_tokens": row.cache_read_tokens,
        "cache_write_tokens": row.cache_write_tokens,
        "images": row.images,
        "video_seconds": row.video_seconds,
        "web_searches": row.web_searches,
        "usage_source": row.usage_source,
        "cost": units.format_credits(row.cost_nano),
        "rate_card": row.rate_card,
        "latency_ms": row.latency_us / 1000,
        "first_byte_ms": None if row.first_byte_us is None else row.first_byte_us / 1000,
        "source_ip": row.source_ip,
        "user_agent": row.user_agent,
    }


def event(row: rows.EventRow) -> Document:
    """A refusal of a limiter (`count` of them), a security event or an operator's act."""
    return {
        "id": row.id,
        "time": units.time_text(row.time_ms),
        "kind": row.kind,
        "code": row.code,
        "account_id": units.account_text(row.account_id) if row.account_id else None,
        "key_id": units.key_text(row.key_id) if row.key_id else None,
        "scope": row.scope,
        "channel": row.channel,
        "source_ip": row.source_ip,
        "count": row.count,
        "detail": row.detail,
    }


def set_aside(row: rows.SetAsideRow) -> Document:
    """What could not be recorded and was not charged."""
    known = 0 < row.call_id <= units.ID_MAX
    return {
        "time": units.time_text(row.time_ms),
        "kind": row.kind,
        "call_id": units.call_text(row.call_id) if known else None,
        "account_id": units.account_text(row.account_id) if row.account_id > 0 else None,
        "reason": row.reason,
    }


# What is expected and what is found, where it is no number.
STATES = {
    "seal": ("as it was sealed", "changed or removed"),
    "unsealed": ("a seal", "none: no relay has added it"),
    "damage": ("pages that can be read and agree", "others"),
    "job": ("ended with a record, or open without one", "something else"),
}


def difference(row: rows.Difference) -> Document:
    """Something that does not add up. Sums of calls and tokens are counts, everything else is credits."""
    text = str if row.what in ("rollup", "count") else units.format_credits
    subject = row.subject
    if row.what in ("cost", "organisation") and subject.isdigit():
        subject = units.call_text(int(subject))
    expected, found = text(row.expected), text(row.found)
    if row.what in STATES:
        expected, found = STATES[row.what]
    elif row.what == "schema":
        expected = "as the relay made it" if row.expected else "none"
        found = "something else" if row.found else "none"
    elif row.what == "organisation":
        expected = "one that the account belongs or belonged to"
        found = units.organisation_text(row.found) if row.found else "none"
    elif row.what == "cost" and row.expected < 0:
        expected = "a rate card with this model"
    return {
        "what": row.what,
        "account_id": units.account_text(row.account_id) if row.account_id > 0 else None,
        "subject": subject,
        "expected": expected,
        "found": found,
    }
