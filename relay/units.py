"""Conversions between what people read and what the relay counts with: credits, prices, identifiers, calendar days.

Money is an `int` of nano-credits everywhere (1 credit = 1,000,000,000 nano-credits); text appears only at the edges.
Nothing here uses a float: a float that comes out of a config file is refused, because it is no longer what was written.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

NANO_PER_CREDIT = 1_000_000_000

# The largest amount that one command or one balance may hold: 10^9 credits. Sums of a few such still fit 64 bits.
AMOUNT_NANO_MAX = 1_000_000_000 * NANO_PER_CREDIT
# The largest price: nano-credits per million tokens, or per unit. 128-bit arithmetic on the hot path relies on it.
RATE_NANO_MAX = 2**53
# Discounts are exact parts per 10^9; 1.0 is no discount.
DISCOUNT_PPB_NONE = 1_000_000_000
DISCOUNT_PPB_MAX = 1_000 * DISCOUNT_PPB_NONE

_AMOUNT = re.compile(r"(-?)([0-9]{1,18})(?:\.([0-9]{1,9}))?", re.ASCII)


def parse_credits(text: str, *, signed: bool = False) -> int:
    """Nano-credits of a decimal text such as "12.5" (at most 9 decimals). ValueError for anything else.

    No exponent, no blanks, no leading plus, no separators: what is accepted means the same to every reader.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None or (match[1] and not signed):
        raise ValueError("expected decimal credits such as 12.5, with at most 9 decimals and at most 1000000000")
    nano = int(match[2]) * NANO_PER_CREDIT + int((match[3] or "0").ljust(9, "0"))
    if nano > AMOUNT_NANO_MAX:
        raise ValueError(f"expected at most {format_credits(AMOUNT_NANO_MAX)} credits")
    return -nano if match[1] else nano


def format_credits(nano: int) -> str:
    """The shortest exact decimal text: 12500000000 -> "12.5", 0 -> "0", -1 -> "-0.000000001"."""
    whole, fraction = divmod(abs(nano), NANO_PER_CREDIT)
    text = f"{whole}.{fraction:09d}".rstrip("0").rstrip(".") if fraction else str(whole)
    return f"-{text}" if nano < 0 else text


