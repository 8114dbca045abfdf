# Every way out of a call, and the one ending that all of them lead to: the hold is settled or released, the record written.


cdef int call_upstream_ended(Call call) except -1:
    """The upstream closed its side."""
    try:
        if call.state == C_HEAD:
            call_attempt_failed(call, E_UPSTREAM_FAILED)
        elif call.state == C_LOOK:
            call_look_ended(call)
        elif call.state == C_ERROR_BODY and call.status < 300:
            if call_error_known(call, True):
                call_judge_error(call)
            else:
                call_attempt_failed(call, E_UPSTREAM_ERROR)
        elif call.state == C_ERROR_BODY:
            if call.head.framing == B_CLOSE:
                call_judge_error(call)
                if call.state == C_RELAY:
                    call_closed_body(call)
            else:
                call_attempt_failed(call, E_UPSTREAM_FAILED)
        elif call.state == C_COLLECT:
            call.head.close = True
            if call.head.framing == B_CLOSE:
                call_annotate_collected(call)
            else:
                call_pass_collected(call)
            if call.state == C_RELAY:
                call_closed_body(call)
        elif call.state == C_RELAY:
            call_closed_body(call)
    except Exception as error:
        call_broken(call, error)
    return 0


cdef int call_closed_body(Call call) except -1:
    """The connection ended in the middle of an answer, or as the end of one that has no other."""
    if call.head.framing == B_CLOSE and (call_is_over(call) or not call_ended_early(call)):
        call_write_out(call, b"", 0, 0, None, call_cleared_buffer(call), True)
        return call_finish(call)
    return call_fail(call, E_UPSTREAM_TRUNCATED)


cdef bint call_is_over(Call call) noexcept:
    """The answer has had its last event, or its document its end: whatever comes behind it, the client has all."""
    cdef UsageTap tap = call.tap
    cdef Tap before
    if tap is None or (call.head.compressed and call.decoder is None):
        return False
    if tap.tap.kind == K_SSE:
        before = tap.tap
        tap.finish()      # the line end that the last event may lack will not come
        if tap.terminal_seen or (tap.error_seen and tap.at_boundary):
            return True
        tap.tap = before
        tap.publish()
        return False
    return call.shape != SHAPE_OTHER and tap.tap.json.state == J_DONE


cdef int call_finish_over(Call call) except -1:
    """The answer is over, and its connection or framing is broken: the client sees a clean end all the same."""
    call.head.close = True
    return call_finish(call, call_close_framing(call))


cdef bint call_close_framing(Call call) except -1:
    """Ends the framing of the body wherever it stands; what was announced and will not come becomes blank lines. False:
    it cannot be ended."""
    cdef Buffer out = call_cleared_buffer(call)
    cdef int state = call.chunked.state
    cdef int64_t missing = 0
    if call.reframe:
        if call.held is not None:
            call_frame(call, out, <const uint8_t*>call.held.data, call.held.size)
            call.held.size = 0
        out.add(b"0\r\n\r\n", 5)
    elif call.plain or call.head.framing == B_CLOSE:
        return False
    elif call.head.framing == B_LENGTH:
        missing = call.remaining
        if missing > PADDING_BYTES_MAX or call.head.compressed:
            return False
        call_pad(out, missing)
    else:
        if state == K_EXT or state == K_SIZE_LF or state == K_DATA or (state == K_SIZE and call.chunked.digits):
            missing = call.chunked.remaining
            if missing > PADDING_BYTES_MAX or (missing and call.head.compressed):
                return False
        if state == K_DATA_LF or state == K_SIZE_LF:
            out.add(b"\n", 1)
        elif state == K_DATA_CR or state == K_EXT or (state == K_SIZE and call.chunked.digits):
            out.add(b"\r\n", 2)
        if missing:
            call_pad(out, missing)
            out.add(b"\r\n", 2)
        if missing or state == K_DATA_CR or state == K_DATA_LF or (state == K_SIZE and not call.chunked.digits):
            out.add(b"0\r\n", 3)
        if state == K_LAST_LF:
            out.add(b"\n", 1)
        else:
            out.add(b"\r\n", 2)
    if call.client.transport is not None:
        call.client.transport.write(out.take())
    return True


cdef int call_pad(Buffer out, int64_t n) except -1:
    while n > 0:
        out.add(b"\n", 1)
        n -= 1
    return 0


