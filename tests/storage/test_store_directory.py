"""Organisations, accounts, keys, credentials, and the one read that the proxy makes of them."""

import sqlite3

import pytest

from relay.records import MS_PER_DAY
from relay.storage import Conflict, NotFound, Store, directory
from relay.storage.database import open_reader
from relay.storage.rows import Limits, Spend
from relay.storage.schema import MIGRATIONS, schema_version_latest
from tests.support.stored import CREDIT, DAY, NOON_MS, call_record, customer


async def test_accounts_and_organisations(store):
    organisation = await store.create_organisation("Acme", limits=Limits(rpm=10))
    assert await store.organisation(organisation.id) == organisation
    assert await store.find_organisation("Acme") == organisation
    assert await store.find_organisation("acme") is None
    with pytest.raises(Conflict):
        await store.create_organisation("Acme")
    renamed = await store.set_organisation(organisation.id, name="Acme AG", limits=Limits())
    assert (renamed.name, renamed.limits) == ("Acme AG", Limits())

    account = await store.create_account(" Ann@Example.org ", plan="paid", organisation_id=organisation.id)
    assert (account.email, account.status, account.limits) == ("ann@example.org", "active", Limits())
    assert await store.find_account("ANN@example.org") == account
    with pytest.raises(Conflict):
        await store.create_account("ann@EXAMPLE.org", plan="free")
    with pytest.raises(NotFound):
        await store.create_account("bob@example.org", plan="free", organisation_id=99)
    bob = await store.create_account("bob@example.org", plan="free")
    limits = Limits(tpm=0, daily_nano=5, tokens_per_call={"gpt-4o": 100, "*": 0})
    changed = await store.set_account(bob.id, limits=limits, plan="paid", status="closed")
    assert (changed.limits, changed.plan, changed.status, changed.closed_ms) == (limits, "paid", "closed", NOON_MS)
    assert await store.account(bob.id) == changed
    assert (await store.set_account(bob.id, status="active")).closed_ms == 0
    with pytest.raises(Conflict):
        await store.set_account(bob.id, email="ann@example.org")
    with pytest.raises(TypeError, match="created_ms"):
        await store.set_account(bob.id, created_ms=1)
    with pytest.raises(ValueError, match="status"):
        await store.set_account(bob.id, status="gone")
    with pytest.raises(NotFound):
        await store.set_account(99, plan="x")
    assert [row.id for row in await store.accounts()] == [account.id, bob.id]
    assert [row.id for row in await store.accounts(organisation_id=organisation.id)] == [account.id]
    assert [row.id for row in await store.accounts(after_id=account.id, limit=1)] == [bob.id]


async def test_keys_and_credentials(store):
    account, _ = await customer(store)
    fields = {
        "name": "n", "description": "d", "scopes": ("chat",), "models": ("gpt-4o", "o3"), "networks": ("10.0.0.0/8",),
        "limits": Limits(rpm=3), "expires_ms": 5, "on_disconnect": "drain",
    }  # fmt: skip
    key = await store.create_key(
        account.id, public_id="pub1", digest=b"1" * 32, last4="abcd", pepper_version=2, **fields
    )
    assert {name: getattr(key, name) for name in fields} == fields
    assert await store.key(key.id) == key
    assert [row.id for row in await store.keys(account.id)] == [1, key.id]
    with pytest.raises(Conflict):
        await store.create_key(account.id, public_id="pub1", digest=b"1" * 32, last4="abcd", pepper_version=2)
    assert len(await store.keys(account.id)) == 2  # the key without its credential was undone
    with pytest.raises(NotFound):
        await store.create_key(99, public_id="pub2", digest=b"1" * 32, last4="abcd", pepper_version=2)
    with pytest.raises(ValueError, match="digest"):
        await store.create_key(account.id, public_id="pub2", digest=b"short", last4="abcd", pepper_version=2)
    assert (await store.set_key(key.id, status="suspended", models=None)).models is None
    assert (await store.key(key.id)).status == "suspended"

    new = await store.add_credential(
        key.id, public_id="pub2", digest=b"2" * 32, last4="efgh", pepper_version=2, old_expires_ms=NOON_MS + 50
    )
    old, stored = await store.credentials(key.id)
    assert (old.public_id, old.expires_ms) == ("pub1", NOON_MS + 50)
    assert stored == new
    assert (await store.revoke_credential("pub1")).revoked_ms == NOON_MS
    with pytest.raises(NotFound):
        await store.revoke_credential("nobody")

    revoked = await store.set_key(key.id, status="revoked")
    assert revoked.revoked_ms == NOON_MS
    with pytest.raises(Conflict):
        await store.set_key(key.id, status="active")
    with pytest.raises(Conflict):
        await store.add_credential(
            key.id, public_id="pub3", digest=b"2" * 32, last4="efgh", pepper_version=2, old_expires_ms=0
        )


