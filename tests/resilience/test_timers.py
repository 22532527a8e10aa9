"""Timers: the deadline that a call is under, and the queue in which the calls of one Timeout share one timer."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import sys
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from resilience import SystemClock, Timeout, TimeoutExceededError
from resilience.testing import ManualClock
from resilience.timers import TimeLimit, remaining_ns, within
from tests.resilience.support import in_thread
from tests.resilience.worlds import VirtualLoop, World, every_world, now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from resilience.clock import Clock

FAST = World("asyncio", "system")
SECOND = 10**9


def test_no_deadline_in_plain_code() -> None:
    """Where no event loop runs there is no scope, and nothing is published."""
    assert in_thread(lambda: remaining_ns(SystemClock())) is None
    assert in_thread(lambda: remaining_ns(ManualClock())) is None


@every_world
def test_innermost_and_earliest_deadline_holds(world: World) -> None:
    """Of nested deadlines the earliest holds; each is taken back when its call has ended."""

    async def main(clock: Clock) -> None:
        seen: list[int | None] = []

        async def look() -> None:
            seen.append(remaining_ns(clock))

        for inner, outer in ((2, 5), (5, 2), (2, 2)):
            await Timeout(outer, clock=clock).call(Timeout(inner, clock=clock).call, look)
            await within(outer, outer * SECOND, clock, functools.partial(within, inner, inner * SECOND, clock, look))
        await look()
        assert seen == [2 * SECOND] * 6 + [None]

        async def late() -> None:
            await clock.sleep(0.5)
            await look()

        await Timeout(2.0, clock=clock).call(late)
        assert seen[-1] == SECOND * 3 // 2

    world.run(main)


@every_world
def test_deadline_is_taken_back_however_the_call_ends(world: World) -> None:
    """Also after an exception, a timeout, and a result in spite of one."""

    async def main(clock: Clock) -> None:
        async def fail() -> None:
            raise ValueError

        async def by_timeout(start: Callable[[], Awaitable[None]]) -> None:
            await Timeout(1.0, clock=clock).call(start)

        async def by_within(start: Callable[[], Awaitable[None]]) -> None:
            await within(1.0, SECOND, clock, start)

        async def by_an_inner_timeout(start: Callable[[], Awaitable[None]]) -> None:
            await Timeout(1.0, clock=clock).call(Timeout(5.0, clock=clock).call, start)

        for limited in (by_timeout, by_within, by_an_inner_timeout):
            with pytest.raises(ValueError, match=r"^$"):
                await limited(fail)
            assert remaining_ns(clock) is None
            with pytest.raises(TimeoutExceededError):
                await limited(functools.partial(clock.sleep, 2.0))
            assert remaining_ns(clock) is None

    world.run(main)


@pytest.mark.parametrize("world", [World("asyncio", "system"), World("trio", "system")], ids=str)
def test_cancel_scopes_count_on_the_clock_of_the_system(world: World) -> None:
    """What is left is the least of a Timeout and the scopes around; a cancelled scope leaves nothing."""

    async def main(clock: Clock) -> None:
        seen: list[int | None] = []

        async def look() -> None:
            seen.append(remaining_ns(clock))

        with anyio.fail_after(1.0):
            await look()
            await Timeout(3.0).call(look)
            await Timeout(0.5).call(look)
            assert remaining_ns(ManualClock()) is None
            with anyio.CancelScope(shield=True) as scope:
                await look()
                scope.cancel()
                await look()
        assert seen == [SECOND, SECOND, SECOND // 2, None, 0]

    world.run(main)


def test_other_clocks_have_lines_of_their_own() -> None:
    """A deadline on one clock says nothing on another, and two clocks of the system are one."""

    async def main(clock: Clock) -> None:
        other = ManualClock(5.0)

        async def look() -> None:
            assert remaining_ns(SystemClock()) == 2 * SECOND
            assert remaining_ns(other) is None
            await Timeout(1.0, clock=other).call(look_again)

        async def look_again() -> None:
            assert remaining_ns(other) == SECOND
            # It is the innermost that counts; the timer of the outer one still runs.
            assert remaining_ns(clock) is None

        await Timeout(2.0, clock=clock).call(look)

    FAST.run(main)


def test_outside_of_a_task_there_is_nothing_to_cancel() -> None:
    """Without an event loop a Timeout says so, and the callee does not run."""

    async def work() -> None:
        raise AssertionError("it ran")

    for limited in (Timeout(1.0).call(work), within(1.0, SECOND, SystemClock(), work)):
        with pytest.raises(RuntimeError):
            limited.send(None)


def test_trio_needs_no_asyncio(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that has never imported asyncio, a Timeout works, and does not import it."""
    monkeypatch.delitem(sys.modules, "asyncio")

    async def main(clock: Clock) -> None:
        with pytest.raises(TimeoutExceededError):
            await Timeout(1.0).call(clock.sleep, 2.0)
        assert now(clock) == 1.0
        assert "asyncio" not in sys.modules

    World("trio", "system").run(main)


