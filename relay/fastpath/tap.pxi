# Reading an answer on its way to the client, from a copy: usage, text delivered, how it ended.
#
# The line splitter of SSE stands before the JSON machine and keeps nothing of a line either: the bytes behind `data:` go
# straight into the machine, which stops at line ends by itself, so each byte is looked at once and an event may be of
# any size. What an upstream reports is overlaid field by field as it is read (counts are cumulative: the larger value
# stays, nothing is summed) and put into the priced dimensions by `finish`. How far it is believed: evidence.pxi.

cdef enum:
    K_JSON = 0            # one JSON document, blank lines before it allowed
    K_SSE = 1
    K_JSON_ARRAY = 2      # Gemini streams without alt=sse
    K_JSON_LINES = 3      # documents one after the other; one alone, where a stream was asked for

cdef enum:
    TAP_FRAMES = 24       # no place that is read lies deeper
    TAP_TEXT_MAX = 128
    TAP_CHOICES = 8       # choices whose text is followed on its own
    TAP_CONTAINERS = 8    # sandboxes told apart in one answer
    TAP_MODEL_MAX = 64
    TAP_QUERIES_MAX = 32  # different search queries told apart in one answer

# Of which sides a report tells, and where it says what is no number of tokens.
cdef enum:
    SIDE_INPUT = 1
    SIDE_OUTPUT = 2
    SIDE_INPUT_BAD = 4
    SIDE_OUTPUT_BAD = 8

# What a line of SSE is.
cdef enum:
    L_START = 0           # its field name is being read
    L_SPACE               # behind `data:`: one space may come
    L_FIRST               # the first bytes of data, which may be [DONE]
    L_DATA
    L_REST                # nothing more to read in it

# Events that matter by their `type`.
cdef enum:
    EV_OTHER = 0
    EV_TERMINAL
    EV_FAILED             # terminal, and an error
    EV_ERROR
    EV_ITEM_DONE
    EV_IMAGE_DONE
    EV_AUDIO_DELTA

ctypedef struct Tap:
    Json json                       # first: the machine hands its owner back as a pointer to this
    int format
    int kind
    int root
    # lines
    uint8_t line                    # L_*
    uint8_t matched                 # bytes of `data:` (L_START) or of [DONE] (L_FIRST) that matched
    uint8_t behind_cr               # 1: the last line ended with CR, a LF that comes next belongs to it; 2: it was blank
    uint8_t bom                     # bytes of a byte order mark that were seen; 3: past the start
    uint8_t event_open              # the event has a line that is not a comment
    uint8_t data_lines              # ... and a data line
    uint8_t ended                   # the last byte that was taken ended an event
    uint8_t usage_only
    uint8_t in_event                # the present event has had a usage object
    uint8_t event_usage             # the last one had
    uint8_t event_error             # the last one told of an error; 2: and was no whole JSON
    uint8_t done                    # terminal, by anything
    uint8_t finish
    uint8_t error
    # of the present event
    uint8_t type
    uint8_t tells_error             # an error object stands in it
    uint8_t thought                 # slot of the name under which it tells thoughts: OpenRouter does under three
    uint8_t has_choices
    uint8_t has_usage
    uint8_t has_list
    uint8_t ends
    uint8_t item_kind               # of the present output item: 1 search, 2 image, 3 search in files, 4 code
    uint8_t item_action             # 0 none, 1 search, 2 another
    uint8_t entry_added             # the present usage.iterations entry is not in the sums: 1 of this model, 2 of another
    uint8_t modality                # of the present entry of details: 1 image, 2 audio
    uint8_t service                 # SERVICE_*
    uint8_t output_reported
    uint8_t event_output            # the present event reports output, and no less than those before it
    uint8_t bad                     # SIDE_*_BAD: a value that is none stood there
    uint8_t fresh                   # something was reported since the journal was told
    uint8_t reported
    uint8_t old_gemini              # Gemini 1 and 2 charge a search per request, not per query
    int choice                      # index of the present choice
    int choices_in_event
    int searches_in_event
    int files_in_event
    int images_in_event
    int queries
    int64_t events
    int64_t sequence
    int64_t searches_done           # output items that were reported done one by one
    int64_t searches_listed         # ... and as in the last list of all
    int64_t items_done
    int64_t items_listed
    int64_t image_count
    # What was used beside tokens of the call's own model; `used`: something was.
    uint8_t used
    uint8_t code_run                # an item says that code ran
    uint8_t model_size
    int containers
    int64_t files_done, files_listed
    int64_t advised[W_DETAIL - V_COUNT]
    # Gemini reports what it has put out so far with every event: what the last one said, and our own count at its end.
    int64_t output_at_report
    int64_t output_most             # a report of more than this is none
    uint64_t counted_at_report      # in 1/4096 tokens
    int64_t images_at_report
    int64_t added[W_DETAIL - V_COUNT]
    int64_t values[W_COUNT]         # as reported, -1 absent
    uint32_t states[TAP_CHOICES]
    uint64_t query_hashes[TAP_QUERIES_MAX]
    uint64_t container_hashes[TAP_CONTAINERS]
    uint64_t sandbox_hash           # of the one that an answer of Anthropic names, 0: none
    uint8_t model[TAP_MODEL_MAX]    # that the answer names first; model_size 0: none
    Frame frames[TAP_FRAMES]
    uint8_t text[TAP_TEXT_MAX]
    int object_size
    uint8_t object_id[TAP_TEXT_MAX] # of a stored response; object_size 0: none


