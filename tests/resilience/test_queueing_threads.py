"""Guards that let calls wait for a permit: threads, several event loops, and frames that go away (PO5)."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
from typing import TYPE_CHECKING

import pytest

from resilience import AdaptiveLimiter, RejectedError
from resilience.testing import ManualClock
from tests.resilience.limiters import Kind, every_kind, make, noted, take
from tests.resilience.support import HookedClock, both_loops, run, until_blocking

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilience.queueing import QueueingGuard


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
@pytest.mark.parametrize("settles", [False, True])
def test_found_lock_is_counted(kind: Kind, *, settles: bool) -> None:
    """An admission, or a settlement, that finds the lock taken says so."""
    guard = make(kind, 1)
    permit = guard.try_admit() if settles else None
    lock, found = guard._lock, threading.Event()

    def acquire(*blocking: bool) -> bool:
        acquired = lock.acquire(*blocking)
        if not acquired:
            found.set()
        return acquired

    guard._try_lock = acquire  # type: ignore[assignment]
    with lock:
        thread = threading.Thread(target=guard.try_admit if permit is None else permit.success)
        thread.start()
        found.wait()
    thread.join()
    assert guard.statistics().contended == 1
    assert guard.statistics().in_use == (not settles)
