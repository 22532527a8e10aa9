"""Waiters that are woken from anywhere, and the queue with a leader in each place."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from resilience import SystemClock
from resilience.parking import ParkingQueue, TaskWaiter, Waiter, async_waiter, running_loop, thread_waiter
from resilience.testing import ManualClock
from tests.resilience.support import Crew, SleepingClock, assert_caught, both_loops, in_thread, run, settle, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.clock import Clock

every_loop = pytest.mark.anyio
SECOND = 1_000_000_000


class Counting(Waiter):
    """A waiter that is nobody, and counts how often it was woken."""

    def __init__(self, place: object) -> None:
        super().__init__(place)
        self.woken = 0

    def wake(self) -> bool:
        self.woken += 1
        return True


# -- the queue ------------------------------------------------------------------------------------------------------


def law_of_the_queue(kind: type[ParkingQueue[Counting]]) -> Callable[[], None]:  # noqa: C901 - a model beside its queue
    """RL5, RL6: the queue is a list, and each place has a leader: its first, woken when it comes to lead."""

    @given(st.lists(st.tuples(st.sampled_from(["join", "join", "leave", "wake"]), st.integers(0, 5)), max_size=40))
    def law(steps: list[tuple[str, int]]) -> None:  # noqa: C901 - as above
        queue = kind()
        model: list[Counting] = []
        gone: list[Counting] = []

        def leaders() -> dict[object, Counting]:
            return {waiter.place: waiter for waiter in reversed(model)}

        for step, number in steps:
            before, counts = leaders(), {waiter: waiter.woken for waiter in model}
            if step == "join":
                # Places are compared by what they are, as event loops are.
                waiter = Counting(("place", number % 3))
                model.append(waiter)
                queue.join(waiter)
            elif step == "leave" and model:
                waiter = model.pop(number % len(model))
                gone.append(waiter)
                assert queue.leave(waiter)
                for place, leader in leaders().items():
                    assert leader.woken == counts[leader] + (before[place] is not leader)
            elif step == "leave" and gone:
                assert not queue.leave(gone[number % len(gone)])
            elif step == "wake":
                queue.wake_leaders()
                for waiter in model:
                    assert waiter.woken == counts[waiter] + (waiter in before.values())
            assert list(queue) == list(queue.waiters) == model
            assert len(queue) == len(model)
            assert queue.head is (model[0] if model else None)
            for waiter in model:
                assert waiter in queue
                assert queue.leads(waiter) == (leaders()[waiter.place] is waiter)
            for waiter in gone:
                assert waiter not in queue
                assert not queue.leads(waiter)
        assert len(queue._places) == len(leaders())

    return law


class _Unled(ParkingQueue[Counting]):
    """A mutant: whoever comes to lead is not told."""

    def leave(self, waiter: Counting) -> bool:
        woken = {other: other.woken for other in self}
        left = super().leave(waiter)
        for other, count in woken.items():
            other.woken = count
        return left


class _OneLeader(ParkingQueue[Counting]):
    """A mutant: only the head of the whole queue leads."""

    def leads(self, waiter: Counting) -> bool:
        return self.head is waiter


class _Stack(ParkingQueue[Counting]):
    """A mutant: last in, first out."""

    def join(self, waiter: Counting) -> None:
        super().join(waiter)
        self.waiters.move_to_end(waiter, last=False)


class _Hoarding(ParkingQueue[Counting]):
    """A mutant: keeps every place that anybody ever waited in."""

    def leave(self, waiter: Counting) -> bool:
        left = super().leave(waiter)
        self._places.setdefault(waiter.place, type(self.waiters)())
        return left

    def wake_leaders(self) -> None:
        for here in self._places.values():
            for waiter in list(here)[:1]:
                waiter.wake()


def test_queue_is_first_in_first_out_with_a_leader_in_each_place() -> None:
    """RL5, RL6: in every history of joining and leaving."""
    law_of_the_queue(ParkingQueue)()


@pytest.mark.parametrize("mutant", [_Unled, _OneLeader, _Stack, _Hoarding])
def test_law_of_the_queue_catches_mutants(mutant: type[ParkingQueue[Counting]]) -> None:
    """A leader that is not told, one leader for all places, a stack, and a leak are seen."""
    assert_caught(law_of_the_queue(mutant))


# -- waiters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_ns", [None, 5 * SECOND])
@pytest.mark.parametrize("make_clock", [SystemClock, ManualClock, SleepingClock])
@every_loop
async def test_wake_up_before_the_wait_is_not_lost(delay_ns: int | None, make_clock: Callable[[], Clock]) -> None:
    """A wake-up is sticky, waking twice is waking once, and it is used up by one wait."""
    clock = make_clock()
    waiter = async_waiter()
    assert waiter.wake()
    assert waiter.wake()
    await waiter.wait(clock, delay_ns)
    async with Crew() as crew:
        waiting = crew.start(lambda: waiter.wait(clock, delay_ns))
        await settle()
        assert not waiting.ended
        assert waiter.wake()
        assert waiter.wake()
        await settle()
        assert waiting.finished


@pytest.mark.parametrize("make_clock", [ManualClock, SleepingClock])
@every_loop
async def test_wait_ends_when_its_time_is_over(make_clock: Callable[[], ManualClock | SleepingClock]) -> None:
    """A wait with a delay ends by itself on any clock."""
    clock = make_clock()
    inner = clock if isinstance(clock, ManualClock) else clock.inner
    waiter = async_waiter()
    async with Crew() as crew:
        waiting = crew.start(lambda: waiter.wait(clock, 2 * SECOND))
        await settle()
        inner.advance(1.0)
        await settle()
        assert not waiting.ended
        inner.advance(1.0)
        await settle()
        assert waiting.finished
    assert inner.next_deadline() is None


@every_loop
async def test_wait_on_the_machines_clock_ends_by_itself() -> None:
    """A wait of a microsecond is soon over."""
    await async_waiter().wait(SystemClock(), 1_000)


@pytest.mark.parametrize("delay_ns", [None, SECOND])
@pytest.mark.parametrize("native", [False, True])
@every_loop
async def test_cancelled_wait_goes_on_as_a_cancellation(delay_ns: int | None, native: bool) -> None:  # noqa: FBT001
    """RL7: a wait that is cancelled raises what the library raises and leaves nothing on the clock."""
    clock = ManualClock()
    waiter = async_waiter()
    async with Crew() as crew:
        waiting = crew.start(lambda: waiter.wait(clock, delay_ns))
        await settle()
        waiting.cancel(native=native)
        await settle()
        assert waiting.cancelled
    assert clock.next_deadline() is None


@every_loop
async def test_wake_up_from_another_thread_arrives() -> None:
    """Any thread may wake a task."""
    waiter = async_waiter()
    async with Crew() as crew:
        waiting = crew.start(lambda: waiter.wait(SystemClock(), None))
        await settle()
        assert in_thread(waiter.wake)
        await until(lambda: waiting.ended)


@both_loops
def test_waiter_of_an_ended_loop_cannot_be_woken(backend: str) -> None:
    """Whoever wakes it is told so, from the loop's own thread or another, inside another loop or outside of any."""

    async def make() -> TaskWaiter:
        return async_waiter()

    waiter = run(backend, make)
    assert not waiter.wake()
    assert not in_thread(waiter.wake)

    async def wake() -> bool:
        return waiter.wake()

    for other in ("asyncio", "trio"):
        assert not run(other, wake)


