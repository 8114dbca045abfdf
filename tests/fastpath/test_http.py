"""Heads, chunked framing and the keyed hash, against plain Python."""

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relay._fastpath import AnswerReader, decode_chunked, keyed_hash, parse_request_head, parse_response_head
from relay.wire import headers
from tests.support import http_oracle as oracle

TABLE = oracle.field_table()

NAMES = [
    *(b"Server", b"ETag", b"Content-Range"),
    *(b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"Upgrade", b"Content-Encoding"),
    *(b"Content-Type", b"Authorization", b"X-Api-Key", b"x-goog-api-key", b"User-Agent", b"X-Relay-Max-Cost"),
    *(b"X-Forwarded-For", b"Retry-After", b"x-stainless-lang", b"anthropic-version", b"session_id", b"openai-beta"),
    *(
        b"x-ratelimit-limit-requests",
        b"X-RateLimit",
        b"x-request-id",
        b"Set-Cookie",
        b"x-relay-channel",
        b"te",
        b"Date",
    ),
    *(b"ratelimit", b"anthropic-ratelimit-tokens", b"anthropic-priority", b"cf-ray", b"x", b"a^b", b"session~id"),
    *(b"traceparent", b"Idempotency-Key", b"x-relay-usage", b"ETag", b"Api-Key", b"Sec-Fetch-Mode", b"sec-fetch-dest"),
    *(b"Origin", b"origin"),
    *(b"Location", b"access-control-allow-origin", b"content-security-policy"),
]
VALUES = [
    *(
        b"",
        b"chunked",
        b"close",
        b"keep-alive",
        b"Keep-Alive",
        b"identity",
        b"gzip",
        b"12",
        b"0",
        b"+1",
        b"1" * 16,
        b"1" * 15,
    ),
    *(
        b"application/json",
        b"text/event-stream; charset=utf-8",
        b"Text/Event-Stream",
        b"example.com:80",
        b"[::1]",
        b"a/b",
    ),
    *(
        b"Application/JSON; charset=UTF-8",
        b"application/json;charset=utf-7",
        b"application/json, text/html",
        b"text/html",
    ),
    *(b"application/json ; a=b", b"application/jsonx", b"text/event-streamx", b"text/event-stream;a,text/html"),
    *(
        b"navigate",
        b"document",
        b"empty",
        b"cors",
        b"bearer",
        b"BEARER\tsk-5",
        b"Bearersk-6",
        b"Bearer  ",
        b"Digest a b",
    ),
    *(b"Bearer sk-1", b"bearer   sk-2", b"Basic x", b"sk-1", b"sk-3", b"0.25", b"1.0000000001", b"999999999.999999999"),
    *(
        b"x-request-id, Date",
        b"close, cf-ray",
        b"10.0.0.1",
        b"a \t b",
        b"\x7f",
        b"caf\xc3\xa9",
        b"a\x00b",
        b"a\tb",
        b"v" * 40,
    ),
    *(b"t" * 128, b"t" * 129, b"i" * 255, b"i" * 256, b"include"),
]

known = st.sampled_from(NAMES)
names = st.one_of(
    known, known.map(bytes.swapcase), known.map(lambda name: name + b"-x"), st.binary(min_size=1, max_size=50)
)
values = st.one_of(st.sampled_from(VALUES), st.binary(max_size=60), st.text("abc 12\t~", max_size=80).map(str.encode))
lines = st.builds(
    lambda name, before, value, after, end: name + b":" + before + value + after + end,
    names,
    st.sampled_from([b" ", b"", b"\t ", b"  "]),
    values,
    st.sampled_from([b"", b" ", b" \t"]),
    st.sampled_from([b"\r\n"] * 20 + [b"\n", b"\r", b"\r\r\n"]),
)
blocks = st.lists(lines, max_size=8).map(lambda parts: b"".join(parts) + b"\r\n")


@given(block=blocks, dialect=st.integers(0, 2))
def test_request_fields_are_their_oracle(block: bytes, dialect: int) -> None:
    head = parse_request_head(block, dialect, TABLE)
    expected = oracle.request_head(block, dialect)
    if expected is None:
        assert head["odd"]
    else:
        assert head == expected


@given(name=st.sampled_from(NAMES), value=st.sampled_from(VALUES), dialect=st.integers(0, 2))
def test_every_known_field_is_read_as_the_oracle_does(name: bytes, value: bytes, dialect: int) -> None:
    block = b"Host: h\r\n" + name + b": " + value + b"\r\nContent-Length: 1\r\n\r\n"
    head = parse_request_head(block, dialect, TABLE)
    assert (None if head["odd"] else head) == oracle.request_head(block, dialect)


