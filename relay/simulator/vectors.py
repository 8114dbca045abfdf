"""Embedding vectors: deterministic, of length one, and of the number of dimensions asked for."""

import hashlib
import struct


def vector(text: bytes, dimensions: int) -> list[float]:
    """Values that float32 holds exactly, so that the float and the base64 form of an answer agree."""
    raw = b"".join(
        hashlib.sha256(text + block.to_bytes(4, "big")).digest() for block in range(-(-dimensions * 2 // 32))
    )
    numbers = [value / 32768 for value in struct.unpack(f">{dimensions}h", raw[: dimensions * 2])]
    norm = sum(number * number for number in numbers) ** 0.5 or 1.0
    exact: tuple[float, ...] = struct.unpack(
        f"<{dimensions}f", struct.pack(f"<{dimensions}f", *(x / norm for x in numbers))
    )
    return list(exact)