def exact_nano(value: str | int | Decimal, *, maximum: int = RATE_NANO_MAX) -> int:
    """Nano-credits of a decimal that a config gives as text, integer or Decimal; 0 <= result <= maximum.

    ValueError where the value is negative, not finite, finer than 9 decimals, or too large; TypeError for a float.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        raise TypeError("expected a decimal as text, integer or Decimal")
    nano = _scaled(value, NANO_PER_CREDIT)
    if nano > maximum:
        raise ValueError(f"expected at most {format_credits(maximum)}")
    return nano


def discount_ppb(value: str | int | Decimal) -> int:
    """Parts per 10^9 of a factor such as "0.85": 1 is no discount, 0 makes free, above 1 adds a margin (<= 1000)."""
    return exact_nano(value, maximum=DISCOUNT_PPB_MAX)


def _scaled(value: str | int | Decimal, scale: int) -> int:
    """value * scale as an integer, exactly. Decimal's context is never involved, so no precision can be lost."""
    if isinstance(value, str):
        if len(value) > 64 or re.fullmatch(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?", value, re.ASCII) is None:
            raise ValueError("expected a plain decimal, such as 2.5")
        value = Decimal(value)
    numerator: int
    denominator = 1
    if isinstance(value, Decimal):
        sign, digits, exponent = value.as_tuple()
        if not isinstance(exponent, int):
            raise ValueError("expected a finite decimal")
        if len(digits) > 64 or abs(exponent) > 99:
            raise ValueError("expected a decimal of reasonable length")
        numerator = int("".join(map(str, digits))) * (-scale if sign else scale)
        if exponent >= 0:
            numerator *= int(10**exponent)
        else:
            denominator = int(10**-exponent)
    else:
        numerator = value * scale
    if numerator < 0:
        raise ValueError("expected a value that is not negative")
    scaled, rest = divmod(numerator, denominator)
    if rest:
        raise ValueError("expected at most 9 decimals")
    return scaled


# --- identifiers -------------------------------------------------------------------------------------------------

ID_MAX = 2**63 - 1
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_CROCKFORD_VALUE = {digit: value for value, digit in enumerate(_CROCKFORD)}
_CALL_DIGITS = 13
_CALL_COUNTER_BITS = 20


def format_id(kind: str, number: int) -> str:
    """Text of a database id: ("acct", 7) -> "acct_7". Kinds: acct, org, key, entry, lot."""
    return f"{kind}_{number}"


def parse_id(kind: str, text: str) -> int:
    """The number in a text id of this kind. ValueError unless it is exactly what `format_id` writes."""
    match = re.fullmatch(r"([a-z]+)_([1-9][0-9]{0,18})", text, re.ASCII)
    if match is None or match[1] != kind or int(match[2]) > ID_MAX:
        raise ValueError(f"expected an id such as {kind}_1")
    return int(match[2])


def account_text(number: int) -> str:
    """7 -> "acct_7"."""
    return format_id("acct", number)


def parse_account(text: str) -> int:
    """ "acct_7" -> 7; ValueError."""
    return parse_id("acct", text)


def organisation_text(number: int) -> str:
    """7 -> "org_7"."""
    return format_id("org", number)


def parse_organisation(text: str) -> int:
    """ "org_7" -> 7; ValueError."""
    return parse_id("org", text)


def key_text(number: int) -> str:
    """7 -> "key_7"."""
    return format_id("key", number)


def parse_key(text: str) -> int:
    """ "key_7" -> 7; ValueError. (The secret of a key is another thing: policy/keys.py.)"""
    return parse_id("key", text)


def entry_text(number: int) -> str:
    """7 -> "entry_7"."""
    return format_id("entry", number)


def parse_entry(text: str) -> int:
    """ "entry_7" -> 7; ValueError."""
    return parse_id("entry", text)


def lot_text(number: int) -> str:
    """7 -> "lot_7"."""
    return format_id("lot", number)


def parse_lot(text: str) -> int:
    """ "lot_7" -> 7; ValueError."""
    return parse_id("lot", text)


def call_text(number: int) -> str:
    """ "call_" and 13 Crockford digits, zero padded: the text sorts as the number, which sorts by time."""
    if not 0 <= number <= ID_MAX:
        raise ValueError("a call id has 63 bits")
    digits = []
    for _ in range(_CALL_DIGITS):
        digits.append(_CROCKFORD[number & 31])
        number >>= 5
    return "call_" + "".join(reversed(digits))


def parse_call(text: str) -> int:
    """The 63-bit number of a call id. ValueError unless it is exactly what `call_text` writes."""
    number = 0
    if not text.startswith("call_") or len(text) != 5 + _CALL_DIGITS:
        raise ValueError("expected a call id: call_ and 13 letters and digits")
    for digit in text[5:]:
        value = _CROCKFORD_VALUE.get(digit)
        if value is None:
            raise ValueError("expected a call id: call_ and 13 letters and digits")
        number = number << 5 | value
    if number > ID_MAX:
        raise ValueError("expected a call id: call_ and 13 letters and digits")
    return number


def call_id(unix_ms: int, counter: int) -> int:
    """The number of a call: milliseconds since 1970 above a 20-bit counter."""
    return unix_ms << _CALL_COUNTER_BITS | (counter & ((1 << _CALL_COUNTER_BITS) - 1))


def call_unix_ms(number: int) -> int:
    """When the call began, from its id, in milliseconds since 1970."""
    return number >> _CALL_COUNTER_BITS


# --- calendar (UTC) ----------------------------------------------------------------------------------------------

NANO_PER_SECOND = 1_000_000_000
_SECONDS_PER_DAY = 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def day_of(unix_seconds: int) -> int:
    """UTC day index: whole days since 1970-01-01."""
    return unix_seconds // _SECONDS_PER_DAY


def month_of(unix_seconds: int) -> int:
    """UTC month index: months since 1970-01."""
    moment = time.gmtime(unix_seconds)
    return (moment.tm_year - 1970) * 12 + moment.tm_mon - 1


def month_of_day(day: int) -> int:
    """The month index that a day index belongs to."""
    return month_of(day * _SECONDS_PER_DAY)


def day_text(day: int) -> str:
    """20000 -> "2024-10-04"."""
    return (_EPOCH + timedelta(days=day)).strftime("%Y-%m-%d")


def first_day_of_month(month: int) -> int:
    """The day index of the first day of a month index."""
    years, months = divmod(month, 12)
    return (datetime(1970 + years, months + 1, 1, tzinfo=UTC) - _EPOCH).days


def time_text(unix_ms: int) -> str:
    """RFC 3339 in UTC with milliseconds: "2026-01-31T12:00:00.250Z"."""
    moment = _EPOCH + timedelta(milliseconds=unix_ms)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{unix_ms % 1000:03d}Z"


def parse_time(text: str) -> int:
    """Milliseconds since 1970 of an RFC 3339 time or a date (midnight UTC). A time without offset is read as UTC.

    ValueError otherwise.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("expected a date or time such as 2026-01-31 or 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(milliseconds=1)
