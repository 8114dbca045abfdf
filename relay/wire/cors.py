"""CORS: what a browser is told, so that a page of another origin may call.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol. Keys travel in header fields that a page has to set itself,
never in cookies: answers are not for calls with credentials, and a page that has no key gets nothing by being let in.
"""

import re
from collections.abc import Iterable
from typing import Final

ANY: Final = "*"
MAX_AGE_SECONDS: Final = 7200  # browsers keep a preflight no longer
REQUEST_HEADERS_BYTES_MAX: Final = 4096  # of Access-Control-Request-Headers: its names go back
METHODS: Final = ("GET", "POST", "DELETE")

_KINDS: Final = ("requests", "tokens")
_WHATS: Final = ("limit", "remaining", "reset")
# "*" is every field of the answer; browsers that do not know it get what SDKs read.
_EXPOSED: Final = (
    "*", "x-relay-request-id", "x-request-id", "request-id", "retry-after", "retry-after-ms", "x-should-retry",
    "server-timing",
    *(f"x-ratelimit-{what}-{kind}" for kind in _KINDS for what in _WHATS),
    *(f"anthropic-ratelimit-{kind}-{what}" for kind in _KINDS for what in _WHATS),
)  # fmt: skip
_NAMES: Final = re.compile(r"[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+[ \t]*(?:,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+[ \t]*)*")

Fields = list[tuple[str, str]]


class Cors:
    """The origins that may call. Without any it is switched off: false."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self._origins = frozenset(origins)
        self._any = ANY in self._origins

    def __bool__(self) -> bool:
        return bool(self._origins)

    def allows(self, origin: str | None) -> bool:
        return origin is not None and (self._any or origin in self._origins)

    def fields(self, origin: str | None) -> Fields:
        """What any answer says to a caller of this origin; None: it names none."""
        vary: Fields = [] if self._any else [("Vary", "Origin")]  # or a cache would give one origin's answer to another
        if origin is None or not self.allows(origin):
            return vary
        return [
            ("Access-Control-Allow-Origin", ANY if self._any else origin),
            ("Access-Control-Expose-Headers", ", ".join(_EXPOSED)),
            *vary,
        ]

    @property
    def lines(self) -> dict[bytes, bytes] | None:
        """The same as lines of a head, by origin, for the compiled pipeline. None: switched off."""
        if not self:
            return None
        return {origin.encode("ascii"): _lines(self.fields(origin)) for origin in self._origins}

    @property
    def other_lines(self) -> bytes:
        """For an origin that is not among `lines`."""
        return _lines(self.fields("null"))

    def preflight(self, origin: str, asked: str, methods: Iterable[str]) -> Fields | None:
        """The answer to a preflight of an origin that is allowed. None: it asks for what are no names of fields.

        asked  its Access-Control-Request-Headers, "" where it has none
        """
        if len(asked) > REQUEST_HEADERS_BYTES_MAX or (asked and _NAMES.fullmatch(asked) is None):
            return None
        fields = [
            ("Access-Control-Allow-Origin", ANY if self._any else origin),
            ("Access-Control-Allow-Methods", ", ".join(methods)),
            ("Access-Control-Max-Age", str(MAX_AGE_SECONDS)),
            # What is asked for decides the answer, so a cache must not give it to another request.
            ("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
        ]
        if asked:
            fields.append(("Access-Control-Allow-Headers", asked.strip(" \t")))
        return fields


def _lines(fields: Fields) -> bytes:
    return b"".join(f"{name}: {value}\r\n".encode("ascii") for name, value in fields)
