from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.storage import Store
from tests.support.stored import NOON_MS


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A new store in tmp_path / "data", at noon of a fixed day."""
    opened = await Store.open(tmp_path / "data", now_ms=lambda: NOON_MS)
    yield opened
    await opened.close()
