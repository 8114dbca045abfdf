# The places in requests and answers that the relay reads, as nodes of the JSON machine.
#
# Built once at import from the descriptions below; nothing here runs during a call. A node made by `_node` is linked to
# the keys of its parent by `_keys`. Arrays are transparent: unless told otherwise, the elements of an array have its
# own node, so `content` may be a string, a part or a list of parts, as the dialects variously allow.

# Actions of request nodes.
cdef enum:
    R_NONE = 0
    R_ROOT
    R_MODEL
    R_STREAM
    R_LIMIT             # an output limit in tokens
    R_CHOICES
    R_STREAM_OPTIONS
    R_INCLUDE_USAGE
    R_BACKGROUND
    R_SERVICE           # the service tier that is asked for
    R_GEO               # where inference is to be
    R_SEARCH            # its presence asks for web search
    R_SEARCH_TAG        # ... if its string starts with `web`
    R_TOOL_TYPE         # the same of a tool; any other that its client does not run itself is for Python to judge
    R_TOOL_OTHER        # a kind of tool that is for Python to judge
    R_SPECIAL           # a field that is: it may name another model, or cost extra. slot 1: the provider searches for it
    R_STORED            # the prompt goes on from something stored upstream
    R_TOKEN_IDS         # text, or integers that are tokens
    R_OVERHEAD          # each object of it costs `slot` tokens
    R_TOOLS             # slot 1: in the middle of a conversation
    R_SYSTEM            # instructions in front of a conversation: like R_PART
    R_PART              # an object that may hold a file: its parts are put together at its end
    R_MEDIA_URL
    R_MEDIA_DATA
    R_FILE              # the name of a file that the provider keeps; slot: FILE_*
    R_MEDIA_TYPE
    R_SOURCE_TYPE
    R_BLOCK_TYPE
    R_DETAIL
    R_OPAQUE            # encrypted content: counted by its length
    R_RESOLUTION
    R_STORE             # whether the provider keeps the answer

# Where a file is named.
cdef enum:
    FILE_ALONE = 0      # it counts for nothing in the prompt
    FILE_INSIDE         # in a part of the prompt, below another key
    FILE_OF_PART        # by the part itself, whose type may say that it only tells what was made
    FILE_CONTAINER      # not a file: the sandbox in which a tool runs

# Actions of tap nodes.
cdef enum:
    U_NONE = 0
    U_ROOT
    U_TYPE              # `type` of the event
    U_USAGE             # a usage object
    U_NUMBER            # a number of it, kept in `slot`
    U_OUTPUT            # the same, and it is the output side: no placeholder
    U_ITERATIONS
    U_ITERATION
    U_ITERATION_TYPE
    U_ERROR
    U_CHOICES
    U_CHOICE
    U_INDEX
    U_FINISH
    U_END               # its presence ends the answer
    U_DELTA
    U_ITEM_LIST
    U_ITEM
    U_ITEM_TYPE
    U_ACTION_TYPE
    U_SEQUENCE
    U_IMAGE             # each object of it is an image, on image endpoints
    U_IMAGE_PART        # each object of it is an image
    U_MIME
    U_QUERY
    U_DETAIL
    U_MODALITY
    U_DETAIL_COUNT
    U_MODEL
    U_SECONDS           # a duration, on transcriptions
    U_SERVICE           # the service tier that the call was served with
    U_THOUGHT           # a thought, which an event may tell under more than one name; slot: which
    U_ID                # of an object that the provider keeps
    U_NAME              # the model that the answer names
    U_CONTAINER         # of a sandbox that ran code
    U_SEEN              # its presence says that a tool was used; slot: X_*

# Slots of reported numbers, by the names that providers give them.
cdef enum:
    V_PROMPT = 0
    V_COMPLETION
    V_TOTAL
    V_CACHED            # prompt_tokens_details.cached_tokens
    V_CACHE_HIT         # DeepSeek
    V_CACHE_MISS
    V_CACHED_TOP        # Kimi: usage.cached_tokens
    V_CACHE_WRITE
    V_REASONING
    V_CREATED           # Anthropic: cache_creation_input_tokens
    V_CREATED_5M
    V_CREATED_1H
    V_READ
    V_SEARCHES
    V_THOUGHTS          # Gemini: outside candidatesTokenCount
    V_TOOL_PROMPT
    V_IMAGE_TOKENS      # of the output
    V_SECONDS           # of sound, rounded up
    V_AUDIO_IN
    V_AUDIO_OUT
    V_IMAGE_IN
    V_AUDIO_CACHED      # of what was read from a cache
    V_IMAGE_CACHED
    V_COUNT
    # ... of the present entry of Anthropic's usage.iterations
    W_INPUT = V_COUNT
    W_OUTPUT
    W_READ
    W_CREATED
    W_CREATED_5M
    W_CREATED_1H
    W_DETAIL            # Gemini: tokenCount of the present modality
    # What a call used beside tokens of its own model. Such numbers are no report of tokens.
    X_FIRST
    X_SEARCHES = X_FIRST
    X_FILE_SEARCHES
    X_X_SEARCHES
    X_CODE
    X_ATTACHMENTS
    X_MAPS
    X_SOURCES           # of xAI's Live Search
    X_PICTURE_IN        # of the picture model that a text model used
    X_PICTURE_IN_IMAGE
    X_PICTURE_CACHED
    X_PICTURE_OUT
    X_PICTURE_OUT_TEXT
    W_COUNT

cdef int _nodes_used = 2
cdef int _keys_used = 1
cdef int _children[NODE_MAX]

_key_numbers = {}


