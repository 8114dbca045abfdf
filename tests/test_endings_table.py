"""Each ending of a call that docs/life-of-a-call.md names has tests that exist."""

import ast
import itertools
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"`([a-z_]+/test_[a-z_0-9]+)::(test_[A-Za-z_0-9]+)`")


@cache
def functions(module: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def rows() -> list[str]:
    """Of all tables of endings, without their heads."""
    found = []
    page = (ROOT / "docs" / "life-of-a-call.md").read_text()
    for table in page[page.index("## Every ending") :].split("\n| ending |")[1:]:
        lines = table.splitlines()
        assert lines[0].endswith("| test |"), lines[0]
        found += itertools.takewhile(bool, lines[2:])
    return found


def test_every_ending_names_its_tests_and_they_exist() -> None:
    endings = rows()
    assert len(endings) >= 45
    assert [row[:60] for row in endings if not NAME.search(row)] == []
    named = [name for row in endings for name in NAME.findall(row)]
    assert [f"{module}::{name}" for module, name in named if name not in functions(module)] == []
