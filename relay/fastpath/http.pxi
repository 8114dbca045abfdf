# HTTP/1.1 heads and chunked framing, strictly after RFC 9112. Both directions share the field-line rules:
# every line ends in CRLF, a name is a token directly followed by a colon, a value holds no control byte but HTAB.
# What breaks a rule is refused: a request is then left to aiohttp's parser, an answer counts as garbage.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif
    /* The first byte of p..end that is neither visible ASCII nor a blank; else end. */
    static inline const uint8_t *relay_scan_value(const uint8_t *p, const uint8_t *end)
    {
    #if defined(__SSE2__)
        /* signed: what is not ASCII is below the space as well */
        const __m128i space = _mm_set1_epi8(0x20), delete = _mm_set1_epi8(0x7f), tab = _mm_set1_epi8('\\t');
        while (end - p >= 16) {
            __m128i v = _mm_loadu_si128((const __m128i *)p);
            __m128i m = _mm_or_si128(_mm_andnot_si128(_mm_cmpeq_epi8(v, tab), _mm_cmplt_epi8(v, space)), _mm_cmpeq_epi8(v, delete));
            int bits = _mm_movemask_epi8(m);
            if (bits)
                return p + __builtin_ctz((unsigned)bits);
            p += 16;
        }
    #endif
        while (p < end && ((*p >= 0x20 && *p < 0x7f) || *p == '\\t'))
            p++;
        return p;
    }
    /* The first byte of p..end that is no letter, digit, - or _, of which most names are; or any before that. */
    static inline const uint8_t *relay_scan_name(const uint8_t *p, const uint8_t *end)
    {
    #if defined(__SSE2__)
        const __m128i fold = _mm_set1_epi8(0x20), before_a = _mm_set1_epi8('a' - 1), after_z = _mm_set1_epi8('z' + 1);
        const __m128i before_0 = _mm_set1_epi8('0' - 1), after_9 = _mm_set1_epi8('9' + 1);
        const __m128i hyphen = _mm_set1_epi8('-'), line = _mm_set1_epi8('_');
        while (end - p >= 16) {
            __m128i v = _mm_loadu_si128((const __m128i *)p), low = _mm_or_si128(v, fold);
            __m128i letter = _mm_and_si128(_mm_cmpgt_epi8(low, before_a), _mm_cmplt_epi8(low, after_z));
            __m128i digit = _mm_and_si128(_mm_cmpgt_epi8(v, before_0), _mm_cmplt_epi8(v, after_9));
            __m128i other = _mm_or_si128(_mm_cmpeq_epi8(v, hyphen), _mm_cmpeq_epi8(v, line));
            int bits = _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(letter, digit), other)) ^ 0xFFFF;
            if (bits)
                return p + __builtin_ctz((unsigned)bits);
            p += 16;
        }
    #endif
        return p;
    }
    /* Whether a name of token characters (RFC 9110 5.6.2) equals, in any case, one that was folded by setting 0x20 in each
       byte. Of the token characters that makes only letters of both cases equal, and ^ to ~. */
    static inline int relay_same_name(const uint8_t *name, const uint8_t *folded, long size)
    {
        uint64_t a, b;
        if (size >= 8) {
            long i = 0;
            for (;;) {
                memcpy(&a, name + i, 8);
                memcpy(&b, folded + i, 8);
                if ((a | 0x2020202020202020u) != b)
                    return 0;
                if (i == size - 8)
                    return 1;
                i = i + 16 <= size ? i + 8 : size - 8;
            }
        }
        for (long i = 0; i < size; i++)
            if ((name[i] | 0x20) != folded[i])
                return 0;
        return 1;
    }
    """
    const uint8_t* relay_scan_name(const uint8_t* p, const uint8_t* end) noexcept nogil
    const uint8_t* relay_scan_value(const uint8_t* p, const uint8_t* end) noexcept nogil
    bint relay_same_name(const uint8_t* name, const uint8_t* folded, long size) noexcept nogil

cdef Py_ssize_t REQUEST_HEAD_BYTES_MAX = 16384
cdef Py_ssize_t RESPONSE_HEAD_BYTES_MAX = 65536
cdef Py_ssize_t FIELD_LINE_BYTES_MAX = 8190   # the limit of aiohttp's parser, so that both ways refuse the same
cdef int FIELDS_MAX = 64

cdef uint8_t[256] IS_TOKEN      # RFC 9110 5.6.2 tchar
cdef uint8_t[256] IS_VALUE      # visible ASCII, SP, HTAB
cdef uint8_t[256] IS_TARGET     # what the front door takes in a request target; anything else goes to aiohttp
cdef uint8_t[256] IS_HOST
cdef uint8_t[256] LOWER

cdef void _init_byte_classes():
    cdef int b
    for b in range(256):
        LOWER[b] = b + 32 if 65 <= b <= 90 else b
        IS_VALUE[b] = 1 if 32 <= b < 127 or b == 9 else 0
        IS_TOKEN[b] = 0
        IS_TARGET[b] = 0
        IS_HOST[b] = 0
        if 48 <= b <= 57 or 65 <= b <= 90 or 97 <= b <= 122:
            IS_TOKEN[b] = IS_TARGET[b] = IS_HOST[b] = 1
    for b in b"!#$%&'*+-.^_`|~":
        IS_TOKEN[b] = 1
    for b in b"-._~/:?&=@":
        IS_TARGET[b] = 1
    for b in b"-._:[]":
        IS_HOST[b] = 1

_init_byte_classes()


# What the relay has to do with a field, by name. One table for both directions.
cdef enum:
    H_OTHER = 0
    H_HOST
    H_CONTENT_LENGTH
    H_TRANSFER_ENCODING
    H_CONNECTION
    H_EXPECT
    H_UPGRADE
    H_CONTENT_ENCODING
    H_CONTENT_TYPE
    H_AUTHORIZATION
    H_API_KEY              # x-api-key, x-goog-api-key
    H_USER_AGENT
    H_MAX_COST
    H_RELAY_USAGE
    H_IDEMPOTENCY_KEY
    H_CHANNEL              # x-relay-channel
    H_TRACEPARENT
    H_FORWARDED_FOR
    H_RETRY_AFTER
    H_FETCH_MODE           # sec-fetch-mode, sec-fetch-dest: what a browser wants an answer for
    H_FETCH_DEST
    H_ORIGIN
    H_DROP                 # an answer's field that must not reach a client

ctypedef struct FieldSlot:
    uint8_t size
    uint8_t kind
    uint8_t allow          # bit per dialect: a request's field goes on to the upstream; and RARE
    char[44] name

cdef enum:
    RARE = 0x80            # a request with it is left to aiohttp's parser, which refuses it twice in one head

ctypedef struct FieldPrefix:
    uint8_t size
    char[44] name

cdef enum:
    FIELD_SLOTS = 512
    FIELD_PREFIXES = 32

cdef inline uint32_t field_hash(const uint8_t* name, Py_ssize_t size) noexcept nogil:
    """Of four letters and the size: the known names differ enough in them, and the comparison decides."""
    return <uint32_t>size * 7 + LOWER[name[0]] * 31 + LOWER[name[size - 1]] * 17 + LOWER[name[size // 2]] * 5 + LOWER[name[size // 4]] * 11


@cython.final
cdef class FieldTable:
    """Field names to what is done with them: open addressing, lower-case names of at most 44 bytes."""
    cdef FieldSlot[FIELD_SLOTS] slots
    cdef FieldPrefix[FIELD_PREFIXES] prefixes     # of answer fields that are dropped, e.g. x-ratelimit-
    cdef int prefix_count
    cdef uint8_t[256] prefix_begins               # by first byte in any case: whether a prefix begins so
    cdef public bint traced                       # somebody wants to know the caller's traceparent

    def __cinit__(self):
        memset(self.slots, 0, sizeof(self.slots))
        memset(self.prefix_begins, 0, sizeof(self.prefix_begins))

    cdef FieldSlot* find(self, const uint8_t* name, Py_ssize_t size) noexcept:
        """The slot of a name in any case, or NULL."""
        cdef uint32_t h
        cdef FieldSlot* slot
        if size > 44:
            return NULL
        h = field_hash(name, size)
        while True:
            slot = &self.slots[h & (FIELD_SLOTS - 1)]
            if slot.size == 0:
                return NULL
            if slot.size == size and relay_same_name(name, <const uint8_t*>slot.name, size):
                return slot
            h += 1

    cdef FieldSlot* put(self, bytes name) except NULL:
        cdef uint32_t h
        cdef Py_ssize_t size = len(name)
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(name)
        cdef bytes folded = _folded(name)
        cdef FieldSlot* slot = self.find(p, size)
        if slot != NULL:
            return slot
        h = field_hash(p, size)
        while self.slots[h & (FIELD_SLOTS - 1)].size:
            h += 1
        slot = &self.slots[h & (FIELD_SLOTS - 1)]
        slot.size = size
        memcpy(slot.name, PyBytes_AS_STRING(folded), size)
        return slot

    def set_kind(self, bytes name, int kind):
        self.put(name).kind = kind

    def allow(self, bytes name, int dialect):
        """A request's field of this name goes on to upstreams of this dialect."""
        cdef FieldSlot* slot = self.put(name)
        slot.allow |= 1 << dialect

    def drop(self, bytes name):
        """An answer's field of this name does not reach a client."""
        cdef FieldSlot* slot = self.put(name)
        if slot.kind == H_OTHER:
            slot.kind = H_DROP

    def drop_prefix(self, bytes prefix):
        """An answer's field whose name begins so does not reach a client."""
        cdef FieldPrefix* kept
        cdef bytes folded = _folded(prefix)
        if self.prefix_count == FIELD_PREFIXES:
            raise ValueError(f"at most {FIELD_PREFIXES} prefixes")
        kept = &self.prefixes[self.prefix_count]
        kept.size = len(prefix)
        memcpy(kept.name, PyBytes_AS_STRING(folded), kept.size)
        self.prefix_count += 1
        self.prefix_begins[prefix[0]] = self.prefix_begins[prefix.upper()[0]] = 1

    cdef bint drops(self, const uint8_t* name, Py_ssize_t size) noexcept:
        cdef int i
        if not self.prefix_begins[name[0]]:
            return False
        for i in range(self.prefix_count):
            if size >= self.prefixes[i].size and relay_same_name(name, <const uint8_t*>self.prefixes[i].name,
                                                                 self.prefixes[i].size):
                return True
        return False


