"""What the relay remembers: accounts, keys, the ledger, call records, events. SQL lives here and nowhere else."""

from relay.storage.errors import (
    Conflict,
    InsufficientCredit,
    NotFound,
    StoreError,
    StoreFailed,
    StoreLocked,
    StoreUnavailable,
    StoreUnusable,
)
from relay.storage.store import Store

__all__ = [
    "Conflict",
    "InsufficientCredit",
    "NotFound",
    "Store",
    "StoreError",
    "StoreFailed",
    "StoreLocked",
    "StoreUnavailable",
    "StoreUnusable",
]
