"""Hedge: one result, bounded attempts, and none that outlives its call."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resilience.hedge
from resilience import Hedge
from resilience.hedge import _Race
from tests.resilience.support import NOT_A_COUNT, NOT_NEGATIVE, Crew, assert_caught, assert_refuses, brief, heavy
from tests.resilience.worlds import World, every_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from resilience.clock import Clock

#: The world in which a hedge waits on a timer, and no task.
FAST = World("asyncio", "system")
#: Instants are counted in these; a float holds each of them exactly.
TICK = 1 / 64


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", NOT_NEGATIVE, ids=brief)
def test_refuses_bad_durations(bad: object) -> None:
    """A delay, and the least of those that are learnt, is a finite number of at least 0."""
    assert_refuses("delay", bad, Hedge)
    assert_refuses("min_delay", bad, Hedge)


@pytest.mark.parametrize("bad", NOT_A_COUNT, ids=brief)
def test_refuses_bad_counts(bad: object) -> None:
    """There is at least one hedge, and at least one call to learn from."""
    assert_refuses("max_hedges", bad, Hedge)
    assert_refuses("window", bad, Hedge)


@pytest.mark.parametrize("bad", [*NOT_NEGATIVE, 0, 0.0, 1, 1.0, 1.5], ids=brief)
def test_refuses_bad_quantiles(bad: object) -> None:
    """A quantile lies between 0 and 1, and is neither."""
    assert_refuses("quantile", bad, Hedge)


def test_refuses_a_window_too_small_for_its_quantile() -> None:
    """Of fifty values the 99th percentile is the largest by need: a window of a hundred is the least."""
    assert Hedge(quantile=0.99, window=100).window == 100
    assert_refuses("window", 99, partial(Hedge, quantile=0.99))


def test_refuses_other_bad_arguments() -> None:
    """A budget is a RetryBudget, a predicate is callable, a name a string."""
    assert_refuses("budget", 0.1, Hedge)
    assert_refuses("on", BaseException, Hedge)
    assert_refuses("on_result", "bad", Hedge)
    assert_refuses("name", 3, Hedge)


def test_refuses_what_cannot_run_twice_at_once() -> None:
    """Plain functions and async generators are TypeErrors when they are decorated."""

    def plain() -> None: ...

    async def stream() -> AsyncIterator[int]:
        yield 1

    with pytest.raises(TypeError, match="Hedge cannot guard the plain function"):
        Hedge(1.0)(plain)
    with pytest.raises(TypeError, match="Hedge cannot guard the async generator"):
        Hedge(1.0)(stream)


# -- the law ----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Script:
    """What one attempt does: it takes so many ticks and ends so; cancelled, it takes so many more, and ends so."""

    ticks: int
    end: str
    cleanup: int
    last_words: str


@attrs.frozen
class Case:
    """A hedge, what its attempts do, and when, if ever, the call is cancelled from outside."""

    delay: int
    scripts: tuple[Script, ...]
    cancelled_at: int | None
    native: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a case in which no two things happen at the same instant, so that there is one right answer."""
    native = draw(st.booleans())
    scripts = [
        Script(
            ticks=8 * draw(st.integers(0, 8)) + number + 1,
            end=draw(st.sampled_from(["good", "good", "bad", "failed", "fatal"])),
            # A native cancellation is heard of by the first attempt alone, until that has ended.
            cleanup=0 if native and not number else draw(st.sampled_from([0, 0, 8, 16])),
            last_words=draw(st.sampled_from(["cancelled", "cancelled", "result", "error"])),
        )
        for number in range(draw(st.integers(2, 4)))
    ]
    return Case(
        delay=8 * draw(st.integers(1, 4)),
        scripts=tuple(scripts),
        cancelled_at=draw(st.none() | st.integers(0, 10).map(lambda eighths: 8 * eighths + 7)),
        native=native,
    )


def expected(case: Case) -> tuple[list[tuple[int, str, int]], str, int]:
    """Return, by going through the ticks: what happens when to which attempt, how the call ends, and when."""
    trace: list[tuple[int, str, int]] = []
    running: dict[int, int] = {}
    end, tick = "", -1
    while not end:
        tick += 1
        if tick == case.cancelled_at:
            end = "cancelled"
        number, is_time = divmod(tick, case.delay)
        if not is_time and number < len(case.scripts) and (running or not number):
            trace.append((tick, "begins", number))
            running[number] = tick + case.scripts[number].ticks
        for number in [number for number, at in running.items() if at == tick]:
            del running[number]
            how = case.scripts[number].end
            trace.append((tick, how, number))
            if how in {"good", "fatal"} or not running:
                end = f"{how} {number}"
    last = tick
    for number in running:
        ended = tick + case.scripts[number].cleanup
        last = max(last, ended)
        trace.append((ended, "cancelled", number))
    if case.cancelled_at is not None and tick < case.cancelled_at < last:
        # The call has not ended before the last of its attempts has: up to then it can be cancelled.
        end = "cancelled"
    return sorted(trace), end, last


class FailedError(Exception):
    """A failure after which the others may still succeed."""


class FatalError(Exception):
    """A failure that ends the call."""


