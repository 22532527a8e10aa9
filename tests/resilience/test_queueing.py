"""Guards that count permits and let calls wait for one: the same laws for Bulkhead and for AdaptiveLimiter."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
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
from tests.resilience.limiters import fixed, noted
from tests.resilience.support import (
    NOT_A_COUNT,
    NOT_NEGATIVE,
    Crew,
    HookedClock,
    Job,
    assert_caught,
    assert_refuses,
    both_loops,
    brief,
    heavy,
    run,
    settle,
    until_blocking,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from resilience import Guard
    from resilience.parking import Waiter

every_loop = pytest.mark.anyio
Kind: TypeAlias = type[QueueingGuard]
Step: TypeAlias = tuple[str, int, int]

KINDS: tuple[Kind, ...] = (Bulkhead, AdaptiveLimiter)
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: Kind, limit: int, **options: Any) -> QueueingGuard:  # noqa: ANN401 - whatever both take
    """Make a guard of so many permits."""
    first: Any = fixed(limit) if issubclass(kind, AdaptiveLimiter) else limit
    return kind(first, **options)


def take(guard: QueueingGuard) -> Permit:
    """Take a permit, which is there."""
    permit = guard.try_admit()
    assert permit is not None
    return permit


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


# -- threads, loops and frames that go away --------------------------------------------------------------------------


@every_kind
def test_threads_wait_their_turn(kind: Kind) -> None:
    """A thread blocks until a permit is granted to it, or until its time is over."""
    clock = ManualClock()
    guard = make(kind, 1, max_queue=2, max_wait=5.0, clock=clock)
    permit = guard.admit_blocking()
    results: list[object] = []

    def work() -> None:
        try:
            with guard:
                results.append("in")
        except RejectedError as error:
            results.append(error)

    first = threading.Thread(target=work)
    first.start()
    until_blocking(lambda: guard.statistics().waiting == 1)
    permit.success()
    first.join()
    assert results == ["in"]
    guard.admit_blocking()
    second = threading.Thread(target=work)
    second.start()
    until_blocking(lambda: clock.next_deadline() is not None)
    clock.advance(5.0)
    second.join()
    assert isinstance(results[1], guard.error)


@every_kind
def test_threads_are_never_too_many(kind: Kind) -> None:
    """With many threads at once no more than the limit are inside, all get their turn, and every permit comes back."""
    guard = make(kind, 3, max_queue=10)
    lock, barrier = threading.Lock(), threading.Barrier(8)
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        barrier.wait()
        for _ in range(20):
            with guard:
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 3
    assert (guard.statistics().admitted, guard.statistics().in_use) == (160, 0)


@every_kind
def test_interrupted_thread_leaves_the_queue(kind: Kind) -> None:
    """A thread whose wait raises takes no permit."""

    class Interrupting(ManualClock):
        def call_later(self, delay_ns: int, callback: Callable[[], object], /) -> Callable[[], None]:  # noqa: ARG002
            raise KeyboardInterrupt

    guard = make(kind, 1, max_queue=1, max_wait=1.0, clock=Interrupting())
    permit = guard.admit_blocking()
    with pytest.raises(KeyboardInterrupt):
        guard.admit_blocking()
    permit.success()
    assert guard.available == 1


@every_kind
@both_loops
def test_permit_goes_to_a_waiter_of_another_event_loop(kind: Kind, backend: str) -> None:
    """A permit that comes back in one thread is handed to a task in another's event loop."""
    guard = make(kind, 1, max_queue=1)
    permit = guard.admit_blocking()

    async def main() -> None:
        async with guard:
            assert guard.available == 0

    thread = threading.Thread(target=run, args=(backend, main))
    thread.start()
    until_blocking(lambda: guard.statistics().waiting == 1)
    permit.success()
    thread.join()
    assert guard.available == 1


def _park_by_hand(guard: QueueingGuard) -> tuple[asyncio.AbstractEventLoop, list[object]]:
    loop = asyncio.new_event_loop()
    frame = guard.admit_waiting()

    async def start() -> None:
        frame.send(None)

    loop.run_until_complete(start())
    return loop, [frame]


@every_kind
def test_waiters_of_a_closed_loop_are_passed_over(kind: Kind) -> None:
    """A permit is not handed to a task that can never run again."""
    guard = make(kind, 1, max_queue=3)
    permit = guard.admit_blocking()
    loop, frames = _park_by_hand(guard)
    loop.close()
    permit.success()
    assert (guard.available, guard.statistics().waiting) == (1, 0)
    frames.clear()
    gc.collect()
    assert guard.available == 1


@every_kind
def test_dropped_frame_hands_on_what_it_was_granted(kind: Kind) -> None:
    """A wait that is garbage leaves the queue, or passes its permit on; it was no call, and teaches nothing."""
    guard = make(kind, 1, max_queue=3)
    notebook = noted(guard) if isinstance(guard, AdaptiveLimiter) else None
    permit = guard.admit_blocking()
    loop, frames = _park_by_hand(guard)
    other, others = _park_by_hand(guard)
    permit.success()
    assert (guard.available, guard.statistics().waiting) == (0, 1)
    frames.clear()
    gc.collect()
    assert (guard.available, guard.statistics().waiting) == (0, 0)
    others.clear()
    gc.collect()
    assert (guard.available, guard.statistics().admitted) == (1, 1)
    assert notebook is None or len(notebook.samples) == 1
    loop.close()
    other.close()


@every_kind
def test_frame_dropped_inside_a_critical_section_does_not_deadlock(kind: Kind) -> None:
    """The collector may strike in the thread that holds the lock; the place comes back when that is free."""
    clock = HookedClock()
    guard = make(kind, 1, max_queue=3, max_wait=math.pi, clock=clock)
    guard.admit_blocking()
    loop, frames = _park_by_hand(guard)

    def hook_on_the_second_reading() -> None:
        clock.hook = frames.clear

    # Both readings of whoever joins the queue are made under the lock.
    clock.hook = hook_on_the_second_reading
    other, others = _park_by_hand(guard)
    assert not frames
    assert guard.statistics().waiting == 1
    others.clear()
    gc.collect()
    loop.close()
    other.close()


@every_kind
def test_permit_of_a_call_that_is_closed_inside_a_critical_section_comes_back_with_its_end(kind: Kind) -> None:
    """Whoever enters or leaves next sees to it, and whoever waits for it hears of it."""
    guard = make(kind, 3)
    first, second, third = (take(guard) for _ in range(3))
    with guard._lock:
        guard.settle_exception(first, GeneratorExit())
    assert guard.statistics().in_use == 3
    assert guard.try_admit() is None
    assert guard.statistics().in_use == 2
    with guard._lock:
        guard.settle_exception(second, GeneratorExit())
    third.success()
    assert guard.statistics().in_use == 0


@every_kind
def test_found_lock_is_counted(kind: Kind) -> None:
    """An admission that finds the lock taken says so."""
    guard = make(kind, 1)
    lock, found = guard._lock, threading.Event()

    class Watched:
        """The lock, which tells when it is found taken; guards ask it one way or the other."""

        def locked(self) -> bool:
            found.set()
            return True

        def acquire(self, *blocking: bool) -> bool:
            acquired = lock.acquire(*blocking)
            if not acquired:
                found.set()
            return acquired

        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *error: object) -> None:
            lock.release()

    watched = Watched()
    guard._lock = watched  # type: ignore[assignment]
    guard._try_lock = watched.acquire  # type: ignore[assignment]
    with lock:
        thread = threading.Thread(target=guard.try_admit)
        thread.start()
        found.wait()
    thread.join()
    assert guard.statistics().contended == 1
