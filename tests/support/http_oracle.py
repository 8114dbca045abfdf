"""HTTP/1.1 heads, chunked bodies (RFC 9112) and SipHash in plain Python.

The twins of relay/fastpath/http.pxi, siphash.pxi, RequestHead in frontdoor.pxi and ResponseHead in upstream.pxi.
"""

import re
from typing import Any

from relay import _fastpath
from relay.wire import headers

LINE_BYTES_MAX = 8190
JSON_UTF8 = b"application/json; charset=utf-8"
REQUEST_FIELDS_MAX = 64
RESPONSE_FIELDS_MAX = 128

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
LINE = TOKEN + rb"+:[\t\x20-\x7e]*\r\n"
REQUEST_FIELDS = re.compile(rb"((?:" + LINE + rb")*)\r\n")
RESPONSE_HEAD = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9]) [\t\x20-\x7e]*\r\n((?:" + LINE + rb")*)\r\n")
HOST = re.compile(rb"[0-9A-Za-z\-._:\[\]]+")
LENGTH = re.compile(rb"[0-9]{1,15}")
AMOUNT = re.compile(rb"([0-9]{1,9})(?:\.([0-9]{1,9}))?")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(;[\t\x20-\x7e]*)?\r\n")
TRAILERS = re.compile(rb"(?:" + TOKEN + rb"[\t\x20-\x7e]*\r\n)*\r\n")

