"""StormGuard: an exact sliding window that keeps a storm of events from becoming a storm of work.

Rules of this module: the window and the storm are `machines.sliding_window`'s; here are the clock, the lock and the
announcements. Memory is one ring of `max_events` integers, however many events come; every event costs the same.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from resilience.clock import MonotoneLine, SystemClock, nanoseconds, seconds
from resilience.errors import StormError
from resilience.events import StormEnded, StormStarted, calls_for
from resilience.fusing import SETTLED
from resilience.layer import Guard, LayerKind, Permit, Statistics
from resilience.machines.checks import non_negative, positive, positive_int
from resilience.machines.decision import NeverFits, NotUntil
from resilience.machines.sliding_window import Change, SlidingWindow
from resilience.machines.token_bucket import exact_fraction

if TYPE_CHECKING:
    from resilience.clock import Clock
    from resilience.outcome import Verdict

__all__ = ["StormGuard"]


class StormGuard(Guard):
    """Admit at most `max_events` in any closed interval of `window_size` seconds.

    A storm begins with a refusal and is over when fewer than `calm_ratio * max_events` events have been in the window
    for `hold_for` seconds. Storms are announced (telemetry) and seen (`in_storm`); neither says who is admitted.

    Args:
        window_size: the length of the window in seconds, closed at both ends: an event exactly that old still counts.
        max_events: events admitted in any such window.
        name: what errors and events call it.
        calm_ratio: the share of `max_events` below which the window is calm, above 0 and at most 1.
        hold_for: for how many seconds it must have been calm.
        clock: where time comes from.

    Example:
        >>> guard = StormGuard(window_size=60.0, max_events=1)
        >>> guard.try_admit() is not None, guard.try_admit() is not None, guard.in_storm
        (True, False, True)

    """

    __slots__ = ("_clock_ns", "_line", "_window", "calm_ratio", "clock", "max_events", "window_size")

    kind = LayerKind.STORM_GUARD
    hears_success = False
    error = StormError

    def __init__(
        self,
        window_size: float = 60.0,
        max_events: int = 1000,
        *,
        name: str = "",
        calm_ratio: float = 0.5,
        hold_for: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        positive("window_size", window_size)
        positive_int("max_events", max_events)
        non_negative("hold_for", hold_for)
        if positive("calm_ratio", calm_ratio) > 1:
            msg = f"calm_ratio must be above 0 and at most 1, not {calm_ratio!r}"
            raise ValueError(msg)
        super().__init__(name)
        self.window_size = window_size
        self.max_events = max_events
        self.calm_ratio = calm_ratio
        self.clock: Clock = SystemClock() if clock is None else clock
        self._clock_ns = self.clock.monotonic_ns
        self._line = MonotoneLine(self._clock_ns())
        calm = math.ceil(exact_fraction(calm_ratio) * max_events)
        self._window = SlidingWindow(max(1, nanoseconds(window_size)), max_events, calm, nanoseconds(hold_for))

    async def should_process_event(self) -> bool:
        """Return whether to process the event that has just come; it counts if so. Never waits; not a checkpoint."""
        line, window = self._line, self._window
        if not self._try_lock(False):  # noqa: FBT003 - a keyword costs a third of it
            self._wait_for_lock()
        try:
            # As line.at(), without the call: this runs for every event of a storm.
            now_ns = self._clock_ns()
            if line.offset_ns:
                now_ns += line.offset_ns
            if now_ns >= line.last_ns:
                line.last_ns = now_ns
            else:
                now_ns = line.stand_still(now_ns)
            if window.in_storm:
                self._settle(now_ns)
            admitted = window.take(now_ns)
            if admitted:
                self._admitted += 1
            else:
                self._refused(now_ns)
        finally:
            self._unlock()
        if self._pending:
            self._after()
        return admitted

    def try_admit(self) -> Permit | None:
        """Do the same in plain code: a permit, or None. Any thread; nothing needs to be settled."""
        decision = self._decide(None, count_refusal=True)
        return decision if isinstance(decision, Permit) else None

    @property
    def in_storm(self) -> bool:
        """Whether there is a storm now."""
        with self._section:
            self._settle(self._line.at(self.clock.monotonic_ns()))
            return self._window.in_storm

    @property
    def count(self) -> int:
        """The events admitted in the window that ends now."""
        with self._section:
            return self._window.count(self._line.at(self.clock.monotonic_ns()))

    def retry_after(self) -> float:
        """Return in how many seconds an event would be admitted."""
        with self._section:
            now_ns = self._line.at(self.clock.monotonic_ns())
            ready_at = self._window.ready_at()
        return 0.0 if ready_at is None else seconds(max(0, ready_at - now_ns))

    def statistics(self) -> Statistics:
        """Return a frozen snapshot: admitted and refused events, contention, and the count of the window."""
        return Statistics(
            admitted=self._admitted, rejected=self._rejected, contended=self._contended, in_use=self.count
        )

    # -- as a layer -------------------------------------------------------------------------------------------------

    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil | NeverFits:  # noqa: ARG002 - every event weighs the same
        """Decide at once."""
        return self._decide(now_ns, count_refusal=False)

    def _decide(self, clock_ns: int | None, *, count_refusal: bool) -> Permit | NotUntil:
        contended = self._lock.locked()
        decision: Permit | NotUntil
        with self._section:
            if contended:
                self._contended += 1
            now_ns = self._line.at_reading(clock_ns, self._clock_ns)
            self._settle(now_ns)
            if self._window.take(now_ns):
                self._admitted += 1
                decision = Permit(self)
            else:
                decision = NotUntil(self._window.ready_at())
                self._begin(now_ns)
                if count_refusal:
                    self._count_refusal(now_ns)
        return decision

    def settle(self, permit: Permit, verdict: Verdict) -> None:  # noqa: ARG002 - no verdict undoes an event
        """Note that the event is done with; an event that came has come, however it ended."""
        permit.generation = SETTLED

    def _line_now(self, clock_ns: int) -> int:
        with self._section:
            return self._line.at_reading(clock_ns, self._clock_ns)

    # The lock is held in all of these.

    def _refused(self, now_ns: int) -> None:
        self._begin(now_ns)
        self._count_refusal(now_ns)

    def _count_refusal(self, now_ns: int) -> None:
        self._rejected += 1
        ready_at = self._window.ready_at()
        self._announce_rejection(None if ready_at is None else seconds(ready_at - now_ns))

    def _begin(self, now_ns: int) -> None:
        if self._window.refuse() is Change.STARTED:
            calls = calls_for(StormStarted(guard=self.label, at_ns=now_ns))
            if calls:
                self._events.put(*calls)

    def _settle(self, now_ns: int) -> None:
        refused, at_ns = self._window.refused, self._window.over_at() if self._window.in_storm else 0
        if self._window.settle(now_ns) is Change.ENDED:
            calls = calls_for(StormEnded(guard=self.label, at_ns=at_ns, refused=refused))
            if calls:
                self._events.put(*calls)
