"""Fairness between keys, exactly, in bounded memory: none may take more than its quota of a sliding window.

Theory of operation. At most `limit` admitted events are in the window, whatever comes; so at most `limit` keys have
anything in it, and exact counts of all of them need no more than that many entries: no sketch, no estimate, and no
key that is evicted while it matters. Admissions lie in one ring, oldest first. Each entry knows the next newer one of
its key, and each key the oldest of its `quota` newest entries, its gate: while the gate lies in [now - window, now],
the key is over its quota.

Every admission retires up to two entries that have left the window; a key goes with its last entry. So each step is
O(1), also after a long silence; an entry is gone after as many admissions as were made while it was in the window; and
what is evicted could not have refused anything (SG5). A key's verdict depends on its own entries alone (SG4).

Instants must not go back, and the owner admits at most `limit` events in any closed interval of `window_ns`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["KeyShares"]


class _Share:
    """What the ring holds of one key: how many entries, and the places of its gate and of its newest one."""

    __slots__ = ("count", "gate", "key", "newest")

    def __init__(self, key: Hashable, place: int) -> None:
        self.key = key
        self.count = 0
        self.gate = place
        self.newest = place


class KeyShares:
    """At most `quota` admissions of any one key in any closed interval of `window_ns`; not locked."""

    __slots__ = ("_instants", "_newer", "_oldest", "_owners", "_shares", "_used", "limit", "quota", "window_ns")

    def __init__(self, window_ns: int, limit: int, quota: int) -> None:
        self.window_ns: int = window_ns
        self.limit: int = limit
        self.quota: int = quota
        # Three columns of one ring: when an event was admitted, whose it was, where that key's next newer one is.
        self._instants = [0] * limit
        self._owners: list[_Share | None] = [None] * limit
        self._newer = [0] * limit
        self._oldest = 0
        self._used = 0
        self._shares: dict[Hashable, _Share] = {}

    def __len__(self) -> int:
        """Return the number of keys that are remembered."""
        return len(self._shares)

    def ready_at(self, key: Hashable) -> int | None:
        """Return the instant from which on the key is below its quota; None if it is at any time."""
        share = self._shares.get(key)
        if share is None or share.count < self.quota:
            return None
        return self._instants[share.gate] + self.window_ns + 1

    def take(self, key: Hashable, now_ns: int) -> None:
        """Note the admission of an event of this key, which is below its quota now."""
        self._retire(now_ns)
        self._retire(now_ns)
        place = (self._oldest + self._used) % self.limit
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = _Share(key, place)
        self._instants[place] = now_ns
        self._owners[place] = share
        self._used += 1
        self._newer[share.newest] = place
        share.newest = place
        share.count += 1
        if share.count > self.quota:
            share.gate = self._newer[share.gate]

    def _retire(self, now_ns: int) -> None:
        """Forget the oldest entry if it has left the window, and its key if that has no other."""
        place = self._oldest
        share = self._owners[place]
        if share is None or now_ns - self._instants[place] <= self.window_ns:
            return
        self._owners[place] = None
        self._oldest = (place + 1) % self.limit
        self._used -= 1
        share.count -= 1
        if not share.count:
            del self._shares[share.key]
        elif share.gate == place:
            share.gate = self._newer[place]