cdef bytes _folded(bytes name):
    """As relay_same_name compares it. ValueError for what it would take for another name."""
    if not 0 < len(name) <= 44 or name != name.lower() or any(not IS_TOKEN[c] or c in b"^~" for c in name):
        raise ValueError("a field name must be lower case and have 1 to 44 token characters other than ^ and ~")
    return bytes(c | 0x20 for c in name)


def _standard_fields():
    cdef FieldTable table = FieldTable()
    for name, kind in (
        (b"host", H_HOST), (b"content-length", H_CONTENT_LENGTH), (b"transfer-encoding", H_TRANSFER_ENCODING),
        (b"connection", H_CONNECTION), (b"expect", H_EXPECT), (b"upgrade", H_UPGRADE),
        (b"content-encoding", H_CONTENT_ENCODING), (b"content-type", H_CONTENT_TYPE),
        (b"authorization", H_AUTHORIZATION), (b"x-api-key", H_API_KEY), (b"x-goog-api-key", H_API_KEY), (b"api-key", H_API_KEY),
        (b"sec-fetch-mode", H_FETCH_MODE), (b"sec-fetch-dest", H_FETCH_DEST), (b"origin", H_ORIGIN),
        (b"user-agent", H_USER_AGENT), (b"x-relay-max-cost", H_MAX_COST), (b"x-forwarded-for", H_FORWARDED_FOR),
        (b"retry-after", H_RETRY_AFTER), (b"x-relay-channel", H_CHANNEL), (b"traceparent", H_TRACEPARENT), (b"x-relay-usage", H_RELAY_USAGE), (b"idempotency-key", H_IDEMPOTENCY_KEY),
    ):
        table.set_kind(name, kind)
    for name in (b"content-location", b"content-range", b"etag", b"max-forwards", b"server"):
        table.put(name).allow |= RARE
    return table


