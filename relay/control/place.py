"""A data directory with its store and its pepper: opened together, for neither is worth anything alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from relay.config import Config
from relay.control.failures import CommandError
from relay.control.pepper import PEPPER_NAME, Pepper, PepperError, check_value, load_pepper
from relay.control.published import cost_of
from relay.storage import Store
from relay.storage.journal import NAME as JOURNAL_NAME
from relay.storage.store import DATABASE_NAME

NO_FILE: Final = "(built-in defaults)"  # as `config.load` names them


async def open_store(config: Config, *, create: bool) -> tuple[Store, Pepper]:
    """create: make what is not there (`serve`, `demo`). Raises CommandError, PepperError, StoreError."""
    data_dir = _whole(config, create=create)
    store = await Store.open(data_dir, durability=config.server.durability, cost_of=cost_of)
    try:
        pepper = load_pepper(data_dir, create=not await store.accounts(limit=1))
        if not await store.bind_pepper(check_value(pepper)):
            raise PepperError(
                f"{data_dir / PEPPER_NAME}: this pepper does not belong to this store ({DATABASE_NAME} beside it):"
                " every key would be refused. Put back the two from one backup"
            )
    except BaseException:
        await store.close()
        raise
    return store, pepper


def _whole(config: Config, *, create: bool) -> Path:
    """The data directory, where nothing of it is missing."""
    data_dir, file = Path(config.server.data_dir).absolute(), config.file
    database = data_dir / DATABASE_NAME
    try:
        if database.stat().st_size:
            return data_dir
        state = "is empty"
    except FileNotFoundError:
        state = "is missing"
    except OSError:
        return data_dir  # whoever opens it says why it cannot be
    for name, what in ((PEPPER_NAME, "the keys of a store"), (JOURNAL_NAME, "calls of a store that are not settled")):
        if (data_dir / name).exists():
            raise CommandError(
                "unavailable",
                f"{database} {state}, but {data_dir / name} is there, which belongs to {what}. Put the store back from"
                f" a backup; to begin a new one, move {name} away",
            )
    if not create:
        where = "no config.toml here" if file == NO_FILE else f"server.data_dir of {Path(file).absolute()}"
        raise CommandError("unavailable", f"no store in {data_dir} ({where}): name it with --config FILE")
    return data_dir
