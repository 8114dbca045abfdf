# The engine: what all calls of the process share. Tables that decide (keys, models, routes), lists of what is open,
# the sweep of deadlines, and the records that wait for the writer.

from hashlib import sha256 as _sha256   # noqa: F401  (asserts at import that the digest exists)
from hmac import digest as hmac_digest
from os import urandom

TICKS_PER_SECOND = 4
# A body may take so many times body_idle_seconds in all, and a second more for so many bytes: a slow line gets through, a
# byte now and then does not.
BODY_IDLE_TIMES = 4
BODY_BYTES_PER_SECOND = 1024
cdef int64_t _BODY_IDLE_TIMES = BODY_IDLE_TIMES
cdef int64_t _BODY_BYTES_PER_TICK = BODY_BYTES_PER_SECOND // TICKS_PER_SECOND
# How much of what is still free for bodies one account's may be together: so it can never take all, and the less is free
# the sooner it has to wait. An account without credits gets less.
cdef int64_t SHARE_OF_FREE = 4
cdef int64_t FREE_PER_SHARE_UNPAID = 4


@cython.final
cdef class Engine:
    cdef public object hooks
    cdef FieldTable fields
    cdef dict routes                  # exact request path -> Endpoint
    cdef dict gemini_methods          # b"generateContent" -> Endpoint
    cdef dict endpoints               # name -> Endpoint
    cdef public dict models           # public name as bytes -> Model; replaced as a whole on reload
    cdef public Journal journal       # None: nothing survives the process (tests)
    cdef public Rate free_rate        # of endpoints that are never charged
    cdef public Policy policy
    cdef readonly list default_tables # TokenTable by dialect: what a prompt is counted with before its model is known
    cdef dict credentials             # public id -> Credential
    cdef dict unknown                 # public ids that are no key; bounded, emptied when full
    cdef dict waiting                 # public id -> calls that wait for it to be loaded
    cdef readonly set calls, clients, closing, turned_away
    cdef public list records
    cdef public dict traceparents     # of the records that wait, by id: as callers sent them; nothing where spans are off
    cdef public list new_objects      # (kind, id, account, key, channel, ms) of stored responses and sandboxes, since the last reader took them
    cdef Buffer buffer
    cdef RequestHead request_head
    cdef bytes pepper
    cdef readonly dict reasons
    cdef public bint draining, store_writable, memory_short
    cdef public int attempts_max
    cdef readonly RetryBudget retry_budget
    cdef public bint affinity              # calls with the same beginning of a prompt go to the same place
    cdef public uint32_t channel_scope     # the bit that a key needs to name its channel
    cdef public int64_t body_bytes_max
    cdef public Py_ssize_t connections_max, other_connections   # others: those that aiohttp's parser has
    cdef public int64_t waiting_bytes_max
    cdef readonly int64_t waiting_bytes           # of request bodies in memory
    cdef public int64_t turned_away_total
    cdef public bytes turn_away_answer            # for a connection above the limit; None: it is only closed
    cdef public int64_t header_ticks, body_idle_ticks, write_stall_ticks, keep_alive_ticks, discard_ticks
    cdef ClientSide nobody            # whose transport is None: the client of calls that are read on after theirs has gone
    cdef public int64_t heartbeat_ns      # until a stream whose upstream is silent begins with comments; 0: never
    cdef public int64_t read_on_ns_max, read_on_tokens_max
    cdef public bint keep_source_ip, keep_user_agent
    cdef public dict cors             # lines of answers by origin; None: pages of other origins may not call
    cdef public bytes cors_others     # for an origin that is not among them
    cdef public bint usage_in_answers             # every answer's usage object tells its cost
    cdef readonly int64_t tick
    cdef int64_t wall_offset_ns       # wall clock minus monotonic, renewed at every sweep
    cdef int64_t id_ms, id_count
    cdef uint64_t random_state
    cdef uint64_t[2] hash_key         # of this process: secrets that were verified once are known again by it
    cdef readonly int64_t calls_total, refused_total, faults_total
    cdef readonly dict unknown_refusals   # error code -> count, of calls that no key could be found for
    cdef public dict report_doubts    # (channel, model, dimension, why) -> (count, reported, expected), likewise
    cdef public dict limit_refusals   # (account, key, code, scope) -> count, since the last reader took it

    def __init__(self, object hooks, bytes pepper, list default_tables, dict reasons, uint64_t seed):
        self.hooks = hooks
        self.pepper = pepper
        self.default_tables = default_tables
        self.reasons = reasons
        self.fields = _standard_fields()
        self.routes = {}
        self.gemini_methods = {}
        self.endpoints = {}
        self.models = {}
        self.credentials = {}
        self.unknown = {}
        self.waiting = {}
        self.calls = set()
        self.clients = set()
        self.closing = set()
        self.turned_away = set()
        self.records = []
        self.traceparents = {}
        self.new_objects = []
        self.unknown_refusals = {}
        self.limit_refusals = {}
        self.report_doubts = {}
        self.buffer = Buffer()
        self.request_head = RequestHead()
        self.attempts_max = 3
        self.affinity = True
        self.channel_scope = 0x80000000
        self.retry_budget = RetryBudget()
        self.body_bytes_max = 33_554_432
        self.connections_max = 20_000
        self.waiting_bytes_max = 1 << 40
        self.header_ticks = 40
        self.body_idle_ticks = 120
        self.write_stall_ticks = 240
        self.keep_alive_ticks = 300
        self.discard_ticks = 8
        self.keep_source_ip = self.keep_user_agent = True
        self.cors_others = b""
        self.store_writable = True
        self.nobody = ClientSide()
        self.nobody.engine = self
        self.read_on_ns_max = 60_000_000_000
        self.read_on_tokens_max = 4096
        self.random_state = seed | 1
        random_bytes = urandom(16)
        memcpy(self.hash_key, PyBytes_AS_STRING(random_bytes), 16)
        self.wall_offset_ns = wall_clock_ns() - monotonic_ns()

    @property
    def field_table(self):
        return self.fields

    # ---- set-up ----

    def add_endpoint(self, Endpoint endpoint, list paths):
        """`paths`: exact request paths (bytes) served as it; for Gemini's the method name stands in upstream_path."""
        self.endpoints[endpoint.name] = endpoint
        for path in paths:
            self.routes[path] = endpoint
        if endpoint.model_in_path:
            self.gemini_methods[endpoint.upstream_path[1:]] = endpoint

    # ---- targets ----

    cdef bint resolve(self, Call call, const uint8_t* p, Py_ssize_t n) except -1:
        """Which endpoint a request target names. False: not for the front door."""
        cdef Py_ssize_t i, start, path_size = n, colon = -1
        cdef const uint8_t* mark
        for i in range(n):
            if not IS_TARGET[p[i]]:
                return False
            if p[i] == 63 and path_size == n:
                path_size = i
        call.endpoint = <Endpoint>self.routes.get(PyBytes_FromStringAndSize(<const char*>p, path_size))
        if call.endpoint is None:
            if path_size > 15 and memcmp(p, b"/v1beta/models/", 15) == 0:
                start = 15
            elif path_size > 11 and memcmp(p, b"/v1/models/", 11) == 0:
                start = 11      # Google's SDK asks under /v1 as well
            else:
                return False
            for i in range(start, path_size):
                if p[i] == 47 or p[i] == 126 or p[i] == 64:
                    return False
                if p[i] == 58:
                    colon = i
            if colon <= start:
                return False
            call.endpoint = <Endpoint>self.gemini_methods.get(
                PyBytes_FromStringAndSize(<const char*>p + colon + 1, path_size - colon - 1))
            if call.endpoint is None:
                return False
            call.path_model = PyBytes_FromStringAndSize(<const char*>p + start, colon - start)
        if path_size < n:
            return self.resolve_query(call, p + path_size + 1, n - path_size - 1)
        return True

    cdef bint resolve_query(self, Call call, const uint8_t* p, Py_ssize_t n) except -1:
        """A query that goes on as it is, or a credential on Gemini's paths. Anything else is aiohttp's (`wire/queries.py`)."""
        cdef bytes text = PyBytes_FromStringAndSize(<const char*>p, n), part
        cdef list passed = []
        cdef int dialect = call.endpoint.dialect
        if b"?" in text:
            return False
        for part in text.split(b"&"):
            if (dialect == D_GEMINI and (part == b"alt=sse" or part == b"alt=json")) or (
                    dialect == D_ANTHROPIC and part == b"beta=true"):
                if passed:
                    return False
                passed.append(part)
            elif dialect == D_GEMINI and part.startswith(b"key=") and len(part) > 4 and b"=" not in part[4:]:
                if call.secrets is None:
                    call.secrets = []
                call.secrets.append(part[4:])
            elif part:
                return False
        if passed:
            call.query = b"?" + b"&".join(passed)
        return True

    # ---- calls ----

    cdef int open_call(self, Call call, ClientSide client, RequestHead head) except -1:
        cdef bytes secret
        call.engine = self
        call.client = client
        call.began_ns = monotonic_ns()
        call.wall_ns = call.began_ns + self.wall_offset_ns
        call.active_tick = self.tick
        call.id = self.new_id(call.wall_ns)
        if call.secrets is not None:
            for secret in call.secrets:
                head.add_key(secret)
        call.secrets = head.secrets
        call.passed_fields = head.passed.take()
        call.agent = head.agent
        call.forwarded_for = head.forwarded_for
        call.traceparent = head.traceparent
        call.max_cost_nano = head.max_cost_nano
        call.annotate = call.annotate_asked = head.usage or self.usage_in_answers
        call.idempotency_key = head.idempotency_key
        call.wanted_channel = head.channel
        if head.origin is not None and self.cors is not None:
            call.cors = <bytes>self.cors.get(head.origin, self.cors_others)
        call.body = []
        call.scanner = RequestScanner(call.endpoint.format, <TokenTable>self.default_tables[call.endpoint.dialect])
        self.calls.add(call)
        self.calls_total += 1
        return 0

    cdef int64_t new_id(self, int64_t wall_ns):
        """Time-ordered: milliseconds in the upper bits, a counter in the lower 20. Never goes back with the clock."""
        cdef int64_t ms = wall_ns // 1_000_000
        if ms <= self.id_ms:
            self.id_count += 1
            if self.id_count >= 1 << 20:
                self.id_ms += 1
                self.id_count = 0
        else:
            self.id_ms = ms
            self.id_count = 0
        return (self.id_ms << 20) | self.id_count

    def continue_ids(self, int64_t last):
        """Ids go on behind this one, whatever the clock says. Returns by how many milliseconds the clock is behind it."""
        if last >> 20 >= self.id_ms:
            self.id_ms = last >> 20
            self.id_count = last & ((1 << 20) - 1)
        return self.id_ms - wall_clock_ns() // 1_000_000

    def next_id(self):
        """The id of a call that another part of the relay serves."""
        return self.new_id(self.wall_ns())

    cdef void id_text(self, int64_t id, char* out) noexcept:
        """`call_` and 13 digits of Crockford's base 32: 18 bytes."""
        cdef int i
        memcpy(out, b"call_", 5)
        for i in range(13):
            out[17 - i] = CROCKFORD[id & 31]
            id >>= 5

    cdef int64_t wall_ns(self):
        return monotonic_ns() + self.wall_offset_ns

    cdef Route choose(self, Call call, int64_t now):
        """The way of a call, and which upstream key it takes there (`call.upstream_key`). None: there is none now."""
        cdef list routes = call.routes
        cdef Route route
        cdef Channel channel
        if call.tried is None and PyList_GET_SIZE(routes) == 1:
            route = <Route>PyList_GET_ITEM(routes, 0)
            channel = route.channel
            if channel.single and channel.calm(now):
                call.upstream_key = <UpstreamKey>PyList_GET_ITEM(channel.keys, 0)
                return route
        return self.choose_among(call, now)

    cdef Route choose_among(self, Call call, int64_t now):
        cdef Route route
        cdef Channel channel
        if self.affinity and call.attempts == 0 and call.prompt_counted >= AFFINITY_TOKENS_MIN:
            call_find_affinity(call)
        route = self.best_of(call.routes, call.tried, call.endpoint.format, call.affinity, now)
        if route is None:
            route = self.last_way(call.routes, call.tried, call.endpoint.format, now)
            if route is None:
                return None
            call.upstream_key = route.channel.key_to_try(route.upstream_model, call.endpoint.format, now)
            call.trying = call.upstream_key.standing(route.upstream_model, call.endpoint.format, now)
            call.trying.probing = True
        else:
            call.upstream_key = route.channel.awake_key(route.upstream_model, call.endpoint.format, call.affinity, now)
        call.probes = route.channel.begin_probe(route.upstream_model, call.endpoint.format, now)
        return route

    cdef Route last_way(self, list routes, list tried, int where, int64_t now):
        """Where there is no other: the first way whose key was refused and may be tried all the same. None: not now."""
        cdef Route route, best = None
        for route in routes:
            if (tried is not None and route.channel in tried) or route.channel.way(route.upstream_model, where, now) == WAY_SHUT:
                continue
            if (best is None or route.channel.priority < best.channel.priority) and \
                    route.channel.key_to_try(route.upstream_model, where, now) is not None:
                best = route
        return best

    cdef Route best_of(self, list routes, list tried, int where, uint64_t affinity, int64_t now):
        """The choice itself: one of these ways, besides the channels that were tried. None: there is none now."""
        cdef Candidate[CANDIDATES_MAX] candidates
        cdef Candidate* c
        cdef Route route
        cdef Channel channel
        cdef int n = 0, chosen
        for route in routes[:CANDIDATES_MAX]:
            channel = route.channel
            c = &candidates[n]
            n += 1
            c.priority = channel.priority
            c.weight = channel.weight
            c.salt = channel.salt
            c.load = channel.in_flight
            if tried is not None and channel in tried:
                c.way = WAY_SHUT
            elif channel.calm(now):
                c.way = WAY_OPEN
            elif now < channel.rests_until_ns and channel.wakes_ns(route.upstream_model, where) > now:
                c.way = WAY_SHUT
            else:
                c.way = channel.way(route.upstream_model, where, now)
            if c.way == WAY_OPEN:
                c.load += FAILURE_LOAD * channel.breaker.recent_failures(now)
        chosen = pick(candidates, n, affinity, self.random(), self.random())
        return <Route>routes[chosen] if chosen >= 0 else None

    cdef bint another_way(self, list routes, list tried, Channel at, int where, int64_t now) except -1:
        """Whether a call would find a channel besides those it has tried and the one it is at."""
        cdef Route route
        cdef Channel channel
        for route in routes:
            channel = route.channel
            if channel is at or (tried is not None and channel in tried):
                continue
            if channel.way(route.upstream_model, where, now) != WAY_SHUT and channel.wakes_ns(route.upstream_model, where) <= now:
                return True
        return False

    cdef int no_way(self, list routes, int where, int64_t now, int64_t* wait_ns) except -1:
        """There is no channel for a call that has tried none: which error that is, and (`wait_ns`) for how long."""
        cdef Route route
        cdef Channel channel
        cdef int64_t until, first = -1
        cdef bint account = True, refused
        for route in routes:
            channel = route.channel
            if channel.off:
                continue
            until = max(channel.opens_ns(route.upstream_model, where), channel.tried_ns(route.upstream_model, where, now, &refused))
            account &= refused
            if first < 0 or until < first:
                first = until
        if first < 0:
            return E_SWITCHED_OFF
        wait_ns[0] = max(first - now, 1_000_000_000)      # with a probe on its way: a second
        return E_UPSTREAM_ACCOUNT if account else E_UPSTREAM_UNAVAILABLE

    cdef void breakers_changed(self, Channel channel, str model, int where, int which):
        """Told once per change, never per call. `which`: PROBES_*."""
        try:
            if which & PROBES_CHANNEL:
                self.hooks.breaker_changed(channel, channel.breaker, None)
            if which & PROBES_PLACE:
                self.hooks.breaker_changed(channel, channel.places[(model, where)], f"{PLACE_NAMES[where]} {model}")
        except Exception as error:
            self.fault(error)

    cdef uint64_t random(self) noexcept:
        # xorshift64: spreads load, guards nothing
        self.random_state ^= self.random_state << 13
        self.random_state ^= self.random_state >> 7
        self.random_state ^= self.random_state << 17
        return self.random_state

    # ---- keys ----

    cdef Credential verify(self, bytes secret, Call call):
        """The credential that a secret opens. None: no key (or the call waits: `public_id_wanted` is set)."""
        cdef Credential credential
        cdef bytes public_id
        cdef hash128 tag
        cdef const char* p = PyBytes_AS_STRING(secret)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(secret)
        if n < 40 or n > 128 or memcmp(p, b"sk-", 3) != 0 or p[15] != 45:
            return None
        public_id = PyBytes_FromStringAndSize(p + 3, 12)
        credential = <Credential>self.credentials.get(public_id)
        if credential is None:
            if public_id not in self.unknown:
                call.public_id_wanted = public_id
            return None
        if credential.dead:
            return None
        tag = siphash(self.hash_key[0], self.hash_key[1], <const uint8_t*>p, n)
        if credential.is_known and tag.low == credential.known.low and tag.high == credential.known.high:
            return credential
        if not equal_bytes(<bytes>hmac_digest(self.pepper, secret, "sha256"), credential.digest):
            return None
        credential.known = tag
        credential.is_known = True
        return credential

    def opens(self, Credential credential, bytes secret):
        """Whether a secret is this credential's, and it is in force."""
        return not credential.dead and equal_bytes(<bytes>hmac_digest(self.pepper, secret, "sha256"), credential.digest) and (
            credential.expires_ns == 0 or wall_clock_ns() < credential.expires_ns)

    cdef int want_key(self, bytes public_id, Call call) except -1:
        if public_id in self.waiting:
            self.waiting[public_id].append(call)
        else:
            self.waiting[public_id] = [call]
            self.hooks.load_key(public_id)
        return 0

    def put_credential(self, bytes public_id, Credential credential):
        """The answer to `load_key`: a credential, or None where there is no such key. Waiting calls go on."""
        cdef Call call
        if credential is None:
            if len(self.unknown) >= 10_000:
                self.unknown.clear()
            self.unknown[public_id] = True
        else:
            self.unknown.pop(public_id, None)
            self.credentials[public_id] = credential
        for call in self.waiting.pop(public_id, ()):
            call_key_arrived(call)

    def hmac(self, bytes text not None):
        """HMAC-SHA256 under the pepper: for what has to be known again and must not be kept."""
        return <bytes>hmac_digest(self.pepper, text, "sha256")

    def load_failed(self, bytes public_id):
        """The store could not be read: waiting calls are refused, the next one asks again."""
        cdef Call call
        for call in self.waiting.pop(public_id, ()):
            if call.state == C_IDENTIFY:
                call_stop(call, E_STORE_UNAVAILABLE)

    def forget_credential(self, bytes public_id):
        """The store changed: read it again at the next use. What is cached stays valid for calls in flight."""
        self.unknown.pop(public_id, None)
        credential = self.credentials.pop(public_id, None)
        if credential is not None:
            credential.dead = True

    def credential(self, bytes public_id):
        return self.credentials.get(public_id)

    def is_no_key(self, bytes public_id):
        """Whether the store has been asked for it and has no such key."""
        return public_id in self.unknown

    def busy_keys(self):
        """Numbers of the keys that open calls belong to, admitted or not."""
        cdef Call call
        return {call.key.key_id for call in self.calls if call.key is not None}

    def stop_calls(self, ApiKey key, int code):
        """Ends every call in flight of a key, each with its settlement."""
        cdef Call call
        count = 0
        for call in list(self.calls):
            if call.key is key:
                call_stop(call, code)
                count += 1
        return count

    def stop_all(self, int code):
        cdef Call call
        for call in list(self.calls):
            call_stop(call, code)

    # ---- bodies in memory ----

    cdef bint hold_body(self, Balance owner, int64_t size, int64_t body_bytes):
        """More of a body, `body_bytes` with it, is in memory. False: it is beyond the limit for all, or its account's share."""
        cdef int64_t free
        self.waiting_bytes += size
        free = self.waiting_bytes_max - self.waiting_bytes
        if owner is None:
            return free >= 0
        owner.waiting_bytes += size
        if free < 0:
            return False
        if owner.available_nano + owner.held_nano > 0:
            # its only body has to fit where the limit for all is that of one body
            return owner.waiting_bytes <= SHARE_OF_FREE * free or owner.waiting_bytes == body_bytes
        return owner.waiting_bytes <= free // FREE_PER_SHARE_UNPAID

    cdef void release_body(self, Balance owner, int64_t size):
        self.waiting_bytes -= size
        if owner is not None:
            owner.waiting_bytes -= size

    def py_hold_body(self, Balance owner, int64_t size, int64_t body_bytes):
        """The same for bodies that Python reads. Whatever it says, what was held has to be released."""
        return self.hold_body(owner, size, body_bytes)

    def py_release_body(self, Balance owner, int64_t size):
        self.release_body(owner, size)

    # ---- endings ----

    cdef int record(self, Call call, int code, int status, Usage* u, str source, int64_t now) except -1:
        cdef ApiKey key = call.key
        cdef Route route = call.route if call.route is not None else call.made_on
        cdef str agent = None, address = None
        cdef Rate rate = call.model.rate if call.model is not None else None
        cdef tuple fields, more
        if call.admission is not None and call.admission.rate is not None and not call.endpoint.free:
            rate = call.admission.rate      # what it was admitted under, whatever is in force by now
        if self.keep_user_agent:
            agent = self.agent_of(call)
        if self.keep_source_ip:
            address = call.source_ip
        fields = (
            call.id, key.account_id, key.organisation_id if key.organisation_id else None, key.key_id, call.endpoint.name,
            call.model.name if call.model is not None else None,
            route.upstream_model if route is not None else None,
            route.channel.name if route is not None else None,
            call.attempts, 1 if call.stream else 0, status, ERROR_CODES[code] if code else None,
            u.input_tokens, u.output_tokens, u.cache_read_tokens, u.cache_write_tokens + u.cache_write_1h_tokens,
            u.images, u.video_seconds, u.web_searches, source, call.cost_nano,
            rate.card if rate is not None else None,
            (now - call.began_ns) // 1000,
            (call.first_byte_ns - call.began_ns) // 1000 if call.first_byte_ns else None,
            address, agent, call.written_off_nano, (call.wall_ns // 1_000_000_000) // 86400,
        )
        more = more_of(u, call.claimed if call.bound else None, call.claimed_body, call.lines)
        self.records.append(fields if more is None else fields + (more,))
        if call.traceparent is not None:
            self.traceparents[call.id] = call.traceparent
        return 0

    cdef str agent_of(self, Call call):
        """The cleaned User-Agent; cleaned once per connection."""
        cdef ClientSide client = call.client
        if call.agent is None:
            return None
        if client.last_agent_bytes is None or client.last_agent_bytes != call.agent:
            client.last_agent = self.hooks.clean_agent(call.agent)
            client.last_agent_bytes = call.agent
        return client.last_agent

    cdef int note_refusal(self, Call call, int code) except -1:
        """A limiter's refusal, for the events: counted, so that a flood of them makes few rows."""
        cdef Scope scope = None if call.admission is None else call.admission.limited_scope     # None: Python has refused it
        if len(self.limit_refusals) < 10_000:
            at = (call.key.account_id, call.key.key_id, ERROR_CODES[code], scope.kind if scope is not None else None)
            self.limit_refusals[at] = self.limit_refusals.get(at, 0) + 1
        return 0

    cdef int note_report(self, Call call, const Verdict* v) except -1:
        """What is odd about a report of usage, for the operator: counted as above, and no content of the call."""
        cdef int i
        for i in range(DIMENSIONS):
            if v.doubts[i]:
                self.doubt_report(call.route.channel.name, call.model.name, REPORT_DIMENSIONS[i],
                                  REPORT_DOUBTS[v.doubts[i]], v.reported[i], v.expected[i])
        return 0

    def doubt_report(self, str channel, str model, str dimension, str why, int64_t reported, int64_t expected):
        """A report that was not believed, or is far from what was sent: the last numbers of each kind stand for all."""
        at = (channel, model, dimension, why)
        count = self.report_doubts.get(at, (0,))[0]
        if count or len(self.report_doubts) < 1000:
            self.report_doubts[at] = (count + 1, reported, expected)

    cdef int refused_unknown(self, int code) except -1:
        self.refused_total += 1
        self.unknown_refusals[code] = self.unknown_refusals.get(code, 0) + 1
        return 0

    cdef void fault(self, object error):
        """A fault of our own: counted and told by its type and place, never by its text (it may quote content)."""
        self.faults_total += 1
        try:
            self.hooks.fault(error)
        except Exception:
            pass

    # ---- limits on every answer ----

    cdef int add_limits(self, Buffer b, ApiKey key, int dialect, int64_t now_ns, int64_t wall_ns) except -1:
        """The tightest limits of the caller, in the dialect's names (source: each provider's rate-limit documentation)."""
        cdef LimitView view
        view_limits(key.scopes, now_ns, &view)
        if view.requests_limit:
            self.add_bucket(b, dialect, b"requests", view.requests_limit, view.requests_remaining, view.requests_reset_ns, wall_ns)
        if view.tokens_limit:
            self.add_bucket(b, dialect, b"tokens", view.tokens_limit, view.tokens_remaining, view.tokens_reset_ns, wall_ns)
        return 0

    cdef int add_bucket(self, Buffer b, int dialect, const char* kind, int64_t limit, int64_t remaining, int64_t reset_ns,
                        int64_t wall_ns) except -1:
        cdef int64_t ms, seconds
        if dialect == D_ANTHROPIC:
            b.add_text(b"anthropic-ratelimit-")
            b.add_text(kind)
            b.add_text(b"-limit: ")
            b.add_int(limit)
            b.add_text(b"\r\nanthropic-ratelimit-")
            b.add_text(kind)
            b.add_text(b"-remaining: ")
            b.add_int(remaining)
            b.add_text(b"\r\nanthropic-ratelimit-")
            b.add_text(kind)
            b.add_text(b"-reset: ")
            b.add_moment((wall_ns + reset_ns + 999_999_999) // 1_000_000_000)
        else:
            b.add_text(b"x-ratelimit-limit-")
            b.add_text(kind)
            b.add(b": ", 2)
            b.add_int(limit)
            b.add_text(b"\r\nx-ratelimit-remaining-")
            b.add_text(kind)
            b.add(b": ", 2)
            b.add_int(remaining)
            b.add_text(b"\r\nx-ratelimit-reset-")
            b.add_text(kind)
            b.add(b": ", 2)
            # a duration as OpenAI writes it: 120ms, 1.5s, 6m0s
            ms = (reset_ns + 999_999) // 1_000_000
            seconds = ms // 1000
            if 0 < ms < 1000:
                b.add_int(ms)
                b.add(b"ms", 2)
            else:
                if seconds >= 3600:
                    b.add_int(seconds // 3600)
                    b.add(b"h", 1)
                if seconds >= 60:
                    b.add_int(seconds // 60 % 60)
                    b.add(b"m", 1)
                b.add_int(seconds % 60)
                if ms % 1000:
                    b.add(b".", 1)
                    b.add_fraction(<int>(ms % 1000))
                b.add(b"s", 1)
        b.add(b"\r\n", 2)
        return 0

    # ---- the sweep ----

    cdef bint refuses_connections(self):
        return <Py_ssize_t>len(self.clients) + self.other_connections >= self.connections_max

    def sweep(self):
        """Deadlines of everything that is open. Called four times a second."""
        cdef FrontDoor door
        cdef Call call
        cdef int64_t now = monotonic_ns()
        self.tick += 1
        self.retry_budget.tick()
        self.wall_offset_ns = wall_clock_ns() - now
        if self.tick % 4 == 0:
            # Connections once a second: ten thousand idle ones took 2.8 % of a core at four times a second.
            for client in list(self.clients) + list(self.turned_away):
                if isinstance(client, FrontDoor):
                    door = <FrontDoor>client
                    try:
                        door.sweep()
                    except Exception as error:
                        self.fault(error)
        for call in list(self.calls):
            try:
                self.sweep_call(call, now)
            except Exception as error:
                call_broken(call, error)
        if self.closing:
            for client in list(self.closing):
                door = <FrontDoor>client
                if door.transport is None:
                    self.closing.discard(door)
                elif self.tick - door.since_tick > self.write_stall_ticks:
                    self.hooks.reset(door.transport)

    cdef int sweep_call(self, Call call, int64_t now) except -1:
        cdef Channel channel
        if call.credential is not None and call.credential.over(now + self.wall_offset_ns):
            call_stop(call, E_KEY_EXPIRED)
            return 0
        if self.heartbeat_ns and (call.state == C_HEAD or call.state == C_CONNECT):
            call_beat(call, now)
        if call.state == C_COLLECT:
            if (self.tick - call.active_tick) * (1_000_000_000 // 4) > call.route.channel.stream_idle_timeout_ns:
                call_pass_collected(call)
                if call.state == C_RELAY:
                    call_fail(call, E_UPSTREAM_STALLED)
        elif call.state == C_LOOK:
            call_sweep_look(call)
        elif call.state in (C_HEAD, C_ERROR_BODY):
            channel = call.route.channel
            if call.stream:
                if now - call.phase_ns > channel.first_byte_timeout_ns:
                    call_attempt_failed(call, E_UPSTREAM_TIMEOUT)
            elif now - call.phase_ns > channel.answer_timeout_ns:
                # It may have been made all the same, and be billed: an error answer that stops half way has not.
                call_attempt_failed(call, E_UPSTREAM_TIMEOUT, BLAME_CHANNEL_FOR_ALL if call.state == C_HEAD else BLAME_CHANNEL)
        elif call.state == C_RELAY:
            channel = call.route.channel
            if call.connection is not None and call.connection.want_read_paused:
                if call.client.write_paused and self.tick - call.client.paused_tick > self.write_stall_ticks:
                    transport = call.client.transport
                    call_stop(call, E_CLIENT_STALLED)
                    if transport is not None:
                        self.hooks.reset(transport)
            elif (self.tick - call.active_tick) * (1_000_000_000 // 4) > channel.stream_idle_timeout_ns:
                call_fail(call, E_UPSTREAM_STALLED)
        elif call.state == C_PIECES and call.client.write_paused and (
                self.tick - call.client.paused_tick > self.write_stall_ticks):
            transport = call.client.transport
            call_stop(call, E_CLIENT_STALLED)
            if transport is not None:
                self.hooks.reset(transport)
        if call.left_ns and (now - call.left_ns > self.read_on_ns_max or (
                call.tap is not None and call_counted(call) - call.left_tokens >= self.read_on_tokens_max)):
            call_stop(call, E_CLIENT_GONE)
        return 0

    def close_clients(self, bint idle_only):
        """Drain: closes connections that wait for another request (or all).

        One that has not had its first request is not idle: its client was let in, and would take the close for a refusal.
        """
        cdef FrontDoor door
        for client in list(self.clients):
            if isinstance(client, FrontDoor):
                door = <FrontDoor>client
                if not idle_only or (door.call is None and door.pending is None and not door.fresh):
                    if door.transport is not None:
                        door.transport.close()

    @property
    def open_calls(self):
        return len(self.calls)

    @property
    def open_connections(self):
        return len(self.clients)


cdef const char* CROCKFORD = b"0123456789abcdefghjkmnpqrstvwxyz"


def parse_request_head(bytes block, int dialect, FieldTable table):
    """For tests: what the front door makes of field lines with the empty line behind them."""
    cdef RequestHead head = RequestHead()
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(block)
    head.parse(p, p + len(block), table, dialect)
    return {
        "odd": bool(head.odd), "hosts": head.hosts, "length": head.length, "close": bool(head.close), "secrets": head.secrets,
        "passed": head.passed.take(), "max_cost_nano": head.max_cost_nano, "bad_max_cost": bool(head.bad_max_cost),
        "usage": bool(head.usage), "idempotency_key": head.idempotency_key,
        "bad_idempotency_key": bool(head.bad_idempotency_key), "encoded": bool(head.encoded), "agent": head.agent, "forwarded_for": head.forwarded_for,
        "channel": head.channel, "bad_channel": bool(head.bad_channel), "traceparent": head.traceparent, "origin": head.origin,
    }
