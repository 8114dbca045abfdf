# Attempts at upstreams that Python makes with aiohttp's client: realtime sessions, and requests about files, stored
# objects and jobs. Choice, breakers, keys that rest and the retry budget are those of the hot path, in the same objects.

@cython.final
cdef class Attempts:
    """One call's. Its `routes` are those that it may take; for what belongs to one channel, that one."""
    cdef Engine engine
    cdef list routes, tried
    cdef readonly Route route
    cdef UpstreamKey key
    cdef bint on_channel, probe
    cdef readonly int count
    cdef readonly int64_t wait_ns

    def __init__(self, Engine engine not None, list routes not None):
        self.engine = engine
        self.routes = routes
        self.tried = []

    def begin(self):
        """0, or an index into ERROR_CODES: there is no way now."""
        if self.choose(monotonic_ns()):
            return 0
        return self.engine.no_way(self.routes, monotonic_ns(), &self.wait_ns) if self.routes else E_UPSTREAM_UNAVAILABLE

    cdef bint choose(self, int64_t now) except -1:
        cdef Route route = self.engine.best_of(self.routes, self.tried, 0, now)
        cdef Channel channel
        if route is None:
            return False
        channel = route.channel
        if channel.breaker.state != BREAKER_CLOSED:
            channel.breaker.begin_probe(now)
            self.probe = True
        self.key = channel.awake_key(route.upstream_model, 0, now)
        self.enter(route)
        return True

    cdef void enter(self, Route route):
        self.route = route
        if self.count == 0:
            self.engine.retry_budget.calls_now += 1
        self.count += 1
        route.channel.in_flight += 1
        self.on_channel = True

    def key_line(self):
        return self.key.line

    def good(self):
        cdef Channel channel = self.route.channel
        cdef int64_t now = monotonic_ns()
        if channel.breaker.state == BREAKER_CLOSED:
            channel.breaker.succeeded(now)
        elif self.probe:
            self.probe = False
            if channel.breaker.end_probe(now, 1, 0):
                self.engine.breaker_changed(channel)

    def bad(self, int code):
        cdef Channel channel = self.route.channel
        cdef int64_t now = monotonic_ns()
        cdef bint changed
        channel.failures += 1
        if self.probe:
            self.probe = False
            changed = channel.breaker.end_probe(now, 0, code)
        else:
            changed = channel.breaker.failed(now, code)
        if changed:
            self.engine.breaker_changed(channel)

    def rest_key(self, int64_t rest_ns, bint all_models, bint account):
        if rest_ns:
            self.route.channel.rest_key(self.key, None if all_models else self.route.upstream_model,
                                        monotonic_ns() + rest_ns, E_UPSTREAM_ACCOUNT if account else E_UPSTREAM_UNAVAILABLE)

    def another(self, *, bint key_refused, bint channels):
        cdef Route route = self.route
        cdef Channel channel = route.channel
        cdef UpstreamKey key = None
        cdef int64_t now = monotonic_ns()
        self.leave()
        if key_refused:
            channel.failures += 1
        if key_refused and channel.breaker.state == BREAKER_CLOSED and self.key.wakes_ns(route.upstream_model) > now:
            key = channel.awake_key(route.upstream_model, 0, now)
        if key is None:
            self.tried.append(channel)
        if self.count >= self.engine.attempts_max:
            return False
        if key is None and not (channels and self.engine.another_way(self.routes, self.tried, channel, now)):
            return False
        if not self.engine.retry_budget.take():
            return False
        if key is None:
            return bool(self.choose(now))
        self.key = key      # nothing was processed: the key was refused, not the call
        self.enter(route)
        return True

    def leave(self):
        if self.on_channel:
            self.on_channel = False
            self.route.channel.in_flight -= 1
            if self.probe:
                self.probe = False
                self.route.channel.breaker.end_probe(0, -1, 0)
