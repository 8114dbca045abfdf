"""What a data directory has to hold, which pepper belongs to it, and whose its files are."""

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from relay import config as configuration
from relay.config import Config
from relay.control.failures import CommandError
from relay.control.pepper import PepperError
from relay.control.place import open_store
from relay.storage import journal


def config(folder: Path) -> Config:
    return configuration.parse(f'[server]\ndata_dir = "{folder}"\n', file=str(folder.parent / "config.toml"))


async def make(folder: Path, *, keys: int = 1) -> None:
    store, pepper = await open_store(config(folder), create=True)
    if keys:
        account = await store.create_account("a@example.com", plan="free")
        await store.create_key(account.id, public_id="a", digest=b"d" * 32, last4="wxyz", pepper_version=pepper.version)
    store.open_journal(8)
    await store.close()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


async def test_finding_newcomer_2_only_who_may_makes_a_store(tmp_path: Path):
    with pytest.raises(CommandError) as caught:
        await open_store(config(tmp_path / "data"), create=False)
    expected = f"no store in {tmp_path}/data (server.data_dir of {tmp_path}/config.toml): name it with --config FILE"
    assert str(caught.value) == expected
    assert names(tmp_path) == set()
    with pytest.raises(CommandError, match=r"no store in /.*/data \(no config.toml here\): name it with --config FILE"):
        await open_store(configuration.parse("", file="(built-in defaults)"), create=False)
    await make(tmp_path / "data")
    store, _ = await open_store(config(tmp_path / "data"), create=False)
    await store.close()


async def test_finding_newcomer_12_a_wrong_pepper_is_refused(tmp_path: Path):
    await make(tmp_path / "a")
    await make(tmp_path / "b")
    right = (tmp_path / "a" / "pepper").read_bytes()
    shutil.copy(tmp_path / "b" / "pepper", tmp_path / "a" / "pepper")
    for create in (True, False):
        with pytest.raises(PepperError, match="this pepper does not belong to this store"):
            await open_store(config(tmp_path / "a"), create=create)
    (tmp_path / "a" / "pepper").write_bytes(right)
    store, _ = await open_store(config(tmp_path / "a"), create=True)
    # A store of an earlier version gains the check with its next start.
    await store._change(lambda db: db.execute("UPDATE store SET pepper_check = NULL"))
    await store.close()
    for _ in range(2):
        store, _ = await open_store(config(tmp_path / "a"), create=True)
        await store.close()
    shutil.copy(tmp_path / "b" / "pepper", tmp_path / "a" / "pepper")
    with pytest.raises(PepperError, match="does not belong"):
        await open_store(config(tmp_path / "a"), create=True)


async def test_a_pepper_that_no_key_was_made_with_may_be_another(tmp_path: Path):
    await make(tmp_path / "a", keys=0)
    (tmp_path / "a" / "pepper").unlink()
    for _ in range(2):
        store, _ = await open_store(config(tmp_path / "a"), create=True)
        await store.close()


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "relay.db").unlink(), "relay.db is missing, but .*pepper is there"),
        (lambda folder: (folder / "relay.db").write_bytes(b""), "relay.db is empty, but .*pepper is there"),
        (lambda folder: [(folder / name).unlink() for name in ("relay.db", "pepper")], "is missing, but .*journal is"),
    ],
    ids=["gone", "empty", "only the journal"],
)
async def test_finding_money_L6_what_is_left_of_a_store(
    tmp_path: Path, damage: Callable[[Path], object], message: str, create: bool
):
    """No new store takes the place of one of which something is left."""
    folder = tmp_path / "data"
    await make(folder)
    (folder / journal.NAME).write_bytes(b"calls")
    damage(folder)
    before = names(folder)
    for _ in range(2):
        with pytest.raises(CommandError, match=message):
            await open_store(config(folder), create=create)
        assert names(folder) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="is about files that root makes")
async def test_finding_newcomer_11_files_that_root_makes_belong_to_the_owner_of_the_directory(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12346)
    store, _ = await open_store(config(folder), create=True)
    store.open_journal(8)
    await store.create_account("a@example.com", plan="free")
    await asyncio.sleep(0)
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in folder.iterdir()}
    await store.close()
    assert {"relay.db", "relay.db-wal", "lock", "pepper", "journal"} <= owners.keys()
    assert set(owners.values()) == {(12345, 12346)}
