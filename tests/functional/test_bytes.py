"""Byte identity: whatever the upstream sends, however it is cut, is what the client receives, and its usage is read."""

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import brotli
import pytest
import zstandard

from tests.functional.raw_upstream import Close, Exchange, Passed, RawUpstream, Step, Turn
from tests.functional.relay_process import Customer, eventually, nano
from tests.functional.streams import (
    CHAT,
    DOCUMENTS,
    EOLS,
    GEMINI,
    MESSAGES,
    NOT_UTF8,
    RESPONSES,
    STREAMS,
    Sample,
    cost_of,
    head,
)
from tests.support import http1
from tests.support.http1 import chunk_bytes

pytestmark = pytest.mark.asyncio(loop_scope="session")

WORKERS = 16


class Client(asyncio.Protocol):
    """A kept-alive connection that tells an exchange how much of its answer has arrived, while it arrives."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.head_size = 0
        self.wanted = 0
        self.exchange: Exchange | None = None
        self.done: asyncio.Future[None] | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.head_size:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return
            self.head_size = end + 4
        body = len(self.received) - self.head_size
        if self.exchange is not None:
            self.exchange.reached(body)
        if self.done is not None and not self.done.done() and self.wanted and body >= self.wanted:
            self.done.set_result(None)

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.done is not None and not self.done.done():
            self.done.set_result(None)

    async def ask(self, request: bytes, exchange: Exchange | None, wanted: int) -> http1.Message:
        """One request. `wanted`: size of the answer's body on the wire; 0: until its own framing says so."""
        self.received, self.head_size = bytearray(), 0
        self.exchange, self.wanted = exchange, wanted
        self.done = asyncio.get_running_loop().create_future()
        assert isinstance(self.transport, asyncio.Transport) or hasattr(self.transport, "write")
        self.transport.write(request)
        async with asyncio.timeout(20):
            if wanted:
                await self.done
            while (message := http1.parse(bytes(self.received), ended=self.lost)) is None or not message.complete:
                if self.lost:
                    break
                self.done = asyncio.get_running_loop().create_future()
                self.wanted = len(self.received) - self.head_size + 1
                if not self.head_size:
                    self.wanted = 1
                await self.done
        assert message is not None, bytes(self.received)
        assert len(message.raw) == len(self.received)
        return message


async def connect(customer: Customer) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", customer.relay.port)
    return client


async def play(
    customer: Customer,
    raw: RawUpstream,
    sample: Sample,
    scripts: Sequence[Sequence[Step]],
    expected: bytes,
    *,
    wanted: int = 0,
    model: str = "",
) -> list[http1.Message]:
    """Every script once, over a few connections; each answer's body must be `expected`."""
    pending = list(scripts)
    answers: list[http1.Message] = []

    async def work() -> None:
        client = await connect(customer)
        while pending:
            text, exchange = raw.script(*pending.pop())
            answer = await client.ask(sample.request_bytes(customer.secret, text, model), exchange, wanted)
            assert answer.status == 200, answer
            assert answer.complete, (answer, exchange.steps)
            assert answer.body == expected, exchange.steps
            answers.append(answer)
            if client.lost or (answer.header("connection") or "") == "close":
                client.transport.close()
                client = await connect(customer)
        client.transport.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(WORKERS, len(pending))):
            group.create_task(work())
    return answers


async def check_records(customer: Customer, count: int, usage: tuple[int, int, int, int]) -> None:
    """All calls of the customer finished, and were charged for exactly this usage."""

    async def settled() -> bool:
        spent = 100 * 10**9 - nano((await customer.money())["balance"])
        return spent == count * cost_of(usage)

    with contextlib.suppress(TimeoutError):
        await eventually(settled, 5.0)
    records = await customer.calls(count)
    found = {
        (
            record["input_tokens"], record["output_tokens"], record["cache_read_tokens"], record["cache_write_tokens"],
            record["usage_source"], record["status"], record["error_code"], nano(record["cost"]),
        )
        for record in records
    }  # fmt: skip
    assert found == {(*usage, "upstream", 200, None, cost_of(usage))}
    assert await customer.settled_nano() == 100 * 10**9 - count * cost_of(usage)


