"""Errors about the operator's account in the middle of an answer: in pieces, compressed, in streams of every kind."""

import json
import zlib
from typing import Any

import pytest

from tests.functional.raw_upstream import RawUpstream, Step, Turn
from tests.functional.relay_process import Customer, RelayProcess
from tests.functional.streams import CHAT, COMPLETIONS, GEMINI, GEMINI_ARRAY, MESSAGES, RESPONSES, Sample, head
from tests.support.http1 import STREAM_HEAD, Message, chunk_bytes, request_bytes, response_bytes
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAID = "You exceeded your current quota, please check your plan and billing details. SECRET"
FIELDS = {"message": SAID, "type": "insufficient_quota", "code": "insufficient_quota"}
PLAIN: dict[str, Any] = {"error": FIELDS}
FAILED = {"type": "response.failed", "response": {"id": "r", "status": "failed", "error": FIELDS}}
FLAT = {"type": "error", "code": "insufficient_quota", "message": SAID}
IMAGE = b'data: {"type":"image_generation.partial_image","b64_json":"QUJD","partial_image_index":0}\n\n'
SPOKEN = b'data: {"type":"speech.audio.delta","audio":"QUJD"}\n\n'
HEARD = b'data: {"type":"transcript.text.delta","delta":"hello"}\n\n'


def form(text: str) -> bytes:
    parts = (("model", "raw-scribe"), ("prompt", text), ("stream", "true"), ('file"; filename="a.wav', "RIFF"))
    return (
        "".join(
            f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in parts
        ).encode()
        + b"--b--\r\n"
    )


def sampled(sample: Sample, model: str = "") -> Any:
    return lambda secret, text: sample.request_bytes(secret, text, model)


def posted(path: str, **fields: Any) -> Any:
    def request(secret: str, text: str) -> bytes:
        headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        body = json.dumps(fields).replace("TEXT", text).encode()
        if path.endswith("transcriptions"):
            headers["Content-Type"] = "multipart/form-data; boundary=b"
            body = form(text)
        return request_bytes("POST", path, headers, body)

    return request


# A request, the first event of its stream, and the error that comes next.
STREAMS: dict[str, tuple[Any, bytes, dict[str, Any]]] = {
    "chat": (sampled(CHAT), CHAT.events[0], PLAIN),
    "chat-stripped": (sampled(CHAT, "raw-strip"), CHAT.events[0], PLAIN),
    "chat-large-number": (sampled(CHAT), CHAT.events[0], PLAIN | {"x": 10**30}),
    "chat-late": (sampled(CHAT), CHAT.events[0], {"id": "c", "choices": []} | PLAIN),
    "completions": (sampled(COMPLETIONS), COMPLETIONS.events[0], PLAIN),
    "responses-failed": (sampled(RESPONSES), RESPONSES.events[1], FAILED),
    "responses-flat": (sampled(RESPONSES), RESPONSES.events[1], FLAT),
    "messages": (sampled(MESSAGES), MESSAGES.events[2], {"type": "error"} | PLAIN),
    "gemini": (sampled(GEMINI), GEMINI.events[0], PLAIN),
    "images": (posted("/v1/images/generations", model="raw-picture", prompt="TEXT", stream=True), IMAGE, PLAIN),
    "speech": (posted("/v1/audio/speech", model="raw-speech", input="TEXT", voice="a", stream_format="sse"),
               SPOKEN, PLAIN),
    "transcription": (posted("/v1/audio/transcriptions"), HEARD, PLAIN),
}  # fmt: skip


async def ask(customer: Customer, raw: RawUpstream, request: Any, *steps: Step) -> Message:
    text, _ = raw.script(*steps)
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(request(customer.secret, text))
        return await client.response()


def event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def hidden(answer: Message, body: bytes | None = None) -> None:
    body = answer.body if body is None else body
    assert (answer.status, answer.complete) == (200, False)
    assert b"SECRET" not in answer.raw
    assert b"SECRET" not in body
    assert b"quota, please" not in body


@pytest.mark.parametrize("name", STREAMS)
async def test_finding_money_M1_an_account_error_in_a_stream_at_every_cut(
    relay: RelayProcess, raw: RawUpstream, name: str
):
    request, first, document = STREAMS[name]
    customer = await relay.customer()
    last = event(document)
    for cut in (len(last), *range(1, len(last), 23)):
        pieces = (
            chunk_bytes(last[:cut]),
            Turn(0.01),
            chunk_bytes(last[cut:], end=True) if cut < len(last) else b"0\r\n\r\n",
        )
        hidden(await ask(customer, raw, request, STREAM_HEAD + chunk_bytes(first), Turn(0.01), *pieces))
    codes = {record["error_code"] for record in await relay.calls(key=customer.key)}
    assert "upstream_account" in codes
    assert codes <= {"upstream_account", "upstream_error", "upstream_unavailable"}


