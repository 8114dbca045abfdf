"""The command line's grammar: which words and options exist, and how they become parameters of a command."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from relay import __version__
from relay.control.commands import COMMANDS, LIMIT_MAX

DEFAULT_CONFIG = "config.toml"
# The word that takes an override or a restriction away again.
DEFAULT_WORD = "default"
_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|d|w)?", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DURATION_SECONDS_MAX = 10 * 365 * 86_400


class UsageError(Exception):
    """Wrong usage; the message says what was expected. Exit status 2."""


class Parser(argparse.ArgumentParser):
    """argparse with one clear line instead of the usage block, and no guessing of abbreviated options."""

    def __init__(self, **settings: Any) -> None:
        # What was not given is absent from the result: in front of a command's words and behind them the same options
        # may stand, and None means "back to the default" where an option can say that.
        super().__init__(allow_abbrev=False, argument_default=argparse.SUPPRESS, **settings)

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        if message == "the following arguments are required: COMMAND":
            message = "name a command"
        raise UsageError(f"{self.prog}: {message} (see {self.prog} --help)")


def duration_seconds(text: str) -> int:
    """Seconds of "90", "90s", "15m", "24h", "7d" or "2w"; ArgumentTypeError otherwise."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError("expected a duration such as 90s, 15m, 24h or 7d")
    seconds = int(match[1]) * _SECONDS[match[2] or "s"]
    if seconds > DURATION_SECONDS_MAX:
        raise argparse.ArgumentTypeError("expected a duration of at most ten years")
    return seconds


def _number(text: str) -> int | None:
    if text == DEFAULT_WORD:
        return None
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) or int(text) > LIMIT_MAX:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from 0 (no limit) to {LIMIT_MAX}, or {DEFAULT_WORD!r} (as the account or plan)"
        )
    return int(text)


def _file_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{path}: expected UTF-8 text") from None


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise argparse.ArgumentTypeError("expected a whole number from 0 to 999999999")
    return int(text)


def _model_tokens(text: str) -> tuple[str, int] | str:
    model, _, number = text.rpartition("=")
    if text == DEFAULT_WORD:
        return text
    if not re.fullmatch(r"[0-9]{1,12}", number, re.ASCII):
        raise argparse.ArgumentTypeError("expected MODEL=N, or N for all models")
    return model or "*", int(number)


def _on_disconnect(text: str) -> str | None:
    if text not in ("cancel", "drain", DEFAULT_WORD):
        raise argparse.ArgumentTypeError(f"expected cancel, drain or {DEFAULT_WORD}")
    return _clearable(text)


def _clearable(text: str) -> str | None:
    return None if text == DEFAULT_WORD else text


def _options(parser: argparse.ArgumentParser, *, answers: bool = True, named: bool = True) -> None:
    """`answers`: the command prints one, so that its form can be chosen. `named`: it reads a configuration."""
    if named:
        parser.add_argument(
            "--config", metavar="FILE", help=f"configuration (default: $RELAY_CONFIG, else {DEFAULT_CONFIG})"
        )
    if not answers:
        return
    parser.add_argument("--json", action="store_true", help="one JSON document, or JSON lines for lists")


class _Words:
    """Adds commands of one or two words."""

    def __init__(self, parser: Parser) -> None:
        self._top = parser.add_subparsers(dest="word", metavar="COMMAND", required=True, parser_class=Parser)
        self._groups: dict[str, Any] = {}

    def group(self, word: str, text: str) -> None:
        parser = self._top.add_parser(word, help=text, description=text)
        self._groups[word] = parser.add_subparsers(dest="word2", metavar="COMMAND", required=True, parser_class=Parser)

    def add(self, name: str, text: str) -> argparse.ArgumentParser:
        first, _, second = name.partition(" ")
        commands = self._groups[first] if second else self._top
        parser: argparse.ArgumentParser = commands.add_parser(second or first, help=text, description=text)
        parser.set_defaults(command=name)
        _options(parser, answers=name not in ("serve", "demo"), named=name != "demo")
        return parser

    def add_below(self, parser: argparse.ArgumentParser, name: str, text: str) -> argparse.ArgumentParser:
        """A second word below a command that also stands alone."""
        below = parser.add_subparsers(dest="word2", metavar="COMMAND", parser_class=Parser)
        second: argparse.ArgumentParser = below.add_parser(name.partition(" ")[2], help=text, description=text)
        second.set_defaults(command=name)
        _options(second)
        return second


