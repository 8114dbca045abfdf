import re
from pathlib import Path

import pytest

from relay.wire import endpoints
from relay.wire.endpoints import ENDPOINTS, SCOPES, scope_bit, scope_mask, scope_names

CONSTANTS = Path(endpoints.__file__).parents[1] / "fastpath" / "constants.pxi"


def test_numbers_are_those_of_the_hot_path():
    numbers = re.findall(r"^    ([DF]_[A-Z_]+) = (\d+)", CONSTANTS.read_text(), re.MULTILINE)
    assert len(numbers) == 18
    for name, number in numbers:
        assert getattr(endpoints, name) == int(number), name


def test_names_and_paths_are_unique():
    assert len({e.name for e in ENDPOINTS}) == len(ENDPOINTS)
    assert len({(e.method, e.path) for e in ENDPOINTS}) == len(ENDPOINTS)


def test_no_alias_is_a_path_of_its_own_or_of_two_endpoints():
    paths = {(e.method, e.path) for e in ENDPOINTS}
    aliases = [(e.method, alias) for e in ENDPOINTS for alias in e.aliases]
    assert not paths & set(aliases)
    assert len(aliases) == len(set(aliases))


def test_an_endpoint_that_is_forwarded_has_a_scope_and_a_path():
    for e in ENDPOINTS:
        assert bool(e.scope) == bool(e.upstream_path), e.name
        assert e.scope in (*SCOPES, ""), e.name
        assert not (e.priced and not e.needs_model), e.name


def test_scopes_round_trip():
    for e in ENDPOINTS:
        assert scope_names(scope_bit(e)) == ((e.scope,) if e.scope else ())
    assert scope_names(scope_mask(list(SCOPES))) == SCOPES
    with pytest.raises(ValueError, match="one of chat, embeddings"):
        scope_mask(["everything"])


def test_stored_masks_keep_their_meaning():
    """Bits are in the database: this list may grow at its end and never change otherwise."""
    known = ("chat", "embeddings", "images", "audio", "videos", "moderations", "rerank", "files", "batches", "realtime")
    assert SCOPES[: len(known)] == known
