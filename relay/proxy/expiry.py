"""Credits whose time is up are taken away: from the live balances at once, then from the ledger.

What open calls hold stays until they have ended; a later pass takes what they did not use of it. A pass goes through
all accounts with lots that are due, in transactions of so many lots: other work of the writer comes in between.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack

from relay import units
from relay.proxy.keyring import Keyring
from relay.storage import Store

log = logging.getLogger("relay.credits")

LOTS_AT_ONCE = 250  # about ten milliseconds of the writer's time


async def expire_credits(store: Store, keyring: Keyring, now_ms: int) -> int:
    """One pass; returns what was taken, in nano-credits. Raises StoreError; what was not taken is spendable again."""
    expired_nano = 0
    after_id = 0
    while page := await store.due_lots(now_ms, after_account_id=after_id):
        after_id = page[-1].account_id
        due_nano: dict[int, int] = {}
        lots = 0
        for due in page:
            due_nano[due.account_id] = due.nano
            lots += due.lots
            if lots >= LOTS_AT_ONCE or due is page[-1]:
                expired_nano += await _expire(store, keyring, due_nano, now_ms)
                due_nano, lots = {}, 0
    if expired_nano:
        log.info("credits whose time was up: %s", units.format_credits(expired_nano))
    return expired_nano


async def _expire(store: Store, keyring: Keyring, due_nano: Mapping[int, int], now_ms: int) -> int:
    """The lots of these accounts; one of them may have more than fit a transaction."""
    left_nano = dict(due_nano)
    while True:
        written, lots = await _expire_some(store, keyring, left_nano, now_ms)
        for account_id, nano in written.items():
            left_nano[account_id] -= nano
        if lots < LOTS_AT_ONCE:
            return sum(due_nano.values()) - sum(left_nano.values())


async def _expire_some(
    store: Store, keyring: Keyring, due_nano: Mapping[int, int], now_ms: int
) -> tuple[Mapping[int, int], int]:
    """One transaction: what was taken of each account, and from how many lots."""
    written: Counter[int] = Counter()
    lots = 0
    with ExitStack() as moving:
        taken: dict[int, int] = {}
        for account_id, nano in due_nano.items():
            moving.enter_context(keyring.credit_moving(account_id))  # nobody loads a balance that changes in two places
            balance = keyring.balance(account_id)
            taken[account_id] = nano if balance is None else balance.take(nano, partial=True)
        try:
            if any(taken.values()):
                entries = await store.expire_lots(taken, now_ms, lots_max=LOTS_AT_ONCE)
                lots = len(entries)
                for entry in entries:
                    written[entry.account_id] -= entry.amount_nano
        finally:
            # A call may have drawn on a lot in the meantime, or the next transaction takes the rest.
            for account_id, nano in taken.items():
                balance = keyring.balance(account_id)
                if balance is not None and nano > written[account_id]:
                    balance.add(nano - written[account_id])
    return written, lots
