"""Refusals of limits say what the call may need and what is left, in numbers that add up."""

import re
from typing import Any

import openai
import pytest

from tests.functional.clients import async_openai
from tests.functional.relay_process import Customer, RelayProcess

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def refused(customer: Customer, **more: Any) -> str:
    """The message of the refusal of a small call."""
    async with async_openai(customer) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(
                model="gpt-4o", messages=[{"role": "user", "content": "Hello"}], **more
            )
    assert isinstance(caught.value.body, dict)
    return str(caught.value.body["message"])


def numbers(message: str) -> list[float]:
    return [float(text) for text in re.findall(r"\d+(?:\.\d+)?", message.replace(",", ""))]


async def test_finding_newcomer_7_a_balance_that_does_not_cover_the_call(relay: RelayProcess):
    customer = await relay.customer("0.004565")
    message = await refused(customer)
    assert re.fullmatch(
        r"The balance does not cover this call: the call may cost up to 0\.04\d* credits, 0\.004565 are available; "
        r"set max_tokens, stream the answer, or add credits\.",
        message,
    ), message
    needed, available = numbers(message)
    # What the message advises helps: a bound that the balance covers, or a stream.
    output_tokens = int(4096 * available / needed) - 100
    async with async_openai(customer) as client:
        asked: list[Any] = [{"role": "user", "content": "Hello #sim output=1#"}]
        await client.chat.completions.create(model="gpt-4o", messages=asked, max_tokens=output_tokens)
        stream = await client.chat.completions.create(model="gpt-4o", messages=asked, stream=True)
        assert [chunk async for chunk in stream]


async def test_finding_newcomer_7_max_cost(relay: RelayProcess):
    message = await refused(await relay.customer(), extra_headers={"x-relay-max-cost": "0.0001"}, max_tokens=1000)
    assert re.fullmatch(
        r"The call may cost more than its x-relay-max-cost: the call may cost up to 0\.01\d* credits, "
        r"0\.0001 are allowed\.",
        message,
    ), message


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"tokens_per_call": {"*": 50}}, r".*\(limit of the key\): it asks for 1,0\d\d, 50 are allowed\."),
        ({"tpm": 40}, r".*\(limit of the key\): the call may need 1,0\d\d, 40 are allowed\."),
        ({"daily_limit": "0.000001"}, r".*: the call may cost up to 0\.01\d* credits, 0\.000001 are left\."),
        ({"monthly_limit": "0.000001"}, r".*: the call may cost up to 0\.01\d* credits, 0\.000001 are left\."),
    ],
)
async def test_finding_newcomer_7_limits(relay: RelayProcess, limits: dict[str, Any], expected: str):
    customer = await relay.customer(**limits)
    if "tpm" in limits:  # more than the bucket holds is admitted when it is full
        async with async_openai(customer) as client:
            await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hello"}])
    message = await refused(customer, max_tokens=1000)
    assert re.fullmatch(expected, message), message


async def test_finding_newcomer_7_requests_per_minute(relay: RelayProcess):
    customer = await relay.customer(rpm=1)
    async with async_openai(customer) as client:
        await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hello"}])
    assert await refused(customer) == "Too many requests per minute (limit of the key): 1 are allowed."


async def test_finding_newcomer_7_jobs(relay: RelayProcess):
    customer = await relay.customer("0.000001")
    async with async_openai(customer) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.responses.create(model="gpt-5", input="Hello", background=True)
    assert re.search(r"may cost up to 0\.0\d* credits, 0\.000001 are available", str(caught.value.body))
