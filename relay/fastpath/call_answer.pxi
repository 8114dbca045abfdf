# The upstream's answer up to its first byte to the client: its head, errors that are looked at before they pass, answers
# that are changed.


cdef int call_upstream_data(Call call, bytes data) except -1:
    """Bytes from the upstream."""
    cdef Py_ssize_t end
    try:
        call.active_tick = call.engine.tick
        if call.state == C_RELAY:
            call_relay(call, data, 0, None)
        elif call.state == C_HEAD:
            call_read_head(call, data)
        elif call.state == C_LOOK:
            call_look_on(call, data)
        elif call.state == C_ERROR_BODY or call.state == C_COLLECT:
            call_read_error(call, data, 0)
        else:
            call_drop_connection(call)
    except Exception as error:
        call_broken(call, error)
    return 0


cdef int call_read_head(Call call, bytes data) except -1:
    cdef Py_ssize_t searched = 0, end
    cdef ResponseHead head
    cdef const uint8_t* p
    if call.head_bytes is not None:
        searched = PyBytes_GET_SIZE(call.head_bytes)
        data = call.head_bytes + data
        call.head_bytes = None
    p = <const uint8_t*>PyBytes_AS_STRING(data)
    while True:
        end = find_head_end(p, PyBytes_GET_SIZE(data), searched)
        if end < 0:
            if PyBytes_GET_SIZE(data) > RESPONSE_HEAD_BYTES_MAX or (
                    PyBytes_GET_SIZE(data) >= 7 and memcmp(p, b"HTTP/1.", 7) != 0) or bare_lf(p, PyBytes_GET_SIZE(data)):
                return call_attempt_failed(call, E_UPSTREAM_GARBAGE)
            call.head_bytes = data
            return 0
        if end > RESPONSE_HEAD_BYTES_MAX:
            return call_attempt_failed(call, E_UPSTREAM_GARBAGE)
        head = call.connection.head
        if head.parse(p, end, call.engine.fields) < 0 or head.status == 101:
            return call_attempt_failed(call, E_UPSTREAM_GARBAGE)
        if head.status >= 200:
            break
        data = data[end:]      # 100, 103: not the answer yet
        p = <const uint8_t*>PyBytes_AS_STRING(data)
        searched = 0
    call.head = head
    call.status = head.status
    call.first_byte_ns = monotonic_ns()
    call.remaining = head.length
    chunked_init(&call.chunked)
    if head.status >= 300:
        if head.status < 400:
            return call_attempt_failed(call, E_UPSTREAM_GARBAGE)     # a redirect is never followed
        call.state = C_ERROR_BODY
        call.error_parts = []
        call.error_bytes = 0
        return call_read_error(call, data, end)
    call.shape = SHAPE_UNKNOWN
    return call_look(call, data, end)


