"""Our own layers, on the terms that everybody gets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from benchmarks.offers import KEY, OURS, Kind, Offer
from resilience import (
    AIMD,
    AdaptiveLimiter,
    Bulkhead,
    CircuitBreaker,
    ConstantBackoff,
    CountWindow,
    FailureRate,
    Fallback,
    Hedge,
    Keyed,
    Policy,
    RateLimiter,
    Retry,
    StormGuard,
    Timeout,
    TimeWindow,
)

if TYPE_CHECKING:
    from benchmarks.offers import Terms, Work

__all__ = ["OFFERS"]


def _limiter(terms: Terms) -> RateLimiter:
    return RateLimiter(terms.rate / terms.per, terms.rate, max_wait=math.inf)


def _breaker(terms: Terms) -> CircuitBreaker:
    return CircuitBreaker(terms.failures, terms.recovery)


def _breaker_by_rate(terms: Terms) -> CircuitBreaker:
    rate = FailureRate(1.0, CountWindow(100), min_calls=terms.failures)
    return CircuitBreaker(recovery_timeout=terms.recovery, trip=rate)


def _breaker_by_rate_of_time(terms: Terms) -> CircuitBreaker:
    rate = FailureRate(1.0, TimeWindow(60.0), min_calls=terms.failures)
    return CircuitBreaker(recovery_timeout=terms.recovery, trip=rate)


def _adaptive(work: Work, terms: Terms) -> Work:
    return AdaptiveLimiter(AIMD(initial_limit=terms.concurrent, max_limit=terms.concurrent))(work)


def _storm(_: Work, terms: Terms) -> Work:
    return StormGuard(terms.per, terms.events).should_process_event


def _keyed(work: Work, terms: Terms) -> Work:
    return Keyed[str, RateLimiter](lambda _: _limiter(terms)).layer(key=lambda: KEY)(work)


def _retry(terms: Terms) -> Retry:
    return Retry(terms.attempts, backoff=ConstantBackoff(terms.delay))


def _five(work: Work, terms: Terms) -> Work:
    return Policy(Timeout(terms.seconds), _retry(terms), _breaker(terms), _limiter(terms), Bulkhead(terms.concurrent))(
        work
    )


OFFERS = (
    Offer(library=OURS, kind=Kind.FIVE, make=_five, threads=True),
    Offer(library=OURS, kind=Kind.ACQUIRE, make=lambda _, terms: _limiter(terms).acquire, threads=True),
    Offer(library=OURS, kind=Kind.LIMITED, make=lambda work, terms: _limiter(terms)(work), threads=True),
    Offer(library=OURS, kind=Kind.BREAKER, make=lambda work, terms: _breaker(terms)(work), threads=True),
    Offer(
        library=f"{OURS}, failure rate",
        kind=Kind.BREAKER,
        make=lambda work, terms: _breaker_by_rate(terms)(work),
        threads=True,
    ),
    Offer(
        library=f"{OURS}, failure rate in time",
        kind=Kind.BREAKER,
        make=lambda work, terms: _breaker_by_rate_of_time(terms)(work),
        threads=True,
    ),
    Offer(library=OURS, kind=Kind.RETRY, make=lambda work, terms: _retry(terms)(work), threads=True),
    Offer(library=OURS, kind=Kind.TIMEOUT, make=lambda work, terms: Timeout(terms.seconds)(work), threads=True),
    Offer(library=OURS, kind=Kind.BULKHEAD, make=lambda work, terms: Bulkhead(terms.concurrent)(work), threads=True),
    Offer(library=OURS, kind=Kind.ADAPTIVE, make=_adaptive, threads=True),
    Offer(library=OURS, kind=Kind.STORM, make=_storm, threads=True),
    Offer(library=OURS, kind=Kind.KEYED, make=_keyed, threads=True),
    Offer(library=OURS, kind=Kind.FALLBACK, make=lambda work, _: Fallback(True)(work), threads=True),  # noqa: FBT003 - the answer
    Offer(library=OURS, kind=Kind.HEDGE, make=lambda work, terms: Hedge(terms.hedge_after)(work), threads=True),
)
