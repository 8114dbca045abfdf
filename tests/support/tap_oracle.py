"""Reading whole answers in plain Python: the oracle of relay/fastpath/tap.pxi."""

import re
from collections.abc import Iterator
from typing import Any

from relay._fastpath import TOKEN_UNIT, TokenTable, count_text
from tests.support.json_oracle import Number, Pairs, compact, lenient, objects, strings, utf8

USAGE_MAX = 1 << 40
CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS, MESSAGES, COUNT_TOKENS, GENERATE, GEMINI_COUNT, GEMINI_EMBED = range(9)
MODERATIONS, RERANK, IMAGES, SPEECH, TRANSCRIPTION, OTHER = range(9, 15)
JSON, SSE, JSON_ARRAY, JSON_LINES = range(4)


def sse_events(body: bytes) -> Iterator[tuple[bytes, bool]]:
    """(data, whether the blank line behind it was there) of each event with data."""
    lines = re.split(rb"\r\n|\n|\r", body.removeprefix(b"\xef\xbb\xbf"))
    ended = lines[:-1]
    data: list[bytes] = []
    for line in ended:
        if not line:
            if data:
                yield b"\n".join(data), True
            data = []
        elif line == b"data":
            data.append(b"")
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
    last = lines[-1]
    if last.startswith(b"data:"):
        data.append(last[5:].removeprefix(b" "))
    if data:
        yield b"\n".join(data), False


def number(value: Any, most: int = USAGE_MAX) -> int | None:
    """A token count, or None where it is none."""
    if not isinstance(value, Number) or not re.fullmatch(r"-?[0-9]+(\.0+)?", value):
        return None
    whole = int(value.partition(".")[0])
    return min(whole, most) if whole >= 0 else None


def at(value: Any, *path: str) -> Any:
    """The value at a path of keys; None where it is absent. The last of repeated keys counts."""
    for name in path:
        if not isinstance(value, Pairs):
            return None
        value = dict(value).get(name)
    return value


def fnv(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in utf8(text):
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def each(value: Any, *path: str) -> Iterator[Any]:
    """All values at a path of keys, where keys are repeated."""
    if not path:
        yield value
    elif isinstance(value, Pairs):
        for name, inner in value:
            if name == path[0]:
                yield from each(inner, *path[1:])


PICTURE = ("in", "in_image", "cached", "out", "out_text")
USES = {
    **dict.fromkeys(
        ("web_search", "web_search.num_requests", "web_search.count", "search", "search.count", "search.num_requests",
         "web_search_calls", "web_search_requests"), "searches",
    ),
    "x_search_calls": "x",
    **dict.fromkeys(("code_interpreter_calls", "code_execution_calls"), "code"),
    **dict.fromkeys(("file_search_calls", "collections_search_calls", "document_search_calls"), "file"),
    "attachment_search_calls": "attachments",
    "image_gen.input_tokens": "in",
    "image_gen.input_tokens_details.image_tokens": "in_image",
    "image_gen.input_tokens_details.cached_tokens": "cached",
    "image_gen.cached_tokens": "cached",
    "image_gen.output_tokens": "out",
    "image_gen.output_tokens_details.text_tokens": "out_text",
}  # fmt: skip
ADVISED = (
    "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
    "cache_creation.ephemeral_5m_input_tokens", "cache_creation.ephemeral_1h_input_tokens",
)  # fmt: skip
TEXT = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, GENERATE)
OUTPUT_NAMES = frozenset({"completion", "reasoning", "thoughts", "image_tokens", "audio_out"})
INPUT_BAD, OUTPUT_BAD = 4, 8


