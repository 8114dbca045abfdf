"""The front door against aiohttp's parser: whatever bytes arrive, in whatever pieces, both ways give the same answer
and send the same request on; and nothing that aiohttp refuses is ever served by the front door."""

import asyncio
import contextlib
import json
import random
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relay import config as configuration
from relay.app import Relay
from relay.control import commands
from relay.control.pepper import load_pepper
from relay.storage import Store

ANSWER = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello"}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }
).encode()

CONFIG = """
[server]
listen = "127.0.0.1:0"
data_dir = "{data}"
body_bytes_max = 100000
[timeouts]
header_seconds = 2
[[channels]]
name = "echo"
api = "openai"
base_url = "http://127.0.0.1:{port}/v1"
api_keys = ["upstream-key"]
models = ["gpt-4o"]
[[rates]]
model = "gpt-4o"
input = "1"
output = "1"
"""


@dataclass
class Setting:
    relay: Relay
    secret: str
    front_port: int
    aiohttp_port: int
    seen: list[bytes] = field(default_factory=list)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
    return head + await reader.readexactly(length)


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    seen: list[bytes] = []

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                seen.append(await read_request(reader))
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)
                )
                writer.write(ANSWER)
        writer.close()

    echo = await asyncio.start_server(upstream, "127.0.0.1", 0)
    config = configuration.parse(CONFIG.format(data=tmp_path, port=echo.sockets[0].getsockname()[1]))
    store = await Store.open(tmp_path)
    relay = Relay(config, store, load_pepper(tmp_path, create=True))
    await relay.start()
    straight = await asyncio.get_running_loop().create_server(relay.api.protocol, "127.0.0.1", 0)
    account = await relay.operations.account_create(commands.AccountCreate(email="a@example.com", plan="paid"))
    await relay.operations.account_set(commands.AccountSet(id=account["id"], rpm=0, concurrency=0))
    await relay.operations.credit_add(commands.CreditAdd(id=account["id"], amount="100"))
    key = await relay.operations.key_create(commands.KeyCreate(id=account["id"]))
    yield Setting(relay, key["secret"], relay.port, straight.sockets[0].getsockname()[1], seen)
    straight.close()
    echo.close()
    await relay.stop()
    await store.close()


BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hello"}]}'


def request(
    secret: str,
    *,
    line: bytes = b"POST /v1/chat/completions HTTP/1.1",
    fields: bytes = b"",
    body: bytes = BODY,
    length: bytes | None = None,
) -> bytes:
    size = b"%d" % len(body) if length is None else length
    return b"%s\r\nHost: relay.example\r\nAuthorization: Bearer %s\r\n%sContent-Length: %s\r\n\r\n%s" % (
        line,
        secret.encode(),
        fields,
        size,
        body,
    )


CLOSE = b"Connection: close\r\n"

# name -> raw bytes; KEY stands for the secret. All end their connection, so that reading to the end is reading it all.
PLAIN: dict[str, dict[str, bytes]] = {
    "plain": {"fields": CLOSE},
    "upper-case field names": {"fields": b"CONNECTION: CLOSE\r\nUSER-AGENT: A/1\r\n"},
    "blanks around values": {"fields": b"Connection: \t close \t\r\nAccept:application/json\r\n"},
    "fields that pass": {
        "fields": CLOSE + b"OpenAI-Beta: x=1\r\nX-Stainless-Lang: python\r\nX-Unknown: 1\r\nCookie: a=b\r\n"
    },
    "wrong base url": {"line": b"POST /v1/v1/chat/completions HTTP/1.1", "fields": CLOSE},
    "missing version": {"line": b"POST /chat/completions HTTP/1.1", "fields": CLOSE},
    "query": {"line": b"POST /v1/chat/completions?beta=true HTTP/1.1", "fields": CLOSE},
    "unknown path": {"line": b"POST /v1/chat/completion HTTP/1.1", "fields": CLOSE},
    "traversal": {"line": b"POST /v1/../v1/chat/completions HTTP/1.1", "fields": CLOSE},
    "encoded slash": {"line": b"POST /v1%2fchat/completions HTTP/1.1", "fields": CLOSE},
    "double slash": {"line": b"POST //v1/chat/completions HTTP/1.1", "fields": CLOSE},
    "other method": {"line": b"PUT /v1/chat/completions HTTP/1.1", "fields": CLOSE},
    "empty body": {"fields": CLOSE, "body": b""},
    "broken json": {"fields": CLOSE, "body": b'{"model":'},
    "unknown model": {"fields": CLOSE, "body": b'{"model":"nope","messages":[]}'},
    "two keys of one": {"fields": CLOSE + b"x-api-key: KEY\r\n"},
    "another key beside": {"fields": CLOSE + b"x-api-key: sk-not-a-key-of-this-relay\r\n"},
    "max cost": {"fields": CLOSE + b"x-relay-max-cost: 5\r\n"},
    "max cost too small": {"fields": CLOSE + b"x-relay-max-cost: 0.000000001\r\n"},
    "max cost not a number": {"fields": CLOSE + b"x-relay-max-cost: cheap\r\n"},
    "compressed body": {"fields": CLOSE + b"Content-Encoding: gzip\r\n"},
    "expect": {"fields": CLOSE + b"Expect: 100-continue\r\n"},
    "http 1.0": {"line": b"POST /v1/chat/completions HTTP/1.0"},
    "large field": {"fields": CLOSE + b"User-Agent: " + b"a" * 8000 + b"\r\n"},
    "field too large": {"fields": CLOSE + b"User-Agent: " + b"a" * 9000 + b"\r\n"},
    "text beyond ascii": {"fields": CLOSE + b"User-Agent: caf\xc3\xa9\r\n"},
    "body too large": {"fields": CLOSE, "body": b'{"model":"gpt-4o","messages":[],"x":"' + b"a" * 100_000 + b'"}'},
    "chunked": {
        "fields": b"",
        "raw": b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer KEY\r\nConnection: close\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    },
}

