"""Decompression of a copy of an answer, for reading its usage. The answer itself passes as it is.

Output is made in pieces of bounded size, so that a small answer that expands enormously costs time but never memory.
"""

import zlib
from collections.abc import Callable, Iterator

import brotli
import zstandard

PIECE_BYTES = 65_536

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
