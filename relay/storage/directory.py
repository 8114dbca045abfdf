"""Organisations, accounts, keys and their credentials. Writing functions run in the writer's thread, in a
transaction.
"""

from __future__ import annotations

import datetime
import sqlite3
from typing import Any, Final, Literal

import msgspec

from relay.records import MS_PER_DAY
from relay.storage import charged
from relay.storage.errors import Conflict, NotFound, StoreError
from relay.storage.ledger import balance_of, require_account
from relay.storage.rows import (
    ACCOUNT_STATUSES,
    KEY_STATUSES,
    AccountRow,
    CredentialRow,
    KeyRow,
    Limits,
    LoadedKey,
    OrganisationRow,
    Spend,
)

ORGANISATION_FIELDS: Final = frozenset({"name", "limits"})
ACCOUNT_FIELDS: Final = frozenset({"email", "organisation_id", "plan", "status", "limits"})
KEY_FIELDS: Final = frozenset(
    {"name", "description", "status", "scopes", "models", "networks", "limits", "expires_ms", "on_disconnect"}
)

SELECT_KEY: Final = """
    SELECT id, account_id, name, description, status, scopes, models, networks, limits, expires_ms, on_disconnect,
        created_ms, revoked_ms, last_used_day
    FROM keys WHERE id = ?
"""
SELECT_ACCOUNT: Final = """
    SELECT id, email, organisation_id, plan, status, limits, created_ms, closed_ms FROM accounts WHERE id = ?
"""
# One descent of `credentials`, then rows by their ids.
SELECT_CREDENTIAL: Final = """
    SELECT public_id, key_id, digest, last4, pepper_version, created_ms, expires_ms, revoked_ms
    FROM credentials WHERE public_id = ?
"""

_decode_limits = msgspec.json.Decoder(Limits)
_decode_names = msgspec.json.Decoder(tuple[str, ...])


def normalised_email(email: str) -> str:
    """The form in which addresses are stored and compared."""
    return email.strip().lower()


# -- organisations


def create_organisation(connection: sqlite3.Connection, name: str, limits: Limits, now_ms: int) -> OrganisationRow:
    try:
        cursor = connection.execute(
            "INSERT INTO organisations (name, limits, created_ms) VALUES (?, ?, ?)",
            (name, _limits_text(limits), now_ms),
        )
    except sqlite3.IntegrityError as error:
        raise _refused(error, "an organisation of that name exists") from None
    return organisation(connection, cursor.lastrowid or 0)


def organisation(connection: sqlite3.Connection, organisation_id: int) -> OrganisationRow:
    row = connection.execute(
        "SELECT id, name, limits, created_ms FROM organisations WHERE id = ?", (organisation_id,)
    ).fetchone()
    if row is None:
        raise NotFound(f"no organisation {organisation_id}")
    return _organisation_row(row)


def find_organisation(connection: sqlite3.Connection, name: str) -> OrganisationRow | None:
    row = connection.execute(
        "SELECT id, name, limits, created_ms FROM organisations WHERE name = ?", (name,)
    ).fetchone()
    return None if row is None else _organisation_row(row)


def organisations(connection: sqlite3.Connection) -> list[OrganisationRow]:
    rows = connection.execute("SELECT id, name, limits, created_ms FROM organisations ORDER BY id")
    return [_organisation_row(row) for row in rows]


def set_organisation(
    connection: sqlite3.Connection, organisation_id: int, changes: dict[str, Any], now_ms: int
) -> OrganisationRow:
    _check_names(changes, ORGANISATION_FIELDS)
    row = msgspec.structs.replace(organisation(connection, organisation_id), **changes)
    try:
        connection.execute(
            "UPDATE organisations SET name = ?, limits = ? WHERE id = ?", (row.name, _limits_text(row.limits), row.id)
        )
    except sqlite3.IntegrityError as error:
        raise _refused(error, "an organisation of that name exists") from None
    return row


# -- accounts


