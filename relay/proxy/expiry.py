"""Credits whose time is up are taken away: from the live balance at once, then from the ledger.

What open calls hold stays until they have ended; a later pass takes what they did not use of it.
"""

import logging

from relay import units
from relay.proxy.keyring import Keyring
from relay.storage import Store

log = logging.getLogger("relay.credits")


async def expire_credits(store: Store, keyring: Keyring, now_ms: int) -> int:
    """One pass; returns what was taken, in nano-credits. Raises StoreError; what was not taken is spendable again."""
    expired_nano = 0
    for account_id, due_nano in (await store.due_lots(now_ms)).items():
        # Nobody loads this balance while it is changed in two places.
        with keyring.credit_moving(account_id):
            balance = keyring.balance(account_id)
            taken_nano = due_nano if balance is None else balance.take(due_nano, partial=True)
            written_nano = 0
            try:
                if taken_nano:
                    entries = await store.expire_lots(account_id, now_ms, taken_nano)
                    written_nano = -sum(entry.amount_nano for entry in entries)
            finally:
                # A call may have drawn on the lot in the meantime.
                if balance is not None and taken_nano > written_nano:
                    balance.add(taken_nano - written_nano)
            expired_nano += written_nano
    if expired_nano:
        log.info("credits whose time was up: %s", units.format_credits(expired_nano))
    return expired_nano
