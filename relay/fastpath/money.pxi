# Money: prices, balances, what the relay knows of a key, and the admission of one call with its hold.
#
# Everything is integers: nano-credits, tokens, nanoseconds. A cost is computed once and rounded up once. The loop is the
# only thread that touches these objects, and nothing here waits, so each method is one indivisible step.

cdef extern from * nogil:
    """
    #define RELAY_COST_MAX INT64_C(10000000000000000)   /* what one call can cost at most: ten million credits */
    #define RELAY_PPB INT64_C(1000000000)

    /* ceil(parts * ppb / 10^15), at most COST_MAX: parts are nano-credits x 10^6, ppb the discount. parts < 2^117. */
    static inline int64_t relay_price(relay_u128 parts, int64_t ppb) {
        const relay_u128 million = 1000000;
        relay_u128 q;
        if (ppb == RELAY_PPB) {
            if (parts <= UINT64_MAX - 999999) q = ((uint64_t)parts + 999999u) / 1000000u;
            else q = (parts + (million - 1)) / million;
        } else {
            const relay_u128 scale = million * RELAY_PPB;
            if (ppb <= 0) return 0;
            if (parts > ((((relay_u128)1 << 127) - scale) / (relay_u128)ppb)) return RELAY_COST_MAX;
            q = (parts * (relay_u128)ppb + (scale - 1)) / scale;
        }
        return q > (relay_u128)RELAY_COST_MAX ? RELAY_COST_MAX : (int64_t)q;
    }

    /* The most parts whose price is at most `nano`: the exact inverse of relay_price below COST_MAX. */
    static inline relay_u128 relay_parts_for(int64_t nano, int64_t ppb) {
        if (nano < 0) return 0;
        if (ppb <= 0) return ~(relay_u128)0;
        return (relay_u128)nano * ((relay_u128)1000000 * RELAY_PPB) / (relay_u128)ppb;
    }

    typedef struct {
        int64_t input, output, cache_read, cache_write, cache_write_1h;   /* nano-credits per 10^6 tokens */
        int64_t image, video_second, web_search;                           /* nano-credits per unit */
        int64_t audio_input, audio_output, image_input, image_output;      /* nano-credits per 10^6 tokens */
        int64_t audio_cache_read, image_cache_read;                        /* ... of those read from a cache */
        int64_t prompt;      /* the dearest way a prompt token can be charged */
        int64_t reply;       /* ... and an output token */
        int64_t ppb;         /* discount in parts per 10^9 */
    } relay_prices;

    #define RELAY_TIMES(a, b) ((relay_u128)(uint64_t)(a) * (uint64_t)(b))

    static inline relay_u128 relay_unit_parts(const relay_prices *p, int64_t images, int64_t seconds, int64_t searches) {
        if ((images | seconds | searches) == 0) return 0;
        return 1000000 * (RELAY_TIMES(images, p->image) + RELAY_TIMES(seconds, p->video_second)
                          + RELAY_TIMES(searches, p->web_search));
    }

    /* What `budget` nano-credits cover: output tokens beside a prompt and units already held for. INT64_MAX: any number. */
    static inline int64_t relay_affordable(const relay_prices *p, int64_t prompt_tokens, relay_u128 units, int64_t budget) {
        relay_u128 parts = relay_parts_for(budget, p->ppb);
        relay_u128 fixed = RELAY_TIMES(prompt_tokens, p->prompt) + units;
        if (p->reply == 0 || p->ppb == 0 || budget >= RELAY_COST_MAX) return INT64_MAX;
        if (parts <= fixed) return 0;
        parts = (parts - fixed) / (relay_u128)p->reply;
        return parts > (relay_u128)INT64_MAX ? INT64_MAX : (int64_t)parts;
    }

    static inline int64_t relay_cost(const relay_prices *p, int64_t input, int64_t output, int64_t cache_read,
                                     int64_t cache_write, int64_t cache_write_1h, int64_t images, int64_t seconds,
                                     int64_t searches) {
        relay_u128 parts = RELAY_TIMES(input, p->input) + RELAY_TIMES(output, p->output);
        if (cache_read | cache_write | cache_write_1h)
            parts += RELAY_TIMES(cache_read, p->cache_read) + RELAY_TIMES(cache_write, p->cache_write)
                     + RELAY_TIMES(cache_write_1h, p->cache_write_1h);
        return relay_price(parts + relay_unit_parts(p, images, seconds, searches), p->ppb);
    }

    /* The same with tokens that are priced apart. They are among input, output and cache reads, so each is a correction by the
       difference of two prices: below zero for what is cheaper, but never the sum, and modulo 2^128 that is the same. */
    static inline int64_t relay_cost_apart(const relay_prices *p, int64_t input, int64_t output, int64_t cache_read,
                                           int64_t cache_write, int64_t cache_write_1h, int64_t images, int64_t seconds,
                                           int64_t searches, int64_t audio_in, int64_t audio_out, int64_t image_in,
                                           int64_t image_out, int64_t audio_read, int64_t image_read) {
        relay_u128 parts = RELAY_TIMES(input, p->input) + RELAY_TIMES(output, p->output)
                           + RELAY_TIMES(cache_read, p->cache_read) + RELAY_TIMES(cache_write, p->cache_write)
                           + RELAY_TIMES(cache_write_1h, p->cache_write_1h);
        if (audio_in > input) audio_in = input;
        if (image_in > input - audio_in) image_in = input - audio_in;
        if (audio_out > output) audio_out = output;
        if (image_out > output - audio_out) image_out = output - audio_out;
        if (audio_read > cache_read) audio_read = cache_read;
        if (image_read > cache_read - audio_read) image_read = cache_read - audio_read;
        parts += RELAY_TIMES(audio_in, p->audio_input) - RELAY_TIMES(audio_in, p->input);
        parts += RELAY_TIMES(image_in, p->image_input) - RELAY_TIMES(image_in, p->input);
        parts += RELAY_TIMES(audio_out, p->audio_output) - RELAY_TIMES(audio_out, p->output);
        parts += RELAY_TIMES(image_out, p->image_output) - RELAY_TIMES(image_out, p->output);
        parts += RELAY_TIMES(audio_read, p->audio_cache_read) - RELAY_TIMES(audio_read, p->cache_read);
        parts += RELAY_TIMES(image_read, p->image_cache_read) - RELAY_TIMES(image_read, p->cache_read);
        return relay_price(parts + relay_unit_parts(p, images, seconds, searches), p->ppb);
    }

    /* A prompt as so many tokens of the dearest kind as cost no less: that is what holds are reckoned in. */
    static inline int64_t relay_prompt(const relay_prices *p, int64_t input, int64_t cache_read, int64_t cache_write,
                                       int64_t cache_write_1h) {
        relay_u128 parts = RELAY_TIMES(input, p->input) + RELAY_TIMES(cache_read, p->cache_read)
                           + RELAY_TIMES(cache_write, p->cache_write) + RELAY_TIMES(cache_write_1h, p->cache_write_1h);
        return p->prompt <= 0 ? 0 : (int64_t)((parts + ((uint64_t)p->prompt - 1)) / (uint64_t)p->prompt);
    }

    static inline int64_t relay_bound(const relay_prices *p, int64_t prompt_tokens, int64_t output_tokens, int64_t images,
                                      int64_t seconds, int64_t searches) {
        return relay_price(RELAY_TIMES(prompt_tokens, p->prompt) + RELAY_TIMES(output_tokens, p->reply)
                           + relay_unit_parts(p, images, seconds, searches), p->ppb);
    }

    static inline int64_t relay_affordable_tokens(const relay_prices *p, int64_t prompt_tokens, int64_t images,
                                                  int64_t seconds, int64_t searches, int64_t budget) {
        return relay_affordable(p, prompt_tokens, relay_unit_parts(p, images, seconds, searches), budget);
    }
    """
    ctypedef struct Prices "relay_prices":
        int64_t input, output, cache_read, cache_write, cache_write_1h
        int64_t image, video_second, web_search
        int64_t audio_input, audio_output, image_input, image_output
        int64_t audio_cache_read, image_cache_read
        int64_t prompt, reply
        int64_t ppb
    int64_t COST_MAX "RELAY_COST_MAX"
    int64_t price_cost "relay_cost"(const Prices* p, int64_t input, int64_t output, int64_t cache_read, int64_t cache_write,
                                    int64_t cache_write_1h, int64_t images, int64_t seconds, int64_t searches)
    int64_t price_cost_apart "relay_cost_apart"(
        const Prices* p, int64_t input, int64_t output, int64_t cache_read, int64_t cache_write, int64_t cache_write_1h,
        int64_t images, int64_t seconds, int64_t searches, int64_t audio_in, int64_t audio_out, int64_t image_in,
        int64_t image_out, int64_t audio_read, int64_t image_read)
    int64_t price_prompt "relay_prompt"(const Prices* p, int64_t input, int64_t cache_read, int64_t cache_write,
                                        int64_t cache_write_1h)
    int64_t price_bound "relay_bound"(const Prices* p, int64_t prompt_tokens, int64_t output_tokens, int64_t images,
                                      int64_t seconds, int64_t searches)
    int64_t price_affordable "relay_affordable_tokens"(const Prices* p, int64_t prompt_tokens, int64_t images,
                                                       int64_t seconds, int64_t searches, int64_t budget)