# In an answer these belong to a request, or are the relay's to write.
NOT_IN_ANSWERS = {
    *(b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade", b"authorization"),
    *(b"x-api-key", b"x-goog-api-key", b"api-key", b"user-agent", b"x-relay-max-cost", b"x-forwarded-for"),
    *(b"sec-fetch-mode", b"sec-fetch-dest", b"origin"),
}


def field_table() -> Any:
    """The table as the proxy fills it."""
    table = _fastpath._standard_fields()  # type: ignore[attr-defined]
    table.traced = True
    for dialect, allowed in enumerate(headers.REQUEST_ALLOWED):
        for name in sorted(allowed):
            table.allow(name, dialect)
    for name in sorted(headers.RESPONSE_DROPPED):
        table.drop(name)
    for prefix in headers.RESPONSE_DROPPED_PREFIXES:
        table.drop_prefix(prefix)
    return table


def lines_of(block: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """(lower-case name, value without blanks around it, line) of field lines."""
    split = [(line.partition(b":"), line) for line in block.split(b"\r\n")[:-1]]
    return [(name.lower(), value.strip(b" \t"), line + b"\r\n") for (name, _, value), line in split]


def too_long(lines: list[tuple[bytes, bytes, bytes]]) -> bool:
    return any(len(line) - 2 > LINE_BYTES_MAX for _, _, line in lines)


def amount_nano(text: bytes) -> int:
    """Credits as the x-relay-max-cost header writes them, as nano-credits; -1 for anything else."""
    found = AMOUNT.fullmatch(text)
    if not found or len(text) > 19:
        return -1
    return int(found[1]) * 10**9 + int((found[2] or b"").ljust(9, b"0"))


def request_head(block: bytes, dialect: int) -> dict[str, Any] | None:
    """What the front door makes of field lines with the empty line behind them; None: it must not serve the message."""
    found = REQUEST_FIELDS.match(block)
    if not found:
        return None
    lines = lines_of(found[1])
    values: dict[bytes, list[bytes]] = {}
    for name, value, _ in lines:
        values.setdefault(name, []).append(value)
    lengths = values.get(b"content-length", [])
    connections = [value.lower() for value in values.get(b"connection", [])]
    if (
        len(lines) > REQUEST_FIELDS_MAX
        or too_long(lines)
        or not all(HOST.fullmatch(value) for value in values.get(b"host", []))
        or len(lengths) > 1
        or not all(LENGTH.fullmatch(value) for value in lengths)
        or values.keys() & {b"transfer-encoding", b"expect", b"upgrade"}
        or values.keys() & {b"content-location", b"content-range", b"etag", b"max-forwards", b"server"}
        or max(len(values.get(name, [])) for name in (b"content-type", b"user-agent")) > 1
        or any(b"charset" in value.lower() and value.lower() != JSON_UTF8 for value in values.get(b"content-type", []))
        or b"navigate" in {value.lower() for value in values.get(b"sec-fetch-mode", [])}
        or {value.lower() for value in values.get(b"sec-fetch-dest", [])} - {b"empty"}
        or set(connections) - {b"close", b"keep-alive"}
        or {value.lower() for value in values.get(b"content-encoding", [])} - {b"identity"}
    ):
        return None
    amounts = [amount_nano(value) for value in values.get(b"x-relay-max-cost", [])]
    forwarded = values.get(b"x-forwarded-for")
    keys = values.get(b"idempotency-key", [])
    wanted = values.get(b"x-relay-channel", [])
    named = [value for value in wanted if 0 < len(value) <= 64]
    traces = values.get(b"traceparent", [])
    origins = values.get(b"origin", [])
    return {
        "odd": False,
        "hosts": len(values.get(b"host", [])),
        "length": int(lengths[0]) if lengths else -1,
        "close": b"close" in connections,
        "secrets": headers.secrets((name, value) for name, value, _ in lines),
        "passed": b"".join(line for name, _, line in lines if name in headers.REQUEST_ALLOWED[dialect]),
        "max_cost_nano": amounts[-1] if amounts else -1,
        "bad_max_cost": -1 in amounts or len(amounts) > 1,
        "usage": any(value.lower() == b"include" for value in values.get(b"x-relay-usage", [])),
        "idempotency_key": keys[-1] if keys else None,
        "bad_idempotency_key": len(keys) > 1 or any(not 0 < len(key) <= 255 for key in keys),
        "encoded": False,
        "agent": values.get(b"user-agent", [None])[0],
        "forwarded_for": None if forwarded is None else b",".join(forwarded),
        "channel": named[0] if named else None,
        "bad_channel": len(wanted) > 1 or len(named) < len(wanted),
        "origin": (origins[0] if len(origins) == 1 else b"") if origins else None,
        "traceparent": (traces[0] if len(traces) == 1 and len(traces[0]) <= 128 else b"") if traces else None,
    }


def response_head(data: bytes) -> tuple[int, str, int, bool, bool, bytes | None, bytes, bool] | None:
    """(status, framing, length, close, event stream, content encoding, fields that pass, sandbox); None: garbage."""
    found = RESPONSE_HEAD.fullmatch(data)
    if not found:
        return None
    minor, status, lines = int(found[1]), int(found[2]), lines_of(found[3])
    names = [name for name, _, _ in lines]
    value = {name: text for name, text, _ in lines}
    coded, counted = names.count(b"transfer-encoding"), names.count(b"content-length")
    if (
        len(lines) > RESPONSE_FIELDS_MAX
        or too_long(lines)
        or coded + counted > 1
        or (counted and not LENGTH.fullmatch(value[b"content-length"]))
        or (coded and value[b"transfer-encoding"].lower() != b"chunked")
    ):
        return None
    connections = [text.lower() for name, text, _ in lines if name == b"connection"]
    named = {
        name.strip(b" \t") for text in connections if text not in (b"close", b"keep-alive") for name in text.split(b",")
    } - {b"content-type", b"content-encoding"}
    close = minor == 0 or any(text != b"keep-alive" for text in connections)
    if status < 200 or status in (204, 304):
        framing = "none"
    elif coded:
        framing = "chunked"
        if minor == 0:
            return None
    elif counted:
        framing = "length"
    else:
        framing, close = "close", True
    codings = [text.lower() for name, text, _ in lines if name == b"content-encoding"]
    codings = [text for text in codings if text not in (b"identity", b"")]
    passed = [
        line
        for name, _, line in lines
        if headers.response_passes(name) and name not in NOT_IN_ANSWERS and name not in named
    ]
    return (
        status,
        framing,
        int(value[b"content-length"]) if counted else 0,
        close,
        value.get(b"content-type", b"").lower().startswith(b"text/event-stream"),
        codings[-1] if codings else None,
        b"".join(passed),
        (b"content-security-policy", b"sandbox") in headers.guards((name, text) for name, text, _ in lines),
    )


def chunked(data: bytes) -> tuple[bytes, bytes] | None:
    """(body, what stands behind it) of a chunked body that is complete, else None."""
    body, at = b"", 0
    while line := CHUNK_SIZE.match(data, at):
        at = line.end()
        size = int(line[1], 16)
        if size == 0:
            trailers = TRAILERS.match(data, at)
            return (body, data[trailers.end() :]) if trailers else None
        body += data[at : at + size]
        if data[at + size : at + size + 2] != b"\r\n":
            return None
        at += size + 2
    return None


def siphash(key: bytes, data: bytes) -> bytes:
    """SipHash-2-4 with a result of 16 bytes, after the paper."""
    mask = 2**64 - 1
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def turn(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & mask

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) & mask
            v[2] = (v[2] + v[3]) & mask
            v[1] = turn(v[1], 13) ^ v[0]
            v[3] = turn(v[3], 16) ^ v[2]
            v[0] = turn(v[0], 32)
            v[2] = (v[2] + v[1]) & mask
            v[0] = (v[0] + v[3]) & mask
            v[1] = turn(v[1], 17) ^ v[2]
            v[3] = turn(v[3], 21) ^ v[0]
            v[2] = turn(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 255])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xEE
    rounds(4)
    low = v[0] ^ v[1] ^ v[2] ^ v[3]
    v[1] ^= 0xDD
    rounds(4)
    return low.to_bytes(8, "little") + (v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little")
