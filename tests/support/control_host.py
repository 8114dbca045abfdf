"""A process that owns a store and serves the operator's API on its unix socket: the part of a relay that the command
line talks to. `python -m tests.support.control_host CONFIG`; prints "ready"; ends on SIGTERM."""

import asyncio
import signal
import sys
from pathlib import Path

from relay import config as config_module
from relay.control.admin import SocketServer
from relay.control.operations import Operations
from relay.control.pepper import load_pepper
from relay.storage import Store
from tests.support.live import FakeLive


async def main(path: str) -> None:
    config = config_module.load(path)
    data_dir = Path(config.server.data_dir)
    store = await Store.open(data_dir)
    live = FakeLive()
    server = SocketServer(Operations(store, live, config, load_pepper(data_dir, create=True)), data_dir)
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    await server.stop()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
