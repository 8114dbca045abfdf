"""JSON documents of providers, read and written whatever numbers and characters they hold.

orjson is quick and strict: one number that no machine has, or half of a surrogate pair in a text, makes a document
unreadable. A job whose end cannot be read would be free, so what it refuses is read by the standard library.
"""

import json
import math
import sys
from typing import Any, Final

import orjson

_MOST: Final = (1 << 63) - 1
_DIGITS: Final = 18


def loads(data: bytes | str) -> Any:
    """Raises ValueError for what is no JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
        try:
            return json.loads(text, parse_int=_integer, parse_float=_float, parse_constant=_refused)
        except RecursionError:
            raise ValueError("too deep") from None


def dumps(document: Any) -> bytes:
    """What `loads` has read."""
    try:
        return orjson.dumps(document)
    except TypeError:
        return json.dumps(document).encode()


def _integer(text: str) -> int:
    """Numbers that no count can be stand for the largest."""
    if len(text) <= _DIGITS:
        return int(text)
    return -_MOST if text.startswith("-") else _MOST


def _float(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else math.copysign(sys.float_info.max, value)


def _refused(name: str) -> Any:
    raise ValueError(name)