async def test_one_read_gives_all_that_a_call_needs(store):
    organisation = await store.create_organisation("Acme")
    account, key = await customer(store, "a", credits=1, organisation_id=organisation.id)
    sibling, sibling_key = await customer(store, "b", credits=1, organisation_id=organisation.id)
    month_start = directory.first_day_of_month(DAY) * MS_PER_DAY

    def call(number, cost, *, time_ms=NOON_MS, of=(account, key)):
        return call_record(
            number, time_ms=time_ms, cost_nano=cost, account_id=of[0].id, key_id=of[1].id, organisation_id=1
        )

    records = [
        call(1, 1),
        call(2, 10, time_ms=month_start),
        call(3, 100, time_ms=month_start - 1),
        call(4, 1000, of=(sibling, sibling_key)),
        call(5, 10_000, of=(account, sibling_key)),
    ]
    expected = {
        "balance_nano": CREDIT - 10_111,
        "key_spend": Spend(DAY, 1, directory.month_index(DAY), 11),
        "account_spend": Spend(DAY, 10_001, directory.month_index(DAY), 10_011),
        "organisation_spend": Spend(DAY, 11_001, directory.month_index(DAY), 11_011),
    }

    async def check():
        loaded = await store.find_credential(b"a")
        assert (loaded.key, loaded.account, loaded.organisation) == (key, account, organisation)
        assert loaded.credential.digest == b"d" * 32
        assert {name: getattr(loaded, name) for name in expected} == expected

    store.append_calls(records)
    await check()  # still queued
    await store.flush()
    key = await store.key(key.id)  # its last used day
    await check()
    assert await store.find_credential("nobody") is None
    assert await store.find_credential(b"\xff'; --") is None


async def test_a_read_sees_each_queued_record_once_whatever_the_writer_does_meanwhile(store):
    account, _ = await customer(store, credits=1)
    number = spent = 0
    for round_ in range(60):
        for _ in range(round_ % 4):
            number += 1
            spent += number
            store.append_calls([call_record(number, cost_nano=number)])
        flushing = None if round_ % 3 else store.flush()
        if flushing is not None and round_ % 2:
            await flushing
            flushing = None
        store._group._start()  # a commit under way during the read
        loaded = await store.find_credential("a")
        assert loaded.balance_nano == CREDIT - spent
        assert loaded.account_spend.daily_nano == spent
        if flushing is not None:
            await flushing
    assert await store.balance(account.id) == CREDIT - spent


async def test_looking_up_a_key_never_scans_a_table(tmp_path):
    store = await Store.open(tmp_path)
    organisation = await store.create_organisation("Acme")
    await customer(store, organisation_id=organisation.id)
    statements = []

    def job(connection):
        connection.set_trace_callback(statements.append)
        directory.load_key(connection, "a", NOON_MS)
        connection.set_trace_callback(None)
        return [
            (sql, row[3])
            for sql in statements
            if sql.lstrip().startswith("SELECT")
            for row in connection.execute("EXPLAIN QUERY PLAN " + sql)
        ]

    plans = await store._looking_up.run(job)
    assert len(plans) >= 8
    for sql, step in plans:
        assert not step.startswith("SCAN") or " store" in sql, (sql, step)
    await store.close()


