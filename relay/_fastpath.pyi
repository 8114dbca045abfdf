"""Specification of the compiled hot path. What is not listed here is not to be used from Python."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

ERROR_CODES: tuple[str, ...]
PLACE_NAMES: tuple[str, ...]  # of endpoints, by F_*

# estimator

TOKEN_UNIT: int

class TokenTable:
    """The automaton of one tokenizer family; `packed` as docs/tokens.md describes. ValueError if it is not one."""

    class_count: int
    state_count: int
    def __init__(self, packed: bytes) -> None: ...

def count_text(table: TokenTable, data: bytes) -> int:
    """Estimated tokens of decoded UTF-8 text, in 1/TOKEN_UNIT token."""

def count_pieces(table: TokenTable, pieces: list[bytes], bytewise: bool = False) -> int:
    """The same for text in pieces, cut anywhere; the result does not depend on the cuts."""

class Calibration:
    """Running ratio actual / estimate, clamped to [0.5, 3]; starts at `permille` / 1000."""

    def __init__(self, permille: int = 1000) -> None: ...
    def observe(self, estimated: int, actual: int) -> None:
        """Tokens; what is not positive teaches nothing."""
    def apply(self, estimated: int) -> int:
        """Corrected tokens, rounded up."""
    def export(self) -> tuple[int, int]: ...
    def load(self, estimated: int, actual: int) -> None:
        """What `export` gave; ValueError if it cannot be."""

# request scanner and usage tap

class RequestScanner:
    """Reads one request body in any pieces; fed from the compiled side only."""

    error: int
    error_param: bytes | None
    model: bytes | None
    def __init__(self, format: int, table: TokenTable) -> None: ...

class UsageTap:
    """Reads one answer body in any pieces; fed from the compiled side only."""

    usage_seen: bool
    terminal_seen: bool
    def __init__(self, format: int, body_kind: int, table: TokenTable) -> None: ...

def scan_request(format: int, body: bytes, table: TokenTable, cuts: tuple[int, ...] = ()) -> dict[str, Any]:
    """All that a RequestScanner finds in `body`, fed in pieces cut at the ascending offsets `cuts`.

    Keys: error (a name of ERROR_CODES), error_param, model, model_span, stream, output_limit, choices, include_usage,
    stream_options_span, usage_request (the edit that asks for usage: start, end, text), object_start, object_empty,
    background, priority, geo, web_search, stored_context, stored_names
    (conversation is there, previous_response_id is, its raw text), prompt_tokens, files (spans of the raw names),
    file_kinds (of each: file, container),
    prefix_start (of the 4 KiB by which calls of one conversation know each other: tools, else instructions, else
    messages; -1: there are not so many), and text (the counted text alone, in 1/TOKEN_UNIT token).
    """

def tap(format: int, kind: int, chunks: list[bytes], table: TokenTable, by_event: bool = False) -> dict[str, Any]:
    """All that a UsageTap finds in an answer that comes in `chunks`. Kinds: 0 JSON, 1 SSE, 2 JSON array of answers,
    3 JSON documents one after the other.

    Keys: the fields of Usage, usage_seen, output_seen, terminal_seen, finish_seen, error_seen, events, sequence_number,
    text (own count, 1/TOKEN_UNIT token), counted_tokens, delivered_tokens (Gemini: its last cumulative report and our
    count behind it), sides (bits: 1 and 2, input and output are reported; 4 and 8, a value of theirs is no number of
    tokens), hidden_tokens (output that need not be seen as text), searches_seen, boundaries (at_boundary behind each
    chunk) and, `by_event`, pieces: (bytes, an event ended, it was the usage event that `include_usage` brings).
    """

REPORT_DIMENSIONS: tuple[str, ...]
REPORT_DOUBTS: tuple[str, ...]

def weigh_report(
    found: dict[str, Any],
    own: dict[str, int],
    *,
    format: int,
    prompt_tokens: int = ...,
    output_tokens: int = ...,
    images: int = 0,
    video_seconds: int = 0,
    web_searches: int = ...,
    priority: bool = False,
    delivered: bool = True,
    shown: bool = False,
    final: bool = True,
    rate: Rate | None = None,
) -> dict[str, Any]:
    """The rule of evidence (oracle: tests/support/evidence_oracle.py): what is charged of a report.

    `found`: what `tap` found, or its fields of Usage with `sides`; `own`: usage by our own count, charged where the
    report is not believed. The numbers by name are the most that the request can have had; `shown`: pictures or sound
    were delivered; `final`: the answer has ended as it should. With a rate by the piece, only the pieces are charged.

    Keys: usage (fields of Usage), estimated (something of it is our own count), doubts: (one of REPORT_DIMENSIONS, one
    of REPORT_DOUBTS, what was reported, the bound or our count).
    """

def request_bounds(format: int, body: bytes, table: TokenTable, output_tokens_max: int = 0) -> dict[str, int]:
    """The most that an answer to this request can report: the numbers that `weigh_report` takes."""

# --- limits and money (oracles: tests/support/money_oracle.py) ---

STATUSES: tuple[str, ...]
"""Names of key and account statuses; the index is the number inside."""

class Scope:
    """Limits of one key, account or organisation, and what is used of them."""

    kind: str
    id: int
    rpm_limit: int
    tpm_limit: int
    concurrency_limit: int
    in_flight: int
    daily_cap_nano: int
    monthly_cap_nano: int
    day: int
    month: int
    spent_day_nano: int
    spent_month_nano: int
    reserved_nano: int
    tokens_per_call: int
    tokens_per_call_models: dict[bytes, int] | None

    def __init__(self, kind: str, id: int) -> None: ...
    def configure(
        self,
        *,
        now_ns: int,
        rpm: int = 0,
        tpm: int = 0,
        concurrency: int = 0,
        daily_nano: int = 0,
        monthly_nano: int = 0,
        tokens_per_call: int = 0,
        tokens_per_call_models: Mapping[bytes, int] | None = None,
    ) -> None:
        """Sets every limit (0: none); buckets keep what was used lately. ValueError before anything is changed."""

    def load_spend(self, day: int, daily_nano: int, month: int, monthly_nano: int) -> None: ...
    def state(self, now_ns: int, wall_ns: int) -> dict[str, int]:
        """Limits in force and what is left: requests_limit, requests_remaining, requests_reset_ns, tokens_*, ..."""

    def take_permits(self, which: int, permits: int, now_ns: int) -> int: ...
    def charge_permits(self, which: int, permits: int, now_ns: int) -> None: ...
    def give_back_permits(self, which: int, permits: int, now_ns: int) -> None: ...

class Rate:
    """Prices of one model on one card: int nano-credits per 10^6 tokens or per unit; discount in parts per 10^9."""

    model: bytes
    card: str
    input: int
    output: int
    cache_read: int
    cache_write: int
    cache_write_1h: int
    image: int
    video_second: int
    web_search: int
    audio_input: int
    audio_output: int
    image_input: int
    image_output: int
    audio_cache_read: int
    image_cache_read: int
    discount_ppb: int
    output_tokens_max: int
    prices_priority: bool
    inference_geo: bool
    prices_search: bool
    tools: dict[str, int]

    def __init__(
        self,
        *,
        model: bytes,
        card: str,
        input: int = 0,
        output: int = 0,
        cache_read: int = 0,
        cache_write: int = 0,
        cache_write_1h: int = 0,
        image: int = 0,
        video_second: int = 0,
        web_search: int = 0,
        audio_input: int = -1,
        audio_output: int = -1,
        image_input: int = -1,
        image_output: int = -1,
        audio_cache_read: int = -1,
        image_cache_read: int = -1,
        discount_ppb: int = 1_000_000_000,
        output_tokens_max: int = 0,
        inference_geo: int = 0,
        tools: Mapping[str, int] | None = None,
        tiers: Mapping[tuple[int, int], Mapping[str, int]] | None = None,
    ) -> None:
        """Tokens of audio and images at -1 are priced as text; image_output at -1 beside a price of images is 0.

        tiers: whole sets of prices by (prompt tokens above which they hold, service: 0 standard, 1 batch, 2 flex,
        3 priority). A call costs by the largest limit that its prompt, caches included, exceeds, and by the service
        that its answer names; a service that is not there costs as standard. ValueError: more than 8 limits.
        """

    def cost(
        self,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        cache_write_1h_tokens: int = 0,
        images: int = 0,
        video_seconds: int = 0,
        web_searches: int = 0,
        audio_input_tokens: int = 0,
        audio_output_tokens: int = 0,
        image_input_tokens: int = 0,
        image_output_tokens: int = 0,
        audio_cache_read_tokens: int = 0,
        image_cache_read_tokens: int = 0,
        service: int = 0,
    ) -> int:
        """Nano-credits, rounded up once; usage is clamped to [0, 2^40], the result to 2^61.

        Tokens of audio and images are among those of input and output.
        """

    def bound(
        self,
        prompt_tokens: int,
        output_tokens: int,
        images: int = 0,
        video_seconds: int = 0,
        web_searches: int = 0,
        priority: bool = False,
    ) -> int:
        """The most that such a call can cost: every token at its dearest price. `priority`: it asks for that."""

    def affordable(
        self,
        prompt_tokens: int,
        budget_nano: int,
        images: int = 0,
        video_seconds: int = 0,
        web_searches: int = 0,
        priority: bool = False,
    ) -> int:
        """The most output tokens with `bound` within the budget."""

class Balance:
    """Credits of one account: spendable now, and held by open calls; neither ever below zero."""

    account_id: int
    available_nano: int
    held_nano: int
    waiting_bytes: int  # of request bodies in memory
    balance_nano: int
    open_holds: int
    open_streams: int

    def __init__(self, account_id: int, balance_nano: int = 0) -> None: ...
    def add(self, nano: int) -> None: ...
    def take(self, nano: int, *, partial: bool = False) -> int:
        """Takes all of it or nothing (with `partial`: what is there); returns what was taken. Holds are untouched."""

class ApiKey:
    """What the relay knows of one credential while it is cached; changed in place by `update`."""

    public_id: bytes
    digest: bytes
    key_id: int
    account_id: int
    organisation_id: int
    scopes: tuple[Scope, ...]
    balance: Balance
    key_status: int
    account_status: int
    expires_ns: int
    endpoint_scopes: int
    models: frozenset[bytes] | None
    networks: bytes | None
    plan: str
    on_disconnect: int
    recent: bool  # has been used since whoever keeps the keys last looked
    generation: int
    calls: set[Any]
    last_used_ns: int

    def __init__(
        self, public_id: bytes, digest: bytes, key_id: int, account_id: int, organisation_id: int = 0
    ) -> None: ...
    def update(
        self,
        *,
        scopes: Iterable[Scope],
        balance: Balance,
        key_status: int = 0,
        account_status: int = 0,
        expires_ns: int = 0,
        endpoint_scopes: int = 0xFFFFFFFF,
        models: Iterable[bytes] | None = None,
        networks: bytes | None = None,
        plan: str = "",
        on_disconnect: int = 0,
    ) -> None: ...
    def check(
        self,
        *,
        wall_ns: int = 0,
        address: bytes | None = None,
        endpoint_scope: int = 0xFFFFFFFF,
        model: bytes | None = None,
    ) -> int:
        """Index into ERROR_CODES of the first of status, address, endpoint scope and model that fails; 0: none."""

    def digest_matches(self, digest: bytes) -> bool: ...

class Policy:
    """How much an admission holds, in tokens; the margin in parts per thousand of the estimated prompt."""

    hold_output_tokens: int
    hold_slice_tokens: int
    hold_slice_tokens_min: int
    prompt_margin_permille: int
    hold_web_searches: int

    def __init__(
        self,
        *,
        hold_output_tokens: int = 4096,
        hold_slice_tokens: int = 256,
        hold_slice_tokens_min: int = 16,
        prompt_margin_permille: int = 150,
        hold_web_searches: int = 5,
    ) -> None: ...

class Admission:
    """The hold of one call and everything else it took; 0 new, 1 open, 2 settled, 3 released."""

    state: int
    stream: bool
    balance: Balance | None
    rate: Rate | None
    hold_nano: int
    prompt_hold_tokens: int
    output_allowance: int
    output_bound: int
    output_limit: int
    max_cost_nano: int
    day: int  # on which the call began, by its id; -1: today
    priority: bool
    images: int
    video_seconds: int
    web_searches: int
    tokens_reserved: int
    retry_after_ns: int
    limited_scope: Scope | None
    wanted: int  # of a refusal: what the call may need (tokens, calls, nano-credits); -1: no number says it
    allowed: int  # ... and what the limit leaves
    cost_nano: int
    written_off_nano: int

    def py_admit(
        self,
        key: ApiKey,
        rate: Rate | None,
        *,
        prompt_tokens: int,
        output_bound: int = -1,
        choices: int = 1,
        stream: bool = False,
        max_cost_nano: int = -1,
        policy: Policy,
        now_ns: int,
        wall_ns: int,
    ) -> int:
        """0 and everything taken, or an index into ERROR_CODES and nothing taken."""

    def py_grow(self, counted_tokens: int, wall_ns: int) -> int:
        """0 and output_allowance >= counted_tokens, or an index into ERROR_CODES and nothing changed."""

    def py_correct_prompt(
        self,
        *,
        input_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        cache_write_1h_tokens: int = 0,
    ) -> None:
        """The upstream has said what the prompt was: the hold covers that from now on, be it more or less. What is
        missing is taken as far as it is there, and output_allowance shrinks to what the hold still covers."""

    def py_settle(
        self,
        *,
        now_ns: int,
        wall_ns: int,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        cache_write_tokens: int = 0,
        cache_write_1h_tokens: int = 0,
        images: int = 0,
        video_seconds: int = 0,
        web_searches: int = 0,
    ) -> int:
        """Charges the call; returns its cost. RuntimeError unless open."""

    def py_release(self, *, now_ns: int, forwarded: bool = False) -> None:
        """Gives everything back. RuntimeError unless open."""

    def py_reset(self) -> None: ...

class JobHold:
    """Credits held for one job; 1 open, 2 settled, 3 released."""

    state: int
    balance: Balance
    hold_nano: int
    def __init__(self, balance: Balance, scopes: tuple[Scope, ...], hold_nano: int, *, partial: bool = False) -> None:
        """ValueError where the balance does not cover it; with `partial` what is there is held."""
    def settle(self, cost_nano: int, max_cost_nano: int, wall_ns: int, *, day: int = -1) -> int:
        """Charges the job and gives the rest back; returns what was written off. `day`: on which it began, by its id.
        RuntimeError unless open."""
    def release(self) -> None:
        """Gives everything back. RuntimeError unless open."""

def limits_of(key: ApiKey, now_ns: int) -> tuple[int, int, int, int, int, int]:
    """The tightest limits: requests limit, remaining, reset_ns, tokens limit, remaining, reset_ns (limit 0: none)."""

# journal

JOURNAL_SLOT_SIZE: int
JOURNAL_HEADER_SIZE: int
JOURNAL_TEXT_AT: int

class Journal:
    """Slots of open calls in a writable buffer of whole slots (a mapped file). ValueError for another size."""

    size: int
    free_slots: int
    uncommitted: int
    def __init__(self, memory: memoryview | bytearray) -> None: ...
    def holds(self, call_id: int) -> bool:
        """Whether a call has ended and waits here for its record to be committed."""
    def committed(self, records: Sequence[tuple[Any, ...]]) -> None:
        """Frees the slots of call records that the store has committed."""
    def left_over(self) -> list[dict[str, Any]]:
        """Slots that are not free, as values for a call record, in the order of the calls' ids."""
    def clear(self) -> None: ...

