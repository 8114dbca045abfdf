import pytest

from relay.wire.usage import asks_usage


@pytest.mark.parametrize(
    "base_url",
    [
        "https://api.openai.com/v1",
        "https://eu.api.openai.com/v1",
        "https://mine.openai.azure.com/openai/v1",
        "https://mine.services.ai.azure.com/openai/v1",
        "https://API.OPENAI.COM/v1",
        "https://api.openai.com.:443/v1",
    ],
)
def test_providers_that_must_be_asked(base_url):
    assert asks_usage("auto", "openai", base_url)
    assert not asks_usage("off", "openai", base_url)


@pytest.mark.parametrize(
    "base_url",
    [
        "https://api.mistral.ai/v1",
        "https://api.deepseek.com",
        "http://127.0.0.1:8000/v1",
        "https://api.openai.com.evil.example/v1",
        "https://notapi.openai.com/v1",
        "https://openai.azure.com/v1",
    ],
)
def test_others_are_asked_only_by_configuration(base_url):
    assert not asks_usage("auto", "openai", base_url)
    assert asks_usage("strip", "openai", base_url)


def test_only_openais_dialect_has_the_option():
    assert not asks_usage("auto", "anthropic", "https://api.openai.com")
    assert not asks_usage("strip", "gemini", "https://api.openai.com")
