"""A call record, as it leaves the hot path, as the document that `relay calls` prints of it."""

from __future__ import annotations

from typing import Any

from relay import units
from relay.records import CALL_COLUMNS, CallRecord

_POSITIONS = {name: position for position, name in enumerate(CALL_COLUMNS)}
_RENAMED = {"cost": "cost_nano", "latency_ms": "latency_us", "first_byte_ms": "first_byte_us"}
_FIELDS = tuple(
    (name, _POSITIONS[_RENAMED.get(name, name)])
    for name in (
        "path", "model", "upstream_model", "channel", "attempts", "stream", "status", "error_code", "input_tokens",
        "output_tokens", "cache_read_tokens", "cache_write_tokens", "images", "video_seconds", "web_searches",
        "usage_source", "cost", "rate_card", "latency_ms", "first_byte_ms", "source_ip", "user_agent",
    )
)  # fmt: skip


def call_document(record: CallRecord) -> dict[str, Any]:
    """The whole record."""
    call_id, account_id, organisation_id, key_id = record[:4]
    document: dict[str, Any] = {
        "id": units.call_text(call_id),
        "time": units.time_text(units.call_unix_ms(call_id)),
        "account_id": units.account_text(account_id) if account_id else None,
        "organisation_id": units.organisation_text(organisation_id) if organisation_id else None,
        "key_id": units.key_text(key_id) if key_id else None,
    }
    for name, position in _FIELDS:
        document[name] = record[position]
    document["stream"] = bool(document["stream"])
    document["cost"] = units.format_credits(document["cost"])
    document["latency_ms"] /= 1000
    if document["first_byte_ms"] is not None:
        document["first_byte_ms"] /= 1000
    return document
