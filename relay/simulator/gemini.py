"""Gemini: generateContent, streamGenerateContent, countTokens, embedContent, batchEmbedContents."""

from collections.abc import Iterator

import orjson

from relay.simulator.answer import Answer, Refused
from relay.simulator.directives import Directives
from relay.simulator.errors import error_body
from relay.simulator.openai_chat import tool_arguments
from relay.simulator.openai_media import picture
from relay.simulator.plan import EOL, JSON, Plan, damaged, dumps, halved, make_plan, sse, with_usage
from relay.simulator.vectors import vector

_JSON_TYPE = "application/json; charset=UTF-8"
_TOKENS_PER_IMAGE = 1290


def _contents(request: JSON) -> None:
    contents = request.get("contents")
    if not contents:
        raise Refused(400, "invalid", "* GenerateContentRequest.contents: contents is not specified\n")
    if not isinstance(contents, list):
        raise Refused(400, "invalid", "Invalid value at 'contents'")


def count_tokens(request: JSON, d: Directives, number: int, model: str) -> Answer:
    inner = request.get("generateContentRequest")
    _contents(inner if isinstance(inner, dict) else request)
    plan = make_plan(d, number, model, request, None)
    counted = {
        "totalTokens": plan.input_tokens,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": plan.input_tokens}],
    }
    return Answer(200, _JSON_TYPE, dumps(counted, pretty=True) + b"\n", model=model)


def embed(request: JSON, d: Directives, number: int, model: str, batch: bool) -> Answer:
    one = request.get("requests") if batch else [request]
    if not isinstance(one, list) or not one:
        raise Refused(400, "invalid", "* BatchEmbedContentsRequest.requests: requests is not specified\n")
    values = []
    for index, item in enumerate(one):
        if not isinstance(item, dict) or not item.get("content"):
            raise Refused(400, "invalid", "* EmbedContentRequest.content: content is not specified\n")
        config = item.get("embedContentConfig")
        size = item.get("outputDimensionality") or (
            config.get("outputDimensionality") if isinstance(config, dict) else None
        )
        values.append({"values": vector(dumps(item.get("content")) + bytes([index % 251]), size or 768)})
    body: JSON = {"embeddings": values} if batch else {"embedding": values[0]}
    return Answer(200, _JSON_TYPE, dumps(body, pretty=True) + b"\n", model=model)


