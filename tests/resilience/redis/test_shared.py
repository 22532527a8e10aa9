"""What all shared guards have in common, besides outages: they are kept by key, and exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resilience import CircuitState, Keyed
from resilience.redis import RedisCircuitBreaker, RedisRateLimiter, RedisStore
from resilience.telemetry.metrics import METRICS
from resilience.telemetry.watching import Watched
from resilience.testing import ManualClock
from tests.resilience.redis.guards import each_kind, make, passes, quiet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.redis, pytest.mark.anyio]


@pytest.fixture
async def store(redis_url: str, prefix: str) -> AsyncIterator[RedisStore]:
    """Give a store for this test, whose own clock stands still."""
    async with RedisStore(redis_url, prefix=prefix, timeout=30.0, clock=ManualClock()) as found:
        yield found


async def fail() -> None:
    """Fail."""
    raise ConnectionError


@each_kind
async def test_what_is_on_the_server_keeps_no_key_here(kind: str, store: RedisStore) -> None:
    """A Keyed may drop a shared guard that is not in use: the next one of its name finds everything as it was."""
    guard = make(kind, store)
    assert guard.is_fresh()
    assert await passes(guard)
    await quiet(store)
    assert guard.is_fresh()


async def test_a_key_may_come_and_go(store: RedisStore) -> None:
    """With room for two keys, many take their turns, and none gets its tokens anew."""

    def limiter(key: str) -> RedisRateLimiter:
        return RedisRateLimiter(store, 0.001, 1, name=key)

    limiters = Keyed(limiter, max_keys=2, clock=store.clock)
    told = [await limiters[key].acquire() for key in ("a", "b", "c", "a", "b", "c", "d")]
    assert told == [True, True, True, False, False, False, True]


async def test_what_is_here_keeps_its_guard(store: RedisStore) -> None:
    """Tokens that were taken in advance, a circuit that is open, and what a local guard has counted are kept."""
    limiter = RedisRateLimiter(store, 0.001, 10, name="api", batch=5, batch_for=1_000.0)
    for _ in range(4):
        assert await limiter.acquire()
    assert not limiter.is_fresh()
    breaker = RedisCircuitBreaker(store, 1, name="api")
    with pytest.raises(ConnectionError):
        await breaker.call(fail)
    await quiet(store)
    assert breaker.state is CircuitState.OPEN
    assert not breaker.is_fresh()
    async with RedisStore("redis://127.0.0.1:1", clock=ManualClock()) as away:
        alone = RedisRateLimiter(away, 0.001, 10, name="api")
        assert alone.is_fresh()
        assert await alone.acquire()
        assert not alone.is_fresh()


@each_kind
async def test_its_statistics_are_exported(kind: str, store: RedisStore) -> None:
    """Exporters read shared guards as they read local ones, and the health of the server as that of a breaker."""
    guard = make(kind, store)
    assert await passes(guard)
    await quiet(store)
    (admissions,) = (metric for metric in METRICS if metric.name == "resilience.admissions")
    samples = Watched((guard, store.breaker)).read()[admissions]
    found = {(sample.guard, sample.labels): sample.value for sample in samples}
    assert found["guard", ("admitted",)] == 1
    assert found[store.breaker.name, ("admitted",)] == store.breaker.statistics().admitted
