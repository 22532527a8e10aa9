"""Timeout and Deadline: an end for calls and everything inside them; so long for each, or one instant for all.

Rules of this module: a cancellation from outside is never turned into a timeout; a TimeoutError that the callee raises
itself stays what it is. A plain `def` cannot be stopped and is refused when it is decorated.
"""

from __future__ import annotations

import functools
import threading
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from resilience.clock import MonotoneLine, SystemClock, nanoseconds
from resilience.clock import seconds as as_seconds
from resilience.counting import Tally
from resilience.errors import TimeoutExceededError
from resilience.fusing import passing_on
from resilience.layer import LayerKind, Strategy
from resilience.machines.checks import positive, string
from resilience.streaming import Relay, relaying
from resilience.timers import TimeLimit, ending, within

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self

    from resilience.clock import Clock
    from resilience.fusing import Runner
    from resilience.streaming import StreamRunner
    from resilience.timers import Exceeded

__all__ = ["Deadline", "Timeout", "TimeoutStatistics"]


@attrs.frozen(kw_only=True)
class TimeoutStatistics:
    """A snapshot of one Timeout: how many calls it has ended."""

    timed_out: int


class Timeout(Strategy):
    """Cancel a call that takes longer than `seconds`, and raise TimeoutExceededError (also a builtin TimeoutError).

    Waits, backoff and attempts inside are bounded too. For an async generator the time that counts is what the stream
    takes from its start, wherever it is spent; it is stopped only while it is being waited for.

    Args:
        seconds: the timeout.
        first_item: the seconds, fewer than those, that a stream may take to its first item; calls do not mind.
        name: what it is called in descriptions.
        clock: where time comes from.

    Example:
        >>> @Timeout(30.0, first_item=2.0)
        ... async def tokens():
        ...     yield "first"

    """

    __slots__ = ("_limit", "_timed_out", "clock", "first_item", "name", "seconds")

    kind = LayerKind.TIMEOUT

    def __init__(
        self, seconds: float, *, first_item: float | None = None, name: str = "", clock: Clock | None = None
    ) -> None:
        positive("seconds", seconds)
        if first_item is not None and positive("first_item", first_item) >= seconds:
            msg = f"first_item must be less than the {seconds!r} seconds for the whole stream, not {first_item!r}"
            raise ValueError(msg)
        self.seconds: float = seconds
        self.first_item: float | None = first_item
        self.name: str = string("name", name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._timed_out = Tally()
        self._limit = TimeLimit(seconds, self.clock, self._exceeded)

    def statistics(self) -> TimeoutStatistics:
        """Return a frozen snapshot. Not a checkpoint; any thread."""
        return TimeoutStatistics(timed_out=self._timed_out.value)

    def _exceeded(self, limit: float) -> TimeoutExceededError:
        self._timed_out.add()
        return TimeoutExceededError(limit)

    def remains(self) -> None:
        """Return None: nothing is left of a call that is over."""

    @passing_on
    def wrap(self, call_next: Runner) -> Runner:
        """Return a runner that ends in time. A checkpoint if the call is one; cancellation goes on."""
        return self._limit.around(call_next)

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        """Return a stream that ends in time."""
        clock = self.clock
        whole = self.seconds, nanoseconds(self.seconds)
        first = whole if self.first_item is None else (self.first_item, nanoseconds(self.first_item))

        def begin(*call: Any) -> Relay:  # noqa: ANN401 - a call's function, arguments and keywords
            line = MonotoneLine(clock.monotonic_ns())
            started_ns = line.last_ns

            def left(begun: bool) -> tuple[float, int]:  # noqa: FBT001 - a callback's one argument
                limit, limit_ns = whole if begun else first
                return limit, started_ns + limit_ns - line.at(clock.monotonic_ns())

            return _InTime(clock, left, self._exceeded, functools.partial(call_next, *call))

        return relaying(begin)

    def wrap_manager(self, call_next: StreamRunner) -> StreamRunner:
        """Return a manager that ends in time, its block included; `first_item` has no say."""
        limit_ns = nanoseconds(self.seconds)
        return _manager_in_time(call_next, self.seconds, self.clock, lambda: limit_ns, self._exceeded)


class Deadline(Strategy):
    """One end for whatever is run under it: calls, streams and blocks, one after the other or at once.

    The time counts from when the Deadline is made, so make one where the work begins (a request comes in) and pass it
    on, where a Timeout would begin anew with each call. What still runs when it passes is cancelled; that, and what is
    begun later, raises TimeoutExceededError (also a builtin TimeoutError). Retries inside know it and give up in time.

    Args:
        seconds: from now on.
        name: what it is called in descriptions.
        clock: where time comes from.

    Example:
        >>> async def handle(fetch, store):
        ...     deadline = Deadline(10.0)
        ...     found = await deadline.call(fetch)
        ...     async with deadline:
        ...         await store(found)

    Any number of tasks, threads and event loops may share one; a block is left by the task that entered it.

    """

    __slots__ = ("_end_ns", "_line", "_lock", "clock", "name", "seconds")

    kind = LayerKind.DEADLINE

    def __init__(self, seconds: float, *, name: str = "", clock: Clock | None = None) -> None:
        positive("seconds", seconds)
        self.seconds: float = seconds
        self.name: str = string("name", name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._lock = threading.Lock()
        self._line = MonotoneLine(self.clock.monotonic_ns())
        self._end_ns = self._line.last_ns + nanoseconds(seconds)

    def remaining(self) -> float:
        """Return how many seconds are left, 0 once it has passed. Not a checkpoint; any thread."""
        return as_seconds(max(0, self._left_ns()))

    @passing_on
    def wrap(self, call_next: Runner) -> Runner:
        """Return a runner that ends in time. A checkpoint if the call is one; cancellation goes on."""
        limit, clock = self.seconds, self.clock

        async def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            left_ns = self._left_or_raise()
            return await within(limit, left_ns, clock, functools.partial(call_next, *args, **kwargs))

        return run

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        """Return a stream that ends in time."""
        limit = self.seconds

        def left(_begun: bool) -> tuple[float, int]:  # noqa: FBT001 - a callback's one argument
            return limit, self._left_ns()

        return relaying(
            lambda *call: _InTime(self.clock, left, TimeoutExceededError, functools.partial(call_next, *call))
        )

    def wrap_manager(self, call_next: StreamRunner) -> StreamRunner:
        """Return a manager that ends in time, its block included."""
        return _manager_in_time(call_next, self.seconds, self.clock, self._left_or_raise)

    async def __aenter__(self) -> Self:
        """Begin a block that ends in time. Not a checkpoint."""
        block = ending(self.seconds, self._left_or_raise(), self.clock)
        block.__enter__()
        _ENTERED.set(_Entered(self, block, _ENTERED.get()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, trace: TracebackType | None
    ) -> bool:
        entered = _ENTERED.get()
        if entered is None or entered.deadline is not self:
            msg = "a Deadline's blocks must be left last in, first out, by the task that entered them"
            raise RuntimeError(msg)
        _ENTERED.set(entered.outer)
        return bool(entered.block.__exit__(kind, exception, trace))

    def _left_or_raise(self) -> int:
        left_ns = self._left_ns()
        if left_ns <= 0:
            raise TimeoutExceededError(self.seconds)
        return left_ns

    def _left_ns(self) -> int:
        with self._lock:
            return self._end_ns - self._line.at(self.clock.monotonic_ns())


class _Entered(NamedTuple):
    """A Deadline whose block the current task is in, and the block around that one; a task inherits its parent's."""

    deadline: Deadline
    block: AbstractContextManager[None]
    outer: _Entered | None


_ENTERED: ContextVar[_Entered | None] = ContextVar("resilience_deadlines_entered", default=None)


def _manager_in_time(
    call_next: StreamRunner,
    limit: float,
    clock: Clock,
    left_ns: Callable[[], int],
    exceeded: Exceeded = TimeoutExceededError,
) -> StreamRunner:
    manager = asynccontextmanager(call_next)

    async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncGenerator[Any, Any]:
        # The scope is left where it was entered: a manager's block runs in the task that enters it, and leaves it.
        with ending(limit, left_ns(), clock, exceeded):
            async with manager(func, args, kwargs) as value:
                yield value

    return run


class _InTime(Relay):
    """A stream each of whose steps ends in time.

    `left(begun)` says which limit the next step is under, and how much of that is left.
    """

    __slots__ = ("_begun", "_clock", "_exceeded", "_left")

    def __init__(
        self,
        clock: Clock,
        left: Callable[[bool], tuple[float, int]],
        exceeded: Exceeded,
        open_inner: Callable[[], AsyncGenerator[Any, Any]],
    ) -> None:
        super().__init__(open_inner)
        self._clock = clock
        self._left = left
        self._exceeded = exceeded
        self._begun = False

    async def first(self) -> Any:  # noqa: ANN401 - items are the user's
        item = await super().first()
        self._begun = True
        return item

    async def step(self, sent: object, thrown: BaseException | None) -> Any:  # noqa: ANN401
        limit, left_ns = self._left(self._begun)
        if left_ns <= 0:
            raise self._exceeded(limit)
        start = functools.partial(super().step, sent, thrown)
        return await within(limit, left_ns, self._clock, start, self._exceeded)
