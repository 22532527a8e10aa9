"""aioresilience, as its README shows it: an instance of each pattern, called directly or through its decorator."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from aioresilience import (
    Bulkhead,
    BulkheadConfig,
    CircuitBreaker,
    CircuitConfig,
    FallbackConfig,
    FallbackHandler,
    RateLimitConfig,
    RateLimiter,
    RetryConfig,
    RetryPolicy,
    TimeoutConfig,
    TimeoutManager,
    with_bulkhead,
    with_circuit_breaker,
    with_fallback_handler,
    with_retry,
    with_timeout_manager,
)
from aioresilience.events import EventType

from benchmarks.conformance.library import Breaker, Library, Limiter, not_offered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.conformance.library import Circuit, Decorator

PERIODS = {1.0: "second", 60.0: "minute", 3600.0: "hour"}


class AioResilience(Library):
    documented: ClassVar = {
        "eviction-resets-the-quota": "the documentation of `RateLimitConfig` says that the least recently used go"
    }

    def breaker(self, circuit: Circuit) -> Breaker:
        breaker = CircuitBreaker(
            name="service",
            config=CircuitConfig(
                failure_threshold=circuit.failures,
                recovery_timeout=circuit.recovery,
                success_threshold=1,
                half_open_max_calls=1,
                failure_predicate=None if circuit.ignored is None else lambda error: not circuit.ignores(error),
            ),
        )
        if circuit.listener is not None:

            @breaker.events.on(EventType.STATE_CHANGE)
            async def changed(_event: object) -> None:
                circuit.tell()

        return Breaker(breaker.call, with_circuit_breaker(breaker))

    def limiter(self, *, calls: int, period: float) -> Limiter:
        limiter = RateLimiter()

        async def try_acquire(cost: int) -> bool:
            if cost != 1:
                not_offered("no costs")
            return await limiter.check_rate_limit("user", f"{calls}/{PERIODS[period]}")

        return Limiter(try_acquire)

    def keyed_limiter(self, *, calls: int, period: float, keys: int) -> Callable[[str], Awaitable[bool]]:
        limiter = RateLimiter(config=RateLimitConfig(max_limiters=keys))
        return lambda key: limiter.check_rate_limit(key, f"{calls}/{PERIODS[period]}")

    def bulkhead(self, *, limit: int, queue: int = 0, max_wait: float | None = None) -> Breaker:
        bulkhead = Bulkhead(
            name="service", config=BulkheadConfig(max_concurrent=limit, max_waiting=queue, timeout=max_wait)
        )
        return Breaker(bulkhead.execute, with_bulkhead(bulkhead))

    def retry(self, *, attempts: int) -> Decorator:
        policy = RetryPolicy(
            config=RetryConfig(
                max_attempts=attempts, initial_delay=1.0, max_delay=60.0, backoff_multiplier=2.0, jitter=0.0
            )
        )
        return with_retry(policy)

    def timeout(self, *, seconds: float) -> Decorator:
        return with_timeout_manager(TimeoutManager(config=TimeoutConfig(timeout=seconds)))

    def fallback(self, *, answer: object) -> Decorator:
        return with_fallback_handler(FallbackHandler(config=FallbackConfig(fallback=answer)))


LIBRARY = AioResilience()
