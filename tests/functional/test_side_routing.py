"""Requests about files, stored objects and jobs take part in routing: keys in turn and at rest, breakers, the choice of
a channel for what is new; and nothing that may have been made is asked for twice."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.functional.relay_process import Customer, RelayProcess, eventually
from tests.functional.setting import channel
from tests.functional.test_routing import channels
from tests.support.cabinets import Asked, Cabinet
from tests.support.providers import refusal
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

RATES = "".join(f'[[rates]]\nmodel = "{name}"\ninput = 1\noutput = 2\nvideo_second = 0.1\n' for name in ("m", "other"))
FORM = "multipart/form-data; boundary=b"


def form(purpose: str = "user_data", content: str = "notes") -> bytes:
    head = 'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    return (
        f'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n--b\r\n{head}{content}\r\n--b--\r\n'
    ).encode()


def line(model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    return json.dumps({"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


def way(name: str, cabinet: Cabinet, *more: str, keys: int = 1, models: str = '["m"]') -> str:
    text = channel(name, "openai", cabinet.base_url, models, "KEYS", *more)
    return text.replace('["KEYS"]', json.dumps([f"{name}-{number}" for number in range(1, keys + 1)]))


class Caller:
    """A customer's program, by plain HTTP."""

    def __init__(self, customer: Customer, session: aiohttp.ClientSession) -> None:
        self.customer = customer
        self.session = session
        self.retry_after = 0
        self.text = ""

    async def ask(
        self, method: str, path: str, data: Any = None, kind: str = "application/json", **headers: str
    ) -> Any:
        """The status, and the error's code or the object's id."""
        fields = {"Authorization": f"Bearer {self.customer.secret}"}
        if data is not None:
            fields["Content-Type"] = kind
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = self.customer.relay.base_url + path
        async with self.session.request(method, url, data=data, headers=fields) as answer:
            self.text = await answer.text()
            self.retry_after = int(answer.headers.get("retry-after", "0"))
            document = json.loads(self.text)
            return answer.status, document["error"]["code"] if "error" in document else document["id"]

    async def upload(self, data: Any = None, **headers: str) -> Any:
        return await self.ask("POST", "/v1/files", form() if data is None else data, FORM, **headers)

    async def video(self, model: str = "m", **headers: str) -> Any:
        return await self.ask("POST", "/v1/videos", json.dumps({"model": model, "prompt": "p"}), **headers)

    async def get(self, file: str) -> Any:
        return await self.ask("GET", f"/v1/files/{file}")


@contextlib.asynccontextmanager
async def running(folder: Path, *ways: str, **routing: float) -> AsyncIterator[Caller]:
    settings = "".join(f"{name} = {value}\n" for name, value in routing.items())
    text = (
        "[server]\ndrain_seconds = 2\n[timeouts]\nconnect_seconds = 2\nfirst_byte_seconds = 1\n"
        "answer_seconds = 1\nbody_idle_seconds = 1\n"
        f"[jobs]\npoll_seconds = 3600\n[plans.open]\n[routing]\n{settings}" + "".join(ways) + RATES
    )
    relay = await RelayProcess(folder, text).start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Caller(await relay.customer(), session)
        assert (await relay.command("ledger verify"))["ok"]
        assert {state["in_flight"] for state in (await relay.status())["channels"]} == {0}
        assert relay.faults == []
        assert await relay.stop() == 0
    finally:
        await relay.kill()


async def test_the_keys_of_a_channel_take_turns(tmp_path: Path):
    async with Cabinet() as cabinet, running(tmp_path, way("a", cabinet, keys=3)) as caller:
        status, file = await caller.upload()
        assert status == 200
        for _ in range(5):  # one account: what one key has made is there for the others
            assert await caller.get(file) == (200, file)
        assert cabinet.keys == ["a-1", "a-2", "a-3"] * 2


REFUSALS = [(401, "invalid_api_key"), (402, "insufficient_quota"), (403, "forbidden"), (429, "rate_limit_exceeded")]


