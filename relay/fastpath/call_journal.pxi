# What a call writes into its slot of the journal: all that a dead process's successor needs to charge it.


cdef bint call_open_slot(Call call, Rate rate) except -1:
    """Writes what a dead process's successor would need to charge this call. False: there are too many open calls."""
    cdef Journal journal = call.engine.journal
    cdef Slot* slot = journal.open()
    if slot == NULL:
        return False
    slot.id = call.id
    slot.account_id = call.key.account_id
    slot.organisation_id = call.key.organisation_id
    slot.key_id = call.key.key_id
    slot.wall_ns = call.wall_ns
    slot.stream = call.stream
    slot.hold_nano = call.admission.hold_nano
    slot.max_cost_nano = call.max_cost_nano
    slot.prices = rate.prices
    slot.prompt_tokens = call.prompt_tokens
    if call.claimed is not None:
        memcpy(slot.idempotency, PyBytes_AS_STRING(call.claimed), 32)
        slot.idempotency_body = call.claimed_body
    journal.put_text(slot, T_PATH, call.endpoint.name)
    journal.put_text(slot, T_MODEL, call.model.name)
    journal.put_text(slot, T_CARD, rate.card)
    if call.engine.keep_source_ip:
        journal.put_text(slot, T_ADDRESS, call.source_ip)
    if call.engine.keep_user_agent:
        journal.put_text(slot, T_AGENT, call.engine.agent_of(call))
    call.route_texts = slot.text_used
    call.slot = slot
    journal.publish(slot)
    return True


cdef void call_drop_slot(Call call) noexcept:
    """The call has taken nothing any more, and has not ended."""
    cdef Slot* slot = call.slot
    if slot != NULL:
        call.slot = NULL
        call.engine.journal.release(slot)


cdef int call_note_route(Call call) except -1:
    cdef Slot* slot = call.slot
    if slot != NULL:
        slot.attempts = call.attempts
        slot.text_size[T_UPSTREAM_MODEL] = slot.text_size[T_CHANNEL] = 0xFFFF
        slot.text_used = call.route_texts
        call.engine.journal.put_text(slot, T_UPSTREAM_MODEL, call.route.upstream_model)
        call.engine.journal.put_text(slot, T_CHANNEL, call.route.channel.name)
    return 0


cdef void call_note_delivery(Call call, bint ended) noexcept:
    """What is written to the client up to now, for the journal: a handful of stores. `ended`: it is all of the answer."""
    cdef Slot* slot = call.slot
    cdef UsageTap tap = call.tap
    if slot == NULL or not call.body_sent or tap is None:
        return
    slot.counted_tokens = call_counted(call)
    if not tap.usage_seen:
        slot.usage.image_output_tokens = call_picture_tokens(call, tap)
    elif tap.tap.fresh or tap.terminal_seen:
        tap.tap.fresh = False
        if ended:
            tap.finish()
        call_weigh(call, tap, ended, &call.verdict)
        call.weighed = ended and not call.left_ns     # what has been weighed to its end is not weighed again there
        slot.usage = call.verdict.usage
        slot.source = 2 if call.verdict.estimated else 0
        # The prompt is the reported one where that is believed; output is final with the end of the answer.
        slot.usage_seen = 2 if tap.terminal_seen else 1
    if not call.admission.rate.plain:
        slot_cost(slot, call.admission.rate, believed_service(tap.tap.service, call.admission.priority))
    if tap.tap.used or call.extras is not None:
        slot_extras(slot, call_extras_nano(call, tap))
    slot.delivered = 1


cdef int call_close_slot(Call call, int code, int status, Usage* usage, str source, int64_t now) except -1:
    """The ending, in the journal as in the record: until the record is committed, this is where it stands."""
    cdef Slot* slot = call.slot
    slot.usage = usage[0]
    if call.lines is not None:
        slot_extras(slot, call.extras_nano)
    slot.cost_nano = call.cost_nano
    slot.written_off_nano = call.written_off_nano
    slot.status = status
    slot.error_code = code
    slot.source = 1 if source == "upstream" else 2 if source == "estimated" else 0
    slot.latency_us = (now - call.began_ns) // 1000
    call.slot = NULL
    return call.engine.journal.end(slot)
