"""The command `relay` as operators use it: real processes, on a locked store and against a running process."""

import asyncio
import contextlib
import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from relay import config as configuration
from relay.cli import main
from relay.cli_client import NotRunning, send
from relay.control.place import open_store

ROOT = Path(__file__).parent.parent
CONFIG = """
[server]
listen = "127.0.0.1:0"
data_dir = "{data_dir}"

[[channels]]
name = "main"
api = "openai"
base_url = "http://127.0.0.1:9/v1"
api_keys = ["env:RELAY_TEST_UPSTREAM_KEY"]
models = ["gpt-4o"]

[[rates]]
model = "gpt-4o"
input = "2.5"
output = 10
cache_read = 1
"""
Result = subprocess.CompletedProcess[str]


def make_store(data_dir: Path) -> None:
    """As `relay serve` leaves it."""

    async def make() -> None:
        store, _ = await open_store(
            configuration.parse(CONFIG.format(data_dir=data_dir), resolve_secrets=False), create=True
        )
        await store.close()

    asyncio.run(make())


class Cli:
    """Runs the command with one configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self.config = folder / "config.toml"
        self.config.write_text(CONFIG.format(data_dir=self.data_dir))
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.environment.pop("RELAY_TEST_UPSTREAM_KEY", None)

    def __call__(self, *words: str, cwd: Path | None = None) -> Result:
        command = [sys.executable, "-W", "error", "-m", "relay", "--config", str(self.config), *words]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            env=self.environment,
            cwd=cwd or self.folder,
            check=False,
        )

    def inside(self, *words: str) -> Result:
        """The same in this process: for the many cases that differ only in their words."""
        out, err = io.StringIO(), io.StringIO()
        argv = ["--config", str(self.config), *words]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(argv)
        return Result(argv, status, out.getvalue(), err.getvalue())

    def json(self, *words: str) -> Any:
        """The document, or the list of documents where there are several lines."""
        result = self.inside(*words, "--json")
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        return lines[0] if len(lines) == 1 else lines

    def fails(self, *words: str, status: int = 1) -> str:
        """The one line on stderr."""
        result = self.inside(*words)
        assert result.returncode == status, (result.stdout, result.stderr)
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        assert "Traceback" not in result.stderr
        return result.stderr


@pytest.fixture
def bare(tmp_path: Path) -> Cli:
    """Without a store."""
    return Cli(tmp_path)


@pytest.fixture
def cli(bare: Cli) -> Cli:
    make_store(bare.data_dir)
    return bare


@pytest.fixture
def host(cli: Cli) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts `relay serve`, and waits until it answers on its socket."""
    running: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with open(cli.folder / "serve.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "relay", "serve", "--config", str(cli.config)],
                stdout=log, stderr=log, cwd=cli.folder, env=cli.environment | {"RELAY_TEST_UPSTREAM_KEY": "up-key"},
            )  # fmt: skip
        running.append(process)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(NotRunning):
                send(cli.data_dir, "status", {})
                return process
            time.sleep(0.02)
        raise AssertionError((cli.folder / "serve.log").read_text())

    yield start
    for process in running:
        process.terminate()
        process.wait(30)


@pytest.fixture(params=["alone", "running"])
def either(request: pytest.FixtureRequest, cli: Cli, host: Callable[[], Any]) -> Cli:
    """The command line without and with a running process: both must answer the same."""
    if request.param == "running":
        host()
    return cli


