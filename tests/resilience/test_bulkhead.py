"""Bulkhead: so many at a time, a bounded queue, and permits that always come back."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import Bulkhead, BulkheadFullError, NotUntil, Permit
from resilience.testing import ManualClock
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

    from resilience.outcome import Verdict
    from resilience.parking import Waiter

every_loop = pytest.mark.anyio
Step: TypeAlias = tuple[str, int, int]


@pytest.mark.parametrize("bad", NOT_A_COUNT, ids=brief)
def test_refuses_bad_counts(bad: object) -> None:
    """A count that is none is a ValueError that names it."""
    assert_refuses("max_concurrent", bad, Bulkhead)
    if bad != 0:
        assert_refuses("max_queue", bad, partial(Bulkhead, 1))


@pytest.mark.parametrize("bad", NOT_NEGATIVE, ids=brief)
def test_refuses_bad_waits(bad: object) -> None:
    """None waits as long as it takes; any other wait is a finite number of at least 0."""
    assert_refuses("max_wait", bad, partial(Bulkhead, 1))


@every_loop
async def test_refuses_what_is_too_much() -> None:
    """Without a queue, what finds no permit is refused at once, and nobody can say when to come back."""
    bulkhead = Bulkhead(1, name="pool")
    assert not bulkhead.waits
    async with bulkhead as permit:
        assert isinstance(permit, Permit)
        assert bulkhead.available == 0
        assert bulkhead.try_admit() is None
        with pytest.raises(BulkheadFullError, match=r"^pool is full$") as caught:
            await bulkhead.admit_waiting()
        assert caught.value.retry_after is None
        with pytest.raises(BulkheadFullError):
            bulkhead.admit_blocking()
        assert bulkhead.admit(0) == NotUntil(None)
    found = bulkhead.try_admit()
    assert found is not None
    found.success()
    found.failure()
    assert bulkhead.available == 1
    statistics = bulkhead.statistics()
    assert (statistics.admitted, statistics.rejected, statistics.waiting, statistics.in_use) == (2, 3, 0, 0)
    assert (await bulkhead.admit_waiting()).settled is False


@every_loop
async def test_queue_is_bounded_and_waits_no_longer_than_it_may() -> None:
    """max_queue calls wait, for max_wait each; in an event loop plain code does not wait."""
    clock = ManualClock()
    bulkhead = Bulkhead(1, max_queue=1, max_wait=2.0, clock=clock)
    permit = bulkhead.try_admit()
    assert permit is not None
    async with Crew() as crew:
        waiting = crew.start(bulkhead.admit_waiting)
        await settle()
        with pytest.raises(BulkheadFullError):
            await bulkhead.admit_waiting()
        with pytest.raises(BulkheadFullError):
            bulkhead.admit_blocking()
        clock.advance(1.999)
        await settle()
        assert not waiting.ended
        clock.advance(0.001)
        await settle()
        assert isinstance(waiting.error, BulkheadFullError)
        forbearing = Bulkhead(1, max_queue=1, max_wait=0, clock=clock)
        assert isinstance(forbearing.admit(0), Permit)
        with pytest.raises(BulkheadFullError):
            await forbearing.admit_waiting()


class World:
    """A bulkhead, those who want in, and the laws."""

    LIMIT, QUEUE, WAIT = 2, 4, 3

    def __init__(self, kind: type[Bulkhead]) -> None:
        self.clock = ManualClock()
        self.bulkhead = kind(self.LIMIT, max_queue=self.QUEUE, max_wait=float(self.WAIT), clock=self.clock)
        self.inside: list[int] = []
        self.order: list[int] = []
        self.asked: list[Job] = []
        self.cancelled: list[Job] = []
        self.releases: dict[int, anyio.Event] = {}

    async def work(self, cell: list[Job]) -> None:
        """Go in and stay until released."""
        number = len(self.asked)
        self.asked.append(cell[0])
        self.releases[number] = anyio.Event()
        async with self.bulkhead:
            self.inside.append(number)
            self.order.append(number)
            assert len(self.inside) <= self.LIMIT
            try:
                await self.releases[number].wait()
            finally:
                self.inside.remove(number)

    def step(self, crew: Crew, step: Step) -> None:
        """Take one step during which no other task runs."""
        name, first, second = step
        if name == "start":
            cell: list[Job] = []
            cell.append(crew.start(lambda: self.work(cell)))
        elif name == "release" and self.inside:
            self.releases[self.inside[first % len(self.inside)]].set()
        elif name == "cancel" and crew.jobs:
            job = crew.jobs[first % len(crew.jobs)]
            job.cancel(native=bool(second))
            self.cancelled.append(job)
        elif name == "try":
            waiting = self.bulkhead.statistics().waiting
            permit = self.bulkhead.try_admit()
            if permit is not None:
                # Nobody overtakes those who wait; and what is cancelled at once goes to the next.
                assert not waiting
                permit.cancelled()

    def judge(self) -> None:
        """Judge a moment at which everybody waits."""
        statistics = self.bulkhead.statistics()
        out = [number for number, job in enumerate(self.asked) if not job.ended and number not in self.inside]
        assert statistics.in_use == len(self.inside) <= self.LIMIT
        assert self.bulkhead.available == self.LIMIT - len(self.inside)
        assert statistics.waiting == len(out) <= self.QUEUE
        # No permit lies idle while somebody waits, and nobody was let in before one who came earlier and still waits.
        assert not out or not self.bulkhead.available
        assert not out or not self.order or max(self.order) < min(out)
        assert all(job.ended for job in self.cancelled)
        assert all(job.finished != job.cancelled for job in self.cancelled if job.error is None)


def law_of_the_bulkhead(kind: type[Bulkhead], backend: str) -> Callable[[], None]:
    """At most so many inside, in the order in which they came; no permit idle while one waits; all come back."""

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("start"), st.just(0), st.just(0)),
                st.tuples(st.just("start"), st.just(0), st.just(0)),
                st.tuples(st.just("release"), st.integers(0, 2), st.just(0)),
                st.tuples(st.just("cancel"), st.integers(0, 12), st.integers(0, 1)),
                st.tuples(st.sampled_from(["settle", "try"]), st.just(0), st.just(0)),
                st.tuples(st.just("advance"), st.sampled_from([1, 2, 3]), st.just(0)),
            ),
            min_size=6,
            max_size=24,
        )
    )
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
            assert all(job.error is None or isinstance(job.error, BulkheadFullError) for job in crew.jobs)
            assert world.bulkhead.statistics().in_use == world.bulkhead.statistics().waiting == 0

        run(backend, main)

    return law


@both_loops
def test_bulkhead_keeps_its_laws_under_every_schedule(backend: str) -> None:
    """The laws hold wherever a cancellation lands, also between a hand-off and its resumption (PO5)."""
    heavy(law_of_the_bulkhead(Bulkhead, backend))()


class _Leaking(Bulkhead):
    """A mutant: a permit that was handed to somebody who is then cancelled is lost."""

    def _abandon(self, waiter: Waiter) -> None:
        with self._lock:
            self._queue.leave(waiter)


class _Forgetful(Bulkhead):
    """A mutant: a permit that comes back is free, and nobody is told."""

    def _hand_on(self) -> None:
        self._permits.give_back()


class _Barging(Bulkhead):
    """A mutant: counts a permit that is handed on as free too."""

    def _hand_on(self) -> None:
        super()._hand_on()
        if self._queue:
            self._permits.in_use -= 1


class _TwiceSettled(Bulkhead):
    """A mutant: takes every verdict for the first."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        super().settle(permit, verdict)
        super().settle(Permit(self), verdict)


