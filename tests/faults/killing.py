"""A relay under load that is killed again and again, at random instants and at aimed points, and started again."""

import asyncio
import os
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from relay.simulator import Running
from relay.storage import journal
from tests.faults.books import check_calls, rows
from tests.faults.launcher import IN_RECOVERY, POINTS
from tests.faults.traffic import Load
from tests.functional.relay_process import Customer, RelayProcess, nano
from tests.functional.setting import config_text
from tests.support.filled import fill
from tests.support.stored import assert_books_agree
from tests.support.waiting import until

NOWHERE = "http://127.0.0.1:9"
RANDOM = "at random"
TRAFFIC_SECONDS = 10.0  # a point that is not passed within this much traffic was not aimed well
WINDOWS = ("committed, not freed", "ended, not committed", "in the middle of a stream", "nothing delivered yet")


@dataclass
class Killing:
    """`run` goes through rounds; each is a start, the check of what the kill before left, traffic, and a kill."""

    folder: Path
    simulator: Running
    rng: random.Random
    callers: int = 12
    past: int = 0  # call records that are in the store before the first kill
    verify_every: int = 1  # reading a million records takes longer than everything else of a round
    hits: Counter[str] = field(default_factory=Counter)  # which point was hit how often
    windows: Counter[str] = field(default_factory=Counter)  # in what state calls were found after kills
    seen: Counter[str] = field(default_factory=Counter)  # how calls turned out
    log: Callable[[str], None] = lambda line: None
    insist: bool = False  # every point of the plan is hit, or it is tried again
    ready_seconds: list[float] = field(default_factory=list)
    ready_cpu_seconds: list[float] = field(default_factory=list)

    async def run(self, points: list[str]) -> None:
        self.marker = self.folder / "marker"
        self.load: Load | None = None
        self.since = 0
        self.relay = RelayProcess(self.folder, config_text(self.simulator.base_url, NOWHERE))
        try:
            await self._run(points)
        finally:
            await self.relay.kill()
            if self.load is not None:
                await self.load.finish()

    async def _run(self, points: list[str]) -> None:
        await self.relay.start()
        customers = [await self.relay.customer("1000") for _ in range(self.callers)]
        assert await self.relay.stop() == 0
        if self.past:
            self.log(f"writing {self.past} records")
            await fill(self.relay.config_file, self.past)
        left = deque(points)
        while left:
            point = left.popleft()
            if point not in IN_RECOVERY:
                await self._round(point, customers)
            elif not await self._kill_in_recovery(point) and self.insist:
                # The kill before had left nothing: once more behind another one.
                left.insert(min(2, len(left)), point)
            if len(left) % 20 == 0:
                self.log(f"{self.hits.total()} kills")
        self.verify_every = 1
        await self._start("")
        for customer in customers:
            assert nano((await customer.money())["held"]) == 0
        assert await self.relay.stop() == 0
        assert_books_agree(self.relay.data_dir)
        self._check_write_offs()

    async def _start(self, point: str, passes: int = 0) -> None:
        """Starts, and checks what the kill before left. With a point in recovery the process may die at once."""
        self.relay.program = ("-m", "relay")
        if point:
            self.relay.program = ("-m", "tests.faults.launcher", point, str(passes), str(self.marker))
        began = time.monotonic()
        await self.relay.start()
        self.ready_seconds.append(time.monotonic() - began)
        self.ready_cpu_seconds.append(_cpu_seconds(self.relay.pid))
        if len(self.ready_seconds) % self.verify_every == 0:
            assert (await self.relay.command("ledger verify"))["ok"]
        else:
            await self.relay.command("calls", limit=1)  # what is queued is committed
        assert (await self.relay.status())["open_calls"] == 0
        if self.load is not None:
            # The upstream's book is closed once it has noticed that its client is dead.
            await self.simulator.book.wait(lambda book: book.open == 0, 10)
            self.seen += check_calls(self.relay.data_dir, self.load.calls, self.simulator.book, self.since)
            self.load = None
        self.since = self._last_record()
        self.simulator.book.clear()

    async def _round(self, point: str, customers: list[Customer]) -> None:
        await self._start("" if point == RANDOM else point, self.rng.randint(1, 4))
        self.load = Load(customers, self.rng)
        self.load.start()
        if point == RANDOM:
            await asyncio.sleep(self.rng.uniform(0.05, 1.2))
            self.relay.signal(signal.SIGKILL)
        await until(
            lambda: self.relay.exit_status is not None, TRAFFIC_SECONDS, f"killed {point}: {self.relay.log[-9:]}"
        )
        assert await self.relay.wait() == -signal.SIGKILL, self.relay.log
        self._killed(point)
        await self.load.finish()
        self._look_around()

    async def _kill_in_recovery(self, point: str) -> bool:
        """Starts over what the last kill left, and is killed while that is settled. False: it had left nothing."""
        passes = self.rng.randint(1, 2) if point == "while recovering" else 1
        self.relay.program = ("-m", "tests.faults.launcher", point, str(passes), str(self.marker))
        try:
            await self.relay.start()
        except AssertionError:
            assert await self.relay.wait() == -signal.SIGKILL, self.relay.log
            self._killed(point)
            return True
        await self.relay.kill()
        return False

    def _killed(self, point: str) -> None:
        if point != RANDOM:
            assert self.marker.read_text() == point
            self.marker.unlink()
        self.hits[point] += 1

    def _look_around(self) -> None:
        """In what state the dead process left its calls."""
        data_dir = self.relay.data_dir
        (store,) = rows(data_dir, "SELECT store_id FROM store")
        committed = {row["id"] for row in rows(data_dir, "SELECT id FROM calls WHERE id > ?", self.since)}
        for slot, _ in journal.left_over(data_dir, store["store_id"]):
            if slot["ended"]:
                self.windows["committed, not freed" if slot["id"] in committed else "ended, not committed"] += 1
            elif slot["stream"] and slot["output_tokens"]:
                self.windows["in the middle of a stream"] += 1
            else:
                self.windows["nothing delivered yet"] += 1

    def _last_record(self) -> int:
        return rows(self.relay.data_dir, "SELECT coalesce(max(id), 0) AS last FROM calls")[0]["last"]

    def _check_write_offs(self) -> None:
        """Everybody had enough: nothing was given away."""
        assert rows(self.relay.data_dir, "SELECT * FROM entries WHERE kind = 'write_off'") == []

    def check(self, points: list[str], *, windows: bool) -> None:
        """Fails where a point was never hit, or a kind of call never found."""
        missed = [point for point in points if not self.hits[point]]
        assert not missed, f"never hit: {missed}"
        assert not self.seen["more than one event"], self.seen
        if windows:
            assert all(self.windows[name] for name in WINDOWS), self.windows
        assert self.seen["finished"], self.seen

    def report(self) -> str:
        return (
            f"kills {dict(self.hits)}\nfound {dict(self.windows)}\ncalls {dict(self.seen)}\n"
            f"ready after at most {max(self.ready_seconds):.2f} s, {max(self.ready_cpu_seconds):.2f} s of CPU"
        )


def all_points() -> list[str]:
    return list(POINTS)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
