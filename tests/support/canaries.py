"""Random tokens that stand for content, and a search for them in every form in which they could be written."""

import base64
import json
import random
import re
import string
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path

LETTERS = string.ascii_letters + string.digits


class Canaries:
    """`canaries("system prompt")` is a fresh token of 24 characters that holds what cannot be confused."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)
        self.places: dict[str, str] = {}  # token -> where it was put

    def __call__(self, place: str) -> str:
        token = "".join(self._random.choice(LETTERS) for _ in range(24))
        self.places[token] = place
        return token

    def needles(self) -> Iterator[tuple[bytes, str]]:
        """Every written form of every token, with the place it was put and the form."""
        for token, place in self.places.items():
            for form, needle in forms(token):
                yield needle, f"{place} ({form})"

    def found(self, haystacks: Iterable[tuple[str, bytes]]) -> list[str]:
        """Where a token stands that must not. `haystacks`: names and contents."""
        leaks = []
        needles = list(self.needles())
        for name, content in haystacks:
            # Files made whole in advance are almost all NUL.
            content = re.sub(rb"\0{32,}", b"\0" * 32, content)
            lower = content.lower()
            leaks += [
                f"{what} in {name}"
                for needle, what in needles
                if needle in content or (what.endswith("(hex)") and needle in lower)
            ]
        return leaks


def forms(token: str) -> Iterator[tuple[str, bytes]]:
    raw = token.encode()
    # What cuts a token in two, such as a limited representation, still leaves a half of it.
    yield "raw", raw
    yield "first half", raw[:12]
    yield "second half", raw[12:]
    yield "JSON", json.dumps("".join(f"\\u{ord(c):04x}" for c in token))[1:-1].replace("\\\\", "\\").encode()
    yield "URL", "".join(f"%{byte:02X}" for byte in raw).encode()
    yield "URL", urllib.parse.quote(token).encode()
    yield "hex", raw.hex().encode()
    yield "UTF-16", token.encode("utf-16-le")
    yield "UTF-16", token.encode("utf-16-be")
    for offset in range(3):
        # The middle of the encoding at each offset in a larger text; its ends depend on the neighbours.
        encoded = base64.b64encode(b"x" * offset + raw)
        whole = encoded[4 if offset else 0 : -4]
        yield "base64", whole
        yield "base64", whole.replace(b"+", b"-").replace(b"/", b"_")


def files_below(*folders: Path) -> Iterator[tuple[str, bytes]]:
    """Every regular file, by its path."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield str(path), path.read_bytes()
