"""JSON that has to mean the same to whoever reads it next, read in plain Python: bodies of jobs, operators' documents.

Not UTF-8, NaN, a key twice in one object, too deep: refused. A byte order mark in front is taken off before.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


class DuplicateKeyError(ValueError):
    """A key stands twice in one object."""


def loads(data: bytes) -> Any:
    """The document. ValueError where it is not JSON; DuplicateKeyError."""
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("too deep") from None


def look_alike(document: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of these names that another key of the document is taken for where case is folded, as Go does."""
    known = {name: name for name in names}
    folded = {name.casefold(): name for name in known}
    return next((folded[key.casefold()] for key in document if key not in known and key.casefold() in folded), None)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise DuplicateKeyError
    return made


def _refused(_: str) -> Any:
    raise ValueError("not a number of JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refused)
