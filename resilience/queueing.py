"""Guards that count the permits that are out, and let a bounded number of calls wait for one.

Rules of this module:

* One count, one lock and one queue for all tasks, threads and event loops. Permits are granted under the lock by
  whoever gives one back or moves the limit, so that nobody slips in between; a waiter that is cancelled after that
  hands its permit on.
* Nobody waits while there is a permit for them. So an arrival that finds one overtakes nobody.
* A call may be confined to a *share* of the limit. Those who may use more of it come first in the queue, and take the
  place of the last who may use less when it is full; among equals the first come is the first served.

It knows no particular guard. What is learnt from how calls end is the guard's business.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from typing import TYPE_CHECKING

from resilience.clock import MonotoneLine, SystemClock, nanoseconds
from resilience.counting import Statistics
from resilience.fusing import SETTLED
from resilience.layer import Guard, Permit
from resilience.machines.checks import non_negative, whole_number
from resilience.machines.decision import NotUntil
from resilience.machines.permits import Permits
from resilience.parking import ParkingQueue, Waiter, async_waiter, running_loop, thread_waiter
from resilience.remains import EVERYTHING

if TYPE_CHECKING:
    from resilience.clock import Clock
    from resilience.machines.decision import NeverFits
    from resilience.outcome import Verdict
    from resilience.remains import Everything, Remains

__all__ = ["WHOLE", "QueueingGuard", "WaitingLine"]

WHOLE = Fraction(1)
"""The share of a call that may use all of the limit."""

_REFUSED = NotUntil(None)


class WaitingLine:
    """Those who wait for a permit, the largest share first. Its owner's lock guards every method."""

    __slots__ = ("queues",)

    def __init__(self) -> None:
        # Only shares that somebody waits with, so that no share is remembered for ever.
        self.queues: dict[Fraction, ParkingQueue[Waiter]] = {}

    def __bool__(self) -> bool:
        return bool(self.queues)

    def __len__(self) -> int:
        # A copy, made in one step: it is asked without the lock too.
        return sum(map(len, list(self.queues.values())))

    @property
    def first(self) -> tuple[Fraction, Waiter] | None:
        """The next to be served, and its share; None if nobody waits."""
        for share, queue in self.queues.items():
            return share, next(iter(queue))
        return None

    @property
    def last(self) -> tuple[Fraction, Waiter] | None:
        """The last to be served, and its share; None if nobody waits."""
        for share, queue in reversed(self.queues.items()):
            return share, next(reversed(queue.waiters))
        return None

    def join(self, waiter: Waiter, share: Fraction = WHOLE) -> None:
        """Put the waiter behind all those with its share."""
        queue = self.queues.get(share)
        if queue is None:
            queue = ParkingQueue()
            self.queues = dict(sorted([*self.queues.items(), (share, queue)], reverse=True))
        queue.join(waiter)

    def leave(self, waiter: Waiter) -> None:
        """Take the waiter out, if it is in."""
        for share, queue in self.queues.items():
            if queue.leave(waiter):
                if not queue:
                    del self.queues[share]
                return


