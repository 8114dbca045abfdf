"""Builds the default rate card, relay/data/rates.json, from two public price lists.

    python -m venv /tmp/v && /tmp/v/bin/pip install genai-prices && /tmp/v/bin/pip install --no-deps litellm
    /tmp/v/bin/python tools/build_rates.py relay/data/rates.json [--date 2026-11-21]

The lists are litellm's model_prices_and_context_window JSON (MIT, Copyright (c) 2023 Berri AI) and genai-prices (MIT,
Copyright (c) Pydantic Services Inc.). Prices are facts; nothing else is taken. Both are compared price by price as of
the given day. Where they differ, DECIDED says which one is right and why; a difference that is not explained there
keeps the model out of the card (calls to it are refused until an operator prices it), is listed in it, and fails the
build for the providers in STRICT. Neither package is needed at run time.

A price is one provider's list price in its own currency, taken as decimal credits: one credit is one unit of it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import re
import sys
from decimal import ROUND_UP, Decimal
from pathlib import Path
from typing import Any

import genai_prices.data as genai_data  # type: ignore[import-not-found,unused-ignore]

# litellm's provider, genai-prices' provider, the prefix that litellm writes before model names.
PROVIDERS = (
    ("openai", "openai", ""),
    ("anthropic", "anthropic", ""),
    ("gemini", "google", "gemini/"),
    ("deepseek", "deepseek", "deepseek/"),
    ("mistral", "mistral", "mistral/"),
    ("xai", "x-ai", "xai/"),
    ("moonshot", "moonshotai", "moonshot/"),
    ("zai", "zai", "zai/"),
    ("groq", "groq", "groq/"),
    ("dashscope", None, "dashscope/"),
    ("volcengine", None, "volcengine/"),
    ("cohere", "cohere", ""),
    ("voyage", "voyageai", "voyage/"),
)
STRICT = ("openai", "anthropic", "gemini")

# Ours -> litellm's, genai-prices', and how many of the unit one price is for (tokens: prices are per million).
FIELDS = {
    "input": ("input_cost_per_token", "input_mtok"),
    "output": ("output_cost_per_token", "output_mtok"),
    "cache_read": ("cache_read_input_token_cost", "cache_read_mtok"),
    "cache_write": ("cache_creation_input_token_cost", "cache_write_mtok"),
    "cache_write_1h": ("cache_creation_input_token_cost_above_1hr", "cache_write_1h_mtok"),
    "audio_input": ("input_cost_per_audio_token", "input_audio_mtok"),
    "audio_output": ("output_cost_per_audio_token", "output_audio_mtok"),
    "image_input": ("input_cost_per_image_token", "input_image_mtok"),
    "image_output": ("output_cost_per_image_token", "output_image_mtok"),
    "audio_cache_read": ("cache_read_input_audio_token_cost", "cache_audio_read_mtok"),
    "image_cache_read": ("cache_read_input_image_token_cost", "cache_image_read_mtok"),
}
SERVICES = {
    "batch": ("_batches", {"processing": "batch"}),
    "flex": ("_flex", {"service_tier": "flex"}),
    "priority": ("_priority", {"service_tier": "priority"}),
}
# What litellm knows in units that no answer reports, so that a call could not be charged by it.
UNCOUNTED = ("ocr_cost_per_page", "input_cost_per_pixel",
             "output_cost_per_pixel", "input_cost_per_request")  # fmt: skip
MODES = {None, "chat", "responses", "completion", "embedding", "image_generation", "image_edit", "video_generation",
         "audio_speech", "audio_transcription", "realtime", "rerank", "moderation"}  # fmt: skip

# (model pattern, field pattern) -> (which source, why). First match counts.
DECIDED: tuple[tuple[str, str, str, str], ...] = (
    (
        "gpt-4.*",
        "standard.web_search",
        "litellm",
        "two search tools at two prices; answers do not say which: the dearer",
    ),
    ("gpt-4o(-mini)?-transcribe.*", "standard.audio_input", "genai-prices", "litellm repeats the price of text"),
    ("gpt-4o-mini-tts.*", "standard.output", "genai-prices", "what is spoken are audio tokens, litellm's is for text"),
    ("gemini-2.0-flash-exp-image-generation", ".*", "genai-prices", "litellm's 0 stands for a free trial that is over"),
    ("deepseek-(v4-.*|flash)", ".*", "litellm", "two prices by time of day; a card has one: the dearer"),
    ("mistral-large-4.*", ".*", "genai-prices", "litellm does not have the cut of October 2026"),
    ("mistral-embed.*", "standard.output", "litellm", "embeddings have no output; genai-prices repeats the input"),
)

# What each use of a tool costs that a provider runs, beside tokens: neither list has it whole. Per call; of a container
# per session, by its memory; of Anthropic's code per started five minutes (an hour is .05, five minutes are the least).
# A narrower entry, by how the model's name begins, comes after the wider one and stands above it.
TOOL_FEES: tuple[tuple[str, str, dict[str, str], str, str], ...] = (
    (
        "openai", "",
        {"web_search": "0.01", "file_search": "0.0025", "container_1g": "0.03", "container_4g": "0.12",
         "container_16g": "0.48", "container_64g": "1.92"},
        "https://developers.openai.com/api/docs/pricing", "2026-11-05",
    ),
    (
        "anthropic", "", {"web_search": "0.01", "code_execution": "0.004166667"},
        "https://platform.claude.com/docs/en/about-claude/pricing", "2026-11-30",
    ),
    ("gemini", "", {"web_search": "0.035", "maps": "0.025"}, "https://ai.google.dev/gemini-api/docs/pricing",
     "2026-10-07"),
    ("gemini", "gemini-3", {"web_search": "0.014", "maps": "0.014"}, "https://ai.google.dev/gemini-api/docs/pricing",
     "2026-10-07"),
    (
        "xai", "",
        {"web_search": "0.005", "x_search": "0.005", "code_execution": "0.005", "file_search": "0.0025",
         "attachment_search": "0.01"},
        "https://docs.x.ai/developers/pricing", "2026-11-30",
    ),
    # Live Search: xAI itself has retired it, gateways that speak its dialect may not have.
    ("xai", "", {"search_source": "0.025"}, "https://docs.x.ai/docs/guides/live-search", "2026-12-01"),
)  # fmt: skip
# Models that neither list has yet, from the provider's own page.
ADDED: dict[str, dict[str, Any]] = {
    # https://developers.openai.com/api/docs/models/gpt-image-2.6-sunburst, read 2026-11-30: what the picture tool of
    # the Responses API takes where a request names none.
    "gpt-image-2.6-sunburst": {
        "provider": "openai", "cache_read": "1.25", "image_cache_read": "2", "image_input": "8", "image_output": "30",
        "input": "5", "output": "30", "sources": 1,
    },
}  # fmt: skip

Prices = dict[str, Decimal]
Level = tuple[str, int]  # service, tokens of prompt above which it holds


def per_million(value: Any) -> Decimal:
    return (Decimal(value) * 1_000_000).normalize()


def text(value: Decimal) -> str:
    """A plain decimal, without exponent and trailing zeros; what is finer than a nano-credit is rounded up."""
    plain = f"{value.quantize(Decimal('1e-9'), ROUND_UP):f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def of_litellm(entry: dict[str, Any]) -> dict[Level, Prices]:
    """Every price of an entry, by service and threshold."""
    levels: dict[Level, Prices] = {}
    pattern = re.compile(r"^(?P<base>.+?)(?:_above_(?P<above>\d+)k_tokens)?(?P<service>_batches|_flex|_priority)?$")
    names = {source: ours for ours, (source, _) in FIELDS.items()}
    suffixes = {suffix: service for service, (suffix, _) in SERVICES.items()}
    for key, value in entry.items():
        match = pattern.match(key)
        if match is None or not isinstance(value, (int, Decimal)) or isinstance(value, bool):
            continue
        ours = names.get(match["base"])
        if ours is None:
            continue
        service = suffixes.get(match["service"] or "", "standard")
        above = int(match["above"] or 0) * 1000
        levels.setdefault((service, above), {})[ours] = per_million(value)
    for tier in entry.get("tiered_pricing", ()):
        above = int(tier["range"][0])
        for source, ours in names.items():
            if source in tier:
                levels.setdefault(("standard", above), {})[ours] = per_million(tier[source])
    standard = levels.setdefault(("standard", 0), {})
    if "output_cost_per_image" in entry:
        standard["image"] = Decimal(entry["output_cost_per_image"])
    if standard.get("image_output"):
        of_pictures(levels)
    if entry.get("mode") == "video_generation":
        for name in ("output_cost_per_video_per_second", "output_cost_per_second"):
            if name in entry:
                standard["video_second"] = Decimal(entry[name])
    # Sound that is priced by the second or the character; the relay charges those as seconds and as input.
    if entry.get("mode") == "audio_transcription" and "input" not in standard and "input_cost_per_second" in entry:
        standard |= {"input": Decimal(0), "output": Decimal(0), "video_second": Decimal(entry["input_cost_per_second"])}
    if entry.get("mode") == "audio_speech" and "input" not in standard and "input_cost_per_character" in entry:
        standard |= {"input": per_million(entry["input_cost_per_character"]), "output": Decimal(0)}
    if searches := entry.get("search_context_cost_per_query"):
        standard["web_search"] = max(Decimal(price) for price in searches.values())
    if entry.get("mode") in ("embedding", "rerank", "moderation", "image_generation", "image_edit", "video_generation"):
        standard.setdefault("output", Decimal(0))
        standard.setdefault("input", Decimal(0))
    # Zero here is as often "not known" as "free": a price that is left out falls back to a dearer one, zero would not.
    for prices in levels.values():
        for field in FIELDS.keys() - {"input", "output"}:
            if prices.get(field) == 0:
                del prices[field]
    return {level: prices for level, prices in levels.items() if prices}


def of_pictures(levels: dict[Level, Prices]) -> None:
    """Where tokens of pictures in an answer have a price of their own.

    It stands for the list's price of a picture, which is of one size. A service whose price for them the list does not
    know has it in the proportion of its text, as all have that it knows.
    """
    standard = levels["standard", 0]
    standard.pop("image", None)
    standard.setdefault("output", standard["image_output"])  # text in the answer has no price: there is none
    for prices in levels.values():
        if "output" in prices and "image_output" not in prices:
            prices["image_output"] = (prices["output"] * standard["image_output"] / standard["output"]).normalize()


def of_genai(model: Any, when: datetime.datetime) -> dict[Level, Prices]:
    """The same from the other list."""
    levels: dict[Level, Prices] = {}
    contexts = {"standard": None} | {service: context for service, (_, context) in SERVICES.items()}
    standard: dict[str, Any] = {}
    for service, context in contexts.items():
        prices = model.get_prices(when, context).__dict__
        if service == "standard":
            standard = prices
        for ours, (_, theirs) in FIELDS.items():
            value = prices.get(theirs)
            if value is None or (service != "standard" and value == standard.get(theirs)):
                continue
            if isinstance(value, Decimal):
                levels.setdefault((service, 0), {})[ours] = value
            else:
                levels.setdefault((service, 0), {})[ours] = value.base
                for tier in value.tiers:
                    levels.setdefault((service, tier.start), {})[ours] = tier.price
    searches = standard.get("web_searches_kcount")
    if isinstance(searches, Decimal):
        levels.setdefault(("standard", 0), {})["web_search"] = searches / 1000
    return levels


def changes_ahead(model: Any, when: datetime.datetime) -> list[str]:
    """Days after `when` on which this list knows another price."""
    if not isinstance(model.prices, list):
        return []
    days = [getattr(price.constraint, "start_date", None) for price in model.prices]
    return sorted(str(day) for day in days if day is not None and day > when.date())


def decide(model: str, field: str) -> str | None:
    for model_pattern, field_pattern, source, _ in DECIDED:
        if re.fullmatch(model_pattern, model) and re.fullmatch(field_pattern, field):
            return source
    return None


def merge(
    name: str, first: dict[Level, Prices], second: dict[Level, Prices]
) -> tuple[dict[Level, Prices], list[dict[str, str]], bool]:
    """Both lists' prices of one model as one, the differences, and whether all of them are explained."""
    merged: dict[Level, Prices] = {}
    differences = []
    explained = True
    for level in sorted(first.keys() | second.keys(), key=lambda level: (level[1], level[0])):
        one, other = first.get(level, {}), second.get(level, {})
        for field in sorted(one.keys() | other.keys()):
            value = one.get(field, other.get(field))
            if field in one and field in other and one[field] != other[field]:
                where = ".".join(part for part in (level[0], str(level[1] or ""), field) if part)
                chosen = decide(name, where)
                explained &= chosen is not None
                value = other[field] if chosen == "genai-prices" else one[field]
                differences.append({
                    "model": name, "price": where, "litellm": text(one[field]), "genai-prices": text(other[field]),
                    "taken": chosen or "none",
                })  # fmt: skip
            assert value is not None
            merged.setdefault(level, {})[field] = value
    return merged, differences, explained


