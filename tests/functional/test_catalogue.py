"""Which models are listed to whom, where they are served, and under which paths: by real SDKs through a relay."""

import json
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from google.genai import errors as google_errors

from tests.functional.clients import async_anthropic, async_openai, google
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually
from tests.functional.setting import PRICES
from tests.support.rawclient import RawClient

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # The SDK's own subclassing of aiohttp's session.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]

GPT, CLAUDE, GEMINI, EMBEDDING = "gpt-4o", "claude-sonnet-5", "gemini-2.5-flash", "gemini-embedding-001"
CHAT = [{"role": "user", "content": "Hello"}]
_BODY = (
    b'{"candidates":[{"content":{"parts":[{"text":"Hi"}],"role":"model"},"finishReason":"STOP"}],'
    b'"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":1,"totalTokenCount":4}}'
)
GENERATED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
SERVED_AT = {
    GPT: "gpt-4o is served at /v1/chat/completions here; this relay does not translate between APIs.",
    CLAUDE: "claude-sonnet-5 is served at /v1/messages here; this relay does not translate between APIs.",
    GEMINI: "gemini-2.5-flash is served at /v1beta/models/gemini-2.5-flash:generateContent here; this relay does not "
    "translate between APIs.",
    EMBEDDING: "gemini-embedding-001 is served at /v1beta/models/gemini-embedding-001:embedContent here; this relay "
    "does not translate between APIs.",
}


async def test_finding_clients_F15_lists_have_what_their_dialect_can_call(customer: Customer):
    async with async_openai(customer) as client:
        chat = {model.id: model async for model in client.models.list()}
    async with async_anthropic(customer) as client:
        messages = {model.id: model async for model in client.models.list(limit=1000)}
    async with google(customer) as client:
        contents = {model.name.removeprefix("models/"): model async for model in await client.aio.models.list()}
    assert GPT in chat
    assert CLAUDE in messages
    assert {GEMINI, EMBEDDING} <= set(contents)
    assert not set(chat) & set(messages)
    assert not set(chat) & set(contents)
    assert not set(messages) & set(contents)
    assert chat.keys() | messages.keys() | contents.keys() == PRICES.keys()  # and nothing without a price

    shown = chat[GPT].model_dump()
    assert (shown["context_length"], shown["created"]) == (128_000, 1_715_558_400)
    assert shown["architecture"]["input_modalities"] == ["text", "image", "file"]
    assert shown["pricing"]["prompt"] == "0.0000025"
    assert shown["pricing"]["completion"] == "0.00001"
    assert messages[CLAUDE].display_name == CLAUDE
    assert messages[CLAUDE].max_input_tokens == 1_000_000
    assert contents[GEMINI].input_token_limit == 1_048_576
    assert contents[EMBEDDING].supported_actions == ["embedContent", "batchEmbedContents"]


async def test_finding_newcomer_37_no_model_is_from_1970(customer: Customer):
    async with async_openai(customer) as client:
        dates = [model.created async for model in client.models.list()]
    assert min(date for date in dates if date is not None) > 1_500_000_000
    async with async_anthropic(customer) as client:
        shown = [model.model_dump() async for model in client.models.list(limit=1000)]
    assert not [model for model in shown if str(model.get("created_at", "2026")).startswith("1970")]


