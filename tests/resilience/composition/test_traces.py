"""PO6: plain code, asyncio and trio give the same trace for the same script of outcomes and the same clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import (
    Bulkhead,
    CircuitBreaker,
    ExponentialBackoff,
    Fallback,
    Guard,
    Policy,
    RateLimiter,
    RejectedError,
    ResilienceError,
    Retry,
    StormGuard,
)
from resilience.clock import seconds
from resilience.telemetry import subscribe
from resilience.testing import ManualClock
from tests.resilience.support import assert_caught, heavy
from tests.resilience.worlds import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from resilience import Clock, Layer, Permit
    from resilience.fusing import BlockingRunner
    from resilience.telemetry import Event

Entry: TypeAlias = tuple[float, object]
#: What a call is to do: end well, fail, be refused further inside; and the seconds that it takes, and that follow it.
Call: TypeAlias = tuple[list[tuple[str, float]], float]

KINDS = ("bulkhead", "fallback", "limiter", "retry", "storm", "waiting", "breaker")
OUTCOMES = st.sampled_from(["ok", "error", "rejected"])
TIMES = st.sampled_from([0.0, 0.0, 0.5, 1.0, 4.0])
CALLS = st.lists(st.tuples(st.lists(st.tuples(OUTCOMES, TIMES), max_size=4), TIMES), min_size=1, max_size=6)
PLACES = ("plain", "asyncio", "trio")


class _Alone(ManualClock):
    """The clock of a thread that nobody wakes: whatever it waits for, time jumps there."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(1_000.0, autojump=True)

    def call_later(self, delay_ns: int, callback: Callable[[], object], /) -> Callable[[], None]:
        """Let time pass, and call back."""
        take_back = super().call_later(delay_ns, callback)
        self.advance(seconds(delay_ns))
        return take_back


@attrs.define(eq=False)
class Theatre:
    """Where a script is played, and what has happened so far, each entry with its time."""

    clock: Clock
    retry: type[Retry]
    limiter: type[RateLimiter]
    trace: list[Entry] = attrs.field(factory=list)
    outcomes: Iterator[tuple[str, float]] = attrs.field(factory=lambda: iter(()))

    def note(self, what: object) -> None:
        """Write it down."""
        self.trace.append((seconds(self.clock.monotonic_ns()), what))

    def make(self, kinds: list[str]) -> Policy:
        """Compose; the limits are tight, so that everything happens that can."""
        clock = self.clock
        makers: dict[str, Callable[[], Layer]] = {
            "breaker": lambda: CircuitBreaker(2, 2.0, name="breaker", clock=clock),
            "bulkhead": lambda: Bulkhead(1, name="bulkhead", clock=clock),
            "fallback": lambda: Fallback("instead", on=ConnectionError),
            "limiter": lambda: self.limiter(1.0, 2, name="limiter", clock=clock),
            "retry": lambda: self.retry(3, backoff=ExponentialBackoff(base=0.5, jitter="none"), clock=clock),
            "storm": lambda: StormGuard(3.0, 4, name="storm", clock=clock),
            "waiting": lambda: self.limiter(0.5, 1, max_wait=1.0, name="waiting", clock=clock),
        }
        return Policy(*(makers[kind]() for kind in kinds))

    def begin(self) -> tuple[str, float]:
        """Begin to act: return how to end, and after how long."""
        outcome, duration = next(self.outcomes, ("ok", 0.0))
        self.note(f"{outcome} after {duration}")
        return outcome, duration

    def end(self, outcome: str) -> str:
        """End that way."""
        if outcome == "error":
            raise ConnectionError
        if outcome == "rejected":
            raise RejectedError("elsewhere", 0.5)
        return outcome

    def act(self) -> str:
        """Be called, as a plain function."""
        outcome, duration = self.begin()
        self.clock.sleep_blocking(duration)
        return self.end(outcome)

    async def act_async(self) -> str:
        """Be called, as an async one."""
        outcome, duration = self.begin()
        await self.clock.sleep(duration)
        return self.end(outcome)

    def close(self, policy: Policy) -> list[Entry]:
        """Write down what the guards have counted, and return it all."""
        for part in policy.parts:
            if isinstance(part, Guard):
                self.note((part.label, part.statistics()))
        return self.trace

    def play_plainly(self, kinds: list[str], calls: list[Call]) -> list[Entry]:
        """Play it in plain code."""
        policy = self.make(kinds)
        act = policy(self.act)
        for script, pause in calls:
            self.outcomes = iter(script)
            try:
                self.note(act())
            except (ConnectionError, ResilienceError) as error:
                self.note(_told(error))
            self.clock.sleep_blocking(pause)
        return self.close(policy)

    async def play(self, kinds: list[str], calls: list[Call]) -> list[Entry]:
        """Play it in an event loop."""
        policy = self.make(kinds)
        act = policy(self.act_async)
        for script, pause in calls:
            self.outcomes = iter(script)
            try:
                self.note(await act())
            except (ConnectionError, ResilienceError) as error:
                self.note(_told(error))
            await self.clock.sleep(pause)
        return self.close(policy)


