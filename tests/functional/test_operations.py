"""The life of a process: set-up by the command line, reload, drain, restart, one process per data directory."""

import asyncio
import json
import os
import re
import signal
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from relay.control.failures import CommandError
from relay.simulator import Running
from tests.functional.clients import async_openai
from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import OPERATOR_TOKEN, config_text, cost_nano
from tests.functional.streams import CHAT, head
from tests.functional.test_rules import ask, chat
from tests.functional.test_streaming import payload
from tests.support.http1 import chunk_bytes, response_bytes
from tests.support.rawclient import RawClient
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


RELOADED = re.compile("configuration reloaded|configuration in force stays")


@pytest_asyncio.fixture(loop_scope="session")
async def own(simulator: Running, raw: RawUpstream, tmp_path: Path) -> AsyncIterator[RelayProcess]:
    """A relay of the test's own, already listening."""
    relay = RelayProcess(tmp_path, config_text(simulator.base_url, raw.base_url))
    await relay.start()
    yield relay
    await relay.kill()
    assert relay.faults == []


async def open_stream(customer: Customer, raw: RawUpstream, gate: asyncio.Event) -> RawClient:
    """A stream that has its first event and waits for the gate."""
    first, rest = CHAT.events[0], CHAT.events[1:]
    text, _ = raw.script(head(CHAT, "chunked", 0), chunk_bytes(first), Gate(gate), chunk_bytes(*rest, end=True))
    client = await RawClient.connect("127.0.0.1", customer.relay.port)
    await client.send(CHAT.request_bytes(customer.secret, text))
    await client.until(lambda: payload(client.received) == first)
    return client


async def reachable(relay: RelayProcess) -> bool:
    try:
        async with await RawClient.connect("127.0.0.1", relay.port):
            return True
    except OSError:
        return False


async def test_set_up_by_the_command_line(simulator: Running, raw: RawUpstream, tmp_path: Path):
    """From an empty directory to a paid call: the first start makes the store; then without a relay, with one, and
    again without."""
    relay = RelayProcess(tmp_path, config_text(simulator.base_url, raw.base_url))
    relay.write_config(relay.config)
    status, out, error = await relay.cli("check")
    assert status == 0, error
    assert "usable" in out
    await relay.start()
    assert await relay.stop() == 0
    account = await relay.cli_json("account", "create", "--email", "a@example.com", "--plan", "open")
    assert account["balance"] == "0"
    entry = await relay.cli_json("credit", "add", account["id"], "12.5", "--reason", "first", "--idempotency-key", "k1")
    assert entry["balance"] == "12.5"
    try:
        await relay.start()
        again = await relay.cli_json(
            "credit", "add", account["id"], "12.5", "--reason", "first", "--idempotency-key", "k1"
        )
        assert (again["entry_id"], again["balance"]) == (entry["entry_id"], "12.5")
        key = await relay.cli_json(
            "key", "create", account["id"], "--name", "laptop", "--model", "gpt-4o", "--rpm", "5"
        )
        customer = Customer(relay, account["id"], key["id"], key["secret"])
        assert (await ask(customer, chat())).status == 200
        assert (await ask(customer, chat(model="gpt-5"))).status == 403
        await customer.calls(2)
        calls = await relay.cli_json("calls", "--key", key["id"])
        assert [call["status"] for call in calls] == [403, 200]
        assert [call["id"] for call in calls] == sorted((call["id"] for call in calls), reverse=True)
        shown = await relay.cli_json("key", "show", key["id"])
        assert "secret" not in shown
        assert key["secret"] not in json.dumps(shown)
        status, _, error = await relay.cli("credit", "add", account["id"], "-5")
        assert status in (1, 2)
        assert len(error.strip().splitlines()) == 1
        assert (await relay.cli("ledger", "verify"))[0] == 0
        backup = tmp_path / "backup.db"
        assert (await relay.cli("backup", str(backup)))[0] == 0
        assert backup.stat().st_size > 10_000
        assert await relay.stop() == 0
        spent = nano("12.5") - cost_nano("gpt-4o", calls[1]["input_tokens"], calls[1]["output_tokens"])
        assert nano((await relay.cli_json("account", "show", account["id"]))["balance"]) == spent
        assert (await relay.cli("ledger", "verify"))[0] == 0
        status, _, error = await relay.cli("status")
        assert status == 1
        assert "no relay is running" in error
    finally:
        await relay.kill()
    assert relay.faults == []


