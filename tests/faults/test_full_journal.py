"""More open calls than the journal has slots: 503 before anything is sent on, and room again as calls end."""

import asyncio
from pathlib import Path

from tests.faults.bursts import ANSWER, COST, play, request
from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import RelayProcess, nano
from tests.functional.setting import config_text
from tests.support.rawclient import RawClient
from tests.support.stored import assert_books_agree

SLOTS = 3


async def test_a_full_journal_refuses(tmp_path: Path):
    async with RawUpstream() as upstream:
        text = config_text("http://127.0.0.1:9", upstream.base_url)
        text = text.replace("[server]\n", f"[server]\ncalls_max = {SLOTS}\n", 1)
        relay = RelayProcess(tmp_path, text)
        try:
            await relay.start()
            customer = await relay.customer()
            gate = asyncio.Event()
            exchange = play(upstream, Gate(gate), ANSWER)
            clients = [await RawClient.connect("127.0.0.1", relay.port) for _ in range(SLOTS + 2)]
            for client in clients:
                await client.send(request(customer))
            # The first to be answered are those that found no room.
            refused = []
            while len(refused) < 2:
                await asyncio.sleep(0.01)
                refused = [client for client in clients if client.received]
            for client in refused:
                answer = await client.response()
                assert answer.status == 503
                assert b"overloaded" in answer.body
                assert int(answer.header("retry-after") or 0) > 0
            assert len(exchange.requests) == SLOTS
            gate.set()
            for client in clients:
                if client not in refused:
                    assert (await client.response()).status == 200
            # The slots come back with the commit of the records, and none was lost to those who were refused.
            await customer.calls(SLOTS + 2)
            for client in clients[:SLOTS]:
                await client.send(request(customer))
            for client in clients[:SLOTS]:
                assert (await client.response()).status == 200
            assert await customer.settled_nano() == 100 * 10**9 - 2 * SLOTS * COST
            assert nano((await customer.money())["held"]) == 0
            for client in clients:
                await client.close()
            assert await relay.stop() == 0
            assert_books_agree(relay.data_dir)
        finally:
            await relay.kill()
