"""`relay channel list | test | on | off | wake`: by socket, HTTP and command, with and without a running relay."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.functional.relay_process import RelayProcess
from tests.functional.setting import OPERATOR_TOKEN
from tests.functional.test_routing import ask, channels, code, config, running, way
from tests.support.cabinets import Asked, Cabinet
from tests.support.providers import Provider, refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")

CLIENT_PATHS = ("/v1/chat/completions", "/v1/videos", "/v1/files", "/v1/realtime?model=m")


async def test_finding_clients_16_a_channel_that_is_off_is_not_chosen(tmp_path: Path):
    """Across reload and restart. Where it is the only one of a model, callers read the operator's message."""
    async with Provider() as first, Provider() as second:
        text = config(way("first", first), way("second", second, "priority = 1", models='["m"]'))
        relay = await RelayProcess(tmp_path, text).start()
        try:
            customer = await relay.customer()
            assert (await ask(customer)).status == 200
            assert first.calls.total() == 1
            shown = await relay.command("channel off", id="first", message="Moved, back at 9.")
            assert shown["off"] is True
            assert (await ask(customer)).status == 200
            assert (first.calls.total(), second.calls.total()) == (1, 1)
            for again in range(3):
                answer = await ask(customer, "other")
                assert (answer.status, code(answer)) == (503, "switched_off")
                assert "Moved, back at 9." in json.loads(answer.body)["error"]["message"]
                state = (await channels(customer))["first"]
                assert (state["state"], state["message"]) == ("off", "Moved, back at 9.")
                if again == 0:
                    await relay.command("reload")
                elif again == 1:
                    assert await relay.stop() == 0
                    await relay.start()
            _, table, _ = await relay.cli("status")
            assert "off" in next(line for line in table.splitlines() if line.startswith("first")).split()
            assert (await relay.command("channel on", id="first"))["off"] is False
            assert (await ask(customer, "other")).status == 200
            assert await customer.settled_nano() < 100 * 10**9
            acts = [event["code"] for event in (await relay.command("events"))["events"] if event["kind"] == "operator"]
            assert [act for act in acts if act and act.startswith("channel")] == ["channel_on", "channel_off"]
            assert relay.faults == []
            assert await relay.stop() == 0
        finally:
            await relay.kill()


