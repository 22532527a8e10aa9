"""StormGuard: an exact sliding window that keeps a storm of events from becoming a storm of work.

Rules of this module: the window and the storm are `machines.sliding_window`'s, fairness between keys is
`machines.fairness`'s; here are the clock, the lock and the announcements. Memory is one ring of `max_events` integers,
and a few more where keys have shares, however many events and keys come; every event costs the same.
"""

from __future__ import annotations

import math
import random as random_module
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, cast

import attrs

from resilience.clock import MonotoneLine, SystemClock, nanoseconds, seconds
from resilience.counting import Statistics
from resilience.errors import StormError
from resilience.events import StormEnded, StormStarted, calls_for
from resilience.fusing import SETTLED
from resilience.layer import Guard, LayerKind, Permit
from resilience.machines.checks import instance, non_negative, positive, positive_int, whole_number
from resilience.machines.decision import NeverFits, NotUntil
from resilience.machines.fairness import KeyShares
from resilience.machines.sampling import Sampler
from resilience.machines.sliding_window import Change, SlidingWindow
from resilience.machines.token_bucket import exact_fraction
from resilience.remains import EVERYTHING, Everything, Remains

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from resilience.clock import Clock
    from resilience.errors import RejectedError
    from resilience.outcome import Verdict

__all__ = ["Sample", "StormGuard", "StormStatistics"]


@attrs.frozen(kw_only=True)
class StormStatistics(Statistics):
    """A snapshot of one storm guard: every event is in `admitted`, `sampled` or `rejected`.

    `sampled` events passed beyond the limit, each for `Sample.one_in` of the surplus. `over_share` counts how often
    there was room in the window, but the key had had its share. `in_use` is what is in the window now, `keys` how many
    keys are remembered. `storms` counts those that have begun; `in_storm` says whether one goes on.
    """

    sampled: int = 0
    over_share: int = 0
    keys: int = 0
    storms: int = 0
    in_storm: bool = False


@attrs.frozen
class Sample:
    """Let one of every `one_in` events pass that are too much: a surplus to look at, each for `one_in` events.

    Which one is drawn anew for every `one_in`, so that no source with a rhythm is favoured.

    Args:
        one_in: what each event that passes stands for.
        random: where the draw comes from.

    """

    one_in: int = attrs.field(validator=lambda _, __, value: positive_int("one_in", value))
    random: random_module.Random = attrs.field(
        factory=random_module.Random,
        kw_only=True,
        eq=False,
        repr=False,
        validator=lambda _, __, value: instance("random", value, random_module.Random),
    )


