"""Worlds: an event loop and a clock in which time jumps ahead whenever every task waits.

There are four: asyncio and trio, each on a ManualClock and on the system's clock. The latter is the real SystemClock,
with all the short cuts that are taken for it, in an event loop whose own time is virtual; so what is tested is what
runs, and no test waits.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio
import attrs
import pytest
import trio
import trio.testing

from resilience import SystemClock
from resilience.clock import nanoseconds
from resilience.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from resilience.clock import Clock

T = TypeVar("T")


def now(clock: Clock) -> float:
    """Return the time in seconds."""
    return clock.monotonic_ns() / 10**9


class _JumpingSelector(selectors.DefaultSelector):
    """A selector that does not wait: time jumps instead, to when the loop wanted to be called again.

    A loop that has no timers left jumps to the next deadline of its ManualClock; without one it waits for threads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 1_000 * 10**9
        self.manual: ManualClock | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let time jump, and return what is there."""
        if timeout is not None:
            self.now_ns += max(0, math.ceil(timeout * 10**9))
            timeout = 0
        elif self.manual is not None and (due := self.manual.next_deadline()) is not None:
            self.manual.advance(max(0.0, due - self.manual.monotonic_ns() / 10**9))
            timeout = 0
        return super().select(timeout)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop of asyncio in virtual time."""

    def __init__(self) -> None:
        self.selector = _JumpingSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        """Return the virtual time."""
        return self.selector.now_ns / 10**9


@attrs.frozen
class World:
    """One of the four."""

    backend: str
    clock: str

    def run(self, main: Callable[[Clock], Awaitable[T]]) -> T:
        """Run `main(clock)` to its end."""
        if self.backend == "trio":
            return self._run_on_trio(main)
        loop = VirtualLoop()
        if self.clock == "manual":
            clock = loop.selector.manual = ManualClock(1_000.0)
            return _run(lambda: main(clock), "asyncio", loop_factory=lambda: loop)
        with _system_time(lambda: loop.selector.now_ns):
            return _run(lambda: main(SystemClock()), "asyncio", loop_factory=lambda: loop)

    def _run_on_trio(self, main: Callable[[Clock], Awaitable[T]]) -> T:
        if self.clock == "manual":
            return _run(lambda: main(ManualClock(1_000.0, autojump=True)), "trio")
        with _system_time(lambda: nanoseconds(trio.current_time())):
            return _run(lambda: main(SystemClock()), "trio", clock=trio.testing.MockClock(autojump_threshold=0))


@contextmanager
def asyncio_runner() -> Iterator[asyncio.Runner]:
    """Give asyncio's own runner, without anyio, in virtual time, which the system's clock follows."""
    loop = VirtualLoop()
    with _system_time(lambda: loop.selector.now_ns), asyncio.Runner(loop_factory=lambda: loop) as runner:
        yield runner


@contextmanager
def _system_time(read: Callable[[], int]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SystemClock, "monotonic_ns", staticmethod(read))
        yield


def _run(main: Callable[[], Awaitable[T]], backend: str, **options: object) -> T:
    return anyio.run(main, backend=backend, backend_options=options)


WORLDS = tuple(World(backend, clock) for backend in ("asyncio", "trio") for clock in ("manual", "system"))
every_world = pytest.mark.parametrize("world", WORLDS, ids=lambda world: f"{world.backend}-{world.clock}")
