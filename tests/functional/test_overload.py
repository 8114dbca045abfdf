"""Limits on work of a real process: what is beyond them gets 503 with Retry-After, and all is well afterwards."""

import asyncio
from pathlib import Path

import pytest

from relay.simulator import Running
from tests.faults.restarts import ask, request
from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import RelayProcess
from tests.functional.setting import config_text

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_connections_beyond_the_descriptors_are_told_to_come_back(
    simulator: Running, raw: RawUpstream, tmp_path: Path
):
    """With 100 descriptors, 64 in reserve: 18 connections, each with one to an upstream."""
    relay = RelayProcess(
        tmp_path, config_text(simulator.base_url, raw.base_url), launcher=("prlimit", "--nofile=60:100")
    )
    await relay.start()
    assert any("allows 18" in line for line in relay.log)
    customer = await relay.customer()
    message = request(customer.secret, "Say something.")
    assert await ask(relay.port, message) == 200
    waiting = [await asyncio.open_connection("127.0.0.1", relay.port) for _ in range(18)]
    await asyncio.sleep(0.1)
    for _ in range(100):  # as many as there are descriptors: those turned away do not stay
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: 2\r\n".lower() in answer.lower()
    for _, writer in waiting:
        writer.write(message)
    for reader, _ in waiting:
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    for _, writer in waiting:
        writer.close()
    await asyncio.sleep(0.1)
    assert await ask(relay.port, message) == 200
    await customer.calls(20)
    assert await relay.stop() == 0
    assert relay.faults == []


async def test_waiting_bytes_are_bounded_and_given_back(simulator: Running, raw: RawUpstream, tmp_path: Path):
    """Three calls hold 400 kB each; only two fit."""
    text = config_text(simulator.base_url, raw.base_url)
    text = text.replace("[server]\n", "[server]\nwaiting_bytes_max = 1048576\n")
    relay = await RelayProcess(tmp_path, text).start()
    customer = await relay.customer()
    gate = Gate(asyncio.Event())
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    name, exchange = raw.script(gate, answer)
    large = request(customer.secret, name + "x" * 400_000, "raw-chat")
    held = [asyncio.create_task(ask(relay.port, large)) for _ in range(2)]
    async with asyncio.timeout(10):
        while len(exchange.requests) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await ask(relay.port, large) == 503
    assert await ask(relay.port, request(customer.secret, "small")) == 200  # another channel, and little
    gate.event.set()
    assert await asyncio.gather(*held) == [200, 200]
    assert await ask(relay.port, large) == 200
    assert await relay.stop() == 0
    assert relay.faults == []
