"""The wall clock jumps while a relay runs: limits, caps, expiry and the order of the ledger hold."""

import asyncio
import datetime
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from relay.simulator import Running
from tests.faults.books import rows
from tests.faults.faulty import Faults
from tests.faults.traffic import CHAT, Call, make_call
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import config_text
from tests.support.stored import assert_books_agree

HOUR, DAY = 3600.0, 86_400.0
# Looks for credits whose time is up far more often than every minute.
IMPATIENT = """
import sys
from relay import app, cli
app.EXPIRY_SECONDS = 0.05
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest_asyncio.fixture
async def relay(tmp_path: Path, simulator: Running) -> AsyncIterator[RelayProcess]:
    script = tmp_path / "impatient.py"
    script.write_text(IMPATIENT)
    made = RelayProcess(
        tmp_path,
        config_text(simulator.base_url, "http://127.0.0.1:9"),
        program=(str(script),),
        environment={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    made.faults_of_surroundings = Faults(made)  # type: ignore[attr-defined]
    await made.start()
    yield made
    await made.kill()


def clock(relay: RelayProcess) -> Faults:
    return relay.faults_of_surroundings  # type: ignore[attr-defined]


async def seen(relay: RelayProcess) -> None:
    """Calls are admitted by the offset that the sweep, four times a second, has last found."""
    began = (await relay.status())["uptime_seconds"]

    async def later() -> bool:
        return (await relay.status())["uptime_seconds"] > began + 0.6

    await eventually(later)


async def ask(customer: Customer, more: str = "events=2") -> Call:
    return await make_call(customer, CHAT, stream=False, directives=more, output_limit=40)


def moment(seconds_from_now: float) -> str:
    at = datetime.datetime.fromtimestamp(time.time() + seconds_from_now, datetime.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def end(relay: RelayProcess) -> None:
    assert (await relay.command("ledger verify"))["ok"]
    assert relay.faults == []
    assert await relay.stop() == 0
    assert_books_agree(relay.data_dir)


async def test_rates_do_not_follow_the_wall_clock(relay: RelayProcess):
    customer = await relay.customer(rpm=2)
    assert [(await ask(customer)).status for _ in range(3)] == [200, 200, 429]
    for seconds in (HOUR, -3 * HOUR, 40 * DAY, -40 * DAY):
        clock(relay).jump(seconds)
        await seen(relay)
        assert (await ask(customer)).status == 429
    await end(relay)


async def test_a_day_is_counted_once_however_the_clock_jumps(relay: RelayProcess):
    """A cap for one day is spent; a new day gives another one, and the same day come again does not."""
    customer = await relay.customer(daily_limit="0.002")

    async def spend() -> int:
        """How many calls pass until the cap says no."""
        for passed in range(50):
            call = await ask(customer, "output=20")
            if call.status == 429:
                assert b"spending limit of this day" in call.body
                return passed
        raise AssertionError("the cap did not hold")

    first = await spend()
    assert first > 0
    clock(relay).jump(DAY)
    await seen(relay)
    assert await spend() == first
    for back in (-DAY, DAY, -DAY):
        clock(relay).jump(back)
        await seen(relay)
        assert await spend() == 0
    await end(relay)


async def test_keys_expire_by_the_wall_clock(relay: RelayProcess):
    customer = await relay.customer(expires=moment(HOUR))
    assert (await ask(customer)).status == 200
    clock(relay).jump(2 * HOUR)
    await seen(relay)
    assert (await ask(customer)).status == 401
    clock(relay).jump(-2 * HOUR)
    await seen(relay)
    assert (await ask(customer)).status == 200
    await end(relay)


async def test_running_calls_are_not_ended_by_a_jump(relay: RelayProcess, simulator: Running):
    """No deadline is on the wall clock: a stream with pauses goes on, whatever time it is."""
    customer = await relay.customer()
    stream = asyncio.ensure_future(
        make_call(customer, CHAT, stream=True, directives="events=15 pace_ms=100", headers=None)
    )
    await simulator.book.wait(lambda book: book.open == 1 and book.last.events_sent > 2)
    for seconds in (DAY, -2 * DAY, 400 * DAY):
        clock(relay).jump(seconds)
        await asyncio.sleep(0.3)
    call = await stream
    assert (call.status, call.complete) == (200, True)
    assert b"error" not in call.body
    await end(relay)


async def test_the_ledger_is_in_the_order_in_which_things_happened(relay: RelayProcess):
    """Also over a restart after which the clock is behind: no call takes the id of another."""
    customer = await relay.customer()
    ids = []
    for seconds in (0.0, HOUR, -2 * HOUR, 0.5, -0.5):
        clock(relay).jump(seconds)
        await seen(relay)
        ids.append((await ask(customer)).record_id)
        await relay.command("credit add", id=customer.account, amount="1")
    assert await relay.stop() == 0
    clock(relay).jump(-3 * HOUR)
    await relay.start()
    assert any("clock" in line and "behind" in line for line in relay.log), relay.log
    ids += [(await ask(customer)).record_id for _ in range(3)]
    assert ids == sorted(set(ids))
    await customer.calls(len(ids))
    entries = (await relay.command("ledger show", id=customer.account))["entries"]
    assert [entry["amount"] for entry in entries] == ["100", *["1"] * 5]
    assert len(rows(relay.data_dir, "SELECT id FROM calls")) == len(ids)
    await end(relay)


async def test_credits_expire_and_what_a_call_holds_stays(relay: RelayProcess, simulator: Running):
    """A lot's time is up while a stream runs: what is free goes at once, what the stream did not use when it ends."""
    customer = await relay.customer("0")
    await relay.command("credit add", id=customer.account, amount="5", kind="trial", expires=moment(HOUR))
    stream = asyncio.ensure_future(make_call(customer, CHAT, stream=True, directives="events=30 pace_ms=100"))
    await simulator.book.wait(lambda book: book.open == 1 and book.last.events_sent > 2)
    held = nano((await customer.money())["held"])
    assert 0 < held < nano("5")
    clock(relay).jump(2 * HOUR)

    async def free_is_gone() -> bool:
        return nano((await customer.money())["available"]) == 0

    await eventually(free_is_gone)
    assert nano((await customer.money())["held"]) >= held
    call = await stream
    assert (call.status, call.complete) == (200, True)  # what it held was enough
    await eventually(lambda: nothing_left(customer))
    record = await customer.call()
    entries = (await relay.command("ledger show", id=customer.account))["entries"]
    expired = [-nano(entry["amount"]) for entry in entries if entry["kind"] == "expiry"]
    assert len(expired) == 2
    assert sum(expired) + nano(record["cost"]) == nano("5")
    # Bought later, it never expires, and is the only credit there is.
    await relay.command("credit add", id=customer.account, amount="2")
    assert (await customer.money())["available"] == "2"
    await end(relay)


async def nothing_left(customer: Customer) -> bool:
    money = await customer.money()
    return nano(money["available"]) == 0 and nano(money["held"]) == 0
