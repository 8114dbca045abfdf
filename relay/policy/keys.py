"""API key secrets: `sk-` + public id + `-` + random part + checksum.

    sk-7f3k9q2mxa0d-0aB3…(32 of [0-9A-Za-z], 190 random bits)…Zz91Qk(6 of [0-9A-Za-z])

The public id finds the row; the whole secret is compared by its keyed digest (HMAC-SHA256 under the pepper), in
constant time. The checksum (CRC-32 of everything in front of it) tells a mistyped or cut key from an unknown one
without a look at the store; it is no protection and needs none.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import zlib
from collections.abc import Iterable

PREFIX = "sk-"
PUBLIC_ID_CHARACTERS = 12
RANDOM_CHARACTERS = 32
CHECKSUM_CHARACTERS = 6  # 62^6 > 2^32
SECRET_CHARACTERS = len(PREFIX) + PUBLIC_ID_CHARACTERS + 1 + RANDOM_CHARACTERS + CHECKSUM_CHARACTERS
DIGEST_BYTES = 32

_LOWER = "0123456789abcdefghijklmnopqrstuvwxyz"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHAPE = re.compile(
    rb"sk-([a-z0-9]{%d})-[0-9A-Za-z]{%d,64}" % (PUBLIC_ID_CHARACTERS, RANDOM_CHARACTERS + CHECKSUM_CHARACTERS)
)


def make_secret() -> str:
    """A new secret. All of its randomness is from the operating system."""
    public_id = "".join(secrets.choice(_LOWER) for _ in range(PUBLIC_ID_CHARACTERS))
    body = f"{PREFIX}{public_id}-" + "".join(secrets.choice(_BASE62) for _ in range(RANDOM_CHARACTERS))
    return body + _checksum(body.encode())


def parse_secret(text: str | bytes) -> str | None:
    """The public id of a well-formed secret, or None: a wrong shape or checksum, so no key of any relay."""
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    match = _SHAPE.fullmatch(raw)
    if match is None or _checksum(raw[:-CHECKSUM_CHARACTERS]).encode() != raw[-CHECKSUM_CHARACTERS:]:
        return None
    return match[1].decode()


def digest(pepper: bytes, secret: str | bytes) -> bytes:
    """What is stored of a secret: 32 bytes."""
    return hmac.digest(pepper, secret.encode() if isinstance(secret, str) else secret, hashlib.sha256)


def masked(public_id: str, last_characters: str) -> str:
    """A secret as lists show it."""
    return f"{PREFIX}{public_id[:4]}…{last_characters}"


def _checksum(body: bytes) -> str:
    number, characters = zlib.crc32(body), []
    for _ in range(CHECKSUM_CHARACTERS):
        number, digit = divmod(number, 62)
        characters.append(_BASE62[digit])
    return "".join(reversed(characters))


def is_pattern(model: str) -> bool:
    """`gpt-*`: every model whose name begins so."""
    return model.endswith("*")


def allowed_models(models: Iterable[str], known: Iterable[str]) -> frozenset[str]:
    """The names that a key's list allows: its own, and those known ones that one of its patterns matches."""
    names, patterns = set(), []
    for model in models:
        if is_pattern(model):
            patterns.append(model[:-1])
        else:
            names.add(model)
    return frozenset(names).union(name for name in known if name.startswith(tuple(patterns)))


def pack_networks(networks: Iterable[str]) -> bytes:
    """An address allowlist as the hot path reads it: 18 bytes per network (4 or 6, prefix length, address).

    CIDR or single addresses, v4 and v6; v4-mapped v6 networks become v4. ValueError for anything else.
    """
    packed = bytearray()
    for text in networks:
        network = ipaddress.ip_network(text)
        version, bits, address = network.version, network.prefixlen, network.network_address
        if isinstance(address, ipaddress.IPv6Address) and bits >= 96 and address.ipv4_mapped is not None:
            version, bits, address = 4, bits - 96, address.ipv4_mapped
        packed += bytes((version, bits)) + address.packed.ljust(16, b"\0")
    return bytes(packed)
