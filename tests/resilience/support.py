"""What the tests of `resilience` share: both event loops, schedules in virtual time, bad arguments, mutants.

A property is a plain function that takes what it judges (a machine, a guard's class) and draws its examples itself.
So the very same property judges the real thing and, by `assert_caught`, a mutant with a classic bug.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.lowlevel
import hypothesis
import pytest
from hypothesis import HealthCheck, Phase

from resilience.testing import ManualClock

if TYPE_CHECKING:
    import asyncio
    import contextlib
    from collections.abc import Awaitable, Callable
    from typing import Self

    import trio

    from resilience.clock import Clock

T = TypeVar("T")

BACKENDS = ("asyncio", "trio")
both_loops = pytest.mark.parametrize("backend", BACKENDS)

#: For the properties that start an event loop in every example.
heavy = hypothesis.settings(max_examples=60, deadline=None)

_HUNT = hypothesis.settings(
    max_examples=2_000,
    deadline=None,
    database=None,
    derandomize=True,
    # Finding is enough: nobody reads the smallest example that shows a mutant.
    phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

#: What no duration, rate or size may be.
NOT_POSITIVE = (0, -1, math.nan, math.inf, True, "x", None, 10**400)
NOT_NEGATIVE = (-1, math.nan, math.inf, True, "x", 10**400)
NOT_A_COUNT = (0, -1, 1.5, math.nan, math.inf, True, "x", None)


def brief(value: object) -> str:
    """Return the name of a bad argument in a test's name; one of them has four hundred digits."""
    return repr(value)[:12]


def assert_refuses(name: str, value: object, make: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Assert that a bad argument is a ValueError that names it and its value."""
    with pytest.raises(ValueError) as caught:
        make(*args, **{name: value}, **kwargs)
    message = str(caught.value)
    assert message.startswith(f"{name} must be ")
    shown = f"{value.bit_length()} bits" if isinstance(value, int) and abs(value) > sys.float_info.max else repr(value)
    assert shown in message


def assert_caught(law: Callable[[], None]) -> None:
    """Assert that a property, bound to a mutant, is violated: a property that nothing violates says nothing."""
    hunted = law
    if hasattr(law, "hypothesis"):
        hunted = _HUNT(law)
    with pytest.raises(AssertionError):
        hunted()


def run(backend: str, main: Callable[[], Awaitable[T]]) -> T:
    """Run an async function to its end in a fresh event loop."""
    return anyio.run(main, backend=backend)


async def settle() -> None:
    """Let every other task run until all of them wait. Costs no real time, unlike `anyio.wait_all_tasks_blocked`."""
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            import trio.testing

            await trio.testing.wait_all_tasks_blocked()
            return
    import asyncio

    this = asyncio.current_task()
    quiet = 0
    while quiet < 3:
        await asyncio.sleep(0)
        waiters = [task._fut_waiter for task in asyncio.all_tasks() if task is not this]  # type: ignore[attr-defined]
        idle = all(waiter is not None and not waiter.done() for waiter in waiters)
        quiet = quiet + 1 if idle else 0


class HookedClock(ManualClock):
    """A clock whose readings a test may intrude upon: guards read it while they hold their lock."""

    __slots__ = ("hook",)

    def __init__(self) -> None:
        super().__init__()
        self.hook: Callable[[], object] | None = None

    def monotonic_ns(self) -> int:
        """Run the hook, once, as the garbage collector or another thread might; then read the time."""
        hook, self.hook = self.hook, None
        if hook is not None:
            hook()
        return super().monotonic_ns()


class SleepingClock:
    """A clock of a user that can only sleep: the least that the protocol asks for, on a ManualClock's time."""

    def __init__(self) -> None:
        self.inner = ManualClock()
        self.monotonic_ns = self.inner.monotonic_ns
        self.time_ns = self.inner.time_ns
        self.sleep = self.inner.sleep
        self.fail_after = self.inner.fail_after

    def sleep_blocking(self, seconds: float, /) -> None:
        """Move the time on instead of blocking."""
        self.inner.advance(seconds)


def as_clock(clock: Clock) -> Clock:
    """Return the argument: for the type checker, which thereby sees that it is a clock."""
    return clock


def in_thread(func: Callable[[], T]) -> T:
    """Run `func` in a fresh thread; return what it returns or raise what it raises."""
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(func())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


class Door:
    """A lock that tells when it stops somebody, or, to show what that is good for, one that stops nobody."""

    def __init__(self, stopped: threading.Event, *, locks: bool = True) -> None:
        self._lock = threading.Lock()
        self._stopped = stopped
        self._locks = locks

    def __enter__(self) -> None:
        """Go in, sooner or later."""
        if self._locks and not self._lock.acquire(blocking=False):
            self._stopped.set()
            self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        """Go out."""
        if self._locks:
            self._lock.release()


async def until(condition: Callable[[], bool]) -> None:
    """Yield until the condition holds; for what another thread does. The test's own timeout is its limit."""
    while not condition():
        await anyio.lowlevel.checkpoint()


def until_blocking(condition: Callable[[], bool]) -> None:
    """Do the same in plain code."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


class Job:
    """One task of a Crew, and how it ended."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.task: asyncio.Task[None] | None = None
        self.result: object = None
        self.error: Exception | None = None
        self.finished = False
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether its cancellation came through, also one that came before its first step."""
        return self._cancelled or (self.task is not None and self.task.done() and self.task.cancelled())

    @property
    def ended(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.finished or self.cancelled or self.error is not None

    def cancel(self, *, native: bool = False) -> None:
        """Cancel it by its cancel scope or, on asyncio, by the task's own `cancel`."""
        if native and self.task is not None:
            self.task.cancel()
        else:
            self.scope.cancel()


class Crew:
    """Tasks that are started, cancelled in either way, and looked at; leaving it cancels those that are left."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._nursery: trio.Nursery | None = None
        self._manager: contextlib.AbstractAsyncContextManager[trio.Nursery] | None = None

    async def __aenter__(self) -> Self:
        if "trio" in sys.modules:
            import trio

            if trio.lowlevel.in_trio_run():
                self._manager = trio.open_nursery()
                self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        for job in self.jobs:
            job.cancel()
        if self._manager is not None:
            await self._manager.__aexit__(None, None, None)
        else:
            await settle()

    def start(self, func: Callable[[], Awaitable[object]]) -> Job:
        """Start a task; it takes its first step when the caller next waits."""
        job = Job()
        self.jobs.append(job)
        if self._nursery is not None:
            self._nursery.start_soon(self._work, job, func)
        else:
            import asyncio

            job.task = asyncio.get_running_loop().create_task(self._work(job, func))
        return job

    async def _work(self, job: Job, func: Callable[[], Awaitable[object]]) -> None:
        try:
            with job.scope:
                job.result = await func()
                job.finished = True
        except Exception as error:  # noqa: BLE001 - looked at by the test
            job.error = error
        except BaseException:
            job._cancelled = True
            raise
        job._cancelled = not job.finished and job.scope.cancelled_caught