cdef void tap_event_forget(Tap* s) noexcept nogil:
    s.type = EV_OTHER
    s.thought = 0
    s.tells_error = False
    s.has_choices = s.has_usage = s.has_list = s.ends = s.in_event = s.event_output = False
    s.choices_in_event = s.searches_in_event = s.images_in_event = s.files_in_event = 0


cdef void tap_event_begin(Tap* s) noexcept nogil:
    """Stand before the next event."""
    json_reset(&s.json, s.root)
    s.data_lines = 0
    s.event_open = False
    tap_event_forget(s)


cdef inline int64_t reported(const Tap* s, int slot) noexcept nogil:
    """A reported number, 0 where it is absent."""
    return max(s.values[slot], <int64_t>0)


cdef inline int64_t gemini_output(const Tap* s) noexcept nogil:
    """Answer, pictures among it, and thoughts; where the answer's own number is missing, what the sum leaves for it."""
    cdef int64_t completion = s.values[V_COMPLETION]
    if completion < 0 and s.values[V_PROMPT] >= 0:
        completion = s.values[V_TOTAL] - s.values[V_PROMPT] - reported(s, V_THOUGHTS) - reported(s, V_TOOL_PROMPT)
    return clamp_usage(max(completion, <int64_t>0) + reported(s, V_THOUGHTS))


cdef inline bint is_text(int format) noexcept nogil:
    """Formats whose answer is text, tool calls and thoughts: what is counted here."""
    return format == F_CHAT or format == F_COMPLETIONS or format == F_RESPONSES or format == F_MESSAGES or format == F_GENERATE


cdef int tap_sides(const Tap* s) noexcept nogil:
    """SIDE_*: of what the answer has reported so far. The placeholder of a stream's start is no report of output."""
    cdef int sides = s.bad
    cdef bint prompt = s.values[V_PROMPT] >= 0 or s.values[V_CACHE_HIT] >= 0 or s.values[V_CACHE_MISS] >= 0 \
        or s.values[V_READ] >= 0 or s.values[V_CREATED] >= 0
    cdef bint total = s.values[V_TOTAL] >= 0
    # A sum alone is that of the prompt only where an answer is no text.
    if prompt or (total and (s.output_reported or not is_text(s.format))):
        sides |= SIDE_INPUT
    if s.output_reported or (prompt and total):
        sides |= SIDE_OUTPUT
    return sides


cdef inline int64_t hidden_tokens(const Tap* s) noexcept nogil:
    """Output that is reported and need not be seen as text: thoughts, sound, pictures."""
    return clamp_usage(reported(s, V_REASONING) + reported(s, V_THOUGHTS) + reported(s, V_AUDIO_OUT) + reported(s, V_IMAGE_TOKENS))


cdef inline int64_t searches_seen(const Tap* s) noexcept nogil:
    """Searches that stand in the answer itself."""
    if s.format == F_GENERATE:
        return 1 if s.old_gemini and s.queries else s.queries
    return max(s.searches_done, s.searches_listed)


cdef inline int tap_bad_side(int slot) noexcept nogil:
    """The side that a value of a report belongs to."""
    if slot == V_COMPLETION or slot == V_REASONING or slot == V_THOUGHTS or slot == V_IMAGE_TOKENS or slot == V_AUDIO_OUT:
        return SIDE_OUTPUT_BAD
    if slot == V_TOTAL or slot == V_SEARCHES or slot == V_SECONDS or slot >= V_COUNT:
        return 0
    return SIDE_INPUT_BAD


cdef void tap_event_end(Tap* s, bint complete) noexcept nogil:
    """An event has ended; `complete`: and its JSON with it."""
    s.events += 1
    s.usage_only = complete and s.has_choices and not s.choices_in_event and s.has_usage
    s.event_usage = complete and s.in_event
    s.event_error = 0
    if s.tells_error or s.type == EV_FAILED or s.type == EV_ERROR:
        s.event_error = 1 if complete else 2
    if s.model_size:
        s.root = TAP_ROOTS[s.format]        # where it is named does not matter any more
    if not complete:
        return
    if s.event_output and s.format == F_GENERATE and 0 < gemini_output(s) <= s.output_most:
        s.output_at_report = gemini_output(s)
        s.counted_at_report = s.json.counter.acc
        s.images_at_report = s.image_count
    if s.type == EV_TERMINAL or s.type == EV_FAILED or s.ends:
        s.done = True
    if s.type == EV_FAILED or s.type == EV_ERROR:
        s.error = True
    if s.type == EV_IMAGE_DONE:
        s.image_count += 1
        s.done = True
    if s.type == EV_ITEM_DONE:
        s.searches_done += s.searches_in_event
        s.items_done += s.images_in_event
        s.files_done += s.files_in_event
    elif s.has_list:
        s.searches_listed = s.searches_in_event
        s.items_listed = s.images_in_event
        s.files_listed = s.files_in_event


cdef void tap_choice(Tap* s, int index) noexcept nogil:
    """Texts of several choices come in turns; each goes on where it stopped."""
    s.states[s.choice] = s.json.counter.state
    s.choice = index
    s.json.counter.state = s.states[index]


cdef void tap_string(Tap* s, const Node* node) noexcept nogil:
    """A string begins whose node asks what to do with it."""
    if node.action == U_DELTA:
        s.json.mode = M_SKIP if s.type == EV_AUDIO_DELTA else M_COUNT
    elif node.action == U_THOUGHT:
        if not s.thought:
            s.thought = node.slot
        s.json.mode = M_COUNT if s.thought == node.slot else M_SKIP
    elif node.action == U_QUERY or node.action == U_CONTAINER:
        s.json.hash = 0xcbf29ce484222325
        s.json.length = 0


