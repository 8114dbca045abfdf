"""What a request's head may say, on every way in: addresses, fields that cannot be read, keys, queries, content types.

One relay behind a trusted proxy, which is the test itself; its upstream notes what goes on.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from relay import config as configuration
from relay.app import Relay
from relay.control import commands
from relay.control.pepper import load_pepper
from relay.policy import keys
from relay.storage import Store
from relay.wire import headers

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = """
[server]
listen = "127.0.0.1:0"
data_dir = "{data}"
trusted_proxies = ["127.0.0.1", "10.0.0.0/8", "2001:db8:aaaa::/48"]
[admin]
token = "operator-token-of-this-test"
[timeouts]
header_seconds = 5
[[channels]]
name = "openai"
api = "openai"
base_url = "http://127.0.0.1:{port}/v1"
api_keys = ["upstream-key"]
models = ["gpt-4o", "sora-2", "whisper-1"]
query = "api-version=own"
[[channels]]
name = "anthropic"
api = "anthropic"
base_url = "http://127.0.0.1:{port}"
api_keys = ["upstream-key"]
models = ["claude"]
[[channels]]
name = "gemini"
api = "gemini"
base_url = "http://127.0.0.1:{port}"
api_keys = ["upstream-key"]
models = ["gemini"]
"""
RATES = "".join(
    f'[[rates]]\nmodel = "{model}"\ninput = "1"\noutput = "1"\nvideo_second = "0.1"\n'
    for model in ("gpt-4o", "claude", "gemini", "sora-2", "whisper-1")
)
ALLOWED = "198.51.100.7"  # the only address that the restricted key may come from

CHAT = "/v1/chat/completions"
BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hello"}]}'
GENERATE = "/v1beta/models/gemini:generateContent"
GENERATE_BODY = b'{"contents":[{"parts":[{"text":"Hello"}]}]}'
MESSAGES = "/v1/messages"
MESSAGES_BODY = b'{"model":"claude","max_tokens":9,"messages":[{"role":"user","content":"Hello"}]}'
ANSWERS = {
    "generateContent": {
        "candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 1, "totalTokenCount": 6},
    },
    "/v1/messages": {
        "id": "m", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "Hi"}], "usage": {"input_tokens": 5, "output_tokens": 1},
    },
    "/v1/videos": {"id": "video_1", "object": "video", "status": "queued", "model": "sora-2", "seconds": "4"},
    "/v1/files": {"id": "file-1", "object": "file", "purpose": "user_data", "filename": "a"},
    "": {
        "id": "x", "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    },
}  # fmt: skip
WEBSOCKET = [
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: " + b"A" * 22 + b"==",
]
# Way in -> request line, more fields, body. Each is one of the ways on which a head is read.
WAYS: dict[str, tuple[str, list[bytes], bytes]] = {
    "front door": (f"POST {CHAT}", [], BODY),
    "aiohttp": (f"POST {CHAT}", [b"X-Odd: caf\xe9"], BODY),
    "files": ("GET /v1/files", [], b""),
    "models": ("GET /v1/models", [], b""),
    "customer": ("GET /relay/v1/balance", [], b""),
    "realtime": ("GET /v1/realtime?model=nothing", WEBSOCKET, b""),
}
SERVED = {"realtime": 404}  # its model is not there, which is found after the key and its address


@dataclass
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def error(self) -> tuple[str, str | None]:
        """The code and the field at fault, in any shape of error."""
        error = json.loads(self.body)["error"]
        if isinstance(error.get("details"), list):
            code = error["details"][0]["reason"].lower()
            named = [d["fieldViolations"][0]["field"] for d in error["details"] if "fieldViolations" in d]
            return code, named[0] if named else None
        found = re.search(r": `(.+?)`", error["message"])
        return error["code"], error.get("param") or error.get("field") or (found[1] if found else None)


@dataclass
class Setting:
    relay: Relay
    secret: str
    restricted: str
    seen: list[bytes] = field(default_factory=list)
    more_fields: list[bytes] = field(default_factory=list)  # of the upstream's next answer
    content: tuple[bytes, bytes] | None = None  # type and body of it

    async def ask(
        self, line: str, fields: list[bytes], body: bytes = b"", *, key: bytes | None = None, length: bool = True
    ) -> Answer:
        """One request as it stands; `key` None: the first customer's in Authorization, b"": none."""
        given = b"Authorization: Bearer " + self.secret.encode() if key is None else key
        head = [line.encode("latin-1") + b" HTTP/1.1", b"Host: relay", *([given] if given else []), *fields]
        if length and (body or line.startswith("POST")):
            head.append(b"Content-Length: %d" % len(body))
        reader, writer = await asyncio.open_connection("127.0.0.1", self.relay.port)
        try:
            writer.write(b"\r\n".join(head) + b"\r\n\r\n" + body)
            async with asyncio.timeout(10):
                block = await reader.readuntil(b"\r\n\r\n")
                status = int(block[9:12])
                lines = [line.partition(b":") for line in block.split(b"\r\n")[1:] if line]
                found = {name.decode().lower(): value.decode().strip() for name, _, value in lines}
                size = int(found.get("content-length", "0"))
                return Answer(status, found, await reader.readexactly(size))
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    @property
    def last(self) -> tuple[str, dict[str, str], bytes]:
        """The request that went on: target, fields, body."""
        head, _, body = self.seen[-1].partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        pairs = [each.partition(":") for each in lines]
        return line.split(" ")[1], {name.lower(): value.strip() for name, _, value in pairs}, body

    async def records(self) -> list[dict[str, object]]:
        return [dict(one) for one in (await self.relay.operations.calls(commands.Calls(limit=1)))["calls"]]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    if length is None and b"chunked" in head.lower():
        return head + await reader.readuntil(b"0\r\n\r\n")
    return head + await reader.readexactly(int(length[1]) if length else 0)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def setting(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Setting]:
    folder: Path = tmp_path_factory.mktemp("heads")
    made: Setting | None = None

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await read_request(reader)
                assert made is not None
                made.seen.append(request)
                target = request.split(b" ")[1].decode()
                name = next(name for name in ANSWERS if name in target)
                kind, body = made.content or (b"application/json", json.dumps(ANSWERS[name]).encode())
                typed = [b"Content-Type: " + kind] if kind else []
                head = [b"HTTP/1.1 200 OK", *typed, *made.more_fields, b"Content-Length: %d" % len(body)]
                writer.write(b"\r\n".join(head) + b"\r\n\r\n" + body)
        writer.close()

    echo = await asyncio.start_server(upstream, "127.0.0.1", 0)
    config = configuration.parse(CONFIG.format(data=folder, port=echo.sockets[0].getsockname()[1]) + RATES)
    store = await Store.open(folder)
    relay = Relay(config, store, load_pepper(folder, create=True))
    await relay.start()
    account = await relay.operations.account_create(commands.AccountCreate(email="a@example.com", plan="paid"))
    await relay.operations.account_set(commands.AccountSet(id=account["id"], rpm=0, concurrency=0))
    await relay.operations.credit_add(commands.CreditAdd(id=account["id"], amount="100"))
    key = await relay.operations.key_create(commands.KeyCreate(id=account["id"]))
    networks = [ALLOWED, "127.0.0.1", "10.0.0.0/8"]  # of the proxies too, which nobody may borrow
    restricted = await relay.operations.key_create(commands.KeyCreate(id=account["id"], allow_ips=networks))
    made = Setting(relay, key["secret"], restricted["secret"])
    yield made
    echo.close()
    await relay.stop()
    await store.close()


