"""Logging that cannot quote content, at any level.

The relay's own messages are written so that nothing of a request or an answer is in them. Other libraries' are not:
asyncio prints the arguments of callbacks and the texts of exceptions, aiohttp the bytes it could not parse. So of a
record from elsewhere only its logger, its place in the code and the type of its exception are told, and of any
exception, ours included, its type and places, never its text.
"""

import asyncio
import logging
import os
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, TextIO

from relay.errors import RelayError

log = logging.getLogger("relay")

LEVEL_VARIABLE = "RELAY_LOG_LEVEL"
LEVELS = ("debug", "info", "warning", "error", "critical")


class LogLevelError(RelayError):
    """RELAY_LOG_LEVEL is not a level."""


def places(trace: TracebackType | None) -> str:
    """Where in the code: files, lines and functions, outermost first; no values."""
    return "; ".join(
        f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(trace)
    )


def describe(error: BaseException | None) -> str:
    """An exception without its text."""
    if error is None:
        return "unknown"
    where = places(error.__traceback__)
    return f"{type(error).__name__} at {where}" if where else type(error).__name__


class QuietFormatter(logging.Formatter):
    """See the module."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if record.name == "relay" or record.name.startswith("relay."):
            text = record.getMessage()
            if error is not None:
                text = f"{text} ({describe(error)})"
        else:
            text = f"a message from {record.filename}:{record.lineno} {record.funcName} is withheld"
            if error is not None:
                text = f"{text} ({describe(error)})"
        told = logging.makeLogRecord({**record.__dict__, "msg": text, "args": None, "exc_info": None, "exc_text": None})
        told.stack_info = None
        return super().format(told)


def level() -> int | None:
    """The level asked for by RELAY_LOG_LEVEL; None where it is not set. Raises LogLevelError."""
    name = os.environ.get(LEVEL_VARIABLE, "")
    if not name:
        return None
    if name.lower() not in LEVELS:
        raise LogLevelError(f"{LEVEL_VARIABLE}: one of {', '.join(LEVELS)} is expected")
    return int(getattr(logging, name.upper()))


def set_up(default: int, form: str, stream: TextIO | None = None) -> None:
    """Logs to `stream` (stderr), and takes over every other way in which Python prints exceptions."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(QuietFormatter(form))
    asked = level()
    logging.basicConfig(level=default if asked is None else asked, handlers=[handler], force=True)
    logging.raiseExceptions = False  # a record that cannot be formatted would be printed with its arguments
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _in_thread


def watch_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Exceptions that nobody waits for ("never retrieved"), and those of callbacks and transports."""
    loop.set_exception_handler(_in_loop)


def _in_loop(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # context["message"] may hold the representation of a callback with its arguments.
    error = context.get("exception")
    log.error("unhandled in the event loop: %s", describe(error))


def _uncaught(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    log.critical("uncaught: %s", describe(error))


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    log.error("unraisable: %s in %s", describe(unraisable.exc_value), type(unraisable.object).__name__)


def _in_thread(arguments: threading.ExceptHookArgs) -> None:
    log.error("uncaught in a thread: %s", describe(arguments.exc_value))
