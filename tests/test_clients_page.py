"""What docs/clients.md tells people to paste is pasted here, with `relay demo` behind it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import HERE, curl, node, python
from tests.test_readme import Demo, blocks, pasted, run

PAGE = (Path(__file__).parent.parent / "docs" / "clients.md").read_text()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    running = Demo(tmp_path_factory.mktemp("demo"))
    yield running
    assert running.stop() == (0, [])


def titles(language: str) -> list[str]:
    """The headings over the snippets of this language."""
    found, heading = [], ""
    for line in PAGE.splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        elif line.strip() == f"```{language}":
            found.append(heading)
    return found


@pytest.mark.parametrize("snippet", blocks("python", PAGE), ids=titles("python"))
def test_python(demo: Demo, snippet: str) -> None:
    command = [python(), "-"]
    assert run(command, pasted(snippet, demo), LITELLM_LOCAL_MODEL_COST_MAP="True").strip()


@pytest.mark.parametrize("snippet", blocks("js", PAGE), ids=titles("js"))
def test_javascript(demo: Demo, snippet: str) -> None:
    command = [node(), "--input-type=module", "-"]
    assert run(command, pasted(snippet, demo), HERE / "node").strip()


@pytest.mark.parametrize("snippet", blocks("sh", PAGE), ids=titles("sh"))
def test_curl(demo: Demo, snippet: str) -> None:
    curl()
    out = run(["bash", "-e"], pasted(snippet, demo))
    for sign in ("data: [DONE]", '"type": "message"', '"candidates"'):
        assert sign in out.replace('"type":"message"', '"type": "message"')


def test_all_of_them_are_here() -> None:
    assert len(titles("python")) == 2
    assert len(titles("js")) == 4
    assert len(titles("sh")) == 1