cdef int64_t RATE_MAX = <int64_t>1 << 53
cdef int64_t PPB_NONE = 1000000000
cdef int64_t PPB_MAX = 1000000000000

cdef enum:
    TIER_LEVELS_MAX = 8


@cython.final
cdef class Rate:
    """Prices of one model on one rate card, with the discount of this customer; immutable.

    Nano-credits per 10^6 tokens, or per unit (image, video second, web search), each in [0, 2^53]. `discount_ppb` is a
    factor in parts per 10^9. `model` is the public name; `output_tokens_max` the model's own bound on output (0: unknown).
    Tokens of audio and images, among the input, among what was read from caches and among the output, have prices of
    their own (-1: as text; those of pictures in an answer cost nothing beside a price of the picture itself, `image`).

    `tiers` makes a price depend on the call: a table {(above, service): prices} of whole sets of prices. A call is
    charged at the tier of the largest `above` that its whole prompt (read from and written to caches included) exceeds,
    and of the service that the answer names; a pair that is not in the table costs as its (above, standard), or as the
    next lower `above`. The prices given by name are those of (0, standard).
    """
    cdef Prices prices                       # standard service, short prompts
    cdef Prices bounds[2 * TIER_LEVELS_MAX]  # by level: the dearest of each price, for holds; then those of calls that ask for priority
    cdef Prices* matrix                      # [level][service]; NULL: there are no tiers
    cdef int64_t above[TIER_LEVELS_MAX]      # where a level begins; above[0] is 0
    cdef int levels
    cdef readonly bint prices_priority       # the priority service has prices of its own
    cdef readonly bint prices_search         # a web search has a price, which may be 0
    cdef readonly dict tools                 # nano-credits for each use of a tool that the provider runs, by name
    cdef readonly bint inference_geo         # the prices are for inference in a place that the request names, too
    cdef bint plain                          # neither tiers nor prices of audio and images
    cdef readonly bytes model
    cdef readonly str card
    cdef readonly int64_t output_tokens_max

    def __cinit__(self, *, model, card, input=0, output=0, cache_read=0, cache_write=0, cache_write_1h=0, image=0,
                  video_second=0, web_search=0, audio_input=-1, audio_output=-1, image_input=-1, image_output=-1,
                  audio_cache_read=-1, image_cache_read=-1, discount_ppb=1000000000, output_tokens_max=0, inference_geo=False, tools=None,
                  tiers=None):
        cdef int level, service
        cdef Prices* p
        self.prices = _prices(discount_ppb, {
            "input": input, "output": output, "cache_read": cache_read, "cache_write": cache_write,
            "cache_write_1h": cache_write_1h, "image": image, "video_second": video_second, "web_search": web_search,
            "audio_input": audio_input, "audio_output": audio_output, "image_input": image_input,
            "image_output": image_output, "audio_cache_read": audio_cache_read, "image_cache_read": image_cache_read,
        })
        p = &self.prices
        self.levels = 1
        self.plain = (p.audio_input == p.input and p.image_input == p.input and p.audio_output == p.output
                      and p.image_output == p.output and p.audio_cache_read == p.cache_read
                      and p.image_cache_read == p.cache_read and not tiers)
        self.bounds[0] = self.bounds[TIER_LEVELS_MAX] = self.prices
        if tiers:
            self.set_tiers(tiers)
        self.output_tokens_max = _checked(output_tokens_max, "output_tokens_max", USAGE_MAX)
        self.inference_geo = inference_geo
        self.tools = {} if tools is None else {name: _checked(price, name, RATE_MAX) for name, price in tools.items()}
        self.prices_search = web_search > 0 or "web_search" in self.tools
        self.model = model
        self.card = card

    def __dealloc__(self):
        PyMem_Free(self.matrix)

    cdef int set_tiers(self, dict tiers) except -1:
        cdef int level, service, asked
        cdef Prices* p
        cdef Prices* bound
        limits = sorted({0} | {above for above, _ in tiers})
        if len(limits) > TIER_LEVELS_MAX or not all(0 <= service < SERVICES for _, service in tiers):
            raise ValueError("too many tiers, or an unknown service")
        self.levels = <int>len(limits)
        self.prices_priority = any(service == SERVICE_PRIORITY for _, service in tiers)
        self.matrix = <Prices*>PyMem_Malloc(self.levels * SERVICES * sizeof(Prices))
        if self.matrix == NULL:
            raise MemoryError
        for level in range(self.levels):
            self.above[level] = _checked(limits[level], "above", USAGE_MAX)
            for service in range(SERVICES):
                p = &self.matrix[level * SERVICES + service]
                if (limits[level], service) in tiers:
                    p[0] = _prices(self.prices.ppb, tiers[limits[level], service])
                elif (limits[level], SERVICE_STANDARD) in tiers:
                    p[0] = _prices(self.prices.ppb, tiers[limits[level], SERVICE_STANDARD])
                elif level == 0:
                    p[0] = self.prices
                else:
                    p[0] = self.matrix[(level - 1) * SERVICES + service]
            if level == 0:
                self.matrix[SERVICE_STANDARD] = self.prices
            # An estimate that lies above a limit may turn out to lie below: the dearest of all levels up to this.
            for asked in range(2):
                bound = &self.bounds[level + asked * TIER_LEVELS_MAX]
                bound[0] = self.bounds[level - 1 + asked * TIER_LEVELS_MAX] if level else self.prices
                for service in range(SERVICES):
                    if asked or service != SERVICE_PRIORITY:
                        _dearest(bound, &self.matrix[level * SERVICES + service])
        return 0

    cdef inline const Prices* bound_prices(self, int64_t prompt_tokens, bint priority) noexcept nogil:
        """What a hold for that prompt is taken by. `priority`: the request asks for that service; no other is charged for it."""
        cdef int level = self.levels - 1
        while level and prompt_tokens <= self.above[level]:
            level -= 1
        return &self.bounds[level + (TIER_LEVELS_MAX if priority else 0)]

    cdef inline int64_t cost_of(self, const Usage* u) noexcept nogil:
        """Cost in nano-credits, rounded up once; sticks at COST_MAX."""
        if self.plain:
            return price_cost(&self.prices, u.input_tokens, u.output_tokens, u.cache_read_tokens, u.cache_write_tokens,
                              u.cache_write_1h_tokens, u.images, u.video_seconds, u.web_searches)
        return self.tiered_cost(u)

    cdef int64_t tiered_cost(self, const Usage* u) noexcept nogil:
        cdef const Prices* p = &self.prices
        cdef int level = self.levels - 1
        cdef int64_t prompt = u.input_tokens + u.cache_read_tokens + u.cache_write_tokens + u.cache_write_1h_tokens
        if self.matrix != NULL:
            while level and prompt <= self.above[level]:
                level -= 1
            p = &self.matrix[level * SERVICES + (u.service if 0 <= u.service < SERVICES else SERVICE_STANDARD)]
        return price_cost_apart(p, u.input_tokens, u.output_tokens, u.cache_read_tokens, u.cache_write_tokens,
                                u.cache_write_1h_tokens, u.images, u.video_seconds, u.web_searches,
                                u.audio_input_tokens, u.audio_output_tokens, u.image_input_tokens, u.image_output_tokens,
                                u.audio_cache_read_tokens, u.image_cache_read_tokens)

    input = property(lambda self: (<Rate>self).prices.input)
    output = property(lambda self: (<Rate>self).prices.output)
    cache_read = property(lambda self: (<Rate>self).prices.cache_read)
    cache_write = property(lambda self: (<Rate>self).prices.cache_write)
    cache_write_1h = property(lambda self: (<Rate>self).prices.cache_write_1h)
    image = property(lambda self: (<Rate>self).prices.image)
    video_second = property(lambda self: (<Rate>self).prices.video_second)
    web_search = property(lambda self: (<Rate>self).prices.web_search)
    audio_input = property(lambda self: (<Rate>self).prices.audio_input)
    audio_output = property(lambda self: (<Rate>self).prices.audio_output)
    image_input = property(lambda self: (<Rate>self).prices.image_input)
    image_output = property(lambda self: (<Rate>self).prices.image_output)
    audio_cache_read = property(lambda self: (<Rate>self).prices.audio_cache_read)
    image_cache_read = property(lambda self: (<Rate>self).prices.image_cache_read)
    discount_ppb = property(lambda self: (<Rate>self).prices.ppb)

    def cost(self, input_tokens=0, output_tokens=0, cache_read_tokens=0, cache_write_tokens=0, cache_write_1h_tokens=0,
             images=0, video_seconds=0, web_searches=0, audio_input_tokens=0, audio_output_tokens=0, image_input_tokens=0,
             image_output_tokens=0, audio_cache_read_tokens=0, image_cache_read_tokens=0, service=0):
        """Cost in nano-credits of that usage, each number clamped to [0, 2^40] first."""
        cdef Usage usage = usage_from(input_tokens, output_tokens, cache_read_tokens, cache_write_tokens,
                                      cache_write_1h_tokens, images, video_seconds, web_searches)
        usage.audio_input_tokens = _clamped(audio_input_tokens)
        usage.audio_output_tokens = _clamped(audio_output_tokens)
        usage.image_input_tokens = _clamped(image_input_tokens)
        usage.image_output_tokens = _clamped(image_output_tokens)
        usage.audio_cache_read_tokens = _clamped(audio_cache_read_tokens)
        usage.image_cache_read_tokens = _clamped(image_cache_read_tokens)
        usage.service = _clamped(service)
        return self.cost_of(&usage)

    def bound(self, prompt_tokens, output_tokens, images=0, video_seconds=0, web_searches=0, bint priority=False):
        """The most that such a call can cost, however its prompt is charged: what a hold takes. `priority`: it asks for that
        service."""
        cdef int64_t prompt = _clamped(prompt_tokens)
        return price_bound(self.bound_prices(prompt, priority), prompt, _clamped(output_tokens), _clamped(images),
                           _clamped(video_seconds), _clamped(web_searches))

    def affordable(self, prompt_tokens, budget_nano, images=0, video_seconds=0, web_searches=0, bint priority=False):
        """The most output tokens for which `bound` is at most the budget; 2^63 - 1 where output is free, or the budget what a call can cost at most."""
        cdef int64_t prompt = _clamped(prompt_tokens)
        return price_affordable(self.bound_prices(prompt, priority), prompt, _clamped(images), _clamped(video_seconds),
                                _clamped(web_searches), _checked(budget_nano, "budget_nano", NANO_MAX))


