"""How answers leave: framing, pace, splits, compression, cuts and stalls, and what the book says about them."""

import asyncio
import gzip
import json
import zlib

import brotli
import pytest
import zstandard

from relay.simulator import Running, start
from relay.simulator.directives import CHOICES, DirectiveError, directives_of
from tests.support import http1
from tests.support.rawclient import RawClient

KEY = {"Authorization": "Bearer sim-key", "Content-Type": "application/json"}


def body(directives: str, **more: object) -> bytes:
    asked = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"Hello #sim {directives}#"}], "stream": True}
    return json.dumps({**asked, **more}).encode()


def ask(directives: str, **more: object) -> bytes:
    return http1.request_bytes("POST", "/v1/chat/completions", KEY, body(directives, **more))


async def connect(simulator: Running) -> RawClient:
    return await RawClient.connect(simulator.host, simulator.port)


async def fetch(simulator: Running, directives: str, **more: object) -> http1.Message:
    async with await connect(simulator) as client:
        await client.send(ask(directives, **more))
        return await client.response()


async def test_book_and_wire_agree(simulator):
    answer = await fetch(simulator, "events=20")
    entry = simulator.book.last
    assert answer.complete
    assert answer.body == bytes(entry.sent)
    assert entry.body_bytes_sent == len(answer.body)
    assert entry.wire_bytes_sent == len(answer.raw)
    assert entry.events_sent == len(answer.chunks) == 23  # role, text, finish, [DONE]
    assert entry.body == body("events=20")
    assert entry.output_tokens == entry.output_tokens_sent == 20
    assert (entry.outcome, entry.status, entry.model, entry.stream) == ("finished", 200, "gpt-4o", True)
    assert entry.header("authorization") == "Bearer sim-key"


async def test_a_connection_serves_again(simulator):
    async with await connect(simulator) as client:
        for directives in ("events=3", "events=3 encoding=gzip", "events=2 split=5"):
            await client.send(ask(directives))
            assert (await client.response()).complete
        whole = await client.request("POST", "/v1/chat/completions", KEY, body("events=2", stream=False))
        assert whole.header("content-length") == str(len(whole.body))
        error = await client.request("POST", "/v1/chat/completions", KEY, b"{")
        assert error.status == 400
        assert (await client.request("GET", "/v1/models", KEY)).status == 200
        assert (await client.request("HEAD", "/")).status == 200
        assert not client.lost


async def test_a_seed_fixes_every_byte(simulator):
    one, two = [await fetch(simulator, "seed=7 events=30 size=50 utf8=1") for _ in range(2)]
    other = await fetch(simulator, "seed=8 events=30 size=50 utf8=1")
    assert one.body == two.body != other.body
    texts = [
        json.loads(line[6:])["choices"][0]["delta"].get("content")
        for line in one.body.split(b"\n")
        if line.startswith(b"data: {")
    ]
    assert [len(text.encode()) for text in texts[1:-1]] == [50] * 30


