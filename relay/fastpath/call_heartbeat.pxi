# A stream whose upstream is silent begins all the same (server.stream_heartbeat_seconds): comments of SSE, so that proxies and
# clients with short timeouts wait on. Until the upstream's first byte another channel may still be tried; what goes wrong is
# told by the dialect's error event, because the status is sent. No money: a comment is nothing of an answer.

cdef bytes HEARTBEAT = b": waiting for the provider\n\n"


cdef bint call_may_beat(Call call):
    """Whether its answer is events, and somebody reads them."""
    cdef int format = call.endpoint.format
    if not call.stream or call.client.transport is None or call.client.write_paused:
        return False
    if format == F_GENERATE:
        return call.query is not None and b"alt=sse" in call.query
    return format == F_CHAT or format == F_COMPLETIONS or format == F_RESPONSES or format == F_MESSAGES


cdef int call_beat(Call call, int64_t now) except -1:
    """From the sweep, while the upstream has sent nothing."""
    cdef Buffer b
    cdef char[20] text
    if now - (call.beat_ns if call.beat_ns else call.began_ns) < call.engine.heartbeat_ns or not call_may_beat(call):
        return 0
    b = call_cleared_buffer(call)
    if not call.beat_ns:
        call.engine.id_text(call.id, text)
        b.add_text(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n")
        b.add_text(b"Connection: close\r\n" if call.client.http10 else b"Transfer-Encoding: chunked\r\n")
        b.add_text(b"x-content-type-options: nosniff\r\nx-relay-request-id: ")
        b.add(text, 18)
        b.add(b"\r\n", 2)
        call_add_own_fields(call, b)
        b.add(b"\r\n", 2)
    call.beat_ns = now
    call_begun_framing(call)
    call_frame(call, b, <const uint8_t*>PyBytes_AS_STRING(HEARTBEAT), PyBytes_GET_SIZE(HEARTBEAT))
    call.client.transport.write(b.take())
    return 0


cdef void call_begun_framing(Call call) noexcept:
    """What the head before the first heartbeat says: our own chunks, whatever the upstream's framing."""
    call.plain = call.client.http10
    call.reframe = not call.plain


cdef bint call_fits_beats(Call call) noexcept:
    """Whether an answer can follow them: events, in no coding."""
    return call.head.status < 300 and not call.head.compressed and call.shape != SHAPE_OBJECT and call.shape != SHAPE_ARRAY


cdef int call_refuse_begun(Call call, int code) except -1:
    """A refusal after heartbeats."""
    cdef bytes event
    cdef Buffer b
    call.status = 200
    call_end(call, code, 200, False)
    if call.client.transport is not None:
        event = call.engine.hooks.render_stream_error(call.endpoint.format, K_SSE, code, 0)
        b = call_cleared_buffer(call)
        call_begun_framing(call)
        call_frame(call, b, <const uint8_t*>PyBytes_AS_STRING(event), PyBytes_GET_SIZE(event))
        call.client.transport.write(b.take())
    call.client.answered(False)      # without a last chunk: it is no whole answer
    return 0
