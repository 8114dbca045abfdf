"""What the engine decides by itself, in plain Python: the ids of calls and which secret opens a key."""

import hashlib
import hmac

MS_BITS = 20


def next_id(last: int, ms: int) -> int:
    """Milliseconds in front, a counter behind: ascending, whatever the clock does."""
    return max(ms << MS_BITS, last + 1)


def opens(pepper: bytes, digest: bytes, secret: bytes, *, dead: bool, expired: bool) -> bool:
    return not dead and not expired and hmac.new(pepper, secret, hashlib.sha256).digest() == digest
