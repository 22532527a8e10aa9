"""Hedge: one result, bounded attempts, and none that outlives its call."""

from __future__ import annotations

import asyncio
import random
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import resilience.hedge
from resilience import (
    Bulkhead,
    Hedge,
    Policy,
    Retry,
    RetryBudget,
    SystemClock,
    Timeout,
    TimeoutExceededError,
    telemetry,
)
from resilience.hedge import _Race
from resilience.testing import ManualClock
from resilience.timers import Alarm, remaining_ns
from tests.resilience.support import (
    NOT_A_COUNT,
    NOT_NEGATIVE,
    Crew,
    assert_caught,
    assert_refuses,
    brief,
    heavy,
    settle,
)
from tests.resilience.worlds import VirtualLoop, World, every_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from resilience.clock import Clock

every_loop = pytest.mark.anyio
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


# -- beginning, ending, failing ---------------------------------------------------------------------------------------


class Attempts:
    """An async function whose attempts take as many seconds as told, one after the other, and end as told."""

    def __init__(self, clock: Clock, *outcomes: tuple[float, object]) -> None:
        self.clock = clock
        self.outcomes = list(outcomes)
        self.begun = 0
        self.running = 0

    async def __call__(self) -> object:
        """Run one attempt."""
        seconds, outcome = self.outcomes[self.begun]
        self.begun += 1
        self.running += 1
        try:
            await self.clock.sleep(seconds)
        finally:
            self.running -= 1
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


@every_world
def test_a_call_that_is_fast_enough_runs_once(world: World) -> None:
    """Nothing begins before the delay is over."""

    async def main(clock: Clock) -> None:
        work = Attempts(clock, (0.9, "first"), (0.0, "second"))
        assert await Hedge(1.0, clock=clock).call(work) == "first"
        await clock.sleep(5.0)
        assert work.begun == 1

    world.run(main)


@every_world
def test_with_no_delay_all_begin_at_once(world: World) -> None:
    """A delay of 0 races as many attempts as there may be."""

    async def main(clock: Clock) -> None:
        work = Attempts(clock, (3.0, "first"), (2.0, "second"), (1.0, "third"))
        assert await Hedge(0, max_hedges=2, clock=clock).call(work) == "third"
        assert (work.begun, work.running) == (3, 0)

    world.run(main)


@every_world
def test_the_last_to_fail_is_what_is_raised(world: World) -> None:
    """When all have failed it is the callee's own exception, with a note; that of a single attempt has none."""

    async def main(clock: Clock) -> None:
        work = Attempts(clock, (3.0, ValueError("first")), (1.0, ValueError("second")))
        with pytest.raises(ValueError, match="first") as caught:
            await Hedge(1.0, clock=clock).call(work)
        assert caught.value.__notes__ == ["2 attempts, begun 1 s apart; this is the last to fail"]
        assert caught.value.__context__ is None
        work = Attempts(clock, (0.5, ValueError("alone")))
        with pytest.raises(ValueError, match="alone") as caught:
            await Hedge(1.0, clock=clock).call(work)
        assert not hasattr(caught.value, "__notes__")

    world.run(main)


@every_world
def test_an_exception_that_takes_no_note_is_raised_all_the_same(world: World) -> None:
    """A note is a help, and no reason to fail otherwise."""

    class Frozen(Exception):  # noqa: N818 - named for what it is
        def add_note(self, _: str) -> None:
            raise TypeError

    async def main(clock: Clock) -> None:
        with pytest.raises(Frozen):
            await Hedge(1.0, clock=clock).call(Attempts(clock, (3.0, Frozen()), (1.0, Frozen())))

    world.run(main)


@every_world
def test_a_faulty_result_is_a_failure_until_it_is_the_last(world: World) -> None:
    """`on_result` makes a result wait for a better one; if none comes, it is returned."""

    async def main(clock: Clock) -> None:
        hedge = Hedge(1.0, on_result=lambda result: result >= 500, clock=clock)
        assert await hedge.call(Attempts(clock, (3.0, 200), (1.0, 503))) == 200
        assert await hedge.call(Attempts(clock, (3.0, 502), (1.0, 503))) == 502

    world.run(main)


