"""Turns: a bucket of tokens that come in time, and those who wait for theirs.

Rules of this module:

* Nobody overtakes a waiter, whatever its cost. Whoever comes by sees to it that those who are due are served.
* A waiter that is granted and cancelled before it resumes gives its tokens back, and the next one is woken.
* A place in the queue may be kept with nobody parked there. Its tokens are its own when it is due, whenever that is
  noticed.

The arithmetic is `machines.token_bucket`'s; here are the clock, the lock and the queue. It knows no particular guard:
what is had without waiting is the guard's business.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from resilience.clock import MonotoneLine, SystemClock, seconds
from resilience.layer import Guard
from resilience.machines.checks import positive
from resilience.machines.token_bucket import TokenBucket
from resilience.parking import ParkingQueue, Waiter, async_waiter
from resilience.timers import remaining_ns

if TYPE_CHECKING:
    from resilience.clock import Clock
    from resilience.parking import TaskWaiter, ThreadWaiter

__all__ = ["Reservation", "Reserved", "Scheduled", "TurnTaking"]


class Place(Waiter):
    """A place in the queue that nobody need be parked at: due `delay_ns` after it was taken, if nothing changes."""

    __slots__ = ("delay_ns",)

    def __init__(self) -> None:
        super().__init__(self)
        self.delay_ns: int = 0

    @property
    def unattended(self) -> bool:
        """Whether nobody is parked here now."""
        return True


class Scheduled(Place):
    """A turn that is taken for good; nobody waits for it."""

    __slots__ = ()


class Reserved(Place):
    """A place that may be waited at, and given up."""

    __slots__ = ("parked", "state")

    def __init__(self) -> None:
        super().__init__()
        self.parked: TaskWaiter | None = None
        self.state: str = "waiting"

    @property
    def unattended(self) -> bool:
        """Whether nobody is parked here now."""
        return self.parked is None

    def __repr__(self) -> str:
        return f"<reserved place, {self.state}>"

    def wake(self) -> bool:
        """Wake whoever is parked here, as any waiter is woken."""
        # Read once: another thread may be leaving `Reservation.wait`.
        parked = self.parked
        return parked.wake() if parked is not None else True

    async def wait(self, clock: Clock, delay_ns: int | None) -> None:
        """Wait as the task does that is parked here. A checkpoint."""
        assert self.parked is not None  # noqa: S101 - set by Reservation.wait, the only caller
        await self.parked.wait(clock, delay_ns)


class TurnTaking(Guard):
    """A guard whose tokens come in time, and are had in turn. A subclass takes those that nobody waits for."""

    __slots__ = ("_bucket", "_clock_ns", "_line", "_queue", "_queued_units", "_served_ns", "_waiters", "clock")

    def __init__(self, rate: float, capacity: float, *, name: str, clock: Clock | None) -> None:
        positive("rate", rate)
        positive("capacity", capacity)
        super().__init__(name)
        self.clock: Clock = SystemClock() if clock is None else clock
        self._clock_ns = self.clock.monotonic_ns
        now_ns = self._clock_ns()
        self._line = MonotoneLine(now_ns)
        self._bucket = TokenBucket(rate, capacity, now_ns)
        self._queue: ParkingQueue[Waiter] = ParkingQueue()
        # Those in it, so that a guard asks in one step whether there are any.
        self._waiters = self._queue.waiters
        self._queued_units = 0
        # Up to when everybody has had what was theirs.
        self._served_ns = now_ns

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self._bucket.rate

    @property
    def capacity(self) -> float:
        """The most tokens that the bucket holds."""
        return self._bucket.capacity

    def _checked_units(self, cost: float) -> int:
        positive("cost", cost)
        return self._bucket.units(cost)

    def _units(self, cost: float) -> int:
        """Return the cost in units, or raise ValueError. The lock is held, so that the capacity stays what it is."""
        units = self._checked_units(cost)
        if not self._bucket.fits(units):
            raise self._too_large(cost)
        return units

    def _too_large(self, cost: float) -> ValueError:
        return ValueError(f"cost must be at most the capacity of {self._bucket.capacity!r}, not {cost!r}")

    # -- the queue; `_join`, `_turn` and `_abandon` take the lock, the others are in it ------------------------------

    def _join(self, waiter: Waiter, cost: float, max_wait_ns: int | None) -> bool:
        """Queue the waiter, or return False if its turn would come too late."""
        with self._section:
            units = self._units(cost)
            now_ns = self._serve()
            delay_ns = max(0, self._bucket.ready_at(units, self._queued_units) - now_ns)
            joined = max_wait_ns is None or delay_ns <= max_wait_ns
            if joined:
                waiter.value = cost
                waiter.units = units
                waiter.deadline_ns = None if max_wait_ns is None else now_ns + max_wait_ns
                if isinstance(waiter, Place):
                    waiter.delay_ns = delay_ns
                self._queue.join(waiter)
                self._queued_units += units
        return joined

    def _serve(self) -> int:
        """Grant what is due by now, and return this instant. The lock is held."""
        now_ns = self._line.at(self.clock.monotonic_ns())
        self._grant(now_ns)
        return now_ns

    def _grant(self, now_ns: int) -> None:
        """Grant from the head of the queue what is due by now. The lock is held.

        Before the bucket is changed by anything but a call that is admitted, whoever is due has to be served.
        """
        while (head := self._queue.head) is not None:
            at_ns = now_ns
            if isinstance(head, Place) and head.unattended:
                # Its tokens were its own when it was due, whenever that is noticed; what has come in since is not lost.
                at_ns = min(now_ns, max(self._served_ns, self._bucket.ready_at(head.units)))
            if not self._bucket.take(at_ns, head.units):
                break
            self._queued_units -= head.units
            self._queue.leave(head)
            if isinstance(head, Scheduled):
                self._admitted += 1
                continue
            self._bucket.hold()
            head.granted = True
            if not head.wake():
                # Its loop has closed: nobody will ever resume there.
                head.granted = False
                self._bucket.give_back(head.units)
                self._served_ns = now_ns
                self._queue.wake_leaders()
        self._served_ns = now_ns

    def _turn(self, waiter: Waiter) -> tuple[bool | None, int | None]:
        """Return whether the waiter is through (True or False, None: not yet), and for how long it has to wait."""
        with self._section:
            now_ns = self._serve()
            if waiter.granted:
                # From here on there is no await, so nothing can take it back.
                waiter.granted = False
                self._bucket.keep()
                self._admitted += 1
                return True, None
            if waiter.refused:
                if isinstance(waiter.value, ValueError):
                    raise waiter.value
                return False, None
            head = self._queue.head
            if head is None or not self._queue.leads(waiter):
                return None, None
            return None, max(0, self._bucket.ready_at(head.units) - now_ns)

    def _abandon(self, waiter: Waiter) -> None:
        """Take the waiter out, or give back what it was granted, and let the next one go."""
        with self._section:
            now_ns = self._serve()
            if waiter.granted:
                waiter.granted = False
                self._bucket.give_back(waiter.units)
            elif self._queue.leave(waiter):
                self._queued_units -= waiter.units
            else:
                return
            self._grant(now_ns)
            self._queue.wake_leaders()

    def _reconfigure(self, rate: float, capacity: float) -> None:
        """Change the terms for those who wait as for those who come. The lock is held."""
        now_ns = self._serve()
        self._bucket.reconfigure(now_ns, rate, capacity)
        self._queued_units = 0
        for waiter in list(self._queue):
            cost = waiter.value
            assert isinstance(cost, int | float)  # noqa: S101 - what _join put there
            waiter.units = self._bucket.units(cost)
            ready_at = self._bucket.ready_at(waiter.units, self._queued_units)
            too_late = waiter.deadline_ns is not None and ready_at > waiter.deadline_ns
            fits = self._bucket.fits(waiter.units)
            if too_late or not fits:
                self._queue.leave(waiter)
                waiter.refused = True
                # Kept, since the terms may have changed again before the waiter hears of it.
                waiter.value = None if fits else self._too_large(cost)
                waiter.wake()
            else:
                self._queued_units += waiter.units
        self._grant(now_ns)
        self._queue.wake_leaders()

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _patience_ns(self, max_wait_ns: int | None) -> int | None:
        """Return how long it makes sense to wait: a turn at the deadline that the call is under comes too late."""
        left_ns = remaining_ns(self.clock)
        if left_ns is None or left_ns <= 0:
            # What is over already is for the cancellation to tell.
            return max_wait_ns
        return left_ns - 1 if max_wait_ns is None else min(max_wait_ns, left_ns - 1)

    async def _park(self, waiter: TaskWaiter | Reserved) -> bool:
        try:
            while True:
                through, delay_ns = self._turn(waiter)
                if through is not None:
                    return through
                await waiter.wait(self.clock, delay_ns)
        except GeneratorExit:
            self._from_finalizer(functools.partial(self._abandon, waiter))
            raise
        except BaseException:
            self._abandon(waiter)
            raise

    def _park_blocking(self, waiter: ThreadWaiter) -> bool:
        try:
            while True:
                through, delay_ns = self._turn(waiter)
                if through is not None:
                    return through
                waiter.wait_blocking(self.clock, delay_ns)
        except BaseException:
            self._abandon(waiter)
            raise


class Reservation:
    """A place in a RateLimiter's queue: its tokens are set aside for you when their time has come.

    Use it with `await wait()`, or give it up with `cancel()`. It may be had without waiting once `ready_in` is 0.
    """

    __slots__ = ("_entry", "_limiter")

    def __init__(self, limiter: TurnTaking, entry: Reserved) -> None:
        self._limiter = limiter
        self._entry = entry

    @property
    def ready_in(self) -> float:
        """In how many seconds the tokens are there; it only ever moves earlier (unless the limiter is updated)."""
        limiter, entry = self._limiter, self._entry
        with limiter._section:  # noqa: SLF001 - one class in two parts
            now_ns = limiter._serve()  # noqa: SLF001
            ahead = 0
            for other in limiter._queue:  # noqa: SLF001
                if other is entry:
                    return seconds(max(0, limiter._bucket.ready_at(entry.units, ahead) - now_ns))  # noqa: SLF001
                ahead += other.units
        return 0.0

    async def wait(self) -> None:
        """Wait until the tokens are there, and take them. A checkpoint if they are not there yet.

        A cancellation cancels the reservation and goes on.

        Raises:
            RuntimeError: the reservation has been cancelled (also while it is waited for), or is waited for already.
            ValueError: its cost no longer fits since the limiter was updated.

        """
        limiter, entry = self._limiter, self._entry
        if entry.state == "used":
            return
        if entry.state != "waiting" or entry.parked is not None:
            msg = f"a reservation is waited for once, and not after it was cancelled; this one is {entry!r}"
            raise RuntimeError(msg)
        with limiter._section:  # noqa: SLF001 - as above
            # If it is due already, its tokens are those of then; as soon as it is waited for, they are those of now.
            limiter._serve()  # noqa: SLF001
        entry.parked = async_waiter()
        try:
            if not await limiter._park(entry):  # noqa: SLF001
                msg = f"{entry!r} was cancelled while it was waited for"
                raise RuntimeError(msg)
            entry.state = "used"
        finally:
            entry.parked = None
            if entry.state == "waiting":
                entry.state = "cancelled"

    def cancel(self) -> None:
        """Give back the place, or the tokens if they are there. Idempotent; after use it does nothing."""
        if self._entry.state == "waiting":
            self._entry.state = "cancelled"
            self._limiter._abandon(self._entry)  # noqa: SLF001
            # Whoever waits for it must not wait for ever.
            self._entry.refused = True
            self._entry.wake()