def generate(request: JSON, d: Directives, number: int, model: str, stream: bool, alt_sse: bool) -> Answer:
    """`alt_sse`: a stream as events; without it, as the elements of one JSON array."""
    _contents(request)
    config = request.get("generationConfig")
    config = config if isinstance(config, dict) else {}
    limit, choices = config.get("maxOutputTokens"), config.get("candidateCount") or 1
    for name, value in (("max_output_tokens", limit), ("candidate_count", choices)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise Refused(400, "invalid", f"Invalid value at 'generation_config.{name}' (TYPE_INT32), \"{value}\"")
    plan = make_plan(d, number, model, request, limit, choices)
    plan.output_tokens += _TOKENS_PER_IMAGE * d.images
    usage = _usage(plan, plan.output_tokens)
    answer = Answer(
        200,
        _JSON_TYPE,
        model=model,
        plan=plan,
        usage=damaged(usage, d.usage),
        input_tokens=plan.input_tokens,
        cached_tokens=d.cached,
        output_tokens=plan.output_tokens,
        reasoning_tokens=plan.reasoning_tokens * plan.choices,
    )
    if not stream:
        body = {
            "candidates": [_candidate(plan, index, _parts(plan), last=True) for index in range(plan.choices)],
            **_tail(plan),
        }
        answer.body = with_usage(body, "usageMetadata", usage, d.usage, pretty=True) + b"\n"
    elif alt_sse:
        answer.content_type = "text/event-stream"
        answer.headers = [("content-disposition", "attachment")]
        eol = EOL[d.eol or "crlf"]
        answer.events = (sse(chunk, eol=eol) for chunk in _chunks(plan, usage, pretty=False))
    else:
        answer.events = _array(_chunks(plan, usage, pretty=True))
    return answer


def _usage(plan: Plan, output: int) -> JSON:
    """`output`: tokens so far, thoughts included."""
    d = plan.d
    thoughts = min(plan.reasoning_tokens * plan.choices, output)
    usage: JSON = {"promptTokenCount": plan.input_tokens}
    if output > thoughts or not thoughts:
        usage["candidatesTokenCount"] = output - thoughts
    usage["totalTokenCount"] = plan.input_tokens + output
    if d.cached:
        usage["cachedContentTokenCount"] = d.cached
        usage["cacheTokensDetails"] = [{"modality": "TEXT", "tokenCount": d.cached}]
    usage["promptTokensDetails"] = [{"modality": "TEXT", "tokenCount": plan.input_tokens}]
    if d.images and output == plan.output_tokens:
        in_images = min(output - thoughts, _TOKENS_PER_IMAGE * d.images)
        usage["candidatesTokensDetails"] = [{"modality": "IMAGE", "tokenCount": in_images}]
    if thoughts:
        usage["thoughtsTokenCount"] = thoughts
    return usage


def _tail(plan: Plan) -> JSON:
    return {"modelVersion": plan.model, "responseId": plan.id("", length=22)}


def _tool_count(plan: Plan) -> int:
    config = plan.request.get("toolConfig")
    calling = config.get("functionCallingConfig") if isinstance(config, dict) else None
    forced = isinstance(calling, dict) and calling.get("mode") == "ANY"
    return plan.d.tools or (1 if forced else 0)


def _tool_parts(plan: Plan) -> list[JSON]:
    names = [
        declared["name"]
        for tool in plan.request.get("tools") or []
        if isinstance(tool, dict)
        # Proto JSON takes both spellings; litellm sends the second.
        for declared in tool.get("functionDeclarations") or tool.get("function_declarations") or []
    ] or ["get_weather"]
    return [
        {"functionCall": {"name": names[index % len(names)], "args": orjson.loads(tool_arguments(plan))}}
        for index in range(_tool_count(plan))
    ]


def _parts(plan: Plan) -> list[JSON]:
    parts: list[JSON] = []
    if plan.reasoning_tokens:
        parts.append({"text": "".join(plan.reasoning_pieces), "thought": True})
    tools = _tool_parts(plan)
    return [*parts, *(tools or [{"text": plan.whole}]), *_image_parts(plan)]


def _image_parts(plan: Plan) -> list[JSON]:
    return [{"inlineData": {"mimeType": "image/png", "data": picture(plan)}}] * plan.d.images


def _candidate(plan: Plan, index: int, parts: list[JSON], last: bool) -> JSON:
    candidate: JSON = {"content": {"parts": parts, "role": "model"}}
    if last:
        candidate["finishReason"] = plan.d.finish or ("MAX_TOKENS" if plan.limited else "STOP")
        if plan.d.search:
            candidate["groundingMetadata"] = {
                "searchEntryPoint": {"renderedContent": "<div></div>"},
                "groundingChunks": [{"web": {"uri": "https://example.com/0", "title": "example.com"}}],
                "webSearchQueries": [f"{plan.text.piece(0).strip()} {number}" for number in range(plan.d.search)],
            }
    candidate["index"] = index
    return candidate


def _chunks(plan: Plan, usage: JSON, pretty: bool) -> Iterator[bytes]:
    """The chunks of a stream as JSON texts. Each reports the running usage; the last one wins."""
    d = plan.d
    tail = _tail(plan)
    tail_text = dumps(tail)[1:]
    text_tokens = plan.output_tokens - _TOKENS_PER_IMAGE * d.images
    counted = 0
    sent = 0

    def chunk(parts: list[JSON], candidate: int, last: bool = False) -> bytes:
        running = usage if last else _usage(plan, counted)
        if not last and sent == 1 and not plan.reasoning_tokens:
            running.pop("candidatesTokenCount", None)  # as early chunks of some models do
        body = {"candidates": [_candidate(plan, candidate, parts, last)]}
        if last:
            return with_usage({**body, **tail}, "usageMetadata", usage, d.usage, pretty)
        if pretty:
            return with_usage(
                {**body, **tail}, "usageMetadata", running, "normal" if d.usage == "twice" else d.usage, pretty
            )
        shown = None if d.usage in ("missing", "null") else damaged(running, d.usage)
        middle = b"" if shown is None else b',"usageMetadata":' + dumps(shown)
        return dumps(body)[:-1] + middle + b"," + tail_text

    for thought in plan.thoughts:
        sent += 1
        counted = min(counted + d.tokens, plan.reasoning_tokens)
        yield chunk([{"text": thought, "thought": True}], 0)
    tools = _tool_parts(plan)
    pieces: Iterator[list[JSON]] = iter([tools]) if tools else ([{"text": piece}] for piece in plan.pieces)
    for number, parts in enumerate(pieces):
        for candidate in range(plan.choices):
            sent += 1
            counted = min(counted + d.tokens, text_tokens)
            yield chunk(parts, candidate)
        if d.error_at == number + 1:
            yield dumps(error_body("gemini", d.error or "overloaded"))
            return
    if d.images:
        sent += 1
        counted = plan.output_tokens
        plan.said += _TOKENS_PER_IMAGE * d.images
        yield chunk(_image_parts(plan), 0)
    if not d.done:
        return
    for candidate in range(plan.choices):
        if d.usage == "twice" and candidate == plan.choices - 1:
            early = {
                "candidates": [_candidate(plan, candidate, [{"text": ""}], False)],
                "usageMetadata": halved(usage),
                **tail,
            }
            yield dumps(early, pretty)
        yield chunk([{"text": ""}], candidate, last=True)


def _array(chunks: Iterator[bytes]) -> Iterator[bytes]:
    begin = b"["
    for chunk in chunks:
        yield begin + chunk
        begin = b",\r\n"
    yield b"]" if begin != b"[" else b"[]"
