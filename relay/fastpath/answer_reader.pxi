# An upstream's answer for what Python asks for (files, stored objects, jobs): read by the same strict grammar as a call's.

cdef enum:
    READ_HEAD = 0
    READ_BODY
    READ_END
    READ_BAD


@cython.final
cdef class AnswerReader:
    """Reads one answer, in any pieces: the head, then the body without its framing. A bad one stays bad."""
    cdef FieldTable table
    cdef ResponseHead head
    cdef bytes pending
    cdef Py_ssize_t searched
    cdef Chunked chunked
    cdef int64_t remaining
    cdef int stage

    def __init__(self, FieldTable table not None):
        self.table = table
        self.head = ResponseHead()
        self.pending = b""

    @property
    def begun(self):
        """The head of the answer itself is there (not of a 100 before it)."""
        return self.stage == READ_BODY or self.stage == READ_END

    @property
    def ended(self):
        return self.stage == READ_END

    @property
    def bad(self):
        return self.stage == READ_BAD

    @property
    def status(self):
        return self.head.status

    @property
    def length(self):
        """Content-Length; None: the answer has none."""
        return self.head.length if self.head.framing == B_LENGTH else None

    @property
    def encoding(self):
        return self.head.encoding

    @property
    def lines(self):
        """The field lines that may pass to a client, as they were written."""
        return PyBytes_FromStringAndSize(self.head.passed.data, self.head.passed.size)

    def feed(self, bytes data not None):
        """What of the body these bytes have."""
        if self.stage == READ_HEAD:
            self.pending += data
            data = self.read_head()
        if self.stage != READ_BODY:
            return b""
        return self.read_body(data)

    def end(self):
        """The upstream has closed its side. Whether the answer is whole by that."""
        if self.stage == READ_BODY and self.head.framing == B_CLOSE:
            self.stage = READ_END
        return self.stage == READ_END

    cdef bytes read_head(self):
        """What is behind the head, once it is there."""
        cdef bytes data = self.pending
        cdef const uint8_t* p
        cdef Py_ssize_t end, n
        while True:
            p = <const uint8_t*>PyBytes_AS_STRING(data)
            n = PyBytes_GET_SIZE(data)
            end = find_head_end(p, n, self.searched)
            if end > RESPONSE_HEAD_BYTES_MAX or (end < 0 and (
                    n > RESPONSE_HEAD_BYTES_MAX or (n >= 7 and memcmp(p, b"HTTP/1.", 7) != 0) or bare_lf(p, n))):
                self.stage = READ_BAD
                return b""
            if end < 0:
                self.pending = data
                self.searched = n
                return b""
            if self.head.parse(p, end, self.table) < 0 or self.head.status == 101:
                self.stage = READ_BAD
                return b""
            data = data[end:]
            self.searched = 0
            if self.head.status >= 200:
                break
        self.pending = b""
        self.remaining = self.head.length
        chunked_init(&self.chunked)
        self.stage = READ_END if self.head.framing == B_NONE or (
            self.head.framing == B_LENGTH and not self.remaining) else READ_BODY
        return data

    cdef bytes read_body(self, bytes data):
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef Py_ssize_t i = 0, n = PyBytes_GET_SIZE(data), start, size
        cdef list parts = []
        if self.head.framing == B_CLOSE:
            return data
        if self.head.framing == B_LENGTH:
            if n >= self.remaining:
                self.stage = READ_END
                data = data[:self.remaining]
            self.remaining -= PyBytes_GET_SIZE(data)
            return data
        while i < n and self.chunked.state < K_END:
            i += chunked_next(&self.chunked, p + i, n - i, &start, &size)
            if size:
                parts.append(data[i - size:i])
        if self.chunked.state == K_END:
            self.stage = READ_END
        elif self.chunked.state == K_BAD:
            self.stage = READ_BAD
        return b"".join(parts)
