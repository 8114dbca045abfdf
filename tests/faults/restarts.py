"""Restarts under load behind a socket that outlives the relay, as systemd's socket activation holds one."""

import asyncio
import json
import socket
import sys
from collections import Counter
from pathlib import Path

from tests.functional.relay_process import RelayProcess
from tests.support.stored import assert_books_agree
from tests.support.waiting import until

# Gives the inherited descriptor argv[1] to the program behind it as systemd does, and becomes that program.
ACTIVATOR = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="relay")
os.execv(sys.argv[2], sys.argv[2:])
"""


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
        if "transfer-encoding: chunked" in head.lower():
            await reader.readuntil(b"0\r\n\r\n")
        else:
            length = next(line for line in head.lower().split("\r\n") if line.startswith("content-length:"))
            await reader.readexactly(int(length.split(":")[1]))
        return int(head.split()[1])
    finally:
        writer.close()


async def restarts_under_load(folder: Path, config: str, count: int) -> Counter[int]:
    """Restarts while four callers ask without a pause, each time on a new connection. Returns their statuses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        port = listener.getsockname()[1]
        number = listener.fileno()
        relay = RelayProcess(folder, config, launcher=(sys.executable, "-c", ACTIVATOR, str(number)), passed=(number,))
        try:
            await relay.start()
            assert relay.port == port
            customer = await relay.customer()
            messages = [
                request(customer.secret, "Say something. #sim events=2#"),
                request(customer.secret, "Say something. #sim events=6 pace_ms=20#", stream=True),
            ]
            statuses: list[int] = []
            stop = False

            async def keep_asking(message: bytes) -> None:
                while not stop:
                    statuses.append(await ask(port, message))
                    await asyncio.sleep(0.02)

            askers = [asyncio.create_task(keep_asking(messages[n % 2])) for n in range(4)]
            for _ in range(count):
                answered = len(statuses)
                await until(lambda: len(statuses) >= answered + 10 or any(one.done() for one in askers), 20)  # noqa: B023
                assert await relay.stop() == 0
                await relay.start()
            stop = True
            await asyncio.gather(*askers)  # a refused connection, or an answer that breaks off, fails here
            assert set(statuses) == {200}
            await customer.calls(len(statuses))
            await customer.settled_nano()
            assert (await relay.command("ledger verify"))["ok"]
            assert await relay.stop() == 0
            assert relay.faults == []
        finally:
            await relay.kill()
    assert_books_agree(relay.data_dir)
    return Counter(statuses)
