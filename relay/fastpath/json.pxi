# An incremental JSON machine: the one reader of request bodies and of answers.
#
# It takes bytes in any pieces and remembers nothing of them but its place in the grammar, so a cut may fall anywhere and
# a string of any size costs no memory. It knows where in the document it is by *nodes*: small numbers that schema.pxi
# assigns to the places worth knowing (the `content` of a message is one). The node of a container and a key give the
# node of the value; a place nobody asked for is NODE_SKIP, and everything in it is only checked, at the speed of a
# vector scan. A node says what to do with a string: nothing, count it as text, keep its first bytes, or more; the
# escapes are decoded on the way. Numbers, literals and the ends of containers are reported to the owner (a request or
# a tap) where its node asks for that.
#
# Two ways to read: strict (requests) refuses all that `json.loads` refuses, text that is not UTF-8, NaN, and a repeated
# key where we read it. Lenient (answers) lets bad UTF-8 and control characters in strings pass: an answer goes to the
# client whatever we think of it, and its usage should still be found.

cdef extern from *:
    """
    #include <stdint.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif
    /* The first byte of p..end that is a quote, a backslash, a control character, or (high) not ASCII; else end. */
    static inline const uint8_t *relay_scan_string(const uint8_t *p, const uint8_t *end, int high)
    {
    #if defined(__SSE2__)
        const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\\\'), control = _mm_set1_epi8(0x1f);
        while (end - p >= 16) {
            __m128i v = _mm_loadu_si128((const __m128i *)p);
            __m128i m = _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(v, quote), _mm_cmpeq_epi8(v, slash)),
                                     _mm_cmpeq_epi8(_mm_min_epu8(v, control), v));
            int bits;
            if (high)
                m = _mm_or_si128(m, v);          /* movemask takes the top bit of each byte */
            bits = _mm_movemask_epi8(m);
            if (bits)
                return p + __builtin_ctz((unsigned)bits);
            p += 16;
        }
    #endif
        while (p < end) {
            uint8_t c = *p;
            if (c == '"' || c == '\\\\' || c < 0x20 || (high && c >= 0x80))
                break;
            p++;
        }
        return p;
    }
    """
    const uint8_t* relay_scan_string(const uint8_t* p, const uint8_t* end, int high) noexcept nogil

from libc.stdint cimport int8_t, uintptr_t

cdef enum:
    JSON_DEPTH_STRICT = 128     # deeper requests are refused; schemas of tools seen in the wild stay below 40
    JSON_DEPTH_LENIENT = 1024   # bits of Json.kinds; json.loads of clients gives up near 1,000
    JSON_DEPTH_WORDS = 16       # of Json.kinds
    KEY_BYTES_MAX = 48          # longer keys are never ours

# Where in the grammar the machine stands.
cdef enum:
    J_VALUE = 0         # a value must come
    J_VALUE_OR_END      # behind `[`
    J_KEY_OR_END        # behind `{`
    J_KEY               # behind `,` in an object
    J_COLON
    J_AFTER             # behind a value in a container
    J_STRING
    J_ESCAPE            # behind a backslash
    J_HEX               # inside \uXXXX
    J_NUMBER
    J_LITERAL
    J_DONE              # behind the outermost value
    J_ERROR

# Where in a number.
cdef enum:
    N_MINUS = 0
    N_ZERO
    N_DIGITS
    N_POINT
    N_FRACTION
    N_E
    N_E_SIGN
    N_E_DIGITS

# Types of values, as bits: a node holds the set of types that it accepts.
cdef enum:
    T_NULL = 1
    T_BOOL = 2
    T_INTEGER = 4       # written as an integer
    T_NUMBER = 8        # any other number
    T_STRING = 16
    T_OBJECT = 32
    T_ARRAY = 64
    T_ANY = 127