def build(day: datetime.date) -> tuple[dict[str, Any], list[str]]:
    """The card, and what must not be let pass."""
    when = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.timezone.utc)  # noqa: UP017
    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "model_prices_and_context_window_backup.json"
    listed = json.loads(path.read_text(), parse_float=Decimal)
    providers = {provider.id: provider for provider in genai_data.providers}
    models: dict[str, Any] = {}
    differences: list[dict[str, str]] = []
    failures: list[str] = []
    for theirs, others, prefix in PROVIDERS:
        second = providers[others] if others else None
        entries = {}
        for key, entry in listed.items():
            if entry.get("litellm_provider") == theirs:
                name = key.removeprefix(prefix).removeprefix(f"{theirs}/")
                if prefix == "" or key.startswith(prefix):
                    entries.setdefault(name, entry)
        for name, entry in sorted(entries.items()):
            if name in models or "/" in name or name.startswith("ft:") or entry.get("mode") not in MODES:
                continue
            known = of_litellm(entry)
            base = known.get(("standard", 0), {})
            counted = any(base.get(field) for field in ("input", "output", "image", "video_second"))
            free = entry.get("mode") == "moderation"
            if not (counted or free) or (any(key in entry for key in UNCOUNTED) and not counted):
                continue
            if "input" not in base or "output" not in base:
                continue
            model = next((model for model in second.models if model.is_match(name)), None) if second else None
            merged, differ, explained = merge(name, known, of_genai(model, when) if model else {})
            differences += differ
            if not explained:
                if theirs in STRICT:
                    failures += [
                        f"{item['model']} {item['price']}: {item['litellm']} or {item['genai-prices']}"
                        for item in differ
                        if item["taken"] == "none"
                    ]
                continue
            standard = merged.pop(("standard", 0))
            document: dict[str, Any] = {"provider": theirs, **{field: text(value) for field, value in standard.items()}}
            if isinstance(entry.get("max_output_tokens"), int) and counted and base.get("output"):
                document["output_tokens_max"] = entry["max_output_tokens"]
            tiers = [
                {"service": service, "above": above, **{field: text(value) for field, value in prices.items()}}
                for (service, above), prices in sorted(merged.items(), key=lambda item: (item[0][1], item[0][0]))
            ]
            if tiers:
                document["tiers"] = tiers
            document["sources"] = 2 if model else 1
            if model and (days := changes_ahead(model, when)):
                document["changes_on"] = days
            if "deprecation_date" in entry:
                document["retires_on"] = entry["deprecation_date"]
            models[name] = document
    models |= {name: entry for name, entry in ADDED.items() if name not in models}
    card = {
        "date": str(day),
        "unit": "credits per million tokens; image, video_second and web_search per piece",
        "sources": [
            {"name": name, "version": importlib.metadata.version(name), "license": license, "copyright": copyright_line}
            for name, license, copyright_line in (
                ("litellm", "MIT", "Copyright (c) 2023 Berri AI"),
                ("genai-prices", "MIT", "Copyright (c) Pydantic Services Inc. 2025 to present"),
            )
        ],
        "tools": tool_fees(),
        "models": models,
        "differences": differences,
    }
    return card, failures


def tool_fees() -> list[dict[str, Any]]:
    return [
        {"provider": provider, "models": models, "fees": fees, "source": source, "read": read}
        for provider, models, fees, source, read in TOOL_FEES
    ]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--date", type=datetime.date.fromisoformat, default=datetime.date.today())
    arguments = parser.parse_args()
    card, failures = build(arguments.date)
    for line in failures:
        print("not explained:", line, file=sys.stderr)
    lines = [f"{json.dumps(name)}: {json.dumps(model)}" for name, model in card.pop("models").items()]
    differences = [json.dumps(item) for item in card.pop("differences")]
    head = json.dumps(card)[:-1]
    arguments.out.write_text(
        head + ',\n"models": {\n' + ",\n".join(lines) + '\n},\n"differences": [\n' + ",\n".join(differences) + "\n]}\n"
    )
    print(f"{len(lines)} models, {len(differences)} differences", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
