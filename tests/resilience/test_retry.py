"""Retry: as many attempts as there should be, when there should be, by calls, streams and blocks alike."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio
import anyio.lowlevel
import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import (
    CircuitBreaker,
    CircuitOpenError,
    ConstantBackoff,
    ExponentialBackoff,
    Policy,
    Retry,
    ScheduleBackoff,
    Timeout,
    TimeoutExceededError,
)
from resilience.telemetry import RetryScheduled, subscribe
from resilience.testing import ManualClock
from tests.resilience.support import (
    NOT_A_COUNT,
    NOT_POSITIVE,
    assert_caught,
    assert_refuses,
    both_loops,
    brief,
    heavy,
)
from tests.resilience.worlds import World, every_world, now

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from resilience.clock import Clock
    from resilience.fusing import Runner

every_loop = pytest.mark.anyio
EIGHTH = 1 / 8


class FlakyError(Exception):
    """What is worth another attempt."""

    retry_after: object = None


class FatalError(Exception):
    """What is not."""


class Halt(BaseException):
    """What is no Exception at all."""


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", NOT_A_COUNT, ids=brief)
def test_refuses_bad_counts(bad: object) -> None:
    """Attempts are a whole number of at least 1; None is no limit."""
    if bad is not None:
        assert_refuses("attempts", bad, Retry)


@pytest.mark.parametrize("bad", NOT_POSITIVE, ids=brief)
def test_refuses_bad_durations(bad: object) -> None:
    """max_elapsed is a positive finite number; None is no limit."""
    if bad is not None:
        assert_refuses("max_elapsed", bad, Retry)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("on", BaseException),
        ("on", (ValueError, KeyboardInterrupt)),
        ("on", ()),
        ("on", int),
        ("on", "x"),
        ("on_result", 1),
        ("retry_after", 1.5),
        ("backoff", 1.0),
        ("backoff", "1, 2"),
        ("backoff", ExponentialBackoff),
        ("budget", 0.1),
        ("honor_retry_after", 1),
        ("name", None),
        ("random", 4),
    ],
    ids=repr,
)
def test_refuses_what_cannot_be_used(name: str, bad: object) -> None:
    """What no retry could ever use is a ValueError that names it."""
    assert_refuses(name, bad, Retry)


def test_iterable_is_a_schedule() -> None:
    """An iterable of seconds will do for a backoff; one that is bad is refused like any other."""
    assert Retry(backoff=[0.5, 1]).backoff == ScheduleBackoff([0.5, 1])
    assert Retry().backoff == ExponentialBackoff()
    with pytest.raises(ValueError, match=r"^delays must be "):
        Retry(backoff=[])


# -- one law for every way of retrying ---------------------------------------------------------------------------------

#: How an attempt ends, after how many eighths of a second, and for how many it asks to be left alone.
Turn: TypeAlias = tuple[str, int, int | None]
#: When each attempt began, when the last one ended, how, and what was noted on the exception.
Trace: TypeAlias = tuple[list[float], float, str, list[str]]


@attrs.frozen
class Case:
    """A script for the callee, and a Retry around it; times in eighths of a second."""

    script: list[Turn]
    attempts: int | None
    schedule: list[int]
    max_elapsed: int | None

    def retry(self, kind: type[Retry], clock: Clock) -> Retry:
        """Return the Retry."""
        return kind(
            self.attempts,
            on=FlakyError,
            on_result=lambda result: result[0] == "bad",
            retry_after=lambda outcome: outcome[1] if isinstance(outcome, tuple) else None,
            backoff=[delay * EIGHTH for delay in self.schedule],
            max_elapsed=None if self.max_elapsed is None else self.max_elapsed * EIGHTH,
            clock=clock,
        )

    def expected(self, *, judges_results: bool) -> Trace:
        """Return the trace by the rules as docs/retry.md has them."""
        starts: list[float] = []
        time = 0
        for number in itertools.count(1):
            what, length, asked = self.script[min(number, len(self.script)) - 1]
            starts.append(time * EIGHTH)
            time += length
            reason: str | None = None
            delay = self.schedule[min(number, len(self.schedule)) - 1] if asked is None else asked
            if what in {"good", "halt"} or (what == "bad" and not judges_results):
                reason = ""
            elif what == "fatal":
                reason = "this is not retried"
            elif self.attempts is not None and number >= self.attempts:
                reason = "the attempts are used up"
            elif delay > max(self.schedule) and asked is not None:
                reason = "the wait that was asked for is longer than the backoff's cap"
            elif self.max_elapsed is not None and time + delay > self.max_elapsed:
                reason = "max_elapsed would pass"
            if reason is not None:
                noted = number > 1 and what in {"flaky", "fatal"}
                notes = [f"{number} attempts in {time * EIGHTH:.3g} s; {reason}"] if noted else []
                return starts, time * EIGHTH, what, notes
            time += delay
        raise AssertionError("unreachable")


class Callee:
    """What is called: it follows its script, in async code and in plain code."""

    def __init__(self, case: Case, clock: Clock) -> None:
        self.clock = clock
        self.script = case.script
        self.began = now(clock)
        self.starts: list[float] = []

    async def work(self) -> tuple[str, object]:
        """Make the next attempt."""
        turn = self._turn()
        await self.clock.sleep(turn[1] * EIGHTH)
        return self._end(turn)

    def work_blocking(self) -> tuple[str, object]:
        """Do the same in plain code."""
        turn = self._turn()
        self.clock.sleep_blocking(turn[1] * EIGHTH)
        return self._end(turn)

    async def items(self) -> AsyncIterator[tuple[str, object]]:
        """Do the same as a stream."""
        yield await self.work()

    def _turn(self) -> Turn:
        self.starts.append(now(self.clock) - self.began)
        return self.script[min(len(self.starts), len(self.script)) - 1]

    def _end(self, turn: Turn) -> tuple[str, object]:
        what, _, asked = turn
        seconds = None if asked is None else asked * EIGHTH
        if what == "flaky":
            error = FlakyError("flaky")
            error.retry_after = seconds
            raise error
        if what == "fatal":
            raise FatalError("fatal")
        if what == "halt":
            raise Halt("halt")
        return what, seconds

    def trace(self, outcome: tuple[str, object] | BaseException) -> Trace:
        """Return what happened."""
        end = now(self.clock) - self.began
        if isinstance(outcome, BaseException):
            return self.starts, end, str(outcome), getattr(outcome, "__notes__", [])
        return self.starts, end, outcome[0], []


async def by_call(retry: Retry, callee: Callee) -> tuple[str, object]:
    """Retry a call."""
    return await retry.call(callee.work)


async def by_decorating(retry: Retry, callee: Callee) -> tuple[str, object]:
    """Retry a decorated method."""
    return await retry(callee.work)()


async def by_policy(retry: Retry, callee: Callee) -> tuple[str, object]:
    """Retry a call inside other layers, which have nothing to say."""
    policy = Policy(CircuitBreaker(1_000, clock=callee.clock), retry, CircuitBreaker(1_000, clock=callee.clock))
    return await policy.call(callee.work)


async def by_stream(retry: Retry, callee: Callee) -> tuple[str, object]:
    """Retry the opening of a stream."""
    items = [item async for item in retry(callee.items)()]
    assert len(items) == 1
    return items[0]


async def by_block(retry: Retry, callee: Callee) -> tuple[str, object]:
    """Retry a block."""
    result: tuple[str, object] = ("none", None)
    async for attempt in retry.attempts():
        with attempt:
            result = attempt.result = await callee.work()
        assert attempt.number == len(callee.starts)
    return result


def by_plain_function(retry: Retry, callee: Callee) -> tuple[str, object]:
    """Retry a plain function."""
    return retry(callee.work_blocking)()


def by_plain_block(retry: Retry, callee: Callee) -> tuple[str, object]:
    """Retry a plain block."""
    result: tuple[str, object] = ("none", None)
    for attempt in retry.attempts():
        with attempt:
            result = attempt.result = callee.work_blocking()
        assert attempt.number == len(callee.starts)
    return result


Way: TypeAlias = "Callable[[Retry, Callee], Awaitable[tuple[str, object]]]"
PlainWay: TypeAlias = "Callable[[Retry, Callee], tuple[str, object]]"
WAYS: tuple[Way, ...] = (by_call, by_decorating, by_policy, by_stream, by_block)
PLAIN_WAYS: tuple[PlainWay, ...] = (by_plain_function, by_plain_block)
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
every_plain_way = pytest.mark.parametrize("way", PLAIN_WAYS, ids=lambda way: way.__name__)

turns = st.tuples(
    st.sampled_from(["flaky", "flaky", "flaky", "bad", "bad", "good", "fatal", "halt"]),
    st.integers(0, 4),
    st.one_of(st.none(), st.integers(0, 12)),
)
cases = st.builds(
    Case,
    script=st.builds(lambda turns, last: [*turns, last], st.lists(turns, max_size=5), st.just(("good", 1, None))),
    attempts=st.one_of(st.none(), st.integers(1, 5)),
    schedule=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    max_elapsed=st.one_of(st.none(), st.integers(1, 30)),
)


def law_of_attempts(kind: type[Retry], way: Way, world: World) -> Callable[[], None]:
    """PO6: the attempts begin when they should, none is missing, none too many, and they end as the last one did."""

    @given(cases)
    def law(case: Case) -> None:
        async def main(clock: Clock) -> None:
            retry, callee = case.retry(kind, clock), Callee(case, clock)
            outcome: tuple[str, object] | BaseException
            try:
                outcome = await way(retry, callee)
            except (FlakyError, FatalError, Halt) as error:
                outcome = error
            assert callee.trace(outcome) == case.expected(judges_results=way is not by_stream)

        world.run(main)

    return law


def law_of_plain_attempts(kind: type[Retry], way: PlainWay) -> Callable[[], None]:
    """PO6: the same in plain code."""

    @given(cases)
    def law(case: Case) -> None:
        clock = ManualClock(autojump=True)
        retry, callee = case.retry(kind, clock), Callee(case, clock)
        outcome: tuple[str, object] | BaseException
        try:
            outcome = way(retry, callee)
        except (FlakyError, FatalError, Halt) as error:
            outcome = error
        assert callee.trace(outcome) == case.expected(judges_results=True)

    return law


@every_way
@every_world
def test_attempts_are_made_as_the_rules_have_it(way: Way, world: World) -> None:
    """PO6: alike on asyncio, on trio, on both clocks, by calls, streams and blocks."""
    heavy(law_of_attempts(Retry, way, world))()


@every_plain_way
def test_plain_attempts_are_made_as_the_rules_have_it(way: PlainWay) -> None:
    """PO6: alike in plain functions and blocks."""
    law_of_plain_attempts(Retry, way)()


class _OneMore(Retry):
    """A mutant: counts retries, not attempts."""

    def __init__(self, attempts: int | None, **rest: Any) -> None:  # noqa: ANN401
        super().__init__(None if attempts is None else attempts + 1, **rest)


class _Careless(Retry):
    """A mutant: takes any exception for worth another attempt."""

    def __init__(self, attempts: int | None, **rest: Any) -> None:  # noqa: ANN401
        super().__init__(attempts, **{**rest, "on": Exception})


class _Impolite(Retry):
    """A mutant: does not care for how long it was asked to wait."""

    def __init__(self, attempts: int | None, **rest: Any) -> None:  # noqa: ANN401
        super().__init__(attempts, **{**rest, "retry_after": None, "honor_retry_after": False})


class _Timeless(Retry):
    """A mutant: goes on for as long as it likes."""

    def __init__(self, attempts: int | None, **rest: Any) -> None:  # noqa: ANN401
        super().__init__(attempts, **{**rest, "max_elapsed": None})


class _Restless(Retry):
    """A mutant: does not wait."""

    def __init__(self, attempts: int | None, **rest: Any) -> None:  # noqa: ANN401
        super().__init__(attempts, **{**rest, "backoff": ConstantBackoff(0.0)})


class _Relentless(Retry):
    """A mutant: retries also what is no Exception."""

    def wrap(self, call_next: Runner) -> Runner:
        async def tamed(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            try:
                return await call_next(func, args, kwargs)
            except Halt as halt:
                raise FlakyError("halt") from halt

        return super().wrap(tamed)


MUTANTS = [_OneMore, _Careless, _Impolite, _Timeless, _Restless]


@pytest.mark.parametrize("mutant", MUTANTS)
@every_way
@both_loops
def test_law_of_attempts_catches_mutants(mutant: type[Retry], way: Way, backend: str) -> None:
    """Each rule that is not kept is seen, whatever is retried."""
    assert_caught(law_of_attempts(mutant, way, World(backend, "system")))


@pytest.mark.parametrize("mutant", MUTANTS)
@every_plain_way
def test_law_of_plain_attempts_catches_mutants(mutant: type[Retry], way: PlainWay) -> None:
    """So it is in plain code."""
    assert_caught(law_of_plain_attempts(mutant, way))


@both_loops
def test_law_of_attempts_catches_what_retries_everything(backend: str) -> None:
    """A Retry that takes what is no Exception for a failure is seen."""
    assert_caught(law_of_attempts(_Relentless, by_call, World(backend, "manual")))


# -- what a failure asks for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "delay"),
    [
        (2.5, 2.5),
        (3, 3.0),
        (0, 0.0),
        (-5.0, 0.0),
        (-math.inf, 0.0),
        (9.0, 9.0),
        (9.5, None),
        (math.inf, None),
        (10**400, None),
        (math.nan, 1.0),
        (None, 1.0),
        (True, 1.0),
        ("2.5", 1.0),
    ],
    ids=brief,
)
@pytest.mark.parametrize("source", ["attribute", "exception", "result"])
def test_numbers_are_heeded_up_to_the_cap_and_anything_else_asks_for_nothing(
    asked: object, delay: float | None, source: str
) -> None:
    """The exception's own wait, and one that a callable reads from an exception or a result, count alike."""

    class AskingError(Exception):
        retry_after = asked if source == "attribute" else 5.0

    def work() -> object:
        if source == "result":
            return asked
        raise AskingError(asked)

    clock = ManualClock(autojump=True)
    read: Callable[[Any], Any] = (lambda error: error.args[0]) if source == "exception" else (lambda result: result)
    retry = Retry(
        2,
        on_result=lambda _: True,
        backoff=[1.0, 9.0],
        honor_retry_after=source == "attribute",
        retry_after=None if source == "attribute" else read,
        clock=clock,
    )
    with nullcontext() if source == "result" else pytest.raises(AskingError):
        retry(work)()
    assert clock.monotonic_ns() == (delay or 0.0) * 10**9