class Scene:
    """A case on its way."""

    def __init__(self, case: Case, clock: Clock) -> None:
        self.case = case
        self.clock = clock
        self.started_ns = clock.monotonic_ns()
        self.trace: list[tuple[int, str, int]] = []
        self.is_cancelled = False
        self.end, self.last = "never", -1

    def ticks(self) -> int:
        """Return how much time has passed."""
        return round((self.clock.monotonic_ns() - self.started_ns) / 10**9 / TICK)

    async def attempt(self) -> str:
        """Do what the next script says."""
        number = sum(what == "begins" for _, what, _ in self.trace)
        script = self.case.scripts[number]
        self.trace.append((self.ticks(), "begins", number))
        try:
            await self.clock.sleep(script.ticks * TICK)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.clock.sleep(script.cleanup * TICK)
            self.trace.append((self.ticks(), "cancelled", number))
            if script.last_words == "cancelled" or self.is_cancelled:
                raise
            if script.last_words == "error":
                raise FailedError("a loser") from None
            return "a loser"
        self.trace.append((self.ticks(), script.end, number))
        if script.end in {"failed", "fatal"}:
            raise (FailedError if script.end == "failed" else FatalError)(f"{script.end} {number}")
        return f"{script.end} {number}"

    async def call(self) -> None:
        """Make the call, and note how and when it ends."""
        hedge = Hedge(
            self.case.delay * TICK,
            max_hedges=len(self.case.scripts) - 1,
            on=FailedError,
            on_result=lambda result: result.startswith("bad"),
            clock=self.clock,
        )
        self.end = "cancelled"
        try:
            self.end = await hedge.call(self.attempt)
        except (FailedError, FatalError) as error:
            self.end = str(error)
        finally:
            self.last = self.ticks()


async def observed(case: Case, clock: Clock) -> tuple[list[tuple[int, str, int]], str, int]:
    """Return the same by running it."""
    scene = Scene(case, clock)
    async with Crew() as crew:
        job = crew.start(scene.call)
        if case.cancelled_at is not None:
            await clock.sleep(case.cancelled_at * TICK)
            scene.is_cancelled = True
            job.cancel(native=case.native)
        await clock.sleep(1_000 * TICK)
        assert job.error is None
        assert job.cancelled == (scene.end == "cancelled")
    return sorted(scene.trace), scene.end, scene.last


def law_of_the_hedge(race: type[_Race], world: World) -> Callable[[], None]:
    """The first success is the result, within so many attempts, and whatever else runs is ended before it is given.

    A cancellation reaches every attempt at once and goes on (PO5); and what happens when is the same on every event
    loop and every clock (PO6).
    """

    @given(cases())
    def law(case: Case) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resilience.hedge, "_Race", race)
            assert world.run(partial(observed, case)) == expected(case)

    return law


@every_world
def test_hedge_keeps_its_law(world: World) -> None:
    """The law holds for every script, wherever a cancellation lands."""
    heavy(law_of_the_hedge(_Race, world))()


class _Endless(_Race):
    """A mutant: never has enough attempts."""

    __slots__ = ()

    def _begin_another(self) -> bool:
        super()._begin_another()
        return True


class _Hiding(_Race):
    """A mutant: a failure ends the call, whoever else runs."""

    __slots__ = ()

    def _lost(self, number: int, error: Exception | None, result: object) -> None:
        super()._lost(number, error, result)
        self._end(error, result)


class _LastWins(_Race):
    """A mutant: the last to return has the last word."""

    __slots__ = ()

    def _won(self, result: object) -> None:
        self._over = False
        super()._won(result)


class _Patient(_Race):
    """A mutant: lets the losers run to their end."""

    __slots__ = ()

    async def _hedged(self, number: int) -> None:
        with anyio.CancelScope(shield=True):
            await super()._hedged(number)


class _Impatient(_Race):
    """A mutant: a failure begins another attempt at once."""

    __slots__ = ()

    def _lost(self, number: int, error: Exception | None, result: object) -> None:
        if self._begun <= self._hedge.max_hedges:
            self._begin_another()
        super()._lost(number, error, result)


class _Tireless(_Race):
    """A mutant: goes on beginning attempts when all have failed."""

    __slots__ = ()

    def _lost(self, number: int, error: Exception | None, result: object) -> None:
        self._running += self._begun <= self._hedge.max_hedges
        super()._lost(number, error, result)


class _Swallowing(_Race):
    """A mutant: a cancelled call returns."""

    __slots__ = ()

    async def run(self) -> object:
        try:
            return await super().run()
        except anyio.get_cancelled_exc_class():
            return "swallowed"


@pytest.mark.parametrize("world", [FAST, World("trio", "manual")], ids=lambda world: f"{world.backend}-{world.clock}")
@pytest.mark.parametrize("mutant", [_Endless, _Hiding, _LastWins, _Patient, _Impatient, _Tireless, _Swallowing])
def test_law_of_the_hedge_catches_mutants(mutant: type[_Race], world: World) -> None:
    """One attempt too many, a wrong winner, a loser that lives on and a swallowed cancellation are seen."""
    assert_caught(law_of_the_hedge(mutant, world))
