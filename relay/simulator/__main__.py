"""`python -m relay.simulator --port N`: the simulator as a process of its own."""

import argparse
import asyncio
import contextlib
import signal
from collections.abc import Sequence

import uvloop

from relay.simulator.server import serve_forever


async def _serve(host: str, port: int, keys: list[str] | None, defaults: str, keep_bodies: bool) -> None:
    serving = asyncio.ensure_future(serve_forever(host, port, keys=keys, defaults=defaults, keep_bodies=keep_bodies))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m relay.simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8788, help="0: any free port, printed")
    parser.add_argument(
        "--key", action="append", help="accepted upstream key, may be repeated (default: every sim-...)"
    )
    parser.add_argument("--defaults", default="", help='directives for every request, e.g. "events=100 pace_ms=20"')
    parser.add_argument("--keep-bodies", action="store_true", help="the book keeps request and answer bodies")
    found = parser.parse_args(arguments)
    uvloop.run(_serve(found.host, found.port, found.key, found.defaults, found.keep_bodies))


if __name__ == "__main__":
    main()