def _key(str name):
    """The number of a key, made known if it is new."""
    global _keys_used
    cdef bytes text = name.encode()
    cdef Py_ssize_t n = len(text)
    cdef const uint8_t* p = text
    cdef unsigned h
    cdef int k = _key_numbers.get(name, 0)
    if k:
        return k
    k = _keys_used
    if k >= KEY_MAX or not 0 < n <= KEY_BYTES_MAX:
        raise AssertionError("too many keys, or one too long")
    _key_numbers[name] = k
    _keys_used += 1
    KEYS[k].size = <uint8_t>n
    memcpy(KEYS[k].text, p, n)
    h = key_hash(p, n)
    KEYS[k].chain = KEY_HEADS[h]
    KEY_HEADS[h] = <uint16_t>k
    return k


cdef enum:
    STORED = 1                  # bits of what a prompt goes on from
    STORED_PREVIOUS = 2
    STORED_CONVERSATION = 4


def _node(int action=0, int types=T_ANY, int flags=0, int mode=M_SKIP, int slot=0, int rest=NODE_SKIP,
               int elem=-1):
    """A new node; its array elements are of the node `elem`, by default its own."""
    global _nodes_used
    cdef int v = _nodes_used
    if v >= NODE_MAX:
        raise AssertionError("too many nodes")
    _nodes_used += 1
    NODES[v].action = <uint8_t>action
    NODES[v].types = <uint8_t>(types | T_NULL)
    NODES[v].flags = <uint8_t>flags
    NODES[v].mode = <uint8_t>mode
    NODES[v].slot = <uint8_t>slot
    NODES[v].rest = <uint16_t>rest
    NODES[v].elem = <uint16_t>(v if elem < 0 else elem)
    NODES[v].key = 0
    return v


def _keys(int parent, dict children):
    """Link keys to nodes. A name `a|b` stands for two spellings of one key (proto JSON takes both)."""
    cdef int k, child
    for names, node in children.items():
        child = node
        if _children[parent] >= 64:
            raise AssertionError("too many keys in one object")
        for name in names.split("|"):
            k = _key(name)
            if CHILD[parent][k]:
                raise AssertionError("key linked twice: " + name)
            CHILD[parent][k] = <uint16_t>(child | _children[parent] << CHILD_BITS)
            if not NODES[child].key:
                NODES[child].key = <uint16_t>k
        _children[parent] += 1
    NODES[parent].flags |= NF_KEYS


def _link(int parent, str name, int child):
    """Another node for a key that is linked, in a copy."""
    cdef int k = _key(name)
    CHILD[parent][k] = <uint16_t>(child | (CHILD[parent][k] & ~CHILD_MASK))
    NODES[child].key = <uint16_t>k


_texts = []


def _text():
    """Text that counts, wherever it stands."""
    if not _texts:
        _texts.append(_node(mode=M_COUNT))
    return _texts[0]


cdef int REQUEST_ROOTS[F_OTHER + 1]
cdef int TAP_ROOTS[F_OTHER + 1]
cdef int TAP_FIRST_ROOTS[F_OTHER + 1]       # of the first event: the model is named there
cdef uint8_t MODEL_NEEDED[F_OTHER + 1]      # elsewhere the path names it, or the upstream has a default
cdef uint8_t NAMES_FILES[F_OTHER + 1]       # elsewhere `file_id` means nothing to a provider
for _format in (F_CHAT, F_RESPONSES, F_MESSAGES, F_COUNT_TOKENS, F_IMAGES):
    NAMES_FILES[_format] = True
del _format


# Fields by which a request reaches a model beside its own: Anthropic's and LiteLLM's, OpenRouter's.
SECOND_MODELS = ("fallbacks", "models", "route")
_specials = {}


def _special(str name):
    if name not in _specials:
        _specials[name] = _node(R_SPECIAL, flags=NF_OPEN | NF_CLOSE | NF_STRING | NF_SCALAR, elem=NODE_SKIP)
    return _specials[name]


def _request_root(int format, bint model_needed, dict children):
    """The node of a request body, with what every format has."""
    cdef int root = _node(R_ROOT, types=T_OBJECT, flags=NF_OPEN | NF_CLOSE, elem=NODE_SKIP)
    _keys(root, {"model": _node(R_MODEL, types=T_STRING, flags=NF_STRING | NF_SCALAR, mode=M_CAPTURE)})
    _keys(root, children)
    _keys(root, {name: _special(name) for name in SECOND_MODELS})
    REQUEST_ROOTS[format] = root
    MODEL_NEEDED[format] = model_needed
    return root


def _limit():
    return _node(R_LIMIT, types=T_INTEGER, flags=NF_SCALAR)


def _stream_options():
    cdef int node = _node(R_STREAM_OPTIONS, types=T_OBJECT, flags=NF_OPEN | NF_CLOSE | NF_SCALAR)
    _keys(node, {"include_usage": _node(R_INCLUDE_USAGE, types=T_BOOL, flags=NF_SCALAR)})
    return node


_of_tools = {}


def _tool():
    """One definition of a tool, as raw text; the files that a sandbox begins with or a picture's mask are named in it."""
    cdef int tool = _node(flags=NF_RAW, mode=M_COUNT, rest=NODE_RAW)
    cdef int named, sandbox, mask, container
    if not _of_tools:
        named = _node(R_FILE, flags=NF_RAW | NF_STRING | NF_SCALAR, mode=M_COUNT, slot=FILE_ALONE, rest=NODE_RAW)
        container = _node(R_FILE, flags=NF_RAW | NF_STRING | NF_SCALAR, mode=M_COUNT, slot=FILE_CONTAINER, rest=NODE_RAW)
        sandbox = _node(R_FILE, flags=NF_RAW | NF_STRING | NF_SCALAR, mode=M_COUNT, slot=FILE_CONTAINER, rest=NODE_RAW)
        mask = _node(flags=NF_RAW, mode=M_COUNT, rest=NODE_RAW)
        _keys(sandbox, {"file_ids": named, "container_id": container})
        _keys(mask, {"file_id": named})
        _of_tools.update({
            "container": sandbox, "environment": sandbox, "input_image_mask": mask,
            "type": _node(R_TOOL_TYPE, flags=NF_RAW | NF_SCALAR, mode=M_COUNT | M_CAPTURE, rest=NODE_RAW, elem=NODE_RAW),
        })
    _keys(tool, {**_of_tools, "tools": tool})      # `tools`: of a namespace
    return tool


