"""Accounts, organisations and keys by whatever names one thing: an id, an e-mail address, a name, a key's beginning."""

from __future__ import annotations

import re
from typing import Final

from relay import units
from relay.control import values
from relay.control.failures import CommandError, conflict, invalid, not_found
from relay.policy import keys
from relay.storage import rows
from relay.storage.errors import NotFound
from relay.storage.store import Store

# The part of a secret that is no secret: what `key list` shows as its prefix, with or without more of the secret.
_PREFIX: Final = re.compile(rf"{keys.PREFIX}([a-z0-9]{{{keys.PUBLIC_ID_CHARACTERS}}})(?:-.*)?", re.ASCII)
_ID: Final = re.compile(r"[a-z]+_[1-9][0-9]{0,18}", re.ASCII)
_NAMED_MAX: Final = 5  # of several things with one name, how many are listed


class Finder:
    """Each method raises CommandError: invalid, not_found, or conflict where several are meant."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def account(self, text: str, field: str = "id") -> rows.AccountRow:
        """An account by its id or its e-mail address."""
        if "@" in text:
            found = await self._store.find_account(values.email(text))
            if found is None:
                raise not_found(f"account {text}")
            return found
        if not _ID.fullmatch(text):
            raise invalid(f"{field}: expected an id such as acct_1, or an e-mail address", field)
        try:
            return await self._store.account(values.account_id(text, field))
        except NotFound:
            raise not_found(f"account {text}") from None

    async def organisation(self, text: str, field: str = "id") -> rows.OrganisationRow:
        """An organisation by its name or its id."""
        found = await self._store.find_organisation(text)
        if found is not None:
            return found
        try:
            return await self._store.organisation(values.organisation_id(text, field))
        except NotFound:
            raise not_found(f"organisation {text}") from None
        except CommandError:
            raise not_found("organisation of this name; `relay organisation list` shows all") from None

    async def key(self, text: str, field: str = "id") -> rows.KeyRow:
        """A key by its id, by the beginning of one of its secrets (sk- and 12 characters), or by its name."""
        if prefix := _PREFIX.fullmatch(text):
            found = await self._store.find_credential(prefix[1])
            if found is None:
                raise not_found(f"key that begins with {keys.PREFIX}{prefix[1]}")  # never more of a secret than this
            return found.key
        if text.startswith(keys.PREFIX):
            expected = f"{keys.PREFIX} and {keys.PUBLIC_ID_CHARACTERS} characters, as `key list` shows"
            raise invalid(f"{field}: expected the beginning of a secret: {expected}", field)
        if _ID.fullmatch(text):
            try:
                return await self._store.key(values.key_id(text, field))
            except NotFound:
                raise not_found(f"key {text}") from None
        named = await self._store.keys_named(text, _NAMED_MAX + 1)
        if not named:
            raise not_found("key of this name; expected an id such as key_1, a name, or the beginning of a secret")
        if len(named) > 1:
            ids = ", ".join(units.key_text(row.id) for row in named[:_NAMED_MAX])
            more = " and more" if len(named) > _NAMED_MAX else ""
            raise conflict(f"several keys have this name: {ids}{more}; name one by its id")
        return named[0]