async def test_files_are_private(own: RelayProcess):
    customer = await own.customer()
    await ask(customer, chat())
    await customer.call()
    assert stat.S_IMODE(own.data_dir.stat().st_mode) & 0o077 == 0 or os.name != "posix"
    for file in own.data_dir.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file.name
        if file.is_file():
            content = file.read_bytes()
            assert customer.secret.encode() not in content, file.name
            assert customer.secret.split("-")[2].encode() not in content, file.name
    assert customer.secret not in "\n".join(own.log)


async def test_one_process_per_data_directory(own: RelayProcess):
    customer = await own.customer()
    status, _, error = await own.cli("serve")
    assert status == 1
    assert str(own.pid) in error or "in use" in error or "lock" in error
    assert (await ask(customer, chat())).status == 200


async def test_a_port_that_is_taken(own: RelayProcess, simulator: Running, raw: RawUpstream, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    text = config_text(simulator.base_url, raw.base_url)
    text = text.replace("[server]\n", f'[server]\nlisten = "127.0.0.1:{own.port}"\ndata_dir = "{other}/data"\n', 1)
    (other / "config.toml").write_text(text)
    second = RelayProcess(other, "")
    status, _, error = await second.cli("serve")
    assert status == 1
    assert "Traceback" not in error
    assert (await own.status())["pid"] == own.pid


# -- reload


@pytest.mark.parametrize("how", ["SIGHUP", "command"])
async def test_reload(own: RelayProcess, raw: RawUpstream, simulator: Running, how: str):
    async def reload() -> None:
        before = len(own.log)
        if how == "SIGHUP":
            own.signal(signal.SIGHUP)
            await until(lambda: any(RELOADED.search(line) for line in own.log[before:]), 5.0)
        else:
            status, _, error = await own.cli("reload")
            if status:
                raise CommandError("invalid", error)

    customer = await own.customer()
    gate = asyncio.Event()
    stream = await open_stream(customer, raw, gate)
    old_cost = cost_nano("gpt-4o", 1000, 8)
    good = own.config
    own.write_config(
        good.replace('["gpt-4o",', '["gpt-new", "gpt-4o",')
        .replace('model = "gpt-4o"\ninput = "2.5"', 'model = "gpt-4o"\ninput = "5"')
        .replace("[plans.open]\nrpm = 0", "[plans.open]\nrpm = 2")
        + '[[rates]]\nmodel = "gpt-new"\ninput = 1\noutput = 1\n'
    )
    assert (await ask(customer, chat("#sim input=1000#"))).status == 200
    await reload()
    assert (await ask(customer, chat("#sim input=1000#"))).status == 200
    assert (await ask(customer, chat(model="gpt-new"))).status in (200, 429)
    assert (await ask(customer, chat(model="gpt-new"))).status == 429
    # A stream under way goes on, at the price it was admitted under.
    gate.set()
    answer = await stream.response()
    assert answer.body == CHAT.body
    await stream.close()
    records = {record["path"] + record["model"] + str(record["status"]): record for record in await customer.calls(5)}
    assert nano(records["/v1/chat/completionsraw-chat200"]["cost"]) == cost_nano("raw-chat", *CHAT.usage)
    costs = sorted(nano(record["cost"]) for record in await customer.calls(5) if record["model"] == "gpt-4o")
    assert costs == [old_cost, old_cost + 1000 * 2500]
    cards = {record["rate_card"] for record in await customer.calls(5) if record["model"] == "gpt-4o"}
    assert len(cards) == 2
    # A broken file changes nothing.
    for broken in (
        own.config + "\nnonsense = [",
        own.config.replace("rpm = 2", 'rpm = "many"'),
        "[server]\nlisten = 7\n",
    ):
        own.config_file.write_text(broken)
        if how == "command":
            with pytest.raises(CommandError):
                await reload()
        else:
            await reload()
            assert any("stays" in line for line in own.log[-3:])
        assert (await ask(await own.customer(), chat(model="gpt-new"))).status == 200
    own.write_config(good)
    await reload()
    assert (await ask(await own.customer(), chat(model="gpt-new"))).status == 404
    assert (await own.command("ledger verify"))["ok"]


async def test_a_key_for_models_that_begin_so_follows_a_reload(own: RelayProcess):
    """In calls and lists; a key with names alone stays as it was."""
    customer = await own.customer(models=["gpt-4*", "gpt-n*", "claude-sonnet-5"])
    by_name = await own.another_key(customer, models=["gpt-5"])

    async def status(who: Customer, model: str) -> int:
        return (await ask(who, chat(model=model))).status

    assert await status(customer, "gpt-4o") == 200
    assert [await status(customer, model) for model in ("gpt-5", "gpt-new", "gpt-4*")] == [403, 404, 404]
    text = own.config.replace('["gpt-4o",', '["gpt-new", "gpt-4o",')
    own.write_config(text + '[[rates]]\nmodel = "gpt-new"\ninput = 1\noutput = 1\n')
    await own.cli("reload")
    assert [await status(customer, model) for model in ("gpt-4o", "gpt-new", "gpt-5")] == [200, 200, 403]
    assert [await status(by_name, model) for model in ("gpt-5", "gpt-new")] == [200, 403]
    async with async_openai(customer) as client:
        listed = {model.id async for model in client.models.list()}
    assert {"gpt-4o", "gpt-new"} < listed
    assert all(model.startswith(("gpt-4", "gpt-n")) for model in listed)
    assert (await own.command("key show", id=customer.key))["models"] == ["gpt-4*", "gpt-n*", "claude-sonnet-5"]
    await own.command("key set", id=customer.key, models=["gpt-5*"])
    assert [await status(customer, model) for model in ("gpt-4o", "gpt-5")] == [403, 200]


@pytest.mark.parametrize("where", ["configuration", "new key", "changed key"])
async def test_a_client_that_left_is_read_to_the_end_where_asked(own: RelayProcess, raw: RawUpstream, where: str):
    """on_disconnect = "drain": what the provider reports is charged."""
    customer = await own.customer()
    if where == "configuration":
        own.write_config(own.config.replace("[billing]\n", '[billing]\non_disconnect = "drain"\n'))
        await own.command("reload")
    elif where == "new key":
        customer = await own.another_key(customer, on_disconnect="drain")
    else:
        # Known to the process before it is changed, by the command line.
        assert (await ask(customer, chat("x", "gpt-unknown"))).status == 404
        shown = await own.cli_json("key", "set", customer.key, "--on-disconnect", "drain")
        assert shown["on_disconnect"] == "drain"
    gate = asyncio.Event()
    stream = await open_stream(customer, raw, gate)
    await stream.close()
    await asyncio.sleep(0.05)
    gate.set()
    record = (await customer.calls(2 if where == "changed key" else 1))[0]
    assert (record["status"], record["error_code"], record["usage_source"]) == (499, "client_gone", "upstream")
    assert nano(record["cost"]) == cost_nano("raw-chat", *CHAT.usage)


async def test_a_key_may_be_cancelled_where_others_are_read_to_the_end(own: RelayProcess, raw: RawUpstream):
    own.write_config(own.config.replace("[billing]\n", '[billing]\non_disconnect = "drain"\n'))
    await own.command("reload")
    customer = await own.customer(on_disconnect="cancel")
    stream = await open_stream(customer, raw, asyncio.Event())
    await stream.close()
    record = await customer.call()  # the gate stays shut: nothing more is waited for
    assert (record["status"], record["error_code"], record["usage_source"]) == (499, "client_gone", "estimated")


# -- stopping


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "command"])
async def test_draining_finishes_calls_and_exits_0(own: RelayProcess, raw: RawUpstream, simulator: Running, how: str):
    customer = await own.customer()
    gate = asyncio.Event()
    stream = await open_stream(customer, raw, gate)
    text, waiting = raw.script(Gate(gate), response_bytes(b'{"usage":{"prompt_tokens":8,"completion_tokens":7}}'))
    document = asyncio.ensure_future(ask(customer, chat(text, "raw-chat")))
    await until(lambda: waiting.requests)
    idle = await RawClient.connect("127.0.0.1", own.port)
    assert (await idle.request("GET", "/readyz")).status == 200
    kept = await RawClient.connect("127.0.0.1", own.port)
    fields = {"Authorization": f"Bearer {customer.secret}"}
    assert (await kept.request("POST", "/v1/chat/completions", fields, json.dumps(chat()).encode())).status == 200
    if how == "command":
        await own.command("drain")
    else:
        own.signal(signal.Signals[how])
    await until(lambda: any("stopping" in line for line in own.log))
    await idle.until_lost()
    await kept.until_lost()
    await eventually(lambda: _not(reachable(own)))
    assert own.exit_status is None
    gate.set()
    assert (await stream.response()).body == CHAT.body
    assert (await document).status == 200
    assert await own.wait() == 0
    for client in (stream, idle, kept):
        await client.close()
    calls = await own.cli_json("calls", "--key", customer.key)
    assert {(call["status"], call["error_code"]) for call in calls} == {(200, None)}
    assert len(calls) == 3
    assert (await own.cli("ledger", "verify"))[0] == 0


