"""docs/providers.md: its channels are ones that a relay takes."""

import re
from pathlib import Path

import pytest

from relay import config
from relay.wire.upstream_errors import ACCOUNT, CALL, DOUBT, FORMS, KEY, MISSING, MODEL, PLACE, REQUEST, UPSTREAM, Form
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


WHOSE = {  # by verdict and scope
    (ACCOUNT, KEY): "operator: account or key, everything",
    (ACCOUNT, PLACE): "operator: this endpoint with this model",
    (ACCOUNT, DOUBT): "operator: the same, and the key once refused elsewhere too",
    (ACCOUNT, CALL): "operator: this call alone",
    (UPSTREAM, MODEL): "limit of the key for this model",
    (MISSING, CALL): "another channel may have it",
    (REQUEST, CALL): "caller: passes",
}


def row(form: Form) -> str:
    """A form as the page's table shows it."""
    names = ", ".join(f"`{kind}`" for kind in form.kinds)
    words = "`" + form.begins.replace("|", "\\|") + "`" if form.begins else ""
    cells = (
        form.provider,
        form.status,
        WHOSE[form.says.verdict, form.says.scope],
        names,
        words,
        f"{form.source}, {form.date}",
    )
    return "| " + " | ".join(cells) + " |"


def test_finding_money_M1_the_page_has_every_form_of_error() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    assert [line for line in rows if line in set(map(row, FORMS))] == [row(form) for form in FORMS]


def test_they_are_found() -> None:
    assert len(OPENAI) >= 18
    assert len(blocks("toml", PAGE)) == 2
