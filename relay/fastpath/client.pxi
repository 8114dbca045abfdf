# The client's side of a call, as the pipeline sees it: both ways in are one of these.


cdef class ClientSide:
    """Where a call's answer goes: the front door's connection, or one that aiohttp's parser serves."""
    cdef object transport
    cdef Engine engine
    cdef Call call
    cdef bint http10              # an HTTP/1.0 client: no chunked framing towards it
    cdef bint write_paused
    cdef bint request_read        # nothing of the request is still to come
    cdef int64_t paused_tick
    cdef bytes last_secret        # the secret that last opened a key here, so that it is not digested again
    cdef Credential last_credential
    cdef bytes last_agent_bytes
    cdef str last_agent
    cdef str peer                 # the socket's address, text
    cdef bytes peer_packed
    cdef bint peer_trusted        # a proxy of the operator: X-Forwarded-For is believed

    cdef void answered(self, bint reusable):
        """The call has ended. `reusable`: the connection may carry another one."""

    cdef void set_peer(self):
        peername = self.transport.get_extra_info("peername")
        self.peer, self.peer_packed, self.peer_trusted = self.engine.hooks.peer(peername)