@pytest.mark.parametrize("mutant", [_Leaking, _Forgetful, _Barging, _TwiceSettled])
@both_loops
def test_law_of_the_bulkhead_catches_mutants(mutant: type[Bulkhead], backend: str) -> None:
    """A lost, idle, doubled or twice returned permit is seen."""
    assert_caught(law_of_the_bulkhead(mutant, backend))


def test_threads_wait_their_turn() -> None:
    """A thread blocks until a permit is handed to it, or until its time is over."""
    clock = ManualClock()
    bulkhead = Bulkhead(1, max_queue=2, max_wait=5.0, clock=clock)
    permit = bulkhead.admit_blocking()
    results: list[object] = []

    def work() -> None:
        try:
            with bulkhead:
                results.append("in")
        except BulkheadFullError as error:
            results.append(error)

    first = threading.Thread(target=work)
    first.start()
    until_blocking(lambda: bulkhead.statistics().waiting == 1)
    permit.success()
    first.join()
    assert results == ["in"]
    bulkhead.admit_blocking()
    second = threading.Thread(target=work)
    second.start()
    until_blocking(lambda: clock.next_deadline() is not None)
    clock.advance(5.0)
    second.join()
    assert isinstance(results[1], BulkheadFullError)


def test_threads_are_never_too_many() -> None:
    """With many threads at once no more than the limit are inside, and all get their turn."""
    bulkhead = Bulkhead(3, max_queue=10)
    lock, barrier = threading.Lock(), threading.Barrier(8)
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        barrier.wait()
        for _ in range(20):
            with bulkhead:
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
    assert bulkhead.statistics().admitted == 160
    assert bulkhead.statistics().in_use == 0


