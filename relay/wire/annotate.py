"""What a call costs, written into the usage object of its answer: `"relay": {"cost": …, "rates": …, "balance": …}`.

Nothing else of the answer changes, not a blank. The place is found by text and then proved: the changed document must
be equal to the old one but for the new member. Where that does not come out (broken JSON, a key twice, no usage
object), the answer stays as it is.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from relay import units

_USAGE: Final = re.compile(rb'"usage(?:Metadata)?"[ \t\r\n]*:[ \t\r\n]*\{')
_TOKENS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}]', re.DOTALL)
_DATA_LINE: Final = re.compile(rb"(data:? ?)([^\r\n]*)")
PLACES_MAX: Final = 32  # places that look like a usage object and are none; more are not tried


def addition(cost_nano: int, card: str, balance_nano: int) -> dict[str, str]:
    """The new member: decimal texts."""
    return {"cost": units.format_credits(cost_nano), "rates": card, "balance": units.format_credits(balance_nano)}


def document(body: bytes, member: dict[str, str]) -> bytes | None:
    """A JSON document with the member in its usage object; None where it cannot be put there."""
    try:
        before = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    usage = _usage_of(before)
    if usage is None or "relay" in usage:
        return None
    text = b'"relay":' + orjson.dumps(member)
    usage["relay"] = member  # what the document must be afterwards
    places = list(_USAGE.finditer(body))
    for place in reversed(places[-PLACES_MAX:]):
        end = _closing(body, place.end())
        if end is None:
            continue
        inside = body[place.end() : end].rstrip(b" \t\r\n")
        at = place.end() + len(inside)
        changed = body[:at] + (b"," if inside else b"") + text + body[at:]
        try:
            if orjson.loads(changed) == before:
                return changed
        except orjson.JSONDecodeError:
            continue
    return None


def event(raw: bytes, member: dict[str, str]) -> bytes | None:
    """The same for one whole event of a stream, whose data may stand in several lines."""
    pieces = re.split(rb"(\r\n|\r|\n)", raw)
    places = [index for index in range(0, len(pieces), 2) if pieces[index].startswith(b"data")]
    lines = [match for index in places if (match := _DATA_LINE.fullmatch(pieces[index])) is not None]
    if not lines or len(lines) != len(places):
        return None
    changed = document(b"\n".join(line[2] for line in lines), member)
    if changed is None:
        return None
    # The member has no line feed, and none was in the way: there are as many lines as before.
    for index, line, data in zip(places, lines, changed.split(b"\n"), strict=True):
        pieces[index] = line[1] + data
    return b"".join(pieces)


def _usage_of(document: Any) -> dict[str, Any] | None:
    """The usage object that tells what the whole answer used."""
    if not isinstance(document, dict):
        return None
    choices = document.get("choices")
    holders = [document, document.get("response"), document.get("x_groq")]
    holders += choices[:1] if isinstance(choices, list) else []
    for holder in holders:
        for name in ("usage", "usageMetadata"):
            found = holder.get(name) if isinstance(holder, dict) else None
            if isinstance(found, dict):
                return found
    return None


def _closing(body: bytes, start: int) -> int | None:
    """Where the object ends whose content begins at start."""
    depth = 1
    for token in _TOKENS.finditer(body, start):
        if token[0] == b"{":
            depth += 1
        elif token[0] == b"}":
            depth -= 1
            if depth == 0:
                return token.start()
    return None
