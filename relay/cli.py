"""The command `relay`.

Commands about the store go to the running relay over its unix socket; where none runs, this process opens the store
under its lock and does the same operations itself. Exit status: 0 done, 1 refused or failed (with a line on stderr that
says why), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relay import __version__
from relay.cli_arguments import UsageError, fields_of, parse
from relay.cli_output import CALL_FIELDS, LISTS, as_csv, as_json, difference, human, table, usage_columns, why
from relay.control.failures import CommandError
from relay.errors import RelayError

if TYPE_CHECKING:
    from relay.config import Config
    from relay.config_values import ConfigError

EXIT_DONE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
# Between a relay that starts or stops and other commands on the same store: how long to wait for the lock.
LOCK_WAIT_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.05
PAGE_ROWS = 1000
# Commands whose answer may say what is allowed and probably not meant.
WARNED = frozenset({"account create", "account set", "key create", "key set"})
Send = Callable[[str, dict[str, Any]], dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except UsageError as failure:
        return _fail(str(failure), EXIT_USAGE)
    except RelayError as failure:
        lines = getattr(failure, "lines", None) or (str(failure),)
        return _fail("\n".join(f"relay: {' '.join(line.split())}" for line in lines), EXIT_FAILED)
    except BrokenPipeError:
        # The reader (`head`) has enough. What is still buffered must not be written when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as failure:
        # Standard output cannot be written: a full disk. What is still buffered must not be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(f"relay: the output cannot be written: {failure.strerror}", EXIT_FAILED)
    except KeyboardInterrupt:
        return _fail("relay: interrupted", 130)


def _fail(line: str, status: int) -> int:
    print(line, file=sys.stderr)
    return status


def _run(arguments: argparse.Namespace) -> int:
    name: str = arguments.command
    if name == "version":
        return _print_version(arguments)
    if name == "check":
        return _check(arguments)
    if name in ("serve", "demo"):
        return _run_relay(name, arguments)
    fields = fields_of(arguments)
    if name == "backup":
        fields["path"] = os.path.abspath(fields["path"])
    send = _sender(*_config_of_command(arguments))
    if name in LISTS:
        return _print_list(name, fields, arguments, send)
    return _print_document(name, send(name, fields), arguments)


def _run_relay(name: str, arguments: argparse.Namespace) -> int:
    # Late: it pulls in the whole server, which a short command does not need.
    from relay import app
    from relay.storage import StoreError

    try:
        return app.run_serve(_load(arguments)) if name == "serve" else app.run_demo(arguments)
    except (OSError, StoreError) as failure:
        # An address in use, a certificate that cannot be read, a directory that another relay has.
        raise CommandError("unavailable", str(failure)) from failure


def _load(arguments: argparse.Namespace, *, resolve_secrets: bool = True) -> Config:
    from relay import config

    named = getattr(arguments, "config", None) or os.environ.get("RELAY_CONFIG") or None
    return config.load(named, resolve_secrets=resolve_secrets)


def _config_of_command(arguments: argparse.Namespace) -> tuple[Config, ConfigError | None]:
    """The configuration, for a command. A broken file must not keep an operator from a relay that runs: then that, and
    a default configuration with the file's data_dir."""
    from relay import config
    from relay.config_values import ConfigError

    try:
        return _load(arguments, resolve_secrets=False), None
    except ConfigError as failure:
        data_dir = config.data_dir_of(failure.file)
        if not data_dir:
            raise
        return config.parse(f"[server]\ndata_dir = {as_json(data_dir)}\n", file=failure.file), failure


def _wants_json(arguments: argparse.Namespace) -> bool:
    return getattr(arguments, "json", False)


# --- where a command is done


def _sender(config: Config, broken: ConfigError | None = None) -> Send:
    """Sends a command to the running relay; where none runs, does it here. `broken`: what is wrong with the file; then
    only a running relay will do, which has its configuration in memory."""

    def send(name: str, fields: dict[str, Any]) -> dict[str, Any]:
        from relay.cli_client import NotRunning
        from relay.cli_client import send as send_to_relay

        data_dir = Path(config.server.data_dir).absolute()
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while True:
            try:
                return send_to_relay(data_dir, name, fields)
            except NotRunning:
                if name in ("status", "reload", "drain"):
                    raise CommandError("unavailable", f"no relay is running on {data_dir}") from None
                if broken is not None:
                    raise broken from None
            answer = _run_here(config, name, fields, locked_is_failure=time.monotonic() > deadline)
            if answer is not None:
                return answer
            # A relay that starts has the lock before its socket, one that stops has it longer; another command has it
            # for a moment.
            time.sleep(_LOCK_POLL_SECONDS)

    return send


