"""RateLimiter under every schedule that Hypothesis thinks of, on both event loops, in virtual time."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience import RateLimiter
from resilience.testing import ManualClock
from tests.resilience.support import Crew, Job, assert_caught, both_loops, heavy, run, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.clock import MonotoneLine
    from resilience.parking import TaskWaiter, Waiter
    from resilience.turns import Reserved

RATE, CAPACITY = 1, 3
EIGHTH = Fraction(1, 8)

Step: TypeAlias = tuple[str, int, int]

schedules = st.lists(
    st.one_of(
        # Start a task that acquires: cost in halves; for how many eighths of a second it would wait (48: for ever).
        st.tuples(st.just("start"), st.integers(1, 6), st.sampled_from([0, 4, 16, 48, 48, 48])),
        st.tuples(st.just("try"), st.integers(1, 6), st.just(0)),
        # Cancel a task by its scope (0) or natively (1), without letting anybody run before or after.
        st.tuples(st.just("cancel"), st.integers(0, 12), st.integers(0, 1)),
        # Let time pass deadline by deadline (0), or jump, so that those who were due on the way wake too late (1).
        st.tuples(st.just("advance"), st.sampled_from([1, 4, 8, 12, 20, 100]), st.sampled_from([0, 0, 0, 1])),
        st.tuples(st.just("back"), st.sampled_from([1, 8, 800]), st.just(0)),
        st.tuples(st.just("settle"), st.just(0), st.just(0)),
        st.tuples(st.just("settle"), st.just(0), st.just(0)),
    ),
    min_size=4,
    max_size=24,
)


class World:
    """A limiter, those who want something of it, and what the laws say about both."""

    def __init__(self, kind: type[RateLimiter]) -> None:
        self.clock = ManualClock(50.0)
        self.limiter = kind(RATE, CAPACITY, clock=self.clock)
        self.elapsed = Fraction(0)
        self.late = Fraction(0)
        self.joined: list[tuple[Job, Fraction, int]] = []
        self.admitted: list[tuple[Fraction, Fraction, int]] = []
        self.cancelled: list[Job] = []
        self.tried = 0

    async def acquire(self, job: list[Job], halves: int, eighths: int) -> bool:
        """Acquire, and put down when that was wanted and when it was had."""
        number = len(self.joined)
        self.joined.append((job[0], self.elapsed, eighths))
        cost = halves / 2
        had = await self.limiter.acquire(cost, max_wait=float("inf") if eighths == 48 else eighths / 8)
        if had:
            self.admitted.append((self.elapsed, Fraction(halves, 2), number))
        return had

    def step_synchronously(self, crew: Crew, step: Step) -> None:
        """Take one step during which no other task runs."""
        name, first, second = step
        if name == "start":
            cell: list[Job] = []
            cell.append(crew.start(lambda: self.acquire(cell, first, second)))
        elif name == "try":
            before = [job for job, _, _ in self.joined if not job.ended and job not in self.cancelled]
            if self.limiter.try_acquire(first / 2):
                self.tried += 1
                self.admitted.append((self.elapsed, Fraction(first, 2), -1))
                # RL5, RL9: whoever still waits in the queue has not been overtaken.
                assert self.limiter.statistics().waiting == 0 or not before
        elif name == "cancel" and crew.jobs:
            job = crew.jobs[first % len(crew.jobs)]
            job.cancel(native=bool(second))
            self.cancelled.append(job)
        elif name == "back":
            # The limiter sees the time before and after, or the step would hide some that has passed.
            before_step = self.limiter.available
            self.clock.step_back(first / 8)
            assert self.limiter.available == before_step

    async def advance(self, amount: Fraction, *, at_once: bool) -> None:
        """Move time on; what was admitted before is put down, and judged, at its own instant."""
        await settle()
        self.judge()
        due = self.clock.next_deadline()
        stride = amount
        if due is not None:
            stride = min(amount, max(Fraction(0), Fraction(due) - Fraction(self.clock.monotonic_ns(), 10**9)))
        if at_once:
            self.late += amount - stride
            stride = amount
        self.clock.advance(float(stride))
        self.elapsed += stride
        if stride < amount:
            await self.advance(amount - stride, at_once=False)

    def judge(self) -> None:
        """Judge a moment at which everybody waits."""
        self.judge_bound()
        # Looking at the level lets the limiter see the time, and nothing else.
        assert 0 <= self.limiter.available <= CAPACITY
        waiting = [entry for entry in self.joined if not entry[0].ended]
        # RL5: whoever was let in came before all who still wait; and so it was at every instant before.
        numbers = [number for _, _, number in self.admitted if number >= 0]
        still = [number for number, (job, _, _) in enumerate(self.joined) if not job.ended]
        assert not still or not numbers or max(numbers) < min(still)
        by_instant = [(at, number) for at, _, number in self.admitted if number >= 0]
        assert [at for at, _ in by_instant] == [at for at, _ in sorted(by_instant, key=lambda entry: entry[1])]
        # RL6, RL11: nobody waits for what is there.
        assert self.limiter.statistics().waiting == len(waiting)
        head = self.limiter._queue.head
        if head is not None:
            assert self.limiter._bucket.ready_at(head.units) > self.limiter._line.last_ns
        # RL3, RL10: nobody waits longer than he said, whatever the clock did, but by what the wake-ups came too late.
        for _, since, eighths in waiting:
            assert eighths == 48 or self.elapsed <= since + eighths * EIGHTH + self.late
        for job, _, eighths in self.joined:
            assert eighths != 48 or job.result is not False
        # RL7: what was cancelled has ended, either with its tokens or with its cancellation, never both or neither.
        for job in self.cancelled:
            assert job.ended
            assert job.error is None
            assert job.finished != job.cancelled

    def judge_bound(self) -> None:
        """RL1, RL2: at most the capacity and what flowed in was admitted in every interval."""
        excess, previous = Fraction(0), Fraction(0)
        for at, cost, _ in self.admitted:
            excess = max(Fraction(0), excess - (at - previous) * RATE) + cost
            previous = at
            assert excess <= CAPACITY

    def judge_ledger(self) -> None:
        """RL8: everybody has left; what is counted, held and queued is what it should be."""
        self.judge_bound()
        assert self.limiter.statistics().admitted == len(self.admitted)
        assert self.limiter.statistics().waiting == self.limiter._queued_units == self.limiter._bucket._outstanding == 0
        level, previous = Fraction(CAPACITY), Fraction(0)
        for at, cost, _ in self.admitted:
            level = min(Fraction(CAPACITY), level + (at - previous) * RATE) - cost
            previous = at
        level = min(Fraction(CAPACITY), level + (self.elapsed - previous) * RATE)
        assert self.limiter.available <= float(level)
        if not self.cancelled:
            assert self.limiter.available == float(level)
        self.clock.advance(float(CAPACITY))
        assert self.limiter.available == CAPACITY


def law_of_schedules(kind: type[RateLimiter], backend: str) -> Callable[[], None]:
    """RL1 to RL3, RL5 to RL11, over tasks that come, wait, are cancelled at any point, and a clock that steps back."""

    @given(schedules)
    @example([("try", 6, 0), ("start", 6, 48), ("settle", 0, 0), ("start", 2, 16), ("advance", 20, 0)])
    @example(
        [
            ("try", 6, 0),
            ("start", 2, 48),
            ("settle", 0, 0),
            ("start", 2, 48),
            ("settle", 0, 0),
            ("cancel", 0, 0),
            ("advance", 20, 0),
        ]
    )
    def law(steps: list[Step]) -> None:
        async def main() -> None:
            world = World(kind)
            async with Crew() as crew:
                for step in steps:
                    if step[0] == "advance":
                        await world.advance(step[1] * EIGHTH, at_once=bool(step[2]))
                    elif step[0] == "settle":
                        await settle()
                        world.judge()
                    else:
                        world.step_synchronously(crew, step)
                await settle()
                world.judge()
                left = [job for job in crew.jobs if not job.ended]
                world.cancelled += left
                for job in left:
                    job.cancel()
                await settle()
                world.judge()
            world.judge_ledger()

        run(backend, main)

    return law


@both_loops
def test_limiter_keeps_its_laws_under_every_schedule(backend: str) -> None:
    """RL1 to RL3, RL5 to RL11 hold, wherever a cancellation lands and whatever the clock does."""
    heavy(law_of_schedules(RateLimiter, backend))()


class _Leaking(RateLimiter):
    """A mutant: forgets the tokens of a waiter that was granted and cancelled."""

    def _abandon(self, waiter: Waiter) -> None:
        if waiter.granted:
            waiter.granted = False
            return
        super()._abandon(waiter)


class _Silent(RateLimiter):
    """A mutant: a waiter that gives up tells nobody."""

    def _abandon(self, waiter: Waiter) -> None:
        if waiter in self._queue:
            here = self._queue._places[waiter.place]
            del self._queue.waiters[waiter], here[waiter]
            if not here:
                del self._queue._places[waiter.place]
            self._queued_units -= waiter.units
            return
        super()._abandon(waiter)


class _Forgetful(RateLimiter):
    """A mutant: a waiter that gives up stays in the queue."""

    def _abandon(self, waiter: Waiter) -> None:
        pass


class _Barging(RateLimiter):
    """A mutant: newcomers take what is there, whoever waits."""

    def _take(self, cost: float, reading_ns: int | None = None) -> int | None:  # noqa: ARG002 - nobody gives one
        with self._lock:
            admitted = self._bucket.take(self._line.at(self.clock.monotonic_ns()), self._units(cost))
            self._admitted += admitted
            return self._bucket.tat if admitted else None


class _Swallowing(RateLimiter):
    """A mutant: makes a refusal of a cancellation."""

    async def _park(self, waiter: TaskWaiter | Reserved) -> bool:
        try:
            return await super()._park(waiter)
        except GeneratorExit:
            raise
        except BaseException:  # noqa: BLE001 - the mutation
            return False


class _Twice(RateLimiter):
    """A mutant: gives back what was never granted, too."""

    def _abandon(self, waiter: Waiter) -> None:
        never_granted = waiter in self._queue
        super()._abandon(waiter)
        if never_granted:
            self._bucket.tat -= waiter.units


class _Optimistic(RateLimiter):
    """A mutant: does not count those who wait already when it says whether a turn will come in time."""

    def _join(self, waiter: Waiter, cost: float, max_wait_ns: int | None) -> bool:
        queued, self._queued_units = self._queued_units, 0
        joined = super()._join(waiter, cost, max_wait_ns)
        self._queued_units += queued
        return joined


class _LateLine:
    """A line of time that waits until a clock that stepped back has caught up."""

    def __init__(self, line: MonotoneLine) -> None:
        self.last_ns = line.last_ns
        self.offset_ns = 0

    def at(self, clock_ns: int) -> int:
        self.last_ns = max(self.last_ns, clock_ns)
        return self.last_ns

    def stand_still(self, behind_ns: int) -> int:  # noqa: ARG002
        return self.last_ns


class _CatchingUp(RateLimiter):
    """A mutant: a step back of the clock is time that everybody waits longer."""

    def __init__(self, rate: float, capacity: float, *, clock: ManualClock) -> None:
        super().__init__(rate, capacity, clock=clock)
        self._line = _LateLine(self._line)  # type: ignore[assignment]


@pytest.mark.parametrize(
    "mutant", [_Leaking, _Silent, _Forgetful, _Barging, _Swallowing, _Twice, _Optimistic, _CatchingUp]
)
@both_loops
def test_laws_of_schedules_catch_mutants(mutant: type[RateLimiter], backend: str) -> None:
    """Each classic bug violates a law in a schedule that the search finds, on either event loop."""
    assert_caught(law_of_schedules(mutant, backend))
