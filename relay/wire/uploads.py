"""Reading a multipart upload while it passes: what a file for batches asks for. Keeps a line at a time, no file."""

import json
import re
from typing import Any, Final

import msgspec
import orjson

from relay import _fastpath
from relay._fastpath import TokenTable
from relay.wire import files, strictjson, tools
from relay.wire.endpoints import F_CHAT
from relay.wire.multipart import HEAD_BYTES_MAX, FormError, part_head

LINE_BYTES_MAX: Final = 8 << 20
TEXT_BYTES_MAX: Final = 1024
FILES_MAX: Final = 10_000  # that the lines of one file may name
_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")
# What a line's request would go on from. It could be anybody's, and how much it brings along is not known.
_STORED: Final = ("previous_response_id", "conversation")
_MAYBE_STORED: Final = re.compile(rb'previous_response_id|"conversation"|\\u00[4-7]')  # or letters of one escaped
# What may name tools that cost extra, or another model; or letters of it escaped.
_SPECIAL: Final = (
    *("tools", "plugins", "fallbacks", "models", "route", "compound_custom", "enable_search", "search_parameters"),
    "web_search_options",
)
_MAYBE_SPECIAL: Final = re.compile(rb'"(' + "|".join(_SPECIAL).encode() + rb')"|\\u00[4-7]')
# What is read of a line and of its body; and letters that an escape or a folding could stand for.
_LINE_KEYS: Final = ("custom_id", "method", "url", "body")
BODY_KEYS: Final = ("model", "n", "best_of", "stream", "service_tier", "messages", *_LIMITS, *_STORED, *_SPECIAL)
_QUOTED: Final = tuple(b'"%b"' % name.encode() for name in (*_LINE_KEYS, *BODY_KEYS))
_DISGUISES: Final = (b"\\u00", b"\xc5\xbf", b"\xe2\x84\xaa")
_TEXT_ENDPOINTS: Final = re.compile(r"/v1/(chat/completions|completions|responses)")


class FormStream:
    """Finds the parts of a form that comes in pieces. What cannot be read only means that nothing is found in it."""

    def __init__(self, boundary: bytes) -> None:
        self._line = b"\r\n--" + boundary
        self._dashes = b"--" + boundary
        self._kept = b"\r\n"  # as if a line had ended before the first boundary
        self._state = 0  # 0: looking for a boundary, 1: in a head, 2: in a part, 3: behind the end
        self.broken = False
        self.name = ""
        self.is_file = False

    def feed(self, data: bytes) -> list[bytes | None]:
        """Data of parts in order; None where a part ends. `name` and `is_file` are of the part that was last begun, so
        pieces are handed over one part at a time: call again with b"" until nothing comes."""
        kept = self._kept + data
        out: list[bytes | None] = []
        while not self.broken and self._state != 3:
            if self._state == 1:
                end = kept.find(b"\r\n\r\n")
                if self._dashes in kept[: end if end >= 0 else len(kept)]:
                    self.broken = True
                    break
                if end < 0:
                    self.broken = len(kept) > HEAD_BYTES_MAX
                    break
                try:
                    self.name, filename = part_head(kept[2:end])
                except FormError:
                    self.broken = True
                    break
                self.is_file = filename is not None
                kept = kept[end + 4 :]
                self._state = 2
                continue
            at = kept.find(self._line)
            if self._dashes in kept[: at + len(self._line) - 1 if at >= 0 else len(kept)]:
                self.broken = True  # at a place that is not ours: some parsers would begin a part there
                break
            if at < 0:
                safe = len(kept) - len(self._line) - 2
                if safe > 0:
                    if self._state == 2:
                        out.append(kept[:safe])
                    kept = kept[safe:]
                break
            if len(kept) < at + len(self._line) + 2:
                if self._state == 2 and at:
                    out.append(kept[:at])
                    kept = kept[at:]
                break
            if self._state == 2:
                out.append(kept[:at])
                out.append(None)
            elif at:
                self.broken = True
                break
            behind = kept[at + len(self._line) : at + len(self._line) + 2]
            kept = kept[at + len(self._line) :]
            self._state = 3 if behind == b"--" else 1
            self.broken = behind not in (b"--", b"\r\n")
            if out:
                break
        self._kept = kept
        return out


class BatchFacts(msgspec.Struct):
    """What the lines of a file for batches ask for together. `requests` 0: it is no such file, or cannot be read."""

    model: str | None = None
    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    files: set[tuple[str, str]] = msgspec.field(default_factory=set)  # named by its lines


