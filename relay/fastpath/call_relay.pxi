# The answer on its way: bytes out in one write per read, a copy into the tap, the hold growing slice by slice.


cdef int call_relay(Call call, bytes data, Py_ssize_t offset, bytes head) except -1:
    """A read from the upstream on its way to the client, in one write."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data), i = offset, start, size, taken, last = offset, eaten
    cdef bint ended = False, bad = False
    cdef Buffer out = call.engine.buffer
    cdef int framing = call.head.framing
    out.size = 0
    if framing == B_CHUNKED:
        while i < n and not call.cut:
            if call.chunked.state == K_SIZE and call.chunked.digits == 0:
                last = i          # where the framing of the next chunk begins
            eaten = chunked_next(&call.chunked, p + i, n - i, &start, &size)
            if size:
                taken = call_payload(call, p + i + start, size, out)
                if call.cut:
                    i += start + taken
                    call.cut_bytes = size - taken
                    break
                last = i + eaten      # what was counted passes, whatever follows it
            i += eaten
            if call.chunked.state >= K_END:
                bad = call.chunked.state == K_BAD
                ended = not bad
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
    if ended and framing == B_CHUNKED and call_ended_early(call):
        # the framing is complete but the stream is not: its last chunk is kept back, so that the client sees a cut
        ended = False
        bad = True
        i = last
    if bad and not (ended or call.cut) and framing == B_CHUNKED and call.chunked.state == K_BAD:
        i = last
    call_note_delivery(call)     # before the write: a process killed inside it must not have given away what it wrote
    call_write_out(call, data, offset, i, head, out, ended)
    if call.cut:
        return call_fail(call, call.cut_code)
    if bad:
        return call_fail(call, E_UPSTREAM_TRUNCATED if call.chunked.state == K_END else E_UPSTREAM_GARBAGE)
    if ended:
        return call_finish(call)
    return 0


cdef bint call_ended_early(Call call):
    """A stream whose framing ended before its dialect's last event."""
    if call.tap is None or call_tap_kind(call) != 1 or not call.stream or call.decoder is not None or call.head.compressed:
        return False
    if call.endpoint.format not in (F_CHAT, F_COMPLETIONS, F_RESPONSES, F_MESSAGES, F_GENERATE, F_IMAGES, F_SPEECH):
        return False
    return not (call.tap.terminal_seen or call.tap.finish_seen or call.tap.error_seen)


cdef int call_tap_kind(Call call):
    return 1 if call.head.event_stream else 0


cdef Py_ssize_t call_payload(Call call, const uint8_t* p, Py_ssize_t n, Buffer out) except -1:
    """Body bytes: a copy into the tap, and into `out` where we frame ourselves. Returns how many may pass (all, unless cut)."""
    cdef Py_ssize_t i = 0, k
    if call.tap is None:
        i = n
    elif call.head.compressed:
        if call.decoder is not None:
            call_feed_decoded(call, p, n)
        i = n
    elif (call.metered or call.annotate) and call.head.event_stream:
        while i < n:
            k = call.tap.feed_event(p + i, n - i)
            if call.held is not None:
                call_hold_event(call, p + i, k, out)
            i += k
            if call.tap.event_ended and call.metered:
                if not call.prompt_known and call.tap.usage_seen:
                    call_correct_prompt(call)
                if call_counted(call) > call.admission.output_allowance and not call_grow(call):
                    break
    else:
        call.tap.feed(p, n)
        i = n
        if call.metered and call_counted(call) > call.admission.output_allowance:
            call_grow(call)
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


cdef int call_feed_decoded(Call call, const uint8_t* p, Py_ssize_t n) except -1:
    cdef bytes piece
    try:
        for piece in call.decoder(PyBytes_FromStringAndSize(<const char*>p, n)):
            call.tap.feed(<const uint8_t*>PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
    except Exception:
        call.decoder = None      # a copy that cannot be read has no usage; the bytes pass all the same
    return 0


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
