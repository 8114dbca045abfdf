"""The long form of these tests: python -m tests.faults.soak --minutes N --seed S (0: a new seed).

Rounds of kills (every aimed point, and random instants), of all endings in random mix, of bursts, and of cut-offs,
until the time is up; then what was counted. Exit status 0 where every check held and every point and window was hit.
"""

import argparse
import asyncio
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import uvloop

from relay.simulator import start
from tests.faults.bursts import burst_rounds
from tests.faults.cut_offs import CutOffs
from tests.faults.endings import ENDINGS, Mix
from tests.faults.killing import RANDOM, Killing, all_points

MINUTES_MAX = 30
READY_CPU_SECONDS_MAX = 2.0


class Totals:
    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.windows: Counter[str] = Counter()
        self.killed: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()
        self.mixed: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.ready_seconds: list[float] = []
        self.ready_cpu_seconds: list[float] = []

    def missing(self) -> list[str]:
        """What a run that proves something has seen."""
        windows = ("committed, not freed", "ended, not committed", "in the middle of a stream", "nothing delivered yet")
        wanted = [(self.hits, point) for point in (*all_points(), RANDOM)]
        wanted += [(self.windows, window) for window in windows]
        wanted += [(self.made, name) for name in (*ENDINGS, "drained")]
        wanted += [(self.counts, "bursts"), (self.counts, "cut-offs")]
        return [name for counter, name in wanted if not counter[name]]

    def report(self) -> str:
        ready = f"{max(self.ready_seconds, default=0):.2f} s ({max(self.ready_cpu_seconds, default=0):.2f} s of CPU)"
        return (
            "\n".join(
                f"{title:28}{dict(sorted(counter.items()))}"
                for title, counter in (
                    ("kills", self.hits),
                    ("calls found after kills", self.windows),
                    ("calls around kills", self.killed),
                    ("endings made", self.made),
                    ("endings recorded", self.codes),
                    ("endings checked", self.mixed),
                    ("other rounds", self.counts),
                )
            )
            + f"\nready after a kill           at most {ready}, of {len(self.ready_seconds)}"
        )


async def kills(folder: Path, rng: random.Random, totals: Totals) -> None:
    simulator = await start()
    killing = Killing(folder, simulator, rng, callers=50)
    points = all_points()
    rng.shuffle(points)
    try:
        await killing.run([point for aimed in points for point in (RANDOM, RANDOM, aimed)])
        killing.check([RANDOM], windows=False)
    finally:
        await simulator.stop()
        totals.hits += killing.hits
        totals.windows += killing.windows
        totals.killed += killing.seen
        totals.ready_seconds += killing.ready_seconds
        totals.ready_cpu_seconds += killing.ready_cpu_seconds


async def endings(folder: Path, rng: random.Random, totals: Totals) -> None:
    simulator = await start()
    mix = Mix(folder, simulator, rng)
    try:
        await mix.run(1000, at_once=20)
    finally:
        await simulator.stop()
        totals.made += mix.made
        totals.codes += mix.codes
        totals.mixed += mix.seen


async def bursts(folder: Path, rng: random.Random, totals: Totals) -> None:
    await burst_rounds(folder, 25)
    totals.counts["bursts"] += 25


async def cut_offs(folder: Path, rng: random.Random, totals: Totals) -> None:
    simulator = await start()
    try:
        await CutOffs(folder, simulator, rng).run(25)
    finally:
        await simulator.stop()
    totals.counts["cut-offs"] += 100


async def soak(minutes: float, seed: int) -> int:
    totals = Totals()
    rng = random.Random(seed)
    deadline = time.monotonic() + minutes * 60
    failures = 0
    rounds = 0
    while time.monotonic() < deadline or rounds == 0:
        for kind in (kills, endings, bursts, cut_offs):
            folder = Path(tempfile.mkdtemp(prefix="relay-soak-"))
            round_seed = rng.randrange(1 << 32)
            try:
                async with asyncio.timeout(max(60.0, deadline - time.monotonic() + 60)):
                    await kind(folder, random.Random(round_seed), totals)
            except Exception:
                failures += 1
                print(f"FAILED: {kind.__name__} with seed {round_seed}; its data stay in {folder}", flush=True)
                traceback.print_exc()
            else:
                shutil.rmtree(folder)
            if time.monotonic() > deadline:
                break
        rounds += 1
    print(totals.report())
    if missing := totals.missing():
        print("never seen: " + ", ".join(missing))
    slow = max(totals.ready_cpu_seconds, default=0) > READY_CPU_SECONDS_MAX
    if slow:
        print(f"ready took more than {READY_CPU_SECONDS_MAX} s of CPU")
    print(f"seed {seed}: {rounds} rounds, {failures} failures")
    return 1 if failures or missing or slow else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Faults, for a long time.")
    parser.add_argument("--minutes", type=float, default=MINUTES_MAX)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    seed = arguments.seed or random.randrange(1, 1 << 32)
    print(f"seed {seed}", flush=True)
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # the simulator, about clients that were killed
    return uvloop.run(soak(min(arguments.minutes, MINUTES_MAX), seed))


if __name__ == "__main__":
    sys.exit(main())