def _tools():
    """Tool definitions: their JSON text counts, as an upper bound of what providers make of it."""
    cdef int tool = _tool()
    cdef int tools = _node(R_TOOLS, types=T_ARRAY | T_OBJECT, flags=NF_OPEN | NF_CLOSE, elem=tool)
    # LiteLLM takes Google's tools beside OpenAI's.
    _keys(tool, {**_google_searches(), **{name: _other_tool() for name in (
        "googleMaps|google_maps", "fileSearch|file_search", "enterpriseWebSearch|enterprise_web_search")}})
    return tools


def _tools_gemini():
    """The same of Google: a key says what a tool is. Those that cost nothing but tokens, or run at the client, and others."""
    cdef int tool = _node(flags=NF_RAW, mode=M_COUNT, rest=_other_tool())
    cdef int tools = _node(R_TOOLS, types=T_ARRAY | T_OBJECT, flags=NF_OPEN | NF_CLOSE, elem=tool, rest=_other_tool())
    known = {
        "functionDeclarations|function_declarations": NODE_RAW, "codeExecution|code_execution": NODE_RAW,
        "urlContext|url_context": NODE_RAW, "computerUse|computer_use": NODE_RAW, **_google_searches(),
    }
    _keys(tool, known)
    _keys(tools, known)       # proto JSON takes one object where a list is meant
    return tools


_google = {}


def _google_searches():
    if not _google:
        search = _node(R_SEARCH, flags=NF_RAW | NF_OPEN | NF_SCALAR, mode=M_COUNT, rest=NODE_RAW, elem=NODE_RAW)
        _google.update({
            "googleSearch|google_search": search,
            "googleSearchRetrieval|google_search_retrieval": search,
        })
    return _google


def _other_tool():
    if "other" not in _specials:
        _specials["other"] = _node(R_TOOL_OTHER, flags=NF_RAW | NF_OPEN | NF_SCALAR, mode=M_COUNT, rest=NODE_RAW,
                                   elem=NODE_RAW)
    return _specials["other"]


def _part():
    """A piece of content in the shapes of OpenAI and Anthropic: what has the same name in both means the same."""
    cdef int part = _node(R_PART, flags=NF_OPEN | NF_CLOSE, mode=M_COUNT)
    cdef int url = _node(R_MEDIA_URL, flags=NF_STRING | NF_SCALAR)
    cdef int data = _node(R_MEDIA_DATA, flags=NF_STRING | NF_SCALAR)
    cdef int mime = _node(R_MEDIA_TYPE, flags=NF_SCALAR, mode=M_CAPTURE)
    cdef int detail = _node(R_DETAIL, flags=NF_SCALAR, mode=M_CAPTURE)
    cdef int opaque = _node(R_OPAQUE, flags=NF_STRING | NF_SCALAR)
    cdef int named = _node(R_FILE, flags=NF_STRING | NF_SCALAR, slot=FILE_INSIDE)
    cdef int text = _text()
    cdef int image = _node(R_MEDIA_URL, flags=NF_STRING | NF_SCALAR)
    cdef int source = _node(R_NONE)
    cdef int audio = _node(R_NONE)
    cdef int file = _node(R_NONE)
    cdef int call = _node(R_NONE)
    cdef int item = _node(R_NONE)
    _keys(image, {"url": url, "detail": detail, "data": data, "mime_type": mime})
    _keys(source, {"type": _node(R_SOURCE_TYPE, flags=NF_SCALAR, mode=M_CAPTURE), "media_type": mime,
                   "data": _node(R_MEDIA_DATA, flags=NF_STRING | NF_SCALAR, slot=1),
                   "url": url, "file_id": named, "content": part})
    _keys(audio, {"data": data, "format": _node(R_MEDIA_TYPE, flags=NF_SCALAR, mode=M_CAPTURE, slot=1)})
    _keys(file, {"file_data": url, "file_id": named, "file_url": url, "filename": text})
    _keys(call, {"name": text, "arguments": NODE_RAW, "input": NODE_RAW})
    _keys(part, {
        "type": _node(R_BLOCK_TYPE, flags=NF_SCALAR, mode=M_CAPTURE),
        "text": text, "refusal": text, "thinking": text, "reasoning": text, "reasoning_content": text,
        "content": part, "output": part, "summary": part, "title": text, "context": text, "code": text, "query": text,
        "name": text, "arguments": NODE_RAW, "input": NODE_RAW, "action": NODE_RAW,
        "tools": _node(R_TOOLS, flags=NF_RAW | NF_OPEN | NF_CLOSE, mode=M_COUNT, rest=NODE_RAW, slot=1, elem=_tool()),
        "outputs": NODE_RAW, "results": NODE_RAW, "queries": NODE_RAW,
        "tool_calls": item, "function_call": call,
        "image_url": image, "video_url": image, "audio_url": image, "detail": detail,
        "source": source, "input_audio": audio, "file": file, "image_file": file,
        "file_data": url, "file_id": _node(R_FILE, flags=NF_STRING | NF_SCALAR, slot=FILE_OF_PART), "file_url": url, "filename": text, "result": data,
        "data": opaque, "encrypted_content": opaque,
    })
    _keys(item, {"function": call, "custom": call})
    return part


