"""Retry between tasks, threads and event loops: every call is on its own, and a shared budget bounds them all."""

from __future__ import annotations

import functools
import random
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import ConstantBackoff, ExponentialBackoff, Retry, RetryBudget, SystemClock
from tests.resilience.support import Crew, Job, assert_caught, heavy
from tests.resilience.worlds import World, every_world, now

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.clock import Clock
    from resilience.fusing import Runner

EIGHTH = 1 / 8


class FlakyError(Exception):
    """What is worth another attempt."""


# -- one Retry, many threads and tasks ---------------------------------------------------------------------------------

_DELAYS: ContextVar[list[float]] = ContextVar("delays")


class _TurnTaking(SystemClock):
    """A clock on which nobody sleeps, but everybody gives way to the others; each call's delays are noted for it."""

    __slots__ = ()

    async def sleep(self, seconds: float, /) -> None:
        """Note it, and let others run."""
        _DELAYS.get().append(seconds)
        await anyio.lowlevel.checkpoint()

    def sleep_blocking(self, seconds: float, /) -> None:
        """Do the same in plain code."""
        _DELAYS.get().append(seconds)
        threading.Event().wait(0)


class _Even(random.Random):
    """Dice that always show the middle, so that each delay follows from the one before."""

    def random(self) -> float:
        """Return a half."""
        return 0.5


@attrs.define(eq=False)
class Call:
    """One call: it fails so often before it succeeds. What it saw is its own, or something is shared."""

    failures: int
    made: int = 0
    delays: list[float] = attrs.field(factory=list)
    end: str = "under way"

    def work(self) -> int:
        """Make an attempt."""
        self.made += 1
        if self.made <= self.failures:
            raise FlakyError(self.failures)
        return self.failures

    async def work_in_turns(self) -> int:
        """Let others go first."""
        await anyio.lowlevel.checkpoint()
        return self.work()

    async def run(self, retry: Retry) -> None:
        """Be called in async code."""
        _DELAYS.set(self.delays)
        try:
            self.end = f"result {await retry.call(self.work_in_turns)}"
        except FlakyError as error:
            self._fail(error)

    def run_blocking(self, retry: Retry) -> None:
        """Be called in plain code."""
        _DELAYS.set(self.delays)
        try:
            self.end = f"result {retry(self.work)()}"
        except FlakyError as error:
            self._fail(error)

    def _fail(self, error: FlakyError) -> None:
        self.end = f"error {error}; {error.__notes__[0].partition('; ')[2]}"


