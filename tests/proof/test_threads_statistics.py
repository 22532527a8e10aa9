"""Statistics taken while other threads go on, one instruction at a time: no call has ended that has not begun."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypeAlias

import attrs
import pytest

from resilience import (
    AdaptiveLimiter,
    Bulkhead,
    CircuitBreaker,
    Permit,
    RateLimiter,
    StormGuard,
    adaptive_limiter,
    circuit_breaker,
    circuits,
    counting,
    queueing,
    rate_limiter,
    storm_guard,
    turns,
)
from resilience.testing import ManualClock
from tests.proof.threaded import holds
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.counting import Statistics
    from resilience.layer import Guard
    from resilience.testing.interleaving import Threads

WATCHED = [adaptive_limiter, circuit_breaker, circuits, counting, queueing, rate_limiter, storm_guard, turns]
COUNTERS = ("admitted", "rejected", "succeeded", "failed", "ignored", "cancelled")

Make: TypeAlias = "Callable[[ManualClock], Guard]"

#: Each admits one call of two, or both.
GUARDS: dict[str, Make] = {
    "AdaptiveLimiter": lambda clock: AdaptiveLimiter(clock=clock),
    "Bulkhead": lambda clock: Bulkhead(1, clock=clock),
    "CircuitBreaker": lambda clock: CircuitBreaker(2, clock=clock),
    "RateLimiter": lambda clock: RateLimiter(1, 1, clock=clock),
    "StormGuard": lambda clock: StormGuard(10, 1, clock=clock),
}


def ended(seen: Statistics) -> int:
    """Return how many calls have ended, in whatever way."""
    return seen.succeeded + seen.failed + seen.ignored + seen.cancelled + getattr(seen, "late", 0)


def adds_up(make: Make) -> Callable[[], None]:
    """Make the property that every snapshot could be of one instant, and that no counter ever goes back."""

    def scenario(threads: Threads) -> None:
        guard = make(ManualClock())
        snapshots: list[Statistics] = []

        def call(settle: Callable[[Permit], None]) -> None:
            decision = guard.admit()
            if isinstance(decision, Permit):
                settle(decision)
            else:
                guard.refuse(decision)

        threads.start(lambda: snapshots.extend(guard.statistics() for _ in range(2)))
        threads.start(call, Permit.ignored)
        threads.start(call, Permit.failure)
        threads.join()
        snapshots.append(guard.statistics())
        assert all(ended(seen) <= seen.admitted for seen in snapshots)
        for earlier, later in itertools.pairwise(snapshots):
            assert all(getattr(earlier, name) <= getattr(later, name) for name in COUNTERS)
        assert snapshots[-1].admitted + snapshots[-1].rejected == 2

    return lambda: holds(scenario, watch=[*WATCHED, ReadsWhatHasBegunFirst])


class ReadsWhatHasBegunFirst(RateLimiter):
    """A mutant: what has begun is read first, and then what has ended."""

    def statistics(self) -> Statistics:
        begun = self._admitted
        return attrs.evolve(super().statistics(), admitted=begun)


@pytest.mark.parametrize("name", GUARDS)
def test_a_snapshot_adds_up(name: str) -> None:
    """Whatever other threads do while it is taken."""
    adds_up(GUARDS[name])()


def test_a_snapshot_that_does_not_is_caught() -> None:
    """Some schedule has a call begin and end between the two readings."""
    assert_caught(adds_up(lambda clock: ReadsWhatHasBegunFirst(1, 1, clock=clock)))