def create_account(
    connection: sqlite3.Connection, email: str, plan: str, organisation_id: int, limits: Limits, now_ms: int
) -> AccountRow:
    if organisation_id:
        organisation(connection, organisation_id)
    try:
        cursor = connection.execute(
            "INSERT INTO accounts (email, organisation_id, plan, status, limits, created_ms, closed_ms)"
            " VALUES (?, ?, ?, 'active', ?, ?, 0)",
            (normalised_email(email), organisation_id, plan, _limits_text(limits), now_ms),
        )
    except sqlite3.IntegrityError as error:
        raise _refused(error, "an account with that e-mail address exists") from None
    return account(connection, cursor.lastrowid or 0)


def account(connection: sqlite3.Connection, account_id: int) -> AccountRow:
    row = connection.execute(SELECT_ACCOUNT, (account_id,)).fetchone()
    if row is None:
        raise NotFound(f"no account {account_id}")
    return _account_row(row)


def find_account(connection: sqlite3.Connection, email: str) -> AccountRow | None:
    row = connection.execute(
        "SELECT id, email, organisation_id, plan, status, limits, created_ms, closed_ms FROM accounts WHERE email = ?",
        (normalised_email(email),),
    ).fetchone()
    return None if row is None else _account_row(row)


def accounts(
    connection: sqlite3.Connection, organisation_id: int | None, after_id: int, limit: int
) -> list[AccountRow]:
    rows = connection.execute(
        "SELECT id, email, organisation_id, plan, status, limits, created_ms, closed_ms FROM accounts"
        " WHERE id > ?1 AND (?2 IS NULL OR organisation_id = ?2) ORDER BY id LIMIT ?3",
        (after_id, organisation_id, limit),
    )
    return [_account_row(row) for row in rows]


def set_account(connection: sqlite3.Connection, account_id: int, changes: dict[str, Any], now_ms: int) -> AccountRow:
    _check_names(changes, ACCOUNT_FIELDS)
    old = account(connection, account_id)
    row = msgspec.structs.replace(old, **changes)
    if row.status not in ACCOUNT_STATUSES:
        raise ValueError("no such account status")
    if row.status != old.status:
        row = msgspec.structs.replace(row, closed_ms=now_ms if row.status == "closed" else 0)
    if row.organisation_id and row.organisation_id != old.organisation_id:
        organisation(connection, row.organisation_id)
    row = msgspec.structs.replace(row, email=normalised_email(row.email))
    try:
        connection.execute(
            "UPDATE accounts SET email = ?, organisation_id = ?, plan = ?, status = ?, limits = ?, closed_ms = ?"
            " WHERE id = ?",
            (row.email, row.organisation_id, row.plan, row.status, _limits_text(row.limits), row.closed_ms, row.id),
        )
    except sqlite3.IntegrityError as error:
        raise _refused(error, "an account with that e-mail address exists") from None
    if row.organisation_id != old.organisation_id:
        connection.execute("REPLACE INTO memberships VALUES (?, ?)", (row.id, old.organisation_id))
    return row


# -- keys and credentials


def create_key(
    connection: sqlite3.Connection,
    account_id: int,
    *,
    name: str,
    description: str,
    scopes: tuple[str, ...] | None,
    models: tuple[str, ...] | None,
    networks: tuple[str, ...] | None,
    limits: Limits,
    expires_ms: int,
    on_disconnect: Literal["cancel", "drain"] | None,
    now_ms: int,
) -> int:
    """Returns the id; the key has no credential yet."""
    require_account(connection, account_id)
    try:
        cursor = connection.execute(
            "INSERT INTO keys (account_id, name, description, status, scopes, models, networks, limits, expires_ms,"
            " on_disconnect, created_ms, revoked_ms, last_used_day)"
            " VALUES (?, ?, ?, 'active', ?, ?, ?, ?, ?, ?, ?, 0, 0)",
            (
                account_id,
                name,
                description,
                _names_text(scopes),
                _names_text(models),
                _names_text(networks),
                _limits_text(limits),
                expires_ms,
                on_disconnect,
                now_ms,
            ),
        )
    except sqlite3.IntegrityError as error:
        raise _refused(error, "that key exists") from None
    return cursor.lastrowid or 0


