"""Names of files and sandboxes in request bodies that Python reads: by the same scanner as on the hot path."""

import json
import re
from typing import Any

from relay import _fastpath
from relay._fastpath import TokenTable
from relay.wire.endpoints import F_CHAT, F_IMAGES, F_RESPONSES

# Where a line of a batch is sent; elsewhere what a file's name means is not known here.
FORMATS = {
    "/v1/chat/completions": F_CHAT,
    "/v1/responses": F_RESPONSES,
    "/v1/images/generations": F_IMAGES,
    "/v1/images/edits": F_IMAGES,
}
_MAYBE = re.compile(rb'file_id|(?<!\\)"container(_id)?"\s*:|\\u00[4-7]')  # the key, or letters of it escaped


class NamesError(ValueError):
    """What files a body names cannot be said. `code`: a name of relay.errors."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def may_be_named(data: bytes) -> bool:
    """Whether a JSON text could name one; most do not, and need not be read for it."""
    return _MAYBE.search(data) is not None


def names(format: int, document: Any, table: TokenTable) -> list[tuple[str, str]]:
    """What a request names, as kind (file, container) and name, which was read without repeated keys. Raises
    NamesError."""
    data = json.dumps(document).encode()
    found = _fastpath.scan_request(format, data, table)
    if found["error"]:
        raise NamesError(found["error"])
    return [
        (kind, json.loads(data[start:end]))
        for kind, (start, end) in zip(found["file_kinds"], found["files"], strict=True)
    ]


def sandbox_id(name: str) -> str:
    """Under what a sandbox is kept: FNV-1a of its name, as the tap has it of answers. Providers draw the names, so none
    can be made that has the hash of another's."""
    value = 0xCBF29CE484222325
    for byte in name.encode("utf-8", "replace"):
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def below(value: Any) -> list[str]:
    """Every `file_id` inside a value of JSON."""
    found: list[str] = []
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            name = item.get("file_id")
            if isinstance(name, str):
                found.append(name)
            todo += item.values()
        elif isinstance(item, list):
            todo += item
    return found
