"""The scenarios: what load, which figure counts, which bar it is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from .cases import Case, json_case, stream_case


@dataclass(frozen=True)
class Load:
    """How the calls come. Closed loop unless `rate` (calls per second) or `rate_share` is set."""

    connections: int = 32
    rate: float = 0.0
    burst: int = 0  # open loop: so many calls at this rate, evenly, then a pause; 0: at random times
    pause_seconds: float = 0.0
    rate_share: float = 0.0  # open loop at this share of the slowest contender's closed-loop rate
    warmup_seconds: float = 1.0
    duration_seconds: float = 3.0
    drain_seconds: float = 10.0
    ramp_seconds: float = 0.0
    timeout_seconds: float = 30.0
    per_call_connection: bool = False


@dataclass(frozen=True)
class Bar:
    """A figure of `of` held against that of `against` in the same round: their `ratio`, their `difference` in the
    figure's own unit, or the figure of `of` alone (`absolute`). With `scenario`, `against` is taken from that
    one, which comes earlier in the run."""

    figure: str
    kind: str
    limit: float
    about: str
    of: str = "relay"
    against: str = "nginx"
    scenario: str = ""


@dataclass(frozen=True)
class Scenario:
    name: str
    about: str
    make_case: Callable[[], Case]
    load: Load
    figures: tuple[str, ...]  # shown in tables, the first one plotted first
    bars: tuple[Bar, ...] = ()
    client_tls: bool = False
    upstream_tls: bool = False
    contenders: tuple[str, ...] = ("direct", "nginx", "naive", "relay")
    make_background: Callable[[], Case] | None = None  # asked for all the while, `background_rate` times per second
    background_rate: float = 0.0
    fresh: bool = False  # start the contenders anew for every round: memory is counted from an idle start
    keys: int = 8  # of the relay, used in turn
    stock: tuple[int, int] = (0, 0)  # (keys, call records) that relay-grown holds besides those at work
    tags: frozenset[str] = field(default_factory=frozenset)

    @property
    def case(self) -> Case:
        return self.make_case()

    @property
    def background(self) -> Case | None:
        return self.make_background() if self.make_background else None


CALL = ("cpu_us_per_call", "calls_per_second", "latency_p50_us", "latency_p99_us", "latency_p99.9_us")
EVENT = (
    "cpu_us_per_event",
    "cpu_us_per_call",
    "events_per_second",
    "first_byte_p50_us",
    "lateness_p50_us",
    "lateness_p99_us",
    "lateness_p99.9_us",
)
LATENCY = (
    "latency_p50_us",
    "latency_p99_us",
    "latency_p99.9_us",
    "first_byte_p50_us",
    "first_byte_p99_us",
    "cpu_us_per_call",
)

_CPU_CALL = Bar("cpu_us_per_call", "ratio", 1.5, "CPU per call at most 1.5 x nginx")
_CPU_EVENT = Bar("cpu_us_per_event", "ratio", 1.2, "CPU per event at most 1.2 x nginx")
_TLS = Bar("cpu_us_per_call", "ratio", 2.5, "CPU per call at most 2.5 x nginx with the same TLS")
_ADDED = (
    Bar("latency_p50_us", "difference", 150, "p50 at most nginx + 0.15 ms"),
    Bar("latency_p99_us", "difference", 1000, "p99 at most nginx + 1 ms"),
    Bar("first_byte_p50_us", "difference", 150, "first byte p50 at most nginx + 0.15 ms"),
    Bar("first_byte_p99_us", "difference", 1000, "first byte p99 at most nginx + 1 ms"),
)
_RELAYS = ("direct", "nginx", "relay")


def _tls_rows() -> list[Scenario]:
    sides = {"client": (True, False), "upstream": (False, True), "both": (True, True)}
    rows = []
    for side, (client, upstream) in sides.items():
        where = "on both sides" if side == "both" else f"on the {side} side"
        rows.append(
            Scenario(
                f"tls-{side}",
                f"json-small with TLS {where}, connections kept",
                json_case,
                Load(),
                CALL,
                (_TLS,),
                client_tls=client,
                upstream_tls=upstream,
                contenders=_RELAYS,
            )
        )
        rows.append(
            Scenario(
                f"tls-{side}-stream",
                f"64-event streams with TLS {where}",
                partial(stream_case, "s", 64, gap_us=4000),
                Load(ramp_seconds=0.25),
                EVENT,
                (Bar("cpu_us_per_event", "ratio", 2.5, "CPU per event at most 2.5 x nginx with the same TLS"),),
                client_tls=client,
                upstream_tls=upstream,
                contenders=_RELAYS,
            )
        )
    return rows


def _prompt(name: str, prompt_bytes: int, connections: int, seconds: float) -> Scenario:
    limit = 4.0 * prompt_bytes / 1024
    return Scenario(
        name,
        f"JSON calls with a prompt of {prompt_bytes:,} bytes, {connections} connections",
        partial(json_case, name, prompt_bytes),
        Load(connections=connections, duration_seconds=seconds),
        CALL,
        (Bar("cpu_us_per_call", "difference", limit, "at most 4 us per KB of prompt above nginx"),),
        contenders=_RELAYS,
    )


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "json-small",
        "small JSON calls, closed loop, 32 kept connections",
        json_case,
        Load(),
        CALL,
        (_CPU_CALL,),
        tags=frozenset({"standard"}),
    ),
    Scenario(
        "json-connect",
        "small JSON calls, a new connection for every call",
        json_case,
        Load(per_call_connection=True),
        CALL,
    ),
    Scenario(
        "stream-64",
        "streams of 64 events, one every 4 ms, 32 at a time",
        partial(stream_case, "stream-64", 64, gap_us=4000),
        Load(ramp_seconds=0.25),
        EVENT,
        (Bar("cpu_us_per_call", "ratio", 1.4, "CPU per 64-event stream at most 1.4 x nginx"),),
        tags=frozenset({"standard"}),
    ),
    Scenario(
        "stream-64-flood",
        "streams of 64 events as fast as they go, one per packet, 32 at a time",
        partial(stream_case, "stream-64-flood", 64),
        Load(),
        EVENT,
    ),
    Scenario(
        "paced",
        "256 streams of 50 events per second each, one per packet",
        partial(stream_case, "paced", 250, gap_us=20_000),
        Load(connections=256, warmup_seconds=2, duration_seconds=5, ramp_seconds=1),
        EVENT,
        (_CPU_EVENT,),
    ),
    Scenario(
        "burst",
        "256 streams of 50 events per second each, eight per packet",
        partial(stream_case, "burst", 248, gap_us=160_000, packet_events=8),
        Load(connections=256, warmup_seconds=2, duration_seconds=5, ramp_seconds=1),
        EVENT,
        (
            Bar(
                "cpu_us_per_event",
                "ratio",
                1 / 3,
                "CPU per event at most a third of that of paced",
                against="relay",
                scenario="paced",
            ),
        ),
    ),
    Scenario(
        "streams-5000",
        "5,000 streams of 4 events per second each",
        partial(stream_case, "streams-5000", 60, gap_us=250_000),
        Load(
            connections=5000, warmup_seconds=6, duration_seconds=8, drain_seconds=60, ramp_seconds=5, timeout_seconds=60
        ),
        (
            "lateness_p99.9_us",
            "lateness_p50_us",
            "lateness_p99_us",
            "cpu_us_per_event",
            "memory_bytes_per_stream",
            "events_per_second",
        ),
        (
            Bar("lateness_p99.9_us", "difference", 20_000, "lateness p99.9 at most nginx + 20 ms"),
            Bar("memory_bytes_per_stream", "absolute", 24 * 1024, "at most 24 KiB per open stream above idle"),
        ),
        contenders=_RELAYS,
        fresh=True,
    ),
    Scenario(
        "half-load",
        "small JSON calls, open loop, at half the rate that the slowest can take",
        json_case,
        Load(connections=256, rate_share=0.5, duration_seconds=5),
        LATENCY,
        _ADDED,
        contenders=_RELAYS,
    ),
    Scenario(
        "half-load-stream",
        "64-event streams, open loop, 60 new ones per second",
        partial(stream_case, "half-load-stream", 64, gap_us=4000),
        Load(connections=256, rate=60, duration_seconds=5),
        ("first_byte_p50_us", "first_byte_p99_us", "lateness_p50_us", "lateness_p99_us", "cpu_us_per_event"),
        _ADDED[2:],
        contenders=_RELAYS,
    ),
    _prompt("prompt-100k", 100_000, 8, 3),
    _prompt("prompt-2m", 2_000_000, 4, 4),
    Scenario(
        "prompt-20m-beside",
        "small calls at 500 per second beside three 20 MB prompts per second",
        json_case,
        Load(connections=64, rate=500, duration_seconds=5),
        LATENCY,
        (Bar("latency_p99_us", "difference", 5000, "20 MB bodies delay other calls by at most 5 ms above nginx"),),
        contenders=_RELAYS,
        make_background=partial(json_case, "prompt-20m", 20_000_000),
        background_rate=3.0,
    ),
    *_tls_rows(),
    Scenario(
        "growth",
        "json-small with 1,000 keys at work; relay-grown has a million keys and ten million records",
        json_case,
        Load(),
        (*CALL, "ready_seconds"),
        (
            Bar("cpu_us_per_call", "ratio", 1.1, "grown at most 1.1 x ungrown", of="relay-grown", against="relay"),
            Bar("ready_seconds", "absolute", 1.0, "ready in at most 1 s with a million keys", of="relay-grown"),
        ),
        keys=1000,
        stock=(1_000_000, 10_000_000),
        contenders=("nginx", "relay", "relay-grown"),
    ),
)


def find(name: str) -> Scenario:
    """ValueError with the names there are."""
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    raise ValueError(f"no scenario {name!r}; there are: {', '.join(s.name for s in SCENARIOS)}")
