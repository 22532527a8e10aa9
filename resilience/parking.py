"""Parking: how a task or a thread waits until another task, thread or event loop wakes it.

Rules of this module:

* A `Waiter` is one parked task or thread, or a place that is kept for nobody. Anybody may `wake` it, from anywhere; a
  wake-up is sticky (one that comes before the wait is not lost) and waking twice is waking once. `wake` says False if
  the waiter's loop has closed.
* A `ParkingQueue` is a FIFO queue of waiters. In each place (an event loop, or a thread) its first waiter is the
  *leader*, the only one there that waits on the clock; when it leaves, the next is woken to lead.
* Nothing here decides anything, and nothing here is locked: the owner holds its own lock around every method of the
  queue, and no lock at all around a wait. Nobody polls.
* A cancelled wait raises what the library raises; the owner takes the waiter out of its queue in the handler.

This is the one file of the package that knows how to wake asyncio, trio and threads; they are imported when used.
Waiting without a timer costs one future; waiting with one costs no cancel scope on asyncio with the system's clock.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from resilience.clock import CallbackClock, Clock, SystemClock, seconds

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    import trio

__all__ = ["ParkingQueue", "TaskWaiter", "ThreadWaiter", "Waiter", "async_waiter", "running_loop", "thread_waiter"]


class Waiter:
    """A place in a queue, at which a task or a thread is parked, or nobody.

    `place` is the event loop or the thread that it waits in. `value` and `granted` belong to the owner of the queue.
    """

    __slots__ = ("deadline_ns", "granted", "place", "refused", "units", "value")

    def __init__(self, place: object) -> None:
        self.place: object = place
        self.units: int = 0
        self.deadline_ns: int | None = None
        self.granted: bool = False
        self.refused: bool = False
        self.value: object = None

    def wake(self) -> bool:
        """Wake the waiter, from any thread; return False if it can no longer be woken, since its loop has ended."""
        # Nobody is parked here.
        return True


class ThreadWaiter(Waiter):
    """A parked thread."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        super().__init__(object())
        self._event = threading.Event()

    def wake(self) -> bool:
        """Wake the thread. It always can be woken."""
        self._event.set()
        return True

    def wait_blocking(self, clock: Clock, delay_ns: int | None) -> None:
        """Block until woken, or until `delay_ns` have passed on `clock`."""
        if delay_ns is None:
            self._event.wait()
        elif type(clock) is SystemClock:
            self._event.wait(min(seconds(delay_ns), threading.TIMEOUT_MAX))
        elif isinstance(clock, CallbackClock):
            take_back = clock.call_later(delay_ns, self._event.set)
            try:
                self._event.wait()
            finally:
                take_back()
        else:
            # Such a clock can only sleep: a wake-up before its time is seen when the sleep is over.
            clock.sleep_blocking(seconds(delay_ns))
        self._event.clear()


class _AsyncioWaiter(Waiter):
    __slots__ = ("_future", "_loop", "_running", "_woken")

    def __init__(self, loop: asyncio.AbstractEventLoop, running: Callable[[], object]) -> None:
        super().__init__(loop)
        self._loop = loop
        self._running = running
        self._future: asyncio.Future[None] | None = None
        self._woken = False

    def wake(self) -> bool:
        try:
            # Not the thread is asked: a loop may be run in one thread, and then in another.
            if self._running() is self._loop:
                self._set()
            else:
                self._loop.call_soon_threadsafe(self._set)
        except RuntimeError:
            return False
        return True

    def _set(self) -> None:
        self._woken = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, clock: Clock, delay_ns: int | None) -> None:
        if self._woken:
            self._woken = False
            return
        self._future = self._loop.create_future()
        try:
            if delay_ns is None:
                await self._future
            elif type(clock) is SystemClock:
                timer = self._loop.call_later(seconds(delay_ns), self._set)
                try:
                    await self._future
                finally:
                    timer.cancel()
            else:
                await _wait_on(clock, delay_ns, self.wake, self._future)
        finally:
            self._future = None
            self._woken = False


