"""Channels and upstream keys that fail, through a real relay: who is asked next, who is left alone, who comes back."""

import asyncio
import contextlib
import json
import re
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


def config(*channels: str, answer_seconds: float = 600, **routing: float) -> str:
    settings = "".join(f"{name} = {value}\n" for name, value in routing.items())
    return (
        f'[server]\ndrain_seconds = 2\n[admin]\ntoken = "{OPERATOR_TOKEN}"\n'
        f"[timeouts]\nconnect_seconds = 2\nfirst_byte_seconds = 1\nanswer_seconds = {answer_seconds}\n"
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


async def ask(
    customer: Customer, model: str = "m", content: str = "hi", *, stream: bool = False, **headers: str
) -> Message:
    document = {"model": model, "messages": [{"role": "user", "content": content}]} | (
        {"stream": True} if stream else {}
    )
    body = json.dumps(document).encode()
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
        assert state["state"] == "resting"
        assert [record["attempts"] for record in await customer.calls(10)].count(2) == 1


@pytest.mark.parametrize(("status", "model"), [(401, "m"), (402, None), (403, "m")])
async def test_a_refused_key_rests_longer_and_the_next_channel_helps(tmp_path: Path, status: int, model: str | None):
    async def refused(provider: Provider, key: str, model: str) -> web.Response | None:
        return refusal(status, {401: "invalid_api_key", 402: "billing_error", 403: "forbidden"}[status])

    async with Provider(refused) as bad, Provider() as good:
        text = config(way("bad", bad, keys=2), way("good", good, "priority = 1"), attempts_max=4)
        async with running(tmp_path, text) as customer:
            for _ in range(5):
                assert (await ask(customer)).status == 200
            assert bad.calls == {"bad-1": 1, "bad-2": 1}
            resting = (await channels(customer))["bad"]["keys_resting"]
            assert [(rest["key"], rest["model"], rest["reason"], rest["status"]) for rest in resting] == [
                (1, model, "upstream_account", status), (2, model, "upstream_account", status),
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
                return (await channels(customer))["first"]["state"] != "ok"

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
                return (await channels(customer))["first"]["state"] == "ok"

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
        assert (await ask(customer, stream=True)).status == 200
        record = await customer.call()
        assert (record["channel"], record["attempts"], record["status"]) == ("good", 2, 200)


async def test_finding_clients_F11_an_answer_in_one_piece_may_take_longer_than_a_stream_to_begin(tmp_path: Path):
    async with Provider(seconds=1.6) as slow, running(tmp_path, config(way("slow", slow))) as customer:
        assert (await ask(customer)).status == 200
        record = await customer.call()
        assert (record["attempts"], record["status"]) == (1, 200)
        assert record["first_byte_ms"] > 1500


async def test_finding_clients_F11_what_may_have_been_made_is_not_asked_for_twice(tmp_path: Path):
    async def hang(provider: Provider, key: str, model: str) -> None:
        await asyncio.sleep(3600)

    async with (
        Provider(hang) as silent,
        Provider() as good,
        running(
            tmp_path, config(way("silent", silent), way("good", good, "priority = 1"), answer_seconds=1)
        ) as customer,
    ):
        answer = await ask(customer)
        assert (answer.status, code(answer)) == (504, "upstream_timeout")
        record = await customer.call()
        assert (record["channel"], record["attempts"], record["cost"]) == ("silent", 1, "0")
        assert (silent.calls.total(), good.calls.total()) == (1, 0)
        assert (await channels(customer))["silent"]["failures"] == 1


async def test_when_every_channel_is_down_callers_are_told_when_to_come_back(tmp_path: Path):
    async with Provider() as one, Provider() as two:
        text = config(way("one", one), way("two", two), breaker_open_seconds=30, breaker_calls_min=4)
        async with running(tmp_path, text) as customer:
            await one.stop()
            await two.stop()

            async def shut() -> bool:
                await ask(customer)
                return all(state["state"] == "shut" for state in (await channels(customer)).values())

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
            while (await channels(customer))["down"]["state"] == "ok":
                await ask(customer, "other")
            await customer.relay.command("reload")
            state = await channels(customer)
            assert [rest["key"] for rest in state["bad"]["keys_resting"]] == [1]
            assert state["down"]["state"] == "shut"
            status, shown, _ = await customer.relay.cli("status")  # as a person reads it
            assert status == 0
            assert re.search(r"\ndown +openai +0 +shut +upstream_unavailable, (2[0-9]|30) s +0 ", shown)
            # newcomer 20: what keeps calls away is told, not only that something does.
            assert re.search(r"\nbad +openai +0 +resting +upstream_account 401, 29[0-9] s, 1 of 2 keys +0 ", shown)


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


# --- prompts that belong together


def conversation(number: int, turns: int, length: int = 6000) -> bytes:
    text = f"conversation {number}: " + "some words of a long document " * (length // 30)
    messages = [{"role": "user", "content": text if turn == 0 else f"turn {turn}"} for turn in range(turns)]
    return json.dumps({"messages": messages, "model": "m"}).encode()


async def send(customer: Customer, body: bytes, **headers: str) -> Message:
    fields = {"Host": "relay", "Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(request_bytes("POST", "/v1/chat/completions", fields, body))
        return await client.response()


@contextlib.asynccontextmanager
async def three(folder: Path, **routing: float) -> AsyncIterator[tuple[Customer, dict[str, Provider]]]:
    """Three channels of two keys each."""
    async with Provider() as a, Provider() as b, Provider() as c:
        ways = [way(name, provider, keys=2) for name, provider in (("a", a), ("b", b), ("c", c))]
        async with running(folder, config(*ways, **routing)) as customer:
            yield customer, {"a": a, "b": b, "c": c}


def used(providers: dict[str, Provider]) -> dict[str, int]:
    """Calls by upstream key since the last look."""
    found = {key: count for provider in providers.values() for key, count in provider.calls.items() if count}
    for provider in providers.values():
        provider.calls.clear()
    return found


async def test_a_conversation_stays_where_its_beginning_is_cached(tmp_path: Path):
    async with three(tmp_path) as (customer, providers):
        places = []
        for number in range(24):
            for turn in range(1, 5):
                assert (await send(customer, conversation(number, turn))).status == 200
            [(place, count)] = used(providers).items()
            assert count == 4
            places.append(place)
        assert len(set(places)) >= 4  # of six: different conversations go to different places
        # Another key's equal prompts are another prompt's: what one customer says moves nobody else's calls.
        other = await customer.relay.customer()
        elsewhere = []
        for number in range(24):
            assert (await send(other, conversation(number, 1))).status == 200
            [place] = used(providers)
            elsewhere.append(place)
        assert elsewhere != places
        # What the relay learns of itself stays: the same after a reload.
        await customer.relay.command("reload")
        for number in range(24):
            assert (await send(customer, conversation(number, 5))).status == 200
            assert used(providers) == {places[number]: 1}


async def test_when_its_place_is_gone_a_conversation_moves_once(tmp_path: Path):
    async with three(tmp_path, breaker_calls_min=2, breaker_open_seconds=60) as (customer, providers):
        await send(customer, conversation(1, 1))
        [place] = used(providers)
        await providers[place[0]].stop()
        for turn in range(2, 9):
            assert (await send(customer, conversation(1, turn))).status == 200
        [(moved, count)] = used(providers).items()
        assert moved[0] != place[0]
        assert count == 7


async def test_a_key_that_rests_moves_its_conversations_to_the_next(tmp_path: Path):
    async with three(tmp_path) as (customer, providers):
        await send(customer, conversation(1, 1))
        [place] = used(providers)

        async def limited(provider: Provider, key: str, model: str) -> web.Response | None:
            return refusal(429, "rate_limit_exceeded", retry_after="60") if key == place else None

        providers[place[0]].behaviour = limited
        for turn in range(2, 8):
            assert (await send(customer, conversation(1, turn))).status == 200
        found = used(providers)
        assert found.pop(place) == 1
        assert list(found.values()) == [6]
        assert next(iter(found))[0] == place[0]  # the same channel's other key


@pytest.mark.parametrize("how", ["small", "off"])
async def test_what_no_provider_caches_is_shared_evenly(tmp_path: Path, how: str):
    config_lines = {"affinity": "false"} if how == "off" else {}
    async with three(tmp_path, **config_lines) as (customer, providers):  # type: ignore[arg-type]
        for _ in range(60):
            assert (await send(customer, conversation(1, 1, 6000 if how == "off" else 3000))).status == 200
        assert len(used(providers)) == 6


# --- the caller's choice


async def test_a_caller_with_the_scope_chooses_a_channel_or_a_tag(tmp_path: Path):
    async with Provider() as a, Provider() as b, Provider() as c:
        text = config(
            way("a", a, 'tags = ["eu"]'), way("b", b, 'tags = ["eu", "fast"]', "priority = 1"),
            way("c", c, models='["other"]'),
        )  # fmt: skip
        async with running(tmp_path, text) as customer:
            chooser = await customer.relay.customer(scopes=["channel"])
            for wanted, asked in (("b", b), ("fast", b), ("a", a), ("eu", a)):
                before = asked.calls.total()
                assert (await ask(chooser, x_relay_channel=wanted)).status == 200
                assert asked.calls.total() == before + 1
                assert not [name for name in asked.headers[-1] if name.startswith("x-relay")]
            for wanted in ("nobody", "c", "x y", "a" * 65):  # c does not serve this model
                answer = await ask(chooser, x_relay_channel=wanted)
                error = json.loads(answer.body)["error"]
                assert (answer.status, error["code"], error["param"]) == (400, "invalid_value", "x-relay-channel")
            plain = await ask(customer, x_relay_channel="a")
            assert (plain.status, code(plain)) == (403, "scope_not_allowed")
            narrow = await customer.relay.customer(scopes=["channel", "embeddings"])
            assert (await ask(narrow)).status == 403
            # Within a tag calls move on as ever; out of it, never.
            await a.stop()
            assert (await ask(chooser, x_relay_channel="eu")).status == 200
            answer = await ask(chooser, x_relay_channel="a")
            assert (answer.status, code(answer)) == (503, "upstream_unavailable")
