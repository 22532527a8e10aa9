"""What waits for room in a window, one entry a key: who is next, and whom a newcomer may overtake.

Theory of operation. A key is *ripe* once it is below its quota. Ripe entries stand in one queue for each level of
priority, first in, first out; the rest lie in a heap by the instant at which they will be ripe, which is known when
they are held. The next to go is the head of the highest level that has one. A newcomer overtakes nothing that is ripe
and of its own level or higher; but what is not ripe waits for its own key alone, and holds up nobody else (SG4).

There are at most `max_keys` entries; each merge is O(1), everything else O(log max_keys). Moving an entry to another
queue leaves nothing behind. Nothing is counted here but how many events an entry stands for.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Entry", "Holding"]

E = TypeVar("E")
K = TypeVar("K", bound="Hashable")


class Entry(Generic[K, E]):
    """One key's event, which stands for the `count` events that were merged into it."""

    __slots__ = ("count", "event", "key", "level", "ripe")

    def __init__(self, key: K, event: E, level: int) -> None:
        self.key: K = key
        self.event: E = event
        self.count: int = 1
        self.level: int = level
        self.ripe: bool = False


class Holding(Generic[K, E]):
    """At most `max_keys` entries, in the order in which they go; not locked."""

    __slots__ = ("_entries", "_order", "_queues", "_unripe", "max_keys")

    def __init__(self, levels: int, max_keys: int) -> None:
        self.max_keys: int = max_keys
        self._entries: dict[K, Entry[K, E]] = {}
        self._queues: tuple[OrderedDict[K, Entry[K, E]], ...] = tuple(OrderedDict() for _ in range(levels))
        self._unripe: list[tuple[int, int, Entry[K, E]]] = []
        # Entries that are ripe at the same instant go in the order in which they came.
        self._order = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> Entry[K, E] | None:
        """Return the entry of this key, if there is one."""
        return self._entries.get(key)

    @property
    def full(self) -> bool:
        """Whether there is no room for another key."""
        return len(self._entries) >= self.max_keys

    def hold(self, key: K, event: E, level: int, ripe_at: int | None) -> None:
        """Hold an event of a key that has no entry; None: it is ripe."""
        entry = self._entries[key] = Entry(key, event, level)
        if ripe_at is None:
            self._queue(entry)
        else:
            self._lay(entry, ripe_at)

    def merge(self, entry: Entry[K, E], event: E, level: int) -> None:
        """Let `event` take the place of the entry's own; a higher level lifts the entry to the end of that queue."""
        entry.event = event
        entry.count += 1
        if level > entry.level:
            if entry.ripe:
                del self._queues[entry.level][entry.key]
            entry.level = level
            if entry.ripe:
                self._queue(entry)

    def ripen(self, now_ns: int) -> None:
        """Queue what is ripe by now."""
        while self._unripe and self._unripe[0][0] <= now_ns:
            self._queue(heapq.heappop(self._unripe)[2])

    def next_ripe_at(self) -> int | None:
        """Return the instant at which the next entry will be ripe, if any is not."""
        return self._unripe[0][0] if self._unripe else None

    def head(self) -> Entry[K, E] | None:
        """Return the ripe entry that goes next, if there is one."""
        for queue in reversed(self._queues):
            if queue:
                return next(iter(queue.values()))
        return None

    def postpone(self, entry: Entry[K, E], ripe_at: int) -> None:
        """Take back that an entry is ripe: its key has been admitted past it."""
        del self._queues[entry.level][entry.key]
        self._lay(entry, ripe_at)

    def remove(self, entry: Entry[K, E]) -> None:
        """Let a ripe entry go."""
        del self._queues[entry.level][entry.key]
        del self._entries[entry.key]

    def clear(self) -> list[Entry[K, E]]:
        """Let all entries go, in the order in which they came."""
        entries = list(self._entries.values())
        self._entries.clear()
        self._unripe.clear()
        for queue in self._queues:
            queue.clear()
        return entries

    def _queue(self, entry: Entry[K, E]) -> None:
        entry.ripe = True
        self._queues[entry.level][entry.key] = entry

    def _lay(self, entry: Entry[K, E], ripe_at: int) -> None:
        entry.ripe = False
        self._order += 1
        heapq.heappush(self._unripe, (ripe_at, self._order, entry))
