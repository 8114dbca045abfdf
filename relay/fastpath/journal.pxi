# The in-flight journal: what would be lost if the process died now.
#
# A memory-mapped file of fixed-size slots, one per open call. A slot holds everything that the call's record and charge
# need. Writing to it is writing to memory: what is there when the process is killed is what the kernel has, so it survives
# kill -9 without a system call on the hot path. (Not a power cut: after a reboot slots are not trusted.)
#
# A slot's `state` is written last, with release order, after everything that it vouches for:
#     FREE -> OPEN      admitted: the hold is taken, ids and prices are written
#     OPEN              counts move as the answer is delivered, one aligned store each
#     OPEN -> ENDED     the ending is decided: cost, usage, status are final
#     ENDED -> FREE     the record is committed in the store
# Texts are written length last, so that one that was being written reads as absent.
#
# relay/storage/journal.py makes the file, checks its header, and settles what a dead process left.

from cpython.unicode cimport PyUnicode_AsUTF8AndSize

cdef extern from * nogil:
    """
    #include <stdint.h>
    #define RELAY_STORE_RELEASE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define RELAY_LOAD_ACQUIRE(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    """
    void store_release "RELAY_STORE_RELEASE"(uint32_t* p, uint32_t v)
    uint32_t load_acquire "RELAY_LOAD_ACQUIRE"(uint32_t* p)

cdef enum:
    J_FREE = 0
    J_OPEN = 1
    J_ENDED = 2

cdef enum:
    JOURNAL_SLOT_BYTES = 2048
    JOURNAL_TEXT_BYTES = 1536
    JOURNAL_HEADER_BYTES = 4096

cdef enum:
    T_PATH = 0
    T_MODEL
    T_CARD
    T_ADDRESS
    T_AGENT
    T_UPSTREAM_MODEL      # the last two change with every attempt
    T_CHANNEL
    TEXTS
    T_EXTRAS = 7          # no text: nano-credits, of what was used beside tokens of the call's own model

ctypedef struct Slot:
    uint32_t state
    int32_t attempts, stream, status, error_code, source      # source: index into USAGE_SOURCES; of an OPEN one, 2: in part our own count
    int32_t delivered                                          # bytes of a body have been written to the client
    int32_t usage_seen                                         # 1: a report so far; 2: the one at the end of the answer
    int64_t id, account_id, organisation_id, key_id
    int64_t wall_ns, hold_nano
    Prices prices
    Usage usage                 # as reported so far; final when ENDED
    int64_t tiered_cost_nano    # of what is delivered so far, where `prices` do not tell it; -1: they do
    int64_t prompt_tokens       # the estimate
    int64_t counted_tokens      # output, by our own count, delivered so far
    int64_t idempotency_body
    uint8_t[32] idempotency     # digest of the caller's Idempotency-Key; all zero: none
    int64_t cost_nano, written_off_nano, latency_us, first_byte_us, max_cost_nano
    uint16_t[8] text_start
    uint16_t[8] text_size       # 0xFFFF: absent
    uint16_t text_used
    char[JOURNAL_TEXT_BYTES] text

assert sizeof(Slot) <= JOURNAL_SLOT_BYTES

USAGE_SOURCES = ("none", "upstream", "estimated")
JOURNAL_SLOT_SIZE = JOURNAL_SLOT_BYTES
JOURNAL_HEADER_SIZE = JOURNAL_HEADER_BYTES
cdef Slot _layout
JOURNAL_TEXT_AT = <char*>&_layout.text - <char*>&_layout      # in front of it stand a slot's numbers


