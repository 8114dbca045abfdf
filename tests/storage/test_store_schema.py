"""What the schema can hold, and that SQL is never put together from values."""

import ast
import re
import sqlite3
from pathlib import Path

import pytest

import relay
from relay.records import CALL_COLUMNS
from relay.storage.schema import MIGRATIONS, migrate, schema_version_latest

RELAY = Path(relay.__file__).parent

# Every TEXT and BLOB column: its largest length and what it holds. A new one must be argued for here. Nothing a client
# sends or receives may be among them but: the address it calls from and its User-Agent (capped, cleaned, switchable).
ALLOWED = {
    ("store", "store_id"): (16, "random number of this store"),
    ("store", "pepper_check"): (32, "HMAC under the pepper of a fixed text"),
    ("organisations", "name"): (200, "given by the operator"),
    ("organisations", "limits"): (20_000, "JSON of overrides: numbers, and models of the catalogue"),
    ("accounts", "email"): (320, "address of the account"),
    ("accounts", "plan"): (64, "a name of the configuration"),
    ("accounts", "status"): (6, "closed set"),
    ("accounts", "limits"): (20_000, "JSON of overrides"),
    ("keys", "name"): (200, "given by the owner of the key"),
    ("keys", "description"): (2000, "given by the owner of the key"),
    ("keys", "status"): (9, "closed set"),
    ("keys", "scopes"): (20_000, "JSON list of scopes, closed set"),
    ("keys", "models"): (20_000, "JSON list of models of the catalogue"),
    ("keys", "networks"): (20_000, "JSON list of networks"),
    ("keys", "limits"): (20_000, "JSON of overrides"),
    ("keys", "on_disconnect"): (6, "closed set"),
    ("credentials", "public_id"): (32, "public part of a secret, random"),
    ("credentials", "digest"): (32, "HMAC-SHA256 of a secret under the pepper"),
    ("credentials", "last4"): (4, "last four characters of a secret"),
    ("entries", "kind"): (12, "closed set"),
    ("entries", "reason"): (1000, "the operator's own words"),
    ("entries", "idempotency_key"): (255, "chosen by the operator's system for one addition of credit"),
    ("lots", "kind"): (12, "closed set"),
    ("rate_cards", "id"): (64, "made by the relay"),
    ("rate_cards", "body"): (1_000_000, "JSON of rates, from the configuration"),
    ("rate_schedule", "body"): (1_000_000, "JSON of rates, from an operator's file"),
    ("idempotency_keys", "digest"): (32, "HMAC of an account and its Idempotency-Key"),
    ("shapes", "path"): (128, "template of a route"),
    ("shapes", "model"): (256, "a name of the catalogue"),
    ("shapes", "upstream_model"): (256, "a name of the configuration"),
    ("shapes", "channel"): (64, "a name of the configuration"),
    ("shapes", "error_code"): (40, "closed set"),
    ("shapes", "usage_source"): (10, "closed set"),
    ("shapes", "rate_card"): (64, "id of a rate card"),
    ("calls", "source_ip"): (45, "address of the caller, switchable"),
    ("calls", "user_agent"): (256, "capped and cleaned, switchable"),
    ("rollups", "model"): (256, "a name of the catalogue"),
    ("folded", "model"): (256, "a name of the catalogue"),
    ("events", "kind"): (40, "closed set"),
    ("events", "code"): (40, "closed set"),
    ("events", "scope"): (64, "closed set"),
    ("events", "channel"): (64, "a name of the configuration"),
    ("events", "source_ip"): (45, "address of the caller"),
    ("events", "detail"): (500, "the operator's own words, or a name of the configuration"),
    ("objects", "kind"): (13, "closed set of providers' objects"),
    ("objects", "object_id"): (128, "id given by the provider"),
    ("objects", "channel"): (64, "a name of the configuration"),
    ("objects", "model"): (256, "a name of the catalogue"),
    ("jobs", "kind"): (13, "closed set of providers' objects"),
    ("jobs", "object_id"): (128, "id given by the provider"),
    ("jobs", "channel"): (64, "a name of the configuration"),
    ("jobs", "path"): (128, "template of a route"),
    ("jobs", "model"): (256, "a name of the catalogue"),
    ("jobs", "upstream_model"): (256, "a name of the configuration"),
    ("jobs", "rate_card"): (64, "id of a rate card"),
    ("jobs", "state"): (5, "closed set"),
    ("seals", "digest"): (32, "SHA-256 of rows"),
    ("switches", "kind"): (40, "closed set"),
    ("switches", "name"): (64, "a name of the configuration"),
    ("switches", "message"): (500, "the operator's own words"),
    ("switches", "by"): (200, "who switched it: an operator"),
    ("set_aside", "kind"): (6, "closed set"),
    ("set_aside", "reason"): (200, "made by the relay, with numbers"),
    ("set_aside", "content"): (4096, "a call record without its texts of free form, or a slot of the journal"),
    ("call_lines", "kind"): (48, "a name of the closed set of priced tools"),
    ("call_lines", "model"): (256, "a name of the catalogue or of the shipped card"),
    ("job_parts", "model"): (256, "a name of the catalogue"),
    ("job_parts", "upstream_model"): (256, "a name of the configuration"),
    ("job_parts", "requests"): (
        800_000,
        "HMACs under the pepper, of the names of a batch's requests; gone with its end",
    ),
}


@pytest.fixture
def empty():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    yield connection
    connection.close()


def columns(connection):
    for name, sql in connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall():
        for _, column, kind, not_null, _, _ in connection.execute("SELECT * FROM pragma_table_info(?)", (name,)):
            yield name, sql, column, kind, not_null


