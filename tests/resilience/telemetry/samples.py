"""One thing of every kind that has statistics, each with something to tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilience import (
    AdaptiveLimiter,
    AsyncGuardedDeque,
    Bulkhead,
    CircuitBreaker,
    Coalescer,
    Fallback,
    Guard,
    Hedge,
    Keyed,
    Permit,
    RateLimiter,
    Retry,
    RetryBudget,
    StormGuard,
    Timeout,
)
from resilience.telemetry.metrics import Kind
from resilience.testing import Chaos, ManualClock

if TYPE_CHECKING:
    from resilience.clock import Clock
    from resilience.counting import Statistics
    from resilience.machines.decision import NeverFits, NotUntil
    from resilience.outcome import Verdict
    from resilience.telemetry.watching import Watchable

__all__ = ["Counting", "Own", "one_of_each"]


class Own(Guard):
    """A guard of a user's own, which admits everything."""

    def __init__(self, name: str = "", *, clock: Clock | None = None) -> None:
        super().__init__(name)
        self.clock = ManualClock() if clock is None else clock

    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil | NeverFits:  # noqa: ARG002
        """Admit, and count."""
        self._admitted += 1
        return Permit(self)

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        """Do nothing."""


class Counting(Own):
    """A guard that counts how often it is read, and admits a call each time."""

    reads = 0

    def statistics(self) -> Statistics:
        """Count, and answer."""
        self.reads += 1
        self.admit()
        return super().statistics()


def one_of_each() -> dict[Kind, Watchable]:
    """Return one thing of each kind, by its kind."""
    clock = ManualClock()
    limiter = RateLimiter(1.0, 1, name="limiter", clock=clock)
    limiter.try_acquire()
    limiter.try_acquire()
    breaker = CircuitBreaker(1, name="breaker", clock=clock)
    permit = breaker.try_admit()
    assert permit is not None
    permit.failure()
    storm = StormGuard(60.0, 1, name="storm", key_share=1.0, clock=clock)
    events: Coalescer[str, int] = Coalescer(storm)
    for number in range(3):
        events.submit(number, "key")
    bulkhead = Bulkhead(3, name="bulkhead", clock=clock)
    bulkhead.try_admit()
    adaptive = AdaptiveLimiter(name="adaptive", clock=clock)
    adaptive.try_admit()
    queue: AsyncGuardedDeque[int] = AsyncGuardedDeque([1, 2], 2, overflow="drop_oldest", name="queue", clock=clock)
    queue.append_nowait(3)
    hosts: Keyed[str, RateLimiter] = Keyed(lambda _: RateLimiter(1.0, 1, clock=clock), name="hosts", clock=clock)
    assert hosts["a.example"].try_acquire()
    budget = RetryBudget(name="budget", clock=clock)
    assert budget.try_spend()
    chaos = Chaos(name="chaos", result=None, clock=clock)
    chaos(len)("injected")
    own = Own("own", clock=clock)
    own.admit()
    return {
        Kind.RATE_LIMITER: limiter,
        Kind.CIRCUIT_BREAKER: breaker,
        Kind.STORM_GUARD: storm,
        Kind.BULKHEAD: bulkhead,
        Kind.ADAPTIVE_LIMITER: adaptive,
        Kind.RETRY: Retry(name="retry", clock=clock),
        Kind.TIMEOUT: Timeout(1.0, name="timeout", clock=clock),
        Kind.FALLBACK: Fallback(None, name="fallback"),
        Kind.HEDGE: Hedge(0.25, name="hedge", clock=clock),
        Kind.CHAOS: chaos,
        Kind.OTHER: own,
        Kind.DEQUE: queue,
        Kind.KEYED: hosts,
        Kind.RETRY_BUDGET: budget,
        Kind.COALESCER: events,
    }
