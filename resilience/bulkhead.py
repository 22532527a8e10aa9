"""Bulkhead: at most so many calls at a time, and a bounded queue for the rest.

Rules of this module: one count for all tasks, threads and event loops. A permit that comes back is handed to the head
of the queue under the same lock, so that nobody slips in between; a waiter that is cancelled after that hands it on.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from resilience.clock import MonotoneLine, SystemClock, nanoseconds
from resilience.errors import BulkheadFullError
from resilience.fusing import SETTLED
from resilience.layer import Guard, LayerKind, Permit, Statistics
from resilience.machines.checks import non_negative, positive_int, whole_number
from resilience.machines.decision import NeverFits, NotUntil
from resilience.machines.permits import Permits
from resilience.parking import ParkingQueue, Waiter, async_waiter, running_loop, thread_waiter

if TYPE_CHECKING:
    from resilience.clock import Clock
    from resilience.outcome import Verdict

__all__ = ["Bulkhead"]


class Bulkhead(Guard):
    """Let at most `max_concurrent` calls run at a time.

    Args:
        max_concurrent: calls under way at a time.
        max_queue: calls that may wait for a permit, first in, first out; 0 refuses what is too much at once.
        max_wait: seconds for which a call may wait; None for as long as it takes.
        name: what errors and events call it.
        clock: where time comes from.

    Example:
        >>> bulkhead = Bulkhead(1)
        >>> with bulkhead:
        ...     bulkhead.try_admit() is None
        True

    """

    __slots__ = ("_line", "_max_wait_ns", "_permits", "_queue", "clock", "max_concurrent", "max_queue", "max_wait")

    kind = LayerKind.BULKHEAD
    error = BulkheadFullError

    def __init__(
        self,
        max_concurrent: int,
        *,
        max_queue: int = 0,
        max_wait: float | None = None,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        positive_int("max_concurrent", max_concurrent)
        whole_number("max_queue", max_queue)
        if max_wait is not None:
            non_negative("max_wait", max_wait)
        super().__init__(name)
        self.max_concurrent = max_concurrent
        self.max_queue = max_queue
        self.max_wait = max_wait
        self._max_wait_ns = None if max_wait is None else nanoseconds(max_wait)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._line = MonotoneLine(self.clock.monotonic_ns())
        self._permits = Permits(max_concurrent)
        self._queue: ParkingQueue[Waiter] = ParkingQueue()

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether a call may wait for a permit."""
        return self.max_queue > 0

    @property
    def available(self) -> int:
        """The permits that are free now."""
        return self._permits.limit - self._permits.in_use

    def try_admit(self) -> Permit | None:
        """Return a permit to be settled by hand, or None. Never waits; not a checkpoint; any thread."""
        decision = self.admit()
        if isinstance(decision, Permit):
            return decision
        self.refuse(decision)
        return None

    def statistics(self) -> Statistics:
        """Return a frozen snapshot: decisions, contention, who waits, and the permits that are out."""
        return Statistics(
            admitted=self._admitted,
            rejected=self._rejected,
            contended=self._contended,
            waiting=len(self._queue),
            in_use=self._permits.in_use,
        )

    # -- as a layer -------------------------------------------------------------------------------------------------

    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil | NeverFits:  # noqa: ARG002 - a call is a call
        """Decide at once; nobody overtakes those who wait."""
        contended = self._lock.locked()
        with self._section:
            if contended:
                self._contended += 1
            admitted = not self._queue and self._permits.take()
            if admitted:
                self._admitted += 1
        return Permit(self) if admitted else NotUntil(None)

    async def admit_waiting(self, cost: float = 1) -> Permit:  # noqa: ARG002
        """Admit within `max_wait` if the queue has a place, or raise BulkheadFullError. A checkpoint if it waits."""
        waiter = async_waiter()
        through = self._join(waiter)
        try:
            while through is None:
                await waiter.wait(self.clock, self._remaining_ns(waiter))
                through = self._turn(waiter)
        except GeneratorExit:
            self._from_finalizer(functools.partial(self._abandon, waiter))
            raise
        except BaseException:
            self._abandon(waiter)
            raise
        return self._permit_or_refuse(through=through)

    def admit_blocking(self, cost: float = 1) -> Permit:
        """Do the same in plain code; in a thread that runs an event loop nothing may block, so there it refuses."""
        decision = self.admit(None, cost)
        if isinstance(decision, Permit):
            return decision
        if not self.waits or running_loop():
            raise self.refuse(decision)
        waiter = thread_waiter()
        through = self._join(waiter)
        try:
            while through is None:
                waiter.wait_blocking(self.clock, self._remaining_ns(waiter))
                through = self._turn(waiter)
        except BaseException:
            self._abandon(waiter)
            raise
        return self._permit_or_refuse(through=through)

    def settle(self, permit: Permit, verdict: Verdict) -> None:  # noqa: ARG002 - a permit comes back however the call ended
        """Give the permit back: to the head of the queue, if anybody waits."""
        with self._section:
            if permit.settled:
                return
            permit.generation = SETTLED
            self._hand_on()

    # -- the queue --------------------------------------------------------------------------------------------------

    def _permit_or_refuse(self, *, through: bool) -> Permit:
        if through:
            return Permit(self)
        raise self.refuse(NotUntil(None))

    def _join(self, waiter: Waiter) -> bool | None:
        """Admit (True), refuse (False) or queue (None)."""
        with self._section:
            if not self._queue and self._permits.take():
                self._admitted += 1
                return True
            if len(self._queue) >= self.max_queue or self._max_wait_ns == 0:
                return False
            if self._max_wait_ns is not None:
                waiter.deadline_ns = self._line.at(self.clock.monotonic_ns()) + self._max_wait_ns
            self._queue.join(waiter)
            return None

    def _turn(self, waiter: Waiter) -> bool | None:
        """Return whether the waiter is through; None: not yet."""
        with self._section:
            if waiter.granted:
                waiter.granted = False
                self._admitted += 1
                return True
            if waiter.deadline_ns is None or self._line.at(self.clock.monotonic_ns()) < waiter.deadline_ns:
                return None
            self._queue.leave(waiter)
            return False

    def _remaining_ns(self, waiter: Waiter) -> int | None:
        if waiter.deadline_ns is None:
            return None
        with self._section:
            return max(0, waiter.deadline_ns - self._line.at(self.clock.monotonic_ns()))

    def _hand_on(self) -> None:
        """Hand a permit to the first waiter that can still be woken, or free it. The lock is held."""
        while (head := self._queue.head) is not None:
            self._queue.leave(head)
            head.granted = True
            if head.wake():
                return
            head.granted = False
        self._permits.give_back()

    def _abandon(self, waiter: Waiter) -> None:
        """Take the waiter out, or hand on what it was granted."""
        with self._section:
            if waiter.granted:
                waiter.granted = False
                self._hand_on()
            else:
                self._queue.leave(waiter)
