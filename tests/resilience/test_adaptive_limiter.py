"""AdaptiveLimiter: what calls teach it, and the important first. How calls wait is in test_queueing."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TypeAlias

import pytest

from resilience import (
    AIMD,
    AdaptiveLimiter,
    CircuitOpenError,
    Gradient2,
    LimiterShare,
    LimitExceededError,
    Permit,
    Policy,
    Vegas,
    Verdict,
)
from resilience.parking import async_waiter
from resilience.queueing import WHOLE
from resilience.telemetry import LimitChanged, subscribe
from resilience.testing import ManualClock
from tests.resilience.limiters import fixed, noted
from tests.resilience.support import (
    NOT_POSITIVE,
    Crew,
    HookedClock,
    assert_refuses,
    brief,
    settle,
    until_blocking,
)

every_loop = pytest.mark.anyio
Step: TypeAlias = tuple[str, int, int]


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, "x", AIMD, 20], ids=brief)
def test_refuses_what_is_no_algorithm(bad: object) -> None:
    """The algorithm is one of three values."""
    assert_refuses("algorithm", bad, AdaptiveLimiter)


@pytest.mark.parametrize("bad", [*NOT_POSITIVE, 1.01], ids=brief)
def test_refuses_bad_shares(bad: object) -> None:
    """A share is above 0 and at most 1."""
    assert_refuses("share", bad, AdaptiveLimiter().at)


def test_refuses_predicates_that_cannot_be_called() -> None:
    """What tells failures apart is a function; for results there may be none."""
    assert_refuses("is_failure", None, AdaptiveLimiter)
    assert_refuses("is_failure", 3, AdaptiveLimiter)
    assert_refuses("is_failure_result", 3, AdaptiveLimiter)


@pytest.mark.parametrize(
    "algorithm", [Gradient2(initial_limit=7), Vegas(initial_limit=7), AIMD(initial_limit=7)], ids=str
)
def test_limit_begins_where_the_algorithm_says(algorithm: Gradient2 | Vegas | AIMD) -> None:
    """The algorithm and its limit can be seen."""
    limiter = AdaptiveLimiter(algorithm, name="api")
    assert (limiter.algorithm, limiter.limit, limiter.available) == (algorithm, 7, 7)
    assert repr(limiter) == "<AdaptiveLimiter 'api', 0 of 7>"
    assert repr(limiter.at(0.5)) == "<0.5 of <AdaptiveLimiter 'api', 0 of 7>>"
    assert AdaptiveLimiter().algorithm == Gradient2()


# -- what a call teaches -------------------------------------------------------------------------------------------


@every_loop
async def test_latency_runs_from_admission_to_settlement() -> None:
    """A sample has the instants of both, and how many were in flight at the first, itself included."""
    clock = ManualClock()
    limiter = AdaptiveLimiter(fixed(5), clock=clock)
    notebook = noted(limiter)
    async with limiter:
        clock.advance(1e-6)
        async with limiter:
            clock.advance(2e-6)
    assert notebook.samples == [(1_000, 3_000, 2, False), (0, 3_000, 1, False)]


@every_loop
async def test_wait_is_no_latency() -> None:
    """The time in the queue is the limiter's doing, not the callee's."""
    clock = ManualClock()
    limiter = AdaptiveLimiter(fixed(1), max_queue=1, clock=clock)
    notebook = noted(limiter)
    permit = limiter.try_admit()
    assert permit is not None

    async def work() -> None:
        async with limiter:
            clock.advance(2e-6)

    async with Crew() as crew:
        job = crew.start(work)
        await settle()
        clock.advance(5e-6)
        permit.success()
        await settle()
        assert job.finished
    assert notebook.samples == [(0, 5_000, 1, False), (5_000, 7_000, 1, False)]


def test_clock_that_falls_back_makes_no_latency() -> None:
    """Latency is measured on the guard's own line, which stands still instead."""
    clock = ManualClock(10.0)
    limiter = AdaptiveLimiter(fixed(5), clock=clock)
    notebook = noted(limiter)
    permit = limiter.try_admit()
    assert permit is not None
    clock._now_ns -= 4_000_000_000
    permit.success()
    assert [(ended - started) for started, ended, _, _ in notebook.samples] == [0]


