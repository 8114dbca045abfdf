"""Starting, pinning and ending programs, and reading from the operating system what they use.

CPU time is the kernel's own per-process clock (all threads, also the relay's store writer); the load client reads it
at the edges of the measured window, this module finds the processes. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class ProgramError(Exception):
    """A program did not start, or ended before its time; the message carries what it wrote."""


@dataclass(frozen=True)
class Cores:
    """Which CPU the proxy has to itself, and which the load client and the upstream share. None: not pinned."""

    proxy: int | None
    load: int | None


def choose_cores() -> Cores:
    """The last CPU allowed for the proxy, the first for the load; with a single CPU nothing is pinned."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[-1], allowed[0]) if len(allowed) > 1 else Cores(None, None)


@contextlib.contextmanager
def _on_core(core: int | None) -> Iterator[None]:
    """A child inherits the affinity of the thread that starts it, so it never runs a moment elsewhere."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass
class Program:
    """A started program and everything it starts in turn: one process group, ended as one."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def ended(self) -> bool:
        """Whether it is over. Its exit status is left in place, so that nothing else gets its number before `stop`."""
        if self.process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def check(self) -> None:
        """ProgramError if it has ended."""
        if self.ended():
            raise ProgramError(f"{self.name} ended with status {self.process.wait()}:\n{self.output()}")

    def stop(self, timeout_seconds: float = 10.0) -> int:
        """SIGTERM, then SIGKILL to the whole group; returns the exit status when the program is gone."""
        if self.process.returncode is None:
            self._signal(signal.SIGTERM)
            end = time.monotonic() + timeout_seconds
            while not self.ended() and time.monotonic() < end:
                time.sleep(0.005)
            self._signal(signal.SIGKILL)
        return self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@dataclass
class Programs:
    """Everything a run has started; `stop_all` in a finally block leaves nothing behind."""

    directory: Path
    nice: int = 0  # of everything started; below zero needs privileges
    started: list[Program] = field(default_factory=list)

    def start(
        self, name: str, command: Sequence[str | Path], core: int | None, environment: dict[str, str] | None = None
    ) -> Program:
        log = self.directory / f"{name}.log"
        with log.open("ab") as out, _on_core(core):
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        if self.nice:
            os.setpriority(os.PRIO_PGRP, process.pid, self.nice)  # before it has threads, so that they inherit it
            # a session is a scheduling group of its own, within which alone nice counts; the group has one, too
            with contextlib.suppress(FileNotFoundError):
                Path(f"/proc/{process.pid}/autogroup").write_text(str(self.nice))
        program = Program(name, process, log)
        self.started.append(program)
        return program

    def stop(self, program: Program) -> None:
        program.stop()
        self.started.remove(program)

    def stop_all(self) -> None:
        for program in reversed(self.started):
            program.stop()
        self.started.clear()


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_listening(program: Program, port: int, timeout_seconds: float = 30.0) -> None:
    """Until the port takes connections. ProgramError if the program ends or takes longer."""
    end = time.monotonic() + timeout_seconds
    while time.monotonic() < end:
        program.check()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise ProgramError(f"{program.name} did not listen on port {port} within {timeout_seconds} s:\n{program.output()}")


def with_descendants(pid: int) -> list[int]:
    """The process and all processes that came from it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def wait_descendants(program: Program, count: int, timeout_seconds: float = 10.0) -> None:
    """Until the program has so many processes of its own. ProgramError if that takes longer."""
    end = time.monotonic() + timeout_seconds
    while len(with_descendants(program.process.pid)) <= count:
        program.check()
        if time.monotonic() > end:
            raise ProgramError(f"{program.name} did not start its {count} process(es):\n{program.output()}")
        time.sleep(0.01)


def cpu_ns(pids: Sequence[int]) -> int:
    """CPU time, user and system, of these processes with all their threads, by the kernel's per-process clocks."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime_ns((~pid << 3) | 2)
    return total


def memory_bytes(pids: Sequence[int]) -> int:
    """Resident memory; pages shared among the processes count once (Pss)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def core_busy_seconds(core: int | None) -> float:
    """Seconds that this CPU (None: all) has not been idle since start, stolen time included."""
    name = "cpu" if core is None else f"cpu{core}"
    for line in Path("/proc/stat").read_text().splitlines():
        fields = line.split()
        if fields[0] == name:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(x) for x in fields[1:9])
            return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return 0.0
