"""Hedge: how single calls begin, end and fail, and what stands around them."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import resilience.hedge
from resilience import Bulkhead, Hedge, Policy, RetryBudget, SystemClock, Timeout, TimeoutExceededError, telemetry
from resilience.hedge import _Race
from resilience.timers import Alarms, alarm, remaining_ns
from tests.resilience.subjects import Attempts
from tests.resilience.worlds import World, asyncio_runner, every_world

if TYPE_CHECKING:
    from resilience.clock import Clock

#: The world in which a hedge waits on a timer, and no task.
FAST = World("asyncio", "system")


# -- beginning, ending, failing ---------------------------------------------------------------------------------------


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

    with asyncio_runner() as runner:
        runner.run(main())


@pytest.mark.parametrize("shared", [False, True])
def test_an_alarm_rings_until_it_is_stopped(*, shared: bool) -> None:
    """Not even once if that is between the timer and the first step of the task that rings: the call may have ended."""
    rung: list[str] = []

    def ring(name: str) -> bool:
        rung.append(name)
        return len(rung) < 3

    async def main() -> None:
        task, clock = asyncio.current_task(), SystemClock()
        alarms = Alarms(10**9, clock)
        stopped, other = (
            alarms.set(task, partial(ring, name)) if shared else alarm(task, clock, 10**9, partial(ring, name))
            for name in ("stopped", "other")
        )
        assert stopped is not None
        assert other is not None
        # Due at the same time, and so in the same turn of the loop.
        asyncio.get_running_loop().call_later(1.0, stopped.stop)
        await asyncio.sleep(9.0)
        other.stop()

    with asyncio_runner() as runner:
        runner.run(main())
    assert rung == ["other"] * 3


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
