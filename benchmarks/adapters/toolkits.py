"""Libraries that offer several layers and say how to compose them, each by its own documentation."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import aioresilience
import aioresilience.config
import nopanic
import pyresilience
from hyx.bulkhead import bulkhead
from hyx.circuitbreaker import consecutive_breaker
from hyx.fallback import fallback
from hyx.ratelimit import tokenbucket
from hyx.retry import retry
from hyx.timeout import timeout
from interlock import CircuitBreaker, Config
from interlock.pipeline import Pipeline
from tenacity import wait_fixed

from benchmarks.offers import HOUR, KEY, Kind, Offer

if TYPE_CHECKING:
    from benchmarks.offers import Terms, Work

__all__ = ["OFFERS"]


# -- nopanic: every policy is a decorator; `compose` stacks them. A bulkhead counts each event loop by itself. --------


def _nopanic_limiter(terms: Terms) -> nopanic.rate_limit:
    return nopanic.rate_limit(terms.rate, terms.per)


def _nopanic_acquire(_: Work, terms: Terms) -> Work:
    limiter = _nopanic_limiter(terms)

    async def acquire() -> None:
        async with limiter.guard():
            pass

    return acquire


def _nopanic_breaker(terms: Terms) -> nopanic.CircuitBreaker:
    # A rate of failures in a window of time; there is no other kind.
    return nopanic.CircuitBreaker(failure_threshold=1.0, min_calls=terms.failures, reset_timeout=terms.recovery)


def _nopanic_retry(terms: Terms) -> nopanic.retry:
    return nopanic.retry(attempts=terms.attempts, backoff=terms.delay)


def _nopanic_bulkhead(terms: Terms) -> nopanic.bulkhead:
    return nopanic.bulkhead(terms.concurrent, max_wait=0)


def _nopanic_keyed(work: Work, terms: Terms) -> Work:
    return nopanic.keyed(lambda _: _nopanic_limiter(terms), key=lambda: KEY)(work)


def _nopanic_five(work: Work, terms: Terms) -> Work:
    return nopanic.compose(
        nopanic.timeout(terms.seconds),
        _nopanic_retry(terms),
        _nopanic_breaker(terms),
        _nopanic_limiter(terms),
        _nopanic_bulkhead(terms),
    )(work)


_NOPANIC = (
    Offer(library="nopanic", kind=Kind.FIVE, make=_nopanic_five, threads=True),
    Offer(library="nopanic", kind=Kind.ACQUIRE, make=_nopanic_acquire, threads=True),
    Offer(library="nopanic", kind=Kind.LIMITED, make=lambda work, terms: _nopanic_limiter(terms)(work), threads=True),
    Offer(library="nopanic", kind=Kind.BREAKER, make=lambda work, terms: _nopanic_breaker(terms)(work), threads=True),
    Offer(library="nopanic", kind=Kind.RETRY, make=lambda work, terms: _nopanic_retry(terms)(work), threads=True),
    Offer(
        library="nopanic",
        kind=Kind.TIMEOUT,
        make=lambda work, terms: nopanic.timeout(terms.seconds)(work),
        threads=True,
    ),
    Offer(library="nopanic", kind=Kind.BULKHEAD, make=lambda work, terms: _nopanic_bulkhead(terms)(work), threads=True),
    Offer(library="nopanic", kind=Kind.KEYED, make=_nopanic_keyed, threads=True),
    Offer(
        library="nopanic", kind=Kind.FALLBACK, make=lambda work, _: nopanic.fallback(handler=True)(work), threads=True
    ),
    Offer(
        library="nopanic",
        kind=Kind.HEDGE,
        make=lambda work, terms: nopanic.hedge(delay=terms.hedge_after)(work),
        threads=True,
    ),
)


# -- pyresilience: one decorator for all; its limiter and its bulkhead have no lock on asyncio. -----------------------


def _pyresilience_limit(terms: Terms) -> pyresilience.RateLimiterConfig:
    return pyresilience.RateLimiterConfig(max_calls=terms.rate, period=terms.per)


def _pyresilience_breaker(terms: Terms) -> pyresilience.CircuitBreakerConfig:
    return pyresilience.CircuitBreakerConfig(
        failure_threshold=terms.failures, recovery_timeout=terms.recovery, success_threshold=1
    )


def _pyresilience_retry(terms: Terms) -> pyresilience.RetryConfig:
    return pyresilience.RetryConfig(max_attempts=terms.attempts, delay=terms.delay, max_delay=terms.delay, jitter=False)


def _pyresilience_timeout(terms: Terms) -> pyresilience.TimeoutConfig:
    return pyresilience.TimeoutConfig(seconds=terms.seconds, per_attempt=False)


def _pyresilience_bulkhead(terms: Terms) -> pyresilience.BulkheadConfig:
    return pyresilience.BulkheadConfig(max_concurrent=terms.concurrent)


def _pyresilience_five(work: Work, terms: Terms) -> Work:
    return pyresilience.resilient(
        timeout=_pyresilience_timeout(terms),
        retry=_pyresilience_retry(terms),
        circuit_breaker=_pyresilience_breaker(terms),
        rate_limiter=_pyresilience_limit(terms),
        bulkhead=_pyresilience_bulkhead(terms),
    )(work)


_PYRESILIENCE = (
    Offer(library="pyresilience", kind=Kind.FIVE, make=_pyresilience_five, threads=False),
    Offer(
        library="pyresilience",
        kind=Kind.ACQUIRE,
        make=lambda _, terms: pyresilience.AsyncRateLimiter(_pyresilience_limit(terms)).acquire,
        threads=False,
    ),
    Offer(
        library="pyresilience",
        kind=Kind.LIMITED,
        make=lambda work, terms: pyresilience.resilient(rate_limiter=_pyresilience_limit(terms))(work),
        threads=False,
    ),
    Offer(
        library="pyresilience",
        kind=Kind.BREAKER,
        make=lambda work, terms: pyresilience.resilient(circuit_breaker=_pyresilience_breaker(terms))(work),
        threads=True,
    ),
    Offer(
        library="pyresilience",
        kind=Kind.RETRY,
        make=lambda work, terms: pyresilience.resilient(retry=_pyresilience_retry(terms))(work),
        threads=True,
    ),
    Offer(
        library="pyresilience",
        kind=Kind.TIMEOUT,
        make=lambda work, terms: pyresilience.resilient(timeout=_pyresilience_timeout(terms))(work),
        threads=True,
    ),
    Offer(
        library="pyresilience",
        kind=Kind.BULKHEAD,
        make=lambda work, terms: pyresilience.resilient(bulkhead=_pyresilience_bulkhead(terms))(work),
        threads=False,
    ),
    Offer(
        library="pyresilience",
        kind=Kind.FALLBACK,
        make=lambda work, _: pyresilience.resilient(fallback=pyresilience.FallbackConfig(handler=True))(work),
        threads=True,
    ),
)


# -- hyx: decorators, stacked. Written for one event loop, without a lock. Its retry does not count the first attempt.


def _hyx_limiter(terms: Terms) -> tokenbucket:
    return tokenbucket(max_executions=terms.rate, per_time_secs=terms.per)


def _hyx_acquire(_: Work, terms: Terms) -> Work:
    limiter = _hyx_limiter(terms)

    async def acquire() -> None:
        async with limiter:
            pass

    return acquire


def _hyx_breaker(terms: Terms) -> consecutive_breaker:
    return consecutive_breaker(
        failure_threshold=terms.failures, recovery_time_secs=terms.recovery, recovery_threshold=1
    )


def _hyx_retry(work: Work, terms: Terms) -> Work:
    return retry(attempts=terms.attempts - 1, backoff=terms.delay)(work)


def _hyx_timeout_block(work: Work, terms: Terms) -> Work:
    async def guarded() -> object:
        async with timeout(terms.seconds):
            return await work()

    return guarded


def _hyx_bulkhead(terms: Terms) -> bulkhead:
    return bulkhead(terms.concurrent, terms.concurrent)


def _hyx_fallback(work: Work, _: Terms) -> Work:
    async def substitute(*_: object) -> bool:
        return True

    return fallback(substitute)(work)


def _hyx_five(work: Work, terms: Terms) -> Work:
    guarded = _hyx_breaker(terms)(_hyx_limiter(terms)(_hyx_bulkhead(terms)(work)))
    return timeout(terms.seconds)(_hyx_retry(guarded, terms))


_HYX = (
    Offer(library="hyx", kind=Kind.FIVE, make=_hyx_five, threads=False),
    Offer(library="hyx", kind=Kind.ACQUIRE, make=_hyx_acquire, threads=False),
    Offer(library="hyx", kind=Kind.LIMITED, make=lambda work, terms: _hyx_limiter(terms)(work), threads=False),
    Offer(library="hyx", kind=Kind.BREAKER, make=lambda work, terms: _hyx_breaker(terms)(work), threads=False),
    Offer(library="hyx", kind=Kind.RETRY, make=_hyx_retry, threads=True),
    Offer(library="hyx", kind=Kind.TIMEOUT, make=lambda work, terms: timeout(terms.seconds)(work), threads=False),
    Offer(library="hyx, block", kind=Kind.TIMEOUT, make=_hyx_timeout_block, threads=True),
    Offer(library="hyx", kind=Kind.BULKHEAD, make=lambda work, terms: _hyx_bulkhead(terms)(work), threads=False),
    Offer(library="hyx", kind=Kind.FALLBACK, make=_hyx_fallback, threads=True),
)


# -- aioresilience: an object for each, and a decorator for most. An asyncio.Lock guards what each of them counts. ----


def _aioresilience_acquire(_: Work, terms: Terms) -> Work:
    limiter = aioresilience.RateLimiter()
    rate = f"{terms.rate}/{'hour' if terms.per == HOUR else 'second'}"

    return partial(limiter.check_rate_limit, KEY, rate)


def _aioresilience_limited(work: Work, terms: Terms) -> Work:
    acquire = _aioresilience_acquire(work, terms)

    async def guarded() -> object:
        if not await acquire():
            raise aioresilience.RateLimitExceededError
        return await work()

    return guarded


def _aioresilience_breaker(work: Work, terms: Terms) -> Work:
    config = aioresilience.config.CircuitConfig(
        failure_threshold=terms.failures, recovery_timeout=terms.recovery, success_threshold=1
    )
    return aioresilience.with_circuit_breaker(aioresilience.CircuitBreaker("one", config))(work)


def _aioresilience_retry(work: Work, terms: Terms) -> Work:
    config = aioresilience.config.RetryConfig(
        max_attempts=terms.attempts, initial_delay=terms.delay, max_delay=terms.delay, jitter=0.0
    )
    return aioresilience.with_retry(aioresilience.RetryPolicy(config))(work)


def _aioresilience_timeout(work: Work, terms: Terms) -> Work:
    config = aioresilience.config.TimeoutConfig(timeout=terms.seconds)
    return aioresilience.with_timeout_manager(aioresilience.TimeoutManager(config))(work)


def _aioresilience_bulkhead(work: Work, terms: Terms) -> Work:
    config = aioresilience.config.BulkheadConfig(max_concurrent=terms.concurrent)
    return aioresilience.with_bulkhead(aioresilience.Bulkhead("one", config))(work)


def _aioresilience_adaptive(work: Work, terms: Terms) -> Work:
    config = aioresilience.config.AdaptiveConcurrencyConfig(
        initial_limit=terms.concurrent, min_limit=1, max_limit=terms.concurrent
    )
    limiter = aioresilience.AdaptiveConcurrencyLimiter("one", config)

    async def guarded() -> object:
        async with limiter:
            return await work()

    return guarded


def _aioresilience_fallback(work: Work, _: Terms) -> Work:
    config = aioresilience.config.FallbackConfig(fallback=True)
    return aioresilience.with_fallback_handler(aioresilience.FallbackHandler(config))(work)


def _aioresilience_five(work: Work, terms: Terms) -> Work:
    limited = _aioresilience_limited(_aioresilience_bulkhead(work, terms), terms)
    return _aioresilience_timeout(_aioresilience_retry(_aioresilience_breaker(limited, terms), terms), terms)


_AIORESILIENCE = tuple(
    Offer(library="aioresilience", kind=kind, make=make, threads=False)
    for kind, make in (
        (Kind.FIVE, _aioresilience_five),
        (Kind.ACQUIRE, _aioresilience_acquire),
        (Kind.LIMITED, _aioresilience_limited),
        (Kind.BREAKER, _aioresilience_breaker),
        (Kind.RETRY, _aioresilience_retry),
        (Kind.TIMEOUT, _aioresilience_timeout),
        (Kind.BULKHEAD, _aioresilience_bulkhead),
        (Kind.ADAPTIVE, _aioresilience_adaptive),
        # Its limiter is one for all keys.
        (Kind.KEYED, _aioresilience_limited),
        (Kind.FALLBACK, _aioresilience_fallback),
    )
)


# -- interlock: a breaker by rate of failures, and a pipeline around it; no rate limiter. Its bulkhead is asyncio's own


def _interlock_breaker(terms: Terms) -> CircuitBreaker:
    config = Config(
        failure_rate_threshold=1.0,
        minimum_number_of_calls=terms.failures,
        window_size=terms.failures,
        wait_duration_in_open=terms.recovery,
        permitted_calls_in_half_open=1,
    )
    return CircuitBreaker(name="one", config=config)


def _interlock_retry(work: Work, terms: Terms) -> Work:
    return Pipeline.builder().retry(attempts=terms.attempts, wait=wait_fixed(terms.delay)).build()(work)


_INTERLOCK = (
    Offer(
        library="interlock-cb",
        kind=Kind.BREAKER,
        make=lambda work, terms: _interlock_breaker(terms)(work),
        threads=True,
    ),
    Offer(library="interlock-cb", kind=Kind.RETRY, make=_interlock_retry, threads=True),
    Offer(
        library="interlock-cb",
        kind=Kind.TIMEOUT,
        make=lambda work, terms: Pipeline.builder().timeout(terms.seconds).build()(work),
        threads=True,
    ),
    Offer(
        library="interlock-cb",
        kind=Kind.BULKHEAD,
        make=lambda work, terms: Pipeline.builder().bulkhead(terms.concurrent).build()(work),
        threads=False,
    ),
    Offer(
        library="interlock-cb",
        kind=Kind.FALLBACK,
        make=lambda work, _: Pipeline.builder().fallback(lambda _: True).build()(work),
        threads=True,
    ),
)

OFFERS = (*_NOPANIC, *_PYRESILIENCE, *_HYX, *_AIORESILIENCE, *_INTERLOCK)
