"""pyresilience, as its README shows it: the decorator `resilient`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pyresilience import (
    BulkheadConfig,
    CircuitBreakerConfig,
    EventType,
    FallbackConfig,
    RateLimiterConfig,
    RateLimitExceededError,
    ResilienceEvent,
    RetryConfig,
    TimeoutConfig,
    resilient,
)

from benchmarks.conformance.library import Breaker, Library, Limiter, not_offered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.conformance.library import Circuit, Decorator, Function, PlainDecorator, PlainFunction, PlainLimiter

CHANGES = {EventType.CIRCUIT_OPEN, EventType.CIRCUIT_HALF_OPEN, EventType.CIRCUIT_CLOSED}


def _breaker(circuit: Circuit) -> Decorator:
    def told(event: ResilienceEvent) -> None:
        if event.event_type in CHANGES:
            circuit.tell()

    return resilient(
        circuit_breaker=CircuitBreakerConfig(
            failure_threshold=circuit.failures,
            recovery_timeout=circuit.recovery,
            success_threshold=1,
            ignore_on=() if circuit.ignored is None else (circuit.ignored,),
        ),
        listeners=[] if circuit.listener is None else [told],
    )


def _shared(decorator: Decorator) -> Callable[[Function], Awaitable[object]]:
    """Return what calls any coroutine function under one decorator's guard: the guard is that of one function."""

    async def call(function: Function) -> object:
        return await function()

    return cast("Callable[[Function], Awaitable[object]]", decorator(call))


class PyResilience(Library):
    def breaker(self, circuit: Circuit) -> Breaker:
        decorator = _breaker(circuit)
        return Breaker(_shared(decorator), decorator)

    def plain_breaker(self, circuit: Circuit) -> Callable[[PlainFunction], object]:
        @_breaker(circuit)
        def call(function: PlainFunction) -> object:
            return function()

        return call

    def limiter(self, *, calls: int, period: float) -> Limiter:
        @resilient(rate_limiter=RateLimiterConfig(max_calls=calls, period=period))
        async def admitted() -> bool:
            return True

        async def try_acquire(cost: int) -> bool:
            if cost != 1:
                not_offered("no costs")
            try:
                return await admitted()
            except RateLimitExceededError:
                return False

        return Limiter(try_acquire)

    def waiting_limiter(self, *, calls: int, period: float) -> Callable[[int], Awaitable[object]]:
        @resilient(rate_limiter=RateLimiterConfig(max_calls=calls, period=period, max_wait=3600.0))
        async def admitted() -> bool:
            return True

        async def acquire(cost: int) -> None:
            if cost != 1:
                not_offered("no costs")
            await admitted()

        return acquire

    def plain_limiter(self, *, calls: int, period: float) -> PlainLimiter:
        @resilient(rate_limiter=RateLimiterConfig(max_calls=calls, period=period))
        def admitted() -> bool:
            return True

        def try_acquire() -> bool:
            try:
                return admitted()
            except RateLimitExceededError:
                return False

        return try_acquire

    def bulkhead(self, *, limit: int, queue: int = 0, max_wait: float | None = None) -> Breaker:
        decorator = resilient(
            bulkhead=BulkheadConfig(max_concurrent=limit, max_wait=(max_wait or 3600.0) if queue else 0.0)
        )
        return Breaker(_shared(decorator), decorator)

    def retry(self, *, attempts: int) -> Decorator:
        return resilient(
            retry=RetryConfig(max_attempts=attempts, delay=1.0, backoff_factor=2.0, max_delay=60.0, jitter=False)
        )

    def plain_retry(self, *, attempts: int) -> PlainDecorator:
        return resilient(retry=RetryConfig(max_attempts=attempts, delay=0.0, jitter=False))

    def timeout(self, *, seconds: float) -> Decorator:
        return resilient(timeout=TimeoutConfig(seconds=seconds))

    def fallback(self, *, answer: object) -> Decorator:
        return resilient(fallback=FallbackConfig(handler=lambda _: answer))


LIBRARY = PyResilience()
