"""Coalescer: what is too much for a storm guard is merged by key, and goes when there is room; nothing is uncounted.

Rules of this module:

* What goes, at once or later, takes its place in the guard's window: the guard's promises hold for all of it together.
* Who is next, and whom a newcomer may overtake, is `machines.holding`'s. Here are the guard's lock, which is the only
  one, the merging and the waiting.
* No user code runs under the lock: an event is merged with a copy of what is held, and again if that has changed.
* An event is counted when its fate is known: received = passed + released + merged + dropped + held now.
"""

# ruff: noqa: SLF001 - the guard's other half, which decides under the same lock

from __future__ import annotations

import enum
import functools
from collections.abc import Hashable
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from resilience.clock import seconds
from resilience.machines.checks import positive_int
from resilience.machines.holding import Entry, Holding
from resilience.parking import ParkingQueue, Waiter, async_waiter
from resilience.storm_guard import StormGuard

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["Coalesced", "Coalescer", "CoalescerStatistics", "Fate"]

K = TypeVar("K", bound=Hashable)
E = TypeVar("E")


class Fate(enum.Enum):
    """What became of an event; true if it is to be processed now."""

    PASSED = "passed"
    HELD = "held"
    MERGED = "merged"
    DROPPED = "dropped"

    def __bool__(self) -> bool:
        return self is Fate.PASSED


@attrs.frozen
class Coalesced(Generic[K, E]):
    """What was held for one key: the event, merged from `count` events, the highest of whose priorities it has.

    A priority above those that the guard's `reserve` tells apart is given as the lowest of them.
    """

    key: K
    event: E
    count: int
    priority: int


@attrs.frozen(kw_only=True)
class CoalescerStatistics:
    """A snapshot of one coalescer: received = passed + released + merged + dropped + held.

    `passed` went at once, `released` after having been held; `merged` went into what was held for their keys; `dropped`
    found no room for another key; `held` are the keys held now.
    """

    received: int
    passed: int
    released: int
    merged: int
    dropped: int
    held: int