def test_attribute_need_not_be_heeded() -> None:
    """With honor_retry_after=False the backoff holds."""
    clock = ManualClock(autojump=True)
    error = FlakyError()
    error.retry_after = 0.5

    def fail() -> None:
        raise error

    with pytest.raises(FlakyError):
        Retry(2, backoff=[2.0], honor_retry_after=False, clock=clock)(fail)()
    assert clock.monotonic_ns() == 2 * 10**9


def test_callable_goes_before_the_attribute() -> None:
    """Where the callable has nothing to say, the exception's own attribute holds."""
    clock = ManualClock(autojump=True)
    waits = iter([5.0, None, None])

    def fail() -> None:
        error = FlakyError()
        error.retry_after = 3.0
        raise error

    with pytest.raises(FlakyError):
        Retry(3, backoff=[1.0, 9.0], retry_after=lambda _: next(waits), clock=clock)(fail)()
    assert clock.monotonic_ns() == 8 * 10**9


@every_world
def test_open_breaker_is_waited_for_if_there_is_time(world: World) -> None:
    """A rejection says when to come back; what is longer than the cap is not waited for."""

    async def main(clock: Clock) -> None:
        for cap, outcome, seconds in ((20.0, "done", 20.0), (5.0, "CircuitBreaker is open; ask again in 15 s", 5.0)):
            policy = Policy(
                Retry(None, backoff=ConstantBackoff(cap), max_elapsed=20.0, clock=clock),
                CircuitBreaker(1, recovery_timeout=20.0, clock=clock),
            )
            began = now(clock)

            async def work(began: float = began) -> str:
                if now(clock) == began:
                    raise FlakyError
                return "done"

            try:
                end = await policy.call(work)
            except CircuitOpenError as error:
                end = str(error)
            assert (end, now(clock) - began) == (outcome, seconds)

    world.run(main)


