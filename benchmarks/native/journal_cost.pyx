# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""What holds and the journal cost, in loops around the very functions that a call runs. Built by benchmarks/journal_cost.py."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc

include "../../relay/fastpath/constants.pxi"
include "../../relay/fastpath/limits.pxi"
include "../../relay/fastpath/money.pxi"
include "../../relay/fastpath/admission.pxi"
include "../../relay/fastpath/journal.pxi"

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_PROCESS_CPUTIME_ID
    int clock_gettime(int clock, timespec* t)

cdef int64_t cpu_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef int fill(Journal journal, Slot* slot, int64_t id, Rate rate, Admission admission) except -1:
    """As Call.open_slot and Call.note_route do."""
    slot.id = id
    slot.account_id = slot.key_id = 1
    slot.stream = 1
    slot.hold_nano = admission.hold_nano
    slot.max_cost_nano = -1
    slot.prices = rate.prices
    slot.prompt_tokens = 1000
    journal.put_text(slot, T_PATH, "/v1/chat/completions")
    journal.put_text(slot, T_MODEL, "gpt-4o")
    journal.put_text(slot, T_CARD, rate.card)
    journal.put_text(slot, T_ADDRESS, "203.0.113.77")
    journal.put_text(slot, T_AGENT, "OpenAI/Python 2.50.1")
    journal.publish(slot)
    slot.attempts = 1
    slot.text_size[T_UPSTREAM_MODEL] = slot.text_size[T_CHANNEL] = 0xFFFF
    journal.put_text(slot, T_UPSTREAM_MODEL, "gpt-4o-2024-08-06")
    journal.put_text(slot, T_CHANNEL, "openai-main")
    return 0


def journal_calls(Journal journal, Rate rate, int64_t count):
    """Nanoseconds of CPU per call: a slot taken, filled, ended, and freed by the commit of its record."""
    cdef Slot* slot
    cdef int64_t i, began = cpu_ns()
    cdef Admission admission = Admission()
    cdef list records = []
    for i in range(count):
        slot = journal.open()
        fill(journal, slot, i + 1, rate, admission)
        slot.usage.input_tokens = 1000
        slot.cost_nano = 1234
        slot.status = 200
        journal.end(slot)
        records.append((i + 1,))
        if len(records) == 500:
            journal.committed(records)
            records = []
    return <double>(cpu_ns() - began) / count


def hold_calls(ApiKey key, Rate rate, Policy policy, int64_t count):
    """Nanoseconds of CPU per call: an admission with its hold, and its settlement."""
    cdef Usage usage
    cdef int64_t i, began = cpu_ns()
    cdef Admission admission
    memset(&usage, 0, sizeof(Usage))
    usage.input_tokens = 1000
    usage.output_tokens = 100
    for i in range(count):
        admission = Admission()
        if admission.admit(key, rate, 1000, -1, 1, True, -1, policy, i, i):
            raise RuntimeError("not admitted")
        admission.settle(&usage, i, i)
    return <double>(cpu_ns() - began) / count


def events(Journal journal, ApiKey key, Rate rate, Policy policy, int64_t count):
    """Nanoseconds of CPU per event of a token: the check of the hold, its growth where a slice is used up, and the stores."""
    cdef Slot* slot = journal.open()
    cdef int64_t i, began
    cdef Admission admission = Admission()
    if admission.admit(key, rate, 1000, -1, 1, True, -1, policy, 0, 0):
        raise RuntimeError("not admitted")
    fill(journal, slot, 1, rate, admission)
    began = cpu_ns()
    for i in range(1, count + 1):
        if i > admission.output_allowance and admission.grow(i, 0):
            raise RuntimeError("did not grow")
        slot.counted_tokens = i
        store_release(<uint32_t*>&slot.delivered, 1)
    began = cpu_ns() - began
    admission.release(0)
    journal.release(slot)
    return <double>began / count
