"""What a request asks for beside tokens of its own model: tools that its provider runs and bills, and other models.

Which names mean what stands here, and nowhere else. What it costs and whether it is allowed: `policy.extras`. The
names are those that the documentation and the SDKs of OpenAI, Anthropic, Google, xAI, OpenRouter, Groq, Mistral,
Moonshot, Z.ai and Qwen had on 2026-11-30.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
import orjson

from relay.wire.endpoints import F_COUNT_TOKENS, F_GEMINI_COUNT, F_GENERATE, F_MESSAGES

# The provider's own default of a picture tool that names no model.
PICTURE_MODEL: Final = "gpt-image-2.6-sunburst"

# Tools that cost nothing but tokens, or that the client runs itself.
_FREE: Final = frozenset({
    "function", "custom", "local_shell", "apply_patch", "mcp", "tool_search", "namespace", "programmatic_tool_calling",
    "openrouter:datetime",
})  # fmt: skip
_FREE_BEGINNINGS: Final = (
    *("computer", "tool_search_tool", "mcp_toolset", "bash_", "text_editor_", "memory_", "web_fetch_2"),
    "web_search",  # has a price of its own, and is seen by the scanner
)
_NAME: Final = re.compile(r"[a-z][a-z0-9_.:-]{0,47}")
_SIZES: Final = frozenset({"1g", "4g", "16g", "64g"})
# Other names of what has one price.
_SAME: Final = {"collections_search": "file_search", "code_interpreter": "code_execution"}
# Anthropic runs code for nothing beside these.
_WITH_CODE: Final = re.compile(r"web_(search|fetch)_(2026(0[2-9]|1)|202[7-9]|20[3-9])")
_PDF_FREE: Final = frozenset({"pdf-text", "native", "cloudflare-ai"})
_PLUGINS_FREE: Final = frozenset({"response-healing", "context-compression", "moderation"})
_GEMINI_FREE: Final = frozenset({
    "functionDeclarations", "function_declarations", "codeExecution", "code_execution", "urlContext", "url_context",
    "computerUse", "computer_use", "googleSearch", "google_search", "googleSearchRetrieval", "google_search_retrieval",
})  # fmt: skip
_GEMINI: Final = {"googleMaps": "maps", "google_maps": "maps"}
_SEARCHES: Final = ("web_search", "googleSearch", "google_search")
SECOND_MODELS: Final = (
    "fallbacks", "models", "route", "compound_custom", "routingConfig", "routing_config", "modelSelectionConfig",
    "model_selection_config",
)  # fmt: skip


class Asked(msgspec.Struct, frozen=True):
    """One thing that a request asks for.

    price  by which name it is priced; "" where it is a way to another model that nothing can hold for
    field  where it stands, for an error
    model  whose tokens it uses
    uses   how often the request lets it be used; 0: it does not say
    output how many tokens each use may make; 0: it does not say
    """

    price: str
    field: str
    model: str | None = None
    uses: int = 0
    output: int = 0


def asked(format: int, fields: Iterable[tuple[str, Any]], model: str | None = None) -> list[Asked]:
    """What fields of a request ask for; what costs nothing is left out. `model`: which the request is for."""
    fields = list(fields)
    uses = next((_count(value) for name, value in fields if name == "max_tool_calls"), 0)
    found: list[Asked] = []
    for name, value in fields:
        if name == "tools":
            if format in (F_GENERATE, F_GEMINI_COUNT):
                found += _google_tools(value)
            else:
                found += _tools(value, anthropic=format in (F_MESSAGES, F_COUNT_TOKENS), uses=uses)
        elif name == "plugins":
            found += _plugins(value)
        elif name == "search_parameters" and value is not None and value is not False:
            found += _live_search(value)
        elif name in SECOND_MODELS and value and not (name == "models" and value == [model]):
            found.append(Asked("", name))
    return found


def asked_in(format: int, document: dict[str, Any]) -> list[Asked]:
    """The same of a whole request, as jobs have them: nothing in the middle of a conversation is passed over either."""
    fields = [(name, value) for name, value in document.items() if name in _READ]
    config = document.get("generationConfig") or document.get("generation_config")
    if isinstance(config, dict):
        fields += [(name, value) for name, value in config.items() if name in SECOND_MODELS]
    for item in document.get("input") or () if isinstance(document.get("input"), list) else ():
        if isinstance(item, dict) and isinstance(item.get("tools"), list):
            fields.append(("tools", item["tools"]))
    model = document.get("model")
    return asked(format, fields, model if isinstance(model, str) else None)


_READ: Final = frozenset({"tools", "plugins", "search_parameters", "max_tool_calls", *SECOND_MODELS})


def parsed(fields: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Any]]:
    """Values as they stand in a body that was read before. A literal, whose text is not kept, counts as true."""
    for name, raw in fields:
        try:
            yield name, orjson.loads(raw) if raw else True
        except orjson.JSONDecodeError:  # half of a surrogate pair: only that something stands there is sure
            yield name, [{"type": "?"}] if name == "tools" else True


def searches(document: dict[str, Any]) -> bool:
    """Whether a whole request offers its model a web search, or asks for one."""
    tools = document.get("tools")
    for tool in tools if isinstance(tools, list) else [tools]:
        if isinstance(tool, dict) and (
            str(tool.get("type", "")).startswith("web_search") or any(name.startswith(_SEARCHES) for name in tool)
        ):
            return True
    return bool(document.get("enable_search")) or isinstance(document.get("web_search_options"), dict)


def searches_always(model: str) -> bool:
    """Whether every answer of a chat model is a search: OpenAI's search models, by their names."""
    return "-search-preview" in model or "-search-api" in model


