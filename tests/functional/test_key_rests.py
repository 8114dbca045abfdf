"""Upstream keys that are refused: for what they rest, and how the last one comes back, through a real relay."""

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web

from tests.functional.relay_process import Customer, eventually
from tests.functional.test_routing import ask, channels, code, config, running, way
from tests.support.http1 import Message, request_bytes
from tests.support.providers import Provider, refusal
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCOPES = {
    "error": {
        "message": "You have insufficient permissions for this operation. Missing scopes: model.request.",
        "type": "invalid_request_error", "param": None, "code": None,
    }
}  # fmt: skip


async def post(customer: Customer, path: str, model: str) -> Message:
    body = json.dumps({"model": model, "input": "hi", "prompt": "hi"}).encode()
    fields = {"Host": "relay", "Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"}
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(request_bytes("POST", path, fields, body))
        return await client.response()


@pytest.mark.parametrize("status", [401, 403])
async def test_finding_clients_F4_a_refusal_at_one_endpoint_shuts_nothing_else(tmp_path: Path, status: int):
    """One key. An endpoint that it may not use is called again and again; everybody else goes on."""

    async def refused(provider: Provider, key: str, model: str) -> web.Response | None:
        return web.json_response(SCOPES, status=status) if model == "other" else None

    async with Provider(refused) as provider, running(tmp_path, config(way("a", provider))) as customer:
        for _ in range(3):
            answer = await post(customer, "/v1/embeddings", "other")
            assert (answer.status, code(answer)) == (503, "upstream_account")
            answer = await post(customer, "/v1/completions", "other")
            assert (answer.status, code(answer)) == (503, "upstream_account")
            assert (await ask(customer)).status == 200
        assert provider.calls["a-1"] == 5  # one try of each endpoint, and what it may do
        state = (await channels(customer))["a"]
        places = {(rest["endpoint"], rest["model"], rest["status"]) for rest in state["keys_resting"]}
        assert places == {("embeddings", "other", status), ("completions", "other", status)}


async def test_finding_clients_F4_the_last_key_is_probed_and_not_just_shut(tmp_path: Path):
    refusing = True
    waiting = asyncio.Event()

    async def refused(provider: Provider, key: str, model: str) -> web.Response | None:
        if refusing and provider.calls.total() > 1:
            await waiting.wait()
        return refusal(402, "billing_error") if refusing else None

    async with Provider(refused) as provider, running(tmp_path, config(way("a", provider))) as customer:
        first = await ask(customer)
        assert (first.status, code(first)) == (503, "upstream_account")
        shut = await ask(customer)
        assert (shut.status, code(shut), int(shut.header("retry-after") or 0)) == (503, "upstream_account", 2)
        assert provider.calls.total() == 1

        async def tried() -> bool:
            trying = asyncio.create_task(ask(customer))
            done, _ = await asyncio.wait([trying], timeout=0.2)
            probes.append(trying)
            return not done

        probes: list[asyncio.Task[Message]] = []
        await eventually(tried)
        assert provider.calls.total() == 2  # this one waits at the provider
        assert (await channels(customer))["a"]["state"] == "probing"
        others = await asyncio.gather(*(ask(customer) for _ in range(5)))
        assert {answer.status for answer in others} == {503}
        assert provider.calls.total() == 2  # one at a time
        refusing = False
        waiting.set()
        assert (await probes[-1]).status == 200
        assert (await channels(customer))["a"]["state"] == "ok"
        assert {answer.status for answer in await asyncio.gather(*(ask(customer) for _ in range(5)))} == {200}
        assert provider.calls.total() == 7
        assert {answer.status for answer in await asyncio.gather(*probes[:-1])} == {503}


async def test_finding_clients_F4_failures_of_one_model_shut_it_alone(tmp_path: Path):
    async def fail(provider: Provider, key: str, model: str) -> web.Response | None:
        return refusal(500, "server_error") if model == "other" else None

    async with (
        Provider(fail) as provider,
        running(tmp_path, config(way("a", provider), breaker_open_seconds=30)) as customer,
    ):
        for _ in range(12):
            await ask(customer, "other")
        asked = provider.calls.total()
        assert asked == 10
        answer = await ask(customer, "other")
        assert (answer.status, code(answer)) == (503, "upstream_unavailable")
        assert (await ask(customer)).status == 200
        state = (await channels(customer))["a"]
        assert (state["state"], state["reason"]) == ("shut", "upstream_error")
        [place] = state["places_shut"]
        assert (place["endpoint"], place["model"]) == ("chat", "other")
        assert provider.calls.total() == asked + 1


@pytest.mark.parametrize("answer", [
    (404, {"error": {"message": "The model `other` does not exist", "code": "model_not_found"}}),
    (400, {"error": {"code": "1211", "message": "Model does not exist"}}),
    (413, {"error": {"message": "Request too large", "code": "too_large"}}),
    (404, "404 page not found"),
])  # fmt: skip
async def test_finding_clients_F22_another_channel_has_the_model(tmp_path: Path, answer: tuple[int, object]):
    status, document = answer

    async def lacks(provider: Provider, key: str, model: str) -> web.Response | None:
        text = document if isinstance(document, str) else json.dumps(document)
        return web.Response(status=status, text=text, content_type="application/json")

    async with Provider(lacks) as first, Provider() as second:
        text = config(way("first", first), way("second", second, "priority = 1"))
        async with running(tmp_path, text) as customer:
            for _ in range(3):
                assert (await ask(customer, "other")).status == 200
            records = await customer.calls(3)
            assert {(record["channel"], record["attempts"]) for record in records} == {("second", 2)}
            state = (await channels(customer))["first"]
            assert (state["state"], state["keys_resting"]) == ("ok", [])
            kinds = [event["kind"] for event in (await customer.relay.command("events"))["events"]]
            assert kinds.count("upstream_model_missing") == 1
