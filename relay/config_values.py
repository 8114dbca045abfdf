"""Single values of the configuration: their types, their checks, and the walk that fills structs from a TOML document.

msgspec could convert the document by itself; the walk is written here because an operator needs the index of the
faulty channel, all faults at once, a suggestion for a misspelt key, and the certainty that no value that might be a
secret is ever quoted. A fault says what was got by its type; only numbers are shown.
"""

import difflib
import os
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Any, Final, Literal, NamedTuple, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta

from relay.errors import RelayError

T = TypeVar("T")


class Fault(msgspec.Struct, frozen=True):
    """One thing wrong. `key` is a path such as `channels[0].base_url`; "" for the file as a whole, which has no
    `expected` either."""

    key: str
    expected: str
    got: str

    def __str__(self) -> str:
        if not self.expected:
            return self.got  # of the file as a whole: what is wrong with it
        text = f"{self.key}: " if self.key else ""
        text += f"expected {self.expected}"
        return f"{text}, got {self.got}" if self.got else text


class ConfigError(RelayError):
    """The configuration is not usable. `faults` has them all; the text is one line with the first."""

    def __init__(self, file: str, faults: list[Fault]) -> None:
        self.file = file
        self.faults = tuple(faults)
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(f"{file}: {faults[0]}{more}")

    @property
    def lines(self) -> tuple[str, ...]:
        """Every fault as a line of its own, with the file."""
        return tuple(f"{self.file}: {fault}" for fault in self.faults)


class Secret:
    """A secret value that does not show itself: not in repr, str, format, tracebacks' reprs, or pickles."""

    __slots__ = ("_value", "source")

    def __init__(self, value: str, source: str = "") -> None:
        self._value = value
        self.source = source  # "env:NAME", "file:PATH" or "" (a literal): safe to show

    def reveal(self) -> str:
        """The value itself. Whoever calls this keeps it out of messages."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return f"<Secret {self.source}>" if self.source else "<Secret>"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not to be serialised")


class Setting(Secret):
    """Text that may hold a secret, or none: env: or file:, or itself without a warning. Blanks may stand in it."""


class Listen(msgspec.Struct, frozen=True):
    """Where to listen: `unix_path`, or `host` and `port` (0: any free one)."""

    host: str = ""
    port: int = 0
    unix_path: str = ""

    def __str__(self) -> str:
        if self.unix_path:
            return f"unix:{self.unix_path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class BadValueError(Exception):
    """A value that does not fit. `got` None: describe the value by its type. `key` is appended to the path."""

    def __init__(self, expected: str, got: str | None = None, key: str = "") -> None:
        super().__init__(expected)
        self.expected, self.got, self.key = expected, got, key


@dataclass(frozen=True)
class Parsed:
    """Metadata of an annotation: `parse` turns the document's value into the field's, or raises BadValueError."""

    parse: Callable[[Any], Any]


def kind(value: object) -> str:
    """The type of a value in the words of TOML. Never its content."""
    names = {bool: "true or false", int: "a whole number", Decimal: "a decimal number", str: "text", list: "a list"}
    if isinstance(value, str) and not value:
        return "empty text"
    return names.get(type(value), "a table" if isinstance(value, dict) else "a date or time")


# --- parsers of single values

DECIMAL_PLACES_MAX: Final = 9  # one nano-credit
PRICE_MAX: Final = Decimal(1_000_000)
CREDITS_MAX: Final = Decimal(1_000_000_000)  # in nano-credits still inside 64 bits
UNSET_PRICE: Final = Decimal(-1)

_DECIMAL_TEXT = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")
_TOOL = re.compile(r"[a-z][a-z0-9_.:-]{0,47}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MODEL = re.compile(r"[A-Za-z0-9@][A-Za-z0-9._:@+-]*(/[A-Za-z0-9@][A-Za-z0-9._:@+-]*)*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?")
_URL_PATH = re.compile(r"(/[A-Za-z0-9_~@-][A-Za-z0-9._~@:-]*)*")
MODEL_PLACE: Final = "{model}"  # in a base URL: where the upstream's name of the model goes
_MODEL_PART = re.compile(r"/\{model\}(?=/|$)")
_HEADER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_EDITED_HEADER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_FRAMING_HEADERS = frozenset(
    (
        "accept-encoding", "connection", "content-length", "content-type", "expect", "host", "te", "trailer",
        "transfer-encoding", "upgrade",
    )
)  # fmt: skip
_QUERY = re.compile(r"[A-Za-z0-9._~%=&:/,+-]{1,256}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"[\x21-\x7e]+")
_SETTING = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")

MODEL_BYTES_MAX: Final = 200


def is_model_name(text: str) -> bool:
    """Whether the text can be a model's name: safe in a JSON string and in a URL path without escaping."""
    return len(text) <= MODEL_BYTES_MAX and _MODEL.fullmatch(text) is not None and ".." not in text