@pytest.mark.parametrize("which", ["on", "on_result"])
@every_world
def test_a_predicate_that_raises_ends_the_call(which: str, world: World) -> None:
    """Its exception goes on as it is, and no attempt is left."""

    def broken(outcome: object) -> bool:
        raise KeyError(str(outcome))

    async def main(clock: Clock) -> None:
        outcome = ValueError("x") if which == "on" else "x"
        work = Attempts(clock, (9.0, outcome), (1.0, outcome))
        predicate: Any = {which: broken}
        with pytest.raises(KeyError, match="x"):
            await Hedge(1.0, **predicate, clock=clock).call(work)
        assert work.running == 0

    world.run(main)


@pytest.mark.parametrize("number", [0, 1])
@every_world
def test_what_is_no_exception_ends_the_call_bare(number: int, world: World) -> None:
    """A KeyboardInterrupt of any attempt is raised as itself, in no ExceptionGroup, when the others have ended."""

    async def main(clock: Clock) -> None:
        outcomes: list[tuple[float, object]] = [(9.0, "x"), (9.0, "x")]
        outcomes[number] = (3.0, KeyboardInterrupt())
        work = Attempts(clock, *outcomes)
        with pytest.raises(KeyboardInterrupt):
            await Hedge(1.0, clock=clock).call(work)
        assert work.running == 0

    world.run(main)


def test_a_callee_that_gives_up_by_itself_is_believed() -> None:
    """On asyncio a callee may raise CancelledError though nobody cancelled it: the call ends so, hedged or not."""

    async def main(clock: Clock) -> None:
        for outcomes in ([(0.5, asyncio.CancelledError())], [(9.0, "x"), (1.0, asyncio.CancelledError())]):
            work = Attempts(clock, *outcomes)
            with pytest.raises(asyncio.CancelledError):
                await Hedge(1.0, clock=clock).call(work)
            assert work.running == 0

    FAST.run(main)


def test_none_begins_while_a_native_cancellation_is_on_its_way() -> None:
    """The first attempt cleans up for longer than the delay: nobody begins another for a call that is cancelled."""

    async def main(clock: Clock) -> None:
        begun = 0

        async def work() -> None:
            nonlocal begun
            begun += 1
            try:
                await clock.sleep(9.0)
            finally:
                with anyio.CancelScope(shield=True):
                    await clock.sleep(9.0)

        task = asyncio.create_task(Hedge(1.0, max_hedges=3, clock=clock).call(work))
        await clock.sleep(0.5)
        task.cancel("by hand")
        with pytest.raises(asyncio.CancelledError, match="by hand"):
            await task
        assert begun == 1

    FAST.run(main)
    World("asyncio", "manual").run(main)


@pytest.mark.parametrize("clock", ["manual", "system"])
def test_an_attempt_that_comes_too_late_does_not_begin(clock: str) -> None:
    """The call ends between the alarm and the first step of another attempt: that one does not run at all."""

    async def main(clock: Clock) -> None:
        begun = 0
        ended = anyio.Event()

        async def work() -> str:
            nonlocal begun
            begun += 1
            await ended.wait()
            return "ended"

        def spend() -> bool:
            ended.set()
            return True

        budget = RetryBudget(clock=clock)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RetryBudget, "try_spend", lambda _: spend())
            assert await Hedge(1.0, budget=budget, clock=clock).call(work) == "ended"
        assert begun == 1

    # On trio it is drawn by lot who of the two goes first.
    World("asyncio", clock).run(main)


def test_it_hedges_in_an_event_loop_that_anyio_did_not_start() -> None:
    """Under asyncio.run nothing but the running task tells anyio where it is; a timer's callback has none."""

    async def main() -> None:
        assert await Hedge(1.0).call(Attempts(SystemClock(), (9.0, "first"), (0.5, "second"))) == "second"

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())


def test_an_alarm_that_is_stopped_as_it_goes_off_does_not_ring() -> None:
    """Between the timer and the first step of the task that rings, the call may have ended."""
    rung = 0

    def ring() -> bool:
        nonlocal rung
        rung += 1
        return True

    async def main() -> None:
        loop = asyncio.get_running_loop()
        alarm = Alarm(loop, 10**9, ring)
        # Due at the same time, and so in the same turn of the loop.
        loop.call_later(1.0, alarm.stop)
        await asyncio.sleep(9.0)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    assert rung == 0