def cuts(start: bytes, wire: bytes) -> list[list[Step]]:
    """Scripts that stop at every byte of `wire` until the client has what was sent so far."""
    return [[start + wire[:at], Passed(at), wire[at:]] for at in range(len(wire))]


@pytest.mark.parametrize("eol", ["own", *EOLS])
@pytest.mark.parametrize("sample", STREAMS, ids=lambda sample: sample.name)
async def test_streams_cut_at_every_byte(customer: Customer, raw: RawUpstream, sample: Sample, eol: str):
    if eol != "own":
        if sample.name == "gemini-array" or sample.with_eol(EOLS[eol]).events == sample.events:
            return  # these are the dialect's own line ends
        sample = sample.with_eol(EOLS[eol])
    wire = chunk_bytes(*sample.events, end=True)
    scripts = cuts(head(sample, "chunked", 0), wire)
    await play(customer, raw, sample, scripts, sample.body, wanted=len(wire))
    await check_records(customer, len(scripts), sample.usage)


@pytest.mark.parametrize("sample", DOCUMENTS, ids=lambda sample: sample.name)
async def test_documents_cut_at_every_byte(customer: Customer, raw: RawUpstream, sample: Sample):
    scripts = cuts(head(sample, "length", len(sample.body)), sample.body)
    await play(customer, raw, sample, scripts, sample.body, wanted=len(sample.body))
    await check_records(customer, len(scripts), sample.usage)


async def test_not_utf8_cut_at_every_byte(customer: Customer, raw: RawUpstream):
    wire = chunk_bytes(*NOT_UTF8.events, end=True)
    scripts = cuts(head(NOT_UTF8, "chunked", 0), wire)
    await play(customer, raw, NOT_UTF8, scripts, NOT_UTF8.body, wanted=len(wire))
    await check_records(customer, len(scripts), NOT_UTF8.usage)


async def test_heads_cut_at_every_byte(customer: Customer, raw: RawUpstream):
    start = head(CHAT, "chunked", 0, "x-one: two")
    wire = chunk_bytes(*CHAT.events, end=True)
    scripts: list[list[Step]] = [[start[:at], Turn(), start[at:] + wire] for at in range(1, len(start))]
    await play(customer, raw, CHAT, scripts, CHAT.body, wanted=len(wire))
    await check_records(customer, len(scripts), CHAT.usage)


Encode = Callable[[Sequence[bytes]], bytes]


def _zlib(bits: int) -> Encode:
    def encode(events: Sequence[bytes]) -> bytes:
        stream = zlib.compressobj(wbits=bits)
        return b"".join(stream.compress(event) + stream.flush(zlib.Z_SYNC_FLUSH) for event in events) + stream.flush()

    return encode


def _brotli(events: Sequence[bytes]) -> bytes:
    stream = brotli.Compressor(quality=4)
    return b"".join(stream.process(event) + stream.flush() for event in events) + stream.finish()


def _zstd(events: Sequence[bytes]) -> bytes:
    stream = zstandard.ZstdCompressor().compressobj()
    flushed = b"".join(stream.compress(event) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for event in events)
    return flushed + stream.flush()


ENCODINGS: dict[str, Encode] = {"gzip": _zlib(31), "deflate": _zlib(15), "br": _brotli, "zstd": _zstd}


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_compressed_streams_cut_at_every_byte(customer: Customer, raw: RawUpstream, encoding: str):
    data = ENCODINGS[encoding](CHAT.events)
    wire = chunk_bytes(data, end=True)
    scripts = cuts(head(CHAT, "chunked", 0, f"content-encoding: {encoding}"), wire)
    answers = await play(customer, raw, CHAT, scripts, data, wanted=len(wire))
    assert answers[0].header("content-encoding") == encoding
    await check_records(customer, len(scripts), CHAT.usage)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("sample", [MESSAGES, RESPONSES, GEMINI, *DOCUMENTS], ids=lambda sample: sample.name)
