"""Waiting for what a test expects, with an end."""

import asyncio
import time
from collections.abc import Callable


async def until(condition: Callable[[], object], timeout_seconds: float = 20.0, what: str = "") -> None:
    """Returns as soon as the condition holds. Fails the test when it does not within the time."""
    deadline = time.monotonic() + timeout_seconds
    turns = 0
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_seconds} s: {what or condition}")
        # The first turns only let other tasks run: most conditions hold after a few of them.
        turns += 1
        await asyncio.sleep(0 if turns < 20 else 0.002)
