"""Guards whose state is shared by all processes, through Redis or Valkey. Needs the extra `redis`.

They are layers as the local ones are, and are awaited in the same way. Without the server they do what
`on_store_error` says.
"""

from __future__ import annotations

from resilience.redis.circuit_breaker import RedisCircuitBreaker, SharedBreakerStatistics, SharedIsolation
from resilience.redis.link import StoreError
from resilience.redis.rate_limiter import RedisRateLimiter
from resilience.redis.shared import SharedStatistics
from resilience.redis.store import RedisStore
from resilience.redis.storm_guard import RedisStormGuard, SharedStormStatistics

__all__ = [
    "RedisCircuitBreaker",
    "RedisRateLimiter",
    "RedisStore",
    "RedisStormGuard",
    "SharedBreakerStatistics",
    "SharedIsolation",
    "SharedStatistics",
    "SharedStormStatistics",
    "StoreError",
]
