"""Errors of upstreams, in any shape and coding, on all five ways in: what is about the operator stays here."""

import gzip
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
import brotli
import pytest
import pytest_asyncio
from aiohttp import web

from relay.errors import ERRORS
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.setting import channel
from tests.functional.test_side_routing import FORM, form
from tests.support.cabinets import Asked, Cabinet
from tests.support.refused_bodies import CALLERS, DOCUMENTED

pytestmark = pytest.mark.asyncio(loop_scope="session")

WAYS = ("hot path", "aiohttp", "side path", "realtime", "job")
MODELS = '{ "m" = "m", "known" = "secret-name-9" }'


@dataclass
class Place:
    """A relay in front of one upstream that answers everything with `says`; keys never rest, no breaker opens."""

    customer: Customer
    session: aiohttp.ClientSession
    cabinet: Cabinet
    says: web.Response | None = None

    async def behave(self, asked: Asked) -> web.StreamResponse | None:
        return self.says

    async def ask(
        self, way: str, answer: tuple[int, bytes, dict[str, str]], model: str = "m"
    ) -> tuple[int, bytes, str]:
        """Status, body, and all of the header."""
        status, body, fields = answer
        self.says = web.Response(status=status, body=body, headers={"Content-Type": "application/json"} | fields)
        url = self.customer.relay.base_url
        headers = {"Authorization": f"Bearer {self.customer.secret}"}
        chat = json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()
        if way == "realtime":
            headers |= {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
            headers["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
            request = self.session.get(f"{url}/v1/realtime?model={model}", headers=headers)
        elif way == "side path":
            request = self.session.post(f"{url}/v1/files", data=form(), headers=headers | {"Content-Type": FORM})
        else:
            headers["Content-Type"] = "application/json"
            if way == "job":
                data, path = json.dumps({"model": model, "prompt": "p"}).encode(), "/v1/videos"
            else:
                data, path = chat, "/v1/chat/completions"
            request = self.session.post(url + path, data=pieces(data) if way == "aiohttp" else data, headers=headers)
        async with request as got:
            return got.status, await got.read(), repr(got.headers)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for part in (data[:5], data[5:]):
        yield part


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with Cabinet() as cabinet:
        rates = "".join(
            f'[[rates]]\nmodel = "{name}"\ninput = 1\noutput = 2\nvideo_second = 0.1\n' for name in ("m", "known")
        )
        text = (
            "[server]\ndrain_seconds = 2\n[plans.open]\n[jobs]\npoll_seconds = 3600\n"
            "[routing]\nkey_rest_seconds = 0\nbreaker_failure_percent = 0\n"
            + channel("a", "openai", cabinet.base_url, MODELS, "KEY-OF-THE-OPERATOR")
            + rates
        )
        relay = await RelayProcess(tmp_path_factory.mktemp("refusals"), text).start()
        try:
            async with aiohttp.ClientSession(auto_decompress=False) as session:
                made = Place(await relay.customer(), session, cabinet)
                cabinet.behaviour = made.behave
                yield made
            assert (await relay.command("ledger verify"))["ok"]
            assert (await relay.status())["faults"] == 0
            assert relay.faults == []
            assert await relay.stop() == 0
        finally:
            await relay.kill()


def code_of(body: bytes) -> str:
    return json.loads(body)["error"]["code"]


ACCOUNT_SAMPLE = [body for body in DOCUMENTED if body.verdict == 1][::6]
LIMIT_SAMPLE = [body for body in DOCUMENTED if body.verdict == 2 and body.is_hidden][::3]
assert len(ACCOUNT_SAMPLE) >= 8
assert len(LIMIT_SAMPLE) >= 3


@pytest.mark.parametrize("way", WAYS)
async def test_finding_money_M1_words_about_the_operators_account_stay_here(place: Place, way: str):
    for body in ACCOUNT_SAMPLE:
        status, answer, head = await place.ask(way, (body.status, body.data, {}))
        assert (status, code_of(answer)) == (503, "upstream_account"), body
        assert b"SECRET" not in answer
        assert "SECRET" not in head
    events = (await place.customer.relay.command("events"))["events"]
    assert "upstream_account" in {event["kind"] for event in events}


@pytest.mark.parametrize("way", WAYS)
async def test_finding_money_M1_limits_of_the_operators_organisation_are_told_without_its_name(place: Place, way: str):
    for body in LIMIT_SAMPLE:
        status, answer, head = await place.ask(way, (body.status, body.data, {"retry-after-ms": "7100"}))
        assert (status, code_of(answer)) == (503, "upstream_unavailable"), body
        assert b"SECRET" not in answer
        assert "'retry-after': '8'" in head.lower()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("coding", ["gzip", "br", "unknown"])
async def test_finding_wire_M7_compressed_errors(place: Place, way: str, coding: str):
    body = next(body for body in DOCUMENTED if body.status == 429 and b"insufficient_quota" in body.data)
    pack = {"gzip": gzip.compress, "br": brotli.compress, "unknown": lambda data: bytes(255 - b for b in data)}[coding]
    answer = (body.status, pack(body.data), {"Content-Encoding": coding})
    status, got, _ = await place.ask(way, answer)
    expected = (503, "upstream_unavailable") if coding == "unknown" else (503, "upstream_account")
    assert (status, code_of(got)) == expected
    # What is the caller's passes as it came, compressed as it is.
    data = pack(CALLERS[1].data)
    status, got, head = await place.ask(way, (400, data, {"Content-Encoding": coding}))
    if coding == "unknown":
        assert (status, code_of(got)) == (502, "upstream_error")
    else:
        assert (status, got) == (400, data)
        assert coding in head


@pytest.mark.parametrize("way", WAYS)
async def test_finding_wire_M8_errors_of_an_odd_shape(place: Place, way: str):
    for error in (
        {"code": ["x"]},
        {"type": {}, "status": [{}]},
        {"details": [{"reason": [1]}]},
        [],
        "no",
        3,
        None,
        [[]],
    ):
        data = json.dumps({"error": error}).encode()
        status, got, _ = await place.ask(way, (400, data, {}))
        assert (status, got) == (400, data)
    for data in (b"", b"[", b"\xff\xfe", b"[]", b"3", b"<html>no</html>", b"no"):
        status, got, _ = await place.ask(way, (422, data, {}))
        assert (status, got) == (422, data)


@pytest.mark.parametrize("way", WAYS)
async def test_errors_of_the_caller_pass_byte_for_byte(place: Place, way: str):
    for body in CALLERS:
        status, got, _ = await place.ask(way, (body.status, body.data, {}))
        assert (status, got) == (body.status, body.data)


async def test_an_error_larger_than_is_looked_at_hides_nothing(place: Place):
    """What stands at its beginning is read."""
    body = json.dumps({"error": {"code": "insufficient_quota", "message": "SECRET", "more": "x" * 200_000}}).encode()
    status, answer, _ = await place.ask("hot path", (429, body, {}))
    assert (status, code_of(answer)) == (503, "upstream_account")


@pytest.mark.parametrize("way", ["hot path", "aiohttp", "realtime"])
async def test_finding_clients_F22_the_upstreams_name_of_a_renamed_model_stays_here(place: Place, way: str):
    missing = b'{"error":{"message":"The model `secret-name-9` does not exist","code":"model_not_found"}}'
    status, got, _ = await place.ask(way, (404, missing, {}), "known")
    assert (status, code_of(got)) == (404, "model_not_found")
    assert b"secret-name" not in got
    status, got, _ = await place.ask(way, (404, missing.replace(b"secret-name-9", b"m"), {}))
    assert (status, got) == (404, missing.replace(b"secret-name-9", b"m"))
    status, got, _ = await place.ask(way, (413, b'{"error":{"message":"too large for secret-name-9"}}', {}), "known")
    assert (status, code_of(got)) == (413, "body_too_large")


async def test_documents_of_jobs_tell_nothing_of_the_operators_account(place: Place):
    """A job that has failed for want of the operator's money says so in its own document, with status 200."""
    words = "You exceeded your current quota, please check your plan and billing details."
    video = {"id": "video_1", "object": "video", "status": "failed", "model": "m", "seconds": "4", "prompt": "billing"}
    error = {"code": "insufficient_quota", "message": words}
    status, body, _ = await place.ask("job", (200, json.dumps(video | {"error": error}).encode(), {}))
    told = json.loads(body)
    assert status == 200
    assert told.pop("error") == {"code": "upstream_account", "message": ERRORS["upstream_account"].message}
    assert told == video
    headers = {"Authorization": f"Bearer {place.customer.secret}"}
    url = place.customer.relay.base_url
    place.says = web.json_response(video | {"error": error})
    async with place.session.get(f"{url}/v1/videos/video_1", headers=headers) as reply:
        assert reply.status == 200
        assert b"quota" not in await reply.read()
    response = {"id": "resp_1", "status": "failed", "output": [], "error": error}
    place.says = web.json_response(response)
    call = {"model": "m", "input": "hi", "background": True}
    async with place.session.post(f"{url}/v1/responses", json=call, headers=headers) as reply:
        told = await reply.json()
    assert told["error"]["code"] == "upstream_account"
    place.says = web.json_response(response)
    async with place.session.get(f"{url}/v1/responses/resp_1", headers=headers) as reply:
        assert (await reply.json())["error"] == told["error"]
