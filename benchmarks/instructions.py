"""python -m benchmarks instructions: user instructions of `relay` per JSON call and per streamed event.

Times depend on the machine and on who else uses it; how many instructions the relay executes for a call hardly does. So
this is what a change is held to: 2 % show here, and no run of times shows them. The kernel's part is not in it.

`relay serve` runs under valgrind's callgrind, which counts the instructions of all its threads, the store's writer
included. Callgrind makes it some fifty times slower, so the load is open: calls and events come at a rate that it keeps
up with, and each event is read alone, as in the scenario `paced`. What the relay does without calls (its timers) is
counted for a while first, and subtracted for each timer that fires.

With BENCH_BEFORE=DIR, another built checkout, that one is counted as well, and the ratio told.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from .build import TARGET, Tools
from .cases import Case, json_case, stream_case
from .contenders import Setting, UnavailableError
from .drivers import LoadClient, Upstream
from .processes import Cores, ProgramError, Programs, free_port
from .relay_contender import BEFORE, ROOT, check_built, check_optimised, checkout_before, start_relay
from .scenarios import Load

OUTPUT = TARGET / "instructions"
RATIO_MAX = 1.02
ROUNDS = 5
IDLE_SECONDS = 10.0
SETTLE_SECONDS = 0.6  # until the records of the last calls are committed
EVENTS = 200
STREAMS = 8  # at a time
GAP_US = 20_000
TIMER = re.compile(r"__pyx_f_\w+TimerHandle__run")  # of uvloop, for each timer that fires


@dataclass(frozen=True)
class Part:
    """A load that is counted. The calls of a burst end within a tenth of a second, so that the store commits them as
    one group: how many groups there are must not depend on chance. Events of a burst's streams never come together."""

    name: str
    make_case: Callable[[], Case]
    load: Load


def _bursts(count: int, calls: int, per_second: float, pause_seconds: float) -> Load:
    seconds = count * (calls / per_second + pause_seconds)
    return Load(8, per_second, calls, pause_seconds, warmup_seconds=0, duration_seconds=seconds)


PARTS = (
    Part("json", json_case, _bursts(6, 40, 500, 0.5)),
    Part(
        "stream",
        partial(stream_case, "stream", EVENTS, gap_us=GAP_US),
        _bursts(1, STREAMS, STREAMS * 1e6 / GAP_US, 0.1),
    ),
)


@dataclass(frozen=True)
class Count:
    """Instructions since the count before: of the event loop's thread, and of all others (the store's writer)."""

    loop: int
    others: int
    timers: int  # that fired: they do so without calls, too


@dataclass(frozen=True)
class Figures:
    """User instructions of one checkout, those of the writer's thread included."""

    call: float
    event: float  # of a stream of EVENTS, its call included
    writer: float  # within `call`


def read_profile(text: str) -> tuple[int, int]:
    """Of one thread: all instructions, and how many timers fired."""
    total = timers = 0
    numbers: set[str] = set()  # a function is named where it first occurs, and has a number from there on
    timer = called = False
    for line in text.splitlines():
        if line.startswith(("fn=", "cfn=")):
            number, _, name = line.partition("=")[2].partition(" ")
            if TIMER.fullmatch(name):
                numbers.add(number)
            timer, called = number in numbers, line.startswith("cfn=")
        elif line.startswith("calls=") and timer and called:
            timers += int(line[len("calls=") :].split()[0])
        elif line.startswith("totals:"):
            total = int(line.split()[1])
    return total, timers


class _Counter:
    """Callgrind on a running relay. Each count is also a file for callgrind_annotate."""

    def __init__(self, name: str, directory: Path, output: Path) -> None:
        self._files = output / name
        self._prefix = f"--vgdb-prefix={directory / 'vgdb'}"
        self._number = 0
        for old in output.glob(f"{name}.*"):
            old.unlink()
        self.launcher: tuple[str, ...] = (
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={self._files}", self._prefix, "--vgdb=yes",
            "--instr-atstart=no", "--separate-threads=yes", "--quiet",
        )  # fmt: skip

    def begin(self, pid: int) -> None:
        self._pid = pid
        self._command("instrumentation on")

    def _command(self, words: str) -> None:
        # It answers when the relay turns to it, as its timers make it do all the time: no tracing is needed.
        command = ["vgdb", f"--pid={self._pid}", self._prefix, "--max-invoke-ms=0", "--cmd-time-out=60"]
        done = subprocess.run([*command, *words.split()], capture_output=True, text=True, check=False, timeout=90)
        if done.returncode:
            raise ProgramError(f"vgdb {words}: status {done.returncode}: {(done.stdout + done.stderr).strip()}")

    def count(self) -> Count:
        self._command("dump")
        self._number += 1
        loop = others = timers = 0
        for path in self._files.parent.glob(f"{self._files.name}.{self._number}-*"):
            total, fired = read_profile(path.read_text())
            timers += fired
            if path.name.endswith("-01"):
                loop += total
            else:
                others += total
        if not timers:
            raise ProgramError(f"{self._files}.{self._number}-01: no timer is in it")
        return Count(loop, others, timers)