@pytest.fixture(autouse=True)
def plain_answers(setting: Setting) -> None:
    setting.more_fields, setting.content = [], None
    setting.seen.clear()


# -- whose address


FORWARDED: dict[str, tuple[list[bytes], bool]] = {
    "one line": ([b"X-Forwarded-For: 198.51.100.7"], True),
    "another": ([b"X-Forwarded-For: 203.0.113.9"], False),
    "haproxy's line behind the client's own": ([b"X-Forwarded-For: 198.51.100.7", b"X-Forwarded-For: 203.0.113.9"],
    False),
    "nginx's in front of the client's text": ([b"X-Forwarded-For: 198.51.100.7, 203.0.113.9"], False),
    "the client's own line first": ([b"X-Forwarded-For: 203.0.113.9", b"X-Forwarded-For: 198.51.100.7"], True),
    "two proxies": ([b"X-Forwarded-For: 198.51.100.7, 10.1.2.3"], True),
    "two proxies in lines": ([b"X-Forwarded-For: 198.51.100.7", b"X-Forwarded-For: 10.1.2.3"], True),
    "named by Connection": ([b"Connection: x-forwarded-for", b"X-Forwarded-For: 203.0.113.9"], False),
    "named by Connection, allowed": ([b"Connection: close, X-Forwarded-For", b"X-Forwarded-For: 198.51.100.7"], True),
    "with a port": ([b"X-Forwarded-For: 198.51.100.7:41234"], True),
    "another with a port": ([b"X-Forwarded-For: 203.0.113.9:41234"], False),
    "in brackets": ([b"X-Forwarded-For: [::ffff:198.51.100.7]:41234"], True),
    "unknown": ([b"X-Forwarded-For: unknown"], False),
    "nothing": ([b"X-Forwarded-For:"], False),
    "nothing behind the comma": ([b"X-Forwarded-For: 198.51.100.7,"], False),
    "unknown behind the client's": ([b"X-Forwarded-For: 198.51.100.7, unknown"], False),
    "unknown in front of a proxy": ([b"X-Forwarded-For: unknown, 10.1.2.3"], False),
    "a name": ([b"X-Forwarded-For: 198.51.100.7.example"], False),
    "a bad port": ([b"X-Forwarded-For: 198.51.100.7:http"], False),
    "behind a field that cannot be read": ([b"Y: \xe9", b"X-Forwarded-For: 203.0.113.9"], False),
    "behind many fields": ([*[b"X-%d: a" % n for n in range(80)], b"X-Forwarded-For: 203.0.113.9"], False),
    "none": ([], True),  # the proxy itself asks
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
async def test_finding_wire_H1_the_address_behind_a_trusted_proxy(setting: Setting, way: str) -> None:
    line, more, body = WAYS[way]
    key = b"Authorization: Bearer " + setting.restricted.encode()
    wrong = {}
    for name, (fields, served) in FORWARDED.items():
        if way == "realtime":
            fields = [one for one in fields if not one.startswith(b"Connection")]
        answer = await setting.ask(line, [*more, *fields], body, key=key)
        if answer.status != (SERVED.get(way, 200) if served else 403):
            wrong[name] = answer.status
    assert wrong == {}


async def test_finding_wire_H1_records_say_unknown(setting: Setting) -> None:
    for line, body in ((f"POST {CHAT}", BODY), ("GET /v1/files", b"")):
        for text, recorded in (
            (b"198.51.100.7, unknown", "unknown"), (b"", "unknown"), (b"[2001:DB8::5]:443", "2001:db8::5"),
            (b"203.0.113.9:80", "203.0.113.9"), (b"2001:db8::5, 2001:db8:aaaa::1", "2001:db8::5"),
        ):  # fmt: skip
            assert (await setting.ask(line, [b"X-Forwarded-For: " + text], body)).status == 200
            assert (await setting.records())[0]["source_ip"] == recorded, text
        assert (await setting.ask(line, [b"X-Forwarded-For: \xff"], body)).status == 400
        assert (await setting.records())[0]["source_ip"] == "unknown"


# -- fields that cannot be read

OURS = [
    b"x-relay-max-cost", b"Idempotency-Key", b"x-relay-channel", b"x-relay-usage", b"X-Forwarded-For", b"authorization",
    b"x-api-key", b"x-goog-api-key", b"api-key", b"Content-Type",
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
async def test_finding_money_M4_a_field_of_ours_that_cannot_be_read(setting: Setting, way: str) -> None:
    """Also where the key itself stands in it, or none is sent: then who calls is not known, but why is."""
    line, more, body = WAYS[way]
    for name in OURS:
        for value in (b"0.000001\xa0", b"caf\xe9", b"\xff", b"Bearer sk-\xe2\x80\x8b1"):
            answer = await setting.ask(line, [*more, name + b": " + value], body)
            code = "invalid" if way == "customer" else "invalid_value"
            assert (answer.status, answer.error) == (400, (code, name.decode().lower())), (name, value)
    assert setting.seen == []


async def test_finding_money_M4_an_idempotency_key_is_never_ignored(setting: Setting) -> None:
    field = [b"Idempotency-Key: caf\xc3\xa9"]
    assert [(await setting.ask(f"POST {CHAT}", field, BODY)).status for _ in range(2)] == [400, 400]
    assert setting.seen == []


@pytest.mark.parametrize(
    "hiding",
    [
        [b"X-Title: Caf\xe9"],
        [b"X-Title: Caf\xc3\xa9"],
        [b"X-%d: a" % n for n in range(100)],
        [b"X-Long: " + b"a" * 8180],
    ],
    ids=["latin-1", "utf-8", "many fields", "a long line"],
)
async def test_finding_wire_H2_nothing_is_hidden_behind_what_cannot_be_read(
    setting: Setting, hiding: list[bytes]
) -> None:
    key = b"Authorization: Bearer " + setting.secret.encode()
    line = f"POST {MESSAGES}"
    fields = [b"anthropic-version: 2023-06-01", b"anthropic-beta: a", b"Content-Type: application/json"]
    answer = await setting.ask(line, [*hiding, key, *fields], MESSAGES_BODY, key=b"")
    assert answer.status == 200, answer.body
    _, passed, body = setting.last
    assert (passed["anthropic-version"], passed["anthropic-beta"], body) == ("2023-06-01", "a", MESSAGES_BODY)
    assert "x-title" not in passed
    answer = await setting.ask(line, [*hiding, b"x-relay-max-cost: 0"], MESSAGES_BODY)
    assert (answer.status, answer.error[0]) == (402, "max_cost")
    answer = await setting.ask(line, [*hiding, b"x-relay-channel: nowhere"], MESSAGES_BODY)
    assert answer.status == 403
    once = [*hiding, b"Idempotency-Key: once-%d" % sum(hiding[0])]
    assert [(await setting.ask(line, once, MESSAGES_BODY)).status for _ in range(2)] == [200, 409]


NAMES = [
    b"X-Custom",
    b"Cookie",
    b"X-Title",
    b"accept",
    b"openai-beta",
    b"Origin",
    b"x-stainless-lang",
    b"traceparent",
    *OURS,
]
TEXT = st.text("ab1 -./", max_size=8).map(str.encode)
ODD = st.builds(
    lambda a, b, c: a + b + c, TEXT, st.sampled_from([b"\xe9", b"\xc3\xa9", b"\xff", b"\x80", b"\xa0"]), TEXT
)
# Readable values of fields that the relay reads would refuse or change the call by themselves.
PAIRS = st.tuples(st.sampled_from(NAMES), ODD) | st.tuples(st.sampled_from(NAMES[: -len(OURS)]), TEXT)


async def test_finding_wire_H2_generated_heads(setting: Setting) -> None:
    """The contract is the oracle: what cannot be read in a field that the relay reads is 400 naming the field;
    elsewhere it is passed over and hides nothing behind it."""
    loop = asyncio.get_running_loop()
    cases: list[list[tuple[bytes, bytes]]] = []

    @settings(max_examples=150, deadline=None, database=None, derandomize=True)
    @given(st.lists(PAIRS, max_size=6))
    def collect(pairs: list[tuple[bytes, bytes]]) -> None:
        if sum(name == b"Content-Type" for name, _ in pairs) < 2:  # twice it is no HTTP
            cases.append(pairs)

    await loop.run_in_executor(None, collect)
    ours = {name.lower() for name in OURS}
    for pairs in cases:
        setting.seen.clear()
        answer = await setting.ask(f"POST {CHAT}", [name + b": " + value for name, value in pairs], BODY)
        bad = [name.lower().decode() for name, value in pairs if not value.isascii() and name.lower() in ours]
        if bad:
            assert (answer.status, answer.error) == (400, ("invalid_value", bad[0])), pairs
            continue
        assert answer.status == 200, (pairs, answer.body)
        sent = [each.partition(b":") for each in setting.seen[-1].partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]]
        went = sorted((name.lower(), value.strip()) for name, _, value in sent)
        passed = [(n.lower(), v.strip()) for n, v in pairs if v.isascii() and n.lower() in headers.REQUEST_ALLOWED[0]]
        own = {b"host", b"authorization", b"content-type", b"content-length", b"accept-encoding"}
        assert [one for one in went if one[0] not in own] == sorted(passed), pairs


# -- where a key may stand


def places(secret: str) -> list[list[bytes]]:
    key = secret.encode()
    junk = [b"x-api-key: sk-junk-%d" % n for n in range(7)]
    return [
        *[[b"%b: %b%b" % (name, scheme, key)]
          for name in (b"Authorization", b"x-api-key", b"X-Goog-Api-Key", b"api-key", b"Api-Key")
          for scheme in (b"", b"Bearer ", b"bearer ", b"BEARER\t ", b" ")],
        [b"Authorization: Basic eA==", b"api-key: " + key],
        [b"Authorization: Bearer something-else", b"x-api-key: " + key],
        [b"Connection: authorization", b"Authorization: Bearer " + key],
        [*junk, b"Authorization: " + key],
    ]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
async def test_finding_clients_F24_the_key_in_every_place_and_form(setting: Setting, way: str) -> None:
    line, more, body = WAYS[way]
    for fields in places(setting.secret):
        if way == "realtime" and fields[0].startswith(b"Connection"):
            continue
        answer = await setting.ask(line, [*more, *fields], body, key=b"")
        assert answer.status == SERVED.get(way, 200), (fields, answer.body)
    too_many = [b"x-api-key: sk-junk-%d" % n for n in range(9)]
    answer = await setting.ask(
        line, [*more, *too_many, b"Authorization: Bearer " + setting.secret.encode()], body, key=b""
    )
    assert answer.status == 401


async def test_finding_wire_L4_guesses_are_looked_up_once(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    store = setting.relay._store
    asked: list[object] = []
    find = store.find_credential

    async def counted(public_id: str | bytes) -> object:
        asked.append(public_id)
        return await find(public_id)

    monkeypatch.setattr(store, "find_credential", counted)
    guesses = "&".join("key=" + keys.make_secret() for _ in range(100))
    for _ in range(3):
        answer = await setting.ask(f"GET /v1beta/models?{guesses}", [], key=b"")
        assert answer.status == 401
    assert len(asked) == headers.SECRETS_MAX


# -- queries

REFUSED = [
    ("fields=candidates", "fields"), ("$fields=candidates", "$fields"), ("%24fields=candidates", "$fields"),
    ("alt=proto", "alt"), ("alt=media", "alt"), ("alt=", "alt"), ("alt=sse&alt=json", "alt"), ("alt=json;fields=x",
    "alt"),
    ("a%6Ct=proto", "alt"), ("$alt=proto", "$alt"), ("callback=f", "callback"), ("$callback=f", "$callback"),
    ("$httpHeaders=x", "$httpHeaders"), ("userProject=x", "userProject"), ("$userProject=p", "$userProject"),
    ("quotaUser=u", "quotaUser"), ("userIp=u", "userIp"), ("uploadType=media", "uploadType"), ("$ct=a", "$"),
]  # fmt: skip


async def test_finding_wire_H5_parameters_that_hide_the_usage_are_refused(setting: Setting) -> None:
    for query, named in REFUSED:
        for path in (GENERATE, GENERATE.replace(":g", ":streamG"), GENERATE.replace("/v1beta", "/v1")):
            answer = await setting.ask(f"POST {path}?{query}", [], GENERATE_BODY)
            assert (answer.status, answer.error) == (400, ("invalid_value", named)), (query, answer.body)
        answer = await setting.ask(f"GET /v1beta/batches?{query}", [])
        assert (answer.status, answer.error) == (400, ("invalid_value", named)), query
    assert setting.seen == []


GOES_ON = [
    (GENERATE, GENERATE_BODY, "alt=sse", "alt=sse"), (GENERATE, GENERATE_BODY, "alt=json", "alt=json"),
    (GENERATE, GENERATE_BODY, "$alt=json%3Benum-encoding%3Dint&alt=json", "alt=json"),
    (GENERATE, GENERATE_BODY, "prettyPrint=false&utm_source=x&access_token=t&$prettyPrint=false", ""),
    (GENERATE, GENERATE_BODY, "model=dear&stream=true&beta=true&%00=1", ""),
    (MESSAGES, MESSAGES_BODY, "beta=true", "beta=true"),
    (MESSAGES, MESSAGES_BODY, "beta=true&model=dear&fields=x&api-version=1", "beta=true"),
    (CHAT, BODY, "api-version=client", "api-version=own"),
    (CHAT, BODY, "model=dear&stream=true&beta=true&alt=sse&fields=x&key=k&$alt=proto", "api-version=own"),
]  # fmt: skip


async def test_finding_wire_H5_what_goes_on_is_known(setting: Setting) -> None:
    """`api-version` is the channel's, not the client's (wire L8)."""
    for path, body, query, expected in GOES_ON:
        for odd in ([], [b"X-Odd: \xe9"]):
            answer = await setting.ask(f"POST {path}?{query}", odd, body)
            assert answer.status == 200, (query, answer.body)
            assert setting.last[0].partition("?")[2] == expected, query


async def test_finding_wire_H5_a_key_in_the_query_is_gemini_s_alone(setting: Setting) -> None:
    secret = setting.secret
    for line, body, status in (
        (f"POST {GENERATE}?key={secret}", GENERATE_BODY, 200), (f"POST {GENERATE}?alt=json&%6Bey={secret}",
        GENERATE_BODY, 200),
        (f"GET /v1beta/models?key={secret}", b"", 200), (f"GET /v1beta/batches?key={secret}", b"", 200),
        (f"POST {CHAT}?key={secret}", BODY, 401), (f"POST {MESSAGES}?key={secret}", MESSAGES_BODY, 401),
        (f"GET /v1/models?key={secret}", b"", 401), (f"GET /v1/files?key={secret}", b"", 401),
        (f"GET /v1/batches?key={secret}", b"", 401), (f"GET /relay/v1/balance?key={secret}", b"", 401),
        (f"GET /v1/files/file-1/content?key={secret}", b"", 401),
    ):  # fmt: skip
        assert (await setting.ask(line, [], body, key=b"")).status == status, line
    assert not any(secret.encode() in request for request in setting.seen)


# -- content types


async def test_finding_wire_H4_a_json_body_goes_on_as_json(setting: Setting) -> None:
    poisoned = b'{"model":"gpt-4o","messages":[],"x":"&model=dear&y="}'
    types = [
        b"application/x-www-form-urlencoded", b"text/plain", b"multipart/form-data; boundary=x", b"application/json",
        b"application/json; charset=utf-8", b'Application/JSON;charset="UTF-8"', b"text/json; charset=UTF8", b"", None,
    ]  # fmt: skip
    for kind in types:
        for odd in ([], [b"X-Odd: \xe9"]):
            fields = [*odd, *([b"Content-Type: " + kind] if kind is not None else [])]
            answer = await setting.ask(f"POST {CHAT}", fields, poisoned)
            assert answer.status == 200, (kind, answer.body)
            assert (setting.last[1]["content-type"], setting.last[2]) == ("application/json", poisoned)
        video = b'{"model":"sora-2","prompt":"a"}'
        if kind is None or b"multipart" not in kind:
            assert (await setting.ask("POST /v1/videos", fields[-1:] if kind is not None else [], video)).status == 200
            assert (setting.last[1]["content-type"], setting.last[2]) == ("application/json", video)


async def test_finding_wire_H4_other_charsets_are_refused(setting: Setting) -> None:
    batch = b'{"input_file_id":"file-1","endpoint":"/v1/chat/completions","completion_window":"24h"}'
    for kind in (
        b"application/json; charset=utf-7", b"application/json;charset=iso-8859-1", b"application/json; charset=utf-16",
        b"application/json; charset=", b"application/json; charset", b"application/json; Charset='utf-8'",
        b"application/json; charset=utf-8; charset=utf-7", b"text/plain; charset*=utf-7''x",
        b"a/b; c=\"; charset=utf-7\"",
    ):  # fmt: skip
        for path, body in ((CHAT, BODY), ("/v1/images/edits", BODY), ("/v1/videos", BODY), ("/v1/batches", batch)):
            if path == "/v1/images/edits" and not kind.startswith(b"application/json"):
                continue  # a form, or nothing
            answer = await setting.ask(f"POST {path}", [b"Content-Type: " + kind], body)
            assert (answer.status, answer.error[0]) == (415, "unsupported_charset"), (path, kind, answer.body)
    assert setting.seen == []


async def test_finding_wire_H4_forms_keep_their_type(setting: Setting) -> None:
    form = b'--q\r\nContent-Disposition: form-data; name="model"\r\n\r\nsora-2\r\n--q--\r\n'
    answer = await setting.ask("POST /v1/videos", [b"Content-Type: multipart/form-data; boundary=q"], form)
    assert answer.status == 200, answer.body
    assert (setting.last[1]["content-type"], setting.last[2]) == ("multipart/form-data; boundary=q", form)
    upload = form.replace(b'"model"', b'"purpose"').replace(b"sora-2", b"user_data")
    answer = await setting.ask("POST /v1/files", [b"Content-Type: multipart/form-data; boundary=q"], upload)
    assert answer.status == 200, answer.body
    assert (setting.last[1]["content-type"], setting.last[2]) == ("multipart/form-data; boundary=q", upload)


# -- browsers


@pytest.mark.parametrize("way", ["front door", "aiohttp", "files", "models", "realtime"])
async def test_nothing_is_opened_in_a_browser(setting: Setting, way: str) -> None:
    """E2: API paths are for programs."""
    line, more, body = WAYS[way]
    for odd in (b"Mode: navigate", b"Mode: Navigate", *(
        b"Dest: " + kind for kind in (b"document", b"iframe", b"frame", b"object", b"embed", b"script", b"style",
        b"worker",
                                      b"serviceworker", b"sharedworker"))):  # fmt: skip
        answer = await setting.ask(line, [*more, b"Sec-Fetch-" + odd], body)
        assert (answer.status, answer.error[0]) == (403, "browser_request"), odd
    for fine in (
        [b"Sec-Fetch-Mode: cors", b"Sec-Fetch-Dest: empty"],
        [b"Sec-Fetch-Mode: websocket"],
        [b"Sec-Fetch-Dest: image"],
    ):
        assert (await setting.ask(line, [*more, *fine], body)).status == SERVED.get(way, 200), fine


HURTING = [
    b"Location: https://evil.example/", b"Refresh: 0; url=https://evil.example/",
    b"Content-Security-Policy: script-src *",
    b"Access-Control-Allow-Origin: *", b"Access-Control-Allow-Credentials: true", b"X-Content-Type-Options: none",
    b"Service-Worker-Allowed: /", b"SourceMap: /x",
]  # fmt: skip


@pytest.mark.parametrize("way", ["front door", "aiohttp", "files"])
async def test_no_answer_of_an_upstream_runs_on_this_origin(setting: Setting, way: str) -> None:
    line, more, body = WAYS[way]
    if way == "files":
        form = b'--q\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--q--\r\n'
        setting.content = None
        assert (
            await setting.ask("POST /v1/files", [b"Content-Type: multipart/form-data; boundary=q"], form)
        ).status == 200
        line = "GET /v1/files/file-1/content"
    setting.more_fields = HURTING
    document = json.dumps(ANSWERS[""]).encode()
    for kind, guarded in (
        (b"application/json", False), (b"application/json; charset=utf-8", False), (b"text/event-stream", False),
        (b"image/svg+xml", True), (b"text/html", True), (b"application/json, text/html", True), (b"", True),
        (b"application/jsonx", True), (b"text/event-stream;x,text/html", True),
    ):  # fmt: skip
        sse = b"data: " + document.replace(b"chat.completion", b"chat.completion.chunk") + b"\n\ndata: [DONE]\n\n"
        setting.content = (kind, sse if b"event" in kind else document)
        answer = await setting.ask(line, more, body)
        if answer.status == 502:
            continue  # not an answer of this dialect at all
        assert answer.status == 200, (kind, answer.body)
        assert answer.fields["x-content-type-options"] == "nosniff", kind
        assert answer.fields.get("content-security-policy") == ("sandbox" if guarded else None), kind
        hidden = {"location", "refresh", "access-control-allow-origin", "access-control-allow-credentials", "sourcemap"}
        assert not hidden & set(answer.fields), kind


# -- bodies

MARK = b"\xef\xbb\xbf"


async def test_finding_clients_F28_a_byte_order_mark_is_taken_off(setting: Setting) -> None:
    video = b'{"model":"sora-2","prompt":"a"}'
    for path, body in ((CHAT, BODY), (MESSAGES, MESSAGES_BODY), (GENERATE, GENERATE_BODY), ("/v1/videos", video)):
        answer = await setting.ask(f"POST {path}", [], MARK + body)
        assert answer.status == 200, answer.body
        assert setting.last[2] == body
    for bad in (MARK, MARK[:2], MARK[:2] + BODY, MARK + MARK + BODY, b" " + MARK + BODY):
        assert (await setting.ask(f"POST {CHAT}", [], bad)).error[0] == "malformed_json"
    for size in (1, 2, 4):
        pieces = [(MARK + BODY)[at : at + size] for at in range(0, len(MARK + BODY), size)]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        answer = await setting.ask(f"POST {CHAT}", [b"Transfer-Encoding: chunked"], chunks, length=False)
        assert (answer.status, setting.last[2]) == (200, BODY)


async def test_finding_wire_L7_keys_in_other_letters(setting: Setting) -> None:
    more = {b'"Stream":true': "stream", b'"N":128': "n", b'"MAX_TOKENS":1': "max_tokens", b'"Model":"dear"': None}
    for text, named in more.items():
        for odd in ([], [b"X-Odd: \xe9"]):
            answer = await setting.ask(f"POST {CHAT}", odd, BODY[:-1] + b"," + text + b"}")
            expected = ("misspelt_key", named) if named else ("duplicate_key", "model")
            assert (answer.status, answer.error) == (400, expected), text
    params = b'{"model":"claude","max_tokens":9,"messages":[]%b}'
    batch = b'{"requests":[{"custom_id":"a","params":%b}]%b}'
    plain = params % b""
    cases = {
        batch % (params % b',"Model":"dear"', b""): ("misspelt_key", "model"),
        batch % (params % b',"MAX_TOKENS":1', b""): ("misspelt_key", "max_tokens"),
        batch % (params % b',"model":"dear"', b""): ("duplicate_key", None),
        batch % (plain, b',"Requests":[]'): ("misspelt_key", "requests"),
        batch % (params % b',"temperature":NaN', b""): ("malformed_json", None),
        (batch % (plain, b"")).decode().encode("utf-16"): ("malformed_json", None),
        (batch % (plain, b"")).decode().encode("utf-32"): ("malformed_json", None),
        batch % (plain, b',"x":' + b"[" * 100_000): ("malformed_json", None),
    }
    for body, expected in cases.items():
        answer = await setting.ask("POST /v1/messages/batches", [], body)
        assert answer.status == 400, body[:200]
        assert answer.error == expected or (answer.error[0] == expected[0] and expected[1] is None), body[:200]
    assert setting.seen == []


async def test_finding_wire_M2_forms_that_others_read_otherwise(setting: Setting) -> None:
    head = (
        b'--q\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--q\r\nContent-Disposition: form-data'
    )
    typed = [b"Content-Type: multipart/form-data; boundary=q"]
    for more in (
        b"; name=\"x\"; name*=utf-8''model\r\n\r\nDEAR", b'; name*0="mo"; name*1="del"\r\n\r\nDEAR',
        b'; x="a;name=model"; name="y"\r\n\r\nDEAR',
        b'; name="f"; filename="a"\r\n\r\nx\n--q\nContent-Disposition: form-data; name="model"\n\nDEAR\n--q',
    ):  # fmt: skip
        answer = await setting.ask("POST /v1/audio/transcriptions", typed, head + more + b"\r\n--q--\r\n")
        assert (answer.status, answer.error[0]) == (400, "malformed_form"), more
    assert setting.seen == []
