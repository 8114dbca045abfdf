"""Decompression of a copy of an answer, for reading its usage or what an error is about. The answer passes as it is.

Output is made in pieces of bounded size, so that a small answer that expands enormously costs time but never memory.
"""

import zlib
from collections.abc import Callable, Iterator

import brotli
import zstandard

PIECE_BYTES = 65_536
READ_BYTES_MAX = 262_144  # of an error answer: what it is about stands at its beginning

Decoder = Callable[[bytes], Iterator[bytes]]


def decoder(encoding: bytes) -> Decoder | None:
    """For a Content-Encoding (lower case); None where it is not one we know: no usage is read then."""
    if encoding in (b"gzip", b"x-gzip"):
        return _zlib(16 + zlib.MAX_WBITS)
    if encoding == b"deflate":
        return _zlib(zlib.MAX_WBITS)
    if encoding == b"br":
        return _brotli()
    if encoding == b"zstd":
        return _zstandard()
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
    attempts = [decoder(coding)]
    if coding == b"deflate":
        attempts.append(_zlib(-zlib.MAX_WBITS))  # without the wrapper of zlib, as some servers send it
    for decode in attempts:
        if decode is None:
            return None
        found = bytearray()
        try:
            for piece in decode(body):
                found += piece
                if len(found) >= READ_BYTES_MAX:
                    break
        except (zlib.error, brotli.error, zstandard.ZstdError):
            continue
        if found or not body:
            return bytes(found)
    return None


def _zlib(window_bits: int) -> Decoder:
    stream = zlib.decompressobj(window_bits)

    def decode(data: bytes) -> Iterator[bytes]:
        nonlocal stream
        while data:
            if stream.eof:  # a body may be several gzip members in a row (RFC 1952 2.2)
                stream = zlib.decompressobj(window_bits)
            yield stream.decompress(data, PIECE_BYTES)
            data = stream.unused_data if stream.eof else stream.unconsumed_tail

    return decode


def _brotli() -> Decoder:
    stream = brotli.Decompressor()

    def decode(data: bytes) -> Iterator[bytes]:
        yield stream.process(data, output_buffer_limit=PIECE_BYTES)
        while not stream.can_accept_more_data():
            yield stream.process(b"", output_buffer_limit=PIECE_BYTES)

    return decode


def _zstandard() -> Decoder:
    stream = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj(
        write_size=PIECE_BYTES, read_across_frames=True
    )

    def decode(data: bytes) -> Iterator[bytes]:
        yield stream.decompress(data)

    return decode
