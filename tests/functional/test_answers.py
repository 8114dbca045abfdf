"""What is no answer has failed, what is complete has finished, what passes is counted."""

import asyncio
import gzip
import json
from dataclasses import replace

import pytest

from tests.functional.clients import async_anthropic, async_openai, google
from tests.functional.raw_upstream import Close, Exchange, Gate, Passed, RawUpstream, Reset, Step, Turn
from tests.functional.relay_process import Customer, RelayProcess, nano
from tests.functional.streams import (
    CHAT,
    COMPLETIONS,
    DOCUMENTS,
    GEMINI,
    GEMINI_ARRAY,
    MESSAGES,
    RESPONSES,
    STREAMS,
    Sample,
    cost_of,
    head,
)
from tests.support import http1
from tests.support.http1 import chunk_bytes, request_bytes, response_bytes
from tests.support.rawclient import RawClient

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    # Google's SDK leaves its connection, and subclasses aiohttp's session.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]

ALL = [*STREAMS, *DOCUMENTS]
FIRST = {"openai": "raw-first", "anthropic": "raw-claude-first", "gemini": "raw-gemini-first"}
PAGE = b"<html><head><title>Just a moment...</title></head><body>checking your browser</body></html>"


def named(sample: Sample) -> str:
    return sample.name


async def ask(
    customer: Customer, raw: RawUpstream, sample: Sample, *steps: Step, model: str = "", **headers: str
) -> tuple[http1.Message, Exchange]:
    text, exchange = raw.script(*steps)
    model = model or sample.model
    sample = replace(sample, path=sample.path.replace("raw-gemini", model))
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(sample.request_bytes(customer.secret, text, model, **headers))
        return await client.response(), exchange


async def spent(customer: Customer, credits: int = 100) -> int:
    return credits * 10**9 - await customer.settled_nano()


async def refused(customer: Customer, raw: RawUpstream, sample: Sample, *steps: Step, code: str, status: int = 502):
    """With one channel: an error of that dialect, nothing charged, the record says why, the channel has failed."""
    before = await failures(customer, sample.model)
    answer, _ = await ask(customer, raw, sample, *steps)
    assert (answer.status, answer.complete) == (status, True), answer
    body = json.loads(answer.body)
    assert "error" in body
    assert PAGE not in answer.body
    record = await customer.call()
    assert (record["status"], record["error_code"], record["cost"], record["usage_source"]) == (
        status,
        code,
        "0",
        "none",
    )
    assert await spent(customer) == 0
    assert await failures(customer, sample.model) == before + 1
    return body


async def failures(customer: Customer, model: str) -> int:
    name = {"raw-chat": "raw-openai", "raw-claude": "raw-anthropic", "raw-gemini": "raw-gemini"}[model]
    channels = (await customer.relay.status())["channels"]
    return int(next(channel for channel in channels if channel["name"] == name)["failures"])


async def elsewhere(customer: Customer, raw: RawUpstream, sample: Sample, *steps: Step) -> None:
    """With two channels, the second one's answer."""
    answer, exchange = await ask(customer, raw, sample, *steps, model=FIRST[sample.dialect])
    assert exchange.requests
    assert (answer.status, answer.complete) == (200, True), answer
    assert b"checking" not in answer.body
    record = await customer.call()
    assert (record["error_code"], record["attempts"], record["channel"][:3]) == (None, 2, "sim")
    assert nano(record["cost"]) > 0


def html(body: bytes = PAGE, label: str = "text/html", **more: str) -> bytes:
    return response_bytes(body, headers={"content-type": label} | more)