def test_a_customer_from_sign_up_to_refund(either: Cli):
    cli = either
    account = cli.json("account", "create", "--email", "Ann@example.com", "--organisation", "Acme", "--plan", "paid")
    assert (account["id"], account["plan"], account["balance"]) == ("acct_1", "paid", "0")
    added = cli.json("credit", "add", "acct_1", "12.5", "--reason", "invoice 7", "--idempotency-key", "i7")
    assert added["balance"] == "12.5"
    assert cli.json("credit", "add", "acct_1", "12.5", "--reason", "invoice 7", "--idempotency-key", "i7") == {
        **added,
        "created": False,
    }
    key = cli.json(
        "key", "create", "acct_1", "--name", "ci", "--scope", "chat", "--scope", "embeddings", "--model", "gpt-4o",
        "--allow-ip", "203.0.113.0/24", "--allow-ip", "2001:db8::/32", "--rpm", "5", "--tpm", "0", "--concurrency", "2",
        "--daily-limit", "1.5", "--monthly-limit", "20", "--tokens-per-call", "gpt-4o=100", "--expires", "2099-01-01",
    )  # fmt: skip
    assert key["secret"].startswith("sk-")
    assert key["scopes"] == ["chat", "embeddings"]
    assert key["limits"]["tokens_per_call"] == {"gpt-4o": 100}
    changed = cli.json("key", "set", "key_1", "--scope", "default", "--rpm", "default", "--expires", "default")
    assert (changed["scopes"], changed["limits"]["rpm"], changed["expires"]) == (None, None, None)
    assert changed["limits"]["concurrency"] == 2
    rotated = cli.json("key", "rotate", "key_1", "--overlap", "24h")
    assert len(rotated["credentials"]) == 2
    assert cli.json("key", "list", "acct_1")["name"] == "ci"
    assert cli.json("key", "suspend", "key_1")["status"] == "suspended"
    assert cli.json("key", "resume", "key_1")["status"] == "active"
    assert cli.json("key", "revoke", "key_1")["status"] == "revoked"
    assert cli.json("credit", "refund", "acct_1", "2.5", "--reason", "asked")["balance"] == "10"
    assert cli.json("credit", "add", "acct_1", "-1", "--kind", "adjustment")["balance"] == "9"
    ledger = cli.json("ledger", "show", "acct_1")
    assert [entry["amount"] for entry in ledger["entries"]] == ["12.5", "-2.5", "-1"]
    assert cli.json("ledger", "verify")["ok"] is True
    for word, status in (("freeze", "frozen"), ("unfreeze", "active"), ("close", "closed"), ("reopen", "active")):
        assert cli.json("account", word, "acct_1")["status"] == status
    assert cli.json("account", "set", "acct_1", "--organisation", "default")["organisation"] is None
    assert cli.json("account", "list")["id"] == "acct_1"
    assert cli.json("organisation", "set", "org_1", "--rpm", "9")["limits"]["rpm"] == 9
    assert cli.json("organisation", "list")["name"] == "Acme"
    assert {event["code"] for event in cli.json("events")} >= {"account_create", "key_revoke"}
    assert cli.json("calls") == []


def test_people_get_tables(either: Cli):
    cli = either
    assert cli("account", "create", "--email", "a@example.com").returncode == 0
    listed = cli("account", "list").stdout.splitlines()
    assert listed[0].split() == ["ID", "EMAIL", "ORGANISATION", "PLAN", "STATUS", "BALANCE", "HELD", "CREATED"]
    assert listed[1].split()[:2] == ["acct_1", "a@example.com"]
    made = cli.inside("key", "create", "acct_1").stdout
    assert made.startswith("secret  sk-")
    secret = made.split()[1]
    shown = cli.inside("key", "show", "key_1").stdout
    assert secret[:15] in shown
    assert secret[:17] not in shown
    for words in (
        ("rates", "show"),
        ("rates", "check"),
        ("ledger", "show", "acct_1"),
        ("terms",),
        ("calls",),
        ("events",),
    ):
        result = cli.inside(*words)
        assert (result.returncode, result.stderr) == (0, ""), words
        assert result.stdout


def test_usage_as_csv_has_a_head_where_nothing_was_used(either: Cli):
    words = ("usage", "--by", "account", "--by", "model", "--csv")
    head = "account_id,model,calls,failed,input_tokens,output_tokens,cache_read_tokens,cache_write_tokens,images,"
    assert either(*words, "--since", "2020-01-01", "--until", "2020-02-01").stdout == (
        f"{head}video_seconds,web_searches,cost\n"
    )
    assert either(*words).stdout.startswith(head)


def test_calls_as_csv(either: Cli):
    result = either("calls", "--csv")
    rows = list(csv.reader(io.StringIO(result.stdout)))
    assert rows[0][:3] == ["id", "time", "account_id"]
    assert rows[0][-2:] == ["source_ip", "user_agent"]
    assert len(rows) == 1


def test_finding_newcomer_8_usage(either: Cli):
    assert either("usage").stdout == "none\n"
    assert either.json("usage", "--by", "account", "--by", "day", "--since", "30d") == []
    refused = either("usage", "--by", "weekday")
    assert refused.returncode == 1
    assert "by: expected some of day, month, model, key, account, organisation" in refused.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("account", "show", "acct_9"), ("account", "show", "nine"), ("key", "show", "key_9"), ("key", "list", "acct_9"),
        ("credit", "add", "acct_9", "1"), ("ledger", "show", "acct_9"), ("calls", "--account", "acct_9"),
        ("calls", "--since", "yesterday"), ("account", "create", "--email", "nobody"),
        ("account", "create", "--email", "a@example.com", "--plan", "gold"), ("account", "list", "--status", "gone"),
    ],
)  # fmt: skip
def test_refusals_are_one_line_and_exit_1(cli: Cli, words: tuple[str, ...]):
    assert cli.fails(*words).startswith("relay: ")


