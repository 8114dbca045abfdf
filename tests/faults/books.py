"""The three books of a call compared: what its client received, what the relay recorded, what the upstream sent.

The relay's book is read by plain SQL. Counts of text are those of the relay's own reader: over the bytes that the
client has (nothing may be charged less) and over those that the upstream sent (nothing may be charged more).
"""

import re
import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.simulator.book import Book, Entry
from tests.faults.traffic import Call
from tests.functional.setting import cost_nano

_EVENT_END = re.compile(rb"\r?\n\r?\n")
_TAG = re.compile(rb"tag\d+\.")


@dataclass
class Counts:
    """The dimensions of a charge."""

    input: int
    output: int


def counts(call: Call, body: bytes, prompt_tokens: int, *, most: bool = False) -> Counts:
    """What an answer, or the beginning of one, is to be charged; `most`: or any part of it was.

    Until an upstream has reported at the end, its own count may be below the relay's.
    """
    found = call.dialect.tap(body, call.stream)
    if not body:
        return Counts(0, 0)
    if not found["usage_seen"]:
        return Counts(prompt_tokens, found["delivered_tokens"])
    output = found["output_tokens"]
    if most:
        # What was charged before a report came may be above it.
        output = max(output, found["delivered_tokens"], found["counted_tokens"])
    elif not found["terminal_seen"]:
        output = max(output, found["delivered_tokens"])
    return Counts(found["input_tokens"], output)


def rows(data_dir: Path, sql: str, *values: Any) -> list[dict[str, Any]]:
    connection = sqlite3.connect(f"file:{data_dir / 'relay.db'}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(sql, values)]
    finally:
        connection.close()


def entries_by_tag(book: Book) -> dict[str, Entry]:
    """The upstream's entries by the tag in the prompt. No call may have reached it twice."""
    found: dict[str, Entry] = {}
    for entry in book.entries:
        if tag := _TAG.search(entry.body):
            name = tag[0].decode()
            assert name not in found, f"{name} was sent twice"
            found[name] = entry
    return found


def check_calls(
    data_dir: Path, calls: list[Call], book: Book, since: int = 0, *, one_event: bool = True
) -> Counter[str]:
    """Every call against its record and the upstream's entry. Returns how many there were of which kind.

    `since`: records up to this id were checked before. `one_event`: no more is charged than what the client has and the
    event behind it (not where a client has left bytes unread).
    """
    upstream = entries_by_tag(book)
    seen: Counter[str] = Counter()
    by_key: dict[str, list[Call]] = {}
    for call in calls:
        by_key.setdefault(call.customer.key, []).append(call)
    for key, made in by_key.items():
        records = {
            row["id"]: row
            for row in rows(
                data_dir, "SELECT * FROM call_records WHERE key_id = ? AND id > ?", int(key.removeprefix("key_")), since
            )
        }
        nameless = []
        for call in made:
            if call.id:
                assert call.record_id in records, f"the record of {call.tag} ({call.ending}) is lost"
                check_call(call, records.pop(call.record_id), upstream.get(call.tag), seen, one_event)
            else:
                nameless.append(call)
        # What has no name had no answer either: its record is one of the rest, or there is none.
        assert len(records) <= len(nameless), f"{len(records)} records for {len(nameless)} calls of {key}"
        if len(records) == len(nameless) == 1:
            (record,) = records.values()
            check_call(nameless[0], record, upstream.get(nameless[0].tag), seen, one_event)
        else:
            seen["unanswered"] += len(nameless)
            for record in records.values():
                least = [upstream[call.tag] for call in nameless if call.tag in upstream]
                assert record["cost_nano"] == 0 or least, record
    return seen


def check_call(call: Call, record: dict[str, Any], entry: Entry | None, seen: Counter[str], one_event: bool) -> None:
    what = f"{call.tag} {call.ending} {call.dialect.name} stream={call.stream} {call.status} {record}"
    charged = Counts(record["input_tokens"], record["output_tokens"])
    others = {"cache_read": record["cache_read_tokens"], "web_searches": record["web_searches"]}
    if record["cost_nano"] or charged.input or charged.output:
        assert record["cost_nano"] == cost_nano(record["model"], charged.input, charged.output, **others), what
    if entry is None or call.status >= 400 or not entry.sent:
        assert record["cost_nano"] == 0, what
        seen["free"] += 1
        return
    sent = bytes(entry.sent)
    if (
        call.ending == "finished"
        and call.complete
        and entry.outcome == "finished"
        and record["error_code"] is None
        and entry.usage
    ):
        # Both sides say that it was whole: charged is what the upstream reported, to the token.
        assert call.body == sent, what
        assert (charged.input, charged.output) == (entry.input_tokens - entry.cached_tokens, entry.output_tokens), what
        seen["finished"] += 1
        return
    same = _same(call.body, sent)
    received = counts(call, sent[:same], charged.input)
    most = counts(call, sent, charged.input, most=True)
    least = received.output
    if record["usage_source"] == "upstream" and entry.usage and entry.outcome == "finished":
        # The report had passed, though the client has not read so far: it is the charge, be it below a count.
        least = min(least, entry.output_tokens)
    assert least <= charged.output <= most.output, (what, received, most)
    if one_event:
        event = _EVENT_END.search(sent, same)
        behind = event.end() if event is not None and call.stream else len(sent)
        if charged.output > counts(call, sent[:behind], charged.input, most=True).output:
            seen["more than one event"] += 1
    if charged.output > received.output:
        seen["more than received"] += 1
    seen["recovered" if record["error_code"] == "recovered" else "cut"] += 1
    if received.output and record["error_code"] == "recovered":
        seen["recovered in the middle"] += 1


def _same(left: bytes, right: bytes) -> int:
    """How far two byte strings agree."""
    if right.startswith(left):
        return len(left)
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[:middle] == right[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