async def test_headers_look_real(simulator):
    answer = await fetch(simulator, "")
    for name in ("openai-organization", "openai-processing-ms", "x-ratelimit-limit-requests", "x-request-id", "cf-ray"):
        assert answer.header(name)
    assert len(answer.all("set-cookie")) == 2
    async with await connect(simulator) as client:
        anthropic = await client.request(
            "POST", "/v1/messages", {"x-api-key": "sim-a", "anthropic-version": "2023-06-01"}, b"{}"
        )
        assert (anthropic.status, json.loads(anthropic.body)["error"]["type"]) == (400, "invalid_request_error")
        assert anthropic.header("anthropic-ratelimit-tokens-limit")
        assert anthropic.header("request-id") == json.loads(anthropic.body)["request_id"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("stream", [True, False])
async def test_encodings(simulator, encoding, stream):
    plain = await fetch(simulator, "seed=1 events=10", stream=stream)
    packed = await fetch(simulator, f"seed=1 events=10 encoding={encoding}", stream=stream)
    decode = {
        "gzip": gzip.decompress,
        "deflate": zlib.decompress,
        "br": brotli.decompress,
        "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    }[encoding]
    assert packed.header("content-encoding") == encoding
    assert decode(packed.body) == plain.body
    if stream:
        assert len(packed.chunks) >= 10
        # Each event can be read as soon as it has arrived.
        if encoding == "gzip":
            assert zlib.decompressobj(31).decompress(packed.chunks[0]) == plain.chunks[0]


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"])
async def test_line_ends_and_comments(simulator, eol):
    name = {b"\n": "lf", b"\r\n": "crlf", b"\r": "cr"}[eol]
    answer = await fetch(simulator, f"events=4 eol={name} comments=2 bom=1 blank=1")
    assert answer.body.startswith(b"\xef\xbb\xbf" + eol + b": SIMULATED PROCESSING" + eol + eol)
    assert answer.body.endswith(b"data: [DONE]" + eol + eol)
    assert answer.body.count(b": SIMULATED") == 4
    assert (b"\n" in answer.body, b"\r" in answer.body) == (b"\n" in eol, b"\r" in eol)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("at", [0, 1, 700])
async def test_cut(simulator, how, at):
    plain = await fetch(simulator, "seed=1 events=10")
    async with await connect(simulator) as client:
        await client.send(ask(f"seed=1 events=10 cut={at} cut_how={how}"))
        answer = await client.response()
        await client.until_lost()
        assert client.was_reset == (how == "rst")
    assert not answer.complete
    assert answer.body == plain.body[:at]
    assert simulator.book.last.outcome == "cut"
    assert simulator.book.last.body_bytes_sent == at


async def test_cut_elsewhere(simulator):
    async with await connect(simulator) as client:
        await client.send(ask("events=3 cut_head=20"))
        assert len(await client.until_lost()) == 20
    answer = await fetch(simulator, "events=3 cut=end")
    assert not answer.complete
    assert answer.body.endswith(b"[DONE]\n\n")
    answer = await fetch(simulator, "events=3 cut=30", stream=False)
    assert not answer.complete
    assert len(answer.body) == 30
    answer = await fetch(simulator, "events=3 cut=99999")
    assert answer.complete  # the cut lies behind the end
    answer = await fetch(simulator, "events=3 done=0")
    assert answer.complete
    assert b"[DONE]" not in answer.body


async def test_stall_and_leave(simulator):
    async with await connect(simulator) as client:
        await client.send(ask("events=10 stall=500"))
        await client.until(lambda: (found := http1.parse(client.received)) is not None and len(found.body) == 500)
        await simulator.book.wait(lambda book: book.last.stalled)
        assert simulator.book.last.outcome == "open"
    await simulator.book.wait(lambda book: book.aborted == 1)
    assert simulator.book.last.body_bytes_sent == 500
    assert simulator.book.last.ended


async def test_a_client_that_leaves_is_noticed(simulator):
    async with await connect(simulator) as client:
        await client.send(ask("events=1000 pace_ms=5"))
        await client.until_contains(b"data: ")
        client.reset()
    await simulator.book.wait(lambda book: book.last.outcome == "aborted")
    entry = simulator.book.last
    assert 0 < entry.events_sent < 1000
    assert entry.events_sent - 1 <= entry.output_tokens_sent <= entry.events_sent < entry.output_tokens == 1000
    # Also one that does not read, and one that leaves before its request is complete.
    async with await connect(simulator) as client:
        client.pause_reading()
        await client.send(ask("events=2000 size=100000"))
        await simulator.book.wait(lambda book: book.last.body_bytes_sent > 100_000)
    await simulator.book.wait(lambda book: book.aborted == 2)
    async with await connect(simulator) as client:
        await client.send(ask("events=1")[:-5])
        await simulator.book.wait(lambda book: book.open == 1)
    await simulator.book.wait(lambda book: book.aborted == 3)


async def test_splits_and_packs(simulator):
    plain = await fetch(simulator, "seed=1 events=6")
    async with await connect(simulator) as client:
        await client.send(ask("seed=1 events=6 split=7"))
        answer = await client.response()
        assert answer.body == plain.body
        assert len(client.reads) > len(answer.raw) / 7 / 2  # some may have been joined by the kernel
    async with await connect(simulator) as client:
        await client.send(ask("seed=1 events=6 pack=100"))
        answer = await client.response()
        assert answer.body == plain.body
        assert len(client.reads) == 1
        assert len(answer.chunks) == len(plain.chunks)
    one_byte_chunks = await fetch(simulator, "seed=1 events=6 chunk=1")
    assert one_byte_chunks.body == plain.body
    assert len(one_byte_chunks.chunks) == len(plain.body)


async def test_pace_and_delays(simulator):
    loop = asyncio.get_running_loop()
    async with await connect(simulator) as client:
        began = loop.time()
        await client.send(ask("events=4 first_ms=30 body_ms=30 pace_ms=10"))
        await client.until_contains(b"\r\n\r\n")
        head = loop.time() - began
        assert b"data:" not in client.received
        assert (await client.response()).complete
        assert loop.time() - began >= 0.1
        assert head >= 0.029  # clocks are read in different places
        assert len(client.reads) >= 6


async def test_until_close(simulator):
    for stream in (True, False):
        answer = await fetch(simulator, "events=3 close=1", stream=stream)
        assert answer.complete
        assert answer.header("content-length") is answer.header("transfer-encoding") is None
    async with await connect(simulator) as client:
        await client.send(ask("events=3 keepalive=0"))
        assert (await client.response()).header("connection") == "close"
        await client.until_lost()
    async with await connect(simulator) as client:
        await client.send(ask("events=3").replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await client.response()
        assert answer.complete
        assert answer.header("transfer-encoding") is None


PATHS = {
    "/v1/chat/completions": {"model": "m", "stream": True, "messages": [{"role": "user", "content": "DIRECTIVES"}]},
    "/v1/completions": {"model": "m", "stream": True, "prompt": "DIRECTIVES"},
    "/v1/responses": {"model": "m", "stream": True, "input": "DIRECTIVES"},
    "/v1/messages": {
        "model": "m",
        "stream": True,
        "max_tokens": 99,
        "messages": [{"role": "user", "content": "DIRECTIVES"}],
    },
    "/v1beta/models/m:streamGenerateContent?alt=sse": {"contents": [{"parts": [{"text": "DIRECTIVES"}]}]},
    "/v1beta/models/m:streamGenerateContent": {"contents": [{"parts": [{"text": "DIRECTIVES"}]}]},
}
ANY_KEY = {"Authorization": "Bearer sim-1", "x-api-key": "sim-1", "x-goog-api-key": "sim-1"}


@pytest.mark.parametrize("path", PATHS)
async def test_every_format_counts_what_it_says(simulator, path):
    headers = ANY_KEY | ({"anthropic-version": "2023-06-01"} if path == "/v1/messages" else {})

    def asked(directives: str) -> bytes:
        return http1.request_bytes(
            "POST", path, headers, json.dumps(PATHS[path]).replace("DIRECTIVES", directives).encode()
        )

    async with await connect(simulator) as client:
        for more in ("", "tools=1", "search=1", "utf8=1 size=33"):
            await client.send(asked(f"#sim seed=1 events=6 tokens=3 reasoning=4 {more}#"))
            whole = await client.response()
            assert (whole.status, whole.complete, whole.body) == (200, True, bytes(simulator.book.last.sent))
            assert simulator.book.last.output_tokens == simulator.book.last.output_tokens_sent == 18 + 4
        await client.send(asked("#sim seed=1 events=6 tokens=3 reasoning=4 error_at=2#"))
        assert b'"error"' in (await client.response()).body
        await client.send(asked("#sim seed=1 events=6 tokens=3 reasoning=4 cut=1200#"))
        assert len((await client.response()).body) == 1200
        assert 0 <= simulator.book.last.output_tokens_sent < 22


@pytest.mark.parametrize("path", PATHS)
async def test_broken_usage_is_still_json(simulator, path):
    headers = ANY_KEY | ({"anthropic-version": "2023-06-01"} if path == "/v1/messages" else {})
    async with await connect(simulator) as client:
        for stream in (True, False):
            for how in CHOICES["usage"]:
                body = json.dumps({**PATHS[path], "stream": stream} if "model" in PATHS[path] else PATHS[path])
                target = path if stream or "model" in PATHS[path] else "/v1beta/models/m:generateContent"
                directives = f"#sim usage={how} input=40 cached=4#"
                answer = await client.request("POST", target, headers, body.replace("DIRECTIVES", directives).encode())
                assert answer.status == 200
                if answer.header("content-type").startswith("text/event-stream"):
                    documents = [line[6:] for line in answer.body.splitlines() if line.startswith(b"data: ")]
                else:
                    documents = [answer.body]
                for document in documents:
                    assert document == b"[DONE]" or json.loads(document)


async def test_garbage(simulator):
    async with await connect(simulator) as client:
        await client.send(ask("garbage=1"))
        assert not (await client.until_lost()).startswith(b"HTTP")
    assert simulator.book.last.outcome == "garbage"


USAGE = {"stream_options": {"include_usage": True}}


def reported(answer: http1.Message) -> list[object]:
    """All usage objects of a chat stream, as (prompt, completion)."""
    found = []
    for line in answer.body.split(b"\n"):
        if line.startswith(b"data: {"):
            usage = json.loads(line[6:]).get("usage")
            if usage:
                found.append((usage["prompt_tokens"], usage["completion_tokens"]))
    return found


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("normal", [(40, 8)]), ("missing", []), ("null", []), ("zero", [(0, 0)]), ("negative", [(-5, -5)]),
        ("fraction", [(12.5, 12.5)]), ("text", [("12", "12")]), ("twice", [(20, 4), (40, 8)]),
        ("huge", [(99_999_999_999_999_999_999, 99_999_999_999_999_999_999)]),
    ],
)  # fmt: skip
async def test_broken_usage(simulator, how, expected):
    answer = await fetch(simulator, f"input=40 events=8 usage={how}", **USAGE)
    assert reported(answer) == expected
    whole = await fetch(simulator, f"input=40 events=8 usage={how}", stream=False)
    usage = json.loads(whole.body).get("usage")
    assert [(usage["prompt_tokens"], usage["completion_tokens"])] == expected[-1:] if usage else expected == []
    assert whole.body.count(b'"usage"') == {"missing": 0, "twice": 2}.get(how, 1)
    gemini = json.dumps({"contents": [{"parts": [{"text": f"#sim input=40 usage={how}#"}]}]}).encode()
    claude = json.dumps(
        {
            "model": "c",
            "max_tokens": 99,
            "messages": [{"role": "user", "content": f"#sim usage={how}#"}],
            "stream": True,
        }
    ).encode()
    async with await connect(simulator) as client:
        target = "/v1beta/models/g:streamGenerateContent?alt=sse&key=sim-1"
        answer = await client.request("POST", target, {}, gemini)
        for line in answer.body.split(b"\r\n"):
            assert not line.startswith(b"data: ") or json.loads(line[6:])
        headers = {"x-api-key": "sim-1", "anthropic-version": "2023-06-01"}
        answer = await client.request("POST", "/v1/messages", headers, claude)
        assert answer.body.endswith(b'data: {"type":"message_stop"}\n\n')


async def test_usage_in_other_places(simulator):
    for place, expected in (("finish", 1), ("each", 10), ("choice", 1), ("groq", 1)):
        answer = await fetch(simulator, f"events=8 usage_at={place}")
        assert answer.body.count(b'"completion_tokens":') == expected, place
    answer = await fetch(simulator, "events=8 reasoning=3 shape=xai", **USAGE)
    assert reported(answer)[0][1] == 8
    answer = await fetch(simulator, "events=8 cached=4 shape=deepseek", **USAGE)
    assert b'"prompt_cache_hit_tokens":4' in answer.body


async def test_gemini_array(simulator):
    asked = json.dumps({"contents": [{"parts": [{"text": "#sim events=3 reasoning=1#"}]}]}).encode()
    async with await connect(simulator) as client:
        target = "/v1beta/models/gemini-2.5-flash:streamGenerateContent?key=sim-1"
        answer = await client.request("POST", target, {}, asked)
        array = json.loads(answer.body)
        assert len(array) == len(answer.chunks) - 1 == 5
        assert array[-1]["usageMetadata"]["totalTokenCount"] == array[0]["usageMetadata"]["promptTokenCount"] + 4
        assert answer.header("content-type") == "application/json; charset=UTF-8"
        refused = await client.request("POST", target.replace("sim-1", "real"), {}, asked)
        assert json.loads(refused.body)[0]["error"]["status"] == "INVALID_ARGUMENT"
        embedded = await client.request(
            "POST",
            "/v1beta/models/e:embedContent?key=sim-1",
            {},
            json.dumps({"content": {"parts": [{"text": "a"}]}}).encode(),
        )
        assert len(json.loads(embedded.body)["embedding"]["values"]) == 768


async def test_directives_come_from_everywhere():
    running = await start(defaults="events=2", keys=["one", "two"], models=["gpt-4o"])
    try:
        async with await RawClient.connect(running.host, running.port) as client:
            headers = {"Authorization": "Bearer two", "x-sim": "events=3 status=503"}
            answer = await client.request("POST", "/v1/chat/completions", headers, body("status=429 retry_after=2.5"))
            assert (answer.status, answer.header("retry-after"), answer.header("retry-after-ms")) == (429, "3", "2500")
            answer = await client.request("POST", "/v1/chat/completions", {"Authorization": "Bearer two"}, body(""))
            assert len(answer.chunks) == 5
            running.defaults = "events=4"
            answer = await client.request("POST", "/v1/chat/completions", {"Authorization": "Bearer two"}, body(""))
            assert len(answer.chunks) == 7
            assert (await client.request("PUT", "/sim/defaults", {}, b"events=1")).status == 204
            assert running.defaults == "events=1"
            answer = await client.request("POST", "/v1/chat/completions", KEY, body(""))
            assert answer.status == 401
            answer = await client.request(
                "POST", "/v1/chat/completions", {"Authorization": "Bearer one"}, body("", model="gpt-5")
            )
            assert answer.status == 404
            shown = json.loads((await client.request("GET", "/sim/book?latest=2")).body)
            assert shown["requests"] == 5
            assert [entry["status"] for entry in shown["entries"]] == [401, 404]
            assert (await client.request("DELETE", "/sim/book")).status == 204
            assert running.book.requests == 0
    finally:
        await running.stop()


async def test_stop_ends_what_is_open():
    running = await start()
    async with await connect(running) as client:
        await client.send(ask("stall=10"))
        await running.book.wait(lambda book: book.requests == 1 and book.last.stalled)
        await running.stop()
        await client.until_lost()
    assert running.book.last.outcome in ("stopped", "aborted")


def test_directives_are_checked():
    assert directives_of(b'"#sim events=3 crlf#" and "#sim size=4#"', "events=9 tokens=2").events == 3
    assert directives_of(b"#sim crlf cut=end#").eol == "crlf"
    for wrong in (b"#sim evnts=3#", b"#sim events=many#", b"#sim usage=odd#"):
        with pytest.raises(DirectiveError):
            directives_of(wrong)