cdef Prices _prices(object discount_ppb, dict given) except *:
    """A set of prices, checked. Audio and images that have none (absent, -1) are priced as text."""
    cdef Prices p
    p.input = _checked(given["input"], "input", RATE_MAX)
    p.output = _checked(given["output"], "output", RATE_MAX)
    p.cache_read = _checked(given["cache_read"], "cache_read", RATE_MAX)
    p.cache_write = _checked(given["cache_write"], "cache_write", RATE_MAX)
    p.cache_write_1h = _checked(given["cache_write_1h"], "cache_write_1h", RATE_MAX)
    p.image = _checked(given["image"], "image", RATE_MAX)
    p.video_second = _checked(given["video_second"], "video_second", RATE_MAX)
    p.web_search = _checked(given["web_search"], "web_search", RATE_MAX)
    p.audio_input = _price_apart(given, "audio_input", p.input)
    p.audio_output = _price_apart(given, "audio_output", p.output)
    p.image_input = _price_apart(given, "image_input", p.input)
    p.image_output = _price_apart(given, "image_output", 0 if p.image else p.output)
    p.audio_cache_read = _price_apart(given, "audio_cache_read", p.cache_read)
    p.image_cache_read = _price_apart(given, "image_cache_read", p.cache_read)
    p.ppb = _checked(discount_ppb, "discount_ppb", PPB_MAX)
    # A prompt may be charged as written to a cache, which costs more than plain input; a hold must cover that.
    p.prompt = max(max(max(p.input, p.cache_read), max(p.cache_write, p.cache_write_1h)), max(p.audio_input, p.image_input))
    p.prompt = max(p.prompt, max(p.audio_cache_read, p.image_cache_read))
    p.reply = max(max(p.output, p.audio_output), p.image_output)
    return p


