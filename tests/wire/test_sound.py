"""How long sound plays: files as programs write them, and none that is damaged gets in the way."""

import io
import struct
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.sound import BYTES_PER_SECOND, SECONDS_MAX, seconds


def wav(length_seconds: float, rate: int = 8000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\0\0" * round(length_seconds * rate))
    return out.getvalue()


def ogg(granule: int, head: bytes) -> bytes:
    page = b"OggS\0\2" + struct.pack("<q", 0) + b"\0" * 12 + head
    return page + b"x" * 100 + b"OggS\0\4" + struct.pack("<q", granule) + b"\0" * 12


FLAC_INFO = (44_100 << 44 | 1 << 41 | 15 << 36 | 44_100 * 12 + 1).to_bytes(8, "big")
FILES = {
    "wav": (wav(3), 3),
    "wav, a part of a second": (wav(3.1), 4),
    "wav at 44.1 kHz": (wav(2, 44_100), 2),
    "flac": (b"fLaC\0\0\0\x22" + b"\0" * 10 + FLAC_INFO + b"\0" * 100, 13),
    "opus": (ogg(48_000 * 5, b"OpusHead"), 5),
    "vorbis": (ogg(44_100 * 5 - 9, b"\x01vorbis" + struct.pack("<IBI", 0, 2, 44_100)), 5),
    "mp3 of 128 kbit/s": (b"\xff\xfb\x90\x00" + b"\0" * (16_000 * 4 - 4), 4),
    "mp3 with a tag": (b"ID3\4\0\0\0\0\1\0" + b"t" * 128 + b"\xff\xfb\x90\x00" + b"\0" * (16_000 * 4 - 4), 4),
    "mp4": (b"\0\0\0\x18ftypM4A " + b"\0" * 20 + b"mvhd" + struct.pack(">IIIII", 0, 0, 0, 1000, 7001), 8),
    "mp4, long form": (b"\0\0\0\x18ftypM4A " + b"mvhd" + struct.pack(">IQQIQ", 1 << 24, 0, 0, 1000, 7000), 7),
    "webm": (b"\x1aE\xdf\xa3" + b"\0" * (BYTES_PER_SECOND - 4), 1),
    "nothing": (b"", 0),
}


@pytest.mark.parametrize("name", FILES)
def test_seconds(name: str):
    data, expected = FILES[name]
    assert seconds(data) == expected
    assert seconds(memoryview(data)) == expected


@given(st.sampled_from(sorted(FILES)), st.integers(0, 4000), st.binary(max_size=40))
def test_damage(name: str, at: int, damage: bytes):
    data = FILES[name][0]
    assert 0 <= seconds(data[:at] + damage + data[at + len(damage) :]) <= SECONDS_MAX
    assert 0 <= seconds(data[:at]) <= SECONDS_MAX
