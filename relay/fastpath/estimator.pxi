# Token estimates: a Mealy automaton over byte classes of decoded UTF-8 text.
#
# One step per byte: its class and the present state give the next state and a weight in 1/4096 token. All that is
# remembered between bytes is the state, so a text may be fed in any pieces and the count is the same, for a prompt as
# for the deltas of a stream. Integers only: the count is the same on every machine. docs/tokens.md says how the tables
# are made and how far the counts are off.

from libc.stdlib cimport free, malloc

TOKEN_UNIT = 4096
TABLE_MAGIC = b"RTK1"

cdef enum:
    TOKEN_BITS = 12
    TABLE_HEADER = 4 + 2 + 2 + 256     # magic, number of classes, number of states, class of each byte
    CALIBRATION_BITS = 16
    CALIBRATION_ONE = 1 << 16
    CALIBRATION_PRIOR = 1024           # tokens
    CALIBRATION_SAMPLE_MAX = 1 << 14   # tokens
    CALIBRATION_WINDOW = 1 << 18       # tokens

# Weight and next state lie side by side, and the state is the index of its first step, so the dependent chain of a
# byte is one load. Two 16-bit loads are faster here than one of 32 bits and a shift.
ctypedef struct TokenStep:
    uint16_t weight
    uint16_t next

ctypedef struct Counter:
    uint32_t state     # index of the state's first step; 0 is the start
    uint64_t acc       # 1/4096 token


@cython.final
cdef class TokenTable:
    """The automaton of one tokenizer family, from its packed form.

    Packed: `RTK1`, number of classes (u16, little endian as everything here), number of states (u16), the class of each
    of the 256 byte values (u8), then for each state and class the next state (u16), then in the same order the
    weights (u16, 1/4096 token). State 0 is the start. At most 65,535 steps. ValueError if it is anything else.
    """

    cdef uint8_t classes[256]
    cdef TokenStep* steps
    cdef readonly int class_count
    cdef readonly int state_count

    def __cinit__(self, bytes packed not None):
        cdef const uint8_t* p = packed
        cdef Py_ssize_t size = len(packed)
        cdef Py_ssize_t i, count
        cdef uint32_t target
        if size < TABLE_HEADER or packed[:4] != TABLE_MAGIC:
            raise ValueError("not a token table")
        self.class_count = p[4] | p[5] << 8
        self.state_count = p[6] | p[7] << 8
        count = <Py_ssize_t>self.class_count * self.state_count
        if count < 1 or count > 65535 or self.class_count > 256 or size != TABLE_HEADER + 4 * count:
            raise ValueError("token table of a wrong size")
        for i in range(256):
            self.classes[i] = p[8 + i]
            if self.classes[i] >= self.class_count:
                raise ValueError("token table with an unknown byte class")
        self.steps = <TokenStep*>malloc(count * sizeof(TokenStep))
        if self.steps == NULL:
            raise MemoryError
        p += TABLE_HEADER
        for i in range(count):
            target = p[2 * i] | p[2 * i + 1] << 8
            if target >= <uint32_t>self.state_count:
                raise ValueError("token table with an unknown state")
            self.steps[i].next = <uint16_t>(target * <uint32_t>self.class_count)
            self.steps[i].weight = <uint16_t>(p[2 * (count + i)] | p[2 * (count + i) + 1] << 8)

    def __dealloc__(self):
        free(self.steps)


cdef inline void count_byte(TokenTable t, Counter* c, uint8_t b) noexcept nogil:
    """Count one byte of decoded text."""
    cdef const TokenStep* step = t.steps + c.state + t.classes[b]
    c.acc += step.weight
    c.state = step.next