cdef void tap_query(Tap* s) noexcept nogil:
    """A search query has ended: count it if it is not empty and new."""
    cdef int i
    if not s.json.length or s.queries == TAP_QUERIES_MAX:
        return
    for i in range(s.queries):
        if s.query_hashes[i] == s.json.hash:
            return
    s.query_hashes[s.queries] = s.json.hash
    s.queries += 1


cdef void tap_container(Tap* s, bint sole) noexcept nogil:
    """The name of a sandbox has ended: count it if it is new."""
    cdef int i
    if sole:
        s.sandbox_hash = s.json.hash if s.json.length else s.sandbox_hash
        return
    s.used = True
    if not s.json.length or s.containers == TAP_CONTAINERS:
        return
    for i in range(s.containers):
        if s.container_hashes[i] == s.json.hash:
            return
    s.container_hashes[s.containers] = s.json.hash
    s.containers += 1


cdef list sandboxes_of(Tap* s):
    """By what the sandboxes that an answer names are known again: FNV-1a of their names, in hexadecimal."""
    cdef int i
    found = [s.container_hashes[i] for i in range(s.containers)]
    return [b"%016x" % value for value in ([*found, s.sandbox_hash] if s.sandbox_hash else found)]


cdef void tap_model(Tap* s) noexcept nogil:
    """The answer names its model."""
    if not s.model_size and not s.json.text_over and s.json.text_size <= TAP_MODEL_MAX:
        s.model_size = <uint8_t>s.json.text_size
        memcpy(s.model, s.json.text, s.json.text_size)


cdef void tap_type(Tap* s) noexcept nogil:
    """The `type` of an event."""
    cdef Json* j = &s.json
    if s.format == F_MESSAGES:
        if text_is(j, b"message_stop"):
            s.type = EV_TERMINAL
        elif text_is(j, b"error"):
            s.type = EV_ERROR
    elif text_starts(j, b"response."):
        if text_is(j, b"response.output_item.done"):
            s.type = EV_ITEM_DONE
        elif text_is(j, b"response.completed") or text_is(j, b"response.incomplete"):
            s.type = EV_TERMINAL
        elif text_is(j, b"response.failed"):
            s.type = EV_FAILED
        elif text_is(j, b"response.audio.delta") or text_is(j, b"response.output_audio.delta"):
            s.type = EV_AUDIO_DELTA
    elif text_is(j, b"error"):
        s.type = EV_ERROR
    elif text_is(j, b"image_generation.completed") or text_is(j, b"image_edit.completed"):
        s.type = EV_IMAGE_DONE
    elif text_is(j, b"speech.audio.done") or text_is(j, b"transcript.text.done"):
        s.type = EV_TERMINAL


cdef void tap_service(Tap* s) noexcept nogil:
    """The service tier that the provider names. What it does not name, or we do not know, is standard.

    Anthropic says it in two fields, service_tier and speed: what one calls standard takes nothing back of the other. Its
    tier `priority` is capacity that the operator has bought, and no price: `fast` is.
    """
    cdef Json* j = &s.json
    if text_is(j, b"fast") or (text_is(j, b"priority") and s.format != F_MESSAGES) or text_is(j, b"ON_DEMAND_PRIORITY") or text_is(j, b"PRIORITY"):
        s.service = SERVICE_PRIORITY
    elif text_is(j, b"flex") or text_is(j, b"ON_DEMAND_FLEX") or text_is(j, b"FLEX"):
        s.service = SERVICE_FLEX
    elif text_is(j, b"batch"):
        s.service = SERVICE_BATCH
    elif s.format != F_MESSAGES:
        s.service = SERVICE_STANDARD


cdef int64_t tap_number(const Json* j, int type) noexcept nogil:
    """A reported number within [0, USAGE_MAX], or -1 where it is none. 12.0 is 12; 1e3 and 1.5 are no token counts."""
    if type == T_NUMBER and (j.number != N_FRACTION or j.fraction):
        return -1
    if type != T_INTEGER and type != T_NUMBER:
        return -1
    if j.negative and j.magnitude:
        return -1      # nobody used less than nothing: such a report says nothing
    return clamp_usage(<int64_t>j.magnitude)


