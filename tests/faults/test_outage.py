"""The short form of the outage drill; the long one, at 500 calls a second, is a section of tests/faults/soak.py."""

import random
from pathlib import Path

from tests.faults.outage import KILLED, Outage


async def test_an_upstream_dies_under_load_and_no_client_sees_an_error(tmp_path: Path):
    drill = Outage(
        tmp_path, random.Random(11), per_second=60, before_seconds=1.5, down_seconds=3, after_seconds=1.5,
        routing="breaker_open_seconds = 0.5\nbreaker_open_seconds_max = 2\n",
    )  # fmt: skip
    await drill.run()
    assert drill.errors == []
    assert drill.finished > 100
    assert drill.shares[KILLED] > 0
    # What was in flight, what it took to be sure, and probes: not one for each call that came meanwhile.
    assert drill.retried <= drill.in_flight + 60
    assert drill.probes <= 8
