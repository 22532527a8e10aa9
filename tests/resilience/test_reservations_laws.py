"""RateLimiter beside a book that is kept by hand: places that are reserved, turns, tasks that wait, and new terms."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from resilience import RateLimiter
from resilience.testing import ManualClock
from tests.resilience.support import Crew, assert_caught, both_loops, heavy, run, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience import Reservation
    from resilience.parking import Waiter
    from tests.resilience.support import Job

EIGHTH = Fraction(1, 8)
# Whatever is waited for takes whole eighths of a second: costs are halves, and these are tokens a second.
RATES = (Fraction(1, 2), Fraction(1), Fraction(4))
CAPACITIES = (Fraction(1), Fraction(2), Fraction(4))

Step: TypeAlias = tuple[str, int, int]

steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["reserve", "reserve", "schedule", "try"]), st.integers(1, 8), st.just(0)),
        # A task that acquires: cost in halves, and for how many eighths of a second it would wait (99: for ever).
        st.tuples(st.just("start"), st.integers(1, 8), st.sampled_from([4, 16, 32, 99])),
        st.tuples(st.sampled_from(["cancel", "claim", "drop"]), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("update"), st.integers(0, 2), st.integers(0, 2)),
        # Ask how things stand. Whoever was due, and is not there, is served then at the latest.
        st.tuples(st.just("look"), st.just(0), st.just(0)),
        st.tuples(st.just("advance"), st.sampled_from([1, 4, 8, 20, 64]), st.just(0)),
    ),
    min_size=3,
    max_size=20,
)


@attrs.define(eq=False)
class Entry:
    """Somebody in the queue, or out of it."""

    cost: Fraction
    #: Until when it would wait; None is for ever.
    until: Fraction | None = None
    #: Whether somebody has its tokens set aside, once they are there, and may still give them back.
    held: bool = False
    state: str = "waits"


class Book:
    """What a limiter is to do, in fractions: a level that rises, and a queue that is served from its head."""

    def __init__(self) -> None:
        self.now = Fraction(0)
        self.rate, self.capacity = RATES[1], CAPACITIES[1]
        self.level = self.capacity
        self.queue: list[Entry] = []
        #: How many hold tokens that they may give back; and how many tokens would not run over if they did.
        self.holders = 0
        self.room = Fraction(0)

    def delay(self, cost: Fraction, ahead: list[Entry]) -> Fraction:
        """Return how long it takes until all of these have had their tokens, and this one too."""
        return max(Fraction(0), (sum((entry.cost for entry in ahead), cost) - self.level) / self.rate)

    def serve(self) -> None:
        """Serve those at the head whose tokens are there."""
        while self.queue and self.queue[0].cost <= self.level:
            entry = self.queue.pop(0)
            if self.holders:
                # Had what is held never been taken, the bucket might be full but for this much.
                self.room = min(self.room, self.capacity - self.level)
            elif entry.held:
                self.room = self.capacity
            self.level -= entry.cost
            self.holders += entry.held
            entry.state = "served"

    def advance(self, seconds: Fraction) -> None:
        """Let time pass; whoever becomes due on the way is served at that very instant."""
        while seconds > 0:
            stride = min(seconds, self.delay(self.queue[0].cost, [])) if self.queue else seconds
            self.level = min(self.capacity, self.level + self.rate * stride)
            self.now += stride
            seconds -= stride
            self.serve()

    def join(self, entry: Entry) -> None:
        """Put it at the end of the queue, if its turn comes in time."""
        if entry.until is not None and self.now + self.delay(entry.cost, self.queue) > entry.until:
            entry.state = "refused"
            return
        self.queue.append(entry)
        self.serve()

    def leave(self, entry: Entry) -> None:
        """Give back the place, or those of the tokens that would not have run over meanwhile."""
        if entry.state == "waits":
            self.queue.remove(entry)
        elif entry.state == "served" and entry.held:
            self.use(entry)
            returned = min(entry.cost, self.room)
            self.room -= returned
            self.level = min(self.capacity, self.level + returned)
        else:
            return
        entry.state = "cancelled"
        self.serve()

    def use(self, entry: Entry) -> None:
        """Have the tokens for good."""
        self.holders -= entry.held
        entry.held = False

    def update(self, rate: Fraction, capacity: Fraction) -> None:
        """Go by other terms; whoever they are too little or too late for is out."""
        self.rate, self.capacity = rate, capacity
        self.level = min(self.level, capacity)
        # What was set aside under the old terms does not come back under the new ones.
        self.room = Fraction(0)
        staying: list[Entry] = []
        for entry in self.queue:
            if entry.cost > capacity:
                entry.state = "too large"
            elif entry.until is not None and self.now + self.delay(entry.cost, staying) > entry.until:
                entry.state = "refused"
            else:
                staying.append(entry)
        self.queue = staying
        self.serve()


class Both:
    """A limiter and its book, and whoever has come to them."""

    def __init__(self, kind: type[RateLimiter], crew: Crew) -> None:
        self.clock = ManualClock(20.0)
        self.book = Book()
        self.limiter = kind(float(self.book.rate), float(self.book.capacity), clock=self.clock)
        self.crew = crew
        self.reserved: list[tuple[Reservation, Entry]] = []
        self.tasks: list[tuple[Job, Entry]] = []

    async def take(self, step: Step) -> None:
        """Take a step on both."""
        name, first, second = step
        match name:
            case "update":
                self.limiter.update(rate=float(RATES[first]), capacity=float(CAPACITIES[second]))
                self.book.update(RATES[first], CAPACITIES[second])
            case "advance":
                await self.advance(first * EIGHTH)
            case "look":
                self.compare()
            case "cancel" | "claim" | "drop":
                await self.leave(name, first)
            case _ if Fraction(first, 2) > self.book.capacity:
                with pytest.raises(ValueError, match="cost must be at most the capacity"):
                    self.limiter.reserve(first / 2)
            case _:
                await self.ask(name, Fraction(first, 2), second)

    async def ask(self, name: str, cost: Fraction, eighths: int) -> None:
        """Ask for tokens in one of four ways."""
        book, limiter = self.book, self.limiter
        amount = float(cost)
        if name == "try":
            entry = Entry(cost, until=book.now)
            book.join(entry)
            assert limiter.try_acquire(amount) == (entry.state == "served")
        elif name == "schedule":
            delay = book.delay(cost, book.queue)
            assert limiter.schedule(amount) == delay
            book.join(Entry(cost))
        elif name == "reserve":
            entry = Entry(cost, held=True)
            self.reserved.append((limiter.reserve(amount), entry))
            book.join(entry)
        else:
            max_wait = math.inf if eighths == 99 else eighths / 8
            entry = Entry(cost, until=None if eighths == 99 else book.now + eighths * EIGHTH)
            self.tasks.append((self.crew.start(lambda: limiter.acquire(amount, max_wait=max_wait)), entry))
            book.join(entry)
            await settle()

    async def leave(self, name: str, which: int) -> None:
        """Give up a place, by hand or by the cancellation of a task; or use a reservation whose tokens are there."""
        if name == "drop":
            if self.tasks:
                job, entry = self.tasks[which % len(self.tasks)]
                job.cancel()
                await settle()
                self.book.leave(entry)
        elif self.reserved:
            reservation, entry = self.reserved[which % len(self.reserved)]
            if name == "cancel":
                reservation.cancel()
                self.book.leave(entry)
            elif entry.state == "served":
                await reservation.wait()
                self.book.use(entry)

    async def advance(self, seconds: Fraction) -> None:
        """Let time pass from one deadline to the next, so that no task wakes too late."""
        while seconds > 0:
            due = self.clock.next_deadline()
            stride = seconds if due is None else min(seconds, Fraction(due) - self.instant())
            self.clock.advance(float(stride))
            self.book.advance(stride)
            seconds -= stride
            await settle()

    def instant(self) -> Fraction:
        """Return what the clock shows."""
        return Fraction(self.clock.monotonic_ns(), 10**9)

    def compare(self) -> None:
        """See that the limiter says what the book says, to the last fraction."""
        book, limiter = self.book, self.limiter
        assert limiter.retry_after(0.5) == book.delay(Fraction(1, 2), book.queue)
        assert limiter.available == book.level
        for reservation, entry in self.reserved:
            place = book.queue.index(entry) if entry in book.queue else None
            ready_in = 0 if place is None else book.delay(entry.cost, book.queue[:place])
            assert reservation.ready_in == ready_in
        for job, entry in self.tasks:
            assert job.ended == (entry.state != "waits")
            if entry.state == "too large":
                assert isinstance(job.error, ValueError)
            elif job.finished:
                assert job.result == (entry.state == "served")


def law_of_the_book(kind: type[RateLimiter], backend: str) -> Callable[[], None]:
    """RL1, RL5 to RL8, RL11: whoever is served, refused or told how long it takes is so exactly when he should be."""

    @given(steps)
    @example([("try", 4, 0), ("reserve", 4, 0), ("reserve", 2, 0), ("cancel", 0, 0), ("advance", 8, 0)])
    @example([("try", 4, 0), ("schedule", 2, 0), ("advance", 64, 0), ("try", 4, 0)])
    @example([("try", 4, 0), ("start", 4, 16), ("start", 2, 99), ("update", 0, 1), ("advance", 64, 0)])
    @example([("try", 4, 0), ("start", 4, 99), ("start", 1, 99), ("update", 1, 0), ("update", 2, 2), ("advance", 8, 0)])
    # Once lost: tokens that came in from when a place was due under new terms until it was due under the old ones.
    @example([*[("reserve", 1, 0)] * 3, ("reserve", 2, 0), ("update", 2, 0), ("advance", 4, 0)])
    # Once lost: those that came in from when a place was due until somebody began to wait there.
    @example([("reserve", 1, 0), ("advance", 1, 0), ("claim", 0, 0)])
    def law(plan: list[Step]) -> None:
        async def main() -> None:
            async with Crew() as crew:
                both = Both(kind, crew)
                for step in plan:
                    await both.take(step)
                    await settle()
                both.compare()
                for job in crew.jobs:
                    job.cancel()

        run(backend, main)

    return law


@both_loops
def test_limiter_goes_by_the_book(backend: str) -> None:
    """Reservations that are cancelled or used, turns, tasks that wait, and terms that change up and down meanwhile."""
    heavy(law_of_the_book(RateLimiter, backend))()


class _HoldsPlaces(RateLimiter):
    """A mutant: who has left the queue still counts as one ahead of those behind him."""

    def _abandon(self, waiter: Waiter) -> None:
        before = self._queued_units
        super()._abandon(waiter)
        self._queued_units = before


class _KeepsTokens(RateLimiter):
    """A mutant: tokens that were set aside are not given back."""

    def _abandon(self, waiter: Waiter) -> None:
        if waiter.granted:
            waiter.granted = False
            self._bucket.keep()
        else:
            super()._abandon(waiter)


class _Stubborn(RateLimiter):
    """A mutant: new terms are for newcomers; whoever waits is not looked at again."""

    def update(self, *, rate: float | None = None, capacity: float | None = None) -> None:
        waiting = list(self._queue)
        for waiter in waiting:
            self._queue.leave(waiter)
        super().update(rate=rate, capacity=capacity)
        for waiter in waiting:
            self._queue.join(waiter)
            self._queued_units += waiter.units


class _Late(RateLimiter):
    """A mutant: a turn that nobody looks after takes its tokens when that is noticed."""

    def _grant(self, now_ns: int) -> None:
        self._served_ns = now_ns
        super()._grant(now_ns)


@pytest.mark.parametrize("mutant", [_HoldsPlaces, _KeepsTokens, _Stubborn, _Late])
@both_loops
def test_law_of_the_book_catches_mutants(mutant: type[RateLimiter], backend: str) -> None:
    """A place or tokens that are lost, terms that do not hold for all, and time that is lost, are seen."""
    assert_caught(law_of_the_book(mutant, backend))
