"""The journal's slots as a test writes them: the layout of relay/fastpath/journal.pxi, written down a second time."""

import ctypes
from typing import Any

from relay import _fastpath

FREE, OPEN, ENDED = 0, 1, 2
TEXTS = ("path", "model", "rate_card", "source_ip", "user_agent", "upstream_model", "channel")
ABSENT = 0xFFFF
PER_TOKEN = 10**6  # a price of one nano-credit per token


class Prices(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("input", "output", "cache_read", "cache_write", "cache_write_1h", "image", "video_second")
    ] + [
        (name, ctypes.c_int64)
        for name in ("web_search", "audio_input", "audio_output", "image_input", "prompt", "reply", "ppb")
    ]


class Usage(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64) for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
    ] + [
        (name, ctypes.c_int64)
        for name in (
            *("cache_write_1h_tokens", "images", "video_seconds", "web_searches"),
            *("audio_input_tokens", "audio_output_tokens", "image_input_tokens", "service"),
        )
    ]


class Slot(ctypes.Structure):
    _fields_ = [
        ("state", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("attempts", "stream", "status", "error_code", "source", "delivered")),
        ("usage_seen", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("id", "account_id", "organisation_id", "key_id", "wall_ns", "hold_nano")),
        ("prices", Prices),
        ("usage", Usage),
        *((name, ctypes.c_int64) for name in ("tiered_cost_nano", "prompt_tokens", "counted_tokens")),
        ("idempotency_body", ctypes.c_int64),
        ("idempotency", ctypes.c_uint8 * 32),
        *((name, ctypes.c_int64) for name in ("cost_nano", "written_off_nano")),
        *((name, ctypes.c_int64) for name in ("latency_us", "first_byte_us", "max_cost_nano")),
        ("text_start", ctypes.c_uint16 * 8),
        ("text_size", ctypes.c_uint16 * 8),
        ("text_used", ctypes.c_uint16),
        ("text", ctypes.c_char * 1536),
    ]


def write_slot(memory: Any, number: int, *, texts: dict[str, str] | None = None, **fields: Any) -> Slot:
    """Fills a slot of the buffer `memory` (slots only, no header). An open one of which five tokens were delivered,
    unless the fields say otherwise; a token costs one nano-credit.
    """
    slot = Slot.from_buffer(memory, number * _fastpath.JOURNAL_SLOT_SIZE)
    ctypes.memset(ctypes.byref(slot), 0, ctypes.sizeof(Slot))
    slot.prices = Prices(input=PER_TOKEN, output=PER_TOKEN, prompt=PER_TOKEN, reply=PER_TOKEN, ppb=10**9)
    for index in range(8):
        slot.text_size[index] = ABSENT
    given = {"path": "/v1/chat/completions", "model": "gpt-4o", "rate_card": "card"} | (texts or {})
    values = {"account_id": 1, "key_id": 1, "attempts": 1, "stream": 1, "status": 200, "delivered": 1}
    values |= {"tiered_cost_nano": -1}
    values |= {"prompt_tokens": 10, "counted_tokens": 5, "max_cost_nano": -1, "state": OPEN} | fields
    used = 0
    raw = bytearray()
    for name, text in given.items():
        data = text.encode()
        slot.text_start[TEXTS.index(name)] = used
        slot.text_size[TEXTS.index(name)] = len(data)
        raw += data
        used += len(data)
    ctypes.memmove(ctypes.addressof(slot) + Slot.text.offset, bytes(raw), len(raw))
    slot.text_used = used
    for name, value in values.items():
        setattr(slot, name, value)
    return slot
