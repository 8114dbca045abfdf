# What /metrics says about calls: records counted by what they have in common.
#
# Not on a call's own path: batches of records are counted on their way to the writer, 0.1 us for each.
# A record finds its counters by one look-up; the numbers are C. Names come from closed sets (routes, catalogue,
# configuration), but a configuration may change as often as its operator likes: beyond TALLY_SERIES_MAX combinations
# everything new is counted as "other", so that neither memory nor the page grows without end.
#
# Oracle: tests/support/tally.py.

from libc.stdint cimport INT64_MAX

cdef enum:
    TALLY_BOUNDS = 15

cdef int64_t[TALLY_BOUNDS] TALLY_BOUND_US = [
    10000, 25000, 50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000, 30000000, 60000000, 120000000,
    300000000, 600000000]
TALLY_BOUNDS_US = tuple([TALLY_BOUND_US[i] for i in range(TALLY_BOUNDS)])
cdef Py_ssize_t TALLY_SERIES_MAX = 10000
cdef Py_ssize_t TALLY_ROUTES_MAX = 2000
TALLY_SUMS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "images", "video_seconds",
              "web_searches", "cost_nano", "write_off_nano", "retries")


cdef struct Histogram:
    int64_t[TALLY_BOUNDS + 1] counts     # by the first bound that is not below; the last: above all bounds
    int64_t sum_us


cdef inline void tally_add(int64_t* sum, int64_t value) noexcept:
    # Stays at the largest number: no figure is worth undefined behaviour.
    if value > 0:
        sum[0] = INT64_MAX if value > INT64_MAX - sum[0] else sum[0] + value


cdef inline void histogram_add(Histogram* h, int64_t us) noexcept:
    cdef int i = 0
    while i < TALLY_BOUNDS and us > TALLY_BOUND_US[i]:
        i += 1
    h.counts[i] += 1
    tally_add(&h.sum_us, us)


@cython.final
@cython.no_gc
cdef class TallyRoute:
    # Calls of one model on one channel.
    cdef int64_t[10] sums
    cdef int64_t[3] sources              # calls by usage source: upstream, estimated, none
    cdef Histogram latency, first_byte


@cython.final
@cython.no_gc
cdef class TallyCalls:
    # Calls that ended alike.
    cdef int64_t count
    cdef TallyRoute route


@cython.final
cdef class Tally:
    """Counters over call records since the process began; only added to."""
    cdef dict calls      # (path, model, channel, status, error code) -> TallyCalls
    cdef dict routes     # (model, channel) -> TallyRoute

    def __init__(self):
        self.calls = {}
        self.routes = {}

    def add(self, list records):
        """Counts these call records."""
        cdef tuple record, shape
        cdef TallyCalls calls
        cdef TallyRoute route
        cdef object found, source
        cdef int i
        for record in records:
            shape = (record[4], record[5], record[7], record[10], record[11])
            found = self.calls.get(shape)
            calls = <TallyCalls>found if found is not None else self.new_calls(shape)
            calls.count += 1
            route = calls.route
            for i in range(7):
                tally_add(&route.sums[i], record[12 + i])
            tally_add(&route.sums[7], record[20])
            tally_add(&route.sums[8], record[26])
            if record[7] is None:
                continue
            if record[8] != 1:
                tally_add(&route.sums[9], <int64_t>record[8] - 1)
            source = record[19]
            route.sources[0 if source == "upstream" else 1 if source == "estimated" else 2] += 1
            histogram_add(&route.latency, record[22])
            if record[23] is not None:
                histogram_add(&route.first_byte, record[23])

    cdef TallyCalls new_calls(self, tuple shape):
        cdef TallyCalls calls
        cdef tuple name = (shape[1], shape[2])
        if len(self.calls) >= TALLY_SERIES_MAX:
            shape = ("other", "other", "other", 0, "other")
            name = ("other", "other")
            found = self.calls.get(shape)
            if found is not None:
                return <TallyCalls>found
        calls = TallyCalls.__new__(TallyCalls)
        calls.count = 0
        if name not in self.routes and len(self.routes) >= TALLY_ROUTES_MAX:
            name = ("other", "other")
        calls.route = <TallyRoute>self.routes.get(name)
        if calls.route is None:
            calls.route = TallyRoute.__new__(TallyRoute)
            memset(calls.route.sums, 0, sizeof(calls.route.sums))
            memset(calls.route.sources, 0, sizeof(calls.route.sources))
            memset(&calls.route.latency, 0, sizeof(Histogram))
            memset(&calls.route.first_byte, 0, sizeof(Histogram))
            self.routes[name] = calls.route
        self.calls[shape] = calls
        return calls

    def ended(self):
        """[((path, model, channel, status, error code), calls)] in the order in which they were first seen."""
        return [(shape, (<TallyCalls>calls).count) for shape, calls in self.calls.items()]

    def by_route(self):
        """[((model, channel), sums by TALLY_SUMS, calls by usage source, latency, first byte)].

        The last two: (counts by TALLY_BOUNDS_US and above, sum in microseconds). Calls without a channel are not among
        the sources and the times.
        """
        cdef TallyRoute route
        found = []
        for name, route in self.routes.items():
            found.append((name, tuple([route.sums[i] for i in range(10)]), tuple([route.sources[i] for i in range(3)]),
                          histogram_tuple(&route.latency), histogram_tuple(&route.first_byte)))
        return found


cdef tuple histogram_tuple(Histogram* h):
    return tuple([h.counts[i] for i in range(TALLY_BOUNDS + 1)]), h.sum_us
