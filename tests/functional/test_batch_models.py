"""Batches for several models, and on channels that rename them: each request at its own model's price, one job, and
across `kill -9`."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
import pytest_asyncio
from google.genai import types

from relay.simulator import Running
from tests.functional.clients import async_anthropic, google
from tests.functional.relay_process import Customer, RelayProcess, nano
from tests.functional.setting import OPERATOR_TOKEN, SIM_KEY, channel

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # Google's SDK: its own subclassing of aiohttp's session.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]
CREDITS = 100 * 10**9
# Credits per million tokens, input and output: as listed, and in the batch service.
PRICES = {
    "small": (("1", "5"), ("0.5", "2.5")),
    "large": (("5", "25"), ("2.5", "12.5")),
    "odd": (("3", "15"), None),  # without a price of its own in the batch service
    "quick": (("0.3", "2.5"), ("0.15", "1.25")),
    "apart": (("1", "1"), None),
}


def cost_nano(model: str, input_tokens: int, output_tokens: int) -> int:
    listed, batch = PRICES[model]
    price_in, price_out = (round(float(price) * 1000) for price in batch or listed)  # nano-credits a token
    return input_tokens * price_in + output_tokens * price_out


def config(simulator: Running, poll_seconds: float) -> str:
    text = f'[server]\ndrain_seconds = 2\n[admin]\ntoken = "{OPERATOR_TOKEN}"\n[plans.open]\n'
    text += f"[jobs]\npoll_seconds = {poll_seconds}\n"
    # The first channel does not serve all of them; the second calls two of three by other names.
    text += channel("first", "anthropic", simulator.base_url, '["small", "apart"]', SIM_KEY)
    text += channel(
        "second", "anthropic", simulator.base_url,
        '{ "small" = "claude-haiku-4-5", "large" = "anthropic/claude-opus-5@eu", "odd" = "odd" }', SIM_KEY,
        "priority = 1",
    )  # fmt: skip
    text += channel("google", "gemini", simulator.base_url, '{ "quick" = "gemini-2.5-flash" }', SIM_KEY)
    for model, (listed, batch) in PRICES.items():
        text += f'[[rates]]\nmodel = "{model}"\ninput = "{listed[0]}"\noutput = "{listed[1]}"\n'
        if batch:
            text += f'[[rates.tiers]]\nservice = "batch"\ninput = "{batch[0]}"\noutput = "{batch[1]}"\n'
    return text


@pytest_asyncio.fixture(loop_scope="session")
async def own(simulator: Running, tmp_path: Path) -> AsyncIterator[RelayProcess]:
    """A relay of the test's own, that polls once an hour."""
    made = RelayProcess(tmp_path, config(simulator, 3600))
    await made.start()
    yield made
    verified = await made.command("ledger verify")
    assert await made.stop() == 0
    assert verified["ok"], verified
    assert made.faults == []


async def held_nano(customer: Customer) -> int:
    return nano((await customer.money())["held"])


def requests(*lines: tuple[str, str], limit: int = 60) -> list[Any]:
    return [
        {
            "custom_id": f"c{index}",
            "params": {"model": model, "max_tokens": limit, "messages": [{"role": "user", "content": text}]},
        }
        for index, (model, text) in enumerate(lines)
    ]


MIXED = [
    ("large", "One #sim events=5 polls=1 input=100#"),
    ("small", "Two #sim events=7 input=10#"),
    ("large", "Three #sim events=11 input=1000#"),
    ("odd", "Four #sim events=13 input=7#"),
    ("small", "Five #sim events=17 input=3#"),
]
USED = {"large": (1100, 16), "small": (13, 24), "odd": (7, 13)}
COST = sum(cost_nano(model, *used) for model, used in USED.items())


async def check_charged(customer: Customer, before_nano: int = CREDITS) -> None:
    """A record for each model, each at its own price, and the sum is what was taken."""
    assert await customer.settled_nano() == before_nano - COST
    rows = [row for row in await customer.relay.calls(key=customer.key) if row["cost"] != "0"]
    assert {row["model"]: (row["input_tokens"], row["output_tokens"]) for row in rows} == USED
    assert {row["model"]: nano(row["cost"]) for row in rows} == {m: cost_nano(m, *used) for m, used in USED.items()}
    assert {(row["path"], row["channel"], row["usage_source"]) for row in rows} == {
        ("/v1/messages/batches", "second", "upstream")
    }
    assert {row["model"]: row["upstream_model"] for row in rows}["small"] == "claude-haiku-4-5"