cdef Buffer call_cleared_buffer(Call call):
    call.engine.buffer.size = 0
    return call.engine.buffer


cdef int call_finish(Call call, bint framed=True) except -1:
    """The answer is complete and delivered. `framed`: its framing says so too."""
    cdef UpstreamConnection connection = call.connection
    cdef bint reusable = framed and not (call.plain or (call.head.framing == B_CLOSE and not call.reframe))
    cdef int code
    if call.decoder is not None and call_gave_nothing(call) and not (call.tap.terminal_seen or call.tap.usage_seen):
        call.metered = False
        call_count_unread(call, <Py_ssize_t>call.compressed_bytes)      # nothing came out of it
    code = call_verdict(call)
    if code:
        call_note_wrong(call, code)
    call.connection = None
    call_leave_channel(call)
    if call.head.close or call.head.framing == B_CLOSE or (
            call.large_request and connection.transport.get_write_buffer_size() > 0):
        # the last: answered before the request had left, the rest of it would meet the next answer
        connection.call = None
        connection.close()
    else:
        connection.give_back(monotonic_ns())
    call_end(call, E_CLIENT_GONE if call.left_ns else code, call.status, True)
    call.client.answered(reusable)
    return 0


cdef int call_note_wrong(Call call, int code) except -1:
    """An error and nothing of an answer is not charged, and the upstream has failed, unless it says that the caller has."""
    if call.status < 400 and call_gave_nothing(call):
        call.body_sent = False
        if call.error_status < 400 or call.error_status >= 500:
            call_attempt_bad(call, code)
    return 0


cdef int call_fail(Call call, int code) except -1:
    """The answer has begun and cannot be finished: the dialect's error event where one can stand, then the close."""
    cdef bytes event = None
    cdef object transport = call.client.transport
    if code == E_UPSTREAM_TRUNCATED or code == E_UPSTREAM_GARBAGE or code == E_UPSTREAM_STALLED:
        if call.state == C_RELAY and call_is_over(call):
            return call_finish_over(call)
        if call.route is not None:
            call_attempt_bad(call, code)
    if (code == E_UPSTREAM_GARBAGE or code == E_UPSTREAM_ACCOUNT or code == E_UPSTREAM_UNAVAILABLE or code == E_UPSTREAM_ERROR) \
            and call.tap is not None and call_gave_nothing(call):
        call.body_sent = False      # nothing of an answer has passed
    call_drop_connection(call)
    if code != E_CLIENT_GONE and transport is not None and call.head_sent:
        if call.held is not None and call.held.size:
            out = call_cleared_buffer(call)
            call_frame(call, out, <const uint8_t*>call.held.data, call.held.size)
            call.held.size = 0
            transport.write(out.take())
        if call.stream and call.tap is not None and not call.head.compressed and call.tap.at_boundary:
            event = call_error_event(call, code)
            if event:
                call_inject(call, event)
        if not event and not call.reframe and (call.plain or call.head.framing == B_CLOSE):
            call.engine.hooks.reset(transport)     # no framing could show the cut
    call_end(call, code, call.status, False)
    call.client.answered(False)
    return 0


cdef bytes call_error_event(Call call, int code):
    """The dialect's error event for the place where the body stands; None where none can stand."""
    cdef Tap* tap = &call.tap.tap
    cdef bytes event
    if tap.kind != K_SSE and (tap.kind != K_JSON_ARRAY or tap.json.state == J_DONE):
        return None
    event = call.engine.hooks.render_stream_error(call.endpoint.format, tap.kind, code, call.tap.sequence_number)
    if event and tap.kind == K_JSON_ARRAY and tap.json.state != J_AFTER:
        event = (b"" if tap.json.depth else b"[") + event[1:]      # its comma stands already, or no element before it
    return event