@every_world
def test_failures_leave_nothing_behind(world: World) -> None:
    """The race lets go of the exception that it raised, which would keep its frames alive."""

    async def main(clock: Clock) -> None:
        races: list[_Race] = []

        class Watched(_Race):
            __slots__ = ()

            async def run(self) -> object:
                races.append(self)
                return await super().run()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resilience.hedge, "_Race", Watched)
            with pytest.raises(ValueError, match="x"):
                await Hedge(1.0, clock=clock).call(Attempts(clock, (0.5, ValueError("x"))))
        assert races[0]._error is None

    world.run(main)


# -- where it stands --------------------------------------------------------------------------------------------------

_who: ContextVar[str] = ContextVar("who")


@every_world
def test_every_attempt_sees_the_caller_s_context(world: World) -> None:
    """Context variables, and the deadline of a Timeout among them, hold for hedges as for the first attempt."""

    async def main(clock: Clock) -> None:
        seen: list[tuple[str, int]] = []

        async def work() -> None:
            left_ns = remaining_ns(clock)
            assert left_ns is not None
            seen.append((_who.get(), round(left_ns / 10**9)))
            _who.set("somebody else")
            await clock.sleep(2.0 if len(seen) == 3 else 99.0)

        _who.set("the caller")
        await Policy(Timeout(60.0, clock=clock), Hedge(10.0, max_hedges=2, clock=clock)).call(work)
        assert seen == [("the caller", 60), ("the caller", 50), ("the caller", 40)]

    world.run(main)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_every_attempt_is_under_the_caller_s_cancel_scopes(backend: str) -> None:
    """The deadline of a cancel scope holds for hedges too, so that a Retry inside knows of it."""

    async def main(clock: Clock) -> None:
        deadlines: list[float] = []

        async def work() -> None:
            deadlines.append(anyio.current_effective_deadline())
            await clock.sleep(99.0)

        with anyio.move_on_after(35.0) as scope:
            await Hedge(10.0, max_hedges=2, clock=clock).call(work)
        assert deadlines == [scope.deadline] * 3

    World(backend, "system").run(main)


@every_world
def test_a_timeout_around_it_ends_every_attempt(world: World) -> None:
    """The deadline is the call's: when it has passed, no attempt is left (PO3)."""

    async def main(clock: Clock) -> None:
        work = Attempts(clock, (99.0, 1), (99.0, 2), (99.0, 3))
        with pytest.raises(TimeoutExceededError):
            await Policy(Timeout(5.0, clock=clock), Hedge(2.0, max_hedges=2, clock=clock)).call(work)
        assert (work.begun, work.running) == (3, 0)
        assert clock.monotonic_ns() % (5 * 10**9) == 0

    world.run(main)


@every_world
def test_permits_of_losers_come_back(world: World) -> None:
    """A guard inside sees every attempt, and a loser as a cancelled call; one it refuses does not end the others."""

    async def main(clock: Clock) -> None:
        bulkhead = Bulkhead(2, clock=clock)
        work = Attempts(clock, (9.0, "first"), (1.0, "second"))
        assert await Policy(Hedge(1.0, clock=clock), bulkhead).call(work) == "second"
        assert (bulkhead.available, bulkhead.statistics().admitted) == (2, 2)
        narrow = Bulkhead(1, clock=clock)
        work = Attempts(clock, (9.0, "first"))
        assert await Policy(Hedge(1.0, clock=clock), narrow).call(work) == "first"
        assert (narrow.available, narrow.statistics().rejected) == (1, 1)

    world.run(main)


@every_world
def test_each_hedge_is_an_event(world: World) -> None:
    """HedgeStarted tells which attempt begins, and after how long."""

    async def main(clock: Clock) -> None:
        await Hedge(1.5, max_hedges=2, name="search", clock=clock).call(Attempts(clock, (9.0, 1), (9.0, 2), (1.0, 3)))
        await Hedge(1.5, clock=clock).call(Attempts(clock, (9.0, 1), (1.0, 2)))
        await Hedge(1.5, clock=clock).call(Attempts(clock, (1.0, 1)))

    events: list[telemetry.Event] = []
    unsubscribe = telemetry.subscribe(events.append)
    try:
        world.run(main)
    finally:
        unsubscribe()
    assert events == [
        telemetry.HedgeStarted(name="search", attempt=2, delay=1.5),
        telemetry.HedgeStarted(name="search", attempt=3, delay=1.5),
        telemetry.HedgeStarted(name="Hedge", attempt=2, delay=1.5),
    ]


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
