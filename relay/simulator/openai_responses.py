"""OpenAI Responses: the object, its stream of events, and fetching stored ones."""

from collections.abc import Iterator

from relay.simulator.answer import Answer, Refused
from relay.simulator.directives import Directives
from relay.simulator.errors import error_body
from relay.simulator.openai_chat import (
    check_output_limit,
    need,
    tool_argument_pieces,
    tool_arguments,
    tool_names,
    whole_number,
)
from relay.simulator.openai_media import picture
from relay.simulator.plan import EOL, JSON, Plan, damaged, dumps, halved, make_plan, sse, with_usage

_STORED_MAX = 256


def responses(request: JSON, d: Directives, number: int, store: dict[str, bytes]) -> Answer:
    model = need(request, "model", (str,))
    if request.get("input") is None and request.get("prompt") is None and request.get("previous_response_id") is None:
        need(request, "input", (str, list))
    limit = whole_number(request, "max_output_tokens")
    check_output_limit(limit, "max_output_tokens")
    plan = make_plan(d, number, model, request, limit)
    choice = request.get("tool_choice")
    tools = d.tools or (
        1 if choice == "required" or (isinstance(choice, dict) and choice.get("type") == "function") else 0
    )
    usage = _usage(plan)
    how = "null" if _status(plan) == "failed" else d.usage
    answer = Answer(
        200,
        "application/json",
        model=model,
        plan=plan,
        usage=damaged(usage, how),
        input_tokens=plan.input_tokens,
        cached_tokens=d.cached,
        output_tokens=plan.output_tokens,
        reasoning_tokens=plan.reasoning_tokens,
    )
    output = [] if _status(plan) == "failed" else _output(plan, tools)
    final = {**_response(plan, _status(plan)), "output": output}
    whole = with_usage(final, "usage", usage, how, pretty=True)
    if request.get("store") is not False:
        store[final["id"]] = whole
        while len(store) > _STORED_MAX:
            del store[next(iter(store))]
    if request.get("stream"):
        answer.content_type = "text/event-stream; charset=utf-8"
        answer.events = _events(plan, final, usage, how)
    else:
        answer.body = whole
    return answer


def stored(store: dict[str, bytes], method: str, path: str) -> Answer:
    identifier, _, rest = path.partition("/")
    if identifier not in store or (rest, method) not in (
        ("", "GET"),
        ("", "DELETE"),
        ("cancel", "POST"),
        ("input_items", "GET"),
    ):
        raise Refused(404, "invalid", f"Response with id '{identifier}' not found.")
    if method == "DELETE":
        del store[identifier]
        return Answer(
            200, "application/json", dumps({"id": identifier, "object": "response", "deleted": True}, pretty=True)
        )
    if rest == "input_items":
        empty: JSON = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
        return Answer(200, "application/json", dumps(empty, pretty=True))
    return Answer(200, "application/json", store[identifier])


def about(name: str, request: JSON, d: Directives, number: int) -> Answer:
    """What a request would read (`input_tokens`), and a conversation made shorter (`compact`)."""
    plan = make_plan(d, number, need(request, "model", (str,)), request, None)
    if name == "input_tokens":
        counted: JSON = {"object": "response.input_tokens", "input_tokens": plan.input_tokens}
        return Answer(200, "application/json", dumps(counted, pretty=True), model=plan.model)
    usage = _usage(plan)
    answer = Answer(200, "application/json", model=plan.model, plan=plan, usage=damaged(usage, d.usage))
    answer.input_tokens, answer.output_tokens, answer.cached_tokens = plan.input_tokens, plan.output_tokens, d.cached
    body: JSON = {
        "id": plan.id("resp_", length=48),
        "object": "response.compaction",
        "created_at": plan.created,
        "output": [{"id": plan.id("cmp_", length=48), "type": "compaction", "encrypted_content": "c2ltdWxhdGVk"}],
    }
    answer.body = with_usage(body, "usage", usage, d.usage, pretty=True)
    return answer


def _usage(plan: Plan) -> JSON:
    return {
        "input_tokens": plan.input_tokens,
        "input_tokens_details": {"cached_tokens": plan.d.cached, "cache_write_tokens": plan.d.cache_write},
        "output_tokens": plan.output_tokens,
        "output_tokens_details": {"reasoning_tokens": plan.reasoning_tokens},
        "total_tokens": plan.input_tokens + plan.output_tokens,
    }


def _status(plan: Plan) -> str:
    if plan.d.fail and plan.request.get("background"):
        return "failed"
    return "incomplete" if plan.limited or plan.d.finish in ("incomplete", "length") else "completed"