class StormGuard(Guard):
    """Admit at most `max_events` in any closed interval of `window_size` seconds.

    A storm begins when an event finds no room in the window, and is over when fewer than `calm_ratio * max_events`
    events have been in it for `hold_for` seconds. Storms are announced (telemetry) and seen (`in_storm`); neither says
    who is admitted.

    Args:
        window_size: the length of the window in seconds, closed at both ends: an event exactly that old still counts.
        max_events: events admitted in any such window.
        name: what errors and events call it.
        calm_ratio: the share of `max_events`, or of what `reserve` leaves of it to everybody, below which the window
            is calm; above 0 and at most 1.
        hold_for: for how many seconds it must have been calm.
        key_share: the most of the window that one key may take, above 0 and at most 1, rounded down to a whole event
            (but one at least).
        reserve: shares of the window that are kept for events of a priority above 0, above 1, and so on.
        surplus: Sample(n) lets one of every n events pass that are too much; None rejects them all.
        clock: where time comes from.

    Example:
        >>> guard = StormGuard(window_size=60.0, max_events=1)
        >>> guard.try_admit() is not None, guard.try_admit() is not None, guard.in_storm
        (True, False, True)

    """

    __slots__ = (
        "_bounds",
        "_clock_ns",
        "_line",
        "_over_share",
        "_sampled",
        "_sampler",
        "_shares",
        "_storms",
        "_usual",
        "_window",
        "calm_ratio",
        "clock",
        "hold_for",
        "key_share",
        "max_events",
        "reserve",
        "surplus",
        "window_size",
    )

    kind = LayerKind.STORM_GUARD
    hears_success = False
    error: ClassVar[type[RejectedError]] = StormError

    def __init__(
        self,
        window_size: float = 60.0,
        max_events: int = 1000,
        *,
        name: str = "",
        calm_ratio: float = 0.5,
        hold_for: float = 0.0,
        key_share: float = 1.0,
        reserve: Iterable[float] = (),
        surplus: Sample | None = None,
        clock: Clock | None = None,
    ) -> None:
        positive("window_size", window_size)
        positive_int("max_events", max_events)
        non_negative("hold_for", hold_for)
        _check_share("calm_ratio", calm_ratio)
        _check_share("key_share", key_share)
        self.reserve: tuple[float, ...]
        self.reserve, bounds = _reserved(max_events, reserve)
        super().__init__(name)
        self.window_size: float = window_size
        self.max_events: int = max_events
        self.calm_ratio: float = calm_ratio
        self.hold_for: float = hold_for
        self.key_share: float = key_share
        self.surplus: Sample | None = None if surplus is None else instance("surplus", surplus, Sample)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._clock_ns = self.clock.monotonic_ns
        self._line = MonotoneLine(self._clock_ns())
        # As the window takes them: 0 for all of it.
        self._bounds = tuple(bound % max_events for bound in bounds)
        self._usual = self._bounds[0]
        window_ns = max(1, nanoseconds(window_size))
        # A storm can begin where events of priority 0 find no room, so calm is a share of that.
        calm = math.ceil(exact_fraction(calm_ratio) * bounds[0])
        self._window = SlidingWindow(window_ns, max_events, calm, nanoseconds(hold_for))
        quota = max(1, math.floor(exact_fraction(key_share) * max_events))
        self._shares = KeyShares(window_ns, max_events, quota) if quota < max_events else None
        self._sampler = Sampler(surplus.one_in) if surplus is not None else None
        self._sampled = 0
        self._over_share = 0
        self._storms = 0

    async def should_process_event(self, key: Hashable = None, priority: int = 0) -> bool:
        """Return whether to process the event that has just come; it counts if so. Never waits; not a checkpoint.

        `key` says whose event it is; without one it takes its place in the window and nobody's share. `priority` is a
        whole number of at least 0; those above the last entry of `reserve` may use the whole window, as may all events
        where nothing is reserved.
        """
        if key is not None or priority:
            return self.try_admit(key, priority) is not None
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
            admitted = window.take(now_ns, self._usual)
            if admitted:
                self._admitted += 1
            else:
                self._begin(now_ns)
                admitted = self._sample()
                if not admitted:
                    self._count_refusal(now_ns, window.ready_at(self._usual))
        finally:
            self._unlock()
        if self._pending:
            self._after()
        return admitted

    def try_admit(self, key: Hashable = None, priority: int = 0) -> Permit | None:
        """Do the same in plain code: a permit, or None. Any thread; nothing needs to be settled."""
        decision = self._decide(None, key, self._bounds[self._level(priority)], count_refusal=True)
        return decision if isinstance(decision, Permit) else None

    @property
    def in_storm(self) -> bool:
        """Whether there is a storm now."""
        with self._section:
            self._now()
            return self._window.in_storm

    @property
    def count(self) -> int:
        """The events admitted in the window that ends now."""
        with self._section:
            return self._window.count(self._line.at(self.clock.monotonic_ns()))

    def retry_after(self, key: Hashable = None, priority: int = 0) -> float:
        """Return in how many seconds an event of this key and priority would be admitted."""
        bound = self._bounds[self._level(priority)]
        with self._section:
            now_ns = self._line.at(self.clock.monotonic_ns())
            ready_at = self._ready_at(key, bound)
        return 0.0 if ready_at is None else seconds(max(0, ready_at - now_ns))

    def statistics(self) -> StormStatistics:
        """Return a frozen snapshot: what became of the events, contention, what is in the window, and its storms."""
        with self._section:
            now_ns = self._now()
            return StormStatistics(
                admitted=self._admitted,
                rejected=self._rejected,
                sampled=self._sampled,
                over_share=self._over_share,
                contended=self._contended,
                in_use=self._window.count(now_ns),
                keys=len(self._shares or ()),
                storms=self._storms,
                in_storm=self._window.in_storm,
            )

    # -- as a layer -------------------------------------------------------------------------------------------------

    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil | NeverFits:  # noqa: ARG002 - every event weighs the same
        """Decide at once, on an event of no key and of priority 0."""
        return self._decide(now_ns, None, self._usual, count_refusal=False)

    def _decide(self, clock_ns: int | None, key: Hashable, bound: int, *, count_refusal: bool) -> Permit | NotUntil:
        contended = self._lock.locked()
        decision: Permit | NotUntil
        with self._section:
            if contended:
                self._contended += 1
            now_ns = self._now(clock_ns)
            if self._take(now_ns, key, bound) or self._sample():
                decision = Permit(self)
            else:
                decision = NotUntil(self._ready_at(key, bound))
                if count_refusal:
                    self._count_refusal(now_ns, decision.at_ns)
        return decision

    def settle(self, permit: Permit, verdict: Verdict) -> None:  # noqa: ARG002 - no verdict undoes an event
        """Note that the event is done with; an event that came has come, however it ended."""
        permit.generation = SETTLED

    def remains(self) -> Remains | Everything | None:
        """Return what is in the window: when its last event will have left it, then the instants of the others.

        None if it is empty. A storm, keys with their shares, or a sample half taken are more than can be told.
        """
        now_ns = self._now()
        window, sampler = self._window, self._sampler
        events = window.events(now_ns)
        if window.in_storm or (sampler is not None and not sampler.between_runs) or (self._shares and events):
            return EVERYTHING
        if not events:
            return None
        *others, last = (at_ns - self._line.offset_ns for at_ns in events)
        over_at_ns = last + window.window_ns + 1
        return (over_at_ns, *others) if others else over_at_ns

    def resume(self, remains: Remains) -> None:
        """Have those events in the window; should the clock have fallen back meanwhile, none is of later than now."""
        over_at_ns, *others = (remains,) if isinstance(remains, int) else cast("tuple[int, ...]", remains)
        for at_ns in (*others, over_at_ns - self._window.window_ns - 1):
            self._window.take(min(at_ns, self._line.last_ns))

    def _line_now(self, clock_ns: int) -> int:
        with self._section:
            return self._line.at_reading(clock_ns, self._clock_ns)

    def _level(self, priority: int) -> int:
        """Return which of the bounds holds for this priority."""
        return min(whole_number("priority", priority), len(self._bounds) - 1)

    # The lock is held in all of these.

    def _now(self, clock_ns: int | None = None) -> int:
        """Return the instant on the guard's line, having ended a storm that is over by then."""
        now_ns = self._line.at_reading(clock_ns, self._clock_ns)
        window = self._window
        if window.in_storm:
            self._settle(now_ns)
        return now_ns

    def _take(self, now_ns: int, key: Hashable, bound: int) -> bool:
        """Admit an event if the window has room for it, and its key some of its share left."""
        window = self._window
        shares = None if key is None else self._shares
        if shares is not None and self._ripe_at(key, now_ns) is not None and not window.full(now_ns, bound):
            # One noisy source is no storm: there is room for all the others.
            self._over_share += 1
            return False
        if not window.take(now_ns, bound):
            self._begin(now_ns)
            return False
        if shares is not None:
            shares.take(key, now_ns)
        self._admitted += 1
        return True

    def _sample(self) -> bool:
        sample, sampler = self.surplus, self._sampler
        if sample is None or sampler is None or not sampler.passes(sample.random.random()):
            return False
        self._sampled += 1
        return True

    def _ready_at(self, key: Hashable, bound: int) -> int | None:
        ready_at = self._window.ready_at(bound)
        of_key = None if self._shares is None or key is None else self._shares.ready_at(key)
        return ready_at if of_key is None or (ready_at is not None and ready_at > of_key) else of_key

    def _ripe_at(self, key: Hashable, now_ns: int) -> int | None:
        """Return the instant from which on the key has some of its share left; None if it has now."""
        ready_at = None if self._shares is None or key is None else self._shares.ready_at(key)
        return None if ready_at is None or ready_at <= now_ns else ready_at

    def _count_refusal(self, now_ns: int, ready_at: int | None) -> None:
        self._rejected += 1
        self._announce_rejection(None if ready_at is None else seconds(ready_at - now_ns))

    def _begin(self, now_ns: int) -> None:
        if self._window.refuse() is Change.STARTED:
            self._storms += 1
            calls = calls_for(StormStarted(guard=self.label, at_ns=now_ns))
            if calls:
                self._events.put(*calls)

    def _settle(self, now_ns: int) -> None:
        refused, at_ns = self._window.refused, self._window.over_at()
        if self._window.settle(now_ns) is Change.ENDED:
            calls = calls_for(StormEnded(guard=self.label, at_ns=at_ns, refused=refused))
            if calls:
                self._events.put(*calls)


def _check_share(name: str, value: float) -> None:
    if positive(name, value) > 1:
        msg = f"{name} must be above 0 and at most 1, not {value!r}"
        raise ValueError(msg)


def _reserved(max_events: int, reserve: Iterable[float]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Return the shares, and for each priority how many events it may fill; the last is for all that are higher."""
    try:
        shares = tuple(reserve)
    except TypeError:
        msg = f"reserve must be a sequence of shares, not {reserve!r}"
        raise ValueError(msg) from None
    for share in shares:
        non_negative("reserve", share)
    left = Fraction(1)
    bounds = [max_events]
    for share in reversed(shares):
        left -= exact_fraction(share)
        bounds.append(math.floor(left * max_events))
    if bounds[-1] < 1:
        msg = f"reserve must leave at least one of {max_events} events to priority 0, not {shares!r}"
        raise ValueError(msg)
    return shares, tuple(reversed(bounds))
