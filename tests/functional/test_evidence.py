"""What upstreams report that a call cannot have had: our own count is charged, the operator is told."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano, verified
from tests.functional.setting import RAW_KEY, channel
from tests.support.http1 import STREAM_HEAD, chunk_bytes, request_bytes, response_bytes
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="session")

CONFIG = """
[server]
[plans.open]
rpm = 0
tpm = 0
concurrency = 0
[plans.limited]
tpm = 100000
[jobs]
poll_seconds = 3600
[routing]
breaker_failure_percent = 0
"""
TOKENS = "input = 1\noutput = 2\ncache_read = 0.5\ncache_write = 1.5\nweb_search = 0.01\n"
RATES = {
    "chat": TOKENS,
    "claude": TOKENS,
    "gemini": TOKENS,
    "embed": "input = 1\noutput = 0\n",
    "heard-seconds": "input = 0\noutput = 0\nvideo_second = 0.0001\n",
    "heard-tokens": "input = 1\noutput = 2\n",
    "ranked": "input = 0\noutput = 0\nweb_search = 0.002\n",
    "picture": "input = 1\noutput = 2\n",
    "spoken": "input = 1\noutput = 2\n",
    "film": "input = 0\noutput = 0\nvideo_second = 0.1\n",
}
WORDS = " ".join(["word"] * 200)
TEXT_TOKENS = range(150, 401)  # our own count of them, whatever has been learnt


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def relay(raw: RawUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RelayProcess]:
    names = json.dumps([name for name in RATES if name not in ("claude", "gemini")])
    channels = [
        channel("raw-openai", "openai", raw.base_url + "/v1", names, RAW_KEY),
        channel("raw-anthropic", "anthropic", raw.base_url, '["claude"]', RAW_KEY),
        channel("raw-gemini", "gemini", raw.base_url, '["gemini"]', RAW_KEY),
    ]
    rates = [f'[[rates]]\nmodel = "{name}"\n{prices}' for name, prices in RATES.items()]
    async with verified(tmp_path_factory.mktemp("evidence"), CONFIG + "".join(channels) + "".join(rates)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def customer(relay: RelayProcess) -> Customer:
    return await relay.customer("500")


def event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def stream(*documents: Any, done: bool = False) -> bytes:
    events = [event(document) for document in documents] + ([b"data: [DONE]\n\n"] if done else [])
    return STREAM_HEAD + chunk_bytes(*events, end=True)


def whole(document: Any) -> bytes:
    return response_bytes(json.dumps(document).encode())


def chat_answer(usage: Any, *, streamed: bool = False, words: str = WORDS) -> bytes:
    if not streamed:
        choice = {"index": 0, "message": {"role": "assistant", "content": words}, "finish_reason": "stop"}
        return whole({"choices": [choice], "usage": usage})
    choice = {"index": 0, "delta": {"content": words}, "finish_reason": "stop"}
    return stream({"choices": [choice]}, {"choices": [], "usage": usage}, done=True)


def responses_answer(usage: Any, *, streamed: bool = False) -> bytes:
    output = [{"type": "message", "content": [{"type": "output_text", "text": WORDS}]}]
    if not streamed:
        return whole({"object": "response", "status": "completed", "output": output, "usage": usage})
    return stream(
        {"type": "response.output_text.delta", "delta": WORDS},
        {"type": "response.completed", "response": {"output": output, "usage": usage}},
    )


def claude_answer(usage: Any, *, streamed: bool = False, start: Any = None) -> bytes:
    if not streamed:
        content = [{"type": "text", "text": WORDS}]
        return whole({"type": "message", "content": content, "stop_reason": "end_turn", "usage": usage})
    start = {"input_tokens": 10, "output_tokens": 1} if start is None else start
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    return stream(
        {"type": "message_start", "message": {"type": "message", "usage": start}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": WORDS}},
        delta if usage is None else delta | {"usage": usage},
        {"type": "message_stop"},
    )


def candidate(words: str = WORDS, **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": words}]}, **more}]}


def gemini_answer(usage: Any, *, streamed: bool = False) -> bytes:
    document = candidate(finishReason="STOP") | {"usageMetadata": usage}
    return stream(document) if streamed else whole(document)


async def ask(
    customer: Customer, raw: RawUpstream, dialect: str, answer: bytes, *, streamed: bool = False, **more: Any
) -> dict[str, Any]:
    """The record of a call whose upstream answers so."""
    text, _ = raw.script(answer)
    headers = {"Authorization": f"Bearer {customer.secret}"}
    message = [{"role": "user", "content": text}]
    path, body = "/v1/chat/completions", {"model": "chat", "messages": message, "stream": streamed, **more}
    if dialect == "responses":
        path, body = "/v1/responses", {"model": "chat", "input": text, "stream": streamed, **more}
    elif dialect == "messages":
        path, body = "/v1/messages", {"model": "claude", "messages": message, "max_tokens": 1000, "stream": streamed}
        body |= more
        headers["anthropic-version"] = "2023-06-01"
    elif dialect == "generate":
        verb = "streamGenerateContent?alt=sse" if streamed else "generateContent"
        path, body = f"/v1beta/models/gemini:{verb}", {"contents": [{"parts": [{"text": text}]}], **more}
    elif dialect == "rerank":
        path, body = "/v1/rerank", {"model": "ranked", "query": text, "documents": ["one", "two"]}
    elif dialect == "embeddings":
        path, body = "/v1/embeddings", {"model": "embed", "input": text}
    return await send(customer, path, headers, json.dumps(body).encode())


async def send(customer: Customer, path: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        got = await client.request("POST", path, headers, body, timeout_seconds=20.0)
    assert got.status == 200, got.body
    name = got.header("x-relay-request-id")
    found: dict[str, Any] = {}

    async def recorded() -> bool:
        found.update(next((row for row in await customer.relay.calls(key=customer.key) if row["id"] == name), {}))
        return bool(found)

    await eventually(recorded)
    return found


async def doubts(relay: RelayProcess, kind: str = "report_rejected") -> set[tuple[str, str]]:
    """(why, what) of the events about reports."""
    listed = await relay.command("events", limit=1000)
    return {(row["code"], row["detail"]) for row in listed["events"] if row["kind"] == kind}


async def told(relay: RelayProcess, why: str, what: str, kind: str = "report_rejected") -> None:
    async def seen() -> bool:
        return any(code == why and what in detail for code, detail in await doubts(relay, kind))

    await eventually(seen, what=f"an event {why} {what}")


# -- money H1: absurd counts


ABSURD: dict[str, tuple[str, bytes]] = {
    "prompt": ("chat", chat_answer({"prompt_tokens": 10**9, "completion_tokens": 200})),
    "cached": ("messages", claude_answer({"input_tokens": 9, "output_tokens": 200, "cache_read_input_tokens": 2**40})),
    "written": (
        "messages",
        claude_answer({"input_tokens": 9, "output_tokens": 200, "cache_creation_input_tokens": 10**10}),
    ),
    "searches": (
        "messages",
        claude_answer({"input_tokens": 9, "output_tokens": 200, "server_tool_use": {"web_search_requests": 10**9}}),
    ),
    "queries": ("chat", chat_answer({"prompt_tokens": 9, "completion_tokens": 200, "num_search_queries": 10**9})),
    "sum": (
        "messages",
        claude_answer(
            {
                "input_tokens": 9000,
                "cache_read_input_tokens": 9000,
                "cache_creation_input_tokens": 9000,
                "output_tokens": 200,
            }
        ),
    ),
    "output": ("responses", responses_answer({"input_tokens": 9, "output_tokens": 10**9})),
    "thoughts": (
        "generate",
        gemini_answer({"promptTokenCount": 9, "candidatesTokenCount": 200, "thoughtsTokenCount": 2**40}),
    ),
    "units": ("rerank", whole({"results": [], "meta": {"billed_units": {"search_units": 10**9}}})),
    "embedded": ("embeddings", whole({"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 10**9}})),
}


@pytest.mark.parametrize("name", ABSURD)
async def test_finding_money_H1_absurd_counts(relay: RelayProcess, customer: Customer, raw: RawUpstream, name: str):
    dialect, answer = ABSURD[name]
    record = await ask(customer, raw, dialect, answer)
    assert record["usage_source"] == "estimated"
    assert 0 < nano(record["cost"]) <= 2_100_000  # two hundred words and a short prompt, or a unit of ranking
    assert record["input_tokens"] < 100
    assert record["cache_read_tokens"] == record["cache_write_tokens"] == 0
    assert record["web_searches"] == (name == "units")
    if dialect not in ("rerank", "embeddings"):
        assert record["output_tokens"] in TEXT_TOKENS
    what = {"output": "output_tokens", "thoughts": "output_tokens"}.get(name, "input_tokens")
    await told(relay, "above_bound", "web_searches" if name in ("searches", "queries", "units") else what)


async def test_finding_money_H1_no_debt_of_tokens_per_minute(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer("500", plan="limited")
    for _ in range(3):
        await ask(customer, raw, "chat", chat_answer({"prompt_tokens": 10**9, "completion_tokens": 2**40}))
    assert await customer.settled_nano() > 499 * 10**9


def heard(model: str, text: str, seconds: int = 3) -> bytes:
    """A form with a sound file of so many seconds."""
    data = bytes(32_000 * seconds)
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16,
                       b"data", len(data))  # fmt: skip
    parts = [
        b'Content-Disposition: form-data; name="model"\r\n\r\n' + model.encode(),
        b'Content-Disposition: form-data; name="prompt"\r\n\r\n' + text.encode(),
        b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + head + data,
    ]
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


async def transcribe(customer: Customer, raw: RawUpstream, model: str, document: Any) -> dict[str, Any]:
    text, _ = raw.script(whole(document))
    headers = {
        "Authorization": f"Bearer {customer.secret}",
        "Content-Type": "multipart/form-data; boundary=b",
    }
    return await send(customer, "/v1/audio/transcriptions", headers, heard(model, text))


@pytest.mark.parametrize("duration", [10**9, 10**9 + 0.5, "3", -3, None, 0])
async def test_finding_money_H1_seconds_of_sound(customer: Customer, raw: RawUpstream, duration: Any):
    record = await transcribe(customer, raw, "heard-seconds", {"text": "a", "duration": duration})
    assert (record["video_seconds"], record["usage_source"], record["cost"]) == (3, "estimated", "0.0003")


async def test_seconds_of_sound_that_are_possible_count(customer: Customer, raw: RawUpstream):
    record = await transcribe(customer, raw, "heard-seconds", {"text": "a", "duration": 2.2})
    assert (record["video_seconds"], record["usage_source"]) == (3, "upstream")


# -- money H4, wire M3: half a report


H4: dict[str, tuple[str, bytes]] = {
    f"{name}-{kind}": (dialect, make(usage, streamed=streamed))
    for streamed, kind in ((False, "json"), (True, "stream"))
    for name, dialect, make, usage in (
        ("chat-prompt-alone", "chat", chat_answer, {"prompt_tokens": 12}),
        ("chat-negative", "chat", chat_answer, {"prompt_tokens": 12, "completion_tokens": -7}),
        ("chat-zero", "chat", chat_answer, {"prompt_tokens": 12, "completion_tokens": 0, "total_tokens": 12}),
        ("responses-prompt-alone", "responses", responses_answer, {"input_tokens": 12}),
        ("messages-prompt-alone", "messages", claude_answer, {"input_tokens": 12}),
        ("messages-negative", "messages", claude_answer, {"input_tokens": 12, "output_tokens": -5}),
        ("messages-empty", "messages", claude_answer, {"input_tokens": 12} if not streamed else {}),
        ("generate-prompt-alone", "generate", gemini_answer, {"promptTokenCount": 12}),
    )
} | {"messages-no-usage-in-the-delta": ("messages", claude_answer(None, streamed=True))}


@pytest.mark.parametrize("name", H4)
async def test_finding_money_H4_no_output_in_the_report(customer: Customer, raw: RawUpstream, name: str):
    dialect, answer = H4[name]
    record = await ask(customer, raw, dialect, answer, streamed=b"event-stream" in answer)
    assert record["output_tokens"] in TEXT_TOKENS
    assert record["input_tokens"] in (10, 12)
    assert record["usage_source"] == "estimated"


@pytest.mark.parametrize(
    "usage",
    [{"input_tokens": 9}, {"input_tokens": 9, "output_tokens": 0}, {"input_tokens": 9, "output_tokens": 10**9}],
    ids=str,
)
async def test_finding_money_H4_pictures_and_sound(customer: Customer, raw: RawUpstream, usage: dict[str, int]):
    headers = {"Authorization": f"Bearer {customer.secret}"}
    text, _ = raw.script(whole({"data": [{"b64_json": "QUJD"}], "usage": usage}))
    body = {"model": "picture", "prompt": text}
    record = await send(customer, "/v1/images/generations", headers, json.dumps(body).encode())
    assert (record["input_tokens"], record["output_tokens"], record["usage_source"]) == (9, 1120, "estimated")
    sound = {"type": "speech.audio.delta", "audio": "QUJD"}
    text, _ = raw.script(stream(sound, {"type": "speech.audio.done", "usage": usage}))
    body = {"model": "spoken", "input": "word " * 100 + text, "voice": "a", "stream_format": "sse"}
    record = await send(customer, "/v1/audio/speech", headers, json.dumps(body).encode())
    assert (record["input_tokens"], record["usage_source"]) == (9, "estimated")
    assert 500 < record["output_tokens"] < 1000  # 1.4 for a character


async def test_finding_money_H4_gemini_reports_in_its_first_event_only(customer: Customer, raw: RawUpstream):
    first = candidate("word") | {"usageMetadata": {"promptTokenCount": 12, "candidatesTokenCount": 10}}
    answer = stream(first, *[candidate(" one two")] * 100, candidate("", finishReason="STOP"))
    record = await ask(customer, raw, "generate", answer, streamed=True)
    assert record["output_tokens"] in range(160, 420)
    assert (record["input_tokens"], record["usage_source"]) == (12, "estimated")


@pytest.mark.parametrize("value", [-5, None, "120", 1.5, True, {}, [], 10**400], ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("side", ["prompt", "completion"])
async def test_finding_wire_M3_half_a_report(customer: Customer, raw: RawUpstream, side: str, value: Any):
    name = str(value)[:3]
    usage = {"prompt_tokens": 12, "completion_tokens": 200} | {f"{side}_tokens": value}
    record = await ask(customer, raw, "chat", chat_answer(usage))
    assert record["usage_source"] == "estimated", name
    assert record["output_tokens"] in (TEXT_TOKENS if side == "completion" else (200,))
    assert record["input_tokens"] == 12 or side == "prompt"
    assert 0 < record["input_tokens"] < 100


async def test_finding_wire_M3_zero_reports_teach_nothing(relay: RelayProcess, raw: RawUpstream):
    customer = await relay.customer("500")
    answer = chat_answer({"prompt_tokens": 0, "completion_tokens": 0})
    counted = [(await ask(customer, raw, "chat", answer))["output_tokens"] for _ in range(12)]
    assert len(set(counted)) == 1


# -- clients F6, F7, F18, F21


async def test_finding_clients_F6_counts_never_fall(customer: Customer, raw: RawUpstream):
    start = {
        "input_tokens": 1000,
        "cache_read_input_tokens": 500,
        "cache_creation_input_tokens": 200,
        "output_tokens": 1,
    }
    zeros = dict.fromkeys(start, 0) | {"output_tokens": 200}
    record = await ask(customer, raw, "messages", claude_answer(zeros, streamed=True, start=start), streamed=True)
    found = [record[f"{name}_tokens"] for name in ("input", "cache_read", "cache_write", "output")]
    assert found == [1000, 500, 200, 200]
    assert record["usage_source"] == "upstream"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dialect", ["chat", "responses", "messages", "generate"])
async def test_finding_clients_F7_a_usage_of_zeros(
    relay: RelayProcess, customer: Customer, raw: RawUpstream, dialect: str, streamed: bool
):
    names = {"chat": ("prompt_tokens", "completion_tokens", "total_tokens")}.get(dialect)
    names = names or {"generate": ("promptTokenCount", "candidatesTokenCount", "totalTokenCount")}.get(dialect)
    usage = dict.fromkeys(names or ("input_tokens", "output_tokens"), 0)
    make = {"chat": chat_answer, "responses": responses_answer, "messages": claude_answer}.get(dialect, gemini_answer)
    more = {"start": usage} if dialect == "messages" and streamed else {}
    record = await ask(customer, raw, dialect, make(usage, streamed=streamed, **more), streamed=streamed)
    assert record["output_tokens"] in TEXT_TOKENS
    assert record["input_tokens"] > 0
    assert record["usage_source"] == "estimated"
    await told(relay, "zero", "output_tokens 0")


async def test_finding_clients_F7_zeros_after_a_right_report(customer: Customer, raw: RawUpstream):
    right = {"prompt_tokens": 12, "completion_tokens": 201, "total_tokens": 213}
    answer = stream(
        {"choices": [{"index": 0, "delta": {"content": WORDS}, "finish_reason": "stop"}], "usage": right},
        {"choices": [], "usage": dict.fromkeys(right, 0)},
        done=True,
    )
    record = await ask(customer, raw, "chat", answer, streamed=True)
    assert (record["input_tokens"], record["output_tokens"], record["usage_source"]) == (12, 201, "upstream")


@pytest.mark.parametrize("streamed", [False, True])
async def test_finding_clients_F18_gemini_with_its_sum_alone(customer: Customer, raw: RawUpstream, streamed: bool):
    answer = gemini_answer({"promptTokenCount": 12, "totalTokenCount": 214}, streamed=streamed)
    record = await ask(customer, raw, "generate", answer, streamed=streamed)
    assert (record["input_tokens"], record["output_tokens"], record["usage_source"]) == (12, 202, "upstream")


async def test_finding_clients_F21_a_report_in_other_units(relay: RelayProcess, customer: Customer, raw: RawUpstream):
    tokens = {"type": "tokens", "input_tokens": 30, "output_tokens": 4, "total_tokens": 34}
    record = await transcribe(customer, raw, "heard-seconds", {"text": "a", "usage": tokens})
    assert (record["video_seconds"], record["usage_source"], record["cost"]) == (3, "estimated", "0.0003")
    record = await transcribe(customer, raw, "heard-tokens", {"text": "a", "duration": 2.9})
    assert record["input_tokens"] >= 30  # ten a second
    assert record["output_tokens"] == 115  # what was held
    assert record["usage_source"] == "estimated"
    assert nano(record["cost"]) > 0
    await told(relay, "missing", "video_seconds")
    await told(relay, "missing", "input_tokens")


# -- money L7: a report that is possible, and far from what was sent


async def test_finding_money_L7_far_less_and_far_more_than_was_sent(
    relay: RelayProcess, customer: Customer, raw: RawUpstream
):
    record = await ask(customer, raw, "chat", chat_answer({"prompt_tokens": 12, "completion_tokens": 3}))
    assert (record["output_tokens"], record["usage_source"]) == (3, "upstream")
    await told(relay, "less_than_sent", "output_tokens 3,", "report_odd")
    record = await ask(customer, raw, "chat", chat_answer({"prompt_tokens": 12, "completion_tokens": 9000}))
    assert (record["output_tokens"], record["usage_source"]) == (9000, "upstream")
    await told(relay, "more_than_sent", "output_tokens 9000,", "report_odd")
    thoughts = {"completion_tokens_details": {"reasoning_tokens": 8500}}
    usage = {"prompt_tokens": 12, "completion_tokens": 8700} | thoughts
    record = await ask(customer, raw, "chat", chat_answer(usage))
    assert (record["output_tokens"], record["usage_source"]) == (8700, "upstream")
    assert not any("8700" in detail for _, detail in await doubts(relay, "report_odd"))


async def test_events_about_reports_name_no_content(relay: RelayProcess, customer: Customer, raw: RawUpstream):
    await ask(customer, raw, "chat", chat_answer({"prompt_tokens": 12, "completion_tokens": -7}))
    listed = await relay.command("events", limit=1000)
    rows = [row for row in listed["events"] if row["kind"] == "report_rejected"]
    assert all(row["channel"].startswith("raw-") and "word" not in row["detail"] for row in rows)


# -- jobs


async def job(customer: Customer, raw: RawUpstream, path: str, document: dict[str, Any], body: dict[str, Any]) -> dict:
    """The record of a job that its provider shows as ended at once."""
    text, _ = raw.script(whole(document))
    data = json.dumps(body | {"metadata": {"note": text}}).encode()
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        got = await client.request("POST", path, {"Authorization": f"Bearer {customer.secret}"}, data)
    assert got.status == 200, got.body
    rows: list[dict[str, Any]] = []

    async def ended() -> bool:
        rows[:] = [row for row in await customer.relay.calls(key=customer.key) if row["path"] == path and row["model"]]
        return bool(rows)

    await eventually(ended)
    return rows[0]


async def upload(customer: Customer, raw: RawUpstream, name: str) -> None:
    lines = [
        {
            "custom_id": str(at),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "chat", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]},
        }
        for at in range(2)
    ]
    text, _ = raw.script(whole({"id": name, "object": "file", "purpose": "batch"}))
    parts = [
        b'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch',
        b'Content-Disposition: form-data; name="file"; filename="%b.jsonl"\r\n\r\n' % text.encode()
        + b"".join(json.dumps(line).encode() + b"\n" for line in lines),
    ]
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    headers = {"Authorization": f"Bearer {customer.secret}", "Content-Type": "multipart/form-data; boundary=b"}
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        got = await client.request("POST", "/v1/files", headers, body)
    assert got.status == 200, got.body


USAGES = [
    {"input_tokens": -1, "output_tokens": 2**50},
    {"input_tokens": 10, "output_tokens": 2**40},
    {"input_tokens": 10**9, "output_tokens": 100},
    {"input_tokens": 2**63, "output_tokens": 2**63},
    {"input_tokens": "20", "output_tokens": 100},
    {"input_tokens": 20, "output_tokens": 1.5},
]


@pytest.mark.parametrize("usage", USAGES, ids=lambda value: str(value)[:40])
async def test_finding_money_H1_the_usage_of_a_batch(customer: Customer, raw: RawUpstream, usage: dict[str, Any]):
    name = f"{customer.account}-file"
    await upload(customer, raw, name)
    document = {"id": f"batch-{customer.account}", "object": "batch", "status": "completed", "usage": usage}
    body = {"input_file_id": name, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    record = await job(customer, raw, "/v1/batches", document, body)
    assert nano(record["cost"]) <= 200_000  # two hundred tokens at the price of output: a batch is held for half of it
    assert await customer.settled_nano() >= 500 * 10**9 - 200_000


@pytest.mark.parametrize(
    "usage", [*USAGES, None, {}, {"input_tokens": 0, "output_tokens": 0}], ids=lambda value: str(value)[:40]
)
async def test_finding_money_H1_the_usage_of_a_response_in_the_background(
    customer: Customer, raw: RawUpstream, usage: Any
):
    output = [{"type": "message", "content": [{"type": "output_text", "text": WORDS}]}]
    document = {"id": f"resp_{customer.account}", "object": "response", "status": "completed", "output": output}
    body = {"model": "chat", "input": "Hi", "background": True}
    record = await job(customer, raw, "/v1/responses", document | {"usage": usage}, body)
    assert record["usage_source"] == "estimated"
    assert 0 < record["input_tokens"] < 100
    assert record["output_tokens"] in TEXT_TOKENS or record["output_tokens"] == 100
    assert nano(record["cost"]) < 1_000_000


@pytest.mark.parametrize("where", ["call", "stream", "job"])
async def test_finding_money_H1_a_sum_beside_a_prompt_that_is_no_number(
    customer: Customer, raw: RawUpstream, where: str
):
    usage = {"input_tokens": "12", "output_tokens": None, "total_tokens": 2**63}
    if where == "job":
        output = [{"type": "message", "content": [{"type": "output_text", "text": WORDS}]}]
        document = {"id": f"resp_{customer.account}", "object": "response", "status": "completed", "output": output}
        body = {"model": "chat", "input": "Hi", "background": True}
        record = await job(customer, raw, "/v1/responses", document | {"usage": usage}, body)
    else:
        answer = responses_answer(usage, streamed=where == "stream")
        record = await ask(customer, raw, "responses", answer, streamed=where == "stream")
    assert record["usage_source"] == "estimated"
    assert 0 < record["input_tokens"] < 100
    assert nano(record["cost"]) < 1_000_000


@pytest.mark.parametrize(
    "name", ["\ud800", "../../v1/models", "a b", "x" * 200, 7, {}], ids=lambda name: repr(name)[:9]
)
async def test_finding_money_H1_the_files_of_a_batch_have_names(customer: Customer, raw: RawUpstream, name: Any):
    """A file that has none is not asked for, and its batch ends all the same: by its sum."""
    file = f"{customer.account}-file"
    await upload(customer, raw, file)
    usage = {"input_tokens": 20, "output_tokens": 40}
    document = {"id": f"batch-{customer.account}", "object": "batch", "status": "completed", "usage": usage}
    document |= {"output_file_id": name, "error_file_id": name}
    body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    record = await job(customer, raw, "/v1/batches", document, body)
    assert (record["input_tokens"], record["output_tokens"]) == (20, 40)


@pytest.mark.parametrize("seconds", ["9999", 9999, "-4", "4.5", 2**63, None, True], ids=lambda value: str(value)[:40])
async def test_finding_money_H1_the_seconds_of_a_video(customer: Customer, raw: RawUpstream, seconds: Any):
    document = {"id": f"video_{customer.account}", "object": "video", "status": "completed", "seconds": seconds}
    record = await job(customer, raw, "/v1/videos", document, {"model": "film", "prompt": "a", "seconds": "4"})
    assert (record["video_seconds"], record["usage_source"], record["cost"]) == (4, "estimated", "0.4")


# -- all fields, through the relay


SWEEP = [None, -1, 0, 16_400, 10**9, 2**40, 2**63, "12", 1.5, True, [12]]


@pytest.mark.parametrize("value", SWEEP, ids=lambda value: str(value)[:40])
async def test_any_value_in_any_field_is_charged_within_the_bound(
    relay: RelayProcess, customer: Customer, raw: RawUpstream, value: Any
):
    fields = {
        "chat": ("prompt_tokens", "completion_tokens", "prompt_tokens_details.cached_tokens", "num_search_queries"),
        "responses": ("input_tokens", "output_tokens", "total_tokens"),
        "messages": ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
                     "cache_creation.ephemeral_1h_input_tokens", "server_tool_use.web_search_requests"),
        "generate": ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount",
                     "cachedContentTokenCount"),
    }  # fmt: skip
    right = {
        "chat": {"prompt_tokens": 12, "completion_tokens": 200},
        "responses": {"input_tokens": 12, "output_tokens": 200},
        "messages": {"input_tokens": 12, "output_tokens": 200},
        "generate": {"promptTokenCount": 12, "candidatesTokenCount": 200},
    }
    make = {"chat": chat_answer, "responses": responses_answer, "messages": claude_answer, "generate": gemini_answer}
    last = 500 * 10**9
    for at, (dialect, names) in enumerate(fields.items()):
        for place, name in enumerate(names):
            outer, _, inner = name.partition(".")
            usage = right[dialect] | {outer: {inner: value} if inner else value}
            streamed = bool((at + place) % 2)
            record = await ask(customer, raw, dialect, make[dialect](usage, streamed=streamed), streamed=streamed)
            assert record["output_tokens"] > 0, (name, value)
            prompt = record["input_tokens"] + record["cache_read_tokens"] + record["cache_write_tokens"]
            assert 0 < prompt < 20_000, (name, value)
            assert record["output_tokens"] < 70_000, (name, value)
            assert record["web_searches"] <= 128, (name, value)
            now = await customer.settled_nano()
            assert 0 < last - now == nano(record["cost"]) < 2 * 10**9, (name, value)
            last = now
    assert (await relay.command("ledger verify"))["ok"]


# -- a process that dies


async def test_a_call_of_a_process_that_died_is_charged_by_the_same_rule(
    raw: RawUpstream, tmp_path_factory: pytest.TempPathFactory
):
    text = CONFIG + channel("raw", "anthropic", raw.base_url, '["claude"]', RAW_KEY)
    relay = RelayProcess(tmp_path_factory.mktemp("died"), f'{text}[[rates]]\nmodel = "claude"\n{TOKENS}')
    try:
        await relay.start()
        customer = await relay.customer("500")
        absurd = {"input_tokens": 12, "cache_read_input_tokens": 2**40, "output_tokens": 10**9}
        script, _ = raw.script(
            STREAM_HEAD,
            chunk_bytes(event({"type": "message_start", "message": {"usage": absurd}})),
            chunk_bytes(event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": WORDS}})),
            Gate(asyncio.Event()),
        )
        body = {"model": "claude", "messages": [{"role": "user", "content": script}], "max_tokens": 900, "stream": True}
        head = {"Authorization": f"Bearer {customer.secret}", "anthropic-version": "2023-06-01"}
        async with await RawClient.connect("127.0.0.1", relay.port) as client:
            await client.send(request_bytes("POST", "/v1/messages", head, json.dumps(body).encode()))
            await client.until_contains(b"word word")
            await relay.kill()
        await relay.start()
        record = await customer.call()
        assert (record["error_code"], record["usage_source"]) == ("recovered", "estimated")
        assert record["cache_read_tokens"] == 0
        assert record["input_tokens"] < 100
        assert record["output_tokens"] in TEXT_TOKENS
        assert await customer.settled_nano() == 500 * 10**9 - nano(record["cost"])
        assert (await relay.command("ledger verify"))["ok"]
        assert await relay.stop() == 0
    finally:
        await relay.kill()
