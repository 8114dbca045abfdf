import asyncio
import signal
import sys

from tests.support.rawclient import RawClient


async def test_as_a_process():
    arguments = ["-m", "relay.simulator", "--port", "0", "--key", "one", "--defaults", "events=1"]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        port = int(line.decode().rsplit(":", 1)[1])
        async with await RawClient.connect("127.0.0.1", port) as client:
            assert (await client.request("GET", "/v1/models", {"Authorization": "Bearer one"})).status == 200
            assert (await client.request("GET", "/v1/models", {"Authorization": "Bearer sim-1"})).status == 401
    finally:
        process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 10) == 0
