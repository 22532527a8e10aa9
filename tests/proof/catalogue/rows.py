"""All rows, guard by guard."""

from __future__ import annotations

from tests.proof.catalogue import circuit_breaker, guarded_deque, policy, rate_limiter, storm_guard

__all__ = ["NOT_YET", "ROWS"]

ROWS = (*rate_limiter.ROWS, *circuit_breaker.ROWS, *storm_guard.ROWS, *guarded_deque.ROWS, *policy.ROWS)

#: Properties that there is nothing yet to hold.
NOT_YET = {"RL12": "no guard shares its state through a server"}