NO_ANSWERS: dict[str, tuple[Step, ...]] = {
    "a page": (html(),),
    "a page in pieces": (html()[:-80], Turn(), html()[-80:]),
    "a page after its head": (html()[: -len(PAGE)], Turn(0.02), PAGE),
    "a page byte by byte": tuple(bytes([byte]) for byte in html()),
    "a page in chunks": (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ntransfer-encoding: chunked\r\n\r\n",
        chunk_bytes(PAGE[:1], PAGE[1:], end=True),
    ),
    "a page to the close": (b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n" + PAGE, Close()),
    "a page called json": (html(label="application/json"),),
    "a page called a stream": (html(label="text/event-stream"),),
    "a page in gzip": (html(gzip.compress(PAGE), **{"content-encoding": "gzip"}),),
    "text": (html(b"upstream connect error", "text/plain"),),
    "a text in json": (html(b'"Not Found"', "application/json"),),
    "null": (html(b"null", "application/json"),),
    "a number": (html(b"42", "application/json"),),
    "a list of numbers": (html(b"[1,2]", "application/json"),),
    "nothing": (html(b"", "application/json"),),
    "nothing in chunks": (head(CHAT, "chunked", 0) + b"0\r\n\r\n",),
    "nothing to the close": (head(CHAT, "close", 0), Close()),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n",),
    "blank lines": (html(b"\n\n\n", "application/json"),),
    "comments alone": (head(CHAT, "chunked", 0) + chunk_bytes(b": ping\n\n", b": ping\n\n", end=True),),
    "an event that is no json": (head(CHAT, "chunked", 0) + chunk_bytes(b"data: <html>\n\n", end=True),),
}


@pytest.mark.parametrize("kind", NO_ANSWERS)
async def test_finding_clients_F3_what_is_no_answer_has_failed(relay: RelayProcess, raw: RawUpstream, kind: str):
    for sample in (CHAT, DOCUMENTS[0], MESSAGES, GEMINI_ARRAY):
        await refused(await relay.customer(), raw, sample, *NO_ANSWERS[kind], code="upstream_garbage")


@pytest.mark.parametrize("sample", ALL, ids=named)
async def test_finding_clients_F3_another_channel_answers(relay: RelayProcess, raw: RawUpstream, sample: Sample):
    for kind in ("a page", "text", "nothing in chunks"):
        await elsewhere(await relay.customer(), raw, sample, *NO_ANSWERS[kind])


@pytest.mark.parametrize("kind", ["nothing", "nothing in chunks", "nothing to the close", "204"])
async def test_finding_clients_F19_nothing_is_no_answer(relay: RelayProcess, raw: RawUpstream, kind: str):
    for sample in (RESPONSES, DOCUMENTS[1], DOCUMENTS[2]):
        await refused(await relay.customer(), raw, sample, *NO_ANSWERS[kind], code="upstream_garbage")


def error(sample: Sample, **fields: object) -> bytes:
    document: dict[str, object] = {"error": {"message": "it is too much today", **fields}}
    if sample.dialect == "anthropic":
        document = {"type": "error"} | document
    return json.dumps(document).encode()


def as_stream(sample: Sample, document: bytes) -> bytes:
    if sample is GEMINI_ARRAY:
        return b"[" + document + b"]"
    return (b"event: error\n" if sample.dialect == "anthropic" else b"") + b"data: " + document + b"\n\n"


ERRORS = {
    "of the provider": ({"type": "server_error", "code": "server_error"}, 502),
    "overloaded": ({"type": "overloaded_error"}, 503),
    "a limit": ({"type": "rate_limit_error", "code": "rate_limit_exceeded"}, 429),
    "a limit as a number": ({"code": 429}, 429),
    "of the caller": ({"type": "invalid_request_error", "code": "context_length_exceeded"}, 400),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("sample", ALL, ids=named)
async def test_finding_clients_F3_an_error_with_status_200(
    relay: RelayProcess, raw: RawUpstream, sample: Sample, kind: str
):
    fields, status = ERRORS[kind]
    customer = await relay.customer()
    document = error(sample, **fields)
    body = as_stream(sample, document) if sample in STREAMS else document
    answer, _ = await ask(customer, raw, sample, html(body, sample.content_type))
    assert (answer.status, answer.complete, answer.header("content-type")) == (status, True, "application/json")
    assert json.loads(answer.body)["error"]["message"] == "it is too much today"
    record = await customer.call()
    assert (record["status"], record["error_code"], record["cost"]) == (status, "upstream_error", "0")
    assert await spent(customer) == 0
    if status >= 429:
        await elsewhere(await relay.customer(), raw, sample, html(body, sample.content_type))


@pytest.mark.parametrize("sample", ALL, ids=named)
async def test_finding_clients_F3_an_error_at_every_cut(relay: RelayProcess, raw: RawUpstream, sample: Sample):
    """In pieces, with comments before it, and with fields before the error."""
    customer = await relay.customer()
    document = error(sample, type="overloaded_error")
    body = as_stream(sample, document) if sample in STREAMS else document
    if sample in STREAMS and sample is not GEMINI_ARRAY:
        body = b": hello\n\n" + body
    whole = html(body, sample.content_type)
    at = len(whole) - len(body)
    cuts = range(at, len(whole), 7)
    for cut in cuts:
        answer, _ = await ask(customer, raw, sample, whole[:cut], Turn(), whole[cut:])
        assert answer.status == 503, cut
    assert await spent(customer) == 0
    assert {record["error_code"] for record in await customer.calls(len(cuts))} == {"upstream_error"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"code":503,"message":"no channel available"}',
        b'{"success":false,"code":"503","msg":"no channel available"}',
        b'{"object":"error","message":"no channel available","code":503}',
        b'{"id":"x","error":{"message":"no channel available","code":503},"choices":[]}',
        b'{"error":"no channel available","code":503}',
    ],
)
async def test_finding_clients_F3_errors_of_gateways(relay: RelayProcess, raw: RawUpstream, body: bytes):
    customer = await relay.customer()
    answer, _ = await ask(customer, raw, DOCUMENTS[0], html(body, "application/json"))
    assert answer.status == 503
    assert json.loads(answer.body)["error"]["message"] == "no channel available"
    assert await spent(customer) == 0


