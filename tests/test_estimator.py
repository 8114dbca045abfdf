"""The compiled token estimator against its plain Python twin, at any cut of the text."""

import itertools
import struct
import zlib
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay._fastpath import TOKEN_UNIT, Calibration, TokenTable, count_pieces, count_text
from relay.policy.tokenizers import FAMILIES
from tests.support.token_oracle import Automaton, CalibrationOracle

PACKED = {f: zlib.decompress((files("relay") / "data" / f"tokens-{f}.bin").read_bytes()) for f in FAMILIES}
TABLES = {family: TokenTable(packed) for family, packed in PACKED.items()}
ORACLES = {family: Automaton(packed) for family, packed in PACKED.items()}

# Text of many scripts and arbitrary bytes: what is not UTF-8 must count too, and the same way.
texts = st.one_of(
    st.text(max_size=300).map(lambda s: s.encode("utf-8", "surrogatepass")),
    st.text(alphabet='aZ9 \n{}":,._-/éшあ한漢😀', max_size=300).map(str.encode),
    st.binary(max_size=300),
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@settings(max_examples=60, deadline=None)
@given(data=texts, places=st.lists(st.integers(0, 10_000), max_size=20), family=st.sampled_from(FAMILIES))
def test_any_cut_gives_what_the_oracle_gives(data, places, family):
    pieces = cut(data, places)
    whole = count_text(TABLES[family], data)
    assert whole == ORACLES[family].count([data])
    assert count_pieces(TABLES[family], pieces) == whole
    assert count_pieces(TABLES[family], pieces, bytewise=True) == whole


@settings(max_examples=30, deadline=None)
@given(data=texts, more=st.binary(max_size=20), family=st.sampled_from(FAMILIES))
def test_more_text_never_counts_less(data, more, family):
    assert count_text(TABLES[family], data + more) >= count_text(TABLES[family], data)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_near_known_ones(family):
    """Only the order of magnitude; docs/tokens.md has the measured accuracy. Tokens of o200k are in the middle."""
    samples = {
        "The relay forwards requests and streams byte for byte, with keys, limits and exact credits.\n" * 8: 160,
        "def handler(request):\n    return json_response({'status': 'ok', 'items': len(request.items)})\n" * 8: 184,
        "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 8: 160,
        "人工智能模型可以帮助我们更快地完成工作。" * 10: 110,
    }
    for text, tokens in samples.items():
        assert 0.6 * tokens < count_text(TABLES[family], text.encode()) / TOKEN_UNIT < 2.6 * tokens


def test_nothing_counts_nothing():
    assert count_text(TABLES["o200k"], b"") == 0
    assert count_pieces(TABLES["o200k"], []) == 0


def packed(classes=1, states=1, class_of=bytes(256), targets=(0,), weights=(7,)):
    head = b"RTK1" + struct.pack("<HH", classes, states) + class_of
    return head + struct.pack(f"<{len(targets)}H", *targets) + struct.pack(f"<{len(weights)}H", *weights)


def test_smallest_table():
    assert count_text(TokenTable(packed()), b"abc") == 21


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"RTK1",
        b"RTK2" + packed()[4:],
        packed()[:-1],
        packed() + b"\0",
        packed(classes=0, targets=(), weights=()),
        packed(states=0, targets=(), weights=()),
        packed(class_of=bytes(255) + b"\1"),
        packed(targets=(1,)),
        packed(classes=65535, states=65535),
    ],
)
def test_broken_tables_are_refused(bad):
    with pytest.raises(ValueError, match="token table"):
        TokenTable(bad)


amounts = st.one_of(st.integers(-2, 50_000), st.integers(-(2**62), 2**62))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(amounts, amounts), max_size=30), amounts, st.integers(500, 3000))
def test_calibration_follows_the_oracle(answers, estimate, permille):
    calibration, oracle = Calibration(permille), CalibrationOracle(permille)
    for estimated, actual in answers:
        calibration.observe(estimated, actual)
        oracle.observe(estimated, actual)
        assert calibration.export() == (oracle.estimated, oracle.actual)
        restored = Calibration()
        restored.load(*calibration.export())
        assert restored.apply(estimate) == calibration.apply(estimate) == oracle.apply(estimate)


def test_calibration_begins_neutral_and_converges():
    calibration = Calibration()
    assert [calibration.apply(n) for n in (0, 1, 999)] == [0, 1, 999]
    for _ in range(200):
        calibration.observe(1000, 1400)
    assert 1390 <= calibration.apply(1000) <= 1400
    for _ in range(1000):
        calibration.observe(1000, 800)
    assert 800 <= calibration.apply(1000) <= 810


def test_calibration_is_clamped():
    high, low = Calibration(), Calibration()
    for _ in range(500):
        high.observe(1000, 1_000_000)
        low.observe(1000, 1)
    assert high.apply(1000) <= 3000
    assert low.apply(1000) >= 500


def test_one_odd_answer_moves_little():
    calibration = Calibration()
    for _ in range(100):
        calibration.observe(1000, 1000)
    calibration.observe(2**40, 3 * 2**40)
    assert calibration.apply(1000) < 1350


@pytest.mark.parametrize("sums", [(0, 1), (1, 0), (-1, 5), (1 << 40, 5), (5, 1 << 40)])
def test_impossible_sums_are_not_loaded(sums):
    calibration = Calibration()
    with pytest.raises(ValueError, match="calibration"):
        calibration.load(*sums)
    assert calibration.apply(10) == 10
