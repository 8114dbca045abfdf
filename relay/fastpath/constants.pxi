# Numbers and structs that several files of the hot path share. Python reads the names through `_fastpath.pyi`.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

# Dialect: whose error shapes and rate-limit header names an answer uses.
cdef enum:
    D_OPENAI = 0
    D_ANTHROPIC = 1
    D_GEMINI = 2

# Format: what a request body and its answer look like.
cdef enum:
    F_CHAT = 0            # OpenAI chat completions
    F_COMPLETIONS = 1     # OpenAI legacy completions
    F_RESPONSES = 2       # OpenAI Responses
    F_EMBEDDINGS = 3      # OpenAI embeddings
    F_MESSAGES = 4        # Anthropic messages
    F_COUNT_TOKENS = 5    # Anthropic messages/count_tokens (free)
    F_GENERATE = 6        # Gemini generateContent and streamGenerateContent
    F_GEMINI_COUNT = 7    # Gemini countTokens (free)
    F_GEMINI_EMBED = 8    # Gemini embedContent, batchEmbedContents
    F_MODERATIONS = 9
    F_RERANK = 10
    F_IMAGES = 11
    F_SPEECH = 12
    F_TRANSCRIPTION = 13  # audio to text: transcriptions, translations
    F_OTHER = 14

# Error codes: the index is the number used inside the hot path, the name is what a call record and an error body carry.
# relay/errors.py gives each its HTTP status, whose fault it is, and whether a retry can help.
ERROR_CODES = (
    "",                      # 0: finished
    "malformed_json",
    "duplicate_key",
    "invalid_type",
    "invalid_value",
    "missing_model",
    "unsupported_feature",
    "missing_key",
    "invalid_key",
    "ambiguous_key",
    "key_expired",
    "key_revoked",
    "key_suspended",
    "account_inactive",
    "insufficient_balance",
    "max_cost",
    "address_not_allowed",
    "scope_not_allowed",
    "model_not_allowed",
    "model_unpriced",
    "model_not_found",
    "path_not_found",
    "method_not_allowed",
    "body_too_large",
    "unsupported_encoding",
    "upgrade_required",
    "rate_limit_requests",
    "rate_limit_tokens",
    "concurrency_limit",
    "daily_limit",
    "monthly_limit",
    "tokens_per_call",
    "upstream_failed",
    "upstream_unavailable",
    "upstream_timeout",
    "upstream_garbage",
    "upstream_account",
    "upstream_truncated",
    "upstream_stalled",
    "upstream_error",
    "client_gone",
    "client_stalled",
    "balance_exhausted",
    "cap_reached",
    "max_cost_reached",
    "drain_deadline",
    "recovered",
    "overloaded",
    "store_unavailable",
    "draining",
    "internal",
    "malformed_http",
    "body_timeout",
    "malformed_form",
    "object_not_found",
    "idempotency_repeat",
    "too_many_files",
    "objects_apart",
    "unsupported_charset",
    "browser_request",
    "tool_unpriced",
    "files_limit",
    "misspelt_key",
    "malformed_encoding",
    "switched_off",
)

cdef enum:
    E_NONE = 0
    E_MALFORMED_JSON
    E_DUPLICATE_KEY
    E_INVALID_TYPE
    E_INVALID_VALUE
    E_MISSING_MODEL
    E_UNSUPPORTED_FEATURE
    E_MISSING_KEY
    E_INVALID_KEY
    E_AMBIGUOUS_KEY
    E_KEY_EXPIRED
    E_KEY_REVOKED
    E_KEY_SUSPENDED
    E_ACCOUNT_INACTIVE
    E_INSUFFICIENT_BALANCE
    E_MAX_COST
    E_ADDRESS_NOT_ALLOWED
    E_SCOPE_NOT_ALLOWED
    E_MODEL_NOT_ALLOWED
    E_MODEL_UNPRICED
    E_MODEL_NOT_FOUND
    E_PATH_NOT_FOUND
    E_METHOD_NOT_ALLOWED
    E_BODY_TOO_LARGE
    E_UNSUPPORTED_ENCODING
    E_UPGRADE_REQUIRED
    E_RATE_LIMIT_REQUESTS
    E_RATE_LIMIT_TOKENS
    E_CONCURRENCY_LIMIT
    E_DAILY_LIMIT
    E_MONTHLY_LIMIT
    E_TOKENS_PER_CALL
    E_UPSTREAM_FAILED
    E_UPSTREAM_UNAVAILABLE
    E_UPSTREAM_TIMEOUT
    E_UPSTREAM_GARBAGE
    E_UPSTREAM_ACCOUNT
    E_UPSTREAM_TRUNCATED
    E_UPSTREAM_STALLED
    E_UPSTREAM_ERROR
    E_CLIENT_GONE
    E_CLIENT_STALLED
    E_BALANCE_EXHAUSTED
    E_CAP_REACHED
    E_MAX_COST_REACHED
    E_DRAIN_DEADLINE
    E_RECOVERED
    E_OVERLOADED
    E_STORE_UNAVAILABLE
    E_DRAINING
    E_INTERNAL
    E_MALFORMED_HTTP
    E_BODY_TIMEOUT
    E_MALFORMED_FORM
    E_OBJECT_NOT_FOUND
    E_IDEMPOTENCY_REPEAT
    E_TOO_MANY_FILES
    E_OBJECTS_APART
    E_UNSUPPORTED_CHARSET
    E_BROWSER_REQUEST
    E_TOOL_UNPRICED
    E_FILES_LIMIT
    E_MISSPELT_KEY
    E_MALFORMED_ENCODING
    E_SWITCHED_OFF
    E_COUNT

assert len(ERROR_CODES) == E_COUNT

# Usage of one call in the dimensions that are priced. The dimensions do not overlap: input_tokens leaves out what was
# read from or written to a prompt cache. Every number is clamped to [0, USAGE_MAX] where it enters.
ctypedef struct Usage:
    int64_t input_tokens
    int64_t output_tokens
    int64_t cache_read_tokens
    int64_t cache_write_tokens       # five-minute cache, or where the provider does not say
    int64_t cache_write_1h_tokens
    int64_t images
    int64_t video_seconds
    int64_t web_searches
    # Of those above, what may be priced apart: audio and images among input_tokens, and among output_tokens.
    int64_t audio_input_tokens
    int64_t audio_output_tokens
    int64_t image_input_tokens
    int64_t image_output_tokens
    int64_t audio_cache_read_tokens      # ... and among cache_read_tokens
    int64_t image_cache_read_tokens
    int64_t service              # SERVICE_*: how the provider says that it served the call

# Service tiers: what providers charge by, beside what was used.
cdef enum:
    SERVICE_STANDARD = 0
    SERVICE_BATCH
    SERVICE_FLEX
    SERVICE_PRIORITY
    SERVICES

cdef int64_t USAGE_MAX = <int64_t>1 << 40

cdef inline int64_t clamp_usage(int64_t n) noexcept nogil:
    return 0 if n < 0 else (USAGE_MAX if n > USAGE_MAX else n)
