"""Ids of calls, and secrets that open keys, against their oracle."""

import hmac
import time

from hypothesis import given
from hypothesis import strategies as st

from relay._fastpath import ApiKey, Credential, Engine
from relay.policy.tokenizers import table_for
from tests.support import engine_oracle
from tests.support.engine_oracle import MS_BITS

TABLE = table_for("gpt-4o")
NOW_MS = time.time_ns() // 10**6


def engine(pepper: bytes = b"pepper") -> Engine:
    return Engine(object(), pepper, [TABLE] * 3, {}, 1)


@given(
    last_ms=st.one_of(st.integers(0, NOW_MS - 10_000), st.integers(NOW_MS + 10**8, NOW_MS + 10**9)),
    counter=st.one_of(st.integers(0, 2), st.integers(2**MS_BITS - 3, 2**MS_BITS - 1)),
    calls=st.integers(1, 6),
)
def test_ids_ascend_whatever_the_clock_says(last_ms: int, counter: int, calls: int):
    own, last = engine(), last_ms << MS_BITS | counter
    before = time.time_ns() // 10**6
    behind = own.continue_ids(last)
    if last_ms > before:
        assert last_ms - before - 60_000 < behind <= last_ms - before + 1
    else:
        assert behind <= 0
    for _ in range(calls):
        before = time.time_ns() // 10**6
        number = own.next_id()
        after = time.time_ns() // 10**6
        # The engine's clock is the monotonic one with an offset: a millisecond beside ours.
        assert engine_oracle.next_id(last, before - 2) <= number <= engine_oracle.next_id(last, after + 2)
        assert number > last
        last = number


@given(
    pepper=st.binary(max_size=80),
    mine=st.binary(min_size=1, max_size=60),
    others=st.lists(st.one_of(st.just(b""), st.binary(max_size=60)), max_size=6),
    dead=st.booleans(),
    expires=st.sampled_from([None, -(10**12), 10**12]),
)
def test_a_secret_opens_its_own_key_and_no_other(
    pepper: bytes, mine: bytes, others: list[bytes], dead: bool, expires: int | None
):
    own = engine(pepper)
    digest = hmac.digest(pepper, mine, "sha256")
    key = ApiKey(b"abcdefghijkl", digest, 1, 1)
    credential = Credential(b"abcdefghijkl", digest, key, 0 if expires is None else time.time_ns() + expires)
    credential.dead = dead
    for secret in [mine, *others, mine + b"\0", mine[:-1]]:
        expired = expires is not None and expires < 0
        assert own.opens(credential, secret) == engine_oracle.opens(pepper, digest, secret, dead=dead, expired=expired)
