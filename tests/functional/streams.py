"""Answers of every dialect as exact bytes, with the usage that stands in them, and requests that ask for them."""

from dataclasses import dataclass, replace

from tests.support.http1 import request_bytes

EOLS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


@dataclass(frozen=True)
class Sample:
    """An answer's body. `usage`: input, output, cache read, cache write tokens as a record shows them."""

    name: str
    dialect: str
    path: str
    request: str  # with `TEXT` where the name of the script goes
    content_type: str
    events: tuple[bytes, ...]  # the body in the pieces a provider would send
    usage: tuple[int, int, int, int] = (8, 7, 3, 0)

    @property
    def body(self) -> bytes:
        return b"".join(self.events)

    @property
    def model(self) -> str:
        return {"openai": "raw-chat", "anthropic": "raw-claude", "gemini": "raw-gemini"}[self.dialect]

    def request_bytes(self, secret: str, text: str, model: str = "", **headers: str) -> bytes:
        headers |= {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
        if self.dialect == "anthropic":
            headers["anthropic-version"] = "2023-06-01"
        body = self.request.replace("TEXT", text)
        if model:
            body = body.replace(f'"{self.model}"', f'"{model}"')
        return request_bytes("POST", self.path, headers, body.encode())

    def with_eol(self, eol: bytes) -> "Sample":
        """The same events with other line ends; they hold no line end of another kind."""
        events = tuple(event.replace(b"\r\n", b"\n").replace(b"\n", eol) for event in self.events)
        return replace(self, events=events)


SSE = "text/event-stream; charset=utf-8"
_CHAT = '{"model":"raw-chat","stream":STREAM,"messages":[{"role":"user","content":"TEXT"}]}'
_MESSAGES = '{"model":"raw-claude","max_tokens":50,"stream":STREAM,"messages":[{"role":"user","content":"TEXT"}]}'
_GENERATE = '{"contents":[{"role":"user","parts":[{"text":"TEXT"}]}]}'

CHAT = Sample(
    "chat", "openai", "/v1/chat/completions", _CHAT.replace("STREAM", "true"), SSE,
    (
        b': keep-alive\n\ndata: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":"H\xc3\xa9 \\"'
        b'\\u00e9\\ud83d\\ude00"},"finish_reason":null}],"usage":null}\n\n',
        b'data:{"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        b'data: {"id":"c","choices":[],\ndata: "usage":{"prompt_tokens":11,"completion_tokens":7,\n'
        b'data: "prompt_tokens_details":{"cached_tokens":3}}}\n\n',
        b"data: [DONE]\n\n",
    ),
)  # fmt: skip
COMPLETIONS = Sample(
    "completions", "openai", "/v1/completions", '{"model":"raw-chat","stream":true,"prompt":"TEXT"}', SSE,
    (
        b'data: {"choices":[{"text":"Once","index":0,"finish_reason":null}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":7,"total_tokens":15}}\n\n',
        b"data: [DONE]\n\n",
    ),
    (8, 7, 0, 0),
)  # fmt: skip
RESPONSES = Sample(
    "responses", "openai", "/v1/responses", '{"model":"raw-chat","stream":true,"input":"TEXT"}', SSE,
    (
        b'event: response.created\ndata: {"type":"response.created","sequence_number":0,"response":{"usage":null}}\n\n',
        b"event: response.output_text.delta\n"
        b'data: {"type":"response.output_text.delta","sequence_number":1,"delta":"H\xc3\xa9"}\n\n',
        b'event: response.completed\ndata: {"type":"response.completed","sequence_number":2,"response":{"output":[],'
        b'"usage":{"input_tokens":11,"input_tokens_details":{"cached_tokens":3},"output_tokens":7}}}\n\n',
    ),
)  # fmt: skip
MESSAGES = Sample(
    "messages", "anthropic", "/v1/messages", _MESSAGES.replace("STREAM", "true"), SSE,
    (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","content":[],"usage":'
        b'{"input_tokens":8,"cache_read_input_tokens":3,"cache_creation_input_tokens":2,"output_tokens":1}}}\n\n',
        b'event: ping\ndata: {"type": "ping"}\n\n',
        b"event: content_block_delta\n"
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"H\xc3\xa9"}}\n\n',
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        b'"usage":{"output_tokens":7}}\n\n',
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    ),
    (8, 7, 3, 2),
)  # fmt: skip
GEMINI = Sample(
    "gemini", "gemini", "/v1beta/models/raw-gemini:streamGenerateContent?alt=sse", _GENERATE, SSE,
    (
        b'data: {"candidates":[{"content":{"parts":[{"text":"H\xc3\xa9"}]}}],"usageMetadata":{"promptTokenCount":11}}'
        b"\r\n\r\n",
        b'data: {"candidates":[{"content":{"parts":[{"text":"!"}]},"finishReason":"STOP"}],"usageMetadata":'
        b'{"promptTokenCount":11,"candidatesTokenCount":5,"thoughtsTokenCount":2,"cachedContentTokenCount":3}}'
        b"\r\n\r\n",
    ),
)  # fmt: skip
GEMINI_ARRAY = Sample(
    "gemini-array", "gemini", "/v1beta/models/raw-gemini:streamGenerateContent", _GENERATE,
    "application/json; charset=UTF-8",
    (
        b'[{"candidates": [{"content": {"parts": [{"text": "H\xc3\xa9"}]}}],\n "usageMetadata": '
        b'{"promptTokenCount": 11}}',
        b',\r\n{"candidates": [{"content": {"parts": [{"text": "!"}]},"finishReason": "STOP"}],"usageMetadata": '
        b'{"promptTokenCount": 11,"candidatesTokenCount": 5,"thoughtsTokenCount": 2,"cachedContentTokenCount": 3}}',
        b"]\r\n",
    ),
)  # fmt: skip
STREAMS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, GEMINI, GEMINI_ARRAY)

