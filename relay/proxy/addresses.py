"""Whose address a call comes from: the socket's, or what a trusted proxy says of it."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def plain(address: Address) -> Address:
    """IPv4 in IPv6 (::ffff:192.0.2.1) as IPv4, so that one rule covers both spellings."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


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

    def forwarded(self, peer: str | None, header: bytes) -> tuple[str | None, bytes | None]:
        """The rightmost address in X-Forwarded-For that is not a trusted proxy. What cannot be read ends the search.

        Only what our own proxies appended is believed: a client can write anything on the left.
        """
        found = ip_address(peer) if peer is not None else None
        for part in reversed(header.decode("latin-1").split(",")):
            try:
                address = plain(ip_address(part.strip()))
            except ValueError:
                break
            found = address
            if not self.trusts(address):
                break
        return (str(found), found.packed) if found is not None else (None, None)