def _copy(int node, int action, int types, int flags, int slot, int elem):
    """Another node with the same keys."""
    cdef int copy = _node(action, types=types, flags=flags | (NODES[node].flags & NF_KEYS), mode=NODES[node].mode,
                          slot=slot, elem=elem)
    memcpy(CHILD[copy], CHILD[node], sizeof(CHILD[node]))
    _children[copy] = _children[node]
    return copy


def _describe_requests():
    cdef int part = _part()
    cdef int message = _copy(part, R_OVERHEAD, T_ANY, NF_OPEN | NF_CLOSE | NF_STRING, 4, -1)
    cdef int system = _copy(part, R_SYSTEM, T_ANY, NF_OPEN | NF_CLOSE | NF_STRING, 0, -1)
    cdef int messages = _node(R_NONE, types=T_ARRAY, elem=message)
    cdef int prompt = _node(R_TOKEN_IDS, flags=NF_SCALAR, mode=M_COUNT)
    cdef int search = _node(R_SEARCH, flags=NF_OPEN | NF_SCALAR)
    cdef int stored = _node(R_STORED, flags=NF_OPEN | NF_SCALAR)
    cdef int previous = _node(R_STORED, flags=NF_OPEN | NF_STRING | NF_SCALAR, slot=STORED_PREVIOUS)
    cdef int conversation = _node(R_STORED, flags=NF_OPEN | NF_SCALAR, slot=STORED_CONVERSATION)
    cdef int stream = _node(R_STREAM, types=T_BOOL, flags=NF_SCALAR)
    cdef int options = _stream_options()
    cdef int tools = _tools()
    cdef int choices = _node(R_CHOICES, types=T_INTEGER, flags=NF_SCALAR)
    cdef int best = _node(R_CHOICES, types=T_INTEGER, flags=NF_SCALAR)
    cdef int max_tokens = _limit()
    cdef int max_completion = _limit()
    cdef int text = _text()
    cdef int service = _node(R_SERVICE, flags=NF_SCALAR, mode=M_CAPTURE)
    cdef int root, container, format_node, gemini_part, turn, blob, mask, named, plugins

    plugins = _copy(_special("plugins"), R_SPECIAL, T_ANY, NF_OPEN | NF_CLOSE | NF_STRING | NF_SCALAR, 0, _node(R_NONE))
    _keys(NODES[plugins].elem, {"id": _node(R_SEARCH_TAG, flags=NF_SCALAR, mode=M_CAPTURE)})
    root = _request_root(F_CHAT, True, {
        "messages": messages,
        "stream": stream, "stream_options": options,
        "max_tokens": max_tokens, "max_completion_tokens": max_completion, "n": choices,
        "service_tier": service,
        "tools": tools, "functions": _node(R_TOOLS, flags=NF_OPEN, elem=NODE_RAW),
        "response_format": NODE_RAW, "prediction": part,
        "web_search_options": _node(R_SEARCH, flags=NF_OPEN | NF_SCALAR, slot=1), "search_parameters": _node(
            R_SPECIAL, flags=NF_OPEN | NF_CLOSE | NF_STRING | NF_SCALAR, elem=NODE_SKIP, slot=1),
        "enable_search": search, "plugins": plugins, "compound_custom": _special("compound_custom"),
    })

    _request_root(F_COMPLETIONS, True, {
        "prompt": prompt, "suffix": text, "stream": stream, "stream_options": options,
        "max_tokens": max_tokens, "max_completion_tokens": max_completion, "n": choices, "best_of": best,
    })

    format_node = _node(R_NONE)
    _keys(format_node, {"format": NODE_RAW})
    container = _node(R_NONE)
    _keys(container, {"variables": part, "id": stored})
    _request_root(F_RESPONSES, True, {
        "input": message, "instructions": system, "stream": stream, "stream_options": options,
        "max_output_tokens": _limit(), "background": _node(R_BACKGROUND, types=T_BOOL, flags=NF_SCALAR),
        "service_tier": service,
        "tools": tools, "text": format_node, "prompt": container,
        "previous_response_id": previous, "conversation": conversation,
        "store": _node(R_STORE, flags=NF_SCALAR), "plugins": plugins,
    })

    _request_root(F_EMBEDDINGS, True, {"input": prompt, "stream": stream})

    named = _node(R_FILE, flags=NF_STRING | NF_SCALAR, slot=FILE_CONTAINER)
    _keys(named, {"id": _node(R_FILE, flags=NF_STRING | NF_SCALAR, slot=FILE_CONTAINER)})
    _request_root(F_MESSAGES, True, {
        "messages": messages, "system": system, "stream": stream,
        "max_tokens": max_tokens, "tools": tools, "output_format": NODE_RAW, "output_config": NODE_RAW,
        "speed": _node(R_SERVICE, flags=NF_SCALAR, mode=M_CAPTURE),
        "inference_geo": _node(R_GEO, flags=NF_SCALAR, mode=M_CAPTURE), "container": named,
    })
    REQUEST_ROOTS[F_COUNT_TOKENS] = REQUEST_ROOTS[F_MESSAGES]
    MODEL_NEEDED[F_COUNT_TOKENS] = True

    gemini_part = _node(R_PART, flags=NF_OPEN | NF_CLOSE, mode=M_COUNT)
    blob = _node(R_NONE)
    _keys(blob, {
        "mimeType|mime_type": _node(R_MEDIA_TYPE, flags=NF_SCALAR, mode=M_CAPTURE),
        "data": _node(R_MEDIA_DATA, flags=NF_STRING | NF_SCALAR),
        "fileUri|file_uri": _node(R_MEDIA_URL, flags=NF_STRING | NF_SCALAR),
    })
    container = _node(R_NONE)
    _keys(container, {"name": text, "args": NODE_RAW, "response": NODE_RAW, "parts": gemini_part})
    format_node = _node(R_NONE)
    _keys(format_node, {"code": text, "output": text})
    _keys(gemini_part, {
        "text": text, "inlineData|inline_data": blob, "fileData|file_data": blob,
        "functionCall|function_call": container, "functionResponse|function_response": container,
        "executableCode|executable_code": format_node, "codeExecutionResult|code_execution_result": format_node,
    })
    turn = _node(R_OVERHEAD, flags=NF_OPEN, mode=M_COUNT, slot=2)
    _keys(turn, {"parts": gemini_part})
    container = _node(R_NONE, types=T_OBJECT)
    _keys(container, {
        # Proto JSON writes a number as 100, 100.0 or "100".
        "maxOutputTokens|max_output_tokens": _node(R_LIMIT, types=T_INTEGER | T_NUMBER | T_STRING, flags=NF_SCALAR, mode=M_CAPTURE),
        "candidateCount|candidate_count": _node(R_CHOICES, types=T_INTEGER | T_NUMBER | T_STRING, flags=NF_SCALAR, mode=M_CAPTURE),
        "responseSchema|response_schema": NODE_RAW, "responseJsonSchema|response_json_schema": NODE_RAW,
        "mediaResolution|media_resolution": _node(R_RESOLUTION, flags=NF_SCALAR, mode=M_CAPTURE),
        "routingConfig|routing_config": _special("routingConfig"),
        "modelSelectionConfig|model_selection_config": _special("modelSelectionConfig"),
    })
    gemini = {
        "contents": _copy(turn, R_OVERHEAD, T_ARRAY | T_OBJECT, NF_OPEN, 2, turn),
        "systemInstruction|system_instruction": turn, "tools": _tools_gemini(),
        "generationConfig|generation_config": container, "cachedContent|cached_content": stored,
        "serviceTier|service_tier": service,
    }
    _request_root(F_GENERATE, False, gemini)
    root = _node(R_NONE)
    _keys(root, gemini)
    _request_root(F_GEMINI_COUNT, False, {**gemini, "generateContentRequest|generate_content_request": root})
    container = _node(R_NONE)
    _keys(container, {"content": turn})
    _request_root(F_GEMINI_EMBED, False, {"content": turn, "requests": container})

    _request_root(F_MODERATIONS, False, {"input": part})
    _request_root(F_RERANK, True, {"query": part, "documents": part})
    mask = _node(R_NONE)
    _keys(mask, {"file_id": _node(R_FILE, flags=NF_STRING | NF_SCALAR, slot=FILE_ALONE)})
    _request_root(F_IMAGES, True, {
        "prompt": text, "n": choices, "stream": stream,
        "image": _node(R_MEDIA_URL, flags=NF_STRING | NF_SCALAR), "images": part, "mask": mask, "markup": mask,
    })
    _request_root(F_SPEECH, True, {"input": text, "instructions": text})
    _request_root(F_TRANSCRIPTION, False, {"stream": stream})
    _request_root(F_OTHER, False, {"stream": stream})