cdef void tap_scalar(Tap* s, const Node* node, int type) noexcept nogil:
    """A string, number or literal of a known place has ended."""
    cdef Json* j = &s.json
    cdef int action = node.action
    cdef int64_t n
    if type == T_NULL:
        return
    if action == U_NUMBER or action == U_OUTPUT:
        s.fresh = True
        n = tap_number(j, type)
        if n < 0:
            s.bad |= <uint8_t>tap_bad_side(node.slot)
            return
        if node.slot < V_COUNT and (node.slot != V_SEARCHES or s.format == F_RERANK):
            s.reported = True
        if action == U_OUTPUT:
            s.output_reported = True
        if node.slot >= X_FIRST and n:
            s.used = True
        if n >= s.values[node.slot] or V_COUNT <= node.slot < X_FIRST:     # what is cumulative never falls
            s.values[node.slot] = n
            if action == U_OUTPUT or (node.slot == V_TOTAL and s.values[V_COMPLETION] < 0):
                s.event_output = True
    elif action == U_SECONDS:
        s.fresh = True
        if s.format == F_TRANSCRIPTION and (type == T_INTEGER or type == T_NUMBER) and not j.negative \
                and (type == T_INTEGER or j.number == N_FRACTION):
            s.values[V_SECONDS] = max(s.values[V_SECONDS], clamp_usage(
                clamp_usage(<int64_t>j.magnitude) + (1 if type == T_NUMBER and j.fraction else 0)))
            s.reported = True
    elif action == U_END:
        s.ends = s.finish = True
    elif action == U_ERROR:
        if type != T_BOOL or j.magnitude:
            s.error = s.tells_error = True
    elif action == U_INDEX:
        if type == T_INTEGER and not j.negative:
            tap_choice(s, <int>(j.magnitude & (TAP_CHOICES - 1)))
    elif action == U_SEQUENCE:
        if type == T_INTEGER and not j.negative:
            s.sequence = <int64_t>j.magnitude
    elif type != T_STRING:
        pass
    elif action == U_TYPE:
        tap_type(s)
    elif action == U_FINISH:
        s.finish = True
    elif action == U_ITERATION_TYPE:
        s.entry_added = 1 if text_is(j, b"compaction") else 2 if text_is(j, b"advisor_message") else 0
    elif action == U_ITEM_TYPE:
        s.item_kind = (1 if text_is(j, b"web_search_call") else 2 if text_is(j, b"image_generation_call")
                       else 3 if text_is(j, b"file_search_call")
                       else 4 if text_is(j, b"code_interpreter_call") else 0)
    elif action == U_ACTION_TYPE:
        s.item_action = 1 if text_is(j, b"search") else 2
    elif action == U_MIME:
        if text_starts(j, b"image/"):
            s.image_count += 1
    elif action == U_QUERY:
        tap_query(s)
    elif action == U_MODALITY:
        s.modality = 1 if text_is(j, b"IMAGE") else 2 if text_is(j, b"AUDIO") else 0
    elif action == U_SERVICE:
        tap_service(s)
    elif action == U_ID:
        if not s.object_size and not j.text_over:
            s.object_size = j.text_size
            memcpy(s.object_id, j.text, j.text_size)
    elif action == U_CONTAINER:
        tap_container(s, node.slot)
    elif action == U_NAME:
        tap_model(s)
    elif action == U_MODEL:
        tap_model(s)
        s.old_gemini = text_starts(j, b"gemini-1") or text_starts(j, b"gemini-2")


cdef void tap_open(Tap* s, const Node* node, bint array) noexcept nogil:
    """A container of a known place begins."""
    cdef int action = node.action
    cdef int i
    if action == U_CHOICES:
        if array:
            s.has_choices = True
    elif action == U_CHOICE:
        if not array:
            s.choices_in_event += 1
            if s.choice:
                tap_choice(s, 0)
    elif action == U_USAGE:
        if not array:
            s.in_event = True
            if node.slot:
                s.has_usage = True
    elif action == U_ERROR:
        s.error = s.tells_error = True
    elif action == U_ITERATIONS:
        for i in range(W_DETAIL - V_COUNT):
            s.added[i] = s.advised[i] = 0
    elif action == U_ITERATION:
        s.entry_added = False
        for i in range(V_COUNT, W_DETAIL):
            s.values[i] = -1
    elif action == U_ITEM_LIST:
        if array:
            s.has_list = True
    elif action == U_ITEM:
        if not array:
            s.item_kind = s.item_action = 0
    elif action == U_IMAGE:
        if not array and s.format == F_IMAGES:
            s.image_count += 1
    elif action == U_IMAGE_PART:
        if not array:
            s.image_count += 1
    elif action == U_SEEN:
        if not array:
            s.values[node.slot] = max(s.values[node.slot], <int64_t>1)
            s.used = True
    elif action == U_DETAIL:
        if array and node.slot == 2:
            s.values[V_AUDIO_CACHED] = s.values[V_IMAGE_CACHED] = -1
        elif array and node.slot:
            s.values[V_AUDIO_IN] = s.values[V_IMAGE_IN] = -1
        elif array:
            s.values[V_IMAGE_TOKENS] = s.values[V_AUDIO_OUT] = -1
        s.modality = 0
        s.values[W_DETAIL] = -1


cdef void tap_close(Tap* s, const Node* node, bint array) noexcept nogil:
    """A container of a known place has ended."""
    cdef int action = node.action
    cdef int i
    if array:
        return
    if action == U_ROOT:
        if s.kind == K_JSON_ARRAY and s.json.depth <= 1:
            tap_event_end(s, True)
            tap_event_forget(s)
    elif action == U_ITERATION:
        if s.entry_added == 1:
            for i in range(W_DETAIL - V_COUNT):
                if s.values[V_COUNT + i] > 0:
                    s.added[i] = clamp_usage(s.added[i] + s.values[V_COUNT + i])
        elif s.entry_added:
            s.used = True
            for i in range(W_DETAIL - V_COUNT):
                if s.values[V_COUNT + i] > 0:
                    s.advised[i] = clamp_usage(s.advised[i] + s.values[V_COUNT + i])
    elif action == U_ITEM:
        if s.item_kind == 1 and s.item_action != 2:     # opening a page and finding in it are no searches
            s.searches_in_event += 1
        elif s.item_kind == 2:
            s.images_in_event += 1
            s.used = True
        elif s.item_kind == 3:
            s.files_in_event += 1
            s.used = True
        elif s.item_kind == 4:
            s.code_run = s.used = True
    elif action == U_DETAIL:
        if s.modality and s.values[W_DETAIL] >= 0:
            if node.slot == 2:
                s.values[V_AUDIO_CACHED if s.modality == 2 else V_IMAGE_CACHED] = s.values[W_DETAIL]
            elif s.modality == 2:
                s.values[V_AUDIO_IN if node.slot else V_AUDIO_OUT] = s.values[W_DETAIL]
            else:
                s.values[V_IMAGE_IN if node.slot else V_IMAGE_TOKENS] = s.values[W_DETAIL]


