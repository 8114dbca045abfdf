"""`relay` as a contender: a real `relay serve` with everything switched on, set up through its command line.

One paying account with a plan that limits everything, set so high that nothing is refused, and keys with limits and
spending caps of their own. Afterwards its call records and its ledger are compared with what was called.

`relay-before` is the same from another checkout, named by BENCH_BEFORE: its code, this interpreter and its packages.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cases import MODEL
from .contenders import HOST, Setting, Tally, Target, UnavailableError
from .grow import grow
from .processes import Program, ProgramError, free_port, wait_listening

ROOT = Path(__file__).parent.parent
BEFORE = "BENCH_BEFORE"
FLUSH_SECONDS_MAX = 15.0
START_SECONDS_MAX = 120.0  # under valgrind on a busy machine
STARTS_GROWN = 5  # so often its start is timed

CONFIG = """\
[server]
listen = "{host}:{port}"
data_dir = "{data}"
drain_seconds = 5
{tls}

[plans.bench]
rpm = 1000000000
tpm = 1000000000000
concurrency = 100000
daily_credits = 1000000000
monthly_credits = 1000000000

[[channels]]
name = "simulated"
api = "openai"
base_url = "{upstream}/v1"
api_keys = ["env:BENCH_UPSTREAM_KEY"]
models = ["{model}"]

