"""What the relay keeps in memory is bounded, and one slow upstream is nobody else's trouble."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest_asyncio

from relay.simulator import Running
from tests.faults.faulty import Faults
from tests.faults.restarts import ask, request
from tests.faults.traffic import CHAT, DIALECTS, MESSAGES, make_call, words
from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import config_text
from tests.support.http1 import response_bytes
from tests.support.stored import assert_books_agree

PROGRAM = """
import sys
from relay import app, cli
from relay.proxy import keyring
{changes}
sys.exit(cli.main(sys.argv[1:]))
"""
Make = Callable[[str], RelayProcess]


@pytest_asyncio.fixture
async def raw() -> AsyncIterator[RawUpstream]:
    async with RawUpstream() as upstream:
        yield upstream


@pytest_asyncio.fixture
async def make(tmp_path: Path, simulator: Running, raw: RawUpstream) -> AsyncIterator[Make]:
    """A relay with other constants than it comes with."""
    made: list[RelayProcess] = []

    def make_relay(changes: str) -> RelayProcess:
        script = tmp_path / "program.py"
        script.write_text(PROGRAM.format(changes=changes))
        relay = RelayProcess(
            tmp_path,
            config_text(simulator.base_url, raw.base_url),
            program=(str(script),),
            environment={"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        made.append(relay)
        return relay

    yield make_relay
    for relay in made:
        await relay.kill()


async def finish(relay: RelayProcess) -> None:
    assert (await relay.command("ledger verify"))["ok"]
    assert relay.faults == []
    assert await relay.stop() == 0
    assert_books_agree(relay.data_dir)


async def test_memory_is_bounded_and_comes_back(make: Make, raw: RawUpstream):
    """Large requests wait for their answers: beyond the limit new calls are refused, and let in when they are gone."""
    relay = make("")
    relay.config = relay.config.replace("body_bytes_max = 1048576", "body_bytes_max = 8388608", 1)
    await relay.start()
    customer = await relay.customer()
    small = request(customer.secret, "small")
    assert await ask(relay.port, small) == 200
    base = (await relay.status())["memory_bytes"]
    relay.write_config(relay.config.replace("[server]\n", f"[server]\nmemory_bytes_max = {base + (40 << 20)}\n", 1))
    await relay.command("reload")
    gate = asyncio.Event()
    name, _ = raw.script(Gate(gate), response_bytes(b"{}"))
    large = request(customer.secret, name + "x" * (6 << 20), "raw-chat")
    held = [asyncio.create_task(ask(relay.port, large)) for _ in range(12)]

    async def refused() -> bool:
        return await ask(relay.port, small) == 503

    await eventually(refused, 20)

    async def recorded() -> bool:
        return (503, "overloaded") in [(call["status"], call["error_code"]) for call in await relay.calls()]

    await eventually(recorded)
    gate.set()
    statuses = await asyncio.gather(*held)
    assert set(statuses) <= {200, 503}
    assert 200 in statuses

    async def served() -> bool:
        return await ask(relay.port, small) == 200

    await eventually(served, 20)
    assert any("above server.memory_bytes_max" in line for line in relay.log)
    await finish(relay)


async def test_records_of_refused_calls_do_not_pile_up_on_a_full_disk(make: Make, raw: RawUpstream):
    """Refusals beyond the bound leave no record; what was admitted does, and its charge is never lost."""
    relay = make("app.RECORDS_WAITING_MAX = 50")
    faults = Faults(relay)
    await relay.start()
    customers = [await relay.customer() for _ in range(4)]
    gate = asyncio.Event()
    name, exchange = raw.script(Gate(gate), response_bytes(b'{"usage":{"prompt_tokens":8,"completion_tokens":7}}'))
    paid = [
        asyncio.create_task(ask(relay.port, request(customer.secret, name, "raw-chat")))
        for customer in customers
        for _ in range(3)
    ]
    async with asyncio.timeout(10):
        while len(exchange.requests) < len(paid):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    faults.full = 1
    message = request(customers[0].secret, "x", "gpt-4o")

    async def refused() -> bool:
        return await ask(relay.port, message) == 503

    await eventually(refused, 20)
    for _ in range(30):
        assert await asyncio.gather(*(ask(relay.port, message) for _ in range(10))) == [503] * 10
    gate.set()  # those that were admitted end only now, when the queue is over its bound
    assert await asyncio.gather(*paid) == [200] * len(paid)

    async def dropped() -> bool:
        return (await relay.status())["records_dropped"] > 200

    await eventually(dropped)
    assert (await relay.status())["store_pending"] < 100
    faults.full = 0
    for customer in customers[1:]:
        await customer.calls(3)
        assert 100 * 10**9 - await customer.settled_nano() == 3 * (8 * 1000 + 7 * 2000)
    await finish(relay)


async def test_unused_keys_are_dropped_and_no_money_with_them(make: Make, simulator: Running):
    """Keys come and go every second under load: balances, limits and open calls are as if they had stayed."""
    relay = make("keyring.IDLE_LOOKS = 0\napp.KEYS_LOOK_SECONDS = 1")
    await relay.start()
    customers = [await relay.customer("10") for _ in range(12)]
    watched = await relay.customer("10", rpm=2)
    stream = asyncio.create_task(
        make_call(customers[0], CHAT, stream=True, directives="events=600 pace_ms=100", output_limit=5000)
    )
    await simulator.book.wait(lambda book: book.open == 1)
    assert [(await make_call(watched, CHAT, stream=False)).status for _ in range(3)] == [200, 200, 429]
    rng = random.Random(5)
    loads: list[int] = []

    async def use(customer: Customer) -> None:
        for _ in range(6):
            dialect = rng.choice(DIALECTS)
            call = await make_call(customer, dialect, stream=rng.random() < 0.5, directives=words(dialect, 3, 1))
            assert call.status == 200
            await asyncio.sleep(rng.uniform(0, 1.5))
            loads.append((await relay.status())["keys_loaded"])

    await asyncio.gather(*(use(customer) for customer in customers[1:]))
    assert min(loads) < max(loads)
    # The limits of a key are in its buckets: it is not dropped before they are full again.
    assert (await make_call(watched, CHAT, stream=False)).status == 429

    async def only_those() -> bool:
        return (await relay.status())["keys_loaded"] == 2

    await eventually(only_those, 20)  # the stream's key, and the one whose bucket is not full
    # What is changed while a key is not in memory holds for its next call.
    await relay.command("key revoke", id=customers[1].key)
    assert (await make_call(customers[1], CHAT, stream=False)).status == 401
    await relay.command("account freeze", id=customers[2].account)
    assert (await make_call(customers[2], CHAT, stream=False)).status == 403
    # And a call that runs is ended by a change of its key, however long the key was not used otherwise.
    held = nano((await customers[0].money())["held"])
    assert held > 0
    await relay.command("key revoke", id=customers[0].key)
    call = await stream
    assert b"error" in call.body[-400:]
    assert await customers[0].settled_nano() < nano("10")
    await finish(relay)


async def test_a_crowd_of_keys_is_thinned_out(make: Make):
    relay = make("app.KEYS_LOOK_SECONDS = 1")
    relay.config = relay.config.replace("[server]\n", "[server]\nkeys_in_memory_max = 3\n", 1)
    await relay.start()
    customers = [await relay.customer() for _ in range(8)]
    for customer in customers:
        assert (await make_call(customer, MESSAGES, stream=False)).status == 200

    async def thinned() -> bool:
        return (await relay.status())["keys_loaded"] <= 3

    await eventually(thinned, 20)
    for customer in customers:
        assert (await make_call(customer, MESSAGES, stream=False)).status == 200
        await customer.calls(2)
    await finish(relay)


async def test_a_stalled_upstream_on_one_channel_does_not_touch_others(make: Make, raw: RawUpstream):
    """Hundreds of calls wait for a channel that says nothing; calls of another are served meanwhile, none slower."""
    relay = make("")
    await relay.start()
    customer, other = await relay.customer(), await relay.customer()
    gate = asyncio.Event()
    name, exchange = raw.script(Gate(gate), response_bytes(b"{}"))
    waiting = [asyncio.create_task(ask(relay.port, request(customer.secret, name, "raw-chat"))) for _ in range(300)]
    async with asyncio.timeout(20):
        while len(exchange.requests) < len(waiting):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    for dialect in DIALECTS:
        for stream in (False, True):
            call = await make_call(other, dialect, stream=stream, directives=words(dialect, 3, 1))
            assert (call.status, call.complete) == (200, True)
    assert len(exchange.requests) == len(waiting)  # not one of them has moved
    status = await relay.status()
    assert {channel["name"]: channel["in_flight"] for channel in status["channels"] if channel["in_flight"]} == {
        "raw-openai": len(waiting)
    }
    gate.set()
    assert set(await asyncio.gather(*waiting)) == {200}
    await finish(relay)