def test_amounts_that_are_none(either: Cli):
    either.json("account", "create", "--email", "a@example.com")
    for amount in ("NaN", "1e3", "+1", "-1", "0", "1.0000000001", "inf", "", "1,5", "0x1"):
        assert "amount" in either.fails("credit", "add", "acct_1", amount)
    assert either.json("account", "show", "acct_1")["balance"] == "0"


@pytest.mark.parametrize(
    "words",
    [
        (), ("nonsense",), ("account",), ("account", "create"), ("account", "show"), ("calls", "--limit", "many"),
        ("account", "show", "acct_1", "acct_2"), ("key", "create", "acct_1", "--rpm", "-1"), ("serve", "now"),
        ("key", "create", "acct_1", "--rpm", "1.5"), ("key", "rotate", "key_1", "--overlap", "soon"),
        ("terms", "--csv"),
        ("credit", "refund", "acct_1", "1"), ("account", "list", "--stat", "active"), ("calls", "--config"),
        ("key", "set", "key_1", "--scope", "chat", "--scope", "default"),
    ],
)  # fmt: skip
def test_wrong_usage_exits_2(bare: Cli, words: tuple[str, ...]):
    bare.fails(*words, status=2)
    assert not bare.data_dir.exists()


def test_exit_status_of_the_process(cli: Cli):
    for words, status in ((("nonsense",), 2), (("account", "show", "acct_9"), 1), (("account", "list"), 0)):
        result = cli(*words)
        assert result.returncode == status
        assert len(result.stderr.splitlines()) == (status != 0)


def test_help_is_no_failure(cli: Cli):
    for words in (("--help",), ("key", "create", "--help")):
        result = cli(*words)
        assert result.returncode == 0
        assert "usage: relay" in result.stdout


def test_version(cli: Cli):
    from relay import __version__

    assert cli("version").stdout == f"relay {__version__}\n"
    assert cli.json("version") == {"version": __version__}


def test_check_says_file_key_and_what_is_expected(cli: Cli):
    line = cli.fails("check")
    assert "RELAY_TEST_UPSTREAM_KEY" in line
    cli.environment["RELAY_TEST_UPSTREAM_KEY"] = "up-key"
    checked = cli("check", "--json")
    assert checked.returncode == 0
    assert json.loads(checked.stdout)["ok"] is True
    cli.config.write_text("[server]\nlisten = 7\nbody_bytes_max = 'x'\n[plan]\n")
    result = cli("check")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 3
    for line, key in zip(
        sorted(result.stderr.splitlines()), ("plan", "server.body_bytes_max", "server.listen"), strict=True
    ):
        assert f"{cli.config}: {key}: expected" in line
    assert cli("check", "--config", str(cli.folder / "none.toml")).returncode == 1


def test_secrets_of_upstreams_are_not_needed_to_manage_accounts(cli: Cli):
    assert cli.json("account", "create", "--email", "a@example.com")["id"] == "acct_1"


def test_rates_check_fails_on_what_cannot_be_used(cli: Cli):
    assert cli.json("rates", "check")["ok"] is True
    cli.config.write_text(
        cli.config.read_text().replace('models = ["gpt-4o"]', 'models = ["gpt-4o", "gpt-unheard-of"]')
    )
    result = cli("rates", "check")
    assert result.returncode == 1
    assert result.stderr.startswith("relay: gpt-unheard-of: ")


def test_without_a_relay_there_is_none_to_ask(bare: Cli):
    for word in ("status", "reload", "drain"):
        assert "no relay is running" in bare.fails(word)
    assert not bare.data_dir.exists()