class Crowd:
    """Threads that start together, each with many calls of the same Retry."""

    ATTEMPTS = 5

    def __init__(self, kind: type[Retry], threads: int, calls: int) -> None:
        # A decorrelated delay depends on the one before: what one call remembers of another would show.
        self.backoff = ExponentialBackoff(1.0, cap=1e6, jitter="decorrelated")
        self.retry = kind(self.ATTEMPTS, on=FlakyError, backoff=self.backoff, clock=_TurnTaking(), random=_Even())
        self.calls = [[Call(number % (self.ATTEMPTS + 2)) for number in range(calls)] for _ in range(threads)]
        self.barrier = threading.Barrier(threads)

    def run(self) -> None:
        """Run them all to their ends."""
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(len(self.calls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, number: int) -> None:
        calls = self.calls[number]

        async def main() -> None:
            async with anyio.create_task_group() as group:
                for call in calls:
                    group.start_soon(call.run, self.retry)

        self.barrier.wait()
        # Two threads of three have an event loop, of either kind; the third is plain code.
        if number % 3 < 2:
            anyio.run(main, backend=("asyncio", "trio")[number % 3])
        else:
            for call in calls:
                call.run_blocking(self.retry)

    def expected(self, failures: int) -> Call:
        """Return a call as it is when it is alone."""
        call = Call(failures, made=min(failures + 1, self.ATTEMPTS))
        previous_ns = 0
        for number in range(1, call.made):
            previous_ns = self.backoff.delay_ns(number, 0.5, previous_ns)
            call.delays.append(previous_ns / 10**9)
        used_up = failures >= self.ATTEMPTS
        call.end = f"error {failures}; the attempts are used up" if used_up else f"result {failures}"
        return call


def law_of_independence(kind: type[Retry], *, threads: int, calls: int) -> None:
    """One Retry, used by many tasks in several threads and loops at once, treats each call as if it were alone."""
    crowd = Crowd(kind, threads, calls)
    crowd.run()
    for call in (call for calls in crowd.calls for call in calls):
        assert attrs.astuple(call) == attrs.astuple(crowd.expected(call.failures))


def test_one_retry_is_used_by_several_threads_and_many_tasks_at_once() -> None:
    """Concurrent access to the retry logic: 6 threads with 60 calls each, on asyncio, on trio and in plain code.

    Every call has exactly its own attempts, its own delays and its own end.
    """
    law_of_independence(Retry, threads=6, calls=60)


class _CountingOnItself(Retry):
    """A mutant: counts the failures of all calls together."""

    failed = 0

    def wrap(self, call_next: Runner) -> Runner:
        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            while True:
                try:
                    return await call_next(func, args, kwargs)
                except FlakyError as error:
                    self.failed += 1
                    if self.failed % Crowd.ATTEMPTS == 0:
                        error.add_note("5 attempts; the attempts are used up")
                        raise
                    await self.clock.sleep(0.0)

        return run


class _RememberingDelays(Retry):
    """A mutant: the delays of all calls grow from one another."""

    def __init__(self, attempts: int, *, backoff: ExponentialBackoff, **rest: Any) -> None:  # noqa: ANN401
        class Remembering:
            cap = backoff.cap
            last_ns = 0

            def delay_ns(self, attempt: int, u: float, previous_ns: int) -> int:  # noqa: ARG002 - its fault
                self.last_ns = backoff.delay_ns(attempt, u, self.last_ns)
                return self.last_ns

        super().__init__(attempts, backoff=Remembering(), **rest)


@pytest.mark.parametrize("mutant", [_CountingOnItself, _RememberingDelays])
@pytest.mark.parametrize("threads", [1, 3])
def test_law_of_independence_catches_mutants(mutant: type[Retry], threads: int) -> None:
    """What calls share is seen, between the tasks of one event loop and between threads."""
    assert_caught(functools.partial(law_of_independence, mutant, threads=threads, calls=20))


# -- PO4: a budget that many Retry layers share ------------------------------------------------------------------------


def law_of_the_shared_budget(kind: type[Retry], world: World) -> Callable[[], None]:
    """PO4: in every window the retries of all layers together are bounded by their first attempts and the reserve."""

    @given(
        st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=12),
        st.sampled_from([0.1, 0.5, 1.0]),
        st.sampled_from([0.25, 1.0, 2.0]),
        st.sampled_from([0.5, 2.0]),
    )
    def law(plan: list[tuple[int, bool]], ratio: float, per_second: float, reserve_for: float) -> None:
        async def main(clock: Clock) -> None:
            budget = RetryBudget(ratio, per_second, reserve_for, clock=clock)
            layers = [kind(4, backoff=ConstantBackoff(EIGHTH), budget=budget, clock=clock) for _ in range(2)]
            log: list[tuple[float, bool]] = []
            withheld: list[float] = []
            notes: list[tuple[int, str]] = []

            async def call(at: int, layer: Retry) -> None:
                made = 0

                async def fail() -> None:
                    nonlocal made
                    # A retry is paid for when it is decided on, which is one delay before it is made.
                    log.append((now(clock) - (EIGHTH if made else 0.0), made > 0))
                    made += 1
                    raise FlakyError

                await clock.sleep(at * EIGHTH)
                try:
                    await layer.call(fail)
                except FlakyError as error:
                    if made < 4:
                        withheld.append(budget.available)
                    notes.append((made, error.__notes__[0].partition("; ")[2] if made > 1 else ""))

            async with Crew() as crew:
                jobs = [crew.start(functools.partial(call, at, layers[which])) for at, which in plan]
                await clock.sleep(100.0)
                assert [job.error for job in jobs] == [None] * len(jobs)
            log.sort()
            for index, (start, _) in enumerate(log):
                for end, _ in log[index:]:
                    window = [retry for at, retry in log if start <= at <= end]
                    earned = ratio * window.count(False) + per_second * (end - start)
                    assert window.count(True) <= earned + max(1.0, per_second * reserve_for) + 1e-9
            ends = {
                1: "",
                2: "the retry budget is spent",
                3: "the retry budget is spent",
                4: "the attempts are used up",
            }
            assert notes == [(made, ends[made]) for made, _ in notes]
            # Nothing is withheld that could have been paid for.
            assert all(available < 1 for available in withheld)

        world.run(main)

    return law


