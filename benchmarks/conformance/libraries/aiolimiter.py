"""aiolimiter, as its README shows it: `acquire`, or `has_capacity` first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiolimiter import AsyncLimiter

from benchmarks.conformance.library import Library, Limiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class AioLimiter(Library):
    def limiter(self, *, calls: int, period: float) -> Limiter:
        limiter = AsyncLimiter(calls, period)

        async def try_acquire(cost: int) -> bool:
            if not limiter.has_capacity(cost):
                return False
            await limiter.acquire(cost)
            return True

        return Limiter(try_acquire)

    def waiting_limiter(self, *, calls: int, period: float) -> Callable[[int], Awaitable[object]]:
        return AsyncLimiter(calls, period).acquire


LIBRARY = AioLimiter()
