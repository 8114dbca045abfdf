"""Rates by themselves: a file of `[[rates]]` that an operator schedules, and their form in the store."""

from __future__ import annotations

import json
import tomllib
from decimal import Decimal
from typing import Any

import msgspec

from relay.config import Rate, RateTier, Tables, rate_faults
from relay.config_values import ConfigError, Converter, Fault


class _RatesFile(msgspec.Struct, frozen=True, kw_only=True):
    rates: tuple[Rate, ...]


def parse(text: str, *, file: str) -> tuple[Rate, ...]:
    """The rates of a TOML text that has nothing else. ConfigError names key and what is expected."""
    try:
        document = tomllib.loads(text, parse_float=Decimal)
    except RecursionError:
        raise ConfigError(file, [Fault("", "TOML", "brackets nested too deeply")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(file, [Fault("", "TOML", str(error))]) from None
    return _checked(document, file)


def stored(rates: tuple[Rate, ...]) -> str:
    """As the store keeps them: JSON, every price as a decimal text."""
    return json.dumps({"rates": [_document(rate) for rate in rates]}, separators=(",", ":"))


def read(body: str) -> tuple[Rate, ...]:
    """What `stored` made."""
    return _checked(json.loads(body), "the store")


def _document(value: Rate | RateTier) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name in value.__struct_fields__:
        field = getattr(value, name)
        if isinstance(field, tuple):
            field = [_document(item) if isinstance(item, RateTier) else item for item in field]
        elif isinstance(field, Decimal):
            if field < 0:
                continue  # not stated
            field = f"{field:f}"
        elif isinstance(field, dict):
            field = {tool: f"{price:f}" for tool, price in field.items()}
        document[name] = field
    if isinstance(value, Rate) and "web_search" not in value.tools:
        del document["web_search"]  # not stated either
    return document


def _checked(document: dict[str, Any], file: str) -> tuple[Rate, ...]:
    converter = Converter(resolve_secrets=False)
    table = converter.table(_RatesFile, document)
    faults = converter.faults
    if table is not None:
        faults = [*faults, *rate_faults(Tables(rates=table.rates))]
        if not table.rates:
            faults.append(Fault("rates", "at least one [[rates]]", "none"))
    if table is None or faults:
        raise ConfigError(file, faults)
    return table.rates
