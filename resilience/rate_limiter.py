"""RateLimiter: a token bucket, exact, shared by tasks, threads and event loops.

Rules of this module: who waits for tokens, and who is next, is `turns`'. Here is what is had without waiting, which is
on the path of every call, and what is given back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, cast

from resilience.clock import nanoseconds, seconds
from resilience.counting import Statistics
from resilience.errors import RateLimitedError
from resilience.fusing import SETTLED
from resilience.layer import LayerKind, Permit
from resilience.machines.checks import non_negative, positive
from resilience.machines.decision import NeverFits, NotUntil
from resilience.outcome import Verdict
from resilience.parking import async_waiter, running_loop, thread_waiter
from resilience.remains import EVERYTHING, Everything, Remains
from resilience.turns import Reservation, Reserved, Scheduled, TurnTaking

if TYPE_CHECKING:
    from resilience.clock import Clock
    from resilience.errors import RejectedError
    from resilience.machines.token_bucket import TokenBucket

__all__ = ["RateLimiter"]

_ONE = 1


class RateLimiter(TurnTaking):
    """Admit at most `capacity` at once and `rate` a second in the long run.

    For any interval of t seconds, no more than `capacity + rate * t` is admitted, exactly.

    Args:
        rate: tokens a second; the decimal that you write is what counts (0.1 is one every ten seconds).
        capacity: the most tokens that the bucket holds, so the largest burst and the largest cost. It starts full.
        name: what errors and events call it.
        max_wait: for how many seconds a call that is guarded may wait for its turn; 0 refuses at once, and so does a
            turn that is known to come too late, for this or for the deadline that the call is under. `math.inf` waits
            as long as it takes.
        clock: where time comes from.

    Example:
        >>> limiter = RateLimiter(rate=100.0, capacity=2)
        >>> limiter.try_acquire(), limiter.try_acquire(), limiter.try_acquire()
        (True, True, False)

    The algorithm is the generic cell rate algorithm (ITU-T I.371), which needs one number and no timer.

    """

    __slots__ = ("_ignored", "_max_wait_ns", "_one", "max_wait")

    kind = LayerKind.RATE_LIMITER
    hears_success = False
    error: ClassVar[type[RejectedError]] = RateLimitedError

    def __init__(
        self, rate: float, capacity: float, *, name: str = "", max_wait: float = 0.0, clock: Clock | None = None
    ) -> None:
        self._max_wait_ns = _wait_ns(max_wait)
        super().__init__(rate, capacity, name=name, clock=clock)
        self.max_wait: float = max_wait
        self._one = self._bucket.units(1)
        self._ignored = 0

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Whether a call may wait for its turn."""
        return self._max_wait_ns != 0

    # -- acquiring --------------------------------------------------------------------------------------------------

    async def acquire(self, cost: float = _ONE, *, max_wait: float | None = None) -> bool:
        """Take `cost` tokens; return whether they were had within `max_wait` seconds (by default the limiter's own).

        Returns False at once if the tokens cannot come in time, or not before the deadline of a Timeout or a cancel
        scope around it. A checkpoint only if it waits. A cancellation while it waits takes nothing, gives back what may
        have been granted already, and goes on.

        Raises:
            ValueError: `cost` is not positive, or more than the capacity, or `max_wait` is negative or NaN.

        """
        if max_wait is not None:
            _wait_ns(max_wait)
        if self._take(cost) is not None:
            return True
        max_wait_ns = self._max_wait_ns if max_wait is None else _wait_ns(max_wait)
        if max_wait_ns == 0:
            return self._refused(cost)
        waiter = async_waiter()
        joined = self._join(waiter, cost, self._patience_ns(max_wait_ns))
        return (joined and await self._park(waiter)) or self._refused(cost)

    def try_acquire(self, cost: float = _ONE) -> bool:
        """Take `cost` tokens now, or return False. Never waits; not a checkpoint; any thread.

        Raises:
            ValueError: `cost` is not positive, or more than the capacity.

        """
        return self._take(cost) is not None or self._refused(cost)

    def reserve(self, cost: float = 1) -> Reservation:
        """Take a place in the queue without waiting there. Not a checkpoint; any thread.

        Raises:
            ValueError: `cost` is not positive, or more than the capacity.

        """
        entry = Reserved()
        self._join(entry, cost, None)
        return Reservation(self, entry)

    def schedule(self, cost: float = 1) -> float:
        """Take the tokens of the first turn that is free, now or later, and return in how many seconds that is.

        For work that is written down now and done then. The turn is taken for good: what comes later queues behind it.
        Never waits; not a checkpoint; any thread.

        Raises:
            ValueError: `cost` is not positive, or more than the capacity.

        """
        if self._take(cost) is not None:
            return 0.0
        entry = Scheduled()
        self._join(entry, cost, None)
        return seconds(entry.delay_ns)

    def retry_after(self, cost: float = 1) -> float:
        """Return in how many seconds a newcomer's call of this cost would be admitted, behind those who wait."""
        with self._section:
            units = self._units(cost)
            now_ns = self._serve()
            return seconds(max(0, self._bucket.ready_at(units, self._queued_units) - now_ns))

    @property
    def available(self) -> float:
        """The tokens in the bucket now, those that are due to waiters included."""
        with self._section:
            return self._bucket.available(self._line.at(self.clock.monotonic_ns()))

    def update(self, *, rate: float | None = None, capacity: float | None = None) -> None:
        """Change the rate, the capacity, or both; the tokens that are there stay, as far as they fit.

        Those who wait keep their order. One whose cost no longer fits ends with ValueError, one whose turn would now
        come too late is refused at once. Not a checkpoint; any thread.
        """
        new_rate = self.rate if rate is None else positive("rate", rate)
        new_capacity = self.capacity if capacity is None else positive("capacity", capacity)
        with self._section:
            self._reconfigure(new_rate, new_capacity)
            self._one = self._bucket.units(1)

    def statistics(self) -> Statistics:
        """Return a frozen snapshot: admitted and rejected calls, contention, and who waits now.

        `ignored` are calls that were admitted here and then refused further inside.
        """
        # In this order, so that no snapshot has more calls that ended than calls that began.
        ignored = self._ignored
        return Statistics(
            admitted=self._admitted,
            rejected=self._rejected,
            ignored=ignored,
            contended=self._contended,
            waiting=len(self._queue),
        )

    # -- as a layer -------------------------------------------------------------------------------------------------

    def admit(self, now_ns: int | None = None, cost: float = _ONE) -> Permit | NotUntil | NeverFits:
        """Decide at once; the permit of a call that a guard further inside refused gives its tokens back."""
        # The generation is read first: should the terms change after that, nothing of this permit is given back.
        generation = self._bucket.generation
        tat = self._take(cost, now_ns)
        if tat is not None:
            tokens: _Tokens = _Tokens()
            tokens.guard = self
            tokens.generation = generation
            tokens.tat = tat
            tokens.cost = cost
            return tokens
        with self._section:
            units = self._checked_units(cost)
            if self._bucket.fits(units):
                return NotUntil(self._bucket.ready_at(units, self._queued_units))
            return NeverFits(cost, self._bucket.capacity)

    async def admit_waiting(self, cost: float = 1) -> Permit:
        """Admit within `max_wait`, and before the call's deadline, or raise RateLimitedError.

        A checkpoint if it waits.
        """
        waiter = async_waiter()
        if self.waits and self._join(waiter, cost, self._patience_ns(self._max_wait_ns)) and await self._park(waiter):
            return Permit(self)
        raise self._refusal(cost)

    def admit_blocking(self, cost: float = 1) -> Permit:
        """Admit within `max_wait`, blocking the thread, or raise RateLimitedError.

        In a thread that runs an event loop nothing may block: there, what is not admitted at once is refused.
        """
        decision = self.admit(None, cost)
        if isinstance(decision, Permit):
            return decision
        if isinstance(decision, NotUntil) and self.waits and not running_loop():
            waiter = thread_waiter()
            if self._join(waiter, cost, self._patience_ns(self._max_wait_ns)) and self._park_blocking(waiter):
                return Permit(self)
            raise self._refusal(cost)
        raise self.refuse(decision)

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        """Give the tokens of a call that did not run back, if nobody was admitted after it: only then is that exact."""
        with self._section:
            if permit.settled:
                return
            if verdict is Verdict.IGNORED:
                self._ignored += 1
                now_ns = self._serve()
                if isinstance(permit, _Tokens) and permit.give_back(self._bucket):
                    self._grant(now_ns)
                    self._queue.wake_leaders()
            permit.generation = SETTLED

    def remains(self) -> int | Everything | None:
        """Return when the bucket will be full; None if it is.

        A reservation, a turn that was scheduled, or terms that were updated take more than that to tell.
        """
        now_ns = self._serve()
        if self._waiters or self._bucket.unsettled:
            return EVERYTHING
        full_at_ns = self._bucket.full_at()
        # As the clock itself counts: another limiter's line begins anew.
        return full_at_ns - self._line.offset_ns if full_at_ns > now_ns else None

    def resume(self, remains: Remains) -> None:
        """Have as few tokens as the other limiter has by now. Should the clock have fallen back meanwhile, none."""
        self._bucket.fill_at(self._line.last_ns, cast("int", remains))

    def _line_now(self, clock_ns: int) -> int:
        with self._section:
            return self._line.at_reading(clock_ns, self._clock_ns)

    def _refusal(self, cost: float) -> Exception:
        with self._section:
            units = self._units(cost)
            decision = NotUntil(self._bucket.ready_at(units, self._queued_units))
        return self.refuse(decision)

    def _take(self, cost: float, reading_ns: int | None = None) -> int | None:
        """Take the tokens now, and return the instant to which that brought the bucket.

        Returns None if they are not there, or somebody else's. The reading of the clock may be one taken before.
        """
        line = self._line
        if not self._try_lock(False):  # noqa: FBT003 - a keyword costs a third of it
            self._wait_for_lock()
        try:
            if reading_ns is None:
                # As line.at(), without the call: this runs on every call that is limited.
                now_ns = self._clock_ns()
                if line.offset_ns:
                    now_ns += line.offset_ns
                if now_ns >= line.last_ns:
                    line.last_ns = now_ns
                else:
                    now_ns = line.stand_still(now_ns)
            else:
                now_ns = line.at_reading(reading_ns, self._clock_ns)
            bucket = self._bucket
            if self._waiters:
                # Whoever is due goes first; nobody may be there to see to it but us.
                self._grant(now_ns)
                admitted = not self._waiters and bucket.take(now_ns, self._checked_units(cost))
            elif cost is _ONE and bucket.tat <= now_ns and bucket.plain:
                # What `bucket.take` does when the bucket is full, as it mostly is, without the call.
                bucket.tat = now_ns + bucket.per_token
                admitted = True
            else:
                # The identity test sorts out True and 1.0 as well; both are judged with care.
                admitted = bucket.take(now_ns, self._one if cost is _ONE else self._checked_units(cost))
            tat = None
            if admitted:
                self._admitted += 1
                tat = bucket.tat
        finally:
            self._unlock()
        if self._pending:
            self._after()
        return tat

    def _refused(self, cost: float) -> bool:
        """Count a refusal and return False; raise ValueError if the cost could never be admitted."""
        with self._section:
            ready_at = self._bucket.ready_at(self._units(cost), self._queued_units)
            self._rejected += 1
            self._announce_rejection(seconds(max(0, ready_at - self._line.last_ns)))
        return False


class _Tokens(Permit):
    """A permit that knows what it took, and the state that it left the bucket in.

    Its limiter fills it in: a frame for that would double what making one costs.
    """

    __slots__ = ("cost", "tat")

    cost: float
    tat: int

    __init__ = object.__init__

    def give_back(self, bucket: TokenBucket) -> bool:
        return bucket.give_back_last(self.generation, self.tat, bucket.units(self.cost))


def _wait_ns(max_wait: float) -> int | None:
    """Return nanoseconds; None for as long as it takes."""
    non_negative("max_wait", max_wait, infinite=True)
    return None if math.isinf(max_wait) else nanoseconds(max_wait)