# -- deadlines ---------------------------------------------------------------------------------------------------------


@every_world
def test_gives_up_rather_than_sleep_past_the_deadline(world: World) -> None:
    """Before a delay that would end with the Timeout around it, or after it, the failure itself goes on at once."""

    async def main(clock: Clock) -> None:
        retry = Retry(None, backoff=ConstantBackoff(1.0), clock=clock)
        for seconds, took in ((2.5, 2.0), (2.0, 1.0), (0.5, 0.0)):
            began = now(clock)
            with pytest.raises(FlakyError):
                await Policy(Timeout(seconds, clock=clock), retry).call(_fail)
            assert now(clock) - began == took
        # A deadline of each attempt is none of the retries.
        began = now(clock)
        with pytest.raises(TimeoutExceededError) as caught:
            await Policy(Retry(2, backoff=[1.0], clock=clock), Timeout(2.0, clock=clock)).call(clock.sleep, 5.0)
        assert caught.value.__notes__ == ["2 attempts in 5 s; the attempts are used up"]

    world.run(main)


@pytest.mark.parametrize("world", [World("asyncio", "system"), World("trio", "system")], ids=str)
def test_deadline_of_a_cancel_scope_counts(world: World) -> None:
    """On the clock of the system anyio's own deadlines are heeded too; in a cancelled scope there is no time left."""

    async def main(clock: Clock) -> None:
        retry = Retry(None, backoff=ConstantBackoff(1.0))
        began = now(clock)
        with pytest.raises(FlakyError) as caught, anyio.fail_after(2.5):
            await retry.call(_fail)
        assert now(clock) - began == 2.0
        assert caught.value.__notes__ == ["3 attempts in 2 s; the deadline would pass"]
        with anyio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(FlakyError):
                await retry.call(_fail)

    world.run(main)