_shared = {}      # scalars of answers that are read the same way have one node: there are 256


def _scalar(int action, int slot, int mode):
    if (action, slot, mode) not in _shared:
        _shared[action, slot, mode] = _node(action, flags=NF_SCALAR, mode=mode, slot=slot, elem=NODE_SKIP)
    return _shared[action, slot, mode]


def _value(int slot, int action=U_NUMBER):
    return _scalar(action, slot, M_SKIP)


def _tag(int action, int slot=0):
    return _scalar(action, slot, M_CAPTURE)


_made = {}


def _sides():
    """What a usage object in OpenAI's shape says of prompt and answer."""
    cdef int prompt, completion, cached
    if "prompt" not in _made:
        prompt = _made["prompt"] = _node(U_NONE)
        completion = _made["completion"] = _node(U_NONE)
        cached = _node(U_NONE)
        # What relays of several providers call a write to a cache: OpenRouter, LiteLLM, new-api.
        _keys(prompt, {
            "cached_tokens": _value(V_CACHED), "cache_write_tokens": _value(V_CACHE_WRITE),
            "cache_creation_input_tokens": _value(V_CACHE_WRITE), "cache_creation_tokens": _value(V_CACHE_WRITE),
            "cached_creation_tokens": _value(V_CACHE_WRITE), "cached_tokens_details": cached,
            "cache_creation_token_details": _ages(), "cache_write_tokens_details": _ages(),
            "audio_tokens": _value(V_AUDIO_IN), "image_tokens": _value(V_IMAGE_IN),
        })
        _keys(cached, {"audio_tokens": _value(V_AUDIO_CACHED), "image_tokens": _value(V_IMAGE_CACHED)})
        _keys(completion, {"reasoning_tokens": _value(V_REASONING), "audio_tokens": _value(V_AUDIO_OUT),
                           "image_tokens": _value(V_IMAGE_TOKENS)})
    return _made["prompt"], _made["completion"]


