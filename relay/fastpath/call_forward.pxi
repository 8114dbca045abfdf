# From the choice of a channel to the request on its way, and what follows where an attempt fails.


cdef int call_find_affinity(Call call) except -1:
    """Calls of one key and model whose prompts begin alike belong together: their provider has that beginning cached.

    In memory only, under a key of this process: the number is no trace of what was said. Providers cache nothing below
    1,024 tokens.
    """
    cdef uint8_t[PREFIX_BYTES + 16] prefix
    cdef int64_t at, part_size, skip, size = 0, model
    cdef bytes part
    cdef hash128 h
    if not (call.endpoint.format == F_CHAT or call.endpoint.format == F_RESPONSES or call.endpoint.format == F_MESSAGES
            or call.endpoint.format == F_GENERATE):
        return 0
    at = call.scanner.prefix_start(PREFIX_BYTES)
    if at < 0:
        return 0
    memcpy(&prefix[PREFIX_BYTES], &call.key.key_id, 8)
    model = <int64_t>hash(call.model.name)
    memcpy(&prefix[PREFIX_BYTES + 8], &model, 8)
    skip = at
    for part in call.body:
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
    h = siphash(call.engine.hash_key[0], call.engine.hash_key[1], prefix, PREFIX_BYTES + 16)
    call.affinity = h.low | 1
    return 0


cdef str message_of(list routes):
    """What the operator has to say about channels that are switched off."""
    cdef Route route
    for route in routes:
        if route.channel.off and route.channel.off_message:
            return route.channel.off_message
    return None


cdef int call_forward(Call call) except -1:
    """Finds a channel and sends the request there."""
    cdef int64_t now = monotonic_ns()
    cdef Route route = call.engine.choose(call, now)
    cdef int code
    if route is None:
        if call_may_fall_back(call) and call_fall_back(call):
            return 0
        if call.attempts:
            return call_refuse(call, call_status_of_failure(call), None)
        code = call.engine.no_way(call.routes, call.endpoint.format, now, &call.wait_ns)
        return call_refuse(call, code, message_of(call.routes) if code == E_SWITCHED_OFF else None)
    return call_forward_to(call, route, now)


cdef int call_forward_to(Call call, Route route, int64_t now) except -1:
    """Sends the request on, over a kept connection or a new one."""
    cdef UpstreamConnection connection
    call.route = route
    if call.attempts == 0:
        call.engine.retry_budget.calls_now += 1
    else:
        call.wait_ns = 0
    call.attempts += 1
    call_note_route(call)
    route.channel.in_flight += 1
    call.on_channel = True
    connection = route.channel.take_idle()
    call.phase_ns = now
    if connection is None:
        call.state = C_CONNECT
        call.engine.hooks.connect(route.channel, call)
    else:
        call_send(call, connection)
    return 0


cdef int call_status_of_failure(Call call):
    return call.last_failure or E_UPSTREAM_FAILED


