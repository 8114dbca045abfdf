"""What one request asks of the simulator.

Written as `#sim k=v k=v#` anywhere in the raw request body (inside a prompt, for instance), or as `k=v k=v` in the
header `x-sim`. Later ones win; the body wins over the header, the header over the server's defaults. An unknown name or
value is an error, so that a misspelt test does not pass by accident.
"""

import dataclasses
import re
from dataclasses import dataclass

DIRECTIVE = re.compile(rb"#sim ([^#\"\\]*)#")

CHOICES: dict[str, tuple[str, ...]] = {
    "cut_how": ("fin", "rst"),
    "usage": ("normal", "missing", "null", "zero", "negative", "huge", "fraction", "text", "twice"),
    "usage_at": ("own", "finish", "each", "choice", "groq"),
    "shape": ("openai", "deepseek", "kimi", "xai"),
    "encoding": ("", "gzip", "deflate", "br", "zstd"),
    "eol": ("", "lf", "crlf", "cr"),
    "error": (
        "", "invalid", "key", "balance", "permission", "not_found", "too_large", "rate", "quota", "server",
        "overloaded", "timeout",
    ),
}  # fmt: skip

# Shorthands: flag -> (field, value).
FLAGS = {"crlf": ("eol", "crlf"), "cr": ("eol", "cr")}


class DirectiveError(ValueError):
    """A directive that the simulator does not know."""


@dataclass(slots=True)
class Directives:
    """All that can be asked for. Byte offsets count the body as sent: after compression, before chunk framing."""

    # What is said.
    events: int = 8  # pieces of text (of tool arguments, if tools are called)
    size: int = 0  # UTF-8 bytes of text per event; 0: `tokens` words
    tokens: int = 1  # tokens counted per event
    seed: int = -1  # given: the whole body depends on it alone, ids and times included
    utf8: int = 0  # 1: text with characters of two to four bytes, quotes and line ends
    tools: int = 0  # tool calls instead of text
    reasoning: int = 0  # reasoning tokens, shown as reasoning_content, thinking, thought parts or a summary
    search: int = 0  # web searches
    images: int = 0  # generated pictures in an answer of Responses or Gemini
    image_bytes: int = 0  # least size of a picture
    audio_ms: int = 100  # sound per event of a realtime response that is spoken
    obfuscation: int = 0  # 1: padding beside each delta of OpenAI streams, as the provider adds it unless asked not to
    finish: str = ""  # finish reason, in the dialect's own word
    polls: int = 1  # how often a job is asked for before it has ended
    fail: int = 0  # 1: a job ends as failed
    ignore_limit: int = 0  # 1: say everything even when the caller's output limit is lower

    # What is reported.
    input: int = -1  # prompt tokens, cached ones included; -1: from the text of the request
    output: int = -1  # output tokens without reasoning; -1: events x tokens
    cached: int = 0  # of the prompt, read from a cache
    cache_write: int = 0  # of the prompt, written to the cache (five minutes)
    cache_write_1h: int = 0  # of the prompt, written to the cache (one hour)
    usage: str = "normal"
    usage_at: str = "own"  # where chat streams report: own event, finish event, each event, inside the choice, x_groq
    shape: str = "openai"  # dialect of the chat usage object

    # How it is sent.
    first_ms: float = 0  # delay before the first byte
    body_ms: float = 0  # delay between head and body
    pace_ms: float = 0  # delay between writes
    pack: int = 1  # events per write
    split: int = 0  # bytes per write; 0: whole
    split_ms: float = 0  # delay between the parts of a split write
    chunk: int = 0  # bytes per HTTP chunk; 0: one chunk per event
    chunked: int = 0  # 1: chunked also for an answer of known length
    close: int = 0  # 1: no content-length, the body lasts until the connection closes
    keepalive: int = 1  # 0: `connection: close` behind a framed answer
    encoding: str = ""
    eol: str = ""  # line ends of events; empty: the provider's own
    bom: int = 0  # 1: a byte order mark first
    blank: int = 0  # empty lines before the body
    comments: int = 0  # a comment line before every Nth event
    ping: int = -1  # Anthropic: a ping every N events; -1: one at the start, 0: none
    done: int = 1  # 0: the stream ends properly framed, but without its terminal event

    # What goes wrong.
    status: int = 0  # answer with this error status
    error: str = ""  # which error; empty: the usual one of the status
    retry_after: float = -1  # seconds, in headers of an error; -1: 1 where providers send it
    error_at: int = -1  # an error event in place of the rest, after so many text events
    cut: int = -1  # end the connection at this byte of the body (`cut=end`: where the body ends, before the last chunk)
    cut_head: int = -1  # end it at this byte of the head
    cut_how: str = "fin"
    stall: int = -1  # send nothing more from this byte of the body on
    garbage: int = 0  # 1: answer with something that is not HTTP


FIELDS = {field.name: field.type for field in dataclasses.fields(Directives)}
END = 1 << 62


def directives_of(body: bytes, header: str = "", defaults: str = "") -> Directives:
    """Reads the directives of one request. Raises DirectiveError."""
    found = Directives()
    if defaults:
        apply(found, defaults)
    if header:
        apply(found, header)
    if b"#sim " in body:
        for match in DIRECTIVE.finditer(body):
            apply(found, match.group(1).decode("ascii", "replace"))
    return found


def apply(directives: Directives, text: str) -> None:
    """Sets what `k=v k=v` says; a bare `k` means `k=1`. Raises DirectiveError."""
    for word in text.split():
        name, _, value = word.partition("=")
        name, value = FLAGS.get(name, (name, value or "1"))
        if name not in FIELDS:
            raise DirectiveError(f"simulator: unknown directive {name!r}")
        setattr(directives, name, _value(name, value))


def _value(name: str, value: str) -> int | float | str:
    kind = FIELDS[name]
    if name in ("cut", "stall") and value == "end":
        return END
    try:
        if kind is int:
            return int(value)
        if kind is float:
            return float(value)
    except ValueError:
        raise DirectiveError(f"simulator: directive {name} needs a number, not {value!r}") from None
    if name in CHOICES and value not in CHOICES[name]:
        raise DirectiveError(f"simulator: directive {name} is one of {', '.join(CHOICES[name])}, not {value!r}")
    return value
