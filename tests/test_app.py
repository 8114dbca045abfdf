"""What the composition root does by itself while a relay runs."""

import asyncio
import time
from pathlib import Path

from relay import config as configuration
from relay.app import Relay
from relay.control.pepper import load_pepper
from relay.records import MS_PER_DAY
from relay.storage import Store
from tests.support.stored import assert_books_agree, call_record, customer

CONFIG = """
[server]
listen = "127.0.0.1:0"
data_dir = "{data}"
[retention]
calls_days = 7
"""


async def test_old_records_go_and_their_sums_stay(tmp_path: Path) -> None:
    store = await Store.open(tmp_path)
    account, _ = await customer(store, credits=1)
    now_ms = time.time_ns() // 1_000_000
    old, young = (call_record(1, time_ms=now_ms - days * MS_PER_DAY) for days in (8, 6))
    store.append_calls([old, young])
    store.append_events([(now_ms - 8 * MS_PER_DAY, "limit", None, None, None, None, None, None, 1, None)])
    await store.flush()
    relay = Relay(configuration.parse(CONFIG.format(data=tmp_path)), store, load_pepper(tmp_path, create=True))
    await relay.start()
    async with asyncio.timeout(20):
        while len(await store.calls()) > 1 or await store.events():  # noqa: ASYNC110 - another thread does it
            await asyncio.sleep(0.01)
    assert [call.id for call in await store.calls()] == [young[0]]
    assert sum(row.calls for row in await store.rollups(account.id)) == 2
    assert await store.verify() == []
    await relay.stop()
    await store.close()
    assert_books_agree(tmp_path)
