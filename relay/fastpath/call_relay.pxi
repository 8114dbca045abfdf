# The answer on its way: bytes out in one write per read, a copy into the tap, the hold growing slice by slice.


cdef int call_relay(Call call, bytes data, Py_ssize_t offset, bytes head) except -1:
    """A read from the upstream on its way to the client, in one write."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data), i = offset, start, size, taken, last = offset, eaten, trailer = -1
    cdef Py_ssize_t tail
    cdef bint ended = False
    cdef int wrong, last_state = -1, bad = 0, framing = call.head.framing
    cdef Buffer out = call.engine.buffer
    cdef Chunked at_first
    out.size = 0
    if framing == B_CHUNKED:
        at_first = call.chunked
        if at_first.state >= K_TRAILER:
            trailer = offset
        while i < n and not call.cut:
            if call.chunked.state == K_SIZE and call.chunked.digits == 0:
                last = i          # where the framing of the next chunk begins
                last_state = K_SIZE
            eaten = chunked_next(&call.chunked, p + i, n - i, &start, &size)
            if size:
                taken = call_payload(call, p + i + start, size, out)
                if call.cut:
                    i += start + taken
                    call.cut_bytes = size - taken
                    break
                last = i + eaten      # what was counted passes, whatever follows it
                last_state = K_DATA_CR
            i += eaten
            if call.chunked.state >= K_TRAILER:
                if trailer < 0:
                    trailer = i
                if call.chunked.state >= K_END:
                    ended = call.chunked.state == K_END
                    if not ended:
                        bad = E_UPSTREAM_GARBAGE
                    break
        if ended and i < n:
            call.head.close = True      # bytes behind the answer: this connection is not used again
    elif framing == B_LENGTH:
        size = n - i
        if size > call.remaining:
            size = <Py_ssize_t>call.remaining
            call.head.close = True
        taken = call_payload(call, p + i, size, out)
        i += taken
        call.remaining -= taken
        ended = call.remaining == 0 and not call.cut
    elif framing == B_CLOSE:
        i += call_payload(call, p + i, n - i, out)
    else:
        ended = True
        if i < n:
            call.head.close = True
    if head is not None:
        wrong = call_first_read(call, data, offset, ended)
        if wrong:
            return call_take_back(call, wrong, data, offset)
        call.head_sent = True
    if (ended or trailer >= 0) and not bad and call_ended_early(call):
        # the framing is complete but the answer is not: its end is kept back, so that the client sees a cut
        ended = False
        bad = E_UPSTREAM_TRUNCATED
        if framing == B_LENGTH and i > offset:
            i -= 1
    if bad and framing == B_CHUNKED:
        i = last
        call.chunked = at_first     # the framing as the client has it
        if last_state >= 0:
            chunked_init(&call.chunked)
            call.chunked.state = last_state
    elif trailer >= 0:
        tail = min(i - trailer, 2 if ended else 1 if call.chunked.state == K_LAST_LF else 0)
        if i - trailer != tail:      # trailer fields are dropped: they tell of the upstream's account, as in a head
            data = data[:trailer] + data[i - tail:i]
            i = PyBytes_GET_SIZE(data)
    # Before the write: a process killed inside it must not have given away what it wrote.
    call_note_delivery(call, ended and not (bad or call.cut))
    call_write_out(call, data, offset, i, head, out, ended)
    if call.cut:
        return call_fail(call, call.cut_code)
    if bad:
        return call_fail(call, bad)
    if ended:
        return call_finish(call)
    return 0


cdef bint call_ended_early(Call call):
    """Whether a body whose framing has ended lacks its dialect's last event, or the end of its document."""
    cdef int state
    if call.tap is None or call.head.compressed:
        return False
    if call.tap.tap.kind != K_SSE:
        state = call.tap.tap.json.state
        return (call.shape == SHAPE_OBJECT or call.shape == SHAPE_ARRAY) and state != J_DONE and state != J_ERROR
    if not call.stream:
        return False
    if call.endpoint.format not in (F_CHAT, F_COMPLETIONS, F_RESPONSES, F_MESSAGES, F_GENERATE, F_IMAGES, F_SPEECH):
        return False
    if call.tap.terminal_seen or call.tap.error_seen:
        return False
    return not call.tap.finish_seen or call.tap.tap.json.depth > 0      # or inside its last event


