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
    NODE_MAX = 320
    KEY_MAX = 320
    CHILD_BITS = 10         # of a node in CHILD; what is left is for 64 places
    CHILD_MASK = 1023

assert NODE_MAX <= CHILD_MASK + 1

ctypedef struct Node:
    uint8_t action      # its meaning to the owner
    uint8_t types       # T_* it accepts
    uint8_t flags       # NF_*
    uint8_t mode        # M_* of its strings
    uint16_t elem       # node of the elements of an array
    uint16_t rest       # node of the values of unknown keys
    uint16_t key        # the key that leads here, for error messages
    uint8_t slot        # argument of the action

cdef Node NODES[NODE_MAX]
cdef uint16_t CHILD[NODE_MAX][KEY_MAX]      # node | place among its siblings << CHILD_BITS; 0: not ours

ctypedef struct KnownKey:
    uint16_t chain                          # next key with the same hash, 0 none
    uint8_t size
    uint8_t text[KEY_BYTES_MAX]

cdef KnownKey KEYS[KEY_MAX]
cdef uint16_t KEY_HEADS[512]

ctypedef struct Frame:
    uint64_t seen       # bits of the keys that stood in this object
    uint16_t node

ctypedef struct Json:
    uint8_t owner
    uint8_t strict
    uint8_t line            # stop at line ends: the text of one SSE line ends there
    uint8_t state
    uint16_t node           # of the innermost container
    uint16_t value_node     # of the value that is read or comes next
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
    uint16_t error_key
    uint16_t misspelt       # a key of ours that stands in other letters: told at the end, where nothing else is wrong
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
    j.value_node = <uint16_t>root
    j.in_key = 0
    j.mode = M_SKIP
    j.utf8_left = 0
    j.surrogate = 0
    j.error = E_NONE
    j.error_key = 0
    j.misspelt = 0
    j.complete = 0
    j.depth = 0
    j.text_size = 0
    j.text_over = 0


cdef void json_fault(Json* j, int code, int key) noexcept nogil:
    j.error = code
    j.error_key = <uint16_t>key
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
                j.value_node = <uint16_t>(child & CHILD_MASK) if exact else NODES[j.node].rest
                return
            # Some servers match keys whatever their case: `Model` beside `model` is as ambiguous as a repetition, and
            # `Stream` or `N` alone would be read there and not here.
            bit = <uint64_t>1 << (child >> CHILD_BITS)
            if j.frames[j.depth].seen & bit:
                json_fault(j, E_DUPLICATE_KEY, k)
                return
            j.frames[j.depth].seen |= bit
            if exact:
                j.value_node = <uint16_t>(child & CHILD_MASK)
                return
            if not j.misspelt:
                j.misspelt = <uint16_t>k
    j.value_node = NODES[j.node].rest
