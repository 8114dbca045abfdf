"""kill -9 under load: nothing settled is lost or doubled, nothing stays held, what was delivered is charged."""

import random
from pathlib import Path

from relay.simulator import Running
from tests.faults.killing import RANDOM, Killing

SHORT = [
    "mid-stream",
    "while recovering",
    "before handing over",
    "inside commit",
    "before unlinking",
    "while freeing",
    RANDOM,
]


async def test_killed_at_aimed_points_and_at_random(tmp_path: Path, simulator: Running):
    seed = random.randrange(1 << 32)
    killing = Killing(tmp_path, simulator, random.Random(seed), callers=10)
    try:
        await killing.run(SHORT)
        killing.check([RANDOM, "mid-stream", "inside commit", "while freeing"], windows=False)
    finally:
        print(f"seed {seed}\n{killing.report()}")
