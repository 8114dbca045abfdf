# Limits of one scope (a key, an account, an organisation): requests and tokens per minute, concurrent calls, spending caps.
#
# Rates are GCRA: one timestamp per bucket, the time at which it will be full again. Fractions of a nanosecond are kept
# (`tat_frac` / `limit` ns), so that no rate drifts. The burst is the limit: a full bucket gives exactly `limit` permits.
# Nothing here reads a clock: `now_ns` is monotonic, `wall_ns` is since 1970, both >= 0 and below 2^62.

cdef extern from * nogil:
    """
    typedef unsigned __int128 relay_u128;

    #define RELAY_MINUTE_NS INT64_C(60000000000)
    #define RELAY_DAY_NS INT64_C(86400000000000)
    #define RELAY_DEBT_NS_MAX RELAY_DAY_NS   /* one absurd usage report must not lock a scope for longer than a day */

    typedef struct { int64_t limit; int64_t tat_ns; int64_t tat_frac; } relay_bucket;

    /* How long `permits` take to grow back, in ns and 1/limit ns. */
    static inline void relay_bucket_span(const relay_bucket *b, int64_t permits, int64_t *ns, int64_t *frac) {
        if (permits <= INT64_C(150000000)) {   /* the product fits 63 bits */
            int64_t x = permits * RELAY_MINUTE_NS;
            *ns = x / b->limit;
            *frac = x % b->limit;
        } else {
            relay_u128 x = (relay_u128)permits * (relay_u128)RELAY_MINUTE_NS;
            relay_u128 q = x / (relay_u128)b->limit;
            *ns = q > (relay_u128)RELAY_DEBT_NS_MAX ? RELAY_DEBT_NS_MAX : (int64_t)q;
            *frac = (int64_t)(x % (relay_u128)b->limit);
        }
    }

    static inline relay_bucket relay_bucket_after(const relay_bucket *b, int64_t permits, int64_t now_ns) {
        relay_bucket next = *b;
        int64_t ns, frac;
        if (b->limit <= 0 || permits <= 0) return next;
        if (next.tat_ns < now_ns) { next.tat_ns = now_ns; next.tat_frac = 0; }
        relay_bucket_span(b, permits, &ns, &frac);
        next.tat_ns += ns;
        next.tat_frac += frac;
        if (next.tat_frac >= next.limit) { next.tat_frac -= next.limit; next.tat_ns += 1; }
        return next;
    }

    /* `b` with `permits` taken at `now_ns`, whatever is left in it. */
    static inline relay_bucket relay_bucket_charged(const relay_bucket *b, int64_t permits, int64_t now_ns) {
        relay_bucket next = relay_bucket_after(b, permits, now_ns);
        if (permits > 0 && next.tat_ns - now_ns >= RELAY_DEBT_NS_MAX) {
            next.tat_ns = now_ns + RELAY_DEBT_NS_MAX;
            next.tat_frac = 0;
        }
        return next;
    }

    /* 0 and the bucket after taking, or the exact time in ns (>= 1) until the same demand would be admitted. */
    static inline int64_t relay_bucket_take(const relay_bucket *b, int64_t permits, int64_t now_ns, relay_bucket *next) {
        int64_t over;
        *next = *b;
        if (b->limit <= 0 || permits <= 0) return 0;
        if (permits > b->limit && (b->tat_ns > now_ns || (b->tat_ns == now_ns && b->tat_frac > 0)))
            return b->tat_ns - now_ns + (b->tat_frac > 0);
        if (permits > b->limit) { *next = relay_bucket_charged(b, permits, now_ns); return 0; }
        *next = relay_bucket_after(b, permits, now_ns);
        over = next->tat_ns - now_ns - RELAY_MINUTE_NS + (next->tat_frac > 0);
        if (over <= 0) return 0;
        *next = *b;
        return over;
    }

    /* Gives permits back; never makes the bucket fuller than full now. */
    static inline void relay_bucket_give_back(relay_bucket *b, int64_t permits, int64_t now_ns) {
        int64_t ns, frac;
        if (b->limit <= 0 || permits <= 0 || b->tat_ns < now_ns) return;
        relay_bucket_span(b, permits, &ns, &frac);
        b->tat_ns -= ns;
        b->tat_frac -= frac;
        if (b->tat_frac < 0) { b->tat_frac += b->limit; b->tat_ns -= 1; }
        if (b->tat_ns < now_ns) { b->tat_ns = now_ns; b->tat_frac = 0; }
    }

    /* A new limit: what was used lately stays used, but never blocks for longer than a minute unless it already did. */
    static inline void relay_bucket_configure(relay_bucket *b, int64_t limit, int64_t now_ns) {
        int64_t debt, most;
        relay_u128 scaled;
        if (limit == b->limit) return;
        debt = b->tat_ns - now_ns + (b->tat_frac > 0);
        if (b->limit <= 0 || limit <= 0 || debt <= 0) {
            b->tat_ns = now_ns;
        } else {
            most = debt > RELAY_MINUTE_NS ? debt : RELAY_MINUTE_NS;
            scaled = ((relay_u128)debt * (relay_u128)b->limit + (relay_u128)(limit - 1)) / (relay_u128)limit;
            b->tat_ns = now_ns + (scaled < (relay_u128)most ? (int64_t)scaled : most);
        }
        b->tat_frac = 0;
        b->limit = limit;
    }

    /* Whole permits that can be taken at once now. */
    static inline int64_t relay_bucket_remaining(const relay_bucket *b, int64_t now_ns) {
        int64_t room;
        if (b->tat_ns < now_ns) return b->limit;
        room = now_ns + RELAY_MINUTE_NS - b->tat_ns;
        if (room <= 0) return 0;
        return (int64_t)(((relay_u128)room * (relay_u128)b->limit - (relay_u128)b->tat_frac) / RELAY_MINUTE_NS);
    }

    /* Time in ns until the bucket is full again. */
    static inline int64_t relay_bucket_reset(const relay_bucket *b, int64_t now_ns) {
        int64_t debt = b->tat_ns - now_ns + (b->tat_frac > 0);
        return b->limit <= 0 || debt < 0 ? 0 : debt;
    }

    /* Months since 1970-01 of a day since 1970-01-01 (proleptic Gregorian; day >= 0). */
    static inline int64_t relay_month_of_day(int64_t day) {
        int64_t z = day + 719468, era = z / 146097, doe = z - era * 146097;
        int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
        int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
        int64_t month = mp < 10 ? mp + 3 : mp - 9;
        return (yoe + era * 400 + (month <= 2) - 1970) * 12 + month - 1;
    }
    """
    ctypedef struct Bucket "relay_bucket":
        int64_t limit
        int64_t tat_ns
        int64_t tat_frac
    int64_t MINUTE_NS "RELAY_MINUTE_NS"
    int64_t DAY_NS "RELAY_DAY_NS"
    Bucket bucket_charged "relay_bucket_charged"(const Bucket* b, int64_t permits, int64_t now_ns)
    int64_t bucket_take "relay_bucket_take"(const Bucket* b, int64_t permits, int64_t now_ns, Bucket* next)
    void bucket_give_back "relay_bucket_give_back"(Bucket* b, int64_t permits, int64_t now_ns)
    void bucket_configure "relay_bucket_configure"(Bucket* b, int64_t limit, int64_t now_ns)
    int64_t bucket_remaining "relay_bucket_remaining"(const Bucket* b, int64_t now_ns)
    int64_t bucket_reset "relay_bucket_reset"(const Bucket* b, int64_t now_ns)
    int64_t month_of_day "relay_month_of_day"(int64_t day)