def _tools(value: Any, *, anthropic: bool, uses: int) -> Iterator[Asked]:
    tools = [tool for tool in (value if isinstance(value, list) else [value]) if isinstance(tool, dict)]
    types = [tool["type"] for tool in tools if isinstance(tool.get("type"), str)]
    code_is_free = anthropic and any(_WITH_CODE.match(type) for type in types)
    for number, tool in enumerate(tools):
        type = tool.get("type")
        if isinstance(tool.get("tools"), list):
            yield from _tools(tool["tools"], anthropic=anthropic, uses=uses)
        if not isinstance(type, str):
            yield from _google_tools([{name: tool[name] for name in tool if name in _GOOGLE_BESIDE}])
        elif (
            type in _FREE or type.startswith(_FREE_BEGINNINGS) or (code_is_free and type.startswith("code_execution_"))
        ):
            pass
        elif type.startswith("code_execution_"):
            yield Asked("code_execution", "tools.code_execution", uses=1)
        elif type.startswith("advisor_"):
            name, most = tool.get("model"), tool.get("max_uses")
            model = name if isinstance(name, str) else ""
            yield Asked("advisor", "tools.advisor", model, _count(most), _count(tool.get("max_tokens")))
        elif type == "image_generation":
            name = tool.get("model")
            yield Asked(type, "tools.image_generation", name if isinstance(name, str) else PICTURE_MODEL, uses)
        elif type == "shell" or (type == "code_interpreter" and tool.get("container") is not None):
            price = _container(tool.get("container" if type == "code_interpreter" else "environment"), type)
            if price is not None:
                yield Asked(price, f"tools.{type}", uses=1)
        elif _NAME.fullmatch(type):
            field = f"tools.{type.replace(':', '_')}" if type in _KNOWN else f"tools[{number}].type"
            yield Asked(_SAME.get(type, type), field, uses=uses)
        else:
            yield Asked("unknown", f"tools[{number}].type")


_GOOGLE_BESIDE: Final = frozenset({
    "googleMaps", "google_maps", "fileSearch", "file_search", "enterpriseWebSearch", "enterprise_web_search"
})  # fmt: skip
_KNOWN: Final = frozenset({
    "file_search", "x_search", "collections_search", "attachment_search", "browser_search", "code_execution",
    "code_interpreter", "builtin_function", "web_extractor", "retrieval", "openrouter:web_search",
    "openrouter:web_fetch", "openrouter:image_generation", "openrouter:advisor",
})  # fmt: skip


def _container(value: Any, type: str) -> str | None:
    """By which price a sandbox is charged; None: the client runs it. One that is named may have any size."""
    if type == "shell" and (value is None or (isinstance(value, dict) and value.get("type") == "local")):
        return None
    if not isinstance(value, dict) or value.get("type") == "container_reference":
        return "container"
    size = value.get("memory_limit") or "1g"
    return f"container_{size}" if _text(size) in _SIZES else "container"


def _google_tools(value: Any) -> Iterator[Asked]:
    for tool in value if isinstance(value, list) else [value]:
        for name, inner in tool.items() if isinstance(tool, dict) else ():
            if name in _GEMINI_FREE or inner is None:
                continue
            plain = re.sub("(?<=[a-z])([A-Z])", r"_\1", name).lower()
            price = _GEMINI.get(name, plain if _NAME.fullmatch(plain) else "unknown")
            if price == "file_search":
                price = "google_file_search"  # its stores are made at paths that are not served
            yield Asked(price, f"tools.{plain if plain in _GEMINI_KNOWN else 'unknown'}", uses=1)


_GEMINI_KNOWN: Final = frozenset({
    "google_maps", "file_search", "retrieval", "enterprise_web_search", "parallel_ai_search", "exa_ai_search",
    "mcp_servers",
})  # fmt: skip


def _plugins(value: Any) -> Iterator[Asked]:
    for plugin in value if isinstance(value, list) else [value]:
        known = plugin if isinstance(plugin, dict) else {}
        name, pdf = _text(known.get("id")), known.get("pdf")
        if name == "web" or name in _PLUGINS_FREE:
            continue
        if name == "file-parser" and isinstance(pdf, dict) and _text(pdf.get("engine")) in _PDF_FREE:
            continue
        yield Asked("" if name in ("auto-router", "fusion") else "plugin", "plugins")


def _live_search(value: Any) -> Iterator[Asked]:
    """xAI's Live Search, billed by the sources it has used."""
    asked = value if isinstance(value, dict) else {}
    if asked.get("mode") != "off":
        yield Asked("search_source", "search_parameters", uses=_count(asked.get("max_search_results")) or SOURCES)


SOURCES: Final = 20  # that a Live Search uses at most, unless the request says more


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    """How often, or how much; 0 for anything that says neither."""
    return value if type(value) is int and value > 0 else 0
