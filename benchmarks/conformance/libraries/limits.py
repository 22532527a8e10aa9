"""limits, as its documentation shows it: the moving window, the most exact of its strategies, in memory."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING

from limits import RateLimitItemPerSecond, aio, storage, strategies

from benchmarks.conformance.library import Library, Limiter

if TYPE_CHECKING:
    from benchmarks.conformance.library import PlainLimiter

KEY = "user"


class Limits(Library):
    def limiter(self, *, calls: int, period: float) -> Limiter:
        limiter = aio.strategies.MovingWindowRateLimiter(aio.storage.MemoryStorage())
        item = RateLimitItemPerSecond(calls, int(period))

        async def retry_after() -> float:
            stats = await limiter.get_window_stats(item, KEY)
            return max(0.0, stats.reset_time - time()) if stats.remaining == 0 else 0.0

        return Limiter(lambda cost: limiter.hit(item, KEY, cost=cost), retry_after)

    def plain_limiter(self, *, calls: int, period: float) -> PlainLimiter:
        limiter = strategies.MovingWindowRateLimiter(storage.MemoryStorage())
        item = RateLimitItemPerSecond(calls, int(period))
        return lambda: limiter.hit(item, KEY)


LIBRARY = Limits()
