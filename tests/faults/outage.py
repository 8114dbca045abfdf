"""Three upstreams under steady load, one of them killed and started again: who notices, how much is repeated, and do
the books agree.

The load is open: calls begin at their rate whatever becomes of those before. Upstreams are processes of their own and
die by SIGKILL. Calls whose answer had begun are cut, as they must be; no other client may see anything but 200.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import sys
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.books import rows
from tests.functional.relay_process import REPOSITORY, Customer, RelayProcess, eventually, nano
from tests.functional.setting import channel

NAMES = ("one", "two", "three")
KILLED = NAMES[0]
FIRST_MS = 40
STREAMS = 0.2  # share of the calls
CREDITS = "1000000"


class Upstream:
    """A simulator as a process of its own, on a port that stays."""

    def __init__(self) -> None:
        self.port = 0
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> Upstream:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "relay.simulator", "--port", str(self.port), "--defaults",
            f"first_ms={FIRST_MS} events=5 pace_ms=30", stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 20)
        self.port = int(line.decode().rpartition(":")[2])
        return self

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    async def book(self) -> dict[str, Any]:
        def read() -> Any:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/sim/book?latest=0") as answer:
                return json.load(answer)

        return dict(await asyncio.to_thread(read))


class Connection(asyncio.Protocol):
    """One kept connection of a client; a lean one, because the load has to come from this process."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.received = bytearray()
        self.first_byte = 0.0
        self._length = 0
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.received:
            self.first_byte = asyncio.get_running_loop().time()
        self.received += data
        if self.complete:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._finish()

    @property
    def complete(self) -> bool:
        head = self.received.find(b"\r\n\r\n")
        if head < 0:
            return False
        fields = bytes(self.received[:head]).lower()
        if b"transfer-encoding: chunked" in fields:
            return self.received.endswith(b"0\r\n\r\n")
        at = fields.find(b"content-length: ")
        return at >= 0 and len(self.received) - head - 4 >= int(fields[at + 16 :].split(b"\r", 1)[0])

    async def exchange(self, request: bytes) -> None:
        assert self.transport is not None
        self.received.clear()
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await self._done

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


