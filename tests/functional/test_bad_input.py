"""Bodies, paths and HTTP that nobody should send: each has its answer, and none of it reaches an upstream."""

import asyncio
import contextlib
import json

import pytest

from relay.simulator import Running
from tests.functional.relay_process import Customer
from tests.functional.setting import BODY_BYTES_MAX
from tests.support.http1 import Message, request_bytes
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
ASK = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hello"}]}'
CLAUDE = b'{"model":"claude-sonnet-5","max_tokens":9,"messages":[{"role":"user","content":"Hello"}]}'
GEMINI = b'{"contents":[{"parts":[{"text":"Hello"}]}]}'


def auth(customer: Customer, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json"} | more


async def post(customer: Customer, path: str, body: bytes, **headers: str) -> Message:
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        return await client.request("POST", path, auth(customer, **headers), body)


async def exchange(customer: Customer, data: bytes, *, closes: bool = True) -> list[Message]:
    """Sends raw bytes and reads until the relay closes; `closes` False: or until it has answered once."""
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(data)
        answers = []
        with contextlib.suppress(ConnectionError, AssertionError):
            while True:
                answers.append(await client.response(timeout_seconds=3.0))
                if not closes:
                    return answers
        assert client.eof or client.lost, (data[:100], answers)
        return answers


def error_code(answer: Message) -> str:
    """The relay's own code in any dialect's error body."""
    error = json.loads(answer.body)["error"]
    if isinstance(error.get("details"), list):
        return str(error["details"][0]["reason"]).lower()
    return str(error["code"])


# -- bodies

BODIES = [
    (b"", "malformed_json"),
    (b" \n", "malformed_json"),
    (b"{", "malformed_json"),
    (b"null", "invalid_type"),
    (b"[]", "invalid_type"),
    (b'"text"', "invalid_type"),
    (b"model=gpt-4o", "malformed_json"),
    (ASK[:-1], "malformed_json"),
    (ASK + b"}", "malformed_json"),
    (ASK + b"x", "malformed_json"),
    (ASK + b"{}", "malformed_json"),
    (ASK[:-1] + b",}", "malformed_json"),
    (ASK[:-1] + b",'a':1}", "malformed_json"),
    (ASK[:-1] + b',"a":NaN}', "malformed_json"),
    (ASK[:-1] + b',"a":Infinity}', "malformed_json"),
    (ASK[:-1] + b',"a":01}', "malformed_json"),
    (ASK[:-1] + b',"a":1.}', "malformed_json"),
    (ASK[:-1] + b',"a":+1}', "malformed_json"),
    (ASK[:-1] + b',"a":tru}', "malformed_json"),
    (ASK[:-1] + b',"a":"\\x"}', "malformed_json"),
    (ASK[:-1] + b',"a":"\\u12g4"}', "malformed_json"),
    (ASK[:-1] + b',"a":"line\nend"}', "malformed_json"),
    (ASK[:-1] + b',"a":"\x00"}', "malformed_json"),
    (ASK[:-1] + b',"a":// comment\n1}', "malformed_json"),
    (ASK[:-1] + b',"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "malformed_json"),
    (b'{"model":"gpt-4o","model":"gpt-5","messages":[]}', "duplicate_key"),
    (b'{"model":"gpt-4o","messages":[],"\\u006dodel":"gpt-5"}', "duplicate_key"),
    (b'{"\\u006D\\u006fdel":"gpt-4o","messages":[],"mode\\u006c":"gpt-5"}', "duplicate_key"),
    (ASK[:-1] + b',"stream":false,"stream":true}', "duplicate_key"),
    (ASK[:-1] + b',"max_tokens":1,"max\\u005ftokens":1000000}', "duplicate_key"),
    (ASK[:-1] + b',"messages":[]}', "duplicate_key"),
    (ASK[:-1] + b',"stream_options":{"include_usage":true,"include_usage":false}}', "duplicate_key"),
    (b'{"messages":[{"role":"user","content":"Hello"}]}', "missing_model"),
    (b'{"model":null,"messages":[]}', "missing_model"),
    (b'{"model":"","messages":[]}', "invalid_value"),
    (b'{"model":5,"messages":[]}', "invalid_type"),
    (b'{"model":["gpt-4o"],"messages":[]}', "invalid_type"),
    (b'{"model":{"a":"gpt-4o"},"messages":[]}', "invalid_type"),
    (b'{"model":true,"messages":[]}', "invalid_type"),
    (ASK[:-1] + b',"stream":"true"}', "invalid_type"),
    (ASK[:-1] + b',"stream":1}', "invalid_type"),
    (ASK[:-1] + b',"stream":{}}', "invalid_type"),
    (ASK[:-1] + b',"max_tokens":"5"}', "invalid_type"),
    (ASK[:-1] + b',"max_tokens":1.5}', "invalid_type"),
    (ASK[:-1] + b',"max_tokens":true}', "invalid_type"),
    (ASK[:-1] + b',"max_tokens":[5]}', "invalid_type"),
    (ASK[:-1] + b',"max_completion_tokens":"many"}', "invalid_type"),
    (ASK[:-1] + b',"n":"2"}', "invalid_type"),
    (ASK[:-1] + b',"stream_options":"yes"}', "invalid_type"),
    (ASK[:-1] + b',"max_tokens":-1}', "invalid_value"),
    (ASK[:-1] + b',"max_tokens":99999999999999999999999999}', "invalid_value"),
    (ASK[:-1] + b',"n":-1}', "invalid_value"),
    (ASK[:-1] + b',"n":99999999999999999999}', "invalid_value"),
    (b'{"model":"gpt-4o","messages":"Hello"}', "invalid_type"),
    (b'{"model":"gpt-4o","messages":{"role":"user"}}', "invalid_type"),
    (b'{"model":"%b","messages":[]}' % (b"m" * 300), "invalid_value"),
]


async def test_bodies(customer: Customer, simulator: Running):
    before = simulator.book.requests
    wrong = []
    for body, code in BODIES:
        for path in (CHAT, "/v1" + CHAT):  # the second way in is another parser
            answer = await post(customer, path, body)
            if (answer.status, error_code(answer)) != (400, code):
                wrong.append((body[-60:], code, answer.status, error_code(answer)))
            assert answer.header("x-should-retry") == "false"
            assert answer.header("x-request-id") == answer.header("request-id") == answer.header("x-relay-request-id")
            for piece in (b"gpt-4o", b"Hello", b"gpt-5"):
                assert piece not in answer.body, "an error must not quote the request"
    assert wrong == []
    assert simulator.book.requests == before
    records = await customer.calls(2 * len(BODIES))
    assert {record["cost"] for record in records} == {"0"}
    assert {record["status"] for record in records} == {400}
    assert {record["error_code"] for record in records} == {code for _, code in BODIES}


@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_faults_are_found_in_any_cut(customer: Customer, simulator: Running, pieces: int):
    before = simulator.book.requests
    for body, code in BODIES[8:60:5]:
        async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
            await client.send(request_bytes("POST", CHAT, auth(customer), body[:3000]), split=pieces)
            if len(body) > 3000:
                continue
            answer = await client.response()
        assert (answer.status, error_code(answer)) == (400, code)
    assert simulator.book.requests == before


OTHER_BODIES = [
    ("/v1/messages", b'{"model":"claude-sonnet-5","messages":[],"max_tokens":"9"}', "invalid_type"),
    ("/v1/messages", b'{"model":"claude-sonnet-5","messages":[],"max_tokens":1,"max_tokens":2}', "duplicate_key"),
    ("/v1/messages", b'{"messages":[],"max_tokens":1}', "missing_model"),
    ("/v1/messages", b"{]", "malformed_json"),
    ("/v1/responses", b'{"model":"gpt-5","input":"x","max_output_tokens":-5}', "invalid_value"),
    ("/v1/responses", b'{"model":"gpt-5","input":"x","background":"yes"}', "invalid_type"),
    ("/v1/embeddings", b'{"model":7,"input":"x"}', "invalid_type"),
    ("/v1beta/models/gemini-2.5-flash:generateContent", b'{"contents":7}', "invalid_type"),
    ("/v1beta/models/gemini-2.5-flash:generateContent", b'{"contents":[],"contents":[]}', "duplicate_key"),
    (
        "/v1beta/models/gemini-2.5-flash:generateContent",
        b'{"contents":[],"generationConfig":{"maxOutputTokens":1.5}}',
        "invalid_type",
    ),
    (
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        b'{"contents":[],"generationConfig":{"maxOutputTokens":-3}}',
        "invalid_value",
    ),
]


async def test_bodies_of_other_dialects(customer: Customer, simulator: Running):
    before = simulator.book.requests
    for path, body, code in OTHER_BODIES:
        answer = await post(customer, path, body)
        assert (answer.status, error_code(answer)) == (400, code), (path, body, answer.body)
    assert simulator.book.requests == before


async def test_unusual_bodies_that_are_right(customer: Customer, simulator: Running):
    """Escapes, white space, deep nesting, unknown fields, null for absent: all pass, byte for byte."""
    bodies = [
        b'  \r\n\t{ "mod\\u0065l" :\n"gpt\\u002d4o" ,"messages":[{"role":"user","content":"a"}]}  \n',
        ASK[:-1] + b',"stream":null,"max_tokens":null,"n":null,"stream_options":null}',
        ASK[:-1] + b',"max_completion_tokens":5}',
        ASK[:-1] + b',"a":' + b"[" * 60 + b"]" * 60 + b"}",
        ASK[:-1] + b',"a":{"model":1,"stream":"x","a":1,"a":2},"b":"\\ud800 \xf0\x9f\x98\x80 \\/"}',
        ASK[:-1] + b',"e":-0.0e-00,"f":1E+400}',
    ]
    for body in bodies:
        answer = await post(customer, CHAT, body)
        assert simulator.book.last.body == body
        assert answer.status in (200, 400), answer.body
        assert b"call_" not in answer.body
    await customer.calls(len(bodies))


# -- paths

WRONG_BASES = [
    ("/v1/v1/chat/completions", ASK),
    ("/chat/completions", ASK),
    ("/v1beta/chat/completions", ASK),
    ("/v1/chat/completions/chat/completions", ASK),
    ("/v1/chat/completions/v1/chat/completions", ASK),
    ("/embeddings", b'{"model":"text-embedding-3-small","input":"a"}'),
    ("/v1/v1/responses", b'{"model":"gpt-5","input":"a"}'),
    ("/v1/v1/messages", CLAUDE),
    ("/messages", CLAUDE),
    ("/v1/messages/v1/messages", CLAUDE),
    ("/v1/v1/messages/count_tokens", CLAUDE),
    ("/models/gemini-2.5-flash:generateContent", GEMINI),
    ("/v1/models/gemini-2.5-flash:generateContent", GEMINI),
    ("/v1beta/v1beta/models/gemini-2.5-flash:generateContent", GEMINI),
    ("/v1beta/models/gemini-2.5-flash%3AgenerateContent", GEMINI),
    ("/v1//chat/completions", ASK),
    ("//v1/chat/completions", ASK),
    ("/v1/chat//completions/", ASK),
    ("/v1/messages/", CLAUDE),
    ("//v1beta/models/gemini-2.5-flash:generateContent/", GEMINI),
    ("/v1beta/openai/chat/completions", ASK),
    ("/api/v1/chat/completions", ASK),
    ("/v1/chat/completions?", ASK),
    ("/v1/messages?beta=true", CLAUDE),
]


async def test_wrong_base_urls_are_served_as_what_they_mean(customer: Customer, simulator: Running):
    for path, body in WRONG_BASES:
        more = {"anthropic-version": "2023-06-01"} if body is CLAUDE else {}
        answer = await post(customer, path, body, **more)
        assert answer.status == 200, (path, answer.body)
        sent_to = simulator.book.last.path
        assert sent_to in (
            "/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
            "/v1beta/models/gemini-2.5-flash:generateContent", "/v1/messages?beta=true",
        ), (path, sent_to)  # fmt: skip
        assert simulator.book.last.body == body
    await customer.calls(len(WRONG_BASES))


async def test_model_lists_under_wrong_base_urls(customer: Customer):
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        for path in (
            "/v1/models",
            "/models",
            "/v1/v1/models",
            "/v1beta/models",
            "/v1beta/v1beta/models",
            "//v1/models/",
        ):
            answer = await client.request("GET", path, auth(customer))
            assert answer.status == 200, path
            assert "models" if "beta" in path else "data" in json.loads(answer.body)


STRANGE_PATHS = [
    "/", "/v1", "/v1/", "/v2/chat/completions", "/v1/chat", "/v1/./chat/completions", "/v1/../v1/chat/completions",
    "/v1/chat/../chat/completions", "/../v1/chat/completions", "/v1/%2e%2e/v1/chat/completions",
    "/v1/chat%2fcompletions", "/v1/chat%2Fcompletions", "/v1%2Fchat%2Fcompletions", "/v1/chat%5ccompletions",
    "/v1/chat\\completions", "/v1/chat/completions%00", "/v1/chat/completions;x=y", "/v1/chat/completions%3Fa=b",
    "/V1/chat/completions", "/v1/Chat/Completions", "/v1/chat/completions%20", "/v1/%63hat/completions",
    "/v1beta/models/..%2f..%2fadmin:generateContent", "/v1beta/models/../gemini-2.5-flash:generateContent",
    "/v1beta/models/gemini-2.5-flash%2F..:generateContent", "/v1beta/models/a/b:generateContent",
    "/v1beta/models/:generateContent", "/v1beta/models/gemini-2.5-flash:unknownMethod",
    "/v1beta/models/gemini-2.5-flash:generateContent:generateContent", "/v1beta/models/gemini-2.5-flash",
    "/v1/models/gpt-4o/../../x", "/.git/config", "/admin", "/v1/organization/api_keys", "/v1/fine_tuning/jobs",
    "/sim/book", "/v1/" + "a" * 5000,
]  # fmt: skip


async def test_paths_that_are_not_served(customer: Customer, simulator: Running):
    before = simulator.book.requests
    for path in STRANGE_PATHS:
        answer = await post(customer, path, ASK)
        assert answer.status in (400, 404, 405), (path, answer.status)
        assert "error" in json.loads(answer.body), path
        assert path.encode() not in answer.body or len(path) < 5
        assert answer.header("server") in (None, "relay")
    assert simulator.book.requests == before


async def test_methods(customer: Customer, simulator: Running):
    before = simulator.book.requests
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS"):
            answer = await client.request(method, CHAT, auth(customer))
            assert (answer.status, answer.header("allow")) == (405, "POST"), method
        probe = await client.request("HEAD", "/")
        assert (probe.status, probe.body) == (200, b"")
        assert (await client.request("GET", "/")).status == 200
        assert (await client.request("GET", "/healthz")).status == 200
        assert (await client.request("GET", "/readyz")).status == 200
        assert (await client.request("POST", "/v1/models", auth(customer), b"{}")).status in (404, 405)
    answers = await exchange(customer, b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
    assert [(answer.status, error_code(answer)) for answer in answers] == [(400, "malformed_http")]
    assert simulator.book.requests == before


async def test_a_websocket_upgrade(customer: Customer):
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        answer = await client.request("GET", "/v1/responses", auth(customer) | upgrade)
    assert answer.status == 426
    assert error_code(answer) == "upgrade_required"
    assert answer.header("upgrade")


# -- HTTP


def raw_request(customer: Customer, *lines: str, target: str = CHAT, body: bytes = ASK, host: bool = True) -> bytes:
    head = [f"POST {target} HTTP/1.1"]
    if host:
        head.append("Host: relay")
    head += [f"Authorization: Bearer {customer.secret}", *lines]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


SIZE = f"Content-Length: {len(ASK)}"
CHUNKED_ASK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(ASK), ASK)
BAD_HTTP = {
    "length and chunked": ([SIZE, "Transfer-Encoding: chunked"], CHUNKED_ASK),
    "chunked and length": (["Transfer-Encoding: chunked", SIZE], CHUNKED_ASK),
    "two lengths": ([SIZE, f"Content-Length: {len(ASK) + 1}"], ASK),
    "length list": ([f"Content-Length: {len(ASK)}, {len(ASK)}"], ASK),
    "signed length": ([f"Content-Length: +{len(ASK)}"], ASK),
    "negative length": (["Content-Length: -1"], ASK),
    "hex length": (["Content-Length: 0x41"], ASK),
    "length in words": (["Content-Length: many"], ASK),
    "blank before colon": ([f"Content-Length : {len(ASK)}"], ASK),
    "chunked twice": (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], CHUNKED_ASK),
    "chunked not last": (["Transfer-Encoding: chunked, identity"], CHUNKED_ASK),
    "unknown coding": (["Transfer-Encoding: xchunked"], CHUNKED_ASK),
    "hidden coding": (["Transfer-Encoding: \x0bchunked"], CHUNKED_ASK),
    "two hosts": ([SIZE, "Host: other"], ASK),
    "host with path": ([SIZE], ASK),
    "folded field": ([SIZE, "X-A: b", " c"], ASK),
    "field without colon": ([SIZE, "nonsense"], ASK),
    "empty name": ([SIZE, ": x"], ASK),
    "control byte": ([SIZE, "X-A: \x01"], ASK),
    "nul": ([SIZE, "X-A: a\x00b"], ASK),
    "bad chunk size": (["Transfer-Encoding: chunked"], b"zz\r\n" + ASK + b"\r\n0\r\n\r\n"),
    "chunk too long": (["Transfer-Encoding: chunked"], b"5\r\n" + ASK + b"\r\n0\r\n\r\n"),
    "negative chunk": (["Transfer-Encoding: chunked"], b"-5\r\n" + ASK + b"\r\n0\r\n\r\n"),
    "long field": ([SIZE, "X-A: " + "a" * 20_000], ASK),
    "long head": ([SIZE, *[f"X-{number}: {'a' * 1000}" for number in range(100)]], ASK),
    "many fields": ([SIZE, *[f"X-{number}: a" for number in range(5000)]], ASK),
}


@pytest.mark.parametrize("case", BAD_HTTP)
async def test_bad_http(customer: Customer, simulator: Running, case: str):
    """400 (or 413, 431), the connection closes, and nothing is read as a second request."""
    before = simulator.book.requests
    lines, body = BAD_HTTP[case]
    data = raw_request(customer, *lines, body=body)
    if case == "host with path":
        data = data.replace(b"Host: relay", b"Host: relay/admin")
    answers = await exchange(customer, data + raw_request(customer, SIZE))
    assert [answer.status for answer in answers] in ([400], [413], [431]), [a.body for a in answers]
    for piece in (b"nonsense", b"xchunked", customer.secret.encode()):
        assert piece not in answers[0].body, "an error must not quote the request"
    assert simulator.book.requests == before


TARGETS = [
    "http://relay/v1/chat/completions", "http://evil.example/v1/chat/completions", "evil.example/v1/chat/completions",
    "*", "v1/chat/completions", "https://127.0.0.1/v1/chat/completions", "/v1/chat/completions#fragment",
    "", "/v1/chat/completions\t", "/v1/chat completions",
]  # fmt: skip


async def test_strange_targets(customer: Customer, simulator: Running):
    """Absolute-form, authority, fragments, blanks: never an upstream call to anywhere else."""
    before = simulator.book.requests
    for target in TARGETS:
        answers = await exchange(customer, raw_request(customer, SIZE, target=target), closes=False)
        assert answers, target
        assert answers[0].status in (400, 404, 405), (target, answers[0].status)
    assert simulator.book.requests == before


async def test_hosts(customer: Customer, simulator: Running):
    before = simulator.book.requests
    for host in ("", "a b", "a,b", "user@relay", "relay/..", "relay?x", "re\xe9lay", "a;b", "<script>"):
        data = raw_request(customer, f"Host: {host}", SIZE, host=False)
        answers = await exchange(customer, data)
        assert [answer.status for answer in answers] == [400], host
    answers = await exchange(customer, raw_request(customer, SIZE, host=False))
    assert [answer.status for answer in answers] == [400]
    assert simulator.book.requests == before
    # Any plain name is fine, and stays here: the upstream sees its own.
    answers = await exchange(
        customer, raw_request(customer, "Host: evil.example", SIZE, "Connection: close", host=False)
    )
    assert [answer.status for answer in answers] == [200]
    assert simulator.book.last.header("host") == f"127.0.0.1:{simulator.port}"


BAD_LINES = [
    b"\r\n\r\n\r\nGARBAGE\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(60)),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST /v1/chat/completions\r\n\r\n",
    b"POST /v1/chat/completions HTTP/9.9\r\nHost: a\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1.1\r\nHost: a\r\n\r\n",
    b"POST /v1/chat/completions HTTPS/1.1\r\nHost: a\r\n\r\n",
    b"P\xc3\x96ST / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST " + b"/" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"A" * 100_000,
]


async def test_no_http_at_all(customer: Customer, simulator: Running):
    before = simulator.book.requests
    for data in BAD_LINES:
        answers = await exchange(customer, data)
        assert [answer.status for answer in answers] in ([400], [414], [431], []), data[:40]
    assert simulator.book.requests == before
    assert (await post(customer, CHAT, ASK)).status == 200


async def test_bare_line_feeds_are_no_line_ends(customer: Customer, simulator: Running):
    """Where two parsers could disagree about the end of a head, there is no call."""
    before = simulator.book.requests
    data = [
        raw_request(customer, SIZE).replace(b"\r\n", b"\n", 4),
        raw_request(customer, SIZE).replace(b"\r\n", b"\n"),
        raw_request(customer, SIZE).replace(b"\r\n\r\n", b"\n\r\n"),
        raw_request(customer, "X-A: b\nContent-Length: 0", SIZE),
        raw_request(customer, "X-A: b\rContent-Length: 0", SIZE),
    ]
    for answers in await asyncio.gather(*[exchange(customer, each) for each in data]):
        assert [answer.status for answer in answers] in ([400], [])
    assert simulator.book.requests == before


# -- unusual, and right


async def test_expect_100_continue(customer: Customer, simulator: Running):
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        whole = request_bytes("POST", CHAT, auth(customer, Expect="100-continue"), ASK)
        await client.send(whole[: -len(ASK)])
        assert (await client.until_contains(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 Continue\r\n")
        await client.send(ASK)
        assert (await client.response()).status == 200
        assert simulator.book.last.header("expect") is None
        # It may also send the body at once.
        await client.send(whole)
        assert (await client.response()).status == 200
    answers = await exchange(customer, raw_request(customer, SIZE, "Expect: 200-ok", "Connection: close"))
    assert [answer.status for answer in answers] == [417]


async def test_a_refusal_does_not_ask_for_the_body(customer: Customer, simulator: Running):
    before = simulator.book.requests
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        head = {"Expect": "100-continue", "Content-Length": str(BODY_BYTES_MAX * 100)}
        await client.send(request_bytes("POST", CHAT, auth(customer) | head))
        answer = await client.response()
        assert (answer.status, error_code(answer)) == (413, "body_too_large")
        assert b"100 Continue" not in client.received
    assert simulator.book.requests == before


@pytest.mark.parametrize("split", [0, 1, 7])
async def test_chunked_request_bodies(customer: Customer, simulator: Running, split: int):
    """They go on with a length; the bytes are the same."""
    third = len(ASK) // 3
    parts = [ASK[:third], ASK[third : 2 * third], ASK[2 * third :]]
    bodies = [
        b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n",
        b"".join(b"%X;a=b\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n",
        b"".join(b"000%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nX-Trailer: a\r\n\r\n",
    ]
    for body in bodies:
        async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
            data = raw_request(customer, "Transfer-Encoding: chunked", body=body)
            await client.send(data + data, split=split)
            for _ in range(2):
                answer = await client.response()
                assert answer.status == 200
        entry = simulator.book.last
        assert entry.body == ASK
        assert entry.header("content-length") == str(len(ASK))
        assert entry.header("transfer-encoding") is None
        assert entry.header("x-trailer") is None


async def test_a_chunked_body_that_grows_too_large(customer: Customer, simulator: Running):
    before = simulator.book.requests
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(raw_request(customer, "Transfer-Encoding: chunked", body=b""))
        piece = b" " * 65_536
        for _ in range(20):
            await client.send(b"10000\r\n" + piece + b"\r\n")
        answer = await client.response()
    assert (answer.status, error_code(answer)) == (413, "body_too_large")
    assert simulator.book.requests == before


@pytest.mark.parametrize("stream", [False, True])
async def test_http_1_0(customer: Customer, simulator: Running, stream: bool):
    body = ASK[:-1] + b',"stream":true}' if stream else ASK
    data = request_bytes("POST", CHAT, auth(customer), body).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)
    for request in (data, data.replace(b"Host: test\r\n", b"")):
        async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
            await client.send(request)
            answer = await client.response()
            await client.until_lost()
        assert answer.status == 200
        assert answer.header("transfer-encoding") is None
        assert answer.body == simulator.book.last.sent
    assert all(record["cost"] != "0" for record in await customer.calls(2))


@pytest.mark.parametrize("split", [0, 1, 11])
async def test_pipelined_requests_are_answered_in_order(customer: Customer, simulator: Running, split: int):
    """Of every kind: plain calls, calls by the other way in, lists, refusals; the slow ones first."""

    def say(marker: str, more: str = "") -> bytes:
        text = f"{marker} #sim events=2 {more}#"
        return json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}).encode()

    requests = [
        request_bytes("POST", CHAT, auth(customer), say("a", "first_ms=60")),
        request_bytes("POST", CHAT, auth(customer), say("b")),
        request_bytes("POST", CHAT, auth(customer), b"{"),
        request_bytes("POST", "/v1" + CHAT, auth(customer), say("c", "first_ms=30")),
        request_bytes("GET", "/v1/models", auth(customer)),
        request_bytes("POST", CHAT, auth(customer), say("d", "status=429")),
        request_bytes("POST", CHAT, auth(customer), say("e")),
        request_bytes("GET", "/nothing", auth(customer)),
        request_bytes("POST", CHAT, auth(customer), say("f")),
    ]
    before = simulator.book.requests
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(b"".join(requests), split=split)
        answers = [await client.response() for _ in requests]
    assert [answer.status for answer in answers] == [200, 200, 400, 200, 200, 429, 200, 404, 200]
    sent = [entry for entry in simulator.book.entries if entry.number > simulator.book.last.number - 6]
    assert [json.loads(entry.body)["messages"][0]["content"][0] for entry in sent] == list("abcdef")
    assert [answer.body for answer in answers if answer.status in (200, 429)][:2] == [sent[0].sent, sent[1].sent]
    assert simulator.book.requests == before + 6


async def test_a_body_in_single_bytes(customer: Customer, simulator: Running):
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        for path in (CHAT, "/v1" + CHAT):
            await client.send(request_bytes("POST", path, auth(customer), ASK), split=1)
            assert (await client.response()).status == 200
            assert simulator.book.last.body == ASK


# -- slow clients


async def test_a_head_that_does_not_arrive(customer: Customer):
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(raw_request(customer, SIZE)[:40])
        received = await client.until_lost(6.0)
    assert received in (b"", received)
    assert b"200 OK" not in received


@pytest.mark.parametrize("path", [CHAT, "/v1" + CHAT])
async def test_a_body_that_does_not_arrive(customer: Customer, simulator: Running, path: str):
    before = simulator.book.requests
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(raw_request(customer, SIZE, target=path)[:-5])
        answer = await client.response(timeout_seconds=6.0)
    assert (answer.status, error_code(answer)) == (408, "body_timeout")
    assert simulator.book.requests == before
    assert (await customer.call())["error_code"] == "body_timeout"