[[rates]]
model = "{model}"
input = "2.5"
output = "10"
cache_read = "1.25"
"""

DATABASE = "relay.db"
KEY_LIMITS = {
    "rpm": 1_000_000_000,
    "tpm": 1_000_000_000_000,
    "concurrency": 100_000,
    "daily_limit": "500000000",
    "monthly_limit": "500000000",
}
INPUT_NANO_PER_TOKEN = 2_500
OUTPUT_NANO_PER_TOKEN = 10_000
# Over the relay's socket, as the command does it: a thousand processes would take minutes. In a process of its own,
# because the relay may be another checkout than this one.
MAKE_KEYS = """\
import json, sys
from pathlib import Path
from relay.cli_client import send
data, count, fields = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
print(json.dumps([send(data, "key create", {"name": f"bench {i}", **fields})["secret"] for i in range(count)]))
"""


class _CommandLine:
    def __init__(self, config: Path, environment: dict[str, str]) -> None:
        self._config = config
        self._environment = environment

    def __call__(self, *words: str) -> Any:
        """Runs a command with --json; returns the document, or the list of JSON lines. ProgramError if it fails."""
        out = self.python("-m", "relay", *words, "--config", str(self._config), "--json")
        lines = [json.loads(line) for line in out.splitlines() if line.strip()]
        return lines[0] if len(lines) == 1 else lines

    def python(self, *words: str) -> str:
        """What a Python process of the relay's checkout prints. ProgramError if it fails."""
        environment = {**os.environ, **self._environment}
        command = [sys.executable, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
        if done.returncode:
            raise ProgramError(f"{' '.join(words)[:200]}: status {done.returncode}: {done.stderr.strip()[-1000:]}")
        return done.stdout


def checkout_before() -> Path:
    """The checkout that BENCH_BEFORE names. UnavailableError if there is none."""
    named = os.environ.get(BEFORE)
    if not named:
        raise UnavailableError(f"{BEFORE} names no checkout")
    root = Path(named).resolve()
    if not (root / "relay" / "_fastpath.pyx").is_file():
        raise UnavailableError(f"{BEFORE}: {root} is not a checkout of relay")
    return root


def check_built(root: Path) -> None:
    """UnavailableError if relay is not built there, or from older sources, or this Python lacks its packages."""
    missing = [name for name in ("aiohttp", "msgspec", "uvloop") if importlib.util.find_spec(name) is None]
    if missing:
        raise UnavailableError(f"{sys.executable} has no {', '.join(missing)}: use .venv/bin/python -m benchmarks")
    modules = list((root / "relay").glob("_fastpath.*.so"))
    if not modules:
        raise UnavailableError(f"relay is not built in {root}")
    sources = [root / "relay" / "_fastpath.pyx", *(root / "relay" / "fastpath").iterdir()]
    if max(m.stat().st_mtime for m in modules) < max(s.stat().st_mtime for s in sources):
        raise UnavailableError(f"the compiled module in {root} is older than its sources: build it again")


def check_optimised(root: Path) -> None:
    """UnavailableError if RELAY_BUILD=quick made the module: it executes two to three times as many instructions."""
    if any(b"relay-build: not optimised" in m.read_bytes() for m in (root / "relay").glob("_fastpath.*.so")):
        raise UnavailableError(
            f"{root} is built with RELAY_BUILD=quick; build it again: touch setup.py && make .make-build"
        )


def start_relay(name: str, setting: Setting, root: Path = ROOT, launcher: Sequence[str | Path] = ()) -> Target:
    """`launcher`: a program that runs the relay's. UnavailableError if relay is not built; ProgramError if it does not
    start."""
    check_built(root)
    # A store of its own at every start. A short name: the path of the control socket has at most 107 bytes (unix(7)).
    directory = Path(tempfile.mkdtemp(prefix="r", dir=setting.directory))
    port = free_port()
    tls = ""
    if setting.client_tls and setting.certificates:
        tls = f'tls_certificate = "{setting.certificates.certificate}"\ntls_key = "{setting.certificates.key}"'
    config = directory / "config.toml"
    config.write_text(
        CONFIG.format(
            host=HOST,
            port=port,
            data=directory / "data",
            tls=tls,
            # the certificate's name, so that TLS is checked as with a provider
            upstream=setting.upstream_url.replace(HOST, "localhost") if setting.upstream_tls else setting.upstream_url,
            model=MODEL,
        )
    )
    environment = {"BENCH_UPSTREAM_KEY": "sk-simulated-upstream", "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    if setting.certificates:
        environment["SSL_CERT_FILE"] = str(setting.certificates.authority)
    cli = _CommandLine(config, environment)
    data = directory / "data"
    command: list[str | Path] = [*launcher, sys.executable, "-m", "relay", "serve", "--config", config]
    ready_seconds: list[float] = []

    def start() -> Program:
        started = time.monotonic()
        program = setting.programs.start(name, command, setting.cores.proxy, environment)
        wait_ready(program, port, setting, START_SECONDS_MAX)
        ready_seconds.append(time.monotonic() - started)
        return program

    program = start()  # which makes the store
    account = cli("account", "create", "--email", "bench@example.com", "--plan", "bench")["id"]
    cli("credit", "add", account, "100000000", "--reason", "benchmark")
    if name == "relay-grown":
        setting.programs.stop(program)
        grow(data / DATABASE, *setting.stock)
        ready_seconds.clear()
        for _ in range(STARTS_GROWN - 1):
            setting.programs.stop(start())
        program = start()
    last_id = _last_call_id(data)
    fields = json.dumps({"id": account, **KEY_LIMITS})
    made = cli.python("-c", MAKE_KEYS, str(data), str(setting.keys), fields)

    def books(tally: Tally) -> list[str]:
        return check_books(data, cli, last_id, tally, verify=name != "relay-grown")

    return Target(
        name, HOST, port, setting.client_tls, program, keys=json.loads(made), books=books, ready_seconds=ready_seconds
    )


def wait_ready(program: Program, port: int, setting: Setting, timeout_seconds: float = 30.0) -> None:
    """Until /readyz says 200. ProgramError if the program ends or takes longer."""
    end = time.monotonic() + timeout_seconds
    wait_listening(program, port, timeout_seconds)
    while time.monotonic() < end:
        program.check()
        connection: http.client.HTTPConnection
        if setting.client_tls and setting.certificates:
            context = ssl.create_default_context(cafile=str(setting.certificates.authority))
            connection = http.client.HTTPSConnection("localhost", port, timeout=5, context=context)
        else:
            connection = http.client.HTTPConnection(HOST, port, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.01)
    raise ProgramError(f"{program.name} was not ready within {timeout_seconds} s:\n{program.output()}")


def check_books(data: Path, cli: _CommandLine, last_id: int, tally: Tally, *, verify: bool) -> list[str]:
    """Compares the call records behind `last_id` with what was called; then `relay ledger verify`, if asked for."""
    expected = (
        tally.calls,
        tally.input_tokens,
        tally.output_tokens,
        tally.input_tokens * INPUT_NANO_PER_TOKEN + tally.output_tokens * OUTPUT_NANO_PER_TOKEN,
    )
    end = time.monotonic() + FLUSH_SECONDS_MAX
    while True:
        found, others = _recorded(data, last_id)
        if found == expected or time.monotonic() > end:
            break
        time.sleep(0.2)  # records are committed in groups
    wrong = []
    names = ("calls", "input tokens", "output tokens", "nano-credits")
    for what, is_value, should_be in zip(names, found, expected, strict=True):
        if is_value != should_be:
            wrong.append(f"relay recorded {is_value} {what}, {should_be} were expected")
    if others:
        wrong.append(f"relay recorded {others} calls as failed or not by the upstream's usage")
    if not verify:
        return wrong
    try:
        cli("ledger", "verify")
    except ProgramError as error:
        wrong.append(str(error))
    return wrong


def _reading(data: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{data / DATABASE}?mode=ro", uri=True, timeout=10)


def _last_call_id(data: Path) -> int:
    with contextlib.closing(_reading(data)) as connection:
        return int(connection.execute("SELECT coalesce(max(id), 0) FROM calls").fetchone()[0])


def _recorded(data: Path, last_id: int) -> tuple[tuple[int, int, int, int], int]:
    with contextlib.closing(_reading(data)) as connection:
        row = connection.execute(
            "SELECT count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),"
            " coalesce(sum(cost_nano), 0), count(*) FILTER"
            " (WHERE status <> 200 OR error_code IS NOT NULL OR usage_source <> 'upstream')"
            " FROM call_records WHERE id > ?",
            (last_id,),
        ).fetchone()
    return (row[0], row[1], row[2], row[3]), row[4]
