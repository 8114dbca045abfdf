"""Rate-limit headers in each dialect's own names, with the limits of the caller's key.

OpenAI writes the time until a bucket is full as a duration (`1.5s`, `6m0s`), Anthropic as a moment (RFC 3339). Gemini
has no such headers; it gets OpenAI's, which its SDKs ignore and people can read.
"""

from datetime import UTC, datetime
from typing import Final

import msgspec

from relay.wire.endpoints import D_ANTHROPIC

# (limit, remaining, reset), by dialect.
REQUESTS_NAMES: Final[tuple[tuple[bytes, bytes, bytes], ...]] = (
    (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    (
        b"anthropic-ratelimit-requests-limit",
        b"anthropic-ratelimit-requests-remaining",
        b"anthropic-ratelimit-requests-reset",
    ),
    (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
)
TOKENS_NAMES: Final[tuple[tuple[bytes, bytes, bytes], ...]] = (
    (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
    (
        b"anthropic-ratelimit-tokens-limit",
        b"anthropic-ratelimit-tokens-remaining",
        b"anthropic-ratelimit-tokens-reset",
    ),
    (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
)


class Bucket(msgspec.Struct, frozen=True):
    """The tightest of a caller's buckets of one kind: permits per minute, permits left, time until it is full."""

    limit: int
    remaining: int
    reset_ns: int


def render(dialect: int, requests: Bucket | None, tokens: Bucket | None, wall_ns: int) -> list[tuple[bytes, bytes]]:
    """Headers for the buckets there are; None or a limit of 0 is no limit and has none."""
    headers: list[tuple[bytes, bytes]] = []
    for bucket, names in ((requests, REQUESTS_NAMES), (tokens, TOKENS_NAMES)):
        if bucket is None or bucket.limit <= 0:
            continue
        reset = moment(wall_ns + bucket.reset_ns) if dialect == D_ANTHROPIC else duration(bucket.reset_ns)
        values = (b"%d" % bucket.limit, b"%d" % max(0, bucket.remaining), reset)
        headers += zip(names[dialect], values, strict=True)
    return headers


def duration(ns: int) -> bytes:
    """A wait as OpenAI writes it, rounded up to a millisecond: `0s`, `120ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    ms = max(0, -(-ns // 1_000_000))
    if 0 < ms < 1000:
        return b"%dms" % ms
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    fraction = f".{ms:03d}".rstrip("0") if ms else ""
    return f"{text}{seconds}{fraction}s".encode()


def moment(wall_ns: int) -> bytes:
    """A moment of UTC as Anthropic writes it, rounded up to a second: `2026-01-02T03:04:05Z`."""
    seconds = max(0, -(-wall_ns // 1_000_000_000))
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
