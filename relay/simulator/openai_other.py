"""OpenAI endpoints that neither write text nor make pictures or sound: embeddings, moderations; and reranking."""

import base64
import struct
from typing import Any

from relay.simulator.answer import Answer, Refused
from relay.simulator.directives import Directives
from relay.simulator.openai_chat import need, whole_number
from relay.simulator.plan import JSON, Plan, damaged, dumps, make_plan, with_usage
from relay.simulator.vectors import vector

_DIMENSIONS = {"text-embedding-3-large": 3072}
_MODERATION_CATEGORIES = (
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic",
)  # fmt: skip


def answer(name: str, request: JSON, d: Directives, number: int) -> Answer:
    if name == "embeddings":
        return embeddings(request, d, number)
    if name == "moderations":
        return _moderations(request, d, number)
    if name == "rerank":
        return _rerank(request, d, number)
    raise Refused(404, "not_found", "Invalid URL", code="unknown_url")


def embeddings(request: JSON, d: Directives, number: int) -> Answer:
    model = need(request, "model", (str,))
    given = need(request, "input", (str, list))
    if not given:
        raise Refused(400, "invalid", "'$.input' is invalid. Please check the API reference.", "input")
    inputs: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    dimensions = whole_number(request, "dimensions") or _DIMENSIONS.get(model, 1536)
    if not 1 <= dimensions <= 1 << 14:
        raise Refused(400, "invalid", "Invalid value for 'dimensions'.", "dimensions")
    plan = make_plan(d, number, model, request, None)
    in_base64 = request.get("encoding_format") == "base64"
    data = []
    for index, item in enumerate(inputs):
        values = vector(dumps(item), dimensions)
        packed = base64.b64encode(struct.pack(f"<{dimensions}f", *values)).decode() if in_base64 else None
        data.append({"object": "embedding", "index": index, "embedding": packed or values})
    usage = {"prompt_tokens": plan.input_tokens, "total_tokens": plan.input_tokens}
    made = _made(plan, usage)
    made.output_tokens = 0
    made.body = with_usage({"object": "list", "data": data, "model": model}, "usage", usage, d.usage, pretty=True)
    return made


def _made(plan: Plan, usage: JSON | None) -> Answer:
    return Answer(
        200,
        "application/json",
        model=plan.model,
        usage=None if usage is None else damaged(usage, plan.d.usage),
        input_tokens=plan.input_tokens,
        output_tokens=plan.output_tokens,
    )


def _moderations(request: JSON, d: Directives, number: int) -> Answer:
    given = need(request, "input", (str, list))
    plan = make_plan(d, number, request.get("model") or "omni-moderation-latest", request, None)
    one = {
        "flagged": False,
        "categories": dict.fromkeys(_MODERATION_CATEGORIES, False),
        "category_scores": dict.fromkeys(_MODERATION_CATEGORIES, 0.0001),
        "category_applied_input_types": {name: ["text"] for name in _MODERATION_CATEGORIES},
    }
    count = len(given) if isinstance(given, list) and given and isinstance(given[0], str) else 1
    body = {"id": plan.id("modr-"), "model": plan.model, "results": [one] * count}
    return Answer(200, "application/json", dumps(body, pretty=True), model=plan.model)


def _rerank(request: JSON, d: Directives, number: int) -> Answer:
    documents = need(request, "documents", (list,))
    need(request, "query", (str,))
    plan = make_plan(d, number, need(request, "model", (str,)), request, None)
    results = [{"index": index, "relevance_score": 1 / (index + 2)} for index in range(len(documents))]
    usage = {"prompt_tokens": plan.input_tokens, "total_tokens": plan.input_tokens}
    made = _made(plan, usage)
    made.output_tokens = 0
    body: JSON = {"id": plan.id("rerank-"), "model": plan.model, "results": results}
    if d.search:  # as Cohere bills, without tokens
        made.usage = None
        made.body = dumps({**body, "meta": {"billed_units": {"search_units": d.search}}})
        return made
    made.body = with_usage(body, "usage", usage, d.usage)
    return made