_USAGE = b'"usage":{"prompt_tokens":11,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":3}}'
DOCUMENTS = (
    Sample(
        "chat-json", "openai", "/v1/chat/completions", _CHAT.replace("STREAM", "false"), "application/json",
        (b'\n\n{"id":"c","choices":[{"message":{"content":"H\xc3\xa9 \\"{"},"index":0}],' + _USAGE + b"}\n",),
    ),
    Sample(
        "messages-json", "anthropic", "/v1/messages", _MESSAGES.replace("STREAM", "false"), "application/json",
        (b'{"id":"m","content":[{"type":"text","text":"H"}],"usage":{"input_tokens":8,"cache_read_input_tokens":3,'
         b'"cache_creation_input_tokens":2,"output_tokens":7}}',),
        (8, 7, 3, 2),
    ),
    Sample(
        "gemini-json", "gemini", "/v1beta/models/raw-gemini:generateContent", _GENERATE, "application/json",
        (b'{"candidates":[{"content":{"parts":[{"text":"H"}]}}],"usageMetadata":{"promptTokenCount":11,'
         b'"candidatesTokenCount":5,"thoughtsTokenCount":2,"cachedContentTokenCount":3}}',),
    ),
)  # fmt: skip
# What a strict reader of text would choke on: the bytes pass, the usage behind them is read.
NOT_UTF8 = replace(
    CHAT,
    name="not-utf8",
    events=(
        b": \xff\xfe\x00 comment\n\n",
        b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xc3(\xed\xa0\x80"}}]}\n\n',
        b"data: \x00\x01 not json \xf8\n\n",
        *CHAT.events[1:],
    ),
)


def head(sample: Sample, framing: str, length: int, *more: str) -> bytes:
    """An answer's head. `framing`: chunked, length or close."""
    lines = ["HTTP/1.1 200 OK", f"content-type: {sample.content_type}", *more]
    if framing == "chunked":
        lines.append("transfer-encoding: chunked")
    elif framing == "length":
        lines.append(f"content-length: {length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def cost_of(usage: tuple[int, int, int, int]) -> int:
    """Nano-credits by the prices that all raw models share."""
    return usage[0] * 1000 + usage[1] * 2000 + usage[2] * 500 + usage[3] * 1500