def exact_decimal(value: object, expected: str, largest: Decimal) -> Decimal:
    """A decimal from a TOML integer, float (read as Decimal) or text. BadValueError: none, or out of range."""
    if isinstance(value, str):
        if _DECIMAL_TEXT.fullmatch(value) is None:
            raise BadValueError(expected)
        number = Decimal(value)
    elif isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        number = Decimal(value)
    else:
        raise BadValueError(expected)
    if not number.is_finite():
        raise BadValueError(expected, "a number that is not finite")
    if number < 0:
        raise BadValueError(expected, f"the negative number {number}")
    if number > largest:
        raise BadValueError(f"{expected}, at most {largest}", "a larger number")
    exponent = number.normalize().as_tuple().exponent
    if isinstance(exponent, int) and exponent < -DECIMAL_PLACES_MAX:
        raise BadValueError(f"{expected}, with at most {DECIMAL_PLACES_MAX} decimal places", "more places")
    return number


def _price(value: object) -> Decimal:
    return exact_decimal(value, 'a price in credits, as a number or text such as 2.50 or "2.50"', PRICE_MAX)


def _credits(value: object) -> Decimal:
    return exact_decimal(value, 'an amount of credits, as a number or text such as 12.5 or "12.5"', CREDITS_MAX)


def _factor(value: object) -> Decimal:
    expected = "a factor above 0 such as 0.85 (prices are multiplied by it)"
    number = exact_decimal(value, expected, Decimal(100))
    if number == 0:
        raise BadValueError(expected, "0")
    return number


def _name(value: object) -> str:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise BadValueError("a name of at most 64 of a-z 0-9 . _ -, beginning with a letter or digit")
    return value


def _free_header(value: object, pattern: re.Pattern[str], expected: str) -> str:
    """A header that does not frame the request, in lower case."""
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise BadValueError(expected)
    name = value.lower()
    if name in _FRAMING_HEADERS:
        raise BadValueError(expected, f"{name}, which is part of how a request is sent")
    return name


def _header_name(value: object) -> str:
    """In lower case; empty: none given. Names that frame a message or name its host are not for keys."""
    if value == "":
        return ""
    return _free_header(value, _HEADER_NAME, 'the name of a header such as "api-key"')


# Where keys of the caller and of the operator stand, and what the relay itself says.
_KEPT_HEADERS = frozenset(("authorization", "x-api-key", "x-goog-api-key", "api-key", "proxy-authorization"))


def _edited_header(value: object) -> str:
    """A header that a channel may add or drop, in lower case."""
    expected = 'the name of a header such as "x-title"'
    name = _free_header(value, _EDITED_HEADER, expected)
    if name in _KEPT_HEADERS:
        raise BadValueError(f"{expected} (keys belong in api_keys and key_header)", name)
    return name


def _query(value: object) -> str:
    if value == "":
        return ""
    if not isinstance(value, str) or _QUERY.fullmatch(value) is None:
        raise BadValueError('a query such as "api-version=2024-10-21", without the question mark')
    return value