# HTTP

TICKS_PER_SECOND: int
BODY_IDLE_TIMES: int  # a body may take so many times body_idle_seconds in all ...
BODY_BYTES_PER_SECOND: int  # ... and a second more for so many bytes

class FieldTable:
    """What is done with a header field, by name: lower-case bytes, at most 44; ValueError otherwise.

    `traced`: requests' `traceparent` is kept, for Engine.traceparents.
    """

    traced: bool
    def allow(self, name: bytes, dialect: int) -> None:
        """A request's field of this name goes on to upstreams of this dialect."""
    def drop(self, name: bytes) -> None:
        """An answer's field of this name does not reach a client."""
    def drop_prefix(self, prefix: bytes) -> None: ...

def decode_chunked(pieces: list[bytes]) -> tuple[bytes, str, bytes]:
    """A chunked body in pieces -> (data, "open" | "end" | "bad", bytes behind the end)."""

def keyed_hash(key: bytes, data: bytes) -> bytes:
    """SipHash-2-4-128 as 16 bytes: how verified secrets are known again. ValueError: a key not of 16 bytes."""

def parse_response_head(
    head: bytes, table: FieldTable
) -> tuple[int, str, int, bool, bool, bytes | None, bytes, bool] | None:
    """(status, framing, length, close, event stream, content encoding, fields that pass); None: garbage.

    Framing: "length", "chunked", "close", "none". RFC 9112, strictly.
    """

