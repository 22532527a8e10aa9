"""Libraries that do one thing, and what they come to when they are put together by hand."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

import aiobreaker
import circuitbreaker
import limits
import purgatory
import stamina
import tenacity
from aiolimiter import AsyncLimiter
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter
from pyrate_limiter import Limiter, Rate
from throttled.asyncio import MemoryStore, Throttled
from throttled.asyncio.rate_limiter import per_hour, per_sec

from benchmarks.offers import HOUR, KEY, Kind, Offer

if TYPE_CHECKING:
    from benchmarks.offers import Terms, Work

__all__ = ["OFFERS"]

# -- rate limiters ----------------------------------------------------------------------------------------------------


def _aiolimiter(work: Work, terms: Terms) -> Work:
    limiter = AsyncLimiter(terms.rate, terms.per)

    async def guarded() -> object:
        async with limiter:
            return await work()

    return guarded


def _limits(_: Work, terms: Terms) -> Work:
    # Its cheapest strategy, and the only one whose cost does not grow with the number of calls in the window.
    return partial(FixedWindowRateLimiter(MemoryStorage()).hit, _limits_item(terms, terms.rate), KEY)


def _limits_item(terms: Terms, rate: int) -> limits.RateLimitItem:
    return (limits.RateLimitItemPerHour if terms.per == HOUR else limits.RateLimitItemPerSecond)(rate)


def _limits_window(_: Work, terms: Terms) -> Work:
    return partial(MovingWindowRateLimiter(MemoryStorage()).hit, _limits_item(terms, terms.events), KEY)


def _limits_keyed(work: Work, terms: Terms) -> Work:
    admitted = _limits(work, terms)

    async def guarded() -> object:
        return await admitted() and await work()

    return guarded


def _pyrate(rate: int, per: int) -> Limiter:
    return Limiter(Rate(rate, per * 1_000), buffer_ms=1)


def _throttled(terms: Terms) -> Throttled:
    quota = (per_hour if terms.per == HOUR else per_sec)(terms.rate)
    return Throttled(KEY, quota=quota, store=MemoryStore())


_LIMITERS = (
    Offer(
        library="aiolimiter",
        kind=Kind.ACQUIRE,
        make=lambda _, terms: AsyncLimiter(terms.rate, terms.per).acquire,
        threads=False,
    ),
    Offer(library="aiolimiter", kind=Kind.LIMITED, make=_aiolimiter, threads=False),
    Offer(library="limits", kind=Kind.ACQUIRE, make=_limits, threads=False),
    Offer(library="limits", kind=Kind.STORM, make=_limits_window, threads=False),
    Offer(library="limits", kind=Kind.KEYED, make=_limits_keyed, threads=False),
    # It keeps a list of what is in the window, whatever it is used for.
    Offer(
        library="pyrate-limiter",
        kind=Kind.STORM,
        make=lambda _, terms: _pyrate(terms.events, terms.per).try_acquire_async,
        threads=True,
    ),
    Offer(
        library="pyrate-limiter",
        kind=Kind.ACQUIRE,
        make=lambda _, terms: _pyrate(terms.rate, terms.per).try_acquire_async,
        threads=True,
    ),
    Offer(
        library="pyrate-limiter",
        kind=Kind.LIMITED,
        make=lambda work, terms: _pyrate(terms.rate, terms.per).as_decorator(name=KEY)(work),
        threads=True,
    ),
    Offer(
        library="throttled-py",
        kind=Kind.ACQUIRE,
        make=lambda _, terms: _throttled(terms).limit,
        threads=False,
        is_refusal=attrgetter("limited"),
    ),
    Offer(library="throttled-py", kind=Kind.LIMITED, make=lambda work, terms: _throttled(terms)(work), threads=False),
)


# -- circuit breakers (pybreaker's is for Tornado's coroutines, not for asyncio's) ------------------------------------


def _aiobreaker(work: Work, terms: Terms) -> Work:
    return aiobreaker.CircuitBreaker(terms.failures, timedelta(seconds=terms.recovery))(work)


def _circuitbreaker(work: Work, terms: Terms) -> Work:
    return circuitbreaker.CircuitBreaker(terms.failures, terms.recovery)(work)


def _purgatory(work: Work, terms: Terms) -> Work:
    return purgatory.AsyncCircuitBreakerFactory(terms.failures, terms.recovery)("one")(work)


_BREAKERS = (
    Offer(library="aiobreaker", kind=Kind.BREAKER, make=_aiobreaker, threads=False),
    Offer(library="circuitbreaker", kind=Kind.BREAKER, make=_circuitbreaker, threads=False),
    Offer(library="purgatory", kind=Kind.BREAKER, make=_purgatory, threads=False),
)


# -- retries ----------------------------------------------------------------------------------------------------------


def _stamina(work: Work, terms: Terms) -> Work:
    return stamina.retry(
        on=Exception,
        attempts=terms.attempts,
        timeout=None,
        wait_initial=terms.delay,
        wait_max=terms.delay,
        wait_jitter=0.0,
    )(work)


def _tenacity(work: Work, terms: Terms) -> Work:
    return tenacity.retry(
        stop=tenacity.stop_after_attempt(terms.attempts), wait=tenacity.wait_fixed(terms.delay), reraise=True
    )(work)


_RETRIES = (
    Offer(library="stamina", kind=Kind.RETRY, make=_stamina, threads=True),
    Offer(library="tenacity", kind=Kind.RETRY, make=_tenacity, threads=True),
)


# -- by hand: asyncio's own parts, and all five -----------------------------------------------------------------------


def _asyncio_timeout(work: Work, terms: Terms) -> Work:
    async def guarded() -> object:
        async with asyncio.timeout(terms.seconds):
            return await work()

    return guarded


def _asyncio_semaphore(work: Work, terms: Terms) -> Work:
    semaphore = asyncio.Semaphore(terms.concurrent)

    async def guarded() -> object:
        async with semaphore:
            return await work()

    return guarded


def _by_hand(work: Work, terms: Terms) -> Work:
    limiter = AsyncLimiter(terms.rate, terms.per)
    semaphore = asyncio.Semaphore(terms.concurrent)

    async def guarded() -> object:
        async with limiter, semaphore:
            return await work()

    return _asyncio_timeout(_tenacity(_circuitbreaker(guarded, terms), terms), terms)


_BY_HAND = (
    Offer(
        library="by hand: tenacity, circuitbreaker, aiolimiter, asyncio", kind=Kind.FIVE, make=_by_hand, threads=False
    ),
    Offer(library="asyncio.timeout", kind=Kind.TIMEOUT, make=_asyncio_timeout, threads=True),
    Offer(library="asyncio.Semaphore", kind=Kind.BULKHEAD, make=_asyncio_semaphore, threads=False),
)

OFFERS = (*_LIMITERS, *_BREAKERS, *_RETRIES, *_BY_HAND)
