"""Tokens that a busy process has taken in advance, so that most of its calls cost no round trip.

Theory of operation. Whoever asks the server for tokens may ask for more at once. How many more is learnt: a process
that comes back within `kept_for_ns` asks for twice as many as the last time, up to `batch` in all; one that does not
asks for none. What was not spent within `kept_for_ns` goes back.

The error. What is taken in advance is taken from the bucket: whatever a process holds, others cannot have. So for any
interval, let H be what all processes held when it began; then no more than

    capacity + rate * t + H

is admitted in it, since nothing else comes in, and what is put back never fills the bucket beyond its capacity. A
process holds at most `batch - 1` tokens: it puts back what it has before it asks for more, and does not ask again while
an answer is on its way. So with n processes H is at most n * (batch - 1).

It is not locked; its limiter's lock is held around every method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilience.redis.terms import Terms

__all__ = ["Stash"]


class Stash:
    """At most `batch - 1` tokens, each for at most `kept_for_ns`."""

    __slots__ = ("_asked_ns", "_asking", "_until_ns", "_wanted", "batch", "kept_for_ns", "terms", "units")

    def __init__(self, terms: Terms, batch: int, kept_for_ns: int) -> None:
        self.batch: int = batch
        self.kept_for_ns: int = kept_for_ns
        self.terms: Terms = terms
        self.units: int = 0
        self._until_ns = 0
        # The tokens that were asked for beyond what was needed, when that was, and whether an answer is on its way.
        self._wanted = 0
        self._asked_ns: int | None = None
        self._asking = False

    def spend(self, terms: Terms, units: int, now_ns: int) -> bool:
        """Take what a call needs, or return False."""
        if units > self.units or terms is not self.terms or now_ns >= self._until_ns:
            return False
        self.units -= units
        return True

    def want(self, now_ns: int) -> int:
        """Return how many tokens more to ask for; unless it is 0, `fill` has to be called whatever comes of it."""
        if self._asking or self.batch == 1:
            return 0
        busy = self._asked_ns is not None and now_ns - self._asked_ns < self.kept_for_ns
        self._asked_ns = now_ns
        self._wanted = min(self.batch - 1, 2 * self._wanted + 1) if busy else 0
        self._asking = self._wanted > 0
        return self._wanted

    def fill(self, terms: Terms, units: int, now_ns: int) -> None:
        """Keep what was had of what was asked for, if anything was."""
        self._asking = False
        if units:
            self.terms, self.units = terms, units
            self._until_ns = now_ns + self.kept_for_ns

    def empty(self) -> tuple[Terms, int] | None:
        """Return all that there is, to be put back; None if that is nothing."""
        units, self.units = self.units, 0
        return (self.terms, units) if units else None

    def due(self, now_ns: int) -> bool:
        """Tell whether what there is was not spent in its time."""
        return now_ns >= self._until_ns
