"""The instruments themselves."""

import asyncio
import time

import pytest

from tests.support import http1
from tests.support.http1 import STREAM_HEAD, chunk_bytes, request_bytes, response_bytes
from tests.support.rawclient import RawClient
from tests.support.scripted import Close, Gate, Gone, HalfClose, Pause, Received, Request, Reset, ScriptedUpstream
from tests.support.toxic import ToxicProxy, Toxics
from tests.support.waiting import until

ASK = request_bytes("POST", "/x", {"A": "b"}, b"hello")


async def test_scripts_in_turn():
    gate = asyncio.Event()
    scripts = [
        [Request(), response_bytes(b"one"), Request(), response_bytes(b"two", 404, {"x": "y"}, "Not Found"), Close()],
        [Received(10), STREAM_HEAD, chunk_bytes(b"a", b"bc"), Gate(gate), chunk_bytes(b"d", end=True)],
        [Request(), STREAM_HEAD + b"5\r\nab", Reset()],
        [Request(), b"HTTP/1.1 200 OK\r\n\r\nuntil the end", HalfClose(), Gone()],
    ]
    async with ScriptedUpstream(*scripts) as upstream:
        async with await RawClient.connect(upstream.host, upstream.port) as client:
            assert (await client.request("POST", "/x", {"A": "b"}, b"hello")).body == b"one"
            second = await client.request("GET", "/y")
            assert (second.status, second.header("X"), second.complete) == (404, "y", True)
            await client.until_lost()
            assert not client.was_reset
        async with await RawClient.connect(upstream.host, upstream.port) as client:
            await client.send(ASK, split=3)
            await client.until_contains(b"bc")
            gate.set()
            answer = await client.response()
            assert (answer.body, answer.chunks, answer.complete) == (b"abcd", [b"a", b"bc", b"d"], True)
        async with await RawClient.connect(upstream.host, upstream.port) as client:
            await client.send(ASK)
            answer = await client.response()
            await client.until_lost()
            assert (answer.body, answer.complete, client.was_reset) == (b"ab", False, True)
        for _ in range(2):  # the last script serves all that follow
            async with await RawClient.connect(upstream.host, upstream.port) as client:
                answer = await client.request("GET", "/")
                assert (answer.body, answer.complete) == (b"until the end", True)
        first = upstream.connections[0].requests
        assert [(one.method, one.target, one.body) for one in first] == [("POST", "/x", b"hello"), ("GET", "/y", b"")]
        assert first[0].raw == ASK
        assert upstream.connections[1].received == ASK
        await until(lambda: all(connection.lost for connection in upstream.connections))


async def test_reads_are_timed():
    async with (
        ScriptedUpstream([b"a", Pause(0.03), b"b"]) as upstream,
        await RawClient.connect(upstream.host, upstream.port) as client,
    ):
        await client.until_bytes(2)
        assert [read.data for read in client.reads] == [b"a", b"b"]
        assert client.reads[1].at - client.reads[0].at > 0.02


async def test_what_does_not_happen_fails():
    with pytest.raises(AssertionError, match="the moon"):
        await until(lambda: False, 0.01, "the moon")
    async with ScriptedUpstream([]) as upstream, await RawClient.connect(upstream.host, upstream.port) as client:
        with pytest.raises(AssertionError, match="not within"):
            await client.until_bytes(1, timeout_seconds=0.01)


def test_parse():
    assert http1.parse(b"HTTP/1.1 200 OK\r\ncontent-le") is None
    half = http1.parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n")
    assert half is not None
    assert (half.body, half.complete) == (b"abc", False)
    no_content = http1.parse(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert no_content is not None
    assert no_content.complete


BODY = bytes(range(256)) * 40
ANSWER = response_bytes(BODY)


async def through(toxics: Toxics, up: Toxics | None = None) -> RawClient:
    async with (
        ScriptedUpstream([Request(), ANSWER]) as upstream,
        ToxicProxy(upstream.port, down=toxics, up=up) as proxy,
        await RawClient.connect(proxy.host, proxy.port) as client,
    ):
        await client.send(ASK)
        await client.until(
            lambda: len(client.received) == len(ANSWER) or client.lost or toxics.stall_at == len(client.received)
        )
        await asyncio.sleep(0)
        return client


async def test_toxics():
    assert (await through(Toxics())).received == ANSWER
    sliced = await through(Toxics(slice_bytes=1000, slice_gap_seconds=0.001))
    assert sliced.received == ANSWER
    assert len(sliced.reads) >= 8
    began = time.monotonic()
    slow = await through(Toxics(bandwidth_bytes_per_second=100_000, latency_seconds=0.01))
    assert slow.received == ANSWER
    assert time.monotonic() - began > 0.1
    reset = await through(Toxics(reset_at=777))
    assert (reset.received, reset.was_reset) == (ANSWER[:777], True)
    cut = await through(Toxics(truncate_at=777))
    assert (cut.received, cut.was_reset) == (ANSWER[:777], False)
    stalled = await through(Toxics(stall_at=777))
    assert stalled.received == ANSWER[:777]
    refused = await through(Toxics(), up=Toxics(reset_at=10))
    assert (refused.received, refused.was_reset) == (b"", True)


async def test_toxic_proxy_refuses():
    async with ScriptedUpstream([Request(), ANSWER]) as upstream, ToxicProxy(upstream.port) as proxy:
        proxy.accepting = False
        async with await RawClient.connect(proxy.host, proxy.port) as client:
            await client.until_lost()
        proxy.accepting = True
        async with await RawClient.connect(proxy.host, proxy.port) as client:
            await client.send(ASK)
            await client.until_bytes(len(ANSWER))
            proxy.reset_all()
            await client.until_lost()
            assert client.was_reset
