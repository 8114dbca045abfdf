# The operator's keys at an upstream, and for what each of them rests: for a model, for an endpoint with a model, for all.
#
# A refusal (401, 403, no credits) says how long nobody has to ask again while there is another way. Where there is none,
# one call at a time may try all the same, after waits that double: what was refused may have healed, and one customer's
# refused call must not shut out everybody else's.

PLACE_NAMES = ("chat", "completions", "responses", "embeddings", "messages", "count_tokens", "generate", "gemini_count",
               "gemini_embed", "moderations", "rerank", "images", "speech", "transcription", "other")     # by F_*

cdef int64_t TRY_NS_MIN = 2_000_000_000      # before the first try of a key that rests; they double, to a fifth of the rest


@cython.final
cdef class Rest:
    """Why, and until when, a key is of no use for something. All times are monotonic nanoseconds."""
    cdef readonly int64_t began_ns, until_ns
    cdef readonly int64_t probe_ns         # from when one call may try it, where there is no other way
    cdef readonly int64_t wait_ns          # before that try
    cdef readonly bint probing             # it is on its way
    cdef readonly bint doubt               # what was refused there may be the key itself
    cdef readonly int code, status         # E_*, and the HTTP status

    cdef void leave(self, int64_t now) noexcept:
        """The try is over, and says nothing."""
        if self.probing:
            self.probing = False
            self.probe_ns = max(self.probe_ns, now + self.wait_ns)


@cython.final
cdef class UpstreamKey:
    """One of the operator's keys at an upstream."""
    cdef bytes line                        # its authentication line, ready to send
    cdef readonly int number               # its place in `api_keys`, from 1
    cdef readonly uint64_t salt
    cdef Rest whole                        # for everything; None: it does not
    cdef dict rests                        # upstream model, or (upstream model, F_*) -> Rest; None where nothing rests
    cdef int64_t good_ns                   # when it was last seen to work, while something of it rested
    cdef readonly int64_t rests_total

    def __init__(self, bytes line, int number):
        self.line = line
        self.number = number
        self.salt = mix(<uint64_t>(<int64_t>hash(line)))      # of this process only, and the same after a reload

    cdef bint troubled(self) noexcept:
        return self.whole is not None or self.rests is not None

    cdef list rests_for(self, str model, int where):
        """Those that stand in the way of a call to this place, in force or not."""
        cdef list found = [] if self.whole is None else [self.whole]
        if self.rests is not None:
            for place in (model, (model, where)):
                rest = self.rests.get(place)
                if rest is not None:
                    found.append(rest)
        return found

    cdef int64_t wakes_ns(self, str model, int where) except -1:
        """Until when it rests for this place; a moment in the past: it does not."""
        cdef int64_t until = 0
        cdef Rest rest
        if self.troubled():
            for rest in self.rests_for(model, where):
                until = max(until, rest.until_ns)
        return until

    cdef Rest standing(self, str model, int where, int64_t now):
        """The rest that a try would put to the test: the longest. None: none is in force, or a limit is among them."""
        cdef Rest rest, longest = None
        for rest in self.rests_for(model, where):
            if rest.until_ns > now:
                if rest.code != E_UPSTREAM_ACCOUNT:
                    return None
                if longest is None or rest.until_ns > longest.until_ns:
                    longest = rest
        return longest

    cdef int rest(self, str model, int where, int scope, int64_t now, int64_t rest_ns, int code, int status) except -1:
        """It was refused or limited, for what `scope` (SCOPE_*) says. A rest is never shortened."""
        cdef Rest rest, other
        cdef object place = None
        cdef bint whole = scope == SCOPE_KEY
        if not whole:
            place = model if scope == SCOPE_MODEL else (model, where)
            if scope == SCOPE_DOUBT and self.rests is not None:
                # Refused here and elsewhere, and seen to work nowhere since: then it is the key.
                for known, other in self.rests.items():
                    whole |= known != place and other.doubt and other.until_ns > now and other.began_ns > self.good_ns
        self.rests_total += 1
        if not whole and self.rests is None:
            self.rests = {}
        rest = self.whole if whole else self.rests.get(place)
        if rest is None or rest.until_ns <= now:
            rest = Rest()
            rest.began_ns = now
            rest.wait_ns = min(TRY_NS_MIN, rest_ns)
        elif rest.probing or now >= rest.probe_ns:
            rest.wait_ns = max(rest.wait_ns, min(2 * rest.wait_ns, rest_ns // 5))
        rest.probing = False
        rest.doubt = scope == SCOPE_DOUBT
        rest.code = code
        rest.status = status
        rest.until_ns = max(rest.until_ns, now + rest_ns)
        rest.probe_ns = now + rest.wait_ns
        if whole:
            self.whole = rest
        else:
            self.rests[place] = rest
        return 0

    cdef int good(self, str model, int where, int64_t sent_ns, int64_t now) except -1:
        """A call that was sent then was answered: what it was refused before is over."""
        cdef Rest rest
        self.good_ns = now
        if self.whole is not None and self.whole.code == E_UPSTREAM_ACCOUNT and sent_ns >= self.whole.began_ns:
            self.whole = None
        if self.rests is not None:
            for place in (model, (model, where)):
                rest = self.rests.get(place)
                if rest is not None and rest.code == E_UPSTREAM_ACCOUNT and sent_ns >= rest.began_ns:
                    del self.rests[place]
            if not self.rests:
                self.rests = None
        return 0

    cdef int64_t rests_until_ns(self) except -1:
        cdef int64_t until = self.whole.until_ns if self.whole is not None else 0
        cdef Rest rest
        if self.rests is not None:
            for rest in self.rests.values():
                until = max(until, rest.until_ns)
        return until

    cdef void wake(self):
        self.whole = None
        self.rests = None

    cdef void adopt(self, UpstreamKey old):
        self.whole = old.whole
        self.rests = old.rests
        self.good_ns = old.good_ns
        self.rests_total = old.rests_total

    def resting(self, int64_t now_ns):
        """Its rests that are in force: (upstream model or None for all, F_* or None for all, Rest)."""
        cdef Rest rest
        found = [] if self.whole is None or self.whole.until_ns <= now_ns else [(None, None, self.whole)]
        for place, rest in (self.rests or {}).items():
            if rest.until_ns > now_ns:
                found.append((*place, rest) if isinstance(place, tuple) else (place, None, rest))
        return found