async def test_a_reader_cannot_write(store, tmp_path):
    connection = open_reader(tmp_path / "data" / "relay.db")
    with pytest.raises(Exception, match="readonly"):
        connection.execute("DELETE FROM keys")
    connection.close()


async def test_finding_money_L7_caps_do_not_count_what_was_written_off(store):
    """Of key, account and organisation, today and this month, committed and queued."""
    organisation = await store.create_organisation("o")
    await customer(store, credits=1, organisation_id=organisation.id)
    await customer(store, "b", credits=1, organisation_id=organisation.id)
    yesterday = NOON_MS - MS_PER_DAY

    def calls(first: int) -> list:
        mine = {"organisation_id": organisation.id, "cost_nano": 100, "write_off_nano": 30}
        return [
            call_record(first, **mine),
            call_record(first + 1, time_ms=yesterday, **mine),
            call_record(first + 2, **mine | {"account_id": 2, "key_id": 2}),
        ]

    for number in (1, 2):  # the second time the first group is committed
        store.append_calls(calls(number * 10))
        loaded = await store.find_credential("a")
        for spend in (loaded.key_spend, loaded.account_spend):
            assert (spend.daily_nano, spend.monthly_nano) == (70 * number, 140 * number)
        spend = loaded.organisation_spend
        assert (spend.daily_nano, spend.monthly_nano) == (140 * number, 210 * number)
        await store.flush()
    assert await store.verify() == []


async def test_finding_money_L7_a_write_off_stays_out_of_caps_when_retention_has_deleted_its_call(store):
    """Of a key, too, whose cap for the month is longer than the records are kept; and after a restart."""
    organisation = await store.create_organisation("o")
    await customer(store, credits=1, organisation_id=organisation.id)
    days = [NOON_MS - 2 * MS_PER_DAY, NOON_MS - MS_PER_DAY, NOON_MS]
    mine = {"organisation_id": organisation.id, "cost_nano": 100, "write_off_nano": 30}
    store.append_calls([call_record(number, time_ms=time_ms, **mine) for number, time_ms in enumerate(days)])
    await store.flush()
    assert await store.delete_calls_before(NOON_MS - 1) == 2
    loaded = await store.find_credential("a")
    for spend in (loaded.key_spend, loaded.account_spend, loaded.organisation_spend):
        assert (spend.daily_nano, spend.monthly_nano) == (70, 210)
    today = NOON_MS // MS_PER_DAY
    assert await store.charged(1, key_id=1) == {today - 2: 70, today - 1: 70, today: 70}
    assert await store.charged(1, since_day=today) == {today: 70}
    assert await store.verify() == []


async def test_finding_money_L7_write_offs_of_an_older_store_are_summed_up(tmp_path):
    """Those of calls whose records are there, by key; the others count for the account alone."""
    store = await Store.open(tmp_path, now_ms=lambda: NOON_MS)
    await customer(store, credits=1)
    mine = {"cost_nano": 100, "write_off_nano": 30}
    store.append_calls([call_record(1, time_ms=NOON_MS - MS_PER_DAY, **mine), call_record(2, **mine)])
    await store.flush()
    await store.delete_calls_before(NOON_MS - 1)
    await store.close()
    connection = sqlite3.connect(tmp_path / "relay.db", isolation_level=None)
    connection.execute("DROP TABLE written_off")
    [migration] = MIGRATIONS.glob("*_written_off.sql")
    connection.executescript(migration.read_text())
    connection.execute(f"PRAGMA user_version = {schema_version_latest()}")
    connection.close()
    store = await Store.open(tmp_path, now_ms=lambda: NOON_MS)
    loaded = await store.find_credential("a")
    assert (loaded.key_spend.daily_nano, loaded.key_spend.monthly_nano) == (70, 170)
    assert (loaded.account_spend.daily_nano, loaded.account_spend.monthly_nano) == (70, 140)
    assert await store.verify() == []
    await store.close()
