# Which way a call goes: breakers, keys that rest, the budget of repeated attempts, and the choice among channels.
#
# Every decision here is a function of numbers that it is given (loads, states, times, random words): `pick_channel` and
# the `py_` methods show them to tests, whose plain Python twin stands in tests/support/routing_oracle.py. With one calm
# channel that has one key none of this runs: see Engine.choose.

from libc.math cimport log

cdef enum:
    BREAKER_CLOSED = 0      # in use
    BREAKER_OPEN            # failed too often: nothing is sent before `probe_ns`
    BREAKER_HALF_OPEN       # one call at a time is sent to see
    WAY_OPEN = 0            # what a channel is to a call that looks for one
    WAY_PROBE               # a call has to try it
    WAY_SHUT
    OUTCOMES = 128          # remembered per channel; a power of two
    OUTCOMES_JUDGED = 100   # a rate is taken over at most so many of them
    IN_A_ROW = 10           # failures that open a breaker whatever was before
    RECENT_OUTCOMES = 8
    PROBES_GOOD = 3         # probes in a row that close a breaker
    BUDGET_TICKS = 40       # of the sweep: ten seconds
    CANDIDATES_MAX = 64     # channels of one model and dialect; the configuration refuses more
    AFFINITY_TOKENS_MIN = 1024
    FAILURE_LOAD = 4        # a recent failure weighs as many calls in flight: what fails at once would look idle


cdef enum:
    # What an upstream's error is about, and for what its key is of no use: as in relay/wire/upstream_errors.py.
    V_REQUEST = 0
    V_ACCOUNT
    V_UPSTREAM
    V_MISSING
    SCOPE_CALL = 0
    SCOPE_PLACE
    SCOPE_DOUBT
    SCOPE_MODEL
    SCOPE_KEY
    # What an attempt of a call tries out, a set.
    PROBES_CHANNEL = 1
    PROBES_PLACE = 2

cdef int64_t RECENT_NS = 1_000_000_000


