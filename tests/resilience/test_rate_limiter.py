"""RateLimiter: acquiring, reserving, reconfiguring, guarding calls, threads, several event loops, dropped frames."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience import NotUntil, Permit, Policy, RateLimitedError, RateLimiter, RejectedError
from resilience.machines.decision import NeverFits
from resilience.outcome import Verdict
from resilience.parking import async_waiter
from resilience.telemetry import subscribe
from resilience.testing import ManualClock
from tests.resilience.support import (
    NOT_NEGATIVE,
    NOT_POSITIVE,
    Crew,
    HookedClock,
    SleepingClock,
    assert_caught,
    assert_refuses,
    both_loops,
    brief,
    in_thread,
    run,
    settle,
    until,
    until_blocking,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from resilience.clock import Clock

every_loop = pytest.mark.anyio


def emptied(rate: float = 1.0, capacity: float = 1.0, *, max_wait: float = 0.0, clock: Clock) -> RateLimiter:
    """Return a limiter without a token left."""
    limiter = RateLimiter(rate, capacity, max_wait=max_wait, clock=clock)
    assert limiter.try_acquire(capacity)
    return limiter


# -- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", NOT_POSITIVE, ids=brief)
def test_refuses_bad_rates_capacities_and_costs(bad: object) -> None:
    """What is no positive finite number is a ValueError that names the argument, wherever it is given."""
    assert_refuses("rate", bad, partial(RateLimiter, capacity=1))
    assert_refuses("capacity", bad, partial(RateLimiter, 1.0))
    limiter = RateLimiter(1.0, 1, clock=ManualClock())
    for method in (
        limiter.try_acquire,
        limiter.reserve,
        limiter.schedule,
        limiter.retry_after,
        partial(limiter.admit, 0),
    ):
        assert_refuses("cost", bad, method)
    if bad is not None:
        assert_refuses("rate", bad, limiter.update)
        assert_refuses("capacity", bad, limiter.update)
    assert limiter.statistics().admitted == limiter.statistics().rejected == 0
    assert (limiter.rate, limiter.capacity, limiter.available) == (1.0, 1, 1.0)


@pytest.mark.parametrize("bad", [*NOT_NEGATIVE, None], ids=brief)
@every_loop
async def test_refuses_bad_waits(bad: object) -> None:
    """A wait that is no number of at least 0 is refused before anything is taken."""
    assert_refuses("max_wait", bad, partial(RateLimiter, 1.0, 1)) if bad is not math.inf else None
    limiter = RateLimiter(1.0, 1, clock=ManualClock())
    if bad is not None and bad is not math.inf:
        with pytest.raises(ValueError, match="max_wait must be"):
            await limiter.acquire(max_wait=bad)  # type: ignore[arg-type]
    assert limiter.available == 1.0


def test_refuses_a_name_that_is_no_string() -> None:
    """The name goes into errors and metrics, so it is a string."""
    with pytest.raises(ValueError, match="name must be a string, not 3"):
        RateLimiter(1.0, 1, name=3)  # type: ignore[arg-type]


@every_loop
async def test_cost_above_the_capacity_is_refused_at_once() -> None:
    """RL2: what can never be admitted is a ValueError, also behind others who wait, and is never queued."""
    limiter = emptied(capacity=2, clock=ManualClock())
    limiter.reserve(2)
    for method in (limiter.try_acquire, limiter.reserve, limiter.schedule, limiter.retry_after):
        with pytest.raises(ValueError, match="cost must be at most the capacity of 2, not 3"):
            method(3)
    with pytest.raises(ValueError, match="at most the capacity"):
        await limiter.acquire(3, max_wait=math.inf)
    with pytest.raises(ValueError, match="at most the capacity"):
        await limiter.admit_waiting(3)
    with pytest.raises(ValueError, match="at most the capacity"):
        limiter.admit_blocking(3)
    assert limiter.admit(0, 3) == NeverFits(3, 2)
    assert limiter.statistics().waiting == 1


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e308])
@every_loop
async def test_extreme_rates_have_answers(rate: float) -> None:
    """No positive rate makes a refusal overflow: what takes longer than a float can say takes infinitely long."""
    limiter = RateLimiter(rate, 1, clock=ManualClock())
    assert await limiter.acquire(max_wait=1e300)
    if rate < 1:
        assert not limiter.try_acquire()
        assert not await limiter.acquire(max_wait=1e290)
        assert limiter.retry_after() > 1e290
        with pytest.raises(RateLimitedError):
            limiter.admit_blocking()


# -- acquiring ------------------------------------------------------------------------------------------------------


@every_loop
async def test_acquire_refuses_at_once_what_comes_too_late() -> None:
    """Whoever cannot have his tokens within max_wait hears so now, and takes nobody's place."""
    clock = ManualClock()
    limiter = emptied(clock=clock, max_wait=2.0)
    assert limiter.waits
    assert not await limiter.acquire(max_wait=0.999999999)
    assert not await limiter.acquire(max_wait=0)
    assert limiter.statistics().rejected == 2
    async with Crew() as crew:
        first = crew.start(limiter.acquire)
        await settle()
        second = crew.start(limiter.acquire)
        await settle()
        # Both wait; a third would be due after 3 s.
        assert not await limiter.acquire()
        assert limiter.retry_after() == 3.0
        clock.advance(1.0)
        await settle()
        assert (first.result, second.ended) == (True, False)
        clock.advance(1.0)
        await settle()
        assert second.result is True


