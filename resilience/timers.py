"""Deadlines: the cheap timer behind Timeout, and the deadline that a call is under.

Rules of this module:

* A call is ended when its time is over, without ever turning somebody else's cancellation into a timeout.
* On asyncio with the system's clock that costs no cancel scope, and for a `TimeLimit` no timer either, as for `Alarms`;
  elsewhere it is the clock's `fail_after`.
* A deadline is published in a context variable, so that retries and waits inside can see that there is no point.

It is, with `parking`, one of the two files that know asyncio, which is never imported here: where it runs, it is there.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
import threading
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import anyio
import anyio.lowlevel

from resilience.clock import Clock, SystemClock, nanoseconds, seconds
from resilience.errors import TimeoutExceededError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Iterator
    from contextvars import Token

    # Makes the exception, given the limit in seconds.
    Exceeded: TypeAlias = Callable[[float], TimeoutExceededError]
    # Has something called later; returns what takes that back.
    After: TypeAlias = Callable[[Callable[[], object]], Callable[[], object]]

__all__ = [
    "Alarm",
    "Alarms",
    "TimeLimit",
    "alarm",
    "asyncio_task",
    "cancellations",
    "ending",
    "published",
    "remaining_ns",
    "within",
]

P = ParamSpec("P")
R = TypeVar("R")

# The clock and the instant on its line by which the innermost Timeout of this context ends.
_DEADLINE: ContextVar[tuple[Clock, int] | None] = ContextVar("resilience_deadline", default=None)


def remaining_ns(clock: Clock) -> int | None:
    """Return how long the calling task has until its deadline on this clock; None if it has none.

    Counts the Timeouts around it that use the same clock and, on the system's clock, anyio's cancel scopes.
    """
    remaining: int | None = None
    published = _DEADLINE.get()
    if published is not None and _same_line(published[0], clock):
        remaining = published[1] - clock.monotonic_ns()
    if type(clock) is SystemClock:
        scope = _scope_remaining()
        if scope is not None:
            remaining = scope if remaining is None else min(remaining, scope)
    return remaining


def _same_line(one: Clock, other: Clock) -> bool:
    return one is other or (type(one) is SystemClock and type(other) is SystemClock)


def _scope_remaining() -> int | None:
    try:
        left = anyio.current_effective_deadline() - anyio.current_time()
    except RuntimeError:
        # No event loop runs in this thread.
        return None
    if math.isinf(left):
        return None if left > 0 else 0
    return nanoseconds(left)


def _publish(clock: Clock, deadline_ns: int) -> Token[tuple[Clock, int] | None] | None:
    """Let this context know its deadline, unless it is under an earlier one; return what takes that back."""
    outer = _DEADLINE.get()
    if outer is not None and outer[1] <= deadline_ns and _same_line(outer[0], clock):
        return None
    return _DEADLINE.set((clock, deadline_ns))


def _take_back(token: Token[tuple[Clock, int] | None]) -> None:
    try:
        _DEADLINE.reset(token)
    except ValueError:
        # A dropped frame is closed by the garbage collector, in whatever context that strikes. Its own is gone.
        return


@contextmanager
def published(clock: Clock, deadline_ns: int) -> Iterator[None]:
    """Let the block know that it is under this deadline."""
    token = _publish(clock, deadline_ns)
    try:
        yield
    finally:
        if token is not None:
            _take_back(token)


@contextmanager
def ending(limit: float, limit_ns: int, clock: Clock, exceeded: Exceeded = TimeoutExceededError) -> Iterator[None]:
    """Cancel the block after `limit_ns` and raise `exceeded(limit)`, by the clock's own `fail_after`.

    A TimeoutError that the block raises itself stays what it is.
    """
    own: BaseException | None = None
    try:
        with published(clock, clock.monotonic_ns() + limit_ns), clock.fail_after(seconds(limit_ns)):
            try:
                yield
            except TimeoutError as error:
                own = error
                raise
    except TimeoutError as error:
        if error is own:
            raise
        raise exceeded(limit) from error


async def within(
    limit: float,
    limit_ns: int,
    clock: Clock,
    start: Callable[[], Awaitable[Any]],
    exceeded: Exceeded = TimeoutExceededError,
) -> Any:  # noqa: ANN401 - what the call returns
    """Await what `start` returns for at most `limit_ns`; then cancel it and raise `exceeded(limit)`.

    A checkpoint if the call is one. A cancellation goes on.
    """
    task = asyncio_task() if type(clock) is SystemClock else None
    if task is None:
        with ending(limit, limit_ns, clock, exceeded):
            return await start()
    rang = False

    def ring() -> None:
        nonlocal rang
        rang = True
        task.cancel()

    token = _publish(clock, clock.monotonic_ns() + limit_ns)
    cancelling = task.cancelling()
    timer = task.get_loop().call_later(seconds(limit_ns), ring)
    try:
        result = await start()
    except BaseException as error:
        if rang:
            await _raise_if_ours(error, task, cancelling, limit, exceeded)
        raise
    else:
        if rang:
            # The callee finished in spite of its cancellation: what it returned stands.
            task.uncancel()
        return result
    finally:
        timer.cancel()
        if token is not None:
            _take_back(token)


def cancellations(task: asyncio.Task[Any] | None) -> int:
    """Count the cancellations asked of this task itself, even before they reach it.

    Only asyncio has such: a cancel scope's reach every task in it at once.
    """
    return 0 if task is None else task.cancelling()


class _OneLength:
    """One length of time, for any number of calls, each from its own start, in any task, thread and event loop.

    Calls of one length are due in the order in which they began. So on asyncio those of one event loop wait in one
    queue for one timer, which is set for the first of them and, when it rings, for the one who is first then. A call
    that ends in time costs an entry in a dict.
    """

    __slots__ = ("_limit_ns", "_lock", "_queues")

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns
        self._lock = threading.Lock()
        # Replaced whole, so that reading it needs no lock.
        self._queues: dict[asyncio.AbstractEventLoop, _Queue] = {}

    def _new_queue(self, loop: asyncio.AbstractEventLoop) -> _Queue:
        queue = _Queue(loop, self._limit_ns)
        with self._lock:
            others = {other: its for other, its in self._queues.items() if not other.is_closed()}
            self._queues = {**others, loop: queue}
        return queue


class TimeLimit(_OneLength):
    """The same limit for any number of calls: what takes longer is cancelled."""

    __slots__ = ("_clock", "_exceeded", "_limit")

    def __init__(self, limit: float, clock: Clock, exceeded: Exceeded = TimeoutExceededError) -> None:
        super().__init__(nanoseconds(limit))
        self._exceeded = exceeded
        self._limit = limit
        self._clock = clock

    def around(self, call_next: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        """Return a runner that ends in time or raises `exceeded(limit)`."""
        limit, limit_ns, clock, exceeded = self._limit, self._limit_ns, self._clock, self._exceeded
        if type(clock) is not SystemClock:

            async def run_in_scope(*args: P.args, **kwargs: P.kwargs) -> R:
                with ending(limit, limit_ns, clock, exceeded):
                    return await call_next(*args, **kwargs)

            return run_in_scope

        monotonic_ns, take_back = clock.monotonic_ns, _DEADLINE.reset

        async def run(*args: P.args, **kwargs: P.kwargs) -> R:
            task = asyncio_task()
            if task is None:
                with ending(limit, limit_ns, clock, exceeded):
                    return await call_next(*args, **kwargs)
            deadline_ns = monotonic_ns() + limit_ns
            loop = task.get_loop()
            queue = self._queues.get(loop) or self._new_queue(loop)
            cancelling = task.cancelling()
            token = _publish(clock, deadline_ns)
            place = queue.join(task.cancel, deadline_ns)
            try:
                result = await call_next(*args, **kwargs)
            except BaseException as error:
                if token is not None:
                    _take_back(token)
                if queue.leave(place):
                    await _raise_if_ours(error, task, cancelling, limit, exceeded)
                raise
            if token is not None:
                take_back(token)
            if queue.leave(place):
                # The callee finished in spite of its cancellation: what it returned stands.
                task.uncancel()
            return result

        return run


class Alarm:
    """Calls `ring` in the event loop when its time has come, and again after as long while that returns True.

    `after` calls something in that time, and returns what takes that back. What it calls runs in the context of whoever
    made it, and in a task of its own: outside of any, anyio cannot tell in general which event loop it is in, and
    nobody could start a task. All this is for asyncio and the system's clock.
    """

    __slots__ = ("_after", "_context", "_loop", "_ring", "_stopped", "_take_back", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop, after: After, ring: Callable[[], bool]) -> None:
        self._loop = loop
        self._after = after
        self._ring = ring
        self._stopped = False
        self._context = copy_context()
        # Held, as event loops ask for it.
        self._task: asyncio.Task[None] | None = None
        self._take_back = after(self._go_off)

    def _go_off(self) -> None:
        self._task = self._loop.create_task(self._ring_again(), context=self._context)

    async def _ring_again(self) -> None:
        # It may have been stopped between the timer and this task's first step.
        if not self._stopped and self._ring():
            self._take_back = self._after(self._go_off)

    def stop(self) -> None:
        """Never ring again."""
        self._stopped = True
        self._take_back()


def alarm(task: asyncio.Task[Any] | None, clock: Clock, delay_ns: int, ring: Callable[[], bool]) -> Alarm | None:
    """Return an Alarm; None where only a task can wait: on trio, where there is no `task`, and on other clocks."""
    if task is None or type(clock) is not SystemClock:
        return None
    loop = task.get_loop()
    return Alarm(loop, lambda call: loop.call_later(seconds(delay_ns), call).cancel, ring)


class Alarms(_OneLength):
    """Alarms that all ring after the same time."""

    __slots__ = ("_clock",)

    def __init__(self, delay_ns: int, clock: Clock) -> None:
        super().__init__(delay_ns)
        self._clock = clock

    def set(self, task: asyncio.Task[Any] | None, ring: Callable[[], bool]) -> Alarm | None:
        """Return one of them, or None, as `alarm` does."""
        if task is None or type(self._clock) is not SystemClock:
            return None
        loop = task.get_loop()
        return Alarm(loop, (self._queues.get(loop) or self._new_queue(loop)).after, ring)


class _Queue:
    """What is due after one length of time on one event loop, in the order in which it is, and the one timer.

    Only that loop's thread comes here, but for a frame that the garbage collector closes, which only leaves.
    """

    __slots__ = ("_calls", "_is_set", "_limit_ns", "_loop", "_next")

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_ns: int) -> None:
        self._loop = loop
        self._limit_ns = limit_ns
        self._calls: dict[int, tuple[int, Callable[[], object]]] = {}
        self._next = itertools.count().__next__
        self._is_set = False

    def after(self, call: Callable[[], object]) -> Callable[[], object]:
        """Have `call` called after the length of time; return what takes that back."""
        return functools.partial(self.leave, self.join(call, SystemClock.monotonic_ns() + self._limit_ns))

    def join(self, call: Callable[[], object], due_ns: int) -> int:
        """Have `call` called at that time; return its place in the queue."""
        place = self._next()
        self._calls[place] = (due_ns, call)
        if not self._is_set:
            self._set(self._limit_ns)
        return place

    def leave(self, place: int) -> bool:
        """Leave the queue; tell whether the call has been made."""
        return self._calls.pop(place, None) is None

    def _set(self, delay_ns: int) -> None:
        self._is_set = True
        self._loop.call_later(seconds(delay_ns), self._ring)

    def _ring(self) -> None:
        self._is_set = False
        now_ns = SystemClock.monotonic_ns()
        # A copy, since the garbage collector may close a frame, which then leaves, at any step.
        for place, (due_ns, call) in self._calls.copy().items():
            if due_ns > now_ns:
                self._set(due_ns - now_ns)
                return
            if not self.leave(place):
                call()


def asyncio_task() -> asyncio.Task[Any] | None:
    """Return the task of asyncio that runs now; None on trio, and outside of any."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    try:
        return asyncio.current_task()  # type: ignore[no-any-return]
    except RuntimeError:
        return None


async def _raise_if_ours(
    error: BaseException, task: asyncio.Task[Any], cancelling: int, limit: float, exceeded: Exceeded
) -> None:
    """Take our cancellation back; raise `exceeded(limit)` if `error` is that and nobody else's."""
    # Ours alone only if nobody else asked for one in the meantime: theirs goes on (as in asyncio.timeout).
    if task.uncancel() <= cancelling and isinstance(error, sys.modules["asyncio"].CancelledError):
        # Nor if a scope around us is cancelled, which has not come to tell the task yet.
        await anyio.lowlevel.checkpoint_if_cancelled()
        raise exceeded(limit) from error
