"""The journal's slots as a test writes them: the layout of relay/fastpath/journal.pxi, written down a second time."""

import ctypes
from typing import Any

from relay import _fastpath
from tests.support.money_oracle import RateOracle

FREE, OPEN, ENDED = 0, 1, 2
SOURCES = ("none", "upstream", "estimated")
TEXTS = ("path", "model", "rate_card", "source_ip", "user_agent", "upstream_model", "channel")
ABSENT = 0xFFFF
PER_TOKEN = 10**6  # a price of one nano-credit per token


class Prices(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("input", "output", "cache_read", "cache_write", "cache_write_1h", "image", "video_second")
    ] + [
        (name, ctypes.c_int64)
        for name in (
            "web_search",
            "audio_input",
            "audio_output",
            "image_input",
            "image_output",
            "audio_cache_read",
            "image_cache_read",
            "prompt",
            "reply",
            "ppb",
        )
    ]


class Usage(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64) for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
    ] + [
        (name, ctypes.c_int64)
        for name in (
            *("cache_write_1h_tokens", "images", "video_seconds", "web_searches"),
            *("audio_input_tokens", "audio_output_tokens", "image_input_tokens", "image_output_tokens"),
            *("audio_cache_read_tokens", "image_cache_read_tokens", "service"),
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


def document(slot: Slot, error_codes: tuple[str, ...]) -> dict[str, Any]:
    """What `Journal.left_over` must say of a slot: the oracle of relay/fastpath/journal.pxi.

    An ended call is charged as it was decided. An open one for what was delivered, if anything was: a final report as
    it is; an earlier one, or none, not below what was counted.
    """
    names = [name for name, _ in Usage._fields_]
    usage = {name: getattr(slot.usage, name) for name in names}
    ended, delivered = slot.state == ENDED, bool(slot.delivered)
    cost, source = slot.cost_nano, SOURCES[slot.source]
    if not ended and not delivered:
        usage, cost, source = dict.fromkeys(names, 0), 0, "none"
    elif not ended:
        source = "upstream" if slot.usage_seen and slot.source != SOURCES.index("estimated") else "estimated"
        if not slot.usage_seen:
            usage["input_tokens"] = slot.prompt_tokens
        if slot.usage_seen < 2 and usage["output_tokens"] < slot.counted_tokens:
            usage["output_tokens"], source = slot.counted_tokens, "estimated"
        cost = slot.tiered_cost_nano
        if cost < 0:
            prices = {name: getattr(slot.prices, name) for name, _ in Prices._fields_}
            count = {name.removesuffix("_tokens"): usage[name] for name in _PLAIN}
            count |= {"image": usage["images"], "video_second": usage["video_seconds"]}
            cost = RateOracle(prices, slot.prices.ppb).cost(count | {"web_search": usage["web_searches"]})
    raw = ctypes.string_at(ctypes.addressof(slot) + Slot.text.offset, slot.text_used)
    texts: dict[str, Any] = dict.fromkeys(TEXTS)
    for index, name in enumerate(TEXTS):
        if slot.text_size[index] != ABSENT:
            texts[name] = raw[slot.text_start[index] :][: slot.text_size[index]].decode()
    more = tuple(usage[name] for name in _MORE)
    key = bytes(slot.idempotency) if any(slot.idempotency) and (ended or delivered) else None
    return texts | {
        "ended": ended,
        "id": slot.id,
        "account_id": slot.account_id,
        "organisation_id": slot.organisation_id or None,
        "key_id": slot.key_id,
        "attempts": slot.attempts,
        "stream": slot.stream,
        "status": slot.status if ended or slot.status else 499,
        "error_code": (error_codes[slot.error_code] or None) if ended else "recovered",
        **{name: usage[name] for name in ("input_tokens", "output_tokens", "cache_read_tokens")},
        "cache_write_tokens": usage["cache_write_tokens"] + usage["cache_write_1h_tokens"],
        **{name: usage[name] for name in ("images", "video_seconds", "web_searches")},
        "usage_source": source,
        "cost_nano": cost,
        "latency_us": slot.latency_us,
        "first_byte_us": slot.first_byte_us or None,
        "written_off_nano": slot.written_off_nano if ended else -1,
        "hold_nano": slot.hold_nano,
        "max_cost_nano": slot.max_cost_nano,
        "more": None if key is None and not any(more) else (*more, key, slot.idempotency_body),
    }


_PLAIN = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens")
_MORE = (
    "cache_write_1h_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
    "image_input_tokens",
    "service",
    "image_output_tokens",
    "audio_cache_read_tokens",
    "image_cache_read_tokens",
)
