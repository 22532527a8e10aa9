"""Timeout and Deadline: everything inside ends in time, and nobody else's cancellation becomes a timeout."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import (
    Bulkhead,
    CallbackClock,
    ConstantBackoff,
    Deadline,
    Policy,
    RateLimitedError,
    RateLimiter,
    ResilienceError,
    Retry,
    Timeout,
    TimeoutExceededError,
)
from resilience.testing import ManualClock
from resilience.timers import TimeLimit, _Queue
from tests.resilience.support import (
    NOT_POSITIVE,
    Crew,
    Job,
    assert_caught,
    assert_refuses,
    brief,
    heavy,
)
from tests.resilience.worlds import WORLDS, World, every_world, now

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from resilience import Layer
    from resilience.clock import Clock
    from resilience.fusing import Runner

every_loop = pytest.mark.anyio
#: The world whose Timeouts use no cancel scope.
FAST = World("asyncio", "system")
EIGHTH = 1 / 8


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", NOT_POSITIVE, ids=brief)
def test_refuses_bad_durations(bad: object) -> None:
    """A duration that is none is a ValueError that names it; None is no first_item."""
    assert_refuses("seconds", bad, Timeout)
    if bad is not None:
        assert_refuses("first_item", bad, functools.partial(Timeout, 5.0))


def test_refuses_a_first_item_that_may_come_after_the_end() -> None:
    """A first item has less time than the whole stream."""
    assert_refuses("first_item", 5.0, functools.partial(Timeout, 5.0))
    assert_refuses("name", 5.0, functools.partial(Timeout, 5.0))
    assert_refuses("name", 5.0, functools.partial(Deadline, 5.0))
    assert Timeout(5.0, first_item=4.9).first_item == 4.9


@pytest.mark.parametrize("make", [Timeout, Deadline])
def test_refuses_plain_functions(make: Callable[[float], Layer]) -> None:
    """A plain function could not be stopped, and is refused when it is decorated."""

    def plain() -> None:
        raise AssertionError("it is never called")

    with pytest.raises(TypeError, match="could not be stopped"):
        make(1.0)(plain)


# -- PO3: everything inside is bounded --------------------------------------------------------------------------------

Part: TypeAlias = tuple[str, int, int]


class FlakyError(Exception):
    """What the work inside fails with."""


class Work:
    """The parts of a plan: each waits in another way, for so many eighths of a second."""

    def __init__(self, clock: Clock, retry: type[Retry]) -> None:
        self.clock = clock
        self.retry = retry

    async def do(self, part: Part) -> None:
        """Do one part."""
        name, eighths, count = part
        await getattr(self, name)(eighths * EIGHTH, count)

    async def sleep(self, seconds: float, _count: int) -> None:
        """Sleep."""
        await self.clock.sleep(seconds)

    async def attempts(self, seconds: float, count: int) -> None:
        """Fail so often, with as long a delay after each time."""
        failures = iter(range(count))

        async def flaky() -> None:
            for _ in failures:
                raise FlakyError

        await self.retry(count + 1, backoff=ConstantBackoff(seconds), clock=self.clock).call(flaky)

    async def tokens(self, seconds: float, count: int) -> None:
        """Wait for so many tokens of a limiter."""
        limiter = RateLimiter(1 / seconds, 1, max_wait=float("inf"), clock=self.clock)
        for _ in range(count):
            async with limiter:
                pass

    async def permit(self, seconds: float, _count: int) -> None:
        """Wait for the only permit of a bulkhead."""
        bulkhead = Bulkhead(1, max_queue=1, clock=self.clock)
        permit = bulkhead.admit_blocking()

        async def free() -> None:
            await self.clock.sleep(seconds)
            permit.success()

        async with Crew() as crew:
            crew.start(free)
            async with bulkhead:
                pass

    async def items(self, seconds: float, count: int) -> None:
        """Read a stream to its end."""

        async def items() -> AsyncIterator[int]:
            for item in range(count):
                await self.clock.sleep(seconds)
                yield item

        async for _ in items():
            pass


def law_of_the_total(timeout: type[Timeout], retry: type[Retry], world: World) -> Callable[[], None]:
    """PO3: what is inside ends by then, waits and backoff included; and what ends sooner is let be."""
    parts = st.tuples(
        st.sampled_from(["sleep", "attempts", "tokens", "permit", "items"]),
        st.sampled_from([1, 2, 4, 8]),
        st.integers(1, 3),
    )

    # Sixteenths, so that nothing ends at the very instant of the timeout.
    @given(st.lists(parts, min_size=1, max_size=4), st.integers(0, 30).map(lambda eighths: (eighths + 0.5) * EIGHTH))
    def law(plan: list[Part], limit: float) -> None:
        async def main(clock: Clock) -> None:
            async def work() -> str:
                for part in plan:
                    await Work(clock, retry).do(part)
                return "done"

            started = now(clock)
            await work()
            needed = now(clock) - started
            started = now(clock)
            try:
                outcome = await timeout(limit, clock=clock).call(work)
            except (FlakyError, RateLimitedError):
                # A retry that saw that there was no time for another attempt; a limiter, for a wait.
                outcome = "gave up"
            except TimeoutExceededError as error:
                outcome = f"timeout after {error.seconds}"
            took = now(clock) - started
            if needed < limit:
                assert (outcome, took) == ("done", needed)
            elif outcome == "gave up":
                assert took < limit
            else:
                assert (outcome, took) == (f"timeout after {limit}", limit)

        world.run(main)

    return law


@every_world
def test_total_timeout_bounds_everything_inside(world: World) -> None:
    """PO3: sleeps, waits for a token or a permit, retries and their delays, and streams."""
    heavy(law_of_the_total(Timeout, Retry, world))()


class _Boundless(Timeout):
    """A mutant: lets every call run."""

    def wrap(self, call_next: Runner) -> Runner:
        return call_next


class _Hasty(Timeout):
    """A mutant: cuts off what would have ended in time."""

    def wrap(self, call_next: Runner) -> Runner:
        return TimeLimit(self.seconds / 2, self.clock).around(call_next)


class _Deaf(Retry):
    """A mutant: no cancellation reaches its delays."""

    def wrap(self, call_next: Runner) -> Runner:
        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            while True:
                try:
                    return await call_next(func, args, kwargs)
                except FlakyError:
                    with anyio.CancelScope(shield=True):
                        resumed = anyio.Event()
                        async with anyio.create_task_group() as group:
                            group.start_soon(self._delay, resumed)

        return run

    async def _delay(self, resumed: anyio.Event) -> None:
        await self.clock.sleep(self.backoff.cap)
        resumed.set()


@pytest.mark.parametrize("mutant", [_Boundless, _Hasty])
@every_world
def test_law_of_the_total_catches_mutants(mutant: type[Timeout], world: World) -> None:
    """No bound, and one that comes too early, are seen."""
    assert_caught(law_of_the_total(mutant, Retry, world))


@pytest.mark.parametrize("world", [world for world in WORLDS if world != FAST])
def test_law_of_the_total_catches_a_deaf_retry(world: World) -> None:
    """A delay that no cancel scope reaches is seen; asyncio's own cancellation goes through every shield."""
    assert_caught(law_of_the_total(Timeout, _Deaf, world))


