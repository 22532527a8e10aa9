"""pyrate-limiter, as its README shows it: a Limiter over a Rate, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyrate_limiter import Duration, Limiter, Rate

from benchmarks.conformance.library import Library
from benchmarks.conformance.library import Limiter as NeutralLimiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.conformance.library import PlainLimiter

KEY = "user"


def _limiter(calls: int, period: float) -> Limiter:
    return Limiter(Rate(calls, int(period * Duration.SECOND)))


class PyrateLimiter(Library):
    def limiter(self, *, calls: int, period: float) -> NeutralLimiter:
        limiter = _limiter(calls, period)
        return NeutralLimiter(lambda cost: limiter.try_acquire_async(KEY, cost, blocking=False))

    def waiting_limiter(self, *, calls: int, period: float) -> Callable[[int], Awaitable[object]]:
        limiter = _limiter(calls, period)
        return lambda cost: limiter.try_acquire_async(KEY, cost)

    def plain_limiter(self, *, calls: int, period: float) -> PlainLimiter:
        limiter = _limiter(calls, period)
        return lambda: limiter.try_acquire(KEY, blocking=False)


LIBRARY = PyrateLimiter()
