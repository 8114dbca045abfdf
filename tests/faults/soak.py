"""The long form of these tests: python -m tests.faults.soak [--section NAME ...] [--seed S] [--minutes N].

Each section runs once and shows what it has to; the table at the end has a line for every figure. Exit status 0 where
every line holds. A section that fails leaves its data and says with which seed it ran; `--section NAME --seed S` runs
it again. `--fraction 0.05` is for trying the tests themselves: it proves nothing.
"""

import argparse
import asyncio
import contextlib
import logging
import math
import random
import shutil
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from relay.simulator import Running, start
from tests.faults.bursts import BURST, COVERED, burst_rounds
from tests.faults.cut_off_sdks import the_sdks_raise
from tests.faults.cut_offs import EVENT_TOKENS_MAX, NOWHERE, CutOffs
from tests.faults.endings import ENDINGS, Mix
from tests.faults.killing import RANDOM, WINDOWS, Killing, all_points
from tests.faults.outage import FIRST_MS, KILLED, Outage
from tests.faults.restarts import restarts_under_load
from tests.faults.traffic import DIALECTS
from tests.functional.relay_process import RelayProcess
from tests.functional.setting import config_text

MINUTES_MAX = 30.0
KILLS_RANDOM, KILLS_AIMED = 150, 50
CALLERS = 50
PAST_RECORDS = 1_000_000
READY_SECONDS_MAX = 2.0
ENDED_CALLS = 10_000
ENDINGS_BATCH = 1000
GROWN_BYTES_MAX = 16 << 20
BURST_ROUNDS = 100
CUT_OFFS = 200  # in each dialect
SDK_ROUNDS = 10
RESTARTS = 20
OUTAGE_PER_SECOND = 500.0
OUTAGE_SECONDS = 20.0
OUTAGE_RETRIES_MAX = 60  # what it takes to be sure, and probes
OUTAGE_PROBES_SECONDS_MAX = 2.0  # three probes, one after the other, and the look every 20 ms


@dataclass
class Report:
    """Lines of the table: what, what had to be, what was, whether it holds."""

    fraction: float
    lines: list[tuple[str, str, str, str, bool]] = field(default_factory=list)

    def share(self, count: int) -> int:
        return max(1, math.ceil(count * self.fraction))

    def line(self, section: str, what: str, wanted: str, was: object, holds: bool) -> None:
        self.lines.append((section, what, wanted, str(was), holds))

    def table(self) -> str:
        rows = ["| section | what | has to be | was | |", "|---|---|---|---|---|"]
        rows += [f"| {' | '.join(texts)} | {'ok' if holds else 'FAILED'} |" for *texts, holds in self.lines]
        return "\n".join(rows)

    @property
    def holds(self) -> bool:
        return bool(self.lines) and all(holds for *_, holds in self.lines)


@contextlib.asynccontextmanager
async def a_simulator():
    running: Running = await start()
    try:
        yield running
    finally:
        await running.stop()


def kill_plan(rng: random.Random, at_random: int, aimed: int) -> list[str]:
    """Aimed points in turn, so that each has its share, between random instants."""
    points = all_points()
    plan = [RANDOM] * at_random + [points[number % len(points)] for number in range(aimed)]
    rng.shuffle(plan)
    return plan


async def kill(folder: Path, rng: random.Random, report: Report) -> None:
    """kill -9 under 50 concurrent calls, in a store with a million records."""
    at_random, aimed = report.share(KILLS_RANDOM), report.share(KILLS_AIMED)
    past = report.share(PAST_RECORDS)
    async with a_simulator() as simulator:
        killing = Killing(
            folder, simulator, rng, callers=CALLERS, past=past, verify_every=25, insist=True, log=progress
        )
        await killing.run(kill_plan(rng, at_random, aimed))
    hits, seen = killing.hits, killing.seen
    aimed_hits = {point: hits[point] for point in all_points()}
    report.line("kill", "kills at random instants", str(at_random), hits[RANDOM], hits[RANDOM] == at_random)
    report.line(
        "kill", "kills at aimed points", str(aimed), f"{sum(aimed_hits.values())}: {text(aimed_hits)}",
        sum(aimed_hits.values()) == aimed and all(aimed_hits.values()),
    )  # fmt: skip
    windows = {window: killing.windows[window] for window in WINDOWS}
    report.line("kill", "calls found in each state", "each > 0", text(windows), all(windows.values()))
    report.line(
        "kill", "calls checked against client and upstream", "> 0", text(seen), seen["finished"] > 0 < seen["recovered"]
    )
    report.line("kill", "settled calls lost or doubled, holds left", "0", 0, True)  # each of these is an exception
    report.line("kill", "charged beyond one event", "0", seen["more than one event"], seen["more than one event"] == 0)
    for what, seconds in (("until ready", killing.ready_seconds), ("CPU until ready", killing.ready_cpu_seconds)):
        low, high = statistics.median(seconds), max(seconds)
        # What other programs take from the machine is in the wall clock's figure and not in that of the CPU.
        bound = low if what == "until ready" else high
        report.line(
            "kill", f"{what}, with {past:,} records", f"< {READY_SECONDS_MAX} s",
            f"median {low:.2f} s, at most {high:.2f} s of {len(seconds)}", bound < READY_SECONDS_MAX,
        )  # fmt: skip


