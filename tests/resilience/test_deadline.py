"""Deadline: one instant at which everything that is run under it ends."""

from __future__ import annotations

import functools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import ConstantBackoff, Deadline, Policy, Retry, TimeoutExceededError
from resilience.testing import ManualClock
from tests.resilience.support import NOT_POSITIVE, Crew, assert_caught, assert_refuses, brief, heavy, in_thread
from tests.resilience.worlds import World, every_world, now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from resilience.clock import Clock

every_loop = pytest.mark.anyio

EIGHTH = 0.125


class FlakyError(Exception):
    """What the work inside fails with."""


@pytest.mark.parametrize("bad", NOT_POSITIVE, ids=brief)
def test_refuses_bad_durations(bad: object) -> None:
    """A duration that is none is a ValueError that names it."""
    assert_refuses("seconds", bad, Deadline)


@every_world
def test_deadline_is_one_instant_for_all_that_is_run_under_it(world: World) -> None:
    """Calls, blocks and streams share the time that is left; once it has passed nothing is begun."""

    async def main(clock: Clock) -> None:
        deadline = Deadline(3.0, clock=clock)
        assert deadline.remaining() == 3.0
        await deadline.call(clock.sleep, 1.0)
        assert deadline.remaining() == 2.0
        async with deadline as entered:
            assert entered is deadline
            await clock.sleep(0.5)
            async with deadline:
                await clock.sleep(0.5)
        started = now(clock)
        with pytest.raises(TimeoutExceededError, match=r"^timed out after 3 s$"):
            async with deadline:
                await clock.sleep(5.0)
        assert now(clock) - started == 1.0
        assert deadline.remaining() == 0.0
        ran: list[str] = []

        async def work() -> None:
            ran.append("call")

        @deadline
        async def items() -> AsyncIterator[int]:
            ran.append("stream")
            yield 1

        with pytest.raises(TimeoutExceededError):
            await deadline.call(work)
        with pytest.raises(TimeoutExceededError):
            async with deadline:
                ran.append("block")
        with pytest.raises(TimeoutExceededError):
            await anext(items())
        assert ran == []
        assert now(clock) - started == 1.0

    world.run(main)


# -- PO3: one end for all ----------------------------------------------------------------------------------------------


class Under:
    """What is run under a deadline, in each of the ways in which that is done; it notes when it runs and ends."""

    def __init__(self, deadline: Deadline, clock: Clock) -> None:
        self.deadline = deadline
        self.clock = clock
        self.ran = False

    async def work(self, seconds: float) -> None:
        """Take so long."""
        self.ran = True
        await self.clock.sleep(seconds)

    async def call(self, seconds: float) -> None:
        """Be a call."""
        await self.deadline.call(self.work, seconds)

    async def block(self, seconds: float) -> None:
        """Be a block."""
        async with self.deadline:
            await self.work(seconds)

    async def stream(self, seconds: float) -> None:
        """Be a stream of two items, each of which takes half as long."""

        @self.deadline
        async def items() -> AsyncIterator[int]:
            for item in range(2):
                await self.work(seconds / 2)
                yield item

        async for _ in items():
            pass

    async def manager(self, seconds: float) -> None:
        """Be a context manager, half in entering it and half in its block."""

        @asynccontextmanager
        async def manager() -> AsyncIterator[None]:
            await self.work(seconds / 2)
            yield

        async with self.deadline.around(manager):
            await self.work(seconds / 2)


def law_of_the_end(kind: type[Deadline], world: World) -> Callable[[], None]:
    """PO3: what would go on at the deadline ends then, what would begin later does not, and all else is let be."""
    ways = st.sampled_from(["call", "block", "stream", "manager"])
    parts = st.tuples(ways, st.integers(0, 8), st.sampled_from([0, 0, 2, 6]))

    # Sixteenths, so that nothing ends or begins at the very instant of the deadline.
    @given(st.lists(parts, min_size=1, max_size=6), st.integers(0, 24).map(lambda eighths: (eighths + 0.5) * EIGHTH))
    def law(plan: list[tuple[str, int, int]], limit: float) -> None:
        async def main(clock: Clock) -> None:
            began = now(clock)
            deadline = kind(limit, clock=clock)
            time = 0.0
            for way, eighths, pause in plan:
                under = Under(deadline, clock)
                begins, ends = time, time + eighths * EIGHTH
                time = ends if ends < limit else max(limit, begins)
                try:
                    await getattr(under, way)(eighths * EIGHTH)
                    outcome = "done"
                except TimeoutExceededError as error:
                    outcome = f"timeout after {error.seconds}"
                assert outcome == ("done" if ends < limit else f"timeout after {limit}")
                assert under.ran == (begins < limit)
                assert now(clock) - began == time
                assert deadline.remaining() == max(0.0, limit - time)
                await clock.sleep(pause * EIGHTH)
                time += pause * EIGHTH

        world.run(main)

    return law


