# What calls are decided with: public models, the routes to them, and the credentials that open keys.


@cython.final
cdef class Model:
    """A public model name of the catalogue: its price and the ways to it."""
    cdef readonly str name
    cdef readonly bytes key                # the name as it stands in a request
    cdef readonly Rate rate                # None: unpriced, refused
    cdef public bint searches              # every answer to a chat is a search
    cdef public str served_at              # the paths of its dialects, for who asks at another; None: no price
    cdef list routes                       # one list of Route per dialect
    cdef list fallbacks                    # likewise of Model: tried in turn when all routes have failed; None: there are none

    def __init__(self, str name, Rate rate):
        self.name = name
        self.key = name.encode()
        self.rate = rate
        self.routes = [[], [], []]

    def add_route(self, Route route):
        (<list>self.routes[route.channel.dialect]).append(route)

    def add_fallback(self, int dialect, Model model):
        """`model` stands for this one in calls that no channel answers; all its routes rename."""
        if self.fallbacks is None:
            self.fallbacks = [[], [], []]
        (<list>self.fallbacks[dialect]).append(model)

    def routes_of(self, int dialect):
        return list(self.routes[dialect])

    @property
    def elsewhere(self):
        """For the refusal of a call in a dialect that no channel speaks for it: its name and where it is served."""
        return None if self.served_at is None else f"{self.name} {self.served_at}"


@cython.final
cdef class Route:
    """A model on a channel: its name there, and how its text is counted."""
    cdef readonly Channel channel
    cdef readonly str upstream_model
    cdef bytes upstream_model_json     # None where the name is the same on both sides
    cdef bytes base_path               # the channel's, or one with this model in it (Azure's deployments)
    cdef bytes model_path              # behind it where the dialect has the model in its paths
    cdef readonly TokenTable table
    cdef set named                     # models that its answers have named beside its own; None: none yet
    cdef bytes named_last              # ... and the last of these
    cdef readonly Calibration prompts, outputs    # how far our counts are off here, learnt from reported usage

    def __init__(self, Channel channel, str upstream_model, TokenTable table, bytes upstream_model_json=None, *,
                 bytes base_path=None, bytes models_path=b"/v1beta/models/", Calibration prompts=None,
                 Calibration outputs=None):
        self.base_path = base_path if base_path is not None else channel.base_path
        self.model_path = models_path + upstream_model.encode()
        self.prompts = prompts if prompts is not None else Calibration()
        self.outputs = outputs if outputs is not None else Calibration()
        self.channel = channel
        self.upstream_model = upstream_model
        self.table = table
        self.upstream_model_json = upstream_model_json

    @property
    def renamed(self):
        return self.upstream_model_json is not None


@cython.final
cdef class Credential:
    """A secret that opens a key. Several may belong to one key while it is rotated."""
    cdef readonly bytes public_id
    cdef bytes digest                   # HMAC-SHA256 of the whole secret
    cdef hash128 known                  # keyed hash of the secret that has proved to be this credential's
    cdef bint is_known
    cdef readonly ApiKey key
    cdef public bint dead
    cdef public int64_t expires_ns      # wall clock; 0 never

    def __init__(self, bytes public_id, bytes digest, ApiKey key, int64_t expires_ns=0):
        if len(digest) != 32:
            raise ValueError("a digest has 32 bytes")
        self.public_id = public_id
        self.digest = digest
        self.key = key
        self.expires_ns = expires_ns

    cdef inline bint over(self, int64_t wall_ns) noexcept:
        """Whether the secret has been replaced, or its key has expired: calls in flight end, too."""
        return (self.expires_ns != 0 and wall_ns >= self.expires_ns) or (
            self.key.expires_ns != 0 and wall_ns >= self.key.expires_ns)

    def is_over(self, int64_t wall_ns):
        """`over`, for calls that Python serves."""
        return self.over(wall_ns)


cdef bint equal_bytes(bytes a, bytes b) noexcept:
    """Comparison in a time that depends on the length alone."""
    cdef Py_ssize_t i, n = PyBytes_GET_SIZE(a)
    cdef uint8_t difference = 0
    cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(a)
    cdef const uint8_t* q = <const uint8_t*>PyBytes_AS_STRING(b)
    if n != PyBytes_GET_SIZE(b):
        return False
    for i in range(n):
        difference |= p[i] ^ q[i]
    return difference == 0