def build_parser() -> Parser:
    """The whole grammar."""
    parser = Parser(prog="relay", description="An AI API relay with keys, limits and exact prepaid credits.")
    _options(parser)
    parser.add_argument("--version", action="version", version=f"relay {__version__}")
    words = _Words(parser)
    words.add("serve", "run the relay")
    demo = words.add("demo", "run a relay with a simulated upstream, an account and a key, to try it out")
    demo.add_argument("--listen", metavar="HOST:PORT", help="default: 127.0.0.1:8787; port 0: any free one")
    words.add("check", "check the configuration")
    words.add("status", "what the running relay is doing")
    words.add("reload", "make the running relay apply its changed configuration")
    words.add("drain", "make the running relay finish its open calls and stop")
    words.add("version", "print the version")
    _account_words(words)
    _organisation_words(words)
    _credit_words(words)
    _key_words(words)
    _list_words(words)
    return parser


def _account_words(words: _Words) -> None:
    words.group("account", "accounts of customers")
    create = words.add("account create", "open an account")
    create.add_argument("--email", required=True)
    create.add_argument("--organisation", metavar="NAME", help="by name; made when there is none of that name")
    create.add_argument("--plan")
    listing = words.add("account list", "list accounts")
    listing.add_argument("--status")
    listing.add_argument("--organisation", metavar="NAME")
    listing.add_argument("--limit", type=_count, metavar="N", help="default: all")
    words.add("account show", "show an account").add_argument("id", metavar="ID")
    change = words.add("account set", "change an account")
    change.add_argument("id", metavar="ID")
    change.add_argument("--email")
    change.add_argument("--organisation", metavar="NAME", type=_clearable)
    change.add_argument("--plan")
    _limit_options(change)
    for word, text in (
        ("freeze", "refuse calls and end those in flight, until unfrozen; the balance stays"),
        ("unfreeze", "end a freeze"),
        ("ban", "end the account for a violation; calls in flight are ended"),
        ("close", "close the account; its keys stop working, calls in flight are ended"),
        ("reopen", "make a closed or banned account active again"),
    ):
        parser = words.add(f"account {word}", text)
        parser.add_argument("id", metavar="ID")
        parser.add_argument("--reason", metavar="TEXT")


def _organisation_words(words: _Words) -> None:
    words.group("organisation", "organisations; accounts are put into one by its name")
    words.add("organisation list", "list organisations")
    words.add("organisation show", "show an organisation").add_argument("id", metavar="ID")
    change = words.add("organisation set", "change an organisation; its limits hold for all its accounts together")
    change.add_argument("id", metavar="ID")
    change.add_argument("--name")
    _limit_options(change)


def _credit_words(words: _Words) -> None:
    words.group("credit", "credits of accounts")
    add = words.add("credit add", "add credits")
    add.add_argument("id", metavar="ID")
    add.add_argument("amount", metavar="AMOUNT", help='decimal credits, such as "12.5"; an adjustment may be negative')
    add.add_argument("--kind", help="purchased (default), subscription, trial or adjustment")
    add.add_argument("--reason", metavar="TEXT")
    add.add_argument("--expires", metavar="DATE")
    add.add_argument("--idempotency-key", metavar="K", help="the same request again adds nothing")
    refund = words.add("credit refund", "take back purchased credits that were not used")
    refund.add_argument("id", metavar="ID")
    refund.add_argument("amount", metavar="AMOUNT")
    refund.add_argument("--reason", metavar="TEXT", required=True)
    refund.add_argument("--idempotency-key", metavar="K", help="the same request again takes nothing")


