"""Reading whole request bodies in plain Python: the oracle of relay/fastpath/scanner.pxi.

It knows the places that hold text by dialect, as a person would list them; files are left to
tests/fastpath/test_media.py.
"""

import re
from typing import Any

from relay._fastpath import TokenTable, count_text
from tests.support.json_oracle import Number, Pairs, compact, objects, strict, strings, utf8
from tests.support.tap_oracle import (
    CHAT,
    COMPLETIONS,
    COUNT_TOKENS,
    EMBEDDINGS,
    GEMINI_COUNT,
    GEMINI_EMBED,
    GENERATE,
    IMAGES,
    MESSAGES,
    MODERATIONS,
    OTHER,
    RERANK,
    RESPONSES,
    SPEECH,
    TRANSCRIPTION,
    at,
)

NEED_MODEL = {CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, MESSAGES, COUNT_TOKENS, RERANK, IMAGES, SPEECH}
LIMITS = {
    CHAT: ("max_tokens", "max_completion_tokens"),
    COMPLETIONS: ("max_tokens", "max_completion_tokens"),
    RESPONSES: ("max_output_tokens",),
    MESSAGES: ("max_tokens",),
    COUNT_TOKENS: ("max_tokens",),
}
CHOICES = {CHAT: ("n",), COMPLETIONS: ("n", "best_of"), IMAGES: ("n",)}
STREAMS = {CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, MESSAGES, COUNT_TOKENS, IMAGES, TRANSCRIPTION, OTHER}
OPTIONS = {CHAT, COMPLETIONS, RESPONSES}
NAME_FILES = {CHAT, RESPONSES, MESSAGES, COUNT_TOKENS, IMAGES}
FILES_MAX = 32
OUTPUTS = {"code_execution_output", "bash_code_execution_output"}  # they tell what a tool has made
OUTPUT_LIMIT_MAX = 2**31 - 1
CHOICES_MAX = 128