KEY_FIELDS = st.tuples(
    st.sampled_from([b"authorization", b"x-api-key", b"x-goog-api-key", b"api-key", b"Authorization", b"cookie"]),
    st.builds(
        lambda scheme, blanks, word: scheme + blanks + word,
        st.sampled_from([b"", b"Bearer", b"bearer", b"BEARER", b"Basic", b"Bearerx"]), st.sampled_from([b"", b" ",
        b"\t", b"  "]),
        st.sampled_from([b"", b"sk-1", b"sk-2", b"a b", b"sk-3"]),
    ),
)  # fmt: skip


@given(st.lists(KEY_FIELDS, max_size=12))
def test_finding_wire_L4_keys_are_read_in_one_way(fields: list[tuple[bytes, bytes]]) -> None:
    """The compiled reader and the one for everything else find the same keys in the same order."""
    block = b"Host: h\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in fields) + b"\r\n"
    found = parse_request_head(block, 0, TABLE)["secrets"]
    assert found == headers.secrets(fields)
    assert len(found) <= headers.SECRETS_MAX


# A head that may be served, and one byte of it changed, added or missing.
served = st.builds(
    lambda before, more: (
        b"Host: h.example\r\n" + b"".join(before) + b"Content-Length: 4\r\n" + b"".join(more) + b"\r\n"
    ),
    st.lists(lines, max_size=2),
    st.lists(lines, max_size=2),
)
near = st.builds(
    lambda block, at, byte, drop: block[: at % len(block)] + byte + block[at % len(block) + drop :],
    served,
    st.integers(0, 200),
    st.one_of(
        st.binary(max_size=1), st.sampled_from([b"\0", b"\n", b"\r", b" ", b"\t", b":", b",", b"\x80", b"\xff", b";"])
    ),
    st.integers(0, 1),
)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(block=st.one_of(served, near, near, blocks))
@example(block=b"Host: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\n")  # nothing may come after it
def test_nothing_is_served_that_aiohttps_parser_refuses(loop: asyncio.AbstractEventLoop, block: bytes) -> None:
    """And what is served says the same to both: the fields, and where the body ends."""
    head = parse_request_head(block, 0, TABLE)
    if head["odd"] or head["hosts"] != 1 or head["length"] < 0:
        return  # handed over
    body = b"x" * head["length"] if head["length"] < 1000 else b""
    found = oracle.REQUEST_FIELDS.match(block)
    assert found is not None
    protocol = BaseProtocol(loop)
    protocol.connection_made(asyncio.Transport())
    parser = HttpRequestParser(protocol, loop, 2**16, max_line_size=8190, max_field_size=8190, auto_decompress=False)
    # What comes after the body belongs to the next request. aiohttp refuses it where there is to be none.
    more = b"" if head["close"] else b"GET"
    messages, upgraded, _ = parser.feed_data(b"POST /v1/x HTTP/1.1\r\n" + found[0] + body + more)
    assert not upgraded
    message, payload = messages[0]
    fields = [(name.lower(), value) for name, value, _ in oracle.lines_of(found[1])]
    assert [(name.lower(), value.strip(b" \t")) for name, value in message.raw_headers] == fields
    assert (message.chunked, message.upgrade, message.should_close) == (False, False, head["close"])
    if body:
        assert (payload.total_bytes, payload.is_eof(), len(messages)) == (head["length"], True, 1)


@pytest.mark.parametrize("fields", [64, 65])
def test_requests_have_a_limit_of_fields(fields: int) -> None:
    block = b"x: y\r\n" * fields + b"\r\n"
    assert parse_request_head(block, 0, TABLE)["odd"] == (fields > 64) == (oracle.request_head(block, 0) is None)


@pytest.mark.parametrize("size", [8190, 8191])
def test_lines_have_a_limit(size: int) -> None:
    line = b"x: " + b"y" * (size - 3) + b"\r\n"
    assert parse_request_head(line + b"\r\n", 0, TABLE)["odd"] == (size > 8190)
    head = b"HTTP/1.1 200 OK\r\n" + line + b"\r\n"
    assert (parse_response_head(head, TABLE) is None) == (size > 8190) == (oracle.response_head(head) is None)


status_lines = st.one_of(
    st.builds(
        lambda minor, status, reason: b"HTTP/1.%d %d %s\r\n" % (minor, status, reason),
        st.integers(0, 1),
        st.sampled_from([200, 200, 200, 100, 103, 204, 304, 400, 429, 500, 599]),
        st.sampled_from([b"OK", b"", b"a b"]),
    ),
    st.sampled_from([b"HTTP/1.1 600 OK\r\n", b"HTTP/1.1 200\r\n", b"HTTP/2.0 200 OK\r\n", b"HTTP/1.1  200 OK\r\n"]),
    st.binary(max_size=30).map(lambda text: text + b"\r\n"),
)


