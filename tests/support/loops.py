"""The event loops that tests run under: the relay's own (uvloop) and the standard one."""

import asyncio
from collections.abc import Callable

import uvloop

BOTH_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
