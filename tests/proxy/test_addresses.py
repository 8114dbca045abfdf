"""Whose address a call comes from, behind trusted proxies: against a plain reading of the same lines."""

import ipaddress
import re

from hypothesis import given
from hypothesis import strategies as st

from relay.proxy.addresses import UNKNOWN, Addresses, read

TRUSTED = [ipaddress.ip_network(text) for text in ("10.0.0.0/8", "2001:db8:aaaa::/48", "127.0.0.1/32")]
ADDRESSES = Addresses(tuple(TRUSTED))

texts = st.one_of(
    st.ip_addresses().map(str),
    st.ip_addresses(v=4).map(lambda a: f"{a}:443"),
    st.ip_addresses(v=6).map(lambda a: f"[{a}]"),
    st.ip_addresses(v=6).map(lambda a: f"[{a}]:65535"),
    st.ip_addresses(network="10.0.0.0/8").map(str),
    st.ip_addresses(network="10.0.0.0/8").map(lambda a: f"[::ffff:{a}]:1"),
    st.ip_addresses(network="2001:db8:aaaa::/48").map(str),
    st.ip_addresses(v=4).map(lambda a: f"::ffff:{a}"),
    st.sampled_from(
        ["", "unknown", "_hidden", "1.2.3", "1.2.3.4:", "[1.2.3.4]:5", "1.2.3.4:x", "[::1", "::1]", "\xff"]
    ),
    st.text("0123456789abcdef.:[]% x,", max_size=12),
)
lines = st.lists(st.builds(",".join, st.lists(st.builds(" {} ".format, texts), min_size=1, max_size=4)), max_size=4)


def plainly(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address in any of the forms, tried one after the other."""
    text = text.strip(" \t")
    for form in (r"(.*)", r"\[(.*:.*)\]", r"\[(.*:.*)\]:\d{1,5}", r"([\d.]+):\d{1,5}"):
        match = re.fullmatch(form, text, re.ASCII)
        if match is None:
            continue
        host = match[1].split("%")[0] if ":" in match[1] else match[1]
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            continue
        return getattr(address, "ipv4_mapped", None) or address
    return None


def oracle(given: list[str]) -> tuple[str | None, bytes | None]:
    """From right to left: our own proxies are passed over, the first other one is the caller."""
    names = ",".join(given).split(",")
    while names:
        address = plainly(names.pop())
        if address is None:
            return UNKNOWN
        ours = any(address.version == network.version and address in network for network in TRUSTED)
        if not ours or not names:
            return str(address), address.packed
    raise AssertionError


@given(lines)
def test_the_caller_is_the_first_from_the_right_that_is_not_ours(given: list[str]) -> None:
    headers = [line.encode("latin-1") for line in given]
    expected = oracle(given) if given else ("10.0.0.1", bytes([10, 0, 0, 1]))
    assert ADDRESSES.caller(("10.0.0.1", 5), headers) == expected
    # Nobody else is believed, whatever he says.
    assert ADDRESSES.caller(("192.0.2.1", 5), headers) == ("192.0.2.1", bytes([192, 0, 2, 1]))
    assert ADDRESSES.caller("a socket", headers) == (None, None)


@given(texts)
def test_one_address(text: str) -> None:
    assert read(text) == plainly(text)