# What to do with the bytes of a string, as bits.
cdef enum:
    M_SKIP = 0
    M_COUNT = 1         # count it as text
    M_CAPTURE = 2       # keep its first bytes in Json.text
    M_MEDIA = 4         # data or address of an image or another file (requests only)
    M_LENGTH = 8        # only its length matters
    M_HASH = 16         # only a hash of it matters

# What a node wants to be told.
cdef enum:
    NF_KEYS = 1         # it has keys of its own: look them up
    NF_RAW = 2          # its JSON text itself is counted as text, without the spaces between tokens
    NF_OPEN = 4         # report the start of a container
    NF_CLOSE = 8
    NF_SCALAR = 16      # report strings (at their end), numbers and literals
    NF_STRING = 32      # ask the owner at the start of a string what to do with it

cdef enum:
    OWNER_REQUEST = 0
    OWNER_TAP = 1

cdef enum:
    NODE_SKIP = 0
    NODE_RAW = 1
    NODE_MAX = 256
    KEY_MAX = 256

ctypedef struct Node:
    uint8_t action      # its meaning to the owner
    uint8_t types       # T_* it accepts
    uint8_t flags       # NF_*
    uint8_t mode        # M_* of its strings
    uint8_t elem        # node of the elements of an array
    uint8_t rest        # node of the values of unknown keys
    uint8_t slot        # argument of the action
    uint8_t key         # the key that leads here, for error messages

cdef Node NODES[NODE_MAX]
cdef uint16_t CHILD[NODE_MAX][KEY_MAX]      # node | place among its siblings << 8; 0: not ours

ctypedef struct KnownKey:
    uint8_t size
    uint8_t chain                           # next key with the same hash, 0 none
    uint8_t text[KEY_BYTES_MAX]

cdef KnownKey KEYS[KEY_MAX]
cdef uint8_t KEY_HEADS[512]

ctypedef struct Frame:
    uint64_t seen       # bits of the keys that stood in this object
    uint8_t node

ctypedef struct Json:
    uint8_t owner
    uint8_t strict
    uint8_t line            # stop at line ends: the text of one SSE line ends there
    uint8_t state
    uint8_t node            # of the innermost container
    uint8_t value_node      # of the value that is read or comes next
    uint8_t in_key
    uint8_t mode            # M_* of the string that is read
    uint8_t utf8_left       # continuation bytes that must come
    uint8_t utf8_low        # bounds of the next one
    uint8_t utf8_high
    uint8_t hex_left
    uint16_t hex
    uint16_t surrogate      # a high surrogate that waits for its low one, else 0
    uint8_t literal         # b'n', b't' or b'f'
    uint8_t literal_at
    uint8_t number          # N_*
    uint8_t negative
    uint8_t fraction        # a digit other than 0 behind the point
    uint8_t text_over       # the string was longer than Json.text
    uint8_t error_key
    uint8_t complete        # the outermost value has ended
    uint8_t closed_empty    # the container that was closed last had nothing in it
    int error
    int depth
    int depth_max
    int frame_max
    int text_size
    int text_max
    uint64_t magnitude      # of the number, saturated
    uint64_t length         # of the string, for M_LENGTH
    uint64_t hash
    int64_t at              # offset of the value that is reported: its first byte, or just behind it at its end
    uintptr_t origin        # address that offset 0 would have in the present piece
    Counter counter
    Frame* frames
    uint8_t* text
    uint64_t kinds[JSON_DEPTH_WORDS]    # per depth: 1 array, 0 object


cdef inline void json_reset(Json* j, int root) noexcept nogil:
    """Stand before a new document; the counter goes on."""
    j.state = J_VALUE
    j.node = NODE_SKIP
    j.value_node = <uint8_t>root
    j.in_key = 0
    j.mode = M_SKIP
    j.utf8_left = 0
    j.surrogate = 0
    j.error = E_NONE
    j.error_key = 0
    j.complete = 0
    j.depth = 0
    j.text_size = 0
    j.text_over = 0