class UploadReader:
    """The purpose of an upload, and the facts of a file of lines."""

    def __init__(self, boundary: bytes | None, table: TokenTable, hold_output_tokens: int) -> None:
        self._form = FormStream(boundary) if boundary is not None else None
        self._table = table
        self._hold_output_tokens = hold_output_tokens
        self._facts = BatchFacts()
        self._line = bytearray()
        self._text = b""
        self._lines_of = 0  # files seen
        self._readable = True
        self.purpose = ""

    def feed(self, data: bytes) -> None:
        """The next bytes of the upload."""
        if self._form is None:
            return
        while pieces := self._form.feed(data):
            data = b""
            for piece in pieces:
                self._take(piece)

    def _take(self, piece: bytes | None) -> None:
        assert self._form is not None
        if not self._form.is_file:
            if piece is None:
                if self._form.name == "purpose":
                    self.purpose = self._text.decode("utf-8", "replace")
                self._text = b""
            else:
                self._text = (self._text + piece)[:TEXT_BYTES_MAX]
            return
        if piece is None:
            self._end_line()
            self._lines_of += 1
            return
        if not self._readable or self._lines_of:
            return
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            self._line += piece[start:end]
            if not self._end_line():
                return
            start = end + 1
        self._line += piece[start:]
        if len(self._line) > LINE_BYTES_MAX:
            self._give_up()

    def _give_up(self) -> bool:
        self._readable = False
        self._line = bytearray()
        return False

    def _end_line(self) -> bool:
        """Counts a line. False: the file cannot be read."""
        line = bytes(self._line).strip()
        self._line = bytearray()
        if not line or not self._readable:
            return self._readable
        try:
            document: Any = orjson.loads(line) if _plainly_once(line) else _strictly(line)
            body = document["body"]
            model = body["model"]
            url = document["url"]
        except (ValueError, KeyError, TypeError):
            return self._give_up()
        facts = self._facts
        if (files.may_be_named(line) or _MAYBE_STORED.search(line)) and not self._take_names(line, url):
            return self._give_up()
        if not isinstance(model, str) or not isinstance(url, str) or (facts.model or model) != model:
            return self._give_up()
        if tools.searches_always(model) or (_MAYBE_SPECIAL.search(line) and not _costs_tokens_alone(line, url)):
            return self._give_up()
        facts.model = model
        facts.requests += 1
        facts.prompt_tokens += -(-_fastpath.count_text(self._table, line) // _fastpath.TOKEN_UNIT)
        if _TEXT_ENDPOINTS.fullmatch(url):
            facts.output_tokens += output_bound(body, self._hold_output_tokens)
        return True

    @property
    def model(self) -> str | None:
        """Which model a file for batches is for, as far as it was read."""
        return self._facts.model if self.purpose in ("", "batch") else None

    @property
    def undecided(self) -> bool:
        """Whether what comes next may tell the model."""
        broken = self._form is None or self._form.broken or not self._readable or self._lines_of > 0
        return not broken and self._facts.model is None and self.purpose in ("", "batch")

    def _take_names(self, line: bytes, url: Any) -> bool:
        """The files that a line's request names. False: they cannot be told, or are too many; or it goes on from
        something stored."""
        try:
            document = strictjson.loads(line)
            if any(document["body"].get(name) is not None for name in _STORED):
                return False
            if not files.may_be_named(json.dumps(document).encode()):
                return True
            self._facts.files |= set(files.names(files.FORMATS[url], document["body"], self._table))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False
        return len(self._facts.files) <= FILES_MAX

    def facts(self) -> BatchFacts:
        """Once the upload is complete."""
        if not self._readable or self._form is None or self._form.broken or self._lines_of != 1:
            return BatchFacts()
        return self._facts


def _costs_tokens_alone(line: bytes, url: str) -> bool:
    """Whether a line's request asks for nothing but tokens of its model. What else a batch has used is not told by its
    report, so that it could not be charged."""
    try:
        body = strictjson.loads(line)["body"]
        return not (tools.asked_in(files.FORMATS.get(url, F_CHAT), body) or tools.searches(body))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _plainly_once(line: bytes) -> bool:
    """Whether no key that is read here can stand twice, or in other letters: then the fast parser says all there is."""
    lower = line.lower()
    return not any(lower.count(key) > 1 or lower.count(key) != line.count(key) for key in _QUOTED) and not any(
        mark in line for mark in _DISGUISES
    )


def _strictly(line: bytes) -> Any:
    """A line that has to mean the same to every reader. ValueError."""
    document = strictjson.loads(line)
    body = document.get("body") if isinstance(document, dict) else None
    if isinstance(body, dict) and (
        strictjson.look_alike(document, _LINE_KEYS) or strictjson.look_alike(body, BODY_KEYS)
    ):
        raise ValueError("a key in other letters")
    return document


def output_bound(body: dict[str, Any], otherwise: int) -> int:
    """Output tokens that an answer to this request cannot exceed, or `otherwise` where it says nothing."""
    limits = [value for name in _LIMITS if type(value := body.get(name)) is int and value > 0]
    choices = body.get("n")
    return (max(limits) if limits else otherwise) * (choices if type(choices) is int and 1 < choices <= 128 else 1)
