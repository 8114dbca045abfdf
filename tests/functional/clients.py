"""The official SDKs, pointed at a relay."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import openai
from google import genai
from google.genai import types

from tests.functional.relay_process import Customer


@contextlib.asynccontextmanager
async def async_openai(customer: Customer, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    settings = {"base_url": customer.relay.base_url + "/v1", "api_key": customer.secret, "max_retries": 0} | options
    async with openai.AsyncOpenAI(**settings) as client:
        yield client


@contextlib.asynccontextmanager
async def async_anthropic(customer: Customer, **options: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    settings = {"base_url": customer.relay.base_url, "api_key": customer.secret, "max_retries": 0} | options
    async with anthropic.AsyncAnthropic(**settings) as client:
        yield client


@contextlib.contextmanager
def sync_openai(customer: Customer, **options: Any) -> Iterator[openai.OpenAI]:
    settings = {"base_url": customer.relay.base_url + "/v1", "api_key": customer.secret, "max_retries": 0} | options
    with openai.OpenAI(**settings) as client:
        yield client


@contextlib.contextmanager
def sync_anthropic(customer: Customer, **options: Any) -> Iterator[anthropic.Anthropic]:
    settings = {"base_url": customer.relay.base_url, "api_key": customer.secret, "max_retries": 0} | options
    with anthropic.Anthropic(**settings) as client:
        yield client


@contextlib.asynccontextmanager
async def google(customer: Customer, *, api_key: str = "", **options: Any) -> AsyncIterator[genai.Client]:
    """Sync by its own methods, async by `.aio`."""
    http = types.HttpOptions(base_url=customer.relay.base_url, **options)
    client = genai.Client(api_key=api_key or customer.secret, http_options=http)
    try:
        yield client
    finally:
        await client.aio.aclose()
        client.close()
