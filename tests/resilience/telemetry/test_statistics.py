"""What statistics count: what an exporter calls a counter only ever grows, and a snapshot holds together."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import (
    AsyncGuardedDeque,
    CircuitBreaker,
    CircuitState,
    ConstantBackoff,
    Fallback,
    Hedge,
    Keyed,
    Permit,
    RateLimitedError,
    RateLimiter,
    Retry,
    RetryBudget,
    StormGuard,
    Timeout,
    TimeoutExceededError,
    Verdict,
)
from resilience.adaptive_limiter import AdaptiveLimiter
from resilience.circuit_breaker import BreakerStatistics
from resilience.counting import Statistics
from resilience.fallback import FallbackStatistics
from resilience.hedge import HedgeStatistics
from resilience.retry import RetryStatistics
from resilience.retry_budget import BudgetStatistics
from resilience.testing import ManualClock
from tests.resilience.support import assert_caught, assert_refuses

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from resilience.guarded_deque import Overflow

CLOSED, OPEN, HALF_OPEN, ISOLATED = CircuitState


async def _raise(error: BaseException) -> None:
    raise error


# -- TE1: counters only grow ------------------------------------------------------------------------------------------


def law_of_counters(limiter_class: type[RateLimiter]) -> Callable[[], None]:
    """Whatever becomes of the calls that were admitted, no count of them goes back (TE1)."""

    @given(st.lists(st.tuples(st.sampled_from(["admit", "wait", *Verdict]), st.integers(0, 3)), max_size=20))
    def law(steps: list[tuple[str | Verdict, int]]) -> None:
        clock = ManualClock()
        limiter = limiter_class(1.0, 3, clock=clock)
        permits: list[Permit] = []
        before = limiter.statistics()
        for step, number in steps:
            if isinstance(step, Verdict):
                if permits:
                    limiter.settle(permits.pop(number % len(permits)), step)
            elif step == "wait":
                clock.advance(number)
            else:
                decision = limiter.admit()
                if isinstance(decision, Permit):
                    permits.append(decision)
                else:
                    limiter.refuse(decision)
            now = limiter.statistics()
            assert now.admitted >= before.admitted
            assert now.rejected >= before.rejected
            assert now.admitted >= now.ignored >= before.ignored
            before = now

    return law


class _TakesBack(RateLimiter):
    """A mutant: a call that was refused further inside was never admitted."""

    def statistics(self) -> Statistics:
        counted = super().statistics()
        return Statistics(admitted=counted.admitted - counted.ignored, rejected=counted.rejected)


def test_counters_never_go_back() -> None:
    """TE1: a limiter whose token comes back says so in another count; a mutant that takes its count back is caught."""
    law_of_counters(RateLimiter)()
    assert_caught(law_of_counters(_TakesBack))


# -- TE2: a snapshot holds together -----------------------------------------------------------------------------------


class _Intruded(AdaptiveLimiter):
    """A limiter to which a whole call happens between the reading of one number and the next."""

    _names = ("_succeeded", "_failed", "_ignored", "_cancelled", "_admitted", "_rejected")
    reading = False

    def __getattribute__(self, name: str) -> object:
        value = super().__getattribute__(name)
        if name in _Intruded._names and _Intruded.reading:
            _Intruded.reading = False
            permit = self.try_admit()
            assert permit is not None
            permit.success()
            _Intruded.reading = True
        return value


class _AdmittedFirst(_Intruded):
    """A mutant: reads what began before what ended."""

    def statistics(self) -> Statistics:
        admitted = self._admitted
        return Statistics(admitted=admitted, succeeded=self._succeeded)


def law_of_snapshots(limiter_class: type[_Intruded]) -> None:
    """No snapshot has more calls that ended than calls that began, whatever happens while it is taken (TE2)."""
    limiter = limiter_class(clock=ManualClock())
    _Intruded.reading = True
    try:
        seen = limiter.statistics()
    finally:
        _Intruded.reading = False
    assert seen.admitted >= seen.succeeded


def test_no_snapshot_has_more_ends_than_beginnings() -> None:
    """TE2: read without stopping the guard, the numbers still make sense; a mutant with another order is caught."""
    law_of_snapshots(_Intruded)
    assert_caught(partial(law_of_snapshots, _AdmittedFirst))


# -- what each of them counts -----------------------------------------------------------------------------------------


def test_breaker_tells_its_state_and_its_changes() -> None:
    """The state is that of now, though nobody asked since; each change is counted; what came late is, too."""
    clock = ManualClock()
    breaker = CircuitBreaker(1, 10.0, clock=clock)
    late, fatal = breaker.try_admit(), breaker.try_admit()
    assert late is not None
    assert fatal is not None
    fatal.failure()
    late.success()
    assert breaker.try_admit() is None
    assert breaker.statistics() == BreakerStatistics(
        admitted=2, rejected=1, failed=1, late=1, state=OPEN, transitions={(CLOSED, OPEN): 1}
    )
    clock.advance(10.0)
    assert breaker.statistics().state is HALF_OPEN
    with breaker.isolate(), breaker.isolate():
        assert breaker.statistics().state is ISOLATED
    assert breaker.statistics().transitions == {
        (CLOSED, OPEN): 1,
        (OPEN, HALF_OPEN): 2,
        (HALF_OPEN, ISOLATED): 1,
        (ISOLATED, OPEN): 1,
    }


def test_transitions_of_a_snapshot_are_its_own() -> None:
    """What is in a snapshot neither changes with the breaker nor can be changed."""
    breaker = CircuitBreaker(1, clock=ManualClock())
    before = breaker.statistics()
    with breaker.isolate():
        pass
    assert before.transitions == {}
    with pytest.raises(TypeError):
        before.transitions[CLOSED, OPEN] = 1  # type: ignore[index]


def test_storm_guard_counts_its_storms() -> None:
    """A storm counts once, when it begins; that it is over is seen, though nobody asked since."""
    clock = ManualClock()
    guard = StormGuard(1.0, 1, clock=clock)
    for _ in range(2):
        assert guard.try_admit() is not None
        assert guard.try_admit() is None
        assert guard.try_admit() is None
        assert guard.statistics().in_storm
        clock.advance(2.0)
    seen = guard.statistics()
    assert (seen.storms, seen.in_storm, seen.in_use, seen.rejected) == (2, False, 0, 4)


@given(st.lists(st.sampled_from(["append", "pop", "remove", "drain"])), st.sampled_from(["drop_oldest", "drop_newest"]))
def test_deque_counts_every_item_once(steps: list[str], overflow: Overflow) -> None:
    """TE2: at any instant what was put is what was got, dropped, removed, or is there."""
    queue: AsyncGuardedDeque[int] = AsyncGuardedDeque([1], 2, overflow=overflow)
    for number, step in enumerate(steps):
        if step == "append":
            queue.append_nowait(number)
        elif step == "remove":
            queue.remove_if(lambda item: item % 2 == 0)
        elif step == "drain":
            queue.drain()
        elif len(queue):
            queue.popleft_nowait()
        seen = queue.statistics()
        assert seen.put == seen.got + seen.dropped + seen.removed + seen.depth
        assert seen.depth == len(queue)


@pytest.mark.anyio
async def test_retry_counts_retries_and_what_it_gives_up() -> None:
    """An error that is not retried, and a call that goes well, count nowhere."""
    clock = ManualClock(autojump=True)
    budget = RetryBudget(0.1, 1.0, 2.0, clock=clock)
    retry = Retry(2, on=KeyError, backoff=ConstantBackoff(0.001), budget=budget, clock=clock)
    for error, expected in (
        (KeyError(), RetryStatistics(retried=1, given_up=1)),
        (LookupError(), RetryStatistics(retried=1, given_up=1)),
        (KeyError(), RetryStatistics(retried=2, given_up=2)),
        (KeyError(), RetryStatistics(retried=2, given_up=3)),
    ):
        with pytest.raises(type(error)):
            await retry.call(_raise, error)
        assert retry.statistics() == expected
    await retry.call(anyio.lowlevel.checkpoint)
    assert retry.statistics() == RetryStatistics(retried=2, given_up=3)
    paid = budget.statistics()
    assert (paid.paid, paid.refused) == (2, 1)
    assert math.isclose(paid.available, budget.available)


def test_budget_has_a_name() -> None:
    """Metrics call it so; what is no name is refused."""
    assert RetryBudget(name="search").name == "search"
    assert RetryBudget(clock=ManualClock()).statistics() == BudgetStatistics(paid=0, refused=0, available=10.0)
    assert_refuses("name", 3, RetryBudget)


@pytest.mark.anyio
async def test_hedge_counts_what_it_begins_and_what_wins() -> None:
    """The second attempt of one call wins, that of another only runs; the delay is told."""
    clock = ManualClock(autojump=True)
    hedge = Hedge(1.0, clock=clock)
    attempts = 0

    async def first_hangs() -> int:
        nonlocal attempts
        attempts += 1
        await clock.sleep(100.0 if attempts == 1 else 0.5)
        return attempts

    async def second_hangs() -> int:
        nonlocal attempts
        attempts += 1
        await clock.sleep(2.0 if attempts == 3 else 100.0)
        return attempts

    assert await hedge.call(first_hangs) == 2
    assert hedge.statistics() == HedgeStatistics(hedged=1, won=1, delay=1.0)
    assert await hedge.call(second_hangs) == 4
    assert hedge.statistics() == HedgeStatistics(hedged=2, won=1, delay=1.0)
    assert Hedge(clock=clock).statistics() == HedgeStatistics(hedged=0, won=0, delay=None)


@pytest.mark.anyio
async def test_fallback_counts_the_calls_that_fell_back() -> None:
    """By an exception or by the result; what goes on as it is counts nowhere."""
    fallback = Fallback("spare", on=KeyError, on_result=lambda result: result is None)
    await fallback.call(_raise, KeyError())
    await fallback.call(anyio.lowlevel.checkpoint)
    with pytest.raises(LookupError):
        await fallback.call(_raise, LookupError())
    assert fallback.statistics() == FallbackStatistics(fell_back=2)


@pytest.mark.anyio
async def test_timeout_counts_what_it_ends() -> None:
    """Calls, streams (by either of their limits) and managers; not a TimeoutError of the callee's own."""
    clock = ManualClock(autojump=True)
    timeout = Timeout(3.0, first_item=1.0, clock=clock)

    @timeout
    async def stream(first: float, second: float) -> AsyncGenerator[int]:
        await clock.sleep(first)
        yield 1
        await clock.sleep(second)
        yield 2

    @timeout
    @asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        yield

    async def block() -> None:
        async with manager():
            await clock.sleep(5.0)

    async def consume(first: float, second: float) -> None:
        async for _ in stream(first, second):
            pass

    async def pause_between() -> None:
        async for _ in stream(0.5, 0.5):
            await clock.sleep(5.0)

    with pytest.raises(TimeoutError):
        await timeout.call(_raise, TimeoutError())
    await timeout.call(clock.sleep, 1.0)
    await consume(0.5, 0.5)
    assert timeout.statistics().timed_out == 0
    too_long: tuple[Callable[[], Awaitable[None]], ...] = (
        partial(timeout.call, clock.sleep, 5.0),
        block,
        partial(consume, 2.0, 0.0),
        partial(consume, 0.5, 5.0),
        pause_between,
    )
    for ended, call in enumerate(too_long, 1):
        with pytest.raises(TimeoutExceededError):
            await call()
        assert timeout.statistics().timed_out == ended


