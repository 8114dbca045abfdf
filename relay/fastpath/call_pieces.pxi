# The answer to a call that was set aside, in pieces that Python hands over: the events of a job. Nothing is charged here.


cdef bint call_begin_pieces(Call call, int status, bytes fields, bint compressed, object wake) except -1:
    """The head. False where the client has gone."""
    cdef Buffer b = call.engine.buffer
    cdef char[20] text
    if call.state != C_ASIDE:
        return False
    call.state = C_PIECES
    call.status = status
    call.stream = True
    call.attempts = 1
    call.wake = wake
    call.first_byte_ns = monotonic_ns()
    call.plain = call.client.http10
    call.reframe = not call.plain
    call.head = ResponseHead()
    call.head.framing = B_CHUNKED
    call.head.event_stream = True
    call.head.compressed = compressed
    if not compressed:      # it tells where our own error event could stand, and whether the stream is whole
        call.tap = UsageTap(F_RESPONSES, 1, <TokenTable>call.engine.default_tables[call.endpoint.dialect])
    call.engine.id_text(call.id, text)
    b.size = 0
    b.add_text(b"HTTP/1.1 ")
    b.add_int(status)
    b.add(b" ", 1)
    b.add_bytes(<bytes>call.engine.reasons.get(status, b"OK"))
    b.add(b"\r\n", 2)
    b.add_bytes(fields)
    b.add_text(b"Connection: close\r\n" if call.plain else b"Transfer-Encoding: chunked\r\n")
    b.add_text(b"x-relay-request-id: ")
    b.add(text, 18)
    b.add(b"\r\n", 2)
    call_add_own_fields(call, b)
    b.add(b"\r\n", 2)
    call.head_sent = True
    call.client.transport.write(b.take())
    return True


cdef bint call_add_piece(Call call, bytes data) except -1:
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef Buffer out = call.engine.buffer
    if call.state != C_PIECES:
        return False
    if call.tap is not None:
        call.tap.feed(p, PyBytes_GET_SIZE(data))
    call.body_sent = True
    out.size = 0
    call_frame(call, out, p, PyBytes_GET_SIZE(data))
    if out.size:
        call.client.transport.write(out.take())
    return call.state == C_PIECES


cdef int call_end_pieces(Call call, int code) except -1:
    """The last piece was handed over, or none will come because of `code`. A stream that is not whole is cut."""
    if call.state != C_PIECES:
        return 0
    if code == 0 and call.tap is not None and not (call.tap.terminal_seen or call.tap.error_seen):
        code = E_UPSTREAM_TRUNCATED
    if code:
        return call_fail(call, code)
    if call.reframe:
        call.client.transport.write(b"0\r\n\r\n")
    call_end(call, 0, call.status, True)
    call.client.answered(call.reframe)
    return 0
