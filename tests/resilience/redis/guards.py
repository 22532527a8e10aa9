"""One shared guard of each kind, small enough to be at its end soon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from resilience import RejectedError
from resilience.redis import RedisCircuitBreaker, RedisRateLimiter, RedisStormGuard
from tests.resilience.support import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.redis import RedisStore
    from resilience.redis.shared import OnStoreError, SharedGuard

#: How many calls each lets pass at once, without a failure among them; None: all.
ROOM: dict[str, int | None] = {"limiter": 3, "storm guard": 3, "breaker": None}


def make(kind: str, store: RedisStore, on_store_error: OnStoreError = "local") -> SharedGuard[Any]:
    """Return a guard of that kind."""
    return MAKERS[kind](store, on_store_error)


def _limiter(store: RedisStore, on_store_error: OnStoreError) -> RedisRateLimiter:
    return RedisRateLimiter(store, 0.001, 3, name="guard", on_store_error=on_store_error)


def _storm_guard(store: RedisStore, on_store_error: OnStoreError) -> RedisStormGuard:
    return RedisStormGuard(store, 1_000.0, 3, name="guard", on_store_error=on_store_error)


def _breaker(store: RedisStore, on_store_error: OnStoreError) -> RedisCircuitBreaker:
    return RedisCircuitBreaker(store, name="guard", on_store_error=on_store_error)


MAKERS: dict[str, Callable[[RedisStore, OnStoreError], SharedGuard[Any]]] = {
    "limiter": _limiter,
    "storm guard": _storm_guard,
    "breaker": _breaker,
}
each_kind = pytest.mark.parametrize("kind", MAKERS)
each_mode = pytest.mark.parametrize("mode", ["local", "admit", "reject"])


async def _work() -> None:
    """Do nothing, well."""


async def quiet(store: RedisStore) -> None:
    """Wait until the server has been told all that was to be told."""
    await until(lambda: not under_way(store))


def under_way(store: RedisStore) -> int:
    """Count the exchanges that have not ended."""
    counted = store.breaker.statistics()
    return counted.admitted - counted.succeeded - counted.failed - counted.ignored - counted.cancelled - counted.late


def passes_plainly(guard: SharedGuard[Any]) -> bool:
    """Make a call through a guard in plain code; tell whether it ran."""
    try:
        with guard:
            return True
    except RejectedError:
        return False


async def passes(guard: SharedGuard[Any]) -> bool:
    """Make a call through a guard; tell whether it ran."""
    try:
        await guard.call(_work)
    except RejectedError:
        return False
    return True
