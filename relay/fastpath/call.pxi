# One call, from a complete request head to its one ending: what it knows. What it does stands in call_*.pxi, by phase.
#
# Phases, in order: identify (who calls) -> read (the body is scanned as it arrives) -> admit (limits and hold, all or
# nothing, without a wait between) -> route (channel, upstream model) -> forward -> relay (bytes out, a copy into the tap)
# -> settle -> record. `call_end` is the only way out; it runs once, whatever happened.
#
# Nothing in them waits: a phase that needs something that is not there yet (a key that is not in memory, a connection)
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
    C_LOOK            # the head is there, and too little of the body to tell whether it is an answer
    C_COLLECT         # an answer that is one JSON document waits to be complete, because something is written into it
    C_ERROR_BODY      # an upstream's error answer is held back until it is known what it is about
    C_RELAY           # the answer passes
    C_PIECES          # an answer passes that Python hands over piece by piece
    C_DONE

cdef enum:
    BLAME_CHANNEL = 0     # whose fault a failed attempt is
    BLAME_KEY             # the operator's key there: refused, or above its limits
    BLAME_NOBODY
    BLAME_CHANNEL_FOR_ALL # the channel's, and the provider may have done what was asked: nobody else is asked

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
    cdef bytes cors                   # lines of every answer to a page of another origin; None: none
    cdef bytes traceparent            # as the caller sent it, for its span; None where nobody makes spans
    cdef str source_ip
    cdef bytes source_packed
    cdef bytes query                  # of the upstream path, from the allowlist, with its "?"
    cdef bytes path_model             # Gemini: the model stands in the path
    cdef bint alpha                   # ... and the path was v1alpha's, not v1beta's
    cdef int64_t max_cost_nano
    cdef list body
    cdef int64_t body_bytes
    cdef Balance body_owner           # whose share of the memory for bodies it uses; None while nobody is known
    cdef bytes mark                   # the beginning of a body, where it may be that of a byte order mark
    cdef bint body_complete
    cdef bint large_request           # head and body left as several pieces
    cdef int bad_head                 # an error code: what its head asks cannot be done; said once it is known whose call it is
    cdef str bad_field
    cdef bint bad_key_field           # a key may stand in it: whose call it is cannot be known
    cdef RequestScanner scanner
    cdef bytes form_type              # Content-Type of a multipart form; None: the body is JSON
    cdef object form                  # what such a body says (proxy/forms.py)
    cdef bint stream
    cdef object extras                # what of it is charged beside tokens of its model (policy/extras.py); None: nothing known
    cdef int64_t extras_nano
    cdef tuple lines                  # of the bill, for these
    cdef bint search_each             # its answer is a search, whether it says so or not
    # policy
    cdef ApiKey key
    cdef Credential credential        # of that key: the secret that the caller sent
    cdef Model model
    cdef Model fallback               # taken in place of the model asked for, whose channels have failed; None: not so
    cdef list routes                  # that it may take
    cdef Route route
    cdef Route made_on                # of a job that Python makes for this call: for the record alone
    cdef UpstreamKey upstream_key
    cdef bytes wanted_channel         # x-relay-channel: the name or the tag that the caller asks for
    cdef uint64_t affinity            # of its prompt: where others of the same prefix went; 0: none
    cdef int probes                   # PROBES_*: the breakers of which its attempt tells whether they close
    cdef Rest trying                  # of its key, where it is tried although it rests
    cdef int64_t wait_ns              # until a channel may be there again
    cdef Admission admission
    cdef int64_t prompt_tokens        # the estimate, calibrated
    cdef int64_t prompt_counted       # the same before calibration
    cdef int64_t output_estimate      # of an answer that is no text, where it reports nothing
    cdef int64_t seconds_estimate
    # answer
    cdef UsageTap tap
    cdef Bounds most                  # that it can report
    cdef bint weighed                 # the answer has ended, and `verdict` is what its report is believed
    cdef Verdict verdict
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
    cdef bint annotate_asked
    cdef int shape                    # SHAPE_*: what the first bytes of the body begin
    cdef bint looking                 # the head had to pass before that was known
    cdef bytes look_bytes             # ... with these
    cdef int64_t look_tick
    cdef int64_t unread_tokens        # of an answer that cannot be read: by its bytes
    cdef int64_t compressed_bytes     # that went through its decoder
    cdef int error_status             # that an error event inside the answer would have had as an answer
    cdef object wake                  # of an answer in pieces: called when the client takes more, and at the end
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
    cdef int64_t beat_ns              # of the last heartbeat; 0: none, and no head was sent for one
    cdef int64_t left_ns              # when the client went away while its call is read on; 0: it is there
    cdef int64_t left_tokens
    cdef int64_t wall_ns
    cdef int64_t cost_nano, written_off_nano
    cdef Slot* slot                   # in the journal, from admission to the end; NULL before
    cdef uint16_t route_texts         # where the slot's texts about the attempt begin
    cdef int last_failure
    cdef int cut_code
    cdef int64_t cut_bytes      # of the chunk under way, kept back by a cut-off

    def __cinit__(self):
        self.max_cost_nano = -1

    def claim_known(self, int64_t first_id, bint same):
        """The answer to `claim`. 0: the key is this call's. Otherwise the call that has it, and whether its body is equal.
        False where the call had ended before."""
        cdef char[20] text
        if self.state != C_CLAIM:
            return False
        try:
            if first_id == 0:
                self.state = C_READ
                call_go_on(self)
            else:
                self.claimed = None
                self.engine.id_text(first_id, text)
                call_refuse(self, E_IDEMPOTENCY_REPEAT, PyUnicode_DecodeASCII(text, 18, NULL) + ("" if same else " with another body"))
        except Exception as error:
            call_broken(self, error)
        return True

    def claim_failed(self):
        """The keys cannot be looked up now."""
        if self.state == C_CLAIM:
            call_stop(self, E_STORE_UNAVAILABLE)

    def facts(self):
        """What a decision about a call set aside needs."""
        cdef RequestScanner scanner = self.scanner
        cdef bytes body = b"".join(self.body)
        return {
            "endpoint": self.endpoint.name, "scope_bit": self.endpoint.scope_bit, "key": self.key,
            "body": body, "fields": self.passed_fields, "model": scanner.model,
            "model_span": (scanner.model_start, scanner.model_end), "background": bool(scanner.background),
            "priority": bool(scanner.priority), "stream": scanner.stream == 1, "output_limit": scanner.output_limit,
            "prompt_tokens": scanner.prompt_tokens(), "web_search": bool(scanner.web_search), "max_cost_nano": self.max_cost_nano,
            "wall_ns": self.wall_ns, "address": self.source_packed, "wanted_channel": self.wanted_channel,
            "stored_names": scanner.stored_names(body),
            "special": [(name, body[start:end]) for name, start, end in scanner.special_fields()],
            "files": [(kind, body[start:end]) for kind, (start, end) in zip(scanner.file_kinds(), scanner.file_names())],
            "claim": None if self.claimed is None else (self.claimed, self.claimed_body),
        }

    def proceed(self, frozenset channels=None):
        """Nothing stands in the way of a call that was set aside. `channels`: those that it may go to, all where None."""
        cdef int code
        cdef Route route
        if self.state != C_ASIDE:
            return
        try:
            self.state = C_READ
            self.scanner.background = False
            code = call_admit(self)
            if code:
                call_refuse(self, code, call_field_at_fault(self, code))
                return
            if channels is not None:
                if channels.isdisjoint([route.channel.name for route in <list>self.routes]):
                    call_refuse(self, E_OBJECTS_APART, None)
                    return
                self.tried = [route.channel for route in <list>self.model.routes[self.endpoint.dialect]
                              if route.channel.name not in channels]
            call_forward(self)
        except Exception as error:
            call_broken(self, error)

    def goes_to(self, bytes model not None, Route route not None):
        """Names the model and the channel of a job that Python makes for this call, for its record."""
        self.model = self.engine.models.get(model)
        self.made_on = route

    def turn_down(self, int code, str param=None, int64_t wait_ns=0, int64_t wanted=-1, int64_t allowed=-1):
        """Refuses a call that was set aside."""
        if self.state == C_ASIDE:
            self.wait_ns = wait_ns
            call_refuse(self, code, param, wanted, allowed)

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
        call_end(self, code, status, False)
        b = call_cleared_buffer(self)
        b.add_text(b"HTTP/1.1 ")
        b.add_int(status)
        b.add(b" ", 1)
        b.add_bytes(<bytes>self.engine.reasons.get(status, b"OK"))
        b.add(b"\r\n", 2)
        b.add_bytes(fields)
        b.add_text(b"x-relay-request-id: ")
        b.add(text, 18)
        b.add(b"\r\n", 2)
        call_add_own_fields(self, b)
        b.add_text(b"Content-Length: ")
        b.add_int(PyBytes_GET_SIZE(body))
        b.add_text(b"\r\n\r\n")
        b.add_bytes(body)
        if self.client.transport is not None:
            self.client.transport.write(b.take())
        self.client.answered(reusable)

    def begin_pieces(self, int status, bytes fields, bint compressed, object wake):
        """The head of an event stream that answers a call set aside. False where the client has gone."""
        return call_begin_pieces(self, status, fields, compressed, wake)

    def piece(self, bytes data):
        """More of it. False once the call has ended."""
        return call_add_piece(self, data)

    def end_pieces(self, int code=0):
        call_end_pieces(self, code)

    @property
    def waiting(self):
        """Whether the next piece has to wait, because the client does not take it."""
        return self.state == C_PIECES and self.client.write_paused

    @property
    def ended(self):
        return self.state == C_DONE

    def connected(self, UpstreamConnection connection):
        """From the connect hook: a new connection is open."""
        if self.state != C_CONNECT:
            connection.give_back(monotonic_ns())     # the call ended meanwhile; the connection is good for another
            return
        try:
            if connection.closed or connection.transport is None:      # accepted, and closed before the loop came to this
                call_attempt_failed(self, E_UPSTREAM_FAILED)
            else:
                call_send(self, connection)
        except Exception as error:
            call_broken(self, error)

    def connect_failed(self, bint timed_out):
        """From the connect hook: no connection could be made."""
        if self.state == C_CONNECT:
            try:
                call_attempt_failed(self, E_UPSTREAM_TIMEOUT if timed_out else E_UPSTREAM_UNAVAILABLE)
            except Exception as error:
                call_broken(self, error)


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