def parse_request_head(block: bytes, dialect: int, table: FieldTable) -> dict[str, Any]:
    """Field lines with the empty line -> what the front door makes of them; "odd": it must not serve the message."""

# routes

class Endpoint:
    """One route: its name in records, whose dialect, where it goes upstream (Gemini: b":generateContent")."""

    name: str
    dialect: int
    format: int
    def __init__(
        self,
        name: str,
        dialect: int,
        format: int,
        scope_bit: int,
        upstream_path: bytes,
        *,
        needs_model: bool = True,
        model_in_path: bool = False,
        stream_by_path: bool = False,
        free: bool = False,
        inference: bool = True,
        answer: int = 0,
    ) -> None: ...

# routing: decisions are functions of what is given; times are monotonic nanoseconds. The `py_` methods are for tests.

class Breaker:
    """Whether a channel is used.

    Closed (0), it counts failures among the last 100 attempts, those within the window. It opens (1) at `calls_min`
    attempts with at least `failure_percent` failed (0: never), or ten failures in a row. After `open_ns` it lets one
    probe at a time through (half open, 2): three good ones in a row close it, a failed one doubles `open_ns` up to the
    maximum. So does opening again within the window after it closed.
    """

    state: int
    calls_min: int
    failure_percent: int
    window_ns: int
    open_ns_min: int
    open_ns_max: int
    open_ns: int
    probe_ns: int
    closed_ns: int
    changed_ns: int
    probing: bool
    probes_good: int
    opened_total: int
    last_code: int  # index into ERROR_CODES of the last failure; 0: none
    def __init__(
        self,
        *,
        calls_min: int = 20,
        failure_percent: int = 50,
        window_ns: int = 30_000_000_000,
        open_ns_min: int = 2_000_000_000,
        open_ns_max: int = 60_000_000_000,
    ) -> None: ...
    def configure(
        self, *, calls_min: int, failure_percent: int, window_ns: int, open_ns_min: int, open_ns_max: int
    ) -> None: ...
    def py_succeeded(self, now: int) -> None: ...
    def py_failed(self, now: int, code: int = 0, may_open: bool = True) -> bool:
        """True where this opened it."""
    def py_way(self, now: int) -> int:
        """0 use it, 1 the next call has to be its probe, 2 not now."""
    def py_begin_probe(self, now: int) -> None: ...
    def py_end_probe(self, now: int, outcome: int, code: int = 0) -> bool:
        """Outcome 1 good, 0 failed, -1 neither. True where it closed or opened."""
    def py_recent_failures(self, now: int) -> int:
        """Of the last eight attempts, those that failed within a second."""

