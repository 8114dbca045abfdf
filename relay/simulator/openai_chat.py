"""OpenAI chat completions and legacy completions."""

from collections.abc import Iterator
from typing import Any

import orjson

from relay.simulator.answer import Answer, Refused
from relay.simulator.directives import Directives
from relay.simulator.errors import error_body
from relay.simulator.plan import EOL, JSON, Plan, damaged, dumps, halved, make_plan, sse, with_usage

_FINGERPRINT = "fp_51m1a7ed00"


def whole_number(request: JSON, *names: str) -> int | None:
    """The first of these fields that is given. Raises Refused when it is not a whole number."""
    for name in names:
        value = request.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise Refused(
                400,
                "invalid",
                f"Invalid type for '{name}': expected an integer, but got something else instead.",
                name,
                "invalid_type",
            )
        return value
    return None


def need(request: JSON, name: str, kinds: tuple[type, ...]) -> Any:
    """A required field. Raises Refused as OpenAI does."""
    if request.get(name) is None:
        if name == "model":
            raise Refused(400, "invalid", "you must provide a model parameter")
        raise Refused(400, "invalid", f"Missing required parameter: '{name}'.", name, "missing_required_parameter")
    if not isinstance(request[name], kinds):
        raise Refused(400, "invalid", f"Invalid type for '{name}'.", name, "invalid_type")
    return request[name]


def check_output_limit(limit: int | None, name: str) -> None:
    if limit is not None and limit < 1:
        raise Refused(
            400,
            "invalid",
            f"Invalid '{name}': integer below minimum value. Expected a value >= 1, but got {limit} instead.",
            name,
            "integer_below_min_value",
        )


def tool_names(request: JSON) -> list[str]:
    """Names of the function tools offered, in chat's, Responses' or Anthropic's way of writing them."""
    names = []
    for tool in request.get("tools") or []:
        if isinstance(tool, dict):
            function = tool.get("function")
            name = function.get("name") if isinstance(function, dict) else tool.get("name")
            if isinstance(name, str) and not str(tool.get("type", "")).startswith("web_search"):
                names.append(name)
    return names or ["get_weather"]


def tool_argument_pieces(plan: Plan) -> Iterator[str]:
    """The JSON arguments of a tool call, cut into as many events as text would have."""
    yield '{"city":"'
    for piece in plan.pieces:
        yield orjson.dumps(piece).decode()[1:-1]
    yield '"}'


def tool_arguments(plan: Plan) -> str:
    """What the pieces add up to."""
    return '{"city":' + orjson.dumps(plan.whole).decode() + "}"


def chat_usage(plan: Plan) -> JSON:
    cached, reasoning = plan.d.cached, plan.reasoning_tokens * plan.choices
    prompt, completion = plan.input_tokens, plan.output_tokens
    if plan.d.shape == "deepseek":
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
            "prompt_cache_hit_tokens": cached,
            "prompt_cache_miss_tokens": prompt - cached,
        }
    if plan.d.shape == "kimi":
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "cached_tokens": cached,
        }
    details: JSON = {"cached_tokens": cached, "audio_tokens": 0}
    if plan.d.cache_write:
        details["cache_write_tokens"] = plan.d.cache_write
    usage: JSON = {
        "prompt_tokens": prompt,
        # xAI leaves reasoning out of the completion, but not out of the total.
        "completion_tokens": completion - (reasoning if plan.d.shape == "xai" else 0),
        "total_tokens": prompt + completion,
        "prompt_tokens_details": details,
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    if plan.d.shape == "xai" and plan.d.search:
        usage["num_sources_used"] = plan.d.search
    return usage


def chat(request: JSON, d: Directives, number: int) -> Answer:
    model = need(request, "model", (str,))
    if not need(request, "messages", (list,)):
        raise Refused(400, "invalid", "Invalid 'messages': empty array.", "messages", "empty_array")
    limit = whole_number(request, "max_completion_tokens", "max_tokens")
    check_output_limit(
        limit, "max_completion_tokens" if request.get("max_completion_tokens") is not None else "max_tokens"
    )
    plan = make_plan(d, number, model, request, limit, whole_number(request, "n") or 1)
    tools = d.tools or (
        1 if request.get("tool_choice") == "required" or isinstance(request.get("tool_choice"), dict) else 0
    )
    usage = chat_usage(plan)
    answer = _answer(plan, usage)
    if not request.get("stream"):
        answer.body = _chat_whole(plan, tools, usage)
        return answer
    options = request.get("stream_options")
    include_usage = isinstance(options, dict) and options.get("include_usage") is True
    answer.content_type = "text/event-stream; charset=utf-8"
    if not include_usage and d.usage_at == "own":
        answer.usage = None
    answer.events = _chat_events(plan, tools, usage, include_usage)
    return answer


def _answer(plan: Plan, usage: JSON) -> Answer:
    return Answer(
        200,
        "application/json",
        model=plan.model,
        plan=plan,
        usage=damaged(usage, plan.d.usage),
        input_tokens=plan.input_tokens,
        cached_tokens=plan.d.cached,
        output_tokens=plan.output_tokens,
        reasoning_tokens=plan.reasoning_tokens * plan.choices,
    )


def _finish(plan: Plan, tools: int) -> str:
    return plan.d.finish or ("length" if plan.limited else "tool_calls" if tools else "stop")


def _annotations(plan: Plan) -> list[JSON]:
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": 0,
                "end_index": 1,
                "url": f"https://example.com/{i}",
                "title": f"Result {i}",
            },
        }
        for i in range(plan.d.search)
    ]