@every_loop
async def test_fast_path_is_no_checkpoint() -> None:
    """RL9: what is admitted or refused at once lets no cancellation in, and no other task run."""
    limiter = RateLimiter(1.0, 1, clock=ManualClock())
    with anyio.CancelScope() as scope:
        scope.cancel()
        assert await limiter.acquire()
        assert not await limiter.acquire()
        assert not limiter.try_acquire()
    assert not scope.cancelled_caught


def law_of_telling(make: Callable[[ManualClock], RateLimiter]) -> Callable[[], None]:
    """RL10: whoever waits exactly as told is admitted then, also behind reservations that nobody has come for."""

    @given(
        st.lists(st.tuples(st.sampled_from(["try", "reserve", "schedule", "advance"]), st.integers(1, 24))),
        st.integers(1, 8),
    )
    def law(steps: list[tuple[str, int]], quarters: int) -> None:
        clock = ManualClock()
        limiter = make(clock)
        for step, amount in steps:
            if step == "advance":
                clock.advance(amount / 4)
            elif step == "try":
                limiter.try_acquire(min(amount, 8) / 4)
            elif step == "reserve":
                limiter.reserve(min(amount, 8) / 4)
            else:
                limiter.schedule(min(amount, 8) / 4)
        told = limiter.retry_after(quarters / 4)
        if told > 0:
            assert not limiter.try_acquire(quarters / 4)
        clock.advance(told)
        assert limiter.try_acquire(quarters / 4)

    return law


class _Unpumped(RateLimiter):
    """A mutant, and once the code: does not let those who are due go first before it says when."""

    def retry_after(self, cost: float = 1) -> float:
        with self._lock:
            at_ns = self._bucket.ready_at(self._units(cost), self._queued_units)
            return max(0, at_ns - self._line.at(self.clock.monotonic_ns())) / 1e9


class _Jumpy(RateLimiter):
    """A mutant: tells the time of one who need not queue."""

    def retry_after(self, cost: float = 1) -> float:
        at_ns = self._bucket.ready_at(self._units(cost))
        return max(0, at_ns - self._line.at(self.clock.monotonic_ns())) / 1e9


def test_waiting_as_told_is_admitted() -> None:
    """RL10: `retry_after` is neither too early nor too late."""
    law_of_telling(lambda clock: RateLimiter(1.0, 2, clock=clock))()


@pytest.mark.parametrize("mutant", [_Unpumped, _Jumpy])
def test_law_of_telling_catches_mutants(mutant: type[RateLimiter]) -> None:
    """Forgetting those who are due, or those who queue, is seen."""
    assert_caught(law_of_telling(lambda clock: mutant(1.0, 2, clock=clock)))