def _told(error: Exception) -> tuple[str, str, list[str]]:
    return type(error).__name__, str(error), getattr(error, "__notes__", [])


def played(
    place: str, kinds: list[str], calls: list[Call], retry: type[Retry], limiter: type[RateLimiter]
) -> list[Entry]:
    """Play a script in one of the places; the events that reach subscribers are part of its trace."""
    theatres: list[Theatre] = []

    def listen(event: Event) -> None:
        theatres[0].note(event)

    async def main(clock: Clock) -> list[Entry]:
        theatres.append(Theatre(clock, retry, limiter))
        return await theatres[0].play(kinds, calls)

    unsubscribe = subscribe(listen)
    try:
        if place != "plain":
            return World(place, "manual").run(main)
        theatres.append(Theatre(_Alone(), retry, limiter))
        return theatres[0].play_plainly(kinds, calls)
    finally:
        unsubscribe()


def law_of_traces(
    place: str, retry: type[Retry] = Retry, limiter: type[RateLimiter] = RateLimiter
) -> Callable[[], None]:
    """What happens, and when, is the same in that place as in plain code (PO6)."""

    @given(st.lists(st.sampled_from(KINDS), unique=True, max_size=5), CALLS)
    def law(kinds: list[str], calls: list[Call]) -> None:
        # A fallback and a breaker further out than a Retry are what a Policy warns of.
        kinds.sort(key=lambda kind: (kind != "fallback", kind == "breaker"))
        assert played(place, kinds, calls, retry, limiter) == played("plain", kinds, calls, retry, limiter)

    return law


@pytest.mark.parametrize("place", ["asyncio", "trio"])
def test_places_give_the_same_trace(place: str) -> None:
    """PO6: calls, results, errors with their notes, events, times and counts do not depend on where it runs."""
    heavy(law_of_traces(place))()


class _Hasty(Retry):
    """A mutant: in plain code there is no delay."""

    def wrap_blocking(self, call_next: BlockingRunner) -> BlockingRunner:
        return Retry(self.max_attempts, backoff=[0.0], clock=self.clock).wrap_blocking(call_next)


class _Forbearing(RateLimiter):
    """A mutant: plain code never waits."""

    def admit_blocking(self, cost: float = 1) -> Permit:
        return self._admit_or_refuse(cost)


@pytest.mark.parametrize("mutant", [{"retry": _Hasty}, {"limiter": _Forbearing}], ids=lambda each: next(iter(each)))
def test_law_of_traces_catches_mutants(mutant: dict[str, type]) -> None:
    """A rule that plain code has in another version is seen."""
    assert_caught(law_of_traces("asyncio", **mutant))
