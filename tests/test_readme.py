"""What README.md and the demo's banner tell people to paste is pasted here, into real processes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.errors import ERRORS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
RELAY = [sys.executable, "-m", "relay"]


def blocks(language: str, text: str = README) -> list[str]:
    """Fenced code blocks, without the indentation of the list that they may stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


class Demo:
    """`relay demo` on a free port, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [*RELAY, "demo", "--listen", "127.0.0.1:0"],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.banner = ""
        for line in self.process.stdout:
            self.banner += line
            if line.startswith("What is left"):
                break
        self.address = re.search(r"127\.0\.0\.1:\d+", self.banner)[0]  # type: ignore[index]
        self.secret = re.search(r"sk-\w+-\w+", self.banner)[0]  # type: ignore[index]

    def stop(self) -> tuple[int, list[str]]:
        """The exit status, and what stands on stderr beside the lines of calls."""
        self.process.send_signal(signal.SIGINT)
        self.output, errors = self.process.communicate(timeout=30)
        self.calls = [line for line in errors.splitlines() if line.startswith('{"id":"call_')]
        return self.process.returncode, [line for line in errors.splitlines() if line not in self.calls]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    running = Demo(tmp_path_factory.mktemp("demo"))
    yield running
    assert running.stop() == (0, [])


def run(command: list[str], code: str = "", cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        command, input=code, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=60, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pasted(text: str, demo: Demo) -> str:
    return text.replace("127.0.0.1:8787", demo.address).replace("sk-...", demo.secret)


@pytest.mark.parametrize("snippet", blocks("python"), ids=["openai", "anthropic", "gemini"])
def test_a_snippet_of_the_readme_prints_an_answer(demo: Demo, snippet: str) -> None:
    assert run([sys.executable, "-"], pasted(snippet, demo)).strip()


def test_the_readmes_curl_prints_an_answer(demo: Demo) -> None:
    assert '"chat.completion"' in run(["bash"], pasted(blocks("sh")[0], demo))


@pytest.mark.parametrize(
    "path", ["/v1/v1/", "/", "/v1//", "//v1/", "/v1beta/openai/"], ids=lambda path: path.replace("/", "_")
)
def test_finding_newcomer_31_a_base_url_that_is_nearly_right_works(demo: Demo, path: str) -> None:
    curl = blocks("sh")[0]
    assert "/v1/chat/completions \\" in curl
    curl = curl.replace("/v1/chat/completions", f"{path}chat/completions/")
    assert '"chat.completion"' in run(["bash"], pasted(curl, demo))


def test_what_the_demo_prints_works_when_pasted(demo: Demo) -> None:
    curl = re.search(r"^curl .*?'$", demo.banner, re.MULTILINE | re.DOTALL)
    assert curl is not None
    assert '"chat.completion"' in run(["bash"], curl[0])
    snippets = re.split(r"^Python .*:$", demo.banner.partition("As its operator")[0], flags=re.MULTILINE)[1:]
    assert len(snippets) == 2
    for snippet in snippets:
        assert run([sys.executable, "-"], snippet).strip()
    assert '"balance"' in run(["bash"], demo.banner.partition("as the customer:")[2])


def test_finding_newcomer_26_the_demo_can_be_operated_and_is_kept(tmp_path: Path) -> None:
    """Commands work as printed, the key works after a restart, each call leaves a line, the end says what is kept."""
    first = Demo(tmp_path)
    commands = re.findall(r"^/.* -m relay --config .*(?:calls|list)$", first.banner, re.MULTILINE)
    assert len(commands) == 2
    curl = re.search(r"^curl .*?'$", first.banner, re.MULTILINE | re.DOTALL)
    assert curl is not None
    run(["bash"], curl[0])
    assert "gpt-4o" in run(["bash"], commands[0])
    assert "demo@example.com" in run(["bash"], commands[1])
    assert first.stop() == (0, [])
    assert len(first.calls) == 1
    assert f"stopped; account, key and calls are kept in {tmp_path / '.demo'}" in first.output
    second = Demo(tmp_path)
    assert second.secret == first.secret
    assert "(99.9" in second.banner
    assert '"chat.completion"' in run(["bash"], curl[0].replace(first.address, second.address))
    assert "gpt-4o" in run(["bash"], commands[0])
    assert second.stop() == (0, [])
    assert (tmp_path / ".demo" / "key").stat().st_mode & 0o077 == 0


def test_the_demo_serves_a_realtime_session(demo: Demo) -> None:
    program = """
from openai import OpenAI
client = OpenAI(base_url="http://127.0.0.1:8787/v1", api_key="sk-...")
with client.realtime.connect(model="gpt-realtime") as connection:
    connection.response.create(response={"instructions": "Hello #sim events=5#", "output_modalities": ["text"]})
    for event in connection:
        if event.type == "response.done":
            print(event.response.usage.output_tokens)
            break
