"""What a provider says of a job: whether it has ended, and what it used. Documents in, plain values out."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from relay import _fastpath
from relay._fastpath import TokenTable
from relay.wire import documents
from relay.wire.endpoints import F_GENERATE, F_MESSAGES, F_RESPONSES
from relay.wire.paths import is_object_id

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
    "audio_cache_read_tokens",
    "image_cache_read_tokens",
)
BATCHES: Final = ("batch", "message_batch", "gemini_batch")  # priced in the provider's batch service
Doubt = tuple[
    str, str, int, int
]  # (dimension, why, reported, the bound or our count), as `_fastpath.weigh_report` has it
LINE_BYTES_MAX: Final = 64 << 20  # of a batch's results
PICTURES_MAX: Final = 32  # in one answer that is text beside them
_INPUT, _OUTPUT = 1, 2  # `sides` of a report: both of these, and no number that is none
_GEMINI_ENDS: Final = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED")


class Ended(msgspec.Struct, frozen=True):
    """A job has reached a terminal status.

    usage      what it is charged for; None where that stands in `files`, or nowhere
    estimated  something of it is our own count
    files      ids of files (OpenAI), or "results" (Anthropic), whose lines report; beside `usage`: if it is too much
    failed     nothing was made: nothing is charged
    sandboxes  what of those it names is kept
    doubts     about what it reports, for the operator
    """

    usage: Usage | None = None
    estimated: bool = False
    files: tuple[str, ...] = ()
    failed: bool = False
    doubts: tuple[Doubt, ...] = ()
    sandboxes: tuple[str, ...] = ()


def read(kind: str, body: bytes, table: TokenTable, units: int = 0, priority: bool = False) -> Ended | None:
    """None while the job runs, and for what cannot be read.

    `units`: seconds or tokens of prompt that were asked for; `priority`: so was that service.
    """
    try:
        document: Any = documents.loads(body)
    except ValueError:
        return None
    if not isinstance(document, dict):
        return None
    if kind == "response":
        return _response(document, body, table, units, priority)
    if kind == "video":
        return _video(document, units)
    if kind == "batch":
        return _batch(document, table)
    if kind == "message_batch":
        if document.get("processing_status") != "ended":
            return None
        return Ended(files=("results",)) if document.get("results_url") else Ended(failed=True)
    return _gemini_batch(document, table, units)


def _response(document: dict[str, Any], body: bytes, table: TokenTable, units: int, priority: bool) -> Ended | None:
    status = document.get("status")
    if status not in ("completed", "incomplete", "failed", "cancelled"):
        return None
    found = _fastpath.tap(F_RESPONSES, 0, [body], table)
    good = status in ("completed", "incomplete")
    if not good and not found["sides"]:
        return Ended(failed=True)
    verdict = _weighed(F_RESPONSES, found, units, delivered=good, final=good, priority=priority)
    doubts = tuple(verdict["doubts"])
    if not good and any(doubt[0] != "service_tier" for doubt in doubts):
        return Ended(failed=True, doubts=doubts)
    # The service is the one that the answer names, as everywhere, if it is not dearer than what was asked for.
    sandboxes = tuple(name.decode() for name in found["sandboxes"])
    return Ended(usage=verdict["usage"], estimated=verdict["estimated"], doubts=doubts, sandboxes=sandboxes)


def _weighed(
    format: int,
    found: dict[str, Any],
    prompt_tokens: int,
    *,
    delivered: bool = True,
    final: bool = True,
    priority: bool = False,
) -> dict[str, Any]:
    """What is believed of one whole answer, beside our own count of it."""
    own = {"input_tokens": prompt_tokens, "output_tokens": found["counted_tokens"]}
    own["web_searches"], own["images"] = found["searches_seen"], found["images"]
    return _fastpath.weigh_report(
        found, own, format=format, images=PICTURES_MAX, priority=priority, delivered=delivered, final=final
    )


def _video(document: dict[str, Any], units: int) -> Ended | None:
    """A video is as long as was asked for: what is shorter is charged as reported."""
    status = document.get("status")
    if status == "failed":
        return Ended(failed=True)
    if status != "completed":
        return None
    told = document.get("seconds")
    seconds = whole_seconds(told)
    if 0 < seconds <= units:
        return Ended(usage={"video_seconds": seconds})
    why = "above_bound" if seconds else "invalid"
    doubts: tuple[Doubt, ...] = () if told is None else (("video_seconds", why, seconds, units),)
    return Ended(usage={"video_seconds": units}, estimated=True, doubts=doubts)


def whole_seconds(value: object) -> int:
    """Seconds of a video as the provider writes them: "4". 0 for what is none."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 4 else 0