def insert_credential(
    connection: sqlite3.Connection,
    key_id: int,
    public_id: str,
    digest: bytes,
    last4: str,
    pepper_version: int,
    now_ms: int,
) -> CredentialRow:
    row = CredentialRow(public_id, key_id, digest, last4, pepper_version, now_ms, 0, 0)
    try:
        connection.execute(
            "INSERT INTO credentials VALUES (?, ?, ?, ?, ?, ?, 0, 0)",
            (public_id, key_id, digest, last4, pepper_version, now_ms),
        )
    except sqlite3.IntegrityError as error:
        raise _refused(error, "a credential with that public id exists") from None
    return row


def rotate(connection: sqlite3.Connection, new: CredentialRow, old_expires_ms: int) -> CredentialRow:
    """Add `new` to its key; let the key's other credentials end at old_expires_ms, unless they end sooner."""
    if key(connection, new.key_id).status == "revoked":
        raise Conflict("the key is revoked")
    connection.execute(
        "UPDATE credentials SET expires_ms = ?1 WHERE key_id = ?2 AND (expires_ms = 0 OR expires_ms > ?1)",
        (old_expires_ms, new.key_id),
    )
    return insert_credential(
        connection, new.key_id, new.public_id, new.digest, new.last4, new.pepper_version, new.created_ms
    )


def revoke_credential(connection: sqlite3.Connection, public_id: str, now_ms: int) -> CredentialRow:
    connection.execute(
        "UPDATE credentials SET revoked_ms = ? WHERE public_id = ? AND revoked_ms = 0", (now_ms, public_id)
    )
    row = connection.execute(SELECT_CREDENTIAL, (public_id,)).fetchone()
    if row is None:
        raise NotFound("no such credential")
    return CredentialRow(*row)


def credentials(connection: sqlite3.Connection, key_id: int) -> list[CredentialRow]:
    rows = connection.execute(
        "SELECT public_id, key_id, digest, last4, pepper_version, created_ms, expires_ms, revoked_ms"
        " FROM credentials WHERE key_id = ? ORDER BY created_ms, expires_ms = 0, public_id",
        (key_id,),
    )
    return [CredentialRow(*row) for row in rows]


def key(connection: sqlite3.Connection, key_id: int) -> KeyRow:
    row = connection.execute(SELECT_KEY, (key_id,)).fetchone()
    if row is None:
        raise NotFound(f"no key {key_id}")
    return _key_row(row)


def keys(connection: sqlite3.Connection, account_id: int, after_id: int, limit: int) -> list[KeyRow]:
    rows = connection.execute(
        "SELECT id, account_id, name, description, status, scopes, models, networks, limits, expires_ms, on_disconnect,"
        " created_ms, revoked_ms, last_used_day FROM keys WHERE account_id = ? AND id > ? ORDER BY id LIMIT ?",
        (account_id, after_id, limit),
    )
    return [_key_row(row) for row in rows]


def keys_named(connection: sqlite3.Connection, name: str, limit: int) -> list[KeyRow]:
    """Keys of that name, of all accounts, those that are not revoked first."""
    rows = connection.execute(
        "SELECT id, account_id, name, description, status, scopes, models, networks, limits, expires_ms, on_disconnect,"
        " created_ms, revoked_ms, last_used_day FROM keys WHERE name = ? ORDER BY revoked_ms != 0, id LIMIT ?",
        (name, limit),
    )
    return [_key_row(row) for row in rows]


def set_key(connection: sqlite3.Connection, key_id: int, changes: dict[str, Any], now_ms: int) -> KeyRow:
    _check_names(changes, KEY_FIELDS)
    old = key(connection, key_id)
    row = msgspec.structs.replace(old, **changes)
    if row.status not in KEY_STATUSES:
        raise ValueError("no such key status")
    if old.status == "revoked" != row.status:
        raise Conflict("a revoked key stays revoked")
    if row.status == "revoked" != old.status:
        row = msgspec.structs.replace(row, revoked_ms=now_ms)
    try:
        connection.execute(
            "UPDATE keys SET name = ?, description = ?, status = ?, scopes = ?, models = ?, networks = ?, limits = ?,"
            " expires_ms = ?, on_disconnect = ?, revoked_ms = ? WHERE id = ?",
            (
                row.name,
                row.description,
                row.status,
                _names_text(row.scopes),
                _names_text(row.models),
                _names_text(row.networks),
                _limits_text(row.limits),
                row.expires_ms,
                row.on_disconnect,
                row.revoked_ms,
                row.id,
            ),
        )
    except sqlite3.IntegrityError as error:
        raise _refused(error, "that key exists") from None
    return row


