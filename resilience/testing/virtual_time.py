"""Virtual time: what clocks show under a schedule, and what may be wrong with them.

Rules of this module: there is the time that passes (`now_ns`, which event loops run on) and the time that is shown, to
guards. They are one until a fault is injected. Every fault is a choice of the schedule, so it is replayed with it.
While a run is under way every SystemClock shows its time: what is tested is what runs, short cuts and all.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from resilience.clock import SystemClock, nanoseconds
from resilience.machines.checks import non_negative, positive_int

if TYPE_CHECKING:
    from collections.abc import Iterator

    from resilience.testing.runs import Recorder

__all__ = ["NO_FAULTS", "Faults", "VirtualTime"]

#: Where every run begins, monotonic and Unix time: 2026-01-01T00:00:00Z.
START_NS = 1_000 * 10**9
WALL_NS = 1_767_225_600 * 10**9


def _seconds(_instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    non_negative(attribute.name, value)


def _count(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    positive_int(attribute.name, value)


@attrs.frozen(kw_only=True)
class Faults:
    """What may be wrong with time, in seconds at most; 0: nothing. Each is injected when the schedule says so.

    Args:
        early: a timer fires this much before its time (asyncio's do, by the resolution of its clock).
        late: time passes although somebody could run: a loop that is busy, a machine that was suspended.
        forward: the monotonic clock leaps ahead of the time that has passed.
        back: the monotonic clock falls back.
        stall: for how long at a time the monotonic clock stands still while time passes.
        wall: the wall clock jumps, either way.
        odds: each is injected on one occasion in so many.

    """

    early: float = attrs.field(default=0.0, validator=_seconds)
    late: float = attrs.field(default=0.0, validator=_seconds)
    forward: float = attrs.field(default=0.0, validator=_seconds)
    back: float = attrs.field(default=0.0, validator=_seconds)
    stall: float = attrs.field(default=0.0, validator=_seconds)
    wall: float = attrs.field(default=0.0, validator=_seconds)
    odds: int = attrs.field(default=8, validator=_count)

    def __bool__(self) -> bool:
        """Tell whether anything may be wrong at all."""
        return any((self.early, self.late, self.forward, self.back, self.stall, self.wall))


NO_FAULTS = Faults()
_QUARTERS = 4


class VirtualTime:
    """The time of one run."""

    __slots__ = ("_ahead_ns", "_faults", "_recorder", "_wall_ns", "early_ns", "now_ns")

    def __init__(self, recorder: Recorder, faults: Faults = NO_FAULTS) -> None:
        self._recorder = recorder
        self._faults = faults
        self.now_ns: int = START_NS
        #: How much earlier than its time a timer that is due now may fire.
        self.early_ns: int = 0
        self._ahead_ns = 0
        self._wall_ns = WALL_NS - START_NS

    def monotonic_ns(self) -> int:
        """Return what a monotonic clock shows."""
        return self.now_ns + self._ahead_ns

    def time_ns(self) -> int:
        """Return what a wall clock shows."""
        return self.now_ns + self._wall_ns

    def pass_until(self, instant_ns: int) -> None:
        """Let time pass until a timer is due, or nearly, or a while after."""
        before_ns = self.now_ns
        early_ns = self._drawn("early", self._faults.early)
        self.early_ns = min(early_ns, max(0, instant_ns - before_ns))
        self.now_ns = max(before_ns, instant_ns - self.early_ns + self._drawn("late", self._faults.late))
        self._ahead_ns -= min(self._drawn("stall", self._faults.stall), self.now_ns - before_ns)

    def disturb(self) -> None:
        """Perhaps do to the clocks what happens to clocks, between one step and the next."""
        faults = self._faults
        if not faults:
            return
        self.now_ns += self._drawn("late", faults.late)
        self._ahead_ns += self._drawn("forward", faults.forward)
        self._ahead_ns -= self._drawn("back", faults.back)
        jump_ns = self._drawn("wall", faults.wall)
        if jump_ns:
            self._wall_ns += jump_ns if self._recorder.choose(2) else -jump_ns

    def _drawn(self, kind: str, most: float) -> int:
        """Return how much of a fault there is now: mostly none."""
        if not most or self._recorder.choose(self._faults.odds) != 1:
            return 0
        self._recorder.faults[kind] += 1
        return nanoseconds(most) * (1 + self._recorder.choose(_QUARTERS)) // _QUARTERS

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Have every SystemClock show this time."""
        kept = SystemClock.__dict__["monotonic_ns"], SystemClock.__dict__["time_ns"]
        SystemClock.monotonic_ns = staticmethod(self.monotonic_ns)
        SystemClock.time_ns = staticmethod(self.time_ns)
        try:
            yield
        finally:
            SystemClock.monotonic_ns, SystemClock.time_ns = kept
