# A call from its head to its hold: who calls, what the body asks for, what the key may do, limits and balance.


cdef int call_identify(Call call) except -1:
    """Whose call it is: 0, an error code, or WAIT while the key is loaded."""
    cdef Credential found = None, credential
    cdef bytes secret
    cdef ClientSide client = call.client
    if not call.secrets:
        return E_MISSING_KEY
    for secret in call.secrets:
        if client.last_secret is not None and equal_bytes(client.last_secret, secret) and not client.last_credential.dead:
            credential = client.last_credential
        else:
            credential = call.engine.verify(secret, call)
            if credential is None:
                if call.public_id_wanted is not None:
                    return WAIT
                continue
        if found is not None and found.key is not credential.key:
            return E_AMBIGUOUS_KEY
        found = credential
        client.last_secret = secret
        client.last_credential = credential
    if found is None:
        return E_INVALID_KEY
    if found.expires_ns and call.wall_ns >= found.expires_ns:
        return E_KEY_EXPIRED
    call.key = found.key
    call.credential = found
    found.key.recent = True
    return 0


cdef int call_begin(Call call) except -1:
    """The head is known. 0, or WAIT; a refusal has then ended the call."""
    cdef int code
    if client_address_needed(call):
        call.source_ip, call.source_packed = call.engine.hooks.forwarded_address(call.forwarded_for)
    else:
        call.source_ip = call.client.peer
        call.source_packed = call.client.peer_packed
    if call.bad_key_field:
        call_refuse(call, call.bad_head, call.bad_field)     # nobody's call: a key may have stood there
        return 0
    code = call_identify(call)
    if code == WAIT:
        call.state = C_IDENTIFY
        call.engine.want_key(call.public_id_wanted, call)
        return WAIT
    if code == 0 and call.key is not None:
        call.body_owner = call.key.balance
        if call.body_bytes and call.body_owner is not None:
            call.body_owner.waiting_bytes += call.body_bytes      # what came while the key was being loaded
    if code == 0:
        code = call.bad_head
    if code == 0 and not call.client.request_read:
        code = call_look_ahead(call)
    if code:
        call_refuse(call, code, call.bad_field)
        return 0
    call.state = C_READ
    return 0


cdef int call_look_ahead(Call call) except -1:
    """A body that is still to come is taken only for a call that could be made now. Admission looks again."""
    cdef Scope scope
    cdef int code = call_check_access(call, None)
    if code == 0 and not call.engine.store_writable:
        code = E_STORE_UNAVAILABLE
    if code == 0 and call.engine.memory_short:
        code = E_OVERLOADED
    if code == 0:
        for scope in call.key.scopes:
            if 0 < scope.concurrency_limit <= scope.in_flight:
                call.wait_ns = CONCURRENCY_RETRY_NS
                call.bad_field = scope.kind
                return E_CONCURRENCY_LIMIT
    return code


cdef void call_key_arrived(Call call):
    """The key that was being loaded is known now, or known not to exist."""
    if call.state != C_IDENTIFY:
        return
    call.public_id_wanted = None
    try:
        call.state = C_NEW
        if call_begin(call) == 0 and call.state == C_READ and call.body_complete:
            call_admit_and_forward(call)
    except Exception as error:
        call_broken(call, error)