def test_late_reading_of_another_thread_mints_nothing() -> None:
    """RL1, RL3: a thread that read the clock, lost its turn and then asks does not put the limiter's time ahead."""
    clock = ManualClock()
    limiter = emptied(capacity=10, clock=clock)
    overtaken = clock.monotonic_ns()
    clock.advance(5.0)
    assert limiter.try_acquire(5)
    decision = limiter.admit(overtaken)
    assert decision == NotUntil(6_000_000_000)
    assert isinstance(limiter.refuse(decision), RateLimitedError)
    assert limiter.available == 0.0


# -- schedule and reserve -------------------------------------------------------------------------------------------


def test_schedule_gives_one_turn_after_another() -> None:
    """Each scheduled turn comes when the tokens are there, and what comes later queues behind it."""
    clock = ManualClock()
    limiter = RateLimiter(1.0, 2, clock=clock)
    assert [limiter.schedule() for _ in range(5)] == [0.0, 0.0, 1.0, 2.0, 3.0]
    assert limiter.retry_after() == 4.0
    assert not limiter.try_acquire()
    clock.advance(4.0)
    assert limiter.try_acquire()
    assert limiter.statistics().admitted == 6


def test_scheduled_turn_is_used_when_it_is_due() -> None:
    """RL11: a turn that nobody looked after for long costs its token at its own instant, not when it is noticed."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    assert limiter.schedule() == 1.0
    clock.advance(10.0)
    assert limiter.try_acquire()


def test_scheduled_turns_live_through_an_update() -> None:
    """New terms move the turns that are still to come; one that no longer fits is given up, and the next moves up."""
    clock = ManualClock()
    limiter = emptied(capacity=3, clock=clock)
    assert limiter.schedule(3) == 3.0
    assert limiter.schedule(1) == 4.0
    limiter.update(rate=2.0)
    assert limiter.retry_after() == 2.5
    limiter.update(capacity=2)
    assert limiter.retry_after() == 1.0
    clock.advance(0.5)
    assert limiter.statistics().waiting == 1
    clock.advance(0.5)
    assert limiter.try_acquire()


@every_loop
async def test_reservation_holds_its_place_without_anybody_waiting() -> None:
    """Those who come later queue behind a reservation; it is had without waiting once its time has come."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    reservation = limiter.reserve()
    assert reservation.ready_in == 1.0
    later = limiter.reserve()
    assert later.ready_in == 2.0
    assert not limiter.try_acquire()
    clock.advance(1.0)
    assert reservation.ready_in == 0.0
    assert not limiter.try_acquire()
    with anyio.CancelScope() as scope:
        scope.cancel()
        # Not a checkpoint, since the tokens are there.
        await reservation.wait()
    assert not scope.cancelled_caught
    await reservation.wait()
    reservation.cancel()
    assert limiter.statistics().admitted == 2
    assert later.ready_in == 1.0


@every_loop
async def test_cancelled_reservation_lets_those_behind_it_move_up() -> None:
    """RL6: cancelling gives back the place, or the tokens, and wakes whoever is next; again is nothing."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    first, granted = limiter.reserve(), limiter.reserve()
    async with Crew() as crew:
        waiter = crew.start(lambda: limiter.acquire(max_wait=math.inf))
        await settle()
        first.cancel()
        first.cancel()
        assert granted.ready_in == 1.0
        clock.advance(1.0)
        assert granted.ready_in == 0.0
        granted.cancel()
        await settle()
        assert waiter.result is True
    for gone in (first, granted):
        with pytest.raises(RuntimeError, match="not after it was cancelled; this one is <reserved place, cancelled>"):
            await gone.wait()


@every_loop
async def test_reservation_is_waited_for_in_its_turn() -> None:
    """A wait ends when the tokens are there; a second one meanwhile is an error."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    reservation = limiter.reserve()
    async with Crew() as crew:
        waiting = crew.start(reservation.wait)
        await settle()
        with pytest.raises(RuntimeError, match="waited for once"):
            await reservation.wait()
        clock.advance(1.0)
        await settle()
        assert waiting.finished
    assert limiter.statistics().admitted == 2


