"""The clients that people use, through a relay: Node's SDKs, Vercel's `ai`, langchain-openai, litellm.

What a client shows as usage is what the record says and what the simulator reported; a refusal raises what the client's
users catch, and a final one is not sent again.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from relay.simulator import Running
from tests.clients import HERE, Driver, node, python
from tests.functional.relay_process import Customer, RelayProcess, nano
from tests.functional.setting import cost_nano

pytestmark = pytest.mark.asyncio(loop_scope="session")

GPT, CLAUDE, GEMINI = "gpt-4o", "claude-sonnet-5", "gemini-2.5-flash"

# client -> model, path of its calls
NODE = {
    "openai-chat": (GPT, "/v1/chat/completions"),
    "openai-responses": (GPT, "/v1/responses"),
    "anthropic": (CLAUDE, "/v1/messages"),
    "gemini": (GEMINI, "/v1beta/models/{model}:generateContent"),
    "ai-openai": (GPT, "/v1/responses"),
    "ai-openai-chat": (GPT, "/v1/chat/completions"),
    "ai-anthropic": (CLAUDE, "/v1/messages"),
}
PYTHON = {
    "langchain": (GPT, "/v1/chat/completions"),
    "langchain-responses": (GPT, "/v1/responses"),
    "litellm-openai": (GPT, "/v1/chat/completions"),
    "litellm-anthropic": (CLAUDE, "/v1/messages"),
    "litellm-gemini": (GEMINI, "/v1beta/models/{model}:generateContent"),
}
CLIENTS = {**NODE, **PYTHON}
LISTING = ("openai-chat", "anthropic", "gemini")

SAY = "Say something. #sim events=6 input=40 cached=10 seed=5#"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def node_driver() -> AsyncIterator[Driver]:
    async with Driver(node(), str(HERE / "node" / "driver.mjs")) as driver:
        yield driver


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def python_driver() -> AsyncIterator[Driver]:
    async with Driver(python(), str(HERE / "python" / "driver.py")) as driver:
        yield driver


class Asking:
    """One client, with a key."""

    def __init__(self, driver: Driver, client: str) -> None:
        self.driver, self.client = driver, client
        self.model, self.path = CLIENTS[client]

    async def __call__(self, customer: Customer, step: str, **more: Any) -> dict[str, Any]:
        request = {"text": SAY, "model": self.model, "retries": 0, "key": customer.secret} | more
        return await self.driver.ask(client=self.client, step=step, base=customer.relay.base_url, **request)


@pytest.fixture(params=CLIENTS)
def ask(request: pytest.FixtureRequest) -> Asking:
    driver = request.getfixturevalue("node_driver" if request.param in NODE else "python_driver")
    return Asking(driver, request.param)


async def check(
    customer: Customer, ask: Asking, shown: dict[str, Any], simulator: Running, *, stream: bool = False
) -> None:
    """What the client shows, what the record says, what the provider reported and what was charged are one."""
    assert "error" not in shown, shown["error"]
    record = await customer.call()
    entry = simulator.book.last
    assert (record["status"], record["error_code"], record["usage_source"]) == (200, None, "upstream")
    assert (record["model"], record["stream"]) == (ask.model, stream)
    assert record["path"] == (ask.path.replace(":generate", ":streamGenerate") if stream else ask.path)
    recorded = {
        "input": record["input_tokens"] + record["cache_read_tokens"],
        "output": record["output_tokens"],
        "cached": record["cache_read_tokens"],
    }
    assert shown["usage"] == recorded
    assert recorded == {"input": 40, "output": entry.output_tokens, "cached": 10}
    cost = cost_nano(ask.model, 30, entry.output_tokens, 10)
    assert nano(record["cost"]) == cost
    assert await customer.settled_nano() == 100 * 10**9 - cost


async def test_a_whole_answer(customer: Customer, simulator: Running, ask: Asking):
    shown = await ask(customer, "json")
    await check(customer, ask, shown, simulator)
    assert len(shown["text"].split()) == 6


async def test_a_stream(customer: Customer, simulator: Running, ask: Asking):
    shown = await ask(customer, "stream")
    await check(customer, ask, shown, simulator, stream=True)
    assert len(shown["text"].split()) == 6


async def test_tools(customer: Customer, simulator: Running, ask: Asking):
    shown = await ask(customer, "tools", text=SAY.replace("#sim", "#sim tools=1"))
    await check(customer, ask, shown, simulator)
    assert [call["name"] for call in shown["tools"]] == ["look_up"]
    assert len(shown["tools"][0]["arguments"]["city"].split()) == 6


@pytest.mark.parametrize("client", LISTING)
async def test_models(customer: Customer, node_driver: Driver, client: str):
    shown = await Asking(node_driver, client)(customer, "models")
    assert "error" not in shown, shown["error"]
    prefix = "models/" if client == "gemini" else ""
    assert prefix + CLIENTS[client][0] in shown["models"]


async def test_embeddings_of_langchain(customer: Customer, python_driver: Driver):
    shown = await Asking(python_driver, "langchain")(customer, "embeddings", model="text-embedding-3-small")
    assert shown == {"text": "2"}
    assert (await customer.call())["path"] == "/v1/embeddings"


# What a program that uses the client catches, by status.
OPENAI = {401: "AuthenticationError", 402: "APIError", 404: "NotFoundError", 429: "RateLimitError"}
ANTHROPIC = OPENAI | {402: "PaymentRequiredError"}
LANGCHAIN = {
    401: "OpenAIAuthenticationError",
    402: "APIStatusError",
    404: "OpenAIModelNotFoundError",
    429: "OpenAIRateLimitError",
}
RAISED = {
    "openai-chat": OPENAI,
    "openai-responses": OPENAI,
    "anthropic": ANTHROPIC,
    "gemini": dict.fromkeys(OPENAI, "ApiError"),
    "ai-openai": dict.fromkeys(OPENAI, "APICallError"),
    "ai-openai-chat": dict.fromkeys(OPENAI, "APICallError"),
    "ai-anthropic": dict.fromkeys(OPENAI, "APICallError"),
    "langchain": LANGCHAIN,
    "langchain-responses": LANGCHAIN,
    "litellm-openai": OPENAI,
    "litellm-anthropic": ANTHROPIC,
    "litellm-gemini": ANTHROPIC,
}


def check_error(ask: Asking, shown: dict[str, Any], status: int) -> None:
    assert "error" in shown, shown
    error = shown["error"]
    assert (error["status"], error["name"]) == (status, RAISED[ask.client][status]), error


@pytest.mark.parametrize("step", ["json", "stream"])
async def test_a_key_that_is_none(relay: RelayProcess, simulator: Running, ask: Asking, step: str):
    stranger = Customer(relay, "", "", "sk-nobody-00000000000000000000000000000000")
    before = simulator.book.requests
    check_error(ask, await ask(stranger, step), 401)
    assert simulator.book.requests == before


@pytest.mark.parametrize("step", ["json", "stream"])
async def test_no_credits_is_said_once(relay: RelayProcess, ask: Asking, step: str):
    """Also to a client that repeats what fails: a final refusal is not sent again."""
    poor = await relay.customer("0")
    check_error(ask, await ask(poor, step, retries=2), 402)
    record = await poor.call()
    assert (record["status"], record["error_code"], record["cost"]) == (402, "insufficient_balance", "0")


async def test_too_many_requests(relay: RelayProcess, ask: Asking):
    customer = await relay.customer(rpm=1)
    assert "error" not in await ask(customer, "json")
    check_error(ask, await ask(customer, "json"), 429)
    refused, _ = await customer.calls(2)
    assert (refused["status"], refused["error_code"]) == (429, "rate_limit_requests")


async def test_a_model_that_is_not_there(customer: Customer, ask: Asking):
    check_error(ask, await ask(customer, "json", model="unknown-model"), 404)
    assert (await customer.call())["error_code"] == "model_not_found"


async def test_a_stream_that_breaks_is_an_error(customer: Customer, ask: Asking):
    """The provider goes away in the middle: nobody takes the short text for the whole."""
    shown = await ask(customer, "stream", text=SAY.replace("#sim", "#sim cut=900 split=100"))
    assert "error" in shown, shown
    record = await customer.call()
    assert record["error_code"] == "upstream_truncated"
