"""Guards that count permits and let calls wait for one: the same laws for Bulkhead and for AdaptiveLimiter."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import (
    AdaptiveLimiter,
    Bulkhead,
    BulkheadFullError,
    LimitExceededError,
    NotUntil,
    Permit,
    RejectedError,
    Verdict,
)
from resilience.queueing import WHOLE, QueueingGuard, WaitingLine
from resilience.telemetry import Rejected, subscribe
from resilience.testing import ManualClock
from tests.resilience.limiters import KINDS, Kind, every_kind, make, noted, take
from tests.resilience.support import (
    NOT_A_COUNT,
    NOT_NEGATIVE,
    Crew,
    Job,
    assert_caught,
    assert_refuses,
    both_loops,
    brief,
    heavy,
    run,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from resilience import Guard
    from resilience.parking import Waiter

every_loop = pytest.mark.anyio
Step: TypeAlias = tuple[str, int, int]


# -- arguments and refusals ------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("bad", [*NOT_NEGATIVE, None, 1.5], ids=brief)
def test_refuses_bad_queues_and_waits(kind: Kind, bad: object) -> None:
    """max_queue is a whole number of at least 0; max_wait a finite one of at least 0, or None."""
    if bad in NOT_NEGATIVE:
        assert_refuses("max_wait", bad, partial(make, kind, 1))
    if bad in NOT_A_COUNT:
        assert_refuses("max_queue", bad, partial(make, kind, 1))


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [(Bulkhead, BulkheadFullError, "pool is full"), (AdaptiveLimiter, LimitExceededError, "pool is at its limit")],
)
@every_loop
async def test_refuses_what_is_too_much(kind: Kind, error: type[RejectedError], message: str) -> None:
    """Without a queue, what finds no permit is refused at once, counted, and told; nobody can say when to come back."""
    guard = make(kind, 1, name="pool")
    assert not guard.waits
    seen: list[object] = []
    unsubscribe = subscribe(seen.append)
    async with guard as permit:
        assert isinstance(permit, Permit)
        assert guard.available == 0
        assert guard.try_admit() is None
        with pytest.raises(error, match=f"^{message}$") as caught:
            await guard.admit_waiting()
        assert (type(caught.value), caught.value.retry_after) == (error, None)
        with pytest.raises(error):
            guard.admit_blocking()
        assert guard.admit(0) == NotUntil(None)
    unsubscribe()
    assert seen == [Rejected(guard="pool", retry_after=None)] * 3
    found = take(guard)
    found.success()
    found.failure()
    assert guard.available == 1
    statistics = guard.statistics()
    assert (statistics.admitted, statistics.rejected, statistics.waiting, statistics.in_use) == (2, 3, 0, 0)
    assert (await guard.admit_waiting()).settled is False


@every_kind
@every_loop
async def test_queue_is_bounded_and_waits_no_longer_than_it_may(kind: Kind) -> None:
    """max_queue calls wait, for max_wait each; in an event loop plain code does not wait."""
    clock = ManualClock()
    guard = make(kind, 1, max_queue=1, max_wait=2.0, clock=clock)
    take(guard)
    async with Crew() as crew:
        waiting = crew.start(guard.admit_waiting)
        await settle()
        with pytest.raises(guard.error):
            await guard.admit_waiting()
        with pytest.raises(guard.error):
            guard.admit_blocking()
        clock.advance(1.999)
        await settle()
        assert not waiting.ended
        clock.advance(0.001)
        await settle()
        assert isinstance(waiting.error, guard.error)
        assert guard.statistics().waiting == 0
    forbearing = make(kind, 1, max_queue=1, max_wait=0, clock=clock)
    assert isinstance(forbearing.admit(0), Permit)
    with pytest.raises(guard.error):
        await forbearing.admit_waiting()


# -- the laws --------------------------------------------------------------------------------------------------------

SHARES = (Fraction(1), Fraction(1, 2), Fraction(1, 4))


class World:
    """A guard, those who want in, and the laws. An AdaptiveLimiter's limit moves, and its calls have shares."""

    LIMIT, QUEUE, WAIT = 2, 4, 3

    def __init__(self, kind: Kind) -> None:
        self.clock = ManualClock()
        self.guard = make(kind, self.LIMIT, max_queue=self.QUEUE, max_wait=float(self.WAIT), clock=self.clock)
        self.notebook = noted(self.guard) if isinstance(self.guard, AdaptiveLimiter) else None
        self.share: list[Fraction] = []
        self.asked: list[Job] = []
        self.inside: list[int] = []
        self.order: list[int] = []
        self.cancelled: list[Job] = []
        self.releases: dict[int, anyio.Event] = {}
        self.limit = self.LIMIT
        self.seen = 0

    def door(self, share: Fraction) -> Guard:
        """Return the guard as those see it who have this share."""
        return self.guard.at(float(share)) if isinstance(self.guard, AdaptiveLimiter) else self.guard

    async def work(self, cell: list[Job], share: Fraction) -> None:
        """Go in and stay until released."""
        number = len(self.asked)
        self.asked.append(cell[0])
        self.share.append(share)
        self.releases[number] = anyio.Event()
        async with self.door(share):
            self.inside.append(number)
            self.order.append(number)
            # A limit that moves may sink while more are inside: there it is judged by who came (AL6, below).
            assert self.notebook is not None or len(self.inside) <= self.LIMIT
            try:
                await self.releases[number].wait()
            finally:
                self.inside.remove(number)

    def step(self, crew: Crew, step: Step) -> None:
        """Take one step during which no other task runs."""
        name, first, second = step
        if name == "start":
            cell: list[Job] = []
            cell.append(crew.start(partial(self.work, cell, SHARES[first])))
        elif name == "release" and self.inside:
            self.releases[self.inside[first % len(self.inside)]].set()
        elif name == "limit" and self.notebook is not None:
            # It holds from the next call that succeeds.
            self.notebook.limit = first
        elif name == "cancel" and crew.jobs:
            job = crew.jobs[first % len(crew.jobs)]
            job.cancel(native=bool(second))
            self.cancelled.append(job)
        elif name == "try":
            before = self.guard.statistics()
            permit = self.door(SHARES[first]).admit()
            # Whoever finds a permit overtakes nobody; and what is cancelled at once goes to the next.
            assert isinstance(permit, Permit) == (before.in_use < math.ceil(SHARES[first] * before.limit))
            # Where shares differ, those who wait may have too small a one for the permits that there are (AL7, below).
            assert not before.waiting or self.notebook is not None or not isinstance(permit, Permit)
            if isinstance(permit, Permit):
                permit.cancelled()

    def judge(self) -> None:
        """Judge a moment at which everybody waits."""
        statistics = self.guard.statistics()
        out = [number for number, job in enumerate(self.asked) if not job.ended and number not in self.inside]
        assert statistics.in_use == len(self.inside)
        assert self.guard.available == max(0, statistics.limit - len(self.inside))
        assert statistics.waiting == len(out) <= self.QUEUE
        # AL6: the last to come of those with this share or a smaller one found room, under a limit that held then.
        came = [number for number in self.order[self.seen :] if number in self.inside]
        most = max(self.limit, statistics.limit)
        for share in SHARES:
            confined = sum(self.share[number] <= share for number in came)
            assert not confined or len(self.inside) - len(came) + confined <= math.ceil(share * most)
        self.limit, self.seen = statistics.limit, len(self.order)
        # AL7: nobody waits while there is a permit for them.
        assert all(len(self.inside) >= math.ceil(self.share[number] * statistics.limit) for number in out)
        # AL8: among equals, nobody was let in before one who came earlier and still waits.
        for share in SHARES:
            served = [number for number in self.order if self.share[number] == share]
            waiting = [number for number in out if self.share[number] == share]
            assert not served or not waiting or max(served) < min(waiting)
        # Cancellation is never swallowed.
        assert all(job.ended for job in self.cancelled)
        assert all(job.finished != job.cancelled for job in self.cancelled if job.error is None)

    def judge_the_end(self, crew: Crew) -> None:
        """AL9: every admission is settled once, and no permit and no waiter is left."""
        assert all(job.error is None or isinstance(job.error, self.guard.error) for job in crew.jobs)
        statistics = self.guard.statistics()
        assert statistics.in_use == statistics.waiting == 0
        if self.notebook is not None:
            assert statistics.admitted == statistics.succeeded + statistics.cancelled
            assert len(self.notebook.samples) == statistics.succeeded


