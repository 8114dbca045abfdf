"""How long keys rest, and how a channel is shown."""

import pytest

from relay._fastpath import ERROR_CODES, Channel
from relay.policy.routing import KeyRests, RestingKey, ShutPlace, channel_state
from tests.support.routing_oracle import PLACE

RESTS = KeyRests(5, 300, 600)


@pytest.mark.parametrize(
    ("account", "asked", "seconds"),
    [
        (False, None, 5),
        (False, 30.0, 30),
        (False, 3600.0, 600),
        (True, None, 300),
        (True, 10.0, 300),
        (True, 400.0, 400),
        (True, 4000.0, 600),
    ],
)
def test_how_long_a_key_rests(account: bool, asked: float | None, seconds: float):
    assert RESTS.rest_ns(account, asked) == seconds * 10**9


def test_a_rest_that_is_asked_for_is_never_nothing():
    assert RESTS.rest_ns(False, 0.0) == 1


def test_keys_may_be_told_never_to_rest():
    assert KeyRests(0, 300, 600).rest_ns(True, 30.0) == 0


def test_finding_newcomer_20_a_channel_is_shown_with_what_keeps_calls_away():
    channel = Channel("c", 0, b"h", b"", [b"secret: 1\r\n", b"secret: 2\r\n"], None, priority=1, weight=2, tags=("eu",))
    calm = channel_state(channel, "openai", 10**9)
    assert (calm.state, calm.breaker, calm.reason, calm.retry_seconds, calm.keys) == ("ok", "closed", None, 0.0, 2)
    assert (calm.keys_resting, calm.places_shut, calm.message) == ((), (), None)
    assert (calm.name, calm.api, calm.priority, calm.weight, calm.tags) == ("c", "openai", 1, 2, ("eu",))
    channel.py_rest_key(2, "gpt", 0, PLACE, 0, 300 * 10**9, ERROR_CODES.index("upstream_account"), 401)
    resting = channel_state(channel, "openai", 10**9)
    assert (resting.state, resting.reason, resting.retry_seconds) == ("resting", "upstream_account", 1.0)
    assert resting.keys_resting == (RestingKey(2, "chat", "gpt", "upstream_account", 401, 299.0, 1.0),)
    for _ in range(10):
        channel.py_attempt("gpt", 11, 0, 10**9, ERROR_CODES.index("upstream_error"))
    place = channel_state(channel, "openai", 2 * 10**9)
    assert (place.state, place.breaker, place.reason, place.retry_seconds) == ("shut", "open", "upstream_error", 1.0)
    assert place.places_shut == (ShutPlace("images", "gpt", "open", "upstream_error", 1.0),)
    for _ in range(10):
        channel.breaker.py_failed(10**9, ERROR_CODES.index("upstream_timeout"))
    shut = channel_state(channel, "openai", 2 * 10**9)
    assert (shut.state, shut.reason, shut.retry_seconds, shut.opened) == ("shut", "upstream_timeout", 1.0, 2)
    channel.off, channel.off_message = True, "moved"
    assert (channel_state(channel, "openai", 10**9).state, channel_state(channel, "openai", 10**9).message) == (
        "off",
        "moved",
    )
    assert "secret" not in repr(shut)