@every_loop
async def test_verdicts_teach_what_they_should() -> None:
    """Success is latency, failure is a drop, and the rest gives its permit back and teaches nothing."""
    limiter = AdaptiveLimiter(fixed(5), is_failure_result=lambda result: result == 503)
    notebook = noted(limiter)

    async def end(how: object) -> object:
        if isinstance(how, BaseException):
            raise how
        return how

    assert await limiter.call(end, 200) == 200
    assert await limiter.call(end, 503) == 503
    for error in (TimeoutError(), ValueError(), CircuitOpenError("inner"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            await limiter.call(end, error)
    assert [dropped for *_, dropped in notebook.samples] == [False, True, True]
    statistics = limiter.statistics()
    assert (statistics.succeeded, statistics.failed, statistics.ignored, statistics.cancelled) == (1, 2, 2, 1)
    assert (statistics.admitted, statistics.in_use, statistics.limit) == (6, 0, 5)


def test_user_says_what_a_failure_is() -> None:
    """is_failure replaces the default, and may answer with a verdict."""
    limiter = AdaptiveLimiter(
        fixed(5),
        is_failure=lambda error: Verdict.SUCCESS if isinstance(error, KeyError) else isinstance(error, OSError),
    )
    notebook = noted(limiter)
    for error in (KeyError(), OSError(), ValueError()):
        with pytest.raises(type(error)), limiter:
            raise error
    assert [dropped for *_, dropped in notebook.samples] == [False, True]


def test_first_verdict_counts() -> None:
    """A permit that is settled again gives nothing back, and teaches nothing."""
    limiter = AdaptiveLimiter(fixed(5))
    notebook = noted(limiter)
    permit = limiter.admit_blocking()
    permit.success()
    permit.failure()
    assert (permit.settled, limiter.available, len(notebook.samples)) == (True, 5, 1)


def test_broken_predicate_gives_the_permit_back() -> None:
    """What is_failure raises goes on, and the permit is not lost."""

    def broken(error: Exception) -> bool:
        raise ZeroDivisionError from error

    limiter = AdaptiveLimiter(fixed(1), is_failure=broken)
    with pytest.raises(ZeroDivisionError), limiter:
        raise ValueError
    assert (limiter.available, limiter.statistics().ignored) == (1, 1)


def test_limit_is_learnt_and_told() -> None:
    """A change is an event, on the guard's own line of time; no change is none; nobody listening costs nothing."""
    clock = ManualClock()
    limiter = AdaptiveLimiter(AIMD(initial_limit=10), name="api", clock=clock)

    def fail() -> None:
        permit = limiter.try_admit()
        assert permit is not None
        permit.failure()

    seen: list[object] = []
    unsubscribe = subscribe(seen.append)
    clock.advance(3)
    fail()
    with limiter:
        pass
    unsubscribe()
    clock.advance(1)
    fail()
    assert seen == [LimitChanged(guard="api", old=10, new=9, at_ns=3_000_000_000)]
    assert limiter.limit == 8


def test_limiter_finds_the_capacity_of_what_it_guards() -> None:
    """Guard and algorithm together, in virtual time: eight workers of 10 ms, and more calls than they can take."""
    clock = ManualClock()
    limiter = AdaptiveLimiter(Gradient2(), clock=clock)
    queue: list[Permit] = []
    limits = []
    for _ in range(1_000):
        while (permit := limiter.try_admit()) is not None:
            queue.append(permit)
        clock.advance(0.01)
        for served in queue[:8]:
            served.success()
        del queue[:8]
        limits.append(limiter.limit)
    # One and a half times the workers and room for four; a quarter of that in a probe.
    assert 14 <= max(limits[500:]) <= 17
    assert limiter.statistics().succeeded == limiter.statistics().admitted - len(queue)


# -- admission -------------------------------------------------------------------------------------------------------


@every_loop
async def test_limit_that_grows_lets_in_those_who_wait() -> None:
    """One call ends, and three get in: the permit that came back, and two that are new."""
    limiter = AdaptiveLimiter(fixed(1), max_queue=5)
    notebook = noted(limiter)
    permit = limiter.try_admit()
    assert permit is not None
    async with Crew() as crew:
        jobs = [crew.start(limiter.admit_waiting) for _ in range(4)]
        await settle()
        notebook.limit = 3
        permit.success()
        await settle()
        assert (sum(job.finished for job in jobs), limiter.statistics().waiting) == (3, 1)


@every_loop
async def test_limit_that_sinks_lets_nobody_in_until_it_is_kept() -> None:
    """Permits that come back are not handed on while more are out than the limit allows."""
    limiter = AdaptiveLimiter(fixed(4), max_queue=5)
    notebook = noted(limiter)
    permits = [limiter.admit_blocking() for _ in range(4)]
    async with Crew() as crew:
        job = crew.start(limiter.admit_waiting)
        await settle()
        notebook.limit = 2
        for permit in permits[:2]:
            permit.success()
            await settle()
            assert (limiter.limit, job.ended, limiter.available) == (2, False, 0)
            assert limiter.try_admit() is None
        permits[2].cancelled()
        await settle()
        assert job.finished


# -- shares ----------------------------------------------------------------------------------------------------------


@every_loop
async def test_share_is_refused_first() -> None:
    """Half of the limit is for everybody; the rest is for those who may use more."""
    limiter = AdaptiveLimiter(fixed(5), name="api")
    batch = limiter.at(0.5)
    assert isinstance(batch, LimiterShare)
    permits = []
    while (permit := batch.try_admit()) is not None:
        permits.append(permit)
    # Rounded up: three of five.
    assert len(permits) == 3
    with pytest.raises(LimitExceededError, match=r"^api is at its limit$"):
        async with batch:
            pass
    with pytest.raises(LimitExceededError):
        batch.admit_blocking()
    async with limiter.at(0.7), limiter:
        assert limiter.at(1).try_admit() is None
    for permit in permits:
        permit.success()


def test_share_is_the_decimal_that_was_written() -> None:
    """0.1 of 30 is 3, though the float is a little more; at a limit of 1 there is one for any share."""
    share = AdaptiveLimiter(fixed(30)).at(0.1)
    assert sum(share.try_admit() is not None for _ in range(10)) == 3
    assert AdaptiveLimiter(fixed(1)).at(0.001).try_admit() is not None


@every_loop
async def test_share_is_the_same_limiter() -> None:
    """Permits, statistics, names, waiting and what is learnt are the limiter's."""
    limiter = AdaptiveLimiter(AIMD(initial_limit=10), max_queue=3, name="api")
    share = limiter.at(0.5)
    assert (share.waits, share.label, share.statistics()) == (True, "api", limiter.statistics())

    @share
    async def work(error: Exception | None) -> int:
        if error:
            raise error
        return limiter.statistics().in_use

    assert await work(None) == 1
    with pytest.raises(TimeoutError):
        await work(TimeoutError())
    assert limiter.limit == 9
    assert await Policy(share).call(work, None) == 2
    permit = await share.admit_waiting()
    share.settle(permit, Verdict.IGNORED)
    share.admit_blocking().success()
    assert limiter.statistics().ignored == 1
    assert limiter.statistics() == share.statistics()


@every_loop
async def test_larger_share_is_served_first_and_equals_in_order() -> None:
    """Whoever may use more of the limit is next; among equals it is whoever came first."""
    limiter = AdaptiveLimiter(fixed(1), max_queue=9)
    permit = limiter.try_admit()
    assert permit is not None
    order: list[str] = []

    async def work(name: str, share: float) -> None:
        async with limiter.at(share):
            order.append(name)

    async with Crew() as crew:
        for name, share in (("a", 0.5), ("b", 0.5), ("c", 1), ("d", 0.7), ("e", 1)):
            crew.start(partial(work, name, share))
            await settle()
        permit.success()
        await settle()
    assert order == ["c", "e", "d", "a", "b"]


@every_loop
async def test_larger_share_takes_the_last_place_of_a_full_queue() -> None:
    """The last of those with the smallest share is refused in its stead; nobody takes the place of an equal."""
    limiter = AdaptiveLimiter(fixed(1), max_queue=2)
    permit = limiter.try_admit()
    assert permit is not None
    async with Crew() as crew:
        first = crew.start(limiter.at(0.5).admit_waiting)
        await settle()
        second = crew.start(limiter.at(0.5).admit_waiting)
        await settle()
        equal = crew.start(limiter.at(0.5).admit_waiting)
        await settle()
        assert isinstance(equal.error, LimitExceededError)
        assert not second.ended
        large = crew.start(limiter.admit_waiting)
        await settle()
        assert isinstance(second.error, LimitExceededError)
        assert (first.ended, large.ended, limiter.statistics().waiting) == (False, False, 2)
        # Displaced, and cancelled before it heard of it: whichever comes through, it takes nothing with it.
        waiter = async_waiter()
        assert limiter._join(waiter, WHOLE) is None
        first.cancel(native=True)
        await settle()
        assert first.ended
        permit.success()
        await settle()
        assert large.finished
        limiter._abandon(waiter)
    assert (limiter.statistics().waiting, limiter.statistics().in_use) == (0, 1)


# -- threads and frames that go away -----------------------------------------------------------------------------------


def test_thread_gives_up_its_place_to_a_larger_share() -> None:
    """A thread that waits is refused when somebody with a larger share needs its place in a full queue."""
    limiter = AdaptiveLimiter(fixed(1), max_queue=1, max_wait=5.0, clock=ManualClock())
    permit = limiter.admit_blocking()
    results: list[object] = []

    def work(share: float) -> None:
        try:
            with limiter.at(share):
                results.append(share)
        except LimitExceededError as error:
            results.append(error)

    first = threading.Thread(target=work, args=(0.5,))
    first.start()
    until_blocking(lambda: limiter.statistics().waiting == 1)
    second = threading.Thread(target=work, args=(1,))
    second.start()
    first.join()
    permit.success()
    second.join()
    assert isinstance(results[0], LimitExceededError)
    assert results[1] == 1


@every_loop
async def test_clock_that_raises_takes_no_permit() -> None:
    """Neither at once nor after a wait; the next call finds the permit."""
    clock = HookedClock()
    limiter = AdaptiveLimiter(fixed(1), max_queue=1, clock=clock)

    def broken() -> None:
        raise ZeroDivisionError

    for admit in (limiter.admit_waiting, limiter.at(0.5).admit_waiting):
        clock.hook = broken
        with pytest.raises(ZeroDivisionError):
            await admit()
        assert limiter.available == 1
    permit = limiter.admit_blocking()
    async with Crew() as crew:
        job = crew.start(limiter.admit_waiting)
        await settle()
        permit.success()
        clock.hook = broken
        await settle()
        assert isinstance(job.error, ZeroDivisionError)
    assert limiter.available == 1


def test_frame_dropped_inside_a_critical_section_does_not_deadlock() -> None:
    """The collector may strike in the thread that holds the lock: a call that is closed there is settled afterwards."""
    clock = HookedClock()
    limiter = AdaptiveLimiter(fixed(3), clock=clock)
    loop = asyncio.new_event_loop()

    async def stay() -> None:
        await asyncio.Future()

    async def start() -> list[object]:
        frame = limiter.call(stay)
        frame.send(None)
        return [frame]

    frames = loop.run_until_complete(start())
    clock.hook = frames.clear
    permit = limiter.try_admit()
    assert permit is not None
    assert not frames
    statistics = limiter.statistics()
    assert (statistics.in_use, statistics.cancelled, statistics.admitted) == (1, 1, 2)
    loop.close()