class RetryBudget:
    """Attempts beyond the first of calls: `percent` of the calls of the last ten seconds, and `per_second_min` x 10."""

    percent: int
    per_second_min: int
    retries_total: int
    refused_total: int
    def __init__(self, percent: int = 20, per_second_min: int = 10) -> None: ...
    def configure(self, percent: int, per_second_min: int) -> None: ...
    def py_call(self) -> None: ...
    def py_take(self) -> bool: ...
    def py_tick(self) -> None:
        """A quarter of a second has passed."""

class UpstreamKey:
    """One of the operator's keys at an upstream; `number` is its place in `api_keys`, from 1."""

    number: int
    salt: int
    rests_total: int
    def __init__(self, line: bytes, number: int) -> None: ...
    def resting(self, now_ns: int) -> list[tuple[str | None, int | None, Rest]]:
        """Its rests that are in force: upstream model and endpoint (F_*), None for all of them."""

class Rest:
    """Why, and until when, a key is of no use for something; monotonic nanoseconds.

    `probe_ns`: from when one call may try it, where there is no other way; `probing`: that call is on its way.
    """

    began_ns: int
    until_ns: int
    probe_ns: int
    wait_ns: int
    probing: bool
    doubt: bool
    code: int
    status: int

def pick_channel(candidates: list[tuple[int, int, int, int, int]], affinity: int, word1: int, word2: int) -> int:
    """The index of the channel picked from (priority, way, weight, load, salt), or -1; the words are random.

    The lowest priority with a way (0 open, 1 to be probed, 2 shut); a probe first; by affinity (not 0: weighted
    rendezvous, passing over what has far more than its share); else two drawn by weight, the second only if the first
    is clearly more loaded for its weight.
    """

