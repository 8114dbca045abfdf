"""The bill of a call: each priced dimension once, at the price of its own card, adding up to what was charged."""

from decimal import Decimal
from typing import Any

import pytest

from relay.cli_output import human
from relay.config import Config, parse
from relay.control.commands import COMMANDS, AccountCreate, KeyCreate, read_params
from relay.control.failures import CommandError
from relay.control.operations import Operations
from relay.policy import pricing
from relay.records import CALL_DETAILS
from relay.storage import Store
from tests.control.test_operations import call_record


async def shown(operations: Operations, call: str) -> dict[str, Any]:
    command = COMMANDS["calls show"]
    return await operations.run(command, read_params(command, {"id": call}))


@pytest.fixture
async def card(operations: Operations, store: Store, config: Config) -> str:
    body = pricing.card_body(config)
    card = pricing.card_id(body)
    await store.put_rate_card(card, body)
    await operations.account_create(AccountCreate(email="a@example.com"))
    await operations.key_create(KeyCreate(id="acct_1"))
    return card


async def test_finding_newcomer_13_a_call_shows_its_bill(
    operations: Operations, store: Store, config: Config, card: str
):
    rate = config.rates[0]
    details = dict.fromkeys(CALL_DETAILS, 0) | {"cache_write_1h_tokens": 5}
    record = call_record(
        account_id=1, key_id=1, model=rate.model, rate_card=card, input_tokens=100, output_tokens=7,
        cache_read_tokens=30, cache_write_tokens=9,
    )  # fmt: skip
    store.append_calls([(*record, (*details.values(), None, None))])
    await store.flush()
    (row,) = await store.calls(limit=1)
    row_with_details = await store.call(row.id)
    assert row_with_details is not None
    cost = pricing.cost_by_card((await store.rate_card(card)).body, row_with_details)  # type: ignore[union-attr]
    command = COMMANDS["calls"]
    listed = (await operations.run(command, read_params(command, {})))["calls"][0]
    bill = (await shown(operations, listed["id"]))["bill"]
    assert {line["what"]: line["quantity"] for line in bill} == {
        "input": 100, "cache_read": 30, "cache_write": 4, "cache_write_1h": 5, "output": 7,
    }  # fmt: skip
    total = sum(Decimal(line["amount"]) for line in bill)
    assert 0 <= Decimal(cost) / 10**9 - total < Decimal("0.000000001")


async def test_finding_newcomer_13_calls_are_filtered(operations: Operations, store: Store, card: str):
    store.append_calls(
        [
            call_record(account_id=1, key_id=1, counter=1, organisation_id=None),
            call_record(account_id=1, key_id=1, counter=2, model="o3", channel="other", path="/v1/files"),
        ]
    )
    command = COMMANDS["calls"]

    async def found(**fields: str) -> int:
        return len((await operations.run(command, read_params(command, fields)))["calls"])

    assert await found() == 2
    assert await found(model="o3") == await found(channel="other") == await found(path="/v1/files") == 1
    assert await found(model="o3", channel="main") == 0


async def test_a_call_that_is_not_there(operations: Operations, card: str):
    with pytest.raises(CommandError, match="no such call"):
        await shown(operations, "call_0000000000001")
    with pytest.raises(CommandError, match="id: "):
        await shown(operations, "call")


async def test_finding_newcomer_18_acts_with_money_are_events(operations: Operations, card: str):
    for name, fields in (
        ("credit add", {"id": "acct_1", "amount": "5", "idempotency_key": "once"}),
        ("credit add", {"id": "acct_1", "amount": "5", "idempotency_key": "once"}),
        ("credit add", {"id": "acct_1", "amount": "-1", "kind": "adjustment"}),
        ("credit refund", {"id": "acct_1", "amount": "2", "reason": "asked"}),
    ):
        await operations.run(COMMANDS[name], read_params(COMMANDS[name], fields))
    command = COMMANDS["events"]
    events = (await operations.run(command, read_params(command, {})))["events"]
    assert [(event["code"], event["detail"]) for event in events if event["code"].startswith("credit")] == [
        ("credit_refund", "entry_3 refund -2"),
        ("credit_add", "entry_2 adjustment -1"),
        ("credit_add", "entry_1 purchased 5"),
    ]


async def test_the_bill_shows_tools_and_other_models(operations: Operations, store: Store) -> None:
    """Each with its own price; with the rest they make the cost, but for the rounding."""
    config = parse(
        """
        [billing]
        discount = 0.5
        [[rates]]
        model = "m"
        input = 2
        output = 4
        tools = { file_search = 0.0025 }
        [[rates]]
        model = "dear"
        input = 10
        output = 20
        cache_write_1h = 40
        """
    )
    body = pricing.card_body(config)
    await store.put_rate_card(pricing.card_id(body), body)
    await operations.account_create(AccountCreate(email="a@example.com"))
    await operations.key_create(KeyCreate(id="acct_1"))
    lines = (
        ("file_search", None, 3, 0, 0, 0, 0, 0, 0, 0, 3_750_000),
        ("advisor", "dear", 0, 100, 10, 0, 8, 5, 0, 0, 715_000),
        ("recovered", None, 1, 0, 0, 0, 0, 0, 0, 0, 77),
    )
    cost = 100 * 1000 + 7 * 2000 + sum(line[-1] for line in lines)
    record = call_record(
        account_id=1, key_id=1, model="m", rate_card=pricing.card_id(body), input_tokens=100, output_tokens=7,
        cost_nano=cost,
    )  # fmt: skip
    store.append_calls([(*record, (*dict.fromkeys(CALL_DETAILS, 0).values(), None, 0, lines))])
    await store.flush()
    command = COMMANDS["calls"]
    (listed,) = (await operations.run(command, read_params(command, {})))["calls"]
    document = await shown(operations, listed["id"])
    assert [(line["what"], line["quantity"], line["amount"]) for line in document["bill"]] == [
        ("input", 100, "0.0001"),
        ("output", 7, "0.000014"),
        ("file_search", 3, "0.00375"),
        ("advisor dear input", 100, "0.0005"),
        ("advisor dear cache_write", 3, "0.000015"),
        ("advisor dear cache_write_1h", 5, "0.0001"),
        ("advisor dear output", 10, "0.0001"),
        ("recovered", 1, "0.000000077"),
    ]
    assert document["rounded"] == "0"
    assert "advisor dear output" in human("calls show", document)
