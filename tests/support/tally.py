"""The tally of call records (relay/fastpath/tally.pxi) in plain Python."""

from bisect import bisect_left
from collections import defaultdict
from typing import Any

from relay._fastpath import TALLY_BOUNDS_US
from relay.records import CALL_RECORD_FIELDS, USAGE_SOURCES

SERIES_MAX = 10_000
ROUTES_MAX = 2_000
MEASURES = CALL_RECORD_FIELDS[12:19]


class Tally:
    def __init__(self) -> None:
        self.calls: dict[Any, int] = {}
        self.route_of: dict[Any, Any] = {}
        self.routes: dict[Any, dict[str, Any]] = {}

    def add(self, records: list[Any]) -> None:
        for record in records:
            row = dict(zip(CALL_RECORD_FIELDS, record, strict=False))
            shape = (row["path"], row["model"], row["channel"], row["status"], row["error_code"])
            name = (row["model"], row["channel"])
            if shape not in self.calls and len(self.calls) >= SERIES_MAX:
                shape, name = ("other", "other", "other", 0, "other"), ("other", "other")
            if shape not in self.calls:
                if name not in self.routes and len(self.routes) >= ROUTES_MAX:
                    name = ("other", "other")
                self.route_of[shape] = name
                self.calls[shape] = 0
            self.calls[shape] += 1
            route = self.routes.setdefault(
                self.route_of[shape],
                {"sums": defaultdict(int), "sources": defaultdict(int), "latency": [], "first_byte": []},
            )
            for field in (*MEASURES, "cost_nano", "write_off_nano"):
                route["sums"][field] += row[field]
            if row["channel"] is not None:
                route["sums"]["retries"] += max(row["attempts"] - 1, 0)
                route["sources"][row["usage_source"]] += 1
                route["latency"].append(row["latency_us"])
                route["first_byte"] += [row["first_byte_us"]] if row["first_byte_us"] is not None else []

    def ended(self) -> list[Any]:
        return list(self.calls.items())

    def by_route(self) -> list[Any]:
        found = []
        for name, route in self.routes.items():
            sums = tuple(route["sums"][field] for field in (*MEASURES, "cost_nano", "write_off_nano", "retries"))
            sources = tuple(route["sources"][source] for source in USAGE_SOURCES)
            found.append((name, sums, sources, histogram(route["latency"]), histogram(route["first_byte"])))
        return found


def histogram(values: list[int]) -> tuple[tuple[int, ...], int]:
    counts = [0] * (len(TALLY_BOUNDS_US) + 1)
    for value in values:
        counts[bisect_left(TALLY_BOUNDS_US, value)] += 1
    return tuple(counts), sum(values)
