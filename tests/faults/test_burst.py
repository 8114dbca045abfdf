"""Fifty calls at one instant on a balance for five: exactly five pass, on fresh and on warm accounts."""

from pathlib import Path

from tests.faults.bursts import burst_rounds

ROUNDS = 4


async def test_a_burst_passes_what_the_balance_covers(tmp_path: Path):
    await burst_rounds(tmp_path, ROUNDS)