cdef int call_inject(Call call, bytes event) except -1:
    """Writes bytes of our own into the body, wherever the framing that was passed on stands."""
    cdef Buffer out = call_cleared_buffer(call)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(event), room
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(event)
    cdef int64_t size
    if call.reframe or call.plain or call.head.framing == B_CLOSE:
        call_frame(call, out, p, n)
    elif call.head.framing == B_LENGTH:
        return 0       # it would have to stand in the place of the provider's own bytes
    else:
        if call.cut_bytes > 0:
            # cut inside a chunk's data: its tail was not passed on
            call.chunked.state = K_DATA
        if call.chunked.state == K_DATA_CR:
            out.add(b"\r\n", 2)
        elif call.chunked.state == K_DATA_LF:
            out.add(b"\n", 1)
        if call.chunked.state in (K_DATA_CR, K_DATA_LF) or (call.chunked.state == K_SIZE and call.chunked.digits == 0) \
                or call.chunked.state in (K_END, K_BAD):
            out.add_hex(n)
            out.add(b"\r\n", 2)
            out.add(p, n)
            out.add(b"\r\n", 2)
        else:
            # inside a chunk, or in the middle of a size that is already half sent
            if call.chunked.state == K_SIZE:
                out.add_text(b"0000\r\n")
                size = call.chunked.remaining << 16
            elif call.chunked.state == K_SIZE_LF:
                out.add(b"\n", 1)
                size = call.chunked.remaining
            elif call.chunked.state == K_DATA:
                size = call.chunked.remaining + call.cut_bytes
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
    call.client.transport.write(out.take())
    return 0


cdef void call_client_gone(Call call):
    """The client closed its connection."""
    cdef int state = call.state
    try:
        if (state == C_RELAY or state == C_HEAD or state == C_LOOK or state == C_COLLECT) and call.key.on_disconnect == ON_DISCONNECT_DRAIN and not call.engine.draining:
            call_read_on(call)
        elif state == C_RELAY or state == C_PIECES:
            call_fail(call, E_CLIENT_GONE)
        elif state != C_DONE:
            call_drop_connection(call)
            call_end(call, E_CLIENT_GONE, 499, False)
            call.client.answered(False)
    except Exception as error:
        call_broken(call, error)


cdef void call_read_on(Call call):
    """on_disconnect = "drain": nobody listens any more, but the upstream's own usage is worth waiting for, up to a bound."""
    cdef ClientSide client = call.client
    call.left_ns = monotonic_ns()
    call.left_tokens = call_counted(call) if call.tap is not None else 0
    call.client = call.engine.nobody
    client.call = None
    if call.connection is not None:
        call.connection.resume()
    client.answered(False)


cdef void call_stop(Call call, int code):
    """Ends a call in flight from outside: key revoked, account frozen, drain deadline."""
    try:
        if call.state == C_RELAY or call.state == C_PIECES:
            call_fail(call, code)
        elif call.state != C_DONE:
            call_drop_connection(call)
            call_refuse(call, code, None)
    except Exception as error:
        call_broken(call, error)


cdef int call_refuse(Call call, int code, object param, int64_t wanted=-1, int64_t allowed=-1) except -1:
    """Ends the call with an error of our own. Nothing of an upstream's answer has been seen by the client.

    `wanted`, `allowed`: what the call may need and what a limit leaves, where it was not admission that refused.
    """
    cdef int64_t retry_after_ns = call.wait_ns
    cdef char[20] text
    cdef bint reusable = call.client.request_read
    if call.state == C_DONE:
        return 0
    if call.beat_ns:
        return call_refuse_begun(call, code)
    if call.admission is not None:
        if call.admission.state == A_NEW:
            wanted, allowed = call.admission.wanted, call.admission.allowed
        retry_after_ns = call.wait_ns if call.wait_ns else call.admission.retry_after_ns
        if param is None and call.admission.limited_scope is not None:
            param = call.admission.limited_scope.kind
    call.engine.id_text(call.id, text)
    status, fields, body = call.engine.hooks.render_refusal(
        call.endpoint.dialect, code, PyUnicode_DecodeASCII(text, 18, NULL), retry_after_ns,
        param.decode() if isinstance(param, bytes) else param, wanted, allowed)
    call.status = status
    call_end(call, code, status, False)
    b = call_cleared_buffer(call)
    b.add_text(b"HTTP/1.1 ")
    b.add_int(status)
    b.add(b" ", 1)
    b.add_bytes(<bytes>call.engine.reasons.get(status, b"Error"))
    b.add(b"\r\n", 2)
    for name, value in fields:
        b.add_bytes(name)
        b.add(b": ", 2)
        b.add_bytes(value)
        b.add(b"\r\n", 2)
    call_add_own_fields(call, b)
    b.add_text(b"Content-Length: ")
    b.add_int(PyBytes_GET_SIZE(<bytes>body))
    if not reusable:
        b.add_text(b"\r\nConnection: close")
    b.add_text(b"\r\n\r\n")
    b.add_bytes(body)
    if call.client.transport is not None:
        call.client.transport.write(b.take())
    call.client.answered(reusable)
    return 0


