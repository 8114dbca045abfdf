"""Credits whose time is up: all of them in one pass, however many, and whoever holds some."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay._fastpath import JobHold
from relay.proxy.expiry import LOTS_AT_ONCE, expire_credits
from relay.proxy.keyring import Keyring
from relay.storage import Store, ledger
from tests.support.stored import NOON_MS, assert_books_agree, call_record

NOTHING: Any = None


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path, now_ms=lambda: NOON_MS)
    yield opened
    await opened.close()


async def lots(store: Store, accounts: int, each: int) -> None:
    """So many accounts with so many lots of 10 that are due, and one of 1 that is not."""

    def job(db: Any) -> None:
        for number in range(1, accounts + 1):
            db.execute(
                "INSERT INTO accounts VALUES (?, ?, 0, 'free', 'active', '{}', 0, 0)", (number, f"{number}@example.org")
            )
            for lot in range(each):
                ledger.add_credit(db, number, 10, "trial", "", None, NOON_MS - 1 - lot % 7, 0)
            ledger.add_credit(db, number, 1, "purchased", "", None, 0, 0)

    await store._change(job)


@pytest.mark.parametrize(("accounts", "each"), [(1, 1300), (1300, 1), (7, LOTS_AT_ONCE)])
async def test_finding_money_M3_all_lots_that_are_due_go_in_one_pass(
    store: Store, tmp_path: Path, accounts: int, each: int
):
    """Half of the accounts are in memory. The writer commits a call meanwhile."""
    await lots(store, accounts, each)
    keyring = Keyring(store, NOTHING, NOTHING)
    loaded = [await keyring.load_balance(number) for number in range(1, accounts + 1, 2)]
    expiry = asyncio.ensure_future(expire_credits(store, keyring, NOON_MS))
    await asyncio.sleep(0)
    store.append_calls([call_record(0, account_id=None, key_id=None, cost_nano=0)])
    await store.flush()
    assert not expiry.done()
    assert await expiry == accounts * each * 10
    assert {balance.available_nano for balance in loaded} == {1}
    assert await store.due_lots(NOON_MS) == []
    assert await expire_credits(store, keyring, NOON_MS) == 0
    assert await store.verify() == []
    assert set(assert_books_agree(tmp_path).values()) == {1}


async def test_finding_money_M3_lots_that_open_jobs_hold_do_not_stop_the_others(store: Store):
    """More than a transaction takes, due for longest, and held: those behind them go all the same."""
    await lots(store, 2 * LOTS_AT_ONCE, 2)
    keyring = Keyring(store, NOTHING, NOTHING)
    balances = [await keyring.load_balance(number) for number in range(1, 2 * LOTS_AT_ONCE)]
    holds = [JobHold(balance, (), 21) for balance in balances]
    part = await keyring.load_balance(2 * LOTS_AT_ONCE)
    holds.append(JobHold(part, (), 14))
    assert await expire_credits(store, keyring, NOON_MS) == 7
    assert (part.available_nano, part.held_nano) == (0, 14)
    for hold in holds:
        hold.release()
    assert await expire_credits(store, keyring, NOON_MS) == len(balances) * 20 + 13
    assert {balance.available_nano for balance in (*balances, part)} == {1}
    assert await store.verify() == []


async def test_a_balance_that_is_not_there_to_take_is_not_written(store: Store):
    """Everything is held: no transaction, and what the live balance has stays as it is."""
    await lots(store, 1, 3)
    keyring = Keyring(store, NOTHING, NOTHING)
    balance = await keyring.load_balance(1)
    hold = JobHold(balance, (), 31)
    assert await expire_credits(store, keyring, NOON_MS) == 0
    hold.release()
    assert balance.available_nano == 31
