"""The part of /metrics about jobs: what is open at providers, what it holds, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final, Protocol

from relay import units
from relay.observe.exposition import Page

KINDS: Final = ("response", "batch", "video", "message_batch", "gemini_batch")
OUTCOMES: Final = ("charged", "failed", "expired", "lost")


class JobsState(Protocol):
    """What is read of `proxy.jobs.Jobs`. Counts are since the process began."""

    @property
    def ended_total(self) -> Mapping[tuple[str, str], int]: ...  # (kind, outcome)
    @property
    def cost_nano_total(self) -> Mapping[str, int]: ...
    @property
    def polls_total(self) -> Mapping[tuple[str, bool], int]: ...  # (kind, whether it failed)
    def open_by_kind(self) -> Mapping[str, tuple[int, int, int]]:
        """How many, nano-credits held, and when the oldest began in Unix milliseconds."""


def add(page: Page, jobs: JobsState) -> None:
    """Every kind and outcome is there from the start: a rate over a counter that appears with 1 would miss it."""
    now_ms = time.time_ns() // 1_000_000
    found = jobs.open_by_kind()
    rows = [({"kind": kind}, *found.get(kind, (0, 0, now_ms))) for kind in KINDS]
    page.family("relay_jobs_open", "gauge", "Jobs that have not ended.", [(labels, row[0]) for labels, *row in rows])
    page.family(
        "relay_jobs_held_credits", "gauge", "What they hold, in credits.",
        [(labels, units.format_credits(row[1])) for labels, *row in rows],
    )  # fmt: skip
    page.family(
        "relay_jobs_oldest_seconds", "gauge", "How long the oldest of them has been open; 0: there is none.",
        [(labels, f"{max(now_ms - row[2], 0) / 1000:.3f}") for labels, *row in rows],
    )  # fmt: skip
    page.family(
        "relay_jobs_ended_total", "counter", "Jobs that ended, by how.",
        [
            ({"kind": kind, "outcome": outcome}, jobs.ended_total.get((kind, outcome), 0))
            for kind in KINDS
            for outcome in OUTCOMES
        ],
    )  # fmt: skip
    page.family(
        "relay_jobs_cost_credits_total", "counter", "What they cost, in credits; not in relay_cost_credits_total.",
        [({"kind": kind}, units.format_credits(jobs.cost_nano_total.get(kind, 0))) for kind in KINDS],
    )  # fmt: skip
    for name, text, outcomes in (
        ("relay_jobs_polls_total", "How often the relay has asked a provider for a job.", (False, True)),
        ("relay_jobs_polls_failed_total", "Of those: without an answer about the job.", (True,)),
    ):
        page.family(
            name, "counter", text,
            [({"kind": kind}, sum(jobs.polls_total.get((kind, one), 0) for one in outcomes)) for kind in KINDS],
        )  # fmt: skip
