"""Chaos: what becomes of the calls that are harmed (CH4 to CH7). The laws are listed in `chaotic`."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import (
    Bulkhead,
    CircuitBreaker,
    Deadline,
    Policy,
    Retry,
    Timeout,
    TimeoutExceededError,
    telemetry,
)
from resilience.testing import Chaos, ChaosStatistics
from resilience.testing.injections import Ending, Settings
from tests.resilience.chaotic import (
    FORMS,
    FaultError,
    Kind,
    Recipe,
    Run,
    Trace,
    both_backends,
    endings,
    mutated,
    recipes,
    work,
)
from tests.resilience.support import Crew, assert_caught, heavy
from tests.resilience.worlds import World, every_world, now

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience import Layer
    from resilience.clock import Clock
    from resilience.fusing import Runner
    from resilience.testing.injections import Lot

# -- CH4: the account -----------------------------------------------------------------------------------------------


def law_of_the_account(kind: Kind, world: World, form: str) -> Callable[[], None]:
    """CH4: callers, statistics and events tell the same; the callee runs once or, where it was replaced, never."""

    @given(recipes())
    def law(recipe: Recipe) -> None:
        events: list[telemetry.Event] = []

        async def main(clock: Clock) -> tuple[Trace, int, ChaosStatistics]:
            chaos = recipe.make(kind, form, clock)
            run = Run(chaos, form, clock)
            return await run.trace(12), len(run.begun), chaos.statistics()

        unsubscribe = telemetry.subscribe(events.append)
        trace, begun, statistics = world.run(main)
        unsubscribe()
        ends = Counter(endings(trace))
        told = Counter(event.kind for event in events if isinstance(event, telemetry.ChaosInjected))
        waits = sum(event.delay or 0.0 for event in events if isinstance(event, telemetry.ChaosInjected))
        assert statistics == ChaosStatistics(
            calls=12, latencies=told["latency"], hangs=ends["hang"], faults=ends["fault"], results=ends["result"]
        )
        assert {each: told[each] for each in ("hang", "fault", "result")} == {
            each: ends[each] for each in ("hang", "fault", "result")
        }
        if not ends["hang"]:
            assert waits == pytest.approx(sum(waited for waited, _ in trace))
        assert begun == ends["own"]

    return law


@pytest.mark.parametrize("form", FORMS)
@every_world
def test_everybody_tells_the_same(world: World, form: str) -> None:
    """What callers see is what is counted, what is told, and what the callee was spared."""
    heavy(law_of_the_account(Chaos, world, form))()


class _Hasty(Chaos):
    """A mutant: counts and tells each ending twice."""

    __slots__ = ()

    def _ending(self, settings: Settings, lot: Lot) -> Ending:
        with suppress(FaultError):
            super()._ending(settings, lot)
        return super()._ending(settings, lot)


class _Silent(Chaos):
    """A mutant: tells nobody."""

    __slots__ = ()

    def _announce(self, kind: str, *, delay: float | None = None, error: str | None = None) -> None:
        """Keep it to itself."""


class _Thorough(Chaos):
    """A mutant: lets the callee run all the same."""

    __slots__ = ()

    def wrap(self, call_next: Runner) -> Runner:
        inner = super().wrap(call_next)

        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            result = await inner(func, args, kwargs)
            return result if result == "own" else (await call_next(func, args, kwargs), result)[1]

        return run


@pytest.mark.parametrize("mutant", [_Hasty, _Silent, _Thorough])
@both_backends
def test_law_of_the_account_catches_mutants(mutant: type[Chaos], world: World) -> None:
    """What is counted twice, kept quiet, or done in spite of its result is seen."""
    assert_caught(law_of_the_account(mutant, world, "call"))


# -- CH5: faults are fresh ------------------------------------------------------------------------------------------


def law_of_fresh_faults(kind: Kind, world: World) -> None:
    """CH5: no two calls raise the same object, so that neither tracebacks nor notes grow."""

    async def main(_clock: Clock) -> list[Exception]:
        caught: list[Exception] = []
        for chaos in (kind(fault=FaultError), kind(fault=lambda: FaultError("made"))):
            for func in (chaos(work), Policy(Retry(2, backoff=[0.0]), chaos)(work)):
                for _ in range(3):
                    with pytest.raises(FaultError) as error:
                        await func()
                    caught.append(error.value)
        return caught

    caught = world.run(main)
    assert len({id(error) for error in caught}) == len(caught) == 12
    for retried in (error for error in caught if hasattr(error, "__notes__")):
        assert len(retried.__notes__) == 1


class _Sharing(Settings):
    """A mutant: makes one exception, and raises it again and again."""

    __slots__ = ()

    _made: tuple[Exception, ...] = ()

    def make_fault(self) -> Exception:
        type(self)._made = type(self)._made or (super().make_fault(),)
        return type(self)._made[0]


@every_world
def test_faults_are_fresh(world: World) -> None:
    """From a class and from a function, tried once and tried again; one that is shared is seen."""
    law_of_fresh_faults(Chaos, world)
    assert_caught(partial(law_of_fresh_faults, mutated(_Sharing), world))


# -- CH6: hangs -----------------------------------------------------------------------------------------------------

WAYS = ("scope", "task", "timeout", "deadline")


def law_of_the_hang(kind: Kind, world: World) -> Callable[[], None]:
    """CH6: a hang ends when it is cancelled, by whomever, at that instant, and not before; permits come back."""

    @given(st.sampled_from(WAYS), st.integers(1, 10**7), st.sampled_from(FORMS))
    def law(way: str, after: int, form: str) -> None:
        async def main(clock: Clock) -> None:
            bulkhead = Bulkhead(1)
            breaker = CircuitBreaker(1, clock=clock)
            guards = Policy(bulkhead, breaker, kind(hang_rate=1.0, clock=clock))
            limits: dict[str, Layer] = {
                "timeout": Timeout(after, clock=clock),
                "deadline": Deadline(after, clock=clock),
            }
            limit = limits.get(way)
            run = Run(guards if limit is None else Policy(limit, guards), form, clock)
            started = now(clock)
            ended: list[float] = []

            async def call() -> None:
                try:
                    await run._call()
                finally:
                    ended.append(now(clock))

            async with Crew() as crew:
                job = crew.start(call)
                if limit is not None:
                    await clock.sleep(after + 1)
                else:
                    await clock.sleep(after)
                    assert not job.ended
                    assert bulkhead.statistics().in_use == 1
                    job.cancel(native=way == "task")
                    await clock.sleep(1)
                assert job.cancelled if limit is None else isinstance(job.error, TimeoutExceededError)
                assert ended == [pytest.approx(started + after, abs=1e-6)]
            assert (bulkhead.statistics().in_use, breaker.state.value, run.begun) == (0, "closed", [])

        world.run(main)

    return law


@every_world
def test_a_hang_lasts_until_it_is_cancelled(world: World) -> None:
    """By a cancel scope, by the task's own `cancel`, by a Timeout or a Deadline, however late."""
    heavy(law_of_the_hang(Chaos, world))()