class Oracle:
    def __init__(self, format: int, table: TokenTable) -> None:
        self.format = format
        self.table = table
        self.reported: dict[str, int] = {}
        self.added: dict[str, int] = {}
        self.texts: dict[int, bytes] = {}
        self.seen = self.output = self.terminal = self.finish = self.error = False
        self.told = ""  # the name of the present event's thoughts
        self.rose = False  # the present event reports output, and no less than those before it
        self.bad = 0
        self.events = 0
        self.sequence = -1
        self.images = 0
        self.items_done = [0, 0, 0]
        self.items_listed = [0, 0, 0]
        self.uses: dict[str, int] = {}  # of tools, as reported: the last number of each
        self.containers: dict[str, None] = {}
        self.used = self.code_run = False
        self.advised = [0] * 6
        self.model = b""
        self.queries: set[str] = set()
        self.old_gemini = False
        self.at_report = (0, 0)  # what the last cumulative report said, and the text counted up to its end
        self.service = 0
        self.object_id = b""
        self.sandbox = ""  # of Anthropic: the last that is named

    def served(self, value: Any) -> None:
        """The service tier that the provider names."""
        if isinstance(value, str):
            names = {"priority": 3, "fast": 3, "PRIORITY": 3, "ON_DEMAND_PRIORITY": 3, "flex": 2, "FLEX": 2}
            found = {**names, "ON_DEMAND_FLEX": 2, "batch": 1}.get(value, 0)
            if self.format == MESSAGES:  # whose tier `priority` is capacity that was bought, and no price
                self.service = found if found and value != "priority" else self.service
            else:
                self.service = found

    # what each format reads of one event or document

    def text(self, value: Any, choice: int = 0) -> None:
        for item in strings(value):
            self.texts[choice] = self.texts.get(choice, b"") + utf8(item)

    def thought(self, name: str, value: Any, choice: int) -> None:
        """One event may tell a thought under several names: the first counts."""
        for item in strings(value):
            self.told = self.told or name
            if name == self.told:
                self.text(item, choice)

    def raw(self, value: Any) -> None:
        self.texts[0] = self.texts.get(0, b"") + utf8(compact(value))

    def take_uses(self, value: Any) -> None:
        """How often tools were used that the provider runs. Cumulative: it never falls."""
        for path, name in USES.items():
            for found in each(value, *path.split(".")):
                n = number(found)
                if n is not None:
                    self.uses[name] = max(self.uses.get(name, 0), n)
                    self.used |= n > 0

    def named(self, value: Any) -> None:
        if not self.model and isinstance(value, str) and not isinstance(value, Number) and len(utf8(value)) <= 64:
            self.model = utf8(value)

    def take(self, usage: Any, fields: dict[str, str], *, output: str | None = None) -> None:
        """Overlay the numbers of a usage object; `fields`: dotted paths to names. What is cumulative never falls."""
        for path, name in fields.items():
            for value in each(usage, *path.split(".")):
                n = number(value)
                if n is None:
                    if value is not None and not isinstance(value, list | Pairs) and name not in ("total", "searches"):
                        self.bad |= OUTPUT_BAD if name in OUTPUT_NAMES else INPUT_BAD
                    continue
                self.seen |= name != "searches" or self.format == RERANK
                self.output |= name == output
                if n >= self.reported.get(name, -1):
                    self.reported[name] = n
                    self.rose |= name == output or (name == "total" and "completion" not in self.reported)

    def openai_usage(self, usage: Any) -> None:
        self.take(
            usage,
            {
                "prompt_tokens": "prompt",
                "input_tokens": "prompt",
                "completion_tokens": "completion",
                "output_tokens": "completion",
                "total_tokens": "total",
                "prompt_tokens_details.cached_tokens": "cached",
                "input_tokens_details.cached_tokens": "cached",
                "prompt_tokens_details.cache_write_tokens": "written",
                "input_tokens_details.cache_write_tokens": "written",
                "prompt_tokens_details.cache_creation_input_tokens": "written",
                "prompt_tokens_details.audio_tokens": "audio_in",
                "input_tokens_details.audio_tokens": "audio_in",
                "input_token_details.audio_tokens": "audio_in",
                "prompt_tokens_details.image_tokens": "image_in",
                "input_tokens_details.image_tokens": "image_in",
                "input_token_details.cached_tokens": "cached",
                "completion_tokens_details.audio_tokens": "audio_out",
                "output_tokens_details.audio_tokens": "audio_out",
                "output_token_details.audio_tokens": "audio_out",
                "completion_tokens_details.image_tokens": "image_tokens",
                "output_tokens_details.image_tokens": "image_tokens",
                "output_token_details.image_tokens": "image_tokens",
                "completion_tokens_details.reasoning_tokens": "reasoning",
                "output_tokens_details.reasoning_tokens": "reasoning",
                "prompt_cache_hit_tokens": "hit",
                "prompt_cache_miss_tokens": "miss",
                "cached_tokens": "cached_top",
                "num_search_queries": "searches",
                "cache_read_input_tokens": "read",
                "cache_creation_input_tokens": "created",
                "claude_cache_creation_5_m_tokens": "created_5m",
                "claude_cache_creation_1_h_tokens": "created_1h",
                **{
                    f"{side}_details.{path}": name
                    for side in ("prompt_tokens", "input_tokens", "input_token")
                    for path, name in {
                        "cache_creation_input_tokens": "written",
                        "cache_creation_tokens": "written",
                        "cached_creation_tokens": "written",
                        "cache_write_tokens": "written",
                        "cache_creation_token_details.ephemeral_5m_input_tokens": "created_5m",
                        "cache_creation_token_details.ephemeral_1h_input_tokens": "created_1h",
                        "cache_write_tokens_details.ttl_30m_tokens": "created_5m",
                        "cache_write_tokens_details.ttl_12h_tokens": "created_1h",
                        "cached_tokens_details.audio_tokens": "audio_cached",
                        "cached_tokens_details.image_tokens": "image_cached",
                    }.items()
                },
            },
            output="completion",
        )
        for found in each(usage, "num_sources_used"):
            n = number(found)
            if n is not None:
                self.uses["sources"] = max(n, self.uses.get("sources", 0))
                self.used |= n > 0
        for name in ("server_side_tool_usage_details", "server_tool_use", "tool_usage", "plugins", "x_tools"):
            for value in each(usage, name):
                self.take_uses(value)

    def seconds(self, value: Any) -> None:
        if self.format == TRANSCRIPTION and isinstance(value, Number) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
            whole, _, part = value.partition(".")
            seconds = min(min(int(whole), USAGE_MAX) + bool(part.strip("0")), USAGE_MAX)
            self.reported["seconds"] = max(seconds, self.reported.get("seconds", 0))
            self.seen = True

    def items(self, value: Any) -> list[int]:
        """[web searches, images, searches in files] among output items."""
        counts = [0, 0, 0]
        for item in objects(value):
            kind = at(item, "type")
            for name in (at(item, "container_id"), at(item, "environment", "container_id")):
                if isinstance(name, str) and not isinstance(name, Number):
                    self.used = True
                    self.containers |= {name: None} if name else {}
            self.used |= kind in ("image_generation_call", "file_search_call", "code_interpreter_call")
            self.code_run |= kind == "code_interpreter_call"
            counts[2] += kind == "file_search_call"
            if kind == "web_search_call" and at(item, "action", "type") in (None, "search"):
                counts[0] += 1
            elif kind == "image_generation_call":
                counts[1] += 1
        return counts

    def openai(self, doc: Any) -> None:
        for choice in objects(at(doc, "choices")):
            index = number(at(choice, "index")) or 0
            for part in (at(choice, "delta"), at(choice, "message")):
                for name, value in part or ():
                    if name == "content":
                        for item in objects(value):
                            self.text(at(item, "text"), index % 8)
                        self.text(value, index % 8)
                    elif name == "refusal":
                        self.text(value, index % 8)
                    elif name in ("reasoning_content", "reasoning"):
                        self.thought(name, value, index % 8)
                    elif name == "reasoning_details":
                        for detail in objects(value):
                            for key, told in detail:
                                if key in ("text", "summary"):
                                    self.thought(name, told, index % 8)
                    elif name == "tool_calls":
                        for call in objects(value):
                            self.text(at(call, "function", "name"), index % 8)
                            self.text(at(call, "function", "arguments"), index % 8)
            self.text(at(choice, "text"), index % 8)
            self.finish |= isinstance(at(choice, "finish_reason"), str)
        for name, value in doc if isinstance(doc, Pairs) else ():
            if name == "choices":
                for choice in objects(value):
                    self.openai_usage(at(choice, "usage"))
            elif name in ("x_groq", "response"):
                self.openai_usage(at(value, "usage"))
                self.served(at(value, "service_tier") if name == "response" else None)
                if name == "response":
                    self.take_uses(at(value, "tool_usage"))
                    self.named(at(value, "model") if self.format == RESPONSES else None)
            elif name == "tool_usage":
                self.take_uses(value)
            elif name == "model":
                self.named(value)
            elif name == "service_tier":
                self.served(value)
            elif name == "usage":
                self.openai_usage(value)
                self.seconds(at(value, "seconds"))
            elif name == "duration":
                self.seconds(value)
            elif name == "meta":
                self.take(at(value, "billed_units"), {"search_units": "searches"})
        for owner in (doc, at(doc, "response")):
            name = at(owner, "id")
            if self.format == RESPONSES and not self.object_id and type(name) is str and len(utf8(name)) <= 128:
                self.object_id = utf8(name)
        kind = at(doc, "type")
        if kind not in ("response.audio.delta", "response.output_audio.delta"):
            self.text(at(doc, "delta"))
        for item in objects(at(doc, "output")):
            for name, value in item:
                if name in ("content", "summary"):
                    for content in objects(value):
                        for key, text in content:
                            self.text(text if key in ("text", "refusal") else None)
                elif name in ("name", "arguments", "input", "code"):
                    self.text(value)
        if kind == "response.output_item.done":
            done = self.items(at(doc, "item"))
            self.items_done = [a + b for a, b in zip(self.items_done, done, strict=True)]
        listed = at(doc, "output") if at(doc, "output") is not None else at(doc, "response", "output")
        if isinstance(listed, list) and kind != "response.output_item.done":
            self.items_listed = self.items(listed)
        sequence = number(at(doc, "sequence_number"), 2**62)
        self.sequence = self.sequence if sequence is None else sequence
        self.terminal |= kind in ("response.completed", "response.incomplete", "response.failed")
        self.error |= kind in ("response.failed", "error") or bool(at(doc, "error") or at(doc, "response", "error"))
        if self.format == IMAGES:
            self.images += len(list(objects(at(doc, "data"))))
        if kind in ("image_generation.completed", "image_edit.completed"):
            self.images += 1
            self.terminal = True
        if kind in ("speech.audio.done", "transcript.text.done"):
            self.terminal = True

    def anthropic_usage(self, usage: Any, *, start: bool) -> None:
        self.take(
            usage,
            {
                "input_tokens": "prompt",
                "output_tokens": "completion",
                "cache_read_input_tokens": "read",
                "cache_creation_input_tokens": "created",
                "cache_creation.ephemeral_5m_input_tokens": "created_5m",
                "cache_creation.ephemeral_1h_input_tokens": "created_1h",
            },
            output=None if start else "completion",
        )
        for name, value in usage if isinstance(usage, Pairs) else ():
            self.served(value if name in ("service_tier", "speed") else None)
            if name == "server_tool_use":
                self.take_uses(value)
        if isinstance(at(usage, "iterations"), list):
            self.added = {}
            self.advised = [0] * 6
        for entry in objects(at(usage, "iterations")):
            if at(entry, "type") == "advisor_message":
                self.used = True
                for place, path in enumerate(ADVISED):
                    n = number(at(entry, *path.split("."))) or 0
                    self.advised[place] = min(self.advised[place] + n, USAGE_MAX)
            elif at(entry, "type") == "compaction":
                for path, name in {
                    "input_tokens": "prompt",
                    "output_tokens": "completion",
                    "cache_read_input_tokens": "read",
                    "cache_creation_input_tokens": "created",
                    "cache_creation.ephemeral_5m_input_tokens": "created_5m",
                    "cache_creation.ephemeral_1h_input_tokens": "created_1h",
                }.items():
                    n = number(at(entry, *path.split("."))) or 0
                    self.added[name] = min(self.added.get(name, 0) + n, USAGE_MAX)

    def anthropic(self, doc: Any) -> None:
        kind = at(doc, "type")
        self.named(at(doc, "message", "model"))
        self.named(at(doc, "model"))
        if any(isinstance(value, Pairs) for value in (at(doc, "container"), at(doc, "delta", "container"))):
            self.uses["code"] = max(self.uses.get("code", 0), 1)
            self.used = True
        for name, value in doc:
            for owner in [Pairs([(name, value)])] if name == "container" else objects(value):
                for sandbox in objects(at(owner, "container")) if name in ("container", "delta", "message") else ():
                    for text in strings(at(sandbox, "id")):
                        self.sandbox = text or self.sandbox
        self.anthropic_usage(at(doc, "message", "usage"), start=True)
        self.anthropic_usage(at(doc, "usage"), start=False)
        for name in ("text", "thinking", "name"):
            self.text(at(doc, "content_block", name))
        for name in ("text", "thinking", "partial_json"):
            self.text(at(doc, "delta", name))
        for block in objects(at(doc, "content")):
            for name, value in block:
                if name in ("text", "thinking", "name"):
                    self.text(value)
                elif name == "input":
                    self.raw(value)
        self.finish |= isinstance(at(doc, "stop_reason") or at(doc, "delta", "stop_reason"), str)
        self.terminal |= kind == "message_stop"
        self.error |= kind == "error" or bool(at(doc, "error"))

    def gemini(self, doc: Any) -> None:
        self.take(
            at(doc, "usageMetadata"),
            {
                "promptTokenCount": "prompt",
                "candidatesTokenCount": "completion",
                "cachedContentTokenCount": "cached",
                "toolUsePromptTokenCount": "tool",
                "totalTokenCount": "total",
            },
            output="completion",
        )
        self.take(at(doc, "usageMetadata"), {"thoughtsTokenCount": "thoughts"}, output="thoughts")
        for name, value in at(doc, "usageMetadata") or ():
            if name in ("serviceTier", "trafficType"):
                self.served(value)
        prompt_details = at(doc, "usageMetadata", "promptTokensDetails")
        if prompt_details is not None:
            self.reported.pop("audio_in", None)
            self.reported.pop("image_in", None)
        for entry in objects(prompt_details):
            n = number(at(entry, "tokenCount"))
            if at(entry, "modality") == "AUDIO" and n is not None:
                self.reported["audio_in"] = n
            elif at(entry, "modality") == "IMAGE" and n is not None:
                self.reported["image_in"] = n
        cached = at(doc, "usageMetadata", "cacheTokensDetails")
        if isinstance(cached, list):
            self.reported.pop("audio_cached", None)
            self.reported.pop("image_cached", None)
        for entry in objects(cached):
            n = number(at(entry, "tokenCount"))
            if at(entry, "modality") in ("AUDIO", "IMAGE") and n is not None:
                self.reported[f"{at(entry, 'modality').lower()}_cached"] = n
        details = at(doc, "usageMetadata", "candidatesTokensDetails")
        if details is not None:
            self.reported.pop("image_tokens", None)
            self.reported.pop("audio_out", None)
        for entry in objects(details):
            n = number(at(entry, "tokenCount"))
            if at(entry, "modality") == "IMAGE" and n is not None:
                self.reported["image_tokens"] = n
            elif at(entry, "modality") == "AUDIO" and n is not None:
                self.reported["audio_out"] = n
        for candidate in objects(at(doc, "candidates")):
            for part in objects(at(candidate, "content", "parts")):
                self.text(at(part, "text"))
                self.text(at(part, "functionCall", "name"))
                if at(part, "functionCall", "args") is not None:
                    self.raw(at(part, "functionCall", "args"))
                if str(at(part, "inlineData", "mimeType")).startswith("image/"):
                    self.images += 1
            for name in ("webSearchQueries", "imageSearchQueries"):
                self.queries |= set(strings(at(candidate, "groundingMetadata", name))) - {""}
            for chunk in objects(at(candidate, "groundingMetadata", "groundingChunks")):
                if isinstance(at(chunk, "maps"), Pairs):
                    self.uses["maps"], self.used = 1, True
            if at(candidate, "finishReason") is not None:
                self.finish = self.terminal = True
        if at(doc, "promptFeedback", "blockReason") is not None:
            self.finish = self.terminal = True
        self.named(at(doc, "modelVersion"))
        self.old_gemini |= bool(re.match("gemini-[12]", str(at(doc, "modelVersion"))))
        self.error |= bool(at(doc, "error"))

    def document(self, doc: Any) -> None:
        self.events += 1
        self.rose = False
        self.told = ""
        self.read_document(doc)
        reported = self.normalised()["output_tokens"]
        if self.rose and self.format == GENERATE and reported > 0:
            self.at_report = (reported, self.counted())

    def extras(self) -> dict[str, Any]:
        get = self.uses.get
        return {
            "file_search": max(self.items_done[2], self.items_listed[2], get("file", 0)),
            "x_search": get("x", 0),
            "attachment_search": get("attachments", 0),
            "code": get("code", 0),
            "timed": self.format == MESSAGES,
            "maps": get("maps", 0),
            "search_source": 0 if get("searches", 0) or get("x", 0) else get("sources", 0),
            "containers": max(min(len(self.containers), 8), self.code_run),
            "pictures": max(self.items_done[1], self.items_listed[1]),
            "picture": tuple(get(name, -1) for name in PICTURE),
            "advisor": tuple(self.advised),
        }

    def sides(self) -> int:
        """Bits: input is reported, output is; a value of input is no number, one of output."""
        prompt = bool({"prompt", "hit", "miss", "read", "created"} & self.reported.keys())
        total = "total" in self.reported
        of_prompt = prompt or (total and (self.output or self.format not in TEXT))
        return of_prompt | (self.output or (prompt and total)) << 1 | self.bad

    def searches(self) -> int:
        if self.format == GENERATE:
            return min(len(self.queries), 1) if self.old_gemini else len(self.queries)
        return max(self.items_done[0], self.items_listed[0])

    def hidden(self) -> int:
        names = ("reasoning", "thoughts", "audio_out", "image_tokens")
        return min(sum(self.reported.get(name, 0) for name in names), USAGE_MAX)

    def counted(self) -> int:
        return sum(count_text(self.table, data) for data in self.texts.values())

    def read_document(self, doc: Any) -> None:
        if self.format in (MESSAGES, COUNT_TOKENS):
            self.anthropic(doc)
        elif self.format in (GENERATE, GEMINI_COUNT, GEMINI_EMBED):
            self.gemini(doc)
        else:
            self.openai(doc)

    # the priced dimensions

    def normalised(self) -> dict[str, int]:
        get = self.reported.get
        out = dict.fromkeys(
            (
                "input_tokens",
                "output_tokens",
                "cache_read_tokens",
                "cache_write_tokens",
                "cache_write_1h_tokens",
                "images",
                "video_seconds",
                "web_searches",
            ),
            0,
        )
        if self.format == MESSAGES:
            created = get("created", get("created_5m", 0) + get("created_1h", 0))
            more = self.added.get
            added = max(more("created", 0), more("created_5m", 0) + more("created_1h", 0))
            hour = min(created, get("created_1h", 0)) + min(added, more("created_1h", 0))
            out["input_tokens"] = get("prompt", 0) + more("prompt", 0)
            out["output_tokens"] = get("completion", 0) + more("completion", 0)
            out["cache_read_tokens"] = get("read", 0) + more("read", 0)
            out["cache_write_1h_tokens"] = hour
            out["cache_write_tokens"] = created + added - hour
            out["web_searches"] = self.uses.get("searches", 0)
        elif self.format in (GENERATE, GEMINI_COUNT, GEMINI_EMBED):
            prompt = get("prompt")
            answer = get("completion")
            if answer is None and prompt is not None:  # what the sum leaves for it
                answer = max(get("total", 0) - prompt - get("thoughts", 0) - get("tool", 0), 0)
            output = (answer or 0) + get("thoughts", 0)
            if prompt is None:
                prompt = max(get("total", 0) - output - get("tool", 0), 0)
            cached = min(prompt, get("cached", 0))
            out["cache_read_tokens"] = cached
            out["input_tokens"] = prompt - cached + get("tool", 0)
            out["images"] = self.images or min(get("image_tokens", 0), 1)
            out["output_tokens"] = output
            out["web_searches"] = min(len(self.queries), 1) if self.old_gemini else len(self.queries)
        else:
            prompt, completion, total = get("prompt"), get("completion"), get("total")
            if prompt is None and ("hit" in self.reported or "miss" in self.reported):
                prompt = get("hit", 0) + get("miss", 0)
            if prompt is None:
                prompt = max((total or 0) - (completion or 0), 0)
            if completion is None:
                completion = max((total or 0) - prompt, 0)
            elif get("reasoning", 0) and total == prompt + completion + get("reasoning", 0):
                completion += get("reasoning", 0)
            read = max(get("cached", 0), get("hit", 0), get("cached_top", 0), get("read", 0))
            of_ages = min(get("created_5m", 0) + get("created_1h", 0), USAGE_MAX)
            write = max(get("written", 0), get("created", 0), of_ages)
            beside = (total or 0) - prompt - completion
            prompt += beside if beside in (read, write, read + write) else 0
            cached = min(prompt, read)
            written = min(prompt - cached, write)
            out["input_tokens"] = prompt - cached - written
            out["output_tokens"] = completion
            out["cache_read_tokens"] = cached
            out["cache_write_1h_tokens"] = min(written, get("created_1h", 0))
            out["cache_write_tokens"] = written - out["cache_write_1h_tokens"]
            searches = max(self.items_done[0], self.items_listed[0])
            out["web_searches"] = max(searches, get("searches", 0), self.uses.get("searches", 0))
            out["images"] = max(self.images, self.items_done[1], self.items_listed[1])
            out["video_seconds"] = get("seconds", 0)
        out = {name: min(value, USAGE_MAX) for name, value in out.items()}
        audio, image = (max(get(f"{kind}_in", 0) - get(f"{kind}_cached", 0), 0) for kind in ("audio", "image"))
        out["audio_input_tokens"] = min(out["input_tokens"], audio)
        out["image_input_tokens"] = min(out["input_tokens"] - out["audio_input_tokens"], image)
        out["audio_output_tokens"] = min(out["output_tokens"], get("audio_out", 0))
        of_images = get("image_tokens", out["output_tokens"] if self.format == IMAGES else 0)
        out["image_output_tokens"] = min(out["output_tokens"] - out["audio_output_tokens"], of_images)
        out["audio_cache_read_tokens"] = min(out["cache_read_tokens"], get("audio_cached", 0))
        of_cached = out["cache_read_tokens"] - out["audio_cache_read_tokens"]
        out["image_cache_read_tokens"] = min(of_cached, get("image_cached", 0))
        out["service"] = self.service
        return out


