"""Retry: what a failure asks for, deadlines, notes, streams and blocks."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

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
from tests.resilience.subjects import FatalError, FlakyError
from tests.resilience.support import NOT_A_COUNT, NOT_POSITIVE, assert_refuses, brief
from tests.resilience.worlds import World, every_world, now

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from resilience.clock import Clock

every_loop = pytest.mark.anyio


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


def test_first_attempt_is_noted_if_there_was_to_be_another() -> None:
    """An exception says why it was not retried; that nobody would have retried it in any case, it does not say."""
    for retry in (Retry(1), Retry(3, on=KeyError)):
        with pytest.raises(FlakyError) as silent:
            retry(_fail_blocking)()
        assert not hasattr(silent.value, "__notes__")
    with pytest.raises(FlakyError) as caught:
        Retry(3, backoff=[2.0], max_elapsed=1.0, clock=ManualClock())(_fail_blocking)()
    assert caught.value.__notes__ == ["1 attempt in 0 s; max_elapsed would pass"]


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
