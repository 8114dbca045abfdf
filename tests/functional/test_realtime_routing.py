"""Which way a realtime session goes: as any call, and until its client has seen a handshake it may go another."""

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import websockets

from relay.simulator import Running, start
from tests.functional.clients import async_openai
from tests.functional.relay_process import Customer, RelayProcess, eventually
from tests.functional.setting import channel
from tests.functional.test_routing import channels

pytestmark = pytest.mark.asyncio(loop_scope="session")

RATE = '[[rates]]\nmodel = "m"\ninput = 4\noutput = 16\n'


class Upstreams:
    """Simulators by name. Each accepts the keys `sim-NAME-1`, `sim-NAME-2`, ... but those in `refused`."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.running: dict[str, Running] = {}

    async def add(self, name: str) -> Running:
        self.running[name] = await start(keys=lambda key: key not in self.refused)
        return self.running[name]

    def keys(self) -> Counter[str]:
        """Handshakes by key, refused ones included."""
        entries = [entry for upstream in self.running.values() for entry in upstream.book.entries]
        return Counter((entry.header("authorization") or "").removeprefix("Bearer sim-") for entry in entries)

    def way(self, name: str, *more: str, keys: int = 1) -> str:
        text = channel(name, "openai", f"{self.running[name].base_url}/v1", '["m"]', "KEYS", *more)
        return text.replace('["KEYS"]', json.dumps([f"sim-{name}-{number}" for number in range(1, keys + 1)]))


@contextlib.asynccontextmanager
async def upstreams(*names: str) -> AsyncIterator[Upstreams]:
    made = Upstreams()
    for name in names:
        await made.add(name)
    try:
        yield made
    finally:
        for upstream in made.running.values():
            await upstream.stop()


@contextlib.asynccontextmanager
async def relay(folder: Path, *ways: str, **routing: float) -> AsyncIterator[Customer]:
    settings = "".join(f"{name} = {value}\n" for name, value in routing.items())
    text = (
        "[server]\ndrain_seconds = 2\n[timeouts]\nconnect_seconds = 1\nfirst_byte_seconds = 1\nanswer_seconds = 1\n"
        f"[plans.open]\n[routing]\n{settings}" + "".join(ways) + RATE
    )
    running = await RelayProcess(folder, text).start()
    try:
        yield await running.customer()
        assert (await running.command("ledger verify"))["ok"]
        assert {state["in_flight"] for state in (await running.status())["channels"]} == {0}
        assert running.faults == []
        assert await running.stop() == 0
    finally:
        await running.kill()


@contextlib.asynccontextmanager
async def session(customer: Customer, **headers: str) -> AsyncIterator[Any]:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        async_openai(customer) as client,
        client.realtime.connect(model="m", extra_headers=fields, max_retries=0) as connection,
    ):
        assert (await connection.recv()).type == "session.created"
        yield connection


async def refused(customer: Customer, **headers: str) -> tuple[int, str, Any]:
    """Status, code and headers of a handshake that is refused."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with session(customer, **headers):
            pass
    answer = caught.value.response
    return answer.status_code, json.loads(answer.body)["error"]["code"], answer.headers


async def respond(connection: Any, directives: str = "") -> None:
    asked = {"instructions": f"Say something. #sim {directives}#", "output_modalities": ["text"]}
    await connection.send({"type": "response.create", "response": asked})
    async for event in connection:
        if event.type == "rate_limits.updated":
            return


async def test_keys_take_turns_and_a_refused_one_rests(tmp_path: Path):
    async with upstreams("a") as found, relay(tmp_path, found.way("a", keys=3)) as customer:
        for _ in range(3):
            async with session(customer) as connection:
                await respond(connection)
        assert found.keys() == {"a-1": 1, "a-2": 1, "a-3": 1}
        found.refused = {"sim-a-1"}
        for _ in range(2):
            async with session(customer):
                pass
        assert found.keys() == {"a-1": 2, "a-2": 2, "a-3": 2}
        assert [record["attempts"] for record in await customer.calls(5)] == [1, 2, 1, 1, 1]
        [resting] = (await channels(customer))["a"]["keys_resting"]
        assert (resting["key"], resting["model"], resting["reason"]) == (1, "m", "upstream_account")
        events = [event["kind"] for event in (await customer.relay.command("events"))["events"]]
        assert events.count("upstream_account") == 1


@pytest.mark.parametrize(
    "failure", ["status=429 retry_after=20", "status=503", "status=500", "garbage", "cut_head=20", "first_ms=5000"]
)
async def test_a_handshake_that_fails_goes_to_the_next_channel(tmp_path: Path, failure: str):
    async with upstreams("a", "b") as found:
        ways = (found.way("a"), found.way("b", "priority = 1"))
        async with relay(tmp_path, *ways) as customer:
            found.running["a"].defaults = failure
            async with session(customer) as connection:
                await respond(connection)
            record = await customer.call()
            assert (record["channel"], record["attempts"], record["status"]) == ("b", 2, 101)
            state = (await channels(customer))["a"]
            assert state["failures"] == 1
            assert len(state["keys_resting"]) == ("429" in failure)