cdef const uint8_t* tap_bom(Tap* s, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """Pass over a byte order mark at the very start."""
    while s.bom < 3 and p < end:
        if p[0] != <uint8_t>(<const char*>b"\xef\xbb\xbf")[s.bom]:
            s.bom = 3
            break
        s.bom += 1
        p += 1
    return p


cdef void tap_data_line(Tap* s, TokenTable t) noexcept nogil:
    """A data line begins; it continues the data lines before it behind a line feed."""
    if s.data_lines:
        s.json.line = False
        json_run(&s.json, t, <const uint8_t*><const char*>b"\n", 1)
        s.json.line = True
    s.data_lines = True


cdef void tap_not_done(Tap* s, TokenTable t) noexcept nogil:
    """What began like [DONE] is data after all."""
    if s.matched:
        json_run(&s.json, t, <const uint8_t*><const char*>b"[DONE]", s.matched)
    s.matched = 0
    s.line = L_REST if s.json.state == J_ERROR else L_DATA


cdef void tap_line_end(Tap* s, TokenTable t, uint8_t c) noexcept nogil:
    """c, LF or CR, ends a line."""
    cdef bint blank = s.line == L_START and not s.matched
    if s.line == L_SPACE or (s.line == L_START and s.matched == 4):
        tap_data_line(s, t)                     # `data:` and `data` alone are empty data
    elif s.line == L_FIRST:
        tap_not_done(s, t)
    if blank:
        s.ended = True
        s.usage_only = s.event_usage = s.event_error = False
        if s.data_lines:
            tap_event_end(s, s.json.state == J_DONE)
        tap_event_begin(s)
    s.line = L_START
    s.matched = 0
    s.behind_cr = (2 if blank else 1) if c == c'\r' else 0


cdef Py_ssize_t tap_lines(Tap* s, TokenTable t, const uint8_t* begin, Py_ssize_t n, bint stop) noexcept nogil:
    """Take bytes of an SSE stream; with `stop`, only to the end of an event. Returns how many were taken."""
    cdef const uint8_t* p = begin
    cdef const uint8_t* end = begin + n
    cdef uint8_t c
    if n <= 0:
        return 0
    s.ended = False
    if s.bom < 3:
        p = tap_bom(s, p, end)
    while p < end:
        c = p[0]
        if s.behind_cr:
            if c == c'\n':
                # The rest of a line end. If that ended an event, this byte is still of it.
                s.ended = s.behind_cr == 2
                s.behind_cr = 0
                p += 1
                if s.ended and stop:
                    break
                continue
            s.behind_cr = 0
        s.ended = False
        if s.line == L_DATA:
            p += json_run(&s.json, t, p, end - p)
            if p == end:
                break
            if s.json.state == J_ERROR:
                s.line = L_REST
                continue
            c = p[0]
        elif s.line == L_REST:
            while p < end and p[0] != c'\n' and p[0] != c'\r':
                p += 1
            if p == end:
                break
            c = p[0]
        elif c == c'\n' or c == c'\r':
            pass
        elif s.line == L_START:
            if not s.matched:
                if c == c':':
                    s.line = L_REST
                    p += 1
                    continue
                s.event_open = True
                if end - p >= 5 and memcmp(p, b"data:", 5) == 0:
                    s.line = L_SPACE
                    s.matched = 0
                    p += 5
                    continue
            if c != <uint8_t>(<const char*>b"data:")[s.matched]:
                s.line = L_REST
            else:
                s.matched += 1
                if s.matched == 5:
                    s.line = L_SPACE
                    s.matched = 0
            p += 1
            continue
        elif s.line == L_SPACE:
            tap_data_line(s, t)
            if c == c' ':
                p += 1
                s.line = L_FIRST
                if p < end and p[0] == c'{':
                    s.line = L_DATA
            else:
                s.line = L_FIRST
            continue
        else:                                   # L_FIRST
            if c != <uint8_t>(<const char*>b"[DONE]")[s.matched]:
                tap_not_done(s, t)
                continue
            p += 1
            s.matched += 1
            if s.matched == 6:
                s.done = True
                s.line = L_REST
            continue
        p += 1
        tap_line_end(s, t, c)
        if s.ended and stop and not (s.behind_cr and p < end and p[0] == c'\n'):
            break
    return p - begin


cdef void tap_document(Tap* s, TokenTable t, const uint8_t* begin, Py_ssize_t n) noexcept nogil:
    """Take bytes of a JSON document, or of an array of them."""
    cdef const uint8_t* p = begin
    cdef const uint8_t* end = begin + n
    if n <= 0:
        return
    s.ended = False
    if s.bom < 3:
        p = tap_bom(s, p, end)
    if p == end or s.json.state == J_DONE or s.json.state == J_ERROR:
        return                                  # whatever stands behind the document does not matter
    json_run(&s.json, t, p, end - p)
    if s.json.complete:
        s.done = True
        s.ended = True
        if s.kind != K_JSON_ARRAY:
            tap_event_end(s, True)


cdef Py_ssize_t tap_elements(Tap* s, TokenTable t, const uint8_t* begin, Py_ssize_t n) noexcept nogil:
    """Take bytes of an array or of several documents, only to the end of an element or document. Returns how many were
    taken."""
    cdef const uint8_t* p = begin
    cdef const uint8_t* end = begin + n
    cdef const uint8_t* q
    cdef int64_t events = s.events
    s.ended = False
    while p < end and s.events == events:
        if s.kind == K_JSON_LINES and s.json.state == J_DONE:
            if p[0] <= 0x20:
                p += 1
                continue
            tap_event_begin(s)
        q = <const uint8_t*>memchr(p, c'}', end - p)      # each ends with one
        q = end if q == NULL else q + 1
        tap_document(s, t, p, q - p)
        p = q
    s.ended = s.events != events
    return p - begin


cdef void normal_openai(const Tap* s, Usage* u) noexcept nogil:
    """Cached and written tokens are inside the prompt, reasoning is inside the completion (except xAI's)."""
    cdef int64_t read, written
    cdef int64_t prompt = s.values[V_PROMPT]
    cdef int64_t completion = s.values[V_COMPLETION]
    cdef int64_t total = s.values[V_TOTAL]
    cdef int64_t reasoning = reported(s, V_REASONING)
    if prompt < 0 and (s.values[V_CACHE_HIT] >= 0 or s.values[V_CACHE_MISS] >= 0):
        prompt = reported(s, V_CACHE_HIT) + reported(s, V_CACHE_MISS)
    if prompt < 0:
        prompt = max(total - max(completion, <int64_t>0), <int64_t>0)
    if completion < 0:
        completion = max(total - prompt, <int64_t>0)
    elif reasoning and total == prompt + completion + reasoning:
        completion += reasoning
    u.output_tokens = completion
    read = max(max(reported(s, V_CACHED), reported(s, V_READ)), max(reported(s, V_CACHE_HIT), reported(s, V_CACHED_TOP)))
    written = max(max(reported(s, V_CACHE_WRITE), reported(s, V_CREATED)),
                  clamp_usage(reported(s, V_CREATED_5M) + reported(s, V_CREATED_1H)))
    # Some relays have what caches had beside the prompt, not in it: the sum tells.
    if read + written and total > prompt + completion:
        if total == prompt + completion + read + written:
            prompt += read + written
        elif total == prompt + completion + written:
            prompt += written
        elif total == prompt + completion + read:
            prompt += read
    u.cache_read_tokens = min(prompt, read)
    written = min(prompt - u.cache_read_tokens, written)
    u.cache_write_1h_tokens = min(written, reported(s, V_CREATED_1H))
    u.cache_write_tokens = written - u.cache_write_1h_tokens
    u.input_tokens = prompt - u.cache_read_tokens - written
    u.web_searches = max(max(s.searches_done, s.searches_listed), max(reported(s, V_SEARCHES), reported(s, X_SEARCHES)))
    u.images = max(s.image_count, max(s.items_done, s.items_listed))
    u.video_seconds = reported(s, V_SECONDS)


cdef void normal_anthropic(const Tap* s, Usage* u) noexcept nogil:
    """Nothing overlaps; compaction is not in the sums; what the split of cache writes leaves over is of five minutes."""
    cdef int64_t created = max(s.values[V_CREATED], reported(s, V_CREATED_5M) + reported(s, V_CREATED_1H))
    cdef int64_t added = max(s.added[W_CREATED - V_COUNT],
                             s.added[W_CREATED_5M - V_COUNT] + s.added[W_CREATED_1H - V_COUNT])
    cdef int64_t hour = min(created, reported(s, V_CREATED_1H)) + min(added, s.added[W_CREATED_1H - V_COUNT])
    if s.values[V_CREATED] >= 0 and s.values[V_CREATED] < created:
        # The split says more than the total: the total, which comes again in later events, is the truth.
        created = s.values[V_CREATED]
        hour = min(created, reported(s, V_CREATED_1H)) + min(added, s.added[W_CREATED_1H - V_COUNT])
    u.input_tokens = reported(s, V_PROMPT) + s.added[W_INPUT - V_COUNT]
    u.output_tokens = reported(s, V_COMPLETION) + s.added[W_OUTPUT - V_COUNT]
    u.cache_read_tokens = reported(s, V_READ) + s.added[W_READ - V_COUNT]
    u.cache_write_1h_tokens = hour
    u.cache_write_tokens = created + added - hour
    u.web_searches = reported(s, X_SEARCHES)


cdef void normal_gemini(const Tap* s, Usage* u) noexcept nogil:
    """Cached tokens are inside the prompt, thoughts and the prompt of tools are outside the other two numbers."""
    cdef int64_t prompt = s.values[V_PROMPT]
    if prompt < 0:
        prompt = max(s.values[V_TOTAL] - reported(s, V_COMPLETION) - reported(s, V_THOUGHTS) - reported(s, V_TOOL_PROMPT),
                     <int64_t>0)
    u.cache_read_tokens = min(prompt, reported(s, V_CACHED))
    u.input_tokens = prompt - u.cache_read_tokens + reported(s, V_TOOL_PROMPT)
    # Where tokens of pictures are reported there is one, even if what would show it was left out of the answer.
    u.images = max(s.image_count, <int64_t>(reported(s, V_IMAGE_TOKENS) > 0))
    u.output_tokens = gemini_output(s)
    u.web_searches = 1 if s.old_gemini and s.queries else s.queries


cdef void tap_normalise(const Tap* s, Usage* u) noexcept nogil:
    """What was reported, in the priced dimensions, which do not overlap."""
    memset(u, 0, sizeof(Usage))
    if s.format == F_MESSAGES:
        normal_anthropic(s, u)
    elif s.format == F_GENERATE or s.format == F_GEMINI_COUNT or s.format == F_GEMINI_EMBED:
        normal_gemini(s, u)
    else:
        normal_openai(s, u)
    u.input_tokens = clamp_usage(u.input_tokens)
    u.output_tokens = clamp_usage(u.output_tokens)
    u.cache_read_tokens = clamp_usage(u.cache_read_tokens)
    u.cache_write_tokens = clamp_usage(u.cache_write_tokens)
    u.cache_write_1h_tokens = clamp_usage(u.cache_write_1h_tokens)
    u.images = clamp_usage(u.images)
    u.video_seconds = clamp_usage(u.video_seconds)
    u.web_searches = clamp_usage(u.web_searches)
    # Of a prompt's sound and pictures, what a cache had is priced as read from it.
    u.audio_input_tokens = min(u.input_tokens, max(reported(s, V_AUDIO_IN) - reported(s, V_AUDIO_CACHED), <int64_t>0))
    u.image_input_tokens = min(u.input_tokens - u.audio_input_tokens,
                               max(reported(s, V_IMAGE_IN) - reported(s, V_IMAGE_CACHED), <int64_t>0))
    u.audio_output_tokens = min(u.output_tokens, reported(s, V_AUDIO_OUT))
    u.image_output_tokens = min(u.output_tokens - u.audio_output_tokens, reported(s, V_IMAGE_TOKENS))
    if s.format == F_IMAGES and s.values[V_IMAGE_TOKENS] < 0:
        # The older models do not say it: they answer in nothing else.
        u.image_output_tokens = u.output_tokens - u.audio_output_tokens
    u.audio_cache_read_tokens = min(u.cache_read_tokens, reported(s, V_AUDIO_CACHED))
    u.image_cache_read_tokens = min(u.cache_read_tokens - u.audio_cache_read_tokens, reported(s, V_IMAGE_CACHED))
    u.service = s.service


@cython.freelist(64)      # one is made for every call
@cython.final
cdef class UsageTap:
    """Reads one answer body in any pieces. Never fails: what cannot be read only means that no usage is found in it."""

    cdef TokenTable table
    cdef Tap tap
    cdef readonly bint usage_seen           # the upstream reported tokens (explicit zeros count)
    cdef readonly bint output_seen          # ... output tokens too, and not as the placeholder of a stream's start
    cdef readonly bint terminal_seen        # the answer ended as its format ends
    cdef readonly bint finish_seen          # a finish reason was seen
    cdef readonly bint error_seen
    cdef readonly int64_t events
    cdef readonly bint at_boundary          # not inside an unfinished event or document
    cdef readonly bint event_ended          # the last byte taken ended an event
    cdef readonly bint event_usage_only     # ... whose `choices` is empty and whose `usage` is an object
    cdef readonly int64_t sequence_number   # of the last Responses event, -1 none

    def __init__(self, int format, int body_kind, TokenTable table not None):
        if not 0 <= format <= F_OTHER or not K_JSON <= body_kind <= K_JSON_LINES:
            raise ValueError("unknown format or kind of body")
        self.table = table
        self.reset(format, body_kind)

    cdef void reset(self, int format, int body_kind):
        """Make ready for another answer."""
        cdef Tap* s = &self.tap
        memset(s, 0, sizeof(Tap))
        memset(s.values, 0xFF, sizeof(s.values))
        s.json.owner = OWNER_TAP
        s.json.line = body_kind == K_SSE
        s.json.depth_max = JSON_DEPTH_LENIENT
        s.json.frame_max = TAP_FRAMES
        s.json.frames = s.frames
        s.json.text = s.text
        s.json.text_max = TAP_TEXT_MAX
        s.format = format
        s.kind = body_kind
        s.root = TAP_FIRST_ROOTS[format]
        s.sequence = -1
        s.output_most = USAGE_MAX
        tap_event_begin(s)
        self.publish()

    cdef void publish(self) noexcept:
        """Show what the machine knows."""
        cdef Tap* s = &self.tap
        cdef int state = s.json.state
        self.usage_seen = s.reported
        self.output_seen = s.output_reported
        self.terminal_seen = s.done
        self.finish_seen = s.finish
        self.error_seen = s.error
        self.events = s.events
        self.event_ended = s.ended
        self.event_usage_only = s.usage_only
        self.sequence_number = s.sequence
        if s.kind == K_SSE:
            self.at_boundary = s.line == L_START and not s.matched and not s.event_open
        elif s.kind == K_JSON_ARRAY:
            self.at_boundary = s.json.depth <= 1 and (
                state == J_VALUE or state == J_VALUE_OR_END or state == J_AFTER or state == J_DONE)
        else:
            self.at_boundary = s.json.depth == 0 and (state == J_VALUE or state == J_DONE)

    cdef int feed(self, const uint8_t* p, Py_ssize_t n) noexcept:
        """Take the next bytes of the answer."""
        cdef Py_ssize_t taken
        if self.tap.kind == K_SSE:
            tap_lines(&self.tap, self.table, p, n, False)
        elif self.tap.kind == K_JSON_LINES:
            while n:
                taken = tap_elements(&self.tap, self.table, p, n)
                p += taken
                n -= taken
        else:
            tap_document(&self.tap, self.table, p, n)
        self.publish()
        return 0

    cdef Py_ssize_t feed_event(self, const uint8_t* p, Py_ssize_t n) noexcept:
        """Like `feed`, but stop behind the end of an event: of SSE, an element of an array, a document among several.
        Bytes taken; `event_ended` says whether one ended.

        The LF of a CRLF that a cut divided comes as one more piece with `event_ended` and the same verdict.
        """
        cdef Py_ssize_t taken = n
        if self.tap.kind == K_SSE:
            taken = tap_lines(&self.tap, self.table, p, n, True)
        elif self.tap.kind == K_JSON:
            tap_document(&self.tap, self.table, p, n)
        else:
            taken = tap_elements(&self.tap, self.table, p, n)
        self.publish()
        return taken

    cdef void finish(self) noexcept:
        """The answer has ended, or been cut: what its last event lacked of its end will not come."""
        cdef Tap* s = &self.tap
        if s.kind == K_SSE:
            if s.line == L_FIRST:
                tap_not_done(s, self.table)
            if s.data_lines and s.json.state == J_DONE:
                tap_event_end(s, True)          # the blank line is missing, the event is not
                tap_event_begin(s)
        self.publish()

    cdef int64_t counted_tokens(self) noexcept:
        """Output tokens by the relay's own count so far, whole tokens rounded up."""
        return whole_tokens(&self.tap.json.counter)

    cdef inline int64_t unreported_tokens(self) noexcept:
        """The same, of what came behind the last event with a cumulative report (Gemini; elsewhere all of it)."""
        return <int64_t>((self.tap.json.counter.acc - self.tap.counted_at_report + (1 << TOKEN_BITS) - 1) >> TOKEN_BITS)


cdef dict extras_of(const Tap* s):
    """What was used beside tokens of the call's own model."""
    return {
        "file_search": max(max(s.files_done, s.files_listed), reported(s, X_FILE_SEARCHES)),
        "x_search": reported(s, X_X_SEARCHES),
        "attachment_search": reported(s, X_ATTACHMENTS),
        "code": reported(s, X_CODE),
        "timed": s.format == F_MESSAGES,     # whose sandboxes are priced by their time
        "maps": reported(s, X_MAPS),
        # Sources are what searches have found: those that are told of are what is billed.
        "search_source": 0 if reported(s, X_SEARCHES) or reported(s, X_X_SEARCHES) else reported(s, X_SOURCES),
        "containers": max(s.containers, <int>s.code_run),
        "pictures": max(s.items_done, s.items_listed),
        "picture": tuple([s.values[i] for i in range(X_PICTURE_IN, X_PICTURE_OUT_TEXT + 1)]),
        "advisor": tuple([s.advised[i] for i in range(W_DETAIL - V_COUNT)]),
    }


def tap(int format, int kind, list chunks not None, TokenTable table not None, bint by_event=False):
    """Tap one answer that comes in the given pieces; what was found, as a dict.

    `by_event` takes it event by event; `pieces` then lists (bytes taken, event ended, usage only).
    """
    cdef UsageTap it = UsageTap(format, kind, table)
    cdef Usage usage
    cdef bytes chunk
    cdef Py_ssize_t at, taken
    pieces = []
    boundaries = []
    for chunk in chunks:
        if by_event:
            at = 0
            while at < len(chunk):
                taken = it.feed_event(<const uint8_t*>chunk + at, len(chunk) - at)
                assert 0 < taken <= len(chunk) - at
                at += taken
                pieces.append((taken, bool(it.event_ended), bool(it.event_usage_only)))
        else:
            it.feed(<const uint8_t*>chunk, len(chunk))
        boundaries.append(bool(it.at_boundary))
    it.finish()
    tap_normalise(&it.tap, &usage)
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_1h_tokens": usage.cache_write_1h_tokens,
        "images": usage.images,
        "video_seconds": usage.video_seconds,
        "web_searches": usage.web_searches,
        "audio_input_tokens": usage.audio_input_tokens,
        "audio_output_tokens": usage.audio_output_tokens,
        "image_input_tokens": usage.image_input_tokens,
        "image_output_tokens": usage.image_output_tokens,
        "audio_cache_read_tokens": usage.audio_cache_read_tokens,
        "image_cache_read_tokens": usage.image_cache_read_tokens,
        "service": usage.service,
        "usage_seen": bool(it.usage_seen),
        "output_seen": bool(it.output_seen),
        "terminal_seen": bool(it.terminal_seen),
        "finish_seen": bool(it.finish_seen),
        "error_seen": bool(it.error_seen),
        "events": it.events,
        "sequence_number": it.sequence_number,
        "sides": tap_sides(&it.tap),
        "model": it.tap.model[:it.tap.model_size],
        "used": bool(it.tap.used),
        "extras": extras_of(&it.tap),
        "object_id": it.tap.object_id[:it.tap.object_size],
        "sandboxes": sandboxes_of(&it.tap),
        "text": it.tap.json.counter.acc,
        "counted_tokens": it.counted_tokens(),
        "delivered_tokens": it.tap.output_at_report + it.unreported_tokens(),
        "hidden_tokens": hidden_tokens(&it.tap),
        "searches_seen": searches_seen(&it.tap),
        "boundaries": boundaries,
        "pieces": pieces,
    }
