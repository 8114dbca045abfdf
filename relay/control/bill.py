"""The bill of one call, line by line: what it used of each priced dimension, and at which price of its own card."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from relay import units
from relay.control.documents import Document
from relay.policy import pricing
from relay.storage.rows import CallDetails, CallRow

PER_MILLION = "per million tokens"
PER_PIECE = "each"
_PIECES = {"image": "images", "video_second": "video_seconds", "web_search": "web_searches"}


def lines(body: str, call: CallRow) -> list[Document]:
    """Rows {"what", "quantity", "price", "unit", "amount"}: exact decimals, before the one rounding of the whole.

    body  of the rate card that the call was admitted under
    Tools that the provider ran, and other models behind them, come after tokens and pieces of the call's own model.
    An empty list where the card does not have the call's model.
    """
    sets, ppb = pricing.sets_of(body, call.model or "")
    if not sets:
        return []
    details = call.details or CallDetails()
    prompt = call.input_tokens + call.cache_read_tokens + call.cache_write_tokens
    whole = call.path in pricing.WHOLE_PATHS
    prices = pricing.at(sets, 0 if whole else max(prompt - 1, 0), pricing.SERVICES[details.service])
    made = [
        _line(what, quantity, prices[what], ppb, piece=what in _PIECES)
        for what, quantity in _quantities(call, details).items()
        if quantity
    ]
    for line, parts, line_ppb in pricing.lines_of(body, call):
        for name, quantity, nano, piece in parts:
            what = " ".join(text for text in (line.kind, line.model, name) if text)
            made.append(_line(what, quantity, nano, line_ppb, piece=piece))
    return made


def _line(what: str, quantity: int, nano: int, ppb: int, *, piece: bool) -> Document:
    amount = Decimal(quantity) * nano * ppb / (10**9 * units.NANO_PER_CREDIT * (1 if piece else 10**6))
    return {
        "what": what,
        "quantity": quantity,
        "price": _text(Decimal(nano) * ppb / (10**9 * units.NANO_PER_CREDIT)),
        "unit": PER_PIECE if piece else PER_MILLION,
        "amount": _text(amount),
    }


def _quantities(call: CallRow, details: CallDetails) -> dict[str, int]:
    """Units of each price; they do not overlap."""
    audio_in = min(details.audio_input_tokens, call.input_tokens)
    image_in = min(details.image_input_tokens, call.input_tokens - audio_in)
    audio_out = min(details.audio_output_tokens, call.output_tokens)
    image_out = min(details.image_output_tokens, call.output_tokens - audio_out)
    audio_read = min(details.audio_cache_read_tokens, call.cache_read_tokens)
    image_read = min(details.image_cache_read_tokens, call.cache_read_tokens - audio_read)
    hour = min(details.cache_write_1h_tokens, call.cache_write_tokens)
    return {
        "input": call.input_tokens - audio_in - image_in,
        "audio_input": audio_in,
        "image_input": image_in,
        "cache_read": call.cache_read_tokens - audio_read - image_read,
        "audio_cache_read": audio_read,
        "image_cache_read": image_read,
        "cache_write": call.cache_write_tokens - hour,
        "cache_write_1h": hour,
        "output": call.output_tokens - audio_out - image_out,
        "audio_output": audio_out,
        "image_output": image_out,
        **{what: getattr(call, field) for what, field in _PIECES.items()},
    }


def document(record: Document, body: str | None, call: CallRow) -> Document:
    """The record with its bill. `rounded`: what the one rounding up of the whole, and clamps, changed."""
    found: list[Any] = [] if body is None else lines(body, call)
    total = sum((Decimal(line["amount"]) for line in found), Decimal(0))
    cost = Decimal(call.cost_nano) / units.NANO_PER_CREDIT
    return record | {"bill": found, "rounded": _text(cost - total) if found else "0"}


def _text(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