@pytest.mark.anyio
async def test_timeout_on_the_system_s_clock_counts_too() -> None:
    """The cheap timer of asyncio, and the scope of trio, count as the other clocks do."""
    timeout = Timeout(1e-9)
    with pytest.raises(TimeoutExceededError):
        await timeout.call(anyio.sleep_forever)
    assert timeout.statistics().timed_out == 1


def test_a_layer_that_stands_for_another_says_whose_its_statistics_are() -> None:
    """A share of a limiter is measured as the limiter, a layer of a Keyed as the Keyed, any other as itself."""
    clock = ManualClock()
    limiter = AdaptiveLimiter(clock=clock)
    hosts: Keyed[str, RateLimiter] = Keyed(lambda _: RateLimiter(1.0, 1, clock=clock), clock=clock)
    assert limiter.measured is limiter.at(0.5).measured is limiter
    assert hosts.layer(key="host").measured is hosts


@pytest.mark.anyio
async def test_call_that_was_refused_further_inside_is_ignored() -> None:
    """The outer limiter admitted it, and the inner one did not: it counts as both, and its token is back."""
    clock = ManualClock()
    outer = RateLimiter(1.0, 1, clock=clock)
    with pytest.raises(RateLimitedError):
        await outer.call(_raise, RateLimitedError("inner", None))
    assert outer.statistics() == Statistics(admitted=1, ignored=1)
    assert outer.available == 1