ctypedef struct Field:
    const uint8_t* name
    const uint8_t* value       # surrounding blanks cut off
    int32_t name_size
    int32_t value_size
    int32_t line_size          # from name to behind CRLF
    uint8_t kind
    uint8_t allow


cdef Py_ssize_t parse_field(const uint8_t* p, const uint8_t* end, FieldTable table, Field* out) noexcept:
    """One field line at p. Returns its size with CRLF, 0 for the empty line that ends a head, -1 for a broken line."""
    cdef const uint8_t* q = p
    cdef const uint8_t* v
    cdef FieldSlot* slot
    if end - p < 2:
        return -1
    if p[0] == 13:
        return 0 if p[1] == 10 else -1
    q = relay_scan_name(q, end)
    while q < end and IS_TOKEN[q[0]]:
        q += 1
    if q == p or q >= end or q[0] != 58:     # ":"
        return -1
    out.name = p
    out.name_size = <int32_t>(q - p)
    q += 1
    while q < end and (q[0] == 32 or q[0] == 9):
        q += 1
    v = q
    q = relay_scan_value(q, end)
    if q + 1 >= end or q[0] != 13 or q[1] != 10:
        return -1
    out.line_size = <int32_t>(q + 2 - p)
    while q > v and ((q - 1)[0] == 32 or (q - 1)[0] == 9):
        q -= 1
    out.value = v
    out.value_size = <int32_t>(q - v)
    slot = table.find(p, out.name_size)
    if slot == NULL:
        out.kind = H_OTHER
        out.allow = 0
    else:
        out.kind = slot.kind
        out.allow = slot.allow
    return out.line_size