cdef int call_read(Call call, bytes data) except -1:
    """More of the body. Its scan happens here, piece by piece, so that a large body never holds up other calls."""
    cdef int code
    cdef bint room
    if call.state == C_DONE:
        return 0
    if call.body_bytes == 0 and (call.mark is not None or PyBytes_AS_STRING(data)[0] == <char>0xEF):
        data = call_without_mark(call, data)
        if data is None:
            return 0
    call.body.append(data)
    call.body_bytes += PyBytes_GET_SIZE(data)
    room = call.engine.hold_body(call.body_owner, PyBytes_GET_SIZE(data), call.body_bytes)
    if call.body_bytes > call.engine.body_bytes_max:
        call_refuse(call, E_BODY_TOO_LARGE, None)
        return 0
    if not room:
        call_refuse(call, E_OVERLOADED, None)
        return 0
    if call.form_type is not None:
        return 0
    code = call.scanner.feed(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    if code and call.state == C_READ:
        call_refuse(call, code, call.scanner.error_param)
    return 0


cdef bytes call_without_mark(Call call, bytes data):
    """The beginning of a body without the byte order mark that some editors and clients put in front of JSON. It does not
    go on. None: nothing else has come yet."""
    if call.form_type is not None:
        return data
    if call.mark is not None:
        data = call.mark + data
        call.mark = None
    if b"\xef\xbb\xbf".startswith(data):
        call.mark = data
        return None
    return data[3:] if data.startswith(b"\xef\xbb\xbf") else data


cdef int call_body_end(Call call) except -1:
    call.body_complete = True
    if call.state == C_READ:
        call_admit_and_forward(call)
    return 0


cdef int call_admit_and_forward(Call call) except -1:
    cdef int code = call.scanner.finish() if call.form_type is None else call_read_form(call)
    if code:
        call_refuse(call, code, call.scanner.error_param)
    elif call.idempotency_key is not None and not call.endpoint.free:
        call_claim(call)
    else:
        call_go_on(call)
    return 0


cdef int call_go_on(Call call) except -1:
    cdef int code
    if call.scanner.request.files or (
            (call.scanner.background | call.scanner.stored_context) and call.endpoint.format == F_RESPONSES):
        call.state = C_ASIDE
        call.engine.hooks.aside(call)
        return 0
    code = call_admit(call)
    if code:
        call_refuse(call, code, call_field_at_fault(call, code))
    else:
        call_forward(call)
    return 0


cdef str call_field_at_fault(Call call, int code):
    """Which part of a request `call_admit` has refused it for."""
    return "x-relay-channel" if code == E_INVALID_VALUE else call.bad_field


cdef int call_claim(Call call) except -1:
    """Asks for the caller's Idempotency-Key: `claim_known` is called now or later. Only HMACs of key and body are kept."""
    cdef bytes account = b"idempotency %d " % call.key.account_id
    cdef bytes body = b"".join(call.body)
    cdef bytes tag
    if call.form is not None:
        body = body.replace(call.form.boundary, b"")      # SDKs draw a new one for every attempt
    tag = <bytes>hmac_digest(call.engine.pepper, b"body " + call.endpoint.name.encode() + b" " + body, "sha256")
    call.state = C_CLAIM
    call.claimed = <bytes>hmac_digest(call.engine.pepper, account + call.idempotency_key, "sha256")
    memcpy(&call.claimed_body, PyBytes_AS_STRING(tag), 8)
    call.claimed_body &= 0x7FFFFFFFFFFFFFFF
    call.idempotency_key = None
    call.engine.hooks.claim(call, call.claimed, call.claimed_body)
    return 0


cdef int call_read_form(Call call) except -1:
    """A multipart body is complete: what it says takes the place of what the scanner would have found."""
    cdef RequestScanner scanner = call.scanner
    cdef bytes param
    form = call.form = call.engine.hooks.read_form(call.endpoint.name, call.endpoint.format, call.form_type,
                                                   b"".join(call.body), scanner.table)
    if form.code:
        param = form.param.encode() if form.param is not None else None
        scanner.error_param = param
        return form.code
    scanner.model = form.model
    scanner.model_start = form.model_start
    scanner.model_end = form.model_end
    scanner.stream = form.stream
    scanner.choices = form.choices
    return 0

# What Python sees of a call that is set aside.


cdef int call_admit(Call call) except -1:
    """Model, limits, hold: everything or nothing, and no wait in between."""
    cdef Engine engine = call.engine
    cdef RequestScanner scanner = call.scanner
    cdef Endpoint endpoint = call.endpoint
    cdef bytes name = call.path_model if endpoint.model_in_path else scanner.model
    cdef int64_t now, bound
    cdef bint rolls
    cdef Rate rate
    call.stream = endpoint.stream_by_path or scanner.stream == 1
    if not engine.store_writable:
        return E_STORE_UNAVAILABLE
    if engine.memory_short:
        return E_OVERLOADED
    if scanner.background == 1:
        return E_UNSUPPORTED_FEATURE
    if name is None:
        if endpoint.format != F_MODERATIONS:
            return E_MISSING_MODEL
        name = DEFAULT_MODERATION      # the provider's own default
    if call.fallback is not None:
        name = call.fallback.key
        call.model = call.fallback
    else:
        call.model = <Model>engine.models.get(name)
    code = call_check_access(call, name)
    if code:
        return code
    if call.model is None or not call.model.routes[endpoint.dialect]:
        if call.model is None:
            engine.hooks.model_unknown(name, call.key.account_id, call.key.key_id)
        else:
            call.bad_field = call.model.elsewhere
        return E_MODEL_NOT_FOUND
    call.routes = <list>call.model.routes[endpoint.dialect]
    if call.wanted_channel is not None:
        code = call_narrow(call)
        if code:
            return code
    rate = engine.free_rate if endpoint.free else call.model.rate
    if rate is None:
        return E_MODEL_UNPRICED
    if ((scanner.priority and not rate.prices_priority) or (scanner.geo and not rate.inference_geo)) \
            and rate is not engine.free_rate:
        return E_UNSUPPORTED_FEATURE      # what it would cost the operator has no price here
    if endpoint.format == F_CHAT and (call.model.searches or scanner.request.search_each):
        call.search_each = scanner.web_search = True
    if (scanner.request.specials or (scanner.web_search and not rate.prices_search)) and rate is not engine.free_rate:
        code = call_judge_extras(call, rate)
        if code:
            return code
    call.prompt_counted = scanner.prompt_tokens() if call.form is None else call.form.prompt_tokens
    call.prompt_tokens = (<Route>call.routes[0]).prompts.apply_tokens(call.prompt_counted)
    call.admission = Admission()
    call.admission.extras_hold_nano, call.extras_nano = call.extras_nano, 0
    call.admission.priority = scanner.priority
    if scanner.web_search:
        call.admission.web_searches = engine.policy.hold_web_searches
    bound = call_output_bound(call) if endpoint.format < F_MODERATIONS else call_media_bound(call, rate)
    # The buckets are asked at the time of now: the call may have begun long before, with a slow body or a key that
    # was loaded, and to the clock of its beginning a bucket that others used since, or that is new, is not full.
    now = monotonic_ns()
    # A picture comes whole, in one event: no hold that rolls could be ahead of it.
    rolls = call.stream and endpoint.format < F_MODERATIONS and rate.prices.image_output <= rate.prices.output
    code = call.admission.admit(call.key, rate, call.prompt_tokens, bound, scanner.choices, rolls, call.max_cost_nano, engine.policy, now, now + engine.wall_offset_ns)
    if code == 0 and engine.journal is not None and not call_open_slot(call, rate):
        call.admission.release(now)
        code = E_OVERLOADED
    call.admission.day = call.id // FOLD_IDS_PER_DAY
    return code


cdef int call_judge_extras(Call call, Rate rate) except -1:
    """The request asks for more than tokens of its model, or may: 0, or why it goes no further."""
    cdef bytes body = b"".join(call.body)
    fields = [(name, body[start:end]) for name, start, end in call.scanner.special_fields()]
    code, call.bad_field, call.extras, hold_nano = call.engine.hooks.judge_extras(
        call.endpoint.format, fields, bool(call.scanner.web_search), rate, call.model.name, call.key,
        call.scanner.prompt_tokens())
    call.extras_nano = hold_nano      # until the answer tells
    return code


cdef int call_check_access(Call call, bytes model_name) except -1:
    """What the key may do, before what it may spend: status, address, endpoint, model."""
    cdef ApiKey key = call.key
    cdef bytes address = call.source_packed
    cdef int code = key.check_status(call.wall_ns)
    if code == 0:
        code = key.check_address(<const uint8_t*>PyBytes_AS_STRING(address), <int>PyBytes_GET_SIZE(address)) \
            if address is not None else key.check_address(NULL, 0)
    if code == 0:
        code = key.check_scope(<uint32_t>call.endpoint.scope_bit)
    if code == 0 and call.model is not None:
        code = key.check_model(model_name)
    return code


cdef int64_t call_output_bound(Call call):
    """Output tokens that the answer cannot exceed, -1 where the caller set no limit; 0 where there is no output."""
    if call.endpoint.free or call.endpoint.format in (F_EMBEDDINGS, F_GEMINI_EMBED):
        return 0
    return call.scanner.output_limit


cdef int64_t call_media_bound(Call call, Rate rate) except -2:
    """The same for endpoints whose answer is no text, with what they may use of what is priced by the piece."""
    cdef int format = call.endpoint.format
    if format == F_IMAGES:
        if rate.prices.image:
            call.admission.images = call.scanner.choices
            return 0
        return IMAGE_TOKENS_MAX
    if format == F_TRANSCRIPTION:
        if rate.prices.video_second:
            call.admission.video_seconds = call.seconds_estimate = call.form.seconds
            call.prompt_counted = call.prompt_tokens = 0
            return 0
        call.output_estimate = call.form.output_tokens
        return call.output_estimate
    if format == F_RERANK and rate.prices.web_search:
        call.admission.web_searches = call.engine.policy.hold_web_searches
    elif format == F_SPEECH:
        # Raw sound comes without a report. Without a price of output the text is charged by its characters.
        characters = call.engine.hooks.speech_characters(call.body)
        if not rate.prices.output:
            call.prompt_counted = call.prompt_tokens = characters
        call.output_estimate = characters * SPEECH_TOKENS_PERMILLE // 1000 if rate.prices.output else 0
        return 2 * call.output_estimate
    return 0


cdef int call_narrow(Call call) except -1:
    """x-relay-channel: the caller names a channel, or a tag of several."""
    cdef Route route
    cdef list routes = []
    cdef str wanted
    if call.key.check_scope(call.engine.channel_scope):
        call.bad_field = "x-relay-channel"
        return E_SCOPE_NOT_ALLOWED
    wanted = call.wanted_channel.decode()
    for route in call.routes:
        if route.channel.name == wanted or wanted in route.channel.tags:
            routes.append(route)
    if not routes:
        return E_INVALID_VALUE
    call.routes = routes
    return 0