# -- PO5: a cancellation is a cancellation ----------------------------------------------------------------------------


Call: TypeAlias = tuple[int, int, int | None, bool]
LIMIT = 8


def _ends(call: Call) -> list[tuple[str, float] | None]:
    """Return how and when a call may end: by whatever comes first."""
    start, length, after, _ = call
    if after is not None and after <= start:
        return [None, ("cancelled", start), ("done", start)]
    due = [("done", start + length), ("timeout", start + LIMIT)]
    if after is not None:
        due.append(("cancelled", after))
    first = min(at for _, at in due)
    return [(what, at) for what, at in due if at == first]


def law_of_cancellation(kind: type[Timeout], world: World) -> Callable[[], None]:
    """PO3, PO5: of many calls under one Timeout each ends by itself, by its timeout or by its own cancellation.

    Whichever comes first; at that very instant; and a timeout leaves nothing of its cancellation behind.
    """
    calls = st.tuples(st.integers(0, 12), st.integers(0, 16), st.one_of(st.none(), st.integers(0, 24)), st.booleans())

    @given(st.lists(calls, min_size=1, max_size=6))
    def law(plan: list[Call]) -> None:
        async def main(clock: Clock) -> None:
            timeout = kind(LIMIT * EIGHTH, clock=clock)
            started = now(clock)
            ends: dict[int, tuple[str, float]] = {}

            async def work(number: int) -> None:
                start, length, _, _ = plan[number]
                await clock.sleep(start * EIGHTH)
                outcome = "cancelled"
                try:
                    await timeout.call(clock.sleep, length * EIGHTH)
                    outcome = "done"
                except TimeoutExceededError:
                    outcome = "timeout"
                finally:
                    ends[number] = (outcome, (now(clock) - started) / EIGHTH)
                # A cancellation that the timeout had asked for and not taken back would land here.
                await clock.sleep(100.0)

            async def cancel(job: Job, after: int, *, native: bool) -> None:
                await clock.sleep(after * EIGHTH)
                job.cancel(native=native)

            async with Crew() as crew:
                jobs = [crew.start(functools.partial(work, number)) for number in range(len(plan))]
                for job, (_, _, after, native) in zip(jobs, plan, strict=True):
                    if after is not None:
                        crew.start(functools.partial(cancel, job, after, native=native))
                await clock.sleep(90.0)
                assert [job.error for job in jobs] == [None] * len(jobs)
                assert [job.cancelled for job in jobs] == [after is not None for _, _, after, _ in plan]
            for number, call in enumerate(plan):
                # A call that was cancelled before it began has left no trace.
                assert ends.get(number) in _ends(call)

        world.run(main)

    return law