async def test_each_request_at_its_own_price(own: RelayProcess, simulator: Running):
    customer = await own.customer()
    async with async_anthropic(customer) as client:
        asked = requests(*MIXED)
        made = await client.messages.batches.create(requests=asked)
        sent = json.loads(simulator.book.entries[-1].body)
        held = await held_nano(customer)
        # The prompts, and the outputs' limits, each at its own price.
        least = sum(cost_nano(model, 1, 60) for model, _ in MIXED)
        assert least < held < least + cost_nano("large", 400, 0)
        done = await client.messages.batches.retrieve(made.id)
        done = await client.messages.batches.retrieve(made.id)
        assert done.processing_status == "ended"
        results = {one.custom_id: one.result.message async for one in await client.messages.batches.results(made.id)}
    assert [results[f"c{index}"].usage.output_tokens for index in range(5)] == [5, 7, 11, 13, 17]
    # Only the names have changed.
    names = {"large": "anthropic/claude-opus-5@eu", "small": "claude-haiku-4-5", "odd": "odd"}
    assert [one["params"]["model"] for one in sent["requests"]] == [names[model] for model, _ in MIXED]
    for one, (model, _) in zip(sent["requests"], MIXED, strict=True):
        one["params"]["model"] = model
    assert sent == {"requests": asked}
    await check_charged(customer)


async def test_only_the_names_change(own: RelayProcess, simulator: Running):
    """Byte for byte, whatever the text around them looks like."""
    customer = await own.customer()
    body = (
        b' \n{"x":[{"requests":[{"params":{"model":"small"}}]}],\t"requests" : [ {"params":{"a":"\xc3\xa9\\"}{",'
        b'"mod\\u0065l": "large" ,"max_tokens":5,"messages":[{"role":"user","content":"\\ud83d\\ude00 #sim polls=0#",'
        b'"model":"small"}]},"custom_id":"a"},\r\n{"custom_id":"b","params":{"messages":[{"role":"user","content":"b"}],'
        b'"max_tokens":5,"model":"sm\\u0061ll"}} ] } '
    )
    async with async_anthropic(customer) as client:
        answer = await client.post("/v1/messages/batches", cast_to=object, content=body)  # type: ignore[call-arg]
        assert answer["processing_status"] == "in_progress"  # type: ignore[index]
    wanted = body.replace(b' "large" ', b' "anthropic/claude-opus-5@eu" ').replace(
        b'"sm\\u0061ll"', b'"claude-haiku-4-5"'
    )
    assert simulator.book.entries[-1].body == wanted


async def test_one_model_that_is_called_otherwise(own: RelayProcess, simulator: Running):
    customer = await own.customer()
    async with async_anthropic(customer) as client:
        await client.messages.batches.create(requests=requests(("large", "#sim events=5 input=9 polls=0#")))
        sent = json.loads(simulator.book.entries[-1].body)
        assert sent["requests"][0]["params"]["model"] == "anthropic/claude-opus-5@eu"
        assert [batch.processing_status async for batch in client.messages.batches.list()] == ["ended"]
        await client.messages.batches.create(requests=requests(("small", "#sim events=5 polls=0#")))
        assert json.loads(simulator.book.entries[-1].body)["requests"][0]["params"]["model"] == "small"  # at the first
    rows = [row for row in await customer.calls(4) if row["cost"] != "0"]
    assert [(row["model"], nano(row["cost"])) for row in rows] == [("large", cost_nano("large", 9, 5))]


REFUSED = {
    "nowhere together": (requests(("apart", "a"), ("large", "b")), anthropic.BadRequestError),
    "unknown": (requests(("small", "a"), ("none", "b")), anthropic.NotFoundError),
    "the same name twice": ([*requests(("small", "a")), *requests(("large", "b"))], anthropic.BadRequestError),
    "no name": (
        [*requests(("small", "a")), {"params": requests(("large", "b"))[0]["params"]}],
        anthropic.BadRequestError,
    ),
    "a dearer place": (
        [
            *requests(("small", "a")),
            {"custom_id": "us", "params": requests(("large", "b"))[0]["params"] | {"inference_geo": "us"}},
        ],
        anthropic.BadRequestError,
    ),
    "above the balance": (requests(("small", "a"), ("large", "b"), limit=4_000_000), anthropic.APIStatusError),
}


@pytest.mark.parametrize(("asked", "error"), REFUSED.values(), ids=REFUSED)
async def test_batches_that_are_refused(own: RelayProcess, simulator: Running, asked: Any, error: type[Exception]):
    customer = await own.customer("50")
    async with async_anthropic(customer) as client:
        count = len(simulator.book.entries)
        with pytest.raises(error):
            await client.messages.batches.create(requests=asked)
        with pytest.raises(anthropic.APIStatusError):  # 60 x 12.5 + 60 x 2.5 = 900 millionths, and the prompts
            await client.messages.batches.create(
                requests=requests(("small", "a"), ("large", "b")), extra_headers={"x-relay-max-cost": "0.0009"}
            )
    assert len(simulator.book.entries) == count
    assert await customer.settled_nano() == 50 * 10**9