@every_world
def test_shared_budget_bounds_the_retries_of_all(world: World) -> None:
    """PO4: of calls that all fail, through two layers that share it."""
    heavy(law_of_the_shared_budget(Retry, world))()


class _Spendthrift(Retry):
    """A mutant: does not pay."""

    def __init__(self, attempts: int, *, budget: RetryBudget, **rest: Any) -> None:  # noqa: ANN401
        super().__init__(attempts, **rest)
        assert budget.available >= 0


class _Timid(Retry):
    """A mutant: leaves the last retry to the others."""

    def __init__(self, attempts: int, *, budget: RetryBudget, **rest: Any) -> None:  # noqa: ANN401
        class Reserved(RetryBudget):
            __slots__ = ()

            def first_attempt(self) -> None:
                budget.first_attempt()

            def try_spend(self) -> bool:
                return budget.available >= 2 and budget.try_spend()

        super().__init__(attempts, budget=Reserved(clock=budget.clock), **rest)


@pytest.mark.parametrize("mutant", [_Spendthrift, _Timid])
@every_world
def test_law_of_the_shared_budget_catches_mutants(mutant: type[Retry], world: World) -> None:
    """A layer that does not pay, and one that gives up though there is something left, are seen."""
    assert_caught(law_of_the_shared_budget(mutant, world))


# -- PO5: cancellation -------------------------------------------------------------------------------------------------


def law_of_cancellation(kind: type[Retry], world: World) -> Callable[[], None]:
    """PO5: a cancellation ends a retried call at once, during an attempt and during a delay, and nothing follows it."""

    @given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=5), st.booleans())
    def law(plan: list[tuple[int, bool]], by_block: bool) -> None:  # noqa: FBT001 - drawn by position
        async def main(clock: Clock) -> None:
            retry = kind(None, backoff=ConstantBackoff(3 * EIGHTH), clock=clock)
            ends: dict[int, float] = {}
            made: list[tuple[int, float]] = []

            async def work(number: int) -> None:
                async def fail() -> None:
                    made.append((number, now(clock)))
                    await clock.sleep(2 * EIGHTH)
                    raise FlakyError

                try:
                    if by_block:
                        async for attempt in retry.attempts():
                            with attempt:
                                await fail()
                    else:
                        await retry.call(fail)
                finally:
                    ends[number] = now(clock)

            async def cancel(job: Job, after: int, *, native: bool) -> None:
                # Half an eighth, so that no attempt ends at that very instant.
                await clock.sleep((after + 0.5) * EIGHTH)
                job.cancel(native=native)

            began = now(clock)
            async with Crew() as crew:
                jobs = [crew.start(functools.partial(work, number)) for number in range(len(plan))]
                for job, (after, native) in zip(jobs, plan, strict=True):
                    crew.start(functools.partial(cancel, job, after, native=native))
                await clock.sleep(20.0)
                assert [(job.cancelled, job.error) for job in jobs] == [(True, None)] * len(jobs)
            for number, end in ends.items():
                assert end - began == (plan[number][0] + 0.5) * EIGHTH
            assert all(at <= ends[number] for number, at in made)

        world.run(main)

    return law


@every_world
def test_cancellation_ends_a_retried_call_at_once(world: World) -> None:
    """PO5: by scope or by the task's own `cancel`, of a call and of a block."""
    heavy(law_of_cancellation(Retry, world))()


class _Unstoppable(Retry):
    """A mutant: takes a cancellation for one more failure."""

    def wrap(self, call_next: Runner) -> Runner:
        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            for _ in range(10):
                try:
                    return await call_next(func, args, kwargs)
                except BaseException:  # noqa: BLE001 - its fault
                    with anyio.CancelScope(shield=True):
                        await self.clock.sleep(self.backoff.cap)
            raise FlakyError

        return run


@every_world
def test_law_of_cancellation_catches_mutants(world: World) -> None:
    """A retry of what was cancelled is seen."""
    assert_caught(law_of_cancellation(_Unstoppable, world))
