# Reading a request body as it arrives: what the relay decides by (model, stream, limits) and the estimate of its prompt.

cdef class RequestScanner:
    """Reads one request body in any pieces. Strict: what `json.loads` refuses is refused, and what could be read in two ways too."""

    cdef TokenTable table
    cdef int format
    cdef readonly int error                  # E_* of the first fault, 0 while there is none
    cdef readonly bytes error_param          # name of the field at fault, one of ours, or None
    cdef readonly bytes model                # decoded, at most 256 bytes; None while not seen
    cdef readonly int64_t model_start        # offsets in the body of the raw value, quotes included; -1 absent
    cdef readonly int64_t model_end
    cdef readonly int stream                 # -1 absent, 0, 1
    cdef readonly int64_t output_limit       # tokens, -1 absent
    cdef readonly int64_t choices
    cdef readonly int include_usage          # -1 absent, 0, 1
    cdef readonly int64_t stream_options_start
    cdef readonly int64_t stream_options_end
    cdef readonly int64_t object_start       # just behind the opening brace; -1 before it
    cdef readonly bint object_empty
    cdef readonly bint background
    cdef readonly bint web_search
    cdef readonly bint stored_context        # the prompt goes on from something stored upstream: its size is not known here

    def __init__(self, int format, TokenTable table not None):
        self.table = table
        self.reset(format)

    cdef void reset(self, int format):
        self.format = format
        self.error = E_NONE
        self.error_param = None
        self.model = None
        self.model_start = self.model_end = -1
        self.stream = self.include_usage = -1
        self.output_limit = -1
        self.choices = 1
        self.stream_options_start = self.stream_options_end = -1
        self.object_start = -1
        self.object_empty = True
        self.background = self.web_search = self.stored_context = False

    cdef int feed(self, const uint8_t* p, Py_ssize_t n):
        """Take the next bytes of the body. 0, or E_* of the first fault (kept in `error`)."""
        return self.error

    cdef int finish(self):
        """The body has ended. 0 or E_*."""
        return self.error

    cdef int64_t prompt_tokens(self):
        """The estimate of the prompt in whole tokens, rounded up."""
        return 0