@pytest.mark.parametrize(("status", "error"), REFUSALS)
async def test_a_refused_key_rests_and_the_next_one_is_asked(tmp_path: Path, status: int, error: str):
    """Also where something is made: the upstream has refused the key, so it has made nothing."""
    refusing = False

    async def refuse(asked: Asked) -> web.Response | None:
        return refusal(status, error, retry_after="30") if refusing and asked.key == "a-1" else None

    async with Cabinet(refuse) as cabinet, running(tmp_path, way("a", cabinet, keys=2)) as caller:
        _, file = await caller.upload()
        assert (await caller.get(file))[0] == 200
        refusing = True
        assert await caller.get(file) == (200, file)
        assert cabinet.keys == ["a-1", "a-2", "a-1", "a-2"]
        assert (await caller.customer.calls(3))[0]["attempts"] == 2
        assert await caller.get(file) == (200, file)
        assert cabinet.keys[4:] == ["a-2"]
        made = await caller.video()  # all but 402 is about one model first: here another one than that of no model
        assert made[0] == 200
        assert cabinet.keys[5:] == (["a-1", "a-2"] if status != 402 else ["a-2"])
        if status != 402:
            assert cabinet.asked[-1].body == b'{"model": "m", "prompt": "p"}'
        assert cabinet.made == 2
        kinds = [event["kind"] for event in (await caller.customer.relay.command("events"))["events"]]
        assert kinds.count("upstream_account") == {401: 2, 402: 1, 403: 2, 429: 0}[status]
        resting = (await channels(caller.customer))["a"]["keys_resting"]
        assert {rest["key"] for rest in resting} == {1}
        # Refused here and there, and never seen to work since: then it is the key, for everything.
        both = {401: {None}, 402: {None}, 403: {None}, 429: {"(objects)", "m"}}[status]
        assert {rest["model"] for rest in resting} == both


@pytest.mark.parametrize(("status", "error"), REFUSALS)
async def test_an_upload_is_not_sent_twice(tmp_path: Path, status: int, error: str):
    """It passed as it came and cannot be sent again; the next one goes to another key."""

    async def refuse(asked: Asked) -> web.Response | None:
        return refusal(status, error) if asked.key == "a-1" else None

    async with Cabinet(refuse) as cabinet, running(tmp_path, way("a", cabinet, keys=2)) as caller:
        first = await caller.upload()
        assert cabinet.keys == ["a-1"]
        assert first == ((429, error) if status == 429 else (503, "upstream_account"))
        assert status == 429 or "no" not in json.loads(caller.text)["error"]["message"].split()
        assert (await caller.upload())[0] == 200
        assert cabinet.keys == ["a-1", "a-2"]


async def test_a_kept_connection_outlives_the_deadline_of_the_answer_before(tmp_path: Path):
    """aiohttp starts a read timer again when a long answer is taken slowly, also behind its end."""

    async def long(asked: Asked) -> web.Response | None:
        long_one = asked.path.endswith("/content")
        return web.Response(body=b"x" * 4_000_000, content_type="text/plain") if long_one else None

    slow = "[channels.timeouts]\nstream_idle_seconds = 0.3\n"
    async with Cabinet(long) as cabinet, running(tmp_path, way("a", cabinet, slow)) as caller:
        _, file = await caller.upload()
        url = f"{caller.customer.relay.base_url}/v1/files/{file}/content"
        own = {"Authorization": f"Bearer {caller.customer.secret}"}
        for _ in range(3):
            async with caller.session.get(url, headers=own) as answer:
                assert len(await answer.read()) == 4_000_000
            await asyncio.sleep(0.5)  # the time has to pass
            assert await caller.get(file) == (200, file)


