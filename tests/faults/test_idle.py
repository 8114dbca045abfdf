"""Ten thousand idle connections, or as many as descriptors allow: little memory, and service as before."""

import asyncio
import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.simulator import Running, start
from tests.functional.relay_process import RelayProcess
from tests.functional.setting import SIM_KEY, channel
from tests.support.rawclient import RawClient

CONNECTIONS = 10_000
BYTES_MAX = 16 << 10  # of memory for each
AT_ONCE = 50
BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hello"}]}'


@pytest.fixture
def connections() -> Iterator[int]:
    """How many there can be: both processes have the same limit, and the relay keeps half of it for upstreams."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield CONNECTIONS if hard == resource.RLIM_INFINITY else min(CONNECTIONS, hard // 2 - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident(relay: RelayProcess) -> int:
    status = Path(f"/proc/{relay.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


async def test_idle_connections_cost_little(tmp_path: Path, connections: int):
    simulator: Running = await start()
    way = channel("sim", "openai", simulator.base_url + "/v1", '["gpt-4o"]', SIM_KEY)
    plan = "[plans.open]\nrpm = 0\nconcurrency = 0\n"
    relay = RelayProcess(tmp_path, "[server]\n" + plan + way + '[[rates]]\nmodel = "gpt-4o"\ninput = 1\noutput = 1\n')
    await relay.start()
    clients: list[RawClient] = []
    gate = asyncio.Semaphore(AT_ONCE)
    try:
        customer = await relay.customer("1")
        headers = {"Authorization": f"Bearer {customer.secret}"}

        async def connect_and_call() -> None:
            async with gate:
                client = await RawClient.connect("127.0.0.1", relay.port)
                clients.append(client)
                assert (await client.request("POST", "/v1/chat/completions", headers, BODY)).status == 200

        await asyncio.gather(*(connect_and_call() for _ in range(AT_ONCE)))
        before = resident(relay)
        await asyncio.gather(*(connect_and_call() for _ in range(connections - AT_ONCE)))
        assert (await relay.command("status"))["connections"] >= connections
        assert (resident(relay) - before) / (connections - AT_ONCE) < BYTES_MAX
        for client in (clients[0], clients[-1]):
            assert (await client.request("POST", "/v1/chat/completions", headers, BODY)).status == 200
    finally:
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.transport.abort()
        await relay.kill()
        await simulator.stop()
