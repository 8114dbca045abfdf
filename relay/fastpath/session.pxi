# The money of one realtime session: a call of which Python relays the messages, and whose usage adds up.
#
# Same admission, journal slot and record as any call. What the upstream reports at the end of each response is added
# up; what it has sent of a response that is not finished counts by our own count until then. Every report moves the hold
# to what has been used so far and a slice more; where that cannot be had, the session ends.

@cython.final
cdef class Session:
    """Hold, journal slot and record of one session. `open`, then `reported` and `counted`, then `end` once."""
    cdef Engine engine
    cdef ApiKey key
    cdef Model model
    cdef Route route
    cdef Admission admission
    cdef Slot* slot
    cdef uint16_t route_texts           # where the slot's texts about the attempt begin
    cdef int attempts
    cdef Usage usage                   # of finished responses
    cdef bint seen, estimated
    cdef tuple lines                    # of the bill, beside the model: what transcribed the sound
    cdef Usage pending                 # of the response that is not finished, by our count
    cdef int64_t began_ns, wall_ns, first_byte_ns
    cdef str path, address, agent
    cdef readonly int64_t id, retry_after_ns
    cdef readonly object limited_scope

    def __init__(self, Engine engine not None, int64_t call_id, ApiKey key not None, Model model not None, str path not None,
                 str address, str agent):
        self.engine = engine
        self.id = call_id
        self.key = key
        self.model = model
        self.path = path
        self.address = address
        self.agent = agent
        self.began_ns = monotonic_ns()
        self.wall_ns = self.began_ns + engine.wall_offset_ns

    def open(self, int64_t prompt_tokens, int64_t max_cost_nano=-1):
        """0 and everything taken, or an index into ERROR_CODES and nothing taken."""
        cdef Admission admission = Admission()
        cdef Journal journal = self.engine.journal
        cdef Slot* slot
        cdef int code
        if self.model.rate is None:
            return E_MODEL_UNPRICED
        code = admission.admit(self.key, self.model.rate, prompt_tokens, -1, 1, True, max_cost_nano, self.engine.policy,
                               self.began_ns, self.wall_ns)
        if code:
            self.retry_after_ns = admission.retry_after_ns
            self.limited_scope = admission.limited_scope
            return code
        if journal is not None:
            slot = journal.open()
            if slot == NULL:
                admission.release(self.began_ns, False)
                return E_OVERLOADED
            slot.id = self.id
            slot.account_id = self.key.account_id
            slot.organisation_id = self.key.organisation_id
            slot.key_id = self.key.key_id
            slot.wall_ns = self.wall_ns
            slot.stream = 1
            slot.hold_nano = admission.hold_nano
            slot.max_cost_nano = max_cost_nano
            slot.prices = admission.rate.prices
            journal.put_text(slot, T_PATH, self.path)
            journal.put_text(slot, T_MODEL, self.model.name)
            journal.put_text(slot, T_CARD, admission.rate.card)
            journal.put_text(slot, T_ADDRESS, self.address)
            journal.put_text(slot, T_AGENT, self.agent)
            self.route_texts = slot.text_used
            self.slot = slot
            journal.publish(slot)
        admission.day = self.id // FOLD_IDS_PER_DAY
        self.admission = admission
        return 0

    def forwarded(self, Route route not None):
        """An upstream is being asked."""
        self.route = route
        self.attempts += 1
        if self.slot != NULL:
            self.slot.attempts = self.attempts
            self.slot.text_size[T_UPSTREAM_MODEL] = self.slot.text_size[T_CHANNEL] = 0xFFFF
            self.slot.text_used = self.route_texts
            self.engine.journal.put_text(self.slot, T_UPSTREAM_MODEL, route.upstream_model)
            self.engine.journal.put_text(self.slot, T_CHANNEL, route.channel.name)

    def accepted(self):
        """It has said yes, and so have we."""
        self.first_byte_ns = monotonic_ns()
        if self.slot != NULL:
            self.slot.status = 101
            self.slot.first_byte_us = (self.first_byte_ns - self.began_ns) // 1000

    def reported(self, *, int64_t input_tokens=0, int64_t output_tokens=0, int64_t cache_read_tokens=0,
                 int64_t audio_input_tokens=0, int64_t audio_output_tokens=0, int64_t image_input_tokens=0,
                 int64_t audio_cache_read_tokens=0, int64_t image_cache_read_tokens=0, bint estimated=False):
        """A response has ended with this usage. 0, or an index into ERROR_CODES: the session has to end."""
        cdef Usage* u = &self.usage
        self.estimated |= estimated
        u.input_tokens = clamp_usage(u.input_tokens + clamp_usage(input_tokens))
        u.output_tokens = clamp_usage(u.output_tokens + clamp_usage(output_tokens))
        u.cache_read_tokens = clamp_usage(u.cache_read_tokens + clamp_usage(cache_read_tokens))
        u.audio_input_tokens = min(u.input_tokens, clamp_usage(u.audio_input_tokens + clamp_usage(audio_input_tokens)))
        u.audio_output_tokens = min(u.output_tokens, clamp_usage(u.audio_output_tokens + clamp_usage(audio_output_tokens)))
        u.image_input_tokens = min(u.input_tokens - u.audio_input_tokens,
                                   clamp_usage(u.image_input_tokens + clamp_usage(image_input_tokens)))
        u.audio_cache_read_tokens = min(u.cache_read_tokens,
                                        clamp_usage(u.audio_cache_read_tokens + clamp_usage(audio_cache_read_tokens)))
        u.image_cache_read_tokens = min(u.cache_read_tokens - u.audio_cache_read_tokens,
                                        clamp_usage(u.image_cache_read_tokens + clamp_usage(image_cache_read_tokens)))
        self.seen = True
        memset(&self.pending, 0, sizeof(Usage))
        return self.covered()

    def counted(self, int64_t prompt_tokens, int64_t output_tokens, *, int64_t audio_input_tokens=0,
                int64_t audio_output_tokens=0):
        """What the response that is not finished has used so far, by our count; sound is among it. As `reported`."""
        cdef Usage* u = &self.pending
        u.input_tokens = clamp_usage(prompt_tokens)
        u.output_tokens = clamp_usage(output_tokens)
        u.audio_input_tokens = min(u.input_tokens, clamp_usage(audio_input_tokens))
        u.audio_output_tokens = min(u.output_tokens, clamp_usage(audio_output_tokens))
        return self.covered()

    def beside(self, tuple lines not None):
        """What other models have been used for so far: lines of the bill. As `reported`."""
        cdef Admission admission = self.admission
        self.lines = lines
        admission.extras_nano = admission.extras_hold_nano = min(sum([line[LINE_COST] for line in lines]), COST_MAX)
        if self.slot != NULL:
            slot_extras(self.slot, admission.extras_nano)
        return self.covered()

    cdef inline bint is_pending(self) noexcept:
        return self.pending.input_tokens != 0 or self.pending.output_tokens != 0

    cdef Usage so_far(self) noexcept:
        cdef Usage usage = self.usage
        cdef Usage* more = &self.pending
        usage.input_tokens = clamp_usage(usage.input_tokens + more.input_tokens)
        usage.output_tokens = clamp_usage(usage.output_tokens + more.output_tokens)
        usage.audio_input_tokens = clamp_usage(usage.audio_input_tokens + more.audio_input_tokens)
        usage.audio_output_tokens = clamp_usage(usage.audio_output_tokens + more.audio_output_tokens)
        return usage

    cdef int covered(self) except -1:
        """The journal knows what has been used, and the hold covers it."""
        cdef Usage usage = self.so_far()
        cdef int code
        if self.slot != NULL:
            self.slot.usage = usage
            self.slot.usage_seen = 0 if self.estimated or self.is_pending() else 2
            self.slot.prompt_tokens = usage.input_tokens
            self.slot.counted_tokens = usage.output_tokens
            self.slot.tiered_cost_nano = -1 if self.admission.rate.plain else self.admission.rate.cost_of(&usage)
            self.slot.delivered = 1
        self.admission.correct_prompt(&usage)
        code = self.admission.grow(usage.output_tokens + 1, monotonic_ns() + self.engine.wall_offset_ns)
        if self.slot != NULL:
            self.slot.hold_nano = self.admission.hold_nano
        return code

    def end(self, int code, int status):
        """The one ending. `code`: an index into ERROR_CODES, 0 for a session that its client or provider closed."""
        cdef Usage usage
        cdef Admission admission = self.admission
        cdef Slot* slot = self.slot
        cdef int64_t cost = 0, written_off = 0
        cdef int64_t now = monotonic_ns()
        cdef int source = 0
        cdef tuple fields, more
        memset(&usage, 0, sizeof(Usage))
        if admission is not None and admission.state == A_OPEN:
            if self.seen or self.is_pending() or self.lines is not None:
                usage = self.so_far()
                source = 2 if self.estimated or self.is_pending() else 1
                cost = admission.settle(&usage, now, now + self.engine.wall_offset_ns)
                written_off = admission.written_off_nano
            else:
                admission.release(now, self.route is not None)
        fields = (
            self.id, self.key.account_id, self.key.organisation_id if self.key.organisation_id else None, self.key.key_id,
            self.path, self.model.name, self.route.upstream_model if self.route is not None else None,
            self.route.channel.name if self.route is not None else None, self.attempts, 1, status,
            ERROR_CODES[code] if code else None, usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, 0, 0, 0, 0,
            USAGE_SOURCES[source], cost, self.model.rate.card if admission is None and self.model.rate is not None
            else admission.rate.card if admission is not None else None,
            (now - self.began_ns) // 1000,
            (self.first_byte_ns - self.began_ns) // 1000 if self.first_byte_ns else None,
            self.address, self.agent, written_off, (self.wall_ns // 1_000_000_000) // 86400,
        )
        more = more_of(&usage, None, 0, self.lines if source else None)
        self.engine.records.append(fields if more is None else fields + (more,))
        if slot != NULL:
            slot.usage = usage
            slot.cost_nano = cost
            slot.written_off_nano = written_off
            slot.status = status
            slot.error_code = code
            slot.source = source
            slot.latency_us = (now - self.began_ns) // 1000
            self.slot = NULL
            self.engine.journal.end(slot)