cdef int call_send(Call call, UpstreamConnection connection) except -1:
    cdef Buffer b = call.engine.buffer
    cdef Channel channel = call.route.channel
    cdef list body
    cdef int64_t size = 0
    cdef bytes part
    call.connection = connection      # first: whatever goes wrong from here on, the end of the call closes it
    connection.call = call
    body = call_upstream_body(call)
    for part in body:
        size += PyBytes_GET_SIZE(part)
    b.size = 0
    b.add(b"POST ", 5)
    b.add_bytes(call.route.base_path)
    if call.endpoint.model_in_path:
        if call.alpha:
            b.add_bytes(call.route.model_path.replace(b"/v1beta/", b"/v1alpha/", 1))      # Vertex AI has no version there
        else:
            b.add_bytes(call.route.model_path)
    b.add_bytes(call.endpoint.upstream_path)
    if call.query is not None:
        b.add_bytes(call.query)
    if channel.query is not None:
        b.add(b"?" if call.query is None else b"&", 1)
        b.add_bytes(channel.query)
    b.add_text(b" HTTP/1.1\r\n")
    b.add_bytes(channel.host_line)
    b.add_bytes(call.upstream_key.line)
    b.add_bytes(channel.edited(call.passed_fields) if channel.edits else call.passed_fields)
    if call.form_type is not None:
        b.add(b"Content-Type: ", 14)
        b.add_bytes(call.form_type)
        b.add(b"\r\nAccept-Encoding: identity\r\nContent-Length: ", 45)
    else:
        b.add_text(b"Content-Type: application/json\r\nAccept-Encoding: identity\r\nContent-Length: ")
    b.add_int(size)
    b.add_text(b"\r\n\r\n")
    call.state = C_HEAD
    call.sent_ns = call.phase_ns = monotonic_ns()
    if b.size + size <= ONE_WRITE_BYTES_MAX:
        for part in body:
            b.add_bytes(part)
        connection.transport.write(b.take())
    else:
        call.large_request = True
        connection.transport.writelines([b.take(), *body])
    return 0


cdef list call_upstream_body(Call call):
    """The body as it goes on: byte for byte, but for a renamed model and a usage report asked for by us."""
    cdef list edits = []
    cdef RequestScanner scanner = call.scanner
    if call.route.upstream_model_json is not None and not call.endpoint.model_in_path:
        if call.form is not None:
            if scanner.model_start >= 0:
                edits.append((scanner.model_start, scanner.model_end, call.route.upstream_model.encode()))
            else:
                edits.append((0, 0, call.form.opening + call.route.upstream_model.encode() + b"\r\n"))
        elif scanner.model_start >= 0:
            edits.append((scanner.model_start, scanner.model_end, call.route.upstream_model_json))
        else:
            edits.append((scanner.object_start, scanner.object_start, b'"model":' + call.route.upstream_model_json
                          + (b"" if scanner.object_empty else b",")))
    call.strip = False
    if call.route.channel.ask_usage and call.endpoint.format in (F_CHAT, F_COMPLETIONS) and call.stream \
            and scanner.include_usage != 1:
        call.strip = True
        call.body = [b"".join(call.body)]
        edits.append(scanner.usage_request(<bytes>call.body[0]))
    if not edits:
        return call.body
    return splice(call.body, edits)


cdef int call_attempt_failed(Call call, int code, int blame=BLAME_CHANNEL) except -1:
    """This attempt is over and the client has seen nothing: another key or the next channel, or the refusal."""
    cdef Route route = call.route
    cdef Channel channel = route.channel
    cdef UpstreamKey key = None
    cdef int64_t now = monotonic_ns()
    if blame == BLAME_CHANNEL or blame == BLAME_CHANNEL_FOR_ALL:
        call_attempt_bad(call, code)
    call_drop_connection(call)
    channel.failures += 1
    call.last_failure = code
    call.head_bytes = None
    call.error_parts = None
    if blame == BLAME_KEY:
        key = call_other_key(call, now)
    if key is None:
        if call.tried is None:
            call.tried = []
        call.tried.append(channel)
    if blame == BLAME_CHANNEL_FOR_ALL or not call_may_retry(call) or (key is None and not call.engine.another_way(call.routes, call.tried, channel, call.endpoint.format, now)):
        if blame == BLAME_CHANNEL_FOR_ALL or not call_may_fall_back(call) or not call.engine.retry_budget.take() or not call_fall_back(call):
            call_refuse(call, code, None)
    elif not call.engine.retry_budget.take():
        call_refuse(call, code, None)
    elif key is not None:
        call.upstream_key = key      # nothing was processed: the key was refused, not the call
        call_forward_to(call, route, now)
    else:
        call_forward(call)
    return 0