@every_world
def test_everything_under_a_deadline_ends_by_then(world: World) -> None:
    """PO3: calls, blocks, streams and context managers, one after the other."""
    heavy(law_of_the_end(Deadline, world))()


class _Anew(Deadline):
    """A mutant: each use has all of the time, as under a Timeout."""

    __slots__ = ()

    def _left_ns(self) -> int:
        return round(self.seconds * 10**9)


class _Lenient(Deadline):
    """A mutant: what begins too late may run for a moment."""

    __slots__ = ()

    def _left_ns(self) -> int:
        return max(super()._left_ns(), 1)


class _Early(Deadline):
    """A mutant: ends before its time."""

    __slots__ = ()

    def _left_ns(self) -> int:
        return super()._left_ns() - 100_000_000


@pytest.mark.parametrize("mutant", [_Anew, _Lenient, _Early])
@every_world
def test_law_of_the_end_catches_mutants(mutant: type[Deadline], world: World) -> None:
    """Another end for each, a moment too long, and too short, are seen."""
    assert_caught(law_of_the_end(mutant, world))


@every_world
def test_many_tasks_share_a_deadline(world: World) -> None:
    """Each block is its task's own; at the end all of them end, and so do the tasks started inside."""

    async def main(clock: Clock) -> None:
        deadline = Deadline(2.0, clock=clock)
        ends: list[tuple[str, float]] = []
        started = now(clock)

        async def work(name: str, seconds: float) -> None:
            try:
                async with deadline:
                    await clock.sleep(seconds)
            except TimeoutExceededError:
                name += " too late"
            ends.append((name, now(clock) - started))

        async with deadline, Crew() as crew:
            for name, seconds in (("a", 1.0), ("b", 3.0), ("c", 1.5)):
                crew.start(functools.partial(work, name, seconds))
            await clock.sleep(1.75)
        assert ends == [("a", 1.0), ("c", 1.5)]
        async with Crew() as crew:
            crew.start(functools.partial(work, "d", 3.0))
            await clock.sleep(1.0)
        assert ends[2:] == [("d too late", 2.0)]

    world.run(main)


@every_world
def test_retries_under_a_deadline_give_up_in_time(world: World) -> None:
    """Inside a block and inside a call a retry sees what is left, and does not sleep past it."""

    async def main(clock: Clock) -> None:
        retry = Retry(None, backoff=ConstantBackoff(2.0), clock=clock)

        async def fail() -> None:
            raise FlakyError

        async def in_a_block(deadline: Deadline) -> None:
            async with deadline:
                await retry.call(fail)

        async def in_a_policy(deadline: Deadline) -> None:
            await Policy(deadline, retry).call(fail)

        for way in (in_a_block, in_a_policy):
            started = now(clock)
            with pytest.raises(FlakyError) as caught:
                await way(Deadline(5.0, clock=clock))
            assert now(clock) - started == 4.0
            assert caught.value.__notes__ == ["3 attempts in 4 s; the deadline would pass"]

    world.run(main)


@every_world
def test_own_timeout_error_passes_through_a_block(world: World) -> None:
    """So does a cancellation from outside: it does not become a timeout."""

    async def main(clock: Clock) -> None:
        deadline = Deadline(5.0, clock=clock)
        own = TimeoutError("its own")
        with pytest.raises(TimeoutError) as caught:
            async with deadline:
                raise own
        assert caught.value is own
        async with Crew() as crew:

            async def work() -> None:
                async with deadline:
                    await clock.sleep(10.0)

            jobs = [crew.start(work), crew.start(work)]
            await clock.sleep(1.0)
            jobs[0].cancel(native=True)
            jobs[1].cancel()
            await clock.sleep(0.25)
            assert [(job.cancelled, job.error) for job in jobs] == [(True, None)] * 2

    world.run(main)


@every_loop
async def test_blocks_are_left_in_order_and_by_their_own_task() -> None:
    """Another order, or no block at all, is an error that says so."""
    clock = ManualClock()
    outer, inner = Deadline(5.0, clock=clock), Deadline(5.0, clock=clock)
    with pytest.raises(RuntimeError, match="last in, first out"):
        await outer.__aexit__(None, None, None)
    async with outer, inner:
        with pytest.raises(RuntimeError, match="last in, first out"):
            await outer.__aexit__(None, None, None)


def test_clock_that_steps_back_gives_no_more_time() -> None:
    """What is left stands still while the clock is behind, and no thread sees more than another saw before."""
    clock = ManualClock(100.0)
    deadline = Deadline(5.0, clock=clock)
    clock.advance(2.0)
    assert in_thread(deadline.remaining) == 3.0
    clock.step_back(50.0)
    assert deadline.remaining() == 3.0
    clock.advance(1.0)
    assert deadline.remaining() == 2.0
