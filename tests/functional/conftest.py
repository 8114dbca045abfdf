"""One relay, one simulator and one raw upstream for all tests of this folder; each test has customers of its own.

They live in one event loop for the whole session, so every module here says
`pytestmark = pytest.mark.asyncio(loop_scope="session")`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import pytest_asyncio

from relay.simulator import Running, start
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually
from tests.functional.setting import config_text
from tests.support.loops import BOTH_LOOPS


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": BOTH_LOOPS["uvloop"]}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def simulator() -> AsyncIterator[Running]:
    running = await start()
    yield running
    await running.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def raw() -> AsyncIterator[RawUpstream]:
    async with RawUpstream() as upstream:
        yield upstream


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_relay(
    simulator: Running, raw: RawUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RelayProcess]:
    folder = tmp_path_factory.mktemp("relay")
    relay = await RelayProcess(folder, config_text(simulator.base_url, raw.base_url)).start()
    yield relay
    # Whatever the tests did: nothing is in flight, every balance is what its entries and calls say, it stops in order.
    await eventually(lambda: _nothing_in_flight(relay))
    verified = await relay.command("ledger verify")
    status = await relay.status()
    assert await relay.stop() == 0
    assert verified["ok"], verified
    assert status["faults"] == 0


async def _nothing_in_flight(relay: RelayProcess) -> bool:
    """Neither a call nor an attempt, by whomever it was made."""
    status = await relay.status()
    return status["open_calls"] == 0 and all(channel["in_flight"] == 0 for channel in status["channels"])


@pytest_asyncio.fixture(loop_scope="session")
async def relay(shared_relay: RelayProcess) -> AsyncIterator[RelayProcess]:
    """The shared relay; a test in which it had a fault of its own fails."""
    before = len(shared_relay.faults)
    yield shared_relay
    assert shared_relay.exit_status is None, shared_relay.log[-20:]
    assert shared_relay.faults[before:] == []


@pytest_asyncio.fixture(loop_scope="session")
async def customer(relay: RelayProcess) -> Customer:
    """A customer with 100 credits and no limits."""
    return await relay.customer()
