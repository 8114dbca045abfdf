"""The composition root: builds every part, starts and stops them in order."""

import asyncio
import contextlib
import gc
import http
import logging
import os
import secrets
import signal
import socket
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import orjson
import uvloop
from aiohttp import web

from relay import __version__, _fastpath, activation, capacity, hardening, quiet
from relay import config as configuration
from relay._fastpath import Engine, FrontDoor, Rate
from relay.config import Config
from relay.config_values import ConfigError, Fault, Listen
from relay.control import admin, health, pricelist
from relay.control.chatapps import ChatApps
from relay.control.customer import Caller, CustomerApi
from relay.control.failures import CommandError
from relay.control.live import LiveBalance, ScopeView
from relay.control.operations import Operations
from relay.control.pepper import Pepper
from relay.control.place import NO_FILE, open_store
from relay.errors import ERRORS
from relay.observe.metrics import Figures, Metrics
from relay.observe.outlets import Outlets
from relay.policy import pricing, schedule
from relay.policy.calibration import Calibrations
from relay.policy.routing import ChannelState, KeyRests, channel_state
from relay.proxy import catalogue
from relay.proxy.addresses import Addresses
from relay.proxy.connect import Connector, tls_context
from relay.proxy.expiry import expire_credits
from relay.proxy.hooks import Hooks
from relay.proxy.idempotency import KEPT_MS as IDEMPOTENCY_KEPT_MS
from relay.proxy.idempotency import IdempotencyKeys
from relay.proxy.keyring import Keyring
from relay.proxy.server import ApiServer, refusal
from relay.proxy.side import Side
from relay.proxy.tlsdoor import TlsDoor
from relay.proxy.trial import trials
from relay.records import C_ID, MS_PER_DAY
from relay.storage import Store, StoreError
from relay.storage.ownership import adopt
from relay.storage.rows import ScheduledRatesRow, SwitchRow
from relay.wire import errors as wire_errors
from relay.wire import headers as wire_headers
from relay.wire import models as wire_models
from relay.wire import queries
from relay.wire.cors import Cors
from relay.wire.endpoints import D_GEMINI, D_OPENAI, DIALECT_NAMES, Endpoint

log = logging.getLogger("relay")

SWEEP_SECONDS = 1 / _fastpath.TICKS_PER_SECOND
# How long records wait for the store, by durability. With "power", a settlement is on the disk within 50 ms: this, the
# store's own interval, and the disk.
FLUSH_SECONDS = {"process": 0.1, "power": 0.01}
# While there are many: handed over by the thousand, they would keep calls waiting, and have left the caches.
FLUSH_BUSY_SECONDS = 0.02
FLUSH_BUSY_RECORDS = 64
LOOP_SPARE_PERCENT = 75  # of a core: while the event loop uses less, the writer pauses within its groups
IDLE_UPSTREAM_SECONDS = 50.0  # providers and their load balancers close idle connections after about a minute
BACKLOG = 4096
UNSENT_BYTES_MAX = 65_536  # of a connection, in the kernel: less than the 256 KiB that may wait in all
# A call makes and drops a dozen tracked objects and no cycles; records wait for the writer by the hundred. Python's
# default (700) would walk those again and again.
GC_THRESHOLDS = (20_000, 20, 50)
CALIBRATION_SECONDS = 600
SCHEDULE_SECONDS = 30.0  # between two looks at the clock, which may be put
RETENTION_SECONDS = 3600.0  # between two deletions of what is older than [retention] allows
RECORDS_WAITING_MAX = 50_000  # about 30 MB of records that wait for a store that cannot write
# Each key in memory is looked at about once a minute, some every second.
KEYS_LOOK_SECONDS = 60
KEYS_LOOKED_AT_MIN = 1
EXPIRY_SECONDS = 30.0  # between two looks for credits whose time is up: within a minute they are gone
UNKNOWN_MODELS_SECONDS = 5.0  # between two times that names of unknown models are told
CALIBRATION_NAME = "calibration.json"
CLOCK_BEHIND_MS_MAX = 1000  # a smaller step back is not worth a word
FIRST_REQUEST_SECONDS = 1.0  # while draining: for connections that were let in just before
REASONS = {status.value: status.phrase.encode() for status in http.HTTPStatus} | {499: b"Client Closed Request"}