class Channel:
    """One configured way to an upstream, and its pool of kept connections. `target` is the connect hook's own."""

    name: str
    dialect: int
    priority: int
    weight: int
    ask_usage: bool
    in_flight: int
    connects: int
    failures: int
    idle_connections: int
    connect_timeout_ns: int
    keys: list[UpstreamKey]
    breaker: Breaker
    tags: tuple[str, ...]
    retired: bool
    target: Any
    def __init__(
        self,
        name: str,
        dialect: int,
        host: bytes,
        base_path: bytes,
        key_lines: list[bytes],
        target: Any,
        *,
        query: bytes | None = None,
        set_lines: bytes = b"",
        dropped: frozenset[bytes] = frozenset(),
        priority: int = 0,
        weight: int = 1,
        tags: tuple[str, ...] = (),
        breaker: Breaker | None = None,
        ask_usage: bool = False,
        connect_timeout_ns: int = ...,
        first_byte_timeout_ns: int = ...,
        answer_timeout_ns: int = ...,
        stream_idle_timeout_ns: int = ...,
    ) -> None: ...
    def py_awake_key(self, model: str, where: int, affinity: int, now: int) -> int:
        """The number of the key that a call takes: in turn, or by affinity (not 0); 0 where all rest."""
    def py_rest_key(
        self, number: int, model: str, where: int, scope: int, now: int, rest_ns: int, code: int, status: int
    ) -> None: ...
    def py_key_good(self, number: int, model: str, where: int, sent_ns: int, now: int) -> None: ...
    def py_key_to_try(self, model: str, where: int, now: int) -> int: ...
    def py_wakes_ns(self, model: str, where: int) -> int:
        """Until when the first of its keys rests for this model at this endpoint (F_*)."""
    def py_way(self, model: str, where: int, now: int) -> int: ...
    def py_begin_probe(self, model: str, where: int, now: int) -> int: ...
    def py_attempt(self, model: str, where: int, probes: int, now: int, code: int = 0, wide: bool = False) -> int: ...
    places_opened_total: int
    off: bool  # by an operator's switch: it is not chosen
    off_message: str | None
    def shut(self) -> list[tuple[str | None, int | None, Breaker]]:
        """What is shut of it: the channel itself (None, None), or a model at an endpoint."""
    def wake(self, number: int = 0) -> None:
        """Keys rest no more, breakers close. With a key's number: that key alone."""
    def py_calm(self, now: int) -> bool:
        """Breaker closed, and no key rests: nothing to think about."""
    def adopt(self, old: Channel) -> None:
        """Goes on with the breaker and the resting keys of this channel in the configuration before."""
    def close_idle(self, older_than_ns: int = 0) -> None:
        """Closes connections unused since then (monotonic); 0 closes all."""

class UpstreamConnection(asyncio.Protocol):
    def __init__(self, channel: Channel) -> None: ...

