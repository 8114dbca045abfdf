"""A random mix of every way in which a call can end: nothing stays open or held, and the books agree."""

import random
from pathlib import Path

from relay.simulator import Running
from tests.faults.endings import ENDINGS, Mix


async def test_every_ending_in_random_mix(tmp_path: Path, simulator: Running):
    seed = random.randrange(1 << 32)
    mix = Mix(tmp_path, simulator, random.Random(seed))
    try:
        await mix.run(90)
        assert set(mix.made) == set(ENDINGS) | {"drained"}
    finally:
        print(f"seed {seed}\n{mix.report()}")