cdef bint value_is(const Field* f, const char* word) noexcept:
    """Whether a value, which has visible bytes and blanks alone, equals a word of lower-case letters and - in any case."""
    cdef Py_ssize_t n = strlen(word)
    return f.value_size == n and relay_same_name(f.value, <const uint8_t*>word, n)


cdef int64_t parse_length(const Field* f) noexcept:
    """Content-Length after RFC 9112 6.2: digits only; -1 for anything else or more than 15 digits."""
    cdef int64_t n = 0
    cdef int i
    if f.value_size < 1 or f.value_size > 15:
        return -1
    for i in range(f.value_size):
        if f.value[i] < 48 or f.value[i] > 57:
            return -1
        n = n * 10 + (f.value[i] - 48)
    return n


cdef Py_ssize_t find_head_end(const uint8_t* p, Py_ssize_t n, Py_ssize_t start) noexcept:
    """The offset behind the empty line that ends a head, or -1. `start`: what was searched before."""
    cdef const uint8_t* q
    cdef const uint8_t* end = p + n
    q = p + (start - 3 if start > 3 else 0)
    while q < end:
        q = <const uint8_t*>memchr(q, 10, end - q)
        if q == NULL:
            return -1
        if q - p >= 3 and (q - 1)[0] == 13 and (q - 2)[0] == 10 and (q - 3)[0] == 13:
            return q + 1 - p
        q += 1
    return -1


# --- chunked bodies (RFC 9112 7.1) ---

cdef enum:
    K_SIZE = 0          # in the digits of a chunk size
    K_EXT               # in a chunk extension
    K_SIZE_LF
    K_DATA
    K_DATA_CR
    K_DATA_LF
    K_TRAILER           # at the start of a trailer line
    K_TRAILER_LINE
    K_TRAILER_LF
    K_LAST_LF
    K_END
    K_BAD

ctypedef struct Chunked:
    int state
    int digits
    int extra           # bytes of extensions and trailers, bounded
    int64_t remaining   # of the chunk's data, in K_DATA
    bint plain          # no extension and no trailer so far: the framing may be passed on as it is

cdef void chunked_init(Chunked* c) noexcept:
    memset(c, 0, sizeof(Chunked))
    c.plain = True

