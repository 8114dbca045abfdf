"""multipart/form-data, read strictly: what two readers could take in two ways is refused.

    parse(b'multipart/form-data; boundary=x', body)  ->  parts, with offsets into the body

Whatever is forwarded stays as it is; only the places of its parts are found here. RFC 7578 and 2046, without preamble,
epilogue, nested parts and transfer encodings. Also refused: parameters of RFC 2231 (`name*=`, `name*0=`), backslashes
in names and what looks like a parameter in quotes, because parsers make different names of these; and the boundary at
any other place, because some find it after a bare line feed, or anywhere.
"""

import re
from typing import Final

import msgspec

PARTS_MAX: Final = 256
HEAD_BYTES_MAX: Final = 8192  # of one part's fields

_TYPE = re.compile(
    rb"multipart/form-data *; *boundary=(?:\"([0-9A-Za-z'()+_,./:=? -]{1,70})\"|([^\s\";,]{1,70}))", re.I
)
_FIELD = re.compile(rb"([!#-'*+.0-9A-Z^-z|~-]+):[ \t]*([^\r\n]*)", re.I)
_PARAMETER = re.compile(rb"[ \t]*;[ \t]*([0-9a-z*!#$&+.^_`|~-]+)=(?:\"([^\"\r\n\x00]*)\"|([^\s\";,]+))", re.I)
_INNER_PARAMETER = re.compile(rb";[^;]*=")


class Part(msgspec.Struct, frozen=True):
    """One part: its field's name, the file's name (None: no file), and where its bytes stand in the body."""

    name: str
    filename: str | None
    start: int
    end: int


class FormError(ValueError):
    """The body is no multipart form that could be read in one way only."""


def boundary_of(content_type: bytes) -> bytes | None:
    """The boundary that a Content-Type names; None where it is no multipart form."""
    match = _TYPE.fullmatch(content_type.strip())
    return None if match is None else match[1] or match[2]


def parse(boundary: bytes, body: bytes) -> list[Part]:
    """The parts in their order. Raises FormError."""
    parts: list[Part] = []
    line = b"--" + boundary
    at = len(line)
    if not body.startswith(line):
        raise FormError
    while True:
        behind = body[at : at + 2]
        if behind == b"--":
            if body[at + 2 :] not in (b"", b"\r\n") or body.count(line) != len(parts) + 1:
                raise FormError
            return parts
        if behind != b"\r\n" or len(parts) >= PARTS_MAX:
            raise FormError
        head_end = body.find(b"\r\n\r\n", at, at + HEAD_BYTES_MAX)
        if head_end < 0:
            raise FormError
        name, filename = part_head(body[at + 2 : head_end])
        start = head_end + 4
        end = body.find(b"\r\n" + line, start)
        if end < 0:
            raise FormError
        parts.append(Part(name, filename, start, end))
        at = end + 2 + len(line)


def part_head(block: bytes) -> tuple[str, str | None]:
    """Name and file name out of a part's field lines. Raises FormError."""
    disposition: bytes | None = None
    for line in block.split(b"\r\n"):
        match = _FIELD.fullmatch(line)
        if match is None:
            raise FormError
        field = match[1].lower()
        if field == b"content-disposition":
            if disposition is not None:
                raise FormError
            disposition = match[2]
        elif field == b"content-transfer-encoding" and match[2].lower() not in (b"binary", b"8bit", b"7bit"):
            raise FormError
    if disposition is None or not disposition.lower().startswith(b"form-data"):
        raise FormError
    found: dict[str, bytes] = {}
    at = len(b"form-data")
    while at < len(disposition.rstrip()):
        match = _PARAMETER.match(disposition, at)
        if match is None:
            raise FormError
        key = match[1].decode("ascii").lower()
        value = match[2] if match[2] is not None else match[3]
        if key in found or "*" in key or _INNER_PARAMETER.search(value) is not None:
            raise FormError
        if value.endswith(b"\\") or (key == "name" and b"\\" in value):
            raise FormError
        found[key] = value
        at = match.end()
    try:
        name = found["name"].decode()
    except (KeyError, UnicodeDecodeError):
        raise FormError from None
    filename = found.get("filename")
    return name, None if filename is None else filename.decode("utf-8", "replace")


def texts(parts: list[Part], body: bytes, names: frozenset[str], bytes_max: int = 65536) -> dict[str, Part]:
    """The parts of these names that are no files, each at most once. Raises FormError for one that comes twice."""
    found: dict[str, Part] = {}
    for part in parts:
        if part.name in names:
            if part.name in found or part.filename is not None or part.end - part.start > bytes_max:
                raise FormError
            found[part.name] = part
    return found
