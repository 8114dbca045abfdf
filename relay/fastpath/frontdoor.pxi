# The front door: an asyncio protocol that serves plain API calls itself.
#
# It answers only what it understands completely: HTTP/1.1, POST to a path of the route table, one Host, one
# Content-Length, nothing encoded, nothing ambiguous. At the first doubt it hands the connection, with all bytes read, to
# aiohttp's parser (`Engine.hooks.handover`). The hand-over is one-way, only at the start of a message, and only while the
# transport is not paused. So the grammar written by hand stays small, and the odd cases meet a parser that the world tests.

from asyncio import get_running_loop

cdef enum:
    P_IDLE = 0        # between messages, or in a head
    P_BODY
    P_BUSY            # the call has its whole request
    P_DISCARD         # answered before the request had ended: the rest is read and dropped for a while
    P_GONE            # closed or handed over

cdef Py_ssize_t TURN_BYTES = 131072             # a read this large is probably not the last of its body
cdef Py_ssize_t PIPELINED_BYTES_MAX = 65536     # of following requests that wait while a call runs
cdef Py_ssize_t TURNED_AWAY_MAX = 64            # connections above the limit that may linger to read why
cdef Py_ssize_t IDEMPOTENCY_KEY_BYTES_MAX = 255
cdef Py_ssize_t SECRETS_MAX = 8
cdef Py_ssize_t TRACEPARENT_BYTES_MAX = 128
cdef int SERVED = 0
cdef int MORE = 1
cdef int ODD = 2


