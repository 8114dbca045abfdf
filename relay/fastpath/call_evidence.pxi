cdef enum:
    MODELS_NAMED_MAX = 16       # by the answers of one channel to one model: more say nothing new


# What a call is charged of what its upstream reports: the rule of evidence.pxi with this call's own bounds and counts.


cdef void call_bounds(Call call) noexcept:
    """An answer begins: what it can report at most."""
    cdef RequestScanner scanner = call.scanner
    bounds_of_request(&call.most, call.endpoint.format, max(call.body_bytes, scanner.offset), &scanner.request,
                      scanner.choices, call.prompt_tokens, call.admission.rate.output_tokens_max)
    if call.form is not None:
        call.most.video_seconds = max(call.most.video_seconds, 2 * <int64_t>call.form.seconds + 2)
    call.most.video_seconds = max(call.most.video_seconds, call.seconds_estimate)
    call.most.web_searches = max(call.most.web_searches, call.admission.web_searches)
    call.most.priority = call.admission.priority
    call.tap.tap.output_most = call.most.output_tokens


cdef int64_t call_counted_by(Call call, UsageTap tap) noexcept:
    """Output tokens so far: what a cumulative report has said (Gemini), from there on our own count with what was learnt
    about this model, and the bytes that nobody could read."""
    cdef int64_t counted = (tap.tap.output_at_report + call.route.outputs.apply_tokens(tap.unreported_tokens())
                            + call_picture_tokens(call, tap) + call.unread_tokens)
    if call.left_ns and counted - call.left_tokens > call.engine.read_on_tokens_max:
        return max(call.left_tokens + call.engine.read_on_tokens_max, tap.tap.output_at_report)
    return counted


cdef int64_t call_picture_tokens(Call call, UsageTap tap) noexcept:
    """Of them, what pictures have that no report tells, where they are priced by tokens."""
    if call.admission.rate.prices.image or (tap.usage_seen and tap.tap.format != F_GENERATE):
        return 0
    return (tap.tap.image_count - tap.tap.images_at_report) * PICTURE_TOKENS


cdef void call_weigh(Call call, UsageTap tap, bint complete, Verdict* v) noexcept:
    """What the call is charged for what has passed so far. `complete`: the answer has come to its end."""
    cdef Report r
    cdef Usage own
    cdef int format = tap.tap.format
    memset(&r, 0, sizeof(Report))
    memset(&own, 0, sizeof(Usage))
    tap_normalise(&tap.tap, &r.usage)
    if call.search_each and not r.usage.web_searches:
        r.usage.web_searches = 1
    r.sides = tap_sides(&tap.tap)
    r.hidden_tokens = hidden_tokens(&tap.tap)
    r.counted_tokens = tap.counted_tokens() if is_text(format) else 0
    r.delivered = r.counted_tokens > 0 or tap.tap.image_count > 0 or not (is_text(format) or tap.error_seen)
    r.final = tap.terminal_seen or (complete and not tap.error_seen)
    if format == F_GENERATE and tap.unreported_tokens() > 0:
        r.final = False         # text came behind the last report
    r.thoughts_apart = format != F_MESSAGES     # its thoughts are summarised, and not told apart
    own.input_tokens = call.prompt_tokens
    own.output_tokens = call_counted_by(call, tap) if not call.output_estimate else call.output_estimate
    if not call.admission.rate.prices.image:
        own.image_output_tokens = (tap.tap.image_count - tap.tap.images_at_report) * PICTURE_TOKENS
        own.output_tokens += own.image_output_tokens - call_picture_tokens(call, tap)
    r.shown = own.image_output_tokens > 0 or (format == F_SPEECH and not tap.error_seen)
    own.images = call.most.images
    own.video_seconds = call.seconds_estimate
    own.web_searches = 1 if format == F_RERANK else max(searches_seen(&tap.tap), call.admission.web_searches)
    own.service = r.usage.service
    weigh(&r, &call.most, &own, v)
    if by_the_piece(format):
        weigh_one_way(format, &r, &call.admission.rate.prices, &own, v)


cdef int call_compare_model(Call call, UsageTap tap) except -1:
    """The model that an answer names is the one that was asked for, or the operator hears of it: once for each."""
    cdef Route route = call.route
    cdef Py_ssize_t n
    cdef const char* asked = PyUnicode_AsUTF8AndSize(route.upstream_model, &n)
    cdef bytes named
    if tap.tap.model_size == 0 or (n == tap.tap.model_size and memcmp(asked, tap.tap.model, n) == 0):
        return 0
    named = route.named_last
    if named is not None and PyBytes_GET_SIZE(named) == tap.tap.model_size \
            and memcmp(PyBytes_AS_STRING(named), tap.tap.model, tap.tap.model_size) == 0:
        return 0        # most providers name a dated snapshot, always the same
    named = tap.tap.model[:tap.tap.model_size]
    if route.named is None:
        route.named = set()
    route.named_last = named
    if named in route.named or len(route.named) >= MODELS_NAMED_MAX:
        return 0
    route.named.add(named)
    call.engine.hooks.model_named(call.model.name, route.upstream_model, named, route.channel.name)
    return 0


cdef int64_t call_extras_nano(Call call, UsageTap tap) noexcept:
    """What has been used so far beside tokens of the call's own model, in nano-credits. Rare, so Python does it."""
    try:
        call.lines, call.extras_nano = call.engine.hooks.charge_extras(
            call.extras, extras_of(&tap.tap), call.admission.rate, (monotonic_ns() - call.began_ns) // 1_000_000_000)
    except Exception as error:
        call.engine.fault(error)
    return call.extras_nano


cdef int call_learn(Call call, UsageTap tap, const Verdict* v) except -1:
    """What a complete answer teaches about our own counts: only what was believed."""
    cdef int sides = tap_sides(&tap.tap)
    if sides & SIDE_INPUT and not v.doubts[IN_INPUT]:
        call.route.prompts.observe_tokens(call.prompt_counted, whole_prompt(&v.usage))
    if sides & SIDE_OUTPUT and not v.doubts[IN_OUTPUT]:
        call.route.outputs.observe_tokens(tap.counted_tokens(), v.usage.output_tokens)
    return 0
