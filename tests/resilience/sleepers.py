"""Layers whose calls leave something behind, and ways to make such calls: at once, or begun now and ended later."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs
import pytest

from resilience import (
    AIMD,
    AdaptiveLimiter,
    Bulkhead,
    CircuitBreaker,
    CountWindow,
    FailureRate,
    Fallback,
    Gradient2,
    Layer,
    Policy,
    RateLimiter,
    RejectedError,
    SlowCallRate,
    StormGuard,
    TimeWindow,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from resilience.testing import ManualClock


__all__ = [
    "MAKERS",
    "Make",
    "Open",
    "adaptive",
    "breaker",
    "bulkhead",
    "counted",
    "drive",
    "every_kind",
    "learning",
    "limiter",
    "several",
    "storm_guard",
    "use",
    "windowed",
]

Make: TypeAlias = "Callable[[ManualClock], Layer]"


def limiter(clock: ManualClock) -> RateLimiter:
    """Make a limiter whose debts are whole nanoseconds."""
    return RateLimiter(rate=0.5, capacity=2, clock=clock)


def breaker(clock: ManualClock) -> CircuitBreaker:
    """Make a breaker that counts consecutive failures."""
    return CircuitBreaker(2, 3.0, clock=clock)


def windowed(clock: ManualClock) -> CircuitBreaker:
    """Make a breaker whose failures are forgotten in time, by two conditions."""
    slow = SlowCallRate(0.5, TimeWindow(4.0), min_calls=2)
    return CircuitBreaker(
        recovery_timeout=3.0,
        trip=[FailureRate(0.5, TimeWindow(4.0), min_calls=2), slow],
        slow_call_duration=2.0,
        clock=clock,
    )


def counted(clock: ManualClock) -> CircuitBreaker:
    """Make a breaker that judges the last few calls, by two conditions."""
    return CircuitBreaker(
        recovery_timeout=3.0,
        trip=[FailureRate(0.6, CountWindow(3), min_calls=3), SlowCallRate(0.6, CountWindow(4), min_calls=4)],
        slow_call_duration=2.0,
        clock=clock,
    )


def storm_guard(clock: ManualClock) -> StormGuard:
    """Make a storm guard whose storms take a while to end."""
    return StormGuard(3.0, 2, hold_for=1.0, clock=clock)


def bulkhead(clock: ManualClock) -> Bulkhead:
    """Make a bulkhead for one call at a time."""
    return Bulkhead(1, clock=clock)


def adaptive(clock: ManualClock) -> AdaptiveLimiter:
    """Make a limiter that learns from the first failure."""
    return AdaptiveLimiter(AIMD(initial_limit=2), is_failure=lambda _: True, clock=clock)


def learning(clock: ManualClock) -> AdaptiveLimiter:
    """Make a limiter that learns from latency, and probes soon."""
    algorithm = Gradient2(initial_limit=4, window=1, queue_size=1, probe_every=3)
    return AdaptiveLimiter(algorithm, is_failure=lambda _: True, clock=clock)


def several(clock: ManualClock) -> Policy:
    """Make a policy whose parts recover each in its own time, or not by themselves."""
    return Policy(Fallback("other", on=KeyError), storm_guard(clock), breaker(clock), limiter(clock))


MAKERS: dict[str, Make] = {
    make.__name__: make
    for make in (limiter, breaker, windowed, counted, storm_guard, bulkhead, adaptive, learning, several)
}
every_kind = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def drive(coroutine: Coroutine[object, object, str]) -> str:
    """Run a coroutine that never has to wait."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return str(end.value)
    coroutine.close()
    raise AssertionError("it waited")


def use(layer: Layer, *, fails: bool = False) -> str:
    """Make one call through a layer, and return how it ended."""

    async def call() -> str:
        if fails:
            raise ConnectionError
        return "done"

    try:
        return drive(layer.call(call))
    except (RejectedError, ConnectionError) as error:
        return repr(error)


class Open:
    """A call under way, to be ended at some other time."""

    def __init__(self, layer: Layer) -> None:
        self.coroutine = layer.call(self._wait)
        self.fails = False
        self.outcome = self._step()

    async def _wait(self) -> str:
        @attrs.define
        class Pause:
            def __await__(self) -> object:
                yield

        await Pause()  # type: ignore[misc]
        if self.fails:
            raise ConnectionError
        return "done"

    def _step(self) -> str | None:
        try:
            self.coroutine.send(None)
        except StopIteration as end:
            return str(end.value)
        except (RejectedError, ConnectionError) as error:
            return repr(error)
        return None

    def end(self, *, fails: bool = False) -> str:
        """Let the call end."""
        if self.outcome is None:
            self.fails = fails
            self.outcome = self._step()
        assert self.outcome is not None
        return self.outcome
