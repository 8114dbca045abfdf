"""The suite itself: the same tests in each run, and nothing left of them."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

from tests.conftest import left_bytes, left_processes


def test_finding_newcomer_1_generated_tests_are_the_same_in_each_run(pytestconfig: pytest.Config):
    """Unless random ones were asked for. No failure is kept in a database either, so the last run does not matter."""
    if pytestconfig.getoption("--hypothesis-profile"):
        pytest.skip("another profile was asked for")
    assert settings.default is not None
    assert settings.default.derandomize
    assert settings.default.database is None


def test_finding_newcomer_23_what_a_run_leaves_is_found(tmp_path: Path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a").write_bytes(bytes(1 << 20))
    assert 1 << 20 <= left_bytes(tmp_path) < 2 << 20

    before = left_processes(tmp_path)  # a relay of other tests of this process may run for as long as they do
    # Not a child of ours any more: the shell that started it has ended.
    script = 'tail -f "$1" >/dev/null 2>&1 & echo $!'
    started = subprocess.run(["sh", "-c", script, "sh", tmp_path / "below" / "a"], capture_output=True, check=True)
    try:
        found = [line for line in left_processes(tmp_path) if line not in before]
        assert found == [f"tail -f {tmp_path}/below/a"]
    finally:
        subprocess.run(["kill", started.stdout.strip()], check=True)
