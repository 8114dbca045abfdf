"""The configuration: structs that mirror `config.toml`, and the loader that turns a file into them.

    config = load("config.toml")      # ConfigError: file, key, what is expected, what was got
    for line in config.warnings: ...

Decimals (money, prices) are `Decimal`, whether the file writes a number or a string: nothing passes through a float.
`relay.config_values` holds the types of single values and the walk over the structs; this file holds the keys, their
defaults and the rules between them. What each key means to an operator stands in docs/configuration.md and config.toml;
a test compares the three.
"""

import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from relay import shipped_rates
from relay.config_values import (
    MODEL_PLACE,
    UNSET_PRICE,
    BaseUrl,
    ConfigError,
    Converter,
    Credits,
    EditedHeader,
    Factor,
    FallbackModels,
    Fault,
    HeaderName,
    Listen,
    ListenAt,
    ListenAtOrNot,
    ModelFactors,
    ModelMap,
    ModelName,
    Name,
    Network,
    Origin,
    Price,
    QueryText,
    Secret,
    Setting,
    TokensPerCall,
    ToolPrices,
    UrlOrNot,
    expand_price,
    is_model_pattern,
    proxy_fault,
)

# Bounds keep every product of a rate and a usage inside 128 bits, and every amount inside 64.
Count = Annotated[int, Meta(ge=0, le=10**12)]
Positive = Annotated[int, Meta(ge=1, le=10**12)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Bytes = Annotated[int, Meta(ge=1024, le=2**40)]


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    """One table of the file."""


class Server(_Table, frozen=True):
    listen: ListenAt = Listen(host="127.0.0.1", port=8787)
    data_dir: str = "data"
    durability: Literal["process", "power"] = "process"
    trusted_proxies: tuple[Network, ...] = ()
    drain_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 600.0
    connections_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 20_000
    calls_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 16_384
    body_bytes_max: Bytes = 33_554_432
    waiting_bytes_max: Bytes = 1_073_741_824
    upload_bytes_max: Bytes = 536_870_912
    memory_bytes_max: Annotated[int, Meta(ge=0)] = 0
    keys_in_memory_max: Annotated[int, Meta(ge=1, le=100_000_000)] = 100_000
    tls_certificate: str = ""
    tls_key: str = ""
    cors_origins: tuple[Origin, ...] = ()
    stream_heartbeat_seconds: Annotated[float, Meta(ge=0, le=3600)] = 0.0


class Admin(_Table, frozen=True):
    token: Secret = Secret("")


class Timeouts(_Table, frozen=True):
    header_seconds: Seconds = 10.0
    body_idle_seconds: Seconds = 30.0
    connect_seconds: Seconds = 5.0
    first_byte_seconds: Seconds = 120.0
    answer_seconds: Seconds = 600.0
    stream_idle_seconds: Seconds = 300.0
    write_stall_seconds: Seconds = 60.0


class ChannelTimeouts(_Table, frozen=True):
    """None: as in [timeouts]."""

    connect_seconds: Seconds | None = None
    first_byte_seconds: Seconds | None = None
    answer_seconds: Seconds | None = None
    stream_idle_seconds: Seconds | None = None


class Plan(_Table, frozen=True):
    """Limits of an account and of each of its keys; 0 = no limit."""

    rpm: Count = 0
    tpm: Count = 0
    concurrency: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    daily_credits: Credits = Decimal(0)
    monthly_credits: Credits = Decimal(0)
    tokens_per_call: TokensPerCall = msgspec.field(default_factory=dict)


class Billing(_Table, frozen=True):
    credit_name: Annotated[str, Meta(min_length=1, max_length=32)] = "credits"
    low_balance: Credits = Decimal(1)
    discount: Factor = Decimal(1)
    discounts: ModelFactors = msgspec.field(default_factory=dict)
    default_rates: bool = True
    usage_in_answers: bool = False
    price_rise_notice_days: Annotated[int, Meta(ge=0, le=3650)] = 0
    hold_output_tokens: Positive = 4096
    hold_slice_tokens: Positive = 256
    prompt_margin_permille: Annotated[int, Meta(ge=0, le=10_000)] = 100
    on_disconnect: Literal["cancel", "drain"] = "cancel"
    disconnect_seconds_max: Seconds = 60.0
    disconnect_tokens_max: Positive = 4096
    unpriced: Literal["refuse", "allow"] = "refuse"
    no_balance_status_openai: Literal[402, 429] = 402


class Limits(_Table, frozen=True):
    """Of each account, whatever its plan; 0 = no limit."""

    files_bytes: Annotated[int, Meta(ge=0)] = 0


class Retention(_Table, frozen=True):
    calls_days: Annotated[int, Meta(ge=1, le=36_500)] = 30
    source_ip: bool = True
    user_agent: bool = True


class Jobs(_Table, frozen=True):
    poll_seconds: Seconds = 30.0
    expire_hours: Annotated[float, Meta(gt=0, le=720)] = 26.0


class Routing(_Table, frozen=True):
    affinity: bool = True
    attempts_max: Annotated[int, Meta(ge=1, le=16)] = 3
    retry_percent: Annotated[int, Meta(ge=0, le=100)] = 20
    retries_per_second_min: Annotated[int, Meta(ge=0, le=1_000_000)] = 10
    breaker_failure_percent: Annotated[int, Meta(ge=0, le=100)] = 50
    breaker_calls_min: Annotated[int, Meta(ge=1, le=100)] = 20
    breaker_window_seconds: Seconds = 30.0
    breaker_open_seconds: Seconds = 2.0
    breaker_open_seconds_max: Seconds = 60.0
    key_rest_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 5.0
    key_rest_refused_seconds: Seconds = 300.0
    key_rest_seconds_max: Seconds = 600.0


class Observe(_Table, frozen=True):
    metrics_listen: ListenAtOrNot = None
    access_log: str = ""
    spans: UrlOrNot = ""
    unknown_models: bool = False


class Channel(_Table, frozen=True):
    """One configured way to an upstream.

    models maps the public name of a model to the upstream's name of it.
    """

    name: Name
    api: Literal["openai", "anthropic", "gemini"]
    base_url: BaseUrl
    api_keys: tuple[Secret, ...]
    models: ModelMap
    priority: Annotated[int, Meta(ge=0, le=1000)] = 0
    weight: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    tags: tuple[Name, ...] = ()
    ask_usage: Literal["auto", "strip", "off"] = "auto"
    key_header: HeaderName = ""
    query: QueryText = ""
    set_headers: dict[EditedHeader, Setting] = msgspec.field(default_factory=dict)
    drop_headers: tuple[EditedHeader, ...] = ()
    proxy: Setting = Setting("")
    fallback_models: FallbackModels = msgspec.field(default_factory=dict)
    timeouts: ChannelTimeouts = ChannelTimeouts()


class RateTier(_Table, frozen=True):
    """Prices of a model under a condition: a prompt above that many tokens, another service tier, or both.

    What is left out (below zero) costs what it does without the condition; see `policy.pricing`.
    """

    service: Literal["standard", "batch", "flex", "priority"] = "standard"
    above: Annotated[int, Meta(ge=0, le=10**9)] = 0
    input: Price = UNSET_PRICE
    output: Price = UNSET_PRICE
    cache_read: Price = UNSET_PRICE
    cache_write: Price = UNSET_PRICE
    cache_write_1h: Price = UNSET_PRICE
    audio_input: Price = UNSET_PRICE
    audio_output: Price = UNSET_PRICE
    image_input: Price = UNSET_PRICE
    image_output: Price = UNSET_PRICE
    audio_cache_read: Price = UNSET_PRICE
    image_cache_read: Price = UNSET_PRICE
    image: Price = UNSET_PRICE
    video_second: Price = UNSET_PRICE
    web_search: Price = UNSET_PRICE


class Rate(_Table, frozen=True):
    """Prices of one public model, in credits: tokens per million, the rest per piece.

    Prices that are left out fall back to a dearer neighbour, never to free: cache_read and cache_write to input,
    cache_write_1h to cache_write, tokens of audio and images to those of text, read from a cache or not (of pictures in
    an answer only where they have no price of their own, `image`). After construction every field is a number. `tools`
    has what each use of a tool that the provider runs costs, `web_search` among it where that has a price.
    """

    model: ModelName
    input: Price
    output: Price
    cache_read: Price = UNSET_PRICE
    cache_write: Price = UNSET_PRICE
    cache_write_1h: Price = UNSET_PRICE
    image: Price = Decimal(0)
    video_second: Price = Decimal(0)
    web_search: Price = UNSET_PRICE
    audio_input: Price = UNSET_PRICE
    audio_output: Price = UNSET_PRICE
    image_input: Price = UNSET_PRICE
    image_output: Price = UNSET_PRICE
    audio_cache_read: Price = UNSET_PRICE
    image_cache_read: Price = UNSET_PRICE
    output_tokens_max: Count = 0
    inference_geo: bool = False
    video_sizes: tuple[Name, ...] = ()
    tools: ToolPrices = msgspec.field(default_factory=dict)
    tiers: tuple[RateTier, ...] = ()

    def __post_init__(self) -> None:
        # A search has a price in either place, or none in both: then nobody has said that it is free.
        if self.web_search >= 0:
            self.tools["web_search"] = self.web_search
        expand_price(self, "web_search", self.tools.get("web_search", Decimal(0)))
        expand_price(self, "cache_read", self.input)
        expand_price(self, "cache_write", self.input)
        expand_price(self, "cache_write_1h", self.cache_write)
        expand_price(self, "audio_input", self.input)
        expand_price(self, "audio_output", self.output)
        expand_price(self, "image_input", self.input)
        expand_price(self, "audio_cache_read", self.cache_read)
        expand_price(self, "image_cache_read", self.cache_read)
        expand_price(self, "image_output", Decimal(0) if self.image > 0 else self.output)


# Plans that always exist. A file that names one changes only the keys that it writes.
DEFAULT_PLANS: Final[dict[str, dict[str, int]]] = {
    "free": {"rpm": 20, "concurrency": 5},
    "paid": {"rpm": 200, "concurrency": 50},
}


class Tables(_Table, frozen=True):
    """The file: its tables and nothing else."""

    server: Server = Server()
    admin: Admin = Admin()
    timeouts: Timeouts = Timeouts()
    plans: dict[Name, Plan] = msgspec.field(default_factory=dict)
    billing: Billing = Billing()
    limits: Limits = Limits()
    retention: Retention = Retention()
    observe: Observe = Observe()
    jobs: Jobs = Jobs()
    routing: Routing = Routing()
    channels: tuple[Channel, ...] = ()
    rates: tuple[Rate, ...] = ()


class Config(Tables, frozen=True):
    """A checked configuration.

    warnings  what works and is probably not meant, one line each
    file      where it came from
    rates     those of the file; and of the shipped card, for models that are served and not in it (default_rates)
    patterns  by channel: beginnings of names in its `models`, which has the names that match in their place
    default_models  which of them are of the shipped card
    pictures  rates of models for pictures and transcripts that are used behind other models only
    """

    patterns: tuple[tuple[str, ...], ...] = ()
    default_models: frozenset[str] = frozenset()
    pictures: tuple[Rate, ...] = ()

    warnings: tuple[str, ...] = ()
    file: str = ""

    @property
    def models(self) -> tuple[str, ...]:
        """Public names of all models that some channel serves, sorted."""
        return tuple(sorted({model for channel in self.channels for model in channel.models}))

    @property
    def unpriced_models(self) -> tuple[str, ...]:
        """Models of the catalogue without a rate: calls to them are refused."""
        return tuple(sorted(set(self.models) - {rate.model for rate in self.rates}))


def load(path: str | Path | None = None, *, resolve_secrets: bool = True) -> Config:
    """Read and check a configuration file. None: `config.toml` where it exists, else the built-in defaults.

    resolve_secrets False leaves `env:` and `file:` unread, for commands that only talk to a running relay.
    ConfigError: the file cannot be read, is not TOML, or breaks a rule. OSError never leaves here.
    """
    if path is None:
        path = Path("config.toml")
        if not path.exists():
            return parse("", file="(built-in defaults)")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(str(path), [Fault("", "", f"the file cannot be read: {reason}")]) from None
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [Fault("", "", f"not UTF-8 text: byte {error.start}")]) from None
    return parse(text, file=str(path), resolve_secrets=resolve_secrets)