def test_loop_that_moved_to_another_thread_is_woken_there() -> None:
    """RL6: a wake-up from the thread that a loop once ran in reaches the loop where it runs now."""
    loop = asyncio.new_event_loop()
    waiters: list[TaskWaiter] = []
    started = threading.Event()

    async def park() -> None:
        waiters.append(async_waiter())
        await waiters[0].wait(SystemClock(), None)

    async def start() -> asyncio.Task[None]:
        task = loop.create_task(park())
        await asyncio.sleep(0)
        return task

    task = loop.run_until_complete(start())

    async def finish() -> None:
        loop.call_soon(started.set)
        await task

    thread = threading.Thread(target=loop.run_until_complete, args=(finish(),))
    thread.start()
    started.wait()
    assert waiters[0].wake()
    thread.join()
    loop.close()


def test_threads_are_woken_and_time_out() -> None:
    """A thread's wake-up is sticky too; on every clock its time is over some time; no time is too long."""
    for clock in (SystemClock(), ManualClock(), SleepingClock()):
        waiter = thread_waiter()
        assert waiter.wake()
        waiter.wait_blocking(clock, 10**30 if isinstance(clock, SystemClock) else SECOND)
        assert waiter.wake()
        waiter.wait_blocking(clock, None)
    thread_waiter().wait_blocking(SystemClock(), 1_000)
    clock = ManualClock()
    waiter = thread_waiter()
    thread = threading.Thread(target=waiter.wait_blocking, args=(clock, SECOND))
    clock.call_later(0, thread.start)
    clock.advance(0)
    while clock.next_deadline() is None:
        threading.Event().wait(0.001)
    clock.advance(1.0)
    thread.join()


def test_thread_that_was_woken_leaves_no_timer() -> None:
    """A wait that ends before its time takes back what it had asked of the clock."""
    clock = ManualClock()
    waiter = thread_waiter()
    waiter.wake()
    waiter.wait_blocking(clock, SECOND)
    assert clock.next_deadline() is None


def test_running_loop_is_seen() -> None:
    """Plain code that is called in an event loop must not block; elsewhere it may."""

    async def ask() -> bool:
        return running_loop()

    assert not running_loop()
    assert run("asyncio", ask)
    assert run("trio", ask)
    assert not in_thread(running_loop)


def test_async_waiter_needs_an_event_loop() -> None:
    """Outside of an event loop there is no task to wait."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        async_waiter()


def test_place_that_is_kept_for_nobody_is_woken_in_vain() -> None:
    """It is served like any other: only who can never run again is passed over."""
    assert Waiter("place").wake()


def test_libraries_that_nobody_imported_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where trio or asyncio was never imported, nothing of it runs, and nothing is imported to find that out."""
    import sys

    assert trio is not None
    monkeypatch.delitem(sys.modules, "trio")
    with pytest.raises(RuntimeError, match="no running event loop"):
        async_waiter()
    assert not running_loop()
    monkeypatch.delitem(sys.modules, "asyncio")
    assert not running_loop()
