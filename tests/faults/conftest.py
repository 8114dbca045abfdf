"""All tests here run in uvloop; relays are processes of their own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest_asyncio

from relay.simulator import Running, start
from tests.support.loops import BOTH_LOOPS


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": BOTH_LOOPS["uvloop"]}


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[Running]:
    running = await start()
    yield running
    await running.stop()
