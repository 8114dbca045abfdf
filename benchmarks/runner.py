"""Runs scenarios: contenders in interleaved rounds (A B C A B C …), each measured by the load client, each checked.

A result counts only if it is right: every answer byte for byte what the upstream is known to send, every request body
unchanged at the upstream, as many calls there as the client made, and relay's records and ledger equal to both.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .build import Tools
from .cases import MODEL
from .contenders import Certificates, Setting, Target, UnavailableError, make_certificates
from .drivers import LoadClient, Upstream
from .processes import (
    Cores,
    ProgramError,
    Programs,
    core_busy_seconds,
    cpu_ns,
    free_port,
    memory_bytes,
    with_descendants,
)
from .scenarios import Load, Scenario

Start = Callable[[Setting], Target]
Say = Callable[[str], None]


@dataclass
class Sample:
    """One contender in one round."""

    round: int
    figures: dict[str, float]
    wrong: list[str]
    notes: list[str]
    raw: dict[str, Any]

    @property
    def foreign_share(self) -> float:
        """What other programs used of the proxy's core."""
        return self.figures.get("foreign_share", 0.0)


@dataclass
class ScenarioResult:
    scenario: str
    about: str
    load: dict[str, Any]
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=dict)  # found at the end, over all rounds
    earlier: dict[str, ScenarioResult] = field(default_factory=dict)  # scenarios of the same run before this one

    @property
    def all_wrong(self) -> list[str]:
        found = [f"{name}: {text}" for name, texts in self.wrong.items() for text in texts]
        for name, samples in self.samples.items():
            found += [f"{name}, round {s.round}: {text}" for s in samples for text in s.wrong]
        return found


@dataclass
class _Window:
    """What is read at the edges of the measured window besides the load client's own counters."""

    wall: float
    proxy_core: float
    load_core: float
    upstream_cpu: int