def _response(plan: Plan, status: str) -> JSON:
    """The object without `usage`; `output` empty."""
    request = plan.request
    return {
        "id": plan.id("resp_", length=50),
        "object": "response",
        "created_at": plan.created,
        "status": status,
        "background": plan.request.get("background") is True,
        "completed_at": plan.created + 1 if status == "completed" else None,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "max_tool_calls": None,
        "model": plan.model,
        "output": [],
        "parallel_tool_calls": request.get("parallel_tool_calls") is not False,
        "previous_response_id": request.get("previous_response_id"),
        "prompt_cache_key": request.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": request.get("store") is not False,
        "temperature": 1.0,
        "text": request.get("text") or {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": request.get("tools") or [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
        "metadata": request.get("metadata") or {},
    }


def _reasoning_item(plan: Plan) -> JSON:
    return {"id": plan.id("rs_", length=50), "type": "reasoning", "summary": []}


def _search_item(plan: Plan, index: int, status: str) -> JSON:
    action = {"type": "search", "query": f"{plan.text.piece(0).strip()} {index}"}
    return {"id": plan.id("ws_", index, 50), "type": "web_search_call", "status": status, "action": action}


def _image_item(plan: Plan, index: int) -> JSON:
    return {"id": plan.id("ig_", index, 50), "type": "image_generation_call", "status": "in_progress", "result": None}


def _message_item(plan: Plan, status: str) -> JSON:
    return {"id": plan.id("msg_", length=50), "type": "message", "status": status, "content": [], "role": "assistant"}


def _call_item(plan: Plan, index: int, status: str) -> JSON:
    names = tool_names(plan.request)
    return {
        "id": plan.id("fc_", index, 50),
        "type": "function_call",
        "status": status,
        "arguments": "",
        "call_id": plan.id("call_", index),
        "name": names[index % len(names)],
    }


def _text_part(text: str) -> JSON:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _output(plan: Plan, tools: int) -> list[JSON]:
    items: list[JSON] = []
    if plan.reasoning_tokens:
        summary = [{"type": "summary_text", "text": "".join(plan.reasoning_pieces)}]
        items.append({**_reasoning_item(plan), "summary": summary})
    items += [_search_item(plan, index, "completed") for index in range(plan.d.search)]
    items += [
        {**_image_item(plan, index), "status": "completed", "result": picture(plan)} for index in range(plan.d.images)
    ]
    if tools:
        arguments = tool_arguments(plan)
        items += [{**_call_item(plan, index, "completed"), "arguments": arguments} for index in range(tools)]
    else:
        items.append({**_message_item(plan, _status(plan)), "content": [_text_part(plan.whole)]})
    return items


def _events(plan: Plan, final: JSON, usage: JSON, how: str) -> Iterator[bytes]:
    d, eol = plan.d, EOL[plan.d.eol]
    number = -1

    def event(kind: str, data: JSON) -> bytes:
        nonlocal number
        number += 1
        return sse(dumps({"type": kind, "sequence_number": number, **data}), kind, eol)

    begun = {**_response(plan, "in_progress"), "usage": None}
    if final["background"]:
        queued = {**begun, "status": "queued"}
        yield event("response.created", {"response": queued})
        yield event("response.queued", {"response": queued})
    else:
        yield event("response.created", {"response": begun})
    yield event("response.in_progress", {"response": begun})
    count = 0
    for index, item in enumerate(final["output"]):
        for kind, data in _item_events(plan, index, item):
            text = kind in ("response.output_text.delta", "response.function_call_arguments.delta")
            if text and count == d.error_at:
                number += 1
                error = error_body("openai", d.error or "server")["error"]
                yield sse(dumps({"type": "error", "sequence_number": number, "error": error}), "error", eol)
                return
            count += text
            yield event(kind, data)
    if not d.done:
        return
    kind = f"response.{final['status']}"
    if d.usage == "twice":
        yield event("response.in_progress", {"response": {**begun, "usage": halved(usage)}})
    number += 1
    response = with_usage(final, "usage", usage, how)
    yield sse(b'{"type":"%b","sequence_number":%d,"response":%b}' % (kind.encode(), number, response), kind, eol)


def _item_events(plan: Plan, index: int, item: JSON) -> Iterator[tuple[str, JSON]]:
    at: JSON = {"item_id": item["id"], "output_index": index}
    match item["type"]:
        case "reasoning":
            yield "response.output_item.added", {"output_index": index, "item": _reasoning_item(plan)}
            yield from _reasoning_events(plan, at, item["summary"][0])
        case "web_search_call":
            yield "response.output_item.added", {"output_index": index, "item": {**item, "status": "in_progress"}}
            for step in ("in_progress", "searching", "completed"):
                yield f"response.web_search_call.{step}", at
        case "image_generation_call":
            yield (
                "response.output_item.added",
                {"output_index": index, "item": {**item, "status": "in_progress", "result": None}},
            )
            for step in ("in_progress", "generating", "completed"):
                yield f"response.image_generation_call.{step}", at
        case "function_call":
            yield (
                "response.output_item.added",
                {"output_index": index, "item": {**item, "status": "in_progress", "arguments": ""}},
            )
            for piece in tool_argument_pieces(plan):
                yield "response.function_call_arguments.delta", {**at, "delta": piece}
            done = {**at, "arguments": item["arguments"], "name": item["name"]}
            yield "response.function_call_arguments.done", done
        case _:
            yield "response.output_item.added", {"output_index": index, "item": _message_item(plan, "in_progress")}
            part: JSON = {**at, "content_index": 0}
            yield "response.content_part.added", {**part, "part": _text_part("")}
            for piece in plan.pieces:
                padding = {"obfuscation": "kJ8xQ2mZr5TvYw3n"[: 1 + len(piece) % 16]} if plan.d.obfuscation else {}
                yield "response.output_text.delta", {**part, "delta": piece, "logprobs": [], **padding}
            yield "response.output_text.done", {**part, "text": item["content"][0]["text"], "logprobs": []}
            yield "response.content_part.done", {**part, "part": item["content"][0]}
    yield "response.output_item.done", {"output_index": index, "item": item}


def _reasoning_events(plan: Plan, at: JSON, whole: JSON) -> Iterator[tuple[str, JSON]]:
    at = {**at, "summary_index": 0}
    yield "response.reasoning_summary_part.added", {**at, "part": {"type": "summary_text", "text": ""}}
    for thought in plan.thoughts:
        yield "response.reasoning_summary_text.delta", {**at, "delta": thought}
    yield "response.reasoning_summary_text.done", {**at, "text": whole["text"]}
    yield "response.reasoning_summary_part.done", {**at, "part": whole}
