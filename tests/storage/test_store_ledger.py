"""Credit: entries, lots, idempotency keys, refunds, expiry; and that verify notices whatever does not add up."""

import sqlite3

import pytest

from relay.storage import Conflict, InsufficientCredit, NotFound, Store
from relay.storage.rows import DueRow
from tests.support.stored import CREDIT, NOON_MS, assert_books_agree, call_record, customer


async def test_an_idempotency_key_gives_the_same_entry_again(store):
    account, _ = await customer(store)
    other, _ = await customer(store, "b")
    first = await store.add_credit(account.id, 500, reason="invoice 7", idempotency_key="i7", expires_ms=1)
    assert first.created
    again = await store.add_credit(account.id, 500, reason="invoice 7", idempotency_key="i7", expires_ms=2)
    assert (again.entry, again.balance_nano, again.created) == (first.entry, 500, False)
    for account_id, amount, kind, reason in [
        (other.id, 500, "purchased", "invoice 7"),
        (account.id, 501, "purchased", "invoice 7"),
        (account.id, 500, "trial", "invoice 7"),
        (account.id, 500, "purchased", "invoice 8"),
    ]:
        with pytest.raises(Conflict):
            await store.add_credit(account_id, amount, kind=kind, reason=reason, idempotency_key="i7")
    with pytest.raises(Conflict):
        await store.refund(account.id, 500, reason="invoice 7", idempotency_key="i7")
    assert await store.balance(account.id) == 500
    assert len(await store.entries(account.id)) == 1


async def test_a_refund_takes_unused_purchased_credit_only(store):
    account, _ = await customer(store)
    await store.add_credit(account.id, 100, kind="trial")
    await store.add_credit(account.id, 100, kind="purchased", expires_ms=NOON_MS + 1)
    await store.add_credit(account.id, 100, kind="purchased")
    store.append_calls([call_record(1, cost_nano=30)])  # queued: must be counted
    with pytest.raises(InsufficientCredit) as error:
        await store.refund(account.id, 171, reason="too much")
    assert error.value.available_nano == 170
    result = await store.refund(account.id, 120, reason="asked for", idempotency_key="r1")
    assert (result.entry.kind, result.entry.amount_nano, result.entry.reason) == ("refund", -120, "asked for")
    assert result.balance_nano == 150
    assert not (await store.refund(account.id, 120, reason="asked for", idempotency_key="r1")).created
    assert [(lot.kind, lot.remaining_nano) for lot in await store.lots(account.id)] == [
        ("trial", 100),
        ("purchased", 50),
    ]
    store.append_calls([call_record(2, cost_nano=150)])
    assert await store.balance(account.id) == 0
    assert await store.verify() == []


async def test_credit_is_refused_where_it_makes_no_sense(store):
    account, _ = await customer(store)
    with pytest.raises(NotFound):
        await store.add_credit(99, 1)
    with pytest.raises(NotFound):
        await store.balance(99)
    for amount in (0, -5, 10**18 + 1):
        with pytest.raises(ValueError, match="amount"):
            await store.add_credit(account.id, amount)
    with pytest.raises(ValueError, match="kind"):
        await store.add_credit(account.id, 1, kind="write_off")
    with pytest.raises(ValueError, match="kind"):
        await store.take_credit(account.id, 1, kind="purchased", reason="")
    with pytest.raises(ValueError, match="reason"):
        await store.add_credit(account.id, 1, reason="x" * 1001)
    with pytest.raises(ValueError, match="idempotency"):
        await store.add_credit(account.id, 1, idempotency_key="")
    assert await store.entries(account.id) == []


async def test_lots_expire_by_entries_and_spare_what_open_calls_hold(store, tmp_path):
    account, _ = await customer(store)
    other, _ = await customer(store, "b")
    await store.add_credit(account.id, 100, kind="trial", expires_ms=NOON_MS - 10)
    await store.add_credit(account.id, 50, kind="purchased", expires_ms=NOON_MS + 10)
    await store.add_credit(other.id, 70, kind="trial", expires_ms=NOON_MS - 5)
    store.append_calls([call_record(1, cost_nano=30)])
    assert await store.due_lots(NOON_MS - 11) == []
    assert await store.due_lots(NOON_MS) == [DueRow(account.id, 70, 1), DueRow(other.id, 70, 1)]
    assert await store.due_lots(NOON_MS, limit=1) == [DueRow(account.id, 70, 1)]
    assert await store.due_lots(NOON_MS, after_account_id=account.id) == [DueRow(other.id, 70, 1)]
    # Of its 120, open calls hold 90.
    expired = await store.expire_lots({account.id: 30, other.id: 70}, NOON_MS)
    assert [(entry.account_id, entry.kind, entry.amount_nano) for entry in expired] == [
        (account.id, "expiry", -30),
        (other.id, "expiry", -70),
    ]
    assert await store.balance(account.id) == 90
    # The call that held it ends, and takes it from the lot that is past its time.
    store.append_calls([call_record(2, cost_nano=20)])
    assert [entry.amount_nano for entry in await store.expire_lots({account.id: 1000}, NOON_MS)] == [-20]
    assert await store.expire_lots({account.id: 1000}, NOON_MS) == []
    assert await store.due_lots(NOON_MS) == []
    assert await store.balance(account.id) == 50
    assert await store.verify() == []
    assert_books_agree(tmp_path / "data")