def _chat_whole(plan: Plan, tools: int, usage: JSON) -> bytes:
    message: JSON = {"role": "assistant", "content": None if tools else plan.whole, "refusal": None}
    if plan.reasoning_tokens:
        message["reasoning_content"] = "".join(plan.reasoning_pieces)
    if tools:
        names = tool_names(plan.request)
        message["tool_calls"] = [
            {
                "id": plan.id("call_", index),
                "type": "function",
                "function": {"name": names[index % len(names)], "arguments": tool_arguments(plan)},
            }
            for index in range(tools)
        ]
    message["annotations"] = _annotations(plan)
    answer = {
        "id": plan.id("chatcmpl-", length=29),
        "object": "chat.completion",
        "created": plan.created,
        "model": plan.model,
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": _finish(plan, tools)}
            for index in range(plan.choices)
        ],
    }
    tail = {"service_tier": "default", "system_fingerprint": _FINGERPRINT}
    return with_usage({**answer, **tail}, "usage", usage, plan.d.usage, pretty=True)


class _Chunks:
    """Chunks of one chat stream: what all have in common is encoded once."""

    def __init__(self, plan: Plan, kind: str, identifier: str, include_usage: bool) -> None:
        self.eol = EOL[plan.d.eol]
        self.obfuscation = b"kJ8xQ2mZr5TvYw3n" if plan.d.obfuscation else b""
        head = {
            "id": identifier,
            "object": kind,
            "created": plan.created,
            "model": plan.model,
            "service_tier": "default",
            "system_fingerprint": _FINGERPRINT,
        }
        self.head = dumps(head)[:-1] + b',"choices":['
        self.tail = b'],"usage":null}' if include_usage else b"]}"

    def delta(self, index: int, delta: bytes, finish: str | None = None, extra: bytes = b"") -> bytes:
        """One chunk with one choice. `extra`: further members of the choice, each begun by a comma."""
        tail = self.tail
        if self.obfuscation:
            tail = tail[:-1] + b',"obfuscation":"' + self.obfuscation[: 1 + len(delta) % 16] + b'"}'
        reason = b"null" if finish is None else b'"' + finish.encode() + b'"'
        return b"".join(
            (
                b"data: ", self.head, b'{"index":', b"%d" % index, b',"delta":', delta,
                b',"logprobs":null,"finish_reason":', reason, extra, b"}", tail, self.eol, self.eol,
            )
        )  # fmt: skip

    def with_members(self, event: bytes, members: bytes) -> bytes:
        """The event with further members at the end of its object (a usage that is already there is replaced)."""
        inner = event[: -2 * len(self.eol)]
        inner = inner.removesuffix(b"}").removesuffix(b',"usage":null')
        return inner + members + b"}" + self.eol + self.eol

    def usage(self, usage: JSON) -> bytes:
        return b"data: " + self.head + b'],"usage":' + dumps(usage) + b"}" + self.eol + self.eol


