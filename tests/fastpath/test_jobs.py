"""The hold of a job against a plain model of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay._fastpath import Balance, JobHold, Scope

DAY_NS = 86_400 * 10**9
AMOUNTS = st.integers(0, 10**12)


def scope() -> Scope:
    made = Scope("account", 1)
    made.load_spend(20_000, 0, 656, 0)
    return made


@given(
    AMOUNTS,
    st.lists(
        st.tuples(AMOUNTS, st.sampled_from(["settle", "release", "open"]), AMOUNTS, st.none() | AMOUNTS), max_size=8
    ),
)
def test_against_a_model(start: int, jobs: list[tuple[int, str, int, int | None]]):
    balance, limits = Balance(1, start), scope()
    available, held, spent = start, 0, 0
    holds: list[tuple[JobHold, int, str, int, int | None]] = []
    for amount, end, cost, most in jobs:
        if amount > available:
            with pytest.raises(ValueError, match="cover"):
                JobHold(balance, (limits,), amount)
            hold = JobHold(balance, (limits,), amount, partial=True)
            amount = available
        else:
            hold = JobHold(balance, (limits,), amount)
        available, held = available - amount, held + amount
        assert (hold.hold_nano, hold.state) == (amount, 1)
        holds.append((hold, amount, end, cost, most))
        assert (balance.available_nano, balance.held_nano, limits.reserved_nano) == (available, held, held)
        assert balance.open_holds == len(holds)
    for hold, amount, end, cost, most in holds:
        if end == "open":
            continue
        held -= amount
        available += amount
        if end == "settle":
            taken = min(cost, available, cost if most is None else most)
            assert hold.settle(cost, -1 if most is None else most, 20_000 * DAY_NS) == cost - taken
            available -= taken
            spent += cost
        else:
            hold.release()
        assert (balance.available_nano, balance.held_nano, limits.reserved_nano) == (available, held, held)
        assert limits.spent_day_nano == spent
        for again in (hold.release, lambda hold=hold: hold.settle(1, -1, 0)):
            with pytest.raises(RuntimeError):
                again()
    assert balance.open_holds == sum(end == "open" for _, _, end, _, _ in holds)
    assert balance.available_nano >= 0