def steps(kind: Kind) -> st.SearchStrategy[list[Step]]:
    """Draw what happens to a guard: a Bulkhead's calls all have the whole of it, and its limit stays."""
    shares = [0, 0, 1, 2] if issubclass(kind, AdaptiveLimiter) else [0]
    names = ["settle", "settle", "try"]
    step = [
        st.tuples(st.just("start"), st.sampled_from(shares), st.just(0)),
        st.tuples(st.just("start"), st.sampled_from(shares), st.just(0)),
        st.tuples(st.just("release"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 12), st.integers(0, 1)),
        st.tuples(st.sampled_from(names), st.sampled_from(shares), st.just(0)),
        st.tuples(st.just("advance"), st.sampled_from([1, 2, 3]), st.just(0)),
    ]
    if issubclass(kind, AdaptiveLimiter):
        step.append(st.tuples(st.just("limit"), st.integers(1, 5), st.just(0)))
    return st.lists(st.one_of(step), min_size=6, max_size=30)


def law_of_the_queue(kind: Kind, backend: str) -> Callable[[], None]:
    """AL6 to AL9: never more than the limit or the share; nobody waits for nothing; in order; all permits come back."""

    @given(steps(kind))
    def law(steps: list[Step]) -> None:
        async def main() -> None:
            world = World(kind)
            async with Crew() as crew:
                for step in steps:
                    if step[0] == "advance":
                        world.clock.advance(step[1])
                    elif step[0] == "settle":
                        await settle()
                        world.judge()
                    else:
                        world.step(crew, step)
                await settle()
                world.judge()
            await settle()
            world.judge_the_end(crew)

        run(backend, main)

    return law