cdef UpstreamKey call_other_key(Call call, int64_t now):
    """Another key of the channel, after the one of this attempt was refused. None: there is none, or none has to rest."""
    cdef Route route = call.route
    cdef int where = call.endpoint.format
    if route.channel.way(route.upstream_model, where, now) != WAY_OPEN or call.upstream_key.wakes_ns(route.upstream_model, where) <= now:
        return None
    return route.channel.awake_key(route.upstream_model, where, call.affinity, now)


cdef bint call_may_retry(Call call) noexcept:
    return call.endpoint.inference and call.attempts < (
        call.engine.attempts_max if call.fallback is None else 2 * call.engine.attempts_max)


cdef bint call_may_fall_back(Call call) except -1:
    """Whether the operator has named another model for one whose channels have failed, which this key may use.

    Once, and not where the caller has chosen the channel, or where something lies at one.
    """
    cdef RequestScanner scanner = call.scanner
    if call.model.fallbacks is None or not call.model.fallbacks[call.endpoint.dialect] or not call.endpoint.inference \
            or call.endpoint.free or call.wanted_channel is not None or scanner.request.files or scanner.stored_context:
        return False
    return call_fallback_model(call) is not None


cdef Model call_fallback_model(Call call):
    cdef Model model
    for model in call.model.fallbacks[call.endpoint.dialect]:
        if model.rate is not None and call.key.check_model(model.key) == E_NONE:
            return model
    return None


cdef bint call_fall_back(Call call) except -1:
    """Admits the call again, as one for the other model, and sends it on. False: the limits or the balance do not allow
    it. What the first admission took has been given back then, and the refusal is that of the failure."""
    cdef Admission first = call.admission
    cdef int64_t now = monotonic_ns()
    cdef int code
    call.fallback = call_fallback_model(call)
    first.release(now)
    call_drop_slot(call)
    call.search_each = False
    call.extras = None
    call.extras_nano = call.affinity = call.wait_ns = 0
    code = call_admit(call)
    if code:
        call.admission = None
        return False
    call.tried = None
    call_forward(call)
    return True


cdef int call_attempt_good(Call call, int64_t now) except -1:
    """The upstream answers calls: for its breakers and its key."""
    cdef Channel channel = call.route.channel
    cdef int closed, probes = call.probes
    if channel.breaker.state == BREAKER_CLOSED and channel.places is None:
        channel.breaker.succeeded(now)
    else:
        call.probes = 0
        closed = channel.attempt_good(call.route.upstream_model, call.endpoint.format, probes, now)
        if closed:
            call.engine.breakers_changed(channel, call.route.upstream_model, call.endpoint.format, closed)
    if call.upstream_key.troubled():
        channel.key_good(call.upstream_key, call.route.upstream_model, call.endpoint.format, call.sent_ns, now)
    return 0


cdef int call_attempt_bad(Call call, int code) except -1:
    """The upstream failed, and not because of its key or of this call."""
    cdef Channel channel = call.route.channel
    cdef int opened, probes = call.probes
    call.probes = 0
    opened = channel.attempt_bad(call.route.upstream_model, call.endpoint.format, probes, monotonic_ns(), code,
                                 call.state == C_CONNECT)
    if opened:
        call.engine.breakers_changed(channel, call.route.upstream_model, call.endpoint.format, opened)
    return 0


cdef int call_leave_channel(Call call) except -1:
    if call.on_channel:
        call.on_channel = False
        call.route.channel.in_flight -= 1
        if call.probes:
            call.route.channel.end_probes(call.route.upstream_model, call.endpoint.format, call.probes)
            call.probes = 0
        if call.trying is not None:
            call.trying.leave(monotonic_ns())
            call.trying = None
    return 0


cdef void call_drop_connection(Call call):
    """The upstream is of no use any more: its connection is closed, whatever it was sending."""
    cdef UpstreamConnection connection = call.connection
    call_leave_channel(call)
    if connection is not None:
        call.connection = None
        connection.call = None
        connection.close()
