"""units: text and numbers are the same thing, exactly, in both directions."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import units


@given(st.integers(-units.AMOUNT_NANO_MAX, units.AMOUNT_NANO_MAX))
def test_credits_round_trip(nano: int) -> None:
    text = units.format_credits(nano)
    assert units.parse_credits(text, signed=True) == nano
    assert Fraction(text) == Fraction(nano, units.NANO_PER_CREDIT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "+1",
        "-1",
        "1.",
        ".5",
        "1e3",
        "1,5",
        " 1",
        "1 ",
        "1_000",
        "0.0000000001",
        "nan",
        "inf",
        "١",
        "1\n",
        "9999999999",
    ],
)
def test_credits_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        units.parse_credits(text)


def test_exact_nano() -> None:
    assert units.exact_nano("2.5") == 2_500_000_000
    assert units.exact_nano(3) == 3_000_000_000
    assert units.exact_nano(Decimal("0.1")) == 100_000_000
    assert units.exact_nano(Decimal("1E-9")) == 1
    assert units.exact_nano("1e-9") == 1
    assert units.exact_nano(Decimal("1E+3")) == 10**12
    assert units.exact_nano("0.100000000000") == 100_000_000


@pytest.mark.parametrize(
    "value",
    [
        "-1",
        "1e-10",
        "1e99",
        "x",
        "",
        Decimal("NaN"),
        Decimal("Infinity"),
        Decimal("-0.1"),
        -1,
        "9007200",
        Decimal("1E+999999"),
    ],
)
def test_exact_nano_refused(value: str | int | Decimal) -> None:
    with pytest.raises(ValueError, match="expected"):
        units.exact_nano(value)


@pytest.mark.parametrize("value", [1.5, True, None])
def test_exact_nano_takes_no_float(value: object) -> None:
    with pytest.raises(TypeError):
        units.exact_nano(value)  # type: ignore[arg-type]


@given(st.integers(0, units.ID_MAX))
def test_call_ids(number: int) -> None:
    text = units.call_text(number)
    assert len(text) == 18
    assert units.parse_call(text) == number


@given(st.integers(0, units.ID_MAX), st.integers(0, units.ID_MAX))
def test_call_ids_sort_as_numbers(a: int, b: int) -> None:
    assert (units.call_text(a) < units.call_text(b)) == (a < b)


@pytest.mark.parametrize(
    "text", ["", "call_", "call_0", "call_" + "z" * 13, "call_000000000000U", "call_000000000000l", "acct_1"]
)
def test_call_id_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        units.parse_call(text)


def test_call_id_time() -> None:
    assert units.call_unix_ms(units.call_id(1_770_000_000_123, 2**20 + 5)) == 1_770_000_000_123


@pytest.mark.parametrize("kind", ["account", "organisation", "key", "entry", "lot"])
def test_ids(kind: str) -> None:
    text = getattr(units, f"{kind}_text")(17)
    parse = getattr(units, f"parse_{kind}")
    assert parse(text) == 17
    prefix = text.split("_")[0]
    for bad in (
        "",
        "17",
        f"{prefix}_",
        f"{prefix}_0",
        f"{prefix}_017",
        f"{prefix}_-1",
        f"{prefix}_{2**63}",
        "x_17",
        f"{text} ",
        f"{prefix}_١",
    ):
        with pytest.raises(ValueError, match="expected an id"):
            parse(bad)


@given(st.integers(0, 60_000))
def test_calendar(day: int) -> None:
    month = units.month_of_day(day)
    assert units.first_day_of_month(month) <= day < units.first_day_of_month(month + 1)
    assert units.day_of(day * 86_400 + 86_399) == day
    assert units.parse_time(units.day_text(day)) == day * 86_400_000


@given(st.integers(0, 4_000_000_000_000))
def test_times(unix_ms: int) -> None:
    assert units.parse_time(units.time_text(unix_ms)) == unix_ms


def test_time_with_offset() -> None:
    assert units.parse_time("1970-01-01T01:00:00+01:00") == 0
    assert units.parse_time("1970-01-01T00:00:01") == 1000
    with pytest.raises(ValueError, match="expected a date"):
        units.parse_time("yesterday")