def measure(name: str, root: Path, tools: Tools, cores: Cores, output: Path, *, rounds: int = ROUNDS) -> Figures:
    """UnavailableError, ProgramError: see `start_relay`; the latter also where an answer was wrong."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as directory:
        programs = Programs(Path(directory), -15 if os.geteuid() == 0 else 0)
        try:
            return _measure(name, root, tools, cores, output, rounds, programs)
        finally:
            programs.stop_all()


def _measure(
    name: str, root: Path, tools: Tools, cores: Cores, output: Path, rounds: int, programs: Programs
) -> Figures:
    directory = programs.directory
    setting = Setting(directory, programs, cores, upstream_port=free_port(), keys=8)
    cases = [part.make_case() for part in PARTS]
    files = [directory / f"case-{number}" for number in range(len(cases))]
    for number, (case, file) in enumerate(zip(cases, files, strict=True)):
        case.write(file, number)
    upstream = Upstream(tools, files, setting)
    counter = _Counter(name, directory, output)
    target = start_relay(name, setting, root, counter.launcher)
    assert target.program is not None
    counter.begin(target.program.process.pid)

    def drive(number: int) -> int:
        """Calls made; all were answered rightly."""
        client = LoadClient(tools, target, cases[number], files[number], number, PARTS[number].load, setting)
        raw = next(document["result"] for document in client.lines() if "result" in document)
        if raw["faults"] or raw["unfinished"] or not raw["finished"]:
            raise ProgramError(f"{name}, {PARTS[number].name}: {raw['faults']}, {raw['first_fault']}")
        calls = raw["finished"]
        target.tally = target.tally.plus(calls, cases[number])
        time.sleep(SETTLE_SECONDS)
        return int(calls)

    for number in range(len(PARTS)):  # everything has been used once
        drive(number)
    counter.count()
    time.sleep(IDLE_SECONDS)
    idle = counter.count()
    found: dict[str, list[float]] = {part.name: [] for part in PARTS}
    writer = []
    for _ in range(rounds):
        for number, part in enumerate(PARTS):
            calls = drive(number)
            counted = counter.count()
            own = counted.loop + counted.others - (idle.loop + idle.others) * counted.timers / idle.timers
            found[part.name].append(own / calls)
            if part.name == "json":
                writer.append((counted.others - idle.others * counted.timers / idle.timers) / calls)
    wrong = target.books(target.tally) if target.books else []
    if upstream.stats()["body_mismatches"]:
        wrong.append("bodies of requests were changed")
    if wrong:
        raise ProgramError(f"{name}: {'; '.join(wrong)}")
    return Figures(_middle(found["json"]), _middle(found["stream"]) / EVENTS, _middle(writer))


def _middle(values: Sequence[float]) -> float:
    """Mean of the rounds without the lowest and the highest."""
    return mean(sorted(values)[1:-1] if len(values) > 2 else values)


def run(
    tools: Tools, cores: Cores, output: Path, say: Callable[[str], None], *, rounds: int = ROUNDS
) -> dict[str, Figures]:
    """Of `relay`, and of `relay-before` where BENCH_BEFORE names one. UnavailableError, ProgramError."""
    if not (shutil.which("valgrind") and shutil.which("vgdb")):
        raise UnavailableError("valgrind is not installed (Debian: apt-get install valgrind)")
    checkouts = {"relay": ROOT}
    if os.environ.get(BEFORE):
        checkouts["relay-before"] = checkout_before()
    for root in checkouts.values():
        check_built(root)
        check_optimised(root)
    output.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, root in checkouts.items():
        say(f"{name}: {root}")
        found[name] = measure(name, root, tools, cores, output, rounds=rounds)
    return found


def table(found: dict[str, Figures]) -> list[list[str]]:
    """Rows of text, heading first."""
    rows = [["", "instructions/call", "of the writer", "instructions/event"]]
    rows += [[name, f"{f.call:,.0f}", f"{f.writer:,.0f}", f"{f.event:,.0f}"] for name, f in found.items()]
    if "relay-before" in found:
        call, event = ratios(found)
        rows.append(["relay x relay-before", f"{call:.3f}", "", f"{event:.3f}"])
    return rows


def ratios(found: dict[str, Figures]) -> tuple[float, float]:
    now, before = found["relay"], found["relay-before"]
    return now.call / before.call, now.event / before.event


def verdicts(found: dict[str, Figures]) -> list[str]:
    """What came of the bar, if there is something to compare with."""
    if "relay-before" not in found:
        return []
    judged = []
    for what, ratio in zip(("call", "event"), ratios(found), strict=True):
        verdict = "met" if ratio <= RATIO_MAX else "missed"
        judged.append(f"instructions per {what} at most {RATIO_MAX} x relay-before: {ratio:.3f}: {verdict}")
    return judged


def documented(machine: dict[str, Any], found: dict[str, Figures]) -> list[str]:
    """The lines of its generated section in docs/performance.md."""
    heading, *rows = table(found)
    return [
        f"Counted {machine['time']} at commit {machine['commit']} by `{machine['command']}`: {machine['cpu']}, "
        f"{machine['valgrind']}, Python {machine['python']}, "
        + ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
        + ".",
        "",
        "| " + " | ".join(heading) + " |",
        "|---" + "|---:" * (len(heading) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(f"- {text}" for text in verdicts(found)),
    ]