class Runner:
    """Runs scenarios one after the other in a directory of its own, and ends everything it started."""

    def __init__(
        self, tools: Tools, cores: Cores, say: Say, progress: Say, *, model: str = MODEL, nice: int = 0
    ) -> None:
        self._tools = tools
        self._cores = cores
        self._say = say
        self._progress = progress
        self._model = model
        self._nice = nice

    def run(self, scenario: Scenario, contenders: dict[str, Start], rounds: int) -> ScenarioResult:
        """All rounds of one scenario. ProgramError if a program fails; a wrong result is in the result, not raised."""
        with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
            directory = Path(name)
            programs = Programs(directory, self._nice)
            try:
                return self._run(scenario, contenders, rounds, directory, programs)
            finally:
                programs.stop_all()

    def _run(
        self, scenario: Scenario, contenders: dict[str, Start], rounds: int, directory: Path, programs: Programs
    ) -> ScenarioResult:
        result = ScenarioResult(scenario.name, scenario.about, asdict(scenario.load))
        certificates: Certificates | None = None
        if scenario.client_tls or scenario.upstream_tls:
            if not self._tools.tls:
                raise UnavailableError("the load client was built without TLS: OpenSSL headers are missing")
            certificates = make_certificates(directory)
        setting = Setting(
            directory=directory,
            programs=programs,
            cores=self._cores,
            upstream_port=free_port(),
            client_tls=scenario.client_tls,
            upstream_tls=scenario.upstream_tls,
            certificates=certificates,
            keys=scenario.keys,
            stock=scenario.stock,
        )
        cases = [scenario.case] + ([scenario.background] if scenario.background else [])
        files = [directory / f"case-{number}" for number in range(len(cases))]
        for number, (case, file) in enumerate(zip(cases, files, strict=True)):
            case.write(file, number, self._model)
        upstream = Upstream(self._tools, files, setting)
        targets: dict[str, Target] = {}
        scenario = self._with_rate(scenario, contenders, targets, setting, upstream, files, result)
        for number in range(1, rounds + 1):
            for name, start in contenders.items():
                if name in result.unavailable:
                    continue
                try:
                    if name not in targets:
                        targets[name] = start(setting)
                except UnavailableError as reason:
                    result.unavailable[name] = str(reason)
                    self._say(f"  {name}: left out: {reason}")
                    continue
                target = targets[name]
                sample = self._measure(scenario, target, setting, upstream, files, number)
                result.samples.setdefault(name, []).append(sample)
                if scenario.fresh:
                    self._close(targets.pop(name), setting, result)
        for target in targets.values():
            self._close(target, setting, result)
        return result

    def _close(self, target: Target, setting: Setting, result: ScenarioResult) -> None:
        """Compares the contender's books with what was called, then ends it."""
        if target.books:
            result.wrong.setdefault(target.name, []).extend(target.books(target.tally))
        if target.program:
            setting.programs.stop(target.program)

    def _with_rate(
        self,
        scenario: Scenario,
        contenders: dict[str, Start],
        targets: dict[str, Target],
        setting: Setting,
        upstream: Upstream,
        files: Sequence[Path],
        result: ScenarioResult,
    ) -> Scenario:
        """For a load given as a share: finds what the slowest contender can take, closed loop, and sets the rate."""
        if not scenario.load.rate_share:
            return scenario
        probe = replace(scenario, load=Load(warmup_seconds=0.5, duration_seconds=1.5), make_background=None)
        rates = []
        for name, start in contenders.items():
            try:
                targets[name] = start(setting)
            except UnavailableError as reason:
                result.unavailable[name] = str(reason)
                continue
            sample = self._measure(probe, targets[name], setting, upstream, files, 0)
            result.wrong.setdefault(name, []).extend(sample.wrong)
            rates.append(sample.figures["calls_per_second"])
        rate = round(min(rates) * scenario.load.rate_share)
        self._say(f"  rate: {rate} calls per second")
        result.load["rate"] = rate
        return replace(scenario, load=replace(scenario.load, rate=float(rate)))

    def _window(self, upstream_pid: int) -> _Window:
        return _Window(
            time.monotonic(),
            core_busy_seconds(self._cores.proxy),
            core_busy_seconds(self._cores.load),
            cpu_ns([upstream_pid]),
        )

    def _measure(
        self,
        scenario: Scenario,
        target: Target,
        setting: Setting,
        upstream: Upstream,
        files: Sequence[Path],
        number: int,
    ) -> Sample:
        pids = with_descendants(target.program.process.pid) if target.program else []
        idle_memory = memory_bytes(pids)
        before = upstream.stats() if target.transparent else {}
        background: LoadClient | None = None
        if scenario.background:
            seconds = scenario.load.warmup_seconds + scenario.load.duration_seconds + 0.5
            load = Load(
                connections=8,
                rate=scenario.background_rate,
                timeout_seconds=60,
                warmup_seconds=0.1,
                duration_seconds=seconds,
            )
            background = LoadClient(
                self._tools,
                target,
                scenario.background,
                files[1],
                1,
                load,
                setting,
                name="background",
                model=self._model,
            )
        client = LoadClient(
            self._tools,
            target,
            scenario.case,
            files[0],
            0,
            scenario.load,
            setting,
            pids=pids,
            seed=number,
            model=self._model,
        )
        edges: list[_Window] = []
        loaded_memory = open_streams = 0
        raw: dict[str, Any] = {}
        for document in client.lines():
            if "mark" in document:
                if document["mark"] == "end":
                    loaded_memory = memory_bytes(pids)
                    open_streams = document["open"]
                edges.append(self._window(upstream.program.process.pid))
            elif "progress" in document:
                p = document["progress"]
                self._progress(
                    f"  round {number} {target.name:<12} {p['seconds']:5.1f} s {p['calls']:>9} calls"
                    f" {p['events']:>9} events {p['faults']:>4} faults {p['active']:>5} open"
                )
            else:
                raw = document["result"]
        if not raw or len(edges) != 2:
            raise ProgramError(f"the load client gave no result: {client.program.output()}")
        raws = [raw]
        if background:
            raws += [d["result"] for d in background.lines() if "result" in d]
        wrong = _faults(raws)
        if target.program:
            target.program.check()
            if with_descendants(target.program.process.pid) != pids:
                wrong.append("processes of the contender came or went, so its CPU time is not known")
        if target.transparent:
            wrong += _compare_upstream(before, upstream.stats(), raws)
        cases = [scenario.case, *([scenario.background] if scenario.background else [])]
        for case, one in zip(cases, raws, strict=True):
            target.tally = target.tally.plus(one["finished"], case)
        figures = _figures(scenario, raw, edges, bool(pids))
        if pids:
            figures["memory_bytes_idle"] = idle_memory
            figures["memory_bytes"] = loaded_memory
            if scenario.case.stream and open_streams:
                figures["memory_bytes_per_stream"] = (loaded_memory - idle_memory) / open_streams
        if target.ready_seconds:
            figures["ready_seconds"] = target.ready_seconds.pop(0)
        notes = []
        # (only where streams last: an unpaced one is over before it can be counted)
        if scenario.case.gap_us and not scenario.load.rate and open_streams < 0.95 * scenario.load.connections:
            notes.append(f"{open_streams} of {scenario.load.connections} streams were open")
        if raw["dropped"] or raw["queued_max"] > 4 * scenario.load.connections:
            notes.append("the rate was more than it could take")
        if background:
            figures["background_calls_per_second"] = raws[1]["calls"] / raws[1]["seconds"]
        return Sample(number, figures, wrong, notes, raw)


