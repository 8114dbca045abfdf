# The rule of evidence: how far a report of usage is believed. The one place for every dimension of every dialect, for
# calls, realtime sessions and jobs.
#
# A report counts as far as its request can have had it: the prompt (read from caches, written to them and plain, in the
# sum) as far as the bytes that were sent, output as far as the limit that was asked for, pictures, seconds and searches as
# far as they were asked for or seen. A side of it that says more, is negative or no number, is left out beside what was
# delivered, or is zero beside what was delivered, is missing: then our own count is charged, and the operator is told.
# The two sides and each kind of piece are judged by themselves, so one bad number does not throw away the others.
#
# A report below or above what was sent, and within the bounds, is charged as it is. Where it is far from what was sent
# the operator is told.

cdef enum:
    # Added by providers to what was sent: explanations of tools, system prompts, wrappers of each message.
    PROMPT_TOKENS_ADDED = 16384
    # Of one picture: no provider's table has more (gpt-4o-mini, in the largest size: 48,169).
    PROMPT_TOKENS_PICTURE = 65536
    # Of a prompt whose size its bytes do not tell: stored, fetched or searched by the provider, in each turn of its own
    # tools anew; documents and films. The largest contexts have 1 to 2 million tokens.
    PROMPT_TOKENS_OPEN = 1 << 23
    # Output beside the caller's limit: thoughts are not below it at every provider (the longest: 64 Ki), nor is what a
    # compaction writes.
    OUTPUT_TOKENS_BESIDE = 65536
    # ... where nothing limits it: four times what the longest answers have.
    OUTPUT_TOKENS_OPEN = 1 << 19
    PICTURES_MAX = 32            # in one choice of an answer that is text beside them
    SEARCHES_MAX = 128           # by one call: deep research reports some dozens
    RANKED_BYTES = 300           # a unit of ranking has a hundred documents, which have three bytes each at least
    SOUND_BYTES_PER_SECOND = 500 # below what any codec of speech has (AMR: 594)

# The dimensions in which a report is judged, and what there was to be said.
cdef enum:
    IN_INPUT = 0
    IN_OUTPUT
    IN_IMAGES
    IN_SECONDS
    IN_SEARCHES
    IN_SERVICE
    DIMENSIONS

cdef enum:
    DOUBT_NONE = 0
    DOUBT_ABOVE           # more than the request can have had
    DOUBT_INVALID         # no number of tokens
    DOUBT_MISSING         # a report that leaves it out
    DOUBT_ZERO            # nothing, beside what was delivered
    DOUBT_LESS            # believed: far less than was sent
    DOUBT_MORE            # believed: far more than was sent
    DOUBT_UNASKED         # a dearer service than was asked for

REPORT_DIMENSIONS = ("input_tokens", "output_tokens", "images", "video_seconds", "web_searches", "service_tier")
REPORT_DOUBTS = ("", "above_bound", "invalid", "missing", "zero", "less_than_sent", "more_than_sent", "not_asked_for")

ctypedef struct Bounds:
    int64_t prompt_tokens
    int64_t output_tokens
    int64_t images
    int64_t video_seconds
    int64_t web_searches
    bint priority            # the dearer service was asked for

# What there is to be judged.
ctypedef struct Report:
    Usage usage
    int sides                # SIDE_*
    int64_t hidden_tokens    # output that need not be seen as text
    int64_t counted_tokens   # text that was delivered, by our count; 0 where the answer is none
    bint delivered           # something of the answer was
    bint shown               # ... that is no text and has tokens of output: pictures, sound
    bint final               # the report is the last word: the answer has ended as it should
    bint thoughts_apart      # thoughts that are not seen are told apart in it

ctypedef struct Verdict:
    Usage usage              # to be charged
    bint estimated
    bint doubted
    uint8_t[DIMENSIONS] doubts
    int64_t[DIMENSIONS] reported
    int64_t[DIMENSIONS] expected     # the bound, or our count


cdef inline int64_t whole_prompt(const Usage* u) noexcept nogil:
    return u.input_tokens + u.cache_read_tokens + u.cache_write_tokens + u.cache_write_1h_tokens


cdef void doubt(Verdict* v, int dimension, int why, int64_t reported, int64_t expected) noexcept nogil:
    v.doubted = True
    v.doubts[dimension] = <uint8_t>why
    v.reported[dimension] = reported
    v.expected[dimension] = expected