def _run_here(config: Config, name: str, fields: dict[str, Any], *, locked_is_failure: bool) -> dict[str, Any] | None:
    """Does a command in this process, on the store that no relay has open. None: another process has its lock."""
    # Imported late: most commands are answered by a running relay and need none of this.
    import asyncio

    import msgspec

    from relay.control.commands import COMMANDS, read_params
    from relay.control.operations import Operations
    from relay.control.place import open_store
    from relay.storage import StoreError, StoreLocked

    command = COMMANDS[name]
    try:
        params = read_params(command, fields)
    except msgspec.ValidationError as failure:
        raise CommandError("invalid", str(failure)) from None

    async def run() -> dict[str, Any]:
        store, pepper = await open_store(config, create=False)
        try:
            return await Operations(store, None, config, pepper).run(command, params)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except StoreLocked as failure:
        if locked_is_failure:
            raise CommandError("unavailable", str(failure)) from None
        return None
    except StoreError as failure:
        raise CommandError("unavailable", str(failure)) from None


# --- what is printed


def _print_version(arguments: argparse.Namespace) -> int:
    print(as_json({"version": __version__}) if _wants_json(arguments) else f"relay {__version__}")
    return EXIT_DONE


def _check(arguments: argparse.Namespace) -> int:
    from relay.config_values import ConfigError
    from relay.control import pricelist

    try:
        config = _load(arguments)
    except ConfigError as failure:
        if _wants_json(arguments):
            print(as_json({"ok": False, "file": failure.file, "errors": list(failure.lines), "warnings": []}))
        raise
    warnings = [*config.warnings, *pricelist.odd_prices(config)]
    if _wants_json(arguments):
        print(as_json({"ok": True, "file": config.file, "errors": [], "warnings": warnings}))
        return EXIT_DONE
    for line in warnings:
        print(f"warning: {line}")
    print(f"{config.file}: the configuration is usable")
    return EXIT_DONE


def _print_document(name: str, document: dict[str, Any], arguments: argparse.Namespace) -> int:
    if _wants_json(arguments):
        print(as_json(document))
    else:
        if name in WARNED:
            for line in document.pop("warnings", ()):
                print(f"warning: {line}", file=sys.stderr)
        print(human(name, document), end="")
    failed = document.get("ok") is False
    if failed:
        lines = [difference(row) for row in document.get("differences", ())] + document.get("errors", [])
        for line in lines:
            print(f"relay: {line}", file=sys.stderr)
    return EXIT_FAILED if failed else EXIT_DONE


def _print_list(name: str, fields: dict[str, Any], arguments: argparse.Namespace, send: Send) -> int:
    field, columns = LISTS[name]
    total = fields.pop("limit", {"calls": 100, "events": 1000}.get(name, 0))
    rows: list[dict[str, Any]] = []
    head = True
    for page in _pages(name, fields, field, total, send):
        if _wants_json(arguments):
            for row in page:
                print(as_json(row))
        elif getattr(arguments, "csv", False):
            shown = CALL_FIELDS if name == "calls" else usage_columns(page, all_of_them=True) or _usage_head(fields)
            print(as_csv(page, shown, head=head), end="")
            head = False
        else:
            rows += [{**row, "reason": why(row)} for row in page] if name == "channel list" else page
    if not _wants_json(arguments) and not getattr(arguments, "csv", False):
        print(table(rows, columns or usage_columns(rows, all_of_them=False)), end="")
    return EXIT_DONE


def _usage_head(fields: dict[str, Any]) -> tuple[str, ...]:
    """The columns of `usage --csv` where nothing was used."""
    from relay.control import usage
    from relay.control.answers import UsageSums

    asked = usage.groups(fields.get("by") or "month")
    return (*map(usage.field, asked), *UsageSums.__struct_fields__)


def _pages(name: str, fields: dict[str, Any], field: str, total: int, send: Send) -> Iterator[list[dict[str, Any]]]:
    """The rows of a list, page by page; `total` 0: all of them."""
    if name in ("key list", "organisation list", "usage", "channel list"):
        yield send(name, fields)[field]
        return
    if name == "events":
        yield send(name, {**fields, "limit": min(total or 100_000, 100_000)})[field]
        return
    cursor = "before" if name == "calls" else "after"
    left = total or sys.maxsize
    while True:
        # A page may hold fewer rows than asked for (a filter), and still not be the last.
        answer = send(name, {**fields, "limit": min(PAGE_ROWS, left) if name == "calls" else PAGE_ROWS})
        page = answer[field][:left]
        yield page
        left -= len(page)
        if left <= 0 or answer.get("next") is None:
            return
        fields = {**fields, cursor: answer["next"]}
