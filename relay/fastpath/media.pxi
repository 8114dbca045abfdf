# Images and files in requests: what they cost in tokens, from the first bytes of their data.
#
# Base64 is never counted as text. Its first bytes are decoded as they come, until the header of a PNG, JPEG, GIF or WebP
# tells the size; the rest is only measured. Nothing is kept but the numbers. A file that is only named by an address is
# not fetched: it counts as the largest that its provider would make of it.

cdef enum:
    MEDIA_HEAD = 32             # bytes of a file that its size may lie in (JPEG: found by walking its segments)
    MEDIA_PREFIX = 64           # longest `data:...,` that is understood
    MEDIA_WALK_MAX = 1 << 18    # bytes of a JPEG that are walked; large previews stand before its size

# What a file is.
cdef enum:
    MEDIA_UNKNOWN = 0
    MEDIA_IMAGE
    MEDIA_AUDIO
    MEDIA_VIDEO
    MEDIA_DOCUMENT
    MEDIA_TEXT

# How far the reading of one file is.
cdef enum:
    STAGE_NONE = 0
    STAGE_PREFIX        # of an address, which may be a data URL
    STAGE_BASE64
    STAGE_OVER          # all that can be known is known

cdef enum:
    PATCHES_MAX = 1536          # OpenAI, models that cut images into patches of 32 pixels
    TILES_MAX = 8               # OpenAI, 512 pixels, after scaling to 768 x 2048
    CLAUDE_TOKENS_MAX = 1568
    CLAUDE_HIGH_TOKENS_MAX = 4784
    GEMINI_TILES_MAX = 64
    GEMINI_TILE_TOKENS = 258

ctypedef struct Media:
    uint8_t stage
    uint8_t pending             # a file was seen and not yet counted
    uint8_t kind                # by its first bytes or its data URL
    uint8_t remote
    uint8_t declared            # by a media type beside it
    uint8_t block               # by the type of the part that holds it
    uint8_t low                 # detail: low
    uint8_t source              # Anthropic source.type: 0 not seen, 1 text, 2 anything else
    uint8_t prefix_size
    uint8_t jpeg                # place in the segments of a JPEG
    uint8_t bits                # of `code` that are not used up
    uint32_t code
    uint32_t position           # decoded bytes so far
    uint32_t skip               # of the present JPEG segment
    uint32_t width
    uint32_t height
    int64_t characters          # of the data
    uint64_t counted            # 1/4096 tokens counted in case that it is text
    uint8_t head[MEDIA_HEAD]
    uint8_t prefix[MEDIA_PREFIX]

# What the images of a request come to under each provider's rule; which one applies is decided by the model at the end.
ctypedef struct MediaSums:
    int64_t images
    int64_t low                 # of these, with detail: low
    int64_t tiles
    int64_t patches
    int64_t claude
    int64_t claude_high
    int64_t gemini_tiles
    int64_t flat                # tokens of other files

cdef int8_t BASE64[256]


for _letter in range(256):
    BASE64[_letter] = <int8_t>b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".find(_letter)
BASE64[c'-'] = 62               # the URL-safe alphabet is taken too
BASE64[c'_'] = 63
del _letter


cdef inline bint starts_with(const uint8_t* p, Py_ssize_t n, const char* word) noexcept nogil:
    cdef Py_ssize_t size = strlen(word)
    return n >= size and memcmp(p, word, size) == 0


