"""Listening sockets from a supervisor: which are taken, which are refused, what happens to their descriptors."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from relay import activation

# Puts sockets where systemd puts them, descriptors 3 and up, and takes them in that very process.
CHILD = """
import os, socket, sys
from relay import activation
made = {made}
kept = [os.dup(one.fileno()) for one in made]
for number, descriptor in enumerate(kept):
    os.dup2(descriptor, 3 + number)
environment = {{"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str({count}), "LISTEN_FDNAMES": "relay"}}
try:
    taken = activation.take_sockets(environment)
except OSError as error:
    print("refused:", error)
else:
    for one in taken:
        print(one.fileno(), one.family.name, one.gettimeout(), os.get_inheritable(one.fileno()))
"""
LISTENING = "socket.create_server(('127.0.0.1', 0))"


def run(made: str, count: object = None) -> list[str]:
    script = textwrap.dedent(CHILD).format(made=f"[{made}]", count=repr(count) if count is not None else "len(made)")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    return done.stdout.splitlines()


def test_sockets_are_taken_in_order_and_kept_from_children() -> None:
    assert run(f"{LISTENING}, {LISTENING}") == ["3 AF_INET 0.0 False", "4 AF_INET 0.0 False"]


def test_a_unix_socket_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "s"
    made = f"(lambda s: (s.bind({str(path)!r}), s.listen(), s)[2])(socket.socket(socket.AF_UNIX))"
    assert run(made) == ["3 AF_UNIX 0.0 False"]


@pytest.mark.parametrize(
    "made",
    [
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "socket.socket()",  # bound to nothing, listening on nothing
        "socket.socketpair()[0]",
    ],
)
def test_what_does_not_listen_is_refused(made: str) -> None:
    (line,) = run(made)
    assert line == "refused: descriptor 3 of LISTEN_FDS is not a listening stream socket"


def test_a_descriptor_that_is_not_there_is_refused() -> None:
    (line,) = run(LISTENING, 40)
    assert line.startswith("refused: ")


@pytest.mark.parametrize("count", ["", "-1", "1.5", "one", "\u0661"])
def test_a_count_that_is_none_means_no_sockets(count: str) -> None:
    assert run(LISTENING, count) == []


def test_what_is_meant_for_another_process_is_left_alone() -> None:
    """systemd names the process: a child that inherits the variables must not take the sockets of its parent."""
    environment = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"}
    assert activation.take_sockets(environment) == []
    assert activation.take_sockets({"LISTEN_FDS": "1"}) == []
    assert activation.take_sockets({}) == []


def test_the_process_is_told_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        copy = os.dup(listener.fileno())
        monkeypatch.setattr(activation, "FIRST_DESCRIPTOR", copy)
        (taken,) = activation.take_sockets({"LISTEN_PID": "77", "LISTEN_FDS": "1"}, pid=77)
        with taken:
            assert taken.getsockname() == listener.getsockname()
            assert not taken.getblocking()
            assert not os.get_inheritable(taken.fileno())