def _figures(scenario: Scenario, raw: dict[str, Any], edges: list[_Window], own: bool) -> dict[str, float]:
    seconds, calls, events = raw["seconds"], raw["calls"], raw["events"]
    wall = max(edges[1].wall - edges[0].wall, 1e-9)
    cpu_seconds = raw["target_cpu_ns"] / 1e9
    proxy_core = (edges[1].proxy_core - edges[0].proxy_core) / wall
    figures: dict[str, float] = {
        "calls_per_second": calls / seconds,
        "load_core_share": (edges[1].load_core - edges[0].load_core) / wall,
        "foreign_share": max(0.0, proxy_core - cpu_seconds / seconds) if own else 0.0,
    }
    if own:
        figures["proxy_cpu_share"] = cpu_seconds / seconds
    if calls:
        figures["client_cpu_us_per_call"] = raw["client_cpu_ns"] / calls / 1e3
        figures["upstream_cpu_us_per_call"] = (edges[1].upstream_cpu - edges[0].upstream_cpu) / calls / 1e3
        if own:
            # long streams begin and end outside the window as well: calls are then counted by their events
            whole = events / len(scenario.case.pieces) if scenario.case.stream else calls
            figures["cpu_us_per_call"] = raw["target_cpu_ns"] / whole / 1e3
    if scenario.case.stream and events:
        figures["events_per_second"] = events / seconds
        if own:
            figures["cpu_us_per_event"] = raw["target_cpu_ns"] / events / 1e3
    for name in ("latency", "first_byte", "gap", "lateness"):
        histogram = raw[f"{name}_us"]
        if histogram["count"]:
            for percentile in ("p50", "p90", "p99", "p99.9"):
                figures[f"{name}_{percentile}_us"] = histogram[percentile]
    return figures


def _faults(raws: Sequence[dict[str, Any]]) -> list[str]:
    wrong = []
    for raw in raws:
        if raw["faults"]:
            counts = ", ".join(f"{count} x {kind}" for kind, count in raw["faults"].items())
            wrong.append(f"failed calls: {counts}; statuses {raw['statuses']}; first: {raw['first_fault']}")
        if raw["unfinished"]:
            wrong.append(f"{raw['unfinished']} calls did not end in time")
        if not raw["finished"]:
            wrong.append("no call finished")
    return wrong


def _compare_upstream(before: dict[str, Any], after: dict[str, Any], raws: Sequence[dict[str, Any]]) -> list[str]:
    wrong = []
    finished = sum(raw["finished"] for raw in raws)
    answered = after["answered"] - before["answered"]
    if answered != finished:
        wrong.append(f"the upstream answered {answered} calls, the client finished {finished}")
    for what in ("body_mismatches", "unknown_cases", "bad_requests", "aborted"):
        if after[what] != before[what]:
            wrong.append(f"upstream: {after[what] - before[what]} {what.replace('_', ' ')}")
    return wrong


def machine() -> dict[str, Any]:
    """Where it was measured: CPU, kernel, versions of what took part."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break

    def version(*command: str) -> str | None:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        except OSError:
            return None
        lines = (done.stdout + done.stderr).strip().splitlines()
        return lines[0] if lines else None

    import platform
    from importlib import metadata

    packages = {}
    for name in ("aiohttp", "uvloop", "cython"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    root = str(Path(__file__).parent.parent)
    return {
        "cpu": cpu,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "nginx": version("nginx", "-v"),
        "openssl": version("openssl", "version"),
        "valgrind": version("valgrind", "--version"),
        "packages": packages,
        "commit": version("git", "-C", root, "describe", "--always", "--dirty"),
        "load_average_before": os.getloadavg()[0],
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