cdef void weigh_prompt(const Report* r, const Bounds* most, const Usage* own, Verdict* v) noexcept nogil:
    cdef int64_t prompt = whole_prompt(&v.usage)
    cdef int why = DOUBT_NONE
    if prompt > most.prompt_tokens and r.sides:      # also what is left of a sum, or stands beside the number that is none
        why = DOUBT_ABOVE
    elif not r.sides & SIDE_INPUT:
        if r.sides & (SIDE_OUTPUT | SIDE_INPUT_BAD):
            why = DOUBT_INVALID if r.sides & SIDE_INPUT_BAD else DOUBT_MISSING
    elif prompt == 0 and own.input_tokens > 0 and r.delivered:
        why = DOUBT_ZERO
    elif r.sides & SIDE_INPUT_BAD:
        why = DOUBT_INVALID
    if why:
        doubt(v, IN_INPUT, why, prompt, most.prompt_tokens if why == DOUBT_ABOVE else own.input_tokens)
        if why == DOUBT_INVALID and prompt >= own.input_tokens:
            return
    elif r.sides & SIDE_INPUT:
        return
    v.estimated = True
    v.usage.input_tokens = own.input_tokens
    v.usage.cache_read_tokens = v.usage.cache_write_tokens = v.usage.cache_write_1h_tokens = 0
    v.usage.audio_cache_read_tokens = v.usage.image_cache_read_tokens = 0
    v.usage.audio_input_tokens = own.audio_input_tokens
    v.usage.image_input_tokens = own.image_input_tokens


cdef void weigh_output(const Report* r, const Bounds* most, const Usage* own, Verdict* v) noexcept nogil:
    cdef int64_t output = v.usage.output_tokens
    cdef int why = DOUBT_NONE
    cdef bint ours = False
    if output > max(most.output_tokens, 2 * own.output_tokens):
        why = DOUBT_ABOVE
        ours = True
    elif not r.sides & SIDE_OUTPUT:
        ours = own.output_tokens > output
        if r.sides & SIDE_OUTPUT_BAD:
            why = DOUBT_INVALID
        elif ours and r.final and r.sides & SIDE_INPUT:
            why = DOUBT_MISSING
    elif output == 0 and (r.counted_tokens or r.shown or (r.delivered and whole_prompt(&r.usage) == 0)) and own.output_tokens:
        why = DOUBT_ZERO
        ours = True
    elif r.sides & SIDE_OUTPUT_BAD:
        why = DOUBT_INVALID
        ours = own.output_tokens > output
    elif not r.final:
        ours = own.output_tokens > output
    elif 4 * output + 64 < r.counted_tokens:
        why = DOUBT_LESS
    elif r.thoughts_apart and r.counted_tokens and output - r.hidden_tokens > 8 * r.counted_tokens + 2048:
        why = DOUBT_MORE
    if why:
        doubt(v, IN_OUTPUT, why, output, most.output_tokens if why == DOUBT_ABOVE
              else r.counted_tokens if why >= DOUBT_LESS else own.output_tokens)
    if ours:
        v.estimated = True
        v.usage.output_tokens = own.output_tokens
        v.usage.audio_output_tokens = min(own.output_tokens, own.audio_output_tokens)
        v.usage.image_output_tokens = min(own.output_tokens - v.usage.audio_output_tokens, own.image_output_tokens)


cdef inline void weigh_pieces(Verdict* v, int dimension, int64_t* reported, int64_t most, int64_t own) noexcept nogil:
    if reported[0] > most:
        doubt(v, dimension, DOUBT_ABOVE, reported[0], most)
        v.estimated = True
        reported[0] = min(own, most)


cdef inline int believed_service(int service, bint priority) noexcept nogil:
    """The dearer service is charged where it was asked for: else its provider, or the operator's account there, chose it."""
    return SERVICE_STANDARD if service == SERVICE_PRIORITY and not priority else service


cdef void weigh(const Report* r, const Bounds* most, const Usage* own, Verdict* v) noexcept nogil:
    """What is charged of a report, and what the operator hears of it. `own`: what is charged where it says nothing."""
    memset(v, 0, sizeof(Verdict))
    v.usage = r.usage
    weigh_prompt(r, most, own, v)
    weigh_output(r, most, own, v)
    weigh_pieces(v, IN_IMAGES, &v.usage.images, most.images, own.images)
    weigh_pieces(v, IN_SECONDS, &v.usage.video_seconds, most.video_seconds, own.video_seconds)
    weigh_pieces(v, IN_SEARCHES, &v.usage.web_searches, most.web_searches, own.web_searches)
    if v.usage.service != SERVICE_STANDARD:
        v.usage.service = believed_service(<int>v.usage.service, most.priority)
        if v.usage.service != r.usage.service:
            doubt(v, IN_SERVICE, DOUBT_UNASKED, r.usage.service, v.usage.service)
    if not r.sides:
        v.estimated = True