def read(format: int, kind: int, body: bytes, table: TokenTable) -> dict[str, Any]:
    """What `tap` must find in an answer, but for `boundaries` and `pieces`."""
    oracle = Oracle(format, table)
    if kind == SSE:
        for data, ended in sse_events(body):
            if data.startswith(b"[DONE]"):
                oracle.terminal = True
                oracle.events += ended
                continue
            try:
                doc = lenient(data)
            except ValueError:
                oracle.events += ended  # an event, though nothing can be read of it
                continue
            oracle.document(doc)
    else:
        doc = lenient(body.removeprefix(b"\xef\xbb\xbf"))
        if kind == JSON_ARRAY:
            for item in objects(doc):
                oracle.document(item)
        else:
            oracle.document(doc)
        oracle.terminal = True
    text = oracle.counted()
    reported, counted = oracle.at_report
    return {
        **oracle.normalised(),
        "usage_seen": oracle.seen,
        "output_seen": oracle.output,
        "terminal_seen": oracle.terminal,
        "finish_seen": oracle.finish,
        "error_seen": oracle.error,
        "events": oracle.events,
        "sequence_number": oracle.sequence,
        "object_id": oracle.object_id,
        "sandboxes": [
            b"%016x" % fnv(name)
            for name in (*list(oracle.containers)[:8], *([oracle.sandbox] if oracle.sandbox else ()))
        ],
        "sides": oracle.sides(),
        "model": oracle.model,
        "used": oracle.used,
        "extras": oracle.extras(),
        "hidden_tokens": oracle.hidden(),
        "searches_seen": oracle.searches(),
        "text": text,
        "counted_tokens": -(-text // TOKEN_UNIT),
        "delivered_tokens": reported - (counted - text) // TOKEN_UNIT,
    }
