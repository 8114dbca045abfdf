"""Names of models that mean the same, and such that do not."""

import pytest

from relay.wire.modelnames import NAME, is_same


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06"),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06"),
        ("gpt-4", "gpt-4-0613"),
        ("claude-haiku-4-5", "claude-haiku-4-5-20251001"),
        ("claude-sonnet-4@20250514", "claude-sonnet-4-20250514"),
        ("models/gemini-2.5-flash", "gemini-2.5-flash-preview-09-2025"),
        ("gemini-2.0-flash", "gemini-2.0-flash-001"),
        ("openai/gpt-5", "gpt-5"),
        ("mistral-large-latest", "mistral-large-2512"),
        ("deepseek/deepseek-r1:free", "deepseek-r1"),
        ("GPT-4o", "gpt-4o"),
    ],
)
def test_the_same(asked: str, named: str):
    assert is_same(asked, named)
    assert is_same(named, asked)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("gpt-4o", "gpt-4o-mini"),
        ("claude-haiku-4-5", "claude-opus-4-8"),
        ("gpt-5", "gpt-5.5"),
        ("gemini-2.5-flash", "gemini-2.5-flash-lite"),
        ("gpt-4o", "x"),
        ("gpt-5", "gpt-5-pro-2026-01-01"),
    ],
)
def test_another(asked: str, named: str):
    assert not is_same(asked, named)


def test_what_may_be_shown():
    assert NAME.fullmatch("anthropic/claude-opus-4-8@20260101:x")
    assert not NAME.fullmatch("tell <b>everybody</b>")
    assert not NAME.fullmatch("x" * 65)