async def test_every_compression_in_every_dialect(customer: Customer, raw: RawUpstream, sample: Sample, encoding: str):
    data = ENCODINGS[encoding](sample.events)
    scripts: list[list[Step]] = [
        [head(sample, "length", len(data), f"content-encoding: {encoding}"), *[data[at : at + 9] for at in offsets]]
        for offsets in [range(0, len(data), 9)]
    ]
    await play(customer, raw, sample, scripts, data)
    await check_records(customer, 1, sample.usage)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_several_members(customer: Customer, raw: RawUpstream, encoding: str):
    """A gzip body may be several members in a row (RFC 1952), a zstd body several frames (RFC 8878)."""
    half = len(CHAT.body) // 2
    encode = gzip.compress if encoding == "gzip" else zstandard.ZstdCompressor().compress
    first, second = encode(CHAT.body[:half]), encode(CHAT.body[half:])
    start = head(CHAT, "length", len(first + second), f"content-encoding: {encoding}")
    scripts: list[list[Step]] = [
        [start, first + second],
        [start, first, Passed(len(first)), second],
        [start, first[:-3], Passed(len(first) - 3), first[-3:] + second[:5], Passed(len(first) + 5), second[5:]],
    ]
    await play(customer, raw, CHAT, scripts, first + second, wanted=len(first + second))
    await check_records(customer, len(scripts), CHAT.usage)


async def test_a_compression_that_breaks(customer: Customer, raw: RawUpstream):
    """Not our business: the bytes pass; without a report the own count is charged."""
    data = gzip.compress(CHAT.body)[:40] + b"\x00" * 40
    script = [head(CHAT, "length", len(data), "content-encoding: gzip"), data]
    await play(customer, raw, CHAT, [script], data)
    record = await customer.call()
    assert (record["usage_source"], record["status"]) == ("estimated", 200)


@pytest.mark.parametrize("sample", [*STREAMS, *DOCUMENTS, NOT_UTF8], ids=lambda sample: sample.name)
async def test_every_framing(customer: Customer, raw: RawUpstream, sample: Sample):
    body = sample.body
    length, close, chunked = (head(sample, framing, len(body)) for framing in ("length", "close", "chunked"))
    whole = chunk_bytes(*sample.events, end=True)
    extended = (
        b"".join(b'%X;name="a;b";x\r\n%b\r\n' % (len(event), event) for event in sample.events) + b"0;last\r\n\r\n"
    )
    zeros = b"".join(b"000%x\r\n%b\r\n" % (len(event), event) for event in sample.events) + b"000\r\n\r\n"
    trailers = chunk_bytes(*sample.events) + b"0\r\nX-Trailer: one\r\nx-other: two\r\n\r\n"
    tiny = chunk_bytes(*[body[at : at + 3] for at in range(0, len(body), 3)], end=True)
    scripts: list[list[Step]] = [
        [length + body],
        [length, body],
        [length, *[body[at : at + 1] for at in range(len(body))]],
        [close + body, Close()],
        [close, *[body[at : at + 11] for at in range(0, len(body), 11)], Close()],
        [chunked + whole],
        [chunked, whole],
        [chunked, *[whole[at : at + 1] for at in range(len(whole))]],
        [chunked, extended],
        [chunked, zeros],
        [chunked, *[trailers[at : at + 7] for at in range(0, len(trailers), 7)]],
        [chunked, tiny],
        [b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + chunked + whole],
        [chunked.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"transfer-encoding: chunked\r\n", b"") + body, Close()],
    ]
    await play(customer, raw, sample, scripts, body)
    await check_records(customer, len(scripts), sample.usage)


