"""AsyncGuardedDeque: a deque that tasks, threads and event loops share, and that loses nothing.

Rules of this module:

* What is handed to whom is `handing`'s; here are the lock and the waiting. Every change is made under the lock.
* No user code runs under the lock: `update` and `remove_if` work on a copy and start again if something changed, and
  what is dropped dies when the lock is free.
* A wait that ends in any other way than by being served is undone, at once.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import anyio
import attrs

from resilience.clock import Clock, SystemClock
from resilience.events import EventQueue, Section
from resilience.handing import Getter, Handing, Putter
from resilience.machines.checks import positive_int, string
from resilience.parking import TaskWaiter, async_waiter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import NoReturn

__all__ = ["AsyncGuardedDeque", "DequeStatistics", "Overflow"]

T = TypeVar("T")
R = TypeVar("R")

Overflow: TypeAlias = Literal["wait", "reject", "drop_oldest", "drop_newest"]
_OVERFLOWS = ("wait", "reject", "drop_oldest", "drop_newest")


@attrs.frozen(kw_only=True)
class DequeStatistics:
    """A snapshot of one deque: items put, got, dropped by overflow and removed by hand; who waits; contention.

    put = got + dropped + removed + depth, and those that are on their way to getters just now.

    `put` counts the first items too, and an item whose `append` was cancelled just after it was let in; when that took
    the item back, it also counts as removed.
    """

    put: int
    got: int
    dropped: int
    removed: int
    getters: int
    putters: int
    contended: int
    depth: int


class AsyncGuardedDeque(Handing[T]):
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
    nothing and put nothing, and the cancellation goes on; but an item that somebody took or rearranged in the instant
    between being put and the cancellation has been put.
    """

    __slots__ = ("__weakref__", "_contended", "_events", "_lock", "_section", "clock", "name", "overflow")

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
        super().__init__(items, maxlen)
        self.overflow: Overflow = overflow
        self.name: str = string("name", name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._lock = threading.Lock()
        self._events = EventQueue()
        self._section = Section(self._lock, self._events)
        self._contended = 0

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
        """Add an item at the right end as `append` does, in any thread; raise anyio.WouldBlock instead of waiting."""
        self._enter_put(item, left=False, waits=False)

    def appendleft_nowait(self, item: T) -> None:
        """Add an item at the left end as `append_nowait` does at the right."""
        self._enter_put(item, left=True, waits=False)

    # -- getting ----------------------------------------------------------------------------------------------------

    async def pop(self) -> T:
        """Take the item at the right end. A checkpoint only if it waits for one.

        Raises:
            anyio.ClosedResourceError: the deque is closed and empty, or was closed while this waited.

        """
        return await self._get_waiting(left=False)

    async def popleft(self) -> T:
        """Take the item at the left end; otherwise as `pop`."""
        return await self._get_waiting(left=True)

    def pop_nowait(self) -> T:
        """Take the item at the right end as `pop` does, in any thread; raise anyio.WouldBlock instead of waiting."""
        return self._get_now(left=False)

    def popleft_nowait(self) -> T:
        """Take the item at the left end as `pop_nowait` does at the right."""
        return self._get_now(left=True)

    def __aiter__(self) -> AsyncIterator[T]:
        """Take items from the left until the deque is closed and empty. Several tasks may do so side by side."""
        return self

    async def __anext__(self) -> T:
        """Take the item at the left end as `popleft` does; StopAsyncIteration where that finds the deque closed."""
        try:
            return await self.popleft()
        except anyio.ClosedResourceError:
            raise StopAsyncIteration from None

    # -- all of it --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        # Under the lock: halfway through a change there is an item too few.
        with self._section:
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
        about all of them again, so it had better not change the deque itself. If it raises, nothing has changed.
        """
        while True:
            version, entries = self._look()
            keep: list[tuple[int, T]] = []
            removed: list[T] = []
            for entry in entries:
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
                    return removed

    def update(self, func: Callable[[deque[T]], R]) -> R:
        """Let `func` rearrange a copy, put the copy in place of the items, and return what `func` returned. Any thread.

        The function runs without the lock; if the deque changes meanwhile, it is called again with a new copy, so it
        had better not change the deque itself. If it raises, nothing has changed.

        Raises:
            ValueError: `func` left more items than `maxlen` allows; nothing has changed.
            anyio.ClosedResourceError: the deque is closed; nothing has changed.

        """
        while True:
            version, entries = self._look()
            copy = deque(item for _, item in entries)
            result = func(copy)
            with self._section:
                if version == self._version:
                    self._rearrange(copy)
                    return result

    def close(self) -> None:
        """Let nothing more in, and end all waits with anyio.ClosedResourceError; items can still be taken. Any thread.

        An item that goes back, because its getter is cancelled just now, can be taken still. Closing again is nothing.
        """
        with self._section:
            # Closing again is no change, so that a function which closes the deque is not called for ever.
            self._version += not self._closed
            self._closed = True
            waiters = [putter.waiter for putter in self._putters] + [getter.waiter for getter in self._getters]
            self._putters.clear()
            self._getters.clear()
            for waiter in waiters:
                waiter.wake()

    @property
    def closed(self) -> bool:
        """Whether the deque is closed."""
        return self._closed

    def statistics(self) -> DequeStatistics:
        """Return a frozen snapshot, taken at one instant. Any thread."""
        with self._section:
            return DequeStatistics(
                put=self._put,
                got=self._got,
                dropped=self._dropped,
                removed=self._removed,
                getters=len(self._getters),
                putters=len(self._putters),
                contended=self._contended,
                depth=len(self._items),
            )

    def __repr__(self) -> str:
        # Without the lock: a debugger or a failed assertion may show it in the middle of a critical section.
        bound = "" if self.maxlen is None else f" of {self.maxlen}"
        return f"<AsyncGuardedDeque {self.name!r}, {len(self._items)}{bound} items{', closed' if self._closed else ''}>"

    def __reduce__(self) -> NoReturn:
        # A copy by slots would share the items and the lock, but not the counts.
        msg = "AsyncGuardedDeque is shared, never copied nor pickled: take a snapshot()"
        raise TypeError(msg)

    # -- going in ---------------------------------------------------------------------------------------------------

    def _enter_put(self, item: T, *, left: bool, waits: bool) -> Putter[T] | None:
        """Put the item, or drop what overflows; return the putter that has to wait, if it may."""
        contended = self._lock.locked()
        with self._section:
            if contended:
                self._contended += 1
            if self._closed:
                raise anyio.ClosedResourceError
            # Nobody is overtaken: where there is room, no putter is parked.
            if self._room():
                self._insert(item, left=left)
                self._match()
            elif self.overflow == "wait" and waits:
                putter = Putter(async_waiter(), left, item)
                self._putters[putter] = None
                return putter
            elif self.overflow in ("wait", "reject"):
                raise anyio.WouldBlock
            elif self.overflow == "drop_newest" or not self._items:
                # With all the room kept for items that were handed out, there is nothing old to drop.
                self._put += 1
                self._dropped += 1
            else:
                # Named, so that it dies on return, when the lock is free.
                oldest = self._items.pop() if left else self._items.popleft()  # noqa: F841 - as the line above says
                self._dropped += 1
                self._insert(item, left=left)
                self._match()
        return None

    def _enter_get(self, *, left: bool, waits: bool) -> tuple[int, T] | Getter:
        """Take an item with its place; or return the getter that has to wait, if it may."""
        contended = self._lock.locked()
        with self._section:
            if contended:
                self._contended += 1
            if self._items:
                entry = self._items.popleft() if left else self._items.pop()
                self._got += 1
                self._match()
                return entry
            if self._closed:
                raise anyio.ClosedResourceError
            if not waits:
                raise anyio.WouldBlock
            getter = Getter(async_waiter(), left)
            self._getters[getter] = None
            return getter

    def _look(self) -> tuple[int, list[tuple[int, T]]]:
        """Return the items of one instant. Whoever works on them holds them, so that none dies under the lock."""
        with self._section:
            return self._version, list(self._items)

    def _get_now(self, *, left: bool) -> T:
        entry = self._enter_get(left=left, waits=False)
        assert isinstance(entry, tuple)  # noqa: S101 - no getter is made where nobody waits
        return entry[1]

    # -- waiting ----------------------------------------------------------------------------------------------------

    async def _put_waiting(self, item: T, *, left: bool) -> None:
        putter = self._enter_put(item, left=left, waits=True)
        if putter is not None:
            await self._park(putter.waiter, functools.partial(self._abandon_put, putter))
            if putter.entry is None:
                raise anyio.ClosedResourceError

    async def _get_waiting(self, *, left: bool) -> T:
        found = self._enter_get(left=left, waits=True)
        if isinstance(found, tuple):
            return found[1]
        await self._park(found.waiter, functools.partial(self._abandon_get, found))
        with self._section:
            entry = self._handed.pop(found, None)
            if entry is None:
                raise anyio.ClosedResourceError
            self._got += 1
            self._match()
        return entry[1]

    async def _park(self, waiter: TaskWaiter, abandon: Callable[[], None]) -> None:
        """Wait until served, or until the deque is closed; if that ends in any other way, undo the wait."""
        try:
            await waiter.wait(self.clock, None)
        except GeneratorExit:
            self._events.put_from_finalizer(self._lock, abandon)
            raise
        except BaseException:
            abandon()
            raise

    def _abandon_get(self, getter: Getter) -> None:
        with self._section:
            self._getters.pop(getter, None)
            self._put_back(getter)
            self._match()

    def _abandon_put(self, putter: Putter[T]) -> None:
        with self._section:
            self._putters.pop(putter, None)
            self._take_out(putter)
            self._match()