@every_world
def test_cancellation_never_becomes_a_timeout(world: World) -> None:
    """PO3, PO5: by scope or by the task's own `cancel`, before, with and after the timeout."""
    heavy(law_of_cancellation(Timeout, world))()


class _Greedy(Timeout):
    """A mutant: takes every cancellation for its own."""

    def wrap(self, call_next: Runner) -> Runner:
        inner = super().wrap(call_next)

        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            try:
                return await inner(func, args, kwargs)
            except anyio.get_cancelled_exc_class() as error:
                raise TimeoutExceededError(self.seconds) from error

        return run


class _Late(Timeout):
    """A mutant: passes a cancellation on when the time is over, not before."""

    def wrap(self, call_next: Runner) -> Runner:
        inner = super().wrap(call_next)

        async def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            try:
                return await inner(func, args, kwargs)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await self.clock.sleep(self.seconds)
                raise

        return run


class _RingsOnce(_Queue):
    """A mutant: is set for the first call alone."""

    def _set(self, delay_ns: int) -> None:
        if not self._next():
            super()._set(delay_ns)


class _Sleepy(_Queue):
    """A mutant: having rung too early for those who are left, takes up the whole length again."""

    def _set(self, delay_ns: int) -> None:  # noqa: ARG002 - what it gets wrong
        super()._set(self._limit_ns)


class _Unforgetting(_Queue):
    """A mutant: cancels also who has left."""

    def leave(self, place: int) -> bool:
        return place not in self._calls


def _with(queue: type[_Queue]) -> type[Timeout]:
    class Limit(TimeLimit):
        def _new_queue(self, loop: asyncio.AbstractEventLoop) -> _Queue:
            self._queues = {loop: queue(loop, self._limit_ns)}
            return self._queues[loop]

    class Mutant(Timeout):
        def __init__(self, seconds: float, *, clock: Clock) -> None:
            super().__init__(seconds, clock=clock)
            self._limit = Limit(seconds, clock)

    return Mutant


