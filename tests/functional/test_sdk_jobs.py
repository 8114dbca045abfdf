"""Jobs through a relay with the official SDKs: one hold, one ending, whoever sees it first, and across `kill -9`."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
import pytest_asyncio

from relay.simulator import Running
from tests.functional.clients import async_anthropic, async_openai, google
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import SIM_KEY, channel, config_text, cost_nano, rates

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # Google's SDK: its own subclassing of aiohttp's session.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
CREDITS = 100 * 10**9


def lines(*prompts: str, model: str = "gpt-4o", **more: Any) -> tuple[str, bytes]:
    """A file for a batch."""
    rows = [
        {
            "custom_id": f"c{index}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 100, **more},
        }
        for index, prompt in enumerate(prompts)
    ]
    return "batch.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows)


async def held_nano(customer: Customer) -> int:
    return nano((await customer.money())["held"])


async def ending(customer: Customer, path: str, count: int) -> dict[str, Any]:
    """The record of a job's ending: of all records with its path, the one with a cost or an error."""
    rows = [row for row in await customer.calls(count) if row["path"] == path]
    found = [row for row in rows if row["cost"] != "0" or row["error_code"]]
    assert len(found) == 1, rows
    return found[0]


async def test_batch(customer: Customer, relay: RelayProcess, simulator: Running):
    stranger = await relay.customer()
    async with async_openai(customer) as client:
        file = await client.files.create(file=lines("One #sim events=5#", "Two #sim events=7#"), purpose="batch")
        made = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        held = await held_nano(customer)
        assert held > cost_nano("gpt-4o", 10, 200)  # both prompts, and both limits of output
        assert (await client.batches.retrieve(made.id)).status == "in_progress"
        assert [batch.id async for batch in client.batches.list()] == [made.id]  # this look ends it
        done = await client.batches.retrieve(made.id)
        assert done.status == "completed"
        assert await held_nano(customer) == 0
        results = (await client.files.content(done.output_file_id)).text.splitlines()
        assert [json.loads(line)["custom_id"] for line in results] == ["c0", "c1"]
        assert done.output_file_id in [file.id async for file in client.files.list()]
    async with async_openai(stranger) as client:
        for method in (client.batches.retrieve, client.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                await method(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.files.content(done.output_file_id)
        assert [batch async for batch in client.batches.list()] == []
        with pytest.raises(openai.NotFoundError):  # nor can somebody else's file be made a batch of
            await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    record = await ending(customer, "/v1/batches", 8)
    assert (record["output_tokens"], record["usage_source"], record["model"]) == (12, "upstream", "gpt-4o")
    cost = nano(record["cost"])
    assert cost == cost_nano("gpt-4o", record["input_tokens"], 12) > 0
    assert await customer.settled_nano() == CREDITS - cost


async def test_batch_without_usage_is_charged_by_its_lines(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        file = await client.files.create(
            file=lines("One #sim polls=0 usage=missing#", "Two #sim events=9#"), purpose="batch"
        )
        made = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        assert (await client.batches.retrieve(made.id)).status == "completed"
    record = await ending(customer, "/v1/batches", 4)
    assert 9 + 4 <= record["output_tokens"] <= 9 + 24  # the first line reports nothing: our own count of its answer
    assert await customer.settled_nano() == CREDITS - nano(record["cost"])


async def test_a_batch_that_failed_or_was_cancelled_costs_nothing(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        file = await client.files.create(file=lines("One #sim fail=1 polls=0#"), purpose="batch")
        made = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        assert (await client.batches.cancel(made.id)).status in ("failed", "cancelled")
    record = await ending(customer, "/v1/batches", 4)
    assert (record["error_code"], record["cost"]) == ("upstream_error", "0")
    assert await customer.settled_nano() == CREDITS


async def test_files_that_no_batch_can_be_made_of(customer: Customer, relay: RelayProcess, simulator: Running):
    poor = await relay.another_key(await relay.customer("0.0001"))
    files = [
        ("two models", (lines("a")[0], lines("a")[1] + lines("b", model="gpt-5")[1]), openai.BadRequestError),
        ("no lines", ("a.jsonl", b"hello"), openai.BadRequestError),
        ("unknown model", lines("a", model="gpt-17"), openai.NotFoundError),
        ("renamed model", lines("a", model="gpt-renamed"), openai.NotFoundError),
    ]
    async with async_openai(customer) as client:
        for name, file, error in files:
            made = await client.files.create(file=file, purpose="batch")
            with pytest.raises(error):
                await client.batches.create(
                    input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h"
                )
            assert await held_nano(customer) == 0, name
    async with async_openai(poor) as client:
        made = await client.files.create(file=lines("a"), purpose="batch")
        with pytest.raises(openai.APIStatusError) as caught:
            await client.batches.create(input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h")
        assert caught.value.code == "insufficient_balance"


async def test_a_model_that_is_priced_by_tokens_makes_no_videos(customer: Customer):
    async with async_openai(customer) as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.videos.create(model="gpt-4o", prompt="A cat", seconds="8")
    assert caught.value.code == "model_unpriced"
    (record,) = await customer.calls(1)
    assert (record["attempts"], record["cost"]) == (0, "0")
    assert await held_nano(customer) == 0


async def test_video(customer: Customer, relay: RelayProcess, simulator: Running):
    stranger = await relay.customer()
    async with async_openai(customer) as client:
        made = await client.videos.create(model="sora-2", prompt="A cat", seconds="8")
        assert (made.status, made.seconds) == ("queued", "8")
        assert await held_nano(customer) == cost_nano("sora-2", video_seconds=8)
        with pytest.raises(openai.BadRequestError):  # asks, and finds that it has not ended
            await client.videos.delete(made.id)
        sound = await client.videos.download_content(made.id)  # charged before it is given out
        assert sound.content
        assert await held_nano(customer) == 0
        done = await client.videos.retrieve(made.id)
        assert done.status == "completed"
        assert [video.id async for video in client.videos.list()] == [made.id]
        remix = await client.videos.remix(made.id, prompt="A dog")
        assert await held_nano(customer) == cost_nano("sora-2", video_seconds=8)
        assert (await client.videos.retrieve(remix.id)).status == "queued"
        assert (await client.videos.retrieve(remix.id)).status == "completed"
        await client.videos.delete(made.id)
    async with async_openai(stranger) as client:
        for method in (client.videos.retrieve, client.videos.delete, client.videos.download_content):
            with pytest.raises(openai.NotFoundError):
                await method(remix.id)
        with pytest.raises(openai.NotFoundError):
            await client.videos.remix(remix.id, prompt="Mine")
    assert await customer.settled_nano() == CREDITS - 2 * cost_nano("sora-2", video_seconds=8)
    paid = [row for row in await customer.calls(11) if row["cost"] != "0"]
    assert [(row["path"], row["video_seconds"]) for row in paid] == [("/v1/videos/{id}/remix", 8), ("/v1/videos", 8)]


async def test_a_video_of_a_size_without_a_price_is_refused(tmp_path: Path, simulator: Running):
    text = config_text(simulator.base_url, "http://127.0.0.1:9")
    text = text.replace('model = "sora-2"\n', 'model = "sora-2"\nvideo_sizes = ["720x1280"]\n')
    relay = RelayProcess(tmp_path, text)
    await relay.start()
    customer = await relay.customer()
    url = relay.base_url + "/v1/videos"
    try:
        async with async_openai(customer) as client:
            with pytest.raises(openai.BadRequestError) as caught:  # a form
                await client.videos.create(model="sora-2", prompt="A cat", size="1024x1792")
            assert (caught.value.code, caught.value.param) == ("unsupported_feature", "size")
            with pytest.raises(openai.BadRequestError):
                await client.post(url, body={"model": "sora-2", "prompt": "A cat", "size": "1792x1024"}, cast_to=object)
            assert await customer.settled_nano() == CREDITS
            await client.videos.create(model="sora-2", prompt="A cat #sim polls=9#", size="720x1280", seconds="4")
            await client.videos.create(model="sora-2", prompt="A cat #sim polls=9#", seconds="4")
        assert await held_nano(customer) == 2 * cost_nano("sora-2", video_seconds=4)
    finally:
        await relay.kill()


async def test_a_video_that_failed_costs_nothing(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        made = await client.videos.create(model="sora-2", prompt="A cat #sim fail=1 polls=0#", seconds="4")
        assert (await client.videos.retrieve(made.id)).status == "failed"
    assert (await ending(customer, "/v1/videos", 3))["error_code"] == "upstream_error"
    assert await customer.settled_nano() == CREDITS


async def test_a_job_that_is_not_taken_holds_nothing(customer: Customer, simulator: Running):
    async with async_openai(customer) as client:
        with pytest.raises(openai.RateLimitError):
            await client.videos.create(model="sora-2", prompt="A cat #sim status=429#")
        with pytest.raises(openai.BadRequestError):
            await client.videos.create(model="sora-2", prompt="A cat", seconds="many")  # type: ignore[arg-type]
        with pytest.raises(openai.APIStatusError) as caught:
            await client.videos.create(
                model="sora-2", prompt="A cat", seconds="8", extra_headers={"x-relay-max-cost": "0.5"}
            )
        assert caught.value.code == "max_cost"
    assert await held_nano(customer) == 0
    assert await customer.settled_nano() == CREDITS


async def test_background_response(customer: Customer, relay: RelayProcess, simulator: Running):
    stranger = await relay.customer()
    async with async_openai(customer) as client:
        made = await client.responses.create(
            model="gpt-5", input="Hello #sim events=6 polls=1#", background=True, max_output_tokens=50
        )
        assert made.status == "queued"
        assert await held_nano(customer) >= cost_nano("gpt-5", 1, 50)
        assert (await client.responses.retrieve(made.id)).status == "queued"
        done = await client.responses.retrieve(made.id)
        assert (done.status, done.usage.output_tokens) == ("completed", 6)
        assert await held_nano(customer) == 0
    async with async_openai(stranger) as client:
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
    cost = cost_nano("gpt-5", done.usage.input_tokens, 6)
    assert await customer.settled_nano() == CREDITS - cost


@pytest.mark.parametrize("stream", [False, True])
async def test_finding_newcomer_14_the_record_of_making_one_names_model_and_channel(
    customer: Customer, relay: RelayProcess, stream: bool
):
    async with async_openai(customer) as client:
        made = await client.responses.create(model="gpt-5", input="Hello #sim polls=0#", background=True, stream=stream)
        if stream:
            async for _ in made:
                pass
    record = [row for row in await relay.calls(key=customer.key) if row["path"] == "/v1/responses"][-1]
    assert (record["model"], record["upstream_model"], record["channel"]) == ("gpt-5", "gpt-5", "sim-openai")
    assert (record["attempts"], record["stream"]) == (1, stream)


@pytest.mark.parametrize("usage", ["missing", "null", "negative", "huge"])
async def test_background_response_without_a_usable_report(customer: Customer, simulator: Running, usage: str):
    """Charged by what the relay has counted, as a call in the foreground is."""
    async with async_openai(customer) as client:
        made = await client.responses.create(
            model="gpt-5", input=f"Hello #sim events=20 size=20 polls=0 usage={usage}#", background=True
        )
        await client.post(f"/responses/{made.id}/cancel", cast_to=object)  # not `retrieve`: its model has no such usage
    record = await ending(customer, "/v1/responses", 3)
    assert record["usage_source"] == "estimated"
    assert 60 < record["output_tokens"] < 300
    assert record["input_tokens"] > 0
    assert await customer.settled_nano() == CREDITS - nano(record["cost"])


async def test_background_elsewhere(customer: Customer):
    async with async_openai(customer) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.compact(model="gpt-5", input="Hello", extra_body={"background": True})
        assert caught.value.code == "unsupported_feature"
    assert (await customer.call())["error_code"] == "unsupported_feature"


async def test_background_for_a_model_that_is_not_there(customer: Customer, relay: RelayProcess):
    async with async_openai(customer) as client:
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError) as caught:
                await client.responses.create(model="gpt-none", input="Hello", background=True, stream=stream)
            assert caught.value.code == "model_not_found"
    assert [row["error_code"] for row in await customer.calls(2)] == ["model_not_found"] * 2
    assert relay.faults == []


@pytest.mark.parametrize("limit", ["rpm", "daily_limit", "concurrency"])
async def test_background_above_a_limit(relay: RelayProcess, simulator: Running, limit: str):
    customer = await relay.customer(**{limit: 1 if limit != "daily_limit" else "0.00001"})
    code = {"rpm": "rate_limit_exceeded", "daily_limit": "insufficient_quota", "concurrency": "rate_limit_exceeded"}[
        limit
    ]
    async with async_openai(customer) as client:
        if limit == "concurrency":
            busy = await client.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": "Hello #sim events=200 pace_ms=20#"}], stream=True
            )
        elif limit == "rpm":
            await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hello"}])
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                await client.responses.create(model="gpt-5", input="Hello", background=True, stream=stream)
            assert caught.value.code == code
            assert "(limit of the key)" in str(caught.value)
            if limit == "rpm":
                assert 1 < int(caught.value.response.headers["retry-after"]) <= 60
        if limit == "concurrency":
            await busy.close()
    assert relay.faults == []


def message_requests(*prompts: str) -> list[Any]:
    return [
        {
            "custom_id": f"c{index}",
            "params": {
                "model": "claude-sonnet-5",
                "max_tokens": 60,
                "messages": [{"role": "user", "content": prompt}],
            },
        }
        for index, prompt in enumerate(prompts)
    ]


async def test_message_batch(customer: Customer, relay: RelayProcess, simulator: Running):
    stranger = await relay.customer()
    async with async_anthropic(customer) as client:
        made = await client.messages.batches.create(
            requests=message_requests("One #sim events=5 polls=2#", "Two #sim events=4#")
        )
        assert made.processing_status == "in_progress"
        assert await held_nano(customer) > cost_nano("claude-sonnet-5", 2, 120)
        assert [batch.id async for batch in client.messages.batches.list()] == [made.id]
        await client.messages.batches.retrieve(made.id)
        done = await client.messages.batches.retrieve(made.id)
        assert done.processing_status == "ended"
        assert done.results_url.startswith(relay.base_url)  # the SDK asks there
        results = [result async for result in await client.messages.batches.results(made.id)]
        assert [result.result.message.usage.output_tokens for result in results] == [5, 4]
        assert (await client.messages.batches.delete(made.id)).id == made.id
    async with async_anthropic(stranger) as client:
        for method in (
            client.messages.batches.retrieve,
            client.messages.batches.cancel,
            client.messages.batches.delete,
        ):
            with pytest.raises(anthropic.NotFoundError):
                await method(made.id)
    cost = cost_nano("claude-sonnet-5", sum(one.result.message.usage.input_tokens for one in results), 9)
    assert await customer.settled_nano() == CREDITS - cost


async def test_message_batch_cancel(customer: Customer, simulator: Running):
    async with async_anthropic(customer) as client:
        made = await client.messages.batches.create(requests=message_requests("One #sim events=5 polls=9#"))
        cancelled = await client.messages.batches.cancel(made.id)
    assert cancelled.processing_status == "ended"
    assert await held_nano(customer) == 0


async def test_gemini_batch(customer: Customer, relay: RelayProcess, simulator: Running):
    stranger = await relay.customer()
    src = [{"contents": [{"role": "user", "parts": [{"text": f"{name} #sim events=5 polls=1#"}]}]} for name in "ab"]
    async with google(customer) as client:
        made = await client.aio.batches.create(model="gemini-2.5-flash", src=src)
        assert made.name.startswith("batches/")
        assert await held_nano(customer) > 0
        assert (await client.aio.batches.get(name=made.name)).state.name == "JOB_STATE_PENDING"
        done = await client.aio.batches.get(name=made.name)
        assert done.state.name == "JOB_STATE_SUCCEEDED"
        usages = [one.response.usage_metadata for one in done.dest.inlined_responses]
        assert [batch.name async for batch in await client.aio.batches.list()] == [made.name]
        await client.aio.batches.cancel(name=made.name)
        await client.aio.batches.delete(name=made.name)
    async with google(stranger) as client:
        with pytest.raises(Exception, match="404"):
            await client.aio.batches.get(name=made.name)
    cost = cost_nano("gemini-2.5-flash", sum(u.prompt_token_count for u in usages), 10)
    assert await customer.settled_nano() == CREDITS - cost


# -- the relay's own poller, and restarts


@pytest_asyncio.fixture(loop_scope="session")
async def polling(simulator: Running, tmp_path) -> AsyncIterator[RelayProcess]:
    made = RelayProcess(tmp_path, polling_config(simulator, 0.1))
    await made.start()
    yield made
    verified = await made.command("ledger verify")
    assert await made.stop() == 0
    assert verified["ok"], verified
    assert made.faults == []


def polling_config(simulator: Running, poll_seconds: float, expire_hours: float = 26) -> str:
    return (
        f"[server]\ndrain_seconds = 2\n[plans.open]\n[jobs]\npoll_seconds = {poll_seconds}\n"
        f"expire_hours = {expire_hours}\n"
        + channel("sim", "openai", simulator.base_url + "/v1", '["gpt-5", "sora-2", "gpt-4o"]', SIM_KEY)
        + rates()
    )


async def no_holds(customer: Customer) -> None:
    async def free() -> bool:
        return await held_nano(customer) == 0

    await eventually(free, 20, what="the poller sees that the job has ended")


async def test_the_poller_ends_what_nobody_asks_for(polling: RelayProcess, simulator: Running):
    customer = await polling.customer()
    async with async_openai(customer) as client:
        made = await client.videos.create(model="sora-2", prompt="A cat #sim polls=2#", seconds="4")
        file = await client.files.create(file=lines("One #sim events=5 polls=2#"), purpose="batch")
        await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        await no_holds(customer)
        assert (await client.videos.retrieve(made.id)).status == "completed"
    rows = [row for row in await customer.calls(6) if row["cost"] != "0"]
    assert sorted(row["path"] for row in rows) == ["/v1/batches", "/v1/videos"]
    assert await customer.settled_nano() == CREDITS - sum(nano(row["cost"]) for row in rows)


async def test_jobs_survive_kill_and_restart(simulator: Running, tmp_path):
    """Killed with a job open: its hold is there before anything else at the next start, and it is charged once."""
    relay = RelayProcess(tmp_path, polling_config(simulator, 3600))
    await relay.start()
    customer = await relay.customer("1")
    async with async_openai(customer) as client:
        made = await client.videos.create(model="sora-2", prompt="A cat #sim polls=0#", seconds="8")
    held = await held_nano(customer)
    assert held == cost_nano("sora-2", video_seconds=8)
    await relay.kill()
    relay.config = polling_config(simulator, 3600)
    await relay.start()
    try:
        async with async_openai(customer) as client:
            with pytest.raises(openai.APIStatusError) as caught:  # 0.8 of 1 credit is held
                await client.videos.create(model="sora-2", prompt="Another", seconds="4")
            assert caught.value.code == "insufficient_balance"
            assert await held_nano(customer) == held
            done = await asyncio.gather(*(client.videos.retrieve(made.id) for _ in range(5)))
            assert {video.status for video in done} == {"completed"}
        assert await customer.settled_nano() == 10**9 - held
        await relay.kill()
        await relay.start()
        async with async_openai(customer) as client:
            await client.videos.retrieve(made.id)
        assert nano((await customer.money())["balance"]) == 10**9 - held
        assert (await relay.command("ledger verify"))["ok"]
    finally:
        assert await relay.stop() == 0


async def test_a_job_is_given_up_when_its_time_is_up(simulator: Running, tmp_path):
    relay = RelayProcess(tmp_path, polling_config(simulator, 0.1, expire_hours=0.0001))
    await relay.start()
    try:
        customer = await relay.customer()
        async with async_openai(customer) as client:
            await client.videos.create(model="sora-2", prompt="A cat #sim polls=100000#", seconds="4")
        await no_holds(customer)
        assert (await ending(customer, "/v1/videos", 2))["error_code"] == "upstream_timeout"
        assert await customer.settled_nano() == CREDITS
        assert (await relay.command("ledger verify"))["ok"]
    finally:
        assert await relay.stop() == 0
