"""The rule of evidence in plain Python: the oracle of relay/fastpath/evidence.pxi."""

import json
from typing import Any

from tests.support.tap_oracle import (
    EMBEDDINGS,
    GEMINI_EMBED,
    GENERATE,
    IMAGES,
    MESSAGES,
    RERANK,
    SPEECH,
    TEXT,
    TRANSCRIPTION,
)

PROMPT = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens")
PIECES = {
    IMAGES: ("images", "image"),
    TRANSCRIPTION: ("video_seconds", "video_second"),
    RERANK: ("web_searches", "web_search"),
}
FIELDS = (
    *PROMPT,
    "output_tokens",
    "images",
    "video_seconds",
    "web_searches",
    "audio_input_tokens",
    "audio_output_tokens",
    "image_input_tokens",
    "image_output_tokens",
    "audio_cache_read_tokens",
    "image_cache_read_tokens",
    "service",
)
INPUT, OUTPUT, INPUT_BAD, OUTPUT_BAD = 1, 2, 4, 8
PRIORITY = 3  # the dearer service


def weigh(
    found: dict[str, Any],
    own: dict[str, int],
    most: dict[str, int],
    *,
    format: int,
    priority: bool = False,
    delivered: bool = True,
    shown: bool = False,
    final: bool = True,
    prices: dict[str, int] | None = None,
) -> dict[str, Any]:
    """`weigh_report`; `prices`: input, output, image, video_second, web_search of the rate."""
    usage = {name: found.get(name, 0) for name in FIELDS}
    ours = {name: own.get(name, 0) for name in FIELDS}
    sides = found["sides"]
    counted = found.get("counted_tokens", 0) if format in TEXT else 0
    doubts: dict[str, tuple[str, int, int]] = {}
    estimated = sides == 0

    # the prompt, in the sum
    prompt = sum(usage[name] for name in PROMPT)
    why = ""
    if prompt > most["prompt_tokens"] and sides:
        why = "above_bound"
    elif not sides & INPUT:
        why = "invalid" if sides & INPUT_BAD else "missing" if sides & OUTPUT else "none"
    elif prompt == 0 and ours["input_tokens"] and delivered:
        why = "zero"
    elif sides & INPUT_BAD:
        why = "invalid"
    if why not in ("", "none"):
        doubts["input_tokens"] = why, prompt, most["prompt_tokens"] if why == "above_bound" else ours["input_tokens"]
    if why and not (why == "invalid" and prompt >= ours["input_tokens"]):
        estimated = True
        usage |= dict.fromkeys((*PROMPT, "audio_cache_read_tokens", "image_cache_read_tokens"), 0)
        for name in ("input_tokens", "audio_input_tokens", "image_input_tokens"):
            usage[name] = ours[name]

    # output
    output, own_output = usage["output_tokens"], ours["output_tokens"]
    why, replaced = "", False
    if output > max(most["output_tokens"], 2 * own_output):
        why, replaced = "above_bound", True
    elif not sides & OUTPUT:
        replaced = own_output > output
        why = "invalid" if sides & OUTPUT_BAD else "missing" if replaced and final and sides & INPUT else ""
    elif output == 0 and own_output and (counted or shown or (delivered and prompt == 0)):
        why, replaced = "zero", True
    elif sides & OUTPUT_BAD:
        why, replaced = "invalid", own_output > output
    elif not final:
        replaced = own_output > output
    elif counted > 4 * output + 64:
        why = "less_than_sent"
    elif format != MESSAGES and counted and output - found.get("hidden_tokens", 0) > 8 * counted + 2048:
        why = "more_than_sent"
    if why:
        expected = most["output_tokens"] if why == "above_bound" else counted if why.endswith("sent") else own_output
        doubts["output_tokens"] = why, output, expected
    if replaced:
        estimated = True
        usage["output_tokens"] = own_output
        usage["audio_output_tokens"] = min(own_output, ours["audio_output_tokens"])
        usage["image_output_tokens"] = min(own_output - usage["audio_output_tokens"], ours["image_output_tokens"])

    for name in ("images", "video_seconds", "web_searches"):
        if usage[name] > most[name]:
            doubts[name] = "above_bound", usage[name], most[name]
            estimated = True
            usage[name] = min(ours[name], most[name])
    if usage["service"] == PRIORITY and not priority:
        usage["service"] = 0
        doubts["service_tier"] = "not_asked_for", PRIORITY, 0

    if prices is not None and format in PIECES:
        name, price = PIECES[format]
        pieces = prices.get(price, 0) > 0
        told = found.get(name, 0) > 0
        tokens = sides != 0 and (prices.get("input", 0) > 0 or prices.get("output", 0) > 0)
        if pieces and (told or (format != IMAGES and not tokens)):
            usage |= {field: 0 for field in FIELDS if field.endswith("_tokens")}
            doubts = {one: doubts[one] for one in (name, "service_tier") if one in doubts}
            estimated = name in doubts
            if not told:
                usage[name] = ours[name]
                estimated = True
                doubts.pop(name, None)
                if sides:
                    doubts[name] = "missing", 0, ours[name]
    order = ("input_tokens", "output_tokens", "images", "video_seconds", "web_searches", "service_tier")
    return {
        "usage": usage,
        "estimated": estimated,
        "doubts": [(name, *doubts[name]) for name in order if name in doubts],
    }


def bounds(format: int, body: bytes, scanned: dict[str, Any], output_tokens_max: int) -> dict[str, int]:
    """`request_bounds` of a body without pictures and files, from what the scanner's own oracle knows."""
    document = json.loads(body)
    size, choices = len(body), scanned["choices"]
    types = [tool["type"] for tool in document.get("tools", []) if "type" in tool]
    works = any(kind not in ("function", "custom") for kind in types)
    prompt = size * choices + 16384
    if format == IMAGES:
        prompt += 32 * 65536
    elif format == RERANK:
        prompt += min(size * size // 12, 1 << 23)
    if works or scanned["stored_context"] or (format == GENERATE and document.get("tools")):
        prompt = max(prompt, 1 << 23)
    if format in TEXT:
        most = output_tokens_max or 1 << 19
        limit = most if scanned["output_limit"] < 0 else min(scanned["output_limit"], most)
        output = ((max(limit, 1 << 19) if works else limit) + 65536) * choices
    elif format == IMAGES:
        output = 2 * 6540 * choices
    elif format == SPEECH:
        output = 4 * size + 1000
    elif format == TRANSCRIPTION:
        output = size // 500 * 8 + 1000
    else:
        output = 0 if format in (EMBEDDINGS, GEMINI_EMBED) else 16384
    return {
        "prompt_tokens": max(prompt, 2 * scanned["prompt_tokens"]),
        "output_tokens": output,
        "images": choices if format == IMAGES else 32 * choices,
        "video_seconds": size // 500 + 2,
        "web_searches": 1 + size // 300 if format == RERANK else 128,
    }
