"""Every change of the operator takes effect in the running relay at once: a whole relay, a simulated upstream."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay import config as configuration
from relay.app import Relay
from relay.control.commands import COMMANDS, read_params
from relay.control.pepper import load_pepper
from relay.simulator import server as simulator
from relay.storage import Store

CONFIG = """
[server]
listen = "127.0.0.1:0"
data_dir = "{data_dir}"
drain_seconds = 2

[admin]
token = "operator-token-for-tests-0123456789"

[[channels]]
name = "simulated"
api = "openai"
base_url = "{upstream}/v1"
api_keys = ["sim-test"]
models = ["gpt-4o", "gpt-4o-mini", "text-embedding-3-small"]

[[rates]]
model = "gpt-4o"
input = "2.5"
output = 10

[[rates]]
model = "text-embedding-3-small"
input = "0.02"
output = 0
"""


class World:
    """A relay with its upstream, one account with credits and one key."""

    def __init__(self, relay: Relay, store: Store, session: aiohttp.ClientSession) -> None:
        self.relay = relay
        self.store = store
        self.session = session
        self.base = f"http://127.0.0.1:{relay.port}"
        self.secret = ""

    async def do(self, command_name: str, /, **fields: Any) -> dict[str, Any]:
        command = COMMANDS[command_name]
        return await self.relay.operations.run(command, read_params(command, fields))

    def chat(self, secret: str | None = None, **body: Any) -> Any:
        document = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50, **body}
        headers = {"Authorization": f"Bearer {secret or self.secret}"}
        return self.session.post(f"{self.base}/v1/chat/completions", json=document, headers=headers)

    async def status(self, secret: str | None = None, **body: Any) -> int:
        """HTTP status of a call."""
        async with self.chat(secret, **body) as answer:
            await answer.read()
            return answer.status

    async def outcome(self, secret: str | None = None) -> tuple[int, str | None]:
        """HTTP status of a call, and the error code in its record (in the answer it has the dialect's name)."""
        status = await self.status(secret)
        [record] = (await self.records())[:1]
        assert record["status"] == status
        return status, record["error_code"]

    async def records(self) -> list[dict[str, Any]]:
        """All call records, newest first, with those that are still on their way to the store."""
        self.relay._hand_over_records()
        records: list[dict[str, Any]] = (await self.do("calls"))["calls"]
        return records

    def endless(self) -> Any:
        """A stream that lasts longer than any test."""
        return self.chat(
            stream=True, messages=[{"role": "user", "content": "#sim events=2000 pace_ms=50#"}], max_tokens=100_000
        )

    async def get(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {self.secret}"}
        async with self.session.get(self.base + path, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    upstream = await simulator.start()
    data_dir = tmp_path / "data"
    config = configuration.parse(CONFIG.format(data_dir=data_dir, upstream=upstream.base_url), file="test.toml")
    store = await Store.open(data_dir)
    relay = Relay(config, store, load_pepper(data_dir, create=True))
    await relay.start()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        world = World(relay, store, session)
        await world.do("account create", email="a@example.com", plan="paid")
        await world.do("credit add", id="acct_1", amount="10")
        world.secret = (await world.do("key create", id="acct_1"))["secret"]
        yield world
    await relay.stop()
    await store.flush()
    verified = await world.do("ledger verify")
    assert verified["differences"] == []
    await store.close()
    await upstream.stop()


async def some_events(answer: aiohttp.ClientResponse) -> None:
    """The first events of a stream; text is among them."""
    for _ in range(10):
        await answer.content.readline()


async def ended(answer: aiohttp.ClientResponse) -> None:
    """A stream that the relay ends must end within seconds, and not cleanly."""
    with pytest.raises(aiohttp.ClientPayloadError):
        await asyncio.wait_for(answer.content.read(), 10)


async def test_a_call_is_paid_and_recorded(world: World):
    assert await world.outcome() == (200, None)
    [record] = (await world.do("calls", account="acct_1"))["calls"]
    assert (record["key_id"], record["path"], record["status"]) == ("key_1", "/v1/chat/completions", 200)
    account = await world.do("account show", id="acct_1")
    assert account["held"] == "0"
    assert account["balance"] == account["available"] != "10"
    assert float(account["balance"]) == pytest.approx(10 - float(record["cost"]))


@pytest.mark.parametrize(
    ("command", "subject", "code", "status"),
    [
        ("key revoke", "key_1", "key_revoked", 401),
        ("key suspend", "key_1", "key_suspended", 401),
        ("account freeze", "acct_1", "account_inactive", 403),
        ("account ban", "acct_1", "account_inactive", 403),
        ("account close", "acct_1", "account_inactive", 403),
    ],
)
async def test_who_is_stopped_is_stopped_at_once(world: World, command: str, subject: str, code: str, status: int):
    async with world.endless() as answer:
        assert answer.status == 200
        await some_events(answer)
        assert (await world.do("account show", id="acct_1"))["held"] != "0"
        await world.do(command, id=subject)
        await ended(answer)
    [streamed] = await world.records()
    assert (streamed["status"], streamed["error_code"]) == (200, code)
    assert streamed["output_tokens"] > 0
    assert await world.status() == status
    assert (await world.do("account show", id="acct_1"))["held"] == "0"


async def test_who_is_let_in_again_is_let_in_at_once(world: World):
    await world.do("account freeze", id="acct_1")
    assert await world.status() == 403
    await world.do("account unfreeze", id="acct_1")
    assert await world.status() == 200
    await world.do("key suspend", id="key_1")
    assert await world.status() == 401
    await world.do("key resume", id="key_1")
    assert await world.status() == 200


async def test_terms_A02_rotation_with_and_without_an_overlap(world: World):
    first = world.secret
    assert await world.status(first) == 200
    second = (await world.do("key rotate", id="key_1", overlap_seconds=3600))["secret"]
    assert await world.status(first) == 200
    assert await world.status(second) == 200
    third = (await world.do("key rotate", id="key_1"))["secret"]
    assert await world.status(first) == 401
    assert await world.status(second) == 401
    assert await world.status(third) == 200


async def test_what_a_key_may_do_changes_at_once(world: World):
    assert await world.status() == 200
    for change, back, code in (
        ({"models": ["gpt-4o-mini"]}, {"models": None}, "model_not_allowed"),
        ({"scopes": ["embeddings"]}, {"scopes": None}, "scope_not_allowed"),
        ({"allow_ips": ["203.0.113.0/24"]}, {"allow_ips": None}, "address_not_allowed"),
        ({"tokens_per_call": {"gpt-4o": 5}}, {"tokens_per_call": None}, "tokens_per_call"),
        ({"daily_limit": "0.000000001"}, {"daily_limit": None}, "daily_limit"),
        ({"monthly_limit": "0.000000001"}, {"monthly_limit": None}, "monthly_limit"),
    ):
        await world.do("key set", id="key_1", **change)
        assert (await world.outcome())[1] == code
        await world.do("key set", id="key_1", **back)
        assert await world.outcome() == (200, None), code


@pytest.mark.parametrize(("subject", "command"), [("key_1", "key set"), ("acct_1", "account set")])
async def test_a_rate_limit_changes_at_once(world: World, subject: str, command: str):
    await world.do(command, id=subject, rpm=1)
    assert await world.status() == 200
    assert await world.outcome() == (429, "rate_limit_requests")
    await world.do(command, id=subject, rpm=0)
    assert await world.status() == 200


async def test_the_limits_of_an_organisation_hold_for_its_accounts_together(world: World):
    await world.do("account create", email="b@example.com", plan="paid", organisation="Acme")
    await world.do("credit add", id="acct_2", amount="10")
    other = (await world.do("key create", id="acct_2"))["secret"]
    assert await world.status(other) == 200
    await world.do("account set", id="acct_1", organisation="Acme")
    await world.do("organisation set", id="org_1", rpm=1)
    assert await world.status() == 200
    assert await world.outcome(other) == (429, "rate_limit_requests")
    await world.do("organisation set", id="org_1", rpm=None)
    assert await world.status(other) == 200


async def test_credits_count_at_once_both_ways(world: World):
    assert await world.status() == 200
    left = (await world.do("account show", id="acct_1"))["available"]
    await world.do("credit refund", id="acct_1", amount=left, reason="all of it")
    assert await world.outcome() == (402, "insufficient_balance")
    await world.do("credit add", id="acct_1", amount="1")
    assert await world.status() == 200


async def test_a_refund_leaves_alone_what_open_calls_hold(world: World):
    async with world.endless() as answer:
        await some_events(answer)
        account = await world.do("account show", id="acct_1")
        assert account["held"] != "0"
        with pytest.raises(Exception, match="held by open calls"):
            await world.do("credit refund", id="acct_1", amount="10", reason="too much")
    assert await world.status() == 200


async def test_a_balance_that_is_loaded_while_credits_move_is_right(world: World):
    """First calls of keys, additions and refunds at the same time: memory and ledger must agree afterwards."""
    for number in range(2, 14):
        account = f"acct_{number}"
        await world.do("account create", email=f"{number}@example.com", plan="paid")
        await world.do("credit add", id=account, amount="5")
        secret = (await world.do("key create", id=account))["secret"]
        await asyncio.gather(
            world.do("credit add", id=account, amount="1"),
            world.status(secret),
            world.do("credit refund", id=account, amount="2", reason="r"),
            world.do("credit add", id=account, amount="3"),
        )
        await world.records()
        shown = await world.do("account show", id=account)
        [call] = (await world.do("calls", account=account))["calls"]
        assert float(shown["balance"]) == pytest.approx(7 - float(call["cost"]), abs=1e-9)
        ledger = await world.store.balance(number)
        live = await world.relay.balance(number)
        assert live is not None
        assert live.available_nano + live.held_nano == ledger


async def test_the_customers_api(world: World):
    assert await world.status() == 200
    await world.records()
    balance = await world.get("/relay/v1/balance")
    assert balance["account_id"] == "acct_1"
    limits = await world.get("/relay/v1/limits")
    assert [scope["scope"] for scope in limits["scopes"]] == ["key", "account"]
    assert limits["scopes"][0]["requests_per_minute"]["limit"] == 200
    assert limits["scopes"][0]["requests_per_minute"]["remaining"] in (199, 200)
    [record] = (await world.get("/relay/v1/calls"))["calls"]
    assert record["model"] == "gpt-4o"
    assert {rate["model"] for rate in (await world.get("/relay/v1/rates"))["rates"]} == {
        "gpt-4o", "gpt-4o-mini", "text-embedding-3-small",
    }  # fmt: skip
    for secret in ("", "sk-nonsense", "operator-token-for-tests-0123456789"):
        headers = {"Authorization": f"Bearer {secret}"}
        async with world.session.get(f"{world.base}/relay/v1/balance", headers=headers) as answer:
            assert answer.status == 401


async def test_the_operators_api_is_closed_to_customers(world: World):
    for secret, status in ((world.secret, 401), ("operator-token-for-tests-0123456789", 200)):
        headers = {"Authorization": f"Bearer {secret}"}
        async with world.session.get(f"{world.base}/admin/v1/accounts", headers=headers) as answer:
            assert answer.status == status


async def test_health_of_a_running_relay(world: World):
    for path in ("/healthz", "/readyz"):
        async with world.session.get(world.base + path) as answer:
            assert answer.status == 200
