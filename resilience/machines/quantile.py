"""A quantile of the latest values, exactly.

Theory of operation. The last `window` values are held twice: in the order in which they came, so that the oldest can
leave, and in the order of their size, so that the quantile is read off. It is the nearest rank: of n values, the
ceil(q * n)-th smallest. A new value costs two searches and two moves within one block of memory, a reading one index.

Why not a sketch. P2 (Jain and Chlamtac, 1985) holds five numbers, but has no bound on its error and never forgets.
A t-digest or a DDSketch has a bound, but forgets only in generations, and takes a few kilobytes to be as good as one
percent. This takes 16 bytes a value, has no error, and forgets by the value: a change for the worse shows after
(1 - q) * window values, one for the better after at most q * window.

What it gives before there is anything to know is nothing: with fewer than 1 / (1 - q) values, the nearest rank is the
largest of them all.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, insort

from resilience.machines.token_bucket import exact_fraction

__all__ = ["WindowedQuantile"]

_MOST = 2**63 - 1


class WindowedQuantile:
    """The quantile `q` of the last `window` whole numbers, between 0 and 2**63 - 1; not locked.

    `least` is how many values it takes to know anything.
    """

    __slots__ = ("_by_age", "_by_size", "_oldest", "_q", "_window", "least")

    def __init__(self, q: float, window: int) -> None:
        self._q = exact_fraction(q)
        self._window = window
        self.least: int = math.ceil(1 / (1 - self._q))
        self._by_age = array("q")
        self._by_size = array("q")
        self._oldest = 0

    def __len__(self) -> int:
        return len(self._by_age)

    def add(self, value: int) -> None:
        """Take in a value; what is out of the range counts as its nearer end."""
        value = min(max(value, 0), _MOST)
        if len(self._by_age) < self._window:
            self._by_age.append(value)
        else:
            self._by_size.pop(bisect_left(self._by_size, self._by_age[self._oldest]))
            self._by_age[self._oldest] = value
            self._oldest = (self._oldest + 1) % self._window
        insort(self._by_size, value)

    def value(self) -> int | None:
        """Return the quantile; None while there are too few values."""
        count = len(self._by_size)
        if count < self.least:
            return None
        return self._by_size[-(-count * self._q.numerator // self._q.denominator) - 1]