@pytest.mark.parametrize("name", STREAMS)
async def test_finding_money_M1_an_account_error_in_a_compressed_stream(
    relay: RelayProcess, raw: RawUpstream, name: str
):
    request, first, document = STREAMS[name]
    customer = await relay.customer()
    start = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")
    packer = zlib.compressobj(wbits=31)
    data = [packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in (first, event(document))]
    answer = await ask(
        customer, raw, request, start + chunk_bytes(data[0]), Turn(0.02), chunk_bytes(data[1]), Turn(0.02), b"0\r\n\r\n"
    )
    hidden(answer, zlib.decompressobj(wbits=31).decompress(answer.body))
    assert (await customer.call())["error_code"] == "upstream_account"


async def test_finding_money_M1_an_account_error_in_a_gemini_array(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer()
    last = b"," + json.dumps(PLAIN).encode()
    for cut in range(1, len(last), 23):
        first = head(GEMINI_ARRAY, "chunked", 0) + chunk_bytes(GEMINI_ARRAY.events[0])
        steps = (first, Turn(0.01), chunk_bytes(last[:cut]), Turn(0.01), chunk_bytes(last[cut:], b"]", end=True))
        hidden(await ask(customer, raw, sampled(GEMINI_ARRAY), *steps))


@pytest.mark.parametrize("cut", [1, 8, 12, 30, 60])
@pytest.mark.parametrize("more", [{}, {"id": "x", "object": "chat.completion"}], ids=["first", "late"])
async def test_finding_money_M1_an_account_error_in_a_document_that_comes_slowly(
    relay: RelayProcess, raw: RawUpstream, more: dict[str, Any], cut: int
):
    """The head has passed after half a second of nothing."""
    request = posted("/v1/chat/completions", model="raw-chat", messages=[{"role": "user", "content": "TEXT"}])
    customer = await relay.customer()
    document = json.dumps(more | PLAIN).encode()
    start = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(document)
    answer = await ask(customer, raw, request, start, Turn(0.7), document[:cut], Turn(0.7), document[cut:])
    assert b"SECRET" not in answer.raw
    assert (await customer.call())["error_code"] in ("upstream_account", "upstream_error", "upstream_unavailable")
    assert await customer.settled_nano() == 100 * 10**9


async def test_an_error_event_after_another_is_looked_at_by_itself(relay: RelayProcess, raw: RawUpstream):
    """One that may pass does not make text of the answer suspicious."""
    customer = await relay.customer()
    harmless = event({"error": {"message": "one shard is slow", "type": "server_error"}})
    text = event({"choices": [{"index": 0, "delta": {"content": "your organization has used all of its quota"}}]})
    rest = b"".join(CHAT.events)
    steps = (
        chunk_bytes(harmless),
        Turn(0.01),
        chunk_bytes(text[:40]),
        Turn(0.01),
        chunk_bytes(text[40:], rest, end=True),
    )
    answer = await ask(customer, raw, sampled(CHAT), STREAM_HEAD + chunk_bytes(CHAT.events[0]), Turn(0.01), *steps)
    assert (answer.complete, answer.body) == (True, CHAT.events[0] + harmless + text + rest)


NOT_TEXT = {
    "embeddings": posted("/v1/embeddings", model="raw-chat", input="TEXT"),
    "images": posted("/v1/images/generations", model="raw-picture", prompt="TEXT"),
    "moderations": posted("/v1/moderations", model="raw-chat", input="TEXT"),
    "rerank": posted("/v1/rerank", model="raw-chat", query="TEXT", documents=["a"]),
    "transcription": posted("/v1/audio/transcriptions"),
}


@pytest.mark.parametrize("name", NOT_TEXT)
async def test_finding_clients_F3_errors_of_gateways_where_the_answer_is_no_text(
    relay: RelayProcess, raw: RawUpstream, name: str
):
    customer = await relay.customer()
    bodies = (
        {"code": 503, "message": "no channel available"},
        {"success": False, "code": "503", "msg": "nothing here"},
    )
    for body in bodies:
        answer = await ask(customer, raw, NOT_TEXT[name], response_bytes(json.dumps(body).encode()))
        assert (answer.status, "error" in json.loads(answer.body)) == (503, True)
    assert {record["cost"] for record in await customer.calls(2)} == {"0"}
    assert await customer.settled_nano() == 100 * 10**9


@pytest.mark.parametrize("coding", ["gzip", "x-unknown", "gzip, gzip"])
async def test_finding_wire_M7_a_plain_error_that_is_called_compressed(
    relay: RelayProcess, raw: RawUpstream, coding: str
):
    customer = await relay.customer()
    request = posted("/v1/chat/completions", model="raw-chat", messages=[{"role": "user", "content": "TEXT"}])
    answer = await ask(
        customer, raw, request, response_bytes(json.dumps(PLAIN).encode(), headers={"content-encoding": coding})
    )
    assert answer.status == 503
    assert b"SECRET" not in answer.raw
    assert ((await customer.call())["error_code"], (await customer.call())["cost"]) == ("upstream_account", "0")