@cython.final
cdef class RequestHead:
    """What a block of request fields says; used by both ways in."""
    cdef Buffer passed           # fields that go on to the upstream, as they were written
    cdef list secrets
    cdef bytes agent, forwarded_for, channel, traceparent, origin
    cdef int64_t length, max_cost_nano
    cdef int hosts
    cdef bint usage                  # x-relay-usage: include
    cdef bytes idempotency_key
    cdef bint bad_idempotency_key
    cdef bint close, odd, bad_max_cost, bad_channel, encoded

    def __cinit__(self):
        self.passed = Buffer()

    cdef int parse(self, const uint8_t* p, const uint8_t* end, FieldTable table, int dialect, bint bounded=True) except -1:
        """Reads field lines up to the empty line. `odd` is set where the front door must not serve the message.

        Not `bounded`: the fields come from aiohttp's parser, which has its own limits, and hold nothing unreadable.
        """
        cdef Field f
        cdef Py_ssize_t size
        cdef int count = 0
        cdef int64_t amount
        cdef uint8_t bit = 1 << dialect
        cdef bint typed = False
        self.passed.size = 0
        self.secrets = []
        self.agent = self.forwarded_for = self.channel = self.traceparent = self.origin = None
        self.length = self.max_cost_nano = -1
        self.hosts = 0
        self.usage = self.bad_idempotency_key = False
        self.idempotency_key = None
        self.close = self.odd = self.bad_max_cost = self.bad_channel = self.encoded = False
        while True:
            size = parse_field(p, end, table, &f)
            if size < 0:
                self.odd = True
                return 0
            if size == 0:
                break
            count += 1
            if bounded and (count > FIELDS_MAX or size > FIELD_LINE_BYTES_MAX + 2):
                self.odd = True
                return 0
            if f.allow & bit:
                self.passed.add(p, size)
            if f.allow & RARE:
                self.odd = True
            if f.kind == H_OTHER:
                pass
            elif f.kind == H_HOST:
                self.hosts += 1
                if f.value_size == 0:
                    self.odd = True
                for i in range(f.value_size):
                    if not IS_HOST[f.value[i]]:
                        self.odd = True
            elif f.kind == H_CONTENT_LENGTH:
                amount = parse_length(&f)
                if amount < 0 or self.length >= 0:
                    self.odd = True
                self.length = amount
            elif f.kind == H_TRANSFER_ENCODING or f.kind == H_EXPECT or f.kind == H_UPGRADE:
                self.odd = True
            elif f.kind == H_CONNECTION:
                if value_is(&f, b"close"):
                    self.close = True
                elif not value_is(&f, b"keep-alive"):
                    self.odd = True
            elif f.kind == H_CONTENT_ENCODING:
                if not value_is(&f, b"identity"):
                    self.encoded = True
                    self.odd = True
            elif f.kind == H_AUTHORIZATION:
                self.add_secret(f.value, f.value_size, True)
            elif f.kind == H_API_KEY:
                self.add_secret(f.value, f.value_size, False)
            elif f.kind == H_USER_AGENT:
                if self.agent is None:
                    self.agent = PyBytes_FromStringAndSize(<const char*>f.value, f.value_size)
                else:
                    self.odd = True
            elif f.kind == H_CONTENT_TYPE:
                self.odd |= typed or not self._is_utf8(&f)
                typed = True
            elif f.kind == H_MAX_COST:
                amount = parse_credits(f.value, f.value_size)
                if amount < 0 or self.max_cost_nano >= 0:
                    self.bad_max_cost = True
                self.max_cost_nano = amount
            elif f.kind == H_RELAY_USAGE:
                if value_is(&f, b"include"):
                    self.usage = True
            elif f.kind == H_IDEMPOTENCY_KEY:
                if not 0 < f.value_size <= IDEMPOTENCY_KEY_BYTES_MAX or self.idempotency_key is not None:
                    self.bad_idempotency_key = True
                self.idempotency_key = PyBytes_FromStringAndSize(<const char*>f.value, f.value_size)
            elif f.kind == H_CHANNEL:
                if self.channel is not None or not 0 < f.value_size <= 64:
                    self.bad_channel = True
                else:
                    self.channel = PyBytes_FromStringAndSize(<const char*>f.value, f.value_size)
            elif f.kind == H_TRACEPARENT:
                if table.traced:
                    # Two are none: W3C Trace Context has it once.
                    self.traceparent = PyBytes_FromStringAndSize(<const char*>f.value, f.value_size) \
                        if self.traceparent is None and f.value_size <= TRACEPARENT_BYTES_MAX else b""
            elif f.kind == H_FORWARDED_FOR:
                self.forwarded_for = PyBytes_FromStringAndSize(<const char*>f.value, f.value_size) \
                    if self.forwarded_for is None else self.forwarded_for + b"," + PyBytes_FromStringAndSize(<const char*>f.value, f.value_size)
            elif f.kind == H_ORIGIN:
                # Two are none: a browser sends one.
                self.origin = PyBytes_FromStringAndSize(<const char*>f.value, f.value_size) if self.origin is None else b""
            elif f.kind == H_FETCH_MODE:
                if value_is(&f, b"navigate"):
                    self.odd = True      # a browser opens this address: refused there
            elif f.kind == H_FETCH_DEST:
                if not value_is(&f, b"empty"):
                    self.odd = True
            p += size
        return 0

    cdef int add_secret(self, const uint8_t* p, Py_ssize_t n, bint other_schemes) except -1:
        """An API key, with `Bearer` in front or without. `other_schemes`: in `authorization` two words are one of those."""
        cdef bytes secret
        if n >= 6 and relay_same_name(p, <const uint8_t*>b"bearer", 6) and (n == 6 or p[6] == 32 or p[6] == 9):
            p += 6
            n -= 6
            while n > 0 and (p[0] == 32 or p[0] == 9):
                p += 1
                n -= 1
        elif other_schemes and memchr(p, 32, n) != NULL:
            return 0
        if n > 0:
            secret = PyBytes_FromStringAndSize(<const char*>p, n)
            self.add_key(secret)
        return 0

    cdef int add_key(self, bytes secret) except -1:
        if secret not in self.secrets and PyList_GET_SIZE(self.secrets) < SECRETS_MAX:
            self.secrets.append(secret)
        return 0

    cdef bint _is_utf8(self, const Field* f) except -1:
        """Whether a Content-Type says no charset, or UTF-8 as most clients write it; others are for `wire/headers.py`."""
        if f.value_size == 16 and relay_same_name(f.value, <const uint8_t*>b"application/json", 16):
            return True
        if f.value_size == 31 and relay_same_name(f.value, <const uint8_t*>b"application/json; charset=utf-8", 31):
            return True
        return b"charset" not in PyBytes_FromStringAndSize(<const char*>f.value, f.value_size).lower()


cdef int64_t parse_credits(const uint8_t* p, Py_ssize_t n) noexcept:
    """Decimal credits, up to 9 decimals, as nano-credits; -1 for anything else or 10^9 credits and more."""
    cdef int64_t whole = 0, part = 0
    cdef Py_ssize_t i = 0
    cdef int decimals = 0
    if n == 0 or n > 19:
        return -1
    while i < n and 48 <= p[i] <= 57:
        whole = whole * 10 + (p[i] - 48)
        i += 1
        if i > 9:
            return -1
    if i == 0:
        return -1
    if i < n:
        if p[i] != 46:
            return -1
        i += 1
        while i < n and 48 <= p[i] <= 57:
            part = part * 10 + (p[i] - 48)
            decimals += 1
            i += 1
        if i < n or decimals == 0 or decimals > 9:
            return -1
    while decimals < 9:
        part *= 10
        decimals += 1
    return whole * 1_000_000_000 + part


