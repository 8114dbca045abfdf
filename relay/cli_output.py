"""What the command line prints: JSON, CSV, or tables and short texts for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

Document = dict[str, Any]

# Lists: the field of the document that holds the rows, and the columns that people see (dots lead into objects).
LISTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "account list": ("accounts", ("id", "email", "organisation", "plan", "status", "balance", "held", "created")),
    "organisation list": ("organisations", ("id", "name", "limits", "created")),
    "key list": ("keys", ("id", "prefix", "name", "status", "scopes", "models", "expires", "last_used", "created")),
    "calls": (
        "calls",
        (
            "id", "time", "account_id", "key_id", "path", "model", "channel", "status", "error_code", "input_tokens",
            "output_tokens", "usage_source", "cost", "latency_ms",
        ),
    ),
    "usage": ("usage", ()),  # the columns follow from what was asked for
    "channel list": (
        "channels",
        ("name", "api", "priority", "weight", "models", "state", "reason", "in_flight", "failures", "keys", "off_by"),
    ),
    "events": ("events", ("time", "kind", "code", "account_id", "key_id", "scope", "channel", "count", "detail")),
}  # fmt: skip

# The columns of `calls --csv`: the whole record, in the order of the contract.
CALL_FIELDS = (
    "id", "time", "account_id", "organisation_id", "key_id", "path", "model", "upstream_model", "channel", "attempts",
    "stream", "status", "error_code", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens",
    "images", "video_seconds", "web_searches", "usage_source", "cost", "rate_card", "latency_ms", "first_byte_ms",
    "source_ip", "user_agent",
)  # fmt: skip
# Spreadsheets run a cell that begins with one of these as a formula, and a User-Agent is a stranger's text.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_RIGHT = {
    "balance", "held", "count", "status", "input_tokens", "output_tokens", "cost", "latency_ms", "amount", "calls",
    "failed", "cache_read_tokens", "cache_write_tokens", "images", "video_seconds", "web_searches",
}  # fmt: skip
# Columns of sums that are left out for people where they are 0 in every row.
_RARE = {"failed", "cache_read_tokens", "cache_write_tokens", "images", "video_seconds", "web_searches"}


def usage_columns(rows: Sequence[Document], *, all_of_them: bool) -> tuple[str, ...]:
    """The columns of `relay usage`: the groups that were asked for, then the sums."""
    names = tuple(rows[0]) if rows else ()
    return tuple(name for name in names if all_of_them or name not in _RARE or any(row[name] for row in rows))


def as_json(document: Any) -> str:
    """One line."""
    return json.dumps(document, ensure_ascii=False, separators=(", ", ": "))


def as_csv(rows: Iterable[Document], fields: Sequence[str], *, head: bool) -> str:
    """Rows as CSV (RFC 4180 quoting, LF line ends)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if head:
        writer.writerow(fields)
    for row in rows:
        writer.writerow([_csv_cell(row.get(field)) for field in fields])
    return out.getvalue()


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    return "'" + text if isinstance(value, str) and text.startswith(_FORMULA_STARTS) else text