cdef void call_broken(Call call, object error):
    """A fault of our own. The call still ends once: what was delivered is charged, the client sees the cut."""
    call.engine.fault(error)
    if call.state == C_DONE:
        return
    try:
        call_drop_connection(call)
        if call.head_sent:
            if call.client.transport is not None and (call.plain or not call.reframe and call.head.framing == B_CLOSE):
                call.engine.hooks.reset(call.client.transport)
            call_end(call, E_INTERNAL, call.status, False)
            call.client.answered(False)
        else:
            call_refuse(call, E_INTERNAL, None)
    except Exception as again:
        call.engine.fault(again)
        if call.client is not None and call.client.transport is not None:
            call.client.transport.abort()


cdef int call_end(Call call, int code, int status, bint complete) except -1:
    """The one ending: the hold is settled or released, the record written. Everything else only leads here."""
    cdef Usage usage
    cdef int64_t now
    cdef str source = "none"
    cdef UsageTap tap = call.tap
    cdef Admission admission = call.admission
    if call.state == C_DONE:
        return 0
    call.state = C_DONE
    now = monotonic_ns()
    memset(&usage, 0, sizeof(Usage))
    call.engine.calls.discard(call)
    if admission is not None and admission.state == A_OPEN:
        if call.endpoint.free:
            admission.release(now, call.attempts > 0)
        elif tap is not None and call.body_sent and status < 400:
            if not (complete and call.weighed):
                tap.finish()
                call_weigh(call, tap, complete, &call.verdict)
            usage = call.verdict.usage
            source = "estimated" if call.verdict.estimated else "upstream"
            if call.verdict.doubted:
                call.engine.note_report(call, &call.verdict)
            call_compare_model(call, tap)
            if tap.terminal_seen or (complete and not tap.error_seen):
                call_learn(call, tap, &call.verdict)
            if tap.tap.used or call.extras is not None:
                admission.extras_nano = call_extras_nano(call, tap)
            call.cost_nano = admission.settle(&usage, now, now + call.engine.wall_offset_ns)
            call.written_off_nano = admission.written_off_nano
        else:
            admission.release(now, call.attempts > 0)
    if tap is not None and tap.tap.object_size and call.scanner.store != 0 and status < 300 and call.route is not None:
        call_new_object(call, "response", tap.tap.object_id[:tap.tap.object_size])
    if tap is not None and (tap.tap.containers or tap.tap.sandbox_hash) and status < 300 and call.route is not None:
        for name in sandboxes_of(&tap.tap):
            call_new_object(call, "container", name)
    if code == E_CLIENT_GONE and tap is not None and tap.terminal_seen and not call.left_ns:
        code = E_NONE       # a client that closes behind the last event has finished
    elif code == E_CLIENT_GONE:
        status = 499
    if E_RATE_LIMIT_REQUESTS <= code <= E_TOKENS_PER_CALL:
        call.engine.note_refusal(call, code)
    if call.claimed is not None:
        call_release_claim(call)
    if call.key is not None:
        call.engine.record(call, code, status, &usage, source, now)
    else:
        call.engine.refused_unknown(code)
    if call.slot != NULL:
        call_close_slot(call, code, status, &usage, source, now)
    call.engine.release_body(call.body_owner, call.body_bytes)
    call.body_bytes = 0
    call.body = None
    call.error_parts = None
    if call.wake is not None:
        wake, call.wake = call.wake, None
        wake()
    return 0


cdef int call_new_object(Call call, str kind, bytes name) except -1:
    """The answer names something that its provider keeps: whoever may name it in a request is known by this."""
    call.engine.new_objects.append((kind, name, call.key.account_id, call.key.key_id, call.route.channel.name,
                                    call.wall_ns // 1_000_000))
    return 0


cdef int call_release_claim(Call call) except -1:
    """A key is bound to a call of which something was delivered, and free again after any other."""
    call.bound = call.admission is not None and call.admission.state == A_SETTLED
    if 0 < call.status < 400 and (call.body_sent or call.admission is None):
        call.bound = True       # answered, if not charged here: a job
    if call.slot != NULL and not call.bound:
        memset(call.slot.idempotency, 0, 32)
    call.engine.hooks.unclaim(call.id, call.claimed, bool(call.bound))
    return 0
