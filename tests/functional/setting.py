"""The configuration that most tests share, and its prices."""

from decimal import Decimal

# Credits per million tokens: input, output, cache read, cache write, cache write of one hour; then search, image.
PRICES: dict[str, tuple[str, ...]] = {
    "gpt-4o": ("2.5", "10", "1.25", "2.5", "2.5", "0.01", "0.04"),
    "gpt-5": ("1.25", "10", "0.125", "1.25", "1.25", "0.01", "0.04"),
    "text-embedding-3-small": ("0.02", "0", "0.02", "0.02", "0.02", "0", "0"),
    "gpt-renamed": ("0.000000001", "0.000000003", "0", "0", "0", "0", "0"),
    "gpt-strip": ("2.5", "10", "1.25", "2.5", "2.5", "0", "0"),
    "gpt-bad-key": ("1", "1", "1", "1", "1", "0", "0"),
    "missing-upstream": ("1", "1", "1", "1", "1", "0", "0"),
    "gpt-down": ("1", "1", "1", "1", "1", "0", "0"),
    "gpt-failover": ("1", "2", "1", "1", "1", "0", "0"),
    "claude-sonnet-5": ("3", "15", "0.3", "3.75", "6", "0.01", "0"),
    "gemini-2.5-flash": ("0.3", "2.5", "0.075", "0.3", "0.3", "0.035", "0"),
    "gemini-3-pro": ("2", "12", "0.2", "2", "2", "0.014", "0"),
    "gemini-embedding-001": ("0.15", "0", "0", "0", "0", "0", "0"),
    "raw-chat": ("1", "2", "0.5", "1.5", "1.5", "0", "0"),
    # Never reported for, so that the relay's own count of them stays as it is.
    "raw-uncounted": ("1", "2", "0.5", "1.5", "1.5", "0", "0"),
    "raw-claude-uncounted": ("1", "2", "0.5", "1.5", "2", "0", "0"),
    "raw-gemini-uncounted": ("1", "2", "0.5", "1.5", "1.5", "0", "0"),
    # Nobody answers for these: another model is taken.
    "gpt-falls": ("9", "9", "9", "9", "9", "0", "0"),
    "claude-falls": ("9", "9", "9", "9", "9", "0", "0"),
    "gemini-falls": ("9", "9", "9", "9", "9", "0", "0"),
    "raw-falls": ("0.001", "0.001", "0.001", "0.001", "0.001", "0", "0"),
    "raw/with-slash": ("1", "2", "0.5", "1.5", "1.5", "0", "0"),
    "raw-strip": ("1", "2", "0.5", "1.5", "1.5", "0", "0"),
    "raw-claude": ("1", "2", "0.5", "1.5", "2", "0", "0"),
    "raw-gemini": ("1", "2", "0.5", "1.5", "1.5", "0", "0"),
    # Priced by the piece: an image, a second of sound, a search; by tokens; by characters (an input price alone).
    "dall-e-3": ("0", "0", "0", "0", "0", "0", "0.04"),
    "gpt-image-1": ("5", "40", "1.25", "5", "5", "0", "0"),
    "tts-1": ("15", "0", "0", "0", "0", "0", "0"),
    "gpt-4o-mini-tts": ("0.6", "12", "0", "0", "0", "0", "0"),
    "omni-moderation-latest": ("0.1", "0", "0", "0", "0", "0", "0"),
    "rerank-tokens": ("0.05", "0", "0", "0", "0", "0", "0"),
    "rerank-searches": ("1", "0", "0", "0", "0", "0.002", "0"),
    "gpt-4o-transcribe": ("2.5", "10", "0", "0", "0", "0", "0"),
    "whisper-1": ("0", "0", "0", "0", "0", "0", "0", "0.0001"),
    "sora-2": ("0", "0", "0", "0", "0", "0", "0", "0.1"),
    "gemini-2.5-flash-image": ("0.3", "30", "0.075", "0.3", "0.3", "0", "0"),
    "raw-azure": ("1", "2", "0.5", "1.5", "1.5", "0", "0"),
    "raw-vertex": ("1", "2", "0.5", "1.5", "1.5", "0", "0"),
    "raw-gateway": ("1", "2", "0.5", "1.5", "2", "0", "0"),
    # A raw script answers first, the simulator where that has failed.
    "raw-first": ("1", "2", "0.5", "1.5", "1.5", "0", "0"),
    "raw-claude-first": ("1", "2", "0.5", "1.5", "2", "0", "0"),
    "raw-gemini-first": ("1", "2", "0.5", "1.5", "1.5", "0", "0"),
    "raw-speech": ("15", "0", "0", "0", "0", "0", "0"),
    "raw-scribe": ("0", "0", "0", "0", "0", "0", "0", "0.0001"),
    "raw-picture": ("0", "0", "0", "0", "0", "0", "0.04"),
    "raw-slow": ("1", "2", "0.5", "1.5", "1.5", "0", "0"),
}
_FIELDS = ("input", "output", "cache_read", "cache_write", "cache_write_1h", "web_search", "image", "video_second")
OPERATOR_TOKEN = "operator-token-of-the-tests"
SIM_KEY = "sim-operator-key"
RAW_KEY = "raw-operator-key"
BODY_BYTES_MAX = 1 << 20