class _Napping(Chaos):
    """A mutant: hangs for an hour."""

    __slots__ = ()

    async def _harm(self) -> Callable[[], Any] | None:
        with anyio.CancelScope() as scope, self.clock.fail_after(3600.0):
            scope.shield = False
            return await super()._harm()
        return None


class _Failing(Chaos):
    """A mutant: takes a cancellation for a failure."""

    __slots__ = ()

    async def _harm(self) -> Callable[[], Any] | None:
        try:
            return await super()._harm()
        except anyio.get_cancelled_exc_class() as error:
            raise FaultError from error


class _Clinging(Chaos):
    """A mutant: takes an eighth of a second to be cancelled."""

    __slots__ = ()

    async def _harm(self) -> Callable[[], Any] | None:
        try:
            return await super()._harm()
        finally:
            with anyio.CancelScope(shield=True):
                await self.clock.sleep(0.125)


@pytest.mark.parametrize("mutant", [_Napping, _Failing, _Clinging])
@both_backends
def test_law_of_the_hang_catches_mutants(mutant: type[Chaos], world: World) -> None:
    """One that ends by itself, swallows its cancellation, or takes its time is seen."""
    assert_caught(law_of_the_hang(mutant, world))


# -- CH7: latencies -------------------------------------------------------------------------------------------------


def law_of_the_latency(kind: Kind, world: World) -> Callable[[], None]:
    """CH7: a call begins so much later, within the range; one that is cancelled meanwhile has not gone wrong."""

    @given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 2**32), st.booleans())
    def law(shortest: int, more: int, seed: int, is_function: bool) -> None:  # noqa: FBT001 - drawn by name
        async def main(clock: Clock) -> None:
            span = (float(shortest), float(shortest + more))
            dice = random.Random(seed)
            chaos = kind(latency=partial(dice.uniform, *span) if is_function else span, clock=clock, random=seed)
            run = Run(chaos, "call", clock)
            started = [now(clock)]
            for _ in range(5):
                waited, ended = await run.ends()
                assert ended == "own"
                assert span[0] - 1e-6 <= waited <= span[1] + 1e-6
                assert run.begun[-1] - started[-1] == pytest.approx(waited, abs=1e-6)
                started.append(now(clock))
            assert more == 0 or len({round(begun - at, 6) for begun, at in zip(run.begun, started, strict=False)}) > 1
            chaos.update(latency=1.0, fault=FaultError)
            async with Crew() as crew:
                job = crew.start(partial(chaos.call, work))
                await clock.sleep(0.5)
                job.cancel()
            assert chaos.statistics() == ChaosStatistics(calls=6, latencies=6)

        world.run(main)

    return law


@every_world
def test_a_latency_comes_before_the_call(world: World) -> None:
    """It is waited for on the clock that was given, and cancelled like any wait."""
    heavy(law_of_the_latency(Chaos, world))()


class _Trailing(Chaos):
    """A mutant: is late after the call."""

    __slots__ = ()

    def wrap(self, call_next: Runner) -> Runner:
        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            result = await call_next(func, args, kwargs)
            await self._harm()
            return result

        return run


class _Foreseeing(Chaos):
    """A mutant: counts how the call will end before it is late."""

    __slots__ = ()

    def _delay(self, settings: Settings, lot: Lot) -> float | None:
        if settings.ending(lot) is Ending.FAULT:
            self._faults.add()
        return super()._delay(settings, lot)


class _Steady(Settings):
    """A mutant: always takes the middle of the range."""

    __slots__ = ()

    def delay(self, lot: Lot) -> float | None:
        return super().delay(lot._replace(length=0.5))


@pytest.mark.parametrize("mutant", [_Trailing, _Foreseeing, mutated(_Steady)])
@both_backends
def test_law_of_the_latency_catches_mutants(mutant: type[Chaos], world: World) -> None:
    """A latency at the wrong end, one that is no range, and an ending that never came are seen."""
    assert_caught(law_of_the_latency(mutant, world))