def _model(value: object) -> str:
    if not isinstance(value, str) or not is_model_name(value):
        raise BadValueError(f"a model name of at most {MODEL_BYTES_MAX} of A-Z a-z 0-9 . _ : @ + - /")
    return value


def is_model_pattern(value: object) -> bool:
    """`gpt-*`, `openai/*`, `*`: the beginning of names."""
    return isinstance(value, str) and value.endswith("*") and (value == "*" or is_model_name(value[:-1] + "x"))


def _models(value: object) -> dict[str, str]:
    """Names; and patterns, which stand for themselves until they are expanded (`config.expanded`)."""
    expected = 'a list of model names or a table { public = "upstream" }, not empty'
    if not isinstance(value, (list, dict)) or not value:
        raise BadValueError(expected)
    models: dict[str, str] = {}
    if isinstance(value, dict):
        for public, upstream in value.items():
            if is_model_pattern(public):
                if upstream != public:
                    raise BadValueError("the same pattern: it keeps names", None, f".{public}")
                models[public] = public
                continue
            for text in (public, upstream):
                try:
                    _model(text)
                except BadValueError as bad:
                    raise BadValueError(bad.expected, kind(text), f".{_shown(public)}") from None
            models[public] = upstream
        return models
    for index, entry in enumerate(value):
        try:
            name = entry if is_model_pattern(entry) else _model(entry)
        except BadValueError as bad:
            raise BadValueError(f"{bad.expected}; or a beginning and *", kind(entry), f"[{index}]") from None
        if name in models:
            raise BadValueError("each model once", f"{name} a second time", f"[{index}]")
        models[name] = name
    return models


def _model_factors(value: object) -> dict[str, Decimal]:
    """Factors by groups of models: exact names, or beginnings with * behind them."""
    if not isinstance(value, dict):
        raise BadValueError('a table of factors by model or beginning of a name, such as { "gpt-*" = 0.8 }')
    factors = {}
    for pattern, factor in value.items():
        if pattern != "*" and not is_model_name(pattern.removesuffix("*")):
            raise BadValueError("a model name, or the beginning of one and *", None, f".{_shown(pattern)}")
        try:
            factors[pattern] = _factor(factor)
        except BadValueError as bad:
            raise BadValueError(bad.expected, bad.got or kind(factor), f".{pattern}") from None
    return factors


def _tool_prices(value: object) -> dict[str, Decimal]:
    if not isinstance(value, dict):
        raise BadValueError("a table of prices by tool, such as { file_search = 0.0025 }")
    prices = {}
    for name, price in value.items():
        if _TOOL.fullmatch(name) is None:
            raise BadValueError("the name of a tool: lower case letters, digits, _ . : -", None, f".{_shown(name)}")
        try:
            prices[name] = _price(price)
        except BadValueError as bad:
            raise BadValueError(bad.expected, bad.got or kind(price), f".{name}") from None
    return prices