def test_clock_that_steps_back_gives_no_more_attempts() -> None:
    """For max_elapsed such a clock stands still."""
    clock = ManualClock(1_000.0)
    made: list[int] = []

    def fail() -> None:
        made.append(1)
        if len(made) == 1:
            clock.step_back(500.0)
        else:
            clock.advance(1.0)
        raise FlakyError

    with pytest.raises(FlakyError):
        Retry(None, backoff=ConstantBackoff(0.0), max_elapsed=3.0, clock=clock)(fail)()
    assert len(made) == 5


# -- notes and events --------------------------------------------------------------------------------------------------


def test_exception_that_takes_no_note_is_raised_all_the_same() -> None:
    """The callee's exception goes on, whatever it is."""

    class FrozenError(FlakyError):
        def add_note(self, note: str, /) -> None:
            raise TypeError(note)

    def fail() -> None:
        raise FrozenError

    with pytest.raises(FrozenError):
        Retry(2, backoff=ConstantBackoff(0.0))(fail)()


def test_first_attempt_is_not_noted() -> None:
    """An exception that was never retried says nothing of retries."""
    with pytest.raises(FlakyError) as caught:
        Retry(1)(_fail_blocking)()
    assert not hasattr(caught.value, "__notes__")


def test_every_delay_is_announced() -> None:
    """A RetryScheduled tells the attempt that failed, the delay and why."""
    events: list[object] = []
    unsubscribe = subscribe(events.append)
    results = iter([1, 2])
    try:
        for name in ("", "billing"):
            with pytest.raises(FlakyError):
                Retry(2, backoff=[0.5], name=name, clock=ManualClock(autojump=True))(_fail_blocking)()
        Retry(on_result=lambda result: result == 1, backoff=[0.0])(lambda: next(results))()
    finally:
        unsubscribe()
    assert events == [
        RetryScheduled(name="Retry", attempt=1, delay=0.5, error="FlakyError"),
        RetryScheduled(name="billing", attempt=1, delay=0.5, error="FlakyError"),
        RetryScheduled(name="Retry", attempt=1, delay=0.0, error="the result"),
    ]


