"""Anthropic messages and count_tokens."""

from collections.abc import Iterator

import orjson

from relay.simulator.answer import Answer, Refused
from relay.simulator.directives import Directives
from relay.simulator.errors import error_body
from relay.simulator.openai_chat import tool_argument_pieces, tool_arguments, tool_names
from relay.simulator.plan import EOL, JSON, Plan, damaged, dumps, halved, make_plan, sse, with_usage

_SIGNATURE = "EqQBCkYIBxgCKkBzaW11bGF0ZWQtc2lnbmF0dXJlLW9mLXRoZS10aGlua2luZw=="

_DELTA_USAGE = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "output_tokens_details",
    "server_tool_use",
)


def _check(request: JSON, counting: bool) -> tuple[str, int | None]:
    model = request.get("model")
    if model is None:
        raise Refused(400, "invalid", "model: Field required")
    if not isinstance(model, str):
        raise Refused(400, "invalid", "model: Input should be a valid string")
    messages = request.get("messages")
    if messages is None:
        raise Refused(400, "invalid", "messages: Field required")
    if not isinstance(messages, list):
        raise Refused(400, "invalid", "messages: Input should be a valid array")
    if not messages:
        raise Refused(400, "invalid", "messages: at least one message is required")
    if counting:
        return model, None
    limit = request.get("max_tokens")
    if limit is None:
        raise Refused(400, "invalid", "max_tokens: Field required")
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise Refused(400, "invalid", "max_tokens: Input should be a valid integer")
    if limit < 1:
        raise Refused(400, "invalid", "max_tokens: Input should be greater than or equal to 1")
    return model, limit


def count_tokens(request: JSON, d: Directives, number: int) -> Answer:
    model, _ = _check(request, counting=True)
    plan = make_plan(d, number, model, request, None)
    return Answer(200, "application/json", dumps({"input_tokens": plan.input_tokens}), model=model)


def messages(request: JSON, d: Directives, number: int) -> Answer:
    model, limit = _check(request, counting=False)
    plan = make_plan(d, number, model, request, limit)
    choice = request.get("tool_choice")
    tools = d.tools or (1 if isinstance(choice, dict) and choice.get("type") in ("any", "tool") else 0)
    usage = _usage(plan)
    answer = Answer(
        200,
        "application/json",
        model=model,
        plan=plan,
        usage=damaged(usage, d.usage),
        input_tokens=plan.input_tokens,
        cached_tokens=d.cached,
        output_tokens=plan.output_tokens,
        reasoning_tokens=plan.reasoning_tokens,
    )
    if request.get("stream"):
        answer.content_type = "text/event-stream; charset=utf-8"
        answer.events = _events(plan, tools, usage)
    else:
        message = {
            **_message(plan),
            "content": [*_leading_blocks(plan), *_final_blocks(plan, tools)],
            "stop_reason": _stop_reason(plan, tools),
            "stop_sequence": None,
        }
        answer.body = with_usage(message, "usage", usage, d.usage)
    return answer