def _chat_events(plan: Plan, tools: int, usage: JSON, include_usage: bool) -> Iterator[bytes]:
    d = plan.d
    chunks = _Chunks(plan, "chat.completion.chunk", plan.id("chatcmpl-", length=29), include_usage)
    delta = chunks.delta
    shown = damaged(usage, d.usage)
    each = d.usage_at == "each" and shown is not None
    for sent, event in enumerate(_chat_deltas(plan, tools, delta), 1):
        if each:
            running = {**usage, "completion_tokens": min(sent * d.tokens, usage["completion_tokens"])}
            yield chunks.with_members(event, b',"usage":' + dumps(damaged(running, d.usage)))
        else:
            yield event
        if d.error_at >= 0 and sent == d.error_at + plan.choices:  # the opening chunks are not text
            yield sse(dumps(error_body("openai", d.error or "server")), eol=chunks.eol)
            return
    finish = _finish(plan, tools)
    for index in range(plan.choices):
        if d.usage_at == "choice" and shown is not None:
            event = delta(index, b"{}", finish, b',"usage":' + dumps(shown))
        else:
            event = delta(index, b"{}", finish)
        if d.usage_at in ("finish", "each") and shown is not None and index == plan.choices - 1:
            event = chunks.with_members(event, b',"usage":' + dumps(shown))
        if d.usage_at == "groq" and shown is not None and index == plan.choices - 1:
            event = chunks.with_members(event, b',"x_groq":{"id":"req_sim","usage":' + dumps(shown) + b"}")
        yield event
    if include_usage and d.usage_at == "own" and shown is not None:
        if d.usage == "twice":
            yield chunks.usage(halved(usage))
        if d.usage != "null":
            yield chunks.usage(shown)
    if d.done:
        yield b"data: [DONE]" + chunks.eol + chunks.eol


def _chat_deltas(plan: Plan, tools: int, delta: Any) -> Iterator[bytes]:
    choices = range(plan.choices)
    if tools:
        names = tool_names(plan.request)
        for index in choices:
            yield delta(index, b'{"role":"assistant","content":null,"refusal":null}')
            for call in range(tools):
                opening = {
                    "index": call,
                    "id": plan.id("call_", call + 16 * index),
                    "type": "function",
                    "function": {"name": names[call % len(names)], "arguments": ""},
                }
                yield delta(index, b'{"tool_calls":[' + dumps(opening) + b"]}")
                for piece in tool_argument_pieces(plan):
                    part = b'{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}'
                    yield delta(index, part % (call, orjson.dumps(piece)))
        return
    for index in choices:
        yield delta(index, b'{"role":"assistant","content":"","refusal":null}')
    for thought in plan.thoughts:
        text = orjson.dumps(thought)
        for index in choices:
            yield delta(index, b'{"content":null,"reasoning_content":' + text + b"}")
    for piece in plan.pieces:
        text = orjson.dumps(piece)
        for index in choices:
            yield delta(index, b'{"content":' + text + b"}")
    if plan.d.search:
        yield delta(0, b'{"annotations":' + dumps(_annotations(plan)) + b"}")


def completions(request: JSON, d: Directives, number: int) -> Answer:
    model = need(request, "model", (str,))
    prompt = request.get("prompt")
    limit = whole_number(request, "max_tokens")
    check_output_limit(limit, "max_tokens")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)) else 1
    # The legacy default of 16 tokens holds only for callers that do not steer the simulator.
    plan = make_plan(d, number, model, request, limit, (whole_number(request, "n") or 1) * prompts)
    usage = chat_usage(plan)
    answer = _answer(plan, usage)
    finish = d.finish or ("length" if plan.limited else "stop")
    identifier = plan.id("cmpl-", length=29)
    base: JSON = {"id": identifier, "object": "text_completion", "created": plan.created, "model": model}
    if not request.get("stream"):
        choices = [
            {"text": plan.whole, "index": index, "logprobs": None, "finish_reason": finish}
            for index in range(plan.choices)
        ]
        answer.body = with_usage({**base, "choices": choices}, "usage", usage, d.usage, pretty=True)
        return answer
    options = request.get("stream_options")
    include_usage = isinstance(options, dict) and options.get("include_usage") is True
    answer.content_type = "text/event-stream; charset=utf-8"
    if not include_usage:
        answer.usage = None
    answer.events = _completion_events(plan, base, finish, usage, include_usage)
    return answer


def _completion_events(plan: Plan, base: JSON, finish: str, usage: JSON, include_usage: bool) -> Iterator[bytes]:
    d, eol = plan.d, EOL[plan.d.eol]
    none_yet: JSON = {"usage": None} if include_usage else {}

    def event(choices: list[JSON], more: JSON) -> bytes:
        return sse(dumps({**base, "choices": choices, **more}), eol=eol)

    for number, piece in enumerate(plan.pieces):
        for index in range(plan.choices):
            yield event([{"text": piece, "index": index, "logprobs": None, "finish_reason": None}], none_yet)
        if d.error_at == number + 1:
            yield sse(dumps(error_body("openai", d.error or "server")), eol=eol)
            return
    for index in range(plan.choices):
        yield event([{"text": "", "index": index, "logprobs": None, "finish_reason": finish}], none_yet)
    shown = damaged(usage, d.usage)
    if include_usage and shown is not None and d.usage != "null":
        if d.usage == "twice":
            yield event([], {"usage": halved(usage)})
        yield event([], {"usage": shown})
    if d.done:
        yield b"data: [DONE]" + eol + eol
