# Reading an answer on its way to the client, from a copy: usage, text delivered, how it ended.

cdef enum:
    K_JSON = 0            # one JSON document, blank lines before it allowed
    K_SSE = 1
    K_JSON_ARRAY = 2      # Gemini streams without alt=sse


cdef class UsageTap:
    """Reads one answer body in any pieces. Never fails: what cannot be read only means that no usage is found in it."""

    cdef TokenTable table
    cdef int format
    cdef int body_kind
    cdef Usage usage                        # after finish(): normalised, dimensions do not overlap
    cdef readonly bint usage_seen           # the upstream reported usage (explicit zeros count)
    cdef readonly bint output_seen          # ... and its output side is more than a placeholder
    cdef readonly bint terminal_seen
    cdef readonly bint finish_seen          # a finish reason was seen
    cdef readonly bint error_seen
    cdef readonly int64_t events
    cdef readonly bint at_boundary
    cdef readonly bint event_ended
    cdef readonly bint event_usage_only
    cdef readonly int64_t sequence_number   # -1 none

    def __init__(self, int format, int body_kind, TokenTable table not None):
        self.table = table
        self.reset(format, body_kind)

    cdef void reset(self, int format, int body_kind):
        self.format = format
        self.body_kind = body_kind
        memset(&self.usage, 0, sizeof(Usage))
        self.usage_seen = self.output_seen = self.terminal_seen = self.finish_seen = self.error_seen = False
        self.events = 0
        self.at_boundary = True
        self.event_ended = self.event_usage_only = False
        self.sequence_number = -1

    cdef int feed(self, const uint8_t* p, Py_ssize_t n) noexcept:
        """Take the next bytes of the answer."""
        return 0

    cdef Py_ssize_t feed_event(self, const uint8_t* p, Py_ssize_t n) noexcept:
        """Like `feed` for SSE, but stop behind the end of an event. Bytes taken; `event_ended` says whether one ended."""
        return n

    cdef void finish(self) noexcept:
        """The answer has ended, or been cut: make `usage` final."""

    cdef int64_t counted_tokens(self) noexcept:
        """Output tokens by the relay's own count so far, whole tokens rounded up."""
        return 0