class QueueingGuard(Guard):
    """A guard whose permits are counted. A subclass implements `admit`, for the calls that need not wait."""

    __slots__ = ("_line", "_max_wait_ns", "_permits", "_queue", "clock", "max_queue", "max_wait")

    def __init__(self, limit: int, *, max_queue: int, max_wait: float | None, name: str, clock: Clock | None) -> None:
        whole_number("max_queue", max_queue)
        if max_wait is not None:
            non_negative("max_wait", max_wait)
        super().__init__(name)
        self.max_queue: int = max_queue
        self.max_wait: float | None = max_wait
        self._max_wait_ns = None if max_wait is None else nanoseconds(max_wait)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._line = MonotoneLine(self.clock.monotonic_ns())
        self._permits = Permits(limit)
        self._queue = WaitingLine()

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether a call may wait for a permit."""
        return self.max_queue > 0

    @property
    def available(self) -> int:
        """The permits that are free now."""
        return max(0, self._permits.limit - self._permits.in_use)

    def try_admit(self) -> Permit | None:
        """Return a permit to be settled by hand, or None. Never waits; not a checkpoint; any thread."""
        decision = self.admit()
        if isinstance(decision, Permit):
            return decision
        self.refuse(decision)
        return None

    def statistics(self) -> Statistics:
        """Return a frozen snapshot: decisions, contention, who waits, the permits that are out, and their limit."""
        return Statistics(
            admitted=self._admitted,
            rejected=self._rejected,
            contended=self._contended,
            waiting=len(self._queue),
            in_use=self._permits.in_use,
            limit=self._permits.limit,
        )

    # -- as a layer -------------------------------------------------------------------------------------------------

    async def admit_waiting(self, cost: float = 1) -> Permit:  # noqa: ARG002 - a call is a call
        """Admit within `max_wait` if the queue has a place, or raise the refusal. A checkpoint if it waits."""
        return await self._wait(WHOLE)

    def admit_blocking(self, cost: float = 1) -> Permit:
        """Do the same in plain code; in a thread that runs an event loop nothing may block, so there it refuses."""
        return self._wait_blocking(WHOLE, self.admit(None, cost))

    def settle(self, permit: Permit, verdict: Verdict) -> None:  # noqa: ARG002 - a permit comes back however the call ended
        """Give the permit back: to the head of the queue, if anybody waits."""
        if not self._try_lock(False):  # noqa: FBT003 - a keyword costs a third of it
            self._wait_for_lock()
        try:
            if permit.generation != SETTLED:
                permit.generation = SETTLED
                self._hand_on()
        finally:
            self._unlock()
        if self._pending:
            self._after()

    def remains(self) -> Remains | Everything | None:
        """Return None if no permit is out and nobody waits."""
        return EVERYTHING if self._permits.in_use or self._queue else None

    # -- waiting ----------------------------------------------------------------------------------------------------

    async def _wait(self, share: Fraction) -> Permit:
        waiter = async_waiter()
        try:
            decision = self._join(waiter, share)
            while decision is None:
                await waiter.wait(self.clock, self._remaining_ns(waiter))
                decision = self._turn(waiter)
        except GeneratorExit:
            self._from_finalizer(functools.partial(self._abandon, waiter))
            raise
        except BaseException:
            self._abandon(waiter)
            raise
        return self._permit_or_refuse(decision)

    def _wait_blocking(self, share: Fraction, at_once: Permit | NotUntil | NeverFits) -> Permit:
        """Wait for a permit, unless there was one at once."""
        if isinstance(at_once, Permit) or not self.waits or running_loop():
            return self._permit_or_refuse(at_once)
        waiter = thread_waiter()
        try:
            decision = self._join(waiter, share)
            while decision is None:
                waiter.wait_blocking(self.clock, self._remaining_ns(waiter))
                decision = self._turn(waiter)
        except BaseException:
            self._abandon(waiter)
            raise
        return self._permit_or_refuse(decision)

    def _permit_or_refuse(self, decision: Permit | NotUntil | NeverFits) -> Permit:
        if isinstance(decision, Permit):
            return decision
        raise self.refuse(decision)

    # -- the queue; `_join`, `_turn`, `_remaining_ns` and `_abandon` take the lock, the others are in it ------------

    def _join(self, waiter: Waiter, share: Fraction) -> Permit | NotUntil | None:
        """Admit, refuse or queue (None)."""
        with self._section:
            if self._permits.take_within(share):
                waiter.granted = True
                return self._claim(waiter)
            if self._max_wait_ns is not None:
                waiter.deadline_ns = self._line.at(self.clock.monotonic_ns()) + self._max_wait_ns
            if self._max_wait_ns == 0 or not self._make_room(share):
                return _REFUSED
            self._queue.join(waiter, share)
            return None

    def _make_room(self, share: Fraction) -> bool:
        """Return whether there is a place in the queue, taking one from who comes last, if that has a smaller share."""
        if len(self._queue) < self.max_queue:
            return True
        last = self._queue.last
        if last is None or last[0] >= share:
            return False
        displaced = last[1]
        self._queue.leave(displaced)
        displaced.refused = True
        displaced.wake()
        return True

    def _turn(self, waiter: Waiter) -> Permit | NotUntil | None:
        """Admit or refuse a waiter that was woken; None: not yet."""
        with self._section:
            if waiter.granted:
                return self._claim(waiter)
            if waiter.refused:
                return _REFUSED
            if waiter.deadline_ns is None or self._line.at(self.clock.monotonic_ns()) < waiter.deadline_ns:
                return None
            self._queue.leave(waiter)
            return _REFUSED

    def _remaining_ns(self, waiter: Waiter) -> int | None:
        if waiter.deadline_ns is None:
            return None
        with self._section:
            return max(0, waiter.deadline_ns - self._line.at(self.clock.monotonic_ns()))

    def _abandon(self, waiter: Waiter) -> None:
        """Take the waiter out, or hand on what it was granted."""
        with self._section:
            if waiter.granted:
                waiter.granted = False
                self._hand_on()
            else:
                self._queue.leave(waiter)

    def _claim(self, waiter: Waiter) -> Permit:
        """Turn what was granted into a permit; the waiter answers for it until there is one."""
        permit = self._permit()
        waiter.granted = False
        self._admitted += 1
        return permit

    def _permit(self) -> Permit:
        """Return the permit of a call that begins now."""
        return Permit(self)

    def _hand_on(self) -> None:
        """Give a permit back, to whoever is next."""
        self._permits.give_back()
        # As `if self._queue`, without the call.
        if self._queue.queues:
            self._grant()

    def _grant(self) -> None:
        """Hand out what permits there are. Waiters that can no longer be woken are passed over."""
        while (first := self._queue.first) is not None:
            share, waiter = first
            if not self._permits.take_within(share):
                # Nor is there one for anybody behind: their share is no larger.
                return
            self._queue.leave(waiter)
            waiter.granted = True
            if not waiter.wake():
                waiter.granted = False
                self._permits.give_back()