@every_loop
async def test_reservation_cancelled_while_it_is_waited_for_ends_the_wait() -> None:
    """RL6: whoever waits for a reservation that somebody else cancels is told, and does not wait for ever."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    reservation = limiter.reserve()
    async with Crew() as crew:
        waiting = crew.start(reservation.wait)
        await settle()
        reservation.cancel()
        await settle()
        assert isinstance(waiting.error, RuntimeError)
        assert "cancelled while it was waited for" in str(waiting.error)
    clock.advance(1.0)
    assert limiter.try_acquire()


@every_loop
async def test_cancelled_wait_cancels_the_reservation() -> None:
    """RL7: a cancellation goes on, and the place is free."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    reservation = limiter.reserve()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await reservation.wait()
    assert scope.cancelled_caught
    clock.advance(1.0)
    assert limiter.try_acquire()


# -- update ---------------------------------------------------------------------------------------------------------


@every_loop
async def test_update_moves_everybody_to_the_new_terms() -> None:
    """A faster rate wakes those who wait earlier; a turn that now comes too late is refused; the order stays."""
    clock = ManualClock()
    limiter = emptied(capacity=2, clock=clock)
    async with Crew() as crew:
        patient = crew.start(lambda: limiter.acquire(max_wait=math.inf))
        await settle()
        hurried = crew.start(lambda: limiter.acquire(max_wait=2.0))
        await settle()
        limiter.update(rate=0.5)
        await settle()
        assert (patient.ended, hurried.result) == (False, False)
        limiter.update(rate=4.0)
        clock.advance(0.25)
        await settle()
        assert patient.result is True
    assert (limiter.rate, limiter.capacity) == (4.0, 2)
    assert limiter.statistics().rejected == 1


@every_loop
async def test_update_ends_a_waiter_that_no_longer_fits() -> None:
    """A cost above the new capacity is a ValueError for whoever waits for it, and those behind move up."""
    clock = ManualClock()
    limiter = emptied(capacity=3, clock=clock)
    async with Crew() as crew:
        large = crew.start(lambda: limiter.acquire(3, max_wait=math.inf))
        await settle()
        small = crew.start(lambda: limiter.acquire(max_wait=math.inf))
        await settle()
        limiter.update(capacity=2)
        clock.advance(1.0)
        await settle()
        assert isinstance(large.error, ValueError)
        assert "at most the capacity of 2, not 3" in str(large.error)
        assert small.result is True


@every_loop
async def test_refusal_by_update_outlives_the_next_update() -> None:
    """What one update refuses is refused, for its own reason, even if the next one would have let it wait."""
    clock = ManualClock()
    limiter = emptied(capacity=3, clock=clock)
    reservation = limiter.reserve(3)
    async with Crew() as crew:
        waiting = crew.start(lambda: limiter.acquire(3, max_wait=math.inf))
        late = crew.start(lambda: limiter.acquire(1, max_wait=100.0))
        await settle()
        limiter.update(capacity=2, rate=0.001)
        limiter.update(capacity=100, rate=1.3)
        await settle()
        assert isinstance(waiting.error, ValueError)
        assert late.result is False
    with pytest.raises(ValueError, match="at most the capacity of 2, not 3"):
        await reservation.wait()
    assert limiter.statistics().admitted == 1


@every_loop
async def test_update_between_grant_and_resumption_takes_nothing_back() -> None:
    """RL1: a grant under the old terms stands; cancelled after an update, it is not refunded under the new ones."""
    clock = ManualClock()
    limiter = emptied(clock=clock)
    reservation = limiter.reserve()
    clock.advance(1.0)
    assert reservation.ready_in == 0.0
    limiter.update(rate=2.0)
    reservation.cancel()
    assert limiter.available == 0.0
    # And the terms after that give back as usual.
    second = limiter.reserve()
    clock.advance(0.5)
    assert second.ready_in == 0.0
    second.cancel()
    assert limiter.available == 1.0


# -- as a layer -----------------------------------------------------------------------------------------------------