@cython.final
cdef class Journal:
    """The slots of one mapped file. `memory` is a writable buffer of whole slots and outlives every call."""
    cdef object memory
    cdef uint8_t[::1] view
    cdef Slot* slots
    cdef readonly Py_ssize_t size
    cdef uint32_t* free            # a stack of free slot numbers
    cdef Py_ssize_t free_count
    cdef dict ended                # call id -> slot number, until its record is committed

    def __cinit__(self, memory):
        cdef Py_ssize_t i
        self.memory = memory
        self.view = memory
        self.size = self.view.shape[0] // JOURNAL_SLOT_BYTES
        if self.size == 0 or self.view.shape[0] % JOURNAL_SLOT_BYTES:
            raise ValueError("a journal has whole slots")
        self.slots = <Slot*>&self.view[0]
        self.ended = {}
        self.free = <uint32_t*>PyMem_Malloc(self.size * sizeof(uint32_t))
        if self.free == NULL:
            raise MemoryError
        for i in range(self.size):
            if self.at(i).state == J_FREE:
                self.free[self.free_count] = <uint32_t>i
                self.free_count += 1

    def __dealloc__(self):
        PyMem_Free(self.free)

    cdef inline Slot* at(self, Py_ssize_t i) noexcept:
        return <Slot*>(<uint8_t*>self.slots + i * JOURNAL_SLOT_BYTES)

    cdef Slot* open(self) noexcept:
        """A free slot, still FREE until `publish`; NULL where there is none."""
        cdef Slot* slot
        if self.free_count == 0:
            return NULL
        self.free_count -= 1
        slot = self.at(self.free[self.free_count])
        memset(slot, 0, JOURNAL_SLOT_BYTES - JOURNAL_TEXT_BYTES)
        memset(slot.text_size, 0xFF, sizeof(slot.text_size))
        slot.tiered_cost_nano = -1
        return slot

    cdef void publish(self, Slot* slot) noexcept:
        store_release(&slot.state, J_OPEN)

    cdef int put_text(self, Slot* slot, int which, str text) except -1:
        """Writes a text, its length last. One that does not fit stays absent."""
        cdef const char* raw
        cdef Py_ssize_t n
        slot.text_size[which] = 0xFFFF
        if text is None:
            return 0
        raw = PyUnicode_AsUTF8AndSize(text, &n)
        if slot.text_used + n > JOURNAL_TEXT_BYTES:
            return 0
        memcpy(slot.text + slot.text_used, raw, n)
        slot.text_start[which] = slot.text_used
        slot.text_used += <uint16_t>n
        store_release(<uint32_t*>&slot.state, slot.state)
        slot.text_size[which] = <uint16_t>n
        return 0

    cdef int end(self, Slot* slot) except -1:
        """The ending stands in the slot: it counts from now on."""
        store_release(&slot.state, J_ENDED)
        self.ended[slot.id] = (<uint8_t*>slot - <uint8_t*>self.slots) // JOURNAL_SLOT_BYTES
        return 0

    cdef void release(self, Slot* slot) noexcept:
        """Frees a slot without a record: nothing was admitted after all."""
        store_release(&slot.state, J_FREE)
        self.free[self.free_count] = <uint32_t>((<uint8_t*>slot - <uint8_t*>self.slots) // JOURNAL_SLOT_BYTES)
        self.free_count += 1

    def committed(self, records):
        """Frees the slots of call records that the store has committed."""
        cdef Py_ssize_t i
        for record in records:
            number = self.ended.pop(record[0], None)
            if number is not None:
                i = number
                store_release(&self.at(i).state, J_FREE)
                self.free[self.free_count] = <uint32_t>i
                self.free_count += 1

    def holds(self, int64_t call_id):
        """Whether a call has ended and waits here for its record to be committed."""
        return call_id in self.ended

    @property
    def free_slots(self):
        return self.free_count

    @property
    def uncommitted(self):
        """Calls that have ended and whose records are not committed yet."""
        return len(self.ended)

    def left_over(self):
        """What a dead process left: one dict per slot that is not free, in the order of the calls' ids."""
        cdef Py_ssize_t i
        found = [slot_document(self.at(i)) for i in range(self.size) if load_acquire(&self.at(i).state) != J_FREE]
        found.sort(key=lambda document: document["id"])
        return found

    def clear(self):
        """Frees every slot: what they held is settled."""
        cdef Py_ssize_t i
        self.ended = {}
        self.free_count = 0
        for i in range(self.size):
            store_release(&self.at(i).state, J_FREE)
            self.free[self.free_count] = <uint32_t>i
            self.free_count += 1


cdef str slot_text(Slot* slot, int which):
    cdef uint16_t n = slot.text_size[which]
    cdef uint16_t start = slot.text_start[which]
    if n == 0xFFFF or start + n > JOURNAL_TEXT_BYTES:
        return None
    return slot.text[start:start + n].decode("utf-8", "replace")


cdef int slot_usage(const Slot* slot, Usage* usage) noexcept nogil:
    """What an open call is charged for by now; the number of its usage source."""
    usage[0] = slot.usage
    if not slot.usage_seen:
        usage.input_tokens = slot.prompt_tokens
    if slot.usage_seen < 2 and usage.output_tokens < slot.counted_tokens:
        usage.output_tokens = slot.counted_tokens
        return 2
    return 1 if slot.usage_seen and slot.source != 2 else 2


cdef void slot_cost(Slot* slot, Rate rate, int service) noexcept:
    """Keeps the cost of an open call whose price depends on more than one set of prices."""
    cdef Usage usage
    slot.usage.service = service
    slot_usage(slot, &usage)
    slot.tiered_cost_nano = rate.cost_of(&usage)


cdef void slot_extras(Slot* slot, int64_t nano) noexcept:
    """Keeps what a call has been charged so far beside tokens of its own model."""
    if slot.text_size[T_EXTRAS] == 0xFFFF:
        if slot.text_used + sizeof(int64_t) > JOURNAL_TEXT_BYTES:
            return
        slot.text_start[T_EXTRAS] = slot.text_used
        slot.text_used += sizeof(int64_t)
    memcpy(slot.text + slot.text_start[T_EXTRAS], &nano, sizeof(int64_t))
    store_release(<uint32_t*>&slot.state, slot.state)
    slot.text_size[T_EXTRAS] = sizeof(int64_t)


cdef int64_t slot_extras_nano(const Slot* slot) noexcept:
    cdef int64_t nano
    if slot.text_size[T_EXTRAS] != sizeof(int64_t) or slot.text_start[T_EXTRAS] + sizeof(int64_t) > JOURNAL_TEXT_BYTES:
        return 0
    memcpy(&nano, slot.text + slot.text_start[T_EXTRAS], sizeof(int64_t))
    return max(<int64_t>0, min(nano, RATE_MAX))


cdef tuple slot_more(const Slot* slot, const Usage* usage, bint bound):
    """The 29th field of the call's record, None where it has none. `bound`: the caller's key is to be kept."""
    cdef bytes digest = None
    if bound and (slot.idempotency[0] or memcmp(slot.idempotency, &slot.idempotency[1], 31) != 0):
        digest = slot.idempotency[:32]
    cdef int64_t extras = slot_extras_nano(slot) if slot.delivered or slot.state == J_ENDED else 0
    return more_of(usage, digest, slot.idempotency_body, ((RECOVERED_LINE, None, 1, 0, 0, 0, 0, 0, 0, 0, extras),) if extras else None)


RECOVERED_LINE = "recovered"      # records.RECOVERED_LINE
cdef int LINE_COST = 10           # where a line has its cost, as records.CALL_LINE


cdef tuple more_of(const Usage* u, bytes digest, int64_t body, tuple lines):
    if lines is None and digest is None and not (u.cache_write_1h_tokens | u.audio_input_tokens | u.audio_output_tokens
                               | u.image_input_tokens | u.image_output_tokens | u.audio_cache_read_tokens
                               | u.image_cache_read_tokens | u.service):
        return None
    return (u.cache_write_1h_tokens, u.audio_input_tokens, u.audio_output_tokens, u.image_input_tokens, u.service,
            u.image_output_tokens, u.audio_cache_read_tokens, u.image_cache_read_tokens, digest, body) + (() if lines is None else (lines,))


cdef dict slot_document(Slot* slot):
    """A slot as plain values. For an OPEN one the charge is worked out here: what was delivered, and never above what
    the caller allowed; a call of which nothing was delivered costs nothing."""
    cdef Usage usage = slot.usage
    cdef bint ended = slot.state == J_ENDED
    cdef int64_t cost = slot.cost_nano
    cdef int source = slot.source
    if not ended:
        cost = 0
        source = 0
        if slot.delivered:
            source = slot_usage(slot, &usage)
            cost = slot.tiered_cost_nano
            if cost < 0:
                cost = price_cost(&slot.prices, usage.input_tokens, usage.output_tokens, usage.cache_read_tokens,
                                  usage.cache_write_tokens, usage.cache_write_1h_tokens, usage.images,
                                  usage.video_seconds, usage.web_searches)
            cost = min(cost + slot_extras_nano(slot), COST_MAX)
        else:
            memset(&usage, 0, sizeof(Usage))
    return {
        "ended": ended, "id": slot.id, "account_id": slot.account_id, "organisation_id": slot.organisation_id or None,
        "key_id": slot.key_id, "path": slot_text(slot, T_PATH), "model": slot_text(slot, T_MODEL),
        "upstream_model": slot_text(slot, T_UPSTREAM_MODEL), "channel": slot_text(slot, T_CHANNEL),
        "attempts": slot.attempts, "stream": slot.stream,
        "status": slot.status if ended or slot.status else 499,
        "error_code": (ERROR_CODES[slot.error_code] or None) if ended and 0 <= slot.error_code < E_COUNT else "recovered",
        "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens + usage.cache_write_1h_tokens,
        "images": usage.images, "video_seconds": usage.video_seconds, "web_searches": usage.web_searches,
        "usage_source": USAGE_SOURCES[source] if 0 <= source < 3 else "none", "cost_nano": cost,
        "rate_card": slot_text(slot, T_CARD), "latency_us": slot.latency_us, "first_byte_us": slot.first_byte_us or None,
        "source_ip": slot_text(slot, T_ADDRESS), "user_agent": slot_text(slot, T_AGENT),
        "written_off_nano": slot.written_off_nano if ended else -1, "hold_nano": slot.hold_nano,
        "max_cost_nano": slot.max_cost_nano, "more": slot_more(slot, &usage, ended or slot.delivered),
    }