def _key_words(words: _Words) -> None:
    words.group("key", "API keys")
    create = words.add("key create", "make a key; its secret is printed once")
    create.add_argument("id", metavar="ID", help="of the account")
    create.add_argument("--name")
    _key_options(create)
    words.add("key list", "list an account's keys").add_argument("id", metavar="ID")
    words.add("key show", "show a key").add_argument("id", metavar="KEY")
    change = words.add("key set", "change a key")
    change.add_argument("id", metavar="KEY")
    change.add_argument("--name")
    _key_options(change)
    rotate = words.add("key rotate", "make a new secret for a key; it is printed once")
    rotate.add_argument("id", metavar="KEY")
    rotate.add_argument(
        "--overlap", dest="overlap_seconds", type=duration_seconds, metavar="DURATION",
        help="how long the old secret still works, such as 24h (default 0: it stops at once)",
    )  # fmt: skip
    for word, text in (
        ("revoke", "end a key for good; its calls in flight are ended"),
        ("suspend", "refuse a key until resumed; its calls in flight are ended"),
        ("resume", "end a suspension"),
    ):
        parser = words.add(f"key {word}", text)
        parser.add_argument("id", metavar="KEY")
        parser.add_argument("--reason", metavar="TEXT")


def _key_options(parser: argparse.ArgumentParser) -> None:
    # A list that is given replaces the old one.
    parser.add_argument("--description")
    for option, name, metavar, text in (
        (
            "--scope",
            "scopes",
            "SCOPE",
            "class of endpoints it may use (chat, embeddings, ...), or channel: it may choose one; repeatable",
        ),
        ("--model", "models", "MODEL", "model it may use, or the beginning of names with a closing *; repeatable"),
        ("--allow-ip", "allow_ips", "CIDR", "network it may be used from; repeatable"),
    ):
        parser.add_argument(
            option, dest=name, metavar=metavar, action="append",
            help=f"{text}; {DEFAULT_WORD!r}: no restriction",
        )  # fmt: skip
    _limit_options(parser)
    parser.add_argument(
        "--on-disconnect", metavar="HOW", type=_on_disconnect,
        help=f"when a client goes away: cancel or drain; {DEFAULT_WORD!r}: as the configuration says",
    )  # fmt: skip
    parser.add_argument(
        "--expires", metavar="DATE", type=_clearable,
        help=f"date (its beginning, UTC) or time from which it is refused; {DEFAULT_WORD!r}: never",
    )  # fmt: skip


def _limit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rpm", type=_number, metavar="N", help="requests per minute")
    parser.add_argument("--tpm", type=_number, metavar="N", help="tokens per minute")
    parser.add_argument("--concurrency", type=_number, metavar="N", help="calls at a time")
    parser.add_argument(
        "--tokens-per-call",
        type=_model_tokens,
        metavar="[MODEL=]N",
        action="append",
        help=f"tokens one call may ask for; repeatable; {DEFAULT_WORD!r}: as the plan",
    )
    for period, name in (("daily", "day"), ("monthly", "month")):
        parser.add_argument(
            f"--{period}-limit", type=_clearable, metavar="AMOUNT",
            help=f"credits per UTC {name}; 0: no limit",
        )  # fmt: skip