class Relay:
    """One running relay. Also the `Live` side of the control plane."""

    def __init__(self, config: Config, store: Store, pepper: Pepper, *, descriptors_max: int = 2**31) -> None:
        self.config = config
        self._descriptors_max = descriptors_max
        self._store = store
        self._began = time.monotonic()
        self._connector = Connector()
        self._tls = tls_context()
        self.hooks = Hooks(Addresses(config.server.trusted_proxies), self._connector)
        self.engine = Engine(self.hooks, pepper.value, catalogue.default_tables(), REASONS, secrets.randbits(63))
        self.engine.free_rate = Rate(model=b"", card="")
        catalogue.install_endpoints(self.engine)
        self.keyring = Keyring(store, self.engine, lambda: self.config)
        self.hooks.load_key = self.keyring.load_key
        self._channels: list[_fastpath.Channel] = []
        self._listed: dict[str, wire_models.Listed] = {}
        self._calibrations = load_calibrations(Path(config.server.data_dir))
        self.api = ApiServer(
            self.engine,
            self._local,
            header_seconds=config.timeouts.header_seconds,
            body_idle_seconds=config.timeouts.body_idle_seconds,
            write_stall_seconds=config.timeouts.write_stall_seconds,
        )
        self.hooks.handover = self.api.take_over
        self.hooks.on_event = self._channel_event
        idempotency = IdempotencyKeys(store, pepper.value)
        self.hooks.claim, self.hooks.unclaim = idempotency.claim, idempotency.unclaim
        self.side = Side(
            store, self.engine, self.keyring, self.hooks, idempotency, self.api, self._tls, lambda: self.config
        )
        self.metrics = Metrics(self.engine, self._figures, self.channel_states)
        self.metrics.jobs = self.side.jobs
        self.outlets = Outlets()
        self.metrics.dropped = self.outlets.dropped
        self._metrics_listener: health.MetricsListener | None = None
        self.operations = Operations(store, self, config, pepper)
        self._socket = admin.SocketServer(self.operations, Path(config.server.data_dir))
        self._servers: list[asyncio.Server] = []
        self._tls_door: TlsDoor | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stated: Config | None = None  # what the file says, without scheduled rates; None: nothing is in force
        self._schedule: list[ScheduledRatesRow] = []
        self._schedule_changed = asyncio.Event()
        self._repriced_ms = time.time_ns() // 1_000_000  # what was due by then is in force
        self._started_with = config  # what some keys mean until the next start
        self.stopping = asyncio.Event()
        self.stop_now = asyncio.Event()
        self.failure: str | None = None
        self.records_dropped = 0  # of refused calls, while the store could not write
        self._memory_bytes_max = capacity.memory_limit_bytes(config.server.memory_bytes_max)

    # -- life

    async def start(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the listeners. Raises OSError where one cannot be had."""
        self.engine.journal = self._store.open_journal(self.config.server.calls_max)
        await self._continue_ids()
        self.outlets.use(self.config.observe, self.config.file)
        self.engine.field_table.traced = bool(self.config.observe.spans)
        await self._apply(self.config)
        await self.side.start()
        self._store.on_fatal(self._store_failed)
        self._store.on_flush(self._hand_over_records)  # `relay calls` shows every call that has ended
        health.add_routes(
            self.api.app,
            not_ready=self._not_ready,
            metrics=self.metrics.page,
            operator_token=self._operator_token,
        )
        admin.add_routes(self.api.app, self.operations, operator_token=self._operator_token)
        CustomerApi(self._store, self, lambda: self.config, self._authenticate).add_routes(self.api.app)
        ChatApps(self._store, self, self._authenticate).add_routes(self.api.app)
        await self.api.start()
        try:
            await self._listen(sockets)
            await self._socket.start()
            await self._listen_for_metrics()
        except BaseException:
            await self.stop()
            raise
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(task)
            for task in (self._sweep(), self._flush(), self._forget(), self._expire(), self._reprice())
        ]
        gc.collect()
        gc.freeze()  # what start-up made lives for ever: collections need not walk it again
        gc.set_threshold(*GC_THRESHOLDS)

    async def _continue_ids(self) -> None:
        """A clock that was put back must not give calls the ids of others: they would count as settled already."""
        newest = await self._store.calls(limit=1)
        behind_ms = self.engine.continue_ids(newest[0].id) if newest else 0
        if behind_ms > CLOCK_BEHIND_MS_MAX:
            log.warning("the clock is %.0f s behind the last recorded call: ids go on from there", behind_ms / 1000)

    async def _listen(self, sockets: list[socket.socket] | None) -> None:
        loop = asyncio.get_running_loop()
        server = self.config.server
        listen = server.listen

        def front_door() -> asyncio.Protocol:
            return self._tls_door() if self._tls_door is not None else cast(asyncio.Protocol, FrontDoor(self.engine))

        if server.tls_certificate:
            context = _server_tls(server.tls_certificate, server.tls_key)
            self._tls_door = TlsDoor(self.engine, context, lambda: self.config.timeouts.header_seconds)

        if sockets:
            for given in sockets:
                bound_waiting(given)
                create = loop.create_unix_server if given.family == socket.AF_UNIX else loop.create_server
                self._servers.append(await create(front_door, sock=given, backlog=BACKLOG))
            return
        try:
            if listen.unix_path:
                made = await loop.create_unix_server(front_door, listen.unix_path, backlog=BACKLOG)
            else:
                made = await loop.create_server(front_door, listen.host, listen.port, backlog=BACKLOG)
        except OSError as error:
            # The loop names the address as a Python tuple. A failed name resolution has a number below 0.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
            raise OSError(f"server.listen: cannot listen on {listen}: {reason}") from error
        for bound in made.sockets:
            bound_waiting(bound)
        self._servers.append(made)

    async def _listen_for_metrics(self) -> None:
        listen = self.config.observe.metrics_listen
        if listen is None:
            return
        listener = health.MetricsListener(listen, self.metrics.page)
        try:
            await listener.start()
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
            raise OSError(f"observe.metrics_listen: cannot listen on {listen}: {reason}") from error
        self._metrics_listener = listener
        log.info("metrics on %s", listener.address)

    @property
    def port(self) -> int:
        """The TCP port that was bound (for `listen` with port 0)."""
        return int(self._servers[0].sockets[0].getsockname()[1])

    @property
    def address(self) -> str:
        """Where it listens, with the port that the system gave for port 0."""
        bound = self._servers[0].sockets[0].getsockname()
        if not isinstance(bound, tuple):
            return f"unix:{bound}"
        return str(Listen(host=bound[0], port=bound[1]))

    async def stop(self) -> None:
        """Drains: idle connections close at once, calls in flight finish up to `drain_seconds`, then are ended."""
        self.engine.draining = True
        for server in self._servers:
            server.close()
        await asyncio.sleep(0.01)  # connections that were accepted in this turn come in: they are served as well
        self.engine.close_clients(True)
        self.api.close_idle()
        began = time.monotonic()
        while self.engine.open_calls or self.engine.open_connections or self.side.open_calls:
            waited = time.monotonic() - began
            if waited >= self.config.server.drain_seconds or self.stop_now.is_set():
                break
            if not self.engine.open_calls and not self.side.open_calls and waited >= FIRST_REQUEST_SECONDS:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stop_now.wait(), 0.05)
        self.engine.stop_all(_fastpath.ERROR_CODES.index("drain_deadline"))
        self.side.desk.stop()
        await self.api.stop(1.0)
        self.engine.close_clients(False)
        await self._connector.close()
        await self.side.stop()
        for channel in self._channels:
            channel.retired = True
            channel.close_idle()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._socket.stop()
        if self._metrics_listener is not None:
            await self._metrics_listener.stop()
        self._hand_over_records()
        self._hand_over_unknown_models()
        await asyncio.to_thread(self.outlets.close)
        save_calibrations(Path(self.config.server.data_dir), self._calibrations)

    async def _sweep(self) -> None:
        ticks = 0
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.engine.store_writable = self._store.writable
            self.engine.other_connections = self.api.connections
            self.engine.sweep()
            if self._descriptors_used() > self._descriptors_max - capacity.DESCRIPTORS_RESERVED:
                for channel in self._channels:
                    channel.close_idle()
            ticks += 1
            if ticks % (CALIBRATION_SECONDS * _fastpath.TICKS_PER_SECOND) == 0:
                save_calibrations(Path(self.config.server.data_dir), self._calibrations)
            if ticks % _fastpath.TICKS_PER_SECOND == 0:
                self._watch_memory()
                self._watch_files()
                self._hand_over_records()  # an account that is dropped must be whole in the store
                self.keyring.forget_unused(KEYS_LOOKED_AT_MIN + self.keyring.loaded_keys // KEYS_LOOK_SECONDS)
                self.api.sweep()
                self.side.desk.stop_expired(time.time_ns())
                idle_before = time.monotonic_ns() - round(IDLE_UPSTREAM_SECONDS * 1e9)
                for channel in self._channels:
                    channel.close_idle(idle_before)

    def _figures(self) -> Figures:
        self._hand_over_records()  # so that a scrape shows every call that has ended
        store = self._store
        return Figures(
            pending=store.pending,
            lag_seconds=store.lag_seconds,
            writable=store.writable,
            events_dropped=store.events_dropped,
            records_dropped=self.records_dropped,
            shortfall_nano=store.shortfall_nano,
            other_connections=self._other_connections,
            descriptors=self._descriptors_used(),
            keys_loaded=self.keyring.loaded_keys,
            open_calls=self.open_calls,
        )

    def _watch_memory(self) -> None:
        """Refuses new calls while the process is larger than it may be."""
        short = self.engine.memory_short
        limit = self._memory_bytes_max * (capacity.MEMORY_BACK_PERCENT if short else 100) // 100
        if capacity.resident_bytes() <= limit:
            self.engine.memory_short = False
            if short:
                log.warning("memory: below server.memory_bytes_max again")
            return
        self.engine.memory_short = True
        if not short:
            log.warning("memory: above server.memory_bytes_max (%d), new calls are refused", self._memory_bytes_max)
        for channel in self._channels:
            channel.close_idle()
        capacity.give_memory_back()

    def _watch_files(self) -> None:
        """Refuses calls while the store's files are gone: nothing that is written to them would be there again."""
        before, lost = self._store.lost, self._store.look_for_files()
        self.engine.store_writable = self._store.writable
        if lost and not before:
            log.critical("%s: no calls are served. Put it back, or stop the relay and restore a backup", lost)
        elif before and not lost:
            log.warning("the store's files are back: calls are served again")

    def _descriptors_used(self) -> int:
        upstream = sum(channel.in_flight + channel.idle_connections for channel in self._channels)
        return self.engine.open_connections + self._other_connections + upstream

    @property
    def _other_connections(self) -> int:
        """Those that aiohttp's parser has, and those whose TLS handshake is under way."""
        return self.api.connections + (self._tls_door.handshakes if self._tls_door is not None else 0)

    async def _flush(self) -> None:
        began, used = time.monotonic(), time.thread_time()
        told = began
        seconds = FLUSH_SECONDS[self._store.durability]
        while True:
            await asyncio.sleep(seconds)
            now, used_now = time.monotonic(), time.thread_time()
            self._store.take_time((used_now - used) * 100 < (now - began) * LOOP_SPARE_PERCENT)
            began, used = now, used_now
            busy = len(self.engine.records) >= FLUSH_BUSY_RECORDS
            seconds = min(FLUSH_SECONDS[self._store.durability], FLUSH_BUSY_SECONDS if busy else 1.0)
            self._hand_over_records()
            await self.side.flush()
            if now - told >= UNKNOWN_MODELS_SECONDS:
                told = now
                self._hand_over_unknown_models()

    async def _forget(self) -> None:
        """Retention: call records and events go when they are too old; their sums stay."""
        while True:
            kept_ms = self.config.retention.calls_days * MS_PER_DAY
            try:
                await self.side.forget(time.time_ns() // 1_000_000)
                await self._store.delete_calls_before(time.time_ns() // 1_000_000 - kept_ms)
                await self._store.delete_idempotency_keys_before(time.time_ns() // 1_000_000 - IDEMPOTENCY_KEPT_MS)
            except StoreError as error:  # a full disk heals; what does not is told to `on_fatal`
                log.warning("old call records could not be deleted (%s)", type(error).__name__)
            await asyncio.sleep(RETENTION_SECONDS)

    async def _expire(self) -> None:
        """Takes away credits whose time is up."""
        while True:
            try:
                await expire_credits(self._store, self.keyring, time.time_ns() // 1_000_000)
            except StoreError as error:  # the next pass does it
                log.warning("credits could not be expired (%s)", type(error).__name__)
            await asyncio.sleep(EXPIRY_SECONDS)

    def _hand_over_records(self) -> None:
        records, refusals = self.engine.records, self.engine.limit_refusals
        if records or refusals:
            self.metrics.count(records, refusals)
        if records:
            self.engine.records = []
            traceparents, self.engine.traceparents = self.engine.traceparents, {}
            self.outlets.put(records, traceparents)
            room = max(0, RECORDS_WAITING_MAX - self._store.pending)
            if len(records) > room and self.engine.journal is not None:
                # The store cannot write. What was admitted waits in the journal too, and is bounded by it. Refusals go.
                held = self.engine.journal.holds
                kept = records[:room] + [record for record in records[room:] if held(record[C_ID])]
                self.records_dropped += len(records) - len(kept)
                records = kept
            self._store.append_calls(records)
        if self.engine.report_doubts:
            self._hand_over_doubts()
        if refusals:
            self.engine.limit_refusals = {}
            now_ms = time.time_ns() // 1_000_000
            self._store.append_events(
                [
                    (now_ms, "limit", code, account_id, key_id, scope, None, None, count, None)
                    for (account_id, key_id, code, scope), count in refusals.items()
                ]
            )

    def _hand_over_unknown_models(self) -> None:
        asked, self.hooks.unknown_models = self.hooks.unknown_models, {}
        if asked:
            now_ms = time.time_ns() // 1_000_000
            self._store.append_events(
                [
                    (now_ms, "model_unknown", "model_not_found", account_id, key_id, None, None, None, count, name)
                    for (name, account_id, key_id), count in asked.items()
                ]
            )

    def _hand_over_doubts(self) -> None:
        """Reports of usage that were not believed, or are far from what was sent: the operator hears of each kind once
        a flush, with its latest numbers."""
        doubts, self.engine.report_doubts = self.engine.report_doubts, {}
        now_ms = time.time_ns() // 1_000_000
        self._store.append_events(
            [
                (
                    now_ms,
                    "report_odd" if why.endswith("_sent") else "report_rejected",
                    why,
                    None,
                    None,
                    None,
                    channel,
                    None,
                    count,
                    _doubt_detail(model, dimension, why, reported, expected),
                )
                for (channel, model, dimension, why), (count, reported, expected) in doubts.items()
            ]
        )

    def _channel_event(self, kind: str, code: str | None, channel: str | None, detail: str | None = None) -> None:
        self._store.append_events(
            [(time.time_ns() // 1_000_000, kind, code, None, None, None, channel, None, 1, detail)]
        )

    def _store_failed(self, error: BaseException) -> None:
        self.failure = f"the store failed ({type(error).__name__}): what is on disk is consistent, start again"
        self.stop_now.set()
        self.stopping.set()

    def _not_ready(self) -> str | None:
        if self.engine.draining:
            return "draining"
        # Calls see what the sweep saw last: ready is said only where they would be let in.
        return None if self._store.writable and self.engine.store_writable else "store"

    def _operator_token(self) -> str:
        return self.config.admin.token.reveal()

    # -- configuration

    async def _apply(self, stated: Config) -> None:
        """Puts a checked configuration into force, with the scheduled rates whose time has come. Calls in flight keep
        what they were admitted under. Raises ConfigError, with nothing changed, where prices rise unannounced."""
        self._schedule = await self._store.rate_schedule()
        now_ms = time.time_ns() // 1_000_000
        config = schedule.in_force(stated, self._schedule, now_ms)
        await self._check_notice(config, now_ms)
        self._stated = stated
        rates = pricing.build_rates(config)
        for card, body in pricing.rate_cards(config).items():
            await self._store.put_rate_card(card, body)
        switches = await self._store.switches("channel")
        channels = [catalogue.build_channel(config, channel, self._tls) for channel in config.channels]
        for channel in self._channels:
            channel.retired = True
            channel.close_idle()
        known = {(channel.name, channel.target): channel for channel in self._channels}
        for channel in channels:
            if (old := known.get((channel.name, channel.target))) is not None:
                channel.adopt(old)
        self._channels = channels
        self._switch(switches)
        engine, server, timeouts, billing = self.engine, config.server, config.timeouts, config.billing
        engine.models = catalogue.build_models(config, channels, rates, self._calibrations)
        self._listed = catalogue.listed(config, engine.models)
        engine.policy = _fastpath.Policy(
            hold_output_tokens=billing.hold_output_tokens,
            hold_slice_tokens=billing.hold_slice_tokens,
            prompt_margin_permille=billing.prompt_margin_permille,
        )
        routing = config.routing
        engine.affinity = routing.affinity
        engine.attempts_max = routing.attempts_max
        engine.retry_budget.configure(routing.retry_percent, routing.retries_per_second_min)
        self.hooks.key_rests = KeyRests(
            routing.key_rest_seconds, routing.key_rest_refused_seconds, routing.key_rest_seconds_max
        )
        engine.body_bytes_max = server.body_bytes_max
        self._memory_bytes_max = capacity.memory_limit_bytes(server.memory_bytes_max)
        engine.connections_max = capacity.connections_within(server.connections_max, self._descriptors_max)
        engine.waiting_bytes_max = server.waiting_bytes_max
        engine.turn_away_answer = turn_away_answer()
        self.api.cors = Cors(server.cors_origins)
        engine.cors, engine.cors_others = self.api.cors.lines, self.api.cors.other_lines

        def ticks(seconds: float) -> int:
            return max(1, round(seconds * _fastpath.TICKS_PER_SECOND))

        engine.header_ticks = ticks(timeouts.header_seconds)
        engine.body_idle_ticks = ticks(timeouts.body_idle_seconds)
        engine.write_stall_ticks = ticks(timeouts.write_stall_seconds)
        engine.heartbeat_ns = round(server.stream_heartbeat_seconds * 1e9)
        engine.read_on_ns_max = round(billing.disconnect_seconds_max * 1e9)
        engine.read_on_tokens_max = billing.disconnect_tokens_max
        engine.keep_source_ip = config.retention.source_ip
        engine.keep_user_agent = config.retention.user_agent
        engine.usage_in_answers = billing.usage_in_answers
        self.api.header_seconds = timeouts.header_seconds
        self.api.body_idle_seconds = timeouts.body_idle_seconds
        self.api.write_stall_seconds = timeouts.write_stall_seconds
        self.hooks.no_balance_status_openai = billing.no_balance_status_openai
        self.hooks.credit_name = billing.credit_name
        self.hooks.tell_unknown_models = config.observe.unknown_models
        self.hooks.allow_unpriced = billing.unpriced == "allow"
        self.hooks.model_rates = pricing.tool_rates(config, rates)
        self.hooks.use_addresses(Addresses(server.trusted_proxies))
        self.side.configure(config, channels)
        self.config = config
        self.operations.config = stated
        self.keyring.reconfigure()

    async def _check_notice(self, config: Config, now_ms: int) -> None:
        """Where rises take notice, prices rise by announcement only."""
        days = config.billing.price_rise_notice_days
        if not days:
            return
        if self._stated is not None:
            before: str | None = pricing.card_body(self.config)
        else:
            last = await self._store.last_rate_card()
            before = last.body if last is not None else None
        if before is None:
            return
        announced = schedule.announced_models(schedule.effective(self._schedule, now_ms))
        for model, line in pricelist.rises(before, pricing.card_body(config)):
            if model not in announced:
                expected = f"no price above those in force: announce it by `relay rates schedule` ({days} days ahead)"
                raise ConfigError(config.file, [Fault("rates", expected, line)])

    async def _reprice(self) -> None:
        """Scheduled rates take effect by themselves."""
        while True:
            due_ms = schedule.next_change_ms(self._schedule, self._repriced_ms)
            wait = SCHEDULE_SECONDS if due_ms is None else due_ms / 1000 - time.time()
            self._schedule_changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._schedule_changed.wait(), min(max(wait, 0.0), SCHEDULE_SECONDS))
            if due_ms is None or time.time_ns() // 1_000_000 < due_ms:
                continue
            try:
                await self._apply(self._stated or self.config)
                self._repriced_ms = due_ms
                log.info("scheduled rates are in force: card %s", pricelist.card(self.config))
            except (StoreError, ConfigError) as error:
                log.error("scheduled rates could not be put into force (%s); tried again", type(error).__name__)
                await asyncio.sleep(1.0)

    # -- Live

    async def rates_scheduled(self) -> None:
        self._schedule = await self._store.rate_schedule()
        self._schedule_changed.set()

    async def key_changed(self, key_id: int) -> None:
        await self.keyring.key_changed(key_id)

    async def account_changed(self, account_id: int) -> None:
        await self.keyring.account_changed(account_id)

    async def organisation_changed(self, organisation_id: int) -> None:
        await self.keyring.organisation_changed(organisation_id)

    def credit_moving(self, account_id: int) -> contextlib.AbstractContextManager[None]:
        return self.keyring.credit_moving(account_id)

    async def credit_added(self, account_id: int, nano: int) -> None:
        self.keyring.credit_added(account_id, nano)

    async def credit_taken(self, account_id: int, nano: int) -> bool:
        return self.keyring.credit_taken(account_id, nano)

    async def balance(self, account_id: int) -> LiveBalance | None:
        balance = self.keyring.balance(account_id)
        return LiveBalance(balance.available_nano, balance.held_nano) if balance is not None else None

    async def limits(self, key_id: int) -> list[ScopeView]:
        key = await self.keyring.key(key_id)
        if key is None:
            return []
        views = []
        for scope in key.scopes:
            state = scope.state(time.monotonic_ns(), time.time_ns())
            tokens = {name.decode(): limit for name, limit in (scope.tokens_per_call_models or {}).items()}
            if state["tokens_per_call"]:
                tokens["*"] = state["tokens_per_call"]
            views.append(
                ScopeView(
                    scope=scope.kind,
                    requests_limit=state["requests_limit"],
                    requests_remaining=state["requests_remaining"],
                    requests_reset_ns=state["requests_reset_ns"],
                    tokens_limit=state["tokens_limit"],
                    tokens_remaining=state["tokens_remaining"],
                    tokens_reset_ns=state["tokens_reset_ns"],
                    concurrency_limit=state["concurrency_limit"],
                    in_flight=state["in_flight"],
                    daily_limit_nano=state["daily_cap_nano"],
                    daily_spent_nano=state["spent_day_nano"],
                    monthly_limit_nano=state["monthly_cap_nano"],
                    monthly_spent_nano=state["spent_month_nano"],
                    tokens_per_call=tokens,
                )
            )
        return views

    @property
    def open_calls(self) -> int:
        """Of the compiled pipeline and of Python's part: files, stored objects, jobs, realtime."""
        return self.engine.open_calls + len(self.side.desk.open)

    def status(self) -> dict[str, Any]:
        engine = self.engine
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_seconds": round(time.monotonic() - self._began, 3),
            "draining": engine.draining,
            "open_calls": self.open_calls,
            "connections": engine.open_connections + self._other_connections,
            "calls_total": engine.calls_total,
            "keys_loaded": self.keyring.loaded_keys,
            "records_dropped": self.records_dropped,
            "memory_bytes": capacity.resident_bytes(),
            "memory_bytes_max": self._memory_bytes_max,
            "faults": engine.faults_total,
            "retries": {
                "retried": engine.retry_budget.retries_total,
                "refused": engine.retry_budget.refused_total,
            },
            "channels": [msgspec.to_builtins(state) for state in self.channel_states()],
        }

    def channel_states(self) -> Iterator[ChannelState]:
        """Every channel as it is now: breaker, keys that rest, load."""
        now_ns = time.monotonic_ns()
        for channel in self._channels:
            yield channel_state(channel, DIALECT_NAMES[channel.dialect], now_ns)

    def _switch(self, switches: list[SwitchRow]) -> None:
        off = {row.name: row.message for row in switches}
        for channel in self._channels:
            channel.off = channel.name in off
            channel.off_message = off.get(channel.name) or None

    async def channels_switched(self) -> None:
        self._switch(await self._store.switches("channel"))

    def channel_wake(self, name: str, key: int) -> bool:
        for channel in self._channels:
            if channel.name == name and key <= len(channel.keys):
                channel.wake(key)
                return True
        return False

    async def channel_test(self, name: str) -> list[dict[str, Any]]:
        configured = next(channel for channel in self.config.channels if channel.name == name)
        return [msgspec.to_builtins(found) for found in await trials(self.side.upstreams, configured)]

    async def reload(self) -> dict[str, Any]:
        """Applies the file anew. Raises ConfigError; the old one then stays in force."""
        fresh = configuration.load(self.config.file or None)
        restart = configuration.changed_for_restart(self._started_with, fresh)
        self.outlets.use(fresh.observe, fresh.file)
        self.engine.field_table.traced = bool(fresh.observe.spans)
        await self._apply(fresh)
        warnings = [*fresh.warnings, *pricelist.odd_prices(fresh)]
        if sources := configuration.secrets_of_the_environment(fresh):
            warnings.append(
                f"{', '.join(sources)}: a process keeps the environment that it was started with; secrets written as "
                "file:PATH are read again"
            )
        log.info("configuration reloaded")
        return {"reloaded": True, "restart": restart, "warnings": warnings}

    async def drain(self) -> dict[str, Any]:
        self.stopping.set()
        drain_seconds = self.config.server.drain_seconds
        return {"draining": True, "open_calls": self.open_calls, "drain_seconds": drain_seconds}

    # -- answered here

    async def _authenticate(self, request: web.Request, query_keys: Sequence[bytes] = ()) -> Caller:
        peername = request.transport.get_extra_info("peername") if request.transport else None
        readable, bad = wire_headers.readable(request.raw_headers, forwarded=self.hooks.peer(peername)[2])
        if bad is not None:
            raise CommandError("invalid", "the field holds bytes that are not visible ASCII", bad)
        given = wire_headers.secrets(readable, query_keys)
        found = {key for secret in given if (key := await self.keyring.find(secret)) is not None}
        if len(found) != 1:
            raise CommandError("unauthorized", "send one valid API key as `Authorization: Bearer sk-...`")
        key = found.pop()
        lines = wire_headers.values(readable, b"x-forwarded-for")
        code = key.check(wall_ns=time.time_ns(), address=self.hooks.caller_address(peername, lines)[1])
        if code:
            reason = _fastpath.ERROR_CODES[code]
            raise CommandError("refused", ERRORS[reason].message, reason=reason)
        models = None if key.models is None else frozenset(name.decode() for name in key.models)
        return Caller(account_id=key.account_id, key_id=key.key_id, models=models)

    async def _local(self, request: web.Request, endpoint: Endpoint, model: str | None) -> web.StreamResponse:
        """Paths that the relay answers itself: the models that this key may use."""
        dialect = wire_models.models_dialect(endpoint.dialect, "anthropic-version" in request.headers)
        if "x-goog-api-key" in request.headers:
            dialect = D_GEMINI  # Google's SDK asks under /v1 as well
        try:
            keys, _ = queries.read(endpoint, request.rel_url.raw_query_string.encode("ascii", "replace"))
            caller = await self._authenticate(request, keys)
        except queries.QueryError as error:
            return refusal(dialect, "invalid_value", param=str(error))
        except CommandError as error:
            if error.code == "invalid":
                return refusal(dialect, "invalid_value", param=error.field)
            return refusal(dialect, "invalid_key" if error.code == "unauthorized" else error.reason)
        if not endpoint.served:
            return refusal(dialect, "unsupported_feature")
        models = self.engine.models
        allowed = {
            name: shown for name, shown in self._listed.items() if caller.models is None or name in caller.models
        }
        if model is not None:
            if model not in allowed:
                return refusal(dialect, "model_not_found")
            if not models[model.encode()].routes_of(dialect):
                return refusal(dialect, "model_not_found", param=models[model.encode()].elsewhere)
            return web.Response(body=wire_models.render_one(dialect, allowed[model]), content_type="application/json")
        usable = [shown for name, shown in allowed.items() if models[name.encode()].routes_of(dialect)]
        try:
            body = wire_models.render_list(dialect, usable, request.query)
        except ValueError:
            return refusal(dialect, "invalid_value")
        return web.Response(body=body, content_type="application/json")


def _doubt_detail(model: str, dimension: str, why: str, reported: int, expected: int) -> str:
    if dimension == "service_tier":
        return f"{model}: service_tier priority, which was not asked for: charged as standard"
    return f"{model}: {dimension} {reported}, {'at most' if why == 'above_bound' else 'counted'} {expected}"


def bound_waiting(listener: socket.socket) -> None:
    """How much of what a connection sends may wait in this system for its turn. The connections of a listener have its
    options: that costs nothing per connection."""
    if listener.family != socket.AF_UNIX:
        with socket.socket(fileno=os.dup(listener.fileno())) as own:  # the loop's view of a socket has fewer methods
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)


def load_calibrations(data_dir: Path) -> Calibrations:
    """What was learnt about token counts before. Estimates only, no money: a file that cannot be read is begun anew."""
    calibrations = Calibrations()
    try:
        calibrations.load(orjson.loads((data_dir / CALIBRATION_NAME).read_bytes()))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be used (%s); learning begins anew", CALIBRATION_NAME, type(error).__name__)
        return Calibrations()
    return calibrations


def save_calibrations(data_dir: Path, calibrations: Calibrations) -> None:
    """Whole or not at all. Names of models and channels, and counts."""
    path = data_dir / CALIBRATION_NAME
    beside = path.with_suffix(".new")
    try:
        beside.write_bytes(orjson.dumps(calibrations.export()))
        adopt(beside, data_dir)
        beside.replace(path)
    except OSError as error:
        log.warning("%s could not be written (%s)", CALIBRATION_NAME, type(error).__name__)


def _server_tls(certificate: str, key: str) -> Any:
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def turn_away_answer() -> bytes:
    """What a connection above `connections_max` is told; its request has not been read, so the dialect is unknown."""
    status, fields, body = wire_errors.render_refusal(D_OPENAI, "overloaded", "", 0, None)
    head = [b"HTTP/1.1 %d %s" % (status, REASONS[status])]
    head += [name + b": " + value for name, value in fields if value]
    head += [b"Content-Length: %d" % len(body), b"Connection: close", b"", b""]
    return b"\r\n".join(head) + body


def _prepare(level: int, form: str) -> int:
    """What every relay process does first. Returns its limit on file descriptors. Raises RelayError."""
    quiet.set_up(level, form)
    hardening.harden()
    capacity.check_versions()
    return capacity.raise_descriptor_limit()


def run_serve(config: Config) -> int:
    """`relay serve`: until SIGTERM, SIGINT or `relay drain`. Exit status."""
    descriptors_max = _prepare(logging.INFO, "%(asctime)s %(levelname)s %(name)s: %(message)s")
    return uvloop.run(_serve(config, descriptors_max))


async def _serve(config: Config, descriptors_max: int) -> int:
    quiet.watch_loop(asyncio.get_running_loop())
    log.info("relay %s with %s", __version__, capacity.versions())
    if config.file == NO_FILE:
        log.warning("no --config, no RELAY_CONFIG and no config.toml in %s: every key has its default", os.getcwd())
    for warning in config.warnings:
        log.warning("%s", warning)
    sockets = activation.take_sockets()
    store, pepper = await open_store(config, create=True)
    try:
        relay = Relay(config, store, pepper, descriptors_max=descriptors_max)
        loop = asyncio.get_running_loop()

        def ask_to_stop() -> None:
            (relay.stop_now if relay.stopping.is_set() else relay.stopping).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ask_to_stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(_reload(relay)))
        await relay.start(sockets)
        log.info("%s", _what_is_served(relay.config))
        log.info("listening on %s%s", relay.address, " (socket from the supervisor)" if sockets else "")
        await relay.stopping.wait()
        log.info(
            "stopping: %d calls in flight have %d s to finish; a second signal ends them now",
            relay.open_calls,
            relay.config.server.drain_seconds,
        )
        await relay.stop()
        log.info("stopped")
        if relay.failure is not None:
            log.critical("%s", relay.failure)
            return 1
    finally:
        await store.close()
    return 0


def _what_is_served(config: Config) -> str:
    """For the log, at the start."""
    unpriced = len(config.unpriced_models)
    refused = f", {unpriced} of them without a price: calls to those are refused" if unpriced else ""
    place = os.path.abspath(config.server.data_dir)
    return f"data in {place}; channels: {len(config.channels)}, models: {len(config.models)}{refused}"


async def _reload(relay: Relay) -> None:
    try:
        await relay.reload()
    except ConfigError as error:
        for line in error.lines:
            log.error("%s", line)
        log.error("the configuration in force stays")


def run_demo(arguments: Namespace) -> int:
    """`relay demo`: a relay with a simulated upstream, an account with credits, and a key. Exit status."""
    from relay import demo

    _prepare(logging.WARNING, "%(levelname)s %(name)s: %(message)s")
    return uvloop.run(demo.run(arguments))