@pytest.mark.parametrize("mutant", [_Greedy, _Late, _Boundless])
@every_world
def test_law_of_cancellation_catches_mutants(mutant: type[Timeout], world: World) -> None:
    """A cancellation that becomes a timeout or is held up, and a timeout that never comes, are seen."""
    assert_caught(law_of_cancellation(mutant, world))


@pytest.mark.parametrize("mutant", [_RingsOnce, _Sleepy, _Unforgetting])
def test_law_of_cancellation_catches_mutant_queues(mutant: type[_Queue]) -> None:
    """A shared timer that forgets some of its calls, or is late, or strikes those who have left, is seen."""
    assert_caught(law_of_cancellation(_with(mutant), FAST))


# -- what the callee does about it ------------------------------------------------------------------------------------


@every_world
def test_timeout_error_of_the_callee_stays_what_it_is(world: World) -> None:
    """A TimeoutError that the callee raises itself, and one of a Timeout further inside, are passed on."""

    async def main(clock: Clock) -> None:
        own = TimeoutError("its own")

        async def fail() -> None:
            await clock.sleep(0.5)
            raise own

        for layer in (Timeout(1.0, clock=clock), Deadline(5.0, clock=clock)):
            with pytest.raises(TimeoutError) as caught:
                await layer.call(fail)
            assert caught.value is own
        nested = Policy(Timeout(3.0, clock=clock), Timeout(1.0, clock=clock))
        with pytest.raises(TimeoutExceededError) as exceeded:
            await nested.call(clock.sleep, 5.0)
        assert exceeded.value.seconds == 1.0
        assert isinstance(exceeded.value, TimeoutError)
        assert isinstance(exceeded.value, ResilienceError)
        assert str(exceeded.value) == "timed out after 1 s"

    world.run(main)


@every_world
def test_callee_that_ends_in_spite_of_its_cancellation_is_believed(world: World) -> None:
    """What it returns or raises stands, and nothing of the cancellation is left."""

    async def main(clock: Clock) -> None:
        async def stubborn(error: Exception | None) -> str:
            try:
                await clock.sleep(5.0)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await anyio.lowlevel.checkpoint()
                if error is not None:
                    raise error from None
            return "done"

        for make in (Timeout, Deadline):
            started = now(clock)
            assert await make(1.0, clock=clock).call(stubborn, None) == "done"
            with pytest.raises(FlakyError):
                await make(1.0, clock=clock).call(stubborn, FlakyError())
            await clock.sleep(0.0)
            assert now(clock) - started == 2.0
        if world.backend == "asyncio":
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

    world.run(main)


@pytest.mark.parametrize("world", [world for world in WORLDS if world != World("trio", "system")])
@pytest.mark.parametrize("make", [Timeout, Deadline])
def test_scope_cancelled_at_the_very_moment_goes_first(make: type[Timeout | Deadline], world: World) -> None:
    """A scope that is cancelled before the call has heard of its timeout is what ends it."""

    async def main(clock: Clock) -> None:
        async def work(scope: anyio.CancelScope) -> None:
            # Due right after the timeout, before any task runs.
            if isinstance(clock, CallbackClock):
                clock.call_later(10**9, scope.cancel)
            else:
                asyncio.get_running_loop().call_later(1.0, scope.cancel)
            await clock.sleep(2.0)

        started = now(clock)
        with anyio.CancelScope() as scope:
            await make(1.0, clock=clock).call(work, scope)
            raise AssertionError("the call was not ended")
        assert scope.cancelled_caught
        assert now(clock) - started == 1.0
        await clock.sleep(0.0)

    world.run(main)


@every_world
def test_call_that_takes_no_time_is_let_be(world: World) -> None:
    """The shortest timeout does not matter to what never waits."""

    async def main(clock: Clock) -> None:
        async def at_once() -> str:
            return "done"

        assert await Timeout(1e-9, clock=clock).call(at_once) == "done"
        assert await Timeout(1e-9, clock=clock)(at_once)() == "done"

    world.run(main)


