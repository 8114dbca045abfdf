# One call, from a complete request head to its one ending.
#
# Phases, in order: identify (who calls) -> read (the body is scanned as it arrives) -> admit (limits and hold, all or
# nothing, without a wait between) -> route (channel, upstream model) -> forward -> relay (bytes out, a copy into the tap)
# -> settle -> record. `end` is the only way out; it runs once, whatever happened.
#
# Nothing here waits: a phase that needs something that is not there yet (a key that is not in memory, a connection)
# leaves the call where it is and is called again. Deadlines are checked by the engine's sweep, four times a second.

from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII

cdef extern from "time.h" nogil:
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int CLOCK_REALTIME
    int clock_gettime(int clock, timespec* t)

cdef inline int64_t monotonic_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec

cdef inline int64_t wall_clock_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_REALTIME, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef enum:
    C_NEW = 0
    C_IDENTIFY        # the key is being loaded
    C_READ            # the body is arriving
    C_ASIDE           # Python decides first: whose objects it names, or a job
    C_CONNECT         # waiting for an upstream connection
    C_HEAD            # the request is on its way, no answer yet
    C_CLAIM           # its Idempotency-Key is being looked up
    C_COLLECT         # an answer that is one JSON document waits to be complete, because something is written into it
    C_ERROR_BODY      # an upstream's error answer is held back until it is known what it is about
    C_RELAY           # the answer passes
    C_DONE

cdef enum:
    BLAME_CHANNEL = 0     # whose fault a failed attempt is
    BLAME_KEY             # the operator's key there: refused, or above its limits
    BLAME_NOBODY

cdef enum:
    WAIT = 10_000         # not an error code: the phase goes on when the engine calls again

cdef Py_ssize_t ERROR_BODY_BYTES_MAX = 65536    # an error answer above this is passed on without being looked at
cdef Py_ssize_t ONE_WRITE_BYTES_MAX = 65536     # head and body leave as one object up to here, as two above
cdef int EVENT_BYTES_HELD_MAX = 65536           # of an event that might have to be taken out or changed
cdef Py_ssize_t COLLECTED_BYTES_MAX = 16_777_216    # a JSON answer above this is not changed


