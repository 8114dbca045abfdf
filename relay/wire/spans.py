"""Where values stand in a JSON text: to change one of them and nothing else."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Final

EVERY: Final = "*"
_BLANKS: Final = re.compile(r"[ \t\n\r]*")
# Only where values end counts: a number may be beyond all bounds.
_value: Final = json.JSONDecoder(strict=False, parse_int=str, parse_float=str).raw_decode


def find(data: bytes, path: Sequence[str]) -> list[tuple[int, int]]:
    """Where the values at a path begin and end. A name of the path is that of a member, or EVERY element of a list.

    `data` is one JSON value in UTF-8, read before and without a key twice in it. ValueError for anything else.
    """
    text = data.decode("latin-1")  # a character for each byte; what is looked at is ASCII
    spans = [(_skip(text, 0), len(text))]
    if text[spans[0][0] : spans[0][0] + 1] not in ("{", "["):
        raise ValueError("not a list or an object, or not in UTF-8")
    try:
        for name in path:
            if name == EVERY:
                spans = [span for start, _ in spans for span in _elements(text, start)]
            else:
                spans = [(at, end) for start, _ in spans for key, at, end in _members(text, start) if key == name]
    except IndexError:
        raise ValueError("the text ends too early") from None
    return spans


def put(data: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    """`data` with other bytes in place of those from start to end."""
    parts, last = [], 0
    for start, end, text in sorted(edits):
        parts += [data[last:start], text]
        last = end
    return b"".join([*parts, data[last:]])


def _skip(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    assert found is not None
    return found.end()


def _members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    if text[at] != "{":
        return
    at = _skip(text, at + 1)
    while text[at] != "}":
        name, at = _value(text, at)
        at = _skip(text, _skip(text, at) + 1)
        _, end = _value(text, at)
        yield name, at, end
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _elements(text: str, at: int) -> Iterator[tuple[int, int]]:
    if text[at] != "[":
        return
    at = _skip(text, at + 1)
    while text[at] != "]":
        _, end = _value(text, at)
        yield at, end
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
