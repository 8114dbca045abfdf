"""python -m benchmarks            lists scenarios and contenders
python -m benchmarks run …      measures; --help tells the options
python -m benchmarks report …   reports earlier results again
python -m benchmarks instructions   counts relay's instructions per call and event, by valgrind"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import instructions, page, report
from .build import TARGET, BuildError, build
from .cases import MODEL
from .contenders import CONTENDERS, UnavailableError, external
from .processes import ProgramError, choose_cores
from .runner import Runner, ScenarioResult, Start, machine
from .scenarios import SCENARIOS, Scenario, find


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures proxies.")
    commands = parser.add_subparsers(dest="command")
    run = commands.add_parser("run", help="measure")
    run.add_argument("--scenario", action="append", metavar="NAME", help="repeatable; `all`; default: the standard set")
    run.add_argument("--contender", action="append", metavar="NAME", help="repeatable; default: those of the scenario")
    run.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5); below 3 no verdicts")
    run.add_argument("--quick", action="store_true", help="one round of one second: to see that it works")
    run.add_argument("--base-url", metavar="URL", help="measure this instead, any OpenAI-compatible base URL (…/v1)")
    run.add_argument("--key", default="", help="API key for --base-url")
    run.add_argument("--model", default=MODEL, help="model to ask for at --base-url")
    run.add_argument("--calls-per-second", type=float, metavar="N", help="with --base-url: open loop at this rate")
    run.add_argument("--connections", type=int, metavar="N", help="with --base-url: connections (default 4)")
    run.add_argument("--nice", type=int, default=0, help="priority of all that is started; below 0 needs privileges")
    run.add_argument(
        "--output", type=Path, metavar="DIR", help="directory for the results (default build/benchmarks/results-TIME)"
    )
    run.add_argument("--write-docs", type=Path, metavar="FILE", help="put the tables into this page")
    run.add_argument("--section", default="standard", help="which generated section of that page (default standard)")
    count = commands.add_parser(
        "instructions", help="user instructions of relay per call and event, by valgrind; under 4 minutes",
        description="With BENCH_BEFORE=DIR, another built checkout, that one is counted as well.",
    )  # fmt: skip
    count.add_argument("--rounds", type=int, default=instructions.ROUNDS, help="default %(default)s")
    count.add_argument("--output", type=Path, default=instructions.OUTPUT, help="directory for the results")
    count.add_argument("--write-docs", type=Path, metavar="FILE", help="put the table into this page")
    count.add_argument("--section", default="instructions", help="which generated section (default instructions)")
    again = commands.add_parser("report", help="report earlier results again")
    again.add_argument("results", type=Path, nargs="+", help="results.json, one or more")
    again.add_argument("--output", type=Path, default=TARGET / "results")
    again.add_argument("--write-docs", type=Path, metavar="FILE")
    again.add_argument("--section", default="full")
    return parser


def _list() -> None:
    print("scenarios (* standard set):")
    for scenario in SCENARIOS:
        print(f"  {'*' if 'standard' in scenario.tags else ' '} {scenario.name:<18} {scenario.about}")
    print("contenders:", ", ".join(CONTENDERS))
    print("run: python -m benchmarks run [--scenario NAME] [--contender NAME] [--rounds N] [--quick]")


def _chosen(names: Sequence[str] | None) -> list[Scenario]:
    if not names:
        return [s for s in SCENARIOS if "standard" in s.tags]
    if "all" in names:
        return list(SCENARIOS)
    return [find(name) for name in names]


def _quick(scenario: Scenario) -> Scenario:
    load = scenario.load
    return replace(
        scenario,
        load=replace(load, warmup_seconds=min(load.warmup_seconds, 0.5 + load.ramp_seconds), duration_seconds=1.0),
    )


def _outside(scenario: Scenario, arguments: argparse.Namespace) -> Scenario:
    """Somebody else's service gets a small load unless more is asked for, and no shares of a rate that is not known."""
    load = replace(
        scenario.load, connections=arguments.connections or 4, rate=arguments.calls_per_second or 0.0, rate_share=0.0
    )
    return replace(scenario, load=load, bars=(), make_background=None, fresh=False, figures=scenario.figures)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<100}", end="", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{'':<100}\r", end="", file=sys.stderr)
    print(text, flush=True)