async def endings(folder: Path, rng: random.Random, report: Report) -> None:
    """All endings in random mix on one process; after quiet nothing is left over."""
    count = report.share(ENDED_CALLS)
    async with a_simulator() as simulator:
        mix = Mix(folder, simulator, rng, log=progress)
        await mix.run(count, at_once=24, batch=min(count, ENDINGS_BATCH))
    wanted = {*ENDINGS, "drained"}
    made = mix.made.total()
    report.line("endings", "calls", f">= {count}", f"{made} in {len(mix.made)} ways", made >= count)
    report.line("endings", "ways of ending", str(len(wanted)), len(mix.made), set(mix.made) == wanted)
    report.line("endings", "codes in the records", "", text(mix.codes), len(mix.codes) > 10)
    report.line("endings", "checked against client and upstream", "", text(mix.seen), mix.seen["finished"] > 0)
    report.line("endings", "holds after quiet, nano-credits", "0", mix.held_nano, mix.held_nano == 0)
    report.line("endings", "file descriptors left", "0", mix.files_left, mix.files_left == 0)
    report.line(
        "endings", "memory since the first batch", f"< {GROWN_BYTES_MAX >> 20} MiB more",
        f"{mix.grown_bytes / 2**20:+.1f} MiB", mix.grown_bytes < GROWN_BYTES_MAX,
    )  # fmt: skip


async def burst(folder: Path, rng: random.Random, report: Report) -> None:
    """50 calls at one instant on a balance for 5, on fresh and on warm accounts."""
    rounds = report.share(BURST_ROUNDS)
    await burst_rounds(folder, rounds)
    report.line("burst", f"rounds of {BURST} calls at one instant", str(rounds), rounds, True)
    report.line("burst", "calls that passed in each", str(COVERED), COVERED, True)  # anything else is an exception


async def cut_off(folder: Path, rng: random.Random, report: Report) -> None:
    """Streams on small balances in each dialect, read raw and by the official SDKs."""
    runs = report.share(CUT_OFFS)
    async with a_simulator() as simulator:
        cuts = CutOffs(folder, simulator, rng)
        await cuts.run(runs, at_once=6)
        report.line(
            "cut-off", "streams cut in each dialect", str(runs), text(cuts.cut),
            all(cuts.cut[dialect.name] == runs for dialect in DIALECTS),
        )  # fmt: skip
        report.line(
            "cut-off", "largest overshoot", f"<= {EVENT_TOKENS_MAX} tokens (one event)",
            f"{cuts.written_off_tokens_max:.1f} tokens", cuts.written_off_tokens_max <= EVENT_TOKENS_MAX,
        )  # fmt: skip
        (folder / "sdks").mkdir()
        relay = RelayProcess(folder / "sdks", config_text(simulator.base_url, NOWHERE))
        rounds = report.share(SDK_ROUNDS)
        try:
            await relay.start()
            for _ in range(rounds):
                await the_sdks_raise(relay)
            assert relay.faults == []
            assert await relay.stop() == 0
        finally:
            await relay.kill()
        report.line("cut-off", "streams in each SDK that raised its error class", str(rounds), rounds, True)


async def restart(folder: Path, rng: random.Random, report: Report) -> None:
    """Restarts under load behind a listening socket that outlives the process."""
    count = report.share(RESTARTS)
    async with a_simulator() as simulator:
        statuses = await restarts_under_load(folder, config_text(simulator.base_url, NOWHERE), count)
    report.line("restart", "restarts by socket activation", str(count), count, True)
    report.line("restart", "connections refused or broken off", "0", 0, True)  # each is an exception
    report.line("restart", "answers while restarting", "all 200", text(statuses), set(statuses) == {200})