def parse(text: str, *, file: str = "config.toml", resolve_secrets: bool = True) -> Config:
    """Check the text of a configuration; `file` names it in messages. ConfigError as for `load`."""
    try:
        document = tomllib.loads(text, parse_float=Decimal)
    except RecursionError:
        raise ConfigError(file, [Fault("", "TOML", "brackets nested too deeply")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(file, [Fault("", "", f"not TOML: {error}")]) from None
    if isinstance(document.setdefault("plans", {}), dict):
        for name, limits in DEFAULT_PLANS.items():
            written = document["plans"].setdefault(name, {})
            if isinstance(written, dict):
                document["plans"][name] = {**limits, **written}
    converter = Converter(resolve_secrets=resolve_secrets)
    tables = converter.table(Tables, document)
    patterns: tuple[tuple[str, ...], ...] = ()
    if tables is not None:
        patterns = tuple(tuple(filter(is_model_pattern, channel.models)) for channel in tables.channels)
        channels = expanded(tables.channels, patterns, tables.rates, default_rates=tables.billing.default_rates)
        tables = msgspec.structs.replace(tables, channels=channels)
        # A rule about two keys says nothing where one of them is at fault and has its default here.
        wrong = {fault.key for fault in converter.faults}
        converter.faults += [
            fault
            for fault in _contradictions(tables, read_files=resolve_secrets)
            if fault.key not in wrong and not any(key and key in fault.expected for key in wrong)
        ]
    if tables is None or converter.faults:
        raise ConfigError(file, converter.faults)
    default_models = frozenset[str]()
    pictures: tuple[Rate, ...] = ()
    if tables.billing.default_rates:
        added = _shipped(tables)
        default_models = frozenset(rate.model for rate in added)
        tables = msgspec.structs.replace(tables, rates=with_fees((*tables.rates, *added), tables.channels))
        pictures = _pictures(tables)
    values = {name: getattr(tables, name) for name in Tables.__struct_fields__}
    warnings = (*converter.warnings, *_warnings(tables), *_useless_patterns(tables, patterns))
    return Config(
        **values,
        warnings=warnings,
        file=file,
        patterns=patterns,
        default_models=default_models,
        pictures=pictures,
    )


def expanded(
    channels: Sequence[Channel], patterns: Sequence[tuple[str, ...]], rates: Iterable[Rate], *, default_rates: bool
) -> tuple[Channel, ...]:
    """The channels with names in place of patterns: of models that have a price, in [[rates]] or, with `default_rates`,
    on the shipped card (but for those that were gone when it was made). What a channel names by itself stays so."""
    if not any(patterns):
        return tuple(channels)
    priced = {rate.model for rate in rates} | (shipped_rates.current() if default_rates else frozenset())
    return tuple(
        msgspec.structs.replace(
            channel,
            models={name: name for name in sorted(priced) if any(name.startswith(pattern[:-1]) for pattern in of)}
            | {public: upstream for public, upstream in channel.models.items() if public not in of},
        )
        for channel, of in zip(channels, patterns, strict=True)
    )


def with_fees(rates: Iterable[Rate], channels: Sequence[Channel]) -> tuple[Rate, ...]:
    """Rates with what they leave out of the fees for tools: those of the shipped card for the model's provider, or,
    where it does not know the model, of the provider whose dialect its channels speak."""
    return tuple(_with_fees(rate, channels) for rate in rates)


def _with_fees(rate: Rate, channels: Sequence[Channel]) -> Rate:
    serving = [channel for channel in channels if rate.model in channel.models]
    names = [rate.model, *(channel.models[rate.model] for channel in serving)]
    providers = [entry["provider"] for name in names if (entry := shipped_rates.entry(name)) is not None]
    fees = shipped_rates.fees(providers[:1] or sorted({channel.api for channel in serving}), names)
    tools = {**fees, **rate.tools}
    return msgspec.structs.replace(rate, tools=tools, web_search=tools.get("web_search", UNSET_PRICE))


def _pictures(tables: Tables) -> tuple[Rate, ...]:
    """Rates of OpenAI's models for pictures and transcripts that the file does not price: others use them as a tool."""
    if not any(channel.api == "openai" for channel in tables.channels):
        return ()
    priced = {rate.model for rate in tables.rates}
    return tuple(shipped_rate(name, entry) for name, entry in shipped_rates.pictures() if name not in priced)


def _shipped(tables: Tables) -> list[Rate]:
    """Rates of the shipped card for models that a channel serves and the file does not price.

    By the public name; else by the upstream's, where every channel maps it to the same model.
    """
    upstream: dict[str, set[str]] = {}
    for channel in tables.channels:
        for public, name in channel.models.items():
            upstream.setdefault(public, set()).add(name)
    rates = []
    for public in sorted(upstream.keys() - {rate.model for rate in tables.rates}):
        names = upstream[public]
        entry = shipped_rates.entry(public) or (shipped_rates.entry(min(names)) if len(names) == 1 else None)
        if entry is not None:
            rates.append(shipped_rate(public, entry))
    return rates


def shipped_rate(model: str, entry: Mapping[str, Any]) -> Rate:
    """An entry of the shipped card as a rate."""
    tiers = tuple(
        RateTier(service=tier["service"], above=tier["above"], **shipped_rates.prices(tier))
        for tier in entry.get("tiers", ())
    )
    maximum = entry.get("output_tokens_max", 0)
    prices: dict[str, Any] = {**shipped_rates.prices(entry)}
    return Rate(model=model, tiers=tiers, output_tokens_max=maximum, **prices)


ADMIN_TOKEN_CHARS_MIN: Final = 16


def _certificate_faults(certificate: str, key: str) -> list[Fault]:
    """Whether the two files can serve TLS together. OpenSSL's own message names neither of them."""
    import ssl  # late: most commands need none

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(certificate)
    except (ssl.SSLError, OSError):
        return [Fault("server.tls_certificate", "a PEM file with a certificate", "a file without one")]
    try:
        # A key that wants a password would ask for it on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        other = "KEY_VALUES_MISMATCH" in (getattr(error, "reason", None) or "")
        found = "the key of another certificate" if other else "a file without such a key, or one with a password"
        return [Fault("server.tls_key", "a PEM file with the private key of server.tls_certificate", found)]
    return []


def _contradictions(tables: Tables, *, read_files: bool) -> list[Fault]:
    """What no single key shows: above all keys that are each right and together wrong. The message names both."""
    faults: list[Fault] = []
    server, billing = tables.server, tables.billing
    if bool(server.tls_certificate) != bool(server.tls_key):
        given, missing = ("tls_certificate", "tls_key") if server.tls_certificate else ("tls_key", "tls_certificate")
        faults.append(Fault(f"server.{missing}", f"a path, because server.{given} is set (both or neither)", "nothing"))
    elif server.tls_certificate and read_files:
        unreadable = [
            Fault(f"server.{name}", "a readable file", "a path that cannot be read")
            for name in ("tls_certificate", "tls_key")
            if not os.access(getattr(server, name), os.R_OK)
        ]
        faults += unreadable or _certificate_faults(server.tls_certificate, server.tls_key)
    if server.waiting_bytes_max < server.body_bytes_max:
        expected = f"at least server.body_bytes_max ({server.body_bytes_max})"
        faults.append(Fault("server.waiting_bytes_max", expected, str(server.waiting_bytes_max)))
    if server.upload_bytes_max < server.body_bytes_max:
        expected = f"at least server.body_bytes_max ({server.body_bytes_max})"
        faults.append(Fault("server.upload_bytes_max", expected, str(server.upload_bytes_max)))
    if billing.hold_slice_tokens > billing.hold_output_tokens:
        expected = f"at most billing.hold_output_tokens ({billing.hold_output_tokens})"
        faults.append(Fault("billing.hold_slice_tokens", expected, str(billing.hold_slice_tokens)))
    for name, plan in tables.plans.items():
        if 0 < plan.monthly_credits < plan.daily_credits:
            expected = f"at most plans.{name}.monthly_credits ({plan.monthly_credits})"
            faults.append(Fault(f"plans.{name}.daily_credits", expected, str(plan.daily_credits)))
    if read_files:
        faults += _place_faults(tables)
    faults += _routing_faults(tables)
    faults += _repeated("channels", "name", [channel.name for channel in tables.channels])
    faults += rate_faults(tables)
    control_socket = os.path.abspath(os.path.join(server.data_dir, "relay.sock"))
    if server.listen.unix_path and os.path.abspath(server.listen.unix_path) == control_socket:
        expected = "another path than relay.sock in server.data_dir, which is the control socket"
        faults.append(Fault("server.listen", expected, "the same path"))
    token = tables.admin.token
    if token and len(token.reveal()) < ADMIN_TOKEN_CHARS_MIN:
        expected = f"at least {ADMIN_TOKEN_CHARS_MIN} characters, because it opens everything"
        faults.append(Fault("admin.token", expected, "a shorter secret"))
    for index, channel in enumerate(tables.channels):
        key = f"channels[{index}]"
        for number, secret in enumerate(channel.api_keys):
            if not secret and not secret.source:
                faults.append(Fault(f"{key}.api_keys[{number}]", "a secret; [] where none is needed", "empty text"))
        if channel.key_header in (*channel.set_headers, *channel.drop_headers):
            expected = f"headers other than {key}.key_header, which carries the key"
            faults.append(Fault(f"{key}.set_headers", expected, channel.key_header))
        for name, value in channel.set_headers.items():
            if not value and not value.source:
                faults.append(Fault(f"{key}.set_headers.{name}", f"text; {key}.drop_headers drops one", "empty text"))
        if (fault := proxy_fault(channel.proxy.reveal())) is not None:
            faults.append(Fault(f"{key}.proxy", *fault))
        if channel.ask_usage == "strip" and channel.api != "openai":
            expected = f'"auto" or "off", because {key}.api is "{channel.api}" (its streams report usage unasked)'
            faults.append(Fault(f"{key}.ask_usage", expected, '"strip"'))
        if _is_own_address(server.listen, channel.base_url):
            expected = f"an upstream, not this relay's own address (server.listen is {server.listen})"
            faults.append(Fault(f"{key}.base_url", expected, "the same address"))
        if MODEL_PLACE in channel.base_url and channel.api != "openai":
            expected = f'a base URL without {MODEL_PLACE}, which only {key}.api = "openai" can have'
            faults.append(Fault(f"{key}.base_url", expected, f'api = "{channel.api}"'))
        path = urlsplit(channel.base_url).path
        for ending in _API_PATHS[channel.api]:
            if path.endswith(ending):
                expected = f'a base URL as the SDK for {key}.api = "{channel.api}" takes it, without {ending}'
                faults.append(Fault(f"{key}.base_url", expected, f"one that ends in {ending}"))
                break
    return faults


def _place_faults(tables: Tables) -> list[Fault]:
    """Files and directories that `serve` will want to write."""
    faults = []
    place = Path(tables.server.data_dir).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent  # what is missing will be made
    if not place.is_dir():
        faults.append(Fault("server.data_dir", "a directory", f"{place}, which is not one"))
    elif not os.access(place, os.W_OK | os.X_OK):
        faults.append(Fault("server.data_dir", "a directory that can be written", f"{place}, which cannot"))
    log = tables.observe.access_log
    if log and log != "stderr":
        folder = Path(log).absolute().parent
        if Path(log).is_dir() or not folder.is_dir():
            faults.append(Fault("observe.access_log", "a file in a directory that exists", "another path"))
        elif not os.access(log if Path(log).exists() else folder, os.W_OK):
            faults.append(Fault("observe.access_log", "a file that can be written", "one that cannot"))
    return faults


# What `relay reload` does not put into force: it takes a restart.
RESTART_KEYS: Final = (
    "server.listen", "server.data_dir", "server.durability", "server.calls_max", "server.tls_certificate",
    "server.tls_key", "observe.metrics_listen",
)  # fmt: skip


def changed_for_restart(old: Config, new: Config) -> list[str]:
    """A line for each changed key that takes effect at a restart only."""
    lines = []
    for key in RESTART_KEYS:
        section, _, name = key.partition(".")
        if getattr(getattr(old, section), name) != getattr(getattr(new, section), name):
            lines.append(f"{key}: changed, takes effect at a restart")
    return lines


def secrets_of_the_environment(config: Config) -> list[str]:
    """Where the configuration takes a secret from the environment: a process sees no change of it."""
    found = [
        secret.source
        for channel in config.channels
        for secret in (*channel.api_keys, *channel.set_headers.values(), channel.proxy)
        if secret.source
    ]
    found.append(config.admin.token.source if config.admin.token else "")
    return sorted({source for source in found if source.startswith("env:")})


def data_dir_of(path: str | Path | None) -> str:
    """`server.data_dir` of a file that may be broken otherwise: enough to find a running relay. "": no such file."""
    try:
        text = Path(path or "config.toml").read_text("utf-8", errors="replace")
    except OSError:
        return ""
    section = re.search(r"^\s*\[server\](.*?)(?=^\s*\[|\Z)", text, re.MULTILINE | re.DOTALL)
    line = re.search(r"^\s*data_dir\s*=\s*[\"']([^\"'\n]*)[\"']", section[1], re.MULTILINE) if section else None
    return line[1] if line else Server().data_dir


TIER_LEVELS_MAX: Final = 8


def rate_faults(tables: Tables) -> list[Fault]:
    """Rates that contradict each other or themselves."""
    faults = _repeated("rates", "model", [rate.model for rate in tables.rates])
    for index, rate in enumerate(tables.rates):
        faults += _tier_faults(f"rates[{index}]", rate)
        faults += _picture_faults(f"rates[{index}]", rate)
    return faults


def _tier_faults(key: str, rate: Rate) -> list[Fault]:
    """Tiers that say nothing, or the same twice."""
    faults = []
    seen: set[tuple[str, int]] = {("standard", 0)}
    for index, tier in enumerate(rate.tiers):
        if (tier.service, tier.above) in seen:
            expected = "each service and limit once, and a limit or a service that is not standard"
            faults.append(Fault(f"{key}.tiers[{index}]", expected, f"{tier.service} above {tier.above} again"))
        seen.add((tier.service, tier.above))
    if len({above for _, above in seen}) > TIER_LEVELS_MAX:
        faults.append(Fault(f"{key}.tiers", f"at most {TIER_LEVELS_MAX - 1} limits", "more"))
    return faults


def _picture_faults(key: str, rate: Rate) -> list[Fault]:
    """A picture that would be paid twice: by itself and by its tokens."""
    by_piece = rate.image > 0 or any(tier.image > 0 for tier in rate.tiers)
    by_tokens = rate.image_output != (0 if rate.image > 0 else rate.output)
    if by_piece and (by_tokens or any(tier.image_output > 0 for tier in rate.tiers)):
        expected = "image (per picture) or image_output (by the tokens of pictures), not both"
        return [Fault(f"{key}.image_output", expected, f"both, for {rate.model}")]
    return []


CHANNELS_PER_MODEL_MAX: Final = 64  # of one dialect: CANDIDATES_MAX in relay/fastpath/routing.pxi


def _routing_faults(tables: Tables) -> list[Fault]:
    faults: list[Fault] = []
    routing = tables.routing
    if routing.breaker_open_seconds > routing.breaker_open_seconds_max:
        expected = f"at most routing.breaker_open_seconds_max ({routing.breaker_open_seconds_max:g})"
        faults.append(Fault("routing.breaker_open_seconds", expected, f"{routing.breaker_open_seconds:g}"))
    for name in ("key_rest_seconds", "key_rest_refused_seconds"):
        if getattr(routing, name) > routing.key_rest_seconds_max:
            expected = f"at most routing.key_rest_seconds_max ({routing.key_rest_seconds_max:g})"
            faults.append(Fault(f"routing.{name}", expected, f"{getattr(routing, name):g}"))
    names = {channel.name for channel in tables.channels}
    served: Counter[tuple[str, str]] = Counter()
    for index, channel in enumerate(tables.channels):
        for number, tag in enumerate(channel.tags):
            if tag in names - {channel.name}:
                expected = "a tag that is not the name of another channel: x-relay-channel takes both"
                faults.append(Fault(f"channels[{index}].tags[{number}]", expected, tag))
        for model, other in channel.fallback_models.items():
            key = f"channels[{index}].fallback_models.{model}"
            if model not in channel.models:
                faults.append(Fault(key, "a model of this channel", "another name"))
            elif other == model or not any(by.api == channel.api and other in by.models for by in tables.channels):
                expected = f'another model that a channel with api = "{channel.api}" serves'
                faults.append(Fault(key, expected, other))
        for model in channel.models:
            served[channel.api, model] += 1
            if served[channel.api, model] == CHANNELS_PER_MODEL_MAX + 1:
                expected = f"at most {CHANNELS_PER_MODEL_MAX} channels of one dialect for a model"
                faults.append(Fault(f"channels[{index}].models", expected, f"another one for {model}"))
    return faults


# What the relay appends by itself, so that a base URL that has it already is a mistake.
_API_PATHS: Final[dict[str, tuple[str, ...]]] = {
    "openai": ("/chat/completions", "/responses", "/embeddings", "/v1/completions"),
    "anthropic": ("/v1/messages", "/v1"),
    "gemini": ("/v1beta/models", "/v1beta", "/v1"),
}


def _repeated(table: str, field: str, values: list[str]) -> list[Fault]:
    first: dict[str, int] = {}
    faults = []
    for index, value in enumerate(values):
        if value in first:
            expected = f"each {field} once: {table}[{first[value]}] has it already"
            faults.append(Fault(f"{table}[{index}].{field}", expected, f"{value} again"))
        first.setdefault(value, index)
    return faults


def _warnings(tables: Tables) -> list[str]:
    """What works and is probably not meant."""
    warnings = []
    listen = tables.server.listen
    if not listen.unix_path and not _is_loopback(listen.host) and not tables.server.tls_certificate:
        warnings.append(
            "server.listen: other machines can connect without TLS, and keys travel in clear; set "
            "server.tls_certificate and server.tls_key, or listen on 127.0.0.1 behind a proxy with TLS"
        )
    for index, network in enumerate(tables.server.trusted_proxies):
        if network.prefixlen == 0:
            warnings.append(f"server.trusted_proxies[{index}]: trusts everyone to state the client's address")
    for index, channel in enumerate(tables.channels):
        url = urlsplit(channel.base_url)
        if url.scheme == "http" and channel.api_keys and not _is_loopback(url.hostname or ""):
            warnings.append(f"channels[{index}].base_url: http sends the upstream key in clear; use https")
        if len(set(channel.api_keys)) < len(channel.api_keys):
            warnings.append(f"channels[{index}].api_keys: the same key twice: both rest at the same time")
        if url.hostname == "api.openai.com" and not url.path:
            warnings.append(f"channels[{index}].base_url: OpenAI's base URL has /v1 at its end")
    if tables.routing.attempts_max == 1 and len(tables.channels) > 1:
        warnings.append("routing.attempts_max: with 1 no other channel is tried when one fails")
    if not tables.channels:
        warnings.append("channels: none are configured, so every model is unknown")
    rated = {rate.model for rate in tables.rates}
    served = {model for channel in tables.channels for model in channel.models}
    if unpriced := sorted(served - rated):
        warnings.append(f"rates: no rate for {_listed(unpriced)}: calls are refused (billing.unpriced)")
    if unserved := sorted(rated - served) if tables.channels else []:
        warnings.append(f"rates: no channel serves {_listed(unserved)}")
    return warnings


def _useless_patterns(tables: Tables, patterns: Sequence[tuple[str, ...]]) -> list[str]:
    return [
        f"channels[{index}].models: no model with a price begins as {pattern} does"
        for index, (channel, of) in enumerate(zip(tables.channels, patterns, strict=True))
        for pattern in of
        if not any(name.startswith(pattern[:-1]) for name in channel.models)
    ]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _is_own_address(listen: Listen, base_url: str) -> bool:
    """Whether calls to this URL would come back to this relay, and from it to itself again."""
    url = urlsplit(base_url)
    host = url.hostname or ""
    if listen.unix_path or (url.port or (443 if url.scheme == "https" else 80)) != listen.port:
        return False
    return host == listen.host or (_is_loopback(host) and (_is_loopback(listen.host) or _is_any(listen.host)))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_any(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