cdef int64_t _price_apart(dict given, str name, int64_t otherwise) except -1:
    price = given.get(name, -1)
    return otherwise if price == -1 else _checked(price, name, RATE_MAX)


cdef void _dearest(Prices* bound, const Prices* p) noexcept nogil:
    bound.image = max(bound.image, p.image)
    bound.video_second = max(bound.video_second, p.video_second)
    bound.web_search = max(bound.web_search, p.web_search)
    bound.prompt = max(bound.prompt, p.prompt)
    bound.reply = max(bound.reply, p.reply)


cdef int64_t _clamped(object n) except -1:
    """A Python int of any size clamped to what usage may be; TypeError for what is no int."""
    if not isinstance(n, int):
        raise TypeError("usage must be an int")
    return 0 if n < 0 else (USAGE_MAX if n > USAGE_MAX else n)


cdef Usage usage_from(object input_tokens, object output_tokens, object cache_read_tokens, object cache_write_tokens,
                      object cache_write_1h_tokens, object images, object video_seconds, object web_searches):
    cdef Usage usage
    memset(&usage, 0, sizeof(Usage))
    usage.input_tokens = _clamped(input_tokens)
    usage.output_tokens = _clamped(output_tokens)
    usage.cache_read_tokens = _clamped(cache_read_tokens)
    usage.cache_write_tokens = _clamped(cache_write_tokens)
    usage.cache_write_1h_tokens = _clamped(cache_write_1h_tokens)
    usage.images = _clamped(images)
    usage.video_seconds = _clamped(video_seconds)
    usage.web_searches = _clamped(web_searches)
    return usage


