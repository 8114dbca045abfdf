# The first bytes of an answer, looked at before its head reaches the client: a page, a text, an error that calls itself an
# answer have failed, and another channel may do better. What the body is, its bytes say; its label may be wrong.
#
# As little is held back as decides it: a document up to its first key, a stream up to the first key of its first event.
# Comments and blank lines say nothing. After LOOK_TICKS the head passes with what is there: then what follows can only be
# cut. Where the first read has all, the tap has seen an error in it at any place (call_first_read).

cdef int LOOK_TICKS = 2                     # of the sweep: a quarter to half a second
cdef Py_ssize_t LOOK_BYTES_MAX = 4096       # after as many undecided bytes it passes
cdef int64_t PADDING_BYTES_MAX = 65536      # of a chunk that was announced and will not come

cdef enum:
    SHAPE_UNKNOWN = 0     # not seen, or compressed in a way that cannot be read
    SHAPE_EVENTS          # SSE
    SHAPE_OBJECT          # a JSON document, or several
    SHAPE_ARRAY
    SHAPE_OTHER           # sound, text

cdef enum:
    LOOK_MORE = 0         # not decided yet
    LOOK_GOOD
    LOOK_ERROR            # an error object or event stands where the answer should
    LOOK_BAD              # it is none of its dialect


cdef inline const uint8_t* look_blanks(const uint8_t* p, const uint8_t* end) noexcept nogil:
    while p < end and (p[0] == 32 or p[0] == 10 or p[0] == 13 or p[0] == 9):
        p += 1
    return p


cdef int look_object(const uint8_t* p, const uint8_t* end) noexcept nogil:
    """p stands on what opens an object: whether its first key is `error`, with something in it, or a type that says so."""
    cdef const uint8_t* q
    cdef Py_ssize_t n
    p = look_blanks(p + 1, end)
    if p == end:
        return LOOK_MORE
    if p[0] != c'"':
        return LOOK_GOOD if p[0] == c'}' else LOOK_BAD
    p += 1
    q = <const uint8_t*>memchr(p, c'"', end - p)
    if q == NULL:
        return LOOK_MORE
    n = q - p
    if not ((n == 5 and memcmp(p, b"error", 5) == 0) or (n == 4 and memcmp(p, b"type", 4) == 0)):
        return LOOK_GOOD
    q = look_blanks(q + 1, end)
    if q == end:
        return LOOK_MORE
    if q[0] != c':':
        return LOOK_BAD
    q = look_blanks(q + 1, end)
    if q == end:
        return LOOK_MORE
    if n == 5:
        if q[0] == c'n' or q[0] == c'f' or q[0] == c'0':
            return LOOK_GOOD
        if q[0] != c'"' and q[0] != c'{' and q[0] != c'[':
            return LOOK_ERROR
        if q + 1 == end:
            return LOOK_MORE
        return LOOK_GOOD if q[1] == (c'"' if q[0] == c'"' else q[0] + 2) else LOOK_ERROR      # "", {}, []
    if q[0] != c'"':
        return LOOK_GOOD
    p = q + 1
    q = <const uint8_t*>memchr(p, c'"', end - p)
    if q == NULL:
        return LOOK_MORE if end - p < 16 else LOOK_GOOD
    n = q - p
    if (n == 5 and memcmp(p, b"error", 5) == 0) or (n == 15 and memcmp(p, b"response.failed", 15) == 0):
        return LOOK_ERROR
    return LOOK_GOOD


cdef int look_begins(const uint8_t* p, Py_ssize_t n, const char* word) noexcept nogil:
    """1: these bytes begin with the word, 0: they are all of them its beginning, -1: neither."""
    cdef Py_ssize_t size = strlen(word)
    if memcmp(p, word, min(n, size)) != 0:
        return -1
    return 1 if n >= size else 0