class Coalescer(Generic[K, E]):
    """Pass on what a storm guard admits; hold the surplus, merged by key, until the guard has room for it.

    Args:
        guard: decides on all that goes, at once or later. It must not have a `surplus` of its own.
        merge: returns what stands for both, given what is held and the newcomer. None keeps the newcomer.
        max_keys: keys held at a time; an event of yet another key is dropped, and counted.

    Raises:
        ValueError: an argument that means nothing.

    Example:
        >>> events = Coalescer[str, int](StormGuard(60.0, 1), merge=lambda held, event: held + event)
        >>> [events.submit(event, "sales").value for event in (1, 2, 3)]
        ['passed', 'held', 'merged']
        >>> [(each.event, each.count) for each in events.drain()]
        [(5, 2)]

    Whoever submits has to take as well, or what is held stays so: `async for` over the coalescer gives each as soon as
    there is room; `take()` and `ready_in()` do for plain code. Events of one key never overtake one another. An event
    overtakes nothing that is held with the same priority or a higher one, unless it would have to be dropped; but
    what waits for the share of its own key alone holds nobody up.
    """

    __slots__ = (
        "__weakref__",
        "_dropped",
        "_holding",
        "_merge",
        "_merged",
        "_passed",
        "_received",
        "_released",
        "_takers",
        "guard",
        "max_keys",
    )

    def __init__(self, guard: StormGuard, *, merge: Callable[[E, E], E] | None = None, max_keys: int = 1000) -> None:
        if not isinstance(guard, StormGuard) or guard.surplus is not None:
            msg = f"guard must be a StormGuard that rejects its surplus, not {guard!r}"
            raise ValueError(msg)
        if merge is not None and not callable(merge):
            msg = f"merge must be callable or None, not {merge!r}"
            raise ValueError(msg)
        self.guard: StormGuard = guard
        self.max_keys: int = positive_int("max_keys", max_keys)
        self._merge = merge
        self._holding: Holding[K, E] = Holding(len(guard._bounds), max_keys)
        self._takers: ParkingQueue[Waiter] = ParkingQueue()
        self._received = self._passed = self._released = self._merged = self._dropped = 0

    def submit(self, event: E, key: K, priority: int = 0) -> Fate:
        """Decide on the event that has just come: process it now if PASSED. Never waits; any thread.

        `merge` runs in the caller, without a lock, and may be called again if another event of the key comes first;
        what it raises goes to the caller, and nothing has changed.
        """
        guard, holding, merge = self.guard, self._holding, self._merge
        level = guard._level(priority)
        while True:
            with guard._section:
                now_ns = guard._now()
                holding.ripen(now_ns)
                entry = holding.get(key)
                if entry is None:
                    return self._offer(event, key, level, now_ns)
                if merge is None:
                    return self._join(entry, event, level)
                held, count = entry.event, entry.count
            merged = merge(held, event)
            with guard._section:
                if holding.get(key) is entry and entry.count == count:
                    return self._join(entry, merged, level)

    def take(self) -> Coalesced[K, E] | None:
        """Take what is held and goes next, if the guard has room for it now. Any thread; not a checkpoint."""
        with self.guard._section:
            return self._take(self.guard._now())

    def ready_in(self) -> float | None:
        """Return in how many seconds to try `take` again; None while nothing is held."""
        with self.guard._section:
            delay_ns = self._delay(self.guard._now())
        return None if delay_ns is None else seconds(delay_ns)

    def drain(self) -> list[Coalesced[K, E]]:
        """Take all that is held, whether there is room for it or not, in the order in which it came: for the end."""
        with self.guard._section:
            entries = self._holding.clear()
            self._released += len(entries)
        return [_coalesced(entry) for entry in entries]

    def __aiter__(self) -> Self:
        """Take what is held as there is room for it, for ever."""
        return self

    async def __anext__(self) -> Coalesced[K, E]:
        """Wait until something is held and the guard has room for it, and take it.

        A checkpoint only if it waits. A wait that is cancelled has taken nothing. Several may wait, in any task and
        event loop; each entry goes to one of them.
        """
        guard, waiter = self.guard, None
        try:
            while True:
                with guard._section:
                    now_ns = guard._now()
                    taken = self._take(now_ns)
                    if taken is not None:
                        if waiter is not None:
                            self._takers.leave(waiter)
                        return taken
                    if waiter is None:
                        waiter = async_waiter()
                        self._takers.join(waiter)
                    delay_ns = self._delay(now_ns) if self._takers.leads(waiter) else None
                await waiter.wait(guard.clock, delay_ns)
        except GeneratorExit:
            guard._from_finalizer(functools.partial(self._abandon, waiter))
            raise
        except BaseException:
            self._abandon(waiter)
            raise

    def statistics(self) -> CoalescerStatistics:
        """Return a frozen snapshot, taken at one instant. Any thread."""
        with self.guard._section:
            return CoalescerStatistics(
                received=self._received,
                passed=self._passed,
                released=self._released,
                merged=self._merged,
                dropped=self._dropped,
                held=len(self._holding),
            )

    def __len__(self) -> int:
        """Return how many keys are held."""
        return len(self._holding)

    # The guard's lock is held in all of these, but for the last.

    def _offer(self, event: E, key: K, level: int, now_ns: int) -> Fate:
        """Decide on an event whose key is not held."""
        guard, holding = self.guard, self._holding
        self._received += 1
        head = holding.head()
        if head is None or head.level < level or holding.full:
            bound = guard._bounds[level]
            if guard._take(now_ns, key, bound):
                self._passed += 1
                return Fate.PASSED
            if holding.full:
                self._dropped += 1
                guard._count_refusal(now_ns, guard._ready_at(key, bound))
                return Fate.DROPPED
        holding.hold(key, event, level, guard._ripe_at(key, now_ns))
        self._takers.wake_leaders()
        return Fate.HELD

    def _join(self, entry: Entry[K, E], event: E, level: int) -> Fate:
        self._received += 1
        self._merged += 1
        lifted = level > entry.level
        self._holding.merge(entry, event, level)
        if lifted:
            # It may go sooner than those who wait on the clock expect.
            self._takers.wake_leaders()
        return Fate.MERGED

    def _take(self, now_ns: int) -> Coalesced[K, E] | None:
        guard, holding = self.guard, self._holding
        holding.ripen(now_ns)
        # Where the head of the highest level has no room, the lower ones have none either.
        while (head := holding.head()) is not None:
            bound = guard._bounds[head.level]
            if guard._window.full(now_ns, bound):
                break
            ripe_at = guard._ripe_at(head.key, now_ns)
            if ripe_at is None:
                guard._take(now_ns, head.key, bound)
                holding.remove(head)
                self._released += 1
                return _coalesced(head)
            # Somebody has asked the guard itself on behalf of that key.
            holding.postpone(head, ripe_at)
        return None

    def _delay(self, now_ns: int) -> int | None:
        """Return in how many nanoseconds to try again; None: not before something is held."""
        guard, holding = self.guard, self._holding
        holding.ripen(now_ns)
        head = holding.head()
        instants = [holding.next_ripe_at()]
        if head is not None:
            instants.append(guard._window.ready_at(guard._bounds[head.level]) or now_ns)
        return min((max(0, at - now_ns) for at in instants if at is not None), default=None)

    def _abandon(self, waiter: Waiter | None) -> None:
        if waiter is not None:
            with self.guard._section:
                self._takers.leave(waiter)


def _coalesced(entry: Entry[K, E]) -> Coalesced[K, E]:
    return Coalesced(entry.key, entry.event, entry.count, entry.level)
