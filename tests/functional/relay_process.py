"""A `relay serve` process, its operator's commands, and its customers."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relay.cli_client import NotRunning
from relay.cli_client import send as send_command
from tests.support.waiting import until

START_SECONDS = 20.0
CALLS_MAX = 2048  # a journal of 4 MiB instead of 32: it is written whole when it is made
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Customer:
    """An account with credits and one key."""

    relay: "RelayProcess"
    account: str
    key: str
    secret: str

    async def calls(self, count: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Records of the key's calls, newest first; waits for `count` of them and fails on more."""
        rows: list[dict[str, Any]] = []

        async def enough() -> bool:
            rows[:] = await self.relay.calls(key=self.key, **fields)
            return len(rows) >= count

        await eventually(enough, what=f"{count} call records")
        assert len(rows) == count, [row["error_code"] for row in rows]
        return rows

    async def call(self) -> dict[str, Any]:
        """The record of the only call."""
        return (await self.calls(1))[0]

    async def money(self) -> dict[str, Any]:
        return await self.relay.command("account show", id=self.account)

    async def available_nano(self) -> int:
        return nano((await self.money())["available"])

    async def settled_nano(self) -> int:
        """What is available once nothing is held any more."""
        shown: dict[str, Any] = {}

        async def settled() -> bool:
            shown.update(await self.money())
            return nano(shown["held"]) == 0

        await eventually(settled, what="no holds")
        return nano(shown["available"])


def nano(amount: str) -> int:
    """Nano-credits of an amount as the relay prints it."""
    whole, _, part = amount.partition(".")
    sign = -1 if whole.startswith("-") else 1
    return sign * (int(whole.lstrip("-")) * 10**9 + int(part.ljust(9, "0")))


async def eventually(condition: Any, timeout_seconds: float = 10.0, what: str = "") -> None:
    """Like `until`, for a condition that is a coroutine function."""
    async with asyncio.timeout(timeout_seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    del what


@dataclass
class RelayProcess:
    """One process on its own data directory. `config` may hold `{data_dir}`; it listens on a port the system gives."""

    folder: Path
    config: str
    port: int = 0
    program: tuple[str, ...] = ("-m", "relay")  # of the interpreter, before `serve`
    log: list[str] = field(default_factory=list)
    launcher: tuple[str, ...] = ()  # a program that starts the relay in its own place
    environment: dict[str, str] = field(default_factory=dict)  # added to ours
    passed: tuple[int, ...] = ()  # file descriptors for the launcher
    _process: asyncio.subprocess.Process | None = None
    _reader: asyncio.Task[None] | None = None
    _numbers: int = 0

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def config_file(self) -> Path:
        return self.folder / "config.toml"

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        assert self._process is not None
        return self._process.returncode

    def write_config(self, text: str) -> None:
        self.config = text
        listen = f'[server]\nlisten = "127.0.0.1:0"\ndata_dir = "{self.data_dir}"\n'
        if "calls_max" not in text:
            listen += f"calls_max = {CALLS_MAX}\n"
        self.config_file.write_text(text.replace("[server]\n", listen, 1))

    async def start(self) -> "RelayProcess":
        """Returns when it listens."""
        self.write_config(self.config)
        self.port = 0
        self._process = await asyncio.create_subprocess_exec(
            *self.launcher, sys.executable, *self.program, "serve", "--config", str(self.config_file),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, cwd=REPOSITORY,
            env={**os.environ, **self.environment}, pass_fds=self.passed,
        )  # fmt: skip
        self._reader = asyncio.get_running_loop().create_task(self._read_log())
        try:
            await until(lambda: self.port or self.exit_status is not None, START_SECONDS, "the relay listens")
        except AssertionError:  # a process left behind would keep the whole session from ending
            await self.kill()
            raise
        assert self.port, self.log
        return self

    async def _read_log(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            self.log.append(text)
            if found := re.search(r"listening on 127\.0\.0\.1:(\d+)", text):
                self.port = int(found[1])

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def wait(self, timeout_seconds: float = 15.0) -> int:
        """The exit status."""
        assert self._process is not None
        assert self._reader is not None
        async with asyncio.timeout(timeout_seconds):
            status = await self._process.wait()
            await self._reader
        return status

    async def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self._process is not None
        if self._process.returncode is None:
            self.signal(signal.SIGTERM)
        return await self.wait()

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self.wait()

    @property
    def faults(self) -> list[str]:
        """What it logged about faults of its own."""
        return [
            line for line in self.log if "internal fault" in line or "Traceback" in line or "handler failed" in line
        ]

    # -- the operator

    async def command(self, name: str, **fields: Any) -> dict[str, Any]:
        """A command over the control socket. Raises CommandError."""
        return await asyncio.to_thread(send_command, self.data_dir, name, fields)

    async def cli(self, *words: str) -> tuple[int, str, str]:
        """`relay WORDS`: exit status, stdout, stderr."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "relay", *words, "--config", str(self.config_file),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=REPOSITORY,
        )  # fmt: skip
        out, error = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), error.decode()

    async def cli_json(self, *words: str) -> Any:
        """The document a command prints, or the list of its lines."""
        status, out, error = await self.cli(*words, "--json")
        assert status == 0, error
        lines = [json.loads(line) for line in out.splitlines()]
        return lines if words[0] in ("calls", "events") else lines[0]

    async def calls(self, **fields: Any) -> list[dict[str, Any]]:
        """All call records that match, newest first."""
        rows: list[dict[str, Any]] = []
        fields["limit"] = 1000
        while True:
            page = await self.command("calls", **fields)
            rows += page["calls"]
            if page["next"] is None:
                return rows
            fields["before"] = page["next"]

    async def status(self) -> dict[str, Any]:
        return await self.command("status")

    async def customer(
        self, credits: str = "100", *, plan: str = "open", organisation: str | None = None, **key: Any
    ) -> Customer:
        """A new account with credits ("0": none) and a key with these settings."""
        self._numbers += 1
        account = await self.command(
            "account create", email=f"customer{self._numbers}@example.com", plan=plan, organisation=organisation
        )
        if credits != "0":
            await self.command("credit add", id=account["id"], amount=credits)
        made = await self.command("key create", id=account["id"], **key)
        return Customer(self, account["id"], made["id"], made["secret"])

    async def another_key(self, customer: Customer, **key: Any) -> Customer:
        made = await self.command("key create", id=customer.account, **key)
        return Customer(self, customer.account, made["id"], made["secret"])


__all__ = ["Customer", "NotRunning", "RelayProcess", "eventually", "nano"]


@contextlib.asynccontextmanager
async def verified(folder: Path, config: str) -> AsyncIterator[RelayProcess]:
    """A relay for the tests of a file. At their end its books agree, nothing has gone wrong in it, and it stops."""
    running = await RelayProcess(folder, config).start()
    yield running
    found = await running.command("ledger verify")
    assert await running.stop() == 0
    assert found["ok"], found
    assert running.faults == []