async def _not(answer: Any) -> bool:
    return not await answer


async def test_what_does_not_finish_in_time_is_ended(simulator: Running, raw: RawUpstream, tmp_path: Path):
    text = config_text(simulator.base_url, raw.base_url).replace("drain_seconds = 5", "drain_seconds = 0.5")
    relay = await RelayProcess(tmp_path, text).start()
    try:
        customer = await relay.customer()
        stream = await open_stream(customer, raw, asyncio.Event())
        began = time.monotonic()
        relay.signal(signal.SIGTERM)
        await stream.until(lambda: stream.eof or stream.lost)
        assert 0.4 < time.monotonic() - began < 5.0
        assert b"drain_deadline" in payload(stream.received)
        assert not stream.received.endswith(b"0\r\n\r\n")
        await stream.close()
        assert await relay.wait() == 0
        calls = await relay.cli_json("calls", "--key", customer.key)
        assert [call["error_code"] for call in calls] == ["drain_deadline"]
        assert calls[0]["cost"] != "0"
        assert (await relay.cli("ledger", "verify"))[0] == 0
    finally:
        await relay.kill()


async def test_a_second_signal_does_not_wait(own: RelayProcess, raw: RawUpstream):
    customer = await own.customer()
    stream = await open_stream(customer, raw, asyncio.Event())
    own.signal(signal.SIGTERM)
    await until(lambda: any("stopping" in line for line in own.log))
    own.signal(signal.SIGTERM)
    assert await own.wait(4.0) == 0
    await stream.close()


