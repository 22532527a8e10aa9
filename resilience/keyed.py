"""Keyed: a guard for each host, tenant or model, in bounded memory.

Rules of this module:

* `keyed[key]` is the same guard for as long as anybody holds it, and for as long as it would make a difference. A guard
  is dropped only when it is fresh, so that the one which the factory makes next cannot be told from it; the keys that
  have gone longest without use go first. Where none may be dropped, a new key is refused, explicitly.
* A guard nobody holds need not be kept as an object, a thousand bytes and more, while what its calls have left behind
  is an instant: when a bucket is full again, when an event leaves the window. Such a guard is put to *sleep*: what
  remains of it (`remains`) is kept under its key, and given to a new guard when the key is next asked for. Most of that
  goes stale by itself, as time goes by. So a key that is idle costs one entry of a dict and one integer, if that.
* Only the guards used last are *awake*, that is, kept as objects. The others fall asleep as new ones are needed; those
  of which more remains than a few instants (an open circuit, a bulkhead with permits out) stay awake as they are.
* Whether anybody holds a guard is not asked but tried: under the locks of its parts, so that nobody can use it
  meanwhile, the registry lets go of the guard and looks whether it is still there. If it is, it is taken back.
  That relies on reference counting; where there is none, guards are merely never put to sleep.
* The factory runs under no lock. If two threads ask for a new key at once, both make a guard and one of them wins.
* No step looks at more than a bounded number of keys, however many there are.

It knows layers, and no particular guard.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from resilience.clock import SystemClock, seconds
from resilience.errors import KeysExhaustedError
from resilience.events import Rejected, announce
from resilience.layer import Guard, Layer
from resilience.machines.checks import positive_int, string
from resilience.picking import ByKey
from resilience.remains import EVERYTHING, NEVER, Everything, pack, unpack, until_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator
    from threading import Lock

    from resilience.clock import Clock
    from resilience.events import EventQueue
    from resilience.layer import Strategy
    from resilience.remains import Packed, Remains

__all__ = ["Keyed", "KeyedStatistics"]

K = TypeVar("K", bound="Hashable")
L = TypeVar("L", bound=Layer)

#: How many sleepers, and how many guards that are awake, are looked at to make room for one key.
_LOOKS = 64


@attrs.frozen(kw_only=True)
class KeyedStatistics:
    """A snapshot of one Keyed.

    `keys` are known now, of which `awake` have their guard as an object; `made` counts the guards that the factory
    made, `evicted` the keys that were dropped to make room, and `rejected` those that there was no room for.
    """

    keys: int = 0
    awake: int = 0
    made: int = 0
    evicted: int = 0
    rejected: int = 0


class Keyed(Generic[K, L]):
    """Have a guard, or a Policy, of one kind for each key.

    Args:
        factory: called with a key, makes its guard: the same for the same key each time. It runs under no lock, and
            what it makes may be thrown away.
        max_keys: the most keys that are known at a time.
        max_awake: the guards that stay objects although nobody holds them: those of the keys used last. Looking up
            one of these costs no more than a dict does; any other has to be made again.
        name: what errors and events call it.
        clock: where time comes from; it must be the clock of the guards.

    Example:
        >>> from resilience import RateLimiter
        >>> hosts = Keyed(lambda host: RateLimiter(rate=5.0, capacity=1, name=host))
        >>> hosts["a.example"].try_acquire(), hosts["a.example"].try_acquire(), hosts["b.example"].try_acquire()
        (True, False, True)

    Any thread, task and event loop may use one. A guard that refers to itself, as by an `on_state_change` in which it
    is caught, counts as held for ever.

    """

    __slots__ = (
        "__weakref__",
        "_acquire",
        "_asleep",
        "_awake",
        "_evicted",
        "_factory",
        "_lock",
        "_made",
        "_rejected",
        "_release",
        "clock",
        "max_awake",
        "max_keys",
        "name",
    )

    def __init__(
        self,
        factory: Callable[[K], L],
        *,
        max_keys: int = 10_000,
        max_awake: int = 1_000,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        if not callable(factory):
            msg = f"factory must be callable, not {factory!r}"
            raise ValueError(msg)
        self._factory = factory
        self.max_keys: int = positive_int("max_keys", max_keys)
        self.max_awake: int = positive_int("max_awake", max_awake)
        self.name: str = string("name", name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._lock = threading.Lock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        # Both in the order of their last use; a key is in one of them. Those awake were used later than the others.
        self._awake: OrderedDict[K, L] = OrderedDict()
        self._asleep: OrderedDict[K, Packed] = OrderedDict()
        self._made = 0
        self._evicted = 0
        self._rejected = 0

    @property
    def label(self) -> str:
        """The name by which errors and events call it."""
        return self.name or type(self).__name__

    def __getitem__(self, key: K) -> L:
        """Return the guard of this key. Never waits; not a checkpoint; any thread.

        Raises:
            KeysExhaustedError: the key is new, there are `max_keys` others, and none was found whose guard is fresh
                and held by nobody. Among more than 64 that are busy, one that is not may be missed the first time.
            ValueError: the factory made something that is no layer, or whose clock is another one.

        """
        # As `with self._lock`, at half the cost.
        self._acquire()
        try:
            guard = self._awake.get(key)
            if guard is not None:
                self._awake.move_to_end(key)
                return guard
            has_room = self._has_room(key)
        finally:
            self._release()
        try:
            if not has_room:
                # Before a guard is made in vain.
                with self._locked() as queues:
                    self._see_to_room(key, queues)
            return self._wake(key, self._make(key))
        except KeysExhaustedError as refusal:
            announce(Rejected(guard=self.label, retry_after=refusal.retry_after))
            raise

    def __contains__(self, key: object) -> bool:
        """Tell whether the key is known now; one that is not has, for all anybody can tell, a fresh guard."""
        with self._lock:
            return key in self._awake or key in self._asleep

    def __len__(self) -> int:
        """Return how many keys are known now."""
        with self._lock:
            return len(self._awake) + len(self._asleep)

    def layer(self, *, key: str | Callable[..., K]) -> Strategy:
        """Return a layer that guards each call by the guard of its key.

        `key` is the name of an argument of what is decorated, or a function that is called with the call's arguments
        and returns the key. Whether a key's guard can guard a plain `def` or a stream is seen when it is called: there,
        a TypeError.
        """
        return ByKey(self, key)

    def statistics(self) -> KeyedStatistics:
        """Return a frozen snapshot. Not a checkpoint; any thread."""
        with self._lock:
            return KeyedStatistics(
                keys=len(self._awake) + len(self._asleep),
                awake=len(self._awake),
                made=self._made,
                evicted=self._evicted,
                rejected=self._rejected,
            )

    def __repr__(self) -> str:
        return f"<Keyed {self.label!r}, {len(self)} of {self.max_keys} keys>"

    def _make(self, key: K) -> L:
        guard = self._factory(key)
        if not isinstance(guard, Layer):
            msg = f"factory must return a guard or another layer, not {guard!r}"
            raise ValueError(msg)
        for part in guard.parts:
            if isinstance(part, Guard) and not _is_same(part.clock, self.clock):
                msg = f"clock must be that of the guards, {part.clock!r}, not {self.clock!r}"
                raise ValueError(msg)
        return guard

    def _wake(self, key: K, made: L) -> L:
        """Return the guard of the key: the one just made, unless another thread was faster."""
        with self._locked() as queues:
            guard = self._awake.get(key)
            if guard is None:
                self._see_to_room(key, queues)
                remains = self._asleep.get(key)
                if remains is not None:
                    _resume(made, remains)
                    del self._asleep[key]
                self._awake[key] = guard = made
                self._made += 1
                self._put_to_sleep(queues)
        return guard

    @contextmanager
    def _locked(self) -> Iterator[list[EventQueue]]:
        """Hold the lock; when it is free again, deliver what looking at guards has brought up."""
        queues: list[EventQueue] = []
        try:
            with self._lock:
                yield queues
        finally:
            for queue in queues:
                queue.drain()

    # The lock is held in all of these.

    def _put_to_sleep(self, queues: list[EventQueue]) -> None:
        """Make up for the guard that has just been woken, and for one more if there are too many."""
        for _ in range(min(2, len(self._awake) - self.max_awake)):
            key = next(iter(self._awake))
            remains = self._let_go(key, queues)
            if not (remains is None or isinstance(remains, Everything)):
                self._asleep[key] = remains

    def _has_room(self, key: K) -> bool:
        # It may be awake by now, if the lock was free in between.
        return key in self._asleep or key in self._awake or len(self._asleep) + len(self._awake) < self.max_keys

    def _see_to_room(self, key: K, queues: list[EventQueue]) -> None:
        """See to it that there is room for this key, or raise KeysExhaustedError."""
        if self._has_room(key):
            return
        now_ns = self.clock.monotonic_ns()
        earliest_ns = NEVER
        # What was found busy is looked at again after all the others, as if it had just been used.
        for _ in range(min(_LOOKS, len(self._asleep))):
            sleeper, remains = next(iter(self._asleep.items()))
            stale_at_ns = until_ns(remains)
            if stale_at_ns <= now_ns:
                del self._asleep[sleeper]
                self._evicted += 1
                return
            earliest_ns = min(earliest_ns, stale_at_ns)
            self._asleep.move_to_end(sleeper)
        for _ in range(min(_LOOKS, len(self._awake))):
            if self._let_go(next(iter(self._awake)), queues, only_fresh=True) is None:
                self._evicted += 1
                return
        self._rejected += 1
        raise KeysExhaustedError(self.label, None if earliest_ns == NEVER else seconds(earliest_ns - now_ns))

    def _let_go(self, key: K, queues: list[EventQueue], *, only_fresh: bool = False) -> Packed | Everything | None:
        """Drop the guard of this key if nobody holds it, and return its remains; EVERYTHING if it was kept instead."""
        guard = self._awake[key]
        self._awake.move_to_end(key)
        locks: list[Lock] = []
        try:
            remains = _remains(guard) if _lock_parts(guard, locks, queues) else EVERYTHING
            if remains is EVERYTHING or (only_fresh and remains is not None):
                return EVERYTHING
            guard._loosen()  # noqa: SLF001 - it is ours
            found = weakref.ref(guard)
            del self._awake[key], guard
            held = found()
            if held is not None:
                self._awake[key] = held
                return EVERYTHING
        finally:
            for lock in locks:
                lock.release()
        return remains


# Functions of their own, so that no variable is left that holds a part.


def _lock_parts(guard: Layer, locks: list[Lock], queues: list[EventQueue]) -> bool:
    """Take the locks of all parts, and list those that are; return False if one was taken: the guard is in use.

    What that brings up for listeners has to wait until all locks are free.
    """
    for part in guard.parts:
        if isinstance(part, Guard):
            if not part._lock.acquire(blocking=False):  # noqa: SLF001 - what its sections take
                return False
            locks.append(part._lock)  # noqa: SLF001
            queues.append(part._events)  # noqa: SLF001
    return True


def _remains(guard: Layer) -> Packed | Everything | None:
    found: list[Remains | None] = []
    for part in guard.parts:
        remains = part.remains()
        if isinstance(remains, Everything):
            return EVERYTHING
        found.append(remains)
    return pack(found)


def _resume(guard: Layer, packed: Packed) -> None:
    several = unpack(packed)
    if len(several) != len(guard.parts):
        msg = f"factory must make the same guard for the same key each time, not {guard!r}"
        raise ValueError(msg)
    for part, left in zip(guard.parts, several, strict=True):
        if left is not None:
            part.resume(left)


def _is_same(clock: Clock, other: Clock) -> bool:
    """Tell whether two clocks are one: all SystemClocks are."""
    return clock is other or (isinstance(clock, SystemClock) and isinstance(other, SystemClock))
