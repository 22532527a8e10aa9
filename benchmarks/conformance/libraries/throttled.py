"""throttled-py, as its README shows it: its default, a token bucket, over a store in memory."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar

from throttled import Throttled as PlainThrottled
from throttled import rate_limiter
from throttled import store as plain_store
from throttled.asyncio import Throttled, store

from benchmarks.conformance.library import Library, Limiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.conformance.library import PlainLimiter

KEY = "user"


def _quota(calls: int, period: float) -> rate_limiter.Quota:
    return rate_limiter.per_duration(timedelta(seconds=period), calls)


class ThrottledPy(Library):
    documented: ClassVar = {
        "eviction-resets-the-quota": "its README says that the store drops the least recently used keys"
    }

    def limiter(self, *, calls: int, period: float) -> Limiter:
        throttled = Throttled(key=KEY, quota=_quota(calls, period), store=store.MemoryStore())
        told = 0.0

        async def try_acquire(cost: int) -> bool:
            nonlocal told
            result = await throttled.limit(cost=cost)
            told = result.state.retry_after
            return not result.limited

        async def retry_after() -> float:
            return 0.0 if await try_acquire(1) else told

        return Limiter(try_acquire, retry_after)

    def waiting_limiter(self, *, calls: int, period: float) -> Callable[[int], Awaitable[object]]:
        throttled = Throttled(key=KEY, quota=_quota(calls, period), store=store.MemoryStore(), timeout=1e6)

        async def acquire(cost: int) -> None:
            result = await throttled.limit(cost=cost)
            if result.limited:
                raise RuntimeError("not admitted")

        return acquire

    def plain_limiter(self, *, calls: int, period: float) -> PlainLimiter:
        throttled = PlainThrottled(key=KEY, quota=_quota(calls, period), store=plain_store.MemoryStore())
        return lambda: not throttled.limit().limited

    def keyed_limiter(self, *, calls: int, period: float, keys: int) -> Callable[[str], Awaitable[bool]]:
        throttled = Throttled(quota=_quota(calls, period), store=store.MemoryStore(options={"MAX_SIZE": keys}))

        async def try_acquire(key: str) -> bool:
            return not (await throttled.limit(key)).limited

        return try_acquire


LIBRARY = ThrottledPy()
