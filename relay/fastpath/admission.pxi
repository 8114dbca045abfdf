# The admission of one call: one all-or-nothing decision, a hold that may grow, and exactly one ending.

cdef enum:
    A_NEW = 0
    A_OPEN = 1
    A_SETTLED = 2
    A_RELEASED = 3

# A slice is at most one of so many equal parts of each stream's share of what is there: those that come first must not
# hold much of it, because nothing is ever taken back from them. Only a small balance or cap is cut so finely.
cdef int64_t SLICES_PER_SHARE = 16

_STATES = ("new", "open", "settled", "released")


@cython.freelist(64)      # one is made for every call
@cython.final
cdef class Admission:
    """The hold of one call and everything else it took: NEW -> OPEN -> SETTLED or RELEASED, or raises.

    Numbers are plain C fields, so that a slot of the in-flight journal can mirror them. `images`, `video_seconds` and
    `web_searches` are what the call may use of what is priced per unit, `priority` is the service that it asks for: set
    before `admit`, they are part of the hold.
    """
    cdef readonly int state
    cdef readonly bint stream
    cdef readonly Balance balance
    cdef readonly Rate rate
    cdef const Prices* bounds                    # of that rate: what this call's hold is taken by
    cdef tuple scopes
    cdef Policy policy
    cdef readonly int64_t hold_nano
    cdef readonly int64_t prompt_hold_tokens     # the estimate with its margin
    cdef readonly int64_t output_allowance       # output tokens that the hold covers; a stream grows before it delivers more
    cdef readonly int64_t output_bound           # tokens over all choices; -1: the caller named none
    cdef readonly int64_t output_limit           # where a limit of tokens per call ends a stream; -1: nowhere
    cdef readonly int64_t max_cost_nano          # -1: none
    cdef public int64_t day                      # UTC day on which the call began, by its id; -1: that of its end
    cdef public bint priority                    # the dearer service is asked for: held for, and charged where the answer names it
    cdef public int64_t images
    cdef public int64_t video_seconds
    cdef public int64_t web_searches
    cdef public int64_t extras_hold_nano         # for what the call may use beside tokens of its own model
    cdef public int64_t extras_nano              # ... and has used
    cdef readonly int64_t tokens_reserved        # taken from the buckets of tokens per minute
    cdef uint32_t took_requests                  # bits of the scopes whose bucket of requests was taken from
    cdef uint32_t took_tokens
    # why it was refused
    cdef readonly int64_t retry_after_ns         # 0: waiting does not help
    cdef readonly Scope limited_scope
    cdef readonly int64_t wanted, allowed        # what it may need, and what the limit leaves; -1: no number says it
    # how it ended
    cdef readonly int64_t cost_nano
    cdef readonly int64_t written_off_nano

    def __cinit__(self):
        self._clear()

    cdef void _clear(self) noexcept:
        self.state = A_NEW
        self.stream = False
        self.hold_nano = self.prompt_hold_tokens = self.output_allowance = self.tokens_reserved = 0
        self.output_bound = self.output_limit = self.max_cost_nano = -1
        self.day = -1
        self.images = self.video_seconds = self.web_searches = self.extras_hold_nano = self.extras_nano = 0
        self.priority = False
        self.took_requests = self.took_tokens = 0
        self.retry_after_ns = 0
        self.cost_nano = self.written_off_nano = 0

    cdef int reset(self) except -1:
        """Makes the object ready for another call. RuntimeError while a call is open."""
        if self.state == A_OPEN:
            raise RuntimeError("an open admission cannot be used again")
        self._clear()
        self.balance = None
        self.rate = None
        self.scopes = None
        self.limited_scope = None
        return 0

    cdef int _move(self, int to) except -1:
        """The one place where the state changes."""
        if not ((self.state == A_NEW and to == A_OPEN) or (self.state == A_OPEN and (to == A_SETTLED or to == A_RELEASED))):
            raise RuntimeError(f"an admission cannot go from {_STATES[self.state]} to {_STATES[to]}")
        self.state = to
        return 0

    cdef int _refuse(self, int code, Scope scope, int64_t retry_after_ns, int64_t wanted=-1, int64_t allowed=-1) noexcept:
        self.wanted = wanted
        self.allowed = allowed
        self.limited_scope = scope
        self.retry_after_ns = retry_after_ns
        return code

    cdef inline int64_t _bound(self, int64_t output_tokens) noexcept:
        """What the hold must be for that much output, in nano-credits."""
        return price_bound(self.bounds, self.prompt_hold_tokens, output_tokens, self.images, self.video_seconds,
                           self.web_searches) + self.extras_hold_nano

    cdef int admit(self, ApiKey key, Rate rate, int64_t prompt_tokens, int64_t output_bound, int64_t choices, bint stream,
                   int64_t max_cost_nano, Policy policy, int64_t now_ns, int64_t wall_ns) except -1:
        """0 and everything taken, or an error code and nothing taken (then retry_after_ns, limited_scope say more).

        prompt_tokens: the estimate. output_bound: per choice, -1 none. max_cost_nano: -1 none. Checks in this order: key and
        account status, price, tokens per call, max cost, concurrency, requests, tokens, caps, balance. (Address, endpoint
        scope and model are checked by the methods of the key before.)
        """
        cdef Bucket requests[SCOPES_MAX]
        cdef Bucket tokens[SCOPES_MAX]
        cdef tuple scopes = key.scopes
        cdef Balance balance = key.balance
        cdef Scope scope, worst
        cdef Py_ssize_t i, n = len(scopes)
        cdef int code
        cdef int64_t limit, wait, worst_wait, longest, room, budget, hold, hold_full
        cdef int64_t output, least, full, wanted_tokens
        cdef uint32_t took_requests = 0, took_tokens = 0

        if self.state != A_NEW:
            raise RuntimeError(f"an admission cannot go from {_STATES[self.state]} to open")
        self.retry_after_ns = 0
        self.limited_scope = None
        self.wanted = self.allowed = -1
        code = key.check_status(wall_ns)
        if code != E_NONE:
            return code
        if balance is None:
            return E_ACCOUNT_INACTIVE        # a key that was never filled in
        if rate is None:
            return E_MODEL_UNPRICED

        prompt_tokens = clamp_usage(prompt_tokens)
        choices = 1 if choices < 1 else (1 << 20 if choices > 1 << 20 else choices)
        output = clamp_usage(clamp_usage(output_bound) * choices) if output_bound >= 0 else -1
        self.images = clamp_usage(self.images)
        self.video_seconds = clamp_usage(self.video_seconds)
        self.web_searches = clamp_usage(self.web_searches)
        self.rate = rate
        self.prompt_hold_tokens = prompt_tokens + (prompt_tokens * policy.prompt_margin_permille + 999) // 1000
        self.bounds = rate.bound_prices(self.prompt_hold_tokens, self.priority)

        # Tokens per call. Where the caller names no bound, the prompt counts here and a stream ends at the limit.
        self.output_limit = -1
        for i in range(n):
            scope = <Scope>scopes[i]
            limit = scope.call_tokens_limit(rate.model)
            if limit > 0:
                if prompt_tokens + max(output, 0) > limit:
                    return self._refuse(E_TOKENS_PER_CALL, scope, 0, prompt_tokens + max(output, 0), limit)
                if self.output_limit < 0 or limit - prompt_tokens < self.output_limit:
                    self.output_limit = limit - prompt_tokens

        # The hold: from what is least possible to what is wanted. Only for a stream these differ.
        if stream:
            full = policy.hold_slice_tokens
            if output >= 0 and output < full:
                full = output
            if self.output_limit >= 0 and self.output_limit < full:
                full = self.output_limit
            least = min(full, policy.hold_slice_tokens_min)
        else:
            if output >= 0:
                full = output
            else:
                full = policy.hold_output_tokens
                if 0 < rate.output_tokens_max < full:
                    full = rate.output_tokens_max
                full = clamp_usage(full * choices)
            least = full
        hold_full = self._bound(full)
        hold = self._bound(least) if least != full else hold_full
        if 0 <= max_cost_nano < hold:
            return self._refuse(E_MAX_COST, None, 0, hold, max_cost_nano)

        for i in range(n):
            scope = <Scope>scopes[i]
            if 0 < scope.concurrency_limit <= scope.in_flight:
                return self._refuse(E_CONCURRENCY_LIMIT, scope, CONCURRENCY_RETRY_NS, 1, scope.concurrency_limit)

        # Rates. The wait is the longest of all buckets, so that a caller who waits as told is admitted.
        wanted_tokens = prompt_tokens + full
        longest = 0
        code = E_NONE
        worst = None
        worst_wait = 0
        for i in range(n):
            scope = <Scope>scopes[i]
            if scope.rpm.limit > 0:
                took_requests |= <uint32_t>1 << i
                wait = bucket_take(&scope.rpm, 1, now_ns, &requests[i])
                if wait > worst_wait:
                    worst_wait = wait
                    worst = scope
                    code = E_RATE_LIMIT_REQUESTS
        longest = worst_wait
        worst_wait = 0
        for i in range(n):
            scope = <Scope>scopes[i]
            if scope.tpm.limit > 0:
                took_tokens |= <uint32_t>1 << i
                wait = bucket_take(&scope.tpm, wanted_tokens, now_ns, &tokens[i])
                if wait > worst_wait:
                    worst_wait = wait
                    if code != E_RATE_LIMIT_REQUESTS:
                        worst = scope
                        code = E_RATE_LIMIT_TOKENS
        if code != E_NONE:
            if code == E_RATE_LIMIT_REQUESTS:
                return self._refuse(code, worst, max(longest, worst_wait), 1, worst.rpm.limit)
            return self._refuse(code, worst, max(longest, worst_wait), wanted_tokens, worst.tpm.limit)

        # Caps, then the balance. `budget`: what a stream's first slice may take beyond the least hold.
        budget = hold_full - hold
        for i in range(n):
            scope = <Scope>scopes[i]
            scope.roll(wall_ns)
            if scope.reserved_nano > NANO_MAX - hold_full:
                return self._refuse(E_OVERLOADED, scope, CONCURRENCY_RETRY_NS)
            if scope.monthly_cap_nano > 0:
                room = scope.monthly_room() - hold
                if room < 0:
                    return self._refuse(E_MONTHLY_LIMIT, scope, _cap_retry_ns(scope, hold, wall_ns, True), hold,
                                        max(scope.monthly_room(), <int64_t>0))
                budget = min(budget, room // (SLICES_PER_SHARE * (scope.in_flight + 2)))
        for i in range(n):
            scope = <Scope>scopes[i]
            if scope.daily_cap_nano > 0:
                room = scope.daily_room() - hold
                if room < 0:
                    return self._refuse(E_DAILY_LIMIT, scope, _cap_retry_ns(scope, hold, wall_ns, False), hold,
                                        max(scope.daily_room(), <int64_t>0))
                budget = min(budget, room // (SLICES_PER_SHARE * (scope.in_flight + 2)))
        if hold > balance.available_nano:
            return self._refuse(E_INSUFFICIENT_BALANCE, None, 0, hold, balance.available_nano)
        if least != full:
            # One share each for the streams that are open, this one, and the next to come.
            budget = min(budget, (balance.available_nano - hold) // (SLICES_PER_SHARE * (balance.open_streams + 2)))
            if max_cost_nano >= 0:
                budget = min(budget, max_cost_nano - hold)
            if budget >= hold_full - hold:
                hold = hold_full
                least = full
            else:
                least = max(least, min(full, price_affordable(self.bounds, self.prompt_hold_tokens, self.images,
                                                              self.video_seconds, self.web_searches,
                                                              hold + budget - self.extras_hold_nano)))
                hold = self._bound(least)

        # Nothing can fail from here on.
        self._move(A_OPEN)
        self.stream = stream
        self.balance = balance
        self.scopes = scopes
        self.policy = policy
        self.hold_nano = hold
        self.output_allowance = least
        self.output_bound = output
        self.max_cost_nano = max_cost_nano
        self.tokens_reserved = wanted_tokens
        self.took_requests = took_requests
        self.took_tokens = took_tokens
        for i in range(n):
            scope = <Scope>scopes[i]
            scope.in_flight += 1
            scope.reserved_nano += hold
            if took_requests >> i & 1:
                scope.rpm = requests[i]
            if took_tokens >> i & 1:
                scope.tpm = tokens[i]
        balance.available_nano -= hold
        balance.held_nano += hold
        balance.open_holds += 1
        balance.open_streams += stream
        return E_NONE

    cdef int grow(self, int64_t counted_tokens, int64_t wall_ns) except -1:
        """Makes the hold of a stream cover `counted_tokens` of output, and a slice more where there is room.

        0 and output_allowance >= counted_tokens, or E_BALANCE_EXHAUSTED, E_CAP_REACHED, E_MAX_COST_REACHED and nothing
        changed. RuntimeError when the call is not open.
        """
        cdef Scope scope
        cdef Balance balance = self.balance
        cdef int64_t wanted, least_hold, full_hold, budget, room, hold
        cdef Py_ssize_t i, n
        if self.state != A_OPEN:
            raise RuntimeError("only an open admission can grow")
        if counted_tokens <= self.output_allowance:
            return E_NONE
        counted_tokens = clamp_usage(counted_tokens)
        if counted_tokens <= self.output_allowance:
            return E_NONE
        if 0 <= self.output_limit < counted_tokens:
            return E_CAP_REACHED
        wanted = clamp_usage(counted_tokens + self.policy.hold_slice_tokens)
        if 0 <= self.output_bound < wanted:
            wanted = max(self.output_bound, counted_tokens)
        if 0 <= self.output_limit < wanted:
            wanted = self.output_limit
        least_hold = self._bound(counted_tokens)
        full_hold = self._bound(wanted)
        if 0 <= self.max_cost_nano < least_hold:
            return E_MAX_COST_REACHED
        budget = full_hold - least_hold
        n = len(self.scopes)
        for i in range(n):
            scope = <Scope>self.scopes[i]
            scope.roll(wall_ns)
            if scope.reserved_nano > NANO_MAX - (full_hold - self.hold_nano):
                return E_CAP_REACHED
            if scope.monthly_cap_nano > 0:
                room = scope.monthly_room() + self.hold_nano - least_hold
                if room < 0:
                    return E_CAP_REACHED
                budget = min(budget, room // (SLICES_PER_SHARE * (scope.in_flight + 1)))
            if scope.daily_cap_nano > 0:
                room = scope.daily_room() + self.hold_nano - least_hold
                if room < 0:
                    return E_CAP_REACHED
                budget = min(budget, room // (SLICES_PER_SHARE * (scope.in_flight + 1)))
        room = balance.available_nano + self.hold_nano - least_hold
        if room < 0:
            return E_BALANCE_EXHAUSTED
        budget = min(budget, room // (SLICES_PER_SHARE * (balance.open_streams + 1)))
        if self.max_cost_nano >= 0:
            budget = min(budget, self.max_cost_nano - least_hold)
        if budget < full_hold - least_hold:
            wanted = max(counted_tokens, min(wanted, price_affordable(
                self.bounds, self.prompt_hold_tokens, self.images, self.video_seconds, self.web_searches,
                least_hold + budget - self.extras_hold_nano)))
            hold = self._bound(wanted)
        else:
            hold = full_hold
        self._change_hold(hold - self.hold_nano)
        self.output_allowance = wanted
        return E_NONE

    cdef int correct_prompt(self, const Usage* usage) except -1:
        """The upstream has said what the prompt was: the hold covers that from now on, and no estimate.

        What was held too much comes back at once. What is missing is taken as far as it is there; the output allowance
        shrinks to what the hold still covers, so that a stream whose prompt has used the balance up ends soon.
        RuntimeError when the call is not open.
        """
        cdef Scope scope
        cdef int64_t hold, room
        cdef Py_ssize_t i
        if self.state != A_OPEN:
            raise RuntimeError("only an open admission can be corrected")
        self.prompt_hold_tokens = (usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
                                   + usage.cache_write_1h_tokens)
        self.bounds = self.rate.bound_prices(self.prompt_hold_tokens, self.priority)
        if self.rate.plain:       # else which price each token has is not known before the end
            self.prompt_hold_tokens = price_prompt(self.bounds, usage.input_tokens, usage.cache_read_tokens,
                                                   usage.cache_write_tokens, usage.cache_write_1h_tokens)
        hold = self._bound(self.output_allowance)
        if hold > self.hold_nano:
            room = min(hold - self.hold_nano, self.balance.available_nano)
            if self.max_cost_nano >= 0:
                room = min(room, self.max_cost_nano - self.hold_nano)
            for i in range(len(self.scopes)):
                scope = <Scope>self.scopes[i]
                room = min(room, NANO_MAX - scope.reserved_nano)
                if scope.monthly_cap_nano > 0:
                    room = min(room, scope.monthly_room())
                if scope.daily_cap_nano > 0:
                    room = min(room, scope.daily_room())
            if room < hold - self.hold_nano:
                hold = self.hold_nano + max(room, <int64_t>0)
                self.output_allowance = min(self.output_allowance, price_affordable(
                    self.bounds, self.prompt_hold_tokens, self.images, self.video_seconds, self.web_searches,
                    hold - self.extras_hold_nano))
        self._change_hold(hold - self.hold_nano)
        return 0

    cdef void _change_hold(self, int64_t nano) noexcept:
        cdef Py_ssize_t i
        self.hold_nano += nano
        self.balance.available_nano -= nano
        self.balance.held_nano += nano
        for i in range(len(self.scopes)):
            (<Scope>self.scopes[i]).reserved_nano += nano

    cdef int64_t settle(self, const Usage* usage, int64_t now_ns, int64_t wall_ns) except -1:
        """Charges the call and gives the rest of its hold back; returns cost_nano. RuntimeError unless open.

        What the cost is above the hold is taken from what is available, never from holds of others; what is not there, or
        is above the caller's max cost, is written_off_nano.
        """
        cdef Scope scope
        cdef Balance balance = self.balance
        cdef int64_t cost, taken, used
        cdef Py_ssize_t i
        self._move(A_SETTLED)
        cost = min(self.rate.cost_of(usage) + self.extras_nano, COST_MAX)
        self._change_hold(-self.hold_nano)
        taken = cost
        if 0 <= self.max_cost_nano < taken:
            taken = self.max_cost_nano
        if taken > balance.available_nano:
            taken = balance.available_nano
        balance.available_nano -= taken
        balance.open_holds -= 1
        balance.open_streams -= self.stream
        self.cost_nano = cost
        self.written_off_nano = cost - taken
        used = (usage.input_tokens + usage.output_tokens + usage.cache_read_tokens + usage.cache_write_tokens
                + usage.cache_write_1h_tokens)
        for i in range(len(self.scopes)):
            scope = <Scope>self.scopes[i]
            scope.in_flight -= 1
            if wall_ns // DAY_NS > scope.day:
                scope.roll(wall_ns)
            scope.spend(taken, self.day if self.day >= 0 else scope.day)
            if self.took_tokens >> i & 1:
                if used > self.tokens_reserved:
                    scope.tpm = bucket_charged(&scope.tpm, used - self.tokens_reserved, now_ns)
                else:
                    bucket_give_back(&scope.tpm, self.tokens_reserved - used, now_ns)
        return cost

    cdef int release(self, int64_t now_ns, bint forwarded=False) except -1:
        """Nothing is charged, everything is given back. RuntimeError unless open.

        `forwarded`: the upstream saw the request; then it keeps its place in requests per minute, so that a caller cannot
        send failing requests without limit.
        """
        cdef Scope scope
        cdef Py_ssize_t i
        self._move(A_RELEASED)
        self._change_hold(-self.hold_nano)
        self.balance.open_holds -= 1
        self.balance.open_streams -= self.stream
        for i in range(len(self.scopes)):
            scope = <Scope>self.scopes[i]
            scope.in_flight -= 1
            if self.took_tokens >> i & 1:
                bucket_give_back(&scope.tpm, self.tokens_reserved, now_ns)
            if self.took_requests >> i & 1 and not forwarded:
                bucket_give_back(&scope.rpm, 1, now_ns)
        return 0

    # The same for Python.

    def py_admit(self, ApiKey key not None, Rate rate, *, int64_t prompt_tokens, int64_t output_bound=-1, int64_t choices=1,
                 bint stream=False, int64_t max_cost_nano=-1, Policy policy not None, int64_t now_ns, int64_t wall_ns):
        """`admit`: 0 or the error code's index into ERROR_CODES."""
        return self.admit(key, rate, prompt_tokens, output_bound, choices, stream, max_cost_nano, policy, now_ns, wall_ns)

    def py_grow(self, int64_t counted_tokens, int64_t wall_ns):
        """`grow`: 0 or the error code's index into ERROR_CODES."""
        return self.grow(counted_tokens, wall_ns)

    def py_correct_prompt(self, *, input_tokens=0, cache_read_tokens=0, cache_write_tokens=0, cache_write_1h_tokens=0):
        """`correct_prompt` with usage clamped to [0, 2^40]."""
        cdef Usage usage = usage_from(input_tokens, 0, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens, 0, 0, 0)
        self.correct_prompt(&usage)

    def py_settle(self, *, int64_t now_ns, int64_t wall_ns, input_tokens=0, output_tokens=0, cache_read_tokens=0,
                  cache_write_tokens=0, cache_write_1h_tokens=0, images=0, video_seconds=0, web_searches=0):
        """`settle` with usage clamped to [0, 2^40]; returns the cost in nano-credits."""
        cdef Usage usage = usage_from(input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
                                      cache_write_1h_tokens, images, video_seconds, web_searches)
        return self.settle(&usage, now_ns, wall_ns)

    def py_release(self, *, int64_t now_ns, bint forwarded=False):
        """`release`."""
        self.release(now_ns, forwarded)

    def py_reset(self):
        """`reset`."""
        self.reset()


cdef int64_t _cap_retry_ns(Scope scope, int64_t hold, int64_t wall_ns, bint monthly) noexcept:
    """Until the cap starts anew, or a second where only open calls stand in the way."""
    cdef int64_t day = wall_ns // DAY_NS
    cdef int64_t month
    if monthly:
        if scope.spent_month_nano + hold <= scope.monthly_cap_nano:
            return CONCURRENCY_RETRY_NS
        month = month_of_day(day)
        day += 1
        while month_of_day(day) == month:
            day += 1
        return day * DAY_NS - wall_ns
    if scope.spent_day_nano + hold <= scope.daily_cap_nano:
        return CONCURRENCY_RETRY_NS
    return (day + 1) * DAY_NS - wall_ns


def limits_of(ApiKey key not None, int64_t now_ns):
    """What rate-limit headers say of this key now: (requests limit, remaining, reset_ns, tokens limit, remaining, reset_ns)."""
    cdef LimitView view
    view_limits(key.scopes, now_ns, &view)
    return (view.requests_limit, view.requests_remaining, view.requests_reset_ns,
            view.tokens_limit, view.tokens_remaining, view.tokens_reset_ns)