async def test_an_error_of_the_callers_own_is_not_tried_elsewhere(tmp_path: Path):
    async with upstreams("a", "b") as found:
        ways = (found.way("a"), found.way("b", "priority = 1"))
        async with relay(tmp_path, *ways) as customer:
            found.running["a"].defaults = "status=400"
            status, code, _ = await refused(customer)
            assert (status, code) == (400, None)
            assert found.keys() == {"a-1": 1}
            assert (await customer.call())["error_code"] == "upstream_error"
            assert await customer.settled_nano() == 100 * 10**9


async def test_a_channel_that_fails_is_shut_and_comes_back(tmp_path: Path):
    async with upstreams("a", "b") as found:
        ways = (found.way("a"), found.way("b", "priority = 1"))
        settings = {"breaker_calls_min": 3, "breaker_open_seconds": 0.5}
        async with relay(tmp_path, *ways, **settings) as customer:
            a = found.running["a"]
            a.defaults = "status=500"

            async def shut() -> bool:
                async with session(customer):
                    return (await channels(customer))["a"]["state"] != "ok"

            await eventually(shut)
            a.defaults = ""

            async def back() -> bool:
                async with session(customer):
                    return (await channels(customer))["a"]["state"] == "ok"

            await eventually(back)
            before = a.book.requests
            async with session(customer):
                assert a.book.requests == before + 1


async def test_when_every_channel_is_shut_the_caller_is_told_when_to_come_back(tmp_path: Path):
    settings = {"breaker_calls_min": 2, "breaker_open_seconds": 30}
    async with upstreams("a") as found, relay(tmp_path, found.way("a"), **settings) as customer:
        await found.running["a"].stop()
        for _ in range(2):
            assert (await refused(customer))[:2] == (503, "upstream_unavailable")
        failures = (await channels(customer))["a"]["failures"]
        status, code, headers = await refused(customer)
        assert (status, code) == (503, "upstream_unavailable")
        assert 25 <= int(headers["retry-after"]) <= 30
        assert (await channels(customer))["a"]["failures"] == failures == 2
        assert await customer.settled_nano() == 100 * 10**9


async def test_sessions_that_break_off_count(tmp_path: Path):
    async with upstreams("a") as found, relay(tmp_path, found.way("a"), breaker_calls_min=3) as customer:
        for _ in range(2):
            async with session(customer) as connection:
                with pytest.raises(websockets.ConnectionClosedError):
                    await respond(connection, "cut=end")
        await customer.calls(2)
        state = (await channels(customer))["a"]
        assert (state["state"], state["reason"]) == ("shut", "upstream_truncated")


async def test_sessions_go_to_the_less_loaded_channel(tmp_path: Path):
    async with (
        upstreams("a", "b") as found,
        relay(tmp_path, found.way("a"), found.way("b")) as customer,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(20):
            await stack.enter_async_context(session(customer))
        loads = {name: state["in_flight"] for name, state in (await channels(customer)).items()}
        assert sum(loads.values()) == 20
        assert abs(loads["a"] - loads["b"]) <= 2, loads


async def test_a_caller_with_the_scope_chooses(tmp_path: Path):
    async with upstreams("a", "b") as found:
        ways = (found.way("a"), found.way("b", 'tags = ["eu"]', "priority = 1"))
        async with relay(tmp_path, *ways) as customer:
            chooser = await customer.relay.customer(scopes=["channel"])
            for wanted in ("b", "eu"):
                async with session(chooser, x_relay_channel=wanted):
                    pass
            assert found.keys() == {"b-1": 2}
            assert not [name for name, _ in found.running["b"].book.last.headers if name.startswith("x-relay")]
            assert (await refused(customer, x_relay_channel="b"))[:2] == (403, "scope_not_allowed")
            assert (await refused(chooser, x_relay_channel="nobody"))[:2] == (400, "invalid_value")
            await found.running["b"].stop()
            assert (await refused(chooser, x_relay_channel="b"))[:2] == (503, "upstream_unavailable")
            assert found.keys() == {"b-1": 2}


async def test_the_retry_budget_bounds_repeats(tmp_path: Path):
    async with upstreams("a", "b") as found:
        ways = (found.way("a"), found.way("b", "priority = 1"))
        async with relay(tmp_path, *ways, retry_percent=0, retries_per_second_min=0) as customer:
            found.running["a"].defaults = "status=500"
            status, _, _ = await refused(customer)
            assert status == 500
            assert found.keys() == {"a-1": 1}


async def test_a_key_with_addresses_may_open_sessions(tmp_path: Path):
    async with upstreams("a") as found, relay(tmp_path, found.way("a")) as customer:
        bound = await customer.relay.customer(allow_ips=["127.0.0.0/8"], models=["m"])
        async with session(bound) as connection:
            await respond(connection)
        away = await customer.relay.customer(allow_ips=["10.0.0.0/8"])
        assert (await refused(away))[:2] == (403, "address_not_allowed")
