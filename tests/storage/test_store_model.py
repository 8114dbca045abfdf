"""The store under random operations, judged by a dictionary."""

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from relay.records import MS_PER_DAY
from relay.storage import InsufficientCredit, Store
from tests.support.stored import NOON_MS, assert_books_agree, call_record, customer

ACCOUNTS = (1, 2)
accounts = st.sampled_from(ACCOUNTS)
amounts = st.integers(1, 400)


class StoreMachine(RuleBasedStateMachine):
    """Credit, calls, refunds, expiry, retention, recovery and restarts in any order; balances as in the dictionary."""

    @initialize()
    def start(self):
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name)
        self.loop = asyncio.new_event_loop()
        self.balances = dict.fromkeys(ACCOUNTS, 0)
        self.calls = {}
        self.deleted = set()
        self.number = 0
        self.open()
        for account_id in ACCOUNTS:
            self.run(customer(self.store, str(account_id)))

    def run(self, job):
        return self.loop.run_until_complete(job)

    def open(self):
        self.store = self.run(Store.open(self.path, now_ms=lambda: NOON_MS, commit_records_max=4))

    @rule(
        account_id=accounts,
        amount=amounts,
        kind=st.sampled_from(["purchased", "trial", "subscription"]),
        days=st.integers(0, 5),
    )
    def add(self, account_id, amount, kind, days):
        expires_ms = NOON_MS + days * MS_PER_DAY if days else 0
        self.run(self.store.add_credit(account_id, amount, kind=kind, expires_ms=expires_ms))
        self.balances[account_id] += amount

    @rule(account_id=accounts, costs=st.lists(amounts, min_size=1, max_size=9), days=st.integers(0, 2))
    def call(self, account_id, costs, days):
        records = []
        for cost in costs:
            self.number += 1
            write_off = max(cost - self.balances[account_id], 0)  # as the hot path does
            self.balances[account_id] -= cost - write_off
            record = call_record(
                self.number,
                time_ms=NOON_MS + days * MS_PER_DAY,
                account_id=account_id,
                key_id=account_id,
                cost_nano=cost,
                write_off_nano=write_off,
            )
            self.calls[record[0]] = record
            records.append(record)
        self.store.append_calls(records)

    @rule(data=st.data())
    def again(self, data):
        kept = [record for call_id, record in self.calls.items() if call_id not in self.deleted]
        if kept:
            records = data.draw(st.lists(st.sampled_from(kept), max_size=6))
            assert self.run(self.store.settle_recovered(records)) == 0

    @rule(account_id=accounts, amount=amounts)
    def take(self, account_id, amount):
        available = self.balances[account_id]
        taking = self.store.take_credit(account_id, amount, kind="adjustment", reason="test")
        if amount > available:
            with pytest.raises(InsufficientCredit) as error:
                self.run(taking)
            assert error.value.available_nano == available
        else:
            self.run(taking)
            self.balances[account_id] -= amount

    @rule(days=st.integers(0, 6), held=st.integers(0, 300))
    def expire(self, days, held):
        due_ms = NOON_MS + days * MS_PER_DAY
        due = {row.account_id: row.nano for row in self.run(self.store.due_lots(due_ms))}
        for account_id, due_nano in due.items():
            spare = max(self.balances[account_id] - (held if account_id == 1 else 0), 0)
            entries = self.run(self.store.expire_lots({account_id: min(due_nano, spare)}, due_ms))
            assert -sum(entry.amount_nano for entry in entries) == min(due_nano, spare)
            self.balances[account_id] -= min(due_nano, spare)

    @rule(days=st.integers(0, 3))
    def retain(self, days):
        self.run(self.store.flush())
        before_ms = NOON_MS + days * MS_PER_DAY
        old = {call_id for call_id in self.calls if call_id >> 20 < before_ms} - self.deleted
        assert self.run(self.store.delete_calls_before(before_ms, step=3)) == len(old)
        self.deleted |= old

    @rule()
    def restart(self):
        self.run(self.store.close())
        self.open()

    @invariant()
    def balances_agree(self):
        for account_id in ACCOUNTS:
            assert self.run(self.store.balance(account_id)) == self.balances[account_id]
            assert self.run(self.store.find_credential(str(account_id))).balance_nano == self.balances[account_id]

    def teardown(self):
        if not hasattr(self, "store"):
            return
        assert self.run(self.store.verify()) == []
        assert self.store.shortfall_nano == 0
        self.run(self.store.close())
        books = assert_books_agree(self.path)
        assert {account_id: books.get(account_id, 0) for account_id in ACCOUNTS} == self.balances
        self.loop.close()
        self.directory.cleanup()


TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(
    max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