async def test_rate_cards_are_stored_once(store):
    await store.put_rate_card("2026-11-21-ab", '{"gpt-4o":1}')
    await store.put_rate_card("2026-11-21-ab", '{"gpt-4o":1}')
    with pytest.raises(Conflict):
        await store.put_rate_card("2026-11-21-ab", '{"gpt-4o":2}')
    card = await store.rate_card("2026-11-21-ab")
    assert card.body == '{"gpt-4o":1}'
    assert await store.rate_cards() == [card]
    assert await store.rate_card("other") is None


async def test_verify_recomputes_costs_from_cards(store):
    account, _ = await customer(store, credits=1)
    await store.put_rate_card("c", "7")
    store.append_calls(
        [
            call_record(1, rate_card="c", input_tokens=3, cost_nano=21),
            call_record(2, rate_card="c", input_tokens=3, cost_nano=22),
            call_record(3, rate_card="lost", cost_nano=5),
            call_record(4, rate_card=None, cost_nano=0),
        ]
    )
    differences = await store.verify(lambda card, call: int(card.body) * call.input_tokens)
    assert [(d.what, d.account_id, d.expected, d.found) for d in differences] == [
        ("cost", account.id, 21, 22),
        ("cost", account.id, -1, 5),
    ]


TAMPERINGS = {
    "balance": "UPDATE entries SET amount_nano = amount_nano + 1 WHERE kind = 'purchased'",
    "entry": "UPDATE entry_lots SET amount_nano = amount_nano - 1 WHERE amount_nano > 0",
    "entry account": "INSERT INTO entries VALUES (900, 900, 'write_off', 5, 1, '', NULL, 0)",
    "entry call": "UPDATE entries SET call_id = 0 WHERE kind = 'write_off'",
    "lot": "UPDATE lot_use SET remaining_nano = remaining_nano + 1",
    "lot used": "UPDATE lot_use SET used_nano = used_nano + 1",
    "lot lost": "DELETE FROM lot_use",
    "lot open": "UPDATE lots SET is_open = 0",
    "lot granted": "UPDATE lots SET granted_nano = granted_nano + 1",
    "rollup": "UPDATE rollups SET output_tokens = output_tokens + 1",
    "rollup cost": "UPDATE rollups SET cost_nano = cost_nano - 1",
    "rollup lost": "DELETE FROM rollups",
    "rollup extra": "INSERT INTO rollups VALUES (1, 5, 1, 'm', 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)",
    "rollup call": "DELETE FROM calls WHERE id = (SELECT max(id) FROM calls)",
    "rollup call changed": "UPDATE calls SET input_tokens = input_tokens + 1",
    "rollup folded": "UPDATE folded SET calls = calls + 1",
    "spend": "UPDATE spend SET cost_nano = cost_nano + 1",
}


@pytest.mark.parametrize("what", TAMPERINGS)
async def test_verify_finds_what_does_not_add_up(tmp_path, what):
    store = await Store.open(tmp_path, now_ms=lambda: NOON_MS)
    account, _ = await customer(store, credits=1)
    store.append_calls([call_record(n) for n in range(3)])
    store.append_calls([call_record(9, time_ms=NOON_MS + 5, cost_nano=2 * CREDIT)])
    await store.add_credit(account.id, CREDIT, kind="trial")
    await store.delete_calls_before(NOON_MS + 1)
    assert await store.verify() == []
    await store.close()
    connection = sqlite3.connect(tmp_path / "relay.db", isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    assert connection.execute(TAMPERINGS[what]).rowcount > 0
    connection.close()
    store = await Store.open(tmp_path)
    differences = await store.verify()
    assert what.split()[0] in {difference.what for difference in differences}
    assert all(difference.expected != difference.found for difference in differences if difference.what != "entry")
    await store.close()
