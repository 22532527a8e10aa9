"""This repository's own library."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from benchmarks.conformance.library import Breaker, Library, Limiter
from resilience import (
    Bulkhead,
    CircuitBreaker,
    ExponentialBackoff,
    Fallback,
    Hedge,
    Keyed,
    RateLimiter,
    Retry,
    Timeout,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.conformance.library import Circuit, Decorator, PlainDecorator, PlainFunction, PlainLimiter


def _breaker(circuit: Circuit) -> CircuitBreaker:
    return CircuitBreaker(
        failure_threshold=circuit.failures,
        recovery_timeout=circuit.recovery,
        on_state_change=None if circuit.listener is None else circuit.tell,
        is_failure=lambda error: not circuit.ignores(error),
    )


class Ours(Library):
    """`resilience`, on its system clock."""

    def breaker(self, circuit: Circuit) -> Breaker:
        breaker = _breaker(circuit)
        return Breaker(breaker.call, breaker)

    def plain_breaker(self, circuit: Circuit) -> Callable[[PlainFunction], object]:
        breaker = _breaker(circuit)
        return lambda function: breaker(function)()

    def keyed_breaker(self, circuit: Circuit, *, keys: int) -> Callable[[str], Breaker]:
        keyed: Keyed[str, CircuitBreaker] = Keyed(lambda _: _breaker(circuit), max_keys=keys)
        return lambda key: Breaker(keyed[key].call)

    def limiter(self, *, calls: int, period: float) -> Limiter:
        limiter = RateLimiter(rate=calls / period, capacity=calls)

        async def try_acquire(cost: int) -> bool:
            return limiter.try_acquire(cost)

        async def retry_after() -> float:
            return limiter.retry_after()

        return Limiter(try_acquire, retry_after)

    def waiting_limiter(self, *, calls: int, period: float) -> Callable[[int], Awaitable[object]]:
        limiter = RateLimiter(rate=calls / period, capacity=calls)
        return lambda cost: limiter.acquire(cost, max_wait=math.inf)

    def plain_limiter(self, *, calls: int, period: float) -> PlainLimiter:
        return RateLimiter(rate=calls / period, capacity=calls).try_acquire

    def keyed_limiter(self, *, calls: int, period: float, keys: int) -> Callable[[str], Awaitable[bool]]:
        keyed: Keyed[str, RateLimiter] = Keyed(
            lambda _: RateLimiter(rate=calls / period, capacity=calls), max_keys=keys
        )

        async def try_acquire(key: str) -> bool:
            return keyed[key].try_acquire()

        return try_acquire

    def bulkhead(self, *, limit: int, queue: int = 0, max_wait: float | None = None) -> Breaker:
        bulkhead = Bulkhead(limit, max_queue=queue, max_wait=max_wait)
        return Breaker(bulkhead.call, bulkhead)

    def retry(self, *, attempts: int) -> Decorator:
        return Retry(attempts, backoff=ExponentialBackoff(base=1.0, factor=2.0, cap=60.0, jitter="none"))

    def plain_retry(self, *, attempts: int) -> PlainDecorator:
        return Retry(attempts, backoff=ExponentialBackoff(base=0.001, jitter="none"))

    def timeout(self, *, seconds: float) -> Decorator:
        return Timeout(seconds)

    def hedge(self, *, delay: float) -> Decorator:
        return Hedge(delay=delay)

    def fallback(self, *, answer: object) -> Decorator:
        return Fallback(answer)


LIBRARY = Ours()