@pytest.mark.parametrize("sample", ALL, ids=named)
async def test_finding_clients_F3_an_error_about_the_operators_account(
    relay: RelayProcess, raw: RawUpstream, sample: Sample
):
    customer = await relay.customer()
    document = error(sample, type="insufficient_quota", code="insufficient_quota", status="PERMISSION_DENIED")
    body = as_stream(sample, document) if sample in STREAMS else document
    answer, _ = await ask(customer, raw, sample, html(body, sample.content_type))
    assert answer.status == 503
    assert b"too much" not in answer.body
    assert (await customer.call())["error_code"] == "upstream_account"
    assert await spent(customer) == 0
    if sample in STREAMS and sample is not GEMINI_ARRAY:
        # The head has passed before: the event does not, and the stream is cut.
        answer, _ = await ask(customer, raw, sample, head(sample, "chunked", 0), Turn(0.8), chunk_bytes(body, end=True))
        assert (answer.status, answer.complete) == (200, False)
        assert b"too much" not in answer.body
        assert await spent(customer) == 0


@pytest.mark.parametrize("label", ["text/html", "text/plain", "application/octet-stream", "", "text/event-stream"])
async def test_finding_clients_F3_the_bytes_decide(relay: RelayProcess, raw: RawUpstream, label: str):
    """An upstream that calls a good answer something else is served."""
    customer = await relay.customer()
    for sample in DOCUMENTS:
        answer, _ = await ask(customer, raw, replace(sample, content_type=label), html(sample.body, label))
        assert (answer.status, answer.body) == (200, sample.body)
    assert {record["usage_source"] for record in await customer.calls(3)} == {"upstream"}


@pytest.mark.parametrize("sample", [CHAT, RESPONSES, MESSAGES, GEMINI], ids=named)
async def test_a_comment_passes_soon_and_is_no_answer(relay: RelayProcess, raw: RawUpstream, sample: Sample):
    """A heartbeat waits half a second at most; what follows it can then only be cut."""
    customer = await relay.customer()
    start, ping = head(sample, "chunked", 0), b": ping\n\n"
    answer, _ = await ask(
        customer, raw, sample, start + chunk_bytes(ping), Passed(0), Turn(0.8), chunk_bytes(*sample.events, end=True)
    )
    assert (answer.body, answer.complete) == (ping + sample.body, True)
    answer, _ = await ask(customer, raw, sample, start + chunk_bytes(ping), Turn(0.8), chunk_bytes(PAGE, end=True))
    assert (answer.status, answer.complete) == (200, False)
    assert b"html" not in answer.body
    assert b"error" in answer.body
    records = await customer.calls(2)
    assert [record["error_code"] for record in records] == ["upstream_garbage", None]
    assert await spent(customer) == cost_of(sample.usage)


FAILED = b'event: response.failed\ndata: {"type":"response.failed","sequence_number":1,"response":{"status":"failed",' \
    b'"error":{"code":"server_error","message":"sorry"},"output":[],"usage":null}}\n\n'  # fmt: skip


@pytest.mark.parametrize("sample", [CHAT, RESPONSES, MESSAGES], ids=named)
async def test_finding_clients_F12_an_error_and_nothing_else(relay: RelayProcess, raw: RawUpstream, sample: Sample):
    """The stream has begun, with events in which nothing of an answer stands."""
    customer = await relay.customer()
    first = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n' if sample is CHAT else sample.events[0]
    last = FAILED if sample is RESPONSES else as_stream(sample, error(sample, type="server_error"))
    answer, _ = await ask(
        customer, raw, sample, head(sample, "chunked", 0), chunk_bytes(first), Turn(0.05), chunk_bytes(last, end=True)
    )
    assert (answer.status, answer.body, answer.complete) == (200, first + last, True)
    record = await customer.call()
    assert (record["status"], record["error_code"], record["cost"]) == (200, "upstream_error", "0")
    assert await spent(customer) == 0
    if sample is RESPONSES:  # at once: another channel is asked
        await elsewhere(
            await relay.customer(), raw, sample, head(sample, "chunked", 0) + chunk_bytes(first, last, end=True)
        )


