"""Retry: as many attempts as there should be, when there should be, by calls, streams and blocks alike."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import CircuitBreaker, ConstantBackoff, Policy, Retry
from resilience.testing import ManualClock
from tests.resilience.subjects import FatalError, FlakyError
from tests.resilience.support import assert_caught, both_loops, heavy
from tests.resilience.worlds import World, every_world, now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from resilience.clock import Clock
    from resilience.fusing import Runner

EIGHTH = 1 / 8


class Halt(BaseException):
    """What is no Exception at all."""


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
                noted = (what == "flaky" and self.attempts != 1) or (what == "fatal" and number > 1)
                made = "1 attempt" if number == 1 else f"{number} attempts"
                notes = [f"{made} in {time * EIGHTH:.3g} s; {reason}"] if noted else []
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