def _usage_openai(int top):
    """The usage object in OpenAI's shape and all its variants."""
    cdef int usage = _node(U_USAGE, flags=NF_OPEN, slot=top, elem=NODE_SKIP)
    prompt, completion = _sides()
    _keys(usage, {
        "prompt_tokens": _value(V_PROMPT), "input_tokens": _value(V_PROMPT),
        "completion_tokens": _value(V_COMPLETION, U_OUTPUT), "output_tokens": _value(V_COMPLETION, U_OUTPUT),
        "total_tokens": _value(V_TOTAL),
        "prompt_tokens_details": prompt, "input_tokens_details": prompt, "input_token_details": prompt,
        "completion_tokens_details": completion, "output_tokens_details": completion, "output_token_details": completion,
        "prompt_cache_hit_tokens": _value(V_CACHE_HIT), "prompt_cache_miss_tokens": _value(V_CACHE_MISS),
        "cached_tokens": _value(V_CACHED_TOP), "num_search_queries": _value(V_SEARCHES),
        "num_sources_used": _value(X_SOURCES),
        "seconds": _value(V_SECONDS, U_SECONDS),
        "cache_read_input_tokens": _value(V_READ), "cache_creation_input_tokens": _value(V_CREATED),
        "claude_cache_creation_5_m_tokens": _value(V_CREATED_5M), "claude_cache_creation_1_h_tokens": _value(V_CREATED_1H),
        "server_side_tool_usage_details": _uses(), "server_tool_use": _uses(), "tool_usage": _uses(),
        "plugins": _uses(), "x_tools": _uses(),
    })
    return usage


def _ages():
    """How long what was written to a cache is kept: OpenAI's twelve hours are priced as an hour."""
    if "ages" not in _made:
        _made["ages"] = _node(U_NONE)
        _keys(_made["ages"], {
            "ephemeral_5m_input_tokens": _value(V_CREATED_5M), "ttl_30m_tokens": _value(V_CREATED_5M),
            "ephemeral_1h_input_tokens": _value(V_CREATED_1H), "ttl_12h_tokens": _value(V_CREATED_1H),
        })
    return _made["ages"]


def _uses():
    """How often tools were used that the provider runs, by all of its names and those of relays; and the tokens of a
    picture model behind one: OpenAI, xAI, OpenRouter, Qwen, Volcengine."""
    cdef int uses, search, pictures, details
    if "uses" not in _made:
        uses = _node(U_NONE)
        search = _node(U_NUMBER, flags=NF_SCALAR, slot=X_SEARCHES, elem=NODE_SKIP)
        pictures = _node(U_NONE)
        details = _node(U_NONE)
        _keys(search, {"num_requests": _value(X_SEARCHES), "count": _value(X_SEARCHES)})
        _keys(details, {"image_tokens": _value(X_PICTURE_IN_IMAGE), "cached_tokens": _value(X_PICTURE_CACHED)})
        _keys(pictures, {"input_tokens": _value(X_PICTURE_IN), "input_tokens_details": details,
                         "cached_tokens": _value(X_PICTURE_CACHED), "output_tokens": _value(X_PICTURE_OUT)})
        details = _node(U_NONE)
        _keys(details, {"text_tokens": _value(X_PICTURE_OUT_TEXT)})
        _keys(pictures, {"output_tokens_details": details})
        _keys(uses, {
            "web_search": search, "search": search, "image_gen": pictures,
            "web_search_calls": _value(X_SEARCHES), "web_search_requests": _value(X_SEARCHES),
            "x_search_calls": _value(X_X_SEARCHES), "code_interpreter_calls": _value(X_CODE),
            "code_execution_calls": _value(X_CODE), "file_search_calls": _value(X_FILE_SEARCHES),
            "collections_search_calls": _value(X_FILE_SEARCHES), "document_search_calls": _value(X_FILE_SEARCHES),
            "attachment_search_calls": _value(X_ATTACHMENTS),
        })
        _made["uses"] = uses
    return _made["uses"]


def _iterations():
    cdef int entry, ages
    if "iterations" not in _made:
        entry = _node(U_ITERATION, flags=NF_OPEN | NF_CLOSE)
        ages = _node(U_NONE)
        _keys(ages, {"ephemeral_5m_input_tokens": _value(W_CREATED_5M), "ephemeral_1h_input_tokens": _value(W_CREATED_1H)})
        _keys(entry, {
            "type": _tag(U_ITERATION_TYPE), "input_tokens": _value(W_INPUT), "output_tokens": _value(W_OUTPUT),
            "cache_read_input_tokens": _value(W_READ), "cache_creation_input_tokens": _value(W_CREATED),
            "cache_creation": ages,
        })
        _made["iterations"] = _node(U_ITERATIONS, flags=NF_OPEN, elem=entry)
    return _made["iterations"]


def _usage_anthropic(int output_action):
    cdef int usage = _node(U_USAGE, flags=NF_OPEN, elem=NODE_SKIP)
    _keys(usage, {
        "input_tokens": _value(V_PROMPT), "output_tokens": _value(V_COMPLETION, output_action),
        "cache_read_input_tokens": _value(V_READ), "cache_creation_input_tokens": _value(V_CREATED),
        "cache_creation": _ages(), "server_tool_use": _uses(), "service_tier": _tag(U_SERVICE), "speed": _tag(U_SERVICE),
        "iterations": _iterations(),
    })
    return usage


def _container_id():
    if "container" not in _made:
        _made["container"] = _node(U_CONTAINER, flags=NF_STRING | NF_SCALAR, mode=M_HASH)
    return _made["container"]


def _item(bint with_text):
    """An output item of the Responses API; with its text where no deltas gave it before."""
    cdef int item = _node(U_ITEM, flags=NF_OPEN | NF_CLOSE)
    cdef int action = _node(U_NONE)
    cdef int content = _node(U_NONE)
    _keys(action, {"type": _tag(U_ACTION_TYPE)})
    _keys(item, {"type": _tag(U_ITEM_TYPE), "action": action, "container_id": _container_id()})
    environment = _node(U_NONE)
    _keys(environment, {"container_id": _container_id()})
    _keys(item, {"environment": environment})
    if with_text:
        _keys(content, {"text": _text(), "refusal": _text()})
        _keys(item, {"content": content, "summary": content, "name": _text(), "arguments": _text(), "input": _text(),
                     "code": _text()})
    return item


