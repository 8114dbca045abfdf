"""/metrics: what the process has counted, and how it stands at the moment of a scrape.

Calls are counted from their records, in batches (`Tally`, compiled); everything else is read when somebody asks.
Labels are routes, models of the catalogue, channels and codes: closed sets. Nothing here knows accounts or keys: their
figures are in the store, and a label for each would grow with the customers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from relay import __version__, units
from relay._fastpath import ERROR_CODES, TALLY_BOUNDS_US, TALLY_SUMS, Engine, Tally
from relay.observe import jobs, process
from relay.observe.exposition import Page
from relay.policy.routing import BREAKER_STATES, ChannelState
from relay.records import USAGE_SOURCES, CallRecord

_BOUNDS = tuple(f"{us / 1e6:g}" for us in TALLY_BOUNDS_US)
_TOKENS = ("input", "output", "cache_read", "cache_write")
_PIECES = {"images": "image", "video_seconds": "video_second", "web_searches": "web_search"}


@dataclass(frozen=True)
class Figures:
    """How the parts outside of the engine stand now.

    pending               records and events that wait for the writer
    lag_seconds           how long the oldest of them has waited
    writable              False while the disk is full
    events_dropped        since start
    records_dropped       of refused calls, while the store could not be written
    shortfall_nano        see `Store.shortfall_nano`
    other_connections     those that aiohttp's parser has
    descriptors           file descriptors of connections
    keys_loaded           keys in memory
    open_calls            calls in flight, Python's too
    """

    pending: int
    lag_seconds: float
    writable: bool
    events_dropped: int
    records_dropped: int
    shortfall_nano: int
    other_connections: int
    descriptors: int
    keys_loaded: int
    open_calls: int


class _Route(NamedTuple):
    """What was counted of one model on one channel."""

    labels: dict[str, str]
    sums: dict[str, int]
    sources: tuple[int, ...]
    latency: tuple[tuple[int, ...], int]
    first_byte: tuple[tuple[int, ...], int]

    @classmethod
    def of(
        cls,
        name: tuple[str | None, str | None],
        sums: tuple[int, ...],
        sources: tuple[int, ...],
        latency: tuple[tuple[int, ...], int],
        first_byte: tuple[tuple[int, ...], int],
    ) -> _Route:
        labels = {"model": name[0] or "", "channel": name[1] or ""}
        return cls(labels, dict(zip(TALLY_SUMS, sums, strict=True)), sources, latency, first_byte)


class Metrics:
    """Counts, and writes the page."""

    def __init__(
        self, engine: Engine, figures: Callable[[], Figures], channels: Callable[[], Iterable[ChannelState]]
    ) -> None:
        self._engine = engine
        self._figures = figures
        self._channels = channels
        self._tally = Tally()
        self._limits: dict[tuple[str, str], int] = {}  # (code, scope) -> refusals
        self.jobs: jobs.JobsState | None = None
        # Whatever is sent beside the store (access log, spans): name -> records that were dropped.
        self.dropped: Callable[[], Mapping[str, int]] = dict

    def count(self, records: list[CallRecord], refusals: Mapping[tuple[int, int, str, str | None], int]) -> None:
        """Records of ended calls and refusals of limiters, as the engine gives them."""
        if records:
            self._tally.add(records)
        for (_, _, code, scope), count in refusals.items():
            at = (code, scope or "")
            self._limits[at] = self._limits.get(at, 0) + count

    def page(self) -> bytes:
        """The exposition."""
        figures = self._figures()  # first: it hands over what has ended since the last batch
        page = Page()
        page.family("relay_info", "gauge", "Version; always 1.", [({"version": __version__}, 1)])
        self._calls(page)
        self._refusals(page)
        self._load(page, figures)
        self._store(page, figures)
        self._upstreams(page)
        if self.jobs is not None:
            jobs.add(page, self.jobs)
        process.add(page, figures.descriptors)
        return page.body()

    def _calls(self, page: Page) -> None:
        page.family(
            "relay_calls_total", "counter", "Calls that ended, refused ones included.",
            [
                (
                    {"path": path, "model": model or "", "channel": channel or "", "status": str(status),
                     "error": error or ""},
                    count,
                )
                for (path, model, channel, status, error), count in self._tally.ended()
            ],
        )  # fmt: skip
        # Refused calls have their model in relay_calls_total, and nothing else to tell.
        routes = [_Route.of(*row) for row in self._tally.by_route() if row[0][1] is not None or any(row[1])]
        page.family(
            "relay_tokens_total", "counter", "Tokens charged for, by kind.",
            [({**row.labels, "kind": kind}, row.sums[f"{kind}_tokens"]) for row in routes for kind in _TOKENS],
        )  # fmt: skip
        page.family(
            "relay_pieces_total", "counter", "What is charged by the piece: images, seconds of media, searches.",
            [
                ({**row.labels, "kind": kind}, row.sums[field])
                for row in routes
                for field, kind in _PIECES.items()
                if row.sums[field]
            ],
        )  # fmt: skip
        page.family(
            "relay_cost_credits_total", "counter", "What calls cost, in credits.",
            [(row.labels, units.format_credits(row.sums["cost_nano"])) for row in routes],
        )  # fmt: skip
        page.family(
            "relay_write_off_credits_total", "counter", "The part of the cost that no balance covered, in credits.",
            [(row.labels, units.format_credits(row.sums["write_off_nano"])) for row in routes],
        )  # fmt: skip
        page.family(
            "relay_usage_total", "counter", "Calls by where their usage comes from.",
            [
                ({**row.labels, "source": source}, count)
                for row in routes
                for source, count in zip(USAGE_SOURCES, row.sources, strict=True)
                if count
            ],
        )  # fmt: skip
        page.family(
            "relay_retried_attempts_total", "counter", "Attempts beyond the first, by the channel that was last.",
            [(row.labels, row.sums["retries"]) for row in routes if row.sums["retries"]],
        )  # fmt: skip
        upstream = [row for row in routes if row.labels["channel"]]
        page.histograms(
            "relay_call_seconds", "From the first byte of a request to the end of its call; calls with a channel.",
            _BOUNDS, [(row.labels, row.latency[0], f"{row.latency[1] / 1e6:.6f}") for row in upstream],
        )  # fmt: skip
        page.histograms(
            "relay_first_byte_seconds", "From the first byte of a request to the first of its answer.",
            _BOUNDS, [(row.labels, row.first_byte[0], f"{row.first_byte[1] / 1e6:.6f}") for row in upstream],
        )  # fmt: skip

    def _refusals(self, page: Page) -> None:
        page.family(
            "relay_limit_refusals_total", "counter", "Refusals by limiters and caps, by what was limited.",
            [({"error": code, "scope": scope}, count) for (code, scope), count in self._limits.items()],
        )  # fmt: skip
        page.family(
            "relay_unknown_refusals_total", "counter", "Refusals of requests that belong to no key; not in calls.",
            [({"error": ERROR_CODES[code]}, count) for code, count in self._engine.unknown_refusals.items()],
        )  # fmt: skip
        page.single(
            "relay_connections_turned_away_total", "counter", "Connections above server.connections_max.",
            self._engine.turned_away_total,
        )  # fmt: skip

    def _load(self, page: Page, figures: Figures) -> None:
        engine = self._engine
        connections = engine.open_connections + figures.other_connections
        page.single("relay_draining", "gauge", "1 while it stops.", int(engine.draining))
        page.single("relay_open_calls", "gauge", "Calls in flight.", figures.open_calls)
        page.single("relay_open_connections", "gauge", "Connections of clients.", connections)
        page.single("relay_connections_max", "gauge", "server.connections_max in force.", engine.connections_max)
        page.single("relay_waiting_bytes", "gauge", "Bytes of request bodies in memory.", engine.waiting_bytes)
        page.single("relay_waiting_bytes_max", "gauge", "server.waiting_bytes_max.", engine.waiting_bytes_max)
        page.single("relay_keys_loaded", "gauge", "Keys in memory.", figures.keys_loaded)
        page.single("relay_faults_total", "counter", "Faults of the relay's own.", engine.faults_total)

    def _store(self, page: Page, figures: Figures) -> None:
        journal = self._engine.journal
        if journal is not None:
            used = journal.size - journal.free_slots
            page.single("relay_journal_slots", "gauge", "Slots of the in-flight journal.", journal.size)
            page.single("relay_journal_slots_used", "gauge", "Slots of calls in flight or not yet committed.", used)
            page.single(
                "relay_journal_slots_uncommitted", "gauge", "Of those: calls that ended and are not yet committed.",
                journal.uncommitted,
            )  # fmt: skip
        page.single("relay_store_writable", "gauge", "0 while the store cannot be written.", int(figures.writable))
        page.single("relay_store_pending", "gauge", "Records and events that wait for the writer.", figures.pending)
        page.single(
            "relay_store_lag_seconds", "gauge", "How long the oldest of them has waited.",
            f"{figures.lag_seconds:.3f}",
        )  # fmt: skip
        page.single(
            "relay_store_events_dropped_total", "counter", "Events that the full queue did not take.",
            figures.events_dropped,
        )  # fmt: skip
        page.single(
            "relay_store_records_dropped_total", "counter", "Records of refused calls that a full queue did not take.",
            figures.records_dropped,
        )  # fmt: skip
        page.single(
            "relay_store_shortfall_credits_total", "counter", "Cost that no lot covered: not 0 is a fault; verify.",
            units.format_credits(figures.shortfall_nano),
        )  # fmt: skip
        page.family(
            "relay_output_dropped_total", "counter", "Records that access log or spans did not take in time.",
            [({"output": name}, count) for name, count in self.dropped().items()],
        )  # fmt: skip

    def _upstreams(self, page: Page) -> None:
        budget = self._engine.retry_budget
        page.single("relay_retries_total", "counter", "Attempts beyond the first of calls.", budget.retries_total)
        page.single(
            "relay_retries_refused_total", "counter", "Attempts that the retry budget did not allow.",
            budget.refused_total,
        )  # fmt: skip
        named = [({"channel": channel.name}, channel) for channel in self._channels()]
        for name, kind, text, field in (
            ("in_flight", "gauge", "Calls in flight.", "in_flight"),
            ("idle_connections", "gauge", "Kept connections without a call.", "idle_connections"),
            ("connects_total", "counter", "Connections that were opened.", "connects"),
            ("failures_total", "counter", "Attempts that failed.", "failures"),
            ("breaker_opened_total", "counter", "How often the breaker opened.", "opened"),
            ("keys", "gauge", "Upstream keys.", "keys"),
        ):
            page.family(
                f"relay_channel_{name}", kind, text, [(labels, getattr(channel, field)) for labels, channel in named]
            )
        page.family(
            "relay_channel_keys_resting", "gauge", "Upstream keys that rest, for all models or for some.",
            [(labels, len({key.key for key in channel.keys_resting})) for labels, channel in named],
        )  # fmt: skip
        page.family(
            "relay_channel_breaker_state", "gauge", "1 for the state that the breaker is in.",
            [
                ({**labels, "state": state}, int(channel.breaker == state))
                for labels, channel in named
                for state in BREAKER_STATES
            ],
        )  # fmt: skip
        page.family(
            "relay_channel_breaker_reason", "gauge", "1 for the last failure that its breaker counted.",
            [({**labels, "reason": channel.reason}, 1) for labels, channel in named if channel.reason is not None],
        )  # fmt: skip
