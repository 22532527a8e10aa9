"""What a shared token bucket is made of, in whole numbers that the server can count with."""

from __future__ import annotations

import math

import attrs

from resilience.machines.checks import positive
from resilience.machines.token_bucket import TokenBucket, exact_fraction

__all__ = ["Terms"]

_MICROSECONDS = 1_000_000
#: The server counts in doubles, which hold whole numbers up to twice this; as much again is left for who waits.
_EXACT = 2**51


@attrs.frozen
class Terms:
    """A rate and a capacity as the script takes them: a token is `token` units, of which `scale` come each microsecond.

    Those of the machine, exact for the decimals that were written, wherever that fits; else rounded so that less is
    admitted, never more, by `capacity` parts in 2**51 at most.
    """

    rate: float
    capacity: float
    scale: int
    token: int
    burst: int

    @classmethod
    def of(cls, rate: float, capacity: float) -> Terms:
        """Return the terms for a rate and a capacity that have been checked, or raise ValueError."""
        bucket = TokenBucket(rate, capacity, 0)
        if bucket.burst <= _EXACT:
            return cls(rate, capacity, bucket.per_nanosecond * 1_000, bucket.per_token, bucket.burst)
        each, size = exact_fraction(rate) / _MICROSECONDS, exact_fraction(capacity)
        scale = math.floor(_EXACT * each / size)
        if scale < 1:
            msg = f"capacity must be at most what comes in {_EXACT // _MICROSECONDS} s at the rate, not {capacity!r}"
            raise ValueError(msg)
        token = math.ceil(scale / each)
        return cls(rate, capacity, scale, token, math.floor(token * size))

    def units(self, cost: float) -> int:
        """Return a cost in units, rounded up, or raise ValueError."""
        units = math.ceil(exact_fraction(positive("cost", cost)) * self.token)
        if units > self.burst:
            msg = f"cost must be at most the capacity of {self.capacity!r}, not {cost!r}"
            raise ValueError(msg)
        return units
