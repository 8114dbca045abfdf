import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from relay import units
from relay.config import Config
from relay.control.commands import AccountCreate, CreditAdd, KeyCreate
from relay.control.customer import Caller, CustomerApi
from relay.control.failures import CommandError
from relay.control.live import LiveBalance
from relay.control.operations import Operations
from relay.records import CALL_RECORD_FIELDS
from relay.storage import Store
from tests.support.live import FakeLive

Client = TestClient[Any, Any]


async def authenticate(request: web.Request) -> Caller:
    key = request.headers.get("x-api-key", "")
    if key not in ("one", "two"):
        raise CommandError("unauthorized", "The API key is not valid.")
    return Caller(1, 1 if key == "one" else 2, None if key == "one" else frozenset({"gpt-unheard-of"}))


@pytest.fixture
async def client(store: Store, live: FakeLive, config: Config, operations: Operations) -> AsyncIterator[Client]:
    await operations.account_create(AccountCreate(email="a@example.com"))
    await operations.credit_add(CreditAdd(id="acct_1", amount="5"))
    for _ in range(2):
        await operations.key_create(KeyCreate(id="acct_1"))
    app = web.Application()
    CustomerApi(store, live, lambda: config, authenticate).add_routes(app)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_every_route_wants_a_key(client: Client):
    for name in ("balance", "limits", "calls", "usage", "rates", "nothing"):
        answer = await client.get(f"/relay/v1/{name}")
        assert answer.status == (404 if name == "nothing" else 401)
        assert set((await answer.json())["error"]) == {"code", "message"}


async def test_the_balance(client: Client, live: FakeLive):
    answer = await client.get("/relay/v1/balance", headers={"x-api-key": "one"})
    assert await answer.json() == {
        "account_id": "acct_1", "credit_name": "credits", "balance": "5", "held": "0", "available": "5",
    }  # fmt: skip
    live.balances[1] = LiveBalance(1, 2)
    answer = await client.get("/relay/v1/balance", headers={"x-api-key": "two"})
    assert (await answer.json())["held"] == "0.000000002"


async def test_the_limits_in_force_and_what_is_left(client: Client):
    answer = await client.get("/relay/v1/limits", headers={"x-api-key": "one"})
    key, account = (await answer.json())["scopes"]
    assert key["requests_per_minute"] == {"limit": 20, "remaining": 19, "reset_seconds": 3.0}
    assert key["tokens_per_minute"] is None
    assert key["concurrency"] == {"limit": 5, "remaining": 4, "in_flight": 1}
    assert key["daily"] == {"limit": "1", "spent": "0.25", "remaining": "0.75"}
    assert key["monthly"] == {"limit": None, "spent": "0.000000007", "remaining": None}
    assert key["tokens_per_call"] == {"*": 1000}
    assert account["monthly"]["remaining"] == "0"
    assert account["concurrency"] is None


async def test_a_key_sees_its_own_calls_and_not_how_they_were_routed(client: Client, store: Store):
    now_ms = time.time_ns() // 1_000_000
    for counter, key_id in enumerate((1, 2, 1)):
        values = dict.fromkeys(CALL_RECORD_FIELDS, 0) | {
            "id": units.call_id(now_ms, counter), "account_id": 1, "key_id": key_id, "path": "/v1/chat/completions",
            "model": "gpt-4o", "upstream_model": "cheap", "channel": "cheap", "usage_source": "upstream", "status": 200,
            "error_code": None, "organisation_id": None, "day": units.day_of(now_ms // 1000),
        }  # fmt: skip
        store.append_calls([tuple(values.values())])
    await store.flush()
    answer = await client.get("/relay/v1/calls", headers={"x-api-key": "one"})
    text = await answer.text()
    records = (await answer.json())["calls"]
    assert [record["key_id"] for record in records] == ["key_1", "key_1"]
    assert "cheap" not in text
    answer = await client.get("/relay/v1/calls", params={"limit": "1"}, headers={"x-api-key": "one"})
    page = await answer.json()
    answer = await client.get("/relay/v1/calls", params={"before": page["next"]}, headers={"x-api-key": "one"})
    assert (await answer.json())["calls"] == records[1:]


@pytest.mark.parametrize(
    "query", ["account=acct_2", "key=key_2", "limit=0", "limit=9999", "limit=1&limit=2", "since=x"]
)
async def test_queries_that_are_refused(client: Client, query: str):
    answer = await client.get(f"/relay/v1/calls?{query}", headers={"x-api-key": "one"})
    assert answer.status == 400


async def test_terms_A11_rates_are_what_the_customer_pays(client: Client):
    answer = await client.get("/relay/v1/rates", headers={"x-api-key": "one"})
    rates = (await answer.json())["rates"]
    assert [rate["model"] for rate in rates] == ["gpt-4o"]
    assert rates[0]["input"] == "2.125"
    assert rates[0]["cache_read"] == "1.0625"
    answer = await client.get("/relay/v1/rates", headers={"x-api-key": "two"})
    assert (await answer.json())["rates"] == []


async def test_other_methods_are_refused(client: Client):
    answer = await client.post("/relay/v1/balance", headers={"x-api-key": "one"})
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")
    assert (await answer.json())["error"]["code"] == "method_not_allowed"


async def test_finding_newcomer_8_a_key_sees_its_own_usage(client: Client, store: Store):
    now_ms = time.time_ns() // 1_000_000
    for counter, key_id in enumerate((1, 1, 2)):
        base = dict.fromkeys(CALL_RECORD_FIELDS, 0) | {
            "id": units.call_id(now_ms, counter), "account_id": 1, "key_id": key_id, "path": "/v1/chat/completions",
            "model": "gpt-4o", "usage_source": "upstream", "status": 200, "error_code": None, "first_byte_us": None,
            "organisation_id": None, "day": units.day_of(now_ms // 1000), "input_tokens": 7, "user_agent": "",
            "source_ip": "",
        }  # fmt: skip
        store.append_calls([tuple(base.values())])
    own = await (await client.get("/relay/v1/usage?by=day,model", headers={"x-api-key": "one"})).json()
    assert own["total"]["input_tokens"] == 14
    assert [(row["model"], row["calls"]) for row in own["usage"]] == [("gpt-4o", 2)]
    for query in ("by=key", "by=account", "by=day&by=model", "key=key_2"):
        assert (await client.get(f"/relay/v1/usage?{query}", headers={"x-api-key": "one"})).status == 400