def _list_words(words: _Words) -> None:
    calls = words.add("calls", "list call records, newest first")
    calls.add_argument("--account", metavar="ID")
    calls.add_argument("--key", metavar="KEY")
    calls.add_argument("--organisation", metavar="NAME")
    calls.add_argument("--model", metavar="M", help="a name of the catalogue")
    calls.add_argument("--channel", metavar="C")
    calls.add_argument("--path", metavar="P", help="the route, such as /v1/files")
    calls.add_argument("--since", metavar="T", help="date or time, or an age such as 24h")
    calls.add_argument("--until", metavar="T")
    calls.add_argument("--status", metavar="S", help="HTTP status (402) or error code (rate_limit_requests)")
    calls.add_argument("--limit", type=_count, metavar="N", help="default 100; 0: all")
    calls.add_argument("--csv", action="store_true")
    words.add_below(calls, "calls show", "a call's record, and its bill line by line").add_argument("id", metavar="ID")
    usage = words.add("usage", "what was used and what it cost; kept for ever, unlike calls")
    usage.add_argument(
        "--by", metavar="GROUP", action="append",
        help="day or month (default), model, key, account, organisation; repeatable",
    )  # fmt: skip
    usage.add_argument("--account", metavar="ID")
    usage.add_argument("--key", metavar="KEY")
    usage.add_argument("--organisation", metavar="NAME")
    usage.add_argument("--model", metavar="M")
    usage.add_argument("--since", metavar="T", help="first day (UTC), or an age such as 30d")
    usage.add_argument("--until", metavar="T", help="the day after the last one")
    usage.add_argument("--csv", action="store_true")
    words.group("channel", "channels to providers")
    words.add("channel list", "list the configured channels and how they do")
    for word, text in (
        ("test", "ask the provider with each key; exit 1 where one does not work"),
        ("on", "end a switch"),
        ("off", "use it no more, across restarts, until it is switched on; calls under way go on"),
        ("wake", "let its keys rest no more, and use it again"),
    ):
        parser = words.add(f"channel {word}", text)
        parser.add_argument("id", metavar="NAME")
        if word == "off":
            parser.add_argument("--message", metavar="T", help="what callers are told, where no other channel is left")
        if word == "wake":
            parser.add_argument("--key", type=_count, metavar="N", help="this key alone: its place in api_keys, from 1")
    words.group("rates", "prices")
    words.add("rates show", "the prices in force")
    checking = words.add("rates check", "check the prices in force; exit 1 when something is wrong")
    checking.add_argument("--all", action="store_true", help="also what the shipped card says of its own prices")
    scheduling = words.add("rates schedule", "announce prices that take effect by themselves")
    scheduling.add_argument("rates", metavar="FILE", type=_file_text, help="TOML with [[rates]] as in config.toml")
    scheduling.add_argument("--effective", metavar="T", required=True, help="date or time, such as 2027-01-01")
    words.add("rates withdraw", "take back announced prices that are not in force yet").add_argument("id", metavar="ID")
    words.group("ledger", "the ledger")
    words.add("ledger show", "entries and lots of an account").add_argument("id", metavar="ID")
    words.add("ledger verify", "recompute every balance; exit 1 on any difference")
    events = words.add("events", "limiter refusals, security events and acts of the operator, newest first")
    events.add_argument("--since", metavar="T", help="date or time, or an age such as 24h")
    events.add_argument("--limit", type=_count, metavar="N", help="default 1000; 0: all")
    words.add("backup", "make a consistent copy of the store, also while the relay runs").add_argument(
        "path", metavar="FILE"
    )
    words.add("terms", "the published figures: limits, retention, validity, notice periods")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed words; UsageError. `.command` is the name of the command."""
    arguments, unknown = build_parser().parse_known_args(argv)
    if unknown:
        prog = f"relay {arguments.command}"
        raise UsageError(f"{prog}: unrecognized arguments: {' '.join(unknown)} (see {prog} --help)")
    if arguments.command == "demo" and "config" in arguments:
        raise UsageError("relay demo: --config does not apply: the demo writes a configuration of its own, in .demo")
    if getattr(arguments, "csv", False) and getattr(arguments, "json", False):
        raise UsageError(f"relay {arguments.command}: --csv and --json exclude each other")
    return arguments


def fields_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parameters of the command that were given. The word "default" in a list stands for no restriction."""
    command = COMMANDS[arguments.command]
    fields: dict[str, Any] = {}
    for name in command.params.__struct_fields__:
        if name not in arguments:
            continue
        value = getattr(arguments, name)
        if isinstance(value, list) and DEFAULT_WORD in value:
            if value != [DEFAULT_WORD]:
                raise UsageError(f"relay: {DEFAULT_WORD!r} cannot stand beside other values")
            value = None
        elif name == "tokens_per_call":
            value = dict(value)
        elif name == "by":
            value = ",".join(value)
        fields[name] = value
    return fields