@cython.final
cdef class Balance:
    """Credits of one account: spendable now, and held by open calls. Neither is ever below zero."""
    cdef readonly int64_t account_id
    cdef readonly int64_t available_nano
    cdef readonly int64_t held_nano
    cdef readonly int64_t open_holds         # open calls
    cdef readonly int64_t open_streams       # of these, streams
    cdef readonly int64_t waiting_bytes      # of request bodies in memory

    def __init__(self, int64_t account_id, balance_nano=0):
        self.account_id = account_id
        self.available_nano = _checked(balance_nano, "balance_nano", NANO_MAX)

    @property
    def balance_nano(self):
        """Available and held together: what the ledger says, less what is not written yet."""
        return self.available_nano + self.held_nano

    def add(self, nano):
        """Makes credits spendable, once they are committed. ValueError when the balance would be absurd."""
        cdef int64_t amount = _checked(nano, "nano", NANO_MAX)
        if self.available_nano + self.held_nano > NANO_MAX - amount:
            raise ValueError("the balance would be too large")
        self.available_nano += amount

    def take(self, nano, *, bint partial=False):
        """Takes credits away (refund, expiry) and returns how much was taken: all of it or nothing, or, with
        `partial`, what is there. Holds of open calls are never touched."""
        cdef int64_t amount = _checked(nano, "nano", NANO_MAX)
        if amount > self.available_nano:
            amount = self.available_nano if partial else 0
        self.available_nano -= amount
        return amount


