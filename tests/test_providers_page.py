"""docs/providers.md: its channels are ones that a relay takes."""

import re
from pathlib import Path

import pytest

from relay import config
from tests.test_readme import blocks

PAGE = (Path(__file__).parent.parent / "docs" / "providers.md").read_text()
BASE_URLS = re.findall(r"`(?:base_url = \")?(https?://[^`\"]+)\"?`", PAGE)
ELSEWHERE = ("/anthropic", "publishers/google", "generativelanguage.googleapis.com", "/...")
OPENAI = [url for url in BASE_URLS if not url.endswith(ELSEWHERE)]


@pytest.mark.parametrize("text", blocks("toml", PAGE))
def test_an_example_is_a_channel(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "key")
    read = config.parse(text)
    assert len(read.channels) == 1
    assert not [line for line in read.warnings if "channels" in line]


def filled(url: str) -> str:
    return re.sub(r"[A-Z]{4,}", "europe", url)


@pytest.mark.parametrize("url", OPENAI)
def test_a_base_url_of_openais_dialect(url: str) -> None:
    config.parse(f'[[channels]]\nname = "x"\napi = "openai"\nbase_url = "{filled(url)}"\napi_keys = []\nmodels = ["m"]')


@pytest.mark.parametrize("url", [url for url in BASE_URLS if url.endswith("/anthropic")])
def test_a_base_url_of_anthropics_dialect(url: str) -> None:
    config.parse(f'[[channels]]\nname = "x"\napi = "anthropic"\nbase_url = "{url}"\napi_keys = []\nmodels = ["m"]')


def test_they_are_found() -> None:
    assert len(OPENAI) >= 18
    assert len(blocks("toml", PAGE)) == 2
