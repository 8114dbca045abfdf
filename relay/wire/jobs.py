"""What a provider says of a job: whether it has ended, and what it used. Documents in, plain values out."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec
import orjson

from relay import _fastpath
from relay._fastpath import TokenTable
from relay.wire.endpoints import F_GENERATE, F_MESSAGES, F_RESPONSES

Usage = dict[str, int]

MEASURES: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "images",
    "video_seconds",
    "web_searches",
    "audio_input_tokens",
    "audio_output_tokens",
    "image_input_tokens",
    "image_output_tokens",
)
ABSURD_TOKENS: Final = 1_000_000_000  # no single answer has this many: such a report counts as missing
BATCHES: Final = ("batch", "message_batch", "gemini_batch")  # priced in the provider's batch service
_GEMINI_ENDS: Final = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED")


class Ended(msgspec.Struct, frozen=True):
    """A job has reached a terminal status.

    usage   what it reports; None where that stands in `files`, or nowhere
    counted what was counted where it reports nothing
    files   ids of files (OpenAI), or "results" (Anthropic), whose lines report
    failed  nothing was made: nothing is charged
    """

    usage: Usage | None = None
    counted: Usage = {}
    files: tuple[str, ...] = ()
    failed: bool = False


def read(kind: str, body: bytes, table: TokenTable) -> Ended | None:
    """None while the job runs, and for what cannot be read."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict):
        return None
    if kind == "response":
        return _response(document, body, table)
    if kind == "video":
        return _video(document)
    if kind == "batch":
        return _batch(document, table)
    if kind == "message_batch":
        if document.get("processing_status") != "ended":
            return None
        return Ended(files=("results",)) if document.get("results_url") else Ended(failed=True)
    return _gemini_batch(document, table)


def _response(document: dict[str, Any], body: bytes, table: TokenTable) -> Ended | None:
    status = document.get("status")
    if status not in ("completed", "incomplete", "failed", "cancelled"):
        return None
    found = _fastpath.tap(F_RESPONSES, 0, [body], table)
    service = found["service"]  # which the answer names, as everywhere: it may be another than was asked for
    if _reported(found, ABSURD_TOKENS):
        return Ended(usage={**{name: found[name] for name in MEASURES}, "service": service})
    if status in ("failed", "cancelled"):
        return Ended(failed=True)
    return Ended(counted={"output_tokens": found["counted_tokens"], "service": service})


def _video(document: dict[str, Any]) -> Ended | None:
    status = document.get("status")
    if status == "failed":
        return Ended(failed=True)
    if status != "completed":
        return None
    seconds = whole_seconds(document.get("seconds"))
    return Ended(usage={"video_seconds": seconds} if seconds else None)


def whole_seconds(value: object) -> int:
    """Seconds of a video as the provider writes them: "4". 0 for what is none."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 4 else 0


def _batch(document: dict[str, Any], table: TokenTable) -> Ended | None:
    if document.get("status") not in ("completed", "failed", "expired", "cancelled"):
        return None
    usage = document.get("usage")
    if isinstance(usage, dict):
        found = usage_of(F_RESPONSES, orjson.dumps({"usage": usage}), table, 1 << 40)
        if found is not None and any(found.values()):
            return Ended(usage=found)
    output = document.get("output_file_id")
    if isinstance(output, str) and output:
        return Ended(files=(output,))
    return Ended(failed=True)


def files_of(body: bytes) -> list[str]:
    """The files that a batch has made: they are its owner's."""
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    names = [document.get(name) for name in ("output_file_id", "error_file_id")] if isinstance(document, dict) else []
    return [name for name in names if isinstance(name, str)]


def _gemini_batch(document: dict[str, Any], table: TokenTable) -> Ended | None:
    metadata = document.get("metadata")
    state = metadata.get("state", "") if isinstance(metadata, dict) else document.get("state", "")
    if not (document.get("done") is True or (isinstance(state, str) and state.endswith(_GEMINI_ENDS))):
        return None
    total: Usage = {}
    for found in (document.get("response"), metadata.get("output") if isinstance(metadata, dict) else None):
        lines = found.get("inlinedResponses") if isinstance(found, dict) else None
        lines = lines.get("inlinedResponses") if isinstance(lines, dict) else lines
        if isinstance(lines, list) and lines:
            answers = [line.get("response") for line in lines if isinstance(line, dict)]
            add(total, (usage_of(F_GENERATE, orjson.dumps(one), table) for one in answers if isinstance(one, dict)))
            break
    return Ended(usage=total) if any(total.values()) else Ended(failed=True)


def read_line(kind: str, line: bytes, table: TokenTable) -> tuple[str, Usage | None]:
    """One line of a batch's results: the name of its request, and the usage; None for one that failed or is none."""
    name = ""
    try:
        document: Any = orjson.loads(line)
        name = str(document["custom_id"])
        if kind == "batch":
            return name, usage_of(F_RESPONSES, orjson.dumps(document["response"]["body"]), table)
        return name, usage_of(F_MESSAGES, orjson.dumps(document["result"]["message"]), table)
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return name, None


def usage_of(format: int, body: bytes, table: TokenTable, most: int = ABSURD_TOKENS) -> Usage | None:
    """The usage that one whole answer reports, in the priced dimensions; None where that is above `most` tokens."""
    found = _fastpath.tap(format, 0, [body], table)
    return {name: found[name] for name in MEASURES} if _reported(found, most) else None


def _reported(found: dict[str, Any], most: int) -> bool:
    return bool(found["usage_seen"]) and max(found["input_tokens"], found["output_tokens"]) <= most


def add(total: Usage, more: Iterable[Usage | None]) -> None:
    """Sums reports into `total`."""
    for found in more:
        for name, value in (found or {}).items():
            total[name] = total.get(name, 0) + value