cdef int look_events(const uint8_t* p, const uint8_t* end) noexcept nogil:
    """The lines of an event stream up to its first data. LOOK_BAD: it is no such stream."""
    cdef const uint8_t* q
    cdef int field
    while True:
        p = look_blanks(p, end)
        if p == end:
            return LOOK_MORE
        if p[0] == c'd':
            field = look_begins(p, end - p, b"data:")
            if field <= 0:
                return LOOK_MORE if field == 0 else LOOK_BAD
            p += 5
            while p < end and p[0] == c' ':
                p += 1
            if p == end:
                return LOOK_MORE
            if p[0] == c'{':
                return look_object(p, end)
            if p[0] == c'[':
                return LOOK_GOOD        # [DONE]
            if p[0] != 10 and p[0] != 13:
                return LOOK_BAD
            continue
        if p[0] != c':':
            field = look_begins(p, end - p, b"event:")
            if field < 0:
                field = look_begins(p, end - p, b"id:")
            if field < 0:
                field = look_begins(p, end - p, b"retry:")
            if field <= 0:
                return LOOK_MORE if field == 0 else LOOK_BAD
        q = p
        while q < end and q[0] != 10 and q[0] != 13:
            q += 1
        if q == end:
            return LOOK_MORE
        if p[0] == c'e':
            p += 6
            if p < q and p[0] == c' ':
                p += 1
            if q - p == 5 and memcmp(p, b"error", 5) == 0:
                return LOOK_ERROR
        p = q


cdef int look_at(const uint8_t* p, Py_ssize_t n, int* shape) noexcept nogil:
    """What these first bytes of a body begin, and whether it is an error."""
    cdef const uint8_t* end = p + n
    shape[0] = SHAPE_UNKNOWN
    if n and p[0] == 0xEF:
        if n < 3:
            return LOOK_MORE
        if p[1] == 0xBB and p[2] == 0xBF:
            p += 3
    p = look_blanks(p, end)
    if p == end:
        return LOOK_MORE
    if p[0] == c'{':
        shape[0] = SHAPE_OBJECT
        return look_object(p, end)
    if p[0] == c'[':
        shape[0] = SHAPE_ARRAY
        p = look_blanks(p + 1, end)
        if p == end:
            return LOOK_MORE
        return look_object(p, end) if p[0] == c'{' else LOOK_GOOD if p[0] == c']' else LOOK_BAD
    shape[0] = SHAPE_EVENTS
    return look_events(p, end)


cdef bytes call_label(Call call):
    """The answer's Content-Type, in lower case."""
    cdef bytes line
    for line in PyBytes_FromStringAndSize(call.head.passed.data, call.head.passed.size).lower().split(b"\r\n"):
        if line.startswith(b"content-type:"):
            return line[13:].strip()
    return b""


cdef int look_text_or_sound(Call call, const uint8_t* p, Py_ssize_t n, int* shape) except -1:
    """Where an answer may be something else than JSON: speech, and transcripts as text."""
    cdef bytes label = call_label(call), start = PyBytes_FromStringAndSize(<const char*>p, min(n, 64)).lstrip().lower()
    cdef bint json_label = label.startswith(b"application/") and b"json" in label
    cdef int found
    shape[0] = SHAPE_OTHER
    if not n:
        return LOOK_MORE
    if label.startswith(b"text/html") or start.startswith((b"<!doctype html", b"<html")):
        return LOOK_BAD
    if call.endpoint.answer != ANSWER_SOUND:
        return look_at(p, n, shape) if json_label or start.startswith(b'{"error"') else LOOK_GOOD
    if not json_label and not label.startswith(b"text/") and not start.startswith(b'{"error"'):
        return LOOK_GOOD
    found = look_at(p, n, shape)
    if found == LOOK_GOOD and shape[0] != SHAPE_EVENTS:
        return LOOK_BAD
    return found