cdef Py_ssize_t call_payload(Call call, const uint8_t* p, Py_ssize_t n, Buffer out) except -1:
    """Body bytes: a copy into the tap, and into `out` where we frame ourselves. Returns how many may pass (all, unless cut)."""
    cdef Py_ssize_t i = 0, k
    cdef bint error_seen, begun
    if call.looking and not call_look_again(call, p, n):
        return 0
    if call.tap is None:
        i = n
    elif call.head.compressed:
        i = call_copy_compressed(call, p, n)
    elif call.tap.tap.kind != K_JSON or call.left_ns:
        while i < n:
            begun = not call.tap.at_boundary
            k = call.tap.feed_event(p + i, n - i)
            if (call.tap.error_seen or call.tap.tap.type == EV_FAILED or call.tap.tap.type == EV_ERROR) and not call_error_may_pass(call, p + i, k, begun):
                break
            if call.held is not None:
                call_hold_event(call, p + i, k, out)
            i += k
            if call.tap.event_ended and call.metered:
                if not call.prompt_known and call.tap.usage_seen:
                    call_correct_prompt(call)
                if call_counted(call) > call.admission.output_allowance and not call_grow(call):
                    break
            if call.left_ns and call.tap.event_ended and (
                    call_counted(call) - call.left_tokens >= call.engine.read_on_tokens_max):
                call.cut = True
                call.cut_code = E_CLIENT_GONE
                break
    else:
        error_seen = call.tap.error_seen
        call.tap.feed(p, n)
        i = n
        if call.tap.error_seen and not error_seen and call.head_sent and not call_late_error_may_pass(call, p, n):
            i = 0
    if i:
        call.body_sent = True
    if (call.reframe or call.plain) and call.held is None and i:
        call_frame(call, out, p, i)
    return i


cdef inline int64_t call_counted(Call call) noexcept:
    """Output tokens delivered so far."""
    return call_counted_by(call, call.tap)


cdef int call_correct_prompt(Call call) except -1:
    """An early event says what the prompt was (Anthropic's message_start, Gemini's every event)."""
    cdef Verdict verdict
    call_weigh(call, call.tap, False, &verdict)
    call.prompt_known = True
    if not verdict.doubts[IN_INPUT] and whole_prompt(&verdict.usage):
        call.admission.correct_prompt(&verdict.usage)
    return 0


cdef bint call_grow(Call call) except -1:
    """Another slice of output on the hold. Where it cannot be had the answer ends here."""
    cdef int code = call.admission.grow(call_counted(call), call.engine.wall_ns())
    if code:
        call.cut = True
        call.cut_code = code
    return code == 0


cdef bint call_error_may_pass(Call call, const uint8_t* p, Py_ssize_t n, bint begun) except -1:
    """An error event inside a stream passes, unless it is about the operator's account: then the stream is cut.

    It is judged when it is there. One whose rest has not come is not waited for: the stream is cut before it, because
    what comes next may name the account. `begun`: its first bytes have passed, or been held, before these.
    """
    cdef Tap* tap = &call.tap.tap
    cdef bint held = call.held is not None and not call.event_passes
    cdef bytes event
    cdef int code = 0
    if call.tap.event_ended:
        if not tap.event_error:
            return True
    elif held or not (tap.tells_error or tap.type == EV_FAILED or tap.type == EV_ERROR):
        return True
    elif tap.json.state != J_DONE:
        code = E_UPSTREAM_ERROR
    if not code:
        event = PyBytes_FromStringAndSize(<const char*>p, n)
        if held:
            event = PyBytes_FromStringAndSize(call.held.data, call.held.size) + event
            begun = False
        code = call_says_of_part(call, event) if begun or tap.event_error == 2 else call_says_instead(call, event)
    if not code:
        return True
    call.cut = True
    call.cut_code = code
    if call.held is not None:
        call.held.size = 0
    return False


cdef bint call_late_error_may_pass(Call call, const uint8_t* p, Py_ssize_t n) except -1:
    """The same for one document, in which an error stands in p and the head has passed before."""
    cdef bytes part = PyBytes_FromStringAndSize(<const char*>p, n)
    cdef int code = call_says_of_part(call, part)
    if code != E_UPSTREAM_ACCOUNT and call_gave_nothing(call):
        code = code or (E_UPSTREAM_ERROR if call.tap.tap.json.state != J_DONE else 0)
    elif code != E_UPSTREAM_ACCOUNT:
        code = 0        # words of the answer itself
    call.cut = code != 0
    call.cut_code = code
    return code == 0


cdef Py_ssize_t call_copy_compressed(Call call, const uint8_t* p, Py_ssize_t n) except -1:
    """A decompressed copy goes into the tap. All bytes pass or, where the hold does not cover what is in them, none."""
    cdef bytes piece
    if call.decoder is None:
        return call_count_unread(call, n)
    call.compressed_bytes += n
    try:
        for piece in call.decoder(PyBytes_FromStringAndSize(<const char*>p, n)):
            call_copy_decoded(call, piece)
            if call.cut:
                return 0
    except Exception:
        call.decoder = None
        return call_count_unread(call, n)
    return n


