"""The queue of record: endpoints, messages, deliveries and attempts in one database.

Rules of this room:

* What an operation promises is true once it returns: it returns after its transaction has committed, and an operation
  that raises has changed nothing. Everything kept in memory is a cache of the tables and may vanish at any instruction.
* The service's own writes go through one writer thread, which commits what has queued up together. Reads have threads
  and connections of their own. No event loop is ever blocked, and asyncio, trio and plain threads are served alike.
* No clock is read here: every operation is told `now` in Unix seconds.
* A delivery is settled under the token of its latest lease, or not at all.
* What differs between databases is in one file each (`sqlite`), behind the protocol in `dialect`.

It does not know the sender, the guards or the dispatcher.
"""

from __future__ import annotations

from webhook_adapter.store.acceptance import enqueue
from webhook_adapter.store.errors import (
    DatabaseCorruptError,
    DatabaseTooNewError,
    DatabaseUnusableError,
    IdempotencyConflictError,
    SecretKeyError,
    StoreClosedError,
    StoreError,
    StoreUnavailableError,
    UnknownIdError,
)
from webhook_adapter.store.settling import Settlement
from webhook_adapter.store.store import Store
from webhook_adapter.store.values import Accepted, Claim, Claimed, NewMessage, Release, StoreStatistics

__all__ = [
    "Accepted",
    "Claim",
    "Claimed",
    "DatabaseCorruptError",
    "DatabaseTooNewError",
    "DatabaseUnusableError",
    "IdempotencyConflictError",
    "NewMessage",
    "Release",
    "SecretKeyError",
    "Settlement",
    "Store",
    "StoreClosedError",
    "StoreError",
    "StoreStatistics",
    "StoreUnavailableError",
    "UnknownIdError",
    "enqueue",
]
