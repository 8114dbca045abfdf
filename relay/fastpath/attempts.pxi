# Attempts at upstreams that Python makes: realtime sessions, and requests about files, stored
# objects and jobs. Choice, breakers, keys that rest and the retry budget are those of the hot path, in the same objects.

@cython.final
cdef class Attempts:
    """One call's. Its `routes` are those that it may take; for what belongs to one channel, that one."""
    cdef Engine engine
    cdef list routes, tried
    cdef int where                    # F_*
    cdef readonly Route route
    cdef UpstreamKey key
    cdef Rest trying
    cdef bint on_channel
    cdef int probes
    cdef readonly int count
    cdef readonly int64_t wait_ns, began_ns

    def __init__(self, Engine engine not None, list routes not None, int where=F_OTHER):
        self.engine = engine
        self.routes = routes
        self.where = where
        self.tried = []

    def begin(self):
        """0, or an index into ERROR_CODES: there is no way now."""
        if self.choose(monotonic_ns()):
            return 0
        return self.engine.no_way(self.routes, self.where, monotonic_ns(), &self.wait_ns) if self.routes else E_UPSTREAM_UNAVAILABLE

    cdef bint choose(self, int64_t now) except -1:
        cdef Route route = self.engine.best_of(self.routes, self.tried, self.where, 0, now)
        if route is None:
            route = self.engine.last_way(self.routes, self.tried, self.where, now)
            if route is None:
                return False
            self.key = route.channel.key_to_try(route.upstream_model, self.where, now)
            self.trying = self.key.standing(route.upstream_model, self.where, now)
            self.trying.probing = True
        else:
            self.key = route.channel.awake_key(route.upstream_model, self.where, 0, now)
        self.probes = route.channel.begin_probe(route.upstream_model, self.where, now)
        self.enter(route, now)
        return True

    cdef void enter(self, Route route, int64_t now):
        self.route = route
        if self.count == 0:
            self.engine.retry_budget.calls_now += 1
        self.count += 1
        self.began_ns = now
        route.channel.in_flight += 1
        self.on_channel = True

    def begin_there(self, int number=0):
        """On the first way, whatever is known of it or switched off: with that key, or one that is awake. For the relay's
        own questions."""
        cdef Route route = <Route>self.routes[0]
        cdef Channel channel = route.channel
        cdef int64_t now = monotonic_ns()
        self.key = <UpstreamKey>channel.keys[number - 1] if number else channel.awake_key(route.upstream_model, self.where, 0, now)
        if self.key is None:
            self.key = <UpstreamKey>channel.keys[0]
        self.enter(route, now)

    @property
    def message(self):
        """Where `begin` said that everything is switched off: what the operator has to say."""
        return message_of(self.routes)

    def key_line(self):
        return self.key.line

    def good(self):
        cdef Channel channel = self.route.channel
        cdef str model = self.route.upstream_model
        cdef int64_t now = monotonic_ns()
        cdef int probes = self.probes, closed
        self.probes = 0
        closed = channel.attempt_good(model, self.where, probes, now)
        if closed:
            self.engine.breakers_changed(channel, model, self.where, closed)
        if self.key.troubled():
            channel.key_good(self.key, model, self.where, self.began_ns, now)

    def bad(self, int code):
        cdef Channel channel = self.route.channel
        cdef str model = self.route.upstream_model
        cdef int probes = self.probes, opened
        channel.failures += 1
        self.probes = 0
        opened = channel.attempt_bad(model, self.where, probes, monotonic_ns(), code, code == E_UPSTREAM_UNAVAILABLE)
        if opened:
            self.engine.breakers_changed(channel, model, self.where, opened)

    def rest_key(self, int64_t rest_ns, int scope, bint account, int status=0):
        if rest_ns:
            self.route.channel.rest_key(self.key, self.route.upstream_model, self.where, scope, monotonic_ns(), rest_ns,
                                        E_UPSTREAM_ACCOUNT if account else E_UPSTREAM_UNAVAILABLE, status)

    def another(self, *, bint key_refused, bint channels):
        cdef Route route = self.route
        cdef Channel channel = route.channel
        cdef UpstreamKey key = None
        cdef int64_t now = monotonic_ns()
        self.leave()
        if key_refused:
            channel.failures += 1
        if key_refused and channel.way(route.upstream_model, self.where, now) == WAY_OPEN and \
                self.key.wakes_ns(route.upstream_model, self.where) > now:
            key = channel.awake_key(route.upstream_model, self.where, 0, now)
        if key is None:
            self.tried.append(channel)
        if self.count >= self.engine.attempts_max:
            return False
        if key is None and not (channels and self.engine.another_way(self.routes, self.tried, channel, self.where, now)):
            return False
        if not self.engine.retry_budget.take():
            return False
        if key is None:
            return bool(self.choose(now))
        self.key = key      # nothing was processed: the key was refused, not the call
        self.enter(route, now)
        return True

    def leave(self):
        if self.on_channel:
            self.on_channel = False
            self.route.channel.in_flight -= 1
            if self.probes:
                self.route.channel.end_probes(self.route.upstream_model, self.where, self.probes)
                self.probes = 0
            if self.trying is not None:
                self.trying.leave(monotonic_ns())
                self.trying = None
