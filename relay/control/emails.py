"""E-mail addresses: one account per address, so an address has one normal form."""

from __future__ import annotations

import re
import unicodedata

ADDRESS_CHARACTERS_MAX = 254  # RFC 5321: a path has at most 256 octets with its angle brackets
_LOCAL_CHARACTERS_MAX = 64
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


def normalise(text: str) -> str:
    """The normal form of an address; ValueError when it cannot be one.

    Blanks around it fall away, the domain becomes lower-case ASCII (IDNA), the local part is compatibility-composed and
    case-folded: no provider of note tells "Ann@" from "ann@", and full-width or ligature forms look like plain letters.
    What only some providers ignore (dots, "+tag") stays: elsewhere these are different people.
    """
    local, at, domain = text.strip().rpartition("@")
    local = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", local).casefold())
    try:
        domain = unicodedata.normalize("NFKC", domain).rstrip(".").encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise ValueError("expected an e-mail address") from None
    labels = domain.split(".")
    if (
        not at
        or not 0 < len(local.encode()) <= _LOCAL_CHARACTERS_MAX
        or len(local) + 1 + len(domain) > ADDRESS_CHARACTERS_MAX
        or any(
            character.isspace() or not character.isprintable() or character in '@<>(),;:"[]\\' for character in local
        )
        or local.startswith(".")
        or local.endswith(".")
        or ".." in local
        or len(labels) < 2
        or not all(_LABEL.fullmatch(label) for label in labels)
        or labels[-1].isdigit()
    ):
        raise ValueError("expected an e-mail address, such as ann@example.com")
    return f"{local}@{domain}"