def test_interrupted_thread_leaves_the_queue() -> None:
    """A thread whose wait raises takes no permit."""

    class Interrupting(ManualClock):
        def call_later(self, delay_ns: int, callback: Callable[[], object], /) -> Callable[[], None]:  # noqa: ARG002
            raise KeyboardInterrupt

    bulkhead = Bulkhead(1, max_queue=1, max_wait=1.0, clock=Interrupting())
    permit = bulkhead.admit_blocking()
    with pytest.raises(KeyboardInterrupt):
        bulkhead.admit_blocking()
    permit.success()
    assert bulkhead.available == 1


@both_loops
def test_permit_goes_to_a_waiter_of_another_event_loop(backend: str) -> None:
    """A permit that comes back in one thread is handed to a task in another's event loop."""
    bulkhead = Bulkhead(1, max_queue=1)
    permit = bulkhead.admit_blocking()

    async def main() -> None:
        async with bulkhead:
            assert bulkhead.available == 0

    thread = threading.Thread(target=run, args=(backend, main))
    thread.start()
    until_blocking(lambda: bulkhead.statistics().waiting == 1)
    permit.success()
    thread.join()
    assert bulkhead.available == 1


def _park_by_hand(bulkhead: Bulkhead) -> tuple[asyncio.AbstractEventLoop, list[object]]:
    loop = asyncio.new_event_loop()
    frame = bulkhead.admit_waiting()

    async def start() -> None:
        frame.send(None)

    loop.run_until_complete(start())
    return loop, [frame]


def test_waiters_of_a_closed_loop_are_passed_over() -> None:
    """A permit is not handed to a task that can never run again."""
    bulkhead = Bulkhead(1, max_queue=3)
    permit = bulkhead.admit_blocking()
    loop, frames = _park_by_hand(bulkhead)
    loop.close()
    permit.success()
    assert (bulkhead.available, bulkhead.statistics().waiting) == (1, 0)
    frames.clear()
    gc.collect()
    assert bulkhead.available == 1


def test_dropped_frame_hands_on_what_it_was_handed() -> None:
    """A wait that is garbage leaves the queue, or passes its permit on."""
    bulkhead = Bulkhead(1, max_queue=3)
    permit = bulkhead.admit_blocking()
    loop, frames = _park_by_hand(bulkhead)
    other, others = _park_by_hand(bulkhead)
    permit.success()
    assert (bulkhead.available, bulkhead.statistics().waiting) == (0, 1)
    frames.clear()
    gc.collect()
    assert (bulkhead.available, bulkhead.statistics().waiting) == (0, 0)
    others.clear()
    gc.collect()
    assert bulkhead.available == 1
    loop.close()
    other.close()


def test_frame_dropped_inside_a_critical_section_does_not_deadlock() -> None:
    """The collector may strike in the thread that holds the lock; the place comes back when that is free."""
    clock = HookedClock()
    bulkhead = Bulkhead(1, max_queue=3, max_wait=math.pi, clock=clock)
    bulkhead.admit_blocking()
    loop, frames = _park_by_hand(bulkhead)

    def hook_on_the_second_reading() -> None:
        clock.hook = frames.clear

    # The first reading is the one before `admit`; the second is made under the lock.
    clock.hook = hook_on_the_second_reading
    other, others = _park_by_hand(bulkhead)
    assert not frames
    assert bulkhead.statistics().waiting == 1
    others.clear()
    gc.collect()
    loop.close()
    other.close()


def test_found_lock_is_counted() -> None:
    """An admission that finds the lock taken says so."""
    bulkhead = Bulkhead(1)
    lock, found = bulkhead._lock, threading.Event()

    class Watched:
        def locked(self) -> bool:
            found.set()
            return True

        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *error: object) -> None:
            lock.release()

    bulkhead._lock = Watched()  # type: ignore[assignment]
    with lock:
        thread = threading.Thread(target=bulkhead.try_admit)
        thread.start()
        found.wait()
    thread.join()
    assert bulkhead.statistics().contended == 1