cdef Py_ssize_t chunked_next(Chunked* c, const uint8_t* p, Py_ssize_t n, Py_ssize_t* data_start, Py_ssize_t* data_size) noexcept:
    """Eats framing of at most one chunk and at most one piece of data. Returns the bytes eaten; the piece is p[data_start:+data_size].

    Ends in K_END behind the last chunk, in K_BAD at the first byte that breaks the grammar (bare LF, a size above
    15 hex digits, more than 16 KiB of extensions and trailers).
    """
    cdef Py_ssize_t i = 0
    cdef uint8_t b
    cdef int d
    data_size[0] = 0
    while i < n and c.state < K_END:
        b = p[i]
        if c.state == K_DATA:
            data_start[0] = i
            data_size[0] = n - i if n - i < c.remaining else <Py_ssize_t>c.remaining
            c.remaining -= data_size[0]
            if c.remaining == 0:
                c.state = K_DATA_CR
            return i + data_size[0]
        i += 1
        if c.state == K_SIZE:
            if 48 <= b <= 57:
                d = b - 48
            elif 65 <= b <= 70:
                d = b - 55
            elif 97 <= b <= 102:
                d = b - 87
            else:
                d = -1
            if d >= 0:
                c.digits += 1
                if c.digits > 15:
                    c.state = K_BAD
                c.remaining = c.remaining * 16 + d
            elif c.digits and b == 13:
                c.state = K_SIZE_LF
            elif c.digits and b == 59:     # ";"
                c.plain = False
                c.state = K_EXT
            else:
                c.state = K_BAD
        elif c.state == K_EXT:
            c.extra += 1
            if b == 13:
                c.state = K_SIZE_LF
            elif not IS_VALUE[b] or c.extra > 16384:
                c.state = K_BAD
        elif c.state == K_SIZE_LF:
            if b != 10:
                c.state = K_BAD
            else:
                c.digits = 0
                c.state = K_DATA if c.remaining else K_TRAILER
                if c.state == K_TRAILER:
                    return i     # what comes now belongs to the framing alone
        elif c.state == K_DATA_CR:
            c.state = K_DATA_LF if b == 13 else K_BAD
        elif c.state == K_DATA_LF:
            c.state = K_SIZE if b == 10 else K_BAD
            return i     # between two chunks: the caller may want to know where the next one begins
        elif c.state == K_TRAILER:
            if b == 13:
                c.state = K_LAST_LF
            elif IS_TOKEN[b]:
                c.plain = False
                c.extra += 1
                c.state = K_TRAILER_LINE
            else:
                c.state = K_BAD
        elif c.state == K_TRAILER_LINE:
            c.extra += 1
            if b == 13:
                c.state = K_TRAILER_LF
            elif not IS_VALUE[b] or c.extra > 16384:
                c.state = K_BAD
        elif c.state == K_TRAILER_LF:
            c.state = K_TRAILER if b == 10 else K_BAD
        else:     # K_LAST_LF
            c.state = K_END if b == 10 else K_BAD
    return i


def decode_chunked(pieces: list):
    """Decodes a chunked body given in pieces. Returns (body, state, bytes behind the end); for tests."""
    cdef Chunked c
    cdef Py_ssize_t i, start, size
    cdef bytes piece
    cdef const uint8_t* p
    chunked_init(&c)
    body = bytearray()
    rest = b""
    for piece in pieces:
        if c.state == K_END:
            rest += piece
            continue
        p = <const uint8_t*>PyBytes_AS_STRING(piece)
        i = 0
        while i < len(piece) and c.state < K_END:
            i += chunked_next(&c, p + i, len(piece) - i, &start, &size)
            if size:
                body += piece[i - size:i]
        if c.state == K_END:
            rest += piece[i:]
    return bytes(body), "end" if c.state == K_END else "bad" if c.state == K_BAD else "open", rest


# --- a growing byte buffer for heads ---

cdef const char* HEX_DIGITS = b"0123456789abcdef"