async def outage(folder: Path, rng: random.Random, report: Report) -> None:
    """Three upstreams at 500 calls a second, one of them killed and started again; the configuration's defaults."""
    seconds = OUTAGE_SECONDS * report.fraction
    drill = Outage(
        folder, rng, OUTAGE_PER_SECOND, before_seconds=seconds / 2, down_seconds=seconds, after_seconds=seconds
    )
    await drill.run()
    calls = drill.finished + drill.cut + len(drill.errors)
    report.line("outage", f"calls at {OUTAGE_PER_SECOND:g}/s, a fifth of them streams", "", calls, True)
    report.line("outage", "errors at clients that had no byte yet", "0", len(drill.errors), not drill.errors)
    report.line("outage", "streams that had begun there, cut", "", drill.cut, True)
    bound = drill.in_flight + OUTAGE_RETRIES_MAX
    report.line(
        "outage", "attempts repeated", f"<= {bound} (in flight there: {drill.in_flight})", drill.retried,
        drill.retried <= bound,
    )  # fmt: skip
    report.line("outage", "from the kill until the channel was shut", "", f"{drill.seen_seconds:.2f} s", True)
    report.line("outage", "probes that failed while it was down", "", drill.probes, True)
    wanted = f"<= {drill.probe_seconds:.1f} s to the next probe, and three probes"
    holds = drill.back_seconds <= drill.probe_seconds + OUTAGE_PROBES_SECONDS_MAX
    report.line("outage", "in use again after its return", wanted, f"{drill.back_seconds:.1f} s", holds)
    third = drill.shares.total() / len(drill.shares)
    shares = ", ".join(f"{name} {count}" for name, count in drill.shares.items())
    report.line("outage", "calls after that, by upstream", "a third each", shares, drill.shares[KILLED] > 0.7 * third)
    for phase in ("before", "down", "after"):
        median, high = drill.percentiles(phase)
        text_ = f"median {median:.0f} ms, p99 {high:.0f} ms"
        report.line("outage", f"first byte, {phase} (the upstream waits {FIRST_MS} ms)", "", text_, True)
    report.line("outage", "clients, records, ledger and upstreams agree", "yes", "yes", True)  # else an exception


Section = Callable[[Path, random.Random, Report], Awaitable[None]]
SECTIONS: dict[str, Section] = {
    "kill": kill,
    "endings": endings,
    "burst": burst,
    "cut-off": cut_off,
    "restart": restart,
    "outage": outage,
}


def text(counter: dict | Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items(), key=str))


def progress(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


async def soak(names: list[str], minutes: float, seed: int, fraction: float) -> int:
    report = Report(fraction)
    deadline = time.monotonic() + minutes * 60
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix="relay-soak-"))
        progress(f"{name} begins")
        began = time.monotonic()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await SECTIONS[name](folder, random.Random(f"{seed} {name}"), report)
        except TimeoutError:
            traceback.print_exc()
            report.line(name, "time", f"{minutes:g} minutes for all", "used up, or something hung", False)
        except Exception as error:
            traceback.print_exc()
            report.line(name, "every check", "held", f"{type(error).__name__}; its data stay in {folder}", False)
        else:
            shutil.rmtree(folder)
            report.line(name, "time it took", "", f"{time.monotonic() - began:.0f} s", True)
    print(report.table())
    print(f"seed {seed}: {'everything held' if report.holds else 'FAILED'}")
    if fraction < 1:
        print(f"only {fraction:g} of what has to be shown was run")
    return 0 if report.holds else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Faults, for a long time.")
    parser.add_argument("--section", action="append", choices=list(SECTIONS), help="again for several; default all")
    parser.add_argument("--minutes", type=float, default=MINUTES_MAX, help=f"for all of them, at most {MINUTES_MAX:g}")
    parser.add_argument("--seed", type=int, default=0, help="0: a new one")
    parser.add_argument("--fraction", type=float, default=1.0)
    arguments = parser.parse_args()
    seed = arguments.seed or random.randrange(1, 1 << 32)
    print(f"seed {seed}", flush=True)
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # the simulator, about clients that were killed
    names = arguments.section or list(SECTIONS)
    return uvloop.run(soak(names, min(arguments.minutes, MINUTES_MAX), seed, min(1.0, arguments.fraction)))


if __name__ == "__main__":
    sys.exit(main())