@cython.final
cdef class Breaker:
    """Whether a channel is used, from how its last attempts went. All times are monotonic nanoseconds and given."""
    cdef int64_t[OUTCOMES] ended_ns        # of the last attempts, a ring; below zero: it failed
    cdef uint32_t outcomes                 # in all since it closed
    cdef readonly int state
    cdef readonly int calls_min, failure_percent
    cdef readonly int64_t window_ns, open_ns_min, open_ns_max
    cdef readonly int64_t open_ns          # how long it stays open this time
    cdef readonly int64_t probe_ns         # when the next probe may begin
    cdef readonly int64_t closed_ns        # when it closed last; 0: it never opened
    cdef readonly int64_t changed_ns
    cdef readonly bint probing             # one is on its way
    cdef readonly int probes_good
    cdef readonly int64_t opened_total
    cdef readonly int last_code            # E_* of the last failure

    def __init__(self, *, int calls_min=20, int failure_percent=50, int64_t window_ns=30_000_000_000,
                 int64_t open_ns_min=2_000_000_000, int64_t open_ns_max=60_000_000_000):
        self.configure(calls_min=calls_min, failure_percent=failure_percent, window_ns=window_ns, open_ns_min=open_ns_min,
                       open_ns_max=open_ns_max)

    def configure(self, *, int calls_min, int failure_percent, int64_t window_ns, int64_t open_ns_min, int64_t open_ns_max):
        """New settings; a percentage of 0 never opens, and closes what is open."""
        self.calls_min = calls_min
        self.failure_percent = failure_percent
        self.window_ns = window_ns
        self.open_ns_min = open_ns_min
        self.open_ns_max = open_ns_max
        if failure_percent == 0:
            self.state = BREAKER_CLOSED

    cdef inline void succeeded(self, int64_t now) noexcept:
        """An attempt went well while the breaker was closed: all that the common path does."""
        self.ended_ns[self.outcomes & (OUTCOMES - 1)] = now
        self.outcomes += 1

    cdef bint failed(self, int64_t now, int code, bint may_open=True) noexcept:
        """An attempt failed. True where this opened the breaker."""
        cdef int64_t at
        cdef int seen = 0, bad = 0
        cdef uint32_t i
        self.last_code = code
        if self.state != BREAKER_CLOSED:
            return False       # begun before it opened: known already
        self.ended_ns[self.outcomes & (OUTCOMES - 1)] = -now
        self.outcomes += 1
        if self.failure_percent == 0:
            return False
        for i in range(1, OUTCOMES_JUDGED + 1):
            if i > self.outcomes:
                break
            at = self.ended_ns[(self.outcomes - i) & (OUTCOMES - 1)]
            if now - (-at if at < 0 else at) > self.window_ns:
                break
            seen += 1
            bad += at < 0
            if seen == IN_A_ROW and bad == seen:
                break
        if not may_open or ((seen < self.calls_min or bad * 100 < self.failure_percent * seen) and not bad == seen == IN_A_ROW):
            return False
        # Opened again soon after it closed: what healed it did not last, so wait longer than the last time.
        if self.closed_ns and now - self.closed_ns <= self.window_ns:
            self.open_ns = min(2 * self.open_ns, self.open_ns_max)
        else:
            self.open_ns = self.open_ns_min
        self.open(now)
        return True

    cdef Breaker beside(self):
        """One with the same settings."""
        return Breaker(calls_min=self.calls_min, failure_percent=self.failure_percent, window_ns=self.window_ns,
                       open_ns_min=self.open_ns_min, open_ns_max=self.open_ns_max)

    cdef void close(self, int64_t now) noexcept:
        """By an operator's word."""
        self.state = BREAKER_CLOSED
        self.changed_ns = now
        self.closed_ns = 0
        self.outcomes = 0
        self.probing = False

    cdef void open(self, int64_t now) noexcept:
        self.state = BREAKER_OPEN
        self.changed_ns = now
        self.probe_ns = now + self.open_ns
        self.probing = False
        self.probes_good = 0
        self.opened_total += 1

    cdef int way(self, int64_t now) noexcept:
        """WAY_*: what the channel is to a call that looks for one."""
        if self.state == BREAKER_CLOSED:
            return WAY_OPEN
        return WAY_PROBE if not self.probing and now >= self.probe_ns else WAY_SHUT

    cdef void begin_probe(self, int64_t now) noexcept:
        if self.state != BREAKER_HALF_OPEN:
            self.state = BREAKER_HALF_OPEN
            self.changed_ns = now
        self.probing = True

    cdef bint end_probe(self, int64_t now, int outcome, int code) noexcept:
        """1: it went well, 0: it failed, -1: it says nothing (its client left). True where the breaker closed or opened."""
        if self.state != BREAKER_HALF_OPEN or not self.probing:
            return False
        self.probing = False
        if outcome == 0:
            self.last_code = code
            self.open_ns = min(2 * self.open_ns, self.open_ns_max)
            self.open(now)
            return True
        if outcome == 1:
            self.probes_good += 1
            if self.probes_good >= PROBES_GOOD:
                self.state = BREAKER_CLOSED
                self.changed_ns = self.closed_ns = now
                self.outcomes = 0
                return True
        return False

    cdef int recent_failures(self, int64_t now) noexcept:
        """Of the last few attempts, within a second."""
        cdef int64_t at
        cdef int bad = 0
        cdef uint32_t i
        for i in range(1, RECENT_OUTCOMES + 1):
            if i > self.outcomes:
                break
            at = self.ended_ns[(self.outcomes - i) & (OUTCOMES - 1)]
            if at < 0 and now + at <= RECENT_NS:
                bad += 1
        return bad

    # for tests

    def py_succeeded(self, int64_t now):
        if self.state == BREAKER_CLOSED:
            self.succeeded(now)

    def py_failed(self, int64_t now, int code=0, bint may_open=True):
        return self.failed(now, code, may_open)

    def py_way(self, int64_t now):
        return self.way(now)

    def py_begin_probe(self, int64_t now):
        self.begin_probe(now)

    def py_end_probe(self, int64_t now, int outcome, int code=0):
        return self.end_probe(now, outcome, code)

    def py_recent_failures(self, int64_t now):
        return self.recent_failures(now)


