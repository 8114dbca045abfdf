"""Every thing that a provider bills is priced or refused: tools that it runs, and models beside the one asked for."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.functional.raw_upstream import Gate, RawUpstream
from tests.functional.relay_process import Customer, RelayProcess, eventually, nano
from tests.functional.setting import OPERATOR_TOKEN, RAW_KEY, channel
from tests.support.http1 import Message
from tests.support.rawclient import RawClient

pytestmark = pytest.mark.asyncio(loop_scope="session")

RATES = """
[[rates]]
model = "m"
input = 1
output = 2
[[rates]]
model = "dear"
input = 10
output = 20
[[rates]]
model = "cached"
input = 1
output = 2
cache_read = 0.1
cache_write = 1.25
cache_write_1h = 2
[[rates]]
model = "heard"
input = 1
output = 2
audio_input = 32
audio_cache_read = 8
[[rates]]
model = "free-tools"
input = 1
output = 2
web_search = 0
tools = { file_search = 0, new_tool = 0 }
"""
OPENAI = (
    '["gpt-5.5", "gpt-4o-search-preview", "m", "dear", "cached", "grok-4.20", "free-tools", "heard", '
    '"mistral-small-latest"]'
)
ADVISOR_WITHOUT_END = {
    "type": "advisor_20260301", "name": "advisor", "model": "claude-opus-4-8", "max_uses": 10**18, "max_tokens": 10**18,
}  # fmt: skip
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
GEMINI = "/v1beta/models/gemini-3.5-flash:generateContent"


def config(raw: RawUpstream, billing: str = "") -> str:
    text = f'[server]\ndrain_seconds = 2\n[admin]\ntoken = "{OPERATOR_TOKEN}"\n[plans.open]\n[billing]\n{billing}\n'
    text += channel("openai", "openai", raw.base_url + "/v1", OPENAI, RAW_KEY)
    text += channel("anthropic", "anthropic", raw.base_url, '["claude-haiku-4-5", "claude-opus-4-8"]', RAW_KEY)
    text += channel("gemini", "gemini", raw.base_url, '["gemini-3.5-flash", "gemini-2.5-flash"]', RAW_KEY)
    return text + RATES


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def strict(tmp_path_factory: pytest.TempPathFactory, raw: RawUpstream) -> AsyncIterator[RelayProcess]:
    relay = RelayProcess(tmp_path_factory.mktemp("strict"), config(raw))
    await relay.start()
    yield relay
    await relay.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def lenient(tmp_path_factory: pytest.TempPathFactory, raw: RawUpstream) -> AsyncIterator[RelayProcess]:
    relay = RelayProcess(tmp_path_factory.mktemp("lenient"), config(raw, 'unpriced = "allow"'))
    await relay.start()
    yield relay
    await relay.kill()


def body(path: str, model: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    if path == RESPONSES:
        return {"model": model, "input": text, **more}
    if path == MESSAGES:
        return {"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": text}], **more}
    if path == CHAT:
        return {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return {"contents": [{"role": "user", "parts": [{"text": text}]}], **more}


async def send(customer: Customer, path: str, document: dict[str, Any]) -> Message:
    async with await RawClient.connect("127.0.0.1", customer.relay.port) as client:
        fields = {"Authorization": f"Bearer {customer.secret}", "content-type": "application/json"}
        return await client.request("POST", path, fields, json.dumps(document).encode())


def answer(document: dict[str, Any]) -> bytes:
    text = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(text) + text


PLAIN: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": "m", "choices": [{"index": 0, "message": {"content": "Hello there"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    },
    RESPONSES: {
        "object": "response", "status": "completed", "model": "m",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hello there"}]}],
        "usage": {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120},
    },
    MESSAGES: {
        "type": "message", "content": [{"type": "text", "text": "Hello there"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 100, "output_tokens": 20},
    },
    GEMINI: {
        "candidates": [{"content": {"parts": [{"text": "Hello there"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 120},
    },
}  # fmt: skip


async def refused(
    relay: RelayProcess, raw: RawUpstream, path: str, model: str, code: str, field: str, only: list[str] | None = None,
    **more: Any,
) -> None:  # fmt: skip
    """Refused before anything is forwarded, with the field named."""
    customer = await relay.customer(models=only) if only else await relay.customer()
    text, exchange = raw.script(answer(PLAIN[path]))
    reply = await send(customer, path, body(path, model, text, **more))
    found = json.loads(reply.body)["error"]
    assert (reply.status, (await customer.call())["error_code"]) == (403 if code == "model_not_allowed" else 400, code)
    assert code == "model_not_allowed" or f"`{field}`" in found["message"]
    assert exchange.requests == []
    assert (await customer.money())["available"] == "100"


async def passed(relay: RelayProcess, raw: RawUpstream, path: str, model: str, **more: Any) -> str:
    """Forwarded as it came; what it cost."""
    customer = await relay.customer()
    text, exchange = raw.script(answer(PLAIN[path]))
    document = body(path, model, text, **more)
    assert (await send(customer, path, document)).status == 200
    assert json.loads(exchange.bodies[0]) == document
    return str((await customer.call())["cost"])


# Each is (path, model, what the request has, the field that the refusal names).
SECOND_MODELS = [
    (MESSAGES, "claude-haiku-4-5", {"fallbacks": [{"model": "claude-opus-4-8"}]}, "fallbacks"),
    (MESSAGES, "claude-haiku-4-5", {"fallbacks": "default"}, "fallbacks"),
    (CHAT, "m", {"fallbacks": ["dear"]}, "fallbacks"),
    (CHAT, "m", {"models": ["m", "dear"]}, "models"),
    (RESPONSES, "m", {"models": ["dear"]}, "models"),
    (CHAT, "m", {"route": "fallback"}, "route"),
    (CHAT, "m", {"plugins": [{"id": "auto-router"}]}, "plugins"),
    (CHAT, "m", {"compound_custom": {"models": {"answering_model": "dear"}}}, "compound_custom"),
    (GEMINI, "", {"generationConfig": {"routingConfig": {"manualMode": {"modelName": "x"}}}}, "routingConfig"),
    (GEMINI, "", {"generation_config": {"routing_config": {"autoMode": {}}}}, "routingConfig"),
]
UNPRICED = [
    (RESPONSES, "gpt-5.5", {"tools": [{"type": "new_tool"}]}, "tools[0].type"),
    (RESPONSES, "gpt-5.5", {"tools": [{"type": "namespace", "tools": [{"type": "new_tool"}]}]}, "tools[0].type"),
    (RESPONSES, "gpt-5.5", {"tools": [{"type": "image_generation", "model": "unheard-of"}]}, "tools.image_generation"),
    (CHAT, "m", {"tools": [{"type": "openrouter:advisor", "model": "dear"}]}, "tools.openrouter_advisor"),
    (CHAT, "m", {"tools": [{"type": "browser_search"}]}, "tools.browser_search"),
    (CHAT, "m", {"tools": [{"type": "builtin_function"}]}, "tools.builtin_function"),
    (CHAT, "m", {"tools": [{"googleMaps": {}}]}, "tools.google_maps"),
    (CHAT, "m", {"plugins": [{"id": "file-parser", "pdf": {"engine": "mistral-ocr"}}]}, "plugins"),
    (CHAT, "mistral-small-latest", {"tools": [{"type": "web_search"}]}, "tools.web_search"),
    (CHAT, "mistral-small-latest", {"enable_search": True}, "tools.web_search"),
    (CHAT, "m", {"search_parameters": {}}, "search_parameters"),
    (CHAT, "m", {"search_parameters": {"mode": "on"}}, "search_parameters"),
    (MESSAGES, "claude-haiku-4-5", {"tools": [{"type": "advisor_20260301", "model": "unheard-of"}]}, "tools.advisor"),
    (MESSAGES, "claude-haiku-4-5", {"tools": [{"type": "new_tool_20270101", "name": "x"}]}, "tools[0].type"),
    (GEMINI, "", {"tools": [{"retrieval": {"vertexAiSearch": {}}}]}, "tools.retrieval"),
    (GEMINI, "", {"tools": [{"fileSearch": {"fileSearchStoreNames": ["s"]}}]}, "tools.file_search"),
    (GEMINI, "", {"tools": {"enterprise_web_search": {}}}, "tools.enterprise_web_search"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(SECOND_MODELS)))
async def test_finding_wire_M1_a_second_model_is_refused(strict: RelayProcess, raw: RawUpstream, case: int):
    path, model, more, field = SECOND_MODELS[case]
    await refused(strict, raw, path, model, "tool_unpriced", field, **more)


@pytest.mark.parametrize("case", range(len(SECOND_MODELS)))
async def test_finding_wire_M1_a_key_for_some_models_reaches_no_other(
    lenient: RelayProcess, raw: RawUpstream, case: int
):
    """Not even where an operator lets pass what has no price."""
    path, model, more, field = SECOND_MODELS[case]
    models = [model or "gemini-3.5-flash"]
    await refused(lenient, raw, path, model, "model_not_allowed", field, models, **more)


@pytest.mark.parametrize("case", range(len(UNPRICED)))
async def test_finding_clients_F5_what_has_no_price_is_refused(strict: RelayProcess, raw: RawUpstream, case: int):
    path, model, more, field = UNPRICED[case]
    await refused(strict, raw, path, model, "tool_unpriced", field, **more)


async def test_finding_wire_M1_no_other_model_through_a_tool(
    strict: RelayProcess, lenient: RelayProcess, raw: RawUpstream
):
    advisor = {"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-4-8"}
    pictures = [{"type": "image_generation", "model": "gpt-image-2"}, {"type": "image_generation"}]
    for relay in (strict, lenient):
        haiku = ["claude-haiku-4-5"]
        await refused(relay, raw, MESSAGES, haiku[0], "model_not_allowed", "", haiku, tools=[advisor])
        for picture in pictures:
            await refused(relay, raw, RESPONSES, "gpt-5.5", "model_not_allowed", "", ["gpt-5.5"], tools=[picture])


async def test_finding_clients_F5_allowed_by_the_operator(lenient: RelayProcess, raw: RawUpstream):
    """unpriced = "allow": it passes for nothing, and an event says so."""
    cost = await passed(lenient, raw, CHAT, "m", models=["m", "dear"], tools=[{"type": "browser_search"}])
    assert cost == "0.00014"
    events = [
        event
        for event in (await lenient.command("events"))["events"]
        if event["kind"] == "tool_unpriced" and event["code"] == "allowed"
    ]
    assert events[-1]["detail"] in ("models", "tools.browser_search")


async def test_what_costs_tokens_alone_passes(strict: RelayProcess, raw: RawUpstream):
    """What coding tools and SDKs send."""
    function = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    tools: list[dict[str, Any]] = [
        function, {"type": "custom", "name": "c"}, {"type": "local_shell"}, {"type": "apply_patch"}, {"type": "shell"},
        {"type": "shell", "environment": {"type": "local"}}, {"type": "tool_search"},
        {"type": "mcp", "server_label": "s", "server_url": "https://example.com"},
        {"type": "namespace", "name": "n", "tools": [function]}, {"type": "computer_use_preview"},
        {"type": "web_search", "search_context_size": "high"},
    ]  # fmt: skip
    assert await passed(strict, raw, RESPONSES, "gpt-5.5", tools=tools) == "0.0011"
    claude: list[dict[str, Any]] = [
        {"name": "f", "input_schema": {"type": "object"}}, {"type": "custom", "name": "g", "input_schema": {}},
        {"type": "bash_20250124", "name": "bash"}, {"type": "text_editor_20250728", "name": "e"},
        {"type": "memory_20250818", "name": "memory"}, {"type": "web_fetch_20260309", "name": "web_fetch"},
        {"type": "tool_search_tool_regex_20251119", "name": "t"}, {"type": "computer_20251124", "name": "computer"},
    ]  # fmt: skip
    assert await passed(strict, raw, MESSAGES, "claude-haiku-4-5", tools=claude, fallbacks=None) == "0.0002"
    google: list[dict[str, Any]] = [
        {"functionDeclarations": [{"name": "f"}]}, {"codeExecution": {}}, {"url_context": {}}, {"googleMaps": None}
    ]  # fmt: skip
    await passed(strict, raw, GEMINI, "", tools=google)
    await passed(strict, raw, CHAT, "m", models=["m"], plugins=[{"id": "response-healing"}], fallbacks=[])


async def test_a_price_of_nothing_is_a_price(strict: RelayProcess, raw: RawUpstream):
    tools = [{"type": "new_tool"}, {"type": "file_search", "vector_store_ids": ["v"]}, {"type": "web_search"}]
    assert await passed(strict, raw, RESPONSES, "free-tools", tools=tools) == "0.00014"


async def charged(
    relay: RelayProcess, raw: RawUpstream, path: str, model: str, more: dict[str, Any], **reply: Any
) -> str:
    """What a call costs whose answer has these fields besides; the books prove it."""
    customer = await relay.customer()
    text, _ = raw.script(answer(PLAIN[path] | reply))
    assert (await send(customer, path, body(path, model, text, **more))).status == 200
    cost = str((await customer.call())["cost"])
    assert await customer.settled_nano() == 100 * 10**9 - nano(cost)
    assert (await relay.command("ledger verify"))["differences"] == []
    return cost


async def test_finding_clients_F8_each_answer_of_a_search_model_is_a_search(strict: RelayProcess, raw: RawUpstream):
    """100 and 20 tokens, and the fee: of the search model in any case, of others where they are asked to search."""
    for more in ({}, {"web_search_options": {}}):
        assert await charged(strict, raw, CHAT, "gpt-4o-search-preview", more) == "0.02545"
    assert await charged(strict, raw, CHAT, "m", {"web_search_options": {"search_context_size": "low"}}) == "0.01014"
    assert await charged(strict, raw, CHAT, "m", {}) == "0.00014"


async def test_finding_clients_F17_searches_that_usage_tells(strict: RelayProcess, raw: RawUpstream):
    usage = PLAIN[CHAT]["usage"]
    for told in (
        {"server_side_tool_usage_details": {"web_search_calls": 2}}, {"server_tool_use": {"web_search_requests": 2}}
    ):  # fmt: skip
        assert await charged(strict, raw, CHAT, "m", {}, usage={**usage, **told}) == "0.02014"
    told = {"web_search": {"num_requests": 3}, "image_gen": {"input_tokens": 0, "output_tokens": 0}}
    assert await charged(strict, raw, RESPONSES, "m", {}, tool_usage=told) == "0.03014"


async def test_finding_clients_F16_caches_of_relays(strict: RelayProcess, raw: RawUpstream):
    """100 plain, 600 read, 100 written for minutes and 200 for an hour, 20 of output."""
    details = {
        "cached_tokens": 600, "cache_creation_tokens": 300,
        "cache_creation_token_details": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
    }  # fmt: skip
    usage = {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020, "prompt_tokens_details": details}
    assert await charged(strict, raw, CHAT, "cached", {}, usage=usage) == "0.000725"
    usage["total_tokens"] = 1920  # what caches had is beside the prompt
    assert await charged(strict, raw, CHAT, "cached", {}, usage=usage) == "0.001625"


async def line_of(
    relay: RelayProcess, raw: RawUpstream, path: str, model: str, tool: dict[str, Any], **reply: Any
) -> str:
    return await charged(relay, raw, path, model, {"tools": [tool]}, **reply)


async def test_finding_clients_F1_pictures_behind_a_text_model(strict: RelayProcess, raw: RawUpstream):
    """Their tokens at the picture model's price: 60 of text at 5, 7,024 of the picture at 30 per million, beside 100 at
    5 and 20 at 30 of gpt-5.5."""
    usage = {
        "input_tokens": 60, "input_tokens_details": {"image_tokens": 0, "text_tokens": 60}, "output_tokens": 7024,
        "output_tokens_details": {"image_tokens": 7024, "text_tokens": 0}, "total_tokens": 7084,
    }  # fmt: skip
    item = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "iVBORw0KGgo="}
    reply: dict[str, Any] = {"output": [item, *PLAIN[RESPONSES]["output"]], "tool_usage": {"image_gen": usage}}
    named = {"type": "image_generation", "model": "gpt-image-2", "quality": "high"}
    for tool in (named, {"type": "image_generation"}):
        assert await line_of(strict, raw, RESPONSES, "gpt-5.5", tool, **reply) == "0.21212"
    # Without a report, what a picture has; pictures read from a cache, and given ones.
    assert await line_of(strict, raw, RESPONSES, "gpt-5.5", named, output=reply["output"]) == "0.21182"
    usage |= {"input_tokens": 160, "input_tokens_details": {"image_tokens": 100, "cached_tokens": 20}}
    assert await line_of(strict, raw, RESPONSES, "gpt-5.5", named, **reply) == "0.212845"
    # As a stream, where the sum of all comes with the last event.
    customer = await strict.customer()
    done = json.dumps({"type": "response.completed", "response": PLAIN[RESPONSES] | reply}).encode()
    events = b"event: response.completed\ndata: " + done + b"\n\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(events)
    text, _ = raw.script(head + events)
    await send(customer, RESPONSES, body(RESPONSES, "gpt-5.5", text, tools=[named], stream=True))
    assert (await customer.call())["cost"] == "0.212845"
    assert (await strict.command("ledger verify"))["differences"] == []


async def test_finding_clients_F2_advice_at_the_advisors_price(strict: RelayProcess, raw: RawUpstream):
    """800 and 600 tokens of Opus at 5 and 25 beside 100 and 20 of Haiku at 1 and 5; and what its cache had."""
    tool = {"type": "advisor_20260301", "name": "advisor", "model": "claude-opus-4-8"}
    entry = {"type": "advisor_message", "model": "claude-opus-4-8", "input_tokens": 800, "output_tokens": 600}
    own = {"type": "message", "input_tokens": 100, "output_tokens": 20}
    usage = {**PLAIN[MESSAGES]["usage"], "iterations": [own, entry]}
    assert await line_of(strict, raw, MESSAGES, "claude-haiku-4-5", tool, usage=usage) == "0.0192"
    usage["iterations"] += [{**entry, "output_tokens": 0, "cache_read_input_tokens": 1000}]
    assert await line_of(strict, raw, MESSAGES, "claude-haiku-4-5", tool, usage=usage) == "0.0237"


async def test_finding_clients_F5_containers_and_searches_in_files(strict: RelayProcess, raw: RawUpstream):
    """A session of 64 GB at 1.92 and a search in files at .0025, beside .0011 for tokens."""
    code = {"type": "code_interpreter_call", "container_id": "cntr_1", "status": "completed"}
    output = [code, code, {"type": "file_search_call", "status": "completed"}, *PLAIN[RESPONSES]["output"]]
    tools = [
        {"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "64g"}},
        {"type": "file_search", "vector_store_ids": ["vs_1"]},
    ]
    assert await charged(strict, raw, RESPONSES, "gpt-5.5", {"tools": tools}, output=output) == "1.9236"
    for size, cost in ((None, "0.0311"), ("1g", "0.0311"), ("4g", "0.1211"), ("16g", "0.4811")):
        container = {"type": "auto", "memory_limit": size} if size else {"type": "auto"}
        tool: dict[str, Any] = {"type": "code_interpreter", "container": container}
        assert await line_of(strict, raw, RESPONSES, "gpt-5.5", tool, output=[code]) == cost
    tool = {"type": "shell", "environment": {"type": "container_auto"}}
    shell = {"type": "shell_call", "environment": {"type": "container_reference", "container_id": "cntr_2"}}
    assert await line_of(strict, raw, RESPONSES, "gpt-5.5", tool, output=[shell]) == "0.0311"
    assert await line_of(strict, raw, RESPONSES, "gpt-5.5", tool) == "0.0011"  # nothing ran


async def test_finding_clients_F5_code_maps_and_other_searches(strict: RelayProcess, raw: RawUpstream):
    code = {"type": "code_execution_20250825", "name": "code_execution"}
    container = {"id": "container_1", "expires_at": "2027-01-01T00:00:00Z"}
    assert await line_of(strict, raw, MESSAGES, "claude-haiku-4-5", code, container=container) == "0.004366667"
    tools = [code, {"type": "web_search_20260209", "name": "web_search"}]  # beside these it costs nothing
    assert await charged(strict, raw, MESSAGES, "claude-haiku-4-5", {"tools": tools}, container=container) == "0.0002"
    candidate = {
        **PLAIN[GEMINI]["candidates"][0], "groundingMetadata": {"groundingChunks": [{"maps": {"uri": "u"}}]}
    }  # fmt: skip
    tool = {"googleMaps": {}}
    plain = await charged(strict, raw, GEMINI, "", {})
    assert nano(await line_of(strict, raw, GEMINI, "", tool, candidates=[candidate])) - nano(plain) == nano("0.014")
    assert await line_of(strict, raw, GEMINI, "", tool) == plain
    older = GEMINI.replace("gemini-3.5-flash", "gemini-2.5-flash")
    PLAIN[older] = PLAIN[GEMINI]
    plain = await charged(strict, raw, older, "", {})
    assert nano(await line_of(strict, raw, older, "", tool, candidates=[candidate])) - nano(plain) == nano("0.025")
    usage = {**PLAIN[CHAT]["usage"], "server_side_tool_usage_details": {"web_search_calls": 1, "x_search_calls": 3}}
    grok = [{"type": "x_search"}, {"type": "web_search"}]
    cost = await charged(strict, raw, CHAT, "grok-4.20", {"tools": grok}, usage=usage)
    assert nano(cost) - nano(await charged(strict, raw, CHAT, "grok-4.20", {})) == nano("0.02")


async def test_what_tools_may_cost_is_held(strict: RelayProcess, raw: RawUpstream):
    """A balance that covers the tokens and not the tool: 402, and nothing is forwarded."""
    for path, model, tool in (
        (RESPONSES, "gpt-5.5", {"type": "image_generation", "model": "gpt-image-2"}),
        (RESPONSES, "gpt-5.5", {"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "64g"}}),
        (MESSAGES, "claude-haiku-4-5", {"type": "advisor_20260301", "model": "claude-opus-4-8", "max_tokens": 20000}),
    ):
        for stream in (False, True):
            poor = await strict.customer("0.2")
            text, exchange = raw.script(answer(PLAIN[path]))
            more = {"stream": stream} | ({"max_output_tokens": 100} if path == RESPONSES else {})
            assert (await send(poor, path, body(path, model, text, **more))).status == 200
            assert (await send(poor, path, body(path, model, text, tools=[tool], **more))).status == 402
            assert len(exchange.requests) == 1


async def test_finding_wire_M1_the_model_that_answers_is_compared(strict: RelayProcess, raw: RawUpstream):
    """Another than asked for is an event, once; a snapshot of it is none; what is no name is not shown."""
    customer = await strict.customer()
    for path, model, field in (
        (CHAT, "dear", "model"), (RESPONSES, "dear", "model"), (MESSAGES, "claude-opus-4-8", "model"),
        (GEMINI, "gemini-3.5-flash", "modelVersion"),
    ):  # fmt: skip
        asked = "" if path == GEMINI else model
        for named in (model, f"{model}-2026-01-01", "other-model-9", "other-model-9", "no <b>name</b>"):
            text, _ = raw.script(answer(PLAIN[path] | {field: named}))
            assert (await send(customer, path, body(path, asked, text))).status == 200
    found = [
        (event["channel"], event["detail"])
        for event in (await strict.command("events", limit=1000))["events"]
        if event["kind"] == "model_differs" and ("dear" in event["detail"] or "other-model" in event["detail"])
    ]
    for channel_, model in (("openai", "dear"), ("anthropic", "claude-opus-4-8"), ("gemini", "gemini-3.5-flash")):
        assert found.count((channel_, f"{model}: answered by other-model-9")) == 1
    assert ("openai", "dear: answered by what is not a name of a model") in found
    assert not [detail for _, detail in found if "<b>" in detail or "2026" in detail]


async def test_a_killed_relay_charges_what_tools_have_used(lenient: RelayProcess, raw: RawUpstream):
    """kill -9 when the client has the event that tells of the picture: its cost is charged at the next start."""
    item = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "iVBORw0KGgo="}
    usage = {"input_tokens": 60, "output_tokens": 7024, "total_tokens": 7084}
    reply = {"output": [item, *PLAIN[RESPONSES]["output"]], "tool_usage": {"image_gen": usage}}
    event = (
        b"data: " + json.dumps({"type": "response.completed", "response": PLAIN[RESPONSES] | reply}).encode() + b"\n\n"
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    text, _ = raw.script(head + b"%x\r\n%b\r\n" % (len(event), event), Gate(asyncio.Event()))
    customer = await lenient.customer()
    tool = {"type": "image_generation", "model": "gpt-image-2"}
    document = json.dumps(body(RESPONSES, "gpt-5.5", text, tools=[tool], stream=True)).encode()
    async with await RawClient.connect("127.0.0.1", lenient.port) as client:
        fields = f"Authorization: Bearer {customer.secret}\r\nContent-Length: {len(document)}\r\n"
        await client.send(f"POST {RESPONSES} HTTP/1.1\r\nHost: r\r\n{fields}\r\n".encode() + document)
        await client.until_contains(b"image_gen")
        await client.until_contains(b"}}\n\n")
        await lenient.kill()
    await lenient.start()
    record = await customer.call()
    assert (record["error_code"], record["cost"]) == ("recovered", "0.21212")
    assert await customer.settled_nano() == 100 * 10**9 - nano("0.21212")
    assert (await lenient.command("ledger verify"))["differences"] == []


@pytest.mark.parametrize("streamed", [False, True])
async def test_finding_clients_F13_cached_sound_has_its_own_price(
    strict: RelayProcess, raw: RawUpstream, streamed: bool
) -> None:
    """2,000 tokens of text, 8,000 of sound read from a cache, 10 of output: .0006 + .0008 + .000025."""
    customer = await strict.customer()
    method = "streamGenerateContent?alt=sse" if streamed else "generateContent"
    document = {
        **PLAIN[GEMINI],
        "usageMetadata": {
            "promptTokenCount": 10000, "candidatesTokenCount": 10, "totalTokenCount": 10010,
            "cachedContentTokenCount": 8000,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 2000}, {"modality": "AUDIO", "tokenCount": 8000}
            ],
            "cacheTokensDetails": [{"modality": "AUDIO", "tokenCount": 8000}],
        },
    }  # fmt: skip
    whole = answer(document)
    if streamed:
        event = b"data: " + json.dumps(document).encode() + b"\n\n"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
        whole = head % len(event) + event
    text, _ = raw.script(whole)
    path = f"/v1beta/models/gemini-2.5-flash:{method}"
    assert (await send(customer, path, body(path, "", text * 800))).status == 200
    call = await customer.call()
    assert (call["cost"], call["cache_read_tokens"]) == ("0.001425", 8000)
    bill = (await strict.command("calls show", id=str(call["id"])))["bill"]
    assert {line["what"]: line["quantity"] for line in bill} == {
        "input": 2000, "audio_cache_read": 8000, "output": 10
    }  # fmt: skip
    assert (await strict.command("ledger verify"))["ok"]


async def test_finding_clients_F13_cached_sound_of_chat(strict: RelayProcess, raw: RawUpstream) -> None:
    """A prompt of 1,000 tokens: 300 plain (50 of them sound), 700 read from a cache (450 of them sound)."""
    customer = await strict.customer()
    usage = {
        "prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020,
        "prompt_tokens_details": {
            "cached_tokens": 700, "audio_tokens": 500,
            "cached_tokens_details": {"audio_tokens": 450, "text_tokens": 250},
        },
    }  # fmt: skip
    text, _ = raw.script(answer({**PLAIN[CHAT], "usage": usage}))
    assert (await send(customer, CHAT, body(CHAT, "heard", text * 80))).status == 200
    parts = (250 * 1, 50 * 32, 450 * 8, 250 * 1, 20 * 2)  # credits per million: cache_read is 1 there, sound from it 8
    assert nano((await customer.call())["cost"]) == sum(parts) * 1000


@pytest.mark.parametrize("asks", [{}, {"mode": "auto", "max_search_results": 4}, {"mode": "off"}])
async def test_finding_clients_F17_a_live_search_is_charged_by_its_sources(
    strict: RelayProcess, raw: RawUpstream, asks: dict[str, Any]
) -> None:
    """Five sources of .025 each, beside 100 tokens of prompt and 20 of output."""
    customer = await strict.customer()
    usage = {**PLAIN[CHAT]["usage"], "num_sources_used": 0 if asks.get("mode") == "off" else 5}
    gate = Gate(asyncio.Event())
    text, _ = raw.script(gate, answer({**PLAIN[CHAT], "usage": usage}))
    sent = asyncio.ensure_future(send(customer, CHAT, body(CHAT, "grok-4.20", text, search_parameters=asks)))
    held = {20: 500_000_000, 4: 100_000_000, 0: 0}[
        0 if asks.get("mode") == "off" else asks.get("max_search_results", 20)
    ]
    try:
        await eventually(lambda: holds(customer, held), what="the hold")
    finally:
        gate.event.set()
    assert (await sent).status == 200
    call = await customer.call()
    tokens = 100 * 1250 + 20 * 2500
    assert nano(call["cost"]) == tokens + usage["num_sources_used"] * 25_000_000
    bill = (await strict.command("calls show", id=str(call["id"])))["bill"]
    sources = [line for line in bill if line["what"] == "search_source"]
    assert [(line["quantity"], line["price"], line["unit"]) for line in sources] == (
        [(5, "0.025", "each")] if usage["num_sources_used"] else []
    )
    assert (await strict.command("ledger verify"))["ok"]


async def holds(customer: Customer, least: int) -> bool:
    held = nano((await customer.money())["held"])
    return least < held < least + 90_000_000


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {"plugins": [{"id": ["web"]}]}),
        (CHAT, {"plugins": [{"id": {}}]}),
        (RESPONSES, {"plugins": [{"id": "new-one"}]}),
        (CHAT, {"plugins": [{"id": "file-parser", "pdf": {"engine": ["native"]}}]}),
        (RESPONSES, {"tools": [{"type": "code_interpreter", "container": {"memory_limit": ["1g"]}}]}),
        (RESPONSES, {"tools": [{"type": "code_interpreter", "container": {"memory_limit": {"size": 1}}}]}),
    ],
    ids=str,
)
async def test_finding_wire_M11_a_tool_with_a_value_of_another_type_has_no_price(
    strict: RelayProcess, raw: RawUpstream, path: str, more: dict[str, Any]
) -> None:
    field = "plugins" if "plugins" in more else "tools.code_interpreter"
    await refused(strict, raw, path, "gpt-5.5", "tool_unpriced", field, **more)


@pytest.mark.parametrize(
    ("path", "model", "more"),
    [
        (CHAT, "grok-4.20", {"search_parameters": {"max_search_results": 10**18}}),
        (MESSAGES, "claude-haiku-4-5", {"tools": [ADVISOR_WITHOUT_END] * 20}),
    ],
    ids=["sources", "advisors"],
)
async def test_finding_wire_M11_what_tools_may_cost_is_a_number_that_can_be_held(
    strict: RelayProcess, raw: RawUpstream, path: str, model: str, more: dict[str, Any]
) -> None:
    """More than any balance: 402, and no fault."""
    customer = await strict.customer("4")
    text, exchange = raw.script(answer(PLAIN[path]))
    reply = await send(customer, path, body(path, model, text, **more))
    assert (reply.status, exchange.requests) == (402, [])
    assert (await customer.money())["available"] == "4"


CODE = {"type": "code_execution_20250825", "name": "x"}
MAPS = [{"request": body(GEMINI, "", tools=[{"googleMaps": {}}])}]
PICTURES = [{"type": "image_generation"}]
TOOL_JOBS: list[tuple[str, dict[str, Any], str]] = [
    (
        "/v1/messages/batches",
        {
            "requests": [
                {"custom_id": "a", "params": body(MESSAGES, "claude-haiku-4-5")},
                {
                    "custom_id": "b",
                    "params": body(MESSAGES, "claude-haiku-4-5", tools=[CODE]),
                },
            ]
        },
        "tools.code_execution",
    ),
    (
        "/v1beta/models/gemini-3.5-flash:batchGenerateContent",
        {"batch": {"inputConfig": {"requests": {"requests": MAPS}}}},
        "tools.google_maps",
    ),
    (
        RESPONSES,
        body(RESPONSES, "gpt-5.5", background=True, tools=[{"type": "file_search", "vector_store_ids": ["vs_1"]}]),
        "tools.file_search",
    ),
    (RESPONSES, body(RESPONSES, "gpt-5.5", background=True, tools=PICTURES), "tools.image_generation"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(TOOL_JOBS)))
async def test_finding_clients_F5_jobs_with_tools_that_cost_extra_are_refused(
    strict: RelayProcess, raw: RawUpstream, case: int
) -> None:
    """Their reports do not tell of them. Nothing is forwarded, nothing is held."""
    path, document, field = TOOL_JOBS[case]
    customer = await strict.customer()
    reply = await send(customer, path, document)
    found = json.loads(reply.body)["error"]
    assert (reply.status, (await customer.call())["error_code"]) == (400, "tool_unpriced"), reply.body
    assert f"`{field}`" in found["message"]
    assert (await customer.money())["available"] == "100"


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("gpt-5.5", {"tools": [{"type": "file_search"}]}),
        ("gpt-5.5", {"tools": [{"type": "web_search"}]}),
        ("grok-4.20", {"search_parameters": {}}),
        ("gpt-4o-search-preview", {}),  # every answer of it is a search
        ("m", {}),
    ],
)
async def test_finding_clients_F8_files_for_batches_that_cost_extra(
    strict: RelayProcess, raw: RawUpstream, model: str, more: dict[str, Any]
) -> None:
    customer = await strict.customer()
    text, exchange = raw.script(
        answer({"id": f"file-{abs(hash((model, str(more))))}", "object": "file", "purpose": "batch"})
    )
    path = RESPONSES if "tools" in more else CHAT
    line = {"custom_id": text, "method": "POST", "url": path, "body": body(path, model, **more)}
    form = (
        b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n'
        + json.dumps(line).encode()
        + b"\n\r\n--b--\r\n"
    )
    fields = {"Authorization": f"Bearer {customer.secret}", "content-type": "multipart/form-data; boundary=b"}
    async with await RawClient.connect("127.0.0.1", strict.port) as client:
        stored = await client.request("POST", "/v1/files", fields, form)
        assert stored.status == 200, stored.body
    asks = {"input_file_id": json.loads(stored.body)["id"], "endpoint": path, "completion_window": "24h"}
    text, exchange = raw.script(answer({"id": "batch_1", "object": "batch", "status": "validating"}))
    reply = await send(customer, "/v1/batches", {**asks, "metadata": {"x": text}})
    if model == "m":
        assert reply.status == 200, reply.body
        return
    assert (reply.status, exchange.requests) == (400, [])
    found = json.loads(reply.body)["error"]
    assert found["param"] == "input_file_id"
    assert "What a provider's own tools use in a batch has no price." in found["message"]


@pytest.mark.parametrize("count", [1001, 10**9, 2**63])
async def test_finding_money_H1_more_uses_of_a_tool_than_any_answer_has(
    strict: RelayProcess, raw: RawUpstream, count: int
):
    """A request that asks for no tool is charged for none; one that does, for what was held."""
    absurd = {
        **PLAIN[CHAT],
        "usage": {**PLAIN[CHAT]["usage"], "server_side_tool_usage_details": {"x_search_calls": count}},
    }
    customer = await strict.customer()
    text, _ = raw.script(answer(absurd))
    assert (await send(customer, CHAT, body(CHAT, "grok-4.20", text))).status == 200
    assert nano((await customer.call())["cost"]) < 10_000_000
