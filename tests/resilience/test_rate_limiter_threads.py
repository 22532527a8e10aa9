"""RateLimiter between threads and event loops, and when a waiting frame is dropped."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
from typing import TYPE_CHECKING

import pytest

from resilience import RateLimitedError, RateLimiter
from resilience.parking import async_waiter
from resilience.testing import ManualClock
from tests.resilience.subjects import emptied
from tests.resilience.support import (
    Crew,
    HookedClock,
    SleepingClock,
    both_loops,
    in_thread,
    run,
    settle,
    until,
    until_blocking,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


every_loop = pytest.mark.anyio


# -- threads and event loops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_clock", [ManualClock, SleepingClock])
def test_blocking_use_waits_its_turn(make_clock: type[ManualClock | SleepingClock]) -> None:
    """A thread blocks until its turn comes, on a clock that calls back as on one that can only sleep."""
    clock = make_clock()
    limiter = emptied(max_wait=1.0, clock=clock)

    @limiter
    def work() -> str:
        return "done"

    if isinstance(clock, SleepingClock):
        assert work() == "done"
        return
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    until_blocking(lambda: clock.next_deadline() is not None)
    with pytest.raises(RateLimitedError):
        work()
    clock.advance(1.0)
    thread.join()
    assert results == ["done"]


def test_blocking_wait_on_the_machines_clock() -> None:
    """On the system's clock a thread waits for the few microseconds that its token takes."""
    limiter = RateLimiter(100_000.0, 1, max_wait=60.0)
    for _ in range(3):
        limiter.admit_blocking()
    assert limiter.statistics().admitted == 3


@every_loop
async def test_waits_on_the_machines_clock() -> None:
    """RL10: on the system's clock, too, every turn comes, by the event loop's own timers."""
    limiter = RateLimiter(20_000.0, 1)
    async with Crew() as crew:
        jobs = [crew.start(lambda: limiter.acquire(max_wait=60.0)) for _ in range(5)]
        await until(lambda: all(job.ended for job in jobs))
    assert [job.result for job in jobs] == [True] * 5


@every_loop
async def test_waits_on_a_clock_that_cannot_call_back() -> None:
    """A clock with no more than the protocol's methods will do: its timeouts end the waits."""
    clock = SleepingClock()
    limiter = emptied(clock=clock)
    async with Crew() as crew:
        first = crew.start(lambda: limiter.acquire(max_wait=math.inf))
        second = crew.start(lambda: limiter.acquire(max_wait=math.inf))
        await settle()
        clock.inner.advance(1.0)
        await settle()
        assert first.ended != second.ended
        clock.inner.advance(1.0)
        await settle()
        assert first.result is second.result is True


def test_interrupted_thread_gives_back_its_place() -> None:
    """RL7: a thread whose wait raises leaves the queue."""

    class Interrupting(SleepingClock):
        def sleep_blocking(self, seconds: float, /) -> None:  # noqa: ARG002
            raise KeyboardInterrupt

    limiter = emptied(max_wait=60.0, clock=Interrupting())
    with pytest.raises(KeyboardInterrupt):
        limiter.admit_blocking()
    assert limiter.statistics().waiting == 0