def _usage(plan: Plan) -> JSON:
    d = plan.d
    written = d.cache_write + d.cache_write_1h
    usage: JSON = {
        "input_tokens": max(0, plan.input_tokens - d.cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": d.cached,
        "cache_creation": {"ephemeral_5m_input_tokens": d.cache_write, "ephemeral_1h_input_tokens": d.cache_write_1h},
        "output_tokens": plan.output_tokens,
        "service_tier": "standard",
    }
    if plan.reasoning_tokens:
        usage["output_tokens_details"] = {"thinking_tokens": plan.reasoning_tokens}
    if d.search:
        usage["server_tool_use"] = {"web_search_requests": d.search, "web_fetch_requests": 0}
    return usage


def _message(plan: Plan) -> JSON:
    return {"id": plan.id("msg_01"), "type": "message", "role": "assistant", "model": plan.model}


def _stop_reason(plan: Plan, tools: int) -> str:
    return plan.d.finish or ("max_tokens" if plan.limited else "tool_use" if tools else "end_turn")


def _leading_blocks(plan: Plan) -> Iterator[JSON]:
    """Thinking and web searches, which stand before the text."""
    if plan.reasoning_tokens:
        yield {"type": "thinking", "thinking": "".join(plan.reasoning_pieces), "signature": _SIGNATURE}
    for index in range(plan.d.search):
        identifier = plan.id("srvtoolu_01", index)
        yield {
            "type": "server_tool_use",
            "id": identifier,
            "name": "web_search",
            "input": {"query": f"{plan.text.piece(0).strip()} {index}"},
        }
        yield {
            "type": "web_search_tool_result",
            "tool_use_id": identifier,
            "content": [
                {
                    "type": "web_search_result",
                    "url": f"https://example.com/{index}",
                    "title": f"Result {index}",
                    "encrypted_content": "c2ltdWxhdGVk",
                    "page_age": None,
                }
            ],
        }


def _final_blocks(plan: Plan, tools: int) -> Iterator[JSON]:
    if not tools:
        yield {"type": "text", "text": plan.whole}
        return
    names = tool_names(plan.request)
    for index in range(tools):
        arguments = orjson.loads(tool_arguments(plan))
        yield {
            "type": "tool_use",
            "id": plan.id("toolu_01", index),
            "name": names[index % len(names)],
            "input": arguments,
        }


def _events(plan: Plan, tools: int, usage: JSON) -> Iterator[bytes]:
    d, eol = plan.d, EOL[plan.d.eol]
    shown = damaged(usage, d.usage)

    def event(kind: str, data: JSON) -> bytes:
        return sse(dumps({"type": kind, **data}), kind, eol)

    ping = event("ping", {})
    start: JSON = {**_message(plan), "content": [], "stop_reason": None, "stop_sequence": None}
    if shown is not None:
        # What is known at the start: the input side, and a placeholder for the output.
        opening = {
            key: value for key, value in shown.items() if key not in ("output_tokens_details", "server_tool_use")
        }
        if isinstance(opening["output_tokens"], int):
            opening["output_tokens"] = min(opening["output_tokens"], 1)
        start["usage"] = None if d.usage == "null" else opening
    yield event("message_start", {"message": start})
    failure = sse(dumps(error_body("anthropic", d.error or "overloaded")), "error", eol)
    if d.error_at == 0:
        yield failure
        return

    delta_head = b"event: content_block_delta" + eol + b'data: {"type":"content_block_delta","index":'
    count = 0
    index = -1

    def delta(kind: str, field: str, text: str) -> bytes:
        return b'%b%d,"delta":{"type":"%b","%b":%b}}%b%b' % (
            delta_head, index, kind.encode(), field.encode(), orjson.dumps(text), eol, eol,
        )  # fmt: skip

    for block, pieces in _blocks_in_pieces(plan, tools):
        index += 1
        yield event("content_block_start", {"index": index, "content_block": block})
        if index == 0 and d.ping != 0:
            yield ping
        for kind, field, piece in pieces:
            yield delta(kind, field, piece)
            count += 1
            if d.ping > 0 and count % d.ping == 0:
                yield ping
            if d.error_at == count:
                yield failure
                return
        yield event("content_block_stop", {"index": index})

    final = {"stop_reason": _stop_reason(plan, tools), "stop_sequence": None}
    if d.usage == "twice":
        yield event(
            "message_delta",
            {"delta": final, "usage": {key: halved(usage)[key] for key in _DELTA_USAGE if key in usage}},
        )
    if shown is None:
        yield event("message_delta", {"delta": final})
    elif d.usage == "null":
        yield event("message_delta", {"delta": final, "usage": None})
    else:
        yield event(
            "message_delta", {"delta": final, "usage": {key: shown[key] for key in _DELTA_USAGE if key in shown}}
        )
    if d.done:
        yield event("message_stop", {})


def _blocks_in_pieces(plan: Plan, tools: int) -> Iterator[tuple[JSON, Iterator[tuple[str, str, str]]]]:
    """Each content block as it opens, and its deltas as (type, field, text)."""

    def as_deltas(kind: str, field: str, pieces: Iterator[str] | list[str]) -> Iterator[tuple[str, str, str]]:
        return ((kind, field, piece) for piece in pieces)

    def thinking() -> Iterator[tuple[str, str, str]]:
        yield from as_deltas("thinking_delta", "thinking", plan.thoughts)
        yield "signature_delta", "signature", _SIGNATURE

    for block in _leading_blocks(plan):
        if block["type"] == "thinking":
            yield {"type": "thinking", "thinking": "", "signature": ""}, thinking()
        elif block["type"] == "server_tool_use":
            text = dumps(block["input"]).decode()
            yield {**block, "input": {}}, as_deltas("input_json_delta", "partial_json", ["", text[:5], text[5:]])
        else:
            yield block, iter(())
    if not tools:
        yield {"type": "text", "text": ""}, as_deltas("text_delta", "text", plan.pieces)
        return
    names = tool_names(plan.request)
    for index in range(tools):
        opening = {"type": "tool_use", "id": plan.id("toolu_01", index), "name": names[index % len(names)], "input": {}}
        yield opening, as_deltas("input_json_delta", "partial_json", tool_argument_pieces(plan))
