"""The compiled fold against its plain oracle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay._fastpath import fold_calls
from relay.records import CALL_RECORD_FIELDS, MS_PER_DAY
from tests.support import fold
from tests.support.stored import NOON_MS, call_record

numbers = st.sampled_from([0, 0, 0, 1, 7, 2**39, 2**41, 2**41 + 1, -1])
records = st.builds(
    call_record,
    st.integers(0, 50),
    time_ms=st.sampled_from([NOON_MS, NOON_MS + MS_PER_DAY, 0]),
    account_id=st.sampled_from([None, 1, 1, 2, 3]),
    key_id=st.sampled_from([None, 1, 2]),
    organisation_id=st.sampled_from([None, 4]),
    model=st.sampled_from([None, "", "gpt-4o", "claude"]),
    error_code=st.sampled_from([None, None, "client_gone"]),
    input_tokens=numbers,
    images=numbers,
    web_searches=st.sampled_from([0, 0, 3]),
    cost_nano=st.sampled_from([0, 5, 1000, 10**16, 10**16 + 1]),
    write_off_nano=st.sampled_from([0, 0, 5, 10**17]),
    source_ip=st.sampled_from([None, "::1"]),
)
more = st.sampled_from([(), (), ((1, 0, 0, 0, 0, 0, None, 0),), ((0, 0, 0, 0, 0, 0, b"k" * 32, 5),)])


@given(
    st.lists(st.builds(lambda record, field: (*record, *field), records, more), max_size=12),
    st.dictionaries(st.integers(1, 3), st.integers(20_000, 21_000)),
)
def test_the_fold_equals_its_oracle(group, used):
    def run(function):
        shapes, last_used = {}, dict(used)
        try:
            result = function(list(group), shapes, lambda record: len(shapes) + 100, last_used)
        except ValueError:
            return "refused"
        return result, shapes, last_used

    compiled, plain = run(fold_calls), run(fold.fold_calls)
    if "refused" in (compiled, plain):
        assert compiled == plain
        return
    assert compiled[1:] == plain[1:]
    rows, common, full, accounts, spend, write_offs, last_used, kept = compiled[0]
    assert (rows, common, full, accounts, write_offs, last_used, kept) == (*plain[0][:4], *plain[0][5:])
    # Spend of further days comes behind that of first days.
    assert sorted(zip(*[iter(spend)] * 3, strict=True)) == sorted(zip(*[iter(plain[0][4])] * 3, strict=True))


@pytest.mark.parametrize("field", ["id", "input_tokens", "web_searches", "cost_nano", "write_off_nano"])
@pytest.mark.parametrize("value", [None, "1", -1, 2**63, 2**70, b"1"])
def test_a_value_that_is_no_number_in_range_is_refused(field, value):
    record = list(call_record(1))
    record[CALL_RECORD_FIELDS.index(field)] = value
    if (field, value) == ("write_off_nano", 2**63):
        return
    with pytest.raises((TypeError, ValueError, OverflowError)):
        fold_calls([tuple(record)], {}, lambda record: 1, {})


def test_a_record_of_another_length_is_refused():
    with pytest.raises(ValueError, match="28"):
        fold_calls([call_record(1)[:-1]], {}, lambda record: 1, {})
    with pytest.raises(TypeError):
        fold_calls([list(call_record(1))], {}, lambda record: 1, {})