# No amount of money inside the hot path is above this, so that sums of three of them fit 63 bits.
cdef int64_t NANO_MAX = <int64_t>1 << 61
cdef int64_t PERMITS_MAX = <int64_t>1 << 53      # the largest rate limit
cdef int64_t CONCURRENCY_RETRY_NS = 1000000000   # when a running call will end is not known: ask again in a second
cdef enum:
    SCOPES_MAX = 8                               # scopes that can hold for one call


cdef int64_t _checked(object value, str name, int64_t most) except -1:
    """An int in [0, most], or ValueError naming the field; TypeError for what is no int (a float would be cut)."""
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int")
    if not 0 <= value <= most:
        raise ValueError(f"{name} must be between 0 and {most}")
    return value


@cython.final
cdef class Scope:
    """What holds for all calls of one key, one account or one organisation together. A limit of 0 is no limit.

    Caps count what is spent and what is reserved by open calls, so that a burst cannot pass them. The day and the month
    are UTC and move on with the wall time that each call brings; a clock set back never frees a cap that was used.
    """
    cdef readonly str kind                   # "key", "account", "organisation"
    cdef readonly int64_t id
    cdef Bucket rpm
    cdef Bucket tpm
    cdef readonly int64_t concurrency_limit
    cdef readonly int64_t in_flight
    cdef readonly int64_t daily_cap_nano
    cdef readonly int64_t monthly_cap_nano
    cdef readonly int64_t day                # UTC day index that spent_day_nano belongs to
    cdef readonly int64_t month              # UTC month index that spent_month_nano belongs to
    cdef readonly int64_t spent_day_nano
    cdef readonly int64_t spent_month_nano
    cdef readonly int64_t reserved_nano      # holds of open calls
    cdef readonly int64_t tokens_per_call
    cdef readonly dict tokens_per_call_models  # bytes (model) -> int, or None: exceptions to tokens_per_call

    def __init__(self, str kind, int64_t id):
        if kind not in ("key", "account", "organisation"):
            raise ValueError("kind must be key, account or organisation")
        self.kind = kind
        self.id = id

    def configure(self, *, now_ns, rpm=0, tpm=0, concurrency=0, daily_nano=0, monthly_nano=0, tokens_per_call=0,
                  tokens_per_call_models=None):
        """Sets every limit (0: none). Buckets keep what was used lately. ValueError before anything is changed."""
        cdef int64_t now = _checked(now_ns, "now_ns", NANO_MAX)
        cdef int64_t requests = _checked(rpm, "rpm", PERMITS_MAX)
        cdef int64_t tokens = _checked(tpm, "tpm", PERMITS_MAX)
        cdef int64_t calls = _checked(concurrency, "concurrency", PERMITS_MAX)
        cdef int64_t daily = _checked(daily_nano, "daily_nano", NANO_MAX)
        cdef int64_t monthly = _checked(monthly_nano, "monthly_nano", NANO_MAX)
        cdef int64_t per_call = _checked(tokens_per_call, "tokens_per_call", PERMITS_MAX)
        cdef dict models = None
        if tokens_per_call_models:
            models = {bytes(name): _checked(limit, "tokens_per_call", PERMITS_MAX)
                      for name, limit in tokens_per_call_models.items()}
        bucket_configure(&self.rpm, requests, now)
        bucket_configure(&self.tpm, tokens, now)
        self.concurrency_limit = calls
        self.daily_cap_nano = daily
        self.monthly_cap_nano = monthly
        self.tokens_per_call = per_call
        self.tokens_per_call_models = models

    def load_spend(self, day, daily_nano, month, monthly_nano):
        """What the store knows to be spent: on that UTC day and in that UTC month. Replaces what was counted."""
        cdef int64_t day_index = _checked(day, "day", PERMITS_MAX)
        cdef int64_t month_index = _checked(month, "month", PERMITS_MAX)
        cdef int64_t of_day = _checked(min(daily_nano, NANO_MAX), "daily_nano", NANO_MAX)
        cdef int64_t of_month = _checked(min(monthly_nano, NANO_MAX), "monthly_nano", NANO_MAX)
        self.day = day_index
        self.month = month_index
        self.spent_day_nano = of_day
        self.spent_month_nano = of_month

    cdef void roll(self, int64_t wall_ns) noexcept:
        """Begins a new day or month when the wall time is in one."""
        cdef int64_t day = wall_ns // DAY_NS
        cdef int64_t month
        if day == self.day:
            return
        if day == self.day - 1:
            return                           # a clock put right by a little around midnight
        month = month_of_day(day)
        # A clock that was far ahead has come back: count on from here, and keep what was spent on both caps.
        if day > self.day:
            self.spent_day_nano = 0
        if month > self.month:
            self.spent_month_nano = 0
        self.day = day
        self.month = month

    cdef inline int64_t daily_room(self) noexcept:
        """What may still be reserved today, in nano-credits; negative when already above."""
        return self.daily_cap_nano - self.spent_day_nano - self.reserved_nano

    cdef inline int64_t monthly_room(self) noexcept:
        return self.monthly_cap_nano - self.spent_month_nano - self.reserved_nano

    cdef inline void spend(self, int64_t nano, int64_t day) noexcept:
        """Counts what a settled call was charged, on the day on which it began, as the store does; the caller has rolled
        the day. Sticks at NANO_MAX."""
        if day < self.day:
            if month_of_day(day) < self.month:
                return
        else:
            self.spent_day_nano = min(self.spent_day_nano + nano, NANO_MAX)
        self.spent_month_nano = min(self.spent_month_nano + nano, NANO_MAX)

    cdef int64_t call_tokens_limit(self, bytes model):
        """Most tokens of one call of this model; 0 is no limit."""
        if self.tokens_per_call_models is None or model is None:
            return self.tokens_per_call
        return self.tokens_per_call_models.get(model, self.tokens_per_call)

    @property
    def rpm_limit(self):
        return self.rpm.limit

    @property
    def tpm_limit(self):
        return self.tpm.limit

    def state(self, int64_t now_ns, int64_t wall_ns):
        """Every limit in force and what is left of it, as plain numbers; a limit of 0 is none (its rest is then 0)."""
        self.roll(wall_ns)
        return {
            "requests_limit": self.rpm.limit,
            "requests_remaining": bucket_remaining(&self.rpm, now_ns) if self.rpm.limit else 0,
            "requests_reset_ns": bucket_reset(&self.rpm, now_ns),
            "tokens_limit": self.tpm.limit,
            "tokens_remaining": bucket_remaining(&self.tpm, now_ns) if self.tpm.limit else 0,
            "tokens_reset_ns": bucket_reset(&self.tpm, now_ns),
            "concurrency_limit": self.concurrency_limit,
            "in_flight": self.in_flight,
            "daily_cap_nano": self.daily_cap_nano,
            "monthly_cap_nano": self.monthly_cap_nano,
            "spent_day_nano": self.spent_day_nano,
            "spent_month_nano": self.spent_month_nano,
            "reserved_nano": self.reserved_nano,
            "tokens_per_call": self.tokens_per_call,
        }

    # For tests of the buckets alone. which: 0 requests, 1 tokens.

    def take_permits(self, int which, int64_t permits, int64_t now_ns):
        """Takes permits, or returns the wait in ns (0: taken)."""
        cdef Bucket next
        cdef Bucket* bucket = &self.tpm if which else &self.rpm
        cdef int64_t wait = bucket_take(bucket, permits, now_ns, &next)
        if wait == 0:
            bucket[0] = next
        return wait

    def charge_permits(self, int which, int64_t permits, int64_t now_ns):
        """Takes permits whatever is left."""
        cdef Bucket* bucket = &self.tpm if which else &self.rpm
        bucket[0] = bucket_charged(bucket, permits, now_ns)

    def give_back_permits(self, int which, int64_t permits, int64_t now_ns):
        """Gives permits back, never beyond full."""
        bucket_give_back(&self.tpm if which else &self.rpm, permits, now_ns)


