"""The rate card that is shipped as data: list prices of well-known models, and what they take and make.

relay/data/rates.json is made by tools/build_rates.py from two public price lists, compared and dated;
relay/data/models.json by tools/build_models.py from one of them.
One credit stands for one unit of the provider's currency. What is not in it has no price: a model about whose price the
lists differ without an explanation is left out.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from importlib import resources
from typing import Any, Final

_NAMES: Final = frozenset({
    "input", "output", "cache_read", "cache_write", "cache_write_1h", "audio_input", "audio_output", "image_input",
    "image_output", "audio_cache_read", "image_cache_read", "image", "video_second", "web_search",
})  # fmt: skip


@functools.cache
def document() -> Mapping[str, Any]:
    """The file: date, sources, models, and where the sources differ."""
    read: dict[str, Any] = json.loads((resources.files("relay") / "data" / "rates.json").read_bytes())
    return read


def entry(model: str) -> Mapping[str, Any] | None:
    """What the card says of a model, by the name that its provider gives it."""
    found: Mapping[str, Any] | None = document()["models"].get(model)
    return found


@functools.cache
def _about() -> Mapping[str, Any]:
    read: dict[str, Any] = json.loads((resources.files("relay") / "data" / "models.json").read_bytes())
    return read


def about(model: str) -> Mapping[str, Any] | None:
    """What is known of a model beside its prices: see tools/build_models.py."""
    found: Mapping[str, Any] | None = _about().get(model)
    return found


@functools.cache
def current() -> frozenset[str]:
    """Models of the card that had not been retired when it was made."""
    day = document()["date"]
    return frozenset(name for name, stated in document()["models"].items() if stated.get("retires_on", "9") > day)


def prices(stated: Mapping[str, Any]) -> dict[str, Decimal]:
    """The prices of an entry or of a tier of it."""
    return {name: Decimal(text) for name, text in stated.items() if name in _NAMES}


def fees(providers: Iterable[str], models: Iterable[str]) -> dict[str, Decimal]:
    """What each use of a provider's tools costs with these models; of several providers the dearest."""
    found: dict[str, Decimal] = {}
    for provider in providers:
        of_provider: dict[str, Decimal] = {}
        for entry in document()["tools"]:  # the narrower ones come last
            if entry["provider"] == provider and any(model.startswith(entry["models"]) for model in models):
                of_provider |= {name: Decimal(text) for name, text in entry["fees"].items()}
        for name, price in of_provider.items():
            found[name] = max(price, found.get(name, price))
    return found


def pictures() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """OpenAI's models whose answers are pictures, and those that transcribe: others use them."""
    for name, stated in document()["models"].items():
        if stated["provider"] == "openai" and ("image_output" in stated or "transcri" in name or "whisper" in name):
            yield name, stated
