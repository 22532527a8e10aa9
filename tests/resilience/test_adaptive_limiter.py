"""AdaptiveLimiter: never more than the limit, whatever becomes of it; permits that come back; the important first."""

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
    AIMD,
    AdaptiveLimiter,
    CircuitOpenError,
    Gradient2,
    LimiterShare,
    LimitExceededError,
    NotUntil,
    Permit,
    Policy,
    Vegas,
    Verdict,
)
from resilience.parking import async_waiter
from resilience.queueing import WHOLE, WaitingLine
from resilience.telemetry import LimitChanged, Rejected, subscribe
from resilience.testing import ManualClock
from tests.resilience.support import (
    NOT_A_COUNT,
    NOT_NEGATIVE,
    NOT_POSITIVE,
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

    from resilience.parking import Waiter

every_loop = pytest.mark.anyio
Step: TypeAlias = tuple[str, int, int]


def fixed(limit: int) -> AIMD:
    """Return an algorithm that stays where it is, unless a call fails."""
    return AIMD(initial_limit=limit, max_limit=limit)


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [None, "x", AIMD, 20], ids=brief)
def test_refuses_what_is_no_algorithm(bad: object) -> None:
    """The algorithm is one of three values."""
    assert_refuses("algorithm", bad, AdaptiveLimiter)


@pytest.mark.parametrize("bad", [*NOT_NEGATIVE, None], ids=brief)
def test_refuses_bad_queues_and_waits(bad: object) -> None:
    """max_queue is a whole number of at least 0; max_wait a finite one of at least 0, or None."""
    if bad is not None:
        assert_refuses("max_wait", bad, AdaptiveLimiter)
    if bad in NOT_A_COUNT:
        assert_refuses("max_queue", bad, AdaptiveLimiter)


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


class Notebook:
    """A machine that writes down its samples, and whose limit the test moves."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.samples: list[tuple[int, int, int, bool]] = []

    def record(self, started_ns: int, ended_ns: int, in_flight: int, *, dropped: bool) -> int:
        self.samples.append((started_ns, ended_ns, in_flight, dropped))
        return self.limit


def noted(limiter: AdaptiveLimiter) -> Notebook:
    """Put a notebook in the place of the limiter's machine."""
    notebook = Notebook(limiter.limit)
    limiter._machine = notebook
    return notebook


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
async def test_refuses_what_is_too_much() -> None:
    """Without a queue, what finds no permit is refused at once, counted, and told."""
    limiter = AdaptiveLimiter(fixed(1), name="api")
    assert not limiter.waits
    seen: list[object] = []
    unsubscribe = subscribe(seen.append)
    async with limiter as permit:
        assert isinstance(permit, Permit)
        assert limiter.try_admit() is None
        with pytest.raises(LimitExceededError, match=r"^api is at its limit$") as caught:
            await limiter.admit_waiting()
        assert caught.value.retry_after is None
        with pytest.raises(LimitExceededError):
            limiter.admit_blocking()
        assert limiter.admit(0) == NotUntil(None)
    unsubscribe()
    assert limiter.statistics().rejected == 3
    assert seen == [Rejected(guard="api", retry_after=None)] * 3


@every_loop
async def test_queue_is_bounded_and_waits_no_longer_than_it_may() -> None:
    """max_queue calls wait, for max_wait each; in an event loop plain code does not wait."""
    clock = ManualClock()
    limiter = AdaptiveLimiter(fixed(1), max_queue=1, max_wait=2.0, clock=clock)
    permit = limiter.try_admit()
    assert permit is not None
    async with Crew() as crew:
        waiting = crew.start(limiter.admit_waiting)
        await settle()
        with pytest.raises(LimitExceededError):
            await limiter.admit_waiting()
        with pytest.raises(LimitExceededError):
            limiter.admit_blocking()
        clock.advance(2.0)
        await settle()
        assert isinstance(waiting.error, LimitExceededError)
        assert limiter.statistics().waiting == 0
    forbearing = AdaptiveLimiter(fixed(1), max_queue=1, max_wait=0, clock=clock)
    assert isinstance(forbearing.admit(0), Permit)
    with pytest.raises(LimitExceededError):
        await forbearing.admit_waiting()


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


# -- the laws --------------------------------------------------------------------------------------------------------

SHARES = (Fraction(1), Fraction(1, 2), Fraction(1, 4))


