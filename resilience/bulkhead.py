"""Bulkhead: at most so many calls at a time, and a bounded queue for the rest.

Rules of this module: one count for all tasks, threads and event loops. Who waits, and who is next, is `queueing`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from resilience.errors import BulkheadFullError
from resilience.layer import LayerKind, Permit
from resilience.machines.checks import positive_int
from resilience.machines.decision import NeverFits, NotUntil
from resilience.outcome import Verdict
from resilience.queueing import QueueingGuard

if TYPE_CHECKING:
    from resilience.clock import Clock
    from resilience.errors import RejectedError

__all__ = ["Bulkhead"]


class Bulkhead(QueueingGuard):
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

    __slots__ = ("max_concurrent",)

    kind = LayerKind.BULKHEAD
    error: ClassVar[type[RejectedError]] = BulkheadFullError

    def __init__(
        self,
        max_concurrent: int,
        *,
        max_queue: int = 0,
        max_wait: float | None = None,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.max_concurrent: int = positive_int("max_concurrent", max_concurrent)
        super().__init__(max_concurrent, max_queue=max_queue, max_wait=max_wait, name=name, clock=clock)

    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil | NeverFits:  # noqa: ARG002 - a call is a call
        """Decide at once; nobody overtakes those who wait."""
        if not self._try_lock(False):  # noqa: FBT003 - a keyword costs a third of it
            self._wait_for_lock()
        try:
            admitted = self._permits.take()
            self._admitted += admitted
        finally:
            self._unlock()
        if self._pending:
            self._after()
        return Permit(self) if admitted else NotUntil(None)

    def settle_result(self, permit: Permit, result: object) -> None:  # noqa: ARG002 - as any end does, it gives the permit back
        """Give the permit back."""
        self.settle(permit, Verdict.SUCCESS)