@pytest.mark.parametrize("model", [CLAUDE, GEMINI, EMBEDDING])
async def test_finding_newcomer_3_openai_is_told_where_a_model_is_served(customer: Customer, model: str):
    async with async_openai(customer) as client:
        for call in (
            lambda: client.chat.completions.create(model=model, messages=CHAT),
            lambda: client.chat.completions.create(model=model, messages=CHAT, stream=True),
            lambda: client.responses.create(model=model, input="Hello"),
            lambda: client.embeddings.create(model=model, input="Hello"),
            lambda: client.models.retrieve(model),
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                await call()
            assert caught.value.body["message"] == SERVED_AT[model]
            assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("model", [GPT, GEMINI])
async def test_finding_newcomer_3_anthropic_is_told_where_a_model_is_served(customer: Customer, model: str):
    async with async_anthropic(customer) as client:
        for call in (
            lambda: client.messages.create(model=model, max_tokens=10, messages=CHAT),
            lambda: client.messages.count_tokens(model=model, messages=CHAT),
            lambda: client.models.retrieve(model),
        ):
            with pytest.raises(anthropic.NotFoundError) as caught:
                await call()
            assert caught.value.body["error"]["message"] == SERVED_AT[model]
            assert caught.value.body["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("model", [GPT, CLAUDE])
async def test_finding_newcomer_3_gemini_is_told_where_a_model_is_served(customer: Customer, model: str):
    async with google(customer) as client:
        for call in (
            lambda: client.aio.models.generate_content(model=model, contents="Hello"),
            lambda: client.aio.models.embed_content(model=model, contents="Hello"),
            lambda: client.aio.models.get(model=model),
        ):
            with pytest.raises(google_errors.ClientError) as caught:
                await call()
            assert (caught.value.code, caught.value.message) == (404, SERVED_AT[model])


async def test_finding_clients_F20_sdks_with_odd_base_urls(customer: Customer):
    """Joining leaves double slashes and a closing one; Google's base for OpenAI's SDK has a path of its own."""
    for base in ("/v1//", "//v1", "/v1beta/openai/", "/api/v1", "/openai/v1"):
        async with async_openai(customer, base_url=customer.relay.base_url + base) as client:
            answer = await client.chat.completions.create(model=GPT, messages=CHAT)
            assert answer.choices[0].message.content
            assert GPT in [model.id async for model in client.models.list()]
    async with async_anthropic(customer, base_url=customer.relay.base_url + "//") as client:
        assert (await client.messages.create(model=CLAUDE, max_tokens=10, messages=CHAT)).content


async def test_finding_clients_F20_a_model_with_a_slash_is_retrieved(customer: Customer):
    """SDKs escape the slash."""
    async with async_openai(customer) as client:
        assert (await client.models.retrieve("raw/with-slash")).id == "raw/with-slash"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("raw/without")


async def test_finding_clients_F20_v1alpha_goes_on_as_v1alpha(customer: Customer, raw: RawUpstream):
    name, exchange = raw.script(GENERATED)
    async with google(customer, api_version="v1alpha") as client:
        answer = await client.aio.models.generate_content(model="raw-gemini", contents=f"#raw {name}#")
        assert answer.text == "Hi"
        assert GEMINI in [model.name.removeprefix("models/") async for model in await client.aio.models.list()]
    assert exchange.requests[0].startswith(b"POST /v1alpha/models/raw-gemini:generateContent HTTP/1.1")
    assert (await customer.call())["path"] == "/v1beta/models/{model}:generateContent"


async def test_finding_clients_F26_what_sdks_call_and_is_not_served(customer: Customer):
    text = "This path of the provider's API is not served by this relay."
    async with async_openai(customer) as client:
        for call in (
            lambda: client.conversations.create(),
            lambda: client.vector_stores.list(),
            lambda: client.fine_tuning.jobs.list(),
            lambda: client.containers.list(),
            lambda: client.chat.completions.retrieve("chatcmpl_1"),
            lambda: client.evals.list(),
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                await call()
            assert caught.value.body["message"] == text
    async with async_anthropic(customer) as client:
        for call in (lambda: client.beta.files.list(), lambda: client.beta.skills.list()):
            with pytest.raises(anthropic.NotFoundError) as caught:
                await call()
            assert caught.value.body["error"]["message"] == text
    async with google(customer) as client:
        for call in (
            lambda: client.aio.files.get(name="files/f1"),
            lambda: client.aio.caches.get(name="cachedContents/c1"),
        ):
            with pytest.raises(google_errors.ClientError) as caught:
                await call()
            assert (caught.value.code, caught.value.message) == (404, text)


async def test_finding_newcomer_27_texts_of_paths_and_of_scopes(customer: Customer):
    async with async_openai(customer, base_url=customer.relay.base_url + "/v3") as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model=GPT, messages=CHAT)
        assert "The base URL has /v1" in caught.value.body["message"]
        with pytest.raises(openai.NotFoundError) as caught:
            await client.get("/nothing", cast_to=object)
        assert caught.value.body["message"] == "There is nothing at this path."
    scoped = await customer.relay.another_key(customer, scopes=["embeddings"])
    async with async_openai(scoped) as client:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await client.chat.completions.create(model=GPT, messages=CHAT)
        assert caught.value.body["message"] == "This API key may not use this endpoint."
    async with async_openai(customer, default_headers={"x-relay-channel": "sim-openai"}) as client:
        for call in (
            lambda: client.chat.completions.create(model=GPT, messages=CHAT),
            lambda: client.files.create(file=b"{}", purpose="batch"),
        ):
            with pytest.raises(openai.PermissionDeniedError) as caught:
                await call()
            assert "may not choose its channel by x-relay-channel" in caught.value.body["message"]


async def test_where_a_model_is_served_is_told_only_to_keys_that_may_use_it(customer: Customer):
    limited = await customer.relay.another_key(customer, models=[GPT])
    async with async_openai(limited) as client:
        with pytest.raises(openai.PermissionDeniedError):
            await client.chat.completions.create(model=CLAUDE, messages=CHAT)
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve(CLAUDE)
        assert "/v1/messages" not in caught.value.body["message"]
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("gpt-unpriced")
        assert "served at" not in caught.value.body["message"]
        assert [model.id async for model in client.models.list()] == [GPT]


async def test_finding_newcomer_36_who_may_not_ask_is_told_in_a_sentence(customer: Customer):
    await customer.relay.command("account freeze", id=customer.account)
    fields = {"Authorization": f"Bearer {customer.secret}"}
    text = "The account of this API key is not active."
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        for path in ("/relay/v1/balance", "/relay/v1/calls"):
            answer = await client.request("GET", path, fields)
            assert (answer.status, json.loads(answer.body)) == (403, {"error": {"code": "refused", "message": text}})
        answer = await client.request("GET", "/v1/models", fields)
        assert (answer.status, json.loads(answer.body)["error"]["message"]) == (403, text)
        assert json.loads(answer.body)["error"]["code"] == "account_inactive"


async def test_finding_clients_F25_unknown_models_are_told_with_a_count(customer: Customer):
    """What looks like a name, and nothing else: not a prompt that stands in the wrong place."""
    shown: list[tuple[str, int]] = []
    async with async_openai(customer) as client:
        for model in ("gpt-of-tomorrow", "gpt-of-tomorrow", "please tell nobody", "x" * 65, "vendor/new@1"):
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model=model, messages=CHAT)

    async def told() -> bool:
        events = (await customer.relay.command("events"))["events"]
        shown[:] = [
            (event["detail"], event["count"])
            for event in events
            if event["kind"] == "model_unknown" and event["key_id"] == customer.key
        ]
        return sum(count for _, count in shown) >= 3

    await eventually(told, 20.0)
    assert {name for name, _ in shown} == {"gpt-of-tomorrow", "vendor/new@1"}
    assert sum(count for name, count in shown if name == "gpt-of-tomorrow") == 2
    record = (await customer.calls(5))[0]
    assert record["model"] is None


@pytest.mark.parametrize("spent", [False, True])
async def test_users_ask_15_balances_as_chat_applications_ask_for_them(relay: RelayProcess, spent: bool):
    customer = await relay.customer("12.5", rpm=60, monthly_limit="5")
    other = await relay.another_key(customer)
    used = 0.0
    async with async_openai(other) as client:  # what another key uses is nobody else's business
        await client.chat.completions.create(model=GPT, messages=CHAT)
    if spent:
        async with async_openai(customer) as client:
            await client.chat.completions.create(model=GPT, messages=CHAT)
        used = float((await customer.call())["cost"])
        assert used > 0
    available = await customer.settled_nano() / 10**9
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {customer.secret}"}) as session:

        async def get(path: str) -> Any:
            async with session.get(relay.base_url + path) as answer:
                assert answer.status == 200, path
                return await answer.json()

        async def told() -> bool:
            return (await get("/api/v1/credits"))["data"]["total_usage"] == pytest.approx(used)

        await eventually(told)
        credits = (await get("/api/v1/credits"))["data"]
        assert credits["total_credits"] - credits["total_usage"] == pytest.approx(available)
        for base in ("/v1/dashboard/billing", "/dashboard/billing"):
            subscription = await get(base + "/subscription")
            assert subscription["hard_limit_usd"] == pytest.approx(available + used)
            shown = await get(base + "/usage?start_date=2026-01-01&end_date=2026-01-31")
            assert shown["total_usage"] / 100 == pytest.approx(used)
        key = (await get("/api/v1/key"))["data"]
        assert (key["limit"], key["limit_reset"]) == (5.0, "monthly")
        assert key["limit_remaining"] == pytest.approx(5 - used)
        assert key["usage"] == key["usage_monthly"] == pytest.approx(used)
        assert key["rate_limit"] == {"requests": 60, "interval": "60s"}
    async with aiohttp.ClientSession() as session:
        for path in ("/v1/dashboard/billing/usage", "/api/v1/credits", "/api/v1/key"):
            async with session.get(relay.base_url + path) as answer:
                assert answer.status == 401
