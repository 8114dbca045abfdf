"""Signals, and restarts under load behind a socket that outlives the relay."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from relay.simulator import Running
from tests.faults.restarts import request, restarts_under_load
from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import RelayProcess
from tests.functional.setting import config_text
from tests.support.stored import assert_books_agree
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_five_restarts_under_load_refuse_nothing(simulator: Running, raw: RawUpstream, tmp_path: Path):
    statuses = await restarts_under_load(tmp_path, config_text(simulator.base_url, raw.base_url), 5)
    assert statuses.total() >= 50


async def test_sigterm_stops_accepting_at_once_and_the_second_one_ends_now(
    simulator: Running, raw: RawUpstream, tmp_path: Path
):
    text = config_text(simulator.base_url, raw.base_url).replace("drain_seconds = 5", "drain_seconds = 600")
    relay = await RelayProcess(tmp_path, text).start()
    customer = await relay.customer()
    event = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
    name, _ = raw.script(STREAM + b"%x\r\n%s\r\n" % (len(event), event), Gate(asyncio.Event()))
    _, idle = await asyncio.open_connection("127.0.0.1", relay.port)
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    writer.write(request(customer.secret, name, "raw-chat", stream=True))
    await reader.readuntil(b"word")
    began = time.monotonic()
    relay.signal(signal.SIGTERM)
    await until(lambda: any("stopping: 1 calls in flight" in line for line in relay.log))
    with pytest.raises(OSError, match=r"."):
        await asyncio.open_connection("127.0.0.1", relay.port)
    assert relay.exit_status is None  # the stream may go on for ten minutes
    relay.signal(signal.SIGTERM)
    assert await relay.wait() == 0
    assert time.monotonic() - began < 10
    rest = await reader.read()
    assert b"0\r\n\r\n" not in rest  # cut, not ended in order
    writer.close()
    idle.close()
    balances = assert_books_agree(relay.data_dir)
    assert next(iter(balances.values())) < 100 * 10**9  # what was delivered is charged
    assert relay.faults == []