@pytest.mark.parametrize("sample", [CHAT, RESPONSES, MESSAGES, GEMINI], ids=lambda sample: sample.name)
async def test_byte_order_marks_and_blank_lines(customer: Customer, raw: RawUpstream, sample: Sample):
    for before in (b"\xef\xbb\xbf", b"\n\n\r\n", b":\n", b"retry: 100\nid: 7\n\n"):
        body = before + sample.body
        await play(customer, raw, sample, [[head(sample, "length", len(body)), body[:2], Turn(), body[2:]]], body)
    await check_records(customer, 4, sample.usage)


BIG = 5_000_000


def _big(sample: Sample) -> Sample:
    """The sample with an event of five megabytes among its own."""
    text = (b"word \\n" + b"\xc3\xa9\\u00e9" * 4) * (BIG // 39)
    match sample.name:
        case "chat":
            event = b'data: {"choices":[{"index":0,"delta":{"x_image":"%b"}}]}\n\n' % (b"QUJD" * (BIG // 4))
        case "responses":
            event = b'event: x\ndata: {"type":"response.image_generation_call.partial_image","b64":"%b"}\n\n'
            event %= b"QUJD" * (BIG // 4)
        case "messages":
            event = b'event: x\ndata: {"type":"x","text":"%b"}\n\n' % text
        case _:
            event = b'data: {"candidates":[{"content":{"parts":[{"inlineData":{"data":"%b"}}]}}]}\r\n\r\n'
            event %= b"QUJD" * (BIG // 4)
    return Sample(
        sample.name, sample.dialect, sample.path, sample.request, sample.content_type,
        (sample.events[0], event, *sample.events[1:]), sample.usage,
    )  # fmt: skip


@pytest.mark.parametrize("sample", [CHAT, RESPONSES, MESSAGES, GEMINI], ids=lambda sample: sample.name)
async def test_events_of_five_megabytes(customer: Customer, raw: RawUpstream, sample: Sample):
    big = _big(sample)
    body = big.body
    length = head(big, "length", len(body))
    pieces = [body[at : at + 65_521] for at in range(0, len(body), 65_521)]
    scripts: list[list[Step]] = [
        [length, body],
        [length, *pieces],
        [head(big, "chunked", 0), chunk_bytes(*big.events, end=True)],
        [head(big, "close", 0), body, Close()],
    ]
    await play(customer, raw, big, scripts, body)
    await check_records(customer, len(scripts), sample.usage)


async def test_an_event_of_five_megabytes_where_usage_is_asked_for(customer: Customer, raw: RawUpstream):
    big = _big(CHAT)
    kept = b"".join(event for event in big.events if b'"usage":{' not in event)
    script: list[Step] = [head(big, "chunked", 0), chunk_bytes(*big.events, end=True)]
    await play(customer, raw, big, [script], kept, model="raw-strip")
    await check_records(customer, 1, CHAT.usage)


@pytest.mark.parametrize("eol", EOLS)
async def test_asked_usage_is_taken_out_at_every_cut(customer: Customer, raw: RawUpstream, eol: str):
    """Exactly one event is missing: the one that the client had not asked for."""
    sample = CHAT.with_eol(EOLS[eol])
    kept = b"".join(event for event in sample.events if b'"usage":{' not in event)
    assert len(kept) < len(sample.body) - 50
    body = sample.body
    start = head(sample, "length", len(body))
    scripts: list[list[Step]] = [[start + body[:at], Turn(0.001), body[at:]] for at in range(len(body))]
    await play(customer, raw, sample, scripts, kept, model="raw-strip")
    await check_records(customer, len(scripts), sample.usage)


async def test_usage_that_the_client_asked_for_stays(customer: Customer, raw: RawUpstream):
    asking = replace(CHAT, request=CHAT.request[:-1] + ',"stream_options":{"include_usage":true}}')
    script: list[Step] = [head(CHAT, "chunked", 0), chunk_bytes(*CHAT.events, end=True)]
    await play(customer, raw, asking, [script], CHAT.body, model="raw-strip")
    await check_records(customer, 1, CHAT.usage)
