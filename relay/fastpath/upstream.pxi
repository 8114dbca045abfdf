# The far side: channels, their pools of kept connections, and the connection itself.
#
# A connection carries one call at a time and is used again only when an answer ended cleanly: framing complete, nothing
# behind it, no `Connection: close`. Bytes that arrive while no call is waiting close it.

from libc.errno cimport EAGAIN, errno

cdef extern from "sys/socket.h" nogil:
    int MSG_PEEK, MSG_DONTWAIT
    ssize_t recv(int descriptor, void* data, size_t size, int flags)


# What the body of a good answer is; the same numbers as in relay/wire/endpoints.py.
cdef enum:
    ANSWER_JSON = 0       # a JSON document, or the stream that was asked for
    ANSWER_SOUND          # or a stream
    ANSWER_TRANSCRIPT     # JSON, a stream, or text where that was asked for

cdef enum:
    PLACES_MAX = 1000       # breakers of a channel's models and endpoints


@cython.final
cdef class Endpoint:
    """One route of the API: what it is called, whose dialect it speaks, where it goes upstream."""
    cdef readonly str name             # the route's template, e.g. "/v1/chat/completions": what a call record carries
    cdef readonly int dialect, format
    cdef readonly uint64_t scope_bit
    cdef readonly bytes upstream_path  # below the channel's base path; for Gemini the method, e.g. b":generateContent"
    cdef readonly bint needs_model     # the model stands in the body
    cdef readonly bint model_in_path
    cdef readonly bint stream_by_path  # Gemini: the path says that the answer is a stream
    cdef readonly bint free            # counting endpoints: limited and recorded, never charged
    cdef readonly bint inference       # may be tried on another channel
    cdef readonly int answer           # ANSWER_*

    def __init__(self, str name, int dialect, int format, uint64_t scope_bit, bytes upstream_path, *, bint needs_model=True,
                 bint model_in_path=False, bint stream_by_path=False, bint free=False, bint inference=True, int answer=0):
        self.name = name
        self.dialect = dialect
        self.format = format
        self.scope_bit = scope_bit
        self.upstream_path = upstream_path
        self.needs_model = needs_model
        self.model_in_path = model_in_path
        self.stream_by_path = stream_by_path
        self.free = free
        self.inference = inference
        self.answer = answer