cdef int call_copy_decoded(Call call, bytes piece) except -1:
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(piece)
    cdef Py_ssize_t i = 0, n = PyBytes_GET_SIZE(piece)
    cdef Py_ssize_t k
    cdef bint begun
    while i < n and not call.cut:
        begun = not call.tap.at_boundary
        k = call.tap.feed_event(p + i, n - i)
        if call.tap.tap.kind != K_JSON and (call.tap.error_seen or call.tap.tap.type == EV_FAILED or call.tap.tap.type == EV_ERROR) and \
                not call_error_may_pass(call, p + i, k, begun):
            return 0
        i += k
        if call.metered and call.tap.event_ended:
            if not call.prompt_known and call.tap.usage_seen:
                call_correct_prompt(call)
            if call_counted(call) > call.admission.output_allowance:
                call_grow(call)
    return 0


cdef Py_ssize_t call_count_unread(Call call, Py_ssize_t n) except -1:
    """Bytes that nobody here can read: each counts as a token, up to the caller's own limit or, where the call is no
    stream, to what it holds. For what has pieces, those that were asked for count. Returns how many may pass."""
    cdef Admission admission = call.admission
    cdef int format = call.endpoint.format, code
    cdef int64_t most, more = n
    if format == F_IMAGES:
        call.tap.tap.image_count = call.scanner.choices
    elif not call.endpoint.free and (format <= F_RESPONSES or format == F_MESSAGES or format == F_GENERATE):
        most = admission.output_bound if admission.output_bound >= 0 or admission.stream else admission.output_allowance
        if most >= 0:
            more = max(min(more, most - call_counted(call)), <int64_t>0)
        if call.metered and call_counted(call) + more > admission.output_allowance:
            code = admission.grow(call_counted(call) + more, call.engine.wall_ns())
            if code:
                more = max(admission.output_allowance - call_counted(call), <int64_t>0)
                n = <Py_ssize_t>min(<int64_t>n, more)
                call.cut = True
                call.cut_code = code
        call.unread_tokens += more
    return n


cdef int call_hold_event(Call call, const uint8_t* p, Py_ssize_t n, Buffer out) except -1:
    """An event passes when it is whole: but for the usage report that the client did not ask for (ask_usage), and
    with the cost in its usage object (annotate). One that is too large for either passes as it comes."""
    if call.event_passes:
        call_frame(call, out, p, n)
    else:
        call.held.add(p, n)
        if call.tap.event_ended:
            if not (call.strip and call.tap.event_usage_only):
                if call.annotate and call.tap.tap.event_usage and (
                        call.tap.finish_seen or call.tap.terminal_seen or call.tap.event_usage_only):
                    call_frame_annotated(call, out)
                else:
                    call_frame(call, out, <const uint8_t*>call.held.data, call.held.size)
            call.held.size = 0
        elif call.held.size > EVENT_BYTES_HELD_MAX:
            call_frame(call, out, <const uint8_t*>call.held.data, call.held.size)
            call.held.size = 0
            call.event_passes = True
    if call.tap.event_ended:
        call.event_passes = False
    return 0


cdef int call_frame_annotated(Call call, Buffer out) except -1:
    cdef object changed = call_annotated(call, PyBytes_FromStringAndSize(call.held.data, call.held.size), True, call.tap)
    if changed is None:
        return call_frame(call, out, <const uint8_t*>call.held.data, call.held.size)
    return call_frame(call, out, <const uint8_t*>PyBytes_AS_STRING(changed), PyBytes_GET_SIZE(<bytes>changed))


cdef int call_frame(Call call, Buffer out, const uint8_t* p, Py_ssize_t n) except -1:
    if n == 0:
        return 0
    if call.reframe:
        out.add_hex(n)
        out.add(b"\r\n", 2)
        out.add(p, n)
        out.add(b"\r\n", 2)
    else:
        out.add(p, n)
    return 0


cdef int call_write_out(Call call, bytes data, Py_ssize_t offset, Py_ssize_t end, bytes head, Buffer out, bint ended) except -1:
    cdef object transport = call.client.transport
    cdef Py_ssize_t size = end - offset
    if transport is None:
        return 0
    if call.reframe or call.plain:
        if ended:
            if call.held is not None and call.held.size:
                call_frame(call, out, <const uint8_t*>call.held.data, call.held.size)
                call.held.size = 0
            if call.reframe:
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
