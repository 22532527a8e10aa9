"""Our own layers, on the terms that everybody gets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from benchmarks.offers import OURS, Kind, Offer
from resilience import (
    Bulkhead,
    CircuitBreaker,
    ConstantBackoff,
    CountWindow,
    FailureRate,
    Fallback,
    Hedge,
    Policy,
    RateLimiter,
    Retry,
    Timeout,
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
    Offer(library=OURS, kind=Kind.RETRY, make=lambda work, terms: _retry(terms)(work), threads=True),
    Offer(library=OURS, kind=Kind.TIMEOUT, make=lambda work, terms: Timeout(terms.seconds)(work), threads=True),
    Offer(library=OURS, kind=Kind.BULKHEAD, make=lambda work, terms: Bulkhead(terms.concurrent)(work), threads=True),
    Offer(library=OURS, kind=Kind.FALLBACK, make=lambda work, _: Fallback(True)(work), threads=True),  # noqa: FBT003 - the answer
    Offer(library=OURS, kind=Kind.HEDGE, make=lambda work, terms: Hedge(terms.hedge_after)(work), threads=True),
)