@every_kind
@both_loops
def test_queue_keeps_its_laws_under_every_schedule(kind: Kind, backend: str) -> None:
    """They hold wherever a cancellation lands, and however a limit moves (AL6 to AL9, PO5)."""
    heavy(law_of_the_queue(kind, backend))()


class _Leaking(QueueingGuard):
    """A mutant: a permit that was granted to somebody who is then cancelled is lost."""

    __slots__ = ()

    def _abandon(self, waiter: Waiter) -> None:
        with self._lock:
            self._queue.leave(waiter)


class _Forgetful(QueueingGuard):
    """A mutant: a permit that comes back is free, and nobody is told."""

    __slots__ = ()

    def _hand_on(self) -> None:
        self._permits.give_back()


class _Barging(QueueingGuard):
    """A mutant: counts a permit that is handed on as free too."""

    __slots__ = ()

    def _hand_on(self) -> None:
        super()._hand_on()
        if self._queue:
            self._permits.in_use -= 1


class _TwiceSettled(QueueingGuard):
    """A mutant: takes every verdict for the first."""

    __slots__ = ()

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        super().settle(permit, verdict)
        permit.generation = 0
        super().settle(permit, verdict)


class _LastLine(WaitingLine):
    __slots__ = ()

    @property
    def first(self) -> tuple[Fraction, Waiter] | None:
        return self.last


class _LastFirst(QueueingGuard):
    """A mutant: serves the last first."""

    __slots__ = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as either has it
        super().__init__(*args, **kwargs)
        self._queue = _LastLine()


class _HandsOver(AdaptiveLimiter):
    """A mutant: gives a permit that comes back to the next, as if the limit never sank."""

    def _hand_on(self) -> None:
        first = self._queue.first
        if first is None:
            self._permits.give_back()
            return
        self._queue.leave(first[1])
        first[1].granted = True
        first[1].wake()


class _OneByOne(AdaptiveLimiter):
    """A mutant: lets in one for each that leaves, though the limit has grown by more."""

    def _hand_on(self) -> None:
        self._permits.give_back()
        first = self._queue.first
        if first is not None and self._permits.take_within(first[0]):
            self._queue.leave(first[1])
            first[1].granted = True
            first[1].wake()


class _Undivided(AdaptiveLimiter):
    """A mutant: every share is the whole."""

    def _admit(self, now_ns: int | None, share: Fraction) -> Permit | NotUntil:
        return super()._admit(now_ns, max(share, WHOLE))


class _Unforgetting(AdaptiveLimiter):
    """A mutant: learns from calls that were cancelled."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        if verdict is Verdict.CANCELLED and not permit.settled:
            self._machine.record(0, 0, 1, dropped=False)
        super().settle(permit, verdict)


def broken(flaw: Kind, kind: Kind) -> Kind:
    """Return a mutant of one of the classes."""
    return type(f"{flaw.__name__}{kind.__name__}", (flaw, kind), {})


MUTANTS = [
    *(broken(flaw, kind) for kind in KINDS for flaw in (_Leaking, _Forgetful, _Barging, _TwiceSettled, _LastFirst)),
    *(_HandsOver, _OneByOne, _Undivided, _Unforgetting),
]


@pytest.mark.parametrize("mutant", MUTANTS)
@both_loops
def test_law_of_the_queue_catches_mutants(mutant: Kind, backend: str) -> None:
    """A lost, idle, doubled, misdirected or twice returned permit is seen, and one too many."""
    assert_caught(law_of_the_queue(mutant, backend))
