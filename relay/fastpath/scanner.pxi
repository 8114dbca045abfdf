# Reading a request body as it arrives: what the relay decides by (model, stream, limits) and the estimate of its prompt.

cdef enum:
    MODEL_BYTES_MAX = 256
    CHOICES_MAX = 128
    OUTPUT_LIMIT_MAX = 0x7FFFFFFF       # clients that mean "no limit" send this
    TOOLS_TOKENS_OPENAI = 9
    TOOLS_TOKENS_ANTHROPIC = 346        # of the hidden prompt that explains tools
    PRIMING_TOKENS = 3
    FILES_MAX = 32                      # files that one body may name
    SPECIALS_MAX = 16                   # fields of one body that only Python can judge
    PREFIX_BYTES = 4096                 # of a prompt, by which calls of one conversation know each other: about 1,024 tokens

ctypedef struct Request:
    Json json                           # first: the machine hands its owner back as a pointer to this
    int64_t model_start
    int64_t model_end
    int64_t options_start
    int64_t options_end
    int64_t usage_end                   # of the value of `include_usage` in it
    int64_t previous_start              # of the name in `previous_response_id`
    int64_t previous_end
    int64_t object_start
    int64_t tools_start                 # where what providers cache begins, -1 absent: tools, instructions, messages
    int64_t system_start
    int64_t prompt_start
    int64_t output_limit
    int64_t choices
    int64_t overhead                    # tokens besides text and files
    int stream
    int include_usage
    int usage_size                      # of that value: 0 absent
    int resolution                      # Gemini: tokens per image
    int store
    int model_size
    uint8_t object_empty
    uint8_t background
    uint8_t priority
    uint8_t geo
    uint8_t search
    uint8_t stored
    uint8_t tools
    uint8_t hosted                      # among them one that the provider works itself
    uint8_t search_each                 # every answer is a search, whether it says so or not
    uint8_t tool_special                # in the tools under way is one that only Python can judge
    uint8_t names_files                 # the format's `file_id` names a file
    uint8_t file_of_part                # the last one was named by the part under way itself
    uint8_t part_is_output              # ... which tells what a tool has made
    int files
    int specials
    int64_t special_start
    int64_t file_start
    Media media
    MediaSums sums
    Frame frames[JSON_DEPTH_STRICT]
    uint8_t text[MODEL_BYTES_MAX]
    uint8_t model[MODEL_BYTES_MAX]
    # last: not cleared for a new body
    int64_t special_spans[2 * SPECIALS_MAX]
    uint8_t special_keys[SPECIALS_MAX]
    uint8_t file_slots[FILES_MAX]
    int64_t file_spans[2 * FILES_MAX]


