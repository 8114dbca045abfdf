from collections.abc import AsyncIterator

import pytest

from relay.simulator import Running, start


@pytest.fixture
async def simulator() -> AsyncIterator[Running]:
    running = await start()
    yield running
    await running.stop()