# What aiohttp's C parser refuses (RFC 9112): must be 400 and closed at the front door too, and reach no upstream.
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer KEY\r\n"
SMUGGLED: dict[str, bytes] = {
    "length and chunked": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 65\r\nContent-Length: 66\r\n\r\n" + BODY,
    "two equal lengths": HEAD + b"Content-Length: 65\r\nContent-Length: 65\r\n\r\n" + BODY,
    "list of lengths": HEAD + b"Content-Length: 65, 65\r\n\r\n" + BODY,
    "plus length": HEAD + b"Content-Length: +65\r\n\r\n" + BODY,
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "hex length": HEAD + b"Content-Length: 0x41\r\n\r\n" + BODY,
    "underscore length": HEAD + b"Content-Length: 6_5\r\n\r\n" + BODY,
    "empty length": HEAD + b"Content-Length: \r\n\r\n" + BODY,
    "huge length": HEAD + b"Content-Length: 18446744073709551681\r\n\r\n" + BODY,
    "xchunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "blank before colon": HEAD + b"Content-Length : 65\r\n\r\n" + BODY,
    "folded field": HEAD + b"Accept: a\r\n b\r\nContent-Length: 65\r\n\r\n" + BODY,
    "bare line feeds": HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 65\n\n" + BODY,
    "bare line feed in a field": HEAD + b"Accept: a\nX: b\r\nContent-Length: 65\r\n\r\n" + BODY,
    "bare carriage return": HEAD + b"Accept: a\rb\r\nContent-Length: 65\r\n\r\n" + BODY,
    "nul": HEAD + b"Accept: a\x00b\r\nContent-Length: 65\r\n\r\n" + BODY,
    "no host": HEAD.replace(b"Host: a\r\n", b"") + b"Content-Length: 65\r\n\r\n" + BODY,
    "two hosts": HEAD + b"Host: b\r\nContent-Length: 65\r\n\r\n" + BODY,
    "host with a path": HEAD.replace(b"Host: a", b"Host: a/?") + b"Content-Length: 65\r\n\r\n" + BODY,
    "http 1.2": HEAD.replace(b"HTTP/1.1", b"HTTP/1.2") + b"Content-Length: 65\r\n\r\n" + BODY,
    "http 2.0": HEAD.replace(b"HTTP/1.1", b"HTTP/2.0") + b"Content-Length: 65\r\n\r\n" + BODY,
    "no version": HEAD.replace(b" HTTP/1.1", b"") + b"Content-Length: 65\r\n\r\n" + BODY,
    "lower-case method": HEAD.replace(b"POST", b"post") + b"Content-Length: 65\r\n\r\n" + BODY,
    "empty field name": HEAD + b": x\r\nContent-Length: 65\r\n\r\n" + BODY,
    "line without colon": HEAD + b"Accept\r\nContent-Length: 65\r\n\r\n" + BODY,
    "leading blank": b" " + HEAD + b"Content-Length: 65\r\n\r\n" + BODY,
    "absolute form": HEAD.replace(b"POST /", b"POST http://other.example/") + b"Content-Length: 65\r\n\r\n" + BODY,
    **{
        f"{name} twice": HEAD + b"Content-Length: 65\r\n" + b"%s: a\r\n" % name.encode() * 2 + b"\r\n" + BODY
        for name in (
            "Content-Type",
            "User-Agent",
            "ETag",
            "Server",
            "Content-Range",
            "Content-Location",
            "Max-Forwards",
        )
    },
    "bad chunk size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "line feeds in chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\n{\n0\n\n",
}


async def exchange(port: int, raw: bytes, cuts: list[int]) -> bytes:
    """Sends `raw` in pieces; everything that comes back until the relay closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        at = 0
        for cut in [*cuts, len(raw)]:
            writer.write(raw[at:cut])
            await writer.drain()
            await asyncio.sleep(0)
            at = cut
        async with asyncio.timeout(20):
            return await reader.read(-1)
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


VARYING = re.compile(
    rb"(?im)^(x-relay-request-id|x-request-id|request-id|server-timing|date|server|retry-after|retry-after-ms"
    rb"|x-ratelimit-[a-z-]+): [^\r]*\r\n"
)


def comparable(answer: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Status line, sorted field lines without what differs from call to call, body."""
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    line, _, fields = VARYING.sub(b"", head + b"\r\n").partition(b"\r\n")
    kept = {f.strip().lower() for f in fields.split(b"\r\n") if f and not f.lower().startswith(b"connection:")}
    return line, sorted(kept), body


def sent_on(seen: list[bytes]) -> list[tuple[bytes, list[tuple[bytes, bytes]], bytes]]:
    """Requests that went on: line, fields without blanks around values (the two parsers keep them or not), body."""
    requests = []
    for raw in seen:
        head, _, body = raw.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        pairs = [f.partition(b":") for f in fields]
        requests.append((line, [(name, value.strip()) for name, _, value in pairs], body))
    return requests


@pytest.mark.parametrize("name", PLAIN)
async def test_both_ways_answer_alike(setting: Setting, name: str) -> None:
    case = dict(PLAIN[name])
    raw = case.pop("raw", None) or request(setting.secret, **case)
    raw = raw.replace(b"KEY", setting.secret.encode())
    pieces = random.Random(name)
    for round_number in range(4):
        cuts = sorted(pieces.sample(range(1, min(len(raw), 2000)), 3 * round_number))
        setting.seen.clear()
        front = comparable(await exchange(setting.front_port, raw, cuts))
        front_seen = sent_on(setting.seen)
        setting.seen.clear()
        straight = comparable(await exchange(setting.aiohttp_port, raw, cuts))
        assert front == straight
        assert front_seen == sent_on(setting.seen)
        assert front[0].startswith(b"HTTP/1.")


LINES = [
    *(b"POST /v1/chat/completions HTTP/1.1",) * 6,
    *(
        b"POST /v1/chat/completions?x=1&key=KEY HTTP/1.1",
        b"POST /chat/completions HTTP/1.1",
        b"GET /v1/models HTTP/1.1",
    ),
    *(b"POST /v1/chat/completions HTTP/1.0", b"POST /v1/completions HTTP/1.1", b"DELETE /v1/chat/completions HTTP/1.1"),
    *(
        b"POST /v1/chat/completions# HTTP/1.1",
        b"POST /v1/chat/complet%69ons HTTP/1.1",
        b"POST /v1/chat/completions/ HTTP/1.1",
    ),
]
FIELDS = [
    *(
        b"Accept: */*",
        b"User-Agent: a/1",
        b"user-agent: b/2",
        b"Content-Type: application/json",
        b"content-type: text/plain",
    ),
    *(
        b"OpenAI-Beta: x",
        b"X-Stainless-Lang: python",
        b"x-api-key: KEY",
        b"Authorization: Bearer KEY",
        b"x-goog-api-key: no",
    ),
    *(
        b"x-relay-max-cost: 1",
        b"x-relay-max-cost: -1",
        b"x-relay-channel: echo",
        b"x-relay-usage: no",
        b"Cookie: a=b",
    ),
    *(
        b"Idempotency-Key:",
        b"Content-Encoding: identity",
        b"Content-Encoding: br",
        b"X-Forwarded-For: 1.2.3.4",
        b"TE: trailers",
    ),
    *(
        b"ETag: a",
        b"Server: b",
        b"Range: bytes=0-1",
        b"X:\t\tblanks \t",
        b"X-Empty:",
        b"Keep-Alive: timeout=5",
        b"x~y: z",
    ),
]
BODIES = [
    *(BODY,) * 4,
    *(b"", b"{}", b"[]", b"null", BODY[:-1], BODY + b" ", b"\xef\xbb\xbf" + BODY, b'{"model":"gpt-4o","stream":7}'),
    *(
        BODY.replace(b"Hello", b"\xff"),
        BODY.replace(b'"model"', b'"model":"x","model"'),
        BODY.replace(b"gpt-4o", b"nope"),
    ),
]


@pytest.mark.parametrize("seed", range(12))
async def test_requests_by_chance_are_answered_alike(setting: Setting, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(12):
        fields = [*rng.sample(FIELDS, rng.randrange(6)), b"Connection: close"]
        rng.shuffle(fields)
        raw = request(
            setting.secret,
            line=rng.choice(LINES),
            fields=b"".join(field + b"\r\n" for field in fields),
            body=rng.choice(BODIES),
        ).replace(b"KEY", setting.secret.encode())
        cuts = sorted(rng.sample(range(1, len(raw)), rng.randrange(5)))
        setting.seen.clear()
        front = comparable(await exchange(setting.front_port, raw, cuts))
        front_seen = sent_on(setting.seen)
        setting.seen.clear()
        assert front == comparable(await exchange(setting.aiohttp_port, raw, cuts)), raw
        assert front_seen == sent_on(setting.seen), raw


@pytest.mark.parametrize("name", SMUGGLED)
async def test_what_aiohttp_refuses_is_never_served(setting: Setting, name: str) -> None:
    raw = SMUGGLED[name].replace(b"KEY", setting.secret.encode())
    pieces = random.Random(name)
    for round_number in range(3):
        cuts = sorted(pieces.sample(range(1, len(raw)), 2 * round_number))
        for port in (setting.front_port, setting.aiohttp_port):
            answer = await exchange(port, raw, cuts)
            if answer == b"" or (cuts and answer == b"reset"):
                continue  # given up as no head at all, or pieces behind the refusal met a closed connection
            assert re.match(rb"HTTP/\d\.\d 4\d\d ", answer), answer[:100]
            assert len(re.findall(rb"HTTP/\d\.\d \d", answer)) == 1
            assert setting.secret.encode() not in answer
    assert setting.seen == []


async def test_any_single_cut_of_a_request_gives_the_same_answer(setting: Setting) -> None:
    raw = request(setting.secret, fields=CLOSE)
    expected = comparable(await exchange(setting.front_port, raw, []))
    assert expected[0] == b"HTTP/1.1 200 OK"
    gate = asyncio.Semaphore(20)

    async def one(cut: int) -> None:
        async with gate:
            assert comparable(await exchange(setting.front_port, raw, [cut])) == expected

    await asyncio.gather(*(one(cut) for cut in range(1, len(raw))))


async def test_pipelined_requests_are_answered_in_order(setting: Setting) -> None:
    """Fifty on one connection, plain ones and one in the middle that the front door hands over."""
    plain = request(setting.secret)
    unknown = request(setting.secret, body=b'{"model":"nope","messages":[]}')
    handed = request(setting.secret, line=b"POST /v1/unknown HTTP/1.1")
    last = request(setting.secret, fields=CLOSE)
    raw = plain * 20 + unknown + plain * 5 + handed + plain * 20 + last
    answer = await exchange(setting.front_port, raw, [100, 5000])
    statuses = [int(s) for s in re.findall(rb"HTTP/1\.1 (\d+)", answer)]
    assert statuses == [200] * 20 + [404] + [200] * 5 + [404] + [200] * 21


async def test_a_head_that_does_not_arrive_is_given_up(setting: Setting) -> None:
    for port in (setting.front_port, setting.aiohttp_port):
        answer = await exchange(port, b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n", [])
        assert answer in (b"", b"reset")
    assert setting.relay.engine.open_calls == 0


async def test_an_end_of_sending_ends_the_call(setting: Setting) -> None:
    """A half-closed connection counts as gone, as with nginx: it cannot be told from a closed one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", setting.front_port)
    raw = request(setting.secret)
    writer.write(raw[:-5])
    writer.write_eof()
    assert await reader.read(-1) == b""
    writer.close()
    await writer.wait_closed()
    assert setting.relay.engine.open_calls == 0
    assert setting.seen == []