"""
    assert run([sys.executable, "-"], pasted(program, demo)).strip() == "5"


def test_the_steps_to_a_real_relay(tmp_path: Path, demo: Demo) -> None:
    """From config.toml to the books, with the demo as the provider."""
    steps = README.partition("## Run it for real")[2].partition("\n## ")[0]
    (config,) = blocks("toml", steps)
    _, start, account, look = blocks("sh", steps)
    upstream = f"http://{demo.address}/v1"
    (tmp_path / "config.toml").write_text(
        '[server]\nlisten = "127.0.0.1:0"\n' + config.replace("https://api.openai.com/v1", upstream)
    )
    key_upstream = {"OPENAI_API_KEY": demo.secret}
    assert start.splitlines()[1:] == ["relay check", "relay serve &"]
    assert "usable" in run([*RELAY, "check"], cwd=tmp_path, **key_upstream)
    relay = subprocess.Popen(
        [*RELAY, "serve"], env=ENVIRONMENT | key_upstream, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    try:
        assert relay.stderr is not None
        for line in relay.stderr:
            if "listening on" in line:
                break
        address = line.split()[-1]
        shell = f'relay() {{ "{sys.executable}" -m relay "$@"; }}; set -e\n'
        secret = re.search(r"sk-\w+-\w+", run(["bash"], shell + account, tmp_path))
        assert secret is not None
        call = blocks("sh")[0].replace("127.0.0.1:8787", address).replace("sk-...", secret[0])
        assert '"chat.completion"' in run(["bash"], call)
        shown = run(["bash"], shell + look, tmp_path)
        assert "gpt-4o" in shown
        assert "every balance agrees" in shown
    finally:
        relay.terminate()
        assert relay.wait(30) == 0
        assert relay.stderr is not None
        relay.stderr.close()


def test_a_taken_port_is_one_clear_line(demo: Demo, tmp_path: Path) -> None:
    done = subprocess.run(
        [*RELAY, "demo", "--listen", demo.address],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"relay: cannot listen on {demo.address}: Address already in use. On another port: ")
    assert "make run LISTEN=" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("listen", ["unix:demo.sock", "8790", "127.0.0.1:99999", ':"'])
def test_the_demo_needs_a_port(listen: str, tmp_path: Path) -> None:
    """The fault is in what was typed, not in a file that the demo has written itself."""
    done = subprocess.run(
        [*RELAY, "demo", "--listen", listen], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.startswith("relay: --listen: expected HOST:PORT")
    assert done.stderr.count("\n") == 1


def test_a_second_demo_in_a_folder_says_that_one_runs(demo: Demo) -> None:
    done = subprocess.run(
        [*RELAY, "demo", "--listen", "127.0.0.1:0"],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60, cwd=demo.folder,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith(f"is in use by process {demo.process.pid}: a demo of this folder runs already\n")


def test_the_demo_takes_no_configuration() -> None:
    done = subprocess.run(
        [*RELAY, "--config", "x.toml", "demo"], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "--config does not apply" in done.stderr


def test_the_readmes_stream_is_charged_by_what_the_provider_reports(demo: Demo) -> None:
    """The demo's provider reports usage in streams only when asked, and the snippet does not ask."""
    stream = next(snippet for snippet in blocks("python") if "stream=True" in snippet)
    run([sys.executable, "-"], pasted(stream, demo))
    command = [*RELAY, "--config", str(demo.folder / ".demo" / "config.toml"), "--json", "calls", "--limit", "1"]
    assert json.loads(run(command))["usage_source"] == "upstream"


def test_what_the_operations_page_has_written_can_be_written_under_the_unit() -> None:
    """ProtectSystem=strict leaves the service its own folders: backups and access logs have to be told to go there."""
    unit = (ROOT / "packaging" / "systemd" / "relay.service").read_text()
    assert "ProtectSystem=strict" in unit
    [state] = re.findall(r"^StateDirectory=(.*)$", unit, re.MULTILINE)
    [logs] = re.findall(r"^LogsDirectory=(.*)$", unit, re.MULTILINE)
    folders = {f"/var/lib/{name}" for name in state.split()} | {f"/var/log/{name}" for name in logs.split()}
    page = (ROOT / "docs" / "operations.md").read_text()
    backups = re.findall(r"relay backup (/\S+)", page)
    access_logs = re.findall(r'observe\.access_log = "(/[^"]+)"', page)
    assert len(backups) == 2
    assert access_logs
    assert {os.path.dirname(path) for path in backups + access_logs} <= folders


LINK = re.compile(r"\]\(([^)#\s]+)\)")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def test_every_error_code_has_its_place_among_the_endings() -> None:
    page = (ROOT / "docs" / "life-of-a-call.md").read_text()
    assert [code for code in ERRORS if f"`{code}`" not in page] == []
