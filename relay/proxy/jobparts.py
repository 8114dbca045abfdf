"""The parts of a job: what each of its models is asked for and charged for. A job but for batches has one.

In a batch the results tell by the names of its requests whose they are. Those names are their maker's and are not kept:
what is kept of each is a tag, some bytes of an HMAC, for as long as the job is open.
"""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from relay._fastpath import Rate
from relay.policy import pricing
from relay.proxy.sidecalls import record
from relay.records import CALL_DETAILS, CallRecord
from relay.storage.rows import JobPart, JobRow
from relay.wire import jobs as wire_jobs

TAG_BYTES: Final = 8
# How many times what is held a batch can cost. Requests to Anthropic have a limit of output; their prompts may be
# written to a cache at twice the price of input. Others need no limit, and are held for with one of the configuration.
BOUND_TIMES: Final = {"message_batch": 4, "batch": 16, "gemini_batch": 16}
BATCH_SERVICE: Final = pricing.SERVICES.index("batch")


class Asked(NamedTuple):
    """What a job asks of one model. `usage`: the bound; `names`: of the requests that are for it."""

    model: str
    upstream_model: str
    usage: wire_jobs.Usage
    names: Sequence[str] = ()


class Part(NamedTuple):
    """What one model does for a job."""

    record_id: int
    model: str
    upstream_model: str
    rate: Rate
    requests: bytes = b""  # a tag for each; the first part has none, and all that belong to no other


def _is_batch(row: JobRow) -> bool:
    return row.kind in wire_jobs.BATCHES


def of_row(card: str, row: JobRow, more: Sequence[JobPart]) -> tuple[Part, ...]:
    """The parts of a job, its own model's first. KeyError: a model that is not on the card."""

    def rate(model: str) -> Rate:
        return pricing.rate_on_card(card, row.rate_card, model, whole=_is_batch(row))

    return (
        Part(row.id, row.model, row.upstream_model, rate(row.model)),
        *(Part(one.record_id, one.model, one.upstream_model, rate(one.model), one.requests) for one in more),
    )


def places(parts: Sequence[Part]) -> dict[bytes, int]:
    """Which part of a batch a request belongs to, by its tag. Those that are not here belong to the first."""
    return {
        part.requests[at : at + TAG_BYTES]: place
        for place, part in enumerate(parts)
        for at in range(0, len(part.requests), TAG_BYTES)
    }


def bound(row: JobRow, part: Part, usage: wire_jobs.Usage) -> int:
    """What is held: in the service that was asked for."""
    if row.kind != "response":
        return cost(row, part, usage)
    return part.rate.bound(
        usage.get("input_tokens", 0),
        usage.get("output_tokens", 0),
        web_searches=usage.get("web_searches", 0),
        priority=bool(row.priority),
    )


def most(row: JobRow) -> int:
    """What a job's provider can report at most, in nano-credits; -1: reports of its kind are bounded by themselves."""
    return row.hold_nano * BOUND_TIMES[row.kind] if row.kind in BOUND_TIMES else -1


def held_usage(row: JobRow, part: Part) -> wire_jobs.Usage:
    """What was held for, as usage: for a job whose reports are of no use."""
    output = part.rate.affordable(row.units, row.hold_nano, priority=bool(row.priority))
    return {"input_tokens": row.units, "output_tokens": output if output < 1 << 40 else 0}


def cost(row: JobRow, part: Part, usage: wire_jobs.Usage) -> int:
    return part.rate.cost(**(usage | {"service": BATCH_SERVICE}) if _is_batch(row) else usage)


def ending(
    row: JobRow,
    part: Part,
    usage: wire_jobs.Usage | None,
    cost_nano: int,
    written_off_nano: int,
    code: str | None,
    source: str,
) -> CallRecord:
    """The record of a part's ending."""
    fields = record(
        part.record_id,
        row.account_id,
        row.organisation_id,
        row.key_id,
        path=row.path,
        model=part.model,
        upstream_model=part.upstream_model,
        channel=row.channel,
        status=200,
        error_code=code,
        usage=usage,
        source=source,
        cost_nano=cost_nano,
        rate_card=row.rate_card,
        latency_us=max(time.time_ns() // 1_000_000 - row.created_ms, 0) * 1000,
        written_off_nano=written_off_nano,
    )
    if usage is None:
        return fields
    found = dict(usage)
    if _is_batch(row):
        found["service"] = BATCH_SERVICE
    details = tuple(found.get(name, 0) for name in CALL_DETAILS)
    return (*fields, (*details, None, 0)) if any(details) else fields
