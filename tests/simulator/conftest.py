import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest

from relay.simulator import Running, start
from tests.support.loops import BOTH_LOOPS


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    # How bytes leave depends on the loop; what they say, which the SDKs judge, does not.
    return BOTH_LOOPS if "test_sending" in item.nodeid else {"uvloop": BOTH_LOOPS["uvloop"]}


@pytest.fixture
async def simulator() -> AsyncIterator[Running]:
    running = await start()
    yield running
    await running.stop()