# -- streams -----------------------------------------------------------------------------------------------------------


@every_loop
async def test_stream_is_opened_again_only_before_its_first_item() -> None:
    """What fails after an item is out goes on; each stream that failed is closed before the next is opened."""
    log: list[str] = []
    clock = ManualClock()

    @Retry(3, on=FlakyError, backoff=ConstantBackoff(0.0), clock=clock)
    async def items(failures: int) -> AsyncGenerator[int, None]:
        log.append("open")
        try:
            await anyio.lowlevel.checkpoint()
            if log.count("open") <= failures:
                raise FlakyError
            yield 1
            raise FlakyError
        finally:
            log.append("closed")

    stream = items(2)
    assert await anext(stream) == 1
    with pytest.raises(FlakyError) as caught:
        await anext(stream)
    assert log == ["open", "closed"] * 3
    assert not hasattr(caught.value, "__notes__")
    log.clear()
    with pytest.raises(FlakyError) as exhausted:
        await anext(items(9))
    assert log == ["open", "closed"] * 3
    assert exhausted.value.__notes__ == ["3 attempts in 0 s; the attempts are used up"]


@every_loop
async def test_what_is_sent_and_thrown_reaches_the_stream() -> None:
    """A retried stream is a whole generator; an exception thrown into it by its reader is not retried."""
    log: list[object] = []

    @Retry(3)
    async def echo() -> AsyncGenerator[int, str]:
        log.append("open")
        for number in range(10):
            try:
                log.append((yield number))
            except FlakyError:
                log.append("thrown")
            except GeneratorExit:
                log.append("closed")
                raise

    stream = echo()
    assert await anext(stream) == 0
    assert await stream.asend("sent") == 1
    assert await stream.athrow(FlakyError()) == 2
    with pytest.raises(FatalError):
        await stream.athrow(FatalError())
    other = echo()
    await anext(other)
    await other.aclose()
    assert log == ["open", "sent", "thrown", "open", "closed"]