cdef void json_fault(Json* j, int code, int key) noexcept nogil:
    j.error = code
    j.error_key = <uint8_t>key
    j.state = J_ERROR


cdef inline unsigned key_hash(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Of a key without regard to the case of its letters."""
    return ((p[0] | 0x20) * 7u + (p[n - 1] | 0x20) * 61u + (p[n >> 1] | 0x20) * 131u + <unsigned>n * 17u) & 511u


cdef inline int key_number(const uint8_t* p, Py_ssize_t n, bint* exact) noexcept nogil:
    """The number of a known key, 0 for any other. Another case of letters is found too, and not exact."""
    cdef int k
    cdef Py_ssize_t i
    if n == 0 or n > KEY_BYTES_MAX:
        return 0
    k = KEY_HEADS[key_hash(p, n)]
    while k:
        if KEYS[k].size == n:
            if memcmp(KEYS[k].text, p, n) == 0:
                exact[0] = True
                return k
            i = 0
            while i < n and (KEYS[k].text[i] == p[i] or (
                    (KEYS[k].text[i] ^ p[i]) == 0x20 and b'a' <= (p[i] | 0x20) <= b'z')):
                i += 1
            if i == n:
                exact[0] = False
                return k
        k = KEYS[k].chain
    return 0


cdef int key_folded(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """A key of ours in which U+017F stands for s or U+212A for k: equal to it where Unicode folds case (Go does)."""
    cdef uint8_t out[KEY_BYTES_MAX]
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t size = 0
    cdef bint exact = True
    while i < n:
        if size == KEY_BYTES_MAX:
            return 0
        if n - i >= 2 and p[i] == 0xC5 and p[i + 1] == 0xBF:
            out[size] = c's'
            i += 2
        elif n - i >= 3 and p[i] == 0xE2 and p[i + 1] == 0x84 and p[i + 2] == 0xAA:
            out[size] = c'k'
            i += 3
        elif p[i] >= 0x80:
            return 0
        else:
            out[size] = p[i]
            i += 1
        size += 1
    return key_number(out, size, &exact)


cdef inline void json_key(Json* j, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """A key has ended: find the node of its value."""
    cdef bint exact = True
    cdef int k = key_number(p, n, &exact)
    cdef unsigned child
    cdef uint64_t bit
    if not k and j.strict and (memchr(p, 0xC5, n) != NULL or memchr(p, 0xE2, n) != NULL):
        k = key_folded(p, n)
        exact = False
    if k:
        child = CHILD[j.node][k]
        if child:
            if not j.strict:
                j.value_node = <uint8_t>child if exact else NODES[j.node].rest
                return
            # Some servers match keys whatever their case, so `Model` beside `model` is as ambiguous as a repetition.
            bit = <uint64_t>1 << (child >> 8)
            if j.frames[j.depth].seen & bit:
                json_fault(j, E_DUPLICATE_KEY, k)
                return
            j.frames[j.depth].seen |= bit
            if exact:
                j.value_node = <uint8_t>child
                return
    j.value_node = NODES[j.node].rest


cdef inline void json_sink(Json* j, TokenTable t, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Decoded bytes of the string that is read."""
    cdef Py_ssize_t i
    cdef uint64_t hash
    if j.mode & M_COUNT:
        count_bytes(t, &j.counter, p, n)
    if j.mode & M_CAPTURE:
        i = j.text_max - j.text_size
        if n <= i:
            i = n
        else:
            j.text_over = 1
        memcpy(j.text + j.text_size, p, i)
        j.text_size += <int>i
    if j.mode & M_LENGTH:
        j.length += <uint64_t>n
    if j.mode & M_MEDIA:
        request_media_bytes(<Request*>j, t, p, n)
    if j.mode & M_HASH:
        hash = j.hash
        for i in range(n):
            hash = (hash ^ p[i]) * <uint64_t>0x100000001b3
        j.hash = hash
        j.length += <uint64_t>n


cdef void json_point(Json* j, TokenTable t, unsigned point) noexcept nogil:
    """A decoded code point, not a surrogate."""
    cdef uint8_t out[4]
    if point < 0x80:
        out[0] = <uint8_t>point
        json_sink(j, t, out, 1)
    elif point < 0x800:
        out[0] = <uint8_t>(0xC0 | point >> 6)
        out[1] = <uint8_t>(0x80 | (point & 63))
        json_sink(j, t, out, 2)
    elif point < 0x10000:
        out[0] = <uint8_t>(0xE0 | point >> 12)
        out[1] = <uint8_t>(0x80 | (point >> 6 & 63))
        out[2] = <uint8_t>(0x80 | (point & 63))
        json_sink(j, t, out, 3)
    else:
        out[0] = <uint8_t>(0xF0 | point >> 18)
        out[1] = <uint8_t>(0x80 | (point >> 12 & 63))
        out[2] = <uint8_t>(0x80 | (point >> 6 & 63))
        out[3] = <uint8_t>(0x80 | (point & 63))
        json_sink(j, t, out, 4)


cdef inline void json_lone_surrogate(Json* j, TokenTable t) noexcept nogil:
    """A high surrogate stayed alone: it reads as U+FFFD."""
    if j.surrogate:
        j.surrogate = 0
        json_point(j, t, 0xFFFD)


cdef void json_unit(Json* j, TokenTable t) noexcept nogil:
    """A \\uXXXX has ended."""
    cdef unsigned unit = j.hex
    if 0xDC00 <= unit <= 0xDFFF:
        if j.surrogate:
            unit = 0x10000 + ((<unsigned>j.surrogate - 0xD800) << 10) + (unit - 0xDC00)
            j.surrogate = 0
            json_point(j, t, unit)
        else:
            json_point(j, t, 0xFFFD)
        return
    json_lone_surrogate(j, t)
    if 0xD800 <= unit <= 0xDBFF:
        j.surrogate = <uint16_t>unit
    else:
        json_point(j, t, unit)


cdef const uint8_t* json_utf8(Json* j, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """Check text that is not ASCII; p stands on it or in a character that a cut divided. Returns the next ASCII byte,
    the end, or the byte at fault (and the state J_ERROR)."""
    cdef uint8_t c
    while p < end:
        c = p[0]
        if j.utf8_left:
            if c < j.utf8_low or c > j.utf8_high:
                json_fault(j, E_MALFORMED_JSON, 0)
                return p
            j.utf8_left -= 1
            j.utf8_low = 0x80
            j.utf8_high = 0xBF
        elif c < 0x80:
            return p
        elif (c & 0xF0) == 0xE0 and c != 0xE0 and c != 0xED and end - p >= 3:     # most scripts
            if (p[1] & 0xC0) != 0x80 or (p[2] & 0xC0) != 0x80:
                json_fault(j, E_MALFORMED_JSON, 0)
                return p
            p += 3
            continue
        else:
            j.utf8_low = 0x80
            j.utf8_high = 0xBF
            if 0xC2 <= c <= 0xDF:
                j.utf8_left = 1
            elif 0xE0 <= c <= 0xEF:
                j.utf8_left = 2
                if c == 0xE0:
                    j.utf8_low = 0xA0
                elif c == 0xED:
                    j.utf8_high = 0x9F
            elif 0xF0 <= c <= 0xF4:
                j.utf8_left = 3
                if c == 0xF0:
                    j.utf8_low = 0x90
                elif c == 0xF4:
                    j.utf8_high = 0x8F
            else:
                json_fault(j, E_MALFORMED_JSON, 0)
                return p
        p += 1
    return p


cdef inline void json_value_ended(Json* j) noexcept nogil:
    if j.depth:
        j.state = J_AFTER
    else:
        j.state = J_DONE
        j.complete = 1


cdef inline void json_scalar(Json* j, TokenTable t, int type) noexcept nogil:
    """A string, number or literal has ended: check its type, tell the owner."""
    cdef const Node* node = &NODES[j.value_node]
    if not node.types & type:
        json_fault(j, E_INVALID_TYPE, node.key)
        return
    json_value_ended(j)
    if node.flags & NF_SCALAR:
        if j.owner == OWNER_REQUEST:
            request_scalar(<Request*>j, t, node, type)
        else:
            tap_scalar(<Tap*>j, node, type)


cdef inline void json_text_begin(Json* j, const Node* node) noexcept nogil:
    """Each text of a prompt stands alone; the deltas of an answer continue one another."""
    if j.strict and not (node.flags & NF_RAW and NODES[j.node].flags & NF_RAW):
        j.counter.state = 0


cdef inline void json_string_begin(Json* j, TokenTable t) noexcept nogil:
    """A quote opens a string value."""
    cdef const Node* node = &NODES[j.value_node]
    if not node.types & T_STRING:
        json_fault(j, E_INVALID_TYPE, node.key)
        return
    j.state = J_STRING
    j.in_key = 0
    j.mode = node.mode
    if node.flags & NF_STRING:
        if j.owner == OWNER_REQUEST:
            request_string(<Request*>j, node)
        else:
            tap_string(<Tap*>j, node)
    json_text_begin(j, node)
    if node.flags & NF_RAW:
        count_byte(t, &j.counter, c'"')
    j.text_size = 0
    j.text_over = 0


cdef inline void json_string_end(Json* j, TokenTable t) noexcept nogil:
    """The closing quote of a key or a string value."""
    json_lone_surrogate(j, t)
    if j.in_key:
        j.in_key = 0
        if NODES[j.node].flags & NF_RAW:
            count_byte(t, &j.counter, c'"')
        j.state = J_COLON
        if j.mode & M_CAPTURE and not j.text_over:
            json_key(j, j.text, j.text_size)
        else:
            j.value_node = NODES[j.node].rest
        return
    if NODES[j.value_node].flags & NF_RAW:
        count_byte(t, &j.counter, c'"')
    json_scalar(j, t, T_STRING)


cdef const uint8_t* json_string(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """Go on in a string until its end, an escape, or the end of the piece."""
    cdef const uint8_t* q = p
    cdef uint8_t c
    if j.utf8_left:
        q = json_utf8(j, q, end)
    while j.state == J_STRING:
        q = relay_scan_string(q, end, j.strict)
        if q == end:
            break
        c = q[0]
        if c >= 0x80:                               # strict only
            q = json_utf8(j, q, end)
        elif c == c'"' or c == c'\\' or j.strict:
            break
        elif j.line and (c == c'\n' or c == c'\r'):
            break
        else:
            q += 1                                  # lenient: a control character is content
    if j.state == J_ERROR:
        return q
    if q > p:
        if j.surrogate:
            json_lone_surrogate(j, t)
        if j.mode:
            json_sink(j, t, p, q - p)
    if q == end:
        return q
    c = q[0]
    if c == c'"':
        j.at = <int64_t>(<uintptr_t>(q + 1) - j.origin)
        json_string_end(j, t)
        return q + 1
    if c == c'\\':
        j.state = J_ESCAPE
        return q + 1
    if j.strict:
        json_fault(j, E_MALFORMED_JSON, 0)
    return q                                        # a line end, for the owner


cdef inline int hex_digit(uint8_t c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    c |= 0x20
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    return -1


cdef const uint8_t* json_hex(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    cdef int digit
    while p < end and j.hex_left:
        digit = hex_digit(p[0])
        if digit < 0:
            json_fault(j, E_MALFORMED_JSON, 0)
            return p
        j.hex = <uint16_t>(j.hex << 4 | digit)
        j.hex_left -= 1
        p += 1
    if not j.hex_left:
        j.state = J_STRING
        json_unit(j, t)
    return p


cdef const uint8_t* json_escape(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """Behind a backslash."""
    cdef uint8_t c = p[0]
    if c == c'u':
        j.hex = 0
        j.hex_left = 4
        j.state = J_HEX
        return json_hex(j, t, p + 1, end)
    if c == c'n':
        c = c'\n'
    elif c == c't':
        c = c'\t'
    elif c == c'r':
        c = c'\r'
    elif c == c'b':
        c = 8
    elif c == c'f':
        c = 12
    elif c != c'"' and c != c'\\' and c != c'/':
        json_fault(j, E_MALFORMED_JSON, 0)
        return p
    j.state = J_STRING
    if j.surrogate:
        json_lone_surrogate(j, t)
    if j.mode:
        json_sink(j, t, &c, 1)
    return p + 1


cdef bint json_number_complete(const Json* j) noexcept nogil:
    return j.number == N_ZERO or j.number == N_DIGITS or j.number == N_FRACTION or j.number == N_E_DIGITS


cdef const uint8_t* json_number(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """Go on in a number; it ends before the first byte that cannot belong to it."""
    cdef const uint8_t* begin = p
    cdef uint8_t c
    cdef int n = j.number
    while p < end:
        c = p[0]
        if c'0' <= c <= c'9':
            if n == N_DIGITS:
                if j.magnitude < <uint64_t>1 << 58:
                    j.magnitude = j.magnitude * 10 + (c - c'0')
            elif n == N_FRACTION or n == N_POINT:
                n = N_FRACTION
                if c != c'0':
                    j.fraction = 1
            elif n == N_MINUS:
                j.magnitude = c - c'0'
                n = N_ZERO if c == c'0' else N_DIGITS
            elif n == N_ZERO:
                json_fault(j, E_MALFORMED_JSON, 0)
                return p
            else:
                n = N_E_DIGITS
        elif c == c'.' and (n == N_ZERO or n == N_DIGITS):
            n = N_POINT
        elif (c == c'e' or c == c'E') and (n == N_ZERO or n == N_DIGITS or n == N_FRACTION):
            n = N_E
        elif (c == c'-' or c == c'+') and n == N_E:
            n = N_E_SIGN
        else:
            break
        p += 1
    j.number = <uint8_t>n
    if NODES[j.value_node].flags & NF_RAW:
        count_bytes(t, &j.counter, begin, p - begin)
    if p < end:
        if not json_number_complete(j):
            json_fault(j, E_MALFORMED_JSON, 0)
            return p
        j.at = <int64_t>(<uintptr_t>p - j.origin)
        json_scalar(j, t, T_INTEGER if n <= N_DIGITS else T_NUMBER)
    return p


cdef const uint8_t* json_literal(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    cdef const char* word = b"null" if j.literal == c'n' else (b"true" if j.literal == c't' else b"false")
    cdef const uint8_t* begin = p
    while p < end and word[j.literal_at] and p[0] == <uint8_t>word[j.literal_at]:
        j.literal_at += 1
        p += 1
    if NODES[j.value_node].flags & NF_RAW:
        count_bytes(t, &j.counter, begin, p - begin)
    if not word[j.literal_at]:
        j.magnitude = 1 if j.literal == c't' else 0
        j.at = <int64_t>(<uintptr_t>p - j.origin)
        json_scalar(j, t, T_NULL if j.literal == c'n' else T_BOOL)
    elif p < end:
        json_fault(j, E_MALFORMED_JSON, 0)
    return p


cdef void json_open(Json* j, TokenTable t, uint8_t c) noexcept nogil:
    """An opening brace or bracket."""
    cdef bint array = c == c'['
    cdef int v = j.value_node
    cdef int d = j.depth + 1
    if not NODES[v].types & (T_ARRAY if array else T_OBJECT):
        json_fault(j, E_INVALID_TYPE, NODES[v].key)
        return
    if d >= j.depth_max:
        json_fault(j, E_MALFORMED_JSON, 0)
        return
    if d < j.frame_max:
        j.frames[d].node = <uint8_t>v
        j.frames[d].seen = 0
    elif v != NODE_RAW:
        v = NODE_SKIP           # nothing we know lies so deep; from here on every node is that of its parent
    if NODES[v].flags & NF_RAW:
        json_text_begin(j, &NODES[v])
        count_byte(t, &j.counter, c)
    j.depth = d
    j.node = <uint8_t>v
    if array:
        j.kinds[d >> 6] |= <uint64_t>1 << (d & 63)
        j.state = J_VALUE_OR_END
        j.value_node = NODES[v].elem
    else:
        j.kinds[d >> 6] &= ~(<uint64_t>1 << (d & 63))
        j.state = J_KEY_OR_END
    if NODES[v].flags & NF_OPEN:
        if j.owner == OWNER_REQUEST:
            request_open(<Request*>j, &NODES[v], array)
        else:
            tap_open(<Tap*>j, &NODES[v], array)


cdef inline bint json_in_array(const Json* j) noexcept nogil:
    return (j.kinds[j.depth >> 6] >> (j.depth & 63)) & 1


cdef void json_close(Json* j, TokenTable t, uint8_t c) noexcept nogil:
    """A closing brace or bracket, of the right kind."""
    cdef const Node* node = &NODES[j.node]
    if node.flags & NF_RAW:
        count_byte(t, &j.counter, c)
    j.closed_empty = j.state != J_AFTER
    j.depth -= 1
    if j.depth < j.frame_max:
        j.node = j.frames[j.depth].node
    json_value_ended(j)
    if node.flags & NF_CLOSE:
        if j.owner == OWNER_REQUEST:
            request_close(<Request*>j, node, c == c']')
        else:
            tap_close(<Tap*>j, node, c == c']')


cdef const uint8_t* json_key_begin(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """p stands behind the quote that opens a key. Most keys lie in one piece and have no escape."""
    cdef const Node* node = &NODES[j.node]
    cdef const uint8_t* q = relay_scan_string(p, end, j.strict)
    if q < end and q[0] == c'"':
        if node.flags & NF_RAW:
            count_bytes(t, &j.counter, p - 1, q - p + 2)
        j.state = J_COLON
        if node.flags & NF_KEYS:
            json_key(j, p, q - p)
        else:
            j.value_node = node.rest
        if j.state == J_COLON and q + 1 < end and q[1] == c':':
            j.state = J_VALUE
            if node.flags & NF_RAW:
                count_byte(t, &j.counter, c':')
            return q + 2
        return q + 1
    j.state = J_STRING
    j.in_key = 1
    j.text_size = 0
    j.text_over = 0
    j.mode = M_CAPTURE if node.flags & NF_KEYS else M_SKIP
    if node.flags & NF_RAW:
        j.mode |= M_COUNT
        count_byte(t, &j.counter, c'"')
    return p


cdef const uint8_t* json_value(Json* j, TokenTable t, const uint8_t* p, const uint8_t* end) noexcept nogil:
    """p stands on the first byte of a value."""
    cdef uint8_t c = p[0]
    j.at = <int64_t>(<uintptr_t>p - j.origin)
    if c == c'"':
        json_string_begin(j, t)
        return p + 1
    if c == c'{' or c == c'[':
        json_open(j, t, c)
        return p + 1
    if c == c'-' or c'0' <= c <= c'9':
        j.state = J_NUMBER
        j.number = N_MINUS
        j.negative = c == c'-'
        j.fraction = 0
        j.magnitude = 0
        if c == c'-':
            if NODES[j.value_node].flags & NF_RAW:
                count_byte(t, &j.counter, c)
            p += 1
        return json_number(j, t, p, end)
    if c == c'n' or c == c't' or c == c'f':
        j.state = J_LITERAL
        j.literal = c
        j.literal_at = 0
        return json_literal(j, t, p, end)
    json_fault(j, E_MALFORMED_JSON, 0)
    return p


cdef Py_ssize_t json_run(Json* j, TokenTable t, const uint8_t* begin, Py_ssize_t n) noexcept nogil:
    """Take bytes; returns how many. Fewer than `n` only at a fault or, with `line`, at a line end (which is not taken).

    `origin` must be set before, if offsets matter.
    """
    cdef const uint8_t* p = begin
    cdef const uint8_t* end = begin + n
    cdef uint8_t c
    cdef int state
    while p < end:
        state = j.state
        if state == J_STRING:
            p = json_string(j, t, p, end)
            if j.state == J_STRING and p < end:
                break                               # a line end
            continue
        if state == J_ESCAPE:
            p = json_escape(j, t, p, end)
            continue
        if state == J_HEX:
            p = json_hex(j, t, p, end)
            continue
        if state == J_NUMBER:
            p = json_number(j, t, p, end)
            continue
        if state == J_LITERAL:
            p = json_literal(j, t, p, end)
            continue
        if state == J_ERROR:
            break
        c = p[0]
        if c <= 0x20:
            if c == c'\n' or c == c'\r':
                if j.line:
                    break
            elif c != c' ' and c != c'\t':
                json_fault(j, E_MALFORMED_JSON, 0)
                break
            p += 1
            continue
        if state == J_AFTER:
            if c == c',':
                if NODES[j.node].flags & NF_RAW:
                    count_byte(t, &j.counter, c)
                if json_in_array(j):
                    j.state = J_VALUE
                    j.value_node = NODES[j.node].elem
                else:
                    j.state = J_KEY
                p += 1
                continue
            if c == (c']' if json_in_array(j) else c'}'):
                p += 1
                j.at = <int64_t>(<uintptr_t>p - j.origin)
                json_close(j, t, c)
                continue
        elif state == J_KEY or state == J_KEY_OR_END:
            if c == c'"':
                p = json_key_begin(j, t, p + 1, end)
                continue
            if c == c'}' and state == J_KEY_OR_END:
                p += 1
                j.at = <int64_t>(<uintptr_t>p - j.origin)
                json_close(j, t, c)
                continue
        elif state == J_COLON:
            if c == c':':
                if NODES[j.node].flags & NF_RAW:
                    count_byte(t, &j.counter, c)
                j.state = J_VALUE
                p += 1
                continue
        elif state == J_VALUE or state == J_VALUE_OR_END:
            if c == c']' and state == J_VALUE_OR_END:
                p += 1
                j.at = <int64_t>(<uintptr_t>p - j.origin)
                json_close(j, t, c)
                continue
            p = json_value(j, t, p, end)
            continue
        json_fault(j, E_MALFORMED_JSON, 0)          # also anything behind the document
        break
    return p - begin


cdef void json_end(Json* j, TokenTable t) noexcept nogil:
    """No more bytes will come: a number at the top ends here; anything else that is open is a fault."""
    if j.state == J_NUMBER and j.depth == 0 and json_number_complete(j):
        json_scalar(j, t, T_INTEGER if j.number <= N_DIGITS else T_NUMBER)
    if j.state != J_DONE and j.state != J_ERROR:
        json_fault(j, E_MALFORMED_JSON, 0)


cdef inline bint text_is(const Json* j, const char* word) noexcept nogil:
    """Whether the captured string is `word`."""
    cdef size_t n = strlen(word)
    return not j.text_over and <size_t>j.text_size == n and memcmp(j.text, word, n) == 0


cdef inline bint text_starts(const Json* j, const char* word) noexcept nogil:
    cdef size_t n = strlen(word)
    return <size_t>j.text_size >= n and memcmp(j.text, word, n) == 0
