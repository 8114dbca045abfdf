"""Rules of routing that are not asked per call: how long a refused upstream key rests, and how channels are shown.

What is asked per call (breakers, the choice among channels, the budget of repeated attempts) is compiled:
relay/fastpath/routing.pxi.
"""

from typing import Final

import msgspec

from relay._fastpath import ERROR_CODES, PLACE_NAMES, Channel, Rest

BREAKER_STATES: Final = ("closed", "open", "half_open")
_STATES: Final = ("ok", "shut", "probing")
_ACCOUNT: Final = ERROR_CODES.index("upstream_account")


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

    model        None: for all, `(objects)`: for what belongs to none
    endpoint     None: for all
    status       HTTP status of the answer that put it to rest
    try_seconds  until one call may try it all the same, where there is no other way; None: none may
    """

    key: int
    endpoint: str | None
    model: str | None
    reason: str
    status: int
    seconds: float
    try_seconds: float | None


class ShutPlace(msgspec.Struct, frozen=True):
    """A model at an endpoint for which a channel is not used, because it failed there alone."""

    endpoint: str
    model: str
    state: str
    reason: str | None
    retry_seconds: float


class ChannelState(msgspec.Struct, frozen=True):
    """A channel as operators see it. Counters run since the configuration was put into force.

    state          "ok"; "resting": keys of it do, see `keys_resting`; "shut": it failed and is not used, for everything
                   or for the places in `places_shut`; "probing": one call at a time is sent to see; "off": by a switch
    breaker        the worst of its breakers: "closed" (in use), "open", "half_open"
    reason         error code of the last failure that a breaker counted, or of the longest rest; None: there was none
    retry_seconds  until the next try, 0 where nothing keeps calls away
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
    breaker: str
    reason: str | None
    retry_seconds: float
    opened: int
    keys: int
    keys_resting: tuple[RestingKey, ...]
    places_shut: tuple[ShutPlace, ...]
    message: str | None


Rests = list[tuple[str | None, int | None, Rest]]


def _telling(rests: Rests) -> Rests:
    """Without those that another one, for everything, outlasts."""
    whole = max((rest.until_ns for model, _, rest in rests if model is None), default=0)
    return [found for found in rests if found[0] is None or found[2].until_ns > whole]


def channel_state(channel: Channel, api: str, now_ns: int) -> ChannelState:
    """A snapshot; `now_ns` is monotonic."""

    def seconds(until_ns: int) -> float:
        return max(0.0, round((until_ns - now_ns) / 1e9, 3))

    resting = [
        RestingKey(
            key.number,
            None if where is None else PLACE_NAMES[where],
            model,
            ERROR_CODES[rest.code],
            rest.status,
            seconds(rest.until_ns),
            seconds(rest.probe_ns) if rest.code == _ACCOUNT else None,
        )
        for key in channel.keys
        for model, where, rest in _telling(key.resting(now_ns))
    ]
    trying = any(rest.probing for key in channel.keys for _, _, rest in key.resting(now_ns))
    shut = channel.shut()
    places = [
        ShutPlace(
            PLACE_NAMES[where],
            model,
            BREAKER_STATES[breaker.state],
            ERROR_CODES[breaker.last_code] or None,
            seconds(breaker.probe_ns),
        )
        for model, where, breaker in shut
        if model is not None and where is not None
    ]
    longest = max(resting, key=lambda rest: (rest.model is None, rest.seconds), default=None)
    worst = min(shut, key=lambda found: found[2].state)[2] if shut else channel.breaker
    state, retry = "ok", 0.0
    if channel.off:
        state = "off"
    elif shut:
        state, retry = _STATES[worst.state], seconds(worst.probe_ns)
    elif longest is not None:
        state = "probing" if trying else "resting"
        retry = min(longest.seconds, longest.seconds if longest.try_seconds is None else longest.try_seconds)
    reason = ERROR_CODES[worst.last_code] or None
    if longest is not None and not shut:
        reason = longest.reason
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
        state=state,
        breaker=BREAKER_STATES[worst.state],
        reason=reason,
        retry_seconds=retry,
        opened=channel.breaker.opened_total + channel.places_opened_total,
        keys=len(channel.keys),
        keys_resting=tuple(resting),
        places_shut=tuple(places),
        message=channel.off_message or None,
    )
