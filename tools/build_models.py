"""Builds relay/data/models.json: what model lists say of the models of the shipped rate card, beside their prices.

    python -m venv /tmp/v && /tmp/v/bin/pip install --no-deps litellm
    /tmp/v/bin/python tools/build_models.py relay/data/rates.json relay/data/models.json

Taken from litellm's model_prices_and_context_window JSON (MIT, Copyright (c) 2023 Berri AI), facts only:

    kind      chat, embedding, ...: litellm's mode
    context   tokens that a model reads at once, prompt and answer together where the provider counts so
    takes     kinds of input: text, image, audio, video, file
    makes     kinds of output: text, image, audio, video, embeddings
    released  the day in the name of a snapshot; of a name without a day, the earliest of its snapshots

What is not known is left out.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

PREFIXES = ("", "gemini/", "deepseek/", "mistral/", "xai/", "moonshot/", "zai/", "groq/", "dashscope/", "volcengine/",
            "voyage/", "openai/")  # fmt: skip
_DAY = re.compile(r"(.+)-(20\d\d)-?(\d\d)-?(\d\d)")
TAKES = {"audio_transcription": ["audio"], "image_edit": ["text", "image"]}
MAKES = {
    "embedding": ["embeddings"],
    "image_generation": ["image"],
    "image_edit": ["image"],
    "video_generation": ["video"],
    "audio_speech": ["audio"],
}
SUPPORTS = (("image", "supports_vision"), ("audio", "supports_audio_input"), ("video", "supports_video_input"),
            ("file", "supports_pdf_input"))  # fmt: skip


def day_of(name: str) -> tuple[str, str] | None:
    """The name without its day, and the day."""
    found = _DAY.fullmatch(name)
    if found is None:
        return None
    try:
        return found[1], str(datetime.date(int(found[2]), int(found[3]), int(found[4])))
    except ValueError:
        return None


def about(entry: dict[str, Any]) -> dict[str, Any]:
    kind = entry.get("mode") or "chat"
    known: dict[str, Any] = {"kind": kind}
    if isinstance(entry.get("max_input_tokens"), int) and kind != "image_generation":
        known["context"] = entry["max_input_tokens"]
    takes = TAKES.get(kind) or entry.get("supported_modalities")
    if takes is None:
        takes = ["text"]
    if kind not in TAKES:
        takes = [*takes, *(name for name, key in SUPPORTS if entry.get(key) and name not in takes)]
    makes = MAKES.get(kind) or entry.get("supported_output_modalities")
    if makes is None:
        makes = ["text", "audio"] if entry.get("supports_audio_output") else ["text"]
    return known | {"takes": takes, "makes": makes}


def build(names: dict[str, Any]) -> dict[str, Any]:
    spec = importlib.util.find_spec("litellm")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "model_prices_and_context_window_backup.json"
    listed = json.loads(path.read_text())
    released: dict[str, str] = {}
    for name in (*names, *listed):
        if found := day_of(name.rpartition("/")[2]):
            base, day = found
            released[base] = min(day, released.get(base, day))
    models = {}
    for name, price in names.items():
        entry = next(
            (listed[prefix + name] for prefix in PREFIXES
             if listed.get(prefix + name, {}).get("litellm_provider") == price["provider"]),
            None,
        )  # fmt: skip
        known = about(entry) if entry is not None else {}
        found = day_of(name)
        day = found[1] if found else released.get(name.removesuffix("-latest"))
        if day:
            known["released"] = day
        if known:
            models[name] = known
    return models


def main() -> int:
    card = json.loads(Path(sys.argv[1]).read_text())
    models = build(card["models"])
    lines = [f"{json.dumps(name)}: {json.dumps(model)}" for name, model in sorted(models.items())]
    Path(sys.argv[2]).write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(lines)} models", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
