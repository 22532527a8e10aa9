"""ManualClock: time that moves when a test says so.

Rules of this module: nothing here waits for real time. Those who sleep on the clock, in any task, thread or event
loop, are woken in the order of their deadlines, each while the clock shows that very instant. The wall clock moves
along and may be made to jump on its own.
"""

from __future__ import annotations

import heapq
import itertools
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio

from resilience.clock import nanoseconds, seconds
from resilience.machines.checks import finite, non_negative
from resilience.parking import async_waiter
from resilience.timers import published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


__all__ = ["ManualClock"]


class ManualClock:
    """A clock for tests.

    Args:
        start: where the clock's own line begins, in seconds.
        wall: Unix time at the start; by default 2026-01-01T00:00:00Z.
        autojump: whether time jumps to the next deadline by itself whenever every task waits. It needs a running
            event loop, and is for tests whose tasks wait on nothing but this clock and one another.

    Example:
        >>> clock = ManualClock()
        >>> clock.advance(1.5)
        >>> clock.monotonic_ns()
        1500000000

    """

    __slots__ = ("__weakref__", "_autojump", "_heap", "_idle", "_lock", "_now_ns", "_numbers", "_wall_ns")

    def __init__(self, start: float = 0.0, *, wall: float = 1_767_225_600.0, autojump: bool = False) -> None:
        self._now_ns = nanoseconds(finite("start", start))
        self._wall_ns = nanoseconds(finite("wall", wall)) - self._now_ns
        self._lock = threading.RLock()
        self._heap: list[tuple[int, int, list[Callable[[], object]]]] = []
        self._numbers = itertools.count()
        self._autojump = autojump
        self._idle: object = None

    # -- the clock --------------------------------------------------------------------------------------------------

    def monotonic_ns(self) -> int:
        """Return the instant that the clock shows."""
        return self._now_ns

    def time_ns(self) -> int:
        """Return the Unix time that the clock shows."""
        return self._now_ns + self._wall_ns

    async def sleep(self, seconds: float, /) -> None:
        """Suspend until the clock has been moved on by `seconds`. A checkpoint, even at 0."""
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        waiter = async_waiter()
        take_back = self.call_later(nanoseconds(seconds), waiter.wake)
        try:
            await waiter.wait(self, None)
        finally:
            take_back()

    def sleep_blocking(self, seconds: float, /) -> None:
        """Block the thread until another one has moved the clock on by `seconds`; with autojump, move it oneself."""
        if seconds <= 0:
            return
        if self._autojump:
            self.advance(seconds)
            return
        woken = threading.Event()
        self.call_later(nanoseconds(seconds), woken.set)
        woken.wait()

    @contextmanager
    def fail_after(self, seconds: float, /) -> Iterator[anyio.CancelScope]:
        """Cancel the block once the clock has been moved on by `seconds`, and raise TimeoutError.

        A Retry in the block on this clock knows the deadline, as it knows that of `anyio.fail_after` on the machine's.
        """
        due = False

        with anyio.CancelScope() as scope, published(self, self._now_ns + nanoseconds(seconds)):
            waker = _loop_caller()

            def fire() -> None:
                nonlocal due
                due = True
                waker(scope.cancel)

            if seconds <= 0:
                fire()
                take_back = _nothing
            else:
                take_back = self.call_later(nanoseconds(seconds), fire)
            try:
                yield scope
            finally:
                take_back()
        if due and scope.cancelled_caught:
            raise TimeoutError

    def call_later(self, delay_ns: int, callback: Callable[[], object], /) -> Callable[[], None]:
        """Call `callback` once the clock has been moved on by `delay_ns`; the function returned takes that back."""
        # An entry is emptied rather than searched for.
        entry: list[Callable[[], object]] = [callback]
        with self._lock:
            heapq.heappush(self._heap, (self._now_ns + max(0, delay_ns), next(self._numbers), entry))
        if self._autojump:
            self._watch_for_idleness()
        return entry.clear

    # -- the test's hands on it -------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Move time on; sleepers that become due are woken in the order of their deadlines.

        They run when the caller next waits: in async code, `await anyio.wait_all_tasks_blocked()` lets them.

        Raises:
            ValueError: `seconds` is negative or not finite; time goes back only in `step_back`.

        """
        self._move_to(self._now_ns + nanoseconds(non_negative("seconds", seconds)))

    def step_back(self, seconds: float) -> None:
        """Make the monotonic clock fall back by `seconds`; sleepers sleep as long as they meant to."""
        step_ns = nanoseconds(non_negative("seconds", seconds))
        with self._lock:
            self._now_ns -= step_ns
            self._heap = [(at_ns - step_ns, number, entry) for at_ns, number, entry in self._heap]

    def jump_wall(self, seconds: float) -> None:
        """Move the wall clock alone, either way."""
        self._wall_ns += nanoseconds(finite("seconds", seconds))

    def next_deadline(self) -> float | None:
        """Return the instant, in seconds on the clock's own line, at which the next sleeper is due; None if none is."""
        with self._lock:
            at_ns = self._next_ns()
        return None if at_ns is None else seconds(at_ns)

    def _next_ns(self) -> int | None:
        while self._heap and not self._heap[0][2]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _move_to(self, instant_ns: int) -> None:
        while True:
            with self._lock:
                due_ns = self._next_ns()
                if due_ns is None or due_ns > instant_ns:
                    self._now_ns = max(self._now_ns, instant_ns)
                    return
                self._now_ns = max(self._now_ns, due_ns)
                _, _, entry = heapq.heappop(self._heap)
                callbacks = list(entry)
            for callback in callbacks:
                callback()

    # -- jumping by itself ------------------------------------------------------------------------------------------

    def _watch_for_idleness(self) -> None:
        if self._idle is not None:
            return
        if "trio" in sys.modules:
            import trio

            if trio.lowlevel.in_trio_run():
                self._idle = trio.lowlevel.spawn_system_task(self._jump_when_idle)
                return
        import asyncio

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._idle = loop.create_task(self._jump_when_idle())

    async def _jump_when_idle(self) -> None:
        try:
            while True:
                await anyio.wait_all_tasks_blocked()
                with self._lock:
                    due_ns = self._next_ns()
                if due_ns is None:
                    return
                self._move_to(due_ns)
        finally:
            self._idle = None


def _nothing() -> None:
    return


def _loop_caller() -> Callable[[Callable[[], object]], None]:
    """Return a function that calls its argument in the event loop that runs now, from any thread."""
    thread = threading.get_ident()
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            token = trio.lowlevel.current_trio_token()

            def call_in_trio(action: Callable[[], object]) -> None:
                if threading.get_ident() == thread and trio.lowlevel.in_trio_run():
                    action()
                else:
                    token.run_sync_soon(action)

            return call_in_trio
    import asyncio

    loop = asyncio.get_running_loop()

    def call_in_asyncio(action: Callable[[], object]) -> None:
        if threading.get_ident() == thread:
            action()
        else:
            loop.call_soon_threadsafe(action)

    return call_in_asyncio