class _TrioWaiter(Waiter):
    __slots__ = ("_event", "_token")

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        import trio

        super().__init__(token)
        self._token = token
        self._event = trio.Event()

    def wake(self) -> bool:
        import trio

        try:
            here = trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:
            here = False
        if here:
            self._event.set()
            return True
        try:
            self._token.run_sync_soon(self._set)
        except trio.RunFinishedError:
            return False
        return True

    def _set(self) -> None:
        self._event.set()

    async def wait(self, clock: Clock, delay_ns: int | None) -> None:
        import trio

        if not self._event.is_set():
            if delay_ns is None:
                await self._event.wait()
            else:
                await _wait_on(clock, delay_ns, self.wake, self._event)
        self._event = trio.Event()


TaskWaiter: TypeAlias = _AsyncioWaiter | _TrioWaiter
"""A parked task. `wait` suspends it until woken, or until `delay_ns` have passed on `clock`. A checkpoint."""


async def _wait_on(
    clock: Clock, delay_ns: int, wake: Callable[[], object], signal: asyncio.Future[None] | trio.Event
) -> None:
    """Wait for `signal`, which `wake` gives, for at most `delay_ns` on a clock that is not the system's."""
    waiting = signal.wait() if hasattr(signal, "wait") else signal
    if isinstance(clock, CallbackClock):
        take_back = clock.call_later(delay_ns, wake)
        try:
            await waiting
        finally:
            take_back()
        return
    try:
        with clock.fail_after(seconds(delay_ns)):
            await waiting
    except TimeoutError:
        return


def running_loop() -> bool:
    """Tell whether an event loop runs in this thread, so that it must not be blocked."""
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            return True
    if "asyncio" in sys.modules:
        import asyncio

        return asyncio._get_running_loop() is not None  # noqa: SLF001 - documented, for exactly this use
    return False


def async_waiter() -> TaskWaiter:
    """Return a waiter for the calling task; RuntimeError where no event loop runs."""
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            return _TrioWaiter(trio.lowlevel.current_trio_token())
    import asyncio

    return _AsyncioWaiter(asyncio.get_running_loop(), asyncio._get_running_loop)  # noqa: SLF001 - as above


def thread_waiter() -> ThreadWaiter:
    """Return a waiter for the calling thread."""
    return ThreadWaiter()


W = TypeVar("W", bound=Waiter)


class ParkingQueue(Generic[W]):
    """A FIFO queue of waiters with a leader in each place. Its owner's lock guards every method.

    `waiters` holds them in order; whoever only wants to know whether there are any asks it. Joining, leaving from
    anywhere and taking the head are O(1): a cancelled waiter costs nothing to those behind it.
    """

    __slots__ = ("_places", "waiters")

    def __init__(self) -> None:
        self.waiters: OrderedDict[W, None] = OrderedDict()
        self._places: dict[object, OrderedDict[W, None]] = {}

    def __len__(self) -> int:
        return len(self.waiters)

    def __iter__(self) -> Iterator[W]:
        return iter(self.waiters)

    def __contains__(self, waiter: object) -> bool:
        return waiter in self.waiters

    @property
    def head(self) -> W | None:
        """The waiter that has waited longest, or None."""
        return next(iter(self.waiters), None)

    def join(self, waiter: W) -> None:
        """Put the waiter at the end of the queue."""
        self.waiters[waiter] = None
        self._places.setdefault(waiter.place, OrderedDict())[waiter] = None

    def leads(self, waiter: W) -> bool:
        """Tell whether this waiter is the one that waits on the clock in its place."""
        here = self._places.get(waiter.place)
        return here is not None and next(iter(here), None) is waiter

    def leave(self, waiter: W) -> bool:
        """Take the waiter out, waking the next one to lead if it led its place; False if it was not there."""
        if waiter not in self.waiters:
            return False
        del self.waiters[waiter]
        here = self._places[waiter.place]
        led = next(iter(here)) is waiter
        del here[waiter]
        if not here:
            del self._places[waiter.place]
        elif led:
            next(iter(here)).wake()
        return True

    def wake_leaders(self) -> None:
        """Wake the leader of every place, since the instant that they wait for has moved."""
        for here in list(self._places.values()):
            next(iter(here)).wake()