class Route:
    """A model on a channel.

    upstream_model_json  its name there as JSON, None where it is the same on both sides
    base_path            in place of the channel's
    models_path          what stands between that and the model where the dialect has the model in its paths
    """

    channel: Channel
    upstream_model: str
    renamed: bool  # callers know it by another name
    def __init__(
        self,
        channel: Channel,
        upstream_model: str,
        table: TokenTable,
        upstream_model_json: bytes | None = None,
        *,
        base_path: bytes | None = None,
        models_path: bytes = ...,
        prompts: Calibration | None = None,
        outputs: Calibration | None = None,
    ) -> None: ...

class Model:
    """A public model name: its price (None: unpriced, refused) and the ways to it.

    `searches`: every answer to a chat is a search. `served_at`: the paths of its dialects; None without a price.
    """

    searches: bool
    served_at: str | None

    name: str
    rate: Rate | None
    def __init__(self, name: str, rate: Rate | None) -> None: ...
    def add_route(self, route: Route) -> None: ...
    def add_fallback(self, dialect: int, model: Model) -> None:
        """Tried when all channels of this model have failed in this dialect. All routes of `model` rename."""

    def routes_of(self, dialect: int) -> list[Route]: ...
    @property
    def elsewhere(self) -> str | None:
        """For a refusal in a dialect in which it has no route: its name, a blank and `served_at`."""

# calls

class Credential:
    """A secret that opens a key: public id, HMAC-SHA256 of the whole secret, expiry (wall clock, 0 never)."""

    public_id: bytes
    key: ApiKey
    dead: bool
    expires_ns: int
    def __init__(self, public_id: bytes, digest: bytes, key: ApiKey, expires_ns: int = 0) -> None: ...
    def is_over(self, wall_ns: int) -> bool: ...

class Call:
    """One call. Python sees it only while a connection is opened for it, or while it is set aside."""

    id: int
    attempts: int
    def facts(self) -> dict[str, Any]:
        """Of a call set aside: endpoint, key, body, fields, model, model_span, background, stream, files, claim, ..."""
    def proceed(self, channels: frozenset[str] | None = None) -> None:
        """Nothing stands in the way of a call that was set aside. `channels`: those that it may go to (None: all);
        where none of them serves it, it is refused."""
    def goes_to(self, model: bytes, route: Route) -> None:
        """Names the model and the channel of a job that Python makes for a call set aside, for its record."""
    def turn_down(
        self, code: int, param: str | None = None, wait_ns: int = 0, wanted: int = -1, allowed: int = -1
    ) -> None:
        """Refuses a call that was set aside. `wait_ns`: after which time it is worth another try. `wanted`, `allowed`:
        what it may need and what a limit leaves; -1: no number says it."""
    def answer(self, status: int, code: int, fields: bytes, body: bytes) -> None:
        """Answers a call that was set aside; `fields` are whole lines, without Content-Length."""
    def begin_pieces(self, status: int, fields: bytes, compressed: bool, wake: Callable[[], None]) -> bool:
        """The head of an event stream of Responses that answers a call set aside; False where the client has gone.

        `wake` is called when the client takes more, and when the call has ended: then look at `waiting` and `ended`.
        """
    def piece(self, data: bytes) -> bool:
        """More of that stream. False once the call has ended."""
    def end_pieces(self, code: int = 0) -> None:
        """Its end. With an index into ERROR_CODES, or without a last event seen, the stream is cut visibly."""
    @property
    def waiting(self) -> bool: ...
    @property
    def ended(self) -> bool: ...
    def connected(self, connection: UpstreamConnection) -> None: ...
    def connect_failed(self, timed_out: bool) -> None: ...
    def claim_known(self, first_id: int, same: bool) -> bool:
        """Its Idempotency-Key is its own (0), or has been used by another call, for the same body or not. False: it had
        ended before."""
    def claim_failed(self) -> None: ...

class FrontDoor(asyncio.Protocol):
    """Serves plain API calls itself and hands every other connection to `Engine.hooks.handover`."""

    def __init__(self, engine: Engine) -> None: ...

class AnswerReader:
    """Reads one answer of an upstream, in any pieces, by the grammar of the hot path. A bad one stays bad."""

    begun: bool  # the head of the answer itself is there, not of a 100 before it
    ended: bool
    bad: bool
    status: int
    length: int | None  # Content-Length
    encoding: bytes | None  # how the body is compressed, in lower case
    lines: bytes  # the field lines that may pass to a client, as they were written

    def __init__(self, table: FieldTable) -> None: ...
    def feed(self, data: bytes) -> bytes:
        """What of the body these bytes have, without its framing."""

    def end(self) -> bool:
        """The upstream has closed its side. Whether the answer is whole."""

