"""AsyncGuardedDeque: a deque that tasks, threads and event loops share, and that loses nothing.

Rules of this module:

* No user code runs under the lock: `update` and `remove_if` work on a copy and start again if something changed.
* Nobody is parked while what it waits for is there. A waiter is handed its item, or its room, under the lock.
* An item that was handed to a getter which is cancelled before it resumes goes back to where it was. Until the getter
  has resumed, the room that the item took is kept for it, so that it can always go back.
* Items carry the order in which they lie, so that several that go back do so in their old order.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

import anyio
import attrs

from resilience.clock import Clock, SystemClock
from resilience.events import EventQueue, Section
from resilience.machines.checks import positive_int, string
from resilience.parking import ParkingQueue, Waiter, async_waiter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["AsyncGuardedDeque", "DequeStatistics", "Overflow"]

T = TypeVar("T")
R = TypeVar("R")

Overflow: TypeAlias = Literal["wait", "reject", "drop_oldest", "drop_newest"]
_OVERFLOWS = ("wait", "reject", "drop_oldest", "drop_newest")


@attrs.frozen(kw_only=True)
class DequeStatistics:
    """A snapshot of one deque: items put, got, dropped by overflow and removed by hand; who waits; contention."""

    put: int
    got: int
    dropped: int
    removed: int
    getters: int
    putters: int
    contended: int


@attrs.define(eq=False)
class _Parked:
    """What one parked task wants: an item (`putting` False) or room for its own, at the left or the right end."""

    waiter: Waiter
    left: bool
    putting: bool
    entry: tuple[int, object] | None = None
    item: object = None
    layout: int = 0
    done: bool = False
    closed: bool = False

    # What ParkingQueue asks of a waiter.
    @property
    def place(self) -> object:
        return self.waiter.place

    def wake(self) -> bool:
        return self.waiter.wake()


class AsyncGuardedDeque(Generic[T]):
    """A double-ended queue, safe between tasks, threads and event loops, bounded if you like.

    Args:
        iterable: the first items.
        maxlen: the most items it holds; None for no bound.
        overflow: what an append to a full deque does. "wait" waits for room, "reject" raises anyio.WouldBlock,
            "drop_oldest" drops an item at the end opposite to the insertion, "drop_newest" drops the item itself.
        name: what descriptions call it.
        clock: where time comes from.

    Example:
        >>> queue = AsyncGuardedDeque([1, 2], maxlen=3)
        >>> queue.append_nowait(3)
        >>> queue.popleft_nowait(), queue.snapshot()
        (1, (2, 3))

    Getters are served first come, first served, whichever end they ask; so are putters. The methods without `await`
    may be called in any thread; the others are checkpoints only if they wait. A wait that is cancelled has taken
    nothing and put nothing, and the cancellation goes on; but an item that somebody took in the instant between being
    put and the cancellation has been put.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_contended",
        "_dropped",
        "_events",
        "_getters",
        "_got",
        "_handed",
        "_high",
        "_items",
        "_layout",
        "_lock",
        "_low",
        "_put",
        "_putters",
        "_removed",
        "_section",
        "_version",
        "clock",
        "maxlen",
        "name",
        "overflow",
    )

    def __init__(
        self,
        iterable: Iterable[T] = (),
        maxlen: int | None = None,
        *,
        overflow: Overflow = "wait",
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        if maxlen is not None:
            positive_int("maxlen", maxlen)
        if overflow not in _OVERFLOWS:
            msg = f"overflow must be one of {', '.join(map(repr, _OVERFLOWS))}, not {overflow!r}"
            raise ValueError(msg)
        if not isinstance(iterable, Iterable):
            msg = f"iterable must be iterable, not {iterable!r}"
            raise ValueError(msg)
        items = list(iterable)
        if maxlen is not None and len(items) > maxlen:
            msg = f"iterable must hold at most maxlen={maxlen!r} items, not {len(items)!r}"
            raise ValueError(msg)
        self.maxlen = maxlen
        self.overflow: Overflow = overflow
        self.name = string("name", name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._lock = threading.Lock()
        self._events = EventQueue()
        self._section = Section(self._lock, self._events)
        # Each item with its place in the order; places grow from left to right.
        self._items: deque[tuple[int, T]] = deque(enumerate(items))
        self._low, self._high = -1, len(items)
        # Counts rearrangements: a place from an earlier layout means nothing any more.
        self._layout = 0
        # Counts all changes, for those who work on a copy.
        self._version = 0
        self._getters: ParkingQueue[_Parked] = ParkingQueue()  # type: ignore[type-var]
        self._putters: ParkingQueue[_Parked] = ParkingQueue()  # type: ignore[type-var]
        # Items handed to getters that have not resumed yet.
        self._handed = 0
        self._closed = False
        self._put, self._got, self._dropped, self._removed, self._contended = len(items), 0, 0, 0, 0

    # -- putting ----------------------------------------------------------------------------------------------------

    async def append(self, item: T) -> None:
        """Add an item at the right end. A checkpoint only if it waits for room.

        Raises:
            anyio.WouldBlock: the deque is full, and `overflow` is "reject".
            anyio.ClosedResourceError: the deque is closed, or was closed while this waited.

        """
        await self._put_waiting(item, left=False)

    async def appendleft(self, item: T) -> None:
        """Add an item at the left end; otherwise as `append`."""
        await self._put_waiting(item, left=True)

    def append_nowait(self, item: T) -> None:
        """Add an item at the right end, in any thread. Where `append` would wait, raise anyio.WouldBlock."""
        if not self._try_put(item, left=False):
            raise anyio.WouldBlock

    def appendleft_nowait(self, item: T) -> None:
        """Add an item at the left end, in any thread. Where `appendleft` would wait, raise anyio.WouldBlock."""
        if not self._try_put(item, left=True):
            raise anyio.WouldBlock

    # -- getting ----------------------------------------------------------------------------------------------------

    async def pop(self) -> T:
        """Take the item at the right end. A checkpoint only if it waits for one.

        Raises:
            anyio.ClosedResourceError: the deque is closed and empty.

        """
        return await self._get_waiting(left=False)

    async def popleft(self) -> T:
        """Take the item at the left end; otherwise as `pop`."""
        return await self._get_waiting(left=True)

    def pop_nowait(self) -> T:
        """Take the item at the right end, in any thread; raise anyio.WouldBlock if there is none."""
        return self._try_get(left=False)

    def popleft_nowait(self) -> T:
        """Take the item at the left end, in any thread; raise anyio.WouldBlock if there is none."""
        return self._try_get(left=True)

    async def __aiter__(self) -> AsyncIterator[T]:
        """Take items from the left until the deque is closed and empty."""
        while True:
            try:
                item = await self.popleft()
            except anyio.ClosedResourceError:
                return
            yield item

    # -- all of it --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._items)

    def snapshot(self) -> tuple[T, ...]:
        """Return the items as they were at one instant. Any thread."""
        with self._section:
            return tuple(item for _, item in self._items)

    def drain(self) -> list[T]:
        """Take all items at once, and let waiting putters in. Any thread."""
        with self._section:
            drained = [item for _, item in self._items]
            self._items.clear()
            self._got += len(drained)
            self._match()
        return drained

    def remove_if(self, predicate: Callable[[T], bool]) -> list[T]:
        """Remove the items for which `predicate` is true, and return them. Any thread.

        The predicate runs without the lock, on the items of one instant; if the deque changes meanwhile, it is asked
        again. If it raises, nothing has changed.
        """
        while True:
            with self._section:
                version, items = self._version, list(self._items)
            keep: list[tuple[int, T]] = []
            removed: list[T] = []
            for entry in items:
                if predicate(entry[1]):
                    removed.append(entry[1])
                else:
                    keep.append(entry)
            with self._section:
                if version == self._version:
                    if removed:
                        self._items = deque(keep)
                        self._removed += len(removed)
                        self._match()
                    break
        return removed

    def update(self, func: Callable[[deque[T]], R]) -> R:
        """Let `func` rearrange a copy, put the copy in place of the items, and return what `func` returned. Any thread.

        The function runs without the lock; if the deque changes meanwhile, it is called again with a new copy. If it
        raises, nothing has changed.

        Raises:
            ValueError: `func` left more items than `maxlen` allows; nothing has changed.

        """
        while True:
            with self._section:
                version, before = self._version, len(self._items)
                copy = deque(item for _, item in self._items)
            result = func(copy)
            with self._section:
                if version != self._version:
                    continue
                self._rearrange(copy, before)
            return result

    def close(self) -> None:
        """End all waits: putters and, once the deque is empty, getters get anyio.ClosedResourceError. Any thread."""
        with self._section:
            self._closed = True
            self._version += 1
            for queue in (self._putters, self._getters):
                for parked in list(queue):
                    queue.leave(parked)
                    parked.closed = True
                    parked.wake()

    @property
    def closed(self) -> bool:
        """Whether the deque is closed."""
        return self._closed

    def statistics(self) -> DequeStatistics:
        """Return a frozen snapshot. Any thread."""
        return DequeStatistics(
            put=self._put,
            got=self._got,
            dropped=self._dropped,
            removed=self._removed,
            getters=len(self._getters),
            putters=len(self._putters),
            contended=self._contended,
        )

    def __repr__(self) -> str:
        bound = "" if self.maxlen is None else f" of {self.maxlen}"
        return f"<AsyncGuardedDeque {self.name!r}, {len(self)}{bound} items{', closed' if self._closed else ''}>"

    # -- the fast paths ---------------------------------------------------------------------------------------------

    def _try_put(self, item: T, *, left: bool) -> bool:
        """Put the item or drop what overflows; return False if it would have to wait."""
        contended = self._lock.locked()
        with self._section:
            if contended:
                self._contended += 1
            return self._put_now(item, left=left)

    def _put_now(self, item: T, *, left: bool) -> bool:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._room() and not self._putters:
            self._insert(item, left=left)
        elif self.overflow == "wait":
            return False
        elif self.overflow == "reject":
            raise anyio.WouldBlock
        elif self.overflow == "drop_newest" or not self._items:
            # With all the room kept for items that were handed out, there is nothing old to drop.
            self._put += 1
            self._dropped += 1
        else:
            if left:
                self._items.pop()
            else:
                self._items.popleft()
            self._dropped += 1
            self._insert(item, left=left)
        return True

    def _try_get(self, *, left: bool) -> T:
        contended = self._lock.locked()
        with self._section:
            if contended:
                self._contended += 1
            if not self._items:
                raise anyio.ClosedResourceError if self._closed else anyio.WouldBlock
            return self._take(left=left)

    # -- the lock is held in all of these ---------------------------------------------------------------------------

    def _rearrange(self, items: deque[T], before: int) -> None:
        if self.maxlen is not None and len(items) + self._handed > self.maxlen:
            msg = f"func must leave at most maxlen={self.maxlen!r} items, not {len(items)!r}"
            if self._handed:
                msg += f" (and {self._handed!r} on their way to getters)"
            raise ValueError(msg)
        self._items = deque(enumerate(items))
        self._low, self._high = -1, len(items)
        self._layout += 1
        self._put += max(0, len(items) - before)
        self._removed += max(0, before - len(items))
        self._match()

    def _take(self, *, left: bool) -> T:
        _, item = self._items.popleft() if left else self._items.pop()
        self._got += 1
        self._match()
        return item

    def _room(self) -> bool:
        return self.maxlen is None or len(self._items) + self._handed < self.maxlen

    def _insert(self, item: T, *, left: bool) -> tuple[int, T]:
        if left:
            entry = (self._low, item)
            self._low -= 1
            self._items.appendleft(entry)
        else:
            entry = (self._high, item)
            self._high += 1
            self._items.append(entry)
        self._put += 1
        self._match()
        return entry

    def _match(self) -> None:
        """Hand items to getters and room to putters until nobody waits for what is there."""
        self._version += 1
        while True:
            if self._items and (getter := self._getters.head) is not None:
                self._hand_item(getter)
            elif (putter := self._putters.head) is not None and self._room():
                self._hand_room(putter)
            else:
                return

    def _hand_item(self, getter: _Parked) -> None:
        self._getters.leave(getter)
        entry = self._items.popleft() if getter.left else self._items.pop()
        getter.entry, getter.layout = entry, self._layout
        self._handed += 1
        if not getter.wake():
            # Its loop has closed: nobody will ever resume there.
            self._return(getter)

    def _hand_room(self, putter: _Parked) -> None:
        self._putters.leave(putter)
        # Said before it is woken: in another thread it may look before the next line here runs, and it looks once.
        putter.done = True
        putter.layout = self._layout
        if not putter.wake():
            putter.done = False
            return
        item: T = putter.item  # type: ignore[assignment]
        # Not _insert, which would match again from within.
        if putter.left:
            putter.entry = (self._low, item)
            self._low -= 1
            self._items.appendleft((putter.entry[0], item))
        else:
            putter.entry = (self._high, item)
            self._high += 1
            self._items.append((putter.entry[0], item))
        self._put += 1

    def _return(self, getter: _Parked) -> None:
        """Put an item that was handed out back to where it was."""
        entry: tuple[int, T] = getter.entry  # type: ignore[assignment]
        getter.entry = None
        self._handed -= 1
        place, item = entry
        passed: list[tuple[int, T]] = []
        if getter.layout != self._layout:
            # Everything was rearranged since: the end that it was taken from is all that is left of its place.
            place = self._low if getter.left else self._high
            self._low -= getter.left
            self._high += not getter.left
        if getter.left:
            while self._items and self._items[0][0] < place:
                passed.append(self._items.popleft())
            self._items.appendleft((place, item))
            self._items.extendleft(reversed(passed))
        else:
            while self._items and self._items[-1][0] > place:
                passed.append(self._items.pop())
            self._items.append((place, item))
            self._items.extend(reversed(passed))

    # -- waiting ----------------------------------------------------------------------------------------------------

    async def _put_waiting(self, item: T, *, left: bool) -> None:
        contended = self._lock.locked()
        parked: _Parked | None = None
        with self._section:
            if contended:
                self._contended += 1
            if not self._put_now(item, left=left):
                parked = _Parked(async_waiter(), left=left, putting=True, item=item)
                self._putters.join(parked)
        if parked is not None:
            await self._park(parked)

    async def _get_waiting(self, *, left: bool) -> T:
        contended = self._lock.locked()
        parked: _Parked | None = None
        taken: list[T] = []
        with self._section:
            if contended:
                self._contended += 1
            if self._items:
                taken.append(self._take(left=left))
            elif self._closed:
                raise anyio.ClosedResourceError
            else:
                parked = _Parked(async_waiter(), left=left, putting=False)
                self._getters.join(parked)
        if parked is None:
            return taken[0]
        await self._park(parked)
        return self._collect(parked)

    async def _park(self, parked: _Parked) -> None:
        """Wait until served, or until the deque is closed."""
        try:
            while not parked.closed and not parked.done and parked.entry is None:
                await parked.waiter.wait(self.clock, None)
        except GeneratorExit:
            self._events.put_from_finalizer(self._lock, functools.partial(self._abandon, parked))
            raise
        except BaseException:
            self._abandon(parked)
            raise
        if parked.closed:
            raise anyio.ClosedResourceError

    def _collect(self, parked: _Parked) -> T:
        assert parked.entry is not None  # noqa: S101 - _park returned
        item: T = parked.entry[1]  # type: ignore[assignment]
        with self._section:
            self._handed -= 1
            self._got += 1
            self._match()
        return item

    def _abandon(self, parked: _Parked) -> None:
        """Undo a wait: leave the queue, give back the item, or take back the one that was put."""
        with self._section:
            if parked.putting and parked.done:
                if parked.layout == self._layout and parked.entry in self._items:
                    self._items.remove(parked.entry)  # type: ignore[arg-type]
                    self._put -= 1
            elif parked.putting:
                self._putters.leave(parked)
            elif parked.entry is not None:
                self._return(parked)
            else:
                self._getters.leave(parked)
            self._match()