cdef void only_pieces(Verdict* v, int dimension) noexcept nogil:
    """The pieces alone are charged: what was said of tokens does not matter."""
    cdef int i
    cdef Usage* u = &v.usage
    u.input_tokens = u.output_tokens = u.cache_read_tokens = u.cache_write_tokens = u.cache_write_1h_tokens = 0
    u.audio_input_tokens = u.audio_output_tokens = u.image_input_tokens = u.image_output_tokens = 0
    u.audio_cache_read_tokens = u.image_cache_read_tokens = 0
    for i in range(DIMENSIONS):
        if i != dimension and i != IN_SERVICE:
            v.doubts[i] = DOUBT_NONE
    v.estimated = v.doubts[dimension] != DOUBT_NONE
    v.doubted = v.estimated or v.doubts[IN_SERVICE] != DOUBT_NONE


cdef void weigh_one_way(int format, const Report* r, const Prices* p, const Usage* own, Verdict* v) noexcept nogil:
    """Where a model is priced by the piece, a report in other units says nothing: what was held is charged."""
    cdef bint tokens = (p.input > 0 or p.output > 0) and r.sides != 0
    if format == F_IMAGES:
        if p.image > 0 and r.usage.images > 0:
            only_pieces(v, IN_IMAGES)
    elif format == F_TRANSCRIPTION and p.video_second > 0:
        if r.usage.video_seconds > 0:
            only_pieces(v, IN_SECONDS)
        elif not tokens:
            v.usage.video_seconds = own.video_seconds
            only_pieces(v, IN_SECONDS)
            v.estimated = True
            if r.sides:
                doubt(v, IN_SECONDS, DOUBT_MISSING, 0, own.video_seconds)
    elif format == F_RERANK and p.web_search > 0:
        if r.usage.web_searches > 0:
            only_pieces(v, IN_SEARCHES)
        elif not tokens:
            v.usage.web_searches = own.web_searches
            only_pieces(v, IN_SEARCHES)
            v.estimated = True
            if r.sides:
                doubt(v, IN_SEARCHES, DOUBT_MISSING, 0, own.web_searches)


