"""The load client against the simulated upstream: what is right counts, what is wrong is seen."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.build import Tools, build
from benchmarks.cases import Case, json_case, request_head, stream_case, write_requests
from benchmarks.contenders import CHAT_PATH, CONTENDERS, Certificates, Target, make_certificates
from benchmarks.processes import Cores, Programs, free_port
from benchmarks.runner import Runner
from benchmarks.scenarios import Load, Scenario


@pytest.fixture(scope="module")
def tools() -> Tools:
    return build()


class Bench:
    """An upstream with one case, and load clients that may be told another one."""

    def __init__(self, tools: Tools, directory: Path, case: Case, certificates: Certificates | None = None) -> None:
        self.tools, self.directory, self.case, self.certificates = tools, directory, case, certificates
        self.port = free_port()
        self.programs = Programs(directory)

    async def __aenter__(self) -> "Bench":
        file = self.directory / "upstream-case"
        self.case.write(file, 0)
        command: list[str | Path] = [self.tools.upstream, "--listen", f"127.0.0.1:{self.port}"]
        if self.certificates:
            command += ["--certificate", self.certificates.certificate, "--key", self.certificates.key]
        program = self.programs.start("upstream", [*command, file], None)
        while "ready" not in program.output():
            program.check()
            await asyncio.sleep(0.005)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.programs.stop_all()

    async def load(self, case: Case | None = None, port: int = 0, **options: object) -> dict:
        """The load client's result."""
        case = case or self.case
        file, heads = self.directory / "client-case", self.directory / "heads"
        case.write(file, 0)
        write_requests(heads, [request_head("127.0.0.1", CHAT_PATH, "sk-x", len(case.body(0)))])
        command = [str(self.tools.load), "--connect", f"127.0.0.1:{port or self.port}", "--case", str(file)]
        command += ["--requests", str(heads)]
        if self.certificates:
            command += ["--tls", "1", "--server-name", "localhost", "--authority", str(self.certificates.authority)]
        settings = {"connections": 4, "warmup": 0.05, "duration": 0.25, "drain": 2} | options
        for name, value in settings.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        assert process.returncode == 0
        documents = [json.loads(line) for line in out.splitlines()]
        assert [d["mark"] for d in documents if "mark" in d] == ["start", "end"]
        return documents[-1]["result"]

    async def stats(self) -> dict:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET /bench/stats HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        writer.close()
        await writer.wait_closed()
        return json.loads(body)


CASES = [
    json_case(),
    json_case("large", 300_000),
    stream_case("flood", 12),
    stream_case("paced", 12, gap_us=2000),
    stream_case("burst", 20, gap_us=4000, packet_events=8),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_every_call_is_answered_and_compared(tools: Tools, tmp_path: Path, case: Case) -> None:
    async with Bench(tools, tmp_path, case) as bench:
        result = await bench.load()
        stats = await bench.stats()
    assert result["faults"] == {}
    assert result["unfinished"] == 0
    assert result["finished"] == result["started"] == stats["answered"] > 0
    assert stats["body_mismatches"] == stats["unknown_cases"] == stats["bad_requests"] == 0
    if case.stream:
        assert result["all_events"] == stats["events"] == result["finished"] * len(case.pieces)
        assert 0 < result["lateness_us"]["p50"] < 1_000_000


async def test_open_loop_counts_from_the_time_a_call_was_due(tools: Tools, tmp_path: Path) -> None:
    slow = replace(json_case(), delay_us=20_000)
    async with Bench(tools, tmp_path, slow) as bench:
        result = await bench.load(connections=1, rate=200)  # one connection can take 50 per second: calls queue up
    assert result["faults"] == {}
    assert result["queued_max"] > 5
    assert result["latency_us"]["p99"] > 100_000


async def test_a_new_connection_for_every_call(tools: Tools, tmp_path: Path) -> None:
    async with Bench(tools, tmp_path, json_case()) as bench:
        result = await bench.load(per_call_connection=1)
    assert result["faults"] == {}
    assert result["connects"] == result["started"]


@pytest.mark.parametrize("case", [json_case(), stream_case("paced", 8, gap_us=1000)], ids=["json", "stream"])
async def test_tls(tools: Tools, tmp_path: Path, case: Case) -> None:
    if not tools.tls:
        pytest.skip("no OpenSSL headers")
    async with Bench(tools, tmp_path, case, make_certificates(tmp_path)) as bench:
        result = await bench.load()
        again = await bench.load(per_call_connection=1)
    for one in (result, again):
        assert one["faults"] == {}
        assert one["finished"] == one["started"] > 0


@pytest.mark.parametrize(
    "other",
    [
        replace(stream_case("s", 8), pieces=(*stream_case("s", 8).pieces[:-1], b"data: [DONE] \n\n")),
        replace(stream_case("s", 8), pieces=stream_case("s", 8).pieces[:-1]),
        replace(stream_case("s", 8), pieces=(*stream_case("s", 8).pieces, b": more\n\n")),
    ],
    ids=["changed", "longer than expected", "shorter than expected"],
)
async def test_a_wrong_answer_is_a_fault(tools: Tools, tmp_path: Path, other: Case) -> None:
    async with Bench(tools, tmp_path, stream_case("s", 8)) as bench:
        result = await bench.load(other)
    assert result["faults"]["mismatch"] > 0
    assert result["finished"] == 0
    assert result["first_fault"].startswith("mismatch")


async def test_a_changed_request_body_is_counted(tools: Tools, tmp_path: Path) -> None:
    case = json_case()
    changed = replace(case, messages=[case.messages[0], {"role": "user", "content": "other"}])
    async with Bench(tools, tmp_path, case) as bench:
        result = await bench.load(changed)
        stats = await bench.stats()
    assert stats["body_mismatches"] == result["finished"] > 0


async def test_nobody_listens(tools: Tools, tmp_path: Path) -> None:
    async with Bench(tools, tmp_path, json_case()) as bench:
        result = await bench.load(port=free_port())
    assert result["finished"] == 0
    assert set(result["faults"]) == {"connect"}


def test_a_scenario_runs_and_leaves_no_process(tools: Tools) -> None:
    scenario = Scenario("tiny", "", json_case, Load(connections=2, warmup_seconds=0.05, duration_seconds=0.2), ())
    started: list[Programs] = []

    def start(setting):  # type: ignore[no-untyped-def]
        started.append(setting.programs)
        return Target("direct", "127.0.0.1", setting.upstream_port, False, None)

    runner = Runner(tools, Cores(None, None), lambda _: None, lambda _: None)
    result = runner.run(scenario, {"direct": start}, rounds=2)
    assert result.all_wrong == []
    assert [sample.round for sample in result.samples["direct"]] == [1, 2]
    assert all(sample.figures["calls_per_second"] > 0 for sample in result.samples["direct"])
    assert started[0].started == []


def test_relay_takes_part_fresh_and_grown(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set up by commands, its books compared; so is a store with others' keys and calls in it."""
    load = Load(connections=2, warmup_seconds=0.05, duration_seconds=0.2)
    scenario = Scenario("tiny", "", json_case, load, (), keys=3, stock=(1000, 10_000))
    monkeypatch.setattr("benchmarks.relay_contender.STARTS_GROWN", 2)
    said: list[str] = []
    runner = Runner(tools, Cores(None, None), said.append, lambda _: None)
    names = ("relay", "relay-grown")
    result = runner.run(scenario, {name: CONTENDERS[name] for name in names}, rounds=1)
    assert (said, result.all_wrong, result.unavailable) == ([], [], {})
    assert [name for name in names if result.samples[name][0].figures["cpu_us_per_call"] > 0] == [*names]