def cost_nano(
    model: str, input: int = 0, output: int = 0, cache_read: int = 0, cache_write: int = 0, cache_write_1h: int = 0,
    web_searches: int = 0, images: int = 0, video_seconds: int = 0,
) -> int:  # fmt: skip
    """The price of a call, rounded up to a whole nano-credit once."""
    prices = [Decimal(price) for price in PRICES[model]]
    tokens = (input, output, cache_read, cache_write, cache_write_1h)
    total = sum(count * price * 1000 for count, price in zip(tokens, prices, strict=False))  # nano per token
    total += (web_searches * prices[5] + images * prices[6]) * 10**9
    total += video_seconds * (prices[7] if video_seconds else 0) * 10**9
    return -int(-total // 1)


def channel(name: str, api: str, base_url: str, models: str, key: str, *more: str) -> str:
    lines = ["[[channels]]", f'name = "{name}"', f'api = "{api}"', f'base_url = "{base_url}"']
    return "\n".join([*lines, f'api_keys = ["{key}"]', f"models = {models}", *more, ""])


def rates() -> str:
    tables = []
    for model, prices in PRICES.items():
        tables.append(f'[[rates]]\nmodel = "{model}"')
        tables += [f'{name} = "{price}"' for name, price in zip(_FIELDS, prices, strict=False)]
    return "\n".join(tables) + "\n"


def config_text(simulator: str, raw: str) -> str:
    """Short deadlines, no limits in the plan `open`, channels to the simulator, to raw
    scripts and to nowhere, which are used however they fail."""
    head = f"""\
[server]
drain_seconds = 5
body_bytes_max = {BODY_BYTES_MAX}
[admin]
token = "{OPERATOR_TOKEN}"
[timeouts]
header_seconds = 1
body_idle_seconds = 1
connect_seconds = 2
first_byte_seconds = 20
answer_seconds = 20
stream_idle_seconds = 20
write_stall_seconds = 2
[plans.open]
rpm = 0
tpm = 0
concurrency = 0
[observe]
unknown_models = true
[jobs]
poll_seconds = 3600
[billing]
prompt_margin_permille = 100
[routing]
breaker_failure_percent = 0
key_rest_seconds = 0
"""
    nowhere = "http://127.0.0.1:9/v1"  # the port of discard: nobody listens
    channels = [
        channel(
            "sim-openai", "openai", simulator + "/v1",
            '["gpt-4o", "gpt-5", "text-embedding-3-small", "gpt-unpriced", "missing-upstream"]', SIM_KEY,
        ),
        channel("sim-renaming", "openai", simulator + "/v1", '{ "gpt-renamed" = "gpt-4o-2024-11-20" }', SIM_KEY),
        channel("sim-strip", "openai", simulator + "/v1", '["gpt-strip"]', SIM_KEY, 'ask_usage = "strip"'),
        channel("sim-bad-key", "openai", simulator + "/v1", '["gpt-bad-key"]', "not-a-key-of-the-simulator"),
        channel("sim-anthropic", "anthropic", simulator, '["claude-sonnet-5"]', SIM_KEY),
        channel(
            "sim-gemini", "gemini", simulator,
            '["gemini-2.5-flash", "gemini-3-pro", "gemini-embedding-001", "gemini-2.5-flash-image"]', SIM_KEY,
        ),
        channel(
            "sim-media", "openai", simulator + "/v1",
            '["dall-e-3", "gpt-image-1", "tts-1", "gpt-4o-mini-tts", "omni-moderation-latest", "rerank-tokens", '
            '"rerank-searches", "gpt-4o-transcribe", "whisper-1", "sora-2"]', SIM_KEY,
        ),
        channel(
            "falls", "openai", nowhere, '["gpt-falls"]', "nobody", 'fallback_models = { "gpt-falls" = "gpt-4o" }',
        ),
        channel(
            "claude-falls", "anthropic", "http://127.0.0.1:9", '["claude-falls"]', "nobody",
            'fallback_models = { "claude-falls" = "claude-sonnet-5" }',
        ),
        channel(
            "gemini-falls", "gemini", "http://127.0.0.1:9", '["gemini-falls"]', "nobody",
            'fallback_models = { "gemini-falls" = "gemini-2.5-flash" }',
        ),
        channel(
            "raw-falls", "openai", raw + "/v1", '["raw-falls"]', RAW_KEY,
            'fallback_models = { "raw-falls" = "gpt-4o" }',
        ),
        channel("down", "openai", nowhere, '["gpt-down", "gpt-failover"]', "nobody"),
        channel("after-down", "openai", simulator + "/v1", '["gpt-failover"]', SIM_KEY, "priority = 1"),
        channel(
            "raw-openai", "openai", raw + "/v1",
            '["raw-chat", "raw-uncounted", "raw-speech", "raw-scribe", "raw-picture", "raw/with-slash"]', RAW_KEY,
        ),
        channel("raw-strip", "openai", raw + "/v1", '["raw-strip"]', RAW_KEY, 'ask_usage = "strip"'),
        channel("raw-anthropic", "anthropic", raw, '["raw-claude", "raw-claude-uncounted"]', RAW_KEY),
        channel("raw-gemini", "gemini", raw, '["raw-gemini", "raw-gemini-uncounted"]', RAW_KEY),
        channel("raw-first", "openai", raw + "/v1", '["raw-first"]', RAW_KEY),
        channel("raw-claude-first", "anthropic", raw, '["raw-claude-first"]', RAW_KEY),
        channel("raw-gemini-first", "gemini", raw, '["raw-gemini-first"]', RAW_KEY),
        channel("sim-second", "openai", simulator + "/v1", '{ "raw-first" = "gpt-4o" }', SIM_KEY, "priority = 1"),
        channel(
            "sim-claude-second", "anthropic", simulator, '{ "raw-claude-first" = "claude-sonnet-5" }', SIM_KEY,
            "priority = 1",
        ),
        channel(
            "sim-gemini-second", "gemini", simulator, '{ "raw-gemini-first" = "gemini-2.5-flash" }', SIM_KEY,
            "priority = 1",
        ),
        # Azure's deployments, Google's Vertex AI, a gateway that wants the key in a header of its own.
        channel(
            "raw-azure", "openai", raw + "/openai/deployments/{model}", '{ "raw-azure" = "gpt-4o/prod" }', RAW_KEY,
            'key_header = "api-key"', 'query = "api-version=2024-10-21"', 'ask_usage = "strip"',
        ),
        channel(
            "raw-vertex", "gemini", raw + "/v1/projects/p-1/locations/global/publishers/google",
            '{ "raw-vertex" = "gemini-2.5-flash" }', RAW_KEY, 'key_header = "Authorization"',
        ),
        channel("raw-gateway", "anthropic", raw, '["raw-gateway"]', RAW_KEY, 'key_header = "X-Gateway-Key"'),
        channel(
            "raw-slow", "openai", raw + "/v1", '["raw-slow"]', RAW_KEY,
            "[channels.timeouts]", "first_byte_seconds = 0.5", "answer_seconds = 0.5", "stream_idle_seconds = 0.5",
        ),
    ]  # fmt: skip
    return head + "".join(channels) + rates()
