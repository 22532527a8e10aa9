"""Timeout: a deadline for a call and everything inside it.

Rules of this module: a cancellation from outside is never turned into a timeout; a TimeoutError that the callee raises
itself stays what it is. A plain `def` cannot be stopped and is refused when it is decorated.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from resilience.clock import MonotoneLine, SystemClock, nanoseconds
from resilience.fusing import END, step
from resilience.layer import LayerKind, Strategy
from resilience.machines.checks import positive, string
from resilience.timers import within

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from resilience.clock import Clock
    from resilience.fusing import Runner, StreamRunner

__all__ = ["Timeout"]


class Timeout(Strategy):
    """Cancel a call that takes longer than `seconds`, and raise TimeoutExceededError (also a builtin TimeoutError).

    Waits, backoff and attempts inside are bounded too. For an async generator the time that counts is what the stream
    takes from its start, wherever it is spent; it is stopped only while it is being waited for.

    Args:
        seconds: the timeout.
        name: what it is called in descriptions.
        clock: where time comes from.

    """

    __slots__ = ("_timeout_ns", "clock", "name", "seconds")

    kind = LayerKind.TIMEOUT

    def __init__(self, seconds: float, *, name: str = "", clock: Clock | None = None) -> None:
        positive("seconds", seconds)
        self.seconds = seconds
        self.name = string("name", name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._timeout_ns = nanoseconds(seconds)

    def wrap(self, call_next: Runner) -> Runner:
        """Return a runner that ends in time. A checkpoint if the call is one; cancellation goes on."""
        timeout, timeout_ns, clock = self.seconds, self._timeout_ns, self.clock

        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            return await within(timeout, timeout_ns, clock, functools.partial(call_next, func, args, kwargs))

        return run

    def wrap_stream(self, call_next: StreamRunner) -> StreamRunner:
        """Return a stream that ends in time."""
        timeout, timeout_ns, clock = self.seconds, self._timeout_ns, self.clock

        async def run(
            func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> AsyncGenerator[Any, Any]:
            line = MonotoneLine(clock.monotonic_ns())
            deadline_ns = line.last_ns + timeout_ns
            stream = call_next(func, args, kwargs)
            try:
                sent = thrown = None
                while True:
                    left_ns = max(0, deadline_ns - line.at(clock.monotonic_ns()))
                    item = await within(timeout, left_ns, clock, functools.partial(step, stream, sent, thrown))
                    if item is END:
                        return
                    sent = thrown = None
                    try:
                        sent = yield item
                    except GeneratorExit:
                        raise
                    except BaseException as exception:  # noqa: BLE001 - thrown into the stream, whose business it is
                        thrown = exception
            finally:
                await stream.aclose()

        return run
