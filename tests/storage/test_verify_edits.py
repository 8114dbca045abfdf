"""`verify` finds what was edited in a stopped store, dropped triggers, damaged pages of tables and indexes."""

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from relay.records import MS_PER_DAY
from relay.storage import Store, StoreUnusable, verify
from relay.storage.database import open_reader
from relay.storage.rows import JobRow, ObjectRow
from relay.storage.schema import MIGRATIONS
from tests.support.stored import CREDIT, NOON_MS, call_record, customer

PAGE = 4096


async def fill(folder: Path) -> None:
    """A row in every table, and more than a page in some."""
    store = await Store.open(folder, now_ms=lambda: NOON_MS)
    first = await store.create_organisation("first")
    second = await store.create_organisation("second")
    await customer(store, "a", credits=5, organisation_id=first.id)
    await customer(store, "b")
    await store.set_account(2, organisation_id=second.id)
    await store.set_account(2, organisation_id=0)
    await store.add_credit(1, CREDIT, kind="trial", reason="welcome", expires_ms=NOON_MS + 10**9, idempotency_key="w")
    await store.add_credit(1, CREDIT, kind="subscription", reason="due", expires_ms=NOON_MS - 1)
    await store.refund(1, 1000, reason="asked")
    await store.expire_lots({1: CREDIT // 2}, NOON_MS)
    await store.put_rate_card("card", "{}")
    await store.schedule_rates("{}", NOON_MS + 1)
    calls = [call_record(n, organisation_id=first.id, model=f"m{n % 40}") for n in range(600)]
    calls += [call_record(1000, account_id=2, key_id=2, organisation_id=second.id, cost_nano=0)]
    calls += [call_record(1001, account_id=2, key_id=2, cost_nano=50, write_off_nano=50)]
    calls += [(*call_record(1002, cost_nano=7, organisation_id=first.id), (1, 0, 0, 0, 0, 0, 0, 0, b"d" * 32, 5))]
    calls += [call_record(1003, cost_nano="none")]
    store.append_calls(calls)
    store.append_events([(NOON_MS, "limit", "x", 1, 1, "key", "main", None, 1, f"{n} {'d' * 400}") for n in range(90)])
    row = JobRow(
        id=call_record(2000)[0], kind="batch", object_id="batch_1", account_id=1, organisation_id=0, key_id=1,
        channel="main", path="/v1/batches", model="gpt-4o", upstream_model="gpt-4o", rate_card="card",
        hold_nano=5, max_cost_nano=-1, units=0, created_ms=NOON_MS, expires_ms=NOON_MS + 1,
    )  # fmt: skip
    await store.flush()
    await store.objects.begin_job(row, [], None)
    await store.objects.add([ObjectRow(0, "file", f"file_{n}", 1, 1, "main", NOON_MS) for n in range(200)])
    await store.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    asyncio.run(fill(folder))
    assert found(folder) == set()
    return folder


@pytest.fixture
def copy(filled: Path, tmp_path: Path) -> Path:
    shutil.copy(filled / "relay.db", tmp_path)
    return tmp_path


def found(folder: Path) -> set[tuple[str, str]]:
    """What verify says, without opening the store."""
    connection = open_reader(folder / "relay.db")
    try:
        return {(row.what, row.subject) for row in verify.verify(connection, None).differences}
    finally:
        connection.close()


@contextmanager
def edited(folder: Path) -> Iterator[sqlite3.Connection]:
    """With every trigger out of the way, and back in its place afterwards."""
    connection = sqlite3.connect(folder / "relay.db", isolation_level=None)
    triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    yield connection
    for _, text in triggers:
        connection.execute(text)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()


EDITS = {
    "kind of an entry": ("UPDATE entries SET kind = 'trial' WHERE id = 1", ("seal", "entry_1, lot_1")),
    "kind of a lot": ("UPDATE lots SET kind = 'purchased' WHERE id = 2", ("seal", "entry_2, lot_2")),
    "expiry of a lot": ("UPDATE lots SET expires_ms = 0 WHERE id = 2", ("seal", "entry_2, lot_2")),
    "time of a lot": ("UPDATE lots SET created_ms = 5 WHERE id = 3", ("seal", "entry_3, lot_3")),
    "owner of a lot": ("UPDATE lots SET account_id = 2 WHERE id = 3", ("seal", "entry_3, lot_3")),
    "call of a write-off": (
        "UPDATE entries SET call_id = call_id + 1 WHERE kind = 'write_off'",
        ("seal", "entry_6, shape_41"),
    ),
    "reason of an entry": ("UPDATE entries SET reason = 'other' WHERE id = 2", ("seal", "entry_2, lot_2")),
    "time of an entry": ("UPDATE entries SET time_ms = time_ms + 1 WHERE id = 4", ("seal", "entry_4")),
    "idempotency key": ("UPDATE entries SET idempotency_key = NULL WHERE id = 2", ("seal", "entry_2, lot_2")),
    "lot of an entry": ("UPDATE entry_lots SET lot_id = 2 WHERE entry_id = 4", ("seal", "entry_4")),
    "an entry and its lot that are gone": (
        "DELETE FROM entry_lots WHERE entry_id = 2; DELETE FROM entries WHERE id = 2; DELETE FROM lot_use"
        " WHERE lot_id = 2; DELETE FROM lots WHERE id = 2",
        ("seal", "entry_2, lot_2"),
    ),
    "an entry and its lot that nobody made": (
        "INSERT INTO entries VALUES (90, 2, 'trial', 9, 0, '', NULL, 1); INSERT INTO lots VALUES (90, 2, 'trial', 9, 1,"
        " 0, 1); INSERT INTO lot_use VALUES (90, 0, 9); INSERT INTO entry_lots VALUES (90, 90, 9)",
        ("unsealed", "entry_90"),
    ),
    "sum of what was written off": (
        "UPDATE written_off SET amount_nano = 49",
        ("spend", f"day {NOON_MS // MS_PER_DAY} written off"),
    ),
    "organisation of a call": (
        "UPDATE calls SET organisation_id = 2 WHERE id = (SELECT min(id) FROM calls)",
        ("organisation", str(call_record(0)[0])),
    ),
    "no organisation": (
        "UPDATE calls SET organisation_id = NULL WHERE id = (SELECT min(id) FROM calls)",
        ("organisation", str(call_record(0)[0])),
    ),
    "status of a charged call": (
        "UPDATE shapes SET status = 500 WHERE id = 3",
        ("seal", "shape_1 to shape_40"),
    ),
    "a seal": ("UPDATE seals SET digest = zeroblob(32) WHERE id = 3", ("seal", "entry_2, lot_2")),
    "a seal that is gone": ("DELETE FROM seals WHERE id = 2", ("seal", "seal 2")),
    "all seals": ("DELETE FROM seals", ("seal", "seal 1")),
}


@pytest.mark.parametrize(("edit", "expected"), EDITS.values(), ids=EDITS)
def test_finding_money_M7_edits(copy: Path, edit: str, expected: tuple[str, str]):
    with edited(copy) as connection:
        connection.executescript(edit)
    assert expected in found(copy), found(copy)


async def test_finding_money_M7_what_was_edited_stays_found(copy: Path):
    """A relay that goes on writing seals nothing that it has not written."""
    with edited(copy) as connection:
        connection.executescript(EDITS["an entry and its lot that nobody made"][0])
        connection.execute("DELETE FROM seals")
    store = await Store.open(copy, now_ms=lambda: NOON_MS)
    await store.add_credit(1, 5)
    await store.close()
    assert {("unsealed", "entry_1"), ("unsealed", "entry_90")} <= found(copy)
    assert ("unsealed", "entry_91") not in found(copy)


@pytest.mark.parametrize("kind", ["trigger", "index", "table"])
def test_finding_money_M7_the_schema(filled: Path, copy: Path, kind: str):
    """Every trigger and every index that is dropped, a trigger that does nothing, a table too many."""
    connection = sqlite3.connect(copy / "relay.db", isolation_level=None)
    dropped = set()
    if kind == "table":
        connection.execute("CREATE TABLE other (a)")
        dropped.add(("schema", "table other"))
        name = "entries_are_not_changed"
        connection.execute(f"DROP TRIGGER {name}")
        connection.execute(f"CREATE TRIGGER {name} BEFORE UPDATE ON entries BEGIN SELECT 1; END")
        dropped.add(("schema", f"trigger {name}"))
    else:
        rows = connection.execute("SELECT name FROM sqlite_schema WHERE type = ? AND sql IS NOT NULL", (kind,))
        for (name,) in rows.fetchall():
            connection.execute(f"DROP {kind} {name}")
            dropped.add(("schema", f"{kind} {name}"))
    connection.close()
    assert len(dropped) >= (2 if kind == "table" else 10)
    assert found(copy) == dropped


def page_numbers(folder: Path) -> dict[str, list[int]]:
    """Of every table and index that has content."""
    connection = sqlite3.connect(folder / "relay.db")
    try:
        rows = connection.execute("SELECT name, pageno FROM dbstat WHERE ncell > 0 ORDER BY 2").fetchall()
    except sqlite3.OperationalError:  # a library without dbstat: root pages
        rows = connection.execute("SELECT name, rootpage FROM sqlite_schema WHERE rootpage > 0").fetchall()
    connection.close()
    pages: dict[str, list[int]] = {}
    for name, number in rows:
        pages.setdefault(name, []).append(number)
    return pages


@pytest.mark.parametrize("damage", [lambda size: bytes(size), random.Random(7).randbytes], ids=["zeros", "random"])
async def test_finding_money_M7_damaged_pages(filled: Path, tmp_path: Path, damage: Callable[[int], bytes]):
    """A page of each table and index: verify finds it, or no relay starts."""
    pages = page_numbers(filled)
    assert {"rollups", "organisations", "rate_schedule", "idempotency_keys", "events", "objects"} <= pages.keys()
    for name, numbers in pages.items():
        if name == "sqlite_schema":
            continue
        path = tmp_path / "relay.db"
        shutil.copy(filled / "relay.db", path)
        with path.open("r+b") as file:
            file.seek((numbers[-1] - 1) * PAGE)
            file.write(damage(PAGE))
        with suppress(sqlite3.DatabaseError):
            assert any(what == "damage" for what, _ in found(tmp_path)), name
        if name == "rollups":
            with pytest.raises(StoreUnusable, match="table rollups"):
                await Store.open(tmp_path)


async def test_a_store_of_an_earlier_version_is_sealed_once(tmp_path: Path):
    """The chain begins with what stands there."""
    connection = sqlite3.connect(tmp_path / "relay.db", isolation_level=None)
    for path in sorted(MIGRATIONS.glob("*.sql")):
        if int(path.name[:4]) < 8:
            connection.executescript(path.read_text())
    connection.executescript("""
        INSERT INTO accounts VALUES (1, 'a@example.org', 0, 'free', 'active', '{}', 0, 0);
        INSERT INTO entries VALUES (1, 1, 'trial', 9, 0, '', NULL, 1);
        INSERT INTO lots VALUES (1, 1, 'trial', 9, 1, 0, 1);
        INSERT INTO lot_use VALUES (1, 0, 9);
        INSERT INTO entry_lots VALUES (1, 1, 9);
    """)
    connection.close()
    for _ in range(2):
        store = await Store.open(tmp_path, now_ms=lambda: NOON_MS)
        verified = await store.verify_all()
        assert (verified.differences, verified.unchecked, verified.seal[0]) == ([], [], 1)
        await store.close()
    with edited(tmp_path) as connection:
        connection.execute("UPDATE lots SET kind = 'purchased' WHERE id = 1")
    assert found(tmp_path) == {("seal", "entry_1, lot_1")}


async def test_pages_for_which_there_is_no_time_are_named(filled: Path):
    connection = open_reader(filled / "relay.db")
    verified = verify.verify(connection, None, pages_seconds=-1)
    connection.close()
    assert verified.differences == []
    assert "calls" in verified.unchecked