def _describe_openai_answers():
    """One description for chat, completions, Responses, embeddings, images and the rest: their keys do not collide."""
    cdef int root = _node(U_ROOT, flags=NF_OPEN | NF_CLOSE)
    cdef int text = _text()
    cdef int error = _node(U_ERROR, flags=NF_OPEN | NF_SCALAR)
    cdef int usage = _usage_openai(1)
    cdef int nested = _usage_openai(0)
    cdef int choice = _node(U_CHOICE, flags=NF_OPEN)
    cdef int delta = _node(U_NONE)
    cdef int thought = _node(U_NONE)
    cdef int told = _node(U_THOUGHT, flags=NF_STRING, mode=M_COUNT, slot=3)
    cdef int call = _node(U_NONE)
    cdef int function = _node(U_NONE)
    cdef int audio = _node(U_NONE)
    cdef int part = _node(U_NONE, mode=M_COUNT)
    cdef int groq = _node(U_NONE)
    cdef int response = _node(U_NONE)
    cdef int meta = _node(U_NONE)
    cdef int billed = _node(U_NONE)
    cdef int format
    _keys(function, {"name": text, "arguments": text, "input": text})
    _keys(call, {"function": function, "custom": function})
    _keys(audio, {"transcript": text})
    _keys(part, {"text": text, "refusal": text, "thinking": part})
    _keys(thought, {"text": told, "summary": told})
    _keys(delta, {"content": part, "reasoning_content": _node(U_THOUGHT, flags=NF_STRING, mode=M_COUNT, slot=1),
                  "reasoning": _node(U_THOUGHT, flags=NF_STRING, mode=M_COUNT, slot=2), "reasoning_details": thought,
                  "refusal": text, "tool_calls": call,
                  "function_call": function, "audio": audio, "images": _node(U_IMAGE_PART, flags=NF_OPEN)})
    _keys(choice, {"index": _value(0, U_INDEX), "delta": delta, "message": delta, "text": text, "usage": nested,
                   "finish_reason": _tag(U_FINISH)})
    _keys(groq, {"usage": nested, "error": error})
    _keys(response, {"usage": nested, "error": error, "service_tier": _tag(U_SERVICE), "tool_usage": _uses(),
                     "output": _node(U_ITEM_LIST, flags=NF_OPEN, elem=_item(False))})
    _keys(root, {
        "usage": usage, "choices": _node(U_CHOICES, flags=NF_OPEN, elem=choice), "x_groq": groq, "error": error,
        "type": _tag(U_TYPE), "response": response, "delta": _node(U_DELTA, flags=NF_STRING),
        "item": _item(False), "output": _node(U_ITEM_LIST, flags=NF_OPEN, elem=_item(True)),
        "sequence_number": _value(0, U_SEQUENCE), "service_tier": _tag(U_SERVICE), "data": _node(U_IMAGE, flags=NF_OPEN),
        "duration": _value(V_SECONDS, U_SECONDS), "meta": meta, "tool_usage": _uses(),
    })
    # Cohere's rerank bills searches.
    _keys(meta, {"billed_units": billed})
    _keys(billed, {"search_units": _value(V_SEARCHES)})
    for format in range(F_OTHER + 1):
        TAP_ROOTS[format] = root
    # Responses are objects that their owner may ask for again.
    _keys(response, {"id": _tag(U_ID)})
    root = _copy(root, U_ROOT, T_ANY, NF_OPEN | NF_CLOSE, 0, -1)
    _keys(root, {"id": _tag(U_ID)})
    TAP_ROOTS[F_RESPONSES] = root
    response = _copy(response, U_NONE, T_ANY, 0, 0, -1)
    _keys(response, {"model": _tag(U_NAME)})
    for format in range(F_OTHER + 1):
        root = _copy(TAP_ROOTS[format], U_ROOT, T_ANY, NF_OPEN | NF_CLOSE, 0, -1) if format in (F_CHAT, F_RESPONSES) \
            else TAP_FIRST_ROOTS[F_CHAT]
        TAP_FIRST_ROOTS[format] = root
        if format == F_CHAT:
            _keys(root, {"model": _tag(U_NAME)})
        elif format == F_RESPONSES:
            _keys(root, {"model": _tag(U_NAME)})
            _link(root, "response", response)


