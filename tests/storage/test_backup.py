"""Copies of a live store, and what a killed one leaves."""

import fcntl
import os
import sqlite3
from pathlib import Path

import pytest

from relay.storage import Store, StoreError
from relay.storage.backup import PREFIX, SUFFIX
from tests.support.stored import customer


async def test_finding_money_L7_what_a_killed_backup_left_is_removed(store: Store, tmp_path: Path):
    """By the next backup into that folder, whatever its name; not one that is being written, nor another's file."""
    await customer(store, credits=1)
    left = tmp_path / f"{PREFIX}monday.db{SUFFIX}"
    journal = tmp_path / f"{PREFIX}monday.db{SUFFIX}-journal"
    written = tmp_path / f"{PREFIX}now.db{SUFFIX}"
    other = tmp_path / f"film{SUFFIX}"
    for path in (left, journal, written, other):
        path.write_bytes(b"copy")
    with written.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        size = await store.backup(tmp_path / "tuesday.db")
        with pytest.raises(StoreError, match="is being written"):
            await store.backup(tmp_path / "now.db")
    names = {*os.listdir(tmp_path)} - {"data"}
    assert names == {"tuesday.db", written.name, other.name}
    copy = tmp_path / "tuesday.db"
    assert copy.stat().st_size == size
    assert copy.stat().st_mode & 0o777 == 0o600
    connection = sqlite3.connect(copy)
    assert connection.execute("SELECT sum(amount_nano) FROM entries").fetchone() == (10**9,)
    connection.close()
    with pytest.raises(StoreError, match="exists"):
        await store.backup(copy)