@cython.final
cdef class Buffer:
    """Bytes written together: a head is built here and leaves as one bytes object."""
    cdef char* data
    cdef Py_ssize_t size, room

    def __cinit__(self):
        self.room = 4096
        self.data = <char*>PyMem_Malloc(self.room)
        if self.data == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.data)

    cdef inline int need(self, Py_ssize_t n) except -1:
        return self.grow(n) if self.size + n > self.room else 0

    cdef int grow(self, Py_ssize_t n) except -1:
        cdef char* grown
        cdef Py_ssize_t room = self.room
        while room < self.size + n:
            room *= 2
        grown = <char*>PyMem_Realloc(self.data, room)
        if grown == NULL:
            raise MemoryError
        self.data = grown
        self.room = room
        return 0

    cdef inline int add(self, const void* p, Py_ssize_t n) except -1:
        self.need(n)
        memcpy(self.data + self.size, p, n)
        self.size += n
        return 0

    cdef inline int add_bytes(self, bytes b) except -1:
        return self.add(PyBytes_AS_STRING(b), PyBytes_GET_SIZE(b))

    cdef inline int add_text(self, const char* text) except -1:
        return self.add(text, strlen(text))

    cdef int add_int(self, int64_t n) except -1:
        cdef char[24] digits
        cdef int i = 24
        cdef bint negative = n < 0
        cdef uint64_t u = <uint64_t>(-n) if negative else <uint64_t>n
        while True:
            i -= 1
            digits[i] = 48 + <char>(u % 10)
            u //= 10
            if u == 0:
                break
        if negative:
            i -= 1
            digits[i] = 45
        return self.add(&digits[i], 24 - i)

    cdef int add_hex(self, uint64_t n) except -1:
        cdef char[16] digits
        cdef int i = 16
        while True:
            i -= 1
            digits[i] = HEX_DIGITS[n & 15]
            n >>= 4
            if n == 0:
                break
        return self.add(&digits[i], 16 - i)

    cdef int add_millis(self, int64_t ns) except -1:
        """Nanoseconds as milliseconds with three decimals."""
        cdef int64_t us = ns // 1000 if ns > 0 else 0
        cdef int r = <int>(us % 1000)
        self.add_int(us // 1000)
        self.need(4)
        self.data[self.size] = 46
        self.data[self.size + 1] = 48 + r // 100
        self.data[self.size + 2] = 48 + r // 10 % 10
        self.data[self.size + 3] = 48 + r % 10
        self.size += 4
        return 0

    cdef int add_fraction(self, int thousandths) except -1:
        """1..999 as decimals without trailing zeros: 500 -> 5."""
        cdef char[3] digits
        cdef int n = 3
        digits[0] = <char>(48 + thousandths // 100)
        digits[1] = <char>(48 + thousandths // 10 % 10)
        digits[2] = <char>(48 + thousandths % 10)
        while digits[n - 1] == 48:
            n -= 1
        return self.add(digits, n)

    cdef int add_moment(self, int64_t seconds) except -1:
        """Seconds since 1970 as RFC 3339 in UTC: 2026-01-02T03:04:05Z. Days to dates after Howard Hinnant's algorithm."""
        cdef int64_t days = seconds // 86400, rest = seconds % 86400
        cdef int64_t z = days + 719468, era = z // 146097, doe = z - era * 146097
        cdef int64_t yoe = (doe - doe // 1460 + doe // 36524 - doe // 146096) // 365
        cdef int64_t doy = doe - (365 * yoe + yoe // 4 - yoe // 100), mp = (5 * doy + 2) // 153
        cdef int64_t day = doy - (153 * mp + 2) // 5 + 1, month = mp + 3 if mp < 10 else mp - 9
        cdef int64_t year = yoe + era * 400 + (1 if month <= 2 else 0)
        self.add_int(year)
        self.add_two(45, month)
        self.add_two(45, day)
        self.add_two(84, rest // 3600)
        self.add_two(58, rest // 60 % 60)
        self.add_two(58, rest % 60)
        return self.add(b"Z", 1)

    cdef int add_two(self, char mark, int64_t n) except -1:
        cdef char[3] text
        text[0] = mark
        text[1] = <char>(48 + n // 10 % 10)
        text[2] = <char>(48 + n % 10)
        return self.add(text, 3)

    cdef bytes take(self):
        cdef bytes b = PyBytes_FromStringAndSize(self.data, self.size)
        self.size = 0
        return b
