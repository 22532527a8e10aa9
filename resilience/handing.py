"""Handing: items in their order, those who wait for one, and those who wait for room.

Rules of this module:

* Nobody is parked while what it waits for is there. A waiter is handed its item, or its room, and is woken for nothing
  else.
* An item that was handed to a getter which is cancelled before it resumes goes back to where it was. Until the getter
  has resumed, the room that the item took is kept for it, so that it can always go back.
* Items carry their place in the order, so that several that go back do so in their old order. No place is used twice.

Nothing here is locked, and nothing waits: the owner holds its lock around every method.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio
import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilience.parking import TaskWaiter

__all__ = ["Getter", "Handing", "Putter"]

T = TypeVar("T")


@attrs.define(eq=False)
class Getter:
    """A parked task that wants an item from one end."""

    waiter: TaskWaiter
    left: bool


@attrs.define(eq=False)
class Putter(Generic[T]):
    """A parked task that wants room at one end. `entry` is its item once that lies in the deque, with its place."""

    waiter: TaskWaiter
    left: bool
    item: T
    entry: tuple[int, T] | None = None


class Handing(Generic[T]):
    """Items from left to right, and who waits at either end.

    `_put`, `_got`, `_dropped` and `_removed` count what became of items, for the owner's statistics.
    """

    __slots__ = (
        "_closed",
        "_dropped",
        "_getters",
        "_got",
        "_handed",
        "_high",
        "_items",
        "_low",
        "_put",
        "_putters",
        "_removed",
        "_version",
        "maxlen",
    )

    def __init__(self, items: Sequence[T], maxlen: int | None) -> None:
        self.maxlen: int | None = maxlen
        # Each item with its place in the order; places grow from left to right.
        self._items: deque[tuple[int, T]] = deque(enumerate(items))
        # The next place to the left of all that were ever used, and the next to the right.
        self._low, self._high = -1, len(items)
        # Counts all changes, for those who work on a copy.
        self._version = 0
        self._getters: OrderedDict[Getter, None] = OrderedDict()
        self._putters: OrderedDict[Putter[T], None] = OrderedDict()
        # What was handed to getters that have not resumed yet.
        self._handed: dict[Getter, tuple[int, T]] = {}
        self._closed = False
        self._put, self._got, self._dropped, self._removed = len(items), 0, 0, 0

    def _room(self) -> bool:
        return self.maxlen is None or len(self._items) + len(self._handed) < self.maxlen

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
        return entry

    def _match(self) -> None:
        """Hand items to getters and room to putters until nobody waits for what is there."""
        self._version += 1
        while True:
            if self._items and self._getters:
                self._hand_item(self._getters.popitem(last=False)[0])
            elif self._putters and self._room():
                self._hand_room(self._putters.popitem(last=False)[0])
            else:
                return

    def _hand_item(self, getter: Getter) -> None:
        self._handed[getter] = self._items.popleft() if getter.left else self._items.pop()
        if not getter.waiter.wake():
            # Its loop has closed: nobody will ever resume there.
            self._put_back(getter)

    def _hand_room(self, putter: Putter[T]) -> None:
        # The item is in before the putter is woken: in another thread it may go on at once.
        putter.entry = self._insert(putter.item, left=putter.left)
        if not putter.waiter.wake():
            self._take_out(putter)

    def _put_back(self, getter: Getter) -> None:
        """Put an item that was handed out back to where it was, if it is still out."""
        entry = self._handed.pop(getter, None)
        if entry is None:
            return
        place = entry[0]
        passed: list[tuple[int, T]] = []
        if getter.left:
            while self._items and self._items[0][0] < place:
                passed.append(self._items.popleft())
            self._items.appendleft(entry)
            self._items.extendleft(reversed(passed))
        else:
            while self._items and self._items[-1][0] > place:
                passed.append(self._items.pop())
            self._items.append(entry)
            self._items.extend(reversed(passed))

    def _take_out(self, putter: Putter[T]) -> None:
        """Take out an item that was let in, if it still lies where it was put."""
        entry, putter.entry = putter.entry, None
        # Places are compared first and differ, so that no item is asked what it equals.
        if entry is not None and entry in self._items:
            self._items.remove(entry)
            self._removed += 1

    def _rearrange(self, items: deque[T]) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self.maxlen is not None and len(items) + len(self._handed) > self.maxlen:
            msg = f"func must leave at most maxlen={self.maxlen!r} items, not {len(items)!r}"
            if self._handed:
                msg += f" (and {len(self._handed)!r} on their way to getters)"
            raise ValueError(msg)
        grown = len(items) - len(self._items)
        self._put += max(0, grown)
        self._removed += max(0, -grown)
        self._items = deque(enumerate(items, self._high))
        self._high += len(items)
        # What was handed out from the right goes back to the right of all this, in the order that it had.
        for getter, (_, item) in sorted(self._handed.items(), key=lambda handed: handed[1][0]):
            if not getter.left:
                self._handed[getter] = (self._high, item)
                self._high += 1
        self._match()
