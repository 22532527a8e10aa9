"""All rows, guard by guard."""

from __future__ import annotations

from tests.proof.catalogue import circuit_breaker, guarded_deque, policy, rate_limiter, storm_guard

__all__ = ["ELSEWHERE", "ROWS"]

ROWS = (*rate_limiter.ROWS, *circuit_breaker.ROWS, *storm_guard.ROWS, *guarded_deque.ROWS, *policy.ROWS)

#: Properties that are shown in another place.
ELSEWHERE = {"RL12": "needs a server, see tests/resilience/redis"}