async def test_what_failed_is_not_repeated(tmp_path: Path):
    """A video may have been begun: neither another key nor another channel is asked."""

    async def fail(asked: Asked) -> web.Response | None:
        return refusal(500, "server_error") if asked.method == "POST" else None

    async with (
        Cabinet(fail) as first,
        Cabinet() as second,
        running(tmp_path, way("a", first, keys=2), way("b", second, "priority = 1")) as caller,
    ):
        assert await caller.video() == (500, "server_error")
        assert await caller.upload() == (500, "server_error")
        assert (len(first.asked), len(second.asked)) == (2, 0)
        assert await caller.customer.settled_nano() == 100 * 10**9
        assert (await channels(caller.customer))["a"]["failures"] == 2


async def test_when_all_keys_rest_the_caller_is_told_for_how_long(tmp_path: Path):
    async def refuse(asked: Asked) -> web.Response | None:
        return None if asked.path == "/v1/files" else refusal(402, "billing_error")

    async with Cabinet(refuse) as cabinet, running(tmp_path, way("a", cabinet, keys=2)) as caller:
        _, file = await caller.upload()
        assert await caller.get(file) == (503, "upstream_account")
        assert len(cabinet.asked) == 3
        for what in (caller.get(file), caller.upload(), caller.video()):
            assert await what == (503, "upstream_account")
            assert 1 <= caller.retry_after <= 2  # then one call may try, and the waits grow
        assert len(cabinet.asked) == 3
        assert await caller.customer.settled_nano() == 100 * 10**9
        # A call of the hot path finds the same keys at rest.
        chat = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
        assert await caller.ask("POST", "/v1/chat/completions", chat) == (503, "upstream_account")
        assert len(cabinet.asked) == 3


async def test_a_channel_that_fails_is_shut_for_its_objects_and_comes_back(tmp_path: Path):
    async with Cabinet() as first, Cabinet() as second:
        ways = (way("a", first), way("b", second, "priority = 1"))
        async with running(tmp_path, *ways, breaker_calls_min=4, breaker_open_seconds=3) as caller:
            _, file = await caller.upload()
            await first.stop()

            async def shut() -> bool:
                assert await caller.get(file) == (503, "upstream_unavailable")
                return (await channels(caller.customer))["a"]["state"] == "shut"

            await eventually(shut)
            before = (await channels(caller.customer))["a"]["failures"]
            assert await caller.get(file) == (503, "upstream_unavailable")
            assert 1 <= caller.retry_after <= 3
            assert (await channels(caller.customer))["a"]["failures"] == before
            # What is new goes to the next channel; what is there stays where it is.
            assert str(second.port) in (await caller.upload())[1]
            assert str(second.port) in (await caller.video())[1]
            await first.start()

            async def back() -> bool:
                found = await caller.get(file)
                assert found in ((200, file), (503, "upstream_unavailable"))
                return (await channels(caller.customer))["a"]["state"] == "ok"

            await eventually(back)
            assert str(first.port) in (await caller.upload())[1]


async def test_an_answer_that_breaks_off_counts(tmp_path: Path):
    async def break_off(asked: Asked) -> web.StreamResponse | None:
        return None if asked.method == "POST" else Broken()

    settings = {"breaker_calls_min": 2, "breaker_failure_percent": 40}  # each of its heads was a good sign
    async with Cabinet(break_off) as cabinet, running(tmp_path, way("a", cabinet), **settings) as caller:
        _, file = await caller.upload()
        for _ in range(2):
            with pytest.raises(aiohttp.ClientError):
                await caller.get(file)
        state = (await channels(caller.customer))["a"]
        assert (state["state"], state["reason"]) == ("shut", "upstream_truncated")
        assert (await caller.customer.calls(3))[0]["error_code"] == "upstream_truncated"


class Broken(web.StreamResponse):
    """Less than it says, and then a reset."""

    async def prepare(self, request: web.BaseRequest) -> Any:
        self.content_length = 1000
        writer = await super().prepare(request)
        await self.write(b'{"some')
        assert request.transport is not None
        request.transport.abort()
        return writer