def clean(value: Any) -> str:
    """A value on a terminal: control and format characters cannot move the cursor or hide text."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(clean(item) for item in value) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{clean(name)}={clean(item)}" for name, item in value.items() if item is not None) or "-"
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def readable_address(email: str) -> str:
    """An e-mail address with its domain as people write it: the store has it in ASCII (RFC 3490)."""
    local, _, domain = email.rpartition("@")
    try:
        return f"{local}@{domain.encode('ascii').decode('idna')}"
    except UnicodeError:
        return email


def table(rows: Sequence[Document], columns: Sequence[str]) -> str:
    """Aligned columns under their names."""
    rows = [row | {"email": readable_address(row["email"])} if row.get("email") else row for row in rows]
    cells = [[clean(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(line[i]) for line in cells)) for i, column in enumerate(columns)] if cells else []
    if not cells:
        return "none\n"
    lines = []
    for line in [[column.upper() for column in columns], *cells]:
        padded = [
            cell.rjust(width) if column in _RIGHT else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines) + "\n"


def properties(document: Document) -> str:
    """A document as lines of name and value; objects in it are indented."""
    lines = list(_property_lines(document, ""))
    return "\n".join(lines) + "\n"


def _property_lines(document: Document, indent: str) -> Iterable[str]:
    if document.get("email"):
        document = document | {"email": readable_address(document["email"])}
    width = max((len(name) for name in document), default=0)
    for name, value in document.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{name}"
            yield from _property_lines(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{indent}{name}"
            for item in value:
                yield f"{indent}  {clean(item)}"
        else:
            yield f"{indent}{name.ljust(width)}  {clean(value)}"


# Prices that few models have: for them there is `--json`.
_OF_SOME_MODELS = frozenset({
    "audio_input", "audio_output", "image_input", "image_output", "audio_cache_read", "image_cache_read", "tiers",
    "tools",
})  # fmt: skip


def _prices(rows: list[Document]) -> str:
    columns = tuple(name for name in rows[0] if name not in _OF_SOME_MODELS) if rows else ()
    return table(rows, columns)


def human(name: str, document: Document) -> str:
    """What a person sees as the result of a command that is no list."""
    if name == "status" and "channels" in document:
        rest = {field: value for field, value in document.items() if field != "channels"}
        columns = (
            "name",
            "api",
            "priority",
            "state",
            "reason",
            "in_flight",
            "failures",
            "keys",
        )
        rows = [{**row, "reason": why(row)} for row in document["channels"]]
        return properties(rest) + "\nchannels\n" + table(rows, columns)
    if name == "rates show":
        head = f"{document['unit']}; discount {document['discount']}\n"
        rows = document["rates"]
        return (
            head
            + _prices(rows)
            + "".join(
                f"\nscheduled for {row['effective']} ({row['id']}, announced {row['announced']})\n"
                + _prices(row["rates"])
                for row in document["scheduled"]
                if not row["withdrawn"]
            )
        )
    if name == "rates check":
        verdict = "the rates in force are usable" if document["ok"] else "the rates in force are not usable"
        return "\n".join([*_by_model(document["warnings"]), verdict]) + "\n"
    if name == "rates schedule":
        rest = {field: value for field, value in document.items() if field not in ("rises", "warnings")}
        lines = [*_by_model(document["rises"]), *_by_model(document["warnings"])]
        return properties(rest) + ("\n" + "\n".join(lines) + "\n" if lines else "")
    if name == "ledger show":
        money = {field: document[field] for field in ("account_id", "balance", "held", "available")}
        return (
            properties(money)
            + "\nlots\n"
            + table(document["lots"], ("id", "kind", "granted", "used", "remaining", "expires", "created"))
            + "\nentries\n"
            + table(document["entries"], ("id", "time", "kind", "amount", "call_id", "reason"))
        )
    if name == "reload":
        rest = {field: value for field, value in document.items() if field != "warnings"}
        return properties(rest) + "".join(f"warning: {clean(line)}\n" for line in document["warnings"])
    if name == "channel test":
        rows = [{**row, "ok": "ok" if row["ok"] else "FAILED"} for row in document["keys"]]
        detail = ("detail",) if any(row.get("detail") is not None for row in rows) else ()
        return table(rows, ("key", "ok", "says", "status", "asked", "milliseconds", *detail))
    if name == "ledger verify":
        agreed = "every balance agrees with its entries and calls\n" if document["ok"] else ""
        aside = document["set_aside"]
        named = table(aside, ("time", "kind", "call_id", "account_id", "reason"))
        agreed += f"\nset aside, not charged\n{named}" if aside else ""
        unchecked = document["unchecked"]
        agreed += f"no time was left to check the pages of {', '.join(unchecked)}\n" if unchecked else ""
        seal = document["seal"]
        return f"{agreed}seal {seal['number']}: {seal['digest']}\n"
    if name == "calls show":
        rest = {field: value for field, value in document.items() if field not in ("bill", "rounded")}
        bill = table(document["bill"], ("what", "quantity", "price", "unit", "amount"))
        return properties(rest) + f"\nbill (rounding and limits: {document['rounded']})\n" + bill
    if "in_force" in document:
        return properties(_limits_in_force(document))
    if name in ("key create", "key rotate"):
        secret = document["secret"]
        rest = {field: value for field, value in document.items() if field != "secret"}
        return f"secret  {secret}\n(shown only now)\n\n{properties(rest)}"
    return properties(document)


def _by_model(lines: Iterable[str]) -> list[str]:
    """Lines that begin with the name of a model, under that name once."""
    grouped: dict[str, list[str]] = {}
    for line in lines:
        model, _, rest = line.partition(": ")
        grouped.setdefault(model, []).append(rest or model)
    made = []
    for model, found in grouped.items():
        made += [f"warning: {clean(model)}: {clean(found[0])}"] if len(found) == 1 else [f"warning: {clean(model)}"]
        made += [f"  {clean(line)}" for line in found] if len(found) > 1 else []
    return made


def _limits_in_force(document: Document) -> Document:
    """Limits with who set them, and what is spent of caps, in place of overrides that say nothing about the plan."""
    own, in_force, spent = document["limits"], document["in_force"], document["spent"]
    others = "account or plan" if "account_id" in document else "plan"
    shown: Document = {}
    for name, value in in_force.items():
        if name == "tokens_per_call":
            own_models = own[name] or {}
            shown[name] = {
                model: f"{tokens} ({'own' if model in own_models else others})"
                for model, tokens in (value or {}).items()
            }
            continue
        origin = "own" if own[name] is not None else others
        notes = [origin]
        if name in ("daily_limit", "monthly_limit"):
            notes.append(f"spent {spent[name.removesuffix('_limit')]}")
        shown[name] = f"{'no limit' if value is None else value} ({', '.join(notes)})"
    rest = {name: value for name, value in document.items() if name not in ("in_force", "spent")}
    return rest | {"limits": shown}


def why(channel: Document) -> str | None:
    """What keeps calls away from a channel, and for how long."""
    state = channel["state"]
    if state == "off":
        return str(channel["message"] or "switched off")
    if state in (None, "ok"):
        return None
    resting, places = channel["keys_resting"], channel["places_shut"]
    if channel["breaker"] != "closed":
        at = "" if len(places) != 1 else f" {places[0]['endpoint']} {places[0]['model']}"
        return f"{channel['reason']}{at}, {channel['retry_seconds']:.0f} s"
    longest = max(resting, key=lambda rest: (rest["model"] is None, rest["seconds"]))
    at = "".join(f" {part}" for part in (longest["endpoint"], longest["model"]) if part is not None)
    keys = len({rest["key"] for rest in resting})
    of = "" if channel["keys"] == 1 else f", {keys} of {channel['keys']} keys"
    return f"{longest['reason']} {longest['status']}{at}, {longest['seconds']:.0f} s{of}"


def difference(row: Document) -> str:
    """A difference that `ledger verify` found."""
    account = f"{row['account_id']}: " if row["account_id"] else ""
    return clean(f"{account}{row['what']} {row['subject']}: expected {row['expected']}, found {row['found']}")
