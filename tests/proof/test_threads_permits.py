"""Permits that several threads settle at once, one instruction at a time: the first verdict counts, and no other."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import pytest

from resilience import (
    AdaptiveLimiter,
    Bulkhead,
    CircuitBreaker,
    Permit,
    RateLimiter,
    adaptive_limiter,
    bulkhead,
    circuit_breaker,
    circuits,
    queueing,
    rate_limiter,
    turns,
)
from resilience.fusing import SETTLED
from resilience.layer import Guard
from resilience.testing import ManualClock
from tests.proof.threaded import holds, unlocked
from tests.resilience.support import assert_caught

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.outcome import Verdict
    from resilience.testing.interleaving import Threads

WATCHED = [adaptive_limiter, bulkhead, circuit_breaker, circuits, queueing, rate_limiter, turns]

G = TypeVar("G", bound=Guard)
Ways: TypeAlias = "tuple[Callable[[Permit], object], ...]"

EVERY_WAY: Ways = (Permit.success, Permit.failure, Permit.ignored, Permit.cancelled)
#: Some guards hear only what was not to be.
IGNORED: Ways = (Permit.ignored, Permit.ignored)


def of_a_bulkhead(kind: type[Bulkhead], threads: Threads) -> None:
    """Whatever is said of a permit, and however often, it comes back once."""
    guard = kind(2)
    settle_at_once(guard, EVERY_WAY, threads)
    assert (guard.available, guard.statistics().in_use) == (2, 0)


def of_an_adaptive_limiter(kind: type[AdaptiveLimiter], threads: Threads) -> None:
    """The same where the limit is learnt."""
    guard = kind(clock=ManualClock())
    settle_at_once(guard, EVERY_WAY, threads)
    assert guard.statistics().in_use == 0


def of_a_circuit_breaker(kind: type[CircuitBreaker], threads: Threads) -> None:
    """CB7: one verdict is counted, and the state is what that one makes of it."""
    guard = kind(1, clock=ManualClock())
    settle_at_once(guard, EVERY_WAY, threads)
    seen = guard.statistics()
    assert seen.succeeded + seen.failed + seen.ignored + seen.cancelled + seen.late == 1
    assert guard.state.value == ("open" if seen.failed else "closed")


def of_a_rate_limiter(kind: type[RateLimiter], threads: Threads) -> None:
    """RL8: what was not used after all is given back once."""
    guard = kind(1, 3, clock=ManualClock())
    assert guard.try_acquire()
    settle_at_once(guard, IGNORED, threads)
    assert (guard.available, guard.statistics().ignored) == (2, 1)


def settle_at_once(guard: Guard, ways: Ways, threads: Threads) -> None:
    """Settle one permit in several threads, in one way each."""
    permit = guard.admit()
    assert isinstance(permit, Permit)
    for settle in ways:
        threads.start(settle, permit)
    threads.join()
    assert permit.settled


SUBJECTS = [
    (of_a_bulkhead, Bulkhead),
    (of_an_adaptive_limiter, AdaptiveLimiter),
    (of_a_circuit_breaker, CircuitBreaker),
    (of_a_rate_limiter, RateLimiter),
]
every_guard = pytest.mark.parametrize(
    ("settling", "kind"), [pytest.param(*subject, id=subject[1].__name__) for subject in SUBJECTS]
)
Settling: TypeAlias = "Callable[[type[Guard], Threads], None]"


def settles_once(settling: Settling, kind: type[Guard]) -> Callable[[], None]:
    """Make the property that one of several verdicts counts."""
    return lambda: holds(lambda threads: settling(kind, threads), watch=[*WATCHED, kind])


@every_guard
def test_the_first_verdict_counts(settling: Settling, kind: type[Guard]) -> None:
    """A permit that threads settle at once is settled once."""
    settles_once(settling, kind)()


def asking_first(kind: type[G]) -> type[G]:
    """Return a mutant: whether the permit has been settled is asked before the lock is taken, and noted after it."""

    def settle(self: G, permit: Permit, verdict: Verdict) -> None:
        if not permit.settled:
            kind.settle(self, copy.copy(permit), verdict)
            permit.generation = SETTLED

    return type(f"AskingFirst{kind.__name__}", (kind,), {"settle": settle, "__slots__": ()})


@every_guard
@pytest.mark.parametrize("mutate", [unlocked, asking_first])
def test_a_permit_that_counts_twice_is_caught(
    mutate: Callable[[type[Guard]], type[Guard]], settling: Settling, kind: type[Guard]
) -> None:
    """Without the lock, or with the question asked before it, some schedule counts two verdicts."""
    assert_caught(settles_once(settling, mutate(kind)))
