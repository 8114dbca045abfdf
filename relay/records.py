"""The shape in which calls and events leave the hot path for the store: tuples, in the order of the columns below.

Tuples and not objects, because one is made for every call: the writer hands them to SQLite as they are.
A call's time is in its id (`unix_ms << 20 | counter`), and so is its day; there is no column for either.
"""

from typing import Any, Final

CallRecord = tuple[Any, ...]
EventRecord = tuple[Any, ...]

# The columns of `calls`, in order. Ids are integers, `stream` is 0 or 1, cost_nano is in nano-credits, *_us in
# microseconds. Texts are None or come from a closed set (catalogue, route table, configuration), but for source_ip and
# user_agent (capped).
CALL_COLUMNS: Final = (
    "id",
    "account_id",
    "organisation_id",
    "key_id",
    "path",
    "model",
    "upstream_model",
    "channel",
    "attempts",
    "stream",
    "status",
    "error_code",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "images",
    "video_seconds",
    "web_searches",
    "usage_source",
    "cost_nano",
    "rate_card",
    "latency_us",
    "first_byte_us",
    "source_ip",
    "user_agent",
)

# A call record is a value per column and these two, which are not stored with the call:
# write_off_nano: the part of cost_nano that could not be taken from the balance (becomes a `write_off` entry);
# day: UTC day index, always `call_day(id)`: a call belongs to the day on which it began.
CALL_RECORD_FIELDS: Final = (*CALL_COLUMNS, "write_off_nano", "day")

# A record may have one more field, which few have: what its cost or its caller's Idempotency-Key depend on. A tuple of
# these and then the key's digest (bytes, or None where there is none to be kept) and the body's tag; in still fewer
# also the lines of its bill beside its own model, a tuple of tuples.
CALL_DETAILS: Final = (
    "cache_write_1h_tokens",
    "audio_input_tokens",
    "audio_output_tokens",
    "image_input_tokens",
    "service",
    "image_output_tokens",
    "audio_cache_read_tokens",
    "image_cache_read_tokens",
)

# A line of a call's bill, in order; `kind` is the name of its price, tokens are of `model`.
CALL_LINE: Final = (
    "kind",
    "model",
    "pieces",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "image_input_tokens",
    "image_output_tokens",
    "cost_nano",
)
# Of a process that died nobody knows any more what the lines were: one, of the sum.
RECOVERED_LINE: Final = "recovered"
# Of what is said in a realtime session: its prompt is sound, its pieces are seconds.
TRANSCRIPTION_LINE: Final = "transcription"

# Positions that the writer's fold and the journal's recovery use.
C_ID: Final = 0
C_ACCOUNT: Final = 1
C_ORGANISATION: Final = 2
C_KEY: Final = 3
C_MODEL: Final = 5
C_ERROR_CODE: Final = 11
C_INPUT_TOKENS: Final = 12
C_COST_NANO: Final = 20
C_WRITE_OFF_NANO: Final = 26
C_DAY: Final = 27
C_MORE: Final = 28

USAGE_SOURCES: Final = ("upstream", "estimated", "none")

# The columns of `events` without its id, which the store gives. `count` is how many like it the event stands for (a
# limiter reports refusals summed, not one by one). `detail` is the operator's own text or a name of the configuration,
# never a client's.
EVENT_COLUMNS: Final = (
    "time_ms",
    "kind",
    "code",
    "account_id",
    "key_id",
    "scope",
    "channel",
    "source_ip",
    "count",
    "detail",
)

CALL_ID_COUNTER_BITS: Final = 20
MS_PER_DAY: Final = 86_400_000
CALL_IDS_PER_DAY: Final = MS_PER_DAY << CALL_ID_COUNTER_BITS


def call_time_ms(call_id: int) -> int:
    """Unix milliseconds at which the call with this id began."""
    return call_id >> CALL_ID_COUNTER_BITS


def call_day(call_id: int) -> int:
    """UTC day index (days since 1970-01-01) of the call with this id."""
    return call_id // CALL_IDS_PER_DAY


def first_call_id(time_ms: int) -> int:
    """The smallest id a call that began at this time or later can have."""
    return time_ms << CALL_ID_COUNTER_BITS
