"""Channels and upstream keys that fail, through a real relay: who is asked next, who is left alone, who comes back."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.functional.relay_process import Customer, RelayProcess, eventually
from tests.functional.setting import OPERATOR_TOKEN, channel
from tests.support.http1 import Message, request_bytes
from tests.support.providers import Provider, refusal
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="session")

RATES = "".join(f'[[rates]]\nmodel = "{name}"\ninput = 1\noutput = 2\n' for name in ("m", "other"))


def config(*channels: str, **routing: float) -> str:
    settings = "".join(f"{name} = {value}\n" for name, value in routing.items())
    return (
        f'[server]\ndrain_seconds = 2\n[admin]\ntoken = "{OPERATOR_TOKEN}"\n'
        "[timeouts]\nconnect_seconds = 2\nfirst_byte_seconds = 1\n"
        f"[plans.open]\n[routing]\n{settings}" + "".join(channels) + RATES
    )


def way(name: str, provider: Provider, *more: str, keys: int = 1, models: str = '["m", "other"]') -> str:
    text = channel(name, "openai", provider.base_url, models, "KEYS", *more)
    return text.replace('["KEYS"]', json.dumps([f"{name}-{number}" for number in range(1, keys + 1)]))


@contextlib.asynccontextmanager
async def running(folder: Path, text: str) -> AsyncIterator[Customer]:
    relay = await RelayProcess(folder, text).start()
    try:
        yield await relay.customer()
        verified = await relay.command("ledger verify")
        assert verified["ok"], verified
        assert (await relay.status())["faults"] == 0
        assert relay.faults == []
        assert await relay.stop() == 0
    finally:
        await relay.kill()


async def ask(customer: Customer, model: str = "m", content: str = "hi", **headers: str) -> Message:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": content}]}).encode()
    fields = {"Host": "relay", "Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(request_bytes("POST", "/v1/chat/completions", fields, body))
        return await client.response()


async def channels(customer: Customer) -> dict[str, dict]:
    return {state["name"]: state for state in (await customer.relay.status())["channels"]}


def code(answer: Message) -> str:
    return json.loads(answer.body)["error"]["code"]


async def test_keys_of_a_channel_are_used_in_turn(tmp_path: Path):
    async with Provider() as provider, running(tmp_path, config(way("a", provider, keys=3))) as customer:
        for _ in range(9):
            assert (await ask(customer)).status == 200
        assert provider.calls == {"a-1": 3, "a-2": 3, "a-3": 3}


async def test_a_limited_key_rests_and_the_call_goes_on_with_another(tmp_path: Path):
    """429: for that model, as long as the upstream says."""

    async def limited(provider: Provider, key: str, model: str) -> web.Response | None:
        return refusal(429, "rate_limit_exceeded", retry_after="30") if (key, model) == ("a-1", "m") else None

    async with Provider(limited) as provider, running(tmp_path, config(way("a", provider, keys=2))) as customer:
        for _ in range(6):
            assert (await ask(customer)).status == 200
        assert provider.calls["a-1"] == 1
        for _ in range(4):
            assert (await ask(customer, "other")).status == 200
        assert provider.calls["a-1"] == 3  # for the other model it is as good as ever
        state = (await channels(customer))["a"]
        [resting] = state["keys_resting"]
        assert (resting["key"], resting["model"], resting["reason"]) == (1, "m", "upstream_unavailable")
        assert 20 < resting["seconds"] <= 30
        assert state["state"] == "closed"
        assert [record["attempts"] for record in await customer.calls(10)].count(2) == 1


@pytest.mark.parametrize(("status", "model"), [(401, None), (403, "m")])
async def test_a_refused_key_rests_longer_and_the_next_channel_helps(tmp_path: Path, status: int, model: str | None):
    async def refused(provider: Provider, key: str, model: str) -> web.Response | None:
        return refusal(status, "invalid_api_key" if status == 401 else "forbidden")

    async with Provider(refused) as bad, Provider() as good:
        text = config(way("bad", bad, keys=2), way("good", good, "priority = 1"), attempts_max=4)
        async with running(tmp_path, text) as customer:
            for _ in range(5):
                assert (await ask(customer)).status == 200
            assert bad.calls == {"bad-1": 1, "bad-2": 1}
            resting = (await channels(customer))["bad"]["keys_resting"]
            assert [(rest["key"], rest["model"], rest["reason"]) for rest in resting] == [
                (1, model, "upstream_account"), (2, model, "upstream_account"),
            ]  # fmt: skip
            assert all(290 < rest["seconds"] <= 300 for rest in resting)
            events = (await customer.relay.command("events"))["events"]
            assert [event["kind"] for event in events].count("upstream_account") == 2


async def test_when_all_keys_rest_the_caller_is_told_for_how_long(tmp_path: Path):
    async def limited(provider: Provider, key: str, model: str) -> web.Response:
        return refusal(429, "rate_limit_exceeded", retry_after_ms="20500")

    async with Provider(limited) as provider, running(tmp_path, config(way("a", provider))) as customer:
        first = await ask(customer)
        assert (first.status, code(first)) == (429, "rate_limit_exceeded")  # the provider's own answer
        second = await ask(customer)
        assert (second.status, code(second)) == (503, "upstream_unavailable")
        assert 18 <= int(second.header("retry-after") or 0) <= 21
        assert provider.calls.total() == 1
        assert (await customer.settled_nano()) == 100 * 10**9


async def test_a_rest_ends_by_itself(tmp_path: Path):
    refusing = True

    async def limited(provider: Provider, key: str, model: str) -> web.Response | None:
        return refusal(429, "rate_limit_exceeded") if refusing else None

    async with (
        Provider(limited) as provider,
        running(tmp_path, config(way("a", provider), key_rest_seconds=0.3)) as customer,
    ):
        assert (await ask(customer)).status == 429
        refusing = False

        async def served() -> bool:
            return (await ask(customer)).status == 200

        await eventually(served)
        assert (await channels(customer))["a"]["keys_resting"] == []


FAILURES = {
    "down": None,
    "500": lambda: refusal(500, "server_error"),
    "529": lambda: refusal(529, "overloaded"),
    "redirect": lambda: web.Response(status=302, headers={"Location": "/"}),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_failing_channel_is_left_alone_and_comes_back(tmp_path: Path, failure: str):
    broken = True

    async def fail(provider: Provider, key: str, model: str) -> web.Response | None:
        make = FAILURES[failure]
        return make() if broken and make is not None else None

    async with Provider(fail) as first, Provider() as second:
        text = config(way("first", first), way("second", second), breaker_open_seconds=0.2, breaker_calls_min=2)
        async with running(tmp_path, text) as customer:
            if failure == "down":
                await first.stop()

            async def opened() -> bool:
                assert (await ask(customer)).status == 200
                return (await channels(customer))["first"]["state"] != "closed"

            await eventually(opened, 30)
            state = (await channels(customer))["first"]
            expected = {"down": "upstream_unavailable", "redirect": "upstream_garbage"}.get(failure, "upstream_failed")
            assert state["reason"] == expected
            assert state["opened"] >= 1
            broken = False
            if failure == "down":
                await first.start()

            async def closed() -> bool:
                assert (await ask(customer)).status == 200
                return (await channels(customer))["first"]["state"] == "closed"

            await eventually(closed, 30)
            kinds = [event["kind"] for event in (await customer.relay.command("events"))["events"]]
            assert {"channel_open", "channel_closed"} <= set(kinds)
            assert {record["error_code"] for record in await customer.relay.calls(key=customer.key)} == {None}


async def test_a_first_byte_that_does_not_come_moves_the_call_on(tmp_path: Path):
    async def hang(provider: Provider, key: str, model: str) -> None:
        await asyncio.sleep(3600)

    async with (
        Provider(hang) as silent,
        Provider() as good,
        running(tmp_path, config(way("silent", silent), way("good", good, "priority = 1"))) as customer,
    ):
        assert (await ask(customer)).status == 200
        record = await customer.call()
        assert (record["channel"], record["attempts"], record["status"]) == ("good", 2, 200)


async def test_when_every_channel_is_down_callers_are_told_when_to_come_back(tmp_path: Path):
    async with Provider() as one, Provider() as two:
        text = config(way("one", one), way("two", two), breaker_open_seconds=30, breaker_calls_min=4)
        async with running(tmp_path, text) as customer:
            await one.stop()
            await two.stop()

            async def shut() -> bool:
                await ask(customer)
                return all(state["state"] == "open" for state in (await channels(customer)).values())

            await eventually(shut, 30)
            before = sum(state["failures"] for state in (await channels(customer)).values())
            for _ in range(20):
                answer = await ask(customer)
                assert (answer.status, code(answer)) == (503, "upstream_unavailable")
                assert 20 <= int(answer.header("retry-after") or 0) <= 30
            assert sum(state["failures"] for state in (await channels(customer)).values()) == before
            assert (await customer.settled_nano()) == 100 * 10**9


async def test_what_is_known_of_channels_outlives_a_reload(tmp_path: Path):
    async def refused(provider: Provider, key: str, model: str) -> web.Response | None:
        return refusal(401, "invalid_api_key") if key == "bad-1" else None

    async with Provider(refused) as bad, Provider() as down:
        text = config(
            way("bad", bad, keys=2), way("down", down, models='["other"]'), breaker_open_seconds=30, breaker_calls_min=2
        )  # fmt: skip
        async with running(tmp_path, text) as customer:
            await down.stop()
            for _ in range(4):
                assert (await ask(customer)).status == 200
            while (await channels(customer))["down"]["state"] == "closed":
                await ask(customer, "other")
            await customer.relay.command("reload")
            state = await channels(customer)
            assert [rest["key"] for rest in state["bad"]["keys_resting"]] == [1]
            assert state["down"]["state"] == "open"


async def test_the_retry_budget_bounds_repeats(tmp_path: Path):
    """No floor and no share: nothing is tried twice."""
    async with Provider() as good:
        async with Provider() as down:
            none = {"retry_percent": 0, "retries_per_second_min": 0}
            text = config(way("down", down), way("good", good, "priority = 1"), **none)
        async with running(tmp_path, text) as customer:
            answer = await ask(customer)
            assert (answer.status, code(answer)) == (503, "upstream_unavailable")
            assert good.calls.total() == 0
            assert (await customer.relay.status())["retries"] == {"retried": 0, "refused": 1}


async def test_a_slow_channel_gets_fewer_calls(tmp_path: Path):
    async with (
        Provider(seconds=0.5) as slow,
        Provider() as quick,
        running(tmp_path, config(way("slow", slow), way("quick", quick))) as customer,
    ):

        async def one_after_the_other() -> None:
            while quick.calls.total() < 200:
                assert (await ask(customer)).status == 200

        await asyncio.gather(*[one_after_the_other() for _ in range(20)])
        assert slow.calls.total() < 150