def test_the_running_relay_answers_reloads_and_drains(cli: Cli, host: Callable[[], subprocess.Popen[bytes]]):
    process = host()
    status = cli.json("status")
    assert (status["running"], status["pid"], status["draining"]) == (True, process.pid, False)
    with_rate = cli.config.read_text()
    cli.config.write_text(with_rate.replace('input = "2.5"', 'input = "7"'))
    assert cli.json("rates", "show")["rates"][0]["input"] == "2.5"
    assert cli.json("reload")["reloaded"] is True
    assert cli.json("rates", "show")["rates"][0]["input"] == "7"
    cli.config.write_text(with_rate + "\n[[rates]]\nmodel = 7\n")
    assert "rates[1].model" in cli("reload").stderr
    cli.config.write_text(with_rate)
    assert cli.json("rates", "show")["rates"][0]["input"] == "7"
    assert cli.json("drain")["draining"] is True
    assert process.wait(30) == 0
    assert not (cli.data_dir / "relay.sock").exists()


def test_finding_newcomer_9_a_reload_says_what_it_does_not_apply(cli: Cli, host: Callable[[], subprocess.Popen[bytes]]):
    host()
    text = cli.config.read_text()
    cli.config.write_text(
        text.replace('"127.0.0.1:0"', '"127.0.0.1:1"').replace('input = "2.5"', 'input = "0.0000025"')
    )
    shown = cli("reload").stdout
    assert "server.listen: changed, takes effect at a restart" in shown
    assert sum(line.startswith("warning: ") for line in shown.splitlines()) > 1  # a line each
    # Newcomer 6: a price in the wrong unit; newcomer 5: what a process cannot see.
    answer = cli.json("reload")
    assert any(
        "gpt-4o: input (0.0000025" in line and "below its provider's list price" in line for line in answer["warnings"]
    )
    assert any(
        "env:RELAY_TEST_UPSTREAM_KEY" in line and "file:PATH are read again" in line for line in answer["warnings"]
    )
    assert "configuration reloaded" in (cli.folder / "serve.log").read_text()
    # Newcomer 10: a half-saved file does not lock the operator out of a healthy relay.
    cli.config.write_text(text.partition("[[rates]]")[0] + "[[rates")
    assert cli.json("status")["running"] is True
    assert "not TOML" in cli("reload").stderr


def test_finding_newcomer_10_without_a_relay_a_broken_file_is_said(cli: Cli):
    cli.config.write_text("[server\n")
    assert "config.toml: not TOML" in cli.fails("account", "list")


def test_finding_newcomer_6_check_compares_with_list_prices(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RELAY_TEST_UPSTREAM_KEY", "up-key")
    cli.config.write_text(cli.config.read_text().replace('input = "2.5"', 'input = "0.0000025"'))
    shown = cli.inside("check")
    assert shown.returncode == 0
    assert "gpt-4o: input (0.0000025, discount included) is below its provider's list price (2.5)" in shown.stdout


def test_finding_newcomer_29_rates_check_says_what_the_operator_did(cli: Cli):
    text = cli.config.read_text().replace('["gpt-4o"]', '["gpt-4o", "gpt-5", "o3", "gpt-4o-mini"]')
    cli.config.write_text(text.replace("cache_read = 1", "cache_read = 9"))
    few, many = cli.json("rates", "check")["warnings"], cli.json("rates", "check", "--all")["warnings"]
    assert {line.partition(":")[0] for line in few} == {"gpt-4o"}
    assert len(many) >= len(few)


def test_finding_newcomer_35_output_that_cannot_be_written(cli: Cli):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "relay", "--config", str(cli.config), "terms"],
            stdout=full, stderr=subprocess.PIPE, text=True, env=cli.environment, cwd=cli.folder, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "relay: the output cannot be written: No space left on device\n"


def test_a_second_relay_on_the_same_store_is_refused(cli: Cli, host: Callable[[], object]):
    host()
    cli.environment["RELAY_TEST_UPSTREAM_KEY"] = "up-key"
    second = cli("serve")
    assert second.returncode == 1
    assert "is in use by process" in second.stderr.splitlines()[-1]
    assert "Traceback" not in second.stderr


