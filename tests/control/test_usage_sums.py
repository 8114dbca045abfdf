"""Sums over what was used: by every group, over calls that retention has deleted, for operators and for a key."""

import time
from typing import Any

import pytest

from relay import units
from relay.control.commands import COMMANDS, AccountCreate, KeyCreate, read_params
from relay.control.failures import CommandError
from relay.control.operations import Operations
from relay.records import MS_PER_DAY
from relay.storage import Store
from tests.control.test_operations import call_record

NOW_MS = time.time_ns() // 1_000_000
FIRST = units.day_text(NOW_MS // MS_PER_DAY - 40)
LAST = units.day_text(NOW_MS // MS_PER_DAY)


async def usage(operations: Operations, **fields: Any) -> dict[str, Any]:
    command = COMMANDS["usage"]
    return await operations.run(command, read_params(command, fields))


@pytest.fixture
async def filled(operations: Operations, store: Store) -> Operations:
    """Two accounts of one organisation and one beside it, two keys, two models, calls of today and of 40 days ago."""
    for name, organisation in (("a", "Acme"), ("b", "Acme"), ("c", None)):
        account = await operations.account_create(AccountCreate(email=f"{name}@example.com", organisation=organisation))
        await operations.key_create(KeyCreate(id=account["id"]))
    counter = 0
    for account_id in (1, 2, 3):
        for days_ago in (0, 40):
            for model, cost in (("gpt-4o", 3), ("claude-sonnet-5", 5)):
                counter += 1
                at_ms = NOW_MS - days_ago * MS_PER_DAY
                record = call_record(
                    id=units.call_id(at_ms, counter), account_id=account_id, key_id=account_id, model=model,
                    input_tokens=10, output_tokens=account_id, cost_nano=cost, day=at_ms // MS_PER_DAY,
                )  # fmt: skip
                store.append_calls([record])
    await store.flush()
    return operations


async def test_finding_newcomer_8_sums_by_every_group(filled: Operations):
    by_month = await usage(filled)
    assert by_month["total"]["calls"] == 12
    assert by_month["total"]["cost"] == "0.000000048"
    assert sum(row["calls"] for row in by_month["usage"]) == 12
    assert {row["month"] for row in by_month["usage"]} == {FIRST[:7], LAST[:7]}
    by_day = (await usage(filled, by="day"))["usage"]
    assert [(row["day"], row["calls"]) for row in by_day] == [(FIRST, 6), (LAST, 6)]
    by_model = (await usage(filled, by="model"))["usage"]
    assert [(row["model"], row["calls"], row["cost"]) for row in by_model] == [
        ("claude-sonnet-5", 6, "0.00000003"), ("gpt-4o", 6, "0.000000018"),
    ]  # fmt: skip
    by_account = (await usage(filled, by="account"))["usage"]
    assert [(row["account_id"], row["output_tokens"]) for row in by_account] == [
        ("acct_1", 4), ("acct_2", 8), ("acct_3", 12),
    ]  # fmt: skip
    by_organisation = (await usage(filled, by="organisation"))["usage"]
    assert [(row["organisation_id"], row["calls"]) for row in by_organisation] == [(None, 4), ("org_1", 8)]
    both = (await usage(filled, by="key,day"))["usage"]
    assert len(both) == 6
    assert list(both[0])[:2] == ["key_id", "day"]


async def test_finding_newcomer_8_filters(filled: Operations):
    assert (await usage(filled, account="acct_2"))["total"]["calls"] == 4
    assert (await usage(filled, key="key_3", model="gpt-4o"))["total"]["calls"] == 2
    assert (await usage(filled, organisation="Acme"))["total"]["calls"] == 8
    assert (await usage(filled, since="30d"))["total"]["calls"] == 6
    assert (await usage(filled, until=LAST))["total"]["calls"] == 6
    assert (await usage(filled, since=FIRST, until=FIRST))["total"]["calls"] == 0
    assert (await usage(filled, model="nothing")) == {
        "usage": [],
        "total": (await usage(filled, since=LAST, until=LAST))["total"],
    }


async def test_finding_newcomer_8_sums_outlive_their_calls(filled: Operations, store: Store):
    before = await usage(filled, by="day,model")
    assert await store.delete_calls_before(NOW_MS - 30 * MS_PER_DAY) == 6
    assert await usage(filled, by="day,model") == before


@pytest.mark.parametrize("by", ["", "hours", "day,month", "model,nothing"])
async def test_unknown_groups_are_refused_with_what_is_expected(filled: Operations, by: str):
    with pytest.raises(CommandError, match="by: expected some of day, month, model, key, account, organisation"):
        await usage(filled, by=by)


async def test_finding_money_L7_what_was_written_off_is_not_spent(filled: Operations, store: Store):
    """As caps count: of the account and of the key, before and after retention has deleted the call."""
    call_id = units.call_id(NOW_MS, 100)
    day = NOW_MS // MS_PER_DAY
    await store.add_credit(1, 1000, kind="trial")
    store.append_calls([call_record(id=call_id, account_id=1, key_id=1, cost_nano=100, write_off_nano=92, day=day)])
    await store.flush()
    for _ in range(2):
        for command, name in (("account show", "acct_1"), ("key show", "key_1")):
            shown = await filled.run(COMMANDS[command], read_params(COMMANDS[command], {"id": name}))
            assert shown["spent"]["daily"] == "0.000000016"
        await store.delete_calls_before(NOW_MS + 1)
    assert (await usage(filled, account="acct_1", by="day"))["usage"][-1]["cost"] == "0.000000108"
