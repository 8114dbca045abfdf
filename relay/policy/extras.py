"""What a request asks for beside tokens of its own model: whether it is allowed and priced, what is held for it, and
what of it is charged in the end.

A tool that the provider runs has a price for each use (`rates.tools`), or uses tokens of another model, which is then
charged by that model's rate and has to be one that the key may use. Everything else is refused before anything is
forwarded, or, with `billing.unpriced = "allow"`, let pass for nothing. A way to another model that says nothing of what
it used (a list of fallbacks) is never open to a key that is restricted to some models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import msgspec

from relay._fastpath import Rate

# Prices of tools whose uses are seen in answers. Any other tool passes only where its price is stated as 0.
COUNTED: Final[frozenset[str]] = frozenset()
OF_ANOTHER_MODEL: Final[frozenset[str]] = frozenset()


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


class Verdict(msgspec.Struct, frozen=True):
    """code      why the request is refused; None: it is not
    field     what of it is at fault
    unpriced  what passes for nothing
    """

    code: str | None = None
    field: str | None = None
    unpriced: tuple[str, ...] = ()


def judge(
    asked: Iterable[Asked],
    prices: Mapping[str, int],
    key_models: frozenset[bytes] | None,
    rate_of: Callable[[str], Rate | None],
    *,
    allow: bool,
    counted: bool = True,
) -> Verdict:
    """Whether a request may go on.

    prices   nano-credits of each use of a tool, with the model that the request is for
    rate_of  the rate of another model
    allow    billing.unpriced = "allow"
    counted  whether uses are charged where this request goes (not in a job)
    """
    unpriced: list[str] = []
    for one in asked:
        if one.model is not None and key_models is not None and one.model.encode() not in key_models:
            return Verdict("model_not_allowed", one.field)
        if not one.price and key_models is not None:
            return Verdict("model_not_allowed", one.field)
        if one.price in OF_ANOTHER_MODEL:
            priced = counted and rate_of(one.model or "") is not None
        else:
            priced = one.price in prices and (prices[one.price] == 0 or (counted and one.price in COUNTED))
        if not priced:
            if not allow:
                return Verdict("tool_unpriced", one.field)
            unpriced.append(one.field)
    return Verdict(None, None, tuple(unpriced))
