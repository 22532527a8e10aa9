"""hyx, as its documentation shows it: decorators, made where an event loop is running."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hyx.bulkhead import bulkhead
from hyx.circuitbreaker import consecutive_breaker
from hyx.fallback import fallback
from hyx.ratelimit import tokenbucket
from hyx.ratelimit.exceptions import RateLimitExceeded
from hyx.retry import retry
from hyx.retry.backoffs import expo
from hyx.timeout import timeout

from benchmarks.conformance.library import Breaker, Library, Limiter, not_offered

if TYPE_CHECKING:
    from benchmarks.conformance.library import Circuit, Decorator


class Hyx(Library):
    def breaker(self, circuit: Circuit) -> Breaker:
        if circuit.listener is not None:
            not_offered("no listeners")
        if circuit.ignored is not None:
            not_offered("exceptions are named that count, not that do not")
        breaker = consecutive_breaker(
            exceptions=Exception,
            failure_threshold=circuit.failures,
            recovery_time_secs=circuit.recovery,
            recovery_threshold=1,
        )
        return Breaker(lambda function: breaker(function)(), breaker)

    def limiter(self, *, calls: int, period: float) -> Limiter:
        limiter = tokenbucket(max_executions=calls, per_time_secs=period, bucket_size=calls)

        async def try_acquire(cost: int) -> bool:
            if cost != 1:
                not_offered("no costs")
            try:
                async with limiter:
                    return True
            except RateLimitExceeded:
                return False

        return Limiter(try_acquire)

    def bulkhead(self, *, limit: int, queue: int = 0, max_wait: float | None = None) -> Breaker:
        if max_wait is not None:
            not_offered("no end to a wait")
        guard = bulkhead(max_concurrency=limit, max_capacity=limit + queue)
        return Breaker(lambda function: guard(function)(), guard)

    def retry(self, *, attempts: int) -> Decorator:
        # It counts retries, not attempts.
        return retry(on=Exception, attempts=attempts - 1, backoff=expo(min_delay_secs=1.0, base=2, max_delay_secs=60.0))

    def timeout(self, *, seconds: float) -> Decorator:
        return timeout(seconds)

    def fallback(self, *, answer: object) -> Decorator:
        async def handler(*_: object, **__: object) -> object:
            return answer

        return fallback(handler)


LIBRARY = Hyx()