# -- blocks ------------------------------------------------------------------------------------------------------------


@every_loop
async def test_block_that_was_not_entered_or_left_is_an_error() -> None:
    """A loop whose attempts are not used as they should be would never end, or never retry; it says so."""
    retry = Retry(3, backoff=ConstantBackoff(0.0))
    with pytest.raises(RuntimeError, match="with attempt:"):
        async for _ in retry.attempts():
            pass
    with pytest.raises(RuntimeError, match="with attempt:"):
        for _ in retry.attempts():
            pass
    attempts = retry.attempts()
    attempt = next(attempts)
    with attempt, pytest.raises(RuntimeError, match="with attempt:"):
        next(attempts)
    with pytest.raises(RuntimeError, match="only once"):
        attempt.__enter__()
    assert list(attempts) == []


@every_loop
async def test_loop_may_be_left_at_any_time() -> None:
    """Nothing has to be given back; what has ended stays so."""
    retry = Retry(3, on=FlakyError, backoff=ConstantBackoff(0.0))
    seen: list[int] = []
    attempts = retry.attempts()
    async for attempt in attempts:
        with attempt:
            seen.append(attempt.number)
            if attempt.number == 2:
                break
            raise FlakyError
    assert seen == [1, 2]
    assert [attempt async for attempt in attempts] == []


def test_result_stands_where_nobody_judges_it() -> None:
    """Without on_result a result is only kept; without a result on_result is not asked."""
    for retry in (Retry(3), Retry(3, on_result=lambda _: False)):
        for attempt in retry.attempts():
            with attempt:
                attempt.result = None
            assert (attempt.number, attempt.result) == (1, None)
    numbers = []
    for attempt in Retry(3, on_result=lambda _: True).attempts():
        with attempt:
            numbers.append(attempt.number)
    assert numbers == [1]


async def _fail() -> None:
    raise FlakyError


def _fail_blocking() -> None:
    raise FlakyError