@cython.final
cdef class Channel:
    """One configured way to an upstream, with its pool of idle connections."""
    cdef readonly str name
    cdef readonly int dialect
    cdef readonly int priority, weight
    cdef bytes base_path               # of base_url, without a trailing slash
    cdef bytes query                   # added to every request's; None: nothing
    cdef bytes set_lines               # fields added to every request
    cdef frozenset dropped             # names, in lower case, of a caller's that do not go on; those that are set among them
    cdef bint edits                    # either of them
    cdef bytes host_line               # b"Host: ...\r\n"
    cdef readonly list keys            # UpstreamKey, at least one
    cdef Py_ssize_t next_key
    cdef bint single                   # one key: nothing to choose
    cdef int64_t rests_until_ns        # no key rests longer than this
    cdef readonly Breaker breaker
    cdef dict places                   # (upstream model, F_*) -> Breaker, of those that failed; None: none did
    cdef int shut_places               # of them not closed
    cdef tuple bad_place               # the last that failed
    cdef int64_t bad_elsewhere_ns      # when one failed that was not the last
    cdef readonly int64_t places_opened_total
    cdef int64_t trouble_ns            # when a place failed, or was opened again
    cdef public bint off               # by an operator's switch
    cdef public str off_message        # what callers are told then
    cdef readonly tuple tags
    cdef uint64_t salt
    cdef readonly bint ask_usage
    cdef readonly int64_t connect_timeout_ns, first_byte_timeout_ns, answer_timeout_ns, stream_idle_timeout_ns
    cdef list idle                     # UpstreamConnection, the most recently used last
    cdef readonly int in_flight
    cdef readonly int64_t connects, failures
    cdef public bint retired           # not part of the configuration in force: connections close after their call
    cdef public object target          # what the connect hook needs: host, port, TLS context

    def __init__(self, str name, int dialect, bytes host, bytes base_path, list key_lines, object target, *, bytes query=None,
                 bytes set_lines=b"", frozenset dropped=frozenset(),
                 int priority=0, int weight=1, tuple tags=(), Breaker breaker=None, bint ask_usage=False, int64_t connect_timeout_ns=5_000_000_000,
                 int64_t first_byte_timeout_ns=120_000_000_000, int64_t answer_timeout_ns=600_000_000_000, int64_t stream_idle_timeout_ns=300_000_000_000):
        if not key_lines:
            raise ValueError("a channel needs at least one authentication line (an empty one for none)")
        self.name = name
        self.dialect = dialect
        self.priority = priority
        self.weight = weight
        self.base_path = base_path
        self.query = query
        self.set_lines = set_lines
        self.dropped = dropped
        self.edits = bool(set_lines or dropped)
        self.host_line = b"Host: " + host + b"\r\n"
        self.keys = [UpstreamKey(line, number) for number, line in enumerate(key_lines, 1)]
        self.single = len(key_lines) == 1
        self.tags = tags
        self.breaker = breaker if breaker is not None else Breaker()
        self.salt = mix(<uint64_t>(<int64_t>hash(name)))
        self.target = target
        self.ask_usage = ask_usage
        self.connect_timeout_ns = connect_timeout_ns
        self.first_byte_timeout_ns = first_byte_timeout_ns
        self.answer_timeout_ns = answer_timeout_ns
        self.stream_idle_timeout_ns = stream_idle_timeout_ns
        self.idle = []

    cdef bytes edited(self, bytes fields):
        """A caller's field lines as they go on here."""
        cdef bytes line
        cdef list lines = fields.split(b"\r\n")
        lines.pop()     # what comes after the last line end: nothing
        return b"".join([line + b"\r\n" for line in lines
                         if line.partition(b":")[0].lower() not in self.dropped]) + self.set_lines

    @property
    def idle_connections(self):
        return len(self.idle)

    def adopt(self, Channel old):
        """Goes on with what is known about the same channel of the configuration before: its breaker, keys that rest."""
        cdef UpstreamKey key, known
        cdef Breaker fresh = self.breaker
        old.breaker.configure(calls_min=fresh.calls_min, failure_percent=fresh.failure_percent, window_ns=fresh.window_ns,
                              open_ns_min=fresh.open_ns_min, open_ns_max=fresh.open_ns_max)
        self.breaker = old.breaker
        self.rests_until_ns = old.rests_until_ns
        self.places_opened_total = old.places_opened_total
        if fresh.failure_percent:
            self.places = old.places
            self.shut_places = old.shut_places
            self.bad_place = old.bad_place
            self.bad_elsewhere_ns = old.bad_elsewhere_ns
            self.trouble_ns = old.trouble_ns
            for place in (self.places or {}).values():
                place.configure(calls_min=fresh.calls_min, failure_percent=fresh.failure_percent,
                                window_ns=fresh.window_ns, open_ns_min=fresh.open_ns_min, open_ns_max=fresh.open_ns_max)
        for key in self.keys:
            for known in old.keys:
                if known.line == key.line:
                    key.adopt(known)

    cdef bint calm(self, int64_t now) noexcept:
        """Nothing to think about: in use, everything of it, and no key rests."""
        return self.breaker.state == BREAKER_CLOSED and now >= self.rests_until_ns and not (self.shut_places or self.off)

    cdef int way(self, str model, int where, int64_t now) except -1:
        """WAY_*: what the channel is to a call of this model at this endpoint, whatever its keys do."""
        cdef int way = self.breaker.way(now), at_place
        cdef Breaker place
        if self.off:
            return WAY_SHUT
        if way != WAY_SHUT and self.shut_places:
            place = self.places.get((model, where))
            if place is not None:
                at_place = place.way(now)
                if at_place != WAY_OPEN:
                    return at_place
        return way

    cdef int64_t opens_ns(self, str model, int where) except -1:
        """When it may be tried again, as far as breakers say."""
        cdef int64_t until = self.breaker.probe_ns if self.breaker.state != BREAKER_CLOSED else 0
        cdef Breaker place = self.places.get((model, where)) if self.shut_places else None
        if place is not None and place.state != BREAKER_CLOSED:
            until = max(until, place.probe_ns)
        return until

    cdef int begin_probe(self, str model, int where, int64_t now) except -1:
        """PROBES_*: what the attempt that begins tries out."""
        cdef int probes = 0
        cdef Breaker place = self.places.get((model, where)) if self.shut_places else None
        if self.breaker.state != BREAKER_CLOSED:
            self.breaker.begin_probe(now)
            probes |= PROBES_CHANNEL
        if place is not None and place.state != BREAKER_CLOSED:
            place.begin_probe(now)
            probes |= PROBES_PLACE
        return probes

    cdef int attempt_good(self, str model, int where, int probes, int64_t now) except -1:
        """PROBES_*: of which a breaker closed."""
        cdef int closed = 0
        cdef Breaker place
        if self.breaker.state == BREAKER_CLOSED:
            self.breaker.succeeded(now)
        elif probes & PROBES_CHANNEL and self.breaker.end_probe(now, 1, 0):
            closed = PROBES_CHANNEL
        if self.places is not None:
            place = self.places.get((model, where))
            if place is not None:
                if place.state == BREAKER_CLOSED:
                    place.succeeded(now)
                elif probes & PROBES_PLACE and place.end_probe(now, 1, 0):
                    self.shut_places -= 1
                    closed |= PROBES_PLACE
                    self.trouble_ns = now
            if self.shut_places == 0 and now - self.trouble_ns > self.breaker.window_ns:
                self.places = None       # what was longer ago counts for nothing
        return closed

    cdef int attempt_bad(self, str model, int where, int probes, int64_t now, int code, bint wide) except -1:
        """PROBES_*: of which a breaker opened.

        `wide`: no connection, so it is the channel. Else it is shut for the model at the endpoint first, and for
        everything once something else there fails too.
        """
        cdef int opened = 0
        cdef tuple at = (model, where)
        cdef Breaker place
        if not wide:
            if self.bad_place is not None and self.bad_place != at:
                self.bad_elsewhere_ns = now
            self.bad_place = at
            self.trouble_ns = now
            if self.places is None:
                self.places = {}
            place = self.places.get(at)
            if place is None and len(self.places) < PLACES_MAX:
                place = self.places[at] = self.breaker.beside()
            if place is not None:
                if probes & PROBES_PLACE:
                    if place.end_probe(now, 0, code):
                        self.places_opened_total += 1
                        opened = PROBES_PLACE
                elif place.failed(now, code):
                    self.shut_places += 1
                    self.places_opened_total += 1
                    opened = PROBES_PLACE
        if probes & PROBES_CHANNEL:
            if self.breaker.end_probe(now, 0, code):
                opened |= PROBES_CHANNEL
        elif self.breaker.failed(now, code, wide or (
                self.bad_elsewhere_ns != 0 and now - self.bad_elsewhere_ns <= self.breaker.window_ns)):
            opened |= PROBES_CHANNEL
        return opened

    cdef int end_probes(self, str model, int where, int probes) except -1:
        """The attempt is over and says nothing."""
        cdef Breaker place
        if probes & PROBES_CHANNEL:
            self.breaker.end_probe(0, -1, 0)
        if probes & PROBES_PLACE:
            place = self.places.get((model, where)) if self.places is not None else None
            if place is not None:
                place.end_probe(0, -1, 0)
        return 0

    def shut(self):
        """What is shut of it, the channel itself first: (upstream model or None, F_* or None, Breaker)."""
        found = [(None, None, self.breaker)] if self.breaker.state != BREAKER_CLOSED else []
        for (model, where), place in (self.places or {}).items():
            if (<Breaker>place).state != BREAKER_CLOSED:
                found.append((model, where, place))
        return found

    def wake(self, int number=0):
        """Keys rest no more, and everything is open. With a key's number: that key alone, and no breaker."""
        cdef UpstreamKey key
        for key in self.keys:
            if number in (0, key.number):
                key.wake()
        self.note_rests()
        if not number:
            self.breaker.close(monotonic_ns())
            self.places = None
            self.shut_places = 0

    cdef int note_rests(self) except -1:
        cdef UpstreamKey key
        self.rests_until_ns = 0
        for key in self.keys:
            self.rests_until_ns = max(self.rests_until_ns, key.rests_until_ns())
        return 0

    cdef UpstreamKey awake_key(self, str model, int where, uint64_t affinity, int64_t now):
        """A key that does not rest: the next in turn, or the one that this prompt belongs to. None: all rest."""
        cdef UpstreamKey key, best = None
        cdef Py_ssize_t i, n = len(self.keys), at
        cdef uint64_t score, best_score = 0
        if self.single and now >= self.rests_until_ns:
            return <UpstreamKey>self.keys[0]
        for i in range(n):
            at = (self.next_key + i) % n
            key = <UpstreamKey>self.keys[at]
            if now < self.rests_until_ns and key.wakes_ns(model, where) > now:
                continue
            if not affinity:
                self.next_key = (at + 1) % n
                return key
            score = mix(affinity ^ key.salt)
            if best is None or score > best_score:
                best = key
                best_score = score
        return best

    cdef UpstreamKey key_to_try(self, str model, int where, int64_t now):
        """A key that rests because it was refused, and may be tried all the same. None: there is none, or not yet."""
        cdef UpstreamKey key, best = None
        cdef Rest rest, first = None
        for key in self.keys:
            rest = key.standing(model, where, now)
            if rest is not None and not rest.probing and rest.probe_ns <= now and (first is None or rest.probe_ns < first.probe_ns):
                best = key
                first = rest
        return best

    cdef int64_t tried_ns(self, str model, int where, int64_t now, bint* account) except -1:
        """When the first of its keys is awake for this place, or may be tried. `account`: all of them were refused."""
        cdef UpstreamKey key
        cdef Rest rest
        cdef int64_t first = -1, until
        account[0] = True
        for key in self.keys:
            until = key.wakes_ns(model, where)
            rest = key.standing(model, where, now)
            if rest is not None:
                until = min(until, rest.probe_ns)
            else:
                account[0] = False
            if first < 0 or until < first:
                first = until
        return first

    cdef int64_t wakes_ns(self, str model, int where) except -1:
        """When the first of its keys is awake for this model at this endpoint."""
        cdef UpstreamKey key
        cdef int64_t first = -1, until
        for key in self.keys:
            until = key.wakes_ns(model, where)
            if first < 0 or until < first:
                first = until
        return first

    cdef int rest_key(self, UpstreamKey key, str model, int where, int scope, int64_t now, int64_t rest_ns, int code,
                      int status) except -1:
        key.rest(model, where, scope, now, rest_ns, code, status)
        if now + rest_ns > self.rests_until_ns:
            self.rests_until_ns = now + rest_ns
        return 0

    cdef int key_good(self, UpstreamKey key, str model, int where, int64_t sent_ns, int64_t now) except -1:
        key.good(model, where, sent_ns, now)
        return self.note_rests()

    # for tests

    def py_awake_key(self, str model, int where, uint64_t affinity, int64_t now):
        """The number of the key that a call would take, 0: all rest."""
        cdef UpstreamKey key = self.awake_key(model, where, affinity, now)
        return key.number if key is not None else 0

    def py_rest_key(self, int number, str model, int where, int scope, int64_t now, int64_t rest_ns, int code, int status):
        self.rest_key(<UpstreamKey>self.keys[number - 1], model, where, scope, now, rest_ns, code, status)

    def py_key_good(self, int number, str model, int where, int64_t sent_ns, int64_t now):
        self.key_good(<UpstreamKey>self.keys[number - 1], model, where, sent_ns, now)

    def py_key_to_try(self, str model, int where, int64_t now):
        """The number of the key that a call would try where all rest, which is under way then; 0: none."""
        cdef UpstreamKey key = self.key_to_try(model, where, now)
        if key is None:
            return 0
        key.standing(model, where, now).probing = True
        return key.number

    def py_wakes_ns(self, str model, int where):
        return self.wakes_ns(model, where)

    def py_way(self, str model, int where, int64_t now):
        return self.way(model, where, now)

    def py_attempt(self, str model, int where, int probes, int64_t now, int code=0, bint wide=False):
        """How an attempt ended; `code` 0: well. What opened or closed by it (PROBES_*)."""
        if code:
            return self.attempt_bad(model, where, probes, now, code, wide)
        return self.attempt_good(model, where, probes, now)

    def py_begin_probe(self, str model, int where, int64_t now):
        return self.begin_probe(model, where, now)

    def py_calm(self, int64_t now):
        return bool(self.calm(now))

    cdef UpstreamConnection take_idle(self):
        """The most recently used idle connection, or None. LIFO: the rest cools down and can be closed."""
        cdef UpstreamConnection connection
        while self.idle:
            connection = <UpstreamConnection>self.idle.pop()
            if not connection.closed and not connection.transport.is_closing():
                if connection.still_quiet():
                    return connection
                connection.close()
        return None

    def close_idle(self, int64_t older_than_ns=0):
        """Closes idle connections unused since `older_than_ns` (monotonic); 0 closes all."""
        cdef UpstreamConnection connection
        keep = []
        for connection in self.idle:
            if older_than_ns and connection.idle_since_ns > older_than_ns:
                keep.append(connection)
            else:
                connection.close()
        self.idle = keep