class World:
    """A limiter whose limit moves, those who want in with this share or that, and the laws."""

    QUEUE, WAIT = 4, 3

    def __init__(self, kind: type[AdaptiveLimiter]) -> None:
        self.clock = ManualClock()
        self.limiter = kind(fixed(2), max_queue=self.QUEUE, max_wait=float(self.WAIT), clock=self.clock)
        self.notebook = noted(self.limiter)
        self.share: list[Fraction] = []
        self.asked: list[Job] = []
        self.inside: list[int] = []
        self.order: list[int] = []
        self.cancelled: list[Job] = []
        self.releases: dict[int, anyio.Event] = {}
        self.limit = 2
        self.seen = 0

    async def work(self, cell: list[Job], share: Fraction) -> None:
        """Go in and stay until released."""
        number = len(self.asked)
        self.asked.append(cell[0])
        self.share.append(share)
        self.releases[number] = anyio.Event()
        async with self.limiter.at(float(share)):
            self.inside.append(number)
            self.order.append(number)
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
        elif name == "limit":
            # It holds from the next call that succeeds.
            self.notebook.limit = first
        elif name == "cancel" and crew.jobs:
            job = crew.jobs[first % len(crew.jobs)]
            job.cancel(native=bool(second))
            self.cancelled.append(job)
        elif name == "try":
            before = self.limiter.statistics()
            permit = self.limiter.at(float(SHARES[first])).try_admit()
            assert (permit is not None) == (before.in_use < math.ceil(SHARES[first] * before.limit))
            if permit is not None:
                permit.cancelled()

    def judge(self) -> None:
        """Judge a moment at which everybody waits."""
        statistics = self.limiter.statistics()
        out = [number for number, job in enumerate(self.asked) if not job.ended and number not in self.inside]
        assert statistics.in_use == len(self.inside)
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


def law_of_the_limiter(kind: type[AdaptiveLimiter], backend: str) -> Callable[[], None]:
    """AL6 to AL9: never more than the limit or the share; nobody waits for nothing; in order; all permits come back."""

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("start"), st.sampled_from([0, 0, 1, 2]), st.just(0)),
                st.tuples(st.just("start"), st.sampled_from([0, 0, 1, 2]), st.just(0)),
                st.tuples(st.just("release"), st.integers(0, 3), st.just(0)),
                st.tuples(st.just("cancel"), st.integers(0, 12), st.integers(0, 1)),
                st.tuples(st.just("limit"), st.integers(1, 5), st.just(0)),
                st.tuples(st.sampled_from(["settle", "settle", "try"]), st.integers(0, 2), st.just(0)),
                st.tuples(st.just("advance"), st.sampled_from([1, 2, 3]), st.just(0)),
            ),
            min_size=6,
            max_size=30,
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
            assert all(job.error is None or isinstance(job.error, LimitExceededError) for job in crew.jobs)
            statistics = world.limiter.statistics()
            # AL9: every admission is settled once, and no permit and no waiter is left.
            assert statistics.in_use == statistics.waiting == 0
            assert statistics.admitted == statistics.succeeded + statistics.cancelled
            assert len(world.notebook.samples) == statistics.succeeded

        run(backend, main)

    return law


@both_loops
def test_limiter_keeps_its_laws_under_every_schedule(backend: str) -> None:
    """The laws hold wherever a cancellation lands and however the limit moves (AL6 to AL9, PO5)."""
    heavy(law_of_the_limiter(AdaptiveLimiter, backend))()


class _Leaking(AdaptiveLimiter):
    """A mutant: a permit that was granted to somebody who is then cancelled is lost."""

    def _abandon(self, waiter: Waiter) -> None:
        with self._lock:
            self._queue.leave(waiter)


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


class _LastLine(WaitingLine):
    __slots__ = ()

    @property
    def first(self) -> tuple[Fraction, Waiter] | None:
        return self.last