# -- the shared timer --------------------------------------------------------------------------------------------------


class _CountingLoop(VirtualLoop):
    """An event loop that counts its timers."""

    timers = 0

    def call_at(self, when: float, *args: object, **kwargs: object) -> asyncio.TimerHandle:
        """Count it."""
        self.timers += 1
        return super().call_at(when, *args, **kwargs)  # type: ignore[arg-type]


async def _nothing() -> None:
    """Do nothing."""


def test_calls_that_end_in_time_share_one_timer() -> None:
    """A thousand calls cost one timer, and it does not ring again once there is nobody to ring for."""
    loop = _CountingLoop()

    async def main() -> None:
        timeout = Timeout(3_600.0)
        for _ in range(1_000):
            await timeout.call(_nothing)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main())
        assert loop.timers == 1
        # The timer rings, and is not set again.
        runner.run(asyncio.sleep(7_200.0))
        assert loop.timers == 2
        runner.run(main())
        assert loop.timers == 3


def test_one_time_limit_serves_many_loops_and_forgets_the_closed_ones() -> None:
    """Loops in several threads at once have queues of their own; a closed loop is dropped when the next one comes."""
    limit = TimeLimit(1e-9, SystemClock())
    run = limit.around(lambda func, args, kwargs: func(*args, **kwargs))
    barrier = threading.Barrier(3)
    outcomes: list[str] = []

    async def work() -> None:
        barrier.wait()
        try:
            await run(anyio.sleep, (math.inf,), {})
        except TimeoutExceededError as error:
            outcomes.append(str(error))
        barrier.wait()

    threads = [
        threading.Thread(target=functools.partial(anyio.run, work, backend=backend))
        for backend in ("asyncio", "asyncio", "trio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["timed out after 1e-09 s"] * 3
    assert len(limit._queues) == 2
    anyio.run(run, _nothing, (), {})
    assert [loop.is_closed() for loop in limit._queues] == [True]


# -- frames that are dropped -------------------------------------------------------------------------------------------


async def _forever() -> None:
    await anyio.lowlevel.checkpoint()
    raise AssertionError("it is never resumed")


def _entered(call: Coroutine[object, object, None]) -> list[Coroutine[object, object, None]]:
    """Enter a call in a context of its own, and wait in it."""
    copy_context().run(call.send, None)
    return [call]


@pytest.mark.parametrize("way", ["queue", "timer"])
def test_frame_that_is_dropped_elsewhere_takes_nothing_with_it(way: str) -> None:
    """A call that the garbage collector closes in another context leaves that context, and its task, as they are."""

    async def main(clock: Clock) -> None:
        call = Timeout(1.0).call(_forever) if way == "queue" else within(1.0, SECOND, clock, _forever)
        frames = _entered(call)
        del call

        async def drop() -> None:
            frames.clear()
            gc.collect()
            assert remaining_ns(clock) == 5 * SECOND

        await Timeout(5.0).call(drop)
        await clock.sleep(3.0)
        assert now(clock) == 1_003.0

    FAST.run(main)


def test_frame_that_is_dropped_while_the_timer_rings_is_not_struck() -> None:
    """Whoever leaves while others are being cancelled is passed over."""

    async def main(clock: Clock) -> None:
        timeout = Timeout(1.0)
        frames: list[Coroutine[object, object, None]] = []
        struck: list[str] = []

        class Task(asyncio.Task[None]):
            def cancel(self, msg: object = None) -> bool:
                struck.append(self.get_name())
                frames.clear()
                gc.collect()
                return super().cancel(msg)

        async def first() -> None:
            with pytest.raises(TimeoutExceededError):
                await timeout.call(clock.sleep, 5.0)

        task = Task(first(), loop=asyncio.get_running_loop(), name="first")
        await clock.sleep(0.0)
        frames.extend(_entered(timeout.call(_forever)))
        await task
        await clock.sleep(5.0)
        assert struck == ["first"]

    FAST.run(main)