# -- streams ----------------------------------------------------------------------------------------------------------


def law_of_streams(kind: type[Timeout], world: World) -> Callable[[], None]:
    """PO3: a stream ends by its timeout, wherever the time went, and gives its first item by its own."""
    waits = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6)

    @given(waits, st.integers(2, 12), st.integers(1, 6))
    def law(plan: list[tuple[int, int]], limit: int, first: int) -> None:
        async def main(clock: Clock) -> None:
            closed_at: list[float] = []
            # Half an eighth, so that nothing ends at the very instant.
            whole, first_item = (limit + 0.5) * EIGHTH, (min(first, limit - 1) + 0.5) * EIGHTH

            @kind(whole, first_item=first_item, clock=clock)
            async def items() -> AsyncGenerator[int, None]:
                try:
                    for number, (before, _) in enumerate(plan):
                        await clock.sleep(before * EIGHTH)
                        yield number
                finally:
                    closed_at.append(now(clock))

            expected, time = list[int](), 0.0
            outcome: float | None = None
            for number, (before, after) in enumerate(plan):
                due = first_item if number == 0 else whole
                if time > due or time + before * EIGHTH > due:
                    outcome, time = due, max(time, due)
                    break
                expected.append(number)
                time += (before + after) * EIGHTH
            else:
                outcome = whole if time > whole else None

            started = now(clock)
            got: list[int] = []
            exceeded: float | None = None
            try:
                async for item in items():
                    got.append(item)
                    await clock.sleep(plan[item][1] * EIGHTH)
            except TimeoutExceededError as error:
                exceeded = error.seconds
            assert (got, exceeded, now(clock) - started) == (expected, outcome, time)
            assert closed_at == [started + time]

        world.run(main)

    return law


@every_world
def test_stream_ends_in_time(world: World) -> None:
    """PO3: for each schedule of a stream and of whoever reads it."""
    heavy(law_of_streams(Timeout, world))()


class _PerItem(Timeout):
    """A mutant: each item has all the time of the stream."""

    def wrap_stream(self, call_next: Any) -> Any:  # noqa: ANN401 - as the base has it
        def run(*args: Any) -> AsyncGenerator[Any, Any]:  # noqa: ANN401
            async def items() -> AsyncGenerator[Any, Any]:
                stream = call_next(*args)
                try:
                    while True:
                        try:
                            yield await Timeout(self.seconds, clock=self.clock).call(anext, stream)
                        except StopAsyncIteration:
                            return
                finally:
                    await stream.aclose()

            return items()

        return run


class _Patient(Timeout):
    """A mutant: waits for the first item as for any other."""

    def __init__(self, seconds: float, *, first_item: float, clock: Clock) -> None:
        assert first_item < seconds
        super().__init__(seconds, clock=clock)


@pytest.mark.parametrize("mutant", [_PerItem, _Patient])
@every_world
def test_law_of_streams_catches_mutants(mutant: type[Timeout], world: World) -> None:
    """A limit for each item, and none for the first, are seen."""
    assert_caught(law_of_streams(mutant, world))


@every_loop
async def test_what_is_sent_and_thrown_reaches_the_stream() -> None:
    """A stream under a Timeout or a Deadline is a whole generator: asend, athrow and aclose work."""
    clock = ManualClock()
    for layer in (Timeout(5.0, clock=clock), Deadline(5.0, clock=clock)):
        log: list[object] = []

        async def echo(log: list[object] = log) -> AsyncGenerator[int, str]:
            for number in range(10):
                try:
                    log.append((yield number))
                except FlakyError:
                    log.append("thrown")
                except GeneratorExit:
                    log.append("closed")
                    raise

        stream = layer(echo)()
        assert await anext(stream) == 0
        assert await stream.asend("sent") == 1
        assert await stream.athrow(FlakyError()) == 2
        await stream.aclose()
        assert log == ["sent", "thrown", "closed"]