class Bridge:
    """The client's side of a call that came through aiohttp's parser."""

    ended: bool
    identifying: bool  # the key is being loaded
    def __init__(
        self, engine: Engine, transport: asyncio.Transport, http10: bool, on_end: Callable[[bool], None]
    ) -> None: ...
    def open(
        self,
        endpoint_name: str,
        query: bytes | None,
        path_model: bytes | None,
        fields: bytes,
        more_secrets: list[bytes],
        form_type: bytes | None = None,
        bad_head: int = 0,
        bad_field: str | None = None,
        bad_key_field: bool = False,
        alpha: bool = False,
    ) -> None:
        """Begins the call.

        fields         all of them readable, with the empty line
        form_type      the Content-Type of a multipart form; the body is then read by the hook `read_form`
        bad_head       an error code: what the head asks for cannot be done; `bad_field` is to blame
        bad_key_field  a key may stand in it, so whose call it is cannot be known
        alpha          Google's v1alpha was asked for: the call goes on so
        """
    def read(self, data: bytes) -> bool:
        """More of the body; False once the call has ended."""
    def body_end(self) -> None: ...
    def gone(self) -> None: ...
    def refuse(self, code: int) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...

class Engine:
    """What all calls share: tables that decide, what is open, the sweep of deadlines, records that wait for the writer.

    hooks           relay.proxy.hooks.Hooks
    pepper          key of the credentials' HMAC
    default_tables  TokenTable by dialect, for prompts whose model is not known yet
    reasons         HTTP reason phrases by status
    """

    hooks: Any
    field_table: FieldTable
    models: dict[bytes, Model]
    journal: Journal | None
    free_rate: Rate
    default_tables: list[TokenTable]
    policy: Policy
    records: list[tuple[Any, ...]]
    traceparents: dict[int, bytes]  # of the records that wait, by id, as callers sent them
    new_objects: list[
        tuple[str, bytes, int, int, str, int]
    ]  # kind, id, account, key, channel, unix ms; sandboxes: hash
    draining: bool
    store_writable: bool
    memory_short: bool  # new calls are refused as overloaded
    attempts_max: int
    retry_budget: RetryBudget
    affinity: bool  # calls of one key with the same beginning of a prompt go to the same channel and upstream key
    channel_scope: int  # the bit of a key's scopes that lets it name a channel
    body_bytes_max: int
    connections_max: int
    other_connections: int  # those that are not the front door's
    waiting_bytes_max: int
    waiting_bytes: int  # of request bodies in memory
    turn_away_answer: bytes | None  # for connections above connections_max
    turned_away_total: int
    header_ticks: int
    body_idle_ticks: int
    write_stall_ticks: int
    keep_alive_ticks: int
    heartbeat_ns: int
    read_on_ns_max: int
    read_on_tokens_max: int
    keep_source_ip: bool
    keep_user_agent: bool
    usage_in_answers: bool
    cors: dict[bytes, bytes] | None  # lines of answers by origin; None: pages of other origins may not call
    cors_others: bytes  # for an origin that is not among them
    open_calls: int
    open_connections: int
    calls_total: int
    refused_total: int
    faults_total: int
    unknown_refusals: dict[int, int]
    limit_refusals: dict[tuple[int, int, str, str | None], int]
    report_doubts: dict[tuple[str, str, str, str], tuple[int, int, int]]
    def __init__(
        self, hooks: Any, pepper: bytes, default_tables: list[TokenTable], reasons: dict[int, bytes], seed: int
    ) -> None: ...
    def doubt_report(self, channel: str, model: str, dimension: str, why: str, reported: int, expected: int) -> None:
        """A report that was not believed, or is far from what was sent, for the events."""

    def py_hold_body(self, owner: Balance | None, size: int, body_bytes: int) -> bool:
        """Counts more of a body, `body_bytes` with it, as waiting in memory. False: beyond the limit for all, or beyond
        its account's share. Either way it has to be released."""

    def py_release_body(self, owner: Balance | None, size: int) -> None: ...
    def add_endpoint(self, endpoint: Endpoint, paths: list[bytes]) -> None: ...
    def continue_ids(self, last: int) -> int:
        """Ids go on behind this one, whatever the clock says. Returns how many milliseconds the clock is behind it."""

    def put_credential(self, public_id: bytes, credential: Credential | None) -> None: ...
    def hmac(self, text: bytes) -> bytes:
        """HMAC-SHA256 under the pepper: for what has to be known again and must not be kept."""
    def load_failed(self, public_id: bytes) -> None: ...
    def forget_credential(self, public_id: bytes) -> None: ...
    def credential(self, public_id: bytes) -> Credential | None: ...
    def is_no_key(self, public_id: bytes) -> bool:
        """Whether the store has been asked for this public id and has none."""
    def opens(self, credential: Credential, secret: bytes) -> bool: ...
    def busy_keys(self) -> set[int]:
        """Numbers of the keys that open calls belong to, admitted or not."""

    def stop_calls(self, key: ApiKey, code: int) -> int:
        """Ends every call in flight of a key, each with its settlement; how many."""
    def stop_all(self, code: int) -> None: ...
    def next_id(self) -> int:
        """The id of a call that another part of the relay serves."""
    def sweep(self) -> None: ...
    def close_clients(self, idle_only: bool) -> None: ...