cdef inline void request_media_bytes(Request* r, TokenTable t, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    media_bytes(&r.media, p, n)


cdef void request_string(Request* r, const Node* node) noexcept nogil:
    """A string begins whose node asks what to do with it."""
    if node.action == R_MODEL:
        r.model_start = r.json.at
    elif node.action == R_SYSTEM:
        if r.system_start < 0:
            r.system_start = r.json.at
    elif node.action == R_OVERHEAD:
        if r.prompt_start < 0:
            r.prompt_start = r.json.at
    elif node.action == R_SPECIAL:
        r.special_start = r.json.at
    elif node.action == R_STORED:
        r.previous_start = r.json.at
    elif node.action == R_OPAQUE:
        r.json.mode = M_LENGTH
        r.json.length = 0
    elif node.action == R_FILE and (node.slot == FILE_ALONE or node.slot == FILE_CONTAINER):
        r.file_start = r.json.at
    elif node.action == R_MEDIA_URL or node.action == R_MEDIA_DATA or node.action == R_FILE:
        r.file_start = r.json.at
        media_count(&r.media, &r.sums, &r.json.counter)
        media_begin(&r.media, STAGE_BASE64 if node.action == R_MEDIA_DATA else STAGE_PREFIX)
        r.json.mode = M_MEDIA
        if node.action == R_MEDIA_DATA and node.slot and r.media.source != 2:
            # `data` of an Anthropic source before its `type`: count it in case that it is text.
            r.media.counted = r.json.counter.acc
            r.json.mode = M_MEDIA | M_COUNT


cdef bint request_whole(Json* j, int type) noexcept nogil:
    """Whether a number is a whole one, written so, as 100.0 or as "100"; its value is in `magnitude` then."""
    cdef int i
    if type == T_INTEGER:
        return True
    if type == T_NUMBER:
        return j.number == N_FRACTION and not j.fraction
    if type != T_STRING or j.text_over or not 0 < j.text_size <= 18:
        return False
    j.magnitude = 0
    j.negative = False
    for i in range(j.text_size):
        if not 48 <= j.text[i] <= 57:
            return False
        j.magnitude = j.magnitude * 10 + (j.text[i] - 48)
    return True


cdef void request_integer(Request* r, const Node* node) noexcept nogil:
    """An output limit, or a number of choices."""
    cdef int64_t n = <int64_t>r.json.magnitude
    cdef bint choices = node.action == R_CHOICES
    if (r.json.negative and n) or n > (CHOICES_MAX if choices else OUTPUT_LIMIT_MAX) or (choices and not n):
        json_fault(&r.json, E_INVALID_VALUE, node.key)
    elif choices:
        r.choices = max(r.choices, n)
    else:
        r.output_limit = max(r.output_limit, n)


cdef void request_file(Request* r, const Node* node) noexcept nogil:
    """The name of a file has ended."""
    if not r.names_files:
        return
    if r.files == FILES_MAX:
        json_fault(&r.json, E_TOO_MANY_FILES, node.key)
        return
    r.file_spans[2 * r.files] = r.file_start
    r.file_spans[2 * r.files + 1] = r.json.at
    r.file_slots[r.files] = node.slot
    r.files += 1
    r.file_of_part = node.slot == FILE_OF_PART


cdef void request_special(Request* r, const Node* node) noexcept nogil:
    """A field has ended that only Python can judge."""
    if r.specials == SPECIALS_MAX:
        json_fault(&r.json, E_INVALID_VALUE, node.key)
        return
    r.special_spans[2 * r.specials] = r.special_start
    r.special_spans[2 * r.specials + 1] = r.json.at
    r.special_keys[r.specials] = node.key
    r.specials += 1


cdef void request_tool(Request* r) noexcept nogil:
    """The type of a tool has ended: the client's own are for it to run."""
    cdef Json* j = &r.json
    if text_is(j, b"function") or text_is(j, b"custom"):
        pass
    elif text_starts(j, b"web_search") and not j.text_over:
        r.search = True
    else:
        r.hosted = r.tool_special = True


cdef void request_scalar(Request* r, TokenTable t, const Node* node, int type) noexcept nogil:
    """A string, number or literal of a known place has ended."""
    cdef Json* j = &r.json
    cdef int action = node.action
    if type == T_NULL:
        if action == R_STREAM_OPTIONS:
            r.options_end = j.at
            r.options_start = j.at - 4
        elif action == R_INCLUDE_USAGE:
            r.usage_end = j.at
            r.usage_size = 4
        return                              # anywhere else, null is as good as absent
    if action == R_MODEL:
        if j.text_over or not j.text_size:
            json_fault(j, E_INVALID_VALUE, node.key)
            return
        r.model_end = j.at
        memcpy(r.model, j.text, j.text_size)
        r.model_size = j.text_size
    elif action == R_STREAM:
        r.stream = <int>j.magnitude
    elif action == R_LIMIT or action == R_CHOICES:
        if request_whole(j, type):
            request_integer(r, node)
        else:
            json_fault(j, E_INVALID_TYPE, node.key)
    elif action == R_INCLUDE_USAGE:
        r.include_usage = <int>j.magnitude
        r.usage_end = j.at
        r.usage_size = 4 if j.magnitude else 5
    elif action == R_BACKGROUND:
        r.background = <uint8_t>j.magnitude
    elif action == R_SERVICE:
        r.priority |= type == T_STRING and (text_is(j, b"priority") or text_is(j, b"fast") or text_is(j, b"PRIORITY"))
    elif action == R_GEO:
        r.geo = type == T_STRING and not text_is(j, b"global")
    elif action == R_STORE:
        if type == T_BOOL:
            r.store = <int>j.magnitude
    elif action == R_SEARCH:
        if type != T_BOOL or j.magnitude:
            r.search = True
            r.search_each |= node.slot
    elif action == R_TOOL_TYPE:
        if type == T_STRING:
            request_tool(r)
    elif action == R_TOOL_OTHER:
        r.hosted = r.tool_special = True
    elif action == R_SPECIAL:
        if type != T_STRING:
            r.special_start = j.at
        if type != T_BOOL or j.magnitude:
            request_special(r, node)
    elif action == R_SEARCH_TAG:
        if type == T_STRING and (text_starts(j, b"web_search") or text_is(j, b"web")):
            r.search = True
    elif action == R_STORED:
        r.stored |= STORED | node.slot
        if type == T_STRING and node.slot == STORED_PREVIOUS:
            r.previous_end = j.at
    elif action == R_TOKEN_IDS:
        if type == T_INTEGER:
            r.overhead += 1
    elif action == R_OPAQUE:
        if type == T_STRING:
            r.overhead += <int64_t>(j.length * 3 // 16)
    elif type != T_STRING:
        pass
    elif action == R_FILE:
        request_file(r, node)
    elif action == R_MEDIA_DATA:
        if j.mode & M_COUNT:
            r.media.counted = j.counter.acc - r.media.counted
    elif action == R_MEDIA_TYPE:
        r.media.declared = MEDIA_AUDIO if node.slot else <uint8_t>media_class(j.text, j.text_size)
    elif action == R_SOURCE_TYPE:
        r.media.source = 1 if text_is(j, b"text") else 2
    elif action == R_DETAIL:
        r.media.low = text_is(j, b"low")
    elif action == R_BLOCK_TYPE:
        if text_starts(j, b"image") or text_starts(j, b"input_image") or text_starts(j, b"computer"):
            r.media.block = MEDIA_IMAGE
        elif text_is(j, b"file") or text_is(j, b"input_file") or text_is(j, b"document"):
            r.media.block = MEDIA_DOCUMENT
        elif text_starts(j, b"audio") or text_starts(j, b"input_audio"):
            r.media.block = MEDIA_AUDIO
        elif text_starts(j, b"video") or text_starts(j, b"input_video"):
            r.media.block = MEDIA_VIDEO
        elif text_is(j, b"bash_code_execution_output") or text_is(j, b"code_execution_output"):
            r.part_is_output = True
    elif action == R_RESOLUTION:
        if text_is(j, b"MEDIA_RESOLUTION_LOW"):
            r.resolution = 280
        elif text_is(j, b"MEDIA_RESOLUTION_MEDIUM"):
            r.resolution = 560


cdef inline void request_part(Request* r) noexcept nogil:
    """A new part begins: what was said of the last one does not hold."""
    media_forget(&r.media)
    r.file_of_part = r.part_is_output = False


cdef void request_open(Request* r, const Node* node, bint array) noexcept nogil:
    """A container of a known place begins."""
    cdef int action = node.action
    if action == R_ROOT:
        r.object_start = r.json.at + 1
    elif action == R_STREAM_OPTIONS:
        r.options_start = r.json.at
    elif action == R_OVERHEAD:
        if not array:
            if r.prompt_start < 0:
                r.prompt_start = r.json.at
            r.overhead += node.slot
            request_part(r)
    elif action == R_PART or action == R_SYSTEM:
        if action == R_SYSTEM and r.system_start < 0:
            r.system_start = r.json.at
        if not array:
            request_part(r)
    elif action == R_TOOLS:
        if not node.slot:
            if r.tools_start < 0:
                r.tools_start = r.json.at
            r.tools = True
        r.special_start = r.json.at
        r.tool_special = False
    elif action == R_TOOL_OTHER:
        r.hosted = r.tool_special = True
    elif action == R_SPECIAL:
        r.special_start = r.json.at
        r.hosted |= node.slot
    elif action == R_SEARCH:
        r.search = True
        r.search_each |= node.slot
    elif action == R_STORED:
        r.stored |= STORED | node.slot


cdef void request_close(Request* r, const Node* node, bint array) noexcept nogil:
    """A container of a known place has ended."""
    if node.action == R_ROOT:
        r.object_empty = r.json.closed_empty
    elif node.action == R_STREAM_OPTIONS:
        r.options_end = r.json.at
    elif node.action == R_SPECIAL:
        request_special(r, node)
    elif node.action == R_TOOLS:
        if r.tool_special:
            request_special(r, node)
    elif not array:
        media_count(&r.media, &r.sums, &r.json.counter)
        if r.part_is_output and r.file_of_part:
            r.files -= 1        # what a tool made in an earlier turn: its provider takes no content from that file
        r.file_of_part = r.part_is_output = False


@cython.freelist(64)      # one is made for every call
@cython.final
cdef class RequestScanner:
    """Reads one request body in any pieces.

    Strict: what `json.loads` refuses is refused, and so is what two readers could take in two ways (a key that is read
    here twice in its object, however it is escaped and whatever its case). What is not read here passes untouched.
    """

    cdef TokenTable table
    cdef int format
    cdef Request request
    cdef int64_t offset                      # bytes taken
    cdef readonly int error                  # E_* of the first fault, 0 while there is none
    cdef readonly bytes error_param          # name of the field at fault, one of ours, or None
    cdef readonly bytes model                # decoded, 1 to 256 bytes; None while not seen
    cdef readonly int64_t model_start        # offsets in the body of the raw value, quotes included; -1 absent
    cdef readonly int64_t model_end
    cdef readonly int stream                 # -1 absent, 0, 1
    cdef readonly int64_t output_limit       # tokens, the largest of those given; -1 absent
    cdef readonly int64_t choices
    cdef readonly int include_usage          # -1 absent, 0, 1
    cdef readonly int64_t stream_options_start      # offsets of that value, also if it is null; -1 absent
    cdef readonly int64_t stream_options_end
    cdef readonly int64_t object_start       # just behind the opening brace; -1 before it
    cdef readonly bint object_empty          # known once the object has ended
    cdef readonly bint background
    cdef readonly bint priority              # the dearer service tier is asked for
    cdef readonly bint geo                   # ... inference in one place
    cdef readonly int store                  # -1 absent, 0, 1
    cdef readonly bint web_search            # a web search tool is offered to the model
    cdef readonly bint stored_context        # the prompt goes on from something stored upstream: its size is not known here

    def __init__(self, int format, TokenTable table not None):
        if not 0 <= format <= F_OTHER:
            raise ValueError("unknown format")
        self.table = table
        self.reset(format)

    cdef void reset(self, int format):
        """Make ready for another body."""
        cdef Request* r = &self.request
        memset(r, 0, <uint8_t*>r.special_spans - <uint8_t*>r)
        r.json.owner = OWNER_REQUEST
        r.json.strict = True
        r.json.depth_max = r.json.frame_max = JSON_DEPTH_STRICT
        r.json.frames = r.frames
        r.json.text = r.text
        r.json.text_max = MODEL_BYTES_MAX
        r.model_start = r.model_end = r.options_start = r.options_end = r.object_start = -1
        r.tools_start = r.system_start = r.prompt_start = -1
        r.output_limit = -1
        r.choices = 1
        r.stream = r.include_usage = r.store = -1
        r.resolution = 1120
        r.names_files = NAMES_FILES[format]
        json_reset(&r.json, REQUEST_ROOTS[format])
        self.format = format
        self.offset = 0
        self.error_param = None
        self.model = None
        self.publish()

    cdef void publish(self):
        """Show what the machine knows."""
        cdef Request* r = &self.request
        self.model_start = r.model_start
        self.model_end = r.model_end
        self.stream = r.stream
        self.output_limit = r.output_limit
        self.choices = r.choices
        self.include_usage = r.include_usage
        self.stream_options_start = r.options_start
        self.stream_options_end = r.options_end
        self.object_start = r.object_start
        self.object_empty = r.object_empty
        self.background = r.background
        self.priority = r.priority
        self.geo = r.geo
        self.store = r.store
        self.web_search = r.search
        self.stored_context = r.stored != 0
        if r.model_size and self.model is None:
            self.model = r.model[:r.model_size]
        if r.json.error and r.json.error_key and self.error_param is None:
            self.error_param = KEYS[r.json.error_key].text[:KEYS[r.json.error_key].size]
        self.error = r.json.error

    cdef int feed(self, const uint8_t* p, Py_ssize_t n):
        """Take the next bytes of the body. 0, or E_* of the first fault (kept in `error`)."""
        if self.error or n <= 0:
            return self.error
        self.request.json.origin = <uintptr_t>p - <uintptr_t>self.offset
        json_run(&self.request.json, self.table, p, n)
        self.offset += n
        self.publish()
        return self.error

    cdef int finish(self):
        """The body has ended. 0 or E_*."""
        cdef Request* r = &self.request
        if self.error:
            return self.error
        json_end(&r.json, self.table)
        media_count(&r.media, &r.sums, &r.json.counter)
        if not r.json.error and r.object_start < 0:
            json_fault(&r.json, E_INVALID_TYPE, 0)          # null
        if not r.json.error and MODEL_NEEDED[self.format] and not r.model_size:
            json_fault(&r.json, E_MISSING_MODEL, MODEL_KEY)
        if not r.json.error and r.json.misspelt:
            json_fault(&r.json, E_MISSPELT_KEY, r.json.misspelt)
        self.publish()
        return self.error

    cdef tuple usage_request(self, bytes body):
        """The edit (start, end, replacement) of a whole body that makes a chat stream report its usage. The text around it
        stays as the caller wrote it: what is in it is for the provider to judge."""
        cdef Request* r = &self.request
        if r.options_start < 0:
            return r.object_start, r.object_start, b'"stream_options":{"include_usage":true}' + (b"" if r.object_empty else b",")
        if r.usage_size:
            return r.usage_end - r.usage_size, r.usage_end, b"true"
        if PyBytes_AS_STRING(body)[r.options_start] != 123:
            return r.options_start, r.options_end, b'{"include_usage":true}'      # null
        empty = not body[r.options_start + 1:r.options_end - 1].strip(b" \t\r\n")
        return r.options_start + 1, r.options_start + 1, b'"include_usage":true' + (b"" if empty else b",")

    cdef int64_t prefix_start(self, int64_t size) noexcept:
        """Where `size` bytes of what a provider's prompt cache looks at first begin, -1: there are not so many.

        Providers read tools, then instructions, then messages, wherever those stand in the body. What stands behind them in
        it is the same from call to call, but for messages: those only grow at their end.
        """
        cdef Request* r = &self.request
        if r.tools_start >= 0 and self.offset - r.tools_start >= size:
            return r.tools_start
        if r.system_start >= 0 and self.offset - r.system_start >= size:
            return r.system_start
        if r.prompt_start >= 0 and self.offset - r.prompt_start >= size:
            return r.prompt_start
        return -1

    cdef list special_fields(self):
        """Of each field that only Python can judge: its name, and where its value stands in the body."""
        cdef Request* r = &self.request
        cdef int i
        cdef const KnownKey* key
        fields = []
        for i in range(r.specials):
            key = &KEYS[r.special_keys[i]]
            fields.append((key.text[:key.size].decode(), r.special_spans[2 * i], r.special_spans[2 * i + 1]))
        return fields

    cdef tuple stored_names(self, bytes body):
        """Of what its prompt goes on from: whether `conversation` is there, whether `previous_response_id` is, and the name in
        the latter, a JSON string; None: it has another type."""
        cdef Request* r = &self.request
        return (bool(r.stored & STORED_CONVERSATION), bool(r.stored & STORED_PREVIOUS),
                body[r.previous_start:r.previous_end] if r.previous_end else None)

    cdef list file_names(self):
        """Where the names of files stand in the body: (start, end) of the raw values, quotes included."""
        cdef Request* r = &self.request
        cdef int i
        return [(r.file_spans[2 * i], r.file_spans[2 * i + 1]) for i in range(r.files)]

    cdef list file_kinds(self):
        """What each of them is a name of."""
        cdef Request* r = &self.request
        cdef int i
        return ["container" if r.file_slots[i] == FILE_CONTAINER else "file" for i in range(r.files)]

    cdef int64_t prompt_tokens(self):
        """The estimate of the prompt in whole tokens, rounded up."""
        cdef Request* r = &self.request
        cdef int64_t tokens = whole_tokens(&r.json.counter) + r.overhead
        if self.format == F_MESSAGES or self.format == F_COUNT_TOKENS:
            tokens += PRIMING_TOKENS + (TOOLS_TOKENS_ANTHROPIC if r.tools else 0)
        elif self.format == F_CHAT or self.format == F_RESPONSES:
            tokens += PRIMING_TOKENS + (TOOLS_TOKENS_OPENAI if r.tools else 0)
        return clamp_usage(tokens + media_tokens(&r.sums, self.format, self.model, r.resolution))


def scan_request(int format, bytes body not None, TokenTable table not None, tuple cuts=()):
    """Scan one body, fed in pieces cut at the given offsets (ascending); what was found, as a dict."""
    cdef RequestScanner scanner = RequestScanner(format, table)
    cdef const uint8_t* p = body
    cdef Py_ssize_t at = 0
    cdef Py_ssize_t cut
    for cut in (*cuts, len(body)):
        if not at <= cut <= len(body):
            raise ValueError("cuts must ascend and lie in the body")
        scanner.feed(p + at, cut - at)
        at = cut
    scanner.finish()
    return {
        "error": ERROR_CODES[scanner.error],
        "error_param": scanner.error_param,
        "model": scanner.model,
        "model_span": (scanner.model_start, scanner.model_end),
        "stream": scanner.stream,
        "output_limit": scanner.output_limit,
        "choices": scanner.choices,
        "include_usage": scanner.include_usage,
        "stream_options_span": (scanner.stream_options_start, scanner.stream_options_end),
        "usage_request": scanner.usage_request(body) if not scanner.error else None,
        "object_start": scanner.object_start,
        "object_empty": bool(scanner.object_empty),
        "background": bool(scanner.background),
        "priority": bool(scanner.priority),
        "geo": bool(scanner.geo),
        "store": scanner.store,
        "web_search": bool(scanner.web_search),
        "special": scanner.special_fields(),
        "stored_context": bool(scanner.stored_context),
        "stored_names": scanner.stored_names(body),
        "files": scanner.file_names(),
        "file_kinds": scanner.file_kinds(),
        "prompt_tokens": scanner.prompt_tokens(),
        "prefix_start": scanner.prefix_start(PREFIX_BYTES),
        "text": scanner.request.json.counter.acc,
    }
