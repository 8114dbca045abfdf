"""What the relay needs of its surroundings: versions, file descriptors, memory."""

import logging
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from relay import capacity
from relay.capacity import EnvironmentUnfit


def test_this_environment_is_fit() -> None:
    capacity.check_versions()
    assert "uvloop" in capacity.versions()
    assert "SQLite" in capacity.versions()


@pytest.mark.parametrize("name", ["UVLOOP_MIN", "AIOHTTP_MIN", "SQLITE_MIN"])
def test_a_version_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(capacity, name, (99, 1, 2))
    with pytest.raises(EnvironmentUnfit, match=r"is too old: at least 99\.1\.2 is needed"):
        capacity.check_versions()


def test_a_parser_in_plain_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class HttpRequestParser:
        pass

    monkeypatch.setattr(capacity.http_parser, "HttpRequestParser", HttpRequestParser)
    with pytest.raises(EnvironmentUnfit, match="C parser"):
        capacity.check_versions()


def test_python_without_assertions_is_refused() -> None:
    program = "from relay import capacity; capacity.check_versions()"
    done = subprocess.run(
        [sys.executable, "-O", "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 1
    assert "do not run with -O" in done.stderr


@pytest.mark.parametrize(
    ("text", "numbers"), [("3.14.5", (3, 14, 5)), ("0.23.0rc1", (0, 23, 0)), ("3.40", (3, 40)), ("4", (4,))]
)
def test_versions_are_compared_as_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert capacity._numbers(text) == numbers


def test_the_soft_limit_on_descriptors_is_raised() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 90));"
        "from relay import capacity; print(capacity.raise_descriptor_limit());"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.split() == ["90", "(90,", "90)"]


def test_no_limit_on_descriptors_is_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    assert capacity.raise_descriptor_limit() == 2**31 - 1


def test_connections_fit_into_the_descriptors(caplog: pytest.LogCaptureFixture) -> None:
    reserved = capacity.DESCRIPTORS_RESERVED
    with caplog.at_level(logging.WARNING):
        assert capacity.connections_within(100, reserved + 200) == 100
        assert not caplog.records
        assert capacity.connections_within(100, reserved + 199) == 99
    (record,) = caplog.records
    assert "server.connections_max is 100" in record.getMessage()
    assert f"raise LimitNOFILE to {200 + reserved}" in record.getMessage()
    least = reserved + 2 * capacity.CONNECTIONS_MIN
    assert capacity.connections_within(100, least) == capacity.CONNECTIONS_MIN
    with pytest.raises(EnvironmentUnfit, match=f"at least {least} are needed"):
        capacity.connections_within(100, least - 1)


def test_memory_is_what_is_configured_or_most_of_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert capacity.memory_limit_bytes(12345) == 12345
    monkeypatch.setattr(capacity, "CGROUP_LIMITS", ())
    machine = capacity.memory_limit_bytes(0)
    assert machine > 100 << 20
    limit, unlimited, broken = tmp_path / "limit", tmp_path / "max", tmp_path / "broken"
    limit.write_text(f"{10 << 20}\n")
    unlimited.write_text("max\n")
    broken.write_text("")
    for paths, expected in (
        ((limit,), (10 << 20) * 9 // 10),
        ((unlimited, broken, tmp_path / "none"), machine),
        ((unlimited, limit), (10 << 20) * 9 // 10),
    ):
        monkeypatch.setattr(capacity, "CGROUP_LIMITS", paths)
        assert capacity.memory_limit_bytes(0) == expected


def test_memory_in_use_grows_and_shrinks() -> None:
    before = capacity.resident_bytes()
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(block[::4096])
    grown = capacity.resident_bytes()
    assert grown - before > 48 << 20
    del block
    capacity.give_memory_back()
    assert capacity.resident_bytes() < grown - (48 << 20)
