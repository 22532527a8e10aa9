"""Hedge: a budget that is shared, and a delay that is learnt."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import resilience.hedge
from resilience import Hedge, Policy, Retry, RetryBudget, Timeout, TimeoutExceededError
from resilience.hedge import _Race
from resilience.testing import ManualClock
from tests.resilience.subjects import Attempts
from tests.resilience.support import Crew, assert_caught, heavy, settle
from tests.resilience.worlds import World, every_world

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.clock import Clock

every_loop = pytest.mark.anyio
#: The world in which a hedge waits on a timer, and no task.
FAST = World("asyncio", "system")


# -- the budget -------------------------------------------------------------------------------------------------------


def law_of_the_shared_budget(race: type[_Race]) -> Callable[[], None]:
    """PO4: hedges and retries together are no more than their share of the first attempts, and one to begin with."""

    @given(st.lists(st.sampled_from(["slow", "slow", "fast", "retried"]), max_size=20))
    def law(calls: list[str]) -> None:
        async def main(clock: Clock) -> None:
            # What trickles in by itself is nothing within the time of this test.
            budget = RetryBudget(0.5, min_per_second=1e-9, reserve_for=1e-9, clock=clock)
            hedge = Hedge(1.0, max_hedges=2, budget=budget, clock=clock)
            retry = Retry(2, budget=budget, backoff=[0.0], clock=clock)
            extra = 0
            for number, call in enumerate(calls, 1):
                if call == "retried":
                    work = Attempts(clock, (0.5, ValueError()), (0.5, "x"))
                    try:
                        await retry.call(work)
                    except ValueError:
                        assert work.begun == 1
                else:
                    work = Attempts(clock, (9.0 if call == "slow" else 0.5, "x"), (9.0, "x"), (9.0, "x"))
                    await hedge.call(work)
                extra += work.begun - 1
                assert extra <= 0.5 * number
            assert budget.available <= 1

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resilience.hedge, "_Race", race)
            FAST.run(main)

    return law


def test_hedges_and_retries_share_a_budget() -> None:
    """A hedge that cannot be paid for does not begin; the call goes on with what runs."""
    heavy(law_of_the_shared_budget(_Race))()


class _Spendthrift(_Race):
    """A mutant: pays if it can, and begins anyhow."""

    __slots__ = ()

    def _begin_another(self) -> bool:
        begun = self._begun
        more = super()._begin_another()
        if self._begun == begun:
            self._begun += 1
            self._running += 1
            self._group.start_soon(self._hedged, self._begun)
        return more


def test_law_of_the_shared_budget_catches_a_mutant() -> None:
    """One that takes no for yes is seen."""
    assert_caught(law_of_the_shared_budget(_Spendthrift))


# -- the delay that is learnt -----------------------------------------------------------------------------------------


async def timed(hedge: Hedge, clock: Clock, seconds: float, outcome: object = None) -> None:
    """Make a call that takes so long."""
    await hedge.call(Attempts(clock, (seconds, outcome), (99.0, None)))


@every_world
def test_nothing_is_hedged_before_there_is_something_to_know(world: World) -> None:
    """The first calls are only watched; then the delay is the quantile of how long they took."""

    async def main(clock: Clock) -> None:
        hedge = Hedge(quantile=0.75, window=8, clock=clock)
        for seconds in (100.0, 1.0, 2.0):
            assert hedge.current_delay() is None
            await timed(hedge, clock, seconds)
        assert hedge.current_delay() is None
        await timed(hedge, clock, 3.0)
        assert hedge.current_delay() == 3.0
        for _ in range(8):
            await timed(hedge, clock, 0.5)
        assert hedge.current_delay() == 0.5

    world.run(main)


@every_world
def test_only_successes_are_learnt_from(world: World) -> None:
    """What fails fast says nothing about how long a call takes; neither does a faulty result, nor a cancelled call."""

    async def main(clock: Clock) -> None:
        hedge = Hedge(quantile=0.5, window=2, on_result=lambda result: result == "bad", clock=clock)
        for _ in range(2):
            with pytest.raises(ValueError, match="x"):
                await timed(hedge, clock, 0.5, ValueError("x"))
            await timed(hedge, clock, 0.5, "bad")
            with pytest.raises(TimeoutExceededError):
                await Policy(Timeout(0.5, clock=clock), hedge).call(Attempts(clock, (2.0, None)))
        assert hedge.current_delay() is None
        for _ in range(2):
            await timed(hedge, clock, 4.0)
        assert hedge.current_delay() == 4.0
        # The first attempt failed: how long it would have taken is not known, and the other's time is another's.
        assert await hedge.call(Attempts(clock, (5.0, ValueError()), (2.0, "second"))) == "second"
        assert hedge.current_delay() == 4.0

    world.run(main)


@every_world
def test_a_learnt_delay_is_no_shorter_than_the_least(world: World) -> None:
    """`min_delay` keeps calls that are always fast from being hedged for nothing."""

    async def main(clock: Clock) -> None:
        hedge = Hedge(quantile=0.5, min_delay=0.25, window=2, clock=clock)
        for _ in range(2):
            await timed(hedge, clock, 0.125)
        assert hedge.current_delay() == 0.25

    world.run(main)


@every_loop
async def test_a_fixed_delay_is_not_learnt() -> None:
    """What calls take does not change it."""
    clock = ManualClock()
    hedge = Hedge(1.0, quantile=0.5, clock=clock)
    async with Crew() as crew:
        for _ in range(3):
            job = crew.start(partial(timed, hedge, clock, 0.5))
            await settle()
            clock.advance(0.5)
            await settle()
            assert job.finished
    assert hedge.current_delay() == 1.0
    assert hedge._times.value() is None


def law_of_the_share(race: type[_Race]) -> Callable[[], None]:
    """In the long run about as many calls are hedged as take longer than the quantile, though losers are cut short."""

    def law() -> None:
        async def main(clock: Clock) -> None:
            dice = random.Random(20_13)
            hedge = Hedge(quantile=0.9, window=200, clock=clock)
            hedged = 0
            for number in range(1_500):
                work = Attempts(clock, *((dice.lognormvariate(0.0, 1.0), None) for _ in range(2)))
                await hedge.call(work)
                hedged += work.begun - 1 if number >= 500 else 0
            assert 70 <= hedged <= 130

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resilience.hedge, "_Race", race)
            FAST.run(main)

    return law


def test_the_share_of_hedged_calls_is_what_was_asked_for() -> None:
    """The delay does not creep down by its own effect."""
    law_of_the_share(_Race)()


class _Creeping(_Race):
    """A mutant: learns from the winner's own time."""

    __slots__ = ()

    async def _hedged(self, number: int) -> None:
        self._started_ns = self._hedge.clock.monotonic_ns()
        await super()._hedged(number)


def test_law_of_the_share_catches_a_mutant() -> None:
    """Were the winners' own times learnt, ever more calls would be hedged."""
    assert_caught(law_of_the_share(_Creeping))


def test_a_description_tells_what_it_does() -> None:
    """The arguments can be read back."""
    assert str(Hedge(0.5, max_hedges=2, name="search").describe()) == "Hedge(delay=0.5, max_hedges=2) 'search'"