@pytest.mark.parametrize("name", NAMES)
def test_every_known_field_of_an_answer_passes_as_the_oracle_says(name: bytes) -> None:
    for value in VALUES:
        head = b"HTTP/1.1 200 OK\r\n" + name + b": " + value + b"\r\n\r\n"
        assert parse_response_head(head, TABLE) == oracle.response_head(head)


@given(first=status_lines, block=blocks, cut=st.integers(0, 400))
def test_response_heads_are_their_oracle(first: bytes, block: bytes, cut: int) -> None:
    head = first + block
    assert parse_response_head(head, TABLE) == oracle.response_head(head)
    assert parse_response_head(head[:cut], TABLE) == oracle.response_head(head[:cut])


chunks = st.lists(
    st.builds(
        lambda size, data, tail: size + b"\r\n" + data + tail,
        st.sampled_from([b"5", b"05", b"5;a=b", b"0", b"0005 ", b"A", b"fffffffffffffff", b"1" * 16, b""]),
        st.sampled_from([b"Hello", b"0123456789", b"", b"\r\n"]),
        st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b""]),
    ),
    max_size=5,
).map(b"".join)


@given(
    body=chunks,
    end=st.sampled_from([b"0\r\n\r\n", b"00\r\nA: b\r\n\r\nrest", b"", b"0\r\n\n"]),
    cuts=st.sets(st.integers(0, 90), max_size=8),
)
def test_chunked_bodies_are_their_oracle(body: bytes, end: bytes, cuts: set[int]) -> None:
    data = body + end
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]
    whole = decode_chunked([data])
    assert decode_chunked([data[a:b] for a, b in itertools.pairwise(edges)]) == whole
    expected = oracle.chunked(data)
    assert (whole[1] == "end") == (expected is not None)
    assert expected is None or (whole[0], whole[2]) == expected


@given(
    first=status_lines,
    fields=st.sampled_from(
        [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 0\r\n", b"", None]
    ),
    block=blocks,
    body=chunks,
    end=st.sampled_from([b"0\r\n\r\n", b"0\r\nA: b\r\n\r\nrest", b"", b"0\r\n\n"]),
    early=st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n"]),
    cuts=st.sets(st.integers(0, 300), max_size=8),
)
def test_an_answer_is_read_as_its_oracles_do(
    first: bytes, fields: bytes | None, block: bytes, body: bytes, end: bytes, early: bytes, cuts: set[int]
) -> None:
    head = first + (block if fields is None else fields + b"\r\n")
    data = early + head + body + end
    reader = AnswerReader(TABLE)
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]
    read = b"".join(reader.feed(data[a:b]) for a, b in itertools.pairwise(edges))
    while (at := (data.find(b"\r\n\r\n") + 4)) >= 4 and (found := oracle.response_head(data[:at])) and found[0] < 200:
        if found[0] == 101:
            assert reader.bad
            return
        data = data[at:]
    if at < 4 or found is None:
        assert not reader.begun
        return
    rest = data[at:]
    assert (reader.status, reader.lines) == (found[0], found[6])
    whole = reader.ended
    if found[1] == "none":
        assert (read, whole) == (b"", True)
    elif found[1] == "length":
        assert (read, whole, reader.length) == (rest[: found[2]], len(rest) >= found[2], found[2])
    elif found[1] == "close":
        assert (read, whole, reader.end()) == (rest, False, True)
    else:
        expected = oracle.chunked(rest)
        assert whole == (expected is not None)
        assert expected is None or read == expected[0]
        assert reader.end() == whole


@given(key=st.binary(min_size=16, max_size=16), data=st.binary(max_size=140))
def test_the_keyed_hash_is_siphash(key: bytes, data: bytes) -> None:
    assert keyed_hash(key, data) == oracle.siphash(key, data)


def test_the_keyed_hash_has_the_published_values() -> None:
    """The first vectors of the authors' own table for 128 bits: key 00..0f, messages of no byte and of one."""
    key = bytes(range(16))
    assert keyed_hash(key, b"").hex() == "a3817f04ba25a8e66df67214c7550293"
    assert keyed_hash(key, b"\0").hex() == "da87c1d86b99af44347659119b22fc45"
    with pytest.raises(ValueError, match="16 bytes"):
        keyed_hash(b"short", b"")
