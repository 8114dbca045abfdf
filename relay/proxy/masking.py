"""Frames of WebSocket clients have to be masked (RFC 6455 5.1), which aiohttp's reader does not look at."""

from typing import Any, Final

_MASKED: Final = 0x80
_MASK_BYTES: Final = 4
_EXTENDED: Final = {126: 2, 127: 8}  # bytes of a length that stands after the first two
_REFUSED: Final = b"\x70\x80"  # the start of a frame with all reserved bits set: aiohttp's reader fails with 1002


class MaskedFrames:
    """In front of aiohttp's reader: one frame that is not masked ends the session with 1002.

    The compiled reader lets nobody reach its queue, so that it has to find a fault itself. It is given the start of a
    frame that no extension allows in place of the one at fault; the first byte of each waits here for the second.
    """

    def __init__(self, reader: object) -> None:
        self._reader: Any = reader
        self._head = bytearray()  # of the frame under way, as far as it has come
        self._left = 0  # of its payload

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        if len(self._head) == 1:  # it has waited
            data = bytes(self._head) + data
            self._head.clear()
        good = self._good(data)
        passed = data[:good] if good >= 0 else data
        if good >= 0 and len(data) - good > 1:
            passed += _REFUSED
        end: tuple[bool, bytes] = self._reader.feed_data(passed)
        return end

    def feed_eof(self) -> None:
        self._reader.feed_eof()

    def _good(self, data: bytes) -> int:
        """Where the frame starts that is not masked, or whose second byte is not there; -1: there is none."""
        at = 0
        while at < len(data):
            step = min(self._left, len(data) - at)
            at, self._left = at + step, self._left - step
            if at == len(data):
                break
            self._head.append(data[at])
            at += 1
            if len(self._head) == 1:
                if at == len(data):
                    return at - 1
                continue
            if len(self._head) == 2 and not self._head[1] & _MASKED:
                return at - 2
            size = self._head[1] & ~_MASKED
            extended = _EXTENDED.get(size, 0)
            if len(self._head) == 2 + extended + _MASK_BYTES:
                self._left = int.from_bytes(self._head[2 : 2 + extended]) if extended else size
                self._head.clear()
        return -1