@every_loop
async def test_guarded_calls_are_refused_or_wait() -> None:
    """Without max_wait the call is refused with the time to come back; with it, the call waits its turn."""
    clock = ManualClock()
    limiter = RateLimiter(1.0, 1, name="outgoing", clock=clock)
    assert not limiter.waits

    @limiter
    async def answer() -> int:
        return 42

    assert await answer() == 42
    with pytest.raises(RateLimitedError, match="outgoing has no token left; ask again in 1 s") as caught:
        await answer()
    assert caught.value.retry_after == 1.0
    with pytest.raises(RateLimitedError):
        await limiter.admit_waiting()

    patient = emptied(max_wait=1.0, clock=clock)
    async with Crew() as crew:
        waiting = crew.start(lambda: patient.call(answer.__wrapped__))  # type: ignore[attr-defined]
        await settle()
        with pytest.raises(RateLimitedError) as late:
            await patient.call(answer.__wrapped__)  # type: ignore[attr-defined]
        assert late.value.retry_after == 2.0
        clock.advance(1.0)
        await settle()
        assert waiting.result == 42
    assert patient.statistics().rejected == 1


@every_loop
async def test_blocks_are_guarded_too() -> None:
    """With and async with admit a block; an async one waits where a plain one in an event loop must not block."""
    clock = ManualClock()
    limiter = RateLimiter(1.0, 1, max_wait=5.0, clock=clock)
    with limiter as permit:
        assert isinstance(permit, Permit)
    with pytest.raises(RateLimitedError), limiter:
        pytest.fail("admitted")

    async def block() -> str:
        async with limiter:
            return "in"

    async with Crew() as crew:
        waiting = crew.start(block)
        await settle()
        assert not waiting.ended
        clock.advance(1.0)
        await settle()
        assert waiting.result == "in"


@every_loop
async def test_refusal_further_inside_gives_the_token_back() -> None:
    """A call that another guard refused did not run: its token comes back, and the count says so."""
    clock = ManualClock()
    outer, inner = RateLimiter(1.0, 5, clock=clock), emptied(clock=clock)

    async def never() -> None:
        pytest.fail("ran")

    with pytest.raises(RejectedError):
        await Policy(outer, inner).call(never)
    assert outer.available == 5.0
    # A counter never goes back: whoever watches it would take that for a restart.
    assert (outer.statistics().admitted, outer.statistics().ignored) == (1, 1)

    async def fails() -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await outer.call(fails)
    assert outer.available == 4.0


def test_permit_is_settled_once_and_gives_back_only_what_is_exact() -> None:
    """Only the last admission comes back, once, and only if its call was ignored."""
    clock = ManualClock()
    limiter = RateLimiter(1.0, 5, clock=clock)
    first, second = limiter.admit(0), limiter.admit(0)
    assert isinstance(first, Permit)
    assert isinstance(second, Permit)
    first.ignored()
    assert limiter.available == 3.0
    second.ignored()
    second.ignored()
    assert limiter.available == 4.0
    third = limiter.admit(0, 2)
    assert isinstance(third, Permit)
    limiter.settle(third, Verdict.CANCELLED)
    third.ignored()
    assert limiter.available == 2.0


@every_loop
async def test_token_that_comes_back_moves_everybody_up() -> None:
    """RL6, RL11: whoever sleeps until his turn hears that it comes earlier, though not yet."""
    clock = ManualClock()
    limiter = RateLimiter(1.0, 10, clock=clock)
    assert limiter.try_acquire(9)
    permit = limiter.admit(clock.monotonic_ns())
    assert isinstance(permit, Permit)
    async with Crew() as crew:
        waiting = crew.start(lambda: limiter.acquire(5, max_wait=math.inf))
        await settle()
        permit.ignored()
        await settle()
        clock.advance(4.0)
        await settle()
        assert waiting.result is True


def test_refusals_are_announced() -> None:
    """Whoever subscribes hears of each refusal, once, with the time to come back."""
    seen: list[object] = []
    limiter = emptied(clock=ManualClock())
    unsubscribe = subscribe(seen.append)
    try:
        limiter.try_acquire()
        with pytest.raises(RateLimitedError):
            limiter.admit_blocking()
    finally:
        unsubscribe()
    assert [(type(event).__name__, getattr(event, "retry_after", None)) for event in seen] == [("Rejected", 1.0)] * 2


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
