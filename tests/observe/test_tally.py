"""The compiled tally of call records against its plain oracle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay._fastpath import TALLY_BOUNDS_US, Tally
from tests.support import tally
from tests.support.stored import call_record

times = st.one_of(
    st.integers(0, 2**40), st.sampled_from([bound + step for bound in TALLY_BOUNDS_US for step in (-1, 0, 1)])
)
numbers = st.sampled_from([0, 0, 1, 7, 2**40])
records = st.builds(
    call_record,
    st.integers(0, 50),
    path=st.sampled_from(["/v1/chat/completions", "/v1/messages"]),
    model=st.sampled_from([None, "gpt-4o", "claude"]),
    channel=st.sampled_from([None, "main", "other"]),
    attempts=st.integers(0, 3),
    status=st.sampled_from([200, 429, 499]),
    error_code=st.sampled_from([None, "client_gone"]),
    input_tokens=numbers,
    output_tokens=numbers,
    cache_read_tokens=numbers,
    cache_write_tokens=numbers,
    images=numbers,
    web_searches=numbers,
    usage_source=st.sampled_from(["upstream", "estimated", "none"]),
    cost_nano=st.sampled_from([0, 5, 10**16]),
    write_off_nano=st.sampled_from([0, 5]),
    latency_us=times,
    first_byte_us=st.one_of(st.none(), times),
)


@given(st.lists(st.lists(records, max_size=8), max_size=4))
def test_the_tally_equals_its_oracle(batches):
    compiled, plain = Tally(), tally.Tally()
    for batch in batches:
        compiled.add(list(batch))
        plain.add(batch)
    assert compiled.ended() == plain.ended()
    assert compiled.by_route() == plain.by_route()


@pytest.mark.parametrize("field", ["model", "status"])
def test_combinations_are_bounded_and_nothing_is_lost(field):
    """A name that changes without end: the rest is counted together as "other"."""
    compiled, plain = Tally(), tally.Tally()
    batch = [call_record(1, **{field: number if field == "status" else f"m{number}"}) for number in range(12_000)]
    for count in (compiled, plain):
        count.add(batch)
        count.add(batch)
    assert compiled.ended() == plain.ended()
    assert compiled.by_route() == plain.by_route()
    ended = dict(compiled.ended())
    assert len(ended) == tally.SERIES_MAX + 1
    assert ended["other", "other", "other", 0, "other"] == 2 * (12_000 - tally.SERIES_MAX)
    assert sum(ended.values()) == 24_000
    assert len(compiled.by_route()) == (1 + 1 if field == "status" else tally.ROUTES_MAX + 1)
    assert sum(row[1][7] for row in compiled.by_route()) == 24_000 * 1000


def test_sums_stop_at_the_largest_number():
    compiled = Tally()
    for _ in range(20):
        compiled.add([call_record(1, cost_nano=2**60, latency_us=2**60)])
    [row] = compiled.by_route()
    assert row[1][7] == 2**63 - 1
    assert row[3][1] == 2**63 - 1


def test_a_record_with_a_value_that_is_no_number_is_refused():
    with pytest.raises(TypeError):
        Tally().add([call_record(1, cost_nano="1")])
    with pytest.raises(TypeError):
        Tally().add([list(call_record(1))])