cdef void bounds_of_request(Bounds* most, int format, int64_t body_bytes, const Request* request, int64_t choices,
                            int64_t prompt_tokens, int64_t output_most) noexcept nogil:
    """What an answer to this request can report at most. `output_most`: the model's own limit, 0 unknown.

    Never below what the call holds for its prompt: `prompt_tokens` is the estimate.
    """
    cdef int64_t limit = request.output_limit
    cdef bint provider_works = request.search or request.hosted
    most.prompt_tokens = body_bytes * choices + PROMPT_TOKENS_ADDED + request.sums.images * PROMPT_TOKENS_PICTURE
    if format == F_IMAGES:
        most.prompt_tokens += PICTURES_MAX * PROMPT_TOKENS_PICTURE
    elif format == F_RERANK:        # a question is read anew with each of its documents
        most.prompt_tokens += min(body_bytes * body_bytes // 12, <int64_t>PROMPT_TOKENS_OPEN)
    if provider_works or request.stored or request.files or request.sums.flat or (format == F_GENERATE and request.tools):
        most.prompt_tokens = max(most.prompt_tokens, <int64_t>PROMPT_TOKENS_OPEN)
    most.prompt_tokens = clamp_usage(max(most.prompt_tokens, 2 * prompt_tokens))
    if is_text(format):
        if output_most <= 0:
            output_most = OUTPUT_TOKENS_OPEN
        if limit < 0 or limit > output_most:
            limit = output_most
        if provider_works:
            limit = max(limit, <int64_t>OUTPUT_TOKENS_OPEN)
        most.output_tokens = clamp_usage((limit + OUTPUT_TOKENS_BESIDE) * choices)
    elif format == F_IMAGES:
        most.output_tokens = 2 * IMAGE_TOKENS_MAX * choices
    elif format == F_SPEECH:        # a text of one byte a token, spoken very slowly
        most.output_tokens = 4 * body_bytes + 1000
    elif format == F_TRANSCRIPTION:
        most.output_tokens = 8 * (body_bytes // SOUND_BYTES_PER_SECOND) + 1000
    else:
        most.output_tokens = 0 if format == F_EMBEDDINGS or format == F_GEMINI_EMBED else PROMPT_TOKENS_ADDED
    most.images = choices if format == F_IMAGES else PICTURES_MAX * choices
    most.video_seconds = body_bytes // SOUND_BYTES_PER_SECOND + 2
    most.web_searches = SEARCHES_MAX if format != F_RERANK else 1 + body_bytes // RANKED_BYTES


cdef dict verdict_document(const Verdict* v):
    cdef int i
    return {
        "usage": usage_document(&v.usage),
        "estimated": bool(v.estimated),
        "doubts": [(REPORT_DIMENSIONS[i], REPORT_DOUBTS[v.doubts[i]], v.reported[i], v.expected[i])
                   for i in range(DIMENSIONS) if v.doubts[i]],
    }


cdef dict usage_document(const Usage* u):
    return {
        "input_tokens": u.input_tokens,
        "output_tokens": u.output_tokens,
        "cache_read_tokens": u.cache_read_tokens,
        "cache_write_tokens": u.cache_write_tokens,
        "cache_write_1h_tokens": u.cache_write_1h_tokens,
        "images": u.images,
        "video_seconds": u.video_seconds,
        "web_searches": u.web_searches,
        "audio_input_tokens": u.audio_input_tokens,
        "audio_output_tokens": u.audio_output_tokens,
        "image_input_tokens": u.image_input_tokens,
        "image_output_tokens": u.image_output_tokens,
        "audio_cache_read_tokens": u.audio_cache_read_tokens,
        "image_cache_read_tokens": u.image_cache_read_tokens,
        "service": u.service,
    }


cdef Usage usage_of_document(dict found) except *:
    cdef Usage u
    get = found.get
    memset(&u, 0, sizeof(Usage))
    u.input_tokens = _clamped(get("input_tokens", 0))
    u.output_tokens = _clamped(get("output_tokens", 0))
    u.cache_read_tokens = _clamped(get("cache_read_tokens", 0))
    u.cache_write_tokens = _clamped(get("cache_write_tokens", 0))
    u.cache_write_1h_tokens = _clamped(get("cache_write_1h_tokens", 0))
    u.images = _clamped(get("images", 0))
    u.video_seconds = _clamped(get("video_seconds", 0))
    u.web_searches = _clamped(get("web_searches", 0))
    u.audio_input_tokens = _clamped(get("audio_input_tokens", 0))
    u.audio_output_tokens = _clamped(get("audio_output_tokens", 0))
    u.image_input_tokens = _clamped(get("image_input_tokens", 0))
    u.image_output_tokens = _clamped(get("image_output_tokens", 0))
    u.audio_cache_read_tokens = _clamped(get("audio_cache_read_tokens", 0))
    u.image_cache_read_tokens = _clamped(get("image_cache_read_tokens", 0))
    u.service = _clamped(get("service", 0))
    return u


def weigh_report(dict found not None, dict own not None, *, int format, int64_t prompt_tokens=PROMPT_TOKENS_OPEN,
                 int64_t output_tokens=OUTPUT_TOKENS_OPEN, int64_t images=0, int64_t video_seconds=0,
                 int64_t web_searches=SEARCHES_MAX, bint priority=False, bint delivered=True, bint shown=False,
                 bint final=True, Rate rate=None):
    """What is believed of a report, as `tap` finds it: {"usage", "estimated", "doubts"}.

    `own`: usage by our own count. The numbers by name are the most that the request can have had. A doubt is (dimension,
    why, reported, the bound or our count). With a rate: where that is priced by the piece, only the pieces.
    """
    cdef Report r
    cdef Bounds most
    cdef Verdict v
    cdef Usage ours = usage_of_document(own)
    memset(&r, 0, sizeof(Report))
    r.usage = usage_of_document(found)
    r.sides = found["sides"]
    r.hidden_tokens = found.get("hidden_tokens", 0)
    r.counted_tokens = found.get("counted_tokens", 0) if is_text(format) else 0
    r.delivered = delivered
    r.shown = shown
    r.final = final
    r.thoughts_apart = format != F_MESSAGES
    most.prompt_tokens = prompt_tokens
    most.output_tokens = output_tokens
    most.images = images
    most.video_seconds = video_seconds
    most.web_searches = web_searches
    most.priority = priority
    weigh(&r, &most, &ours, &v)
    if rate is not None:
        weigh_one_way(format, &r, &rate.prices, &ours, &v)
    return verdict_document(&v)


def request_bounds(int format, bytes body not None, TokenTable table not None, int64_t output_tokens_max=0):
    """The most that an answer to this request can report."""
    cdef RequestScanner scanner = RequestScanner(format, table)
    cdef Bounds most
    scanner.feed(<const uint8_t*>body, len(body))
    scanner.finish()
    bounds_of_request(&most, format, len(body), &scanner.request, scanner.choices, scanner.prompt_tokens(),
                      output_tokens_max)
    return {"prompt_tokens": most.prompt_tokens, "output_tokens": most.output_tokens, "images": most.images,
            "video_seconds": most.video_seconds, "web_searches": most.web_searches}