@cython.final
cdef class RetryBudget:
    """How many attempts beyond a call's first there may be: a share of the calls of the last ten seconds and a floor.

    Without it an outage multiplies the load on what is left of the upstreams.
    """
    cdef int64_t[BUDGET_TICKS] calls, retries
    cdef int64_t calls_before, retries_before     # sums of the ticks before the present one
    cdef int at
    cdef int64_t calls_now, retries_now
    cdef readonly int percent
    cdef readonly int64_t per_second_min
    cdef readonly int64_t retries_total, refused_total

    def __init__(self, int percent=20, int64_t per_second_min=10):
        self.configure(percent, per_second_min)

    def configure(self, int percent, int64_t per_second_min):
        self.percent = percent
        self.per_second_min = per_second_min

    cdef bint left(self) noexcept:
        """Whether there is another attempt in it."""
        return (self.retries_before + self.retries_now) * 100 < \
            self.percent * (self.calls_before + self.calls_now) + self.per_second_min * (BUDGET_TICKS // 4) * 100

    cdef bint take(self) noexcept:
        if self.left():
            self.retries_now += 1
            self.retries_total += 1
            return True
        self.refused_total += 1
        return False

    cdef void tick(self) noexcept:
        """A quarter of a second has passed."""
        self.calls[self.at] = self.calls_now
        self.retries[self.at] = self.retries_now
        self.calls_before += self.calls_now
        self.retries_before += self.retries_now
        self.calls_now = self.retries_now = 0
        self.at = (self.at + 1) % BUDGET_TICKS
        self.calls_before -= self.calls[self.at]      # the slot that the present tick takes over
        self.retries_before -= self.retries[self.at]
        self.calls[self.at] = self.retries[self.at] = 0

    # for tests

    def py_call(self):
        self.calls_now += 1

    def py_take(self):
        return bool(self.take())

    def py_tick(self):
        self.tick()


cdef inline uint64_t mix(uint64_t x) noexcept nogil:
    """The finaliser of splitmix64: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    return x ^ (x >> 31)


# --- the choice among channels ---

ctypedef struct Candidate:
    int priority
    int way                 # WAY_*
    int64_t weight          # 1 to 10^6
    int64_t load            # calls in flight, and what recent failures weigh
    uint64_t salt           # of the channel's name
    bint used               # by `pick`: dealt with


cdef int draw(const Candidate* c, int n, int priority, int besides, uint64_t word) noexcept nogil:
    """An open channel of this priority by weight, -1 where there is none besides `besides`."""
    cdef int64_t total = 0, at
    cdef int i
    for i in range(n):
        if c[i].way == WAY_OPEN and c[i].priority == priority and i != besides:
            total += c[i].weight
    if total == 0:
        return -1
    at = <int64_t>(word % <uint64_t>total)
    for i in range(n):
        if c[i].way == WAY_OPEN and c[i].priority == priority and i != besides:
            at -= c[i].weight
            if at < 0:
                return i
    return -1


cdef int pick(Candidate* c, int n, uint64_t affinity, uint64_t word1, uint64_t word2) noexcept nogil:
    """The channel of a call, -1: none. `affinity` 0: the call has no reason to go where others went.

    The lowest priority number that has an open channel or one to be probed. There a probe comes first: else a channel that
    healed would wait for chance. Without affinity two are drawn by weight and the first is taken, unless it has clearly
    more in flight for its weight. With affinity the channels stand in an order that depends on the prompt and their
    weights alone (weighted rendezvous), and the first that is not far above its share of what is in flight is taken.
    """
    cdef int priority = 0x7FFFFFFF, i, first, second, best
    cdef int64_t total_load = 0, total_weight = 0
    cdef double score, best_score, u
    for i in range(n):
        if c[i].way != WAY_SHUT and c[i].priority < priority:
            priority = c[i].priority
    for i in range(n):
        if c[i].way == WAY_PROBE and c[i].priority == priority:
            return i
    if affinity:
        for i in range(n):
            c[i].used = c[i].way != WAY_OPEN or c[i].priority != priority
            if not c[i].used:
                total_load += c[i].load
                total_weight += c[i].weight
        first = -1
        while True:
            best = -1
            best_score = 0
            for i in range(n):
                if not c[i].used:
                    u = (<double>(mix(affinity ^ c[i].salt) >> 11) + 0.5) / 9007199254740992.0      # in (0, 1)
                    score = -log(u) / <double>c[i].weight
                    if best < 0 or score < best_score:
                        best = i
                        best_score = score
            if best < 0:
                return first      # all above: cannot be, but for the allowance
            if first < 0:
                first = best
            if (c[best].load - 8) * total_weight <= 2 * total_load * c[best].weight:
                return best
            c[best].used = True
    first = draw(c, n, priority, -1, word1)
    if first < 0:
        return -1
    second = draw(c, n, priority, first, word2)
    if second >= 0 and (c[first].load - 1) * c[second].weight > (c[second].load + 1) * c[first].weight:
        return second
    return first


def pick_channel(list candidates, uint64_t affinity, uint64_t word1, uint64_t word2):
    """For tests: the index of the channel picked from (priority, way, weight, load, salt), or -1."""
    cdef Candidate[CANDIDATES_MAX] c
    cdef int i, n = len(candidates)
    if n > CANDIDATES_MAX:
        raise ValueError("too many channels")
    for i in range(n):
        c[i].priority, c[i].way, c[i].weight, c[i].load, c[i].salt = candidates[i]
    return pick(c, n, affinity, word1, word2)