async def test_a_client_that_breaks_off_is_not_the_channels_failure(tmp_path: Path):
    async with Cabinet() as cabinet, running(tmp_path, way("a", cabinet), breaker_calls_min=1) as caller:

        async def half() -> AsyncIterator[bytes]:
            yield form()[:-5]
            if gone:
                await until(lambda: cabinet.asked)
                raise RuntimeError("gone")
            await asyncio.sleep(3600)

        for gone in (True, False):
            head = {"Authorization": f"Bearer {caller.customer.secret}", "Content-Type": FORM}
            url = caller.customer.relay.base_url + "/v1/files"
            with contextlib.suppress(aiohttp.ClientError, RuntimeError):
                async with caller.session.post(url, data=half(), headers=head) as answer:
                    assert (answer.status, gone) == (408, False)
        records = await caller.customer.calls(2)
        assert [record["error_code"] for record in records] == ["body_timeout", "client_gone"]
        state = (await channels(caller.customer))["a"]
        assert (state["state"], state["failures"]) == ("ok", 0)


async def test_new_jobs_follow_weight_and_priority(tmp_path: Path):
    async with Cabinet() as a, Cabinet() as b, Cabinet() as c:
        ways = (way("a", a, "weight = 3"), way("b", b), way("c", c, "priority = 1"))
        async with running(tmp_path, *ways) as caller:
            for _ in range(80):
                assert (await caller.video())[0] == 200
            found = Counter({"a": a.made, "b": b.made, "c": c.made})
            assert found["c"] == 0
            assert 5 <= found["b"] <= 35, found
            assert found["a"] == 80 - found["b"]


async def test_a_file_for_batches_goes_where_its_model_is_and_others_stay_together(tmp_path: Path):
    async with Cabinet() as a, Cabinet() as b, Cabinet() as c:
        ways = (
            way("a", a), way("b", b, "priority = 1", models='["other"]'), way("c", c, models='{ "other" = "renamed" }')
        )  # fmt: skip
        async with running(tmp_path, *ways) as caller:
            assert str(b.port) in (await caller.upload(form("batch", line("other") * 3)))[1]
            assert str(a.port) in (await caller.upload(form("batch", line("m") * 3)))[1]
            assert str(a.port) in (await caller.upload(form("batch", line("unknown"))))[1]
            for _ in range(5):
                assert str(a.port) in (await caller.upload(form("user_data", line("other"))))[1]
            assert (a.made, b.made, c.made) == (7, 1, 0)
            assert b.asked[0].body == form("batch", line("other") * 3)
            # A file that keeps its secret for longer than anybody waits for it.
            late = form("batch", "\n" * 1_000_000 + line("other"))
            assert str(a.port) in (await caller.upload(late))[1]
            assert a.asked[-1].body == late


async def test_a_caller_with_the_scope_chooses_where_new_objects_go(tmp_path: Path):
    async with Cabinet() as a, Cabinet() as b:
        ways = (way("a", a, 'tags = ["eu"]'), way("b", b, 'tags = ["us"]', "priority = 1"))
        async with running(tmp_path, *ways) as caller:
            chooser = Caller(await caller.customer.relay.customer(scopes=["channel"]), caller.session)
            background = json.dumps({"model": "m", "input": "hi", "background": True})
            for number, wanted in enumerate(("b", "us"), 1):
                status, file = await chooser.upload(x_relay_channel=wanted)
                assert (status, str(b.port) in file) == (200, True)
                assert str(b.port) in (await chooser.video(x_relay_channel=wanted))[1]
                made = await chooser.ask("POST", "/v1/responses", background, x_relay_channel=wanted)
                assert (made[0], str(b.port) in made[1]) == (200, True)
                assert b.made == 3 * number
            assert not [name for asked in b.asked for name in asked.headers if name.startswith("x-relay")]
            for wanted in ("nobody", "x" * 65):
                for what in (
                    chooser.upload(x_relay_channel=wanted), chooser.video(x_relay_channel=wanted),
                ):  # fmt: skip
                    assert await what == (400, "invalid_value")
                    assert json.loads(chooser.text)["error"]["param"] == "x-relay-channel"
            for what in (
                caller.upload(x_relay_channel="b"), caller.video(x_relay_channel="b"),
                caller.ask("POST", "/v1/responses", background, x_relay_channel="b"),
            ):  # fmt: skip
                assert await what == (403, "scope_not_allowed")
            # An object has one place, whatever the header says.
            assert await chooser.ask("GET", f"/v1/files/{file}", x_relay_channel="a") == (200, file)
            # No other channel takes the place of the one that was asked for.
            await b.stop()
            assert await chooser.video(x_relay_channel="b") == (503, "upstream_unavailable")
            assert a.made == 0