def load_key(connection: sqlite3.Connection, public_id: str, now_ms: int) -> tuple[LoadedKey, int] | None:
    """A credential and all that belongs to it, and the number of the last group of calls that its sums contain."""
    connection.execute("BEGIN")
    try:
        row = connection.execute(SELECT_CREDENTIAL, (public_id,)).fetchone()
        if row is None:
            return None
        credential = CredentialRow(*row)
        key_row = key(connection, credential.key_id)
        account_row = account(connection, key_row.account_id)
        organisation_row = None
        organisation_spend = None
        day = now_ms // MS_PER_DAY
        first_day = first_day_of_month(day)
        if account_row.organisation_id:
            organisation_row = organisation(connection, account_row.organisation_id)
            organisation_spend = _spend(
                charged.of_organisation(connection, account_row.organisation_id, first_day, day), day
            )
        (batch,) = connection.execute("SELECT batch FROM store").fetchone()
        loaded = LoadedKey(
            credential=credential,
            key=key_row,
            account=account_row,
            organisation=organisation_row,
            balance_nano=balance_of(connection, account_row.id),
            key_spend=_spend(charged.of_key(connection, account_row.id, key_row.id, first_day, day), day),
            account_spend=_spend(charged.of_account(connection, account_row.id, first_day, day), day),
            organisation_spend=organisation_spend,
        )
        return loaded, batch
    finally:
        connection.execute("COMMIT")


def _spend(by_day: dict[int, int], day: int) -> Spend:
    """Of sums by day of a month up to now; never below zero, whatever an older relay has left out."""
    return Spend(day, max(by_day.get(day, 0), 0), month_index(day), max(sum(by_day.values()), 0))


def month_index(day: int) -> int:
    """Months since January 1970 of a UTC day index."""
    date = datetime.date(1970, 1, 1) + datetime.timedelta(days=day)
    return (date.year - 1970) * 12 + date.month - 1


def first_day_of_month(day: int) -> int:
    """UTC day index of the first day of that day's month."""
    return day - (datetime.date(1970, 1, 1) + datetime.timedelta(days=day)).day + 1


# -- helpers


def _check_names(changes: dict[str, Any], allowed: frozenset[str]) -> None:
    unknown = sorted(changes.keys() - allowed)
    if unknown:
        raise TypeError(f"cannot be changed: {', '.join(unknown)}")


def _refused(error: sqlite3.IntegrityError, taken: str) -> StoreError | ValueError:
    if error.sqlite_errorname in ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"):
        return Conflict(taken)
    # The message names the column and the rule, never the value.
    return ValueError(f"refused by the store: {error}")


def _limits_text(limits: Limits) -> str:
    return msgspec.json.encode({k: v for k, v in msgspec.structs.asdict(limits).items() if v is not None}).decode()


def _names_text(names: tuple[str, ...] | None) -> str | None:
    return None if names is None else msgspec.json.encode(names).decode()


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else _decode_names.decode(text)


def _organisation_row(row: tuple[Any, ...]) -> OrganisationRow:
    organisation_id, name, limits, created_ms = row
    return OrganisationRow(organisation_id, name, _decode_limits.decode(limits), created_ms)


def _account_row(row: tuple[Any, ...]) -> AccountRow:
    account_id, email, organisation_id, plan, status, limits, created_ms, closed_ms = row
    return AccountRow(
        account_id, email, organisation_id, plan, status, _decode_limits.decode(limits), created_ms, closed_ms
    )


def _key_row(row: tuple[Any, ...]) -> KeyRow:
    values = list(row)
    values[5:8] = map(_names, row[5:8])
    values[8] = _decode_limits.decode(row[8])
    return KeyRow(*values)