async def test_a_restart_keeps_what_matters(own: RelayProcess, simulator: Running):
    """Balances, keys, limits that count by day, call records; order of call ids too."""
    customer = await own.customer("5", daily_limit="0.03")
    body = chat("#sim input=100 output=1500#", max_tokens=1500)
    assert (await ask(customer, body)).status == 200
    before = await customer.call()
    balance = await customer.settled_nano()
    assert await own.stop() == 0
    await own.start()
    assert await customer.available_nano() == balance
    assert [record["id"] for record in await customer.calls(1)] == [before["id"]]
    assert (await ask(customer, body)).status == 429, "what was spent today before the restart counts"
    small = await ask(customer, chat("#sim input=10 output=10#", max_tokens=10))
    assert small.status == 200
    records = await customer.calls(3)
    assert records[-1]["id"] == before["id"]
    assert await customer.settled_nano() == balance - cost_nano("gpt-4o", 10, 10)
    assert (await own.command("ledger verify"))["ok"]


# -- the operator's API over HTTP, health


async def test_the_operators_api_needs_its_token(relay: RelayProcess, customer: Customer):
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        for fields in ({}, {"Authorization": f"Bearer {customer.secret}"}, {"Authorization": "Bearer wrong"}):
            for path in ("/admin/v1/accounts", "/admin/v1/status", "/admin/v1/nothing", "/metrics"):
                answer = await client.request("GET", path, dict(fields))
                assert answer.status == 401, path
                assert b"example.com" not in answer.body
        answer = await client.request(
            "GET", f"/admin/v1/accounts/{customer.account}", {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
        )
        assert answer.status == 200
        assert json.loads(answer.body)["id"] == customer.account


async def test_a_customer_sees_only_what_is_theirs(relay: RelayProcess, customer: Customer):
    other = await relay.another_key(customer)
    assert (await ask(customer, chat())).status == 200
    await customer.call()
    async with await RawClient.connect("127.0.0.1", relay.port) as client:
        fields = {"Authorization": f"Bearer {other.secret}"}
        calls = json.loads((await client.request("GET", "/relay/v1/calls", fields)).body)["calls"]
        assert calls == []
        balance = json.loads((await client.request("GET", "/relay/v1/balance", fields)).body)
        assert balance["account_id"] == customer.account
        rates = json.loads((await client.request("GET", "/relay/v1/rates", fields)).body)
        assert "gpt-4o" in json.dumps(rates)
        for path in ("balance", "calls", "limits", "rates"):
            assert (await client.request("GET", f"/relay/v1/{path}")).status == 401
        assert (await client.request("GET", "/relay/v1/other", fields)).status == 404
