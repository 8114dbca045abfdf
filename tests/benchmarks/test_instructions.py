"""Counts of instructions: what is read from callgrind's files, and what is said of two checkouts."""

import pytest

from benchmarks import instructions
from benchmarks.contenders import UnavailableError
from benchmarks.instructions import Figures
from benchmarks.relay_contender import check_built, check_optimised, checkout_before

# Timers fired 3 and 4 times, by two callers; the function's own lines have no calls to it.
PROFILE = """\
events: Ir
fn=(1) uv_run
12 40
cfn=(7) __pyx_f_6uvloop_4loop_11TimerHandle__run
calls=3 9
12 700
cfn=(8) something
calls=5 1
12 10
fn=(7)
9 100
cfn=(8)
calls=2 1
9 4
fn=(9) other
1 2
cfn=(7)
calls=4 9
1 900
totals: 12345
"""


def test_a_profile_is_read() -> None:
    assert instructions.read_profile(PROFILE) == (12345, 7)


def test_a_ratio_is_judged() -> None:
    before, now = Figures(100_000.0, 10_000.0, 30_000.0), Figures(102_000.0, 10_300.0, 30_000.0)
    assert instructions.verdicts({"relay": now}) == []
    found = {"relay": now, "relay-before": before}
    call, event = instructions.verdicts(found)
    assert call.endswith("1.020: met")
    assert event.endswith("1.030: missed")
    assert instructions.table(found)[-1] == ["relay x relay-before", "1.020", "", "1.030"]


def test_a_checkout_that_is_none_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_BEFORE", raising=False)
    with pytest.raises(UnavailableError, match="names no checkout"):
        checkout_before()
    monkeypatch.setenv("BENCH_BEFORE", str(tmp_path))
    with pytest.raises(UnavailableError, match="not a checkout"):
        checkout_before()
    (tmp_path / "relay").mkdir()
    (tmp_path / "relay" / "_fastpath.pyx").touch()
    with pytest.raises(UnavailableError, match="not built"):
        check_built(checkout_before())
    (tmp_path / "relay" / "_fastpath.x.so").write_bytes(b"...relay-build: not optimised...")
    with pytest.raises(UnavailableError, match="RELAY_BUILD=quick"):
        check_optimised(tmp_path)