def _fallback_models(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise BadValueError('a table { model = "another" }')
    for model, other in value.items():
        if not is_model_name(model) or not is_model_name(other):
            raise BadValueError("names of models", kind(other), f".{_shown(model)}")
    return dict(value)


def _tokens_per_call(value: object) -> dict[str, int]:
    expected = 'a number of tokens (0 = no limit) or a table { "*" = 100000, "gpt-4o" = 32000 }'
    if isinstance(value, dict):
        for model, tokens in value.items():
            if model != "*" and not is_model_name(model):
                raise BadValueError("a model name or *", None, f".{_shown(model)}")
            if not isinstance(tokens, int) or isinstance(tokens, bool):
                raise BadValueError("a whole number of tokens", kind(tokens), f".{model}")
            if not 0 <= tokens <= 10**12:
                raise BadValueError("a whole number of tokens from 0 to 10^12", str(tokens), f".{model}")
        return dict(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadValueError(expected)
    if not 0 <= value <= 10**12:
        raise BadValueError(expected, str(value))
    return {"*": value} if value else {}


def parse_listen(value: object) -> Listen:
    """BadValueError: none of the three forms."""
    expected = '"HOST:PORT" such as "127.0.0.1:8787", "[::1]:8787", or "unix:PATH"'
    if not isinstance(value, str):
        raise BadValueError(expected)
    if value.startswith("unix:"):
        path = value[5:]
        if not path or "\0" in path:
            raise BadValueError(expected, "unix: without a path")
        if len(path.encode()) > 107:  # the kernel's sun_path, less its final zero
            raise BadValueError("a socket path of at most 107 bytes", "a longer one")
        return Listen(unix_path=path)
    host, colon, port = value.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise BadValueError(expected, "text without a port from 0 to 65535 at its end")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            if ip_address(host).version == 6:
                return Listen(host=host, port=int(port))
        except ValueError:
            pass
        raise BadValueError(expected, "no IPv6 address between the brackets")
    if _HOST.fullmatch(host) is None:
        raise BadValueError(expected, "text whose part before the port is no host (IPv6 addresses stand in brackets)")
    return Listen(host=host, port=int(port))


def _network(value: object) -> IPv4Network | IPv6Network:
    expected = 'an address or network such as "10.0.0.0/8" or "::1"'
    if not isinstance(value, str):
        raise BadValueError(expected)
    try:
        return ip_network(value)
    except ValueError:
        try:
            suggestion = str(ip_network(value, strict=False))
        except ValueError:
            raise BadValueError(expected) from None
    raise BadValueError(f"a network without host bits, such as {suggestion}")


def parse_base_url(value: object) -> str:
    """The URL without a trailing slash, host in lower case. BadValueError says which part is not allowed."""
    expected = 'an http or https URL such as "https://api.openai.com/v1"'
    if not isinstance(value, str) or not value.isascii() or re.search(r"[\x00-\x20\x7f\\]", value):
        raise BadValueError(expected)
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise BadValueError(expected, "a URL with a wrong host or port") from None
    if parts.scheme not in ("http", "https") or not value[: len(parts.scheme) + 3].endswith("://"):
        raise BadValueError(expected, "text that does not begin with http:// or https://")
    if "@" in parts.netloc:
        raise BadValueError(f"{expected} (keys belong in api_keys)", "a URL with a user or password")
    if "?" in value or "#" in value:
        raise BadValueError(expected, "a URL with a query or fragment")
    host = parts.hostname or ""
    if parts.netloc.startswith("["):
        try:
            ip_address(host)
        except ValueError:
            raise BadValueError(expected, "a URL with a wrong IPv6 address") from None
        host = f"[{host}]"
    elif _HOST.fullmatch(host) is None:
        raise BadValueError(expected, "a URL without a valid host")
    if port == 0 or parts.netloc.endswith(":"):
        raise BadValueError(expected, "a URL with a wrong port")
    path = parts.path.rstrip("/")
    if _URL_PATH.fullmatch(_MODEL_PART.sub("/model", path)) is None:
        raise BadValueError(expected, "a URL whose path has empty, relative or escaped parts")
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}"


_ORIGIN_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


def parse_origin(value: object) -> str:
    """An origin as browsers write it in `Origin`, or "*". BadValueError says what it is not."""
    expected = 'an origin such as "https://chat.example.com" (no path, no slash at its end), or "*" for all'
    if value == "*":
        return "*"
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise BadValueError(expected)
    scheme, sign, rest = value.lower().partition("://")
    if not sign or _ORIGIN_SCHEME.fullmatch(scheme) is None:
        raise BadValueError(expected, "text without a scheme in front of ://")
    if any(c in rest for c in "/?#@\\"):
        raise BadValueError(expected, "an origin with a path, a query or a user")
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host, port = parts.hostname or "", parts.port
        if rest.startswith("["):
            host = f"[{ip_address(host).compressed}]"
    except ValueError:
        raise BadValueError(expected, "an origin with a wrong host or port") from None
    if (not host.startswith("[") and _HOST.fullmatch(host) is None) or port == 0 or rest.endswith(":"):
        raise BadValueError(expected, "an origin with a wrong host or port")
    default = {"http": 80, "https": 443}.get(scheme)
    return f"{scheme}://{host}" + ("" if port is None or port == default else f":{port}")


class Proxy(NamedTuple):
    """`socks`: SOCKS5, else HTTP CONNECT. Its repr shows no credentials."""

    socks: bool
    host: str
    port: int
    user: str
    password: str

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"


def parse_proxy(text: str) -> Proxy | None:
    """`http://` or `socks5://`, with a user and password or without; None for "". BadValueError."""
    if not text:
        return None
    expected = 'a proxy such as "http://proxy.example:3128" or "socks5://user:password@proxy.example:1080"'
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise BadValueError(expected, "a wrong host or port") from None
    if url.scheme not in ("http", "socks5", "socks5h"):
        raise BadValueError(expected, "another scheme, or none")
    if not url.hostname or not port or url.path.strip("/") or url.query or url.fragment:
        raise BadValueError(expected, "no host and port, or more than those")
    socks = url.scheme != "http"
    user, password = unquote(url.username or ""), unquote(url.password or "")
    if socks and max(len(user.encode()), len(password.encode())) > 255:
        raise BadValueError(expected, "a user or password of more than 255 bytes")
    return Proxy(socks, url.hostname, port, user, password)


def proxy_fault(text: str) -> tuple[str, str] | None:
    """What is expected of a proxy and what stands there. None: it is one, or none at all."""
    try:
        parse_proxy(text)
    except BadValueError as bad:
        return bad.expected, bad.got or "text"
    return None


Price = Annotated[Decimal, Parsed(_price)]
Credits = Annotated[Decimal, Parsed(_credits)]
Factor = Annotated[Decimal, Parsed(_factor)]
Name = Annotated[str, Parsed(_name)]
HeaderName = Annotated[str, Parsed(_header_name)]
EditedHeader = Annotated[str, Parsed(_edited_header)]
QueryText = Annotated[str, Parsed(_query)]
ModelName = Annotated[str, Parsed(_model)]
ModelMap = Annotated[dict[str, str], Parsed(_models)]
ModelFactors = Annotated[dict[str, Decimal], Parsed(_model_factors)]
ToolPrices = Annotated[dict[str, Decimal], Parsed(_tool_prices)]
FallbackModels = Annotated[dict[str, str], Parsed(_fallback_models)]
TokensPerCall = Annotated[dict[str, int], Parsed(_tokens_per_call)]
Origin = Annotated[str, Parsed(parse_origin)]
Network = Annotated[IPv4Network | IPv6Network, Parsed(_network)]
BaseUrl = Annotated[str, Parsed(parse_base_url)]
ListenAt = Annotated[Listen, Parsed(parse_listen)]


def parse_listen_or_not(value: object) -> Listen | None:
    """The same, or None for empty text."""
    return None if value == "" else parse_listen(value)


def parse_url_or_not(value: object) -> str:
    """An http or https URL, or empty text."""
    return "" if value == "" else parse_base_url(value)


UrlOrNot = Annotated[str, Parsed(parse_url_or_not)]
ListenAtOrNot = Annotated[Listen | None, Parsed(parse_listen_or_not)]


def read_secret(text: object, *, resolve: bool, cls: type[Secret] = Secret) -> Secret:
    """`env:NAME`, `file:PATH` (relative to the working directory) or a literal. BadValueError: no usable value there.

    resolve False leaves references unread: for commands that only talk to a running relay.
    """
    expected = 'a secret: "env:NAME", "file:PATH" or the value itself'
    pattern = _SETTING if cls is Setting else _SECRET
    if not isinstance(text, str):
        raise BadValueError(expected)
    if text.startswith("env:"):
        name = text[4:]
        if _ENV_NAME.fullmatch(name) is None:
            raise BadValueError("env: followed by the name of an environment variable")
        value, where = os.environ.get(name, "") if resolve else "", f"environment variable {name}"
    elif text.startswith("file:"):
        value, where = "", f"file {_shown(text[5:])}"
        if resolve:
            try:
                with open(text[5:], encoding="utf-8") as file:
                    value = file.read(65_536).strip()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or "it is not readable as text"
                raise BadValueError(f"a secret in {where}", reason) from None
    else:
        if not text:
            return cls("")
        if pattern.fullmatch(text) is None:
            raise BadValueError(expected, "text with spaces or characters that are not ASCII")
        if cls is not Setting and _ALMOST_REFERENCE.match(text):
            raise BadValueError(
                expected, "a shell's variable, or env: or file: in capitals: it would be sent as it stands"
            )
        return cls(text)
    if not resolve:
        return cls("", text)
    if not value:
        raise BadValueError(f"a secret in {where}", "nothing: it is not set or empty")
    if pattern.fullmatch(value) is None:
        raise BadValueError(f"a secret in {where}", "text with spaces or characters that are not ASCII")
    return cls(value, text)


def expand_price(rate: msgspec.Struct, field: str, fallback: Decimal) -> None:
    """Give a price that was left out the value of its fallback."""
    if getattr(rate, field) is UNSET_PRICE or getattr(rate, field) < 0:
        msgspec.structs.force_setattr(rate, field, fallback)


def _shown(key: str) -> str:
    """A key of the document, safe on a terminal and short."""
    return key if len(key) <= 64 and key.isprintable() else repr(key[:64])


# --- the walk

_FAILED: Final = object()
_REFERENCE: Final = re.compile(r"(env|file):")
# What somebody wrote who meant a reference: "$NAME", "${NAME}", "ENV:NAME".
_ALMOST_REFERENCE: Final = re.compile(r"\$\{?[A-Z_][A-Z0-9_]*\}?$|(?i:env|file):")


class Converter:
    """Fills structs from a TOML document. Collects `faults` and `warnings` and does not stop at the first.

    What is at fault gets its default, so that everything else can be judged too.
    """

    def __init__(self, *, resolve_secrets: bool) -> None:
        self.resolve_secrets = resolve_secrets
        self.faults: list[Fault] = []
        self.warnings: list[str] = []

    def table(self, cls: type[T], value: object, key: str = "") -> T | None:
        """One table as its struct; None where a value is at fault or missing that has no default."""
        if not isinstance(value, dict):
            self._fault(key, "a table", kind(value))
            return None
        hints = typing.get_type_hints(cls, include_extras=True)
        fields = {field.name: field for field in msgspec.structs.fields(cls)}  # type: ignore[arg-type]
        prefix = f"{key}." if key else ""
        found: dict[str, Any] = {}
        whole = True
        for name in value:
            if name not in fields:
                close = difflib.get_close_matches(name, fields, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                self._fault(prefix + _shown(name), f"one of {', '.join(fields)}", f"an unknown key{hint}")
        for name, field in fields.items():
            if name in value:
                result = self.value(hints[name], value[name], prefix + name)
                if result is not _FAILED:
                    found[name] = result
                elif field.required:
                    whole = False
            elif field.required:
                self._fault(prefix + name, "a value: this key has no default", "nothing")
                whole = False
        return cls(**found) if whole else None

    def value(self, hint: Any, value: Any, key: str) -> Any:
        """One value as its type says, or _FAILED."""
        origin = typing.get_origin(hint)
        if origin is Annotated:
            base, *metas = typing.get_args(hint)
            for meta in metas:
                if isinstance(meta, Parsed):
                    return self._parsed(meta.parse, value, key)
            result = self.value(base, value, key)
            return result if result is _FAILED else self._bounded(result, metas, key)
        if origin in (typing.Union, types.UnionType):  # T | None: TOML has no null
            return self.value(next(arg for arg in typing.get_args(hint) if arg is not type(None)), value, key)
        if origin is Literal:
            choices = typing.get_args(hint)
            if any(value == choice and type(value) is type(choice) for choice in choices):
                return value
            same = isinstance(value, type(choices[0])) and not isinstance(value, bool)
            got = (f"{value}" if isinstance(value, int) else "other text") if same else kind(value)
            return self._fault(key, " or ".join(f'"{c}"' if isinstance(c, str) else str(c) for c in choices), got)
        if origin is tuple:
            return self._list(typing.get_args(hint)[0], value, key)
        if origin is dict:
            key_hint, value_hint = typing.get_args(hint)
            return self._dict(key_hint, value_hint, value, key)
        if hint is Secret or hint is Setting:
            return self._secret(value, key, hint)
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            result = self.table(hint, value, key)
            return _FAILED if result is None else result
        return self._plain(hint, value, key)

    def _plain(self, hint: Any, value: Any, key: str) -> Any:
        if hint is float:
            if isinstance(value, (int, Decimal)) and not isinstance(value, bool) and Decimal(value).is_finite():
                return float(value)
            return self._fault(key, "a number", kind(value))
        if type(value) is hint:
            return value
        expected = {bool: "true or false", int: "a whole number", str: "text"}[hint]
        return self._fault(key, expected, kind(value))

    def _bounded(self, value: Any, metas: list[Any], key: str) -> Any:
        for meta in metas:
            if not isinstance(meta, Meta):
                continue
            if meta.max_length is not None and not (meta.min_length or 0) <= len(value) <= meta.max_length:
                expected = f"text of {meta.min_length or 0} to {meta.max_length} characters"
                return self._fault(key, expected, f"text of {len(value)}")
            low = meta.ge if meta.ge is not None else meta.gt
            too_low = (meta.ge is not None and value < meta.ge) or (meta.gt is not None and value <= meta.gt)
            if too_low or (meta.le is not None and value > meta.le):
                above = "above" if meta.gt is not None else "from"
                got = f"{value:g}" if isinstance(value, float) else str(value)
                return self._fault(key, f"a number {above} {low} to {meta.le}", got)
        return value

    def _list(self, item: Any, value: Any, key: str) -> Any:
        if not isinstance(value, list):
            is_table = isinstance(item, type) and issubclass(item, msgspec.Struct)
            return self._fault(key, f"a list of tables, [[{key}]]" if is_table else "a list", kind(value))
        items = [self.value(item, entry, f"{key}[{index}]") for index, entry in enumerate(value)]
        return _FAILED if any(entry is _FAILED for entry in items) else tuple(items)

    def _dict(self, key_hint: Any, value_hint: Any, value: Any, key: str) -> Any:
        if not isinstance(value, dict):
            return self._fault(key, "a table", kind(value))
        result = {}
        for name, entry in value.items():
            path = f"{key}.{_shown(name)}"
            # A name at fault is shown: keys of tables are no secrets.
            known, item = self.value(key_hint, name, path), self.value(value_hint, entry, path)
            if known is _FAILED:
                result[name] = _FAILED
            elif known in result:
                result[name] = self._fault(path, "each name once, in whatever letters", "the same again")
            else:
                result[known] = item
        return _FAILED if any(entry is _FAILED for entry in result.values()) else result

    def _secret(self, value: Any, key: str, cls: type[Secret]) -> Any:
        secret = self._parsed(lambda text: read_secret(text, resolve=self.resolve_secrets, cls=cls), value, key)
        if secret is _FAILED and isinstance(value, str) and _REFERENCE.match(value):
            return cls("", value)  # the fault is told; a secret that is not at hand says nothing about the rest
        if type(secret) is Secret and secret and not secret.source:
            self.warnings.append(f'{key}: the secret stands in the file itself; "env:NAME" or "file:PATH" keeps it out')
        return secret

    def _parsed(self, parse: Callable[[Any], Any], value: Any, key: str) -> Any:
        try:
            return parse(value)
        except BadValueError as bad:
            return self._fault(key + bad.key, bad.expected, kind(value) if bad.got is None else bad.got)

    def _fault(self, key: str, expected: str, got: str) -> Any:
        self.faults.append(Fault(key, expected, got))
        return _FAILED
