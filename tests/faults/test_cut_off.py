"""A stream on a small balance ends with the dialect's error event, and the official SDKs raise and do not hang."""

import random
from pathlib import Path

import pytest

from relay.simulator import Running
from tests.faults.cut_off_sdks import the_sdks_raise
from tests.faults.cut_offs import NOWHERE, CutOffs
from tests.functional.relay_process import RelayProcess
from tests.functional.setting import config_text


async def test_cut_off_in_each_dialect(tmp_path: Path, simulator: Running):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    await CutOffs(tmp_path, simulator, random.Random(seed)).run(3)


@pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",  # Google's SDK leaves its connection
)
async def test_the_sdks_raise(tmp_path: Path, simulator: Running):
    relay = RelayProcess(tmp_path, config_text(simulator.base_url, NOWHERE))
    try:
        await relay.start()
        await the_sdks_raise(relay)
        assert relay.faults == []
        assert await relay.stop() == 0
    finally:
        await relay.kill()