async def test_jobs_obey_a_key_with_addresses_and_models(tmp_path: Path):
    """Both restrictions at once: neither hides the other."""
    async with Cabinet() as a, running(tmp_path, way("a", a, models='["m", "other"]')) as caller:
        bound = await caller.customer.relay.customer(allow_ips=["127.0.0.0/8"], models=["m"])
        inside = Caller(bound, caller.session)
        assert (await inside.video())[0] == 200
        assert await inside.video("other") == (403, "model_not_allowed")
        background = {"model": "other", "input": "hi", "background": True}
        refused = await inside.ask("POST", "/v1/responses", json.dumps(background))
        assert refused == (403, "model_not_allowed")
        assert a.made == 1


async def test_a_provider_that_shows_nonsense_is_the_providers_fault(tmp_path: Path):
    nonsense = "hello"

    async def show(asked: Asked) -> web.StreamResponse | None:
        return web.Response(text=nonsense, content_type="application/json") if asked.method == "GET" else None

    async with Cabinet(show) as cabinet, running(tmp_path, way("one", cabinet)) as caller:
        assert (await caller.upload())[0] == 200
        _, video = await caller.video()
        for nonsense in ("hello", "[]", "null"):
            for method, path in (("POST", f"/v1/videos/{video}/remix"), ("GET", "/v1/files?purpose=user_data")):
                data = json.dumps({"prompt": "p"}) if method == "POST" else None
                assert await caller.ask(method, path, data) == (502, "upstream_garbage"), (path, nonsense)
        assert caller.customer.relay.faults == []


async def test_finding_clients_F3_no_answer_about_an_object(tmp_path: Path):
    """A page, nothing, an error called an answer: the provider has failed, and what it has stays the account's."""
    body, label, broken = b"", "", False

    async def show(asked: Asked) -> web.StreamResponse | None:
        return web.Response(body=body, headers={"Content-Type": label}) if broken else None

    async with Cabinet(show) as cabinet, running(tmp_path, way("one", cabinet)) as caller:
        file = (await caller.upload())[1]
        video = (await caller.video())[1]
        for body, label, code in (  # noqa: B007
            (b"<html>Just a moment</html>", "text/html", "upstream_garbage"),
            (b"<html>Just a moment</html>", "application/json", "upstream_garbage"),
            (b"", "application/json", "upstream_garbage"),
            (b'{"error":{"message":"of the account"}}', "application/json", "upstream_error"),
        ):
            broken = True
            for method, path in (
                ("GET", f"/v1/files/{file}"), ("GET", f"/v1/videos/{video}"), ("GET", "/v1/files"),
                ("POST", f"/v1/videos/{video}/remix"),
            ):  # fmt: skip
                answer = await caller.ask(method, path, json.dumps({"prompt": "p"}) if method == "POST" else None)
                assert answer[0] == 502, (path, body)
                assert path == "/v1/files" or answer[1] == code, (path, body)
                assert "account" not in caller.text
            if body:
                assert (await caller.ask("DELETE", f"/v1/files/{file}"))[0] == 502
        broken = False
        assert await caller.ask("GET", f"/v1/files/{file}") == (200, file)
        assert caller.customer.relay.faults == []
