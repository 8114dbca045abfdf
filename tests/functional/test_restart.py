"""Signals, and restarts under load behind a socket that outlives the relay."""

import asyncio
import json
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from relay.simulator import Running
from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import RelayProcess
from tests.functional.setting import config_text
from tests.support.stored import assert_books_agree
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Gives the inherited descriptor argv[1] to the program behind it as systemd does, and becomes that program.
ACTIVATOR = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="relay")
os.execv(sys.argv[2], sys.argv[2:])
"""
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def request(secret: str, content: str, model: str = "gpt-4o", *, stream: bool = False) -> bytes:
    body = json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": content}]}).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def ask(port: int, message: bytes) -> int:
    """One call on a connection of its own: the status. Raises OSError or EOFError where there is no whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(message)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(line for line in head.lower().split("\r\n") if line.startswith("content-length:"))
        await reader.readexactly(int(length.split(":")[1]))
        return int(head.split()[1])
    finally:
        writer.close()


async def test_five_restarts_under_load_refuse_nothing(simulator: Running, raw: RawUpstream, tmp_path: Path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        port = listener.getsockname()[1]
        number = listener.fileno()
        relay = RelayProcess(
            tmp_path,
            config_text(simulator.base_url, raw.base_url),
            launcher=(sys.executable, "-c", ACTIVATOR, str(number)),
            passed=(number,),
        )
        await relay.start()
        assert relay.port == port
        customer = await relay.customer()
        message = request(customer.secret, "Say something. #sim events=2#")
        statuses: list[int] = []
        stop = False

        async def keep_asking() -> None:
            while not stop:
                statuses.append(await ask(port, message))
                await asyncio.sleep(0.02)

        askers = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for _ in range(5):
            answered = len(statuses)
            await until(lambda: len(statuses) >= answered + 10 or any(one.done() for one in askers), 20)  # noqa: B023
            assert await relay.stop() == 0
            await relay.start()
        stop = True
        await asyncio.gather(*askers)
        assert set(statuses) == {200}
        await customer.calls(len(statuses))
        await customer.settled_nano()
        assert (await relay.command("ledger verify"))["ok"]
        assert await relay.stop() == 0
        assert relay.faults == []
    assert_books_agree(relay.data_dir)
    assert len(statuses) >= 50


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
