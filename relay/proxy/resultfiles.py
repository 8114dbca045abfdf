"""The results of a batch on their way to its owner, line by line, without words about the operator's account.

They come in the provider's own file, and stand in its lines: a request for which the operator had no money left failed
with the provider's error. All other lines pass byte for byte. What uploaded files hold is their owner's, and is not
looked at.
"""

from collections.abc import AsyncIterator, Callable
from typing import Final

from relay.proxy import decoders
from relay.proxy.upstreams import Reply, UpstreamError
from relay.storage.rows import ObjectRow
from relay.wire import joberrors
from relay.wire import jobs as wire_jobs

# Statements about bytes that may be others here. `Range` does not go upstream.
_OF_THE_BYTES: Final = frozenset(
    {"accept-ranges", "etag", "content-md5", "digest", "content-digest", "repr-digest", "content-encoding"}
)


def has_results(row: ObjectRow, endpoint: str) -> bool:
    """Whether an endpoint gives out lines that a batch has made. An uploaded file has a size here; one that a batch has
    made does not."""
    return endpoint == "message_batch_results" or (endpoint == "file_content" and not row.bytes and not row.requests)


def without_operator(reply: Reply, tell: Callable[[str], None]) -> AsyncIterator[bytes] | None:
    """The lines as they may pass; None where they come in a coding that cannot be read: they pass as they are.

    tell  called with `upstream_account`, once, where a line was about the operator's account
    """
    decode = decoders.decoder(reply.encoding) if reply.encoding is not None else None
    if reply.encoding is not None and decode is None:
        return None
    reply.fields = [(name, value) for name, value in reply.fields if name.lower() not in _OF_THE_BYTES]
    return _lines(reply, decode, tell)


async def _lines(reply: Reply, decode: decoders.Decoder | None, tell: Callable[[str], None]) -> AsyncIterator[bytes]:
    """Whole lines, at most what has come at a time. One longer than what a batch is charged by is cut: nobody could say
    what stands at its end. Raises UpstreamError."""
    pending = bytearray()
    told = False

    def passing(line: bytes) -> bytes:
        nonlocal told
        changed = joberrors.line_without_operator(line)
        if changed is None:
            return line
        if changed[1] == "upstream_account" and not told:
            told = True
            tell(changed[1])
        return changed[0] + (b"\r" if line.endswith(b"\r") else b"")

    async for data in reply.pieces():
        try:
            for part in decode(data) if decode is not None else (data,):
                searched = len(pending)
                pending += part
                if (end := pending.rfind(b"\n", searched) + 1) > 0:
                    yield b"\n".join([passing(line) for line in bytes(pending[: end - 1]).split(b"\n")]) + b"\n"
                    del pending[:end]
                if len(pending) > wire_jobs.LINE_BYTES_MAX:
                    raise UpstreamError("upstream_garbage")
        except decoders.BROKEN:
            raise UpstreamError("upstream_garbage") from None
    if pending:
        yield passing(bytes(pending))
