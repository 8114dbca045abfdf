"""Announced prices take effect by themselves, for calls that are admitted from then on, also across a restart."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from relay import units
from relay.control.failures import CommandError
from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import config_text
from tests.support.http1 import Message, response_bytes
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANSWER = response_bytes(b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":8,"completion_tokens":7}}')
OLD_NANO = 8 * 1000 + 7 * 2000
DAY_SECONDS = 86_400


def rates(model: str = "raw-chat", input: str = "3", output: str = "5") -> str:
    return f'[[rates]]\nmodel = "{model}"\ninput = "{input}"\noutput = "{output}"\nweb_search = 0\n'


def moment(seconds_ahead: float) -> str:
    return units.time_text(int((time.time() + seconds_ahead) * 1000))


async def ask(customer: Customer, text: str) -> Message:
    body = {"model": "raw-chat", "messages": [{"role": "user", "content": text}]}
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        fields = {"Authorization": f"Bearer {customer.secret}"}
        return await client.request(
            "POST", "/v1/chat/completions", fields, json.dumps(body).encode(), timeout_seconds=20.0
        )


async def charged(customer: Customer, raw: RawUpstream, count: int) -> dict[str, Any]:
    assert (await ask(customer, raw.script(ANSWER)[0])).status == 200
    return (await customer.calls(count))[0]


async def price_of(relay: RelayProcess) -> str:
    listed = (await relay.command("rates show"))["rates"]
    return next(str(rate["input"]) for rate in listed if rate["model"] == "raw-chat")


@pytest_asyncio.fixture(loop_scope="session")
async def own(tmp_path: Path, raw: RawUpstream) -> Any:
    relay = RelayProcess(tmp_path, config_text("http://127.0.0.1:9", raw.base_url))
    await relay.start()
    yield relay
    await relay.kill()


async def test_terms_A12_a_scheduled_card_switches_by_itself_at_its_time(
    own: RelayProcess, raw: RawUpstream, tmp_path: Path
):
    customer = await own.customer()
    before = await charged(customer, raw, 1)
    assert nano(before["cost"]) == OLD_NANO
    release = asyncio.Event()
    text, exchange = raw.script(Gate(release), ANSWER)
    running = asyncio.ensure_future(ask(customer, text))
    await until(lambda: exchange.requests)

    (tmp_path / "new.toml").write_text(rates())
    announced = await own.cli_json("rates", "schedule", str(tmp_path / "new.toml"), "--effective", moment(1.5))
    assert announced["models"] == ["raw-chat"]
    assert announced["rises"][0] == "raw-chat: input is dearer (3 instead of 1)"
    assert await price_of(own) == "1"

    async def switched() -> bool:
        return await price_of(own) == "3"

    await eventually(switched)
    assert time.time() * 1000 >= units.parse_time(announced["effective"])
    release.set()
    assert (await running).status == 200
    old, _ = await customer.calls(2)  # admitted under the old card, ended under the new
    assert (nano(old["cost"]), old["rate_card"]) == (OLD_NANO, before["rate_card"])
    after = await charged(customer, raw, 3)
    assert nano(after["cost"]) == 8 * 3000 + 7 * 5000
    assert after["rate_card"] != before["rate_card"]

    assert await own.stop() == 0
    await own.start()
    assert await price_of(own) == "3"
    again = await charged(customer, raw, 4)
    assert (again["cost"], again["rate_card"]) == (after["cost"], after["rate_card"])
    assert (await own.command("reload"))["reloaded"]
    assert await price_of(own) == "3"
    assert (await own.command("ledger verify"))["ok"]
    assert own.faults == []


async def test_terms_W03_what_came_due_while_the_relay_was_down_is_in_force(own: RelayProcess, raw: RawUpstream):
    customer = await own.customer()
    await own.command("rates schedule", rates=rates(), effective=moment(1.0))
    due = time.time() + 1.0
    await own.kill()
    await until(lambda: time.time() > due)
    await own.start()
    assert nano((await charged(customer, raw, 1))["cost"]) == 8 * 3000 + 7 * 5000


async def test_announced_prices_are_shown_and_can_be_taken_back(own: RelayProcess):
    customer = await own.customer()
    made = await own.command("rates schedule", rates=rates(), effective=moment(DAY_SECONDS))
    await own.command("rates schedule", rates=rates("raw-claude"), effective=moment(2 * DAY_SECONDS))
    [first, _] = (await own.command("rates show"))["scheduled"]
    assert (first["id"], first["withdrawn"]) == (made["id"], None)

    async def shown() -> list[Any]:
        async with await RawClient.connect("127.0.0.1", own.port) as client:
            answer = await client.request("GET", "/relay/v1/rates", {"Authorization": f"Bearer {customer.secret}"})
        return [rate["model"] for item in json.loads(answer.body)["scheduled"] for rate in item["rates"]]

    assert await shown() == ["raw-chat", "raw-claude"]
    await own.command("rates withdraw", id=made["id"])
    assert await shown() == ["raw-claude"]
    for words in ({"id": made["id"]}, {"id": "sched_99"}, {"id": "7"}):
        with pytest.raises(CommandError):
            await own.command("rates withdraw", **words)


async def test_finding_newcomer_29_a_scheduled_card_is_shown_with_its_prices(own: RelayProcess):
    made = await own.command("rates schedule", rates=rates(), effective=moment(3 * DAY_SECONDS))
    [row] = [row for row in (await own.command("rates show"))["scheduled"] if row["id"] == made["id"]]
    [rate] = row["rates"]
    assert (rate["model"], rate["input"]) == ("raw-chat", "3")
    status, out, error = await own.cli("rates", "show")
    assert status == 0, error
    _, _, part = out.partition(f"scheduled for {made['effective']} ({made['id']}")
    line = next(line for line in part.splitlines() if line.startswith("raw-chat"))
    assert line.split()[1] == "3"
    await own.command("rates withdraw", id=made["id"])


async def test_terms_A12_a_rise_takes_its_notice(own: RelayProcess, raw: RawUpstream):
    text = own.config.replace("[billing]\n", "[billing]\nprice_rise_notice_days = 14\n", 1)
    customer = await own.customer()
    await charged(customer, raw, 1)
    own.write_config(text)
    await own.command("reload")
    with pytest.raises(CommandError, match="14 days of notice: raw-chat: input is dearer"):
        await own.command("rates schedule", rates=rates(), effective=moment(13.9 * DAY_SECONDS))
    # A price that falls needs none; a discount that is taken away is a rise as well.
    await own.command("rates schedule", rates=rates(input="0.5", output="1"), effective=moment(60))
    await own.command("rates schedule", rates=rates(), effective=moment(14.1 * DAY_SECONDS))
    dearer = text.replace('model = "raw-chat"\ninput = "1"', 'model = "raw-chat"\ninput = "1.1"')
    for changed in (dearer, text.replace("[billing]\n", "[billing]\ndiscount = 1.01\n", 1)):
        assert changed != text
        own.write_config(changed)
        with pytest.raises(CommandError, match="announce it by `relay rates schedule`"):
            await own.command("reload")
        assert await price_of(own) == "1"
    # Nor does a restart bring it in.
    await own.stop()
    own.config = dearer
    with pytest.raises(AssertionError):
        await own.start()
    assert any("no price above those in force" in line for line in own.log)
    own.config = text
    await own.start()
    assert (await own.command("terms"))["notice"]["price_rise_days"] == 14


@pytest.mark.parametrize(
    ("given", "effective"),
    [
        ("", "2099-01-01"),
        ("[[rates]]\nmodel = 7", "2099-01-01"),
        ("[billing]\ndiscount = 1\n" + rates(), "2099-01-01"),
        (rates() + rates(), "2099-01-01"),
        ("not toml", "2099-01-01"),
        (rates(), "yesterday"),
        (rates(), "2020-01-01"),
    ],
)
async def test_what_is_refused(relay: RelayProcess, given: str, effective: str):
    with pytest.raises(CommandError):
        await relay.command("rates schedule", rates=given, effective=effective)
    assert (await relay.command("rates show"))["scheduled"] == []