@dataclass
class Outage:
    """One drill. `report` has what was seen; an assertion fails where the books do not agree."""

    folder: Path
    rng: random.Random
    per_second: float
    before_seconds: float
    down_seconds: float
    after_seconds: float
    routing: str = ""
    finished: int = 0
    cut: int = 0  # answers that had begun
    errors: list[bytes] = field(default_factory=list)  # everything else: there must be none
    first_bytes: dict[str, list[float]] = field(default_factory=dict)  # seconds, by phase
    retried: int = 0
    in_flight: int = 0  # at the killed channel, when it was killed
    seen_seconds: float = 0  # from the kill until the breaker had opened
    probe_seconds: float = 0  # the wait that was left when the upstream came back
    back_seconds: float = 0  # from its return until it was in use again
    probes: int = 0
    shares: Counter[str] = field(default_factory=Counter)  # of calls, at the end
    _phase: str = "before"
    _idle: list[Connection] = field(default_factory=list)
    _open: list[Connection] = field(default_factory=list)

    def config(self, upstreams: dict[str, Upstream]) -> str:
        head = f"[server]\ndrain_seconds = 5\n[plans.open]\n[routing]\n{self.routing}"
        ways = [
            channel(name, "openai", f"http://127.0.0.1:{upstream.port}/v1", '["gpt-4o"]', "sim-key")
            for name, upstream in upstreams.items()
        ]
        return head + "".join(ways) + '[[rates]]\nmodel = "gpt-4o"\ninput = 2.5\noutput = 10\n'

    async def run(self) -> None:
        upstreams = dict(zip(NAMES, await asyncio.gather(*[Upstream().start() for _ in NAMES]), strict=True))
        relay = RelayProcess(self.folder, self.config(upstreams))
        try:
            await relay.start()
            customer = await relay.customer(CREDITS)
            await self._drill(customer, upstreams)
            await self._check(customer, upstreams)
            assert relay.faults == []
            assert await relay.stop() == 0
        finally:
            for connection in self._open:
                if connection.transport is not None:
                    connection.transport.abort()
            await asyncio.sleep(0)  # they are told
            await relay.kill()
            for upstream in upstreams.values():
                await upstream.kill()

    # -- load

    async def _drill(self, customer: Customer, upstreams: dict[str, Upstream]) -> None:
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        load = loop.create_task(self._load(customer, stopping))
        try:
            await asyncio.sleep(self.before_seconds)
            self.in_flight = (await self._channel(customer))["in_flight"]
            self._phase = "down"
            killed = loop.time()
            await upstreams[KILLED].kill()

            async def opened() -> bool:
                return bool((await self._channel(customer))["opened"])

            await eventually(opened, 30)
            self.seen_seconds = loop.time() - killed
            await asyncio.sleep(max(0.0, killed + self.down_seconds - loop.time()))
            await upstreams[KILLED].start()
            started = loop.time()
            state = await self._channel(customer)
            self.probe_seconds = state["retry_seconds"]
            self.probes = state["opened"] - 1

            async def closed() -> bool:
                return (await self._channel(customer))["state"] == "ok"

            await eventually(closed, 90)
            self.back_seconds = loop.time() - started
            self._phase = "after"
            before = await self._counts(upstreams)
            await asyncio.sleep(self.after_seconds)
            self.shares = await self._counts(upstreams)
            self.shares.subtract(before)
        finally:
            stopping.set()
            await load

    async def _counts(self, upstreams: dict[str, Upstream]) -> Counter[str]:
        return Counter({name: (await upstream.book())["requests"] for name, upstream in upstreams.items()})

    async def _channel(self, customer: Customer) -> dict[str, Any]:
        states = (await customer.relay.status())["channels"]
        return next(state for state in states if state["name"] == KILLED)

    async def _load(self, customer: Customer, stopping: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        began, calls = loop.time(), set()

        def ended(task: asyncio.Task[None]) -> None:
            calls.discard(task)
            task.result()  # a fault of the drill itself goes to the loop's handler, and the counts do not agree

        for number in itertools.count():
            wait = began + number / self.per_second - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            if stopping.is_set():
                break
            task = loop.create_task(self._call(customer, self.rng.random() < STREAMS))
            calls.add(task)
            task.add_done_callback(ended)
        await asyncio.gather(*calls)

    async def _call(self, customer: Customer, stream: bool) -> None:
        loop = asyncio.get_running_loop()
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], **more}).encode()
        request = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: relay\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (customer.secret.encode(), len(body), body)
        )
        connection = self._idle.pop() if self._idle else None
        if connection is None or connection.transport is None:
            _, connection = await loop.create_connection(Connection, "127.0.0.1", customer.relay.port)
            self._open.append(connection)
        began, phase = loop.time(), self._phase
        await connection.exchange(request)
        if connection.first_byte:
            self.first_bytes.setdefault(phase, []).append(connection.first_byte - began)
        if not connection.received.startswith(b"HTTP/1.1 200"):
            self.errors.append(bytes(connection.received[:400]))
        elif connection.complete:
            self.finished += 1
        else:
            self.cut += 1
        if connection.transport is not None and connection.complete:
            self._idle.append(connection)

    # -- books

    async def _check(self, customer: Customer, upstreams: dict[str, Upstream]) -> None:
        """Clients, records, ledger and upstreams tell the same."""
        relay = customer.relay
        calls = self.finished + self.cut + len(self.errors)
        left = await customer.settled_nano()

        async def written() -> bool:
            return bool(rows(relay.data_dir, "SELECT count(*) AS n FROM call_records")[0]["n"] == calls)

        await eventually(written, 20)
        records = rows(relay.data_dir, "SELECT * FROM call_records")
        finished = [record for record in records if record["status"] == 200 and record["error_code"] is None]
        cut = [record for record in records if record["status"] == 200 and record["error_code"] is not None]
        assert (len(finished), len(cut)) == (self.finished, self.cut)
        assert {record["channel"] for record in cut} <= {KILLED}
        assert {record["usage_source"] for record in finished} == {"upstream"}
        assert nano(CREDITS + ".0") - left == sum(record["cost_nano"] for record in records)
        self.retried = sum(record["attempts"] - 1 for record in records)
        assert (await relay.status())["retries"]["retried"] == self.retried
        for name, upstream in upstreams.items():
            if name != KILLED:  # whose book died with it
                book, served = await upstream.book(), [record for record in records if record["channel"] == name]
                assert book["requests"] == len(served), name
                assert book["input_tokens"] == sum(record["input_tokens"] for record in served), name
                assert book["output_tokens"] == sum(record["output_tokens"] for record in served), name
        verified = await relay.command("ledger verify")
        assert verified["ok"], verified

    def percentiles(self, phase: str) -> tuple[float, float]:
        """Median and 99th percentile of the time to the first byte, in milliseconds."""
        found = sorted(self.first_bytes.get(phase, [0.0]))
        return statistics.median(found) * 1000, found[min(len(found) - 1, len(found) * 99 // 100)] * 1000