async def test_a_model_that_the_key_may_not_use(own: RelayProcess, simulator: Running):
    customer = await own.another_key(await own.customer(), models=["small"])
    async with async_anthropic(customer) as client:
        with pytest.raises(anthropic.PermissionDeniedError):
            await client.messages.batches.create(requests=requests(("small", "a"), ("large", "b")))


async def test_killed_with_several_models(own: RelayProcess, simulator: Running):
    """The parts of the job are there again: the hold at once, and the same charge, once, whoever sees the end first."""
    customer = await own.customer("1")
    async with async_anthropic(customer) as client:
        made = await client.messages.batches.create(requests=requests(*MIXED))
    held = await held_nano(customer)
    assert held > 0
    await own.kill()
    await own.start()
    assert await held_nano(customer) == held
    async with async_anthropic(customer) as client:
        await client.messages.batches.retrieve(made.id)
        ended = await asyncio.gather(*(client.messages.batches.retrieve(made.id) for _ in range(5)))
        assert {batch.processing_status for batch in ended} == {"ended"}
    assert await customer.settled_nano() == 10**9 - COST
    await own.kill()
    await own.start()
    async with async_anthropic(customer) as client:
        await client.messages.batches.retrieve(made.id)
    await check_charged(customer, 10**9)
    assert (await own.command("ledger verify"))["ok"]
    # The names of the requests were never written down, not even as tags for longer than the job was open.
    assert stored_tags(own) == 0


def stored_tags(relay: RelayProcess) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{relay.data_dir / 'relay.db'}?mode=ro", uri=True)) as store:
        (count,) = store.execute("SELECT count(*) FROM job_parts").fetchone()
        return int(count)


async def test_names_of_requests_are_not_written_down(own: RelayProcess, simulator: Running):
    customer = await own.customer()
    asked = requests(("small", "#sim polls=9#"), ("large", "b"), ("large", "c"))
    for index, one in enumerate(asked):
        one["custom_id"] = f"canary-{index}-in-the-coal-mine"
    async with async_anthropic(customer) as client:
        await client.messages.batches.create(requests=asked)
        assert stored_tags(own) == 1
        found = [path for path in own.folder.rglob("*") if path.is_file() and b"in-the-coal-mine" in path.read_bytes()]
        assert found == []
        assert not any("coal-mine" in line for line in own.log)


async def test_a_balance_that_does_not_cover_all_of_it(own: RelayProcess, simulator: Running):
    """x-relay-max-cost is what is taken at most; the rest is written off, and the books agree."""
    customer = await own.customer()
    async with async_anthropic(customer) as client:
        asked = requests(
            ("small", "#sim polls=0 input=1000000#"), ("large", "#sim input=1000#"), ("odd", "#sim input=1#")
        )
        made = await client.messages.batches.create(requests=asked, extra_headers={"x-relay-max-cost": "0.004"})
        await client.messages.batches.retrieve(made.id)
    assert await customer.settled_nano() == CREDITS - 4_000_000
    rows = [row for row in await customer.calls(5) if row["cost"] != "0"]
    assert sum(nano(row["cost"]) for row in rows) > 500_000_000
    entries = (await own.command("ledger show", id=customer.account))["entries"]
    off = sum(nano(entry["amount"]) for entry in entries if entry["kind"] == "write_off")
    assert off == sum(nano(row["cost"]) for row in rows) - 4_000_000


async def test_gemini_lines_that_name_the_model(own: RelayProcess, simulator: Running):
    customer = await own.customer()
    contents = types.Content(role="user", parts=[types.Part(text="Hello #sim events=5 polls=0 input=9#")])
    async with google(customer) as client:
        src = [types.InlinedRequest(model="quick", contents=contents), types.InlinedRequest(contents=contents)]
        made = await client.aio.batches.create(model="quick", src=src)
        entry = simulator.book.entries[-1]
        assert entry.path.startswith("/v1beta/models/gemini-2.5-flash:batchGenerateContent")
        lines = json.loads(entry.body)["batch"]["inputConfig"]["requests"]["requests"]
        assert [line["request"].get("model") for line in lines] == ["models/gemini-2.5-flash", None]
        assert (await client.aio.batches.get(name=made.name)).state.name == "JOB_STATE_SUCCEEDED"
        with pytest.raises(Exception, match="400"):  # dearer than what would have been held for
            await client.aio.batches.create(
                model="quick", src=[types.InlinedRequest(model="gemini-3-pro", contents=contents)]
            )
    assert await customer.settled_nano() == CREDITS - cost_nano("quick", 18, 10)
