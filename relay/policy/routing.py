"""Rules of routing that are not asked per call: how long a refused upstream key rests, and how channels are shown.

What is asked per call (breakers, the choice among channels, the budget of repeated attempts) is compiled:
relay/fastpath/routing.pxi.
"""

from typing import Final

import msgspec

from relay._fastpath import ERROR_CODES, Channel

BREAKER_STATES: Final = ("closed", "open", "half_open")


class KeyRests(msgspec.Struct, frozen=True):
    """How long an upstream key rests after a refusal, in seconds.

    limited_seconds  429 without a Retry-After; 0: keys never rest
    refused_seconds  401, 402, 403 without one, or with a shorter one: an operator has to act
    seconds_max      whatever the upstream says
    """

    limited_seconds: float
    refused_seconds: float
    seconds_max: float

    def rest_ns(self, account: bool, retry_after_seconds: float | None) -> int:
        """For a refusal (`account`: of the key or account itself, else of its limits). 0: no rest."""
        if self.limited_seconds == 0:
            return 0
        seconds = self.limited_seconds if retry_after_seconds is None else retry_after_seconds
        if account:
            seconds = max(seconds, self.refused_seconds)
        return max(1, round(min(seconds, self.seconds_max) * 1e9))


class RestingKey(msgspec.Struct, frozen=True):
    """An upstream key that rests: its place in `api_keys` from 1, for which upstream model, how long.

    The model is None where it rests for all, and `(objects)` for what belongs to none.
    """

    key: int
    model: str | None
    reason: str
    seconds: float


class ChannelState(msgspec.Struct, frozen=True):
    """A channel as operators see it. Counters run since the configuration was put into force.

    state          "closed" (in use), "open" (not used), "half_open" (one call at a time is sent to see)
    reason         error code of the last failure that a breaker counted, None where there was none
    retry_seconds  until the next probe, 0 where the breaker is closed
    opened         how often its breaker opened
    """

    name: str
    api: str
    priority: int
    weight: int
    tags: tuple[str, ...]
    in_flight: int
    idle_connections: int
    connects: int
    failures: int
    state: str
    reason: str | None
    retry_seconds: float
    opened: int
    keys: int
    keys_resting: tuple[RestingKey, ...]


def channel_state(channel: Channel, api: str, now_ns: int) -> ChannelState:
    """A snapshot; `now_ns` is monotonic."""
    breaker = channel.breaker
    resting = [
        RestingKey(key.number, model, ERROR_CODES[key.rest_code], round((until - now_ns) / 1e9, 3))
        for key in channel.keys
        for model, until in key.resting(now_ns).items()
    ]
    return ChannelState(
        name=channel.name,
        api=api,
        priority=channel.priority,
        weight=channel.weight,
        tags=channel.tags,
        in_flight=channel.in_flight,
        idle_connections=channel.idle_connections,
        connects=channel.connects,
        failures=channel.failures,
        state=BREAKER_STATES[breaker.state],
        reason=ERROR_CODES[breaker.last_code] or None,
        retry_seconds=max(0.0, round((breaker.probe_ns - now_ns) / 1e9, 3)) if breaker.state else 0.0,
        opened=breaker.opened_total,
        keys=len(channel.keys),
        keys_resting=tuple(resting),
    )
