"""An exact sliding window over one ring buffer, and the storm that begins and ends over it.

Theory of operation. The ring holds the instants of the last `limit` admissions. An event at `now` is admitted within
a bound of n events, n at most `limit`, unless the n-th newest entry still lies in [now - window, now], which is closed
at both ends: an event exactly `window` old still counts. So at most `limit` events are admitted in any closed interval
of that length (SG1), every step is O(1), and memory is `limit` integers, however many events come. Lower bounds are
for events of lower priority: what lies between them and `limit` is kept for the others.

A storm begins with a refusal. It is over when fewer than `calm` events (a threshold of at least one, and at most the
lowest bound) have been in the window for `hold_ns`. Whenever an admission finds `calm` events in the window, itself
included, the count will fall below that at the instant when the calm-th newest leaves, which the ring knows; so the
end is exact even if nobody looked at the time, and needs no timer.

Instants must not go back; the shell clamps them. Equal instants may come in any order (SG6).
"""

from __future__ import annotations

import enum

__all__ = ["Change", "SlidingWindow"]


class Change(enum.Enum):
    """What an event did to the storm."""

    NONE = "none"
    STARTED = "started"
    ENDED = "ended"


class SlidingWindow:
    """At most `limit` admissions in any closed interval of `window_ns`; not locked."""

    __slots__ = ("_calm_at", "_next", "_ring", "calm", "hold_ns", "in_storm", "limit", "refused", "window_ns")

    def __init__(self, window_ns: int, limit: int, calm: int, hold_ns: int) -> None:
        self.window_ns: int = window_ns
        self.limit: int = limit
        self.calm: int = calm
        self.hold_ns: int = hold_ns
        self.in_storm: bool = False
        self.refused: int = 0
        # None marks a place that was never used. The next admission overwrites the oldest one. The n-th newest is at
        # [next - n], where a negative index counts from the other end of the ring, as it should; so the oldest of all
        # is at [next - 0] too, which is the faster way to say it.
        self._ring: list[int | None] = [None] * limit
        self._next = 0
        # The instant from which on the window is calm, if nothing more comes. It has a meaning during a storm.
        self._calm_at = 0

    def take(self, now_ns: int, within: int = 0) -> bool:
        """Admit an event now, or return False if `within` events are in the window; 0 stands for `limit`.

        A storm that has ended must have been settled before.
        """
        ring, place = self._ring, self._next
        entry = ring[place - within]
        if entry is not None and now_ns - entry <= self.window_ns:
            return False
        ring[place] = now_ns
        place += 1
        self._next = place if place < self.limit else 0
        if self.in_storm:
            self._watch(now_ns)
        return True

    def full(self, now_ns: int, within: int = 0) -> bool:
        """Return whether `take` would refuse."""
        entry = self._ring[self._next - within]
        return entry is not None and now_ns - entry <= self.window_ns

    def refuse(self) -> Change:
        """Note a refusal; the first one begins a storm."""
        self.refused += 1
        if self.in_storm:
            return Change.NONE
        self.in_storm = True
        self.refused = 1
        # The window is not calm, since some bound of it is reached: any instant in it will do.
        self._watch(self._ring[self._next - 1] or 0)
        return Change.STARTED

    def settle(self, now_ns: int) -> Change:
        """End a storm that is over by now."""
        if not self.in_storm or now_ns < self.over_at():
            return Change.NONE
        self.in_storm = False
        return Change.ENDED

    def over_at(self) -> int:
        """Return the instant at which the storm is over, if nothing more is admitted."""
        return self._calm_at + self.hold_ns

    def _watch(self, now_ns: int) -> None:
        """Note from when on the window will be calm, if it is not; what comes while it is calm starts nothing anew."""
        entry = self._ring[self._next - self.calm]
        if entry is not None and now_ns - entry <= self.window_ns:
            self._calm_at = entry + self.window_ns + 1

    def ready_at(self, within: int = 0) -> int | None:
        """Return the instant at which an event is admitted again; None if one is admitted at any time."""
        entry = self._ring[self._next - within]
        return None if entry is None else entry + self.window_ns + 1

    def events(self, now_ns: int) -> tuple[int, ...]:
        """Return the instants of the admissions in [now - window, now], oldest first."""
        return tuple(self._ring[self._next - age] or 0 for age in range(self.count(now_ns), 0, -1))

    def count(self, now_ns: int) -> int:
        """Return the number of admissions in [now - window, now]; O(log limit)."""
        low, high = 0, self.limit
        # Ages grow from the newest entry backwards: find how many are still young enough.
        while low < high:
            middle = (low + high) // 2
            entry = self._ring[self._next - 1 - middle]
            if entry is not None and now_ns - entry <= self.window_ns:
                low = middle + 1
            else:
                high = middle
        return low
