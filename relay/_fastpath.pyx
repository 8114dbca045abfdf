# cython: language_level=3
"""The compiled hot path of relay: one extension, assembled from files by concern.

It imports nothing from relay. `_fastpath.pyi` is its specification: what that file does not list, Python must not use.
Order matters: each file uses only what stands above it.
"""

cimport cython

cdef extern from *:
    # Read in the file by the benchmarks, which refuse to compare what RELAY_BUILD=quick built.
    """
    #ifndef __OPTIMIZE__
    __attribute__((used)) static const char relay_build[] = "relay-build: not optimised";
    #endif
    """

include "fastpath/constants.pxi"
include "fastpath/estimator.pxi"
include "fastpath/json_state.pxi"
include "fastpath/json.pxi"
include "fastpath/schema.pxi"
include "fastpath/media.pxi"
include "fastpath/scanner.pxi"
include "fastpath/tap.pxi"
include "fastpath/limits.pxi"
include "fastpath/money.pxi"
include "fastpath/admission.pxi"
include "fastpath/jobs.pxi"
include "fastpath/journal.pxi"
include "fastpath/media_bill.pxi"
include "fastpath/evidence.pxi"
include "fastpath/http.pxi"
include "fastpath/siphash.pxi"
include "fastpath/routing.pxi"
include "fastpath/upstream_keys.pxi"
include "fastpath/upstream.pxi"
include "fastpath/catalogue.pxi"
include "fastpath/client.pxi"
include "fastpath/call.pxi"
include "fastpath/call_admit.pxi"
include "fastpath/call_evidence.pxi"
include "fastpath/call_journal.pxi"
include "fastpath/call_forward.pxi"
include "fastpath/call_look.pxi"
include "fastpath/call_answer.pxi"
include "fastpath/call_relay.pxi"
include "fastpath/call_pieces.pxi"
include "fastpath/call_heartbeat.pxi"
include "fastpath/call_end.pxi"
include "fastpath/answer_reader.pxi"
include "fastpath/frontdoor.pxi"
include "fastpath/engine.pxi"
include "fastpath/attempts.pxi"
include "fastpath/session.pxi"
include "fastpath/fold.pxi"
include "fastpath/tally.pxi"