def _run(arguments: argparse.Namespace) -> int:
    scenarios = _chosen(arguments.scenario)
    rounds = 1 if arguments.quick else arguments.rounds
    if arguments.quick:
        scenarios = [_quick(s) for s in scenarios]
    known = [name for name in arguments.contender or () if name not in CONTENDERS]
    if known:
        raise ValueError(f"no contender {known[0]!r}; there are: {', '.join(CONTENDERS)}")
    output = arguments.output or TARGET / f"results-{time.strftime('%Y-%m-%d-%H%M%S', time.gmtime())}"
    tools = build()
    environment = machine()
    environment["command"] = f"python -m benchmarks {shlex.join(sys.argv[1:])}"
    runner = Runner(tools, choose_cores(), _say, _progress, model=arguments.model, nice=arguments.nice)
    done: list[tuple[Scenario, ScenarioResult]] = []
    failed = False
    for scenario in scenarios:
        _say(f"{scenario.name}: {scenario.about}")
        contenders: dict[str, Start]
        if arguments.base_url:
            scenario = _outside(scenario, arguments)
            contenders = {"target": external(arguments.base_url, arguments.key)}
        else:
            chosen = {*(arguments.contender or scenario.contenders)}
            if "relay" in chosen and os.environ.get("BENCH_BEFORE"):
                chosen.add("relay-before")
            contenders = {name: start for name, start in CONTENDERS.items() if name in chosen}
        try:
            result = runner.run(scenario, contenders, rounds)
        except UnavailableError as reason:
            _say(f"  left out: {reason}")
            continue
        except ProgramError as error:
            _say(f"  FAILED: {error}")
            failed = True
            continue
        result.earlier = {before.scenario: before for _, before in done}
        done.append((scenario, result))
        failed = failed or bool(result.all_wrong)
        # after each scenario, so that what comes later cannot lose it
        output.mkdir(parents=True, exist_ok=True)
        report.write_json(output / "results.json", report.document(environment, done))
        page.write_page(output / "report.html", environment, done)
        _say(report.terminal(scenario, result).lstrip("\n").partition("\n")[2] + "\n")
    if done:
        if len(done) > 1:
            _say("summary:")
            for verdict, text in report.summary(done):
                _say(f"  {verdict:<12}  {text}")
        _say(f"written: {output / 'results.json'}, {output / 'report.html'}")
    if arguments.write_docs and done and not failed:
        command = "make bench" if arguments.section == "standard" else environment["command"]
        report.write_docs(arguments.write_docs, arguments.section, environment, done, command)
        _say(f"written: {arguments.write_docs}")
    return 1 if failed else 0


def _report(arguments: argparse.Namespace) -> int:
    done: list[tuple[Scenario, ScenarioResult]] = []
    environment: dict[str, Any] = {}
    commands = []
    for path in arguments.results:
        environment, found = report.read_json(path)
        commands.append(environment.get("command", "python -m benchmarks run"))
        done += found
    for scenario, result in done:
        _say(report.terminal(scenario, result))
    arguments.output.mkdir(parents=True, exist_ok=True)
    page.write_page(arguments.output / "report.html", environment, done)
    _say(f"written: {arguments.output / 'report.html'}")
    if arguments.write_docs:
        report.write_docs(arguments.write_docs, arguments.section, environment, done, "`, `".join(commands))
        _say(f"written: {arguments.write_docs}")
    return 1 if any(result.all_wrong for _, result in done) else 0


def _instructions(arguments: argparse.Namespace) -> int:
    environment = machine()
    prefix = "BENCH_BEFORE=DIR " if os.environ.get("BENCH_BEFORE") else ""
    environment["command"] = f"{prefix}python -m benchmarks {shlex.join(sys.argv[1:])}"
    try:
        found = instructions.run(build(), choose_cores(), arguments.output, _say, rounds=arguments.rounds)
    except (UnavailableError, ProgramError) as error:
        _say(f"FAILED: {error}")
        return 1
    _say(report.print_table(instructions.table(found)))
    for text in instructions.verdicts(found):
        _say(f"  - {text}")
    results = {"machine": environment, "contenders": {name: asdict(figures) for name, figures in found.items()}}
    report.write_json(arguments.output / "instructions.json", results)
    _say(f"written: {arguments.output / 'instructions.json'}; profiles beside it, for callgrind_annotate")
    if arguments.write_docs:
        report.write_section(arguments.write_docs, arguments.section, instructions.documented(environment, found))
        _say(f"written: {arguments.write_docs}")
    return 0


def main() -> int:
    """Exit status: 0 measured and right, 1 a result was wrong or a program failed, 2 wrong usage."""
    parser = _arguments()
    arguments = parser.parse_args()
    if arguments.command is None:
        _list()
        return 0
    # a terminated run ends what it started, as an interrupted one does
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return {"run": _run, "report": _report, "instructions": _instructions}[arguments.command](arguments)
    except (ValueError, BuildError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
