"""What a request asks for beside tokens of its own model: whether it is allowed and priced, what is held for it, and
what of it is charged in the end.

A tool that the provider runs has a price for each use (`rates.tools`), or uses tokens of another model, which is then
charged by that model's rate and has to be one that the key may use. Everything else is refused before anything is
forwarded, or, with `billing.unpriced = "allow"`, let pass for nothing. A way to another model that says nothing of what
it used (a list of fallbacks) is never open to a key that is restricted to some models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import msgspec

from relay._fastpath import Rate
from relay.policy.pricing import COST_NANO_MAX
from relay.records import TRANSCRIPTION_LINE

# Prices of tools whose uses are seen in answers. Any other tool passes only where its price is stated as 0.
CONTAINERS: Final = ("container_1g", "container_4g", "container_16g", "container_64g")
COUNTED: Final = frozenset({
    "web_search", "file_search", "x_search", "attachment_search", "code_execution", "maps", "search_source",
    *CONTAINERS
})  # fmt: skip
PICTURES: Final = "image_generation"
ADVISOR: Final = "advisor"
TRANSCRIPTION: Final = TRANSCRIPTION_LINE  # of what is said in a realtime session
OF_ANOTHER_MODEL: Final = frozenset({PICTURES, ADVISOR, TRANSCRIPTION})
USES_HELD: Final = 5  # of a tool, where a request does not bound them
CODE_SECONDS: Final = 300  # of Anthropic's sandboxes, that one price is for
# No answer has more: a report that says more counts as this many, and so does a request.
USES_MAX: Final = 1000
PICTURE_TOKENS_MAX: Final = 65_536
TOKENS_MAX: Final = 1 << 23
# What one picture has, in the largest of the usual sizes and qualities.
PICTURE_TOKENS: Final = 7024
PICTURE_TOKENS_HELD: Final = 16_384


class Asked(Protocol):
    """See `wire.tools.Asked`."""

    @property
    def price(self) -> str: ...
    @property
    def field(self) -> str: ...
    @property
    def model(self) -> str | None: ...
    @property
    def uses(self) -> int: ...
    @property
    def output(self) -> int: ...


class Charge(msgspec.Struct, frozen=True):
    """What a call may be charged for beside its model: `nano` for each use, or tokens by `rate`."""

    kind: str
    nano: int = 0
    model: str = ""
    rate: Rate | None = None
    pictures: int = 0


Line = tuple[str, str | None, int, int, int, int, int, int, int, int, int]  # as records.CALL_LINE


class Verdict(msgspec.Struct, frozen=True):
    """code      why the request is refused; None: it is not
    field     what of it is at fault
    unpriced  what passes for nothing
    charges   what the answer may cost beside tokens
    hold_nano what is held for that
    """

    code: str | None = None
    field: str | None = None
    unpriced: tuple[str, ...] = ()
    charges: tuple[Charge, ...] = ()
    hold_nano: int = 0


def judge(
    asked: Iterable[Asked],
    rate: Rate,
    key_models: frozenset[bytes] | None,
    rate_of: Callable[[str], Rate | None],
    *,
    allow: bool,
    counted: bool = True,
    prompt_tokens: int = 0,
) -> Verdict:
    """Whether a request may go on.

    rate     of the model that it is for
    rate_of  the rate of another model
    allow    billing.unpriced = "allow"
    counted  whether uses are charged where this request goes (not in a job)
    """
    unpriced: list[str] = []
    charges: dict[tuple[str, str], Charge] = {}
    hold = 0
    for one in asked:
        restricted = key_models is not None and (
            not one.price or (one.model is not None and one.model.encode("utf-8", "replace") not in key_models)
        )
        if restricted:
            return Verdict("model_not_allowed", one.field)
        if one.price in OF_ANOTHER_MODEL:
            other = rate_of(one.model or "") if counted else None
            if other is not None:
                charges[one.price, one.model or ""] = Charge(one.price, model=one.model or "", rate=other)
                hold += _held(one, other, prompt_tokens)
                continue
        elif rate.tools.get(one.price) == 0:
            continue
        elif counted and one.price in COUNTED and one.price in rate.tools:
            nano = rate.tools[one.price]
            charges[one.price, ""] = Charge(one.price, nano)
            uses = min(one.uses or USES_HELD, USES_MAX)
            hold += 0 if one.price == "web_search" else _discounted(rate, uses * nano)
            continue
        if not allow:
            return Verdict("tool_unpriced", one.field)
        unpriced.append(one.field)
    return Verdict(None, None, tuple(unpriced), tuple(charges.values()), min(hold, COST_NANO_MAX))


def _held(one: Asked, rate: Rate, prompt_tokens: int) -> int:
    uses = min(one.uses or 1, 100)
    if one.price == PICTURES:
        return uses * rate.bound(prompt_tokens, PICTURE_TOKENS_HELD)
    return uses * rate.bound(prompt_tokens + prompt_tokens // 4, one.output or 4096)


def _discounted(rate: Rate, nano: int) -> int:
    return -(-nano * rate.discount_ppb // 1_000_000_000)


def charge(
    charges: Iterable[Charge],
    counts: Mapping[str, Any],
    rate: Rate,
    rate_of: Callable[[str], Rate | None],
    picture_model: str,
    seconds: int,
) -> tuple[list[Line], list[str]]:
    """The lines of a call's bill beside its own model, and what has no price.

    charges  of its request's verdict; what the answer has used unasked is charged, too, where it has a price
    counts   as `_fastpath.tap` finds them (`extras`)
    seconds  that the call has lasted
    """
    by_kind = {one.kind: one for one in charges}
    lines: list[Line] = []
    unpriced: list[str] = []

    def pieces(kind: str, count: int) -> None:
        if count <= 0:
            return
        nano = by_kind[kind].nano if kind in by_kind else rate.tools.get(kind)
        if nano is None:
            unpriced.append(kind)
        elif nano:
            if count > USES_MAX:
                count = USES_HELD if kind in by_kind else 0  # such a report says nothing: what was held for, if it was
            if not count:
                return
            lines.append((kind, None, count, 0, 0, 0, 0, 0, 0, 0, _discounted(rate, count * nano)))

    for kind in ("file_search", "x_search", "attachment_search", "maps", "search_source"):
        pieces(kind, counts[kind])
    containers = [kind for kind in CONTAINERS if kind in by_kind]
    if containers or "container_1g" in rate.tools:
        pieces(containers[-1] if containers else "container_1g", counts["containers"])
    if not counts["timed"]:
        pieces("code_execution", counts["code"])
    elif counts["code"] and "code_execution" in by_kind:
        pieces("code_execution", 1 + seconds // CODE_SECONDS)
    lines += _pictures(by_kind.get(PICTURES), counts, rate_of, picture_model, unpriced)
    lines += _advice(by_kind.get(ADVISOR), counts["advisor"], unpriced)
    return lines, unpriced


def _pictures(
    one: Charge | None,
    counts: Mapping[str, Any],
    rate_of: Callable[[str], Rate | None],
    default: str,
    unpriced: list[str],
) -> list[Line]:
    """Tokens of the picture model behind a text model; of a picture without a report, what one has."""
    made = counts["pictures"]
    given, of_pictures, cached, output, of_text = (max(n, 0) for n in counts["picture"])
    if not (made or output):
        return []
    rate = one.rate if one is not None else rate_of(default)
    if rate is None:
        unpriced.append(PICTURES)
        return []
    if not output or output > PICTURE_TOKENS_MAX * max(made, 1) or given > TOKENS_MAX:
        given = of_pictures = cached = of_text = 0
        output = made * PICTURE_TOKENS
    cached = min(cached, given)
    found = {
        "input_tokens": given - cached,
        "output_tokens": output,
        "cache_read_tokens": cached,
        "image_input_tokens": min(of_pictures, given - cached),
        "image_output_tokens": output - min(of_text, output),
    }
    return [_tokens(PICTURES, one.model if one is not None else default, rate, made, found)]


def _advice(one: Charge | None, advised: tuple[int, ...], unpriced: list[str]) -> list[Line]:
    """Tokens of the model that Anthropic's advisor asked."""
    if not any(advised):
        return []
    if one is None or one.rate is None:
        unpriced.append(ADVISOR)
        return []
    given, output, read, created, minutes, hour = (min(n, TOKENS_MAX) for n in advised)
    created = max(created, minutes + hour)
    found = {
        "input_tokens": given,
        "output_tokens": output,
        "cache_read_tokens": read,
        "cache_write_tokens": created - min(hour, created),
        "cache_write_1h_tokens": min(hour, created),
    }
    return [_tokens(ADVISOR, one.model, one.rate, 0, found)]


def transcription(model: str, rate: Rate, heard: Mapping[str, int]) -> Line:
    """The line of what one model has transcribed in a session: by the second where it is priced so, else by tokens."""
    if rate.video_second:
        seconds = heard["seconds"]
        return (TRANSCRIPTION, model, seconds, 0, 0, 0, 0, 0, 0, 0, rate.cost(video_seconds=seconds))
    given, output = heard["input_tokens"], heard["output_tokens"]
    cost = rate.cost(input_tokens=given, audio_input_tokens=given, output_tokens=output)
    return (TRANSCRIPTION, model, 0, given, output, 0, 0, 0, 0, 0, cost)


def _tokens(kind: str, model: str, rate: Rate, pieces: int, found: dict[str, int]) -> Line:
    get = found.get
    return (
        kind, model, pieces, found["input_tokens"], found["output_tokens"], found["cache_read_tokens"],
        get("cache_write_tokens", 0) + get("cache_write_1h_tokens", 0), get("cache_write_1h_tokens", 0),
        get("image_input_tokens", 0), get("image_output_tokens", 0), rate.cost(**found),
    )  # fmt: skip
