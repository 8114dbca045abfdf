"""/metrics of jobs: what is open and held, how they ended, and whether their providers answer the relay's own looks."""

from pathlib import Path

import pytest

from relay.simulator import Running
from tests.functional.clients import async_anthropic
from tests.functional.relay_process import RelayProcess, eventually
from tests.functional.test_batch_models import COST, MIXED, config, held_nano, requests
from tests.functional.test_metrics import one as sample
from tests.functional.test_metrics import scrape

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_metrics_of_jobs(simulator: Running, tmp_path: Path):
    relay = await RelayProcess(tmp_path, config(simulator, 0.1)).start()
    try:
        customer = await relay.customer()
        before = await scrape(relay.port)
        assert sample(before, "relay_jobs_open", kind="message_batch") == 0
        assert len(before["relay_jobs_ended_total"]) == 5 * 4  # each kind and outcome, from the start
        async with async_anthropic(customer) as client:
            await client.messages.batches.create(requests=requests(("small", "#sim polls=100000#"), ("large", "b")))
            held = await held_nano(customer)

            async def polled() -> bool:
                found = await scrape(relay.port)
                return sample(found, "relay_jobs_polls_total", kind="message_batch") >= 2

            await eventually(polled)
            found = await scrape(relay.port)
            assert sample(found, "relay_jobs_open", kind="message_batch") == 1
            assert round(sample(found, "relay_jobs_held_credits", kind="message_batch") * 10**9) == held
            assert sample(found, "relay_jobs_oldest_seconds", kind="message_batch") > 0.1
            assert sample(found, "relay_jobs_polls_failed_total", kind="message_batch") == 0
            await client.messages.batches.create(requests=requests(*MIXED))

            async def ended() -> bool:
                found.update(await scrape(relay.port))
                return sample(found, "relay_jobs_ended_total", kind="message_batch", outcome="charged") == 1

            await eventually(ended)
        assert round(sample(found, "relay_jobs_cost_credits_total", kind="message_batch") * 10**9) == COST
        simulator.defaults = "status=500"

        async def failed() -> bool:
            found.update(await scrape(relay.port))
            return sample(found, "relay_jobs_polls_failed_total", kind="message_batch") >= 1

        await eventually(failed)
        assert sample(found, "relay_jobs_open", kind="message_batch") == 1
        simulator.defaults = ""
        assert await relay.stop() == 0
        relay.config = config(simulator, 0.1).replace("[jobs]", "[jobs]\nexpire_hours = 0.0001")
        await relay.start()
        async with async_anthropic(customer) as client:
            await client.messages.batches.create(requests=requests(("small", "#sim polls=100000#")))

        async def expired() -> bool:
            found.update(await scrape(relay.port))
            return sample(found, "relay_jobs_ended_total", kind="message_batch", outcome="expired") == 1

        await eventually(expired)
        assert sample(found, "relay_jobs_open", kind="message_batch") == 1  # that of before, with its own time
        assert sample(found, "relay_jobs_held_credits", kind="message_batch") * 10**9 == pytest.approx(held)
        assert sample(found, "relay_jobs_cost_credits_total", kind="message_batch") == 0
    finally:
        simulator.defaults = ""
        assert await relay.stop() == 0
