"""Deadlines: the cheap timer behind Timeout, and the deadline that a call is under.

Rules of this module:

* `within` ends an await when its time is over, without ever turning somebody else's cancellation into a timeout.
* On asyncio with the system's clock it costs one timer and no cancel scope; elsewhere it is the clock's `fail_after`.
* A deadline is published in a context variable, so that retries and waits inside can see that there is no point.

It is, with `parking`, one of the two files that know asyncio; it is imported when used.
"""

from __future__ import annotations

import math
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio

from resilience.clock import Clock, SystemClock, nanoseconds, seconds
from resilience.errors import TimeoutExceededError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["remaining_ns", "within"]

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


async def within(limit: float, limit_ns: int, clock: Clock, start: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401
    """Await what `start` returns for at most `limit_ns`; then cancel it and raise TimeoutExceededError(limit)."""
    deadline_ns = clock.monotonic_ns() + limit_ns
    outer = _DEADLINE.get()
    if outer is not None and _same_line(outer[0], clock) and outer[1] <= deadline_ns:
        token = None
    else:
        token = _DEADLINE.set((clock, deadline_ns))
    try:
        if type(clock) is SystemClock and not _on_trio():
            return await _within_asyncio(limit, limit_ns, start)
        return await _within_scope(limit, limit_ns, clock, start)
    finally:
        if token is not None:
            _DEADLINE.reset(token)


def _on_trio() -> bool:
    if "trio" not in sys.modules:
        return False
    import trio

    return trio.lowlevel.in_trio_run()


async def _within_asyncio(limit: float, limit_ns: int, start: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401
    import asyncio

    task = asyncio.current_task()
    if task is None:
        msg = "a Timeout needs a task to cancel; it was used outside of one"
        raise RuntimeError(msg)
    cancelling = task.cancelling()
    fired = False

    def fire() -> None:
        nonlocal fired
        fired = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds(limit_ns), fire)
    try:
        result = await start()
    except asyncio.CancelledError as cancellation:
        timer.cancel()
        # Ours alone only if nobody else asked for one in the meantime: theirs goes on (as in asyncio.timeout).
        if fired and task.uncancel() <= cancelling:
            raise TimeoutExceededError(limit) from cancellation
        raise
    except BaseException:
        timer.cancel()
        if fired:
            task.uncancel()
        raise
    timer.cancel()
    if fired:
        # The callee finished in spite of its cancellation: what it returned stands.
        task.uncancel()
    return result


async def _within_scope(limit: float, limit_ns: int, clock: Clock, start: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401
    own: BaseException | None = None
    try:
        with clock.fail_after(seconds(limit_ns)):
            try:
                return await start()
            except TimeoutError as error:
                own = error
                raise
    except TimeoutError as error:
        if error is own:
            raise
        raise TimeoutExceededError(limit) from error