class _LastFirst(AdaptiveLimiter):
    """A mutant: serves the last first."""

    def __init__(self, *args: AIMD, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._queue = _LastLine()


class _TwiceSettled(AdaptiveLimiter):
    """A mutant: takes every verdict for the first."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        super().settle(permit, verdict)
        permit.generation = 0
        super().settle(permit, verdict)


class _Unforgetting(AdaptiveLimiter):
    """A mutant: learns from calls that were cancelled."""

    def settle(self, permit: Permit, verdict: Verdict) -> None:
        if verdict is Verdict.CANCELLED and not permit.settled:
            self._machine.record(0, 0, 1, dropped=False)
        super().settle(permit, verdict)


@pytest.mark.parametrize(
    "mutant", [_Leaking, _HandsOver, _OneByOne, _Undivided, _LastFirst, _TwiceSettled, _Unforgetting]
)
@both_loops
def test_law_of_the_limiter_catches_mutants(mutant: type[AdaptiveLimiter], backend: str) -> None:
    """A lost, idle, doubled or misdirected permit is seen, and one too many."""
    assert_caught(law_of_the_limiter(mutant, backend))


# -- threads, loops and frames that go away --------------------------------------------------------------------------


def test_threads_wait_their_turn() -> None:
    """A thread blocks until a permit is granted to it, until its time is over, or until it is displaced."""
    clock = ManualClock()
    limiter = AdaptiveLimiter(fixed(1), max_queue=1, max_wait=5.0, clock=clock)
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
    limiter.admit_blocking()
    third = threading.Thread(target=work, args=(1,))
    third.start()
    until_blocking(lambda: clock.next_deadline() is not None)
    clock.advance(5.0)
    third.join()
    assert isinstance(results[2], LimitExceededError)


def test_threads_are_never_too_many() -> None:
    """With many threads at once no more than the limit are inside, all get their turn, and every permit comes back."""
    limiter = AdaptiveLimiter(fixed(3), max_queue=10)
    lock, barrier = threading.Lock(), threading.Barrier(8)
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        barrier.wait()
        for _ in range(20):
            with limiter:
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
    assert (limiter.statistics().succeeded, limiter.statistics().in_use) == (160, 0)


def test_interrupted_thread_leaves_the_queue() -> None:
    """A thread whose wait raises takes no permit."""

    class Interrupting(ManualClock):
        def call_later(self, delay_ns: int, callback: Callable[[], object], /) -> Callable[[], None]:  # noqa: ARG002
            raise KeyboardInterrupt

    limiter = AdaptiveLimiter(fixed(1), max_queue=1, max_wait=1.0, clock=Interrupting())
    permit = limiter.admit_blocking()
    with pytest.raises(KeyboardInterrupt):
        limiter.admit_blocking()
    permit.success()
    assert limiter.available == 1


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


@both_loops
def test_permit_goes_to_a_waiter_of_another_event_loop(backend: str) -> None:
    """A permit that comes back in one thread is granted to a task in another's event loop."""
    limiter = AdaptiveLimiter(fixed(1), max_queue=1)
    permit = limiter.admit_blocking()

    async def main() -> None:
        async with limiter:
            assert limiter.available == 0

    thread = threading.Thread(target=run, args=(backend, main))
    thread.start()
    until_blocking(lambda: limiter.statistics().waiting == 1)
    permit.success()
    thread.join()
    assert limiter.available == 1


def _park_by_hand(limiter: AdaptiveLimiter) -> tuple[asyncio.AbstractEventLoop, list[object]]:
    loop = asyncio.new_event_loop()
    frame = limiter.admit_waiting()

    async def start() -> None:
        frame.send(None)

    loop.run_until_complete(start())
    return loop, [frame]


def test_waiters_of_a_closed_loop_are_passed_over() -> None:
    """A permit is not lost on a task that can never run again."""
    limiter = AdaptiveLimiter(fixed(1), max_queue=3)
    permit = limiter.admit_blocking()
    loop, frames = _park_by_hand(limiter)
    loop.close()
    permit.success()
    assert (limiter.available, limiter.statistics().waiting) == (1, 0)
    frames.clear()
    gc.collect()
    assert limiter.available == 1


def test_dropped_frame_hands_on_what_it_was_granted() -> None:
    """A wait that is garbage leaves the queue, or passes its permit on, and teaches nothing."""
    limiter = AdaptiveLimiter(fixed(1), max_queue=3)
    notebook = noted(limiter)
    permit = limiter.admit_blocking()
    loop, frames = _park_by_hand(limiter)
    other, others = _park_by_hand(limiter)
    permit.success()
    assert (limiter.available, limiter.statistics().waiting) == (0, 1)
    frames.clear()
    gc.collect()
    assert (limiter.available, limiter.statistics().waiting) == (0, 0)
    others.clear()
    gc.collect()
    assert (limiter.available, len(notebook.samples)) == (1, 1)
    loop.close()
    other.close()


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


def test_found_lock_is_counted() -> None:
    """An admission that finds the lock taken says so."""
    limiter = AdaptiveLimiter()
    found = threading.Event()

    class Watched:
        def locked(self) -> bool:
            found.set()
            return True

    lock, limiter._lock = limiter._lock, Watched()  # type: ignore[assignment]
    with lock:
        thread = threading.Thread(target=limiter.try_admit)
        thread.start()
        found.wait()
    thread.join()
    assert limiter.statistics().contended == 1