class Request:
    """What the scanner must find in a body that is well-formed JSON without repeated keys."""

    def __init__(self, format: int, doc: Any, table: TokenTable) -> None:
        self.format = format
        self.table = table
        self.faults: set[tuple[str, bytes | None]] = set()
        self.units = 0  # of counted text, 1/4096 token
        self.overhead = 0
        self.web_search = False
        self.model: bytes | None = None
        self.stream = -1
        self.output_limit = -1
        self.choices = 1
        self.include_usage = -1
        self.background = self.priority = self.geo = self.stored_context = False
        self.files: list[str] = []  # that it names, in order
        if not isinstance(doc, Pairs):
            self.faults.add(("invalid_type", None))
            return
        self.fields(doc)
        self.prompt(doc)
        if format in NAME_FILES:
            self.named(doc)

    def fault(self, code: str, name: str) -> None:
        self.faults.add((code, name.encode()))

    def integer(self, doc: Any, name: str, low: int, high: int) -> int | None:
        value = at(doc, name)
        if value is None:
            return None
        if not isinstance(value, Number) or not re.fullmatch("-?[0-9]+", value):
            self.fault("invalid_type", name)
            return None
        n = -(10**30) if len(value) > 4000 and value[0] == "-" else 10**30 if len(value) > 4000 else int(value)
        if not low <= n <= high:
            self.fault("invalid_value", name)
            return None
        return n

    def boolean(self, doc: Any, name: str) -> int:
        value = at(doc, name)
        if value is None:
            return -1
        if not isinstance(value, bool):
            self.fault("invalid_type", name)
            return -1
        return int(value)

    def fields(self, doc: Pairs) -> None:
        model = at(doc, "model")
        if model is not None and (not isinstance(model, str) or isinstance(model, Number)):
            self.fault("invalid_type", "model")
        elif model is not None:
            self.model = utf8(model)
            if not 0 < len(self.model) <= 256:
                self.fault("invalid_value", "model")
                self.model = None
        elif self.format in NEED_MODEL:
            self.fault("missing_model", "model")
        if self.format in STREAMS:
            self.stream = self.boolean(doc, "stream")
        for name in LIMITS.get(self.format, ()):
            limit = self.integer(doc, name, 0, OUTPUT_LIMIT_MAX)
            self.output_limit = max(self.output_limit, -1 if limit is None else limit)
        for name in CHOICES.get(self.format, ()):
            self.choices = max(self.choices, self.integer(doc, name, 1, CHOICES_MAX) or 1)
        if self.format in OPTIONS:
            options = at(doc, "stream_options")
            if options is not None and not isinstance(options, Pairs):
                self.fault("invalid_type", "stream_options")
            else:
                self.include_usage = self.boolean(options, "include_usage")
        if self.format in (GENERATE, GEMINI_COUNT):
            self.generation_config(doc)
        if self.format == RESPONSES:
            self.background = self.boolean(doc, "background") == 1
            self.stored_context = any(
                at(doc, *path) is not None
                and (len(path) > 1 or not isinstance(at(doc, *path), list) or bool(at(doc, *path)))
                for path in (("previous_response_id",), ("conversation",), ("prompt", "id"))
            )
        tiers = {GENERATE: "serviceTier", GEMINI_COUNT: "serviceTier", MESSAGES: "speed", COUNT_TOKENS: "speed"}
        tier = at(doc, tiers.get(self.format, "service_tier"))
        if self.format in (CHAT, RESPONSES, *tiers) and not isinstance(tier, Number | list):
            self.priority = tier in ("priority", "fast", "PRIORITY")
        if self.format in (MESSAGES, COUNT_TOKENS):
            geo = at(doc, "inference_geo")
            self.geo = isinstance(geo, str) and not isinstance(geo, Number) and geo != "global"
        if self.format in (CHAT, MESSAGES, COUNT_TOKENS):
            messages = at(doc, "messages")
            if messages is not None and (not isinstance(messages, list) or isinstance(messages, Pairs)):
                self.fault("invalid_type", "messages")

    def generation_config(self, doc: Pairs) -> None:
        config = at(doc, "generationConfig")
        if config is not None and not isinstance(config, Pairs):
            self.fault("invalid_type", "generationConfig")
            return
        limit = self.integer(config, "maxOutputTokens", 0, OUTPUT_LIMIT_MAX)
        self.output_limit = -1 if limit is None else limit
        self.choices = self.integer(config, "candidateCount", 1, CHOICES_MAX) or 1
        for name in ("responseSchema", "responseJsonSchema"):
            self.raw(at(config, name))

    def text(self, value: Any) -> None:
        for item in strings(value):
            self.units += count_text(self.table, utf8(item))

    def raw(self, value: Any) -> None:
        if isinstance(value, (Pairs, list)) or (isinstance(value, str) and not isinstance(value, Number)):
            self.units += count_text(self.table, utf8(compact(value)))

    def content(self, value: Any) -> None:
        """Content in the shapes of OpenAI and Anthropic."""
        self.text(value)
        for part in objects(value):
            for name, item in part:
                if name in (
                    "text",
                    "refusal",
                    "thinking",
                    "reasoning",
                    "reasoning_content",
                    "title",
                    "context",
                    "name",
                ):
                    self.text(item)
                elif name in ("content", "output", "summary"):
                    self.content(item)
                elif name in ("arguments", "input"):
                    self.raw(item)
                elif name == "tool_calls":
                    for call in objects(item):
                        self.text(at(call, "function", "name"))
                        self.raw(at(call, "function", "arguments"))

    def messages(self, value: Any) -> None:
        self.overhead += 4 * len(list(objects(value)))
        self.content(value)

    def tools(self, value: Any) -> None:
        for tool in value if isinstance(value, list) else ():
            self.raw(tool)
            self.web_search |= str(at(tool, "type")).startswith("web_search")
            self.web_search |= at(tool, "googleSearch") is not None or at(tool, "google_search") is not None

    def parts(self, value: Any) -> None:
        """Gemini's parts."""
        for part in objects(value):
            self.text(at(part, "text"))
            for call, body in (("functionCall", "args"), ("functionResponse", "response")):
                self.text(at(part, call, "name"))
                self.raw(at(part, call, body))

    def ids(self, value: Any) -> None:
        """Text, or tokens as integers."""
        self.text(value)
        for item in value if isinstance(value, list) and not isinstance(value, Pairs) else ():
            if isinstance(item, Number) and re.fullmatch("-?[0-9]+", item):
                self.overhead += 1
            elif isinstance(item, list) and not isinstance(item, Pairs):
                self.ids([x for x in item if not isinstance(x, str) or isinstance(x, Number)])

    def prompt(self, doc: Pairs) -> None:
        tools = at(doc, "tools")
        if self.format == CHAT:
            self.messages(at(doc, "messages"))
            self.overhead += 3 + (9 if tools is not None else 0)
        elif self.format == RESPONSES:
            self.messages(at(doc, "input"))
            self.content(at(doc, "instructions"))
            self.overhead += 3 + (9 if tools is not None else 0)
        elif self.format in (MESSAGES, COUNT_TOKENS):
            self.messages(at(doc, "messages"))
            self.content(at(doc, "system"))
            self.overhead += 3 + (346 if tools is not None else 0)
        elif self.format in (GENERATE, GEMINI_COUNT):
            for name in ("contents", "systemInstruction"):
                for turn in objects(at(doc, name)):
                    self.overhead += 2
                    self.parts(at(turn, "parts"))
        elif self.format == GEMINI_EMBED:
            for owner in (doc, *objects(at(doc, "requests"))):
                for turn in objects(at(owner, "content")):
                    self.overhead += 2
                    self.parts(at(turn, "parts"))
        elif self.format in (COMPLETIONS, EMBEDDINGS):
            self.ids(at(doc, "prompt" if self.format == COMPLETIONS else "input"))
            self.text(at(doc, "suffix") if self.format == COMPLETIONS else None)
        elif self.format == RERANK:
            self.content(at(doc, "query"))
            self.content(at(doc, "documents"))
        elif self.format == MODERATIONS:
            self.content(at(doc, "input"))
        elif self.format == IMAGES:
            self.text(at(doc, "prompt"))
        elif self.format == SPEECH:
            self.text(at(doc, "input"))
            self.text(at(doc, "instructions"))
        if self.format in (CHAT, RESPONSES, MESSAGES, COUNT_TOKENS, GENERATE, GEMINI_COUNT):
            self.tools(tools)

    def named(self, doc: Pairs) -> None:
        """The places where a provider looks for files of its own, by format."""
        places = {
            CHAT: ("messages", "prediction", "tools"),
            RESPONSES: ("input", "instructions", "prompt", "tools"),
            MESSAGES: ("messages", "system", "tools", "container"),
            COUNT_TOKENS: ("messages", "system", "tools", "container"),
            IMAGES: ("images", "mask", "markup"),
        }[self.format]
        for name, value in doc:
            if name not in places:
                continue
            if name == "tools":
                self.files_of_tools(value)
            elif name == "container":
                self.files += strings(value)
                self.files_at(value, "id")
            elif name in ("mask", "markup"):
                self.files_at(value)
            elif name == "prompt":
                for prompt in objects(value):
                    self.files_of_parts(at(prompt, "variables"))
            else:
                self.files_of_parts(value)
        if len(self.files) > FILES_MAX:
            self.faults |= {("too_many_files", name) for name in (b"file_id", b"file_ids")}

    def files_at(self, value: Any, name: str = "file_id") -> bool:
        before = len(self.files)
        for item in objects(value):
            self.files += strings(at(item, name))
        return len(self.files) > before

    def files_of_tools(self, value: Any) -> bool:
        before = len(self.files)
        for tool in objects(value):
            for name, item in tool:
                if name in ("container", "environment"):
                    self.files_of_sandbox(item)
                elif name == "input_image_mask":
                    self.files_at(item)
        return len(self.files) > before

    def files_of_sandbox(self, value: Any) -> None:
        """Its files, and its own name."""
        self.files += strings(value)
        for item in objects(value):
            for name, inner in item:
                self.files += strings(inner) if name in ("file_ids", "container_id") else ()

    def files_of_parts(self, value: Any) -> None:
        """A part that is only told again, as a tool's output, names its file for nothing. That is believed where
        nothing stands behind the name that could name another."""
        for part in objects(value):
            output = own = False
            for name, item in part:
                if name == "type":
                    output |= any(text in OUTPUTS for text in strings(item))
                elif name == "file_id":
                    named = list(strings(item))
                    self.files += named
                    own |= bool(named)
                elif name in ("file", "image_file"):
                    own &= not self.files_at(item)
                elif name == "tools":
                    own &= not self.files_of_tools(item)
                elif name == "source":
                    for source in objects(item):
                        for key, inner in source:
                            if key == "file_id" and list(strings(inner)):
                                self.files += strings(inner)
                                own = False
                            elif key == "content":
                                self.files_of_parts(inner)
                                output, own = output and not list(objects(inner)), own and not list(objects(inner))
                elif name in ("content", "output", "summary"):
                    self.files_of_parts(item)
                    output, own = output and not list(objects(item)), own and not list(objects(item))
            if output and own:
                self.files.pop()

    def prompt_tokens(self) -> int:
        return -(-self.units // 4096) + self.overhead


def scan(format: int, body: bytes, table: TokenTable) -> Request:
    """ValueError where the body is not well-formed."""
    return Request(format, strict(body), table)