def test_an_address_in_use_is_said_so(cli: Cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cli.config.write_text(cli.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        cli.environment["RELAY_TEST_UPSTREAM_KEY"] = "up-key"
        result = cli("serve")
    assert result.returncode == 1
    assert "in use" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_backup_of_either(either: Cli, tmp_path: Path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    either.json("account", "create", "--email", "a@example.com")
    made = either("backup", "copy.db", "--json", cwd=folder)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["bytes"] == (folder / "copy.db").stat().st_size
    again = either("backup", "copy.db", cwd=folder)
    assert again.returncode == 1


def test_commands_at_the_same_time_wait_for_each_other(cli: Cli):
    def create(number: int) -> Result:
        return cli("account", "create", "--email", f"a{number}@example.com")

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(create, range(4)))
    assert [result.returncode for result in results] == [0] * 4, [result.stderr for result in results]
    assert len(cli.json("account", "list")) == 4


def test_a_socket_left_by_a_killed_process_is_no_obstacle(cli: Cli, host: Callable[[], subprocess.Popen[bytes]]):
    process = host()
    cli.json("account", "create", "--email", "a@example.com")
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    assert (cli.data_dir / "relay.sock").exists()
    assert cli.json("account", "list")["id"] == "acct_1"
    host()
    assert cli.json("account", "list")["id"] == "acct_1"


def test_an_answer_that_breaks_off_is_said_so(bare: Cli):
    bare.data_dir.mkdir()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(bare.data_dir / "relay.sock"))
    server.listen()

    def answer() -> None:
        connection, _ = server.accept()
        connection.recv(65_536)
        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"half": ')
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        assert "broke off" in bare.fails("terms")
    finally:
        thread.join(10)
        server.close()


def test_a_reader_that_has_enough_is_no_fault(cli: Cli):
    process = subprocess.Popen(
        [sys.executable, "-m", "relay", "--config", str(cli.config), "terms"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=cli.environment, cwd=cli.folder,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate(timeout=60)
    assert stderr == b""


def test_a_lost_pepper_stops_commands_with_a_clear_line(cli: Cli):
    cli.json("account", "create", "--email", "a@example.com")
    (cli.data_dir / "pepper").unlink()
    assert "pepper" in cli.fails("key", "create", "acct_1")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("credit", "add", "acct_1", "-5"), "expected a positive amount; only --kind adjustment may take credits"),
        (("credit", "add", "acct_1", "1e3"), "amount: expected decimal credits such as 12.5, with at most 9 decimals"),
        (("credit", "add", "acct_1", "99999999999999999999"), "at most 1000000000"),
        (("key", "create", "acct_1", "--rpm", "-1"), "expected a whole number from 0 (no limit) to 1000000000000"),
        (("key", "create", "acct_1", "--rpm", "1" + 21 * "0"), "from 0 (no limit) to 1000000000000, or 'default'"),
        (("key", "create", "acct_1", "--on-disconnect", "ignore"), "expected cancel, drain or default"),
        (("calls", "--since", "yesterday"), "or an age such as 24h or 7d"),
        (("key", "create", "acct_1", "--expires", "none"), "null (--expires default) is never"),
        (("calls", "--csv", "--json"), "--csv and --json exclude each other"),
        (("account",), "relay account: name a command (see relay account --help)"),
        ((), "relay: name a command (see relay --help)"),
        (("demo", "--json"), "relay demo: unrecognized arguments: --json (see relay demo --help)"),
        (("calls", "--nope"), "relay calls: unrecognized arguments: --nope (see relay calls --help)"),
        (("calls", "--limit", "-3"), "expected a whole number from 0 to 999999999"),
        (("calls", "show", "call_x"), "call_ and 13 letters and digits"),
    ],
)  # fmt: skip
def test_finding_newcomer_27_refusals_say_what_is_expected(cli: Cli, words: tuple[str, ...], expected: str):
    cli.json("account", "create", "--email", "a@example.com")
    result = cli(*words)
    assert result.returncode in (1, 2)
    assert expected in result.stderr


def test_finding_newcomer_32_the_version(cli: Cli):
    assert cli("--version").stdout == cli("version").stdout


def test_finding_newcomer_28_what_is_probably_not_meant_is_said(either: Cli):
    made = either("account", "create", "--email", "jürgen@bücher.de", "--organisation", "Acme")
    assert made.stderr == ""
    assert "jürgen@bücher.de" in made.stdout  # newcomer 36
    typo = either("account", "set", "acct_1", "--organisation", "Acmee")
    assert typo.stderr == "warning: there was no organisation of this name: org_2 was made, with no limits of its own\n"
    key = either("key", "create", "acct_1", "--model", "no-such-model", "--daily-limit", "5", "--monthly-limit", "1")
    assert key.stderr.splitlines() == [
        "warning: no channel serves no-such-model",
        "warning: the daily limit (5) is above the monthly one (1)",
    ]
    pattern = either("key", "create", "acct_1", "--model", "nothing-*").stderr
    assert pattern == "warning: no channel serves a model that begins as nothing-*\n"
    either("account", "freeze", "acct_1")
    assert "account acct_1 is frozen" in either("key", "create", "acct_1").stderr
