# The hold of a job: of what a provider works on after the call that asked for it has been answered.
#
# A call's admission decides whether the job may begin; then its hold passes, in the same step, to one of these. It counts
# against the balance and the spending caps, not against calls at a time, and has exactly one ending.


cdef class JobHold:
    """Credits held for one job: OPEN -> SETTLED or RELEASED, or raises."""
    cdef readonly int state
    cdef readonly Balance balance
    cdef readonly int64_t hold_nano
    cdef tuple scopes

    def __init__(self, Balance balance not None, tuple scopes not None, hold_nano, *, bint partial=False):
        """ValueError where the balance does not cover it; with `partial` (after a restart) what is there is held."""
        cdef int64_t amount = _checked(hold_nano, "hold_nano", NANO_MAX)
        if amount > balance.available_nano:
            if not partial:
                raise ValueError("the balance does not cover the hold")
            amount = balance.available_nano
        self.balance = balance
        self.scopes = scopes
        self._change(amount)
        balance.open_holds += 1
        self.state = A_OPEN

    cdef void _change(self, int64_t nano) noexcept:
        cdef Py_ssize_t i
        self.hold_nano += nano
        self.balance.available_nano -= nano
        self.balance.held_nano += nano
        for i in range(len(self.scopes)):
            (<Scope>self.scopes[i]).reserved_nano += nano

    cdef int _end(self, int state) except -1:
        if self.state != A_OPEN:
            raise RuntimeError("a job ends once")
        self.state = state
        self._change(-self.hold_nano)
        self.balance.open_holds -= 1
        return 0

    def settle(self, cost_nano, max_cost_nano, int64_t wall_ns, *, int64_t day=-1):
        """Charges the job and gives the rest back; returns what had to be written off. max_cost_nano -1: none; day: on
        which it began (-1: today)."""
        cdef int64_t cost = _checked(cost_nano, "cost_nano", NANO_MAX)
        cdef int64_t taken = cost
        cdef int64_t most = max_cost_nano
        cdef Scope scope
        self._end(A_SETTLED)
        if 0 <= most < taken:
            taken = most
        if taken > self.balance.available_nano:
            taken = self.balance.available_nano
        self.balance.available_nano -= taken
        for scope in self.scopes:
            if wall_ns // DAY_NS > scope.day:
                scope.roll(wall_ns)
            scope.spend(taken, day if day >= 0 else scope.day)
        return cost - taken

    def release(self):
        """Nothing is charged, everything is given back."""
        self._end(A_RELEASED)
