"""Request bodies that their clients have compressed go on plain, within the bounds of plain ones."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import brotli
import pytest
import zstandard

from relay.simulator import Running
from tests.functional.raw_upstream import RawUpstream
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.setting import BODY_BYTES_MAX
from tests.support import http1
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="session")


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def quick_brotli(data: bytes) -> bytes:
    return brotli.compress(data, quality=1)  # type: ignore[no-any-return]


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "gzip in upper case": ("GZIP", gzip.compress),
    "two gzip members": ("gzip", lambda data: gzip.compress(data[:20]) + gzip.compress(data[20:])),
    "deflate": ("deflate", zlib.compress),
    "deflate without a wrapper": ("deflate", raw_deflate),
    "br": ("br", quick_brotli),
    "zstd": ("zstd", zstandard.compress),
    "two zstd frames": ("zstd", lambda data: zstandard.compress(data[:20]) + zstandard.compress(data[20:])),
    "identity": ("identity", bytes),
}
PACKED = {name: each for name, each in CODINGS.items() if name != "identity"}
SAID = [{"role": "user", "content": "Hello"}]
JSON_PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"model": "gpt-4o", "messages": SAID}),
    "responses": ("/v1/responses", {"model": "gpt-4o", "input": "Hello"}),
    "embeddings": ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "Hello"}),
    "messages": ("/v1/messages", {"model": "claude-sonnet-5", "max_tokens": 20, "messages": SAID}),
    "generate": (
        "/v1beta/models/gemini-2.5-flash:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]},
    ),
}


async def send(
    customer: Customer, path: str, body: bytes, coding: str, *, chunked: bool = False, **more: str
) -> http1.Message:
    headers = {
        "Authorization": f"Bearer {customer.secret}", "Content-Type": "application/json", "Content-Encoding": coding,
        **more,
    }  # fmt: skip
    if path.startswith("/v1/messages"):  # elsewhere it says that Anthropic's SDK asks
        headers["anthropic-version"] = "2023-06-01"
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        if not chunked:
            return await client.request("POST", path, headers, body, timeout_seconds=20)
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {path} HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n{head}\r\n"
        pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in body)  # a byte each: any cut
        await client.send(head.encode() + pieces + b"0\r\n\r\n")
        return await client.response(timeout_seconds=20)


def error_code(answer: http1.Message) -> str:
    return str(json.loads(answer.body)["error"].get("code"))


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("chunked", [False, True])
async def test_finding_clients_F14_the_plain_body_goes_on(
    customer: Customer, raw: RawUpstream, coding: str, chunked: bool
) -> None:
    answer = b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"a"},'
    answer += b'"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":1}}'
    named, exchange = raw.script(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
    plain = json.dumps({"model": "raw-chat", "messages": [{"role": "user", "content": named + " ünïcode"}]}).encode()
    label, pack = CODINGS[coding]
    got = await send(customer, "/v1/chat/completions", pack(plain), label, chunked=chunked)
    assert (got.status, got.body) == (200, answer)
    assert exchange.bodies == [plain]
    assert "content-encoding" not in exchange.header
    assert exchange.header["content-length"] == str(len(plain))
    record = await customer.call()
    assert (record["status"], record["input_tokens"], record["usage_source"]) == (200, 11, "upstream")


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_finding_clients_F14_in_every_dialect(customer: Customer, path: str, coding: str) -> None:
    target, body = JSON_PATHS[path]
    label, pack = CODINGS[coding]
    answer = await send(customer, target, pack(json.dumps(body).encode()), label)
    assert answer.status == 200, answer.body
    plain = await send(customer, target, json.dumps(body).encode(), "identity")
    assert plain.status == 200
    new, old = await customer.calls(2)
    assert {new["input_tokens"], new["cost"]} == {old["input_tokens"], old["cost"]}


async def test_finding_clients_F14_side_calls(customer: Customer) -> None:
    requests = [{"custom_id": "a", "params": JSON_PATHS["messages"][1]}]
    batch = json.dumps({"requests": requests}).encode()
    made = await send(customer, "/v1/messages/batches", zstandard.compress(batch), "zstd")
    assert made.status == 200, made.body
    background = json.dumps({**JSON_PATHS["responses"][1], "background": True}).encode()
    kept = await send(customer, "/v1/responses", gzip.compress(background), "gzip")
    assert kept.status == 200, kept.body


async def test_finding_clients_F14_evidence_is_measured_by_the_plain_body(customer: Customer, raw: RawUpstream) -> None:
    """What a provider says the prompt was is bounded by the body's bytes: the plain ones."""
    words = "word " * 4000
    answer = b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"a"},'
    answer += b'"finish_reason":"stop"}],"usage":{"prompt_tokens":4001,"completion_tokens":1}}'
    named, _ = raw.script(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
    plain = json.dumps({"model": "raw-chat", "messages": [{"role": "user", "content": named + words}]}).encode()
    packed = gzip.compress(plain)
    assert len(packed) * 4 < 4001
    assert (await send(customer, "/v1/chat/completions", packed, "gzip")).status == 200
    record = await customer.call()
    assert (record["input_tokens"], record["usage_source"]) == (4001, "upstream")


@pytest.mark.parametrize(
    "coding", ["snappy", "gzip, gzip", "br, gzip", "gzip, zstd", "compress", "aws-chunked", "dcb", "gzip;q=1"]
)
@pytest.mark.parametrize("path", ["chat", "messages", "generate"])
async def test_finding_clients_F14_codings_that_are_not_known(
    customer: Customer, simulator: Running, coding: str, path: str
) -> None:
    before = simulator.book.requests
    target, body = JSON_PATHS[path]
    answer = await send(customer, target, gzip.compress(gzip.compress(json.dumps(body).encode())), coding)
    assert answer.status == 415
    assert simulator.book.requests == before
    assert (await customer.call())["error_code"] == "unsupported_encoding"


async def test_forms_and_uploads_are_not_decompressed(customer: Customer, simulator: Running) -> None:
    before = simulator.book.requests
    for path in ("/v1/files", "/v1/audio/transcriptions"):
        form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'
        more = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = await send(customer, path, gzip.compress(form), "gzip", **more)
        assert (answer.status, error_code(answer)) == (415, "unsupported_encoding"), path
    assert simulator.book.requests == before


@pytest.mark.parametrize("coding", PACKED)
@pytest.mark.parametrize("fault", ["cut", "garbage", "behind", "plain", "empty"])
async def test_finding_clients_F14_data_that_is_broken(
    customer: Customer, simulator: Running, coding: str, fault: str
) -> None:
    before = simulator.book.requests
    target, body = JSON_PATHS["chat"]
    plain = json.dumps(body).encode()
    label, pack = CODINGS[coding]
    whole = pack(plain)
    sent = {
        "cut": whole[:-3],
        "garbage": whole[:10] + b"\xff\x00\xff\x00" * 8,
        "behind": whole + b"{}   {}",
        "plain": plain,
        "empty": b"",
    }[fault]
    answer = await send(customer, target, sent, label)
    assert answer.status == 400, answer.body
    # Garbage may come out as bytes before it is seen to be garbage, and those are no JSON.
    expected = {"malformed_encoding"} | ({"malformed_json"} if fault == "garbage" else set())
    assert error_code(answer) in expected
    assert simulator.book.requests == before
    record = await customer.call()
    assert record["error_code"] in expected
    assert record["cost"] == "0"


BOMB_BYTES = 100 << 20


@pytest.fixture(scope="module")
def bombs() -> dict[str, bytes]:
    plain = b'{"model":"gpt-4o","messages":[{"role":"user","content":"' + b"a" * BOMB_BYTES + b'"}]}'
    return {"gzip": gzip.compress(plain, 1), "deflate": zlib.compress(plain, 1), "br": quick_brotli(plain),
            "zstd": zstandard.compress(plain)}  # fmt: skip


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages/batches"])
async def test_finding_clients_F14_bombs(
    customer: Customer, relay: RelayProcess, bombs: dict[str, bytes], coding: str, path: str
) -> None:
    assert len(bombs[coding]) < BODY_BYTES_MAX
    before = (await relay.status())["memory_bytes"]
    answers = await asyncio.gather(*(send(customer, path, bombs[coding], coding) for _ in range(8)))
    assert {answer.status for answer in answers} == {413}
    assert (await relay.status())["memory_bytes"] - before < 48 << 20
    assert {record["error_code"] for record in await customer.calls(8)} == {"body_too_large"}


async def test_a_window_that_nobody_may_ask_for(customer: Customer) -> None:
    """zstd: 128 MiB of memory for a few bytes (RFC 9659 allows 8)."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = packer.compress(json.dumps(JSON_PATHS["chat"][1]).encode()) + packer.flush()
    answer = await send(customer, "/v1/chat/completions", packed, "zstd")
    assert (answer.status, error_code(answer)) == (400, "malformed_encoding")


async def test_a_body_that_just_fits(customer: Customer) -> None:
    head = b'{"model":"gpt-4o","messages":[{"role":"user","content":"'
    for more, status in ((0, 200), (1, 413)):
        plain = head + b" " * (BODY_BYTES_MAX - len(head) - 4 + more) + b'"}]}'
        assert (await send(customer, "/v1/chat/completions", gzip.compress(plain), "gzip")).status == status


async def test_a_wrong_key_is_told_first(relay: RelayProcess) -> None:
    nobody = Customer(relay, "", "", "sk-" + "x" * 12 + "-" + "y" * 36)
    for coding in ("gzip", "snappy"):
        answer = await send(nobody, "/v1/chat/completions", b"\x1f\x8b", coding)
        assert answer.status == 401
