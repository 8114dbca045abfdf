"""Just enough HTTP/1.1 for raw peers in tests. Reads leniently; writes exactly what it is told to."""

from dataclasses import dataclass, field


@dataclass
class Message:
    """One message as found in a byte stream."""

    start: str  # request or status line
    headers: list[tuple[str, str]]  # names in lower case
    body: bytes  # without chunk framing
    raw: bytes  # the whole message as it stood
    complete: bool  # False: the stream ended or stopped inside it
    chunks: list[bytes] = field(default_factory=list)  # as they were framed; empty without chunked framing

    @property
    def status(self) -> int:
        return int(self.start.split(" ", 2)[1])

    @property
    def method(self) -> str:
        return self.start.split(" ", 1)[0]

    @property
    def target(self) -> str:
        return self.start.split(" ", 2)[1]

    def header(self, name: str) -> str | None:
        """The first header of this name."""
        return next((value for key, value in self.headers if key == name.lower()), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name.lower()]


def parse(data: bytes, *, ended: bool = False, request: bool = False, head_only: bool = False) -> Message | None:
    """The message that `data` begins with; None while its head is not complete.

    `ended`: nothing follows, so a body without framing is complete. `head_only`: an answer to HEAD.
    """
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    start, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    message = Message(start, headers, b"", b"", False)
    begin = len(head) + 4
    status = 0 if request else message.status
    if head_only or status in (204, 304) or 100 <= status < 200:
        message.complete = True
    elif "chunked" in (message.header("transfer-encoding") or ""):
        used = _chunked(rest, message)
        message.raw = data[: begin + used]
        return message
    elif (length := message.header("content-length")) is not None:
        message.body = rest[: int(length)]
        message.complete = len(message.body) == int(length)
    elif not request:
        message.body = rest
        message.complete = ended
    else:
        message.complete = True
    message.raw = data[: begin + len(message.body)]
    return message


def _chunked(rest: bytes, message: Message) -> int:
    """Reads chunks into the message. Returns the bytes used."""
    at = 0
    while True:
        line_end = rest.find(b"\r\n", at)
        if line_end < 0:
            break
        size = int(rest[at:line_end].split(b";")[0], 16)
        begin = line_end + 2
        if size == 0:
            trailer_end = rest.find(b"\r\n\r\n", line_end)
            if trailer_end >= 0:
                message.complete = True
                at = trailer_end + 4
            break
        part = rest[begin : begin + size]
        message.body += part
        if len(rest) < begin + size + 2:
            at = len(rest)
            break
        message.chunks.append(part)
        at = begin + size + 2
    return at


def request_bytes(method: str, target: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> bytes:
    """A request with Host and, if there is a body, Content-Length, unless `headers` say otherwise."""
    given = dict(headers or {})
    names = {name.lower() for name in given}
    lines = [f"{method} {target} HTTP/1.1"]
    if "host" not in names:
        lines.append("Host: test")
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in given.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def response_bytes(
    body: bytes = b"", status: int = 200, headers: dict[str, str] | None = None, reason: str = "OK", framed: bool = True
) -> bytes:
    """An answer; `framed` adds Content-Length."""
    lines = [f"HTTP/1.1 {status} {reason}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if framed:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunk_bytes(*parts: bytes, end: bool = False) -> bytes:
    """Parts as HTTP chunks; `end` adds the last, empty one."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + (b"0\r\n\r\n" if end else b"")


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