@pytest.mark.parametrize("sample", [CHAT, RESPONSES, MESSAGES, GEMINI], ids=named)
async def test_finding_clients_F12_an_error_after_output(relay: RelayProcess, raw: RawUpstream, sample: Sample):
    customer = await relay.customer()
    kept = b"".join(sample.events[: 3 if sample is MESSAGES else 2 if sample is RESPONSES else 1])
    last = FAILED if sample is RESPONSES else as_stream(sample, error(sample, type="server_error"))
    answer, _ = await ask(customer, raw, sample, head(sample, "chunked", 0) + chunk_bytes(kept, last, end=True))
    assert (answer.status, answer.body, answer.complete) == (200, kept + last, True)
    record = await customer.call()
    assert (record["status"], record["error_code"]) == (200, "upstream_error")
    assert nano(record["cost"]) == await spent(customer) > 0
    assert record["output_tokens"] >= 1


ENDS: dict[str, tuple[Step, ...]] = {
    "fin": (Close(),),
    "rst": (Turn(0.05), Reset()),
    "half a last chunk": (b"0\r\n", Close()),
    "half a size": (b"1", Turn(), Close()),
    "an announced chunk": (b"20\r\n", Turn(), Close()),
    "a broken chunk": (b"zz\r\n", Close()),
    "broken bytes": (b"\n\n<html>", Turn()),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("sample", STREAMS, ids=named)
async def test_finding_clients_F10_any_end_behind_the_last_event(
    relay: RelayProcess, raw: RawUpstream, sample: Sample, end: str
):
    """money.md L5 too."""
    customer = await relay.customer()
    before = await failures(customer, sample.model)
    connections = raw.connections
    answer, _ = await ask(customer, raw, sample, head(sample, "chunked", 0) + chunk_bytes(*sample.events), *ENDS[end])
    assert (answer.status, answer.body.rstrip(), answer.complete) == (200, sample.body.rstrip(), True)
    record = await customer.call()
    assert (record["status"], record["error_code"], record["usage_source"]) == (200, None, "upstream")
    assert await spent(customer) == cost_of(sample.usage)
    assert await failures(customer, sample.model) == before
    await ask(customer, raw, sample, head(sample, "chunked", 0) + chunk_bytes(*sample.events, end=True))
    assert raw.connections > connections


@pytest.mark.parametrize("sample", STREAMS, ids=named)
async def test_finding_money_L5_a_fin_after_the_terminal_event(relay: RelayProcess, raw: RawUpstream, sample: Sample):
    """The call has finished and is charged as such; the channel has not failed."""
    customer = await relay.customer()
    before = await failures(customer, sample.model)
    answer, _ = await ask(customer, raw, sample, head(sample, "chunked", 0) + chunk_bytes(*sample.events), Close())
    assert (answer.status, answer.body, answer.complete) == (200, sample.body, True)
    record = await customer.call()
    assert (record["status"], record["error_code"], record["usage_source"]) == (200, None, "upstream")
    assert nano(record["cost"]) == await spent(customer) > 0
    assert await failures(customer, sample.model) == before


@pytest.mark.parametrize("sample", [CHAT, GEMINI_ARRAY], ids=named)
async def test_finding_clients_F10_a_length_that_is_not_reached(relay: RelayProcess, raw: RawUpstream, sample: Sample):
    customer = await relay.customer()
    answer, _ = await ask(customer, raw, sample, head(sample, "length", len(sample.body) + 500) + sample.body, Close())
    assert (answer.status, answer.body.rstrip(), answer.complete) == (200, sample.body.rstrip(), True)
    assert (await customer.call())["error_code"] is None
    # What cannot be made up is cut, and the answer has finished all the same.
    answer, _ = await ask(customer, raw, sample, head(sample, "length", 10**9) + sample.body, Close())
    assert (answer.body, answer.complete) == (sample.body, False)
    assert {record["error_code"] for record in await customer.calls(2)} == {None}


async def test_finding_clients_F10_silence_behind_the_last_event(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer()
    script = head(CHAT, "chunked", 0) + chunk_bytes(*CHAT.events)
    answer, _ = await ask(customer, raw, CHAT, script, Gate(asyncio.Event()), model="raw-slow")
    assert (answer.body, answer.complete) == (CHAT.body, True)
    assert (await customer.call())["error_code"] is None


async def test_finding_clients_F10_with_the_sdks(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer()

    def script(sample: Sample) -> str:
        return raw.script(head(sample, "chunked", 0) + chunk_bytes(*sample.events), Close())[0]

    async with async_openai(customer) as client:
        stream = await client.chat.completions.create(
            model="raw-chat", messages=[{"role": "user", "content": script(CHAT)}], stream=True
        )
        assert len([chunk async for chunk in stream]) == 3
        events = await client.responses.create(model="raw-chat", input=script(RESPONSES), stream=True)
        assert [event.type async for event in events][-1] == "response.completed"
    async with async_anthropic(customer) as claude:
        message = await claude.messages.create(
            model="raw-claude", max_tokens=9, messages=[{"role": "user", "content": script(MESSAGES)}], stream=True
        )
        assert [event.type async for event in message][-1] == "message_stop"
    async with google(customer) as gemini:
        parts = await gemini.aio.models.generate_content_stream(model="raw-gemini", contents=script(GEMINI))
        assert len([part async for part in parts]) == 2
    assert {record["error_code"] for record in await customer.calls(4)} == {None}


@pytest.mark.parametrize("sample", [CHAT, MESSAGES], ids=named)
async def test_before_the_last_event_an_end_is_a_cut(relay: RelayProcess, raw: RawUpstream, sample: Sample):
    """A finish reason alone is not the end: the report comes behind it."""
    customer = await relay.customer()
    events = sample.events[: 2 if sample is CHAT else 4]
    answer, _ = await ask(customer, raw, sample, head(sample, "chunked", 0) + chunk_bytes(*events), Close())
    assert not answer.complete
    assert (await customer.call())["error_code"] == "upstream_truncated"


@pytest.mark.parametrize("end", [Close(), Reset()], ids=["fin", "rst"])
@pytest.mark.parametrize("sample", [CHAT, MESSAGES, GEMINI], ids=named)
async def test_finding_wire_L2_the_end_inside_the_last_event_is_a_cut(
    relay: RelayProcess, raw: RawUpstream, sample: Sample, end: Step
):
    """Also where the close is the end of the body, and the finish reason has been seen."""
    customer = await relay.customer()
    reason = {CHAT: b'"stop"', MESSAGES: b'"end_turn"', GEMINI: b'"STOP"'}[sample]
    at = sample.body.index(reason) + len(reason)
    cuts = range(at, at + 3)
    for cut in cuts:
        answer, _ = await ask(customer, raw, sample, head(sample, "close", 0) + sample.body[:cut], Turn(0.01), end)
        assert not answer.complete, cut
    assert {record["error_code"] for record in await customer.calls(len(cuts))} == {"upstream_truncated"}


WORDS = 200


def words(sample: Sample, count: int = WORDS) -> bytes:
    """A stream of so many words, which reports as many tokens."""
    start = b""
    if sample.dialect == "anthropic":
        start = event("message_start", b'"message":{"usage":{"input_tokens":5,"output_tokens":1}}')
        word = event("content_block_delta", b'"delta":{"type":"text_delta","text":" word"}')
        end = event("message_delta", b'"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":%d}' % count)
        end += event("message_stop", b'"x":1')
    elif sample.dialect == "gemini":
        word = b'data: {"candidates":[{"content":{"parts":[{"text":" word"}]}}]}\n\n'
        usage = b'{"promptTokenCount":5,"candidatesTokenCount":%d}' % count
        end = b'data: {"candidates":[{"finishReason":"STOP"}],"usageMetadata":%b}\n\n' % usage
    else:
        word = b'data: {"choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
        usage = b'{"prompt_tokens":5,"completion_tokens":%d}' % count
        end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":%b}\n\n' % usage
        end += b"data: [DONE]\n\n"
    return start + word * count + end


def event(kind: str, rest: bytes) -> bytes:
    return b'event: %b\ndata: {"type":"%b",%b}\n\n' % (kind.encode(), kind.encode(), rest)


LABELS = ["application/json", "text/plain", "application/octet-stream", "application/x-ndjson", ""]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("sample", [CHAT, MESSAGES, GEMINI], ids=named)
async def test_finding_money_H3_a_stream_is_one_whatever_it_is_called(
    relay: RelayProcess, raw: RawUpstream, sample: Sample, label: str
):
    for framing in ("chunked", "length"):
        customer = await relay.customer()
        body = words(sample)
        start = head(replace(sample, content_type=label), framing, len(body))
        if not label:
            start = start.replace(b"content-type: \r\n", b"")
        sent = chunk_bytes(body, end=True) if framing == "chunked" else body
        answer, _ = await ask(customer, raw, sample, start + sent)
        assert (answer.status, answer.body, answer.complete) == (200, body, True)
        record = await customer.call()
        assert (record["input_tokens"], record["output_tokens"], record["usage_source"]) == (5, WORDS, "upstream")
        # It is cut where the balance ends.
        poor = await relay.customer("0.00016")  # about 70 words
        answer, _ = await ask(poor, raw, sample, start + sent)
        assert answer.body.count(b" word") < WORDS - 50
        assert not answer.complete
        record = await poor.call()
        assert record["error_code"] == "balance_exhausted"
        assert record["output_tokens"] >= answer.body.count(b" word") // 2


async def test_finding_money_H3_lines_of_json(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer()
    line = b'{"choices":[{"index":0,"delta":{"content":" word"}}]}\n'
    usage = b'{"prompt_tokens":5,"completion_tokens":%d}' % WORDS
    last = b'{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":%b}\n' % usage
    answer, _ = await ask(customer, raw, CHAT, html(line * WORDS + last, "application/x-ndjson"))
    assert (answer.status, answer.body) == (200, line * WORDS + last)
    assert (await customer.call())["output_tokens"] == WORDS


UNREAD = {
    "unknown": ("x-secret", lambda body: bytes(byte ^ 0x55 for byte in body)),
    "twice": ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
    "said and not done": ("br", lambda body: body),
}


@pytest.mark.parametrize("kind", UNREAD)
@pytest.mark.parametrize("sample", [CHAT, MESSAGES, GEMINI, *DOCUMENTS], ids=named)
async def test_finding_money_H3_what_cannot_be_read_is_counted_by_its_bytes(
    relay: RelayProcess, raw: RawUpstream, sample: Sample, kind: str
):
    customer = await relay.customer()
    coding, encode = UNREAD[kind]
    body = encode(words(sample) if sample in STREAMS else sample.body)
    model = sample.model.replace("raw-chat", "raw") + "-uncounted"
    answer, _ = await ask(
        customer, raw, sample, html(body, sample.content_type, **{"content-encoding": coding}), model=model
    )
    assert (answer.status, answer.body, answer.complete) == (200, body, True)
    record = await customer.call()
    limit = 50 if sample.dialect == "anthropic" else len(body)  # the caller's own max_tokens
    assert (record["output_tokens"], record["usage_source"]) == (min(len(body), limit), "estimated")
    if sample in (CHAT, GEMINI):
        poor = await relay.customer("0.00012")
        answer, _ = await ask(
            poor, raw, sample, html(body, sample.content_type, **{"content-encoding": coding}), model=model
        )
        record = await poor.call()
        assert record["error_code"] == "balance_exhausted"
        assert len(answer.body) <= record["output_tokens"] < 70


@pytest.mark.parametrize("sample", [CHAT, MESSAGES, GEMINI], ids=named)
async def test_finding_money_H3_a_compressed_stream_is_cut_too(relay: RelayProcess, raw: RawUpstream, sample: Sample):
    body = gzip.compress(words(sample, 2000))
    script = head(sample, "chunked", 0, "content-encoding: gzip") + chunk_bytes(
        *[body[at : at + 60] for at in range(0, len(body), 60)], end=True
    )
    customer = await relay.customer()
    answer, _ = await ask(customer, raw, sample, script)
    assert (answer.body, answer.complete) == (body, True)
    assert (await customer.call())["output_tokens"] == 2000
    poor = await relay.customer("0.0004")
    answer, _ = await ask(poor, raw, sample, script)
    assert not answer.complete
    record = await poor.call()
    assert record["error_code"] == "balance_exhausted"
    assert record["output_tokens"] < 1000


@pytest.mark.parametrize("sample", [CHAT, COMPLETIONS, RESPONSES, MESSAGES, GEMINI], ids=named)
async def test_finding_money_M2_a_document_where_a_stream_was_asked_for(
    relay: RelayProcess, raw: RawUpstream, sample: Sample
):
    usage = b'"usage":{"prompt_tokens":5,"completion_tokens":5000}'
    body = {
        "openai": b'{"choices":[{"index":0,"text":"","message":{"content":"%b"}}],' + usage + b"}",
        "anthropic": b'{"content":[{"text":"%b"}],"usage":{"input_tokens":5,"output_tokens":50}}',
        "gemini": b'{"candidates":[{"content":{"parts":[{"text":"%b"}]}}],"usageMetadata":'
        b'{"promptTokenCount":5,"candidatesTokenCount":5000}}',
    }[sample.dialect] % (b" word" * 5000)
    for pieces in ((html(body, "application/json"),), (html(body, "application/json")[:-9000], Turn(), body[-9000:])):
        poor = await relay.customer("0.00013")
        answer, _ = await ask(poor, raw, sample, *pieces)
        assert answer.status == 402, answer.body[:200]
        assert "error" in json.loads(answer.body)
        record = await poor.call()
        assert (record["error_code"], record["cost"]) == ("insufficient_balance", "0")
        assert await poor.settled_nano() == 130_000
        customer = await relay.customer()
        answer, _ = await ask(customer, raw, sample, *pieces)
        assert (answer.status, answer.body) == (200, body)
        assert (await customer.call())["usage_source"] == "upstream"


async def test_finding_money_M6_an_array_is_cut_between_its_elements(relay: RelayProcess, raw: RawUpstream):
    element = b'{"candidates":[{"content":{"parts":[{"text":" word {in} } braces"}]}}]}'
    body = b"[" + b",\r\n".join([element] * 2000) + b"]"
    for sent in (
        html(body, "application/json"),
        head(GEMINI_ARRAY, "chunked", 0)
        + chunk_bytes(*[body[at : at + 3571] for at in range(0, len(body), 3571)], end=True),
    ):
        poor = await relay.customer("0.0002")
        answer, _ = await ask(poor, raw, GEMINI_ARRAY, sent, model="raw-gemini-uncounted")
        assert not answer.complete
        assert answer.body.count(b" word") < 30
        if b"chunked" in sent[:200]:
            assert json.loads(answer.body)[-1]["error"]["details"][0]["reason"] == "BALANCE_EXHAUSTED"
        record = await poor.call()
        assert record["error_code"] == "balance_exhausted"
        assert nano(record["cost"]) - 200_000 < 10 * 2000  # one element at most is written off


TRAILERS = b"0\r\nOpenAI-Organization: org-operator\r\nSet-Cookie: a=b\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize("path", ["", "/v1/v1"], ids=["front door", "other way in"])
@pytest.mark.parametrize("sample", [CHAT, DOCUMENTS[0]], ids=named)
async def test_finding_wire_M9_trailers_are_dropped(relay: RelayProcess, raw: RawUpstream, sample: Sample, path: str):
    customer = await relay.customer()
    sample = replace(sample, path=path + sample.path[3:] if path else sample.path)
    wire = head(sample, "chunked", 0) + chunk_bytes(*sample.events) + TRAILERS
    start = len(wire) - len(TRAILERS)
    for cut in range(start - 1, len(wire) + 1, 1 if not path else 9):
        text, _ = raw.script(wire[:cut], Turn(0.001), wire[cut:])
        async with await RawClient.connect("127.0.0.1", relay.port) as client:
            await client.send(sample.request_bytes(customer.secret, text))
            answer = await client.response()
            assert (answer.body, answer.complete) == (sample.body, True), cut
            assert b"org-operator" not in client.received
            assert client.received.endswith(b"\r\n0\r\n\r\n")
            # The connection goes on.
            await client.send(request_bytes("GET", "/healthz", {}))
            assert (await client.response()).status == 200


CUT = [sample for sample in DOCUMENTS if sample.name != "chat-json"] + [GEMINI_ARRAY]


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("sample", [*CUT, CHAT, MESSAGES], ids=named)
async def test_finding_wire_L2_what_stops_in_the_middle_is_no_answer(
    relay: RelayProcess, raw: RawUpstream, sample: Sample, framing: str
):
    """Its own framing says that it is whole."""
    customer = await relay.customer()
    body = b"".join(sample.events[:-1]) if len(sample.events) > 1 else sample.body[:-4]
    if sample is GEMINI_ARRAY:
        body = sample.body.rstrip()[:-1]
    if sample in (CHAT, MESSAGES):
        body = b"".join(sample.events[: 1 if sample is CHAT else 3])
    sent = chunk_bytes(body, end=True) if framing == "chunked" else body
    close = (Close(),) if framing == "close" else ()
    for steps in (
        (head(sample, framing, len(body)) + sent, *close),
        (head(sample, framing, len(body)) + sent[:70], Turn(0.02), sent[70:], *close),
    ):
        answer, _ = await ask(customer, raw, sample, *steps)
        assert answer.status == 502 or not answer.complete, answer
    records = await customer.calls(2)
    assert {record["error_code"] for record in records} == {"upstream_truncated"}


async def test_finding_wire_L2_a_head_with_bare_line_feeds(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer()
    began = asyncio.get_running_loop().time()
    await refused(
        customer, raw, CHAT, b"HTTP/1.1 200 OK\ncontent-type: application/json\ncontent-length: 2\n\n{}",
        Gate(asyncio.Event()), code="upstream_garbage",
    )  # fmt: skip
    assert asyncio.get_running_loop().time() - began < 10


SOUND = b"\x00{not json} <html> \xff" * 50


async def media(customer: Customer, raw: RawUpstream, kind: str, *steps: Step, **fields: str) -> http1.Message:
    text, _ = raw.script(*steps)
    path, content_type = f"/v1/{kind}", "application/json"
    model = {"audio/speech": "raw-speech", "audio/transcriptions": "raw-scribe"}.get(kind, "raw-picture")
    if kind == "audio/transcriptions":
        content_type = "multipart/form-data; boundary=b"
        parts = {"model": model, "prompt": text, **fields}
        body = "".join(f'--b\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in parts.items())
        body += '--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        data = body.encode() + b"RIFF" + bytes(4000) + b"\r\n--b--\r\n"
    else:
        data = json.dumps({"model": model, "input": text, "prompt": text, **fields}).encode()
    sent = {"Authorization": f"Bearer {customer.secret}", "Content-Type": content_type}
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        await client.send(request_bytes("POST", path, sent, data))
        return await client.response()


async def test_what_is_no_json_keeps_its_form(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer()
    good = [
        ("audio/speech", SOUND, "audio/mpeg", {}),
        ("audio/speech", SOUND[1:], "audio/pcm", {}),
        ("audio/speech", SOUND[1:], "", {}),
        ("audio/transcriptions", b"data: hello", "text/plain", {"response_format": "text"}),
        ("audio/transcriptions", b"1\n00:00 --> 00:01\nhello", "application/x-subrip", {"response_format": "srt"}),
        ("audio/transcriptions", b'{"text":"hello"}', "text/plain", {"response_format": "vtt"}),
        ("audio/transcriptions", b'{"text":"hello","usage":{"type":"duration","seconds":1}}', "text/plain", {}),
        ("images/generations", SOUND, "image/png", {}),
    ]
    for kind, body, label, fields in good:
        for steps in ((html(body, label),), (html(body, label)[:-4], Turn(), body[-4:])):
            answer = await media(customer, raw, kind, *steps, **fields)
            assert (answer.status, answer.body, answer.complete) == (200, body, True), (kind, label, fields)
    records = await customer.calls(2 * len(good))
    assert {record["error_code"] for record in records} == {None}
    paid = {record["path"] for record in records if nano(record["cost"]) > 0}
    assert paid == {"/v1/audio/speech", "/v1/audio/transcriptions", "/v1/images/generations"}


@pytest.mark.parametrize("kind", ["audio/speech", "audio/transcriptions", "images/generations"])
async def test_finding_clients_F3_what_is_neither_sound_nor_a_transcript(
    relay: RelayProcess, raw: RawUpstream, kind: str
):
    bad = [
        (PAGE, "text/html", {}, "upstream_garbage"),
        (b"", "audio/mpeg", {}, "upstream_garbage"),
        (b"upstream connect error", "text/plain", {}, "upstream_garbage"),
        (b'{"error":{"message":"x"}}', "application/json", {}, "upstream_error"),
        (PAGE, "text/html", {"response_format": "text"}, "upstream_garbage"),
        (b'{"error":{"message":"x"}}', "application/json", {"response_format": "text"}, "upstream_error"),
    ]
    for body, label, fields, code in bad:
        if fields and kind != "audio/transcriptions":
            continue
        customer = await relay.customer()
        answer = await media(customer, raw, kind, html(body, label), **fields)
        assert answer.status == 502, (label, fields)
        assert PAGE not in answer.body
        assert (await customer.call())["error_code"] == code
        assert await spent(customer) == 0