@cython.final
cdef class FrontDoor(ClientSide):
    cdef int state
    cdef bytes pending              # bytes read and not used yet
    cdef Py_ssize_t searched        # of pending, without finding the end of a head
    cdef int64_t body_left
    cdef bint close_after, in_loop, read_paused
    cdef bint fresh                 # no request has been served yet
    cdef int64_t since_tick         # of the state's deadline
    cdef int64_t body_tick          # when the body began

    def __init__(self, Engine engine):
        self.engine = engine

    def connection_made(self, transport):
        self.transport = transport
        self.state = P_IDLE
        self.since_tick = self.engine.tick
        if self.engine.refuses_connections():
            self.turn_away()
            return
        transport.set_write_buffer_limits(WRITE_BUFFER_HIGH)
        self.fresh = True
        self.engine.clients.add(self)
        self.set_peer()

    cdef int turn_away(self) except -1:
        """Too many connections: says so and closes, once the client has had time to read it. Beyond some, only closes."""
        cdef Engine engine = self.engine
        self.state = P_GONE
        engine.turned_away_total += 1
        if engine.draining or engine.turn_away_answer is None or len(engine.turned_away) >= TURNED_AWAY_MAX:
            self.transport.abort()
            return 0
        self.transport.write(engine.turn_away_answer)
        if not self.transport.can_write_eof():
            self.transport.close()
            return 0
        self.transport.write_eof()
        self.state = P_DISCARD
        engine.turned_away.add(self)
        return 0

    def connection_lost(self, exc):
        cdef Call call = self.call       # held while it ends: it may have no other reference
        self.engine.clients.discard(self)
        self.engine.turned_away.discard(self)
        self.state = P_GONE
        self.pending = None
        if call is not None:
            call_client_gone(call)
        self.transport = None

    def eof_received(self):
        cdef Call call = self.call
        # As nginx does: a client that shuts its sending side has gone. A plain close cannot be told from a half-close
        # before the next write, and a stream that nobody reads costs its owner money.
        if call is not None:
            call_client_gone(call)
        return False

    def pause_writing(self):
        self.write_paused = True
        self.paused_tick = self.engine.tick
        if self.call is not None and self.call.connection is not None:
            self.call.connection.pause()

    def resume_writing(self):
        self.write_paused = False
        if self.call is not None and self.call.connection is not None:
            self.call.connection.resume()
            self.call.active_tick = self.engine.tick
        elif self.call is not None and self.call.wake is not None:
            self.call.wake()
        elif self.state == P_IDLE:
            self.next_message()

    cdef void next_message(self):
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        if self.pending is not None:
            self.serve()

    def data_received(self, bytes data):
        cdef Py_ssize_t n
        if self.state == P_BODY:
            self.since_tick = self.engine.tick
            n = PyBytes_GET_SIZE(data)
            if n >= TURN_BYTES:
                # libuv reads up to 32 full buffers of one connection in a row: others get their turn in between
                self.transport.pause_reading()
                get_running_loop().call_soon(self.next_turn)
            if n <= self.body_left:
                self.body_left -= n
                self.take_body(data)
                return
            self.pending = data[self.body_left:]
            data = data[:self.body_left]
            self.body_left = 0
            self.take_body(data)
            return
        if self.state == P_IDLE:
            if self.pending is None:
                self.since_tick = self.engine.tick
                self.pending = data
                self.searched = 0
            else:
                self.pending += data
            if not self.write_paused:
                self.serve()
            else:
                self.bound_pending()
            return
        if self.state == P_BUSY:
            self.pending = data if self.pending is None else self.pending + data
            self.bound_pending()

    def next_turn(self):
        """Reads on after a large piece of a body, once the loop has been round."""
        if self.transport is not None and not self.read_paused and self.state != P_GONE:
            self.transport.resume_reading()

    cdef void bound_pending(self):
        if self.pending is not None and PyBytes_GET_SIZE(self.pending) > PIPELINED_BYTES_MAX and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    cdef void take_body(self, bytes data):
        cdef Call call = self.call
        try:
            if call is not None:
                call_read(call, data)
            if self.body_left == 0 and self.state == P_BODY:
                self.state = P_BUSY
                self.request_read = True
                if call is not None and call.state != C_DONE:
                    call_body_end(call)
        except Exception as error:
            if call is not None:
                call_broken(call, error)
            else:
                self.engine.fault(error)
                self.transport.abort()

    cdef void serve(self):
        """Serves what is pending, message by message, until one is incomplete, a call runs, or the connection is handed over."""
        cdef bytes data
        cdef int result
        cdef Call call
        # Handing over lets go of the last reference where an upstream's answer, not the loop, brought us here.
        cdef FrontDoor kept = self
        if self.in_loop:
            return
        self.in_loop = True
        try:
            while self.state == P_IDLE and self.pending is not None and not self.write_paused:
                data = self.pending
                result = self.message(data)
                if result == MORE:
                    self.searched = PyBytes_GET_SIZE(data)
                    break
                if result == ODD:
                    self.hand_over(data)
                    break
        except Exception as error:
            call = self.call
            if call is not None:
                call_broken(call, error)
            else:
                self.engine.fault(error)
                self.transport.abort()
        finally:
            self.in_loop = False

    cdef int hand_over(self, bytes data) except -1:
        self.state = P_GONE
        self.pending = None
        self.engine.clients.discard(self)
        transport = self.transport
        self.transport = None
        self.last_secret = None
        self.engine.hooks.handover(transport, data)
        return 0

    cdef int message(self, bytes data) except -1:
        """One request at the start of `data`: SERVED (its call has begun), MORE bytes needed, or ODD."""
        cdef Engine engine = self.engine
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data), end, have
        cdef const uint8_t* q
        cdef const uint8_t* line_end
        cdef RequestHead head = engine.request_head
        cdef Endpoint endpoint
        cdef Call call
        cdef bytes body, rest
        if memcmp(p, b"POST /", n if n < 6 else 6) != 0:
            return ODD
        end = find_head_end(p, n, self.searched)
        if end < 0:
            return ODD if n > REQUEST_HEAD_BYTES_MAX else MORE
        if end > REQUEST_HEAD_BYTES_MAX:
            return ODD
        line_end = <const uint8_t*>memchr(p, 13, end)
        q = line_end - 9
        if q < p + 6 or memcmp(q, b" HTTP/1.1\r\n", 11) != 0 or q - p > FIELD_LINE_BYTES_MAX:
            return ODD
        call = Call()
        if not engine.resolve(call, p + 5, q - p - 5):
            return ODD
        endpoint = call.endpoint
        head.parse(line_end + 2, p + end, engine.fields, endpoint.dialect)
        if head.odd or head.hosts != 1 or head.length < 0 or head.bad_max_cost or head.bad_idempotency_key or head.bad_channel:
            return ODD
        if head.length > engine.body_bytes_max:
            return ODD
        engine.open_call(call, self, head)
        self.fresh = False
        self.close_after = head.close
        self.call = call
        have = n - end
        self.request_read = have >= head.length
        if self.request_read:
            self.body_left = 0
            self.state = P_BUSY
            if have == head.length:
                self.pending = None
                body = PyBytes_FromStringAndSize(<const char*>p + end, have) if have else None
            else:
                body = data[end:end + head.length]
                self.pending = data[end + head.length:]
            self.searched = 0
            if call_begin(call) == 0 and call.state == C_DONE:
                return SERVED
            if body is not None:
                call_read(call, body)
            if call.state != C_DONE:
                call_body_end(call)
        else:
            self.body_left = head.length - have
            self.state = P_BODY
            self.since_tick = self.body_tick = engine.tick
            self.pending = None
            self.searched = 0
            if call_begin(call) == 0 and call.state == C_DONE:
                return SERVED
            if have:
                call_read(call, data[end:])
        return SERVED

    cdef void answered(self, bint reusable):
        self.call = None
        if self.transport is None or self.state == P_GONE:
            return
        if not reusable and self.state == P_BODY:
            # Closing now would reset the connection and lose the answer at a client that still sends (RFC 9112 9.6).
            self.state = P_DISCARD
            self.since_tick = self.engine.tick
            if self.transport.can_write_eof():
                self.transport.write_eof()
                return
        if not reusable or self.close_after or self.engine.draining:
            self.state = P_GONE
            self.engine.clients.discard(self)
            self.engine.closing.add(self)
            self.transport.close()
            return
        self.state = P_IDLE
        self.since_tick = self.engine.tick
        if not self.write_paused:
            self.next_message()

    cdef int sweep(self) except -1:
        """Deadlines of this connection; once a second."""
        cdef Engine engine = self.engine
        cdef Call call = self.call
        cdef int64_t waited = engine.tick - self.since_tick
        if self.write_paused and engine.tick - self.paused_tick > engine.write_stall_ticks:
            if call is not None:
                call_stop(call, E_CLIENT_STALLED)
            if self.transport is not None:
                engine.hooks.reset(self.transport)
            return 0
        if self.state == P_IDLE:
            if self.pending is not None and not self.write_paused:
                if waited > engine.header_ticks:
                    self.transport.abort()
            elif waited > engine.keep_alive_ticks:
                self.transport.close()
        elif self.state == P_BODY:
            if call is not None and (waited > engine.body_idle_ticks or engine.tick - self.body_tick > (
                    _BODY_IDLE_TIMES * engine.body_idle_ticks + call.body_bytes // _BODY_BYTES_PER_TICK)):
                call_refuse(call, E_BODY_TIMEOUT, None)
        elif self.state == P_DISCARD:
            if waited > engine.discard_ticks:
                self.transport.abort()
        return 0


cdef Py_ssize_t WRITE_BUFFER_HIGH = 4096    # with one read of at most 256,000 bytes: no call has more than 256 KiB waiting


@cython.final
cdef class Bridge(ClientSide):
    """The client's side of a call that came through aiohttp's parser: same pipeline, same bytes out."""
    cdef object on_end          # called once with `reusable`
    cdef public bint ended, reusable

    def __init__(self, Engine engine, object transport, bint http10, object on_end):
        self.engine = engine
        self.transport = transport
        self.http10 = http10
        self.on_end = on_end
        transport.set_write_buffer_limits(WRITE_BUFFER_HIGH)
        self.set_peer()

    def open(self, str endpoint_name, bytes query, bytes path_model, bytes fields, list more_secrets, bytes form_type=None,
             int bad_head=0, str bad_field=None, bint bad_key_field=False, bint alpha=False):
        """Begins the call: `fields` is the head's field lines with the empty line, all of them readable.

        `bad_head`: an error code, where something in the head cannot be done, with the field's name. It is told once it is
        known whose call it is; with `bad_key_field` that cannot be known. `alpha`: Google's v1alpha was asked for.
        """
        cdef Call call = Call()
        cdef RequestHead head = self.engine.request_head
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(fields)
        cdef bytes secret
        call.endpoint = self.engine.endpoints[endpoint_name]
        call.query = query
        call.path_model = path_model
        call.alpha = alpha
        call.form_type = form_type
        head.parse(p, p + PyBytes_GET_SIZE(fields), self.engine.fields, call.endpoint.dialect, False)
        for secret in more_secrets:
            head.add_key(secret)
        self.engine.open_call(call, self, head)
        self.call = call
        try:
            if bad_head:
                call.bad_head = bad_head
                call.bad_field = bad_field
                call.bad_key_field = bad_key_field
            elif head.bad_max_cost:
                call.bad_head = E_INVALID_VALUE
                call.bad_field = "x-relay-max-cost"
            elif head.bad_idempotency_key:
                call.bad_head = E_INVALID_VALUE
                call.bad_field = "idempotency-key"
            elif head.bad_channel:
                call.bad_head = E_INVALID_VALUE
                call.bad_field = "x-relay-channel"
            elif head.encoded:
                call.bad_head = E_UNSUPPORTED_ENCODING
            call_begin(call)
        except Exception as error:
            call_broken(call, error)

    @property
    def identifying(self):
        """Whether it is not known yet whose call it is, because the key is being loaded."""
        return self.call is not None and self.call.state == C_IDENTIFY

    def read(self, bytes data):
        """More of the body. False once the call has ended."""
        cdef Call call = self.call
        if call is None or call.state == C_DONE:
            return False
        try:
            call_read(call, data)
        except Exception as error:
            call_broken(call, error)
        return not self.ended

    def body_end(self):
        cdef Call call = self.call
        self.request_read = True
        if call is not None and call.state != C_DONE:
            try:
                call_body_end(call)
            except Exception as error:
                call_broken(call, error)

    def gone(self):
        cdef Call call = self.call
        if call is not None:
            call_client_gone(call)

    def refuse(self, int code):
        cdef Call call = self.call
        if call is not None and call.state == C_IDENTIFY:
            if not call.bad_head:
                call.bad_head = code     # said once it is known whose call it is
        elif call is not None and call.state != C_DONE:
            call_refuse(call, code, None)

    def pause_writing(self):
        self.write_paused = True
        self.paused_tick = self.engine.tick
        if self.call is not None and self.call.connection is not None:
            self.call.connection.pause()

    def resume_writing(self):
        self.write_paused = False
        if self.call is not None and self.call.connection is not None:
            self.call.connection.resume()
            self.call.active_tick = self.engine.tick
        elif self.call is not None and self.call.wake is not None:
            self.call.wake()

    cdef void answered(self, bint reusable):
        self.call = None
        self.ended = True
        self.reusable = reusable
        self.on_end(reusable)
