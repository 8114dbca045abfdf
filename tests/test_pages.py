"""What pages tell operators and engineers to type exists, and works where it can be run here."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.test_readme import ENVIRONMENT, PAGES, README, RELAY, ROOT

DEVELOPMENT = (ROOT / "docs" / "development.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
CONFIG = (ROOT / "config.toml").read_text()


def test_finding_newcomer_19_a_key_without_an_effect_says_so():
    comment = CONFIG.partition("\nlow_balance")[0].rpartition("]\n")[2]
    line = next(
        line for line in (ROOT / "docs" / "configuration.md").read_text().splitlines() if "`low_balance`" in line
    )
    for text in (comment, line):
        assert "nothing else is done with it yet" in " ".join(text.replace("#", " ").split())


def test_finding_newcomer_21_a_real_relay_has_a_folder_of_its_own():
    """Nothing is written into the checkout; `test_the_steps_to_a_real_relay` follows the steps."""
    steps = README.partition("## Run it for real")[2].partition("\n## ")[0]
    install = re.findall(r"```sh\n(.*?)```", steps, re.DOTALL)[0].split("\n")
    assert install[0].strip() == "mkdir ~/relay && cd ~/relay"
    assert "venv/bin/pip install /path/to/checkout" in [line.strip() for line in install]


def test_finding_newcomer_22_check_reads_the_secrets_of_the_service(tmp_path: Path):
    """As operations.md says, with the paths of this test. The shell that asked knows no secret afterwards."""
    lines = [line.strip() for line in OPERATIONS.splitlines() if line.startswith("    (set -a")]
    line = next(line for line in lines if "; relay check" in line)  # that of the installation; an upgrade has its own
    (tmp_path / "secrets").write_text("UPSTREAM_KEY=a-key\n")
    (tmp_path / "config.toml").write_text(
        f'[server]\ndata_dir = "{tmp_path}/data"\n[[channels]]\nname = "a"\napi = "openai"\n'
        'base_url = "https://a.example/v1"\napi_keys = ["env:UPSTREAM_KEY"]\nmodels = ["gpt-4o"]\n'
    )
    line = line.replace("/etc/relay", str(tmp_path)).replace("relay check", f"{sys.executable} -m relay check")
    done = subprocess.run(
        ["sh", "-c", f'{line} && echo "after: $UPSTREAM_KEY"'],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usable" in done.stdout
    assert done.stdout.endswith("after: \n")
    without = subprocess.run(
        [*RELAY, "check", "--config", tmp_path / "config.toml"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "UPSTREAM_KEY" in without.stderr


def test_finding_newcomer_24_what_the_page_for_developers_names_is_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`make ([\w.-]+)", DEVELOPMENT))
    assert {"test", "lint", "clients", "properties"} <= targets
    assert [target for target in targets if not re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)] == []
    paths = set(re.findall(r"\b((?:tests|relay|benchmarks|tools)/[\w/.*]+\w)", DEVELOPMENT))
    assert len(paths) > 20
    assert [path for path in paths if not list(ROOT.glob(path))] == []
    modes = set(re.findall(r"RELAY_BUILD=(\w+)", DEVELOPMENT))
    setup = (ROOT / "setup.py").read_text()
    assert [mode for mode in modes if f"RELAY_BUILD={mode}" not in setup] == []


# What Cython warns of: an element or an end of a slice that is counted from the end, which means nothing here
# (`wraparound` is off). Nor would it for a C pointer, which is what was meant at the time.
NEGATIVE = re.compile(r"\[\s*-\s*\d|\[[^\]\[#\"']*:\s*-\s*\d")


@pytest.mark.parametrize("line", ["p[-1]", "text[:-1]", "text[a:-2]", "text[ - 1]"])
def test_finding_newcomer_25_what_the_compiler_warns_of_is_found(line: str):
    assert NEGATIVE.search(line)


def test_finding_newcomer_25_nothing_is_counted_from_the_end_in_the_module():
    found = [
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "relay" / "_fastpath.pyx", *(ROOT / "relay" / "fastpath").glob("*.pxi"))
        for line in path.read_text().splitlines()
        if NEGATIVE.search(line.partition("#")[0])
    ]
    assert found == []


def test_finding_newcomer_25_long_steps_of_make_say_that_they_are_long():
    makefile = (ROOT / "Makefile").read_text()
    assert makefile.index("downloading packages") < makefile.index(
        "pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock"
    )
    assert makefile.index("compiling relay/_fastpath.pyx, about") < makefile.index("setup.py --quiet build_ext")


def test_finding_newcomer_30_nobody_is_told_to_install_somebody_elses_relay():
    """`relay` at the package index is another program: pages install from a checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "ai-api-relay"
    assert project["scripts"] == {"relay": "relay.cli:main"}
    texts = [path.read_text() for path in (*PAGES, ROOT / "config.toml", *(ROOT / "relay").rglob("*.py"))]
    for what in re.findall(r"pip install ((?:-\S+ )*\S+)", "\n".join(texts)):
        assert not re.match(r"(-\S+ )*['\"]?relay\b", what), what


def test_finding_clients_F27_models_that_gemini_cli_asks_for():
    page = (ROOT / "docs" / "clients.md").read_text().partition("### Gemini CLI")[2].partition("\n### ")[0]
    assert "`gemini-3.5-flash-lite`, and then `gemini-3.1-pro-preview`" in page


def test_the_page_of_dependencies_has_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *(each for group in extras.values() for each in group)]
    names = {re.split(r"[<>=]", each)[0] for each in declared}
    page = (ROOT / "docs" / "dependencies.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9-]+) \|", page, re.MULTILINE)
    assert sorted(set(rows) - {"package"}) == sorted(names)
