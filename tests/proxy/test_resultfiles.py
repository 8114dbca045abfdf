"""Lines of a batch's results that are too long to be judged."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from relay.proxy.resultfiles import without_operator
from relay.proxy.upstreams import UpstreamError
from relay.wire import jobs


class Pieces:
    """As much of a reply as is read there."""

    encoding: bytes | None = None

    def __init__(self, *data: bytes) -> None:
        self.fields: list[tuple[str, str]] = []
        self._data = data

    async def pieces(self) -> AsyncIterator[bytes]:
        for data in self._data:
            yield data


async def test_a_line_that_is_too_long_is_cut_before_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "LINE_BYTES_MAX", 10)
    reply: Any = Pieces(b"a\nb\nsix", b"-seven-eight", b"\nrest")
    passing = without_operator(reply, lambda _: None)
    assert passing is not None
    assert await anext(passing) == b"a\nb\n"
    with pytest.raises(UpstreamError) as caught:
        await anext(passing)
    assert caught.value.code == "upstream_garbage"
