"""The official SDKs, pointed at a relay."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import openai
from google import genai
from google.genai import types

from tests.functional.relay_process import Customer

# Most of the time it takes to make an SDK's client goes into loading certificates, which nobody needs here.
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@contextlib.asynccontextmanager
async def async_openai(customer: Customer, **options: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    http = openai.DefaultAsyncHttpxClient(verify=TLS)
    settings = {"base_url": customer.relay.base_url + "/v1", "api_key": customer.secret, "max_retries": 0} | options
    async with openai.AsyncOpenAI(http_client=http, **settings) as client:
        yield client


@contextlib.asynccontextmanager
async def async_anthropic(customer: Customer, **options: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    http = anthropic.DefaultAsyncHttpxClient(verify=TLS)
    settings = {"base_url": customer.relay.base_url, "api_key": customer.secret, "max_retries": 0} | options
    async with anthropic.AsyncAnthropic(http_client=http, **settings) as client:
        yield client


@contextlib.contextmanager
def sync_openai(customer: Customer, **options: Any) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(verify=TLS)
    settings = {"base_url": customer.relay.base_url + "/v1", "api_key": customer.secret, "max_retries": 0} | options
    with openai.OpenAI(http_client=http, **settings) as client:
        yield client


@contextlib.contextmanager
def sync_anthropic(customer: Customer, **options: Any) -> Iterator[anthropic.Anthropic]:
    http = anthropic.DefaultHttpxClient(verify=TLS)
    settings = {"base_url": customer.relay.base_url, "api_key": customer.secret, "max_retries": 0} | options
    with anthropic.Anthropic(http_client=http, **settings) as client:
        yield client


@contextlib.asynccontextmanager
async def google(customer: Customer, **options: Any) -> AsyncIterator[genai.Client]:
    """Sync by its own methods, async by `.aio`."""
    tls = {"client_args": {"verify": TLS}, "async_client_args": {"verify": TLS, "ssl": TLS}}
    http = types.HttpOptions(base_url=customer.relay.base_url, **tls, **options)
    client = genai.Client(api_key=customer.secret, http_options=http)
    try:
        yield client
    finally:
        await client.aio.aclose()
        client.close()
