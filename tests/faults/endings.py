"""Calls that end in every way there is, in random mix on one relay; when all is quiet nothing may be left over."""

import asyncio
import os
import random
import signal
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from relay.simulator import Running
from tests.faults.books import check_calls, rows
from tests.faults.traffic import CHAT, DIALECTS, Call, Dialect, make_call, words
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import config_text
from tests.support.rawclient import RawClient
from tests.support.stored import assert_books_agree

NOWHERE = "http://127.0.0.1:9"
SETTINGS = {
    "drain_seconds = 5": "drain_seconds = 1",
    "first_byte_seconds = 20": "first_byte_seconds = 2",
    "answer_seconds = 20": "answer_seconds = 2",
    "stream_idle_seconds = 20": "stream_idle_seconds = 2",
}
Ending = Callable[["Mix"], Awaitable[Call]]
ENDINGS: dict[str, tuple[int, Ending]] = {}  # name -> weight, what makes it


def ending(weight: int) -> Callable[[Ending], Ending]:
    def register(function: Ending) -> Ending:
        ENDINGS[function.__name__.replace("_", " ")] = (weight, function)
        return function

    return register


@dataclass
class Mix:
    folder: Path
    simulator: Running
    rng: random.Random
    made: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    calls: list[Call] = field(default_factory=list)
    customers: list[Customer] = field(default_factory=list)
    log: Callable[[str], None] = lambda line: None
    grown_bytes: int = 0  # of the process, from after the first batch to the end
    files_left: int = 0  # descriptors beyond those at the start and of idle connections
    held_nano: int = 0
    since: int = 0  # records up to this id are checked

    async def run(self, count: int, *, at_once: int = 12, batch: int = 1_000_000) -> None:
        """`batch`: after so many calls all is let come to rest and checked, and the upstream's book begun anew."""
        text = config_text(self.simulator.base_url, NOWHERE)
        for old, new in SETTINGS.items():
            text = text.replace(old, new)
        self.relay = RelayProcess(self.folder, text)
        try:
            await self.relay.start()
            self.customers = [await self.relay.customer("100000") for _ in range(6)]
            self.rich = list(self.customers)
            await self._make(["finished"] * 8, 8)
            files, memory = self._files(), 0
            names = list(ENDINGS) + self.rng.choices(
                list(ENDINGS), [weight for weight, _ in ENDINGS.values()], k=max(0, count - len(ENDINGS))
            )
            self.rng.shuffle(names)
            for start in range(0, len(names), batch):
                await self._make(names[start : start + batch], at_once)
                await self._quiet(files)
                if start == 0:
                    memory = self._resident_bytes()
                self.grown_bytes = self._resident_bytes() - memory
                self.log(f"{self.made.total()} calls, memory {self.grown_bytes / 2**20:+.1f} MiB")
                if start + batch < len(names):
                    await self._check_batch()
            await self._drain()
            self._check()
        finally:
            await self.relay.kill()

    async def _make(self, names: list[str], at_once: int) -> None:
        left = list(reversed(names))

        async def worker() -> None:
            while left:
                name = left.pop()
                call = await ENDINGS[name][1](self)
                call.ending = name
                self.made[name] += 1
                self.calls.append(call)

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(worker())

    async def _quiet(self, files: int) -> None:
        """Nothing open, nothing held, as many file descriptors as before."""

        async def quiet() -> bool:
            status = await self.relay.status()
            idle = sum(channel["idle_connections"] for channel in status["channels"])
            self.files_left = max(0, self._files() - idle - files)
            return status["open_calls"] == 0 and self.files_left == 0

        await eventually(quiet, 20)
        assert (await self.relay.status())["faults"] == 0, self.relay.faults
        self.held_nano = sum([nano((await customer.money())["held"]) for customer in self.customers])
        assert self.held_nano == 0
        assert all(channel["in_flight"] == 0 for channel in (await self.relay.status())["channels"])
        assert (await self.relay.command("ledger verify"))["ok"]

    async def _drain(self) -> None:
        """The last ending: the relay is told to stop while streams run that would take longer than it waits."""
        said = words(CHAT, 400, 1)
        tasks = [
            asyncio.ensure_future(make_call(customer, CHAT, stream=True, directives=f"{said} pace_ms=20"))
            for customer in self.rich
        ]

        await self.simulator.book.wait(lambda book: book.open >= len(tasks), 10)
        await asyncio.sleep(0.2)
        self.relay.signal(signal.SIGTERM)
        for call in await asyncio.gather(*tasks):
            call.ending = "drained"
            self.made["drained"] += 1
            self.calls.append(call)
            assert b"error" in call.body.rpartition(b"\n\ndata:")[2], call.body[-300:]
        assert await self.relay.wait() == 0

    async def _check_batch(self) -> None:
        """The three books, and a new page in each: what was checked is not kept."""
        await self.simulator.book.wait(lambda book: book.open == 0, 10)
        self.seen += check_calls(self.relay.data_dir, self.calls, self.simulator.book, self.since, one_event=False)
        self.since = rows(self.relay.data_dir, "SELECT max(id) AS last FROM calls")[0]["last"]
        self.calls = []
        self.customers = list(self.rich)
        self.simulator.book.clear()

    def _check(self) -> None:
        data_dir = self.relay.data_dir
        assert_books_agree(data_dir)
        self.seen += check_calls(data_dir, self.calls, self.simulator.book, self.since, one_event=False)
        for row in rows(
            data_dir, "SELECT coalesce(error_code, 'none') AS code, count(*) AS n FROM call_records GROUP BY 1"
        ):
            self.codes[row["code"]] = row["n"]

    def _files(self) -> int:
        return len(os.listdir(f"/proc/{self.relay.pid}/fd"))

    def _resident_bytes(self) -> int:
        return int(Path(f"/proc/{self.relay.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def report(self) -> str:
        return f"made {dict(self.made)}\nrecorded {dict(self.codes)}\nchecked {dict(self.seen)}"

    # -- parts of endings

    @property
    def customer(self) -> Customer:
        return self.rng.choice(self.rich)

    async def own(self, credits: str = "10", **key: object) -> Customer:
        customer = await self.relay.customer(credits, **key)
        self.customers.append(customer)
        return customer

    def call(self, more: str, *, stream: bool | None = None, events: int = 8, **given: object) -> Awaitable[Call]:
        """A call in any dialect with these directives."""
        dialect: Dialect = given.pop("dialect", None) or self.rng.choice(DIALECTS)  # type: ignore[assignment]
        customer: Customer = given.pop("customer", None) or self.customer  # type: ignore[assignment]
        if stream is None:
            stream = self.rng.random() < 0.7
        said = words(dialect, events, self.rng.randrange(40))
        return make_call(customer, dialect, stream=stream, directives=f"{said} {more}", **given)  # type: ignore[arg-type]


def ended(client: RawClient) -> bool:
    """The answer is over, or is an error from the start."""
    return (
        client.lost
        or client.eof
        or client.received.endswith(b"0\r\n\r\n")
        or client.received[9:12] not in (b"", b"200")
    )


async def some_events(client: RawClient, count: int = 3) -> None:
    await client.until(lambda: client.received.count(b"data:") >= count or ended(client), 20)


async def the_end(client: RawClient) -> None:
    await client.until(lambda: ended(client), 20)


@ending(6)
async def finished(mix: Mix) -> Call:
    return await mix.call("pace_ms=5")


@ending(2)
async def unknown_model(mix: Mix) -> Call:
    return await make_call(mix.customer, replace(mix.rng.choice(DIALECTS), model="nobody"), stream=False)


@ending(3)
async def upstream_refuses(mix: Mix) -> Call:
    return await mix.call(f"status={mix.rng.choice((400, 404, 429, 500, 503, 529))}")


@ending(2)
async def upstream_error_event(mix: Mix) -> Call:
    return await mix.call("error_at=3", stream=True)


@ending(4)
async def upstream_cut(mix: Mix) -> Call:
    return await mix.call(f"cut={mix.rng.randrange(2500)} cut_how={mix.rng.choice(('fin', 'rst'))} pace_ms=5")


@ending(1)
async def upstream_cut_in_its_head(mix: Mix) -> Call:
    return await mix.call(f"cut_head={mix.rng.randrange(60)}")


@ending(1)
async def upstream_garbage(mix: Mix) -> Call:
    return await mix.call("garbage")


@ending(1)
async def upstream_silent(mix: Mix) -> Call:
    return await mix.call("first_ms=3500")


@ending(1)
async def upstream_stalls(mix: Mix) -> Call:
    return await mix.call(f"stall={mix.rng.randrange(100, 1200)}")


@ending(2)
async def stream_without_its_end(mix: Mix) -> Call:
    return await mix.call("done=0", stream=True)


@ending(2)
async def without_usage(mix: Mix) -> Call:
    return await mix.call("usage=missing")


@ending(3)
async def client_gone_before(mix: Mix) -> Call:
    async def during(call: Call, client: RawClient) -> None:
        await asyncio.sleep(mix.rng.uniform(0, 0.1))

    return await mix.call("first_ms=150", during=during)


@ending(4)
async def client_gone_during(mix: Mix) -> Call:
    async def during(call: Call, client: RawClient) -> None:
        await some_events(client, mix.rng.randint(1, 12))
        if mix.rng.random() < 0.5:
            client.reset()

    return await mix.call("pace_ms=20", stream=True, events=20, during=during)


@ending(1)
async def client_does_not_read(mix: Mix) -> Call:
    async def during(call: Call, client: RawClient) -> None:
        assert client.transport is not None
        # Or the kernel might take the whole answer for it.
        client.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 262_144)
        await some_events(client)
        client.pause_reading()
        await asyncio.sleep(3)
        client.resume_reading()
        await the_end(client)

    said = words(CHAT, 1500, 1, size=4000)
    return await make_call(mix.customer, CHAT, stream=True, directives=said, during=during)


@ending(1)
async def key_revoked(mix: Mix) -> Call:
    customer = await mix.own()

    async def during(call: Call, client: RawClient) -> None:
        await some_events(client)
        await mix.relay.command("key revoke", id=customer.key)
        await the_end(client)

    return await mix.call("pace_ms=30", customer=customer, stream=True, events=200, during=during)


@ending(1)
async def account_frozen(mix: Mix) -> Call:
    customer = await mix.own()

    async def during(call: Call, client: RawClient) -> None:
        await some_events(client)
        await mix.relay.command("account freeze", id=customer.account)
        await the_end(client)

    return await mix.call("pace_ms=30", customer=customer, stream=True, events=200, during=during)


@ending(1)
async def balance_out(mix: Mix) -> Call:
    return await mix.call("", customer=await mix.own("0.001"), stream=True, events=1500)


@ending(1)
async def cap_reached(mix: Mix) -> Call:
    return await mix.call("", customer=await mix.own(daily_limit="0.001"), stream=True, events=1500)


@ending(1)
async def most_cost_reached(mix: Mix) -> Call:
    return await mix.call("", stream=True, events=1500, headers={"x-relay-max-cost": "0.001"})