cdef enum:
    S_ACTIVE = 0
    S_SUSPENDED = 1        # keys
    S_REVOKED = 2          # keys
    S_FROZEN = 3           # accounts, as the rest
    S_BANNED = 4
    S_CLOSING = 5
    S_CLOSED = 6

STATUSES = ("active", "suspended", "revoked", "frozen", "banned", "closing", "closed")

cdef enum:
    ON_DISCONNECT_CANCEL = 0
    ON_DISCONNECT_DRAIN = 1

cdef enum:
    NETWORK_SIZE = 18      # bytes of one entry: 4 or 6, prefix length in bits, address (v4: first 4 bytes)


cdef bint _in_network(const uint8_t* entry, const uint8_t* address, int length) noexcept nogil:
    cdef int bits = entry[1]
    cdef int whole = bits >> 3
    cdef int rest = bits & 7
    if (entry[0] == 4) != (length == 4) or memcmp(entry + 2, address, whole) != 0:
        return False
    return rest == 0 or ((entry[2 + whole] ^ address[whole]) >> (8 - rest)) == 0


@cython.final
cdef class ApiKey:
    """What the relay knows of one credential while it is cached; changed in place, so that open calls see it."""
    cdef readonly bytes public_id
    cdef readonly bytes digest               # HMAC-SHA256 of the secret
    cdef readonly int64_t key_id
    cdef readonly int64_t account_id
    cdef readonly int64_t organisation_id    # 0: none
    cdef readonly tuple scopes               # of Scope: key, account, organisation
    cdef readonly Balance balance
    cdef readonly int key_status             # index into STATUSES
    cdef readonly int account_status
    cdef readonly int64_t expires_ns         # wall time; 0: never
    cdef readonly uint32_t endpoint_scopes   # bits of the endpoint scopes that are allowed
    cdef readonly frozenset models           # of bytes; None: all
    cdef readonly bytes networks             # packed allowlist (policy.keys.pack_networks); None: everywhere
    cdef readonly str plan
    cdef readonly int on_disconnect
    cdef public bint recent                  # has been used since whoever keeps the keys last looked
    cdef readonly int64_t generation         # counts updates
    cdef readonly set calls                  # calls in flight, for those who must end them
    cdef public int64_t last_used_ns         # wall time of the last call, 0 unknown; the pipeline sets it

    def __init__(self, bytes public_id, bytes digest, int64_t key_id, int64_t account_id, int64_t organisation_id=0):
        if len(digest) != 32:
            raise ValueError("a digest has 32 bytes")
        self.public_id = public_id
        self.digest = digest
        self.key_id = key_id
        self.account_id = account_id
        self.organisation_id = organisation_id
        self.scopes = ()
        self.plan = ""
        self.endpoint_scopes = 0xFFFFFFFF
        self.calls = set()

    def update(self, *, scopes, balance, key_status=0, account_status=0, expires_ns=0, endpoint_scopes=0xFFFFFFFF,
               models=None, networks=None, plan="", on_disconnect=0):
        """Sets everything that can change; TypeError or ValueError before anything is changed."""
        cdef tuple checked_scopes = tuple(scopes)
        cdef Balance checked_balance = balance
        cdef frozenset checked_models = None if models is None else frozenset(models)
        cdef bytes checked_networks = networks
        cdef int64_t expires = _checked(expires_ns, "expires_ns", NANO_MAX)
        cdef uint32_t mask = _checked(endpoint_scopes, "endpoint_scopes", 0xFFFFFFFF)
        cdef int64_t of_key = _checked(key_status, "key_status", S_REVOKED)
        cdef int64_t of_account = _checked(account_status, "account_status", S_CLOSED)
        cdef int64_t disconnect = _checked(on_disconnect, "on_disconnect", ON_DISCONNECT_DRAIN)
        cdef str checked_plan = plan
        if balance is None:
            raise TypeError("balance must be a Balance")
        if len(checked_scopes) > SCOPES_MAX or not all(isinstance(scope, Scope) for scope in checked_scopes):
            raise ValueError(f"scopes must be at most {SCOPES_MAX} Scope objects")
        if checked_models is not None and not all(isinstance(model, bytes) for model in checked_models):
            raise TypeError("models must be bytes")
        _check_networks(checked_networks)
        self.scopes = checked_scopes
        self.balance = checked_balance
        self.key_status = <int>of_key
        self.account_status = <int>of_account
        self.expires_ns = expires
        self.endpoint_scopes = mask
        self.models = checked_models
        self.networks = checked_networks
        self.plan = checked_plan
        self.on_disconnect = <int>disconnect
        self.generation += 1

    cdef bint matches(self, const uint8_t* digest) noexcept:
        """Compares 32 bytes in constant time."""
        cdef const uint8_t* own = <const uint8_t*><const char*>self.digest
        cdef uint8_t difference = 0
        cdef int i
        for i in range(32):
            difference |= own[i] ^ digest[i]
        return difference == 0

    cdef int check_status(self, int64_t wall_ns) noexcept:
        """0, or why neither key nor account may make a call now."""
        if self.key_status != S_ACTIVE:
            return E_KEY_REVOKED if self.key_status == S_REVOKED else E_KEY_SUSPENDED
        if self.expires_ns != 0 and wall_ns >= self.expires_ns:
            return E_KEY_EXPIRED
        return E_NONE if self.account_status == S_ACTIVE else E_ACCOUNT_INACTIVE

    cdef int check_address(self, const uint8_t* address, int length) noexcept:
        """0, or E_ADDRESS_NOT_ALLOWED. The address is packed: 4 or 16 bytes, or length 0 when it is unknown."""
        cdef const uint8_t* entry
        cdef Py_ssize_t i, n
        if self.networks is None:
            return E_NONE
        if length == 16 and memcmp(address, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0:
            address += 12                    # a v4 address seen by a v6 socket
            length = 4
        if length != 4 and length != 16:
            return E_ADDRESS_NOT_ALLOWED
        entry = <const uint8_t*><const char*>self.networks
        n = len(self.networks) // NETWORK_SIZE
        for i in range(n):
            if _in_network(entry, address, length):
                return E_NONE
            entry += NETWORK_SIZE
        return E_ADDRESS_NOT_ALLOWED

    cdef inline int check_scope(self, uint32_t endpoint_scope) noexcept:
        """0, or E_SCOPE_NOT_ALLOWED; endpoint_scope is one bit."""
        return E_NONE if self.endpoint_scopes & endpoint_scope else E_SCOPE_NOT_ALLOWED

    cdef int check_model(self, bytes model) except -1:
        """0, or E_MODEL_NOT_ALLOWED."""
        return E_NONE if self.models is None or model in self.models else E_MODEL_NOT_ALLOWED

    def check(self, *, int64_t wall_ns=0, bytes address=None, uint32_t endpoint_scope=0xFFFFFFFF, bytes model=None):
        """The error code (index into ERROR_CODES) of the first check that fails, in their order; 0 when none does."""
        cdef int code = self.check_status(wall_ns)
        if code == 0:
            code = self.check_address(b"" if address is None else address, 0 if address is None else <int>len(address))
        if code == 0:
            code = self.check_scope(endpoint_scope)
        if code == 0 and model is not None:
            code = self.check_model(model)
        return code

    def digest_matches(self, bytes digest):
        """Constant-time comparison with a digest of 32 bytes."""
        return len(digest) == 32 and self.matches(<const uint8_t*><const char*>digest)


cdef int _check_networks(bytes networks) except -1:
    cdef Py_ssize_t i
    if networks is None:
        return 0
    if len(networks) % NETWORK_SIZE:
        raise ValueError("networks must be packed by pack_networks")
    for i in range(0, len(networks), NETWORK_SIZE):
        if not ((networks[i] == 4 and networks[i + 1] <= 32) or (networks[i] == 6 and networks[i + 1] <= 128)):
            raise ValueError("networks must be packed by pack_networks")
    return 0


@cython.final
cdef class Policy:
    """How much an admission holds. Tokens; the margin in parts per thousand of the estimated prompt."""
    cdef readonly int64_t hold_output_tokens         # output held for a call that names no limit and is no stream
    cdef readonly int64_t hold_slice_tokens          # output held at a time for a stream
    cdef readonly int64_t hold_slice_tokens_min      # a stream that cannot hold this much output does not begin
    cdef readonly int64_t prompt_margin_permille
    cdef readonly int64_t hold_web_searches          # searches held for a call that offers the model a priced search

    def __init__(self, *, hold_output_tokens=4096, hold_slice_tokens=256, hold_slice_tokens_min=16,
                 prompt_margin_permille=150, hold_web_searches=5):
        self.hold_output_tokens = _checked(hold_output_tokens, "hold_output_tokens", USAGE_MAX)
        self.hold_slice_tokens = max(1, _checked(hold_slice_tokens, "hold_slice_tokens", USAGE_MAX))
        self.hold_slice_tokens_min = min(max(1, _checked(hold_slice_tokens_min, "hold_slice_tokens_min", USAGE_MAX)),
                                         self.hold_slice_tokens)
        self.prompt_margin_permille = _checked(prompt_margin_permille, "prompt_margin_permille", 100000)
        self.hold_web_searches = _checked(hold_web_searches, "hold_web_searches", 1000)
