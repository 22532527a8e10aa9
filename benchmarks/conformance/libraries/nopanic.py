"""nopanic, as its README shows it: one policy object, called with `acall`, or used as a decorator."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import nopanic
from nopanic import backoff

from benchmarks.conformance.library import Breaker, Library, Limiter, not_offered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.conformance.library import Circuit, Decorator, PlainDecorator, PlainFunction, PlainLimiter


def _breaker(circuit: Circuit) -> nopanic.circuit_breaker:
    # It opens by rate: all of the last calls, if they are as many as that.
    return nopanic.circuit_breaker(
        failure_threshold=1.0,
        min_calls=circuit.failures,
        window=600.0,
        reset_timeout=circuit.recovery,
        half_open_max_calls=1,
        on=Exception
        if circuit.ignored is None
        else lambda error: isinstance(error, Exception) and not circuit.ignores(error),
        on_state_change=None if circuit.listener is None else circuit.tell,
    )


class NoPanic(Library):
    documented: ClassVar = {
        "eviction-readmits": "the documentation of `keyed` says that an evicted open breaker starts again closed",
        "eviction-resets-the-quota": "the documentation of `keyed` says that the state of an evicted policy is dropped",
    }

    def breaker(self, circuit: Circuit) -> Breaker:
        breaker = _breaker(circuit)
        return Breaker(breaker.acall, breaker)

    def plain_breaker(self, circuit: Circuit) -> Callable[[PlainFunction], object]:
        return _breaker(circuit).call

    def keyed_breaker(self, circuit: Circuit, *, keys: int) -> Callable[[str], Breaker]:
        keyed = nopanic.keyed(lambda _: _breaker(circuit), key=lambda key, **_: key, maxsize=keys)
        return lambda key: Breaker(keyed.get(key).acall)

    def limiter(self, *, calls: int, period: float) -> Limiter:
        limiter = nopanic.rate_limit(calls, period, burst=calls, max_wait=0)
        told = 0.0

        async def try_acquire(cost: int) -> bool:
            nonlocal told
            if cost != 1:
                not_offered("no costs")
            try:
                async with limiter.guard():
                    return True
            except nopanic.RateLimited as refusal:
                told = refusal.retry_after
                return False

        async def retry_after() -> float:
            return 0.0 if await try_acquire(1) else told

        return Limiter(try_acquire, retry_after)

    def waiting_limiter(self, *, calls: int, period: float) -> Callable[[int], Awaitable[object]]:
        limiter = nopanic.rate_limit(calls, period, burst=calls)

        async def acquire(cost: int) -> None:
            if cost != 1:
                not_offered("no costs")
            async with limiter.guard():
                pass

        return acquire

    def plain_limiter(self, *, calls: int, period: float) -> PlainLimiter:
        limiter = nopanic.rate_limit(calls, period, burst=calls, max_wait=0)

        def try_acquire() -> bool:
            try:
                with limiter.guard():
                    return True
            except nopanic.RateLimited:
                return False

        return try_acquire

    def keyed_limiter(self, *, calls: int, period: float, keys: int) -> Callable[[str], Awaitable[bool]]:
        keyed = nopanic.keyed(
            lambda _: nopanic.rate_limit(calls, period, burst=calls, max_wait=0), key=lambda key, **_: key, maxsize=keys
        )

        async def try_acquire(key: str) -> bool:
            try:
                async with keyed.get(key).guard():
                    return True
            except nopanic.RateLimited:
                return False

        return try_acquire

    def bulkhead(self, *, limit: int, queue: int = 0, max_wait: float | None = None) -> Breaker:
        bulkhead = nopanic.bulkhead(limit, max_wait=max_wait if queue else 0)
        return Breaker(bulkhead.acall, bulkhead)

    def retry(self, *, attempts: int) -> Decorator:
        return nopanic.retry(attempts=attempts, on=Exception, backoff=backoff.exponential(base=1.0, cap=60.0))

    def plain_retry(self, *, attempts: int) -> PlainDecorator:
        return nopanic.retry(attempts=attempts, on=Exception, backoff=backoff.fixed(0.0))

    def timeout(self, *, seconds: float) -> Decorator:
        return nopanic.timeout(seconds)

    def hedge(self, *, delay: float) -> Decorator:
        return nopanic.hedge(delay=delay, max_hedges=1)

    def fallback(self, *, answer: object) -> Decorator:
        return nopanic.fallback(lambda _: answer)


LIBRARY = NoPanic()
