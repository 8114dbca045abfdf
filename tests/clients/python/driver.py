"""Runs the clients of Python that have an environment of their own: the same protocol as `node/driver.mjs`."""

import json
import os
import sys
from typing import Any

# Neither asks anything of the world: prices and tokenizers come from the package, traces go nowhere.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LANGSMITH_TRACING"] = "false"

import litellm
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

litellm.telemetry = False
litellm.suppress_debug_info = True

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": PARAMETERS}}


# -- langchain-openai


def _langchain(request: dict[str, Any], **more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=request["base"] + "/v1", api_key=request["key"], model=request["model"],
        max_retries=request["retries"], **more,
    )  # fmt: skip


def _langchain_usage(usage: Any) -> dict[str, int]:
    return {
        "input": usage["input_tokens"],
        "output": usage["output_tokens"],
        "cached": usage.get("input_token_details", {}).get("cache_read", 0),
    }


def langchain_json(request: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = _langchain(request, **more).invoke(request["text"])
    return {"text": answer.text, "usage": _langchain_usage(answer.usage_metadata)}


def langchain_stream(request: dict[str, Any], **more: Any) -> dict[str, Any]:
    whole = None
    for chunk in _langchain(request, stream_usage=True, **more).stream(request["text"]):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    return {"text": whole.text, "usage": _langchain_usage(whole.usage_metadata)}


def langchain_tools(request: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = _langchain(request, **more).bind_tools([TOOL]).invoke(request["text"])
    calls = [{"name": call["name"], "arguments": call["args"]} for call in answer.tool_calls]
    return {"tools": calls, "usage": _langchain_usage(answer.usage_metadata)}


def langchain_embeddings(request: dict[str, Any]) -> dict[str, Any]:
    embeddings = OpenAIEmbeddings(
        base_url=request["base"] + "/v1", api_key=request["key"], model=request["model"],
        check_embedding_ctx_length=False,  # otherwise it wants to fetch a tokenizer
    )  # fmt: skip
    return {"text": str(len(embeddings.embed_documents([request["text"], "more"])))}


# -- litellm: the provider stands in front of the model's name


def _litellm(prefix: str, base: str) -> Any:
    def arguments(request: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "model": prefix + request["model"],
            "api_base": request["base"] + base,
            "api_key": request["key"],
            "messages": [{"role": "user", "content": request["text"]}],
            "max_tokens": 500,
            "max_retries": request["retries"],  # of the SDK below; its own `num_retries` repeats whatever failed
            **more,
        }

    return arguments


def _litellm_usage(usage: Any) -> dict[str, int]:
    details = getattr(usage, "prompt_tokens_details", None)
    return {
        "input": usage.prompt_tokens,
        "output": usage.completion_tokens,
        "cached": (details and details.cached_tokens) or 0,
    }


def litellm_json(request: dict[str, Any], arguments: Any) -> dict[str, Any]:
    answer = litellm.completion(**arguments(request))
    return {"text": answer.choices[0].message.content, "usage": _litellm_usage(answer.usage)}


def litellm_stream(request: dict[str, Any], arguments: Any) -> dict[str, Any]:
    text, usage = "", None
    stream = litellm.completion(**arguments(request, stream=True, stream_options={"include_usage": True}))
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        usage = getattr(chunk, "usage", None) or usage
    return {"text": text, "usage": _litellm_usage(usage)}


def litellm_tools(request: dict[str, Any], arguments: Any) -> dict[str, Any]:
    answer = litellm.completion(**arguments(request, tools=[TOOL]))
    calls = [
        {"name": call.function.name, "arguments": json.loads(call.function.arguments)}
        for call in answer.choices[0].message.tool_calls
    ]
    return {"tools": calls, "usage": _litellm_usage(answer.usage)}


LITELLM = {
    "litellm-openai": _litellm("openai/", "/v1"),
    "litellm-anthropic": _litellm("anthropic/", ""),
    "litellm-gemini": _litellm("gemini/", "/v1beta"),
}
STEPS = {
    "langchain": {"json": langchain_json, "stream": langchain_stream, "tools": langchain_tools},
    "litellm": {"json": litellm_json, "stream": litellm_stream, "tools": litellm_tools},
}


def run(request: dict[str, Any]) -> dict[str, Any]:
    client, step = request["client"], request["step"]
    if step == "embeddings":
        return langchain_embeddings(request)
    if client in LITELLM:
        return STEPS["litellm"][step](request, LITELLM[client])
    return STEPS["langchain"][step](request, use_responses_api=client == "langchain-responses")


def shown(error: Exception) -> dict[str, Any]:
    return {
        "name": type(error).__name__,
        "status": getattr(error, "status_code", None),
        "code": getattr(error, "code", None),
        "message": str(error),
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        try:
            outcome = run(json.loads(line))
        except Exception as error:
            outcome = {"error": shown(error)}
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()


main()