cdef inline void count_bytes(TokenTable t, Counter* c, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Count `n` bytes of decoded text; cuts may fall anywhere, also inside a UTF-8 character."""
    cdef const TokenStep* steps = t.steps
    cdef const TokenStep* step
    cdef const uint8_t* classes = t.classes
    cdef const uint8_t* end = p + n
    cdef uint64_t acc = c.acc
    cdef uint64_t state = c.state
    while p < end:
        step = steps + state + classes[p[0]]
        acc += step.weight
        state = step.next
        p += 1
    c.acc = acc
    c.state = <uint32_t>state


cdef inline int64_t whole_tokens(const Counter* c) noexcept nogil:
    """The count in whole tokens, rounded up."""
    return <int64_t>((c.acc + (1 << TOKEN_BITS) - 1) >> TOKEN_BITS)


def count_text(TokenTable table not None, bytes data not None):
    """The estimate for UTF-8 text, in 1/4096 tokens."""
    cdef Counter c
    c.state = 0
    c.acc = 0
    count_bytes(table, &c, <const uint8_t*>data, len(data))
    return c.acc


def count_pieces(TokenTable table not None, list pieces not None, bint bytewise=False):
    """The estimate for UTF-8 text that arrives in pieces, in 1/4096 tokens."""
    cdef Counter c
    cdef bytes piece
    cdef Py_ssize_t i
    c.state = 0
    c.acc = 0
    for piece in pieces:
        if bytewise:
            for i in range(len(piece)):
                count_byte(table, &c, <uint8_t>piece[i])
        else:
            count_bytes(table, &c, <const uint8_t*>piece, len(piece))
    return c.acc


@cython.final
cdef class Calibration:
    """How far estimates are off for one model on one channel: a running ratio actual / estimate, in integers.

    Both sides are summed in tokens, so answers count by size, and halved together once the window is full, so old
    answers fade. It begins as if CALIBRATION_PRIOR tokens had been seen at `permille` / 1000. One answer counts as at
    most CALIBRATION_SAMPLE_MAX tokens and within [0.5, 3] times its estimate: an odd report cannot throw the ratio off.
    """

    cdef int64_t estimated
    cdef int64_t actual

    def __cinit__(self, int permille=1000):
        if not 500 <= permille <= 3000:
            raise ValueError("calibration must start within 500 and 3000 permille")
        self.estimated = CALIBRATION_PRIOR
        self.actual = CALIBRATION_PRIOR * permille // 1000

    cdef inline void observe_tokens(self, int64_t estimated, int64_t actual) noexcept nogil:
        """Learn from an answer that reported its usage. What is not positive teaches nothing."""
        if estimated <= 0 or actual <= 0:
            return
        estimated = clamp_usage(estimated)
        if actual > 3 * estimated:
            actual = 3 * estimated
        elif actual < (estimated + 1) // 2:
            actual = (estimated + 1) // 2
        if estimated > CALIBRATION_SAMPLE_MAX:
            actual = actual * CALIBRATION_SAMPLE_MAX // estimated
            estimated = CALIBRATION_SAMPLE_MAX
        self.estimated += estimated
        self.actual += actual
        if self.estimated > CALIBRATION_WINDOW:
            self.estimated >>= 1
            self.actual >>= 1

    cdef inline int64_t apply_tokens(self, int64_t estimated) noexcept nogil:
        """The corrected estimate, rounded up; 0 stays 0."""
        cdef int64_t ratio = (self.actual << CALIBRATION_BITS) // self.estimated
        if ratio < CALIBRATION_ONE // 2:
            ratio = CALIBRATION_ONE // 2
        elif ratio > 3 * CALIBRATION_ONE:
            ratio = 3 * CALIBRATION_ONE
        return (clamp_usage(estimated) * ratio + CALIBRATION_ONE - 1) >> CALIBRATION_BITS

    def observe(self, int64_t estimated, int64_t actual):
        self.observe_tokens(estimated, actual)

    def apply(self, int64_t estimated):
        return self.apply_tokens(estimated)

    def export(self):
        """The two sums (estimated, actual), to be kept and given to `load`."""
        return self.estimated, self.actual

    def load(self, int64_t estimated, int64_t actual):
        """Take up sums from `export`; ValueError if they cannot be such."""
        if not (0 < estimated <= CALIBRATION_WINDOW and 0 < actual <= 3 * CALIBRATION_WINDOW):
            raise ValueError("not the sums of a calibration")
        self.estimated = estimated
        self.actual = actual
