"""How long a sound file plays, from its container alone; for holds, and for answers that report nothing.

Only the few bytes that say so are looked at. What is in none of these forms, or damaged, is taken for speech at a low
bit rate, which is more likely to hold too much than too little.
"""

import struct
from typing import Final

BYTES_PER_SECOND: Final = 4000  # Opus and AAC speech at 32 kbit/s
SECONDS_MAX: Final = 1 << 20

_MP3_RATES: Final = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # kbit/s, MPEG 1 layer III
_MP3_RATES_LOW: Final = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # MPEG 2 and 2.5


def seconds(data: bytes | memoryview) -> int:
    """Seconds, rounded up."""
    head = bytes(data[:4096])
    size = len(data)
    found: float | None = None
    try:
        if head.startswith(b"RIFF") and head[8:12] == b"WAVE":
            found = _wav(head, size)
        elif head.startswith(b"fLaC"):
            found = _flac(head)
        elif head.startswith(b"OggS"):
            found = _ogg(head, bytes(data[-65_536:]))
        elif head.startswith(b"ID3") or (len(head) > 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
            found = _mp3(data, size)
        elif head[4:8] == b"ftyp":
            found = _mp4(bytes(data))
    except (struct.error, IndexError, ValueError, ZeroDivisionError):
        found = None
    if found is None or not 0 <= found <= SECONDS_MAX:
        found = size / BYTES_PER_SECOND
    return min(-int(-found // 1), SECONDS_MAX)


def _wav(head: bytes, size: int) -> float | None:
    at = head.find(b"fmt ")
    if at < 0:
        return None
    (per_second,) = struct.unpack_from("<I", head, at + 16)
    data_at = head.find(b"data", at)
    body = size - (data_at + 8 if data_at >= 0 else 44)
    return float(max(body, 0) / per_second)


def _flac(head: bytes) -> float:
    packed = int.from_bytes(head[18:26], "big")  # rate 20 bits, channels 3, depth 5, samples 36
    return (packed & ((1 << 36) - 1)) / (packed >> 44)


def _ogg(head: bytes, tail: bytes) -> float | None:
    at = tail.rfind(b"OggS")
    if at < 0:
        return None
    (position,) = struct.unpack_from("<q", tail, at + 6)
    if b"OpusHead" in head:
        rate = 48_000
    else:
        vorbis = head.find(b"\x01vorbis")
        if vorbis < 0:
            return None
        (rate,) = struct.unpack_from("<I", head, vorbis + 12)
    return float(position / rate)


def _mp3(data: bytes | memoryview, size: int) -> float | None:
    at = 0
    head = bytes(data[:10])
    if head.startswith(b"ID3"):
        at = 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
    frame = bytes(data[at : at + 4])
    if frame[0] != 0xFF or frame[1] & 0xE6 != 0xE2:
        return None
    rates = _MP3_RATES if frame[1] & 0x18 == 0x18 else _MP3_RATES_LOW
    kbit = rates[frame[2] >> 4]
    return (size - at) * 8 / (kbit * 1000)


def _mp4(data: bytes) -> float | None:
    at = data.find(b"mvhd")
    if at < 0:
        return None
    if data[at + 4] == 1:
        scale, duration = struct.unpack_from(">IQ", data, at + 24)
    else:
        scale, duration = struct.unpack_from(">II", data, at + 16)
    return float(duration / scale)
