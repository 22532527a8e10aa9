"""A budget for retries, so that a struggling callee does not get a multiple of its load.

Theory of operation. Each first attempt earns `ratio` of a retry, a steady trickle earns `per_second`, and what was
earned is kept up to a reserve of `per_second * reserve_for`, or of one retry where that is less; a retry costs one. So
in any interval of t seconds

    retries <= ratio * first attempts + per_second * t + max(1, per_second * reserve_for)       (PO4)

Source: Finagle's RetryBudget. Amounts are whole numbers of 1/den of a retry, exactly.
"""

from __future__ import annotations

import math

from resilience.machines.token_bucket import exact_fraction

__all__ = ["Budget"]

_NANOSECONDS = 1_000_000_000


class Budget:
    """What may still be spent on retries; not locked."""

    __slots__ = ("_at_first", "_earned", "_per_first", "_per_nanosecond", "_per_retry", "_reserve", "_seen_ns")

    def __init__(self, ratio: float, per_second: float, reserve_for: float, now_ns: int) -> None:
        trickle, share = exact_fraction(per_second) / _NANOSECONDS, exact_fraction(ratio)
        reserve = exact_fraction(per_second) * exact_fraction(reserve_for)
        self._per_retry = math.lcm(trickle.denominator, share.denominator, reserve.denominator)
        self._per_nanosecond = int(trickle * self._per_retry)
        self._per_first = int(share * self._per_retry)
        # Room for at least one, or a small ratio alone could never earn a retry.
        self._reserve = max(int(reserve * self._per_retry), self._per_retry)
        self._earned = self._at_first = int(reserve * self._per_retry)
        self._seen_ns = now_ns

    def first_attempt(self, now_ns: int) -> None:
        """Earn a share of a retry."""
        self._trickle(now_ns)
        self._earned = min(self._reserve, self._earned + self._per_first)

    def spend(self, now_ns: int) -> bool:
        """Pay for a retry, or return False."""
        self._trickle(now_ns)
        if self._earned < self._per_retry:
            return False
        self._earned -= self._per_retry
        return True

    def available(self, now_ns: int) -> float:
        """Return the retries that could be paid for now."""
        self._trickle(now_ns)
        return self._earned / self._per_retry

    def is_fresh(self, now_ns: int) -> bool:
        """Tell whether there is as much as at first."""
        self._trickle(now_ns)
        return self._earned == self._at_first

    def _trickle(self, now_ns: int) -> None:
        self._earned = min(self._reserve, self._earned + (now_ns - self._seen_ns) * self._per_nanosecond)
        self._seen_ns = now_ns
