"""The files of the store under a running relay, and the directory in which a command is given."""

import asyncio
import contextlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from relay.control.failures import CommandError
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import REPOSITORY, RelayProcess, eventually
from tests.functional.setting import config_text
from tests.functional.test_money import ask, chat
from tests.support.http1 import response_bytes
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="session")
ANSWER = response_bytes(b'{"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":1}}')


async def ready(relay: RelayProcess) -> bool:
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        return (await client.request("GET", "/readyz", {}, b"")).status == 200


async def test_finding_money_L6_files_that_are_gone(tmp_path: Path, raw: RawUpstream):
    """Each of them, deleted or replaced: no call is served and nothing is changed, until it is back."""
    relay = RelayProcess(tmp_path, config_text("http://127.0.0.1:9", raw.base_url))
    await relay.start()
    try:
        customer = await relay.customer()
        text, _ = raw.script(ANSWER)
        assert (await ask(customer, chat(text))).status == 200
        kept = tmp_path / "kept"
        for name in ("relay.db", "relay.db-wal", "journal", "lock"):
            path = relay.data_dir / name
            await eventually(lambda: ready(relay))
            os.rename(path, kept)
            if name == "journal":
                shutil.copy(kept, path)

            async def not_ready() -> bool:
                return not await ready(relay)

            await eventually(not_ready, 20.0)
            answer = await ask(customer, chat(text))
            assert (answer.status, b"store_unavailable" in answer.body) == (503, True)
            with pytest.raises(CommandError, match=name) as caught:
                await relay.command("credit add", id=customer.account, amount="1")
            assert caught.value.code == "unavailable"
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            os.rename(kept, path)
        await eventually(lambda: ready(relay))
        text, _ = raw.script(ANSWER)
        assert (await ask(customer, chat(text))).status == 200
        said = [line for line in relay.log if "CRITICAL" in line]
        assert [any(f"{name} {what}" in line for line in said) for name, what in (
            ("relay.db", "is gone"), ("journal", "was replaced by another file"), ("lock", "is gone"),
        )] == [True, True, True]  # fmt: skip
        assert len(said) == 4
        assert await relay.stop() == 0
    finally:
        await relay.kill()


async def test_finding_newcomer_2_commands_in_the_wrong_directory(relay: RelayProcess, tmp_path: Path):
    """Every command that needs a store: exit 1, one line, and nothing is made. RELAY_CONFIG names the file."""

    async def run(*words: str, **environment: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "relay", *words, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, error = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), error.decode()

    for words in (("account", "list"), ("ledger", "verify"), ("backup", "b.db"), ("calls",), ("events", "--json")):
        status, out, error = await run(*words)
        expected = f"relay: no store in {tmp_path}/data (no config.toml here): name it with --config FILE\n"
        assert (status, out, error) == (1, "", expected)
        assert os.listdir(tmp_path) == []
    assert (await run("status"))[2] == f"relay: no relay is running on {tmp_path}/data\n"
    status, out, _ = await run("status", RELAY_CONFIG=str(relay.config_file))
    assert (status, "uptime_seconds" in out) == (0, True)
    status, _, error = await run("status", "--config", "other.toml", RELAY_CONFIG=str(relay.config_file))
    assert (status, "other.toml" in error) == (1, True)
