"""No content of a call is anywhere but on its two connections: canaries in every place where content can stand."""

import asyncio
import base64
import contextlib
import gzip
import http.client
import json
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from relay import quiet
from relay.simulator import Running
from tests.functional.raw_upstream import Close, RawUpstream, Reset
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.setting import BODY_BYTES_MAX, OPERATOR_TOKEN, config_text
from tests.support.canaries import Canaries, files_below
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

# Starts the relay with a fault of its own in the middle of a call: an exception whose text, and a log line whose
# argument, is what the client sent.
FAULTY = """
import asyncio, logging, sys, warnings
from relay.proxy import hooks
from relay import cli

def clean_agent(self, agent):
    text = agent.decode("latin-1")
    if "fault" not in text:
        return "-"
    loop = asyncio.get_running_loop()
    async def fail():
        raise ValueError(text)
    def fail_now(text):
        raise ValueError(text)
    logging.getLogger("somebody.else").debug("received %r", text)
    logging.getLogger("somebody.else").error("received " + text)
    warnings.warn("received " + text)
    loop.create_task(fail())
    loop.call_soon(fail_now, text)
    loop.run_in_executor(None, fail_now, text)
    class Unraisable:
        def __del__(self):
            raise ValueError(text)
    Unraisable()
    raise ValueError(text)

hooks.Hooks.clean_agent = clean_agent
sys.exit(cli.main(sys.argv[1:]))
"""
PLANTED = """
import logging, sys
from relay.proxy import hooks
from relay import cli

def clean_agent(self, agent):
    logging.getLogger("relay").debug("agent %s", agent.decode())
    return "-"

hooks.Hooks.clean_agent = clean_agent
sys.exit(cli.main(sys.argv[1:]))
"""


MADE: list[RelayProcess] = []


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def _ended() -> AsyncIterator[None]:
    """However a test ends, its relays end with it."""
    yield
    while MADE:
        await MADE.pop().kill()


class Debugged(RelayProcess):
    """A relay with everything logged; `program` wraps its command line."""

    def launched_by(self, program: str) -> "Debugged":
        script = self.folder / "program.py"
        script.write_text(program)
        self.program = (str(script),)
        return self