def test_threads_never_admit_too_much() -> None:
    """RL1, RL8, RL9: of many threads that start together exactly the capacity gets in, and all are counted."""
    limiter = RateLimiter(1.0, 50, clock=ManualClock())
    barrier = threading.Barrier(4)
    admitted: list[int] = []

    def work() -> None:
        barrier.wait()
        admitted.append(sum(limiter.try_acquire() for _ in range(100)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == limiter.statistics().admitted == 50
    assert limiter.statistics().rejected == 350
    assert limiter.available == 0.0


class _Watched:
    """A lock that says when somebody has found it taken."""

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock
        self.found = threading.Event()

    def locked(self) -> bool:
        taken = self.lock.locked()
        if taken:
            self.found.set()
        return taken

    def acquire(self, *blocking: bool) -> bool:
        acquired = self.lock.acquire(*blocking)
        if not acquired:
            self.found.set()
        return acquired

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *error: object) -> None:
        self.lock.release()


@pytest.mark.parametrize("method", ["try_acquire", "admit_blocking"])
def test_lock_that_is_found_taken_is_waited_for_and_counted(method: str) -> None:
    """RL9: an admission in another thread waits for a few lines of code at most, and says how often it did."""
    limiter = RateLimiter(1.0, 5, clock=ManualClock())
    watched = _Watched(limiter._lock)
    limiter._lock = watched  # type: ignore[assignment]
    limiter._try_lock = watched.acquire  # type: ignore[assignment]
    with watched.lock:
        thread = threading.Thread(target=getattr(limiter, method))
        thread.start()
        watched.found.wait()
    thread.join()
    assert limiter.statistics().contended == 1
    assert limiter.statistics().admitted == 1


@pytest.mark.parametrize("backends", [("asyncio", "trio"), ("trio", "asyncio"), ("asyncio", "asyncio")])
def test_event_loops_share_one_queue(backends: tuple[str, str]) -> None:
    """RL5, RL6: waiters of two event loops are served in the order in which they came, whoever moves the time."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    order: list[str] = []

    def serve(name: str, backend: str) -> threading.Thread:
        async def main() -> None:
            assert await limiter.acquire(max_wait=math.inf)
            order.append(name)

        before = limiter.statistics().waiting
        thread = threading.Thread(target=run, args=(backend, main))
        thread.start()
        until_blocking(lambda: limiter.statistics().waiting == before + 1)
        return thread

    threads = [serve("first", backends[0]), serve("second", backends[1]), serve("third", backends[0])]
    for number, thread in enumerate(threads):
        clock.advance(1.0)
        thread.join()
        assert len(order) == number + 1
    assert order == ["first", "second", "third"]


@both_loops
def test_waiter_that_leaves_wakes_the_leader_of_another_loop(backend: str) -> None:
    """RL6: a large head that gives up in one event loop lets the small one behind it, in another, go at once."""
    clock = ManualClock()
    limiter = emptied(capacity=5, clock=clock)
    clock.advance(1.0)
    reservation = limiter.reserve(5)
    done = threading.Event()

    async def main() -> None:
        assert await limiter.acquire(2, max_wait=math.inf)
        done.set()

    thread = threading.Thread(target=run, args=(backend, main))
    thread.start()
    until_blocking(lambda: limiter.statistics().waiting == 2)
    reservation.cancel()
    # One token is there; the second comes after a second, long before the five that the head wanted.
    until_blocking(lambda: clock.next_deadline() == 2.0)
    clock.advance(1.0)
    thread.join()
    assert done.is_set()


def test_waiters_of_a_closed_asyncio_loop_are_passed_over() -> None:
    """RL6, RL8: what a loop leaves behind when it is closed is refunded, and those behind it go on."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    loop = asyncio.new_event_loop()
    abandoned = loop.create_task(limiter.acquire(max_wait=math.inf))
    loop.run_until_complete(asyncio.sleep(0))
    behind = limiter.reserve()
    loop.close()
    clock.advance(1.0)
    assert behind.ready_in == 0.0
    behind.cancel()
    assert limiter.available == 1.0
    assert limiter.statistics().waiting == 0
    abandoned._log_destroy_pending = False  # type: ignore[attr-defined]
    del abandoned
    gc.collect()
    assert limiter.available == 1.0


def test_waiter_of_an_ended_trio_run_is_passed_over() -> None:
    """RL6, RL8: a wait that was carried past the end of its trio run is refunded as well."""
    clock = ManualClock()
    limiter = emptied(clock=clock)

    async def leave_behind() -> None:
        # As `acquire` begins; a task of trio's cannot be left behind.
        assert limiter._join(async_waiter(), 1, None)

    run("trio", leave_behind)
    behind = limiter.reserve()
    assert behind.ready_in == 2.0
    clock.advance(1.0)
    assert behind.ready_in == 0.0


# -- frames that are dropped ----------------------------------------------------------------------------------------


async def _parked(limiter: RateLimiter) -> None:
    await limiter.acquire(max_wait=math.inf)


def _park_by_hand(limiter: RateLimiter) -> tuple[asyncio.AbstractEventLoop, Coroutine[object, object, None]]:
    """Return a frame that waits, though no task holds it; an event loop only lends its futures."""
    loop = asyncio.new_event_loop()
    frame = _parked(limiter)

    async def start() -> None:
        frame.send(None)

    loop.run_until_complete(start())
    return loop, frame


def test_dropped_frame_gives_back_its_place() -> None:
    """RL7: a wait that is garbage leaves the queue."""
    limiter = emptied(clock=ManualClock())
    loop, frame = _park_by_hand(limiter)
    assert limiter.statistics().waiting == 1
    del frame
    gc.collect()
    assert limiter.statistics().waiting == 0
    loop.close()


ASKING: dict[str, Callable[[RateLimiter], object]] = {
    "try_acquire": lambda limiter: limiter.try_acquire(),
    # A late reading, so that it is taken again under the lock.
    "admit": lambda limiter: limiter.admit(-1),
    "retry_after": lambda limiter: limiter.retry_after(),
    "available": lambda limiter: limiter.available,
    "update": lambda limiter: limiter.update(rate=2.0),
    "schedule": lambda limiter: limiter.schedule(),
    "reserve": lambda limiter: limiter.reserve().cancel(),
}


@pytest.mark.parametrize("ask", list(ASKING))
def test_frame_dropped_inside_a_critical_section_does_not_deadlock(ask: str) -> None:
    """RL7: the collector may strike in the thread that holds the lock; the place comes back when that is free."""
    clock = HookedClock()
    limiter = emptied(clock=clock)
    loop, frame = _park_by_hand(limiter)
    frames = [frame]
    del frame
    # The last reference goes while the limiter reads the clock, under its lock.
    clock.hook = frames.clear
    ASKING[ask](limiter)
    assert not frames
    assert not [waiter for waiter in limiter._queue if waiter.place is loop]
    loop.close()


def test_reservation_is_asked_while_a_frame_is_dropped() -> None:
    """RL7: asking a reservation for its time also lets in what had to wait for the lock."""
    clock = HookedClock()
    limiter = emptied(clock=clock)
    reservation = limiter.reserve()
    loop, frame = _park_by_hand(limiter)
    frames = [frame]
    del frame
    clock.hook = frames.clear
    assert reservation.ready_in == 1.0
    assert limiter.statistics().waiting == 1
    loop.close()


def test_dropped_grant_goes_to_the_next() -> None:
    """RL7: a frame that was granted and then dropped gives its token to whoever is next."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    loop, frame = _park_by_hand(limiter)
    clock.advance(1.0)
    behind = limiter.reserve()
    assert behind.ready_in == 1.0
    del frame
    gc.collect()
    assert behind.ready_in == 0.0
    loop.close()


def test_waits_only_where_an_event_loop_runs() -> None:
    """Outside of an event loop `acquire` that would have to wait is a RuntimeError, and takes no place."""
    limiter = emptied(clock=ManualClock())
    with pytest.raises(RuntimeError, match="no running event loop"):
        limiter.acquire(max_wait=1.0).send(None)
    assert limiter.statistics().waiting == 0
    assert in_thread(lambda: limiter.statistics().waiting) == 0