def _describe_anthropic_answers():
    cdef int root = _node(U_ROOT, flags=NF_OPEN | NF_CLOSE)
    cdef int text = _text()
    cdef int block = _node(U_NONE)
    cdef int message = _node(U_NONE)
    cdef int delta = _node(U_NONE)
    # What the model wrote: the results of the provider's own tools are not its output.
    _keys(block, {"text": text, "thinking": text, "name": text, "input": NODE_RAW})
    _keys(message, {"usage": _usage_anthropic(U_NUMBER)})
    _keys(delta, {"text": text, "thinking": text, "partial_json": text, "stop_reason": _tag(U_FINISH)})
    _keys(root, {
        "type": _tag(U_TYPE), "usage": _usage_anthropic(U_OUTPUT), "message": message, "delta": delta,
        "content": block, "stop_reason": _tag(U_FINISH), "error": _node(U_ERROR, flags=NF_OPEN | NF_SCALAR),
    })
    # At the start of a block `input` is an empty placeholder; its text comes in deltas.
    block = _node(U_NONE)
    _keys(block, {"text": text, "thinking": text, "name": text})
    sandbox = _node(U_SEEN, flags=NF_OPEN, slot=X_CODE)
    name = _node(U_CONTAINER, flags=NF_STRING | NF_SCALAR, mode=M_HASH, slot=1)
    _keys(sandbox, {"id": name})
    kept = _node(U_NONE)
    _keys(kept, {"id": name})
    _keys(message, {"container": kept})
    _keys(root, {"content_block": block, "container": sandbox})
    _keys(delta, {"container": sandbox})
    TAP_ROOTS[F_MESSAGES] = TAP_ROOTS[F_COUNT_TOKENS] = root
    message = _copy(message, U_NONE, T_ANY, 0, 0, -1)
    _keys(message, {"model": _tag(U_NAME)})
    root = _copy(root, U_ROOT, T_ANY, NF_OPEN | NF_CLOSE, 0, -1)
    _keys(root, {"model": _tag(U_NAME)})
    _link(root, "message", message)
    TAP_FIRST_ROOTS[F_MESSAGES] = TAP_FIRST_ROOTS[F_COUNT_TOKENS] = root


def _describe_gemini_answers():
    cdef int root = _node(U_ROOT, flags=NF_OPEN | NF_CLOSE)
    cdef int text = _text()
    cdef int usage = _node(U_USAGE, flags=NF_OPEN, elem=NODE_SKIP)
    cdef int detail = _node(U_DETAIL, flags=NF_OPEN | NF_CLOSE)
    cdef int prompt_detail = _node(U_DETAIL, flags=NF_OPEN | NF_CLOSE, slot=1)
    cdef int cache_detail = _node(U_DETAIL, flags=NF_OPEN | NF_CLOSE, slot=2)
    cdef int chunk = _node(U_NONE)
    cdef int candidate = _node(U_NONE)
    cdef int content = _node(U_NONE)
    cdef int part = _node(U_NONE)
    cdef int call = _node(U_NONE)
    cdef int code = _node(U_NONE)
    cdef int blob = _node(U_NONE)
    cdef int grounding = _node(U_NONE)
    cdef int feedback = _node(U_NONE)
    _keys(detail, {"modality": _tag(U_MODALITY), "tokenCount": _value(W_DETAIL)})
    _keys(prompt_detail, {"modality": _tag(U_MODALITY), "tokenCount": _value(W_DETAIL)})
    _keys(cache_detail, {"modality": _tag(U_MODALITY), "tokenCount": _value(W_DETAIL)})
    _keys(usage, {
        "promptTokenCount": _value(V_PROMPT), "candidatesTokenCount": _value(V_COMPLETION, U_OUTPUT),
        "cachedContentTokenCount": _value(V_CACHED), "thoughtsTokenCount": _value(V_THOUGHTS, U_OUTPUT),
        "toolUsePromptTokenCount": _value(V_TOOL_PROMPT), "totalTokenCount": _value(V_TOTAL),
        "candidatesTokensDetails": detail, "promptTokensDetails": prompt_detail,
        "cacheTokensDetails": cache_detail,
        "serviceTier": _tag(U_SERVICE), "trafficType": _tag(U_SERVICE),
    })
    _keys(call, {"name": text, "args": NODE_RAW})
    _keys(code, {"code": text})
    _keys(blob, {"mimeType": _tag(U_MIME)})
    _keys(part, {"text": text, "functionCall": call, "executableCode": code, "inlineData": blob})
    _keys(content, {"parts": part})
    query = _node(U_QUERY, flags=NF_STRING | NF_SCALAR, mode=M_HASH)
    _keys(chunk, {"maps": _node(U_SEEN, flags=NF_OPEN, slot=X_MAPS)})
    _keys(grounding, {"webSearchQueries": query, "imageSearchQueries": query, "groundingChunks": chunk})
    _keys(candidate, {"content": content, "finishReason": _node(U_END, flags=NF_SCALAR), "groundingMetadata": grounding})
    _keys(feedback, {"blockReason": _node(U_END, flags=NF_SCALAR)})
    _keys(root, {
        "usageMetadata": usage, "candidates": candidate, "promptFeedback": feedback, "modelVersion": _tag(U_MODEL),
        "error": _node(U_ERROR, flags=NF_OPEN | NF_SCALAR),
    })
    TAP_ROOTS[F_GENERATE] = TAP_ROOTS[F_GEMINI_COUNT] = TAP_ROOTS[F_GEMINI_EMBED] = root
    TAP_FIRST_ROOTS[F_GENERATE] = TAP_FIRST_ROOTS[F_GEMINI_COUNT] = TAP_FIRST_ROOTS[F_GEMINI_EMBED] = root


NODES[NODE_SKIP].types = T_ANY
NODES[NODE_RAW].types = T_ANY
NODES[NODE_RAW].flags = NF_RAW
NODES[NODE_RAW].mode = M_COUNT
NODES[NODE_RAW].elem = NODE_RAW
NODES[NODE_RAW].rest = NODE_RAW
cdef int MODEL_KEY = _key("model")
_describe_requests()
_describe_openai_answers()
_describe_anthropic_answers()
_describe_gemini_answers()

# Only the tables are needed from here on.
del _key, _node, _keys, _text, _request_root, _limit, _stream_options, _tool, _tools, _part, _copy
del _special, _specials, _of_tools, _sides, _iterations, _tools_gemini, _google, _google_searches, _other_tool, _link, _texts, _made, _ages, _uses, _container_id
del _describe_requests, _shared, _scalar, _value, _tag, _usage_openai, _usage_anthropic, _item
del _describe_openai_answers, _describe_anthropic_answers, _describe_gemini_answers