@cython.freelist(64)      # one is made for every call
@cython.final
cdef class Call:
    cdef Engine engine
    cdef ClientSide client
    cdef UpstreamConnection connection
    cdef int state
    cdef bint on_channel              # counted in its channel's in_flight
    cdef readonly int64_t id
    # request
    cdef Endpoint endpoint
    cdef list secrets                 # candidates for the key, as bytes
    cdef bytes public_id_wanted       # the key that is being loaded
    cdef bytes passed_fields          # request fields that go on, ready to send
    cdef bytes agent
    cdef bytes forwarded_for
    cdef str source_ip
    cdef bytes source_packed
    cdef bytes query                  # of the upstream path, from the allowlist, with its "?"
    cdef bytes path_model             # Gemini: the model stands in the path
    cdef int64_t max_cost_nano
    cdef list body
    cdef int64_t body_bytes
    cdef bint body_complete
    cdef bint large_request           # head and body left as several pieces
    cdef int bad_head                 # an error code: what its head asks cannot be done; said once it is known whose call it is
    cdef str bad_field
    cdef RequestScanner scanner
    cdef bytes form_type              # Content-Type of a multipart form; None: the body is JSON
    cdef object form                  # what such a body says (proxy/forms.py)
    cdef bint stream
    # policy
    cdef ApiKey key
    cdef Model model
    cdef list routes                  # that it may take
    cdef Route route
    cdef UpstreamKey upstream_key
    cdef bytes wanted_channel         # x-relay-channel: the name or the tag that the caller asks for
    cdef uint64_t affinity            # of its prompt: where others of the same prefix went; 0: none
    cdef bint probe                   # its attempt tells whether a breaker closes
    cdef int64_t wait_ns              # until a channel may be there again
    cdef Admission admission
    cdef int64_t prompt_tokens        # the estimate, calibrated
    cdef int64_t prompt_counted       # the same before calibration
    cdef int64_t output_estimate      # of an answer that is no text, where it reports nothing
    cdef int64_t seconds_estimate
    # answer
    cdef UsageTap tap
    cdef object decoder               # decompresses a copy for the tap
    cdef ResponseHead head
    cdef bytes head_bytes             # of an answer's head that is not complete yet
    cdef list error_parts
    cdef Py_ssize_t error_bytes
    cdef Chunked chunked
    cdef int64_t remaining            # of a Content-Length body
    cdef bint reframe                 # the client gets our own chunks: events are taken out, or the upstream had no framing
    cdef bint plain                   # the client gets no framing at all (HTTP/1.0)
    cdef bint strip                   # ask_usage: the usage event that the client did not ask for is taken out
    cdef bint metered                 # a stream with a rolling hold
    cdef bint prompt_known            # the hold is for the prompt that the upstream has counted, or it will not say in time
    cdef bint annotate                # the usage object of the answer is to tell the cost
    # Idempotency-Key
    cdef bytes idempotency_key        # as the caller sent it; None: none
    cdef bytes claimed                # its digest, while this call has it
    cdef int64_t claimed_body
    cdef bint bound                   # ... and keeps it
    cdef bint head_sent, body_sent, cut
    cdef Buffer held                  # of the event under way, while it may still have to be taken out
    cdef bint event_passes
    cdef int status
    cdef readonly int attempts
    cdef list tried
    # times (monotonic nanoseconds) and ticks of the sweep
    cdef int64_t began_ns, sent_ns, first_byte_ns, phase_ns
    cdef int64_t active_tick
    cdef int64_t left_ns              # when the client went away while its call is read on; 0: it is there
    cdef int64_t left_tokens
    cdef int64_t wall_ns
    cdef int64_t cost_nano, written_off_nano
    cdef Slot* slot                   # in the journal, from admission to the end; NULL before
    cdef uint16_t route_texts         # where the slot's texts about the attempt begin

    def __cinit__(self):
        self.max_cost_nano = -1

    # ---- identify ----

    cdef int identify(self) except -1:
        """Whose call it is: 0, an error code, or WAIT while the key is loaded."""
        cdef Credential found = None, credential
        cdef bytes secret
        cdef ClientSide client = self.client
        if not self.secrets:
            return E_MISSING_KEY
        for secret in self.secrets:
            if client.last_secret is not None and equal_bytes(client.last_secret, secret) and not client.last_credential.dead:
                credential = client.last_credential
            else:
                credential = self.engine.verify(secret, self)
                if credential is None:
                    if self.public_id_wanted is not None:
                        return WAIT
                    continue
            if found is not None and found.key is not credential.key:
                return E_AMBIGUOUS_KEY
            found = credential
            client.last_secret = secret
            client.last_credential = credential
        if found is None:
            return E_INVALID_KEY
        if found.expires_ns and self.wall_ns >= found.expires_ns:
            return E_KEY_EXPIRED
        self.key = found.key
        found.key.recent = True
        return 0

    cdef int begin(self) except -1:
        """The head is known. 0, or WAIT; a refusal has then ended the call."""
        cdef int code
        if client_address_needed(self):
            self.source_ip, self.source_packed = self.engine.hooks.forwarded_address(
                self.client.peer, self.forwarded_for)
        else:
            self.source_ip = self.client.peer
            self.source_packed = self.client.peer_packed
        code = self.identify()
        if code == WAIT:
            self.state = C_IDENTIFY
            self.engine.want_key(self.public_id_wanted, self)
            return WAIT
        if code == 0:
            code = self.bad_head
        if code:
            self.refuse(code, self.bad_field)
            return 0
        self.state = C_READ
        return 0

    cdef void key_arrived(self):
        """The key that was being loaded is known now, or known not to exist."""
        if self.state != C_IDENTIFY:
            return
        self.public_id_wanted = None
        try:
            self.state = C_NEW
            if self.begin() == 0 and self.state == C_READ and self.body_complete:
                self.admit_and_forward()
        except Exception as error:
            self.broken(error)

    # ---- read ----

    cdef int read(self, bytes data) except -1:
        """More of the body. Its scan happens here, piece by piece, so that a large body never holds up other calls."""
        cdef int code
        if self.state == C_DONE:
            return 0
        self.body.append(data)
        self.body_bytes += PyBytes_GET_SIZE(data)
        self.engine.waiting_bytes += PyBytes_GET_SIZE(data)
        if self.body_bytes > self.engine.body_bytes_max:
            self.refuse(E_BODY_TOO_LARGE, None)
            return 0
        if self.engine.waiting_bytes > self.engine.waiting_bytes_max:
            self.refuse(E_OVERLOADED, None)
            return 0
        if self.form_type is not None:
            return 0
        code = self.scanner.feed(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        if code and self.state == C_READ:
            self.refuse(code, self.scanner.error_param)
        return 0

    cdef int body_end(self) except -1:
        self.body_complete = True
        if self.state == C_READ:
            self.admit_and_forward()
        return 0

    # ---- admit ----

    cdef int admit_and_forward(self) except -1:
        cdef int code = self.scanner.finish() if self.form_type is None else self.read_form()
        if code:
            self.refuse(code, self.scanner.error_param)
        elif self.idempotency_key is not None and not self.endpoint.free:
            self.claim()
        else:
            self.go_on()
        return 0

    cdef int go_on(self) except -1:
        cdef int code
        if (self.scanner.background | self.scanner.stored_context) and self.endpoint.format == F_RESPONSES:
            self.state = C_ASIDE
            self.engine.hooks.aside(self)
            return 0
        code = self.admit()
        if code:
            self.refuse(code, "x-relay-channel" if code == E_INVALID_VALUE else None)
        else:
            self.forward()
        return 0

    cdef int claim(self) except -1:
        """Asks for the caller's Idempotency-Key: `claim_known` is called now or later. Only HMACs of key and body are kept."""
        cdef bytes account = b"idempotency %d " % self.key.account_id
        cdef bytes tag = <bytes>hmac_digest(self.engine.pepper, b"body " + self.endpoint.name.encode() + b" "
                                            + b"".join(self.body), "sha256")
        self.state = C_CLAIM
        self.claimed = <bytes>hmac_digest(self.engine.pepper, account + self.idempotency_key, "sha256")
        memcpy(&self.claimed_body, PyBytes_AS_STRING(tag), 8)
        self.claimed_body &= 0x7FFFFFFFFFFFFFFF
        self.idempotency_key = None
        self.engine.hooks.claim(self, self.claimed, self.claimed_body)
        return 0

    def claim_known(self, int64_t first_id, bint same):
        """The answer to `claim`. 0: the key is this call's. Otherwise the call that has it, and whether its body is equal."""
        cdef char[20] text
        if self.state != C_CLAIM:
            return
        try:
            if first_id == 0:
                self.state = C_READ
                self.go_on()
            else:
                self.claimed = None
                self.engine.id_text(first_id, text)
                self.refuse(E_IDEMPOTENCY_REPEAT, PyUnicode_DecodeASCII(text, 18, NULL) + ("" if same else " with another body"))
        except Exception as error:
            self.broken(error)

    def claim_failed(self):
        """The keys cannot be looked up now."""
        if self.state == C_CLAIM:
            self.stop(E_STORE_UNAVAILABLE)

    cdef int read_form(self) except -1:
        """A multipart body is complete: what it says takes the place of what the scanner would have found."""
        cdef RequestScanner scanner = self.scanner
        cdef bytes param
        form = self.form = self.engine.hooks.read_form(self.endpoint.name, self.endpoint.format, self.form_type,
                                                       b"".join(self.body), scanner.table)
        if form.code:
            param = form.param.encode() if form.param is not None else None
            scanner.error_param = param
            return form.code
        scanner.model = form.model
        scanner.model_start = form.model_start
        scanner.model_end = form.model_end
        scanner.stream = form.stream
        scanner.choices = form.choices
        return 0

    # What Python sees of a call that is set aside.

    def facts(self):
        """What a decision about a call set aside needs."""
        cdef RequestScanner scanner = self.scanner
        return {
            "endpoint": self.endpoint.name, "scope_bit": self.endpoint.scope_bit, "key": self.key,
            "body": b"".join(self.body), "fields": self.passed_fields, "model": scanner.model,
            "model_span": (scanner.model_start, scanner.model_end), "background": bool(scanner.background),
            "stream": scanner.stream == 1, "output_limit": scanner.output_limit, "prompt_tokens": scanner.prompt_tokens(),
            "web_search": bool(scanner.web_search), "max_cost_nano": self.max_cost_nano, "wall_ns": self.wall_ns,
            "address": self.source_packed,
        }

    def proceed(self, str channel=None):
        """Nothing stands in the way of a call that was set aside. `channel`: the one that it has to go to."""
        cdef int code
        cdef Route route
        if self.state != C_ASIDE:
            return
        try:
            self.state = C_READ
            self.scanner.background = False
            code = self.admit()
            if code:
                self.refuse(code, "x-relay-channel" if code == E_INVALID_VALUE else None)
                return
            if channel is not None:
                self.tried = [route.channel for route in <list>self.model.routes[self.endpoint.dialect]
                              if route.channel.name != channel]
            self.forward()
        except Exception as error:
            self.broken(error)

    def turn_down(self, int code, str param=None):
        """Refuses a call that was set aside."""
        if self.state == C_ASIDE:
            self.refuse(code, param)

    def answer(self, int status, int code, bytes fields, bytes body):
        """Answers a call that was set aside with somebody else's words; `fields` are whole lines."""
        cdef Buffer b
        cdef bint reusable = self.client.request_read
        cdef char[20] text
        if self.state != C_ASIDE:
            return
        self.status = status
        self.attempts = 1
        self.engine.id_text(self.id, text)
        self.end(code, status, False)
        b = self.cleared_buffer()
        b.add_text(b"HTTP/1.1 ")
        b.add_int(status)
        b.add(b" ", 1)
        b.add_bytes(<bytes>self.engine.reasons.get(status, b"OK"))
        b.add(b"\r\n", 2)
        b.add_bytes(fields)
        b.add_text(b"x-relay-request-id: ")
        b.add(text, 18)
        b.add(b"\r\n", 2)
        self.add_own_fields(b)
        b.add_text(b"Content-Length: ")
        b.add_int(PyBytes_GET_SIZE(body))
        b.add_text(b"\r\n\r\n")
        b.add_bytes(body)
        if self.client.transport is not None:
            self.client.transport.write(b.take())
        self.client.answered(reusable)

    cdef int admit(self) except -1:
        """Model, limits, hold: everything or nothing, and no wait in between."""
        cdef Engine engine = self.engine
        cdef RequestScanner scanner = self.scanner
        cdef Endpoint endpoint = self.endpoint
        cdef bytes name = self.path_model if endpoint.model_in_path else scanner.model
        cdef int64_t now, bound
        cdef Rate rate
        self.stream = endpoint.stream_by_path or scanner.stream == 1
        if not engine.store_writable:
            return E_STORE_UNAVAILABLE
        if engine.memory_short:
            return E_OVERLOADED
        if scanner.background == 1:
            return E_UNSUPPORTED_FEATURE
        if name is None:
            if endpoint.format != F_MODERATIONS:
                return E_MISSING_MODEL
            name = DEFAULT_MODERATION      # the provider's own default
        self.model = <Model>engine.models.get(name)
        code = self.check_access(name)
        if code:
            return code
        if self.model is None or not self.model.routes[endpoint.dialect]:
            return E_MODEL_NOT_FOUND
        self.routes = <list>self.model.routes[endpoint.dialect]
        if self.wanted_channel is not None:
            code = self.narrow()
            if code:
                return code
        rate = engine.free_rate if endpoint.free else self.model.rate
        if rate is None:
            return E_MODEL_UNPRICED
        if scanner.priority and not rate.prices_priority and rate is not engine.free_rate:
            return E_UNSUPPORTED_FEATURE      # what it would cost the operator has no price here
        self.prompt_counted = scanner.prompt_tokens() if self.form is None else self.form.prompt_tokens
        self.prompt_tokens = (<Route>self.routes[0]).prompts.apply_tokens(self.prompt_counted)
        self.admission = Admission()
        if scanner.web_search:
            self.admission.web_searches = engine.policy.hold_web_searches
        bound = self.output_bound() if endpoint.format < F_MODERATIONS else self.media_bound(rate)
        # The buckets are asked at the time of now: the call may have begun long before, with a slow body or a key that
        # was loaded, and to the clock of its beginning a bucket that others used since, or that is new, is not full.
        now = monotonic_ns()
        code = self.admission.admit(self.key, rate, self.prompt_tokens, bound, scanner.choices,
                                    self.stream and endpoint.format < F_MODERATIONS, self.max_cost_nano, engine.policy, now, now + engine.wall_offset_ns)
        if code == 0 and engine.journal is not None and not self.open_slot(rate):
            self.admission.release(now)
            code = E_OVERLOADED
        return code

    # ---- the journal ----

    cdef bint open_slot(self, Rate rate) except -1:
        """Writes what a dead process's successor would need to charge this call. False: there are too many open calls."""
        cdef Journal journal = self.engine.journal
        cdef Slot* slot = journal.open()
        if slot == NULL:
            return False
        slot.id = self.id
        slot.account_id = self.key.account_id
        slot.organisation_id = self.key.organisation_id
        slot.key_id = self.key.key_id
        slot.wall_ns = self.wall_ns
        slot.stream = self.stream
        slot.hold_nano = self.admission.hold_nano
        slot.max_cost_nano = self.max_cost_nano
        slot.prices = rate.prices
        slot.prompt_tokens = self.prompt_tokens
        if self.claimed is not None:
            memcpy(slot.idempotency, PyBytes_AS_STRING(self.claimed), 32)
            slot.idempotency_body = self.claimed_body
        journal.put_text(slot, T_PATH, self.endpoint.name)
        journal.put_text(slot, T_MODEL, self.model.name)
        journal.put_text(slot, T_CARD, rate.card)
        if self.engine.keep_source_ip:
            journal.put_text(slot, T_ADDRESS, self.source_ip)
        if self.engine.keep_user_agent:
            journal.put_text(slot, T_AGENT, self.engine.agent_of(self))
        self.route_texts = slot.text_used
        self.slot = slot
        journal.publish(slot)
        return True

    cdef int note_route(self) except -1:
        cdef Slot* slot = self.slot
        if slot != NULL:
            slot.attempts = self.attempts
            slot.text_size[T_UPSTREAM_MODEL] = slot.text_size[T_CHANNEL] = 0xFFFF
            slot.text_used = self.route_texts
            self.engine.journal.put_text(slot, T_UPSTREAM_MODEL, self.route.upstream_model)
            self.engine.journal.put_text(slot, T_CHANNEL, self.route.channel.name)
        return 0

    cdef void note_delivery(self) noexcept:
        """What is written to the client up to now, for the journal: a handful of stores."""
        cdef Slot* slot = self.slot
        cdef UsageTap tap = self.tap
        if slot == NULL or not self.body_sent or tap is None:
            return
        slot.counted_tokens = self.counted()
        if tap.usage_seen:
            tap_normalise(&tap.tap, &slot.usage)
            if by_the_piece(tap.tap.format):
                charge_one_way(&tap.tap, &self.admission.rate.prices, &slot.usage)
            slot.usage_seen = 2 if tap.terminal_seen else 1
        if not self.admission.rate.plain:
            slot_cost(slot, self.admission.rate, tap.tap.service)
        slot.delivered = 1

    cdef int check_access(self, bytes model_name) except -1:
        """What the key may do, before what it may spend: status, address, endpoint, model."""
        cdef ApiKey key = self.key
        cdef bytes address = self.source_packed
        cdef int code = key.check_status(self.wall_ns)
        if code == 0:
            code = key.check_address(<const uint8_t*>PyBytes_AS_STRING(address), <int>PyBytes_GET_SIZE(address)) \
                if address is not None else key.check_address(NULL, 0)
        if code == 0:
            code = key.check_scope(<uint32_t>self.endpoint.scope_bit)
        if code == 0 and self.model is not None:
            code = key.check_model(model_name)
        return code

    cdef int64_t output_bound(self):
        """Output tokens that the answer cannot exceed, -1 where the caller set no limit; 0 where there is no output."""
        if self.endpoint.free or self.endpoint.format in (F_EMBEDDINGS, F_GEMINI_EMBED):
            return 0
        return self.scanner.output_limit

    cdef int64_t media_bound(self, Rate rate) except -2:
        """The same for endpoints whose answer is no text, with what they may use of what is priced by the piece."""
        cdef int format = self.endpoint.format
        if format == F_IMAGES:
            if rate.prices.image:
                self.admission.images = self.scanner.choices
                return 0
            return IMAGE_TOKENS_MAX
        if format == F_TRANSCRIPTION:
            if rate.prices.video_second:
                self.admission.video_seconds = self.seconds_estimate = self.form.seconds
                self.prompt_counted = self.prompt_tokens = 0
                return 0
            self.output_estimate = self.form.output_tokens
            return self.output_estimate
        if format == F_RERANK and rate.prices.web_search:
            self.admission.web_searches = self.engine.policy.hold_web_searches
        elif format == F_SPEECH:
            # Raw sound comes without a report. Without a price of output the text is charged by its characters.
            characters = self.engine.hooks.speech_characters(self.body)
            if not rate.prices.output:
                self.prompt_counted = self.prompt_tokens = characters
            self.output_estimate = characters * SPEECH_TOKENS_PERMILLE // 1000 if rate.prices.output else 0
            return 2 * self.output_estimate
        return 0

    # ---- route and forward ----

    cdef int narrow(self) except -1:
        """x-relay-channel: the caller names a channel, or a tag of several."""
        cdef Route route
        cdef list routes = []
        cdef str wanted
        if self.key.check_scope(self.engine.channel_scope):
            return E_SCOPE_NOT_ALLOWED
        wanted = self.wanted_channel.decode()
        for route in self.routes:
            if route.channel.name == wanted or wanted in route.channel.tags:
                routes.append(route)
        if not routes:
            return E_INVALID_VALUE
        self.routes = routes
        return 0

    cdef int find_affinity(self) except -1:
        """Calls of one key and model whose prompts begin alike belong together: their provider has that beginning cached.

        In memory only, under a key of this process: the number is no trace of what was said. Providers cache nothing below
        1,024 tokens.
        """
        cdef uint8_t[PREFIX_BYTES + 16] prefix
        cdef int64_t at, part_size, skip, size = 0, model
        cdef bytes part
        cdef hash128 h
        if not (self.endpoint.format == F_CHAT or self.endpoint.format == F_RESPONSES or self.endpoint.format == F_MESSAGES
                or self.endpoint.format == F_GENERATE):
            return 0
        at = self.scanner.prefix_start(PREFIX_BYTES)
        if at < 0:
            return 0
        memcpy(&prefix[PREFIX_BYTES], &self.key.key_id, 8)
        model = <int64_t>hash(self.model.name)
        memcpy(&prefix[PREFIX_BYTES + 8], &model, 8)
        skip = at
        for part in self.body:
            part_size = PyBytes_GET_SIZE(part)
            if skip >= part_size:
                skip -= part_size
                continue
            part_size = min(part_size - skip, PREFIX_BYTES - size)
            memcpy(&prefix[size], PyBytes_AS_STRING(part) + skip, part_size)
            size += part_size
            skip = 0
            if size == PREFIX_BYTES:
                break
        h = siphash(self.engine.hash_key[0], self.engine.hash_key[1], prefix, PREFIX_BYTES + 16)
        self.affinity = h.low | 1
        return 0

    cdef int forward(self) except -1:
        """Finds a channel and sends the request there."""
        cdef int64_t now = monotonic_ns()
        cdef Route route = self.engine.choose(self, now)
        if route is None:
            self.refuse(self.engine.no_way(self, now) if self.attempts == 0 else self.status_of_failure(), None)
            return 0
        return self.forward_to(route, now)

    cdef int forward_to(self, Route route, int64_t now) except -1:
        """Sends the request on, over a kept connection or a new one."""
        cdef UpstreamConnection connection
        self.route = route
        if self.attempts == 0:
            self.engine.retry_budget.calls_now += 1
        self.attempts += 1
        self.note_route()
        route.channel.in_flight += 1
        self.on_channel = True
        connection = route.channel.take_idle(now)
        self.phase_ns = now
        if connection is None:
            self.state = C_CONNECT
            self.engine.hooks.connect(route.channel, self)
        else:
            self.send(connection)
        return 0

    cdef int last_failure
    cdef int status_of_failure(self):
        return self.last_failure or E_UPSTREAM_FAILED

    def connected(self, UpstreamConnection connection):
        """From the connect hook: a new connection is open."""
        if self.state != C_CONNECT:
            connection.give_back(monotonic_ns())     # the call ended meanwhile; the connection is good for another
            return
        try:
            self.send(connection)
        except Exception as error:
            self.broken(error)

    def connect_failed(self, bint timed_out):
        """From the connect hook: no connection could be made."""
        if self.state == C_CONNECT:
            try:
                self.attempt_failed(E_UPSTREAM_TIMEOUT if timed_out else E_UPSTREAM_UNAVAILABLE)
            except Exception as error:
                self.broken(error)

    cdef int send(self, UpstreamConnection connection) except -1:
        cdef Buffer b = self.engine.buffer
        cdef Channel channel = self.route.channel
        cdef list body = self.upstream_body()
        cdef int64_t size = 0
        cdef bytes part
        for part in body:
            size += PyBytes_GET_SIZE(part)
        self.connection = connection
        connection.call = self
        b.size = 0
        b.add(b"POST ", 5)
        b.add_bytes(self.route.base_path)
        if self.endpoint.model_in_path:
            b.add_bytes(self.route.model_path)
        b.add_bytes(self.endpoint.upstream_path)
        if self.query is not None:
            b.add_bytes(self.query)
        if channel.query is not None:
            b.add(b"?" if self.query is None else b"&", 1)
            b.add_bytes(channel.query)
        b.add_text(b" HTTP/1.1\r\n")
        b.add_bytes(channel.host_line)
        b.add_bytes(self.upstream_key.line)
        b.add_bytes(self.passed_fields)
        b.add_text(b"Accept-Encoding: identity\r\nContent-Length: ")
        b.add_int(size)
        b.add_text(b"\r\n\r\n")
        self.state = C_HEAD
        self.sent_ns = self.phase_ns = monotonic_ns()
        if b.size + size <= ONE_WRITE_BYTES_MAX:
            for part in body:
                b.add_bytes(part)
            connection.transport.write(b.take())
        else:
            self.large_request = True
            connection.transport.writelines([b.take(), *body])
        return 0

    cdef list upstream_body(self):
        """The body as it goes on: byte for byte, but for a renamed model and a usage report asked for by us."""
        cdef list edits = []
        cdef RequestScanner scanner = self.scanner
        if self.route.upstream_model_json is not None and not self.endpoint.model_in_path:
            if self.form is not None:
                if scanner.model_start >= 0:
                    edits.append((scanner.model_start, scanner.model_end, self.route.upstream_model.encode()))
                else:
                    edits.append((0, 0, self.form.opening + self.route.upstream_model.encode() + b"\r\n"))
            elif scanner.model_start >= 0:
                edits.append((scanner.model_start, scanner.model_end, self.route.upstream_model_json))
            else:
                edits.append((scanner.object_start, scanner.object_start, b'"model":' + self.route.upstream_model_json
                              + (b"" if scanner.object_empty else b",")))
        self.strip = False
        if self.route.channel.ask_usage and self.endpoint.format in (F_CHAT, F_COMPLETIONS) and self.stream \
                and scanner.include_usage != 1:
            self.strip = True
            edits.append(self.engine.hooks.usage_request(
                self.body, scanner.stream_options_start, scanner.stream_options_end, scanner.object_start, scanner.object_empty))
        if not edits:
            return self.body
        return splice(self.body, edits)

    cdef int attempt_failed(self, int code, int blame=BLAME_CHANNEL) except -1:
        """This attempt is over and the client has seen nothing: another key or the next channel, or the refusal."""
        cdef Route route = self.route
        cdef Channel channel = route.channel
        cdef UpstreamKey key = None
        cdef int64_t now = monotonic_ns()
        if blame == BLAME_CHANNEL:
            self.attempt_bad(code)
        self.drop_connection()
        channel.failures += 1
        self.last_failure = code
        self.head_bytes = None
        self.error_parts = None
        if blame == BLAME_KEY:
            key = self.other_key(now)
        if key is None:
            if self.tried is None:
                self.tried = []
            self.tried.append(channel)
        if not self.may_retry() or (key is None and not self.engine.another_way(self, now)):
            self.refuse(code, None)
        elif not self.engine.retry_budget.take():
            self.refuse(code, None)
        elif key is not None:
            self.upstream_key = key      # nothing was processed: the key was refused, not the call
            self.forward_to(route, now)
        else:
            self.forward()
        return 0

    cdef UpstreamKey other_key(self, int64_t now):
        """Another key of the channel, after the one of this attempt was refused. None: there is none, or none has to rest."""
        cdef Route route = self.route
        if route.channel.breaker.state != BREAKER_CLOSED or self.upstream_key.wakes_ns(route.upstream_model) <= now:
            return None
        return route.channel.awake_key(route.upstream_model, self.affinity, now)

    cdef bint may_retry(self) noexcept:
        return self.endpoint.inference and self.attempts < self.engine.attempts_max

    cdef inline void attempt_good(self, int64_t now):
        """The upstream answers calls: for its breaker."""
        cdef Channel channel = self.route.channel
        if channel.breaker.state == BREAKER_CLOSED:
            channel.breaker.succeeded(now)
        elif self.probe:
            self.probe = False
            if channel.breaker.end_probe(now, 1, 0):
                self.engine.breaker_changed(channel)

    cdef void attempt_bad(self, int code):
        """The upstream failed, and not because of its key or of this call."""
        cdef Channel channel = self.route.channel
        cdef bint changed
        if self.probe:
            self.probe = False
            changed = channel.breaker.end_probe(monotonic_ns(), 0, code)
        else:
            changed = channel.breaker.failed(monotonic_ns(), code)
        if changed:
            self.engine.breaker_changed(channel)

    cdef void leave_channel(self):
        if self.on_channel:
            self.on_channel = False
            self.route.channel.in_flight -= 1
            if self.probe:
                self.probe = False
                self.route.channel.breaker.end_probe(0, -1, 0)

    cdef void drop_connection(self):
        """The upstream is of no use any more: its connection is closed, whatever it was sending."""
        cdef UpstreamConnection connection = self.connection
        self.leave_channel()
        if connection is not None:
            self.connection = None
            connection.call = None
            connection.close()

    # ---- the answer ----

    cdef int upstream_data(self, bytes data) except -1:
        """Bytes from the upstream."""
        cdef Py_ssize_t end
        try:
            self.active_tick = self.engine.tick
            if self.state == C_RELAY:
                self.relay(data, 0, None)
            elif self.state == C_HEAD:
                self.read_head(data)
            elif self.state == C_ERROR_BODY or self.state == C_COLLECT:
                self.read_error(data, 0)
            else:
                self.drop_connection()
        except Exception as error:
            self.broken(error)
        return 0

    cdef int read_head(self, bytes data) except -1:
        cdef Py_ssize_t searched = 0, end
        cdef ResponseHead head
        cdef const uint8_t* p
        if self.head_bytes is not None:
            searched = PyBytes_GET_SIZE(self.head_bytes)
            data = self.head_bytes + data
            self.head_bytes = None
        p = <const uint8_t*>PyBytes_AS_STRING(data)
        while True:
            end = find_head_end(p, PyBytes_GET_SIZE(data), searched)
            if end < 0:
                if PyBytes_GET_SIZE(data) > RESPONSE_HEAD_BYTES_MAX or (
                        PyBytes_GET_SIZE(data) >= 7 and memcmp(p, b"HTTP/1.", 7) != 0):
                    return self.attempt_failed(E_UPSTREAM_GARBAGE)
                self.head_bytes = data
                return 0
            if end > RESPONSE_HEAD_BYTES_MAX:
                return self.attempt_failed(E_UPSTREAM_GARBAGE)
            head = self.connection.head
            if head.parse(p, end, self.engine.fields) < 0 or head.status == 101:
                return self.attempt_failed(E_UPSTREAM_GARBAGE)
            if head.status >= 200:
                break
            data = data[end:]      # 100, 103: not the answer yet
            p = <const uint8_t*>PyBytes_AS_STRING(data)
            searched = 0
        self.head = head
        self.status = head.status
        self.first_byte_ns = monotonic_ns()
        self.remaining = head.length
        chunked_init(&self.chunked)
        if head.status >= 300:
            if head.status < 400:
                return self.attempt_failed(E_UPSTREAM_GARBAGE)     # a redirect is never followed
            self.state = C_ERROR_BODY
            self.error_parts = []
            self.error_bytes = 0
            return self.read_error(data, end)
        self.attempt_good(self.first_byte_ns)
        return self.begin_answer(data, end)

    cdef int read_error(self, bytes data, Py_ssize_t offset) except -1:
        """Holds an error answer back until it is whole: what is about the operator's own account must not pass."""
        cdef Py_ssize_t i = offset, n = PyBytes_GET_SIZE(data), start, size
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef bint whole = False
        if offset:
            data = data[offset:]
            p = <const uint8_t*>PyBytes_AS_STRING(data)
            n -= offset
            i = 0
        self.error_parts.append(data)
        self.error_bytes += n
        if self.head.framing == B_NONE:
            whole = True
        elif self.head.framing == B_LENGTH:
            whole = self.error_bytes >= self.head.length
        elif self.head.framing == B_CHUNKED:
            while i < n and self.chunked.state < K_END:
                i += chunked_next(&self.chunked, p + i, n - i, &start, &size)
            if self.chunked.state == K_BAD:
                return self.attempt_failed(E_UPSTREAM_GARBAGE)
            whole = self.chunked.state == K_END
        if self.state == C_COLLECT:
            if whole:
                return self.annotate_collected()
            if self.error_bytes > COLLECTED_BYTES_MAX:
                return self.pass_collected()
        elif whole or self.error_bytes > ERROR_BODY_BYTES_MAX:
            return self.judge_error()
        return 0

    cdef int pass_collected(self) except -1:
        """What was collected goes on as it came."""
        cdef bytes data = b"".join(self.error_parts)
        self.error_parts = None
        self.annotate = False
        chunked_init(&self.chunked)
        return self.begin_answer(data, 0)

    cdef int annotate_collected(self) except -1:
        """An answer that is one JSON document is complete: its usage object gains what the call costs."""
        cdef bytes data = b"".join(self.error_parts), rest = b"", body
        cdef UsageTap tap = UsageTap(self.endpoint.format, 0, self.route.table)
        cdef object changed = None
        cdef ResponseHead head = self.head
        body = data
        if head.framing == B_CHUNKED:
            body, _, rest = decode_chunked([data])
        elif head.framing == B_LENGTH:
            body, rest = data[:head.length], data[head.length:]
        tap.feed(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        changed = self.annotated(body, False, tap)
        if changed is None:
            return self.pass_collected()
        if rest or head.framing == B_CLOSE:
            head.close = True
        head.framing = B_LENGTH
        head.length = self.remaining = PyBytes_GET_SIZE(<bytes>changed)
        self.error_parts = None
        self.annotate = False
        return self.begin_answer(<bytes>changed, 0)

    cdef object annotated(self, bytes data, bint event, UsageTap tap):
        """The document or event with the cost in its usage object; None where there is none to be changed."""
        cdef Usage usage
        cdef Balance balance = self.admission.balance
        cdef Rate rate = self.admission.rate
        cdef int64_t cost
        tap_normalise(&tap.tap, &usage)
        if by_the_piece(tap.tap.format):
            charge_one_way(&tap.tap, &rate.prices, &usage)
        if not tap.usage_seen or usage.input_tokens > ABSURD_TOKENS or usage.output_tokens > ABSURD_TOKENS:
            return None
        cost = rate.cost_of(&usage)
        return self.engine.hooks.annotate(data, event, cost, rate.card,
                                          max(balance.available_nano + balance.held_nano - cost, <int64_t>0))

    cdef int judge_error(self) except -1:
        cdef bytes data = b"".join(self.error_parts)
        cdef Channel channel = self.route.channel
        cdef int verdict, blame
        cdef int64_t now
        body = data
        if self.head.framing == B_CHUNKED:
            body = decode_chunked([data])[0]
        now = monotonic_ns()
        verdict, rest_ns, all_models = self.engine.hooks.judge_error(
            self.endpoint.dialect, self.status, self.head.encoding, body, self.route.channel,
            PyBytes_FromStringAndSize(self.head.passed.data, self.head.passed.size))
        if rest_ns:
            channel.rest_key(self.upstream_key, None if all_models else self.route.upstream_model, now + <int64_t>rest_ns,
                             E_UPSTREAM_ACCOUNT if verdict == 1 else E_UPSTREAM_UNAVAILABLE)
        if verdict == 1:
            return self.attempt_failed(E_UPSTREAM_ACCOUNT, BLAME_KEY)
        if verdict == 0:
            self.attempt_good(now)
        else:
            blame = BLAME_CHANNEL if self.status >= 500 else BLAME_KEY if self.status == 429 else BLAME_NOBODY
            if self.may_retry() and self.engine.retry_budget.left() and (
                    self.engine.another_way(self, now) or (blame == BLAME_KEY and self.other_key(now) is not None)):
                return self.attempt_failed(E_UPSTREAM_FAILED, blame)
            if blame == BLAME_CHANNEL:
                self.attempt_bad(E_UPSTREAM_ERROR)
        self.error_parts = None
        chunked_init(&self.chunked)
        return self.begin_answer(data, 0)

    cdef int begin_answer(self, bytes data, Py_ssize_t offset) except -1:
        """The head is good: from here on the client sees this upstream's answer."""
        cdef ResponseHead head = self.head
        cdef int kind
        self.state = C_RELAY
        if self.slot != NULL:
            self.slot.status = head.status
            self.slot.first_byte_us = (self.first_byte_ns - self.began_ns) // 1000
        if head.status < 300:
            if head.event_stream:
                kind = 1
            elif self.endpoint.stream_by_path:
                kind = 2
            else:
                kind = 0
            self.tap = UsageTap(self.endpoint.format, kind, self.route.table)
            self.metered = self.stream and not self.endpoint.free and kind != 0 and self.endpoint.format < F_MODERATIONS
            self.prompt_known = self.endpoint.format != F_MESSAGES and self.endpoint.format != F_GENERATE   # others say it last
            if kind == 1 and self.endpoint.format == F_SPEECH:
                self.stream = True      # its request says so in a field of its own
            if head.compressed:
                self.decoder = self.engine.hooks.decoder(head.encoding)
            self.strip = self.strip and head.event_stream and not head.compressed
            if self.annotate:
                self.annotate = not (head.compressed or self.endpoint.free or head.framing == B_NONE)
                if self.annotate and kind == 0 and self.endpoint.format != F_SPEECH:
                    self.state = C_COLLECT
                    if self.slot != NULL:
                        self.slot.status = 0      # the client sees nothing of it yet
                    self.error_parts = []
                    self.error_bytes = 0
                    return self.read_error(data, offset)
                self.annotate = self.annotate and kind == 1
        else:
            self.strip = self.annotate = False
        self.plain = self.client.http10 and (head.framing == B_CHUNKED or self.annotate)
        self.reframe = not self.plain and (
            self.strip or self.annotate or (head.framing == B_CLOSE and not self.client.http10))
        if self.strip or self.annotate:
            self.held = Buffer()
        return self.relay(data, offset, self.response_head())

    cdef bytes response_head(self):
        cdef ResponseHead head = self.head
        cdef Buffer b = self.engine.buffer
        cdef char[20] text
        b.size = 0
        b.add_text(b"HTTP/1.1 ")
        b.add_int(head.status)
        b.add(b" ", 1)
        b.add_bytes(head.reason)
        b.add(b"\r\n", 2)
        b.add(head.passed.data, head.passed.size)
        if self.reframe or (head.framing == B_CHUNKED and not self.plain):
            b.add_text(b"Transfer-Encoding: chunked\r\n")
        elif head.framing == B_LENGTH:
            b.add_text(b"Content-Length: ")
            b.add_int(head.length)
            b.add(b"\r\n", 2)
        if self.plain or (head.framing == B_CLOSE and not self.reframe):
            b.add_text(b"Connection: close\r\n")
        b.add_text(b"x-relay-request-id: ")
        self.engine.id_text(self.id, text)
        b.add(text, 18)
        b.add(b"\r\n", 2)
        self.add_own_fields(b)
        b.add(b"\r\n", 2)
        self.head_sent = True
        return b.take()

    cdef int add_own_fields(self, Buffer b) except -1:
        """server-timing and the key's limits in the dialect's names."""
        cdef int64_t now = monotonic_ns()
        b.add_text(b"server-timing: relay;dur=")
        if self.sent_ns:
            b.add_millis(self.sent_ns - self.began_ns)
            if self.first_byte_ns:
                b.add_text(b", upstream;dur=")
                b.add_millis(self.first_byte_ns - self.sent_ns)
        else:
            b.add_millis(now - self.began_ns)
        b.add(b"\r\n", 2)
        if self.key is not None:
            self.engine.add_limits(b, self.key, self.endpoint.dialect, now, self.wall_ns)
        return 0

    # ---- relay ----

    cdef int relay(self, bytes data, Py_ssize_t offset, bytes head) except -1:
        """A read from the upstream on its way to the client, in one write."""
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data), i = offset, start, size, taken, last = offset, eaten
        cdef bint ended = False, bad = False
        cdef Buffer out = self.engine.buffer
        cdef int framing = self.head.framing
        out.size = 0
        if framing == B_CHUNKED:
            while i < n and not self.cut:
                if self.chunked.state == K_SIZE and self.chunked.digits == 0:
                    last = i          # where the framing of the next chunk begins
                eaten = chunked_next(&self.chunked, p + i, n - i, &start, &size)
                if size:
                    taken = self.payload(p + i + start, size, out)
                    if self.cut:
                        i += start + taken
                        self.cut_bytes = size - taken
                        break
                    last = i + eaten      # what was counted passes, whatever follows it
                i += eaten
                if self.chunked.state >= K_END:
                    bad = self.chunked.state == K_BAD
                    ended = not bad
                    break
            if ended and i < n:
                self.head.close = True      # bytes behind the answer: this connection is not used again
        elif framing == B_LENGTH:
            size = n - i
            if size > self.remaining:
                size = <Py_ssize_t>self.remaining
                self.head.close = True
            taken = self.payload(p + i, size, out)
            i += taken
            self.remaining -= taken
            ended = self.remaining == 0 and not self.cut
        elif framing == B_CLOSE:
            i += self.payload(p + i, n - i, out)
        else:
            ended = True
            if i < n:
                self.head.close = True
        if ended and framing == B_CHUNKED and self.ended_early():
            # the framing is complete but the stream is not: its last chunk is kept back, so that the client sees a cut
            ended = False
            bad = True
            i = last
        if bad and not (ended or self.cut) and framing == B_CHUNKED and self.chunked.state == K_BAD:
            i = last
        self.note_delivery()     # before the write: a process killed inside it must not have given away what it wrote
        self.write_out(data, offset, i, head, out, ended)
        if self.cut:
            return self.fail(self.cut_code)
        if bad:
            return self.fail(E_UPSTREAM_TRUNCATED if self.chunked.state == K_END else E_UPSTREAM_GARBAGE)
        if ended:
            return self.finish()
        return 0

    cdef int cut_code

    cdef bint ended_early(self):
        """A stream whose framing ended before its dialect's last event."""
        if self.tap is None or self.tap_kind() != 1 or not self.stream or self.decoder is not None or self.head.compressed:
            return False
        if self.endpoint.format not in (F_CHAT, F_COMPLETIONS, F_RESPONSES, F_MESSAGES, F_GENERATE, F_IMAGES, F_SPEECH):
            return False
        return not (self.tap.terminal_seen or self.tap.finish_seen or self.tap.error_seen)

    cdef int tap_kind(self):
        return 1 if self.head.event_stream else 0

    cdef Py_ssize_t payload(self, const uint8_t* p, Py_ssize_t n, Buffer out) except -1:
        """Body bytes: a copy into the tap, and into `out` where we frame ourselves. Returns how many may pass (all, unless cut)."""
        cdef Py_ssize_t i = 0, k
        if self.tap is None:
            i = n
        elif self.head.compressed:
            if self.decoder is not None:
                self.feed_decoded(p, n)
            i = n
        elif (self.metered or self.annotate) and self.head.event_stream:
            while i < n:
                k = self.tap.feed_event(p + i, n - i)
                if self.held is not None:
                    self.hold_event(p + i, k, out)
                i += k
                if self.tap.event_ended and self.metered:
                    if not self.prompt_known and self.tap.usage_seen:
                        self.correct_prompt()
                    if self.counted() > self.admission.output_allowance and not self.grow():
                        break
        else:
            self.tap.feed(p, n)
            i = n
            if self.metered and self.counted() > self.admission.output_allowance:
                self.grow()
        if i:
            self.body_sent = True
        if (self.reframe or self.plain) and self.held is None and i:
            self.frame(out, p, i)
        return i

    cdef int64_t counted(self) noexcept:
        """Output tokens delivered so far: what a cumulative report has said (Gemini), and from there on our own count with
        what was learnt about this model."""
        return self.tap.tap.output_at_report + self.route.outputs.apply_tokens(self.tap.unreported_tokens())

    cdef int correct_prompt(self) except -1:
        """An early event says what the prompt was (Anthropic's message_start, Gemini's every event)."""
        cdef Usage usage
        tap_normalise(&self.tap.tap, &usage)
        self.prompt_known = True
        if 0 < usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens + usage.cache_write_1h_tokens <= ABSURD_TOKENS:
            self.admission.correct_prompt(&usage)
        return 0

    cdef bint grow(self) except -1:
        """Another slice of output on the hold. Where it cannot be had the answer ends here."""
        cdef int code = self.admission.grow(self.counted(), self.engine.wall_ns())
        if code:
            self.cut = True
            self.cut_code = code
        return code == 0

    cdef int feed_decoded(self, const uint8_t* p, Py_ssize_t n) except -1:
        cdef bytes piece
        try:
            for piece in self.decoder(PyBytes_FromStringAndSize(<const char*>p, n)):
                self.tap.feed(<const uint8_t*>PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
        except Exception:
            self.decoder = None      # a copy that cannot be read has no usage; the bytes pass all the same
        return 0

    cdef int hold_event(self, const uint8_t* p, Py_ssize_t n, Buffer out) except -1:
        """An event passes when it is whole: but for the usage report that the client did not ask for (ask_usage), and
        with the cost in its usage object (annotate). One that is too large for either passes as it comes."""
        if self.event_passes:
            self.frame(out, p, n)
        else:
            self.held.add(p, n)
            if self.tap.event_ended:
                if not (self.strip and self.tap.event_usage_only):
                    if self.annotate and self.tap.tap.event_usage and (
                            self.tap.finish_seen or self.tap.terminal_seen or self.tap.event_usage_only):
                        self.frame_annotated(out)
                    else:
                        self.frame(out, <const uint8_t*>self.held.data, self.held.size)
                self.held.size = 0
            elif self.held.size > EVENT_BYTES_HELD_MAX:
                self.frame(out, <const uint8_t*>self.held.data, self.held.size)
                self.held.size = 0
                self.event_passes = True
        if self.tap.event_ended:
            self.event_passes = False
        return 0

    cdef int frame_annotated(self, Buffer out) except -1:
        cdef object changed = self.annotated(PyBytes_FromStringAndSize(self.held.data, self.held.size), True, self.tap)
        if changed is None:
            return self.frame(out, <const uint8_t*>self.held.data, self.held.size)
        return self.frame(out, <const uint8_t*>PyBytes_AS_STRING(changed), PyBytes_GET_SIZE(<bytes>changed))

    cdef int frame(self, Buffer out, const uint8_t* p, Py_ssize_t n) except -1:
        if n == 0:
            return 0
        if self.reframe:
            out.add_hex(n)
            out.add(b"\r\n", 2)
            out.add(p, n)
            out.add(b"\r\n", 2)
        else:
            out.add(p, n)
        return 0

    cdef int write_out(self, bytes data, Py_ssize_t offset, Py_ssize_t end, bytes head, Buffer out, bint ended) except -1:
        cdef object transport = self.client.transport
        cdef Py_ssize_t size = end - offset
        if transport is None:
            return 0
        if self.reframe or self.plain:
            if ended:
                if self.held is not None and self.held.size:
                    self.frame(out, <const uint8_t*>self.held.data, self.held.size)
                    self.held.size = 0
                if self.reframe:
                    out.add(b"0\r\n\r\n", 5)
            if head is not None:
                transport.write(head + out.take() if out.size else head)
            elif out.size:
                transport.write(out.take())
            return 0
        if head is None:
            if offset == 0 and end == PyBytes_GET_SIZE(data):
                transport.write(data)
            elif size > 0:
                transport.write(data[offset:end])
        elif size <= ONE_WRITE_BYTES_MAX:
            out.size = 0
            out.add_bytes(head)
            out.add(PyBytes_AS_STRING(data) + offset, size)
            transport.write(out.take())
        else:
            transport.writelines([head, memoryview(data)[offset:end]])
        return 0

    # ---- endings ----

    cdef int upstream_ended(self) except -1:
        """The upstream closed its side."""
        try:
            if self.state == C_HEAD:
                self.attempt_failed(E_UPSTREAM_FAILED)
            elif self.state == C_ERROR_BODY:
                if self.head.framing == B_CLOSE:
                    self.judge_error()
                    if self.state == C_RELAY:
                        self.closed_body()
                else:
                    self.attempt_failed(E_UPSTREAM_FAILED)
            elif self.state == C_COLLECT:
                self.head.close = True
                if self.head.framing == B_CLOSE:
                    self.annotate_collected()
                else:
                    self.pass_collected()
                if self.state == C_RELAY:
                    self.closed_body()
            elif self.state == C_RELAY:
                self.closed_body()
        except Exception as error:
            self.broken(error)
        return 0

    cdef int closed_body(self) except -1:
        """The connection ended in the middle of an answer, or as the end of one that has no other."""
        if self.head.framing == B_CLOSE and not self.ended_early():
            self.write_out(b"", 0, 0, None, self.cleared_buffer(), True)
            return self.finish()
        return self.fail(E_UPSTREAM_TRUNCATED)

    cdef Buffer cleared_buffer(self):
        self.engine.buffer.size = 0
        return self.engine.buffer

    cdef int finish(self) except -1:
        """The answer is complete and delivered."""
        cdef UpstreamConnection connection = self.connection
        cdef bint reusable = not (self.plain or (self.head.framing == B_CLOSE and not self.reframe))
        self.connection = None
        self.leave_channel()
        if self.head.close or self.head.framing == B_CLOSE or (
                self.large_request and connection.transport.get_write_buffer_size() > 0):
            # the last: answered before the request had left, the rest of it would meet the next answer
            connection.call = None
            connection.close()
        else:
            connection.give_back(monotonic_ns())
        self.end(E_CLIENT_GONE if self.left_ns else E_NONE if self.status < 400 else E_UPSTREAM_ERROR, self.status, True)
        self.client.answered(reusable)
        return 0

    cdef int fail(self, int code) except -1:
        """The answer has begun and cannot be finished: the dialect's error event where one can stand, then the close."""
        cdef bytes event = None
        cdef object transport = self.client.transport
        if code == E_UPSTREAM_TRUNCATED or code == E_UPSTREAM_GARBAGE or code == E_UPSTREAM_STALLED:
            self.attempt_bad(code)
        self.drop_connection()
        if code != E_CLIENT_GONE and transport is not None and self.head_sent:
            if self.held is not None and self.held.size:
                out = self.cleared_buffer()
                self.frame(out, <const uint8_t*>self.held.data, self.held.size)
                self.held.size = 0
                transport.write(out.take())
            if self.stream and self.tap is not None and not self.head.compressed and self.tap.at_boundary:
                event = self.engine.hooks.render_stream_error(
                    self.endpoint.format, 1 if self.head.event_stream else 2, code, self.tap.sequence_number)
                if event:
                    self.inject(event)
            if not event and not self.reframe and (self.plain or self.head.framing == B_CLOSE):
                transport.abort()     # no framing could show the cut: a reset must
        self.end(code, self.status, False)
        self.client.answered(False)
        return 0

    cdef int inject(self, bytes event) except -1:
        """Writes bytes of our own into the body, wherever the framing that was passed on stands."""
        cdef Buffer out = self.cleared_buffer()
        cdef Py_ssize_t n = PyBytes_GET_SIZE(event), room
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(event)
        cdef int64_t size
        if self.reframe or self.plain or self.head.framing == B_CLOSE:
            self.frame(out, p, n)
        elif self.head.framing == B_LENGTH:
            return 0       # it would have to stand in the place of the provider's own bytes
        else:
            if self.cut_bytes > 0:
                # cut inside a chunk's data: its tail was not passed on
                self.chunked.state = K_DATA
            if self.chunked.state == K_DATA_CR:
                out.add(b"\r\n", 2)
            elif self.chunked.state == K_DATA_LF:
                out.add(b"\n", 1)
            if self.chunked.state in (K_DATA_CR, K_DATA_LF) or (self.chunked.state == K_SIZE and self.chunked.digits == 0) \
                    or self.chunked.state in (K_END, K_BAD):
                out.add_hex(n)
                out.add(b"\r\n", 2)
                out.add(p, n)
                out.add(b"\r\n", 2)
            else:
                # inside a chunk, or in the middle of a size that is already half sent
                if self.chunked.state == K_SIZE:
                    out.add_text(b"0000\r\n")
                    size = self.chunked.remaining << 16
                elif self.chunked.state == K_SIZE_LF:
                    out.add(b"\n", 1)
                    size = self.chunked.remaining
                elif self.chunked.state == K_DATA:
                    size = self.chunked.remaining + self.cut_bytes
                else:
                    return 0
                if size <= 0:
                    return 0
                room = n if n < size else <Py_ssize_t>size
                out.add(p, room)
                if room < n:
                    out.add(b"\r\n", 2)
                    out.add_hex(n - room)
                    out.add(b"\r\n", 2)
                    out.add(p + room, n - room)
                    out.add(b"\r\n", 2)
        self.client.transport.write(out.take())
        return 0

    cdef int64_t cut_bytes      # of the chunk under way, kept back by a cut-off

    cdef void client_gone(self):
        """The client closed its connection."""
        cdef int state = self.state
        try:
            if (state == C_RELAY or state == C_HEAD or state == C_COLLECT) and self.key.on_disconnect == ON_DISCONNECT_DRAIN and not self.engine.draining:
                self.read_on()
            elif state == C_RELAY:
                self.fail(E_CLIENT_GONE)
            elif state != C_DONE:
                self.drop_connection()
                self.end(E_CLIENT_GONE, 499, False)
                self.client.answered(False)
        except Exception as error:
            self.broken(error)

    cdef void read_on(self):
        """on_disconnect = "drain": nobody listens any more, but the upstream's own usage is worth waiting for, up to a bound."""
        cdef ClientSide client = self.client
        self.left_ns = monotonic_ns()
        self.left_tokens = self.tap.counted_tokens() if self.tap is not None else 0
        self.client = self.engine.nobody
        client.call = None
        if self.connection is not None:
            self.connection.resume()
        client.answered(False)

    cdef void stop(self, int code):
        """Ends a call in flight from outside: key revoked, account frozen, drain deadline."""
        try:
            if self.state == C_RELAY:
                self.fail(code)
            elif self.state != C_DONE:
                self.drop_connection()
                self.refuse(code, None)
        except Exception as error:
            self.broken(error)

    cdef int refuse(self, int code, object param) except -1:
        """Ends the call with an error of our own. Nothing of an upstream's answer has been seen by the client."""
        cdef int64_t retry_after_ns = 0
        cdef char[20] text
        cdef bint reusable = self.client.request_read
        if self.state == C_DONE:
            return 0
        if self.admission is not None:
            retry_after_ns = self.wait_ns if self.wait_ns else self.admission.retry_after_ns
            if param is None and self.admission.limited_scope is not None:
                param = self.admission.limited_scope.kind
        self.engine.id_text(self.id, text)
        status, fields, body = self.engine.hooks.render_refusal(
            self.endpoint.dialect, code, PyUnicode_DecodeASCII(text, 18, NULL), retry_after_ns,
            param.decode() if isinstance(param, bytes) else param)
        self.status = status
        self.end(code, status, False)
        b = self.cleared_buffer()
        b.add_text(b"HTTP/1.1 ")
        b.add_int(status)
        b.add(b" ", 1)
        b.add_bytes(<bytes>self.engine.reasons.get(status, b"Error"))
        b.add(b"\r\n", 2)
        for name, value in fields:
            b.add_bytes(name)
            b.add(b": ", 2)
            b.add_bytes(value)
            b.add(b"\r\n", 2)
        self.add_own_fields(b)
        b.add_text(b"Content-Length: ")
        b.add_int(PyBytes_GET_SIZE(<bytes>body))
        if not reusable:
            b.add_text(b"\r\nConnection: close")
        b.add_text(b"\r\n\r\n")
        b.add_bytes(body)
        if self.client.transport is not None:
            self.client.transport.write(b.take())
        self.client.answered(reusable)
        return 0

    cdef void broken(self, object error):
        """A fault of our own. The call still ends once: what was delivered is charged, the client sees the cut."""
        self.engine.fault(error)
        if self.state == C_DONE:
            return
        try:
            self.drop_connection()
            if self.head_sent:
                self.end(E_INTERNAL, self.status, False)
                self.client.answered(False)
            else:
                self.refuse(E_INTERNAL, None)
        except Exception as again:
            self.engine.fault(again)
            if self.client is not None and self.client.transport is not None:
                self.client.transport.abort()

    # ---- settle and record ----

    cdef int end(self, int code, int status, bint complete) except -1:
        """The one ending: the hold is settled or released, the record written. Everything else only leads here."""
        cdef Usage usage
        cdef int64_t now
        cdef str source = "none"
        cdef UsageTap tap = self.tap
        cdef Admission admission = self.admission
        if self.state == C_DONE:
            return 0
        self.state = C_DONE
        now = monotonic_ns()
        memset(&usage, 0, sizeof(Usage))
        self.engine.calls.discard(self)
        if admission is not None and admission.state == A_OPEN:
            if self.endpoint.free:
                admission.release(now, self.attempts > 0)
            elif tap is not None and self.body_sent and status < 400:
                tap.finish()
                usage = tap.usage
                source = "upstream"
                if by_the_piece(tap.tap.format):
                    charge_one_way(&tap.tap, &admission.rate.prices, &usage)
                if self.endpoint.format == F_IMAGES and usage.images and admission.rate.prices.image:
                    pass        # the pictures themselves are the report
                elif not tap.usage_seen or usage.input_tokens > ABSURD_TOKENS or usage.output_tokens > ABSURD_TOKENS:
                    memset(&usage, 0, sizeof(Usage))
                    usage.images = tap.usage.images
                    usage.web_searches = tap.usage.web_searches
                    usage.service = tap.usage.service
                    usage.input_tokens = self.prompt_tokens
                    usage.output_tokens = self.counted() if not self.output_estimate else self.output_estimate
                    usage.video_seconds = self.seconds_estimate
                    source = "estimated"
                elif not tap.terminal_seen and (not complete or tap.error_seen):
                    if usage.output_tokens < self.counted():
                        usage.output_tokens = self.counted()
                        source = "estimated"
                elif complete:
                    self.route.prompts.observe_tokens(self.prompt_counted, usage.input_tokens + usage.cache_read_tokens
                                                      + usage.cache_write_tokens + usage.cache_write_1h_tokens)
                    self.route.outputs.observe_tokens(tap.counted_tokens(), usage.output_tokens)
                self.cost_nano = admission.settle(&usage, now, now + self.engine.wall_offset_ns)
                self.written_off_nano = admission.written_off_nano
            else:
                admission.release(now, self.attempts > 0)
        if tap is not None and tap.tap.object_size and self.scanner.store != 0 and status < 300 and self.route is not None:
            self.engine.new_objects.append((tap.tap.object_id[:tap.tap.object_size], self.key.account_id, self.key.key_id,
                                            self.route.channel.name, self.wall_ns // 1_000_000))
        if code == E_CLIENT_GONE and tap is not None and tap.terminal_seen and not self.left_ns:
            code = E_NONE       # a client that closes behind the last event has finished
        elif code == E_CLIENT_GONE:
            status = 499
        if E_RATE_LIMIT_REQUESTS <= code <= E_TOKENS_PER_CALL:
            self.engine.note_refusal(self, code)
        if self.claimed is not None:
            self.release_claim()
        if self.key is not None:
            self.engine.record(self, code, status, &usage, source, now)
        else:
            self.engine.refused_unknown(code)
        if self.slot != NULL:
            self.close_slot(code, status, &usage, source, now)
        self.engine.waiting_bytes -= self.body_bytes
        self.body_bytes = 0
        self.body = None
        self.error_parts = None
        return 0

    cdef int release_claim(self) except -1:
        """A key is bound to a call of which something was delivered, and free again after any other."""
        self.bound = self.admission is not None and self.admission.state == A_SETTLED
        if 0 < self.status < 400 and (self.body_sent or self.admission is None):
            self.bound = True       # answered, if not charged here: a job
        if self.slot != NULL and not self.bound:
            memset(self.slot.idempotency, 0, 32)
        self.engine.hooks.unclaim(self.id, self.claimed, bool(self.bound))
        return 0

    cdef int close_slot(self, int code, int status, Usage* usage, str source, int64_t now) except -1:
        """The ending, in the journal as in the record: until the record is committed, this is where it stands."""
        cdef Slot* slot = self.slot
        slot.usage = usage[0]
        slot.cost_nano = self.cost_nano
        slot.written_off_nano = self.written_off_nano
        slot.status = status
        slot.error_code = code
        slot.source = 1 if source == "upstream" else 2 if source == "estimated" else 0
        slot.latency_us = (now - self.began_ns) // 1000
        self.slot = NULL
        return self.engine.journal.end(slot)


cdef bytes DEFAULT_MODERATION = b"omni-moderation-latest"


cdef bint client_address_needed(Call call):
    return call.client.peer_trusted and call.forwarded_for is not None


cdef list splice(list parts, list edits):
    """`parts` joined with [(start, end, replacement)] applied; offsets count from the start of the whole."""
    whole = b"".join(parts)
    out = []
    at = 0
    for start, end, replacement in sorted(edits):
        out.append(whole[at:start])
        out.append(replacement)
        at = end
    out.append(whole[at:])
    return out
