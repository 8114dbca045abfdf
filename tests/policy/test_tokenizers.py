import pytest

from relay._fastpath import TOKEN_UNIT, count_text
from relay.policy.tokenizers import FAMILIES, family_of, table_for, table_of


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("gpt-5.2-mini", "o200k"),
        ("gpt-4o-2024-08-06", "o200k"),
        ("gpt-4.1-nano", "o200k"),
        ("o4-mini", "o200k"),
        ("gpt-4-turbo", "cl100k"),
        ("gpt-3.5-turbo", "cl100k"),
        ("text-embedding-3-large", "cl100k"),
        ("claude-opus-4-20250514", "claude"),
        ("claude-opus-4-6", "claude"),
        ("claude-sonnet-4-5-20250929", "claude"),
        ("claude-opus-4-7", "claude-4-7"),
        ("anthropic/claude-opus-4.8", "claude-4-7"),
        ("claude-sonnet-5", "claude-4-7"),
        ("claude-3-5-haiku-latest", "claude"),
        ("eu.anthropic.claude-3-5-sonnet-20240620-v1:0", "claude"),
        ("gemini-3.1-pro-preview", "gemini"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "llama"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "qwen"),
        ("deepseek-chat", "deepseek"),
        ("Qwen/QwQ-32B", "qwen"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama"),
        ("meta-llama/Llama-4-Scout-17B-16E", "o200k"),
        ("codestral-latest", "mistral"),
        ("grok-4", "o200k"),
        ("", "o200k"),
    ],
)
def test_family_of_model_names(model, family):
    assert family_of(model) == family


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_sane_table(family):
    text = b"The quick brown fox jumps over the lazy dog. " * 20
    tokens = count_text(table_of(family), text) / TOKEN_UNIT
    assert 150 < tokens < 300


def test_tables_are_loaded_once():
    assert table_for("gpt-5") is table_for("gpt-4o")