def test_every_text_column_is_on_the_list(empty):
    found = {(table, column) for table, _, column, kind, _ in columns(empty) if kind in ("TEXT", "BLOB")}
    assert found == set(ALLOWED)


def test_every_other_column_is_an_integer_and_every_table_strict(empty):
    for table, sql, column, kind, _ in columns(empty):
        assert kind in ("TEXT", "BLOB", "INTEGER"), (table, column)
        assert re.search(r"\) STRICT(, WITHOUT ROWID)?$", sql), table


@pytest.mark.parametrize(("table", "column"), ALLOWED)
def test_a_text_that_is_too_long_is_refused(empty, table, column):
    length, _ = ALLOWED[(table, column)]
    empty.execute("PRAGMA foreign_keys = 0")
    values = {}
    for name, _, other, kind, not_null in columns(empty):
        if name == table and not_null:
            values[other] = {"INTEGER": 1, "TEXT": "x", "BLOB": b"b" * 32}[kind]
    for closed, value in {"status": "active", "kind": "purchased", "usage_source": "none"}.items():
        if closed in values and ALLOWED.get((table, closed), (0, ""))[1] == "closed set":
            values[closed] = value
    blob = column in ("digest", "store_id", "requests", "content", "pepper_check")
    values[column] = b"b" * (length + 1) if blob else "x" * (length + 1)
    if table == "store":
        empty.execute("DELETE FROM store")
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        empty.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(values.values()))


def test_call_records_have_the_columns_of_the_contract(empty):
    assert [row[1] for row in empty.execute("PRAGMA table_info(call_records)")] == list(CALL_COLUMNS)


def test_migrations_are_numbered_without_gaps_and_set_their_number(empty):
    numbers = [int(path.name[:4]) for path in sorted(MIGRATIONS.glob("*.sql"))]
    assert numbers == list(range(1, schema_version_latest() + 1))
    for number, path in zip(numbers, sorted(MIGRATIONS.glob("*.sql")), strict=True):
        assert f"PRAGMA user_version = {number};" in path.read_text()


@pytest.mark.parametrize("table", ["entries", "entry_lots", "rate_cards"])
def test_ledger_and_rate_cards_cannot_be_changed(empty, table):
    empty.execute("INSERT INTO accounts VALUES (1, 'a', 0, 'free', 'active', '{}', 0, 0)")
    empty.execute("INSERT INTO entries VALUES (1, 1, 'purchased', 5, 0, '', NULL, 0)")
    empty.execute("INSERT INTO lots VALUES (1, 1, 'purchased', 5, 1, 0, 0)")
    empty.execute("INSERT INTO entry_lots VALUES (1, 1, 5)")
    empty.execute("INSERT INTO rate_cards VALUES ('c', '{}', 0)")
    column = "body" if table == "rate_cards" else "amount_nano"
    value = "'{}'" if table == "rate_cards" else "6"
    with pytest.raises(sqlite3.IntegrityError, match=r"append-only|immutable"):
        empty.execute(f"UPDATE {table} SET {column} = {value}")
    with pytest.raises(sqlite3.IntegrityError, match=r"append-only|immutable"):
        empty.execute(f"DELETE FROM {table}")
    with pytest.raises(sqlite3.IntegrityError):
        empty.execute("DELETE FROM lots")
    # REPLACE deletes without the trigger of DELETE.
    empty.execute("PRAGMA foreign_keys = 0")
    with pytest.raises(sqlite3.IntegrityError, match=r"append-only|immutable"):
        empty.execute(f"REPLACE INTO {table} SELECT * FROM {table}")


# -- static rules

SOURCES = sorted(RELAY.rglob("*.py"))


def calls_of(tree, names):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
            yield node


def test_sql_is_never_put_together():
    """The text given to execute is a literal or a constant of a module; statements.py makes some from fixed texts."""
    checked = 0
    for path in SOURCES:
        for call in calls_of(ast.parse(path.read_text()), {"execute", "executemany", "executescript"}):
            where = f"{path.relative_to(RELAY)}:{call.lineno}"
            text = call.args[0]
            checked += 1
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                continue
            if isinstance(text, ast.Name) and text.id.isupper():
                continue
            if isinstance(text, ast.IfExp) and all(
                isinstance(part, ast.Name) and part.id.isupper() for part in (text.body, text.orelse)
            ):
                continue
            source = ast.unparse(text)
            assert (path.name, source) in {
                ("statements.py", "text"),
                ("schema.py", "path.read_text(encoding='utf-8')"),
                ("usage.py", "query + ' LIMIT :limit'"),  # of names in its own tables
            }, f"{where}: {source}"
    assert checked > 50


def test_sql_constants_are_literals():
    for path in (RELAY / "storage").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.AnnAssign) or node.value is None:
                continue
            name = ast.unparse(node.target)
            if re.match(r"SELECT|COMPARE|FOLD|INSERT|ADD|REPLACE", name):
                for part in ast.walk(node.value):
                    assert not isinstance(part, ast.JoinedStr | ast.BinOp), f"{path.name}: {name}"


def test_only_the_store_knows_sqlite():
    for path in SOURCES:
        if path.parent.name == "storage" or path.name == "capacity.py":  # that one asks for the version, no more
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {"sqlite3", "aiosqlite"} & {name.split(".")[0] for name in names}, path


def test_every_migration_has_a_number_of_its_own():
    """Two with one number would both run on a store of before, and only the first on one that stopped between them."""
    files = sorted(MIGRATIONS.glob("*.sql"))
    assert [int(file.name[:4]) for file in files] == list(range(1, len(files) + 1))
    for number, file in enumerate(files, 1):
        text = file.read_text(encoding="utf-8")
        assert re.findall(r"PRAGMA user_version = (\d+);", text) == [str(number)]