cdef int media_class(const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """What a media type stands for."""
    if starts_with(p, n, b"image/"):
        return MEDIA_IMAGE
    if starts_with(p, n, b"audio/"):
        return MEDIA_AUDIO
    if starts_with(p, n, b"video/"):
        return MEDIA_VIDEO
    if starts_with(p, n, b"text/"):
        return MEDIA_TEXT
    return MEDIA_DOCUMENT if n else MEDIA_UNKNOWN


cdef inline unsigned big16(const uint8_t* p) noexcept nogil:
    return <unsigned>p[0] << 8 | p[1]


cdef inline unsigned little16(const uint8_t* p) noexcept nogil:
    return <unsigned>p[1] << 8 | p[0]


cdef void media_size(Media* m, unsigned width, unsigned height) noexcept nogil:
    m.stage = STAGE_OVER
    m.kind = MEDIA_IMAGE
    if width and height:
        m.width = width
        m.height = height


cdef void media_jpeg(Media* m, uint8_t c) noexcept nogil:
    """A byte behind the first two of a JPEG: walk from segment to segment to the start of a frame."""
    if m.skip:
        m.skip -= 1
        return
    if m.jpeg == 0:                     # a marker must come
        if c != 0xFF:
            m.stage = STAGE_OVER
        m.jpeg = 1
    elif m.jpeg == 1:                   # its code; fill bytes may stand before it
        m.head[0] = c
        if c == 0xFF:
            return
        if c == 0x01 or 0xD0 <= c <= 0xD8:
            m.jpeg = 0
        elif c == 0xD9 or c == 0xDA or c == 0:
            m.stage = STAGE_OVER        # the picture itself, and no frame before it
        else:
            m.jpeg = 2
    elif m.jpeg < 4:                    # length, itself included
        m.head[m.jpeg - 1] = c
        m.jpeg += 1
        if m.jpeg == 4:
            if big16(m.head + 1) < 2:
                m.stage = STAGE_OVER
            elif 0xC0 <= m.head[0] <= 0xCF and m.head[0] != 0xC4 and m.head[0] != 0xC8 and m.head[0] != 0xCC:
                m.skip = 1              # precision
            else:
                m.skip = big16(m.head + 1) - 2
                m.jpeg = 0
    else:                               # height and width
        m.head[m.jpeg - 1] = c
        m.jpeg += 1
        if m.jpeg == 8:
            media_size(m, big16(m.head + 5), big16(m.head + 3))


cdef void media_head(Media* m) noexcept nogil:
    """Another byte of the head is there: is the size known?"""
    cdef const uint8_t* h = m.head
    cdef uint32_t n = m.position
    cdef uint32_t bits
    if n == 3:
        if h[0] == 0xFF and h[1] == 0xD8:
            m.kind = MEDIA_IMAGE
            m.jpeg = 0
            m.skip = 0
            media_jpeg(m, h[2])
            m.prefix_size = 0xFF        # from now on as a JPEG
        elif memcmp(h, b"%PD", 3) == 0:
            m.kind = MEDIA_DOCUMENT
            m.stage = STAGE_OVER
        elif memcmp(h, b"\x89PN", 3) != 0 and memcmp(h, b"GIF", 3) != 0 and memcmp(h, b"RIF", 3) != 0:
            m.stage = STAGE_OVER
    elif n == 10 and h[0] == c'G':
        media_size(m, little16(h + 6), little16(h + 8))
    elif n == 24 and h[0] == 0x89:
        if memcmp(h + 12, b"IHDR", 4) == 0 and not h[16] and not h[20]:
            media_size(m, <unsigned>h[17] << 16 | big16(h + 18), <unsigned>h[21] << 16 | big16(h + 22))
        else:
            m.stage = STAGE_OVER
    elif n == 12 and h[0] == c'R' and memcmp(h + 8, b"WEBP", 4) != 0:
        m.stage = STAGE_OVER            # RIFF is also WAV and AVI
    elif n == 30 and h[0] == c'R':
        if memcmp(h + 12, b"VP8 ", 4) == 0:
            media_size(m, little16(h + 26) & 0x3FFF, little16(h + 28) & 0x3FFF)
        elif memcmp(h + 12, b"VP8L", 4) == 0:
            bits = h[21] | <uint32_t>h[22] << 8 | <uint32_t>h[23] << 16 | <uint32_t>h[24] << 24
            media_size(m, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif memcmp(h + 12, b"VP8X", 4) == 0:
            media_size(m, (h[24] | <unsigned>h[25] << 8 | <unsigned>h[26] << 16) + 1,
                       (h[27] | <unsigned>h[28] << 8 | <unsigned>h[29] << 16) + 1)
        else:
            m.stage = STAGE_OVER


cdef void media_base64(Media* m, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Decode data until the size is known."""
    cdef const uint8_t* end = p + n
    cdef int value
    cdef uint8_t c
    while p < end and m.stage == STAGE_BASE64:
        c = p[0]
        p += 1
        value = BASE64[c]
        if value < 0:
            if c == c'\n' or c == c'\r' or c == c' ':
                continue
            m.stage = STAGE_OVER
            return
        m.code = (m.code << 6 | <uint32_t>value) & 0xFFFF
        m.bits += 6
        if m.bits < 8:
            continue
        m.bits -= 8
        c = <uint8_t>(m.code >> m.bits)
        m.position += 1
        if m.prefix_size == 0xFF:
            media_jpeg(m, c)
            if m.position >= MEDIA_WALK_MAX:
                m.stage = STAGE_OVER
        else:
            m.head[m.position - 1] = c  # media_head ends the stage before the head is full
            media_head(m)


cdef void media_bytes(Media* m, const uint8_t* p, Py_ssize_t n) noexcept nogil:
    """Decoded bytes of a JSON string that holds data or an address."""
    cdef const uint8_t* end = p + n
    cdef uint8_t c
    m.characters += n
    while p < end and m.stage == STAGE_PREFIX:
        c = p[0]
        p += 1
        if m.prefix_size < 5 and (c | 0x20) != <uint8_t>(<const char*>b"data:")[m.prefix_size]:
            m.remote = True
            m.stage = STAGE_OVER
        elif c == c',':
            m.kind = <uint8_t>media_class(m.prefix + 5, m.prefix_size - 5)
            m.characters = end - p
            m.stage = STAGE_OVER
            if m.prefix_size >= 12 and memcmp(m.prefix + m.prefix_size - 7, b";base64", 7) == 0:
                m.stage = STAGE_BASE64
                m.prefix_size = 0
        elif m.prefix_size == MEDIA_PREFIX:
            m.kind = <uint8_t>media_class(m.prefix + 5, MEDIA_PREFIX - 5)
            m.stage = STAGE_OVER
        else:
            m.prefix[m.prefix_size] = c
            m.prefix_size += 1
    if p < end and m.stage == STAGE_BASE64:
        media_base64(m, p, end - p)


cdef void media_begin(Media* m, int stage) noexcept nogil:
    """A string of data or an address begins."""
    m.stage = <uint8_t>stage
    m.pending = True
    m.kind = MEDIA_UNKNOWN
    m.remote = False
    m.prefix_size = 0
    m.bits = 0
    m.code = 0
    m.position = 0
    m.width = m.height = 0
    m.characters = 0
    m.counted = 0


cdef inline void media_forget(Media* m) noexcept nogil:
    """A new part begins: what was said about the last one does not hold."""
    m.declared = MEDIA_UNKNOWN
    m.block = MEDIA_UNKNOWN
    m.low = False
    m.source = 0


cdef inline int64_t divide_up(int64_t n, int64_t by) noexcept nogil:
    return (n + by - 1) // by


cdef void media_image(MediaSums* sums, int64_t w, int64_t h, bint low) noexcept nogil:
    """Count one image of w x h pixels, or of unknown size (0): then as the largest."""
    cdef int64_t long_side, short_side, a, b, unit
    sums.images += 1
    if low:
        sums.low += 1
    if w <= 0 or h <= 0:
        if not low:
            sums.tiles += TILES_MAX
            sums.patches += PATCHES_MAX
        sums.claude += CLAUDE_TOKENS_MAX
        sums.claude_high += CLAUDE_HIGH_TOKENS_MAX
        sums.gemini_tiles += 4
        return
    long_side = max(w, h)
    short_side = min(w, h)
    if not low:
        # OpenAI: into 2048 x 2048, then the short side to 768, then tiles of 512; or patches of 32, as many as are allowed.
        a = long_side
        b = short_side
        if a > 2048:
            b = max(b * 2048 // a, 1)
            a = 2048
        if b > 768:
            a = divide_up(a * 768, b)
            b = 768
        sums.tiles += divide_up(a, 512) * divide_up(b, 512)
        sums.patches += min(divide_up(w, 32) * divide_up(h, 32), <int64_t>PATCHES_MAX)
    # Anthropic: the long side to 1568 (2576 where the resolution is high), then 750 pixels a token.
    a = long_side
    b = short_side
    if a > 2576:
        b = max(b * 2576 // a, 1)
        a = 2576
    sums.claude_high += min(divide_up(a * b, 750), <int64_t>CLAUDE_HIGH_TOKENS_MAX)
    if a > 1568:
        b = max(b * 1568 // a, 1)
        a = 1568
    sums.claude += min(divide_up(a * b, 750), <int64_t>CLAUDE_TOKENS_MAX)
    # Gemini 2: one tile up to 384 x 384, else crops of two thirds of the short side, 256 to 768 pixels.
    if long_side <= 384:
        sums.gemini_tiles += 1
    else:
        unit = max(<int64_t>256, min(<int64_t>768, short_side * 2 // 3))
        sums.gemini_tiles += min(divide_up(long_side, unit) * divide_up(short_side, unit), <int64_t>GEMINI_TILES_MAX)


cdef void media_count(Media* m, MediaSums* sums, Counter* counter) noexcept nogil:
    """The part that holds a file has ended: count it."""
    cdef int kind = m.kind if m.kind else (m.declared if m.declared else m.block)
    cdef int64_t size = m.characters * 3 // 4
    if not m.pending:
        return
    m.pending = False
    m.stage = STAGE_NONE
    if m.source == 1:
        return                              # plain text, counted as such
    counter.acc -= m.counted
    if m.remote:
        size = 0
        kind = m.declared if m.declared else m.block
    if kind == MEDIA_AUDIO:                 # about 32 tokens a second of MP3
        sums.flat += max(<int64_t>256, min(size // 512, <int64_t>1 << 20))
    elif kind == MEDIA_VIDEO:               # about 260 tokens a second at 2 Mbit/s
        sums.flat += max(<int64_t>8192, min(size // 1024, <int64_t>1 << 20))
    elif kind == MEDIA_DOCUMENT:            # about 2,000 tokens a page of 64 KB
        sums.flat += max(<int64_t>4096, min(size // 32, <int64_t>1 << 20))
    elif kind == MEDIA_TEXT:
        sums.flat += 4096 if m.remote else size // 4 + 1
    else:
        media_image(sums, m.width, m.height, m.low)


# How OpenAI's models charge images: start of the name, then tokens per image and per tile; or per 1,000 patches (tiles 0).
# The longest matching start counts.
_IMAGE_RULES = (
    (b"gpt-4o-mini", 2833, 5667),
    (b"gpt-5-mini", 1620, 0),
    (b"gpt-5-nano", 2460, 0),
    (b"gpt-4.1-mini", 1620, 0),
    (b"gpt-4.1-nano", 2460, 0),
    (b"o4-mini", 1720, 0),
    (b"gpt-5", 70, 140),
    (b"o1", 75, 150),
    (b"o3", 75, 150),
    (b"", 85, 170),
)

# Claude models before high resolution images, by parts of their names.
_CLAUDE_LOW = (b"claude-2", b"claude-3", b"claude-instant", b"-4-0", b"-4-1", b"-4-2", b"-4-5", b"-4-6", b"-4.5", b"-4.6")


cdef int64_t media_tokens(const MediaSums* sums, int format, bytes model, int resolution):
    """Tokens of all images and files under the rule of the model; an unknown Claude counts as high resolution."""
    cdef int64_t tokens = sums.flat
    if not sums.images:
        return tokens
    if format == F_MESSAGES or format == F_COUNT_TOKENS or (model is not None and b"claude" in model):
        for part in _CLAUDE_LOW:
            if model is not None and part in model:
                return tokens + sums.claude
        return tokens + sums.claude_high
    if format == F_GENERATE or format == F_GEMINI_COUNT or format == F_GEMINI_EMBED:
        return tokens + max(sums.images * resolution, sums.gemini_tiles * GEMINI_TILE_TOKENS)
    name = model.rpartition(b"/")[2] if model is not None else b""
    for start, base, tile in _IMAGE_RULES:
        if name.startswith(start):
            if not tile:
                return tokens + divide_up(sums.patches * base, 1000) + sums.low * 85
            return tokens + sums.images * base + sums.tiles * tile
    return tokens
