"""Which token table estimates for which model.

The tables are data files, `relay/data/tokens-<family>.bin`, made by tools/fit_tokens.py and read once. A model that
nobody knows is counted as o200k; the calibration per model and channel does the rest.
"""

import re
import zlib
from functools import cache
from importlib.resources import files

from relay._fastpath import TokenTable

FAMILIES = ("o200k", "cl100k", "claude", "claude-4-7", "gemini", "deepseek", "qwen", "llama", "mistral")
DEFAULT_FAMILY = "o200k"

# The first pattern found anywhere in the lower-case name wins: names carry vendors ("meta-llama/…"), regions
# ("eu.anthropic.claude-…") and versions. So distillations stand before what they were distilled from.
_PATTERNS: tuple[tuple[str, str], ...] = (
    (r"deepseek-r1-distill-llama", "llama"),
    (r"deepseek-r1-distill-qwen", "qwen"),
    # Opus 4.7 brought a tokenizer that makes more tokens of the same text; later models are taken to have it too.
    (r"claude-(opus|sonnet|haiku)-(4[-.]([7-9]|1\d)(?!\d)|[5-9]|1\d)", "claude-4-7"),
    (r"claude|anthropic", "claude"),
    (r"gemini|gemma|learnlm|palm", "gemini"),
    (r"deepseek", "deepseek"),
    (r"qwen|qwq|qvq", "qwen"),
    (r"llama-?4|llama-guard-4", "o200k"),  # Llama 4 counts as o200k does, within the error of the estimate
    (r"llama", "llama"),
    (r"mistral|mixtral|codestral|ministral|magistral|devstral|pixtral|voxtral", "mistral"),
    (r"gpt-4o|gpt-4\.[15]|chatgpt-4o|gpt-oss", "o200k"),
    (r"phi-?4|gpt-4|gpt-3|gpt-35|text-embedding-|embedding-ada", "cl100k"),
)
_COMPILED = tuple((re.compile(pattern), family) for pattern, family in _PATTERNS)


def family_of(model: str) -> str:
    """The tokenizer family of a model name, public or upstream; DEFAULT_FAMILY if unknown."""
    name = model.lower()
    for pattern, family in _COMPILED:
        if pattern.search(name):
            return family
    return DEFAULT_FAMILY


@cache
def table_of(family: str) -> TokenTable:
    """The table of a family. FileNotFoundError if the installation lacks it."""
    packed = (files("relay") / "data" / f"tokens-{family}.bin").read_bytes()
    return TokenTable(zlib.decompress(packed))


def table_for(model: str) -> TokenTable:
    """The table that estimates for a model."""
    return table_of(family_of(model))
