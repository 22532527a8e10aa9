"""AdaptiveLimiter: a limit of calls at a time that is learnt from how long they take.

Rules of this module:

* How the limit is learnt is `machines.limits`'s, who waits and who is next is `queueing`'s; here they meet. A call's
  latency runs from its admission to its settlement, on the guard's own line of time; what it says, and the permit that
  comes back, take effect under one lock, so that a limit that grows lets in whoever waits.
* A success is a sample of latency, a failure is a dropped call. What is ignored or cancelled gives its permit back and
  teaches nothing.
* Nobody's permit is taken away. While more are out than a limit that has sunk allows, none is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from resilience.counting import Statistics
from resilience.errors import LimitExceededError
from resilience.events import LimitChanged, calls_for
from resilience.fusing import SETTLED
from resilience.layer import Guard, LayerKind, Permit
from resilience.machines.checks import positive
from resilience.machines.decision import NeverFits, NotUntil
from resilience.machines.limits import Gradient2, LimitAlgorithm
from resilience.machines.token_bucket import exact_fraction
from resilience.outcome import Verdict, verdict_of_exception, verdict_of_result
from resilience.queueing import WHOLE, QueueingGuard
from resilience.remains import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Callable
    from fractions import Fraction

    from resilience.clock import Clock
    from resilience.errors import RejectedError
    from resilience.machines.limits import Notes
    from resilience.remains import Everything, Remains

__all__ = ["AdaptiveLimiter", "LimiterShare"]


def timed_out(exception: Exception) -> bool:
    """Return whether a call timed out: the default `is_failure`. Other errors need not come from too much load."""
    return isinstance(exception, TimeoutError)


_DEFAULT = Gradient2()

# Looked up once: an attribute of an enum costs as much as a lock.
_SUCCESS, _FAILURE = Verdict.SUCCESS, Verdict.FAILURE


class AdaptiveLimiter(QueueingGuard):
    """Let as many calls run at a time as the callee can bear, which is learnt from their latency.

    Calls of less importance go through `at(share)`: they are refused while that share of the limit is in use, so that
    what is critical is shed last.

    Args:
        algorithm: how the limit is learnt: `Gradient2()`, `Vegas()` or `AIMD()`.
        max_queue: calls that may wait for a permit; 0 refuses what is too much at once, which is what sheds load.
        max_wait: seconds for which a call may wait; None for as long as it takes.
        name: what errors and events call it.
        is_failure: tells whether an Exception counts as a dropped call: the callee had too much to do. One that does
            not teaches nothing. It may also return a `Verdict`. By default a TimeoutError counts. Rejections never do.
        is_failure_result: the same for results, such as a response with status 503; by default none counts.
        clock: where time comes from.

    Example:
        >>> limiter = AdaptiveLimiter(AIMD(initial_limit=1))
        >>> with limiter:
        ...     limiter.limit, limiter.try_admit() is None
        (1, True)

    """

    __slots__ = (
        "_cancelled",
        "_clock_ns",
        "_failed",
        "_ignored",
        "_is_failure",
        "_is_failure_result",
        "_machine",
        "_succeeded",
        "algorithm",
    )

    kind = LayerKind.ADAPTIVE_LIMITER
    error: ClassVar[type[RejectedError]] = LimitExceededError

    def __init__(
        self,
        algorithm: LimitAlgorithm = _DEFAULT,
        *,
        max_queue: int = 0,
        max_wait: float | None = None,
        name: str = "",
        is_failure: Callable[[Exception], bool | Verdict] = timed_out,
        is_failure_result: Callable[[object], bool | Verdict] | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not isinstance(algorithm, LimitAlgorithm):
            msg = f"algorithm must be Gradient2(), Vegas() or AIMD(), not {algorithm!r}"
            raise ValueError(msg)
        for argument, value in (("is_failure", is_failure), ("is_failure_result", is_failure_result)):
            if not callable(value) and (value is not None or argument == "is_failure"):
                msg = f"{argument} must be callable, not {value!r}"
                raise ValueError(msg)
        super().__init__(algorithm.initial_limit, max_queue=max_queue, max_wait=max_wait, name=name, clock=clock)
        self._clock_ns = self.clock.monotonic_ns
        self.algorithm: LimitAlgorithm = algorithm
        self._machine = algorithm.start()
        self._is_failure = is_failure
        self._is_failure_result = is_failure_result
        self._succeeded = self._failed = self._ignored = self._cancelled = 0

    @property
    def limit(self) -> int:
        """The calls that may run at a time now."""
        return self._permits.limit

    def at(self, share: float) -> LimiterShare:
        """Return this limiter as a layer for calls that may run only while less than `share` of the limit is in use.

        The share is above 0 and at most 1, and is rounded up to a call. Those with a smaller share are refused first,
        are let in last, and give up their place in a full queue to those with a larger one. It is cheap to make, and
        holds nothing of its own.
        """
        return LimiterShare(self, share)

    def statistics(self) -> Statistics:
        """Return a frozen snapshot: decisions, verdicts, contention, who waits, the permits out, and the limit."""
        return Statistics(
            # These before `admitted`: no snapshot has more calls that ended than calls that began.
            succeeded=self._succeeded,
            failed=self._failed,
            ignored=self._ignored,
            cancelled=self._cancelled,
            admitted=self._admitted,
            rejected=self._rejected,
            contended=self._contended,
            waiting=len(self._queue),
            in_use=self._permits.in_use,
            limit=self._permits.limit,
        )

    # -- as a layer -------------------------------------------------------------------------------------------------

    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil | NeverFits:  # noqa: ARG002 - a call is a call
        """Decide at once; nobody overtakes those who wait with the same share or a larger one."""
        return self._admit(now_ns, WHOLE)

    def _admit(self, now_ns: int | None, share: Fraction) -> Permit | NotUntil:
        permits = self._permits
        if not self._try_lock(False):  # noqa: FBT003 - a keyword costs a third of it
            self._wait_for_lock()
        try:
            # Before anything is taken: what a clock raises takes nothing with it.
            line = self._line
            line_ns = line.at(self._clock_ns()) if now_ns is None else line.at_reading(now_ns, self._clock_ns)
            admitted = permits.take() if share is WHOLE else permits.take_within(share)
            self._admitted += admitted
            in_use = permits.in_use
        finally:
            self._unlock()
        if self._pending:
            self._after()
        return _Admission(self, line_ns, in_use) if admitted else NotUntil(None)

    def _permit(self) -> Permit:
        return _Admission(self, self._line.at(self._clock_ns()), self._permits.in_use)

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        """Learn from how a call ended, and give its permit back: to whoever is next, if anybody waits."""
        if not self._try_lock(False):  # noqa: FBT003 - a keyword costs a third of it
            self._wait_for_lock()
        try:
            if permit.generation != SETTLED:
                now_ns = self._line.at(self._clock_ns())
                permit.generation = SETTLED
                if verdict is _SUCCESS:
                    self._succeeded += 1
                    self._learn(permit, now_ns, dropped=False)
                elif verdict is _FAILURE:
                    self._failed += 1
                    self._learn(permit, now_ns, dropped=True)
                else:
                    self._ignored += verdict is Verdict.IGNORED
                    self._cancelled += verdict is Verdict.CANCELLED
                self._hand_on()
        finally:
            self._unlock()
        if self._pending:
            self._after()

    def settle_result(self, permit: Permit, result: object) -> None:
        """Settle by the result that a call ended with."""
        self.settle(permit, _SUCCESS if self._is_failure_result is None else self._judge(permit, result))

    def _learn(self, permit: Permit, now_ns: int, *, dropped: bool) -> None:
        """Move the limit; the permits that it gains are handed out with the one that comes back. The lock is held."""
        assert isinstance(permit, _Admission)  # noqa: S101 - it has no others
        old = self._permits.limit
        new = self._machine.record(permit.started_ns, now_ns, permit.in_flight, dropped=dropped)
        if new != old:
            self._permits.limit = new
            calls = calls_for(LimitChanged(guard=self.label, old=old, new=new, at_ns=now_ns))
            if calls:
                self._events.put(*calls)

    def remains(self) -> Remains | Everything | None:
        """Return what it has learnt so far, if nothing is under way; None if that is nothing.

        In the middle of a probe, or on a line of its own since the clock fell back, it takes more than that to tell.
        """
        notes = self._machine.notes()
        if super().remains() is not None or notes is None or self._line.offset_ns:
            return EVERYTHING
        return None if notes == self.algorithm.start().notes() else (None, *notes)

    def resume(self, remains: Remains) -> None:
        """Have learnt what the other limiter had."""
        _, *notes = cast("tuple[None, *Notes]", remains)
        self._machine.resume(tuple(notes), self._line.last_ns)
        self._permits.limit = self._machine.limit

    def judge_exception(self, exception: BaseException) -> Verdict:
        """Judge by `is_failure`."""
        return verdict_of_exception(exception, self._is_failure)

    def judge_result(self, result: object) -> Verdict:
        """Judge by `is_failure_result`."""
        return verdict_of_result(result, self._is_failure_result)

    def __repr__(self) -> str:
        return f"<AdaptiveLimiter {self.label!r}, {self._permits.in_use} of {self._permits.limit}>"


class _Admission(Permit):
    """A permit that remembers when it was given, and how many were out then, itself included."""

    __slots__ = ("in_flight", "started_ns")

    def __init__(self, guard: AdaptiveLimiter, started_ns: int, in_flight: int) -> None:
        self.guard = guard
        self.generation = 0
        self.started_ns = started_ns
        self.in_flight = in_flight


class LimiterShare(Guard):
    """An AdaptiveLimiter as those see it who may use only a share of its limit; made by `AdaptiveLimiter.at`.

    It decides and settles nothing itself: the permits, the queue and the statistics are the limiter's.
    """

    __slots__ = ("_share", "clock", "limiter", "share")

    kind = LayerKind.ADAPTIVE_LIMITER
    error: ClassVar[type[RejectedError]] = LimitExceededError

    def __init__(self, limiter: AdaptiveLimiter, share: float) -> None:
        if positive("share", share) > 1:
            msg = f"share must be above 0 and at most 1, not {share!r}"
            raise ValueError(msg)
        super().__init__(limiter.name)
        self.limiter: AdaptiveLimiter = limiter
        self.clock: Clock = limiter.clock
        self.share: float = share
        self._share = exact_fraction(share)

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether a call may wait for a permit."""
        return self.limiter.waits

    @property
    def label(self) -> str:
        """The name by which errors and events call the limiter."""
        return self.limiter.label

    def try_admit(self) -> Permit | None:
        """Return a permit to be settled by hand, or None. Never waits; not a checkpoint; any thread."""
        decision = self.admit()
        if isinstance(decision, Permit):
            return decision
        self.refuse(decision)
        return None

    def statistics(self) -> Statistics:
        """Return the limiter's snapshot."""
        return self.limiter.statistics()

    @property
    def measured(self) -> AdaptiveLimiter:
        """The limiter, whose statistics these are."""
        return self.limiter

    def admit(self, now_ns: int | None = None, cost: float = 1) -> Permit | NotUntil | NeverFits:  # noqa: ARG002
        """Decide at once; nobody overtakes those who wait with the same share or a larger one."""
        return self.limiter._admit(now_ns, self._share)  # noqa: SLF001 - one class in two parts

    async def admit_waiting(self, cost: float = 1) -> Permit:  # noqa: ARG002
        """Admit within `max_wait` if the queue has a place, or raise LimitExceededError. A checkpoint if it waits."""
        return await self.limiter._wait(self._share)  # noqa: SLF001

    def admit_blocking(self, cost: float = 1) -> Permit:
        """Do the same in plain code; in a thread that runs an event loop nothing may block, so there it refuses."""
        return self.limiter._wait_blocking(self._share, self.admit(None, cost))  # noqa: SLF001

    def refuse(self, decision: NotUntil | NeverFits) -> Exception:
        """Count a refusal with the limiter, and return the fresh exception that says so."""
        return self.limiter.refuse(decision)

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        """Let the limiter learn from how a call ended."""
        self.limiter.settle(permit, verdict)

    def settle_exception(self, permit: Permit, exception: BaseException) -> None:
        """Let the limiter learn from the exception that a call ended with."""
        self.limiter.settle_exception(permit, exception)

    def settle_result(self, permit: Permit, result: object) -> None:
        """Let the limiter learn from the result that a call ended with."""
        self.limiter.settle_result(permit, result)

    def __repr__(self) -> str:
        return f"<{self.share} of {self.limiter!r}>"
