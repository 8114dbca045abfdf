"""Whose address a call comes from: the socket's, or what a trusted proxy says of it."""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Caller = tuple[str | None, bytes | None]  # for the record, and packed; None: in nobody's list of addresses

UNKNOWN: Caller = ("unknown", None)
_BRACKETED = re.compile(r"\[([0-9A-Fa-f:.%\w]+)\](?::[0-9]{1,5})?", re.ASCII)
_WITH_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}", re.ASCII)


def plain(address: Address) -> Address:
    """IPv4 in IPv6 (::ffff:192.0.2.1) as IPv4, so that one rule covers both spellings."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def read(text: str) -> Address | None:
    """One address as proxies write it: 192.0.2.1, 192.0.2.1:5678, 2001:db8::1, [2001:db8::1], [2001:db8::1]:5678."""
    match = _BRACKETED.fullmatch(text.strip(" \t"))
    host = match[1] if match is not None else text.strip(" \t")
    if match is None and (with_port := _WITH_PORT.fullmatch(host)) is not None:
        host = with_port[1]
    try:
        address = ip_address(host.split("%", 1)[0] if ":" in host else host)
    except ValueError:
        return None
    return plain(address) if match is None or address.version == 6 else None


class Addresses:
    """Reads the peer of a socket and, behind trusted proxies, X-Forwarded-For."""

    def __init__(self, trusted: tuple[Network, ...]) -> None:
        self._trusted = trusted
        self._host = lru_cache(maxsize=4096)(self._read_host)  # parsing takes longer than accepting a connection

    def trusts(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._trusted)

    def peer(self, peername: object) -> tuple[str | None, bytes | None, bool]:
        """(text, packed bytes, whether it is a trusted proxy) of a socket's peer name; a unix socket has no address."""
        if not isinstance(peername, tuple) or not peername:
            return None, None, False
        return self._host(str(peername[0]))

    def _read_host(self, host: str) -> tuple[str | None, bytes | None, bool]:
        try:
            address = plain(ip_address(host.split("%", 1)[0]))
        except ValueError:
            return None, None, False
        return str(address), address.packed, self.trusts(address)

    def forwarded(self, header: bytes) -> Caller:
        """The rightmost address in X-Forwarded-For that is not a trusted proxy's, else the leftmost one.

        `header` is every line of it, joined by commas in their order: a proxy may add its own line behind the client's.
        Only what our own proxies appended is believed: a client can write anything on the left. What is not an address
        there (`unknown`, a name, nothing) means that nobody knows: the proxy's own address would be a wrong one.
        """
        found: Address | None = None
        for part in reversed(header.decode("latin-1").split(",")):
            found = read(part)
            if found is None:
                return UNKNOWN
            if not self.trusts(found):
                break
        return (str(found), found.packed) if found is not None else UNKNOWN

    def caller(self, peername: object, lines: Sequence[bytes]) -> Caller:
        """Whose address a request comes from, by its socket and the lines of X-Forwarded-For that it has."""
        text, packed, trusted = self.peer(peername)
        return self.forwarded(b",".join(lines)) if trusted and lines else (text, packed)
