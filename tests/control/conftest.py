from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay import config as config_module
from relay.config import Config
from relay.control.operations import Operations
from relay.control.pepper import load_pepper
from relay.storage import Store
from tests.support.live import FakeLive

CONFIG = """
[[channels]]
name = "main"
api = "openai"
base_url = "https://api.openai.com/v1"
api_keys = ["env:NOT_SET_ANYWHERE"]
models = ["gpt-4o", "gpt-unheard-of"]

[[rates]]
model = "gpt-4o"
input = "2.50"
output = 10
cache_read = "1.25"

[[rates]]
model = "other"
input = 1
output = 2
cache_read = 2

[billing]
discount = "0.85"
"""


@pytest.fixture
def config() -> Config:
    return config_module.parse(CONFIG, file="config.toml", resolve_secrets=False)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await Store.open(tmp_path / "data")
    yield store
    await store.close()


@pytest.fixture
def live() -> FakeLive:
    return FakeLive()


@pytest.fixture
def operations(store: Store, live: FakeLive, config: Config, tmp_path: Path) -> Operations:
    return Operations(store, live, config, load_pepper(tmp_path / "data", create=True))