def _batch(document: dict[str, Any], table: TokenTable) -> Ended | None:
    if document.get("status") not in ("completed", "failed", "expired", "cancelled"):
        return None
    output = document.get("output_file_id")
    files = (output,) if isinstance(output, str) and is_object_id(output) else ()
    usage = document.get("usage")
    if isinstance(usage, dict):
        found = _fastpath.tap(F_RESPONSES, 0, [documents.dumps({"usage": usage})], table)
        total = {name: found[name] for name in MEASURES}
        if found["sides"] & ~(_INPUT | _OUTPUT):
            doubts = (("output_tokens", "invalid", total["output_tokens"], 0),)
            return Ended(files=files, failed=not files, doubts=doubts)
        if total["output_tokens"] or (not files and any(total.values())):
            return Ended(usage=total, files=files)
    return Ended(files=files, failed=not files)


def files_of(body: bytes) -> list[str]:
    """The files that a batch has made: they are its owner's."""
    try:
        document: Any = documents.loads(body)
    except ValueError:
        return []
    names = [document.get(name) for name in ("output_file_id", "error_file_id")] if isinstance(document, dict) else []
    return [name for name in names if isinstance(name, str) and is_object_id(name)]


def _gemini_batch(document: dict[str, Any], table: TokenTable, units: int) -> Ended | None:
    metadata = document.get("metadata")
    state = metadata.get("state", "") if isinstance(metadata, dict) else document.get("state", "")
    if not (document.get("done") is True or (isinstance(state, str) and state.endswith(_GEMINI_ENDS))):
        return None
    results = Results(1, units)
    for found in (document.get("response"), metadata.get("output") if isinstance(metadata, dict) else None):
        lines = found.get("inlinedResponses") if isinstance(found, dict) else None
        lines = lines.get("inlinedResponses") if isinstance(lines, dict) else lines
        if isinstance(lines, list) and lines:
            answers = [line.get("response") for line in lines if isinstance(line, dict)]
            for one in answers:
                if isinstance(one, dict):
                    results.add(0, _answer(F_GENERATE, one, table))
            break
    totals = results.totals()
    if not any(totals[0].values()):
        return Ended(failed=True, doubts=results.doubts)
    return Ended(usage=totals[0], estimated=results.estimated, doubts=results.doubts)


def read_line(kind: str, line: bytes, table: TokenTable) -> tuple[str, dict[str, Any] | None]:
    """One line of a batch's results: the name of its request, and what is believed of its report; None for one that
    failed or is none."""
    name = ""
    try:
        document: Any = documents.loads(line)
        name = str(document["custom_id"])
        if kind == "batch":
            return name, _answer(F_RESPONSES, document["response"]["body"], table)
        return name, _answer(F_MESSAGES, document["result"]["message"], table)
    except (ValueError, KeyError, TypeError):
        return name, None


def _answer(format: int, answer: Any, table: TokenTable) -> dict[str, Any] | None:
    """What is believed of an answer in a batch; None for one that is no answer."""
    found = _fastpath.tap(format, 0, [documents.dumps(answer)], table)
    if not found["sides"] and (found["error_seen"] or not found["counted_tokens"]):
        return None
    # How long its prompt was is known for the whole batch only.
    return _weighed(format, found, 0) | {"sides": found["sides"]}


class Results:
    """What the lines of a batch are charged for, summed up for each part of the job."""

    def __init__(self, parts: int, prompt_tokens: int) -> None:
        self._totals: list[Usage] = [{} for _ in range(parts)]
        self._prompt_tokens = prompt_tokens  # of all requests, by our count
        self._without_prompt: int | None = None  # a part with lines that report no prompt
        self._doubts: dict[tuple[str, str], tuple[int, int]] = {}
        self.estimated = False

    def add(self, part: int, verdict: dict[str, Any] | None) -> None:
        if verdict is None:
            return
        add(self._totals[part], [{name: verdict["usage"][name] for name in MEASURES}])
        self.estimated |= verdict["estimated"]
        for dimension, why, reported, expected in verdict["doubts"]:
            self._doubts[dimension, why] = reported, expected
        if not verdict["sides"] & _INPUT or any(dimension == "input_tokens" for dimension, *_ in verdict["doubts"]):
            self._without_prompt = part

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        return tuple((*kind, *numbers) for kind, numbers in self._doubts.items())

    def totals(self) -> list[Usage]:
        """Prompts that were not reported are what is left of our own count of all."""
        if self._without_prompt is not None:
            told = sum(prompt_of(total) for total in self._totals)
            add(self._totals[self._without_prompt], [{"input_tokens": max(self._prompt_tokens - told, 0)}])
            self._without_prompt = None
        return self._totals


def prompt_of(usage: Usage) -> int:
    names = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "cache_write_1h_tokens")
    return sum(usage.get(name, 0) for name in names)


def add(total: Usage, more: Iterable[Usage | None]) -> None:
    """Sums reports into `total`."""
    for found in more:
        for name, value in (found or {}).items():
            total[name] = total.get(name, 0) + value