cdef bint bare_lf(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Whether a line ends in LF alone."""
    cdef const uint8_t* end = p + n
    cdef const uint8_t* q = p
    while True:
        q = <const uint8_t*>memchr(q, 10, end - q)
        if q == NULL:
            return False
        if q == p or (q - 1)[0] != 13:
            return True
        q += 1


cdef int call_read_error(Call call, bytes data, Py_ssize_t offset) except -1:
    """Holds an error answer back until it is whole: what is about the operator's own account must not pass."""
    cdef Py_ssize_t i = offset, n = PyBytes_GET_SIZE(data), start, size
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
    cdef bint whole = False
    if offset:
        data = data[offset:]
        p = <const uint8_t*>PyBytes_AS_STRING(data)
        n -= offset
        i = 0
    call.error_parts.append(data)
    call.error_bytes += n
    if call.head.framing == B_NONE:
        whole = True
    elif call.head.framing == B_LENGTH:
        whole = call.error_bytes >= call.head.length
    elif call.head.framing == B_CHUNKED:
        while i < n and call.chunked.state < K_END:
            i += chunked_next(&call.chunked, p + i, n - i, &start, &size)
        if call.chunked.state == K_BAD:
            return call_attempt_failed(call, E_UPSTREAM_GARBAGE)
        whole = call.chunked.state == K_END
    if call.state == C_COLLECT:
        if whole:
            return call_annotate_collected(call)
        if call.error_bytes > COLLECTED_BYTES_MAX:
            return call_pass_collected(call)
    elif call.status < 300:
        whole = whole or call.error_bytes > ERROR_BODY_BYTES_MAX
        if call_error_known(call, whole):
            return call_judge_error(call)
        if whole:
            return call_attempt_failed(call, E_UPSTREAM_ERROR)
    elif whole or call.error_bytes > ERROR_BODY_BYTES_MAX:
        return call_judge_error(call)
    return 0


cdef int call_pass_collected(Call call) except -1:
    """What was collected goes on as it came."""
    cdef bytes data = b"".join(call.error_parts)
    call.error_parts = None
    call.annotate = False
    chunked_init(&call.chunked)
    return call_begin_answer(call, data, 0)


cdef int call_annotate_collected(Call call) except -1:
    """An answer that is one JSON document is complete: its usage object gains what the call costs."""
    cdef bytes data = b"".join(call.error_parts), rest = b"", body
    cdef UsageTap tap = UsageTap(call.endpoint.format, 0, call.route.table)
    cdef object changed = None
    cdef ResponseHead head = call.head
    body = data
    if head.framing == B_CHUNKED:
        body, _, rest = decode_chunked([data])
    elif head.framing == B_LENGTH:
        body, rest = data[:head.length], data[head.length:]
    tap.feed(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
    changed = call_annotated(call, body, False, tap)
    if changed is None:
        return call_pass_collected(call)
    if rest or head.framing == B_CLOSE:
        head.close = True
    head.framing = B_LENGTH
    head.length = call.remaining = PyBytes_GET_SIZE(<bytes>changed)
    call.error_parts = None
    call.annotate = False
    return call_begin_answer(call, <bytes>changed, 0)


cdef object call_annotated(Call call, bytes data, bint event, UsageTap tap):
    """The document or event with the cost in its usage object; None where there is none to be changed."""
    cdef Verdict verdict
    cdef Balance balance = call.admission.balance
    cdef Rate rate = call.admission.rate
    cdef int64_t cost
    if not tap.usage_seen:
        return None
    call_weigh(call, tap, True, &verdict)
    cost = rate.cost_of(&verdict.usage)
    if tap.tap.used or call.extras is not None:
        cost = min(cost + call_extras_nano(call, tap), COST_MAX)
    return call.engine.hooks.annotate(data, event, cost, rate.card,
                                      max(balance.available_nano + balance.held_nano - cost, <int64_t>0))


cdef int call_judge(Call call, int status, bytes body, bytes encoding, bytes fields, int* scope, int* instead,
                    int64_t* wait_ns) except -1:
    """What an error of an upstream is about: V_*, and the rest as `judge_error` tells it. A key that it speaks of rests."""
    cdef int verdict
    verdict, scope[0], rest_ns, instead[0], wait_ns[0] = call.engine.hooks.judge_error(
        status, encoding, body, fields, call.route.channel, call.route.upstream_model,
        call.route.upstream_model_json is not None)
    if rest_ns:
        call.route.channel.rest_key(
            call.upstream_key, call.route.upstream_model, call.endpoint.format, scope[0], monotonic_ns(), <int64_t>rest_ns,
            E_UPSTREAM_ACCOUNT if verdict == V_ACCOUNT else E_UPSTREAM_UNAVAILABLE, status)
    return verdict


cdef int call_judge_error(Call call) except -1:
    cdef bytes data = b"".join(call.error_parts), body = data
    cdef Channel channel = call.route.channel
    cdef int verdict, scope, instead, blame
    cdef int64_t now = monotonic_ns(), wait_ns
    if call.head.framing == B_CHUNKED:
        body = decode_chunked([data])[0]
    verdict = call_judge(call, call.status, body, call.head.encoding,
                         PyBytes_FromStringAndSize(call.head.passed.data, call.head.passed.size), &scope, &instead, &wait_ns)
    if verdict == V_ACCOUNT:
        return call_attempt_failed(call, E_UPSTREAM_ACCOUNT, BLAME_KEY)
    if verdict == V_REQUEST:
        call_attempt_good(call, now)
    else:
        # What it lacks or limits is not its failure.
        blame = BLAME_NOBODY if verdict == V_MISSING else BLAME_KEY if scope == SCOPE_MODEL else \
            BLAME_CHANNEL if call.status >= 500 else BLAME_NOBODY
        if instead:
            call.wait_ns = wait_ns
            return call_attempt_failed(call, instead, blame)
        if call.engine.retry_budget.left() and (call_may_retry(call) and (
                call.engine.another_way(call.routes, call.tried, channel, call.endpoint.format, now) or (blame == BLAME_KEY and call_other_key(call, now) is not None))
                or call_may_fall_back(call)):
            return call_attempt_failed(call, E_UPSTREAM_FAILED, blame)
        if blame == BLAME_CHANNEL:
            call_attempt_bad(call, E_UPSTREAM_ERROR)
    call.error_parts = None
    chunked_init(&call.chunked)
    return call_begin_answer(call, data, 0)


cdef int call_begin_answer(Call call, bytes data, Py_ssize_t offset) except -1:
    """The head is good: from here on the client sees this upstream's answer."""
    cdef ResponseHead head = call.head
    cdef int kind, code
    if call.beat_ns and not call_fits_beats(call):
        if head.status < 300:
            return call_attempt_failed(call, E_UPSTREAM_GARBAGE)
        call_drop_connection(call)
        return call_refuse(call, E_UPSTREAM_ERROR, None)
    call.state = C_RELAY
    if call.slot != NULL:
        call.slot.status = head.status
        call.slot.first_byte_us = (call.first_byte_ns - call.began_ns) // 1000
    if head.status < 300:
        if call.shape == SHAPE_OBJECT and call.stream:
            code = call_hold_document(call)
            if code:
                call_drop_connection(call)
                return call_refuse(call, E_MAX_COST if code == E_MAX_COST_REACHED else
                                   E_INSUFFICIENT_BALANCE if code == E_BALANCE_EXHAUSTED else code, None)
        kind = call_body_kind(call)
        if kind == K_SSE and call.endpoint.format == F_SPEECH:
            call.stream = True      # its request says so in a field of its own
        call.tap = UsageTap(call.endpoint.format, kind, call.route.table)
        call_bounds(call)
        if call.shape == SHAPE_OTHER and call.endpoint.format == F_IMAGES:
            call.tap.tap.image_count = call.scanner.choices     # the picture itself, which reports nothing
        call_meter(call, kind)
        call.prompt_known = call.endpoint.format != F_MESSAGES and call.endpoint.format != F_GENERATE   # others say it last
        if head.compressed:
            call.decoder = call.engine.hooks.decoder(head.encoding)
        call.strip = call.strip and kind == K_SSE and not head.compressed
        if call.annotate:
            call.annotate = not (head.compressed or call.endpoint.free or head.framing == B_NONE)
            if call.annotate and call.shape == SHAPE_OBJECT and call.endpoint.format != F_SPEECH:
                call.state = C_COLLECT
                if call.slot != NULL:
                    call.slot.status = 0      # the client sees nothing of it yet
                call.error_parts = []
                call.error_bytes = 0
                return call_read_error(call, data, offset)
            call.annotate = call.annotate and kind == K_SSE
    else:
        call.strip = call.annotate = False
    call.plain = call.client.http10 and (head.framing == B_CHUNKED or call.annotate)
    call.reframe = not call.plain and (
        call.strip or call.annotate or (head.framing == B_CLOSE and not call.client.http10))
    if call.beat_ns:
        call_begun_framing(call)
    if call.strip or call.annotate:
        call.held = Buffer()
    return call_relay(call, data, offset, call_response_head(call))


cdef bytes call_response_head(Call call):
    cdef ResponseHead head = call.head
    cdef Buffer b = call.engine.buffer
    cdef char[20] text
    if call.beat_ns:
        return b""      # it was sent before the first heartbeat
    b.size = 0
    b.add_text(b"HTTP/1.1 ")
    b.add_int(head.status)
    b.add(b" ", 1)
    b.add_bytes(head.reason)
    b.add(b"\r\n", 2)
    b.add(head.passed.data, head.passed.size)
    if call.reframe or (head.framing == B_CHUNKED and not call.plain):
        b.add_text(b"Transfer-Encoding: chunked\r\n")
    elif head.framing == B_LENGTH:
        b.add_text(b"Content-Length: ")
        b.add_int(head.length)
        b.add(b"\r\n", 2)
    if call.plain or (head.framing == B_CLOSE and not call.reframe):
        b.add_text(b"Connection: close\r\n")
    if head.sandbox:
        b.add_text(b"content-security-policy: sandbox\r\n")
    b.add_text(b"x-content-type-options: nosniff\r\nx-relay-request-id: ")
    call.engine.id_text(call.id, text)
    b.add(text, 18)
    b.add(b"\r\n", 2)
    call_add_own_fields(call, b)
    b.add(b"\r\n", 2)
    return b.take()


cdef int call_add_own_fields(Call call, Buffer b) except -1:
    """server-timing, the key's limits in the dialect's names, and what a browser has to know."""
    cdef int64_t now = monotonic_ns()
    b.add_text(b"server-timing: relay;dur=")
    if call.sent_ns:
        b.add_millis(call.sent_ns - call.began_ns)
        if call.first_byte_ns:
            b.add_text(b", upstream;dur=")
            b.add_millis(call.first_byte_ns - call.sent_ns)
    else:
        b.add_millis(now - call.began_ns)
    b.add(b"\r\n", 2)
    if call.key is not None:
        call.engine.add_limits(b, call.key, call.endpoint.dialect, now, call.wall_ns)
    if call.cors is not None:
        b.add_bytes(call.cors)
    return 0