class Attempts:
    """The attempts of one call that Python sends: routed, counted and judged like those of the hot path.

    `begin` says 0, then `good` or `bad` once the upstream has shown what it is, `another` instead where it failed, and
    `leave` at the end, whatever happened.
    """

    route: Route | None  # of the attempt under way or the last one
    count: int
    wait_ns: int  # where `begin` said no: until a channel may be there again
    def __init__(self, engine: Engine, routes: list[Route], where: int = ...) -> None: ...
    def begin(self) -> int:
        """Chooses channel and key. 0, or an index into ERROR_CODES: there is no way now."""
    message: str | None  # where `begin` said that everything is switched off: the operator's words
    def begin_there(self, number: int = 0) -> None:
        """On the first way, whatever is known of it or switched off: with that key, or one that is awake."""
    def key_line(self) -> bytes:
        """The header line with the upstream key of the attempt under way; empty where the channel has none."""
    def good(self) -> None:
        """The upstream answers calls: for its breaker."""
    def bad(self, code: int) -> None:
        """The upstream failed, and not because of its key or of this call: for its breaker."""
    def rest_key(self, rest_ns: int, scope: int, account: bool, status: int = 0) -> None:
        """The key of this attempt was refused (`account`), or is above its limits."""
    def another(self, *, key_refused: bool, channels: bool) -> bool:
        """This attempt failed: begins the next one, with another key of the same channel where only this one's was
        refused, else, with `channels`, on another channel. False: there is none, or not in the budget."""
    def leave(self) -> None:
        """The call does not occupy its channel any more."""

class Session:
    """The money of one realtime session: hold, journal slot, record. `open` says 0 before anything else is called."""

    id: int
    retry_after_ns: int
    limited_scope: Scope | None
    def __init__(
        self, engine: Engine, call_id: int, key: ApiKey, model: Model, path: str, address: str | None, agent: str | None
    ) -> None: ...
    def open(self, prompt_tokens: int, max_cost_nano: int = -1) -> int:
        """0 and everything taken, or an index into ERROR_CODES and nothing taken."""
    def forwarded(self, route: Route) -> None: ...
    def accepted(self) -> None: ...
    def reported(
        self,
        *,
        input_tokens: int = 0,
        output_tokens: int = 0,
        cache_read_tokens: int = 0,
        audio_input_tokens: int = 0,
        audio_output_tokens: int = 0,
        image_input_tokens: int = 0,
        audio_cache_read_tokens: int = 0,
        image_cache_read_tokens: int = 0,
        estimated: bool = False,
    ) -> int:
        """A response has ended with this usage, the provider's or our estimate. 0, or an index into ERROR_CODES: the
        session has to end."""
    def counted(
        self, prompt_tokens: int, output_tokens: int, *, audio_input_tokens: int = 0, audio_output_tokens: int = 0
    ) -> int:
        """What the response that is not finished has used so far; sound is among it. As `reported`."""
    def beside(self, lines: tuple[tuple[str, str | None, int, int, int, int, int, int, int, int, int], ...]) -> int: ...
    def end(self, code: int, status: int) -> None:
        """The one ending: charged for what was reported and counted, or released; the record is written."""

# -- fold.pxi: the store's writer

def fold_calls(
    records: list[tuple[Any, ...]],
    shapes: dict[tuple[Any, ...], int],
    shape_id: Callable[[tuple[Any, ...]], int],
    last_used: dict[int, int],
) -> tuple[
    list[Any], list[Any], list[Any], list[int], list[int], list[tuple[int, int, int]], list[tuple[int, int]], list[Any]
]:
    """A group of call records into values for the store's statements; see fold.pxi for the shape of each list."""

# -- tally.pxi: what /metrics says about calls

TALLY_BOUNDS_US: tuple[int, ...]
"""Upper bounds of the histograms' buckets."""
TALLY_SUMS: tuple[str, ...]
_Histogram = tuple[tuple[int, ...], int]
_Shape = tuple[str, str | None, str | None, int, str | None]

class Tally:
    """Call records counted; bounded: beyond 10,000 combinations everything new counts as "other"."""

    def __init__(self) -> None: ...
    def add(self, records: list[tuple[Any, ...]]) -> None: ...
    def ended(self) -> list[tuple[_Shape, int]]:
        """Calls by (path, model, channel, status, error code)."""
    def by_route(
        self,
    ) -> list[tuple[tuple[str | None, str | None], tuple[int, ...], tuple[int, ...], _Histogram, _Histogram]]:
        """By (model, channel): sums by TALLY_SUMS, calls by USAGE_SOURCES, histograms of latency and first byte.

        A histogram is (counts by TALLY_BOUNDS_US and above, sum in microseconds). Calls that had no channel are neither
        among the sources nor in the histograms.
        """
