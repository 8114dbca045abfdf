"""Decompression: of a request's body, which goes on plain, and of a copy of an answer, which passes as it is.

The copy is read for its usage, or for what an error is about.

Output is made in pieces of bounded size, so that a small answer that expands enormously costs time but never memory.
"""

import zlib
from collections.abc import Iterator
from typing import Final, Protocol

import brotli
import zstandard

PIECE_BYTES = 65_536
READ_BYTES_MAX = 262_144  # of an error answer: what it is about stands at its beginning

ZSTD_WINDOW_BYTES_MAX: Final = 1 << 27
ZSTD_FED_BYTES: Final = 128  # at a time: four may become 128 KiB


class Decoder(Protocol):
    """Called with each piece of a body; gives what comes out of it, in pieces of bounded size."""

    @property
    def finished(self) -> bool:
        """Whether what has come so far is whole."""

    def __call__(self, data: bytes) -> Iterator[bytes]: ...


BROKEN: Final = (zlib.error, brotli.error, zstandard.ZstdError)


def decoder(encoding: bytes, zstd_window_bytes_max: int = ZSTD_WINDOW_BYTES_MAX) -> Decoder | None:
    """For a Content-Encoding (lower case); None where it is not one we know: no usage is read then."""
    if encoding in (b"gzip", b"x-gzip"):
        return _Zlib(16 + zlib.MAX_WBITS)
    if encoding == b"deflate":
        return _Zlib(0)
    if encoding == b"br":
        return _Brotli()
    if encoding == b"zstd":
        return _Zstandard(zstd_window_bytes_max)
    return None


def read(encoding: bytes | None, body: bytes) -> bytes | None:
    """What an error answer says, as far as READ_BYTES_MAX; None where it cannot be read.

    encoding  as its Content-Encoding stands, None for none. The label may be wrong: a body that is not what it says is
              read by its own first bytes.
    """
    codings = [part.strip().lower() for part in (encoding or b"").split(b",")]
    codings = [coding for coding in codings if coding not in (b"", b"identity")]
    text: bytes | None = body
    for coding in reversed(codings):
        text = _decoded(coding, text) if text is not None else None
    if text is None or not codings:
        magic = next((coding for start, coding in _MAGIC if body.startswith(start)), None)
        if magic is not None:
            return _decoded(magic, body)
        if text is None and body[:64].isascii() and body[:64].lstrip()[:1] in (b"{", b"[", b'"', b"<"):
            return body
    return text


_MAGIC = ((b"\x1f\x8b", b"gzip"), (b"\x28\xb5\x2f\xfd", b"zstd"))


def _decoded(coding: bytes, body: bytes) -> bytes | None:
    decode = decoder(coding)
    if decode is None:
        return None
    found = bytearray()
    try:
        for piece in decode(body):
            found += piece
            if len(found) >= READ_BYTES_MAX:
                break
    except BROKEN:
        return None
    return bytes(found) if found or not body else None


class _Zlib:
    def __init__(self, window_bits: int) -> None:
        self._window_bits = window_bits  # 0: with the wrapper of zlib, or without it, as some programs send "deflate"
        self._stream = zlib.decompressobj(window_bits or zlib.MAX_WBITS)
        self._begun = False

    @property
    def finished(self) -> bool:
        return self._stream.eof

    def __call__(self, data: bytes) -> Iterator[bytes]:
        if not self._begun and data:
            self._begun = True
            if not self._window_bits and not _has_wrapper(data):
                self._window_bits = -zlib.MAX_WBITS
                self._stream = zlib.decompressobj(self._window_bits)
        while True:
            if self._stream.eof:
                if not data:
                    return
                if self._window_bits <= zlib.MAX_WBITS:
                    raise zlib.error("data after the end")
                self._stream = zlib.decompressobj(self._window_bits)  # several gzip members in a row (RFC 1952 2.2)
            piece = self._stream.decompress(data, PIECE_BYTES)
            if piece:
                yield piece
            data = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            if not data and len(piece) < PIECE_BYTES:
                return


def _has_wrapper(data: bytes) -> bool:
    """Whether a deflated body begins as zlib's wrapper does (RFC 1950 2.2)."""
    return data[0] & 0x8F == 0x08 and (len(data) < 2 or (data[0] << 8 | data[1]) % 31 == 0)


class _Brotli:
    def __init__(self) -> None:
        self._stream = brotli.Decompressor()

    @property
    def finished(self) -> bool:
        return bool(self._stream.is_finished())

    def __call__(self, data: bytes) -> Iterator[bytes]:
        yield self._stream.process(data, output_buffer_limit=PIECE_BYTES)
        while not self._stream.can_accept_more_data():
            yield self._stream.process(b"", output_buffer_limit=PIECE_BYTES)


class _Zstandard:
    """It knows no limit of output for a piece, and four bytes may be 128 KiB: it is fed with a little at a time."""

    def __init__(self, window_bytes_max: int) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=window_bytes_max)
        self._stream = self._context.decompressobj(write_size=PIECE_BYTES)

    @property
    def finished(self) -> bool:
        return bool(self._stream.eof)

    def __call__(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), ZSTD_FED_BYTES):
            part = data[at : at + ZSTD_FED_BYTES]
            while part:
                if self._stream.eof:  # several frames in a row
                    self._stream = self._context.decompressobj(write_size=PIECE_BYTES)
                yield self._stream.decompress(part)
                part = self._stream.unused_data if self._stream.eof else b""