async def test_every_way_in_reads_the_message_of_a_switch(tmp_path: Path):
    text = '[[rates]]\nmodel = "m"\ninput = 1\noutput = 2\nvideo_second = 0.1\n'
    async with Cabinet() as cabinet:
        base = f'name = "a"\napi = "openai"\nbase_url = "{cabinet.base_url}"\napi_keys = ["a-1"]\nmodels = ["m"]\n'
        relay = await RelayProcess(
            tmp_path, f"[server]\ndrain_seconds = 2\n[plans.open]\n[[channels]]\n{base}{text}"
        ).start()
        try:
            customer = await relay.customer()
            await relay.command("channel off", id="a", message="Closed today.")
            own = {"Authorization": f"Bearer {customer.secret}"}
            upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
            upgrade["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
            form = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b--\r\n'
            body = json.dumps({"model": "m", "prompt": "p", "messages": [{"role": "user", "content": "hi"}]})
            async with aiohttp.ClientSession() as session:
                for path in CLIENT_PATHS:
                    kind = "multipart/form-data; boundary=b" if path == "/v1/files" else "application/json"
                    if "realtime" in path:
                        request = session.get(relay.base_url + path, headers=own | upgrade)
                    else:
                        data: Any = form if path == "/v1/files" else body
                        request = session.post(relay.base_url + path, data=data, headers=own | {"Content-Type": kind})
                    async with request as answer:
                        error = (await answer.json())["error"]
                        assert (path, answer.status, error["code"]) == (path, 503, "switched_off")
                        assert "Closed today." in error["message"]
            assert cabinet.asked == []
            assert await customer.settled_nano() == 100 * 10**9
            assert relay.faults == []
            assert await relay.stop() == 0
        finally:
            await relay.kill()


async def test_finding_clients_16_resting_keys_are_woken(tmp_path: Path):
    refusing = True

    async def refused(provider: Provider, key: str, model: str) -> web.Response | None:
        return refusal(402, "billing_error") if refusing else None

    async with Provider(refused) as provider, running(tmp_path, config(way("a", provider, keys=2))) as customer:
        assert (await ask(customer)).status == 503
        assert (await channels(customer))["a"]["state"] == "resting"
        refusing = False
        assert (await ask(customer)).status == 503
        await customer.relay.command("channel wake", id="a", key=2)
        assert (await ask(customer)).status == 200
        assert [rest["key"] for rest in (await channels(customer))["a"]["keys_resting"]] == [1]
        status, _, _ = await customer.relay.cli("channel", "wake", "a")
        assert status == 0
        assert (await channels(customer))["a"]["state"] == "ok"
        status, _, line = await customer.relay.cli("channel", "wake", "a", "--key", "3")
        assert (status, "key 3" in line) == (1, True)
        status, _, line = await customer.relay.cli("channel", "off", "nowhere")
        assert (status, "nowhere" in line) == (1, True)


async def test_finding_clients_16_a_test_says_of_each_key_whether_it_works(tmp_path: Path):
    has_list = True

    async def answer(asked: Asked) -> web.Response | None:
        if asked.key == "a-2":
            return refusal(401, "invalid_api_key")
        if asked.method == "GET" and asked.path == "/v1/models":
            return web.json_response({"data": []}) if has_list else web.Response(status=404, text="no")
        if asked.path == "/v1/chat/completions":
            return web.json_response({"choices": []})
        return web.Response(status=500)

    async with Cabinet(answer) as cabinet:
        text = config().replace("[plans.open]", "[plans.open]\n") + (
            f'[[channels]]\nname = "a"\napi = "openai"\nbase_url = "{cabinet.base_url}"\n'
            'api_keys = ["a-1", "a-2"]\nmodels = ["m"]\n'
        )
        async with running(tmp_path, text) as customer:
            found = await customer.relay.command("channel test", id="a")
            assert found["ok"] is False
            assert [(key["key"], key["ok"], key["says"], key["status"]) for key in found["keys"]] == [
                (1, True, "ok", 200), (2, False, "upstream_account", 401),
            ]  # fmt: skip
            assert {key["asked"] for key in found["keys"]} == {"GET /models"}
            assert (await channels(customer))["a"]["state"] == "ok"  # a test changes nothing
            has_list = False
            await customer.relay.command("channel off", id="a")
            status, table, _ = await customer.relay.cli("channel", "test", "a")  # also of one that is off
            assert status == 1
            assert "POST /chat/completions" in table
            assert "FAILED" in table
            # The same over HTTP, for the operator's token.
            url = f"{customer.relay.base_url}/admin/v1/channels"
            token = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
            async with aiohttp.ClientSession(headers=token) as session:
                async with session.post(f"{url}/a/on", json={}) as done:
                    assert (done.status, (await done.json())["off"]) == (200, False)
                async with session.get(url) as listed:
                    [row] = (await listed.json())["channels"]
                    assert (row["name"], row["state"], row["keys"], row["off_since"]) == ("a", "ok", 2, None)


@pytest.mark.parametrize(
    ("base_url", "detail"),
    [
        ("http://127.0.0.1:{free}/v1", "Connection refused"),
        ("http://no-such-host.invalid/v1", "the host's name: "),
        ("https://127.0.0.1:{plain}/v1", "TLS: "),
    ],
)
async def test_a_test_says_why_there_was_no_connection(tmp_path: Path, base_url: str, detail: str):
    """A typing error in a base URL is the first thing that a new operator meets."""
    async with Cabinet(lambda asked: None) as cabinet:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            free = listener.getsockname()[1]
        plain = re.search(r":(\d+)", cabinet.base_url.partition("//")[2])[1]
        text = config().replace("[plans.open]", "[plans.open]\n") + (
            f'[[channels]]\nname = "a"\napi = "openai"\nbase_url = "{base_url.format(free=free, plain=plain)}"\n'
            'api_keys = ["a-1"]\nmodels = ["m"]\n'
        )
        async with running(tmp_path, text) as customer:
            [key] = (await customer.relay.command("channel test", id="a"))["keys"]
            assert (key["ok"], key["says"], key["status"]) == (False, "upstream_unavailable", None)
            assert detail in key["detail"]
            status, table, _ = await customer.relay.cli("channel", "test", "a")
            assert status == 1
            assert detail in table


async def test_a_switch_without_a_running_relay(tmp_path: Path):
    async with Provider() as provider:
        relay = await RelayProcess(tmp_path, config(way("a", provider))).start()
        try:
            customer = await relay.customer()
            assert await relay.stop() == 0
            status, shown, _ = await relay.cli("channel", "off", "a", "--message", "later", "--json")
            assert (status, json.loads(shown)["message"]) == (0, "later")
            status, shown, _ = await relay.cli("channel", "list", "--json")
            assert (status, json.loads(shown)["off_by"], json.loads(shown)["state"]) == (0, "operator", "off")
            status, table, _ = await relay.cli("channel", "list")
            assert (status, "later" in table) == (0, True)
            status, _, line = await relay.cli("channel", "test", "a")
            assert (status, "no relay is running" in line) == (1, True)
            await relay.start()
            assert code(await ask(customer)) == "switched_off"
            assert await relay.stop() == 0
        finally:
            await relay.kill()