@cython.final
cdef class UpstreamConnection:
    """asyncio protocol of one connection to an upstream."""
    cdef object transport
    cdef Channel channel
    cdef Call call
    cdef bint closed
    cdef bint want_read_paused
    cdef int descriptor
    cdef int64_t idle_since_ns
    cdef ResponseHead head             # used again by every call on this connection: one at a time

    def __init__(self, Channel channel):
        self.channel = channel
        self.head = ResponseHead()

    def connection_made(self, transport):
        self.transport = transport
        self.descriptor = transport.get_extra_info("socket").fileno()
        self.channel.connects += 1

    # A call may end, and lose its last reference elsewhere, inside these methods: each holds it in a variable meanwhile.

    def data_received(self, bytes data):
        cdef Call call = self.call
        if call is not None:
            call_upstream_data(call, data)
        else:
            self.close()     # nobody asked: an answer to no request must never meet the next one

    def eof_received(self):
        cdef Call call = self.call
        if call is not None:
            call_upstream_ended(call)
        return False

    def connection_lost(self, exc):
        cdef Call call = self.call
        self.closed = True
        if call is not None:
            call_upstream_ended(call)
        self.transport = None

    def pause_writing(self):
        pass     # a request is in memory already; its client is not read while it leaves

    def resume_writing(self):
        pass

    cdef void close(self):
        if not self.closed:
            self.closed = True
            if self.transport is not None:
                self.transport.abort()

    cdef void give_back(self, int64_t now_ns):
        """The call is over and the connection clean: keep it."""
        self.call = None
        if self.want_read_paused:
            self.want_read_paused = False
            self.transport.resume_reading()
        if self.closed or self.channel.retired or len(self.channel.idle) >= IDLE_CONNECTIONS_MAX:
            self.close()
        else:
            self.idle_since_ns = now_ns
            self.channel.idle.append(self)

    cdef bint still_quiet(self):
        """Whether the far side has sent nothing, no end either, since its last answer: what the loop has not read yet shows in
        the socket. Asked before every use, however short the connection was idle: what is there answers no request of ours,
        and would be read as the answer to the next one. One system call, less than a microsecond."""
        cdef char byte
        return recv(self.descriptor, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 and errno == EAGAIN

    cdef void pause(self):
        if not self.want_read_paused and not self.closed and self.transport is not None:
            self.want_read_paused = True
            self.transport.pause_reading()

    cdef void resume(self):
        if self.want_read_paused and not self.closed and self.transport is not None:
            self.want_read_paused = False
            self.transport.resume_reading()


cdef Py_ssize_t IDLE_CONNECTIONS_MAX = 1024     # per channel


cdef enum:
    B_LENGTH = 0      # Content-Length
    B_CHUNKED
    B_CLOSE           # ends with the connection
    B_NONE            # no body: 204, 304

@cython.final
cdef class ResponseHead:
    """An upstream's status line and fields, parsed strictly; `fields` is what may pass to the client, as it was written."""
    cdef int status, framing, minor
    cdef int64_t length
    cdef bint close, event_stream, compressed
    cdef bint sandbox                  # neither JSON nor an event stream: a browser must not run it on this origin
    cdef bytes encoding, reason, content_type
    cdef Buffer passed

    def __cinit__(self):
        self.passed = Buffer()

    cdef int parse(self, const uint8_t* p, Py_ssize_t n, FieldTable table) except -2:
        """0, or -1 where anything breaks RFC 9112: the answer is garbage then."""
        cdef const uint8_t* end = p + n
        cdef const uint8_t* q
        cdef Field f
        cdef Py_ssize_t size
        cdef int count = 0
        cdef bint has_length = False, has_coding = False, typed = False
        cdef bytes named = None     # what unusual Connection fields say
        self.status = 0
        self.length = 0
        self.close = self.event_stream = self.compressed = False
        self.sandbox = True
        self.encoding = None
        self.content_type = None
        self.passed.size = 0
        if n < 17 or memcmp(p, b"HTTP/1.", 7) != 0 or p[8] != 32 or p[12] != 32:
            # RFC 9112 4: the blank behind the code is required even where the reason is empty
            return -1
        if p[7] != 48 and p[7] != 49:
            return -1
        self.minor = p[7] - 48
        for i in range(9, 12):
            if p[i] < 48 or p[i] > 57:
                return -1
            self.status = self.status * 10 + p[i] - 48
        if self.status < 100 or self.status > 599:
            return -1
        q = p + 13
        while q < end and IS_VALUE[q[0]]:
            q += 1
        if q + 1 >= end or q[0] != 13 or q[1] != 10:
            return -1
        self.reason = PyBytes_FromStringAndSize(<const char*>p + 13, q - p - 13)
        q += 2
        if self.minor == 0:
            self.close = True
        while True:
            size = parse_field(q, end, table, &f)
            if size < 0:
                return -1
            if size == 0:
                break
            q += size
            count += 1
            if count > 2 * FIELDS_MAX or size > FIELD_LINE_BYTES_MAX + 2:
                return -1
            if f.kind == H_OTHER:
                if not table.drops(f.name, f.name_size):
                    self.passed.add(f.name, f.line_size)
            elif f.kind == H_CONTENT_LENGTH:
                if has_length:
                    return -1
                has_length = True
                self.length = parse_length(&f)
                if self.length < 0:
                    return -1
            elif f.kind == H_TRANSFER_ENCODING:
                if has_coding or not value_is(&f, b"chunked"):
                    return -1
                has_coding = True
            elif f.kind == H_CONNECTION:
                if value_is(&f, b"close"):
                    self.close = True
                elif not value_is(&f, b"keep-alive"):
                    self.close = True     # anything unusual: not used again
                    named = (named or b"") + PyBytes_FromStringAndSize(<const char*>f.value, f.value_size) + b","
            elif f.kind == H_CONTENT_ENCODING:
                self.passed.add(f.name, f.line_size)
                if f.value_size and not value_is(&f, b"identity"):
                    self.compressed = True
                    self.encoding = PyBytes_FromStringAndSize(<const char*>f.value, f.value_size).lower()
            elif f.kind == H_CONTENT_TYPE:
                self.passed.add(f.name, f.line_size)
                self.event_stream = f.value_size >= 17 and self._starts(&f, b"text/event-stream")
                self.sandbox = typed or not self._is_data(&f)
                typed = True
            elif f.kind == H_UPGRADE or f.kind == H_DROP:
                pass
            else:
                # names that mean something only in a request (x-api-key, host …) have no business in an answer; what a
                # provider tells of a call as it was sent is an answer like any other
                if f.kind in (H_RETRY_AFTER, H_TRACEPARENT, H_IDEMPOTENCY_KEY):
                    self.passed.add(f.name, f.line_size)
        if q + 2 != end:
            return -1
        if named is not None:
            self._drop_named(named)
        if has_length and has_coding:
            return -1     # RFC 9112 6.3: a sign of smuggling
        if self.status < 200 or self.status == 204 or self.status == 304:
            self.framing = B_NONE
        elif has_coding:
            if self.minor == 0:
                return -1
            self.framing = B_CHUNKED
        elif has_length:
            self.framing = B_LENGTH
        else:
            self.framing = B_CLOSE
            self.close = True
        return 0

    cdef int _drop_named(self, bytes connection) except -1:
        """Takes fields out that belong to the upstream's connection alone (RFC 9110 7.6.1); rare, so written plainly."""
        cdef bytes line
        names = {name.strip(b" \t").lower() for name in connection.split(b",")} - {b"content-type", b"content-encoding"}
        lines = self.passed.take().split(b"\r\n")
        lines.pop()  # what comes after the last line's end: nothing
        self.passed.size = 0
        for line in lines:
            if line.partition(b":")[0].lower() not in names:
                self.passed.add_bytes(line + b"\r\n")
        return 0

    cdef bint _is_data(self, const Field* f) noexcept:
        """Whether a browser, too, takes it for JSON or an event stream: of several types in a list it takes the last."""
        cdef Py_ssize_t n = 17 if self.event_stream else 16
        if not self.event_stream and not (n <= f.value_size and self._starts(f, b"application/json")):
            return False
        return f.value_size == n or ((f.value[n] == 59 or f.value[n] == 32 or f.value[n] == 9)
                                     and memchr(f.value, 44, f.value_size) == NULL)

    cdef bint _starts(self, const Field* f, const char* word) noexcept:
        return relay_same_name(f.value, <const uint8_t*>word, strlen(word))     # as long at least, of visible bytes


def parse_response_head(bytes head, FieldTable table):
    """For tests: (status, framing, length, close, event_stream, encoding, passed fields, sandbox) or None where it is garbage."""
    h = ResponseHead()
    if h.parse(<const uint8_t*>PyBytes_AS_STRING(head), len(head), table) < 0:
        return None
    return h.status, ("length", "chunked", "close", "none")[h.framing], h.length, h.close, h.event_stream, h.encoding, h.passed.take(), \
        bool(h.sandbox)
