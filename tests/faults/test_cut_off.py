"""A stream on a small balance ends with the dialect's error event, and the official SDKs raise and do not hang."""

import asyncio
import random
from pathlib import Path

import anthropic
import openai
import pytest
from google.genai import errors as google_errors

from relay.simulator import Running
from tests.faults.cut_offs import NOWHERE, CutOffs
from tests.functional.clients import async_anthropic, async_openai, google
from tests.functional.relay_process import RelayProcess
from tests.functional.setting import config_text

ASK = "Tell me. #sim events=900 pace_ms=1#"


async def test_cut_off_in_each_dialect(tmp_path: Path, simulator: Running):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    await CutOffs(tmp_path, simulator, random.Random(seed)).run(3)


@pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",  # Google's SDK leaves its connection
)
async def test_the_sdks_raise(tmp_path: Path, simulator: Running):
    relay = RelayProcess(tmp_path, config_text(simulator.base_url, NOWHERE))
    try:
        await relay.start()
        async with asyncio.timeout(30):
            messages = [{"role": "user", "content": ASK}]
            async with async_openai(await relay.customer("0.002")) as client:
                chat = await client.chat.completions.create(model="gpt-4o", messages=messages, stream=True)
                with pytest.raises(openai.APIError):
                    assert [chunk async for chunk in chat] == []
            async with async_openai(await relay.customer("0.002")) as client:
                events = await client.responses.create(model="gpt-5", input=ASK, stream=True)
                with pytest.raises(openai.APIError):
                    assert [event async for event in events] == []
            async with async_anthropic(await relay.customer("0.002")) as client:
                with pytest.raises(anthropic.APIStatusError):
                    async with client.messages.stream(
                        model="claude-sonnet-5", messages=messages, max_tokens=5000
                    ) as stream:
                        assert [event async for event in stream] == []
            async with google(await relay.customer("0.001")) as client:
                answer = await client.aio.models.generate_content_stream(model="gemini-2.5-flash", contents=ASK)
                with pytest.raises(google_errors.APIError):
                    assert [chunk async for chunk in answer] == []
        assert relay.faults == []
        assert await relay.stop() == 0
    finally:
        await relay.kill()
