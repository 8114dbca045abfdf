"""The hold of a job against its oracle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay._fastpath import Balance, JobHold, Scope
from tests.support.money_oracle import DAY, BalanceOracle, JobOracle, ScopeOracle, month_index, scope_state

AMOUNTS = st.integers(0, 10**12)
FIRST_DAY = 20_000


@given(
    start=AMOUNTS,
    jobs=st.lists(
        st.tuples(
            AMOUNTS, st.sampled_from(["settle", "release", "open"]), AMOUNTS, st.none() | AMOUNTS, st.integers(-40, 40)
        ),
        max_size=8,
    ),
)
def test_jobs_are_their_oracle(start: int, jobs: list[tuple[int, str, int, int | None, int]]):
    balance, balance_oracle = Balance(1, start), BalanceOracle(start)
    scope = Scope("account", 1)
    scope.load_spend(FIRST_DAY, 0, month_index(FIRST_DAY), 0)
    scope_oracle = ScopeOracle("account", day=FIRST_DAY, month=month_index(FIRST_DAY))
    wall = FIRST_DAY * DAY

    def agree() -> None:
        assert (balance.available_nano, balance.held_nano) == (balance_oracle.available, balance_oracle.held)
        assert balance.open_holds == balance_oracle.open_holds
        assert balance.available_nano >= 0
        assert scope.state(0, wall) == scope_state(scope_oracle, 0, wall)

    begun = []
    for amount, end, cost, most, days in jobs:
        covered = amount <= balance_oracle.available
        if not covered:
            with pytest.raises(ValueError, match="cover"):
                JobHold(balance, (scope,), amount)
            agree()
        hold = JobHold(balance, (scope,), amount, partial=not covered)
        oracle = JobOracle(balance_oracle, scope_oracle, min(amount, balance_oracle.available))
        assert (hold.hold_nano, hold.state) == (oracle.hold, 1)
        agree()
        begun.append((hold, oracle, end, cost, most, days))
    for hold, oracle, end, cost, most, days in begun:
        wall = (FIRST_DAY + days) * DAY
        if end == "open":
            continue
        if end == "settle":
            assert hold.settle(cost, -1 if most is None else most, wall) == oracle.settle(cost, most, wall)
        else:
            hold.release()
            oracle.release()
        agree()
        for again in (hold.release, lambda hold=hold: hold.settle(1, -1, 0)):
            with pytest.raises(RuntimeError):
                again()
    agree()