def debugged(folder: Path, simulator: Running, raw: RawUpstream) -> Debugged:
    folder.mkdir(exist_ok=True)
    (folder / "tmp").mkdir()
    environment = {
        "RELAY_LOG_LEVEL": "debug",
        "PYTHONASYNCIODEBUG": "1",
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    text = config_text(simulator.base_url, raw.base_url).replace("unknown_models = true\n", "")
    relay = Debugged(folder, text, environment=environment)
    MADE.append(relay)
    return relay


async def exchange(relay: RelayProcess, message: bytes, seconds: float = 10.0) -> bytes:
    """Sends bytes and reads until the relay closes or is silent for a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    answer = b""
    try:
        writer.write(message)
        async with asyncio.timeout(seconds):
            while data := await asyncio.wait_for(reader.read(65536), 0.3 if answer else seconds):
                answer += data
    except (TimeoutError, OSError):
        pass
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return answer


def post(secret: str, body: bytes | dict[str, Any], path: str = "/v1/chat/completions", *fields: str) -> bytes:
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: relay", f"Authorization: Bearer {secret}", *fields]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def requests(put: Canaries, secret: str) -> Iterator[bytes]:
    """What a client could send, with a canary in each place."""

    def chat(**more: Any) -> dict[str, Any]:
        return {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], **more}

    image = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + put("image").encode() * 3).decode()
    yield post(
        secret,
        chat(
            messages=[
                {"role": "system", "content": put("system prompt")},
                {"role": "user", "content": [
                    {"type": "text", "text": put("user prompt")},
                    {"type": "image_url", "image_url": {"url": image}},
                    {"type": "file", "file": {"filename": put("file name"), "file_data": put("file data")}},
                ]},
                {"role": "assistant", "tool_calls": [{
                    "id": put("tool call id"), "type": "function",
                    "function": {"name": "f", "arguments": json.dumps({"q": put("tool arguments")})},
                }]},
                {"role": "tool", "tool_call_id": "x", "content": put("tool result")},
            ],
            tools=[{"type": "function", "function": {"name": put("tool name"), "description": put("tool text")}}],
            user=put("user field"),
            metadata={put("metadata key"): put("metadata value")},
            stop=[put("stop")],
            **{put("unknown field"): put("value of an unknown field")},
        ),
    )  # fmt: skip
    yield post(secret, chat(stream=True, user=put("user field of a stream")))
    yield post(secret, chat(), "/v1/chat/completions", f"X-Custom: {put('header value')}", f"Cookie: c={put('cookie')}")
    yield post(secret, chat(), f"/v1/chat/completions?trace={put('query string')}")
    yield post(secret, chat(), f"/v1/chat/completions?key={put('key in the query')}")
    yield post(secret, b'{"model": "gpt-4o", "messages": [{"content": "' + put("bad JSON").encode() + b'"')
    yield post(secret, b'{"model": ' + put("bad JSON value").encode() + b"}")
    yield post(secret, chat(model=put("unknown model")))
    yield post(secret, chat(stream=put("value of a wrong type")))
    yield post(secret, chat(), f"/v1/{put('unknown path')}")
    yield post(secret, {"contents": []}, f"/v1beta/models/{put('model in the path')}:generateContent")
    yield post(f"sk-{put('bad key')}", chat())
    yield post(secret, chat(), "/v1/chat/completions", f"x-relay-max-cost: {put('bad amount')}")
    yield post(secret, chat(user=put("oversized body"), pad="x" * BODY_BYTES_MAX))
    yield post(
        secret, gzip.compress(json.dumps(chat(user=put("compressed body"))).encode()), "/v1/chat/completions",
        "Content-Encoding: gzip",
    )  # fmt: skip
    chunked = f"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer {secret}\r\n"
    chunked += "Transfer-Encoding: chunked\r\n\r\n"
    yield chunked.encode() + f"{put('bad chunk')}\r\n".encode()
    yield chunked.encode() + b"5\r\n" + put("chunk of a wrong size").encode() + b"\r\n0\r\n\r\n"
    yield f"{put('bad method')} / HTTP/1.1\r\nHost: r\r\n\r\n".encode()
    yield f"GET /{put('path of a bad request')} HTTP/1.1\r\nHost: r\r\nBad Field: {put('bad field')}\r\n\r\n".encode()
    yield f"GET / HTTP/1.1\r\nHost: {put('bad host')}/?\r\n\r\n".encode()
    yield f"GET / HTTP/{put('bad version')}\r\nHost: r\r\n\r\n".encode()
    yield put("no HTTP at all").encode() * 500 + b"\r\n\r\n"
    yield f"GET /relay/v1/{put('customer path')} HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer {secret}\r\n\r\n".encode()
    yield f"GET /admin/v1/{put('admin path')} HTTP/1.1\r\nHost: r\r\nAuthorization: Bearer x\r\n\r\n".encode()
    yield post(
        secret,
        {"model": "claude-sonnet-5", "max_tokens": 5, "system": put("system of messages"),
         "messages": [{"role": "user", "content": put("text of messages")}]},
        "/v1/messages",
    )  # fmt: skip
    yield post(
        secret, {"contents": [{"parts": [{"text": put("text of contents")}]}]},
        "/v1beta/models/gemini-2.5-flash:generateContent",
    )  # fmt: skip
    # A body that breaks off.
    yield post(secret, chat(user=put("user of a broken body")))[:-3]


def answers(put: Canaries, raw: RawUpstream) -> Iterator[str]:
    """Names of scripts: what an upstream could answer, with a canary in each place."""

    def whole(body: bytes, status: str = "200 OK", *fields: bytes) -> bytes:
        lines = [f"HTTP/1.1 {status}".encode(), b"Content-Type: application/json", *fields]
        return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", b""]) + body

    def stream(*events: bytes, last: bool = True) -> bytes:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + b"".join(b"%x\r\n%s\r\n" % (len(e), e) for e in events) + (b"0\r\n\r\n" if last else b"")

    def script(*steps: Any) -> str:
        return raw.script(*steps)[0]

    def delta(**fields: str) -> bytes:
        return b"data: " + json.dumps({"choices": [{"index": 0, "delta": fields}]}).encode() + b"\n\n"

    message = {"role": "assistant", "content": put("response text"), "reasoning_content": put("reasoning")}
    message["refusal"] = put("refusal")
    yield script(whole(json.dumps({"id": put("response id"), "choices": [{"message": message}]}).encode()))
    yield script(whole(put("text instead of JSON").encode()))
    yield script(whole(b"{" + put("broken JSON").encode()))
    for status in ("400 Bad Request", "401 Unauthorized", "429 Too Many Requests", "500 Internal Server Error"):
        error = {"error": {"message": put(f"error {status}"), "type": put("error type"), "code": put("error code")}}
        yield script(whole(json.dumps(error).encode(), status))
    yield script(whole(b"{}", f"200 {put('reason phrase')}"))
    yield script(whole(b"{}", "200 OK", f"X-Trace: {put('response header')}".encode()))
    yield script(whole(b"{}", "200 OK", f"Bad Header {put('bad response header')}".encode()))
    yield script(f"HTTP/1.1 {put('bad status line')}\r\n\r\n".encode())
    yield script(put("no HTTP in the answer").encode() + b"\r\n\r\n", Close())
    yield script(whole(f'{{"x": "{put("gzip that is none")}"}}'.encode(), "200 OK", b"Content-Encoding: gzip"))
    deltas = delta(content=put("delta")), delta(reasoning_content=put("reasoning delta")), b"data: [DONE]\n\n"
    yield script(stream(*deltas))
    yield script(stream(f": {put('comment')}\n\n".encode(), f"event: {put('event name')}\ndata: x\n\n".encode()))
    yield script(stream(delta(content=put("event before a reset")), last=False), Reset())
    yield script(stream(delta(content=put("truncated event"))[:-9], last=False), Close())
    yield script(stream(b'data: {"choices": "\xff\xfe' + put("not UTF-8").encode() + b'"}\n\n'))
    yield script(stream(b'data: {"error": {"message": "' + put("error event").encode() + b'"}}\n\n'))
    yield script(stream(last=False) + f"{put('bad chunk size')}\r\n".encode(), Close())
    yield script(whole(b"{}") + put("bytes behind the answer").encode())


async def send_everything(relay: RelayProcess, customer: Customer, put: Canaries, raw: RawUpstream) -> None:
    for message in requests(put, customer.secret):
        await exchange(relay, message)
    for name in answers(put, raw):
        body = {"model": "raw-chat", "stream": True, "messages": [{"role": "user", "content": name}]}
        await exchange(relay, post(customer.secret, body))


def get(port: int, path: str, token: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().read()
    finally:
        connection.close()


async def shown(relay: RelayProcess, customer: Customer) -> list[tuple[str, bytes]]:
    """What the relay tells operators, customers and Prometheus."""
    found = []
    for path in ("/metrics", "/readyz", "/healthz", "/admin/v1/status", "/admin/v1/events", "/admin/v1/calls"):
        found.append((path, await asyncio.to_thread(get, relay.port, path, OPERATOR_TOKEN)))
    for path in ("/relay/v1/calls", "/relay/v1/balance", "/relay/v1/limits", "/relay/v1/rates", "/v1/models"):
        found.append((path, await asyncio.to_thread(get, relay.port, path, customer.secret)))
    for name in ("status", "events", "calls"):
        found.append((name, json.dumps(await relay.command(name)).encode()))
    return found


def logged(relay: RelayProcess) -> tuple[str, bytes]:
    return "the log", "\n".join(relay.log).encode()


async def test_content_is_nowhere(simulator: Running, raw: RawUpstream, tmp_path: Path):
    """After errors and successes, then at the death of the process in the middle of calls, then after its recovery."""
    put = Canaries()
    relay = debugged(tmp_path, simulator, raw)
    await relay.start()
    customer = await relay.customer()
    await send_everything(relay, customer, put, raw)
    assert len(put.places) >= 60
    told = await shown(relay, customer)
    assert sum(path.startswith("/") for path, _ in told) == 11
    assert all(content for _, content in told)
    assert put.found([*told, *files_below(tmp_path), logged(relay)]) == []
    # Streams, a request that arrives slowly, and one that waits for its answer, when the process is killed.
    open_ends = []
    for text in ("stream that is killed", "request that is killed"):
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        body = {
            "model": "gpt-4o", "stream": True, "user": put(text),
            "messages": [{"role": "user", "content": f"{put(text)} #sim events=500 pace_ms=20#"}],
        }  # fmt: skip
        writer.write(post(customer.secret, body)[: None if "stream" in text else -5])
        if "stream" in text:
            await reader.readuntil(b"data:")
        open_ends.append(writer)
    await relay.kill()
    for writer in open_ends:
        writer.close()
    assert put.found([*files_below(tmp_path), logged(relay)]) == []
    await relay.start()
    told = await shown(relay, customer)
    assert put.found([*told, *files_below(tmp_path), logged(relay)]) == []
    await relay.cli("backup", str(tmp_path / "copy.db"))
    assert await relay.stop() == 0
    assert (tmp_path / "copy.db").exists()
    assert put.found([*files_below(tmp_path), logged(relay)]) == []


async def test_faults_of_our_own_tell_no_content(simulator: Running, raw: RawUpstream, tmp_path: Path):
    put = Canaries()
    relay = debugged(tmp_path, simulator, raw).launched_by(FAULTY)
    await relay.start()
    customer = await relay.customer()
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": put("user prompt")}]}
    answer = await exchange(
        relay, post(customer.secret, body, "/v1/chat/completions", f"User-Agent: fault {put('text of an exception')}")
    )
    # All of these were reported, none with its text.
    expected = ("internal fault ValueError", "unhandled in the event loop: ValueError", "unraisable: ValueError",
                "somebody.else: a message from", "py.warnings: a message from")  # fmt: skip
    await until(lambda: all(any(part in line for line in relay.log) for part in expected), what=str(expected))
    assert put.found([("the answer", answer), logged(relay), *files_below(tmp_path)]) == []
    assert await relay.stop() == 0
    assert put.found([logged(relay), *files_below(tmp_path)]) == []


async def test_the_search_finds_a_planted_leak(simulator: Running, raw: RawUpstream, tmp_path: Path):
    put = Canaries()
    relay = debugged(tmp_path, simulator, raw).launched_by(PLANTED)
    await relay.start()
    customer = await relay.customer()
    body = {"model": "gpt-4o", "messages": []}
    agent = put("planted")
    await exchange(relay, post(customer.secret, body, "/v1/chat/completions", f"User-Agent: {agent}"))
    assert "planted (raw) in the log" in put.found([logged(relay)])
    for form, content in {
        "raw": b'x"' + agent.encode(),
        "JSON": "".join(f"\\u{ord(c):04x}" for c in agent).encode(),
        "base64": base64.b64encode(b"12" + agent.encode() + b"345"),
        "URL": "".join(f"%{ord(c):02X}" for c in agent).encode(),
        "hex": agent.encode().hex().upper().encode(),
        "UTF-16": ("\u4e2d" + agent).encode("utf-16-le"),
        "first half": agent[:15].encode(),
    }.items():
        assert f"planted ({form}) in a file" in put.found([("a file", content)]), form
    await relay.stop()


async def test_no_core_and_not_dumpable(simulator: Running, raw: RawUpstream, tmp_path: Path):
    relay = RelayProcess(tmp_path, config_text(simulator.base_url, raw.base_url))
    MADE.append(relay)
    await relay.start()
    assert resource.prlimit(relay.pid, resource.RLIMIT_CORE) == (0, 0)
    # The files of an undumpable process belong to root, whoever runs it; its memory map is closed to its own user.
    state = os.stat(f"/proc/{relay.pid}/mem")
    assert (state.st_uid, state.st_gid) == (0, 0)
    relay.signal(signal.SIGABRT)
    assert await relay.wait() == -signal.SIGABRT
    assert not any("Fatal Python error" in line or "File " in line for line in relay.log)  # no faulthandler
    assert not [name for name, _ in files_below(tmp_path) if "core" in name.rpartition("/")[2]]


async def test_the_switch_for_tracing_is_warned_about(simulator: Running, raw: RawUpstream, tmp_path: Path):
    text = config_text(simulator.base_url, raw.base_url)
    relay = RelayProcess(tmp_path, text, environment={"RELAY_ALLOW_TRACING": "1"})
    MADE.append(relay)
    await relay.start()
    assert any("WARNING" in line and "RELAY_ALLOW_TRACING" in line for line in relay.log)
    assert resource.prlimit(relay.pid, resource.RLIMIT_CORE) == resource.getrlimit(resource.RLIMIT_CORE)
    await relay.stop()


async def test_an_unknown_log_level_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RELAY_LOG_LEVEL", "verbose")
    with pytest.raises(quiet.LogLevelError, match="RELAY_LOG_LEVEL: one of debug, info"):
        quiet.level()
    monkeypatch.setenv("RELAY_LOG_LEVEL", "Debug")
    assert quiet.level() == logging.DEBUG