cdef int call_look_for(Call call, const uint8_t* p, Py_ssize_t n) except -1:
    """Whether what these bytes begin is what was asked for; the call's `shape` then."""
    cdef int shape, found
    if call.endpoint.answer == ANSWER_SOUND or (
            call.endpoint.answer == ANSWER_TRANSCRIPT and call.form is not None and call.form.plain_text):
        found = look_text_or_sound(call, p, n, &shape)
    else:
        found = look_at(p, n, &shape)
        if found != LOOK_MORE and found != LOOK_BAD and shape != SHAPE_OBJECT and not (
                call.stream and (shape == SHAPE_EVENTS or call.endpoint.stream_by_path)):
            found = LOOK_BAD
        if found == LOOK_BAD and call.endpoint.format == F_IMAGES and call_label(call).startswith(b"image/"):
            shape = SHAPE_OTHER      # the picture itself
            found = LOOK_GOOD
    call.shape = shape if found != LOOK_MORE else SHAPE_UNKNOWN
    return found


cdef bytes call_first_bytes(Call call, const uint8_t* p, Py_ssize_t n, bint* whole, bint* readable):
    """What `n` raw bytes hold of the body, readable, up to LOOK_BYTES_MAX of it and a piece of decoded data."""
    cdef Chunked chunked
    cdef Py_ssize_t i = 0, start, size
    cdef bytes found = b"", piece
    readable[0] = True
    whole[0] = False
    if call.head.framing == B_CHUNKED:
        chunked_init(&chunked)
        while i < n and chunked.state < K_END and PyBytes_GET_SIZE(found) < LOOK_BYTES_MAX:
            i += chunked_next(&chunked, p + i, n - i, &start, &size)
            if size:
                found += PyBytes_FromStringAndSize(<const char*>p + i - size, size)
        whole[0] = chunked.state >= K_TRAILER
    else:
        if call.head.framing == B_LENGTH:
            whole[0] = n >= call.head.length
            n = min(n, <Py_ssize_t>call.head.length)
        found = PyBytes_FromStringAndSize(<const char*>p, n)
    if call.head.compressed and found:
        decoder = call.engine.hooks.decoder(call.head.encoding)
        readable[0] = decoder is not None
        data, found = found, b""
        if decoder is not None:
            try:
                for piece in decoder(data):
                    found += piece
                    if PyBytes_GET_SIZE(found) > LOOK_BYTES_MAX:
                        break
            except Exception:
                readable[0] = False
    return found


cdef bytes call_plain_bytes(Call call, bytes data):
    """What raw bytes hold of the body, whatever its coding is said to be."""
    return decode_chunked([data])[0] if call.head.framing == B_CHUNKED else data


cdef int call_look(Call call, bytes data, Py_ssize_t offset) except -1:
    """The head of an answer is good. Its body, as far as it is there, stands at `offset`."""
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data) + offset
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data) - offset, start, size
    cdef Chunked chunked
    cdef bint whole = False, readable = True
    cdef int found = LOOK_MORE
    cdef bytes first
    if call.head.framing == B_NONE or (call.head.framing == B_LENGTH and call.head.length == 0):
        return call_attempt_failed(call, E_UPSTREAM_GARBAGE)      # nothing, where a body is due
    if n and not call.head.compressed:      # mostly the first piece is enough
        if call.head.framing != B_CHUNKED:
            found = call_look_for(call, p, n)
        else:
            chunked_init(&chunked)
            chunked_next(&chunked, p, n, &start, &size)
            if size:
                found = call_look_for(call, p + start, size)
    if found == LOOK_MORE and n:
        first = call_first_bytes(call, p, n, &whole, &readable)
        if not readable:      # it passes, and is counted by its bytes, unless it is a plain error under a wrong label
            first = call_plain_bytes(call, PyBytes_FromStringAndSize(<const char*>p, n))
            found = call_look_for(call, <const uint8_t*>PyBytes_AS_STRING(first), PyBytes_GET_SIZE(first))
            if found != LOOK_ERROR:
                call.shape = SHAPE_UNKNOWN
                found = LOOK_GOOD
        else:
            found = call_look_for(call, <const uint8_t*>PyBytes_AS_STRING(first), PyBytes_GET_SIZE(first))
            if found == LOOK_MORE and whole:      # nothing; or a compression that gives nothing, which passes as above
                found = LOOK_GOOD if call.head.compressed else LOOK_BAD
            elif found == LOOK_MORE and n > LOOK_BYTES_MAX:
                return call_pass_undecided(call, data if offset == 0 else data[offset:])
    if found == LOOK_GOOD:
        call.error_parts = None
        call_attempt_good(call, call.first_byte_ns)
        return call_begin_answer(call, data, offset)
    if found == LOOK_MORE:
        if call.state != C_LOOK:
            call.state = C_LOOK
            call.look_tick = call.engine.tick
        call.error_parts = [data[offset:]]
        return 0
    return call_take_back(call, E_UPSTREAM_ERROR if found == LOOK_ERROR else E_UPSTREAM_GARBAGE, data, offset)