# What the rate-limit headers of an answer say: of all scopes the one with the least left. A limit of 0: no such limit.
ctypedef struct LimitView:
    int64_t requests_limit
    int64_t requests_remaining
    int64_t requests_reset_ns
    int64_t tokens_limit
    int64_t tokens_remaining
    int64_t tokens_reset_ns


cdef inline void _view_bucket(const Bucket* b, int64_t now_ns, int64_t* limit, int64_t* remaining, int64_t* reset_ns) noexcept:
    cdef int64_t left
    if b.limit <= 0:
        return
    left = bucket_remaining(b, now_ns)
    if limit[0] == 0 or left < remaining[0] or (left == remaining[0] and b.limit < limit[0]):
        limit[0] = b.limit
        remaining[0] = left
        reset_ns[0] = bucket_reset(b, now_ns)


cdef void view_limits(tuple scopes, int64_t now_ns, LimitView* view) noexcept:
    """Fills the view from the scopes of a key or of a call."""
    cdef Scope scope
    cdef Py_ssize_t i
    memset(view, 0, sizeof(LimitView))
    for i in range(len(scopes)):
        scope = <Scope>scopes[i]
        _view_bucket(&scope.rpm, now_ns, &view.requests_limit, &view.requests_remaining, &view.requests_reset_ns)
        _view_bucket(&scope.tpm, now_ns, &view.tokens_limit, &view.tokens_remaining, &view.tokens_reset_ns)
