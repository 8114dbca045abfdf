import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.wire.endpoints import D_ANTHROPIC, D_GEMINI, D_OPENAI
from relay.wire.ratelimits import Bucket, duration, moment, render

DAY_NS = 20_000 * 86_400 * 10**9  # 2024-10-04T00:00:00Z


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (-5, b"0s"),
        (0, b"0s"),
        (1, b"1ms"),
        (120_000_000, b"120ms"),
        (999_000_001, b"1s"),
        (1_000_000_000, b"1s"),
        (1_500_000_000, b"1.5s"),
        (8_640_000_000, b"8.64s"),
        (59_999_000_001, b"1m0s"),
        (360_000_000_000, b"6m0s"),
        (3_600_000_000_000, b"1h0m0s"),
        (3_661_001_000_000, b"1h1m1.001s"),
    ],
)
def test_duration(ns, text):
    assert duration(ns) == text


@given(st.integers(0, 10**15))
def test_duration_is_never_too_short(ns):
    text = duration(ns).decode()
    total, number = 0.0, ""
    for letter in text.replace("ms", "u"):
        if letter.isdigit() or letter == ".":
            number += letter
        else:
            total += float(number) * {"h": 3600, "m": 60, "s": 1, "u": 0.001}[letter]
            number = ""
    assert ns / 1e9 - 1e-6 <= total <= ns / 1e9 + 0.0011


def test_moment_rounds_up():
    assert moment(DAY_NS) == b"2024-10-04T00:00:00Z"
    assert moment(DAY_NS + 1) == b"2024-10-04T00:00:01Z"


def test_openai_names():
    headers = dict(render(D_OPENAI, Bucket(20, 19, 3_000_000_000), Bucket(1000, -5, 60_000_000_000), DAY_NS))
    assert headers == {
        b"x-ratelimit-limit-requests": b"20",
        b"x-ratelimit-remaining-requests": b"19",
        b"x-ratelimit-reset-requests": b"3s",
        b"x-ratelimit-limit-tokens": b"1000",
        b"x-ratelimit-remaining-tokens": b"0",
        b"x-ratelimit-reset-tokens": b"1m0s",
    }


def test_anthropic_names():
    headers = dict(render(D_ANTHROPIC, Bucket(20, 19, 3_000_000_000), None, DAY_NS))
    assert headers == {
        b"anthropic-ratelimit-requests-limit": b"20",
        b"anthropic-ratelimit-requests-remaining": b"19",
        b"anthropic-ratelimit-requests-reset": b"2024-10-04T00:00:03Z",
    }


def test_no_limit_has_no_headers():
    assert render(D_GEMINI, None, Bucket(0, 0, 0), DAY_NS) == []