cdef int call_look_on(Call call, bytes data) except -1:
    """More of an answer of which too little was there."""
    return call_look(call, <bytes>call.error_parts[0] + data, 0)


cdef int call_look_ended(Call call) except -1:
    """The upstream closed, and what it has sent decides nothing."""
    cdef bytes data = <bytes>call.error_parts[0]
    cdef bint whole, readable
    cdef bytes first = call_first_bytes(call, <const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &whole, &readable)
    return call_attempt_failed(call, E_UPSTREAM_FAILED if call.head.framing != B_CLOSE else
                               E_UPSTREAM_GARBAGE if not first.strip() else E_UPSTREAM_TRUNCATED)


cdef int call_pass_undecided(Call call, bytes data) except -1:
    """The client has waited long enough for a head: it passes with comments, blanks, a beginning."""
    call.error_parts = None
    call.shape = SHAPE_UNKNOWN
    call.looking = not call.head.compressed
    call_attempt_good(call, call.first_byte_ns)
    return call_begin_answer(call, data, 0)


cdef int call_sweep_look(Call call) except -1:
    """Called by the sweep for an answer that is still looked at."""
    cdef int64_t ticks = call.engine.tick - call.look_tick
    if ticks >= LOOK_TICKS and (call.stream or not call.annotate):      # what is collected waits anyway
        return call_pass_undecided(call, <bytes>call.error_parts[0])
    if ticks * (1_000_000_000 // 4) > call.route.channel.stream_idle_timeout_ns:
        return call_attempt_failed(call, E_UPSTREAM_TIMEOUT)
    return 0


cdef bint call_look_again(Call call, const uint8_t* p, Py_ssize_t n) except -1:
    """The head has passed before it was known what the answer is; p are the next bytes of the body. False: cut here."""
    cdef bytes before = call.look_bytes or b"", all_ = before + PyBytes_FromStringAndSize(<const char*>p, n)
    cdef int found = call_look_for(call, <const uint8_t*>PyBytes_AS_STRING(all_), PyBytes_GET_SIZE(all_)), code = 0, kind
    if found == LOOK_MORE and PyBytes_GET_SIZE(all_) <= LOOK_BYTES_MAX:
        call.look_bytes = all_
        return True
    call.looking = False
    call.look_bytes = None
    if found == LOOK_BAD:
        code = E_UPSTREAM_GARBAGE
    elif found == LOOK_ERROR and call.shape != SHAPE_EVENTS:
        code = call_says_instead(call, all_)
    elif call.shape == SHAPE_OBJECT:
        code = call_hold_document(call)
    if code:
        call.cut = True
        call.cut_code = code
        return False
    kind = call_body_kind(call)
    if kind != call.tap.tap.kind:
        call.tap = UsageTap(call.endpoint.format, kind, call.route.table)
        call_bounds(call)
        call.tap.feed(<const uint8_t*>PyBytes_AS_STRING(before), PyBytes_GET_SIZE(before))
        call_meter(call, kind)
    return True


cdef int call_body_kind(Call call) noexcept:
    """How the tap reads the body."""
    if call.shape == SHAPE_EVENTS:
        return K_SSE
    if call.shape == SHAPE_ARRAY:
        return K_JSON_ARRAY
    if call.shape == SHAPE_OBJECT:
        return K_JSON_LINES if call.stream else K_JSON
    if call.shape == SHAPE_UNKNOWN and call.stream:
        return K_JSON_ARRAY if call.endpoint.stream_by_path and not call.head.event_stream else K_SSE
    return K_JSON


cdef void call_meter(Call call, int kind) noexcept:
    call.metered = call.stream and not call.endpoint.free and kind != K_JSON and call.endpoint.format < F_MODERATIONS


cdef int call_hold_document(Call call) except -1:
    """A stream was asked for, and a document comes: as for any call that is no stream, its bound is held first."""
    cdef Admission admission = call.admission
    cdef int64_t bound = admission.output_bound
    if not admission.stream or admission.state != A_OPEN:
        return 0
    if bound < 0:
        bound = call.engine.policy.hold_output_tokens
        if 0 < admission.rate.output_tokens_max < bound:
            bound = admission.rate.output_tokens_max
        bound *= max(call.scanner.choices, <int64_t>1)
    if 0 <= admission.output_limit < bound:
        bound = admission.output_limit
    return admission.grow(bound, call.engine.wall_ns())


cdef int call_first_read(Call call, bytes data, Py_ssize_t offset, bint ended) except -1:
    """What is wrong with an answer whose first bytes the tap has read and the client has not got: 0 or an error code."""
    cdef UsageTap tap = call.tap
    if call.status >= 300 or call.shape == SHAPE_UNKNOWN or call.shape == SHAPE_OTHER:
        return 0
    if tap.error_seen and call_gave_nothing(call):
        return E_UPSTREAM_ERROR
    if ended and tap.tap.kind != K_SSE and call_ended_early(call):
        return E_UPSTREAM_TRUNCATED
    if ended and call_means_nothing(call):
        if tap.tap.kind == K_SSE:
            return E_UPSTREAM_GARBAGE
        body = call_plain_bytes(call, data[offset:])
        if call.head.compressed:
            body = call.engine.hooks.read_coded(call.head.encoding, body) or b""
        if call.engine.hooks.error_in_answer(call.endpoint.dialect, body, True) is not None:
            return E_UPSTREAM_ERROR
    return 0


cdef bint call_gave_nothing(Call call) noexcept:
    """No text, picture or search of the model has passed; a finish with a report is an answer, be it empty."""
    cdef UsageTap tap = call.tap
    return (tap.tap.json.counter.acc == 0 and tap.tap.image_count == 0 and call.unread_tokens == 0
            and tap.tap.searches_done == 0 and tap.tap.items_done == 0 and not (tap.finish_seen and tap.usage_seen))


cdef bint call_means_nothing(Call call) noexcept:
    """A whole answer in which nothing stands that its dialect knows: gateways send their errors so."""
    cdef UsageTap tap = call.tap
    if call.endpoint.free or tap.usage_seen or tap.finish_seen or tap.error_seen or not call_gave_nothing(call):
        return False
    if not (call.endpoint.format <= F_RESPONSES or call.endpoint.format == F_MESSAGES or call.endpoint.format == F_GENERATE):
        return tap.tap.kind != K_SSE and tap.tap.json.state != J_ERROR      # what answers is not told apart here
    if tap.tap.kind == K_SSE:      # [DONE] alone
        return tap.events <= 1 and (call.endpoint.format == F_CHAT or call.endpoint.format == F_COMPLETIONS)
    return not (tap.tap.has_choices or tap.tap.has_list or tap.tap.in_event or tap.tap.json.state == J_ERROR)


cdef int call_verdict(Call call) noexcept:
    """What the record says of an answer that has come to its end."""
    cdef UsageTap tap = call.tap
    if call.status >= 400:
        return E_UPSTREAM_ERROR
    if tap is None or call.shape == SHAPE_UNKNOWN or call.shape == SHAPE_OTHER:
        return E_NONE
    if tap.error_seen and not (tap.finish_seen and tap.usage_seen and tap.tap.json.counter.acc):
        return E_UPSTREAM_ERROR
    return E_UPSTREAM_GARBAGE if tap.tap.kind == K_SSE and call_means_nothing(call) else E_NONE


cdef int call_take_back(Call call, int code, bytes data, Py_ssize_t offset) except -1:
    """The client has seen nothing of this answer, and will not: an error in it is judged like any other."""
    call_forget_answer(call)
    if code != E_UPSTREAM_ERROR:
        return call_attempt_failed(call, code)
    call.state = C_ERROR_BODY
    call.error_parts = []
    call.error_bytes = 0
    return call_read_error(call, data, offset)


cdef int call_forget_answer(Call call) except -1:
    call.tap = None
    call.decoder = None
    call.held = None
    call.error_parts = None
    call.look_bytes = None
    call.shape = SHAPE_UNKNOWN
    call.looking = call.metered = call.reframe = call.plain = call.event_passes = call.cut = False
    call.head_sent = call.body_sent = False
    call.annotate = call.annotate_asked
    call.unread_tokens = call.compressed_bytes = call.cut_bytes = 0
    call.remaining = call.head.length
    chunked_init(&call.chunked)
    if call.slot != NULL:
        call.slot.status = 0
        call.slot.first_byte_us = 0
    return 0


cdef bint call_error_known(Call call, bint whole) except -1:
    """Of an answer that calls itself good and is an error: its status and body become those of the error, once they are
    known. `whole`: no more will come."""
    cdef bytes data = b"".join(call.error_parts), body
    cdef bint all_there, readable
    cdef ResponseHead head = call.head
    body = call_plain_bytes(call, data)
    if head.compressed:
        body = call_first_bytes(call, <const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &all_there,
                                &readable) or body
    found = call.engine.hooks.error_in_answer(call.endpoint.dialect, body, whole)
    if found is None:
        return False
    call.status = head.status = found[0]
    head.reason = <bytes>call.engine.reasons.get(found[0], b"Error")
    call.error_parts = [<bytes>found[1]]
    head.framing = B_LENGTH
    head.length = call.remaining = PyBytes_GET_SIZE(<bytes>found[1])
    head.close = True
    head.compressed = False
    head.encoding = None
    lines = [line for line in head.passed.take().split(b"\r\n")
             if line and not line.lower().startswith((b"content-type:", b"content-encoding:"))]
    for line in [b"Content-Type: application/json", *lines]:
        head.passed.add_bytes(<bytes>line + b"\r\n")
    return True


cdef int call_says_instead(Call call, bytes event) except -1:
    """What is said in place of an error inside an answer, where it is about the operator's own account; 0: it may pass."""
    cdef int verdict, scope, instead
    cdef int64_t wait_ns
    found = call.engine.hooks.error_in_answer(call.endpoint.dialect, event, True)
    if found is None:
        return 0
    call.error_status = found[0]
    verdict = call_judge(call, <int>found[0], <bytes>found[1], None, b"", &scope, &instead, &wait_ns)
    return E_UPSTREAM_ACCOUNT if verdict == V_ACCOUNT else instead


cdef int call_says_of_part(Call call, bytes part) except -1:
    """The same of an error of which the beginning has passed already, by what is left of it."""
    cdef int verdict, scope, instead
    cdef int64_t wait_ns
    call.error_status = 502
    verdict = call_judge(call, 200, b"{" + part, None, b"", &scope, &instead, &wait_ns)
    return E_UPSTREAM_ACCOUNT if verdict == V_ACCOUNT else instead
